//! The client: sends the challenge's published events and checks what the server counted.
//!
//! It is an independent witness: it shares no HTTP, JSON or counting code with the server. What it
//! shares is the ring that moves bytes.

mod control;
mod latency;
mod ledger;
mod placement;
mod report;
mod response;
mod schedule;
mod thresholds;
mod timeline;
mod transport;
mod verdict;
mod view;
mod watch;
mod worker;
mod workload;

use crate::doctor::{CpuUse, Environment};
use crate::failure::Failure;
use crate::topology;
pub use control::Server;
use crossbeam_utils::CachePadded;
use latency::Slice;
use ledger::Ledger;
use procfs::{CurrentSI, KernelStats};
use report::Outcome;
pub use report::{Output, Report, ServerCost, Setup, write_to};
pub use schedule::RATE_MAX;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};
pub use thresholds::Threshold;
use timeline::Timeline;
use verdict::Evidence;
pub use verdict::Verdict;
use view::View;
use watch::Watched;
use worker::{Findings, Progress, Run, Worker};
use workload::Share;
pub use workload::{EVENTS_MAX, Totals, Values, Workload};

/// How often the progress is shown anew.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// How long a run looks at the machine before it starts.
const ENVIRONMENT_SAMPLE: Duration = Duration::from_millis(100);
/// How long totals may take to become right, to be told from those that never do, and how often
/// they are asked for.
const SETTLE_MAX: Duration = Duration::from_secs(2);
const SETTLE_EVERY: Duration = Duration::from_millis(2);

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server.
    pub server: Server,
    /// The events.
    pub workload: Workload,
    /// Events to send before, which are not measured.
    pub warm_up: u64,
    /// Connections, at least one.
    pub workers: usize,
    /// Client threads, at least one and at most as many as connections; `None` is one a CPU.
    pub threads: Option<usize>,
    /// The CPUs that threads are pinned to, in turn; `None` is those that keep off the server's.
    pub cpus: Option<Vec<usize>>,
    /// The CPUs of the server, where the caller knows.
    pub server_cpus: Option<Vec<usize>>,
    /// Requests in flight on a connection.
    pub pipeline: usize,
    /// Requests a second of an open loop, at most [`RATE_MAX`]; `None` is a closed loop.
    pub rate: Option<u64>,
    /// How long an answer, a connection or a server may take.
    pub timeout: Duration,
    /// Whether to reset the server before.
    pub reset: bool,
    /// The token that the server's reset requires, if the user named one.
    pub admin_token: Option<Arc<[u8]>>,
    /// Whether to poll the totals during the run.
    pub watch: bool,
    /// What the run must not be.
    pub thresholds: Vec<Threshold>,
    /// How to show the progress.
    pub progress: Show,
}

/// How to show the progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Not at all.
    Nothing,
    /// One line, on a terminal.
    Line,
    /// The whole screen.
    Screen,
}

/// A moment of a run that `challenge` looks at its server in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Everybody is connected and warm, nothing of what is measured is sent.
    Start,
    /// Everything is answered.
    End,
}

/// Sends the events, and compares what the server counted with what it acknowledged.
pub fn run(config: &Config, mut at: impl FnMut(Moment)) -> Result<Report, Failure> {
    let environment = Environment::here(ENVIRONMENT_SAMPLE);
    let server = &config.server;
    let (_, keeps_alive) = server.first_totals(config.timeout)?;
    let of_server = config.server_cpus.clone().or_else(|| placement::server_cpus(server.address));
    let cpus = match &config.cpus {
        Some(cpus) => cpus.clone(),
        None => placement::choose(of_server.as_deref()),
    };
    let threads = config.threads.unwrap_or(cpus.len()).clamp(1, config.workers);
    let run = Run {
        workload: config.workload,
        address: server.address,
        head: request_head(&server.host),
        depth: config.pipeline,
        rate: config.rate,
        timeout: config.timeout,
        warm_up: config.warm_up,
        threads,
        one_shot: AtomicBool::new(!keeps_alive),
        is_called_off: AtomicBool::new(false),
        next: [AtomicU64::new(0), AtomicU64::new(0)],
        progress: (0..threads).map(|_| CachePadded::new(Progress::default())).collect(),
        gate: Barrier::new(threads + 1),
    };
    let sent = send_all(config, &run, &cpus, &mut at)?;
    let (acknowledged, mut possible) = shares(&config.workload, &sent.ledger);
    // A warm-up's event that was not answered may be counted at any time.
    let late = config.workload.share_of(&sent.warm_up.unknown);
    possible.events += late.events;
    possible.users = (possible.users + late.users).min(config.workload.users);
    possible.sum_in_halves += late.sum_in_halves;
    let (after, settled_after) = settle(config, &sent, |after| Evidence {
        before: sent.before,
        acknowledged,
        possible,
        after,
    })?;
    let evidence = Evidence { before: sent.before, acknowledged, possible, after };
    let mut warnings: Vec<String> =
        placement::warning(&cpus, of_server.as_deref()).into_iter().collect();
    warnings.extend(sent.failure);
    Ok(Report::new(Outcome {
        elapsed: sent.ended.saturating_duration_since(sent.started),
        client_busy: sent.client_busy,
        client_cpu: sent.client_cpu,
        held_up: sent.held_up,
        machine: sent.machine,
        total: sent.total,
        seconds: sent.seconds,
        evidence,
        settled_after,
        watched: sent.watched,
        warm_up: config.warm_up,
        setup: Setup {
            url: format!("http://{}", server.host),
            workers: config.workers,
            threads,
            cpus: topology::format_cpu_list(&cpus),
            pipeline: config.pipeline,
            rate: config.rate,
            users: config.workload.users,
            values: config.workload.values,
            one_request_a_connection: run.one_shot.load(Ordering::Relaxed),
            was_reset: sent.was_reset,
        },
        requests: config.workload.events,
        ledger: sent.ledger,
        warm_up_ledger: sent.warm_up,
        warnings,
        thresholds: config.thresholds.clone(),
        environment,
    }))
}

/// Asks for the totals until they are right, or no longer worth waiting for. Returns them, with the
/// time that they took since the end if the first were wrong and later ones right. A server that
/// does not answer is asked again for as long.
fn settle(
    config: &Config,
    sent: &Sent,
    evidence: impl Fn(Totals) -> Evidence,
) -> Result<(Totals, Option<Duration>), Failure> {
    let is_right = |figures: Totals| evidence(figures).judge().verdict != Verdict::Wrong;
    let mut last = sent.after.clone();
    if let Ok(first) = last
        && is_right(first)
    {
        return Ok((first, None));
    }
    let patience = Instant::now() + SETTLE_MAX;
    while Instant::now() < patience {
        thread::sleep(SETTLE_EVERY);
        last = config.server.totals(config.timeout);
        if let Ok(later) = last
            && is_right(later)
        {
            // Who did not answer at first has not counted late.
            return Ok((later, sent.after.is_ok().then(|| sent.ended.elapsed())));
        }
    }
    match last {
        Ok(figures) => Ok((figures, None)),
        Err(failure) => Err(Failure::Environment(format!(
            "{failure}; until then {} requests were acknowledged, {} refused, and {} had no answer",
            sent.ledger.acknowledged,
            sent.ledger.answered() - sent.ledger.acknowledged,
            sent.ledger.unknown.len()
        ))),
    }
}

/// What the acknowledged events add up to, without and with those whose outcome is unknown.
fn shares(workload: &Workload, ledger: &Ledger) -> (Share, Share) {
    let certain = || ledger.refused.values().flatten().copied().chain(ledger.unsent());
    let possible = workload.share_without(certain());
    (workload.share_without(certain().chain(ledger.unknown.iter().copied())), possible)
}

fn request_head(host: &str) -> Vec<u8> {
    format!(
        "POST /event HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: "
    )
    .into_bytes()
}

/// What the client threads did, and what was seen meanwhile.
struct Sent {
    ledger: Ledger,
    warm_up: Ledger,
    before: Totals,
    was_reset: bool,
    /// What the server had counted when the last request had ended.
    after: Result<Totals, Failure>,
    total: Slice,
    seconds: Vec<timeline::Second>,
    watched: Option<Watched>,
    /// The busiest thread's share of its time, without polling.
    client_busy: f64,
    client_cpu: Duration,
    held_up: u64,
    machine: Option<CpuUse>,
    started: Instant,
    ended: Instant,
    /// Why a thread's ring failed.
    failure: Option<String>,
}

/// Ends the process where a client thread panics: the others would wait for it for ever.
struct EndOnPanic;

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            // What went wrong was said by the panic.
            std::process::exit(i32::from(Failure::Wrong(String::new()).exit_code()));
        }
    }
}

/// Runs the client threads, and the watch beside them.
fn send_all(
    config: &Config,
    run: &Run,
    cpus: &[usize],
    at: &mut impl FnMut(Moment),
) -> Result<Sent, Failure> {
    let cannot = |error: std::io::Error| {
        Failure::Environment(format!(
            "cannot start a client thread: {error}: the client needs io_uring as of Linux 6.1 (see \
             ringtally doctor), and ulimit -n above the number of workers"
        ))
    };
    raise_descriptor_limit();
    let (sender, slices) = channel();
    let mut workers = Vec::new();
    for thread in 0..run.threads {
        let share =
            config.workers / run.threads + usize::from(thread < config.workers % run.threads);
        workers.push(Worker::new(run, thread, share, sender.clone()).map_err(cannot)?);
    }
    drop(sender);
    thread::scope(|scope| {
        let _guard = EndOnPanic;
        let threads: Vec<_> = workers
            .into_iter()
            .zip(cpus.iter().cycle())
            .map(|(worker, cpu)| {
                scope.spawn(move || {
                    let _guard = EndOnPanic;
                    // Where it is refused the thread runs where the mask lets it.
                    topology::pin_to(*cpu);
                    worker.work()
                })
            })
            .collect();
        // Everybody is connected; the warm-up is sent.
        run.gate.wait();
        run.gate.wait();
        // It is answered; the server is set back, or looked at. Nobody may be left waiting.
        run.gate.wait();
        let prepared = prepare(config);
        let stat = KernelStats::current().ok();
        at(Moment::Start);
        let started = Instant::now();
        let (is_over, before) = (Arc::new(AtomicBool::new(false)), prepared.as_ref().ok().copied());
        run.is_called_off.store(prepared.is_err(), Ordering::Relaxed);
        let watcher = before.filter(|_| config.watch).map(|(before, _)| {
            let is_over = Arc::clone(&is_over);
            scope.spawn(move || {
                let (server, values) = (&config.server, config.workload.values);
                watch::watch(server, config.timeout, before, values, &run.progress, &is_over)
            })
        });
        run.gate.wait();
        let timeline = follow(config, run, &slices, started);
        at(Moment::End);
        // At once: a server that counts late has no time for it.
        let after = config.server.totals(config.timeout);
        is_over.store(true, Ordering::Release);
        let machine = stat.zip(KernelStats::current().ok());
        let machine = machine.map(|(before, after)| CpuUse::between(&before, &after, cpus));
        let panicked =
            |_| Failure::Wrong("a client thread panicked; an error above says why".into());
        let watched = watcher.map(|watcher| watcher.join().map_err(panicked)).transpose()?;
        let (total, seconds) = timeline.finish();
        let (before, was_reset) = prepared?;
        let mut sent = Sent {
            ledger: Ledger::default(),
            warm_up: Ledger::default(),
            before,
            was_reset,
            after,
            total,
            seconds,
            watched,
            client_busy: 0.0,
            client_cpu: Duration::ZERO,
            held_up: 0,
            machine,
            started,
            ended: started,
            failure: None,
        };
        for thread in threads {
            let [warm_up, measured] = thread.join().map_err(panicked)?;
            sent.warm_up.merge(warm_up.ledger);
            sent.add(measured);
        }
        if run.rate.is_none() {
            // What no thread took before it gave up.
            let events = run.workload.events;
            let next = run.next[1].load(Ordering::Relaxed).min(events);
            sent.ledger.left.push((next..events).step_by(1));
        }
        sent.ledger.trouble += sent.warm_up.trouble;
        Ok(sent)
    })
}

impl Sent {
    /// Adds what a thread found.
    fn add(&mut self, findings: Findings) {
        let elapsed = findings.ended.saturating_duration_since(self.started).as_secs_f64();
        if elapsed > 0.0 {
            self.client_busy = self.client_busy.max(findings.busy.as_secs_f64() / elapsed);
        }
        self.client_cpu += findings.cpu;
        self.held_up += findings.held_up;
        self.ended = self.ended.max(findings.ended);
        self.failure = self.failure.take().or(findings.failure);
        self.ledger.merge(findings.ledger);
    }
}

/// Resets the server where that is wanted and it can, and returns what it has counted, and whether
/// it was reset.
fn prepare(config: &Config) -> Result<(Totals, bool), Failure> {
    let was_reset = config.reset && config.server.reset(config.timeout)?;
    Ok((config.server.totals(config.timeout)?, was_reset))
}

/// Takes in what the threads hand over, and shows the progress, until all have ended.
fn follow(config: &Config, run: &Run, slices: &Receiver<Box<Slice>>, started: Instant) -> Timeline {
    let mut timeline = Timeline::new(config.rate.is_some());
    let mut view = View::new(config, run, started);
    loop {
        match slices.recv_timeout(PROGRESS_EVERY) {
            Ok(slice) => timeline.add(&slice),
            Err(RecvTimeoutError::Timeout) => view.show(&timeline),
            Err(RecvTimeoutError::Disconnected) => return timeline,
        }
    }
}

/// A connection takes a descriptor: allows as many as may be had.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    // Where it is refused connections fail, and are counted.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
