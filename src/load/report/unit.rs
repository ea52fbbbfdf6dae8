//! The unit of a run: requests, or the events of batches.

use crate::load::numbers::{counted, grouped};

/// The unit of rates and counts: requests, or events if the run has batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::load) enum Unit {
    /// One event per request.
    Request,
    /// The events of batches.
    Event,
}

impl Unit {
    /// Returns the unit of a run with this number of events per batch, or without batches.
    pub(in crate::load) fn of(batch: Option<u64>) -> Unit {
        if batch.is_some() { Unit::Event } else { Unit::Request }
    }

    /// Returns the word for one.
    pub(super) fn one(self) -> &'static str {
        match self {
            Unit::Request => "request",
            Unit::Event => "event",
        }
    }

    /// Returns the word for several.
    pub(in crate::load) fn many(self) -> &'static str {
        match self {
            Unit::Request => "requests",
            Unit::Event => "events",
        }
    }

    /// Returns the unit of a rate.
    pub(in crate::load) fn per_second(self) -> &'static str {
        match self {
            Unit::Request => "requests/s",
            Unit::Event => "events/s",
        }
    }

    /// Formats a count with this unit.
    pub(in crate::load) fn count(self, count: u64) -> String {
        counted(count, self.one(), self.many())
    }

    /// Formats a count of requests, which may be batches.
    pub(in crate::load) fn count_requests(self, requests: u64) -> String {
        match self {
            Unit::Request => counted(requests, "request", "requests"),
            Unit::Event => counted(requests, "batch", "batches"),
        }
    }

    /// Formats a count, with the number of batches if there are any.
    pub(in crate::load) fn batched(self, events: u64, batches: Option<u64>) -> String {
        match batches {
            None => grouped(events),
            Some(batches) => {
                format!("{} in {}", grouped(events), counted(batches, "batch", "batches"))
            }
        }
    }

    /// Formats CPU time per request or event in microseconds, with the digits that are meaningful.
    pub(super) fn cpu_us(self, us: f64) -> String {
        match self {
            Unit::Request => format!("{us:.2}"),
            Unit::Event => format!("{us:.3}"),
        }
    }
}
