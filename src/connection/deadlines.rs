//! The deadlines of a connection.

use super::{Connection, DRAIN_QUIET_MS, Moment, State, Urgency};
use crate::service::Service;

/// The result of checking a connection's deadlines.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// The connection has something to send, as its last response or in place of totals that were not read in time: ask
    /// for its [`Action`](super::Action).
    Act,
    /// The connection must be closed, and nothing is in flight.
    CloseIdle,
    /// The connection must be closed, and requests or responses are lost with it.
    Cut,
}

impl Connection {
    /// Returns the earliest deadline while the server serves.
    pub fn deadline_ms(&self) -> u64 {
        match self.responses.store_deadline_ms() {
            None if self.waits_for_peer() => self.http.deadline_ms(),
            // It is not waiting for anybody.
            None if self.has_work() && self.sending == 0 => u64::MAX,
            None => self.deadline_ms,
            // Nothing is on its way to the peer.
            Some(store_ms) if self.sending == 0 => store_ms,
            Some(store_ms) => store_ms.min(self.deadline_ms),
        }
    }

    /// Returns whether it is the peer's turn to send.
    fn waits_for_peer(&self) -> bool {
        matches!(self.state, State::Serving | State::Full) && self.unsent() == 0
    }

    /// Reports missed deadlines and, while the server drains, a connection with nothing in flight.
    pub fn tick(&mut self, moment: &Moment, service: &mut Service) -> Due {
        let close = if self.is_idle() { Due::CloseIdle } else { Due::Cut };
        if moment.urgency == Urgency::Abort {
            return close;
        }
        let has_settled = self.responses.is_holding() && {
            self.sendable(service);
            !self.responses.is_holding()
        };
        if has_settled && self.sending == 0 {
            // The store has just settled the responses: they are about to be sent, or the connection is about to end.
            self.deadline_ms = moment.now_ms.saturating_add(self.http.send_timeout_ms());
        }
        if let Some(durability) = service.durability() {
            self.responses.note_read(durability.read());
        }
        let is_late = moment.now_ms >= self.deadline_ms();
        if is_late && self.waits_for_peer() {
            return match self.has_unread {
                // It is not the peer that is late.
                true => Due::Nothing,
                false => self.expire(moment.now_ms, service),
            };
        }
        if is_late && self.responses.is_store_late(moment.now_ms) {
            // No response is sent, because it is unknown whether the store has what it would acknowledge.
            return Due::Cut;
        }
        if self.responses.give_up_late_totals(moment.now_ms) {
            return Due::Act;
        }
        if is_late {
            return match self.state {
                State::Lingering { .. } => Due::CloseIdle,
                _ => {
                    service.metrics().note_timeout(None);
                    Due::Cut
                }
            };
        }
        let quiet_since_ms = self.received_ms.max(moment.drain_ms);
        let is_quiet = moment.now_ms >= quiet_since_ms.saturating_add(DRAIN_QUIET_MS);
        match moment.urgency == Urgency::Drain
            && self.state == State::Serving
            && self.is_idle()
            && is_quiet
        {
            true => Due::CloseIdle,
            false => Due::Nothing,
        }
    }

    /// Ends the wait for a peer that was too slow.
    fn expire(&mut self, now_ms: u64, service: &mut Service) -> Due {
        service.metrics().note_timeout(Some(self.http.waited()));
        if let Some(refused) = self.http.expire(&self.input) {
            service.refuse(refused, &mut self.responses);
        }
        self.batch = None;
        self.input = Vec::new();
        self.state = State::Finishing;
        self.deadline_ms = now_ms.saturating_add(self.http.send_timeout_ms());
        match self.responses.is_empty() {
            true => Due::CloseIdle,
            false => Due::Act,
        }
    }
}
