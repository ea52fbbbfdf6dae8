//! The loop of a shard. It decides the order of work on connections, independently of how their bytes are moved.
//!
//! A [`Driver`] does not know about sockets or clocks: it is called once per completed operation, and passes the operations
//! that a connection needs next to [`Sockets`]. The ring engine implements [`Sockets`] with io_uring, and the simulators
//! implement it with a simulated network, so their results hold for the shipped code.

use super::{Line, Waits};
use crate::connection::{Action, Connection, Due, Moment, Next, Urgency};
use crate::http::Limits;
use crate::metrics::{OfKinds, ShardMetrics};
use crate::service::Service;
use std::fmt;

/// The number of connections of each shard that may wait to be accepted. The kernel limits it to net.core.somaxconn. A stop
/// serves at most this many.
pub const BACKLOG: u16 = 4096;

/// The number of consecutive receives that must leave room in their buffer before a connection's receives become multishot. One
/// multishot receive may fill 32 buffers before it can be canceled, so a peer that sends in bulk is received from one buffer at
/// a time. If it never reads its responses, it ties up little memory.
const SMALL_BEFORE_MULTISHOT: u8 = 4;

/// The maximum number of response buffers that are kept for reuse, and the maximum size of each in bytes.
const SPARE_BUFFERS_MAX: usize = 2048;
const SPARE_BUFFER_BYTES_MAX: usize = 4096;

/// A connection, and the driver's data about it.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    /// Whether its action will be executed at the end of the iteration.
    is_queued: bool,
    /// Whether it is in the line of connections with work.
    is_in_line: bool,
    /// The number of consecutive receives that left room in their buffer.
    small_receives: u8,
}

impl Client {
    /// Returns the connection itself.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Returns whether its action will be executed at the end of the iteration.
    pub fn is_queued(&self) -> bool {
        self.is_queued
    }

    /// Returns whether it is in the line of connections with work.
    pub fn is_in_line(&self) -> bool {
        self.is_in_line
    }
}

/// An open connection of [`Sockets`].
#[derive(Debug)]
pub struct Open<'a, S> {
    /// The driver's data.
    pub client: &'a mut Client,
    /// Its socket.
    pub socket: S,
    /// Whether a receive is under way, or was canceled and has not ended.
    pub is_receiving: bool,
}

/// A socket, with the operations that do not have a completion.
pub trait Socket {
    /// Appends at most `bytes_max` bytes that have arrived to `bytes`, and returns their number. Returns 0 also at the end of
    /// the stream, or if the connection has failed; the next receive reports either. No receive may be under way.
    fn receive_now(&mut self, bytes: &mut Vec<u8>, bytes_max: usize) -> usize;
    /// Sends as much as the socket takes immediately, and returns the number of bytes. The next send reports a failure.
    fn send_now(&mut self, bytes: &[u8]) -> usize;
    /// Shuts down the write half. Returns whether the connection still exists.
    fn shut_down_sending(&mut self) -> bool;
    /// Returns whether bytes have arrived that were not received.
    fn has_unread(&self) -> bool;
}

/// A connection that was accepted.
pub trait Newcomer {
    /// Returns whether the peer's address is a loopback address.
    fn peer_is_loopback(&self) -> bool;
    /// Returns whether the server is full: the connection gets a 503 and is closed.
    fn is_rejected(&self) -> bool;
}

/// The result of an attempt to accept a connection.
#[derive(Debug)]
pub enum Accepted<A> {
    /// No connection waits to be accepted.
    None,
    /// A connection that was accepted for another shard, or was closed.
    Elsewhere,
    /// A connection for this shard.
    Here(A),
}

/// The end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The connection ended in order: its last response was sent, or its peer has left.
    Closed,
    /// An operation has failed.
    Failed,
    /// A deadline ended it, with nothing in flight.
    Idle,
    /// A deadline ended it, and something is lost.
    Cut,
}

/// The sockets of one shard, and the operations on them.
pub trait Sockets {
    /// The key of a connection. The key of an ended connection may occur until the operations on it have ended.
    type Key: Copy;
    /// A socket of an open connection.
    type Socket<'a>: Socket
    where
        Self: 'a;
    /// Received bytes, in a buffer that must be given back.
    type Filled;
    /// A connection that was accepted.
    type Accepted: Newcomer;

    /// The size of a receive buffer.
    const BUFFER_BYTES: usize;

    /// Returns a connection, unless it was closed.
    fn get(&mut self, key: Self::Key) -> Option<Open<'_, Self::Socket<'_>>>;
    /// Calls `visit` with every open connection.
    fn visit(&mut self, visit: impl FnMut(Self::Key, Open<'_, Self::Socket<'_>>));
    /// Returns a connection and what was received on it, unless it was closed.
    fn received<'a>(
        &'a mut self,
        key: Self::Key,
        filled: &'a Self::Filled,
    ) -> Option<(&'a mut Client, &'a [u8])>;
    /// Gives a buffer back.
    fn give_back(&mut self, filled: Self::Filled);
    /// Accepts a waiting connection, if any, without blocking.
    fn accept_now(&mut self, metrics: &ShardMetrics) -> Accepted<Self::Accepted>;
    /// Keeps a connection that was accepted.
    fn insert(&mut self, accepted: Self::Accepted, client: Client) -> Self::Key;
    /// Receives, once or until it is stopped.
    fn receive(&mut self, key: Self::Key, is_multishot: bool);
    /// Stops receiving. Bytes that arrived before may still be received.
    fn stop_receiving(&mut self, key: Self::Key);
    /// Sends all of these bytes. If it `skips_completion`, its end is not reported, unless it fails.
    fn send(&mut self, key: Self::Key, bytes: Vec<u8>, skips_completion: bool);
    /// Closes a connection. The operations on it then end without being reported.
    fn close(&mut self, key: Self::Key, how: Ended);
}

/// One shard, without its sockets.
pub struct Driver<S: Sockets> {
    service: Service,
    limits: Limits,
    moment: Moment,
    /// Connections whose actions are executed at the end of the iteration.
    queue: Vec<S::Key>,
    /// Connections with work to do. Each iteration spends one budget on the first of them.
    line: Line<S::Key>,
    waits: Waits<S::Key>,
    spare: Vec<Vec<u8>>,
    /// The number of connections that the stop has closed with something in flight.
    cut: usize,
    /// The number of connections with input between the last two ticks.
    active: usize,
    /// The number of active connections that have ended since the last tick.
    ended: usize,
}

impl<S: Sockets> Driver<S> {
    /// Creates a shard without connections, at time zero.
    pub fn new(service: Service, limits: Limits) -> Driver<S> {
        const { assert!(crate::connection::KEPT_BYTES_MAX >= 64 * S::BUFFER_BYTES) };
        Driver {
            service,
            limits,
            moment: Moment::START,
            queue: Vec::new(),
            line: Line::new(),
            waits: Waits::default(),
            spare: Vec::new(),
            cut: 0,
            active: 0,
            ended: 0,
        }
    }

    /// Returns the service that responds to its requests.
    #[inline]
    pub fn service(&mut self) -> &mut Service {
        &mut self.service
    }

    /// Returns the current moment.
    #[inline]
    pub fn moment(&self) -> &Moment {
        &self.moment
    }

    /// Returns the connections that wait for the store.
    pub fn waits(&self) -> &Waits<S::Key> {
        &self.waits
    }

    /// Returns the number of connections that the stop has closed with something in flight.
    pub fn cut(&self) -> usize {
        self.cut
    }

    /// Returns the number of connections with recent input.
    #[inline]
    pub fn active(&self) -> usize {
        self.active
    }

    /// Sets the time, in milliseconds since the start of the shard.
    #[inline]
    pub fn set_time(&mut self, now_ms: u64) {
        self.moment.now_ms = now_ms;
    }

    /// Begins an iteration whose input was all received at this time.
    #[inline]
    pub fn begin_iteration(&mut self, received_ms: u64) {
        self.moment.received_ms = received_ms;
    }

    /// Returns whether work is left from the last iteration, so that the next one must not wait.
    #[inline]
    pub fn has_work(&self) -> bool {
        !self.queue.is_empty() || !self.line.is_empty()
    }

    /// Returns whether there is work for more than one iteration.
    #[inline]
    pub fn is_in_line(&self) -> bool {
        !self.line.is_empty()
    }

    /// Starts serving a connection.
    pub fn take_in(&mut self, sockets: &mut S, accepted: S::Accepted) {
        let now_ms = self.moment.now_ms;
        let mut connection = Connection::new(self.limits, accepted.peer_is_loopback(), now_ms);
        if accepted.is_rejected() {
            connection.reject(&mut self.service);
        }
        let client = Client { connection, is_queued: true, is_in_line: false, small_receives: 0 };
        let key = sockets.insert(accepted, client);
        self.service.metrics().connections.add(1);
        self.queue.push(key);
    }

    /// Handles what was received on a connection.
    #[inline]
    pub fn handle_received(&mut self, sockets: &mut S, key: S::Key, filled: S::Filled) {
        if let Some((client, bytes)) = sockets.received(key, &filled) {
            self.service.metrics().received_bytes.add(bytes.len() as u64);
            client.small_receives = match bytes.len() == S::BUFFER_BYTES {
                true => 0,
                false => client.small_receives.saturating_add(1),
            };
            let connection = &mut client.connection;
            if !connection.responses().has_memory()
                && let Some(spare) = self.spare.pop()
            {
                connection.responses_mut().reuse(spare);
            }
            connection.receive(bytes, &self.moment, &mut self.service);
        }
        sockets.give_back(filled);
        let Some(Open { client, is_receiving, .. }) = sockets.get(key) else { return };
        // Once per receive: the next one reports the end of the stream or a failure.
        if !is_receiving && client.connection.wants_filling() {
            client.connection.begin_filling();
        }
        queue_up(&mut self.queue, client, key);
    }

    /// Notes that a receive has ended although the peer may still send.
    pub fn note_receive_stopped(&mut self, sockets: &mut S, key: S::Key) {
        if let Some(Open { client, .. }) = sockets.get(key) {
            queue_up(&mut self.queue, client, key);
        }
    }

    /// Notes that the peer will send nothing more.
    pub fn note_peer_closed(&mut self, sockets: &mut S, key: S::Key) {
        if let Some(Open { client, .. }) = sockets.get(key) {
            client.connection.note_peer_closed();
            queue_up(&mut self.queue, client, key);
        }
    }

    /// Notes that the kernel has taken all bytes of a send.
    #[inline]
    pub fn note_sent(&mut self, sockets: &mut S, key: S::Key, sent: Vec<u8>) {
        self.service.metrics().sent_bytes.add(sent.len() as u64);
        if let Some(Open { client, .. }) = sockets.get(key) {
            client.connection.note_sent(sent.len());
            if client.connection.has_work() {
                get_in_line(&mut self.line, &mut client.is_in_line, key);
            }
            queue_up(&mut self.queue, client, key);
        }
        self.recycle(sent);
    }

    /// Notes that a receive or a send has failed.
    pub fn note_failed(&mut self, sockets: &mut S, key: S::Key) {
        self.close(sockets, key, Ended::Failed);
    }

    /// Ends an iteration with this many completions: connections in line get their turn, everything is published, and the
    /// actions of all connections with an event are executed. Returns whether there was anything to do.
    pub fn end_iteration(&mut self, sockets: &mut S, completions: usize) -> bool {
        self.work_through_line(sockets);
        self.release_settled(sockets);
        if completions == 0 && self.queue.is_empty() {
            return false;
        }
        // No event is acknowledged before it can be read.
        self.service.publish();
        self.act_on_queued(sockets);
        if self.waits.must_ask(self.moment.received_ms) {
            self.ask_for_commit(sockets);
        }
        let metrics = self.service.metrics();
        metrics.waiting.set(self.waits.len() as u64);
        metrics.completions.add(completions as u64);
        true
    }

    /// Requests from the store what connections wait for. Call this before the shard waits: until then, every iteration
    /// adds to the same commit.
    pub fn ask_for_commit(&mut self, sockets: &mut S) {
        if let Some(durability) = self.service.durability()
            && self.waits.ask(durability)
        {
            self.release_settled(sockets);
        }
    }

    /// Ends connections that have waited too long and, while the server drains, connections with nothing in flight. Returns
    /// when that is next due, in milliseconds.
    pub fn tick(&mut self, sockets: &mut S) -> u64 {
        self.moment.received_ms = self.moment.now_ms;
        self.release_settled(sockets);
        if let Some(durability) = self.service.durability() {
            self.waits.note_late(durability, self.moment.now_ms);
        }
        let (mut due_ms, to_close) = self.look_at_all(sockets);
        to_close.into_iter().for_each(|(key, how)| self.close(sockets, key, how));
        if !self.queue.is_empty() {
            due_ms = 0;
        }
        self.service.publish();
        self.act_on_queued(sockets);
        self.ask_for_commit(sockets);
        due_ms
    }

    /// Checks the deadlines of all connections. Returns the next deadline, and the connections that must be closed.
    fn look_at_all(&mut self, sockets: &mut S) -> (u64, Vec<(S::Key, Ended)>) {
        // Ended connections are included: if each request has its own connection, few are open at any moment.
        let mut active = std::mem::take(&mut self.ended);
        let mut in_flight = OfKinds::default();
        let (mut due_ms, mut to_close) = (u64::MAX, Vec::new());
        let Driver { service, moment, queue, .. } = self;
        let is_draining = moment.urgency == Urgency::Drain;
        sockets.visit(|key, Open { client, socket, .. }| {
            let connection = &mut client.connection;
            active += usize::from(connection.take_activity());
            if let Some(kind) = connection.in_flight() {
                in_flight[kind.endpoint as usize][kind.method as usize] += 1;
            }
            look_for_unread(moment, connection, &socket);
            match connection.tick(moment, service) {
                Due::Nothing => due_ms = due_ms.min(connection.deadline_ms()),
                Due::Act => queue_up(queue, client, key),
                // Input that has arrived is handled first, unless it is discarded.
                Due::CloseIdle
                    if is_draining && !connection.is_lingering() && socket.has_unread() => {}
                Due::CloseIdle => to_close.push((key, Ended::Idle)),
                Due::Cut => to_close.push((key, Ended::Cut)),
            }
        });
        service.metrics().note_in_flight(&in_flight);
        self.active = active;
        (due_ms, to_close)
    }

    /// Begins to drain. Accepts the connections that were already established and wait to be accepted, but no more than a
    /// backlog holds, so that a flood of them does not delay the stop.
    pub fn begin_drain(&mut self, sockets: &mut S) {
        self.moment.urgency = Urgency::Drain;
        self.moment.drain_ms = self.moment.now_ms;
        for _ in 0..BACKLOG {
            match sockets.accept_now(self.service.metrics()) {
                Accepted::None => break,
                Accepted::Elsewhere => {}
                Accepted::Here(accepted) => self.take_in(sockets, accepted),
            }
        }
    }

    /// Makes the next tick end everything.
    pub fn abort(&mut self) {
        self.moment.urgency = Urgency::Abort;
    }

    /// Lets the connections in line work.
    fn work_through_line(&mut self, sockets: &mut S) {
        let Driver { line, queue, service, moment, .. } = self;
        line.advance(|key| {
            let Some(Open { client, mut socket, .. }) = sockets.get(key) else { return 0 };
            client.is_in_line = false;
            // At the end of the iteration, it gets in line again.
            queue_up(queue, client, key);
            let connection = &mut client.connection;
            look_for_unread(moment, connection, &socket);
            match connection.is_filling() {
                // The next receive reports any failure.
                true => connection.fill(
                    |body, bytes_max| socket.receive_now(body, bytes_max),
                    moment,
                    service,
                ),
                false => connection.work(moment, service),
            }
        });
    }

    /// Queues the connections whose responses the store has settled, or whose totals were read.
    fn release_settled(&mut self, sockets: &mut S) {
        if self.waits.is_empty() {
            return;
        }
        let Driver { waits, queue, service, .. } = self;
        if let Some(durability) = service.durability() {
            waits.release(durability, |key| {
                if let Some(Open { client, .. }) = sockets.get(key) {
                    queue_up(queue, client, key);
                }
            });
        }
    }

    /// Executes the actions of the connections that had an event.
    fn act_on_queued(&mut self, sockets: &mut S) {
        let mut queue = std::mem::take(&mut self.queue);
        queue.drain(..).for_each(|key| self.act(sockets, key));
        debug_assert!(self.queue.is_empty(), "nothing is queued by what acts");
        // The allocation is kept.
        self.queue = queue;
    }

    /// Executes the action of a connection.
    fn act(&mut self, sockets: &mut S, key: S::Key) {
        let Some(open) = sockets.get(key) else { return };
        let is_receiving = open.is_receiving;
        let is_multishot = open.client.small_receives >= SMALL_BEFORE_MULTISHOT;
        let (responses, then) = self.begin_action(key, open);
        match responses {
            Some(sent) if sent.is_empty() => self.recycle(sent),
            Some(responses) => {
                // If only the peer can act next, the completion is not needed.
                let skips_completion =
                    then == Next::Receive && self.moment.urgency == Urgency::Serve;
                sockets.send(key, responses, skips_completion);
            }
            None => {}
        }
        match then {
            Next::Receive if is_receiving => {}
            Next::Receive => sockets.receive(key, is_multishot),
            Next::Pause => sockets.stop_receiving(key),
            Next::ShutDownWrite | Next::Close => self.close(sockets, key, Ended::Closed),
        }
    }

    /// Notes what a connection waits for, and performs the operations that do not have a completion. Returns the responses to
    /// send, and the next operation on its socket.
    #[inline]
    fn begin_action(
        &mut self,
        key: S::Key,
        open: Open<'_, S::Socket<'_>>,
    ) -> (Option<Vec<u8>>, Next) {
        let Open { client, mut socket, .. } = open;
        client.is_queued = false;
        let connection = &mut client.connection;
        look_for_unread(&self.moment, connection, &socket);
        let action = connection.action(&self.moment, &mut self.service);
        // All other connections are served before it works again.
        connection.renew();
        if action.has_work {
            get_in_line(&mut self.line, &mut client.is_in_line, key);
        }
        self.waits.join(&key, &action, self.moment.received_ms);
        let Action { send, mut then, .. } = action;
        let mut responses = None;
        if send > 0 && !connection.is_sending() {
            let mut taken = connection.take_responses(send, self.moment.now_ms);
            if connection.is_finishing() {
                // If the socket takes the last responses immediately, the write half is shut down in the same iteration.
                let sent = socket.send_now(&taken);
                self.service.metrics().sent_bytes.add(sent as u64);
                taken.drain(..sent);
                connection.note_sent(sent);
                then = connection.next();
            }
            responses = Some(taken);
        }
        if then == Next::Close && connection.is_finishing() && socket.has_unread() {
            // If it were closed now, a reset could overtake its response.
            then = Next::ShutDownWrite;
        }
        if then == Next::ShutDownWrite {
            connection.linger(self.moment.now_ms);
            then = if socket.shut_down_sending() { Next::Receive } else { Next::Close };
        }
        (responses, then)
    }

    fn close(&mut self, sockets: &mut S, key: S::Key, how: Ended) {
        let Some(was_active) = sockets.get(key).map(|open| open.client.connection.take_activity())
        else {
            return;
        };
        self.ended += usize::from(was_active);
        let is_cut = how == Ended::Cut && self.moment.urgency != Urgency::Serve;
        self.cut += usize::from(is_cut);
        self.service.metrics().connections.subtract(1);
        sockets.close(key, how);
    }

    /// Keeps the buffer of responses that were sent, for reuse.
    fn recycle(&mut self, mut sent: Vec<u8>) {
        sent.clear();
        if sent.capacity() <= SPARE_BUFFER_BYTES_MAX && self.spare.len() < SPARE_BUFFERS_MAX {
            self.spare.push(sent);
        }
    }
}

impl<S: Sockets> fmt::Debug for Driver<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("moment", &self.moment).finish_non_exhaustive()
    }
}

/// Schedules the action of a connection for the end of the iteration.
#[inline]
fn queue_up<K>(queue: &mut Vec<K>, client: &mut Client, key: K) {
    if !std::mem::replace(&mut client.is_queued, true) {
        queue.push(key);
    }
}

/// Puts a connection in line, unless it is there already. If the line is short, its turn comes in this iteration.
#[inline]
fn get_in_line<K>(line: &mut Line<K>, is_in_line: &mut bool, key: K) {
    if !std::mem::replace(is_in_line, true) {
        line.join(key);
    }
}

/// Tells a connection, while the server drains, whether more has arrived on its socket.
#[inline]
fn look_for_unread(moment: &Moment, connection: &mut Connection, socket: &impl Socket) {
    if moment.urgency == Urgency::Drain {
        connection.note_unread(socket.has_unread());
    }
}
