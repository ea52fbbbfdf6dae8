//! What is counted, exactly: one writer a shard, merged when somebody reads.
//!
//! A [`Writer`] counts into memory of its own and publishes once a batch; [`Tally::totals`]
//! merges what the shards have published into one moment (see `snapshot`). The value of every
//! event goes into an exact accumulator (`sum`); a user is counted by the shard that is first to
//! put it into the shared set (`users`), in the same publication as the event.
//!
//! A reset is one number, the generation, raised by one. A writer compares it before each
//! event, and everything that belongs to an older generation counts as nothing from then on.

mod snapshot;
mod sum;
mod users;

use crate::primitives::{AtomicU64, Mutex, Ordering, fence, yield_now};
use crossbeam_utils::CachePadded;
use snapshot::{Counts, Reading, Snapshot, SnapshotWriter};
use std::sync::Arc;
pub use sum::ExactSum;
use sum::Extent;
pub use users::USERS_MAX;
use users::{Hasher, Seen, Sighting, Users};

/// Most shards of one tally: as many accumulators as can be merged without carries.
pub const SHARDS_MAX: usize = sum::MERGES_MAX as usize;

/// Attempts at a consistent cut before a reader lets another thread run first.
const CUTS_BEFORE_YIELD: u32 = 64;

/// What all shards have counted since the last reset, at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Totals {
    /// Events counted.
    pub total_requests: u64,
    /// Distinct users among them.
    pub unique_users: u64,
    /// The correctly rounded sum of their values.
    pub sum: f64,
}

impl Totals {
    /// The sum divided by the number of events; `0.0` without events.
    pub fn avg(&self) -> f64 {
        match self.total_requests {
            0 => 0.0,
            total => self.sum / total as f64,
        }
    }
}

/// An event that was not counted, because its user is new and `--max-users` are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsersFull;

/// What the shards share.
#[derive(Debug)]
pub struct Tally {
    /// Raised by every reader, before it reads.
    epoch: CachePadded<AtomicU64>,
    /// Raised by every reset. Compared before every event, so it has a cache line of its own.
    generation: CachePadded<AtomicU64>,
    /// Held by a reset, so that resets happen one after the other.
    resetting: Mutex<()>,
    snapshots: Vec<Snapshot>,
    users: Users,
    hasher: Hasher,
}

impl Tally {
    /// Counters for `shards` shards (at most [`SHARDS_MAX`]) that hold at most `users_max` users,
    /// with the writer of each shard.
    pub fn new(shards: usize, users_max: u64) -> (Arc<Tally>, Vec<Writer>) {
        assert!(shards <= SHARDS_MAX, "the command line admits no more shards");
        let tally = Arc::new(Tally {
            epoch: CachePadded::new(AtomicU64::new(0)),
            generation: CachePadded::new(AtomicU64::new(0)),
            resetting: Mutex::new(()),
            snapshots: (0..shards).map(|_| Snapshot::new()).collect(),
            users: Users::new(users_max),
            hasher: Hasher::default(),
        });
        let writers = (0..shards).map(|shard| Writer::new(Arc::clone(&tally), shard)).collect();
        (tally, writers)
    }

    /// The totals at one moment between this call and its return: everything published before
    /// the call is in them. The cost grows with the shards, not with events or users.
    pub fn totals(&self) -> Totals {
        let mut attempts = 0;
        loop {
            if let Some(totals) = self.try_totals() {
                return totals;
            }
            attempts += 1;
            if attempts % CUTS_BEFORE_YIELD == 0 {
                yield_now();
            }
        }
    }

    fn try_totals(&self) -> Option<Totals> {
        let epoch = self.epoch.fetch_add(1, Ordering::AcqRel) + 1;
        // Pairs with the fence in `SnapshotWriter::publish`.
        fence(Ordering::SeqCst);
        let generation = self.generation.load(Ordering::Acquire);
        let mut cut = Counts { generation, ..Counts::default() };
        for snapshot in &self.snapshots {
            match snapshot.read(epoch, &mut cut) {
                Reading::Taken | Reading::Older => {}
                Reading::Overtaken => return None,
            }
        }
        Some(Totals {
            total_requests: cut.events,
            unique_users: cut.first_sightings,
            sum: cut.sum.round(),
        })
    }

    /// Makes all totals zero, at one moment between this call and its return. Its cost does not
    /// grow with events or users: what is old is dropped where it is next met.
    pub fn reset(&self) {
        let _one_at_a_time = self.resetting.lock();
        let generation = self.generation.load(Ordering::Relaxed) + 1;
        // Before the generation, so that no shard of the new one finds the old count.
        self.users.forget_held(generation);
        self.generation.store(generation, Ordering::SeqCst);
    }
}

/// Counts the events of one shard.
#[derive(Debug)]
pub struct Writer {
    tally: Arc<Tally>,
    shard: usize,
    seen: Seen,
    counts: Counts,
    publisher: SnapshotWriter,
    /// Limbs of the sum that have changed since the last publication.
    changed: Extent,
    /// Events counted since the last publication.
    unpublished: u64,
}

impl Writer {
    fn new(tally: Arc<Tally>, shard: usize) -> Self {
        Writer {
            tally,
            shard,
            seen: Seen::new(),
            counts: Counts::default(),
            publisher: SnapshotWriter::new(),
            changed: Extent::EMPTY,
            unpublished: 0,
        }
    }

    /// The counters that this writer is a part of.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Counts one event of `user` with a finite `value`. It may be acknowledged once
    /// [`Writer::publish`] has returned.
    #[inline]
    pub fn count(&mut self, user: &[u8], value: f64) -> Result<(), UsersFull> {
        self.enter(self.tally.generation.load(Ordering::Acquire));
        let hash = self.tally.hasher.hash(user);
        if self.seen.contains(self.counts.generation, hash, user) {
            self.add(value);
            return Ok(());
        }
        self.count_unseen(hash, user, value)
    }

    /// Counts an event of a user that this shard has not seen.
    #[cold]
    fn count_unseen(&mut self, hash: u64, user: &[u8], value: f64) -> Result<(), UsersFull> {
        let tally = Arc::clone(&self.tally);
        loop {
            match tally.users.sight(self.counts.generation, hash, user) {
                Sighting::First(user, lock) => {
                    self.counts.first_sightings += 1;
                    self.add(value);
                    // Before the lock is released: an event that finds this user must not
                    // become visible before this one.
                    self.publish();
                    drop(lock);
                    self.seen.insert(self.counts.generation, hash, user);
                    return Ok(());
                }
                Sighting::Known(user) => {
                    self.add(value);
                    self.seen.insert(self.counts.generation, hash, user);
                    return Ok(());
                }
                Sighting::Full => return Err(UsersFull),
                Sighting::Reset => {
                    // The generation follows the held users within a few instructions.
                    self.enter(tally.generation.load(Ordering::Acquire));
                    yield_now();
                }
            }
        }
    }

    #[inline]
    fn add(&mut self, value: f64) {
        self.counts.events += 1;
        self.changed = self.changed.hull(self.counts.sum.add(value));
        self.unpublished += 1;
    }

    /// Drops what belongs to an older generation. What was not published of it was never seen,
    /// and its events were before the reset.
    #[inline]
    fn enter(&mut self, generation: u64) {
        if generation != self.counts.generation {
            self.counts = Counts { generation, ..Counts::default() };
            self.changed = Extent::EMPTY;
            self.unpublished = 0;
        }
    }

    /// Makes everything counted so far visible to every reader.
    #[inline]
    pub fn publish(&mut self) {
        if self.unpublished > 0 {
            let snapshot = &self.tally.snapshots[self.shard];
            self.publisher.publish(snapshot, &self.tally.epoch, &self.counts, self.changed);
            self.changed = Extent::EMPTY;
            self.unpublished = 0;
        }
    }
}
