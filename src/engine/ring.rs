//! The data plane on our own io_uring, inside the shard's glommio executor: it passes completions to the shard's [`Driver`],
//! and the driver's operations to the kernel.
//!
//! One ring carries accepts, receives, and sends. An iteration submits the operations that the last iteration queued and
//! collects completions, in one `io_uring_enter`; handles all completions; publishes; and queues the responses. The shard
//! always waits in that ring, asleep or not. Wake-ups from outside, for a stop or for a connection that another shard hands
//! off, arrive through its [`Wakeup`](crate::uring::Wakeup), which the ring watches. glommio gets its turn between waits;
//! nothing here waits for it.

use super::driver::{Accepted, Client, Driver, Ended, Newcomer, Open, Sockets};
use super::pacing::{IDLE_AFTER, Pacing};
use super::{AcceptedConnection, Admission, Drained, Permit, Shard, Stop, driver, unix_seconds};
use crate::connection::Urgency;
use crate::metrics::{ShardMetrics, nanoseconds};
use crate::uring::{
    BUFFER_BYTES, Event, Filled, Issuer, Key, NoBuffers, OpenSlot, Sizes, Uring, Wait, receive_now,
    send_now,
};
use socket2::Socket;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SIZES: Sizes = Sizes { submissions: 1024, completions: 8192, buffers: 2048 };

/// The maximum duration of a wait during a drain, so that the deadline is checked.
const DRAIN_WAIT: Duration = Duration::from_millis(2);

/// A connection on the ring.
struct Peer {
    client: Client,
    _permit: Permit,
}

/// The sockets of a shard: the driver's operations, on a ring.
struct RingSockets {
    ring: Uring<Peer>,
    shard: usize,
    admission: Arc<Admission>,
}

/// One shard: its connections, their sockets, and how it waits.
struct Reactor {
    driver: Driver<RingSockets>,
    sockets: RingSockets,
    stop: Arc<Stop>,
    heartbeat: Arc<AtomicU64>,
    pacing: Pacing,
    /// Whether an accept has succeeded since the last failure.
    has_accepted: bool,
    /// The number of `io_uring_enter` calls that the metrics already include.
    enters: u64,
}

/// Serves on the calling executor until the shard is stopped. Calls `ready` once it listens.
///
/// # Errors
///
/// The ring cannot be created, or has failed.
pub async fn run(shard: Shard, ready: impl FnOnce()) -> io::Result<Drained> {
    run_with(&SIZES, shard, ready).await
}

/// Serves with a ring of the given sizes.
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
        driver: Driver::new(shard.service, shard.limits),
        sockets: RingSockets { ring, shard: shard.index, admission: shard.admission },
        stop: shard.stop,
        heartbeat: shard.heartbeat,
        pacing: Pacing::new(shard.spin, shard.coalesce, Instant::now()),
        has_accepted: false,
        enters: 0,
    };
    // The kernel accepts from here on.
    reactor.iterate(Wait::No)?;
    ready();
    while reactor.stop.urgency() == Urgency::Serve {
        reactor.serve()?;
        glommio::executor().yield_now().await;
    }
    let end = Instant::now() + shard.drain_timeout;
    reactor.stop_accepting();
    loop {
        let is_late = Instant::now() >= end || reactor.stop.urgency() == Urgency::Abort;
        if is_late {
            reactor.driver.abort();
        }
        reactor.tick();
        let ring = &reactor.sockets.ring;
        if is_late || ring.is_empty() && !ring.is_accepting() {
            // Dropping the ring ends the operations that are still under way.
            return Ok(Drained { cut: reactor.driver.cut() });
        }
        reactor.iterate(Wait::For(DRAIN_WAIT))?;
        glommio::executor().yield_now().await;
    }
}

impl Reactor {
    /// Works while there is something to do; then polls, waits, and sleeps until there is again. Returns when other
    /// tasks must have a turn.
    fn serve(&mut self) -> io::Result<()> {
        if self.pacing.is_asleep() {
            self.sleep()?;
        } else {
            self.work()?;
        }
        self.read_clocks();
        if self.pacing.is_tick_due(self.driver.moment().now_ms) {
            self.tick();
        }
        Ok(())
    }

    fn work(&mut self) -> io::Result<()> {
        self.pacing.begin_turn();
        while self.pacing.begin_iteration() {
            if self.pacing.begin_idle_period() {
                self.sockets.ring.set_timer(IDLE_AFTER);
            }
            if self.driver.is_in_line() {
                self.iterate(Wait::No)?;
                continue;
            }
            let polls_for = self.pacing.polls_for(self.driver.active());
            let waiting_since = self.pacing.waiting_since();
            let mut done = 0;
            if !polls_for.is_zero() || self.driver.waits().has_unasked() {
                done = self.iterate(Wait::No)?;
                if done == 0 {
                    self.ask_for_commit();
                }
                if done == 0 && !polls_for.is_zero() {
                    let has_come = self.sockets.ring.poll(waiting_since + polls_for);
                    let polled_ns = nanoseconds(waiting_since.elapsed());
                    self.driver.service().metrics().polled_ns.add(polled_ns);
                    if has_come {
                        done = self.iterate(Wait::No)?;
                    }
                }
            }
            // The idle timer may have fired while polling; a wait without a timeout might then never end.
            if done == 0 && !self.pacing.is_interrupted() {
                self.iterate(self.pacing.wait)?;
            }
            self.pacing.learn(waiting_since);
        }
        Ok(())
    }

    /// Waits for work, at most until the clock must be checked.
    fn sleep(&mut self) -> io::Result<()> {
        self.ask_for_commit();
        self.driver.service().metrics().sleeps.add(1);
        let now_ms = self.driver.moment().now_ms;
        self.iterate(Wait::For(self.pacing.sleeps_for(now_ms)))?;
        Ok(())
    }

    fn ask_for_commit(&mut self) {
        self.driver.ask_for_commit(&mut self.sockets);
    }

    /// Runs one iteration: submits, waits, handles completions, and queues the responses. Returns the number of completions,
    /// not counting the idle timer's.
    fn iterate(&mut self, wait: Wait) -> io::Result<usize> {
        let wait = if self.driver.has_work() { Wait::No } else { wait };
        let mut done = self.sockets.ring.iterate(wait)?;
        if matches!(wait, Wait::For(_)) {
            // After a long wait, the input must be timed by when it arrived.
            self.read_clocks();
        }
        let received_at = Instant::now();
        self.pacing.note_received(received_at);
        self.driver.begin_iteration(self.pacing.ms_at(received_at));
        while let Some(event) = self.sockets.ring.next_event() {
            done -= usize::from(matches!(event, Event::Timer));
            self.handle(event);
        }
        let enters = self.sockets.ring.enters();
        self.driver.service().metrics().enters.add(enters - self.enters);
        self.enters = enters;
        if self.driver.end_iteration(&mut self.sockets, done) {
            self.pacing.note_work();
            let took = self.pacing.note_handled(done);
            self.driver.service().note_iteration(took);
        }
        Ok(done)
    }

    fn handle(&mut self, event: Event) {
        let Reactor { driver, sockets, .. } = self;
        match event {
            Event::Received(key, filled) => driver.handle_received(sockets, key, filled),
            Event::Sent(key, sent) => driver.note_sent(sockets, key, sent),
            // All buffers are available again at the end of this iteration.
            Event::ReceiveStopped(key, NoBuffers(is_so)) => {
                driver.service().metrics().exhausted.add(u64::from(is_so));
                driver.note_receive_stopped(sockets, key);
            }
            Event::PeerClosed(key) => driver.note_peer_closed(sockets, key),
            Event::ReceiveFailed(key) | Event::SendFailed(key) => driver.note_failed(sockets, key),
            Event::Accepted(socket) => {
                self.has_accepted = true;
                if let Accepted::Here(accepted) = sockets.admit(socket, driver.service().metrics())
                {
                    driver.take_in(sockets, accepted);
                }
            }
            Event::AcceptStopped { error } => self.note_accept_error(&error),
            Event::Woken => {
                if self.stop.urgency() > driver.moment().urgency {
                    self.pacing.interrupt();
                }
                for accepted in sockets.admission.collect(sockets.shard) {
                    driver.take_in(sockets, accepted);
                }
            }
            Event::Timer => self.pacing.note_timer(),
            Event::Connected(_) | Event::ConnectFailed(..) => {
                unreachable!("a server opens no connections")
            }
        }
    }

    /// Resumes accepting: immediately if an accept has succeeded since the last failure, and otherwise after the next tick.
    fn note_accept_error(&mut self, error: &io::Error) {
        let RingSockets { ring, shard, admission } = &mut self.sockets;
        let Some(listener) = ring.listener() else { return };
        if !admission.note_accept_error(*shard, listener, error, &self.stop) {
            ring.close_listener();
        } else if std::mem::take(&mut self.has_accepted) {
            ring.accept();
        }
    }

    fn read_clocks(&mut self) {
        let now_ms = self.pacing.ms_at(Instant::now());
        self.heartbeat.store(now_ms, Ordering::Relaxed);
        self.driver.set_time(now_ms);
        self.driver.service().set_time(unix_seconds());
    }

    /// Reads the clocks, and ends connections that have waited too long.
    fn tick(&mut self) {
        self.read_clocks();
        let due_ms = self.driver.tick(&mut self.sockets);
        self.sockets.ring.accept();
        self.pacing.note_tick(self.driver.moment().now_ms, due_ms);
    }

    /// Begins to drain.
    fn stop_accepting(&mut self) {
        self.read_clocks();
        let Reactor { driver, sockets, .. } = self;
        for accepted in sockets.admission.close(sockets.shard) {
            driver.take_in(sockets, accepted);
        }
        driver.begin_drain(sockets);
        sockets.ring.close_listener();
    }
}

impl RingSockets {
    /// Admits an accepted connection.
    fn admit(&self, socket: Socket, metrics: &ShardMetrics) -> Accepted<AcceptedConnection> {
        match self.admission.admit(self.shard, socket, metrics) {
            Some(accepted) => Accepted::Here(accepted),
            None => Accepted::Elsewhere,
        }
    }
}

impl Sockets for RingSockets {
    type Key = Key;
    type Socket<'a> = &'a Socket;
    type Filled = Filled;
    type Accepted = AcceptedConnection;

    const BUFFER_BYTES: usize = BUFFER_BYTES;

    #[inline]
    fn get(&mut self, key: Key) -> Option<Open<'_, &Socket>> {
        self.ring.slot(key).map(|slot| open(slot).1)
    }

    fn visit(&mut self, mut visit: impl FnMut(Key, Open<'_, &Socket>)) {
        for slot in self.ring.open_slots() {
            let (key, open) = open(slot);
            visit(key, open);
        }
    }

    #[inline]
    fn received<'a>(
        &'a mut self,
        key: Key,
        filled: &'a Filled,
    ) -> Option<(&'a mut Client, &'a [u8])> {
        self.ring.received(key, filled).map(|(peer, bytes)| (&mut peer.client, bytes))
    }

    #[inline]
    fn give_back(&mut self, filled: Filled) {
        self.ring.give_back(filled);
    }

    fn accept_now(&mut self, metrics: &ShardMetrics) -> Accepted<AcceptedConnection> {
        match self.ring.listener().map(Socket::accept) {
            Some(Ok((socket, _))) => self.admit(socket, metrics),
            Some(Err(_)) | None => Accepted::None,
        }
    }

    fn insert(&mut self, accepted: AcceptedConnection, client: Client) -> Key {
        let AcceptedConnection { socket, permit, .. } = accepted;
        self.ring.insert(socket, Peer { client, _permit: permit })
    }

    #[inline]
    fn receive(&mut self, key: Key, is_multishot: bool) {
        match is_multishot {
            true => self.ring.receive_multishot(key),
            false => self.ring.receive(key),
        }
    }

    fn stop_receiving(&mut self, key: Key) {
        self.ring.stop_receiving(key);
    }

    #[inline]
    fn send(&mut self, key: Key, bytes: Vec<u8>, skips_completion: bool) {
        match skips_completion {
            true => self.ring.send_skipping_completion(key, bytes),
            false => self.ring.send(key, bytes),
        }
    }

    fn close(&mut self, key: Key, _: Ended) {
        self.ring.close(key);
    }
}

#[inline]
fn open(slot: OpenSlot<'_, Peer>) -> (Key, Open<'_, &Socket>) {
    let OpenSlot { key, data, socket, is_receiving, .. } = slot;
    (key, Open { client: &mut data.client, socket, is_receiving })
}

impl driver::Socket for &Socket {
    fn receive_now(&mut self, bytes: &mut Vec<u8>, bytes_max: usize) -> usize {
        receive_now(self, bytes, bytes_max).unwrap_or(0)
    }

    fn send_now(&mut self, bytes: &[u8]) -> usize {
        send_now(self, bytes).unwrap_or(0)
    }

    fn shut_down_sending(&mut self) -> bool {
        self.shutdown(Shutdown::Write).is_ok()
    }

    fn has_unread(&self) -> bool {
        rustix::io::ioctl_fionread(self).is_ok_and(|bytes| bytes > 0)
    }
}

impl Newcomer for AcceptedConnection {
    fn peer_is_loopback(&self) -> bool {
        AcceptedConnection::peer_is_loopback(self)
    }

    fn is_rejected(&self) -> bool {
        self.is_rejected
    }
}
