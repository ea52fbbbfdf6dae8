//! The load client's transport: it opens connections, sends and receives bytes, and reports the events on the
//! connections. It does not know what the bytes mean.

use crate::uring::{self, Issuer, Key, Sizes, Uring};
pub(super) use crate::uring::{Filled, Wait};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The sizes of the ring. Responses are small, and are parsed as soon as they arrive.
const SIZES: Sizes = Sizes { submissions: 256, completions: 8192, buffers: 1024 };

/// The interval between ticks. One timer serves all waits: with a timeout per wait, the kernel would have to program a
/// timer each time.
pub(super) const TICK: Duration = Duration::from_millis(20);

/// Something that happened to a connection, by its number.
#[derive(Debug)]
pub(super) enum Event {
    /// It is open.
    Connected(usize),
    /// It could not be opened, for this reason. It is closed.
    Failed(usize, io::Error),
    /// Bytes have arrived: see [`Transport::bytes`].
    Received(usize, Filled),
    /// The peer has ended it, or it broke. It is closed. The number counts the bytes that the kernel had been given.
    Ended(usize, u64),
    /// A fiftieth of a second has passed.
    Tick,
}

/// A connection, open or opening.
struct Link {
    connection: usize,
    /// Bytes to send.
    out: Vec<u8>,
    /// An empty buffer with the capacity of the last send.
    spare: Vec<u8>,
    /// The total number of bytes that were given to the kernel.
    handed_over: u64,
    is_connected: bool,
    is_queued: bool,
}

/// Connections to one server.
pub(super) struct Transport {
    ring: Uring<Link>,
    address: SockAddr,
    domain: Domain,
    /// The slot of each connection; `None` if it is closed.
    keys: Vec<Option<Key>>,
    /// Slots with bytes to send.
    queue: Vec<Key>,
}

impl Transport {
    /// Creates a transport with a number of closed connections to `address`. The caller may hand it to another thread:
    /// see [`Transport::enable`].
    ///
    /// # Errors
    ///
    /// Fails if the kernel does not have such a ring (before Linux 6.1), or if io_uring is blocked.
    pub(super) fn new(address: SocketAddr, connections: usize) -> io::Result<Transport> {
        Ok(Transport {
            ring: Uring::new(&SIZES, Issuer::Later)?,
            address: address.into(),
            domain: Domain::for_address(address),
            keys: vec![None; connections],
            queue: Vec::new(),
        })
    }

    /// Makes the calling thread the only user of the transport, and starts its ticks.
    pub(super) fn enable(&mut self) -> io::Result<()> {
        self.ring.enable()?;
        self.ring.set_timer(TICK);
        Ok(())
    }

    /// Opens a closed connection.
    ///
    /// # Errors
    ///
    /// Fails if the process or the system cannot create another socket.
    pub(super) fn connect(&mut self, connection: usize) -> io::Result<()> {
        assert!(self.keys[connection].is_none(), "the connection is open");
        let socket = Socket::new(self.domain, Type::STREAM, Some(Protocol::TCP))?;
        // Small requests must not wait for each other.
        socket.set_tcp_nodelay(true)?;
        let link = Link {
            connection,
            out: Vec::new(),
            spare: Vec::new(),
            handed_over: 0,
            is_connected: false,
            is_queued: false,
        };
        let key = self.ring.insert(socket, link);
        self.keys[connection] = Some(key);
        self.ring.connect(key, self.address.clone());
        Ok(())
    }

    /// Returns the buffer that the next bytes of a connection are appended to. They are sent after [`Transport::send`].
    /// Returns `None` if the connection is closed.
    pub(super) fn out(&mut self, connection: usize) -> Option<&mut Vec<u8>> {
        let key = self.keys[connection]?;
        self.ring.get_mut(key).map(|link| &mut link.out)
    }

    /// Sends the appended bytes when the kernel is next entered.
    pub(super) fn send(&mut self, connection: usize) {
        if let Some(key) = self.keys[connection] {
            self.queue_up(key);
        }
    }

    /// Returns the number of connections whose bytes the kernel gets when it is next entered.
    #[inline]
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Returns the number of bytes of a connection that the kernel was given. No later byte can have been sent.
    pub(super) fn handed_over(&mut self, connection: usize) -> u64 {
        let key = self.keys[connection];
        key.and_then(|key| self.ring.get_mut(key)).map_or(0, |link| link.handed_over)
    }

    /// Closes a connection that is open or opening. The transport does not report further events on it.
    pub(super) fn close(&mut self, connection: usize) {
        if let Some(key) = self.keys[connection].take() {
            self.ring.close(key);
        }
    }

    /// Returns the bytes in a buffer.
    pub(super) fn bytes(&self, filled: &Filled) -> &[u8] {
        self.ring.bytes(filled)
    }

    /// Gives a buffer back to the kernel.
    pub(super) fn give_back(&mut self, filled: Filled) {
        self.ring.give_back(filled);
    }

    /// Submits pending sends without waiting.
    ///
    /// # Errors
    ///
    /// Fails if the ring is broken.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.send_queued();
        self.ring.submit()
    }

    /// Submits pending sends, waits, and collects completions, which [`Transport::next_event`] then reports. Returns
    /// whether there were any. The events of the previous turn must have been taken.
    ///
    /// # Errors
    ///
    /// Fails if the ring is broken.
    pub(super) fn turn(&mut self, wait: Wait) -> io::Result<bool> {
        self.send_queued();
        Ok(self.ring.iterate(wait)? > 0)
    }

    /// Polls for an event until `until` without entering the kernel. Returns whether there is an event, which a turn
    /// without a wait then collects.
    pub(super) fn poll(&mut self, until: Instant) -> bool {
        self.ring.poll(until)
    }

    /// Returns the next event of the last turn.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        while let Some(event) = self.ring.next_event() {
            if let Some(event) = self.translate(event) {
                return Some(event);
            }
        }
        None
    }

    fn translate(&mut self, event: uring::Event) -> Option<Event> {
        match event {
            uring::Event::Connected(key) => {
                let link = self.ring.get_mut(key)?;
                link.is_connected = true;
                let connection = link.connection;
                self.ring.receive_multishot(key);
                self.queue_up(key);
                Some(Event::Connected(connection))
            }
            uring::Event::ConnectFailed(key, error) => {
                let connection = self.ring.get_mut(key)?.connection;
                self.close(connection);
                Some(Event::Failed(connection, error))
            }
            uring::Event::Received(key, filled) => {
                let slot = self.ring.slot(key)?;
                let (connection, is_receiving) = (slot.data.connection, slot.is_receiving);
                if !is_receiving {
                    self.ring.receive_multishot(key);
                }
                Some(Event::Received(connection, filled))
            }
            // If buffers ran out, all of them are returned before the next turn.
            uring::Event::ReceiveStopped(key, _) => {
                self.ring.receive_multishot(key);
                None
            }
            uring::Event::PeerClosed(key) | uring::Event::ReceiveFailed(key) => {
                let link = self.ring.get_mut(key)?;
                let (connection, handed_over) = (link.connection, link.handed_over);
                self.close(connection);
                Some(Event::Ended(connection, handed_over))
            }
            uring::Event::Sent(key, mut sent) => {
                sent.clear();
                let link = self.ring.get_mut(key)?;
                link.spare = sent;
                if !link.out.is_empty() {
                    self.queue_up(key);
                }
                None
            }
            // The receive operation reports the end, after the responses that have arrived.
            uring::Event::SendFailed(_) => None,
            uring::Event::Timer => {
                self.ring.set_timer(TICK);
                Some(Event::Tick)
            }
            uring::Event::Accepted(_)
            | uring::Event::AcceptStopped { .. }
            | uring::Event::Woken => unreachable!("a client neither listens nor watches"),
        }
    }

    fn queue_up(&mut self, key: Key) {
        if let Some(link) = self.ring.get_mut(key)
            && !std::mem::replace(&mut link.is_queued, true)
        {
            self.queue.push(key);
        }
    }

    /// Starts the pending sends.
    fn send_queued(&mut self) {
        let mut queue = std::mem::take(&mut self.queue);
        for key in queue.drain(..) {
            let Some(slot) = self.ring.slot(key) else { continue };
            let (link, is_sending) = (slot.data, slot.is_sending);
            link.is_queued = false;
            if is_sending || !link.is_connected || link.out.is_empty() {
                continue;
            }
            let spare = std::mem::take(&mut link.spare);
            let bytes = std::mem::replace(&mut link.out, spare);
            link.handed_over += bytes.len() as u64;
            self.ring.send(key, bytes);
        }
        // Keep the capacity of the queue.
        self.queue = queue;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    /// Starts a server that echoes, with a thread per connection, and closes some connections after a few bytes.
    fn echo(closes_every: usize) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let mut stream: TcpStream = stream.unwrap();
                let closes = closes_every > 0 && number % closes_every == closes_every - 1;
                std::thread::spawn(move || {
                    let mut buffer = [0; 20_000];
                    while let Ok(received @ 1..) = stream.read(&mut buffer) {
                        if stream.write_all(&buffer[..received]).is_err() || closes {
                            return;
                        }
                    }
                });
            }
        });
        address
    }

    /// The test's model of a connection.
    #[derive(Default)]
    struct Known {
        is_open: bool,
        is_opening: bool,
        sent: Vec<u8>,
        received: usize,
    }

    /// Connects, sends, and closes at random, with sends that are small or far larger than a socket's buffer. Each
    /// connection must get back exactly the bytes that were sent on it since it was opened, and no event may be
    /// reported for a closed connection.
    #[test]
    fn every_connection_gets_its_own_bytes_whatever_happens_to_others() {
        let mut random = fastrand::Rng::with_seed(11);
        let connections = 24;
        let mut wire = Transport::new(echo(5), connections).unwrap();
        wire.enable().unwrap();
        let mut all: Vec<Known> = (0..connections).map(|_| Known::default()).collect();
        let (mut bytes, mut ended) = (0, 0);
        for _ in 0..6000 {
            let index = random.usize(0..connections);
            let known = &mut all[index];
            match random.u8(0..20) {
                0 if known.is_open || known.is_opening => {
                    wire.close(index);
                    *known = Known::default();
                }
                1..8 if known.is_open && known.sent.len() < 2_000_000 => {
                    let len = if random.u8(0..20) == 0 { 400_000 } else { random.usize(1..200) };
                    let piece: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
                    wire.out(index).unwrap().extend_from_slice(&piece);
                    wire.send(index);
                    known.sent.extend(piece);
                }
                8 if !known.is_open && !known.is_opening => {
                    wire.connect(index).unwrap();
                    *known = Known { is_opening: true, ..Known::default() };
                }
                _ => {}
            }
            wire.turn(Wait::No).unwrap();
            while let Some(event) = wire.next_event() {
                match event {
                    Event::Connected(index) => {
                        assert!(all[index].is_opening && !all[index].is_open);
                        (all[index].is_open, all[index].is_opening) = (true, false);
                        // The buffer is small enough that a send takes only a part of its bytes.
                        let slot = wire.ring.slot(wire.keys[index].unwrap()).unwrap();
                        slot.socket.set_send_buffer_size(4096).unwrap();
                    }
                    Event::Failed(..) => panic!("the listener is there"),
                    Event::Received(index, filled) => {
                        let known = &mut all[index];
                        assert!(known.is_open, "of a closed connection");
                        let got = wire.bytes(&filled);
                        let end = known.received + got.len();
                        assert_eq!(got, &known.sent[known.received..end]);
                        known.received = end;
                        bytes += got.len();
                        wire.give_back(filled);
                    }
                    Event::Ended(index, handed_over) => {
                        assert!(all[index].is_open && handed_over <= all[index].sent.len() as u64);
                        assert!(handed_over >= all[index].received as u64);
                        all[index] = Known::default();
                        ended += 1;
                    }
                    Event::Tick => {}
                }
            }
        }
        assert!(bytes > 100_000 && ended > 3, "{bytes} bytes, {ended} ended");
        // Anything still in progress ends with the ring.
        drop(wire);
    }

    #[test]
    fn a_refused_connect_is_told_of_and_can_be_tried_again() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let mut wire = Transport::new(address, 1).unwrap();
        wire.enable().unwrap();
        for _ in 0..3 {
            wire.connect(0).unwrap();
            let mut has_failed = false;
            while !has_failed {
                wire.turn(Wait::One).unwrap();
                while let Some(event) = wire.next_event() {
                    has_failed |= matches!(
                        event,
                        Event::Failed(0, error) if error.kind() == io::ErrorKind::ConnectionRefused
                    );
                }
            }
        }
    }

    #[test]
    fn a_wait_ends_in_its_time_and_ticks_go_on() {
        let wait = || {
            let mut wire = Transport::new(echo(0), 1).unwrap();
            wire.enable().unwrap();
            let started = Instant::now();
            wire.turn(Wait::For(Duration::from_millis(5))).unwrap();
            assert!(started.elapsed().as_millis() >= 4, "{:?}", started.elapsed());
            (wire, started)
        };
        // A busy machine may run this thread later, but not each time.
        let in_time =
            (0..9).map(|_| wait()).find(|(_, started)| started.elapsed().as_millis() < 19);
        let (mut wire, started) = in_time.expect("the wait ends before the first tick");
        let mut ticks = 0;
        while started.elapsed() < Duration::from_millis(210) {
            wire.turn(Wait::One).unwrap();
            while let Some(Event::Tick) = wire.next_event() {
                ticks += 1;
            }
        }
        assert!((5..=11).contains(&ticks), "{ticks}");
    }
}
