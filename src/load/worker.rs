//! One client thread: its connections, on the ring, each with a bounded number of requests in flight.
//!
//! Every request is sent once, with its event or its batch. When a connection ends, its unsent requests go to another
//! connection. The events of requests that were sent but did not get a response may or may not have been counted: they
//! are unknown, and are not sent again.

mod lifecycle;

use super::client_load::{ThreadTime, thread_cpu};
use super::connection::{Connection, Next, State};
use super::interrupt;
use super::latency::Slice;
use super::ledger::is_success;
use super::response::{Malformed, Reader};
use super::run_record::Work;
use super::schedule::{Due, Left, Schedule};
use super::shared::Run;
use super::transport::{Event, Filled, TICK, Transport, Wait};
use super::workload::Workload;
use lifecycle::By;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// The time that an interrupted run waits for responses.
const INTERRUPT_PATIENCE_NS: u64 = 1_000_000_000;
/// A thread that wakes this late did not run, because ticks come fifty times per second.
const STALLED_FROM_NS: u64 = 5_000_000;
/// The shortest such stretch that is reported in a warning, regardless of the requests due in it.
const SUSPENDED_FROM_NS: u64 = 100_000_000;
#[allow(clippy::cast_possible_truncation, reason = "20 ms")]
const TICK_NS: u64 = TICK.as_nanos() as u64;
/// The most connections whose requests are given to the kernel together, and the most events unless a single request
/// has more. The kernel sends the data of connections one by one, which takes about 2 µs each, or 4 µs with many
/// requests. The send time is read once for all of them.
const SENDS_PER_SUBMIT: usize = 16;
const EVENTS_PER_SUBMIT: u64 = 64;
/// The number of times that every connection may time out without a single response before a thread gives up.
const GIVE_UP_ROUNDS: usize = 3;
/// An open loop polls for this long before a request is due, because a sleep would end too late.
const POLL_NS: u64 = 100_000;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// The record of a thread in a phase, with data that only its process needs.
#[derive(Debug)]
pub(super) struct Findings {
    pub(super) work: Work,
    /// The time that the thread was ready but waited for a CPU.
    pub(super) waiting: Duration,
    /// Whether the server could no longer be reached or did not respond.
    pub(super) gave_up: bool,
    /// Whether an interrupt, or a threshold that can no longer pass, ended the phase before it was over.
    pub(super) was_cut: bool,
    /// The time when the last request had ended and nothing was left to send.
    pub(super) ended: Instant,
    /// The reason why the ring failed, if it did.
    pub(super) failure: Option<String>,
}

/// Further counters, which start at zero in each phase.
#[derive(Debug, Default)]
struct Counts {
    /// The number of events that were sent, and the number of events that ended.
    sent: u64,
    ended: u64,
    last_sent_ns: u64,
    gave_up: bool,
    was_cut: bool,
    /// Requests given up since the last response.
    given_up_in_a_row: usize,
}

/// One client thread.
pub(super) struct Worker<'a> {
    run: &'a Run,
    thread: usize,
    /// Declared before `wire`, so that the run is over before its connections are closed.
    slices: Sender<Box<Slice>>,
    wire: Transport,
    reader: Reader,
    connections: Vec<Connection>,
    schedule: Schedule<'a>,
    /// Requests that a broken connection gave back.
    waiting: VecDeque<Due>,
    /// Connections that can take another request. The connections that waited longest are first.
    free: VecDeque<usize>,
    in_flight: u64,
    /// Events of the requests that were made since the kernel was last given any.
    unsubmitted: u64,
    started: Instant,
    /// The clock at this iteration, and at the last submission, in nanoseconds since the start.
    now_ns: u64,
    stamp_ns: u64,
    /// The time of the last response, or of another sign that there is a server.
    progress_ns: u64,
    /// Waits that began earlier count from this time on, because this thread did not run for a while.
    patience_from_ns: u64,
    is_running: bool,
    /// The start of the time that nothing was in flight or left to send, while a ramp was still opening connections.
    idle_from_ns: Option<u64>,
    /// Whether the warm-up is over.
    is_measured: bool,
    /// The time when the run was interrupted.
    interrupted_ns: Option<u64>,
    /// The last time when no connection was free, so that nothing could have been sent.
    blocked_ns: Option<u64>,
    /// The latest time when the thread wakes, if it runs: the next tick.
    tick_due_ns: u64,
    /// The stretches when the thread did not run, oldest first. Requests due in them are late because of this.
    stalls: VecDeque<Range<u64>>,
    counts: Counts,
    /// The number of connections that should be open. They are the connections before this index.
    wanted: usize,
    /// The greatest value of `wanted`.
    wanted_most: usize,
    /// The end of the time that `wanted` was last computed for.
    wanted_until_ns: u64,
    /// The connections that were open at any time of the phase, unless the server turned them away before it had
    /// responded to anything on them.
    was_open: Vec<bool>,
    /// The connections that ended in the phase after a response.
    has_served: Vec<bool>,
    work: Work,
    slice: Box<Slice>,
}

impl<'a> Worker<'a> {
    /// Creates thread number `thread` with this number of connections. Slices of the measured part go to `slices`.
    pub(super) fn new(
        run: &'a Run,
        thread: usize,
        connections: usize,
        slices: Sender<Box<Slice>>,
    ) -> io::Result<Self> {
        let down = || Connection::new(State::Down { until_ns: 0 });
        let wanted = run.connections_of(thread, 0, 0).min(connections);
        Ok(Worker {
            run,
            thread,
            wire: Transport::new(run.address, connections)?,
            reader: Reader::default(),
            connections: (0..connections).map(|_| down()).collect(),
            schedule: Schedule::closed(run.part, &run.next[0], &run.earlier()),
            waiting: VecDeque::new(),
            free: VecDeque::new(),
            in_flight: 0,
            unsubmitted: 0,
            started: Instant::now(),
            now_ns: 0,
            stamp_ns: 0,
            progress_ns: 0,
            patience_from_ns: 0,
            is_running: false,
            idle_from_ns: None,
            is_measured: false,
            interrupted_ns: None,
            blocked_ns: None,
            tick_due_ns: u64::MAX,
            stalls: VecDeque::new(),
            counts: Counts::default(),
            wanted,
            wanted_most: wanted,
            wanted_until_ns: 0,
            was_open: vec![false; connections],
            has_served: vec![false; connections],
            work: Work::default(),
            slice: Box::new(Slice::new(0, run.pace.is_some())),
            slices,
        })
    }

    /// Connects, sends its part of the warm-up and of the run, waits for the other threads around each, and returns the
    /// records of both.
    pub(super) fn work(mut self) -> [Findings; 2] {
        let connected = self.wire.enable().and_then(|()| self.connect_all(|_| true));
        let warm_up = self.phase(connected.map_err(|error| error.to_string()));
        let late = warm_up.work.ledger.unknown.len(&self.run.earlier());
        self.run.late.fetch_add(late, Ordering::Relaxed);
        let connected = match &warm_up.failure {
            Some(failure) => Err(failure.clone()),
            // The connections that owed responses were closed.
            None => self.reconnect_all().map_err(|error| error.to_string()),
        };
        self.schedule = self.measured_schedule();
        self.slice = Box::new(Slice::new(0, self.run.pace.is_some()));
        self.is_measured = true;
        let measured = self.phase(connected);
        // Fails only if the receiver is gone along with the run.
        let _ = self.slices.send(self.slice);
        [warm_up, measured]
    }

    /// Returns the schedule of this thread in the measured part.
    fn measured_schedule(&self) -> Schedule<'a> {
        let Run { part, next: [_, next], workload, .. } = self.run;
        match (&self.run.pace, self.run.stop_ns()) {
            (None, None) => Schedule::closed(*part, next, workload),
            (None, Some(stop_ns)) => Schedule::timed(*part, next, workload, stop_ns),
            (Some(pace), _) => {
                let threads = self.run.threads as u64;
                Schedule::open(*part, self.thread as u64, threads, workload, pace)
            }
        }
    }

    /// Returns the events of this phase: the warm-up's, or the measured ones.
    fn workload(&self) -> Workload {
        if self.is_measured { self.run.workload } else { self.run.earlier() }
    }

    /// Waits for the other threads, sends everything, and returns the record.
    fn phase(&mut self, ready: Result<(), String>) -> Findings {
        self.counts = Counts::default();
        self.show_sent();
        self.note_progress();
        self.run.gate.wait();
        self.run.gate.wait();
        let before = ThreadTime::now();
        // If the phase cannot even start, the requests that it leaves must not be on the clock of the previous phase.
        self.restart_clock(Instant::now());
        self.idle_from_ns = None;
        let is_called_off = self.run.is_called_off.load(Ordering::Relaxed);
        let result = match ready {
            Ok(()) if !is_called_off => self.send_all().map_err(|error| error.to_string()),
            ready => ready,
        };
        if self.counts.gave_up || result.is_err() {
            self.miss_one();
        }
        self.is_running = false;
        self.abandon();
        self.note_progress();
        let ended = self.idle_from_ns.map_or_else(Instant::now, |ns| self.instant(ns));
        if self.is_measured {
            let (wanted, others) = self.was_open.split_at(self.wanted_most);
            let never_open = wanted.iter().filter(|was_open| !**was_open).count();
            self.work.ledger.trouble.never_open += never_open as u64;
            self.work.ledger.trouble.never_wanted += others.len() as u64;
        }
        let counts = std::mem::take(&mut self.counts);
        let mut work = std::mem::take(&mut self.work);
        let time = ThreadTime::now().since(before);
        work.cpu = time.cpu.saturating_sub(work.polling);
        work.last_sent = Duration::from_nanos(counts.last_sent_ns);
        Findings {
            work,
            waiting: time.waiting,
            gave_up: counts.gave_up,
            was_cut: counts.was_cut,
            ended,
            failure: result.err(),
        }
    }

    fn send_all(&mut self) -> io::Result<()> {
        // Handle the events that happened during the wait: a server may have rejected connections.
        self.turn(Wait::No)?;
        self.restart_clock(self.start());
        self.is_running = true;
        self.progress_ns = self.now_ns;
        self.patience_from_ns = 0;
        self.blocked_ns = None;
        self.tick_due_ns = self.now_ns + TICK_NS;
        self.stalls.clear();
        self.interrupted_ns = None;
        for connection in &mut self.connections {
            // The clock has been restarted.
            match &mut connection.state {
                State::Open { since_ns: at_ns }
                | State::Connecting { since_ns: at_ns }
                | State::Closing { since_ns: at_ns }
                | State::Down { until_ns: at_ns }
                | State::Lacking { until_ns: at_ns }
                | State::TurnedAway { until_ns: at_ns } => *at_ns = 0,
            }
        }
        self.free.clear();
        for index in 0..self.connections.len() {
            self.connections[index].is_listed = false;
            self.was_open[index] = self.connections[index].is_open();
            self.has_served[index] = false;
            self.offer(index);
        }
        self.wanted_until_ns = 0;
        self.want();
        self.check_interrupt();
        self.dispatch()?;
        while !self.is_done() {
            if self.has_given_up() {
                self.counts.gave_up = true;
                self.counts.was_cut |= interrupt::is_asked();
                break;
            }
            let wait = self.wait()?;
            self.turn(wait)?;
        }
        Ok(())
    }

    /// Returns the start of this phase: now, or the common start of all clients of a run in parts.
    fn start(&self) -> Instant {
        let agreed = self.run.starts_at.get().filter(|_| self.is_measured);
        let Some(agreed) = agreed.copied() else { return Instant::now() };
        std::thread::sleep(agreed.saturating_duration_since(Instant::now()));
        agreed
    }

    /// Returns the way to wait: an open loop must be awake when the next request is due.
    fn wait(&mut self) -> io::Result<Wait> {
        let due_ns = match self.schedule {
            Schedule::Open { .. } if !self.free.is_empty() => self.schedule.next_ns(),
            _ => None,
        };
        let Some(due_ns) = due_ns else { return Ok(Wait::One) };
        let now_ns = self.clock_ns();
        self.note_stall(now_ns, 0);
        self.stamp_ns = now_ns;
        let left_ns = due_ns.saturating_sub(now_ns);
        Ok(match left_ns {
            0 => Wait::No,
            1..=POLL_NS => {
                // Requests that are ready must not wait for the next request to be due.
                self.wire.submit()?;
                let before = thread_cpu();
                self.wire.poll(self.instant(due_ns));
                self.work.polling += thread_cpu().saturating_sub(before);
                Wait::No
            }
            _ => Wait::For(Duration::from_nanos(left_ns - POLL_NS / 2)),
        })
    }

    /// Starts the clock of a phase.
    fn restart_clock(&mut self, started: Instant) {
        self.started = started;
        self.now_ns = self.clock_ns();
        self.stamp_ns = self.now_ns;
    }

    /// Converts a time on the thread's clock to an `Instant`.
    fn instant(&self, ns: u64) -> Instant {
        self.started + Duration::from_nanos(ns)
    }

    /// Returns the nanoseconds since the start.
    fn clock_ns(&self) -> u64 {
        #[allow(clippy::cast_possible_truncation, reason = "no run takes 584 years")]
        let ns = self.started.elapsed().as_nanos() as u64;
        ns
    }

    /// Reads the clock after a wait.
    fn read_clock(&mut self, wait: Wait) {
        let until_tick_ns = self.tick_due_ns.saturating_sub(self.stamp_ns);
        #[allow(clippy::cast_possible_truncation, reason = "no request is due in 584 years")]
        let wait_ns = match wait {
            Wait::No => 0,
            Wait::One | Wait::Gather(_) => until_tick_ns,
            Wait::For(wait) => until_tick_ns.min(wait.as_nanos() as u64),
        };
        self.now_ns = self.clock_ns();
        self.note_stall(self.now_ns, wait_ns);
        self.stamp_ns = self.now_ns;
    }

    /// Records that the thread did not run, if the clock has advanced by much more than the thread meant to wait.
    fn note_stall(&mut self, now_ns: u64, wait_ns: u64) {
        let late_ns = now_ns.saturating_sub(self.stamp_ns).saturating_sub(wait_ns);
        if late_ns < STALLED_FROM_NS || !self.is_running {
            return;
        }
        // The thread may have stopped at any time during the wait.
        if matches!(self.schedule, Schedule::Open { .. }) {
            self.stalls.push_back(self.stamp_ns..now_ns);
        }
        if late_ns >= SUSPENDED_FROM_NS {
            self.work.suspended += Duration::from_nanos(late_ns);
            // There has been no time to read responses.
            self.patience_from_ns = now_ns;
            self.progress_ns = now_ns;
        }
    }

    /// Handles the events that have happened, and sends what can be sent.
    fn turn(&mut self, wait: Wait) -> io::Result<()> {
        self.wire.turn(wait)?;
        self.unsubmitted = 0;
        self.read_clock(wait);
        if self.free.is_empty() {
            self.blocked_ns = Some(self.now_ns);
        }
        while let Some(event) = self.wire.next_event() {
            match event {
                Event::Received(index, filled) => self.take(index, filled),
                Event::Connected(index) => {
                    self.connections[index].state = State::Open { since_ns: self.now_ns };
                    self.was_open[index] = true;
                    self.offer(index);
                }
                Event::Failed(index, error) => self.note_failure_to_connect(index, &error),
                Event::Ended(index, handed_over) => self.end(index, handed_over, By::Peer),
                Event::Tick => {
                    self.tick_due_ns = self.now_ns + TICK_NS;
                    self.tick();
                }
            }
            self.dispatch()?;
        }
        self.dispatch()?;
        self.note_progress();
        self.next_slice();
        Ok(())
    }

    /// Publishes the progress of this thread.
    fn note_progress(&mut self) {
        let progress = &self.run.progress[self.thread];
        progress.acknowledged.store(self.work.ledger.acknowledged, Ordering::Release);
        progress.ended.store(self.counts.ended, Ordering::Relaxed);
        let trouble = &self.work.ledger.trouble;
        for (shown, count) in [
            (&progress.connect_failures, trouble.connect_failures),
            (&progress.refused, self.work.ledger.refused.singles()),
            (&progress.unknown, self.work.ledger.unknown.singles()),
            (&progress.reconnects, trouble.reconnects),
            (&progress.timeouts, trouble.timeouts),
            (&progress.rejected, trouble.rejected),
            (&progress.malformed, trouble.malformed),
        ] {
            shown.store(count, Ordering::Relaxed);
        }
    }

    /// Sends the results of a second that is over.
    fn next_slice(&mut self) {
        let second = self.now_ns / NS_PER_SECOND;
        if self.is_running && self.is_measured && second > self.slice.second {
            let next = Box::new(Slice::new(second, self.run.pace.is_some()));
            // Fails only if the receiver is gone along with the run.
            let _ = self.slices.send(std::mem::replace(&mut self.slice, next));
        }
    }

    fn is_idle(&self) -> bool {
        self.in_flight == 0 && !self.has_work()
    }

    /// Reports whether the thread is done, after opening the last connections of a ramp.
    fn is_done(&mut self) -> bool {
        let since_ns = self.idle_from_ns.unwrap_or(self.now_ns);
        self.idle_from_ns = self.is_idle().then_some(since_ns);
        self.is_idle() && !self.awaits_connections() && {
            self.want();
            !self.awaits_connections()
        }
    }

    fn has_work(&self) -> bool {
        !self.waiting.is_empty() || self.schedule.next_ns().is_some()
    }

    /// Reports whether the thread should give up: nothing has been connected for too long, nothing responds, or a run
    /// that the user interrupted has waited long enough for responses.
    fn has_given_up(&self) -> bool {
        let is_alone = self.in_flight == 0 && !self.connections.iter().any(Connection::is_open);
        let is_over = |since_ns: u64| {
            u128::from(self.now_ns.saturating_sub(since_ns)) > self.run.timeout.as_nanos()
        };
        let interrupted = self.interrupted_ns.map(|at_ns| self.now_ns.saturating_sub(at_ns));
        (is_alone && is_over(self.progress_ns))
            || self.counts.given_up_in_a_row >= GIVE_UP_ROUNDS * self.wanted_most
            || interrupt::is_asked()
                && interrupted.is_some_and(|since_ns| since_ns > INTERRUPT_PATIENCE_NS)
    }

    /// Stops sending, once, if the user ended the run, or a threshold can no longer pass.
    fn check_interrupt(&mut self) {
        let is_asked = interrupt::is_asked() || self.run.aborted_by.get().is_some();
        if is_asked && self.interrupted_ns.is_none() {
            self.interrupted_ns = Some(self.now_ns);
            self.counts.was_cut |= self.has_work();
            self.leave_rest();
        }
    }

    /// Stops sending if the time for it is over. In a closed loop, requests that were taken are still sent.
    fn check_time(&mut self) {
        self.schedule.expire(self.now_ns);
        let is_over = |stop_ns: u64| self.is_measured && stop_ns <= self.now_ns;
        if self.run.pace.is_some() && self.run.stop_ns().is_some_and(is_over) {
            self.leave_rest();
        }
    }

    /// Records a request as unsent if a run with a duration ends before its time is over. Otherwise, it would look like
    /// a shorter run without a failure.
    fn miss_one(&mut self) {
        let is_over = self.interrupted_ns.is_some() || !self.is_measured;
        if self.run.is_open_ended() && !is_over && self.waiting.is_empty() {
            self.waiting.extend(self.schedule.take(self.now_ns));
        }
    }

    /// Ends the phase, and records the events that lack a response and the events that were never sent.
    fn abandon(&mut self) {
        for index in 0..self.connections.len() {
            if self.connections[index].has_flights() {
                // A late response must not be mistaken for the response to another request.
                let handed_over = self.wire.handed_over(index);
                self.wire.close(index);
                self.give_up(index, handed_over);
                self.connections[index] = Connection::new(State::Down { until_ns: 0 });
            }
        }
        self.leave_rest();
        debug_assert_eq!(self.in_flight, 0);
    }

    /// Records all events that were not sent.
    fn leave_rest(&mut self) {
        let workload = self.workload();
        if self.run.pace.is_some() && self.is_measured {
            // Due requests without a connection have waited until now.
            for due in &self.waiting {
                self.slice.latency.record_at_least(self.now_ns.saturating_sub(due.ns));
            }
            let latency = &mut self.slice.latency;
            let mut overdue = Vec::new();
            let least_alike = |ns| latency.least_alike(ns);
            self.schedule.overdue(self.now_ns, least_alike, |ns, count| overdue.push((ns, count)));
            for (ns, count) in overdue {
                latency.record_many_at_least(ns, count);
            }
        }
        for due in self.waiting.drain(..) {
            self.work.ledger.unsent.insert(&workload, due.request);
        }
        match self.schedule.end() {
            Left::Grabbed(requests) => {
                for request in requests {
                    self.work.ledger.unsent.insert(&workload, request);
                }
            }
            Left::Rest(rest) => self.work.ledger.leave(rest),
        }
    }

    /// Reports whether a connection can take another request.
    fn takes_more(&self, index: usize) -> bool {
        let is_one_shot = self.run.keep_alive.is_one_shot();
        let depth = if is_one_shot { 1 } else { self.run.depth };
        index < self.wanted && self.connections[index].takes_more(depth, is_one_shot)
    }

    /// Lists a connection as free if it can take a request.
    fn offer(&mut self, index: usize) {
        if self.takes_more(index) && !self.connections[index].is_listed {
            self.connections[index].is_listed = true;
            self.free.push_back(index);
        }
    }

    /// Gives free connections the requests that are due.
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
            if self.wire.queued() >= SENDS_PER_SUBMIT || self.unsubmitted >= EVENTS_PER_SUBMIT {
                self.show_sent();
                self.wire.submit()?;
                self.unsubmitted = 0;
                let now_ns = self.clock_ns();
                self.note_stall(now_ns, 0);
                self.stamp_ns = now_ns;
            }
        }
        self.show_sent();
        Ok(())
    }

    /// Records the lag of a request that could have been sent, or else records that it could not be sent. The lag of a
    /// request that came due while the thread did not run is the rest of that time, regardless of further delays.
    fn note_lag(&mut self, due: Due) {
        if let (Schedule::Open { .. }, Some(lag)) = (&self.schedule, &mut self.slice.lag) {
            while self.stalls.front().is_some_and(|stall| stall.end < due.ns) {
                self.stalls.pop_front();
            }
            let stall = self.stalls.front().filter(|stall| stall.contains(&due.ns));
            if let Some(stall) = stall {
                self.work.due_in_stalls += 1;
                lag.record(stall.end - due.ns);
            } else if self.blocked_ns.is_some_and(|blocked_ns| due.ns <= blocked_ns) {
                self.work.queued += 1;
            } else {
                lag.record(self.stamp_ns.saturating_sub(due.ns));
            }
        }
    }

    fn unlist(&mut self) -> usize {
        // The callers have seen a free connection.
        let index = self.free.pop_front().unwrap_or_else(|| unreachable!("no connection is free"));
        self.connections[index].is_listed = false;
        index
    }

    /// Publishes the number of events that may have been sent, before they are sent.
    fn show_sent(&self) {
        self.run.progress[self.thread].sent.store(self.counts.sent, Ordering::Release);
    }

    /// Makes a request.
    fn make(&mut self, index: usize, due: Due) {
        let workload = self.workload();
        // A connection in the free list is open. It is closed by this thread, or when its end is reported.
        let out = self.wire.out(index).unwrap_or_else(|| unreachable!("a free connection is open"));
        let before = out.len();
        workload.append_request(due.request, &self.run.form, out);
        let bytes = (out.len() - before) as u64;
        self.connections[index].push(due.request, due.ns, self.stamp_ns, bytes);
        let events = workload.size_of(due.request);
        self.in_flight += 1;
        self.counts.sent += events;
        self.counts.last_sent_ns = self.stamp_ns;
        self.unsubmitted += events;
        self.wire.send(index);
    }

    /// Takes in received bytes.
    fn take(&mut self, index: usize, filled: Filled) {
        self.connections[index].receive(self.wire.bytes(&filled));
        self.wire.give_back(filled);
        if self.take_responses(index, false).is_err() {
            self.work.ledger.trouble.malformed += 1;
            self.close(index);
        } else {
            self.offer(index);
        }
    }

    /// Records the complete responses that a connection has received.
    fn take_responses(&mut self, index: usize, at_end: bool) -> Result<(), Malformed> {
        let workload = self.workload();
        let connection = &mut self.connections[index];
        loop {
            let (flight, response) = match connection.next(&mut self.reader, at_end)? {
                Next::Response(flight, response) => (flight, response),
                Next::TurnedAway | Next::Nothing => return Ok(()),
            };
            self.slice.latency.record(self.now_ns.saturating_sub(flight.due_ns));
            if let Some(from_send) = &mut self.slice.from_send {
                from_send.record(self.now_ns.saturating_sub(flight.sent_ns));
            }
            let events = workload.size_of(flight.request);
            self.slice.events += events;
            self.work.ledger.note(&workload, flight.request, response.status);
            if workload.batch.is_some() && is_success(response.status) {
                self.work.ledger.note_accepted(events, connection.accepted(&response));
            }
            self.in_flight -= 1;
            self.counts.ended += events;
            self.counts.given_up_in_a_row = 0;
            if !connection.was_turned_away() {
                self.progress_ns = self.now_ns;
            }
            if connection.answered() == 2 {
                self.run.keep_alive.note_second_response();
            }
            let is_last = connection.says_close() || self.run.keep_alive.is_one_shot();
            // The server must not respond to excluded requests.
            if is_last && (!connection.has_flights() || connection.excludes_rest()) {
                connection.state = State::Closing { since_ns: self.now_ns };
            }
        }
    }
}

#[cfg(test)]
mod tests;
