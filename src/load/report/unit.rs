//! What a run counts: requests, or the events of batches.

use crate::load::numbers::{counted, grouped};

/// What requests/s and all that is counted are in: with batches, events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::load) enum Unit {
    /// One event per request.
    Request,
    /// The events of batches.
    Event,
}

impl Unit {
    /// For a run with so many events per batch, or without batches.
    pub(in crate::load) fn of(batch: Option<u64>) -> Unit {
        if batch.is_some() { Unit::Event } else { Unit::Request }
    }

    /// The word for one.
    pub(super) fn one(self) -> &'static str {
        match self {
            Unit::Request => "request",
            Unit::Event => "event",
        }
    }

    /// The word for several.
    pub(in crate::load) fn many(self) -> &'static str {
        match self {
            Unit::Request => "requests",
            Unit::Event => "events",
        }
    }

    /// The unit of a rate.
    pub(in crate::load) fn per_second(self) -> &'static str {
        match self {
            Unit::Request => "requests/s",
            Unit::Event => "events/s",
        }
    }

    /// So many of them.
    pub(in crate::load) fn count(self, count: u64) -> String {
        counted(count, self.one(), self.many())
    }

    /// So many requests, each of which may be a batch.
    pub(in crate::load) fn count_requests(self, requests: u64) -> String {
        match self {
            Unit::Request => counted(requests, "request", "requests"),
            Unit::Event => counted(requests, "batch", "batches"),
        }
    }

    /// So many of them, and the batches that they are in.
    pub(in crate::load) fn batched(self, events: u64, batches: Option<u64>) -> String {
        match batches {
            None => grouped(events),
            Some(batches) => {
                format!("{} in {}", grouped(events), counted(batches, "batch", "batches"))
            }
        }
    }

    /// CPU time per request or event in microseconds, with digits that tell something.
    pub(super) fn cpu_us(self, us: f64) -> String {
        match self {
            Unit::Request => format!("{us:.2}"),
            Unit::Event => format!("{us:.3}"),
        }
    }
}
