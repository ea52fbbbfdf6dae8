//! One client thread: its connections, on epoll, each with a bounded number of requests in flight.
//!
//! Closed loop: a connection sends the next request when it has the answer to an earlier one.
//! Every event is sent once. When a connection ends, events of which nothing was sent go to
//! another one; events that were sent and not answered may have been counted or not: they are
//! unknown, and are not sent again.

use super::response::{self, Malformed, Response};
use super::workload::Workload;
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Events that a thread takes from the common number at once.
const EVENTS_A_GRAB: u64 = 32;
/// Bytes that one read takes at most.
const INPUT_BYTES: usize = 64 * 1024;
/// How often timeouts are looked at.
const TICK: Duration = Duration::from_millis(20);
/// How long a connection that failed rests before it is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// How long a server that closes after each answer may take to do so.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);
/// The longest latency that is told apart, in nanoseconds: an hour.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// A histogram of latencies in nanoseconds, to three significant digits.
pub(super) fn histogram() -> Histogram<u64> {
    // Constant bounds that the constructor accepts.
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).unwrap_or_else(|_| unreachable!())
}

/// What all threads of a run share.
pub(super) struct Run {
    pub(super) workload: Workload,
    pub(super) address: SocketAddr,
    /// The head of every request, up to the value of Content-Length.
    pub(super) head: Vec<u8>,
    /// Requests in flight on a connection.
    pub(super) depth: usize,
    pub(super) timeout: Duration,
    /// The server closes after each answer: one request a connection.
    pub(super) one_shot: AtomicBool,
    /// The first event that no thread has taken.
    pub(super) next: AtomicU64,
    /// Events that have ended, for the progress line.
    pub(super) done: AtomicU64,
    /// Everybody is connected.
    pub(super) start: Barrier,
}

/// What a thread found.
#[derive(Debug)]
pub(super) struct Findings {
    pub(super) acknowledged: u64,
    /// Events that were refused, by status.
    pub(super) refused: BTreeMap<u16, Vec<u64>>,
    /// Events that were sent and not answered.
    pub(super) unknown: Vec<u64>,
    /// Events that could not be sent.
    pub(super) unsent: Vec<u64>,
    /// Latencies of all answered requests, in nanoseconds.
    pub(super) latency: Histogram<u64>,
    /// Connections beyond the first of each worker.
    pub(super) reconnects: u64,
    pub(super) connect_failures: u64,
    pub(super) timeouts: u64,
    /// Connections that the server closed against its word.
    pub(super) broken_keep_alives: u64,
    /// Answers that were none, or that nobody had asked for.
    pub(super) garbled: u64,
    /// CPU time of the thread during the run.
    pub(super) cpu: Duration,
    pub(super) ended: Instant,
}

impl Findings {
    pub(super) fn new() -> Self {
        Findings {
            acknowledged: 0,
            refused: BTreeMap::new(),
            unknown: Vec::new(),
            unsent: Vec::new(),
            latency: histogram(),
            reconnects: 0,
            connect_failures: 0,
            timeouts: 0,
            broken_keep_alives: 0,
            garbled: 0,
            cpu: Duration::ZERO,
            ended: Instant::now(),
        }
    }

    /// Adds what another thread found.
    pub(super) fn merge(&mut self, other: Findings) {
        self.acknowledged += other.acknowledged;
        for (status, events) in other.refused {
            self.refused.entry(status).or_default().extend(events);
        }
        self.unknown.extend(other.unknown);
        self.unsent.extend(other.unsent);
        // Histograms of one kind always add up.
        let _ = self.latency.add(other.latency);
        self.reconnects += other.reconnects;
        self.connect_failures += other.connect_failures;
        self.timeouts += other.timeouts;
        self.broken_keep_alives += other.broken_keep_alives;
        self.garbled += other.garbled;
        self.cpu += other.cpu;
        self.ended = self.ended.max(other.ended);
    }
}

/// A request that waits for its answer.
#[derive(Clone, Copy, Debug)]
struct Flight {
    event: u64,
    sent_at: Instant,
    /// Where the request starts among the bytes of its connection.
    offset: u64,
}

#[derive(Debug)]
enum State {
    Connecting {
        since: Instant,
    },
    Open,
    /// Answered once; the server is expected to close.
    Closing {
        since: Instant,
    },
    /// Failed; to be tried again.
    Down {
        until: Instant,
    },
}

#[derive(Debug)]
struct Connection {
    state: State,
    stream: Option<TcpStream>,
    flights: VecDeque<Flight>,
    /// Requests made and not yet written.
    out: Vec<u8>,
    /// Bytes that were written on this connection.
    written: u64,
    /// The start of an answer.
    input: Vec<u8>,
    answered: u64,
    /// The server has said that it will close.
    says_close: bool,
}

impl Connection {
    fn new() -> Self {
        Connection {
            state: State::Down { until: Instant::now() },
            stream: None,
            flights: VecDeque::new(),
            out: Vec::new(),
            written: 0,
            input: Vec::new(),
            answered: 0,
            says_close: false,
        }
    }
}

/// One client thread.
pub(super) struct Worker<'a> {
    run: &'a Run,
    poll: Poll,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    /// Events taken from the common number, and events to be sent again.
    grabbed: std::ops::Range<u64>,
    again: Vec<u64>,
    in_flight: u64,
    /// When a connection last opened or an answer last came.
    progress: Instant,
    is_started: bool,
    next_tick: Instant,
    findings: Findings,
}

impl<'a> Worker<'a> {
    /// A thread with `connections` connections.
    pub(super) fn new(run: &'a Run, connections: usize) -> io::Result<Self> {
        Ok(Worker {
            run,
            poll: Poll::new()?,
            connections: (0..connections).map(|_| Connection::new()).collect(),
            buffer: vec![0; INPUT_BYTES],
            grabbed: 0..0,
            again: Vec::new(),
            in_flight: 0,
            progress: Instant::now(),
            is_started: false,
            next_tick: Instant::now(),
            findings: Findings::new(),
        })
    }

    /// Connects, waits for the others, sends its part of the events, and says what happened.
    pub(super) fn work(mut self) -> Findings {
        let mut events = Events::with_capacity(1024);
        for index in 0..self.connections.len() {
            self.connect(index);
        }
        let patience = Instant::now() + self.run.timeout;
        while !self.connections.iter().all(|connection| matches!(connection.state, State::Open))
            && Instant::now() < patience
        {
            self.turn(&mut events);
        }
        self.run.start.wait();
        self.is_started = true;
        let cpu_before = thread_cpu();
        self.progress = Instant::now();
        for index in 0..self.connections.len() {
            self.fill_and_send(index, Instant::now());
        }
        while !self.is_done() {
            self.turn(&mut events);
            if self.has_given_up() {
                self.abandon();
                break;
            }
        }
        self.findings.ended = Instant::now();
        self.findings.cpu = thread_cpu().saturating_sub(cpu_before);
        self.findings
    }

    /// Waits for sockets and handles what they have.
    fn turn(&mut self, events: &mut Events) {
        // An interrupted wait is an empty one.
        if self.poll.poll(events, Some(TICK)).is_err() {
            events.clear();
        }
        let before = self.ended_events();
        for event in events.iter() {
            let index = event.token().0;
            if event.is_writable() {
                self.on_writable(index);
            }
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                // With the end behind the bytes, no further event would tell of it.
                self.on_readable(index, event.is_read_closed() || event.is_error());
            }
        }
        self.tick();
        self.run.done.fetch_add(self.ended_events() - before, Ordering::Relaxed);
    }

    fn ended_events(&self) -> u64 {
        self.findings.latency.len() + self.findings.unknown.len() as u64
    }

    fn next_event(&mut self) -> Option<u64> {
        if let Some(event) = self.again.pop() {
            return Some(event);
        }
        if self.grabbed.is_empty() {
            let events = self.run.workload.events;
            let start = self.run.next.fetch_add(EVENTS_A_GRAB, Ordering::Relaxed).min(events);
            self.grabbed = start..(start + EVENTS_A_GRAB).min(events);
        }
        self.grabbed.next()
    }

    fn has_work(&self) -> bool {
        !self.again.is_empty()
            || !self.grabbed.is_empty()
            || self.run.next.load(Ordering::Relaxed) < self.run.workload.events
    }

    fn is_done(&self) -> bool {
        self.in_flight == 0 && !self.has_work()
    }

    /// Nobody is connected, and nobody has been for too long.
    fn has_given_up(&self) -> bool {
        self.in_flight == 0
            && self.progress.elapsed() > self.run.timeout
            && !self.connections.iter().any(|connection| matches!(connection.state, State::Open))
    }

    /// Ends with events that were never sent.
    fn abandon(&mut self) {
        while let Some(event) = self.next_event() {
            self.findings.unsent.push(event);
        }
    }

    fn connect(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        *connection = Connection::new();
        let opened = TcpStream::connect(self.run.address).and_then(|mut stream| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(index), interest)?;
            Ok(stream)
        });
        match opened {
            Ok(stream) => {
                connection.stream = Some(stream);
                connection.state = State::Connecting { since: Instant::now() };
            }
            Err(_) => self.fail_to_connect(index),
        }
    }

    fn fail_to_connect(&mut self, index: usize) {
        self.findings.connect_failures += 1;
        let connection = &mut self.connections[index];
        *connection = Connection::new();
        connection.state = State::Down { until: Instant::now() + RETRY_AFTER };
    }

    fn on_writable(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let Some(stream) = &connection.stream else {
            return;
        };
        if let State::Connecting { .. } = connection.state {
            let has_failed = !matches!(stream.take_error(), Ok(None));
            if has_failed || stream.peer_addr().is_err() {
                if has_failed {
                    self.fail_to_connect(index);
                }
                return;
            }
            // Without it small requests would wait for each other.
            let _ = stream.set_nodelay(true);
            connection.state = State::Open;
            self.progress = Instant::now();
            if self.is_started {
                self.fill_and_send(index, Instant::now());
            }
        } else {
            self.send(index);
        }
    }

    /// Makes requests up to the allowed number in flight, and sends them.
    fn fill_and_send(&mut self, index: usize, now: Instant) {
        let one_shot = self.run.one_shot.load(Ordering::Relaxed);
        loop {
            let connection = &self.connections[index];
            let depth = if one_shot { 1 } else { self.run.depth };
            let may_send = matches!(connection.state, State::Open)
                && connection.flights.len() < depth
                && !connection.says_close
                && !(one_shot && connection.answered > 0);
            if !may_send {
                break;
            }
            let Some(event) = self.next_event() else {
                break;
            };
            let connection = &mut self.connections[index];
            let offset = connection.written + connection.out.len() as u64;
            connection.flights.push_back(Flight { event, sent_at: now, offset });
            self.in_flight += 1;
            self.run.workload.append_request(event, &self.run.head, &mut connection.out);
        }
        self.send(index);
    }

    fn send(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let Some(stream) = &mut connection.stream else {
            return;
        };
        let mut sent = 0;
        while sent < connection.out.len() {
            match stream.write(&connection.out[sent..]) {
                Ok(written) => sent += written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A failed connection is readable, and its end is handled there.
                Err(_) => break,
            }
        }
        connection.written += sent as u64;
        connection.out.drain(..sent);
    }

    /// Takes what has arrived; with `to_end`, up to the end of the connection.
    fn on_readable(&mut self, index: usize, to_end: bool) {
        if matches!(self.connections[index].state, State::Connecting { .. }) {
            return;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(stream) = &mut self.connections[index].stream {
            match stream.read(&mut buffer) {
                Ok(0) => {
                    self.end(index);
                    break;
                }
                Ok(received) => {
                    if self.take(index, &buffer[..received]).is_err() {
                        self.findings.garbled += 1;
                        self.end(index);
                        break;
                    }
                    // epoll(7): a short read has taken all there was.
                    if received < buffer.len() && !to_end {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.end(index);
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    /// Takes received bytes: answers, then the next requests.
    fn take(&mut self, index: usize, received: &[u8]) -> Result<(), Malformed> {
        let now = Instant::now();
        let mut input = std::mem::take(&mut self.connections[index].input);
        let data = if input.is_empty() {
            received
        } else {
            input.extend_from_slice(received);
            &input
        };
        let mut at = 0;
        while at < data.len() {
            let Some(response) = response::read(&data[at..], false)? else {
                break;
            };
            at += response.end;
            self.answer(index, response, now)?;
        }
        let rest = data[at..].to_vec();
        self.connections[index].input = rest;
        self.fill_and_send(index, now);
        Ok(())
    }

    /// Notes the answer to the oldest request in flight.
    fn answer(&mut self, index: usize, response: Response, now: Instant) -> Result<(), Malformed> {
        let connection = &mut self.connections[index];
        let flight = connection.flights.pop_front().ok_or(Malformed)?;
        connection.answered += 1;
        connection.says_close |= response.says_close;
        let is_last = connection.says_close || self.run.one_shot.load(Ordering::Relaxed);
        if is_last && connection.flights.is_empty() {
            connection.state = State::Closing { since: now };
        }
        self.in_flight -= 1;
        self.progress = now;
        let latency = now.saturating_duration_since(flight.sent_at).as_nanos() as u64;
        self.findings.latency.saturating_record(latency.max(1));
        match response.status {
            200..300 => self.findings.acknowledged += 1,
            status => self.findings.refused.entry(status).or_default().push(flight.event),
        }
        Ok(())
    }

    /// Handles the end of a connection, and opens the next one where there is work.
    fn end(&mut self, index: usize) {
        let connection = &self.connections[index];
        // An answer that only the end of the connection ends.
        let last = response::read(&connection.input, true);
        if let Ok(Some(response)) = last
            && self.answer(index, response, Instant::now()).is_err()
        {
            self.findings.garbled += 1;
        }
        let connection = &mut self.connections[index];
        let flights = std::mem::take(&mut connection.flights);
        let was_sent = |flight: &Flight| flight.offset < connection.written;
        if connection.answered > 0 && !connection.says_close && flights.iter().any(was_sent) {
            self.findings.broken_keep_alives += 1;
            self.run.one_shot.store(true, Ordering::Relaxed);
        }
        self.in_flight -= flights.len() as u64;
        for flight in flights {
            match was_sent(&flight) {
                true => self.findings.unknown.push(flight.event),
                false => self.again.push(flight.event),
            }
        }
        self.reconnect(index);
    }

    fn reconnect(&mut self, index: usize) {
        if self.has_work() {
            self.findings.reconnects += 1;
            self.connect(index);
        } else {
            self.connections[index] = Connection::new();
        }
    }

    /// Ends what has waited too long.
    fn tick(&mut self) {
        let now = Instant::now();
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        for index in 0..self.connections.len() {
            let connection = &self.connections[index];
            let too_long = |since: Instant, limit| now.saturating_duration_since(since) > limit;
            match connection.state {
                State::Open => {
                    let oldest = connection.flights.front();
                    if oldest.is_some_and(|flight| too_long(flight.sent_at, self.run.timeout)) {
                        self.findings.timeouts += 1;
                        self.end(index);
                    }
                }
                State::Connecting { since } if too_long(since, self.run.timeout) => {
                    self.fail_to_connect(index);
                }
                State::Closing { since } if too_long(since, CLOSE_PATIENCE) => {
                    self.reconnect(index);
                }
                State::Down { until } if now >= until && (self.has_work() || !self.is_started) => {
                    self.connect(index);
                }
                _ => {}
            }
        }
    }
}

/// CPU time that the calling thread has used.
fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
