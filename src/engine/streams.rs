//! The data plane on glommio's own TCP streams: one task per connection, which executes its actions.
//!
//! glommio's rings do not use flags that keep a registered eventfd from being signaled (DEFER_TASKRUN), and glommio
//! does not register an eventfd: it waits for its own wake-ups and this shard's by polling their descriptors in the
//! ring that it sleeps in.

use super::admission::is_about_one_connection;
use super::{
    AcceptedConnection, Admission, BACKLOG, Drained, Permit, Shard, Stop, TICK, Waits,
    milliseconds, unix_seconds,
};
use crate::connection::{Action, Connection, Due, KEPT_BYTES_MAX, Moment, Next, Urgency};
use crate::http::{Budget, Limits};
use crate::service::Service;
use crate::store::Durability;
use crate::uring::Wakeup;
use futures_lite::future::{or, poll_fn};
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

/// The maximum number of bytes per read. All connections of a shard share the buffer.
pub(super) const INPUT_BYTES: usize = 16 * 1024;

/// The number of connections accepted in a row before other tasks get their turn.
const ACCEPTS_BEFORE_YIELD: usize = 64;

/// The pause in accepting when the kernel is out of descriptors or memory: the first pause, and the maximum after doubling.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(5);
const ACCEPT_BACKOFF_MAX: Duration = Duration::from_millis(500);

/// The maximum number of reads in a row for one connection while the server drains: enough for half the bytes that it may keep.
const RESTS_MAX: usize = KEPT_BYTES_MAX / INPUT_BYTES / 2;

/// The interval between a draining shard's checks of whether its connections have ended.
const DRAIN_TICK: Duration = Duration::from_millis(5);
/// The number of these ticks during which a receive must have waited before its connection counts as idle.
const DRAIN_TICKS_BEFORE_IDLE: u64 = 3;

/// The state that the tasks of one shard share.
struct Hub {
    service: RefCell<Service>,
    input: RefCell<Vec<u8>>,
    /// A descriptor that is always readable, which glommio learns only by checking its ring: see [`Hub::look_around`].
    look: PollableFd<Wakeup>,
    /// The cost that all tasks together may still incur before the ring is checked.
    budget: Cell<Budget>,
    limits: Limits,
    started: Instant,
    /// The moment of the last tick.
    moment: Cell<Moment>,
    heartbeat: Arc<AtomicU64>,
    /// The number of ticks of the drain. Between two of them, glommio has submitted its ring and collected completions.
    drain_ticks: Cell<u64>,
    /// The number of connections that the stop has closed with something in flight.
    cut: Cell<usize>,
    watches: RefCell<Vec<Weak<Watch>>>,
    /// Tasks with responses that wait for the store.
    waits: RefCell<Waits<Weak<Watch>>>,
}

/// The events, in addition to socket events, that can end a task's wait.
struct Watch {
    deadline_ms: Cell<u64>,
    waker: Cell<Option<Waker>>,
}

impl Hub {
    /// Lets other tasks have their turn: all tasks that can run and, once these have spent a budget together, also the tasks
    /// that the ring has completions for. Yielding would not suffice for the latter, because glommio checks its ring only when
    /// no task can run, or every 100 ms.
    async fn look_around(&self) {
        if !self.budget.get().is_spent() {
            return glommio::executor().yield_now().await;
        }
        self.budget.set(Budget::FULL);
        if self.look.readable().await.is_err() {
            glommio::executor().yield_now().await;
        }
    }

    /// Charges work that was done for a connection.
    fn charge(&self, units: u32) {
        let mut budget = self.budget.get();
        budget.charge(units);
        self.budget.set(budget);
    }

    /// Updates the moment.
    fn change_moment(&self, change: impl FnOnce(&mut Moment)) {
        let mut moment = self.moment.get();
        change(&mut moment);
        self.moment.set(moment);
    }

    /// Returns the moment for input that was received now. With a store, reads the clock, because store timeouts count from
    /// this moment and the last tick may be long ago.
    fn now(&self, service: &Service) -> Moment {
        let mut moment = self.moment.get();
        moment.received_ms = match service.durability() {
            Some(_) => milliseconds(self.started.elapsed()),
            None => moment.now_ms,
        };
        moment
    }

    /// Reads the clocks and wakes the tasks that have a deadline or a stop to check.
    fn tick(&self) {
        let now_ms = milliseconds(self.started.elapsed());
        self.change_moment(|moment| moment.now_ms = now_ms);
        self.heartbeat.store(now_ms, Ordering::Relaxed);
        self.service.borrow_mut().set_time(unix_seconds());
        if let Some(durability) = self.service.borrow().durability() {
            self.waits.borrow().note_late(durability, now_ms);
        }
        let is_stopping = self.moment.get().urgency != Urgency::Serve;
        self.watches.borrow_mut().retain(|watch| {
            let Some(watch) = watch.upgrade() else {
                return false;
            };
            if (is_stopping || now_ms >= watch.deadline_ms.get())
                && let Some(waker) = watch.waker.take()
            {
                waker.wake();
            }
            true
        });
    }

    /// Returns the last durable epoch, and the epoch of the last cut whose totals were read.
    fn reached(&self) -> (u64, u64) {
        let service = self.service.borrow();
        let reached = |durability: &Durability| (durability.settled(), durability.read());
        service.durability().map_or((u64::MAX, u64::MAX), reached)
    }

    /// Requests what a task's responses wait for from the store, and arranges to wake the task when the store has it.
    fn wake_after(&self, action: &Action, received_ms: u64, watch: &Rc<Watch>) {
        let service = self.service.borrow();
        let Some(durability) = service.durability() else { return };
        let mut waits = self.waits.borrow_mut();
        waits.join(&Rc::downgrade(watch), action, received_ms);
        // If it has already arrived, the task sees that before it waits.
        waits.ask(durability);
        service.metrics().waiting.set(waits.len() as u64);
    }

    /// Wakes the tasks whose responses the store has settled, or whose totals were read.
    fn wake_settled(&self) {
        let service = self.service.borrow();
        let Some(durability) = service.durability() else { return };
        let mut waits = self.waits.borrow_mut();
        waits.release(durability, |watch| {
            if let Some(waker) = watch.upgrade().and_then(|watch| watch.waker.take()) {
                waker.wake();
            }
        });
        service.metrics().waiting.set(waits.len() as u64);
    }

    fn watch(&self) -> Rc<Watch> {
        let watch = Rc::new(Watch { deadline_ms: Cell::new(u64::MAX), waker: Cell::new(None) });
        self.watches.borrow_mut().push(Rc::downgrade(&watch));
        watch
    }
}

/// Serves on the calling executor until the shard is stopped. Calls `ready` once it listens.
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
        budget: Cell::new(Budget::FULL),
        limits: shard.limits,
        started: Instant::now(),
        moment: Cell::new(Moment::START),
        heartbeat: shard.heartbeat,
        drain_ticks: Cell::new(0),
        cut: Cell::new(0),
        watches: RefCell::new(Vec::new()),
        waits: RefCell::default(),
    });
    let door = Rc::new(Door {
        hub: Rc::clone(&hub),
        admission: shard.admission,
        shard: shard.index,
        listener: PollableFd::new(shard.listener)?,
        stop: Arc::clone(&shard.stop),
    });
    let accepting = glommio::spawn_local({
        let door = Rc::clone(&door);
        async move {
            while accept_all(&door, usize::MAX).await {
                if door.listener.readable().await.is_err() {
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
        door.admission.collect(door.shard).into_iter().for_each(|accepted| serve(&hub, accepted));
    }

    accepting.cancel().await;
    ticking.cancel().await;
    let end = Instant::now() + shard.drain_timeout;
    stop_accepting(&hub, &door, end).await;
    if !shard.is_listener_shared {
        // Stop listening now: a poll that the ring still holds would keep the port open for a moment.
        let _ = door.listener.get_ref().shutdown(Shutdown::Read);
    }
    drop(door);
    drain(&hub, &shard.stop, end).await
}

/// Serves the clients that connected before the server stopped, but no more than a backlog holds and not beyond `end`, so that
/// a flood of connections does not delay the stop.
async fn stop_accepting(hub: &Rc<Hub>, door: &Door, end: Instant) {
    door.admission.close(door.shard).into_iter().for_each(|accepted| serve(hub, accepted));
    hub.tick();
    hub.change_moment(|moment| {
        (moment.urgency, moment.drain_ms) = (Urgency::Drain, moment.now_ms);
    });
    let timeout = async {
        sleep(end.saturating_duration_since(Instant::now())).await;
        false
    };
    or(accept_all(door, usize::from(BACKLOG)), timeout).await;
}

/// Waits until all connections have ended, and closes those that are left at the end.
async fn drain(hub: &Rc<Hub>, stop: &Stop, end: Instant) -> io::Result<Drained> {
    loop {
        let is_late = Instant::now() >= end || stop.urgency() == Urgency::Abort;
        let urgency = if is_late { Urgency::Abort } else { Urgency::Drain };
        hub.change_moment(|moment| moment.urgency = urgency);
        hub.drain_ticks.set(hub.drain_ticks.get() + 1);
        hub.tick();
        hub.wake_settled();
        if hub.watches.borrow().iter().all(|watch| watch.strong_count() == 0) {
            return Ok(Drained { cut: hub.cut.get() });
        }
        sleep(DRAIN_TICK).await;
    }
}

/// A listener, and everything that its connections need.
struct Door {
    hub: Rc<Hub>,
    admission: Arc<Admission>,
    shard: usize,
    listener: PollableFd<Socket>,
    stop: Arc<Stop>,
}

/// Accepts until the backlog is empty, at most `accepts_max` connections. Returns whether the listener still listens.
async fn accept_all(door: &Door, accepts_max: usize) -> bool {
    let Door { hub, admission, shard, listener, stop } = door;
    let (mut backoff, mut has_failed) = (ACCEPT_BACKOFF, false);
    for accepted in 1..=accepts_max {
        match listener.get_ref().accept() {
            Ok((socket, _)) => {
                (backoff, has_failed) = (ACCEPT_BACKOFF, false);
                let admitted = admission.admit(*shard, socket, hub.service.borrow().metrics());
                if let Some(admitted) = admitted {
                    serve(hub, admitted);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            // The peer has left in the meantime, or a signal arrived: another connection may be waiting.
            Err(error) if is_about_one_connection(&error) && !has_failed => has_failed = true,
            // Out of descriptors or memory: waiting connections stay in the queue until some are free.
            Err(error) => {
                if hub.moment.get().urgency != Urgency::Serve {
                    return true;
                }
                if !admission.note_accept_error(*shard, listener.get_ref(), &error, stop) {
                    return false;
                }
                sleep(backoff).await;
                backoff = (backoff * 2).min(ACCEPT_BACKOFF_MAX);
            }
        }
        if accepted % ACCEPTS_BEFORE_YIELD == 0 {
            glommio::executor().yield_now().await;
        }
    }
    true
}

/// Starts the task of a connection.
fn serve(hub: &Rc<Hub>, accepted: AcceptedConnection) {
    let now_ms = hub.moment.get().now_ms;
    let mut connection = Connection::new(hub.limits, accepted.peer_is_loopback(), now_ms);
    if accepted.is_rejected {
        connection.reject(&mut hub.service.borrow_mut());
    }
    let task = Task {
        watch: hub.watch(),
        hub: Rc::clone(hub),
        stream: TcpStream::from(accepted.socket),
        connection,
        sending: Vec::new(),
        sent: 0,
        settle: None,
        read: None,
        reached: (0, 0),
        waits_since_tick: None,
        _permit: accepted.permit,
    };
    hub.service.borrow().metrics().connections.add(1);
    glommio::spawn_local(task.run()).detach();
}

/// One connection.
struct Task {
    hub: Rc<Hub>,
    watch: Rc<Watch>,
    stream: TcpStream,
    connection: Connection,
    /// The responses that are being sent, and how many of their bytes were sent.
    sending: Vec<u8>,
    sent: usize,
    /// The last epochs that responses wait for.
    settle: Option<u64>,
    read: Option<u64>,
    /// The epochs that were reached at the connection's last action.
    reached: (u64, u64),
    /// The tick of the drain when the current receive was first seen waiting.
    waits_since_tick: Option<u64>,
    _permit: Permit,
}

/// The event that ends a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// Something was received, sent, settled, or read.
    Advanced,
    /// The connection has work, so it did not wait.
    Works,
    /// The connection must be closed.
    Closed,
}

impl Task {
    async fn run(mut self) {
        while self.take_rest().await {
            let (then, has_work) = self.act();
            match then {
                Next::Close if self.connection.is_finishing() && self.has_unread().await => {
                    // If it were closed now, a reset could overtake its response.
                    self.shut_down_write().await;
                    continue;
                }
                Next::Close => break,
                Next::ShutDownWrite => {
                    self.shut_down_write().await;
                    continue;
                }
                Next::Receive | Next::Pause => {}
            }
            let mut waited = false;
            match self.wait(then, has_work, &mut waited).await {
                Ended::Closed => break,
                Ended::Works => {
                    self.hub.look_around().await;
                    if !self.take_rest().await {
                        break;
                    }
                    let mut service = self.hub.service.borrow_mut();
                    let moment = self.hub.now(&service);
                    self.connection.work(&moment, &mut service);
                    service.publish();
                }
                // A peer that never stops sending must not keep the others waiting.
                Ended::Advanced if !waited => self.hub.look_around().await,
                Ended::Advanced => {}
            }
        }
        // This comes before the descriptor closes, because a poll in flight would hold back the FIN.
        let _ = self.stream.shutdown(Shutdown::Both).await;
        self.hub.service.borrow().metrics().connections.subtract(1);
    }

    /// Begins the connection's action. Returns the next operation on its socket, and whether it has work.
    fn act(&mut self) -> (Next, bool) {
        let Task { hub, watch, connection, .. } = self;
        self.reached = hub.reached();
        let mut service = hub.service.borrow_mut();
        let moment = hub.now(&service);
        let action = connection.action(&moment, &mut service);
        hub.charge(connection.renew());
        if action.send > 0 && !connection.is_sending() {
            self.sending = connection.take_responses(action.send, moment.now_ms);
            self.sent = 0;
        }
        drop(service);
        if action.settle.is_some() || action.read.is_some() {
            (self.settle, self.read) = (action.settle.or(self.settle), action.read.or(self.read));
            hub.wake_after(&action, moment.received_ms, watch);
        }
        (action.then, action.has_work)
    }

    /// Shuts down the write half.
    async fn shut_down_write(&mut self) {
        self.connection.linger(self.hub.moment.get().now_ms);
        if self.stream.shutdown(Shutdown::Write).await.is_err() {
            // The peer is gone.
            self.connection.note_peer_closed();
        }
    }

    /// Sends and receives until there is a result, the store has news, or a deadline ends the connection. Does not
    /// wait if there is work.
    async fn wait(&mut self, then: Next, has_work: bool, waited: &mut bool) -> Ended {
        self.watch.deadline_ms.set(self.connection.deadline_ms());
        self.waits_since_tick = None;
        poll_fn(|cx| {
            // This holds even if there is always something to receive.
            if let Some(ended) = self.check_stop() {
                return Poll::Ready(ended);
            }
            let ended = match self.transfer(then, cx) {
                Some(ended) => ended,
                None if self.is_released() => Ended::Advanced,
                None if has_work => Ended::Works,
                None => match self.tick() {
                    Some(ended) => ended,
                    None => {
                        *waited = true;
                        self.watch.waker.set(Some(cx.waker().clone()));
                        return Poll::Pending;
                    }
                },
            };
            Poll::Ready(ended)
        })
        .await
    }

    /// Sends what the socket takes and receives what has arrived. Returns the result.
    fn transfer(&mut self, then: Next, cx: &mut Context<'_>) -> Option<Ended> {
        let Task { hub, stream, connection, sending, sent, .. } = self;
        while *sent < sending.len() {
            match Pin::new(&mut *stream).poll_write(cx, &sending[*sent..]) {
                Poll::Pending => break,
                Poll::Ready(Ok(0) | Err(_)) => return Some(Ended::Closed),
                Poll::Ready(Ok(written)) => {
                    *sent += written;
                    hub.service.borrow().metrics().sent_bytes.add(written as u64);
                    if *sent == sending.len() {
                        connection.note_sent(*sent);
                        (*sending, *sent) = (Vec::new(), 0);
                        return Some(Ended::Advanced);
                    }
                }
            }
        }
        if then != Next::Receive {
            return None;
        }
        let mut input = hub.input.borrow_mut();
        match Pin::new(&mut *stream).poll_read(cx, &mut input) {
            Poll::Pending => None,
            Poll::Ready(Err(_)) => Some(Ended::Closed),
            Poll::Ready(Ok(0)) => {
                connection.note_peer_closed();
                Some(Ended::Advanced)
            }
            Poll::Ready(Ok(received)) => {
                let received_at = Instant::now();
                let mut service = hub.service.borrow_mut();
                let moment = hub.now(&service);
                connection.receive(&input[..received], &moment, &mut service);
                // No event is acknowledged before it can be read.
                service.publish();
                service.metrics().received_bytes.add(received as u64);
                service.note_iteration(received_at.elapsed());
                Some(Ended::Advanced)
            }
        }
    }

    /// Returns whether, since the last action, the store has settled or read something that responses may wait for.
    fn is_released(&mut self) -> bool {
        if self.settle.is_none() && self.read.is_none() {
            return false;
        }
        let (settled, read) = self.hub.reached();
        let is_released = self.settle.is_some() && settled > self.reached.0
            || self.read.is_some() && read > self.reached.1;
        self.settle = self.settle.filter(|epoch| *epoch > settled);
        self.read = self.read.filter(|epoch| *epoch > read);
        is_released
    }

    /// Checks the deadline and the stop. Returns the result.
    fn tick(&mut self) -> Option<Ended> {
        let Task { hub, connection, .. } = self;
        let moment = hub.moment.get();
        if moment.urgency == Urgency::Serve && moment.now_ms < connection.deadline_ms() {
            return None;
        }
        let due = connection.tick(&moment, &mut hub.service.borrow_mut());
        match due {
            Due::Nothing => None,
            Due::Act => Some(Ended::Advanced),
            // It is closed only once glommio's ring has had time to report bytes that arrived unseen.
            Due::CloseIdle if moment.urgency == Urgency::Drain && !connection.is_lingering() => {
                let tick = hub.drain_ticks.get();
                let since = *self.waits_since_tick.get_or_insert(tick);
                (tick >= since + DRAIN_TICKS_BEFORE_IDLE).then_some(Ended::Closed)
            }
            Due::CloseIdle => Some(Ended::Closed),
            Due::Cut => {
                hub.cut.set(hub.cut.get() + usize::from(moment.urgency != Urgency::Serve));
                Some(Ended::Closed)
            }
        }
    }

    /// Ends the connection if the stop aborts.
    fn check_stop(&mut self) -> Option<Ended> {
        match self.hub.moment.get().urgency {
            Urgency::Abort => self.tick(),
            Urgency::Serve | Urgency::Drain => None,
        }
    }

    /// Receives everything that has arrived before the last response is made, if the server drains. Reports whether the
    /// connection is still open.
    async fn take_rest(&mut self) -> bool {
        let Task { hub, connection, .. } = self;
        let wants_more = connection.has_work() || connection.next() == Next::Receive;
        if hub.moment.get().urgency != Urgency::Drain || connection.is_lingering() || !wants_more {
            return true;
        }
        let mut is_new = true;
        for _ in 0..RESTS_MAX {
            // It is the last read once glommio's ring has had time to report what has arrived.
            let is_last = !is_new && self.hub.look.readable().await.is_ok();
            let received = poll_fn(|cx| Poll::Ready(self.transfer(Next::Receive, cx))).await;
            if received == Some(Ended::Closed) {
                return false;
            }
            if received.is_none() && is_last || self.connection.has_peer_finished() {
                self.connection.note_unread(false);
                return true;
            }
            is_new = received.is_some();
        }
        self.connection.note_unread(true);
        true
    }

    /// Returns whether bytes have arrived that were not read, and discards them.
    async fn has_unread(&mut self) -> bool {
        let Task { hub, stream, .. } = self;
        poll_fn(|cx| {
            let mut input = hub.input.borrow_mut();
            let read = Pin::new(&mut *stream).poll_read(cx, &mut input);
            Poll::Ready(matches!(read, Poll::Ready(Ok(1..))))
        })
        .await
    }
}
