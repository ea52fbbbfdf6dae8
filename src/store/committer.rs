//! The one thread that makes cuts durable: while it writes one, the shards count what the next will carry.
//!
//! If other servers share the store, it also reads the totals over all of them, and commits whenever the store has a
//! reason for that, although nothing has changed.

use super::{Outcome, Settlement, Store, Wakeups, monotonic_ms};
use crate::failure::Failure;
use crate::metrics::StoreMetrics;
use crate::tally::{Cut, Journal, State, Totals};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Takes cuts, commits them, and says what is settled.
pub struct Committer {
    journal: Journal,
    store: Box<dyn Store>,
    settlement: Arc<Settlement>,
    wakeups: Arc<Wakeups>,
    metrics: Arc<StoreMetrics>,
    /// What the store was last told to hold.
    committed: State,
}

impl fmt::Debug for Committer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Committer").field("committed", &self.committed).finish_non_exhaustive()
    }
}

/// Tells a committer to make a last commit and to end.
#[derive(Clone, Debug, Default)]
pub struct Ending(Arc<AtomicBool>);

impl Ending {
    /// Ends the committer that these wake-ups belong to.
    pub fn begin(&self, wakeups: &Wakeups) {
        self.0.store(true, Ordering::Release);
        wakeups.committer.notify_one();
    }
}

impl Committer {
    /// A committer to a store that holds `committed`, from which the journal's counters go on. The settlement
    /// knows whether others share the store.
    pub fn new(
        journal: Journal,
        mut store: Box<dyn Store>,
        committed: State,
        settlement: Arc<Settlement>,
        wakeups: Arc<Wakeups>,
        metrics: Arc<StoreMetrics>,
    ) -> Committer {
        let is_shared = store.shared().is_some();
        assert_eq!(is_shared, settlement.is_shared(), "totals are read where others count");
        Committer { journal, store, settlement, wakeups, metrics, committed }
    }

    /// Commits whatever shards ask for, until it is told to end; then what is left.
    ///
    /// # Errors
    ///
    /// Those of [`Store::commit`]. What waits then never leaves.
    pub fn run(mut self, ending: &Ending) -> Result<(), Failure> {
        loop {
            // The shards have ended then: nothing comes after the last commit, which reads the totals over all servers
            // once more.
            let is_last = ending.0.load(Ordering::Acquire);
            let is_wanted = is_last || self.settlement.is_requested();
            // A request that comes after this wakes it.
            let is_due = self.store.wait(&self.wakeups.committer, is_wanted);
            if is_wanted || is_due {
                self.commit_and(is_due, is_last)?;
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// Takes one cut, makes it durable, and says so.
    ///
    /// # Errors
    ///
    /// Those of [`Store::commit`].
    pub fn commit(&mut self) -> Result<(), Failure> {
        let is_due = self.store.wait(&self.wakeups.committer, true);
        self.commit_and(is_due, false)
    }

    /// Takes one cut and makes it durable; writes it even if nothing has changed when that `is_due`. If others share the
    /// store, also reads the totals afterwards when that `is_read` or requested. Starts over for as long as others reset
    /// the totals meanwhile.
    fn commit_and(&mut self, mut is_due: bool, is_read: bool) -> Result<(), Failure> {
        loop {
            let cut = self.journal.cut();
            if self.settlement.is_shared() {
                self.settlement.begin(cut.epoch, monotonic_ms());
            }
            let outcome = match is_due || cut.state != self.committed {
                true => self.write(&cut)?,
                // Where nothing has changed, the store holds it.
                false => Outcome::Durable,
            };
            if outcome == Outcome::Superseded {
                self.start_over(&cut);
                is_due = self.store.wait(&self.wakeups.committer, true);
                continue;
            }
            let totals = self.totals_after(&cut, is_read)?;
            self.settlement.settle(cut.epoch, totals, |waker| self.wakeups.wake(waker));
            return Ok(());
        }
    }

    /// Writes a cut to the store.
    fn write(&mut self, cut: &Cut) -> Result<Outcome, Failure> {
        let started = Instant::now();
        self.metrics.begin_commit();
        let outcome = self.store.commit(&cut.state, &cut.new_users).inspect_err(|_| {
            self.metrics.errors.add(1);
        })?;
        if outcome == Outcome::Durable {
            let events = match cut.state.generation == self.committed.generation {
                true => cut.state.events - self.committed.events,
                false => cut.state.events,
            };
            self.metrics.note_commit(events, started.elapsed());
            self.committed = cut.state.clone();
        }
        Ok(outcome)
    }

    /// Starts from zero after the reset of another server, which a cut has met: what is not settled is void.
    fn start_over(&mut self, cut: &Cut) {
        // The next generation only follows that of the other server, and the store knows that. It is one more than the
        // generation of this cut, even if this cut only followed an earlier reset itself.
        let generation = self.journal.reset();
        self.settlement.void_before(generation);
        self.metrics.superseded.add(1);
        // The next cut differs from it by its generation, and so is written whatever it holds.
        self.committed = cut.state.clone();
    }

    /// The totals after a durable cut, which are read if other servers share the store, and that `is_read` or requested.
    fn totals_after(&mut self, cut: &Cut, is_read: bool) -> Result<Option<Totals>, Failure> {
        let Some(shared) = self.store.shared() else { return Ok(Some(cut.state.totals())) };
        if !is_read && !self.settlement.is_read_requested() {
            return Ok(None);
        }
        let group = shared.read().inspect_err(|_| {
            self.metrics.errors.add(1);
        })?;
        self.metrics.note_read(group.servers);
        Ok(Some(group.totals))
    }
}
