//! The unsent responses of one connection: some may be sent, some wait for the store, and some must still be made.

use crate::http::{Method, ReplyTo, Request, UNSENT_BYTES_MAX};
use crate::metrics::{Endpoint, Format, Kind};
use crate::store::{Durability, Held, Release};
use std::collections::VecDeque;

/// The number of bytes that a response counts as before it is made. A response to `/stats` has fewer.
pub const PARKED_BYTES: usize = 512;

/// Responses in the order of their requests. Each is sent once everything before it was sent, what it acknowledges is settled
/// and, if it shows totals of a group of servers, the totals were read.
#[derive(Debug, Default)]
pub struct Responses {
    /// The bytes of responses that were made.
    pub(super) bytes: Vec<u8>,
    /// The responses that wait for the store.
    pub(super) held: Held,
    /// The responses that will be made once totals are read, in order.
    parked: VecDeque<Parked>,
}

/// A response that will be made once the totals that it shows are read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parked {
    /// The position of the response in the bytes.
    pub(super) at: usize,
    pub(super) to: ReplyTo,
    pub(super) method: Method,
    pub(super) shows: Shows,
    state: Awaited,
}

/// The form of the totals in a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shows {
    Stats,
    Metrics(Format),
}

impl Shows {
    pub(super) fn endpoint(self) -> Endpoint {
        match self {
            Shows::Stats => Endpoint::Stats,
            Shows::Metrics(_) => Endpoint::Metrics,
        }
    }
}

/// The progress of the totals that a response shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    /// They were not requested.
    Unasked,
    /// They must be read after the cut of an epoch, before a deadline in the engine's milliseconds.
    Asked { epoch: u64, deadline_ms: u64 },
    /// They were read.
    Read,
    /// They were not read in time.
    Late,
}

impl Responses {
    /// Provides memory for responses that do not have any: see [`Responses::has_memory`].
    pub fn reuse(&mut self, memory: Vec<u8>) {
        debug_assert!(memory.is_empty() && !self.has_memory());
        self.bytes = memory;
    }

    /// Returns whether they have memory.
    #[inline]
    pub fn has_memory(&self) -> bool {
        self.bytes.capacity() > 0
    }

    /// Returns the bytes of the responses that were made.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the number of bytes of the responses. Each response that is not made yet counts as [`PARKED_BYTES`].
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes.len() + self.parked.len() * PARKED_BYTES
    }

    /// Returns whether all responses were taken.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether the peer must read some responses before further requests are handled.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.len() >= UNSENT_BYTES_MAX
    }

    /// Returns whether some responses are not made yet.
    #[inline]
    pub fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    /// Returns whether some responses wait until what they acknowledge is settled.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Appends bytes that are not a response and do not have to wait themselves.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Notes a response that will be made once totals are read.
    pub(super) fn park(&mut self, shows: Shows, request: &Request<'_>) {
        let (at, to, method) = (self.bytes.len(), request.reply_to(), request.method());
        self.parked.push_back(Parked { at, to, method, shows, state: Awaited::Unasked });
    }

    /// Notes that the acknowledged events were published and will be settled with `epoch`. The responses wait for it until
    /// `deadline_ms`. Returns whether any response has begun to wait for it.
    #[inline]
    pub fn note_published(&mut self, epoch: u64, deadline_ms: u64) -> bool {
        self.held.publish(epoch, deadline_ms)
    }

    /// Notes that the totals of parked responses that were not requested yet will be read after the cut of
    /// `epoch`, and their deadline.
    pub fn note_asked(&mut self, epoch: u64, deadline_ms: u64) {
        let unasked =
            self.parked.iter_mut().rev().take_while(|last| last.state == Awaited::Unasked);
        unasked.for_each(|parked| parked.state = Awaited::Asked { epoch, deadline_ms });
    }

    /// Returns whether there are parked responses whose totals were not requested yet.
    #[inline]
    pub fn has_unasked(&self) -> bool {
        self.parked.back().is_some_and(|last| last.state == Awaited::Unasked)
    }

    /// Notes that totals were read after a cut of this epoch.
    pub fn note_read(&mut self, read: u64) {
        for parked in &mut self.parked {
            if matches!(parked.state, Awaited::Asked { epoch, .. } if epoch <= read) {
                parked.state = Awaited::Read;
            }
        }
    }

    /// Returns the kind of the first request whose response is not made yet.
    pub fn parked_kind(&self) -> Option<Kind> {
        let first = self.parked.front()?;
        Some(Kind { endpoint: first.shows.endpoint(), method: first.method })
    }

    /// Returns the first response that is not made yet, if it can be made, and whether its totals are late.
    pub(super) fn first_ready(&self) -> Option<(Parked, bool)> {
        let first = self.parked.front()?;
        match first.state {
            Awaited::Read => Some((*first, false)),
            Awaited::Late => Some((*first, true)),
            Awaited::Asked { .. } | Awaited::Unasked => None,
        }
    }

    /// Reports whether a response that is not made yet is the last response.
    pub(super) fn ends_with(&self, parked: &Parked) -> bool {
        self.parked.len() == 1 && parked.at == self.bytes.len()
    }

    /// Inserts the first response that was not made at its position. No response after it waits for the store, because the
    /// requests that may overtake it do not acknowledge anything.
    pub(super) fn fill_first(&mut self, response: &[u8]) {
        let Some(first) = self.parked.pop_front() else { return };
        self.bytes.splice(first.at..first.at, response.iter().copied());
        self.parked.iter_mut().for_each(|parked| parked.at += response.len());
    }

    /// Returns the number of bytes that may be sent now. Drops void responses and all responses after them, so the remaining
    /// responses are the last.
    #[inline]
    pub fn release(&mut self, durability: &Durability) -> Release {
        let release = durability.release(&mut self.held, self.bytes.len());
        let parked_at = self.parked.front().map_or(usize::MAX, |first| first.at);
        match release {
            Release::Bytes(bytes) => Release::Bytes(bytes.min(parked_at)),
            Release::Void(bytes) => {
                self.bytes.truncate(bytes);
                self.held.clear();
                // Parked responses do not take up any bytes, so one at this position comes before the void responses.
                self.parked.retain(|parked| parked.at <= bytes);
                Release::Void(bytes.min(parked_at))
            }
        }
    }

    /// Takes the first `count` bytes, which may be sent.
    #[inline]
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        if count == self.bytes.len() && self.parked.is_empty() {
            return std::mem::take(&mut self.bytes);
        }
        self.held.note_taken(count);
        self.parked.iter_mut().for_each(|parked| parked.at -= count);
        let rest = self.bytes.split_off(count);
        std::mem::replace(&mut self.bytes, rest)
    }

    /// Returns the time when the store becomes late with something, in the engine's milliseconds.
    pub fn store_deadline_ms(&self) -> Option<u64> {
        [self.held.deadline_ms(), self.totals_deadline_ms()].into_iter().flatten().min()
    }

    fn totals_deadline_ms(&self) -> Option<u64> {
        self.parked.iter().find_map(|parked| match parked.state {
            Awaited::Asked { deadline_ms, .. } => Some(deadline_ms),
            Awaited::Unasked | Awaited::Read | Awaited::Late => None,
        })
    }

    /// Returns whether the first response that acknowledges something has waited too long.
    pub fn is_store_late(&self, now_ms: u64) -> bool {
        self.held.deadline_ms().is_some_and(|deadline_ms| now_ms >= deadline_ms)
    }

    /// Gives up waiting for totals that were not read in time. Returns whether there were any.
    pub fn give_up_late_totals(&mut self, now_ms: u64) -> bool {
        let mut has_late = false;
        for parked in &mut self.parked {
            if matches!(parked.state, Awaited::Asked { deadline_ms, .. } if now_ms >= deadline_ms) {
                (parked.state, has_late) = (Awaited::Late, true);
            }
        }
        has_late
    }
}
