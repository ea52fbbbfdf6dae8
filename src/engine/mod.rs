//! Moves bytes between sockets and `http`. There is no HTTP in here.

pub mod ring;
pub mod streams;

use crate::http::Limits;
use crate::service::Service;
use rustix::event::{EventfdFlags, eventfd};
use socket2::Socket;
use std::io;
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
    /// How many connections all shards may hold.
    pub gate: Arc<Gate>,
    /// Says when to stop.
    pub stop: Arc<Stop>,
    /// How long connections may take to finish once it says so.
    pub drain_timeout: Duration,
    /// How long it polls before it sleeps.
    pub spin: Spin,
}

/// Admits connections up to a limit over all shards.
#[derive(Debug)]
pub struct Gate {
    open: AtomicUsize,
    connections_max: usize,
}

/// Connections over the limit that may be told so at the same time. Any further one is closed
/// without a word.
pub const TURNED_AWAY_MAX: usize = 32;

/// What a [`Gate`] says to one more connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// Serve it.
    Admitted(Pass),
    /// Tell it that there is no room.
    TurnedAway(Pass),
    /// Close it.
    Dropped,
}

/// The right to an open connection, given back when it is dropped.
#[derive(Debug)]
pub struct Pass(Arc<Gate>);

impl PartialEq for Pass {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
impl Eq for Pass {}

impl Gate {
    /// A gate for at most `connections_max` connections.
    pub fn new(connections_max: usize) -> Arc<Gate> {
        Arc::new(Gate { open: AtomicUsize::new(0), connections_max })
    }

    /// Asks for one more connection.
    pub fn admit(self: &Arc<Self>) -> Admission {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let pass = Pass(Arc::clone(self));
        if before < self.connections_max {
            Admission::Admitted(pass)
        } else if before < self.connections_max.saturating_add(TURNED_AWAY_MAX) {
            Admission::TurnedAway(pass)
        } else {
            Admission::Dropped
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
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
    bells: Vec<Arc<OwnedFd>>,
}

impl Stop {
    /// One for so many shards.
    pub fn new(shards: usize) -> io::Result<Arc<Stop>> {
        let bells = (0..shards)
            .map(|_| Ok(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
            .collect::<io::Result<_>>()?;
        Ok(Arc::new(Stop { urgency: AtomicU8::new(0), running: AtomicUsize::new(shards), bells }))
    }

    /// A descriptor that becomes readable, and stays so, when shard `index` is to stop.
    pub fn bell(&self, index: usize) -> Arc<OwnedFd> {
        Arc::clone(&self.bells[index])
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
        for bell in &self.bells {
            // An eventfd can only refuse when its count is near 2^64.
            let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_admits_up_to_its_limit_and_takes_passes_back() {
        let gate = Gate::new(2);
        let first = gate.admit();
        let second = gate.admit();
        assert!(matches!((&first, &second), (Admission::Admitted(_), Admission::Admitted(_))));
        let told: Vec<_> = (0..TURNED_AWAY_MAX).map(|_| gate.admit()).collect();
        assert!(told.iter().all(|admission| matches!(admission, Admission::TurnedAway(_))));
        assert_eq!(gate.admit(), Admission::Dropped);
        drop((told, first));
        assert!(matches!(gate.admit(), Admission::Admitted(_)));
        assert_eq!(gate.open.load(Ordering::Relaxed), 1, "only the second is still open");
    }

    #[test]
    fn stopping_is_heard_by_every_shard_and_escalates() {
        let stop = Stop::new(2).unwrap();
        assert_eq!(stop.urgency(), Urgency::Serve);
        stop.escalate();
        assert_eq!(stop.urgency(), Urgency::Drain);
        stop.escalate();
        assert_eq!(stop.urgency(), Urgency::Abort);
        for shard in 0..2 {
            let mut count = [0; 8];
            rustix::io::read(stop.bell(shard), &mut count).unwrap();
            assert_eq!(u64::from_ne_bytes(count), 2);
        }
    }
}
