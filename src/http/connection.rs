//! One connection: received bytes in, responses out, in the order of the requests.
//!
//! Both engines drive this type in the same way: give it what was received, send what it wrote, come
//! back when it holds requests because too much was unsent or its budget is used up, close when it says so, and tell
//! it when its deadline has passed. While a request is incomplete, its bytes are kept here; between requests
//! a connection keeps none.

use super::accept::{self, MediaType};
use super::budget::{Budget, units};
use super::chunked::{Chunked, Progress};
use super::context::Context;
use super::head::{Framing, Head, Scan};
use super::method::Method;
use super::response::{Persistence, Reply, Status};
use super::target::Target;
use super::{CHUNK_FRAMING_BYTES_MAX, EMPTY_LINES_MAX, Refusal, UNSENT_BYTES_MAX, authority};
use std::fmt::Debug;

/// How long a peer may take, in milliseconds. Each is a total that trickling bytes do not extend.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From the first byte of a request to the end of its head.
    pub header_ms: u64,
    /// From the end of the head to the end of the body.
    pub body_ms: u64,
    /// From a response to the first byte of the next request, and for taking responses.
    pub idle_ms: u64,
}

/// What a connection may ask of the server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request body, decoded.
    pub body_bytes_max: usize,
    /// Bytes of a batch, decoded.
    pub batch_bytes_max: usize,
    /// How long the peer may take.
    pub timeouts: Timeouts,
}

/// A request.
#[derive(Debug)]
pub struct Request<'a> {
    head: &'a Head,
    bytes: &'a [u8],
    /// What it is for.
    pub target: Target<'a>,
    /// Its decoded body.
    pub body: &'a [u8],
    /// Whether the peer's address is a loopback address.
    pub peer_is_loopback: bool,
}

impl<'a> Request<'a> {
    /// The request method.
    pub fn method(&self) -> Method {
        self.head.method
    }

    /// The `Authorization` field. A repeated one reads as empty, which authorizes nobody.
    pub fn authorization(&self) -> Option<&'a [u8]> {
        self.head.authorization.map(|span| &self.bytes[span.range()])
    }

    /// Whether the client says that it wants a response of type `one` more than one of type `other`.
    pub fn prefers(&self, one: MediaType, other: MediaType) -> bool {
        let accept = self.head.accept.map(|span| &self.bytes[span.range()]);
        accept.is_some_and(|accept| accept::prefers(accept, one, other))
    }

    /// Whether a browser sent this, and may have done so for a page of another site. Determined once
    /// per head, not per request.
    #[inline]
    pub fn is_cross_site(&self) -> bool {
        self.head.is_cross_site
    }

    /// Bytes of its head.
    pub fn head_bytes(&self) -> usize {
        self.head.bytes
    }

    /// Whether this may have come through a proxy: it has `Forwarded`, `X-Forwarded-*`, `X-Real-IP`, or `Via`, or it
    /// is of HTTP/1.0, which nginx speaks to servers if it is not told otherwise, without any of these fields.
    pub fn may_be_forwarded(&self) -> bool {
        self.head.is_forwarded || !self.head.is_1_1
    }

    /// Whether its body has a content coding, such as gzip.
    pub fn is_encoded(&self) -> bool {
        self.head.is_encoded
    }

    /// Whether it is addressed to a loopback address, `localhost`, or `bound_host`.
    pub fn names_server(&self, bound_host: &str) -> bool {
        authority::names_server(&self.bytes[self.head.host.range()], bound_host)
    }
}

/// What responds to requests.
pub trait Handler {
    /// What it keeps of a batch.
    type Work: Debug;

    /// Whether there is something at the target of a request that its method can be used on. If not, its body does not
    /// matter, however large it is. The body has not arrived yet.
    fn knows(&self, request: &Request<'_>) -> bool;

    /// Whether the body of a request, which has not arrived yet, is wanted, so that a client that
    /// waits for `100 Continue` should send it.
    fn wants_body(&self, request: &Request<'_>) -> bool;

    /// Responds to a complete request by calling one method of `reply`, or asks to be given the request once
    /// more.
    fn handle(&mut self, request: &Request<'_>, reply: Reply<'_>) -> Handled;

    /// Whether the body of a request is a batch: it is received into memory of its own, as many bytes as
    /// [`Limits::batch_bytes_max`], and worked on in slices. To be said of the head alone.
    fn is_batch(&self, request: &Request<'_>) -> bool;

    /// Decides on a batch whose body has not been received yet and will take `bytes` bytes at most: takes it, with memory
    /// for the body, or responds.
    fn begin_batch(
        &mut self,
        request: &Request<'_>,
        bytes: usize,
        reply: Reply<'_>,
    ) -> Option<(Self::Work, Vec<u8>)>;

    /// Works on a batch that has been received, until that is done or `budget` is spent. It may use the body's bytes for
    /// notes. Returns whether it has responded, and the work is done.
    fn work(
        &mut self,
        work: &mut Self::Work,
        body: &mut [u8],
        budget: &mut Budget,
        reply: Reply<'_>,
    ) -> bool;

    /// Is told of a response to what never reached [`Handler::handle`].
    fn refused(&mut self, status: Status);
}

/// What a handler has done with a request.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// It has responded, at a cost in units of a [`Budget`].
    Responded(u32),
    /// It cannot respond yet, and has written nothing. The request is kept, and so are those behind it.
    NotYet,
}

/// What the engine has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Send what was written, then receive.
    Receive,
    /// Send what was written, then call [`Connection::resume`]: requests are waiting until the peer has taken responses.
    Resume,
    /// Send what was written, and call [`Connection::resume`] once the handler can respond. Until then,
    /// [`Connection::keep`] what is received.
    Wait,
    /// Send what was written, and call [`Connection::renew`] and [`Connection::resume`] once others have had their turn:
    /// there is work to do on a batch, or the budget is used up. Until then, [`Connection::keep`] what is received.
    Work,
    /// Send what was written, shut down the writing side, discard what still arrives for a bounded
    /// time (RFC 9112 section 9.6), and close.
    Close,
    /// Send what was written, and close. The client has said that this request is its last, after which it must
    /// send nothing (RFC 9112 section 9.6), and nothing came behind it: there is nothing to discard.
    CloseAtOnce,
}

impl Outcome {
    /// Whether the connection ends with what was written.
    pub fn closes(self) -> bool {
        matches!(self, Outcome::Close | Outcome::CloseAtOnce)
    }
}

/// What a peer is expected to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// The first byte of a request.
    Idle,
    /// The end of a head.
    Header,
    /// The end of a body.
    Body,
}

/// Tells a client to send its body.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Tells a client that speaks HTTP/2 to use HTTP/1.1 (RFC 9113 section 7): no settings, with which the server's side has to
/// begin, and GOAWAY with HTTP_1_1_REQUIRED.
const GO_AWAY: &[u8] = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\
    \x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0d";

/// Bytes of chunks that are read in one step: with one byte per chunk, they take 14 µs.
const CHUNKED_BYTES_AT_ONCE: usize = 4096;

/// What the connection is in the middle of.
#[derive(Debug)]
enum Stage<W> {
    /// The head of a request, or nothing at all.
    Head { scan: Scan, empty_lines: usize },
    /// A body of known length, in the buffer behind its head.
    Body { head: Head, length: usize },
    /// A chunked body.
    Chunked(Box<ChunkedRequest>),
    /// A complete request that the handler cannot respond to yet.
    Asked(Box<AskedRequest>),
    /// The body of a batch.
    Batch(Box<BatchRequest<W>>),
    /// A batch whose body has been received.
    Work(Box<BatchRequest<W>>),
    /// The body, so many bytes, of a request that was responded to.
    Skip { left: usize },
}

impl<W> Stage<W> {
    const START: Self = Stage::Head { scan: Scan::START, empty_lines: 0 };
}

#[derive(Debug)]
struct ChunkedRequest {
    head: Head,
    chunked: Chunked,
    /// The head as it was received, then the decoded body.
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct AskedRequest {
    head: Head,
    /// The head as it was received, then the decoded body.
    bytes: Vec<u8>,
    /// How much of what is not consumed belongs to it.
    unconsumed: usize,
}

#[derive(Debug)]
struct BatchRequest<W> {
    head: Head,
    /// What is known of the body's end.
    end: BodyEnd,
    /// The decoded body. It has room for all of it, so its bytes are copied once.
    body: Vec<u8>,
    /// What the handler keeps of it.
    work: W,
}

#[derive(Debug)]
enum BodyEnd {
    /// So many bytes are left.
    Length(usize),
    Chunked(Chunked),
}

/// The protocol state of one connection. `W` is what its handler keeps of a batch.
#[derive(Debug)]
pub struct Connection<W> {
    limits: Limits,
    stage: Stage<W>,
    /// What is left of what it may cost before others have their turn.
    budget: Budget,
    /// Received and not yet consumed.
    buffer: Vec<u8>,
    /// When the stage began, in the engine's milliseconds.
    since_ms: u64,
    /// A request has begun and is not complete.
    begun: bool,
    /// The next response is the last.
    draining: bool,
    closing: bool,
    /// It closes because the client has sent its last request, of which everything has arrived.
    peer_has_finished: bool,
    peer_is_loopback: bool,
}

impl<W> Connection<W> {
    /// A connection accepted at `now_ms`.
    pub fn new(limits: Limits, peer_is_loopback: bool, now_ms: u64) -> Self {
        Connection {
            limits,
            stage: Stage::START,
            budget: Budget::FULL,
            buffer: Vec::new(),
            since_ms: now_ms,
            begun: false,
            draining: false,
            closing: false,
            peer_has_finished: false,
            peer_is_loopback,
        }
    }

    /// Takes received bytes, hands complete requests to the handler until the budget is spent, and appends the responses
    /// to `out`, where the unsent responses of this connection are. Does no work on batches, because many
    /// of them may become whole in the same turn.
    pub fn receive<H: Handler<Work = W>>(
        &mut self,
        input: &[u8],
        now_ms: u64,
        context: &mut Context<H>,
        out: &mut Vec<u8>,
    ) -> Outcome {
        self.advance_with(input, false, now_ms, context, out)
    }

    fn advance_with<H: Handler<Work = W>>(
        &mut self,
        input: &[u8],
        may_work: bool,
        now_ms: u64,
        context: &mut Context<H>,
        out: &mut Vec<u8>,
    ) -> Outcome {
        self.budget.charge(units::RECEIVE);
        let (taken, outcome) = if self.buffer.is_empty() {
            let (taken, outcome) = self.advance(input, may_work, now_ms, context, out);
            self.buffer.extend_from_slice(&input[taken..]);
            (0, outcome)
        } else {
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.extend_from_slice(input);
            self.budget.charge_bytes(input.len(), units::MOVED_BYTES);
            let advanced = self.advance(&buffer, may_work, now_ms, context, out);
            self.buffer = buffer;
            advanced
        };
        if taken == self.buffer.len() {
            self.buffer = Vec::new();
        } else if taken > 0 {
            self.buffer.drain(..taken);
            self.budget.charge_bytes(self.buffer.len(), units::MOVED_BYTES);
        }
        outcome
    }

    /// Keeps received bytes behind what is here and has to wait.
    pub fn keep(&mut self, input: &[u8]) {
        self.buffer.extend_from_slice(input);
    }

    /// How many bytes wait behind the request under way.
    pub fn kept_bytes(&self) -> usize {
        match &self.stage {
            // Its head and what has arrived of its body are in front of them.
            Stage::Body { head, length } => self.buffer.len().saturating_sub(head.bytes + length),
            _ => self.buffer.len(),
        }
    }

    /// Notes that others have had their turn: from here on it may cost as much as any of them.
    #[inline]
    pub fn renew(&mut self) {
        self.budget = Budget::FULL;
    }

    /// What is left of what it may cost before others have their turn.
    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// Continues with what was held back, now that `out` was sent, that others have had their turn, or that the handler
    /// can respond.
    pub fn resume<H: Handler<Work = W>>(
        &mut self,
        now_ms: u64,
        context: &mut Context<H>,
        out: &mut Vec<u8>,
    ) -> Outcome {
        if matches!(self.stage, Stage::Asked(_))
            && let Stage::Asked(request) = std::mem::replace(&mut self.stage, Stage::START)
        {
            let AskedRequest { head, bytes, .. } = *request;
            let has_more = !self.buffer.is_empty();
            if self.handle(&head, &bytes, has_more, now_ms, context, out) == Handled::NotYet {
                self.ask(&head, bytes, 0);
                return Outcome::Wait;
            }
        }
        self.advance_with(&[], true, now_ms, context, out)
    }

    /// How many bytes of a batch have yet to arrive, where [`Connection::fill`] may take them.
    pub fn missing(&self) -> usize {
        match &self.stage {
            Stage::Batch(batch) => match batch.end {
                BodyEnd::Length(left) => left,
                BodyEnd::Chunked(_) => 0,
            },
            _ => 0,
        }
    }

    /// Has `receive` append bytes of a batch to those that are here, as many as it is given at most, so that no buffer
    /// comes in between. Afterwards, [`Connection::receive`] of nothing says what to do next.
    pub fn fill<R>(&mut self, receive: impl FnOnce(&mut Vec<u8>, usize) -> R) -> Option<R> {
        let room = self.budget.room(units::COPIED_BYTES);
        let Stage::Batch(batch) = &mut self.stage else { return None };
        let BodyEnd::Length(left) = &mut batch.end else { return None };
        let before = batch.body.len();
        let received = receive(&mut batch.body, room.min(*left));
        let more = batch.body.len() - before;
        *left = left.checked_sub(more).expect("no more than were missing");
        self.budget.charge_bytes(more, units::COPIED_BYTES);
        if *left == 0 {
            self.start_work();
        }
        Some(received)
    }

    /// When the peer will have been too slow, in the engine's milliseconds.
    pub fn deadline_ms(&self) -> u64 {
        if self.works() {
            return u64::MAX;
        }
        let timeouts = &self.limits.timeouts;
        self.since_ms.saturating_add(match self.waited() {
            Waited::Idle => timeouts.idle_ms,
            Waited::Header => timeouts.header_ms,
            Waited::Body => timeouts.body_ms,
        })
    }

    /// The method and the target of a request whose head has arrived, and which is not responded to yet, unless it is a
    /// batch.
    pub fn request_under_way(&self) -> Option<(Method, Target<'_>)> {
        let (head, bytes) = match &self.stage {
            // It was responded to, and its bytes are gone.
            _ if self.closing => return None,
            Stage::Body { head, .. } => (head, &self.buffer),
            Stage::Chunked(request) => (&request.head, &request.bytes),
            Stage::Asked(request) => (&request.head, &request.bytes),
            Stage::Head { .. } | Stage::Skip { .. } | Stage::Batch(_) | Stage::Work(_) => {
                return None;
            }
        };
        Some((head.method, head.target(bytes).ok()?))
    }

    /// Whether a batch is received or worked on.
    pub fn is_batch_under_way(&self) -> bool {
        matches!(self.stage, Stage::Batch(_) | Stage::Work(_))
    }

    /// What the peer is expected to send.
    pub fn waited(&self) -> Waited {
        match self.stage {
            Stage::Head { .. } if !self.begun => Waited::Idle,
            Stage::Head { .. } => Waited::Header,
            // It does not wait for the peer.
            Stage::Asked(_) => Waited::Idle,
            _ => Waited::Body,
        }
    }

    /// Whether there is work to do on a batch.
    fn works(&self) -> bool {
        matches!(self.stage, Stage::Work(_))
    }

    /// How long the peer may leave responses untaken, in milliseconds.
    pub fn send_timeout_ms(&self) -> u64 {
        self.limits.timeouts.idle_ms
    }

    /// Ends a connection whose deadline has passed, with 408 if a request had begun.
    pub fn expire<H: Handler<Work = W>>(&mut self, context: &mut Context<H>, out: &mut Vec<u8>) {
        if self.begun && !self.closing && !matches!(self.stage, Stage::Skip { .. }) {
            let is_head = self.is_head(&self.buffer);
            self.refuse(Refusal::Timeout, is_head, context, out);
        }
        self.closing = true;
    }

    /// Makes the response to the last request that has arrived the last.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether nothing has arrived that is not responded to.
    pub fn is_idle(&self) -> bool {
        !self.begun && self.buffer.is_empty()
    }

    /// Refuses the connection as a whole, because the server has no room for it.
    pub fn turn_away<H: Handler<Work = W>>(&mut self, context: &mut Context<H>, out: &mut Vec<u8>) {
        self.closing = true;
        let reply = Reply::new(out, &context.date, Persistence::Close, false);
        let sentence = "try again later: the server has as many connections as it allows";
        let status =
            reply.send_error(Status::ServiceUnavailable, &[("Retry-After", "1")], sentence);
        context.handler.refused(status);
    }

    /// Handles what is complete in `data`; returns how much of it was consumed.
    fn advance<H: Handler<Work = W>>(
        &mut self,
        data: &[u8],
        may_work: bool,
        now_ms: u64,
        context: &mut Context<H>,
        out: &mut Vec<u8>,
    ) -> (usize, Outcome) {
        let mut at = 0;
        loop {
            if self.closing {
                let has_more = at < data.len();
                return match self.peer_has_finished && !has_more {
                    true => (at, Outcome::CloseAtOnce),
                    false => (data.len(), Outcome::Close),
                };
            }
            let works = self.works();
            if at == data.len() && !works {
                return (at, Outcome::Receive);
            }
            if out.len() >= UNSENT_BYTES_MAX {
                return (at, Outcome::Resume);
            }
            if self.budget.is_spent() {
                return (at, Outcome::Work);
            }
            if works {
                match may_work && self.work(at < data.len(), now_ms, context, out) {
                    true => continue,
                    false => return (at, Outcome::Work),
                }
            }
            match self.step(&data[at..], now_ms, context, out) {
                Ok(Some(taken)) => at += taken,
                // Closing although nothing was consumed: the body is not wanted anymore.
                Ok(None) if self.closing => return (data.len(), Outcome::Close),
                Ok(None) => {
                    return match &mut self.stage {
                        Stage::Asked(asked) => {
                            (at + std::mem::take(&mut asked.unconsumed), Outcome::Wait)
                        }
                        _ => (at, Outcome::Receive),
                    };
                }
                Err(refusal) => {
                    let is_head = self.is_head(&data[at..]);
                    self.refuse(refusal, is_head, context, out);
                }
            }
        }
    }

    /// Takes one step with `data`, which is not empty: returns how many bytes it consumed, or `None`
    /// if more must arrive first.
    #[inline]
    fn step<H: Handler<Work = W>>(
        &mut self,
        data: &[u8],
        now_ms: u64,
        context: &mut Context<H>,
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
                let known = if self.begun { None } else { context.head_cache.find(data) };
                let head = match known {
                    Some(head) => head,
                    None => {
                        let scanned = scan.parse(data, &context.bound_host);
                        self.budget.charge(units::HEAD);
                        let Some(mut head) = scanned? else {
                            // Its bytes are charged once it is complete.
                            self.begin(now_ms);
                            return Ok(None);
                        };
                        self.budget.charge(units::HEAD_BYTE * u32::from(head.length()));
                        head.is_batch = self.is_batch(&head, &data[..head.bytes], context);
                        context.head_cache.keep(&head, &data[..head.bytes]);
                        head
                    }
                };
                match head.is_batch {
                    false => self.start_body(head, data, now_ms, context, out),
                    true => self.start_batch(head, data, now_ms, context, out),
                }
            }
            Stage::Body { head, length } => {
                let (head, length) = (*head, *length);
                Ok(self.finish_body(head, length, data, now_ms, context, out))
            }
            Stage::Chunked(request) => {
                let limit = self.limits.body_bytes_max;
                let arrived = data.len();
                // The budget is looked at between two of them.
                let data = &data[..arrived.min(CHUNKED_BYTES_AT_ONCE)];
                match request.chunked.feed(data, limit, &mut request.bytes) {
                    Err(Refusal::LargeBody) => {
                        let (head, bytes) = (request.head, std::mem::take(&mut request.bytes));
                        self.refuse_body(head, &bytes, now_ms, context, out)
                    }
                    Err(refusal) => Err(refusal),
                    Ok(Progress::More) => {
                        self.budget.charge(chunked_units(data.len()));
                        Ok(Some(data.len()))
                    }
                    Ok(Progress::Done(taken)) => {
                        self.budget.charge(chunked_units(taken));
                        let ChunkedRequest { head, bytes, .. } = &mut **request;
                        let (head, bytes) = (*head, std::mem::take(bytes));
                        self.stage = Stage::START;
                        let has_more = taken < arrived;
                        match self.handle(&head, &bytes, has_more, now_ms, context, out) {
                            Handled::Responded(_) => Ok(Some(taken)),
                            Handled::NotYet => {
                                self.ask(&head, bytes, taken);
                                Ok(None)
                            }
                        }
                    }
                }
            }
            Stage::Asked(_) => unreachable!("what is received is kept until it is resumed"),
            Stage::Batch(batch) => {
                let limit = self.limits.batch_bytes_max;
                let data = match batch.end {
                    BodyEnd::Length(_) => data,
                    BodyEnd::Chunked(_) => &data[..data.len().min(CHUNKED_BYTES_AT_ONCE)],
                };
                let (taken, is_whole) = batch.take(data, limit)?;
                let units = batch.units(taken);
                self.budget.charge(units);
                if is_whole {
                    self.start_work();
                }
                Ok(Some(taken))
            }
            // The caller does the work.
            Stage::Work(_) => Ok(None),
            Stage::Skip { left } => {
                let taken = data.len().min(*left);
                *left -= taken;
                self.budget.charge_bytes(taken, units::MOVED_BYTES);
                if *left == 0 {
                    (self.stage, self.begun, self.since_ms) = (Stage::START, false, now_ms);
                }
                Ok(Some(taken))
            }
        }
    }

    /// Whether the body behind a head is a batch.
    fn is_batch<H: Handler<Work = W>>(
        &self,
        head: &Head,
        head_only: &[u8],
        context: &Context<H>,
    ) -> bool {
        head.target(head_only)
            .is_ok_and(|target| context.handler.is_batch(&self.request(head, head_only, target)))
    }

    /// Continues from the complete head of a batch at the start of `data`.
    fn start_batch<H: Handler<Work = W>>(
        &mut self,
        head: Head,
        data: &[u8],
        now_ms: u64,
        context: &mut Context<H>,
        out: &mut Vec<u8>,
    ) -> Result<Option<usize>, Refusal> {
        let bytes_max = self.limits.batch_bytes_max;
        let (bytes, end) = match head.framing {
            Framing::Length(length) => {
                let length = usize::try_from(length).ok().filter(|length| *length <= bytes_max);
                let length = length.ok_or(Refusal::LargeBatch)?;
                (length, BodyEnd::Length(length))
            }
            // As many bytes of framing as of data.
            Framing::Chunked => {
                let framing_bytes_max = bytes_max.max(CHUNK_FRAMING_BYTES_MAX);
                (bytes_max, BodyEnd::Chunked(Chunked::new(framing_bytes_max)))
            }
        };
        let is_chunked = matches!(end, BodyEnd::Chunked(_));
        let waits = head.expects_continue && data.len() == head.bytes && bytes > 0;
        // If it is refused, the connection goes on behind a body that comes in any case and whose end is known.
        let persistence = match waits || is_chunked {
            true => Persistence::Close,
            false => self.persistence(&head, true),
        };
        let head_only = &data[..head.bytes];
        let request = self.request(&head, head_only, head.target(head_only)?);
        let reply = Reply::new(out, &context.date, persistence, false);
        let begun = context.handler.begin_batch(&request, bytes, reply);
        self.budget.charge(units::REFUSAL);
        self.begin(now_ms);
        self.since_ms = now_ms;
        let Some((work, body)) = begun else {
            self.closing = persistence == Persistence::Close;
            self.begun = bytes > 0;
            self.stage = if bytes > 0 { Stage::Skip { left: bytes } } else { Stage::START };
            return Ok(Some(head.bytes));
        };
        if waits {
            out.extend_from_slice(CONTINUE);
        }
        self.stage = Stage::Batch(Box::new(BatchRequest { head, end, body, work }));
        if bytes == 0 {
            self.start_work();
        }
        Ok(Some(head.bytes))
    }

    /// Notes that the body of a batch is whole.
    fn start_work(&mut self) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::START) {
            Stage::Batch(batch) => Stage::Work(batch),
            other => other,
        };
    }

    /// Works on a batch until the budget is spent. Returns whether that is done.
    fn work<H: Handler<Work = W>>(
        &mut self,
        has_more: bool,
        now_ms: u64,
        context: &mut Context<H>,
        out: &mut Vec<u8>,
    ) -> bool {
        let Stage::Work(batch) = &self.stage else { return true };
        let persistence = self.persistence(&batch.head, has_more);
        let Stage::Work(batch) = &mut self.stage else { return true };
        let reply = Reply::new(out, &context.date, persistence, false);
        let BatchRequest { work, body, .. } = &mut **batch;
        let is_done = context.handler.work(work, body, &mut self.budget, reply);
        if is_done {
            self.closing = persistence == Persistence::Close;
            self.peer_has_finished = batch.head.is_last();
            (self.stage, self.begun, self.since_ms) = (Stage::START, false, now_ms);
        }
        is_done
    }

    /// Notes that a request has begun.
    fn begin(&mut self, now_ms: u64) {
        if !self.begun {
            self.begun = true;
            self.since_ms = now_ms;
        }
    }

    /// Continues from a complete head at the start of `data`.
    #[inline]
    fn start_body<H: Handler<Work = W>>(
        &mut self,
        head: Head,
        data: &[u8],
        now_ms: u64,
        context: &mut Context<H>,
        out: &mut Vec<u8>,
    ) -> Result<Option<usize>, Refusal> {
        let arrived = data.len() - head.bytes;
        match head.framing {
            Framing::Length(length) if length > self.limits.body_bytes_max as u64 => {
                self.refuse_body(head, data, now_ms, context, out)
            }
            Framing::Length(length) => {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "at most a limit that is a usize"
                )]
                let length = length as usize;
                if length > 0 && arrived == 0 && head.expects_continue {
                    self.meet_expectation(&head, data, now_ms, context, out);
                    if matches!(self.stage, Stage::Asked(_)) {
                        return Ok(None);
                    }
                }
                if self.closing {
                    // The response was the last: what comes is not read.
                    return Ok(None);
                }
                if arrived < length {
                    self.begin(now_ms);
                    self.since_ms = now_ms;
                    self.stage = Stage::Body { head, length };
                }
                Ok(self.finish_body(head, length, data, now_ms, context, out))
            }
            Framing::Chunked => {
                if arrived == 0 && head.expects_continue {
                    self.meet_expectation(&head, data, now_ms, context, out);
                    if matches!(self.stage, Stage::Asked(_)) {
                        return Ok(None);
                    }
                }
                if self.closing {
                    return Ok(None);
                }
                self.begin(now_ms);
                self.since_ms = now_ms;
                self.stage = Stage::Chunked(Box::new(ChunkedRequest {
                    head,
                    chunked: Chunked::new(CHUNK_FRAMING_BYTES_MAX),
                    bytes: data[..head.bytes].to_vec(),
                }));
                Ok(Some(head.bytes))
            }
        }
    }

    /// Refuses a request with a body that is too large: for its target or its method, if nobody could send it a smaller one.
    #[cold]
    fn refuse_body<H: Handler<Work = W>>(
        &mut self,
        head: Head,
        bytes: &[u8],
        now_ms: u64,
        context: &mut Context<H>,
        out: &mut Vec<u8>,
    ) -> Result<Option<usize>, Refusal> {
        let head_only = &bytes[..head.bytes];
        if context.handler.knows(&self.request(&head, head_only, head.target(head_only)?)) {
            return Err(Refusal::LargeBody);
        }
        let last = Head { is_persistent: false, expects_continue: true, ..head };
        self.stage = Stage::START;
        let _ = self.handle(&last, head_only, false, now_ms, context, out);
        Ok(None)
    }

    /// Handles a request whose body has a known length, once all of it is in `data`.
    #[inline]
    fn finish_body<H: Handler<Work = W>>(
        &mut self,
        head: Head,
        length: usize,
        data: &[u8],
        now_ms: u64,
        context: &mut Context<H>,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        if self.closing || data.len() - head.bytes < length {
            return None;
        }
        let total = head.bytes + length;
        self.stage = Stage::START;
        match self.handle(&head, &data[..total], data.len() > total, now_ms, context, out) {
            Handled::Responded(_) => Some(total),
            Handled::NotYet => {
                self.ask(&head, data[..total].to_vec(), total);
                None
            }
        }
    }

    /// Keeps a request that the handler cannot respond to yet, and of which so much is not consumed.
    #[cold]
    fn ask(&mut self, head: &Head, bytes: Vec<u8>, unconsumed: usize) {
        (self.begun, self.closing) = (true, false);
        self.stage = Stage::Asked(Box::new(AskedRequest { head: *head, bytes, unconsumed }));
    }

    /// Tells a client that waits whether to send its body (RFC 9110 section 10.1.1). If the body is
    /// not wanted, the response comes at once, and the connection ends with it.
    fn meet_expectation<H: Handler<Work = W>>(
        &mut self,
        head: &Head,
        data: &[u8],
        now_ms: u64,
        context: &mut Context<H>,
        out: &mut Vec<u8>,
    ) {
        let head_only = &data[..head.bytes];
        let is_wanted = head.target(head_only).is_ok_and(|target| {
            let request = self.request(head, head_only, target);
            context.handler.wants_body(&request)
        });
        if is_wanted {
            out.extend_from_slice(CONTINUE);
        } else {
            let last = Head { is_persistent: false, ..*head };
            if self.handle(&last, head_only, false, now_ms, context, out) == Handled::NotYet {
                self.ask(&last, head_only.to_vec(), data.len());
            }
        }
    }

    /// A request whose head and decoded body are `bytes`.
    #[inline]
    fn request<'a>(&self, head: &'a Head, bytes: &'a [u8], target: Target<'a>) -> Request<'a> {
        let body = &bytes[head.bytes..];
        Request { head, bytes, target, body, peer_is_loopback: self.peer_is_loopback }
    }

    /// Hands over a complete request. `bytes` are its head and its decoded body; `has_more` says whether
    /// something has arrived behind it.
    #[inline]
    fn handle<H: Handler<Work = W>>(
        &mut self,
        head: &Head,
        bytes: &[u8],
        has_more: bool,
        now_ms: u64,
        context: &mut Context<H>,
        out: &mut Vec<u8>,
    ) -> Handled {
        let is_head = head.method == Method::Head;
        let target = match head.target(bytes) {
            Ok(target) => target,
            Err(refusal) => {
                self.refuse(refusal, is_head, context, out);
                return Handled::Responded(0);
            }
        };
        let persistence = match target {
            // Bytes behind a request for a tunnel are not requests.
            Target::Tunnel => Persistence::Close,
            _ => self.persistence(head, has_more),
        };
        self.closing = persistence == Persistence::Close;
        self.peer_has_finished = head.is_last();
        self.begun = false;
        self.since_ms = now_ms;
        if !head.has_plain_path {
            // It is decoded for each request.
            self.budget.charge(units::HEAD_BYTE * u32::from(head.length()));
        }
        let request = self.request(head, bytes, target);
        let reply = Reply::new(out, &context.date, persistence, is_head);
        self.budget.charge_bytes(bytes.len(), units::READ_BYTES);
        let handled = context.handler.handle(&request, reply);
        if let Handled::Responded(units) = handled {
            self.budget.charge(units);
        }
        handled
    }

    /// Whether the connection goes on behind the response to a request. `has_more` says whether something has arrived
    /// behind the request.
    #[inline]
    fn persistence(&self, head: &Head, has_more: bool) -> Persistence {
        let is_last = self.draining && !has_more;
        match (head.is_persistent && !is_last, head.is_1_1) {
            (true, true) => Persistence::Implied,
            (true, false) => Persistence::KeepAlive,
            (false, _) => Persistence::Close,
        }
    }

    /// Whether the request that starts or continues with `data` is a HEAD request, or could become
    /// one. No response to HEAD has a body (RFC 9110 section 9.3.2).
    fn is_head(&self, data: &[u8]) -> bool {
        const START: &[u8] = b"HEAD ";
        match &self.stage {
            Stage::Head { .. } => {
                let start = &data[..data.len().min(START.len())];
                !start.is_empty() && START.starts_with(start)
            }
            Stage::Body { head, .. } => head.method == Method::Head,
            Stage::Chunked(request) => request.head.method == Method::Head,
            Stage::Asked(request) => request.head.method == Method::Head,
            Stage::Batch(batch) | Stage::Work(batch) => batch.head.method == Method::Head,
            Stage::Skip { .. } => false,
        }
    }

    /// Responds with an error after which the end of the request cannot be known.
    #[cold]
    fn refuse<H: Handler<Work = W>>(
        &mut self,
        refusal: Refusal,
        is_head: bool,
        context: &mut Context<H>,
        out: &mut Vec<u8>,
    ) {
        self.closing = true;
        // What was received of it is not wanted anymore.
        self.stage = Stage::START;
        self.budget.charge(units::REFUSAL);
        let (status, sentence) = refusal.response();
        if refusal == Refusal::Http2 {
            out.extend_from_slice(GO_AWAY);
            return context.handler.refused(status);
        }
        let reply = Reply::new(out, &context.date, Persistence::Close, is_head);
        context.handler.refused(reply.send_error(status, &[], sentence));
    }
}

/// The cost of reading bytes of a chunked body.
fn chunked_units(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX).saturating_mul(units::CHUNKED_BYTE)
}

impl<W> BatchRequest<W> {
    /// The cost of taking bytes of the body.
    fn units(&self, bytes: usize) -> u32 {
        match self.end {
            BodyEnd::Length(_) => u32::try_from(bytes / units::COPIED_BYTES).unwrap_or(u32::MAX),
            BodyEnd::Chunked(_) => chunked_units(bytes),
        }
    }

    /// Takes what `data` has of the body, at most `bytes_max` bytes in all. Returns how many bytes of it belong to the
    /// body, and whether that is whole.
    fn take(&mut self, data: &[u8], bytes_max: usize) -> Result<(usize, bool), Refusal> {
        match &mut self.end {
            BodyEnd::Length(left) => {
                let taken = data.len().min(*left);
                self.body.extend_from_slice(&data[..taken]);
                *left -= taken;
                Ok((taken, *left == 0))
            }
            BodyEnd::Chunked(chunked) => match chunked.feed(data, bytes_max, &mut self.body) {
                Ok(Progress::More) => Ok((data.len(), false)),
                Ok(Progress::Done(taken)) => Ok((taken, true)),
                Err(Refusal::LargeBody) => Err(Refusal::LargeBatch),
                Err(refusal) => Err(refusal),
            },
        }
    }
}
