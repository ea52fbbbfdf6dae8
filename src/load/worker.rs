//! One client thread: its connections, on the ring, each with a bounded number of requests in flight.
//!
//! Every event is sent once. When a connection ends, events of which nothing was sent go to
//! another one; events that were sent and not answered may have been counted or not: they are
//! unknown, and are not sent again.

use super::latency::Slice;
use super::ledger::Ledger;
use super::response::{self, Malformed, Response};
use super::schedule::{Due, Schedule};
use super::transport::{Event, Filled, Transport, Wait};
use super::workload::Workload;
use crossbeam_utils::CachePadded;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// How long a connection that failed rests before it is tried again.
const RETRY_AFTER_NS: u64 = 20_000_000;
/// How long a server that closes after each answer may take to do so.
const CLOSE_PATIENCE_NS: u64 = 1_000_000_000;
/// Requests that are given to the kernel together. It sends them one by one, about 2 µs each, and
/// their send time is read once for all of them.
const SENDS_A_SUBMIT: usize = 16;
/// How often every connection may time out without a single answer before a thread gives up.
const GIVE_UP_ROUNDS: usize = 3;
/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// From this time before an event is due on, an open loop polls: a sleep would end too late.
const POLL_NS: u64 = 100_000;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// How far a thread is. Written by it alone.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Requests that may have left. Written before they do.
    pub(super) sent: AtomicU64,
    pub(super) acknowledged: AtomicU64,
    /// Requests that have ended, with an answer or without.
    pub(super) ended: AtomicU64,
    pub(super) connect_failures: AtomicU64,
}

/// What all threads of a run share.
pub(super) struct Run {
    pub(super) workload: Workload,
    pub(super) address: SocketAddr,
    /// The head of every request, up to the value of Content-Length.
    pub(super) head: Vec<u8>,
    /// Requests in flight on a connection.
    pub(super) depth: usize,
    /// Requests a second of an open loop; `None` is a closed loop.
    pub(super) rate: Option<u64>,
    pub(super) timeout: Duration,
    /// Events to send before those of the workload, which are measured.
    pub(super) warm_up: u64,
    pub(super) threads: usize,
    /// The server closes after each answer: one request a connection.
    pub(super) one_shot: AtomicBool,
    /// The server cannot be talked to: nothing more is to be sent.
    pub(super) is_called_off: AtomicBool,
    /// The first event of the warm-up, and of the run, that no thread has taken.
    pub(super) next: [AtomicU64; 2],
    pub(super) progress: Vec<CachePadded<Progress>>,
    /// Everybody is ready for the next phase, and everybody may start it: waited for twice.
    pub(super) gate: Barrier,
}

/// What a thread did in a phase.
#[derive(Debug)]
pub(super) struct Findings {
    pub(super) ledger: Ledger,
    /// Requests of an open loop that were due while every connection was taken.
    pub(super) held_up: u64,
    /// CPU time of the thread, without the time that it polled.
    pub(super) busy: Duration,
    /// All of its CPU time.
    pub(super) cpu: Duration,
    pub(super) ended: Instant,
    /// Why the ring failed, if it did.
    pub(super) failure: Option<String>,
}

/// A request that waits for its answer.
#[derive(Clone, Copy, Debug)]
struct Flight {
    event: u64,
    /// When it was to be sent, and when it was.
    due_ns: u64,
    sent_ns: u64,
    /// Where the request starts among the bytes of its connection.
    offset: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting {
        since_ns: u64,
    },
    Open,
    /// Answered once; the server is expected to close.
    Closing {
        since_ns: u64,
    },
    /// Failed, or not needed; to be tried again.
    Down {
        until_ns: u64,
    },
}

/// Who has ended a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Peer,
    Us,
}

#[derive(Debug)]
struct Connection {
    state: State,
    flights: VecDeque<Flight>,
    /// Bytes of the requests that were made.
    made: u64,
    /// The start of an answer.
    input: Vec<u8>,
    answered: u64,
    /// The server has said that it will close.
    says_close: bool,
    /// It is among the free ones.
    is_listed: bool,
}

impl Connection {
    fn down(until_ns: u64) -> Self {
        Connection {
            state: State::Down { until_ns },
            flights: VecDeque::new(),
            made: 0,
            input: Vec::new(),
            answered: 0,
            says_close: false,
            is_listed: false,
        }
    }
}

/// One client thread.
pub(super) struct Worker<'a> {
    run: &'a Run,
    thread: usize,
    /// Before `wire`: the run is over before its connections are closed.
    slices: Sender<Box<Slice>>,
    wire: Transport,
    connections: Vec<Connection>,
    schedule: Schedule<'a>,
    /// Events that were given back by a connection that broke.
    waiting: VecDeque<Due>,
    /// Connections that take another request, those that waited longest first.
    free: VecDeque<usize>,
    in_flight: u64,
    /// Requests made since the last were given to the kernel.
    unsubmitted: usize,
    started: Instant,
    /// The clock as of this turn, and as of the last submission, in nanoseconds since the start.
    now_ns: u64,
    stamp_ns: u64,
    /// When a connection last opened or an answer last came.
    progress_ns: u64,
    is_running: bool,
    /// The warm-up is over.
    is_measured: bool,
    /// Until then no connection was free, so that nobody could have been sent.
    blocked_ns: u64,
    /// Requests given up since the last answer.
    given_up: usize,
    sent: u64,
    ended: u64,
    polled: Duration,
    held_up: u64,
    ledger: Ledger,
    slice: Box<Slice>,
}

impl<'a> Worker<'a> {
    /// Thread number `thread` with so many connections. Slices of the measured part go to `slices`.
    pub(super) fn new(
        run: &'a Run,
        thread: usize,
        connections: usize,
        slices: Sender<Box<Slice>>,
    ) -> io::Result<Self> {
        Ok(Worker {
            run,
            thread,
            wire: Transport::new(run.address, connections)?,
            connections: (0..connections).map(|_| Connection::down(0)).collect(),
            schedule: Schedule::closed(&run.next[0], run.warm_up),
            waiting: VecDeque::new(),
            free: VecDeque::new(),
            in_flight: 0,
            unsubmitted: 0,
            started: Instant::now(),
            now_ns: 0,
            stamp_ns: 0,
            progress_ns: 0,
            is_running: false,
            is_measured: false,
            blocked_ns: 0,
            given_up: 0,
            sent: 0,
            ended: 0,
            polled: Duration::ZERO,
            held_up: 0,
            ledger: Ledger::default(),
            slice: Box::new(Slice::new(0, run.rate.is_some())),
            slices,
        })
    }

    /// Connects, sends its part of the warm-up and of the run, waits for the others around each, and
    /// says what happened in both.
    pub(super) fn work(mut self) -> [Findings; 2] {
        let connected = self.wire.enable().and_then(|()| self.connect_all());
        let warm_up = self.phase(connected.as_ref().map_err(io::Error::to_string));
        self.schedule = match self.run.rate {
            None => Schedule::closed(&self.run.next[1], self.run.workload.events),
            Some(rate) => Schedule::open(
                self.thread as u64,
                self.run.threads as u64,
                self.run.workload.events,
                rate,
            ),
        };
        self.slice = Box::new(Slice::new(0, self.run.rate.is_some()));
        self.is_measured = true;
        let failed = warm_up.failure.clone();
        let measured = self.phase(failed.map_or(Ok(&()), Err));
        // Fails only where nobody wants it any more.
        let _ = self.slices.send(self.slice);
        [warm_up, measured]
    }

    /// Waits for the others, sends all there is to send, and says what happened.
    fn phase(&mut self, before: Result<&(), String>) -> Findings {
        (self.sent, self.ended) = (0, 0);
        self.show_sent();
        self.note_progress();
        self.run.gate.wait();
        self.run.gate.wait();
        let (cpu_before, polled_before) = (thread_cpu(), self.polled);
        let is_called_off = self.run.is_called_off.load(Ordering::Relaxed);
        let result = match before {
            Ok(()) if !is_called_off => self.send_all().map_err(|error| error.to_string()),
            before => before.copied(),
        };
        self.abandon();
        self.note_progress();
        let ended = Instant::now();
        let cpu = thread_cpu().saturating_sub(cpu_before);
        Findings {
            ledger: std::mem::take(&mut self.ledger),
            held_up: std::mem::take(&mut self.held_up),
            busy: cpu.saturating_sub(self.polled - polled_before),
            cpu,
            ended,
            failure: result.err(),
        }
    }

    fn connect_all(&mut self) -> io::Result<()> {
        for index in 0..self.connections.len() {
            self.connect(index);
        }
        let patience = Instant::now() + self.run.timeout;
        while !self.connections.iter().all(|connection| connection.state == State::Open)
            && Instant::now() < patience
        {
            self.turn(Wait::One)?;
        }
        Ok(())
    }

    fn send_all(&mut self) -> io::Result<()> {
        self.started = Instant::now();
        self.is_running = true;
        self.read_clock();
        self.progress_ns = self.now_ns;
        self.blocked_ns = 0;
        for connection in &mut self.connections {
            // The clock has started again.
            match &mut connection.state {
                State::Open => {}
                State::Connecting { since_ns: at_ns }
                | State::Closing { since_ns: at_ns }
                | State::Down { until_ns: at_ns } => *at_ns = 0,
            }
        }
        self.free.clear();
        for index in 0..self.connections.len() {
            self.connections[index].is_listed = false;
            self.offer(index);
        }
        self.dispatch()?;
        while !self.is_done() && !self.has_given_up() {
            let wait = self.wait()?;
            self.turn(wait)?;
        }
        self.is_running = false;
        Ok(())
    }

    /// How to wait: an open loop must be awake when the next event is due.
    fn wait(&mut self) -> io::Result<Wait> {
        let due_ns = match self.schedule {
            Schedule::Open { .. } if !self.free.is_empty() => self.schedule.next_ns(),
            _ => None,
        };
        let Some(due_ns) = due_ns else { return Ok(Wait::One) };
        let now = self.started.elapsed();
        let left_ns = due_ns.saturating_sub(now.as_nanos() as u64);
        Ok(match left_ns {
            0 => Wait::No,
            1..=POLL_NS => {
                // What was made is not to wait for what is due next.
                self.wire.submit()?;
                self.wire.poll(self.started + Duration::from_nanos(due_ns));
                self.polled += self.started.elapsed().saturating_sub(now);
                Wait::No
            }
            _ => Wait::For(Duration::from_nanos(left_ns - POLL_NS / 2)),
        })
    }

    fn read_clock(&mut self) {
        self.now_ns = self.started.elapsed().as_nanos() as u64;
        self.stamp_ns = self.now_ns;
    }

    /// Takes in what has happened, and sends what can be sent.
    fn turn(&mut self, wait: Wait) -> io::Result<()> {
        self.wire.turn(wait)?;
        self.unsubmitted = 0;
        self.read_clock();
        if self.free.is_empty() {
            self.blocked_ns = self.now_ns;
        }
        while let Some(event) = self.wire.next_event() {
            match event {
                Event::Received(index, filled) => self.take(index, filled),
                Event::Connected(index) => {
                    self.connections[index].state = State::Open;
                    self.progress_ns = self.now_ns;
                    self.offer(index);
                }
                Event::Failed(index) => self.note_failure_to_connect(index),
                Event::Ended(index, handed_over) => self.end(index, handed_over, By::Peer),
                Event::Tick => self.tick(),
            }
            self.dispatch()?;
        }
        self.dispatch()?;
        self.note_progress();
        self.next_slice();
        Ok(())
    }

    /// Shows how far this thread is.
    fn note_progress(&mut self) {
        let progress = &self.run.progress[self.thread];
        progress.acknowledged.store(self.ledger.acknowledged, Ordering::Release);
        progress.ended.store(self.ended, Ordering::Relaxed);
        let failures = self.ledger.trouble.connect_failures;
        progress.connect_failures.store(failures, Ordering::Relaxed);
    }

    /// Hands over what a second that is over has shown.
    fn next_slice(&mut self) {
        let second = self.now_ns / NS_PER_SECOND;
        if self.is_running && self.is_measured && second > self.slice.second {
            let next = Box::new(Slice::new(second, self.run.rate.is_some()));
            // Fails only where nobody wants it any more.
            let _ = self.slices.send(std::mem::replace(&mut self.slice, next));
        }
    }

    fn is_done(&self) -> bool {
        self.in_flight == 0 && !self.has_work()
    }

    fn has_work(&self) -> bool {
        !self.waiting.is_empty() || self.schedule.next_ns().is_some()
    }

    /// Nobody is connected, and nobody has been for too long; or nobody answers at all.
    fn has_given_up(&self) -> bool {
        (self.in_flight == 0
            && u128::from(self.now_ns - self.progress_ns) > self.run.timeout.as_nanos()
            && !self.connections.iter().any(|connection| connection.state == State::Open))
            || self.given_up >= GIVE_UP_ROUNDS * self.connections.len()
    }

    /// Ends with events that have no answer, and those that were never sent.
    fn abandon(&mut self) {
        for index in 0..self.connections.len() {
            let handed_over = self.wire.handed_over(index);
            let flights = std::mem::take(&mut self.connections[index].flights);
            self.give_up(flights, handed_over);
        }
        if matches!(self.schedule, Schedule::Open { .. }) {
            // What was due and found nobody has waited until now.
            self.waiting.extend(std::iter::from_fn(|| self.schedule.take(self.now_ns)));
            for due in &self.waiting {
                let waited_ns = self.now_ns.saturating_sub(due.ns);
                self.slice.latency.record_at_least(waited_ns);
            }
        }
        self.ledger.given_back.extend(self.waiting.drain(..).map(|due| due.event));
        self.ledger.left.push(self.schedule.end());
    }

    /// Books requests whose connection has ended: those of which the kernel had taken a byte are
    /// unknown, the others wait for another connection.
    fn give_up(&mut self, flights: VecDeque<Flight>, handed_over: u64) {
        self.in_flight -= flights.len() as u64;
        for flight in flights {
            if flight.offset < handed_over {
                self.ledger.unknown.push(flight.event);
                self.ended += 1;
                self.slice.latency.record_at_least(self.now_ns.saturating_sub(flight.due_ns));
                if let Some(from_send) = &mut self.slice.from_send {
                    from_send.record_at_least(self.now_ns.saturating_sub(flight.sent_ns));
                }
            } else {
                self.sent -= 1;
                self.waiting.push_back(Due { event: flight.event, ns: flight.due_ns });
            }
        }
    }

    fn connect(&mut self, index: usize) {
        self.connections[index] = Connection::down(0);
        match self.wire.connect(index) {
            Ok(()) => {
                self.connections[index].state = State::Connecting { since_ns: self.now_ns };
            }
            Err(_) => self.note_failure_to_connect(index),
        }
    }

    fn note_failure_to_connect(&mut self, index: usize) {
        self.ledger.trouble.connect_failures += 1;
        self.connections[index] = Connection::down(self.now_ns + RETRY_AFTER_NS);
    }

    /// Whether a connection takes another request now.
    fn takes_more(&self, index: usize) -> bool {
        let one_shot = self.run.one_shot.load(Ordering::Relaxed);
        let depth = if one_shot { 1 } else { self.run.depth };
        let connection = &self.connections[index];
        connection.state == State::Open
            && connection.flights.len() < depth
            && !connection.says_close
            && !(one_shot && connection.answered > 0)
    }

    /// Lists a connection as free, if it is.
    fn offer(&mut self, index: usize) {
        if self.takes_more(index) && !self.connections[index].is_listed {
            self.connections[index].is_listed = true;
            self.free.push_back(index);
        }
    }

    /// Gives free connections the events that are due.
    fn dispatch(&mut self) -> io::Result<()> {
        if !self.is_running {
            return Ok(());
        }
        loop {
            while self.free.front().is_some_and(|index| !self.takes_more(*index)) {
                self.unlist();
            }
            if self.free.is_empty() {
                break;
            }
            let due = if let Some(due) = self.waiting.pop_front() {
                due
            } else if let Some(due) = self.schedule.take(self.stamp_ns) {
                self.note_lag(due);
                due
            } else {
                break;
            };
            let index = self.unlist();
            self.make(index, due);
            self.offer(index);
            if self.unsubmitted >= SENDS_A_SUBMIT {
                self.show_sent();
                self.wire.submit()?;
                self.unsubmitted = 0;
                self.stamp_ns = self.started.elapsed().as_nanos() as u64;
            }
        }
        self.show_sent();
        Ok(())
    }

    /// Notes how late an event is that could have been sent, or that it could not.
    fn note_lag(&mut self, due: Due) {
        if let (Schedule::Open { .. }, Some(lag)) = (&self.schedule, &mut self.slice.lag) {
            if due.ns <= self.blocked_ns {
                self.held_up += 1;
            } else {
                lag.record(self.stamp_ns - due.ns);
            }
        }
    }

    fn unlist(&mut self) -> usize {
        // Its callers have seen one.
        let index = self.free.pop_front().unwrap_or_else(|| unreachable!("no connection is free"));
        self.connections[index].is_listed = false;
        index
    }

    /// Says how many requests may have left, before they do.
    fn show_sent(&self) {
        self.run.progress[self.thread].sent.store(self.sent, Ordering::Release);
    }

    /// Makes the request of an event.
    fn make(&mut self, index: usize, due: Due) {
        let connection = &mut self.connections[index];
        // What is free is open: it is closed here, or where its end is told.
        let out = self.wire.out(index).unwrap_or_else(|| unreachable!("a free connection is open"));
        let before = out.len();
        self.run.workload.append_request(due.event, &self.run.head, out);
        let bytes = (out.len() - before) as u64;
        let (event, due_ns, sent_ns) = (due.event, due.ns, self.stamp_ns);
        connection.flights.push_back(Flight { event, due_ns, sent_ns, offset: connection.made });
        connection.made += bytes;
        self.in_flight += 1;
        self.sent += 1;
        self.unsubmitted += 1;
        self.wire.send(index);
    }

    /// Takes received bytes: answers.
    fn take(&mut self, index: usize, filled: Filled) {
        let connection = &mut self.connections[index];
        let mut input = std::mem::take(&mut connection.input);
        input.extend_from_slice(self.wire.bytes(&filled));
        self.wire.give_back(filled);
        let (at, read) = answers(&input, &mut |response| {
            note_answer(
                connection,
                &mut self.ledger,
                &mut self.slice,
                self.run,
                self.now_ns,
                response,
            )
        });
        input.drain(..at);
        let read = match read {
            Ok(answered) if input.len() > ANSWER_BYTES_MAX => Err(GarbledAfter(answered)),
            read => read,
        };
        self.connections[index].input = input;
        let answered = match read {
            Ok(answered) => answered,
            Err(GarbledAfter(answered)) => {
                self.ledger.trouble.garbled += 1;
                let handed_over = self.wire.handed_over(index);
                self.wire.close(index);
                self.connections[index].input.clear();
                self.note_answered(answered);
                self.end(index, handed_over, By::Us);
                return;
            }
        };
        self.note_answered(answered);
        self.offer(index);
    }

    fn note_answered(&mut self, answered: u64) {
        self.in_flight -= answered;
        self.ended += answered;
        if answered > 0 {
            self.given_up = 0;
            self.progress_ns = self.now_ns;
        }
    }

    /// Handles the end of a connection of which the kernel had taken so many bytes, and opens the
    /// next one where there is work.
    fn end(&mut self, index: usize, handed_over: u64, by: By) {
        // Until now it was there.
        self.progress_ns = self.now_ns;
        // An answer that only the end of the connection ends.
        let last = match by {
            By::Peer => response::read(&self.connections[index].input, true),
            By::Us => Ok(None),
        };
        if let Ok(Some(response)) = last {
            let (ledger, slice) = (&mut self.ledger, &mut self.slice);
            let connection = &mut self.connections[index];
            match note_answer(connection, ledger, slice, self.run, self.now_ns, response) {
                Ok(()) => self.note_answered(1),
                Err(Malformed) => self.ledger.trouble.garbled += 1,
            }
        } else if !self.connections[index].input.is_empty() {
            self.ledger.trouble.garbled += 1;
        }
        let connection = &mut self.connections[index];
        let flights = std::mem::take(&mut connection.flights);
        let was_cut = flights.iter().any(|flight| flight.offset < handed_over);
        let (answered, says_close) = (connection.answered, connection.says_close);
        if by == By::Peer && answered > 0 && !says_close && was_cut {
            self.ledger.trouble.broken_keep_alives += 1;
            // One that took more than one request was kept for a while.
            if answered == 1 {
                self.run.one_shot.store(true, Ordering::Relaxed);
            }
        }
        self.give_up(flights, handed_over);
        if by == By::Peer && answered == 0 && self.has_work() {
            // A server that ends what it has not answered is not asked again at once.
            self.ledger.trouble.reconnects += 1;
            self.connections[index] = Connection::down(self.now_ns + RETRY_AFTER_NS);
        } else {
            self.reconnect(index);
        }
    }

    fn reconnect(&mut self, index: usize) {
        if self.has_work() || !self.is_running {
            self.ledger.trouble.reconnects += 1;
            self.connect(index);
        } else {
            self.connections[index] = Connection::down(0);
        }
    }

    /// Ends what has waited too long.
    fn tick(&mut self) {
        let timeout_ns = self.run.timeout.as_nanos() as u64;
        for index in 0..self.connections.len() {
            let connection = &self.connections[index];
            let is_over = |since_ns: u64, limit| self.now_ns.saturating_sub(since_ns) > limit;
            match connection.state {
                State::Open => {
                    let oldest = connection.flights.front();
                    let is_spent = self.run.one_shot.load(Ordering::Relaxed)
                        && oldest.is_none()
                        && connection.answered > 0;
                    if is_spent {
                        self.wire.close(index);
                        self.reconnect(index);
                    } else if oldest.is_some_and(|flight| is_over(flight.sent_ns, timeout_ns)) {
                        self.ledger.trouble.timeouts += 1;
                        self.given_up += 1;
                        let handed_over = self.wire.handed_over(index);
                        self.wire.close(index);
                        self.end(index, handed_over, By::Us);
                    }
                }
                State::Connecting { since_ns } if is_over(since_ns, timeout_ns) => {
                    self.wire.close(index);
                    self.note_failure_to_connect(index);
                }
                State::Closing { since_ns } if is_over(since_ns, CLOSE_PATIENCE_NS) => {
                    self.wire.close(index);
                    self.reconnect(index);
                }
                State::Down { until_ns }
                    if self.now_ns >= until_ns && (self.has_work() || !self.is_running) =>
                {
                    self.connect(index);
                }
                _ => {}
            }
        }
    }
}

/// Bytes that are no answer came after so many answers.
struct GarbledAfter(u64);

/// Reads the whole answers at the start of `data`. Returns where they end, and how many they are.
fn answers(
    data: &[u8],
    note: &mut impl FnMut(Response) -> Result<(), Malformed>,
) -> (usize, Result<u64, GarbledAfter>) {
    let (mut at, mut answered) = (0, 0);
    while at < data.len() {
        match response::read(&data[at..], false) {
            Ok(None) => break,
            Ok(Some(response)) => {
                if note(response).is_err() {
                    return (at, Err(GarbledAfter(answered)));
                }
                at += response.end;
                answered += 1;
            }
            Err(Malformed) => return (at, Err(GarbledAfter(answered))),
        }
    }
    (at, Ok(answered))
}

/// Notes the answer to the oldest request in flight. Fails where there is none.
fn note_answer(
    connection: &mut Connection,
    ledger: &mut Ledger,
    slice: &mut Slice,
    run: &Run,
    now_ns: u64,
    response: Response,
) -> Result<(), Malformed> {
    let flight = connection.flights.pop_front().ok_or(Malformed)?;
    connection.answered += 1;
    connection.says_close |= response.says_close;
    let is_last = connection.says_close || run.one_shot.load(Ordering::Relaxed);
    if is_last && connection.flights.is_empty() {
        connection.state = State::Closing { since_ns: now_ns };
    }
    slice.latency.record(now_ns.saturating_sub(flight.due_ns));
    if let Some(from_send) = &mut slice.from_send {
        from_send.record(now_ns.saturating_sub(flight.sent_ns));
    }
    match response.status {
        200..300 => ledger.acknowledged += 1,
        status => ledger.refused.entry(status).or_default().push(flight.event),
    }
    Ok(())
}

/// CPU time that the calling thread has used.
fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
