//! Exact counters: one writer per shard, merged on read.
//!
//! A [`Writer`] counts into its own memory and publishes once per batch; [`Tally::totals`] merges
//! what the shards have published into one consistent cut (see `snapshot`). The value of every
//! event is added to an exact accumulator (`sum`). A user is counted by the shard that first puts
//! it into the shared set (`users`), in the same publication as the event.
//!
//! A reset raises one number, the generation, by one. A writer compares it before each event, and
//! everything that belongs to an older generation does not count from then on.

mod batch;
mod claims;
mod id;
mod ids;
mod journal;
mod snapshot;
mod sum;
mod users;

use crate::primitives::{AtomicU64, Mutex, Ordering, fence};
pub use batch::{Batch, Block, Finish};
use crossbeam_utils::CachePadded;
pub use ids::UserIds;
use journal::NewUsers;
pub use journal::{Cut, Journal};
use serde::ser::{Serialize, SerializeStruct, Serializer};
use snapshot::{Counts, Snapshot, SnapshotWriter};
use std::sync::Arc;
pub use sum::ExactSum;
use sum::Extent;
use users::{Hasher, Seen, Sight, Users};
pub use users::{StaleUsers, USERS_MAX};

/// The maximum number of shards of one tally: as many accumulators as can be merged without carries.
#[expect(clippy::cast_possible_truncation, reason = "it is 1,024")]
pub const SHARDS_MAX: usize = sum::MERGES_MAX as usize;

/// The counts of all shards since the last reset, at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Totals {
    /// The number of counted events.
    pub total_requests: u64,
    /// The number of distinct users of these events.
    pub unique_users: u64,
    /// The correctly rounded sum of the values of these events.
    pub sum: f64,
}

impl Totals {
    /// Returns the sum divided by the number of events, or `0.0` without events.
    pub fn avg(&self) -> f64 {
        match self.total_requests {
            0 => 0.0,
            total => self.sum / total as f64,
        }
    }
}

impl Serialize for Totals {
    /// Serializes the totals as `/stats` reports them, with `avg`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut totals = serializer.serialize_struct("Totals", 4)?;
        totals.serialize_field("totalRequests", &self.total_requests)?;
        totals.serialize_field("uniqueUsers", &self.unique_users)?;
        totals.serialize_field("sum", &self.sum)?;
        totals.serialize_field("avg", &self.avg())?;
        totals.end()
    }
}

/// The exact state behind the totals, so that counting can continue from it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// The number of resets.
    pub generation: u64,
    /// The number of events counted since the last reset.
    pub events: u64,
    /// The number of distinct users of these events.
    pub users: u64,
    /// The sum of the values of these events.
    pub sum: ExactSum,
}

impl State {
    /// Returns the totals that `/stats` reports.
    pub fn totals(&self) -> Totals {
        Totals { total_requests: self.events, unique_users: self.users, sum: self.sum.round() }
    }
}

/// Whether a shard had seen the user of an event that it has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// The shard had seen the user.
    Seen,
    /// The shard had not seen the user, so the set of all users was searched, which takes longer.
    Unseen,
}

/// An event was not counted, because its user is new and `--max-users` users are already held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsersFull;

/// The state that the shards share.
#[derive(Debug)]
pub struct Tally {
    /// The epoch. Every reader raises it before it reads.
    epoch: CachePadded<AtomicU64>,
    /// The generation, which every reset raises. It is compared before every event, so it has its own cache line.
    generation: CachePadded<AtomicU64>,
    /// The lock that is held during a read or a reset, so that there is only one at a time. Neither
    /// waits for a writer while it holds the lock, so it is held only briefly.
    cut: Mutex<()>,
    snapshots: Vec<Snapshot>,
    users: Users,
    hasher: Hasher,
}

impl Tally {
    /// Returns counters for `shards` shards (at most [`SHARDS_MAX`]) that hold at most `users_max`
    /// users, and the writer of each shard.
    pub fn new(shards: usize, users_max: u64) -> (Arc<Tally>, Vec<Writer>) {
        let tally = Tally::starting_at(0, shards, users_max);
        let writers = (0..shards).map(|shard| Writer::new(Arc::clone(&tally), shard)).collect();
        (tally, writers)
    }

    /// Returns counters that continue from `state`, the writer of each shard, and the committer's part.
    /// [`Tally::restore_users`] must add the users of `state` before anything is counted.
    pub fn resume(
        shards: usize,
        users_max: u64,
        state: &State,
    ) -> (Arc<Tally>, Vec<Writer>, Journal) {
        let tally = Tally::starting_at(state.generation, shards, users_max);
        let mut writers: Vec<Writer> =
            (0..shards).map(|shard| Writer::new(Arc::clone(&tally), shard)).collect();
        // Restored counts belong to the first shard.
        writers[0].start_from(state);
        let journal = Journal::new(Arc::clone(&tally), &mut writers, state);
        (tally, writers, journal)
    }

    fn starting_at(generation: u64, shards: usize, users_max: u64) -> Arc<Tally> {
        assert!(shards <= SHARDS_MAX, "the command line admits no more shards");
        let hasher = Hasher::default();
        Arc::new(Tally {
            epoch: CachePadded::new(AtomicU64::new(0)),
            generation: CachePadded::new(AtomicU64::new(generation)),
            cut: Mutex::new(()),
            snapshots: (0..shards).map(|_| Snapshot::new()).collect(),
            users: Users::new(generation, users_max, hasher.clone()),
            hasher,
        })
    }

    /// Adds the users in a store, even if there are more than `users_max`. Returns how many of them were new.
    pub fn restore_users(&self, ids: &UserIds) -> u64 {
        let generation = self.generation.load(Ordering::Acquire);
        let restored =
            ids.iter().filter(|id| self.users.restore(generation, self.hasher.key(id).hash, id));
        restored.count() as u64
    }

    /// Returns the totals at one moment between this call and its return: everything published
    /// before the call is included. The cost grows with the number of shards, not with the number
    /// of events or users. Writers cannot delay it, because the time for each shard is bounded.
    pub fn totals(&self) -> Totals {
        self.totals_with_epoch().1
    }

    /// Returns the same totals and the epoch of their cut. Every later cut includes these totals or a reset after them.
    pub fn totals_with_epoch(&self) -> (u64, Totals) {
        let (epoch, state) = self.merge(|_, _| ());
        (epoch, state.totals())
    }

    /// Returns the state at one moment, like [`Tally::totals`], and the epoch of the cut. Calls
    /// `each` with every shard and the number of users that it was the first to sight.
    fn merge(&self, mut each: impl FnMut(usize, u64)) -> (u64, State) {
        // With one reader at a time, other readers cannot raise the epoch so that a writer
        // overwrites a slot that this reader needs.
        let _one_at_a_time = self.cut.lock();
        let epoch = self.epoch.fetch_add(1, Ordering::AcqRel) + 1;
        // Pairs with the fence in `SnapshotWriter::publish`.
        fence(Ordering::SeqCst);
        let generation = self.generation.load(Ordering::Acquire);
        let mut cut = Counts { generation, ..Counts::default() };
        for (shard, snapshot) in self.snapshots.iter().enumerate() {
            let before = cut.new_users;
            snapshot.read(epoch, &mut cut);
            each(shard, cut.new_users - before);
        }
        let Counts { events, new_users: users, sum, .. } = cut;
        (epoch, State { generation, events, users, sum })
    }

    /// Sets all totals to zero, at one moment between this call and its return. The cost does not grow with the number of
    /// events or users: stale users are dropped by the next writer that meets them (see [`Writer::take_stale`]). Returns the
    /// epoch of the first cut that can include the reset.
    pub fn reset(&self) -> u64 {
        self.reset_to().1
    }

    /// Resets the totals. Returns the generation that begins with the reset, and the epoch of the first cut
    /// that can include it.
    fn reset_to(&self) -> (u64, u64) {
        let _one_at_a_time = self.cut.lock();
        let generation = self.generation.load(Ordering::Relaxed) + 1;
        // This comes before the generation, so that a shard in the new generation cannot find the old count.
        self.users.forget_held(generation);
        self.generation.store(generation, Ordering::SeqCst);
        (generation, self.epoch.load(Ordering::Relaxed) + 1)
    }

    /// Returns the number of resets.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Returns the epoch of the next cut, which is taken after this call and includes everything published before it.
    pub fn next_epoch(&self) -> u64 {
        // A load might return an epoch that has passed.
        self.epoch.fetch_add(0, Ordering::AcqRel) + 1
    }

    /// Waits for a reset that is under way.
    fn wait_for_reset(&self) {
        let _reset_is_done = self.cut.lock();
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
    /// The limbs of the sum that have changed since the last publication.
    changed: Extent,
    /// The number of events counted since the last publication.
    unpublished: u64,
    /// The generation when stale users were last taken.
    swept: u64,
    /// The queue of users that a store must keep.
    new_users: Option<Arc<Mutex<NewUsers>>>,
    /// With a store, the epoch of the first cut that includes all publications of this writer.
    settles_at: u64,
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
            swept: 0,
            new_users: None,
            settles_at: 1,
        }
    }

    /// Publishes a state as if this shard had counted it.
    fn start_from(&mut self, state: &State) {
        self.counts = Counts {
            generation: state.generation,
            events: state.events,
            new_users: state.users,
            sum: state.sum.clone(),
        };
        self.changed = Extent::ALL;
        self.unpublished = state.events;
        self.publish();
    }

    /// Allocates the set of users that this shard has seen, on the calling thread, which must be the shard's: Linux takes a
    /// page from the NUMA node of the thread that first touches it. Call this before anything is counted. A later call would be
    /// correct but slow, because each user would be looked up in the shared set again.
    pub fn move_here(&mut self) {
        self.seen = Seen::new();
    }

    /// Returns the epoch of the first cut that is certain to include all publications of this writer, for a tally
    /// created by [`Tally::resume`].
    #[inline]
    pub fn settles_at(&self) -> u64 {
        self.settles_at
    }

    /// Returns the generation of the most recently counted event.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.counts.generation
    }

    /// Returns the counters that this writer belongs to.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Counts one event of `user` with a finite `value`. It may be acknowledged once
    /// [`Writer::publish`] has returned.
    #[inline(always)]
    pub fn count(&mut self, user: &[u8], value: f64) -> Result<User, UsersFull> {
        self.enter(self.tally.generation.load(Ordering::Acquire));
        let key = self.tally.hasher.key(user);
        if self.seen.contains(self.counts.generation, &key) {
            self.add(value);
            return Ok(User::Seen);
        }
        self.count_unseen(key.hash, user, value).map(|()| User::Unseen)
    }

    /// Counts an event of a user that this shard has not seen.
    #[cold]
    fn count_unseen(&mut self, hash: u64, user: &[u8], value: f64) -> Result<(), UsersFull> {
        let tally = Arc::clone(&self.tally);
        loop {
            let generation = self.counts.generation;
            let sight = tally.users.sight(generation, hash, user, || {
                self.counts.new_users += 1;
                self.add(value);
                // This comes before the publication, so that a cut that counts this user finds its id.
                if let Some(new_users) = &self.new_users {
                    journal::lock(new_users).push(generation, user);
                }
                // This comes before another shard can find the user, whose event there must not become visible before this one.
                self.publish();
            });
            match sight {
                Sight::First(id) => {
                    self.seen.insert(generation, &tally.hasher, hash, id);
                    return Ok(());
                }
                Sight::Known(id) => {
                    self.add(value);
                    self.seen.insert(generation, &tally.hasher, hash, id);
                    return Ok(());
                }
                Sight::Full => return Err(UsersFull),
                Sight::Reset => {
                    tally.wait_for_reset();
                    self.enter(tally.generation.load(Ordering::Acquire));
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

    /// Drops the counts of an older generation, because its events came before the reset.
    #[inline]
    fn enter(&mut self, generation: u64) {
        if generation != self.counts.generation {
            // Counts of an older generation are not part of any cut. Publishing them makes their
            // acknowledgements wait for a cut that includes the reset.
            self.publish();
            self.counts = Counts { generation, ..Counts::default() };
            self.changed = Extent::EMPTY;
            self.unpublished = 0;
        }
    }

    /// Makes everything that this writer has counted visible to every reader.
    #[inline]
    pub fn publish(&mut self) {
        if self.unpublished > 0 {
            let snapshot = &self.tally.snapshots[self.shard];
            self.publisher.publish(snapshot, &self.tally.epoch, &self.counts, self.changed);
            self.changed = Extent::EMPTY;
            self.unpublished = 0;
            if self.new_users.is_some() {
                // The epoch of the publication itself does not suffice: a cut may have begun after it was read, and ended
                // before anything was written. Pairs with the fence in `Tally::merge`: a cut whose epoch is not seen here
                // sees the publication.
                fence(Ordering::SeqCst);
                self.settles_at = self.tally.epoch.load(Ordering::Relaxed) + 1;
            }
        }
    }
    /// Takes the users from before the last reset that this shard and the shared set still hold, so that the caller can drop
    /// them without delaying anybody. Call this regularly, because a shard without events would otherwise keep them. It is
    /// cheap if no reset has happened since the last call.
    pub fn take_stale(&mut self) -> Option<StaleUsers> {
        let generation = self.tally.generation.load(Ordering::Acquire);
        if generation == self.swept {
            return None;
        }
        self.swept = generation;
        let mut stale = StaleUsers::default();
        self.seen.forget(generation, &mut stale);
        self.tally.users.forget(generation, &mut stale);
        (stale.users() > 0).then_some(stale)
    }
}
