//! Admits connections: up to a limit over all shards, and to the shard that has the fewest.

use crate::metrics::ShardMetrics;
use crossbeam_utils::CachePadded;
use rustix::event::{EventfdFlags, eventfd};
use socket2::Socket;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections over the limit that may be told so at the same time. Any further one is closed
/// without a word.
pub const TURNED_AWAY_MAX: usize = 32;

/// Admits connections for all shards.
#[derive(Debug)]
pub struct Gate {
    open: AtomicUsize,
    connections_max: usize,
    desks: Vec<Desk>,
}

/// What the gate knows of one shard.
#[derive(Debug)]
struct Desk {
    open: CachePadded<AtomicUsize>,
    /// Connections that other shards have accepted for this one; `None` once it takes no more.
    inbox: Mutex<Option<Vec<Arrival>>>,
    bell: Arc<OwnedFd>,
}

/// A connection that a shard is to serve.
#[derive(Debug)]
pub struct Arrival {
    /// The accepted socket.
    pub socket: Socket,
    /// The right to it.
    pub pass: Pass,
    /// There is no room: it is to be told so, and no more.
    pub is_turned_away: bool,
}

impl Arrival {
    /// Whether the peer's address is a loopback address.
    pub fn peer_is_loopback(&self) -> bool {
        let address = self.socket.peer_addr().ok().and_then(|address| address.as_socket());
        address.is_some_and(|address| address.ip().to_canonical().is_loopback())
    }
}

/// The right to an open connection, given back when it is dropped.
#[derive(Debug)]
pub struct Pass {
    gate: Arc<Gate>,
    shard: usize,
}

impl Pass {
    /// Counts a connection, which is one of `open` already, as the shard's.
    fn new(gate: &Arc<Gate>, shard: usize) -> Pass {
        gate.desks[shard].open.fetch_add(1, Ordering::Relaxed);
        Pass { gate: Arc::clone(gate), shard }
    }

    fn move_to(&mut self, shard: usize) {
        self.gate.desks[shard].open.fetch_add(1, Ordering::Relaxed);
        self.gate.desks[self.shard].open.fetch_sub(1, Ordering::Relaxed);
        self.shard = shard;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.desks[self.shard].open.fetch_sub(1, Ordering::Relaxed);
        self.gate.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One descriptor a shard that becomes readable when somebody wants its attention: the stop, or
/// the gate with connections for it.
pub fn bells(shards: usize) -> io::Result<Vec<Arc<OwnedFd>>> {
    (0..shards).map(|_| Ok(Arc::new(bell()?))).collect()
}

/// A bell that was not rung.
pub(super) fn bell() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Makes a bell readable.
pub(super) fn ring(bell: &OwnedFd) {
    // An eventfd can only refuse when its count is near 2^64, and is readable then.
    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
}

/// Makes a bell unreadable until it is rung again.
pub(super) fn quiet(bell: &OwnedFd) {
    // It may not have been rung.
    let _ = rustix::io::read(bell, &mut [0; 8]);
}

impl Gate {
    /// A gate for at most `connections_max` connections, on as many shards as there are bells.
    pub fn new(connections_max: usize, bells: &[Arc<OwnedFd>]) -> Arc<Gate> {
        let desk = |bell| Desk {
            open: CachePadded::new(AtomicUsize::new(0)),
            inbox: Mutex::new(Some(Vec::new())),
            bell: Arc::clone(bell),
        };
        let desks = bells.iter().map(desk).collect();
        Arc::new(Gate { open: AtomicUsize::new(0), connections_max, desks })
    }

    /// Admits what `shard` has accepted. Returns it where that shard is to serve it, and `None`
    /// where another one has fewer connections and got it, or where it was closed.
    ///
    /// SO_REUSEPORT spreads connections by hash. With this, shards differ by at most one
    /// connection after each arrival, plus what arrives on several shards in the same instant.
    pub fn admit(
        self: &Arc<Self>,
        shard: usize,
        socket: Socket,
        metrics: &ShardMetrics,
    ) -> Option<Arrival> {
        metrics.accepted.add(1);
        let emptiest = self.emptiest(shard);
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let is_turned_away = before >= self.connections_max;
        metrics.refused.add(u64::from(is_turned_away));
        let pass = Pass::new(self, if is_turned_away { shard } else { emptiest });
        if before >= self.connections_max.saturating_add(TURNED_AWAY_MAX) {
            return None;
        }
        let mut arrival = Arrival { socket, pass, is_turned_away };
        if arrival.pass.shard == shard {
            return Some(arrival);
        }
        let desk = &self.desks[emptiest];
        match &mut *desk.inbox() {
            Some(inbox) => inbox.push(arrival),
            // It has ended in the meantime.
            None => {
                arrival.pass.move_to(shard);
                return Some(arrival);
            }
        }
        ring(&desk.bell);
        metrics.handed_over.add(1);
        None
    }

    /// The shard with the fewest connections; `shard` itself where none has fewer.
    fn emptiest(&self, shard: usize) -> usize {
        let open = |shard: usize| self.desks[shard].open.load(Ordering::Relaxed);
        (0..self.desks.len()).fold(shard, |emptiest, other| {
            if open(other) < open(emptiest) { other } else { emptiest }
        })
    }

    /// Connections of each shard.
    #[cfg(test)]
    pub(super) fn open_by_shard(&self) -> Vec<usize> {
        self.desks.iter().map(|desk| desk.open.load(Ordering::Relaxed)).collect()
    }

    /// Takes what other shards have accepted for `shard`. To be called after its bell rang.
    pub fn collect(&self, shard: usize) -> Vec<Arrival> {
        self.desks[shard].inbox().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes it for the last time: from now on others keep what they accept.
    pub fn close(&self, shard: usize) -> Vec<Arrival> {
        let desk = &self.desks[shard];
        let last = desk.inbox().take().unwrap_or_default();
        // No shard is ever emptier.
        desk.open.fetch_add(usize::MAX / 2, Ordering::Relaxed);
        last
    }
}

impl Desk {
    fn inbox(&self) -> MutexGuard<'_, Option<Vec<Arrival>>> {
        // A list is whole at every moment, whoever panicked.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use socket2::{Domain, Type};

    fn gate(connections_max: usize, shards: usize) -> Arc<Gate> {
        Gate::new(connections_max, &bells(shards).unwrap())
    }

    fn socket() -> Socket {
        Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()
    }

    #[test]
    fn a_gate_admits_up_to_its_limit_and_takes_passes_back() {
        let gate = gate(2, 1);
        let admit = || {
            gate.admit(0, socket(), &ShardMetrics::default())
                .map(|arrival| (arrival.is_turned_away, arrival))
        };
        let first = admit();
        let second = admit();
        assert!(matches!((&first, &second), (Some((false, _)), Some((false, _)))));
        let told: Vec<_> = (0..TURNED_AWAY_MAX).map(|_| admit()).collect();
        assert!(told.iter().all(|told| matches!(told, Some((true, _)))));
        assert!(admit().is_none());
        drop((told, first));
        assert!(matches!(admit(), Some((false, _))));
        assert_eq!(gate.open.load(Ordering::Relaxed), 1, "only the second is still open");
    }

    #[test]
    fn a_shard_that_has_ended_gets_nothing() {
        let gate = gate(100, 2);
        let _first = gate.admit(0, socket(), &ShardMetrics::default());
        assert!(gate.admit(0, socket(), &ShardMetrics::default()).is_none(), "shard 1 is emptier");
        assert_eq!(gate.close(1).len(), 1, "it takes what it was given");
        for _ in 0..3 {
            std::mem::forget(
                gate.admit(0, socket(), &ShardMetrics::default()).expect("nobody else is there"),
            );
        }
        assert!(gate.collect(1).is_empty());
    }

    #[test]
    fn a_shard_that_ends_while_it_is_given_a_connection_leaves_it_to_the_giver() {
        let gate = gate(100, 2);
        let _first = gate.admit(0, socket(), &ShardMetrics::default());
        // Ended after it was found to be the emptiest.
        *gate.desks[1].inbox() = None;
        let second =
            gate.admit(0, socket(), &ShardMetrics::default()).expect("the giver serves it");
        assert_eq!(second.pass.shard, 0);
        assert_eq!(gate.desks[1].open.load(Ordering::Relaxed), 0);
    }

    proptest! {
        /// Whoever accepts and whoever leaves: an arrival is on a shard that had the fewest.
        #[test]
        fn arrivals_go_where_the_fewest_are(
            shards in 1..9usize,
            steps in prop::collection::vec((any::<bool>(), 0..1000usize), 1..200),
        ) {
            let gate = gate(usize::MAX, shards);
            let mut held: Vec<Vec<Arrival>> = (0..shards).map(|_| Vec::new()).collect();
            for (arrives, pick) in steps {
                let shard = pick % shards;
                if !arrives {
                    held[shard].pop();
                    continue;
                }
                let fewest = held.iter().map(Vec::len).min();
                let before = held[shard].len();
                match gate.admit(shard, socket(), &ShardMetrics::default()) {
                    Some(arrival) => {
                        prop_assert_eq!(Some(before), fewest);
                        held[shard].push(arrival);
                    }
                    None => {
                        let given: Vec<_> =
                            (0..shards).map(|shard| gate.collect(shard)).collect();
                        let to = given.iter().position(|given| given.len() == 1).unwrap();
                        prop_assert_eq!(Some(held[to].len()), fewest);
                        held[to].extend(given.into_iter().flatten());
                    }
                }
            }
        }
    }
}
