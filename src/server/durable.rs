//! The store of a server: restored before the shards start, committed to while they run, and finished after they end.

use super::{Lifecycle, Stopping, counted};
use crate::failure::Failure;
use crate::log::Log;
use crate::metrics::{Reporter, StoreMetrics};
use crate::store::{
    self, Committer, Durability, Ending, Location, Opened, Settlement, Store, Wakeups,
};
use crate::tally::{Journal, State, Tally, Totals, Writer};
use crate::uring::Wakeup;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The interval between log lines about the progress of a long restore.
const PROGRESS: Duration = Duration::from_secs(1);

/// The check of a store is logged if the store has at least this many bytes. At this size, the check takes about a
/// second on a slow disk.
const LONG_CHECK_BYTES: u64 = 64 << 20;

/// A store, and the time that an acknowledgement waits for it.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The location of the store.
    pub location: Location,
    /// The time that an acknowledgement waits for the store.
    pub timeout: Duration,
}

/// The outcome of a restore.
#[expect(clippy::large_enum_variant, reason = "there is one per process")]
pub(super) enum Start {
    /// The counters continue from the totals in the store.
    Restored(Arc<Tally>, Vec<Writer>, Restored),
    /// A signal arrived first. If the totals in the store had already been read, these are the totals.
    Stopped(Option<Totals>),
}

/// An open store, and everything else that a committer needs.
pub(super) struct Restored {
    store: Box<dyn Store>,
    state: State,
    /// The totals in the store across all servers.
    totals: Totals,
    journal: Journal,
    timeout: Duration,
}

/// Opens a store and restores the shards' counters from it, unless a signal arrives first on the channel that `ends` belong to.
///
/// # Errors
///
/// The store cannot be opened, or its content contradicts itself.
pub(super) fn restore(
    config: &StoreConfig,
    shards: usize,
    users_max: u64,
    log: Log,
    ends: (&Sender<Lifecycle>, &Receiver<Lifecycle>),
) -> Result<Start, Failure> {
    let bytes = match &config.location {
        Location::File(path) => std::fs::metadata(path).map_or(0, |file| file.len()),
        Location::Postgres(_) => 0,
    };
    if bytes >= LONG_CHECK_BYTES {
        log.info(&format!("checking {} ({} MiB)", config.location, bytes >> 20));
    }
    let (sender, lifecycle) = ends;
    let Some(opened) = open(config, log, sender, lifecycle)? else {
        return Ok(Start::Stopped(None));
    };
    let Opened { mut store, state, totals } = *opened;
    let (tally, writers, journal) = Tally::resume(shards, users_max, &state);
    let (mut restored, mut told, mut is_stopped) = (0, Instant::now(), false);
    store.users(&mut |users| {
        is_stopped |= is_told_to_stop(lifecycle);
        if is_stopped {
            return;
        }
        restored += tally.restore_users(users);
        if told.elapsed() >= PROGRESS {
            log.info(&format!("restoring: {restored} of {} users", state.users));
            told = Instant::now();
        }
    })?;
    if is_stopped {
        return Ok(Start::Stopped(Some(totals)));
    }
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
        counted(totals.total_requests, "event"),
        counted(totals.unique_users, "user")
    ));
    let restored = Restored { store, state, totals, journal, timeout: config.timeout };
    Ok(Start::Restored(tally, writers, restored))
}

/// Opens a store on a separate thread, so that a signal immediately ends the wait for a database or the check of a large file.
/// Returns `None` if a signal arrives first; the process then ends, which does not harm a store more than a crash would.
fn open(
    config: &StoreConfig,
    log: Log,
    sender: &Sender<Lifecycle>,
    lifecycle: &Receiver<Lifecycle>,
) -> Result<Option<Box<Opened>>, Failure> {
    let StoreConfig { location, timeout } = config.clone();
    let sender = sender.clone();
    std::thread::Builder::new()
        .name("opening".into())
        .spawn(move || {
            let open = AssertUnwindSafe(|| store::open(&location, timeout, log).map(Box::new));
            let result = catch_unwind(open).unwrap_or_else(|_| {
                let what = "the thread that opens the store died: its error is above";
                Err(Failure::Wrong(what.into()))
            });
            // After a signal, nobody waits for the result.
            let _ = sender.send(Lifecycle::StoreOpened(result));
        })
        .map_err(|error| Failure::Environment(format!("the store cannot be opened ({error})")))?;
    match lifecycle.recv() {
        Ok(Lifecycle::StoreOpened(result)) => result.map(Some),
        Ok(Lifecycle::Signal(_)) => Ok(None),
        Ok(Lifecycle::Ready | Lifecycle::Ended(..) | Lifecycle::StoreEnded(_)) | Err(_) => {
            unreachable!("nothing else runs yet, and its thread says how it ends")
        }
    }
}

fn is_told_to_stop(lifecycle: &Receiver<Lifecycle>) -> bool {
    lifecycle.try_iter().any(|event| matches!(event, Lifecycle::Signal(_)))
}

impl Restored {
    /// Starts the committer of a server that the others know as `name`. A failure of the store is reported to `lifecycle`.
    ///
    /// # Errors
    ///
    /// The system is out of threads or descriptors.
    pub(super) fn start(
        mut self,
        name: &str,
        shards: &[Arc<Wakeup>],
        lifecycle: Sender<Lifecycle>,
        reporter: &Reporter,
    ) -> io::Result<Durable> {
        // With this, a write that exceeds the file size limit fails instead of ending the process.
        signal_hook::flag::register(
            signal_hook::consts::SIGXFSZ,
            Arc::new(AtomicBool::new(false)),
        )?;
        let is_shared = self.store.shared().is_some();
        let settlement = Arc::new(Settlement::new(shards.len(), self.totals, is_shared));
        let wakeups = Arc::new(Wakeups { committer: Notify::new(), shards: shards.to_vec() });
        let metrics = Arc::new(StoreMetrics::default());
        reporter.report_store(Arc::clone(&metrics));
        let ending = Ending::default();
        std::thread::Builder::new().name("committer".into()).spawn({
            let Restored { mut store, state, journal, .. } = self;
            let (settlement, wakeups) = (Arc::clone(&settlement), Arc::clone(&wakeups));
            let (name, ending) = (name.to_owned(), ending.clone());
            move || {
                // A committer that panics must end the server, because nothing would be acknowledged anymore.
                let run = AssertUnwindSafe(|| {
                    store.introduce(&name);
                    Committer::new(journal, store, state, settlement, wakeups, metrics).run(&ending)
                });
                let result = catch_unwind(run).unwrap_or_else(|_| {
                    Err(Failure::Wrong("the committer died: its error is above".into()))
                });
                let _ = lifecycle.send(Lifecycle::StoreEnded(result));
            }
        })?;
        Ok(Durable { settlement, wakeups, ending, timeout: self.timeout })
    }
}

/// A store with a running committer.
pub(super) struct Durable {
    settlement: Arc<Settlement>,
    wakeups: Arc<Wakeups>,
    ending: Ending,
    timeout: Duration,
}

impl Durable {
    /// Returns a shard's interface to the store.
    pub(super) fn of_shard(&self, shard: usize) -> Durability {
        // Rounding up ensures that a timeout is not shorter than requested. It is at most a day, which the command line checks.
        let timeout_ms =
            u64::try_from(self.timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        let (settlement, wakeups) = (Arc::clone(&self.settlement), Arc::clone(&self.wakeups));
        Durability::new(settlement, wakeups, shard, timeout_ms)
    }

    /// Returns the totals in the store.
    pub(super) fn totals(&self) -> Totals {
        self.settlement.totals()
    }

    /// Commits what is left, after the shards have ended.
    ///
    /// # Errors
    ///
    /// The store failed, the store took longer than an acknowledgement may wait, or a second signal arrived.
    pub(super) fn finish(
        &self,
        lifecycle: &Receiver<Lifecycle>,
        stopping: &mut Stopping,
    ) -> Result<(), Failure> {
        self.ending.begin(&self.wakeups);
        let end = Instant::now() + self.timeout;
        while !stopping.is_forced {
            match lifecycle.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Lifecycle::StoreEnded(result)) => return result,
                Ok(Lifecycle::Signal(signal)) => stopping.heed(signal),
                Ok(Lifecycle::StoreOpened(_) | Lifecycle::Ready | Lifecycle::Ended(..)) => {
                    unreachable!("every shard has ended")
                }
                Err(_) => break,
            }
        }
        Err(Failure::Environment(format!(
            "the store did not respond within {}: it holds everything that was acknowledged, and may hold \
             the last events that were not",
            humantime::format_duration(self.timeout)
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Outcome;
    use crate::tally::UserIds;
    use std::panic::resume_unwind;
    use std::sync::mpsc::channel;

    struct Broken;

    impl Store for Broken {
        fn users(&mut self, _: &mut dyn FnMut(&UserIds)) -> Result<(), Failure> {
            Ok(())
        }

        fn commit(&mut self, _: &State, _: &UserIds) -> Result<Outcome, Failure> {
            // Panics without the panic hook, which belongs to the whole process and is tested elsewhere.
            resume_unwind(Box::new("on purpose"))
        }
    }

    #[test]
    fn a_committer_that_panics_ends_the_server() {
        let state = State::default();
        let (_, mut writers, journal) = Tally::resume(1, 1, &state);
        let restored = Restored {
            store: Box::new(Broken),
            totals: state.totals(),
            state,
            journal,
            timeout: Duration::from_secs(1),
        };
        let (sender, lifecycle) = channel();
        let shards = [Arc::new(Wakeup::new().unwrap())];
        let reporter = Reporter::for_shards(1, "test").remove(0);
        let durable = restored.start("a:1", &shards, sender, &reporter).unwrap();
        writers[0].count(b"u", 1.0).unwrap();
        writers[0].publish();
        assert!(!durable.of_shard(0).request(writers[0].settles_at()));
        let event = lifecycle.recv_timeout(Duration::from_secs(20)).unwrap();
        let Lifecycle::StoreEnded(Err(failure)) = event else { panic!("{event:?}") };
        assert_eq!(failure.exit_code(), 1);
        assert!(failure.to_string().contains("the committer died"), "{failure}");
        assert_eq!(durable.totals().total_requests, 0, "nothing is durable");
    }

    #[test]
    fn a_signal_ends_the_wait_for_a_database_at_once() {
        // A listener that does not accept connections.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("postgres://u@{}/d?connect_timeout=60", listener.local_addr().unwrap());
        let target = store::postgres::Target::parse(&url).unwrap();
        let location = Location::Postgres(Box::new(target));
        let config = StoreConfig { location, timeout: Duration::from_secs(60) };
        // A busy machine may delay some of the tries.
        let (tries, soon) = (20, Duration::from_millis(100));
        let in_time = (0..tries).filter(|number| {
            let (sender, lifecycle) = channel();
            let signals = std::thread::spawn({
                let (sender, after) = (sender.clone(), Duration::from_millis(11 * number));
                move || {
                    std::thread::sleep(after);
                    let sent_at = Instant::now();
                    sender.send(Lifecycle::Signal(15)).unwrap();
                    sent_at
                }
            });
            let start = restore(&config, 1, 1, Log::Text, (&sender, &lifecycle)).unwrap();
            let ended_at = Instant::now();
            assert!(matches!(start, Start::Stopped(None)), "its totals are not known");
            ended_at.saturating_duration_since(signals.join().unwrap()) <= soon
        });
        let in_time = in_time.count();
        assert!(in_time > 15, "{in_time} of {tries} within {soon:?}");
    }

    #[test]
    fn the_timeout_of_an_acknowledgement_is_rounded_up() {
        let (_, _, journal) = Tally::resume(1, 1, &State::default());
        let (store, state) = (Box::new(Broken), State::default());
        let (totals, timeout) = (state.totals(), Duration::from_micros(1500));
        let restored = Restored { store, state, totals, journal, timeout };
        let shards = [Arc::new(Wakeup::new().unwrap())];
        let reporter = Reporter::for_shards(1, "test").remove(0);
        let durable = restored.start("a:1", &shards, channel().0, &reporter).unwrap();
        assert_eq!(durable.of_shard(0).timeout_ms(), 2);
    }
}
