//! Events that are counted either together or not at all. The work takes many turns, between which the shard
//! counts other events.
//!
//! A batch keeps its events to itself until [`Writer::finish_batch`] publishes all of them together. Among the users that its
//! shard has not seen, it claims those that no shard has counted: see `claims`. If the totals are reset in the meantime, all of
//! its events precede the reset: they do not count, as if they had been published just before it.

use super::claims::{Claim, Claimed};
use super::users::{Hold, Key};
use super::{ExactSum, Tally, UserIds, Writer, journal};
use crate::primitives::Ordering;
use std::collections::HashSet;
use std::sync::Arc;

/// The number of events that are looked up together: more than a processor can overlap, and few enough to stay in its L1 cache.
const BLOCK: usize = 64;

/// Events of a batch that will be looked up together, each with its position `P` in the batch. The memory that each lookup
/// reads is loaded into the cache while the other users are hashed.
#[derive(Debug)]
pub struct Block<'a, P> {
    /// The keys of the events. Until the lookup, only their users are set.
    keys: [Key<'a>; BLOCK],
    /// The events whose users are not in the first two slots. Used only during a lookup.
    missed: [u32; BLOCK],
    values: [f64; BLOCK],
    places: [P; BLOCK],
    len: usize,
}

impl<'a, P> Block<'a, P> {
    /// The maximum number of events in a block.
    pub const EVENTS_MAX: usize = BLOCK;

    /// Appends an event with a finite value.
    ///
    /// # Panics
    ///
    /// The block is full.
    #[inline(always)]
    pub fn push(&mut self, user: &'a [u8], value: f64, place: P) {
        let at = self.len;
        (self.keys[at].user, self.values[at], self.places[at]) = (user, value, place);
        self.len = at + 1;
    }

    /// Returns whether the block is full.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.len == BLOCK
    }
}

impl<P: Copy + Default> Default for Block<'_, P> {
    /// Creates an empty block.
    fn default() -> Self {
        let places = [P::default(); BLOCK];
        Block { keys: [Key::NONE; BLOCK], missed: [0; BLOCK], values: [0.0; BLOCK], places, len: 0 }
    }
}

/// Events that are counted together or, if the batch is dropped, not at all.
#[derive(Debug)]
pub struct Batch {
    generation: u64,
    events: u64,
    sum: ExactSum,
    claims: Option<Claims>,
}

/// The users that a batch has claimed.
#[derive(Debug)]
struct Claims {
    tally: Arc<Tally>,
    claim: Arc<Claim>,
    /// The line of each user's first event.
    lines: Vec<u64>,
    /// The ids of the users, if a store must keep them.
    ids: UserIds,
}

impl Drop for Claims {
    fn drop(&mut self) {
        self.claim.drop_unsettled();
        self.tally.users.end_claiming();
    }
}

/// The end of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The batch is counted, and becomes visible once [`Writer::publish`] has returned.
    Counted,
    /// The batch is counted, and a reset after it has set the totals to zero.
    BeforeReset {
        /// The epoch of the first cut that has the reset.
        settles_at: u64,
    },
    /// The batch was not counted, because more users would be held than are allowed.
    UsersFull {
        /// The line of the first event whose user cannot be held.
        line: u64,
    },
}

impl Batch {
    /// Returns the number of events in the batch.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Returns the generation when the batch began.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

impl Writer {
    /// Begins a batch. It may be acknowledged once [`Writer::finish_batch`] and then [`Writer::publish`] have returned.
    pub fn begin_batch(&mut self) -> Batch {
        self.enter(self.tally.generation.load(Ordering::Acquire));
        Batch {
            generation: self.counts.generation,
            events: 0,
            sum: ExactSum::default(),
            claims: None,
        }
    }

    /// Adds an event with a finite value to a batch. Returns whether its user is known. If not, the user must be claimed with
    /// [`Writer::claim`] before the batch is finished.
    pub fn add_to_batch(&self, batch: &mut Batch, user: &[u8], value: f64) -> bool {
        batch.sum.add(value);
        batch.events += 1;
        self.seen.contains(batch.generation, &self.tally.hasher.key(user))
    }

    /// Moves the events of a block to a batch, as with [`Writer::add_to_batch`]. Appends the positions of events whose users
    /// are not known to `unseen`.
    pub fn add_block_to_batch<P: Copy>(
        &self,
        batch: &mut Batch,
        block: &mut Block<'_, P>,
        unseen: &mut Vec<P>,
    ) {
        let len = std::mem::take(&mut block.len);
        if len == 0 {
            return;
        }
        for key in &mut block.keys[..len] {
            *key = self.tally.hasher.key(key.user);
            self.seen.prefetch(key);
        }
        // This avoids branches, because a processor cannot predict well which users are in the first two slots.
        let mut missed = 0;
        for (key, at) in block.keys[..len].iter().zip(0..) {
            block.missed[missed] = at;
            missed += usize::from(!self.seen.contains_early(batch.generation, key));
        }
        for at in &block.missed[..missed] {
            let at = *at as usize;
            if !self.seen.contains(batch.generation, &block.keys[at]) {
                unseen.push(block.places[at]);
            }
        }
        batch.sum.add_all(&block.values[..len]);
        batch.events += len as u64;
    }

    /// Lets a batch claim users. Returns whether it may. Only one batch at a time may claim users, until it is
    /// finished or dropped.
    pub fn may_claim(&mut self, batch: &mut Batch) -> bool {
        if batch.claims.is_none() && self.tally.users.begin_claiming() {
            batch.claims = Some(Claims {
                tally: Arc::clone(&self.tally),
                claim: Claim::new(),
                lines: Vec::new(),
                ids: UserIds::default(),
            });
        }
        batch.claims.is_some()
    }

    /// Claims the user of an event on a line of a batch that [may claim](Writer::may_claim), unless an event of the
    /// user is already counted.
    pub fn claim(&mut self, batch: &mut Batch, user: &[u8], line: u64) {
        let Batch { generation, claims: Some(claims), .. } = batch else {
            panic!("a batch asks before it claims users");
        };
        self.enter(self.tally.generation.load(Ordering::Acquire));
        // After a reset, the users of the batch are not needed.
        if self.counts.generation != *generation {
            return;
        }
        let key = self.tally.hasher.key(user);
        if self.seen.contains(*generation, &key) {
            return;
        }
        let hash = key.hash;
        let index = claims.lines.len();
        match self.tally.users.claim(*generation, hash, user, &claims.claim, index) {
            Claimed::New => {
                claims.lines.push(line);
                if self.new_users.is_some() {
                    claims.ids.push(user);
                }
            }
            // The end of the batch finds the reset.
            Claimed::Already | Claimed::Reset => {}
            Claimed::Known(id) => self.seen.insert(*generation, &self.tally.hasher, hash, id),
        }
    }

    /// Counts all events of a batch together, if its users can be held.
    pub fn finish_batch(&mut self, batch: Batch) -> Finish {
        self.enter(self.tally.generation.load(Ordering::Acquire));
        if batch.generation != self.counts.generation {
            return self.before_reset();
        }
        let Some(mut claims) = batch.claims else {
            self.add_batch(batch.events, &batch.sum);
            return Finish::Counted;
        };
        let tally = Arc::clone(&self.tally);
        let claimed = claims.lines.len();
        let hold = tally.users.settle(batch.generation, &claims.claim, claimed, |lost| {
            self.counts.new_users += (claimed - lost.len()) as u64;
            self.add_batch(batch.events, &batch.sum);
            // This comes before the publication, so that a cut that counts these users finds their ids.
            if let Some(new_users) = &self.new_users {
                if !lost.is_empty() {
                    claims.ids = claims.ids.without(lost);
                }
                journal::lock(new_users).append(batch.generation, &mut claims.ids);
            }
            // This comes before another shard can find the users, so that their other events do not become
            // visible before this batch.
            self.publish();
        });
        match hold {
            Hold::Held => Finish::Counted,
            Hold::Full { room } => Finish::UsersFull { line: claims.line_without_room(room) },
            Hold::Reset => self.before_reset(),
        }
    }

    fn add_batch(&mut self, events: u64, sum: &ExactSum) {
        self.counts.events += events;
        self.changed = self.changed.hull(self.counts.sum.absorb(sum));
        self.unpublished += events;
    }

    /// Returns the end of a batch that a reset has overtaken.
    fn before_reset(&self) -> Finish {
        self.tally.wait_for_reset();
        Finish::BeforeReset { settles_at: self.tally.epoch.load(Ordering::Relaxed) + 1 }
    }
}

impl Claims {
    /// Returns the line of the first user without room, if there is room for this number of the users that were not lost.
    fn line_without_room(&self, room: u64) -> u64 {
        let lost: HashSet<usize> = self.claim.lock().lost.iter().copied().collect();
        let is_kept = |index: &usize| !lost.contains(index);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let index = (0..self.lines.len()).filter(is_kept).nth(room);
        // A user that was lost in the meantime may have made room.
        index.or(self.lines.len().checked_sub(1)).map_or(1, |index| self.lines[index])
    }
}
