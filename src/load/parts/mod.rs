//! A run in parts: clients on several machines send one workload, and their reports are merged.
//!
//! Part `k` of `n` has every `n`-th request from request `k - 1` on. In an open loop each is due when
//! it is due in the whole, so that the parts together send what one client would have sent, at the same
//! times. All parts start at one time. Before it, in steps of a guard time: their warm-ups are over, and
//! then part 1, and no other, resets the server and reads the totals that the run starts from.

mod document;
mod merge;

use super::part::Part;
pub use document::PartReport;
pub(super) use document::{Before, Parameters};
pub use merge::{MergeConfig, merge};
use std::time::{Duration, SystemTime};

/// How a client takes part in a run with others.
#[derive(Clone, Debug)]
pub struct Participation {
    /// What it sends.
    pub part: Part,
    /// When all clients start.
    pub start: SystemTime,
    /// How long before the start part 1 resets the server. The warm-ups are over twice as long before.
    pub guard: Duration,
    /// What tells the run from others with the same parameters.
    pub run_id: Option<String>,
}
