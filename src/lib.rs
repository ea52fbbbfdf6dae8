//! ringtally counts the events of the One Million Request Challenge, exactly and as fast as the
//! kernel allows, and checks whether a server does.
//!
//! # The way of an event
//!
//! A connection belongs to one shard: a glommio executor pinned to one CPU, with a listener of
//! its own on the common port. Bytes arrive through an [`engine`], which hands them to an
//! [`http::Connection`]. Every complete request in them goes to the [`service`], which decodes the
//! [`event`] and counts it with the shard's [`tally::Writer`]. When all requests that arrived
//! together are handled, the writer publishes, and only then the engine sends the answers.
//! `GET /stats` merges what all shards have published into one moment.
//!
//! # The modules, in the order that data flows
//!
//! Each may use those below it in this list, and none above.
//!
//! - [`cli`]: the flags, and the step from what was typed to a checked configuration.
//! - [`challenge`]: a server process, a client, one report.
//! - [`server`]: checks of the environment, shards, readiness, the stop.
//! - [`load`]: the client. An independent witness: it shares no HTTP, JSON or counting code with
//!   the server.
//! - [`doctor`]: what a benchmark on this machine depends on; a part of every report.
//! - [`engine`]: moves bytes between sockets and `http`. There is no HTTP in it.
//! - [`service`]: method and path to action. The only place that knows both `http` and `tally`.
//! - [`http`]: HTTP/1.1 without sockets or clocks.
//! - [`event`]: one event from JSON.
//! - [`tally`]: what is counted: the exact sum, the users, one writer a shard, merged on read.
//! - [`metrics`]: counters with one writer a shard, and the text that Prometheus reads.
//! - `page`: the live page, whose script reads the numbers of `tally` and [`metrics`] by itself.
//! - [`topology`]: which CPUs this process may use, and which shard and client gets which.
//! - [`log`] and [`failure`]: words for the operator, and exit codes.
//!
//! `http`, `event` and `tally` know no runtime, no socket and no clock: bytes and time come in,
//! values go out, so that every byte sequence, order and interleaving can be tested.

pub mod challenge;
pub mod cli;
pub mod doctor;
pub mod engine;
pub mod event;
pub mod failure;
pub mod http;
pub mod load;
pub mod log;
pub mod metrics;
mod page;
mod primitives;
pub mod server;
pub mod service;
pub mod tally;
pub mod topology;
pub mod uring;
