//! The scripts of clients: requests of every kind, and the model's knowledge of their responses.

use super::{BATCH_BYTES_MAX, BODY_BYTES_MAX, USERS_MAX};
use crate::world::{Response, post};
use fastrand::Rng;
use ringtally::tally::Totals;
use std::collections::HashSet;
use std::fmt;

/// A request, as the model understands it.
#[derive(Clone, Debug)]
pub enum Item {
    Event(String, f64),
    Batch(Vec<(String, f64)>),
    /// A request that is refused with this status and leaves the connection open.
    Refused(u16, Vec<u8>),
    /// A refused request whose response may come before its body.
    RefusedEarly(u16, Vec<u8>),
    Health,
    Totals,
    Reset,
    /// A response that is followed by the end of the connection.
    Last(u16, Vec<u8>),
}

/// One item as bytes. The first `head` bytes are its head.
#[derive(Clone)]
pub struct Sent {
    pub item: Item,
    pub bytes: Vec<u8>,
    pub head: usize,
    /// True if the client waits before it sends the body.
    pub expects: bool,
    /// Its lowest possible cost, in nanoseconds.
    pub ns: u64,
}

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = &self.bytes[..self.bytes.len().min(120)];
        write!(f, "{} bytes: {:?}", self.bytes.len(), String::from_utf8_lossy(start))
    }
}

impl Sent {
    pub fn new(rng: &mut Rng, item: Item) -> Sent {
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes();
        let (mut expects, mut ns) = (false, 100);
        let mut bytes = match &item {
            Item::Event(user, value) => {
                let mut body = format!(r#"{{"userId":"{user}","value":{value:?}}}"#);
                if rng.u8(..) < 40 {
                    // Members that nobody needs and that take long to read.
                    let members = (BODY_BYTES_MAX - body.len()) / 6;
                    body.insert_str(1, &r#""a":1,"#.repeat(members));
                    ns = 2 * body.len() as u64;
                }
                expects = rng.u8(..) < 20;
                with_body(rng, "/event", &body, expects)
            }
            Item::Batch(events) => {
                // Lines that take long to read, so that some batches take more than one turn.
                let line = |(user, value): &(String, f64)| {
                    let end = ["\n", "\r\n", "\n\n"][rng.usize(..3)];
                    format!(r#"{{"value":{value:?},"userId":"{user}"}}"#) + end
                };
                let body: String = events.iter().map(line).collect();
                expects = rng.u8(..) < 60 && !body.is_empty();
                ns = 250 * events.len() as u64;
                with_body(rng, "/events", &body, expects)
            }
            Item::Refused(_, bytes) | Item::RefusedEarly(_, bytes) | Item::Last(_, bytes) => {
                bytes.clone()
            }
            Item::Health => get("/health"),
            Item::Totals => get("/stats"),
            Item::Reset => post("/reset", "").into_bytes(),
        };
        if rng.u8(..) < 20 {
            bytes.splice(0..0, *b"\r\n");
        }
        let head = memchr::memmem::find(&bytes, b"\r\n\r\n").map_or(bytes.len(), |end| end + 4);
        Sent { item, bytes, head, expects, ns }
    }

    pub fn random(rng: &mut Rng) -> Sent {
        let item = match rng.u8(..100) {
            0..=52 => {
                let (user, value) = event(rng);
                Item::Event(user, value)
            }
            53..=59 => {
                let is_long = rng.u8(..) < 20;
                let events = if is_long { rng.usize(400..1500) } else { rng.usize(..20) };
                Item::Batch((0..events).map(|_| event(rng)).collect())
            }
            60..=69 => Item::Health,
            70..=79 => Item::Totals,
            80..=81 => Item::Reset,
            82..=91 => refused(rng),
            92..=97 => last(rng),
            // Responses that fill the room for unsent bytes.
            _ => Item::Refused(404, b"OPTIONS /none HTTP/1.1\r\nHost: h\r\n\r\n".to_vec()),
        };
        Sent::new(rng, item)
    }
}

fn refused(rng: &mut Rng) -> Item {
    match rng.u8(..10) {
        0..=2 => Item::Refused(400, post("/event", "nonsense").into_bytes()),
        3 => {
            let new = "{\"userId\":\"new\",\"value\":1}\n";
            let body = new.repeat(rng.usize(..30)) + "?";
            Item::Refused(400, post("/events", &body).into_bytes())
        }
        4..=5 => {
            // Another site's page makes a browser send it.
            let body = "x".repeat(rng.usize(1..9000));
            let length = body.len();
            let head = format!(
                "POST /events HTTP/1.1\r\nHost: h\r\nOrigin: http://other\r\nContent-Length: {length}\r\n\r\n"
            );
            Item::RefusedEarly(403, (head + &body).into_bytes())
        }
        6..=7 => Item::Refused(404, post("/none", "{}").into_bytes()),
        _ => Item::Refused(405, post("/stats", "x").into_bytes()),
    }
}

fn last(rng: &mut Rng) -> Item {
    match rng.u8(..7) {
        0 => {
            let over = BATCH_BYTES_MAX + 1;
            let head =
                format!("POST /events HTTP/1.1\r\nHost: h\r\nContent-Length: {over}\r\n\r\n");
            Item::Last(413, head.into_bytes())
        }
        1 => Item::Last(200, b"GET /health HTTP/1.0\r\n\r\n".to_vec()),
        2 => Item::Last(400, b"GET /health HTTP/1.1\r\n\r\n".to_vec()),
        3 => Item::Last(413, post("/event", &"x".repeat(BODY_BYTES_MAX + 1)).into_bytes()),
        4 => Item::Last(400, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n".to_vec()),
        _ => Item::Last(
            200,
            b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".to_vec(),
        ),
    }
}

/// Returns an event. There is one more user than can be held.
fn event(rng: &mut Rng) -> (String, f64) {
    let user = rng.u64(..USERS_MAX + 1);
    (format!("user_{user}"), f64::from(rng.i32(-1000..1000)) / 8.0)
}

/// Returns a request with a body in one piece or in chunks.
fn with_body(rng: &mut Rng, path: &str, body: &str, expects: bool) -> Vec<u8> {
    let expect = if expects { "Expect: 100-continue\r\n" } else { "" };
    let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\n{expect}");
    if rng.bool() {
        return format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes();
    }
    let mut bytes = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
    // Keeps the framing within its limit.
    let least = body.len() / 8192 + 1;
    for chunk in body.as_bytes().chunks(rng.usize(least..body.len().max(least) + 1)) {
        bytes.extend_from_slice(format!("{:X};x\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\nT: 1\r\n\r\n");
    bytes
}

/// The expected counts.
#[derive(Debug)]
pub struct Model {
    /// The possible counts. There are several while it is unknown whether batches were counted before or after the last reset.
    possible: Vec<Counts>,
    pub resets: u64,
}

impl Default for Model {
    fn default() -> Model {
        Model { possible: vec![Counts::default()], resets: 0 }
    }
}

impl Model {
    /// Applies an item that got this response, which must be right. `is_old` is true if the work on the item may have begun
    /// before the last reset.
    pub fn follow(&mut self, sent: &Sent, response: &Response, is_old: bool) {
        self.resets += u64::from(matches!(sent.item, Item::Reset));
        let after = |counts: &Counts| {
            let mut counts = counts.clone();
            let (status, body) = counts.apply(&sent.item);
            let is_right =
                status == response.status && body.is_none_or(|body| body == response.body);
            is_right.then_some(counts)
        };
        if is_old && matches!(sent.item, Item::Batch(_)) && response.status == 200 {
            let mut counted: Vec<_> = self.possible.iter().filter_map(after).collect();
            return self.possible.append(&mut counted);
        }
        let right: Vec<_> = self.possible.iter().filter_map(after).collect();
        assert!(!right.is_empty(), "{response:?} to {sent:?} after {:?}", self.possible);
        self.possible = right;
    }

    /// Checks the counts of the server.
    pub fn check(&mut self, totals: &Totals) {
        let all = std::mem::take(&mut self.possible).into_iter();
        let (right, wrong): (Vec<_>, Vec<_>) = all.partition(|counts| counts.is(totals));
        assert!(!right.is_empty(), "{totals:?} of {wrong:?}");
        for counts in right {
            if !self.possible.contains(&counts) {
                self.possible.push(counts);
            }
        }
    }
}

/// The counts since the last reset.
#[derive(Clone, Debug, Default, PartialEq)]
struct Counts {
    total: u64,
    sum: f64,
    users: HashSet<String>,
}

impl Counts {
    fn is(&self, totals: &Totals) -> bool {
        (self.total, self.users.len() as u64, self.sum)
            == (totals.total_requests, totals.unique_users, totals.sum)
    }

    /// Applies an item. Returns the status that its response must have, and the body if it is known.
    fn apply(&mut self, item: &Item) -> (u16, Option<String>) {
        match item {
            Item::Event(user, value) => {
                if !self.users.contains(user) && self.users.len() as u64 == USERS_MAX {
                    return (507, None);
                }
                self.users.insert(user.clone());
                self.total += 1;
                // Eighths are exact in any order.
                self.sum += value;
                (200, Some(String::new()))
            }
            Item::Batch(events) => {
                let users = self.users.iter().chain(events.iter().map(|(user, _)| user));
                let users: HashSet<String> = users.cloned().collect();
                if users.len() as u64 > USERS_MAX {
                    return (507, None);
                }
                self.users = users;
                self.total += events.len() as u64;
                self.sum += events.iter().map(|(_, value)| value).sum::<f64>();
                (200, Some(format!("{{\"accepted\":{}}}", events.len())))
            }
            Item::Refused(status, _) | Item::RefusedEarly(status, _) | Item::Last(status, _) => {
                (*status, None)
            }
            Item::Health => (200, Some(r#"{"status":"healthy"}"#.into())),
            Item::Totals => {
                let (total, users, sum) = (self.total, self.users.len(), self.sum);
                let avg = if total == 0 { 0.0 } else { sum / total as f64 };
                let body = format!(
                    r#"{{"totalRequests":{total},"uniqueUsers":{users},"sum":{:?},"avg":{:?}}}"#,
                    sum + 0.0,
                    avg + 0.0
                );
                (200, Some(body))
            }
            Item::Reset => {
                *self = Counts::default();
                (200, Some(r#"{"status":"reset"}"#.into()))
            }
        }
    }
}
