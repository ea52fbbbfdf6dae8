//! The client: sends the challenge's published events and checks what the server counted.
//!
//! It is an independent witness: it shares no HTTP, JSON or counting code with the server. It shares only the ring that
//! moves bytes.
//!
//! # How a run is judged
//!
//! In this order, from `run::run` on:
//!
//! 1. `control` reads the totals, resets the server, and reads them again: the run starts from those.
//! 2. The threads send every event once, and note its outcome in a `ledger`: acknowledged, refused,
//!    unknown (sent, without a response), or unsent. Beside them, `watch` looks for totals that cannot be.
//! 3. `run::send_all` reads the totals as soon as the last request has ended. Every acknowledged event must
//!    be in them, so `run::settle` asks again if they are wrong, only to tell late from never.
//! 4. If they are right, `run::stay` asks for them throughout a quiet time, in which they must stay right.
//! 5. `account` adds up what the totals must be, and what they may be with the unknown events;
//!    `verdict::Evidence` compares: outside of that is wrong, and what leaves room is undecided.
//! 6. `verdict::Judgement::with` adds what was seen besides: acknowledgements that contradict their batch,
//!    totals that became right late or did not stay right, and what the watch saw.
//! 7. `Report::check` decides the exit code: the verdict, what was not acknowledged, malformed responses,
//!    connections that could not be opened, and thresholds.
//!
//! # The modules
//!
//! - `run`: a run from its first request to its report.
//! - `abort`: ends a run early if a threshold can no longer pass.
//! - `profile`: a rate, or a number of connections, that changes over time.
//! - `shared`: what all client threads know. `worker`, `connection`, `transport`, `schedule`,
//!   `workload`, `response`: one thread, which sends events and reads responses.
//! - `control`: the few requests around a run. `interrupt`: Ctrl-C and SIGTERM. `taken_terminal`: the terminal while a
//!   screen has it.
//! - `part`: which requests a client sends of a run in parts. `parts`: clients on several machines send parts of one workload, whose reports are merged.
//! - `find`: the highest rate at which a latency stays below a limit. `flow`: whether the server completes what it is sent.
//! - `ledger`, `event_set`, `account`, `verdict`, `watch`: judge what the server counted.
//! - `latency`, `timeline`, `client_load`, `placement`: what was measured, and by whom. `run_record`: all of it, as one
//!   record per client, which can be merged.
//! - `figures`: the table of figures. `export`: the table of forms that other tools read. `report`, `thresholds`,
//!   `view`: tell the user. `numbers`, `markup`: how they are written. `output`, `destination`: where to. `origin`: what
//!   repeats a run. `clock`: how far the clocks of clients are apart.

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
    /// Events to send before, which are not measured.
    pub warm_up: u64,
    /// Connections, at least one; no more than requests are used. If their number changes, the most of them.
    pub connections: usize,
    /// The number of connections over time; `None` is constant.
    pub connections_over_time: Option<Profile>,
    /// Client threads, at least one and at most as many as connections; `None` is one per CPU.
    pub threads: Option<usize>,
    /// The CPUs that threads are pinned to, in turn; `None` is those that keep off the server's.
    pub cpus: Option<Vec<usize>>,
    /// The CPUs of the server, if the caller knows them.
    pub server_cpus: Option<Vec<usize>>,
    /// Whether to ask the server to close each connection after one response.
    pub one_request_per_connection: bool,
    /// Requests in flight per connection.
    pub pipeline: usize,
    /// Events per second of an open loop, at most [`RATE_MAX`]; `None` is a closed loop.
    pub rate: Option<Profile>,
    /// The time during which requests are sent; `None` if the workload has a fixed number of events. The events of an
    /// open loop are those that are due in that time; a closed loop has as many as it sends.
    pub duration: Option<Duration>,
    /// The time that a response, a connection, or a server that is gone may take.
    pub timeout: Duration,
    /// The least time for which totals must stay the same after the last response; zero requests them once.
    pub quiet: Duration,
    /// Whether to reset the server before.
    pub reset: bool,
    /// The token that `POST /reset` is sent with.
    pub reset_token: Option<Arc<[u8]>>,
    /// This client's share: each part has events and connections.
    pub part: Part,
    /// Whether to poll the totals during the run.
    pub watch: bool,
    /// The conditions under which the run fails.
    pub thresholds: Vec<Threshold>,
    /// Further thresholds. The conditions that end the run once one can no longer pass.
    pub abort_if: Vec<Threshold>,
    /// The interval at which the number of acknowledged events is sampled, for a search.
    pub sample_every: Option<Duration>,
    /// The command that makes the run again, for the report.
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
    /// As published. If the server has users and cannot be reset, the prefix is unique to the run.
    Published,
    /// With this. The server may know some of the users.
    Known(UserPrefix),
    /// With this. No user was sent to the server since its totals were zero.
    New(UserPrefix),
}

impl Users {
    /// The prefix, if one was chosen.
    fn prefix(&self) -> Option<&UserPrefix> {
        match self {
            Users::Published => None,
            Users::Known(prefix) | Users::New(prefix) => Some(prefix),
        }
    }
}

/// Flags without their dashes, with underscores, and their values; `None` if a flag was not given and lacks a default.
pub type Settings = BTreeMap<String, Option<String>>;

/// The display of the progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Not at all.
    Nothing,
    /// One line, on a terminal.
    Line,
    /// The whole screen.
    Screen,
}

/// The default of [`Config::quiet`].
pub const QUIET: Duration = Duration::from_millis(500);

/// A moment of a run at which `challenge` reads its server's CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// All threads are connected and warm, and nothing of what is measured is sent.
    Start,
    /// Every request has ended.
    End,
}

/// Returns the JSON Schema of a document that the client writes; `None` if another module does.
pub fn schema(format: Format) -> Option<Schema> {
    match format {
        Format::Load | Format::Merge | Format::Challenge => Some(report::schema(format)),
        Format::Part => Some(format.schema::<PartReport>()),
        Format::FindRate => Some(format.schema::<FoundRate>()),
        _ => None,
    }
}
