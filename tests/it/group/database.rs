//! A database in memory that servers share: a primary, and a standby that gets the transactions of the primary a moment later
//! and may be promoted. Each request of a server is made step by step, so that others act in between.
//!
//! As in PostgreSQL, a transaction enters the log of the primary first. If the standby is synchronous, nobody sees the
//! transaction, and it keeps its locks, until the standby has it or its wait is canceled. After a cancellation it is visible,
//! and the standby may never have it. A primary whose standby was promoted can still be read, but its writes wait forever. If
//! the standby is not synchronous, a promotion loses what it does not have.

use super::condition::{GENERATION, Values};
use fastrand::Rng;
use ringtally::failure::Failure;
use ringtally::store::postgres::{
    Id, Link, MAY_COMMIT, MAY_WRITE, Member, Share, Standing, StoreError, Write,
};
use ringtally::store::{Group, Outcome, SharedTotals, Store};
use ringtally::tally::{ExactSum, State, UserIds};
use ringtally::uring::Wakeup;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

/// The time that the row of an unseen server stays.
const GONE: Duration = Duration::from_secs(3600);

/// The row that replaces the rows of all servers that are gone.
const SUM_OF_ALL: Id = [0; 16];

/// The totals of all servers after a transaction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Version {
    pub(crate) generation: i64,
    /// Bit n is set if event n, with the value 2 to the power of n, is counted.
    pub(crate) bits: u64,
    pub(crate) users: u64,
}

#[derive(Clone, Default)]
struct Row {
    generation: i64,
    sequence: i64,
    events: u64,
    users: u64,
    sum: ExactSum,
    seen: Duration,
    is_sum_of_all: bool,
}

/// The changes of a transaction.
#[derive(Clone)]
enum Change {
    Generation(i64),
    Row(Id, Box<Row>),
    Gone(Id),
    /// Users of a generation.
    Users(i64, Vec<Vec<u8>>),
}

#[derive(Clone)]
struct Transaction {
    changes: Vec<Change>,
    is_seen: bool,
}

#[derive(Default)]
struct Tables {
    generation: i64,
    rows: BTreeMap<Id, Row>,
    /// The users of the current generation.
    users: HashSet<Vec<u8>>,
}

impl Tables {
    fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Generation(generation) => {
                    self.generation = *generation;
                    self.users.clear();
                }
                Change::Row(id, row) => {
                    self.rows.insert(*id, (**row).clone());
                }
                Change::Gone(id) => {
                    self.rows.remove(id);
                }
                Change::Users(generation, users) if *generation == self.generation => {
                    self.users.extend(users.iter().cloned());
                }
                Change::Users(..) => {}
            }
        }
    }

    fn current(&self) -> impl Iterator<Item = (&Id, &Row)> {
        self.rows.iter().filter(|(_, row)| row.generation == self.generation)
    }

    fn version(&self) -> Version {
        let mut sum = ExactSum::default();
        self.current().for_each(|(_, row)| sum.merge(&row.sum));
        #[expect(clippy::cast_possible_truncation, reason = "a sum of powers of two below 2^52")]
        let bits = sum.round() as u64;
        let events: u64 = self.current().map(|(_, row)| row.events).sum();
        assert_eq!(u64::from(bits.count_ones()), events, "an event is counted once");
        let users = self.current().map(|(_, row)| row.users).sum();
        assert_eq!(users, self.users.len() as u64, "a user is counted once");
        Version { generation: self.generation, bits, users }
    }
}

/// A write that waits for another transaction, which holds locks that it needs.
struct Blocked;

/// A write that owns its data, because a write on a lost connection may be made later.
#[derive(Clone)]
struct OwnedWrite {
    id: Id,
    sequence: i64,
    is_repeat: bool,
    generation: i64,
    is_reset: bool,
    state: State,
    users: Vec<Vec<u8>>,
}

/// Both servers of the database, and their contents.
pub(crate) struct Cluster {
    /// The state of each server.
    nodes: [Tables; 2],
    /// The node that the group uses.
    primary: usize,
    pub(crate) is_synchronous: bool,
    /// The transactions of the first primary.
    log: Vec<Transaction>,
    /// The number of these transactions on the standby.
    shipped: usize,
    clock: Duration,
    versions: Vec<Version>,
    /// Every event that was ever considered safe from failures.
    durable: u64,
    /// True after a promotion has lost transactions.
    pub(crate) has_lost: bool,
    /// True after rows of unseen servers were removed.
    pub(crate) has_swept: bool,
    listeners: Vec<Arc<Wakeup>>,
    stragglers: VecDeque<OwnedWrite>,
    /// The condition of a commit that is not a reset.
    commit_condition: &'static str,
}

impl Cluster {
    fn new(is_synchronous: bool) -> Cluster {
        let nodes = [Tables::default(), Tables::default()];
        let versions = vec![nodes[0].version()];
        Cluster {
            nodes,
            primary: 0,
            is_synchronous,
            log: Vec::new(),
            shipped: 0,
            clock: Duration::from_secs(1_000_000),
            versions,
            durable: 0,
            has_lost: false,
            has_swept: false,
            listeners: Vec::new(),
            stragglers: VecDeque::new(),
            commit_condition: MAY_COMMIT,
        }
    }

    /// Returns the number of the current version.
    pub(crate) fn now(&self) -> usize {
        self.versions.len() - 1
    }

    pub(crate) fn versions(&self) -> &[Version] {
        &self.versions
    }

    /// Returns every event that was ever considered safe from failures.
    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    /// Returns the generation that a failure cannot take back.
    pub(crate) fn durable_generation(&self) -> i64 {
        self.nodes[if self.is_synchronous { 1 } else { self.primary }].generation
    }

    pub(crate) fn has_failed_over(&self) -> bool {
        self.primary == 1
    }

    /// Notes a version that a transaction has made, which must not remove events.
    fn note_made(&mut self) {
        let (before, version) = (self.versions[self.now()], self.nodes[self.primary].version());
        let is_gone = before.generation == version.generation && before.bits & !version.bits != 0;
        assert!(!is_gone, "{version:?} has lost events of {before:?}");
        self.note_version();
    }

    fn note_version(&mut self) {
        let version = self.nodes[self.primary].version();
        if self.primary == 1 || !self.is_synchronous {
            self.durable |= version.bits;
        }
        self.versions.push(version);
    }

    fn note_seen(&mut self, number: usize) {
        if !std::mem::replace(&mut self.log[number].is_seen, true) {
            let changes = self.log[number].changes.clone();
            self.nodes[0].apply(&changes);
            if self.primary == 0 {
                self.note_made();
            }
            self.notify(&changes);
        }
    }

    fn notify(&self, changes: &[Change]) {
        if changes.iter().any(|change| matches!(change, Change::Generation(_))) {
            self.listeners.iter().for_each(|listener| listener.wake());
        }
    }

    /// Gives the standby the next transaction, if there is one.
    pub(crate) fn ship(&mut self) {
        if self.primary == 0 && self.shipped < self.log.len() {
            let changes = self.log[self.shipped].changes.clone();
            self.nodes[1].apply(&changes);
            self.shipped += 1;
            self.durable |= self.nodes[1].version().bits;
            self.note_seen(self.shipped - 1);
        }
    }

    /// Promotes the standby with what it has. Servers that are connected to the first primary stay there. Without synchronous
    /// replication that primary is gone, because it would accept more.
    pub(crate) fn promote(&mut self) {
        if self.primary == 0 {
            self.primary = 1;
            self.has_lost = !self.is_synchronous && self.shipped < self.log.len();
            self.note_version();
        }
    }

    /// Lets hours pass, and adds up the rows of servers that were not seen.
    pub(crate) fn sweep(&mut self) {
        self.clock += 2 * GONE;
        let (node, now) = (self.primary, self.clock);
        let tables = &self.nodes[node];
        let is_gone = |(id, row): &(&Id, &Row)| {
            !row.is_sum_of_all && row.seen + GONE < now && !self.is_locked(node, id)
        };
        let gone: Vec<_> =
            tables.current().filter(is_gone).map(|(id, row)| (*id, row.clone())).collect();
        if gone.is_empty() || self.is_locked(node, &SUM_OF_ALL) {
            return;
        }
        self.has_swept = true;
        let mut all = tables.rows.get(&SUM_OF_ALL).cloned().unwrap_or_default();
        if all.generation != tables.generation || !all.is_sum_of_all {
            all = Row { generation: tables.generation, is_sum_of_all: true, ..Row::default() };
        }
        let mut changes = Vec::new();
        for (id, row) in gone {
            all.events += row.events;
            all.users += row.users;
            all.sum.merge(&row.sum);
            changes.push(Change::Gone(id));
        }
        changes.push(Change::Row(SUM_OF_ALL, Box::new(all)));
        self.write(node, changes);
    }

    /// Returns whether a transaction that nobody sees yet changes a row.
    fn is_locked(&self, node: usize, id: &Id) -> bool {
        let touches = |change: &Change| match change {
            Change::Row(row, _) | Change::Gone(row) => row == id,
            Change::Generation(_) | Change::Users(..) => false,
        };
        self.is_hidden(node, touches)
    }

    fn is_hidden(&self, node: usize, touches: impl Fn(&Change) -> bool) -> bool {
        let mut hidden = self.log.iter().filter(|transaction| !transaction.is_seen);
        node == 0 && hidden.any(|transaction| transaction.changes.iter().any(&touches))
    }

    /// Commits a transaction. Returns its number in the log if the standby must have it.
    fn write(&mut self, node: usize, changes: Vec<Change>) -> Option<usize> {
        if node == 1 {
            self.nodes[1].apply(&changes);
            self.note_made();
            self.notify(&changes);
            return None;
        }
        self.log.push(Transaction { changes, is_seen: false });
        let number = self.log.len() - 1;
        if self.is_synchronous {
            return Some(number);
        }
        self.note_seen(number);
        None
    }

    /// Returns the relation of a commit to a row. The server makes a reset in steps, and any other commit in one
    /// statement, whose condition is evaluated.
    fn standing(&self, write: &OwnedWrite, row_sequence: i64, generation: i64) -> Standing {
        let &OwnedWrite { ref id, sequence, is_repeat, is_reset, ref state, .. } = write;
        if is_reset {
            let of = write.generation;
            let write =
                Write { id, sequence, is_repeat, generation: of, is_reset, state, users: &[] };
            return write.standing(row_sequence, generation);
        }
        let values = Values {
            sequence: row_sequence,
            write: sequence,
            is_repeat,
            is_of_generation: generation == write.generation,
        };
        match values.hold(self.commit_condition) {
            true if row_sequence == sequence && is_repeat => Standing::Made,
            true => Standing::Next,
            false => Standing::Refused,
        }
    }

    /// Makes a commit for a statement that began in this generation of the group. Returns the generation and the number in the
    /// log, or `None` if the commit must not be made.
    fn commit(
        &mut self,
        node: usize,
        write: &OwnedWrite,
        seen_generation: i64,
    ) -> Result<Option<(i64, Option<usize>)>, Blocked> {
        if self.is_locked(node, &write.id) {
            return Err(Blocked);
        }
        let Some(row) = self.nodes[node].rows.get(&write.id).cloned() else { return Ok(None) };
        let seen = self.clock;
        let standing = self.standing(write, row.sequence, seen_generation);
        if standing == Standing::Made {
            let generation = row.generation;
            let number =
                self.write(node, vec![Change::Row(write.id, Box::new(Row { seen, ..row }))]);
            return Ok(Some((generation, number)));
        }
        if standing == Standing::Refused {
            return Ok(None);
        }
        let mut changes = Vec::new();
        let mut generation = write.generation;
        if write.is_reset {
            if self.is_hidden(node, |change| matches!(change, Change::Generation(_))) {
                return Err(Blocked);
            }
            generation = self.nodes[node].generation + 1;
            changes.push(Change::Generation(generation));
        }
        let is_known = |user: &Vec<u8>| {
            generation == self.nodes[node].generation && self.nodes[node].users.contains(user)
        };
        let new: Vec<Vec<u8>> =
            write.users.iter().filter(|user| !is_known(user)).cloned().collect();
        let conflicts = |change: &Change| match change {
            Change::Users(of, users) => {
                *of == generation && new.iter().any(|user| users.contains(user))
            }
            _ => false,
        };
        if self.is_hidden(node, conflicts) {
            return Err(Blocked);
        }
        let of_row = if row.generation == generation { row.users } else { 0 };
        let users = of_row + new.len() as u64;
        let State { events, sum, .. } = write.state.clone();
        let sequence = write.sequence;
        let row = Row { generation, sequence, events, users, sum, seen, is_sum_of_all: false };
        changes.extend([Change::Users(generation, new), Change::Row(write.id, Box::new(row))]);
        Ok(Some((generation, self.write(node, changes))))
    }

    /// Makes a write of a lost connection now, or finds that it came too late.
    pub(crate) fn straggle(&mut self) {
        if let Some(write) = self.stragglers.pop_front() {
            let generation = self.nodes[0].generation;
            // A session that waits for a lock is lost, as if its connection had been found dead.
            let _ = self.commit(0, &write, generation);
        }
    }
}

/// A database. All its connections see the same cluster.
#[derive(Clone)]
pub(crate) struct Database(Arc<Mutex<Cluster>>);

impl Database {
    pub(crate) fn new(is_synchronous: bool) -> Database {
        Database(Arc::new(Mutex::new(Cluster::new(is_synchronous))))
    }

    pub(crate) fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.0.lock().unwrap()
    }
}

/// The ways to break a database on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// It reports a commit as durable although another server's reset has superseded it.
    Hasty,
    /// It returns an earlier read again.
    Stale,
    /// It repeats a reset whose outcome is unknown.
    Repeated,
    /// It reports a read as confirmed without having written anything.
    Unconfirmed,
    /// It makes a commit whatever else has been written to the row.
    Unordered,
}

/// A message of a thread that runs a committer.
pub(crate) enum Step {
    /// The thread waits in the middle of a commit.
    Paused,
    /// The commit is over.
    Done(Result<(), Failure>),
}

/// One server's link to the database.
pub(crate) struct SimulatedLink {
    database: Database,
    rng: RefCell<Rng>,
    fault: Fault,
    /// The node that it is connected to.
    node: Option<usize>,
    /// The node of the last connection, and the node to try first.
    last: usize,
    first: usize,
    /// True while the server joins: nothing fails, and nobody acts in between.
    is_joining: Arc<Mutex<bool>>,
    /// The last read.
    rows: RefCell<Option<Vec<Share>>>,
    is_in_doubt: Cell<bool>,
    news: Arc<Wakeup>,
    go: Arc<Mutex<Receiver<()>>>,
    back: Mutex<Sender<Step>>,
}

impl SimulatedLink {
    fn chance(&self, of_256: u8) -> bool {
        self.rng.borrow_mut().u8(..) < of_256
    }

    fn is_joining(&self) -> bool {
        *self.is_joining.lock().unwrap()
    }

    /// Lets others act. Fails if this server is killed or loses its connection in between.
    fn step(&self) -> Result<(), StoreError> {
        if self.is_joining() {
            return Ok(());
        }
        let killed = || StoreError::Lasting("the server was killed".into());
        self.back.lock().unwrap().send(Step::Paused).map_err(|_| killed())?;
        self.go.lock().unwrap().recv().map_err(|_| killed())?;
        match self.chance(10) {
            true => Err(StoreError::Passing("the connection was lost".into())),
            false => Ok(()),
        }
    }

    fn node(&self) -> Result<usize, StoreError> {
        let node = self.node.ok_or_else(|| StoreError::Passing("there is no connection".into()))?;
        let cluster = self.database.cluster();
        match node != cluster.primary && !cluster.is_synchronous {
            true => Err(StoreError::Passing("the connection was lost".into())),
            false => Ok(node),
        }
    }

    /// Waits for something on a node. On a node that a standby has replaced, it never happens.
    fn wait(&self, node: usize) -> Result<(), StoreError> {
        self.step()?;
        match node != self.database.cluster().primary && self.chance(60) {
            true => Err(StoreError::Unconfirmed("it did not respond".into())),
            false => Ok(()),
        }
    }

    /// Makes a transaction that may have to wait for others, and waits until it is durable.
    async fn write<T>(
        &self,
        mut make: impl FnMut(&mut Cluster, usize) -> Result<Option<(T, Option<usize>)>, Blocked>,
    ) -> Result<Option<T>, StoreError> {
        let node = self.node()?;
        let (made, number) = loop {
            let result = make(&mut self.database.cluster(), node);
            match result {
                Ok(None) => {
                    self.step()?;
                    return Ok(None);
                }
                Ok(Some(made)) => break made,
                Err(Blocked) if self.is_joining() => self.database.cluster().ship(),
                Err(Blocked) => self.wait(node)?,
            }
        };
        if let Some(number) = number {
            while self.database.cluster().shipped <= number {
                if self.is_joining() {
                    self.database.cluster().ship();
                    continue;
                }
                self.wait(node)?;
                if self.chance(50) {
                    self.database.cluster().note_seen(number);
                    return Err(StoreError::Unconfirmed("its wait was canceled".into()));
                }
            }
        }
        self.step()?;
        Ok(Some(made))
    }
}

impl Link for SimulatedLink {
    fn now(&self) -> Duration {
        self.database.cluster().clock
    }

    async fn pause(&self, time: Duration) {
        self.database.cluster().clock += time.max(Duration::from_millis(400));
    }

    fn target(&self) -> String {
        "simulated".into()
    }

    fn warn(&self, _: &str) {}

    fn inform(&self, _: &str) {}

    fn hosts(&self) -> u32 {
        2
    }

    async fn connect(&mut self) -> Result<(), StoreError> {
        if self.node().is_ok() {
            return Ok(());
        }
        self.step()?;
        let cluster = self.database.cluster();
        for node in [self.first, 1 - self.first] {
            // The first primary does not know that a standby was promoted.
            if node == cluster.primary || node == 0 && cluster.is_synchronous && !self.is_joining()
            {
                (self.node, self.last) = (Some(node), node);
                self.news.wake();
                return Ok(());
            }
        }
        Err(StoreError::Passing("they are standbys".into()))
    }

    fn disconnect(&mut self, leaves: bool) {
        self.node = None;
        if leaves {
            self.first = 1 - self.last;
        }
    }

    async fn register(&self, id: &Id, _: &str) -> Result<i64, StoreError> {
        self.step()?;
        let made = self.write(|cluster, node| {
            if cluster.is_locked(node, id) {
                return Err(Blocked);
            }
            let new = Row { generation: cluster.nodes[node].generation, ..Row::default() };
            let row = cluster.nodes[node].rows.get(id).cloned().unwrap_or(new);
            let (generation, seen) = (row.generation, cluster.clock);
            let changes = vec![Change::Row(*id, Box::new(Row { seen, ..row }))];
            Ok(Some((generation, cluster.write(node, changes))))
        });
        Ok(made.await?.expect("it is always made"))
    }

    async fn commit(&self, write: &Write<'_>) -> Result<Option<i64>, StoreError> {
        let owned = OwnedWrite {
            id: *write.id,
            sequence: write.sequence,
            is_repeat: write.is_repeat,
            generation: write.generation,
            is_reset: write.is_reset,
            state: write.state.clone(),
            users: write.users.iter().map(|user| user.to_vec()).collect(),
        };
        let again = self.fault == Fault::Repeated && self.is_in_doubt.get() && write.is_reset;
        self.is_in_doubt.set(true);
        if let Err(trouble) = self.step() {
            let mut cluster = self.database.cluster();
            if self.node == Some(0) && !cluster.has_failed_over() && self.chance(128) {
                cluster.stragglers.push_back(owned);
            }
            return Err(trouble);
        }
        let node = self.node()?;
        let seen_generation = self.database.cluster().nodes[node].generation;
        self.step()?;
        let made = self.write(|cluster, node| {
            if again && let Some(row) = cluster.nodes[node].rows.get_mut(&owned.id) {
                row.sequence = owned.sequence - 1;
            }
            cluster.commit(node, &owned, seen_generation)
        });
        let made = made.await?;
        self.is_in_doubt.set(false);
        Ok(match self.fault {
            Fault::Hasty => made.or(Some(write.generation)),
            _ => made,
        })
    }

    async fn look(&self, id: &Id) -> Result<(i64, Option<i64>), StoreError> {
        self.step()?;
        let node = self.node()?;
        let cluster = self.database.cluster();
        let tables = &cluster.nodes[node];
        Ok((tables.generation, tables.rows.get(id).map(|row| row.sequence)))
    }

    async fn skip_to(&self, id: &Id, sequence: i64) -> Result<bool, StoreError> {
        self.step()?;
        let made = self.write(|cluster, node| {
            set_sequence(cluster, node, id, |row| (row.sequence <= sequence).then_some(sequence))
        });
        Ok(made.await?.is_some())
    }

    async fn rows(&self, id: &Id) -> Result<Vec<Share>, StoreError> {
        self.step()?;
        let node = self.node()?;
        let rows: Vec<Share> = {
            let cluster = self.database.cluster();
            let share = |(row_id, row): (&Id, &Row)| Share {
                is_this: row_id == id,
                name: format!("{row_id:?}"),
                events: row.events,
                users: row.users,
                sum: row.sum.clone(),
                has_ended: row.is_sum_of_all,
                age: Duration::ZERO,
            };
            cluster.nodes[node].current().map(share).collect()
        };
        self.step()?;
        let before = self.rows.borrow_mut().replace(rows.clone());
        Ok(if self.fault == Fault::Stale { before.unwrap_or(rows) } else { rows })
    }

    async fn confirm(&self, id: &Id, sequence: i64, is_repeat: bool) -> Result<bool, StoreError> {
        if self.fault == Fault::Unconfirmed {
            self.database.cluster().nodes.iter_mut().for_each(|tables| {
                if let Some(row) = tables.rows.get_mut(id) {
                    row.sequence = sequence;
                }
            });
            return Ok(true);
        }
        self.step()?;
        let made = self.write(|cluster, node| {
            set_sequence(cluster, node, id, |row| {
                let (row, write, is_of_generation) = (row.sequence, sequence, true);
                let values = Values { sequence: row, write, is_repeat, is_of_generation };
                values.hold(MAY_WRITE).then_some(sequence)
            })
        });
        Ok(made.await?.is_some())
    }

    async fn lagging(&self, id: &Id, generation: i64) -> Result<u64, StoreError> {
        self.step()?;
        let node = self.node()?;
        let cluster = self.database.cluster();
        let lags = |(other, row): &(&Id, &Row)| {
            *other != id
                && row.generation < generation
                && row.seen + Duration::from_secs(3) > cluster.clock
        };
        Ok(cluster.nodes[node].rows.iter().filter(lags).count() as u64)
    }

    async fn rename(&self, _: &Id, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    async fn end(&self, _: &Id) -> Result<(), StoreError> {
        Ok(())
    }
}

fn set_sequence(
    cluster: &mut Cluster,
    node: usize,
    id: &Id,
    choose: impl Fn(&Row) -> Option<i64>,
) -> Result<Option<((), Option<usize>)>, Blocked> {
    if cluster.is_locked(node, id) {
        return Err(Blocked);
    }
    let Some(row) = cluster.nodes[node].rows.get(id).cloned() else { return Ok(None) };
    let Some(sequence) = choose(&row) else { return Ok(None) };
    let seen = cluster.clock;
    let row = Box::new(Row { sequence, seen, ..row });
    Ok(Some(((), cluster.write(node, vec![Change::Row(*id, row)]))))
}

/// The store of a server: the program's own code, on the simulated database.
pub(crate) struct SharedStore {
    member: Member<SimulatedLink>,
    runtime: Runtime,
    news: Arc<Wakeup>,
    /// True if it is not notified of resets: it commits each time, although nothing has changed.
    is_deaf: bool,
}

impl SharedStore {
    /// Joins the group.
    pub(crate) fn join(
        database: &Database,
        mut rng: Rng,
        fault: Fault,
        go: Arc<Mutex<Receiver<()>>>,
        back: Sender<Step>,
    ) -> SharedStore {
        let wakeup = Arc::new(Wakeup::new().unwrap());
        // Some servers are notified of resets, and others have to check.
        let is_deaf = rng.bool();
        if !is_deaf {
            database.cluster().listeners.push(Arc::clone(&wakeup));
        }
        if fault == Fault::Unordered {
            database.cluster().commit_condition = GENERATION;
        }
        let is_joining = Arc::new(Mutex::new(true));
        let first = database.cluster().primary;
        let mut member = Member::new(SimulatedLink {
            database: database.clone(),
            rng: RefCell::new(rng),
            fault,
            node: None,
            last: first,
            first,
            is_joining: Arc::clone(&is_joining),
            rows: RefCell::default(),
            is_in_doubt: Cell::new(false),
            news: Arc::clone(&wakeup),
            go,
            back: Mutex::new(back),
        });
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(member.join(Duration::from_secs(5))).unwrap();
        *is_joining.lock().unwrap() = false;
        SharedStore { member, runtime, news: wakeup, is_deaf }
    }
}

impl SharedTotals for SharedStore {
    fn read(&mut self) -> Result<Group, Failure> {
        self.runtime.block_on(self.member.read())
    }
}

impl Store for SharedStore {
    fn users(&mut self, _: &mut dyn FnMut(&UserIds)) -> Result<(), Failure> {
        Ok(())
    }

    fn commit(&mut self, state: &State, new_users: &UserIds) -> Result<Outcome, Failure> {
        self.runtime.block_on(self.member.commit(state, new_users))
    }

    fn shared(&mut self) -> Option<&mut dyn SharedTotals> {
        Some(self)
    }

    /// Never blocks, because the seed decides when a server gets its turn.
    fn wait(&mut self, _: &Notify, _: bool) -> bool {
        self.news.clear() || self.is_deaf
    }
}
