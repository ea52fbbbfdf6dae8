//! A client's report on its part, as a file that `merge` reads.

use crate::doctor::Environment;
use crate::document::{self, Document, Format};
use crate::failure::Failure;
use crate::load::clock::{ClockOffset, ms_between};
use crate::load::numbers::{counted, grouped, rounded};
use crate::load::origin::{Origin, Time};
use crate::load::part::Part;
use crate::load::report::{ClientRow, Latency, Setup, Unit, malformed, ratio};
use crate::load::run_record::ClientRun;
use crate::load::schedule::Pace;
use crate::load::timeline::RawSecond;
use crate::load::watch::Watched;
use crate::load::workload::{BATCH_MAX, EVENTS_MAX, Totals, UserPrefix, Values, Workload};
use crate::load::{Config, Profile};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// The longest time in a report: a year.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// The greatest count of anything in a report, which 2^16 clients can have each. It is large because attempts to
/// connect may fail for a long time.
const COUNT_MAX: u64 = 1 << 47;
/// More connections, or threads, than any client has.
const CONNECTIONS_MAX: usize = 1 << 32;

/// The parameters that all parts of a run have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(in crate::load) struct Parameters {
    /// Events of the run.
    pub(super) requests: u64,
    /// Events that are sent before the run.
    pub(super) warm_up: u64,
    /// Distinct users.
    pub(super) users: u64,
    /// The values of the events.
    pub(super) values: Values,
    /// Events per batch; null for one event per request.
    pub(super) batch: Option<u64>,
    /// Connections of all parts together.
    pub(super) connections: usize,
    /// Requests in flight per connection.
    pub(super) pipeline: usize,
    /// Events per second of an open loop, as given by `--rate` or `--stages`; null for a closed loop.
    pub(super) rate: Option<Profile>,
    /// The time during which requests were sent, in nanoseconds; null if the run had a fixed number of them.
    #[serde(default)]
    pub(super) duration_ns: Option<u64>,
    /// Connections over time, if their number changes.
    #[serde(default)]
    pub(super) connections_over_time: Option<Profile>,
    /// Whether the server should be reset.
    pub(super) reset: bool,
    /// The time that a connection or a response may take, in milliseconds.
    pub(super) timeout_ms: u64,
    /// The prefix of the users' ids.
    #[serde(default)]
    pub(super) user_prefix: UserPrefix,
}

impl Parameters {
    pub(in crate::load) fn of(config: &Config) -> Parameters {
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
            // Clients that do not know each other cannot agree on a new prefix.
            user_prefix: config.users.prefix().cloned().unwrap_or_default(),
        }
    }

    /// Returns the due times of an open loop's requests.
    pub(super) fn pace(&self) -> Option<Pace> {
        let duration = self.duration_ns.map(Duration::from_nanos);
        self.rate.as_ref().map(|rate| Pace::new(rate, duration, &self.workload()))
    }

    /// Reports whether the run has as many requests as it could send within its duration.
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

/// A client's report on its part of a run. All of its times are on the clock of its machine.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PartReport {
    /// The part that the client sent, as in `2/3`.
    pub(in crate::load) part: Part,
    /// The name of the run, which all parts share.
    pub(in crate::load) run_id: Option<String>,
    /// The parameters that all parts of a run have in common.
    pub(in crate::load) parameters: Parameters,
    /// The setup of the client.
    pub(in crate::load) setup: Setup,
    /// The server's totals before the warm-up.
    pub(in crate::load) first_totals: Totals,
    /// The time of part 1's reset, and the server's totals then.
    pub(in crate::load) before: Option<Before>,
    /// The time when it started.
    pub(in crate::load) started: Time,
    /// The lead of its clock over the server's; null if the server's responses lack a `Date`.
    pub(in crate::load) clock_ahead_of_server: Option<ClockOffset>,
    /// The record of its run.
    pub(in crate::load) run: ClientRun,
    /// The time of the run, and its server.
    pub(in crate::load) origin: Origin,
    /// Its machine.
    pub(in crate::load) environment: Environment,
}

/// The totals that a run starts from.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
pub(in crate::load) struct Before {
    /// The time when they were read.
    pub(in crate::load) at: Time,
    /// The server's totals.
    pub(in crate::load) totals: Totals,
    /// Whether the server had been reset.
    pub(in crate::load) was_reset: bool,
}

impl PartReport {
    /// Reads the report of a part.
    pub(super) fn read(path: &Path) -> Result<PartReport, Failure> {
        let unusable = |why: String| {
            Failure::Usage(format!(
                "cannot merge {}: {why}: pass files that load --part wrote with --json",
                path.display()
            ))
        };
        let text = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
        PartReport::of_json(&text).map_err(unusable)
    }

    /// Parses a report from the content of a file, if a client can have written it.
    pub(super) fn of_json(text: &[u8]) -> Result<PartReport, String> {
        let (_, json) = document::read(text, &[Format::Part])?;
        let report: PartReport = serde_json::from_value(json).map_err(|error| error.to_string())?;
        report.check_figures()?;
        report.check_ledgers()?;
        Ok(report)
    }

    /// Checks that its figures are within the limits of a client, so that they can be added up.
    fn check_figures(&self) -> Result<(), String> {
        let Parameters { requests, warm_up, users, batch, connections, .. } = self.parameters;
        let rate = self.parameters.rate.as_ref();
        let ClientRun { work, warm_up: warm_up_ledger, total, seconds, .. } = &self.run;
        let durations = [
            ("elapsed", self.run.elapsed),
            ("suspended", work.suspended),
            ("cpu", work.cpu),
            ("polling", work.polling),
            ("last_sent", work.last_sent),
        ];
        let too_long = durations.into_iter().filter(|(_, duration)| *duration > DURATION_MAX);
        let mut impossible: Vec<&str> = too_long.map(|(name, _)| name).collect();
        let last_second = self.run.elapsed.as_secs().saturating_add(1);
        let is_in_run = |second: &RawSecond| second.second <= last_second;
        let mut latencies = vec![total.latency.clone()];
        latencies.extend(total.from_send.iter().chain(&total.lag).cloned());
        for second in seconds {
            latencies.push(second.latencies()?);
        }
        let of_latencies = latencies.iter().flat_map(|latency| [latency.len(), latency.censored()]);
        let of_ledgers = [&work.ledger, warm_up_ledger];
        let of_watch = self.run.watched.iter().flat_map(Watched::counts);
        let mut counts = of_ledgers
            .iter()
            .flat_map(|ledger| ledger.counts())
            .chain(of_latencies)
            .chain(of_watch);
        for (name, is_possible) in [
            ("requests", (1..=EVENTS_MAX).contains(&requests)),
            ("warm_up", warm_up <= EVENTS_MAX),
            ("users", users > 0),
            ("batch", batch.is_none_or(|batch| (1..=BATCH_MAX).contains(&batch))),
            ("connections", connections > 0),
            ("rate", rate.is_none_or(Profile::is_rate)),
            ("setup", self.setup.connections.max(self.setup.threads) <= CONNECTIONS_MAX),
            ("seconds", seconds.iter().all(is_in_run)),
            ("events of seconds", seconds.iter().all(|second| second.events <= EVENTS_MAX)),
            ("events", total.events <= EVENTS_MAX),
            ("queued", work.queued <= EVENTS_MAX),
            ("due_in_stalls", work.due_in_stalls <= EVENTS_MAX),
            ("counts", counts.all(|count| count <= COUNT_MAX)),
        ] {
            impossible.extend((!is_possible).then_some(name));
        }
        match impossible.first() {
            None => Ok(()),
            Some(name) => Err(format!("no client writes such a value of {name}: it was changed")),
        }
    }

    /// Checks that the ledgers have each event of the part once.
    pub(super) fn check_ledgers(&self) -> Result<(), String> {
        let workload = self.parameters.workload();
        let warm_up = Workload { events: self.parameters.warm_up, ..workload };
        for (ledger, workload) in [(&self.run.work.ledger, workload), (&self.run.warm_up, warm_up)]
        {
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

    /// Returns the report as one JSON object.
    pub fn json(&self) -> String {
        Document::new(Format::Part, self).line()
    }

    /// Returns a few lines for the user who started the part.
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
            counted(row.connections as u64, "connection", "connections"),
            row.elapsed_s,
            rounded(row.requests_per_s),
            unit.per_second(),
        )
    }

    /// Checks that all its events were acknowledged, over all its connections.
    pub fn check(&self) -> Result<(), Failure> {
        if self.run.interrupted {
            return Err(Failure::Wrong("the run was interrupted".into()));
        }
        let events = self.events();
        let missing = events - self.run.work.ledger.acknowledged;
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
        let shortfall = self.run.work.ledger.shortfall(self.setup.connections as u64);
        malformed(self.run.work.ledger.trouble.malformed).into_iter().chain(shortfall).collect()
    }

    /// Returns the number of its events.
    fn events(&self) -> u64 {
        let workload = self.parameters.workload();
        let left = match self.parameters.is_open_ended() {
            true => {
                self.run.work.ledger.unsent.len(&workload) - self.run.work.ledger.unsent.singles()
            }
            false => 0,
        };
        workload.len_of(self.part.rest(0)) - left
    }

    /// Returns this client's row in the report on all parts; `first` is the report of part 1.
    pub(super) fn row(&self, first: &PartReport) -> ClientRow {
        let workload = self.parameters.workload();
        let elapsed_s = self.run.elapsed.as_secs_f64();
        ClientRow {
            part: self.part.to_string(),
            host: self.environment.host.clone(),
            url: self.setup.url.clone(),
            connections: self.setup.connections,
            threads: self.setup.threads,
            cpus: self.setup.cpus.clone(),
            requests: self.events(),
            batches: workload.batch.map(|batch| self.events().div_ceil(batch)),
            acknowledged: self.run.work.ledger.acknowledged,
            refused: self.run.work.ledger.refused_by_status.values().sum(),
            unknown: self.run.work.ledger.unknown.len(&workload),
            unsent: self.run.work.ledger.not_sent(&workload, self.parameters.is_open_ended()),
            elapsed_s,
            requests_per_s: ratio(self.run.work.ledger.acknowledged as f64, elapsed_s),
            latency_us: Latency::of(&self.run.total.latency),
            started_after_ms: ms_between(first.started.0, self.started.0),
            clock_ahead_of_server: self.clock_ahead_of_server,
            client_busy: self.run.busy,
            client_waiting: self.run.waiting,
            client_limited_by: self.run.limited_by.clone(),
            client_cpus: self.run.cpus.first().copied(),
            interrupted: self.run.interrupted,
            environment: self.environment.clone(),
            command: self.setup.command.clone(),
        }
    }
}
