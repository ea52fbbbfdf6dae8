//! A finished comparison: as one line, as Markdown for people, and as JSON for everything else.

use crate::Options;
use crate::blocks::{Block, Leg, Places};
use crate::verdict::{CHANGE, HALF_WIDTH_MAX, Verdict};
use ringtally::doctor::Environment;
use ringtally::failure::Failure;
use ringtally::statistics::{Interval, median};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// A figure of a leg.
struct Figure {
    key: &'static str,
    name: &'static str,
    of: fn(&Leg) -> f64,
    decimals: usize,
}

/// The first decides; the others are reported beside it.
const FIGURES: [Figure; 3] = [
    Figure {
        key: "server_cpu_s_per_million_events",
        name: "server CPU s per million events",
        of: |leg| leg.cpu,
        decimals: 3,
    },
    Figure { key: "requests_per_s", name: "requests/s", of: |leg| leg.requests_per_s, decimals: 0 },
    Figure { key: "p99_us", name: "p99 µs", of: |leg| leg.p99_us, decimals: 0 },
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
        let of_cpu = |blocks| percent(interval(blocks, &FIGURES[0], seed));
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

    pub(crate) fn markdown(&self, options: &Options) -> String {
        let mut text = format!(
            "### Paired servers: {}\n\n{}\n\
             | | base | head | head to base | base to itself |\n|---|---|---|---|---|\n",
            self.verdict.word(),
            self.line(options.seed)
        );
        for figure in &FIGURES {
            let side = |legs| {
                let middle = self.middle(figure, legs).unwrap_or(f64::NAN);
                format!("{middle:.*}", figure.decimals)
            };
            text.push_str(&format!(
                "| {} | {} | {} | {} | {} |\n",
                figure.name,
                side(BASE_LEGS),
                side(HEAD_LEGS),
                percent(interval(&self.head, figure, options.seed)),
                percent(interval(&self.floor, figure, options.seed)),
            ));
        }
        let limited = self.client_limited();
        text.push_str(&format!(
            "\nMedians of blocks A B B A, with the 95 % interval of the change; {} events from {} \
             connections per leg; server on CPUs {}, client on CPUs {}; the client was the limit in \
             {limited} of {} legs. The first line decides, at {:.0} %.\n",
            options.requests,
            options.connections,
            self.places.server_cpus,
            self.places.client_cpus,
            4 * (self.head.len() + self.floor.len()),
            (CHANGE - 1.0) * 100.0,
        ));
        text
    }

    pub(crate) fn json(&self, options: &Options) -> Value {
        let figures: serde_json::Map<String, Value> = FIGURES
            .iter()
            .map(|figure| {
                let value = json!({
                    "base": self.middle(figure, BASE_LEGS),
                    "head": self.middle(figure, HEAD_LEGS),
                    "head_to_base": ratio(interval(&self.head, figure, options.seed)),
                    "base_to_itself": ratio(interval(&self.floor, figure, options.seed)),
                });
                (figure.key.to_owned(), value)
            })
            .collect();
        json!({
            "verdict": self.verdict.word(),
            "exit_code": self.verdict.exit_code(),
            "base": options.base,
            "head": options.head,
            "client": options.client(),
            "requests": options.requests,
            "connections": options.connections,
            "pipeline": options.pipeline,
            "users": options.users(),
            "seed": options.seed,
            "server_cpus": self.places.server_cpus,
            "client_cpus": self.places.client_cpus,
            "time_limit_s": options.time_limit.as_secs_f64(),
            "elapsed_s": self.elapsed.as_secs_f64(),
            "change": CHANGE,
            "half_width_max": HALF_WIDTH_MAX,
            "client_limited_legs": self.client_limited(),
            "environment": Environment::here(Duration::from_millis(100)),
            "figures": figures,
            "head_blocks": raw(&self.head),
            "floor_blocks": raw(&self.floor),
        })
    }

    /// The median over blocks of one side's mean.
    fn middle(&self, figure: &Figure, [first, second]: [usize; 2]) -> Option<f64> {
        let of =
            |block: &Block| ((figure.of)(&block.0[first]) + (figure.of)(&block.0[second])) / 2.0;
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

fn interval(blocks: &[Block], figure: &Figure, seed: u64) -> Option<Interval> {
    let ratios: Vec<f64> = blocks.iter().map(|block| block.log_ratio(figure.of)).collect();
    Interval::of(&ratios, seed)
}

/// A change and its interval in percent.
fn percent(interval: Option<Interval>) -> String {
    let Some(interval) = interval else {
        return "unknown".into();
    };
    let change = |log_ratio: f64| log_ratio.exp_m1() * 100.0;
    let Interval { low, median, high } = interval;
    format!("{:+.1} % [{:+.1}, {:+.1}]", change(median), change(low), change(high))
}

fn ratio(interval: Option<Interval>) -> Value {
    interval.map_or(Value::Null, |interval| {
        json!({
            "ratio": interval.median.exp(),
            "low": interval.low.exp(),
            "high": interval.high.exp(),
            "half_width": interval.half_width(),
        })
    })
}

/// Every measurement, leg by leg in the order A B B A.
fn raw(blocks: &[Block]) -> Value {
    let leg = |leg: &Leg| FIGURES.iter().map(|figure| (figure.of)(leg)).collect::<Vec<_>>();
    blocks
        .iter()
        .map(|block| block.0.iter().map(leg).collect::<Vec<_>>())
        .collect::<Vec<_>>()
        .into()
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
