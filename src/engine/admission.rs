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
pub struct Admission {
    open: AtomicUsize,
    connections_max: usize,
    inboxes: Vec<Inbox>,
}

/// What the admission knows of one shard.
#[derive(Debug)]
struct Inbox {
    open: CachePadded<AtomicUsize>,
    /// Connections that other shards have accepted for this one; `None` once it takes no more.
    inbox: Mutex<Option<Vec<AcceptedConnection>>>,
    wakeup: Arc<OwnedFd>,
}

/// A connection that a shard is to serve.
#[derive(Debug)]
pub struct AcceptedConnection {
    /// The accepted socket.
    pub socket: Socket,
    /// The right to it.
    pub permit: Permit,
    /// There is no room: it is to be told so, and no more.
    pub is_turned_away: bool,
}

impl AcceptedConnection {
    /// Whether the peer's address is a loopback address.
    pub fn peer_is_loopback(&self) -> bool {
        let address = self.socket.peer_addr().ok().and_then(|address| address.as_socket());
        address.is_some_and(|address| address.ip().to_canonical().is_loopback())
    }
}

/// The right to an open connection, given back when it is dropped.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    shard: usize,
}

impl Permit {
    /// Counts a connection, which is one of `open` already, as the shard's.
    fn new(admission: &Arc<Admission>, shard: usize) -> Permit {
        admission.inboxes[shard].open.fetch_add(1, Ordering::Relaxed);
        Permit { admission: Arc::clone(admission), shard }
    }

    fn move_to(&mut self, shard: usize) {
        self.admission.inboxes[shard].open.fetch_add(1, Ordering::Relaxed);
        self.admission.inboxes[self.shard].open.fetch_sub(1, Ordering::Relaxed);
        self.shard = shard;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.inboxes[self.shard].open.fetch_sub(1, Ordering::Relaxed);
        self.admission.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One descriptor a shard that becomes readable when somebody wants its attention: the stop, or
/// the admission with connections for it.
pub fn wakeups(shards: usize) -> io::Result<Vec<Arc<OwnedFd>>> {
    (0..shards).map(|_| Ok(Arc::new(wakeup()?))).collect()
}

/// A wakeup that was not rung.
pub(super) fn wakeup() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Makes a wakeup readable.
pub(super) fn ring(wakeup: &OwnedFd) {
    // An eventfd can only refuse when its count is near 2^64, and is readable then.
    let _ = rustix::io::write(wakeup, &1u64.to_ne_bytes());
}

/// Makes a wakeup unreadable until it is rung again.
pub(super) fn quiet(wakeup: &OwnedFd) {
    // It may not have been rung.
    let _ = rustix::io::read(wakeup, &mut [0; 8]);
}

impl Admission {
    /// A admission for at most `connections_max` connections, on as many shards as there are wakeups.
    pub fn new(connections_max: usize, wakeups: &[Arc<OwnedFd>]) -> Arc<Admission> {
        let inbox = |wakeup| Inbox {
            open: CachePadded::new(AtomicUsize::new(0)),
            inbox: Mutex::new(Some(Vec::new())),
            wakeup: Arc::clone(wakeup),
        };
        let inboxes = wakeups.iter().map(inbox).collect();
        Arc::new(Admission { open: AtomicUsize::new(0), connections_max, inboxes })
    }

    /// Admits what `shard` has accepted. Returns it where that shard is to serve it, and `None`
    /// where another one has fewer connections and got it, or where it was closed.
    ///
    /// SO_REUSEPORT spreads connections by hash. With this, shards differ by at most one
    /// connection after each accepted, plus what arrives on several shards in the same instant.
    pub fn admit(
        self: &Arc<Self>,
        shard: usize,
        socket: Socket,
        metrics: &ShardMetrics,
    ) -> Option<AcceptedConnection> {
        metrics.accepted.add(1);
        let emptiest = self.emptiest(shard);
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let is_turned_away = before >= self.connections_max;
        metrics.refused.add(u64::from(is_turned_away));
        let permit = Permit::new(self, if is_turned_away { shard } else { emptiest });
        if before >= self.connections_max.saturating_add(TURNED_AWAY_MAX) {
            return None;
        }
        let mut accepted = AcceptedConnection { socket, permit, is_turned_away };
        if accepted.permit.shard == shard {
            return Some(accepted);
        }
        let inbox = &self.inboxes[emptiest];
        match &mut *inbox.inbox() {
            Some(inbox) => inbox.push(accepted),
            // It has ended in the meantime.
            None => {
                accepted.permit.move_to(shard);
                return Some(accepted);
            }
        }
        ring(&inbox.wakeup);
        metrics.handed_over.add(1);
        None
    }

    /// The shard with the fewest connections; `shard` itself where none has fewer.
    fn emptiest(&self, shard: usize) -> usize {
        let open = |shard: usize| self.inboxes[shard].open.load(Ordering::Relaxed);
        (0..self.inboxes.len()).fold(shard, |emptiest, other| {
            if open(other) < open(emptiest) { other } else { emptiest }
        })
    }

    /// Connections of each shard.
    #[cfg(test)]
    pub(super) fn open_by_shard(&self) -> Vec<usize> {
        self.inboxes.iter().map(|inbox| inbox.open.load(Ordering::Relaxed)).collect()
    }

    /// Takes what other shards have accepted for `shard`. To be called after its wakeup rang.
    pub fn collect(&self, shard: usize) -> Vec<AcceptedConnection> {
        self.inboxes[shard].inbox().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes it for the last time: from now on others keep what they accept.
    pub fn close(&self, shard: usize) -> Vec<AcceptedConnection> {
        let inbox = &self.inboxes[shard];
        let last = inbox.inbox().take().unwrap_or_default();
        // No shard is ever emptier.
        inbox.open.fetch_add(usize::MAX / 2, Ordering::Relaxed);
        last
    }
}

impl Inbox {
    fn inbox(&self) -> MutexGuard<'_, Option<Vec<AcceptedConnection>>> {
        // A list is whole at every moment, whoever panicked.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use socket2::{Domain, Type};

    fn admission(connections_max: usize, shards: usize) -> Arc<Admission> {
        Admission::new(connections_max, &wakeups(shards).unwrap())
    }

    fn socket() -> Socket {
        Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()
    }

    #[test]
    fn a_gate_admits_up_to_its_limit_and_takes_passes_back() {
        let admission = admission(2, 1);
        let admit = || {
            admission
                .admit(0, socket(), &ShardMetrics::default())
                .map(|accepted| (accepted.is_turned_away, accepted))
        };
        let first = admit();
        let second = admit();
        assert!(matches!((&first, &second), (Some((false, _)), Some((false, _)))));
        let told: Vec<_> = (0..TURNED_AWAY_MAX).map(|_| admit()).collect();
        assert!(told.iter().all(|told| matches!(told, Some((true, _)))));
        assert!(admit().is_none());
        drop((told, first));
        assert!(matches!(admit(), Some((false, _))));
        assert_eq!(admission.open.load(Ordering::Relaxed), 1, "only the second is still open");
    }

    #[test]
    fn a_shard_that_has_ended_gets_nothing() {
        let admission = admission(100, 2);
        let _first = admission.admit(0, socket(), &ShardMetrics::default());
        assert!(
            admission.admit(0, socket(), &ShardMetrics::default()).is_none(),
            "shard 1 is emptier"
        );
        assert_eq!(admission.close(1).len(), 1, "it takes what it was given");
        for _ in 0..3 {
            std::mem::forget(
                admission
                    .admit(0, socket(), &ShardMetrics::default())
                    .expect("nobody else is there"),
            );
        }
        assert!(admission.collect(1).is_empty());
    }

    #[test]
    fn a_shard_that_ends_while_it_is_given_a_connection_leaves_it_to_the_giver() {
        let admission = admission(100, 2);
        let _first = admission.admit(0, socket(), &ShardMetrics::default());
        // Ended after it was found to be the emptiest.
        *admission.inboxes[1].inbox() = None;
        let second =
            admission.admit(0, socket(), &ShardMetrics::default()).expect("the giver serves it");
        assert_eq!(second.permit.shard, 0);
        assert_eq!(admission.inboxes[1].open.load(Ordering::Relaxed), 0);
    }

    proptest! {
        /// Whoever accepts and whoever leaves: an accepted connection is on a shard that had the fewest.
        #[test]
        fn arrivals_go_where_the_fewest_are(
            shards in 1..9usize,
            steps in prop::collection::vec((any::<bool>(), 0..1000usize), 1..200),
        ) {
            let admission = admission(usize::MAX, shards);
            let mut held: Vec<Vec<AcceptedConnection>> = (0..shards).map(|_| Vec::new()).collect();
            for (arrives, pick) in steps {
                let shard = pick % shards;
                if !arrives {
                    held[shard].pop();
                    continue;
                }
                let fewest = held.iter().map(Vec::len).min();
                let before = held[shard].len();
                match admission.admit(shard, socket(), &ShardMetrics::default()) {
                    Some(accepted) => {
                        prop_assert_eq!(Some(before), fewest);
                        held[shard].push(accepted);
                    }
                    None => {
                        let given: Vec<_> =
                            (0..shards).map(|shard| admission.collect(shard)).collect();
                        let to = given.iter().position(|given| given.len() == 1).unwrap();
                        prop_assert_eq!(Some(held[to].len()), fewest);
                        held[to].extend(given.into_iter().flatten());
                    }
                }
            }
        }
    }
}
