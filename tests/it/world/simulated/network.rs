//! A connection between a client and a server, seen from both ends: bytes on their way, sockets that hold some of them, and the
//! two ways that it ends.

use crate::world::{Response, description, text};
use std::collections::VecDeque;

/// The most bytes that the server's socket holds for the client.
const ROOM_BYTES: usize = 8 * 1024;

/// The state of the server's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Open,
    ShutDown,
    Closed,
}

/// An established connection.
#[derive(Debug)]
pub struct Link {
    /// Bytes that the client has sent and that are on their way.
    to_server: VecDeque<u8>,
    /// Bytes in the server's socket.
    arrived: VecDeque<u8>,
    /// Bytes that the server has sent and that the client has not taken.
    to_client: VecDeque<u8>,
    has_client_finished: bool,
    /// True after the end of the client's bytes has reached the server's socket.
    has_end_arrived: bool,
    server: Side,
    /// True after a reset: everything on its way is lost.
    is_reset: bool,
    /// The number of bytes that the server has received.
    received: usize,
    /// True after the server has received the end.
    is_end_received: bool,
    /// True if the server is full and rejects it.
    is_rejected: bool,
    /// The connection is for another shard.
    is_foreign: bool,
}

/// The result of a receive by the server.
#[derive(Debug)]
pub enum Received {
    Bytes(Vec<u8>),
    End,
    Failed,
}

impl Link {
    pub fn new() -> Link {
        Link {
            to_server: VecDeque::new(),
            arrived: VecDeque::new(),
            to_client: VecDeque::new(),
            has_client_finished: false,
            has_end_arrived: false,
            server: Side::Open,
            is_reset: false,
            received: 0,
            is_end_received: false,
            is_rejected: false,
            is_foreign: false,
        }
    }

    /// Returns a connection that the server rejects.
    pub fn rejected() -> Link {
        Link { is_rejected: true, ..Link::new() }
    }

    pub fn is_rejected(&self) -> bool {
        self.is_rejected
    }

    /// Returns a connection that a shard accepts for another one.
    pub fn foreign() -> Link {
        Link { is_foreign: true, ..Link::new() }
    }

    pub fn is_foreign(&self) -> bool {
        self.is_foreign
    }

    /// Sends bytes of the client.
    pub fn send(&mut self, bytes: &[u8]) {
        assert!(!self.has_client_finished);
        if !self.is_reset {
            self.to_server.extend(bytes);
        }
    }

    /// Ends the client's side: it sends nothing more.
    pub fn finish(&mut self) {
        self.has_client_finished = true;
    }

    pub fn has_client_finished(&self) -> bool {
        self.has_client_finished
    }

    /// Resets the connection, as the client does.
    pub fn reset(&mut self) {
        self.is_reset = true;
        self.to_server.clear();
        self.arrived.clear();
        self.to_client.clear();
    }

    /// Delivers some of the client's bytes to the server's socket. If that is closed, everything that it has sent is lost.
    pub fn deliver(&mut self, count: usize) {
        let count = count.min(self.to_server.len());
        if count > 0 && self.server == Side::Closed {
            return self.reset();
        }
        self.arrived.extend(self.to_server.drain(..count));
        self.has_end_arrived = self.has_client_finished && self.to_server.is_empty();
    }

    /// Lets the client read some of its bytes.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let count = count.min(self.to_client.len());
        self.to_client.drain(..count).collect()
    }

    /// Returns the number of bytes that the client could take.
    pub fn takable(&self) -> usize {
        self.to_client.len()
    }

    /// Returns whether the client finds no more bytes, and none will come.
    pub fn is_over(&self) -> bool {
        self.to_client.is_empty() && (self.is_reset || self.server != Side::Open)
    }

    /// Returns whether bytes were lost.
    pub fn is_reset(&self) -> bool {
        self.is_reset
    }

    /// Returns the number of bytes that are in the server's socket or were received from it.
    pub fn at_server(&self) -> usize {
        self.received + self.arrived.len()
    }

    /// Returns the number of bytes that the server has received.
    pub fn received(&self) -> usize {
        self.received
    }

    /// Returns whether the server has received the end.
    pub fn is_end_received(&self) -> bool {
        self.is_end_received
    }

    /// Returns the number of bytes in the server's socket.
    pub fn unread(&self) -> usize {
        self.arrived.len()
    }

    /// Returns whether a receive of the server brings something.
    pub fn is_readable(&self) -> bool {
        self.is_reset || !self.arrived.is_empty() || self.has_end_arrived && !self.is_end_received
    }

    /// Lets the server receive at most this number of bytes. The link must be readable.
    pub fn receive(&mut self, bytes_max: usize) -> Received {
        if self.is_reset {
            return Received::Failed;
        }
        if self.arrived.is_empty() {
            assert!(self.has_end_arrived && !self.is_end_received);
            self.is_end_received = true;
            return Received::End;
        }
        let count = bytes_max.min(self.arrived.len());
        self.received += count;
        Received::Bytes(self.arrived.drain(..count).collect())
    }

    /// Lets the server's socket take as many of these bytes as it has room for. Returns their number, or `None` if it
    /// cannot send.
    pub fn take_from(&mut self, bytes: &[u8]) -> Option<usize> {
        if self.is_reset {
            return None;
        }
        assert_eq!(self.server, Side::Open, "nothing is sent after the end");
        let room = ROOM_BYTES.saturating_sub(self.to_client.len());
        let count = room.min(bytes.len());
        self.to_client.extend(&bytes[..count]);
        Some(count)
    }

    /// Ends the server's side: it sends nothing more. Returns whether the connection is still there.
    pub fn shut_down(&mut self) -> bool {
        self.server = self.server.max(Side::ShutDown);
        !self.is_reset
    }

    /// Closes the server's socket. If it holds bytes, everything that it has sent is lost (RFC 9112 section 9.6).
    pub fn close(&mut self) {
        self.server = Side::Closed;
        if !self.arrived.is_empty() {
            self.reset();
        }
    }
}

impl Side {
    fn max(self, other: Side) -> Side {
        if self == Side::Closed { self } else { other }
    }
}

/// The client's reader: bytes in, responses out.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
}

impl Reader {
    /// Adds bytes. Returns the responses that are complete.
    pub fn read(&mut self, bytes: &[u8]) -> Vec<Response> {
        self.bytes.extend_from_slice(bytes);
        let mut responses = Vec::new();
        while let Some(end) = memchr::memmem::find(&self.bytes, b"\r\n\r\n") {
            let mut response =
                Response { status: 0, head: text(&self.bytes[..end + 4]), body: String::new() };
            response.status = response.head.split(' ').nth(1).unwrap().parse().unwrap();
            let length = response.field("content-length").map_or(0, |text| text.parse().unwrap());
            let whole: usize = end + 4 + length;
            if self.bytes.len() < whole {
                break;
            }
            response.body = text(&self.bytes[end + 4..whole]);
            self.bytes.drain(..whole);
            description::check_response(&response);
            responses.push(response);
        }
        responses
    }

    /// Returns whether a part of a response has arrived.
    pub fn has_part(&self) -> bool {
        !self.bytes.is_empty()
    }
}
