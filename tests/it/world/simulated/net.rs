//! The sockets of a shard, as its driver uses them, and what a simulation knows of each connection.

use super::network::{Link, Received};
use super::shard::BUFFER_BYTES;
use fastrand::Rng;
use ringtally::connection::{Connection, Due};
use ringtally::engine::driver::{Accepted, Client, Ended, Newcomer, Open, Socket, Sockets};
use ringtally::http::Budget;
use ringtally::metrics::ShardMetrics;
use std::collections::VecDeque;

/// The highest cost of one request, in the units of a budget: `GET /metrics`, with room to spare.
const REQUEST_UNITS_MAX: u32 = 60_000;

/// The state of a connection's receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiving {
    No,
    Once,
    Multishot,
    /// It was canceled, but may still bring something.
    Canceled,
}

/// A connection of the shard, open or not.
#[derive(Debug)]
pub struct Slot {
    pub link: Link,
    /// `None` after it has ended.
    client: Option<Client>,
    pub ended: Option<Ended>,
    pub receiving: Receiving,
    /// The bytes of the send in progress, and the number of them that the link has taken.
    pub sending: Vec<u8>,
    pub(super) sent: usize,
    pub skips_completion: bool,
    /// The start of the send in progress.
    pub sending_since_ms: Option<u64>,
    /// The start of its lingering, and the number of bytes received before.
    pub lingers_since: Option<(u64, usize)>,
    /// The time of the last receive.
    pub received_ms: u64,
    /// The number of iterations that it has waited in line.
    waits: usize,
    /// The most of its budget that it was seen to use.
    pub used: u32,
    responses: Stream,
}

impl Slot {
    pub fn is_open(&self) -> bool {
        self.client.is_some()
    }

    /// Returns whether it has responses that the client's side does not have.
    pub fn has_unsent(&self) -> bool {
        !self.sending.is_empty() || !self.connection().responses().bytes().is_empty()
    }

    /// Returns the connection, which must be open.
    pub fn connection(&self) -> &Connection {
        self.client.as_ref().unwrap().connection()
    }
}

/// The responses of a connection, as bytes of one stream.
#[derive(Debug, Default)]
struct Stream {
    /// The number of bytes that were seen to be made, and the number of those that the driver
    /// has taken.
    made: usize,
    taken: usize,
    /// The number of turns in line since the last of them.
    works: usize,
}

/// Responses that a connection has made. Some may have to wait.
#[derive(Debug)]
pub struct Made {
    pub key: usize,
    pub bytes: Vec<u8>,
    /// The number of turns in line that it has had for them.
    pub works: usize,
}

impl Stream {
    /// Notes the responses after those that were taken.
    fn follow(&mut self, bytes: &[u8], key: usize, all: &mut Vec<Made>) {
        let end = self.taken + bytes.len();
        if end > self.made {
            let bytes = bytes[self.made - self.taken..].to_vec();
            all.push(Made { key, bytes, works: self.works });
            (self.made, self.works) = (end, 0);
        }
    }
}

/// A connection that the driver is busy with.
struct Touched {
    key: usize,
    /// The used part of its budget, and whether it was in line.
    used: u32,
    was_in_line: bool,
}

/// The sockets of a shard.
pub struct Net {
    pub slots: Vec<Slot>,
    /// Connections that are established but not accepted.
    pub backlog: VecDeque<Link>,
    /// Responses in the order that they were made.
    pub made: Vec<Made>,
    /// The connections that the clock has ended or responded to.
    pub(super) due: Vec<(usize, Due)>,
    pub(super) now_ms: u64,
    rng: Rng,
    touched: Option<Touched>,
    /// The cost of all turns in line of this iteration.
    units: u32,
}

impl Net {
    pub(super) fn new(rng: Rng) -> Net {
        Net {
            slots: Vec::new(),
            backlog: VecDeque::new(),
            made: Vec::new(),
            due: Vec::new(),
            now_ms: 0,
            rng,
            touched: None,
            units: 0,
        }
    }

    /// Notes that connections in line are about to have their turns.
    pub(super) fn begin_turns(&mut self) {
        self.note_made();
        let waiting = |slot: &&mut Slot| slot.client.as_ref().is_some_and(Client::is_in_line);
        self.slots.iter_mut().filter(waiting).for_each(|slot| slot.waits += 1);
        self.units = 0;
    }

    /// Notes what the connection that the driver was busy with has made and used.
    pub(super) fn note_made(&mut self) {
        let Some(Touched { key, used, was_in_line }) = self.touched.take() else { return };
        let all = self.slots.len();
        let Slot { client, responses, waits, .. } = &mut self.slots[key];
        let Some(client) = client else { return };
        if was_in_line && !client.is_in_line() {
            assert!(self.units <= Budget::UNITS, "the line has more than one budget");
            assert!(*waits <= all, "among {all}, it waited for {waits}");
            (*waits, responses.works) = (0, responses.works + 1);
            self.units += client.connection().used().saturating_sub(used);
        }
        responses.follow(client.connection().responses().bytes(), key, &mut self.made);
    }

    /// Notes that the driver becomes busy with a connection, if it is open.
    fn touch(&mut self, key: usize) {
        self.note_made();
        let Slot { client, used: used_max, .. } = &mut self.slots[key];
        if let Some(client) = client {
            let used = client.connection().used();
            *used_max = used.max(*used_max);
            let is_within = used <= Budget::UNITS + REQUEST_UNITS_MAX;
            assert!(is_within, "one connection has used {used} units");
            self.touched = Some(Touched { key, used, was_in_line: client.is_in_line() });
        }
    }
}

impl Sockets for Net {
    type Key = usize;
    type Socket<'a> = SimulatedSocket<'a>;
    type Filled = Vec<u8>;
    type Accepted = Link;

    const BUFFER_BYTES: usize = BUFFER_BYTES;

    fn get(&mut self, key: usize) -> Option<Open<'_, SimulatedSocket<'_>>> {
        self.touch(key);
        let Net { slots, rng, made, now_ms, .. } = self;
        let Slot { link, client, receiving, lingers_since, responses, .. } = &mut slots[key];
        let is_receiving = *receiving != Receiving::No;
        let now_ms = *now_ms;
        let socket = SimulatedSocket {
            key,
            link,
            is_receiving,
            lingers_since,
            responses,
            made,
            rng,
            now_ms,
        };
        Some(Open { client: client.as_mut()?, socket, is_receiving })
    }

    fn visit(&mut self, mut visit: impl FnMut(usize, Open<'_, SimulatedSocket<'_>>)) {
        for key in 0..self.slots.len() {
            let Some(open) = self.get(key) else { continue };
            let was_queued = open.client.is_queued();
            visit(key, open);
            let is_queued = self.slots[key].client.as_ref().is_some_and(Client::is_queued);
            if is_queued && !was_queued {
                self.due.push((key, Due::Act));
            }
        }
    }

    fn received<'a>(
        &'a mut self,
        key: usize,
        filled: &'a Vec<u8>,
    ) -> Option<(&'a mut Client, &'a [u8])> {
        self.touch(key);
        Some((self.slots[key].client.as_mut()?, filled))
    }

    fn give_back(&mut self, _: Vec<u8>) {}

    fn accept_now(&mut self, _: &ShardMetrics) -> Accepted<Link> {
        match self.backlog.pop_front() {
            Some(link) if link.is_foreign() => Accepted::Elsewhere,
            Some(link) => Accepted::Here(link),
            None => Accepted::None,
        }
    }

    fn insert(&mut self, link: Link, client: Client) -> usize {
        self.slots.push(Slot {
            link,
            client: Some(client),
            ended: None,
            receiving: Receiving::No,
            sending: Vec::new(),
            sent: 0,
            skips_completion: false,
            sending_since_ms: None,
            lingers_since: None,
            received_ms: self.now_ms,
            waits: 0,
            used: 0,
            responses: Stream::default(),
        });
        self.slots.len() - 1
    }

    fn receive(&mut self, key: usize, is_multishot: bool) {
        let receiving = &mut self.slots[key].receiving;
        assert_eq!(*receiving, Receiving::No, "a socket has one receive at a time");
        *receiving = if is_multishot { Receiving::Multishot } else { Receiving::Once };
    }

    fn stop_receiving(&mut self, key: usize) {
        let receiving = &mut self.slots[key].receiving;
        if *receiving != Receiving::No {
            *receiving = Receiving::Canceled;
        }
    }

    fn send(&mut self, key: usize, bytes: Vec<u8>, skips_completion: bool) {
        let slot = &mut self.slots[key];
        assert!(slot.sending.is_empty() && !bytes.is_empty(), "a socket has one send at a time");
        slot.responses.follow(&bytes, key, &mut self.made);
        slot.responses.taken += bytes.len();
        (slot.sending, slot.sent, slot.skips_completion) = (bytes, 0, skips_completion);
        slot.sending_since_ms = Some(self.now_ms);
    }

    fn close(&mut self, key: usize, how: Ended) {
        self.note_made();
        match how {
            Ended::Idle => self.due.push((key, Due::CloseIdle)),
            Ended::Cut => self.due.push((key, Due::Cut)),
            Ended::Closed | Ended::Failed => {}
        }
        let slot = &mut self.slots[key];
        (slot.client, slot.ended) = (None, Some(how));
        slot.link.close();
    }
}

/// One end of a link.
pub struct SimulatedSocket<'a> {
    key: usize,
    link: &'a mut Link,
    is_receiving: bool,
    lingers_since: &'a mut Option<(u64, usize)>,
    responses: &'a mut Stream,
    made: &'a mut Vec<Made>,
    rng: &'a mut Rng,
    now_ms: u64,
}

impl Socket for SimulatedSocket<'_> {
    fn receive_now(&mut self, body: &mut Vec<u8>, bytes_max: usize) -> usize {
        assert!(!self.is_receiving, "what the other receive brings would come after this");
        if !self.link.is_readable() || self.link.unread() == 0 {
            return 0;
        }
        match self.link.receive(bytes_max) {
            Received::Bytes(bytes) => {
                body.extend_from_slice(&bytes);
                bytes.len()
            }
            Received::End | Received::Failed => 0,
        }
    }

    fn send_now(&mut self, bytes: &[u8]) -> usize {
        self.responses.follow(bytes, self.key, self.made);
        let count = if self.rng.bool() { bytes.len() } else { self.rng.usize(0..=bytes.len()) };
        let sent = self.link.take_from(&bytes[..count]).unwrap_or(0);
        self.responses.taken += sent;
        sent
    }

    fn shut_down_sending(&mut self) -> bool {
        *self.lingers_since = Some((self.now_ms, self.link.received()));
        self.link.shut_down()
    }

    fn has_unread(&self) -> bool {
        self.link.unread() > 0
    }
}

impl Newcomer for Link {
    fn peer_is_loopback(&self) -> bool {
        true
    }

    fn is_rejected(&self) -> bool {
        Link::is_rejected(self)
    }
}
