//! One shard on a simulated network and clock, driven by a seed: pieces of requests arrive split, late,
//! and in any order across connections, sends are short or fail, peers reset, go silent, or shut down
//! their side, and the server drains. A model knows what must have been counted, and every response.
//!
//! A failing seed is printed. `RINGTALLY_SEED=n cargo test --test simulation` replays it, and
//! `RINGTALLY_SEEDS=n` tries that many.

#![allow(clippy::unwrap_used, reason = "a panic is a failure")]

mod common;

use common::{Response, post, split_responses};
use fastrand::Rng;
use ringtally::http::{Limits, Outcome, Timeouts, UNSENT_BYTES_MAX};
use ringtally::metrics::Reporter;
use ringtally::service::{Connection, Policy, Service};
use ringtally::tally::Tally;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

const TIMEOUTS: Timeouts = Timeouts { header_ms: 300, body_ms: 500, idle_ms: 2000 };
const LIMITS: Limits =
    Limits { body_bytes_max: 400, batch_bytes_max: BATCH_BYTES_MAX, timeouts: TIMEOUTS };
const BATCH_BYTES_MAX: usize = 100_000;
const USERS_MAX: u64 = 6;

/// A request, and what the model does with it.
#[derive(Clone, Debug)]
enum Item {
    Event(String, f64),
    Batch(Vec<(String, f64)>),
    /// A request that is refused with this status, and leaves the connection open.
    Refused(u16, Vec<u8>),
    Health,
    Totals,
    Reset,
    /// A response, and then the end of the connection.
    Last(u16, Vec<u8>),
}

/// One item as bytes, of which `head` are its head.
#[derive(Clone, Debug)]
struct Sent {
    item: Item,
    bytes: Vec<u8>,
    head: usize,
}

impl Sent {
    fn new(rng: &mut Rng, item: Item) -> Sent {
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes();
        let mut bytes = match &item {
            Item::Event(user, value) => {
                let body = format!(r#"{{"userId":"{user}","value":{value:?}}}"#);
                match rng.bool() {
                    true => post("/event", &body).into_bytes(),
                    false => chunked(rng, "/event", body.as_bytes()),
                }
            }
            Item::Batch(events) => {
                // Lines that are read slowly, so that some batches take more than one turn.
                let line = |(user, value): &(String, f64)| {
                    let end = ["\n", "\r\n", "\n\n"][rng.usize(..3)];
                    format!(r#"{{"value":{value:?},"userId":"{user}"}}"#) + end
                };
                let body: String = events.iter().map(line).collect();
                match rng.bool() {
                    true => post("/events", &body).into_bytes(),
                    false => chunked(rng, "/events", body.as_bytes()),
                }
            }
            Item::Refused(_, bytes) | Item::Last(_, bytes) => bytes.clone(),
            Item::Health => get("/health"),
            Item::Totals => get("/stats"),
            Item::Reset => post("/reset", "").into_bytes(),
        };
        if rng.u8(..) < 20 {
            bytes.splice(0..0, *b"\r\n");
        }
        let head = memchr::memmem::find(&bytes, b"\r\n\r\n").map_or(bytes.len(), |end| end + 4);
        Sent { item, bytes, head }
    }

    fn random(rng: &mut Rng) -> Sent {
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
            82..=84 => Item::Refused(400, post("/event", "nonsense").into_bytes()),
            85 => {
                let new = "{\"userId\":\"new\",\"value\":1}\n";
                Item::Refused(
                    400,
                    post("/events", &(new.repeat(rng.usize(..30)) + "?")).into_bytes(),
                )
            }
            86 => Item::Last(
                413,
                b"POST /events HTTP/1.1\r\nHost: h\r\nContent-Length: 100001\r\n\r\n".to_vec(),
            ),
            87..=89 => Item::Refused(404, post("/none", "{}").into_bytes()),
            90..=91 => Item::Refused(405, post("/stats", "x").into_bytes()),
            92..=93 => Item::Last(200, b"GET /health HTTP/1.0\r\n\r\n".to_vec()),
            94 => Item::Last(400, b"GET /health HTTP/1.1\r\n\r\n".to_vec()),
            95 => Item::Last(413, post("/event", &"x".repeat(401)).into_bytes()),
            96 => Item::Last(400, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n".to_vec()),
            97 => Item::Last(
                200,
                b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".to_vec(),
            ),
            // Responses that fill what may be unsent.
            _ => Item::Refused(404, b"OPTIONS /none HTTP/1.1\r\nHost: h\r\n\r\n".to_vec()),
        };
        Sent::new(rng, item)
    }
}

/// An event of one more user than can be held.
fn event(rng: &mut Rng) -> (String, f64) {
    let user = rng.u64(..USERS_MAX + 1);
    (format!("user_{user}"), f64::from(rng.i32(-1000..1000)) / 8.0)
}

fn chunked(rng: &mut Rng, path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut bytes = head.into_bytes();
    for chunk in body.chunks(rng.usize(1..body.len().max(1) + 1)) {
        bytes.extend_from_slice(format!("{:X};x\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\nT: 1\r\n\r\n");
    bytes
}

/// What must have been counted.
#[derive(Debug, Default)]
struct Model {
    total: u64,
    sum: f64,
    users: HashSet<String>,
}

impl Model {
    /// Applies an item. Returns the status that its response must have, and the body if it is known.
    fn apply(&mut self, item: &Item) -> (u16, Option<String>) {
        match item {
            Item::Event(user, value) => {
                if !self.users.contains(user) && self.users.len() as u64 == USERS_MAX {
                    return (507, None);
                }
                self.users.insert(user.clone());
                self.total += 1;
                // Eighths: exact in any order.
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
            Item::Refused(status, _) | Item::Last(status, _) => (*status, None),
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
                *self = Model::default();
                (200, Some(r#"{"status":"reset"}"#.into()))
            }
        }
    }
}

/// What the peer's bytes are in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Middle {
    Nothing,
    Head,
    Body,
}

/// One connection: a client, the network in between, and the server's side.
struct Peer {
    script: VecDeque<Sent>,
    /// What the client has yet to send, and what is on its way.
    unsent: VecDeque<u8>,
    network: VecDeque<u8>,
    /// Received by the server, and not part of a request that got its response.
    pending: Vec<u8>,
    middle: Middle,
    since_ms: u64,
    connection: Connection,
    /// Responses that are written, on their way, and taken by the client.
    out: Vec<u8>,
    sending: VecDeque<u8>,
    taken: Vec<u8>,
    /// What the responses must be.
    expected: Vec<(u16, Option<String>)>,
    is_held: bool,
    is_closing: bool,
    is_gone: bool,
    /// Sends nothing.
    is_silent: bool,
    /// Takes no responses.
    is_deaf: bool,
}

impl Peer {
    fn new(rng: &mut Rng, now_ms: u64) -> Peer {
        // Some ask for so much that responses must wait to be taken.
        let is_long = rng.u8(..) < 30;
        let count = if is_long { rng.usize(100..800) } else { rng.usize(1..12) };
        let script: VecDeque<Sent> = std::iter::repeat_with(|| Sent::random(rng))
            .filter(|sent| !is_long || !matches!(sent.item, Item::Last(..)))
            .take(count)
            .collect();
        Peer {
            unsent: script.iter().flat_map(|sent| sent.bytes.iter().copied()).collect(),
            script,
            network: VecDeque::new(),
            pending: Vec::new(),
            middle: Middle::Nothing,
            since_ms: now_ms,
            connection: Connection::new(LIMITS, true, now_ms),
            out: Vec::new(),
            sending: VecDeque::new(),
            taken: Vec::new(),
            expected: Vec::new(),
            is_held: false,
            is_closing: false,
            is_gone: false,
            is_silent: rng.u8(..) < 25,
            is_deaf: rng.u8(..) < 25,
        }
    }

    /// Feeds bytes, and lets the model follow.
    fn receive(&mut self, shard: &mut Shard, bytes: &[u8], is_draining: bool) {
        if self.is_closing || self.is_gone {
            return;
        }
        if is_draining {
            self.connection.drain();
        }
        let before = self.out.len();
        self.connection.renew();
        let outcome = match bytes {
            [] => self.connection.resume(shard.now_ms, &mut shard.service, &mut self.out),
            _ => self.connection.receive(bytes, shard.now_ms, &mut shard.service, &mut self.out),
        };
        assert!(self.out.len() < UNSENT_BYTES_MAX + 1000, "at most one response over the mark");
        self.pending.extend_from_slice(bytes);
        let responses = split_responses(&self.out[before..]);
        self.follow(shard, &responses);
        self.is_held = matches!(outcome, Outcome::Resume | Outcome::Work);
        let is_begun =
            self.connection.request_under_way().is_some() || self.connection.is_batch_under_way();
        if self.is_held && is_begun && (self.middle != Middle::Body || !responses.is_empty()) {
            // Its head was the last that the budget allowed.
            (self.middle, self.since_ms) = (Middle::Body, shard.now_ms);
        } else if self.is_held && !responses.is_empty() {
            // What was held back is examined, and begins, when the connection is resumed.
            (self.middle, self.since_ms) = (Middle::Nothing, shard.now_ms);
        }
        match outcome {
            Outcome::Receive => assert!(!self.has_complete() && !self.is_closing),
            Outcome::Resume => assert!(self.out.len() >= UNSENT_BYTES_MAX),
            Outcome::Wait => unreachable!("nobody shares the totals"),
            Outcome::Work => {
                shard.slices += 1;
                let is_spent = self.connection.budget().is_spent();
                assert!(self.has_complete() || is_spent, "there is work on what has arrived");
            }
            Outcome::Close | Outcome::CloseAtOnce => {
                let asked =
                    responses.last().is_some_and(|last| last.field("connection") == Some("close"));
                assert!(asked, "a close is announced");
                self.is_closing = true;
            }
        }
        if outcome == Outcome::Receive {
            self.follow_time(shard.now_ms, !responses.is_empty());
            let due_ms = self.since_ms
                + match self.middle {
                    Middle::Nothing => TIMEOUTS.idle_ms,
                    Middle::Head => TIMEOUTS.header_ms,
                    Middle::Body => TIMEOUTS.body_ms,
                };
            assert_eq!(self.connection.deadline_ms(), due_ms, "{:?}", self.middle);
        }
    }

    /// Whether a request is there that nothing holds back.
    fn has_complete(&self) -> bool {
        self.script.front().is_some_and(|sent| self.pending.len() >= sent.bytes.len())
    }

    /// Applies to the model what got its response.
    fn follow(&mut self, shard: &mut Shard, responses: &[Response]) {
        for response in responses {
            let sent = self.script.pop_front().expect("no response without a request");
            let (status, body) = shard.model.apply(&sent.item);
            assert_eq!(response.status, status, "{sent:?}: {response:?}");
            let is_known = body.as_ref().is_none_or(|body| *body == response.body);
            assert!(is_known, "{body:?} {response:?}");
            match sent.item {
                // Its response may come before its end has arrived.
                Item::Last(..) => self.is_closing = true,
                _ => assert!(
                    self.pending.len() >= sent.bytes.len(),
                    "a response came early: {sent:?}"
                ),
            }
            self.pending.drain(..sent.bytes.len().min(self.pending.len()));
            self.expected.push((status, body));
        }
    }

    /// Notes when the incomplete request began.
    fn follow_time(&mut self, now_ms: u64, has_response: bool) {
        let empty_lines = self.pending.iter().take_while(|byte| b"\r\n".contains(byte)).count();
        let head = self.script.front().map_or(0, |sent| sent.head);
        let middle = match self.pending.len() {
            len if len <= empty_lines => Middle::Nothing,
            len if len < head => Middle::Head,
            _ => Middle::Body,
        };
        if middle != self.middle || has_response {
            // White space between requests does not extend the wait for one.
            if middle != Middle::Nothing || has_response {
                self.since_ms = now_ms;
            }
            self.middle = middle;
        }
    }

    /// Ends a peer that was too slow, as the engines do.
    fn expire(&mut self, shard: &mut Shard) {
        let is_waiting = !self.is_closing && !self.is_held && self.out.is_empty();
        if self.is_gone || !is_waiting || shard.now_ms < self.connection.deadline_ms() {
            return;
        }
        self.connection.expire(&mut shard.service, &mut self.out);
        let responses = split_responses(&self.out);
        match self.middle {
            Middle::Nothing => assert!(responses.is_empty()),
            _ => {
                assert_eq!(responses[0].status, 408);
                assert_eq!(responses[0].field("connection"), Some("close"));
                self.expected.push((408, None));
            }
        }
        self.is_closing = true;
    }
}

/// What all connections of the shard share.
struct Shard {
    tally: Arc<Tally>,
    service: Service,
    model: Model,
    now_ms: u64,
    /// Turns after which a batch was not finished.
    slices: u64,
}

impl Shard {
    /// Makes what was counted visible, and compares it with the model.
    fn commit(&mut self) {
        self.service.commit();
        let totals = self.tally.totals();
        assert_eq!(totals.total_requests, self.model.total);
        assert_eq!(totals.unique_users, self.model.users.len() as u64);
        assert_eq!(totals.sum, self.model.sum);
    }
}

/// Returns how many turns ended in the middle of a batch.
fn simulate(seed: u64) -> u64 {
    let mut rng = Rng::with_seed(seed);
    let (tally, mut writers) = Tally::new(1, USERS_MAX);
    let policy = Policy::new("h");
    let service =
        Service::new(writers.remove(0), Reporter::for_shards(1, "none").remove(0), policy, 0);
    let mut shard = Shard { tally, service, model: Model::default(), now_ms: 0, slices: 0 };
    let mut peers: Vec<Peer> = (0..rng.usize(1..6)).map(|_| Peer::new(&mut rng, 0)).collect();
    let drains_at = if rng.u8(..) < 40 { rng.usize(1..200) } else { usize::MAX };
    for step in 0..300 {
        let is_draining = step >= drains_at;
        // A turn of the shard: what has arrived on some connections, then one commit, then sends.
        for peer in &mut peers {
            let reach = if rng.u8(..) < 30 { 4096 } else { rng.usize(1..200) };
            if rng.bool() && !peer.is_silent {
                let count = reach.min(peer.unsent.len());
                peer.network.extend(peer.unsent.drain(..count));
            }
            if rng.u8(..) < 2 {
                // A reset by the peer: whatever is on its way is lost.
                peer.is_gone = true;
            }
            if rng.bool() && !peer.is_held && !peer.network.is_empty() {
                let count = rng.usize(1..reach + 1).min(peer.network.len());
                let piece: Vec<u8> = peer.network.drain(..count).collect();
                peer.receive(&mut shard, &piece, is_draining);
            }
        }
        shard.commit();
        for peer in peers.iter_mut().filter(|peer| !peer.is_gone) {
            if peer.sending.is_empty() {
                peer.sending.extend(peer.out.drain(..));
            }
            // A failed send ends the connection; a short one continues.
            peer.is_gone |= rng.u8(..) < 1;
            let takes = if peer.is_deaf { 0 } else { peer.sending.len() };
            let count = rng.usize(0..takes + 1);
            peer.taken.extend(peer.sending.drain(..count));
            if peer.is_held && peer.out.len() + peer.sending.len() < UNSENT_BYTES_MAX {
                peer.receive(&mut shard, &[], is_draining);
            }
        }
        shard.commit();
        shard.now_ms += if rng.u8(..) < 10 { rng.u64(..1000) } else { rng.u64(..20) };
        peers.iter_mut().for_each(|peer| peer.expire(&mut shard));
    }
    for peer in &mut peers {
        // What is left arrives, so that nothing is missing because it was late.
        while peer.is_held && !peer.is_gone {
            peer.taken.extend(peer.sending.drain(..));
            peer.taken.append(&mut peer.out);
            peer.receive(&mut shard, &[], false);
        }
        peer.taken.extend(peer.sending.drain(..));
        if !peer.is_gone {
            peer.taken.append(&mut peer.out);
            let responses = split_responses(&peer.taken);
            assert_eq!(responses.len(), peer.expected.len(), "every request has one response");
        }
    }
    shard.commit();
    shard.slices
}

#[test]
fn a_shard_counts_what_the_model_counts_whatever_the_network_does() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    if let Some(seed) = number("RINGTALLY_SEED") {
        simulate(seed);
        return;
    }
    let mut slices = 0;
    let seeds = number("RINGTALLY_SEEDS").unwrap_or(5000);
    for seed in 0..seeds {
        match std::panic::catch_unwind(|| simulate(seed)) {
            Ok(more) => slices += more,
            Err(panic) => {
                eprintln!("replay with RINGTALLY_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(slices > 0 || seeds < 1000, "no batch took more than one turn");
}
