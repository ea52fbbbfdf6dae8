//! The server as a whole: checks of the environment, shards, readiness, and the stop.

mod durable;
mod environment;
mod listener;
mod steering;
mod systemd;

use crate::engine::{
    self, Admission, Drained, Shard, Spin, Steer, Stop, Urgency, ring, unix_seconds,
};
use crate::failure::Failure;
use crate::http::Limits;
use crate::log::Log;
use crate::metrics::Reporter;
use crate::service::{Policy, Service, stats_json};
use crate::store::Opened;
use crate::tally::{Tally, Totals, Writer};
use crate::topology::{distinct, format_cpu_list};
use crate::uring::Wakeup;
use durable::Start;
pub use durable::StoreConfig;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use listener::{listen, listen_beside, wait_until_free};
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use systemd::Watchdog;

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to bind.
    pub host: IpAddr,
    /// The port; 0 picks a free one.
    pub port: u16,
    /// The CPU of each shard.
    pub placement: Vec<usize>,
    /// The data plane.
    pub engine: Engine,
    /// The time that an idle shard polls before it sleeps.
    pub spin: Spin,
    /// The time that a shard waits for more completions after the first; zero if it does not wait.
    pub coalesce: Duration,
    /// The method of choosing a shard for a connection.
    pub steer: Steer,
    /// The time that a waiting shard polls its network devices; zero if it does not poll.
    pub busy_poll: Duration,
    /// The maximum number of connections across all shards; `None` for as many as the file limit allows.
    pub connections_max: Option<u64>,
    /// The limits of a connection.
    pub limits: Limits,
    /// The maximum number of distinct users.
    pub users_max: u64,
    /// The store of the totals. Without a store, the totals end with the process.
    pub store: Option<StoreConfig>,
    /// The time that connections have to finish when the server stops.
    pub drain_timeout: Duration,
    /// The policy of the service.
    pub policy: Policy,
    /// The format of the log.
    pub log: Log,
    /// The file that receives the address, on its own line, once every shard listens.
    pub ready: Option<Arc<File>>,
}

/// The data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// The ring engine if this kernel supports it, otherwise streams
    Auto,
    /// An io_uring of each shard's own; needs Linux 6.1
    Ring,
    /// The TCP streams of glommio
    Streams,
}

/// Messages to the main thread.
#[derive(Debug)]
enum Lifecycle {
    /// The store was opened, or cannot be opened.
    StoreOpened(Result<Box<Opened>, Failure>),
    /// A shard listens.
    Ready,
    /// A shard has ended.
    Ended(usize, Result<Drained, String>),
    /// A signal asks the server to stop.
    Signal(i32),
    /// The committer has ended. If it ends before the shards do, it has failed, and nothing can be acknowledged anymore.
    StoreEnded(Result<(), Failure>),
}

/// Reports that a shard has ended, even if it panicked.
struct ExitGuard {
    shard: usize,
    lifecycle: Sender<Lifecycle>,
    result: Result<Drained, String>,
}

impl ExitGuard {
    /// Reports how the shard has ended.
    fn report(mut self, result: Result<Drained, String>) {
        self.result = result;
    }
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        let result = std::mem::replace(&mut self.result, Ok(Drained::default()));
        // This fails only if the main thread has already ended.
        let _ = self.lifecycle.send(Lifecycle::Ended(self.shard, result));
    }
}

/// Serves until a signal arrives, then prints the final totals as one JSON line.
///
/// # Errors
///
/// [`Failure::Environment`] if the machine cannot run the server; [`Failure::Wrong`] if a shard died, or a second signal
/// cut the drain short.
pub fn run(config: Config) -> Result<(), Failure> {
    let (connections_max, rejected_max) = environment::check_descriptors(&config)?;
    // This raises a limit that the ring may need, so it comes first.
    environment::check_locked_memory(&config)?;
    environment::check_ring()?;
    let engine = environment::choose_engine(&config)?;
    environment::check_coalescing(&config, engine)?;
    environment::check_busy_poll(&config, engine)?;
    let engine_name = if engine == Engine::Ring { "ring" } else { "streams" };
    let shards = config.placement.len();
    let (sender, lifecycle) = channel();
    listen_for_signals(sender.clone()).map_err(cannot_start)?;
    // Signals do not interrupt the thread of the log, either, and it does not run on the CPU of a shard.
    config.log.start().map_err(cannot_start)?;
    // This comes before the server listens, so that every client is served or refused immediately.
    let (tally, writers, restored) = match &config.store {
        Some(store) => {
            let ends = (&sender, &lifecycle);
            match durable::restore(store, shards, config.users_max, config.log, ends)? {
                Start::Restored(tally, writers, restored) => (tally, writers, Some(restored)),
                Start::Stopped(totals) => {
                    match totals {
                        Some(totals) => print_totals(&totals),
                        None => config.log.info("stopped before the store was read"),
                    }
                    return Ok(());
                }
            }
        }
        None => {
            let (tally, writers) = Tally::new(shards, config.users_max);
            (tally, writers, None)
        }
    };
    let (listeners, inherited) = match systemd::inherited_listener()? {
        None => (listen(SocketAddr::new(config.host, config.port), shards)?, Inherited::No),
        Some(first) => {
            steering::check_inherited(config.steer, &first, shards)?;
            let (listeners, is_one) = listen_beside(first, shards).map_err(cannot_start)?;
            (listeners, if is_one { Inherited::All } else { Inherited::First })
        }
    };
    steering::steer(config.steer, &listeners, inherited, &config.placement)?;
    let address = listeners[0].local_addr().ok().and_then(|address| address.as_socket());
    let address = address.unwrap_or_else(|| SocketAddr::new(config.host, config.port));

    let wakeups: io::Result<Vec<_>> = (0..shards).map(|_| Ok(Arc::new(Wakeup::new()?))).collect();
    let wakeups = wakeups.map_err(cannot_start)?;
    let connections_max = usize::try_from(connections_max).unwrap_or(usize::MAX);
    let admission =
        Admission::new(connections_max, rejected_max, &wakeups, config.steer, config.log);
    let mut stopping = Stopping {
        stop: Stop::new(wakeups.clone()),
        admission: Arc::clone(&admission),
        drain_timeout: config.drain_timeout,
        log: config.log,
        since: None,
        is_forced: false,
        ended: 0,
        drained: Drained::default(),
    };
    let heartbeats: Vec<Arc<AtomicU64>> = (0..shards).map(|_| Arc::default()).collect();
    let mut watchdog = Watchdog::new(&heartbeats)?;
    let mut threads = Vec::new();
    let metrics = Reporter::for_shards(shards, engine_name);
    let durable = restored
        .map(|restored| restored.start(&name_of(address), &wakeups, sender.clone(), &metrics[0]))
        .transpose()
        .map_err(cannot_start)?;
    for (index, ((listener, writer), metrics)) in
        listeners.into_iter().zip(writers).zip(metrics).enumerate()
    {
        let mut service = service(&config, writer, metrics);
        if let Some(durable) = &durable {
            service.set_durability(durable.of_shard(index));
        }
        let shard = Shard {
            index,
            listener,
            is_listener_shared: match inherited {
                Inherited::No => false,
                Inherited::First => index == 0,
                Inherited::All => true,
            },
            service,
            limits: config.limits,
            wakeup: Arc::clone(&wakeups[index]),
            admission: Arc::clone(&admission),
            stop: Arc::clone(&stopping.stop),
            drain_timeout: config.drain_timeout,
            spin: config.spin,
            coalesce: config.coalesce,
            busy_poll: config.busy_poll,
            heartbeat: Arc::clone(&heartbeats[index]),
        };
        threads.push(start_shard(shard, engine, config.placement[index], sender.clone())?);
    }
    drop(sender);
    wait_until_ready(&lifecycle, &config.placement, &mut threads, &mut stopping)?;
    if !config.host.is_loopback() && config.policy.admin_token.is_none() {
        config.log.warn(
            "POST /reset is served to loopback peers only: pass --admin-token-file to reset from \
             elsewhere",
        );
    }
    let cpus = distinct(config.placement.iter().copied());
    let listening = format!(
        "listening on http://{address} ({shards} shard{} on CPU{} {}; engine {engine_name})",
        if shards == 1 { "" } else { "s" },
        if cpus.len() == 1 { "" } else { "s" },
        format_cpu_list(&cpus),
    );
    config.log.info(&listening);
    systemd::report_ready(config.log, &listening);
    if let Some(mut ready) = config.ready.as_deref() {
        // If the reader is gone, nobody waits for the address. A single write ensures that a reader gets the whole line.
        let _ = ready.write_all(format!("{address}\n").as_bytes());
    }
    let drained =
        wait_for_the_end(&lifecycle, &config.placement, &mut stopping, watchdog.as_mut())?;
    for thread in threads {
        thread
            .join()
            .map_err(|error| Failure::Wrong(format!("a shard failed at its end: {error}")))?;
    }
    if inherited == Inherited::No {
        wait_until_free(address);
    }
    match durable {
        // The printed totals are durable, whether or not the store ended well.
        Some(durable) => {
            let finished = durable.finish(&lifecycle, &mut stopping);
            print_totals(&durable.totals());
            stopping.conclude(drained).and(finished)
        }
        None => {
            print_totals(&tally.totals());
            stopping.conclude(drained)
        }
    }
}

/// The listening sockets that this process was started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inherited {
    /// There are none.
    No,
    /// The first shard's socket; the others opened their own on the same address.
    First,
    /// One socket that all shards share.
    All,
}

/// Makes this process stop, as on SIGTERM, when its parent ends for any reason.
///
/// # Errors
///
/// The parent has already ended.
pub fn end_with(parent: u32) -> Result<(), Failure> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(cannot_start)?;
    // The parent may have ended before the call.
    let now = getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
    match now == Some(parent) {
        true => Ok(()),
        false => Err(Failure::Environment("the process that wanted this server has ended".into())),
    }
}

fn cannot_start(error: impl std::fmt::Display) -> Failure {
    Failure::Environment(format!("cannot start a shard: {error}"))
}

/// Returns the server's name for other servers that share its store: its address, or the machine's name if it
/// listens on all addresses.
fn name_of(address: SocketAddr) -> String {
    let system = rustix::system::uname();
    match system.nodename().to_str() {
        Ok(machine) if address.ip().is_unspecified() => format!("{machine}:{}", address.port()),
        _ => address.to_string(),
    }
}

fn service(config: &Config, writer: Writer, metrics: Reporter) -> Service {
    Service::new(writer, metrics, config.policy.clone(), unix_seconds())
}

/// Reports the signals that stop the server: SIGTERM, and SIGINT and SIGHUP unless they were ignored when it started, as by
/// nohup or for a script's background job. After this, they do not interrupt other threads.
fn listen_for_signals(lifecycle: Sender<Lifecycle>) -> io::Result<()> {
    let ignored = procfs::process::Process::myself()
        .and_then(|process| process.status())
        .map_or(0, |status| status.sigign);
    let is_heeded = |signal: &i32| *signal == SIGTERM || ignored & (1 << (signal - 1)) == 0;
    let heeded: Vec<i32> = [SIGTERM, SIGINT, SIGHUP].into_iter().filter(is_heeded).collect();
    let mut signals = Signals::new(&heeded)?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if lifecycle.send(Lifecycle::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    glommio::signal::block(&heeded).map_err(io::Error::other)
}

/// The state of a stop: the server drains after the first signal, and ends immediately after the second.
struct Stopping {
    stop: Arc<Stop>,
    admission: Arc<Admission>,
    drain_timeout: Duration,
    log: Log,
    /// The start of the drain.
    since: Option<Instant>,
    /// Whether a second signal has arrived.
    is_forced: bool,
    /// The number of shards that have ended, and their combined results.
    ended: usize,
    drained: Drained,
}

impl Stopping {
    fn heed(&mut self, signal: i32) {
        let name = match signal {
            SIGTERM => "SIGTERM",
            SIGINT => "SIGINT",
            _ => "SIGHUP",
        };
        let open = connections(self.admission.open());
        if self.since.is_none() {
            self.since = Some(Instant::now());
            let timeout = humantime::format_duration(self.drain_timeout);
            let draining = format!("{name}: draining {open}, for {timeout} at most");
            self.log.info(&draining);
            systemd::report_stopping(self.log, &draining);
            self.stop.escalate_to(Urgency::Drain);
        } else if !self.is_forced {
            self.is_forced = true;
            self.log.warn(&format!("{name}, the second signal: closing {open} at once"));
            self.stop.escalate_to(Urgency::Abort);
        }
    }

    /// Notes that a shard has ended without a failure.
    fn note_end(&mut self, drained: Drained) {
        self.ended += 1;
        self.drained.cut += drained.cut;
    }

    /// Logs the outcome of the stop.
    fn conclude(&self, drained: Drained) -> Result<(), Failure> {
        if self.since.is_none() {
            return Err(Failure::Environment(
                "no listening socket is left, because another process shut it down: restart the server, and what \
                 passes the socket to it"
                    .into(),
            ));
        }
        let took_ms = self.since.map_or(0, |since| since.elapsed().as_millis());
        let cut = connections(drained.cut);
        if self.is_forced {
            return Err(Failure::Wrong(format!(
                "stopped by a second signal after {took_ms} ms: {cut} had requests in flight"
            )));
        }
        if drained.cut > 0 {
            self.log.warn(&format!(
                "the drain timed out after {took_ms} ms: closed {cut} with requests in flight: raise \
                 --drain-timeout"
            ));
        } else {
            self.log.info(&format!("drained in {took_ms} ms"));
        }
        Ok(())
    }
}

/// Returns a number of connections with its noun.
fn connections(count: usize) -> String {
    counted(count as u64, "connection")
}

/// Returns a number with its noun.
fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn start_shard(
    mut shard: Shard,
    engine: Engine,
    cpu: usize,
    lifecycle: Sender<Lifecycle>,
) -> Result<ExecutorJoinHandle<()>, Failure> {
    let index = shard.index;
    let exit_guard = ExitGuard {
        shard: index,
        lifecycle: lifecycle.clone(),
        result: Err("its thread ended before it was done; an error above may say why".into()),
    };
    // The ring engine polls by itself. glommio polls for the streams engine, which did not gain anything from `auto`.
    let glommio_spin = match (engine, shard.spin) {
        (Engine::Streams, Spin::Fixed(spin)) => spin,
        _ => Duration::ZERO,
    };
    LocalExecutorBuilder::new(Placement::Fixed(cpu))
        .name(&format!("shard-{index}"))
        .spin_before_park(glommio_spin)
        .spawn(move || async move {
            // The executor has already pinned this thread.
            shard.service.move_here();
            let ready = || {
                let _ = lifecycle.send(Lifecycle::Ready);
            };
            let result = match engine {
                Engine::Ring => ring::run(shard, ready).await,
                Engine::Streams | Engine::Auto => engine::streams::run(shard, ready).await,
            };
            exit_guard.report(result.map_err(|error| error.to_string()));
        })
        .map_err(cannot_start)
}

fn wait_until_ready(
    lifecycle: &Receiver<Lifecycle>,
    placement: &[usize],
    threads: &mut Vec<ExecutorJoinHandle<()>>,
    stopping: &mut Stopping,
) -> Result<(), Failure> {
    let mut ready = 0;
    while ready < placement.len() {
        match lifecycle.recv() {
            Ok(Lifecycle::Ready) => ready += 1,
            Ok(Lifecycle::Signal(signal)) => stopping.heed(signal),
            // A signal arrived while other shards were still starting.
            Ok(Lifecycle::StoreEnded(result)) => result?,
            Ok(Lifecycle::StoreOpened(_)) => unreachable!("it was opened before"),
            Ok(Lifecycle::Ended(_, Ok(drained))) => stopping.note_end(drained),
            Ok(Lifecycle::Ended(shard, result)) => {
                // The executor's own error, if it never ran the shard.
                let cause = threads.swap_remove(shard).join().err().map(|error| error.to_string());
                let cause = cause.or(result.err()).unwrap_or_default();
                return Err(Failure::Environment(format!(
                    "shard {shard} cannot start on CPU {}: {cause}",
                    placement[shard]
                )));
            }
            Err(_) => return Err(cannot_start("no shard is left")),
        }
    }
    Ok(())
}

/// Waits until every shard has ended without a failure. The first failure ends the process.
fn wait_for_the_end(
    lifecycle: &Receiver<Lifecycle>,
    placement: &[usize],
    stopping: &mut Stopping,
    mut watchdog: Option<&mut Watchdog>,
) -> Result<Drained, Failure> {
    while stopping.ended < placement.len() {
        let event = match &mut watchdog {
            None => lifecycle.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(watchdog) => {
                let event = lifecycle.recv_timeout(watchdog.period());
                if matches!(event, Err(RecvTimeoutError::Timeout)) {
                    watchdog.check(stopping.log);
                    continue;
                }
                event
            }
        };
        match event {
            Ok(Lifecycle::Signal(signal)) => stopping.heed(signal),
            Ok(Lifecycle::StoreEnded(result)) => result?,
            Ok(Lifecycle::Ended(_, Ok(drained))) => stopping.note_end(drained),
            Ok(Lifecycle::Ended(shard, Err(cause))) => {
                return Err(Failure::Wrong(format!(
                    "shard {shard} on CPU {} died: {cause}; its connections are lost and the totals \
                     end here",
                    placement[shard]
                )));
            }
            Ok(Lifecycle::StoreOpened(_) | Lifecycle::Ready) | Err(_) => {
                unreachable!("every shard is ready, and says how it ends")
            }
        }
    }
    Ok(stopping.drained)
}

fn print_totals(totals: &Totals) {
    // If the reader of the output has exited, the totals cannot be reported anywhere else.
    let _ = writeln!(io::stdout(), "{}", stats_json(totals));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopping() -> Stopping {
        let wakeups = vec![Arc::new(Wakeup::new().unwrap())];
        Stopping {
            stop: Stop::new(wakeups.clone()),
            admission: Admission::new(1, 1, &wakeups, Steer::Hash, Log::Text),
            drain_timeout: Duration::from_secs(1),
            log: Log::Text,
            since: None,
            is_forced: false,
            ended: 0,
            drained: Drained::default(),
        }
    }

    /// Starts a shard's thread, which ends with a given result.
    fn shard(lifecycle: &Sender<Lifecycle>, end: impl FnOnce(ExitGuard) + Send + 'static) {
        let exit_guard = ExitGuard {
            shard: 1,
            lifecycle: lifecycle.clone(),
            result: Err("its thread ended before it was done".into()),
        };
        let ended = std::thread::spawn(move || end(exit_guard)).join();
        assert!(ended.is_ok() || cfg!(panic = "unwind"));
    }

    #[test]
    fn a_shard_that_panics_or_fails_ends_the_server_with_its_name() {
        for (end, cause) in [
            (
                (|_| std::panic::resume_unwind(Box::new("on purpose"))) as fn(ExitGuard),
                "before it was done",
            ),
            (|exit_guard| exit_guard.report(Err("no listener".into())), "no listener"),
        ] {
            let (sender, lifecycle) = channel();
            shard(&sender, |exit_guard| exit_guard.report(Ok(Drained { cut: 0 })));
            shard(&sender, end);
            let failure = wait_for_the_end(&lifecycle, &[4, 7], &mut stopping(), None).unwrap_err();
            assert_eq!(failure.exit_code(), 1);
            let said = failure.to_string();
            assert!(said.contains("shard 1 on CPU 7 died") && said.contains(cause), "{said}");
        }
    }

    #[test]
    fn shards_that_end_well_end_the_server_well() {
        let (sender, lifecycle) = channel();
        shard(&sender, |exit_guard| exit_guard.report(Ok(Drained { cut: 1 })));
        shard(&sender, |exit_guard| exit_guard.report(Ok(Drained { cut: 2 })));
        let drained = wait_for_the_end(&lifecycle, &[0, 1], &mut stopping(), None);
        assert_eq!(drained, Ok(Drained { cut: 3 }));
    }

    #[test]
    fn the_first_signal_drains_and_the_second_forces_the_end() {
        let (sender, lifecycle) = channel();
        let mut stopping = stopping();
        sender.send(Lifecycle::Signal(SIGHUP)).unwrap();
        shard(&sender, |exit_guard| exit_guard.report(Ok(Drained::default())));
        wait_for_the_end(&lifecycle, &[0], &mut stopping, None).unwrap();
        assert_eq!(stopping.stop.urgency(), Urgency::Drain);
        assert_eq!(stopping.conclude(Drained { cut: 1 }), Ok(()), "a drain that timed out is none");
        for signal in [SIGTERM, SIGINT] {
            stopping.heed(signal);
            assert_eq!(stopping.stop.urgency(), Urgency::Abort);
        }
        let failure = stopping.conclude(Drained { cut: 1 }).unwrap_err();
        assert_eq!(failure.exit_code(), 1);
        assert!(failure.to_string().contains("1 connection had requests in flight"), "{failure}");
    }
}
