//! What a run found, for people and for programs.

mod html;
mod output;

use super::latency::{Bound, Latencies, Slice};
use super::ledger::Ledger;
use super::thresholds::{Measured, Threshold};
use super::timeline::Second;
use super::verdict::{Evidence, Judgement, Verdict};
use super::watch::Watched;
use super::workload::{Totals, Values};
use crate::doctor::{CpuUse, Environment};
use crate::failure::Failure;
use anstyle::{AnsiColor, Style};
use hdrhistogram::Histogram;
pub use output::{Output, write_to};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// From this share of its time on, a client thread that computes is taken for the limit.
const CLIENT_LIMITED_FROM: f64 = 0.9;

/// From this lag at the 99th percentile on, in microseconds, an open loop's client was too slow.
const LAG_US_MAX: f64 = 1000.0;

/// Colours of a verdict; whoever prints takes them out where it is no terminal.
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Bytes of a MiB.
const MIB: f64 = 1048576.0;

/// How a run was set up.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    /// The server.
    pub url: String,
    /// Connections.
    pub workers: usize,
    /// Client threads.
    pub threads: usize,
    /// The CPUs that they were pinned to, in turn.
    pub cpus: String,
    /// Requests in flight on a connection.
    pub pipeline: usize,
    /// Requests a second of an open loop.
    pub rate: Option<u64>,
    /// Users that events come from.
    pub users: u64,
    /// Values that events carry.
    #[serde(serialize_with = "lower_case")]
    pub values: Values,
    /// Whether each connection took one request only, as the server wants it.
    pub one_request_a_connection: bool,
    /// Whether the server was reset before.
    pub was_reset: bool,
}

fn lower_case<S: Serializer>(values: &Values, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match values {
        Values::Integer => "integer",
        Values::Half => "half",
        Values::One => "one",
    })
}

impl Serialize for Totals {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let figures = serde_json::json!({
            "totalRequests": self.total_requests,
            "uniqueUsers": self.unique_users,
            "sum": self.sum,
            "avg": self.avg,
        });
        figures.serialize(serializer)
    }
}

/// Latencies in microseconds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Latency {
    pub(super) mean: Bound,
    pub(super) p50: Bound,
    pub(super) p90: Bound,
    pub(super) p99: Bound,
    pub(super) p99_9: Bound,
    pub(super) max: Bound,
    /// Requests that were given up; they are in, with the time that they were waited for.
    pub(super) censored: u64,
    /// Which of the above are lower bounds for that reason.
    pub(super) lower_bounds: Vec<&'static str>,
}

impl Latency {
    fn of(latencies: &Latencies) -> Latency {
        let [p50, p90, p99, p99_9] = [0.5, 0.9, 0.99, 0.999].map(|q| latencies.quantile(q));
        let (mean, max) = (latencies.mean(), latencies.max());
        let named = [
            ("mean", mean),
            ("p50", p50),
            ("p90", p90),
            ("p99", p99),
            ("p99_9", p99_9),
            ("max", max),
        ];
        let lower_bounds = named.iter().filter(|(_, bound)| bound.is_at_least);
        let lower_bounds = lower_bounds.map(|(name, _)| *name).collect();
        let censored = latencies.censored();
        Latency { mean, p50, p90, p99, p99_9, max, censored, lower_bounds }
    }

    /// In words.
    pub(super) fn line(&self) -> String {
        format!(
            "p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
            time(self.p50),
            time(self.p90),
            time(self.p99),
            time(self.p99_9),
            time(self.max)
        )
    }
}

/// What an open loop was asked for, and how it was held.
#[derive(Clone, Debug, Serialize)]
pub(super) struct OpenLoop {
    /// Requests a second that were asked for, and that were sent on average.
    pub(super) rate: u64,
    pub(super) rate_held: f64,
    /// From the actual send time.
    pub(super) latency_from_send_us: Latency,
    /// How late the client came to requests that could have been sent.
    pub(super) schedule_lag_us: Latency,
    /// Requests that were due while every connection was taken.
    pub(super) held_up: u64,
}

/// What was sent before the measured part.
#[derive(Clone, Debug, Serialize)]
pub(super) struct WarmUp {
    pub(super) requests: u64,
    pub(super) acknowledged: u64,
    pub(super) unknown: u64,
}

/// What `challenge` knows of its server.
#[derive(Clone, Debug, Serialize)]
pub struct ServerCost {
    /// CPU time of the server process for each request, in microseconds, and its parts.
    pub server_cpu_us_per_request: f64,
    /// In user mode.
    pub server_user_us_per_request: f64,
    /// In the kernel.
    pub server_system_us_per_request: f64,
    /// The most memory that the server held.
    pub server_peak_rss_bytes: u64,
    /// The CPUs that it ran on.
    pub server_cpus: String,
}

/// What a run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub(super) requests: u64,
    pub(super) acknowledged: u64,
    pub(super) refused: u64,
    pub(super) refused_by_status: BTreeMap<u16, u64>,
    pub(super) unknown: u64,
    pub(super) unsent: u64,
    pub(super) reconnects: u64,
    pub(super) connect_failures: u64,
    pub(super) timeouts: u64,
    pub(super) broken_keep_alives: u64,
    pub(super) garbled: u64,
    pub(super) elapsed_s: f64,
    pub(super) requests_per_s: f64,
    /// From the intended send time, which in a closed loop is the actual one.
    pub(super) latency_us: Latency,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) open_loop: Option<OpenLoop>,
    pub(super) expected: Totals,
    pub(super) server: Totals,
    pub(super) verdict: Verdict,
    pub(super) reasons: Vec<String>,
    /// How long after the last acknowledgement the totals became right, if they were not at once.
    pub(super) settled_after_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) watch: Option<Watched>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) warm_up: Option<WarmUp>,
    pub(super) client_limited: bool,
    pub(super) client_busy: f64,
    pub(super) client_cpu_us_per_request: f64,
    /// What the client's CPUs did meanwhile.
    pub(super) client_cpus: Option<CpuUse>,
    pub(super) warnings: Vec<String>,
    pub(super) setup: Setup,
    /// The cost of the server, where `challenge` started it.
    #[serde(flatten)]
    pub cost: Option<ServerCost>,
    pub(super) seconds: Vec<Second>,
    pub(super) environment: Environment,
    #[serde(skip)]
    pub(super) thresholds: Vec<Threshold>,
    #[serde(skip)]
    pub(super) histogram: Histogram<u64>,
    #[serde(skip)]
    pub(super) histogram_from_send: Option<Histogram<u64>>,
}

/// What is known when a run has ended.
pub(super) struct Outcome {
    pub(super) ledger: Ledger,
    pub(super) warm_up_ledger: Ledger,
    pub(super) warm_up: u64,
    pub(super) total: Slice,
    pub(super) seconds: Vec<Second>,
    pub(super) held_up: u64,
    pub(super) elapsed: Duration,
    /// The busiest thread's share of its time, without polling.
    pub(super) client_busy: f64,
    pub(super) client_cpu: Duration,
    pub(super) machine: Option<CpuUse>,
    pub(super) evidence: Evidence,
    pub(super) settled_after: Option<Duration>,
    pub(super) watched: Option<Watched>,
    pub(super) warnings: Vec<String>,
    pub(super) setup: Setup,
    pub(super) requests: u64,
    pub(super) thresholds: Vec<Threshold>,
    pub(super) environment: Environment,
}

impl Report {
    pub(super) fn new(outcome: Outcome) -> Report {
        let Outcome { ledger, total, elapsed, evidence, .. } = outcome;
        let judgement = evidence.judge();
        let Judgement { verdict, reasons } =
            judgement.with(outcome.settled_after, outcome.watched.as_ref());
        let refused_by_status: BTreeMap<u16, u64> =
            ledger.refused.iter().map(|(status, events)| (*status, events.len() as u64)).collect();
        let elapsed_s = elapsed.as_secs_f64();
        let answered = ledger.answered();
        let sent = answered + ledger.unknown.len() as u64;
        let open_loop = outcome.setup.rate.zip(total.from_send.as_ref()).zip(total.lag.as_ref());
        let open_loop = open_loop.map(|((rate, from_send), lag)| OpenLoop {
            rate,
            // The first is due at once: between n requests there are n - 1 steps.
            rate_held: ratio(sent.saturating_sub(1) as f64, elapsed_s),
            latency_from_send_us: Latency::of(from_send),
            schedule_lag_us: Latency::of(lag),
            held_up: outcome.held_up,
        });
        let lags = total.lag.as_ref().is_some_and(|lag| lag.quantile(0.99).micros >= LAG_US_MAX);
        Report {
            requests: outcome.requests,
            acknowledged: ledger.acknowledged,
            refused: refused_by_status.values().sum(),
            refused_by_status,
            unknown: ledger.unknown.len() as u64,
            unsent: ledger.count_unsent(),
            reconnects: ledger.trouble.reconnects,
            connect_failures: ledger.trouble.connect_failures,
            timeouts: ledger.trouble.timeouts,
            broken_keep_alives: ledger.trouble.broken_keep_alives,
            garbled: ledger.trouble.garbled,
            elapsed_s,
            requests_per_s: ratio(answered as f64, elapsed_s),
            latency_us: Latency::of(&total.latency),
            open_loop,
            expected: evidence.expected(),
            server: evidence.after,
            verdict,
            reasons,
            settled_after_ms: outcome.settled_after.map(|after| after.as_secs_f64() * 1e3),
            watch: outcome.watched,
            warm_up: (outcome.warm_up > 0).then_some(WarmUp {
                requests: outcome.warm_up,
                acknowledged: outcome.warm_up_ledger.acknowledged,
                unknown: outcome.warm_up_ledger.unknown.len() as u64,
            }),
            client_limited: outcome.client_busy >= CLIENT_LIMITED_FROM || lags,
            client_busy: outcome.client_busy,
            client_cpu_us_per_request: ratio(
                outcome.client_cpu.as_secs_f64() * 1e6,
                answered as f64,
            ),
            client_cpus: outcome.machine,
            warnings: outcome.warnings,
            setup: outcome.setup,
            cost: None,
            seconds: outcome.seconds,
            environment: outcome.environment,
            thresholds: outcome.thresholds,
            histogram: total.latency.histogram().clone(),
            histogram_from_send: total.from_send.map(|from_send| from_send.histogram().clone()),
        }
    }

    /// How many requests were answered.
    pub fn answered(&self) -> u64 {
        self.acknowledged + self.refused
    }

    /// The report as one JSON object.
    pub fn json(&self) -> String {
        // Numbers and strings only: it has a JSON form.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// The report as a few lines.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, rest: String| {
            // A string can always be written to.
            let _ = writeln!(text, "{name:<10}{rest}");
        };
        let plural = |count: u64| if count == 1 { "" } else { "s" };
        line(
            "requests",
            format!(
                "{} over {} connections in {:.2} s: {} requests/s",
                grouped(self.requests),
                grouped(self.setup.workers as u64),
                self.elapsed_s,
                grouped(self.requests_per_s.round() as u64)
            ),
        );
        line("latency", self.latency_us.line());
        if let Some(open_loop) = &self.open_loop {
            line("from send", open_loop.latency_from_send_us.line());
            let lag = &open_loop.schedule_lag_us;
            line(
                "schedule",
                format!(
                    "{} requests/s asked for, {} held; the client was late by p99 {}, max {}; {} \
                     requests found every connection taken",
                    grouped(open_loop.rate),
                    grouped(open_loop.rate_held.round() as u64),
                    time(lag.p99),
                    time(lag.max),
                    grouped(open_loop.held_up),
                ),
            );
        }
        if let Some(warm_up) = &self.warm_up {
            line(
                "warm-up",
                format!(
                    "{} requests before, {} acknowledged: not measured, not in the totals",
                    grouped(warm_up.requests),
                    grouped(warm_up.acknowledged)
                ),
            );
        }
        if let Some(cost) = &self.cost {
            line(
                "server",
                format!(
                    "{:.2} µs CPU a request (user {:.2}, system {:.2}), peak {:.1} MiB, CPUs {}",
                    cost.server_cpu_us_per_request,
                    cost.server_user_us_per_request,
                    cost.server_system_us_per_request,
                    cost.server_peak_rss_bytes as f64 / MIB,
                    cost.server_cpus
                ),
            );
        }
        let limit = if self.client_limited {
            ": the client was the limit, the result is a lower bound"
        } else {
            ""
        };
        line(
            "client",
            format!(
                "{} thread{} on CPUs {}, the busiest {:.0} % busy, {:.2} µs CPU a request{limit}",
                self.setup.threads,
                plural(self.setup.threads as u64),
                self.setup.cpus,
                self.client_busy * 100.0,
                self.client_cpu_us_per_request
            ),
        );
        for (status, count) in &self.refused_by_status {
            line(
                "refused",
                format!("{} request{} with status {status}", grouped(*count), plural(*count)),
            );
        }
        for (count, what) in [
            (self.unknown, "unknown: sent and not answered"),
            (self.unsent, "not sent: nobody to send to"),
            (self.timeouts, "connections timed out"),
            (self.reconnects, "reconnects"),
            (self.connect_failures, "failures to connect"),
            (self.broken_keep_alives, "connections closed against the server's word"),
            (self.garbled, "answers that were none, or that nobody had asked for"),
        ] {
            if count > 0 {
                line("trouble", format!("{} {what}", grouped(count)));
            }
        }
        if let Some(CpuUse { steal, softirq, .. }) = self.client_cpus {
            let percent = |share: f64| share * 100.0;
            let (steal, softirq) = (percent(steal), percent(softirq));
            line("", format!("softirq {softirq:.1} %, stolen {steal:.1} % of these CPUs' time"));
        }
        for warning in &self.warnings {
            line("warning", warning.clone());
        }
        if let Some(watch) = &self.watch {
            let (answers, unanswered) = (grouped(watch.answers), grouped(watch.unanswered));
            line(
                "watch",
                format!("{answers} answers of /stats during the run, {unanswered} failed"),
            );
        }
        let warnings = self.environment.warnings();
        if warnings > 0 {
            let what = format!("{warnings} warning{}", plural(warnings as u64));
            line("machine", format!("{what} about what results depend on: see ringtally doctor"));
        }
        line("totals", self.server.to_string());
        line(
            "verdict",
            match self.verdict {
                Verdict::Exact => {
                    format!("{GOOD}exact{GOOD:#}: every acknowledged event was counted once")
                }
                Verdict::Wrong => format!("{BAD}wrong{BAD:#}"),
                Verdict::Undecided => format!("{BAD}undecided{BAD:#}"),
            },
        );
        for reason in &self.reasons {
            line("", reason.clone());
        }
        text
    }

    /// Writes the latencies as a percentile table, in milliseconds, in the form that
    /// HdrHistogram's plotter reads.
    pub fn percentile_table(&self) -> String {
        let mut table = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
        let millis = |nanos: u64| nanos as f64 / 1e6;
        let mut count = 0;
        for step in self.histogram.iter_quantiles(5) {
            count += step.count_since_last_iteration();
            let (quantile, value) = (step.quantile_iterated_to(), millis(step.value_iterated_to()));
            // The last line has no odds: nothing is beyond it.
            let odds = match quantile < 1.0 {
                true => format!(" {:14.2}", 1.0 / (1.0 - quantile)),
                false => String::new(),
            };
            let _ = writeln!(table, "{value:12.6} {quantile:14.12} {count:10}{odds}");
        }
        let _ = write!(
            table,
            "#[Mean    = {:12.6}, StdDeviation   = {:12.6}]\n#[Max     = {:12.6}, Total count    = {:12}]\n\
             #[Buckets = {:12}, SubBuckets     = {:12}]\n",
            self.histogram.mean() / 1e6,
            self.histogram.stdev() / 1e6,
            millis(self.histogram.max()),
            self.histogram.len(),
            self.histogram.buckets(),
            2048
        );
        table
    }

    /// Whether the run did what it was asked to: all events acknowledged, all totals right, all
    /// thresholds passed. A line for each that is not so.
    pub fn check(&self) -> Result<(), Failure> {
        let mut failures = Vec::new();
        if self.verdict != Verdict::Exact {
            failures.push(format!("the result is not exact: {}", self.reasons.join("; ")));
        }
        let not_acknowledged = self.requests - self.acknowledged;
        if not_acknowledged > 0 {
            failures.push(format!(
                "{not_acknowledged} of {} requests were not acknowledged",
                self.requests
            ));
        }
        let of_threshold = |gate: &Threshold| gate.failure(self.figure(gate.figure()).as_ref());
        let thresholds = self.thresholds.iter().filter_map(of_threshold);
        failures.extend(thresholds.map(|why| format!("--fail-if {why}")));
        match failures.is_empty() {
            true => Ok(()),
            false => Err(Failure::Wrong(failures.join("\n"))),
        }
    }
}

impl Report {
    /// A figure that a gate names.
    fn figure(&self, name: &str) -> Option<Measured> {
        let latency = &self.latency_us;
        let exactly = |micros: f64| Bound { micros, is_at_least: false };
        Some(match name {
            "verdict" => Measured::Word(self.verdict.word()),
            "client_limited" => Measured::Word(if self.client_limited { "true" } else { "false" }),
            name => Measured::Number(match name {
                "mean" => latency.mean,
                "p50" => latency.p50,
                "p90" => latency.p90,
                "p99" => latency.p99,
                "p99.9" => latency.p99_9,
                "max" => latency.max,
                "rps" => exactly(self.requests_per_s),
                "refused" => exactly(self.refused as f64),
                "unknown" => exactly(self.unknown as f64),
                "unsent" => exactly(self.unsent as f64),
                "reconnects" => exactly(self.reconnects as f64),
                "timeouts" => exactly(self.timeouts as f64),
                "client_cpu_us" => exactly(self.client_cpu_us_per_request),
                "server_cpu_us" => exactly(self.cost.as_ref()?.server_cpu_us_per_request),
                _ => return None,
            }),
        })
    }
}

fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

/// A number with its digits in groups of three.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time with its unit, marked where it is a lower bound.
pub(super) fn time(Bound { micros, is_at_least }: Bound) -> String {
    let sign = if is_at_least { ">= " } else { "" };
    match micros {
        ..1e3 => format!("{sign}{micros:.0} µs"),
        ..1e6 => format!("{sign}{:.2} ms", micros / 1e3),
        _ => format!("{sign}{:.2} s", micros / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }
}
