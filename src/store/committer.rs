//! The only thread that makes cuts durable: while it writes one cut, the shards count the events of the next.
//!
//! If other servers share the store, it also reads the totals over all of them, and commits whenever the store has its own
//! reason for that, even if nothing has changed.

use super::{Outcome, Settlement, Store, Wakeups, monotonic_ms};
use crate::failure::Failure;
use crate::metrics::StoreMetrics;
use crate::tally::{Cut, Journal, State, Totals};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Takes cuts, commits them, and reports what is settled.
pub struct Committer {
    journal: Journal,
    store: Box<dyn Store>,
    settlement: Arc<Settlement>,
    wakeups: Arc<Wakeups>,
    metrics: Arc<StoreMetrics>,
    /// The last state that was given to the store.
    committed: State,
}

impl fmt::Debug for Committer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Committer").field("committed", &self.committed).finish_non_exhaustive()
    }
}

/// The signal for a committer to make a last commit and end.
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
    /// Creates a committer for a store that holds `committed`. The journal's counters continue from that state. The settlement
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

    /// Commits whenever shards request it, until it is signaled to end, and then commits the rest.
    ///
    /// # Errors
    ///
    /// The errors of [`Store::commit`]. After an error, waiting responses never leave.
    pub fn run(mut self, ending: &Ending) -> Result<(), Failure> {
        loop {
            // At the end, the shards have ended before this is set, so nothing follows the last commit, which reads the totals
            // over all servers again.
            let is_last = ending.0.load(Ordering::Acquire);
            let is_wanted = is_last || self.settlement.is_requested();
            // A request that comes later wakes it.
            let is_due = self.store.wait(&self.wakeups.committer, is_wanted);
            if is_wanted || is_due {
                self.commit_and(is_due, is_last)?;
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// Takes one cut, makes it durable, and reports it.
    ///
    /// # Errors
    ///
    /// The errors of [`Store::commit`].
    pub fn commit(&mut self) -> Result<(), Failure> {
        let is_due = self.store.wait(&self.wakeups.committer, true);
        self.commit_and(is_due, false)
    }

    /// Takes one cut and makes it durable. Writes an unchanged state only if a commit `is_due`. If others share the store, also
    /// reads the totals afterward if `is_read` or a read is requested. Starts over whenever another server has reset the totals
    /// in the meantime.
    fn commit_and(&mut self, mut is_due: bool, is_read: bool) -> Result<(), Failure> {
        loop {
            let cut = self.journal.cut();
            if self.settlement.is_shared() {
                self.settlement.begin(cut.epoch, monotonic_ms());
            }
            let outcome = match is_due || cut.state != self.committed {
                true => self.write(&cut)?,
                // If nothing has changed, the store has it already.
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

    /// Starts from zero after a cut has met the reset of another server: everything that is not settled is void.
    fn start_over(&mut self, cut: &Cut) {
        // The next generation only follows the other server's reset, and the store knows that. It is one more than the
        // generation of this cut, even if this cut itself only followed an earlier reset.
        let generation = self.journal.reset();
        self.settlement.void_before(generation);
        self.metrics.superseded.add(1);
        // The next cut has a different generation, so it is written whatever its content is.
        self.committed = cut.state.clone();
    }

    /// Returns the totals after a durable cut. If other servers share the store, reads them if `is_read` or a read
    /// is requested.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Group, SharedTotals};
    use crate::tally::{Tally, UserIds, Writer};
    use crate::uring::Wakeup;
    use std::collections::VecDeque;
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use tokio::sync::Notify;

    /// A use of the store: a state written, with the number of its new users, or totals read.
    #[derive(Debug, PartialEq)]
    enum Done {
        Wrote(Box<State>, u64),
        Read,
    }

    /// A store that reports how it is used. Others share it if it has totals to read.
    struct Recorder {
        done: Sender<Done>,
        /// The outcomes of the next commits; those after them are durable.
        outcomes: Arc<Mutex<VecDeque<Result<Outcome, Failure>>>>,
        shared: Option<Totals>,
        /// Whether it has its own reason for a commit, once.
        is_due: Arc<AtomicBool>,
    }

    impl Store for Recorder {
        fn users(&mut self, _: &mut dyn FnMut(&UserIds)) -> Result<(), Failure> {
            Ok(())
        }

        fn commit(&mut self, state: &State, new_users: &UserIds) -> Result<Outcome, Failure> {
            self.done.send(Done::Wrote(Box::new(state.clone()), new_users.len())).unwrap();
            self.outcomes.lock().unwrap().pop_front().unwrap_or(Ok(Outcome::Durable))
        }

        fn shared(&mut self) -> Option<&mut dyn SharedTotals> {
            self.shared.is_some().then_some(self as _)
        }

        fn wait(&mut self, wakeup: &Notify, is_wanted: bool) -> bool {
            if !is_wanted {
                futures_lite::future::block_on(wakeup.notified());
            }
            self.is_due.swap(false, Ordering::AcqRel)
        }
    }

    impl SharedTotals for Recorder {
        fn read(&mut self) -> Result<Group, Failure> {
            self.done.send(Done::Read).unwrap();
            Ok(Group { totals: self.shared.unwrap(), servers: Vec::new() })
        }
    }

    struct Rig {
        tally: Arc<Tally>,
        writer: Writer,
        committer: Option<Committer>,
        settlement: Arc<Settlement>,
        wakeups: Arc<Wakeups>,
        metrics: Arc<StoreMetrics>,
        done: Receiver<Done>,
        outcomes: Arc<Mutex<VecDeque<Result<Outcome, Failure>>>>,
        is_due: Arc<AtomicBool>,
    }

    impl Rig {
        fn new(shared: Option<Totals>) -> Rig {
            let state = State::default();
            let (tally, mut writers, journal) = Tally::resume(1, 10, &state);
            let settlement = Arc::new(Settlement::new(1, state.totals(), shared.is_some()));
            let shards = vec![Arc::new(Wakeup::new().unwrap())];
            let wakeups = Arc::new(Wakeups { committer: Notify::new(), shards });
            let (sender, done) = channel();
            let (outcomes, is_due) = (Arc::default(), Arc::default());
            let store = Recorder {
                done: sender,
                outcomes: Arc::clone(&outcomes),
                shared,
                is_due: Arc::clone(&is_due),
            };
            let metrics = Arc::new(StoreMetrics::default());
            let committer = Committer::new(
                journal,
                Box::new(store),
                state,
                Arc::clone(&settlement),
                Arc::clone(&wakeups),
                Arc::clone(&metrics),
            );
            let (writer, committer) = (writers.remove(0), Some(committer));
            Rig { tally, writer, committer, settlement, wakeups, metrics, done, outcomes, is_due }
        }

        /// Counts an event, and returns the epoch that settles it.
        fn count(&mut self, user: &str) -> u64 {
            self.writer.count(user.as_bytes(), 0.5).unwrap();
            self.writer.publish();
            self.writer.settles_at()
        }

        fn commit(&mut self) -> Result<(), Failure> {
            self.committer.as_mut().unwrap().commit()
        }

        fn done(&self) -> Vec<Done> {
            self.done.try_iter().collect()
        }
    }

    fn state(generation: u64, events: u64, users: u64) -> State {
        let sum = (0..events).map(|_| 0.5).collect();
        State { generation, events, users, sum }
    }

    fn wrote(state: State, new_users: u64) -> Done {
        Done::Wrote(Box::new(state), new_users)
    }

    #[test]
    fn a_commit_writes_what_has_changed_and_settles_it() {
        let mut rig = Rig::new(None);
        let epoch = rig.count("a");
        assert!(rig.settlement.settled() < epoch);
        rig.commit().unwrap();
        assert_eq!(rig.done(), [wrote(state(0, 1, 1), 1)]);
        assert!(rig.settlement.settled() >= epoch);
        assert_eq!(rig.settlement.totals(), state(0, 1, 1).totals());
        rig.count("a");
        rig.count("b");
        rig.commit().unwrap();
        assert_eq!(rig.done(), [wrote(state(0, 3, 2), 1)]);
        assert_eq!(rig.metrics.events_total.get(), 3);
        let settled = rig.settlement.settled();
        rig.commit().unwrap();
        assert_eq!(rig.done(), [], "the store holds it");
        assert!(rig.settlement.settled() > settled, "and it is settled once more");
        rig.is_due.store(true, Ordering::Release);
        rig.commit().unwrap();
        assert_eq!(rig.done(), [wrote(state(0, 3, 2), 0)], "others must hear of this server");
        rig.tally.reset();
        rig.count("b");
        rig.commit().unwrap();
        assert_eq!(rig.done(), [wrote(state(1, 1, 1), 1)]);
        assert_eq!(rig.metrics.events_total.get(), 4, "each event is committed once");
    }

    #[test]
    fn a_commit_that_fails_settles_nothing_and_is_counted() {
        let mut rig = Rig::new(None);
        let epoch = rig.count("a");
        rig.outcomes.lock().unwrap().push_back(Err(Failure::Environment("no disk".into())));
        assert!(rig.commit().is_err());
        assert!(rig.settlement.settled() < epoch);
        assert_eq!(rig.metrics.errors.get(), 1);
    }

    #[test]
    fn what_another_server_has_reset_is_void_and_counted_no_more() {
        let group = state(5, 9, 3).totals();
        let mut rig = Rig::new(Some(group));
        let generation = rig.writer.generation();
        let epoch = rig.count("a");
        let superseded = [Ok(Outcome::Superseded), Ok(Outcome::Superseded)];
        rig.outcomes.lock().unwrap().extend(superseded);
        rig.commit().unwrap();
        assert_eq!(
            rig.done(),
            [wrote(state(0, 1, 1), 1), wrote(state(1, 0, 0), 0), wrote(state(2, 0, 0), 0)]
        );
        assert_eq!(rig.metrics.superseded.get(), 2);
        assert!(rig.settlement.settled() >= epoch && rig.settlement.is_void(epoch, generation));
        assert_ne!(rig.settlement.totals(), group, "nobody has asked for them");
        rig.settlement.request_read(0, rig.tally.next_epoch(), |_| ());
        rig.commit().unwrap();
        assert_eq!(rig.done(), [Done::Read], "and nothing has changed");
        assert_eq!(rig.settlement.totals(), group);
        rig.commit().unwrap();
        assert_eq!(rig.done(), [], "they were read");
    }

    #[test]
    fn a_committer_waits_for_a_request_and_commits_once_more_at_its_end() {
        let group = state(0, 1, 1).totals();
        let mut rig = Rig::new(Some(group));
        let (ending, committer) = (Ending::default(), rig.committer.take().unwrap());
        let running = std::thread::spawn({
            let ending = ending.clone();
            move || committer.run(&ending)
        });
        let epoch = rig.count("a");
        // A wake-up without a reason.
        rig.wakeups.committer.notify_one();
        assert!(!rig.settlement.request(0, epoch, |_| rig.wakeups.committer.notify_one()));
        assert_eq!(rig.done.recv().unwrap(), wrote(state(0, 1, 1), 1));
        while rig.settlement.settled() < epoch {
            std::thread::yield_now();
        }
        rig.count("b");
        ending.begin(&rig.wakeups);
        running.join().unwrap().unwrap();
        assert_eq!(rig.done(), [wrote(state(0, 2, 2), 1), Done::Read]);
    }
}
