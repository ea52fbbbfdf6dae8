//! The data plane on glommio's own TCP streams: one task per connection.
//!
//! glommio's rings have none of the flags that make a registered eventfd go silent (DEFER_TASKRUN), and
//! glommio registers none: it waits for its wake-ups, and this shard's, by polling their descriptors in
//! the ring that it sleeps in.

use super::admission::is_about_one_connection;
use super::{
    AcceptedConnection, Admission, BACKLOG, DRAIN_QUIET_MS, Drained, LINGER_BYTES_MAX, LINGER_MS,
    Permit, Shard, Stop, TICK, Urgency, milliseconds, unix_seconds,
};
use crate::http::{Limits, Outcome};
use crate::service::{Connection, Reading, Service};
use crate::store::{Durability, Held, Release};
use crate::uring::Wakeup;
use futures_lite::future::poll_fn;
use futures_lite::io::{AsyncRead, AsyncWrite};
use glommio::io::PollableFd;
use glommio::net::TcpStream;
use glommio::timer::sleep;
use socket2::Socket;
use std::cell::{Cell, RefCell};
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Bytes that one read takes at most. All connections of a shard share the buffer.
pub(super) const INPUT_BYTES: usize = 16 * 1024;

/// Connections accepted in a row before others get their turn.
const ACCEPTS_PER_TURN: usize = 64;

/// How long accepting rests when the kernel is out of descriptors or memory: at first, and at
/// most after doubling.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(5);
const ACCEPT_BACKOFF_MAX: Duration = Duration::from_millis(500);

/// How often a draining shard looks whether its connections have ended.
const DRAIN_TICK: Duration = Duration::from_millis(5);
/// Its ticks during which a receive must have waited before its connection counts as idle.
const DRAIN_TICKS_BEFORE_IDLE: u64 = 3;

/// What the tasks of one shard share.
struct Hub {
    service: RefCell<Service>,
    input: RefCell<Vec<u8>>,
    /// Is always readable, as glommio finds out when it looks at its ring: see [`Hub::look_around`].
    look: PollableFd<Wakeup>,
    limits: Limits,
    started: Instant,
    /// Milliseconds since `started`, as of the last tick.
    now_ms: Cell<u64>,
    heartbeat: Arc<AtomicU64>,
    urgency: Cell<Urgency>,
    /// When draining began.
    drain_ms: Cell<u64>,
    /// Ticks while it drains. Between two of them glommio's ring was submitted and collected.
    drain_ticks: Cell<u64>,
    /// Connections that the stop has closed with something in flight.
    cut: Cell<usize>,
    watches: RefCell<Vec<Weak<Watch>>>,
    /// Tasks with responses that wait for the store, and the epochs that they wait for.
    waiting: RefCell<Vec<(u64, Weak<Watch>)>>,
    /// The highest of these epochs so far.
    requested: Cell<u64>,
    /// Tasks with a request for which totals are to be read, and the epochs that they wait for.
    reading: RefCell<Vec<(u64, Weak<Watch>)>>,
}

/// What can end a task's waiting besides its socket.
struct Watch {
    deadline_ms: Cell<u64>,
    /// The drain's tick at which the present receive was first seen to wait.
    waits_since_tick: Cell<Option<u64>>,
    waker: Cell<Option<Waker>>,
}

/// What came of waiting for a socket.
enum Transfer {
    /// The socket took or gave so many bytes, or failed.
    Done(io::Result<usize>),
    /// The deadline has passed, or the server stops at once.
    Over,
}

impl Hub {
    /// Waits until all tasks that can go on have had their turn, and the ring was looked at for what others are waiting for.
    /// To yield would not suffice: glommio looks at its ring only when no task can go on, or every 100 ms.
    async fn look_around(&self) {
        if self.look.readable().await.is_err() {
            glommio::executor().yield_now().await;
        }
    }

    /// Reads the clocks and wakes the tasks that have waited too long.
    fn tick(&self) {
        self.now_ms.set(milliseconds(self.started.elapsed()));
        self.heartbeat.store(self.now_ms.get(), Ordering::Relaxed);
        self.service.borrow_mut().set_time(unix_seconds());
        self.watches.borrow_mut().retain(|watch| {
            let Some(watch) = watch.upgrade() else {
                return false;
            };
            if self.is_due(&watch)
                && let Some(waker) = watch.waker.take()
            {
                waker.wake();
            }
            true
        });
    }

    /// Whether a waiting task has something other than its socket to look at.
    fn is_due(&self, watch: &Watch) -> bool {
        self.now_ms.get() >= watch.deadline_ms.get() || self.urgency.get() != Urgency::Serve
    }

    /// Goes on waiting for a socket, until its deadline or a stop that aborts.
    fn keep_waiting(&self, watch: &Watch, cx: &Context<'_>) -> Poll<Transfer> {
        if self.now_ms.get() >= watch.deadline_ms.get() || self.urgency.get() == Urgency::Abort {
            return Poll::Ready(Transfer::Over);
        }
        watch.waker.set(Some(cx.waker().clone()));
        Poll::Pending
    }

    /// Whether the stop ends a connection that waits for input: at once when it aborts, and while it
    /// drains when nothing is in flight and nothing has come for a while, in which glommio's ring has had
    /// time to say so.
    fn is_over(&self, connection: &Connection, received_ms: u64, watch: &Watch) -> bool {
        match self.urgency.get() {
            Urgency::Serve => false,
            Urgency::Drain => {
                let quiet_since_ms = received_ms.max(self.drain_ms.get());
                let tick = self.drain_ticks.get();
                let since = watch.waits_since_tick.get().unwrap_or(tick);
                watch.waits_since_tick.set(Some(since));
                connection.is_idle()
                    && tick >= since + DRAIN_TICKS_BEFORE_IDLE
                    && self.now_ms.get() >= quiet_since_ms.saturating_add(DRAIN_QUIET_MS)
            }
            Urgency::Abort => {
                self.cut.set(self.cut.get() + usize::from(!connection.is_idle()));
                true
            }
        }
    }

    /// When a response that comes to wait for the store now has waited too long. By the clock, since the last
    /// tick may be long ago.
    fn late_ms(&self, service: &Service) -> u64 {
        service.durability().map_or(u64::MAX, |durability| {
            milliseconds(self.started.elapsed()).saturating_add(durability.timeout_ms())
        })
    }

    /// The epoch of the last cut after which the totals were read.
    fn read(&self) -> u64 {
        self.service.borrow().durability().map_or(u64::MAX, Durability::read)
    }

    /// The epoch up to which everything is durable.
    fn settled(&self) -> u64 {
        self.service.borrow().durability().map_or(u64::MAX, Durability::settled)
    }

    /// Has a task woken when the store has settled an epoch.
    fn wake_when_settled(&self, epoch: u64, watch: &Rc<Watch>) {
        self.waiting.borrow_mut().push((epoch, Rc::downgrade(watch)));
        self.requested.set(self.requested.get().max(epoch));
        let service = self.service.borrow();
        service.metrics().waiting.add(1);
        if let Some(durability) = service.durability() {
            // The task looks at what is settled after this, and before it waits.
            durability.request(self.requested.get());
        }
    }

    /// Has a task woken when totals were read that have everything that was acknowledged so far. Returns the
    /// epoch that it waits for.
    fn wake_when_read(&self, watch: &Rc<Watch>) -> u64 {
        let service = self.service.borrow();
        let epoch = service.next_epoch();
        self.reading.borrow_mut().push((epoch, Rc::downgrade(watch)));
        service.metrics().waiting.add(1);
        if let Some(durability) = service.durability() {
            // The task looks at what was read after this, and before it waits.
            durability.request_read(epoch);
        }
        epoch
    }

    /// Wakes the tasks whose responses the store has settled, or for which totals were read.
    fn wake_settled(&self) {
        wake_up_to(&mut self.waiting.borrow_mut(), self.settled());
        wake_up_to(&mut self.reading.borrow_mut(), self.read());
    }

    fn watch(&self) -> Rc<Watch> {
        let watch = Rc::new(Watch {
            deadline_ms: Cell::new(u64::MAX),
            waits_since_tick: Cell::new(None),
            waker: Cell::new(None),
        });
        self.watches.borrow_mut().push(Rc::downgrade(&watch));
        watch
    }
}

/// Wakes the tasks that wait for an epoch up to this one, and forgets them.
fn wake_up_to(waiting: &mut Vec<(u64, Weak<Watch>)>, reached: u64) {
    waiting.retain(|(epoch, watch)| {
        let Some(watch) = watch.upgrade() else { return false };
        let is_reached = *epoch <= reached;
        if is_reached && let Some(waker) = watch.waker.take() {
            waker.wake();
        }
        !is_reached
    });
}

/// Serves on the calling executor until told to stop. `ready` is called once it listens.
///
/// # Errors
///
/// The listener or the wake-up cannot be polled.
pub async fn run(shard: Shard, ready: impl FnOnce()) -> io::Result<Drained> {
    let look = Wakeup::new()?;
    look.wake();
    let hub = Rc::new(Hub {
        service: RefCell::new(shard.service),
        input: RefCell::new(vec![0; INPUT_BYTES]),
        look: PollableFd::new(look)?,
        limits: shard.limits,
        started: Instant::now(),
        now_ms: Cell::new(0),
        heartbeat: shard.heartbeat,
        urgency: Cell::new(Urgency::Serve),
        drain_ms: Cell::new(0),
        drain_ticks: Cell::new(0),
        cut: Cell::new(0),
        watches: RefCell::new(Vec::new()),
        waiting: RefCell::new(Vec::new()),
        requested: Cell::new(0),
        reading: RefCell::new(Vec::new()),
    });
    let (admission, index) = (shard.admission, shard.index);
    let listener = Rc::new(PollableFd::new(shard.listener)?);
    let accepting = glommio::spawn_local({
        let (hub, admission, listener) = (Rc::clone(&hub), admission.clone(), Rc::clone(&listener));
        let stop = Arc::clone(&shard.stop);
        async move {
            while accept_all(&hub, &admission, index, &listener, &stop, usize::MAX).await {
                if listener.readable().await.is_err() {
                    sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    });
    let ticking = glommio::spawn_local({
        let hub = Rc::clone(&hub);
        async move {
            loop {
                hub.tick();
                sleep(TICK).await;
            }
        }
    });
    ready();
    let wakeup = PollableFd::new(shard.wakeup)?;
    while shard.stop.urgency() == Urgency::Serve {
        wakeup.readable().await?;
        wakeup.get_ref().clear();
        hub.wake_settled();
        admission.collect(index).into_iter().for_each(|accepted| serve(&hub, accepted));
    }

    accepting.cancel().await;
    ticking.cancel().await;
    // What is in the backlog was established before the signal.
    admission.close(index).into_iter().for_each(|accepted| serve(&hub, accepted));
    hub.tick();
    hub.urgency.set(Urgency::Drain);
    hub.drain_ms.set(hub.now_ms.get());
    // As many as a backlog holds: a flood of connections does not hold up the stop.
    accept_all(&hub, &admission, index, &listener, &shard.stop, usize::from(BACKLOG)).await;
    if !shard.is_listener_shared {
        // Ends listening now: a poll that the ring still holds would keep the port for a moment.
        let _ = listener.get_ref().shutdown(Shutdown::Read);
    }
    drop(listener);

    let end = Instant::now() + shard.drain_timeout;
    loop {
        let late = Instant::now() >= end || shard.stop.urgency() == Urgency::Abort;
        hub.urgency.set(if late { Urgency::Abort } else { Urgency::Drain });
        hub.drain_ticks.set(hub.drain_ticks.get() + 1);
        hub.tick();
        hub.wake_settled();
        if hub.watches.borrow().iter().all(|watch| watch.strong_count() == 0) {
            return Ok(Drained { cut: hub.cut.get() });
        }
        sleep(DRAIN_TICK).await;
    }
}

/// Accepts until the backlog is empty, at most `accepts_max` connections. Returns whether the listener still listens.
async fn accept_all(
    hub: &Rc<Hub>,
    admission: &Arc<Admission>,
    shard: usize,
    listener: &PollableFd<Socket>,
    stop: &Stop,
    accepts_max: usize,
) -> bool {
    let (mut backoff, mut has_failed) = (ACCEPT_BACKOFF, false);
    for turn in 1..=accepts_max {
        match listener.get_ref().accept() {
            Ok((socket, _)) => {
                (backoff, has_failed) = (ACCEPT_BACKOFF, false);
                let accepted = admission.admit(shard, socket, hub.service.borrow().metrics());
                if let Some(accepted) = accepted {
                    serve(hub, accepted);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            // The peer left meanwhile, or a signal came: the next connection may be there.
            Err(error) if is_about_one_connection(&error) && !has_failed => has_failed = true,
            // Out of descriptors or memory: the queue keeps who waits until some are free.
            Err(error) => {
                if hub.urgency.get() != Urgency::Serve {
                    return true;
                }
                if !admission.note_accept_error(shard, listener.get_ref(), &error, stop) {
                    return false;
                }
                sleep(backoff).await;
                backoff = (backoff * 2).min(ACCEPT_BACKOFF_MAX);
            }
        }
        if turn % ACCEPTS_PER_TURN == 0 {
            glommio::executor().yield_now().await;
        }
    }
    true
}

/// Starts the task of a connection.
fn serve(hub: &Rc<Hub>, accepted: AcceptedConnection) {
    let is_turned_away = accepted.is_turned_away;
    let connection = Connection::new(hub.limits, accepted.peer_is_loopback(), hub.now_ms.get());
    let task = Task {
        watch: hub.watch(),
        hub: Rc::clone(hub),
        stream: TcpStream::from(accepted.socket),
        connection,
        out: Vec::new(),
        held: Held::default(),
        is_void: false,
        received_ms: hub.now_ms.get(),
        _permit: accepted.permit,
    };
    task.hub.service.borrow().metrics().connections.add(1);
    glommio::spawn_local(task.run(is_turned_away)).detach();
}

/// One connection.
struct Task {
    hub: Rc<Hub>,
    watch: Rc<Watch>,
    stream: TcpStream,
    connection: Connection,
    /// Responses that are not sent yet.
    out: Vec<u8>,
    /// Which of them wait for the store.
    held: Held,
    /// What followed those that are not sent yet was void: they are the last.
    is_void: bool,
    /// When something was last received; at first, when it was accepted.
    received_ms: u64,
    _permit: Permit,
}

/// Why a task stops waiting for its socket.
enum Turn {
    /// Input was handled.
    Handled(Outcome),
    /// The peer will send nothing more, or the connection has failed.
    Ended,
    /// The deadline has passed.
    Expired,
    /// The server stops and this connection has nothing in flight.
    Stopped,
}

impl Task {
    async fn run(mut self, is_turned_away: bool) {
        if is_turned_away {
            self.connection.turn_away(&mut *self.hub.service.borrow_mut(), &mut self.out);
        }
        if is_turned_away || self.serve().await {
            self.close_gently().await;
        }
        // Before the descriptor closes: a poll in flight would hold back the FIN.
        let _ = self.stream.shutdown(Shutdown::Both).await;
        self.hub.service.borrow().metrics().connections.subtract(1);
    }

    /// Serves requests. Returns whether the end is for the peer to hear.
    async fn serve(&mut self) -> bool {
        loop {
            let mut waited = false;
            let mut outcome = match self.receive(&mut waited).await {
                Turn::Handled(outcome) => outcome,
                Turn::Ended | Turn::Stopped => return false,
                Turn::Expired => {
                    let mut service = self.hub.service.borrow_mut();
                    service.metrics().note_timeout(Some(self.connection.waited()));
                    self.connection.expire(&mut *service, &mut self.out);
                    return !self.out.is_empty();
                }
            };
            while matches!(outcome, Outcome::Resume | Outcome::Work | Outcome::Wait) {
                let reading = match outcome {
                    Outcome::Wait => self.wait_for_read().await,
                    Outcome::Resume => self.flush().await.then_some(Reading::None),
                    // A batch that is worked on may keep others from claiming users: it waits for no peer.
                    _ => Some(Reading::None),
                };
                let Some(reading) = reading else { return self.is_void };
                self.hub.look_around().await;
                if self.hub.urgency.get() == Urgency::Abort {
                    return false;
                }
                let mut service = self.hub.service.borrow_mut();
                let now_ms = self.hub.now_ms.get();
                let Task { connection, held, out, .. } = self;
                connection.renew();
                outcome = service.resume(connection, reading, now_ms, held, out);
                service.commit();
                held.publish(service.settles_at(), self.hub.late_ms(&service));
            }
            if outcome == Outcome::Close {
                return true;
            }
            if !self.flush().await {
                return self.is_void;
            }
            if outcome == Outcome::CloseAtOnce {
                // Most often, nothing is left to discard.
                return self.has_unread().await;
            }
            // A peer that always has more to say does not keep the others waiting.
            if !waited {
                self.hub.look_around().await;
            }
        }
    }

    /// Waits for input and handles it in place.
    async fn receive(&mut self, waited: &mut bool) -> Turn {
        let Task { hub, watch, stream, connection, out, held, received_ms, .. } = self;
        watch.deadline_ms.set(connection.deadline_ms());
        watch.waits_since_tick.set(None);
        poll_fn(|cx| {
            let mut input = hub.input.borrow_mut();
            match Pin::new(&mut *stream).poll_read(cx, &mut input) {
                Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Turn::Ended),
                Poll::Ready(Ok(received)) => {
                    if hub.urgency.get() != Urgency::Serve {
                        connection.drain();
                    }
                    *received_ms = hub.now_ms.get();
                    let received_at = Instant::now();
                    let mut service = hub.service.borrow_mut();
                    let now_ms = hub.now_ms.get();
                    // Others had their turn since the last receive.
                    connection.renew();
                    let outcome =
                        service.receive(connection, &input[..received], now_ms, held, out);
                    // Nothing is acknowledged before it can be read.
                    service.commit();
                    held.publish(service.settles_at(), hub.late_ms(&service));
                    service.metrics().received_bytes.add(received as u64);
                    service.note_turn(received_at.elapsed());
                    Poll::Ready(Turn::Handled(outcome))
                }
                Poll::Pending => {
                    if hub.is_over(connection, *received_ms, watch) {
                        return Poll::Ready(Turn::Stopped);
                    }
                    if hub.now_ms.get() >= watch.deadline_ms.get() {
                        return Poll::Ready(Turn::Expired);
                    }
                    *waited = true;
                    watch.waker.set(Some(cx.waker().clone()));
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Whether more has arrived than was read. What it reads is discarded.
    async fn has_unread(&mut self) -> bool {
        let Task { hub, stream, .. } = self;
        poll_fn(|cx| {
            let mut input = hub.input.borrow_mut();
            let read = Pin::new(&mut *stream).poll_read(cx, &mut input);
            Poll::Ready(matches!(read, Poll::Ready(Ok(1..))))
        })
        .await
    }

    /// Waits until the totals are read that a request asks for, and sends meanwhile what may leave before it;
    /// `None` where the connection cannot go on.
    async fn wait_for_read(&mut self) -> Option<Reading> {
        let deadline_ms = self.hub.late_ms(&self.hub.service.borrow());
        let epoch = self.hub.wake_when_read(&self.watch);
        let reading = match self.flush().await {
            true => self.wait_until_read(epoch, deadline_ms).await,
            false => None,
        };
        self.hub.service.borrow().metrics().waiting.subtract(1);
        reading
    }

    async fn wait_until_read(&self, epoch: u64, deadline_ms: u64) -> Option<Reading> {
        let Task { hub, watch, .. } = self;
        watch.deadline_ms.set(deadline_ms);
        let transfer = poll_fn(|cx| match hub.read() >= epoch {
            true => Poll::Ready(Transfer::Done(Ok(0))),
            false => hub.keep_waiting(watch, cx),
        })
        .await;
        match transfer {
            Transfer::Done(_) => Some(Reading::ForAll),
            Transfer::Over if hub.urgency.get() == Urgency::Abort => {
                hub.cut.set(hub.cut.get() + 1);
                None
            }
            Transfer::Over => {
                if let Some(durability) = hub.service.borrow().durability() {
                    durability.note_late(epoch);
                }
                Some(Reading::Late)
            }
        }
    }

    /// Sends what is unsent, as the store settles it. Returns whether the connection can go on.
    async fn flush(&mut self) -> bool {
        while !self.out.is_empty() {
            let Some(sendable) = self.wait_until_settled().await else { return false };
            if !self.send(sendable).await {
                return false;
            }
            self.out.drain(..sendable);
            self.held.note_taken(sendable);
        }
        !self.is_void
    }

    /// How many bytes of what is unsent may leave. Where those behind them never may, they are the last.
    fn release(&mut self) -> usize {
        let service = self.hub.service.borrow();
        let Some(durability) = service.durability() else { return self.out.len() };
        match durability.release(&mut self.held, self.out.len()) {
            Release::Bytes(bytes) => bytes,
            Release::Void(bytes) => {
                self.out.truncate(bytes);
                self.held.clear();
                self.is_void = true;
                service.metrics().voided.add(1);
                bytes
            }
        }
    }

    /// Waits until some of what is unsent may leave, and returns how many bytes; `None` where the store takes
    /// too long, or the stop aborts.
    async fn wait_until_settled(&mut self) -> Option<usize> {
        let sendable = self.release();
        let Task { hub, watch, held, .. } = self;
        let (Some(epoch), Some(deadline_ms), 0) = (held.epoch(), held.deadline_ms(), sendable)
        else {
            return Some(sendable);
        };
        watch.deadline_ms.set(deadline_ms);
        hub.wake_when_settled(epoch, watch);
        let transfer = poll_fn(|cx| match hub.settled() >= epoch {
            true => Poll::Ready(Transfer::Done(Ok(0))),
            false => hub.keep_waiting(watch, cx),
        })
        .await;
        let service = hub.service.borrow();
        service.metrics().waiting.subtract(1);
        match transfer {
            Transfer::Done(_) => {
                drop(service);
                Some(self.release())
            }
            Transfer::Over => {
                if let Some(durability) = service.durability()
                    && hub.now_ms.get() >= deadline_ms
                {
                    // Without a response: whether the store has it is unknown.
                    durability.note_late(epoch);
                }
                hub.cut.set(hub.cut.get() + usize::from(hub.urgency.get() != Urgency::Serve));
                None
            }
        }
    }

    /// Sends the first bytes of what is unsent. Returns whether the connection can go on.
    async fn send(&mut self, bytes: usize) -> bool {
        let Task { hub, watch, stream, connection, out, .. } = self;
        let mut sent = 0;
        watch.deadline_ms.set(hub.now_ms.get().saturating_add(connection.send_timeout_ms()));
        while sent < bytes {
            let unsent = &out[sent..bytes];
            let written = poll_fn(|cx| match Pin::new(&mut *stream).poll_write(cx, unsent) {
                Poll::Pending => hub.keep_waiting(watch, cx),
                Poll::Ready(result) => Poll::Ready(Transfer::Done(result)),
            })
            .await;
            match written {
                Transfer::Over if hub.now_ms.get() >= watch.deadline_ms.get() => {
                    hub.service.borrow().metrics().note_timeout(None);
                    return false;
                }
                Transfer::Over => {
                    // Only a stop that aborts ends the wait before its deadline.
                    hub.cut.set(hub.cut.get() + 1);
                    return false;
                }
                Transfer::Done(Ok(0) | Err(_)) => return false,
                Transfer::Done(Ok(written)) => {
                    hub.service.borrow().metrics().sent_bytes.add(written as u64);
                    sent += written;
                }
            }
        }
        true
    }

    /// Sends the last responses, ends our side, and discards what the peer still sends, for a
    /// bounded while: closing with unread input would reset the connection under the response.
    async fn close_gently(&mut self) {
        let can_go_on = self.flush().await || self.is_void;
        if !can_go_on || self.stream.shutdown(Shutdown::Write).await.is_err() {
            return;
        }
        let Task { hub, watch, stream, .. } = self;
        watch.deadline_ms.set(hub.now_ms.get().saturating_add(LINGER_MS));
        let mut discarded = 0;
        while discarded < LINGER_BYTES_MAX {
            let received = poll_fn(|cx| {
                let mut input = hub.input.borrow_mut();
                match Pin::new(&mut *stream).poll_read(cx, &mut input) {
                    Poll::Pending => hub.keep_waiting(watch, cx),
                    Poll::Ready(result) => Poll::Ready(Transfer::Done(result)),
                }
            })
            .await;
            match received {
                Transfer::Over | Transfer::Done(Ok(0) | Err(_)) => return,
                Transfer::Done(Ok(received)) => discarded += received,
            }
        }
    }
}
