//! The modules whose mutants `ci/mutants` tests, the modules that they need, and their tests that run without a socket, as one
//! crate: a change of one function is compiled and linked once. It takes the place of `src/lib.rs` in a copy of the source.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "this is a part of a program")]

pub mod connection;
pub mod engine {
    //! Nothing that does I/O.
    pub mod driver;
    mod line;
    mod waits;
    pub use driver::BACKLOG;
    pub use line::Line;
    pub use waits::Waits;
}
pub mod event;
pub mod failure;
pub mod http;
pub mod log;
pub mod metrics;
mod page;
mod primitives;
pub mod service;
pub mod store;
pub mod tally;
pub mod uring {
    //! Nothing that needs a ring.
    mod wakeup;
    pub use wakeup::Wakeup;
}

/// The name that the tests use for this crate.
#[cfg(test)]
extern crate self as ringtally;

#[cfg(test)]
#[path = "../tests/it"]
mod it {
    mod batches {
        mod connection;
        mod schedules;
    }
    mod group;
    mod simulation;
    mod stats {
        mod counters;
    }
    mod store {
        mod file;
        mod power_cuts;
    }
    mod wire {
        mod differential;
        mod protocol;
    }
    pub mod world {
        pub mod agreement;
        pub mod description;
        pub mod disk;
        pub mod exchange;
        pub mod reference;
        mod responses;
        pub mod seeds;
        pub mod simulated;

        pub use responses::*;
    }
}

#[cfg(test)]
use it::world;
