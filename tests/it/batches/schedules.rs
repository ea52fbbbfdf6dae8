//! Batches of several shards in every order that a seed can produce, against a model that counts each batch in one step: along
//! with single events of the same users, dropped batches, resets, a limit on users, and cuts for a store.
//!
//! A failing seed is printed. `RINGTALLY_SEED=n cargo test --test it schedules` replays it, and `RINGTALLY_SEEDS=n` tries this
//! number of seeds.

use crate::world::seeds;
use fastrand::Rng;
use ringtally::tally::{Batch, Block, Finish, Journal, State, Tally, Writer};
use std::collections::HashSet;
use std::sync::Arc;

const SHARDS: usize = 3;

#[derive(Debug, Default)]
struct Model {
    resets: u64,
    events: u64,
    sum: f64,
    users: HashSet<String>,
}

impl Model {
    fn count(&mut self, user: &str, value: f64) {
        self.events += 1;
        self.sum += value;
        self.users.insert(user.to_owned());
    }
}

/// A batch in progress on one shard.
struct Open {
    shard: usize,
    batch: Batch,
    events: Vec<(String, f64)>,
    added: usize,
    unseen: Vec<usize>,
    claimed: usize,
    /// The number of resets before the batch began.
    resets: u64,
}

struct World {
    tally: Arc<Tally>,
    writers: Vec<Writer>,
    journal: Journal,
    model: Model,
    users_max: usize,
    open: Vec<Open>,
    /// Users in the cuts of this generation.
    kept: HashSet<Vec<u8>>,
    kept_resets: u64,
}

fn event(rng: &mut Rng) -> (String, f64) {
    // Some ids are too long to be held in a table.
    let tail = if rng.bool() { "" } else { "_with_a_name_that_is_long" };
    (format!("{}{tail}", rng.u8(..20)), f64::from(rng.i32(-100..100)) / 8.0)
}

impl World {
    fn new(rng: &mut Rng) -> World {
        let users_max = rng.usize(1..50);
        let (tally, writers, journal) = Tally::resume(SHARDS, users_max as u64, &State::default());
        World {
            tally,
            writers,
            journal,
            model: Model::default(),
            users_max,
            open: Vec::new(),
            kept: HashSet::new(),
            kept_resets: 0,
        }
    }

    fn step(&mut self, rng: &mut Rng) {
        match rng.u8(..100) {
            0..=9 if self.open.len() < 6 => {
                let shard = rng.usize(..SHARDS);
                let length = rng.usize(..50);
                self.open.push(Open {
                    shard,
                    batch: self.writers[shard].begin_batch(),
                    events: (0..length).map(|_| event(rng)).collect(),
                    added: 0,
                    unseen: Vec::new(),
                    claimed: 0,
                    resets: self.model.resets,
                });
            }
            0..=79 if !self.open.is_empty() => {
                let index = rng.usize(..self.open.len());
                self.advance(rng, index);
            }
            80..=81 if !self.open.is_empty() => {
                drop(self.open.swap_remove(rng.usize(..self.open.len())));
            }
            82 => {
                self.tally.reset();
                self.model = Model { resets: self.model.resets + 1, ..Model::default() };
            }
            83..=84 => {
                let shard = rng.usize(..SHARDS);
                drop(self.writers[shard].take_stale());
            }
            85..=88 => self.cut(),
            _ => {
                let (user, value) = event(rng);
                let shard = rng.usize(..SHARDS);
                let result = self.writers[shard].count(user.as_bytes(), value);
                let fits =
                    self.model.users.contains(&user) || self.model.users.len() < self.users_max;
                assert_eq!(result.is_ok(), fits, "{user}");
                if fits {
                    self.model.count(&user, value);
                }
                self.writers[shard].publish();
            }
        }
        self.check();
    }

    /// Advances a batch by one step.
    fn advance(&mut self, rng: &mut Rng, index: usize) {
        let open = &mut self.open[index];
        let writer = &mut self.writers[open.shard];
        if open.added < open.events.len() {
            let (added, is_at_once) = (open.added, rng.bool());
            let mut block = Block::default();
            let end = open.events.len().min(added + Block::<usize>::EVENTS_MAX);
            let end = rng.usize(added..end) + 1;
            for (event, (user, value)) in open.events[..end].iter().enumerate().skip(added) {
                if is_at_once {
                    block.push(user.as_bytes(), *value, event);
                } else if !writer.add_to_batch(&mut open.batch, user.as_bytes(), *value) {
                    open.unseen.push(event);
                }
            }
            writer.add_block_to_batch(&mut open.batch, &mut block, &mut open.unseen);
            open.added = end;
        } else if open.claimed < open.unseen.len() {
            if writer.may_claim(&mut open.batch) {
                let event = open.unseen[open.claimed];
                writer.claim(&mut open.batch, open.events[event].0.as_bytes(), event as u64);
                open.claimed += 1;
            }
        } else {
            let Open { shard, batch, events, resets, .. } = self.open.swap_remove(index);
            let finish = self.writers[shard].finish_batch(batch);
            self.writers[shard].publish();
            self.follow(&events, resets, finish);
        }
    }

    /// Counts a batch in the model, in one step.
    fn follow(&mut self, events: &[(String, f64)], resets: u64, finish: Finish) {
        if resets != self.model.resets {
            assert!(matches!(finish, Finish::BeforeReset { .. }), "{finish:?}");
            return;
        }
        let mut users = self.model.users.clone();
        let too_many = events.iter().position(|(user, _)| {
            users.insert(user.clone());
            users.len() > self.users_max
        });
        match too_many {
            Some(line) => assert_eq!(finish, Finish::UsersFull { line: line as u64 }),
            None => {
                assert_eq!(finish, Finish::Counted);
                events.iter().for_each(|(user, value)| self.model.count(user, *value));
            }
        }
    }

    fn cut(&mut self) {
        let cut = self.journal.cut();
        if self.kept_resets != self.model.resets {
            (self.kept, self.kept_resets) = (HashSet::new(), self.model.resets);
        }
        for id in cut.new_users.iter() {
            assert!(self.kept.insert(id.to_vec()), "a user is new once");
        }
        let users: HashSet<Vec<u8>> =
            self.model.users.iter().map(|user| user.clone().into_bytes()).collect();
        assert_eq!(self.kept, users);
        assert_eq!((cut.state.events, cut.state.sum.round()), (self.model.events, self.model.sum));
    }

    fn check(&self) {
        let totals = self.tally.totals();
        let users = self.model.users.len() as u64;
        assert_eq!((totals.total_requests, totals.unique_users), (self.model.events, users));
        assert_eq!(totals.sum, self.model.sum);
    }
}

fn simulate(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let mut world = World::new(&mut rng);
    for _ in 0..400 {
        world.step(&mut rng);
    }
    world.cut();
}

#[test]
fn a_batch_counts_as_one_step_whatever_comes_in_between() {
    seeds::for_each_seed(300, simulate);
}
