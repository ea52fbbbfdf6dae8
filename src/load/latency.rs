//! Latencies, and what is known of those that never ended.
//!
//! A request that was given up has a latency of at least the time that it was waited for: it is
//! censored (on the right, as statistics calls it), and stays in. The k-th smallest of the recorded
//! values is never above the k-th smallest of the true ones, and is equal to it where it is below
//! every censored value; so a quantile from there on is known as a lower bound only.

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer};

/// The longest latency that is told apart, in nanoseconds: an hour.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// A latency, or the least that it can have been.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bound {
    /// Microseconds.
    pub micros: f64,
    /// It may have been longer.
    pub is_at_least: bool,
}

/// As its number alone, which programs expect; which of them are bounds is told beside them.
impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.micros)
    }
}

/// Latencies of one kind, to three significant digits.
#[derive(Clone, Debug)]
pub(super) struct Latencies {
    histogram: Histogram<u64>,
    censored: u64,
    /// The least time after which one was given up.
    least_censored_ns: u64,
}

impl Latencies {
    pub(super) fn new() -> Latencies {
        // Constant bounds that the constructor accepts.
        let histogram =
            Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).unwrap_or_else(|_| unreachable!());
        Latencies { histogram, censored: 0, least_censored_ns: u64::MAX }
    }

    /// Records a latency.
    #[inline]
    pub(super) fn record(&mut self, ns: u64) {
        self.histogram.saturating_record(ns.max(1));
    }

    /// Records a request that was given up after so long.
    pub(super) fn record_at_least(&mut self, ns: u64) {
        self.record(ns);
        self.censored += 1;
        // As coarse as the histogram has it, so that no value of its bucket passes for known.
        self.least_censored_ns =
            self.least_censored_ns.min(self.histogram.lowest_equivalent(ns.max(1)));
    }

    /// Adds what another has.
    pub(super) fn merge(&mut self, other: &Latencies) {
        // Histograms of one kind always add up.
        let _ = self.histogram.add(&other.histogram);
        self.censored += other.censored;
        self.least_censored_ns = self.least_censored_ns.min(other.least_censored_ns);
    }

    /// How many requests are in it.
    pub(super) fn len(&self) -> u64 {
        self.histogram.len()
    }

    /// How many of them were given up.
    pub(super) fn censored(&self) -> u64 {
        self.censored
    }

    pub(super) fn quantile(&self, quantile: f64) -> Bound {
        self.bound(self.histogram.value_at_quantile(quantile))
    }

    pub(super) fn max(&self) -> Bound {
        self.bound(self.histogram.max())
    }

    pub(super) fn mean(&self) -> Bound {
        Bound { micros: self.histogram.mean() / 1e3, is_at_least: self.censored > 0 }
    }

    fn bound(&self, ns: u64) -> Bound {
        Bound { micros: ns as f64 / 1e3, is_at_least: ns >= self.least_censored_ns }
    }

    /// The histogram itself, in nanoseconds.
    pub(super) fn histogram(&self) -> &Histogram<u64> {
        &self.histogram
    }
}

/// What the requests that ended in one second took.
#[derive(Clone, Debug)]
pub(super) struct Slice {
    /// Seconds since the start.
    pub(super) second: u64,
    /// From the intended send time; in a closed loop from the actual one, which is the same there.
    pub(super) latency: Latencies,
    /// In an open loop, from the actual send time.
    pub(super) from_send: Option<Latencies>,
    /// In an open loop, how late the client came to requests that could have been sent.
    pub(super) lag: Option<Latencies>,
}

impl Slice {
    pub(super) fn new(second: u64, is_open_loop: bool) -> Slice {
        let latencies = || is_open_loop.then(Latencies::new);
        Slice { second, latency: Latencies::new(), from_send: latencies(), lag: latencies() }
    }

    /// Adds what another has, of any second.
    pub(super) fn merge(&mut self, other: &Slice) {
        self.latency.merge(&other.latency);
        for (ours, theirs) in [(&mut self.from_send, &other.from_send), (&mut self.lag, &other.lag)]
        {
            if let (Some(ours), Some(theirs)) = (ours, theirs) {
                ours.merge(theirs);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_known_up_to_the_first_that_was_given_up() {
        let mut latencies = Latencies::new();
        for micros in 1..=98 {
            latencies.record(micros * 1000);
        }
        latencies.record_at_least(50_000_000);
        latencies.record(90_000_000);
        assert!(!latencies.quantile(0.98).is_at_least);
        assert!(latencies.quantile(0.985).is_at_least);
        assert!(latencies.max().is_at_least && latencies.mean().is_at_least);
        assert_eq!((latencies.len(), latencies.censored()), (100, 1));
    }

    /// Whatever the true latencies are: what is said to be known is true, the rest is no more.
    #[test]
    fn a_quantile_is_true_or_a_lower_bound() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..300 {
            let mut latencies = Latencies::new();
            let mut truth = Vec::new();
            for _ in 0..random.usize(1..200) {
                let ns = random.u64(1..1_000_000);
                truth.push(ns);
                match random.u8(0..10) {
                    0 => latencies.record_at_least(random.u64(1..=ns)),
                    _ => latencies.record(ns),
                }
            }
            truth.sort_unstable();
            for quantile in [0.01, 0.5, 0.9, 0.99, 1.0] {
                let rank = ((quantile * truth.len() as f64).ceil() as usize).max(1);
                let true_ns = truth[rank - 1] as f64;
                let Bound { micros, is_at_least } = latencies.quantile(quantile);
                // The histogram rounds up by less than a thousandth.
                let (least, most) = (true_ns * 0.999, true_ns * 1.001 + 1.0);
                assert!(micros * 1e3 <= most, "{quantile}");
                assert!(is_at_least || micros * 1e3 >= least, "{quantile}");
            }
        }
    }

    #[test]
    fn slices_add_up_to_the_whole() {
        let mut whole = Slice::new(0, true);
        let mut parts = Slice::new(0, true);
        for second in 0..4 {
            let mut slice = Slice::new(second, true);
            for each in [&mut slice, &mut whole] {
                each.latency.record(1000 * (second + 1));
                each.latency.record_at_least(7000);
                each.lag.as_mut().unwrap().record(second + 1);
            }
            parts.merge(&slice);
        }
        assert_eq!(parts.latency.histogram(), whole.latency.histogram());
        assert_eq!(parts.latency.quantile(0.5), whole.latency.quantile(0.5));
        assert_eq!(parts.latency.censored(), 4);
        assert_eq!(parts.lag.unwrap().len(), 4);
    }
}
