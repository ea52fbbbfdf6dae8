//! Admits connections: up to a limit over all shards, and to the shard that has the fewest.

use crate::log::Log;
use crate::metrics::ShardMetrics;
use crate::uring::Wakeup;
use crossbeam_utils::CachePadded;
use socket2::Socket;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Connections over the limit that get a 503 at the same time. Any further one is closed without a
/// response.
pub const TURNED_AWAY_MAX: usize = 32;

/// Seconds between two log lines about refused connections.
const REFUSALS_LOGGED_EVERY_S: u64 = 10;

/// Admits connections for all shards.
#[derive(Debug)]
pub struct Admission {
    open: AtomicUsize,
    connections_max: usize,
    inboxes: Vec<Inbox>,
    log: Log,
    started: Instant,
    /// Connections refused since the last log line about it.
    refused: AtomicU64,
    /// Seconds since the start before which no line is logged again.
    silent_until_s: AtomicU64,
}

/// What is known of one shard.
#[derive(Debug)]
struct Inbox {
    open: CachePadded<AtomicUsize>,
    /// The shard takes no more: it is not looked at.
    is_closed: AtomicBool,
    /// Connections that other shards have accepted for this one; `None` once it takes no more.
    waiting: Mutex<Option<Vec<AcceptedConnection>>>,
    wakeup: Arc<Wakeup>,
}

/// A connection that a shard is to serve.
#[derive(Debug)]
pub struct AcceptedConnection {
    /// The accepted socket.
    pub socket: Socket,
    /// The right to it.
    pub permit: Permit,
    /// There is no room: it gets a 503 and is closed.
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

impl Admission {
    /// Admits at most `connections_max` connections, to as many shards as there are wake-ups, and logs
    /// what it refuses.
    pub fn new(connections_max: usize, wakeups: &[Arc<Wakeup>], log: Log) -> Arc<Admission> {
        let inbox = |wakeup| Inbox {
            open: CachePadded::new(AtomicUsize::new(0)),
            is_closed: AtomicBool::new(false),
            waiting: Mutex::new(Some(Vec::new())),
            wakeup: Arc::clone(wakeup),
        };
        Arc::new(Admission {
            open: AtomicUsize::new(0),
            connections_max,
            inboxes: wakeups.iter().map(inbox).collect(),
            log,
            started: Instant::now(),
            refused: AtomicU64::new(0),
            silent_until_s: AtomicU64::new(0),
        })
    }

    /// Admits what `shard` has accepted. Returns it where that shard is to serve it, and `None`
    /// where another one has fewer connections and got it, or where it was closed.
    ///
    /// SO_REUSEPORT spreads connections by hash. With this, shards differ by at most one
    /// connection after each that is accepted, plus what several shards accept in the same instant.
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
        if is_turned_away {
            metrics.refused.add(1);
            self.log_refusal();
        }
        let permit = Permit::new(self, if is_turned_away { shard } else { emptiest });
        if before >= self.connections_max.saturating_add(TURNED_AWAY_MAX) {
            return None;
        }
        let mut accepted = AcceptedConnection { socket, permit, is_turned_away };
        if accepted.permit.shard == shard {
            return Some(accepted);
        }
        let inbox = &self.inboxes[emptiest];
        match &mut *inbox.waiting() {
            Some(waiting) => waiting.push(accepted),
            // It has ended in the meantime.
            None => {
                accepted.permit.move_to(shard);
                return Some(accepted);
            }
        }
        inbox.wakeup.wake();
        metrics.handed_over.add(1);
        None
    }

    /// Logs that connections are refused: the first at once, then one line per
    /// [`REFUSALS_LOGGED_EVERY_S`].
    fn log_refusal(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let now_s = self.started.elapsed().as_secs();
        let until_s = self.silent_until_s.load(Ordering::Relaxed);
        let next_s = now_s + REFUSALS_LOGGED_EVERY_S;
        let is_due = now_s >= until_s
            && self
                .silent_until_s
                .compare_exchange(until_s, next_s, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_due {
            let refused = self.refused.swap(0, Ordering::Relaxed);
            let plural = if refused == 1 { "" } else { "s" };
            self.log.warn(&format!(
                "refused {refused} connection{plural}: all {} are in use: raise --max-connections, \
                 or ulimit -n where it is the file limit",
                self.connections_max
            ));
        }
    }

    /// The shard with the fewest connections; `shard` itself where none has fewer.
    fn emptiest(&self, shard: usize) -> usize {
        let open = |shard: usize| self.inboxes[shard].open.load(Ordering::Relaxed);
        let takes_more = |shard: &usize| !self.inboxes[*shard].is_closed.load(Ordering::Relaxed);
        (0..self.inboxes.len()).filter(takes_more).fold(shard, |emptiest, other| {
            if open(other) < open(emptiest) { other } else { emptiest }
        })
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Connections of each shard.
    #[cfg(test)]
    pub(super) fn open_by_shard(&self) -> Vec<usize> {
        self.inboxes.iter().map(|inbox| inbox.open.load(Ordering::Relaxed)).collect()
    }

    /// Takes what other shards have accepted for `shard`. To be called after its wake-up.
    pub fn collect(&self, shard: usize) -> Vec<AcceptedConnection> {
        self.inboxes[shard].waiting().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes it for the last time: from here on others keep what they accept.
    pub fn close(&self, shard: usize) -> Vec<AcceptedConnection> {
        let inbox = &self.inboxes[shard];
        inbox.is_closed.store(true, Ordering::Relaxed);
        inbox.waiting().take().unwrap_or_default()
    }
}

impl Inbox {
    fn waiting(&self) -> MutexGuard<'_, Option<Vec<AcceptedConnection>>> {
        // A list is whole at every moment, also when a holder of the lock panicked.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use socket2::{Domain, Type};

    fn admission(connections_max: usize, shards: usize) -> Arc<Admission> {
        let wakeups: Vec<_> = (0..shards).map(|_| Arc::new(Wakeup::new().unwrap())).collect();
        Admission::new(connections_max, &wakeups, Log::Text)
    }

    fn socket() -> Socket {
        Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()
    }

    #[test]
    fn connections_are_admitted_up_to_the_limit_and_permits_come_back() {
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
    fn a_shard_that_closes_during_a_hand_over_leaves_the_connection_to_the_giver() {
        let admission = admission(100, 2);
        let _first = admission.admit(0, socket(), &ShardMetrics::default());
        // Ended after it was found to be the emptiest.
        *admission.inboxes[1].waiting() = None;
        let second =
            admission.admit(0, socket(), &ShardMetrics::default()).expect("the giver serves it");
        assert_eq!(second.permit.shard, 0);
        assert_eq!(admission.inboxes[1].open.load(Ordering::Relaxed), 0);
    }

    proptest! {
        /// Whichever shard accepts: the connection goes to a shard that had the fewest.
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
