//! actix-web 4 with one aggregator thread that owns the totals, as the published entry is built: handlers send events to it
//! over an unbounded channel, and respond without waiting until they are counted.
//!
//! `/stats` and `/reset` wait for their turn in the same channel. Everything that was acknowledged before they were received is
//! ahead of them there, so their totals are complete and consistent.

use actix_web::{App, HttpResponse, HttpServer, http::header::ContentType, web};
use arena_peers::{Event, HEALTHY, RESET, stats as stats_body};
use std::collections::HashSet;
use std::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

enum Message {
    Event(String, f64),
    Stats(oneshot::Sender<String>),
    Reset(oneshot::Sender<()>),
}

type State = web::Data<Sender<Message>>;

/// Counts until every sender is gone. A requester that is gone does not need a response.
fn aggregate(messages: &Receiver<Message>) {
    let (mut requests, mut sum, mut users) = (0, 0.0, HashSet::new());
    for message in messages {
        match message {
            Message::Event(user, value) => {
                requests += 1;
                sum += value;
                users.insert(user);
            }
            Message::Stats(response) => {
                let _ = response.send(stats_body(requests, users.len(), sum));
            }
            Message::Reset(response) => {
                (requests, sum) = (0, 0.0);
                users.clear();
                let _ = response.send(());
            }
        }
    }
}

// The body is taken as bytes: `web::Json` would require a content type, which the challenge
// does not.
async fn event(aggregator: State, body: web::Bytes) -> HttpResponse {
    let Some(event) = Event::parse(&body) else { return HttpResponse::BadRequest().finish() };
    let (user, value) = event.into_owned();
    match aggregator.send(Message::Event(user, value)) {
        Ok(()) => HttpResponse::Ok().finish(),
        Err(_) => HttpResponse::ServiceUnavailable().finish(),
    }
}

async fn stats(aggregator: State) -> HttpResponse {
    match ask(&aggregator, Message::Stats).await {
        Some(body) => json(body),
        None => HttpResponse::ServiceUnavailable().finish(),
    }
}

async fn reset(aggregator: State) -> HttpResponse {
    match ask(&aggregator, Message::Reset).await {
        Some(()) => json(RESET.to_owned()),
        None => HttpResponse::ServiceUnavailable().finish(),
    }
}

async fn health() -> HttpResponse {
    json(HEALTHY.to_owned())
}

/// Sends a question and waits for the response. Returns `None` if the aggregator has ended.
async fn ask<T>(
    aggregator: &Sender<Message>,
    question: fn(oneshot::Sender<T>) -> Message,
) -> Option<T> {
    let (sender, response) = oneshot::channel();
    aggregator.send(question(sender)).ok()?;
    response.await.ok()
}

fn json(body: String) -> HttpResponse {
    HttpResponse::Ok().content_type(ContentType::json()).body(body)
}

#[actix_web::main]
async fn main() -> std::io::Result<()> {
    let (port, threads) = arena_peers::arguments();
    let (sender, messages) = channel();
    std::thread::spawn(move || aggregate(&messages));
    let aggregator = web::Data::new(sender);
    let app = move || {
        App::new()
            .app_data(aggregator.clone())
            .route("/event", web::post().to(event))
            .route("/stats", web::get().to(stats))
            .route("/health", web::get().to(health))
            .route("/reset", web::post().to(reset))
    };
    HttpServer::new(app).workers(threads).shutdown_timeout(1).bind(("127.0.0.1", port))?.run().await
}
