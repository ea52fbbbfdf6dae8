//! Responses that wait for a store, in both engines, on real sockets.

use super::*;
use crate::failure::Failure;
use crate::metrics::StoreMetrics;
use crate::store::{Committer, Durability, Ending, Outcome, Settlement, Store, Wakeups};
use crate::tally::{State, UserIds};
use std::sync::{Condvar, Mutex};
use tokio::sync::Notify;

/// The time that nothing may arrive.
const QUIET: Duration = Duration::from_millis(150);

pub(super) const STATS: &[u8] = b"GET /stats HTTP/1.1\r\nHost: h\r\n\r\n";
pub(super) const RESET: &[u8] =
    b"POST /reset HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
const REFUSED: &[u8] = b"POST /event HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n?";

/// A store whose commits wait until the test lets them through.
#[derive(Clone, Default)]
pub(super) struct Valve(Arc<(Mutex<Flow>, Condvar)>);

#[derive(Default)]
struct Flow {
    is_open: bool,
    /// The content of the store.
    state: State,
}

impl Valve {
    pub(super) fn set_open(&self, is_open: bool) {
        self.0.0.lock().unwrap().is_open = is_open;
        self.0.1.notify_all();
    }

    fn events(&self) -> u64 {
        self.0.0.lock().unwrap().state.events
    }
}

impl Store for Valve {
    fn users(&mut self, _: &mut dyn FnMut(&UserIds)) -> Result<(), Failure> {
        Ok(())
    }

    fn commit(&mut self, state: &State, _: &UserIds) -> Result<Outcome, Failure> {
        let mut flow = self.0.0.lock().unwrap();
        while !flow.is_open {
            flow = self.0.1.wait(flow).unwrap();
        }
        flow.state = state.clone();
        Ok(Outcome::Durable)
    }
}

/// Runs shards over a store with a valve that is closed at first and opened at the end.
pub(super) fn with_valve(
    engine: Engine,
    timeout: Duration,
    client: impl FnOnce(SocketAddr, &Valve, &Stop),
) -> Valve {
    let valve = Valve::default();
    with_store(engine, timeout, Box::new(valve.clone()), |address, stop| {
        client(address, &valve, stop);
        valve.set_open(true);
    });
    valve
}

/// Runs shards over a store.
pub(super) fn with_store(
    engine: Engine,
    timeout: Duration,
    mut store: Box<dyn Store>,
    client: impl FnOnce(SocketAddr, &Stop),
) {
    let shards = wakeups(2);
    let (_, writers, journal) = Tally::resume(2, 1000, &State::default());
    let is_shared = store.shared().is_some();
    let settlement = Arc::new(Settlement::new(2, State::default().totals(), is_shared));
    let wakeups = Arc::new(Wakeups { committer: Notify::new(), shards: shards.clone() });
    let metrics = Arc::new(StoreMetrics::default());
    let committer = Committer::new(
        journal,
        store,
        State::default(),
        Arc::clone(&settlement),
        Arc::clone(&wakeups),
        metrics,
    );
    let ending = Ending::default();
    let thread = std::thread::spawn({
        let ending = ending.clone();
        move || committer.run(&ending)
    });
    let timeout_ms = milliseconds(timeout);
    let set_up = |shard: usize, service: &mut Service| {
        let (settlement, wakeups) = (Arc::clone(&settlement), Arc::clone(&wakeups));
        service.set_durability(Durability::new(settlement, wakeups, shard, timeout_ms));
    };
    with_services(engine, &shards, None, writers, set_up, |address, _, stop| client(address, stop));
    ending.begin(&wakeups);
    thread.join().unwrap().unwrap();
}

pub(super) fn assert_quiet(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(QUIET)).unwrap();
    let error = stream.read(&mut [0]).expect_err("nothing may leave");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
}

/// Reads until the end of the connection, or until `count` responses have arrived. Returns their statuses and bodies.
pub(super) fn read_all(stream: &mut TcpStream, count: usize) -> Vec<(u16, String)> {
    let (mut responses, mut bytes) = (Vec::new(), Vec::new());
    while responses.len() < count {
        let mut piece = [0; 4096];
        match stream.read(&mut piece).unwrap() {
            0 => break,
            read => bytes.extend_from_slice(&piece[..read]),
        }
        while let Some(end) = memchr::memmem::find(&bytes, b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let length = head.split("Content-Length: ").nth(1).unwrap();
            let length: usize = length.split('\r').next().unwrap().parse().unwrap();
            let whole = end + 4 + length;
            if bytes.len() < whole {
                break;
            }
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            responses.push((status, String::from_utf8(bytes[end + 4..whole].to_vec()).unwrap()));
            bytes.drain(..whole);
        }
    }
    responses
}

pub(super) fn ask(address: SocketAddr, request: &[u8]) -> (u16, String) {
    let mut stream = connect(address);
    stream.write_all(request).unwrap();
    read_all(&mut stream, 1).remove(0)
}

pub(super) fn statuses(responses: &[(u16, String)]) -> Vec<u16> {
    responses.iter().map(|(status, _)| *status).collect()
}

#[test]
fn only_what_acknowledges_waits_and_what_follows_it_on_its_connection() {
    for engine in [RING, Engine::Streams] {
        let valve = with_valve(engine, PATIENCE, |address, valve, _| {
            let mut event = connect(address);
            event.write_all(EVENT).unwrap();
            assert_quiet(&mut event);
            // Responses before an event's response are sent before it.
            let mut mixed = connect(address);
            mixed.write_all(&[HEALTH, REFUSED, EVENT, HEALTH, STATS, REFUSED].concat()).unwrap();
            assert_eq!(statuses(&read_all(&mut mixed, 2)), [200, 400], "{engine:?}");
            assert_quiet(&mut mixed);
            // A request that does not depend on the store does not wait, and its response does not
            // show anything that can be taken back.
            assert_eq!(ask(address, HEALTH).0, 200);
            assert_eq!(ask(address, REFUSED).0, 400);
            assert!(ask(address, STATS).1.starts_with(r#"{"totalRequests":0,"#), "{engine:?}");
            mixed.write_all(&[EVENT, STATS].concat()).unwrap();
            assert_quiet(&mut mixed);
            valve.set_open(true);
            assert_eq!(statuses(&read_all(&mut event, 1)), [200]);
            let rest = read_all(&mut mixed, 6);
            assert_eq!(statuses(&rest), [200, 200, 200, 400, 200, 200], "{engine:?}");
            assert!(rest[2].1.starts_with(r#"{"totalRequests":2,"#), "its own event: {rest:?}");
            assert!(rest[5].1.starts_with(r#"{"totalRequests":3,"#), "in order: {rest:?}");
            assert!(ask(address, STATS).1.starts_with(r#"{"totalRequests":3,"#));
        });
        assert_eq!(valve.events(), 3);
    }
}

#[test]
fn a_reset_is_acknowledged_once_it_is_durable() {
    for engine in [RING, Engine::Streams] {
        let valve = with_valve(engine, PATIENCE, |address, valve, _| {
            valve.set_open(true);
            assert_eq!(ask(address, EVENT).0, 200);
            valve.set_open(false);
            let mut reset = connect(address);
            reset.write_all(RESET).unwrap();
            assert_quiet(&mut reset);
            assert!(ask(address, STATS).1.starts_with(r#"{"totalRequests":1,"#), "still");
            valve.set_open(true);
            assert_eq!(statuses(&read_all(&mut reset, 1)), [200], "{engine:?}");
            assert!(ask(address, STATS).1.starts_with(r#"{"totalRequests":0,"#));
        });
        let flow = valve.0.0.lock().unwrap();
        assert_eq!((flow.state.generation, flow.state.events), (1, 0));
    }
}

#[test]
fn past_the_timeout_connections_close_and_events_are_refused_until_the_store_responds() {
    for engine in [RING, Engine::Streams] {
        let valve = with_valve(engine, Duration::from_millis(300), |address, valve, _| {
            let mut event = connect(address);
            event.write_all(EVENT).unwrap();
            assert_eq!(read_all(&mut event, 1), [], "{engine:?}: closed without a response");
            for request in [EVENT, RESET, HEALTH] {
                let (status, body) = ask(address, request);
                assert_eq!(status, 503, "{engine:?}: {body}");
                assert!(body.contains("the store does not respond"), "{body}");
            }
            // The connection stays open after a refused event, and an invalid request gets its error in any case.
            let mut refused = connect(address);
            refused.write_all(&[EVENT, REFUSED, STATS].concat()).unwrap();
            assert_eq!(statuses(&read_all(&mut refused, 3)), [503, 400, 200]);
            valve.set_open(true);
            let end = Instant::now() + PATIENCE;
            while ask(address, HEALTH).0 != 200 {
                assert!(Instant::now() < end, "{engine:?}: the store responds again");
            }
            assert_eq!(ask(address, EVENT).0, 200);
        });
        assert_eq!(valve.events(), 2, "{engine:?}: what got a 503 is not counted");
    }
}

#[test]
fn a_drain_waits_for_the_store() {
    for engine in [RING, Engine::Streams] {
        let valve = with_valve(engine, PATIENCE, |address, valve, stop| {
            let mut event = connect(address);
            event.write_all(&[EVENT, EVENT].concat()).unwrap();
            assert_quiet(&mut event);
            stop.escalate_to(Urgency::Drain);
            assert_quiet(&mut event);
            valve.set_open(true);
            assert_eq!(statuses(&read_all(&mut event, 2)), [200, 200], "{engine:?}");
            assert_eq!(event.read(&mut [0]).unwrap(), 0, "and then the end");
        });
        assert_eq!(valve.events(), 2);
    }
}

#[test]
fn a_peer_that_pipelines_more_than_may_wait_gets_every_response() {
    for engine in [RING, Engine::Streams] {
        const EVENTS: usize = 1000;
        let valve = with_valve(engine, PATIENCE, |address, valve, _| {
            let mut stream = connect(address);
            let mut writing = stream.try_clone().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(move || writing.write_all(&EVENT.repeat(EVENTS)).unwrap());
                assert_quiet(&mut stream);
                valve.set_open(true);
                let responses = read_all(&mut stream, EVENTS);
                assert_eq!(statuses(&responses), [200; EVENTS], "{engine:?}");
            });
        });
        assert_eq!(valve.events(), EVENTS as u64);
    }
}

#[test]
fn the_end_of_a_connection_waits_for_its_last_response() {
    let closing =
        [&EVENT[..EVENT.len() - 24 - 4], b"\r\nConnection: close", &EVENT[EVENT.len() - 24 - 4..]]
            .concat();
    for engine in [RING, Engine::Streams] {
        let valve = with_valve(engine, PATIENCE, |address, valve, _| {
            let mut last = connect(address);
            last.write_all(&closing).unwrap();
            let mut half_closed = connect(address);
            half_closed.write_all(EVENT).unwrap();
            half_closed.shutdown(std::net::Shutdown::Write).unwrap();
            assert_quiet(&mut last);
            valve.set_open(true);
            assert_eq!(statuses(&read_all(&mut last, 2)), [200], "{engine:?}: and then the end");
            assert_eq!(
                statuses(&read_all(&mut half_closed, 2)),
                [200],
                "{engine:?}: and then the end"
            );
        });
        assert_eq!(valve.events(), 2);
    }
}

#[test]
fn a_stop_that_aborts_does_not_wait_for_the_store() {
    for engine in [RING, Engine::Streams] {
        with_valve(engine, PATIENCE, |address, _, stop| {
            let mut event = connect(address);
            event.write_all(EVENT).unwrap();
            assert_quiet(&mut event);
            stop.escalate_to(Urgency::Abort);
            let ended = event.read(&mut [0]);
            assert!(matches!(ended, Ok(0) | Err(_)), "{engine:?}: no response");
            let is_reset =
                |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
            assert!(ended.err().is_none_or(is_reset), "{engine:?}: at once");
        });
    }
}
