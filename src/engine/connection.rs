//! One connection as the reactor drives it: what it owes, what it wants next, and how it ends. It
//! knows no socket and no ring.

use super::{DRAIN_QUIET_MS, LINGER_BYTES_MAX, LINGER_MS, Permit, Urgency};
use crate::http::{Limits, Outcome, UNSENT_BYTES_MAX};
use crate::metrics::Kind;
use crate::service::{self, Reading, Service};
use crate::store::{Held, Release};
use crate::uring::{BUFFER_BYTES, receive_now};
use socket2::Socket;

/// Receives in a row that leave room in their buffer, after which a connection's receive is
/// multishot. One multishot receive may fill 32 buffers before it can be canceled: who sends in
/// bulk is received from one buffer at a time, so that a peer that never reads its responses holds
/// little here.
const SMALL_BEFORE_MULTISHOT: u8 = 4;

/// Bytes that a connection which is not to receive may hold: twice as many as a receive brings before it can be canceled.
/// If a cancel has failed and the peer goes on sending, the connection is closed.
const KEPT_BYTES_MAX: usize = 64 * BUFFER_BYTES;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Requests are handled as they come.
    Serving,
    /// Requests are here that wait until the peer has taken responses.
    Held,
    /// A request is here that waits until totals were read.
    Reading(Awaited),
    /// There is work to do, on a batch or on requests, once others have had their turn.
    Working,
    /// The last responses are on their way.
    Finishing,
    /// Our side is shut; input is discarded until the deadline, so that the peer can read
    /// (RFC 9112 section 9.6).
    Lingering { discarded: usize },
}

/// What a request waits for that shows totals of a group of servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Awaited {
    /// The cut after which they are to be read; `None` as long as nobody was asked.
    epoch: Option<u64>,
    /// When it has waited too long.
    deadline_ms: u64,
    /// It has.
    is_late: bool,
    /// More was received since it waits.
    has_more: bool,
}

impl Awaited {
    const UNASKED: Awaited =
        Awaited { epoch: None, deadline_ms: u64::MAX, is_late: false, has_more: false };

    /// What has come of it, if anything has.
    fn outcome(&self, service: &Service) -> Option<Reading> {
        let read = service.durability()?.read();
        match self.epoch.is_some_and(|epoch| epoch <= read) {
            true if self.has_more => Some(Reading::ForFirst),
            true => Some(Reading::ForAll),
            false => self.is_late.then_some(Reading::Late),
        }
    }
}

/// What a connection wants of its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// To receive.
    Receive,
    /// Not to receive: the peer has responses to take first.
    Wait,
    /// To end this side of the connection: then [`Connection::linger`].
    ShutDownSending,
    /// To be closed.
    Close,
}

/// What the clock has to say about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing.
    No,
    /// It has something to send, as its last response or instead of what was not read in time.
    Send,
    /// It is to be closed, since it has nothing in flight.
    CloseIdle,
    /// It is to be closed, and requests or responses are lost with it.
    Cut,
}

/// A connection that is served.
#[derive(Debug)]
pub(super) struct Connection {
    http: service::Connection,
    phase: Phase,
    /// Responses made and not yet given to the kernel.
    pub(super) out: Vec<u8>,
    /// Which of them wait for the store.
    held: Held,
    /// The peer sends nothing more: it has ended its side, or has said so.
    has_peer_finished: bool,
    /// It is on the reactor's list for the end of the turn.
    pub(super) is_queued: bool,
    /// It is in the reactor's line of those with work to do.
    pub(super) is_in_line: bool,
    /// Something was received since the last tick.
    is_active: bool,
    /// Receives in a row that left room in their buffer.
    small_receives: u8,
    /// What was responded to last.
    last: Kind,
    /// When something was last received; at first, when it was accepted.
    received_ms: u64,
    /// When the responses on their way are late, or the lingering ends.
    deadline_ms: u64,
    _permit: Permit,
}

impl Connection {
    pub(super) fn new(
        limits: Limits,
        peer_is_loopback: bool,
        now_ms: u64,
        permit: Permit,
    ) -> Connection {
        Connection {
            http: service::Connection::new(limits, peer_is_loopback, now_ms),
            phase: Phase::Serving,
            out: Vec::new(),
            held: Held::default(),
            has_peer_finished: false,
            is_queued: false,
            is_in_line: false,
            is_active: false,
            small_receives: 0,
            last: Kind::EVENT,
            received_ms: now_ms,
            deadline_ms: u64::MAX,
            _permit: permit,
        }
    }

    /// Tells the peer that there is no room for it.
    pub(super) fn turn_away(&mut self, service: &mut Service) {
        self.http.turn_away(service, &mut self.out);
        self.phase = Phase::Finishing;
    }

    /// Handles received bytes.
    pub(super) fn receive(
        &mut self,
        input: &[u8],
        now_ms: u64,
        urgency: Urgency,
        service: &mut Service,
    ) {
        self.is_active = true;
        self.received_ms = now_ms;
        self.small_receives = match input.len() {
            BUFFER_BYTES => 0,
            _ => self.small_receives.saturating_add(1),
        };
        match &mut self.phase {
            Phase::Serving => self.handle(input, now_ms, urgency, service),
            Phase::Held | Phase::Working => self.http.keep(input),
            Phase::Reading(awaited) => {
                awaited.has_more |= awaited.epoch.is_some();
                self.http.keep(input);
            }
            Phase::Lingering { discarded } => *discarded += input.len(),
            Phase::Finishing => {}
        }
    }

    /// Goes on with requests that were held back, where the peer has taken enough, or the totals were read that
    /// the first of them waits for.
    pub(super) fn resume(
        &mut self,
        unsent: usize,
        now_ms: u64,
        urgency: Urgency,
        service: &mut Service,
    ) {
        if matches!(self.phase, Phase::Reading(_)) && !self.held.is_empty() {
            // Where what comes before them is void, so are they.
            self.sendable(service);
        }
        let reading = match &self.phase {
            Phase::Held if self.unsent(unsent) < UNSENT_BYTES_MAX => {
                if self.http.budget().is_spent() {
                    self.phase = Phase::Working;
                    return;
                }
                Reading::None
            }
            Phase::Reading(awaited) => match awaited.outcome(service) {
                Some(reading) => reading,
                None => return,
            },
            _ => return,
        };
        self.heed(urgency);
        let Connection { http, held, out, .. } = self;
        let outcome = service.resume(http, reading, now_ms, held, out);
        self.go_on(outcome, service);
        service.commit();
    }

    /// Takes what has arrived of a large batch from the socket, on which nothing is receiving, as much as the budget allows.
    /// Returns how many bytes that was.
    pub(super) fn fill(
        &mut self,
        socket: &Socket,
        now_ms: u64,
        urgency: Urgency,
        service: &mut Service,
    ) -> usize {
        let missing = self.http.missing();
        if self.phase != Phase::Serving || missing < BUFFER_BYTES {
            return 0;
        }
        // What has gone wrong, and the end of the stream, are for the next receive to say.
        let received = self
            .http
            .fill(|body, bytes_max| receive_now(socket, body, bytes_max))
            .and_then(Result::ok)
            .unwrap_or(0);
        if self.http.missing() == 0 {
            self.handle(&[], now_ms, urgency, service);
        }
        received
    }

    /// Works until the budget is spent. The result must be published. Returns the cost, in units of a budget.
    pub(super) fn work(&mut self, now_ms: u64, urgency: Urgency, service: &mut Service) -> u32 {
        let before = self.used();
        if self.phase == Phase::Working {
            self.heed(urgency);
            let Connection { http, held, out, .. } = self;
            let outcome = service.resume(http, Reading::None, now_ms, held, out);
            self.go_on(outcome, service);
        }
        self.used().saturating_sub(before)
    }

    /// What it has cost since others had their turn, in units of a budget.
    pub(super) fn used(&self) -> u32 {
        self.http.budget().used()
    }

    /// Notes that others have had their turn.
    #[inline]
    pub(super) fn renew(&mut self) {
        self.http.renew();
    }

    /// Notes that it is in line if there is work to do. Returns whether it has to be put there: it was not in line before.
    pub(super) fn get_in_line(&mut self) -> bool {
        self.is_working() && !std::mem::replace(&mut self.is_in_line, true)
    }

    /// Whether there is work to do once others have had their turn.
    pub(super) fn is_working(&self) -> bool {
        self.phase == Phase::Working
    }

    fn handle(&mut self, input: &[u8], now_ms: u64, urgency: Urgency, service: &mut Service) {
        self.heed(urgency);
        let Connection { http, held, out, .. } = self;
        let outcome = service.receive(http, input, now_ms, held, out);
        self.go_on(outcome, service);
    }

    fn heed(&mut self, urgency: Urgency) {
        if urgency != Urgency::Serve {
            self.http.drain();
        }
    }

    fn go_on(&mut self, outcome: Outcome, service: &Service) {
        self.last = service.last();
        self.phase = match outcome {
            Outcome::Receive => Phase::Serving,
            Outcome::Resume => Phase::Held,
            Outcome::Wait => Phase::Reading(Awaited::UNASKED),
            Outcome::Work => Phase::Working,
            Outcome::Close => Phase::Finishing,
            Outcome::CloseAtOnce => {
                self.has_peer_finished = true;
                Phase::Finishing
            }
        };
    }

    /// Notes that the peer will send nothing more.
    pub(super) fn note_peer_closed(&mut self) {
        self.has_peer_finished = true;
    }

    /// Whether the next receive is to be multishot.
    pub(super) fn receives_multishot(&self) -> bool {
        self.small_receives >= SMALL_BEFORE_MULTISHOT
    }

    /// Notes that what was handled so far is published. Returns the epoch that responses have come to wait
    /// for, if there are any.
    #[inline]
    pub(super) fn publish(&mut self, now_ms: u64, service: &Service) -> Option<u64> {
        let durability = service.durability()?;
        let epoch = service.settles_at();
        let deadline_ms = now_ms.saturating_add(durability.timeout_ms());
        self.held.publish(epoch, deadline_ms).then_some(epoch)
    }

    /// Returns the epoch after which totals are to be read for a request that has come to wait for that, if
    /// there is one. To be called after what was handled is published.
    pub(super) fn await_read(&mut self, now_ms: u64, service: &Service) -> Option<u64> {
        let Phase::Reading(awaited) = &mut self.phase else { return None };
        if awaited.epoch.is_some() {
            return None;
        }
        awaited.epoch = Some(service.next_epoch());
        awaited.deadline_ms = now_ms.saturating_add(service.durability()?.timeout_ms());
        awaited.epoch
    }

    /// How many bytes of responses may leave now. Where those behind them never may, they are the last.
    #[inline]
    pub(super) fn sendable(&mut self, service: &Service) -> usize {
        let bytes = self.out.len();
        let Some(durability) = service.durability() else { return bytes };
        match durability.release(&mut self.held, bytes) {
            Release::Bytes(bytes) => bytes,
            Release::Void(bytes) => {
                self.out.truncate(bytes);
                self.held.clear();
                self.phase = Phase::Finishing;
                service.metrics().voided.add(1);
                bytes
            }
        }
    }

    /// Takes the responses that are to be sent now, so many bytes. They are late after the send time-out.
    pub(super) fn take_responses(&mut self, bytes: usize, now_ms: u64) -> Vec<u8> {
        self.deadline_ms = now_ms.saturating_add(self.http.send_timeout_ms());
        if bytes == self.out.len() {
            return std::mem::take(&mut self.out);
        }
        self.held.note_taken(bytes);
        let rest = self.out.split_off(bytes);
        std::mem::replace(&mut self.out, rest)
    }

    /// What it wants next, where the kernel has yet to take `unsent` bytes of a send under way.
    pub(super) fn next(&mut self, unsent: usize) -> Next {
        if self.phase == Phase::Serving && self.has_peer_finished {
            // It has its responses coming.
            self.phase = Phase::Finishing;
        }
        let unsent = self.unsent(unsent);
        match self.phase {
            Phase::Serving if unsent < UNSENT_BYTES_MAX => Next::Receive,
            // It is over soon: until then a little may come.
            Phase::Reading(_)
                if self.http.kept_bytes() < UNSENT_BYTES_MAX && !self.has_peer_finished =>
            {
                Next::Receive
            }
            Phase::Held | Phase::Working | Phase::Reading(_)
                if self.http.kept_bytes() > KEPT_BYTES_MAX =>
            {
                Next::Close
            }
            Phase::Serving | Phase::Held | Phase::Reading(_) | Phase::Working => Next::Wait,
            Phase::Finishing if unsent > 0 => Next::Wait,
            Phase::Finishing if self.has_peer_finished => Next::Close,
            Phase::Finishing => Next::ShutDownSending,
            Phase::Lingering { discarded }
                if self.has_peer_finished || discarded >= LINGER_BYTES_MAX =>
            {
                Next::Close
            }
            Phase::Lingering { .. } => Next::Receive,
        }
    }

    /// Whether the responses that it has are its last.
    pub(super) fn is_finishing(&self) -> bool {
        self.phase == Phase::Finishing
    }

    /// Discards input from here on, also from a peer that has sent more than it said: our side is shut.
    pub(super) fn linger(&mut self, now_ms: u64) {
        self.has_peer_finished = false;
        self.phase = Phase::Lingering { discarded: 0 };
        self.deadline_ms = now_ms.saturating_add(LINGER_MS);
    }

    /// Bytes of responses that the peer has not taken.
    fn unsent(&self, unsent: usize) -> usize {
        self.out.len() + unsent
    }

    /// Whether nothing of a request is here, nor of a response.
    pub(super) fn is_idle(&self, unsent: usize) -> bool {
        self.http.is_idle() && self.unsent(unsent) == 0
    }

    /// The kind of the request that is in flight, or of the request whose response is: at most one is counted per connection.
    pub(super) fn in_flight(&self, unsent: usize) -> Option<Kind> {
        let before_head = if self.unsent(unsent) > 0 { self.last } else { Kind::OTHER };
        (!self.is_idle(unsent)).then(|| self.http.kind().unwrap_or(before_head))
    }

    /// Whether something was received since this was last called.
    pub(super) fn take_activity(&mut self) -> bool {
        std::mem::take(&mut self.is_active)
    }

    /// When the clock has something to say at the earliest, while the server serves.
    pub(super) fn deadline_ms(&self, unsent: usize) -> u64 {
        match self.store_deadline_ms() {
            None if self.waits_for_peer(unsent) => self.http.deadline_ms(),
            // It waits for nobody.
            None if self.is_working() && unsent == 0 => u64::MAX,
            None => self.deadline_ms,
            // Nothing is on its way to the peer.
            Some(store_ms) if unsent == 0 => store_ms,
            Some(store_ms) => store_ms.min(self.deadline_ms),
        }
    }

    /// When the store is late with what this connection waits for.
    fn store_deadline_ms(&self) -> Option<u64> {
        let held_ms = self.held.deadline_ms();
        match self.phase {
            Phase::Reading(Awaited { deadline_ms, .. }) => {
                Some(held_ms.map_or(deadline_ms, |held_ms| held_ms.min(deadline_ms)))
            }
            _ => held_ms,
        }
    }

    /// Whether it is the peer's turn to send.
    fn waits_for_peer(&self, unsent: usize) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Held) && self.unsent(unsent) == 0
    }

    /// Says what is late, and while the server drains since `drain_ms`, what has nothing in flight.
    pub(super) fn check_deadline(
        &mut self,
        unsent: usize,
        now_ms: u64,
        urgency: Urgency,
        drain_ms: u64,
        service: &mut Service,
    ) -> Due {
        let close = if self.is_idle(unsent) { Due::CloseIdle } else { Due::Cut };
        if urgency == Urgency::Abort {
            return close;
        }
        if !self.held.is_empty()
            && unsent == 0
            && (self.sendable(service) > 0 || self.held.is_empty())
        {
            // The store has just settled them, and they are about to be sent, or their connection to be ended.
            self.deadline_ms = now_ms.saturating_add(self.http.send_timeout_ms());
        }
        let is_late = now_ms >= self.deadline_ms(unsent);
        if is_late && self.waits_for_peer(unsent) {
            service.metrics().note_timeout(Some(self.http.waited()));
            self.http.expire(service, &mut self.out);
            self.phase = Phase::Finishing;
            self.deadline_ms = now_ms.saturating_add(self.http.send_timeout_ms());
            return if self.out.is_empty() { Due::CloseIdle } else { Due::Send };
        }
        if let Some((durability, epoch)) = service.durability().zip(self.held.epoch())
            && is_late
            && self.held.deadline_ms().is_some_and(|deadline_ms| now_ms >= deadline_ms)
        {
            // Without a response: whether the store has it is unknown.
            durability.note_late(epoch);
            return Due::Cut;
        }
        if let Phase::Reading(awaited) = &mut self.phase
            && now_ms >= awaited.deadline_ms
        {
            if let Some((durability, epoch)) = service.durability().zip(awaited.epoch) {
                durability.note_late(epoch);
            }
            // It is responded to without them.
            awaited.is_late = true;
            return Due::Send;
        }
        if is_late {
            return match self.phase {
                Phase::Lingering { .. } => Due::CloseIdle,
                _ => {
                    service.metrics().note_timeout(None);
                    Due::Cut
                }
            };
        }
        let is_quiet = now_ms >= self.received_ms.max(drain_ms).saturating_add(DRAIN_QUIET_MS);
        match urgency == Urgency::Drain
            && matches!(self.phase, Phase::Serving)
            && self.is_idle(unsent)
            && is_quiet
        {
            true => Due::CloseIdle,
            false => Due::No,
        }
    }
}
