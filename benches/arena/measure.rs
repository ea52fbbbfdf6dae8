//! One run of one entry, and what is examined apart from the timed runs.

use super::closing::{self, Failure};
use super::entry::{Entry, build_folder};
use super::pause;
use super::process::{Server, free_port, send, spawn_on};
use rustix::process::Signal;
use serde::Serialize;
use serde_json::Value;
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

/// Events of the first, rough measurement of how fast an entry is.
const PROBE_EVENTS: u64 = 2000;
/// How long the totals are polled under load.
const WATCHED: Duration = Duration::from_secs(2);
/// Events whose system calls are counted: a traced server is slow.
const TRACED_EVENTS: u64 = 3000;
/// How long an entry is warmed up; the second is for one that compiles while it runs.
const WARM_UP: Duration = Duration::from_millis(700);
const WARM_UP_COMPILED: Duration = Duration::from_secs(4);
/// How much longer than planned a run of the client may take before the entry is given up.
const LOAD_MAX: Duration = Duration::from_secs(60);
/// How long strace may take to attach to all threads.
const ATTACH_MAX: Duration = Duration::from_secs(5);
/// The share of a rate that must be held for a row to be valid.
const RATE_HELD_MIN: f64 = 0.98;

/// What an entry is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Workload {
    pub(crate) connections: u64,
    pub(crate) pipeline: u64,
    /// Requests per second of an open loop.
    pub(crate) rate: Option<u64>,
    /// Each request has a connection of its own, of which there are at most `connections` at a time.
    pub(crate) closes: bool,
}

impl Workload {
    /// One request in flight per connection, without a limit.
    pub(crate) fn closed_loop(connections: u64) -> Workload {
        Workload { connections, pipeline: 1, rate: None, closes: false }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Workload { connections, pipeline, rate, closes } = self;
        let plural = if *connections == 1 { "" } else { "s" };
        if *closes {
            return write!(f, "{connections} client{plural}, a connection for each request");
        }
        write!(f, "{connections} connection{plural}")?;
        match (rate, pipeline) {
            (Some(rate), _) => write!(f, " at {rate} requests/s"),
            (None, 1) => Ok(()),
            (None, depth) => write!(f, ", {depth} requests in flight per connection"),
        }
    }
}

/// What one run measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) entry: String,
    pub(crate) round: u32,
    pub(crate) workload: Workload,
    pub(crate) requests: u64,
    pub(crate) requests_per_s: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p99_9_us: f64,
    pub(crate) user_us: f64,
    pub(crate) system_us: f64,
    pub(crate) peak_rss_bytes: u64,
    pub(crate) start_up_ms: f64,
    pub(crate) verdict: String,
    pub(crate) reasons: Vec<String>,
    pub(crate) client_limited: bool,
    /// The share of the rate that was held, in an open loop.
    pub(crate) rate_held: Option<f64>,
    /// It was asked to close its connections, and does not.
    pub(crate) stays_open: bool,
}

impl Run {
    pub(crate) fn cpu_us(&self) -> f64 {
        self.user_us + self.system_us
    }

    /// Why its figures say nothing, if so.
    pub(crate) fn void(&self) -> Option<String> {
        if self.stays_open {
            return Some("ignores Connection: close".into());
        }
        let held = self.rate_held.filter(|held| *held < RATE_HELD_MIN)?;
        Some(format!("held {:.0} % of the rate", held * 100.0))
    }
}

/// What was examined apart from the timed runs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Exactness {
    pub(crate) verdict: String,
    pub(crate) reasons: Vec<String>,
    /// Responses to `/stats` under load, and how many of them were impossible.
    pub(crate) responses: u64,
    pub(crate) torn: u64,
    pub(crate) went_down: u64,
    pub(crate) behind: u64,
    pub(crate) ahead: u64,
    /// The 99th percentile of the first responses after a pause.
    pub(crate) after_pause_p99_us: f64,
    pub(crate) syscalls_per_request: Result<f64, String>,
}

/// Where entries run, and for how long they are measured.
pub(crate) struct Bench {
    pub(crate) server_cpus: Vec<usize>,
    pub(crate) client_cpus: Vec<usize>,
    pub(crate) length: Duration,
    pub(crate) builds: PathBuf,
}

impl Bench {
    fn start(&self, entry: &Entry) -> Result<Server, String> {
        let port = free_port()?;
        let command = entry.serve(&self.builds, port, &self.server_cpus);
        let folder = build_folder(&self.builds, &entry.name);
        std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        Server::start(command, port, &self.server_cpus, &folder.join("serve.log"))
    }

    /// Runs the client and returns its report. It is an error if the server ends meanwhile.
    fn load(
        &self,
        server: &mut Server,
        requests: u64,
        workload: Workload,
        flags: &[&str],
    ) -> Result<Value, String> {
        let cpus = ringtally::topology::format_cpu_list(&self.client_cpus);
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringtally"));
        command
            .args(["load", &requests.to_string(), &workload.connections.to_string()])
            .args(["--url", &format!("http://{}", server.address), "--cpus", &cpus])
            .args(["--pipeline", &workload.pipeline.to_string(), "--quiet", "--json", "-"])
            .args(flags);
        if let Some(rate) = workload.rate {
            command.args(["--rate", &rate.to_string()]);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let client = spawn_on(&self.client_cpus, &mut command)?;
        let pid = client.id() as i32;
        let (ended, end) = channel();
        thread::spawn(move || ended.send(client.wait_with_output()));
        let output = end.recv_timeout(self.length * 4 + LOAD_MAX).map_err(|_| {
            send(Signal::KILL, pid);
            "the client did not finish in time"
        })?;
        let output = output.map_err(|error| error.to_string())?;
        if let Some(status) = server.end() {
            return Err(format!("it ended with {status} under load"));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|_| String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    /// Loads an entry until it is warm. Returns its requests per second.
    fn warm_up(
        &self,
        entry: &Entry,
        server: &mut Server,
        workload: Workload,
    ) -> Result<f64, String> {
        let closed = Workload { rate: None, ..workload };
        let rate = |report: &Value| report["requests_per_s"].as_f64().unwrap_or(1.0).max(1.0);
        let mut per_s = rate(&self.load(server, PROBE_EVENTS, closed, &[])?);
        let compiles = entry.name.starts_with("java") || entry.name == "node";
        let length = if compiles { WARM_UP_COMPILED } else { WARM_UP };
        // In two parts, because the entry is faster at the end of the first than it was in the probe.
        for part in [0.4, 0.6] {
            let events = (per_s * length.as_secs_f64() * part) as u64;
            per_s = rate(&self.load(server, events.max(PROBE_EVENTS), closed, &[])?);
        }
        Ok(per_s)
    }

    /// Starts an entry, warms it up, measures it, and stops it.
    pub(crate) fn measure(
        &self,
        entry: &Entry,
        workload: Workload,
        round: u32,
    ) -> Result<Run, String> {
        let mut server = self.start(entry)?;
        if workload.closes {
            return self.measure_closing(entry, &server, workload, round);
        }
        let per_s = self.warm_up(entry, &mut server, workload)?;
        let per_s = workload.rate.map_or(per_s, |rate| rate as f64);
        let requests = ((per_s * self.length.as_secs_f64()) as u64).max(PROBE_EVENTS);
        let before = server.cpu();
        let report = self.load(&mut server, requests, workload, &[])?;
        let after = server.cpu();
        let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64);
        let figure = |pointer: &str| {
            number(pointer).ok_or_else(|| format!("the client's report lacks {pointer}"))
        };
        let responses = figure("/acknowledged")? + figure("/refused")?;
        if responses == 0.0 {
            return Err("it responded to no request".into());
        }
        let held = number("/open_loop/achieved_rate").zip(workload.rate);
        Ok(Run {
            entry: entry.name.clone(),
            round,
            workload,
            requests,
            requests_per_s: figure("/requests_per_s")?,
            p50_us: figure("/latency_us/p50")?,
            p99_us: figure("/latency_us/p99")?,
            p99_9_us: figure("/latency_us/p99_9")?,
            user_us: (after.user_us - before.user_us) / responses,
            system_us: (after.system_us - before.system_us) / responses,
            peak_rss_bytes: server.peak_rss_bytes(),
            start_up_ms: server.start_up.as_secs_f64() * 1e3,
            verdict: text(&report["verdict"]),
            reasons: texts(&report["reasons"]),
            client_limited: report["client_limited"] == true,
            rate_held: held.map(|(held, rate)| held / rate as f64),
            stays_open: false,
        })
    }

    /// The same with a connection for each request.
    fn measure_closing(
        &self,
        entry: &Entry,
        server: &Server,
        workload: Workload,
        round: u32,
    ) -> Result<Run, String> {
        let void = Run {
            entry: entry.name.clone(),
            round,
            workload,
            requests: 0,
            requests_per_s: 0.0,
            p50_us: 0.0,
            p99_us: 0.0,
            p99_9_us: 0.0,
            user_us: 0.0,
            system_us: 0.0,
            peak_rss_bytes: 0,
            start_up_ms: server.start_up.as_secs_f64() * 1e3,
            verdict: String::new(),
            reasons: Vec::new(),
            client_limited: false,
            rate_held: None,
            stays_open: true,
        };
        let load = |requests| {
            closing::load(server.address, &self.client_cpus, workload.connections, requests)
        };
        let measured = || {
            let mut requests = PROBE_EVENTS;
            for _ in 0..2 {
                let per_s = load(requests)?.requests_per_s;
                requests = ((per_s * self.length.as_secs_f64()) as u64).max(PROBE_EVENTS);
            }
            let before = server.cpu();
            let measured = load(requests)?;
            Ok((requests, measured, before, server.cpu()))
        };
        let (requests, measured, before, after) = match measured() {
            Ok(measured) => measured,
            Err(Failure::StaysOpen) => return Ok(void),
            Err(Failure::Other(reason)) => return Err(reason),
        };
        let quantile = |q| measured.latencies.value_at_quantile(q) as f64;
        Ok(Run {
            requests,
            requests_per_s: measured.requests_per_s,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            p99_9_us: quantile(0.999),
            user_us: (after.user_us - before.user_us) / requests as f64,
            system_us: (after.system_us - before.system_us) / requests as f64,
            peak_rss_bytes: server.peak_rss_bytes(),
            verdict: if measured.wrong.is_none() { "exact" } else { "wrong" }.into(),
            reasons: measured.wrong.into_iter().collect(),
            stays_open: false,
            ..void
        })
    }

    /// Polls an entry's totals under load, times its first responses after pauses, and counts its system
    /// calls.
    pub(crate) fn examine(&self, entry: &Entry) -> Result<Exactness, String> {
        let workload = Workload::closed_loop(64);
        let mut server = self.start(entry)?;
        let per_s = self.warm_up(entry, &mut server, workload)?;
        let requests = ((per_s * WATCHED.as_secs_f64()) as u64).max(PROBE_EVENTS);
        let report = self.load(&mut server, requests, workload, &["--watch", "--values", "one"])?;
        let watched = |name: &str| {
            let count = report["watch"][name].as_u64();
            count.ok_or_else(|| format!("the client's report lacks /watch/{name}"))
        };
        let after_pause = pause::first_response_p99_us(server.address, self.client_cpus[0]);
        Ok(Exactness {
            verdict: text(&report["verdict"]),
            reasons: texts(&report["reasons"]),
            responses: watched("answers")?,
            torn: watched("torn")?,
            went_down: watched("went_down")?,
            behind: watched("below_acknowledged")?,
            ahead: watched("above_sent")?,
            after_pause_p99_us: after_pause
                .map_err(|error| format!("after a pause it did not respond: {error}"))?,
            syscalls_per_request: self.count_syscalls(&mut server, workload),
        })
    }

    fn count_syscalls(&self, server: &mut Server, workload: Workload) -> Result<f64, String> {
        let summary = self.builds.join(format!("strace-{}", std::process::id()));
        let mut strace = Command::new("strace");
        strace.args(["-f", "-c", "-o"]).arg(&summary);
        for process in server.processes() {
            strace.args(["-p", &process.pid.to_string()]);
        }
        std::fs::create_dir_all(&self.builds).map_err(|error| error.to_string())?;
        let mut child = strace
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|_| "strace is not installed".to_owned())?;
        let patience = Instant::now() + ATTACH_MAX;
        while matches!(child.try_wait(), Ok(None))
            && !server.is_traced()
            && Instant::now() < patience
        {
            thread::sleep(Duration::from_millis(20));
        }
        // strace ends if it may not attach. The kernel's own threads of a ring cannot be traced at all.
        let report = match child.try_wait() {
            Ok(None) => {
                let report = self.load(server, TRACED_EVENTS, workload, &["--no-reset"]);
                send(Signal::INT, child.id() as i32);
                report
            }
            _ => Err("strace is not allowed to trace here".into()),
        };
        let _ = child.wait();
        let table = std::fs::read_to_string(&summary).unwrap_or_default();
        let _ = std::fs::remove_file(&summary);
        let acknowledged = report?["acknowledged"].as_f64().unwrap_or(0.0);
        match calls(&table) {
            calls if calls > 0.0 && acknowledged > 0.0 => Ok(calls / acknowledged),
            _ => Err("strace counted nothing".into()),
        }
    }

    /// This machine, as the doctor describes it.
    pub(crate) fn environment(&self) -> Value {
        let output =
            Command::new(env!("CARGO_BIN_EXE_ringtally")).args(["doctor", "--json"]).output();
        output
            .ok()
            .and_then(|output| serde_json::from_slice(&output.stdout).ok())
            .unwrap_or(Value::Null)
    }
}

/// The sum of all calls in strace's table: the fourth column of its rows. The row of the total has other
/// columns in older versions.
fn calls(table: &str) -> f64 {
    let rows = table.lines().filter(|line| !line.ends_with(" total"));
    rows.filter_map(|row| row.split_ascii_whitespace().nth(3)?.parse::<f64>().ok()).sum()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}
