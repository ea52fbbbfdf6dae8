//! The client: sends the challenge's published events and checks what the server counted.
//!
//! It is an independent witness: it shares no HTTP, JSON or counting code with the server.

mod control;
mod report;
mod response;
mod verdict;
mod worker;
mod workload;

use crate::failure::Failure;
use crate::topology;
pub use control::Server;
use report::Outcome;
pub use report::{Report, ServerCost, Setup, write_to};
use std::collections::HashSet;
use std::io::{IsTerminal, Write};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use verdict::Evidence;
pub use verdict::Verdict;
use worker::{Findings, Run, Worker};
use workload::Share;
pub use workload::{EVENTS_MAX, Figures, Values, Workload};

/// How often the progress line is renewed.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server.
    pub server: Server,
    /// The events.
    pub workload: Workload,
    /// Connections, at least one.
    pub workers: usize,
    /// Client threads, at least one and at most as many as connections.
    pub threads: usize,
    /// The CPUs that threads are pinned to, in turn.
    pub cpus: Vec<usize>,
    /// Requests in flight on a connection.
    pub pipeline: usize,
    /// How long an answer, a connection or a server may take.
    pub timeout: Duration,
    /// Whether to reset the server before.
    pub reset: bool,
    /// Whether to keep the progress line back.
    pub quiet: bool,
}

/// A moment of a run that `challenge` looks at its server in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Everybody is connected, nothing is sent.
    Start,
    /// Everything is answered.
    End,
}

/// Sends the events, and compares what the server counted with what it acknowledged.
pub fn run(config: &Config, mut at: impl FnMut(Moment)) -> Result<Report, Failure> {
    let server = &config.server;
    let (found, keeps_alive) = server.first_figures(config.timeout)?;
    let was_reset = config.reset && server.reset(config.timeout)?;
    let before = if was_reset { server.figures(config.timeout)? } else { found };
    let run = Run {
        workload: config.workload,
        address: server.address,
        head: request_head(&server.host),
        depth: config.pipeline,
        timeout: config.timeout,
        one_shot: AtomicBool::new(!keeps_alive),
        next: AtomicU64::new(0),
        done: AtomicU64::new(0),
        start: Barrier::new(config.threads + 1),
    };
    let sent = send_all(config, &run, &mut at)?;
    let after = server.figures(config.timeout)?;
    let (acknowledged, possible) = shares(&config.workload, &sent.findings);
    Ok(Report::new(Outcome {
        elapsed: sent.findings.ended.saturating_duration_since(sent.started),
        client_busy: sent.client_busy,
        evidence: Evidence { before, acknowledged, possible, after },
        setup: Setup {
            url: format!("http://{}", server.host),
            workers: config.workers,
            threads: config.threads,
            pipeline: config.pipeline,
            users: config.workload.users,
            values: config.workload.values,
            one_request_a_connection: run.one_shot.load(Ordering::Relaxed),
            was_reset,
        },
        requests: config.workload.events,
        findings: sent.findings,
    }))
}

/// What the acknowledged events add up to, without and with those whose outcome is unknown.
fn shares(workload: &Workload, findings: &Findings) -> (Share, Share) {
    let mut left_out: HashSet<u64> = findings.refused.values().flatten().copied().collect();
    left_out.extend(&findings.unsent);
    let possible = workload.share_without(&left_out);
    left_out.extend(&findings.unknown);
    (workload.share_without(&left_out), possible)
}

fn request_head(host: &str) -> Vec<u8> {
    format!(
        "POST /event HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: "
    )
    .into_bytes()
}

/// What the client threads did.
struct Sent {
    findings: Findings,
    /// The busiest thread's share of its time.
    client_busy: f64,
    started: Instant,
}

/// Runs the client threads.
fn send_all(config: &Config, run: &Run, at: &mut impl FnMut(Moment)) -> Result<Sent, Failure> {
    let cannot = |error: std::io::Error| {
        Failure::Environment(format!(
            "cannot start a client thread: {error}: raise ulimit -n or lower --threads"
        ))
    };
    let mut workers = Vec::new();
    for index in 0..config.threads {
        let share =
            config.workers / config.threads + usize::from(index < config.workers % config.threads);
        workers.push(Worker::new(run, share).map_err(cannot)?);
    }
    thread::scope(|scope| {
        let threads: Vec<_> = workers
            .into_iter()
            .zip(config.cpus.iter().cycle())
            .map(|(worker, cpu)| {
                scope.spawn(move || {
                    // Where it is refused the thread runs where the mask lets it.
                    topology::pin_to(*cpu);
                    worker.work()
                })
            })
            .collect();
        run.start.wait();
        at(Moment::Start);
        let started = Instant::now();
        let show = !config.quiet && std::io::stderr().is_terminal();
        while !threads.iter().all(|thread| thread.is_finished()) {
            if show {
                show_progress(run, started);
            }
            wait_for(&threads);
        }
        if show {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
        at(Moment::End);
        let (mut all, mut busy) = (Findings::new(), 0f64);
        all.ended = started;
        for thread in threads {
            let findings = thread.join().map_err(|_| {
                Failure::Wrong("a client thread panicked; an error above says why".into())
            })?;
            let elapsed = findings.ended.saturating_duration_since(started).as_secs_f64();
            if elapsed > 0.0 {
                busy = busy.max(findings.cpu.as_secs_f64() / elapsed);
            }
            all.merge(findings);
        }
        Ok(Sent { findings: all, client_busy: busy, started })
    })
}

/// Waits for the threads, at most until the next progress line.
fn wait_for<T>(threads: &[thread::ScopedJoinHandle<'_, T>]) {
    let until = Instant::now() + PROGRESS_EVERY;
    while Instant::now() < until && !threads.iter().all(|thread| thread.is_finished()) {
        thread::sleep(Duration::from_millis(5));
    }
}

fn show_progress(run: &Run, started: Instant) {
    let done = run.done.load(Ordering::Relaxed);
    let rate = done as f64 / started.elapsed().as_secs_f64().max(1e-3);
    let percent = done * 100 / run.workload.events.max(1);
    // Progress that cannot be shown is not worth an error.
    let _ = write!(
        std::io::stderr(),
        "\r\x1b[K{percent:3} %  {} of {} requests, {} requests/s",
        report::grouped(done),
        report::grouped(run.workload.events),
        report::grouped(rate as u64),
    );
}
