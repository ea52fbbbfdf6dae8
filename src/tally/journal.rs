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
        if self.generation != generation {
            *self = Sightings { generation, ids: UserIds::default() };
        }
        self.ids.push(id);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(cut: &Cut) -> Vec<String> {
        let mut ids: Vec<_> =
            cut.new_users.iter().map(|id| String::from_utf8(id.to_vec()).unwrap()).collect();
        ids.sort();
        ids
    }

    #[test]
    fn each_user_is_new_in_one_cut() {
        let (_tally, mut writers, mut journal) = Tally::resume(2, 10, &State::default());
        writers[0].count(b"a", 1.0).unwrap();
        writers[1].count(b"b", 1.0).unwrap();
        writers[1].count(b"a", 1.0).unwrap();
        let cut = journal.cut();
        assert_eq!(
            (cut.state.events, cut.state.users),
            (2, 2),
            "what is not published is not in it"
        );
        assert_eq!(ids(&cut), ["a", "b"]);
        writers[0].count(b"c", 0.5).unwrap();
        writers.iter_mut().for_each(Writer::publish);
        let cut = journal.cut();
        assert_eq!((cut.state.events, cut.state.users, ids(&cut)), (4, 3, vec!["c".to_owned()]));
        assert!(journal.cut().new_users.is_empty());
    }

    #[test]
    fn a_cut_has_what_was_published_before_it() {
        let (tally, mut writers, mut journal) = Tally::resume(1, 10, &State::default());
        let before = journal.cut().epoch;
        assert!(before < writers[0].settles_at() + 1);
        writers[0].count(b"a", 1.0).unwrap();
        writers[0].publish();
        assert!(writers[0].settles_at() > before, "the cut before does not have it");
        assert!(journal.cut().epoch >= writers[0].settles_at());
        let reset_at = tally.reset();
        let cut = journal.cut();
        assert!(cut.epoch >= reset_at);
        assert_eq!((cut.state.generation, cut.state.events), (1, 0));
    }

    #[test]
    fn a_reset_forgets_the_users_that_no_cut_had() {
        let (tally, mut writers, mut journal) = Tally::resume(2, 10, &State::default());
        writers[0].count(b"a", 1.0).unwrap();
        writers[1].count(b"b", 1.0).unwrap();
        tally.reset();
        writers[1].count(b"b", 1.0).unwrap();
        let cut = journal.cut();
        assert_eq!(
            (cut.state.generation, cut.state.users, ids(&cut)),
            (1, 1, vec!["b".to_owned()])
        );
        assert_eq!(journal.take(0, &[1, 1]), None, "a cut from before the reset is not made");
    }

    #[test]
    fn counting_goes_on_from_a_state() {
        let sum = [1e300, 0.1, -1e300].into_iter().collect();
        let state = State { generation: 7, events: 5, users: 2, sum };
        let (tally, mut writers, mut journal) = Tally::resume(2, 3, &state);
        let mut held = UserIds::default();
        held.push(b"a");
        held.push(b"b");
        assert_eq!(tally.restore_users(&held), 2);
        assert_eq!(tally.restore_users(&held), 0, "they are there");
        assert_eq!(journal.cut().state, state);
        writers[1].count(b"a", 0.25).unwrap();
        writers[1].count(b"c", 0.25).unwrap();
        writers[0].count(b"d", 0.25).unwrap_err();
        writers[1].publish();
        let cut = journal.cut();
        assert_eq!(ids(&cut), ["c"]);
        assert_eq!((cut.state.events, cut.state.users), (7, 3));
        assert_eq!(tally.totals().sum, 0.6);
        tally.reset();
        assert_eq!(journal.cut().state, State { generation: 8, ..State::default() });
    }
}
