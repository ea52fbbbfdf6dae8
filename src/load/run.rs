//! A run from its first request to its report: the client threads, the watch beside them, and the
//! totals around them.

use super::client_load::ClientLoad;
use super::control::{Control, ControlError, Reset};
use super::event_set::UserSet;
use super::interrupt::{self, Running};
use super::latency::Slice;
use super::ledger::Ledger;
use super::report::{Outcome, Report, Setup};
use super::shared::{KeepAlive, Progress, Run, rest_of_closed_loop};
use super::timeline::Second;
use super::verdict::{Evidence, Users, Verdict, plural};
use super::view::{Phase, Stage, View};
use super::watch::{self, Watched};
use super::worker::{Findings, Worker};
use super::workload::{Totals, Workload};
use super::{Config, Moment, placement};
use crate::doctor::{self, CpuUse, Environment};
use crate::failure::Failure;
use crate::topology;
use crossbeam_utils::CachePadded;
use procfs::{CurrentSI, KernelStats};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

/// How long a run looks at the machine before it starts.
const ENVIRONMENT_SAMPLE: Duration = Duration::from_millis(100);
/// How long totals may take to become right, to be told from those that never do, and how often
/// they are asked for.
const SETTLE_MAX: Duration = Duration::from_secs(2);
const SETTLE_EVERY: Duration = Duration::from_millis(2);
/// From this length of a run on, the ticks in which the kernel counts the time of CPUs tell something.
const MACHINE_MIN: Duration = Duration::from_secs(1);

/// Sends the events, and compares what the server counted with what it acknowledged.
///
/// # Errors
///
/// If there is no server, or if nothing could be measured.
pub fn run(config: &Config, mut at: impl FnMut(Moment)) -> Result<Report, Failure> {
    let listening = interrupt::listen();
    let view = View::open(config);
    let environment = Environment::here(ENVIRONMENT_SAMPLE);
    let server = &config.server;
    let events = config.workload.events;
    // More than one per event would never be used.
    let connections =
        usize::try_from(events).map_or(config.connections, |events| config.connections.min(events));
    let mut control = Control::new(server, config.timeout, connections > 1)
        .with_token(config.reset_token.clone());
    let (first, keeps_alive) = control.first_totals().map_err(|e| e.into_failure(server))?;
    let engine = control.engine();
    let of_server = config.server_cpus.clone().or_else(|| placement::server_cpus(server.address));
    let cpus = match &config.cpus {
        Some(cpus) => cpus.clone(),
        None => placement::choose(of_server.as_deref()),
    };
    let threads = config.threads.unwrap_or(cpus.len()).clamp(1, connections);
    let run = Run {
        workload: config.workload,
        address: server.address,
        head: request_head(&server.host),
        depth: config.pipeline,
        rate: config.rate,
        timeout: config.timeout,
        warm_up: config.warm_up,
        threads,
        keep_alive: KeepAlive::new(keeps_alive),
        is_called_off: AtomicBool::new(false),
        next: [AtomicU64::new(0), AtomicU64::new(0)],
        late: AtomicU64::new(0),
        progress: (0..threads).map(|_| CachePadded::new(Progress::default())).collect(),
        gate: Barrier::new(threads + 1),
    };
    let mut warnings: Vec<String> =
        placement::warning(&cpus, of_server.as_deref()).into_iter().collect();
    if connections < config.connections {
        warnings.push(format!(
            "{} of {} connections are used: there are no more events than that",
            connections, config.connections
        ));
    }
    if let Err(error) = listening {
        warnings.push(format!("an interrupt will end the run without a report: {error}"));
    }
    let running = Running::begin();
    let sent = send_all(config, &run, connections, &cpus, &mut control, view, &mut at)?;
    let mut evidence = evidence(&config.workload, config.warm_up, first, &sent);
    let settled_after = settle(config, &mut control, &sent, &mut evidence);
    let is_interrupted = interrupt::is_asked();
    drop(running);
    let elapsed = sent.ended.saturating_duration_since(sent.started);
    let client_load = sent.client_load(elapsed, &cpus);
    let rate_held = config.rate.and_then(|_| sent.rate_held());
    warnings.extend(sent.warnings(&run, connections));
    Ok(Report::new(Outcome {
        elapsed,
        client_busy: client_load.busy,
        client_waiting: client_load.waiting,
        client_limits: client_load.limits(),
        client_cpu: sent.client_cpu.saturating_sub(sent.client_polling),
        client_poll: sent.client_polling,
        rate_held,
        is_interrupted,
        suspended: sent.suspended,
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
            engine,
            workers: connections,
            threads,
            cpus: topology::format_cpu_list(&cpus),
            pipeline: config.pipeline,
            rate: config.rate,
            users: config.workload.users,
            values: config.workload.values,
            one_request_per_connection: run.keep_alive.is_one_shot(),
            was_reset: sent.reset == Some(Reset::Done),
        },
        requests: events,
        ledger: sent.ledger,
        warm_up_ledger: sent.warm_up,
        warnings,
        thresholds: config.thresholds.clone(),
        environment,
    }))
}

/// What is known of a run, with the totals that the server reported first. `first` are those before
/// the warm-up.
fn evidence(workload: &Workload, warm_up: u64, first: Totals, sent: &Sent) -> Evidence {
    let Ledger { refused, unknown, unsent, .. } = &sent.ledger;
    let (without, possible) = ([refused, unsent, unknown], [refused, unsent]);
    let ours = [workload.users_without(&without), workload.users_without(&possible)];
    // The same for the warm-up.
    let earlier = Workload { events: warm_up, ..*workload };
    let Ledger { acknowledged, refused, unknown, unsent, .. } = &sent.warm_up;
    let late = unknown.share();
    let known = if sent.reset == Some(Reset::Done) {
        // An event of the warm-up that got no response may be counted at any time.
        let is_ours = sent.before.total_requests <= late.events;
        is_ours.then(|| [UserSet::default(), unknown.users()])
    } else {
        let counted = *acknowledged..=*acknowledged + late.events;
        let is_ours = first.total_requests == 0 && counted.contains(&sent.before.total_requests);
        is_ours.then(|| {
            [
                earlier.users_without(&[refused, unsent, unknown]),
                earlier.users_without(&[refused, unsent]),
            ]
        })
    };
    let known = known.as_ref().map(<[UserSet; 2]>::each_ref);
    let mut possible = workload.share_without(&possible);
    possible.events += late.events;
    possible.sum_in_halves += late.sum_in_halves;
    Evidence {
        before: sent.before,
        acknowledged: workload.share_without(&without),
        possible,
        users: Users::of(ours.each_ref(), sent.before.unique_users, known),
        after: sent.after.clone(),
    }
}

/// Asks for the totals until they are right, or no longer worth waiting for. Returns the time that
/// they took since the end if the first were wrong and later ones right. A server that does not
/// respond is asked for as long as it may take to respond, unless the threads have waited for it
/// before.
fn settle(
    config: &Config,
    control: &mut Control<'_>,
    sent: &Sent,
    evidence: &mut Evidence,
) -> Option<Duration> {
    let is_right =
        |evidence: &Evidence| evidence.after.is_ok() && evidence.judge().verdict != Verdict::Wrong;
    let is_readable = evidence.after.is_ok();
    let patience = match (is_readable, sent.gave_up) {
        (true, _) => SETTLE_MAX,
        (false, false) => config.timeout,
        (false, true) => return None,
    };
    while !is_right(evidence) && !interrupt::is_asked() {
        // If this process is suspended, it asks once more afterwards.
        let is_last = sent.ended.elapsed() > patience;
        thread::sleep(SETTLE_EVERY);
        evidence.after = totals(config, control);
        if is_right(evidence) {
            // A server that did not respond at first has not counted late.
            return is_readable.then(|| sent.ended.elapsed());
        }
        if is_last {
            break;
        }
    }
    None
}

/// The totals, or why there are none.
fn totals(config: &Config, control: &mut Control<'_>) -> Result<Totals, String> {
    control.totals().map_err(|error| error.sentence(&config.server))
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
    /// `None` if no reset was wanted.
    reset: Option<Reset>,
    /// What the server had counted when the last request had ended, or why it is not known.
    after: Result<Totals, String>,
    total: Slice,
    seconds: Vec<Second>,
    watched: Option<Watched>,
    /// CPU time of the busiest thread without polling, and the longest wait for a CPU.
    busiest: Duration,
    waiting: Duration,
    client_cpu: Duration,
    client_polling: Duration,
    last_sent: Duration,
    suspended: Duration,
    gave_up: bool,
    held_up: u64,
    machine: Option<CpuUse>,
    started: Instant,
    ended: Instant,
    /// Why the first connection that failed to open did so, if that is known, and why a thread's ring
    /// failed.
    connect_error: Option<std::io::Error>,
    failure: Option<String>,
}

/// Ends the process if a client thread panics: the others would wait for it forever.
struct EndOnPanic;

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            // What went wrong was said by the panic, which has given back the terminal.
            std::process::exit(i32::from(Failure::Wrong(String::new()).exit_code()));
        }
    }
}

/// Runs the client threads, and the watch beside them.
fn send_all(
    config: &Config,
    run: &Run,
    connections: usize,
    cpus: &[usize],
    control: &mut Control<'_>,
    view: View,
    at: &mut impl FnMut(Moment),
) -> Result<Sent, Failure> {
    let cannot = |error: std::io::Error| Failure::Environment(doctor::explain_ring_error(&error));
    raise_limits();
    let (sender, slices) = channel();
    let mut workers = Vec::new();
    for thread in 0..run.threads {
        let share = connections / run.threads + usize::from(thread < connections % run.threads);
        workers.push(Worker::new(run, thread, share, sender.clone()).map_err(cannot)?);
    }
    drop(sender);
    let stage = Stage::new();
    thread::scope(|scope| {
        let _guard = EndOnPanic;
        let threads: Vec<_> = workers
            .into_iter()
            .zip(cpus.iter().cycle())
            .map(|(worker, cpu)| {
                scope.spawn(move || {
                    let _guard = EndOnPanic;
                    // If that is refused, the thread runs wherever the mask lets it.
                    topology::pin_to(*cpu);
                    worker.work()
                })
            })
            .collect();
        let stage = &stage;
        let follower = scope.spawn(move || {
            let _guard = EndOnPanic;
            view.follow(run, stage, &slices)
        });
        // All are connected; the warm-up is sent.
        run.gate.wait();
        if run.warm_up > 0 {
            stage.begin(Phase::WarmingUp);
        }
        run.gate.wait();
        // It is over; the server is reset, or looked at. No thread may be left waiting.
        run.gate.wait();
        let prepared = prepare(config, control);
        let stat = KernelStats::current().ok();
        at(Moment::Start);
        let started = Instant::now();
        let (is_over, before) = (Arc::new(AtomicBool::new(false)), prepared.as_ref().ok().copied());
        run.is_called_off.store(prepared.is_err(), Ordering::Relaxed);
        let watcher = before.filter(|_| config.watch).map(|(before, _)| {
            let is_over = Arc::clone(&is_over);
            let late = run.late.load(Ordering::Relaxed);
            scope.spawn(move || {
                let (server, values) = (&config.server, config.workload.values);
                let before = (before, late);
                watch::watch(server, config.timeout, before, values, &run.progress, &is_over)
            })
        });
        run.gate.wait();
        stage.begin(Phase::Measuring);
        let panicked =
            |_| Failure::Wrong("a client thread panicked; an error above says why".into());
        let timeline = follower.join().map_err(panicked)?;
        at(Moment::End);
        // At once: a server that counts late has no time for it.
        let after = totals(config, control);
        is_over.store(true, Ordering::Release);
        let machine = stat.zip(KernelStats::current().ok());
        let machine = machine.map(|(before, after)| CpuUse::between(&before, &after, cpus));
        let watched = watcher.map(|watcher| watcher.join().map_err(panicked)).transpose()?;
        let (total, seconds) = timeline.finish();
        let (before, reset) = prepared.map_err(|error| error.into_failure(&config.server))?;
        let mut sent = Sent {
            ledger: Ledger::default(),
            warm_up: Ledger::default(),
            before,
            reset,
            after,
            total,
            seconds,
            watched,
            busiest: Duration::ZERO,
            waiting: Duration::ZERO,
            client_cpu: Duration::ZERO,
            client_polling: Duration::ZERO,
            last_sent: Duration::ZERO,
            suspended: Duration::ZERO,
            gave_up: false,
            held_up: 0,
            machine,
            started,
            ended: started,
            connect_error: None,
            failure: None,
        };
        for thread in threads {
            let [warm_up, measured] = thread.join().map_err(panicked)?;
            sent.connect_error = sent.connect_error.take().or(warm_up.connect_error);
            sent.warm_up.merge(warm_up.ledger);
            sent.add(measured);
        }
        sent.warm_up.leave(rest_of_closed_loop(&run.next[0], run.warm_up));
        if run.rate.is_none() {
            sent.ledger.leave(rest_of_closed_loop(&run.next[1], run.workload.events));
        }
        sent.ledger.trouble += sent.warm_up.trouble;
        Ok(sent)
    })
}

impl Sent {
    /// Adds what a thread found.
    fn add(&mut self, findings: Findings) {
        self.busiest = self.busiest.max(findings.time.cpu.saturating_sub(findings.polling));
        self.waiting = self.waiting.max(findings.time.waiting);
        self.client_cpu += findings.time.cpu;
        self.client_polling += findings.polling;
        self.last_sent = self.last_sent.max(Duration::from_nanos(findings.last_sent_ns));
        self.suspended = self.suspended.max(findings.suspended);
        self.gave_up |= findings.gave_up;
        self.held_up += findings.held_up;
        self.ended = self.ended.max(findings.ended);
        self.connect_error = self.connect_error.take().or(findings.connect_error);
        self.failure = self.failure.take().or(findings.failure);
        self.ledger.merge(findings.ledger);
    }

    /// What the client had to do, as shares of its time.
    fn client_load(&self, elapsed: Duration, cpus: &[usize]) -> ClientLoad {
        let share = |time: Duration| match elapsed {
            Duration::ZERO => 0.0,
            elapsed => time.as_secs_f64() / elapsed.as_secs_f64(),
        };
        let polling = share(self.client_polling) / cpus.len().max(1) as f64;
        ClientLoad {
            elapsed,
            busy: share(self.busiest),
            waiting: share(self.waiting),
            cpus_busy: self
                .machine
                .filter(|_| elapsed >= MACHINE_MIN)
                .map(|use_| use_.busy - polling),
            lag_p99_us: self
                .total
                .lag
                .as_ref()
                .and_then(|lag| lag.quantile(0.99))
                .map(|lag| lag.micros),
        }
    }

    /// Requests per second that an open loop sent; `None` for a single request, which has no rate.
    fn rate_held(&self) -> Option<f64> {
        let sent = self.ledger.answered() + self.ledger.unknown.len(0);
        // The first request is due at once: there are n - 1 steps between n requests.
        (sent > 1 && !self.last_sent.is_zero())
            .then(|| (sent - 1) as f64 / self.last_sent.as_secs_f64())
    }

    /// What a reader of the report must know.
    fn warnings(&self, run: &Run, connections: usize) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(Reset::Refused(status)) = self.reset {
            warnings.push(format!(
                "the server refused POST /reset with status {status}: the run is measured from the \
                 totals that it had; pass its token with --token-file, or --no-reset"
            ));
        }
        if run.keep_alive.was_one_shot() && !run.keep_alive.is_one_shot() {
            warnings.push(
                "for a part of the run each connection took one request only, because the server \
                 closed some after a response"
                    .into(),
            );
        }
        let turned_away = self.ledger.trouble.turned_away;
        if turned_away > 0 {
            warnings.push(format!(
                "the server had no room for {}, and turned {} away with status 503: raise its limit, \
                 or use fewer than {connections}",
                plural(turned_away, "connection", "connections"),
                if turned_away == 1 { "it" } else { "them" },
            ));
        }
        if !self.suspended.is_zero() {
            warnings.push(format!(
                "the client did not run for {:.1} s of the run: it was suspended, or other work took \
                 its CPU",
                self.suspended.as_secs_f64()
            ));
        }
        let failures = self.ledger.trouble.connect_failures;
        if let Some(error) = self.connect_error.as_ref().filter(|_| failures > 0) {
            let failures = plural(failures, "connection", "connections");
            warnings.push(format!("{failures} failed to open, one of them because of: {error}"));
        }
        warnings.extend(self.failure.clone());
        warnings
    }
}

/// Resets the server if that is wanted, and returns what it has counted, and what came of the reset.
fn prepare(
    config: &Config,
    control: &mut Control<'_>,
) -> Result<(Totals, Option<Reset>), ControlError> {
    let reset = if config.reset { Some(control.reset()?) } else { None };
    Ok((control.totals()?, reset))
}

/// Allows as many descriptors, of which each connection takes one, and as much locked memory for
/// the rings, as the hard limits permit.
fn raise_limits() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    for resource in [Resource::Nofile, Resource::Memlock] {
        let maximum = getrlimit(resource).maximum;
        // If this is refused, connections or client threads fail, and are reported.
        let _ = setrlimit(resource, Rlimit { current: maximum, maximum });
    }
}
