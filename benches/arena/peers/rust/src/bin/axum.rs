//! axum 0.8 as its users write it: hyper on tokio's work-stealing runtime, shared totals.

use arena_peers::{Event, HEALTHY, RESET, Tally};
use axum::http::{HeaderName, StatusCode, header::CONTENT_TYPE};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Router, body::Bytes, extract::State};
use std::sync::Arc;

type Totals = State<Arc<Tally>>;
type Json<Body> = ([(HeaderName, &'static str); 1], Body);

// The body is taken as bytes: the `Json` extractor would require a content type, which the
// challenge does not, and would respond 422 instead of the required 400.
async fn event(State(tally): Totals, body: Bytes) -> StatusCode {
    match Event::parse(&body) {
        Some(event) => {
            tally.add(&event);
            StatusCode::OK
        }
        None => StatusCode::BAD_REQUEST,
    }
}

async fn stats(State(tally): Totals) -> Json<String> {
    json(tally.stats())
}

async fn health() -> Json<&'static str> {
    json(HEALTHY)
}

async fn reset(State(tally): Totals) -> Json<&'static str> {
    tally.reset();
    json(RESET)
}

fn json<Body>(body: Body) -> Json<Body> {
    ([(CONTENT_TYPE, "application/json")], body)
}

async fn serve(port: u16) -> std::io::Result<()> {
    let app = Router::new()
        .route("/event", post(event))
        .route("/stats", get(stats))
        .route("/health", get(health))
        .route("/reset", post(reset))
        .with_state(Arc::new(Tally::default()));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let listener = listener.tap_io(|stream| {
        // If it cannot be set, responses are only slower.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, app).await
}

fn main() -> std::io::Result<()> {
    let (port, threads) = arena_peers::arguments();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()?
        .block_on(serve(port))
}
