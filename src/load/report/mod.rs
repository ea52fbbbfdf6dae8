//! The report on a run. JSON is the form of the report itself, and the text, the HTML page, and the percentile table
//! are made from it.

pub(crate) mod chart;
mod client_row;
mod exported;
mod hdr;
pub(crate) mod html;
mod text;
mod unit;

use super::Settings;
use super::figures::CONNECTIONS_OPEN;
use super::flow::Flow;
use super::latency::{Bound, Latencies, Slice, lower_bounds};
use super::numbers::counted;
use super::origin::Origin;
use super::profile::Profile;
use super::run_record::{ClientRun, Work};
use super::thresholds::{Checked, Threshold};
use super::timeline::{self, Second};
use super::verdict::{Evidence, Judgement, Stayed, Verdict};
use super::watch::Watched;
use super::workload::{Totals, UserPrefix, Values, Workload};
use crate::doctor::{CpuUse, Environment};
use crate::document::{Document, Format};
use crate::failure::Failure;
pub(super) use client_row::ClientRow;
pub(super) use exported::of_threshold;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
pub(super) use text::{rate_in_words, threshold_line};
pub(super) use unit::Unit;

/// An open loop must send at least this share of its rate to hold it.
pub(super) const HELD_MIN: f64 = 0.99;

/// The least CPU time of a server that is worth reporting: the kernel counts it in ticks of 10 ms, so one tick more or
/// less out of ten is 10%.
const SERVER_CPU_MIN: Duration = Duration::from_millis(100);

/// The shortest run whose shares of CPU time are worth reporting: the kernel counts them in ticks of 10 ms, so one tick
/// is 1% of a CPU.
const CPU_USE_RUN_MIN: Duration = Duration::from_secs(1);

/// The setup of a run.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Setup {
    /// The URL of the server.
    pub url: String,
    /// The server's engine, if its metrics name it.
    pub engine: Option<String>,
    /// The number of connections.
    pub connections: usize,
    /// The number of client threads.
    pub threads: usize,
    /// The CPUs that the threads were pinned to, in turn, or that all of them could run on.
    pub cpus: String,
    /// Requests in flight per connection.
    pub pipeline: usize,
    /// Requests per second of an open loop, or events per second with batches: a number, or the value of --rate or
    /// --stages if the rate changes; null for a closed loop.
    pub rate: Option<Profile>,
    /// The time during which requests were sent, in seconds; left out if the run had a fixed number of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_s: Option<f64>,
    /// The number of connections over time, if it changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections_over_time: Option<Profile>,
    /// Distinct users.
    pub users: u64,
    /// The values of the events.
    pub values: Values,
    /// Events per batch; left out for one event per request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    /// Whether the server closes each connection after one response.
    pub one_request_per_connection: bool,
    /// Whether the server was reset before the run.
    pub was_reset: bool,
    /// The prefix of the users' ids.
    #[serde(default)]
    pub user_prefix: UserPrefix,
    /// The address that was used, if the server's name has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Whether the threads were pinned to CPUs.
    #[serde(default = "yes")]
    pub pinned: bool,
    /// The time that a connection or a response may take, in seconds.
    #[serde(default)]
    pub timeout_s: f64,
    /// Whether the totals were polled during the run.
    #[serde(default)]
    pub watch: bool,
    /// The flags of the server, secrets excluded; null if they are not known.
    #[serde(default)]
    pub server: Option<Settings>,
    /// The command that repeats the run, secrets excluded. If it is left out, each client has its own command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
}

fn yes() -> bool {
    true
}

impl Setup {
    /// Reports whether the run has as many requests as it could send within its duration.
    pub(super) fn is_open_ended(&self) -> bool {
        self.rate.is_none() && self.duration_s.is_some()
    }

    /// Describes the content of a request.
    pub(super) fn per_request(&self) -> String {
        match self.batch {
            None => "one event".into(),
            Some(batch) => format!("a batch of {}", counted(batch, "event", "events")),
        }
    }
}

fn word(values: Values) -> &'static str {
    match values {
        Values::Integer => "integer",
        Values::Half => "half",
        Values::One => "one",
    }
}

/// Latencies in microseconds; null if none were recorded.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(super) struct Latency {
    /// The mean.
    pub(super) mean: Option<Bound>,
    /// The median.
    pub(super) p50: Option<Bound>,
    /// The 90th percentile.
    pub(super) p90: Option<Bound>,
    /// The 95th percentile.
    pub(super) p95: Option<Bound>,
    /// The 99th percentile.
    pub(super) p99: Option<Bound>,
    /// The 99.9th percentile.
    pub(super) p99_9: Option<Bound>,
    /// The 99.99th percentile.
    pub(super) p99_99: Option<Bound>,
    /// The longest latency.
    pub(super) max: Option<Bound>,
    /// The number of requests that were given up. They are included, with the time that the client waited.
    pub(super) censored: u64,
    /// The keys above whose true values may be greater because of such requests.
    pub(super) lower_bounds: Vec<&'static str>,
}

impl Latency {
    pub(super) fn of(latencies: &Latencies) -> Latency {
        let [p50, p90, p95, p99, p99_9, p99_99] =
            [0.5, 0.9, 0.95, 0.99, 0.999, 0.9999].map(|quantile| latencies.quantile(quantile));
        let (mean, max) = (latencies.mean(), latencies.max());
        let censored = latencies.censored();
        let lower_bounds = Vec::new();
        Latency { mean, p50, p90, p95, p99, p99_9, p99_99, max, censored, lower_bounds }.bounded()
    }

    /// Adds the names of the figures that are lower bounds.
    pub(super) fn bounded(mut self) -> Latency {
        self.lower_bounds = lower_bounds(self.figures());
        self
    }

    /// Returns the figure with this name in JSON; `None` if it is not known.
    pub(super) fn figure(&self, name: &str) -> Option<Bound> {
        self.figures().into_iter().filter(|(own, _)| *own == name).find_map(|(_, bound)| bound)
    }

    /// Returns each figure with its name in JSON.
    pub(super) fn figures(&self) -> [(&'static str, Option<Bound>); 8] {
        [
            ("mean", self.mean),
            ("p50", self.p50),
            ("p90", self.p90),
            ("p95", self.p95),
            ("p99", self.p99),
            ("p99_9", self.p99_9),
            ("p99_99", self.p99_99),
            ("max", self.max),
        ]
    }
}

/// The schedule of an open loop, and how well it was kept.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(super) struct OpenLoop {
    /// The requested events per second: a number, or the value of `--rate` or `--stages` if the rate changes.
    rate: Profile,
    /// The average events per second that were sent; null for a single request, which does not have a rate.
    achieved_rate: Option<f64>,
    /// The due time of the last request divided by its send time. At a fixed rate, this is `achieved_rate / rate`.
    pub(super) held: Option<f64>,
    /// Latency in microseconds from the actual send time.
    service_time_us: Latency,
    /// The lag of requests that had a free connection, in microseconds.
    schedule_lag_us: Latency,
    /// Requests that came due while every connection was busy.
    queued: u64,
    /// Requests that came due while the client did not run, and were late because of that.
    pub(super) due_in_stalls: u64,
}

impl OpenLoop {
    /// Returns the open loop of a run; `None` if the loop was closed. The caller fills in the share that was held.
    fn of(rate: Profile, work: &Work, total: &Slice, workload: &Workload) -> Option<OpenLoop> {
        Some(OpenLoop {
            rate,
            achieved_rate: work.rate(workload),
            held: None,
            service_time_us: Latency::of(total.from_send.as_ref()?),
            schedule_lag_us: Latency::of(total.lag.as_ref()?),
            queued: work.queued,
            due_in_stalls: work.due_in_stalls,
        })
    }
}

/// Attempts to connect that failed for one reason.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct ConnectError {
    /// The kernel's number for the error.
    errno: i32,
    /// The error in words.
    error: String,
    /// The number of attempts that failed with it.
    attempts: u64,
}

impl ConnectError {
    fn of((errno, attempts): (&i32, &u64)) -> ConnectError {
        let error = std::io::Error::from_raw_os_error(*errno).to_string();
        ConnectError { errno: *errno, error, attempts: *attempts }
    }
}

/// The events sent before the measured run.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(super) struct WarmUp {
    /// Events that the warm-up had to send.
    requests: u64,
    /// Events that the server acknowledged.
    acknowledged: u64,
    /// Events that were sent and got no response.
    unknown: u64,
}

/// The source of a server's CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CpuSource {
    /// `cpu.stat` of its cgroup, which is exact and includes processes that have ended.
    Cgroup,
    /// `/proc`, in ticks of 10 ms or in nanoseconds.
    Proc,
}

/// The figures of the server that `challenge` measured.
#[derive(Clone, Debug)]
pub struct ServerUse {
    /// CPU time in user mode during the run.
    pub user: Duration,
    /// CPU time in the kernel during the run.
    pub system: Duration,
    /// The source of both.
    pub cpu_source: CpuSource,
    /// The most memory that the server held, if it could be read.
    pub peak_rss_bytes: Option<u64>,
    /// The CPUs that the server ran on.
    pub cpus: String,
}

/// The cost of the requests on the server. Times are null if the run was too short to measure them.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct ServerCost {
    /// CPU time of the server per request in microseconds.
    server_cpu_us_per_request: Option<f64>,
    /// The part of that time in user mode.
    server_user_us_per_request: Option<f64>,
    /// The part of that time in the kernel.
    server_system_us_per_request: Option<f64>,
    /// The source of the server's CPU time.
    server_cpu_source: CpuSource,
    /// The most memory that the server held in bytes; null if it could not be read.
    server_peak_rss_bytes: Option<u64>,
    /// The CPUs that the server ran on.
    server_cpus: String,
}

/// The report on a run. With batches, `requests` and everything that is counted or measured per request refer to
/// events, and latencies refer to batches.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Report {
    /// Events of the run.
    pub(super) requests: u64,
    /// The number of batches that contain these events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) batches: Option<u64>,
    /// Events that the server acknowledged.
    pub(super) acknowledged: u64,
    /// Events that the server refused.
    refused: u64,
    /// Refused events by the status of the response.
    refused_by_status: BTreeMap<u16, u64>,
    /// Events that were sent and got no response. The server may or may not have counted them.
    unknown: u64,
    /// Events that were not sent.
    unsent: u64,
    /// Batches whose acknowledgement was for a different number of events.
    #[serde(skip_serializing_if = "Option::is_none")]
    misstated: Option<u64>,
    /// Connections that were opened to replace others.
    reconnects: u64,
    /// Attempts to connect that failed.
    connect_failures: u64,
    /// The reasons why attempts to connect failed.
    connect_errors: Vec<ConnectError>,
    /// The number of connections in `setup` that were open at any time.
    connections_open: u64,
    /// Connections that the full server rejected with status 503.
    rejected: u64,
    /// Connections that were given up because of a timeout.
    timeouts: u64,
    /// Connections that the server closed after it had promised to keep them.
    broken_keep_alives: u64,
    /// Responses that were malformed, or that did not belong to a request.
    malformed: u64,
    /// Requests that were sent again because they were pipelined after a request whose response had `Connection: close`.
    resent: u64,
    /// Seconds from the start to the end of the last request.
    elapsed_s: f64,
    /// Acknowledged requests per second, or events per second with batches.
    pub(super) requests_per_s: f64,
    /// Latency in microseconds from the intended send time, which is the actual send time in a closed loop.
    pub(super) latency_us: Latency,
    /// All of these latencies, so that other tools can merge and plot them.
    latency_histogram: Latencies,
    /// The latencies of an open loop from the actual send time.
    #[serde(skip_serializing_if = "Option::is_none")]
    service_time_histogram: Option<Latencies>,
    /// The schedule of an open loop, and how well it was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) open_loop: Option<OpenLoop>,
    /// The totals that the acknowledged events must have led to.
    expected: Totals,
    /// The totals that the server had; null if they could not be read.
    server: Option<Totals>,
    /// Whether the server counted what it acknowledged.
    pub(super) verdict: Verdict,
    /// The faults and open questions, a sentence each.
    pub(super) reasons: Vec<String>,
    /// Remarks that do not affect the verdict.
    remarks: Vec<String>,
    /// The time in milliseconds during which correct totals were read again while nothing was sent; null if they were
    /// wrong, or could no longer be read at its end.
    quiet_ms: Option<f64>,
    /// The time in milliseconds from the last acknowledgement until the totals became correct, if they were wrong at first.
    settled_after_ms: Option<f64>,
    /// The observations of `--watch` during the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    watch: Option<Watched>,
    /// The events sent before the measured run.
    #[serde(skip_serializing_if = "Option::is_none")]
    warm_up: Option<WarmUp>,
    /// Whether the user ended the run before it was over.
    interrupted: bool,
    /// The threshold that ended the run before it was over, because it could no longer pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    aborted_by: Option<String>,
    /// Seconds during which the client did not run, in stretches of a tenth of a second or more.
    client_suspended_s: f64,
    /// Whether the client limited the result.
    pub(super) client_limited: bool,
    /// The reasons why the client limited the result, a sentence each.
    client_limited_by: Vec<String>,
    /// The share of the time that the most delayed client thread waited for a CPU, from 0 to 1.
    client_waiting: f64,
    /// The share of the time that the busiest client thread was busy, from 0 to 1, polling excluded.
    client_busy: f64,
    /// CPU time of all client threads per request in microseconds, polling excluded.
    client_cpu_us_per_request: f64,
    /// CPU time per request in microseconds that client threads of an open loop spent polling until the next request was
    /// due.
    client_poll_us_per_request: f64,
    /// The use of the client's CPUs during the run; null if the run was too short.
    client_cpus: Option<CpuUse>,
    /// Warnings for the reader, a sentence each.
    pub(super) warnings: Vec<String>,
    /// The setup of the run.
    pub(super) setup: Setup,
    /// Each client of a run in parts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    clients: Vec<ClientRow>,
    #[serde(flatten)]
    cost: Option<ServerCost>,
    /// Each second during which a request ended.
    seconds: Vec<Second>,
    /// The time of the run, and its server.
    pub(super) origin: Origin,
    /// The machine of the client, or of part 1.
    pub(super) environment: Environment,
    /// The reason why connections could not be opened, as a sentence.
    #[serde(skip)]
    shortfall: Option<String>,
    #[serde(skip)]
    format: Format,
    #[serde(skip)]
    pub(super) thresholds: Vec<Threshold>,
    #[serde(skip)]
    abort_if: Vec<Threshold>,
    #[serde(skip)]
    pub(super) flow: Option<Flow>,
}

/// The report and the values that are derived from it, as in its JSON.
#[derive(Serialize, JsonSchema)]
struct Json<'a> {
    #[serde(flatten)]
    report: &'a Report,
    /// The conditions of `--fail-if` and `--abort-if`, and whether the run passed each.
    thresholds: Vec<Checked>,
}

/// The results at the end of a run.
pub(super) struct Outcome {
    /// The record of the client, or of all clients together.
    pub(super) run: ClientRun,
    /// The events, and the number of events that were sent before them.
    pub(super) workload: Workload,
    pub(super) warm_up: u64,
    /// The share of its pace that an open loop held; `None` for a single request.
    pub(super) held: Option<f64>,
    pub(super) evidence: Evidence,
    pub(super) settled_after: Option<Duration>,
    pub(super) stayed: Option<Stayed>,
    /// Remarks on how the run was sent.
    pub(super) remarks: Vec<String>,
    pub(super) setup: Setup,
    pub(super) thresholds: Vec<Threshold>,
    pub(super) abort_if: Vec<Threshold>,
    /// The condition that ended the run, if one did.
    pub(super) aborted_by: Option<Threshold>,
    /// Each client, if there was more than one.
    pub(super) clients: Vec<ClientRow>,
    pub(super) origin: Origin,
    pub(super) environment: Environment,
    /// The number of acknowledged events over time, for a search.
    pub(super) flow: Option<Flow>,
}

/// Returns the JSON Schema of a report on one run.
pub(super) fn schema(format: Format) -> Schema {
    format.schema::<Json<'_>>()
}

impl Report {
    /// Notes that its run began with another run.
    pub(super) fn continue_from(&mut self, before: &Report) {
        self.origin.started = before.origin.started;
    }

    /// Adds a remark on the checks.
    pub(super) fn remark(mut self, remark: &str) -> Report {
        self.remarks.push(remark.into());
        self
    }

    pub(super) fn new(outcome: Outcome) -> Report {
        let Outcome { run, workload, evidence, setup, .. } = outcome;
        let ClientRun { work, total, elapsed, .. } = run;
        let ledger = &work.ledger;
        let judgement = evidence.judge();
        let Judgement { verdict, reasons, mut remarks } = judgement.with(
            ledger.contradiction(),
            outcome.settled_after,
            outcome.stayed.as_ref(),
            run.watched.as_ref(),
            work.suspended,
        );
        remarks.extend(outcome.remarks);
        let refused_by_status = ledger.refused_by_status.clone();
        let shortfall = ledger.shortfall(setup.connections as u64);
        let warnings = run.warnings.into_iter().chain(shortfall.clone()).collect();
        let elapsed_s = elapsed.as_secs_f64();
        let answered = ledger.answered();
        let is_open_ended = setup.is_open_ended();
        let requests = ledger.requested(&workload, is_open_ended);
        let us_per_request = |time: Duration| ratio(time.as_secs_f64() * 1e6, answered as f64);
        let earlier = Workload { events: outcome.warm_up, ..workload };
        let has_parts = !outcome.clients.is_empty();
        let rate = setup.rate.clone();
        let open_loop = rate.and_then(|rate| OpenLoop::of(rate, &work, &total, &workload));
        let open_loop = open_loop.map(|open_loop| OpenLoop { held: outcome.held, ..open_loop });
        Report {
            requests,
            batches: workload.batch.map(|batch| requests.div_ceil(batch)),
            acknowledged: ledger.acknowledged,
            refused: refused_by_status.values().sum(),
            refused_by_status,
            unknown: ledger.without_response(&workload, is_open_ended),
            unsent: ledger.not_sent(&workload, is_open_ended),
            misstated: workload.batch.map(|_| ledger.misstated),
            reconnects: ledger.trouble.reconnects,
            connect_failures: ledger.trouble.connect_failures,
            connect_errors: ledger.connect_errors.iter().map(ConnectError::of).collect(),
            connections_open: ledger.open(setup.connections as u64),
            rejected: ledger.trouble.rejected,
            timeouts: ledger.trouble.timeouts,
            broken_keep_alives: ledger.trouble.broken_keep_alives,
            malformed: ledger.trouble.malformed,
            resent: ledger.trouble.resent,
            elapsed_s,
            requests_per_s: ratio(ledger.acknowledged as f64, elapsed_s),
            latency_us: Latency::of(&total.latency),
            latency_histogram: total.latency,
            service_time_histogram: total.from_send,
            open_loop,
            expected: evidence.expected(),
            server: evidence.after.ok(),
            verdict,
            reasons,
            remarks,
            quiet_ms: outcome
                .stayed
                .as_ref()
                .filter(|stayed| stayed.unreadable.is_none())
                .map(|stayed| stayed.quiet.as_secs_f64() * 1e3),
            settled_after_ms: outcome.settled_after.map(|after| after.as_secs_f64() * 1e3),
            watch: run.watched,
            warm_up: (outcome.warm_up > 0).then_some(WarmUp {
                requests: outcome.warm_up,
                acknowledged: run.warm_up.acknowledged,
                unknown: run.warm_up.unknown.len(&earlier),
            }),
            interrupted: run.interrupted,
            aborted_by: outcome.aborted_by.map(|threshold| threshold.to_string()),
            client_suspended_s: work.suspended.as_secs_f64(),
            client_limited: !run.limited_by.is_empty(),
            client_limited_by: run.limited_by,
            client_waiting: run.waiting,
            client_busy: run.busy,
            client_cpu_us_per_request: us_per_request(work.cpu),
            client_poll_us_per_request: us_per_request(work.polling),
            client_cpus: run.cpus.first().copied().filter(|_| elapsed >= CPU_USE_RUN_MIN),
            warnings,
            setup,
            clients: outcome.clients,
            cost: None,
            seconds: timeline::seconds(&run.seconds),
            origin: outcome.origin,
            environment: outcome.environment,
            shortfall,
            format: if has_parts { Format::Merge } else { Format::Load },
            thresholds: outcome.thresholds,
            abort_if: outcome.abort_if,
            flow: outcome.flow,
        }
    }

    /// Makes this the report of a challenge, with the cost of the run on the server if that could be read.
    pub fn add_server(&mut self, server: Option<ServerUse>) {
        self.format = Format::Challenge;
        let Some(server) = server else { return };
        let answered = (self.acknowledged + self.refused) as f64;
        let is_enough = server.user + server.system >= SERVER_CPU_MIN && answered > 0.0;
        let us_per_request =
            |time: Duration| is_enough.then(|| time.as_secs_f64() * 1e6 / answered);
        self.cost = Some(ServerCost {
            server_cpu_us_per_request: us_per_request(server.user + server.system),
            server_user_us_per_request: us_per_request(server.user),
            server_system_us_per_request: us_per_request(server.system),
            server_cpu_source: server.cpu_source,
            server_peak_rss_bytes: server.peak_rss_bytes,
            server_cpus: server.cpus,
        });
    }

    /// Returns the unit of its counts.
    pub(super) fn unit(&self) -> Unit {
        Unit::of(self.setup.batch)
    }

    /// Returns the report as one JSON object.
    pub fn json(&self) -> String {
        let content = Json { report: self, thresholds: self.check_thresholds() };
        Document::new(self.format, content).json()
    }

    /// Checks that all events were acknowledged, the totals are exact, and all thresholds passed. The failure has a
    /// line for each violation.
    pub fn check(&self) -> Result<(), Failure> {
        let failures: Vec<String> =
            self.cases().into_iter().filter_map(|case| case.failure).collect();
        match failures.is_empty() {
            true => Ok(()),
            false => Err(Failure::Wrong(failures.join("\n"))),
        }
    }

    /// Returns the reasons why this is not the requested run, whatever the totals are: malformed responses, and
    /// connections that were never open, unless a threshold has the number of connections that must be open.
    pub(super) fn flaws(&self) -> Vec<String> {
        let is_judged = |threshold: &Threshold| threshold.figure().name == CONNECTIONS_OPEN;
        let mut thresholds = self.thresholds.iter().chain(&self.abort_if);
        let shortfall = self.shortfall.clone().filter(|_| !thresholds.any(is_judged));
        malformed(self.malformed).into_iter().chain(shortfall).collect()
    }

    fn check_thresholds(&self) -> Vec<Checked> {
        let (report, thresholds) = (self.value(), self.thresholds.iter().chain(&self.abort_if));
        thresholds.map(|threshold| threshold.check(threshold.figure().of(&report))).collect()
    }

    /// Returns the report as the JSON value that figures are read from.
    pub(super) fn value(&self) -> serde_json::Value {
        serde_json::to_value(self)
            .unwrap_or_else(|error| unreachable!("its keys are text: {error}"))
    }

    /// Returns the consequence for the result if the client was the limit.
    fn limit(&self) -> Option<&'static str> {
        match (self.client_limited, &self.open_loop) {
            (false, _) => None,
            (true, None) => Some(match self.unit() {
                Unit::Request => "the client was the limit, so requests/s is a lower bound",
                Unit::Event => "the client was the limit, so events/s is a lower bound",
            }),
            (true, Some(_)) => Some("the client was the limit, so latencies are upper bounds"),
        }
    }
}

/// Returns the reason why this number of malformed responses fails a run; `None` if it is zero.
pub(super) fn malformed(count: u64) -> Option<String> {
    let responses = counted(
        count,
        "response was malformed or not asked for",
        "responses were malformed or not asked for",
    );
    (count > 0).then(|| format!("the server does not speak HTTP/1.1: {responses}"))
}

pub(super) fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

#[cfg(test)]
pub(super) mod tests;
