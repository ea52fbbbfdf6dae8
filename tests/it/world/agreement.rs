//! The requests that this server reads from a connection's bytes, and a comparison with the slow reader.

use super::reference::{self, Accepted, End};
use ringtally::http::{
    CHUNK_FRAMING_BYTES_MAX, Connection, Context, EMPTY_LINES_MAX, End as Ending, FIELDS_MAX,
    HEAD_BYTES_MAX, Limits, Method, REQUEST_LINE_BYTES_MAX, Refused, Reply, ReplyTo, Request,
    Status, Step, Target, Timeouts,
};

const BODY_BYTES_MAX: usize = 200;
const BATCH_BYTES_MAX: usize = 300;

/// Returns the requests that the server accepts from bytes in pieces, and the end of the connection.
pub fn ours(pieces: &[&[u8]]) -> (Vec<Accepted>, End) {
    let (accepted, end, _) = ours_and_last_response(pieces);
    (accepted, end)
}

/// Returns the same, with the last response.
pub fn ours_and_last_response(pieces: &[&[u8]]) -> (Vec<Accepted>, End, Vec<u8>) {
    let timeouts = Timeouts { header_ms: 1, body_ms: 1, idle_ms: 1 };
    let limits =
        Limits { body_bytes_max: BODY_BYTES_MAX, batch_bytes_max: BATCH_BYTES_MAX, timeouts };
    let mut reader = Reader {
        http: Connection::new(limits, true, 0),
        context: Context::new("localhost", b"/events", 0),
        accepted: Vec::new(),
        last: Vec::new(),
        is_refused: false,
    };
    let (mut kept, mut ending) = (Vec::new(), None);
    for piece in pieces {
        kept.extend_from_slice(piece);
        let mut rest = &kept[..];
        ending = reader.read(&mut rest);
        kept = rest.to_vec();
        if ending.is_some() {
            break;
        }
    }
    let end = match (ending, reader.is_refused) {
        (Some(_), false) => End::Closed,
        (Some(_), true) => End::Refused,
        (None, _) => End::Open,
    };
    (reader.accepted, end, reader.last)
}

/// Accepts every request of a connection.
struct Reader {
    http: Connection,
    context: Context,
    accepted: Vec<Accepted>,
    last: Vec<u8>,
    is_refused: bool,
}

impl Reader {
    /// Reads everything that is complete, and leaves the rest. Returns how the connection ends, if it does.
    fn read(&mut self, rest: &mut &[u8]) -> Option<Ending> {
        let mut decoded = Vec::new();
        loop {
            match self.http.step(rest, &mut decoded, &mut self.context, 0) {
                Step::Request(request) => {
                    self.accepted.push(accepted(&request));
                    self.respond(request.reply_to());
                }
                Step::Expects(request) if wants_body(&request) => {}
                Step::Expects(request) => {
                    self.http.decline();
                    self.accepted.push(accepted(&request));
                    self.respond(request.reply_to());
                }
                Step::TooLarge(request) => self.refuse(Refused::large_body(request.method())),
                Step::Batch { .. } => self.http.accept_batch(Vec::new()),
                Step::BatchBody(body) => {
                    let (method, path) = ("Post".into(), b"/events".to_vec());
                    self.accepted.push(Accepted { method, path, body });
                    let reply_to = self.http.batch_reply_to(!rest.is_empty());
                    self.respond(reply_to);
                    self.http.finish_batch(reply_to, 0);
                }
                Step::Refused(refused) => self.refuse(refused),
                Step::Advanced => {}
                Step::NeedsMore => return None,
                Step::Ended(ending) => return Some(ending),
            }
        }
    }

    fn refuse(&mut self, refused: Refused) {
        assert!(!self.is_refused, "one response to what is refused");
        self.is_refused = true;
        self.last.clear();
        refused.respond(&mut self.last, &self.context);
    }

    fn respond(&mut self, to: ReplyTo) {
        self.last.clear();
        Reply::new(&mut self.last, &self.context, to).send_json(Status::Ok, b"{}");
    }
}

fn accepted(request: &Request<'_>) -> Accepted {
    let path = match &request.target {
        Target::Path(path) => path.to_vec(),
        Target::Server => b"*".to_vec(),
        Target::Tunnel => b"tunnel".to_vec(),
    };
    Accepted { method: format!("{:?}", request.method()), path, body: request.body().to_vec() }
}

fn wants_body(request: &Request<'_>) -> bool {
    request.method() == Method::Post
        && matches!(&request.target, Target::Path(path) if **path == *b"/event")
}

/// Returns the requests that the slow reader accepts, in the terms of the fast reader.
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

/// Returns whether the input contains this text, in upper or lower case.
pub fn has(input: &[u8], text: &str) -> bool {
    memchr::memmem::find(&input.to_ascii_lowercase(), text.as_bytes()).is_some()
}

/// Asserts that both accept the same requests and refuse the same input. Only the server may refuse
/// incomplete input early.
pub fn agree(input: &[u8], ours: &(Vec<Accepted>, End), theirs: &(Vec<Accepted>, End)) {
    assert_eq!(ours.0, theirs.0, "{}", input.escape_ascii());
    match (ours.1, theirs.1) {
        (ours, theirs) if ours == theirs => {}
        // No continuation makes it a request, and the server may notice that early.
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
