//! The cost of a request without the kernel: parse, decode, count, publish, merge. Each benchmark checks its own result.
//! `cargo bench --bench micro` runs them; `.ci/run` runs each once, with fewer users:
//! `cargo bench --bench micro -- --test`.

#![allow(missing_docs, clippy::unwrap_used, reason = "criterion's macros; a panic is a failure")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hdrhistogram::Histogram;
use ringtally::connection::{Connection, Moment, Next};
use ringtally::event::decode;
use ringtally::http::{Limits, Timeouts};
use ringtally::metrics::Reporter;
use ringtally::service::{Policy, Service, stats_json};
use ringtally::tally::{Tally, Writer};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

const USERS: usize = 75_000;
/// The number of users whose table is larger than any cache.
const MANY_USERS: usize = 5_000_000;
/// Events of the challenge, decoded and counted.
const EVENTS: usize = 1_000_000;
const SHARDS: usize = 8;
const BODY: &str = r#"{"userId":"user_12345","value":499.5}"#;

fn request(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn core() -> (Arc<Tally>, Service, Connection) {
    let (tally, mut writers) = Tally::new(1, 10_000_000);
    let policy = Policy::new("127.0.0.1");
    let timeouts = Timeouts { header_ms: 10_000, body_ms: 10_000, idle_ms: 75_000 };
    let limits = Limits { body_bytes_max: 16 * 1024, batch_bytes_max: 8 << 20, timeouts };
    (
        tally,
        Service::new(writers.remove(0), Reporter::for_shards(1, "none").remove(0), policy, 0),
        Connection::new(limits, true, 0),
    )
}

/// Receives bytes, as an engine does. Returns the responses and what the connection wants next.
fn feed(connection: &mut Connection, service: &mut Service, input: &[u8]) -> (Vec<u8>, Next) {
    connection.receive(black_box(input), &Moment::START, service);
    service.publish();
    let action = connection.action(&Moment::START, service);
    connection.renew();
    let sent = connection.take_responses(action.send, 0);
    connection.note_sent(action.send);
    (sent, action.then)
}

/// Returns whether each benchmark must run once, as a test.
fn is_test() -> bool {
    std::env::args().any(|argument| argument == "--test")
}

/// Returns shards that each have every user, as after a long run.
fn full() -> (Arc<Tally>, Vec<Writer>) {
    let (tally, mut writers) = Tally::new(SHARDS, 10_000_000);
    for writer in &mut writers {
        for user in 0..USERS {
            writer.count(format!("user_{user}").as_bytes(), 0.5).unwrap();
        }
        writer.publish();
    }
    (tally, writers)
}

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("request");
    for pipelined in [1usize, 16] {
        let (tally, mut service, mut connection) = core();
        let input = request("/event", BODY).repeat(pipelined);
        let mut fed = 0;
        group.throughput(Throughput::Elements(pipelined as u64));
        group.bench_function(
            format!("parse, decode, count, publish, respond; {pipelined} at once"),
            |b| {
                b.iter(|| {
                    let (sent, next) = feed(&mut connection, &mut service, &input);
                    assert_eq!(next, Next::Receive);
                    // The memory is reused, as in an engine.
                    let mut spare = black_box(sent);
                    spare.clear();
                    connection.responses_mut().reuse(spare);
                    fed += pipelined as u64;
                });
            },
        );
        assert_eq!(tally.totals().total_requests, fed);
    }
    let (_, mut service, mut connection) = core();
    let input = request("/none", "");
    group.throughput(Throughput::Elements(1));
    group.bench_function("parse and respond 404", |b| {
        b.iter(|| feed(&mut connection, &mut service, &input));
    });
    // This holds even if a filter has skipped the benchmark.
    let (out, _) = feed(&mut connection, &mut service, &input);
    assert!(out.starts_with(b"HTTP/1.1 404 "));
    group.finish();
}

fn decoding(c: &mut Criterion) {
    for (name, body) in [
        ("as published", BODY),
        ("with spaces, value first", r#"{"value": 499.5, "userId": "user_12345"}"#),
        ("with escapes", r#"{"userId":"user_\u0031","value":499.5}"#),
        ("with members to ignore", r#"{"id":[1,2,{"a":"b"}],"userId":"user_1","value":4.995e2}"#),
    ] {
        c.bench_function(&format!("decode/{name}"), |b| {
            b.iter(|| decode(black_box(body.as_bytes())));
        });
        assert_eq!(decode(body.as_bytes()).unwrap().value, 499.5);
    }
}

fn counting(c: &mut Criterion) {
    let (tally, mut writers) = full();
    let users: Vec<String> = (0..USERS).map(|user| format!("user_{user}")).collect();
    let before = tally.totals();
    let mut next = users.iter().cycle();
    let mut counted = 0u64;
    c.bench_function("count/one of 75,000 known users", |b| {
        b.iter(|| {
            counted += 1;
            writers[0].count(black_box(next.next().unwrap().as_bytes()), 0.5)
        });
    });
    c.bench_function("count/one event, and publish", |b| {
        b.iter(|| {
            counted += 1;
            writers[0].count(black_box(b"user_1"), 0.5).unwrap();
            writers[0].publish();
        });
    });
    writers[0].publish();
    let after = tally.totals();
    assert_eq!(after.total_requests, before.total_requests + counted);
    assert_eq!(
        (after.unique_users, after.sum),
        (before.unique_users, before.sum + counted as f64 / 2.0)
    );

    let (tally, mut writers) = Tally::new(1, 1 << 30);
    let mut counted = 0u64;
    c.bench_function("count/a new user", |b| {
        b.iter(|| {
            counted += 1;
            writers[0].count(&counted.to_ne_bytes(), 1.0)
        });
    });
    assert_eq!(tally.totals().unique_users, counted);
}

/// Returns the ids of many users, one after the other as a batch of events would have them, in an order unlike the order in
/// which they were added.
fn many_ids(users: usize) -> Vec<String> {
    // A step that is coprime to the number of users visits each once.
    (0..users).map(|i| format!("user_{}", i * 2_654_435_761 % users)).collect()
}

fn counting_many(c: &mut Criterion) {
    let users = if is_test() { 1_000 } else { MANY_USERS };
    let (tally, mut writers) = Tally::new(1, users as u64);
    for user in 0..users {
        writers[0].count(format!("user_{user}").as_bytes(), 0.5).unwrap();
    }
    let ids = many_ids(users);
    let mut next = ids.iter().cycle();
    let mut counted = 0u64;
    c.bench_function("count/one of 5 million known users", |b| {
        b.iter(|| {
            counted += 1;
            writers[0].count(black_box(next.next().unwrap().as_bytes()), 0.5)
        });
    });
    writers[0].publish();
    let totals = tally.totals();
    assert_eq!(
        (totals.total_requests, totals.unique_users),
        (users as u64 + counted, users as u64)
    );
}

/// Decodes and counts bodies of the published workload one after the other, without input or output.
fn decoding_and_counting(c: &mut Criterion) {
    let (tally, mut writers) = Tally::new(1, 10_000_000);
    let events = if is_test() { 1_000 } else { EVENTS };
    let bodies: String = (0..events)
        .map(|i| format!(r#"{{"userId":"user_{}","value":{}.5}}"#, i % USERS, i % 1000) + "\n")
        .collect();
    let bodies: Vec<&[u8]> = bodies.lines().map(str::as_bytes).collect();
    let mut rounds = 0u64;
    let mut group = c.benchmark_group("decode and count");
    group.throughput(Throughput::Elements(events as u64)).sample_size(20);
    group.bench_function("1 million events of 75,000 users", |b| {
        b.iter(|| {
            for body in &bodies {
                let event = decode(body).unwrap();
                writers[0].count(&event.user, event.value).unwrap();
            }
            writers[0].publish();
            rounds += 1;
        });
    });
    group.finish();
    let totals = tally.totals();
    let users = events.min(USERS) as u64;
    assert_eq!((totals.total_requests, totals.unique_users), (rounds * events as u64, users));
    assert_eq!(totals.avg(), 500.0);
}

fn merging(c: &mut Criterion) {
    let (tally, writers) = full();
    c.bench_function("merge/8 shards with 75,000 users each", |b| b.iter(|| tally.totals()));
    let totals = tally.totals();
    assert_eq!((totals.unique_users, totals.avg()), (USERS as u64, 0.5));
    c.bench_function("encode/stats", |b| b.iter(|| stats_json(black_box(&totals))));
    assert!(stats_json(&totals).contains("\"sum\":300000.0"));
    percentiles(&tally, writers);
}

/// Measures the tail of the cost of a `/stats` response while shards count, which a mean does not show.
fn percentiles(tally: &Tally, mut writers: Vec<Writer>) {
    // The constructor accepts these constant bounds.
    let mut histogram = Histogram::<u64>::new_with_bounds(1, 1_000_000_000, 3).unwrap();
    for i in 0..if is_test() { 1_000 } else { 1_000_000 } {
        let writer = &mut writers[i % SHARDS];
        writer.count(b"user_1", 0.5).unwrap();
        writer.publish();
        let start = Instant::now();
        black_box(stats_json(&tally.totals()));
        histogram.saturating_record(start.elapsed().as_nanos().try_into().unwrap_or(u64::MAX));
    }
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    println!(
        "merge and encode: p50 {:.2} µs, p99 {:.2} µs, p99.9 {:.2} µs",
        at(0.5),
        at(0.99),
        at(0.999)
    );
}

criterion_group!(
    benches,
    requests,
    decoding,
    counting,
    counting_many,
    decoding_and_counting,
    merging
);
criterion_main!(benches);
