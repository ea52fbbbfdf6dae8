//! warp 0.4 as its users write it: filters over hyper on tokio's work-stealing runtime.

use arena_peers::{Event, HEALTHY, RESET, Tally};
use bytes::Bytes;
use std::sync::Arc;
use warp::http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use warp::{Filter, Reply};

const BODY_BYTES_MAX: u64 = 16_384;

// The body is taken as bytes: `body::json` requires an event that owns all its text.
fn event(tally: &Tally, body: &Bytes) -> StatusCode {
    match Event::parse(body) {
        Some(event) => {
            tally.add(&event);
            StatusCode::OK
        }
        None => StatusCode::BAD_REQUEST,
    }
}

fn json(body: String) -> Response<String> {
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

async fn serve(port: u16) {
    let tally = Arc::new(Tally::default());
    let totals = {
        let tally = tally.clone();
        warp::any().map(move || tally.clone())
    };
    let event = warp::path!("event")
        .and(warp::post())
        .and(totals.clone())
        .and(warp::body::content_length_limit(BODY_BYTES_MAX))
        .and(warp::body::bytes())
        .map(|tally: Arc<Tally>, body| event(&tally, &body).into_response());
    let stats = warp::path!("stats")
        .and(warp::get())
        .and(totals.clone())
        .map(|tally: Arc<Tally>| json(tally.stats()).into_response());
    let health =
        warp::path!("health").and(warp::get()).map(|| json(HEALTHY.to_owned()).into_response());
    let reset = warp::path!("reset").and(warp::post()).and(totals).map(|tally: Arc<Tally>| {
        tally.reset();
        json(RESET.to_owned()).into_response()
    });
    let routes = event.or(stats).unify().or(health).unify().or(reset).unify();
    warp::serve(routes).run(([127, 0, 0, 1], port)).await;
}

fn main() -> std::io::Result<()> {
    let (port, threads) = arena_peers::arguments();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()?
        .block_on(serve(port));
    Ok(())
}
