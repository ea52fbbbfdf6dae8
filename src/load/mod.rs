//! The client: sends the challenge's published events and checks what the server counted.
//!
//! It is an independent witness: it shares no HTTP, JSON or counting code with the server. What it
//! shares is the ring that moves bytes.
//!
//! - `run`: a run from its first request to its report.
//! - `shared`: what all client threads know. `worker`, `connection`, `transport`, `schedule`,
//!   `workload`, `response`: one thread, which sends events and reads responses.
//! - `control`: the few requests around a run. `interrupt`: Ctrl-C and SIGTERM.
//! - `parts`: clients on several machines send parts of one workload, whose reports are merged.
//! - `find`: the highest rate at which a latency stays below a limit.
//! - `ledger`, `event_set`, `account`, `verdict`, `watch`: judge what the server counted.
//! - `latency`, `timeline`, `client_load`, `placement`: what was measured, and by whom.
//! - `report`, `thresholds`, `view`: tell the user.

mod account;
mod client_load;
mod connection;
mod control;
mod event_set;
mod find;
mod interrupt;
mod latency;
mod ledger;
mod parts;
mod placement;
mod report;
mod response;
mod run;
mod schedule;
mod shared;
mod thresholds;
mod timeline;
mod transport;
mod verdict;
mod view;
mod watch;
mod worker;
mod workload;

pub use control::Server;
pub use find::{FindConfig, LatencyLimit, find_rate};
pub use parts::{MergeConfig, Part, PartReport, Participation, merge};
pub use report::{FoundRate, Output, Report, ServerUse, Setup, write_to};
pub(crate) use report::{chart, check_stdout, grouped, html, rounded, time_in_full};
pub use run::{run, run_part};
pub use schedule::RATE_MAX;
use std::sync::Arc;
use std::time::Duration;
pub use thresholds::Threshold;
pub(crate) use thresholds::{Condition, Operator};
pub use verdict::Verdict;
pub use workload::{BATCH_MAX, EVENTS_MAX, Totals, Values, Workload};

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server.
    pub server: Server,
    /// The events.
    pub workload: Workload,
    /// Events to send before, which are not measured.
    pub warm_up: u64,
    /// Connections, at least one; no more than requests are used.
    pub connections: usize,
    /// Client threads, at least one and at most as many as connections; `None` is one per CPU.
    pub threads: Option<usize>,
    /// The CPUs that threads are pinned to, in turn; `None` is those that keep off the server's.
    pub cpus: Option<Vec<usize>>,
    /// The CPUs of the server, if the caller knows them.
    pub server_cpus: Option<Vec<usize>>,
    /// Requests in flight per connection.
    pub pipeline: usize,
    /// Events per second of an open loop, at most [`RATE_MAX`]; `None` is a closed loop.
    pub rate: Option<u64>,
    /// How long a response, a connection, or a server that is gone may take.
    pub timeout: Duration,
    /// Whether to reset the server before.
    pub reset: bool,
    /// The token that `POST /reset` is sent with.
    pub reset_token: Option<Arc<[u8]>>,
    /// What this client sends of it all: each part has events and connections.
    pub part: Part,
    /// Whether to poll the totals during the run.
    pub watch: bool,
    /// What the run must not be.
    pub thresholds: Vec<Threshold>,
    /// How to show the progress.
    pub progress: Show,
}

/// How to show the progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Not at all.
    Nothing,
    /// One line, on a terminal.
    Line,
    /// The whole screen.
    Screen,
}

/// A moment of a run at which `challenge` looks at its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// All threads are connected and warm, and nothing of what is measured is sent.
    Start,
    /// Every request has ended.
    End,
}
