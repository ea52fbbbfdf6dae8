//! The store of a server: restored before the shards start, committed to while they run, and finished after
//! they have ended.

use super::Lifecycle;
use crate::failure::Failure;
use crate::log::Log;
use crate::metrics::{Reporter, StoreMetrics};
use crate::store::{self, Committer, Durability, Ending, Location, Settlement, Store, Wakeups};
use crate::tally::{Journal, State, Tally, Totals, Writer};
use crate::uring::Wakeup;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How often the progress of a long restore is logged.
const PROGRESS: Duration = Duration::from_secs(1);

/// Where totals are kept, and how long an acknowledgement waits for that.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The store.
    pub location: Location,
    /// How long an acknowledgement waits for it.
    pub timeout: Duration,
}

/// A store that is open, and the counters that go on from what it holds.
pub(super) struct Restored {
    store: Box<dyn Store>,
    state: State,
    journal: Journal,
    timeout: Duration,
}

/// Opens a store and restores the counters of so many shards from it.
///
/// # Errors
///
/// The store cannot be opened, or what it holds contradicts itself.
pub(super) fn restore(
    config: &StoreConfig,
    shards: usize,
    users_max: u64,
    log: Log,
) -> Result<(Arc<Tally>, Vec<Writer>, Restored), Failure> {
    let (mut store, state) = store::open(&config.location)?;
    let (tally, writers, journal) = Tally::resume(shards, users_max, &state);
    let (mut restored, mut told) = (0, Instant::now());
    store.users(&mut |users| {
        restored += tally.restore_users(users);
        if told.elapsed() >= PROGRESS {
            log.info(&format!("restoring: {restored} of {} users", state.users));
            told = Instant::now();
        }
    })?;
    let location = &config.location;
    if restored != state.users {
        return Err(Failure::Environment(format!(
            "{location} is damaged: it holds {restored} distinct users and says {}: restore it from a backup, \
             or pass another --store",
            state.users
        )));
    }
    log.info(&format!(
        "restored {} of {} from {location}",
        counted(state.events, "event"),
        counted(state.users, "user")
    ));
    Ok((tally, writers, Restored { store, state, journal, timeout: config.timeout }))
}

fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

impl Restored {
    /// Starts the committer. A failure of the store is reported to `lifecycle`.
    ///
    /// # Errors
    ///
    /// The system has no thread or descriptor left.
    pub(super) fn start(
        self,
        shards: &[Arc<Wakeup>],
        lifecycle: Sender<Lifecycle>,
        reporter: &Reporter,
    ) -> io::Result<Durable> {
        // A file that would exceed the limit of its size is an error of the write, and not the end.
        signal_hook::flag::register(
            signal_hook::consts::SIGXFSZ,
            Arc::new(AtomicBool::new(false)),
        )?;
        let settlement = Arc::new(Settlement::new(shards.len(), self.state.totals()));
        let wakeups = Arc::new(Wakeups { committer: Wakeup::new()?, shards: shards.to_vec() });
        let metrics = Arc::new(StoreMetrics::default());
        reporter.report_store(Arc::clone(&metrics));
        let committer = Committer::new(
            self.journal,
            self.store,
            self.state,
            Arc::clone(&settlement),
            Arc::clone(&wakeups),
            metrics,
        );
        let ending = Ending::default();
        let (sender, finished) = channel();
        std::thread::Builder::new().name("committer".into()).spawn({
            let ending = ending.clone();
            move || match committer.run(&ending) {
                Ok(()) => drop(sender.send(())),
                Err(failure) => drop(lifecycle.send(Lifecycle::StoreFailed(failure))),
            }
        })?;
        Ok(Durable { settlement, wakeups, ending, finished, timeout: self.timeout })
    }
}

/// A store that is committed to.
pub(super) struct Durable {
    settlement: Arc<Settlement>,
    wakeups: Arc<Wakeups>,
    ending: Ending,
    finished: Receiver<()>,
    timeout: Duration,
}

impl Durable {
    /// The side of a shard.
    pub(super) fn of_shard(&self, shard: usize) -> Durability {
        // At most a day, which the command line checks.
        let timeout_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        let (settlement, wakeups) = (Arc::clone(&self.settlement), Arc::clone(&self.wakeups));
        Durability::new(settlement, wakeups, shard, timeout_ms)
    }

    /// Commits what is left, after the shards have ended, and returns the totals that the store holds.
    ///
    /// # Errors
    ///
    /// The store failed, or took longer than an acknowledgement may wait.
    pub(super) fn finish(self, lifecycle: &Receiver<Lifecycle>) -> Result<Totals, Failure> {
        self.ending.begin(&self.wakeups);
        match self.finished.recv_timeout(self.timeout) {
            Ok(()) => Ok(self.settlement.totals()),
            Err(RecvTimeoutError::Timeout) => Err(Failure::Environment(format!(
                "the store did not respond within {}: it holds everything that was acknowledged, and may \
                 hold the last events that were not",
                humantime::format_duration(self.timeout)
            ))),
            Err(RecvTimeoutError::Disconnected) => Err(lifecycle
                .try_iter()
                .find_map(|event| match event {
                    Lifecycle::StoreFailed(failure) => Some(failure),
                    _ => None,
                })
                .unwrap_or_else(|| {
                    Failure::Wrong("the committer died: its error is above".into())
                })),
        }
    }
}
