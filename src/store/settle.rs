//! How responses wait for the store: what the shards and the committer tell each other.
//!
//! A shard publishes the events of a turn under some epoch, and its responses may leave once a later cut is
//! durable: once `settled` has reached the epoch of that cut. It notes that it waits, asks for the cut, and
//! looks at `settled` once more; the committer raises `settled` and then looks who waits. Between the two steps
//! of each there is a sequentially consistent fence, so at least one of them sees the other: no response waits
//! for ever. The committer is woken by whoever raises `requested`, and looks at it after each commit.
//!
//! `tests/interleavings.rs` tries every interleaving of this file under loom.

use crate::primitives::{AtomicU64, Mutex, MutexGuard, Ordering, fence};
use crate::tally::Totals;
use crossbeam_utils::CachePadded;

/// Who is to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waker {
    /// The committer.
    Committer,
    /// A shard.
    Shard(usize),
}

/// Which epochs are durable, and which are waited for.
#[derive(Debug)]
pub struct Settlement {
    /// What every event is compared with; written once per commit.
    durable: CachePadded<Durable>,
    /// The highest epoch that a shard waits for.
    requested: CachePadded<AtomicU64>,
    /// For each shard, the highest epoch that it waits for or has waited for; written by the shard.
    waiting: Vec<CachePadded<AtomicU64>>,
    /// The totals of the last durable cut.
    totals: Mutex<Totals>,
}

#[derive(Debug)]
struct Durable {
    /// The epoch of the last durable cut.
    settled: AtomicU64,
    /// The highest epoch that was waited for in vain.
    late: AtomicU64,
}

impl Settlement {
    /// For so many shards, where `totals` are durable already.
    pub fn new(shards: usize, totals: Totals) -> Settlement {
        Settlement {
            durable: CachePadded::new(Durable {
                settled: AtomicU64::new(0),
                late: AtomicU64::new(0),
            }),
            requested: CachePadded::new(AtomicU64::new(0)),
            waiting: (0..shards).map(|_| CachePadded::new(AtomicU64::new(0))).collect(),
            totals: Mutex::new(totals),
        }
    }

    /// The epoch up to which everything is durable.
    #[inline]
    pub fn settled(&self) -> u64 {
        self.durable.settled.load(Ordering::Acquire)
    }

    /// The totals of the last durable cut. They have everything that was ever acknowledged.
    pub fn totals(&self) -> Totals {
        *self.lock_totals()
    }

    fn lock_totals(&self) -> MutexGuard<'_, Totals> {
        match self.totals.lock() {
            Ok(totals) => totals,
            // They are copied in whole; whoever panicked with the lock ends the process.
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    /// Asks for `epoch` to be settled, on behalf of a shard, which is woken by each commit until it is. To be
    /// called with epochs that never decrease, after the shard has noted what waits. Returns whether it is settled already: then no wake-up may come.
    pub fn request(&self, shard: usize, epoch: u64, wake: impl Fn(Waker)) -> bool {
        self.waiting[shard].store(epoch, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.settled() >= epoch {
            return true;
        }
        // Who raises it wakes the committer, for everybody who asks for the same epoch.
        if self.requested.fetch_max(epoch, Ordering::AcqRel) < epoch {
            wake(Waker::Committer);
        }
        false
    }

    /// Whether something is asked for that is not settled. For the committer, after it has cleared its wake-up.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire) > self.settled()
    }

    /// Notes that the cut of `epoch`, which has these totals, is durable, and wakes the shards that wait. For the
    /// committer alone.
    pub fn settle(&self, epoch: u64, totals: Totals, wake: impl Fn(Waker)) {
        // Before the epoch: a shard that sees the epoch sees these totals.
        *self.lock_totals() = totals;
        let before = self.durable.settled.load(Ordering::Relaxed);
        self.durable.settled.store(epoch, Ordering::Release);
        fence(Ordering::SeqCst);
        for (shard, waiting) in self.waiting.iter().enumerate() {
            if waiting.load(Ordering::Relaxed) > before {
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
