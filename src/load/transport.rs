//! Connections that this side opens, on an io_uring: bytes out, bytes in, and what happened. The load
//! client's half of the ring; nothing here knows what the bytes mean.
//!
//! A place of the ring belongs to one connection until the last operation of it has ended, so a
//! completion can never be taken for that of a later one. Who owns what the kernel may touch is as
//! in the ring of the server.

#![allow(unsafe_code, reason = "the kernel reads and writes memory that it was given")]

use crate::engine::ring::buffers::{BUFFER_GROUP, Buffers};
use crate::engine::ring::{ENTER_GETEVENTS, Sizes, build};
use io_uring::IoUring;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{cqueue, opcode};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::mem::ManuallyDrop;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Answers are small and are looked at as soon as they have come.
const SIZES: Sizes = Sizes { submissions: 256, completions: 8192, buffers: 1024 };

/// How often a tick happens. One timer for the ring: a timeout a wait would program the clock.
static TICK: Timespec = Timespec::new().nsec(20_000_000);

/// How long the end waits for operations of connections that were closed.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Marks what is no connection's.
const NOBODY: u32 = u32::MAX;

/// What an operation is. The place follows in the user data.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Connect = 0,
    Receive = 1,
    Send = 2,
    Cancel = 3,
    Tick = 4,
}

impl Kind {
    fn tag(self, place: usize) -> u64 {
        (self as u64) << 32 | place as u64
    }

    fn of(tag: u64) -> (Kind, usize) {
        let kind = match tag >> 32 {
            0 => Kind::Connect,
            1 => Kind::Receive,
            2 => Kind::Send,
            3 => Kind::Cancel,
            _ => Kind::Tick,
        };
        (kind, (tag & 0xffff_ffff) as usize)
    }
}

/// Something that happened to a connection, by its number.
#[derive(Debug)]
pub(super) enum Event {
    /// It is open.
    Connected(usize),
    /// It could not be opened. It is closed.
    Failed(usize, io::Error),
    /// Bytes have come: see [`Transport::bytes`].
    Received(usize, Filled),
    /// The peer has ended it, or it broke. It is closed; of its bytes the kernel had taken so many.
    Ended(usize, u64),
    /// A fiftieth of a second is over.
    Tick,
}

/// A buffer with received bytes, to be given back.
#[derive(Debug)]
pub(super) struct Filled {
    buffer: u16,
    len: usize,
}

/// How to wait for something to happen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    /// Not at all.
    No,
    /// As long as it takes, which is a tick at most.
    One,
    /// So long at most.
    For(Duration),
}

/// A place of the ring, with what its operations need.
struct Link {
    /// The connection's number, or [`NOBODY`] when it is closed and its operations end.
    owner: u32,
    socket: Socket,
    /// Bytes to be sent, and those that the kernel has, with how many of them it took.
    out: Vec<u8>,
    sending: Vec<u8>,
    sent: usize,
    /// Bytes that were ever given to the kernel.
    handed_over: u64,
    is_connecting: bool,
    is_sending: bool,
    is_queued: bool,
    /// Operations under way.
    operations: u32,
}

/// Connections to one server.
pub(super) struct Transport {
    /// Dropped by hand, before its buffers, or leaked with them.
    ring: ManuallyDrop<IoUring>,
    buffers: ManuallyDrop<Buffers>,
    /// The kernel may read it as long as a connect is under way.
    address: ManuallyDrop<Box<SockAddr>>,
    domain: Domain,
    links: Vec<Option<Box<Link>>>,
    vacant: Vec<usize>,
    /// The place of each connection; [`NOBODY`] where it is closed.
    places: Vec<u32>,
    /// Places with bytes to send.
    queue: Vec<usize>,
    completions: Vec<(u64, i32, u32)>,
    /// How many of them were looked at.
    looked_at: usize,
    operations: usize,
    is_enabled: bool,
}

impl Transport {
    /// So many closed connections to `address`. Another thread may use them than the one that
    /// calls this.
    ///
    /// # Errors
    ///
    /// Where the kernel has no such ring: before Linux 6.1, or where io_uring is blocked.
    pub(super) fn new(address: SocketAddr, connections: usize) -> io::Result<Transport> {
        let ring = build(&SIZES, true)?;
        let buffers = Buffers::register(&ring, SIZES.buffers)?;
        Ok(Transport {
            ring: ManuallyDrop::new(ring),
            buffers: ManuallyDrop::new(buffers),
            address: ManuallyDrop::new(Box::new(address.into())),
            domain: Domain::for_address(address),
            links: Vec::new(),
            vacant: Vec::new(),
            places: vec![NOBODY; connections],
            queue: Vec::new(),
            completions: Vec::new(),
            looked_at: 0,
            operations: 0,
            is_enabled: false,
        })
    }

    /// Makes the calling thread the only one that uses the ring, and starts its ticks.
    pub(super) fn enable(&mut self) -> io::Result<()> {
        self.ring.submitter().register_enable_rings()?;
        self.is_enabled = true;
        self.start_tick()
    }

    fn start_tick(&mut self) -> io::Result<()> {
        // The time is static.
        let entry = opcode::Timeout::new(&raw const TICK).build();
        self.push(Kind::Tick.tag(0), entry)
    }

    /// Opens a closed connection.
    ///
    /// # Errors
    ///
    /// Where there is no socket to be had.
    pub(super) fn connect(&mut self, connection: usize) -> io::Result<()> {
        let socket = Socket::new(self.domain, Type::STREAM, Some(Protocol::TCP))?;
        // Small requests must not wait for each other.
        socket.set_tcp_nodelay(true)?;
        let descriptor = Fd(socket.as_raw_fd());
        let link = Link {
            owner: connection as u32,
            socket,
            out: Vec::new(),
            sending: Vec::new(),
            sent: 0,
            handed_over: 0,
            is_connecting: true,
            is_sending: false,
            is_queued: false,
            operations: 0,
        };
        let place = self.vacant.pop().unwrap_or(self.links.len());
        if place == self.links.len() {
            self.links.push(None);
        }
        self.links[place] = Some(Box::new(link));
        self.places[connection] = place as u32;
        // The address is dropped after the ring.
        let (pointer, len) = (self.address.as_ptr().cast(), self.address.len());
        self.begin(Kind::Connect, place, opcode::Connect::new(descriptor, pointer, len).build())
    }

    /// The bytes that a connection sends next, to be appended to; they leave after [`Transport::send`].
    pub(super) fn out(&mut self, connection: usize) -> Option<&mut Vec<u8>> {
        let place = self.places[connection] as usize;
        Some(&mut self.links.get_mut(place)?.as_mut()?.out)
    }

    /// Sends what was appended, once the kernel is next entered.
    pub(super) fn send(&mut self, connection: usize) {
        let place = self.places[connection] as usize;
        if let Some(Some(link)) = self.links.get_mut(place)
            && !link.is_queued
        {
            link.is_queued = true;
            self.queue.push(place);
        }
    }

    /// How many bytes of a connection the kernel was ever given: none behind them can have left.
    pub(super) fn handed_over(&self, connection: usize) -> u64 {
        let link = self.links.get(self.places[connection] as usize).and_then(Option::as_ref);
        link.map_or(0, |link| link.handed_over)
    }

    /// Closes a connection, open or opening. Nothing more happens to it.
    pub(super) fn close(&mut self, connection: usize) {
        let place = std::mem::replace(&mut self.places[connection], NOBODY) as usize;
        if let Some(Some(link)) = self.links.get_mut(place) {
            link.owner = NOBODY;
            // Ends the operations of an open one; an opening one is told so below.
            let _ = link.socket.shutdown(Shutdown::Both);
            let is_opening = link.is_connecting;
            if is_opening {
                let cancel = opcode::AsyncCancel::new(Kind::Connect.tag(place)).build();
                // Where it cannot be queued the connect ends by itself, later.
                let _ = self.begin(Kind::Cancel, place, cancel);
            }
            self.retire(place);
        }
    }

    /// The bytes in a buffer.
    pub(super) fn bytes(&self, filled: &Filled) -> &[u8] {
        self.buffers.filled(filled.buffer, filled.len)
    }

    /// Gives a buffer back to the kernel.
    pub(super) fn give_back(&mut self, filled: Filled) {
        self.buffers.put(filled.buffer);
    }

    /// Gives the kernel what is to be sent, without waiting for anything.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.send_queued()?;
        self.enter(None)
    }

    /// Gives the kernel what is to be sent, waits, and takes in what has completed: it is told by
    /// [`Transport::next_event`]. Returns whether there was anything.
    pub(super) fn turn(&mut self, wait: Wait) -> io::Result<bool> {
        self.send_queued()?;
        self.buffers.publish();
        self.enter(Some(wait))?;
        self.completions.clear();
        self.looked_at = 0;
        self.completions.extend(
            self.ring.completion().map(|done| (done.user_data(), done.result(), done.flags())),
        );
        Ok(!self.completions.is_empty())
    }

    /// Polls for something to happen until `until` without entering the kernel. Returns whether it
    /// did: a turn without a wait takes it in.
    pub(super) fn poll(&mut self, until: Instant) -> bool {
        loop {
            for _ in 0..16 {
                if self.ring.submission().taskrun() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if Instant::now() >= until {
                return false;
            }
        }
    }

    /// The next thing that happened in the last turn.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        while let Some((tag, result, flags)) = self.completions.get(self.looked_at).copied() {
            self.looked_at += 1;
            if let Some(event) = self.complete(tag, result, flags) {
                return Some(event);
            }
        }
        None
    }

    fn complete(&mut self, tag: u64, result: i32, flags: u32) -> Option<Event> {
        let (kind, place) = Kind::of(tag);
        let has_ended = !cqueue::more(flags);
        if has_ended {
            self.operations -= 1;
        }
        if kind == Kind::Tick {
            let restarted = self.start_tick();
            debug_assert!(restarted.is_ok(), "a ring that takes nothing fails its next turn too");
            return Some(Event::Tick);
        }
        let filled = || {
            let buffer = cqueue::buffer_select(flags)?;
            Some(Filled { buffer, len: usize::try_from(result).ok()? })
        };
        let Some(Some(link)) = self.links.get_mut(place) else {
            debug_assert!(false, "a completion of nobody");
            return None;
        };
        link.operations -= u32::from(has_ended);
        let owner = link.owner;
        match kind {
            Kind::Connect => link.is_connecting = false,
            Kind::Send => link.is_sending = false,
            Kind::Receive | Kind::Cancel | Kind::Tick => {}
        }
        if owner == NOBODY {
            if let Some(filled) = filled() {
                self.give_back(filled);
            }
            self.retire(place);
            return None;
        }
        let connection = owner as usize;
        match (kind, u32::try_from(result)) {
            (Kind::Connect, Ok(_)) => {
                self.receive(place);
                Some(Event::Connected(connection))
            }
            (Kind::Connect, Err(_)) => {
                self.close(connection);
                Some(Event::Failed(connection, io::Error::from_raw_os_error(-result)))
            }
            (Kind::Receive, Ok(1..)) => {
                if has_ended {
                    self.receive(place);
                }
                filled().map(|filled| Event::Received(connection, filled))
            }
            (Kind::Receive, Err(_)) if result == -Errno::NOBUFS.raw_os_error() => {
                // All of them are here, and are given back before the next turn.
                self.receive(place);
                None
            }
            // The receive tells of the end, behind the answers that have come.
            (Kind::Send, Err(_)) => None,
            (Kind::Receive, _) => {
                let handed_over = link.handed_over;
                self.close(connection);
                Some(Event::Ended(connection, handed_over))
            }
            (Kind::Send, Ok(sent)) => {
                link.sent += sent as usize;
                if (link.sent < link.sending.len() || !link.out.is_empty()) && !link.is_queued {
                    link.is_queued = true;
                    self.queue.push(place);
                }
                None
            }
            (Kind::Cancel | Kind::Tick, _) => None,
        }
    }

    fn receive(&mut self, place: usize) {
        let Some(Some(link)) = self.links.get(place) else { return };
        let entry = opcode::RecvMulti::new(Fd(link.socket.as_raw_fd()), BUFFER_GROUP).build();
        let begun = self.begin(Kind::Receive, place, entry);
        debug_assert!(begun.is_ok(), "a ring that takes nothing fails its next turn too");
    }

    /// Queues the sends that are wanted.
    fn send_queued(&mut self) -> io::Result<()> {
        let queue = std::mem::take(&mut self.queue);
        for place in &queue {
            let Some(Some(link)) = self.links.get_mut(*place) else { continue };
            link.is_queued = false;
            if link.is_sending || link.is_connecting || link.owner == NOBODY {
                continue;
            }
            if link.sent == link.sending.len() {
                link.sending.clear();
                link.sent = 0;
                std::mem::swap(&mut link.sending, &mut link.out);
                link.handed_over += link.sending.len() as u64;
            }
            let rest = &link.sending[link.sent..];
            if rest.is_empty() {
                continue;
            }
            link.is_sending = true;
            // Nobody changes or frees `sending` until the send has completed: the link stays.
            let entry = opcode::Send::new(
                Fd(link.socket.as_raw_fd()),
                rest.as_ptr(),
                rest.len().min(u32::MAX as usize) as u32,
            )
            .flags(rustix::net::SendFlags::NOSIGNAL.bits() as i32)
            .build();
            self.begin(Kind::Send, *place, entry)?;
        }
        // Its room is kept.
        let mut queue = queue;
        queue.clear();
        debug_assert!(self.queue.is_empty(), "nothing is queued while the queue is worked on");
        self.queue = queue;
        Ok(())
    }

    fn begin(
        &mut self,
        kind: Kind,
        place: usize,
        entry: io_uring::squeue::Entry,
    ) -> io::Result<()> {
        self.push(kind.tag(place), entry)?;
        if let Some(Some(link)) = self.links.get_mut(place) {
            link.operations += 1;
        }
        Ok(())
    }

    /// Queues an operation of memory that outlives it.
    fn push(&mut self, tag: u64, entry: io_uring::squeue::Entry) -> io::Result<()> {
        let entry = entry.user_data(tag);
        for _ in 0..2 {
            // SAFETY: each caller says why what its entry points to outlives the operation.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                self.operations += 1;
                return Ok(());
            }
            self.enter(None)?;
        }
        Err(io::Error::other("the kernel takes nothing from a full submission queue"))
    }

    /// Submits, and waits where a wait is given.
    fn enter(&mut self, wait: Option<Wait>) -> io::Result<()> {
        let queued = self.ring.submission().len() as u32;
        let submitter = self.ring.submitter();
        let entered = match wait {
            None if queued == 0 => Ok(0),
            // SAFETY: no argument is passed, and the ring is ours.
            None => unsafe { submitter.enter::<u64>(queued, 0, 0, None) },
            // SAFETY: as above.
            Some(Wait::No) => unsafe { submitter.enter::<u64>(queued, 0, ENTER_GETEVENTS, None) },
            Some(Wait::One) => submitter.submit_and_wait(1),
            Some(Wait::For(time)) => {
                let time = Timespec::from(time);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
        };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                // Late, interrupted, or with completions to take first: the next turn goes on.
                Some(Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN | Errno::NOMEM) => {
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    /// Frees a place whose connection is closed and whose operations have all ended.
    fn retire(&mut self, place: usize) {
        if let Some(link) = &self.links[place]
            && link.owner == NOBODY
            && link.operations == 0
        {
            self.links[place] = None;
            self.vacant.push(place);
        }
    }
}

impl Drop for Transport {
    /// Ends everything. What does not end in time keeps its memory.
    fn drop(&mut self) {
        for connection in 0..self.places.len() {
            self.close(connection);
        }
        let patience = Instant::now() + LAST_WAIT;
        // The tick goes on, and points to nothing that is freed.
        while self.is_enabled && self.operations > 1 && Instant::now() < patience {
            if self.turn(Wait::One).is_err() {
                break;
            }
            while self.next_event().is_some() {}
        }
        if self.operations > 1 {
            std::mem::take(&mut self.links).into_iter().for_each(std::mem::forget);
            return;
        }
        // SAFETY: neither is used again, and nothing is under way that could touch the others.
        unsafe {
            ManuallyDrop::drop(&mut self.ring);
            ManuallyDrop::drop(&mut self.buffers);
            ManuallyDrop::drop(&mut self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    /// Sends back what it gets, a connection a thread; every so many is closed after
    /// a few bytes.
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

    /// What the test knows of a connection.
    #[derive(Default)]
    struct Known {
        is_open: bool,
        is_opening: bool,
        sent: Vec<u8>,
        received: usize,
    }

    /// Random connects, sends small and far beyond a socket's buffer, and closes at any moment: what
    /// comes back on a connection is what was sent on it since it was opened, and nothing is told
    /// of one that is closed.
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
                        // So little that a send takes a part of its bytes.
                        let link = wire.links[wire.places[index] as usize].as_ref().unwrap();
                        link.socket.set_send_buffer_size(4096).unwrap();
                    }
                    Event::Failed(_, error) => panic!("{error}"),
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
        // Whatever is still under way ends with the ring.
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
            let error = loop {
                wire.turn(Wait::One).unwrap();
                if let Some(Event::Failed(0, error)) = wire.next_event() {
                    break error;
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        }
    }

    #[test]
    fn a_wait_ends_in_its_time_and_ticks_go_on() {
        let mut wire = Transport::new(echo(0), 1).unwrap();
        wire.enable().unwrap();
        let started = Instant::now();
        wire.turn(Wait::For(Duration::from_millis(5))).unwrap();
        assert!((4..19).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
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
