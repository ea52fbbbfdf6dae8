//! How many instructions a request costs apart from the kernel: parse, decode, count, publish,
//! merge, encode. valgrind counts them, so they are the same on a busy machine as on an idle one.
//! `cargo bench --bench instructions` needs valgrind and gungraun-runner; `ci/perf` compares the
//! counts of two commits. The result of each benchmark is checked after it was counted.

#![allow(missing_docs, clippy::unwrap_used, reason = "gungraun's macros; a panic is a failure")]

use gungraun::prelude::*;
use ringtally::event;
use ringtally::http::{
    Budget, Connection, Context, Handled, Handler, Limits, Outcome, Reply, Request, Status,
    Timeouts,
};
use ringtally::metrics::Reporter;
use ringtally::service::{Endpoints, Policy, Service, stats_json};
use ringtally::tally::{Tally, Totals, Writer};
use std::hint::black_box;
use std::sync::Arc;

/// Repetitions of an operation of few instructions. The hasher has a new seed in every process, so that
/// the search for one user may be longer or shorter; the mean over many is stable.
const REPEATED: usize = 1_000;
const USERS: usize = 10_000;
const SHARDS: usize = 8;
const BODY: &str = r#"{"userId":"user_12345","value":499.5}"#;
const ESCAPED: &str = r#"{"id":[1,{"a":"b"}],"userId":"user_\u0031","value":4.995e2}"#;

/// Accepts requests and does nothing with them, so that only their parsing is counted.
struct Sink {
    handled: usize,
}

impl Handler for Sink {
    type Work = ();

    fn knows(&self, _: &Request<'_>) -> bool {
        true
    }

    fn wants_body(&self, _: &Request<'_>) -> bool {
        true
    }

    fn handle(&mut self, request: &Request<'_>, _: Reply<'_>) -> Handled {
        black_box(request.body);
        self.handled += 1;
        Handled::Responded(0)
    }

    fn is_batch(&self, _: &Request<'_>) -> bool {
        false
    }

    fn begin_batch(&mut self, _: &Request<'_>, _: usize, _: Reply<'_>) -> Option<((), Vec<u8>)> {
        None
    }

    fn work(&mut self, (): &mut (), _: &mut [u8], _: &mut Budget, _: Reply<'_>) -> bool {
        true
    }

    fn refused(&mut self, _: Status) {}
}

fn request() -> Vec<u8> {
    format!(
        "POST /event HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    )
    .into_bytes()
}

fn connection<W>() -> Connection<W> {
    let timeouts = Timeouts { header_ms: 10_000, body_ms: 10_000, idle_ms: 75_000 };
    Connection::new(
        Limits { body_bytes_max: 16 * 1024, batch_bytes_max: 8 << 20, timeouts },
        true,
        0,
    )
}

/// A connection, its handler, and the requests that it receives.
struct Receiver<H: Handler> {
    connection: Connection<H::Work>,
    context: Context<H>,
    input: Vec<u8>,
    out: Vec<u8>,
}

impl<H: Handler> Receiver<H> {
    fn new(context: Context<H>, requests: usize) -> Self {
        let input = request().repeat(requests);
        Receiver { connection: connection(), context, input, out: Vec::with_capacity(16 * 1024) }
    }

    fn receive(&mut self) {
        let input = black_box(&self.input);
        let outcome = self.connection.receive(input, 0, &mut self.context, &mut self.out);
        assert_eq!(outcome, Outcome::Receive);
    }
}

fn sink() -> Receiver<Sink> {
    Receiver::new(Context::of(Sink { handled: 0 }, "127.0.0.1", 0), 1)
}

/// The head of the request is cached, as on every connection but the first.
fn experienced_sink() -> Receiver<Sink> {
    let mut receiver = sink();
    receiver.receive();
    receiver.context.handler.handled = 0;
    receiver
}

fn handled_one(receiver: Receiver<Sink>) {
    assert_eq!(receiver.context.handler.handled, 1);
}

#[library_benchmark(teardown = handled_one)]
#[bench::new_head(sink())]
#[bench::known_head(experienced_sink())]
fn parse(mut receiver: Receiver<Sink>) -> Receiver<Sink> {
    receiver.receive();
    receiver
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

/// A writer that has seen its users and has published everything.
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

/// The same with one event to publish.
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

/// Every user on every shard, as after a long run.
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

/// A service that has handled the same requests before.
fn service(requests: usize) -> (Arc<Tally>, Receiver<Endpoints>) {
    let (tally, mut writers) = Tally::new(1, 10_000_000);
    let policy = Policy::new("127.0.0.1");
    let reporter = Reporter::for_shards(1, "none").remove(0);
    let service = Service::new(writers.remove(0), reporter, policy, 0);
    let mut receiver = Receiver::new(service, requests);
    receiver.receive();
    receiver.context.commit();
    receiver.out.clear();
    (tally, receiver)
}

fn responded_to_all((tally, receiver): (Arc<Tally>, Receiver<Endpoints>)) {
    let responses = receiver.out.windows(13).filter(|bytes| bytes == b"HTTP/1.1 200 ").count();
    assert_eq!(tally.totals().total_requests, 2 * responses as u64);
    assert_eq!(receiver.input.len(), responses * request().len());
}

// The whole path of a request, as an engine drives it.
#[library_benchmark(teardown = responded_to_all)]
#[bench::one(service(1))]
#[bench::sixteen_pipelined(service(16))]
fn answer(
    (tally, mut receiver): (Arc<Tally>, Receiver<Endpoints>),
) -> (Arc<Tally>, Receiver<Endpoints>) {
    receiver.receive();
    receiver.context.commit();
    (tally, receiver)
}

/// A service, inputs that are each received on a new connection, and the units that were charged for them.
type Attacked = (Receiver<Endpoints>, Vec<Vec<u8>>, u32);

/// The inputs that the search of `ci/fuzz` for the costliest one has found, of one kind of `ci/fuzzing/targets/cost.rs`.
fn costliest(kind: u8) -> Attacked {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/ci/fuzzing/corpus/cost");
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

/// The instructions of a unit are the bound of these benchmarks divided by the units that this prints.
fn is_charged((_, inputs, units): Attacked) {
    assert!(units > 0);
    let bytes: usize = inputs.iter().map(Vec::len).sum();
    println!("{} inputs of {bytes} bytes are charged {units} units", inputs.len());
}

#[library_benchmark(teardown = is_charged)]
#[bench::requests(costliest(0))]
#[bench::events(costliest(1))]
#[bench::batches(costliest(2))]
#[bench::lines(costliest(3))]
fn attack((mut receiver, inputs, mut units): Attacked) -> Attacked {
    let Receiver { connection: served, context, out, .. } = &mut receiver;
    for input in &inputs {
        *served = connection();
        let mut outcome = Outcome::Receive;
        for piece in input.chunks(4096) {
            if outcome.closes() {
                break;
            }
            outcome = served.receive(black_box(piece), 0, context, out);
            loop {
                units += served.budget().used();
                served.renew();
                out.clear();
                if !matches!(outcome, Outcome::Work | Outcome::Resume) {
                    break;
                }
                outcome = served.resume(0, context, out);
            }
            context.commit();
        }
    }
    (receiver, inputs, units)
}

library_benchmark_group!(
    name = instructions,
    benchmarks = [parse, decode, count, publish, merge, encode, answer, attack]
);

main!(library_benchmark_groups = instructions);
