//! What a search for the highest rate found: as lines of text, JSON, and an HTML page.

use super::text::{grouped, rounded, time};
use super::{HELD_MIN, Latency, OpenLoop, Report, Setup, Unit, chart, html};
use crate::doctor::Environment;
use crate::failure::Failure;
use crate::load::find::{LatencyLimit, Search, Step, Window};
use crate::load::latency::Bound;
use crate::load::thresholds::Threshold;
use crate::load::verdict::Verdict;
use serde::Serialize;

/// The highest rate that holds, and the latencies over the rate.
#[derive(Clone, Debug, Serialize)]
pub struct FoundRate {
    find_rate: String,
    /// Requests per second; null if no rate holds.
    rate: Option<u64>,
    /// The lowest rate that does not hold; null if all do.
    fails_at: Option<u64>,
    /// Whether enough windows of both agree.
    confirmed: bool,
    /// Whether the client was the limit where the condition does not hold: the server may take more.
    client_limited: bool,
    /// The lowest rate at which the client was the limit.
    client_limited_from: Option<u64>,
    curve: Vec<Point>,
    setup: Setup,
    environment: Environment,
    #[serde(skip)]
    limit: LatencyLimit,
}

/// What one rate has shown.
#[derive(Clone, Debug, Serialize)]
struct Point {
    rate: u64,
    holds: bool,
    windows: usize,
    windows_that_hold: usize,
    client_limited: bool,
    /// Medians over the windows.
    requests_per_s: f64,
    latency_us: Latency,
    /// Why windows did not hold, each reason once.
    reasons: Vec<String>,
}

impl Report {
    pub(in crate::load) fn verdict(&self) -> Verdict {
        self.verdict
    }

    pub(in crate::load) fn reasons(&self) -> &[String] {
        &self.reasons
    }

    pub(in crate::load) fn is_interrupted(&self) -> bool {
        self.interrupted
    }

    /// Whether requests came due while the client did not run.
    fn was_stalled(&self) -> bool {
        self.open_loop.as_ref().is_some_and(|open_loop| open_loop.due_in_stalls > 0)
    }

    /// What the run has shown as a window of a search.
    pub(in crate::load) fn window(&self, limit: &Threshold) -> Window {
        let missing = self.requests - self.acknowledged;
        let held = self.open_loop.as_ref().and_then(|OpenLoop { held, .. }| *held);
        let measured = self.measured(limit.figure());
        let why_not = match (missing, held) {
            (0, Some(held)) if held < HELD_MIN => {
                Some(format!("{:.1} % of the rate was sent", held * 100.0))
            }
            (0, _) if limit.surely_holds(&measured) => None,
            (0, _) => Some(limit.check(measured).sentence),
            (missing, _) => {
                Some(format!("{} not acknowledged", Unit::of(self.setup.batch).count(missing)))
            }
        };
        let why_not_held = why_not.is_some();
        Window {
            holds: !why_not_held,
            why_not,
            requests_per_s: self.requests_per_s,
            // What a stall of the client has delayed says nothing about the server.
            is_client_limited: self.client_limited || (why_not_held && self.was_stalled()),
            latency: self.latency_us.clone(),
        }
    }
}

impl Window {
    /// One line for whoever waits.
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
    /// The median of each figure over some windows.
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
        Point {
            rate,
            holds: step.holds(),
            windows: step.windows.len(),
            windows_that_hold: step.held(),
            client_limited: step.is_client_limited(),
            requests_per_s: rates.get(rates.len() / 2).copied().unwrap_or(0.0),
            latency_us: Latency::median_of(&step.windows),
            reasons,
        }
    }

    /// Its cells in a table.
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

/// The heads of the columns.
fn heads(unit: Unit) -> [&'static str; 6] {
    [unit.per_second(), "windows", "p50", "p99", "p99.9", "max"]
}

impl FoundRate {
    /// What a search over so many connections found, of which `last` is one of the windows.
    pub(in crate::load) fn new(
        limit: &LatencyLimit,
        connections: usize,
        search: &Search,
        last: Report,
    ) -> FoundRate {
        let steps = || search.steps().iter();
        let limited = |(rate, step): (&u64, &Step)| step.is_client_limited().then_some(*rate);
        let fails = search.fails_at().and_then(|rate| search.steps().get(&rate));
        FoundRate {
            find_rate: limit.to_string(),
            rate: search.holds_at(),
            fails_at: search.fails_at(),
            confirmed: search.is_settled(),
            client_limited: fails.is_some_and(Step::is_client_limited),
            client_limited_from: steps().find_map(limited),
            curve: steps().map(|(rate, step)| Point::of(*rate, step)).collect(),
            setup: Setup { rate: None, workers: connections, ..last.setup },
            environment: last.environment,
            limit: limit.clone(),
        }
    }

    fn unit(&self) -> Unit {
        Unit::of(self.setup.batch)
    }

    /// What was found, a sentence each.
    fn findings(&self) -> Vec<String> {
        let limit = &self.find_rate;
        let per_second = self.unit().per_second();
        let mut lines = vec![match (self.rate, self.fails_at) {
            (None, _) => format!("{limit} holds at no rate"),
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

    /// A table, and what was found.
    pub fn summary(&self) -> String {
        let row = |cells: [String; 6]| {
            let [rate, windows, p50, p99, p99_9, max] = cells;
            format!("{rate:>12}  {windows:>8}  {p50:>11}  {p99:>11}  {p99_9:>11}  {max}\n")
        };
        let mut text = row(heads(self.unit()).map(str::to_owned));
        self.curve.iter().for_each(|point| text += &row(point.cells()));
        for line in self.findings() {
            text += &format!("{line}\n");
        }
        text
    }

    /// As one JSON object.
    pub fn json(&self) -> Result<String, Failure> {
        serde_json::to_string_pretty(self)
            .map_err(|error| Failure::Wrong(format!("the report cannot be made JSON: {error}")))
    }

    /// As one HTML page without outside assets and without scripts.
    pub fn html(&self) -> Result<String, Failure> {
        let of = |figure: fn(&Point) -> Option<Bound>| -> Vec<(f64, f64)> {
            let point = |point: &Point| Some((point.rate as f64, figure(point)?.micros));
            self.curve.iter().filter_map(point).collect()
        };
        let name = self.limit.0.figure().name.replace('.', "_");
        let of_limit = |point: &Point| {
            let figures = point.latency_us.figures().into_iter();
            let found = figures.filter(|(own, _)| *own == name).find_map(|(_, bound)| bound);
            Some((point.rate as f64, found?.micros))
        };
        let limited: Vec<(f64, f64)> = self.curve.iter().filter_map(of_limit).collect();
        let limit_us = self.limit.0.limit_us();
        let svg = chart::curve(&of(|point| point.latency_us.p50), &limited, limit_us, self.unit())?;
        let caption = format!(
            "Latency over the rate, on logarithmic axes, medians of the windows: p50 (blue), and {} \
             (brown) with its limit (gray).",
            self.limit.0.figure().name
        );
        let mut body = String::new();
        let lines = self.findings();
        let class = if self.rate.is_some() && self.confirmed { "exact" } else { "undecided" };
        html::put(&mut body, &format!("<p class=\"verdict {class}\">{}</p>", html::lines(&lines)));
        html::put(&mut body, "<h2>Latency over the rate</h2>");
        html::figure(&mut body, &svg, &caption);
        html::put_table(&mut body, &heads(self.unit()), self.curve.iter().map(Point::cells));
        html::put(&mut body, "<h2>Setup</h2>\n<table>");
        let connections = rounded(self.setup.workers as f64);
        for (name, value) in [
            ("server", self.setup.url.clone()),
            ("connections", format!("{connections}, {} in flight on each", self.setup.pipeline)),
            ("each request", self.setup.per_request()),
            ("users", rounded(self.setup.users as f64)),
        ] {
            html::put_row(&mut body, name, &[value]);
        }
        html::put(&mut body, "</table>");
        html::put_environment(&mut body, &self.environment);
        let title = format!("highest rate with {}: {}", self.find_rate, self.setup.url);
        Ok(html::page(&html::escape(&title), &body))
    }

    /// Whether there is a confirmed answer.
    pub fn check(&self) -> Result<(), Failure> {
        match (self.rate, self.confirmed) {
            (Some(_), true) => Ok(()),
            _ => Err(Failure::Wrong(self.findings()[..].join("; "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::tests::open_loop;
    use super::*;

    fn limit() -> LatencyLimit {
        "p99<5ms".parse().unwrap()
    }

    /// A window with such a 99th percentile, and what else is changed.
    fn window(p99_us: u64, change: impl FnOnce(&mut Outcome)) -> Window {
        let mut outcome = open_loop(1000);
        for _ in 0..1000 {
            outcome.total.latency.record(p99_us * 1000);
        }
        change(&mut outcome);
        Report::new(outcome).window(&limit().0)
    }

    #[test]
    fn a_window_holds_if_its_rate_its_requests_and_its_latency_do() {
        assert_eq!(window(4900, |_| {}).why_not, None);
        assert_eq!(window(5100, |_| {}).why_not.unwrap(), "p99 is 5.103615 ms");
        let slow = window(4900, |outcome| outcome.rate_held = Some(490.0));
        assert_eq!(slow.why_not.unwrap(), "98.0 % of the rate was sent");
        let refused = window(4900, |outcome| outcome.ledger.acknowledged = 999);
        assert_eq!(refused.why_not.unwrap(), "1 request not acknowledged");
        // What may be longer does not certainly hold.
        let unknown = window(100, |outcome| {
            outcome.total.latency.record_many_at_least(1_000_000, 1000);
        });
        assert!(!unknown.holds);
    }

    fn found(knee: u64, limited_from: u64) -> FoundRate {
        let mut search = Search::new(1000);
        while let Some(rate) = search.next() {
            let window = window(if rate < knee { 900 } else { 9000 }, |outcome| {
                if rate >= limited_from {
                    outcome.client_limits.push("busy".into());
                }
            });
            search.add(rate, window);
        }
        FoundRate::new(&limit(), 10, &search, Report::new(open_loop(1000)))
    }

    #[test]
    fn every_form_has_the_answer_the_curve_and_the_clients_limit() {
        let found = found(50_000, 60_000);
        let rate = found.rate.unwrap();
        assert!((49_000..50_000).contains(&rate) && found.check() == Ok(()), "{rate}");
        let json: serde_json::Value = serde_json::from_str(&found.json().unwrap()).unwrap();
        assert_eq!((&json["rate"], &json["client_limited"]), (&rate.into(), &false.into()));
        assert_eq!(json["client_limited_from"], 64_000);
        let curve = json["curve"].as_array().unwrap();
        let rates: Vec<u64> = curve.iter().map(|point| point["rate"].as_u64().unwrap()).collect();
        assert!(rates.is_sorted() && rates.contains(&rate) && rates[0] == 1000);
        assert!(curve[0]["latency_us"]["p99"].as_f64().unwrap() < 1001.0);
        let (text, page) = (found.summary(), found.html().unwrap());
        for point in &found.curve {
            for cell in point.cells() {
                assert!(text.contains(&cell) && page.contains(&html::escape(&cell)), "{cell}");
            }
        }
        assert!(text.lines().all(|line| line.chars().count() <= 90), "{text}");
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
}
