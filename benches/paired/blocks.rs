//! One block: two servers, started for it and loaded alike in the order A B B A.

use super::options::Options;
use super::verdict::log_ratio;
use ringtally::failure::Failure;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The CPUs of servers and clients.
pub(crate) struct Places {
    pub(crate) server_cpus: String,
    pub(crate) client_cpus: String,
}

/// The measurements of one load.
#[derive(Clone, Copy)]
pub(crate) struct Leg {
    /// The server's CPU seconds per million events, which is microseconds per event.
    pub(crate) cpu: f64,
    pub(crate) requests_per_s: f64,
    pub(crate) p99_us: f64,
    pub(crate) client_limited: bool,
}

/// Legs in the order A B B A.
pub(crate) struct Block(pub(crate) [Leg; 4]);

impl Block {
    /// Starts new servers for every block. The place of a process's memory is fixed for its life, and
    /// would be a difference between the sides that no number of blocks averages out. It costs a
    /// tenth of a second.
    pub(crate) fn run(
        a: &Path,
        b: &Path,
        options: &Options,
        places: &Places,
    ) -> Result<Block, Failure> {
        let a = Server::start(a, places)?;
        let b = Server::start(b, places)?;
        let leg = |server: &Server| server.leg(options, places);
        let block = Block([leg(&a)?, leg(&b)?, leg(&b)?, leg(&a)?]);
        a.stop()?;
        b.stop()?;
        Ok(block)
    }

    /// The logarithm of B's figure over A's.
    pub(crate) fn log_ratio(&self, figure: fn(&Leg) -> f64) -> f64 {
        log_ratio(self.0.each_ref().map(figure))
    }
}

/// A server that this process started. It is killed when dropped.
struct Server {
    child: Child,
    url: String,
    name: String,
}

impl Server {
    fn start(binary: &Path, places: &Places) -> Result<Self, Failure> {
        let name = binary.display().to_string();
        let mut child = Command::new(binary)
            .args(["serve", "--port", "0", "--cpus", &places.server_cpus])
            .args(["--parent", &std::process::id().to_string()])
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

    fn leg(&self, options: &Options, places: &Places) -> Result<Leg, Failure> {
        let before = self.cpu_ns()?;
        let client = options.client();
        let output = Command::new(client)
            .args(["load", &options.requests.to_string(), &options.connections.to_string()])
            .args(["--pipeline", &options.pipeline.to_string()])
            .args(["--users", &options.users().to_string()])
            .args(["--url", &self.url, "--cpus", &places.client_cpus, "--quiet", "--json", "-"])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                Failure::Environment(format!("cannot start {}: {error}", client.display()))
            })?;
        let after = self.cpu_ns()?;
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if report["verdict"] != "exact" {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::Wrong(format!(
                "a load on {} was not exact: {}",
                self.name,
                said.trim()
            )));
        }
        let number = |value: &Value| value.as_f64().filter(|number| *number > 0.0);
        let leg = (|| {
            Some(Leg {
                cpu: (after - before) as f64 / 1e3 / number(&report["acknowledged"])?,
                requests_per_s: number(&report["requests_per_s"])?,
                p99_us: number(&report["latency_us"]["p99"])?,
                client_limited: report["client_limited"] == true,
            })
        })();
        leg.filter(|leg| leg.cpu > 0.0).ok_or_else(|| {
            Failure::Environment(format!("a load on {} measured nothing", self.name))
        })
    }

    /// CPU time of all threads. The first number of `schedstat` is in nanoseconds, whereas
    /// proc_pid_stat(5) counts hundredths of a second. Threads live as long as the server.
    fn cpu_ns(&self) -> Result<u64, Failure> {
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

    /// Stops the server as an operator would.
    fn stop(mut self) -> Result<(), Failure> {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            // Fails if it has already ended, which its status shows.
            let _ = kill_process(pid, Signal::TERM);
        }
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
