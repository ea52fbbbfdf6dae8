//! actix-web 4 as its users write it: one single-threaded runtime per worker, shared totals.

use actix_web::{App, HttpResponse, HttpServer, http::header::ContentType, web};
use arena_peers::{Event, HEALTHY, RESET, Tally};

type State = web::Data<Tally>;

// The body is taken as bytes: `web::Json` would require a content type, which the challenge
// does not.
async fn event(tally: State, body: web::Bytes) -> HttpResponse {
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
    HttpResponse::Ok().content_type(ContentType::json()).body(body)
}

#[actix_web::main]
async fn main() -> std::io::Result<()> {
    let (port, threads) = arena_peers::arguments();
    let tally = web::Data::new(Tally::default());
    let app = move || {
        App::new()
            .app_data(tally.clone())
            .route("/event", web::post().to(event))
            .route("/stats", web::get().to(stats))
            .route("/health", web::get().to(health))
            .route("/reset", web::post().to(reset))
    };
    HttpServer::new(app).workers(threads).shutdown_timeout(1).bind(("127.0.0.1", port))?.run().await
}
