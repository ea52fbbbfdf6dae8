//! The record of a client's run. The client's threads fill it, a file keeps it, the records of several clients are
//! merged, and every report is made from a record.

use super::event_set::EventSet;
use super::latency::Slice;
use super::ledger::Ledger;
use super::part::Part;
use super::timeline::RawSecond;
use super::watch::Watched;
use super::workload::{Workload, greatest_common_divisor};
use crate::doctor::CpuUse;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The greatest step that ledgers may share. If the clients' numbers of threads do not have a small common multiple,
/// the ledgers would become too large.
const STEP_MAX: u64 = 1 << 20;

/// The record of a thread in a phase, or of all threads of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub(super) struct Work {
    /// The outcomes of the events.
    pub(super) ledger: Ledger,
    /// Requests of an open loop that came due while every connection was busy.
    pub(super) queued: u64,
    /// Requests of an open loop that came due while the client did not run.
    pub(super) due_in_stalls: u64,
    /// CPU time, polling excluded.
    pub(super) cpu: Duration,
    /// CPU time that was spent polling until the next request was due.
    pub(super) polling: Duration,
    /// The time from the start to the last send of a request.
    pub(super) last_sent: Duration,
    /// The time that a thread did not run, in stretches of a tenth of a second or more.
    pub(super) suspended: Duration,
}

impl Work {
    /// Adds the record of another thread or client. The rests of both ledgers must have the same step.
    pub(super) fn merge(&mut self, other: Work) {
        self.ledger.merge(other.ledger);
        self.queued += other.queued;
        self.due_in_stalls += other.due_in_stalls;
        self.cpu += other.cpu;
        self.polling += other.polling;
        self.last_sent = self.last_sent.max(other.last_sent);
        self.suspended = self.suspended.max(other.suspended);
    }

    /// Returns the number of events that were sent.
    pub(super) fn events(&self) -> u64 {
        self.ledger.answered() + self.ledger.unknown.singles()
    }

    /// Returns the events per second that an open loop sent; `None` for a single request, which does not have a rate.
    pub(super) fn rate(&self, workload: &Workload) -> Option<f64> {
        // The first request is due immediately, and the last request is due when all events before it are due.
        let batch = workload.events_per_request();
        let before_last = self.events().div_ceil(batch).saturating_sub(1) * batch;
        (before_last > 0 && !self.last_sent.is_zero())
            .then(|| before_last as f64 / self.last_sent.as_secs_f64())
    }
}

/// The record of a client, or of all clients of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub(super) struct ClientRun {
    /// The record of its threads in the measured part of the run.
    pub(super) work: Work,
    /// The outcomes of the warm-up's events.
    pub(super) warm_up: Ledger,
    /// The time from the start to the end of the last request.
    pub(super) elapsed: Duration,
    /// The latencies of all requests.
    pub(super) total: Slice,
    /// The latencies of the requests that ended in each second.
    pub(super) seconds: Vec<RawSecond>,
    /// The share of the time that the busiest thread was busy, from 0 to 1, polling excluded.
    pub(super) busy: f64,
    /// The greatest share of the time that a thread waited for a CPU, from 0 to 1.
    pub(super) waiting: f64,
    /// The use of each client's CPUs during the run, by any process.
    pub(super) cpus: Vec<CpuUse>,
    /// The reasons why the client limited the result, a sentence each.
    pub(super) limited_by: Vec<String>,
    /// Whether the user ended the run before it was over.
    pub(super) interrupted: bool,
    /// The observations of the client that polled the totals.
    pub(super) watched: Option<Watched>,
    /// Warnings for the reader, a sentence each.
    pub(super) warnings: Vec<String>,
}

impl ClientRun {
    /// Returns the record of a client that ended without one. Each of its events may or may not have been sent, and may
    /// or may not have been counted.
    pub(super) fn lost(part: Part) -> ClientRun {
        let mut run = ClientRun::default();
        for ledger in [&mut run.work.ledger, &mut run.warm_up] {
            ledger.unknown.insert_rest(part.rest(0));
        }
        run
    }

    /// Returns the record on the clock of a run that started earlier by `delay`. A second of a client may overlap two
    /// seconds of the run, and counts for the second with the larger share.
    pub(super) fn delayed(mut self, delay: Duration) -> ClientRun {
        self.elapsed += delay;
        self.work.last_sent += delay;
        let shift = (delay + Duration::from_millis(500)).as_secs();
        for raw in &mut self.seconds {
            raw.second = raw.second.saturating_add(shift);
        }
        self
    }

    /// Returns the record with the client's name before each of its sentences.
    pub(super) fn named(mut self, name: &str) -> ClientRun {
        for sentence in self.limited_by.iter_mut().chain(&mut self.warnings) {
            sentence.insert_str(0, &format!("{name}: "));
        }
        self
    }

    /// Returns one record of all clients of a run with this workload and warm-up.
    ///
    /// # Errors
    ///
    /// Fails if the events that were not sent cannot be added up.
    pub(super) fn merged(
        mut runs: Vec<ClientRun>,
        workload: &Workload,
        warm_up: &Workload,
    ) -> Result<ClientRun, String> {
        align(runs.iter_mut().map(|run| &mut run.work.ledger), workload)?;
        align(runs.iter_mut().map(|run| &mut run.warm_up), warm_up)?;
        let mut all = ClientRun::default();
        runs.into_iter().for_each(|run| all.merge(run));
        Ok(all)
    }

    /// Adds the record of another client. The rests of both ledgers must have the same step.
    fn merge(&mut self, other: ClientRun) {
        self.work.merge(other.work);
        self.warm_up.merge(other.warm_up);
        self.elapsed = self.elapsed.max(other.elapsed);
        self.total.merge(&other.total);
        self.seconds.extend(other.seconds);
        self.busy = self.busy.max(other.busy);
        self.waiting = self.waiting.max(other.waiting);
        self.cpus.extend(other.cpus);
        self.limited_by.extend(other.limited_by);
        self.interrupted |= other.interrupted;
        self.watched = self.watched.take().or(other.watched);
        self.warnings.extend(other.warnings);
    }
}

/// Gives the rests of some ledgers of one workload the same step.
fn align<'a>(
    ledgers: impl Iterator<Item = &'a mut Ledger>,
    workload: &Workload,
) -> Result<(), String> {
    let mut sets: Vec<&mut EventSet> = ledgers.flat_map(Ledger::sets_mut).collect();
    let mut step = 1;
    for set in &mut sets {
        // A rest without an event carries no information.
        set.drop_empty_rests(workload.requests());
        for own in set.steps() {
            step = least_common_multiple(step, own).filter(|step| *step <= STEP_MAX).ok_or(
                "the events that were not sent cannot be added up, because the clients had very \
                 different numbers of threads: pass the same --threads to all",
            )?;
        }
    }
    sets.into_iter().for_each(|set| set.widen(step));
    Ok(())
}

fn least_common_multiple(a: u64, b: u64) -> Option<u64> {
    (a / greatest_common_divisor(a, b)).checked_mul(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::workload::Values;

    fn workload() -> Workload {
        Workload { events: 900, users: 70, values: Values::Half, batch: None }
    }

    /// Returns the record of a client from a group of three that ended early, each with a different number of threads.
    fn record(number: u64) -> ClientRun {
        let mut run = ClientRun::lost(Part::new(number, 3));
        run.work.ledger.unknown = EventSet::default();
        run.work.ledger.leave(Part::new(number, 3).rest(number * 10));
        run.work.ledger.acknowledged = number * 10;
        run.work.ledger.connect_errors.insert(111, number);
        (run.work.queued, run.work.due_in_stalls) = (number, 2 * number);
        let [ms, s] = [Duration::from_millis, Duration::from_secs].map(|unit| unit(number));
        (run.work.cpu, run.work.polling, run.work.last_sent, run.work.suspended) = (ms, ms, s, ms);
        run.total = Slice::new(0, number > 1);
        run.total.latency.record(number * 1000);
        run.seconds =
            vec![RawSecond { second: number, events: 1, latency: (&run.total.latency).into() }];
        (run.busy, run.waiting, run.interrupted) = (0.1 * number as f64, 0.2, number == 2);
        run.limited_by = vec![format!("busy {number}")];
        run.warnings = vec![format!("warned {number}")];
        run.watched = (number == 1).then(Watched::default);
        run.delayed(Duration::from_millis(600))
    }

    /// Returns the merged record as JSON, with all lists sorted.
    fn merged(runs: Vec<ClientRun>) -> serde_json::Value {
        let all = ClientRun::merged(runs, &workload(), &workload()).unwrap();
        let mut json = serde_json::to_value(all).unwrap();
        sort_lists(&mut json);
        json
    }

    fn sort_lists(json: &mut serde_json::Value) {
        match json {
            serde_json::Value::Array(items) => {
                items.iter_mut().for_each(sort_lists);
                items.sort_by_key(ToString::to_string);
            }
            serde_json::Value::Object(members) => members.values_mut().for_each(sort_lists),
            _ => {}
        }
    }

    #[test]
    fn a_merge_depends_on_neither_order_nor_grouping_and_zero_changes_nothing() {
        let whole = merged([1, 2, 3].map(record).to_vec());
        assert_eq!(whole["work"]["queued"], 6);
        assert_eq!(whole["elapsed"], serde_json::json!({"secs": 0, "nanos": 600_000_000}));
        let seconds = whole["seconds"].as_array().unwrap();
        assert!(seconds.len() == 3 && seconds.iter().any(|second| second["second"] == 4));
        assert_eq!(merged([3, 1, 2].map(record).to_vec()), whole);
        assert_eq!(merged(vec![record(1), ClientRun::default(), record(3), record(2)]), whole);
        for (pair, third) in [([1, 2], 3), ([2, 3], 1)] {
            let pair = pair.map(record).to_vec();
            let pair = ClientRun::merged(pair, &workload(), &workload()).unwrap();
            assert_eq!(merged(vec![pair, record(third)]), whole);
        }
    }
}
