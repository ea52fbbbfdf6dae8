//! The pure core, `http` and `service` together: raw bytes in, raw answers out, without a socket.

#![allow(clippy::unwrap_used, reason = "a panic is a failure")]

mod common;

use common::{Response, post, split_responses};
use proptest::prelude::*;
use ringtally::http::{
    CHUNK_FRAMING_BYTES_MAX, Connection, FIELDS_MAX, HEAD_BYTES_MAX, Limits, Outcome,
    REQUEST_LINE_BYTES_MAX, Timeouts, UNSENT_BYTES_MAX,
};
use ringtally::metrics::Reporter;
use ringtally::service::{Dialect, Policy, Service};
use ringtally::tally::Tally;
use std::sync::Arc;

const BODY_BYTES_MAX: usize = 1000;
const LIMITS: Limits = Limits {
    body_bytes_max: BODY_BYTES_MAX,
    timeouts: Timeouts { header_ms: 100, body_ms: 200, idle_ms: 1000 },
};

/// One connection and the shard behind it.
struct Core {
    connection: Connection,
    service: Service,
    out: Vec<u8>,
    now_ms: u64,
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
            host: "192.0.2.1".into(),
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
            now_ms: 0,
        }
    }

    /// Feeds one piece, and goes on for as long as answers hold requests back.
    fn feed(&mut self, input: &[u8]) -> Outcome {
        let mut outcome =
            self.connection.receive(input, self.now_ms, &mut self.service, &mut self.out);
        let mut sent = Vec::new();
        while outcome == Outcome::Resume {
            assert!(self.out.len() < UNSENT_BYTES_MAX + 1000, "one answer over the mark at most");
            sent.append(&mut self.out);
            outcome = self.connection.resume(self.now_ms, &mut self.service, &mut self.out);
        }
        sent.append(&mut self.out);
        self.out = sent;
        self.service.commit();
        outcome
    }

    fn answers(&mut self, input: &[u8]) -> Vec<Response> {
        self.feed(input);
        split_responses(&std::mem::take(&mut self.out))
    }
}

/// The answers to bytes that come whole, and whether the connection closes.
fn exchange(input: &[u8]) -> (Vec<u8>, bool) {
    let mut core = Core::new();
    let outcome = core.feed(input);
    (core.out, outcome == Outcome::Close)
}

/// The same for bytes that come in pieces.
fn exchange_in(pieces: impl Iterator<Item = Vec<u8>>) -> (Vec<u8>, bool) {
    let mut core = Core::new();
    let mut closes = false;
    for piece in pieces {
        closes |= core.feed(&piece) == Outcome::Close;
    }
    (core.out, closes)
}

fn statuses(input: &[u8]) -> (Vec<u16>, bool) {
    let (out, closes) = exchange(input);
    (split_responses(&out).iter().map(|answer| answer.status).collect(), closes)
}

const EVENT: &str = r#"{"userId":"u","value":1}"#;

/// A GET with further fields.
fn get(fields: &str) -> String {
    format!("GET /health HTTP/1.1\r\nHost: h\r\n{fields}\r\n")
}

/// Requests of every kind, with what they are answered: statuses, and whether the connection
/// closes after them.
fn table() -> Vec<(String, Vec<u16>, bool)> {
    let chunked = |wire: &str| {
        format!("POST /event HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{wire}")
    };
    let host = |host: &str| format!("GET /health HTTP/1.1\r\n{host}\r\n");
    let mut table = vec![
        (post("/event", EVENT), vec![200], false),
        // Published clients differ in what they call it.
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
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), vec![505], true),
        ("\x16\x03\x01\x02\x00\x01\x00".into(), vec![400], true),
        ("nonsense\r\n\r\n".into(), vec![400], true),
        (get("Connection: close\r\n") + &get(""), vec![200], true),
        (get("Connection: x, CLOSE\r\n") + &get(""), vec![200], true),
        (get("Connection: closed\r\n") + &get(""), vec![200, 200], false),
        // Bodies where none is wanted are never requests.
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
        ("TRACE /stats HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![405], false),
        ("POST /stats HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![405], false),
        ("BREW /event HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![501], false),
        ("get /health HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![501], false),
        ("GET /none HTTP/1.1\r\nHost: h\r\n\r\n".into(), vec![404], false),
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
fn every_request_has_its_answer() {
    for (input, expected, closes) in table() {
        assert_eq!(statuses(input.as_bytes()), (expected, closes), "{input:?}");
    }
}

#[test]
fn a_request_split_at_any_byte_has_the_same_answer() {
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
    fn pipelined_requests_in_random_pieces_have_the_same_answers(
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
    fn no_bytes_make_it_panic(input in prop::collection::vec(any::<u8>(), 0..300)) {
        exchange(&input);
        let framed = [b"POST /event HTTP/1.1\r\nHost: h\r\n", &input[..]].concat();
        exchange(&framed);
    }
}

/// A head that a shard has seen answers for the next one that looks like it. With every byte of
/// a request changed in turn, the answer is the one of a shard that has seen nothing.
#[test]
fn a_head_that_was_seen_before_never_answers_for_another() {
    let chunked = "POST /event HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    for (input, follower) in [(post("/event", EVENT), get("")), (chunked.into(), get(""))] {
        let mut warm = Core::new();
        warm.feed(input.as_bytes());
        for at in 0..input.len() {
            for byte in 0..=u8::MAX {
                let mut changed = input.clone().into_bytes();
                changed[at] = byte;
                let changed = [&changed, follower.as_bytes()].concat();
                // Its own head once more, so that the changed one is always compared with it.
                warm.connection = Connection::new(LIMITS, true, 0);
                warm.feed(input.as_bytes());
                warm.out.clear();
                warm.feed(&changed);
                let answers = |out| String::from_utf8(out).unwrap();
                assert_eq!(
                    answers(std::mem::take(&mut warm.out)),
                    answers(exchange(&changed).0),
                    "{}",
                    changed.escape_ascii()
                );
            }
        }
    }
}

/// Four times as long, a head that comes byte by byte costs about four times the time; with a look
/// at all of it for every byte it would be sixteen times.
#[test]
fn a_head_that_comes_byte_by_byte_costs_linear_time() {
    let cost = |length: usize| {
        let input = get(&format!("A: {}\r\n", "b".repeat(length)));
        let once = || {
            let mut core = Core::new();
            let start = std::time::Instant::now();
            input.bytes().for_each(|byte| {
                core.connection.receive(&[byte], 0, &mut core.service, &mut core.out);
            });
            assert_eq!(split_responses(&core.out)[0].status, 200);
            start.elapsed()
        };
        // Whatever else runs here only adds to it.
        (0..20).map(|_| once()).min().unwrap()
    };
    let (short, long) = (cost(HEAD_BYTES_MAX / 4 - 100), cost(HEAD_BYTES_MAX - 100));
    assert!(long < 8 * short, "{short:?} and {long:?}");
}

#[test]
fn events_of_a_connection_are_in_the_stats_that_follow_on_it() {
    let mut core = Core::new();
    let input = post("/event", EVENT).repeat(50) + "GET /stats HTTP/1.1\r\nHost: h\r\n\r\n";
    let answers = core.answers(input.as_bytes());
    let expected = r#"{"totalRequests":50,"uniqueUsers":1,"sum":50.0,"avg":1.0}"#;
    assert_eq!(answers[50].body, expected);
    let zero = r#"{"totalRequests":0,"uniqueUsers":0,"sum":0.0,"avg":0.0}"#;
    let after = core.answers(
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
    let answer = core.answers(post("/event", EVENT).as_bytes()).remove(0);
    assert_eq!((answer.status, answer.body.as_str()), (201, r#"{"status":"ok"}"#));
    assert_eq!(answer.field("content-type"), Some("application/json"));
}

#[test]
fn errors_are_json_and_say_what_closes_and_what_is_allowed() {
    for (input, expected, closes) in table() {
        let answers = split_responses(&exchange(input.as_bytes()).0);
        let last = answers.last().unwrap();
        assert_eq!(last.field("connection") == Some("close"), closes, "{input:?}");
        assert!(last.field("date").is_some());
        for answer in answers.iter().filter(|answer| answer.status >= 400) {
            let json: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
            assert!(json["error"].is_string(), "{}", answer.body);
            assert_eq!(answer.field("content-type"), Some("application/json"));
        }
        if let Some(405) = expected.last() {
            assert!(last.field("allow").is_some(), "{input:?}");
        }
    }
}

#[test]
fn head_is_get_without_the_body() {
    for path in ["/stats", "/health"] {
        let ask = |method| {
            let input = format!("{method} {path} HTTP/1.1\r\nHost: h\r\n\r\n");
            String::from_utf8(exchange(input.as_bytes()).0).unwrap()
        };
        let (head, _) =
            ask("GET").split_once("\r\n\r\n").map(|(h, b)| (h.to_owned(), b.to_owned())).unwrap();
        assert_eq!(ask("HEAD"), head + "\r\n\r\n");
    }
}

#[test]
fn every_limit_holds_at_one_below_at_and_above() {
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
fn a_body_that_is_too_large_is_refused_before_it_arrives() {
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
    assert_eq!(core.answers(head("/event").as_bytes())[0].status, 100);
    assert_eq!(core.answers(EVENT.as_bytes())[0].status, 200);
    // With the body already there, there is nothing to wait for.
    assert_eq!(statuses((head("/event") + EVENT).as_bytes()), (vec![200], false));
    assert_eq!(statuses(head("/reset").as_bytes()).0.len(), 1);
    assert_eq!(statuses(head("/none").as_bytes()), (vec![404], true));
}

#[test]
fn deadlines_follow_the_request_and_no_drip_extends_them() {
    let mut core = Core::new();
    assert_eq!(core.connection.deadline_ms(), 1000);
    core.now_ms = 900;
    core.feed(b"POST /ev");
    assert_eq!(core.connection.deadline_ms(), 1000, "900 and 100 for the head");
    core.now_ms = 950;
    core.feed(b"ent HTTP/1.1\r\nHost: h\r\n");
    assert_eq!(core.connection.deadline_ms(), 1000);
    core.now_ms = 990;
    core.feed(b"Content-Length: 24\r\n\r\n{");
    assert_eq!(core.connection.deadline_ms(), 1190, "990 and 200 for the body");
    core.now_ms = 1100;
    core.feed(b"\"userId\"");
    assert_eq!(core.connection.deadline_ms(), 1190);
    core.now_ms = 1180;
    assert_eq!(core.answers(b":\"u\",\"value\":1}")[0].status, 200);
    assert_eq!(core.connection.deadline_ms(), 2180, "1180 and 1000 for the next request");
    assert!(core.connection.is_idle());
}

#[test]
fn a_late_request_gets_408_and_a_silent_connection_nothing() {
    let mut core = Core::new();
    core.feed(b"GET /");
    core.connection.expire(&mut core.service, &mut core.out);
    let answers = split_responses(&core.out);
    assert_eq!((answers[0].status, answers[0].field("connection")), (408, Some("close")));
    let mut core = Core::new();
    core.connection.expire(&mut core.service, &mut core.out);
    assert!(core.out.is_empty());
}

#[test]
fn a_draining_connection_answers_what_it_has_and_says_so() {
    let mut core = Core::new();
    core.feed(b"GET /health HTTP/1.1\r\n");
    core.connection.drain();
    assert!(!core.connection.is_idle());
    let answers = core.answers(b"Host: h\r\n\r\nGET /health HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].field("connection"), Some("close"));
}

#[test]
fn a_reset_is_for_this_machine_or_for_who_has_the_token() {
    let ask = |token: Option<&str>, is_loopback: bool, fields: &str| {
        let mut core = Core::with(Dialect::Original, token, is_loopback);
        core.answers(format!("POST /reset HTTP/1.1\r\n{fields}\r\n").as_bytes())[0].status
    };
    for (fields, status) in [
        ("Host: localhost:8000\r\n", 200),
        ("Host: 127.0.0.1\r\n", 200),
        ("Host: [::1]:8000\r\n", 200),
        ("Host: 192.0.2.1:8000\r\n", 200),
        ("Host:\r\n", 200),
        ("Host: evil.example\r\n", 403),
        ("Host: localhost.evil.example\r\n", 403),
        ("Host: localhost\r\nOrigin: http://localhost\r\nSec-Fetch-Site: same-origin\r\n", 200),
        ("Host: localhost\r\nOrigin: http://localhost:1\r\n", 403),
        ("Host: localhost\r\nOrigin: null\r\n", 403),
        ("Host: localhost\r\nOrigin: http://localhost\r\nOrigin: http://localhost\r\n", 403),
        ("Host: localhost\r\nSec-Fetch-Site: cross-site\r\n", 403),
        ("Host: localhost\r\nSec-Fetch-Site: same-site\r\n", 403),
        ("Host: localhost\r\nSec-Fetch-Site: none\r\n", 200),
    ] {
        assert_eq!(ask(None, true, fields), status, "{fields:?}");
        assert_eq!(ask(None, false, fields), 403, "{fields:?} from afar");
    }
    for (fields, status) in [
        ("Host: h\r\nAuthorization: Bearer s3cret\r\n", 200),
        ("Host: h\r\nAuthorization: bearer  s3cret\r\n", 200),
        ("Host: h\r\nAuthorization: Bearer s3cre\r\n", 401),
        ("Host: h\r\nAuthorization: Bearer s3cret2\r\n", 401),
        ("Host: h\r\nAuthorization: Basic s3cret\r\n", 401),
        ("Host: h\r\nAuthorization: Bearer s3cret\r\nAuthorization: Bearer s3cret\r\n", 401),
        ("Host: localhost\r\n", 401),
    ] {
        assert_eq!(ask(Some("s3cret"), false, fields), status, "{fields:?}");
        assert_eq!(ask(Some("s3cret"), true, fields), status, "{fields:?}");
    }
}
