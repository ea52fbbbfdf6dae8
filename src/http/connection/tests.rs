//! The stages of a connection: the answers, the cost, and the end of each.

use super::*;
use crate::http::Timeouts;

const TIMEOUTS: Timeouts = Timeouts { header_ms: 1_000, body_ms: 20_000, idle_ms: 300_000 };
const LIMITS: Limits = Limits { body_bytes_max: 30, batch_bytes_max: 60, timeouts: TIMEOUTS };
const ACCEPTED_MS: u64 = 7;
const NOW_MS: u64 = 50;

const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: h\r\n\r\n";

fn post(path: &str, fields: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n{body}")
}

fn batch(length: usize, body: &str) -> String {
    post("/events", &format!("Content-Length: {length}"), body)
}

const CHUNKED: &str = "Transfer-Encoding: chunked";

struct Rig {
    connection: Connection,
    context: Context,
    /// Bytes that were received and not taken.
    kept: Vec<u8>,
    now_ms: u64,
}

impl Rig {
    fn new() -> Rig {
        let connection = Connection::new(LIMITS, true, ACCEPTED_MS);
        let context = Context::new("h", b"/events", 0);
        Rig { connection, context, kept: Vec::new(), now_ms: NOW_MS }
    }

    /// Takes steps with these bytes until a step has a result. Returns the name of the result.
    fn receive(&mut self, bytes: &str) -> &'static str {
        self.kept.extend_from_slice(bytes.as_bytes());
        loop {
            let (mut rest, mut decoded) = (&self.kept[..], Vec::new());
            let step =
                self.connection.step(&mut rest, &mut decoded, &mut self.context, self.now_ms);
            let name = match step {
                Step::Request(_) => "request",
                Step::Expects(_) => "expects",
                Step::TooLarge(_) => "too large",
                Step::Batch { expects: true, .. } => "batch that expects",
                Step::Batch { .. } => "batch",
                Step::BatchBody(_) => "batch body",
                Step::Refused(Refused { is_head: true, .. }) => "refused HEAD",
                Step::Refused(_) => "refused",
                Step::Advanced => "advanced",
                Step::NeedsMore => "needs more",
                Step::Ended(End::Lingers) => "lingers",
                Step::Ended(End::ClosesAtOnce) => "closes at once",
            };
            let taken = self.kept.len() - rest.len();
            self.kept.drain(..taken);
            if name != "advanced" || self.kept.is_empty() && self.connection.needs_bytes() {
                return name;
            }
        }
    }

    /// Returns the cost of receiving these bytes, and the name of the result.
    fn cost(&mut self, bytes: &str) -> (&'static str, u32) {
        self.connection.budget = Budget::FULL;
        let name = self.receive(bytes);
        (name, self.connection.budget.used())
    }
}

/// Returns a number of bytes as a number of units.
fn units_of(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap()
}

/// The answers of a connection to its caller.
#[derive(Debug, PartialEq)]
struct Told {
    waited: Waited,
    deadline_ms: u64,
    needs_bytes: bool,
    has_begun: bool,
    has_ended: bool,
    has_batch: bool,
    missing: usize,
    body_bytes_kept: usize,
    under_way: &'static str,
    /// Whether a request with a safe method, and one with another method, may overtake.
    may_overtake: [bool; 3],
}

fn told(rig: &Rig) -> Told {
    let connection = &rig.connection;
    Told {
        waited: connection.waited(),
        deadline_ms: connection.deadline_ms(),
        needs_bytes: connection.needs_bytes(),
        has_begun: connection.has_begun(),
        has_ended: connection.has_ended(),
        has_batch: connection.has_batch(),
        missing: connection.missing(),
        body_bytes_kept: connection.body_bytes_kept(),
        under_way: match connection.under_way(&rig.kept) {
            UnderWay::Nothing => "nothing",
            UnderWay::Request(Method::Post, Target::Path(_)) => "a post",
            UnderWay::Request(..) => "another request",
            UnderWay::Batch => "a batch",
        },
        may_overtake: [&b"GET /"[..], b"HEAD /", b"POST /"]
            .map(|data| connection.may_overtake(data)),
    }
}

const IDLE: Told = Told {
    waited: Waited::Idle,
    deadline_ms: ACCEPTED_MS + TIMEOUTS.idle_ms,
    needs_bytes: true,
    has_begun: false,
    has_ended: false,
    has_batch: false,
    missing: 0,
    body_bytes_kept: 0,
    under_way: "nothing",
    may_overtake: [true, true, false],
};
const BODY: Told = Told {
    waited: Waited::Body,
    deadline_ms: NOW_MS + TIMEOUTS.body_ms,
    has_begun: true,
    may_overtake: [false; 3],
    ..IDLE
};
const ENDED: Told = Told {
    deadline_ms: NOW_MS + TIMEOUTS.idle_ms,
    needs_bytes: false,
    has_ended: true,
    may_overtake: [false; 3],
    ..IDLE
};

#[test]
fn each_stage_tells_what_it_waits_for() {
    let after = |inputs: &[&str]| {
        let mut rig = Rig::new();
        for input in inputs {
            rig.receive(input);
        }
        told(&rig)
    };
    assert_eq!(after(&[]), IDLE);
    assert_eq!(after(&["\r\n"]), IDLE, "an empty line is not a request");
    let head = Told {
        waited: Waited::Header,
        deadline_ms: NOW_MS + TIMEOUTS.header_ms,
        has_begun: true,
        may_overtake: [false; 3],
        ..IDLE
    };
    assert_eq!(after(&["POST /ev"]), head);
    let responded = Told { deadline_ms: NOW_MS + TIMEOUTS.idle_ms, ..IDLE };
    assert_eq!(after(&[HEALTH]), responded);
    let whole = post("/event", "Content-Length: 24", "");
    let body = Told { body_bytes_kept: whole.len() + 24, under_way: "a post", ..BODY };
    assert_eq!(after(&[&whole]), body);
    assert_eq!(after(&[&post("/event", CHUNKED, "5\r\nab")]), Told { under_way: "a post", ..BODY });
    let of_batch = Told { under_way: "a batch", ..BODY };
    assert_eq!(after(&[&batch(9, "four")]), Told { missing: 9, ..of_batch }, "offered");
    assert_eq!(after(&[&batch(9, "four"), ""]), Told { missing: 5, ..of_batch }, "accepted");
    assert_eq!(after(&[&post("/events", CHUNKED, "5\r\nab"), ""]), of_batch);
    assert_eq!(after(&[&batch(0, "")]), Told { needs_bytes: false, ..of_batch });
    let whole_batch = Told {
        deadline_ms: u64::MAX,
        needs_bytes: false,
        has_batch: true,
        under_way: "a batch",
        ..BODY
    };
    assert_eq!(after(&[&batch(4, "four"), ""]), whole_batch);
    assert!(after(&["nonsense\r\n\r\n"]).has_ended);
    assert_eq!(after(&[&post("/event", "Content-Length: 31", "")]), ENDED, "it is too large");
    assert_eq!(Rig::new().connection.send_timeout_ms(), TIMEOUTS.idle_ms);
}

/// The caller responds to a request that it declines.
#[test]
fn a_declined_batch_is_skipped_if_its_end_is_known_and_it_is_on_its_way() {
    let declined = |request: &str| {
        let mut rig = Rig::new();
        let name = rig.receive(request);
        rig.connection.decline();
        (name, rig)
    };
    let (name, mut rig) = declined(&batch(9, "four"));
    assert_eq!((name, told(&rig)), ("batch", BODY));
    assert_eq!(rig.receive("andfi"), "advanced");
    assert_eq!(told(&rig), Told { deadline_ms: NOW_MS + TIMEOUTS.idle_ms, ..IDLE });
    assert_eq!(rig.receive(HEALTH), "request");
    let (name, rig) = declined(&batch(0, ""));
    assert_eq!(
        (name, told(&rig)),
        ("batch", Told { deadline_ms: NOW_MS + TIMEOUTS.idle_ms, ..IDLE })
    );
    let expects = |length: usize, body| {
        post("/events", &format!("Content-Length: {length}\r\nExpect: 100-continue"), body)
    };
    let close = "Content-Length: 9\r\nConnection: close";
    for (request, of) in [
        (post("/events", CHUNKED, "5\r\n"), "batch"),
        (expects(9, ""), "batch that expects"),
        (post("/events", close, ""), "batch"),
    ] {
        let (name, rig) = declined(&request);
        assert_eq!((name, told(&rig)), (of, ENDED), "{request}");
    }
    for request in [expects(9, "four"), expects(0, "")] {
        let (name, rig) = declined(&request);
        assert_eq!(
            (name, rig.connection.has_ended()),
            ("batch", false),
            "its body comes: {request}"
        );
    }
    // The body of another request is declined as a whole.
    let event = post("/event", "Content-Length: 24\r\nExpect: 100-continue", "");
    let (name, rig) = declined(&event);
    assert_eq!((name, told(&rig)), ("expects", ENDED));
}

#[test]
fn a_batch_is_refused_above_the_limit_of_its_length() {
    let limit = LIMITS.batch_bytes_max;
    assert_eq!(Rig::new().receive(&batch(limit - 1, "")), "batch");
    assert_eq!(Rig::new().receive(&batch(limit, "")), "batch");
    assert_eq!(Rig::new().receive(&batch(limit + 1, "")), "refused");
}

#[test]
fn an_ended_connection_reads_nothing_and_closes_at_once_only_if_the_peer_announced_it() {
    let mut rig = Rig::new();
    rig.connection.end();
    assert_eq!(told(&rig), Told { deadline_ms: ACCEPTED_MS + TIMEOUTS.idle_ms, ..ENDED });
    assert_eq!((rig.receive(HEALTH), rig.kept.len()), ("lingers", 0));
    let last = HEALTH.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    for (more, end) in [("", "closes at once"), ("x", "lingers")] {
        let mut rig = Rig::new();
        assert_eq!(rig.receive(&[&last, more].concat()), "request");
        assert_eq!(told(&rig), ENDED);
        assert_eq!(rig.receive(""), end, "{more}");
    }
}

#[test]
fn what_a_connection_does_is_charged_by_what_it_costs() {
    let mut rig = Rig::new();
    let bytes = units_of(HEALTH.len());
    let parsed = units::HEAD + bytes * units::HEAD_BYTE;
    let read = bytes / units_of(units::READ_BYTES);
    assert_eq!(rig.cost(HEALTH), ("request", parsed + read));
    assert_eq!(rig.cost(HEALTH), ("request", read), "the head is known");
    let encoded = HEALTH.replace("/health", "/he%61lth");
    let bytes = units_of(encoded.len());
    let parsed = units::HEAD + 2 * bytes * units::HEAD_BYTE;
    let read = bytes / units_of(units::READ_BYTES);
    assert_eq!(rig.cost(&encoded), ("request", parsed + read), "the path is decoded, too");
    let chunked = post("/event", CHUNKED, "");
    let bytes = units_of(chunked.len());
    let parsed = units::HEAD + bytes * units::HEAD_BYTE;
    assert_eq!(rig.cost(&chunked), ("advanced", parsed));
    assert_eq!(rig.cost("5\r\nab"), ("advanced", 5 * units::CHUNKED_BYTE));
    let read = (bytes + 5) / units_of(units::READ_BYTES);
    assert_eq!(rig.cost("cde\r\n0\r\n\r\n"), ("request", 10 * units::CHUNKED_BYTE + read));
    let head = batch(60, "");
    let parsed = units::HEAD + units_of(head.len()) * units::HEAD_BYTE;
    assert_eq!(rig.cost(&head), ("batch", parsed + units::REFUSAL));
    let copied = |bytes: usize| units_of(bytes / units::COPIED_BYTES);
    assert_eq!(rig.cost(&"x".repeat(20)), ("advanced", copied(20)));
    let mut room = 0;
    rig.connection.budget = Budget::FULL;
    rig.connection.fill(|body, bytes_max| {
        room = bytes_max;
        body.extend_from_slice(&[b'x'; 10]);
    });
    assert_eq!((room, rig.connection.missing()), (40, 30));
    assert_eq!(rig.connection.budget.used(), copied(10));
    rig.connection.budget.charge(Budget::UNITS - copied(10) - 5);
    rig.connection.fill(|_, bytes_max| room = bytes_max);
    assert_eq!(room, 5 * units::COPIED_BYTES, "what is left of the budget");
    rig.connection.decline();
    assert_eq!(rig.cost(&"x".repeat(30)), ("advanced", units_of(30 / units::MOVED_BYTES)));
    assert_eq!(rig.cost(&post("/events", CHUNKED, "")).0, "batch");
    assert_eq!(rig.cost("5\r\nab"), ("advanced", 5 * units::CHUNKED_BYTE));
    assert_eq!(rig.cost("x"), ("advanced", units::CHUNKED_BYTE));
    assert_eq!(Rig::new().cost("nonsense\r\n\r\n"), ("refused", units::HEAD + units::REFUSAL));
    assert_eq!(Rig::new().cost(&batch(61, "")).0, "refused");
}

/// A stage begins once, however many pieces its bytes come in.
#[test]
fn trickling_bytes_extend_no_deadline() {
    let mut rig = Rig::new();
    let request = post("/event", "Content-Length: 24", "{\"userId\":");
    let mut deadline_after = |bytes: &str, now_ms| {
        rig.now_ms = now_ms;
        assert_eq!(rig.receive(bytes), "needs more");
        rig.connection.deadline_ms()
    };
    let head_end = request.find("\r\n\r\n").unwrap() + 4;
    assert_eq!(deadline_after(&request[..9], 100), 100 + TIMEOUTS.header_ms);
    assert_eq!(deadline_after(&request[9..20], 200), 100 + TIMEOUTS.header_ms);
    assert_eq!(deadline_after(&request[20..head_end], 300), 300 + TIMEOUTS.body_ms);
    assert_eq!(deadline_after(&request[head_end..], 400), 300 + TIMEOUTS.body_ms);
}

#[test]
fn each_request_may_come_after_empty_lines_up_to_their_limit() {
    for lines in [1, EMPTY_LINES_MAX - 1, EMPTY_LINES_MAX] {
        let mut rig = Rig::new();
        for request in 0..3 {
            let bytes = "\r\n".repeat(lines) + HEALTH;
            assert_eq!(rig.receive(&bytes), "request", "{lines} lines, request {request}");
        }
    }
    let mut rig = Rig::new();
    assert_eq!(rig.receive(&("\r\n".repeat(EMPTY_LINES_MAX + 1) + HEALTH)), "refused");
}

/// While a server drains, the last request that has arrived gets the last response.
#[test]
fn a_draining_connection_ends_with_the_last_request_that_has_arrived() {
    for request in [
        HEALTH.to_owned(),
        post("/event", "Content-Length: 3", "abc"),
        post("/event", CHUNKED, "3\r\nabc\r\n0\r\n\r\n"),
    ] {
        for is_draining in [false, true] {
            let mut rig = Rig::new();
            rig.connection.set_draining(is_draining);
            assert_eq!(rig.receive(&[&request[..]; 2].concat()), "request");
            assert!(!rig.connection.has_ended(), "another request has arrived: {request}");
            assert_eq!(rig.receive(""), "request");
            assert_eq!(rig.connection.has_ended(), is_draining, "{request}");
        }
    }
}

#[test]
fn a_body_is_refused_above_the_limit_of_its_length() {
    let limit = LIMITS.body_bytes_max;
    let expect = |length: usize| format!("Content-Length: {length}\r\nExpect: 100-continue");
    let expecting = |length| Rig::new().receive(&post("/event", &expect(length), ""));
    assert_eq!([limit - 1, limit, limit + 1].map(expecting), ["expects", "expects", "too large"]);
    assert_eq!(expecting(0), "request", "nothing to wait for");
    let whole = |length: usize| {
        let body = "x".repeat(length);
        let chunked = format!("{length:x}\r\n{body}\r\n0\r\n\r\n");
        let plain = post("/event", &format!("Content-Length: {length}"), &body);
        [plain, post("/event", CHUNKED, &chunked), post("/event", &expect(length), &body)]
            .map(|request| Rig::new().receive(&request))
    };
    for length in [1, limit - 1, limit] {
        assert_eq!(whole(length), ["request"; 3], "{length}");
    }
    assert_eq!(whole(limit + 1), ["too large"; 3]);
}

#[test]
fn a_batch_is_received_into_the_memory_that_it_was_accepted_with() {
    let mut rig = Rig::new();
    assert_eq!(rig.receive(&batch(40, "")), "batch");
    rig.connection.accept_batch(Vec::with_capacity(4096));
    let capacity = rig.connection.fill(|body, _| body.capacity());
    assert!(capacity >= Some(4096), "{capacity:?}");
}

/// A response to HEAD never has a body, not even with the reason for a refusal.
#[test]
fn a_refusal_knows_whether_its_request_is_or_may_become_head() {
    let refused = |request: &str| match Rig::new().receive(request) {
        "refused" => false,
        "refused HEAD" => true,
        other => panic!("{other}: {request}"),
    };
    for (request, is_head) in [
        ("HEAD / HTTP/1.1\r\n\r\n", true),
        ("GET / HTTP/1.1\r\n\r\n", false),
        ("HEADS / HTTP/1.1\r\n\r\n", false),
        ("\r\n\r\nHEAD / HTTP/9.9\r\n\r\n", true),
    ] {
        assert_eq!(refused(request), is_head, "{request}");
    }
    let expired = |request: &str| {
        let mut rig = Rig::new();
        rig.receive(request);
        let kept = rig.kept.clone();
        rig.connection.expire(&kept).map(|refused| refused.is_head)
    };
    for (begun, is_head) in [
        ("", None),
        ("H", Some(true)),
        ("HEAD", Some(true)),
        ("HEAD /health HTT", Some(true)),
        ("G", Some(false)),
        ("HEAP", Some(false)),
        ("HEAD / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n", Some(true)),
        ("POST /event HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n", Some(false)),
        ("HEAD / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", Some(true)),
        ("POST /event HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", Some(false)),
        ("POST /events HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n", Some(false)),
    ] {
        assert_eq!(expired(begun), is_head, "{begun}");
    }
}
