//! A run from its first request to its report: the client threads, the watch next to them, and the totals before and
//! after.

use super::abort::Abort;
use super::account::{Account, Novelty};
use super::client_load::ClientLoad;
use super::control::{Control, ControlError, Reset};
use super::flow::Flow;
use super::interrupt::{self, Running};
use super::origin::{Origin, Time};
use super::part::Part;
use super::parts::{Before, Parameters, PartReport, Participation};
use super::placement::{self, Rivals, Whereabouts};
use super::report::{Outcome, Report, Setup};
use super::run_record::ClientRun;
use super::shared::{Crowd, KeepAlive, Progress, Run, rest_of_closed_loop};
use super::thresholds::Threshold;
use super::verdict::{Evidence, plural};
use super::view::{Phase, Stage, View};
use super::watch;
use super::worker::{Findings, Worker};
use super::workload::{Form, Totals, UserPrefix};
use super::{Config, Moment, Users, quiet};
use crate::doctor::{self, CpuUse, Environment};
use crate::failure::Failure;
use crate::topology;
use crossbeam_utils::CachePadded;
use procfs::{CurrentSI, KernelStats};
use rustix::io::Errno;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// The time that a run observes the machine before it starts.
const ENVIRONMENT_SAMPLE: Duration = Duration::from_millis(100);
/// The time limit for totals to become correct, and the interval between requests for them.
const SETTLE_MAX: Duration = Duration::from_secs(2);
const SETTLE_EVERY: Duration = Duration::from_millis(2);
/// The time from waking the threads to a common start.
const START_EARLY: Duration = Duration::from_millis(5);
/// The interval between checks for an interrupt while waiting for a common start.
const WAIT_TICK: Duration = Duration::from_millis(100);
/// The descriptors that a client thread needs besides its connections, and the descriptors that the rest of this
/// process needs for requests around the run, the watch, reports, and files of the kernel.
const DESCRIPTORS_PER_THREAD: usize = 2;
const DESCRIPTORS_KEPT: usize = 16;
/// The shortest run with meaningful CPU times, which the kernel counts in ticks.
const MACHINE_MIN: Duration = Duration::from_secs(1);

/// Sends the events, and compares what the server counted with what it acknowledged.
///
/// # Errors
///
/// Fails if the server cannot be reached, or if nothing could be measured.
pub fn run(config: &Config, at: impl FnMut(Moment)) -> Result<Report, Failure> {
    let mut control = control(config);
    let measured = measure(config, None, &mut control, at)?;
    let Measured { sent, first, ids, mut setup, origin, environment, aborted_by, running } =
        measured;
    let mut evidence = sent.account(config, first, ids.novelty).evidence();
    let settled_after = settle(config, &mut control, &sent, &mut evidence);
    let quiet = quiet::time(config.quiet, &sent.run.total);
    let stayed = quiet::stay(quiet, sent.ended, || totals(config, &mut control), &mut evidence);
    let mut run = sent.run;
    run.interrupted = sent.was_cut && interrupt::is_asked();
    drop(running);
    setup.was_reset = sent.prepared.was_reset();
    Ok(Report::new(Outcome {
        held: config.pace().and_then(|pace| pace.held(run.work.events(), run.work.last_sent)),
        aborted_by: aborted_by.filter(|_| sent.was_cut),
        run,
        workload: config.workload,
        warm_up: config.warm_up,
        evidence,
        settled_after,
        stayed,
        remarks: ids.remark.into_iter().collect(),
        setup,
        thresholds: config.thresholds.clone(),
        abort_if: config.abort_if.clone(),
        clients: Vec::new(),
        origin,
        environment,
        flow: sent.flow,
    }))
}

/// Sends one part of the events, starting at the same time as all other clients, and returns their outcomes.
///
/// # Errors
///
/// Fails if the server cannot be reached, if the part was not ready in time, or if nothing could be measured.
pub fn run_part(config: &Config, participation: &Participation) -> Result<PartReport, Failure> {
    let mut control = control(config);
    let measured = measure(config, Some(participation), &mut control, |_| {})?;
    let Measured { mut sent, first, setup, origin, environment, running, .. } = measured;
    sent.run.interrupted = sent.was_cut && interrupt::is_asked();
    drop(running);
    let prepared = sent.prepared;
    let before =
        Before { at: Time(prepared.at), totals: prepared.before, was_reset: prepared.was_reset() };
    Ok(PartReport {
        part: participation.part,
        run_id: participation.run_id.clone(),
        parameters: Parameters::of(config),
        setup,
        first_totals: first,
        before: participation.part.leads().then_some(before),
        started: Time(participation.start),
        clock_ahead_of_server: control.clock(),
        run: sent.run,
        origin,
        environment,
    })
}

/// Creates the client for the requests around the run.
fn control(config: &Config) -> Control<'_> {
    Control::new(&config.server, config.timeout, connections(config) > 1)
        .with_token(config.reset_token.clone())
}

/// Returns the number of connections that all clients together use: more than one per request would never be used.
fn connections(config: &Config) -> usize {
    usize::try_from(config.workload.requests())
        .map_or(config.connections, |requests| config.connections.min(requests))
}

/// The measurements, with the machine that they were made on.
struct Measured {
    sent: Sent,
    /// The server's totals before anything was sent.
    first: Totals,
    ids: Ids,
    setup: Setup,
    origin: Origin,
    environment: Environment,
    /// The threshold that ended the run, if one did.
    aborted_by: Option<Threshold>,
    /// The run can be interrupted until this is dropped.
    running: Running,
}

/// Sends the events of this client.
fn measure(
    config: &Config,
    participation: Option<&Participation>,
    control: &mut Control<'_>,
    mut at: impl FnMut(Moment),
) -> Result<Measured, Failure> {
    let listening = interrupt::listen();
    let view = View::open(config);
    let environment = Environment::here(ENVIRONMENT_SAMPLE);
    let server = &config.server;
    let part = config.part;
    let all_connections = connections(config);
    #[allow(clippy::cast_possible_truncation, reason = "a share is no greater than the whole")]
    let connections = part.share(all_connections as u64) as usize;
    let (first, keeps_alive) = control.first_totals().map_err(|e| e.into_failure(server))?;
    if config.workload.batch.is_some()
        && let Some(status) = control.lacks(EVENTS)
    {
        return Err(Failure::Environment(format!(
            "the server at http://{} takes no batches: it refused POST {EVENTS} with status {status}: \
             leave out --batch to send single events",
            server.host
        )));
    }
    let ids = Ids::choose(config, participation.is_some(), control, first)
        .map_err(|error| error.into_failure(server))?;
    let [engine, server_version] = control.build_info();
    let address = control.address();
    let whereabouts = match &config.server_cpus {
        Some(cpus) => Whereabouts::Here(cpus.clone()),
        None => placement::find(address),
    };
    let (cpus, is_pinned) = match &config.cpus {
        Some(cpus) => (cpus.clone(), true),
        None => (placement::choose(&whereabouts)?, whereabouts != Whereabouts::Hidden),
    };
    raise_limits();
    let openable = connections.min(descriptors_left(config.threads.unwrap_or(cpus.len())));
    if openable == 0 {
        return Err(Failure::Environment(
            "there are no descriptors left for connections: raise the limit of open files (ulimit -n)"
                .into(),
        ));
    }
    let crowd = config.crowd(openable);
    // Each thread must have at least one connection at any time.
    let threads = config.threads.unwrap_or(cpus.len()).clamp(1, crowd.least(part));
    let run = Run {
        workload: config.workload,
        part,
        address,
        form: Form::new(request_head(config), &ids.prefix),
        depth: config.pipeline,
        pace: config.pace(),
        duration: config.duration,
        crowd,
        timeout: config.timeout,
        warm_up: config.warm_up,
        threads,
        keep_alive: KeepAlive::new(keeps_alive && !config.one_request_per_connection),
        starts_at: OnceLock::new(),
        is_called_off: AtomicBool::new(false),
        aborted_by: OnceLock::new(),
        next: [AtomicU64::new(0), AtomicU64::new(0)],
        late: AtomicU64::new(0),
        progress: (0..threads).map(|_| CachePadded::new(Progress::default())).collect(),
        gate: Barrier::new(threads + 1),
    };
    let mut warnings: Vec<String> = placement::warnings(&cpus, &whereabouts, config.cpus.is_some());
    if all_connections < config.connections {
        warnings.push(format!(
            "{all_connections} of {} connections are used: there are no more {} than that",
            config.connections,
            if config.workload.batch.is_some() { "batches" } else { "events" }
        ));
    }
    if let Err(error) = listening {
        warnings.push(format!("an interrupt will end the run without a report: {error}"));
    }
    let running = Running::begin();
    let prepare = |control: &mut Control<'_>| match participation {
        None => Prepared::now(config, control),
        Some(participation) => Prepared::with_others(config, control, participation, &run),
    };
    let pins = is_pinned.then_some(cpus.as_slice());
    let mut sent =
        send_all(config, &run, openable, (&cpus, pins), (control, prepare), view, &mut at)?;
    sent.note_unopenable(config.crowd(connections), part, openable);
    warnings.extend(sent.warnings(&run, connections));
    sent.run.warnings = warnings;
    sent.note_load(&cpus, Rivals::of(&cpus, &whereabouts));
    let setup = Setup {
        url: format!("http://{}", server.host),
        engine,
        connections,
        threads,
        cpus: topology::format_cpu_list(&cpus),
        pipeline: config.pipeline,
        rate: config.rate.clone(),
        duration_s: config.duration.map(|duration| duration.as_secs_f64()),
        connections_over_time: config.connections_over_time.clone(),
        users: config.workload.users,
        values: config.workload.values,
        batch: config.workload.batch,
        one_request_per_connection: run.keep_alive.is_one_shot(),
        was_reset: false,
        user_prefix: ids.prefix.clone(),
        address: (server.addresses.len() > 1).then(|| address.to_string()),
        pinned: is_pinned,
        timeout_s: config.timeout.as_secs_f64(),
        watch: config.watch,
        server: config.server_settings.clone(),
        command: config.command.clone(),
    };
    let started = participation.map_or(sent.prepared.at, |participation| participation.start);
    let origin = Origin {
        started: Time(started),
        ended: Time(started + sent.run.elapsed),
        address: address.to_string(),
        server_version,
        server_command: config.server_command.clone(),
    };
    let aborted_by = run.aborted_by.get().cloned();
    Ok(Measured { sent, first, ids, setup, origin, environment, aborted_by, running })
}

/// The prefix of the ids of the run's users.
struct Ids {
    prefix: UserPrefix,
    novelty: Novelty,
    /// The reason for a prefix that differs from the published one although none was requested.
    remark: Option<String>,
}

impl Ids {
    /// Chooses the prefix for a server with the totals `first`. A server that can be reset may be reset for this
    /// purpose, in addition to the reset before the measured part, unless others use it at the same time.
    fn choose(
        config: &Config,
        has_others: bool,
        control: &mut Control<'_>,
        first: Totals,
    ) -> Result<Ids, ControlError> {
        let known = |prefix| Ids { prefix, novelty: Novelty::Unknown, remark: None };
        match &config.users {
            Users::Known(prefix) => return Ok(known(prefix.clone())),
            Users::New(prefix) => {
                let (prefix, novelty) = (prefix.clone(), Novelty::Claimed);
                return Ok(Ids { prefix, novelty, remark: None });
            }
            Users::Published => {}
        }
        let has_users = first.unique_users > 0 && !has_others;
        if !has_users || (config.reset && control.reset()? == Reset::Done) {
            return Ok(known(UserPrefix::default()));
        }
        let prefix = UserPrefix::new();
        let why = if config.reset { "could not be reset" } else { "was not reset" };
        let remark = format!(
            "the ids of users begin with {prefix}, as in no other run, because the server {why} and \
             had {}",
            plural(first.unique_users, "user", "users")
        );
        Ok(Ids { prefix, novelty: Novelty::Certain, remark: Some(remark) })
    }
}

/// Reads the totals until they are correct, or until further attempts are not worthwhile. Returns the time from the end
/// of the run until they were correct, if the first totals were wrong and later ones were correct. A server that does
/// not respond gets as long as it may take for any response, unless the threads have already given it that time.
fn settle(
    config: &Config,
    control: &mut Control<'_>,
    sent: &Sent,
    evidence: &mut Evidence,
) -> Option<Duration> {
    let is_readable = evidence.after.is_ok();
    let patience = match (is_readable, sent.gave_up) {
        (true, _) => SETTLE_MAX,
        (false, false) => config.timeout,
        (false, true) => return None,
    };
    while !quiet::is_right(evidence) && !interrupt::is_asked() {
        // If this process is suspended, it reads the totals again afterwards.
        let is_last = sent.ended.elapsed() > patience;
        thread::sleep(SETTLE_EVERY);
        evidence.after = totals(config, control);
        if quiet::is_right(evidence) {
            // If the server did not respond at first, nothing shows that it counted late.
            return is_readable.then(|| sent.ended.elapsed());
        }
        if is_last {
            break;
        }
    }
    None
}

/// Returns the totals, or the reason why they are missing.
fn totals(config: &Config, control: &mut Control<'_>) -> Result<Totals, String> {
    control.totals().map_err(|error| error.sentence(&config.server))
}

fn request_head(config: &Config) -> Vec<u8> {
    let (path, content) = match config.workload.batch {
        None => (EVENT, "application/json"),
        Some(_) => (EVENTS, "application/x-ndjson"),
    };
    let close = if config.one_request_per_connection { "Connection: close\r\n" } else { "" };
    let host = &config.server.host;
    format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\n{close}Content-Type: {content}\r\nContent-Length: "
    )
    .into_bytes()
}

/// The paths of single events and of batches.
const EVENT: &str = "/event";
pub(super) const EVENTS: &str = "/events";

/// The results of the client threads, with data that only this process needs.
struct Sent {
    run: ClientRun,
    prepared: Prepared,
    /// The server's totals at the end of the last request, or the reason why they are unknown.
    after: Result<Totals, String>,
    flow: Option<Flow>,
    /// The CPU time of the busiest thread, polling excluded, and the longest wait for a CPU.
    busiest: Duration,
    waiting: Duration,
    gave_up: bool,
    /// Whether an interrupt, or a threshold that can no longer pass, ended the run before it was over.
    was_cut: bool,
    ended: Instant,
    /// The reason why a thread's ring failed.
    failure: Option<String>,
}

/// A guard that ends the process if a client thread panics, because the other threads would wait for it forever.
struct EndOnPanic;

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            // The panic has reported the reason, and has given back the terminal.
            std::process::exit(i32::from(Failure::Wrong(String::new()).exit_code()));
        }
    }
}

/// Returns the failure for a thread that could not be started.
fn no_thread(error: std::io::Error) -> Failure {
    Failure::Environment(format!(
        "cannot start a client thread: {error}: use fewer --threads, or raise the limit of processes \
         (ulimit -u, or pids.max of the cgroup)"
    ))
}

/// Runs the client threads, and the watch next to them.
fn send_all(
    config: &Config,
    run: &Run,
    connections: usize,
    (cpus, pins): (&[usize], Option<&[usize]>),
    (control, prepare): (
        &mut Control<'_>,
        impl FnOnce(&mut Control<'_>) -> Result<Prepared, Failure>,
    ),
    view: View,
    at: &mut impl FnMut(Moment),
) -> Result<Sent, Failure> {
    let cannot = |error: std::io::Error| Failure::Environment(doctor::explain_ring_error(&error));
    let (sender, slices) = channel();
    let mut workers = Vec::new();
    for thread in 0..run.threads {
        let share = connections / run.threads + usize::from(thread < connections % run.threads);
        workers.push(Worker::new(run, thread, share, sender.clone()).map_err(cannot)?);
    }
    drop(sender);
    let (stage, abort) = (Stage::new(), Abort::new(&config.abort_if, run));
    thread::scope(|scope| {
        let _guard = EndOnPanic;
        // No thread may wait at the gate before all have been started, or they would wait forever.
        let (mut threads, mut starts) = (Vec::new(), Vec::new());
        for (number, worker) in workers.into_iter().enumerate() {
            let (start, started) = channel();
            starts.push(start);
            let thread = thread::Builder::new().spawn_scoped(scope, move || {
                let _guard = EndOnPanic;
                started.recv().ok()?;
                if let Some(cpu) = pins.and_then(|pins| pins.iter().cycle().nth(number)) {
                    // If pinning is refused, the thread runs on any CPU that its mask allows.
                    topology::pin_to(*cpu);
                }
                Some(worker.work())
            });
            threads.push(thread.map_err(no_thread)?);
        }
        let (stage, abort) = (&stage, &abort);
        let follower = thread::Builder::new().spawn_scoped(scope, move || {
            let _guard = EndOnPanic;
            view.follow(run, stage, &slices, abort)
        });
        let follower = follower.map_err(no_thread)?;
        for start in starts {
            // Fails only if the thread has panicked, which ends the process.
            let _ = start.send(());
        }
        // All threads are connected, and the warm-up is sent.
        run.gate.wait();
        if run.warm_up > 0 {
            stage.begin(Phase::WarmingUp);
        }
        run.gate.wait();
        // The warm-up is over, and the server is reset or its totals are read. No thread may be left waiting at the gate.
        run.gate.wait();
        if run.part != Part::WHOLE {
            stage.begin(Phase::Waiting);
        }
        let prepared = prepare(control);
        let stat = KernelStats::current().ok();
        at(Moment::Start);
        let started = run.starts_at.get().copied().unwrap_or_else(Instant::now);
        let (is_over, before) = (Arc::new(AtomicBool::new(false)), prepared.as_ref().ok().copied());
        let watches = config.watch && run.part.leads();
        let watcher = before.filter(|_| watches).map(|Prepared { before, .. }| {
            let is_over = Arc::clone(&is_over);
            let late = run.late.load(Ordering::Relaxed) + run.events_of_others();
            thread::Builder::new().spawn_scoped(scope, move || {
                let (server, values) = (&config.server, config.workload.values);
                let before = (before, late);
                watch::watch(
                    run.address,
                    server,
                    config.timeout,
                    before,
                    values,
                    &run.progress,
                    &is_over,
                )
            })
        });
        let (start_sampler, is_started) = channel::<()>();
        let sampler = config.sample_every.map(|every| {
            let is_over = Arc::clone(&is_over);
            thread::Builder::new().spawn_scoped(scope, move || {
                // Fails only if the run does not start.
                let _ = is_started.recv();
                Flow::watch(every, &run.progress, &is_over)
            })
        });
        let (watcher, sampler, prepared) = match (watcher.transpose(), sampler.transpose()) {
            (Ok(watcher), Ok(sampler)) => (watcher, sampler, prepared),
            (Err(error), _) | (_, Err(error)) => (None, None, prepared.and(Err(no_thread(error)))),
        };
        run.is_called_off.store(prepared.is_err(), Ordering::Relaxed);
        run.gate.wait();
        stage.begin(Phase::Measuring);
        // Fails only if no samples are requested.
        let _ = start_sampler.send(());
        let panicked =
            |_| Failure::Wrong("a client thread panicked; an error above says why".into());
        let timeline = follower.join().map_err(panicked)?;
        at(Moment::End);
        // The totals are read immediately, so that a server that counts late does not have time to catch up.
        let after = totals(config, control);
        is_over.store(true, Ordering::Release);
        let machine = stat.zip(KernelStats::current().ok());
        let machine = machine.map(|(before, after)| CpuUse::between(&before, &after, cpus));
        let watched = watcher.map(|watcher| watcher.join().map_err(panicked)).transpose()?;
        let flow = sampler.map(|sampler| sampler.join().map_err(panicked)).transpose()?;
        let (total, seconds) = timeline.finish();
        let cpus = machine.into_iter().collect();
        let mut sent = Sent {
            run: ClientRun { total, seconds, watched, cpus, ..ClientRun::default() },
            prepared: prepared?,
            after,
            flow,
            busiest: Duration::ZERO,
            waiting: Duration::ZERO,
            gave_up: false,
            was_cut: false,
            ended: started,
            failure: None,
        };
        for thread in threads {
            // All threads were started.
            let Some([warm_up, measured]) = thread.join().map_err(panicked)? else { continue };
            sent.run.warm_up.merge(warm_up.work.ledger);
            sent.add(measured);
        }
        sent.run.elapsed = sent.ended.saturating_duration_since(started);
        sent.run.warm_up.leave(rest_of_closed_loop(run.part, &run.next[0], &run.earlier()));
        let ledger = &mut sent.run.work.ledger;
        if run.pace.is_none() {
            ledger.leave(rest_of_closed_loop(run.part, &run.next[1], &run.workload));
        }
        ledger.add_trouble(&sent.run.warm_up);
        ledger.add_misstatements(&sent.run.warm_up);
        Ok(sent)
    })
}

impl Sent {
    /// Adds the findings of a thread.
    fn add(&mut self, findings: Findings) {
        self.busiest = self.busiest.max(findings.work.cpu);
        self.waiting = self.waiting.max(findings.waiting);
        self.gave_up |= findings.gave_up;
        self.was_cut |= findings.was_cut;
        self.ended = self.ended.max(findings.ended);
        self.failure = self.failure.take().or(findings.failure);
        self.run.work.merge(findings.work);
    }

    /// Records the connections that failed because this process lacks descriptors. If a ramp had not reached a
    /// connection, it does not count.
    fn note_unopenable(&mut self, crowd: Crowd, part: Part, openable: usize) {
        let trouble = &mut self.run.work.ledger.trouble;
        let elapsed_ns = u64::try_from(self.run.elapsed.as_nanos()).unwrap_or(u64::MAX);
        let reached = crowd.between(part, 0, elapsed_ns).max(openable);
        trouble.never_wanted += (crowd.most - reached) as u64;
        for _ in openable..reached {
            self.run.work.ledger.trouble.never_open += 1;
            self.run.work.ledger.note_failure_to_connect(&Errno::MFILE.into());
        }
    }

    /// Returns everything known about the events of a run with a single client.
    fn account(&self, config: &Config, first: Totals, novelty: Novelty) -> Account<'_> {
        Account {
            workload: config.workload,
            warm_up: config.warm_up,
            first,
            before: self.prepared.before,
            was_reset: self.prepared.was_reset(),
            novelty,
            ledger: &self.run.work.ledger,
            warm_up_ledger: &self.run.warm_up,
            is_unbounded: false,
            after: self.after.clone(),
        }
    }

    /// Records the load on the client, as shares of the length of the run, and whether it limited the run.
    fn note_load(&mut self, cpus: &[usize], rivals: Rivals) {
        let elapsed = self.run.elapsed;
        let share = |time: Duration| match elapsed {
            Duration::ZERO => 0.0,
            elapsed => time.as_secs_f64() / elapsed.as_secs_f64(),
        };
        let polling = share(self.run.work.polling) / cpus.len().max(1) as f64;
        let machine = self.run.cpus.first();
        let lag = self.run.total.lag.as_ref().and_then(|lag| lag.quantile(0.99));
        let load = ClientLoad {
            elapsed,
            busy: share(self.busiest),
            waiting: share(self.waiting),
            suspended: share(self.run.work.suspended),
            softirq: machine.map_or(0.0, |machine| machine.softirq),
            rivals,
            cpus_busy: machine.filter(|_| elapsed >= MACHINE_MIN).map(|use_| use_.busy - polling),
            lag_p99_us: lag.map(|lag| lag.micros),
        };
        (self.run.busy, self.run.waiting) = (load.busy, load.waiting);
        self.run.limited_by = load.limits();
    }

    /// Returns warnings for the reader of the report.
    fn warnings(&self, run: &Run, connections: usize) -> Vec<String> {
        let (mut warnings, work) = (Vec::new(), &self.run.work);
        if let Some(Reset::Refused(status)) = self.prepared.reset {
            warnings.push(format!(
                "the server refused POST /reset with status {status}: the run is measured from the \
                 totals that it had; pass its token with --token-file (or check the one that you pass), or --no-reset"
            ));
        }
        if run.workload.batch.is_some() {
            let refusals = work.ledger.refused_by_status.keys();
            warnings.extend(refusals.filter_map(|status| explain_refusal(*status)));
        }
        if run.keep_alive.was_one_shot() && !run.keep_alive.is_one_shot() {
            warnings.push(
                "for a part of the run each connection took one request only, because the server \
                 closed some after a response"
                    .into(),
            );
        }
        let rejected = work.ledger.trouble.rejected;
        if rejected > 0 {
            warnings.push(format!(
                "the server had no room for {}, and turned {} away with status 503: raise its limit, \
                 or use fewer than {connections}",
                plural(rejected, "connection", "connections"),
                if rejected == 1 { "it" } else { "them" },
            ));
        }
        if !work.suspended.is_zero() {
            warnings.push(format!(
                "the client did not run for {:.1} s of the run: it was suspended, or other work took \
                 its CPU",
                work.suspended.as_secs_f64()
            ));
        }
        let failures = work.ledger.trouble.connect_failures;
        if failures > 0 && work.ledger.trouble.never_open == 0 {
            warnings.push(format!(
                "{} failed: {}",
                plural(failures, "attempt to connect", "attempts to connect"),
                work.ledger.connect_reasons().join("; ")
            ));
        }
        warnings.extend(self.failure.clone());
        warnings
    }
}

/// Returns the advice for batches that were refused with this status.
fn explain_refusal(status: u16) -> Option<String> {
    Some(match status {
        413 => "the server takes smaller batches: use a smaller --batch, or raise its --max-batch"
            .into(),
        503 => "the server could not take all batches at once: use fewer connections or a smaller \
                --batch, or raise its --max-batch-memory"
            .into(),
        507 => "the server has no room for more users: raise its --max-users, or use fewer --users"
            .into(),
        _ => return None,
    })
}

/// The server's totals before the run, and the result of its reset if one was requested.
#[derive(Clone, Copy)]
struct Prepared {
    at: SystemTime,
    before: Totals,
    reset: Option<Reset>,
}

impl Prepared {
    fn was_reset(&self) -> bool {
        self.reset == Some(Reset::Done)
    }

    /// Resets the server if requested, and reads its totals.
    fn now(config: &Config, control: &mut Control<'_>) -> Result<Prepared, Failure> {
        let failed = |error: ControlError| error.into_failure(&config.server);
        let reset = if config.reset { Some(control.reset().map_err(failed)?) } else { None };
        let before = control.totals().map_err(failed)?;
        Ok(Prepared { at: SystemTime::now(), before, reset })
    }

    /// Waits for the common start of all clients. Part 1 resets the server when all clients have ended their warm-ups
    /// and none has started.
    fn with_others(
        config: &Config,
        control: &mut Control<'_>,
        participation: &Participation,
        run: &Run,
    ) -> Result<Prepared, Failure> {
        let Participation { part, start, guard, .. } = *participation;
        // Convert the start from the system's clock to a clock that advances evenly.
        let left = start.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
        let starts_at = Instant::now() + left;
        if left < 2 * guard {
            return Err(Failure::Environment(format!(
                "part {part} was connected and warm {:.1} s before the start, and had to be {:.1} s \
                 before it: start later, or with a smaller --warmup",
                left.as_secs_f64(),
                2.0 * guard.as_secs_f64()
            )));
        }
        wait_until(starts_at - guard, || {
            // Each response narrows the estimate of the difference between the clocks.
            let _ = control.totals();
        })?;
        let prepared = match part.leads() {
            true => Prepared::now(config, control)?,
            false => Prepared { at: SystemTime::now(), before: Totals::ZERO, reset: None },
        };
        if Instant::now() + START_EARLY > starts_at {
            return Err(Failure::Environment(format!(
                "the server took more than {:.1} s to reset, so that part {part} could not start with \
                 the others: check what it is doing",
                guard.as_secs_f64()
            )));
        }
        wait_until(starts_at - START_EARLY, || {})?;
        let _ = run.starts_at.set(starts_at);
        Ok(prepared)
    }
}

/// Waits until a time, and calls a function about every [`WAIT_TICK`]. Fails if the run is interrupted.
fn wait_until(at: Instant, mut meanwhile: impl FnMut()) -> Result<(), Failure> {
    loop {
        if interrupt::is_asked() {
            return Err(Failure::Wrong("the run was interrupted before its start".into()));
        }
        let left = at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        if left > WAIT_TICK {
            meanwhile();
        }
        thread::sleep(left.min(WAIT_TICK));
    }
}

/// Returns the number of connections that the limit of open files allows in addition to the threads.
fn descriptors_left(threads: usize) -> usize {
    use rustix::process::{Resource, getrlimit};
    let Some(limit) = getrlimit(Resource::Nofile).current else { return usize::MAX };
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    limit.saturating_sub(open + threads * DESCRIPTORS_PER_THREAD + DESCRIPTORS_KEPT)
}

/// Raises the limits of descriptors, because each connection needs one, and of locked memory, because the rings need
/// it, as far as the hard limits permit.
fn raise_limits() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    for resource in [Resource::Nofile, Resource::Memlock] {
        let maximum = getrlimit(resource).maximum;
        // If this is refused, connections or client threads fail, and the failures are reported.
        let _ = setrlimit(resource, Rlimit { current: maximum, maximum });
    }
}
