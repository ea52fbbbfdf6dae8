//! What became of every event: acknowledged, refused, unknown, or never sent. That of a batch is that of all
//! its events.

use super::event_set::{EventSet, Rest};
use super::verdict::plural;
use super::workload::Workload;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
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
    /// Attempts to connect that failed, by the number of the error.
    #[serde(default)]
    pub(super) connect_errors: BTreeMap<i32, u64>,
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
    /// Connections that were open at no time, or only until the server turned them away.
    #[serde(default)]
    pub(super) never_open: u64,
    /// Connections that the server turned away with a 503.
    pub(super) turned_away: u64,
    pub(super) timeouts: u64,
    /// Connections that the server closed after it had promised to keep them.
    pub(super) broken_keep_alives: u64,
    /// Responses that were malformed, or that no request had asked for.
    pub(super) garbled: u64,
    /// Requests sent again, because they were pipelined behind a response with `Connection: close`.
    #[serde(default)]
    pub(super) resent: u64,
}

impl Trouble {
    /// Every count.
    fn counts_mut(&mut self) -> [&mut u64; 8] {
        let Trouble {
            reconnects,
            connect_failures,
            never_open,
            turned_away,
            timeouts,
            broken_keep_alives,
            garbled,
            resent,
        } = self;
        [
            reconnects,
            connect_failures,
            never_open,
            turned_away,
            timeouts,
            broken_keep_alives,
            garbled,
            resent,
        ]
    }
}

impl AddAssign for Trouble {
    fn add_assign(&mut self, mut other: Trouble) {
        for (own, more) in self.counts_mut().into_iter().zip(other.counts_mut()) {
            *own += *more;
        }
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

    /// Notes a connection that failed to open.
    pub(super) fn note_failure_to_connect(&mut self, error: &io::Error) {
        self.trouble.connect_failures += 1;
        // Only the kernel refuses to connect, and it always says why.
        let number = error.raw_os_error().unwrap_or_default();
        *self.connect_errors.entry(number).or_default() += 1;
    }

    /// Adds what connections of another ledger went through.
    pub(super) fn add_trouble(&mut self, other: &Ledger) {
        self.trouble += other.trouble;
        for (number, count) in &other.connect_errors {
            *self.connect_errors.entry(*number).or_default() += count;
        }
    }

    /// Returns the errors of attempts to connect, each with its count.
    pub(super) fn connect_reasons(&self) -> Vec<String> {
        let reason = |(number, count): (&i32, &u64)| {
            let error = io::Error::from_raw_os_error(*number);
            format!("{}: {error}", plural(*count, "attempt", "attempts"))
        };
        self.connect_errors.iter().map(reason).collect()
    }

    /// Returns why some of the connections were never open, and what to do about it; `None` if all were.
    pub(super) fn shortfall(&self, connections: u64) -> Option<String> {
        let missing = self.trouble.never_open;
        if missing == 0 {
            return None;
        }
        let mut reasons = self.connect_reasons();
        if self.trouble.turned_away > 0 {
            let turned_away = plural(self.trouble.turned_away, "connection", "connections");
            reasons.push(format!("the server turned {turned_away} away with status 503"));
        }
        if reasons.is_empty() {
            reasons.push("the server did not take them in time".into());
        }
        let open = connections.saturating_sub(missing);
        Some(format!(
            "only {open} of {} open ({}): {}",
            plural(connections, "connection was", "connections were"),
            reasons.join("; "),
            self.connect_advice()
        ))
    }

    /// What to do about connections that could not be opened.
    fn connect_advice(&self) -> &'static str {
        let has = |errors: &[Errno]| {
            errors.iter().any(|error| self.connect_errors.contains_key(&error.raw_os_error()))
        };
        if has(&[Errno::MFILE, Errno::NFILE]) {
            "raise the limit of open files (ulimit -n), or use fewer connections"
        } else if has(&[Errno::ADDRNOTAVAIL]) {
            "widen net.ipv4.ip_local_port_range, or use fewer connections"
        } else {
            "use fewer connections, or raise the server's limit"
        }
    }

    /// Notes the requests that were left to send at the end.
    pub(super) fn leave(&mut self, rest: Rest) {
        self.unsent.insert_rest(rest);
    }

    /// Events that have a response.
    pub(super) fn answered(&self) -> u64 {
        self.acknowledged + self.refused_by_status.values().sum::<u64>()
    }

    /// Everything that is counted and is not events in a set.
    pub(super) fn counts(&self) -> impl Iterator<Item = u64> {
        let mut trouble = self.trouble;
        let counts = trouble.counts_mut().map(|count| *count);
        let by_kind = self.refused_by_status.values().chain(self.connect_errors.values());
        [self.acknowledged, self.misstated].into_iter().chain(counts).chain(by_kind.copied())
    }

    /// What became of events that did not end in an acknowledgement.
    pub(super) fn sets_mut(&mut self) -> [&mut EventSet; 3] {
        [&mut self.refused, &mut self.unknown, &mut self.unsent]
    }

    /// Adds what another thread or client has. The rests of both must have one step.
    pub(super) fn merge(&mut self, other: Ledger) {
        self.acknowledged += other.acknowledged;
        self.add_misstatements(&other);
        self.add_trouble(&other);
        self.refused.merge(other.refused);
        for (status, count) in other.refused_by_status {
            *self.refused_by_status.entry(status).or_default() += count;
        }
        self.unknown.merge(other.unknown);
        self.unsent.merge(other.unsent);
    }
}

/// Whether a response with such a status acknowledges its request.
#[inline]
pub(super) fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}
