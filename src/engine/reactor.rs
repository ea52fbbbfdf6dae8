//! The data plane on an io_uring of our own, inside the shard's glommio executor.
//!
//! One ring carries accept, receive, and send. A turn submits what the last one queued and collects
//! what has completed, in one `io_uring_enter`; handles all completions; publishes; and queues the
//! responses. The shard always waits in that ring, asleep or not. Whatever wakes it from outside, the
//! stop or a connection that another shard hands over, comes through its [`Wakeup`](crate::uring::Wakeup),
//! which the ring watches. glommio gets its turn between waits; nothing here waits for it.

use super::connection::{Connection, Due, Next};
use super::idle::{IDLE_AFTER, Lull, Polling};
use super::line::Line;
use super::{
    AcceptedConnection, Admission, BACKLOG, Drained, Shard, Spin, Stop, TICK, Urgency,
    milliseconds, unix_seconds,
};
use crate::http::Limits;
use crate::metrics::{OfKinds, nanoseconds};
use crate::service::Service;
use crate::uring::{Event, Issuer, Key, NoBuffers, OpenSlot, Sizes, Uring, Wait, send_now};
use socket2::Socket;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SIZES: Sizes = Sizes { submissions: 1024, completions: 8192, buffers: 2048 };

/// How seldom a sleeping shard looks at the clock while nothing falls due.
const IDLE_TICK: Duration = Duration::from_secs(1);
/// How long it waits at a time while it drains, so that the deadline is looked at.
const DRAIN_WAIT: Duration = Duration::from_millis(2);
/// Turns and completions after which glommio's other tasks get theirs.
const TURNS_BEFORE_YIELD: u32 = 128;
const COMPLETIONS_BEFORE_YIELD: usize = 1024;

/// How long a shard that always has something to do lets responses wait before it asks for a commit. With 1,000
/// connections, asking after every turn takes a quarter of the throughput; with 4 ms instead of 2, commits take half
/// as much CPU time.
const COMMIT_AFTER: Duration = Duration::from_millis(4);

/// Buffers for responses that are kept for reuse, and the largest that is kept, in bytes.
const SPARE_BUFFERS_MAX: usize = 2048;
const SPARE_BUFFER_BYTES_MAX: usize = 4096;

/// A connection with responses or a request that wait for the store.
struct Waiting {
    key: Key,
    /// The epoch that they wait for.
    epoch: u64,
    since_ms: u64,
}

/// One shard: its ring, its connections, and its clock.
struct Reactor {
    ring: Uring<Connection>,
    service: Service,
    shard: usize,
    admission: Arc<Admission>,
    stop: Arc<Stop>,
    limits: Limits,
    heartbeat: Arc<AtomicU64>,
    /// Connections with something to send or to look at, at the end of the turn.
    queue: Vec<Key>,
    /// Connections with work to do, on a batch or because their budget was spent: each turn uses up one budget for the first
    /// of them, which then go to the end.
    line: Line<Key>,
    /// Those whose responses wait, in the order of their epochs.
    waiting: VecDeque<Waiting>,
    /// Those with a request for which totals are to be read, in the order of their epochs.
    reading: VecDeque<Waiting>,
    /// Since when some of them wait without the committer having been asked.
    unasked_since: Option<Instant>,
    /// Whether accepting has worked since it failed last.
    has_accepted: bool,
    spare: Vec<Vec<u8>>,
    started: Instant,
    now_ms: u64,
    /// When the present turn has received what it handles: what waits for the store waits from here on, even
    /// where the clock was not looked at for long.
    received_ms: u64,
    /// When the last turn had received what it handles, and when it had handled it.
    received_at: Instant,
    handled_at: Instant,
    /// When the clock was last looked at for all connections, and when it is to be again.
    ticked_ms: u64,
    next_tick_ms: u64,
    urgency: Urgency,
    /// When draining began.
    drain_ms: u64,
    /// Connections that the stop has closed with something in flight.
    cut: usize,
    polling: Polling,
    /// How it waits for work while it is not asleep.
    wait: Wait,
    lull: Lull,
    /// Others are to have their turn now: glommio's tasks, or the stop.
    is_interrupted: bool,
    /// Connections with input, between the last two ticks.
    active: usize,
    /// Those of them that have ended, since the last tick.
    ended: usize,
    /// Calls of `io_uring_enter` that the metrics know of.
    enters: u64,
}

/// Serves on the calling executor until told to stop. `ready` is called once it listens.
///
/// # Errors
///
/// The ring cannot be made, or has failed.
pub async fn run(shard: Shard, ready: impl FnOnce()) -> io::Result<Drained> {
    run_with(&SIZES, shard, ready).await
}

/// The same with a ring of other sizes.
pub(super) async fn run_with(
    sizes: &Sizes,
    shard: Shard,
    ready: impl FnOnce(),
) -> io::Result<Drained> {
    let mut ring = Uring::new(sizes, Issuer::ThisThread)?;
    if !shard.busy_poll.is_zero() {
        ring.busy_poll(shard.busy_poll)?;
    }
    ring.watch(shard.wakeup);
    ring.listen(shard.listener, shard.is_listener_shared);
    let (now, coalesces) = (Instant::now(), !shard.coalesce.is_zero());
    let mut reactor = Reactor {
        ring,
        service: shard.service,
        shard: shard.index,
        admission: shard.admission,
        stop: shard.stop,
        limits: shard.limits,
        heartbeat: shard.heartbeat,
        queue: Vec::new(),
        line: Line::new(),
        waiting: VecDeque::new(),
        reading: VecDeque::new(),
        unasked_since: None,
        has_accepted: false,
        spare: Vec::new(),
        started: now,
        now_ms: 0,
        received_ms: 0,
        received_at: now,
        handled_at: now,
        ticked_ms: 0,
        next_tick_ms: 0,
        urgency: Urgency::Serve,
        drain_ms: 0,
        cut: 0,
        // What is gathered is waited for asleep.
        polling: Polling::new(if coalesces { Spin::Fixed(Duration::ZERO) } else { shard.spin }),
        wait: if coalesces { Wait::Gather(shard.coalesce) } else { Wait::One },
        lull: Lull::Unmeasured,
        is_interrupted: false,
        active: 0,
        ended: 0,
        enters: 0,
    };
    // The kernel accepts from here on.
    reactor.turn(Wait::No)?;
    ready();
    while reactor.stop.urgency() == Urgency::Serve {
        reactor.serve()?;
        glommio::executor().yield_now().await;
    }
    reactor.stop_accepting();
    let end = Instant::now() + shard.drain_timeout;
    loop {
        let is_late = Instant::now() >= end || reactor.stop.urgency() == Urgency::Abort;
        reactor.urgency = if is_late { Urgency::Abort } else { Urgency::Drain };
        reactor.tick();
        if is_late || reactor.ring.is_empty() && !reactor.ring.is_accepting() {
            // Dropping the ring ends what is still under way.
            return Ok(Drained { cut: reactor.cut });
        }
        reactor.ask_for_commit();
        reactor.turn(Wait::For(DRAIN_WAIT))?;
        glommio::executor().yield_now().await;
    }
}

impl Reactor {
    /// Works until there is nothing to do, then polls, waits, and sleeps until there is, and returns
    /// when somebody else is to have a turn.
    fn serve(&mut self) -> io::Result<()> {
        if self.lull == Lull::Asleep {
            self.sleep()?;
        } else {
            self.work()?;
        }
        self.read_clocks();
        if self.now_ms >= self.next_tick_ms {
            self.tick();
        }
        Ok(())
    }

    fn work(&mut self) -> io::Result<()> {
        let (mut turns, mut completed) = (0, 0);
        self.is_interrupted = false;
        while !self.is_interrupted
            && turns < TURNS_BEFORE_YIELD
            && completed < COMPLETIONS_BEFORE_YIELD
        {
            turns += 1;
            if self.lull == Lull::Unmeasured {
                self.ring.set_timer(IDLE_AFTER);
                self.lull = Lull::Quiet;
            }
            let polls_for = self.polling.duration(self.active);
            let waiting_since = self.handled_at;
            let mut done = 0;
            if !self.line.is_empty() {
                completed += self.turn(Wait::No)?;
                continue;
            }
            if !polls_for.is_zero() || self.unasked_since.is_some() {
                done = self.turn(Wait::No)?;
                if done == 0 {
                    self.ask_for_commit();
                }
                if done == 0 && !polls_for.is_zero() {
                    let has_come = self.ring.poll(waiting_since + polls_for);
                    self.service.metrics().polled_ns.add(nanoseconds(waiting_since.elapsed()));
                    if has_come {
                        done = self.turn(Wait::No)?;
                    }
                }
            }
            // The idle timer may have come while polling: nothing then ends a wait without a timeout.
            if done == 0 && !self.is_interrupted {
                done = self.turn(self.wait)?;
            }
            if self.lull != Lull::Asleep {
                self.polling.learn(self.received_at - waiting_since);
            }
            completed += done;
        }
        Ok(())
    }

    /// Waits for work, at most until the clock is to be looked at.
    fn sleep(&mut self) -> io::Result<()> {
        self.ask_for_commit();
        self.service.metrics().sleeps.add(1);
        let pause = Duration::from_millis(self.next_tick_ms.saturating_sub(self.now_ms));
        self.turn(Wait::For(pause))?;
        Ok(())
    }

    /// One turn: submits, waits, handles what has completed, and queues the responses. Returns
    /// how many completions there were, the idle timer aside.
    fn turn(&mut self, wait: Wait) -> io::Result<usize> {
        // What is left of the last turn does not wait for anything.
        let is_done = self.queue.is_empty() && self.line.is_empty();
        let mut done = self.ring.turn(if is_done { wait } else { Wait::No })?;
        if matches!(wait, Wait::For(_)) {
            // It was long: what has come is stamped with the time at which it came.
            self.read_clocks();
        }
        let received_at = Instant::now();
        (self.received_at, self.handled_at) = (received_at, received_at);
        self.received_ms = milliseconds(received_at - self.started);
        while let Some(event) = self.ring.next_event() {
            done -= usize::from(matches!(event, Event::Timer));
            self.handle(event);
        }
        let enters = self.ring.enters();
        self.service.metrics().enters.add(enters - self.enters);
        self.enters = enters;
        if self.work_through_line() || done > 0 {
            self.lull = match self.lull {
                Lull::Unmeasured | Lull::Asleep => Lull::Unmeasured,
                Lull::Quiet | Lull::Busy => Lull::Busy,
            };
            // Deadlines are new.
            self.next_tick_ms = self.next_tick_ms.min(self.ticked_ms + milliseconds(TICK));
        }
        self.release_settled();
        if done > 0 || !self.queue.is_empty() {
            // Nothing is acknowledged before it can be read.
            self.service.commit();
            self.advance_queued();
            if self.unasked_since.is_some_and(|since| received_at - since >= COMMIT_AFTER) {
                self.ask_for_commit();
            }
            let waiting = self.waiting.len() + self.reading.len();
            self.service.metrics().waiting.set(waiting as u64);
            self.service.metrics().completions.add(done as u64);
            self.handled_at = Instant::now();
            self.service.note_turn(self.handled_at - received_at);
        }
        Ok(done)
    }

    /// Has connections in line work. Returns whether there were any.
    fn work_through_line(&mut self) -> bool {
        let Reactor { line, ring, queue, service, now_ms, urgency, .. } = self;
        line.advance(|key| {
            let Some(connection) = ring.get_mut(key) else { return 0 };
            connection.is_in_line = false;
            // At the end of the turn it gets in line again.
            if !std::mem::replace(&mut connection.is_queued, true) {
                queue.push(key);
            }
            connection.work(*now_ms, *urgency, service)
        })
    }

    /// Puts a connection that has work to do at the end of the line.
    fn line_up(&mut self, key: Key) {
        if let Some(connection) = self.ring.get_mut(key)
            && connection.get_in_line()
        {
            self.line.join(key);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Accepted(socket) => self.admit(socket),
            Event::AcceptStopped { error } => self.note_accept_error(&error),
            Event::Received(key, filled) => {
                if let Some((connection, bytes)) = self.ring.received(key, &filled) {
                    self.service.metrics().received_bytes.add(bytes.len() as u64);
                    if connection.out.capacity() == 0
                        && let Some(spare) = self.spare.pop()
                    {
                        connection.out = spare;
                    }
                    connection.receive(bytes, self.now_ms, self.urgency, &mut self.service);
                }
                self.ring.give_back(filled);
                self.fill(key);
                self.line_up(key);
                self.queue_up(key);
            }
            // All buffers are back at the end of this turn.
            Event::ReceiveStopped(key, NoBuffers(is_so)) => {
                self.service.metrics().exhausted.add(u64::from(is_so));
                self.queue_up(key);
            }
            Event::PeerClosed(key) => {
                if let Some(connection) = self.ring.get_mut(key) {
                    connection.note_peer_closed();
                }
                self.queue_up(key);
            }
            Event::ReceiveFailed(key) | Event::SendFailed(key) => self.close(key),
            Event::Sent(key, sent) => {
                self.service.metrics().sent_bytes.add(sent.len() as u64);
                self.recycle(sent);
                self.queue_up(key);
            }
            Event::Woken => {
                self.is_interrupted |= self.stop.urgency() > self.urgency;
                for accepted in self.admission.collect(self.shard) {
                    self.take_in(accepted);
                }
            }
            Event::Timer => {
                let had_work = self.lull == Lull::Busy;
                self.lull = if had_work { Lull::Unmeasured } else { Lull::Asleep };
                self.is_interrupted = true;
            }
            Event::Connected(_) | Event::ConnectFailed(..) => {
                unreachable!("a server opens no connections")
            }
        }
    }

    /// Keeps a buffer whose responses were sent for others.
    fn recycle(&mut self, mut sent: Vec<u8>) {
        sent.clear();
        if sent.capacity() <= SPARE_BUFFER_BYTES_MAX && self.spare.len() < SPARE_BUFFERS_MAX {
            self.spare.push(sent);
        }
    }

    /// Takes the rest of a large batch from the socket itself: buffer by buffer, it would take a turn each.
    fn fill(&mut self, key: Key) {
        if let Some(OpenSlot { data: connection, socket, is_receiving: false, .. }) =
            self.ring.slot(key)
        {
            let bytes = connection.fill(socket, self.now_ms, self.urgency, &mut self.service);
            self.service.metrics().received_bytes.add(bytes as u64);
        }
    }

    /// Goes on accepting at once if that has worked since it failed last, and otherwise after the next tick.
    fn note_accept_error(&mut self, error: &io::Error) {
        let Some(listener) = self.ring.listener() else { return };
        if !self.admission.note_accept_error(self.shard, listener, error, &self.stop) {
            self.ring.close_listener();
        } else if std::mem::take(&mut self.has_accepted) {
            self.ring.accept();
        }
    }

    fn admit(&mut self, socket: Socket) {
        self.has_accepted = true;
        if let Some(accepted) = self.admission.admit(self.shard, socket, self.service.metrics()) {
            self.take_in(accepted);
        }
    }

    /// Starts to serve a connection.
    fn take_in(&mut self, accepted: AcceptedConnection) {
        let peer_is_loopback = accepted.peer_is_loopback();
        let mut connection =
            Connection::new(self.limits, peer_is_loopback, self.now_ms, accepted.permit);
        if accepted.is_turned_away {
            connection.turn_away(&mut self.service);
        }
        let key = self.ring.insert(accepted.socket, connection);
        self.service.metrics().connections.add(1);
        self.queue_up(key);
    }

    fn close(&mut self, key: Key) {
        if let Some(connection) = self.ring.get_mut(key) {
            self.ended += usize::from(connection.take_activity());
            self.ring.close(key);
            self.service.metrics().connections.subtract(1);
        }
    }

    /// Puts a connection on the list for the end of the turn.
    fn queue_up(&mut self, key: Key) {
        if let Some(connection) = self.ring.get_mut(key)
            && !connection.is_queued
        {
            connection.is_queued = true;
            self.queue.push(key);
        }
    }

    /// At the end of a turn: starts what each connection that had an event needs next.
    fn advance_queued(&mut self) {
        let mut queue = std::mem::take(&mut self.queue);
        queue.drain(..).for_each(|key| self.advance(key));
        // Nothing is queued by what advances; the room is kept.
        self.queue = queue;
    }

    /// Asks for a commit of what waits for one. Called when there is nothing else to do: until then, every
    /// turn adds to what one commit carries.
    fn ask_for_commit(&mut self) {
        if self.unasked_since.take().is_some()
            && let Some(durability) = self.service.durability()
        {
            // First, so that one commit does both.
            let read = self.reading.back().is_some_and(|last| durability.request_read(last.epoch));
            let settled = self.waiting.back().is_some_and(|last| durability.request(last.epoch));
            if read || settled {
                // Nobody will wake this shard for it.
                self.release_settled();
            }
        }
    }

    /// Queues up the connections whose responses the store has settled, or for which totals were read.
    fn release_settled(&mut self) {
        if self.waiting.is_empty() && self.reading.is_empty() {
            return;
        }
        let (settled, read) =
            self.service.durability().map_or((0, 0), |store| (store.settled(), store.read()));
        while let Some(Waiting { key, .. }) = pop_up_to(&mut self.waiting, settled) {
            self.queue_up(key);
        }
        while let Some(Waiting { key, .. }) = pop_up_to(&mut self.reading, read) {
            self.queue_up(key);
        }
    }

    fn advance(&mut self, key: Key) {
        let Some(slot) = self.ring.slot(key) else { return };
        let OpenSlot { data: connection, socket, mut unsent, is_sending, is_receiving, .. } = slot;
        connection.is_queued = false;
        connection.resume(unsent, self.now_ms, self.urgency, &mut self.service);
        if connection.get_in_line() {
            self.line.join(key);
        }
        // Everybody else is looked at before it has anything to do again.
        connection.renew();
        if self.service.durability().is_some() {
            let since_ms = self.received_ms;
            if let Some(epoch) = connection.publish(since_ms, &self.service) {
                self.waiting.push_back(Waiting { key, epoch, since_ms });
                self.unasked_since.get_or_insert_with(Instant::now);
            }
            if let Some(epoch) = connection.await_read(since_ms, &self.service) {
                self.reading.push_back(Waiting { key, epoch, since_ms });
                self.unasked_since.get_or_insert_with(Instant::now);
            }
        }
        let mut responses = None;
        let sendable = connection.sendable(&self.service);
        if !is_sending && sendable > 0 {
            let mut taken = connection.take_responses(sendable, self.now_ms);
            if connection.is_finishing() {
                // The last ones: where the socket takes them at once, this side ends in the same turn. What has
                // failed here fails again.
                let sent = send_now(socket, &taken).unwrap_or(0);
                self.service.metrics().sent_bytes.add(sent as u64);
                taken.drain(..sent);
            }
            unsent = taken.len();
            responses = Some(taken);
        }
        let mut next = connection.next(unsent);
        if next == Next::Close && connection.is_finishing() && has_unread(socket) {
            // Closed now, it would be reset under its response.
            next = Next::ShutDownSending;
        }
        let is_multishot = connection.receives_multishot();
        if next == Next::ShutDownSending {
            connection.linger(self.now_ms);
            let is_open = self.ring.shut_down_sending(key).is_ok();
            next = if is_open { Next::Receive } else { Next::Close };
        }
        match responses {
            Some(sent) if sent.is_empty() => self.recycle(sent),
            // The end of such a send lets the connection do nothing that its peer has not to start.
            Some(responses) if next == Next::Receive && self.urgency == Urgency::Serve => {
                self.ring.send_quietly(key, responses);
            }
            Some(responses) => self.ring.send(key, responses),
            None => {}
        }
        match next {
            Next::Receive if is_receiving => {}
            Next::Receive if is_multishot => self.ring.receive_multishot(key),
            Next::Receive => self.ring.receive(key),
            Next::Wait => self.ring.stop_receiving(key),
            Next::ShutDownSending | Next::Close => self.close(key),
        }
    }

    fn read_clocks(&mut self) {
        self.now_ms = milliseconds(self.started.elapsed());
        self.heartbeat.store(self.now_ms, Ordering::Relaxed);
        self.service.set_time(unix_seconds());
    }

    /// Reads the clocks, and ends what has waited too long.
    fn tick(&mut self) {
        self.read_clocks();
        self.received_ms = self.now_ms;
        self.release_settled();
        // Also where its connection has ended meanwhile.
        if let Some(durability) = self.service.durability() {
            for first in [self.waiting.front(), self.reading.front()].into_iter().flatten() {
                if self.now_ms >= first.since_ms.saturating_add(durability.timeout_ms()) {
                    durability.note_late(first.epoch);
                }
            }
        }
        self.ticked_ms = self.now_ms;
        self.next_tick_ms = self.now_ms + milliseconds(IDLE_TICK);
        // With those that have ended: where each request has a connection of its own, few are open at any moment.
        self.active = std::mem::take(&mut self.ended);
        let mut in_flight = OfKinds::default();
        let mut to_close = Vec::new();
        for slot in self.ring.open_slots() {
            let connection = slot.data;
            self.active += usize::from(connection.take_activity());
            if let Some(kind) = connection.in_flight(slot.unsent) {
                in_flight[kind.endpoint as usize][kind.method as usize] += 1;
            }
            let due = connection.check_deadline(
                slot.unsent,
                self.now_ms,
                self.urgency,
                self.drain_ms,
                &mut self.service,
            );
            match due {
                Due::No => {
                    let deadline_ms = connection.deadline_ms(slot.unsent);
                    self.next_tick_ms = self.next_tick_ms.min(deadline_ms);
                }
                Due::Send => {
                    if !std::mem::replace(&mut connection.is_queued, true) {
                        self.queue.push(slot.key);
                    }
                }
                // What has arrived unseen is seen first.
                Due::CloseIdle if self.urgency == Urgency::Drain && has_unread(slot.socket) => {}
                Due::CloseIdle => to_close.push(slot.key),
                Due::Cut => {
                    self.cut += usize::from(self.urgency != Urgency::Serve);
                    to_close.push(slot.key);
                }
            }
        }
        to_close.into_iter().for_each(|key| self.close(key));
        self.service.metrics().note_in_flight(&in_flight);
        self.ring.accept();
        if !self.queue.is_empty() {
            self.next_tick_ms = 0;
        }
        self.next_tick_ms = self.next_tick_ms.max(self.now_ms + milliseconds(TICK));
        self.service.commit();
        self.advance_queued();
        self.ask_for_commit();
    }

    /// Takes in who has connected before the server stopped, as many as a backlog holds: a flood of
    /// connections does not hold up the stop.
    fn stop_accepting(&mut self) {
        self.read_clocks();
        self.urgency = Urgency::Drain;
        self.drain_ms = self.now_ms;
        for accepted in self.admission.close(self.shard) {
            self.take_in(accepted);
        }
        for _ in 0..BACKLOG {
            let Some(Ok((socket, _))) = self.ring.listener().map(Socket::accept) else { break };
            self.admit(socket);
        }
        self.ring.close_listener();
    }
}

/// Takes the first one if it waits for an epoch up to this one.
fn pop_up_to(waiting: &mut VecDeque<Waiting>, epoch: u64) -> Option<Waiting> {
    match waiting.front().is_some_and(|first| first.epoch <= epoch) {
        true => waiting.pop_front(),
        false => None,
    }
}

/// Whether a socket holds bytes that were not received.
fn has_unread(socket: &Socket) -> bool {
    rustix::io::ioctl_fionread(socket).is_ok_and(|bytes| bytes > 0)
}
