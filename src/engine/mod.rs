//! Moves bytes between sockets and connections, and does nothing else.
//!
//! Two engines drive the same [`Connection`](crate::connection::Connection): [`ring`] on its own io_uring, with the [`driver`]
//! that the simulators also use, and [`streams`] on glommio's streams, with one task per connection.

mod admission;
pub mod driver;
mod line;
mod pacing;
pub mod ring;
pub mod streams;
#[cfg(test)]
mod tests;
mod waits;

pub use crate::connection::Urgency;
pub use admission::{AcceptedConnection, Admission, Permit, REJECTED_MIN};
pub use driver::BACKLOG;
pub use line::Line;
pub use waits::Waits;

use crate::http::Limits;
use crate::service::Service;
use crate::uring::Wakeup;
use socket2::Socket;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// Returns the seconds since the Unix epoch, for dates.
pub fn unix_seconds() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

/// Converts the time since the start to milliseconds, which fit for half a billion years.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The time that an idle shard polls before it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spin {
    /// As long as it seems to pay.
    Auto,
    /// For this long, every time.
    Fixed(Duration),
}

/// The choice of a shard for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Steer {
    /// One that the kernel picks by a hash of the addresses, or the one that has the fewest
    Hash,
    /// The one on the CPU that received it
    Cpu,
}

/// The interval between checks of timeouts and the date. Timeouts are late by at most this much.
pub const TICK: Duration = Duration::from_millis(100);

/// Everything that a shard's engine needs.
#[derive(Debug)]
pub struct Shard {
    /// The number of this shard, from 0.
    pub index: usize,
    /// A listening socket, non-blocking.
    pub listener: Socket,
    /// Whether other shards share the listening socket, which then keeps listening without this shard.
    pub is_listener_shared: bool,
    /// The service that responds to its requests.
    pub service: Service,
    /// The limits of a connection.
    pub limits: Limits,
    /// The wake-up for news from `admission` and `stop`.
    pub wakeup: Arc<Wakeup>,
    /// Decides which shard serves a connection.
    pub admission: Arc<Admission>,
    /// Reports when to stop.
    pub stop: Arc<Stop>,
    /// The time that connections have to finish after the stop begins.
    pub drain_timeout: Duration,
    /// The time that it polls before it sleeps.
    pub spin: Spin,
    /// The time that it waits for more completions after the first, while it is not asleep. Zero if it does not wait, and
    /// for the streams engine.
    pub coalesce: Duration,
    /// The time that it polls its network devices whenever it waits; zero if it does not poll. Only the ring engine does.
    pub busy_poll: Duration,
    /// The time when it last read the clock, in milliseconds since its start. It reads the clock at least once per
    /// second while it is alive.
    pub heartbeat: Arc<AtomicU64>,
}

/// The end of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were closed while a request or a response was in flight.
    pub cut: usize,
}

/// Tells all shards to stop.
#[derive(Debug)]
pub struct Stop {
    urgency: AtomicU8,
    wakeups: Vec<Arc<Wakeup>>,
}

impl Stop {
    /// Creates a stop for as many shards as there are wake-ups.
    pub fn new(wakeups: Vec<Arc<Wakeup>>) -> Arc<Stop> {
        Arc::new(Stop { urgency: AtomicU8::new(Urgency::Serve as u8), wakeups })
    }

    /// Returns the current urgency.
    pub fn urgency(&self) -> Urgency {
        const DRAIN: u8 = Urgency::Drain as u8;
        match self.urgency.load(Ordering::Acquire) {
            0 => Urgency::Serve,
            DRAIN => Urgency::Drain,
            _ => Urgency::Abort,
        }
    }

    /// Raises the urgency, to drain or to abort. It is never lowered.
    pub fn escalate_to(&self, urgency: Urgency) {
        self.urgency.fetch_max(urgency as u8, Ordering::AcqRel);
        self.wakeups.iter().for_each(|wakeup| wakeup.wake());
    }
}
