//! A running server, and what it and every process that it started cost.

use nix::time::ClockId;
use nix::unistd;
use procfs::process::{Process, all_processes};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take until its first response: a JVM takes seconds.
const START_MAX: Duration = Duration::from_secs(60);
/// How long it may take to end after SIGTERM.
const STOP_MAX: Duration = Duration::from_secs(3);

/// CPU time, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu {
    pub(crate) user_us: f64,
    pub(crate) system_us: f64,
}

/// A running server. It is stopped when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    /// From its start to its first response.
    pub(crate) start_up: Duration,
}

/// A port that nothing listens on at the moment.
pub(crate) fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|e| e.to_string())?;
    Ok(listener.local_addr().map_err(|e| e.to_string())?.port())
}

impl Server {
    /// Starts it on these CPUs and waits for its first response. Its standard error goes to `log`.
    pub(crate) fn start(
        mut command: Command,
        port: u16,
        cpus: &[usize],
        log: &Path,
    ) -> Result<Server, String> {
        let said = File::create(log).map_err(|error| format!("{}: {error}", log.display()))?;
        let started = Instant::now();
        let child = spawn_on(cpus, command.stdout(Stdio::null()).stderr(said))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut server = Server { child, address, start_up: Duration::ZERO };
        while !is_healthy(address) {
            if let Some(status) = server.end() {
                let said = std::fs::read_to_string(log).unwrap_or_default();
                let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("nothing");
                return Err(format!(
                    "it ended with {status} before its first response, and wrote: {last}"
                ));
            }
            if started.elapsed() > START_MAX {
                return Err(format!("it did not respond within {} s", START_MAX.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        server.start_up = started.elapsed();
        Ok(server)
    }

    /// Its process and all processes that it started.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let mut parents: HashMap<i32, i32> = HashMap::new();
        let mut all: Vec<Process> = Vec::new();
        for process in all_processes().into_iter().flatten().flatten() {
            if let Ok(stat) = process.stat() {
                parents.insert(stat.pid, stat.ppid);
                all.push(process);
            }
        }
        let root = self.child.id() as i32;
        let is_ours = |process: &Process| {
            let ancestors =
                std::iter::successors(Some(process.pid), |pid| parents.get(pid).copied());
            ancestors.take(64).any(|pid| pid == root)
        };
        all.into_iter().filter(is_ours).collect()
    }

    /// Whether a tracer is attached to every thread.
    pub(crate) fn is_traced(&self) -> bool {
        let processes = self.processes();
        let mut tasks = processes.iter().filter_map(|process| process.tasks().ok()).flatten();
        // A thread that has ended meanwhile does not matter.
        tasks.all(|task| task.and_then(|task| task.status()).map_or(true, |s| s.tracerpid != 0))
    }

    /// CPU time so far, including that of children that have ended. The kernel counts it in nanoseconds, and its
    /// parts in ticks: the sum is exact, and the parts are in proportion.
    pub(crate) fn cpu(&self) -> Cpu {
        let tick_us = 1e6 / procfs::ticks_per_second() as f64;
        let mut cpu = Cpu { user_us: 0.0, system_us: 0.0 };
        for process in self.processes() {
            let clock = ClockId::pid_cpu_clock_id(unistd::Pid::from_raw(process.pid));
            let (Ok(stat), Ok(time)) = (process.stat(), clock.and_then(ClockId::now)) else {
                continue;
            };
            let time_us = Duration::from(time).as_secs_f64() * 1e6;
            let user = stat.utime as f64 / ((stat.utime + stat.stime).max(1)) as f64;
            cpu.user_us += time_us * user + stat.cutime as f64 * tick_us;
            cpu.system_us += time_us * (1.0 - user) + stat.cstime as f64 * tick_us;
        }
        cpu
    }

    /// The most memory that its processes held, in bytes.
    pub(crate) fn peak_rss_bytes(&self) -> u64 {
        let peak = |process: &Process| process.status().ok()?.vmhwm;
        self.processes().iter().filter_map(peak).sum::<u64>() * 1024
    }

    /// Its exit status, if it has ended.
    pub(crate) fn end(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Once it has ended, its children cannot be found.
        let processes = self.processes();
        send(Signal::TERM, self.child.id() as i32);
        let patience = Instant::now() + STOP_MAX;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        for process in processes.iter().filter(|process| process.is_alive()) {
            send(Signal::KILL, process.pid);
        }
        let _ = self.child.wait();
    }
}

/// Starts a process on these CPUs, which it and its children inherit as their affinity mask.
pub(crate) fn spawn_on(cpus: &[usize], command: &mut Command) -> Result<Child, String> {
    let ours = sched_getaffinity(None).map_err(|error| error.to_string())?;
    let mut theirs = CpuSet::new();
    cpus.iter().for_each(|cpu| theirs.set(*cpu));
    sched_setaffinity(None, &theirs).map_err(|error| error.to_string())?;
    let child = command.stdin(Stdio::null()).spawn().map_err(|error| error.to_string());
    sched_setaffinity(None, &ours).map_err(|error| error.to_string())?;
    child
}

/// Sends a signal. It fails if the process has ended, which is what is wanted.
pub(crate) fn send(signal: Signal, pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether the response to `GET /health` is 200.
fn is_healthy(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
        let mut start = [0; 12];
        stream.read_exact(&mut start)?;
        Ok(start.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}
