//! What became of every event: acknowledged, refused, unknown, or never sent. That of a batch is that of all
//! its events.

use super::event_set::{EventSet, Rest};
use super::verdict::plural;
use super::workload::Workload;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::AddAssign;

/// The book of one thread, or of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Ledger {
    /// Events that the server acknowledged.
    pub(super) acknowledged: u64,
    /// Events that the server refused, and how many with each status.
    pub(super) refused: EventSet,
    pub(super) refused_by_status: BTreeMap<u16, u64>,
    /// Events of which something was sent, without a response.
    pub(super) unknown: EventSet,
    /// Events of which nothing was sent.
    pub(super) unsent: EventSet,
    /// Batches whose acknowledgement was of another number of events, and one of them.
    pub(super) misstated: u64,
    pub(super) misstatement: Option<Misstatement>,
    /// What connections went through.
    pub(super) trouble: Trouble,
}

/// An acknowledgement that contradicts what it acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Misstatement {
    /// The events of the batch.
    pub(super) sent: u64,
    /// How many of them the server says it has accepted, if it says so.
    pub(super) accepted: Option<u64>,
}

/// What servers do to connections.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Trouble {
    /// Connections opened in place of others.
    pub(super) reconnects: u64,
    pub(super) connect_failures: u64,
    /// Connections that the server turned away with a 503.
    pub(super) turned_away: u64,
    pub(super) timeouts: u64,
    /// Connections that the server closed after it had promised to keep them.
    pub(super) broken_keep_alives: u64,
    /// Responses that were malformed, or that no request had asked for.
    pub(super) garbled: u64,
}

impl AddAssign for Trouble {
    fn add_assign(&mut self, other: Trouble) {
        self.reconnects += other.reconnects;
        self.connect_failures += other.connect_failures;
        self.turned_away += other.turned_away;
        self.timeouts += other.timeouts;
        self.broken_keep_alives += other.broken_keep_alives;
        self.garbled += other.garbled;
    }
}

impl Ledger {
    /// Notes a response with `status` to a request.
    #[inline]
    pub(super) fn note(&mut self, workload: &Workload, request: u64, status: u16) {
        let events = workload.size_of(request);
        if is_success(status) {
            self.acknowledged += events;
        } else {
            self.refused.insert(workload, request);
            *self.refused_by_status.entry(status).or_default() += events;
        }
    }

    /// Notes how many events a server says it has accepted of a batch that it acknowledged.
    pub(super) fn note_accepted(&mut self, sent: u64, accepted: Option<u64>) {
        if accepted != Some(sent) {
            self.misstated += 1;
            self.misstatement.get_or_insert(Misstatement { sent, accepted });
        }
    }

    /// Adds the acknowledgements of another ledger that contradict what they acknowledge.
    pub(super) fn add_misstatements(&mut self, other: &Ledger) {
        self.misstated += other.misstated;
        self.misstatement = self.misstatement.or(other.misstatement);
    }

    /// What is wrong with the acknowledgements of batches, if anything is.
    pub(super) fn contradiction(&self) -> Option<String> {
        let Misstatement { sent, accepted } = self.misstatement?;
        let said = match accepted {
            Some(accepted) => format!("accepted {accepted}"),
            None => "not how many events were accepted".into(),
        };
        Some(format!(
            "{} of another number of events than the batch had: of a batch of {sent}, one said {said}",
            plural(self.misstated, "acknowledgement was", "acknowledgements were")
        ))
    }

    /// Notes the requests that were left to send at the end.
    pub(super) fn leave(&mut self, rest: Rest) {
        self.unsent.insert_rest(rest);
    }

    /// Events that have a response.
    pub(super) fn answered(&self) -> u64 {
        self.acknowledged + self.refused_by_status.values().sum::<u64>()
    }

    /// What became of events that did not end in an acknowledgement.
    pub(super) fn sets_mut(&mut self) -> [&mut EventSet; 3] {
        [&mut self.refused, &mut self.unknown, &mut self.unsent]
    }

    /// Adds what another thread or client has. The rests of both must have one step.
    pub(super) fn merge(&mut self, other: Ledger) {
        self.acknowledged += other.acknowledged;
        self.add_misstatements(&other);
        self.refused.merge(other.refused);
        for (status, count) in other.refused_by_status {
            *self.refused_by_status.entry(status).or_default() += count;
        }
        self.unknown.merge(other.unknown);
        self.unsent.merge(other.unsent);
        self.trouble += other.trouble;
    }
}

/// Whether a response with such a status acknowledges its request.
#[inline]
pub(super) fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}
