//! A comparison as a table, as Markdown, and as JSON.

use super::gate::{CheckedChange, Decision};
use super::perf::Perf;
use super::{Compared, Comparison, RUNS_MIN};
use crate::doctor::Difference;
use crate::document::{Document, Format};
use crate::load::{Bound, Case, Figure, Finding, Findings, Quantity, cell, rounded, time_in_full};
use crate::statistics::Interval;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use std::collections::BTreeMap;

impl Comparison {
    /// Returns it as a table for a terminal.
    pub(super) fn table(&self) -> String {
        let [base, head] = self.heads();
        let mut text = format!("{:<14}{base:>14}{head:>14}  change (95% interval)\n", "");
        for [name, base, head, change] in self.rows() {
            text += &format!("{name:<14}{base:>14}{head:>14}  {change}\n");
        }
        for line in self.remarks() {
            text += &format!("{line}\n");
        }
        text
    }

    /// Returns it as Markdown.
    pub(super) fn markdown(&self) -> String {
        let [base, head] = self.heads();
        let mut text =
            format!("| | {base} | {head} | change (95% interval) |\n|---|--:|--:|--:|\n");
        for [name, base, head, change] in self.rows() {
            text += &format!("| {name} | {base} | {head} | {change} |\n");
        }
        let remarks = self.remarks();
        if !remarks.is_empty() {
            text += "\n";
        }
        for line in remarks {
            text += &format!("- {line}\n");
        }
        text
    }

    /// Returns the names of the two groups, with their numbers of runs.
    pub(super) fn heads(&self) -> [String; 2] {
        [("base", self.base.len()), ("head", self.head.len())]
            .map(|(name, runs)| format!("{name}, {runs} run{}", if runs == 1 { "" } else { "s" }))
    }

    /// Returns each figure with both medians and the change.
    pub(super) fn rows(&self) -> impl Iterator<Item = [String; 4]> + '_ {
        self.figures.iter().map(|compared| {
            let [base, head] = compared.values();
            [compared.figure.name.to_owned(), base, head, compared.change()]
        })
    }

    /// Returns the context of the figures.
    pub(super) fn remarks(&self) -> Vec<String> {
        let differences =
            self.differences.iter().map(|Difference { what, values: [base, head] }| {
                format!("compared: {what} {base} with {head}")
            });
        let obstacles = self.gate.obstacles.iter().map(|why| format!("failed: {why}"));
        let checks = self.gate.checks.iter().map(CheckedChange::line);
        let notes = self.notes.iter().map(|note| format!("note: {note}"));
        differences.chain(obstacles).chain(checks).chain(notes).collect()
    }

    /// Returns the figures of the head, with the interval of the change from the base, and the checked conditions.
    pub(super) fn exported(&self) -> Findings {
        let value = |compared: &Compared| {
            let end = |log_ratio: f64| compared.base * log_ratio.exp();
            let range = compared.change.map(|change| [end(change.low), end(change.high)]);
            let value = Bound { micros: compared.head, is_at_least: compared.lower_bounds > 0 };
            Finding { figure: compared.figure, value, range }
        };
        let row = |compared: &Compared| {
            let Change { base, head, change_percent, low_percent, high_percent, .. } =
                compared.json();
            let numbers = [Some(base), Some(head), change_percent, low_percent, high_percent];
            let name = std::iter::once(compared.figure.name.to_owned());
            name.chain(numbers.into_iter().map(cell)).collect()
        };
        let obstacles = self.gate.obstacles.iter();
        let obstacles =
            obstacles.map(|why| Case { name: "runs".into(), failure: Some(why.clone()) });
        Findings {
            name: Format::Compare.command(),
            values: self.figures.iter().map(value).collect(),
            cases: obstacles.chain(self.gate.checks.iter().map(CheckedChange::case)).collect(),
            heads: vec!["figure", "base", "head", "change_percent", "low_percent", "high_percent"],
            rows: self.figures.iter().map(row).collect(),
            lines: self.remarks(),
        }
    }

    /// Returns it as one JSON object.
    pub(super) fn json(&self) -> String {
        let figures =
            self.figures.iter().map(|compared| (compared.figure.name.to_owned(), compared.json()));
        let content = Json {
            base: self.base.clone(),
            head: self.head.clone(),
            differences: self.differences.clone(),
            figures: figures.collect(),
            checks: self.gate.checks.clone(),
            obstacles: self.gate.obstacles.clone(),
            outcome: self.gate.outcome(),
            runs_needed: RUNS_MIN,
            notes: self.notes.clone(),
        };
        Document::new(Format::Compare, content).json()
    }
}

/// The JSON form of a comparison.
#[derive(Serialize, JsonSchema)]
struct Json {
    /// The files of the runs that were compared with.
    base: Vec<String>,
    /// The files of the runs that may differ.
    head: Vec<String>,
    /// The intended differences between them.
    differences: Vec<Difference>,
    /// The change of each figure that all runs have, by the name that conditions use.
    figures: BTreeMap<String, Change>,
    /// The conditions of `--fail-if`, and whether each holds.
    checks: Vec<CheckedChange>,
    /// The reasons why the head cannot pass whatever its figures are, one sentence each.
    obstacles: Vec<String>,
    /// The outcome of all conditions together; null without conditions.
    outcome: Option<Decision>,
    /// The least number of runs per side for an interval.
    runs_needed: usize,
    /// Warnings for the reader, one sentence each.
    notes: Vec<String>,
}

/// A figure of both groups of runs.
#[derive(Serialize, JsonSchema)]
struct Change {
    /// The median of the base, in the unit of the figure.
    base: f64,
    /// The median of the head, in the unit of the figure.
    head: f64,
    /// The change from base to head in percent; null if either of them is zero.
    change_percent: Option<f64>,
    /// The lower end of the 95% interval of the change in percent; null with too few runs.
    low_percent: Option<f64>,
    /// The upper end of the 95% interval of the change in percent; null with too few runs.
    high_percent: Option<f64>,
    /// The number of runs whose figure is a lower bound.
    lower_bounds: usize,
}

/// Returns the JSON Schema of a comparison, if the format is one.
pub fn schema(format: Format) -> Option<Schema> {
    match format {
        Format::Compare => Some(format.schema::<Json>()),
        Format::Perf => Some(format.schema::<Perf>()),
        _ => None,
    }
}

impl Compared {
    /// Returns both medians, with their unit.
    fn values(&self) -> [String; 2] {
        [self.base, self.head].map(|value| in_words(&self.figure, value))
    }

    fn change(&self) -> String {
        match (self.log_ratio(), self.change) {
            (None, _) => "not known".into(),
            (Some(ratio), None) => format!("{:+.1}% [too few runs]", percent(ratio)),
            (Some(_), Some(Interval { low, median, high })) => {
                format!("{:+.1}% [{:+.1}, {:+.1}]", percent(median), percent(low), percent(high))
            }
        }
    }

    fn json(&self) -> Change {
        let bound = |of: fn(&Interval) -> f64| self.change.map(|change| percent(of(&change)));
        Change {
            base: self.base,
            head: self.head,
            change_percent: self.log_ratio().map(percent),
            low_percent: bound(|change| change.low),
            high_percent: bound(|change| change.high),
            lower_bounds: self.lower_bounds,
        }
    }
}

/// Returns the change in percent that a logarithm of a ratio represents.
fn percent(log_ratio: f64) -> f64 {
    log_ratio.exp_m1() * 100.0
}

fn in_words(figure: &Figure, value: f64) -> String {
    match figure.quantity {
        // Three decimals of a microsecond would overstate the precision of a median of runs.
        Quantity::Latency => time_in_full(value.round()),
        Quantity::CpuTime => format!("{value:.2} µs"),
        _ => rounded(value),
    }
}
