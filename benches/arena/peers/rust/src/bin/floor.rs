//! The floor: the cost of the kernel alone. One raw ring per thread (multishot accept and receive, a buffer ring,
//! DEFER_TASKRUN) responds to every end of a request head that it sees and counts nothing.
//!
//! It is not a server for the challenge: it recognizes a method and path only at the start of a
//! receive, responds before the body of a request has arrived, and its totals are always zero.

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};
use memchr::memmem;
use socket2::{Domain, Socket, Type};
use std::alloc::{Layout, alloc_zeroed};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicU16, Ordering::Release};

const COUNTED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// The beginnings of receives that have a fixed response, and those responses. Everything else is an event.
const FIXED: [(&[u8], &[u8]); 3] = [
    (
        b"GET /stats ",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 55\r\n\r\n\
          {\"totalRequests\":0,\"uniqueUsers\":0,\"sum\":0.0,\"avg\":0.0}",
    ),
    (
        b"GET /health ",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n\
          {\"status\":\"healthy\"}",
    ),
    (
        b"POST /reset ",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 18\r\n\r\n\
          {\"status\":\"reset\"}",
    ),
];

const HEAD_END: &[u8] = b"\r\n\r\n";
const BACKLOG: i32 = 4096;
const SUBMISSIONS: u32 = 4096;
const COMPLETIONS: u32 = 16_384;

/// A power of two, as the kernel requires for a buffer ring.
const BUFFERS: u16 = 2048;
const BUFFER_BYTES: usize = 4096;
const PAGE_BYTES: usize = 4096;

/// The kind of a completion, above the descriptor in the lower half of its `user_data`.
const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;

/// A ring of buffers. The kernel picks from them as bytes arrive.
struct Buffers {
    entries: *mut BufRingEntry,
    bytes: Vec<u8>,
    tail: u16,
}

impl Buffers {
    fn register(ring: &IoUring) -> io::Result<Buffers> {
        let size = usize::from(BUFFERS) * size_of::<BufRingEntry>();
        let layout = Layout::from_size_align(size, PAGE_BYTES).map_err(io::Error::other)?;
        // SAFETY: the layout is not empty; the memory is never freed, because the kernel keeps
        // using it until the process ends.
        let entries = unsafe { alloc_zeroed(layout) }.cast::<BufRingEntry>();
        assert!(!entries.is_null());
        // SAFETY: as above, and `entries` is as large as the ring that is registered.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries as u64, BUFFERS, 0, 0)? };
        let bytes = vec![0; usize::from(BUFFERS) * BUFFER_BYTES];
        let mut buffers = Buffers { entries, bytes, tail: 0 };
        (0..BUFFERS).for_each(|id| buffers.give(id));
        Ok(buffers)
    }

    fn filled(&self, id: u16, length: usize) -> &[u8] {
        &self.bytes[usize::from(id) * BUFFER_BYTES..][..length]
    }

    fn give(&mut self, id: u16) {
        let buffer = self.bytes[usize::from(id) * BUFFER_BYTES..].as_mut_ptr();
        // SAFETY: the index is below BUFFERS, and the kernel reads an entry only after the tail is past it, which the release
        // below orders.
        unsafe {
            let entry = &mut *self.entries.add(usize::from(self.tail % BUFFERS));
            entry.set_addr(buffer as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.entries).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Release);
        }
    }
}

/// A connection. It is dropped, and so closed, only after the kernel's last reference to it is gone.
struct Connection {
    socket: Socket,
    /// The last bytes received, for a head whose end is split over two receives.
    last: Vec<u8>,
    pending: Vec<u8>,
    sending: Vec<u8>,
    sent: usize,
    closing: bool,
}

impl Connection {
    fn new(socket: Socket) -> Connection {
        let (last, pending, sending) = (Vec::new(), Vec::new(), Vec::new());
        Connection { socket, last, pending, sending, sent: 0, closing: false }
    }

    fn is_sending(&self) -> bool {
        self.sent < self.sending.len()
    }

    fn respond(&mut self, bytes: &[u8]) {
        if let Some((_, fixed)) = FIXED.iter().find(|(start, _)| bytes.starts_with(start)) {
            self.pending.extend_from_slice(fixed);
            self.last.clear();
            return;
        }
        let kept = HEAD_END.len() - 1;
        self.last.extend_from_slice(&bytes[..bytes.len().min(kept)]);
        let mut heads = memmem::find_iter(bytes, HEAD_END).count();
        heads += memmem::find_iter(&self.last, HEAD_END).count();
        (0..heads).for_each(|_| self.pending.extend_from_slice(COUNTED));
        if bytes.len() >= kept {
            self.last.clear();
            self.last.extend_from_slice(&bytes[bytes.len() - kept..]);
        } else {
            self.last.drain(..self.last.len().saturating_sub(kept));
        }
    }

    /// Returns the next send, if there is something to send and no send is in flight.
    fn next_send(&mut self) -> Option<squeue::Entry> {
        if !self.is_sending() {
            self.sending.clear();
            self.sent = 0;
            std::mem::swap(&mut self.sending, &mut self.pending);
        }
        let rest = &self.sending[self.sent..];
        let descriptor = self.socket.as_raw_fd();
        let send = opcode::Send::new(Fd(descriptor), rest.as_ptr(), rest.len() as u32);
        let send = send.flags(libc::MSG_NOSIGNAL).build();
        (!rest.is_empty()).then(|| send.user_data(tagged(SEND, descriptor)))
    }
}

fn tagged(kind: u64, descriptor: i32) -> u64 {
    kind << 32 | u64::from(descriptor.unsigned_abs())
}

/// One thread's ring, its listener, and its connections.
struct Loop {
    ring: IoUring,
    listener: Socket,
    buffers: Buffers,
    /// Indexed by descriptor: the kernel assigns the lowest free one, so there are few gaps.
    connections: Vec<Option<Connection>>,
}

impl Loop {
    fn new(port: u16) -> io::Result<Loop> {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        listener.set_reuse_address(true)?;
        listener.set_reuse_port(true)?;
        listener.bind(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into())?;
        listener.listen(BACKLOG)?;
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let buffers = Buffers::register(&ring)?;
        Ok(Loop { ring, listener, buffers, connections: Vec::new() })
    }

    fn run(mut self) -> io::Result<()> {
        self.accept()?;
        let mut completions = Vec::with_capacity(COMPLETIONS as usize);
        loop {
            match self.ring.submit_and_wait(1) {
                // A tracer that attaches interrupts the wait.
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            completions.extend(self.ring.completion());
            for completion in completions.drain(..) {
                let descriptor = completion.user_data() as u32 as i32;
                match completion.user_data() >> 32 {
                    ACCEPT => self.accepted(&completion)?,
                    RECEIVE => self.received(descriptor, &completion)?,
                    _ => self.sent(descriptor, completion.result())?,
                }
            }
        }
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: an entry points to a `sending` buffer, which its connection does not change
        // until the send has completed.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        let accept = opcode::AcceptMulti::new(Fd(self.listener.as_raw_fd())).build();
        self.push(&accept.user_data(tagged(ACCEPT, 0)))
    }

    fn receive(&mut self, descriptor: i32) -> io::Result<()> {
        let receive = opcode::RecvMulti::new(Fd(descriptor), 0).build();
        self.push(&receive.user_data(tagged(RECEIVE, descriptor)))
    }

    fn accepted(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        if !cqueue::more(completion.flags()) {
            self.accept()?;
        }
        let descriptor = completion.result();
        if descriptor < 0 {
            return Ok(());
        }
        // SAFETY: the kernel just returned this descriptor, and nothing else owns it.
        let socket = unsafe { Socket::from_raw_fd(descriptor) };
        socket.set_tcp_nodelay(true)?;
        let slot = descriptor as usize;
        if self.connections.len() <= slot {
            self.connections.resize_with(slot + 1, || None);
        }
        self.connections[slot] = Some(Connection::new(socket));
        self.receive(descriptor)
    }

    fn received(&mut self, descriptor: i32, completion: &cqueue::Entry) -> io::Result<()> {
        let Some(connection) = &mut self.connections[descriptor as usize] else { return Ok(()) };
        let length = usize::try_from(completion.result()).unwrap_or(0);
        let buffer = cqueue::buffer_select(completion.flags());
        let mut send = None;
        if let (Some(buffer), 1..) = (buffer, length) {
            connection.respond(self.buffers.filled(buffer, length));
            if !connection.is_sending() {
                send = connection.next_send();
            }
        }
        if let Some(buffer) = buffer {
            self.buffers.give(buffer);
        }
        if let Some(send) = send {
            self.push(&send)?;
        }
        if cqueue::more(completion.flags()) {
            return Ok(());
        }
        // Running out of buffers is not the peer's fault: they are returned within this iteration.
        if length > 0 || completion.result() == -libc::ENOBUFS {
            return self.receive(descriptor);
        }
        self.close(descriptor);
        Ok(())
    }

    fn sent(&mut self, descriptor: i32, result: i32) -> io::Result<()> {
        let Some(connection) = &mut self.connections[descriptor as usize] else { return Ok(()) };
        match usize::try_from(result) {
            Ok(length) => connection.sent += length,
            Err(_) => {
                // The peer has gone: nothing more is sent, and its receive ends by itself.
                connection.pending.clear();
                connection.sent = connection.sending.len();
            }
        }
        match connection.next_send() {
            Some(send) => self.push(&send)?,
            None if connection.closing => self.close(descriptor),
            None => {}
        }
        Ok(())
    }

    fn close(&mut self, descriptor: i32) {
        let slot = &mut self.connections[descriptor as usize];
        if let Some(connection) = slot {
            connection.closing = true;
            if !connection.is_sending() {
                *slot = None;
            }
        }
    }
}

fn serve(port: u16) {
    if let Err(error) = Loop::new(port).and_then(Loop::run) {
        eprintln!("floor: {error}");
        std::process::exit(1);
    }
}

fn main() {
    let (port, threads) = arena_peers::arguments();
    let others: Vec<_> = (1..threads).map(|_| std::thread::spawn(move || serve(port))).collect();
    serve(port);
    drop(others);
}
