//! The one thread that makes cuts durable: while it writes one, the shards count what the next will carry.
//!
//! Where other servers share the store, it also commits from time to time although nothing has changed, so that
//! the others know of this server, and this server of their resets; and it reads the totals over all of them.

use super::{News, Outcome, Settlement, Store, Wakeups, monotonic_ms};
use crate::failure::Failure;
use crate::metrics::StoreMetrics;
use crate::tally::{Cut, Journal, State, Totals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
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
    /// How others are heard of who share the store, if they can.
    news: Option<News>,
    /// When to commit although nothing has changed.
    due_at: Instant,
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
    /// A committer to a store that holds `committed`, from which the journal's counters go on. The settlement
    /// knows whether others share the store.
    pub fn new(
        journal: Journal,
        store: Box<dyn Store>,
        committed: State,
        settlement: Arc<Settlement>,
        wakeups: Arc<Wakeups>,
        metrics: Arc<StoreMetrics>,
    ) -> Committer {
        let news = store.news();
        assert_eq!(news.is_some(), settlement.is_shared(), "totals are read where others count");
        let due_at = Instant::now();
        Committer { journal, store, settlement, wakeups, metrics, committed, news, due_at }
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
                // The shards have ended: nothing comes after this, which reads the totals over all servers once more.
                return self.commit_and(true);
            }
            self.take_news();
            if self.is_due() || self.settlement.is_requested() {
                self.commit_and(false)?;
            } else {
                self.wait();
            }
        }
    }

    /// Waits until it is woken, or a commit is due.
    fn wait(&self) {
        let wakeup = PollFd::new(&self.wakeups.committer, PollFlags::IN);
        // It fails only when a signal interrupts it, and is repeated then.
        let _ = match &self.news {
            None => poll(&mut [wakeup], None),
            Some(news) => {
                let mut wakeups = [wakeup, PollFd::new(&*news.wakeup, PollFlags::IN)];
                let timeout = self.due_at.saturating_duration_since(Instant::now());
                poll(&mut wakeups, Timespec::try_from(timeout).ok().as_ref())
            }
        };
    }

    /// Has a commit be due where others have changed the store.
    fn take_news(&mut self) {
        if let Some(news) = &self.news
            && news.wakeup.clear()
        {
            self.due_at = Instant::now();
        }
    }

    /// Whether to commit although nothing has changed.
    fn is_due(&self) -> bool {
        self.news.is_some() && Instant::now() >= self.due_at
    }

    /// Takes one cut, makes it durable, and says so.
    ///
    /// # Errors
    ///
    /// Those of [`Store::commit`].
    pub fn commit(&mut self) -> Result<(), Failure> {
        self.take_news();
        self.commit_and(false)
    }

    /// Takes one cut and makes it durable, and where others share the store, reads the totals afterwards if
    /// `is_read` or somebody has asked for them. Repeats it for as long as others reset them meanwhile.
    fn commit_and(&mut self, is_read: bool) -> Result<(), Failure> {
        loop {
            self.store.pace();
            let cut = self.journal.cut();
            if self.news.is_some() {
                self.settlement.begin(cut.epoch, monotonic_ms());
            }
            let outcome = match self.is_due() || cut.state != self.committed {
                true => self.write(&cut)?,
                // Where nothing has changed, the store holds it.
                false => Outcome::Durable,
            };
            if outcome == Outcome::Superseded {
                self.start_over(&cut);
                continue;
            }
            let totals = match self.news {
                None => Some(cut.state.totals()),
                Some(_) if is_read || self.settlement.is_read_requested() => Some(self.read()?),
                Some(_) => None,
            };
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
        if let Some(news) = &self.news {
            self.due_at = Instant::now() + news.every;
        }
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
        self.committed = cut.state.clone();
        self.due_at = Instant::now();
    }

    /// Reads the totals over all servers.
    fn read(&mut self) -> Result<Totals, Failure> {
        let group = self.store.read().inspect_err(|_| {
            self.metrics.errors.add(1);
        })?;
        let group = group.expect("a store with news has the totals of a group");
        self.metrics.note_read(group.servers);
        Ok(group.totals)
    }
}
