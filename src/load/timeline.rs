//! A run second by second, from the slices that its threads hand over.

use super::latency::{Bound, Latencies, Slice};
use serde::Serialize;
use std::collections::BTreeMap;

/// Seconds whose histograms are kept for threads that come late.
const OPEN_SECONDS: u64 = 10;

/// A second of a run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Second {
    /// Its number, from 0.
    pub(super) second: u64,
    /// Requests that were answered in it.
    pub(super) requests: u64,
    pub(super) p50_us: Bound,
    pub(super) p99_us: Bound,
    pub(super) max_us: Bound,
}

impl Second {
    fn of(second: u64, latency: &Latencies) -> Second {
        Second {
            second,
            requests: latency.len() - latency.censored(),
            p50_us: latency.quantile(0.5),
            p99_us: latency.quantile(0.99),
            max_us: latency.max(),
        }
    }
}

/// What all slices of a run add up to.
pub(super) struct Timeline {
    pub(super) total: Slice,
    open: BTreeMap<u64, Latencies>,
    closed: Vec<Second>,
}

impl Timeline {
    pub(super) fn new(is_open_loop: bool) -> Timeline {
        Timeline { total: Slice::new(0, is_open_loop), open: BTreeMap::new(), closed: Vec::new() }
    }

    pub(super) fn add(&mut self, slice: &Slice) {
        self.total.merge(slice);
        self.open.entry(slice.second).or_insert_with(Latencies::new).merge(&slice.latency);
        while let Some(first) = self.open.first_entry()
            && first.key() + OPEN_SECONDS < slice.second
        {
            let (second, latency) = first.remove_entry();
            self.close(Second::of(second, &latency));
        }
    }

    /// Adds a second that is over. Of one that was over before, the larger times stay.
    fn close(&mut self, new: Second) {
        match self.closed.iter_mut().rev().find(|old| old.second == new.second) {
            Some(old) => {
                old.requests += new.requests;
                let larger = |a: Bound, b: Bound| if a.micros < b.micros { b } else { a };
                old.p50_us = larger(old.p50_us, new.p50_us);
                old.p99_us = larger(old.p99_us, new.p99_us);
                old.max_us = larger(old.max_us, new.max_us);
            }
            None => self.closed.push(new),
        }
    }

    /// The latest second that every thread has likely told of.
    pub(super) fn latest(&self) -> Option<Second> {
        let (second, latency) = self.open.iter().next_back()?;
        Some(Second::of(*second, latency))
    }

    /// Everything, and every second in which a request ended.
    pub(super) fn finish(mut self) -> (Slice, Vec<Second>) {
        while let Some((second, latency)) = self.open.pop_first() {
            if latency.len() > 0 {
                self.close(Second::of(second, &latency));
            }
        }
        self.closed.sort_by_key(|second| second.second);
        (self.total, self.closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_in_one_second_and_in_the_whole() {
        let mut timeline = Timeline::new(false);
        // Two threads, of which one is late by more than is waited for.
        for second in [0, 1, 2, 30, 31, 0, 1] {
            let mut slice = Slice::new(second, false);
            slice.latency.record(1000 * (second + 1));
            timeline.add(&slice);
        }
        let (total, seconds) = timeline.finish();
        assert_eq!(total.latency.len(), 7);
        let counts: Vec<(u64, u64)> = seconds.iter().map(|s| (s.second, s.requests)).collect();
        assert_eq!(counts, [(0, 2), (1, 2), (2, 1), (30, 1), (31, 1)]);
    }
}
