//! What became of every event: acknowledged, refused, unknown, or never sent.

use std::collections::BTreeMap;
use std::iter::StepBy;
use std::ops::{AddAssign, Range};

/// The book of one thread, or of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    /// Events that the server has acknowledged.
    pub(super) acknowledged: u64,
    /// Events that were refused, by status.
    pub(super) refused: BTreeMap<u16, Vec<u64>>,
    /// Events of which something was sent, and which were not answered.
    pub(super) unknown: Vec<u64>,
    /// Events of which nothing was sent: single ones, and every so many up to an end.
    pub(super) given_back: Vec<u64>,
    pub(super) left: Vec<StepBy<Range<u64>>>,
    /// What connections went through.
    pub(super) trouble: Trouble,
}

/// What servers do to connections.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trouble {
    /// Connections beyond the first of each worker.
    pub(super) reconnects: u64,
    pub(super) connect_failures: u64,
    pub(super) timeouts: u64,
    /// Connections that the server closed against its word.
    pub(super) broken_keep_alives: u64,
    /// Answers that were none, or that nobody had asked for.
    pub(super) garbled: u64,
}

impl AddAssign for Trouble {
    fn add_assign(&mut self, other: Trouble) {
        self.reconnects += other.reconnects;
        self.connect_failures += other.connect_failures;
        self.timeouts += other.timeouts;
        self.broken_keep_alives += other.broken_keep_alives;
        self.garbled += other.garbled;
    }
}

impl Ledger {
    /// Events that have ended with an answer.
    pub(super) fn answered(&self) -> u64 {
        self.acknowledged + self.refused.values().map(|events| events.len() as u64).sum::<u64>()
    }

    /// Events of which nothing was sent.
    pub(super) fn unsent(&self) -> impl Iterator<Item = u64> {
        self.given_back.iter().copied().chain(self.left.iter().cloned().flatten())
    }

    /// How many they are.
    pub(super) fn count_unsent(&self) -> u64 {
        let left: usize = self.left.iter().map(|stretch| stretch.size_hint().0).sum();
        (self.given_back.len() + left) as u64
    }

    /// Adds what another thread has.
    pub(super) fn merge(&mut self, other: Ledger) {
        self.acknowledged += other.acknowledged;
        for (status, events) in other.refused {
            self.refused.entry(status).or_default().extend(events);
        }
        self.unknown.extend(other.unknown);
        self.given_back.extend(other.given_back);
        self.left.extend(other.left);
        self.trouble += other.trouble;
    }
}
