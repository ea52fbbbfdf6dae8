//! Opens and ends the connections of a client thread, and records the outcomes of the requests on them.

use super::{TICK_NS, Worker};
use crate::load::connection::{Connection, State};
use crate::load::interrupt;
use crate::load::schedule::Due;
use crate::load::transport::Wait;
use rustix::io::Errno;
use std::io;
use std::time::Instant;

/// The wait before a connection that failed is opened again. It is longer if the server did not have room for it, or if
/// this machine was out of ports or descriptors.
const RETRY_AFTER_NS: u64 = 20_000_000;
const TURNED_AWAY_RETRY_NS: u64 = 500_000_000;
const LACKING_RETRY_NS: u64 = 500_000_000;
/// The time that a server that closes connections after each response may take to do so. A server that takes longer
/// keeps its connections after all.
const CLOSE_PATIENCE_NS: u64 = 1_000_000_000;
/// The time that a connection must be open to show that there is a server.
const PROOF_OF_SERVER_NS: u64 = 1_000_000_000;

/// The side that has ended a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Peer,
    Us,
}

impl Worker<'_> {
    /// Opens all connections that are not open, and waits for the connections that were open before. The others have
    /// had their time.
    pub(super) fn reconnect_all(&mut self) -> io::Result<()> {
        let were_open = self.was_open.clone();
        self.connect_all(|index| were_open[index])
    }

    /// Opens all connections that are not open, and waits for each that `is_awaited`.
    pub(super) fn connect_all(&mut self, is_awaited: impl Fn(usize) -> bool) -> io::Result<()> {
        for index in 0..self.wanted {
            if matches!(self.connections[index].state, State::Down { .. }) {
                self.connect(index);
            }
        }
        let wanted = self.wanted;
        let patience = Instant::now() + self.run.timeout;
        // A missing port or descriptor will not return while the others wait.
        let is_settled = |(index, connection): (usize, &Connection)| {
            let is_settled = matches!(
                connection.state,
                State::Open { .. } | State::TurnedAway { .. } | State::Lacking { .. }
            );
            is_settled || index >= wanted || !is_awaited(index)
        };
        while !self.connections.iter().enumerate().all(is_settled)
            && Instant::now() < patience
            && !interrupt::is_asked()
        {
            self.turn(Wait::One)?;
        }
        Ok(())
    }

    pub(super) fn connect(&mut self, index: usize) {
        let state = State::Connecting { since_ns: self.now_ns };
        self.connections[index] = Connection::new(state);
        if let Err(error) = self.wire.connect(index) {
            self.note_failure_to_connect(index, &error);
        }
    }

    pub(super) fn note_failure_to_connect(&mut self, index: usize, error: &io::Error) {
        self.work.ledger.note_failure_to_connect(error);
        let state = match is_lack(error) {
            true => State::Lacking { until_ns: self.now_ns + LACKING_RETRY_NS },
            false => State::Down { until_ns: self.now_ns + RETRY_AFTER_NS },
        };
        self.connections[index] = Connection::new(state);
    }

    /// Records the requests of a connection that has ended. Requests with a byte in the kernel are unknown, and the
    /// others wait for another connection. So do requests that the server must not process.
    pub(super) fn give_up(&mut self, index: usize, handed_over: u64) {
        let workload = self.workload();
        let is_excluded = self.connections[index].excludes_rest();
        for (flight, may_have_left) in self.connections[index].take_flights(handed_over) {
            self.in_flight -= 1;
            self.work.ledger.trouble.resent += u64::from(may_have_left && is_excluded);
            if may_have_left && !is_excluded {
                self.work.ledger.unknown.insert(&workload, flight.request);
                self.counts.ended += workload.size_of(flight.request);
                self.slice.latency.record_at_least(self.now_ns.saturating_sub(flight.due_ns));
                if let Some(from_send) = &mut self.slice.from_send {
                    from_send.record_at_least(self.now_ns.saturating_sub(flight.sent_ns));
                }
            } else {
                self.counts.sent -= workload.size_of(flight.request);
                if self.interrupted_ns.is_some() {
                    self.counts.was_cut = true;
                    if self.is_measured && self.run.pace.is_some() {
                        // It has waited since it was due.
                        let waited_ns = self.now_ns.saturating_sub(flight.due_ns);
                        self.slice.latency.record_at_least(waited_ns);
                    }
                    self.work.ledger.unsent.insert(&workload, flight.request);
                } else {
                    self.waiting.push_back(Due { request: flight.request, ns: flight.due_ns });
                }
            }
        }
    }

    /// Handles the end of a connection after the kernel took this number of bytes, and opens the next connection if
    /// there is work.
    pub(super) fn end(&mut self, index: usize, handed_over: u64, by: By) {
        // The end of a connection can end a response.
        let is_garbled = by == By::Peer
            && (self.take_responses(index, true).is_err() || self.connections[index].has_part());
        self.work.ledger.trouble.malformed += u64::from(is_garbled);
        let connection = &self.connections[index];
        if let State::Open { since_ns } = connection.state
            && self.now_ns.saturating_sub(since_ns) >= PROOF_OF_SERVER_NS
        {
            self.progress_ns = self.now_ns;
        }
        let (answered, says_close) = (connection.answered(), connection.says_close());
        let was_turned_away = connection.was_turned_away();
        if by == By::Peer && answered > 0 && !says_close && connection.owes_response(handed_over) {
            self.work.ledger.trouble.broken_keep_alives += 1;
            // A connection that took more than one request was kept for a while.
            if answered == 1 {
                self.run.keep_alive.note_broken();
            }
        }
        self.give_up(index, handed_over);
        self.has_served[index] |= answered > 0 && !was_turned_away;
        if was_turned_away {
            self.work.ledger.trouble.rejected += 1;
            self.was_open[index] = self.has_served[index];
            let until_ns = self.now_ns + TURNED_AWAY_RETRY_NS;
            self.connections[index] = Connection::new(State::TurnedAway { until_ns });
        } else if by == By::Peer && answered == 0 && self.has_work() && index < self.wanted {
            // A server that ends connections without a response is not tried again immediately.
            self.work.ledger.trouble.reconnects += 1;
            let until_ns = self.now_ns + RETRY_AFTER_NS;
            self.connections[index] = Connection::new(State::Down { until_ns });
        } else {
            self.reconnect(index);
        }
    }

    /// Ends a connection from this side.
    pub(super) fn close(&mut self, index: usize) {
        let handed_over = self.wire.handed_over(index);
        self.wire.close(index);
        self.end(index, handed_over, By::Us);
    }

    fn reconnect(&mut self, index: usize) {
        if self.needs(index) {
            self.work.ledger.trouble.reconnects += 1;
            self.connect(index);
        } else {
            self.connections[index] = Connection::new(State::Down { until_ns: 0 });
        }
    }

    /// Reports whether a connection should be open.
    fn needs(&self, index: usize) -> bool {
        index < self.wanted && (!self.is_running || self.has_work())
    }

    /// Opens the connections that a ramp has reached. Each call covers the time from the last call to the next, so that
    /// no peak is missed.
    pub(super) fn want(&mut self) {
        if self.run.crowd.over_time.is_none() || !self.is_measured {
            return;
        }
        let (from_ns, to_ns) = (self.wanted_until_ns.min(self.now_ns), self.now_ns + TICK_NS);
        let wanted = self.run.connections_of(self.thread, from_ns, to_ns);
        let before = std::mem::replace(&mut self.wanted, wanted.min(self.connections.len()));
        self.wanted_until_ns = to_ns;
        self.wanted_most = self.wanted_most.max(self.wanted);
        for index in before..self.wanted {
            match self.connections[index].state {
                State::Down { .. } => self.connect(index),
                _ => self.offer(index),
            }
        }
    }

    /// Closes a connection that is no longer wanted, once it has all of its responses.
    fn retire(&mut self, index: usize) {
        if !self.connections[index].has_flights() {
            self.wire.close(index);
            self.connections[index] = Connection::new(State::Down { until_ns: 0 });
        }
    }

    /// Reports whether connections that a ramp has reached are still being opened, including connections that it has
    /// left again. The run does not end before that, so that each of them was open or could not be opened.
    pub(super) fn awaits_connections(&self) -> bool {
        let is_opening =
            |connection: &Connection| matches!(connection.state, State::Connecting { .. });
        self.run.crowd.over_time.is_some()
            && self.interrupted_ns.is_none()
            && self.connections[..self.wanted_most].iter().any(is_opening)
    }

    /// Ends everything that has waited too long.
    pub(super) fn tick(&mut self) {
        self.check_interrupt();
        if self.is_running {
            self.want();
            self.check_time();
        }
        // Durations over 584 years never end.
        let timeout_ns = u64::try_from(self.run.timeout.as_nanos()).unwrap_or(u64::MAX);
        let (now_ns, patience_from_ns) = (self.now_ns, self.patience_from_ns);
        let is_over = |since_ns: u64, limit_ns: u64| {
            now_ns.saturating_sub(since_ns.max(patience_from_ns)) > limit_ns
        };
        let has_open = self.connections.iter().any(Connection::is_open);
        for index in 0..self.connections.len() {
            let connection = &self.connections[index];
            let is_one_shot = self.run.keep_alive.is_one_shot();
            match connection.state {
                State::Open { .. } if index >= self.wanted && !connection.has_flights() => {
                    self.retire(index);
                }
                State::Open { .. } => {
                    let oldest = connection.oldest();
                    let is_spent = is_one_shot && oldest.is_none() && connection.answered() > 0;
                    if is_spent {
                        self.close(index);
                    } else if oldest.is_some_and(|flight| is_over(flight.sent_ns, timeout_ns)) {
                        self.work.ledger.trouble.timeouts += 1;
                        self.counts.given_up_in_a_row += 1;
                        // The number of attempts, rather than the time, decides when to give up.
                        self.progress_ns = now_ns;
                        self.close(index);
                    }
                }
                State::Connecting { since_ns } if is_over(since_ns, timeout_ns) => {
                    self.wire.close(index);
                    self.note_failure_to_connect(index, &Errno::TIMEDOUT.into());
                }
                State::Closing { since_ns } => {
                    let is_over = is_over(since_ns, CLOSE_PATIENCE_NS);
                    let is_kept = !connection.says_close() && (is_over || !is_one_shot);
                    if is_kept {
                        self.run.keep_alive.note_kept();
                        self.connections[index].state = State::Open { since_ns };
                        self.offer(index);
                    } else if is_over {
                        self.close(index);
                    }
                }
                State::Down { until_ns } | State::Lacking { until_ns }
                    if now_ns >= until_ns && self.needs(index) =>
                {
                    self.connect(index);
                }
                State::TurnedAway { until_ns }
                    if now_ns >= until_ns && !has_open && self.needs(index) =>
                {
                    self.connect(index);
                }
                _ => {}
            }
        }
    }
}

/// Reports whether a connection failed to open because of this machine rather than the server.
fn is_lack(error: &io::Error) -> bool {
    let lacks = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::ADDRNOTAVAIL,
        Errno::ACCESS,
        Errno::PERM,
    ];
    Errno::from_io_error(error).is_some_and(|error| lacks.contains(&error))
}
