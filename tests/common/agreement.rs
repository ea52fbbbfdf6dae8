//! What this server reads from a connection's bytes, and whether the slow reader agrees.

use super::reference::{self, Accepted, End};
use ringtally::http::{
    Budget, CHUNK_FRAMING_BYTES_MAX, Connection, Context, EMPTY_LINES_MAX, FIELDS_MAX,
    HEAD_BYTES_MAX, Handled, Handler, Limits, Method, Outcome, REQUEST_LINE_BYTES_MAX, Reply,
    Request, Status, Target, Timeouts,
};

const BODY_BYTES_MAX: usize = 200;
const BATCH_BYTES_MAX: usize = 300;

/// Records what reaches it.
struct Recorder {
    accepted: Vec<Accepted>,
}

impl Handler for Recorder {
    type Work = ();

    fn knows(&self, _: &Request<'_>) -> bool {
        true
    }

    fn wants_body(&self, request: &Request<'_>) -> bool {
        request.method() == Method::Post
            && matches!(&request.target, Target::Path(path) if **path == *b"/event")
    }

    fn is_batch(&self, request: &Request<'_>) -> bool {
        request.method() == Method::Post
            && matches!(&request.target, Target::Path(path) if **path == *b"/events")
    }

    fn begin_batch(&mut self, _: &Request<'_>, _: usize, _: Reply<'_>) -> Option<((), Vec<u8>)> {
        Some(((), Vec::new()))
    }

    fn work(&mut self, (): &mut (), body: &mut [u8], _: &mut Budget, reply: Reply<'_>) -> bool {
        let (method, path) = ("Post".into(), b"/events".to_vec());
        self.accepted.push(Accepted { method, path, body: body.to_vec() });
        reply.send_json(Status::Ok, b"{}");
        true
    }

    fn handle(&mut self, request: &Request<'_>, reply: Reply<'_>) -> Handled {
        let path = match &request.target {
            Target::Path(path) => path.to_vec(),
            Target::Server => b"*".to_vec(),
            Target::Tunnel => b"tunnel".to_vec(),
        };
        let method = format!("{:?}", request.method());
        self.accepted.push(Accepted { method, path, body: request.body.to_vec() });
        reply.send_json(Status::Ok, b"{}");
        Handled::Responded(0)
    }

    fn refused(&mut self, _: Status) {}
}

/// What the server accepts from bytes that come in pieces, and how the connection ends.
pub fn ours(pieces: &[&[u8]]) -> (Vec<Accepted>, End) {
    let (accepted, end, _) = ours_and_last_response(pieces);
    (accepted, end)
}

pub fn ours_and_last_response(pieces: &[&[u8]]) -> (Vec<Accepted>, End, Vec<u8>) {
    let timeouts = Timeouts { header_ms: 1, body_ms: 1, idle_ms: 1 };
    let limits =
        Limits { body_bytes_max: BODY_BYTES_MAX, batch_bytes_max: BATCH_BYTES_MAX, timeouts };
    let mut context = Context::of(Recorder { accepted: Vec::new() }, "localhost", 0);
    let mut connection = Connection::new(limits, true, 0);
    let mut out = Vec::new();
    let mut outcome = Outcome::Receive;
    let (mut responses, mut last) = (0, Vec::new());
    for piece in pieces {
        connection.renew();
        outcome = connection.receive(piece, 0, &mut context, &mut out);
        loop {
            // All but a 100 have one.
            responses += memchr::memmem::find_iter(&out, b"\r\nDate: ").count();
            last = std::mem::take(&mut out);
            if !matches!(outcome, Outcome::Resume | Outcome::Work) {
                break;
            }
            connection.renew();
            outcome = connection.resume(0, &mut context, &mut out);
        }
        if outcome.closes() {
            break;
        }
    }
    let accepted = context.handler.accepted;
    let refused = responses - accepted.len();
    assert!(refused <= 1, "one response per request, and one to what is refused");
    let end = match (outcome.closes(), refused) {
        (true, 0) => End::Closed,
        (true, _) => End::Refused,
        _ => End::Open,
    };
    (accepted, end, last)
}

/// What the slow reader accepts, in the terms of the fast one.
pub fn theirs(input: &[u8]) -> (Vec<Accepted>, End) {
    let limits = reference::Limits {
        request_line: REQUEST_LINE_BYTES_MAX,
        head: HEAD_BYTES_MAX,
        fields: FIELDS_MAX,
        body: BODY_BYTES_MAX,
        batch: BATCH_BYTES_MAX,
        chunk_framing: CHUNK_FRAMING_BYTES_MAX,
        empty_lines: EMPTY_LINES_MAX,
    };
    let (mut accepted, end) = reference::read(input, &limits);
    for request in &mut accepted {
        if request.method == "CONNECT" && !request.path.starts_with(b"/") {
            request.path = b"tunnel".to_vec();
        }
        let method = match request.method.as_str() {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            "OPTIONS" => Method::Options,
            "CONNECT" => Method::Connect,
            "PUT" | "DELETE" | "PATCH" | "TRACE" => Method::Other,
            _ => Method::Unknown,
        };
        request.method = format!("{method:?}");
    }
    (accepted, end)
}

/// Whether the input contains this text, in upper or lower case.
pub fn has(input: &[u8], text: &str) -> bool {
    memchr::memmem::find(&input.to_ascii_lowercase(), text.as_bytes()).is_some()
}

/// Asserts that both accept the same requests and refuse the same input. Only what is incomplete may
/// be refused early by one of them.
pub fn agree(input: &[u8], ours: &(Vec<Accepted>, End), theirs: &(Vec<Accepted>, End)) {
    assert_eq!(ours.0, theirs.0, "{}", input.escape_ascii());
    match (ours.1, theirs.1) {
        (ours, theirs) if ours == theirs => {}
        // No continuation makes it a request, which either may notice early.
        (End::Refused, End::Open) => {
            let rests: [&[u8]; 6] = [
                b"\r\n\r\n",
                b"\n\r\n",
                b"\r\nHost: h\r\n\r\n",
                b"/ HTTP/1.1\r\nHost: h\r\n\r\n",
                b" / HTTP/1.1\r\nHost: h\r\n\r\n",
                b" HTTP/1.1\r\nHost: h\r\n\r\n",
            ];
            for rest in rests {
                let longer = [input, rest].concat();
                assert_eq!(
                    self::theirs(&longer).0.len(),
                    ours.0.len(),
                    "refused early: {} could become {}",
                    input.escape_ascii(),
                    longer.escape_ascii()
                );
            }
        }
        (ends, theirs) => panic!("{ends:?}, not {theirs:?}: {}", input.escape_ascii()),
    }
}
