//! Determines from their reports whether some runs differ from others: medians, and bootstrap intervals of their ratios. Runs
//! are compared only if nothing differs except what the user names.

mod change;
mod gate;
mod page;
mod perf;
mod render;

use crate::doctor::{self, Difference};
use crate::document::{self, Format};
use crate::failure::Failure;
use crate::load::{Bound, Destination, Export, Figure, Measured, Quantity, put, write_exports};
use crate::statistics::{Interval, median};
use crate::terminal;
use change::Beyond;
pub use change::ChangeLimit;
use clap::ValueEnum;
use gate::Gate;
pub use perf::{Counted, Counts, Instructions, Paired, PairedFigure, Perf, Ratio};
pub use render::schema;
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The seed of the bootstrap: the same reports always give the same intervals.
const SEED: u64 = 1;
/// The least number of runs per side for an interval. With one run per side, the interval would not have a width, and
/// noise alone would put it beyond a limit in every second comparison; with four, in one of 28.
pub(crate) const RUNS_MIN: usize = 5;

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// The reports of the runs to compare with.
    pub base: Vec<PathBuf>,
    /// The reports of the runs that may differ.
    pub head: Vec<PathBuf>,
    /// The intended differences between them.
    pub differences: Vec<String>,
    /// The required similarity of their machines.
    pub same: Same,
    /// Changes that are failures.
    pub fail_if: Vec<ChangeLimit>,
    /// The destinations of the comparison.
    pub output: Output,
}

/// The required similarity of the machines of runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Same {
    /// Everything: they are one machine
    Machine,
    /// The model and the number of CPUs, the kernel, and all settings, as runners of one class have them
    Class,
}

impl Same {
    /// The checks that may differ between machines of one class.
    const WITHIN_CLASS: [&str; 2] = ["host", "memory_bytes"];

    /// Reports whether a difference does not matter.
    fn ignores(self, difference: &Difference) -> bool {
        self == Same::Class && Same::WITHIN_CLASS.contains(&difference.what.as_str())
    }
}

/// The destinations of a comparison.
#[derive(Debug)]
pub struct Output {
    /// The destinations as JSON, as Markdown, and as a page.
    places: [Option<Destination>; 3],
    exports: (Vec<Export>, Vec<Destination>),
    /// Whether to suppress the table.
    quiet: bool,
}

impl Output {
    /// Opens the destinations that `--json`, `--markdown`, `--html`, and `--export` name; `-` is standard output. `quiet` is
    /// true if `--quiet` was given.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] if two of them are the same, and [`Failure::Environment`] if one cannot be written.
    pub fn open(
        json: Option<PathBuf>,
        markdown: Option<PathBuf>,
        html: Option<PathBuf>,
        exports: Vec<Export>,
        quiet: bool,
    ) -> Result<Output, Failure> {
        let flags = [("--json", json), ("--markdown", markdown), ("--html", html)];
        let of_exports = exports.iter().map(Export::place).collect();
        let (places, of_exports) = Destination::open_all(flags, of_exports)?;
        Ok(Output { places, exports: (exports, of_exports), quiet })
    }
}

/// A report, and the file that contains it.
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
        let (_, report) = document::read(&text, &Format::RUNS).map_err(unusable)?;
        Ok(Run { file, report })
    }

    /// Returns a figure of the run; `None` if the run does not have it.
    fn figure(&self, figure: &Figure) -> Option<Bound> {
        match figure.of(&self.report) {
            Measured::Number(bound) => Some(bound),
            Measured::Word(_) | Measured::Unknown(_) => None,
        }
    }

    /// Reports whether a latency is known only to be this value or more.
    fn is_lower_bound(&self, figure: &Figure) -> bool {
        self.figure(figure).is_some_and(|bound| bound.is_at_least)
    }

    /// Returns the number at a place in the report.
    fn number(&self, pointer: &str) -> Option<f64> {
        self.report.pointer(pointer)?.as_f64()
    }

    fn is_client_limited(&self) -> bool {
        self.report.get("client_limited") == Some(&true.into())
    }

    /// Returns whether the figure of the server alone may lie below or above the measured one. A client that is the limit sends
    /// less than the server can take, and adds its own lateness to latencies.
    fn beyond(&self, figure: &Figure) -> Beyond {
        let is_limited = self.is_client_limited();
        match figure.quantity {
            Quantity::Rate => Beyond { below: false, above: is_limited },
            Quantity::Latency => Beyond {
                below: is_limited || self.has_own_stall_in(figure),
                above: self.is_lower_bound(figure),
            },
            _ => Beyond::default(),
        }
    }

    /// Reports whether a latency may come from requests that were due while the client did not run.
    fn has_own_stall_in(&self, figure: &Figure) -> bool {
        let late = self.number("/open_loop/due_in_stalls").unwrap_or(0.0);
        // The maximum and the mean may depend on a single request.
        let requests = self.number("/requests").unwrap_or(0.0);
        late > 0.0 && late >= requests * figure.share_above()
    }
}

/// A figure of both groups of runs.
struct Compared {
    figure: Figure,
    /// The medians.
    base: f64,
    head: f64,
    /// Whether a figure of a run is zero, so that a ratio is undefined.
    has_zero: bool,
    /// The logarithm of their ratio; `None` with a zero, or with too few runs.
    change: Option<Interval>,
    /// Whether the true change may lie below or above the interval.
    beyond: Beyond,
    /// The number of runs whose figure is a lower bound.
    lower_bounds: usize,
}

/// The findings of a comparison.
struct Comparison {
    base: Vec<String>,
    head: Vec<String>,
    differences: Vec<Difference>,
    figures: Vec<Compared>,
    gate: Gate,
    notes: Vec<String>,
}

/// Compares runs, and reports the findings.
///
/// # Errors
///
/// If a file is not a report, if the runs differ in something that was not named, or if a change is a
/// failure.
pub fn run(config: Config) -> Result<(), Failure> {
    let read = |paths: &[PathBuf]| paths.iter().map(|path| Run::read(path)).collect();
    let base: Result<Vec<Run>, Failure> = read(&config.base);
    let head: Result<Vec<Run>, Failure> = read(&config.head);
    let (base, head) = (base?, head?);
    let comparison =
        Comparison::of(&base, &head, &config.differences, config.same, &config.fail_if)?;
    let written = comparison.write(config.output, &base, &head);
    Failure::all([comparison.gate.check(), written])
}

impl Comparison {
    fn of(
        base: &[Run],
        head: &[Run],
        named: &[String],
        same: Same,
        limits: &[ChangeLimit],
    ) -> Result<Comparison, Failure> {
        let differences = differences(base, head)?;
        let (wanted, others): (Vec<Difference>, Vec<Difference>) =
            differences.into_iter().partition(|difference| named.contains(&difference.what));
        let (ignored, others): (Vec<Difference>, Vec<Difference>) =
            others.into_iter().partition(|difference| same.ignores(difference));
        if !others.is_empty() {
            let is_one_class = others.iter().all(|difference| Same::Class.ignores(difference));
            let class = if is_one_class {
                ", pass --same class if the machines are of one kind"
            } else {
                ""
            };
            let list = others
                .iter()
                .map(|Difference { what, values: [a, b] }| format!("\n  {what}: {a} | {b}"));
            return Err(Failure::Usage(format!(
                "the runs differ in more than what is compared: name what is meant to differ with \
                 --difference NAME{class}, or compare other runs{}",
                list.collect::<String>()
            )));
        }
        let figures = Figure::all_compared().into_iter();
        let figures: Vec<Compared> =
            figures.filter_map(|figure| Compared::of(figure, base, head)).collect();
        Ok(Comparison {
            gate: Gate::of(limits, &figures, base, head),
            notes: ignored.iter().map(ignoring).chain(notes(base, head, &figures)).collect(),
            base: base.iter().map(|run| run.file.clone()).collect(),
            head: head.iter().map(|run| run.file.clone()).collect(),
            differences: wanted,
            figures,
        })
    }

    fn write(&self, output: Output, base: &[Run], head: &[Run]) -> Result<(), Failure> {
        let Output { places, exports: (exports, of_exports), quiet } = output;
        let mut all = places.iter().flatten().chain(&of_exports);
        let is_on_stdout = all.any(Destination::is_stdout);
        let [json, markdown, html] = places;
        let written = [
            put(json, || Ok(self.json())),
            put(markdown, || Ok(self.markdown())),
            put(html, || self.html(base, head)),
        ];
        let table = match (quiet, is_on_stdout) {
            (true, _) => Ok(()),
            (false, false) => terminal::print(&self.table()),
            (false, true) => {
                // If standard error is closed, nobody reads it.
                let _ = write!(std::io::stderr(), "{}", self.table());
                Ok(())
            }
        };
        let exported = write_exports(&exports, of_exports, &[self.exported()]);
        Failure::all(written.into_iter().chain([table]).chain(exported))
    }
}

impl Compared {
    /// Returns a figure of both groups; `None` if a run does not have the figure.
    fn of(figure: Figure, base: &[Run], head: &[Run]) -> Option<Compared> {
        let values = |runs: &[Run]| -> Option<Vec<f64>> {
            runs.iter().map(|run| Some(run.figure(&figure)?.micros)).collect()
        };
        let (mut base_values, mut head_values) = (values(base)?, values(head)?);
        let all = base.iter().chain(head);
        let beyond = |runs: &[Run]| {
            runs.iter().map(|run| run.beyond(&figure)).fold(Beyond::default(), Beyond::or)
        };
        let is_enough = base.len().min(head.len()) >= RUNS_MIN;
        let between = || Interval::between(&base_values, &head_values, SEED);
        Some(Compared {
            figure,
            has_zero: base_values.iter().chain(&head_values).any(|value| *value <= 0.0),
            change: is_enough.then(between).flatten(),
            beyond: beyond(head).or(beyond(base).inverted()),
            base: median(&mut base_values)?,
            head: median(&mut head_values)?,
            lower_bounds: all.filter(|run| run.is_lower_bound(&figure)).count(),
        })
    }

    /// Returns the logarithm of the ratio of the medians; `None` with a zero.
    fn log_ratio(&self) -> Option<f64> {
        (!self.has_zero).then(|| (self.head / self.base).ln())
    }
}

/// Returns each difference between the first run and any other run once.
fn differences(base: &[Run], head: &[Run]) -> Result<Vec<Difference>, Failure> {
    let mut found: Vec<Difference> = Vec::new();
    let Some(first) = base.first() else { return Ok(found) };
    // Differences between the groups come first, because their values are the ones to report.
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

/// Returns the note that a difference was ignored.
fn ignoring(Difference { what, values: [a, b] }: &Difference) -> String {
    format!("--same class ignored that the machines differ in {what}: {a} and {b}")
}

/// Returns the message that there are too few runs, with the required number.
fn too_few(base: usize, head: usize) -> String {
    format!(
        "inconclusive: an interval needs {RUNS_MIN} runs per side, and there are {base} and {head}: make more runs"
    )
}

/// Returns warnings for the reader.
fn notes(base: &[Run], head: &[Run], figures: &[Compared]) -> Vec<String> {
    let mut notes = Vec::new();
    if base.len().min(head.len()) < RUNS_MIN {
        notes.push(too_few(base.len(), head.len()));
    }
    let all = || base.iter().chain(head);
    let count = all().count();
    let inexact =
        all().filter(|run| run.report.get("verdict") != Some(&Value::from("exact"))).count();
    if inexact > 0 {
        notes.push(format!("the verdict of {inexact} of {count} runs is not exact"));
    }
    let limited = all().filter(|run| run.is_client_limited()).count();
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
    use super::change::Holds;
    use super::*;
    use serde_json::json;

    fn environment(host: &str) -> Value {
        json!({
            "version": "1", "date": "now", "host": host, "kernel": "6.1", "cpu_model": "x",
            "cpus_online": "0-1", "cpus_allowed": "0-1", "memory_bytes": 1, "checks": [],
        })
    }

    /// Returns a run with this rate and 99th percentile.
    pub(super) fn with(rps: f64, p99: f64) -> Run {
        let latency = json!({"p50": 100.0, "p99": p99, "lower_bounds": []});
        Run {
            file: format!("{rps}.json"),
            report: json!({
                "requests": 1000, "acknowledged": 1000, "requests_per_s": rps, "latency_us": latency, "verdict": "exact",
                "client_limited": false, "client_cpu_us_per_request": 0.0,
                "connections_open": 64,
                "setup": {"engine": "ring", "connections": 64}, "environment": environment("a"),
            }),
        }
    }

    pub(super) fn group(rps: f64, p99: f64) -> Vec<Run> {
        (0..7).map(|run| with(rps + f64::from(run), p99 + f64::from(run))).collect()
    }

    pub(super) fn compare(base: &[Run], head: &[Run], limits: &[&str]) -> Comparison {
        let limits: Vec<ChangeLimit> = limits.iter().map(|text| text.parse().unwrap()).collect();
        Comparison::of(base, head, &[], Same::Machine, &limits).unwrap()
    }

    #[test]
    fn a_change_is_found_with_its_size_and_fails_if_that_was_asked_for() {
        let (base, head) = (group(10_000.0, 1000.0), group(9_000.0, 1200.0));
        let limits = ["p99>+5%", "rps<-3%", "rps>+1%", "p99>+25%"];
        let found = compare(&base, &head, &limits);
        assert_eq!((found.figures[0].base, found.figures[0].head), (10_003.0, 9_003.0));
        let holds: Vec<_> = found.gate.checks.iter().map(|check| check.holds).collect();
        assert_eq!(holds, [Holds::Yes, Holds::Yes, Holds::No, Holds::No]);
        let failure = found.gate.check().unwrap_err();
        assert_eq!(failure.exit_code(), 1);
        assert_eq!(failure.to_string().lines().count(), 2, "{failure}");
        assert_eq!(compare(&base, &base, &limits).gate.check(), Ok(()));
        let table = found.table();
        assert!(table.contains("rps") && table.contains("-10.0%"), "{table}");
        assert!(
            found.markdown().contains("| p99 | 1.003 ms | 1.203 ms | +19.9% ["),
            "{}",
            found.markdown()
        );
        let page = found.html(&base, &head).unwrap();
        assert!(page.contains("+19.9% [") && !page.contains("<script"), "{page}");
        // One line per run, through the percentiles that it has.
        assert_eq!(
            page.matches("<polyline fill=\"none\" opacity=\"1\" stroke=\"#B25A1F\"").count(),
            7
        );
        assert_eq!(page.matches("<title>99.0000%: 1.00 ms</title>").count(), 5);
        let json: Value = serde_json::from_str(&found.json()).unwrap();
        assert_eq!(json["figures"]["p99"]["base"], 1003.0);
        assert!((json["figures"]["p99"]["change_percent"].as_f64().unwrap() - 19.94).abs() < 0.1);
        assert_eq!(json["checks"][0], json!({"fail_if": "p99>+5%", "holds": "yes"}));
        assert_eq!((&json["outcome"], &json["obstacles"]), (&json!("failed"), &json!([])));
    }

    #[test]
    fn runs_that_differ_in_something_else_are_not_compared() {
        let base = group(10_000.0, 1000.0);
        let mut head = group(10_000.0, 1000.0);
        head[3].report["environment"]["host"] = "b".into();
        head[4].report["setup"]["engine"] = "streams".into();
        let refused = |named: &[&str]| {
            let named: Vec<String> = named.iter().map(|name| (*name).to_owned()).collect();
            Comparison::of(&base, &head, &named, Same::Machine, &[])
                .err()
                .map(|failure| failure.to_string())
        };
        let said = refused(&[]).unwrap();
        assert!(said.contains("host: a | b") && said.contains("engine: ring | streams"), "{said}");
        let said = refused(&["engine"]).unwrap();
        assert!(said.contains("host: a | b") && !said.contains("engine: ring"), "{said}");
        assert_eq!(refused(&["engine", "host"]), None);
        // A difference within a group is refused, too.
        let said = Comparison::of(&head, &head, &[], Same::Machine, &[]).err().unwrap().to_string();
        assert!(said.contains("host: a | b"), "{said}");
    }

    #[test]
    fn machines_of_one_class_are_compared_and_what_they_differ_in_is_told() {
        let (base, mut head) = (group(10_000.0, 1000.0), group(10_000.0, 1000.0));
        head[3].report["environment"]["host"] = "b".into();
        head[4].report["environment"]["memory_bytes"] = 4097.into();
        let of = |head: &[Run], same| Comparison::of(&base, head, &[], same, &[]);
        let said = of(&head, Same::Machine).err().unwrap().to_string();
        assert!(said.contains("pass --same class if"), "{said}");
        let found = of(&head, Same::Class).unwrap();
        let told = found.table();
        for words in ["differ in host: a and b", "differ in memory_bytes: 1 and 4097"] {
            assert!(
                told.contains(&format!("note: --same class ignored that the machines {words}")),
                "{told}"
            );
        }
        assert!(found.differences.is_empty() && of(&base, Same::Class).unwrap().notes.is_empty());
        for (key, other) in [("cpu_model", "y"), ("cpus_online", "0-3"), ("kernel", "6.2")] {
            let mut head = group(10_000.0, 1000.0);
            head[0].report["environment"]["host"] = "b".into();
            head[0].report["environment"][key] = other.into();
            let said = of(&head, Same::Class).err().unwrap().to_string();
            assert!(
                said.contains(key) && !said.contains("host") && !said.contains("--same"),
                "{said}"
            );
        }
    }

    #[test]
    fn a_row_of_an_exported_comparison_begins_with_its_figure() {
        let (base, head) = (group(10_000.0, 1000.0), group(9_000.0, 1200.0));
        let exported = compare(&base, &head, &[]).exported();
        assert!(exported.rows.iter().all(|row| row.len() == exported.heads.len()));
        let names = exported.rows.iter().map(|row| row[0].as_str());
        assert!(names.eq(exported.values.iter().map(|value| value.figure.name)));
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
            "needs 5 runs per side, and there are 7 and 4",
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
        let said = found.gate.check().unwrap_err().to_string();
        assert_eq!(said.matches("it is not known").count(), 2, "{said}");
    }
}
