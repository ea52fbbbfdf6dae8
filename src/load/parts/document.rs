//! What a client found of its part, as a file that `merge` reads.

use super::Participation;
use super::clock::{ClockOffset, ms_between};
use crate::doctor::{CpuUse, Environment};
use crate::failure::Failure;
use crate::load::control::Reset;
use crate::load::latency::Latencies;
use crate::load::ledger::Ledger;
use crate::load::part::Part;
use crate::load::report::{Latency, Setup, Unit, counted, grouped, malformed, ratio, rounded};
use crate::load::schedule::Pace;
use crate::load::timeline::RawSecond;
use crate::load::watch::Watched;
use crate::load::workload::{BATCH_MAX, EVENTS_MAX, Totals, UserPrefix, Values, Workload};
use crate::load::{Config, Profile};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// The version of the format. A change that an older program would misread raises it.
const FORMAT: u32 = 2;

/// The longest time in a report: a year.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// The most that is counted of anything, which 2^16 clients can have each: connections may fail to open for long.
const COUNT_MAX: u64 = 1 << 47;
/// More connections, or threads, than any client has.
const CONNECTIONS_MAX: usize = 1 << 32;

/// What all parts of a run have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::load) struct Parameters {
    pub(super) requests: u64,
    pub(super) warm_up: u64,
    pub(super) users: u64,
    pub(super) values: Values,
    pub(super) batch: Option<u64>,
    pub(super) connections: usize,
    pub(super) pipeline: usize,
    pub(super) rate: Option<Profile>,
    /// The time in which requests were sent, in nanoseconds; null if the run had a fixed number of them.
    #[serde(default)]
    pub(super) duration_ns: Option<u64>,
    #[serde(default)]
    pub(super) connections_over_time: Option<Profile>,
    pub(super) reset: bool,
    pub(super) timeout_ms: u64,
    #[serde(default)]
    pub(super) user_prefix: UserPrefix,
}

impl Parameters {
    fn of(config: &Config) -> Parameters {
        Parameters {
            requests: config.workload.events,
            warm_up: config.warm_up,
            users: config.workload.users,
            values: config.workload.values,
            batch: config.workload.batch,
            connections: config.connections,
            pipeline: config.pipeline,
            rate: config.rate.clone(),
            duration_ns: config
                .duration
                .map(|duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
            connections_over_time: config.connections_over_time.clone(),
            reset: config.reset,
            // A timeout is at most a day.
            timeout_ms: u64::try_from(config.timeout.as_millis()).unwrap_or(u64::MAX),
            // Clients that do not know of each other cannot agree on a new one.
            user_prefix: config.users.prefix().cloned().unwrap_or_default(),
        }
    }

    /// Returns the due times of an open loop's requests.
    pub(super) fn pace(&self) -> Option<Pace> {
        let duration = self.duration_ns.map(Duration::from_nanos);
        self.rate.as_ref().map(|rate| Pace::new(rate, duration, &self.workload()))
    }

    /// Reports whether the run has as many requests as it sent in its time.
    pub(super) fn is_open_ended(&self) -> bool {
        self.rate.is_none() && self.duration_ns.is_some()
    }

    pub(super) fn workload(&self) -> Workload {
        Workload {
            events: self.requests,
            users: self.users,
            values: self.values,
            batch: self.batch,
        }
    }
}

/// What a client of an open loop measured besides.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(in crate::load) struct OpenLoopClient {
    /// From the actual send time.
    pub(in crate::load) from_send: Latencies,
    /// How late the client sent requests for which a connection was free.
    pub(in crate::load) lag: Latencies,
    /// Requests that came due while every connection was busy.
    pub(in crate::load) held_up: u64,
    /// Requests that came due while the client did not run.
    #[serde(default)]
    pub(in crate::load) due_in_stalls: u64,
    /// Events that were sent, and when the last of their requests was, since the start.
    pub(in crate::load) requests: u64,
    pub(in crate::load) last_sent: Duration,
}

/// What is known when a client has sent its part.
pub(in crate::load) struct PartOutcome {
    pub(in crate::load) setup: Setup,
    pub(in crate::load) prepared: SystemTime,
    pub(in crate::load) first: Totals,
    pub(in crate::load) before: Totals,
    pub(in crate::load) reset: Option<Reset>,
    pub(in crate::load) clock: Option<ClockOffset>,
    pub(in crate::load) elapsed: Duration,
    pub(in crate::load) ledger: Ledger,
    pub(in crate::load) warm_up: Ledger,
    pub(in crate::load) watched: Option<Watched>,
    pub(in crate::load) latency: Latencies,
    pub(in crate::load) open_loop: Option<OpenLoopClient>,
    pub(in crate::load) seconds: Vec<RawSecond>,
    pub(in crate::load) client_busy: f64,
    pub(in crate::load) client_waiting: f64,
    pub(in crate::load) client_limits: Vec<String>,
    pub(in crate::load) client_cpu: Duration,
    pub(in crate::load) client_poll: Duration,
    pub(in crate::load) is_interrupted: bool,
    pub(in crate::load) suspended: Duration,
    pub(in crate::load) machine: Option<CpuUse>,
    pub(in crate::load) warnings: Vec<String>,
    pub(in crate::load) environment: Environment,
}

/// What a client found of its part of a run. All its times are on the clock of its machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PartReport {
    part_report_format: u32,
    pub(super) part: Part,
    pub(super) run_id: Option<String>,
    pub(super) parameters: Parameters,
    pub(super) setup: Setup,
    /// What the server had counted before the warm-up.
    pub(super) first_totals: Totals,
    /// When part 1 had reset the server, and what the server had counted then.
    pub(super) before: Option<Before>,
    pub(super) started: Time,
    pub(super) elapsed: Duration,
    /// Null if the server's responses have no `Date`.
    pub(super) clock_ahead_of_server: Option<ClockOffset>,
    pub(super) ledger: Ledger,
    pub(super) warm_up_ledger: Ledger,
    /// Of part 1, if it was to watch.
    pub(super) watched: Option<Watched>,
    pub(super) latency: Latencies,
    pub(super) open_loop: Option<OpenLoopClient>,
    pub(super) seconds: Vec<RawSecond>,
    pub(super) client_busy: f64,
    pub(super) client_waiting: f64,
    pub(super) client_limited_by: Vec<String>,
    pub(super) client_cpu: Duration,
    pub(super) client_poll: Duration,
    pub(super) client_cpus: Option<CpuUse>,
    pub(super) interrupted: bool,
    pub(super) suspended: Duration,
    pub(super) warnings: Vec<String>,
    pub(super) environment: Environment,
}

/// What the run starts from.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(in crate::load) struct Before {
    pub(super) at: Time,
    pub(super) totals: Totals,
    pub(super) was_reset: bool,
}

/// A time in a file, in RFC 3339 format with nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(in crate::load) struct Time(pub(super) SystemTime);

impl From<Time> for String {
    fn from(time: Time) -> String {
        humantime::format_rfc3339_nanos(time.0).to_string()
    }
}

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Time, String> {
        let time = humantime::parse_rfc3339(&text);
        time.map(Time).map_err(|error| format!("{text} is not a time: {error}"))
    }
}

impl PartReport {
    pub(in crate::load) fn new(
        config: &Config,
        participation: &Participation,
        outcome: PartOutcome,
    ) -> PartReport {
        let was_reset = outcome.reset == Some(Reset::Done);
        let before = Before { at: Time(outcome.prepared), totals: outcome.before, was_reset };
        PartReport {
            part_report_format: FORMAT,
            part: participation.part,
            run_id: participation.run_id.clone(),
            parameters: Parameters::of(config),
            setup: outcome.setup,
            first_totals: outcome.first,
            before: participation.part.leads().then_some(before),
            started: Time(participation.start),
            elapsed: outcome.elapsed,
            clock_ahead_of_server: outcome.clock,
            ledger: outcome.ledger,
            warm_up_ledger: outcome.warm_up,
            watched: outcome.watched,
            latency: outcome.latency,
            open_loop: outcome.open_loop,
            seconds: outcome.seconds,
            client_busy: outcome.client_busy,
            client_waiting: outcome.client_waiting,
            client_limited_by: outcome.client_limits,
            client_cpu: outcome.client_cpu,
            client_poll: outcome.client_poll,
            client_cpus: outcome.machine,
            interrupted: outcome.is_interrupted,
            suspended: outcome.suspended,
            warnings: outcome.warnings,
            environment: outcome.environment,
        }
    }

    /// Reads the report of a part.
    pub(super) fn read(path: &Path) -> Result<PartReport, Failure> {
        let unusable = |why: String| {
            Failure::Usage(format!(
                "cannot merge {}: {why}: pass files that load --part wrote with --json",
                path.display()
            ))
        };
        let text = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
        let json = serde_json::from_slice(&text).map_err(|error| unusable(error.to_string()))?;
        PartReport::of_json(json).map_err(unusable)
    }

    /// The report that a file has, if a client can have written it.
    pub(super) fn of_json(json: serde_json::Value) -> Result<PartReport, String> {
        match json.get("part_report_format").and_then(serde_json::Value::as_u64) {
            None => return Err("it is not the report of a part".into()),
            Some(format) if format != u64::from(FORMAT) => {
                return Err(format!(
                    "it has format {format}, and this version reads format {FORMAT}"
                ));
            }
            Some(_) => {}
        }
        let report: PartReport = serde_json::from_value(json).map_err(|error| error.to_string())?;
        report.check_figures()?;
        report.check_ledgers()?;
        Ok(report)
    }

    /// Whether its figures are within the limits of what a client can do, so that they can be added up.
    fn check_figures(&self) -> Result<(), String> {
        let Parameters { requests, warm_up, users, batch, connections, .. } = self.parameters;
        let rate = self.parameters.rate.as_ref();
        let zero = OpenLoopClient::default();
        let open_loop = self.open_loop.as_ref().unwrap_or(&zero);
        let durations = [
            ("elapsed", self.elapsed),
            ("suspended", self.suspended),
            ("client_cpu", self.client_cpu),
            ("client_poll", self.client_poll),
            ("last_sent", open_loop.last_sent),
        ];
        let too_long = durations.into_iter().filter(|(_, duration)| *duration > DURATION_MAX);
        let mut impossible: Vec<&str> = too_long.map(|(name, _)| name).collect();
        let last_second = self.elapsed.as_secs().saturating_add(1);
        let is_in_run = |second: &RawSecond| second.second <= last_second;
        let latencies = [&self.latency, &open_loop.from_send, &open_loop.lag];
        let of_latencies = latencies.iter().flat_map(|latency| [latency.len(), latency.censored()]);
        let of_ledgers = [&self.ledger, &self.warm_up_ledger];
        let of_seconds = self.seconds.iter().map(|second| second.latency.censored());
        let of_watch = self.watched.iter().flat_map(Watched::counts);
        let mut counts = of_ledgers
            .iter()
            .flat_map(|ledger| ledger.counts())
            .chain(of_latencies)
            .chain(of_seconds)
            .chain(of_watch);
        for (name, is_possible) in [
            ("requests", (1..=EVENTS_MAX).contains(&requests)),
            ("warm_up", warm_up <= EVENTS_MAX),
            ("users", users > 0),
            ("batch", batch.is_none_or(|batch| (1..=BATCH_MAX).contains(&batch))),
            ("connections", connections > 0),
            ("rate", rate.is_none_or(Profile::is_rate)),
            ("setup", self.setup.workers.max(self.setup.threads) <= CONNECTIONS_MAX),
            ("seconds", self.seconds.iter().all(is_in_run)),
            ("events of seconds", self.seconds.iter().all(|second| second.events <= EVENTS_MAX)),
            ("held_up", open_loop.held_up <= EVENTS_MAX),
            ("due_in_stalls", open_loop.due_in_stalls <= EVENTS_MAX),
            ("requests of the open loop", open_loop.requests <= EVENTS_MAX),
            ("counts", counts.all(|count| count <= COUNT_MAX)),
        ] {
            impossible.extend((!is_possible).then_some(name));
        }
        match impossible.first() {
            None => Ok(()),
            Some(name) => Err(format!("no client writes such a value of {name}: it was changed")),
        }
    }

    /// Whether the ledgers have each event of the part once.
    pub(super) fn check_ledgers(&self) -> Result<(), String> {
        let workload = self.parameters.workload();
        let warm_up = Workload { events: self.parameters.warm_up, ..workload };
        for (ledger, workload) in [(&self.ledger, workload), (&self.warm_up_ledger, warm_up)] {
            let sets = [&ledger.refused, &ledger.unknown, &ledger.unsent];
            let is_possible = sets.iter().all(|set| set.is_possible(&workload, self.part));
            let all = sets
                .iter()
                .filter(|_| is_possible)
                .try_fold(ledger.acknowledged, |sum, set| sum.checked_add(set.len(&workload)));
            if !is_possible || all != Some(workload.len_of(self.part.rest(0))) {
                return Err("it does not have each event of its part once".into());
            }
        }
        Ok(())
    }

    /// The report as one JSON object.
    pub fn json(&self) -> Result<String, Failure> {
        serde_json::to_string(self)
            .map_err(|error| Failure::Wrong(format!("the report cannot be made JSON: {error}")))
    }

    /// A few lines for whoever started the part.
    pub fn summary(&self) -> String {
        let row = self.row(self);
        let unit = Unit::of(self.parameters.batch);
        let warnings: String =
            self.flaws().iter().map(|flaw| format!("warning   {flaw}\n")).collect();
        format!(
            "part      {}: {} over {} in {:.2} s: {} {}\n\
             {warnings}\
             verdict   of all parts together: run ringtally merge with their reports\n",
            self.part,
            unit.batched(row.requests, row.batches),
            counted(row.workers as u64, "connection", "connections"),
            row.elapsed_s,
            rounded(row.requests_per_s),
            unit.per_second(),
        )
    }

    /// Whether all its events were acknowledged, over all its connections.
    pub fn check(&self) -> Result<(), Failure> {
        if self.interrupted {
            return Err(Failure::Wrong("the run was interrupted".into()));
        }
        let events = self.events();
        let missing = events - self.ledger.acknowledged;
        let not_acknowledged = (missing > 0).then(|| {
            let events = Unit::of(self.parameters.batch).count(events);
            format!("{} of {events} of this part not acknowledged", grouped(missing))
        });
        let failures: Vec<String> = not_acknowledged.into_iter().chain(self.flaws()).collect();
        match failures.is_empty() {
            true => Ok(()),
            false => Err(Failure::Wrong(failures.join("\n"))),
        }
    }

    /// Returns the reasons why it is not the requested part: malformed responses, and connections that were never
    /// open.
    fn flaws(&self) -> Vec<String> {
        let shortfall = self.ledger.shortfall(self.setup.workers as u64);
        malformed(self.ledger.trouble.garbled).into_iter().chain(shortfall).collect()
    }

    /// How many events it has.
    fn events(&self) -> u64 {
        let workload = self.parameters.workload();
        let left = match self.parameters.is_open_ended() {
            true => self.ledger.unsent.len(&workload) - self.ledger.unsent.singles(),
            false => 0,
        };
        workload.len_of(self.part.rest(0)) - left
    }

    /// This client's row in the report on all, of which `first` has part 1.
    pub(super) fn row(&self, first: &PartReport) -> ClientRow {
        let workload = self.parameters.workload();
        let elapsed_s = self.elapsed.as_secs_f64();
        ClientRow {
            part: self.part.to_string(),
            host: self.environment.host.clone(),
            url: self.setup.url.clone(),
            workers: self.setup.workers,
            threads: self.setup.threads,
            cpus: self.setup.cpus.clone(),
            requests: self.events(),
            batches: workload.batch.map(|batch| self.events().div_ceil(batch)),
            acknowledged: self.ledger.acknowledged,
            refused: self.ledger.refused_by_status.values().sum(),
            unknown: self.ledger.unknown.len(&workload),
            unsent: self.ledger.not_sent(&workload, self.parameters.is_open_ended()),
            elapsed_s,
            requests_per_s: ratio(self.ledger.acknowledged as f64, elapsed_s),
            latency_us: Latency::of(&self.latency),
            started_after_ms: ms_between(first.started.0, self.started.0),
            clock_ahead_of_server: self.clock_ahead_of_server,
            client_busy: self.client_busy,
            client_waiting: self.client_waiting,
            client_limited_by: self.client_limited_by.clone(),
            client_cpus: self.client_cpus,
            interrupted: self.interrupted,
            environment: self.environment.clone(),
            command: self.setup.command.clone(),
        }
    }
}

/// One of the clients of a run, in the report on all of them.
#[derive(Clone, Debug, Serialize)]
pub(in crate::load) struct ClientRow {
    pub(in crate::load) part: String,
    pub(in crate::load) host: String,
    url: String,
    pub(in crate::load) workers: usize,
    pub(in crate::load) threads: usize,
    cpus: String,
    requests: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::load) batches: Option<u64>,
    pub(in crate::load) acknowledged: u64,
    refused: u64,
    unknown: u64,
    unsent: u64,
    pub(in crate::load) elapsed_s: f64,
    pub(in crate::load) requests_per_s: f64,
    pub(in crate::load) latency_us: Latency,
    /// After part 1, by the clocks of both.
    started_after_ms: f64,
    clock_ahead_of_server: Option<ClockOffset>,
    pub(in crate::load) client_busy: f64,
    client_waiting: f64,
    client_limited_by: Vec<String>,
    client_cpus: Option<CpuUse>,
    pub(in crate::load) interrupted: bool,
    environment: Environment,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    command: Vec<String>,
}
