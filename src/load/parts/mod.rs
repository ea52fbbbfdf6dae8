//! A run in parts: clients on several machines send one workload, and their reports are merged.
//!
//! Part `k` of `n` has every `n`-th request from request `k - 1` on. In an open loop, each request is due at the same
//! time as in the whole workload, so that the parts together send the same requests as one client would, at the same
//! times. All parts start at a common time. The warm-ups end at least two guard times before it. One guard time before
//! it, part 1 alone resets the server and reads the totals that the run starts from.

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
    /// The part that the client sends.
    pub part: Part,
    /// The time when all clients start.
    pub start: SystemTime,
    /// The time from part 1's reset of the server to the start. The warm-ups must end more than twice as long before
    /// the start.
    pub guard: Duration,
    /// The mark that distinguishes the run from others with the same parameters.
    pub run_id: Option<String>,
}
