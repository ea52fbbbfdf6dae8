//! One simulated world: shards that drive the shipped connections, as the ring engine does, on a network, a clock, and seeds of a
//! test. Nothing in here knows what a request means: that is the part of each simulator.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    clippy::unwrap_used,
    reason = "each simulator uses a part of it; a panic is a failure"
)]

mod network;
pub mod seeds;
mod server;
mod shard;

pub use network::{Link, Reader};
pub use server::{STORE_TIMEOUT_MS, Server};
pub use shard::{BUFFER_BYTES, Ended, Made, Shard, Slot};
