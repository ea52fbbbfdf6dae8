//! One simulated world: shards on the shipped driver, as the ring engine runs them, with a network, a clock, and seeds from a
//! test. Nothing in here knows the meaning of a request: that is the part of each simulator.

mod net;
mod network;
mod server;
mod shard;

pub use net::{Made, Receiving, Slot};
pub use network::{Link, Reader};
pub use server::{STORE_TIMEOUT_MS, Server};
pub use shard::{BUFFER_BYTES, Shard};
