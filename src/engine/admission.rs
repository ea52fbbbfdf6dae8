//! Admits connections, up to a limit across all shards, to the shard with the fewest connections, unless
//! they are steered by CPU.

use super::{Steer, Stop, Urgency};
use crate::log::{Log, Seldom};
use crate::metrics::ShardMetrics;
use crate::uring::{Wakeup, send_now};
use crossbeam_utils::CachePadded;
use rustix::net::RecvFlags;
use socket2::Socket;
use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The number of connections over the limit that always have descriptors reserved. Each stays open until its peer has read why
/// it was rejected, or two seconds have passed. Beyond that number, a connection also gets its 503, but is closed immediately.
pub const REJECTED_MIN: usize = 32;

/// The response to a connection that is closed immediately. A 5xx response does not need a Date field (RFC 9110 section 6.6.1).
const REJECTION: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 76\r\n\
    Content-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n\r\n\
    {\"error\":\"try again later: the server has as many connections as it allows\"}";

/// The maximum number of reads, of 4 KiB each, before such a connection gets its response: enough for any request that the
/// server accepts, and a limit for a peer that keeps sending.
const REJECTED_READS_MAX: usize = 16;

/// The number of accepted connections between two checks of how many have ended. If half as many have, turnover is high.
const TURNOVER_WINDOW: usize = 16;
/// The surplus of connections over the emptiest shard that is not worth a handoff while turnover is high.
const TURNOVER_SLACK: usize = 4;

/// The minimum time between two log lines about refused connections, and about failed accepts.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(10);
const ACCEPT_ERRORS_LOGGED_EVERY: Duration = Duration::from_secs(60);

/// Admits connections for all shards.
#[derive(Debug)]
pub struct Admission {
    open: AtomicUsize,
    connections_max: usize,
    /// The number of rejected connections that are still open. They are counted separately: if they took the place of others,
    /// the server would refuse connections for as long as clients keep trying.
    rejected: AtomicUsize,
    rejected_max: usize,
    inboxes: Vec<Inbox>,
    steer: Steer,
    log: Log,
    refused: Seldom,
    accept_errors: Seldom,
    /// The number of shards whose socket listens.
    listening: AtomicUsize,
}

/// The state of one shard.
#[derive(Debug)]
struct Inbox {
    open: CachePadded<AtomicUsize>,
    turnover: CachePadded<Turnover>,
    /// The shard does not take connections anymore, and is skipped.
    is_closed: AtomicBool,
    /// Connections that other shards have accepted for this shard; `None` once it does not take any more.
    waiting: Mutex<Option<Vec<AcceptedConnection>>>,
    wakeup: Arc<Wakeup>,
}

/// Whether the connections of a shard end as fast as they arrive.
#[derive(Debug, Default)]
struct Turnover {
    /// The numbers of accepted and closed connections since the last check.
    accepted: AtomicUsize,
    closed: AtomicUsize,
    is_high: AtomicBool,
}

impl Turnover {
    /// Counts an accepted connection. Only the shard's own thread calls this.
    fn note_accepted(&self) {
        let accepted = self.accepted.load(Ordering::Relaxed) + 1;
        self.accepted.store(accepted % TURNOVER_WINDOW, Ordering::Relaxed);
        if accepted == TURNOVER_WINDOW {
            let closed = self.closed.swap(0, Ordering::Relaxed);
            self.is_high.store(2 * closed >= TURNOVER_WINDOW, Ordering::Relaxed);
        }
    }

    fn is_high(&self) -> bool {
        self.is_high.load(Ordering::Relaxed)
    }
}

/// A connection for a shard to serve.
#[derive(Debug)]
pub struct AcceptedConnection {
    /// The accepted socket.
    pub socket: Socket,
    /// The permit for this connection.
    pub permit: Permit,
    /// The server is full: the connection gets a 503 and is closed.
    pub is_rejected: bool,
}

impl AcceptedConnection {
    /// Returns whether the peer's address is a loopback address.
    pub fn peer_is_loopback(&self) -> bool {
        let address = self.socket.peer_addr().ok().and_then(|address| address.as_socket());
        address.is_some_and(|address| address.ip().to_canonical().is_loopback())
    }
}

/// The right to an open connection. Dropping it gives the right back.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    shard: usize,
    /// The server is full.
    is_rejected: bool,
}

impl Permit {
    /// Counts a connection as the shard's, unless it is rejected.
    fn new(admission: &Arc<Admission>, shard: usize, is_rejected: bool) -> Permit {
        let counted = match is_rejected {
            true => &admission.rejected,
            false => &*admission.inboxes[shard].open,
        };
        counted.fetch_add(1, Ordering::Relaxed);
        Permit { admission: Arc::clone(admission), shard, is_rejected }
    }

    fn move_to(&mut self, shard: usize) {
        self.admission.inboxes[shard].open.fetch_add(1, Ordering::Relaxed);
        self.admission.inboxes[self.shard].open.fetch_sub(1, Ordering::Relaxed);
        self.shard = shard;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.is_rejected {
            self.admission.rejected.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        self.admission.inboxes[self.shard].turnover.closed.fetch_add(1, Ordering::Relaxed);
        self.admission.inboxes[self.shard].open.fetch_sub(1, Ordering::Relaxed);
        self.admission.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    /// Creates an admission of at most `connections_max` connections, to as many shards as there are wake-ups. It logs
    /// refusals, and keeps at most `rejected_max` refused connections open at the same time.
    pub fn new(
        connections_max: usize,
        rejected_max: usize,
        wakeups: &[Arc<Wakeup>],
        steer: Steer,
        log: Log,
    ) -> Arc<Admission> {
        let inbox = |wakeup| Inbox {
            open: CachePadded::new(AtomicUsize::new(0)),
            turnover: CachePadded::default(),
            is_closed: AtomicBool::new(false),
            waiting: Mutex::new(Some(Vec::new())),
            wakeup: Arc::clone(wakeup),
        };
        Arc::new(Admission {
            open: AtomicUsize::new(0),
            connections_max,
            rejected: AtomicUsize::new(0),
            rejected_max,
            inboxes: wakeups.iter().map(inbox).collect(),
            steer,
            log,
            refused: Seldom::new(REFUSALS_LOGGED_EVERY),
            accept_errors: Seldom::new(ACCEPT_ERRORS_LOGGED_EVERY),
            listening: AtomicUsize::new(wakeups.len()),
        })
    }

    /// Admits a connection that `shard` has accepted. Returns it if this shard should serve it, and `None` if it went to a
    /// shard with fewer connections or was closed.
    ///
    /// SO_REUSEPORT spreads connections by hash. With handoffs, shards differ by at most one connection after each accept, plus
    /// the connections that several shards accept in the same instant. If connections end as fast as they arrive, a shard keeps
    /// what it accepts until it has a few more than twice as many connections as the emptiest shard, because a handoff would
    /// cost more than a short connection gains. If connections are steered by CPU, each stays with the shard that accepted it.
    pub fn admit(
        self: &Arc<Self>,
        shard: usize,
        socket: Socket,
        metrics: &ShardMetrics,
    ) -> Option<AcceptedConnection> {
        metrics.accepted.add(1);
        let emptiest = match self.steer {
            Steer::Hash => {
                self.inboxes[shard].turnover.note_accepted();
                self.emptiest(shard)
            }
            Steer::Cpu => shard,
        };
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.connections_max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            metrics.refused.add(1);
            self.log_refusal();
            return self.reject(shard, socket);
        }
        let permit = Permit::new(self, emptiest, false);
        let mut accepted = AcceptedConnection { socket, permit, is_rejected: false };
        if accepted.permit.shard == shard {
            return Some(accepted);
        }
        let inbox = &self.inboxes[emptiest];
        let is_first = match &mut *inbox.waiting() {
            Some(waiting) => {
                waiting.push(accepted);
                waiting.len() == 1
            }
            // The other shard has ended in the meantime.
            None => {
                accepted.permit.move_to(shard);
                return Some(accepted);
            }
        };
        // The shard that queues the first connection wakes it.
        if is_first {
            inbox.wakeup.wake();
        }
        metrics.handed_off.add(1);
        None
    }

    /// Rejects a connection: returns it so that its shard responds, or responds and closes it immediately if too many rejected
    /// connections are open.
    fn reject(self: &Arc<Self>, shard: usize, socket: Socket) -> Option<AcceptedConnection> {
        let permit = Permit::new(self, shard, true);
        if self.rejected.load(Ordering::Relaxed) <= self.rejected_max {
            return Some(AcceptedConnection { socket, permit, is_rejected: true });
        }
        // The peer's bytes are read first; otherwise a reset could overtake the response (RFC 9112 section 9.6). If an
        // operation fails here, the connection has failed for the peer, too.
        let mut request = [0; 4096];
        for _ in 0..REJECTED_READS_MAX {
            match rustix::net::recv(&socket, &mut request, RecvFlags::DONTWAIT) {
                Ok((bytes, _)) if bytes == request.len() => {}
                _ => break,
            }
        }
        let _ = send_now(&socket, REJECTION);
        let _ = socket.shutdown(Shutdown::Write);
        None
    }

    /// Notes that a shard could not accept a connection, and logs that at a limited rate. Returns whether its socket still
    /// listens. Once no socket does, all shards stop.
    pub fn note_accept_error(
        &self,
        shard: usize,
        listener: &Socket,
        error: &io::Error,
        stop: &Stop,
    ) -> bool {
        if !listener.is_listener().unwrap_or(false) {
            self.log.warn(&format!(
                "shard {shard} has no listening socket anymore: another process that has it shut it down"
            ));
            if self.listening.fetch_sub(1, Ordering::Relaxed) == 1 {
                stop.escalate_to(Urgency::Drain);
            }
            return false;
        }
        if !is_about_one_connection(error)
            && let Some(count) = self.accept_errors.note()
        {
            let plural = if count == 1 { "" } else { "s" };
            self.log.warn(&format!(
                "accepting connections failed {count} time{plural} ({error}): trying again; compare ulimit -n \
                 and the machine's memory with --max-connections"
            ));
        }
        true
    }

    /// Logs at a limited rate that connections are refused.
    fn log_refusal(&self) {
        if let Some(refused) = self.refused.note() {
            let plural = if refused == 1 { "" } else { "s" };
            self.log.warn(&format!(
                "refused {refused} connection{plural}: all {} are in use: raise --max-connections, \
                 or ulimit -n where it is the file limit",
                self.connections_max
            ));
        }
    }

    /// Returns the shard with the fewest connections, or `shard` itself if a handoff is not worthwhile.
    fn emptiest(&self, shard: usize) -> usize {
        let open = |shard: usize| self.inboxes[shard].open.load(Ordering::Relaxed);
        let takes_more = |shard: &usize| !self.inboxes[*shard].is_closed.load(Ordering::Relaxed);
        let emptiest = (0..self.inboxes.len()).filter(takes_more).fold(shard, |emptiest, other| {
            if open(other) < open(emptiest) { other } else { emptiest }
        });
        if open(emptiest) + self.slack(shard) < open(shard) { emptiest } else { shard }
    }

    /// Returns how many more connections than the emptiest shard a shard may have before it hands off those that it accepts.
    fn slack(&self, shard: usize) -> usize {
        let Inbox { open, turnover, .. } = &self.inboxes[shard];
        if turnover.is_high() { open.load(Ordering::Relaxed) / 2 + TURNOVER_SLACK } else { 0 }
    }

    /// Returns the number of open connections.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Returns the number of open connections of each shard.
    #[cfg(test)]
    pub(super) fn open_by_shard(&self) -> Vec<usize> {
        self.inboxes.iter().map(|inbox| inbox.open.load(Ordering::Relaxed)).collect()
    }

    /// Takes the connections that other shards have accepted for `shard`. Call this after the shard's wake-up.
    pub fn collect(&self, shard: usize) -> Vec<AcceptedConnection> {
        self.inboxes[shard].waiting().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes those connections for the last time. From then on, the other shards keep what they accept.
    pub fn close(&self, shard: usize) -> Vec<AcceptedConnection> {
        let inbox = &self.inboxes[shard];
        inbox.is_closed.store(true, Ordering::Relaxed);
        inbox.waiting().take().unwrap_or_default()
    }
}

/// Returns whether an error of accept(2) is about the new connection and not about the listener.
pub(super) fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, Interrupted, NetworkDown, NetworkUnreachable, TimedOut,
    };
    matches!(
        error.kind(),
        ConnectionAborted | Interrupted | NetworkDown | NetworkUnreachable | TimedOut
    ) || error.raw_os_error() == Some(rustix::io::Errno::PROTO.raw_os_error())
}

impl Inbox {
    fn waiting(&self) -> MutexGuard<'_, Option<Vec<AcceptedConnection>>> {
        // The list is valid at every moment, even if a holder of the lock panicked.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use socket2::{Domain, Type};
    use std::collections::VecDeque;

    fn admission(connections_max: usize, shards: usize) -> Arc<Admission> {
        let wakeups: Vec<_> = (0..shards).map(|_| Arc::new(Wakeup::new().unwrap())).collect();
        Admission::new(connections_max, REJECTED_MIN, &wakeups, Steer::Hash, Log::Text)
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
                .map(|accepted| (accepted.is_rejected, accepted))
        };
        let first = admit();
        let second = admit();
        assert!(matches!((&first, &second), (Some((false, _)), Some((false, _)))));
        let told: Vec<_> = (0..REJECTED_MIN).map(|_| admit()).collect();
        assert!(told.iter().all(|told| matches!(told, Some((true, _)))));
        assert!(admit().is_none());
        drop(first);
        assert!(matches!(admit(), Some((false, _))), "those that were refused take no place");
        assert_eq!(admission.open(), 1, "only the second is still open");
        assert_eq!(admission.rejected.load(Ordering::Relaxed), REJECTED_MIN);
        drop(told);
        assert_eq!(admission.rejected.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_connection_that_is_closed_at_once_gets_its_response_all_the_same() {
        use std::io::{Read, Write};
        let admission = admission(0, 1);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut held = Vec::new();
        for _ in 0..2 * REJECTED_MIN {
            let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
            let (accepted, _) = listener.accept().unwrap();
            match admission.admit(0, accepted.into(), &ShardMetrics::default()) {
                Some(accepted) => held.push(accepted),
                None => {
                    let mut response = String::new();
                    client.read_to_string(&mut response).unwrap();
                    let (head, body) = response.split_once("\r\n\r\n").unwrap();
                    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
                    assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
                    assert!(
                        serde_json::from_str::<serde_json::Value>(body).unwrap()["error"]
                            .is_string()
                    );
                }
            }
        }
        assert_eq!(held.len(), REJECTED_MIN);
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
    fn a_shard_that_closes_during_a_handoff_leaves_the_connection_to_the_giver() {
        let admission = admission(100, 2);
        let _first = admission.admit(0, socket(), &ShardMetrics::default());
        // Shard 1 ends after it was found to be the emptiest.
        *admission.inboxes[1].waiting() = None;
        let second =
            admission.admit(0, socket(), &ShardMetrics::default()).expect("the giver serves it");
        assert_eq!(second.permit.shard, 0);
        assert_eq!(admission.inboxes[1].open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_connection_that_was_steered_by_cpu_stays_where_it_is() {
        let wakeups: Vec<_> = (0..2).map(|_| Arc::new(Wakeup::new().unwrap())).collect();
        let admission = Admission::new(100, REJECTED_MIN, &wakeups, Steer::Cpu, Log::Text);
        let admit = |_| admission.admit(1, socket(), &ShardMetrics::default());
        let held: Vec<_> = (0..9).map(admit).collect();
        assert!(held.iter().all(Option::is_some));
        assert_eq!(admission.open_by_shard(), [0, 9]);
    }

    #[test]
    fn short_connections_stay_and_long_ones_are_balanced() {
        let admission = admission(usize::MAX, 2);
        let mut held = VecDeque::new();
        let mut admit = |kept: usize| {
            held.extend(admission.admit(0, socket(), &ShardMetrics::default()));
            let given = admission.collect(1);
            let handed_off = given.len();
            held.extend(given);
            while held.len() > kept {
                held.pop_front();
            }
            handed_off
        };
        let _: usize = (0..20).map(|_| admit(20)).sum();
        assert_eq!(admission.open_by_shard(), [10, 10]);
        // Each connection ends when another arrives. Connections of shard 1 end as well, although it does not accept any.
        let handed_off: usize = (0..1000).map(|_| admit(20)).sum();
        assert!(handed_off < 400, "{handed_off}");
        let open = admission.open_by_shard();
        assert!(open[0] <= 2 * (open[1] + TURNOVER_SLACK) + 2, "{open:?}");
        let handed_off: usize = (0..1000).map(|_| admit(TURNOVER_SLACK)).sum();
        assert_eq!(handed_off, 0);
        let _: usize = (0..20).map(|_| admit(20)).sum();
        // From here on, connections stay open.
        let _: usize = (0..100).map(|_| admit(usize::MAX)).sum();
        assert_eq!(admission.open_by_shard(), [60, 60]);
    }

    proptest! {
        /// Whichever shard accepts a connection, it goes to a shard that had the fewest connections.
        #[test]
        fn arrivals_go_where_the_fewest_are(
            shards in 1..9usize,
            steps in prop::collection::vec((any::<bool>(), 0..1000usize), 1..200),
        ) {
            let admission = admission(usize::MAX, shards);
            let mut held: Vec<Vec<AcceptedConnection>> = (0..shards).map(|_| Vec::new()).collect();
            let slack = |shard: usize, open: usize| {
                let is_high = admission.inboxes[shard].turnover.is_high();
                if is_high { open / 2 + TURNOVER_SLACK } else { 0 }
            };
            for (arrives, pick) in steps {
                let shard = pick % shards;
                if !arrives {
                    held[shard].pop();
                    continue;
                }
                let fewest = held.iter().map(Vec::len).min().unwrap();
                let before = held[shard].len();
                match admission.admit(shard, socket(), &ShardMetrics::default()) {
                    Some(accepted) => {
                        prop_assert!(before <= fewest + slack(shard, before));
                        held[shard].push(accepted);
                    }
                    None => {
                        let given: Vec<_> =
                            (0..shards).map(|shard| admission.collect(shard)).collect();
                        let to = given.iter().position(|given| given.len() == 1).unwrap();
                        prop_assert_eq!(held[to].len(), fewest);
                        prop_assert!(before > fewest + slack(shard, before));
                        held[to].extend(given.into_iter().flatten());
                    }
                }
            }
        }
    }
}
