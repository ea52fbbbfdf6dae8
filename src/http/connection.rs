//! One connection: received bytes in, one step at a time out.
//!
//! The caller passes received bytes to [`Connection::step`], acts on the step that it returns, and calls it again with the
//! bytes that it did not take. The bytes of an incomplete request are not taken: the caller keeps them and passes them again,
//! before the bytes that arrive next. This module does not contain a socket or a clock, and does not respond to requests.

use super::budget::{Budget, units};
use super::chunked::{Chunked, Progress};
use super::context::Context;
use super::head::{Framing, Head, Scan};
use super::method::Method;
use super::refusal::Refusal;
use super::request::Request;
use super::response::{Persistence, Refused, ReplyTo};
use super::target::Target;
use super::{CHUNK_FRAMING_BYTES_MAX, EMPTY_LINES_MAX, Limits};

#[cfg(test)]
mod tests;

/// The result of a step.
#[derive(Debug)]
#[must_use]
pub enum Step<'a> {
    /// A complete request, to respond to.
    Request(Request<'a>),
    /// The head of a request whose client waits before it sends the body (RFC 9110 section 10.1.1): either append [`CONTINUE`]
    /// to the output, or call [`Connection::decline`] and respond.
    Expects(Request<'a>),
    /// The head of a request whose body is too large. The response to it is the last of the connection.
    TooLarge(Request<'a>),
    /// The head of a batch: either call [`Connection::accept_batch`] with memory for the body, or call
    /// [`Connection::decline`] and respond.
    Batch {
        /// The head of the batch.
        request: Request<'a>,
        /// The maximum number of bytes that its body can have.
        bytes: usize,
        /// Whether the client waits for [`CONTINUE`].
        expects: bool,
    },
    /// The body of the batch has arrived: respond to [`Connection::batch_reply_to`] and call
    /// [`Connection::finish_batch`] before the next step.
    BatchBody(Vec<u8>),
    /// A refused request, to respond to. The response is the last of the connection.
    Refused(Refused),
    /// Bytes were taken that do not complete a request, and there are more.
    Advanced,
    /// The remaining input is incomplete.
    NeedsMore,
    /// The last response was already due: the remaining input, and any further input, is not read.
    Ended(End),
}

/// The end of a connection after its last response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The write half is shut down; then incoming bytes are discarded for a bounded time (RFC 9112 section 9.6).
    Lingers,
    /// The connection closes immediately: the client has announced that the request was its last, and the entire request has
    /// arrived. The client must not send anything more (RFC 9112 section 9.6).
    ClosesAtOnce,
}

/// The input that a peer is expected to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// The first byte of a request.
    Idle,
    /// The end of a head.
    Header,
    /// The end of a body.
    Body,
}

/// The request that has begun to arrive and does not have a response yet.
#[derive(Debug)]
pub enum UnderWay<'a> {
    /// Not even a head has arrived.
    Nothing,
    /// A head, with this method and target.
    Request(Method, Target<'a>),
    /// The head of a batch.
    Batch,
}

/// Tells a client to send its body.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The maximum number of bytes of chunks that are read in one step. With one byte per chunk, they take 14 µs.
const CHUNKED_BYTES_AT_ONCE: usize = 4096;

/// The stage of a connection.
#[derive(Debug)]
enum Stage {
    /// Between requests.
    Idle { empty_lines: usize },
    /// The head of a request.
    Head { scan: Scan },
    /// A body of known length. The caller keeps it, after its head.
    Body { head: Head, length: usize },
    /// A chunked body.
    Chunked(Box<ChunkedRequest>),
    /// The body of a batch. Until it has memory, it has not been accepted.
    Batch(Box<BatchRequest>),
    /// A batch with this head that has arrived completely.
    WholeBatch(Box<Head>),
    /// The rest of a body, this many bytes, of a request that was responded to.
    Skip { left: usize },
    /// The last response is due or was made.
    Ended { peer_has_finished: bool },
}

impl Stage {
    const START: Self = Stage::Idle { empty_lines: 0 };
    const ENDED: Self = Stage::Ended { peer_has_finished: false };
}

#[derive(Debug)]
struct ChunkedRequest {
    head: Head,
    chunked: Chunked,
    /// The head as it was received, then the decoded body.
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct BatchRequest {
    head: Head,
    /// The rest of the body, as far as it is known.
    end: BodyEnd,
    /// The decoded body. Its memory has room for the whole body, so bytes are copied only once.
    body: Vec<u8>,
    /// Whether the connection continues after a refusal of the batch.
    if_declined: Persistence,
}

#[derive(Debug)]
enum BodyEnd {
    /// This many bytes are left.
    Length(usize),
    Chunked(Chunked),
}

/// The protocol state of one connection.
#[derive(Debug)]
pub struct Connection {
    limits: Limits,
    stage: Stage,
    /// The rest of its budget until other connections have their turn.
    pub budget: Budget,
    /// The time when the stage started, in the engine's milliseconds.
    since_ms: u64,
    /// Whether the next response is the last unless another request follows.
    is_draining: bool,
    peer_is_loopback: bool,
}

impl Connection {
    /// Creates the state of a connection that was accepted at `now_ms`.
    pub fn new(limits: Limits, peer_is_loopback: bool, now_ms: u64) -> Self {
        Connection {
            limits,
            stage: Stage::START,
            budget: Budget::FULL,
            since_ms: now_ms,
            is_draining: false,
            peer_is_loopback,
        }
    }

    /// Takes one step with the received bytes in `input`, and leaves there the bytes that it has not taken. `decoded` holds the
    /// bytes of a request that did not arrive in one piece.
    #[inline]
    pub fn step<'d, 'i: 'd>(
        &mut self,
        input: &mut &'i [u8],
        decoded: &'d mut Vec<u8>,
        context: &mut Context,
        now_ms: u64,
    ) -> Step<'d> {
        let data = *input;
        if let Stage::Idle { .. } = self.stage
            && let Some(head) = context.head_cache.find(data)
        {
            return self.begin_body(head, input, now_ms);
        }
        self.step_slowly(input, decoded, context, now_ms)
    }

    fn step_slowly<'d, 'i: 'd>(
        &mut self,
        input: &mut &'i [u8],
        decoded: &'d mut Vec<u8>,
        context: &mut Context,
        now_ms: u64,
    ) -> Step<'d> {
        let data = *input;
        match &mut self.stage {
            Stage::Ended { peer_has_finished } => {
                *input = &[];
                Step::Ended(match *peer_has_finished && data.is_empty() {
                    true => End::ClosesAtOnce,
                    false => End::Lingers,
                })
            }
            Stage::Batch(batch) if batch.is_whole() => self.give_batch_body(),
            _ if data.is_empty() => Step::NeedsMore,
            Stage::Idle { empty_lines } if data[0] == b'\r' => match data.get(1) {
                None => Step::NeedsMore,
                Some(b'\n') if *empty_lines < EMPTY_LINES_MAX => {
                    *empty_lines += 1;
                    *input = &data[2..];
                    Step::Advanced
                }
                Some(_) => self.refuse(Refusal::Malformed, data),
            },
            Stage::Idle { .. } => self.parse_head(Scan::START, input, context, now_ms),
            Stage::Head { scan } => {
                let scan = *scan;
                self.parse_head(scan, input, context, now_ms)
            }
            Stage::Body { head, length } => {
                let (head, length) = (*head, *length);
                self.finish_body(head, length, input, now_ms)
            }
            Stage::Chunked(_) => self.read_chunks(input, decoded, now_ms),
            Stage::Batch(_) => self.read_batch(input),
            // The caller must finish it first.
            Stage::WholeBatch(_) => Step::NeedsMore,
            Stage::Skip { left } => {
                let taken = data.len().min(*left);
                *left -= taken;
                *input = &data[taken..];
                self.budget.charge_moved(taken);
                if *left == 0 {
                    (self.stage, self.since_ms) = (Stage::START, now_ms);
                }
                Step::Advanced
            }
        }
    }

    /// Continues with the head of a request.
    fn parse_head<'i>(
        &mut self,
        mut scan: Scan,
        input: &mut &'i [u8],
        context: &mut Context,
        now_ms: u64,
    ) -> Step<'i> {
        let data = *input;
        let scanned = scan.parse(data, &context.bound_host);
        self.budget.charge(units::HEAD);
        let mut head = match scanned {
            Ok(Some(head)) => head,
            Ok(None) => {
                // Its bytes are charged once it is complete.
                self.begin(now_ms);
                self.stage = Stage::Head { scan };
                return Step::NeedsMore;
            }
            Err(refusal) => return self.refuse(refusal, data),
        };
        self.budget.charge(units::HEAD_BYTE * u32::from(head.length()));
        head.is_batch = head.method == Method::Post
            && matches!(head.target(data), Ok(Target::Path(path)) if *path == *context.batch_path);
        context.head_cache.keep(&head, &data[..head.bytes]);
        self.begin_body(head, input, now_ms)
    }

    /// Continues from a complete head at the start of `input`.
    #[inline]
    fn begin_body<'i>(&mut self, head: Head, input: &mut &'i [u8], now_ms: u64) -> Step<'i> {
        if let Framing::Length(length) = head.framing
            && !head.is_batch
            && !head.expects_continue
            && length <= self.limits.body_bytes_max as u64
        {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "at most a limit that is a usize"
            )]
            return self.finish_body(head, length as usize, input, now_ms);
        }
        match head.is_batch {
            true => self.offer_batch(head, input, now_ms),
            false => self.begin_unusual_body(head, input, now_ms),
        }
    }

    /// Returns a request whose body has a known length once it is complete.
    #[inline]
    fn finish_body<'i>(
        &mut self,
        head: Head,
        length: usize,
        input: &mut &'i [u8],
        now_ms: u64,
    ) -> Step<'i> {
        let data = *input;
        if data.len() - head.bytes < length {
            if !matches!(self.stage, Stage::Body { .. }) {
                (self.stage, self.since_ms) = (Stage::Body { head, length }, now_ms);
            }
            return Step::NeedsMore;
        }
        let (bytes, rest) = data.split_at(head.bytes + length);
        *input = rest;
        self.give(head, bytes, !rest.is_empty(), now_ms)
    }

    /// Continues after the head of a request whose body is too large, chunked, or announced with `Expect`.
    #[cold]
    fn begin_unusual_body<'i>(
        &mut self,
        head: Head,
        input: &mut &'i [u8],
        now_ms: u64,
    ) -> Step<'i> {
        let data = *input;
        let (head_only, behind) = data.split_at(head.bytes);
        let target = match head.target(data) {
            Ok(target) => target,
            Err(refusal) => return self.refuse(refusal, data),
        };
        let last = ReplyTo::last(head.method);
        let peer_is_loopback = self.peer_is_loopback;
        let request = Request { head, bytes: head_only, target, peer_is_loopback, reply_to: last };
        self.since_ms = now_ms;
        match head.framing {
            Framing::Length(length) if length > self.limits.body_bytes_max as u64 => {
                self.stage = Stage::ENDED;
                *input = &[];
                return Step::TooLarge(request);
            }
            Framing::Length(length) => {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "at most a limit that is a usize"
                )]
                let length = length as usize;
                if length == 0 || !behind.is_empty() {
                    return self.finish_body(head, length, input, now_ms);
                }
                self.stage = Stage::Body { head, length };
            }
            Framing::Chunked => {
                self.stage = Stage::Chunked(Box::new(ChunkedRequest {
                    head,
                    chunked: Chunked::new(CHUNK_FRAMING_BYTES_MAX),
                    bytes: head_only.to_vec(),
                }));
                *input = behind;
            }
        }
        match head.expects_continue && behind.is_empty() {
            true => Step::Expects(request),
            false => Step::Advanced,
        }
    }

    /// Reads a part of a chunked body, and returns the request once it is complete.
    fn read_chunks<'d>(
        &mut self,
        input: &mut &[u8],
        decoded: &'d mut Vec<u8>,
        now_ms: u64,
    ) -> Step<'d> {
        let Stage::Chunked(request) = &mut self.stage else { return Step::NeedsMore };
        // The budget is checked between steps.
        let data = &input[..input.len().min(CHUNKED_BYTES_AT_ONCE)];
        let progress = request.chunked.feed(data, self.limits.body_bytes_max, &mut request.bytes);
        let head = request.head;
        let taken = match progress {
            Ok(Progress::More) => {
                self.budget.charge(chunked_units(data.len()));
                *input = &input[data.len()..];
                return Step::Advanced;
            }
            Ok(Progress::Done(taken)) => taken,
            Err(Refusal::LargeBody) => {
                *decoded = std::mem::take(&mut request.bytes);
                return self.give_too_large(head, decoded);
            }
            Err(refusal) => return self.refuse(refusal, data),
        };
        self.budget.charge(chunked_units(taken));
        *input = &input[taken..];
        *decoded = std::mem::take(&mut request.bytes);
        self.give(head, decoded, !input.is_empty(), now_ms)
    }

    /// Returns the head of a request with a chunked body that is too large.
    fn give_too_large<'d>(&mut self, head: Head, bytes: &'d [u8]) -> Step<'d> {
        self.stage = Stage::ENDED;
        // The target was read before.
        let Ok(target) = head.target(bytes) else {
            return Step::Refused(Refused { refusal: Refusal::Target, is_head: false });
        };
        let reply_to = ReplyTo::last(head.method);
        let (bytes, peer_is_loopback) = (&bytes[..head.bytes], self.peer_is_loopback);
        Step::TooLarge(Request { head, bytes, target, peer_is_loopback, reply_to })
    }

    /// Returns a complete request. `bytes` are its head and its decoded body; `has_more` is whether anything
    /// has arrived after it.
    #[inline]
    fn give<'d>(&mut self, head: Head, bytes: &'d [u8], has_more: bool, now_ms: u64) -> Step<'d> {
        let target = match head.target(bytes) {
            Ok(target) => target,
            Err(refusal) => return self.refuse(refusal, bytes),
        };
        let persistence = match target {
            // Bytes after a request for a tunnel are not requests.
            Target::Tunnel => Persistence::Close,
            _ => self.persistence(&head, has_more),
        };
        self.answer(&head, persistence);
        self.since_ms = now_ms;
        if !head.has_plain_path {
            // The path is decoded for each request.
            self.budget.charge(units::HEAD_BYTE * u32::from(head.length()));
        }
        self.budget.charge_bytes(bytes.len(), units::READ_BYTES);
        let reply_to = ReplyTo { persistence, is_head: head.method == Method::Head };
        let peer_is_loopback = self.peer_is_loopback;
        Step::Request(Request { head, bytes, target, peer_is_loopback, reply_to })
    }

    /// Moves to the stage after a response.
    #[inline]
    fn answer(&mut self, head: &Head, persistence: Persistence) {
        self.stage = match persistence {
            Persistence::Close => Stage::Ended { peer_has_finished: head.is_last() },
            _ => Stage::START,
        };
    }

    /// Returns whether the connection continues after the response to a request. `has_more` is whether anything has
    /// arrived after the request.
    #[inline]
    fn persistence(&self, head: &Head, has_more: bool) -> Persistence {
        let is_last = self.is_draining && !has_more;
        match (head.is_persistent && !is_last, head.is_1_1) {
            (true, true) => Persistence::Implied,
            (true, false) => Persistence::KeepAlive,
            (false, _) => Persistence::Close,
        }
    }

    /// Returns the head of a batch at the start of `input`.
    fn offer_batch<'i>(&mut self, head: Head, input: &mut &'i [u8], now_ms: u64) -> Step<'i> {
        let data = *input;
        let bytes_max = self.limits.batch_bytes_max;
        let (bytes, end) = match head.framing {
            Framing::Length(length) => {
                let length = usize::try_from(length).ok().filter(|length| *length <= bytes_max);
                let Some(length) = length else { return self.refuse(Refusal::LargeBatch, data) };
                (length, BodyEnd::Length(length))
            }
            // The framing may take as many bytes as the data.
            Framing::Chunked => {
                let framing_bytes_max = bytes_max.max(CHUNK_FRAMING_BYTES_MAX);
                (bytes_max, BodyEnd::Chunked(Chunked::new(framing_bytes_max)))
            }
        };
        let target = match head.target(data) {
            Ok(target) => target,
            Err(refusal) => return self.refuse(refusal, data),
        };
        let expects = head.expects_continue && data.len() == head.bytes && bytes > 0;
        // If the batch is refused, the connection continues only if the body will arrive in any case and its end is known.
        let persistence = match expects || matches!(end, BodyEnd::Chunked(_)) {
            true => Persistence::Close,
            false => self.persistence(&head, true),
        };
        let reply_to = ReplyTo { persistence, is_head: false };
        self.budget.charge(units::REFUSAL);
        self.since_ms = now_ms;
        let batch = BatchRequest { head, end, body: Vec::new(), if_declined: persistence };
        self.stage = Stage::Batch(Box::new(batch));
        let (head_only, rest) = data.split_at(head.bytes);
        *input = rest;
        let peer_is_loopback = self.peer_is_loopback;
        let request = Request { head, bytes: head_only, target, peer_is_loopback, reply_to };
        Step::Batch { request, bytes, expects }
    }

    /// Accepts the batch whose head was returned, and provides memory for its body.
    pub fn accept_batch(&mut self, memory: Vec<u8>) {
        if let Stage::Batch(batch) = &mut self.stage {
            batch.body = memory;
        }
    }

    /// Declines the body of a request whose head was returned. The caller responds to it separately.
    pub fn decline(&mut self) {
        self.stage = match &self.stage {
            Stage::Batch(batch) => match (batch.if_declined, &batch.end) {
                (Persistence::Close, _) | (_, BodyEnd::Chunked(_)) => Stage::ENDED,
                (_, BodyEnd::Length(0)) => Stage::START,
                (_, BodyEnd::Length(left)) => Stage::Skip { left: *left },
            },
            _ => Stage::ENDED,
        };
    }

    /// Reads a part of the body of a batch.
    fn read_batch<'i>(&mut self, input: &mut &'i [u8]) -> Step<'i> {
        let limit = self.limits.batch_bytes_max;
        let Stage::Batch(batch) = &mut self.stage else { return Step::NeedsMore };
        let (taken, is_whole) = match &mut batch.end {
            BodyEnd::Length(left) => {
                let taken = input.len().min(*left);
                batch.body.extend_from_slice(&input[..taken]);
                *left -= taken;
                self.budget.charge_bytes(taken, units::COPIED_BYTES);
                (taken, *left == 0)
            }
            BodyEnd::Chunked(chunked) => {
                let data = &input[..input.len().min(CHUNKED_BYTES_AT_ONCE)];
                let (taken, is_whole) = match chunked.feed(data, limit, &mut batch.body) {
                    Ok(Progress::More) => (data.len(), false),
                    Ok(Progress::Done(taken)) => (taken, true),
                    Err(Refusal::LargeBody) => return self.refuse(Refusal::LargeBatch, input),
                    Err(refusal) => return self.refuse(refusal, input),
                };
                self.budget.charge(chunked_units(taken));
                (taken, is_whole)
            }
        };
        *input = &input[taken..];
        match is_whole {
            true => self.give_batch_body(),
            false => Step::Advanced,
        }
    }

    fn give_batch_body<'d>(&mut self) -> Step<'d> {
        let Stage::Batch(batch) = &mut self.stage else { return Step::NeedsMore };
        let (head, body) = (batch.head, std::mem::take(&mut batch.body));
        self.stage = Stage::WholeBatch(Box::new(head));
        Step::BatchBody(body)
    }

    /// Returns the form that the response to the complete batch must have. `has_more` is whether anything has arrived after it.
    pub fn batch_reply_to(&self, has_more: bool) -> ReplyTo {
        match &self.stage {
            Stage::WholeBatch(head) => {
                ReplyTo { persistence: self.persistence(head, has_more), is_head: false }
            }
            _ => ReplyTo::LAST,
        }
    }

    /// Notes that the response to [`Connection::batch_reply_to`] was made.
    pub fn finish_batch(&mut self, reply_to: ReplyTo, now_ms: u64) {
        if let Stage::WholeBatch(head) = &self.stage {
            let head = **head;
            self.answer(&head, reply_to.persistence);
            self.since_ms = now_ms;
        }
    }

    /// Returns the number of bytes of a batch that have not arrived yet, if [`Connection::fill`] can receive them.
    #[inline]
    pub fn missing(&self) -> usize {
        match &self.stage {
            Stage::Batch(batch) => match batch.end {
                BodyEnd::Length(left) => left,
                BodyEnd::Chunked(_) => 0,
            },
            _ => 0,
        }
    }

    /// Calls `receive` to append bytes of a batch to those that have arrived, up to the number that it is given, without
    /// an intermediate buffer.
    pub fn fill<R>(&mut self, receive: impl FnOnce(&mut Vec<u8>, usize) -> R) -> Option<R> {
        let room = self.budget.room(units::COPIED_BYTES);
        let Stage::Batch(batch) = &mut self.stage else { return None };
        let BodyEnd::Length(left) = &mut batch.end else { return None };
        let before = batch.body.len();
        let received = receive(&mut batch.body, room.min(*left));
        let more = batch.body.len() - before;
        *left = left.checked_sub(more).expect("no more than were missing");
        self.budget.charge_bytes(more, units::COPIED_BYTES);
        Some(received)
    }

    /// Returns the deadline of the peer, in the engine's milliseconds.
    pub fn deadline_ms(&self) -> u64 {
        if matches!(self.stage, Stage::WholeBatch(_)) {
            return u64::MAX;
        }
        let timeouts = &self.limits.timeouts;
        self.since_ms.saturating_add(match self.waited() {
            Waited::Idle => timeouts.idle_ms,
            Waited::Header => timeouts.header_ms,
            Waited::Body => timeouts.body_ms,
        })
    }

    /// Returns the request that has begun to arrive and does not have a response yet. `kept` are its bytes
    /// that the caller keeps.
    pub fn under_way<'a>(&'a self, kept: &'a [u8]) -> UnderWay<'a> {
        let (head, bytes) = match &self.stage {
            Stage::Batch(_) | Stage::WholeBatch(_) => return UnderWay::Batch,
            Stage::Body { head, .. } => (head, kept),
            Stage::Chunked(request) => (&request.head, &request.bytes[..]),
            Stage::Idle { .. } | Stage::Head { .. } | Stage::Skip { .. } | Stage::Ended { .. } => {
                return UnderWay::Nothing;
            }
        };
        match head.target(bytes) {
            Ok(target) => UnderWay::Request(head.method, target),
            Err(_) => UnderWay::Nothing,
        }
    }

    /// Returns the number of bytes that the caller must keep for the request whose body is arriving.
    pub fn body_bytes_kept(&self) -> usize {
        match &self.stage {
            Stage::Body { head, length } => head.bytes + length,
            _ => 0,
        }
    }

    /// Returns the input that the peer is expected to send.
    pub fn waited(&self) -> Waited {
        match self.stage {
            Stage::Idle { .. } | Stage::Ended { .. } => Waited::Idle,
            Stage::Head { .. } => Waited::Header,
            _ => Waited::Body,
        }
    }

    /// Returns whether the next request can be taken while an earlier one waits for its response: it has a safe method, so it
    /// may be handled before that response is made (RFC 9112 section 9.3.2).
    pub fn may_overtake(&self, data: &[u8]) -> bool {
        matches!(self.stage, Stage::Idle { .. })
            && (data.starts_with(b"GET ") || data.starts_with(b"HEAD "))
    }

    /// Ends a connection whose deadline has passed. Returns the refusal of the incomplete request, if any. `kept` are its bytes
    /// that the caller keeps.
    pub fn expire(&mut self, kept: &[u8]) -> Option<Refused> {
        let is_refused =
            !matches!(self.stage, Stage::Idle { .. } | Stage::Skip { .. } | Stage::Ended { .. });
        let refused = is_refused.then(|| self.refused(Refusal::Timeout, kept));
        self.stage = Stage::ENDED;
        refused
    }

    /// Ends the connection: further input is not read.
    pub fn end(&mut self) {
        self.stage = Stage::ENDED;
    }

    /// Sets whether the connection ends with the response to the last request that has arrived.
    #[inline]
    pub fn set_draining(&mut self, is_draining: bool) {
        self.is_draining = is_draining;
    }

    /// Returns whether the next step would need bytes if none are left.
    #[inline]
    pub fn needs_bytes(&self) -> bool {
        match &self.stage {
            Stage::Ended { .. } | Stage::WholeBatch(_) => false,
            Stage::Batch(batch) => !batch.is_whole(),
            _ => true,
        }
    }

    /// Returns whether the last response was made or is due, and no more input is read.
    #[inline]
    pub fn has_ended(&self) -> bool {
        matches!(self.stage, Stage::Ended { .. })
    }

    /// Returns whether there is a batch to work on.
    #[inline]
    pub fn has_batch(&self) -> bool {
        matches!(self.stage, Stage::WholeBatch(_))
    }

    /// Returns whether a request has begun and does not have a response yet.
    pub fn has_begun(&self) -> bool {
        !matches!(self.stage, Stage::Idle { .. } | Stage::Ended { .. })
    }

    /// Returns the time that the peer has to read responses, in milliseconds.
    pub fn send_timeout_ms(&self) -> u64 {
        self.limits.timeouts.idle_ms
    }

    /// Notes that a request has begun.
    fn begin(&mut self, now_ms: u64) {
        if matches!(self.stage, Stage::Idle { .. }) {
            self.since_ms = now_ms;
        }
    }

    /// Refuses the part of a request that has arrived. The end of the request cannot be known afterwards.
    #[cold]
    fn refuse<'d>(&mut self, refusal: Refusal, data: &[u8]) -> Step<'d> {
        let refused = self.refused(refusal, data);
        self.budget.charge(units::REFUSAL);
        self.stage = Stage::ENDED;
        Step::Refused(refused)
    }

    fn refused(&self, refusal: Refusal, data: &[u8]) -> Refused {
        Refused { refusal, is_head: self.is_head(data) }
    }

    /// Returns whether the request that starts or continues with `data` is a HEAD request, or could
    /// become one. No response to HEAD has a body (RFC 9110 section 9.3.2).
    fn is_head(&self, data: &[u8]) -> bool {
        const START: &[u8] = b"HEAD ";
        match &self.stage {
            Stage::Idle { .. } | Stage::Head { .. } => {
                let start = &data[..data.len().min(START.len())];
                !start.is_empty() && START.starts_with(start)
            }
            Stage::Body { head, .. } => head.method == Method::Head,
            Stage::Chunked(request) => request.head.method == Method::Head,
            Stage::Batch(_) | Stage::WholeBatch(_) | Stage::Skip { .. } | Stage::Ended { .. } => {
                false
            }
        }
    }
}

impl BatchRequest {
    /// Returns whether the entire body has arrived.
    fn is_whole(&self) -> bool {
        matches!(self.end, BodyEnd::Length(0))
    }
}

/// Returns the cost of reading bytes of a chunked body.
fn chunked_units(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX).saturating_mul(units::CHUNKED_BYTE)
}
