//! Whether some runs differ from others, from their reports: medians, and bootstrap intervals of their
//! ratios. Runs are compared only if nothing else differs than what the user names.

mod change;
mod page;
mod tell;

use crate::doctor::{self, Difference};
use crate::failure::Failure;
use crate::load::write_to;
use crate::statistics::{Interval, median};
pub use change::ChangeLimit;
use change::{FIGURES, Figure, Holds};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The seed of the bootstrap: the same reports always give the same intervals.
const SEED: u64 = 1;
/// From fewer runs the interval of a median is rough: it cannot be wider than its values.
const RUNS_MIN: usize = 5;

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The reports of the runs to compare with.
    pub base: Vec<PathBuf>,
    /// The reports of the runs that may differ.
    pub head: Vec<PathBuf>,
    /// What is meant to differ between them.
    pub differences: Vec<String>,
    /// Changes that are failures.
    pub fail_if: Vec<ChangeLimit>,
    /// Where the comparison goes as JSON, Markdown, and a page; `-` is standard output.
    pub json: Option<PathBuf>,
    /// See `json`.
    pub markdown: Option<PathBuf>,
    /// See `json`.
    pub html: Option<PathBuf>,
    /// Whether to print no table.
    pub quiet: bool,
}

/// A report, and the file that it is in.
struct Run {
    file: String,
    report: Value,
}

impl Run {
    fn read(path: &Path) -> Result<Run, Failure> {
        let file = path.display().to_string();
        let unusable = |why: String| {
            Failure::Usage(format!(
                "cannot compare {file}: {why}: pass reports that load, challenge, or merge wrote with \
                 --json"
            ))
        };
        let text = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
        let report: Value =
            serde_json::from_slice(&text).map_err(|error| unusable(error.to_string()))?;
        if report.get("part_report_format").is_some() {
            return Err(unusable("it is of a part: merge the parts first".into()));
        }
        if report.pointer("/requests_per_s").and_then(Value::as_f64).is_none() {
            return Err(unusable("it is not the report of a run".into()));
        }
        Ok(Run { file, report })
    }

    fn figure(&self, figure: &Figure) -> Option<f64> {
        self.report.pointer(figure.pointer)?.as_f64()
    }

    /// Whether a latency is only known to be this or more.
    fn is_lower_bound(&self, figure: &Figure) -> bool {
        let name = figure.pointer.rsplit('/').next().unwrap_or_default();
        let bounds = self.report.pointer("/latency_us/lower_bounds").and_then(Value::as_array);
        figure.kind == change::Kind::Latency
            && bounds.is_some_and(|bounds| bounds.iter().any(|bound| bound == name))
    }
}

/// A figure of both groups of runs.
struct Compared {
    figure: Figure,
    /// The medians.
    base: f64,
    head: f64,
    /// The logarithm of their ratio; `None` if a run has a figure of zero.
    change: Option<Interval>,
    /// Runs in which it is a lower bound.
    lower_bounds: usize,
}

/// A condition, and whether it holds.
struct Checked {
    fail_if: String,
    /// `None` if the change is not known.
    holds: Option<Holds>,
}

/// What was found.
struct Comparison {
    base: Vec<String>,
    head: Vec<String>,
    differences: Vec<Difference>,
    figures: Vec<Compared>,
    checks: Vec<Checked>,
    notes: Vec<String>,
}

/// Compares runs, and tells what was found.
///
/// # Errors
///
/// If a file is not a report, if the runs differ in something that was not named, or if a change is a
/// failure.
pub fn run(config: &Config) -> Result<(), Failure> {
    let read = |paths: &[PathBuf]| paths.iter().map(|path| Run::read(path)).collect();
    let base: Result<Vec<Run>, Failure> = read(&config.base);
    let head: Result<Vec<Run>, Failure> = read(&config.head);
    let (base, head) = (base?, head?);
    let comparison = Comparison::of(&base, &head, &config.differences, &config.fail_if)?;
    if let Some(path) = &config.json {
        write_to(path, &format!("{:#}\n", comparison.json()))?;
    }
    if let Some(path) = &config.markdown {
        write_to(path, &comparison.markdown())?;
    }
    if let Some(path) = &config.html {
        write_to(path, &comparison.html(&base, &head)?)?;
    }
    if !config.quiet {
        let on_stdout = |path: &Option<PathBuf>| path.as_deref() == Some(Path::new("-"));
        match [&config.json, &config.markdown, &config.html].into_iter().any(on_stdout) {
            false => write_to(Path::new("-"), &comparison.table())?,
            true => eprint!("{}", comparison.table()),
        }
    }
    comparison.check()
}

impl Comparison {
    fn of(
        base: &[Run],
        head: &[Run],
        named: &[String],
        limits: &[ChangeLimit],
    ) -> Result<Comparison, Failure> {
        let differences = differences(base, head)?;
        let (wanted, others): (Vec<Difference>, Vec<Difference>) =
            differences.into_iter().partition(|difference| named.contains(&difference.what));
        if !others.is_empty() {
            let list = others
                .iter()
                .map(|Difference { what, values: [a, b] }| format!("\n  {what}: {a} | {b}"));
            return Err(Failure::Usage(format!(
                "the runs differ in more than what is compared: name what is meant to differ with \
                 --difference NAME, or compare other runs{}",
                list.collect::<String>()
            )));
        }
        let figures: Vec<Compared> =
            FIGURES.into_iter().filter_map(|figure| Compared::of(figure, base, head)).collect();
        let check = |limit: &ChangeLimit| {
            let found = figures.iter().find(|compared| compared.figure == limit.figure);
            let change = found.and_then(|compared| compared.change.as_ref());
            Checked {
                fail_if: limit.text().into(),
                holds: change.map(|change| limit.check(change)),
            }
        };
        Ok(Comparison {
            checks: limits.iter().map(check).collect(),
            notes: notes(base, head, &figures),
            base: base.iter().map(|run| run.file.clone()).collect(),
            head: head.iter().map(|run| run.file.clone()).collect(),
            differences: wanted,
            figures,
        })
    }

    /// A failure with a line for each condition that holds.
    fn check(&self) -> Result<(), Failure> {
        let failed = |check: &Checked| match check.holds {
            Some(Holds::Yes) => Some(format!("--fail-if {}: it holds", check.fail_if)),
            Some(Holds::No | Holds::Undecided) => None,
            None => Some(format!(
                "--fail-if {}: it is not known, because a run has no such figure, or one of zero",
                check.fail_if
            )),
        };
        let failed: Vec<String> = self.checks.iter().filter_map(failed).collect();
        match failed.is_empty() {
            true => Ok(()),
            false => Err(Failure::Wrong(failed.join("\n"))),
        }
    }
}

impl Compared {
    /// `None` if a run does not have the figure.
    fn of(figure: Figure, base: &[Run], head: &[Run]) -> Option<Compared> {
        let values = |runs: &[Run]| -> Option<Vec<f64>> {
            runs.iter().map(|run| run.figure(&figure)).collect()
        };
        let (mut base_values, mut head_values) = (values(base)?, values(head)?);
        let all = base.iter().chain(head);
        Some(Compared {
            figure,
            change: Interval::between(&base_values, &head_values, SEED),
            base: median(&mut base_values)?,
            head: median(&mut head_values)?,
            lower_bounds: all.filter(|run| run.is_lower_bound(&figure)).count(),
        })
    }
}

/// What differs between any of the runs and the first, each thing once.
fn differences(base: &[Run], head: &[Run]) -> Result<Vec<Difference>, Failure> {
    let mut found: Vec<Difference> = Vec::new();
    let Some(first) = base.first() else { return Ok(found) };
    // First those between the groups, whose values are the ones to tell.
    for run in head.iter().chain(base) {
        let differences = doctor::differences(&first.report, &run.report).map_err(|why| {
            Failure::Usage(format!("cannot compare {} with {}: {why}", first.file, run.file))
        })?;
        for difference in differences {
            if found.iter().all(|known| known.what != difference.what) {
                found.push(difference);
            }
        }
    }
    Ok(found)
}

/// What a reader must know.
fn notes(base: &[Run], head: &[Run], figures: &[Compared]) -> Vec<String> {
    let mut notes = Vec::new();
    let fewest = base.len().min(head.len());
    if fewest < RUNS_MIN {
        notes.push(format!(
            "an interval from fewer than {RUNS_MIN} runs per side is rough: make more runs"
        ));
    }
    let all = || base.iter().chain(head);
    let count = all().count();
    let inexact =
        all().filter(|run| run.report.get("verdict") != Some(&Value::from("exact"))).count();
    if inexact > 0 {
        notes.push(format!("the verdict of {inexact} of {count} runs is not exact"));
    }
    let limited =
        all().filter(|run| run.report.get("client_limited") == Some(&true.into())).count();
    if limited > 0 {
        notes.push(format!(
            "the client was the limit in {limited} of {count} runs: a change of the server may not show"
        ));
    }
    for Compared { figure, lower_bounds, .. } in figures {
        if *lower_bounds > 0 {
            notes.push(format!(
                "{} is a lower bound in {lower_bounds} of {count} runs",
                figure.name
            ));
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn environment(host: &str) -> Value {
        json!({
            "version": "1", "date": "now", "host": host, "kernel": "6.1", "cpu_model": "x",
            "cpus_online": "0-1", "cpus_allowed": "0-1", "memory_bytes": 1, "checks": [],
        })
    }

    /// A run with such a rate and 99th percentile.
    fn with(rps: f64, p99: f64) -> Run {
        let latency = json!({"p50": 100.0, "p99": p99, "lower_bounds": []});
        Run {
            file: format!("{rps}.json"),
            report: json!({
                "requests": 1000, "requests_per_s": rps, "latency_us": latency, "verdict": "exact",
                "client_limited": false, "client_cpu_us_per_request": 0.0,
                "setup": {"engine": "ring"}, "environment": environment("a"),
            }),
        }
    }

    fn group(rps: f64, p99: f64) -> Vec<Run> {
        (0..7).map(|run| with(rps + f64::from(run), p99 + f64::from(run))).collect()
    }

    fn compare(base: &[Run], head: &[Run], limits: &[&str]) -> Comparison {
        let limits: Vec<ChangeLimit> = limits.iter().map(|text| text.parse().unwrap()).collect();
        Comparison::of(base, head, &[], &limits).unwrap()
    }

    #[test]
    fn a_change_is_found_with_its_size_and_fails_if_that_was_asked_for() {
        let (base, head) = (group(10_000.0, 1000.0), group(9_000.0, 1200.0));
        let limits = ["p99>+5%", "rps<-3%", "rps>+1%", "p99>+25%"];
        let found = compare(&base, &head, &limits);
        assert_eq!((found.figures[0].base, found.figures[0].head), (10_003.0, 9_003.0));
        let holds: Vec<_> = found.checks.iter().map(|check| check.holds).collect();
        assert_eq!(holds, [Some(Holds::Yes), Some(Holds::Yes), Some(Holds::No), Some(Holds::No)]);
        let failure = found.check().unwrap_err();
        assert_eq!(failure.exit_code(), 1);
        assert_eq!(failure.to_string().lines().count(), 2, "{failure}");
        assert_eq!(compare(&base, &base, &limits).check(), Ok(()));
        let table = found.table();
        assert!(table.contains("rps") && table.contains("-10.0 %"), "{table}");
        assert!(
            found.markdown().contains("| p99 | 1.003 ms | 1.203 ms | +19.9 % ["),
            "{}",
            found.markdown()
        );
        let page = found.html(&base, &head).unwrap();
        assert!(page.contains("+19.9 % [") && !page.contains("<script"), "{page}");
        // A line per run, of the percentiles that it has.
        assert_eq!(
            page.matches("<polyline fill=\"none\" opacity=\"1\" stroke=\"#B25A1F\"").count(),
            7
        );
        assert_eq!(page.matches("<title>99.0000 %: 1.00 ms</title>").count(), 5);
        let json = found.json();
        assert_eq!(json["figures"]["p99"]["base"], 1003.0);
        assert!((json["figures"]["p99"]["change_percent"].as_f64().unwrap() - 19.94).abs() < 0.1);
        assert_eq!(json["checks"][0], json!({"fail_if": "p99>+5%", "holds": "yes"}));
    }

    #[test]
    fn runs_that_differ_in_something_else_are_not_compared() {
        let base = group(10_000.0, 1000.0);
        let mut head = group(10_000.0, 1000.0);
        head[3].report["environment"]["host"] = "b".into();
        head[4].report["setup"]["engine"] = "streams".into();
        let refused = |named: &[&str]| {
            let named: Vec<String> = named.iter().map(|name| (*name).to_owned()).collect();
            Comparison::of(&base, &head, &named, &[]).err().map(|failure| failure.to_string())
        };
        let said = refused(&[]).unwrap();
        assert!(said.contains("host: a | b") && said.contains("engine: ring | streams"), "{said}");
        let said = refused(&["engine"]).unwrap();
        assert!(said.contains("host: a | b") && !said.contains("engine: ring"), "{said}");
        assert_eq!(refused(&["engine", "host"]), None);
        // Also within a group.
        let said = Comparison::of(&head, &head, &[], &[]).err().unwrap().to_string();
        assert!(said.contains("host: a | b"), "{said}");
    }

    #[test]
    fn what_limits_the_result_is_noted() {
        let (base, mut head) = (group(10_000.0, 1000.0), group(10_000.0, 1000.0));
        assert!(compare(&base, &head, &[]).notes.is_empty());
        head.truncate(4);
        head[0].report["verdict"] = "wrong".into();
        head[1].report["client_limited"] = true.into();
        head[2].report["latency_us"]["lower_bounds"] = json!(["p99"]);
        let notes = compare(&base, &head, &[]).notes.join("\n");
        for words in [
            "fewer than 5 runs",
            "verdict of 1 of 11 runs",
            "the limit in 1 of 11 runs",
            "p99 is a lower bound in 1 of 11",
        ] {
            assert!(notes.contains(words), "{words}: {notes}");
        }
    }

    #[test]
    fn a_figure_that_a_run_does_not_have_is_left_out_and_fails_its_condition() {
        let (base, mut head) = (group(10_000.0, 1000.0), group(10_000.0, 1000.0));
        head[6].report["latency_us"]["p99"] = Value::Null;
        let found = compare(&base, &head, &["p99>+5%", "client_cpu_us>+5%"]);
        assert!(!found.table().contains("\np99"), "{}", found.table());
        let said = found.check().unwrap_err().to_string();
        assert_eq!(said.matches("it is not known").count(), 2, "{said}");
    }
}
