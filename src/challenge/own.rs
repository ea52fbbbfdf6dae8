//! The challenge with this program's own server, which runs as a separate process, and the report of [`load`].

use super::usage::{self, CpuTime};
use crate::failure::Failure;
use crate::load::{self, CpuSource, Output, Server, ServerUse};
use crate::log::Log;
use crate::topology::format_cpu_list;
use procfs::process::Process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The time that the server may take to get ready. Its own checks end sooner.
const START_MAX: Duration = Duration::from_secs(30);
/// The time that the server may take to stop, in addition to its drain timeout.
const STOP_MAX: Duration = Duration::from_secs(10);
/// The time between checks of whether it has stopped.
const STOP_TICK: Duration = Duration::from_millis(2);

/// The command of the server, which listens on a free port.
const ADDRESS: [&str; 5] = ["serve", "--host", "127.0.0.1", "--port", "0"];

/// A checked configuration.
pub struct Config {
    /// Flags for `serve`, except its address and CPUs.
    pub server_flags: Vec<OsString>,
    /// The server's CPUs.
    pub server_cpus: Vec<usize>,
    /// The server's drain timeout.
    pub drain_timeout: Duration,
    /// Makes the client's configuration, once the server's address is known.
    pub load: Box<dyn FnOnce(Server) -> load::Config>,
    /// The destinations of the report.
    pub output: Output,
}

/// A fault of the server process. The message is its own, if it sent one.
#[derive(Debug)]
enum Error {
    /// It could not be run.
    Spawn(io::Error),
    /// It ended before it was ready.
    NotStarted { status: ExitStatus, message: Option<String> },
    /// It was not ready in time.
    StartTimedOut,
    /// It failed during the run or at its end.
    Failed { status: ExitStatus, message: Option<String> },
    /// It did not stop in time, and was killed.
    StopTimedOut,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Spawn(error) => write!(f, "cannot start the server: {error}"),
            Error::NotStarted { message: Some(message), .. } => {
                write!(f, "the server did not start: {message}")
            }
            Error::NotStarted { status, message: None } => {
                write!(f, "the server did not start: it ended with {status}")
            }
            Error::StartTimedOut => {
                write!(f, "the server was not ready within {} s", START_MAX.as_secs())
            }
            Error::Failed { message: Some(message), .. } => {
                write!(f, "the server failed: {message}")
            }
            Error::Failed { status, message: None } => {
                write!(f, "the server failed: it ended with {status} and without final totals")
            }
            Error::StopTimedOut => f.write_str("the server did not stop and was killed"),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let message = error.to_string();
        match error {
            // The server's own exit code means that the flags have to change.
            Error::NotStarted { status, .. } if status.code() == Some(2) => Failure::Usage(message),
            Error::Spawn(_) | Error::NotStarted { .. } | Error::StartTimedOut => {
                Failure::Environment(message)
            }
            Error::Failed { .. } | Error::StopTimedOut => Failure::Wrong(message),
        }
    }
}

/// Runs the challenge. The server ends with this process, however it ends.
///
/// # Errors
///
/// The errors of starting and stopping the server, of [`load::run`], and of writing the report's files; and [`Failure::Wrong`]
/// if the report does not pass.
pub(super) fn run(config: Config) -> Result<(), Failure> {
    let server_cpus = format_cpu_list(&config.server_cpus);
    let server = ServerProcess::start(&config.server_flags, &server_cpus)?;
    let mut load = (config.load)(Server::parse(&format!("http://{}", server.address))?);
    load.server_command = command(&config.server_flags, &server_cpus);
    let (report, used) = usage::run(&load, || server.cpu_time());
    let peak_rss_bytes = server.peak_rss_bytes();
    let stopped = server.stop(config.drain_timeout + STOP_MAX);
    let mut report = match (report, &stopped) {
        (Ok(report), _) => report,
        (Err(failure), Ok(())) => return Err(failure),
        // The server's failure is the cause of the client's.
        (Err(_), Err(_)) => return stopped.map_err(Failure::from),
    };
    report.add_server(used.map(|CpuTime { user, system }| ServerUse {
        user,
        system,
        cpu_source: CpuSource::Proc,
        peak_rss_bytes,
        cpus: server_cpus,
    }));
    let written = config.output.write(&report);
    Failure::all([stopped.map_err(Failure::from), report.check(), written])
}

/// Returns the server's command for the report. A password of a store is in the environment, and not in its flags.
fn command(flags: &[OsString], cpus: &str) -> Vec<String> {
    let flags = flags.iter().map(|flag| flag.to_string_lossy().into_owned());
    let words = ["ringtally"].into_iter().chain(ADDRESS).chain(["--cpus", cpus]);
    words.map(str::to_owned).chain(flags).collect()
}

/// A server that this process started. Dropped, it is killed.
struct ServerProcess {
    child: Child,
    /// The host and port that the server reported.
    address: String,
    /// The address comes first, and the final totals last.
    stdout: BufReader<ChildStdout>,
    /// The thread that relays the server's log. It ends with the log, and returns the last error.
    log: Option<JoinHandle<Option<String>>>,
}

impl ServerProcess {
    fn start(flags: &[OsString], cpus: &str) -> Result<Self, Error> {
        let mut child = Command::new(std::env::current_exe().map_err(Error::Spawn)?)
            .args(ADDRESS)
            .args(["--cpus", cpus])
            .args(["--parent", &std::process::id().to_string()])
            .args(["--ready-fd", "1", "--log", "json"])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C interrupts the client, which then stops the server and reports.
            .process_group(0)
            .spawn()
            .map_err(Error::Spawn)?;
        let no_pipe = || Error::Spawn(io::Error::other("it has no standard output or error"));
        let stdout = child.stdout.take().ok_or_else(no_pipe)?;
        let stderr = child.stderr.take().ok_or_else(no_pipe)?;
        let log = std::thread::Builder::new().spawn(|| relay_log(stderr)).map_err(Error::Spawn)?;
        let (stdout, log) = (BufReader::new(stdout), Some(log));
        let mut server = ServerProcess { child, address: String::new(), stdout, log };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// Waits for the address, or for the end of a server that does not start.
    fn wait_until_ready(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + START_MAX;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(|_| Error::StartTimedOut)?;
            let mut stdout = [PollFd::new(self.stdout.get_ref(), PollFlags::IN)];
            match poll(&mut stdout, Some(&left)) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::Spawn(error.into())),
                Ok(0) => return Err(Error::StartTimedOut),
                Ok(_) => break,
            }
        }
        // The server writes the line in one piece, so this does not wait for its end.
        self.stdout.read_line(&mut self.address).map_err(Error::Spawn)?;
        match self.address.pop() {
            Some(_) => Ok(()),
            None => {
                let status = self.child.wait().map_err(Error::Spawn)?;
                Err(Error::NotStarted { status, message: self.last_error() })
            }
        }
    }

    fn process(&self) -> Option<Process> {
        Process::new(Pid::from_child(&self.child).as_raw_nonzero().get()).ok()
    }

    /// Returns the user and system time used so far.
    fn cpu_time(&self) -> Option<CpuTime> {
        let stat = self.process()?.stat().ok()?;
        let time =
            |ticks: u64| Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64);
        Some(CpuTime { user: time(stat.utime), system: time(stat.stime) })
    }

    /// Returns the most memory that the process has held.
    fn peak_rss_bytes(&self) -> Option<u64> {
        Some(self.process()?.status().ok()?.vmhwm? * 1024)
    }

    /// Stops the server as an operator would, and waits until it has ended.
    fn stop(mut self, limit: Duration) -> Result<(), Error> {
        // Fails if it has already ended, which its status shows.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let deadline = Instant::now() + limit;
        let status = loop {
            match self.child.try_wait().map_err(Error::Spawn)? {
                Some(status) => break status,
                None if Instant::now() >= deadline => return Err(Error::StopTimedOut),
                None => std::thread::sleep(STOP_TICK),
            }
        };
        let mut totals = String::new();
        let is_read = self.stdout.read_to_string(&mut totals).is_ok();
        let message = self.last_error();
        match status.success() && is_read && totals.contains("totalRequests") {
            true => Ok(()),
            false => Err(Error::Failed { status, message }),
        }
    }

    /// Returns the last error in the log of a server that has ended.
    fn last_error(&mut self) -> Option<String> {
        self.log.take()?.join().ok()?
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The parts of a line of the server's log that matter here.
#[derive(Deserialize)]
struct LogLine {
    level: String,
    message: String,
}

/// Relays the warnings in the server's log, and other output such as a panic message. Returns the log's last error, which is
/// reported by the code that waits for the server's end.
fn relay_log(stderr: ChildStderr) -> Option<String> {
    let mut last_error = None;
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        match serde_json::from_str::<LogLine>(&line) {
            Ok(line) if line.level == "info" => {}
            Ok(line) if line.level == "error" => last_error = Some(line.message),
            Ok(line) => Log::Text.warn(&format!("server: {}", line.message)),
            Err(_) => {
                // If standard error is closed, there is nowhere left to report that.
                let _ = writeln!(io::stderr(), "server: {line}");
            }
        }
    }
    last_error
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_failure_is_of_whoever_has_to_act() {
        let status = |code: i32| ExitStatus::from_raw(code << 8);
        let message = Some("port in use".to_owned());
        for (error, code, expected) in [
            (Error::Spawn(io::Error::other("no memory")), 3, "cannot start the server: no memory"),
            (
                Error::NotStarted { status: status(2), message: message.clone() },
                2,
                "did not start: port in use",
            ),
            (Error::NotStarted { status: status(3), message: None }, 3, "exit status: 3"),
            (Error::StartTimedOut, 3, "within 30 s"),
            (Error::Failed { status: status(1), message }, 1, "the server failed: port in use"),
            (Error::Failed { status: status(0), message: None }, 1, "without final totals"),
            (Error::StopTimedOut, 1, "was killed"),
        ] {
            let failure = Failure::from(error);
            assert_eq!(failure.exit_code(), code, "{failure}");
            assert!(failure.to_string().contains(expected), "{failure}");
        }
    }
}
