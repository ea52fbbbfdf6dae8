//! Which users have been seen: one shared, striped set that compares bytes, and each shard's own
//! copy of what it has seen, so that only a shard's first sighting of a user touches the shared one.

use crate::primitives::{AtomicU64, Mutex, MutexGuard, Ordering};
use crossbeam_utils::CachePadded;
use foldhash::quality::RandomState;
use hashbrown::HashTable;
use std::hash::BuildHasher;
use std::sync::Arc;

/// Stripes of a set. A table moves all its entries when it grows: stripes keep each move short,
/// about 40,000 entries with ten million users.
pub(crate) const STRIPES: usize = 256;

/// Bits of [`Users::held`] that count users; the others are the low bits of the generation.
const HELD_BITS: u32 = 40;
/// The most users that can be held, and so the largest `--max-users`.
pub const USERS_MAX: u64 = (1 << HELD_BITS) - 1;

/// Hashes user ids, with a new key in every process so that nobody can prepare collisions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hasher(RandomState);

impl Hasher {
    #[inline]
    pub(crate) fn hash(&self, user: &[u8]) -> u64 {
        self.0.hash_one(user)
    }
}

/// User ids with their hashes.
type Table = HashTable<(u64, Arc<[u8]>)>;

/// Users of earlier generations, which count for nothing anymore. Dropping them takes time that
/// grows with their number: about a second for ten million.
#[derive(Debug, Default)]
pub struct Forgotten(Vec<Table>);

impl Forgotten {
    /// How many users these are. A user that was taken from two sets counts twice.
    pub fn users(&self) -> usize {
        self.0.iter().map(HashTable::len).sum()
    }
}

/// One table of a set, of users sighted in one generation.
#[derive(Debug, Default)]
struct Stripe {
    generation: u64,
    users: Table,
}

impl Stripe {
    /// Drops the users of earlier generations.
    fn enter(&mut self, generation: u64) {
        if self.generation != generation {
            *self = Stripe { generation, users: HashTable::new() };
        }
    }

    /// Moves the users of earlier generations to `forgotten`.
    fn forget(&mut self, generation: u64, forgotten: &mut Forgotten) {
        if self.generation < generation {
            self.generation = generation;
            let users = std::mem::take(&mut self.users);
            if !users.is_empty() {
                forgotten.0.push(users);
            }
        }
    }

    #[inline]
    fn find(&self, hash: u64, user: &[u8]) -> Option<&Arc<[u8]>> {
        let (_, known) = self.users.find(hash, |(h, known)| *h == hash && **known == *user)?;
        Some(known)
    }

    fn insert(&mut self, hash: u64, user: Arc<[u8]>) {
        self.users.insert_unique(hash, (hash, user), |(hash, _)| *hash);
    }
}

/// The stripe of a hash, taken from bits that the table inside does not use first.
#[inline]
fn stripe_of(hash: u64) -> usize {
    (hash >> 40) as usize % STRIPES
}

/// The users that one shard has seen.
#[derive(Debug)]
pub(crate) struct Seen(Vec<Stripe>);

impl Seen {
    pub(crate) fn new() -> Self {
        Seen((0..STRIPES).map(|_| Stripe::default()).collect())
    }

    #[inline]
    pub(crate) fn contains(&self, generation: u64, hash: u64, user: &[u8]) -> bool {
        let stripe = &self.0[stripe_of(hash)];
        stripe.generation == generation && stripe.find(hash, user).is_some()
    }

    pub(crate) fn insert(&mut self, generation: u64, hash: u64, user: Arc<[u8]>) {
        let stripe = &mut self.0[stripe_of(hash)];
        stripe.enter(generation);
        stripe.insert(hash, user);
    }

    /// Moves the users of earlier generations to `forgotten`.
    pub(crate) fn forget(&mut self, generation: u64, forgotten: &mut Forgotten) {
        for stripe in &mut self.0 {
            stripe.forget(generation, forgotten);
        }
    }
}

/// The users that any shard has seen.
#[derive(Debug)]
pub(crate) struct Users {
    stripes: Vec<CachePadded<Mutex<Stripe>>>,
    /// Users held in a generation: the low bits of the generation above [`HELD_BITS`] bits of count.
    held: CachePadded<AtomicU64>,
    users_max: u64,
}

/// What a shard learns about a user that it has not seen itself.
pub(crate) enum Sighting<'a> {
    /// No shard had seen the user. The stripe stays locked until this is dropped: the shard
    /// publishes the sighting before that, so that a shard that finds the user publishes after it.
    First(Arc<[u8]>, #[allow(dead_code, reason = "held for its drop")] StripeLock<'a>),
    /// Another shard has counted the user.
    Known(Arc<[u8]>),
    /// A reset came in between, or is under way: the event belongs to a later generation.
    Reset,
    /// One more user would exceed the limit.
    Full,
}

/// Keeps a stripe locked.
pub(crate) struct StripeLock<'a>(
    #[allow(dead_code, reason = "held for its drop")] MutexGuard<'a, Stripe>,
);

impl Users {
    pub(crate) fn new(generation: u64, users_max: u64) -> Self {
        Users {
            stripes: (0..STRIPES)
                .map(|_| CachePadded::new(Mutex::new(Stripe::default())))
                .collect(),
            held: CachePadded::new(AtomicU64::new(generation << HELD_BITS)),
            users_max: users_max.min(USERS_MAX),
        }
    }

    /// Looks up a user in `generation`, and adds it if there is room.
    pub(crate) fn sight(&self, generation: u64, hash: u64, user: &[u8]) -> Sighting<'_> {
        let mut stripe = lock(&self.stripes[stripe_of(hash)]);
        if stripe.generation > generation {
            return Sighting::Reset;
        }
        stripe.enter(generation);
        if let Some(known) = stripe.find(hash, user) {
            return Sighting::Known(Arc::clone(known));
        }
        match self.hold_one_more(generation) {
            Hold::Held => {
                let user: Arc<[u8]> = user.into();
                stripe.insert(hash, Arc::clone(&user));
                Sighting::First(user, StripeLock(stripe))
            }
            Hold::Full => Sighting::Full,
            Hold::Reset => Sighting::Reset,
        }
    }

    /// Adds a user that a store held, whatever the limit. Returns whether it was not there yet.
    pub(crate) fn restore(&self, generation: u64, hash: u64, user: &[u8]) -> bool {
        let mut stripe = lock(&self.stripes[stripe_of(hash)]);
        stripe.enter(generation);
        let is_new = stripe.find(hash, user).is_none();
        if is_new {
            stripe.insert(hash, user.into());
            self.held.fetch_add(1, Ordering::Relaxed);
        }
        is_new
    }

    /// Moves the users of earlier generations to `forgotten`.
    pub(crate) fn forget(&self, generation: u64, forgotten: &mut Forgotten) {
        for stripe in &self.stripes {
            lock(stripe).forget(generation, forgotten);
        }
    }

    /// Starts the count of held users over, for a reset to `generation`.
    pub(crate) fn forget_held(&self, generation: u64) {
        self.held.store(generation << HELD_BITS, Ordering::Release);
    }

    fn hold_one_more(&self, generation: u64) -> Hold {
        let tag = generation << HELD_BITS;
        let mut held = self.held.load(Ordering::Acquire);
        loop {
            // A shard that is behind must not count into the generation of the others, and while a
            // reset is under way, nobody knows yet which generation the event belongs to.
            if held & !USERS_MAX != tag {
                return Hold::Reset;
            }
            if held & USERS_MAX >= self.users_max {
                return Hold::Full;
            }
            match self.held.compare_exchange_weak(
                held,
                held + 1,
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
fn lock(stripe: &Mutex<Stripe>) -> MutexGuard<'_, Stripe> {
    match stripe.lock() {
        Ok(stripe) => stripe,
        // A shard that panicked with the lock ends the process; until then, go on.
        Err(poisoned) => poisoned.into_inner(),
    }
}

/// Whether one more user can be held.
enum Hold {
    Held,
    Full,
    Reset,
}
