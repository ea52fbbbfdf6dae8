//! The tests of everything that `cargo test` shows: a directory per promise or part, a file per theme. Shared code is in
//! `world`. The tests run at the same time: each takes port 0 and its own names, and anything that changes a whole process
//! happens in a process that the test starts. No test needs a quiet machine: on a busy one, some find less, and none finds more.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a panic is a failure; nobody uses a test program as a library"
)]

mod batches {
    mod connection;
    mod schedules;
}
mod challenge {
    mod servers;
}
mod cli;
mod client {
    mod batches;
    mod capacity;
    mod hardships;
    mod hostile;
    mod instrument;
    mod parts;
    mod shapes;
    mod verdict;
    mod witness;
}
mod doctor;
mod group;
mod report {
    mod output;
    mod schemas;
}
mod service {
    mod numa;
    mod steering;
    mod systemd;
}
mod simulation;
mod source {
    mod documents;
    mod figures;
    mod layers;
    mod mutants;
    mod named;
    mod paired;
}
mod stats {
    mod counters;
    mod sharing;
}
mod stop {
    mod drain;
    mod pause;
}
mod store {
    mod crash;
    mod file;
    mod power_cuts;
}
mod wire {
    mod differential;
    mod openapi;
    mod protocol;
    mod sockets;
}
mod world;
