//! One simulated world: shards that drive the shipped connections, as the ring engine does, on a network, a clock, and seeds of a
//! test. Nothing in here knows what a request means: that is the part of each simulator.

mod network;
mod server;
mod shard;

pub use network::{Link, Reader};
pub use server::{STORE_TIMEOUT_MS, Server};
pub use shard::{BUFFER_BYTES, Ended, Made, Shard, Slot};
