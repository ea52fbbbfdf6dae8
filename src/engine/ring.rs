//! The data plane on an io_uring of our own, inside the shard's glommio executor: it collects completions, gives them to
//! connections, and executes their actions.
//!
//! One ring carries accept, receive, and send. An iteration submits what the last one queued and collects
//! what has completed, in one `io_uring_enter`; handles all completions; publishes; and queues the
//! responses. The shard always waits in that ring, asleep or not. Whatever wakes it from outside, the
//! stop or a connection that another shard hands off, comes through its [`Wakeup`](crate::uring::Wakeup),
//! which the ring watches. glommio gets its turn between waits; nothing here waits for it.

use super::line::Line;
use super::pacing::{IDLE_AFTER, Pacing};
use super::{AcceptedConnection, Admission, BACKLOG, Drained, Permit, Shard, Stop, unix_seconds};
use crate::connection::{Action, Connection, Due, Moment, Next, Urgency};
use crate::http::Limits;
use crate::metrics::{OfKinds, nanoseconds};
use crate::service::Service;
use crate::uring::{
    BUFFER_BYTES, Event, Issuer, Key, NoBuffers, OpenSlot, Sizes, Uring, Wait, receive_now,
    send_now,
};
use socket2::Socket;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SIZES: Sizes = Sizes { submissions: 1024, completions: 8192, buffers: 2048 };

/// How long it waits at a time while it drains, so that the deadline is looked at.
const DRAIN_WAIT: Duration = Duration::from_millis(2);

/// Receives in a row that leave room in their buffer, after which a connection's receive is
/// multishot. One multishot receive may fill 32 buffers before it can be canceled: who sends in
/// bulk is received from one buffer at a time, so that a peer that never reads its responses holds
/// little here.
const SMALL_BEFORE_MULTISHOT: u8 = 4;
const _: () = assert!(crate::connection::KEPT_BYTES_MAX >= 64 * BUFFER_BYTES);

/// Buffers for responses that are kept for reuse, and the largest that is kept, in bytes.
const SPARE_BUFFERS_MAX: usize = 2048;
const SPARE_BUFFER_BYTES_MAX: usize = 4096;

/// A connection, and what the ring needs besides.
struct Client {
    connection: Connection,
    /// Its action is executed at the end of the iteration.
    is_queued: bool,
    /// It is in the line of those with work to do.
    is_in_line: bool,
    /// Receives in a row that left room in their buffer.
    small_receives: u8,
    _permit: Permit,
}

/// A connection with responses that wait for the store.
struct Waiting {
    key: Key,
    /// The epoch that they wait for.
    epoch: u64,
    since_ms: u64,
}

/// One shard: its ring, its connections, and what it does next.
struct Reactor {
    ring: Uring<Client>,
    service: Service,
    shard: usize,
    admission: Arc<Admission>,
    stop: Arc<Stop>,
    limits: Limits,
    heartbeat: Arc<AtomicU64>,
    pacing: Pacing,
    moment: Moment,
    /// Connections whose actions are executed at the end of the iteration.
    queue: Vec<Key>,
    /// Connections with work to do: each iteration uses up one budget for the first of them.
    line: Line<Key>,
    /// Those whose responses wait until they are settled, in the order of their epochs.
    waiting: VecDeque<Waiting>,
    /// Those whose responses wait until totals were read, in the order of their epochs.
    reading: VecDeque<Waiting>,
    /// Whether accepting has worked since it failed last.
    has_accepted: bool,
    spare: Vec<Vec<u8>>,
    /// Connections that the stop has closed with something in flight.
    cut: usize,
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
    let mut reactor = Reactor {
        ring,
        service: shard.service,
        shard: shard.index,
        admission: shard.admission,
        stop: shard.stop,
        limits: shard.limits,
        heartbeat: shard.heartbeat,
        pacing: Pacing::new(shard.spin, shard.coalesce, Instant::now()),
        moment: Moment::START,
        queue: Vec::new(),
        line: Line::new(),
        waiting: VecDeque::new(),
        reading: VecDeque::new(),
        has_accepted: false,
        spare: Vec::new(),
        cut: 0,
        active: 0,
        ended: 0,
        enters: 0,
    };
    // The kernel accepts from here on.
    reactor.iterate(Wait::No)?;
    ready();
    while reactor.stop.urgency() == Urgency::Serve {
        reactor.serve()?;
        glommio::executor().yield_now().await;
    }
    reactor.stop_accepting();
    let end = Instant::now() + shard.drain_timeout;
    loop {
        let is_late = Instant::now() >= end || reactor.stop.urgency() == Urgency::Abort;
        reactor.moment.urgency = if is_late { Urgency::Abort } else { Urgency::Drain };
        reactor.tick();
        if is_late || reactor.ring.is_empty() && !reactor.ring.is_accepting() {
            // Dropping the ring ends what is still under way.
            return Ok(Drained { cut: reactor.cut });
        }
        reactor.ask_for_commit();
        reactor.iterate(Wait::For(DRAIN_WAIT))?;
        glommio::executor().yield_now().await;
    }
}

impl Reactor {
    /// Works until there is nothing to do, then polls, waits, and sleeps until there is, and returns
    /// when somebody else must have a turn.
    fn serve(&mut self) -> io::Result<()> {
        if self.pacing.is_asleep() {
            self.sleep()?;
        } else {
            self.work()?;
        }
        self.read_clocks();
        if self.pacing.is_tick_due(self.moment.now_ms) {
            self.tick();
        }
        Ok(())
    }

    fn work(&mut self) -> io::Result<()> {
        self.pacing.begin_turn();
        while self.pacing.begin_iteration() {
            if self.pacing.begin_idle_period() {
                self.ring.set_timer(IDLE_AFTER);
            }
            if !self.line.is_empty() {
                self.iterate(Wait::No)?;
                continue;
            }
            let polls_for = self.pacing.polls_for(self.active);
            let waiting_since = self.pacing.waiting_since();
            let mut done = 0;
            if !polls_for.is_zero() || self.pacing.has_unasked() {
                done = self.iterate(Wait::No)?;
                if done == 0 {
                    self.ask_for_commit();
                }
                if done == 0 && !polls_for.is_zero() {
                    let has_come = self.ring.poll(waiting_since + polls_for);
                    self.service.metrics().polled_ns.add(nanoseconds(waiting_since.elapsed()));
                    if has_come {
                        done = self.iterate(Wait::No)?;
                    }
                }
            }
            // The idle timer may have come while polling: nothing then ends a wait without a timeout.
            if done == 0 && !self.pacing.is_interrupted() {
                self.iterate(self.pacing.wait)?;
            }
            self.pacing.learn(waiting_since);
        }
        Ok(())
    }

    /// Waits for work, at most until the clock has to be looked at.
    fn sleep(&mut self) -> io::Result<()> {
        self.ask_for_commit();
        self.service.metrics().sleeps.add(1);
        self.iterate(Wait::For(self.pacing.sleeps_for(self.moment.now_ms)))?;
        Ok(())
    }

    /// One iteration: submits, waits, handles what has completed, and queues the responses. Returns
    /// how many completions there were, apart from the idle timer's.
    fn iterate(&mut self, wait: Wait) -> io::Result<usize> {
        // What is left of the last iteration does not wait for anything.
        let is_done = self.queue.is_empty() && self.line.is_empty();
        let mut done = self.ring.turn(if is_done { wait } else { Wait::No })?;
        if matches!(wait, Wait::For(_)) {
            // It was long: what has come is stamped with the time at which it came.
            self.read_clocks();
        }
        let received_at = Instant::now();
        self.pacing.note_received(received_at);
        self.moment.received_ms = self.pacing.ms_at(received_at);
        while let Some(event) = self.ring.next_event() {
            done -= usize::from(matches!(event, Event::Timer));
            self.handle(event);
        }
        let enters = self.ring.enters();
        self.service.metrics().enters.add(enters - self.enters);
        self.enters = enters;
        if self.work_through_line() || done > 0 {
            self.pacing.note_work();
        }
        self.release_settled();
        if done > 0 || !self.queue.is_empty() {
            // Nothing is acknowledged before it can be read.
            self.service.publish();
            self.act_on_queued();
            if self.pacing.must_ask() {
                self.ask_for_commit();
            }
            let waiting = self.waiting.len() + self.reading.len();
            self.service.metrics().waiting.set(waiting as u64);
            self.service.metrics().completions.add(done as u64);
            let took = self.pacing.note_handled(done);
            self.service.note_iteration(took);
        }
        Ok(done)
    }

    /// Has connections in line work. Returns whether there were any.
    fn work_through_line(&mut self) -> bool {
        let Reactor { line, ring, queue, service, moment, .. } = self;
        line.advance(|key| {
            let Some(OpenSlot { data: client, socket, .. }) = ring.slot(key) else { return 0 };
            client.is_in_line = false;
            // At the end of the iteration it gets in line again.
            if !std::mem::replace(&mut client.is_queued, true) {
                queue.push(key);
            }
            match client.connection.is_filling() {
                // The next receive reports what has gone wrong.
                true => client.connection.fill(
                    |body, bytes_max| receive_now(socket, body, bytes_max).unwrap_or(0),
                    moment,
                    service,
                ),
                false => client.connection.work(moment, service),
            }
        })
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Accepted(socket) => self.admit(socket),
            Event::AcceptStopped { error } => self.note_accept_error(&error),
            Event::Received(key, filled) => {
                if let Some((client, bytes)) = self.ring.received(key, &filled) {
                    self.service.metrics().received_bytes.add(bytes.len() as u64);
                    client.small_receives = match bytes.len() {
                        BUFFER_BYTES => 0,
                        _ => client.small_receives.saturating_add(1),
                    };
                    let connection = &mut client.connection;
                    if !connection.responses().has_memory()
                        && let Some(spare) = self.spare.pop()
                    {
                        connection.responses().reuse(spare);
                    }
                    connection.receive(bytes, &self.moment, &mut self.service);
                }
                self.ring.give_back(filled);
                // Once per receive: the next one reports the end of the stream, and what has gone wrong.
                if let Some(OpenSlot { data: client, is_receiving: false, .. }) =
                    self.ring.slot(key)
                    && client.connection.wants_filling()
                {
                    client.connection.begin_filling();
                }
                self.queue_up(key);
            }
            // All buffers are back at the end of this iteration.
            Event::ReceiveStopped(key, NoBuffers(is_so)) => {
                self.service.metrics().exhausted.add(u64::from(is_so));
                self.queue_up(key);
            }
            Event::PeerClosed(key) => {
                if let Some(client) = self.ring.get_mut(key) {
                    client.connection.note_peer_closed();
                }
                self.queue_up(key);
            }
            Event::ReceiveFailed(key) | Event::SendFailed(key) => self.close(key),
            Event::Sent(key, sent) => {
                self.service.metrics().sent_bytes.add(sent.len() as u64);
                if let Some(client) = self.ring.get_mut(key) {
                    client.connection.note_sent(sent.len());
                }
                self.recycle(sent);
                self.queue_up(key);
            }
            Event::Woken => {
                if self.stop.urgency() > self.moment.urgency {
                    self.pacing.interrupt();
                }
                for accepted in self.admission.collect(self.shard) {
                    self.take_in(accepted);
                }
            }
            Event::Timer => self.pacing.note_timer(),
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
        let mut connection = Connection::new(self.limits, peer_is_loopback, self.moment.now_ms);
        if accepted.is_rejected {
            connection.reject(&mut self.service);
        }
        let client = Client {
            connection,
            is_queued: false,
            is_in_line: false,
            small_receives: 0,
            _permit: accepted.permit,
        };
        let key = self.ring.insert(accepted.socket, client);
        self.service.metrics().connections.add(1);
        self.queue_up(key);
    }

    fn close(&mut self, key: Key) {
        if let Some(client) = self.ring.get_mut(key) {
            self.ended += usize::from(client.connection.take_activity());
            self.ring.close(key);
            self.service.metrics().connections.subtract(1);
        }
    }

    /// Has the action of a connection executed at the end of the iteration.
    fn queue_up(&mut self, key: Key) {
        if let Some(client) = self.ring.get_mut(key)
            && !client.is_queued
        {
            client.is_queued = true;
            self.queue.push(key);
        }
    }

    /// At the end of an iteration: does what each connection that had an event needs.
    fn act_on_queued(&mut self) {
        let mut queue = std::mem::take(&mut self.queue);
        queue.drain(..).for_each(|key| self.act(key));
        // Nothing is queued by what acts; the room is kept.
        self.queue = queue;
    }

    /// Asks for a commit of what waits for one. Called when there is nothing else to do: until then, every
    /// iteration adds to what one commit carries.
    fn ask_for_commit(&mut self) {
        if self.pacing.ask()
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

    /// Executes the action of a connection.
    fn act(&mut self, key: Key) {
        let Some(slot) = self.ring.slot(key) else { return };
        let OpenSlot { data: client, socket, is_receiving, .. } = slot;
        client.is_queued = false;
        let connection = &mut client.connection;
        let Action { send, mut then, settle, read, has_work } =
            connection.action(&self.moment, &mut self.service);
        // Everybody else is looked at before it has anything to do again.
        connection.renew();
        if has_work && !std::mem::replace(&mut client.is_in_line, true) {
            self.line.join(key);
        }
        let since_ms = self.moment.received_ms;
        if let Some(epoch) = settle {
            self.waiting.push_back(Waiting { key, epoch, since_ms });
            self.pacing.note_waiting();
        }
        if let Some(epoch) = read {
            self.reading.push_back(Waiting { key, epoch, since_ms });
            self.pacing.note_waiting();
        }
        let mut responses = None;
        if send > 0 && !connection.is_sending() {
            let mut taken = connection.take_responses(send, self.moment.now_ms);
            if connection.is_finishing() {
                // The last ones: if the socket takes them at once, the write half is shut down in the same iteration. What
                // has failed here fails again.
                let sent = send_now(socket, &taken).unwrap_or(0);
                self.service.metrics().sent_bytes.add(sent as u64);
                taken.drain(..sent);
                connection.note_sent(sent);
                then = connection.next();
            }
            responses = Some(taken);
        }
        if then == Next::Close && connection.is_finishing() && has_unread(socket) {
            // Closed now, it would be reset under its response.
            then = Next::ShutDownWrite;
        }
        let is_multishot = client.small_receives >= SMALL_BEFORE_MULTISHOT;
        if then == Next::ShutDownWrite {
            connection.linger(self.moment.now_ms);
            let is_open = self.ring.shut_down_sending(key).is_ok();
            then = if is_open { Next::Receive } else { Next::Close };
        }
        match responses {
            Some(sent) if sent.is_empty() => self.recycle(sent),
            // Only the peer can act next, so no completion is needed.
            Some(responses) if then == Next::Receive && self.moment.urgency == Urgency::Serve => {
                self.ring.send_skipping_completion(key, responses);
            }
            Some(responses) => self.ring.send(key, responses),
            None => {}
        }
        match then {
            Next::Receive if is_receiving => {}
            Next::Receive if is_multishot => self.ring.receive_multishot(key),
            Next::Receive => self.ring.receive(key),
            Next::Pause => self.ring.stop_receiving(key),
            Next::ShutDownWrite | Next::Close => self.close(key),
        }
    }

    fn read_clocks(&mut self) {
        self.moment.now_ms = self.pacing.ms_at(Instant::now());
        self.heartbeat.store(self.moment.now_ms, Ordering::Relaxed);
        self.service.set_time(unix_seconds());
    }

    /// Reads the clocks, and ends what has waited too long.
    fn tick(&mut self) {
        self.read_clocks();
        self.moment.received_ms = self.moment.now_ms;
        self.release_settled();
        self.note_late_store();
        self.pacing.begin_tick(self.moment.now_ms);
        // With those that have ended: if each request has a connection of its own, few are open at any moment.
        self.active = std::mem::take(&mut self.ended);
        let mut in_flight = OfKinds::default();
        let mut to_close = Vec::new();
        for slot in self.ring.open_slots() {
            let connection = &mut slot.data.connection;
            self.active += usize::from(connection.take_activity());
            if let Some(kind) = connection.in_flight() {
                in_flight[kind.endpoint as usize][kind.method as usize] += 1;
            }
            match connection.tick(&self.moment, &mut self.service) {
                Due::Nothing => self.pacing.note_deadline(connection.deadline_ms()),
                Due::Act => {
                    self.pacing.note_deadline(0);
                    if !std::mem::replace(&mut slot.data.is_queued, true) {
                        self.queue.push(slot.key);
                    }
                }
                // What has arrived unseen is seen first, unless it is discarded.
                Due::CloseIdle
                    if self.moment.urgency == Urgency::Drain
                        && !connection.is_lingering()
                        && has_unread(slot.socket) => {}
                Due::CloseIdle => to_close.push(slot.key),
                Due::Cut => {
                    self.cut += usize::from(self.moment.urgency != Urgency::Serve);
                    to_close.push(slot.key);
                }
            }
        }
        to_close.into_iter().for_each(|key| self.close(key));
        self.service.metrics().note_in_flight(&in_flight);
        self.ring.accept();
        if !self.queue.is_empty() {
            self.pacing.note_deadline(0);
        }
        self.pacing.end_tick();
        self.service.publish();
        self.act_on_queued();
        self.ask_for_commit();
    }

    /// Notes that the store is late with what a connection waits for, also if that has ended meanwhile.
    fn note_late_store(&self) {
        let Some(durability) = self.service.durability() else { return };
        for first in [self.waiting.front(), self.reading.front()].into_iter().flatten() {
            if self.moment.now_ms >= first.since_ms.saturating_add(durability.timeout_ms()) {
                durability.note_late(first.epoch);
            }
        }
    }

    /// Takes in who has connected before the server stopped, as many as a backlog holds: a flood of
    /// connections does not hold up the stop.
    fn stop_accepting(&mut self) {
        self.read_clocks();
        self.moment.urgency = Urgency::Drain;
        self.moment.drain_ms = self.moment.now_ms;
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
