//! Latencies, including the knowledge about requests that never ended.
//!
//! A request that was given up took at least as long as the client waited. In statistical terms, it is right-censored,
//! and it stays in the data. The k-th smallest recorded value is never above the k-th smallest true value, and equals
//! it if it is below every censored value. From the first censored value on, a quantile is therefore known only as a
//! lower bound.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2DeflateSerializer};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Cow;

/// The longest latency that a histogram distinguishes, in nanoseconds: an hour.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// The value of a figure, or a lower bound on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bound {
    /// The value, in microseconds if it is a latency.
    pub(crate) micros: f64,
    /// Whether the true value may be greater.
    pub(crate) is_at_least: bool,
}

impl Bound {
    /// Creates a value that is known exactly.
    pub(super) fn exactly(micros: f64) -> Bound {
        Bound { micros, is_at_least: false }
    }
}

/// Returns the names of the figures that are lower bounds.
pub(super) fn lower_bounds<const N: usize>(
    figures: [(&'static str, Option<Bound>); N],
) -> Vec<&'static str> {
    let is_bound = |(_, figure): &(_, Option<Bound>)| figure.is_some_and(|bound| bound.is_at_least);
    figures.into_iter().filter(is_bound).map(|(name, _)| name).collect()
}

/// Serializes only the number, which is what programs expect. The report lists the numbers that are bounds.
impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.micros)
    }
}

impl JsonSchema for Bound {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Bound".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        f64::json_schema(generator)
    }
}

/// Latencies of one kind, to three significant digits.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(into = "Encoded", try_from = "Encoded")]
pub(super) struct Latencies {
    histogram: Histogram<u64>,
    censored: u64,
    /// The shortest recorded time that may stand for a longer one, because a request was given up or was too slow for
    /// the histogram.
    least_censored_ns: Option<u64>,
}

/// Latencies as stored in a file, without loss.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Encoded {
    /// The histogram, in nanoseconds, in HdrHistogram's compressed form (V2) and base64, as in its log files.
    histogram: String,
    /// The number of requests that were given up.
    censored: u64,
    /// The shortest time in nanoseconds before a request was given up; null if none were.
    least_censored_ns: Option<u64>,
}

impl From<&Latencies> for Encoded {
    fn from(latencies: &Latencies) -> Encoded {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(&latencies.histogram, &mut bytes)
            .unwrap_or_else(|error| unreachable!("memory takes any histogram: {error}"));
        Encoded {
            histogram: BASE64.encode(bytes),
            censored: latencies.censored,
            least_censored_ns: latencies.least_censored_ns,
        }
    }
}

impl From<Latencies> for Encoded {
    fn from(latencies: Latencies) -> Encoded {
        Encoded::from(&latencies)
    }
}

impl TryFrom<Encoded> for Latencies {
    type Error = String;

    fn try_from(encoded: Encoded) -> Result<Latencies, String> {
        let bytes = BASE64
            .decode(&encoded.histogram)
            .map_err(|error| format!("a histogram is not base64: {error}"))?;
        let histogram: Histogram<u64> = Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|error| format!("a histogram cannot be read: {error}"))?;
        let mut latencies = Latencies::new();
        let is_ours = histogram.high() == latencies.histogram.high()
            && histogram.low() == latencies.histogram.low()
            && histogram.sigfig() == latencies.histogram.sigfig();
        if !is_ours || encoded.censored > histogram.len() {
            return Err("a histogram is not one of latencies that ringtally wrote".into());
        }
        latencies.histogram = histogram;
        latencies.censored = encoded.censored;
        latencies.least_censored_ns = encoded.least_censored_ns;
        Ok(latencies)
    }
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies::new()
    }
}

impl Latencies {
    pub(super) fn new() -> Latencies {
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3)
            .unwrap_or_else(|error| unreachable!("these bounds are constant and valid: {error}"));
        Latencies { histogram, censored: 0, least_censored_ns: None }
    }

    /// Records a latency.
    #[inline]
    pub(super) fn record(&mut self, ns: u64) {
        self.histogram.saturating_record(ns.max(1));
        if ns > LATENCY_NS_MAX {
            // It is recorded as the longest latency that the histogram distinguishes, which is a bound.
            self.note_censored(self.least_alike(ns));
        }
    }

    /// Records a request that was given up after this time.
    pub(super) fn record_at_least(&mut self, ns: u64) {
        self.record_many_at_least(ns, 1);
    }

    /// Records `count` requests that were given up after this time.
    pub(super) fn record_many_at_least(&mut self, ns: u64, count: u64) {
        self.histogram.saturating_record_n(ns.max(1), count);
        self.censored += count;
        // The time is rounded as in the histogram, so that no value in the same bucket counts as known.
        self.note_censored(self.least_alike(ns));
    }

    /// Returns the shortest latency that the histogram does not distinguish from this one.
    pub(super) fn least_alike(&self, ns: u64) -> u64 {
        self.histogram.lowest_equivalent(ns.clamp(1, LATENCY_NS_MAX))
    }

    fn note_censored(&mut self, ns: u64) {
        self.least_censored_ns = Some(self.least_censored_ns.map_or(ns, |least| least.min(ns)));
    }

    /// Adds all latencies of `other`.
    pub(super) fn merge(&mut self, other: &Latencies) {
        self.histogram
            .add(&other.histogram)
            .unwrap_or_else(|error| unreachable!("all histograms have the same bounds: {error}"));
        self.censored += other.censored;
        if let Some(ns) = other.least_censored_ns {
            self.note_censored(ns);
        }
    }

    /// Returns the number of requests recorded, including those that were given up.
    pub(super) fn len(&self) -> u64 {
        self.histogram.len()
    }

    /// Returns the number of requests that were given up.
    pub(super) fn censored(&self) -> u64 {
        self.censored
    }

    /// Returns a quantile, from 0 to 1; `None` if nothing was recorded.
    pub(super) fn quantile(&self, quantile: f64) -> Option<Bound> {
        self.bound(self.histogram.value_at_quantile(quantile))
    }

    /// Returns a lower bound on a quantile over `requests` requests, in microseconds: the quantile if all unrecorded
    /// requests took zero time. Returns `None` if a bound is not known.
    pub(super) fn least_quantile_of(&self, quantile: f64, requests: u64) -> Option<f64> {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank is at most a count"
        )]
        let rank = (quantile * requests as f64).ceil() as u64;
        let rank =
            rank.checked_sub(requests.saturating_sub(self.len())).filter(|rank| *rank > 0)?;
        let mut up_to = 0;
        let mut recorded = self.histogram.iter_recorded();
        recorded.find_map(|bucket| {
            up_to += bucket.count_at_value();
            (up_to >= rank).then(|| bucket.value_iterated_to() as f64 / 1e3)
        })
    }

    /// Returns the longest latency; `None` if nothing was recorded.
    pub(super) fn max(&self) -> Option<Bound> {
        self.bound(self.histogram.max())
    }

    /// Returns the mean; `None` if nothing was recorded.
    pub(super) fn mean(&self) -> Option<Bound> {
        let is_at_least = self.least_censored_ns.is_some();
        let mean = Bound { micros: self.histogram.mean() / 1e3, is_at_least };
        (self.len() > 0).then_some(mean)
    }

    fn bound(&self, ns: u64) -> Option<Bound> {
        let is_at_least = self.least_censored_ns.is_some_and(|least| ns >= least);
        (self.len() > 0).then_some(Bound { micros: ns as f64 / 1e3, is_at_least })
    }

    /// Returns the least recorded value that may be too low, as may all greater values; `None` if all values are known.
    pub(super) fn bounds_from_ns(&self) -> Option<u64> {
        self.least_censored_ns
    }

    /// Returns the histogram itself, in nanoseconds.
    pub(super) fn histogram(&self) -> &Histogram<u64> {
        &self.histogram
    }
}

/// The latencies of the requests that ended within one second.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub(super) struct Slice {
    /// Seconds since the start.
    pub(super) second: u64,
    /// Events of the requests that got a response.
    pub(super) events: u64,
    /// Latencies from the intended send time, which is the actual send time in a closed loop.
    pub(super) latency: Latencies,
    /// Latencies from the actual send time, in an open loop.
    pub(super) from_send: Option<Latencies>,
    /// The lag of requests in an open loop, if a connection was free to send them.
    pub(super) lag: Option<Latencies>,
}

impl Slice {
    pub(super) fn new(second: u64, is_open_loop: bool) -> Slice {
        let latencies = || is_open_loop.then(Latencies::new);
        Slice {
            second,
            events: 0,
            latency: Latencies::new(),
            from_send: latencies(),
            lag: latencies(),
        }
    }

    /// Adds all latencies and events of `other`, regardless of its second.
    pub(super) fn merge(&mut self, other: &Slice) {
        self.events += other.events;
        self.latency.merge(&other.latency);
        for (ours, theirs) in [(&mut self.from_send, &other.from_send), (&mut self.lag, &other.lag)]
        {
            if let Some(theirs) = theirs {
                ours.get_or_insert_with(Latencies::new).merge(theirs);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_in_a_file_lose_nothing() {
        let mut random = fastrand::Rng::with_seed(1);
        for values in [0, 1, 1000] {
            let mut latencies = Latencies::new();
            for _ in 0..values {
                latencies.record(1 << random.u32(0..43));
                latencies.record_at_least(random.u64(..LATENCY_NS_MAX));
            }
            let text = serde_json::to_string(&latencies).unwrap();
            let read: Latencies = serde_json::from_str(&text).unwrap();
            assert_eq!(read.histogram(), latencies.histogram());
            assert_eq!(Encoded::from(&read), Encoded::from(&latencies));
            for quantile in [0.0, 0.5, 0.99, 1.0] {
                assert_eq!(read.quantile(quantile), latencies.quantile(quantile));
            }
            assert_eq!((read.max(), read.mean()), (latencies.max(), latencies.mean()));
        }
    }

    #[test]
    fn what_is_no_histogram_of_ours_is_refused() {
        let mut other = Vec::new();
        let histogram = Histogram::<u64>::new_with_bounds(1, 1000, 2).unwrap();
        V2DeflateSerializer::new().serialize(&histogram, &mut other).unwrap();
        let ours = Encoded::from(&Latencies::new());
        for (histogram, censored, says) in [
            ("?".to_owned(), 0, "not base64"),
            (BASE64.encode("x"), 0, "cannot be read"),
            (BASE64.encode(other), 0, "not one of latencies"),
            (ours.histogram, 1, "not one of latencies"),
        ] {
            let encoded = Encoded { histogram, censored, least_censored_ns: None };
            let error = Latencies::try_from(encoded).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn quantiles_are_known_up_to_the_first_request_that_was_given_up() {
        let mut latencies = Latencies::new();
        for micros in 1..=98 {
            latencies.record(micros * 1000);
        }
        latencies.record_at_least(50_000_000);
        latencies.record(90_000_000);
        assert!(!latencies.quantile(0.98).unwrap().is_at_least);
        assert!(latencies.quantile(0.985).unwrap().is_at_least);
        assert!(latencies.max().unwrap().is_at_least && latencies.mean().unwrap().is_at_least);
        assert_eq!((latencies.len(), latencies.censored()), (100, 1));
    }

    #[test]
    fn a_latency_beyond_an_hour_is_a_bound() {
        let mut latencies = Latencies::new();
        latencies.record(LATENCY_NS_MAX);
        assert!(!latencies.max().unwrap().is_at_least && !latencies.mean().unwrap().is_at_least);
        let mut latencies = Latencies::new();
        (0..9).for_each(|_| latencies.record(1000));
        latencies.record(2 * LATENCY_NS_MAX);
        assert!(latencies.max().unwrap().is_at_least && latencies.mean().unwrap().is_at_least);
        assert!(!latencies.quantile(0.9).unwrap().is_at_least);
        assert_eq!(latencies.censored(), 0, "it was not given up");
    }

    /// Whatever the true latencies are, a known quantile is right, and a lower bound is not above the true quantile.
    #[test]
    fn a_quantile_is_right_or_a_lower_bound() {
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
                #[allow(clippy::cast_possible_truncation, reason = "a rank is at most a length")]
                let rank = ((quantile * truth.len() as f64).ceil() as usize).max(1);
                let true_ns = truth[rank - 1] as f64;
                let Bound { micros, is_at_least } = latencies.quantile(quantile).unwrap();
                // The histogram rounds up by less than one part in a thousand.
                let (least, most) = (true_ns * 0.999, true_ns * 1.001 + 1.0);
                assert!(micros * 1e3 <= most, "{quantile}");
                assert!(is_at_least || micros * 1e3 >= least, "{quantile}");
            }
        }
    }

    #[test]
    fn nothing_recorded_has_no_quantiles() {
        let nothing = Latencies::new();
        assert_eq!((nothing.quantile(0.5), nothing.max(), nothing.mean()), (None, None, None));
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
