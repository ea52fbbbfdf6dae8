//! The client: sends the challenge's published events and checks what the server counted.
//!
//! It is an independent witness: it does not share HTTP, JSON, or counting code with the server. It shares only the
//! ring that moves bytes.
//!
//! # How a run is judged
//!
//! A run goes through these steps, starting in `run::run`:
//!
//! 1. `control` reads the totals, resets the server, and reads the totals again. The run starts from these.
//! 2. The threads send every event once, and record its outcome in a `ledger`: acknowledged, refused, unknown (sent
//!    without a response), or unsent. At the same time, `watch` looks for impossible totals.
//! 3. `run::send_all` reads the totals as soon as the last request has ended. Every acknowledged event must be in them.
//!    If they are wrong, `run::settle` reads them again, but only to learn whether the events are counted late or never.
//! 4. If they are correct, `quiet::stay` reads them throughout a quiet time. They must stay correct.
//! 5. `account` adds up the totals that the server must have, and the totals that it may have with the unknown events.
//!    `verdict::Evidence` compares: totals outside of this range are wrong, and totals that leave room for doubt are undecided.
//! 6. `verdict::Judgement::with` adds the other observations: acknowledgements that contradict their batch, totals that
//!    became correct late or did not stay correct, and the findings of the watch.
//! 7. `Report::check` decides the exit code from the verdict, the events that were not acknowledged, malformed
//!    responses, connections that could not be opened, and thresholds.
//!
//! # The modules
//!
//! - `run`: a run from its first request to its report.
//! - `abort`: ends a run early if a threshold can no longer pass.
//! - `profile`: a rate, or a number of connections, that changes over time.
//! - `shared`: the state that all client threads share. `worker`, `connection`, `transport`, `schedule`, `workload`,
//!   `response`: one thread, which sends events and reads responses.
//! - `control`: the few requests around a run. `interrupt`: Ctrl-C and SIGTERM. `taken_terminal`: the terminal while a
//!   screen uses it.
//! - `part`: the requests that a client sends in a run in parts. `parts`: clients on several machines send parts of one
//!   workload, and their reports are merged.
//! - `find`: the highest rate that keeps a latency below a limit. `flow`: whether the server completes what it is sent.
//! - `ledger`, `event_set`, `account`, `verdict`, `watch`: judge what the server counted.
//! - `latency`, `timeline`, `client_load`, `placement`: the measurements, and the client that makes them. `run_record`:
//!   all of these as one record per client. Records can be merged.
//! - `figures`: the table of figures. `export`: the table of formats for other tools. `report`, `thresholds`, `view`:
//!   present the results. `numbers`, `markup`: format them. `output`, `destination`: the places that they are written
//!   to. `origin`: the command that repeats a run. `clock`: the difference between the clocks of clients.

mod abort;
mod account;
mod client_load;
mod clock;
mod connection;
mod control;
mod destination;
mod event_set;
mod export;
mod figures;
mod find;
mod flow;
mod interrupt;
mod latency;
mod ledger;
mod markup;
mod numbers;
mod origin;
mod output;
mod part;
mod parts;
mod placement;
mod profile;
mod quiet;
mod report;
mod response;
mod run;
mod run_record;
mod schedule;
mod shared;
mod taken_terminal;
mod thresholds;
mod timeline;
mod transport;
mod verdict;
mod view;
mod watch;
mod worker;
mod workload;

use crate::document::Format;
pub use control::Server;
pub use destination::write_to;
pub(crate) use destination::{Destination, put};
pub(crate) use export::write as write_exports;
pub use export::{Case, Export, Finding, Findings, cell, export};
pub(crate) use figures::{FIGURES, Figure, Measured, Quantity};
pub use find::{FindConfig, FoundRate, LatencyLimit, Windows, find_rate};
pub(crate) use interrupt::was_asked as was_interrupted;
pub(crate) use latency::Bound;
pub(crate) use markup::escape;
pub(crate) use numbers::{grouped, rounded, time_in_full};
pub(crate) use origin::Time;
pub use origin::commands;
pub use output::Output;
pub use part::Part;
pub use parts::{MergeConfig, PartReport, Participation, merge};
pub(crate) use profile::decimal;
pub use profile::{Profile, RATE_MAX};
pub use report::{CpuSource, Report, ServerUse, Setup};
pub(crate) use report::{chart, html};
pub use run::{run, run_part};
use schemars::Schema;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
pub use thresholds::Threshold;
pub(crate) use thresholds::{Condition, Operator};
pub use verdict::Verdict;
pub(crate) use view::has_escapes;
pub use workload::{BATCH_MAX, EVENTS_MAX, Totals, UserPrefix, Values, Workload};

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server.
    pub server: Server,
    /// The events.
    pub workload: Workload,
    /// The prefix of the users' ids.
    pub users: Users,
    /// The number of events to send before the run, which are not measured.
    pub warm_up: u64,
    /// The number of connections, at least one. Only as many as there are requests are used. If the number changes over
    /// time, this is the maximum.
    pub connections: usize,
    /// The number of connections over time; `None` if it is constant.
    pub connections_over_time: Option<Profile>,
    /// The number of client threads, at least one and at most the number of connections; `None` for one per CPU.
    pub threads: Option<usize>,
    /// The CPUs that threads are pinned to, in turn; `None` to choose CPUs away from the server's.
    pub cpus: Option<Vec<usize>>,
    /// The CPUs of the server, if the caller knows them.
    pub server_cpus: Option<Vec<usize>>,
    /// Whether to ask the server to close each connection after one response.
    pub one_request_per_connection: bool,
    /// Requests in flight per connection.
    pub pipeline: usize,
    /// Events per second of an open loop, at most [`RATE_MAX`]; `None` for a closed loop.
    pub rate: Option<Profile>,
    /// The time during which requests are sent; `None` if the workload has a fixed number of events. The events of an
    /// open loop are the events that are due in that time. A closed loop has as many as it sends.
    pub duration: Option<Duration>,
    /// The time limit for a response, for a connection, and for a server that is gone.
    pub timeout: Duration,
    /// The least time that totals must stay the same after the last response; zero requests them once.
    pub quiet: Duration,
    /// Whether to reset the server before the run.
    pub reset: bool,
    /// The token for `POST /reset`.
    pub reset_token: Option<Arc<[u8]>>,
    /// This client's part of the run. Each part has its share of the events and the connections.
    pub part: Part,
    /// Whether to poll the totals during the run.
    pub watch: bool,
    /// The conditions that make the run fail.
    pub thresholds: Vec<Threshold>,
    /// Further thresholds. The run ends once one can no longer pass.
    pub abort_if: Vec<Threshold>,
    /// The interval between samples of the number of acknowledged events, for a search.
    pub sample_every: Option<Duration>,
    /// The command that repeats the run, for the report.
    pub command: Vec<String>,
    /// The command of the server, for the report, if the caller has started it.
    pub server_command: Vec<String>,
    /// The flags of the server, for the report, if the caller knows them.
    pub server_settings: Option<Settings>,
    /// The display of the progress.
    pub progress: Show,
}

/// The prefix of the ids of a run's users.
#[derive(Clone, Debug)]
pub enum Users {
    /// The published prefix. If the server has users and cannot be reset, the prefix is unique to the run.
    Published,
    /// This prefix. The server may know some of the users.
    Known(UserPrefix),
    /// This prefix. No user with this prefix was sent to the server since its totals were zero.
    New(UserPrefix),
}

impl Users {
    /// Returns the prefix, if one was chosen.
    fn prefix(&self) -> Option<&UserPrefix> {
        match self {
            Users::Published => None,
            Users::Known(prefix) | Users::New(prefix) => Some(prefix),
        }
    }
}

/// Flags, with underscores and without their leading dashes, and their values. A value is `None` if the flag was not
/// given and does not have a default.
pub type Settings = BTreeMap<String, Option<String>>;

/// The display of the progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// No progress is shown.
    Nothing,
    /// Progress on one line, on a terminal.
    Line,
    /// Progress on the whole screen.
    Screen,
}

/// The default of [`Config::quiet`].
pub const QUIET: Duration = Duration::from_millis(500);

/// A moment of a run when `challenge` reads its server's CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// All threads are connected and warm, and no measured request has been sent.
    Start,
    /// Every request has ended.
    End,
}

/// Returns the JSON Schema of a document that the client writes; `None` if another module writes it.
pub fn schema(format: Format) -> Option<Schema> {
    match format {
        Format::Load | Format::Merge | Format::Challenge => Some(report::schema(format)),
        Format::Part => Some(format.schema::<PartReport>()),
        Format::FindRate => Some(format.schema::<FoundRate>()),
        _ => None,
    }
}
