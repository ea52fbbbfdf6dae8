//! The outcome of every event: acknowledged, refused, unknown, or never sent. A batch's outcome is the outcome of all
//! its events.

use super::event_set::EventSet;
use super::verdict::plural;
use super::workload::{Rest, Workload};
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::ops::AddAssign;

/// The outcomes of the events of one thread, or of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub(super) struct Ledger {
    /// Events that the server acknowledged.
    pub(super) acknowledged: u64,
    /// Events that the server refused.
    pub(super) refused: EventSet,
    /// The number of events that the server refused with each status.
    pub(super) refused_by_status: BTreeMap<u16, u64>,
    /// Events that were sent, at least in part, but did not get a response.
    pub(super) unknown: EventSet,
    /// Events that were not sent at all.
    pub(super) unsent: EventSet,
    /// Batches whose acknowledgement was for a different number of events.
    pub(super) misstated: u64,
    /// An example of such an acknowledgement.
    pub(super) misstatement: Option<Misstatement>,
    /// The problems with connections.
    pub(super) trouble: Trouble,
    /// Attempts to connect that failed, by error number.
    #[serde(default)]
    pub(super) connect_errors: BTreeMap<i32, u64>,
}

/// An acknowledgement that contradicts its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Misstatement {
    /// The number of events in the batch.
    pub(super) sent: u64,
    /// The number that the server reports as accepted, if it reports one.
    pub(super) accepted: Option<u64>,
}

/// The problems with connections, by kind.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub(super) struct Trouble {
    /// Connections that were opened to replace others.
    pub(super) reconnects: u64,
    /// Attempts to connect that failed.
    pub(super) connect_failures: u64,
    /// Connections that were never open, or only until the server turned them away.
    #[serde(default)]
    pub(super) never_open: u64,
    /// Connections that a ramp had not reached when the run ended.
    #[serde(default)]
    pub(super) never_wanted: u64,
    /// Connections that the server rejected with a 503.
    pub(super) rejected: u64,
    /// Connections that were given up because of a timeout.
    pub(super) timeouts: u64,
    /// Connections that the server closed after it had promised to keep them.
    pub(super) broken_keep_alives: u64,
    /// Responses that were malformed, or that did not belong to a request.
    pub(super) malformed: u64,
    /// Requests that were sent again because they were pipelined after a request whose response had `Connection: close`.
    #[serde(default)]
    pub(super) resent: u64,
}

impl Trouble {
    /// Returns a mutable reference to every count.
    fn counts_mut(&mut self) -> [&mut u64; 9] {
        let Trouble {
            reconnects,
            connect_failures,
            never_open,
            never_wanted,
            rejected,
            timeouts,
            broken_keep_alives,
            malformed,
            resent,
        } = self;
        [
            reconnects,
            connect_failures,
            never_open,
            never_wanted,
            rejected,
            timeouts,
            broken_keep_alives,
            malformed,
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
    /// Records a response with `status` to a request.
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

    /// Records the number of events that a server reports as accepted from an acknowledged batch.
    pub(super) fn note_accepted(&mut self, sent: u64, accepted: Option<u64>) {
        if accepted != Some(sent) {
            self.misstated += 1;
            self.misstatement.get_or_insert(Misstatement { sent, accepted });
        }
    }

    /// Adds the acknowledgements of another ledger that contradict their batches.
    pub(super) fn add_misstatements(&mut self, other: &Ledger) {
        self.misstated += other.misstated;
        self.misstatement = self.misstatement.or(other.misstatement);
    }

    /// Returns a description of the acknowledgements that contradict their batches, if there are any.
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

    /// Records a connection that failed to open.
    pub(super) fn note_failure_to_connect(&mut self, error: &io::Error) {
        self.trouble.connect_failures += 1;
        // Only the kernel reports that a connection failed, and it always gives a reason.
        let number = error.raw_os_error().unwrap_or_default();
        *self.connect_errors.entry(number).or_default() += 1;
    }

    /// Adds the connection problems of another ledger.
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
            match self.connect_errors.len() {
                1 => error.to_string(),
                _ => format!("{}: {error}", plural(*count, "attempt", "attempts")),
            }
        };
        self.connect_errors.iter().map(reason).collect()
    }

    /// Returns the reason why some of the connections were never open, and what to do about it; `None` if all were open.
    pub(super) fn shortfall(&self, connections: u64) -> Option<String> {
        let missing = self.trouble.never_open;
        if missing == 0 {
            return None;
        }
        let mut reasons = self.connect_reasons();
        if self.trouble.rejected > 0 {
            let rejected = plural(self.trouble.rejected, "connection", "connections");
            reasons.push(format!("the server turned {rejected} away with status 503"));
        }
        if reasons.is_empty() {
            reasons.push("the server did not take them in time".into());
        }
        let open = self.open(connections);
        Some(format!(
            "only {open} of {} open ({}): {}",
            plural(connections, "connection was", "connections were"),
            reasons.join("; "),
            self.connect_advice()
        ))
    }

    /// Returns the number of connections that were open at any time.
    pub(super) fn open(&self, connections: u64) -> u64 {
        connections.saturating_sub(self.trouble.never_open + self.trouble.never_wanted)
    }

    /// Returns the number of events in a run. An open-ended run takes its events from an endless workload, and the rest
    /// of the workload does not belong to the run. The number of events that a lost client took is unknown.
    pub(super) fn requested(&self, workload: &Workload, is_open_ended: bool) -> u64 {
        match is_open_ended {
            true => self.answered() + self.unknown.singles() + self.unsent.singles(),
            false => workload.events,
        }
    }

    /// Returns the number of events in a run that were sent and got no response.
    pub(super) fn without_response(&self, workload: &Workload, is_open_ended: bool) -> u64 {
        if is_open_ended { self.unknown.singles() } else { self.unknown.len(workload) }
    }

    /// Returns the number of events in a run that were not sent.
    pub(super) fn not_sent(&self, workload: &Workload, is_open_ended: bool) -> u64 {
        if is_open_ended { self.unsent.singles() } else { self.unsent.len(workload) }
    }

    /// Returns the advice for connections that could not be opened.
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

    /// Records the requests that were left to send at the end.
    pub(super) fn leave(&mut self, rest: Rest) {
        self.unsent.insert_rest(rest);
    }

    /// Returns the number of events that have a response.
    pub(super) fn answered(&self) -> u64 {
        self.acknowledged + self.refused_by_status.values().sum::<u64>()
    }

    /// Returns every count that is not part of an event set.
    pub(super) fn counts(&self) -> impl Iterator<Item = u64> {
        let mut trouble = self.trouble;
        let counts = trouble.counts_mut().map(|count| *count);
        let by_kind = self.refused_by_status.values().chain(self.connect_errors.values());
        [self.acknowledged, self.misstated].into_iter().chain(counts).chain(by_kind.copied())
    }

    /// Returns the sets of events that were not acknowledged.
    pub(super) fn sets_mut(&mut self) -> [&mut EventSet; 3] {
        [&mut self.refused, &mut self.unknown, &mut self.unsent]
    }

    /// Adds the ledger of another thread or client. The rests of both must have the same step.
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

/// Reports whether a response with this status acknowledges its request.
#[inline]
pub(super) fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::account::{Account, Novelty};
    use crate::load::part::Part;
    use crate::load::schedule::{Left, Schedule};
    use crate::load::shared::rest_of_closed_loop;
    use crate::load::verdict::Verdict;
    use crate::load::workload::{EVENTS_MAX, Totals, Values};
    use fastrand::Rng;
    use std::collections::{HashMap, HashSet};
    use std::sync::atomic::AtomicU64;

    /// The events of a closed loop with a duration, listed by outcome.
    #[derive(Default)]
    struct Listed {
        acknowledged: Vec<u64>,
        refused: Vec<u64>,
        unknown: Vec<u64>,
        unsent: Vec<u64>,
    }

    /// Sends one part over several threads. Each thread reaches the end of the run, or gives up earlier.
    fn send(random: &mut Rng, part: Part, workload: &Workload, all: &mut Listed) -> Ledger {
        let (next, until_ns) = (AtomicU64::new(0), 1 + random.u64(0..300));
        let mut ledger = Ledger::default();
        let trouble = random.u8(0..4);
        let mut threads: Vec<(u64, Schedule<'_>)> = (0..random.usize(1..4))
            .map(|_| (0, Schedule::timed(part, &next, workload, until_ns)))
            .collect();
        while !threads.is_empty() {
            let at = random.usize(0..threads.len());
            let (now_ns, schedule) = &mut threads[at];
            *now_ns += random.u64(0..20);
            let Some(due) = schedule.take(*now_ns) else {
                assert!(*now_ns >= until_ns && schedule.next_ns().is_none());
                assert_eq!(schedule.end(), Left::Grabbed(Vec::new()));
                threads.swap_remove(at);
                continue;
            };
            let list = match random.u8(0..40) {
                0 if trouble > 0 => {
                    ledger.note(workload, due.request, 500);
                    &mut all.refused
                }
                1 if trouble > 1 => {
                    ledger.unknown.insert(workload, due.request);
                    &mut all.unknown
                }
                2 if trouble > 2 => {
                    ledger.unsent.insert(workload, due.request);
                    threads.swap_remove(at);
                    &mut all.unsent
                }
                _ => {
                    ledger.note(workload, due.request, 200);
                    &mut all.acknowledged
                }
            };
            list.extend(workload.events_of(due.request));
        }
        ledger.leave(rest_of_closed_loop(part, &next, workload));
        ledger
    }

    /// Returns the totals of a server that counted these events.
    fn totals(workload: &Workload, events: &[u64]) -> Totals {
        let users: HashSet<u64> = events.iter().map(|event| event % workload.users).collect();
        let halves: u64 = events.iter().map(|event| workload.value_in_halves(*event)).sum();
        let (total_requests, sum) = (events.len() as u64, halves as f64 / 2.0);
        let avg = if events.is_empty() { 0.0 } else { sum / total_requests as f64 };
        Totals { total_requests, unique_users: users.len() as u64, sum, avg }
    }

    /// Compares with lists of all events: closed loops with a duration, in parts and threads that end at different
    /// requests, on a server that is right, or has lost or doubled an event. The verdict must be wrong if and only if
    /// no outcome of the unknown events explains a total.
    #[test]
    fn a_run_with_a_duration_is_judged_as_exactly_as_a_fixed_one() {
        let mut random = Rng::with_seed(31);
        let mut found: HashMap<&str, u64> = HashMap::new();
        for _ in 0..2000 {
            let values = [Values::Integer, Values::Half, Values::One][random.usize(0..3)];
            let users = [1, 7, 50, 75_000, u64::MAX][random.usize(0..5)];
            let batch = random.bool().then(|| random.u64(1..30));
            let workload = Workload { events: EVENTS_MAX, users, values, batch };
            let of = random.u64(1..4);
            let (mut listed, mut ledger) = (Listed::default(), Ledger::default());
            for number in 1..=of {
                let part = Part::new(number, of);
                ledger.merge(send(&mut random, part, &workload, &mut listed));
            }
            let Listed { acknowledged, refused, unknown, unsent } = listed;
            let all = acknowledged.len() + refused.len() + unknown.len() + unsent.len();
            assert_eq!(ledger.requested(&workload, true), all as u64);
            assert_eq!(ledger.not_sent(&workload, true), unsent.len() as u64);
            let late = unknown.iter().filter(|_| random.bool());
            let mut counted: Vec<u64> = acknowledged.iter().chain(late).copied().collect();
            let is_faulty = random.bool() && !counted.is_empty();
            if is_faulty {
                let at = random.usize(0..counted.len());
                let event = counted.swap_remove(at);
                if random.bool() {
                    counted.extend([event, event]);
                }
            }
            let possible: Vec<u64> = acknowledged.iter().chain(&unknown).copied().collect();
            let after = totals(&workload, &counted);
            let [least, most] = [&acknowledged, &possible].map(|events| totals(&workload, events));
            let is_explained = (least.total_requests..=most.total_requests)
                .contains(&after.total_requests)
                && (least.unique_users..=most.unique_users).contains(&after.unique_users)
                && (least.sum..=most.sum).contains(&after.sum);
            let none = Ledger::default();
            let account = Account {
                workload,
                warm_up: 0,
                first: Totals::ZERO,
                before: Totals::ZERO,
                was_reset: true,
                novelty: Novelty::Unknown,
                ledger: &ledger,
                warm_up_ledger: &none,
                is_unbounded: false,
                after: Ok(after),
            };
            let judged = account.evidence().judge();
            let expected =
                match (is_explained, unknown.len() + usize::from(acknowledged.is_empty())) {
                    (false, _) => Verdict::Wrong,
                    (true, 0) => Verdict::Exact,
                    (true, _) => Verdict::Undecided,
                };
            assert_eq!(judged.verdict, expected, "{:?}", judged.reasons);
            assert!(is_explained || is_faulty);
            *found.entry(judged.verdict.word()).or_default() += 1;
        }
        assert!(found.len() == 3 && found.values().all(|count| *count > 200), "{found:?}");
    }
}
