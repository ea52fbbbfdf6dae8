//! `POST /events` in the pure core: raw bytes in, raw responses out, and the counts after each batch.

use crate::world::exchange;
use crate::world::{Response, split_responses};
use ringtally::connection::{Connection, Due, Moment, Next};
use ringtally::http::{Limits, Timeouts};
use ringtally::metrics::Reporter;
use ringtally::service::{BatchMemory, Policy, Service};
use ringtally::tally::{Tally, Totals};
use std::sync::Arc;

const BATCH_BYTES_MAX: usize = 1 << 20;
const LINE_BYTES_MAX: usize = 100;
const LIMITS: Limits = Limits {
    body_bytes_max: LINE_BYTES_MAX,
    batch_bytes_max: BATCH_BYTES_MAX,
    timeouts: Timeouts { header_ms: 100, body_ms: 200, idle_ms: 1000 },
};

/// The shards of one server.
struct Server {
    tally: Arc<Tally>,
    services: Vec<Service>,
    memory: Arc<BatchMemory>,
}

/// One connection.
struct Client {
    connection: Connection,
    next: Next,
}

impl Client {
    fn new() -> Client {
        Client { connection: Connection::new(LIMITS, true, 0), next: Next::Receive }
    }

    /// Receives a piece, without continuing work that takes more turns.
    fn receive(&mut self, service: &mut Service, input: &[u8]) {
        self.connection.renew();
        self.connection.receive(input, &Moment::START, service);
        service.publish();
    }

    /// Gives the connection a turn.
    fn work(&mut self, service: &mut Service) {
        self.connection.renew();
        self.connection.work(&Moment::START, service);
        service.publish();
    }

    /// Gives the connection turns until it waits for input.
    fn finish(&mut self, service: &mut Service) -> Vec<Response> {
        let (sent, next) = exchange::finish(&mut self.connection, &Moment::START, service);
        self.next = next;
        split_responses(&sent)
    }
}

impl Server {
    fn new(shards: usize, users_max: u64) -> Server {
        let (tally, writers) = Tally::new(shards, users_max);
        let memory = BatchMemory::new(2 * BATCH_BYTES_MAX);
        let policy = Policy {
            line_bytes_max: LINE_BYTES_MAX,
            batch_memory: Arc::clone(&memory),
            ..Policy::new("h")
        };
        let services = std::iter::zip(writers, Reporter::for_shards(shards, "none"))
            .map(|(writer, metrics)| Service::new(writer, metrics, policy.clone(), 0))
            .collect();
        Server { tally, services, memory }
    }

    /// Sends a request on its own connection. Returns the only response.
    fn ask(&mut self, request: &[u8]) -> Response {
        let mut client = Client::new();
        client.receive(&mut self.services[0], request);
        let mut responses = client.finish(&mut self.services[0]);
        assert_eq!(responses.len(), 1, "{responses:?}");
        assert_eq!(self.memory.used(), 0, "the batch is over");
        responses.remove(0)
    }

    fn totals(&self) -> (u64, u64, f64) {
        let Totals { total_requests, unique_users, sum } = self.tally.totals();
        (total_requests, unique_users, sum)
    }
}

/// Returns a batch with a Content-Length.
fn sized(body: &[u8]) -> Vec<u8> {
    let head =
        format!("POST /events HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Returns a batch in chunks of this number of bytes.
fn chunked(body: &[u8], chunk: usize) -> Vec<u8> {
    let mut wire =
        b"POST /events HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for piece in body.chunks(chunk) {
        wire.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        wire.extend_from_slice(piece);
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b"0\r\n\r\n");
    wire
}

fn lines(events: usize) -> Vec<u8> {
    let line = |event| format!("{{\"userId\":\"user_{}\",\"value\":{}.5}}\n", event % 700, event);
    (0..events).map(line).collect::<String>().into_bytes()
}

const THREE: &[u8] =
    b"{\"userId\":\"a\",\"value\":1}\n{\"userId\":\"b\",\"value\":2}\r\n\n{\"value\":4,\"userId\":\"\\u0061\"}";

#[test]
fn a_batch_is_counted_whole_however_its_bytes_are_split() {
    for wire in [sized(THREE), chunked(THREE, 7), chunked(THREE, 1000)] {
        for split in 0..=wire.len() {
            let mut server = Server::new(1, 10);
            let mut client = Client::new();
            let (first, second) = wire.split_at(split);
            client.receive(&mut server.services[0], first);
            if split < wire.len() {
                assert_eq!(server.totals(), (0, 0, 0.0), "split at {split}");
            }
            client.receive(&mut server.services[0], second);
            let responses = client.finish(&mut server.services[0]);
            assert_eq!(responses.len(), 1, "split at {split}");
            assert_eq!((responses[0].status, &*responses[0].body), (200, r#"{"accepted":3}"#));
            assert_eq!(server.totals(), (3, 2, 7.0), "split at {split}");
            assert_eq!(server.memory.used(), 0);
        }
    }
}

#[test]
fn lines_end_in_lf_or_crlf_and_the_last_one_in_either_or_nothing() {
    let (a, b) = (r#"{"userId":"a","value":1}"#, r#"{"userId":"b","value":2}"#);
    for (body, accepted) in [
        (String::new(), 0),
        ("\n\r\n\n".into(), 0),
        (a.into(), 1),
        (format!("{a}\n"), 1),
        (format!("{a}\r\n"), 1),
        (format!("{a}\n{b}"), 2),
        (format!("{a}\r\n{b}\r\n"), 2),
        (format!("\n\n{a}\n\r\n{b}\n\n"), 2),
        (format!(" {a} \t\n\t{b}\r\r\n"), 2),
    ] {
        let mut server = Server::new(1, 10);
        let response = server.ask(&sized(body.as_bytes()));
        assert_eq!(response.body, format!("{{\"accepted\":{accepted}}}"), "{body:?}");
        assert_eq!(server.totals().0, accepted, "{body:?}");
    }
}

#[test]
fn a_bad_line_refuses_the_whole_batch_and_is_named() {
    let good = r#"{"userId":"a","value":1}"#;
    for bad in [
        r#"{"userId":"a"}"#,
        r#"{"userId":"","value":1}"#,
        r#"{"userId":"a","value":1}{"userId":"a","value":1}"#,
        r#"{"userId":"a","value":1e999}"#,
        "{\"userId\":\"a\",",
        "[]",
        " ",
        "\u{feff}",
    ] {
        for bad_at in [0, 1, 40, 99] {
            let mut server = Server::new(1, 10);
            let mut body: Vec<&str> = vec![good; 100];
            body[bad_at] = bad;
            let response = server.ask(&sized(body.join("\n").as_bytes()));
            assert_eq!(response.status, 400, "{bad}");
            let json: serde_json::Value = serde_json::from_str(&response.body).unwrap();
            assert_eq!(json["line"], bad_at + 1, "{bad}");
            let sentence = json["error"].as_str().unwrap();
            assert!(sentence.starts_with(&format!("line {}: send ", bad_at + 1)), "{sentence}");
            assert_eq!(server.totals(), (0, 0, 0.0));
            // The bad batch leaves no users behind: all ten fit.
            let users = (0..10).map(|user| format!("{{\"userId\":\"{user}\",\"value\":1}}\n"));
            assert_eq!(server.ask(&sized(users.collect::<String>().as_bytes())).status, 200);
        }
    }
    // An object does not continue after the end of its line.
    let mut server = Server::new(1, 10);
    let response = server.ask(&sized(b"\n{\"userId\":\"a\",\n\"value\":1}\n"));
    assert!(response.body.contains("\"line\":2"), "{}", response.body);
}

#[test]
fn a_batch_whose_users_do_not_fit_leaves_none_behind() {
    let users = |range: std::ops::Range<usize>| {
        range.map(|user| format!("{{\"userId\":\"{user}\",\"value\":1}}\n")).collect::<String>()
    };
    let mut server = Server::new(1, 10);
    assert_eq!(server.ask(&sized(users(0..4).as_bytes())).status, 200);
    let response = server.ask(&sized(users(2..11).as_bytes()));
    assert_eq!(response.status, 507);
    // The users of lines 1 and 2 are known, and six more fit.
    assert!(response.body.contains("\"line\":9"), "{}", response.body);
    assert_eq!(server.totals(), (4, 4, 4.0));
    assert_eq!(server.ask(&sized(users(2..10).as_bytes())).status, 200);
    assert_eq!(server.totals(), (12, 10, 12.0));
    // The first line without room is named, even if another line has an escape, which is decoded differently.
    let mut server = Server::new(1, 1);
    let escaped = users(0..1) + "{\"userId\":\"\\u0061\",\"value\":1}\n" + &users(1..2);
    let response = server.ask(&sized(escaped.as_bytes()));
    assert!(response.body.contains("\"line\":2"), "{}", response.body);
}

#[test]
fn a_large_batch_takes_many_turns_and_is_visible_in_the_last() {
    let body = lines(20_000);
    let mut server = Server::new(2, 1000);
    let mut client = Client::new();
    client.receive(&mut server.services[0], &sized(&body));
    let (mut turns, mut shard) = (0, 0);
    while client.connection.has_work() {
        assert_eq!(server.totals(), (turns, turns.min(1), turns as f64));
        // Between its turns, other clients are served and send events of the same users.
        let mut other = Client::new();
        let request = b"POST /event HTTP/1.1\r\nHost: h\r\nContent-Length: 29\r\n\r\n{\"userId\":\"user_1\",\"value\":1}";
        shard = 1 - shard;
        other.receive(&mut server.services[shard], request);
        assert_eq!(other.finish(&mut server.services[shard])[0].status, 200);
        turns += 1;
        client.work(&mut server.services[0]);
    }
    assert!(turns > 3, "{turns}");
    assert_eq!(client.finish(&mut server.services[0])[0].body, r#"{"accepted":20000}"#);
    let sum: f64 = (0..20_000).map(|event| f64::from(event) + 0.5).sum();
    assert_eq!(server.totals(), (20_000 + turns, 700, sum + turns as f64));
}

/// Returns the status of the response to a batch with these fields.
fn status_of(server: &mut Server, head: &str, body: &[u8]) -> u16 {
    let mut request = format!("POST /events HTTP/1.1\r\nHost: h\r\n{head}\r\n").into_bytes();
    request.extend_from_slice(body);
    server.ask(&request).status
}

#[test]
fn every_limit_holds_at_it_and_one_above() {
    let padded = |length: usize| {
        let line = r#"{"userId":"a","value":1}"#;
        format!("{line}{}", " ".repeat(length - line.len()))
    };
    // Lines of the usual shape are decoded by another function.
    let usual = |length: usize| {
        let others = r#"{"userId":"","value":1}"#.len();
        format!(r#"{{"userId":"{}","value":1}}"#, "u".repeat(length - others))
    };
    let limits = [(LINE_BYTES_MAX, 200), (LINE_BYTES_MAX + 1, 400)];
    let shapes =
        limits.map(|(length, status)| [padded(length), usual(length)].map(|line| (line, status)));
    for (end, ending) in [("", 0), ("\n", 1), ("\r\n", 2)] {
        for (line, status) in shapes.as_flattened() {
            let (length, status) = (line.len(), *status);
            let body = line.clone() + end;
            assert_eq!(body.len(), length + ending);
            for after in ["", "{\"userId\":\"a\",\"value\":1}"] {
                let mut server = Server::new(1, 10);
                let body = if end.is_empty() { body.clone() } else { body.clone() + after };
                let response = server.ask(&sized(body.as_bytes()));
                assert_eq!(response.status, status, "{length} {end:?}");
                assert!(status == 200 || response.body.contains("--max-body"), "{response:?}");
            }
        }
    }
    let mut largest = lines(BATCH_BYTES_MAX / 40);
    largest.resize(BATCH_BYTES_MAX, b'\n');
    let mut server = Server::new(1, 1000);
    assert_eq!(server.ask(&sized(&largest)).status, 200);
    assert_eq!(server.ask(&chunked(&largest, 4096)).status, 200);
    let counted = server.totals();
    largest.push(b'\n');
    assert_eq!(server.ask(&sized(&largest)).status, 413);
    assert_eq!(server.ask(&chunked(&largest, 4096)).status, 413);
    assert_eq!(server.totals(), counted);
}

#[test]
fn batches_over_the_memory_are_refused_before_their_body_and_others_go_on() {
    let mut server = Server::new(1, 1000);
    let whole = format!("Content-Length: {BATCH_BYTES_MAX}\r\n");
    let head = format!("POST /events HTTP/1.1\r\nHost: h\r\n{whole}\r\n");
    let mut clients: Vec<Client> = (0..3).map(|_| Client::new()).collect();
    for client in &mut clients {
        client.receive(&mut server.services[0], head.as_bytes());
    }
    assert_eq!(server.memory.used(), 2 * BATCH_BYTES_MAX);
    let third = clients[2].finish(&mut server.services[0]);
    assert_eq!((third[0].status, third[0].field("retry-after")), (503, Some("1")));
    // Its body is skipped, and the connection continues.
    let body = vec![b'\n'; BATCH_BYTES_MAX];
    clients[2].receive(&mut server.services[0], &body);
    clients[2].receive(&mut server.services[0], b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(clients[2].finish(&mut server.services[0])[0].status, 200);
    // A chunked batch may become as large as any: it is refused, and so is a batch whose client waits before it sends the body.
    for fields in
        ["Transfer-Encoding: chunked\r\n", "Expect: 100-continue\r\nContent-Length: 5\r\n"]
    {
        let mut client = Client::new();
        let head = format!("POST /events HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        client.receive(&mut server.services[0], head.as_bytes());
        assert_eq!(client.finish(&mut server.services[0])[0].status, 503);
        assert!(exchange::ends(client.next));
    }
    // A client that stops in the middle gives its memory back.
    clients[0].receive(&mut server.services[0], b"{\"userId\":\"a\",\"value\":1}\n");
    assert_eq!(clients[0].connection.deadline_ms(), LIMITS.timeouts.body_ms);
    let late = Moment { now_ms: LIMITS.timeouts.body_ms, ..Moment::START };
    assert_eq!(clients[0].connection.tick(&late, &mut server.services[0]), Due::Act);
    assert_eq!(clients[0].finish(&mut server.services[0])[0].status, 408);
    drop(clients);
    assert_eq!((server.memory.used(), server.totals()), (0, (0, 0, 0.0)));
}

#[test]
fn a_client_that_waits_is_told_to_go_on_only_after_all_checks() {
    let mut server = Server::new(1, 10);
    for (fields, status) in [
        ("", 100),
        ("Content-Encoding: identity\r\n", 100),
        ("Content-Encoding: gzip\r\n", 415),
        ("Content-Encoding: identity, br\r\n", 415),
        ("Origin: http://example.org\r\n", 403),
    ] {
        let mut client = Client::new();
        let head = format!(
            "POST /events HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n{fields}Content-Length: {}\r\n\r\n",
            THREE.len()
        );
        client.receive(&mut server.services[0], head.as_bytes());
        let responses = client.finish(&mut server.services[0]);
        assert_eq!(responses[0].status, status, "{fields}");
        let accepts = responses[0].field("accept-encoding");
        assert_eq!(accepts, (status == 415).then_some("identity"));
        if status == 100 {
            client.receive(&mut server.services[0], THREE);
            assert_eq!(client.finish(&mut server.services[0])[0].body, r#"{"accepted":3}"#);
        } else {
            assert!(exchange::ends(client.next), "the body may or may not come");
        }
    }
    // A client that does not wait sends the body in any case.
    let refused = format!("Content-Encoding: gzip\r\nContent-Length: {}\r\n", THREE.len());
    assert_eq!(status_of(&mut server, &refused, THREE), 415);
    assert_eq!(server.totals(), (6, 2, 14.0));
}

#[test]
fn pipelined_batches_and_single_events_are_responded_to_in_order() {
    let single = "POST /event HTTP/1.1\r\nHost: h\r\nContent-Length: 24\r\n\r\n{\"userId\":\"s\",\"value\":1}";
    let stats = "GET /stats HTTP/1.1\r\nHost: h\r\n\r\n";
    let large = lines(10_000);
    let wire = [
        single.as_bytes(),
        &sized(THREE),
        stats.as_bytes(),
        &sized(&large),
        single.as_bytes(),
        &chunked(&large, 333),
        stats.as_bytes(),
        &sized(b"?"),
        single.as_bytes(),
    ]
    .concat();
    for pieces in [wire.len(), 4096, 1000] {
        let mut server = Server::new(1, 1000);
        let (mut client, mut responses) = (Client::new(), Vec::new());
        for piece in wire.chunks(pieces) {
            client.receive(&mut server.services[0], piece);
            responses.append(&mut client.finish(&mut server.services[0]));
        }
        let statuses: Vec<u16> = responses.iter().map(|response| response.status).collect();
        assert_eq!(statuses, [200, 200, 200, 200, 200, 200, 200, 400, 200]);
        assert!(
            responses[2].body.starts_with("{\"totalRequests\":4,\"uniqueUsers\":3,\"sum\":8.0,")
        );
        assert!(responses[6].body.starts_with("{\"totalRequests\":20005,\"uniqueUsers\":703,"));
        assert_eq!(server.totals().0, 20_006);
    }
}

#[test]
fn a_body_that_is_received_in_place_is_counted_like_any() {
    let (wire, head) = (sized(THREE), sized(THREE).len() - THREE.len());
    for first in head..wire.len() {
        let mut server = Server::new(1, 10);
        let mut client = Client::new();
        client.receive(&mut server.services[0], &wire[..first]);
        let mut at = first;
        while at < wire.len() {
            assert!(!client.connection.has_work(), "its body is not whole");
            client.connection.begin_filling();
            let end = wire.len().min(at + 13);
            let take = |body: &mut Vec<u8>, bytes_max: usize| {
                assert_eq!(bytes_max, wire.len() - at);
                body.extend_from_slice(&wire[at..end]);
                end - at
            };
            client.connection.fill(take, &Moment::START, &mut server.services[0]);
            at = end;
        }
        assert_eq!(client.finish(&mut server.services[0])[0].body, r#"{"accepted":3}"#);
        assert_eq!(server.totals(), (3, 2, 7.0));
    }
    let mut server = Server::new(1, 10);
    let mut client = Client::new();
    let large = lines(1_000);
    client.receive(&mut server.services[0], &sized(&large)[..100]);
    assert!(client.connection.wants_filling());
    let mut client = Client::new();
    client.receive(&mut server.services[0], &chunked(&large, 7)[..100]);
    assert!(!client.connection.wants_filling(), "chunks are not the body");
}

#[test]
fn a_large_batch_of_known_users_is_counted_whole() {
    let body = lines(20_000);
    let mut server = Server::new(1, 1000);
    for sent in 1..=3 {
        assert_eq!(server.ask(&sized(&body)).body, r#"{"accepted":20000}"#);
        let (events, users, _) = server.totals();
        assert_eq!((events, users), (sent * 20_000, 700));
    }
}
