//! The protocol between the shards and the committer that lets responses wait for the store.
//!
//! A shard publishes the events of a turn under some epoch, and its responses may leave once a later cut is durable, which is
//! when `settled` has reached the epoch of that cut. The shard notes that it waits, and then checks `settled` again before it
//! asks for the cut; the committer raises `settled`, and then checks who waits. On each side, a sequentially consistent fence
//! separates the two steps, so at least one side sees the other, and no response waits forever. Whoever raises `requested`
//! wakes the committer, which also checks it after each commit.
//!
//! If other servers share the store, two things are added. First, totals of the group are read from the store, so a shard that
//! must show them asks for a cut that is followed by a read: `read` follows `settled` in the same way. Second, a commit may
//! find that another server has reset the group. Then its content is void: the committer resets this server's counters and
//! notes which responses never leave, before it settles anything else. These are the responses for events of an older
//! generation that were not settled at that point. An epoch alone does not identify them, because a shard may publish an event
//! from before the reset after the next cut.
//!
//! `tests/loom.rs` tries every interleaving of this file under loom.

use crate::primitives::{AtomicU64, Mutex, MutexGuard, Ordering, fence};
use crate::tally::Totals;
use crossbeam_utils::CachePadded;

/// The thread to wake up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waker {
    /// The committer.
    Committer,
    /// A shard.
    Shard(usize),
}

/// The most resets whose void responses are remembered separately. Older resets are remembered together, which includes
/// responses that were settled between them, but their shards have had the time of many commits to let those leave.
const VOIDS_MAX: usize = 16;

/// The durable epochs and the pending ones.
#[derive(Debug)]
pub struct Settlement {
    /// Whether other servers share the store.
    is_shared: bool,
    /// The values that every event is compared with; written once per commit.
    durable: CachePadded<Reached>,
    /// The highest epochs that a shard waits for.
    requested: CachePadded<Epochs>,
    /// The highest epochs that each shard waits for or has waited for; written by the shard.
    waiting: Vec<CachePadded<Epochs>>,
    /// The totals of the last durable cut, or the totals that were read last.
    totals: Mutex<Totals>,
    /// The void events, in the order of their resets.
    voids: Mutex<Vec<Void>>,
    /// The commit in progress.
    under_way: CachePadded<UnderWay>,
}

#[derive(Debug)]
struct Reached {
    /// The epoch of the last durable cut.
    settled: AtomicU64,
    /// The epoch of the last durable cut that was followed by a read of the totals.
    read: AtomicU64,
    /// The highest epoch whose wait timed out.
    late: AtomicU64,
    /// The generation before which some events are void.
    void_before: AtomicU64,
}

/// The epochs that shards wait for: of a durable cut, and of a durable cut that is followed by a read of the totals.
#[derive(Debug)]
struct Epochs {
    settled: AtomicU64,
    read: AtomicU64,
}

impl Epochs {
    fn new() -> Epochs {
        Epochs { settled: AtomicU64::new(0), read: AtomicU64::new(0) }
    }
}

#[derive(Debug)]
struct UnderWay {
    /// The epoch of its cut; 0 without a commit.
    epoch: AtomicU64,
    since_ms: AtomicU64,
}

/// Events that are not counted anywhere, because they were counted before a generation and not settled by an epoch.
#[derive(Clone, Copy, Debug)]
struct Void {
    after_epoch: u64,
    before_generation: u64,
}

impl Settlement {
    /// Creates a settlement for this number of shards, with `totals` already durable. Other servers may share the
    /// store.
    pub fn new(shards: usize, totals: Totals, is_shared: bool) -> Settlement {
        Settlement {
            is_shared,
            durable: CachePadded::new(Reached {
                settled: AtomicU64::new(0),
                read: AtomicU64::new(0),
                late: AtomicU64::new(0),
                void_before: AtomicU64::new(0),
            }),
            requested: CachePadded::new(Epochs::new()),
            waiting: (0..shards).map(|_| CachePadded::new(Epochs::new())).collect(),
            totals: Mutex::new(totals),
            voids: Mutex::new(Vec::new()),
            under_way: CachePadded::new(UnderWay {
                epoch: AtomicU64::new(0),
                since_ms: AtomicU64::new(0),
            }),
        }
    }

    /// Reports whether other servers share the store, so that the totals must be read from it.
    #[inline]
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Returns the epoch of the last durable cut.
    #[inline]
    pub fn settled(&self) -> u64 {
        self.durable.settled.load(Ordering::Acquire)
    }

    /// Returns the epoch of the last durable cut that was followed by a read of the totals from the store.
    #[inline]
    pub fn read(&self) -> u64 {
        self.durable.read.load(Ordering::Acquire)
    }

    /// Returns the totals of the last durable cut, or the totals that were read last. They include everything that was
    /// acknowledged up to that cut.
    pub fn totals(&self) -> Totals {
        *lock(&self.totals)
    }

    /// Asks for `epoch` to be settled, on behalf of a shard, which is woken by each commit until it is. Call this with epochs
    /// that never decrease, after the shard has noted what waits. Returns whether the epoch is settled already; if so, a
    /// wake-up may not come.
    pub fn request(&self, shard: usize, epoch: u64, wake: impl Fn(Waker)) -> bool {
        let (waiting, requested) = (&self.waiting[shard].settled, &self.requested.settled);
        ask(waiting, requested, epoch, || self.settled(), wake)
    }

    /// Asks for a cut of `epoch` or later that is followed by a read of the totals.
    pub fn request_read(&self, shard: usize, epoch: u64, wake: impl Fn(Waker)) -> bool {
        let (waiting, requested) = (&self.waiting[shard].read, &self.requested.read);
        ask(waiting, requested, epoch, || self.read(), wake)
    }

    /// Reports whether a requested epoch is not settled. Only the committer calls this, after it has cleared its wake-up.
    pub fn is_requested(&self) -> bool {
        self.requested.settled.load(Ordering::Acquire) > self.settled() || self.is_read_requested()
    }

    /// Reports whether requested totals have not been read.
    pub fn is_read_requested(&self) -> bool {
        self.requested.read.load(Ordering::Acquire) > self.read()
    }

    /// Notes that a commit of the cut of `epoch` begins at this time. Only the committer calls this.
    pub fn begin(&self, epoch: u64, now_ms: u64) {
        self.under_way.since_ms.store(now_ms, Ordering::Relaxed);
        self.under_way.epoch.store(epoch, Ordering::Release);
    }

    /// Notes that the commit in progress is late if it has taken too long, even if nobody waits for it.
    pub fn check_under_way(&self, now_ms: u64, timeout_ms: u64) {
        let epoch = self.under_way.epoch.load(Ordering::Acquire);
        let since_ms = self.under_way.since_ms.load(Ordering::Relaxed);
        if epoch > 0 && now_ms.saturating_sub(since_ms) >= timeout_ms {
            self.note_late(epoch);
        }
    }

    /// Notes that everything is void that is not settled and was counted before a generation. Only the committer calls this,
    /// before it settles anything else.
    pub fn void_before(&self, before_generation: u64) {
        let after_epoch = self.durable.settled.load(Ordering::Relaxed);
        let mut voids = lock(&self.voids);
        if voids.len() == VOIDS_MAX {
            let oldest = voids.remove(0);
            voids[0].after_epoch = oldest.after_epoch;
        }
        voids.push(Void { after_epoch, before_generation });
        drop(voids);
        // A thread that sees a later settled epoch also sees this.
        self.durable.void_before.store(before_generation, Ordering::Relaxed);
    }

    /// Reports whether responses are void, given the settled epoch that they needed and the generation that counted
    /// their events.
    #[inline]
    pub fn is_void(&self, epoch: u64, generation: u64) -> bool {
        generation < self.durable.void_before.load(Ordering::Relaxed)
            && self.is_among_voids(epoch, generation)
    }

    #[cold]
    fn is_among_voids(&self, epoch: u64, generation: u64) -> bool {
        let is_of = |void: &Void| epoch > void.after_epoch && generation < void.before_generation;
        lock(&self.voids).iter().any(is_of)
    }

    /// Notes that the cut of `epoch` is durable, with its totals if they are known, and wakes the waiting shards. Only the
    /// committer calls this.
    pub fn settle(&self, epoch: u64, totals: Option<Totals>, wake: impl Fn(Waker)) {
        let Reached { settled, read, .. } = &*self.durable;
        let read_before = read.load(Ordering::Relaxed);
        if let Some(totals) = totals {
            // This precedes the epoch: a shard that sees the epoch sees these totals.
            *lock(&self.totals) = totals;
            read.store(epoch, Ordering::Release);
        }
        let settled_before = settled.load(Ordering::Relaxed);
        settled.store(epoch, Ordering::Release);
        self.under_way.epoch.store(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        for (shard, waiting) in self.waiting.iter().enumerate() {
            let awaits_read = || waiting.read.load(Ordering::Relaxed) > read_before;
            if waiting.settled.load(Ordering::Relaxed) > settled_before
                || totals.is_some() && awaits_read()
            {
                wake(Waker::Shard(shard));
            }
        }
    }

    /// Notes that a response has waited too long for `epoch`.
    pub fn note_late(&self, epoch: u64) {
        self.durable.late.fetch_max(epoch, Ordering::Relaxed);
    }

    /// Reports whether a response has waited too long for an epoch that is still not settled.
    #[inline]
    pub fn is_late(&self) -> bool {
        self.durable.late.load(Ordering::Relaxed) > self.durable.settled.load(Ordering::Relaxed)
    }
}

/// Notes that a shard waits for an epoch, checks whether that has been reached already, and if not, asks for it. Returns
/// whether it has been reached.
fn ask(
    waiting: &AtomicU64,
    requested: &AtomicU64,
    epoch: u64,
    current: impl Fn() -> u64,
    wake: impl Fn(Waker),
) -> bool {
    waiting.store(epoch, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    if current() >= epoch {
        return true;
    }
    // The shard that raises it wakes the committer for all shards that ask for the same epoch.
    if requested.fetch_max(epoch, Ordering::AcqRel) < epoch {
        wake(Waker::Committer);
    }
    false
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    match mutex.lock() {
        Ok(guard) => guard,
        // Their content changes atomically; a panic while a lock is held ends the process.
        Err(poisoned) => poisoned.into_inner(),
    }
}
