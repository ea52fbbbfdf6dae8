//! One connection of a client thread: its state, the requests in flight on it, and the responses to them. The socket
//! is elsewhere.

use super::response::{Malformed, Reader, Response, join_chunks};
use std::collections::VecDeque;

/// The most bytes of a response.
const RESPONSE_BYTES_MAX: usize = 1 << 20;
/// The status that a full server sends to refuse a connection.
const NO_ROOM: u16 = 503;

/// A request that is waiting for its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flight {
    pub(super) request: u64,
    /// The times when the request was due and when it was sent.
    pub(super) due_ns: u64,
    pub(super) sent_ns: u64,
    /// The start of the request in the byte stream of its connection.
    offset: u64,
}

/// The state of a connection. Times are on the clock of the phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Closed; may be opened from `until_ns` on, if it is needed.
    Down { until_ns: u64 },
    /// Refused by a full server; may be opened from `until_ns` on, unless another connection is open.
    TurnedAway { until_ns: u64 },
    /// Not opened because this machine was out of ports or descriptors; may be opened from `until_ns` on, if it is needed.
    Lacking { until_ns: u64 },
    /// Being opened.
    Connecting { since_ns: u64 },
    /// Open.
    Open { since_ns: u64 },
    /// The last response has arrived, and the server is expected to close the connection.
    Closing { since_ns: u64 },
}

/// The next item in the bytes that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A whole response, and its request.
    Response(Flight, Response),
    /// The server refused the connection before there was a request.
    TurnedAway,
    /// No whole response.
    Nothing,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) state: State,
    flights: VecDeque<Flight>,
    /// The number of bytes in all requests that were made.
    made_bytes: u64,
    /// The bytes that arrived; those before `read` have been parsed.
    input: Vec<u8>,
    read: usize,
    answered: u64,
    says_close: bool,
    excludes_rest: bool,
    was_turned_away: bool,
    /// Whether the connection is in the list of free connections.
    pub(super) is_listed: bool,
}

impl Connection {
    /// Creates a connection with nothing in flight.
    pub(super) fn new(state: State) -> Self {
        Connection {
            state,
            flights: VecDeque::new(),
            made_bytes: 0,
            input: Vec::new(),
            read: 0,
            answered: 0,
            says_close: false,
            excludes_rest: false,
            was_turned_away: false,
            is_listed: false,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Reports whether the connection takes another request, with at most `depth` in flight.
    pub(super) fn takes_more(&self, depth: usize, one_shot: bool) -> bool {
        let is_spent = one_shot && self.answered > 0;
        self.is_open() && self.flights.len() < depth && !self.says_close && !is_spent
    }

    /// Records a request of this number of bytes that was given to the connection.
    pub(super) fn push(&mut self, request: u64, due_ns: u64, sent_ns: u64, bytes: u64) {
        debug_assert!(self.is_open(), "requests are given to open connections only");
        self.flights.push_back(Flight { request, due_ns, sent_ns, offset: self.made_bytes });
        self.made_bytes += bytes;
    }

    /// Returns the request that has waited longest.
    pub(super) fn oldest(&self) -> Option<&Flight> {
        self.flights.front()
    }

    pub(super) fn has_flights(&self) -> bool {
        !self.flights.is_empty()
    }

    /// Takes the requests without a response, oldest first, each with a flag that is set if the kernel got any of its bytes.
    pub(super) fn take_flights(
        &mut self,
        handed_over: u64,
    ) -> impl Iterator<Item = (Flight, bool)> + use<> {
        let flights = std::mem::take(&mut self.flights);
        flights.into_iter().map(move |flight| (flight, flight.offset < handed_over))
    }

    /// Reports whether a request without a response was handed to the kernel, at least in part.
    pub(super) fn owes_response(&self, handed_over: u64) -> bool {
        self.oldest().is_some_and(|flight| flight.offset < handed_over)
    }

    /// Returns the number of complete responses that were read.
    pub(super) fn answered(&self) -> u64 {
        self.answered
    }

    /// Reports whether the server announced that it will close the connection.
    pub(super) fn says_close(&self) -> bool {
        self.says_close
    }

    /// Reports whether the server must not process any requests after the last one that it has responded to.
    pub(super) fn excludes_rest(&self) -> bool {
        self.excludes_rest
    }

    /// Reports whether the server refused the connection for lack of room.
    pub(super) fn was_turned_away(&self) -> bool {
        self.was_turned_away
    }

    /// Reports whether an incomplete response has arrived.
    pub(super) fn has_part(&self) -> bool {
        self.read < self.input.len()
    }

    /// Appends bytes that arrived.
    pub(super) fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// Returns the next response among the bytes that arrived. If `at_end` is set, the connection has ended, and a
    /// response that nothing else delimits ends with it.
    ///
    /// # Errors
    ///
    /// Fails if the bytes are not a response, or if they do not belong to a request.
    pub(super) fn next(&mut self, reader: &mut Reader, at_end: bool) -> Result<Next, Malformed> {
        debug_assert!(self.read <= self.input.len());
        let arrived = &self.input[self.read..];
        let found = if arrived.is_empty() { None } else { reader.read(arrived, at_end)? };
        let Some(response) = found else {
            self.input.drain(..self.read);
            self.read = 0;
            // Only a refusal for lack of room may arrive without a request, and only if nothing else has arrived.
            let is_stray = self.flights.is_empty() && (self.answered > 0 || self.was_turned_away);
            return match self.input.len() {
                0 => Ok(Next::Nothing),
                ..=RESPONSE_BYTES_MAX if !is_stray => Ok(Next::Nothing),
                _ => Err(Malformed),
            };
        };
        let has_no_room = response.status == NO_ROOM && response.says_close && self.answered == 0;
        self.was_turned_away |= has_no_room;
        self.says_close |= response.says_close;
        self.excludes_rest |= response.excludes_rest;
        let Some(flight) = self.flights.pop_front() else {
            self.read += response.end;
            return if has_no_room { Ok(Next::TurnedAway) } else { Err(Malformed) };
        };
        self.read += response.end;
        self.answered += 1;
        Ok(Next::Response(flight, response))
    }

    /// Returns the number of events reported as accepted in the response that [`Connection::next`] has just read.
    pub(super) fn accepted(&self, response: &Response) -> Option<u64> {
        let body_bytes = response.end - response.body_start;
        let body = &self.input[self.read - body_bytes..self.read];
        let joined = response.is_chunked.then(|| join_chunks(body).ok()).flatten();
        let json: serde_json::Value =
            serde_json::from_slice(joined.as_deref().unwrap_or(body)).ok()?;
        json.get("accepted")?.as_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

    fn open() -> Connection {
        Connection::new(State::Open { since_ns: 0 })
    }

    #[test]
    fn responses_belong_to_requests_in_order_at_every_split() {
        let wire = OK.repeat(3);
        for split in 0..=wire.len() {
            let mut connection = open();
            (0..3).for_each(|event| connection.push(event, 0, 0, 10));
            let mut events = Vec::new();
            for part in [&wire[..split], &wire[split..]] {
                connection.receive(part);
                while let Next::Response(flight, _) =
                    connection.next(&mut Reader::default(), false).unwrap()
                {
                    events.push(flight.request);
                }
            }
            assert_eq!((events, connection.has_part()), (vec![0, 1, 2], false));
        }
    }

    #[test]
    fn what_was_accepted_is_read_from_each_response() {
        let chunked =
            "Transfer-Encoding: chunked\r\n\r\n7\r\n{\"accep\r\n8\r\nted\":10}\r\n0\r\n\r\n";
        for (rest, accepted) in [
            ("Content-Length: 15\r\n\r\n{\"accepted\":10}", Some(10)),
            (chunked, Some(10)),
            ("Content-Length: 17\r\n\r\n{\"accepted\":10.5}", None),
            ("Content-Length: 18\r\n\r\n{\"accepted\":\"ten\"}", None),
            ("Content-Length: 2\r\n\r\n{}", None),
            ("Content-Length: 0\r\n\r\n", None),
        ] {
            let mut connection = open();
            (0..2).for_each(|request| connection.push(request, 0, 0, 10));
            connection.receive(format!("HTTP/1.1 200 OK\r\n{rest}").repeat(2).as_bytes());
            for _ in 0..2 {
                let Ok(Next::Response(_, response)) =
                    connection.next(&mut Reader::default(), false)
                else {
                    panic!()
                };
                assert_eq!(connection.accepted(&response), accepted, "{rest}");
            }
        }
    }

    #[test]
    fn a_response_that_nobody_asked_for_is_an_error() {
        let mut connection = open();
        connection.receive(OK);
        assert_eq!(connection.next(&mut Reader::default(), false), Err(Malformed));
    }

    #[test]
    fn bytes_behind_the_last_response_are_an_error_however_few() {
        for stray in [&OK[..1], &OK[..OK.len() - 1], b"\n"] {
            let mut connection = open();
            connection.push(0, 0, 0, 10);
            connection.receive(&[OK, stray].concat());
            assert!(matches!(
                connection.next(&mut Reader::default(), false),
                Ok(Next::Response(..))
            ));
            assert_eq!(connection.next(&mut Reader::default(), false), Err(Malformed), "{stray:?}");
        }
        // Before the first response, the bytes may be the start of a refusal.
        let mut connection = open();
        connection.receive(&OK[..9]);
        assert_eq!(connection.next(&mut Reader::default(), false), Ok(Next::Nothing));
    }

    /// The server promises this only by an explicit `Connection: close` in HTTP/1.1.
    #[test]
    fn what_is_behind_the_last_response_is_excluded_only_by_an_explicit_close() {
        for (head, at_end, is_excluded) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", false, true),
            ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", true, true),
            ("HTTP/1.1 200 OK\r\n\r\n", true, false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", false, false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", false, false),
        ] {
            let mut connection = open();
            (0..2).for_each(|request| connection.push(request, 0, 0, 10));
            connection.receive(head.as_bytes());
            assert!(
                matches!(connection.next(&mut Reader::default(), at_end), Ok(Next::Response(..))),
                "{head:?}"
            );
            assert!(connection.says_close() && !connection.takes_more(9, false), "{head:?}");
            assert_eq!(connection.excludes_rest(), is_excluded, "{head:?}");
        }
    }

    #[test]
    fn what_the_kernel_was_not_handed_cannot_have_arrived() {
        let mut connection = open();
        (0..3).for_each(|event| connection.push(event, 0, 0, 10));
        assert!(!connection.owes_response(0) && connection.owes_response(1));
        // The kernel got one byte of the second request and nothing of the third.
        let flights: Vec<(u64, bool)> =
            connection.take_flights(11).map(|(flight, left)| (flight.request, left)).collect();
        assert_eq!(flights, [(0, true), (1, true), (2, false)]);
        assert!(!connection.has_flights());
    }

    #[test]
    fn a_503_before_any_request_is_a_server_without_room() {
        let full =
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let mut connection = open();
        connection.receive(full);
        assert_eq!(connection.next(&mut Reader::default(), false), Ok(Next::TurnedAway));
        assert!(connection.was_turned_away() && !connection.takes_more(9, false));
        // After a request, it is the response to that request. Later on the connection, it does not mean that the
        // server is full.
        let mut connection = open();
        connection.push(7, 0, 0, 10);
        connection.receive(full);
        assert!(matches!(
            connection.next(&mut Reader::default(), false),
            Ok(Next::Response(Flight { request: 7, .. }, _))
        ));
        assert!(connection.was_turned_away());
        let mut connection = open();
        (0..2).for_each(|event| connection.push(event, 0, 0, 10));
        connection.receive(&[OK, full].concat());
        while let Ok(Next::Response(..)) = connection.next(&mut Reader::default(), false) {}
        assert!(!connection.was_turned_away());
    }

    #[test]
    fn a_response_has_so_many_bytes() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n";
        for (bytes, is_refused) in [(RESPONSE_BYTES_MAX, false), (RESPONSE_BYTES_MAX + 1, true)] {
            let mut connection = open();
            connection.push(0, 0, 0, 10);
            connection.receive(head);
            connection.receive(&vec![b'x'; bytes - head.len()]);
            assert_eq!(
                connection.next(&mut Reader::default(), false).is_err(),
                is_refused,
                "{bytes}"
            );
        }
    }
}
