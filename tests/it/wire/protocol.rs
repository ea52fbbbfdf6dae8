//! The pure core, `http` and `service` together: raw bytes in, raw responses out, without a socket.

use crate::world::exchange::{self, ends};
use crate::world::{Response, post, split_responses};
use proptest::prelude::*;
use ringtally::connection::{Connection, Due, Moment, Urgency};
use ringtally::http::{
    CHUNK_FRAMING_BYTES_MAX, FIELDS_MAX, HEAD_BYTES_MAX, Limits, REQUEST_LINE_BYTES_MAX, Timeouts,
    UNSENT_BYTES_MAX,
};
use ringtally::metrics::Reporter;
use ringtally::service::{Dialect, Policy, Service};
use ringtally::tally::Tally;
use std::sync::Arc;

const BODY_BYTES_MAX: usize = 1000;
const BATCH_BYTES_MAX: usize = 2000;
const LIMITS: Limits = Limits {
    body_bytes_max: BODY_BYTES_MAX,
    batch_bytes_max: BATCH_BYTES_MAX,
    timeouts: Timeouts { header_ms: 100, body_ms: 200, idle_ms: 1000 },
};

/// One connection and the shard behind it.
struct Core {
    connection: Connection,
    service: Service,
    out: Vec<u8>,
    moment: Moment,
}

impl Core {
    fn new() -> Core {
        Core::with(Dialect::Original, None, true)
    }

    fn with(dialect: Dialect, token: Option<&str>, peer_is_loopback: bool) -> Core {
        let (_, mut writers) = Tally::new(1, 1000);
        let policy = Policy {
            dialect,
            admin_token: token.map(|token| Arc::from(token.as_bytes())),
            ..Policy::new("192.0.2.1")
        };
        Core {
            connection: Connection::new(LIMITS, peer_is_loopback, 0),
            service: Service::new(
                writers.remove(0),
                Reporter::for_shards(1, "none").remove(0),
                policy,
                784_111_777,
            ),
            out: Vec::new(),
            moment: Moment::START,
        }
    }

    /// Feeds one piece to a connection whose peer takes every response. Returns whether the connection ends.
    fn feed(&mut self, input: &[u8]) -> bool {
        let Core { connection, service, out, moment } = self;
        connection.receive(input, moment, service);
        let last = memchr::memmem::rfind(connection.responses().bytes(), b"HTTP/1.1 ");
        assert!(last.is_none_or(|last| last < UNSENT_BYTES_MAX), "one response over the mark");
        let (sent, next) = exchange::finish(connection, moment, service);
        out.extend(sent);
        ends(next)
    }

    /// Lets the deadline pass. Returns what is due, and appends the responses.
    fn expire(&mut self) -> Due {
        self.moment.now_ms = self.connection.deadline_ms();
        let due = self.connection.tick(&self.moment, &mut self.service);
        self.feed(b"");
        due
    }

    fn responses(&mut self, input: &[u8]) -> Vec<Response> {
        self.feed(input);
        split_responses(&std::mem::take(&mut self.out))
    }
}

/// Returns the responses to bytes that arrive in one piece, and whether the connection closes.
fn exchange(input: &[u8]) -> (Vec<u8>, bool) {
    let mut core = Core::new();
    let closes = core.feed(input);
    (core.out, closes)
}

/// Returns the same for bytes that arrive in pieces.
fn exchange_in(pieces: impl Iterator<Item = Vec<u8>>) -> (Vec<u8>, bool) {
    let mut core = Core::new();
    let mut closes = false;
    for piece in pieces {
        closes |= core.feed(&piece);
    }
    (core.out, closes)
}

fn statuses(input: &[u8]) -> (Vec<u16>, bool) {
    let (out, closes) = exchange(input);
    (split_responses(&out).iter().map(|response| response.status).collect(), closes)
}

const EVENT: &str = r#"{"userId":"u","value":1}"#;

/// Returns a GET with additional fields.
fn get(fields: &str) -> String {
    format!("GET /health HTTP/1.1\r\nHost: h\r\n{fields}\r\n")
}

/// Returns requests of every kind, with the statuses of their responses, and whether the connection closes after them.
fn table() -> Vec<(String, Vec<u16>, bool)> {
    let chunked = |wire: &str| {
        format!("POST /event HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{wire}")
    };
    let host = |host: &str| format!("GET /health HTTP/1.1\r\n{host}\r\n");
    let mut table = vec![
        (post("/event", EVENT), vec![200], false),
        // Published clients send different media types.
        (
            format!(
                "POST /event HTTP/1.1\r\nHost: h\r\nContent-Type: text/plain; charset=x\r\nContent-Length: 24\r\n\r\n{EVENT}"
            ),
            vec![200],
            false,
        ),
        (post("/event", "{}"), vec![400], false),
        (post("/event", ""), vec![400], false),
        (get("").repeat(3), vec![200; 3], false),
        (format!("{}{}", post("/event", EVENT), get("")), vec![200, 200], false),
        (format!("{}{}", post("/event", "nonsense"), get("")), vec![400, 200], false),
        (
            chunked("18\r\n{\"userId\":\"u\",\"value\":1}\r\n0\r\n\r\n") + &get(""),
            vec![200, 200],
            false,
        ),
        (
            chunked("1\r\n{\r\n017;x=\"y\"\r\n\"userId\":\"u\",\"value\":1}\r\n0\r\nT: 1\r\n\r\n"),
            vec![200],
            false,
        ),
        (chunked("\r\n") + &get(""), vec![400], true),
        // Host.
        (host(""), vec![400], true),
        (host("Host:\r\n"), vec![200], false),
        (host("Host: a\r\nHost: a\r\n"), vec![400], true),
        (host("Host: a b\r\n"), vec![400], true),
        (host("Host: a/b\r\n"), vec![400], true),
        (host("Host: a:b\r\n"), vec![400], true),
        (host("Host: [::1]:80\r\n"), vec![200], false),
        (host("Host: [::1\r\n"), vec![400], true),
        // Versions and persistence.
        ("GET /health HTTP/1.0\r\n\r\n".into(), vec![200], true),
        ("GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".into(), vec![200], false),
        ("GET /health HTTP/1.2\r\nHost: h\r\n\r\n".into(), vec![200], false),
        ("GET /health HTTP/1.2\r\n\r\n".into(), vec![400], true),
        ("GET /health HTTP/2.0\r\nHost: h\r\n\r\n".into(), vec![505], true),
        ("GET /health http/1.1\r\nHost: h\r\n\r\n".into(), vec![400], true),
        ("GET /health\r\n\r\n".into(), vec![400], true),
        // With a field it is not an HTTP/2 connection preface.
        ("PRI * HTTP/2.0\r\nHost: h\r\n\r\nSM\r\n\r\n".into(), vec![505], true),
        ("\x16\x03\x01\x02\x00\x01\x00".into(), vec![400], true),
        ("nonsense\r\n\r\n".into(), vec![400], true),
        (get("Connection: close\r\n") + &get(""), vec![200], true),
        (get("Connection: x, CLOSE\r\n") + &get(""), vec![200], true),
        (get("Connection: closed\r\n") + &get(""), vec![200, 200], false),
        // A body that is not wanted is never read as a request.
        (
            format!(
                "GET /health HTTP/1.1\r\nHost: h\r\nContent-Length: 33\r\n\r\n{}",
                "GET /stats HTTP/1.1\r\nHost: h\r\n\r\nx"
            ),
            vec![200],
            false,
        ),
        (
            format!("DELETE /none HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc{}", get("")),
            vec![404, 200],
            false,
        ),
        // Lengths.
        (get("Content-Length: 003\r\n") + "abc", vec![200], false),
        (get("Content-Length: 0\r\nContent-Length: 0\r\n"), vec![400], true),
        (get("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n"), vec![400], true),
        // Codings.
        (get("Transfer-Encoding: gzip, chunked\r\n"), vec![501], true),
        (get("Transfer-Encoding: chunked, identity\r\n"), vec![400], true),
        (get("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), vec![400], true),
        (get("Transfer-Encoding: chunked, chunked\r\n"), vec![400], true),
        (get("Transfer-Encoding: \x0bchunked\r\n"), vec![400], true),
        (get("Transfer-Encoding:\r\n"), vec![400], true),
        ("POST /event HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), vec![400], true),
        // Lines.
        ("GET /health HTTP/1.1\nHost: h\n\n".into(), vec![400], true),
        ("GET /health HTTP/1.1\r\nHost: h\r\nA: b\n\r\n".into(), vec![400], true),
        (get("A: b\r\n c\r\n"), vec![400], true),
        (get("A : b\r\n"), vec![400], true),
        (get(": b\r\n"), vec![400], true),
        (get("A: b\x00c\r\n"), vec![400], true),
        (get("A: b\rc\r\n"), vec![400], true),
        (get("A: \u{e9}\r\n"), vec![200], false),
        (format!("\r\n\r\n{}", get("")), vec![200], false),
        ("\r\n".repeat(8) + &get(""), vec![200], false),
        ("\r\n".repeat(9) + &get(""), vec![400], true),
        // Targets.
        ("GET /health?x=1 HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![200], false),
        ("GET /%68ealth HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![200], false),
        ("GET //health HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![404], false),
        ("GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![400], true),
        ("GET * HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![400], true),
        ("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![204], false),
        ("GET http://other/health HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![200], false),
        ("CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\nGET /".into(), vec![405], true),
        // Methods.
        ("OPTIONS /event HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![204], false),
        ("PUT /event HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![405], false),
        ("QUERY /stats HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![405], false),
        ("TRACE /stats HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![405], false),
        ("POST /stats HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![405], false),
        ("BREW /event HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![501], false),
        ("get /health HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![501], false),
        ("GET /none HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![404], false),
        // The Accept field.
        (get("Accept:\r\n"), vec![200], false),
        (get("Accept: a\r\nAccept: b\r\n"), vec![200], false),
        // Expectations.
        (get("Expect: 100-continue\r\n"), vec![200], false),
        (get("Expect: 200-ok\r\n"), vec![417], true),
    ];
    for length in ["", " ", "+1", "-1", "0x1", "1_0", "1 1", "1,1", "1a", "18446744073709551616"] {
        table.push((get(&format!("Content-Length: {length}\r\n")), vec![400], true));
    }
    table.push((get("Content-Length: 18446744073709551615\r\n"), vec![413], true));
    table
}

#[test]
fn every_request_has_its_response() {
    for (input, expected, closes) in table() {
        assert_eq!(statuses(input.as_bytes()), (expected, closes), "{input:?}");
    }
}

#[test]
fn a_request_split_at_any_byte_has_the_same_response() {
    for (input, ..) in table() {
        let input = input.as_bytes();
        let whole = exchange(input);
        for at in 0..=input.len() {
            let pieces = [&input[..at], &input[at..]].map(<[u8]>::to_vec).into_iter();
            assert_eq!(exchange_in(pieces), whole, "{} at {at}", input.escape_ascii());
        }
        let bytes = input.iter().map(|byte| vec![*byte]);
        assert_eq!(exchange_in(bytes), whole, "{} byte by byte", input.escape_ascii());
    }
}

proptest! {
    #[test]
    fn pipelined_requests_in_random_pieces_have_the_same_responses(
        picks in prop::collection::vec(0..1000usize, 1..30),
        cuts in prop::collection::vec(0..4000usize, 0..20),
    ) {
        let table = table();
        let input: String = picks.iter().map(|pick| table[pick % table.len()].0.as_str()).collect();
        let input = input.as_bytes();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (input.len() + 1)).collect();
        cuts.extend([0, input.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|cut| input[cut[0]..cut[1]].to_vec());
        prop_assert_eq!(exchange_in(pieces), exchange(input));
    }

    #[test]
    fn no_bytes_cause_a_panic(input in prop::collection::vec(any::<u8>(), 0..300)) {
        exchange(&input);
        let framed = [b"POST /event HTTP/1.1\r\nHost: h\r\n", &input[..]].concat();
        exchange(&framed);
    }
}

/// A shard does not parse a head again that it has seen. With each byte of a request changed in turn, its response must match
/// the response of a shard that has seen nothing.
#[test]
fn a_head_that_was_seen_before_never_stands_for_another() {
    let chunked = "POST /event HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let from_page = format!(
        "POST /event HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n\
         Sec-Fetch-Site: same-origin\r\nContent-Length: 24\r\n\r\n{EVENT}"
    );
    let inputs =
        [(post("/event", EVENT), get("")), (chunked.into(), get("")), (from_page, get(""))];
    for (input, follower) in inputs {
        let mut warm = Core::new();
        warm.feed(input.as_bytes());
        for at in 0..input.len() {
            for byte in 0..=u8::MAX {
                let mut changed = input.clone().into_bytes();
                changed[at] = byte;
                let changed = [&changed, follower.as_bytes()].concat();
                // The original head comes again, so that the changed head is always compared with it.
                warm.connection = Connection::new(LIMITS, true, 0);
                warm.feed(input.as_bytes());
                warm.out.clear();
                warm.feed(&changed);
                let text = |out| String::from_utf8(out).unwrap();
                assert_eq!(
                    text(std::mem::take(&mut warm.out)),
                    text(exchange(&changed).0),
                    "{}",
                    changed.escape_ascii()
                );
            }
        }
    }
}

/// A head that is four times as long and comes byte by byte takes about four times as long to read. If the whole head were
/// examined again for every byte, it would take sixteen times as long.
#[test]
fn a_head_that_comes_byte_by_byte_costs_linear_time() {
    let cost = |length: usize| {
        let input = get(&format!("A: {}\r\n", "b".repeat(length)));
        let once = || {
            let mut core = Core::new();
            let start = std::time::Instant::now();
            input.bytes().for_each(|byte| {
                core.connection.renew();
                core.connection.receive(&[byte], &core.moment, &mut core.service);
            });
            core.feed(b"");
            assert_eq!(split_responses(&core.out)[0].status, 200);
            start.elapsed()
        };
        // Other load on this machine only adds to the time.
        (0..20).map(|_| once()).min().unwrap()
    };
    let (short, long) = (cost(HEAD_BYTES_MAX / 4 - 100), cost(HEAD_BYTES_MAX - 100));
    assert!(long < 8 * short, "{short:?} and {long:?}");
}

#[test]
fn events_of_a_connection_are_in_the_stats_that_follow_on_it() {
    let mut core = Core::new();
    let input = post("/event", EVENT).repeat(50) + "GET /stats HTTP/1.1\r\nHost: h\r\n\r\n";
    let responses = core.responses(input.as_bytes());
    let expected = r#"{"totalRequests":50,"uniqueUsers":1,"sum":50.0,"avg":1.0}"#;
    assert_eq!(responses[50].body, expected);
    let zero = r#"{"totalRequests":0,"uniqueUsers":0,"sum":0.0,"avg":0.0}"#;
    let after = core.responses(
        b"POST /reset HTTP/1.1\r\nHost: localhost\r\n\r\nGET /stats HTTP/1.1\r\nHost: h\r\n\r\n",
    );
    assert_eq!((after[0].body.as_str(), after[1].body.as_str()), (r#"{"status":"reset"}"#, zero));
}

#[test]
fn acknowledgements_are_in_the_dialect() {
    let (out, _) = exchange(post("/event", EVENT).as_bytes());
    let date = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    let expected = format!("HTTP/1.1 200 OK\r\n{date}Content-Length: 0\r\n\r\n");
    assert_eq!(String::from_utf8(out).unwrap(), expected);
    let mut core = Core::with(Dialect::Fasterapi, None, true);
    let response = core.responses(post("/event", EVENT).as_bytes()).remove(0);
    assert_eq!((response.status, response.body.as_str()), (201, r#"{"status":"ok"}"#));
    assert_eq!(response.field("content-type"), Some("application/json"));
}

#[test]
fn a_client_that_speaks_http_2_is_told_so_in_its_frames() {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for pieces in [1, 5, preface.len()] {
        let mut core = Core::new();
        let mut closes = false;
        for piece in preface.chunks(pieces) {
            closes = core.feed(piece);
        }
        assert!(closes);
        // A frame is its length, type, flags, and stream, and then its payload (RFC 9113 section 4.1): SETTINGS without a
        // payload, and GOAWAY with the last stream and HTTP_1_1_REQUIRED.
        let frames: [&[u8]; 2] =
            [&[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13]];
        assert_eq!(core.out, frames.concat());
    }
}

#[test]
fn a_large_body_matters_only_where_a_small_one_is_taken() {
    let large = "x".repeat(20_000);
    let sized = |method: &str, path: &str| {
        let length = large.len();
        format!("{method} {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{large}")
    };
    let chunked = |method: &str, path: &str| {
        let fields = "Host: h\r\nTransfer-Encoding: chunked\r\n";
        format!("{method} {path} HTTP/1.1\r\n{fields}\r\n{:x}\r\n{large}\r\n0\r\n\r\n", large.len())
    };
    for (method, path, status) in [
        ("POST", "/event", 413),
        ("GET", "/stats", 413),
        ("OPTIONS", "/stats", 413),
        ("OPTIONS", "*", 413),
        ("PUT", "/events", 405),
        ("PUT", "/event", 405),
        ("POST", "/stats", 405),
        ("GET", "/event", 405),
        ("POST", "/nope", 404),
        ("OPTIONS", "/nope", 404),
        ("BREW", "/event", 501),
    ] {
        for request in [sized(method, path), chunked(method, path)] {
            let (out, closes) = exchange(request.as_bytes());
            let responses = split_responses(&out);
            assert_eq!((responses.len(), closes), (1, true), "{method} {path}");
            assert_eq!(responses[0].status, status, "{method} {path}");
            assert_eq!(responses[0].field("allow").is_some(), matches!(status, 405 | 501));
            assert_eq!(responses[0].field("connection"), Some("close"));
        }
        let waits = sized(method, path).replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
        let head = waits.split_once("\r\n\r\n").unwrap().0.to_owned() + "\r\n\r\n";
        assert_eq!(statuses(head.as_bytes()), (vec![status], true), "{head}");
    }
}

#[test]
fn an_event_with_a_content_coding_is_refused_for_that() {
    let body = r#"{"userId":"u","value":1}"#;
    for (coding, status) in [("gzip", 415), ("identity, br", 415), ("identity", 200)] {
        let request = format!(
            "POST /event HTTP/1.1\r\nHost: h\r\nContent-Encoding: {coding}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut core = Core::new();
        let response = core.responses(request.as_bytes()).remove(0);
        assert_eq!(response.status, status, "{coding}");
        let accepts = response.field("accept-encoding");
        assert_eq!(accepts, (status == 415).then_some("identity"));
        assert_eq!(response.field("connection"), None, "the end of the request is known");
    }
}

#[test]
fn the_metrics_are_not_made_for_a_response_without_a_body() {
    let mut core = Core::new();
    let ask = "Host: h\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n";
    let get = core.responses(format!("GET /metrics HTTP/1.1\r\n{ask}").as_bytes()).remove(0);
    core.feed(format!("HEAD /metrics HTTP/1.1\r\n{ask}").as_bytes());
    let head = String::from_utf8(std::mem::take(&mut core.out)).unwrap();
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    let content_type = format!("\r\nContent-Type: {}\r\n", get.field("content-type").unwrap());
    assert!(head.contains(&content_type) && head.contains("\r\nVary: Accept\r\n"), "{head}");
    // Its length is known only after it is made (RFC 9110 section 9.3.2).
    assert!(!head.contains("Content-Length"), "{head}");
    assert!(get.field("content-length").is_some());
}

#[test]
fn errors_are_json_and_announce_a_close_and_allowed_methods() {
    for (input, expected, closes) in table() {
        let responses = split_responses(&exchange(input.as_bytes()).0);
        let last = responses.last().unwrap();
        assert_eq!(last.field("connection") == Some("close"), closes, "{input:?}");
        assert!(last.field("date").is_some());
        for response in responses.iter().filter(|response| response.status >= 400) {
            let json: serde_json::Value = serde_json::from_str(&response.body).unwrap();
            assert!(json["error"].is_string(), "{}", response.body);
            assert_eq!(response.field("content-type"), Some("application/json"));
        }
        if let Some(405) = expected.last() {
            assert!(last.field("allow").is_some(), "{input:?}");
        }
    }
}

/// Returns whether a response has a body. Responses without bodies are heads only, one after the other.
fn has_a_body(out: &[u8]) -> bool {
    let mut rest = out;
    while !rest.is_empty() {
        let end = memchr::memmem::find(rest, b"\r\n\r\n");
        if !rest.starts_with(b"HTTP/1.1 ") || end.is_none() {
            return true;
        }
        rest = &rest[end.unwrap() + 4..];
    }
    false
}

#[test]
fn head_is_get_without_the_body() {
    let targets = [
        ("/stats", 200),
        ("/health", 200),
        ("/", 200),
        ("/none", 404),
        ("/event", 405),
        ("/reset", 405),
        ("/%zz", 400),
        ("/a#b", 400),
        ("*", 400),
        ("nonsense", 400),
    ];
    for (target, status) in targets {
        let ask = |method| {
            let input = format!("{method} {target} HTTP/1.1\r\nHost: h\r\n\r\n");
            String::from_utf8(exchange(input.as_bytes()).0).unwrap()
        };
        let (head, body) =
            ask("GET").split_once("\r\n\r\n").map(|(h, b)| (h.to_owned(), b.to_owned())).unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")) && !body.is_empty(), "{head}");
        assert_eq!(ask("HEAD"), head + "\r\n\r\n", "{target}");
    }
}

#[test]
fn no_response_to_head_has_a_body() {
    let long = "x".repeat(REQUEST_LINE_BYTES_MAX);
    let requests = [
        ("HEAD /health HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("HEAD /health HTTP/1.1\nHost: h\r\n\r\n".into(), 400),
        ("HEAD /health HTTP/3.0\r\nHost: h\r\n\r\n".into(), 505),
        ("HEAD /health\r\n\r\n".into(), 400),
        ("HEAD \r\n\r\n".into(), 400),
        (format!("HEAD /{long} HTTP/1.1\r\n"), 414),
        (format!("HEAD / HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(FIELDS_MAX)), 431),
        (format!("HEAD / HTTP/1.1\r\nA: {long}\r\nB: {long}\r\n\r\n"), 431),
        ("HEAD / HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n".into(), 413),
        ("HEAD / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n".into(), 400),
        ("HEAD / HTTP/1.1\r\nHost: h\r\nExpect: x\r\n\r\n".into(), 417),
        ("HEAD /%zz HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc".into(), 400),
        ("HEAD / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".into(), 501),
        ("HEAD / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;\r\n".into(), 400),
        (
            "HEAD /%zz HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            400,
        ),
        (
            "HEAD /%zz HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
                .into(),
            400,
        ),
    ];
    for (input, status) in requests {
        for before in ["", "\r\n"] {
            let input = format!("{before}{input}");
            let (whole, closes) = exchange(input.as_bytes());
            assert!(whole.starts_with(format!("HTTP/1.1 {status} ").as_bytes()), "{input:?}");
            assert!(closes && !has_a_body(&whole), "{input:?}: {}", whole.escape_ascii());
            let bytes = input.bytes().map(|byte| vec![byte]);
            assert_eq!(exchange_in(bytes), (whole, true), "{input:?} byte by byte");
        }
    }
    // The rest of these HEAD requests does not come, whatever it would be.
    for begun in [
        "H",
        "HEAD",
        "HEAD ",
        "HEAD /health HTTP/1.1\r\nHost",
        "HEAD / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\na",
        "HEAD / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\na",
    ] {
        let mut core = Core::new();
        core.feed(begun.as_bytes());
        assert_eq!(core.expire(), Due::Act, "{begun:?}");
        assert!(core.out.starts_with(b"HTTP/1.1 408 ") && !has_a_body(&core.out), "{begun:?}");
    }
    // Other requests get a body.
    for input in ["HEADS / HTTP/1.1\r\n\r\n", "GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n"] {
        assert!(has_a_body(&exchange(input.as_bytes()).0), "{input:?}");
    }
}

#[test]
fn every_limit_holds_one_below_at_and_one_above() {
    let line = |bytes: usize| {
        let start = "GET /health?";
        let end = " HTTP/1.1";
        let query = "x".repeat(bytes - start.len() - end.len());
        format!("{start}{query}{end}\r\nHost: h\r\n\r\n")
    };
    let head = |bytes: usize| {
        let without = get("A: \r\n").len();
        get(&format!("A: {}\r\n", "x".repeat(bytes - without)))
    };
    let fields = |count: usize| get(&"A: b\r\n".repeat(count - 1));
    let body = |bytes: usize| {
        let padding = " ".repeat(bytes - EVENT.len());
        post("/event", &format!("{EVENT}{padding}"))
    };
    let framing = |bytes: usize| {
        let extension = "x".repeat(bytes - "18;".len() - 2 - 2 - "0\r\n\r\n".len());
        let wire = format!("18;{extension}\r\n{EVENT}\r\n0\r\n\r\n");
        format!("POST /event HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{wire}")
    };
    type Make<'a> = &'a dyn Fn(usize) -> String;
    let limits: [(Make, usize, u16); 5] = [
        (&line, REQUEST_LINE_BYTES_MAX, 414),
        (&head, HEAD_BYTES_MAX, 431),
        (&fields, FIELDS_MAX, 431),
        (&body, BODY_BYTES_MAX, 413),
        (&framing, CHUNK_FRAMING_BYTES_MAX, 413),
    ];
    for (make, limit, status) in limits {
        for (size, expected) in [(limit - 1, 200), (limit, 200), (limit + 1, status)] {
            let input = make(size);
            let whole = statuses(input.as_bytes());
            assert_eq!(whole, (vec![expected], expected != 200), "{size} of {limit}");
            let bytes = input.bytes().map(|byte| vec![byte]);
            assert_eq!(exchange_in(bytes), exchange(input.as_bytes()), "{size} byte by byte");
        }
    }
}

#[test]
fn a_body_over_the_limit_is_refused_before_it_arrives() {
    let head = format!(
        "POST /event HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n",
        BODY_BYTES_MAX + 1
    );
    assert_eq!(statuses(head.as_bytes()), (vec![413], true));
}

#[test]
fn a_client_that_waits_is_told_to_continue_only_where_the_body_is_wanted() {
    let head = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: {}\r\n\r\n",
            EVENT.len()
        )
    };
    let mut core = Core::new();
    assert_eq!(core.responses(head("/event").as_bytes())[0].status, 100);
    assert_eq!(core.responses(EVENT.as_bytes())[0].status, 200);
    // A client whose body has already arrived does not wait.
    assert_eq!(statuses((head("/event") + EVENT).as_bytes()), (vec![200], false));
    assert_eq!(statuses(head("/reset").as_bytes()).0.len(), 1);
    assert_eq!(statuses(head("/none").as_bytes()), (vec![404], true));
    let cross_site = head("/event").replacen("Expect", "Origin: null\r\nExpect", 1);
    assert_eq!(statuses(cross_site.as_bytes()), (vec![403], true));
}

#[test]
fn deadlines_follow_the_request_and_trickling_bytes_do_not_extend_them() {
    let mut core = Core::new();
    assert_eq!(core.connection.deadline_ms(), 1000);
    core.moment.now_ms = 900;
    core.feed(b"POST /ev");
    assert_eq!(core.connection.deadline_ms(), 1000, "900 and 100 for the head");
    core.moment.now_ms = 950;
    core.feed(b"ent HTTP/1.1\r\nHost: h\r\n");
    assert_eq!(core.connection.deadline_ms(), 1000);
    core.moment.now_ms = 990;
    core.feed(b"Content-Length: 24\r\n\r\n{");
    assert_eq!(core.connection.deadline_ms(), 1190, "990 and 200 for the body");
    core.moment.now_ms = 1100;
    core.feed(b"\"userId\"");
    assert_eq!(core.connection.deadline_ms(), 1190);
    core.moment.now_ms = 1180;
    assert_eq!(core.responses(b":\"u\",\"value\":1}")[0].status, 200);
    assert_eq!(core.connection.deadline_ms(), 2180, "1180 and 1000 for the next request");
    assert!(core.connection.is_idle());
}

#[test]
fn a_late_request_gets_408_and_a_silent_connection_gets_nothing() {
    let mut core = Core::new();
    core.feed(b"GET /");
    assert_eq!(core.expire(), Due::Act);
    let responses = split_responses(&core.out);
    assert_eq!((responses[0].status, responses[0].field("connection")), (408, Some("close")));
    let mut core = Core::new();
    assert_eq!(core.expire(), Due::CloseIdle);
    assert!(core.out.is_empty());
}

#[test]
fn a_draining_connection_responds_to_all_that_arrived_and_announces_the_close_last() {
    let mut core = Core::new();
    core.feed(b"GET /health HTTP/1.1\r\n");
    core.moment.urgency = Urgency::Drain;
    assert!(!core.connection.is_idle());
    let responses = core.responses(b"Host: h\r\n\r\nGET /health HTTP/1.1\r\nHost: h\r\n\r\n");
    let close: Vec<_> = responses.iter().map(|response| response.field("connection")).collect();
    assert_eq!(close, [None, Some("close")]);
}

/// The requests that a page of another site can make a browser send, with any path and with a simple media type. Browsers send
/// these without asking anybody.
#[test]
fn a_page_of_another_site_changes_nothing() {
    const TOTALS: &str = "GET /stats HTTP/1.1\r\nHost: h\r\n\r\n";
    let from_our_page =
        "Host: localhost\r\nOrigin: http://localhost\r\nSec-Fetch-Site: same-origin\r\n";
    for (fields, is_cross_site) in [
        ("Host: h\r\n", false),
        ("Host: evil.example\r\n", false),
        ("Host:\r\n", false),
        ("Host: h\r\nReferer: https://evil.example/\r\nCookie: a=b\r\n", false),
        (from_our_page, false),
        ("Host: LOCALHOST:8000\r\nOrigin: http://localhost:8000\r\n", false),
        ("Host: [::1]:8000\r\norigin: http://[::1]:8000\r\n", false),
        ("Host: 192.0.2.1:8000\r\nOrigin: http://192.0.2.1:8000\r\n", false),
        ("Host: 127.0.0.1\r\nSec-Fetch-Site: same-origin\r\n", false),
        ("Host: localhost\r\nOrigin: https://evil.example\r\n", true),
        ("Host: localhost\r\nOrigin: null\r\n", true),
        ("Host: localhost\r\nOrigin:\r\n", true),
        ("Host: localhost\r\nOrigin: http://localhost:1\r\n", true),
        ("Host: localhost\r\nOrigin: https://localhost\r\n", true),
        ("Host: localhost\r\nOrigin: http://localhost.evil.example\r\n", true),
        ("Host: localhost\r\nOrigin: http://localhost\r\nOrigin: http://localhost\r\n", true),
        ("Host: localhost\r\nSec-Fetch-Site: cross-site\r\n", true),
        ("Host: localhost\r\nSec-Fetch-Site: same-site\r\n", true),
        ("Host: localhost\r\nSec-Fetch-Site: none\r\n", true),
        ("Host: localhost\r\nSec-Fetch-Site:\r\n", true),
        ("Host: localhost\r\nOrigin: http://localhost\r\nSec-Fetch-Site: cross-site\r\n", true),
        // A name that was made to point to this machine has the origin of the page.
        ("Host: evil.example\r\nOrigin: http://evil.example\r\n", true),
        ("Host: evil.example\r\nSec-Fetch-Site: same-origin\r\n", true),
        ("Host:\r\nOrigin: http://\r\n", true),
    ] {
        let head = |path: &str, more: &str| {
            format!("POST {path} HTTP/1.1\r\n{fields}Content-Type: text/plain\r\n{more}\r\n")
        };
        let event = head("/event", "Content-Length: 24\r\n") + EVENT;
        let chunks = format!("18\r\n{EVENT}\r\n0\r\n\r\n");
        let chunked = head("/event?x", "Transfer-Encoding: chunked\r\n") + &chunks;
        // The second of two equal heads is not parsed.
        for input in [event.clone(), event.repeat(2), chunked] {
            let mut core = Core::new();
            let mut responses = core.responses((input.clone() + TOTALS).as_bytes());
            let totals = responses.pop().unwrap().body;
            let status = if is_cross_site { 403 } else { 200 };
            assert!(responses.iter().all(|response| response.status == status), "{input:?}");
            let counted = if is_cross_site { 0 } else { responses.len() };
            assert!(totals.starts_with(&format!("{{\"totalRequests\":{counted},")), "{input:?}");
        }
        if is_cross_site {
            for path in ["/reset", "/stats", "/none"] {
                assert_eq!(statuses(head(path, "").as_bytes()), (vec![403], false), "{fields:?}");
            }
            // Requests that do not change anything are not refused.
            let get = format!("GET /health HTTP/1.1\r\n{fields}\r\n");
            assert_eq!(statuses(get.as_bytes()), (vec![200], false), "{fields:?}");
        }
    }
    // The host of an absolute-form target overrides Host (RFC 9112 section 3.2.2).
    for (target, host, status) in [
        ("http://localhost/event", "evil.example", 200),
        ("http://evil.example/event", "localhost", 403),
    ] {
        let input = format!(
            "POST {target} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://localhost\r\n\
             Content-Length: 24\r\n\r\n{EVENT}"
        );
        assert_eq!(statuses(input.as_bytes()), (vec![status], false), "{input:?}");
    }
}

#[test]
fn a_reset_is_for_this_machine_or_for_those_with_the_token() {
    let ask_over = |version: &str, token: Option<&str>, is_loopback: bool, fields: &str| {
        let mut core = Core::with(Dialect::Original, token, is_loopback);
        core.responses(post("/event", EVENT).as_bytes());
        let input = format!(
            "POST /reset HTTP/{version}\r\n{fields}\r\nGET /stats HTTP/1.1\r\nHost: h\r\n\r\n"
        );
        let responses = core.responses(input.as_bytes());
        let is_reset = responses[1].body.starts_with("{\"totalRequests\":0,");
        assert_eq!(is_reset, responses[0].status == 200, "{fields:?}");
        responses[0].status
    };
    let ask = |token, is_loopback, fields: &str| ask_over("1.1", token, is_loopback, fields);
    for (fields, status) in [
        ("Host: localhost:8000\r\n", 200),
        ("Host: 127.0.0.1\r\n", 200),
        ("Host: [::1]:8000\r\n", 200),
        ("Host: 192.0.2.1:8000\r\n", 200),
        ("Host:\r\n", 403),
        ("Host: evil.example\r\n", 403),
        ("Host: localhost.evil.example\r\n", 403),
        ("Host: localhost\r\nOrigin: http://localhost\r\nSec-Fetch-Site: same-origin\r\n", 200),
        ("Host: localhost\r\nOrigin: https://evil.example\r\n", 403),
        // Through a reverse proxy on this machine, everybody is a loopback peer.
        ("Host: localhost\r\nForwarded: for=192.0.2.9\r\n", 403),
        ("Host: localhost\r\nX-Forwarded-For: 127.0.0.1\r\n", 403),
        ("Host: localhost\r\nx-forwarded-for:\r\n", 403),
        ("Host: localhost\r\nX-Forwarded-Host: example.com\r\n", 403),
        ("Host: localhost\r\nX-Forwarded-Proto: https\r\n", 403),
        ("Host: localhost\r\nx-forwarded-anything: 1\r\n", 403),
        ("Host: localhost\r\nX-Real-IP: 192.0.2.9\r\n", 403),
        ("Host: localhost\r\nX-Forwarded: 1\r\nX-Real-Ip4: 192.0.2.9\r\n", 200),
        ("Host: localhost\r\nVIA: 1.1 proxy\r\n", 403),
        ("Host: localhost\r\nX-Via: 1.1 proxy\r\n", 200),
    ] {
        assert_eq!(ask(None, true, fields), status, "{fields:?}");
        assert_eq!(ask(None, false, fields), 403, "{fields:?} from another machine");
    }
    // nginx's default, which adds no field.
    let fields = "Host: 127.0.0.1:8000\r\nConnection: keep-alive\r\n";
    assert_eq!(ask_over("1.0", None, true, fields), 403);
    let fields = format!("{fields}Authorization: Bearer s3cret\r\n");
    assert_eq!(ask_over("1.0", Some("s3cret"), true, &fields), 200);
    for (fields, status) in [
        ("Host: h\r\nAuthorization: Bearer s3cret\r\n", 200),
        ("Host: h\r\nAuthorization: bearer  s3cret\r\n", 200),
        ("Host: h\r\nAuthorization: Bearer s3cret\r\nVia: 1.1 proxy\r\n", 200),
        ("Host: h\r\nAuthorization: Bearer s3cret\r\nX-Forwarded-For: 192.0.2.9\r\n", 200),
        ("Host: h\r\nAuthorization: Bearer s3cret\r\nOrigin: https://evil.example\r\n", 403),
        ("Host: h\r\nAuthorization: Bearer s3cre\r\n", 401),
        ("Host: h\r\nAuthorization: Bearer s3cret2\r\n", 401),
        ("Host: h\r\nAuthorization: Basic s3cret\r\n", 401),
        ("Host: h\r\nAuthorization: Bearer s3cret\r\nAuthorization: Bearer s3cret\r\n", 401),
        ("Host: localhost\r\n", 401),
        ("Host: localhost\r\nVia: 1.1 proxy\r\n", 401),
    ] {
        assert_eq!(ask(Some("s3cret"), false, fields), status, "{fields:?}");
        assert_eq!(ask(Some("s3cret"), true, fields), status, "{fields:?}");
    }
}

#[test]
fn a_chunk_extension_needs_a_name() {
    for (extension, status) in
        [("", 200), (";a", 200), (";a=b", 200), (";", 400), ("; ", 400), (";=b", 400), (";a;", 400)]
    {
        let input = format!(
            "POST /event HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
             18{extension}\r\n{EVENT}\r\n0\r\n\r\n"
        );
        assert_eq!(statuses(input.as_bytes()), (vec![status], status != 200), "{extension:?}");
    }
}
