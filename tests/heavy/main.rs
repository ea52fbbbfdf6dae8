//! Tests that run minutes of load, or need programs and file systems that do not come with Rust: attacks on one server, and
//! several servers on a PostgreSQL database. `cargo test` leaves these tests to `ci/enemy` and `ci/cluster`,
//! which run them one by one.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a panic is a failure; nobody uses a test program as a library"
)]

mod attacks;
mod cluster;

/// The part of the tests' world that runs the real program.
#[path = "../it/world"]
mod world {
    pub mod description;
    mod process;
    #[allow(dead_code, reason = "the simulators use the rest")]
    mod responses;
    pub mod schema;

    pub use process::*;
    pub use responses::{Response, Totals, post, text};
}
