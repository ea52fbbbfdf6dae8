//! Makes the totals outlive the process.
//!
//! One [`Committer`] per process takes cuts of the tally and writes them to a [`Store`]; the shards hold responses back
//! ([`Held`]) until the cut that contains their events is durable ([`Settlement`]).

mod committer;
pub mod file;
mod held;
pub mod postgres;
mod settle;

use crate::failure::Failure;
use crate::log::Log;
pub use crate::metrics::ServerShare;
use crate::tally::{State, Totals, UserIds};
use crate::uring::Wakeup;
pub use committer::{Committer, Ending};
use file::FileStore;
use futures_lite::future::block_on;
pub use held::{Held, Release};
use postgres::{PostgresStore, Target};
use rustix::time::{ClockId, clock_gettime};
pub use settle::{Settlement, Waker};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Keeps a [`State`] and its users through crashes and power failures.
pub trait Store: Send {
    /// Calls `each` with the users of the state that the store held when it was opened, part by part.
    ///
    /// # Errors
    ///
    /// [`Failure::Environment`] if the content of the store cannot be read, or contradicts itself.
    fn users(&mut self, each: &mut dyn FnMut(&UserIds)) -> Result<(), Failure>;

    /// Makes a state durable, replacing the previous one, together with the users that are new since the earlier commits of the
    /// same generation. Returns once the outcome is known and can no longer be lost.
    ///
    /// A state of a later generation than the previous state is a reset for everybody who shares the store. But after any
    /// number of [`Outcome::Superseded`] in a row, a state of the very next generation only follows the reset of another
    /// server. A reset is superseded only if the store can no longer determine whether it was made before. With a shared store,
    /// an unchanged state shows that this server is alive.
    ///
    /// # Errors
    ///
    /// [`Failure::Environment`] if it is unknown whether the state is durable. The store must not be used again then,
    /// because fsync(2) does not report an error twice. A shared store tries again by itself, and fails only if trying again
    /// cannot help.
    fn commit(&mut self, state: &State, new_users: &UserIds) -> Result<Outcome, Failure>;

    /// Returns access to the totals of all servers that share the store; `None` if other servers do not share it, because the
    /// totals are in the last commit then.
    fn shared(&mut self) -> Option<&mut dyn SharedTotals> {
        None
    }

    /// Waits before a cut is taken: if a commit is wanted, only until the store is ready for one; otherwise, until it is woken
    /// or has its own reason for a commit. Returns whether it has its own reason: although nothing has changed, the servers
    /// that share the store must hear from this one, or this one must learn of their reset.
    fn wait(&mut self, wakeup: &Notify, is_wanted: bool) -> bool {
        if !is_wanted {
            block_on(wakeup.notified());
        }
        false
    }

    /// Gives the store the name of this server among all servers that share it.
    fn introduce(&mut self, _name: &str) {}
}

/// The totals in a store that servers share.
pub trait SharedTotals {
    /// Reads the totals over all servers, at one moment between the call and its return.
    ///
    /// # Errors
    ///
    /// The errors of [`Store::commit`].
    fn read(&mut self) -> Result<Group, Failure>;
}

/// The result of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The state is durable.
    Durable,
    /// Another server has reset the totals: the state is not durable and never will be.
    Superseded,
}

/// The totals of all servers that share a store, at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The totals over all of them.
    pub totals: Totals,
    /// The contribution of each server.
    pub servers: Vec<ServerShare>,
}

/// The location of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file.
    File(PathBuf),
    /// A PostgreSQL, which other servers may share.
    Postgres(Box<Target>),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::File(path) => write!(f, "{}", path.display()),
            Location::Postgres(target) => write!(f, "{target}"),
        }
    }
}

/// An opened store.
pub struct Opened {
    /// The store.
    pub store: Box<dyn Store>,
    /// The state that it holds for this server.
    pub state: State,
    /// The totals over all servers.
    pub totals: Totals,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("totals", &self.totals).finish_non_exhaustive()
    }
}

/// Opens a store, or creates it if it does not exist. Waits for a store that does not respond for as long as `timeout`; logs
/// later losses of its connection.
///
/// # Errors
///
/// [`Failure::Environment`] if it cannot be opened or created, or if its content is damaged or unknown.
pub fn open(location: &Location, timeout: Duration, log: Log) -> Result<Opened, Failure> {
    match location {
        Location::File(path) => {
            let (store, state) = FileStore::open(path)?;
            let totals = state.totals();
            Ok(Opened { store: Box::new(store), state, totals })
        }
        Location::Postgres(target) => {
            let (store, group) = PostgresStore::open(target, timeout, log)?;
            // Its content was counted by other servers, and by this server before a restart.
            let (state, totals) = (State::default(), group.totals);
            Ok(Opened { store: Box::new(store), state, totals })
        }
    }
}

/// The threads that a settlement wakes.
#[derive(Debug)]
pub struct Wakeups {
    /// The committer's. A wake-up that comes while the committer is not waiting is kept.
    pub committer: Notify,
    /// One for each shard.
    pub shards: Vec<Arc<Wakeup>>,
}

impl Wakeups {
    fn wake(&self, waker: Waker) {
        match waker {
            Waker::Committer => self.committer.notify_one(),
            Waker::Shard(shard) => self.shards[shard].wake(),
        }
    }
}

/// One shard's side of the store.
#[derive(Debug)]
pub struct Durability {
    settlement: Arc<Settlement>,
    wakeups: Arc<Wakeups>,
    shard: usize,
    /// The longest time that an acknowledgement waits for the store, in milliseconds.
    timeout_ms: u64,
}

#[cfg(test)]
impl Durability {
    /// Creates it for a shard, with a settlement that lets a test settle epochs.
    pub(crate) fn for_test(timeout_ms: u64, is_shared: bool) -> (Durability, Arc<Settlement>) {
        let settlement = Arc::new(Settlement::new(1, State::default().totals(), is_shared));
        let shards = vec![Arc::new(Wakeup::new().unwrap())];
        let wakeups = Arc::new(Wakeups { committer: Notify::new(), shards });
        (Durability::new(Arc::clone(&settlement), wakeups, 0, timeout_ms), settlement)
    }
}

impl Durability {
    /// Creates it for a shard whose acknowledgements wait at most `timeout_ms` milliseconds.
    pub fn new(
        settlement: Arc<Settlement>,
        wakeups: Arc<Wakeups>,
        shard: usize,
        timeout_ms: u64,
    ) -> Durability {
        Durability { settlement, wakeups, shard, timeout_ms }
    }

    /// Returns the last settled epoch: everything up to it is durable or void.
    #[inline]
    pub fn settled(&self) -> u64 {
        self.settlement.settled()
    }

    /// Returns the part of a connection's bytes that may leave.
    #[inline]
    pub fn release(&self, held: &mut Held, bytes: usize) -> Release {
        let is_void = |epoch, generation| self.settlement.is_void(epoch, generation);
        held.release(self.settlement.settled(), bytes, is_void)
    }

    /// Asks for an epoch to be settled. Call this after noting what waits for it. Returns whether it is settled already; if
    /// not, each commit wakes the shard until it is.
    pub fn request(&self, epoch: u64) -> bool {
        self.settlement.request(self.shard, epoch, |waker| self.wakeups.wake(waker))
    }

    /// Reports whether other servers share the store, so that totals must be read before they are shown.
    #[inline]
    pub fn is_shared(&self) -> bool {
        self.settlement.is_shared()
    }

    /// Returns the epoch of the last cut that was followed by a read of the totals.
    #[inline]
    pub fn read(&self) -> u64 {
        self.settlement.read()
    }

    /// Asks, in the same way, for the totals to be read after a cut.
    pub fn request_read(&self, epoch: u64) -> bool {
        self.settlement.request_read(self.shard, epoch, |waker| self.wakeups.wake(waker))
    }

    /// Returns the totals of the last durable cut or, if others share the store, the totals that were read last.
    pub fn totals(&self) -> Totals {
        self.settlement.totals()
    }

    /// Notes that the store is late if a commit has taken too long, even if nobody waits for it. Call this from time to
    /// time.
    pub fn check_store(&self) {
        if self.is_shared() {
            self.settlement.check_under_way(monotonic_ms(), self.timeout_ms);
        }
    }

    /// Notes that a response has waited too long for an epoch.
    pub fn note_late(&self, epoch: u64) {
        self.settlement.note_late(epoch);
    }

    /// Reports whether a response has waited too long, and the store still has not settled it.
    #[inline]
    pub fn is_late(&self) -> bool {
        self.settlement.is_late()
    }

    /// Returns the longest time that an acknowledgement waits for the store, in milliseconds.
    pub fn timeout_ms(&self) -> u64 {
        self.timeout_ms
    }
}

/// Returns the milliseconds of a clock that is the same for every thread of the process.
fn monotonic_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // The clock starts with the machine, and is never negative.
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn a_reset_of_another_server_makes_void_what_was_not_settled_by_then_and_nothing_else() {
        let settlement = Settlement::new(1, State::default().totals(), true);
        settlement.settle(5, None, |_| ());
        settlement.void_before(2);
        settlement.settle(9, None, |_| ());
        for (epoch, generation, is_void) in
            [(4, 1, false), (5, 1, false), (6, 1, true), (6, 2, false)]
        {
            assert_eq!(settlement.is_void(epoch, generation), is_void, "{epoch} {generation}");
        }
    }

    fn settlement(shards: usize) -> (Settlement, Totals) {
        let totals = State::default().totals();
        (Settlement::new(shards, totals, true), totals)
    }

    #[test]
    fn whoever_waits_is_woken_and_nobody_else() {
        let (settlement, totals) = settlement(3);
        let woken = RefCell::new(Vec::new());
        let wake = |waker| woken.borrow_mut().push(waker);
        assert!(!settlement.is_requested());
        assert!(!settlement.request(0, 5, wake));
        assert_eq!(woken.take(), [Waker::Committer]);
        assert!(settlement.is_requested() && !settlement.is_read_requested());
        assert!(!settlement.request(1, 5, wake));
        assert_eq!(woken.take(), [], "the first has asked for it");
        assert!(!settlement.request_read(2, 4, wake));
        assert_eq!(woken.take(), [Waker::Committer]);
        settlement.settle(4, None, wake);
        assert_eq!(
            woken.take(),
            [Waker::Shard(0), Waker::Shard(1)],
            "with each commit until it is there"
        );
        settlement.settle(5, None, wake);
        assert_eq!(woken.take(), [Waker::Shard(0), Waker::Shard(1)]);
        assert_eq!((settlement.settled(), settlement.read()), (5, 0));
        assert!(settlement.is_requested() && settlement.is_read_requested());
        let read = Totals { total_requests: 7, ..totals };
        settlement.settle(6, Some(read), wake);
        assert_eq!(woken.take(), [Waker::Shard(2)]);
        assert_eq!((settlement.settled(), settlement.read()), (6, 6));
        assert_eq!(settlement.totals(), read);
        assert!(!settlement.is_requested() && !settlement.is_read_requested());
        settlement.settle(7, Some(totals), wake);
        assert!(settlement.request(0, 7, wake) && settlement.request_read(2, 7, wake));
        assert_eq!(woken.take(), []);
        assert!(!settlement.request(0, 8, wake) && !settlement.request_read(2, 8, wake));
    }

    #[test]
    fn a_store_is_late_from_the_timeout_of_its_commit_until_that_is_durable() {
        let (settlement, _) = settlement(1);
        settlement.check_under_way(u64::MAX, 0);
        assert!(!settlement.is_late(), "no commit is under way");
        settlement.begin(1, 100);
        settlement.check_under_way(50, 10);
        settlement.check_under_way(109, 10);
        assert!(!settlement.is_late());
        settlement.check_under_way(110, 10);
        assert!(settlement.is_late());
        settlement.settle(1, None, |_| ());
        settlement.check_under_way(u64::MAX, 0);
        assert!(!settlement.is_late(), "it is durable");
        settlement.note_late(1);
        assert!(!settlement.is_late(), "it was durable before");
        settlement.note_late(3);
        settlement.settle(2, None, |_| ());
        assert!(settlement.is_late());
        settlement.settle(3, None, |_| ());
        assert!(!settlement.is_late());
    }

    #[test]
    fn what_is_void_stays_so_however_many_resets_follow() {
        let (settlement, _) = settlement(1);
        let mut voids = Vec::new();
        for reset in 1..=40 {
            let (settled, generation) = (10 * reset, 2 * reset);
            settlement.settle(settled, None, |_| ());
            settlement.void_before(generation);
            voids.push((settled, generation));
            for epoch in 0..=10 * reset + 10 {
                for back in 0..=4 {
                    let counted = generation - back.min(generation);
                    let is_void =
                        |(after, before): &(u64, u64)| epoch > *after && counted < *before;
                    let expected = voids.iter().any(is_void);
                    let found = settlement.is_void(epoch, counted);
                    assert!(found || !expected, "{epoch} {counted} after {reset}");
                    // More of the older responses may be void.
                    let is_recent = epoch > settled.saturating_sub(150);
                    assert!(found == expected || !is_recent, "{epoch} {counted} after {reset}");
                }
            }
        }
    }
}
