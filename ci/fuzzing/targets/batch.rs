//! Bodies of `POST /events` in pieces and slices against a slow model: lines that are split first, and decoded one by one.

#![no_main]

#[path = "../../../tests/it/world/exchange.rs"]
mod exchange;

use libfuzzer_sys::fuzz_target;
use ringtally::connection::{Connection, Moment};
use ringtally::event::decode;
use ringtally::http::{Limits, Timeouts};
use ringtally::metrics::Reporter;
use ringtally::service::{Policy, Service};
use ringtally::tally::{ExactSum, Tally};
use std::collections::HashSet;

const LINE_BYTES_MAX: usize = 100;
const USERS_MAX: usize = 3;

/// Returns the status and the body of the response, and the events that are counted.
fn expected(body: &[u8]) -> (u16, String, Vec<(Vec<u8>, f64)>) {
    let (mut events, mut users, mut too_many) = (Vec::new(), HashSet::new(), None);
    for (index, line) in body.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let event = decode(line).ok().filter(|_| line.len() <= LINE_BYTES_MAX);
        let Some(event) = event else {
            return (400, format!(",\"line\":{}}}", index + 1), Vec::new());
        };
        users.insert(event.user.to_vec());
        if users.len() > USERS_MAX {
            too_many.get_or_insert(index + 1);
        }
        events.push((event.user.into_owned(), event.value));
    }
    match too_many {
        Some(line) => (507, format!(",\"line\":{line}}}"), Vec::new()),
        None => (200, format!("{{\"accepted\":{}}}", events.len()), events),
    }
}

fuzz_target!(|data: &[u8]| {
    // The first byte determines how the others are split.
    let Some((size, body)) = data.split_first() else { return };
    let (tally, mut writers) = Tally::new(1, USERS_MAX as u64);
    let policy = Policy { line_bytes_max: LINE_BYTES_MAX, ..Policy::new("h") };
    let reporter = Reporter::for_shards(1, "none").remove(0);
    let mut service = Service::new(writers.remove(0), reporter, policy, 0);
    let timeouts = Timeouts { header_ms: 50, body_ms: 70, idle_ms: 90 };
    let limits = Limits { body_bytes_max: 100, batch_bytes_max: 1 << 20, timeouts };
    let mut connection = Connection::new(limits, true, 0);
    let length = body.len();
    let head = format!("POST /events HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
    let wire = [head.as_bytes(), body].concat();
    for piece in wire.chunks(usize::from(*size).max(1)) {
        assert!(connection.responses().is_empty() && !connection.has_work(), "it is not whole");
        connection.renew();
        connection.receive(piece, &Moment::START, &mut service);
    }
    let (out, _) = exchange::finish(&mut connection, &Moment::START, &mut service);
    let (status, end, events) = expected(body);
    let response = String::from_utf8(out).unwrap();
    assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{response}");
    assert!(response.ends_with(&end), "{response}");
    let totals = tally.totals();
    let users: HashSet<_> = events.iter().map(|(user, _)| user).collect();
    assert_eq!(totals.total_requests, events.len() as u64);
    assert_eq!(totals.unique_users, users.len() as u64);
    let sum: ExactSum = events.iter().map(|(_, value)| *value).collect();
    assert_eq!(totals.sum.to_bits(), sum.round().to_bits());
});
