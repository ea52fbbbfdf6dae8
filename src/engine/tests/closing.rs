//! The end of connections whose client has announced its last request, in both engines, on real sockets.

use super::super::streams::INPUT_BYTES;
use super::durable::{read_all, statuses, with_valve};
use super::*;
use crate::connection::LINGER_MS;
use crate::uring::BUFFER_BYTES;

const LAST: &[u8] =
    b"POST /event HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 24\r\n\r\n\
    {\"userId\":\"u\",\"value\":1}";
const LAST_OF_1_0: &[u8] = b"GET /health HTTP/1.0\r\n\r\n";
const REFUSED: &[u8] =
    b"POST /event HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 9999\r\n\r\nx";

/// Sends a request in one segment, and returns the statuses of all responses. The stream then ends without a reset.
fn exchange(address: SocketAddr, request: &[u8]) -> Vec<u16> {
    let mut stream = connect(address);
    stream.write_all(request).unwrap();
    statuses(&read_all(&mut stream, usize::MAX))
}

/// Returns the request, padded with a field to this number of bytes.
pub(super) fn padded(request: &[u8], bytes: usize) -> Vec<u8> {
    let (first, rest) = request.split_at(memchr::memchr(b'\n', request).unwrap() + 1);
    let field = format!("X: {}\r\n", "x".repeat(bytes - request.len() - 5));
    [first, field.as_bytes(), rest].concat()
}

/// Waits until no connection is open, although the clients have not closed theirs. Returns how long that took.
fn wait_until_closed(admission: &Admission) -> Duration {
    let started = Instant::now();
    while admission.open() > 0 {
        assert!(started.elapsed() < PATIENCE, "{} are open", admission.open());
        std::thread::sleep(Duration::from_millis(1));
    }
    started.elapsed()
}

#[test]
fn a_connection_closes_with_the_response_to_its_last_request() {
    for engine in [RING, Engine::Streams] {
        let (totals, _) = with_shards(engine, 1, None, |address, admission| {
            for request in [LAST, LAST_OF_1_0, &[EVENT, HEALTH, LAST].concat()] {
                let mut stream = connect(address);
                stream.write_all(request).unwrap();
                let responses = read_all(&mut stream, usize::MAX);
                assert!(responses.iter().all(|(status, _)| *status == 200), "{engine:?}");
                // The server does not linger until the client closes: the client has not closed yet.
                let took = wait_until_closed(admission);
                assert!(took < Duration::from_millis(LINGER_MS / 2), "{engine:?}: {took:?}");
            }
            // This connection is in use long enough for its receive to be multishot.
            let mut stream = connect(address);
            for _ in 0..20 {
                stream.write_all(EVENT).unwrap();
                read_responses(&mut stream, 1);
            }
            stream.write_all(LAST).unwrap();
            assert_eq!(statuses(&read_all(&mut stream, usize::MAX)), [200], "{engine:?}");
            wait_until_closed(admission);
        });
        assert_eq!(totals.total_requests, 24, "{engine:?}");
    }
}

#[test]
fn who_has_sent_more_than_was_read_gets_its_response_without_a_reset() {
    for engine in [RING, Engine::Streams] {
        with_shards(engine, 1, None, |address, admission| {
            for _ in 0..50 {
                let behind = [LAST, &[b'x'; 3000]].concat();
                assert_eq!(exchange(address, &behind), [200], "{engine:?}");
                assert_eq!(exchange(address, REFUSED), [413], "{engine:?}");
            }
            // If the buffer ends with the request, the rest is still in the socket.
            let filled = [BUFFER_BYTES, INPUT_BYTES].map(|bytes| padded(LAST, bytes));
            for request in [LAST, &filled[0], &filled[1]] {
                assert_eq!(exchange(address, request), [200], "{engine:?}");
                wait_until_closed(admission);
                // Until the client has closed, the end of the connection waits for bytes that it may still send.
                let mut stream = connect(address);
                stream.write_all(&[request, b"\r\n"].concat()).unwrap();
                assert_eq!(statuses(&read_all(&mut stream, usize::MAX)), [200]);
                std::thread::sleep(Duration::from_millis(20));
                assert_eq!(admission.open(), 1, "{engine:?}: {} bytes", request.len());
                stream.write_all(&[b'x'; 100]).unwrap();
                assert_eq!(stream.read(&mut [0]).unwrap(), 0, "{engine:?}: no reset");
                drop(stream);
                wait_until_closed(admission);
            }
        });
    }
}

#[test]
fn the_last_response_waits_for_the_store_before_its_connection_closes() {
    for engine in [RING, Engine::Streams] {
        with_valve(engine, PATIENCE, |address, valve, _| {
            let mut stream = connect(address);
            stream.write_all(&[HEALTH, LAST].concat()).unwrap();
            assert_eq!(statuses(&read_all(&mut stream, 1)), [200], "{engine:?}");
            super::durable::assert_quiet(&mut stream);
            valve.set_open(true);
            assert_eq!(statuses(&read_all(&mut stream, usize::MAX)), [200], "{engine:?}");
        });
    }
}
