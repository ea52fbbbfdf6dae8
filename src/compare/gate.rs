//! Decides whether the head passes the conditions of `--fail-if`: checks them against each change, and finds the obstacles that
//! keep a run from passing whatever its figures are.

use super::change::{ChangeLimit, Holds};
use super::{Compared, RUNS_MIN, Run, too_few};
use crate::failure::Failure;
use crate::load::Case;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

/// The outcome of all conditions together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Decision {
    Passed,
    Failed,
    /// There are too few runs.
    Inconclusive,
}

/// A condition, and whether it holds.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub(super) struct CheckedChange {
    /// The condition, as it was typed.
    pub(super) fail_if: String,
    /// Whether it holds.
    pub(super) holds: Holds,
}

/// The checked conditions, and the obstacles that were found.
pub(super) struct Gate {
    pub(super) checks: Vec<CheckedChange>,
    /// The reasons why runs cannot pass, one sentence each.
    pub(super) obstacles: Vec<String>,
    runs: [usize; 2],
}

impl Gate {
    pub(super) fn of(
        limits: &[ChangeLimit],
        figures: &[Compared],
        base: &[Run],
        head: &[Run],
    ) -> Gate {
        let check = |limit: &ChangeLimit| {
            let found = figures.iter().find(|compared| compared.figure == limit.figure);
            let found = found.filter(|compared| !compared.has_zero);
            let holds = found.map_or(Holds::Unknown, |compared| {
                limit.check(compared.change.as_ref(), compared.beyond)
            });
            CheckedChange { fail_if: limit.text().into(), holds }
        };
        let checks: Vec<CheckedChange> = limits.iter().map(check).collect();
        let obstacles = if checks.is_empty() { Vec::new() } else { obstacles(base, head) };
        Gate { checks, obstacles, runs: [base.len(), head.len()] }
    }

    /// Returns the outcome of all conditions together; `None` without conditions.
    pub(super) fn outcome(&self) -> Option<Decision> {
        let mut holds = self.checks.iter().map(|check| check.holds);
        let fails = |holds| matches!(holds, Holds::Yes | Holds::Bound | Holds::Unknown);
        if self.checks.is_empty() {
            None
        } else if !self.obstacles.is_empty() || holds.clone().any(fails) {
            Some(Decision::Failed)
        } else if holds.any(|holds| holds == Holds::Inconclusive) {
            Some(Decision::Inconclusive)
        } else {
            Some(Decision::Passed)
        }
    }

    /// Fails with a line for each obstacle and each condition that was not passed.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let lines = || {
            let checks = self.checks.iter().filter_map(|CheckedChange { fail_if, holds }| {
                Some(format!("--fail-if {fail_if}: {}", why_not_passed(*holds)?))
            });
            self.obstacles.iter().cloned().chain(checks).collect::<Vec<_>>().join("\n")
        };
        match self.outcome() {
            None | Some(Decision::Passed) => Ok(()),
            Some(Decision::Failed) => Err(Failure::Wrong(lines())),
            Some(Decision::Inconclusive) => {
                Err(Failure::Usage(too_few(self.runs[0], self.runs[1])))
            }
        }
    }
}

/// Returns the reason why a condition was not passed, unless it was. An undecided condition passes, so that noise alone never
/// causes a failure.
fn why_not_passed(holds: Holds) -> Option<&'static str> {
    match holds {
        Holds::No | Holds::Undecided => None,
        Holds::Yes => Some("it holds"),
        Holds::Inconclusive => Some("it is not known, because there are too few runs"),
        Holds::Bound => Some("it may hold, because the figure of a run is only a bound"),
        Holds::Unknown => Some("it is not known, because a run has no such figure, or one of zero"),
    }
}

impl CheckedChange {
    /// Returns it as a case for exporters.
    pub(super) fn case(&self) -> Case {
        let name = format!("--fail-if {}", self.fail_if);
        Case { name, failure: why_not_passed(self.holds).map(str::to_owned) }
    }

    /// Returns it as a line for a reader.
    pub(super) fn line(&self) -> String {
        let fail_if = &self.fail_if;
        match (self.holds, why_not_passed(self.holds)) {
            (Holds::Undecided, _) => {
                format!("undecided {fail_if}: a part of the interval is beyond it, make more runs")
            }
            (Holds::Inconclusive, _) => {
                format!("inconclusive {fail_if}: {RUNS_MIN} runs per side are needed")
            }
            (_, Some(why)) => format!("failed {fail_if}: {why}"),
            (_, None) => format!("passed {fail_if}"),
        }
    }
}

/// Returns the reasons why runs cannot pass, whatever their figures are.
fn obstacles(base: &[Run], head: &[Run]) -> Vec<String> {
    let verdict = |run: &Run| run.report.get("verdict").and_then(Value::as_str).map(str::to_owned);
    let not_acknowledged = |run: &Run| {
        let requests = run.number("/requests").filter(|requests| *requests > 0.0)?;
        Some(1.0 - run.number("/acknowledged")? / requests)
    };
    let has =
        |run: &Run, pointer: &str| run.report.pointer(pointer).is_some_and(|it| !it.is_null());
    let is_interrupted =
        |run: &Run| run.report.get("interrupted") == Some(&true.into()) || has(run, "/aborted_by");
    let is_short = |run: &Run| {
        // A run that ended before the peak of a ramp needed fewer connections; `load` itself fails if it did not get those.
        if has(run, "/setup/connections_over_time") {
            return false;
        }
        let open = run.number("/connections_open");
        open.zip(run.number("/setup/connections")).is_some_and(|(open, all)| open < all)
    };
    let is_malformed =
        |run: &Run| run.number("/malformed").is_some_and(|malformed| malformed > 0.0);
    // Events that an aborted run left unsent do not excuse a head.
    let whole = base.iter().filter(|run| !is_interrupted(run));
    let most_of_base = whole.filter_map(not_acknowledged).fold(0.0, f64::max);
    let mut found = Vec::new();
    let mut note = |runs: &[Run], is_it: &dyn Fn(&Run) -> bool, why: &dyn Fn(&str) -> String| {
        let files: Vec<&str> =
            runs.iter().filter(|run| is_it(run)).map(|run| run.file.as_str()).collect();
        if !files.is_empty() {
            found.push(why(&files.join(", ")));
        }
    };
    note(base, &|run| verdict(run).as_deref() == Some("wrong"), &|files| {
        format!("the base is wrong in {files}: make its runs again, without those")
    });
    for runs in [base, head] {
        note(runs, &is_interrupted, &|files| {
            format!("{files} was interrupted, or ended by --abort-if: make that run again")
        });
        note(runs, &is_short, &|files| {
            format!("fewer connections than asked were open in {files}: see why in the reports")
        });
        note(runs, &is_malformed, &|files| {
            format!("responses were malformed or not asked for in {files}: see the reports")
        });
    }
    note(head, &|run| verdict(run).as_deref() != Some("exact"), &|files| {
        format!("the head is not exact in {files}: see why in the reports")
    });
    note(head, &|run| not_acknowledged(run).is_some_and(|share| share > most_of_base), &|files| {
        let percent = (most_of_base * 1e6).round() / 1e4;
        format!(
            "more requests than the base's {percent}% were not acknowledged in {files}: see why in the reports"
        )
    });
    note(head, &Run::is_client_limited, &|files| {
        format!("the client was the limit in {files}: give it more CPUs, or lower the load")
    });
    found
}

#[cfg(test)]
mod tests {
    use super::super::tests::{compare, group, with};
    use super::*;
    use crate::load::Figure;
    use serde_json::json;

    const LIMITS: [&str; 2] = ["p99>+5%", "rps<-3%"];

    /// Returns the exit code and the message after a change to all heads, or only to the first.
    fn judged(change: impl Fn(&mut Value), is_one: bool) -> (u8, String) {
        let (base, mut head) = (group(10_000.0, 1000.0), group(10_000.0, 1000.0));
        let changed = if is_one { 1 } else { head.len() };
        head.iter_mut().take(changed).for_each(|run| change(&mut run.report));
        match compare(&base, &head, &LIMITS).gate.check() {
            Ok(()) => (0, String::new()),
            Err(failure) => (failure.exit_code(), failure.to_string()),
        }
    }

    #[test]
    fn a_head_whose_figures_are_not_what_was_asked_for_cannot_pass() {
        assert_eq!(judged(|_| {}, false), (0, String::new()));
        type Change = fn(&mut Value);
        let changes: [(Change, &str); 9] = [
            (|report| report["interrupted"] = true.into(), "was interrupted"),
            (|report| report["connections_open"] = 48.into(), "fewer connections than asked"),
            (|report| report["malformed"] = 1.into(), "malformed"),
            (|report| report["verdict"] = "wrong".into(), "the head is not exact"),
            (|report| report["verdict"] = "undecided".into(), "the head is not exact"),
            (|report| report["acknowledged"] = 999.into(), "were not acknowledged"),
            (|report| report["acknowledged"] = 0.into(), "were not acknowledged"),
            (|report| report["client_limited"] = true.into(), "the client was the limit"),
            (|report| report["latency_us"]["lower_bounds"] = json!(["p99"]), "only a bound"),
        ];
        for (change, says) in changes {
            for is_one in [true, false] {
                let (code, said) = judged(change, is_one);
                assert!(code == 1 && said.contains(says), "{says}, one: {is_one}: {said}");
            }
        }
        // Without a condition, nothing fails.
        let (base, mut head) = (group(10_000.0, 1000.0), group(10_000.0, 1000.0));
        head[0].report["verdict"] = "wrong".into();
        assert_eq!(compare(&base, &head, &[]).gate.check(), Ok(()));
    }

    #[test]
    fn a_head_may_lack_what_the_base_lacks() {
        let (mut base, mut head) = (group(10_000.0, 1000.0), group(10_000.0, 1000.0));
        for run in base.iter_mut().chain(&mut head) {
            run.report["acknowledged"] = 990.into();
        }
        assert_eq!(compare(&base, &head, &LIMITS).gate.check(), Ok(()));
        head[3].report["acknowledged"] = 989.into();
        let said = compare(&base, &head, &LIMITS).gate.check().unwrap_err().to_string();
        assert!(said.contains("the base's 1% were not acknowledged"), "{said}");
    }

    #[test]
    fn a_stall_of_the_client_decides_nothing_about_the_latencies_that_it_reaches() {
        let (base, mut head) = (group(10_000.0, 1000.0), group(10_000.0, 2000.0));
        for (due_in_stalls, holds) in [(9, Holds::Yes), (10, Holds::Bound)] {
            for run in &mut head {
                run.report["open_loop"] = json!({ "due_in_stalls": due_in_stalls });
            }
            assert_eq!(compare(&base, &head, &["p99>+5%"]).gate.checks[0].holds, holds);
        }
    }

    #[test]
    fn a_base_that_ended_early_excuses_no_head() {
        for (key, value) in [("interrupted", json!(true)), ("aborted_by", json!("max>1s"))] {
            let (mut base, mut head) = (group(10_000.0, 1000.0), group(10_000.0, 1000.0));
            base[0].report[key] = value;
            base[0].report["acknowledged"] = 100.into();
            head[0].report["acknowledged"] = 500.into();
            let said = compare(&base, &head, &LIMITS).gate.check().unwrap_err().to_string();
            assert!(said.contains("the base's 0% were not acknowledged"), "{said}");
        }
    }

    #[test]
    fn a_head_that_ended_early_cannot_pass() {
        let aborted = |run: &mut Value| run["aborted_by"] = "max>1s".into();
        assert!(judged(aborted, true).1.contains("ended by --abort-if"));
        assert_eq!(judged(|run| run["aborted_by"] = Value::Null, true).0, 0);
    }

    #[test]
    fn a_ramp_that_did_not_reach_its_peak_is_not_short_of_connections() {
        let short = |run: &mut Value| run["connections_open"] = 0.into();
        assert!(judged(short, true).1.contains("fewer connections than asked"));
        let ramps = || {
            let mut runs = group(10_000.0, 1000.0);
            for run in &mut runs {
                short(&mut run.report);
                run.report["setup"]["connections_over_time"] = "1:64".into();
            }
            runs
        };
        assert_eq!(compare(&ramps(), &ramps(), &LIMITS).gate.check(), Ok(()));
    }

    #[test]
    fn a_base_that_is_no_measure_passes_no_head() {
        let (mut base, head) = (group(10_000.0, 1000.0), group(10_000.0, 1000.0));
        base[2].report["client_limited"] = true.into();
        let said = compare(&base, &head, &LIMITS).gate.check().unwrap_err().to_string();
        assert_eq!(said.matches("only a bound").count(), 2, "{said}");
        // The base took at least this rate, so a head that does not take more has not gained.
        assert_eq!(compare(&base, &head, &["rps>+5%"]).gate.check(), Ok(()));
        base[2].report["client_limited"] = false.into();
        base[2].report["verdict"] = "wrong".into();
        let said = compare(&base, &head, &LIMITS).gate.check().unwrap_err().to_string();
        assert!(said.contains("the base is wrong"), "{said}");
    }

    #[test]
    fn a_lower_bound_fails_unless_it_decides() {
        let (base, mut head) = (group(10_000.0, 1000.0), group(10_000.0, 2000.0));
        for run in &mut head {
            run.report["latency_us"]["lower_bounds"] = json!(["p99"]);
        }
        let holds = |limit| compare(&base, &head, &[limit]).gate.checks[0].holds;
        assert_eq!((holds("p99>+5%"), holds("p99<-5%")), (Holds::Yes, Holds::No));
        assert_eq!((holds("p99>+150%"), holds("p50>+5%")), (Holds::Bound, Holds::No));
    }

    #[test]
    fn too_few_runs_are_inconclusive_and_the_number_is_told() {
        for (base_runs, head_runs, code) in [(1, 1, 2), (4, 7, 2), (7, 1, 2), (5, 5, 0)] {
            let (mut base, mut head) = (group(10_000.0, 1000.0), group(9_999.0, 1000.0));
            base.truncate(base_runs);
            head.truncate(head_runs);
            let found = compare(&base, &head, &["rps<-5%"]);
            let checked = found.gate.check();
            assert_eq!(checked.as_ref().map_or_else(Failure::exit_code, |()| 0), code);
            if let Err(failure) = checked {
                let says = format!("5 runs per side, and there are {base_runs} and {head_runs}");
                assert!(failure.to_string().contains(&says), "{failure}");
                assert!(found.table().contains("inconclusive rps<-5%"), "{}", found.table());
                assert!(found.json().contains("\"low_percent\": null"));
            }
        }
        // A wrong head is wrong, however few runs there are.
        let (base, mut head) = (group(10_000.0, 1000.0), group(10_000.0, 1000.0));
        head.truncate(1);
        head[0].report["verdict"] = "wrong".into();
        assert_eq!(compare(&base, &head, &LIMITS).gate.check().unwrap_err().exit_code(), 1);
    }

    /// Runs differ by noise alone, which is normally distributed or has a tail, and some runs are disturbed. A condition that
    /// holds as soon as there is a change fails at most one in 20 comparisons on each side.
    #[test]
    fn noise_fails_one_comparison_in_twenty_at_most_and_planted_changes_are_found() {
        let comparisons = 300;
        let p99 = Figure::named("p99", &Figure::all_compared()).unwrap();
        let fails = |base: &[Run], head: &[Run], limit: &str| {
            let figures = [Compared::of(p99, base, head).unwrap()];
            Gate::of(&[limit.parse().unwrap()], &figures, base, head).check().is_err()
        };
        for runs in [RUNS_MIN, 7, 12] {
            for disturbed in [0.0, 0.1] {
                let mut random = fastrand::Rng::with_seed(runs as u64);
                let mut noisy = |center: f64| {
                    let normal = (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
                    let tail = random.f64() * random.f64();
                    let hit = if random.f64() < disturbed { 0.3 } else { 0.0 };
                    center * (0.02 * normal + 0.02 * tail + hit).exp()
                };
                let mut failed = [0; 3];
                for _ in 0..comparisons {
                    let mut side = |center: f64| -> Vec<Run> {
                        (0..runs).map(|_| with(10_000.0, noisy(center))).collect()
                    };
                    let (base, same, slower) = (side(1000.0), side(1000.0), side(1250.0));
                    failed[0] += usize::from(fails(&base, &same, "p99>0%"));
                    failed[1] += usize::from(fails(&base, &same, "p99<0%"));
                    failed[2] += usize::from(fails(&base, &slower, "p99>+5%"));
                }
                let [above, below, planted] =
                    failed.map(|count| count as f64 / f64::from(comparisons));
                assert!(above <= 0.05 && below <= 0.05, "{runs} runs: {above} and {below}");
                // A disturbed run widens the interval, up to the limit.
                let least = if disturbed > 0.0 { 0.5 } else { 0.9 };
                assert!(planted >= least, "{runs} runs, {disturbed} disturbed: {planted}");
            }
        }
    }
}
