//! The result of a search for the highest rate, as lines of text, JSON, and an HTML page.

use super::{LatencyLimit, Search, Step, Window};
use crate::doctor::Environment;
use crate::document::{Document, Format};
use crate::failure::Failure;
use crate::load::export::{Case, Finding, Findings, cell};
use crate::load::figures::{FIGURES, Figure, Measured};
use crate::load::flow::Flow;
use crate::load::latency::Bound;
use crate::load::markup::escape;
use crate::load::numbers::{counted, grouped, rounded, time};
use crate::load::origin::Origin;
use crate::load::report::{
    HELD_MIN, Latency, OpenLoop, Report, Setup, Unit, chart, html, of_threshold, threshold_line,
};
use crate::load::thresholds::{Checked, Threshold};
use crate::load::verdict::Verdict;
use schemars::JsonSchema;
use serde::Serialize;

/// The highest rate that holds, and the latencies at each rate.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct FoundRate {
    /// The condition, as it was typed.
    find_rate: String,
    /// The highest rate in events per second that meets the condition; null if no rate meets it.
    rate: Option<u64>,
    /// The lowest rate in events per second that does not meet the condition; null if every rate meets it.
    fails_at: Option<u64>,
    /// Whether enough windows of both rates agree.
    confirmed: bool,
    /// Whether the client was the limit at `fails_at`, so that the server may take more.
    client_limited: bool,
    /// The lowest rate in events per second, above the rate that holds, that was limited by the client.
    client_limited_from: Option<u64>,
    /// The lowest rate in events per second that may be tried.
    least_rate: u64,
    /// Each rate that was tried.
    curve: Vec<Point>,
    /// The conditions of `--fail-if`, and whether the rate that was found passes each.
    thresholds: Vec<Checked>,
    /// The windows' warnings, each kind once.
    warnings: Vec<String>,
    /// The setup of the windows.
    setup: Setup,
    /// The time of the windows, and their server.
    origin: Origin,
    /// The machine of the client.
    environment: Environment,
    #[serde(skip)]
    limit: LatencyLimit,
}

/// The warnings of windows. Warnings that differ only in their digits are of one kind, represented by the first.
#[derive(Debug, Default)]
pub(super) struct Warnings(Vec<(String, usize)>);

impl Warnings {
    /// Adds the warnings of a window.
    pub(in crate::load) fn add(&mut self, report: &Report) {
        let kind =
            |warning: &str| warning.replace(|character: char| character.is_ascii_digit(), "");
        for warning in &report.warnings {
            match self.0.iter_mut().find(|(first, _)| kind(first) == kind(warning)) {
                Some((_, windows)) => *windows += 1,
                None => self.0.push((warning.clone(), 1)),
            }
        }
    }

    /// Returns a sentence for each kind, given the number of windows.
    fn sentences(self, windows: usize) -> Vec<String> {
        let sentence = |(warning, of): (String, usize)| match of == windows {
            true => warning,
            false => {
                format!("in {of} of {}: {warning}", counted(windows as u64, "window", "windows"))
            }
        };
        self.0.into_iter().map(sentence).collect()
    }
}

/// The result of one rate.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct Point {
    /// Events per second.
    rate: u64,
    /// Whether the condition holds at this rate.
    holds: bool,
    /// The number of windows.
    windows: usize,
    /// The number of windows that meet the condition.
    windows_that_hold: usize,
    /// Whether the client was the limit in most windows.
    client_limited: bool,
    /// The growth of the backlog as a share of the rate, on average over the windows; null if unknown.
    backlog_growth: Option<f64>,
    /// Acknowledged events per second: the median over the windows.
    requests_per_s: f64,
    /// Latency in microseconds: the median of each figure over the windows.
    latency_us: Latency,
    /// The reasons why windows did not meet the condition, each once.
    reasons: Vec<String>,
}

impl Report {
    pub(in crate::load) fn verdict(&self) -> Verdict {
        self.verdict
    }

    pub(in crate::load) fn reasons(&self) -> &[String] {
        &self.reasons
    }

    /// Reports whether stalls of the client can explain a failure that was caused by this share of the requests. At
    /// least half as many requests must have come due during the stalls.
    fn is_stalled_for(&self, share: f64) -> bool {
        let due = self.open_loop.as_ref().map_or(0, |open_loop| open_loop.due_in_stalls);
        let requests = self.batches.unwrap_or(self.requests);
        due > 0 && due as f64 >= share / 2.0 * requests as f64
    }

    /// Returns the result of the run as a window of a search, which lasted `window_s` at this rate.
    pub(in crate::load) fn window(&self, limit: &Threshold, rate: f64, window_s: f64) -> Window {
        let limit_s = limit.limit_us().unwrap_or(0.0) / 1e6;
        let growth = self.flow.as_ref().and_then(|flow| flow.growth(rate, window_s, limit_s));
        let missing = self.requests - self.acknowledged;
        let held = self.open_loop.as_ref().and_then(|OpenLoop { held, .. }| *held);
        let report = self.value();
        let measured = limit.figure().of(&report);
        let why_not = match (missing, held) {
            (0, Some(held)) if held < HELD_MIN => {
                Some(format!("{:.1}% of the rate was sent", held * 100.0))
            }
            (0, _) if limit.surely_holds(&measured) => Flow::why_not(growth),
            (0, _) => Some(limit.check(measured).sentence),
            (missing, _) => {
                Some(format!("{} not acknowledged", Unit::of(self.setup.batch).count(missing)))
            }
        };
        // A delay caused by a stall of the client proves nothing about the server, unless the server also failed to
        // acknowledge or complete requests.
        let share = match held {
            Some(held) if held < HELD_MIN => 1.0 - held,
            _ => limit.figure().share_above(),
        };
        let is_excused = why_not.is_some()
            && missing == 0
            && !Flow::falls_behind(growth)
            && self.is_stalled_for(share);
        Window {
            holds: why_not.is_none(),
            why_not,
            growth,
            requests_per_s: self.requests_per_s,
            is_client_limited: self.client_limited || is_excused,
            latency: self.latency_us.clone(),
            measured: self.thresholds.iter().map(|own| own.figure().of(&report)).collect(),
        }
    }
}

impl Window {
    /// Returns a line of progress for the user.
    pub(in crate::load) fn line(&self, rate: u64, limit: &LatencyLimit, unit: Unit) -> String {
        let found = match &self.why_not {
            None => format!("{limit} holds"),
            Some(why_not) => format!("{limit} does not hold: {why_not}"),
        };
        let client = if self.is_client_limited { ", the client was the limit" } else { "" };
        format!("{:>12} {}: {found}{client}", grouped(rate), unit.per_second())
    }
}

impl Latency {
    /// Returns the median of each figure over some windows.
    fn median_of(windows: &[Window]) -> Latency {
        let median = |index: usize| {
            let mut found: Vec<Bound> =
                windows.iter().filter_map(|window| window.latency.figures()[index].1).collect();
            found.sort_by(|a, b| a.micros.total_cmp(&b.micros));
            found.get(found.len() / 2).copied()
        };
        let [mean, p50, p90, p95, p99, p99_9, p99_99, max] = std::array::from_fn(median);
        let censored = windows.iter().map(|window| window.latency.censored).sum();
        let lower_bounds = Vec::new();
        Latency { mean, p50, p90, p95, p99, p99_9, p99_99, max, censored, lower_bounds }.bounded()
    }
}

impl Step {
    /// Returns a threshold's figure in the windows that held: the median, or the first word that fails.
    fn measured(&self, index: usize, threshold: &Threshold) -> Measured {
        let held = || self.windows.iter().filter(|window| window.holds);
        let mut all: Vec<Measured> =
            held().filter_map(|window| window.measured.get(index).cloned()).collect();
        if let Some(failing) = all.iter().find(|measured| match measured {
            Measured::Number(_) => false,
            Measured::Word(_) => !threshold.check((*measured).clone()).passed,
            Measured::Unknown(_) => true,
        }) {
            return failing.clone();
        }
        all.sort_by(|a, b| match (a, b) {
            (Measured::Number(a), Measured::Number(b)) => a.micros.total_cmp(&b.micros),
            _ => std::cmp::Ordering::Equal,
        });
        all.get(all.len() / 2).cloned().unwrap_or(Measured::Unknown("no window held"))
    }
}

impl Point {
    fn of(rate: u64, step: &Step) -> Point {
        let mut rates: Vec<f64> = step.windows.iter().map(|window| window.requests_per_s).collect();
        rates.sort_by(f64::total_cmp);
        let mut reasons: Vec<String> = Vec::new();
        for reason in step.windows.iter().filter_map(|window| window.why_not.as_ref()) {
            if !reasons.contains(reason) {
                reasons.push(reason.clone());
            }
        }
        reasons.extend(step.why_not());
        let growths: Vec<f64> = step.windows.iter().filter_map(|window| window.growth).collect();
        Point {
            rate,
            holds: step.holds(),
            windows: step.windows.len(),
            windows_that_hold: step.held(),
            client_limited: step.is_client_limited(),
            backlog_growth: (!growths.is_empty())
                .then(|| growths.iter().sum::<f64>() / growths.len() as f64),
            requests_per_s: rates.get(rates.len() / 2).copied().unwrap_or(0.0),
            latency_us: Latency::median_of(&step.windows),
            reasons,
        }
    }

    /// Returns the cells of the point in a table.
    fn cells(&self) -> [String; 6] {
        let in_words = |figure: Option<Bound>| figure.map_or("-".into(), time);
        let Latency { p50, p99, p99_9, max, .. } = &self.latency_us;
        [
            grouped(self.rate),
            format!("{} of {}", self.windows_that_hold, self.windows),
            in_words(*p50),
            in_words(*p99),
            in_words(*p99_9),
            in_words(*max) + if self.client_limited { ", client limited" } else { "" },
        ]
    }
}

/// Returns the heads of the columns.
fn heads(unit: Unit) -> [&'static str; 6] {
    [unit.per_second(), "windows", "p50", "p99", "p99.9", "max"]
}

impl FoundRate {
    /// Creates the result of a search; `last` is the report on its last window.
    pub(super) fn new(
        limit: &LatencyLimit,
        connections: usize,
        search: &Search,
        warnings: Warnings,
        last: Report,
    ) -> FoundRate {
        let steps = || search.steps().iter();
        let above = search.holds_at().unwrap_or(0);
        let limited = |(rate, step): (&u64, &Step)| {
            // At a rate that holds, the client was not a limit.
            (*rate > above && step.is_client_limited()).then_some(*rate)
        };
        let fails = search.fails_at().and_then(|rate| search.steps().get(&rate));
        let is_limited = fails.is_some_and(Step::is_client_limited);
        let at_rate = search.holds_at().and_then(|rate| Some((rate, search.steps().get(&rate)?)));
        let thresholds = last.thresholds.iter().enumerate();
        let thresholds = thresholds.map(|(index, threshold)| {
            threshold.check(match (threshold.figure().name, at_rate) {
                (_, None) => Measured::Unknown("no rate holds"),
                ("rate", Some((rate, _))) => Measured::Number(Bound::exactly(rate as f64)),
                ("client_limited", _) => Measured::Word(if is_limited { "true" } else { "false" }),
                (_, Some((_, step))) => step.measured(index, threshold),
            })
        });
        FoundRate {
            thresholds: thresholds.collect(),
            warnings: warnings.sentences(steps().map(|(_, step)| step.windows.len()).sum()),
            find_rate: limit.to_string(),
            rate: search.holds_at(),
            fails_at: search.fails_at(),
            confirmed: search.is_settled(),
            client_limited: is_limited,
            least_rate: search.least(),
            client_limited_from: steps().find_map(limited),
            curve: steps().map(|(rate, step)| Point::of(*rate, step)).collect(),
            setup: Setup { rate: None, connections, ..last.setup },
            origin: last.origin,
            environment: last.environment,
            limit: limit.clone(),
        }
    }

    fn unit(&self) -> Unit {
        Unit::of(self.setup.batch)
    }

    /// Returns the findings, a sentence each.
    fn findings(&self) -> Vec<String> {
        let limit = &self.find_rate;
        let per_second = self.unit().per_second();
        let mut lines = vec![match (self.rate, self.fails_at) {
            (None, _) => format!(
                "{limit} holds at no rate from {} {per_second} on, and lower ones need a longer --window",
                grouped(self.least_rate)
            ),
            (Some(rate), None) => {
                format!("{} {per_second}, the highest rate there is, holds {limit}", grouped(rate))
            }
            (Some(rate), Some(fails_at)) => format!(
                "{} {per_second} is the highest rate with {limit}; {} is too much",
                grouped(rate),
                grouped(fails_at)
            ),
        }];
        if !self.confirmed {
            lines.push("not confirmed: windows of one rate disagree too often; run doctor".into());
        }
        if let Some(from) = self.client_limited_from {
            let from = grouped(from);
            lines.push(match self.client_limited {
                true => format!(
                    "the client became the limit at {from} {per_second}: the server may take more"
                ),
                false => format!("the client was the limit from {from} {per_second} on"),
            });
        }
        lines
    }

    /// Returns the reason why a rate does not hold although its windows do, and the results of the thresholds.
    fn remarks(&self) -> Vec<String> {
        let fails = self.curve.iter().find(|point| Some(point.rate) == self.fails_at);
        let reason = fails.filter(|point| 2 * point.windows_that_hold > point.windows);
        let reason = reason.and_then(|point| {
            let last = point.reasons.last()?;
            Some(format!("{} {}: {last}", grouped(point.rate), self.unit().per_second()))
        });
        reason.into_iter().chain(self.thresholds.iter().map(threshold_line)).collect()
    }

    /// Returns a table, followed by the findings.
    pub fn summary(&self) -> String {
        let row = |cells: [String; 6]| {
            let [rate, windows, p50, p99, p99_9, max] = cells;
            format!("{rate:>12}  {windows:>8}  {p50:>11}  {p99:>11}  {p99_9:>11}  {max}\n")
        };
        let mut text = row(heads(self.unit()).map(str::to_owned));
        self.curve.iter().for_each(|point| text += &row(point.cells()));
        for line in self.findings().into_iter().chain(self.remarks()) {
            text += &format!("{line}\n");
        }
        self.warnings.iter().for_each(|warning| text += &format!("warning: {warning}\n"));
        text
    }

    /// Returns the rate with its latencies, the checks, and the curve.
    pub(in crate::load) fn exported(&self) -> Findings {
        let at_rate = self.curve.iter().find(|point| Some(point.rate) == self.rate);
        let value = |figure: Figure| {
            let point = at_rate?;
            let name = figure.place.strip_prefix("/latency_us/");
            let value = match (figure.name, name) {
                ("rate", _) => Bound::exactly(point.rate as f64),
                (_, Some(name)) => point.latency_us.figure(name)?,
                _ => return None,
            };
            // The rate that is too high does not end an interval of the rate, and windows do not have an interval of latencies.
            Some(Finding { figure, value, range: None })
        };
        let rows = self.curve.iter().map(|point| {
            let latency = &point.latency_us;
            let us = [latency.p50, latency.p99, latency.p99_9, latency.max];
            let us = us.map(|bound| cell(bound.map(|bound| bound.micros)));
            let holds = f64::from(u8::from(point.holds));
            let first = [point.rate as f64, holds, point.requests_per_s].map(Some).map(cell);
            let bounds = latency.lower_bounds.join(" ");
            first.into_iter().chain(us).chain([bounds]).collect()
        });
        let is_found = self.rate.is_some() && self.confirmed;
        let failure = (!is_found).then(|| self.findings().join("; "));
        let found = Case { name: self.find_rate.clone(), failure };
        Findings {
            name: Format::FindRate.command(),
            values: FIGURES.into_iter().filter_map(value).collect(),
            cases: std::iter::once(found)
                .chain(self.thresholds.iter().map(|checked| of_threshold("--fail-if", checked)))
                .collect(),
            heads: vec![
                "rate",
                "holds",
                "requests_per_s",
                "p50_us",
                "p99_us",
                "p99_9_us",
                "max_us",
                "lower_bounds",
            ],
            rows: rows.collect(),
            lines: self.findings().into_iter().chain(self.warnings.iter().cloned()).collect(),
        }
    }

    /// Returns the result as one JSON object.
    pub fn json(&self) -> String {
        Document::new(Format::FindRate, self).json()
    }

    /// Returns the result as one HTML page without external assets or scripts.
    pub fn html(&self) -> Result<String, Failure> {
        let of = |figure: fn(&Point) -> Option<Bound>| -> Vec<(f64, f64)> {
            let point = |point: &Point| Some((point.rate as f64, figure(point)?.micros));
            self.curve.iter().filter_map(point).collect()
        };
        let name = self.limit.0.figure().name.replace('.', "_");
        let of_limit =
            |point: &Point| Some((point.rate as f64, point.latency_us.figure(&name)?.micros));
        let limited: Vec<(f64, f64)> = self.curve.iter().filter_map(of_limit).collect();
        let limit_us = self.limit.0.limit_us();
        let svg = chart::curve(&of(|point| point.latency_us.p50), &limited, limit_us, self.unit())?;
        let caption = format!(
            "Latency over the rate, on logarithmic axes, medians of the windows: p50 (blue), and {} \
             (brown) with its limit (gray).",
            self.limit.0.figure().name
        );
        let mut body = String::new();
        let lines = [self.findings(), self.remarks()].concat();
        let class = if self.rate.is_some() && self.confirmed { "exact" } else { "undecided" };
        html::put(&mut body, &format!("<p class=\"verdict {class}\">{}</p>", html::lines(&lines)));
        html::put(&mut body, "<h2>Latency over the rate</h2>");
        html::figure(&mut body, &svg, &caption);
        html::put_table(&mut body, &heads(self.unit()), self.curve.iter().map(Point::cells));
        html::put(&mut body, "<h2>Setup</h2>\n<table>");
        let connections = rounded(self.setup.connections as f64);
        for (name, value) in [
            ("server", self.setup.url.clone()),
            ("connections", format!("{connections}, {} in flight on each", self.setup.pipeline)),
            ("each request", self.setup.per_request()),
            ("users", rounded(self.setup.users as f64)),
        ] {
            html::put_row(&mut body, name, &[value]);
        }
        if !self.warnings.is_empty() {
            html::put_row(&mut body, "warning", &self.warnings);
        }
        html::put(&mut body, "</table>");
        html::put_environment(&mut body, &self.environment);
        let title = format!("highest rate with {}: {}", self.find_rate, self.setup.url);
        Ok(html::page(&escape(&title), &body))
    }

    /// Checks that there is a confirmed answer that passes all thresholds.
    pub fn check(&self) -> Result<(), Failure> {
        let found = match (self.rate, self.confirmed) {
            (Some(_), true) => Ok(()),
            _ => Err(Failure::Wrong(self.findings()[..].join("; "))),
        };
        let failed = self.thresholds.iter().filter(|checked| !checked.passed);
        Failure::all(std::iter::once(found).chain(failed.map(
            |Checked { fail_if, sentence, .. }| {
                Err(Failure::Wrong(format!("--fail-if {fail_if}: {sentence}")))
            },
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::report::Outcome;
    use crate::load::report::tests::open_loop;

    fn limit() -> LatencyLimit {
        "p99<5ms".parse().unwrap()
    }

    /// Returns the flow of a server that completes this many of 500 requests per second, for a window of two seconds.
    fn flow(completed: f64) -> Flow {
        let sample = |index: u32| f64::from(index) / 32.0;
        #[allow(clippy::cast_possible_truncation, reason = "events of a test are few")]
        let acknowledged = |at_s: f64| (at_s * completed) as u64;
        Flow::of((0..80).map(|i| (sample(i), acknowledged(sample(i)))).collect())
    }

    /// Returns a window with this 99th percentile, and with other changes.
    fn window(p99_us: u64, change: impl FnOnce(&mut Outcome)) -> Window {
        let mut outcome = open_loop(1000);
        for _ in 0..1000 {
            outcome.run.total.latency.record(p99_us * 1000);
        }
        outcome.flow = Some(flow(500.0));
        change(&mut outcome);
        Report::new(outcome).window(&limit().0, 500.0, 2.0)
    }

    #[test]
    fn a_window_holds_if_its_rate_its_requests_and_its_latency_do() {
        assert_eq!(window(4900, |_| {}).why_not, None);
        assert_eq!(window(5100, |_| {}).why_not.unwrap(), "p99 is 5.103615 ms");
        let slow = window(4900, |outcome| outcome.held = Some(0.98));
        assert_eq!(slow.why_not.unwrap(), "98.0% of the rate was sent");
        let refused = window(4900, |outcome| outcome.run.work.ledger.acknowledged = 999);
        assert_eq!(refused.why_not.unwrap(), "1 request not acknowledged");
        let behind = window(4900, |outcome| outcome.flow = Some(flow(400.0)));
        assert!(behind.why_not.unwrap().starts_with("80.0% of the rate was completed"));
        let unseen = window(4900, |outcome| outcome.flow = None);
        assert!(unseen.why_not.unwrap().starts_with("too few samples"));
        // A condition does not certainly hold if the value is only a lower bound.
        let unknown = window(100, |outcome| {
            outcome.run.total.latency.record_many_at_least(1_000_000, 1000);
        });
        assert!(!unknown.holds);
    }

    /// A window that the client partly slept through is repeated if it fails, and counts if it holds.
    #[test]
    fn a_stall_of_the_client_does_not_count_against_the_server() {
        let stalled = |p99_us, due| {
            window(p99_us, |outcome| outcome.run.work.due_in_stalls = due).is_client_limited
        };
        assert!(stalled(5100, 5) && !stalled(4900, 5) && !stalled(5100, 0));
        // 2% of the rate was not sent.
        for (due, is_excused) in [(11, true), (9, false)] {
            let slow = window(4900, |outcome| {
                outcome.held = Some(0.98);
                outcome.run.work.due_in_stalls = due;
            });
            assert_eq!((slow.holds, slow.is_client_limited), (false, is_excused), "{due}");
        }
    }

    /// The 99th percentile of 1,000 requests leaves out 10, so more than a few late requests are needed to move it.
    #[test]
    fn a_stall_that_does_not_explain_the_failure_excuses_nothing() {
        assert!(!window(5100, |outcome| outcome.run.work.due_in_stalls = 4).is_client_limited);
        let refused = window(5100, |outcome| {
            outcome.run.work.ledger.acknowledged = 999;
            outcome.run.work.due_in_stalls = 500;
        });
        assert!(!refused.is_client_limited);
        for p99_us in [4900, 5100] {
            let behind = window(p99_us, |outcome| {
                outcome.flow = Some(flow(400.0));
                outcome.run.work.due_in_stalls = 500;
            });
            assert!(!behind.holds && !behind.is_client_limited, "{p99_us}");
        }
        let of = |limit: &str, due| {
            let mut outcome = Outcome { flow: Some(flow(500.0)), ..open_loop(1000) };
            outcome.run.work.due_in_stalls = due;
            outcome.run.total.latency.record_many_at_least(1_000_000_000, 3000);
            let limit: LatencyLimit = limit.parse().unwrap();
            Report::new(outcome).window(&limit.0, 500.0, 2.0).is_client_limited
        };
        for (limit, least) in [("p50<5ms", 250), ("p90<5ms", 50), ("mean<5ms", 1), ("max<5ms", 1)] {
            assert!(of(limit, least) && !of(limit, least - 1), "{limit}");
        }
    }

    fn found(knee: u64, limited_from: u64) -> FoundRate {
        found_with(knee, limited_from, &[])
    }

    fn found_with(knee: u64, limited_from: u64, thresholds: &[&str]) -> FoundRate {
        let thresholds: Vec<Threshold> = thresholds.iter().map(|t| t.parse().unwrap()).collect();
        let (mut search, mut warnings) = (Search::new(1000, 1), Warnings::default());
        while let Some(rate) = search.next() {
            let mut warned = open_loop(1000);
            warned.run.warnings =
                vec![format!("the client did not run for {rate} s"), "<shared>".into()];
            warned.run.warnings.truncate(if rate == 1000 { 1 } else { 2 });
            warnings.add(&Report::new(warned));
            let window = window(if rate < knee { 900 } else { 9000 }, |outcome| {
                outcome.thresholds.clone_from(&thresholds);
                if rate >= limited_from {
                    outcome.run.limited_by.push("busy".into());
                }
            });
            search.add(rate, window);
        }
        let last = Outcome { thresholds, ..open_loop(1000) };
        FoundRate::new(&limit(), 10, &search, warnings, Report::new(last))
    }

    #[test]
    fn every_form_has_the_answer_the_curve_and_the_clients_limit() {
        let found = found(50_000, 60_000);
        let rate = found.rate.unwrap();
        assert!((49_000..50_000).contains(&rate) && found.check() == Ok(()), "{rate}");
        let json: serde_json::Value = serde_json::from_str(&found.json()).unwrap();
        assert_eq!((&json["rate"], &json["client_limited"]), (&rate.into(), &false.into()));
        assert_eq!(json["client_limited_from"], 64_000);
        // The tools for smaller and for bigger figures each get at least one figure, and a rate that is too high does
        // not end an interval.
        let exported = found.exported();
        let values = exported.values.iter().map(|value| (value.figure.name, value.range));
        let names = ["mean", "p50", "p90", "p95", "p99", "p99.9", "p99.99", "max", "rate"];
        assert!(values.eq(names.map(|name| (name, None))), "{:?}", exported.values);
        assert!(exported.rows.iter().all(|row| row.len() == exported.heads.len()));
        let curve = json["curve"].as_array().unwrap();
        let rates: Vec<u64> = curve.iter().map(|point| point["rate"].as_u64().unwrap()).collect();
        assert!(rates.is_sorted() && rates.contains(&rate) && rates[0] == 1000);
        assert!(curve[0]["latency_us"]["p99"].as_f64().unwrap() < 1001.0);
        let (text, page) = (found.summary(), found.html().unwrap());
        for point in &found.curve {
            for cell in point.cells() {
                assert!(text.contains(&cell) && page.contains(&escape(&cell)), "{cell}");
            }
        }
        assert!(text.lines().all(|line| line.chars().count() <= 90), "{text}");
        let windows: usize = found.curve.iter().map(|point| point.windows).sum();
        let first = found.curve[0].windows;
        let kinds = [
            "the client did not run for 1000 s".to_owned(),
            format!("in {} of {windows} windows: <shared>", windows - first),
        ];
        assert_eq!(json["warnings"], serde_json::json!(kinds));
        for kind in kinds {
            assert!(text.contains(&format!("warning: {kind}\n")), "{text}");
            assert!(page.contains(&escape(&kind)), "{page}");
        }
        assert_eq!(page.matches("<svg ").count(), 1);
        assert!(!page.contains("<script") && page.contains("p99&lt;5ms"), "{page}");
    }

    #[test]
    fn a_client_that_is_the_limit_first_is_said_to_be() {
        let found = found(50_000, 40_000);
        assert!(found.client_limited);
        assert!(found.summary().contains("the server may take more"), "{}", found.summary());
        let none = self::found(0, 40_000);
        assert_eq!((none.rate, none.client_limited), (None, false));
        assert!(none.check().unwrap_err().to_string().contains("holds at no rate"));
    }

    #[test]
    fn a_client_is_not_said_to_limit_a_rate_that_holds() {
        let found = found(50_000, 400);
        let from = found.client_limited_from.unwrap();
        assert!(from > found.rate.unwrap(), "{from} of {:?}", found.rate);
        let summary = found.summary();
        assert!(!summary.contains("limit from 400"), "{summary}");
    }

    #[test]
    fn thresholds_are_of_the_rate_that_was_found() {
        let passing = ["rate<40k", "p99>5ms", "rps<100", "verdict!=exact", "client_limited==true"];
        let found = found_with(50_000, u64::MAX, &passing);
        assert_eq!(found.check(), Ok(()), "{}", found.summary());
        assert!(found.summary().contains("passed rate<40k: rate is 49,"), "{}", found.summary());
        for (threshold, says) in [
            ("rate<60k", "rate is 49,"),
            ("p99>0.5ms", "p99 is 1."),
            ("rps<1M", "rps is 500"),
            ("verdict==exact", "verdict is exact"),
            ("server_cpu_us>1", "only the challenge"),
        ] {
            let said = found_with(50_000, u64::MAX, &[threshold]).check().unwrap_err().to_string();
            assert!(said.contains(threshold) && said.contains(says), "{said}");
        }
        // Without a rate, nothing can be measured.
        let said = found_with(0, u64::MAX, &["rate<1"]).check().unwrap_err().to_string();
        assert!(said.contains("rate is not known: no rate holds"), "{said}");
    }
}
