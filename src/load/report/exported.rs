//! A report as exporters need it.

use super::Report;
use crate::load::export::{Case, Finding, Findings, cell};
use crate::load::figures::{FIGURES, Figure, Measured};
use crate::load::latency::Bound;
use crate::load::numbers::grouped;
use crate::load::thresholds::Checked;
use crate::load::verdict::Verdict;

impl Report {
    /// Returns its figures, what was checked, and its seconds.
    pub(super) fn exported(&self) -> Findings {
        let report = self.value();
        let value = |figure: Figure| match figure.of(&report) {
            Measured::Number(bound) => Some(Finding { figure, value: bound.micros, range: None }),
            Measured::Word(_) | Measured::Unknown(_) => None,
        };
        let rows = self.seconds.iter().map(|second| {
            let us = |bound: Option<Bound>| bound.map(|bound| bound.micros);
            let counts = [second.second, second.requests].map(|count| Some(count as f64));
            let times = [second.p50_us, second.p99_us, second.max_us].map(us);
            counts.into_iter().chain(times).map(cell).collect()
        });
        Findings {
            name: self.format.command(),
            values: FIGURES.into_iter().filter_map(value).collect(),
            cases: self.cases(),
            heads: vec!["second", "requests", "p50_us", "p99_us", "max_us"],
            rows: rows.collect(),
            lines: self.warnings.iter().chain(&self.remarks).cloned().collect(),
        }
    }

    /// Returns what must hold, each with a line that says why it does not.
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

/// Returns a condition of a flag as a case.
pub(super) fn of_threshold(flag: &str, checked: &Checked) -> Case {
    let Checked { fail_if, sentence, passed, .. } = checked;
    let name = format!("{flag} {fail_if}");
    let failure = (!passed).then(|| format!("{name}: {sentence}"));
    Case { name, failure }
}
