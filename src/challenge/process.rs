//! A running server that `--server` names: its keeper, its port, its readiness, its log, and its end.

use super::cgroup::Group;
use super::command::{Place, ServerCommand};
use super::listeners::{self, Listeners};
use super::log;
use super::usage::{self, CpuTime, descendants};
use crate::failure::Failure;
use crate::load::CpuSource;
use crate::topology::format_cpu_list;
use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// The longest time that a server may take to end after SIGTERM.
pub(super) const STOP_MAX: Duration = Duration::from_secs(5);
/// The longest additional time that its keeper may take.
const KEEPER_MAX: Duration = Duration::from_secs(15);
/// The time between readiness checks of a server that is starting.
const READY_EVERY: Duration = Duration::from_millis(2);
/// The longest time that it may take to respond to a check.
const RESPONSE_MAX: Duration = Duration::from_secs(1);
/// The number of ports that are tried before one must be free.
const PORTS_TRIED: u32 = 20;
/// The lowest port that is tried.
const PORT_MIN: u16 = 10_000;

/// The reason why a server cannot be judged.
#[derive(Debug)]
pub(super) enum Error {
    /// It could not be run.
    Spawn(String),
    /// It ended before it was ready.
    NotStarted(String),
    /// It was not ready in time. `last` is what its last check found.
    StartTimedOut { after: Duration, names_port: bool, last: String },
    /// Somebody else listens on its port, alone or in addition to it.
    Port(u16, Listeners),
    /// It ended while it was measured.
    Ended(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Spawn(error) => {
                write!(f, "the command cannot be run: {error}: check its program and its directory")
            }
            Error::NotStarted(how) => {
                write!(f, "it ended with {how} before it was ready")
            }
            Error::StartTimedOut { after, names_port, last } => {
                let time = humantime::format_duration(*after);
                let hint = match names_port {
                    true => "raise --start-timeout if it needs longer",
                    false => "write {port} into its command if it does not listen on $PORT",
                };
                write!(
                    f,
                    "neither /health nor /stats returned 200 within {time}, and at last {last}: {hint}"
                )
            }
            Error::Port(port, Listeners::Foreign) => write!(
                f,
                "what listens on port {port} was not started by the command, so that it cannot be measured: run it in the \
                 foreground, and not as a service or in a container"
            ),
            Error::Port(port, _) => write!(
                f,
                "another process listens on its port {port}, too, and gets a part of the requests: stop that process"
            ),
            Error::Ended(how) => {
                write!(f, "it ended with {how} while it was measured")
            }
        }
    }
}

impl Error {
    /// Returns it as the failure of a challenge, with the server's name and the last lines of its log.
    pub(super) fn failure(&self, name: &str, log: &Path) -> Failure {
        let message = format!("{name}: {}", self.sentence(log));
        match self {
            Error::Ended(_) => Failure::Wrong(message),
            _ => Failure::Environment(message),
        }
    }

    /// Returns it with the last lines of the server's log.
    pub(super) fn sentence(&self, log: &Path) -> String {
        match log::quote(log) {
            Some(said) => format!("{self}; its last lines in {}: {said}", log.display()),
            None => {
                format!("{self}; it did not write anything: run its command by hand to see why")
            }
        }
    }
}

/// The conditions that all servers share.
#[derive(Clone, Debug)]
pub(super) struct Conditions {
    pub(super) cpus: Vec<usize>,
    pub(super) start_max: Duration,
    /// Flags for this program's own server.
    pub(super) tuning: Vec<String>,
    /// The directory of the logs.
    pub(super) logs: PathBuf,
}

impl Conditions {
    /// Returns the log of a server.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }
}

/// A running server. Dropping it kills the server and everything that it started.
pub(super) struct Judged {
    keeper: Child,
    /// The keeper's standard input. Closing it makes the keeper kill everything.
    orders: Option<ChildStdin>,
    /// The lines that the keeper has written.
    said: Receiver<String>,
    /// The exit status of the server, in words, if it has ended.
    ended: Option<String>,
    group: Option<Group>,
    place: Place,
    pub(super) address: SocketAddr,
    /// The time from its start to its first response.
    pub(super) start_up: Duration,
    /// Its whole command.
    pub(super) command: Vec<String>,
}

impl Judged {
    /// Starts a server, and waits until it is ready.
    pub(super) fn start(server: &ServerCommand, on: &Conditions) -> Result<Judged, Error> {
        let port = free_port().map_err(|error| Error::Spawn(error.to_string()))?;
        let place = Place { port, cpus: on.cpus.clone() };
        let mut judged = Judged::spawn(server, on, place)?;
        judged.wait_until_started()?;
        let started = Instant::now();
        while let Err(last) = check_ready(judged.address) {
            if let Some(how) = judged.ended() {
                return Err(Error::NotStarted(how));
            }
            if started.elapsed() > on.start_max {
                let names_port = server.names_port();
                return Err(Error::StartTimedOut { after: on.start_max, names_port, last });
            }
            std::thread::sleep(READY_EVERY);
        }
        judged.start_up = started.elapsed();
        judged.check_port()?;
        Ok(judged)
    }

    fn spawn(server: &ServerCommand, on: &Conditions, place: Place) -> Result<Judged, Error> {
        let failed = |error: io::Error| Error::Spawn(error.to_string());
        let command = server.at(&place, &on.tuning);
        let group = Group::make();
        let program = std::env::current_exe().map_err(failed)?;
        let mut keep = Command::new(&program);
        keep.arg("keep").args(["--cpus", &format_cpu_list(&on.cpus)]);
        keep.arg("--log").arg(on.log(&server.name));
        keep.args(["--stop-timeout", &humantime::format_duration(STOP_MAX).to_string()]);
        if let Some(group) = &group {
            keep.arg("--cgroup").arg(group.path());
        }
        keep.arg("--");
        match server.is_own() {
            true => keep.arg(&program).args(&command[1..]),
            false => keep.args(&command),
        };
        for (name, value) in place.values() {
            keep.env(name.to_uppercase(), value);
        }
        // Ctrl-C interrupts the challenge, which then ends the server and reports.
        keep.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut keeper = keep.spawn().map_err(failed)?;
        let no_pipe = || Error::Spawn("its keeper has no pipes".into());
        let orders = keeper.stdin.take().ok_or_else(no_pipe)?;
        let stdout = keeper.stdout.take().ok_or_else(no_pipe)?;
        let (tell, said) = channel();
        let listen = move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            lines.for_each(|line| drop(tell.send(line)));
        };
        std::thread::Builder::new().spawn(listen).map_err(failed)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, place.port));
        Ok(Judged {
            keeper,
            orders: Some(orders),
            said,
            ended: None,
            group,
            place,
            address,
            start_up: Duration::ZERO,
            command,
        })
    }

    /// Waits until the keeper has run the command.
    fn wait_until_started(&mut self) -> Result<(), Error> {
        let line = self.said.recv_timeout(KEEPER_MAX);
        let line = line.map_err(|_| Error::Spawn("its keeper did not start".into()))?;
        match line.split_once(' ') {
            Some(("pid", _)) => Ok(()),
            Some(("failed", why)) => Err(Error::Spawn(why.into())),
            _ => Err(Error::Spawn(line)),
        }
    }

    fn note(&mut self, line: &str) {
        if let Some(how) = line.strip_prefix("ended ") {
            self.ended = Some(how.into());
        }
    }

    /// Returns how the server has ended, if it has.
    pub(super) fn ended(&mut self) -> Option<String> {
        while let Ok(line) = self.said.try_recv() {
            self.note(&line);
        }
        if self.ended.is_none() && matches!(self.keeper.try_wait(), Ok(Some(_))) {
            self.ended = Some("its keeper".into());
        }
        self.ended.clone()
    }

    /// Fails if the server has ended, or if it does not have its port for itself.
    pub(super) fn check(&mut self) -> Result<(), Error> {
        match self.ended() {
            Some(how) => Err(Error::Ended(how)),
            None => self.check_port(),
        }
    }

    fn check_port(&self) -> Result<(), Error> {
        match listeners::of(self.place.port, &descendants(self.keeper_pid())) {
            Listeners::Own | Listeners::Unknown => Ok(()),
            other => Err(Error::Port(self.place.port, other)),
        }
    }

    fn keeper_pid(&self) -> i32 {
        i32::try_from(self.keeper.id()).unwrap_or(i32::MAX)
    }

    /// Returns the CPU time of all its processes so far.
    pub(super) fn cpu(&self) -> Option<CpuTime> {
        match &self.group {
            Some(group) => group.cpu(),
            None => usage::cpu(self.keeper_pid()),
        }
    }

    pub(super) fn cpu_source(&self) -> CpuSource {
        if self.group.is_some() { CpuSource::Cgroup } else { CpuSource::Proc }
    }

    /// Returns the most memory that its processes have held.
    pub(super) fn peak_rss_bytes(&self) -> Option<u64> {
        usage::peak_rss_bytes(self.keeper_pid())
    }

    /// Ends it with SIGTERM, and kills whatever remains. Returns whether SIGKILL was needed.
    pub(super) fn stop(mut self) -> bool {
        if let Some(orders) = &mut self.orders {
            // Fails if the keeper has ended, which is detected below.
            let _ = orders.write_all(b"stop\n").and_then(|()| orders.flush());
        }
        let deadline = Instant::now() + STOP_MAX + KEEPER_MAX;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.said.recv_timeout(left) {
                Ok(line) if line.starts_with("stopped ") => return line.ends_with("killed"),
                Ok(line) => self.note(&line),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return true,
            }
        }
    }
}

impl Drop for Judged {
    fn drop(&mut self) {
        drop(self.orders.take());
        let deadline = Instant::now() + KEEPER_MAX;
        while matches!(self.keeper.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(READY_EVERY);
        }
        // Both fail if it has ended, as it should have.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// Returns a port that nobody listens on. If it can be, it is below the ports of outgoing connections, so that none of these
/// takes it before the server listens.
fn free_port() -> io::Result<u16> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let outgoing = range.split_ascii_whitespace().next().and_then(|first| first.parse().ok());
    let below = PORT_MIN..outgoing.unwrap_or(0);
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..PORTS_TRIED {
        // Port 0 leaves the choice to the kernel.
        let port = if below.is_empty() { 0 } else { fastrand::u16(below.clone()) };
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|free| free.local_addr()) {
            Ok(address) if listeners::of(address.port(), &[]) == Listeners::Unknown => {
                return Ok(address.port());
            }
            Ok(_) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Checks whether a server is ready: whether it responds with 200 to `/health`, or to `/stats` because some lack `/health`.
///
/// # Errors
///
/// What it did instead when `/stats` was requested.
fn check_ready(address: SocketAddr) -> Result<(), String> {
    let ask = |path: &str| -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, RESPONSE_MAX)?;
        stream.set_read_timeout(Some(RESPONSE_MAX))?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut start = [0; 12];
        stream.read_exact(&mut start)?;
        match start.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..)) {
            Some(status) => Ok(String::from_utf8_lossy(status).into_owned()),
            None => Err(io::Error::other("the response is not HTTP/1.1")),
        }
    };
    if ask("/health").is_ok_and(|status| status == "200") {
        return Ok(());
    }
    match ask("/stats") {
        Ok(status) if status == "200" => Ok(()),
        Ok(status) => Err(format!("/stats returned {}", status.escape_debug())),
        Err(error) => Err(format!("/stats failed: {error}")),
    }
}

/// The directory of the logs of a challenge. Dropping it removes the directory, unless an error message has named a log.
pub(super) struct Logs {
    pub(super) path: PathBuf,
    pub(super) are_kept: bool,
}

impl Logs {
    pub(super) fn make() -> Result<Logs, Failure> {
        let path = std::env::temp_dir().join(format!("ringtally-challenge-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(|error| {
            Failure::Environment(format!(
                "cannot make {} for the servers' logs: {error}: name another directory in TMPDIR",
                path.display()
            ))
        })?;
        Ok(Logs { path, are_kept: false })
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        if !self.are_kept {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_is_below_those_of_outgoing_connections() {
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let first: u16 = range.split_ascii_whitespace().next().unwrap().parse().unwrap();
        for _ in 0..100 {
            let port = free_port().unwrap();
            assert!(first <= PORT_MIN || (PORT_MIN..first).contains(&port), "{port}");
        }
    }
}
