//! xitca-web as its users write it: one single-threaded tokio runtime per worker, typed extractors, shared totals.

use arena_peers::{Event, HEALTHY, RESET, Tally};
use std::sync::Arc;
use xitca_web::App;
use xitca_web::handler::{handler_service, state::StateRef};
use xitca_web::http::StatusCode;
use xitca_web::http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use xitca_web::route::{get, post};

type Json<Body> = (Body, (HeaderName, HeaderValue));

async fn event(StateRef(tally): StateRef<'_, Tally>, body: Vec<u8>) -> StatusCode {
    match Event::parse(&body) {
        Some(event) => {
            tally.add(&event);
            StatusCode::OK
        }
        None => StatusCode::BAD_REQUEST,
    }
}

async fn stats(StateRef(tally): StateRef<'_, Tally>) -> Json<String> {
    json(tally.stats())
}

async fn health() -> Json<&'static str> {
    json(HEALTHY)
}

async fn reset(StateRef(tally): StateRef<'_, Tally>) -> Json<&'static str> {
    tally.reset();
    json(RESET)
}

fn json<Body>(body: Body) -> Json<Body> {
    (body, (CONTENT_TYPE, HeaderValue::from_static("application/json")))
}

fn main() -> std::io::Result<()> {
    let (port, threads) = arena_peers::arguments();
    App::new()
        .at("/event", post(handler_service(event)))
        .at("/stats", get(handler_service(stats)))
        .at("/health", get(handler_service(health)))
        .at("/reset", post(handler_service(reset)))
        .with_state(Arc::new(Tally::default()))
        .serve()
        .worker_threads(threads)
        // SIGTERM ends the process immediately, as in most entries.
        .disable_signal()
        .bind(("127.0.0.1", port))?
        .run()
        .wait()
}
