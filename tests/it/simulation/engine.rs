//! What a shard reports to the engine that runs it, and asks of its sockets.

use super::*;
use crate::world::simulated::Receiving;
use ringtally::connection::{DRAIN_QUIET_MS, LINGER_MS};
use ringtally::http::UNSENT_BYTES_MAX;

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n";
const LAST: &[u8] = b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

fn new_shard(connections: usize) -> Shard {
    shard_with(connections, service(USERS_MAX).1, limits(TIMEOUTS[0]))
}

/// Returns a shard whose connections can receive.
fn shard(connections: usize) -> Shard {
    let mut shard = new_shard(connections);
    shard.idle();
    shard
}

/// Lets bytes arrive in the socket of a connection.
fn arrive(shard: &mut Shard, key: usize, bytes: &[u8]) {
    let link = shard.link(key);
    if !bytes.is_empty() {
        link.send(bytes);
    }
    link.deliver(usize::MAX);
}

/// Lets bytes arrive, and begins an iteration in which the connection receives one buffer.
fn begin_to_receive(shard: &mut Shard, key: usize, bytes: &[u8]) {
    arrive(shard, key, bytes);
    shard.begin_iteration();
    shard.complete_in_full(key);
}

/// Lets bytes arrive, and runs an iteration in which the connection receives one buffer.
fn receive(shard: &mut Shard, key: usize, bytes: &[u8]) {
    begin_to_receive(shard, key, bytes);
    shard.end_iteration();
}

/// The end of a connection's input arrives, and everything that follows from it is done.
fn receive_end(shard: &mut Shard, key: usize) {
    for _ in 0..3 {
        receive(shard, key, b"");
    }
}

#[test]
fn a_shard_knows_how_many_of_its_connections_were_active_lately() {
    let mut shard = shard(3);
    assert_eq!(shard.driver.active(), 0);
    receive(&mut shard, 0, HEALTH);
    receive(&mut shard, 1, HEALTH);
    receive(&mut shard, 0, HEALTH);
    shard.tick();
    assert_eq!(shard.driver.active(), 2);
    // It counts connections that have ended, too.
    receive(&mut shard, 0, LAST);
    shard.link(0).finish();
    receive_end(&mut shard, 0);
    receive(&mut shard, 2, HEALTH);
    assert!(!shard.net.slots[0].is_open());
    shard.tick();
    assert_eq!(shard.driver.active(), 2);
    shard.tick();
    assert_eq!(shard.driver.active(), 0);
}

/// A batch that takes several turns.
fn batch() -> Vec<u8> {
    let lines = "{\"userId\":\"u\",\"value\":1}\n".repeat(BATCH_BYTES_MAX / 30);
    let length = lines.len();
    let head = format!("POST /events HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
    (head + &lines).into_bytes()
}

#[test]
fn a_shard_with_work_left_does_not_wait() {
    let mut shard = new_shard(1);
    let state = |shard: &Shard| (shard.driver.has_work(), shard.driver.is_in_line());
    assert_eq!(state(&shard), (true, false), "a new connection has to receive");
    shard.idle();
    assert_eq!(state(&shard), (false, false));
    let mut iterations = 0;
    for piece in batch().chunks(BUFFER_BYTES) {
        receive(&mut shard, 0, piece);
    }
    while shard.driver.is_in_line() {
        assert_eq!(state(&shard), (true, true));
        shard.idle();
        iterations += 1;
        assert!(iterations < ITERATIONS_TO_REST, "it never ends");
    }
    assert!(iterations > 0, "a batch takes several iterations");
    assert_eq!(state(&shard), (false, false));
    let responses = std::mem::take(&mut shard.net.made);
    assert!(responses[0].bytes.starts_with(b"HTTP/1.1 200 "), "{responses:?}");
}

/// A peer that sends in bulk is received from one buffer at a time.
#[test]
fn a_receive_fills_several_buffers_once_four_in_a_row_had_room() {
    let mut shard = shard(1);
    let mut receive_and_rest = |bytes: &[u8]| {
        receive(&mut shard, 0, bytes);
        while shard.idle() {}
        receive(&mut shard, 0, b"");
        shard.net.slots[0].receiving
    };
    let much = HEALTH.repeat(BUFFER_BYTES / HEALTH.len() + 1);
    let (much, rest) = much.split_at(BUFFER_BYTES);
    for (bytes, receiving) in [
        (HEALTH, Receiving::Once),
        (HEALTH, Receiving::Once),
        (HEALTH, Receiving::Once),
        (much, Receiving::Once),
        (rest, Receiving::Once),
        (HEALTH, Receiving::Once),
        (HEALTH, Receiving::Once),
        (HEALTH, Receiving::Multishot),
        (HEALTH, Receiving::Multishot),
    ] {
        assert_eq!(receive_and_rest(bytes), receiving);
    }
}

#[test]
fn a_connection_that_fails_is_not_cut() {
    let mut shard = shard(2);
    receive(&mut shard, 0, &HEALTH[..9]);
    receive(&mut shard, 1, &HEALTH[..9]);
    shard.link(0).reset();
    receive_end(&mut shard, 0);
    assert_eq!(shard.net.slots[0].ended, Some(Ended::Failed));
    shard.stop_accepting();
    shard.driver.abort();
    shard.tick();
    assert_eq!(shard.net.slots[1].ended, Some(Ended::Cut));
    assert_eq!(shard.driver.cut(), 1);
    assert!(shard.is_empty());
}

/// A close with unread bytes in the socket would reset the connection, and the peer would lose the response.
#[test]
fn a_connection_lingers_if_more_arrives_than_it_has_received() {
    let mut shard = shard(1);
    begin_to_receive(&mut shard, 0, LAST);
    arrive(&mut shard, 0, b"more");
    shard.end_iteration();
    receive_end(&mut shard, 0);
    let slot = &shard.net.slots[0];
    assert!(slot.is_open() && slot.lingers_since.is_some() && !slot.link.is_reset(), "{slot:?}");
}

#[test]
fn a_connection_lingers_no_longer_because_its_peer_sends_on_during_a_stop() {
    let mut shard = shard(1);
    receive(&mut shard, 0, &[LAST, b"more"].concat());
    receive(&mut shard, 0, b"");
    let (since_ms, _) = shard.net.slots[0].lingers_since.expect("more has arrived");
    shard.stop_accepting();
    arrive(&mut shard, 0, b"even more");
    for (ms, is_open) in [(LINGER_MS - 1, true), (LINGER_MS, false)] {
        shard.clock_ms = since_ms + ms;
        shard.tick();
        assert_eq!(shard.net.slots[0].is_open(), is_open, "after {ms} ms");
    }
}

#[test]
fn a_stop_closes_idle_connections_after_what_has_arrived_in_their_sockets() {
    let mut shard = shard(2);
    arrive(&mut shard, 0, HEALTH);
    shard.stop_accepting();
    for (ms, is_idle_open) in [(DRAIN_QUIET_MS - 1, true), (1, false)] {
        shard.clock_ms += ms;
        shard.tick();
        let are_open = [0, 1].map(|key| shard.net.slots[key].is_open());
        assert_eq!(are_open, [true, is_idle_open]);
    }
    receive_end(&mut shard, 0);
    let made = std::mem::take(&mut shard.net.made);
    let last = b"\r\nConnection: close\r\n";
    assert!(made.len() == 1 && memchr::memmem::find(&made[0].bytes, last).is_some(), "{made:?}");
}

#[test]
fn requests_in_flight_are_those_of_all_connections_at_the_last_tick() {
    let mut shard = shard(4);
    let head = b"POST /event HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n";
    for key in 0..3 {
        receive(&mut shard, key, head);
    }
    shard.tick();
    receive(&mut shard, 3, b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n");
    shard.idle();
    let made = std::mem::take(&mut shard.net.made);
    let text = String::from_utf8(made.into_iter().next().unwrap().bytes).unwrap();
    let in_flight = "\nhttp_requests_in_flight{method=\"POST\",endpoint=\"/event\"} 3\n";
    assert!(text.contains(in_flight), "{text}");
}

/// Requests that take several turns together.
fn much_work() -> Vec<u8> {
    b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n".repeat(10)
}

/// They may all read at once, and their next requests have arrived long before.
#[test]
fn connections_whose_peers_have_read_share_one_turn() {
    let crowd = 20;
    let mut shard = shard(crowd);
    for key in 0..crowd {
        receive(&mut shard, key, &much_work());
        let unsent = shard.net.slots[key].sending.len();
        assert!(unsent >= UNSENT_BYTES_MAX, "its other requests wait: {unsent} bytes");
    }
    while shard.idle() {}
    shard.net.made.clear();
    shard.begin_iteration();
    for key in 0..crowd {
        let sent = std::mem::take(&mut shard.net.slots[key].sending);
        shard.driver.note_sent(&mut shard.net, key, sent);
    }
    shard.end_iteration();
    let made = shard.net.made.len();
    assert!((1..=2).contains(&made), "{made} have made responses");
}

#[test]
fn a_receive_that_was_canceled_begins_again() {
    let mut shard = shard(1);
    // Each piece leaves room in its buffer.
    batch().chunks(BUFFER_BYTES / 2).for_each(|piece| receive(&mut shard, 0, piece));
    assert_eq!(shard.net.slots[0].receiving, Receiving::Canceled, "it has work to do");
    while shard.idle() {}
    let sent = std::mem::take(&mut shard.net.slots[0].sending);
    shard.driver.note_sent(&mut shard.net, 0, sent);
    while shard.idle() {}
    assert_eq!(shard.net.slots[0].receiving, Receiving::Canceled);
    receive(&mut shard, 0, b"");
    assert_eq!(shard.net.slots[0].receiving, Receiving::Multishot);
}

/// A completion would wake the shard. Without one, the next receive does, unless the shard has to act first.
#[test]
fn a_send_has_no_completion_if_only_the_peer_can_act_next() {
    let skips = |drains: bool, requests: &[u8]| {
        let mut shard = shard(1);
        begin_to_receive(&mut shard, 0, requests);
        if drains {
            shard.stop_accepting();
        }
        shard.end_iteration();
        let slot = &shard.net.slots[0];
        assert!(!slot.sending.is_empty(), "{slot:?}");
        slot.skips_completion
    };
    assert!(skips(false, HEALTH));
    assert!(!skips(true, HEALTH) && !skips(true, &much_work()));
    assert!(!skips(false, &much_work()), "it goes on by itself");
}

#[test]
fn a_shard_knows_when_it_has_to_look_at_the_clock() {
    let mut shard = new_shard(1);
    assert!(shard.driver.end_iteration(&mut shard.net, 0), "a new connection has to receive");
    assert!(!shard.driver.end_iteration(&mut shard.net, 0));
    assert!(shard.driver.end_iteration(&mut shard.net, 1));
    shard.driver.begin_iteration(7);
    assert_eq!(shard.moment().received_ms, 7);
    let due_ms = |shard: &mut Shard, now_ms| {
        shard.driver.set_time(now_ms);
        shard.driver.tick(&mut shard.net)
    };
    assert_eq!(due_ms(&mut shard, 0), TIMEOUTS[0].idle_ms);
    receive(&mut shard, 0, &HEALTH[..9]);
    assert_eq!(due_ms(&mut shard, 1), TIMEOUTS[0].header_ms);
    assert_eq!(due_ms(&mut shard, TIMEOUTS[0].header_ms), 0, "it has a response to send");
}
