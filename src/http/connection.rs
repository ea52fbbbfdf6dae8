//! One connection: received bytes in, answers out, in the order of the requests.
//!
//! Both engines drive this type alike: give it what was received, send what it wrote, come back
//! when it holds requests because too much was unsent, close when it says so, and tell it when
//! its deadline has passed. While a request is incomplete its bytes are kept here; between
//! requests a connection keeps none.

use super::chunked::{Chunked, Progress};
use super::head::{Field, Framing, Head, Method, Scan};
use super::head_cache::HeadCache;
use super::response::{Date, Persistence, Reply};
use super::target::Target;
use super::{EMPTY_LINES_MAX, Refusal, UNSENT_BYTES_MAX};

/// How long a peer may take, in milliseconds. A total each: no drip of bytes extends it.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From the first byte of a request to the end of its head.
    pub header_ms: u64,
    /// From the end of the head to the end of the body.
    pub body_ms: u64,
    /// From an answer to the first byte of the next request, and for answers to be taken.
    pub idle_ms: u64,
}

/// What a connection may ask of the server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request body, decoded.
    pub body_bytes_max: usize,
    /// How long it may take.
    pub timeouts: Timeouts,
}

/// A complete request.
#[derive(Debug)]
pub struct Request<'a> {
    head: &'a Head,
    bytes: &'a [u8],
    /// What it is for.
    pub target: Target<'a>,
    /// Its body, decoded.
    pub body: &'a [u8],
    /// The host that it names: `Host`, or what an absolute-form target says instead.
    pub host: &'a [u8],
    /// Whether the peer's address is a loopback address.
    pub peer_is_loopback: bool,
}

impl<'a> Request<'a> {
    /// The request method.
    pub fn method(&self) -> Method {
        self.head.method
    }

    /// The `Origin` field.
    pub fn origin(&self) -> Option<&'a [u8]> {
        self.field(self.head.origin)
    }

    /// The `Sec-Fetch-Site` field.
    pub fn fetch_site(&self) -> Option<&'a [u8]> {
        self.field(self.head.fetch_site)
    }

    /// The `Authorization` field.
    pub fn authorization(&self) -> Option<&'a [u8]> {
        self.field(self.head.authorization)
    }

    /// A field's value. One that is repeated reads as empty, which satisfies nobody.
    fn field(&self, field: Field) -> Option<&'a [u8]> {
        match field {
            Field::Absent => None,
            Field::Once(span) => Some(&self.bytes[span.range()]),
            Field::Repeated => Some(b""),
        }
    }
}

/// What answers requests.
pub trait Handler {
    /// The date for answers to requests that never reach [`Handler::handle`].
    fn date(&self) -> &Date;

    /// What its connections share, so that a repeated head is not parsed again.
    fn head_cache(&mut self) -> &mut HeadCache;

    /// Whether the body of such a request is of use, so that a client that waits for
    /// `100 Continue` should send it.
    fn wants_body(&self, method: Method, target: &Target<'_>) -> bool;

    /// Answers one request, by calling one method of `reply`.
    fn handle(&mut self, request: &Request<'_>, reply: Reply<'_>);

    /// Hears of an answer to what never reached [`Handler::handle`].
    fn refused(&mut self, status: u16);
}

/// What the engine has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Send what was written, then receive.
    Receive,
    /// Send what was written, then call [`Connection::resume`]: requests are waiting.
    Resume,
    /// Send what was written, shut down the writing side, discard what still comes for a
    /// bounded while (RFC 9112 section 9.6), close.
    Close,
}

/// What a peer is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// The first byte of a request.
    Idle,
    /// The end of a head.
    Header,
    /// The end of a body.
    Body,
}

/// What the connection is in the middle of.
#[derive(Debug)]
enum Stage {
    /// A request's head, or nothing at all.
    Head { scan: Scan, empty_lines: usize },
    /// A body of known length, in the buffer behind its head.
    Body { head: Head },
    /// A chunked body.
    Chunked(Box<ChunkedRequest>),
}

impl Stage {
    const START: Stage = Stage::Head { scan: Scan::START, empty_lines: 0 };
}

#[derive(Debug)]
struct ChunkedRequest {
    head: Head,
    chunked: Chunked,
    /// The head as it came, and the body decoded.
    bytes: Vec<u8>,
}

/// The protocol state of one connection.
#[derive(Debug)]
pub struct Connection {
    limits: Limits,
    stage: Stage,
    /// Received and not yet consumed.
    buffer: Vec<u8>,
    /// When the stage began, in the engine's milliseconds.
    since_ms: u64,
    /// A request has begun and is not complete.
    begun: bool,
    /// Answers say that they are the last.
    draining: bool,
    closing: bool,
    peer_is_loopback: bool,
}

impl Connection {
    /// A connection accepted at `now_ms`.
    pub fn new(limits: Limits, peer_is_loopback: bool, now_ms: u64) -> Self {
        Connection {
            limits,
            stage: Stage::START,
            buffer: Vec::new(),
            since_ms: now_ms,
            begun: false,
            draining: false,
            closing: false,
            peer_is_loopback,
        }
    }

    /// Takes received bytes, hands every complete request to `handler` and appends the
    /// answers to `out`, where the unsent answers of this connection are.
    pub fn receive(
        &mut self,
        input: &[u8],
        now_ms: u64,
        handler: &mut impl Handler,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let (taken, outcome) = if self.buffer.is_empty() {
            let (taken, outcome) = self.advance(input, now_ms, handler, out);
            self.buffer.extend_from_slice(&input[taken..]);
            (0, outcome)
        } else {
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.extend_from_slice(input);
            let advanced = self.advance(&buffer, now_ms, handler, out);
            self.buffer = buffer;
            advanced
        };
        if taken == self.buffer.len() {
            self.buffer = Vec::new();
        } else {
            self.buffer.drain(..taken);
        }
        outcome
    }

    /// Goes on with the requests that were held back, now that `out` was sent.
    pub fn resume(
        &mut self,
        now_ms: u64,
        handler: &mut impl Handler,
        out: &mut Vec<u8>,
    ) -> Outcome {
        self.receive(&[], now_ms, handler, out)
    }

    /// The moment at which the peer has been too slow, in the engine's milliseconds.
    pub fn deadline_ms(&self) -> u64 {
        let timeouts = &self.limits.timeouts;
        self.since_ms.saturating_add(match self.waited() {
            Waited::Idle => timeouts.idle_ms,
            Waited::Header => timeouts.header_ms,
            Waited::Body => timeouts.body_ms,
        })
    }

    /// What the peer is waited for.
    pub fn waited(&self) -> Waited {
        match self.stage {
            Stage::Head { .. } if !self.begun => Waited::Idle,
            Stage::Head { .. } => Waited::Header,
            Stage::Body { .. } | Stage::Chunked(_) => Waited::Body,
        }
    }

    /// How long the peer may leave answers untaken, in milliseconds.
    pub fn send_timeout_ms(&self) -> u64 {
        self.limits.timeouts.idle_ms
    }

    /// Ends a connection whose deadline has passed: with 408 where a request had begun.
    pub fn expire(&mut self, handler: &mut impl Handler, out: &mut Vec<u8>) {
        if self.begun && !self.closing {
            self.refuse(Refusal::Timeout, handler, out);
        }
        self.closing = true;
    }

    /// Makes the next answer the last.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether nothing of a request has arrived that is not answered.
    pub fn is_idle(&self) -> bool {
        !self.begun && self.buffer.is_empty()
    }

    /// Refuses the connection as a whole: the server has as many as it takes.
    pub fn turn_away(&mut self, handler: &mut impl Handler, out: &mut Vec<u8>) {
        self.closing = true;
        let reply = Reply::new(out, handler.date(), Persistence::Close, false);
        let sentence = "try again later: the server has as many connections as it takes";
        let status = reply.send_error(503, &[("Retry-After", "1")], sentence);
        handler.refused(status);
    }

    /// Handles what is complete in `data`; returns how much of it was consumed.
    fn advance(
        &mut self,
        data: &[u8],
        now_ms: u64,
        handler: &mut impl Handler,
        out: &mut Vec<u8>,
    ) -> (usize, Outcome) {
        let mut at = 0;
        loop {
            if self.closing {
                return (data.len(), Outcome::Close);
            }
            if at == data.len() {
                return (at, Outcome::Receive);
            }
            if out.len() >= UNSENT_BYTES_MAX {
                return (at, Outcome::Resume);
            }
            match self.step(&data[at..], now_ms, handler, out) {
                Ok(Some(taken)) => at += taken,
                // Closing without having consumed: the body is not wanted any more.
                Ok(None) if self.closing => return (data.len(), Outcome::Close),
                Ok(None) => return (at, Outcome::Receive),
                Err(refusal) => self.refuse(refusal, handler, out),
            }
        }
    }

    /// Takes one step with `data`, which is not empty: returns how many bytes are done with, or
    /// `None` where more must come first.
    #[inline]
    fn step(
        &mut self,
        data: &[u8],
        now_ms: u64,
        handler: &mut impl Handler,
        out: &mut Vec<u8>,
    ) -> Result<Option<usize>, Refusal> {
        match &mut self.stage {
            Stage::Head { scan, empty_lines } => {
                if !self.begun && data[0] == b'\r' {
                    if data.len() == 1 {
                        return Ok(None);
                    }
                    *empty_lines += 1;
                    let allowed = data[1] == b'\n' && *empty_lines <= EMPTY_LINES_MAX;
                    return if allowed { Ok(Some(2)) } else { Err(Refusal::Malformed) };
                }
                let known = if self.begun { None } else { handler.head_cache().find(data) };
                let head = match known {
                    Some(head) => head,
                    None => {
                        let Some(head) = scan.parse(data)? else {
                            self.begin(now_ms);
                            return Ok(None);
                        };
                        handler.head_cache().keep(&head, &data[..head.bytes]);
                        head
                    }
                };
                self.start_body(head, data, now_ms, handler, out)
            }
            Stage::Body { head } => {
                let head = *head;
                let Framing::Length(length) = head.framing else {
                    return Err(Refusal::Length);
                };
                self.finish_body(head, length, data, now_ms, handler, out)
            }
            Stage::Chunked(request) => {
                let limit = self.limits.body_bytes_max;
                match request.chunked.feed(data, limit, &mut request.bytes)? {
                    Progress::More => Ok(Some(data.len())),
                    Progress::Done(taken) => {
                        let Stage::Chunked(request) =
                            std::mem::replace(&mut self.stage, Stage::START)
                        else {
                            return Err(Refusal::Chunk);
                        };
                        self.handle(&request.head, &request.bytes, now_ms, handler, out)?;
                        Ok(Some(taken))
                    }
                }
            }
        }
    }

    /// Notes that a request has begun.
    fn begin(&mut self, now_ms: u64) {
        if !self.begun {
            self.begun = true;
            self.since_ms = now_ms;
        }
    }

    /// Goes on from a complete head at the start of `data`.
    #[inline]
    fn start_body(
        &mut self,
        head: Head,
        data: &[u8],
        now_ms: u64,
        handler: &mut impl Handler,
        out: &mut Vec<u8>,
    ) -> Result<Option<usize>, Refusal> {
        let arrived = data.len() - head.bytes;
        match head.framing {
            Framing::Length(length) if length > self.limits.body_bytes_max as u64 => {
                Err(Refusal::LargeBody)
            }
            Framing::Length(length) => {
                if length > 0 && arrived == 0 && head.expects_continue {
                    self.answer_expectation(&head, data, now_ms, handler, out)?;
                }
                if (arrived as u64) < length {
                    self.begin(now_ms);
                    self.since_ms = now_ms;
                    self.stage = Stage::Body { head };
                }
                self.finish_body(head, length, data, now_ms, handler, out)
            }
            Framing::Chunked => {
                if arrived == 0 && head.expects_continue {
                    self.answer_expectation(&head, data, now_ms, handler, out)?;
                }
                self.begin(now_ms);
                self.since_ms = now_ms;
                self.stage = Stage::Chunked(Box::new(ChunkedRequest {
                    head,
                    chunked: Chunked::new(),
                    bytes: data[..head.bytes].to_vec(),
                }));
                Ok(Some(head.bytes))
            }
        }
    }

    /// Handles a request of known length, once all of it is in `data`.
    #[inline]
    fn finish_body(
        &mut self,
        head: Head,
        length: u64,
        data: &[u8],
        now_ms: u64,
        handler: &mut impl Handler,
        out: &mut Vec<u8>,
    ) -> Result<Option<usize>, Refusal> {
        if self.closing || ((data.len() - head.bytes) as u64) < length {
            return Ok(None);
        }
        let total = head.bytes + length as usize;
        self.stage = Stage::START;
        self.handle(&head, &data[..total], now_ms, handler, out)?;
        Ok(Some(total))
    }

    /// Tells a client that waits whether to send its body (RFC 9110 section 10.1.1). Where the
    /// body is of no use, the answer comes at once and the connection ends with it.
    fn answer_expectation(
        &mut self,
        head: &Head,
        data: &[u8],
        now_ms: u64,
        handler: &mut impl Handler,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let (target, _) = head.target(data)?;
        if handler.wants_body(head.method, &target) {
            out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            return Ok(());
        }
        let last = Head { persistent: false, ..*head };
        self.handle(&last, &data[..head.bytes], now_ms, handler, out)
    }

    /// Hands a complete request over. `bytes` are its head and its decoded body.
    #[inline]
    fn handle(
        &mut self,
        head: &Head,
        bytes: &[u8],
        now_ms: u64,
        handler: &mut impl Handler,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let (target, authority) = head.target(bytes)?;
        let host = match head.host {
            Field::Once(span) => &bytes[span.range()],
            _ => b"",
        };
        // Bytes behind a request for a tunnel are not requests.
        let persistent = head.persistent && !self.draining && target != Target::Tunnel;
        let persistence = match (persistent, head.is_1_1) {
            (true, true) => Persistence::Implied,
            (true, false) => Persistence::KeepAlive,
            (false, _) => Persistence::Close,
        };
        self.closing = !persistent;
        self.begun = false;
        self.since_ms = now_ms;
        let request = Request {
            head,
            bytes,
            target,
            body: &bytes[head.bytes..],
            host: authority.unwrap_or(host),
            peer_is_loopback: self.peer_is_loopback,
        };
        // The date is copied out because the handler is borrowed for the answer; 29 bytes.
        let date = handler.date().clone();
        let without_body = head.method == Method::Head;
        handler.handle(&request, Reply::new(out, &date, persistence, without_body));
        Ok(())
    }

    /// Answers with an error after which the end of the request cannot be known.
    fn refuse(&mut self, refusal: Refusal, handler: &mut impl Handler, out: &mut Vec<u8>) {
        self.closing = true;
        let (status, sentence) = refusal.response();
        let reply = Reply::new(out, handler.date(), Persistence::Close, false);
        reply.send_error(status, &[], sentence);
        handler.refused(status);
    }
}
