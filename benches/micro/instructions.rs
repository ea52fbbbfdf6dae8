//! The instructions of a request without the kernel: parse, decode, count, publish, merge, encode. valgrind counts them, so
//! they are the same on a busy machine as on an idle one. `cargo bench --bench instructions` needs valgrind and
//! gungraun-runner; `ci/perf` compares the counts of two commits. The result of each benchmark is checked after it was counted.

#![allow(missing_docs, clippy::unwrap_used, reason = "gungraun's macros; a panic is a failure")]

use gungraun::prelude::*;
use gungraun::{Callgrind, EventKind};
use ringtally::connection::{Connection, Moment, Next};
use ringtally::event;
use ringtally::http::{self, Context, Limits, Step, Timeouts};
use ringtally::metrics::Reporter;
use ringtally::service::{Policy, Service, stats_json};
use ringtally::tally::{Tally, Totals, Writer};
use std::hint::black_box;
use std::sync::Arc;

/// Repetitions of an operation that takes few instructions. The hasher has a new seed in every process, so the search for one
/// user may be longer or shorter, but the mean over many is stable.
const REPEATED: usize = 1_000;
const USERS: usize = 10_000;
const SHARDS: usize = 8;
const BODY: &str = r#"{"userId":"user_12345","value":499.5}"#;
const ESCAPED: &str = r#"{"id":[1,{"a":"b"}],"userId":"user_\u0031","value":4.995e2}"#;

fn request() -> Vec<u8> {
    format!(
        "POST /event HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    )
    .into_bytes()
}

fn limits() -> Limits {
    let timeouts = Timeouts { header_ms: 10_000, body_ms: 10_000, idle_ms: 75_000 };
    Limits { body_bytes_max: 16 * 1024, batch_bytes_max: 8 << 20, timeouts }
}

fn connection() -> Connection {
    Connection::new(limits(), true, 0)
}

/// HTTP alone, and a request that it reads.
struct Parser {
    http: http::Connection,
    context: Context,
    input: Vec<u8>,
    parsed: usize,
}

impl Parser {
    fn parse(&mut self) {
        let (mut input, mut decoded) = (black_box(&self.input[..]), Vec::new());
        let step = self.http.step(&mut input, &mut decoded, &mut self.context, 0);
        if let Step::Request(request) = step {
            black_box(request.body());
            self.parsed += 1;
        }
    }
}

fn parser() -> Parser {
    Parser {
        http: http::Connection::new(limits(), true, 0),
        context: Context::new("127.0.0.1", b"/events", 0),
        input: request(),
        parsed: 0,
    }
}

/// Returns a parser that has the head of the request in its cache, as on every connection except the first.
fn experienced_parser() -> Parser {
    let mut parser = parser();
    parser.parse();
    parser.parsed = 0;
    parser
}

fn parsed_one(parser: Parser) {
    assert_eq!(parser.parsed, 1);
}

#[library_benchmark(teardown = parsed_one)]
#[bench::new_head(parser())]
#[bench::known_head(experienced_parser())]
fn parse(mut parser: Parser) -> Parser {
    parser.parse();
    parser
}

fn is_published_value(value: f64) {
    assert_eq!(value, 499.5);
}

#[library_benchmark(teardown = is_published_value)]
#[bench::as_published(BODY)]
#[bench::with_escapes(ESCAPED)]
fn decode(body: &str) -> f64 {
    event::decode(black_box(body.as_bytes())).unwrap().value
}

/// Returns a writer that has seen its users and has published everything.
fn writer() -> (Arc<Tally>, Writer, Vec<String>) {
    let (tally, mut writers) = Tally::new(1, 10_000_000);
    let mut writer = writers.remove(0);
    let users: Vec<String> = (0..USERS).map(|user| format!("user_{user}")).collect();
    for user in &users {
        writer.count(user.as_bytes(), 0.5).unwrap();
    }
    writer.publish();
    (tally, writer, users)
}

/// Returns the same with one event to publish.
fn writer_with_news() -> (Arc<Tally>, Writer) {
    let (tally, mut writer, _) = writer();
    writer.count(b"user_1", 0.5).unwrap();
    (tally, writer)
}

fn counted_all((tally, mut writer, _): (Arc<Tally>, Writer, Vec<String>)) {
    writer.publish();
    let totals = tally.totals();
    assert_eq!(totals.total_requests, (USERS + REPEATED) as u64);
    assert_eq!((totals.unique_users, totals.avg()), (USERS as u64, 0.5));
}

#[library_benchmark(teardown = counted_all)]
#[bench::known_users(writer())]
fn count(
    (tally, mut writer, users): (Arc<Tally>, Writer, Vec<String>),
) -> (Arc<Tally>, Writer, Vec<String>) {
    for user in users.iter().take(REPEATED) {
        writer.count(black_box(user.as_bytes()), 0.5).unwrap();
    }
    (tally, writer, users)
}

fn published_one((tally, _): (Arc<Tally>, Writer)) {
    assert_eq!(tally.totals().total_requests, USERS as u64 + 1);
}

#[library_benchmark(teardown = published_one)]
#[bench::one_event(writer_with_news())]
fn publish((tally, mut writer): (Arc<Tally>, Writer)) -> (Arc<Tally>, Writer) {
    black_box(&mut writer).publish();
    (tally, writer)
}

/// Returns shards that each have every user, as after a long run.
fn shards() -> Arc<Tally> {
    let (tally, mut writers) = Tally::new(SHARDS, 10_000_000);
    for writer in &mut writers {
        for user in 0..USERS {
            writer.count(format!("user_{user}").as_bytes(), 0.5).unwrap();
        }
        writer.publish();
    }
    tally
}

fn merged_all((_, totals): (Arc<Tally>, Totals)) {
    assert_eq!(totals.total_requests, (SHARDS * USERS) as u64);
    assert_eq!((totals.unique_users, totals.avg()), (USERS as u64, 0.5));
}

#[library_benchmark(teardown = merged_all)]
#[bench::eight_shards(shards())]
fn merge(tally: Arc<Tally>) -> (Arc<Tally>, Totals) {
    let totals = black_box(&tally).totals();
    (tally, totals)
}

fn totals() -> Totals {
    Totals { total_requests: 1_000_000, unique_users: 75_000, sum: 499_500_000.0 }
}

fn is_the_published_response(response: String) {
    assert!(response.contains(r#""sum":499500000.0,"avg":499.5"#));
}

#[library_benchmark(teardown = is_the_published_response)]
#[bench::stats(totals())]
fn encode(totals: Totals) -> String {
    stats_json(black_box(&totals))
}

/// A connection, the service behind it, and the requests that it receives.
struct Receiver {
    connection: Connection,
    service: Service,
    input: Vec<u8>,
}

impl Receiver {
    fn receive(&mut self) {
        self.connection.receive(black_box(&self.input), &Moment::START, &mut self.service);
        self.service.publish();
    }

    /// Works until nothing is left. Returns the units that were charged.
    fn work(&mut self) -> u32 {
        let Receiver { connection, service, .. } = self;
        let mut units = 0;
        loop {
            connection.work(&Moment::START, service);
            service.publish();
            let action = connection.action(&Moment::START, service);
            units += connection.renew();
            if action.send > 0 {
                connection.take_responses(action.send, 0);
                connection.note_sent(action.send);
            } else if !action.has_work {
                return units;
            }
        }
    }
}

/// Returns a service that has handled the same requests before. It is boxed, so that moving it costs nothing.
fn service(requests: usize) -> (Arc<Tally>, Box<Receiver>) {
    let (tally, mut writers) = Tally::new(1, 10_000_000);
    let policy = Policy::new("127.0.0.1");
    let reporter = Reporter::for_shards(1, "none").remove(0);
    let service = Service::new(writers.remove(0), reporter, policy, 0);
    let input = request().repeat(requests);
    let mut receiver = Receiver { connection: connection(), service, input };
    receiver.receive();
    receiver.connection = connection();
    receiver.connection.responses_mut().reuse(Vec::with_capacity(16 * 1024));
    (tally, Box::new(receiver))
}

fn responded_to_all((tally, receiver): (Arc<Tally>, Box<Receiver>)) {
    let bytes = receiver.connection.responses().bytes();
    let responses = bytes.windows(13).filter(|bytes| bytes == b"HTTP/1.1 200 ").count();
    assert_eq!(tally.totals().total_requests, 2 * responses as u64);
    assert_eq!(receiver.input.len(), responses * request().len());
}

// The whole path of a request, as an engine drives it.
#[library_benchmark(teardown = responded_to_all)]
#[bench::one(service(1))]
#[bench::sixteen_pipelined(service(16))]
fn answer((tally, mut receiver): (Arc<Tally>, Box<Receiver>)) -> (Arc<Tally>, Box<Receiver>) {
    receiver.receive();
    (tally, receiver)
}

/// Returns a service whose shard has seen the users of a batch, one for each event.
fn batch(events: usize) -> (Arc<Tally>, Box<Receiver>) {
    let (tally, mut receiver) = service(1);
    let line = |event| format!("{{\"userId\":\"user_{}\",\"value\":{event}.5}}\n", USERS + event);
    let body: String = (0..events).map(line).collect();
    let length = body.len();
    let head = format!("POST /events HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
    receiver.input = (head + &body).into_bytes();
    // The users are claimed the first time, and found the second time.
    for _ in 0..2 {
        receiver.receive();
        receiver.work();
    }
    (tally, receiver)
}

fn counted_three_batches((tally, _): (Arc<Tally>, Box<Receiver>)) {
    // This includes the event that every service has counted.
    assert_eq!(tally.totals().total_requests, 1 + 3 * REPEATED as u64);
}

#[library_benchmark(teardown = counted_three_batches)]
#[bench::known_users(batch(REPEATED))]
fn count_batch((tally, mut receiver): (Arc<Tally>, Box<Receiver>)) -> (Arc<Tally>, Box<Receiver>) {
    receiver.receive();
    receiver.work();
    (tally, receiver)
}

/// A service, inputs that are each received on a new connection, and the units that were charged for them.
type Attacked = (Box<Receiver>, Vec<Vec<u8>>, u32);

/// Returns the inputs of one kind that `ci/fuzz` has found in its search for the costliest input
/// (`ci/fuzzing/targets/cost.rs`).
fn costliest(kind: u8) -> Attacked {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ci/fuzzing/corpus/cost");
    let mut found: Vec<_> =
        std::fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    let post = |path: &str, body: &[u8]| {
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
        [head.as_bytes(), body].concat()
    };
    let wire = |path| {
        let bytes = std::fs::read(path).unwrap();
        let (first, input) = bytes.split_first()?;
        (first % 4 == kind).then(|| match kind {
            0 => input.repeat(8),
            1 => post("/event", input).repeat(8),
            2 => post("/events", &input.repeat(8)),
            _ => post("/events", &[input, b"\n"].concat().repeat(8)),
        })
    };
    let (_, receiver) = service(1);
    (receiver, found.into_iter().filter_map(wire).collect(), 0)
}

/// Prints the charge for the inputs. With the bound of their benchmark, this gives the most instructions per unit.
fn is_charged((_, inputs, units): Attacked) {
    assert!(units > 0);
    let bytes: usize = inputs.iter().map(Vec::len).sum();
    println!("{} inputs of {bytes} bytes are charged {units} units", inputs.len());
}

/// Returns a bound on the instructions of a benchmark, which fails if it takes more.
fn at_most(instructions: u64) -> LibraryBenchmarkConfig {
    let mut tool = Callgrind::default();
    tool.hard_limits([(EventKind::Ir, instructions)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(tool);
    config
}

// The bounds are about a tenth above the counts of 2026-11-29.
#[library_benchmark(teardown = is_charged)]
#[bench::requests(args = (costliest(0)), config = at_most(8_300_000))]
#[bench::events(args = (costliest(1)), config = at_most(2_300_000))]
#[bench::batches(args = (costliest(2)), config = at_most(227_000))]
#[bench::lines(args = (costliest(3)), config = at_most(10_900_000))]
fn attack((mut receiver, inputs, mut units): Attacked) -> Attacked {
    for input in &inputs {
        receiver.connection = connection();
        for piece in input.chunks(4096) {
            let Receiver { connection, service, .. } = &mut *receiver;
            connection.receive(black_box(piece), &Moment::START, service);
            units += receiver.work();
            if matches!(receiver.connection.next(), Next::Close | Next::ShutDownWrite) {
                break;
            }
        }
    }
    (receiver, inputs, units)
}

library_benchmark_group!(
    name = instructions,
    benchmarks = [parse, decode, count, publish, merge, encode, answer, count_batch, attack]
);

main!(library_benchmark_groups = instructions);
