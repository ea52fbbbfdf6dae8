//! Tests requests that wait for totals from a shared store, and responses that another server's reset voids, in both
//! engines on real sockets.

use super::durable::{RESET, STATS, ask, assert_quiet, read_all, statuses, with_store};
use super::*;
use crate::failure::Failure;
use crate::store::{Group, Outcome, SharedTotals, Store};
use crate::tally::{State, UserIds};
use futures_lite::future::{block_on, or, poll_once};
use std::net::Shutdown;
use std::sync::{Condvar, Mutex, MutexGuard};
use tokio::sync::Notify;

const METRICS: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n";

/// A store that a test shares, whose commits and reads wait until the test lets them through.
#[derive(Clone)]
struct Shared {
    flow: Arc<(Mutex<Flow>, Condvar)>,
    news: Arc<Notify>,
}

#[derive(Default)]
struct Flow {
    are_commits_stopped: bool,
    are_reads_stopped: bool,
    /// The number of reads that have begun.
    reads: u64,
    /// Whether the next commit meets a reset.
    is_reset: bool,
    /// Events of this server.
    events: u64,
    /// Events of the others.
    others: u64,
}

impl Shared {
    fn new() -> Shared {
        Shared { flow: Arc::default(), news: Arc::default() }
    }

    /// Changes how the store behaves.
    fn set(&self, change: impl FnOnce(&mut Flow)) {
        change(&mut self.flow.0.lock().unwrap());
        self.flow.1.notify_all();
    }

    fn wait_while(&self, holds: impl Fn(&Flow) -> bool) -> MutexGuard<'_, Flow> {
        let flow = self.flow.0.lock().unwrap();
        self.flow.1.wait_while(flow, |flow| holds(flow)).unwrap()
    }

    /// Stops every read that begins from here on, until `are_reads_stopped` is cleared.
    fn stop_reads(&self) {
        self.set(|flow| (flow.are_reads_stopped, flow.reads) = (true, 0));
    }

    /// Waits until a read has begun.
    fn wait_for_read(&self) {
        drop(self.wait_while(|flow| flow.reads == 0));
    }
}

impl Store for Shared {
    fn users(&mut self, _: &mut dyn FnMut(&UserIds)) -> Result<(), Failure> {
        Ok(())
    }

    fn commit(&mut self, state: &State, _: &UserIds) -> Result<Outcome, Failure> {
        let mut flow = self.wait_while(|flow| flow.are_commits_stopped);
        if std::mem::take(&mut flow.is_reset) {
            (flow.events, flow.others) = (0, 0);
            return Ok(Outcome::Superseded);
        }
        flow.events = state.events;
        Ok(Outcome::Durable)
    }

    fn shared(&mut self) -> Option<&mut dyn SharedTotals> {
        Some(self)
    }

    fn wait(&mut self, wakeup: &Notify, is_wanted: bool) -> bool {
        let news = async {
            self.news.notified().await;
            true
        };
        let woken = async {
            wakeup.notified().await;
            false
        };
        match is_wanted {
            true => block_on(poll_once(news)).is_some(),
            false => block_on(or(news, woken)),
        }
    }
}

impl SharedTotals for Shared {
    fn read(&mut self) -> Result<Group, Failure> {
        let mut flow = self.flow.0.lock().unwrap();
        flow.reads += 1;
        // The read shows the totals from before it waits.
        let total_requests = flow.events + flow.others;
        self.flow.1.notify_all();
        drop(self.flow.1.wait_while(flow, |flow| flow.are_reads_stopped).unwrap());
        let totals = Totals { total_requests, ..State::default().totals() };
        Ok(Group { totals, servers: Vec::new() })
    }
}

/// Runs shards over a shared store. At the end, lets all commits and reads through.
fn with_shared(engine: Engine, timeout: Duration, client: impl FnOnce(SocketAddr, &Shared, &Stop)) {
    let shared = Shared::new();
    with_store(engine, timeout, Box::new(shared.clone()), |address, stop| {
        client(address, &shared, stop);
        shared.set(|flow| (flow.are_commits_stopped, flow.are_reads_stopped) = (false, false));
    });
}

/// Returns the number of events that a response to `/stats` shows.
fn shown((status, body): &(u16, String)) -> u64 {
    assert_eq!(*status, 200, "{body}");
    body.split(':').nth(1).unwrap().split(',').next().unwrap().parse().unwrap()
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
    }
}

#[test]
fn totals_have_what_any_server_acknowledged_before_the_request() {
    for engine in [RING, Engine::Streams] {
        with_shared(engine, PATIENCE, |address, shared, _| {
            for others in 1..20 {
                shared.set(|flow| flow.others = others);
                assert_eq!(shown(&ask(address, STATS)), others, "{engine:?}");
            }
            shared.stop_reads();
            let mut early = connect(address);
            early.write_all(STATS).unwrap();
            shared.wait_for_read();
            // Requests that arrive after the read has begun need another read, on any connection.
            shared.set(|flow| flow.others = 50);
            early.write_all(&[STATS, HEALTH, STATS].concat()).unwrap();
            let mut late = connect(address);
            late.write_all(STATS).unwrap();
            assert_quiet(&mut late);
            assert_eq!(ask(address, HEALTH).0, 200, "{engine:?}: nothing else waits");
            shared.set(|flow| flow.are_reads_stopped = false);
            let responses = read_all(&mut early, 4);
            assert!([19, 50].contains(&shown(&responses[0])), "{engine:?}");
            assert_eq!((shown(&responses[1]), shown(&responses[3])), (50, 50), "{engine:?}");
            assert_eq!(shown(&read_all(&mut late, 1)[0]), 50, "{engine:?}");
        });
    }
}

#[test]
fn pipelined_events_and_totals_are_responded_to_in_order() {
    let chunked =
        b"GET /stats HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
    let last = b"HEAD /stats HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let requests = [EVENT, STATS, EVENT, STATS, STATS, chunked, EVENT, HEALTH, STATS].concat();
    for engine in [RING, Engine::Streams] {
        with_shared(engine, PATIENCE, |address, _, _| {
            for pieces in [1, 7, 1000] {
                ask(address, RESET);
                let mut stream = connect(address);
                for piece in requests.chunks(requests.len().div_ceil(pieces)) {
                    stream.write_all(piece).unwrap();
                }
                let responses = read_all(&mut stream, 9);
                assert_eq!(statuses(&responses), [200; 9], "{engine:?}");
                for (at, events) in [(1, 1), (3, 2), (4, 2), (5, 2), (8, 3)] {
                    assert_eq!(shown(&responses[at]), events, "{engine:?}, response {at}");
                }
                stream.write_all(last).unwrap();
                let mut rest = String::new();
                stream.read_to_string(&mut rest).unwrap();
                assert!(rest.starts_with("HTTP/1.1 200 ") && rest.ends_with("\r\n\r\n"), "{rest}");
            }
        });
    }
}

#[test]
fn past_the_timeout_totals_are_refused_and_metrics_leave_them_out() {
    for engine in [RING, Engine::Streams] {
        with_shared(engine, Duration::from_millis(300), |address, shared, _| {
            shared.set(|flow| flow.are_reads_stopped = true);
            let mut stream = connect(address);
            stream.write_all(&[STATS, EVENT, STATS].concat()).unwrap();
            assert_eq!(statuses(&read_all(&mut stream, 3)), [503; 3], "{engine:?}");
            assert_eq!(ask(address, HEALTH).0, 503, "{engine:?}");
            stream.write_all(METRICS).unwrap();
            let (status, text) = read_all(&mut stream, 1).remove(0);
            assert_eq!(status, 200);
            assert!(!text.contains("events_processed_total"), "{engine:?}: they are not known");
            assert!(text.contains("ringtally_accepted_total"), "{text}");
            shared.set(|flow| flow.are_reads_stopped = false);
            eventually("it recovers", || ask(address, HEALTH).0 == 200);
            stream.write_all(&[EVENT, STATS].concat()).unwrap();
            let responses = read_all(&mut stream, 2);
            assert_eq!(shown(&responses[1]), 1, "{engine:?}: what got a 503 is not counted");
        });
    }
}

/// Each response spends a good part of a budget.
#[test]
fn responses_whose_totals_were_read_are_all_made_before_the_request_behind_them() {
    for engine in [RING, Engine::Streams] {
        with_shared(engine, PATIENCE, |address, shared, _| {
            shared.stop_reads();
            let mut stream = connect(address);
            stream.write_all(&[&METRICS.repeat(20), EVENT, STATS].concat()).unwrap();
            shared.wait_for_read();
            shared.set(|flow| flow.are_reads_stopped = false);
            let responses = read_all(&mut stream, 22);
            assert_eq!(statuses(&responses), [200; 22], "{engine:?}");
            assert!(responses[..20].iter().all(|(_, text)| text.contains("accepted_total")));
            assert_eq!(shown(&responses[21]), 1, "{engine:?}");
        });
    }
}

#[test]
fn a_server_whose_commits_take_too_long_says_so_although_nobody_waits() {
    for engine in [RING, Engine::Streams] {
        with_shared(engine, Duration::from_millis(200), |address, shared, _| {
            eventually("it is healthy", || ask(address, HEALTH).0 == 200);
            shared.set(|flow| flow.are_commits_stopped = true);
            shared.news.notify_one();
            eventually("it is late", || ask(address, HEALTH).0 == 503);
            shared.set(|flow| flow.are_commits_stopped = false);
            eventually("it recovers", || ask(address, HEALTH).0 == 200);
        });
    }
}

#[test]
fn the_end_of_a_connection_waits_for_its_totals() {
    for engine in [RING, Engine::Streams] {
        for is_drain in [true, false] {
            with_shared(engine, PATIENCE, |address, shared, stop| {
                let mut stream = connect(address);
                stream.write_all(EVENT).unwrap();
                assert_eq!(statuses(&read_all(&mut stream, 1)), [200], "{engine:?}");
                shared.stop_reads();
                stream.write_all(&[STATS, EVENT].concat()).unwrap();
                shared.wait_for_read();
                match is_drain {
                    true => stop.escalate_to(Urgency::Drain),
                    false => stream.shutdown(Shutdown::Write).unwrap(),
                }
                assert_quiet(&mut stream);
                shared.set(|flow| flow.are_reads_stopped = false);
                let responses = read_all(&mut stream, 3);
                assert_eq!(responses.len(), 2, "{engine:?}, drain: {is_drain}: and then the end");
                assert_eq!(shown(&responses[0]), 1, "{engine:?}");
            });
        }
    }
}

#[test]
fn a_response_that_has_waited_since_before_a_stop_says_that_it_is_the_last() {
    for engine in [RING, Engine::Streams] {
        with_shared(engine, PATIENCE, |address, shared, stop| {
            shared.stop_reads();
            let mut stream = connect(address);
            stream.write_all(&[STATS, STATS].concat()).unwrap();
            shared.wait_for_read();
            stop.escalate_to(Urgency::Drain);
            assert_quiet(&mut stream);
            shared.set(|flow| flow.are_reads_stopped = false);
            let mut rest = String::new();
            stream.read_to_string(&mut rest).unwrap();
            let (first, last) = rest[1..].split_once("HTTP/1.1 200 OK\r\n").unwrap();
            assert!(last.contains("\r\nConnection: close\r\n"), "{engine:?}: {rest}");
            assert!(!first.contains("\r\nConnection: close\r\n"), "{engine:?}: {rest}");
        });
    }
}

#[test]
fn peers_that_leave_while_they_wait_hold_up_nobody() {
    for engine in [RING, Engine::Streams] {
        with_shared(engine, PATIENCE, |address, shared, stop| {
            shared.stop_reads();
            for _ in 0..20 {
                let mut stream = connect(address);
                stream.write_all(&[STATS, STATS].concat()).unwrap();
                // The connection ends with a reset, not in order.
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
            let mut stays = connect(address);
            stays.write_all(STATS).unwrap();
            shared.wait_for_read();
            shared.set(|flow| flow.are_reads_stopped = false);
            assert_eq!(statuses(&read_all(&mut stays, 1)), [200], "{engine:?}");
            // A stop that aborts does not wait for a read.
            shared.stop_reads();
            stays.write_all(STATS).unwrap();
            shared.wait_for_read();
            stop.escalate_to(Urgency::Abort);
            let ended = stays.read(&mut [0]);
            assert!(matches!(ended, Ok(0) | Err(_)), "{engine:?}: no response");
        });
    }
}

#[test]
fn another_servers_reset_ends_connections_whose_events_it_makes_void() {
    for engine in [RING, Engine::Streams] {
        with_shared(engine, PATIENCE, |address, shared, _| {
            assert_eq!(ask(address, EVENT).0, 200);
            shared.set(|flow| flow.are_commits_stopped = true);
            let mut void = connect(address);
            void.write_all(&[HEALTH, EVENT, STATS, EVENT].concat()).unwrap();
            assert_eq!(statuses(&read_all(&mut void, 1)), [200], "what does not wait");
            assert_quiet(&mut void);
            shared.set(|flow| (flow.is_reset, flow.are_commits_stopped) = (true, false));
            assert_eq!(read_all(&mut void, 1), [], "{engine:?}: the end, without a response");
            assert_eq!(shown(&ask(address, STATS)), 0, "{engine:?}: it is counted nowhere");
            // The server learns of the next reset without any request.
            assert_eq!(ask(address, EVENT).0, 200, "{engine:?}: new events are counted");
            assert_eq!(shown(&ask(address, STATS)), 1, "{engine:?}");
            shared.set(|flow| flow.is_reset = true);
            shared.news.notify_one();
            eventually("the news is taken", || !shared.flow.0.lock().unwrap().is_reset);
            assert_eq!(ask(address, EVENT).0, 200, "{engine:?}");
            assert_eq!(shown(&ask(address, STATS)), 1, "{engine:?}");
        });
    }
}
