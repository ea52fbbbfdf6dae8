//! No client stalls others, whatever it sends: hostile connections of one shard, on a clock that only work advances, by its
//! measured cost.

use super::shard_with;
use crate::world::simulated::{BUFFER_BYTES, Receiving, Shard, Slot};
use ringtally::connection::{Connection, Moment, Next};
use ringtally::http::{Budget, Limits, Timeouts};
use ringtally::metrics::{Format, Reporter};
use ringtally::service::Service;
use std::time::Instant;

/// The most nanoseconds that a shard may spend on one connection before it serves the others, and on one request.
const TURN_NS: u64 = 100_000;
const REQUEST_NS: u64 = 300_000;
/// The number of buffers that a multishot receive may fill before anybody can cancel it.
const BUFFERS_PER_TURN: usize = 32;
/// The number of lines in a batch.
const LINES: usize = 20_000;

/// The request that a hostile client keeps sending.
struct Attack {
    name: &'static str,
    /// Makes the n-th request.
    request: fn(usize) -> Vec<u8>,
    /// The cost of a request in nanoseconds, or of a line if it is a batch: measured by [`what_attacks_cost`] in a release
    /// build, and rounded up.
    ns: u64,
    is_batch: bool,
}

const fn request(name: &'static str, ns: u64, request: fn(usize) -> Vec<u8>) -> Attack {
    Attack { name, request, ns, is_batch: false }
}

const fn lines(name: &'static str, ns: u64, request: fn(usize) -> Vec<u8>) -> Attack {
    Attack { name, request, ns, is_batch: true }
}

/// Most of their cost is the cost of their framing, which is charged when it is received.
const CHUNKED_BATCHES: &str = "batches in chunks of one byte";

const ATTACKS: &[Attack] = &[
    request("usual events", 250, |n| post("/event", &usual(n))),
    request("events of new users", 400, |n| post("/event", &unseen(n))),
    request("events with a number near a tie", 450, |n| post("/event", &near_a_tie(n))),
    request("events with a long number near a tie", 1_500, |n| post("/event", &long_tie(n))),
    request("events in an unusual shape", 300, |n| post("/event", &unusual(n))),
    request("large events in an unusual shape", 2_500, |n| post("/event", &large(n))),
    request("refused events", 400, |_| post("/event", b"nonsense")),
    request("unknown paths", 300, |_| get("GET", "/none", "")),
    request("long heads", 2_000, |n| get("GET", "/health", &fields(n))),
    request("the totals", 250, |_| get("GET", "/stats", "")),
    request("the totals without a body", 250, |_| get("HEAD", "/stats", "")),
    request("the metrics", 44_000, |_| get("GET", "/metrics", "")),
    request("the metrics without a body", 100, |_| get("HEAD", "/metrics", "")),
    request("the description", 1_000, |_| get("GET", "/openapi.json", "")),
    request("the page", 1_000, |_| get("GET", "/", "")),
    request("chunks of one byte", 1_000, |n| chunked("/event", &usual(n))),
    lines("batches of usual lines", 60, |n| batch(n, usual)),
    lines("batches of new users", 200, |n| batch(n, unseen)),
    lines("batches of numbers near a tie", 500, |n| batch(n, near_a_tie)),
    lines("batches of lines in an unusual shape", 350, |n| batch(n, unusual)),
    lines(CHUNKED_BATCHES, 1_000, |n| {
        chunked("/events", &[usual(n), b"\n".to_vec()].concat().repeat(LINES))
    }),
    lines("batches of empty lines", 15, |_| post("/events", &vec![b'\n'; LINES])),
];

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

fn get(method: &str, path: &str, fields: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nHost: h\r\n{fields}\r\n").into_bytes()
}

/// Returns fields that are unique to the n-th head.
fn fields(n: usize) -> String {
    (0..90).map(|field| format!("X-{n}-{field}: {}\r\n", "x".repeat(30))).collect()
}

fn chunked(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunks = body.iter().flat_map(|byte| [b'1', b'\r', b'\n', *byte, b'\r', b'\n']);
    head.bytes().chain(chunks).chain(*b"0\r\n\r\n").collect()
}

fn batch(n: usize, line: fn(usize) -> Vec<u8>) -> Vec<u8> {
    let lines = (0..LINES).flat_map(|at| [line(n * LINES + at), b"\n".to_vec()].concat());
    post("/events", &lines.collect::<Vec<u8>>())
}

fn event(user: &str, value: &str) -> Vec<u8> {
    format!(r#"{{"userId":"{user}","value":{value}}}"#).into_bytes()
}

fn usual(n: usize) -> Vec<u8> {
    event(&format!("user_{}", n % 1000), "499.5")
}

fn unseen(n: usize) -> Vec<u8> {
    event(&format!("a_longer_name_of_user_{n}"), "499.5")
}

fn near_a_tie(_: usize) -> Vec<u8> {
    event("u", "1.00000000000000012685e300")
}

fn long_tie(_: usize) -> Vec<u8> {
    event("u", &format!("9007199254740993.{}1e-300", "0".repeat(700)))
}

fn unusual(_: usize) -> Vec<u8> {
    br#"{"a":1,"b":[2,{}],"userId":"\u0075","value":1}"#.to_vec()
}

fn large(_: usize) -> Vec<u8> {
    let members: String = (0..180).map(|_| r#""a":1,"#).collect();
    format!(r#"{{{members}"userId":"u","value":1}}"#).into_bytes()
}

/// The client of an attack.
struct Hostile {
    /// Its next requests, and the number of their bytes that were sent.
    input: Vec<u8>,
    sent: usize,
    requests: usize,
}

impl Hostile {
    /// Returns the next bytes of its requests.
    fn next(&mut self, attack: &Attack, count: usize) -> &[u8] {
        while self.input.len() < self.sent + count {
            self.input.drain(..std::mem::take(&mut self.sent));
            self.input.extend((attack.request)(self.requests));
            self.requests += 1;
        }
        self.sent += count;
        &self.input[self.sent - count..self.sent]
    }
}

fn service() -> Service {
    super::service(100_000_000).1
}

fn limits() -> Limits {
    let timeouts = Timeouts { header_ms: 1, body_ms: 1, idle_ms: 1 };
    Limits { body_bytes_max: 16 * 1024, batch_bytes_max: 8 << 20, timeouts }
}

/// Takes all responses of a connection, as if they were sent immediately.
fn take_all(connection: &mut Connection) {
    let count = connection.responses().bytes().len();
    connection.take_responses(count, 0);
    connection.note_sent(count);
}

/// A shard, and its hostile clients.
struct World {
    attack: &'static Attack,
    shard: Shard,
    hostile: Vec<Hostile>,
}

impl World {
    fn new(attack: &'static Attack, connections: usize) -> World {
        let mut shard = shard_with(connections, service(), limits());
        // Each can receive then.
        shard.idle();
        // Each client begins at a different request, so that they do not get in step.
        let hostile = (0..connections)
            .map(|number| Hostile { input: Vec::new(), sent: 0, requests: number << 32 })
            .collect();
        World { attack, shard, hostile }
    }

    /// Runs an iteration of the shard. Every client sends as much as can be received, and takes what it gets. Returns the time
    /// that each client has taken.
    fn turn(&mut self) -> Vec<u64> {
        let World { attack, shard, hostile } = self;
        shard.begin_iteration();
        for (key, client) in hostile.iter_mut().enumerate() {
            // The server may have rejected a batch.
            if !shard.net.slots[key].is_open() {
                continue;
            }
            let slot = &shard.net.slots[key];
            // A client that sends little at first gets a receive that may bring much.
            let (buffers, bytes) = match slot.receiving {
                Receiving::Multishot => (BUFFERS_PER_TURN, BUFFER_BYTES),
                Receiving::Once => (1, 1),
                // The rest of a batch is taken from the socket.
                Receiving::No if slot.connection().is_filling() && slot.link.unread() == 0 => {
                    (1, BUFFERS_PER_TURN * BUFFER_BYTES)
                }
                Receiving::No | Receiving::Canceled => (1, 0),
            };
            for _ in 0..buffers {
                let link = shard.link(key);
                link.send(client.next(attack, bytes));
                link.deliver(usize::MAX);
                shard.complete_in_full(key);
            }
        }
        shard.end_iteration();
        let mut responses = vec![0; hostile.len()];
        for made in shard.net.made.drain(..) {
            responses[made.key] +=
                memchr::memmem::find_iter(&made.bytes, b"HTTP/1.1 ").count() as u64;
        }
        let took = |(slot, responses): (&mut Slot, &u64)| {
            let measured = if attack.is_batch { 0 } else { responses * attack.ns };
            let is_one = !attack.is_batch && *responses == 1;
            let allowed = if is_one { REQUEST_NS } else { TURN_NS };
            let took = measured.max(u64::from(std::mem::take(&mut slot.used)));
            assert!(took <= allowed, "{}: {took} ns for {responses} requests", attack.name);
            took
        };
        std::iter::zip(&mut shard.net.slots, &responses).map(took).collect()
    }
}

#[test]
fn hostile_clients_delay_others_by_a_turn_each_at_most() {
    for attack in ATTACKS {
        // Fewer of the expensive kind: making its requests takes long.
        let crowd = if attack.is_batch { 20 } else { 200 };
        for connections in [1, crowd] {
            let mut world = World::new(attack, connections);
            // One turn in eight has a receive that brings much.
            let turns = if connections == 1 { 40 } else { 8 };
            let mut busy = 0;
            for _ in 0..turns {
                let took = world.turn();
                busy += took.iter().filter(|took| **took > 0).count();
                // Another client's request that arrives at the start of the turn gets its response at the end of the turn.
                let wait: u64 = took.iter().sum();
                let allowed = (connections as u64 * TURN_NS).max(REQUEST_NS);
                assert!(wait <= allowed, "{} x {connections}: {wait} ns", attack.name);
            }
            assert!(busy >= turns, "{} x {connections}: only {busy} were busy", attack.name);
        }
    }
}

/// The charge for a batch is at least the measured cost of its lines, so a slice is as short as intended.
#[test]
fn slices_of_batches_are_short() {
    let is_of_lines = |attack: &&Attack| attack.is_batch && attack.name != CHUNKED_BATCHES;
    for attack in ATTACKS.iter().filter(is_of_lines) {
        let (mut connection, mut service) = (Connection::new(limits(), true, 0), service());
        for piece in (attack.request)(0).chunks(BUFFER_BYTES) {
            connection.receive(piece, &Moment::START, &mut service);
            assert!(connection.responses().is_empty(), "no work is done in a receive");
            let _ = connection.action(&Moment::START, &mut service);
            connection.renew();
        }
        let (mut slices, mut units) = (0, 0);
        while connection.has_work() {
            units += connection.work(&Moment::START, &mut service);
            connection.renew();
            slices += 1;
        }
        let response = connection.responses().bytes();
        assert!(response.starts_with(b"HTTP/1.1 200 "), "{}", attack.name);
        let ns = attack.ns * LINES as u64;
        // The last slice is shorter than the others.
        let longest = ns / (slices - 1).max(1);
        assert!(longest <= TURN_NS, "{}: {slices} slices of {longest} ns", attack.name);
        assert!(u64::from(units) >= ns, "{}: {units} units for {ns} ns", attack.name);
    }
}

/// Even if a kernel does not cancel a receive, the server does not keep everything that arrives.
#[test]
fn a_connection_that_has_to_wait_keeps_little() {
    let (mut connection, mut service) = (Connection::new(limits(), true, 0), service());
    let input: Vec<u8> = (0..1000).flat_map(ATTACKS[0].request).collect();
    let mut pieces = input.chunks(BUFFER_BYTES).cycle();
    while connection.next() == Next::Receive {
        connection.receive(pieces.next().unwrap(), &Moment::START, &mut service);
    }
    let mut kept = 0;
    while connection.next() == Next::Pause {
        connection.receive(pieces.next().unwrap(), &Moment::START, &mut service);
        kept += BUFFER_BYTES;
        assert!(kept < 1 << 20, "{kept} bytes");
    }
    assert_eq!(connection.next(), Next::Close);
    assert!(kept > BUFFERS_PER_TURN * BUFFER_BYTES, "what one receive may bring is kept: {kept}");
}

/// Prints the cost of each attack per request, or per line, and the charge for it: `cargo test --release --test it
/// what_attacks_cost -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn what_attacks_cost() {
    for attack in ATTACKS {
        let (mut ns, mut charged) = (f64::MAX, 0.0);
        for _ in 0..5 {
            let (mut connection, mut service) = (Connection::new(limits(), true, 0), service());
            let (requests, count) = match attack.is_batch {
                true => ((0..2).map(attack.request).collect::<Vec<_>>(), 2 * LINES),
                false => ((0..2000).map(attack.request).collect(), 2000),
            };
            let mut units = 0;
            let started = Instant::now();
            for piece in requests.iter().flat_map(|request| request.chunks(BUFFER_BYTES)) {
                connection.receive(piece, &Moment::START, &mut service);
                units += connection.renew();
                while connection.has_work() {
                    units += connection.work(&Moment::START, &mut service);
                    connection.renew();
                }
                service.publish();
                take_all(&mut connection);
                let _ = connection.action(&Moment::START, &mut service);
                units += connection.renew();
            }
            ns = ns.min(started.elapsed().as_nanos() as f64 / count as f64);
            charged = f64::from(units) / count as f64;
        }
        let bytes = (attack.request)(0).len();
        println!("{:40} {ns:9.0} ns {charged:9.0} units, {bytes} bytes", attack.name);
    }
    for shards in [1, 64] {
        let reporter = Reporter::for_shards(shards, "test").remove(0);
        for format in [Format::Prometheus, Format::OpenMetrics] {
            let text = || {
                let started = Instant::now();
                let bytes = reporter.text(None, 0, format).len();
                (started.elapsed(), bytes)
            };
            let least = (0..20).map(|_| text()).min().unwrap();
            println!("the metrics of {shards} shards, {format:?}: {least:?}");
        }
    }
    println!("a budget has {} units", Budget::UNITS);
}
