//! A run second by second, from the slices that its threads send.

use super::latency::{Bound, Encoded, Latencies, Slice, lower_bounds};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The number of seconds whose histograms are kept for threads that report late.
const OPEN_SECONDS: u64 = 10;

/// One second of a run. Its latencies are `None` if no request ended in it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(super) struct Second {
    /// Its number, from 0.
    pub(super) second: u64,
    /// Events that got their responses in it.
    pub(super) requests: u64,
    /// The median latency in microseconds; null if no request ended in the second.
    pub(super) p50_us: Option<Bound>,
    /// The 99th percentile in microseconds.
    pub(super) p99_us: Option<Bound>,
    /// The longest latency in microseconds.
    pub(super) max_us: Option<Bound>,
    /// The keys above whose true values may be greater because requests were given up; left out if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) lower_bounds: Vec<&'static str>,
    /// The numbers of requests by latency.
    #[serde(skip)]
    pub(super) heat: Heat,
}

/// The numbers of requests by latency, in coarse steps: ten from a time to ten times as long. It is small because a run
/// has one for each second.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Heat(Vec<(u8, u32)>);

/// The requests in one step of a [`Heat`].
pub(super) struct HeatCell {
    pub(super) from_us: f64,
    pub(super) to_us: f64,
    pub(super) requests: u64,
}

/// The number of steps from a time to ten times as long.
const HEAT_STEPS: f64 = 10.0;

impl Heat {
    pub(super) fn of(latency: &Latencies) -> Heat {
        let mut heat = Heat::default();
        for recorded in latency.histogram().iter_recorded() {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "ten times the digits of a number from 1 to an hour in nanoseconds"
            )]
            let step = ((recorded.value_iterated_to() as f64).log10() * HEAT_STEPS) as u8;
            // No second has more requests.
            heat.add(step, u32::try_from(recorded.count_at_value()).unwrap_or(u32::MAX));
        }
        heat
    }

    fn add(&mut self, step: u8, requests: u32) {
        match self.0.binary_search_by_key(&step, |(step, _)| *step) {
            Ok(at) => self.0[at].1 = self.0[at].1.saturating_add(requests),
            Err(at) => self.0.insert(at, (step, requests)),
        }
    }

    /// Adds the requests of `other`.
    pub(super) fn merge(&mut self, other: &Heat) {
        other.0.iter().for_each(|(step, requests)| self.add(*step, *requests));
    }

    /// Returns its requests by latency, from the shortest time on.
    pub(super) fn cells(&self) -> impl Iterator<Item = HeatCell> + '_ {
        let us = |step: f64| 10_f64.powf(step / HEAT_STEPS) / 1e3;
        self.0.iter().map(move |(step, requests)| HeatCell {
            from_us: us(f64::from(*step)),
            to_us: us(f64::from(*step) + 1.0),
            requests: u64::from(*requests),
        })
    }
}

/// One second of a run, or some of its requests, as stored in a file.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct RawSecond {
    /// Its number, from 0.
    pub(super) second: u64,
    /// Events that got their response in it.
    pub(super) events: u64,
    #[serde(flatten)]
    pub(super) latency: Encoded,
}

impl RawSecond {
    /// Returns its latencies.
    ///
    /// # Errors
    ///
    /// Fails if a file has something else in their place.
    pub(super) fn latencies(&self) -> Result<Latencies, String> {
        Latencies::try_from(self.latency.clone())
    }
}

impl Second {
    /// Creates a second from the number of events that got a response in it, and the latencies of their requests.
    pub(super) fn of(second: u64, events: u64, latency: &Latencies) -> Second {
        let [p50_us, p99_us] = [0.5, 0.99].map(|quantile| latency.quantile(quantile));
        let max_us = latency.max();
        let named = [("p50_us", p50_us), ("p99_us", p99_us), ("max_us", max_us)];
        let lower_bounds = lower_bounds(named);
        Second {
            second,
            requests: events,
            p50_us,
            p99_us,
            max_us,
            lower_bounds,
            heat: Heat::of(latency),
        }
    }
}

/// Returns the seconds of a run, in order. A second may have several records.
pub(super) fn seconds(records: &[RawSecond]) -> Vec<Second> {
    let mut by_second: BTreeMap<u64, (u64, Latencies)> = BTreeMap::new();
    for raw in records {
        let (events, latency) = by_second.entry(raw.second).or_default();
        *events += raw.events;
        latency.merge(&raw.latencies().unwrap_or_else(|why| {
            unreachable!("it was written here, or checked when it was read: {why}")
        }));
    }
    let of =
        |(second, (events, latency)): (u64, (u64, Latencies))| Second::of(second, events, &latency);
    by_second.into_iter().map(of).collect()
}

/// The slices of a run, added up over the whole run and over each second.
pub(super) struct Timeline {
    total: Slice,
    /// Seconds that threads may still report, with their events and histograms.
    open: BTreeMap<u64, (u64, Latencies)>,
    /// Seconds that are over, about a KiB each. A thread that reports more than [`OPEN_SECONDS`] late adds a separate record.
    closed: Vec<RawSecond>,
}

impl Timeline {
    pub(super) fn new(is_open_loop: bool) -> Timeline {
        Timeline { total: Slice::new(0, is_open_loop), open: BTreeMap::new(), closed: Vec::new() }
    }

    pub(super) fn add(&mut self, slice: &Slice) {
        self.total.merge(slice);
        let (events, latency) = self.open.entry(slice.second).or_default();
        *events += slice.events;
        latency.merge(&slice.latency);
        while let Some(first) = self.open.first_entry()
            && first.key() + OPEN_SECONDS < slice.second
        {
            let (second, (events, latency)) = first.remove_entry();
            self.close(second, events, &latency);
        }
    }

    /// Keeps a second that is over, unless no request ended in it.
    fn close(&mut self, second: u64, events: u64, latency: &Latencies) {
        if latency.len() > 0 {
            self.closed.push(RawSecond { second, events, latency: Encoded::from(latency) });
        }
    }

    /// Returns all latencies that threads have reported.
    pub(super) fn latencies(&self) -> &Latencies {
        &self.total.latency
    }

    /// Returns the latest second that a thread has reported. Other threads may still add to it.
    pub(super) fn latest(&self) -> Option<Second> {
        let (second, (events, latency)) = self.open.iter().next_back()?;
        Some(Second::of(*second, *events, latency))
    }

    /// Returns the slice of the whole run, and a record of every second during which a request ended.
    pub(super) fn finish(mut self) -> (Slice, Vec<RawSecond>) {
        for (second, (events, latency)) in std::mem::take(&mut self.open) {
            self.close(second, events, &latency);
        }
        (self.total, self.closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_in_one_second_and_in_the_total() {
        let mut timeline = Timeline::new(false);
        // A second during which no request ended is not listed, whether it is reported on time or late.
        [3, 28, 4].into_iter().for_each(|second| timeline.add(&Slice::new(second, false)));
        // There are two threads. The slower thread reports seconds 0 and 1 after their histograms are gone.
        for second in [0, 1, 2, 30, 31, 0, 1] {
            let mut slice = Slice::new(second, false);
            slice.latency.record(1000 * (second + 1));
            slice.events += 10;
            timeline.add(&slice);
        }
        let (total, raw) = timeline.finish();
        let seconds = seconds(&raw);
        assert_eq!(total.latency.len(), 7);
        let mut raw_total = Latencies::new();
        for second in raw {
            raw_total.merge(&second.latencies().unwrap());
        }
        assert_eq!(raw_total.histogram(), total.latency.histogram());
        let in_heat = seconds.iter().flat_map(|second| second.heat.cells());
        assert_eq!(in_heat.map(|cell| cell.requests).sum::<u64>(), 7);
        for second in &seconds {
            let cell = second.heat.cells().next().unwrap();
            let us = 1.0 + second.second as f64;
            assert!(cell.from_us <= us && us <= cell.to_us * 1.001, "{us}");
        }
        let counts: Vec<(u64, u64)> = seconds.iter().map(|s| (s.second, s.requests)).collect();
        assert_eq!(counts, [(0, 20), (1, 20), (2, 10), (30, 10), (31, 10)]);
    }
}
