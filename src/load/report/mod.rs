//! What a run found. JSON is the form of the report itself; the text, the HTML page, and the
//! percentile table are written from it.

pub(crate) mod chart;
mod found;
mod hdr;
pub(crate) mod html;
mod output;
mod text;
mod unit;

use super::Settings;
use super::find::Flow;
use super::latency::{Bound, Latencies, Slice};
use super::ledger::Ledger;
use super::parts::ClientRow;
use super::profile::Profile;
use super::thresholds::{Checked, Figure, Measured, Threshold};
use super::timeline::Second;
use super::verdict::{Evidence, Judgement, Stayed, Verdict};
use super::watch::Watched;
use super::workload::{Totals, UserPrefix, Values, Workload};
use crate::doctor::{CpuUse, Environment};
use crate::failure::Failure;
pub use found::FoundRate;
pub(super) use found::Warnings;
use hdrhistogram::Histogram;
pub(crate) use output::{Destination, put};
pub use output::{Output, write_to};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
pub(super) use text::{counted, rate_in_words, time};
pub(crate) use text::{grouped, rounded, time_in_full};
pub(super) use unit::Unit;

/// The figure of how many connections were open.
const CONNECTIONS_OPEN: &str = "connections_open";

/// An open loop that sends less than this share of its rate did not hold it.
const HELD_MIN: f64 = 0.99;

/// The least CPU time of a server that is worth stating: the kernel counts it in ticks of 10 ms, so
/// that of ten ticks one more or less is 10 %.
const SERVER_CPU_MIN: Duration = Duration::from_millis(100);

/// The shortest run whose shares of CPU time are worth stating: the kernel counts them in ticks of
/// 10 ms, so that one tick is 1 % of a CPU.
const CPU_USE_RUN_MIN: Duration = Duration::from_secs(1);

/// How a run was set up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    /// The server.
    pub url: String,
    /// The server's engine, if it says so in its metrics.
    pub engine: Option<String>,
    /// Connections.
    pub workers: usize,
    /// Client threads.
    pub threads: usize,
    /// The CPUs that the threads were pinned to, in turn, or that all of them could run on.
    pub cpus: String,
    /// Requests in flight per connection.
    pub pipeline: usize,
    /// Requests per second of an open loop, with batches events per second: a number, or the value of --rate or
    /// --stages if they change; `None` is a closed loop.
    pub rate: Option<Profile>,
    /// The time in which requests were sent, in seconds; `None` if the run had a fixed number of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_s: Option<f64>,
    /// The number of connections over time, if it changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections_over_time: Option<Profile>,
    /// Distinct users.
    pub users: u64,
    /// The values of the events.
    pub values: Values,
    /// Events per batch; `None` is one event per request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    /// Whether the server closes each connection after one response.
    pub one_request_per_connection: bool,
    /// Whether the server was reset before the run.
    pub was_reset: bool,
    /// What the ids of users begin with.
    #[serde(default)]
    pub user_prefix: UserPrefix,
    /// The address that was used, if the server's name has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Whether the threads were pinned to CPUs.
    #[serde(default = "yes")]
    pub pinned: bool,
    /// How long a connection or a response may take, in seconds.
    #[serde(default)]
    pub timeout_s: f64,
    /// Whether the totals were polled during the run.
    #[serde(default)]
    pub watch: bool,
    /// The flags of the server, secrets excluded; null if they are not known.
    #[serde(default)]
    pub server: Option<Settings>,
    /// The command that makes the run again, secrets excluded. Without one, that of each client does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
}

fn yes() -> bool {
    true
}

impl Setup {
    /// Reports whether the run has as many requests as it sent in its time.
    pub(super) fn is_open_ended(&self) -> bool {
        self.rate.is_none() && self.duration_s.is_some()
    }

    /// What a request has.
    fn per_request(&self) -> String {
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

/// Latencies in microseconds; null if there are none.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Latency {
    mean: Option<Bound>,
    p50: Option<Bound>,
    p90: Option<Bound>,
    p95: Option<Bound>,
    p99: Option<Bound>,
    p99_9: Option<Bound>,
    p99_99: Option<Bound>,
    max: Option<Bound>,
    /// Requests that were given up. They are included, with the time that the client waited.
    censored: u64,
    /// The figures above that are lower bounds for this reason.
    lower_bounds: Vec<&'static str>,
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

    /// With the names of the figures that are lower bounds.
    fn bounded(mut self) -> Latency {
        let is_bound =
            |(_, figure): &(_, Option<Bound>)| figure.is_some_and(|bound| bound.is_at_least);
        let figures = self.figures().into_iter();
        self.lower_bounds = figures.filter(is_bound).map(|(name, _)| name).collect();
        self
    }

    /// Each figure with its name in JSON.
    fn figures(&self) -> [(&'static str, Option<Bound>); 8] {
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

/// What an open loop was asked for, and what it did.
#[derive(Clone, Debug, Serialize)]
pub(super) struct OpenLoop {
    /// Requests per second that were asked for: a number, or the value of --rate or --stages if they change.
    rate: Profile,
    /// Requests per second that were sent on average; null for a single request, which has no rate.
    rate_held: Option<f64>,
    /// The due time of the last request divided by the time at which it was sent: at a fixed rate, `rate_held / rate`.
    held: Option<f64>,
    /// From the actual send time.
    latency_from_send_us: Latency,
    /// How late the client sent requests for which a connection was free.
    schedule_lag_us: Latency,
    /// Requests that came due while every connection was busy.
    held_up: u64,
    /// Requests that came due while the client did not run. They are late because of it.
    due_in_stalls: u64,
}

/// Attempts to connect that failed for one reason.
#[derive(Clone, Debug, Serialize)]
struct ConnectError {
    errno: i32,
    error: String,
    attempts: u64,
}

impl ConnectError {
    fn of((errno, attempts): (&i32, &u64)) -> ConnectError {
        let error = std::io::Error::from_raw_os_error(*errno).to_string();
        ConnectError { errno: *errno, error, attempts: *attempts }
    }
}

/// What was sent before the measured run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct WarmUp {
    requests: u64,
    acknowledged: u64,
    unknown: u64,
}

/// What `challenge` measured of its server.
#[derive(Clone, Debug)]
pub struct ServerUse {
    /// CPU time in user mode during the run, in ticks of 10 ms.
    pub user: Duration,
    /// CPU time in the kernel during the run, in ticks of 10 ms.
    pub system: Duration,
    /// The most memory that the server held, if it could be read.
    pub peak_rss_bytes: Option<u64>,
    /// The CPUs that the server ran on.
    pub cpus: String,
}

/// What the requests cost the server. Times are null if the run was too short to tell.
#[derive(Clone, Debug, Serialize)]
struct ServerCost {
    server_cpu_us_per_request: Option<f64>,
    server_user_us_per_request: Option<f64>,
    server_system_us_per_request: Option<f64>,
    server_peak_rss_bytes: Option<u64>,
    server_cpus: String,
}

/// What a run found. With batches, `requests` and all that is counted or measured per request are events;
/// latencies are those of batches.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    requests: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    batches: Option<u64>,
    acknowledged: u64,
    refused: u64,
    refused_by_status: BTreeMap<u16, u64>,
    unknown: u64,
    unsent: u64,
    /// Batches whose acknowledgement was of another number of events.
    #[serde(skip_serializing_if = "Option::is_none")]
    misstated: Option<u64>,
    reconnects: u64,
    connect_failures: u64,
    /// Why attempts to connect failed.
    connect_errors: Vec<ConnectError>,
    /// Connections that were open at any time, of those in `setup`.
    connections_open: u64,
    /// Connections that the server had no room for.
    turned_away: u64,
    timeouts: u64,
    broken_keep_alives: u64,
    garbled: u64,
    /// Requests sent again, because they were pipelined behind a response with `Connection: close`.
    resent: u64,
    elapsed_s: f64,
    /// Of those that were acknowledged.
    requests_per_s: f64,
    /// From the intended send time, which in a closed loop is the actual one.
    latency_us: Latency,
    #[serde(skip_serializing_if = "Option::is_none")]
    open_loop: Option<OpenLoop>,
    expected: Totals,
    /// Null if the totals could not be read.
    server: Option<Totals>,
    verdict: Verdict,
    reasons: Vec<String>,
    /// Remarks that do not affect the verdict.
    remarks: Vec<String>,
    /// The time for which totals that were right were read again, while nothing was sent; null if they were
    /// wrong, or could not be read any more at its end.
    quiet_ms: Option<f64>,
    /// How long after the last acknowledgement the totals became right, if they were wrong at first.
    settled_after_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    watch: Option<Watched>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warm_up: Option<WarmUp>,
    /// The user ended the run before every event was sent.
    interrupted: bool,
    /// The threshold that ended the run before every event was sent, because it could no longer pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    aborted_by: Option<String>,
    /// How long the client did not run at all, in stretches of a tenth of a second or more.
    client_suspended_s: f64,
    client_limited: bool,
    /// Why the client limited the result, a sentence each.
    client_limited_by: Vec<String>,
    /// The greatest share of the time that a client thread waited for a CPU.
    client_waiting: f64,
    /// The share of the time that the busiest client thread was busy, polling excluded.
    client_busy: f64,
    /// CPU time of all client threads per request, polling excluded.
    client_cpu_us_per_request: f64,
    /// CPU time per request that client threads of an open loop spent polling until the next request
    /// was due.
    client_poll_us_per_request: f64,
    /// What the client's CPUs did during the run; null if it was too short to tell.
    client_cpus: Option<CpuUse>,
    warnings: Vec<String>,
    setup: Setup,
    /// Each client, if there was more than one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    clients: Vec<ClientRow>,
    #[serde(flatten)]
    cost: Option<ServerCost>,
    seconds: Vec<Second>,
    environment: Environment,
    /// What kept connections from being opened, as a sentence.
    #[serde(skip)]
    shortfall: Option<String>,
    #[serde(skip)]
    thresholds: Vec<Threshold>,
    #[serde(skip)]
    abort_if: Vec<Threshold>,
    /// From this latency on, the histogram has lower bounds.
    #[serde(skip)]
    bounds_from_ns: Option<u64>,
    #[serde(skip)]
    histogram: Histogram<u64>,
    #[serde(skip)]
    histogram_from_send: Option<Histogram<u64>>,
    #[serde(skip)]
    flow: Option<Flow>,
}

/// The report with what is derived from it, as JSON has it.
#[derive(Serialize)]
struct Json<'a> {
    #[serde(flatten)]
    report: &'a Report,
    thresholds: Vec<Checked>,
}

/// What is known when a run has ended.
pub(super) struct Outcome {
    pub(super) ledger: Ledger,
    pub(super) warm_up_ledger: Ledger,
    pub(super) warm_up: u64,
    pub(super) total: Slice,
    pub(super) seconds: Vec<Second>,
    pub(super) held_up: u64,
    pub(super) due_in_stalls: u64,
    pub(super) elapsed: Duration,
    /// The share of the time that the busiest thread was busy, polling excluded.
    pub(super) client_busy: f64,
    /// CPU time of all threads, polling excluded.
    pub(super) client_cpu: Duration,
    /// CPU time that all threads spent polling.
    pub(super) client_poll: Duration,
    /// The greatest share of the time that a thread waited for a CPU.
    pub(super) client_waiting: f64,
    /// Why the client limited the result.
    pub(super) client_limits: Vec<String>,
    /// Requests per second that an open loop sent; `None` for a single request, which has no rate.
    pub(super) rate_held: Option<f64>,
    /// The share of its pace that an open loop held; `None` for a single request.
    pub(super) held: Option<f64>,
    pub(super) is_interrupted: bool,
    /// How long the client did not run at all.
    pub(super) suspended: Duration,
    pub(super) machine: Option<CpuUse>,
    pub(super) evidence: Evidence,
    pub(super) settled_after: Option<Duration>,
    pub(super) stayed: Option<Stayed>,
    /// Remarks on how the run was sent.
    pub(super) remarks: Vec<String>,
    pub(super) watched: Option<Watched>,
    pub(super) warnings: Vec<String>,
    pub(super) setup: Setup,
    pub(super) workload: Workload,
    pub(super) thresholds: Vec<Threshold>,
    pub(super) abort_if: Vec<Threshold>,
    /// The one of these that ended the run, if one did.
    pub(super) aborted_by: Option<Threshold>,
    /// Each client, if there was more than one.
    pub(super) clients: Vec<ClientRow>,
    pub(super) environment: Environment,
    /// The number of acknowledged events over time, for a search.
    pub(super) flow: Option<Flow>,
}

impl Report {
    /// The report with a remark on what was checked.
    pub(super) fn remark(mut self, remark: &str) -> Report {
        self.remarks.push(remark.into());
        self
    }

    pub(super) fn new(outcome: Outcome) -> Report {
        let Outcome { ledger, total, elapsed, evidence, .. } = outcome;
        let workload = outcome.workload;
        let judgement = evidence.judge();
        let Judgement { verdict, reasons, mut remarks } = judgement.with(
            ledger.contradiction(),
            outcome.settled_after,
            outcome.stayed.as_ref(),
            outcome.watched.as_ref(),
            outcome.suspended,
        );
        remarks.extend(outcome.remarks);
        let refused_by_status = ledger.refused_by_status.clone();
        let shortfall = ledger.shortfall(outcome.setup.workers as u64);
        let warnings = outcome.warnings.into_iter().chain(shortfall.clone()).collect();
        let elapsed_s = elapsed.as_secs_f64();
        let answered = ledger.answered();
        let is_open_ended = outcome.setup.is_open_ended();
        let requests = ledger.requested(&workload, is_open_ended);
        let rate = outcome.setup.rate.clone();
        let open_loop = rate.zip(total.from_send.as_ref()).zip(total.lag.as_ref());
        let open_loop = open_loop.map(|((rate, from_send), lag)| OpenLoop {
            rate,
            rate_held: outcome.rate_held,
            held: outcome.held,
            latency_from_send_us: Latency::of(from_send),
            schedule_lag_us: Latency::of(lag),
            held_up: outcome.held_up,
            due_in_stalls: outcome.due_in_stalls,
        });
        let us_per_request = |time: Duration| ratio(time.as_secs_f64() * 1e6, answered as f64);
        Report {
            requests,
            batches: workload.batch.map(|batch| requests.div_ceil(batch)),
            acknowledged: ledger.acknowledged,
            refused: refused_by_status.values().sum(),
            refused_by_status,
            unknown: ledger.unknown.len(&workload),
            unsent: ledger.not_sent(&workload, is_open_ended),
            misstated: workload.batch.map(|_| ledger.misstated),
            reconnects: ledger.trouble.reconnects,
            connect_failures: ledger.trouble.connect_failures,
            connect_errors: ledger.connect_errors.iter().map(ConnectError::of).collect(),
            connections_open: ledger.open(outcome.setup.workers as u64),
            turned_away: ledger.trouble.turned_away,
            timeouts: ledger.trouble.timeouts,
            broken_keep_alives: ledger.trouble.broken_keep_alives,
            garbled: ledger.trouble.garbled,
            resent: ledger.trouble.resent,
            elapsed_s,
            requests_per_s: ratio(ledger.acknowledged as f64, elapsed_s),
            latency_us: Latency::of(&total.latency),
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
            watch: outcome.watched,
            warm_up: (outcome.warm_up > 0).then_some(WarmUp {
                requests: outcome.warm_up,
                acknowledged: outcome.warm_up_ledger.acknowledged,
                unknown: outcome
                    .warm_up_ledger
                    .unknown
                    .len(&Workload { events: outcome.warm_up, ..workload }),
            }),
            interrupted: outcome.is_interrupted,
            aborted_by: outcome.aborted_by.map(|threshold| threshold.to_string()),
            client_suspended_s: outcome.suspended.as_secs_f64(),
            client_limited: !outcome.client_limits.is_empty(),
            client_limited_by: outcome.client_limits,
            client_waiting: outcome.client_waiting,
            client_busy: outcome.client_busy,
            client_cpu_us_per_request: us_per_request(outcome.client_cpu),
            client_poll_us_per_request: us_per_request(outcome.client_poll),
            client_cpus: outcome.machine.filter(|_| elapsed >= CPU_USE_RUN_MIN),
            warnings,
            setup: outcome.setup,
            clients: outcome.clients,
            cost: None,
            seconds: outcome.seconds,
            environment: outcome.environment,
            shortfall,
            thresholds: outcome.thresholds,
            abort_if: outcome.abort_if,
            bounds_from_ns: total.latency.bounds_from_ns(),
            histogram: total.latency.histogram().clone(),
            histogram_from_send: total.from_send.map(|from_send| from_send.histogram().clone()),
            flow: outcome.flow,
        }
    }

    /// Adds what the run cost the server.
    pub fn add_server(&mut self, server: ServerUse) {
        let answered = (self.acknowledged + self.refused) as f64;
        let is_enough = server.user + server.system >= SERVER_CPU_MIN && answered > 0.0;
        let us_per_request =
            |time: Duration| is_enough.then(|| time.as_secs_f64() * 1e6 / answered);
        self.cost = Some(ServerCost {
            server_cpu_us_per_request: us_per_request(server.user + server.system),
            server_user_us_per_request: us_per_request(server.user),
            server_system_us_per_request: us_per_request(server.system),
            server_peak_rss_bytes: server.peak_rss_bytes,
            server_cpus: server.cpus,
        });
    }

    /// What it counts.
    pub(super) fn unit(&self) -> Unit {
        Unit::of(self.setup.batch)
    }

    /// The report as one JSON object.
    pub fn json(&self) -> Result<String, Failure> {
        let json = Json { report: self, thresholds: self.check_thresholds() };
        serde_json::to_string_pretty(&json)
            .map_err(|error| Failure::Wrong(format!("the report cannot be made JSON: {error}")))
    }

    /// Whether all events were acknowledged, the totals are exact, and all thresholds passed. The
    /// failure has a line for each that is not so.
    pub fn check(&self) -> Result<(), Failure> {
        let mut failures = Vec::new();
        if self.interrupted {
            failures.push("the run was interrupted".to_owned());
        }
        if let Some(threshold) = &self.aborted_by {
            failures.push(format!(
                "the run was ended after {:.1} s: --abort-if {threshold} could no longer pass",
                self.elapsed_s
            ));
        }
        if self.verdict != Verdict::Exact {
            failures.push(format!("the result is not exact: {}", self.reasons.join("; ")));
        }
        let not_acknowledged = self.requests - self.acknowledged;
        if not_acknowledged > 0 {
            let verb = if not_acknowledged == 1 { "was" } else { "were" };
            failures.push(format!(
                "{} of {} {verb} not acknowledged",
                grouped(not_acknowledged),
                self.unit().count(self.requests)
            ));
        }
        failures.extend(self.flaws());
        for (index, checked) in self.check_thresholds().into_iter().enumerate() {
            let flag = if index < self.thresholds.len() { "--fail-if" } else { "--abort-if" };
            let Checked { fail_if, sentence, passed, .. } = checked;
            failures.extend((!passed).then(|| format!("{flag} {fail_if}: {sentence}")));
        }
        match failures.is_empty() {
            true => Ok(()),
            false => Err(Failure::Wrong(failures.join("\n"))),
        }
    }

    /// Returns the reasons why it is not the requested run, whatever the totals are: malformed responses, and
    /// connections that were never open unless a threshold has the number of those that must be.
    pub(super) fn flaws(&self) -> Vec<String> {
        let is_judged = |threshold: &Threshold| threshold.figure().name == CONNECTIONS_OPEN;
        let shortfall = self.shortfall.clone().filter(|_| !self.thresholds.iter().any(is_judged));
        malformed(self.garbled).into_iter().chain(shortfall).collect()
    }

    fn check_thresholds(&self) -> Vec<Checked> {
        let thresholds = self.thresholds.iter().chain(&self.abort_if);
        thresholds.map(|threshold| threshold.check(self.measured(threshold.figure()))).collect()
    }

    /// What a figure was in this run.
    fn measured(&self, figure: Figure) -> Measured {
        let exactly = |number: f64| Measured::Number(Bound::exactly(number));
        match figure.name {
            "verdict" => Measured::Word(self.verdict.word()),
            "client_limited" => Measured::Word(if self.client_limited { "true" } else { "false" }),
            "rps" | "acked_per_s" => exactly(self.requests_per_s),
            "rate" => Measured::Unknown("only --find-rate finds one"),
            "held" => match &self.open_loop {
                None => Measured::Unknown("a closed loop has no rate to hold, pass --rate"),
                Some(OpenLoop { held: None, .. }) => {
                    Measured::Unknown("the run was too short to tell")
                }
                Some(OpenLoop { held: Some(held), .. }) => exactly(*held),
            },
            "refused" => exactly(self.refused as f64),
            "unknown" => exactly(self.unknown as f64),
            "unsent" => exactly(self.unsent as f64),
            "reconnects" => exactly(self.reconnects as f64),
            "timeouts" => exactly(self.timeouts as f64),
            CONNECTIONS_OPEN => exactly(self.connections_open as f64),
            "connect_failures" => exactly(self.connect_failures as f64),
            "rejected" => exactly(self.turned_away as f64),
            "malformed" => exactly(self.garbled as f64),
            "client_cpu_us" => exactly(self.client_cpu_us_per_request),
            "client_poll_us" => exactly(self.client_poll_us_per_request),
            "server_cpu_us" => match &self.cost {
                None => Measured::Unknown("only the challenge command measures its server"),
                Some(ServerCost { server_cpu_us_per_request: None, .. }) => {
                    Measured::Unknown("the run was too short to tell")
                }
                Some(ServerCost { server_cpu_us_per_request: Some(us), .. }) => exactly(*us),
            },
            // In JSON a name has no dot.
            latency => {
                let name = latency.replace('.', "_");
                let found = self.latency_us.figures().into_iter().find(|(own, _)| *own == name);
                let (_, bound) =
                    found.unwrap_or_else(|| unreachable!("{latency} is a figure of the report"));
                bound.map_or(Measured::Unknown("no request ended"), Measured::Number)
            }
        }
    }

    /// What it means for the result that the client was the limit, if it was.
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

/// Returns the reason why a number of malformed responses fails a run; `None` if it is zero.
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
pub(super) mod tests {
    use super::super::thresholds::FIGURES;
    use super::super::timeline::Heat;
    use super::super::verdict::Users;
    use super::*;

    pub(in crate::load) fn setup() -> Setup {
        Setup {
            url: "http://127.0.0.1:8000".into(),
            engine: Some("ring".into()),
            workers: 10,
            threads: 1,
            cpus: "1".into(),
            pipeline: 1,
            rate: None,
            duration_s: None,
            connections_over_time: None,
            users: 100,
            values: Values::Integer,
            batch: None,
            one_request_per_connection: false,
            was_reset: true,
            user_prefix: UserPrefix::default(),
            address: None,
            pinned: true,
            timeout_s: 10.0,
            watch: false,
            server: None,
            command: vec!["ringtally".into(), "load".into()],
        }
    }

    pub(in crate::load) fn environment() -> Environment {
        Environment {
            version: "1".into(),
            date: "2026-01-01T00:00:00Z".into(),
            host: "host".into(),
            kernel: "6.18".into(),
            cpu_model: "<model>".into(),
            cpus_online: "0-1".into(),
            cpus_allowed: "0-1".into(),
            memory_bytes: Some(1 << 30),
            checks: Vec::new(),
        }
    }

    /// A run of 1,000 requests in two seconds, each of 1 ms, with every event acknowledged.
    pub(super) fn outcome() -> Outcome {
        let workload = Workload { events: 1000, users: 100, values: Values::Integer, batch: None };
        let share = workload.share_without(&[]);
        let mut total = Slice::new(0, false);
        (0..1000).for_each(|_| total.latency.record(1_000_000));
        let second = |second| Second {
            second,
            requests: 500,
            p50_us: total.latency.quantile(0.5),
            p99_us: total.latency.quantile(0.99),
            max_us: total.latency.max(),
            heat: Heat::of(&total.latency),
        };
        Outcome {
            ledger: Ledger { acknowledged: 1000, ..Ledger::default() },
            warm_up_ledger: Ledger::default(),
            warm_up: 0,
            seconds: vec![second(0), second(1)],
            total,
            held_up: 0,
            due_in_stalls: 0,
            elapsed: Duration::from_secs(2),
            client_busy: 0.5,
            client_cpu: Duration::from_millis(3),
            client_poll: Duration::ZERO,
            client_waiting: 0.0,
            client_limits: Vec::new(),
            rate_held: None,
            held: None,
            is_interrupted: false,
            suspended: Duration::ZERO,
            machine: Some(CpuUse { steal: 0.0, softirq: 0.25, busy: 0.5 }),
            evidence: Evidence {
                users_if_known: None,
                before: Totals::ZERO,
                acknowledged: share,
                possible: share,
                users: Users { least: 100, most: 100, strangers: 0 },
                after: Ok(share.totals(100)),
            },
            settled_after: None,
            stayed: None,
            remarks: Vec::new(),
            watched: None,
            warnings: Vec::new(),
            setup: setup(),
            workload,
            thresholds: Vec::new(),
            abort_if: Vec::new(),
            aborted_by: None,
            clients: Vec::new(),
            environment: environment(),
            flow: None,
        }
    }

    /// The same in an open loop that was asked for 500 requests per second.
    pub(super) fn open_loop(lag_ns: u64) -> Outcome {
        let mut outcome = outcome();
        outcome.setup.rate = Some("500".parse().unwrap());
        outcome.rate_held = Some(499.5);
        outcome.held = Some(0.999);
        let mut total = Slice::new(0, true);
        for _ in 0..1000 {
            total.latency.record(1_000_000);
            total.from_send.as_mut().unwrap().record(900_000);
            total.lag.as_mut().unwrap().record(lag_ns);
        }
        outcome.total = total;
        outcome
    }

    fn json(report: &Report) -> serde_json::Value {
        serde_json::from_str(&report.json().unwrap()).unwrap()
    }

    fn server_use(cpu: Duration) -> ServerUse {
        let (user, system) = (cpu / 4, cpu - cpu / 4);
        ServerUse { user, system, peak_rss_bytes: Some(1 << 20), cpus: "0".into() }
    }

    #[test]
    fn json_has_each_threshold_with_its_value_and_whether_it_passed() {
        let mut outcome = open_loop(1000);
        outcome.thresholds = ["p99>0.5ms", "p99.99>5ms", "held<0.99", "verdict!=exact"]
            .map(|threshold| threshold.parse().unwrap())
            .to_vec();
        let report = Report::new(outcome);
        let thresholds = json(&report)["thresholds"].clone();
        let found: Vec<_> = thresholds.as_array().unwrap().iter().collect();
        assert_eq!(
            *found[0],
            serde_json::json!({"fail_if": "p99>0.5ms", "figure": "p99", "value": 1000.447,
                "is_lower_bound": false, "passed": false})
        );
        assert_eq!((&found[1]["figure"], &found[1]["passed"]), (&"p99.99".into(), &true.into()));
        assert_eq!((&found[2]["value"], &found[2]["passed"]), (&0.999.into(), &true.into()));
        assert_eq!((&found[3]["value"], &found[3]["passed"]), (&"exact".into(), &true.into()));
        let failure = report.check().unwrap_err().to_string();
        assert_eq!(failure, "--fail-if p99>0.5ms: p99 is 1.000447 ms");
    }

    #[test]
    fn every_figure_is_measured() {
        let mut report = Report::new(open_loop(1000));
        report.add_server(server_use(Duration::from_millis(200)));
        for figure in FIGURES.into_iter().filter(|figure| figure.name != "rate") {
            let measured = report.measured(figure);
            assert!(!matches!(measured, Measured::Unknown(_)), "{figure:?}: {measured:?}");
        }
    }

    #[test]
    fn a_figure_that_a_run_does_not_have_is_unknown_and_fails() {
        for (threshold, says) in [
            ("held<0.99", "pass --rate"),
            ("server_cpu_us>5", "only the challenge"),
            ("p95>1s", "no request ended"),
        ] {
            let mut outcome = outcome();
            outcome.total = Slice::new(0, false);
            outcome.thresholds = vec![threshold.parse().unwrap()];
            let failure = Report::new(outcome).check().unwrap_err().to_string();
            assert!(failure.contains(says), "{failure}");
        }
    }

    #[test]
    fn a_run_without_responses_has_no_latencies() {
        let mut outcome = outcome();
        outcome.total = Slice::new(0, false);
        let latency = json(&Report::new(outcome))["latency_us"].clone();
        for figure in ["mean", "p50", "p90", "p95", "p99", "p99_9", "p99_99", "max"] {
            assert_eq!(latency[figure], serde_json::Value::Null, "{figure}");
        }
    }

    #[test]
    fn what_ticks_cannot_tell_is_not_told() {
        for (ms, is_told) in [(99, false), (100, true), (101, true)] {
            let mut report = Report::new(outcome());
            report.add_server(server_use(Duration::from_millis(ms)));
            let us = &json(&report)["server_cpu_us_per_request"];
            assert_eq!(us.as_f64(), is_told.then_some(ms as f64), "{ms} ms");
        }
        for (ms, is_told) in [(999, false), (1000, true), (1001, true)] {
            let elapsed = Duration::from_millis(ms);
            let report = Report::new(Outcome { elapsed, ..outcome() });
            assert_eq!(json(&report)["client_cpus"].is_object(), is_told, "{ms} ms");
        }
    }

    #[test]
    fn a_client_that_is_the_limit_bounds_what_it_limits() {
        let client_limits = vec!["the client's CPUs were 99 % busy".to_owned()];
        let limits = || client_limits.clone();
        let closed = Report::new(Outcome { client_limits: limits(), ..outcome() });
        assert!(closed.limit().unwrap().contains("requests/s is a lower bound"));
        let late = Report::new(Outcome { client_limits: limits(), ..open_loop(2_000_000) });
        assert!(late.client_limited);
        assert!(late.summary().contains("99 % busy"));
        assert!(late.limit().unwrap().contains("latencies are upper bounds"));
        assert_eq!(Report::new(open_loop(1000)).limit(), None);
        assert_eq!(Report::new(outcome()).limit(), None);
    }

    #[test]
    fn an_interrupted_run_fails_whatever_it_found() {
        let report = Report::new(Outcome { is_interrupted: true, ..outcome() });
        assert_eq!(report.check().unwrap_err().to_string(), "the run was interrupted");
        assert_eq!(json(&report)["interrupted"], true);
    }

    #[test]
    fn totals_that_could_not_be_read_are_null() {
        let mut outcome = outcome();
        outcome.evidence.after = Err("the server is gone".into());
        let report = Report::new(outcome);
        assert_eq!(json(&report)["server"], serde_json::Value::Null);
        assert!(report.summary().contains("totals    unknown"));
        assert!(report.check().unwrap_err().to_string().contains("the server is gone"));
    }

    #[test]
    fn totals_that_became_unreadable_were_right_for_no_known_time() {
        for (unreadable, quiet_ms) in [(None, Some(500.0)), (Some("it is gone".to_owned()), None)] {
            let quiet = Duration::from_millis(500);
            let stayed = Some(Stayed { quiet, changed_after: None, unreadable });
            let report = Report::new(Outcome { stayed, ..outcome() });
            assert_eq!(json(&report)["quiet_ms"].as_f64(), quiet_ms);
            assert_eq!(report.summary().contains("stayed so for"), quiet_ms.is_some());
        }
    }

    /// A threshold on failed attempts does not have the number of connections that must be open.
    #[test]
    fn missing_connections_fail_a_run_unless_a_threshold_names_them() {
        for (thresholds, fails) in [
            (&[][..], true),
            (&["connect_failures>9"], true),
            (&["connections_open<10"], true),
            (&["connections_open<6"], false),
        ] {
            let mut outcome = outcome();
            outcome.ledger.trouble.never_open = 4;
            outcome.thresholds = thresholds.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(Report::new(outcome).check().is_err(), fails, "{thresholds:?}");
        }
    }

    #[test]
    fn cpu_time_is_told_apart_from_polling() {
        let report =
            Report::new(Outcome { client_poll: Duration::from_secs(1), ..open_loop(1000) });
        let json = json(&report);
        assert_eq!(json["client_cpu_us_per_request"], 3.0);
        assert_eq!(json["client_poll_us_per_request"], 1000.0);
    }
}
