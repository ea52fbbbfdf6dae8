//! The process between a challenge and a server that `--server` names. It starts the server, writes its log, and ends it with
//! everything that it started, even if the challenge is killed. Whatever the server starts remains a descendant of this
//! process, because this process adopts orphans.
//!
//! It reads commands from standard input (`stop`, or end of file) and reports events on standard output, one per line.

use super::cgroup;
use super::log::BoundedLog;
use super::usage::descendants;
use procfs::process::Process;
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, kill_process_group,
    set_child_subreaper, wait,
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// The longest time that killed processes may take to end: the kernel ends one once its system call is over.
const KILL_MAX: Duration = Duration::from_secs(5);
/// The time between two rounds of kills; each reaches processes that were forked since the last.
const KILL_EVERY: Duration = Duration::from_millis(5);
/// The longest time that the rest of the log may take once everything has ended.
const LOG_MAX: Duration = Duration::from_secs(1);

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// The server's program and its arguments.
    pub command: Vec<String>,
    /// The CPUs that it runs on.
    pub cpus: Vec<usize>,
    /// The file that its output goes to.
    pub log: PathBuf,
    /// Its cgroup, if there is one.
    pub cgroup: Option<PathBuf>,
    /// The longest time that it may take to end after SIGTERM.
    pub stop_max: Duration,
}

/// Something that happened.
enum Event {
    /// The server's own process has ended, with this status.
    Ended(String),
    /// No process is left.
    Empty,
    /// The challenge asks it to stop the server.
    Stop,
    /// The challenge has ended.
    Orphaned,
}

/// Keeps a server until it gets the command to end it. Failures are reported to the challenge.
pub fn run(config: &Config) {
    if let Err(error) = keep(config) {
        tell(&format!("failed {error}"));
    }
}

fn keep(config: &Config) -> io::Result<()> {
    set_child_subreaper(Some(getpid()))?;
    let mut log = BoundedLog::create(&config.log)?;
    let (output, writer) = io::pipe()?;
    let pid = start(config, writer)?;
    tell(&format!("pid {}", pid.as_raw_nonzero()));
    let (events, happened) = channel();
    let (finished, log_is_whole) = channel::<()>();
    let threads = [
        Builder::new().spawn(move || {
            log.drain(output);
            drop(finished);
        }),
        Builder::new().spawn({
            let events = events.clone();
            move || reap(pid, &events)
        }),
        Builder::new().spawn(move || listen(&events)),
    ];
    if let Some(error) = threads.into_iter().find_map(Result::err) {
        kill_all(config);
        return Err(error);
    }
    let how = follow(config, pid, &happened);
    if let Some(cgroup) = &config.cgroup {
        cgroup::end(cgroup);
    }
    // The log ends with the last process that writes to it.
    let _ = log_is_whole.recv_timeout(LOG_MAX);
    tell(&format!("stopped {how}"));
    Ok(())
}

/// Starts the server in its own process group, on its own CPUs.
fn start(config: &Config, output: io::PipeWriter) -> io::Result<Pid> {
    let (program, arguments) = config.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).process_group(0);
    command.stdout(output.try_clone()?).stderr(output);
    // A child has the mask of the thread that starts it.
    let ours = sched_getaffinity(None)?;
    let mut theirs = CpuSet::new();
    config.cpus.iter().for_each(|cpu| theirs.set(*cpu));
    sched_setaffinity(None, &theirs)?;
    let spawned = match &config.cgroup {
        Some(cgroup) => cgroup::within(cgroup, || command.spawn()).and_then(|spawned| spawned),
        None => command.spawn(),
    };
    sched_setaffinity(None, &ours)?;
    // `reap` waits for it, as it does for all others.
    spawned.map(|child| Pid::from_child(&child))
}

/// Reaps every process that ends, so that its CPU time is added to this process's.
fn reap(server: Pid, events: &Sender<Event>) {
    loop {
        let event = match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == server => Event::Ended(in_words(status)),
            Ok(_) | Err(rustix::io::Errno::INTR) => continue,
            Err(_) => Event::Empty,
        };
        let is_last = matches!(event, Event::Empty);
        if events.send(event).is_err() || is_last {
            return;
        }
    }
}

fn in_words(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".into(),
    }
}

fn listen(events: &Sender<Event>) {
    let mut line = String::new();
    let event = match io::stdin().lock().read_line(&mut line) {
        Ok(length) if length > 0 => Event::Stop,
        _ => Event::Orphaned,
    };
    let is_stop = matches!(event, Event::Stop);
    if events.send(event).is_err() || !is_stop {
        return;
    }
    // Any further input is discarded until end of file, which marks the end of the challenge.
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
    let _ = events.send(Event::Orphaned);
}

/// Waits for the command to end the server, and ends it. Returns how it ended: `ended` or `killed`.
fn follow(config: &Config, server: Pid, happened: &Receiver<Event>) -> &'static str {
    let mut is_empty = false;
    loop {
        match happened.recv() {
            Ok(Event::Ended(how)) => tell(&format!("ended {how}")),
            Ok(Event::Empty) => is_empty = true,
            Ok(Event::Stop) => break,
            Ok(Event::Orphaned) | Err(_) => {
                kill_all(config);
                return "killed";
            }
        }
    }
    // The ID of an empty process group may have been reused.
    if !is_empty {
        terminate(server);
    }
    let deadline = Instant::now() + config.stop_max;
    while !is_empty {
        let left = deadline.saturating_duration_since(Instant::now());
        match happened.recv_timeout(left) {
            Ok(Event::Ended(how)) => tell(&format!("ended {how}")),
            Ok(Event::Empty) => is_empty = true,
            Ok(Event::Stop) => {}
            Ok(Event::Orphaned)
            | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                kill_all(config);
                return "killed";
            }
        }
    }
    "ended"
}

/// Asks the server to end: its process group, and whatever it started that has left the group, as a daemon does.
fn terminate(server: Pid) {
    let all = started();
    let _ = kill_process_group(server, Signal::TERM);
    let group = server.as_raw_nonzero().get();
    let has_left = |process: &Process| process.stat().is_ok_and(|stat| stat.pgrp != group);
    signal(all.into_iter().filter(has_left), Signal::TERM);
}

/// Returns every process that the server started, and the server itself.
fn started() -> Vec<Process> {
    descendants(getpid().as_raw_nonzero().get())
}

fn signal(processes: impl IntoIterator<Item = Process>, signal: Signal) {
    for process in processes {
        let _ = Pid::from_raw(process.pid).map(|pid| kill_process(pid, signal));
    }
}

/// Kills every process that the server started, again and again until none is left.
fn kill_all(config: &Config) {
    let deadline = Instant::now() + KILL_MAX;
    loop {
        if let Some(cgroup) = &config.cgroup {
            let _ = cgroup::kill(cgroup);
        }
        let left = started();
        let is_over =
            |process: &Process| process.stat().map_or(true, |stat| matches!(stat.state, 'Z' | 'X'));
        if left.iter().all(is_over) || Instant::now() >= deadline {
            return;
        }
        signal(left, Signal::KILL);
        std::thread::sleep(KILL_EVERY);
    }
}

/// Writes a line to the challenge. If the challenge has ended, nobody reads it.
fn tell(line: &str) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{}", line.replace('\n', " ")).and_then(|()| stdout.flush());
}
