//! One connection above HTTP: what it owes its peer, what it does next, and how it ends.
//!
//! It does not know about sockets. Its inputs are bytes, time, and the epochs that the store has settled; its output is one
//! [`Action`] at a time. Both engines and every simulator drive it.

mod deadlines;
#[cfg(test)]
mod tests;

pub use deadlines::Due;

use crate::http::{self, Budget, End, Limits, Step};
use crate::metrics::Kind;
use crate::service::{Progress, Responses, Service, Work};
use crate::store::Release;

/// The maximum time that a closing connection reads and discards input, so that the peer can read the last response
/// (RFC 9112 section 9.6).
pub const LINGER_MS: u64 = 2_000;
/// The maximum number of bytes that are discarded.
pub const LINGER_BYTES_MAX: usize = 4 << 20;

/// The minimum time that a connection with nothing in flight must have been quiet before a stop closes it. Within that time,
/// any request that the peer sent before it could know about the stop will have arrived.
pub const DRAIN_QUIET_MS: u64 = 20;

/// The maximum number of bytes that a connection keeps while it must not receive. This is twice as many as a multishot receive
/// delivers before it can be canceled: if a cancel fails and the peer keeps sending, the connection is closed.
pub const KEPT_BYTES_MAX: usize = 256 * 1024;

/// If at least this many bytes of a batch are missing, they are received directly into the batch,
/// without an intermediate buffer.
const FILL_BYTES_MIN: usize = 4096;

/// The urgency of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// No stop was requested.
    Serve,
    /// Finish what is in flight.
    Drain,
    /// Close every connection immediately.
    Abort,
}

/// The time of an event on a connection, in milliseconds since the start of its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The time at the last reading of the clock.
    pub now_ms: u64,
    /// The time when the input being handled was received; store timeouts count from here.
    pub received_ms: u64,
    /// The urgency of a stop.
    pub urgency: Urgency,
    /// The time when draining began.
    pub drain_ms: u64,
}

impl Moment {
    /// The start of a shard that serves.
    pub const START: Moment =
        Moment { now_ms: 0, received_ms: 0, urgency: Urgency::Serve, drain_ms: 0 };
}

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It handles requests as they arrive.
    Serving,
    /// Received requests wait until the peer has read some responses.
    Full,
    /// Received requests wait for an earlier response, whose totals must be read first.
    Behind,
    /// The socket may hold bytes of a batch, which can be received once other connections have had their turn.
    Filling,
    /// There is work to do, on a batch or on requests, once other connections have had their turn.
    Working,
    /// The last responses are on their way.
    Finishing,
    /// Its write half is shut down, and what arrives is discarded until the deadline, so that the peer can read
    /// (RFC 9112 section 9.6).
    Lingering { discarded: usize },
}

/// The next operation on a connection's socket, not counting sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Receive.
    Receive,
    /// Do not receive.
    Pause,
    /// Shut down the write half, then call [`Connection::linger`].
    ShutDownWrite,
    /// Close the connection.
    Close,
}

/// The things that an engine must do for a connection, in this order.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    /// Send this many bytes, unless a send is under way: see [`Connection::take_responses`].
    pub send: usize,
    /// Then do this.
    pub then: Next,
    /// Responses now wait until this epoch is settled: request it from the store, and call
    /// [`Connection::action`] again once it is.
    pub settle: Option<u64>,
    /// Responses now wait until totals are read after a cut of this epoch: request the read in the same way.
    pub read: Option<u64>,
    /// Once other connections have had their turn, call [`Connection::work`].
    pub has_work: bool,
}

/// A connection that is being served.
#[derive(Debug)]
pub struct Connection {
    http: http::Connection,
    state: State,
    /// Received bytes that `http` has not taken.
    input: Vec<u8>,
    /// The batch that is being received or counted.
    batch: Option<Box<Work>>,
    /// Responses that were not given to the engine.
    responses: Responses,
    /// The number of bytes that were given to the engine and, as far as is known, were not taken by the kernel.
    sending: usize,
    /// Whether the peer will send nothing more: it has shut down its write half, or announced its last request.
    has_peer_finished: bool,
    /// Whether the last check of the socket found bytes that had not been received.
    has_unread: bool,
    /// Whether something was received since [`Connection::take_activity`] was last called.
    is_active: bool,
    /// The kind of the last request with a response.
    last: Kind,
    /// The time of the last receive; at first, of the accept.
    received_ms: u64,
    /// The deadline of responses that are being sent, or of lingering.
    deadline_ms: u64,
}

impl Connection {
    /// Creates a connection that was just accepted.
    pub fn new(limits: Limits, peer_is_loopback: bool, now_ms: u64) -> Connection {
        Connection {
            http: http::Connection::new(limits, peer_is_loopback, now_ms),
            state: State::Serving,
            input: Vec::new(),
            batch: None,
            responses: Responses::default(),
            sending: 0,
            has_peer_finished: false,
            has_unread: false,
            is_active: false,
            last: Kind::EVENT,
            received_ms: now_ms,
            deadline_ms: u64::MAX,
        }
    }

    /// Responds that the server is full, and finishes the connection.
    pub fn reject(&mut self, service: &mut Service) {
        service.reject(&mut self.responses);
        self.http.end();
        self.state = State::Finishing;
    }

    /// Handles received bytes. Counted events must be published before the next [`Connection::action`].
    pub fn receive(&mut self, input: &[u8], moment: &Moment, service: &mut Service) {
        self.is_active = true;
        self.received_ms = moment.now_ms;
        match &mut self.state {
            State::Serving if moment.urgency == Urgency::Serve => {
                self.handle(input, false, moment, service);
            }
            // The last request is known only after everything that has arrived was received.
            State::Serving => {
                self.input.extend_from_slice(input);
                self.state = State::Working;
            }
            State::Full | State::Behind | State::Filling | State::Working => {
                self.input.extend_from_slice(input);
            }
            State::Lingering { discarded } => {
                self.http.budget.charge_receive();
                self.http.budget.charge_moved(input.len());
                *discarded += input.len();
            }
            State::Finishing => {}
        }
    }

    /// Notes that the peer will send nothing more.
    pub fn note_peer_closed(&mut self) {
        self.has_peer_finished = true;
    }

    /// Notes whether the socket holds bytes that were not received. While the server drains, call this before
    /// [`Connection::work`], [`Connection::action`], and [`Connection::tick`]: the last response announces that the connection
    /// closes, and no request after it is handled (RFC 9112 section 9.6).
    #[inline]
    pub fn note_unread(&mut self, has_unread: bool) {
        self.has_unread = has_unread;
    }

    /// Reports whether the peer will send nothing more.
    pub fn has_peer_finished(&self) -> bool {
        self.has_peer_finished
    }

    /// Reports whether enough of a batch is missing to receive it into the batch's own memory. If so after a receive, call
    /// [`Connection::begin_filling`] unless another receive is under way.
    #[inline]
    pub fn wants_filling(&self) -> bool {
        self.state == State::Serving && self.http.missing() >= FILL_BYTES_MIN
    }

    /// Requests a call of [`Connection::fill`] after other connections have had their turn.
    pub fn begin_filling(&mut self) {
        self.state = State::Filling;
    }

    /// Returns whether to call [`Connection::fill`] instead of [`Connection::work`].
    pub fn is_filling(&self) -> bool {
        self.state == State::Filling
    }

    /// Calls `receive` to append bytes of a batch to the given buffer, up to the given number, and return how many it appended.
    /// Returns the cost, in units of a [`Budget`].
    pub fn fill(
        &mut self,
        receive: impl FnOnce(&mut Vec<u8>, usize) -> usize,
        moment: &Moment,
        service: &mut Service,
    ) -> u32 {
        let (before, mut has_taken_all) = (self.used(), true);
        self.http.fill(|body, bytes_max| {
            let received = receive(body, bytes_max);
            has_taken_all = received < bytes_max;
            service.metrics().received_bytes.add(received as u64);
        });
        if self.http.missing() == 0 {
            self.handle(&[], false, moment, service);
        } else if has_taken_all {
            // The next receive reports any failure, or the end of the stream.
            self.state = State::Serving;
        }
        self.used().saturating_sub(before)
    }

    /// Works until the budget is spent. Counted events must be published before the next [`Connection::action`].
    /// Returns the cost, in units of a [`Budget`].
    pub fn work(&mut self, moment: &Moment, service: &mut Service) -> u32 {
        let before = self.used();
        if self.state == State::Working {
            self.handle(&[], true, moment, service);
        }
        self.used().saturating_sub(before)
    }

    /// Notes that other connections get their turn now. Returns the cost since their previous turn, in units of a [`Budget`].
    #[inline]
    pub fn renew(&mut self) -> u32 {
        let used = self.used();
        self.http.budget = Budget::FULL;
        used
    }

    /// Returns the cost since other connections last had their turn, in units of a [`Budget`].
    pub fn used(&self) -> u32 {
        self.http.budget.used()
    }

    /// Returns whether there is work to do once other connections have had their turn.
    pub fn has_work(&self) -> bool {
        matches!(self.state, State::Working | State::Filling)
    }

    /// Returns what to do now. First continues with requests that wait for totals, if these were read.
    #[inline]
    pub fn action(&mut self, moment: &Moment, service: &mut Service) -> Action {
        let mut can_make_more = false;
        if self.state != State::Serving || self.responses.has_parked() {
            can_make_more = self.resume(moment, service);
        }
        let mut action = Action {
            send: 0,
            then: Next::Receive,
            settle: None,
            read: None,
            has_work: can_make_more || self.has_work(),
        };
        if service.durability().is_some() {
            self.wait_for_store(&mut action, moment, service);
        }
        action.send = self.sendable(service);
        action.then = self.next();
        action
    }

    /// Continues with waiting requests and responses, if it can. Returns whether there are responses left to make
    /// whose totals were read.
    fn resume(&mut self, moment: &Moment, service: &mut Service) -> bool {
        if self.responses.has_parked() {
            // If earlier responses are void, the parked responses are void, too.
            self.sendable(service);
            let is_all =
                self.is_draining(moment) && self.input.is_empty() && !self.http.has_begun();
            match service.make_parked(&mut self.http.budget, &mut self.responses, is_all) {
                Progress::Waits => {}
                Progress::BudgetSpent => return true,
                Progress::Ends => {
                    self.http.end();
                    self.state = State::Finishing;
                }
            }
        }
        if self.state != State::Behind || self.responses.has_parked() {
            return false;
        }
        if self.http.budget.is_spent() {
            self.state = State::Working;
            return false;
        }
        self.handle(&[], true, moment, service);
        service.publish();
        false
    }

    /// Reports whether a request is the last unless another request follows it.
    fn is_draining(&self, moment: &Moment) -> bool {
        moment.urgency != Urgency::Serve && !self.has_unread
    }

    /// Notes what new responses wait for.
    fn wait_for_store(&mut self, action: &mut Action, moment: &Moment, service: &Service) {
        let Some(durability) = service.durability() else { return };
        let deadline_ms = moment.received_ms.saturating_add(durability.timeout_ms());
        let epoch = service.settles_at();
        if self.responses.note_published(epoch, deadline_ms) {
            action.settle = Some(epoch);
        }
        if self.responses.has_unasked() {
            let epoch = service.next_epoch();
            self.responses.note_asked(epoch, deadline_ms);
            action.read = Some(epoch);
        }
    }

    /// Handles received bytes until all are handled, the budget is spent, or the connection must wait. Works on a batch only if
    /// it `may_work`, because many batches may become complete in one iteration.
    fn handle(&mut self, received: &[u8], may_work: bool, moment: &Moment, service: &mut Service) {
        if moment.urgency != Urgency::Serve {
            self.http.set_draining(self.is_draining(moment));
        }
        self.http.budget.charge_receive();
        if self.input.is_empty() {
            let mut rest = received;
            self.state = self.serve(&mut rest, may_work, moment.now_ms, service);
            if !rest.is_empty() {
                self.input.extend_from_slice(rest);
            }
        } else {
            let mut input = std::mem::take(&mut self.input);
            input.extend_from_slice(received);
            self.http.budget.charge_moved(received.len());
            let mut rest = &input[..];
            self.state = self.serve(&mut rest, may_work, moment.now_ms, service);
            let taken = input.len() - rest.len();
            if taken == input.len() {
                input = Vec::new();
            } else if taken > 0 {
                input.drain(..taken);
                self.http.budget.charge_moved(input.len());
            }
            self.input = input;
        }
        self.last = service.last();
    }

    /// Handles the bytes in `rest`, and leaves there those that must be kept. Returns the new state.
    #[inline]
    fn serve(
        &mut self,
        rest: &mut &[u8],
        may_work: bool,
        now_ms: u64,
        service: &mut Service,
    ) -> State {
        let mut decoded = Vec::new();
        loop {
            if rest.is_empty() && self.http.needs_bytes() {
                return State::Serving;
            }
            if !self.http.has_ended() {
                if self.responses.is_full() {
                    return State::Full;
                }
                if self.http.budget.is_spent() {
                    return State::Working;
                }
                if self.responses.has_parked() && !self.http.may_overtake(rest) {
                    return State::Behind;
                }
                if self.http.has_batch() {
                    match may_work && self.work_on_batch(!rest.is_empty(), now_ms, service) {
                        true => continue,
                        false => return State::Working,
                    }
                }
            }
            match self.http.step(rest, &mut decoded, service.context(), now_ms) {
                Step::Request(request) => {
                    service.respond(&request, &mut self.http.budget, &mut self.responses);
                }
                Step::Advanced => {}
                Step::NeedsMore => return State::Serving,
                Step::Ended(end) => {
                    self.has_peer_finished |= end == End::ClosesAtOnce;
                    return State::Finishing;
                }
                step => self.take_unusual(step, service),
            }
        }
    }

    /// Handles the steps that are rare.
    #[cold]
    fn take_unusual(&mut self, step: Step<'_>, service: &mut Service) {
        let Connection { http, responses, batch, .. } = self;
        match step {
            Step::Expects(request) if service.wants_body(&request) => {
                responses.push(http::CONTINUE);
            }
            Step::Expects(request) => {
                http.decline();
                service.respond(&request, &mut http.budget, responses);
            }
            Step::TooLarge(request) => {
                service.respond_to_large(&request, &mut http.budget, responses);
            }
            Step::Batch { request, bytes, expects } => {
                match service.admit_batch(&request, bytes, responses) {
                    Some((work, memory)) => {
                        *batch = Some(Box::new(work));
                        http.accept_batch(memory);
                        if expects {
                            responses.push(http::CONTINUE);
                        }
                    }
                    None => http.decline(),
                }
            }
            Step::BatchBody(body) => {
                if let Some(work) = batch {
                    work.begin(body);
                }
            }
            Step::Refused(refused) => {
                *batch = None;
                service.refuse(refused, responses);
            }
            Step::Request(_) | Step::Advanced | Step::NeedsMore | Step::Ended(_) => {}
        }
    }

    /// Works on the complete batch. Returns whether it is done.
    fn work_on_batch(&mut self, has_more: bool, now_ms: u64, service: &mut Service) -> bool {
        let Connection { http, responses, batch, .. } = self;
        let Some(work) = batch else { return true };
        let reply_to = http.batch_reply_to(has_more);
        let is_done = service.work(work, reply_to, &mut http.budget, responses);
        if is_done {
            *batch = None;
            http.finish_batch(reply_to, now_ms);
        }
        is_done
    }

    /// Returns the number of bytes of responses that may be sent now. If the responses after them are void, these are the last.
    #[inline]
    fn sendable(&mut self, service: &Service) -> usize {
        let Some(durability) = service.durability() else { return self.responses.bytes().len() };
        match self.responses.release(durability) {
            Release::Bytes(bytes) => bytes,
            Release::Void(bytes) => {
                self.http.end();
                self.state = State::Finishing;
                // A batch in progress would keep others from claiming users.
                (self.batch, self.input) = (None, Vec::new());
                service.metrics().voided.add(1);
                bytes
            }
        }
    }

    /// Takes the responses to send now, as many bytes as [`Action::send`] specifies. No other send may be under way. They are
    /// late after the send timeout.
    #[inline]
    pub fn take_responses(&mut self, count: usize, now_ms: u64) -> Vec<u8> {
        debug_assert_eq!(self.sending, 0);
        self.deadline_ms = now_ms.saturating_add(self.http.send_timeout_ms());
        self.sending = count;
        self.responses.take(count)
    }

    /// Notes that this many bytes were sent. If the peer has read enough for waiting requests to go on, there is work to do.
    #[inline]
    pub fn note_sent(&mut self, count: usize) {
        self.sending -= count;
        if self.state == State::Full && self.unsent() < http::UNSENT_BYTES_MAX {
            self.state = State::Working;
        }
    }

    /// Returns whether a send is under way.
    #[inline]
    pub fn is_sending(&self) -> bool {
        self.sending > 0
    }

    /// Returns the responses that were not taken.
    pub fn responses(&self) -> &Responses {
        &self.responses
    }

    /// Returns the responses that were not taken, to lend memory to them.
    #[inline]
    pub fn responses_mut(&mut self) -> &mut Responses {
        &mut self.responses
    }

    /// Returns the state, taking into account that the peer may have finished.
    #[inline]
    fn standing(&self) -> State {
        match self.state {
            // Its responses are still to be sent.
            State::Serving if self.has_peer_finished => State::Finishing,
            state => state,
        }
    }

    /// Returns the next operation on the socket.
    #[inline]
    pub fn next(&self) -> Next {
        let unsent = self.unsent();
        let kept = || self.input.len().saturating_sub(self.http.body_bytes_kept());
        match self.standing() {
            State::Serving if unsent < http::UNSENT_BYTES_MAX => Next::Receive,
            // This ends soon, so a limited amount of input may arrive until then.
            State::Behind if kept() < http::UNSENT_BYTES_MAX && !self.has_peer_finished => {
                Next::Receive
            }
            State::Full | State::Working | State::Behind if kept() > KEPT_BYTES_MAX => Next::Close,
            State::Serving | State::Full | State::Behind | State::Filling | State::Working => {
                Next::Pause
            }
            State::Finishing if unsent > 0 => Next::Pause,
            State::Finishing if self.has_peer_finished => Next::Close,
            State::Finishing => Next::ShutDownWrite,
            State::Lingering { discarded }
                if self.has_peer_finished || discarded >= LINGER_BYTES_MAX =>
            {
                Next::Close
            }
            State::Lingering { .. } => Next::Receive,
        }
    }

    /// Returns whether its present responses are its last.
    #[inline]
    pub fn is_finishing(&self) -> bool {
        self.standing() == State::Finishing
    }

    /// Returns whether input is discarded.
    pub fn is_lingering(&self) -> bool {
        matches!(self.state, State::Lingering { .. })
    }

    /// Discards input from here on, because the write half is shut down. This includes input from a peer that has sent
    /// more than it announced.
    pub fn linger(&mut self, now_ms: u64) {
        self.has_peer_finished = false;
        self.state = State::Lingering { discarded: 0 };
        self.deadline_ms = now_ms.saturating_add(LINGER_MS);
    }

    /// Returns the number of bytes of responses that are not known to be sent.
    #[inline]
    fn unsent(&self) -> usize {
        self.responses.len() + self.sending
    }

    /// Returns whether neither a request nor a response is in flight, not even a part of one.
    pub fn is_idle(&self) -> bool {
        !self.http.has_begun() && self.input.is_empty() && self.unsent() == 0
    }

    /// Returns the kind of the request in flight, or of the request whose response is in flight. At most one per
    /// connection is counted.
    pub fn in_flight(&self) -> Option<Kind> {
        let before_head = if self.unsent() > 0 { self.last } else { Kind::OTHER };
        let under_way = || Service::kind_of(self.http.under_way(&self.input));
        let kind = || self.responses.parked_kind().or_else(under_way).unwrap_or(before_head);
        (!self.is_idle()).then(kind)
    }

    /// Returns whether something was received since the last call.
    pub fn take_activity(&mut self) -> bool {
        std::mem::take(&mut self.is_active)
    }
}
