//! may_minihttp as its users write it: one stackful coroutine per connection, no async.

use arena_peers::{Event, HEALTHY, RESET, Tally};
use may_minihttp::{HttpService, HttpServiceFactory, Request, Response};
use std::io::{self, Read};
use std::sync::Arc;

/// The stack size in machine words. serde_json's recursion limit bounds the stack that an event
/// can need.
const STACK_WORDS: usize = 0x4000;

struct Connection {
    tally: Arc<Tally>,
    body: Vec<u8>,
}

impl HttpService for Connection {
    fn call(&mut self, request: Request, response: &mut Response) -> io::Result<()> {
        match (request.method(), request.path()) {
            ("POST", "/event") => {
                self.body.clear();
                request.body().read_to_end(&mut self.body)?;
                match Event::parse(&self.body) {
                    Some(event) => self.tally.add(&event),
                    None => {
                        response.status_code(400, "Bad Request");
                    }
                }
            }
            ("GET", "/stats") => {
                response.header("Content-Type: application/json");
                response.body_vec(self.tally.stats().into_bytes());
            }
            ("GET", "/health") => {
                response.header("Content-Type: application/json");
                response.body(HEALTHY);
            }
            ("POST", "/reset") => {
                self.tally.reset();
                response.header("Content-Type: application/json");
                response.body(RESET);
            }
            _ => {
                // Dropping the reader reads past a body, so that the next request starts at its
                // own first byte.
                drop(request.body());
                response.status_code(404, "Not Found");
            }
        }
        Ok(())
    }
}

struct Connections(Arc<Tally>);

impl HttpServiceFactory for Connections {
    type Service = Connection;

    fn new_service(&self, _id: usize) -> Connection {
        Connection { tally: self.0.clone(), body: Vec::new() }
    }
}

fn main() -> io::Result<()> {
    let (port, threads) = arena_peers::arguments();
    may::config().set_workers(threads).set_stack_size(STACK_WORDS);
    let server = Connections(Arc::new(Tally::default())).start(("127.0.0.1", port))?;
    server.join().map_err(|_| io::Error::other("the listener panicked"))
}
