//! Moves bytes between sockets and `http`. There is no HTTP in here.

mod admission;
pub mod glommio;
pub mod ring;
#[cfg(test)]
mod tests;

pub use admission::{AcceptedConnection, Admission, Permit, TURNED_AWAY_MAX, wakeups};

use crate::http::Limits;
use crate::service::Service;
use socket2::Socket;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

/// Seconds of the Unix epoch, for dates.
pub fn unix_seconds() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

/// How long an idle shard polls before it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spin {
    /// As long as it seems to pay.
    Auto,
    /// So long, every time.
    Fixed(Duration),
}

/// How often timeouts and the date are looked at. Timeouts are late by this at most.
pub const TICK: Duration = Duration::from_millis(100);

/// How long a closing connection's input is read and discarded, so that the peer can read
/// the last answer (RFC 9112 section 9.6).
pub const LINGER_MS: u64 = 2_000;
/// How much of it is discarded.
pub const LINGER_BYTES_MAX: usize = 4 << 20;

/// Everything that a shard's engine needs.
#[derive(Debug)]
pub struct Shard {
    /// Which shard this is, from 0.
    pub index: usize,
    /// A listening socket of its own, non-blocking.
    pub listener: Socket,
    /// Answers its requests.
    pub service: Service,
    /// What a connection may ask.
    pub limits: Limits,
    /// Rings when there is something to hear from one of the following two.
    pub wakeup: Arc<OwnedFd>,
    /// Says which shard serves a connection.
    pub admission: Arc<Admission>,
    /// Says when to stop.
    pub stop: Arc<Stop>,
    /// How long connections may take to finish once it says so.
    pub drain_timeout: Duration,
    /// How long it polls before it sleeps.
    pub spin: Spin,
}

/// How urgently the server is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Not at all.
    Serve,
    /// Finish what is in flight.
    Drain,
    /// At once.
    Abort,
}

/// Tells all shards to stop.
#[derive(Debug)]
pub struct Stop {
    urgency: AtomicU8,
    /// Shards that have not come to their end.
    running: AtomicUsize,
    wakeups: Vec<Arc<OwnedFd>>,
}

impl Stop {
    /// One for as many shards as there are wakeups.
    pub fn new(wakeups: Vec<Arc<OwnedFd>>) -> Arc<Stop> {
        let running = AtomicUsize::new(wakeups.len());
        Arc::new(Stop { urgency: AtomicU8::new(0), running, wakeups })
    }

    /// What was said last.
    pub fn urgency(&self) -> Urgency {
        match self.urgency.load(Ordering::Acquire) {
            0 => Urgency::Serve,
            1 => Urgency::Drain,
            _ => Urgency::Abort,
        }
    }

    /// Notes that a shard has come to its end.
    pub fn note_end(&self) {
        self.running.fetch_sub(1, Ordering::AcqRel);
    }

    /// How many shards have not.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Acquire)
    }

    /// Drains; said again, aborts.
    pub fn escalate(&self) {
        self.urgency.fetch_add(1, Ordering::AcqRel);
        for wakeup in &self.wakeups {
            admission::ring(wakeup);
        }
    }
}
