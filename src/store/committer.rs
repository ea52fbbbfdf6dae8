//! The one thread that makes cuts durable: while it writes one, the shards count what the next will carry.

use super::{Outcome, Settlement, Store, Wakeups};
use crate::failure::Failure;
use crate::metrics::StoreMetrics;
use crate::tally::{Journal, State};
use rustix::event::{PollFd, PollFlags, poll};
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
    /// What the store holds.
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
        wakeups.committer.wake();
    }
}

impl Committer {
    /// A committer to a store that holds `committed`, from which the journal's counters go on.
    pub fn new(
        journal: Journal,
        store: Box<dyn Store>,
        committed: State,
        settlement: Arc<Settlement>,
        wakeups: Arc<Wakeups>,
        metrics: Arc<StoreMetrics>,
    ) -> Committer {
        Committer { journal, store, settlement, wakeups, metrics, committed }
    }

    /// Commits whatever shards ask for, until it is told to end; then what is left.
    ///
    /// # Errors
    ///
    /// Those of [`Store::commit`]. What waits then never leaves.
    pub fn run(mut self, ending: &Ending) -> Result<(), Failure> {
        loop {
            // Before the request is looked at: one that comes after that wakes again.
            self.wakeups.committer.clear();
            if ending.0.load(Ordering::Acquire) {
                // The shards have ended: nothing comes after this.
                return self.commit();
            }
            if self.settlement.is_requested() {
                self.commit()?;
            } else {
                let mut wakeup = [PollFd::new(&self.wakeups.committer, PollFlags::IN)];
                // Fails only when a signal interrupts it, and is repeated then.
                let _ = poll(&mut wakeup, None);
            }
        }
    }

    /// Takes one cut, makes it durable, and says so.
    ///
    /// # Errors
    ///
    /// Those of [`Store::commit`].
    pub fn commit(&mut self) -> Result<(), Failure> {
        let started = Instant::now();
        let cut = self.journal.cut();
        // Where nothing has changed, the store holds it.
        if cut.state != self.committed {
            self.metrics.begin_commit();
            match self.store.commit(&cut.state, &cut.new_users) {
                Ok(Outcome::Durable) => {}
                Ok(Outcome::Superseded) => {
                    return Err(Failure::Wrong("the store was reset by another server".into()));
                }
                Err(failure) => {
                    self.metrics.errors.add(1);
                    return Err(failure);
                }
            }
            let events = match cut.state.generation == self.committed.generation {
                true => cut.state.events - self.committed.events,
                false => cut.state.events,
            };
            self.metrics.note_commit(events, started.elapsed());
        }
        let totals = cut.state.totals();
        self.committed = cut.state;
        self.settlement.settle(cut.epoch, totals, |waker| self.wakeups.wake(waker));
        Ok(())
    }
}
