//! The data plane on an io_uring of our own, inside the shard's glommio executor.
//!
//! One ring carries accept, receive and send. A turn submits what the last one queued and collects
//! what has completed, in one `io_uring_enter`; handles all completions; publishes; and queues the
//! answers. glommio runs beside it for timers and signals, and is the sleeper of an idle shard: the
//! ring's eventfd wakes it. A busy shard waits in the ring itself, for a bounded while.
//!
//! # Who owns what the kernel may touch
//!
//! - The receive buffers and their ring live as long as the io_uring: they are freed after it.
//! - The bytes of a send are in its connection's `sending`, which nobody changes, moves or frees
//!   until the send has completed.
//! - A connection's descriptor is closed, and its place given away, once no operation of it is
//!   under way, so a completion can never be taken for another connection's.
//! - At the end every operation is brought to completion. One that does not come in time keeps its
//!   memory: it is leaked, not freed under the kernel.

#![allow(unsafe_code, reason = "the kernel reads and writes memory that it was given")]

pub(crate) mod buffers;
#[cfg(test)]
pub(super) mod faults;
mod probe;

use super::admission::{quiet, wakeup};
use super::{
    AcceptedConnection, Admission, LINGER_BYTES_MAX, LINGER_MS, Permit, Shard, Spin, Stop, TICK,
    Urgency, unix_seconds,
};
use crate::http::{Connection, Limits, Outcome, UNSENT_BYTES_MAX};
use crate::service::Service;
use buffers::{BUFFER_BYTES, BUFFER_GROUP, Buffers};
use futures_lite::future::or;
use glommio::io::PollableFd;
use glommio::timer::sleep;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
pub use probe::{Feature, probe};
use rustix::io::Errno;
use socket2::Socket;
use std::io;
use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much a ring holds at once.
pub(crate) struct Sizes {
    /// Entries of the submission queue. A full one is submitted in the middle of a turn.
    pub(crate) submissions: u32,
    /// Entries of the completion queue. Beyond it the kernel keeps completions aside (Linux 5.5).
    pub(crate) completions: u32,
    /// Receive buffers, a power of two.
    pub(crate) buffers: u16,
}

const SIZES: Sizes = Sizes { submissions: 1024, completions: 8192, buffers: 2048 };

/// A shard without work for one to two of these goes to sleep in glommio; until then it waits in
/// its ring. One timer a lull costs nothing a request; a timeout a wait would program the clock.
static LULL: Timespec = Timespec::new().nsec(10_000_000);
/// How seldom a sleeping shard looks at the clock while nothing falls due.
const IDLE_TICK: Duration = Duration::from_secs(1);
/// How long it waits while it drains, so that the deadline is looked at.
const DRAIN_WAIT: Timespec = Timespec::new().nsec(2_000_000);
/// Turns and completions after which glommio's other tasks get theirs.
const TURNS_BEFORE_YIELD: u32 = 128;
const COMPLETIONS_BEFORE_YIELD: u32 = 1024;

/// Receives in a row that leave room in their buffer, after which a connection's receive is
/// multishot. One multishot receive may fill 32 buffers before it can be cancelled: who sends in
/// bulk is received from one buffer at a time, so that a peer that never reads its answers holds
/// little here.
const SMALL_BEFORE_MULTISHOT: u8 = 4;

/// Kept buffers for answers, and the largest that is kept.
const SPARE_BUFFERS_MAX: usize = 2048;
const SPARE_BUFFER_BYTES_MAX: usize = 4096;

/// How long the end waits for operations that were cancelled.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// The most that `--spin-us auto` polls, and the most connections with input since the last tick
/// for it to poll at all: with more, a wake-up is shared by so many requests that polling would
/// burn more than it gains.
const AUTO_SPIN_MAX: Duration = Duration::from_micros(50);
const AUTO_SPIN_CONNECTIONS_MAX: usize = 16;

/// `POLLIN` of poll(2).
const POLL_IN: u32 = rustix::event::PollFlags::IN.bits() as u32;

/// `IORING_ENTER_GETEVENTS` of io_uring_enter(2): runs deferred work.
pub(crate) const ENTER_GETEVENTS: u32 = 1;

/// Whether this kernel has all that the engine uses.
pub fn is_supported() -> bool {
    probe().iter().all(|feature| feature.result.is_ok())
}

/// Makes a ring for the calling thread, or a disabled one for the thread that enables it.
pub(crate) fn build(sizes: &Sizes, is_disabled: bool) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_cqsize(sizes.completions);
    if is_disabled {
        builder.setup_r_disabled();
    }
    builder.build(sizes.submissions)
}

/// What a completion is of. The number of the place follows in the user data.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Accept = 0,
    Receive = 1,
    Send = 2,
    Cancel = 3,
    Bell = 4,
    Lull = 5,
}

impl Kind {
    fn tag(self, place: usize) -> u64 {
        (self as u64) << 32 | place as u64
    }

    fn of(tag: u64) -> (Kind, usize) {
        let kind = match tag >> 32 {
            0 => Kind::Accept,
            1 => Kind::Receive,
            2 => Kind::Send,
            3 => Kind::Cancel,
            4 => Kind::Bell,
            _ => Kind::Lull,
        };
        (kind, (tag & 0xffff_ffff) as usize)
    }
}

/// How far a connection's end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// The last answers are on their way.
    Finishing,
    /// Our side is shut; input is discarded until the deadline, so that the peer can read.
    Lingering {
        discarded: usize,
    },
    /// Both sides are shut; operations end.
    Ending,
}

/// One connection.
struct Peer {
    socket: Socket,
    connection: Connection,
    phase: Phase,
    /// Answers made and not yet given to the kernel.
    out: Vec<u8>,
    /// Answers that the kernel has, and how many bytes of them were sent.
    sending: Vec<u8>,
    sent: usize,
    is_receiving: bool,
    is_sending: bool,
    is_cancelling: bool,
    /// Requests are held back until answers were taken.
    is_held: bool,
    /// The peer has ended its side.
    has_ended: bool,
    is_queued: bool,
    /// Something was received since the last tick.
    is_active: bool,
    /// Receives in a row that left room in their buffer.
    small_receives: u8,
    /// When the answers on their way are late, or the lingering ends.
    deadline_ms: u64,
    _permit: Permit,
}

/// The ring of one shard and its connections.
struct Plane {
    /// Before `buffers`, and so dropped before them.
    ring: IoUring,
    buffers: Buffers,
    listener: Option<Socket>,
    is_accepting: bool,
    service: Service,
    shard: usize,
    wakeup: Arc<OwnedFd>,
    is_listening_to_bell: bool,
    admission: Arc<Admission>,
    stop: Arc<Stop>,
    limits: Limits,
    peers: Vec<Option<Box<Peer>>>,
    vacant: Vec<usize>,
    /// Connections with something to send or to look at, at the end of the turn.
    queue: Vec<usize>,
    spare: Vec<Vec<u8>>,
    /// Operations under way, cancellations included.
    operations: usize,
    started: Instant,
    now_ms: u64,
    /// When the clock was last looked at for all connections, and when it is to be again.
    ticked_ms: u64,
    next_tick_ms: u64,
    urgency: Urgency,
    completions: Vec<(u64, i32, u32)>,
    lull: Lull,
    /// Others are to have their turn now: glommio's tasks, or the stop.
    is_interrupted: bool,
    /// Connections with input, between the last two ticks.
    active: usize,
}

/// What is known of the present lull.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lull {
    /// No timer runs.
    Unmeasured,
    /// A timer runs, and since it was set there was none or some work.
    Without,
    WithWork,
}

/// Serves on the calling executor until told to stop. `ready` is called once it listens.
pub async fn run(shard: Shard, ready: impl FnOnce()) -> io::Result<()> {
    run_with(&SIZES, shard, ready).await
}

/// The same with a ring of other sizes.
pub(super) async fn run_with(sizes: &Sizes, shard: Shard, ready: impl FnOnce()) -> io::Result<()> {
    let ring = build(sizes, false)?;
    let buffers = Buffers::register(&ring, sizes.buffers)?;
    let waker = wakeup()?;
    ring.submitter().register_eventfd(waker.as_raw_fd())?;
    let mut idle = Idle::new(shard.spin);
    let sleeper = PollableFd::new(waker)?;
    // Dropped by `end` alone: a shard that fails or panics leaks what the kernel may still touch,
    // and ends the process.
    let mut plane = ManuallyDrop::new(Plane {
        ring,
        buffers,
        listener: Some(shard.listener),
        is_accepting: false,
        service: shard.service,
        shard: shard.index,
        wakeup: shard.wakeup,
        is_listening_to_bell: false,
        admission: shard.admission,
        stop: shard.stop,
        limits: shard.limits,
        peers: Vec::new(),
        vacant: Vec::new(),
        queue: Vec::new(),
        spare: Vec::new(),
        operations: 0,
        started: Instant::now(),
        now_ms: 0,
        ticked_ms: 0,
        next_tick_ms: 0,
        urgency: Urgency::Serve,
        completions: Vec::new(),
        lull: Lull::Unmeasured,
        is_interrupted: false,
        active: 0,
    });
    plane.ring.completion().disable_eventfd();
    plane.listen();
    ready();
    while plane.stop.urgency() == Urgency::Serve {
        plane.serve(&mut idle, &sleeper).await?;
    }

    plane.stop_accepting();
    let end = Instant::now() + shard.drain_timeout;
    loop {
        let is_late = Instant::now() >= end || plane.stop.urgency() == Urgency::Abort;
        plane.urgency = if is_late { Urgency::Abort } else { Urgency::Drain };
        plane.tick();
        if plane.is_empty() || is_late {
            break;
        }
        plane.turn(Wait::For(DRAIN_WAIT))?;
        glommio::executor().yield_now().await;
    }
    ManuallyDrop::into_inner(plane).end();
    Ok(())
}

/// How a turn waits for completions.
#[derive(Clone, Copy)]
enum Wait {
    /// Not at all.
    No,
    /// For one.
    One,
    /// For one, so long at most.
    For(Timespec),
}

/// What an idle shard does before it sleeps, and what it has learnt for that.
struct Idle {
    spin: Spin,
    /// A moving average of how long completions were waited for.
    gap: Duration,
}

impl Idle {
    fn new(spin: Spin) -> Self {
        Idle { spin, gap: AUTO_SPIN_MAX * 2 }
    }

    /// How long to poll now. `auto` polls while few connections are active and completions come
    /// soon enough for it to pay: up to twice the usual gap.
    fn polls_for(&self, active_connections: usize) -> Duration {
        match self.spin {
            Spin::Fixed(spin) => spin,
            Spin::Auto if self.gap > AUTO_SPIN_MAX => Duration::ZERO,
            Spin::Auto if active_connections > AUTO_SPIN_CONNECTIONS_MAX => Duration::ZERO,
            Spin::Auto => (2 * self.gap).min(AUTO_SPIN_MAX),
        }
    }

    fn learn(&mut self, gap: Duration) {
        // Long gaps count as just long: the average must come back soon.
        self.gap = (7 * self.gap + gap.min(4 * AUTO_SPIN_MAX)) / 8;
    }
}

impl Plane {
    /// Works until there is nothing to do, then polls, waits and sleeps until there is.
    async fn serve(&mut self, idle: &mut Idle, sleeper: &PollableFd<OwnedFd>) -> io::Result<()> {
        let (mut turns, mut completed) = (0, 0);
        self.is_interrupted = false;
        while !self.is_interrupted
            && turns < TURNS_BEFORE_YIELD
            && completed < COMPLETIONS_BEFORE_YIELD
        {
            turns += 1;
            if self.lull == Lull::Unmeasured {
                self.measure_lull();
            }
            let polls_for = idle.polls_for(self.active);
            let waiting_since = Instant::now();
            let mut done = 0;
            if !polls_for.is_zero() {
                done = self.turn(Wait::No)?;
                if done == 0 {
                    let has_come = self.poll(waiting_since, polls_for);
                    let polled_ns = waiting_since.elapsed().as_nanos() as u64;
                    self.service.metrics().polled_ns.add(polled_ns);
                    if has_come {
                        done = self.turn(Wait::No)?;
                    }
                }
            }
            if done == 0 {
                done = self.turn(Wait::One)?;
            }
            if self.lull == Lull::Unmeasured {
                // The timer has come, and there was no work since it was set.
                self.sleep(sleeper).await?;
                return Ok(());
            }
            idle.learn(waiting_since.elapsed());
            completed += done as u32;
        }
        glommio::executor().yield_now().await;
        self.read_clocks();
        if self.now_ms >= self.next_tick_ms {
            self.tick();
        }
        Ok(())
    }

    /// Sets the timer that ends a lull.
    fn measure_lull(&mut self) {
        // The kernel reads the time when the entry is submitted, and it is static.
        let entry = opcode::Timeout::new(&raw const LULL).build().user_data(Kind::Lull.tag(0));
        if self.push(&entry) {
            self.lull = Lull::Without;
        }
    }

    /// Polls for deferred work without a system call. Returns whether some came.
    fn poll(&mut self, since: Instant, polls_for: Duration) -> bool {
        loop {
            for _ in 0..32 {
                if self.ring.submission().taskrun() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if since.elapsed() > polls_for {
                return false;
            }
        }
    }

    /// Sleeps in glommio until a completion comes, with a look at the clock when something falls due.
    async fn sleep(&mut self, sleeper: &PollableFd<OwnedFd>) -> io::Result<()> {
        self.service.metrics().sleeps.add(1);
        self.ring.completion().enable_eventfd();
        // What came before the eventfd was enabled did not ring it.
        while self.turn(Wait::No)? == 0 && self.stop.urgency() == Urgency::Serve {
            let pause = Duration::from_millis(self.next_tick_ms.saturating_sub(self.now_ms));
            let waking = async { sleeper.readable().await };
            or(waking, async {
                sleep(pause).await;
                Ok(())
            })
            .await?;
            quiet(sleeper.get_ref());
            self.read_clocks();
            if self.now_ms >= self.next_tick_ms {
                self.tick();
            }
        }
        self.ring.completion().disable_eventfd();
        Ok(())
    }

    /// One turn: submits, waits, handles what has completed, and queues the answers. Returns
    /// how many completions there were.
    fn turn(&mut self, wait: Wait) -> io::Result<usize> {
        // What found no room in the last turn does not wait for anything.
        self.enter(if self.queue.is_empty() { wait } else { Wait::No })?;
        #[cfg(test)]
        faults::inject(self);
        let mut completions = std::mem::take(&mut self.completions);
        completions.extend(
            self.ring.completion().map(|done| (done.user_data(), done.result(), done.flags())),
        );
        let mut had_timer = false;
        let received_at = Instant::now();
        for (tag, result, flags) in completions.iter().copied() {
            had_timer |= Kind::of(tag).0 == Kind::Lull;
            self.complete(tag, result, flags);
        }
        let done = completions.len() - usize::from(had_timer);
        completions.clear();
        self.completions = completions;
        if done > 0 {
            if self.lull == Lull::Without {
                self.lull = Lull::WithWork;
            }
            // Deadlines are new.
            self.next_tick_ms = self.next_tick_ms.min(self.ticked_ms + TICK.as_millis() as u64);
            self.buffers.publish();
        }
        if done > 0 || !self.queue.is_empty() {
            // Nothing is acknowledged before it can be read.
            self.service.commit();
            self.work_queue();
            self.service.metrics().completions.add(done as u64);
            self.service.note_turn(received_at.elapsed());
        }
        Ok(done)
    }

    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        self.service.metrics().enters.add(1);
        let queued = self.ring.submission().len();
        let submitter = self.ring.submitter();
        let entered = match wait {
            // SAFETY: no argument is passed, and the ring is ours.
            Wait::No => unsafe { submitter.enter::<u64>(queued as u32, 0, ENTER_GETEVENTS, None) },
            Wait::One => submitter.submit_and_wait(1),
            Wait::For(time) => submitter.submit_with_args(1, &SubmitArgs::new().timespec(&time)),
        };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                // Late, interrupted, or with completions to take first: the next turn goes on.
                Some(Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN | Errno::NOMEM) => {
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    /// Queues an operation, of memory that outlives it.
    fn push(&mut self, entry: &squeue::Entry) -> bool {
        #[cfg(test)]
        if faults::refuses() {
            return false;
        }
        for _ in 0..2 {
            // SAFETY: every entry is made by one of the few functions below that call this one, and
            // says there why what it points to outlives it.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.operations += 1;
                return true;
            }
            #[cfg(test)]
            faults::note(faults::Fault::FullSubmissionQueue);
            // Full: what is queued leaves early, so what it acknowledges is made visible first.
            self.service.commit();
            if self.enter(Wait::No).is_err() {
                return false;
            }
        }
        false
    }

    /// Starts to accept and to hear the wakeup, where it does not yet.
    fn listen(&mut self) {
        if !self.is_accepting
            && let Some(listener) = &self.listener
        {
            // The listener stays open until its operation has ended.
            let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd()))
                .flags(rustix::net::SocketFlags::CLOEXEC.bits() as i32)
                .build()
                .user_data(Kind::Accept.tag(0));
            self.is_accepting = self.push(&entry);
        }
        if !self.is_listening_to_bell {
            // The wakeup is open for as long as the ring; the poll points to no memory.
            let entry = opcode::PollAdd::new(Fd(self.wakeup.as_raw_fd()), POLL_IN)
                .multi(true)
                .build()
                .user_data(Kind::Bell.tag(0));
            self.is_listening_to_bell = self.push(&entry);
        }
    }

    fn complete(&mut self, tag: u64, result: i32, flags: u32) {
        let (kind, place) = Kind::of(tag);
        #[cfg(test)]
        faults::note_completion(self, kind, place, result);
        let is_last = !cqueue::more(flags);
        if is_last {
            self.operations -= 1;
        }
        match kind {
            Kind::Accept => self.accepted(result, is_last),
            Kind::Receive => self.received(place, result, flags, is_last),
            Kind::Send => self.sent(place, result),
            Kind::Cancel => {}
            Kind::Bell => self.hear_bell(is_last),
            Kind::Lull => {
                let had_work = self.lull == Lull::WithWork;
                self.lull = Lull::Unmeasured;
                self.is_interrupted = true;
                if had_work {
                    self.measure_lull();
                }
            }
        }
    }

    fn accepted(&mut self, result: i32, is_last: bool) {
        if is_last {
            self.is_accepting = false;
        }
        if result >= 0 {
            // SAFETY: the kernel has just opened this descriptor for us, and nobody else owns it.
            let socket = unsafe { Socket::from_raw_fd(result) };
            if let Some(accepted) = self.admission.admit(self.shard, socket, self.service.metrics())
            {
                self.take_in(accepted);
            }
        }
        // Out of descriptors or memory, accepting rests until the next tick.
        if is_last && !is_one_of(result, EXHAUSTED) && self.urgency == Urgency::Serve {
            self.listen();
        }
    }

    /// Takes in what other shards have accepted for this one, and lets the stop be seen.
    fn hear_bell(&mut self, is_last: bool) {
        quiet(&self.wakeup);
        self.is_interrupted = true;
        for accepted in self.admission.collect(self.shard) {
            self.take_in(accepted);
        }
        if is_last {
            self.is_listening_to_bell = false;
            if self.urgency == Urgency::Serve {
                self.listen();
            }
        }
    }

    /// Starts to serve a connection.
    fn take_in(&mut self, accepted: AcceptedConnection) {
        let mut peer = Box::new(Peer {
            connection: Connection::new(self.limits, accepted.peer_is_loopback(), self.now_ms),
            socket: accepted.socket,
            phase: Phase::Serving,
            out: Vec::new(),
            sending: Vec::new(),
            sent: 0,
            is_receiving: false,
            is_sending: false,
            is_cancelling: false,
            is_held: false,
            has_ended: false,
            is_queued: false,
            is_active: false,
            small_receives: 0,
            deadline_ms: u64::MAX,
            _permit: accepted.permit,
        });
        if accepted.is_turned_away {
            peer.connection.turn_away(&mut self.service, &mut peer.out);
            peer.phase = Phase::Finishing;
        }
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.peers.push(None);
            self.peers.len() - 1
        });
        self.peers[place] = Some(peer);
        self.service.metrics().connections.add(1);
        self.queue_up(place);
    }

    /// Puts a connection on the list for the end of the turn.
    fn queue_up(&mut self, place: usize) {
        if let Some(peer) = &mut self.peers[place]
            && !peer.is_queued
        {
            peer.is_queued = true;
            self.queue.push(place);
        }
    }

    /// Handles received bytes, or the end of receiving.
    fn received(&mut self, place: usize, result: i32, flags: u32, is_last: bool) {
        let buffer = cqueue::buffer_select(flags);
        if let Some(peer) = &mut self.peers[place] {
            if is_last {
                peer.is_receiving = false;
                peer.is_cancelling = false;
            }
            if is_one_of(result, &[Errno::NOBUFS]) {
                self.service.metrics().exhausted.add(1);
            }
            match (result, buffer) {
                (1.., Some(id)) => {
                    self.service.metrics().received_bytes.add(result as u64);
                    peer.is_active = true;
                    peer.small_receives = match result as usize {
                        BUFFER_BYTES => 0,
                        _ => peer.small_receives.saturating_add(1),
                    };
                    let input = self.buffers.filled(id, result as usize);
                    if peer.out.capacity() == 0
                        && let Some(spare) = self.spare.pop()
                    {
                        peer.out = spare;
                    }
                    peer.take(input, self.now_ms, self.urgency, &mut self.service);
                }
                // Out of buffers: all of them are back at the end of this turn. Cancelled: asked for.
                _ if is_one_of(result, NO_END) => {}
                (0, _) => peer.has_ended = true,
                // A reset, or any other failure of the connection.
                _ => peer.fail(),
            }
            self.queue_up(place);
        }
        if let Some(id) = buffer {
            self.buffers.put(id);
        }
    }

    fn sent(&mut self, place: usize, result: i32) {
        let Some(peer) = &mut self.peers[place] else { return };
        peer.is_sending = false;
        match result {
            1.. => {
                self.service.metrics().sent_bytes.add(result as u64);
                peer.sent += result as usize;
                if peer.sent >= peer.sending.len() {
                    peer.sent = 0;
                    let mut buffer = std::mem::take(&mut peer.sending);
                    if buffer.capacity() <= SPARE_BUFFER_BYTES_MAX
                        && self.spare.len() < SPARE_BUFFERS_MAX
                    {
                        buffer.clear();
                        self.spare.push(buffer);
                    }
                }
            }
            _ if is_one_of(result, INTERRUPTED) => {}
            _ => peer.fail(),
        }
        self.queue_up(place);
    }

    /// At the end of a turn: starts what each connection that had news needs next.
    fn work_queue(&mut self) {
        let mut queue = std::mem::take(&mut self.queue);
        for place in queue.drain(..) {
            if let Some(peer) = &mut self.peers[place] {
                peer.is_queued = false;
            }
            self.go_on(place);
        }
        // Requests that were held back may have queued more, for the next turn.
        queue.append(&mut self.queue);
        self.queue = queue;
    }

    fn go_on(&mut self, place: usize) {
        let Some(peer) = &mut self.peers[place] else { return };
        if peer.is_held && peer.unsent() < UNSENT_BYTES_MAX {
            peer.take(&[], self.now_ms, self.urgency, &mut self.service);
            self.service.commit();
        }
        if peer.has_ended && peer.phase == Phase::Serving && !peer.is_held {
            // The peer has ended its side and has its answers coming.
            peer.phase = Phase::Finishing;
        }
        if !peer.is_sending && peer.sending.is_empty() && !peer.out.is_empty() {
            std::mem::swap(&mut peer.sending, &mut peer.out);
            peer.deadline_ms = self.now_ms.saturating_add(peer.connection.send_timeout_ms());
        }
        if peer.phase != Phase::Ending && !peer.is_sending && !peer.sending.is_empty() {
            self.send(place);
        }
        let Some(peer) = &mut self.peers[place] else { return };
        if peer.phase == Phase::Finishing && peer.unsent() == 0 {
            if peer.has_ended || peer.socket.shutdown(Shutdown::Write).is_err() {
                peer.fail();
            } else {
                peer.phase = Phase::Lingering { discarded: 0 };
                peer.deadline_ms = self.now_ms.saturating_add(LINGER_MS);
            }
        }
        if let Phase::Lingering { discarded } = peer.phase
            && (peer.has_ended || discarded >= LINGER_BYTES_MAX)
        {
            peer.fail();
        }
        let wants_input = !peer.has_ended
            && matches!(peer.phase, Phase::Serving | Phase::Lingering { .. })
            && !(peer.phase == Phase::Serving
                && (peer.is_held || peer.unsent() >= UNSENT_BYTES_MAX));
        match (wants_input, peer.is_receiving) {
            (true, false) => self.receive(place),
            (false, true) if !peer.is_cancelling && peer.phase != Phase::Ending => {
                self.cancel(place);
            }
            _ => {}
        }
        self.leave_if_done(place);
    }

    fn receive(&mut self, place: usize) {
        let Some(peer) = &self.peers[place] else { return };
        // The descriptor stays open until the operation has ended; it points to no memory.
        let socket = Fd(peer.socket.as_raw_fd());
        let entry = if peer.small_receives >= SMALL_BEFORE_MULTISHOT {
            opcode::RecvMulti::new(socket, BUFFER_GROUP).build()
        } else {
            let entry = opcode::Recv::new(socket, std::ptr::null_mut(), BUFFER_BYTES as u32);
            entry.buf_group(BUFFER_GROUP).build().flags(squeue::Flags::BUFFER_SELECT)
        };
        let is_receiving = self.begin(Kind::Receive, place, entry);
        if let Some(peer) = &mut self.peers[place] {
            peer.is_receiving = is_receiving;
        }
    }

    fn send(&mut self, place: usize) {
        let Some(peer) = &self.peers[place] else { return };
        let rest = &peer.sending[peer.sent..];
        // `sending` is not touched, and its connection not dropped, until the send has completed.
        let entry =
            opcode::Send::new(Fd(peer.socket.as_raw_fd()), rest.as_ptr(), rest.len() as u32)
                .flags(rustix::net::SendFlags::NOSIGNAL.bits() as i32)
                .build();
        let is_sending = self.begin(Kind::Send, place, entry);
        if let Some(peer) = &mut self.peers[place] {
            peer.is_sending = is_sending;
        }
    }

    /// Stops receiving; what arrived before is still delivered.
    fn cancel(&mut self, place: usize) {
        let entry = opcode::AsyncCancel::new(Kind::Receive.tag(place)).build();
        let is_cancelling = self.begin(Kind::Cancel, place, entry);
        if let Some(peer) = &mut self.peers[place] {
            peer.is_cancelling = is_cancelling;
        }
    }

    /// Queues an operation of a connection. Where there is no room, its turn comes again.
    fn begin(&mut self, kind: Kind, place: usize, entry: squeue::Entry) -> bool {
        let has_begun = self.push(&entry.user_data(kind.tag(place)));
        if !has_begun {
            self.queue_up(place);
        }
        has_begun
    }

    /// Closes a connection whose end has come and that has no operation under way.
    fn leave_if_done(&mut self, place: usize) {
        let is_done = self.peers[place].as_ref().is_some_and(|peer| {
            peer.phase == Phase::Ending && !peer.is_receiving && !peer.is_sending
        });
        if is_done {
            self.peers[place] = None;
            self.vacant.push(place);
            self.service.metrics().connections.subtract(1);
        }
    }

    fn read_clocks(&mut self) {
        self.now_ms = self.started.elapsed().as_millis() as u64;
        self.service.set_time(unix_seconds());
    }

    /// Reads the clocks, and ends what has waited too long.
    fn tick(&mut self) {
        self.read_clocks();
        self.ticked_ms = self.now_ms;
        self.next_tick_ms = self.now_ms + IDLE_TICK.as_millis() as u64;
        self.active = 0;
        let mut in_flight = 0;
        for place in 0..self.peers.len() {
            let Some(peer) = &mut self.peers[place] else { continue };
            self.active += usize::from(std::mem::take(&mut peer.is_active));
            in_flight += u64::from(!peer.is_idle());
            if peer.is_called(self.now_ms, self.urgency) {
                peer.call(self.now_ms, self.urgency, &mut self.service);
                self.queue_up(place);
            } else {
                self.next_tick_ms = self.next_tick_ms.min(peer.deadline_ms());
            }
        }
        self.service.metrics().in_flight.set(in_flight);
        if self.urgency == Urgency::Serve {
            self.listen();
        }
        if !self.queue.is_empty() || !self.is_accepting {
            self.next_tick_ms = 0;
        }
        self.next_tick_ms = self.next_tick_ms.max(self.now_ms + TICK.as_millis() as u64);
        self.service.commit();
        self.work_queue();
    }

    /// Takes who is in the queue, who has connected to a server that was there, and no more.
    fn stop_accepting(&mut self) {
        let Some(listener) = self.listener.take() else { return };
        for accepted in self.admission.close(self.shard) {
            self.take_in(accepted);
        }
        while let Ok((socket, _)) = listener.accept() {
            if let Some(accepted) = self.admission.admit(self.shard, socket, self.service.metrics())
            {
                self.take_in(accepted);
            }
        }
        // Ends the accept under way, and listening, now.
        let _ = listener.shutdown(Shutdown::Read);
        self.urgency = Urgency::Drain;
        while self.is_accepting && self.turn(Wait::For(DRAIN_WAIT)).is_ok_and(|done| done > 0) {}
        self.listener = self.is_accepting.then_some(listener);
    }

    fn is_empty(&self) -> bool {
        self.peers.iter().all(Option::is_none)
    }

    /// Brings every operation to its end, so that nothing is freed under the kernel.
    fn end(mut self) {
        let patience = Instant::now() + LAST_WAIT;
        for place in 0..self.peers.len() {
            if let Some(peer) = &mut self.peers[place] {
                peer.fail();
                self.queue_up(place);
            }
        }
        self.work_queue();
        let mut is_deaf = !self.is_listening_to_bell;
        while self.operations > 0 && Instant::now() < patience {
            if !is_deaf {
                let cancel = opcode::PollRemove::new(Kind::Bell.tag(0)).build();
                is_deaf = self.push(&cancel.user_data(Kind::Cancel.tag(0)));
            }
            if self.turn(Wait::For(DRAIN_WAIT)).is_err() {
                break;
            }
        }
        if self.operations > 0 {
            std::mem::forget(self);
        }
    }
}

impl Peer {
    /// Bytes of answers that the peer has not taken.
    fn unsent(&self) -> usize {
        self.out.len() + self.sending.len() - self.sent
    }

    /// Feeds received bytes, or goes on with requests that were held back.
    fn take(&mut self, input: &[u8], now_ms: u64, urgency: Urgency, service: &mut Service) {
        match &mut self.phase {
            Phase::Serving => {}
            Phase::Lingering { discarded } => {
                *discarded += input.len();
                return;
            }
            Phase::Finishing | Phase::Ending => return,
        }
        if urgency != Urgency::Serve {
            self.connection.drain();
        }
        let outcome = self.connection.receive(input, now_ms, service, &mut self.out);
        self.is_held = outcome == Outcome::Resume;
        if outcome == Outcome::Close {
            self.phase = Phase::Finishing;
        }
    }

    /// Shuts both sides: every operation under way comes back at once.
    fn fail(&mut self) {
        // Fails only where the connection has ended already.
        let _ = self.socket.shutdown(Shutdown::Both);
        self.phase = Phase::Ending;
    }

    /// Whether nothing of a request is here, nor of an answer.
    fn is_idle(&self) -> bool {
        self.connection.is_idle() && self.unsent() == 0
    }

    /// When a tick has something to do here.
    fn deadline_ms(&self) -> u64 {
        match self.phase {
            Phase::Serving if self.unsent() == 0 => self.connection.deadline_ms(),
            Phase::Serving | Phase::Finishing | Phase::Lingering { .. } => self.deadline_ms,
            Phase::Ending => u64::MAX,
        }
    }

    fn is_called(&self, now_ms: u64, urgency: Urgency) -> bool {
        now_ms >= self.deadline_ms() || urgency != Urgency::Serve
    }

    /// Ends what is late, and while the server stops, what is idle.
    fn call(&mut self, now_ms: u64, urgency: Urgency, service: &mut Service) {
        let is_late = match self.phase {
            Phase::Serving if self.unsent() == 0 => {
                if now_ms >= self.connection.deadline_ms() {
                    service.metrics().note_timeout(Some(self.connection.waited()));
                    self.connection.expire(service, &mut self.out);
                    self.phase = Phase::Finishing;
                    self.deadline_ms = now_ms.saturating_add(self.connection.send_timeout_ms());
                    return self.fail_if(self.out.is_empty());
                }
                false
            }
            Phase::Ending => false,
            _ => now_ms >= self.deadline_ms,
        };
        if is_late && !matches!(self.phase, Phase::Lingering { .. }) {
            service.metrics().note_timeout(None);
        }
        let is_over = urgency == Urgency::Drain && self.phase == Phase::Serving && self.is_idle();
        self.fail_if(is_late || urgency == Urgency::Abort || is_over);
    }

    fn fail_if(&mut self, is_so: bool) {
        if is_so && self.phase != Phase::Ending {
            self.fail();
        }
    }
}

/// A receive that has ended, on a connection that has not.
const NO_END: &[Errno] = &[Errno::NOBUFS, Errno::CANCELED, Errno::AGAIN, Errno::INTR, Errno::NOMEM];

/// A send that is to be tried again.
const INTERRUPTED: &[Errno] = &[Errno::AGAIN, Errno::INTR];

/// The process, the machine or the memory is at its limit.
const EXHAUSTED: &[Errno] = &[Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];

/// Whether a completion's result is one of these errors.
fn is_one_of(result: i32, errors: &[Errno]) -> bool {
    errors.iter().any(|error| result == -error.raw_os_error())
}
