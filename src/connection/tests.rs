//! The limits and deadlines of a connection with a store, which a test settles at chosen times.

use super::*;
use crate::http::{Method, Timeouts};
use crate::metrics::{Endpoint, Format, Reporter};
use crate::service::{PARKED_BYTES, Policy};
use crate::store::{Durability, Settlement};
use crate::tally::{State as Stored, Tally};
use std::sync::Arc;

const SEND_TIMEOUT_MS: u64 = 400;
const STORE_TIMEOUT_MS: u64 = 1000;

const TIMEOUTS: Timeouts = Timeouts { header_ms: 9000, body_ms: 9000, idle_ms: SEND_TIMEOUT_MS };
const LIMITS: Limits = Limits { body_bytes_max: 100, batch_bytes_max: 100, timeouts: TIMEOUTS };

const EVENT: &[u8] =
    b"POST /event HTTP/1.1\r\nHost: h\r\nContent-Length: 24\r\n\r\n{\"userId\":\"u\",\"value\":1}";
/// Totals, and the start of a request behind them.
const STATS_AND_MORE: &[u8] = b"GET /stats HTTP/1.1\r\nHost: h\r\n\r\nPOST";
const STATS: &[u8] = b"GET /stats HTTP/1.1\r\nHost: h\r\n\r\n";
const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n";

struct Fixture {
    connection: Connection,
    service: Service,
    settlement: Arc<Settlement>,
    moment: Moment,
}

impl Fixture {
    /// Creates it with a store that other servers share.
    fn new() -> Fixture {
        Fixture::with_store(true)
    }

    fn with_store(is_shared: bool) -> Fixture {
        let (_, mut writers, _) = Tally::resume(1, 10, &Stored::default());
        let reporter = Reporter::for_shards(1, "none").remove(0);
        let mut service = Service::new(writers.remove(0), reporter, Policy::new("h"), 0);
        let (durability, settlement) = Durability::for_test(STORE_TIMEOUT_MS, is_shared);
        service.set_durability(durability);
        let connection = Connection::new(LIMITS, true, 0);
        Fixture { connection, service, settlement, moment: Moment::START }
    }

    fn set_time(&mut self, now_ms: u64) {
        (self.moment.now_ms, self.moment.received_ms) = (now_ms, now_ms);
    }

    /// Lets bytes arrive. Returns the action that follows.
    fn receive(&mut self, request: &[u8]) -> Action {
        self.connection.receive(request, &self.moment, &mut self.service);
        self.service.publish();
        self.connection.action(&self.moment, &mut self.service)
    }

    /// Lets bytes arrive, and their responses be read. Returns the responses, and whether others wait for the store.
    fn exchange(&mut self, request: &[u8]) -> (String, bool) {
        let action = self.receive(request);
        let sent = self.connection.take_responses(action.send, self.moment.now_ms);
        self.connection.note_sent(sent.len());
        (String::from_utf8(sent).unwrap(), action.settle.is_some())
    }

    /// Lets the peer get a response at a time, and read it immediately.
    fn respond(&mut self, now_ms: u64) {
        self.set_time(now_ms);
        let _ = self.exchange(HEALTH);
    }

    /// Lets an event arrive that waits for the store from a time on. Returns its epoch.
    fn wait(&mut self, now_ms: u64) -> u64 {
        self.set_time(now_ms);
        let action = self.receive(EVENT);
        action.settle.expect("an event waits for the store")
    }

    /// Lets totals be read after the cut of an epoch.
    fn read(&self, epoch: u64) {
        self.settlement.settle(epoch, Some(Stored::default().totals()), |_| {});
    }

    fn metrics(&mut self) -> String {
        self.service.metrics().text(None, 0, Format::Prometheus)
    }

    fn tick(&mut self, now_ms: u64) -> Due {
        self.set_time(now_ms);
        self.connection.tick(&self.moment, &mut self.service)
    }
}

#[test]
fn a_response_that_waits_for_the_store_is_late_after_the_time_of_the_store() {
    let mut fixture = Fixture::new();
    fixture.respond(0);
    fixture.wait(500);
    assert_eq!(fixture.connection.deadline_ms(), 500 + STORE_TIMEOUT_MS);
    assert_eq!(fixture.tick(499 + STORE_TIMEOUT_MS), Due::Nothing);
    assert_eq!(fixture.tick(500 + STORE_TIMEOUT_MS), Due::Cut);
}

#[test]
fn a_peer_that_does_not_read_is_late_even_if_later_responses_wait_for_the_store() {
    for sent_ms in [0, STORE_TIMEOUT_MS - 1] {
        let mut fixture = Fixture::new();
        let action = fixture.receive(HEALTH);
        fixture.wait(0);
        fixture.connection.take_responses(action.send, sent_ms);
        let deadline_ms = STORE_TIMEOUT_MS.min(sent_ms + SEND_TIMEOUT_MS);
        assert_eq!(fixture.connection.deadline_ms(), deadline_ms);
        assert_eq!(fixture.tick(deadline_ms - 1), Due::Nothing);
        assert_eq!(fixture.tick(deadline_ms), Due::Cut);
    }
}

/// A tick may come between a commit and the turn of its connections.
#[test]
fn a_response_that_the_store_has_just_settled_is_not_late() {
    for is_void in [false, true] {
        let mut fixture = Fixture::new();
        fixture.respond(0);
        let epoch = fixture.wait(500);
        if is_void {
            fixture.settlement.void_before(1);
        }
        fixture.settlement.settle(epoch, None, |_| {});
        let settled_ms = 499 + STORE_TIMEOUT_MS;
        assert_eq!(fixture.tick(settled_ms), Due::Nothing, "void: {is_void}");
        assert_eq!(fixture.connection.deadline_ms(), settled_ms + SEND_TIMEOUT_MS);
        let action = fixture.connection.action(&fixture.moment, &mut fixture.service);
        assert_eq!((action.send > 0, action.then == Next::Receive), (!is_void, !is_void));
    }
}

#[test]
fn a_connection_stops_receiving_at_the_limit_of_unsent_responses() {
    assert_eq!(http::UNSENT_BYTES_MAX, 16 << 10, "as the help of --idle-timeout says");
    let mut fixture = Fixture::new();
    let _ = fixture.receive(&HEALTH.repeat(50));
    fixture.connection.renew();
    let action = fixture.receive(&HEALTH.repeat(50));
    fixture.connection.take_responses(action.send, 0);
    fixture.connection.renew();
    let _ = fixture.receive(&HEALTH.repeat(60));
    let connection = &mut fixture.connection;
    connection.note_sent(connection.unsent() - (http::UNSENT_BYTES_MAX + 1));
    for next in [Next::Pause, Next::Pause, Next::Receive] {
        assert_eq!(connection.next(), next, "{} unsent", connection.unsent());
        connection.note_sent(1);
    }
}

#[test]
fn requests_that_wait_for_the_peer_to_read_get_a_turn_below_the_limit_of_unsent_responses() {
    let Fixture { mut connection, mut service, moment, .. } = Fixture::new();
    for _ in 0..4 {
        connection.receive(&HEALTH.repeat(50), &moment, &mut service);
        connection.renew();
    }
    let action = connection.action(&moment, &mut service);
    assert!(action.send >= http::UNSENT_BYTES_MAX && action.then == Next::Pause);
    connection.take_responses(action.send, 0);
    connection.note_sent(action.send - http::UNSENT_BYTES_MAX);
    for is_below in [false, true] {
        let action = connection.action(&moment, &mut service);
        assert_eq!((action.send, action.has_work), (0, is_below), "{} unsent", connection.unsent());
        connection.note_sent(usize::from(!is_below));
    }
    connection.work(&moment, &mut service);
    assert!(connection.action(&moment, &mut service).send > 0);
}

#[test]
fn what_arrives_behind_totals_that_are_read_is_bounded() {
    let mut fixture = Fixture::new();
    let action = fixture.receive(STATS_AND_MORE);
    assert!(action.read.is_some() && action.then == Next::Receive);
    let mut kept = 4;
    let limit = http::UNSENT_BYTES_MAX;
    for (bytes, next) in [
        (limit - 1, Next::Receive),
        (limit, Next::Pause),
        (KEPT_BYTES_MAX, Next::Pause),
        (KEPT_BYTES_MAX + 1, Next::Close),
    ] {
        let action = fixture.receive(&vec![b'x'; bytes - kept]);
        assert_eq!(action.then, next, "{bytes} bytes");
        kept = bytes;
    }
    let mut fixture = Fixture::new();
    let _ = fixture.receive(STATS_AND_MORE);
    fixture.connection.note_peer_closed();
    assert_eq!(fixture.connection.next(), Next::Pause, "nothing more can come");
}

#[test]
fn the_kind_of_a_request_in_flight_is_known_once_its_head_is_here() {
    let health = Kind { endpoint: Endpoint::Health, method: Method::Get };
    let mut fixture = Fixture::new();
    assert_eq!(fixture.connection.in_flight(), None);
    assert!(!fixture.connection.take_activity());
    let _ = fixture.receive(&EVENT[..20]);
    assert_eq!(fixture.connection.in_flight(), Some(Kind::OTHER));
    let _ = fixture.receive(&EVENT[20..EVENT.len() - 1]);
    assert_eq!(fixture.connection.in_flight(), Some(Kind::EVENT));
    assert!(fixture.connection.take_activity() && !fixture.connection.take_activity());
    let mut fixture = Fixture::new();
    let action = fixture.receive(HEALTH);
    assert_eq!(fixture.connection.in_flight(), Some(health), "its response is not sent");
    fixture.connection.take_responses(action.send, 0);
    assert_eq!(fixture.connection.in_flight(), Some(health));
    assert!(!fixture.connection.is_idle());
    fixture.connection.note_sent(action.send);
    assert_eq!(fixture.connection.in_flight(), None);
}

#[test]
fn the_cost_of_a_turn_counts_from_the_turn_of_others() {
    let mut fixture = Fixture::new();
    let _ = fixture.receive(HEALTH);
    let one = fixture.connection.renew();
    assert_eq!((one > 1, fixture.connection.used()), (true, 0));
    let _ = fixture.receive(&HEALTH.repeat(2));
    assert!(fixture.connection.used() > one);
    // Without work, a turn is free.
    assert_eq!(fixture.connection.work(&fixture.moment, &mut fixture.service), 0);
}

#[test]
fn a_late_store_refuses_events_and_if_it_is_shared_also_totals() {
    for is_shared in [false, true] {
        let mut fixture = Fixture::with_store(is_shared);
        fixture.settlement.note_late(1);
        for (request, is_refused) in [(EVENT, true), (HEALTH, true), (STATS, is_shared)] {
            let (response, waits) = fixture.exchange(request);
            let status = if is_refused { "HTTP/1.1 503 " } else { "HTTP/1.1 200 " };
            assert!(response.starts_with(status) && !waits, "{response}");
        }
        fixture.settlement.settle(1, None, |_| {});
        let (response, _) = fixture.exchange(EVENT);
        assert!(!response.starts_with("HTTP/1.1 503 "), "the store has settled it: {response}");
    }
}

/// What is not durable is not shown, unless the same connection sent it.
#[test]
fn totals_wait_for_the_events_of_their_own_connection_only() {
    let mut fixture = Fixture::with_store(false);
    let mut other = Connection::new(LIMITS, true, 0);
    std::mem::swap(&mut fixture.connection, &mut other);
    assert_eq!(fixture.exchange(EVENT), (String::new(), true));
    std::mem::swap(&mut fixture.connection, &mut other);
    let (totals, waits) = fixture.exchange(STATS);
    assert!(totals.contains(r#""totalRequests":0,"#) && !waits, "{totals}");
    let action = fixture.receive(&[EVENT, STATS].concat());
    assert_eq!(action.send, 0, "both wait");
    fixture.settlement.settle(action.settle.unwrap(), None, |_| {});
    let (both, waits) = fixture.exchange(b"");
    assert!(both.contains(r#""totalRequests":2,"#) && !waits, "{both}");
}

#[test]
fn totals_are_requested_once_and_are_in_flight_until_they_are_sent() {
    let stats = Kind { endpoint: Endpoint::Stats, method: Method::Get };
    let mut fixture = Fixture::new();
    let epoch = fixture.receive(STATS).read.expect("the totals must be read");
    assert_eq!(fixture.connection.in_flight(), Some(stats));
    assert_eq!(fixture.receive(b"").read, None, "they were requested");
    fixture.read(epoch);
    let (response, _) = fixture.exchange(b"");
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    assert_eq!(fixture.connection.in_flight(), None);
}

#[test]
fn responses_around_totals_that_are_read_keep_their_order() {
    let mut fixture = Fixture::new();
    let action = fixture.receive(&[HEALTH, STATS, HEALTH].concat());
    let health = fixture.connection.take_responses(action.send, 0);
    fixture.connection.note_sent(health.len());
    assert_eq!(fixture.exchange(b"").0, "", "the totals come first");
    fixture.read(action.read.unwrap());
    let (sent, _) = fixture.exchange(b"");
    let (totals, last) = sent.split_at(sent.len() - health.len());
    assert!(totals.contains(r#""totalRequests":0,"#), "{sent}");
    assert_eq!(last.as_bytes(), health);
}

#[test]
fn totals_that_are_read_too_late_are_refused() {
    let mut fixture = Fixture::new();
    let _ = fixture.receive(STATS);
    assert_eq!(fixture.connection.deadline_ms(), STORE_TIMEOUT_MS);
    assert_eq!(fixture.tick(STORE_TIMEOUT_MS - 1), Due::Nothing);
    assert_eq!(fixture.tick(STORE_TIMEOUT_MS), Due::Act);
    let (response, _) = fixture.exchange(b"");
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
}

#[test]
fn a_late_store_is_no_timeout_of_a_client() {
    for request in [EVENT, HEALTH] {
        let mut fixture = Fixture::new();
        let action = fixture.receive(request);
        fixture.connection.take_responses(action.send, 0);
        let timeouts = |fixture: &mut Fixture| {
            let text = fixture.metrics();
            let lines = text.lines().filter(|line| line.starts_with("ringtally_timed_out_total{"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let before = timeouts(&mut fixture);
        assert_eq!(fixture.tick(STORE_TIMEOUT_MS), Due::Cut);
        assert_eq!(timeouts(&mut fixture) == before, request == EVENT, "{before:?}");
    }
}

#[test]
fn requests_for_totals_that_must_be_read_are_bounded() {
    let most = http::UNSENT_BYTES_MAX / PARKED_BYTES;
    let mut fixture = Fixture::new();
    for waiting in 1..=most {
        let next = if waiting < most { Next::Receive } else { Next::Pause };
        assert_eq!(fixture.receive(STATS).then, next, "{waiting} of {most}");
    }
}

#[test]
fn only_the_last_response_of_a_drain_announces_the_end() {
    for (requests, closing) in [
        (&[STATS][..], &[true][..]),
        (&[STATS, STATS], &[false, true]),
        // The response behind the totals was made before the drain.
        (&[STATS, HEALTH], &[false, false]),
        (&[STATS, HEALTH, STATS], &[false, false, true]),
    ] {
        let mut fixture = Fixture::new();
        let epoch = fixture.receive(&requests.concat()).read.unwrap();
        fixture.moment.urgency = Urgency::Drain;
        fixture.read(epoch);
        let (sent, _) = fixture.exchange(b"");
        let responses = sent.split("HTTP/1.1 200 ").skip(1);
        let found: Vec<bool> = responses.map(|one| one.contains("\r\nConnection: close")).collect();
        assert_eq!(found, closing, "{sent}");
    }
}

#[test]
fn an_event_of_an_unknown_user_costs_more() {
    let mut fixture = Fixture::new();
    let other = String::from_utf8_lossy(EVENT).replace(r#""u""#, r#""v""#);
    // The head is parsed once.
    let costs = [EVENT, other.as_bytes(), EVENT].map(|event| {
        let _ = fixture.receive(event);
        fixture.connection.renew()
    });
    assert!(costs[1] > costs[2], "{costs:?}");
}

#[test]
fn an_iteration_is_noted_once_and_only_if_it_had_requests() {
    let mut fixture = Fixture::new();
    let mut noted = |requests: &[u8]| {
        let _ = fixture.receive(requests);
        for _ in 0..2 {
            fixture.service.note_iteration(std::time::Duration::from_millis(1));
        }
        let text = fixture.metrics();
        let value = |start: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(start)?.trim().parse().ok())
        };
        let of = |kind: &str| value(&format!("http_request_duration_seconds_count{{{kind}}} "));
        [
            value("ringtally_turns_total{shard=\"0\"} "),
            of("method=\"POST\",endpoint=\"/event\""),
            of("method=\"GET\",endpoint=\"/health\""),
        ]
    };
    assert_eq!(noted(b""), [Some(0); 3]);
    assert_eq!(noted(&EVENT.repeat(2)), [Some(1), Some(2), Some(0)]);
    assert_eq!(noted(HEALTH), [Some(2), Some(2), Some(1)]);
    assert_eq!(noted(&[EVENT, HEALTH].concat()), [Some(3), Some(3), Some(2)]);
}
