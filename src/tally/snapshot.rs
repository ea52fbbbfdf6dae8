//! What one shard has published: a sequence lock over a few slots, with one writer.
//!
//! A slot holds an event's count, its value and its user's first sighting together, so a
//! reader that copies a slot whole cannot mix moments of one shard. To belong together over
//! all shards, the slots a reader copies must be a consistent cut: with an event, every event
//! that was acknowledged before it was sent. The cut is made without stopping anyone, in the
//! manner of Chandy and Lamport ("Distributed Snapshots", 1985): the reader raises one shared
//! number, the epoch; every slot carries the epoch that its writer saw just before it wrote;
//! the reader takes from each shard the last slot from before its own epoch. Suppose that it
//! takes an event `b`, and that `a` was published before `b` was counted. The writer of `b`
//! saw an older epoch after that, so `a` was published before the reader raised it, and with
//! an older epoch still: it is taken too.
//!
//! A writer therefore keeps the last slot of the epochs before. It alternates between two
//! slots while the epoch stands, and sets one aside when it moves. Readers that raise the epoch
//! faster than a slow one can read push its slots out; the slow one tries again.
//!
//! Sequence lock and fences after H. Boehm, "Can seqlocks get along with programming language
//! memory models?" (MSPC 2012). All data are atomics, so no code here is unsafe.

use super::sum::{ExactSum, Extent, LIMBS};
use crate::primitives::{AtomicU64, Ordering, fence};
use crossbeam_utils::CachePadded;

/// Slots of a snapshot: two that alternate and two that keep the ends of earlier epochs.
const SLOTS: usize = 4;

/// One published state, behind its sequence lock.
#[derive(Debug)]
struct Slot {
    /// Odd while the slot is being written.
    sequence: AtomicU64,
    /// Counts the publications of the snapshot: the larger, the later.
    order: AtomicU64,
    /// The epoch that the writer saw just before it wrote.
    epoch: AtomicU64,
    generation: AtomicU64,
    events: AtomicU64,
    first_sightings: AtomicU64,
    /// The limbs that can differ from zero; the others hold leftovers.
    extent: AtomicU64,
    limbs: [AtomicU64; LIMBS],
}

impl Slot {
    fn new() -> Self {
        Slot {
            sequence: AtomicU64::new(0),
            order: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            events: AtomicU64::new(0),
            first_sightings: AtomicU64::new(0),
            extent: AtomicU64::new(Extent::EMPTY.to_word()),
            limbs: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Sequence, order and epoch of a slot that nobody is writing.
    fn head(&self) -> Option<(u64, u64, u64)> {
        let sequence = self.sequence.load(Ordering::Acquire);
        let order = self.order.load(Ordering::Relaxed);
        let epoch = self.epoch.load(Ordering::Relaxed);
        (sequence.is_multiple_of(2) && self.is_still(sequence)).then_some((sequence, order, epoch))
    }

    /// Whether everything read since `sequence` was loaded belongs to it.
    fn is_still(&self, sequence: u64) -> bool {
        fence(Ordering::Acquire);
        self.sequence.load(Ordering::Relaxed) == sequence
    }
}

/// Everything that one shard has counted in one generation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) generation: u64,
    pub(crate) events: u64,
    /// Users that no shard had seen before.
    pub(crate) first_sightings: u64,
    pub(crate) sum: ExactSum,
}

/// The published state of one shard.
#[derive(Debug)]
pub(crate) struct Snapshot {
    slots: [CachePadded<Slot>; SLOTS],
}

/// What a reader found on a snapshot.
#[derive(Debug)]
pub(crate) enum Reading {
    /// The shard's state in the cut, added to the totals.
    Taken,
    /// The shard has counted nothing in this generation: it has not heard of the reset yet.
    Older,
    /// The state was overwritten, or belongs to a later generation: start over.
    Overtaken,
}

impl Snapshot {
    pub(crate) fn new() -> Self {
        Snapshot { slots: std::array::from_fn(|_| CachePadded::new(Slot::new())) }
    }

    /// Adds the last state from before `epoch` to `totals`, if it is of their generation.
    /// When a state is overtaken, `totals` may hold a part of it and are spoilt.
    pub(crate) fn read(&self, epoch: u64, totals: &mut Counts) -> Reading {
        let latest = self
            .slots
            .iter()
            .filter_map(|slot| slot.head().map(|head| (slot, head)))
            .filter(|(_, (_, _, slot_epoch))| *slot_epoch < epoch)
            .max_by_key(|(_, (_, order, _))| *order);
        let Some((slot, (sequence, _, _))) = latest else {
            return Reading::Overtaken;
        };
        let generation = slot.generation.load(Ordering::Relaxed);
        if generation != totals.generation {
            return match slot.is_still(sequence) && generation < totals.generation {
                true => Reading::Older,
                false => Reading::Overtaken,
            };
        }
        let events = slot.events.load(Ordering::Relaxed);
        let first_sightings = slot.first_sightings.load(Ordering::Relaxed);
        let extent = Extent::from_word(slot.extent.load(Ordering::Relaxed));
        let mut limbs = [0; LIMBS];
        let range = extent.range();
        for (limb, word) in limbs[range.clone()].iter_mut().zip(&slot.limbs[range]) {
            *limb = word.load(Ordering::Relaxed) as i64;
        }
        if !slot.is_still(sequence) {
            return Reading::Overtaken;
        }
        totals.events += events;
        totals.first_sightings += first_sightings;
        totals.sum.merge_limbs(extent, &limbs);
        Reading::Taken
    }
}

/// The writer's side of a snapshot: which slot is which, and how far each has fallen behind.
#[derive(Debug)]
pub(crate) struct SnapshotWriter {
    order: u64,
    /// The epoch and generation of the latest slot.
    epoch: u64,
    generation: u64,
    latest: usize,
    /// The slot to write next. It is older than `latest` and nobody's end of an epoch.
    spare: usize,
    /// Ends of earlier epochs, oldest first.
    ends: [usize; SLOTS - 2],
    /// For each slot, the limbs that have changed since it was written.
    behind: [Extent; SLOTS],
}

impl SnapshotWriter {
    pub(crate) fn new() -> Self {
        SnapshotWriter {
            order: 0,
            epoch: 0,
            generation: 0,
            latest: 0,
            spare: 1,
            ends: [2, 3],
            behind: [Extent::EMPTY; SLOTS],
        }
    }

    /// Publishes `counts`, of which the limbs in `changed` differ from what was published last.
    /// Everything counted before the call is visible to every reader after it.
    pub(crate) fn publish(
        &mut self,
        snapshot: &Snapshot,
        epoch: &AtomicU64,
        counts: &Counts,
        changed: Extent,
    ) {
        // Pairs with the fence in `Tally::totals`: a writer that sees an older epoch here has
        // everything it knows of before the reader's epoch, and the reader sees all that.
        fence(Ordering::SeqCst);
        let epoch = epoch.load(Ordering::Relaxed);
        // In another generation a limb that is zero again was not reported as changed.
        let changed = if counts.generation == self.generation { changed } else { Extent::ALL };
        for behind in &mut self.behind {
            *behind = behind.hull(changed);
        }
        let target = self.spare;
        let slot = &snapshot.slots[target];
        self.order += 1;
        let sequence = slot.sequence.load(Ordering::Relaxed);
        slot.sequence.store(sequence + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        slot.order.store(self.order, Ordering::Relaxed);
        slot.epoch.store(epoch, Ordering::Relaxed);
        slot.generation.store(counts.generation, Ordering::Relaxed);
        slot.events.store(counts.events, Ordering::Relaxed);
        slot.first_sightings.store(counts.first_sightings, Ordering::Relaxed);
        slot.extent.store(counts.sum.extent().to_word(), Ordering::Relaxed);
        let behind = self.behind[target].range();
        for (word, limb) in slot.limbs[behind.clone()].iter().zip(&counts.sum.limbs()[behind]) {
            word.store(*limb as u64, Ordering::Relaxed);
        }
        slot.sequence.store(sequence + 2, Ordering::Release);

        self.behind[target] = Extent::EMPTY;
        if epoch == self.epoch {
            self.spare = self.latest;
        } else {
            self.spare = self.ends[0];
            self.ends.rotate_left(1);
            self.ends[SLOTS - 3] = self.latest;
        }
        self.latest = target;
        self.epoch = epoch;
        self.generation = counts.generation;
    }
}
