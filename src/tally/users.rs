//! The users that have been seen: one shared, striped set that compares bytes, and each shard's own copy of the users that it
//! has seen. Only a shard's first sighting of a user accesses the shared set.
//!
//! Short ids are held in the tables themselves: a lookup usually reads only one entry. A short id takes 24 bytes per slot. A
//! table that has just grown uses 7 of every 16 slots, so an id takes at most 55 bytes in each of the two sets. A long id takes
//! 25 bytes per slot for its hash, a pointer, and a control byte in such tables, plus the bytes that both sets point to.

use super::claims::{Claim, Claimed, End, Pending};
use super::id::{Id, Short};
use crate::primitives::{AtomicU64, Mutex, MutexGuard, Ordering, RandomState};
use crossbeam_utils::CachePadded;
use hashbrown::HashTable;
use prefetch_index::prefetch_index;
use std::hash::{BuildHasher, Hasher as _};
use std::sync::Arc;

/// The number of stripes of a set. A table moves all its entries when it grows. Stripes keep each
/// move short: about 40,000 entries with ten million users.
pub(crate) const STRIPES: usize = 256;

/// The number of bits of [`Users::held`] that count users. The others are the low bits of the generation.
const HELD_BITS: u32 = 40;
/// The maximum number of users that can be held, and therefore the largest `--max-users`.
pub const USERS_MAX: u64 = (1 << HELD_BITS) - 1;

/// Hashes user ids, with a new key in every process so that nobody can prepare collisions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hasher(RandomState);

impl Hasher {
    /// Returns the key of a user.
    #[inline(always)]
    pub(crate) fn key<'a>(&self, user: &'a [u8]) -> Key<'a> {
        match Short::new(user) {
            Some(short) => Key { hash: self.hash_short(&short), short, user },
            None => Key { hash: self.hash_long(user), short: Short::EMPTY, user },
        }
    }

    /// Returns the hash of a short id, computed from its words regardless of its length.
    #[inline(always)]
    fn hash_short(&self, short: &Short) -> u64 {
        let [first, second, third] = short.0;
        let mut hasher = self.0.build_hasher();
        hasher.write_u128(u128::from(first) | u128::from(second) << 64);
        hasher.write_u64(third);
        hasher.finish()
    }

    #[inline(never)]
    fn hash_long(&self, user: &[u8]) -> u64 {
        // `write` hashes the length as well, so the length that `Hash` would write is not needed.
        let mut hasher = self.0.build_hasher();
        hasher.write(user);
        hasher.finish()
    }
}

/// The key of a user, computed once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<'a> {
    pub(crate) hash: u64,
    /// The short id; empty if the id is long.
    short: Short,
    pub(crate) user: &'a [u8],
}

impl Key<'_> {
    pub(crate) const NONE: Key<'static> = Key { hash: 0, short: Short::EMPTY, user: &[] };
}

/// A set of short ids: a table with open addressing. Its slots hold only the ids, so most users are found in the first
/// cache line that is read.
#[derive(Debug, Default)]
struct ShortSet {
    /// The slots. Their number is zero or a power of two, and at least one in eight is empty.
    slots: Box<[Short]>,
    len: usize,
}

impl ShortSet {
    const SLOTS_MIN: usize = 16;

    /// Returns the first slot for an id with this hash, if there are slots.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low bits are what is wanted")]
    fn first_place(&self, hash: u64) -> usize {
        hash as usize & self.slots.len().wrapping_sub(1)
    }

    /// Prefetches the first two slots for an id with this hash. They nearly always suffice, and take at most two cache lines.
    #[inline(always)]
    fn prefetch(&self, hash: u64) {
        let place = self.first_place(hash);
        prefetch_index(&*self.slots, place);
        prefetch_index(&*self.slots, place + 1);
    }

    #[inline(always)]
    fn contains(&self, hash: u64, short: &Short) -> bool {
        let mask = self.slots.len().wrapping_sub(1);
        let (mut at, mut step) = (self.first_place(hash), 0);
        while let Some(slot) = self.slots.get(at) {
            if slot.is(short) {
                return true;
            }
            if slot.is_empty() {
                return false;
            }
            // The step grows by one each time. This visits all slots if their number is a power of two.
            step += 1;
            at = (at + step) & mask;
        }
        false
    }

    /// Reports whether an id is in its first or second slot.
    #[inline(always)]
    fn has_early(&self, hash: u64, short: &Short) -> bool {
        let mask = self.slots.len().wrapping_sub(1);
        let first = self.first_place(hash);
        match (self.slots.get(first), self.slots.get((first + 1) & mask)) {
            (Some(first), Some(second)) => first.is(short) | second.is(short),
            _ => false,
        }
    }

    /// Adds an id that is not in the set. `hash_of` computes the hashes of ids that move when the table grows.
    fn insert(&mut self, hash_of: impl Fn(&Short) -> u64, hash: u64, short: Short) {
        if (self.len + 1) * 8 > self.slots.len() * 7 {
            let slots = vec![Short::EMPTY; (self.slots.len() * 2).max(Self::SLOTS_MIN)];
            let mut grown = ShortSet { slots: slots.into(), len: self.len };
            for slot in self.slots.iter().filter(|slot| !slot.is_empty()) {
                grown.place(hash_of(slot), *slot);
            }
            *self = grown;
        }
        self.place(hash, short);
        self.len += 1;
    }

    /// Puts an id into the first empty slot of its probe sequence.
    fn place(&mut self, hash: u64, short: Short) {
        let mask = self.slots.len() - 1;
        let (mut at, mut step) = (self.first_place(hash), 0);
        while !self.slots[at].is_empty() {
            step += 1;
            at = (at + step) & mask;
        }
        self.slots[at] = short;
    }
}

/// The ids of some users.
#[derive(Debug, Default)]
struct Table {
    short: ShortSet,
    /// Long ids with their hashes, so that a table grows without reading the ids.
    long: HashTable<(u64, Arc<[u8]>)>,
}

impl Table {
    fn len(&self) -> usize {
        self.short.len + self.long.len()
    }

    #[inline(always)]
    fn contains(&self, key: &Key<'_>) -> bool {
        match key.short.is_empty() {
            false => self.short.contains(key.hash, &key.short),
            true => self.find_long(key.hash, key.user).is_some(),
        }
    }

    fn find(&self, hash: u64, user: &[u8]) -> Option<Id> {
        match Short::new(user) {
            Some(short) => self.short.contains(hash, &short).then_some(Id::Short(short)),
            None => self.find_long(hash, user).cloned().map(Id::Long),
        }
    }

    /// Finds a long id. This is a separate function so that the lookup of a short id does not save registers.
    #[inline(never)]
    fn find_long(&self, hash: u64, user: &[u8]) -> Option<&Arc<[u8]>> {
        let (_, id) = self.long.find(hash, |(_, id)| **id == *user)?;
        Some(id)
    }

    /// Adds a user that is not in the table. `hash_of` computes the hashes of ids that move when the table grows.
    fn insert(&mut self, hash_of: impl Fn(&Short) -> u64, hash: u64, id: Id) {
        match id {
            Id::Short(short) => {
                self.short.insert(hash_of, hash, short);
            }
            Id::Long(id) => {
                self.long.insert_unique(hash, (hash, id), |(hash, _)| *hash);
            }
        }
    }
}

/// Users of earlier generations, which do not count anymore. Dropping them takes time that grows
/// with their number: about a second for ten million.
#[derive(Debug, Default)]
pub struct StaleUsers {
    tables: Vec<Table>,
    pending: Vec<HashTable<Pending>>,
}

impl StaleUsers {
    /// Returns the number of users. A user that was taken from two sets counts twice.
    pub fn users(&self) -> usize {
        let pending: usize = self.pending.iter().map(HashTable::len).sum();
        self.tables.iter().map(Table::len).sum::<usize>() + pending
    }
}

/// One table of a set, with the users sighted in one generation. It is aligned so that the fields that a lookup of a short id
/// reads are in one cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Stripe {
    generation: u64,
    users: Table,
}

impl Stripe {
    /// Drops the users of earlier generations.
    fn enter(&mut self, generation: u64) {
        if self.generation != generation {
            *self = Stripe { generation, users: Table::default() };
        }
    }

    /// Moves the users of earlier generations to `stale`.
    fn forget(&mut self, generation: u64, stale: &mut StaleUsers) {
        if self.generation < generation {
            self.generation = generation;
            let users = std::mem::take(&mut self.users);
            if users.len() > 0 {
                stale.tables.push(users);
            }
        }
    }
}

/// Returns the stripe of a hash. It is taken from bits that the table inside does not use first.
#[inline]
fn stripe_of(hash: u64) -> usize {
    (hash >> 40) as usize % STRIPES
}

/// The users that one shard has seen.
#[derive(Debug)]
pub(crate) struct Seen(Box<[Stripe; STRIPES]>);

impl Seen {
    pub(crate) fn new() -> Self {
        let stripes: Vec<Stripe> = (0..STRIPES).map(|_| Stripe::default()).collect();
        Seen(stripes.try_into().expect("as many as were made"))
    }

    #[inline(always)]
    pub(crate) fn contains(&self, generation: u64, key: &Key<'_>) -> bool {
        let stripe = &self.0[stripe_of(key.hash)];
        stripe.generation == generation && stripe.users.contains(key)
    }

    /// Reports whether a user has a short id and is in its first or second slot, as most users are.
    #[inline(always)]
    pub(crate) fn contains_early(&self, generation: u64, key: &Key<'_>) -> bool {
        let stripe = &self.0[stripe_of(key.hash)];
        let is_there = stripe.users.short.has_early(key.hash, &key.short);
        is_there & !key.short.is_empty() & (stripe.generation == generation)
    }

    /// Prefetches the memory that a lookup of a short id reads.
    #[inline(always)]
    pub(crate) fn prefetch(&self, key: &Key<'_>) {
        self.0[stripe_of(key.hash)].users.short.prefetch(key.hash);
    }

    pub(crate) fn insert(&mut self, generation: u64, hasher: &Hasher, hash: u64, id: Id) {
        let stripe = &mut self.0[stripe_of(hash)];
        stripe.enter(generation);
        stripe.users.insert(|short| hasher.hash_short(short), hash, id);
    }

    /// Moves the users of earlier generations to `stale`.
    pub(crate) fn forget(&mut self, generation: u64, stale: &mut StaleUsers) {
        for stripe in self.0.iter_mut() {
            stripe.forget(generation, stale);
        }
    }
}

/// One stripe of the set that all shards share.
#[derive(Debug, Default)]
struct SharedStripe {
    known: Stripe,
    /// Users that a batch has claimed, and that were not found again after it ended: see `claims`.
    pending: HashTable<Pending>,
}

impl SharedStripe {
    /// Drops the users of earlier generations. Returns false if the stripe is already in a later generation.
    fn enter(&mut self, generation: u64) -> bool {
        if self.known.generation < generation {
            *self = SharedStripe::default();
            self.known.generation = generation;
        }
        self.known.generation == generation
    }

    /// Moves the users of earlier generations to `stale`.
    fn forget(&mut self, generation: u64, stale: &mut StaleUsers) {
        if self.known.generation < generation && !self.pending.is_empty() {
            stale.pending.push(std::mem::take(&mut self.pending));
        }
        self.known.forget(generation, stale);
    }

    /// Removes a user from the claimed users.
    fn take_pending(&mut self, hash: u64, user: &[u8]) -> Option<Pending> {
        if self.pending.is_empty() {
            return None;
        }
        let entry = self.pending.find_entry(hash, |pending| pending.id.is(user)).ok()?;
        Some(entry.remove().0)
    }

    /// Settles the users of ended batches if the table would otherwise grow. The table has filled up since it last grew or was
    /// scanned, so the cost per claim is low.
    fn make_room(&mut self, hasher: &Hasher) {
        if self.pending.len() < self.pending.capacity() {
            return;
        }
        let known = &mut self.known.users;
        for Pending { hash, id, claim, .. } in
            self.pending.extract_if(|held| held.claim.has_ended())
        {
            if claim.is_counted() {
                known.insert(|short| hasher.hash_short(short), hash, id);
            }
        }
    }
}

/// The users that any shard has seen.
#[derive(Debug)]
pub(crate) struct Users {
    stripes: Vec<CachePadded<Mutex<SharedStripe>>>,
    /// The number of users held in a generation: the low bits of the generation, above [`HELD_BITS`] bits of count.
    held: CachePadded<AtomicU64>,
    users_max: u64,
    hasher: Hasher,
    /// Not zero while a batch claims users, which only one batch does at a time.
    claiming: CachePadded<AtomicU64>,
}

/// The result of looking up a user that the shard itself has not seen.
pub(crate) enum Sight {
    /// No shard had counted the user.
    First(Id),
    /// Another shard has counted the user.
    Known(Id),
    /// A reset happened in between, or is under way: the event belongs to a later generation.
    Reset,
    /// The set is full.
    Full,
}

impl Users {
    pub(crate) fn new(generation: u64, users_max: u64, hasher: Hasher) -> Self {
        Users {
            stripes: (0..STRIPES)
                .map(|_| CachePadded::new(Mutex::new(SharedStripe::default())))
                .collect(),
            held: CachePadded::new(AtomicU64::new(generation << HELD_BITS)),
            users_max: users_max.min(USERS_MAX),
            hasher,
            claiming: CachePadded::new(AtomicU64::new(0)),
        }
    }

    /// Looks up a user in `generation`, and adds it if there is room. If no shard had counted the user, `count` is called to
    /// publish an event of the user before any shard can find the user, so a shard that finds the user publishes later.
    pub(crate) fn sight(
        &self,
        generation: u64,
        hash: u64,
        user: &[u8],
        count: impl FnOnce(),
    ) -> Sight {
        let mut stripe = lock(&self.stripes[stripe_of(hash)]);
        if !stripe.enter(generation) {
            return Sight::Reset;
        }
        if let Some(known) = stripe.known.users.find(hash, user) {
            return Sight::Known(known);
        }
        let pending = stripe.take_pending(hash, user);
        let mut claimed = pending.as_ref().map(|pending| pending.claim.lock());
        let is_counted = claimed.as_ref().is_some_and(|claimed| claimed.end == Some(End::Counted));
        let hold = if is_counted { Hold::Held } else { self.hold(generation, 1) };
        match hold {
            Hold::Held => {
                let id = Id::new(user);
                stripe.known.users.insert(|short| self.hasher.hash_short(short), hash, id.clone());
                if is_counted {
                    return Sight::Known(id);
                }
                if let Some((claimed, pending)) = claimed.as_mut().zip(pending.as_ref()) {
                    claimed.lose(pending.index);
                }
                // The lock of the claim is also held, so its batch is published after this.
                count();
                Sight::First(id)
            }
            Hold::Full { .. } | Hold::Reset => {
                drop(claimed);
                if let Some(pending) = pending {
                    stripe.pending.insert_unique(hash, pending, |pending| pending.hash);
                }
                if hold == Hold::Reset { Sight::Reset } else { Sight::Full }
            }
        }
    }

    /// Begins to claim users for a batch, unless another batch is claiming users. If it returns true,
    /// [`Users::end_claiming`] must follow.
    pub(crate) fn begin_claiming(&self) -> bool {
        self.claiming.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Lets another batch claim users. The claims of the current batch must be settled or dropped.
    pub(crate) fn end_claiming(&self) {
        self.claiming.store(0, Ordering::Release);
    }

    /// Claims a user for a batch, as its claim number `index`, if no shard has counted the user. Call this between
    /// [`Users::begin_claiming`] and [`Users::end_claiming`].
    pub(crate) fn claim(
        &self,
        generation: u64,
        hash: u64,
        user: &[u8],
        claim: &Arc<Claim>,
        index: usize,
    ) -> Claimed {
        let mut stripe = lock(&self.stripes[stripe_of(hash)]);
        if !stripe.enter(generation) {
            return Claimed::Reset;
        }
        if let Some(known) = stripe.known.users.find(hash, user) {
            return Claimed::Known(known);
        }
        let id = match stripe.take_pending(hash, user) {
            Some(own) if Arc::ptr_eq(&own.claim, claim) => {
                stripe.pending.insert_unique(hash, own, |pending| pending.hash);
                return Claimed::Already;
            }
            Some(Pending { id, claim: earlier, .. }) if earlier.is_counted() => {
                stripe.known.users.insert(|short| self.hasher.hash_short(short), hash, id.clone());
                return Claimed::Known(id);
            }
            Some(Pending { id, claim: earlier, .. }) => {
                debug_assert!(earlier.has_ended(), "one batch claims users at a time");
                id
            }
            None => Id::new(user),
        };
        stripe.make_room(&self.hasher);
        let pending = Pending { hash, id, index, claim: Arc::clone(claim) };
        stripe.pending.insert_unique(hash, pending, |pending| pending.hash);
        Claimed::New
    }

    /// Settles the `claimed` users that a batch has claimed. Calls `count` with the numbers of the claims that were lost to
    /// other events, in any order, to publish the batch before a shard finds any of the other users. If the users cannot be
    /// held, nothing is counted.
    pub(crate) fn settle(
        &self,
        generation: u64,
        claim: &Claim,
        claimed: usize,
        count: impl FnOnce(&[usize]),
    ) -> Hold {
        let mut state = claim.lock();
        let hold = self.hold(generation, (claimed - state.lost.len()) as u64);
        if hold == Hold::Held {
            count(&state.lost);
            state.end = Some(End::Counted);
        }
        hold
    }

    /// Adds a user that a store held, regardless of the limit. Returns whether the user is new.
    pub(crate) fn restore(&self, generation: u64, hash: u64, user: &[u8]) -> bool {
        let mut stripe = lock(&self.stripes[stripe_of(hash)]);
        stripe.enter(generation);
        let users = &mut stripe.known.users;
        let is_new = users.find(hash, user).is_none();
        if is_new {
            users.insert(|short| self.hasher.hash_short(short), hash, Id::new(user));
            self.held.fetch_add(1, Ordering::Relaxed);
        }
        is_new
    }

    /// Moves the users of earlier generations to `stale`.
    pub(crate) fn forget(&self, generation: u64, stale: &mut StaleUsers) {
        for stripe in &self.stripes {
            lock(stripe).forget(generation, stale);
        }
    }

    /// Resets the number of held users to zero, for a reset to `generation`.
    pub(crate) fn forget_held(&self, generation: u64) {
        // This is not a store, because loom lets a later exchange by another thread read the value from before a store.
        self.held.swap(generation << HELD_BITS, Ordering::AcqRel);
    }

    /// Counts `more` users as held, if there is room for all of them.
    fn hold(&self, generation: u64, more: u64) -> Hold {
        let tag = generation << HELD_BITS;
        let mut held = self.held.load(Ordering::Acquire);
        loop {
            // A shard that is behind must not count into the generation of the others, and while a
            // reset is under way, it is not known yet which generation the event belongs to.
            if held & !USERS_MAX != tag {
                return Hold::Reset;
            }
            // A store may have held more than the limit.
            let room = self.users_max.saturating_sub(held & USERS_MAX);
            if more > room {
                return Hold::Full { room };
            }
            match self.held.compare_exchange_weak(
                held,
                held + more,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Hold::Held,
                Err(now) => held = now,
            }
        }
    }
}

/// Locks a stripe.
fn lock(stripe: &Mutex<SharedStripe>) -> MutexGuard<'_, SharedStripe> {
    match stripe.lock() {
        Ok(stripe) => stripe,
        // A shard that panicked while it held the lock ends the process; continue until then.
        Err(poisoned) => poisoned.into_inner(),
    }
}

/// Whether more users can be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// They are held.
    Held,
    /// There is room only for fewer users.
    Full { room: u64 },
    /// A reset happened in between, or is under way.
    Reset,
}

#[cfg(test)]
mod tests {
    use super::super::id::SHORT_BYTES_MAX;
    use super::*;
    use std::collections::HashSet;

    /// Returns ids of every length that differ only in one byte, in zeros, or in their length.
    fn ids() -> Vec<Vec<u8>> {
        let mut ids = Vec::new();
        for length in 1..=256 {
            for filler in [0, b'x'] {
                let plain = vec![filler; length];
                // The first and the last byte, and the bytes around the ends of words.
                for at in [0, 3, 7, 8, 15, 16, 22, length - 1] {
                    let mut other = plain.clone();
                    if let Some(byte) = other.get_mut(at) {
                        *byte ^= 1;
                    }
                    ids.push(other);
                }
                ids.push(plain);
            }
        }
        ids
    }

    #[test]
    fn a_table_is_a_set_of_ids_whatever_their_hashes() {
        let hasher = Hasher::default();
        let others: [fn(u64) -> u64; 4] = [
            |hash| hash,
            // All hashes are equal; hashes differ only in the bits that a table uses first; hashes differ
            // only in the other bits.
            |_| 0,
            |hash| hash << 57,
            |hash| hash >> 57,
        ];
        for other in others {
            let key = |id| {
                let key = hasher.key(id);
                Key { hash: other(key.hash), ..key }
            };
            let (mut table, mut model) = (Table::default(), HashSet::new());
            let ids = ids();
            for id in ids.iter().step_by(2).chain(&ids) {
                let is_new = model.insert(id.clone());
                let key = key(id);
                assert_eq!(table.contains(&key), !is_new, "{}", id.escape_ascii());
                assert_eq!(table.find(key.hash, id).is_none(), is_new);
                if is_new {
                    table.insert(|short| other(hasher.hash_short(short)), key.hash, Id::new(id));
                }
                assert_eq!(table.len(), model.len());
            }
            assert!(ids.iter().all(|id| table.contains(&key(id))));
            assert!(!table.contains(&key(b"another")));
        }
    }

    #[test]
    fn most_short_ids_are_found_early_and_nobody_else_is() {
        let hasher = Hasher::default();
        let mut seen = Seen::new();
        let short = |numbers: std::ops::Range<u32>| numbers.map(|number| number.to_string());
        let long = |numbers: std::ops::Range<u32>| numbers.map(|number| format!("{number:040}"));
        for id in short(0..20_000).chain(long(0..20_000)) {
            let key = hasher.key(id.as_bytes());
            seen.insert(1, &hasher, key.hash, Id::new(key.user));
        }
        let early = |generation, ids: &mut dyn Iterator<Item = String>| {
            ids.filter(|id| seen.contains_early(generation, &hasher.key(id.as_bytes()))).count()
        };
        let found = early(1, &mut short(0..20_000));
        assert!(found > 15_000, "{found}");
        assert_eq!(early(1, &mut short(20_000..30_000)), 0);
        assert_eq!(early(1, &mut long(0..30_000)), 0);
        assert_eq!(early(2, &mut short(0..20_000)), 0, "after a reset");
    }

    #[test]
    fn a_table_of_short_ids_doubles_when_it_is_seven_eighths_full() {
        let hasher = Hasher::default();
        let mut set = ShortSet::default();
        for number in 1..=1000usize {
            let short = Short::new(number.to_string().as_bytes()).unwrap();
            set.insert(|short| hasher.hash_short(short), hasher.hash_short(&short), short);
            let mut slots = ShortSet::SLOTS_MIN;
            while number * 8 > slots * 7 {
                slots *= 2;
            }
            assert_eq!((set.len, set.slots.len()), (number, slots));
        }
    }

    #[test]
    fn ids_that_differ_have_hashes_that_differ() {
        let hasher = Hasher::default();
        let ids: HashSet<Vec<u8>> = ids().into_iter().collect();
        let hashes: HashSet<u64> = ids.iter().map(|id| hasher.key(id).hash).collect();
        assert_eq!(hashes.len(), ids.len());
        let stripes: HashSet<usize> = hashes.into_iter().map(stripe_of).collect();
        assert!(stripes.len() > STRIPES / 2, "{}", stripes.len());
        assert!(ids.iter().all(|id| Short::new(id).is_some() == (id.len() <= SHORT_BYTES_MAX)));
    }
}
