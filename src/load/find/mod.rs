//! Finds the highest fixed rate that keeps a latency below a limit.
//!
//! Each rate is tried in several windows. Each window is a separate open loop, after a warm-up, on a server that was
//! reset. The module `flow` and the report judge a window, and `search` chooses the next rate without any knowledge of
//! a server.

mod found;
#[cfg(test)]
mod population;
mod search;

use super::flow::SAMPLES;
use super::interrupt;
use super::numbers::grouped;
use super::profile::{Amount, Profile};
use super::report::{Report, Unit};
use super::thresholds::{Condition, Threshold};
use super::verdict::Verdict;
use super::{Config, EVENTS_MAX, RATE_MAX, Show, Users, run};
use crate::failure::Failure;
pub use found::FoundRate;
use found::Warnings;
use search::{Search, Step, Window};
use std::fmt;
use std::io::Write;
use std::str::FromStr;
use std::time::Duration;

/// The rate in requests per second to begin with if no rate was given.
const FIRST_RATE: u64 = 1000;
/// The warm-up of a window has the window's number of events divided by the first number, and at most the second.
const WARM_UP_SHARE: u64 = 4;
const WARM_UP_MAX: u64 = 20_000;

/// A window has at least this many requests, and enough that its percentile is not the maximum.
const REQUESTS_MIN: f64 = 100.0;
/// A window without a given length has enough requests to distinguish a backlog that grows by 1% from chance, but does
/// not become longer than this for that purpose.
const REQUESTS_WANTED: f64 = 2000.0;
const LENGTH_WANTED_MAX: Duration = Duration::from_secs(10);
/// The least length of such a window, as a time and as a multiple of the latency limit.
const LENGTH_MIN: Duration = Duration::from_secs(1);
const LIMITS_WANTED: u32 = 4;
/// A window lasts at least this multiple of its limit, because the backlog takes up to the limit to grow to its final size.
const LIMITS_MIN: u32 = 2;

/// The condition to hold: an upper limit on a latency, such as `p99<5ms`.
#[derive(Clone, Debug, PartialEq)]
pub struct LatencyLimit(pub(super) Threshold);

impl FromStr for LatencyLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<LatencyLimit, String> {
        Condition::parse(text, "p99<5ms")?;
        let threshold: Threshold = text.parse()?;
        match threshold.is_upper_limit_of_latency() {
            true => Ok(LatencyLimit(threshold)),
            false => Err("write an upper limit of a latency, such as p99<5ms or max<=20ms".into()),
        }
    }
}

impl fmt::Display for LatencyLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A checked configuration of a search.
#[derive(Clone, Debug)]
pub struct FindConfig {
    /// The configuration that all windows have in common. Its rate is the first rate to try.
    pub load: Config,
    /// The condition to hold.
    pub limit: LatencyLimit,
    /// The lengths of the windows.
    pub windows: Windows,
    /// Whether to omit the line about the result of each window.
    pub quiet: bool,
}

/// The lengths of the windows of a search.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// The fixed length, if there is one. Otherwise, a window is as long as its rate needs.
    fixed: Option<Duration>,
    limit: Duration,
    /// The number of events that a window must have, and the number that it should have.
    events_min: f64,
    events_wanted: f64,
}

impl Windows {
    /// Creates the windows of a search that begins with `rate`, in batches if `batch` is given, with a fixed length if
    /// one is given.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] if the windows are too short for the limit or for that rate.
    pub fn new(
        limit: &LatencyLimit,
        fixed: Option<Duration>,
        rate: Option<u64>,
        batch: Option<u64>,
    ) -> Result<Windows, Failure> {
        let (rate, unit) = (first_rate(rate, batch), Unit::of(batch));
        let batch = batch.unwrap_or(1) as f64;
        let requests_min = REQUESTS_MIN.max(limit.0.requests_to_tell());
        // Either the limit of the latency is far below the longest duration, or no window is long enough for it.
        let limit_s = limit.0.limit_us().unwrap_or(0.0) / 1e6;
        let longest_s = Duration::MAX.as_secs_f64() / f64::from(2 * LIMITS_WANTED);
        let windows = Windows {
            fixed,
            limit: Duration::from_secs_f64(limit_s.clamp(0.0, longest_s)),
            events_min: requests_min * batch,
            events_wanted: requests_min.max(REQUESTS_WANTED) * batch,
        };
        let in_words = |length: Duration| humantime::format_duration(length).to_string();
        if let Some(fixed) = fixed.filter(|fixed| *fixed < windows.limit * LIMITS_MIN) {
            return Err(Failure::Usage(format!(
                "--window {} is too short for {limit}: until a request may have taken that long, nothing tells whether \
                 the server keeps up; pass --window {} or longer",
                in_words(fixed),
                in_words(windows.limit * LIMITS_MIN)
            )));
        }
        if rate < windows.least_rate() {
            let needed =
                Duration::from_secs_f64((windows.events_min / rate as f64 * 1e3).ceil() / 1e3);
            return Err(Failure::Usage(format!(
                "a window of {} has too few {} at {} {}, and {} needs {}: pass --window {} or longer, or a higher --rate",
                in_words(windows.length(rate)),
                unit.many(),
                grouped(rate),
                unit.per_second(),
                limit.0.figure().name,
                grouped(count(windows.events_min)),
                in_words(needed)
            )));
        }
        Ok(windows)
    }

    /// Returns the length of a window at a rate.
    fn length(&self, rate: u64) -> Duration {
        let lasts = |events: f64| Duration::from_secs_f64(events / rate as f64);
        self.fixed.unwrap_or_else(|| {
            let wanted = lasts(self.events_wanted).min(LENGTH_WANTED_MAX);
            LENGTH_MIN.max(self.limit * LIMITS_WANTED).max(wanted)
        })
    }

    /// Returns the lowest rate that gives a window enough events.
    fn least_rate(&self) -> u64 {
        let longest = self.length(1).as_secs_f64();
        count(self.events_min / longest).clamp(1, RATE_MAX)
    }
}

/// Returns the least whole number that is not below `least`.
fn count(least: f64) -> u64 {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is positive, and a cast clamps"
    )]
    let count = least.ceil() as u64;
    count
}

/// Returns the rate in events per second to begin with.
fn first_rate(rate: Option<u64>, batch: Option<u64>) -> u64 {
    rate.unwrap_or(batch.unwrap_or(1) * FIRST_RATE).min(RATE_MAX)
}

/// Finds the highest rate, and measures the latencies at each rate along the way.
///
/// # Errors
///
/// Fails if the server cannot be reached; if a window shows wrong totals, malformed responses, or missing connections;
/// or if the search is interrupted.
pub fn find_rate(config: &FindConfig) -> Result<FoundRate, Failure> {
    let unit = Unit::of(config.load.workload.batch);
    let asked = config.load.rate.as_ref().and_then(Profile::as_whole);
    let first = first_rate(asked, config.load.workload.batch);
    let mut search = Search::new(first, config.windows.least_rate());
    let (mut warnings, mut last) = (Warnings::default(), None::<Report>);
    while let Some(rate) = search.next() {
        let mut report = window(config, rate)?;
        if let Some(before) = &last {
            report.continue_from(before);
        }
        let length_s = config.windows.length(rate).as_secs_f64();
        let window = report.window(&config.limit.0, rate as f64, length_s);
        if !config.quiet {
            // If standard error is closed, nobody reads it.
            let _ = writeln!(std::io::stderr(), "{}", window.line(rate, &config.limit, unit));
        }
        search.add(rate, window);
        warnings.add(&report);
        last = Some(report);
    }
    let last = last.unwrap_or_else(|| unreachable!("a search tries one rate at least"));
    Ok(FoundRate::new(&config.limit, config.load.connections, &search, warnings, last))
}

/// Runs one window.
fn window(config: &FindConfig, rate: u64) -> Result<Report, Failure> {
    let length = config.windows.length(rate);
    let of_window = (length.as_secs_f64() * rate as f64).round().min(EVENTS_MAX as f64);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most EVENTS_MAX"
    )]
    let events = (of_window as u64).max(1);
    let report = run(
        &Config {
            workload: super::Workload { events, ..config.load.workload },
            warm_up: (events / WARM_UP_SHARE).min(WARM_UP_MAX),
            rate: Some(Profile::Fixed(Amount::whole(rate))),
            sample_every: Some(length / SAMPLES),
            progress: Show::Nothing,
            // All windows have the same users, so that no window costs the server more than another.
            users: Users::Known(config.load.users.prefix().cloned().unwrap_or_default()),
            // The next window shows whether the totals stay correct.
            quiet: Duration::ZERO,
            ..config.load.clone()
        },
        |_| {},
    )?;
    // The interrupt may have come after the last window had sent everything.
    if interrupt::was_asked() {
        return Err(Failure::Wrong("the search was interrupted".into()));
    }
    let at = format!("at {rate} {}", Unit::of(config.load.workload.batch).per_second());
    let flaws = report.flaws().join("; ");
    match report.verdict() {
        Verdict::Wrong => {
            let reasons = report.reasons().join("; ");
            Err(Failure::Wrong(format!("the result is not exact {at}: {reasons}")))
        }
        // The latencies come from fewer connections or responses than the report claims.
        Verdict::Exact | Verdict::Undecided if !flaws.is_empty() => {
            Err(Failure::Wrong(format!("{at}, {flaws}")))
        }
        Verdict::Exact | Verdict::Undecided => Ok(report),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(
        limit: &str,
        fixed_ms: u64,
        rate: u64,
        batch: Option<u64>,
    ) -> Result<Windows, String> {
        let fixed = (fixed_ms > 0).then(|| Duration::from_millis(fixed_ms));
        Windows::new(&limit.parse().unwrap(), fixed, Some(rate), batch).map_err(|failure| {
            assert_eq!(failure.exit_code(), 2);
            failure.to_string()
        })
    }

    #[test]
    fn a_window_that_is_too_short_is_refused_with_the_length_that_is_needed() {
        for (limit, fixed_ms, rate, batch, says) in [
            ("p99<5ms", 1, 1_000_000, None, "pass --window 10ms or longer"),
            ("p99<500ms", 999, 1_000_000, None, "pass --window 1s or longer"),
            ("p99<100us", 1, 1000, None, "p99 needs 100: pass --window 100ms or longer"),
            ("p99<5ms", 1000, 99, None, "has too few requests at 99 requests/s"),
            ("p99.9<5ms", 1000, 500, None, "p99.9 needs 1,000: pass --window 2s or longer"),
            ("max<5ms", 1000, 50, None, "max needs 100"),
            ("p99<5ms", 1000, 9_999, Some(100), "has too few events at 9,999 events/s"),
            ("p99<5ms", 0, 3, None, "a window of 10s has too few requests at 3 requests/s"),
        ] {
            let said = windows(limit, fixed_ms, rate, batch).unwrap_err();
            assert!(said.contains(says), "{limit}, {fixed_ms} ms, {rate}: {said}");
        }
        for (limit, fixed_ms, rate, batch) in [
            ("p99<5ms", 100, 1000, None),
            ("p99<500ms", 1000, 400, None),
            ("p99.9<5ms", 1000, 1000, None),
            ("p99<5ms", 1000, 10_000, Some(100)),
            ("p99<10s", 0, 1000, None),
        ] {
            windows(limit, fixed_ms, rate, batch).unwrap();
        }
    }

    #[test]
    fn a_window_lasts_as_long_as_its_limit_and_its_rate_need() {
        let lengths = |limit, fixed_ms| {
            let windows = windows(limit, fixed_ms, 100_000, None).unwrap();
            let length_s = |rate| windows.length(rate).as_secs_f64();
            ([100_000, 1000, 100].map(length_s), windows.least_rate())
        };
        assert_eq!(lengths("p99<5ms", 0), ([1.0, 2.0, 10.0], 10));
        assert_eq!(lengths("p99<1s", 0), ([4.0, 4.0, 10.0], 10));
        assert_eq!(lengths("p99<10s", 0), ([40.0, 40.0, 40.0], 3));
        assert_eq!(lengths("p99<5ms", 500), ([0.5, 0.5, 0.5], 200));
        assert_eq!(lengths("p99.99<5ms", 0).1, 1000);
    }
}
