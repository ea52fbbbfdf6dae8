//! The protocol by which responses wait for the store, between the shards and the committer.
//!
//! A shard publishes the events of a turn under some epoch, and its responses may leave once a later cut is durable:
//! once `settled` has reached the epoch of that cut. It notes that it waits, asks for the cut, and checks `settled`
//! again; the committer raises `settled` and then checks who waits. Between the two steps of each there is a
//! sequentially consistent fence, so at least one of them sees the other, and no response waits forever. The committer
//! is woken by whoever raises `requested`, and looks at it after each commit.
//!
//! If other servers share the store, two things are added. Totals of the group are read from the store, so a shard that
//! must show them asks for a cut after which they are read: `read` follows `settled` in the same way. And a commit may
//! find that another server has reset the group. Then its content is void: the committer resets this server's counters
//! and notes which responses never leave, before it settles anything else. Those are the responses for events of an
//! older generation that were not settled by then; an epoch alone cannot tell, because a shard may publish an event
//! from before the reset after the next cut.
//!
//! `tests/loom.rs` tries every interleaving of this file under loom.

use crate::primitives::{AtomicU64, Mutex, MutexGuard, Ordering, fence};
use crate::tally::Totals;
use crossbeam_utils::CachePadded;

/// The shard to wake up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waker {
    /// The committer.
    Committer,
    /// A shard.
    Shard(usize),
}

/// Void responses that are remembered one by one. Older ones are remembered together, and with them what was
/// settled between them, whose shards have had many commits' time to let it leave.
const VOIDS_MAX: usize = 16;

/// The durable epochs and the pending ones.
#[derive(Debug)]
pub struct Settlement {
    /// Other servers share the store.
    is_shared: bool,
    /// The values that every event is compared with; written once per commit.
    durable: CachePadded<Reached>,
    /// The highest epochs that a shard waits for.
    requested: CachePadded<Epochs>,
    /// The highest epochs that each shard waits for or has waited for; written by the shard.
    waiting: Vec<CachePadded<Epochs>>,
    /// The totals of the last durable cut, or those that were read last.
    totals: Mutex<Totals>,
    /// In their order.
    voids: Mutex<Vec<Void>>,
    /// The commit under way.
    under_way: CachePadded<UnderWay>,
}

#[derive(Debug)]
struct Reached {
    /// The epoch of the last durable cut.
    settled: AtomicU64,
    /// The epoch of the last durable cut after which the totals were read.
    read: AtomicU64,
    /// The highest epoch whose wait timed out.
    late: AtomicU64,
    /// The generation before which there is something void.
    void_before: AtomicU64,
}

/// The epochs that are waited for: of a durable cut, and of one after which the totals were read.
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
    /// The epoch of its cut; 0 without one.
    epoch: AtomicU64,
    since_ms: AtomicU64,
}

/// Events that are counted nowhere: those that were counted before a generation, and not settled by an epoch.
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

    /// Whether other servers share the store, so that the totals have to be read from it.
    #[inline]
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Returns the epoch up to which everything is durable.
    #[inline]
    pub fn settled(&self) -> u64 {
        self.durable.settled.load(Ordering::Acquire)
    }

    /// Returns the epoch of the last durable cut after which the totals were read from the store.
    #[inline]
    pub fn read(&self) -> u64 {
        self.durable.read.load(Ordering::Acquire)
    }

    /// The totals of the last durable cut, or those that were read last. They have everything that was
    /// acknowledged up to it.
    pub fn totals(&self) -> Totals {
        *lock(&self.totals)
    }

    /// Asks for `epoch` to be settled, on behalf of a shard, which is woken by each commit until it is. Call this with
    /// epochs that never decrease, after the shard has noted what waits. Returns whether it is settled already: then no
    /// wake-up may come.
    pub fn request(&self, shard: usize, epoch: u64, wake: impl Fn(Waker)) -> bool {
        let (waiting, requested) = (&self.waiting[shard].settled, &self.requested.settled);
        ask(waiting, requested, epoch, || self.settled(), wake)
    }

    /// Asks for a cut of `epoch` or later after which the totals are read.
    pub fn request_read(&self, shard: usize, epoch: u64, wake: impl Fn(Waker)) -> bool {
        let (waiting, requested) = (&self.waiting[shard].read, &self.requested.read);
        ask(waiting, requested, epoch, || self.read(), wake)
    }

    /// Whether an epoch is requested that is not settled. For the committer, after it has cleared its wake-up.
    pub fn is_requested(&self) -> bool {
        self.requested.settled.load(Ordering::Acquire) > self.settled() || self.is_read_requested()
    }

    /// Whether totals are requested that were not read.
    pub fn is_read_requested(&self) -> bool {
        self.requested.read.load(Ordering::Acquire) > self.read()
    }

    /// Notes that a commit of the cut of `epoch` begins at a time. For the committer alone.
    pub fn begin(&self, epoch: u64, now_ms: u64) {
        self.under_way.since_ms.store(now_ms, Ordering::Relaxed);
        self.under_way.epoch.store(epoch, Ordering::Release);
    }

    /// Notes that the commit under way is late if it has taken too long, even if nobody waits for it.
    pub fn check_under_way(&self, now_ms: u64, timeout_ms: u64) {
        let epoch = self.under_way.epoch.load(Ordering::Acquire);
        let since_ms = self.under_way.since_ms.load(Ordering::Relaxed);
        if epoch > 0 && now_ms.saturating_sub(since_ms) >= timeout_ms {
            self.note_late(epoch);
        }
    }

    /// Notes that everything is void that is not settled and was counted before a generation. For the committer
    /// alone, before it settles anything else.
    pub fn void_before(&self, before_generation: u64) {
        let after_epoch = self.durable.settled.load(Ordering::Relaxed);
        let mut voids = lock(&self.voids);
        if voids.len() == VOIDS_MAX {
            let oldest = voids.remove(0);
            voids[0].after_epoch = oldest.after_epoch;
        }
        voids.push(Void { after_epoch, before_generation });
        drop(voids);
        // Whoever sees an epoch that is settled later sees this.
        self.durable.void_before.store(before_generation, Ordering::Relaxed);
    }

    /// Whether responses that waited for an epoch that is settled now, and were counted in a generation, are void.
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

    /// Notes that the cut of `epoch` is durable, with its totals if they are known, and wakes the waiting shards. For
    /// the committer alone.
    pub fn settle(&self, epoch: u64, totals: Option<Totals>, wake: impl Fn(Waker)) {
        let Reached { settled, read, .. } = &*self.durable;
        let read_before = read.load(Ordering::Relaxed);
        if let Some(totals) = totals {
            // Before the epoch: a shard that sees the epoch sees these totals.
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

    /// Whether a response has waited too long for an epoch that is still not settled.
    #[inline]
    pub fn is_late(&self) -> bool {
        self.durable.late.load(Ordering::Relaxed) > self.durable.settled.load(Ordering::Relaxed)
    }
}

/// Notes that a shard waits for an epoch, looks whether it is there already, and if not, asks for it. Returns
/// whether it is.
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
    // The shard that raises it wakes the committer for all that ask for the same epoch.
    if requested.fetch_max(epoch, Ordering::AcqRel) < epoch {
        wake(Waker::Committer);
    }
    false
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    match mutex.lock() {
        Ok(guard) => guard,
        // Their content changes atomically; a panic with a lock ends the process.
        Err(poisoned) => poisoned.into_inner(),
    }
}
