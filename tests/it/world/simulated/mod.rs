//! One simulated world: shards on the shipped driver, as the ring engine has them, with a network, a clock, and seeds of a test.
//! Nothing in here knows what a request means: that is the part of each simulator.

mod net;
mod network;
mod server;
mod shard;

pub use net::{Made, Slot};
pub use network::{Link, Reader};
pub use server::{STORE_TIMEOUT_MS, Server};
pub use shard::{BUFFER_BYTES, Shard};
