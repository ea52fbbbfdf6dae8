//! An exact server for the One Million Request Challenge, and the client that checks what a server counted.
//!
//! # The path of an event
//!
//! A connection belongs to one shard: a glommio executor pinned to one CPU, with its own listener on the common port. The
//! [`engine`] receives bytes and gives them to a [`connection`], which has [`http`] read one request after another and the
//! [`service`] respond to each: the service decodes the [`event`] and counts it with the shard's [`tally::Writer`]. Once all
//! requests that arrived together are handled, the writer publishes its totals, and only then does the connection let the
//! engine send the responses. With a [`store`], it also waits until the committer has made the cut that contains the event
//! durable. The cost of a request is charged to the [`http::Budget`] of its connection. A connection that has spent its budget
//! waits until the others have had their turn. A batch (`POST /events`) is counted in slices of one budget, and published as a
//! whole. `GET /stats` merges what all shards have published into the totals of one moment. If several servers share a store,
//! the response waits until the totals across all of them have been read from it.
//!
//! # Where memory is
//!
//! Linux takes a page from the NUMA node of the thread that first touches it. So each shard's thread, once it is pinned,
//! allocates what only this shard uses: the ring, its receive buffers, connections and responses, batches, and the set of users
//! that the shard has seen. Two things are shared, and stay on the node that first touched them. The main thread allocates what
//! the shards publish and their metrics, a few KiB per shard. Each stripe of the set of all users is a table on the node of the
//! shard that last made it grow. An event reads or writes that set only if its shard has not seen its user before.
//!
//! # The modules
//!
//! Each module may use the modules below it in this list, but not those above it; `tests/it/source/layers.rs` checks that.
//!
//! - [`cli`]: the flags of each subcommand, and the step from what was typed to a configuration.
//! - [`challenge`]: servers, this program's own or any command, a client, rounds, and one report.
//! - [`compare`]: whether some runs differ from others, and by how much.
//! - [`server`]: checks of the environment, shards, startup, readiness, and the drain.
//! - [`load`]: the client, an independent witness: it shares no HTTP, JSON, or counting code with
//!   the server.
//! - [`doctor`]: what a benchmark on this machine depends on; every report includes it.
//! - [`engine`]: moves bytes between sockets and connections, and nothing else.
//! - [`connection`]: everything about one connection above HTTP: held responses, deadlines, budgets, drain, and linger.
//! - [`service`]: maps method and path to an action; the only module that knows both [`http`] and [`tally`].
//! - [`store`]: makes the totals outlive the process.
//! - [`metrics`]: counters with one writer per shard, and their Prometheus text.
//! - `page`: the live page, whose script reads `/stats` and `/metrics`.
//! - [`http`]: HTTP/1.1 without sockets or clocks.
//! - [`event`]: one event, decoded from JSON.
//! - [`tally`]: the exact sum and the distinct users, with one writer per shard, merged on read.
//! - [`uring`]: io_uring with typed operations, for server and client alike; all its unsafe code.
//! - [`topology`]: the CPUs of this process, and which of them each shard and the client get.
//! - `listening`: the TCP sockets that listen on this machine, and the processes that have them.
//! - [`statistics`]: medians, and how precisely they are known.
//! - `terminal`: standard output, and lines that fit narrow terminals.
//! - [`document`]: JSON documents that name their format.
//! - [`log`]: log lines on standard error.
//! - [`failure`]: why a command failed, and its exit code.
//! - `primitives`: the locks, atomics, and hash keys of [`tally`], which a test replaces with loom's.
//!
//! [`http`], [`event`], and [`tally`] do not know about runtimes, sockets, or clocks: bytes and time come in, and values go
//! out, so every byte sequence, order, and interleaving can be tested.

pub mod challenge;
pub mod cli;
pub mod compare;
pub mod connection;
pub mod doctor;
pub mod document;
pub mod engine;
pub mod event;
pub mod failure;
pub mod http;
mod listening;
pub mod load;
pub mod log;
pub mod metrics;
mod page;
mod primitives;
pub mod server;
pub mod service;
pub mod statistics;
pub mod store;
pub mod tally;
mod terminal;
pub mod topology;
pub mod uring;
