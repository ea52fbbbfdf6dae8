//! One of the clients of a run in parts, in the report on all of them.

use super::Latency;
use crate::doctor::{CpuUse, Environment};
use crate::load::clock::ClockOffset;
use schemars::JsonSchema;
use serde::Serialize;

/// One of the clients of a run, in the report on all of them.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in crate::load) struct ClientRow {
    /// Its part, as in `2/3`.
    pub(in crate::load) part: String,
    /// Its host name.
    pub(in crate::load) host: String,
    /// The URL that it went to.
    pub(in crate::load) url: String,
    /// Its connections.
    pub(in crate::load) connections: usize,
    /// Its threads.
    pub(in crate::load) threads: usize,
    /// The CPUs that its threads were pinned to, in turn, or could run on.
    pub(in crate::load) cpus: String,
    /// Events of its part.
    pub(in crate::load) requests: u64,
    /// The number of batches that they are in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::load) batches: Option<u64>,
    /// Events that the server acknowledged.
    pub(in crate::load) acknowledged: u64,
    /// Events that the server refused.
    pub(in crate::load) refused: u64,
    /// Events that were sent and got no response.
    pub(in crate::load) unknown: u64,
    /// Events that were not sent.
    pub(in crate::load) unsent: u64,
    /// Seconds from its start to the end of its last request.
    pub(in crate::load) elapsed_s: f64,
    /// Acknowledged requests per second, with batches events.
    pub(in crate::load) requests_per_s: f64,
    /// Latency in microseconds.
    pub(in crate::load) latency_us: Latency,
    /// The number of milliseconds by which it started after part 1, by the clocks of both.
    pub(in crate::load) started_after_ms: f64,
    /// The lead of its clock over the server's; null if the server's responses lack a `Date`.
    pub(in crate::load) clock_ahead_of_server: Option<ClockOffset>,
    /// The share of the time that its busiest thread was busy, from 0 to 1, polling excluded.
    pub(in crate::load) client_busy: f64,
    /// The share of the time that its most delayed thread waited for a CPU, from 0 to 1.
    pub(in crate::load) client_waiting: f64,
    /// The reasons why it limited the result, a sentence each.
    pub(in crate::load) client_limited_by: Vec<String>,
    /// The use of its CPUs during the run.
    pub(in crate::load) client_cpus: Option<CpuUse>,
    /// Whether it was interrupted.
    pub(in crate::load) interrupted: bool,
    /// Its machine.
    pub(in crate::load) environment: Environment,
    /// The command that makes its part of the run again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::load) command: Vec<String>,
}
