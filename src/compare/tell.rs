//! A comparison as a table, as Markdown, and as JSON.

use super::change::{Figure, Kind};
use super::gate::Checked;
use super::{Compared, Comparison, RUNS_MIN};
use crate::doctor::Difference;
use crate::load::{rounded, time_in_full};
use crate::statistics::Interval;
use serde_json::{Map, Value, json};

impl Comparison {
    /// As a table for a terminal.
    pub(super) fn table(&self) -> String {
        let [base, head] = self.heads();
        let mut text = format!("{:<14}{base:>14}{head:>14}  change (95 % interval)\n", "");
        for [name, base, head, change] in self.rows() {
            text += &format!("{name:<14}{base:>14}{head:>14}  {change}\n");
        }
        for line in self.remarks() {
            text += &format!("{line}\n");
        }
        text
    }

    /// As Markdown.
    pub(super) fn markdown(&self) -> String {
        let [base, head] = self.heads();
        let mut text =
            format!("| | {base} | {head} | change (95 % interval) |\n|---|--:|--:|--:|\n");
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

    /// The two groups, with their numbers of runs.
    pub(super) fn heads(&self) -> [String; 2] {
        [("base", self.base.len()), ("head", self.head.len())]
            .map(|(name, runs)| format!("{name}, {runs} run{}", if runs == 1 { "" } else { "s" }))
    }

    /// Each figure with both medians and the change.
    pub(super) fn rows(&self) -> impl Iterator<Item = [String; 4]> + '_ {
        self.figures.iter().map(|compared| {
            let [base, head] = compared.values();
            [compared.figure.name.to_owned(), base, head, compared.change()]
        })
    }

    /// What is to be known besides the figures.
    pub(super) fn remarks(&self) -> Vec<String> {
        let differences =
            self.differences.iter().map(|Difference { what, values: [base, head] }| {
                format!("compared: {what} {base} with {head}")
            });
        let obstacles = self.gate.obstacles.iter().map(|why| format!("failed: {why}"));
        let checks = self.gate.checks.iter().map(Checked::line);
        let notes = self.notes.iter().map(|note| format!("note: {note}"));
        differences.chain(obstacles).chain(checks).chain(notes).collect()
    }

    /// As one JSON object.
    pub(super) fn json(&self) -> Value {
        let figures: Map<String, Value> = self
            .figures
            .iter()
            .map(|compared| (compared.figure.name.to_owned(), compared.json()))
            .collect();
        json!({
            "base": self.base,
            "head": self.head,
            "differences": self.differences,
            "figures": figures,
            "checks": self.gate.checks,
            "obstacles": self.gate.obstacles,
            "outcome": self.gate.outcome(),
            "runs_needed": RUNS_MIN,
            "notes": self.notes,
        })
    }
}

impl Compared {
    /// Both medians, with their unit.
    fn values(&self) -> [String; 2] {
        [self.base, self.head].map(|value| in_words(&self.figure, value))
    }

    fn change(&self) -> String {
        match (self.log_ratio(), self.change) {
            (None, _) => "not known".into(),
            (Some(ratio), None) => format!("{:+.1} % [not known]", percent(ratio)),
            (Some(_), Some(Interval { low, median, high })) => {
                format!("{:+.1} % [{:+.1}, {:+.1}]", percent(median), percent(low), percent(high))
            }
        }
    }

    fn json(&self) -> Value {
        let bound = |of: fn(&Interval) -> f64| self.change.map(|change| percent(of(&change)));
        json!({
            "base": self.base,
            "head": self.head,
            "change_percent": self.log_ratio().map(percent),
            "low_percent": bound(|change| change.low),
            "high_percent": bound(|change| change.high),
            "lower_bounds": self.lower_bounds,
        })
    }
}

/// The change in percent that a logarithm of a ratio stands for.
fn percent(log_ratio: f64) -> f64 {
    log_ratio.exp_m1() * 100.0
}

fn in_words(figure: &Figure, value: f64) -> String {
    match figure.kind {
        // Three decimals of a microsecond are more than a median of runs is worth.
        Kind::Latency => time_in_full(value.round()),
        Kind::CpuTime => format!("{value:.2} µs"),
        Kind::Rate => rounded(value),
    }
}
