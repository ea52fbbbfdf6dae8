//! A database that servers share, in memory: what a store does there, step by step, so that a test can have
//! others act in between. It keeps what it held after each transaction.

use fastrand::Rng;
use ringtally::failure::Failure;
use ringtally::store::{Group, News, Outcome, ServerShare, Store};
use ringtally::tally::{ExactSum, State, Totals, UserIds};
use ringtally::uring::Wakeup;
use std::collections::HashSet;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// What all servers have counted after a transaction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Version {
    pub(crate) generation: u64,
    /// Bit n is set where event n is counted: its value is 2 to the power of n.
    pub(crate) bits: u64,
    pub(crate) users: u64,
}

#[derive(Default)]
struct Row {
    generation: u64,
    events: u64,
    users: u64,
    sum: ExactSum,
}

/// What the database holds, and has held.
#[derive(Default)]
pub(crate) struct Tables {
    generation: u64,
    rows: Vec<Row>,
    /// Those of the present generation.
    users: HashSet<Vec<u8>>,
    versions: Vec<Version>,
    listeners: Vec<Arc<Wakeup>>,
}

impl Tables {
    fn group(&self, this: usize) -> Group {
        let rows = self.rows.iter().enumerate();
        let rows: Vec<_> = rows.filter(|(_, row)| row.generation == self.generation).collect();
        let mut sum = ExactSum::default();
        rows.iter().for_each(|(_, row)| sum.merge(&row.sum));
        let total_requests = rows.iter().map(|(_, row)| row.events).sum();
        let unique_users = rows.iter().map(|(_, row)| row.users).sum();
        let share = |(id, row): &(usize, &Row)| ServerShare {
            name: format!("server:{id}"),
            events: row.events,
            users: row.users,
            age: Duration::ZERO,
            is_this: *id == this,
        };
        let totals = Totals { total_requests, unique_users, sum: sum.round() };
        Group { totals, servers: rows.iter().map(share).collect() }
    }

    fn note_version(&mut self) {
        let Totals { total_requests, unique_users, sum } = self.group(0).totals;
        #[expect(clippy::cast_possible_truncation, reason = "a sum of powers of two below 2^52")]
        let bits = sum as u64;
        assert_eq!(u64::from(bits.count_ones()), total_requests, "an event is counted once");
        assert_eq!(unique_users, self.users.len() as u64, "a user is counted once");
        self.versions.push(Version { generation: self.generation, bits, users: unique_users });
    }

    /// The number of the present version.
    pub(crate) fn now(&self) -> usize {
        self.versions.len() - 1
    }

    pub(crate) fn versions(&self) -> &[Version] {
        &self.versions
    }
}

/// A database. All its connections see the same tables.
#[derive(Clone)]
pub(crate) struct Database(Arc<Mutex<Tables>>);

impl Database {
    pub(crate) fn new() -> Database {
        let mut tables = Tables::default();
        tables.note_version();
        Database(Arc::new(Mutex::new(tables)))
    }

    pub(crate) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap()
    }
}

/// How a store is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// It says that a commit is durable which another server's reset has superseded.
    Hasty,
    /// It reads what it has read before.
    Stale,
    /// It makes a commit whose outcome is unknown once more, resets and all.
    Repeated,
}

/// What a thread says that runs a committer.
pub(crate) enum Step {
    /// It waits in the middle of a commit.
    Paused,
    /// A commit is over.
    Done(Result<(), Failure>),
}

/// One server's connection to a database.
pub(crate) struct SharedStore {
    database: Database,
    id: usize,
    /// The group's generation that it has adopted, and the local one that it was told of last.
    adopted: u64,
    told: u64,
    is_superseded: bool,
    rng: Rng,
    news: News,
    fault: Fault,
    /// What was read last.
    group: Option<Group>,
    go: Arc<Mutex<Receiver<()>>>,
    back: Sender<Step>,
}

impl SharedStore {
    pub(crate) fn connect(
        database: &Database,
        mut rng: Rng,
        fault: Fault,
        go: Arc<Mutex<Receiver<()>>>,
        back: Sender<Step>,
    ) -> SharedStore {
        let wakeup = Arc::new(Wakeup::new().unwrap());
        // Some servers hear of resets, and others have to look.
        let every = if rng.bool() { Duration::ZERO } else { Duration::from_secs(3600) };
        let news = News { wakeup: Arc::clone(&wakeup), every };
        let mut tables = database.tables();
        let (id, adopted) = (tables.rows.len(), tables.generation);
        tables.rows.push(Row::default());
        if !every.is_zero() {
            tables.listeners.push(wakeup);
        }
        drop(tables);
        SharedStore {
            database: database.clone(),
            id,
            adopted,
            told: 0,
            is_superseded: false,
            rng,
            news,
            fault,
            group: None,
            go,
            back,
        }
    }

    /// Has others act. Fails if this server is killed meanwhile.
    fn pause(&self) -> Result<(), Failure> {
        let killed = |_| Failure::Environment("the server was killed".into());
        self.back.send(Step::Paused).map_err(|_| killed(()))?;
        self.go.lock().unwrap().recv().map_err(|_| killed(()))
    }

    fn transact(&mut self, state: &State, new_users: &UserIds) -> Outcome {
        let mut tables = self.database.tables();
        let tables = &mut *tables;
        let raised = state.generation - self.told;
        if raised > u64::from(self.is_superseded) {
            tables.generation += 1;
            tables.users.clear();
            tables.listeners.iter().for_each(|listener| listener.wake());
            self.adopted = tables.generation;
        } else if self.is_superseded {
            assert_eq!(raised, 1, "a superseded state is given up");
            self.adopted = tables.generation;
        } else if self.adopted != tables.generation {
            return Outcome::Superseded;
        }
        let row = &mut tables.rows[self.id];
        if row.generation != self.adopted {
            *row = Row { generation: self.adopted, ..Row::default() };
        }
        for user in new_users.iter() {
            row.users += u64::from(tables.users.insert(user.to_vec()));
        }
        (row.events, row.sum) = (state.events, state.sum.clone());
        tables.note_version();
        Outcome::Durable
    }
}

impl Store for SharedStore {
    fn users(&mut self, _: &mut dyn FnMut(&UserIds)) -> Result<(), Failure> {
        Ok(())
    }

    fn commit(&mut self, state: &State, new_users: &UserIds) -> Result<Outcome, Failure> {
        self.pause()?;
        // Whether it was made is unknown at first, and it was not.
        while self.rng.u8(..) < 40 {
            self.pause()?;
        }
        let mut outcome = self.transact(state, new_users);
        if self.fault == Fault::Repeated && self.rng.u8(..) < 40 {
            self.pause()?;
            outcome = self.transact(state, new_users);
        }
        (self.told, self.is_superseded) = (state.generation, outcome == Outcome::Superseded);
        self.pause()?;
        if self.fault == Fault::Hasty {
            self.is_superseded = false;
            return Ok(Outcome::Durable);
        }
        Ok(outcome)
    }

    fn read(&mut self) -> Result<Option<Group>, Failure> {
        self.pause()?;
        let group = self.database.tables().group(self.id);
        let before = self.group.replace(group.clone());
        self.pause()?;
        Ok(if self.fault == Fault::Stale { before.or(Some(group)) } else { Some(group) })
    }

    fn news(&self) -> Option<News> {
        Some(self.news.clone())
    }
}
