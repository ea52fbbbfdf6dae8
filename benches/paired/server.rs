//! One of our servers, started for a bench: its address, its CPU time, its metrics, and its end.

#![allow(dead_code, reason = "each bench uses a part of it")]

use ringtally::failure::Failure;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The CPUs of servers and clients.
pub(crate) struct Places {
    pub(crate) server_cpus: String,
    pub(crate) client_cpus: String,
}

/// A server that this process started. It is killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
    pub(crate) name: String,
}

impl Server {
    /// Starts `ringtally serve` on a free port of some CPUs, with further flags.
    pub(crate) fn start(binary: &Path, cpus: &str, flags: &[&str]) -> Result<Self, Failure> {
        let name = binary.display().to_string();
        let mut child = Command::new(binary)
            .args(["serve", "--port", "0", "--cpus", cpus])
            .args(["--parent", &std::process::id().to_string()])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::Environment(format!("cannot start {name}: {error}")))?;
        let said = child.stderr.take();
        let mut server = Server { child, url: String::new(), name };
        let mut words = Vec::new();
        for line in said.into_iter().flat_map(|said| BufReader::new(said).lines()) {
            let line = line.unwrap_or_default();
            let rest = line.strip_prefix("listening on ").and_then(|rest| rest.split(' ').next());
            if let Some(url) = rest {
                server.url = url.to_owned();
                return Ok(server);
            }
            words.push(line);
        }
        let words = match words.is_empty() {
            true => "it said nothing".into(),
            false => words.join("; "),
        };
        Err(Failure::Environment(format!("{} did not start: {words}", server.name)))
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.child.id() as i32)
    }

    /// CPU time of all threads. The first number of `schedstat` is in nanoseconds, whereas
    /// proc_pid_stat(5) counts hundredths of a second. Threads live as long as the server.
    pub(crate) fn cpu_ns(&self) -> Result<u64, Failure> {
        let threads = format!("/proc/{}/task", self.child.id());
        let of_thread = |entry: std::io::Result<std::fs::DirEntry>| {
            let text = std::fs::read_to_string(entry.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        };
        std::fs::read_dir(threads).ok().and_then(|threads| threads.map(of_thread).sum()).ok_or_else(
            || {
                let name = &self.name;
                Failure::Environment(format!(
                    "{name} has ended, or this kernel has no schedstat in /proc"
                ))
            },
        )
    }

    /// Runs one load with a client on some CPUs, and returns its report, whose verdict is exact.
    pub(crate) fn load(
        &self,
        client: &Path,
        cpus: &str,
        flags: &[String],
    ) -> Result<Value, Failure> {
        let output = Command::new(client)
            .arg("load")
            .args(flags)
            .args(["--url", &self.url, "--cpus", cpus, "--quiet", "--json", "-"])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                Failure::Environment(format!("cannot start {}: {error}", client.display()))
            })?;
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if report["verdict"] == "exact" {
            return Ok(report);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Failure::Wrong(format!("a load on {} was not exact: {}", self.name, said.trim())))
    }

    /// Returns the sums of the samples of some metrics, at one moment.
    pub(crate) fn metrics<const N: usize>(&self, names: [&str; N]) -> Result<[f64; N], Failure> {
        let read = || {
            let address = self.url.strip_prefix("http://").unwrap_or(&self.url);
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok::<_, std::io::Error>(text)
        };
        let text = read().map_err(|error| Failure::Environment(format!("no metrics: {error}")))?;
        let sum = |name: &str| {
            let samples = text.lines().filter_map(|line| {
                let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']))?;
                rest.rsplit(' ').next()?.parse::<f64>().ok()
            });
            samples.sum()
        };
        Ok(names.map(sum))
    }

    /// Suspends the server, or lets it go on.
    pub(crate) fn suspend(&self, is_suspended: bool) {
        let signal = if is_suspended { Signal::STOP } else { Signal::CONT };
        // Fails if the server has ended, which its clients show.
        let _ = self.pid().map(|pid| kill_process(pid, signal));
    }

    /// Stops the server as an operator would.
    pub(crate) fn stop(mut self) -> Result<(), Failure> {
        // Fails if it has already ended, which its status shows.
        let _ = self.pid().map(|pid| kill_process(pid, Signal::TERM));
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            ended => Err(Failure::Wrong(format!("{} did not stop cleanly: {ended:?}", self.name))),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail if it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
