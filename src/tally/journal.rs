//! The cuts of the shards that a committer takes: the state at one moment, and the users that are new in it.

use super::{State, Tally, UserIds, Writer};
use crate::primitives::{Mutex, MutexGuard};
use std::sync::Arc;

/// The users that one shard was the first to sight, in order, until the committer takes them.
#[derive(Debug, Default)]
pub(crate) struct NewUsers {
    generation: u64,
    ids: UserIds,
}

impl NewUsers {
    /// Adds a user of a generation. Users of an older generation do not count anymore.
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
            *self = NewUsers { generation, ids: UserIds::default() };
        }
    }
}

/// Locks the new users of a shard.
pub(crate) fn lock(new_users: &Mutex<NewUsers>) -> MutexGuard<'_, NewUsers> {
    match new_users.lock() {
        Ok(new_users) => new_users,
        // A shard that panicked while it held the lock ends the process; continue until then.
        Err(poisoned) => poisoned.into_inner(),
    }
}

/// The state at one moment, and what must be added to the previous cut to make it durable.
#[derive(Clone, Debug)]
pub struct Cut {
    /// The epoch of the cut. The cut includes everything that [`Writer::settles_at`] promised for this or an earlier epoch.
    pub epoch: u64,
    /// The state.
    pub state: State,
    /// The users in the state that were not in an earlier cut of its generation.
    pub new_users: UserIds,
}

/// Takes one cut after another for the thread that makes them durable.
#[derive(Debug)]
pub struct Journal {
    tally: Arc<Tally>,
    generation: u64,
    shards: Vec<Source>,
}

/// The journal's knowledge of one shard.
#[derive(Debug)]
struct Source {
    new_users: Arc<Mutex<NewUsers>>,
    /// Users that were taken from the shard and are not in a cut yet.
    waiting: UserIds,
    /// The number of this shard's users in the cuts of this generation.
    taken: u64,
}

impl Journal {
    pub(super) fn new(tally: Arc<Tally>, writers: &mut [Writer], state: &State) -> Journal {
        let source = |(shard, writer): (usize, &mut Writer)| {
            let new_users: Arc<Mutex<NewUsers>> = Arc::new(Mutex::new(NewUsers::default()));
            writer.new_users = Some(Arc::clone(&new_users));
            // The first shard starts with the restored users.
            let taken = if shard == 0 { state.users } else { 0 };
            Source { new_users, waiting: UserIds::default(), taken }
        };
        let shards = writers.iter_mut().enumerate().map(source).collect();
        Journal { tally, generation: state.generation, shards }
    }

    /// Takes the state at one moment between this call and its return, and its new users.
    pub fn cut(&mut self) -> Cut {
        loop {
            let mut counts = Vec::with_capacity(self.shards.len());
            let (epoch, state) = self.tally.merge(|_, users| counts.push(users));
            if let Some(new_users) = self.take(state.generation, &counts) {
                return Cut { epoch, state, new_users };
            }
        }
    }

    /// Sets all totals to zero, because other servers have. Returns the generation that begins with the reset.
    pub fn reset(&self) -> u64 {
        self.tally.reset_to().0
    }

    /// Takes the users of a cut, given the number of new users that each shard had seen. Returns `None` if a reset has followed
    /// the cut: some users are then stale, and the cut does not count.
    fn take(&mut self, generation: u64, counts: &[u64]) -> Option<UserIds> {
        if generation != self.generation {
            self.generation = generation;
            for shard in &mut self.shards {
                (shard.waiting, shard.taken) = (UserIds::default(), 0);
            }
        }
        let mut new_users = UserIds::default();
        for (shard, count) in self.shards.iter_mut().zip(counts) {
            let mut of_shard = lock(&shard.new_users);
            if of_shard.generation > generation {
                return None;
            }
            if of_shard.generation == generation {
                shard.waiting.append(&mut of_shard.ids);
            }
            drop(of_shard);
            let missing = count - shard.taken;
            let mut users = shard.waiting.take_first(missing);
            assert_eq!(users.len(), missing, "a user is published after its id");
            shard.taken = *count;
            new_users.append(&mut users);
        }
        Some(new_users)
    }
}
