//! The document that `ci/perf` writes: whether the server of one commit is slower than the server of another.

use crate::doctor::Environment;
use crate::document::{Document, Format};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The comparison that decides whether a server is slower than another.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Perf {
    /// The commit, or the file of the server, that is compared with.
    pub base: String,
    /// The commit, or the file of the server, that may be slower.
    pub head: String,
    /// 0 not slower, 1 a threshold was exceeded or a server counted incorrectly, 3 the environment cannot run it,
    /// 4 inconclusive.
    pub exit_code: u8,
    /// The instructions of the core's operations; null if nobody counted any.
    pub instructions: Option<Instructions>,
    /// The two servers next to each other; null if they could not be compared.
    pub paired: Option<Paired>,
}

impl Perf {
    /// Returns the document.
    pub fn json(&self) -> String {
        Document::new(Format::Perf, self).json()
    }
}

/// The instructions that the operations of both sides take.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Instructions {
    /// The verdict on whether any of them takes more than allowed.
    pub verdict: Counted,
    /// The reason for the verdict.
    pub reason: String,
    /// The counts of each benchmark.
    pub counts: Vec<Counts>,
}

/// The outcome of counting instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Counted {
    /// None takes more than allowed.
    Passed,
    /// At least one takes more than allowed.
    Failed,
    /// They could not be counted here.
    Skipped,
    /// A comparison is not possible.
    #[serde(rename = "not compared")]
    NotCompared,
}

/// The instructions of one benchmark.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "InstructionCounts")]
pub struct Counts {
    /// The function and the case.
    pub name: String,
    /// The instructions of the base; null if it lacks this benchmark.
    pub base: Option<u64>,
    /// The instructions of the head; null if it lacks this benchmark.
    pub head: Option<u64>,
    /// The ratio of head to base; null if either of them is.
    pub ratio: Option<f64>,
}

/// Two servers, compared in blocks of four loads: base, head, head, base.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Paired {
    /// `faster`, `same`, `slower`, or `inconclusive`.
    pub verdict: String,
    /// The exit code that the verdict stands for.
    pub exit_code: u8,
    /// The file of the base.
    pub base: String,
    /// The file of the head.
    pub head: String,
    /// The file of the client.
    pub client: String,
    /// Events per load.
    pub requests: u64,
    /// Connections of a load.
    pub connections: u64,
    /// Requests in flight per connection.
    pub pipeline: u64,
    /// Users of a load.
    pub users: u64,
    /// The seed of the bootstrap.
    pub seed: u64,
    /// The CPUs of the servers.
    pub server_cpus: String,
    /// The CPUs of the client.
    pub client_cpus: String,
    /// A block does not start if it would end after this number of seconds.
    pub time_limit_s: f64,
    /// Seconds from the first block to the end of the last.
    pub elapsed_s: f64,
    /// The change that matters, as a ratio.
    pub change: f64,
    /// Nothing is decided while the half-width of the interval of the change in CPU time, as a logarithm, exceeds this.
    pub half_width_max: f64,
    /// The number of loads whose result the client limited.
    pub client_limited_legs: usize,
    /// The machine.
    pub environment: Environment,
    /// Each figure of both sides, with its unit in the name: the CPU time of the server, which decides, throughput,
    /// and latency.
    pub figures: BTreeMap<String, PairedFigure>,
    /// The figures of the four loads in each block of base and head. The loads are in their order, and the figures of each are
    /// in the order of `measures`.
    pub head_blocks: Vec<Vec<Vec<f64>>>,
    /// The figures of the loads in each block of the base and itself, likewise.
    pub floor_blocks: Vec<Vec<Vec<f64>>>,
    /// The names of the figures, in the order that the blocks use.
    pub measures: Vec<String>,
}

/// A figure of two servers.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PairedFigure {
    /// The median of the base over all blocks; null without blocks.
    pub base: Option<f64>,
    /// The median of the head over all blocks; null without blocks.
    pub head: Option<f64>,
    /// The change from base to head; null without blocks.
    pub head_to_base: Option<Ratio>,
    /// The change that the same comparison finds between the base and itself; null without blocks.
    pub base_to_itself: Option<Ratio>,
}

/// A median of ratios, and its interval.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Ratio {
    /// The median of the blocks.
    pub ratio: f64,
    /// The lower end of its 95% interval.
    pub low: f64,
    /// The upper end of its 95% interval.
    pub high: f64,
    /// Half the width of the interval, as a logarithm.
    pub half_width: f64,
}
