//! What a committer takes from the shards: a state of one moment, and the users that are new in it.

use super::{State, Tally, UserIds, Writer};
use crate::primitives::{Mutex, MutexGuard};
use std::sync::Arc;

/// The users that one shard was the first to sight, in order, until the committer takes them.
#[derive(Debug, Default)]
pub(crate) struct Sightings {
    generation: u64,
    ids: UserIds,
}

impl Sightings {
    /// Adds a user of a generation. Those of an older one count for nothing anymore.
    pub(crate) fn push(&mut self, generation: u64, id: &[u8]) {
        self.enter(generation);
        self.ids.push(id);
    }

    /// Adds users of a generation, in the same way.
    pub(crate) fn append(&mut self, generation: u64, ids: &mut UserIds) {
        self.enter(generation);
        self.ids.append(ids);
    }

    fn enter(&mut self, generation: u64) {
        if self.generation != generation {
            *self = Sightings { generation, ids: UserIds::default() };
        }
    }
}

/// Locks the sightings of a shard.
pub(crate) fn lock(sightings: &Mutex<Sightings>) -> MutexGuard<'_, Sightings> {
    match sightings.lock() {
        Ok(sightings) => sightings,
        // A shard that panicked with the lock ends the process; until then, go on.
        Err(poisoned) => poisoned.into_inner(),
    }
}

/// A state of one moment, and what it takes to make it durable after the one before it.
#[derive(Clone, Debug)]
pub struct Cut {
    /// The epoch of the cut: it has everything that [`Writer::settles_at`] promised up to it.
    pub epoch: u64,
    /// The state.
    pub state: State,
    /// The users of the state that no earlier cut of its generation had.
    pub new_users: UserIds,
}

/// Takes cuts, one after the other, for the one thread that makes them durable.
#[derive(Debug)]
pub struct Journal {
    tally: Arc<Tally>,
    generation: u64,
    shards: Vec<Source>,
}

/// What the journal knows of one shard.
#[derive(Debug)]
struct Source {
    sightings: Arc<Mutex<Sightings>>,
    /// Taken from the shard, and not in a cut yet.
    waiting: UserIds,
    /// Users of this shard in the cuts of this generation.
    taken: u64,
}

impl Journal {
    pub(super) fn new(tally: Arc<Tally>, writers: &mut [Writer], state: &State) -> Journal {
        let source = |(shard, writer): (usize, &mut Writer)| {
            let sightings: Arc<Mutex<Sightings>> = Arc::new(Mutex::new(Sightings::default()));
            writer.sightings = Some(Arc::clone(&sightings));
            // The first shard starts with what was restored.
            let taken = if shard == 0 { state.users } else { 0 };
            Source { sightings, waiting: UserIds::default(), taken }
        };
        let shards = writers.iter_mut().enumerate().map(source).collect();
        Journal { tally, generation: state.generation, shards }
    }

    /// Takes the state at one moment between this call and its return, and its new users.
    pub fn cut(&mut self) -> Cut {
        loop {
            let mut sighted = Vec::with_capacity(self.shards.len());
            let (epoch, state) = self.tally.merge(|_, users| sighted.push(users));
            if let Some(new_users) = self.take(state.generation, &sighted) {
                return Cut { epoch, state, new_users };
            }
        }
    }

    /// Sets all totals to zero, because others have. Returns the generation that begins with it.
    pub fn reset(&self) -> u64 {
        self.tally.reset_to().0
    }

    /// Takes the users of a cut in which each shard had sighted so many; `None` where a reset has come
    /// after it: then some of them are forgotten, and the cut counts for nothing.
    fn take(&mut self, generation: u64, sighted: &[u64]) -> Option<UserIds> {
        if generation != self.generation {
            self.generation = generation;
            for shard in &mut self.shards {
                (shard.waiting, shard.taken) = (UserIds::default(), 0);
            }
        }
        let mut new_users = UserIds::default();
        for (shard, sighted) in self.shards.iter_mut().zip(sighted) {
            let mut sightings = lock(&shard.sightings);
            if sightings.generation > generation {
                return None;
            }
            if sightings.generation == generation {
                shard.waiting.append(&mut sightings.ids);
            }
            drop(sightings);
            let missing = sighted - shard.taken;
            let mut users = shard.waiting.take_first(missing);
            assert_eq!(users.len(), missing, "a user is published after its id");
            shard.taken = *sighted;
            new_users.append(&mut users);
        }
        Some(new_users)
    }
}
