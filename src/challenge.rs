//! The whole challenge in one command: a server process and this one as its client, on disjoint
//! CPUs where there are two or more, and one report.

use crate::failure::Failure;
use crate::load::{self, Moment, Output, Server, ServerUse};
use crate::topology::format_cpu_list;
use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

/// A checked configuration.
pub struct Config {
    /// Flags for `serve`, as they would be typed.
    pub server_flags: Vec<OsString>,
    /// The server's CPUs.
    pub server_cpus: Vec<usize>,
    /// The client's configuration, once the server is there.
    pub load: Box<dyn FnOnce(Server) -> load::Config>,
    /// Where the report goes.
    pub output: Output,
}

/// Runs the challenge. The server ends with this process, however that ends.
pub fn run(config: Config) -> Result<(), Failure> {
    let server_cpus = format_cpu_list(&config.server_cpus);
    let server = ServerProcess::start(&config.server_flags, &server_cpus)?;
    let load = (config.load)(Server::parse(&server.url)?);
    let mut cpu = Vec::new();
    let report = load::run(&load, |moment| cpu.push((moment, server.cpu_time())));
    let peak = server.peak_rss_bytes();
    let last_words = server.stop();
    let mut report = report?;
    if let [(Moment::Start, Some(before)), (Moment::End, Some(after))] = cpu[..] {
        report.add_server(ServerUse {
            user: after.user.saturating_sub(before.user),
            system: after.system.saturating_sub(before.system),
            peak_rss_bytes: peak,
            cpus: server_cpus,
        });
    }
    config.output.write(&report)?;
    last_words?;
    report.check()
}

/// CPU time of a process.
#[derive(Clone, Copy, Debug)]
struct CpuTime {
    user: Duration,
    system: Duration,
}

/// A server that this process started. Dropped, it is killed.
struct ServerProcess {
    child: Child,
    url: String,
    /// Passes on what the server says on standard error.
    echo: Option<JoinHandle<()>>,
}

impl ServerProcess {
    fn start(flags: &[OsString], cpus: &str) -> Result<Self, Failure> {
        let cannot = |error| Failure::Environment(format!("cannot start the server: {error}"));
        let mut child = Command::new(std::env::current_exe().map_err(cannot)?)
            .args(["serve", "--host", "127.0.0.1", "--port", "0", "--cpus", cpus])
            .args(["--parent", &std::process::id().to_string()])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal is for this process, which stops the server itself.
            .process_group(0)
            .spawn()
            .map_err(cannot)?;
        let mut said = Vec::new();
        let mut lines = BufReader::new(child.stderr.take().ok_or_else(no_pipe)?).lines();
        let mut server = ServerProcess { child, url: String::new(), echo: None };
        for line in lines.by_ref().map_while(Result::ok) {
            let address =
                line.strip_prefix("listening on ").and_then(|rest| rest.split(' ').next());
            if let Some(url) = address {
                server.url = url.to_owned();
                break;
            }
            said.push(line);
        }
        if server.url.is_empty() {
            let said = said.join("; ");
            let reason = said.strip_prefix("error: ").unwrap_or(&said).to_owned();
            // The server's own exit code says whose fault it is.
            return Err(match server.child.wait().ok().and_then(|status| status.code()) {
                Some(2) => Failure::Usage(reason),
                _ => Failure::Environment(format!("the server did not start: {reason}")),
            });
        }
        server.echo = Some(std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = writeln!(std::io::stderr(), "server: {line}");
            }
        }));
        Ok(server)
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// User and system time so far (proc_pid_stat(5)).
    fn cpu_time(&self) -> Option<CpuTime> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
        // The name may hold spaces and parentheses; the fields follow its last one.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
        let mut time = || {
            let ticks: u64 = fields.next()?.parse().ok()?;
            Some(Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64))
        };
        Some(CpuTime { user: time()?, system: time()? })
    }

    /// The most memory that the process held (proc_pid_status(5)).
    fn peak_rss_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    }

    /// Stops the server as an operator would, and waits for it to end well.
    fn stop(mut self) -> Result<(), Failure> {
        if let Some(pid) = Pid::from_raw(self.pid() as i32) {
            // Fails when it has ended already, which its status tells.
            let _ = kill_process(pid, Signal::TERM);
        }
        let mut totals = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            let _ = stdout.read_to_string(&mut totals);
        }
        let status = self
            .child
            .wait()
            .map_err(|error| Failure::Wrong(format!("the server cannot be waited for: {error}")))?;
        if let Some(echo) = self.echo.take() {
            let _ = echo.join();
        }
        match status.success() && totals.contains("totalRequests") {
            true => Ok(()),
            false => {
                Err(Failure::Wrong(format!("the server ended with {status}, without final totals")))
            }
        }
    }
}

fn no_pipe() -> Failure {
    Failure::Environment("cannot start the server: it has no standard error".into())
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // Both fail when it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
