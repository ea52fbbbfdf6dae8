//! What a run found, for people and for programs.

use super::verdict::{Evidence, Judgement, Verdict};
use super::worker::Findings;
use super::workload::{Figures, Values};
use crate::failure::Failure;
use hdrhistogram::Histogram;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// From this share of its time on, a client thread that computes is taken for the limit.
const CLIENT_LIMITED_FROM: f64 = 0.9;

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
    /// Requests in flight on a connection.
    pub pipeline: usize,
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
    })
}

impl Serialize for Figures {
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
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Latency {
        let micros = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Latency {
            mean: histogram.mean() / 1e3,
            p50: micros(0.5),
            p90: micros(0.9),
            p99: micros(0.99),
            p99_9: micros(0.999),
            max: histogram.max() as f64 / 1e3,
        }
    }
}

/// Where a run was made.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Environment {
    version: &'static str,
    date: String,
    kernel: String,
    cpu_model: String,
    cpus_allowed: String,
}

impl Environment {
    /// This machine, now.
    pub(super) fn here() -> Environment {
        let cpu_info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model =
            cpu_info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Environment {
            version: env!("CARGO_PKG_VERSION"),
            date: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpu_model: model.map_or("unknown", |(_, model)| model).to_owned(),
            cpus_allowed: crate::topology::format_cpu_list(&crate::topology::allowed_cpus()),
        }
    }
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
    requests: u64,
    acknowledged: u64,
    refused: u64,
    refused_by_status: BTreeMap<u16, u64>,
    unknown: u64,
    unsent: u64,
    reconnects: u64,
    connect_failures: u64,
    timeouts: u64,
    broken_keep_alives: u64,
    garbled: u64,
    elapsed_s: f64,
    requests_per_s: f64,
    latency_us: Latency,
    expected: Figures,
    server: Figures,
    verdict: Verdict,
    reasons: Vec<String>,
    client_limited: bool,
    client_busy: f64,
    client_cpu_us_per_request: f64,
    setup: Setup,
    /// The cost of the server, where `challenge` started it.
    #[serde(flatten)]
    pub cost: Option<ServerCost>,
    environment: Environment,
    #[serde(skip)]
    histogram: Histogram<u64>,
}

/// What is known when a run has ended.
pub(super) struct Outcome {
    pub(super) findings: Findings,
    pub(super) elapsed: Duration,
    /// The busiest thread's share of its time.
    pub(super) client_busy: f64,
    pub(super) evidence: Evidence,
    pub(super) setup: Setup,
    pub(super) requests: u64,
}

impl Report {
    pub(super) fn new(outcome: Outcome) -> Report {
        let Outcome { findings, elapsed, client_busy, evidence, setup, requests } = outcome;
        let Judgement { verdict, reasons } = evidence.judge();
        let refused_by_status: BTreeMap<u16, u64> = findings
            .refused
            .iter()
            .map(|(status, events)| (*status, events.len() as u64))
            .collect();
        let elapsed_s = elapsed.as_secs_f64();
        let answered = findings.latency.len();
        Report {
            requests,
            acknowledged: findings.acknowledged,
            refused: refused_by_status.values().sum(),
            refused_by_status,
            unknown: findings.unknown.len() as u64,
            unsent: findings.unsent.len() as u64,
            reconnects: findings.reconnects,
            connect_failures: findings.connect_failures,
            timeouts: findings.timeouts,
            broken_keep_alives: findings.broken_keep_alives,
            garbled: findings.garbled,
            elapsed_s,
            requests_per_s: ratio(answered as f64, elapsed_s),
            latency_us: Latency::of(&findings.latency),
            expected: evidence.expected(),
            server: evidence.after,
            verdict,
            reasons,
            client_limited: client_busy >= CLIENT_LIMITED_FROM,
            client_busy,
            client_cpu_us_per_request: ratio(findings.cpu.as_secs_f64() * 1e6, answered as f64),
            setup,
            cost: None,
            environment: Environment::here(),
            histogram: findings.latency,
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
        let latency = &self.latency_us;
        line(
            "latency",
            format!(
                "p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
                time(latency.p50),
                time(latency.p90),
                time(latency.p99),
                time(latency.p99_9),
                time(latency.max)
            ),
        );
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
                "{} thread{}, the busiest {:.0} % busy, {:.2} µs CPU a request{limit}",
                self.setup.threads,
                plural(self.setup.threads as u64),
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
        line(
            "totals",
            format!(
                "totalRequests {}, uniqueUsers {}, sum {:?}, avg {:?}",
                self.server.total_requests,
                self.server.unique_users,
                self.server.sum,
                self.server.avg
            ),
        );
        line(
            "verdict",
            match self.verdict {
                Verdict::Exact => "exact: every acknowledged event was counted once".into(),
                Verdict::Wrong => "wrong".into(),
                Verdict::Undecided => "undecided".into(),
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

    /// Whether the run did what it was asked to: all events acknowledged, all totals right.
    pub fn check(&self) -> Result<(), Failure> {
        if self.verdict != Verdict::Exact {
            return Err(Failure::Wrong(format!(
                "the result is not exact: {}",
                self.reasons.join("; ")
            )));
        }
        let failed = self.requests - self.acknowledged;
        if failed > 0 {
            return Err(Failure::Wrong(format!(
                "{failed} of {} requests were not acknowledged",
                self.requests
            )));
        }
        Ok(())
    }
}

/// Writes a report's text to a file, or to standard output for `-`.
pub fn write_to(path: &Path, text: &str) -> Result<(), Failure> {
    let written = if path.as_os_str() == "-" {
        std::io::stdout().write_all(text.as_bytes())
    } else {
        std::fs::write(path, text)
    };
    written.map_err(|error| {
        Failure::Environment(format!(
            "cannot write {}: {error}: name a file that can be written",
            path.display()
        ))
    })
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

/// A time in microseconds, with its unit.
fn time(micros: f64) -> String {
    match micros {
        ..1e3 => format!("{micros:.0} µs"),
        ..1e6 => format!("{:.2} ms", micros / 1e3),
        _ => format!("{:.2} s", micros / 1e6),
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
