//! The published counts of one shard: a sequence lock over a few slots, with one writer.
//!
//! A slot holds the number of events, their sum, and the number of new users together, so a reader
//! that copies a whole slot cannot mix moments of one shard. Across shards, the slots that a reader
//! copies must form a consistent cut: if the cut includes an event, it also includes every event
//! that was acknowledged before that event was sent. The cut is taken without stopping any writer,
//! in the manner of Chandy and Lamport ("Distributed Snapshots", 1985): the reader raises one
//! shared number, the epoch; every publication carries the epoch that its writer saw just before;
//! and the reader takes from each shard the last publication from before its own epoch. Suppose it
//! takes an event `b`, and `a` was published before `b` was counted. The writer of `b` saw an older
//! epoch after that. So `a` was published before the reader raised the epoch, also with an older
//! epoch, and is taken, too.
//!
//! A writer therefore keeps the last publication of the previous epoch. It alternates between two
//! slots while the epoch stays the same, and sets the latest slot aside when the epoch changes.
//! Only one reader at a time raises the epoch ([`super::Tally::totals`] holds a lock), so the
//! publication that a reader needs is not overwritten while it reads.
//!
//! The sequence lock and its fences follow H. Boehm, "Can seqlocks get along with
//! programming language memory models?" (MSPC 2012). All data is atomic, so this code does
//! not need to be unsafe.

use super::sum::{ExactSum, Extent, LIMBS};
use crate::primitives::{AtomicU64, Ordering, fence};
use crossbeam_utils::CachePadded;

/// The number of slots of a snapshot: two alternate, and the third keeps the end
/// of the previous epoch.
const SLOTS: usize = 3;

/// The maximum number of scans of the slots that a reader needs. At most one publication with
/// an older epoch can overlap a read, because a writer that publishes after the reader raised
/// the epoch sees the new epoch. Once that publication is complete, it is not overwritten.
/// Before that, it can spoil one scan, and the publication after it can spoil one copy or
/// another scan; then two scans agree. An additional scan allows for a scan that sees these
/// publications in a different order.
const SCANS_MAX: usize = 6;

/// One publication, protected by its sequence lock.
#[derive(Debug)]
struct Slot {
    /// Twice the number of the publication, so a larger sequence is later. While the slot is being
    /// written, it is one less, and therefore odd.
    sequence: AtomicU64,
    /// The epoch that the writer saw just before it wrote.
    epoch: AtomicU64,
    generation: AtomicU64,
    events: AtomicU64,
    new_users: AtomicU64,
    /// The limbs that can differ from zero. The others may hold old values.
    extent: AtomicU64,
    limbs: [AtomicU64; LIMBS],
}

impl Slot {
    fn new() -> Self {
        Slot {
            sequence: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            events: AtomicU64::new(0),
            new_users: AtomicU64::new(0),
            extent: AtomicU64::new(Extent::EMPTY.to_word()),
            limbs: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Returns the sequence of the slot if it holds a complete publication from before `epoch`.
    fn sequence_before(&self, epoch: u64) -> Option<u64> {
        let sequence = self.sequence.load(Ordering::Acquire);
        let is_before = self.epoch.load(Ordering::Relaxed) < epoch;
        (is_before && sequence.is_multiple_of(2) && self.is_still(sequence)).then_some(sequence)
    }

    /// Returns whether everything that was read since `sequence` was loaded
    /// belongs to that sequence.
    fn is_still(&self, sequence: u64) -> bool {
        fence(Ordering::Acquire);
        self.sequence.load(Ordering::Relaxed) == sequence
    }

    /// Adds the publication with this sequence to `totals`, unless the shard has not counted
    /// anything since the last reset. Returns whether the slot still held the publication.
    fn add_to(&self, totals: &mut Counts, sequence: u64) -> bool {
        let generation = self.generation.load(Ordering::Relaxed);
        if generation != totals.generation {
            let is_still = self.is_still(sequence);
            assert!(!is_still || generation < totals.generation, "a reset during a read");
            return is_still;
        }
        let events = self.events.load(Ordering::Relaxed);
        let new_users = self.new_users.load(Ordering::Relaxed);
        let extent = Extent::from_word(self.extent.load(Ordering::Relaxed));
        let mut limbs = [0; LIMBS];
        let range = extent.range();
        for (limb, word) in limbs[range.clone()].iter_mut().zip(&self.limbs[range]) {
            *limb = word.load(Ordering::Relaxed) as i64;
        }
        if !self.is_still(sequence) {
            return false;
        }
        totals.events += events;
        totals.new_users += new_users;
        totals.sum.merge_limbs(extent, &limbs);
        true
    }
}

/// Everything that one shard has counted in one generation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) generation: u64,
    pub(crate) events: u64,
    /// Users that no shard had seen before.
    pub(crate) new_users: u64,
    pub(crate) sum: ExactSum,
}

/// The published state of one shard.
#[derive(Debug)]
pub(crate) struct Snapshot {
    slots: [CachePadded<Slot>; SLOTS],
}

impl Snapshot {
    pub(crate) fn new() -> Self {
        Snapshot { slots: std::array::from_fn(|_| CachePadded::new(Slot::new())) }
    }

    /// Adds the last publication from before `epoch` to `totals`, if it is of the same generation.
    /// During the call, other readers must not raise the epoch, and a reset must not happen.
    pub(crate) fn read(&self, epoch: u64, totals: &mut Counts) {
        let mut previous = None;
        for _ in 0..SCANS_MAX {
            let (latest, is_undisturbed) = self.latest_before(epoch);
            // A slot that was overwritten during the scan may have held the last
            // publication. In that case, a later publication from before `epoch` is
            // complete, and the next scan finds it.
            if (is_undisturbed || previous == latest)
                && let Some((slot, sequence)) = latest
                && self.slots[slot].add_to(totals, sequence)
            {
                return;
            }
            previous = latest;
            // The next scan must see a publication that preceded the write to an overwritten slot.
            fence(Ordering::Acquire);
        }
        panic!("a snapshot changed more often than one writer can change it");
    }

    /// Returns the slot with the last publication from before `epoch` and its sequence, as
    /// far as one scan can determine, and whether every slot held a complete publication
    /// from before `epoch`.
    fn latest_before(&self, epoch: u64) -> (Option<(usize, u64)>, bool) {
        let mut latest: Option<(usize, u64)> = None;
        let mut is_undisturbed = true;
        for (index, slot) in self.slots.iter().enumerate() {
            match slot.sequence_before(epoch) {
                Some(sequence) if latest.is_none_or(|(_, best)| best < sequence) => {
                    latest = Some((index, sequence));
                }
                Some(_) => {}
                None => is_undisturbed = false,
            }
        }
        (latest, is_undisturbed)
    }
}

/// The writer's side of a snapshot: the role of each slot, and how far each slot has fallen behind.
#[derive(Debug)]
pub(crate) struct SnapshotWriter {
    /// The number of publications.
    publications: u64,
    /// The epoch and generation of the latest slot.
    epoch: u64,
    generation: u64,
    latest: usize,
    /// The slot to write next. It is older than `latest`, and not the end of an epoch.
    spare: usize,
    /// The last publication of the previous epoch.
    end: usize,
    /// For each slot, the limbs that have changed since it was written.
    behind: [Extent; SLOTS],
}

impl SnapshotWriter {
    pub(crate) fn new() -> Self {
        SnapshotWriter {
            publications: 0,
            epoch: 0,
            generation: 0,
            latest: 0,
            spare: 1,
            end: 2,
            behind: [Extent::EMPTY; SLOTS],
        }
    }

    /// Publishes `counts`. The limbs in `changed` differ from the last publication. Everything
    /// counted before the call is visible to every reader after it.
    pub(crate) fn publish(
        &mut self,
        snapshot: &Snapshot,
        epoch: &AtomicU64,
        counts: &Counts,
        changed: Extent,
    ) {
        // Pairs with the fence in `Tally::merge`: everything that a writer that sees an older epoch
        // here knows about happened before the reader's epoch, so the reader sees it.
        fence(Ordering::SeqCst);
        let epoch = epoch.load(Ordering::Relaxed);
        // In a new generation, limbs that became zero were not reported as changed.
        let changed = if counts.generation == self.generation { changed } else { Extent::ALL };
        for behind in &mut self.behind {
            *behind = behind.hull(changed);
        }
        let target = self.spare;
        let slot = &snapshot.slots[target];
        self.publications += 1;
        let sequence = 2 * self.publications;
        slot.sequence.store(sequence - 1, Ordering::Relaxed);
        fence(Ordering::Release);
        slot.epoch.store(epoch, Ordering::Relaxed);
        slot.generation.store(counts.generation, Ordering::Relaxed);
        slot.events.store(counts.events, Ordering::Relaxed);
        slot.new_users.store(counts.new_users, Ordering::Relaxed);
        slot.extent.store(counts.sum.extent().to_word(), Ordering::Relaxed);
        let behind = self.behind[target].range();
        for (word, limb) in slot.limbs[behind.clone()].iter().zip(&counts.sum.limbs()[behind]) {
            word.store(*limb as u64, Ordering::Relaxed);
        }
        slot.sequence.store(sequence, Ordering::Release);

        self.behind[target] = Extent::EMPTY;
        if epoch == self.epoch {
            self.spare = self.latest;
        } else {
            self.spare = self.end;
            self.end = self.latest;
        }
        self.latest = target;
        self.epoch = epoch;
        self.generation = counts.generation;
    }
}
