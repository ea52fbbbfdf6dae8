//! HTTP/1.1 as a hand-written loop does it: httparse for the head, `Content-Length` for the body, and any number of
//! pipelined requests per receive. Transfer codings are refused.

use crate::tally::{Event, HEALTHY, RESET, Tally};
use httparse::{EMPTY_HEADER, Header, Status};
use std::io::Write;

pub const RECEIVE_BYTES: usize = 16 * 1024;

const HEADERS_MAX: usize = 32;
const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// One connection: the request that has not arrived completely, and the responses that have not been sent.
#[derive(Default)]
pub struct Exchange {
    unfinished: Vec<u8>,
    pub responses: Vec<u8>,
}

/// A request that has arrived completely.
struct Request<'bytes> {
    method: &'bytes str,
    path: &'bytes str,
    body: &'bytes [u8],
    /// The number of bytes that it is made of.
    length: usize,
    keeps_alive: bool,
}

enum Parsed<'bytes> {
    Whole(Request<'bytes>),
    NeedsMore,
    Refused,
}

impl Exchange {
    /// Writes the response to each request that is complete. Returns whether the connection stays open after them.
    pub fn receive(&mut self, tally: &Tally, bytes: &[u8]) -> bool {
        // Most requests arrive complete and are parsed in place.
        if self.unfinished.is_empty() {
            let Some(done) = self.respond(tally, bytes) else { return false };
            self.unfinished.extend_from_slice(&bytes[done..]);
        } else {
            let mut all = std::mem::take(&mut self.unfinished);
            all.extend_from_slice(bytes);
            let Some(done) = self.respond(tally, &all) else { return false };
            all.drain(..done);
            self.unfinished = all;
        }
        true
    }

    /// Returns the number of bytes of the requests, or `None` after the last request of the connection.
    fn respond(&mut self, tally: &Tally, bytes: &[u8]) -> Option<usize> {
        let mut done = 0;
        loop {
            match parse(&bytes[done..]) {
                Parsed::Whole(request) => {
                    done += request.length;
                    self.answer(tally, &request);
                    if !request.keeps_alive {
                        return None;
                    }
                }
                Parsed::NeedsMore => return Some(done),
                Parsed::Refused => {
                    self.write("400 Bad Request\r\nConnection: close", "");
                    return None;
                }
            }
        }
    }

    fn answer(&mut self, tally: &Tally, request: &Request) {
        match (request.method, request.path) {
            ("POST", "/event") => match Event::parse(request.body) {
                Some(event) => {
                    tally.add(&event);
                    self.write("200 OK", "");
                }
                None => self.write("400 Bad Request", ""),
            },
            ("GET", "/stats") => self.write("200 OK", &tally.stats()),
            ("GET", "/health") => self.write("200 OK", HEALTHY),
            ("POST", "/reset") => {
                tally.reset();
                self.write("200 OK", RESET);
            }
            _ => self.write("404 Not Found", ""),
        }
    }

    fn write(&mut self, status: &str, body: &str) {
        let json = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let length = body.len();
        write!(self.responses, "HTTP/1.1 {status}\r\n{json}Content-Length: {length}\r\n\r\n{body}")
            .expect("memory takes every write");
    }
}

fn parse(bytes: &[u8]) -> Parsed<'_> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let head_bytes = match head.parse(bytes) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if bytes.len() < REQUEST_BYTES_MAX => return Parsed::NeedsMore,
        _ => return Parsed::Refused,
    };
    let (Some(method), Some(path)) = (head.method, head.path) else { return Parsed::Refused };
    let Some((body_bytes, keeps_alive)) = framing(head.headers, head.version == Some(1)) else {
        return Parsed::Refused;
    };
    let length = head_bytes + body_bytes;
    match bytes.get(head_bytes..length) {
        Some(body) => Parsed::Whole(Request { method, path, body, length, keeps_alive }),
        None => Parsed::NeedsMore,
    }
}

/// Returns the length of the body, and whether the connection stays open.
fn framing(headers: &[Header], mut keeps_alive: bool) -> Option<(usize, bool)> {
    let mut length = None;
    for header in headers {
        if header.name.eq_ignore_ascii_case("content-length") {
            let digits = header.value.iter().all(u8::is_ascii_digit);
            let number = std::str::from_utf8(header.value).ok()?.parse().ok()?;
            if !digits || number > REQUEST_BYTES_MAX || length.replace(number).is_some() {
                return None;
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return None;
        } else if header.name.eq_ignore_ascii_case("connection") {
            keeps_alive = !header.value.eq_ignore_ascii_case(b"close")
                && (keeps_alive || header.value.eq_ignore_ascii_case(b"keep-alive"));
        }
    }
    Some((length.unwrap_or(0), keeps_alive))
}
