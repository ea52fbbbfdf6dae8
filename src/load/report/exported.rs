//! Converts a report for exporters.

use super::Report;
use crate::load::export::{Case, Finding, Findings, cell};
use crate::load::figures::{FIGURES, Figure, Measured};
use crate::load::latency::Bound;
use crate::load::numbers::grouped;
use crate::load::thresholds::Checked;
use crate::load::verdict::Verdict;

/// The most consecutive seconds without a response that get rows, which is as many as the longest run has. Longer gaps
/// in a part's report were not measured.
const GAP_MAX: usize = 24 * 60 * 60;

impl Report {
    /// Returns the figures, the checks, and the seconds of the report.
    pub(in crate::load) fn exported(&self) -> Findings {
        let report = self.value();
        let value = |figure: Figure| match figure.of(&report) {
            Measured::Number(value) => Some(Finding { figure, value, range: None }),
            Measured::Word(_) | Measured::Unknown(_) => None,
        };
        Findings {
            name: self.format.command(),
            values: FIGURES.into_iter().filter_map(value).collect(),
            cases: self.cases(),
            heads: vec!["second", "requests", "p50_us", "p99_us", "max_us", "lower_bounds"],
            rows: self.rows_of_seconds(),
            lines: self
                .limit()
                .into_iter()
                .map(str::to_owned)
                .chain(self.warnings.iter().chain(&self.remarks).cloned())
                .collect(),
        }
    }

    /// Returns a row per second up to the last second during which a request ended.
    fn rows_of_seconds(&self) -> Vec<Vec<String>> {
        let (mut rows, mut next) = (Vec::new(), 0);
        for second in &self.seconds {
            // No request ended in the seconds that are not listed.
            rows.extend((next..second.second).take(GAP_MAX).map(|second| {
                let mut row = vec![String::new(); 6];
                (row[0], row[1]) = (second.to_string(), "0".into());
                row
            }));
            let us = |bound: Option<Bound>| cell(bound.map(|bound| bound.micros));
            let [p50, p99, max] = [second.p50_us, second.p99_us, second.max_us].map(us);
            let bounds = second.lower_bounds.join(" ");
            let counts = [second.second, second.requests].map(|count| count.to_string());
            rows.push(counts.into_iter().chain([p50, p99, max, bounds]).collect());
            next = second.second + 1;
        }
        rows
    }

    /// Returns the conditions that must hold, each with the reason if it does not.
    pub(super) fn cases(&self) -> Vec<Case> {
        let case = |name: &str, failure| Case { name: name.into(), failure };
        let missing = self.requests - self.acknowledged;
        let missing = (missing > 0).then(|| {
            let verb = if missing == 1 { "was" } else { "were" };
            let all = self.unit().count(self.requests);
            format!("{} of {all} {verb} not acknowledged", grouped(missing))
        });
        let verdict = (self.verdict != Verdict::Exact)
            .then(|| format!("the result is not exact: {}", self.reasons.join("; ")));
        let aborted = self.aborted_by.as_ref().map(|threshold| {
            format!(
                "the run was ended after {:.1} s: --abort-if {threshold} could no longer pass",
                self.elapsed_s
            )
        });
        let mut cases = vec![
            case("not interrupted", self.interrupted.then(|| "the run was interrupted".into())),
            case("not ended early", aborted),
            case("verdict", verdict),
            case("every event acknowledged", missing),
        ];
        let flaws = self.flaws();
        if flaws.is_empty() {
            cases.push(case("responses and connections", None));
        }
        cases.extend(flaws.into_iter().map(|flaw| case("responses and connections", Some(flaw))));
        let checked = self.check_thresholds();
        let (fail_if, abort_if) = checked.split_at(self.thresholds.len());
        cases.extend(fail_if.iter().map(|checked| of_threshold("--fail-if", checked)));
        cases.extend(abort_if.iter().map(|checked| of_threshold("--abort-if", checked)));
        cases
    }
}

/// Converts a condition of a flag into a case.
pub(in crate::load) fn of_threshold(flag: &str, checked: &Checked) -> Case {
    let Checked { fail_if, sentence, passed, .. } = checked;
    let name = format!("{flag} {fail_if}");
    let failure = (!passed).then(|| format!("{name}: {sentence}"));
    Case { name, failure }
}
