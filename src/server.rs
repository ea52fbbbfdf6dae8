//! The server as a whole: checks of the environment, shards, readiness, the stop.

use crate::engine::{self, Admission, Shard, Spin, Stop, ring, unix_seconds, wakeups};
use crate::failure::Failure;
use crate::http::Limits;
use crate::log::Log;
use crate::metrics::Reporter;
use crate::service::{Policy, Service, stats_json};
use crate::tally::{Tally, Writer};
use crate::topology::format_cpu_list;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Connections that may wait to be accepted, for each shard. The kernel cuts it to
/// net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Descriptors that are not connections: of the process, and of each shard (its rings, event
/// descriptors, listener and files that glommio opens).
const DESCRIPTORS_BASE: u64 = 64;
const DESCRIPTORS_A_SHARD: u64 = 24;

/// The default connection limit where the file limit allows more than anybody has.
const CONNECTIONS_DEFAULT_MAX: u64 = 1_000_000;

/// How often the first shard looks whether the others have ended.
const LAST_SHARD_TICK: Duration = Duration::from_millis(2);

/// How long a port that is taken may take to become free: after a server's end the kernel can
/// hold its listener a moment longer.
const PORT_PATIENCE: Duration = Duration::from_millis(500);

/// The signals that stop the server: SIGTERM and SIGINT.
const STOP_SIGNALS: [i32; 2] =
    [rustix::process::Signal::TERM.as_raw(), rustix::process::Signal::INT.as_raw()];

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to bind.
    pub host: IpAddr,
    /// The port; 0 picks a free one.
    pub port: u16,
    /// The CPU of each shard.
    pub placement: Vec<usize>,
    /// How bytes are moved.
    pub engine: Engine,
    /// How long an idle shard polls before it sleeps.
    pub spin: Spin,
    /// Connections over all shards, or as many as the file limit allows.
    pub connections_max: Option<u64>,
    /// What a connection may ask.
    pub limits: Limits,
    /// Distinct users held.
    pub users_max: u64,
    /// How long connections may take to finish at the end.
    pub drain_timeout: Duration,
    /// What requests are answered with.
    pub policy: Policy,
    /// How to write to the operator.
    pub log: Log,
}

/// How bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// The ring where this kernel has what it needs, streams elsewhere
    Auto,
    /// An io_uring of our own
    Ring,
    /// glommio's own TCP streams
    Streams,
}

/// What a shard's thread tells the main one.
enum Lifecycle {
    Ready,
    Ended(usize, Result<(), String>),
}

/// Tells that a shard has ended, also when it panics.
struct ExitGuard {
    shard: usize,
    lifecycle: Sender<Lifecycle>,
    result: Result<(), String>,
}

impl ExitGuard {
    /// Tells how the shard has ended.
    fn tell(mut self, result: Result<(), String>) {
        self.result = result;
    }
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        let result = std::mem::replace(&mut self.result, Ok(()));
        // Fails only when the main thread has ended already.
        let _ = self.lifecycle.send(Lifecycle::Ended(self.shard, result));
    }
}

/// Serves until a signal comes, then prints the final totals as one JSON line.
pub fn run(config: Config) -> Result<(), Failure> {
    let connections_max = check_descriptors(&config)?;
    check_ring()?;
    let engine = choose_engine(&config)?;
    let engine_name = if engine == Engine::Ring { "ring" } else { "streams" };
    let shards = config.placement.len();
    let listeners = listen(SocketAddr::new(config.host, config.port), shards)?;
    let address = listeners[0].local_addr().ok().and_then(|address| address.as_socket());
    let address = address.unwrap_or_else(|| SocketAddr::new(config.host, config.port));

    // Every thread that follows inherits the mask, so that the signals reach one shard's task.
    glommio::signal::block(&STOP_SIGNALS).map_err(cannot_start)?;
    let wakeups = wakeups(shards).map_err(cannot_start)?;
    let admission =
        Admission::new(usize::try_from(connections_max).unwrap_or(usize::MAX), &wakeups);
    let stop = Stop::new(wakeups.clone());
    let (tally, writers) = Tally::new(shards, config.users_max);
    let (sender, lifecycle) = channel();
    let mut threads = Vec::new();
    let metrics = Reporter::for_shards(shards, engine_name);
    for (index, ((listener, writer), metrics)) in
        listeners.into_iter().zip(writers).zip(metrics).enumerate()
    {
        let shard = Shard {
            index,
            listener,
            service: service(&config, writer, metrics),
            limits: config.limits,
            wakeup: Arc::clone(&wakeups[index]),
            admission: Arc::clone(&admission),
            stop: Arc::clone(&stop),
            drain_timeout: config.drain_timeout,
            spin: config.spin,
        };
        threads.push(start_shard(shard, engine, config.placement[index], sender.clone())?);
    }
    drop(sender);
    wait_until_ready(&lifecycle, &config.placement, &mut threads)?;
    if !config.host.is_loopback() && config.policy.admin_token.is_none() {
        config.log.warn(
            "POST /reset answers loopback peers only: set --admin-token-file to reset from elsewhere",
        );
    }
    let cpus = distinct(&config.placement);
    config.log.info(&format!(
        "listening on http://{address} ({shards} shard{} on CPU{} {}; engine {})",
        if shards == 1 { "" } else { "s" },
        if cpus.len() == 1 { "" } else { "s" },
        format_cpu_list(&cpus),
        engine_name,
    ));
    wait_for_the_end(&lifecycle, &config.placement)?;
    for thread in threads {
        thread
            .join()
            .map_err(|error| Failure::Wrong(format!("a shard failed at its end: {error}")))?;
    }
    wait_until_free(address);
    print_totals(&tally);
    Ok(())
}

/// Makes this process end, as at SIGTERM, when its parent does, however that comes.
pub fn end_with(parent: u32) -> Result<(), Failure> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(cannot_start)?;
    // The parent may have ended before.
    match getppid().is_some_and(|now| now.as_raw_nonzero().get() as u32 == parent) {
        true => Ok(()),
        false => Err(Failure::Environment("the process that wanted this server has ended".into())),
    }
}

fn cannot_start(error: impl std::fmt::Display) -> Failure {
    Failure::Environment(format!("cannot start a shard: {error}"))
}

fn distinct(cpus: &[usize]) -> Vec<usize> {
    let mut cpus = cpus.to_vec();
    cpus.sort_unstable();
    cpus.dedup();
    cpus
}

fn service(config: &Config, writer: Writer, metrics: Reporter) -> Service {
    Service::new(writer, metrics, config.policy.clone(), unix_seconds())
}

fn start_shard(
    shard: Shard,
    engine: Engine,
    cpu: usize,
    lifecycle: Sender<Lifecycle>,
) -> Result<ExecutorJoinHandle<()>, Failure> {
    let index = shard.index;
    let stop = Arc::clone(&shard.stop);
    let exit_guard = ExitGuard {
        shard: index,
        lifecycle: lifecycle.clone(),
        result: Err("its thread ended before it was done; an error above may say why".into()),
    };
    // The ring polls by itself; glommio polls for the streams, where `auto` gained nothing.
    let glommio_spin = match (engine, shard.spin) {
        (Engine::Streams, Spin::Fixed(spin)) => spin,
        _ => Duration::ZERO,
    };
    LocalExecutorBuilder::new(Placement::Fixed(cpu))
        .name(&format!("shard-{index}"))
        .spin_before_park(glommio_spin)
        .spawn(move || async move {
            if index == 0 {
                glommio::spawn_local(stop_on_signals(Arc::clone(&stop))).detach();
            }
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            shard.service.metrics().thread.set(thread as u64);
            let ready = || {
                let _ = lifecycle.send(Lifecycle::Ready);
            };
            let result = match engine {
                Engine::Ring => ring::run(shard, ready).await,
                Engine::Streams | Engine::Auto => engine::glommio::run(shard, ready).await,
            };
            let result = result.map_err(|error| error.to_string());
            stop.note_end();
            // The shard that hears the signals stays for as long as one could hurry another.
            while index == 0 && result.is_ok() && stop.running() > 0 {
                glommio::timer::sleep(LAST_SHARD_TICK).await;
            }
            exit_guard.tell(result);
        })
        .map_err(cannot_start)
}

/// Drains at the first signal, aborts at the second.
async fn stop_on_signals(stop: Arc<Stop>) {
    let Ok(signals) = glommio::signal::Signals::new(&STOP_SIGNALS) else {
        return;
    };
    while signals.recv().await.is_ok() {
        stop.escalate();
    }
}

fn wait_until_ready(
    lifecycle: &Receiver<Lifecycle>,
    placement: &[usize],
    threads: &mut Vec<ExecutorJoinHandle<()>>,
) -> Result<(), Failure> {
    for _ in placement {
        match lifecycle.recv() {
            Ok(Lifecycle::Ready) => {}
            Ok(Lifecycle::Ended(shard, result)) => {
                // The executor's own error, if it never came to run the shard.
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

/// Waits for every shard to end well. The first that does not ends the process.
fn wait_for_the_end(lifecycle: &Receiver<Lifecycle>, placement: &[usize]) -> Result<(), Failure> {
    for _ in placement {
        let (shard, cause) = match lifecycle.recv() {
            Ok(Lifecycle::Ended(_, Ok(()))) => continue,
            Ok(Lifecycle::Ended(shard, Err(cause))) => (shard, cause),
            Ok(Lifecycle::Ready) | Err(_) => (0, "the shards lost touch".into()),
        };
        return Err(Failure::Wrong(format!(
            "shard {shard} on CPU {} died: {cause}; its connections are lost and the totals end here",
            placement[shard]
        )));
    }
    Ok(())
}

/// Raises the soft limit of open files to the hard one, and returns how many connections fit.
fn check_descriptors(config: &Config) -> Result<u64, Failure> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let allowed = allowed.unwrap_or(u64::MAX);
    let reserved = DESCRIPTORS_BASE + DESCRIPTORS_A_SHARD * config.placement.len() as u64;
    let wanted = config.connections_max.unwrap_or(1);
    if reserved.saturating_add(wanted) > allowed {
        return Err(Failure::Environment(format!(
            "{} shards and {wanted} connections need {} open files and the limit is {allowed}: \
             raise it with ulimit -n, or lower --shards or --max-connections",
            config.placement.len(),
            reserved.saturating_add(wanted),
        )));
    }
    let fitting = (allowed - reserved).min(CONNECTIONS_DEFAULT_MAX);
    Ok(config.connections_max.unwrap_or(fitting))
}

/// Sets up and drops a small ring, so that a kernel that has none is told of in a sentence.
fn check_ring() -> Result<(), Failure> {
    let Err(error) = io_uring::IoUring::new(2) else {
        return Ok(());
    };
    let advice = match error.kind() {
        ErrorKind::Unsupported => {
            "there is no io_uring: use Linux 5.11 or later, built with CONFIG_IO_URING, or allow the \
             io_uring system calls in the container's seccomp profile"
        }
        ErrorKind::PermissionDenied => {
            "io_uring is blocked: set kernel.io_uring_disabled=0 with sysctl, or allow the \
             io_uring system calls in the container's seccomp profile"
        }
        ErrorKind::OutOfMemory => {
            "io_uring may lock too little memory: raise the limit with ulimit -l"
        }
        _ => "io_uring does not work here",
    };
    Err(Failure::Environment(format!("{advice} ({error})")))
}

/// The data plane that was asked for, or the best that works here.
fn choose_engine(config: &Config) -> Result<Engine, Failure> {
    match (config.engine, ring::is_supported()) {
        (Engine::Streams, _) => Ok(Engine::Streams),
        (_, true) => Ok(Engine::Ring),
        (Engine::Ring, false) => Err(Failure::Environment(
            "this kernel lacks what --engine ring needs: use Linux 6.1 or later, or --engine streams"
                .into(),
        )),
        (Engine::Auto, false) => {
            config.log.warn("this kernel lacks what the ring engine needs: using streams");
            Ok(Engine::Streams)
        }
    }
}

/// Opens one listening socket a shard, all on one port that nobody else listens on.
fn listen(address: SocketAddr, shards: usize) -> Result<Vec<Socket>, Failure> {
    let refused = |error: io::Error| {
        let advice = match error.kind() {
            ErrorKind::AddrInUse => {
                "the port is taken: stop who listens there, or choose another --port"
            }
            ErrorKind::AddrNotAvailable => {
                "no interface here has this address: choose another --host"
            }
            ErrorKind::PermissionDenied => {
                "the port is reserved for root: choose a --port from 1024, or grant CAP_NET_BIND_SERVICE"
            }
            _ => "the address does not work here: choose another --host or --port",
        };
        Failure::Environment(format!("cannot listen on {address}: {advice} ({error})"))
    };
    let patience = Instant::now() + PORT_PATIENCE;
    let first = loop {
        match listen_alone(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < patience => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => break result.map_err(refused)?,
        }
    };
    let bound = first.local_addr().map_err(refused)?;
    let mut listeners = vec![first];
    for _ in 1..shards {
        let socket = open(address).map_err(refused)?;
        socket
            .set_reuse_port(true)
            .and_then(|()| socket.bind(&bound))
            .and_then(|()| socket.listen(BACKLOG))
            .map_err(refused)?;
        listeners.push(socket);
    }
    Ok(listeners)
}

fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier run in TIME_WAIT do not take the port.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Linux gives it to every connection that is accepted.
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

/// Listens on a port that must be free. SO_REUSEPORT comes after the bind: set before, it
/// would let this server share the port of another one that has it, silently.
fn listen_alone(address: SocketAddr) -> io::Result<Socket> {
    let socket = open(address)?;
    socket.bind(&address.into())?;
    socket.set_reuse_port(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Waits until the port can be listened on, so that it is free when this process has ended.
fn wait_until_free(address: SocketAddr) {
    let patience = Instant::now() + Duration::from_secs(1);
    while listen_alone(address).is_err() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn print_totals(tally: &Tally) {
    // Whoever read the output may be gone; the totals have no other place to go.
    let _ = writeln!(io::stdout(), "{}", stats_json(&tally.totals()));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shard's thread that ends as it is told to.
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
            ((|_| panic!("on purpose")) as fn(ExitGuard), "before it was done"),
            (|exit_guard| exit_guard.tell(Err("no listener".into())), "no listener"),
        ] {
            let (sender, lifecycle) = channel();
            shard(&sender, |exit_guard| exit_guard.tell(Ok(())));
            shard(&sender, end);
            let failure = wait_for_the_end(&lifecycle, &[4, 7]).unwrap_err();
            assert_eq!(failure.exit_code(), 1);
            let said = failure.to_string();
            assert!(said.contains("shard 1 on CPU 7 died") && said.contains(cause), "{said}");
        }
    }

    #[test]
    fn shards_that_end_well_end_the_server_well() {
        let (sender, lifecycle) = channel();
        shard(&sender, |exit_guard| exit_guard.tell(Ok(())));
        shard(&sender, |exit_guard| exit_guard.tell(Ok(())));
        assert_eq!(wait_for_the_end(&lifecycle, &[0, 1]), Ok(()));
    }
}
