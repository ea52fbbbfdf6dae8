//! A run in parts: clients on several machines send one workload, and their reports are merged.
//!
//! Part `k` of `n` has every `n`-th request from request `k - 1` on. In an open loop each is due when it is due in the
//! whole, so that the parts together send what one client would have sent, at the same times. All parts start at one
//! time. Before it, in steps of a guard time, their warm-ups end, and then only part 1 resets the server and reads the
//! totals that the run starts from.

mod document;
mod merge;

use super::part::Part;
pub use document::PartReport;
pub(super) use document::{Before, Parameters};
pub use merge::{MergeConfig, merge};
use std::time::{Duration, SystemTime};

/// A client's part in a run with others.
#[derive(Clone, Debug)]
pub struct Participation {
    /// What it sends.
    pub part: Part,
    /// The start of all clients.
    pub start: SystemTime,
    /// The time before the start at which part 1 resets the server. The warm-ups are over twice as long before.
    pub guard: Duration,
    /// The mark that distinguishes the run from others with the same parameters.
    pub run_id: Option<String>,
}
