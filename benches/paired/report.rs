//! A finished comparison: as one line, as Markdown for people, and as JSON for everything else.

use super::blocks::{Block, Leg};
use super::options::Options;
use super::server::Places;
use super::verdict::{CHANGE, HALF_WIDTH_MAX, Verdict};
use ringtally::compare::{Counted, Instructions, Paired, PairedFigure, Perf, Ratio};
use ringtally::doctor::Environment;
use ringtally::failure::Failure;
use ringtally::load::{Case, Finding, Findings, cell};
use ringtally::statistics::{Interval, median};
use std::path::Path;
use std::time::Duration;

/// The measurements of a leg.
struct Measure {
    key: &'static str,
    /// As the figures of reports are named.
    figure: &'static str,
    name: &'static str,
    of: fn(&Leg) -> f64,
    decimals: usize,
}

/// The first decides; the others are reported next to it.
const MEASURES: [Measure; 3] = [
    Measure {
        key: "server_cpu_s_per_million_events",
        figure: "server_cpu_us",
        name: "server CPU s per million events",
        of: |leg| leg.cpu,
        decimals: 3,
    },
    Measure {
        key: "requests_per_s",
        figure: "rps",
        name: "requests/s",
        of: |leg| leg.requests_per_s,
        decimals: 0,
    },
    Measure { key: "p99_us", figure: "p99", name: "p99 µs", of: |leg| leg.p99_us, decimals: 0 },
];

/// All blocks, and the verdict on them.
pub(crate) struct Comparison {
    pub(crate) places: Places,
    pub(crate) head: Vec<Block>,
    pub(crate) floor: Vec<Block>,
    pub(crate) verdict: Verdict,
    pub(crate) elapsed: Duration,
}

impl Comparison {
    pub(crate) fn new(places: Places) -> Self {
        Comparison {
            places,
            head: Vec::new(),
            floor: Vec::new(),
            verdict: Verdict::Inconclusive,
            elapsed: Duration::ZERO,
        }
    }

    /// The verdict and its reason, on one line.
    pub(crate) fn line(&self, seed: u64) -> String {
        let of_cpu = |blocks| percent(interval(blocks, &MEASURES[0], seed));
        format!(
            "{}: server CPU time {} after {} blocks; base against itself {} after {}; {:.0} s\n",
            self.verdict.word(),
            of_cpu(&self.head),
            self.head.len(),
            of_cpu(&self.floor),
            self.floor.len(),
            self.elapsed.as_secs_f64()
        )
    }

    fn markdown(&self, options: &Options) -> String {
        let mut text = format!(
            "### Paired servers: {}\n\n{}\n\
             | | base | head | head to base | base to itself |\n|---|---|---|---|---|\n",
            self.verdict.word(),
            self.line(options.seed)
        );
        for measure in &MEASURES {
            let side = |legs| {
                let middle = self.middle(measure, legs).unwrap_or(f64::NAN);
                format!("{middle:.*}", measure.decimals)
            };
            text.push_str(&format!(
                "| {} | {} | {} | {} | {} |\n",
                measure.name,
                side(BASE_LEGS),
                side(HEAD_LEGS),
                percent(interval(&self.head, measure, options.seed)),
                percent(interval(&self.floor, measure, options.seed)),
            ));
        }
        let limited = self.client_limited();
        text.push_str(&format!(
            "\nMedians of blocks A B B A, with the 95% interval of the change; {} events from {} \
             connections per leg; server on CPUs {}, client on CPUs {}; the client was the limit in \
             {limited} of {} legs. The first line decides, at {:.0}%.\n",
            options.requests,
            options.connections,
            self.places.server_cpus,
            self.places.client_cpus,
            4 * (self.head.len() + self.floor.len()),
            (CHANGE - 1.0) * 100.0,
        ));
        text
    }

    /// Returns the figures of the head, each with the interval that the change from the base gives it, and a row per figure.
    fn figures(&self, seed: u64) -> (Vec<Finding>, Vec<Vec<String>>) {
        let (mut values, mut rows) = (Vec::new(), Vec::new());
        for measure in &MEASURES {
            let [base, head] = [BASE_LEGS, HEAD_LEGS].map(|legs| self.middle(measure, legs));
            let change = interval(&self.head, measure, seed);
            let ends = change.map(|change| [change.low, change.high]);
            let range = base.zip(ends).map(|(base, ends)| ends.map(|end| base * end.exp()));
            let finding = head.map(|head| Finding::new(measure.figure, head, range));
            values.extend(finding.and_then(Result::ok));
            let percent = |of: fn(&Interval) -> f64| {
                change.as_ref().map(|change| of(change).exp_m1() * 100.0)
            };
            let numbers = [
                base,
                head,
                percent(|change| change.median),
                percent(|change| change.low),
                percent(|change| change.high),
            ];
            let name = std::iter::once(measure.figure.to_owned());
            rows.push(name.chain(numbers.into_iter().map(cell)).collect());
        }
        (values, rows)
    }

    fn record(&self, options: &Options) -> Paired {
        let figure = |measure: &Measure| PairedFigure {
            base: self.middle(measure, BASE_LEGS),
            head: self.middle(measure, HEAD_LEGS),
            head_to_base: interval(&self.head, measure, options.seed).map(ratio),
            base_to_itself: interval(&self.floor, measure, options.seed).map(ratio),
        };
        Paired {
            verdict: self.verdict.word().into(),
            exit_code: self.verdict.exit_code(),
            base: options.base.display().to_string(),
            head: options.head.display().to_string(),
            client: options.client().display().to_string(),
            requests: options.requests,
            connections: options.connections,
            pipeline: options.pipeline,
            users: options.users(),
            seed: options.seed,
            server_cpus: self.places.server_cpus.clone(),
            client_cpus: self.places.client_cpus.clone(),
            time_limit_s: options.time_limit.as_secs_f64(),
            elapsed_s: self.elapsed.as_secs_f64(),
            change: CHANGE,
            half_width_max: HALF_WIDTH_MAX,
            client_limited_legs: self.client_limited(),
            environment: Environment::here(Duration::from_millis(100)),
            figures: MEASURES.iter().map(|each| (each.key.to_owned(), figure(each))).collect(),
            head_blocks: raw(&self.head),
            floor_blocks: raw(&self.floor),
            measures: MEASURES.iter().map(|measure| measure.key.to_owned()).collect(),
        }
    }

    /// The median over blocks of one side's mean.
    fn middle(&self, measure: &Measure, [first, second]: [usize; 2]) -> Option<f64> {
        let of =
            |block: &Block| ((measure.of)(&block.0[first]) + (measure.of)(&block.0[second])) / 2.0;
        median(&mut self.head.iter().map(of).collect::<Vec<_>>())
    }

    fn client_limited(&self) -> usize {
        let legs = self.head.iter().chain(&self.floor).flat_map(|block| &block.0);
        legs.filter(|leg| leg.client_limited).count()
    }
}

/// The indexes of the base's legs in a block, and of the head's.
const BASE_LEGS: [usize; 2] = [0, 3];
const HEAD_LEGS: [usize; 2] = [1, 2];

fn interval(blocks: &[Block], measure: &Measure, seed: u64) -> Option<Interval> {
    let ratios: Vec<f64> = blocks.iter().map(|block| block.log_ratio(measure.of)).collect();
    Interval::of(&ratios, seed)
}

/// A change and its interval in percent.
fn percent(interval: Option<Interval>) -> String {
    let Some(interval) = interval else {
        return "unknown".into();
    };
    let change = |log_ratio: f64| log_ratio.exp_m1() * 100.0;
    let Interval { low, median, high } = interval;
    format!("{:+.1}% [{:+.1}, {:+.1}]", change(median), change(low), change(high))
}

fn ratio(interval: Interval) -> Ratio {
    Ratio {
        ratio: interval.median.exp(),
        low: interval.low.exp(),
        high: interval.high.exp(),
        half_width: interval.half_width(),
    }
}

/// Every measurement, leg by leg in the order A B B A.
fn raw(blocks: &[Block]) -> Vec<Vec<Vec<f64>>> {
    let leg = |leg: &Leg| MEASURES.iter().map(|measure| (measure.of)(leg)).collect();
    blocks.iter().map(|block| block.0.iter().map(leg).collect()).collect()
}

/// The findings on two servers: the instructions that were counted before, and the comparison or the reason why it failed.
pub(crate) struct Report<'a> {
    pub(crate) options: &'a Options,
    pub(crate) instructions: Option<Instructions>,
    pub(crate) outcome: Result<Comparison, Failure>,
}

impl Report<'_> {
    /// The exit code of the process: instructions that failed do, whatever the comparison says.
    pub(crate) fn exit_code(&self) -> u8 {
        let instructions = self.instructions.as_ref();
        match &self.outcome {
            _ if instructions.is_some_and(|of| of.verdict == Counted::Failed) => 1,
            Ok(comparison) => comparison.verdict.exit_code(),
            Err(failure) => failure.exit_code(),
        }
    }

    /// Returns the result of the comparison, on one line.
    pub(crate) fn line(&self) -> String {
        match &self.outcome {
            Ok(comparison) => comparison.line(self.options.seed),
            Err(failure) => format!("error: {failure}\n"),
        }
    }

    pub(crate) fn markdown(&self) -> String {
        let verdict = match self.exit_code() {
            0 => "not slower",
            1 => "FAILED",
            4 => "inconclusive",
            _ => "could not be measured",
        };
        let [base, head] = self.options.names();
        let counted = self.instructions.as_ref().map(counted).unwrap_or_default();
        let compared = match &self.outcome {
            Ok(comparison) => comparison.markdown(self.options),
            Err(_) => format!("### Paired servers: no result\n\n{}", self.line()),
        };
        format!("## Performance: {verdict}\n\nHead `{head}`, base `{base}`.\n\n{counted}{compared}")
    }

    /// Returns the findings as exporters need them.
    pub(crate) fn findings(&self) -> Findings {
        let line = self.line().trim_end().to_owned();
        let is_passed = matches!(&self.outcome, Ok(of) if of.verdict.exit_code() == 0);
        let own =
            Case { name: "paired servers".into(), failure: (!is_passed).then(|| line.clone()) };
        let counted = self.instructions.as_ref().and_then(|of| {
            let failure = match of.verdict {
                Counted::Passed => None,
                Counted::Failed => Some(of.reason.clone()),
                Counted::Skipped | Counted::NotCompared => return None,
            };
            Some(Case { name: "instructions".into(), failure })
        });
        let figures = self.outcome.as_ref().map(|of| of.figures(self.options.seed));
        let (values, rows) = figures.unwrap_or_default();
        Findings {
            name: "ci/perf".into(),
            values,
            cases: std::iter::once(own).chain(counted).collect(),
            heads: vec!["figure", "base", "head", "change_percent", "low_percent", "high_percent"],
            rows,
            lines: vec![line],
        }
    }

    pub(crate) fn record(&self) -> Perf {
        let [base, head] = self.options.names();
        let paired = self.outcome.as_ref().ok().map(|of| of.record(self.options));
        let instructions = self.instructions.clone();
        Perf { base, head, exit_code: self.exit_code(), instructions, paired }
    }
}

/// The instructions as Markdown.
fn counted(instructions: &Instructions) -> String {
    let verdict = match instructions.verdict {
        Counted::Passed => "passed",
        Counted::Failed => "FAILED",
        Counted::Skipped => "SKIPPED",
        Counted::NotCompared => "not compared",
    };
    let mut text = format!("### Instructions: {verdict} ({})\n\n", instructions.reason);
    if !instructions.counts.is_empty() {
        text += "| | base | head | change |\n|---|---|---|---|\n";
        for of in &instructions.counts {
            let count = |count: Option<u64>| count.map_or("none".into(), |n| n.to_string());
            let change = of.ratio.map(|ratio| format!("{:+.2}%", (ratio - 1.0) * 100.0));
            let change = change.unwrap_or_else(|| "not compared".into());
            text +=
                &format!("| {} | {} | {} | {change} |\n", of.name, count(of.base), count(of.head));
        }
        text.push('\n');
    }
    text
}

/// Writes a report to a file, or to standard output for `-`.
pub(crate) fn write(file: &Path, text: &str) -> Result<(), Failure> {
    if file == Path::new("-") {
        print!("{text}");
        return Ok(());
    }
    std::fs::write(file, text)
        .map_err(|error| Failure::Environment(format!("cannot write {}: {error}", file.display())))
}
