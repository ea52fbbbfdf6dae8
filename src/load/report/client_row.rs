//! The row of a client in the report on a run in parts.

use super::Latency;
use crate::doctor::{CpuUse, Environment};
use crate::load::clock::ClockOffset;
use schemars::JsonSchema;
use serde::Serialize;

/// A client of a run in parts, in the report on all clients.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in crate::load) struct ClientRow {
    /// Its part, as in `2/3`.
    pub(in crate::load) part: String,
    /// Its host name.
    pub(in crate::load) host: String,
    /// The URL that it sent requests to.
    pub(in crate::load) url: String,
    /// Its connections.
    pub(in crate::load) connections: usize,
    /// Its threads.
    pub(in crate::load) threads: usize,
    /// The CPUs that its threads were pinned to, in turn, or could run on.
    pub(in crate::load) cpus: String,
    /// Events of its part.
    pub(in crate::load) requests: u64,
    /// The number of batches that contain these events.
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
    /// Acknowledged requests per second, or events per second with batches.
    pub(in crate::load) requests_per_s: f64,
    /// Latency in microseconds.
    pub(in crate::load) latency_us: Latency,
    /// Milliseconds from the start of part 1 to the start of this part, by the clocks of both clients.
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
    /// The command that repeats its part of the run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::load) command: Vec<String>,
}
