//! ntex 3 as its users write it, on its own runtime (neon) with io_uring.

use arena_peers::{Event, HEALTHY, RESET, Tally};
use ntex::time::Seconds;
use ntex::util::Bytes;
use ntex::web::{self, App, HttpResponse, HttpServer};
use std::sync::Arc;

type State = web::types::State<Arc<Tally>>;

// The body is taken as bytes, as in the other Rust entries.
async fn event(tally: State, body: Bytes) -> HttpResponse {
    match Event::parse(&body) {
        Some(event) => {
            tally.add(&event);
            HttpResponse::Ok().finish()
        }
        None => HttpResponse::BadRequest().finish(),
    }
}

async fn stats(tally: State) -> HttpResponse {
    json(tally.stats())
}

async fn health() -> HttpResponse {
    json(HEALTHY.to_owned())
}

async fn reset(tally: State) -> HttpResponse {
    tally.reset();
    json(RESET.to_owned())
}

fn json(body: String) -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(body)
}

#[ntex::main]
async fn main() -> std::io::Result<()> {
    let (port, threads) = arena_peers::arguments();
    let tally = Arc::new(Tally::default());
    let app = move || {
        let tally = tally.clone();
        async move {
            App::new()
                .state(tally)
                .route("/event", web::post().to(event))
                .route("/stats", web::get().to(stats))
                .route("/health", web::get().to(health))
                .route("/reset", web::post().to(reset))
        }
    };
    HttpServer::new(app)
        .workers(threads)
        .shutdown_timeout(Seconds(1))
        .bind(("127.0.0.1", port))?
        .run()
        .await
}
