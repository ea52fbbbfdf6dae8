//! The highest fixed rate at which a latency stays below a limit.
//!
//! Each rate is tried in several windows: open loops of their own, after a warm-up, on a server that was
//! reset. Which rate comes next is up to `search`, which knows no server.

mod search;

use super::report::{FoundRate, Report, Unit};
use super::thresholds::Threshold;
use super::verdict::Verdict;
use super::{Config, EVENTS_MAX, RATE_MAX, Show, Users, run};
use crate::failure::Failure;
pub(super) use search::{Search, Step, Window};
use std::fmt;
use std::io::Write;
use std::str::FromStr;
use std::time::Duration;

/// The requests per second to begin with if no rate was given.
const FIRST_RATE: u64 = 1000;
/// The share of a window's events that are sent before it, and the most of them.
const WARM_UP_SHARE: u64 = 4;
const WARM_UP_MAX: u64 = 20_000;

/// What is to hold: an upper limit of a latency, such as `p99<5ms`.
#[derive(Clone, Debug, PartialEq)]
pub struct LatencyLimit(pub(super) Threshold);

impl FromStr for LatencyLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<LatencyLimit, String> {
        let threshold: Threshold = text.parse()?;
        match threshold.is_upper_limit_of_latency() {
            true => Ok(LatencyLimit(threshold)),
            false => Err("write an upper limit of a latency, such as p99<5ms or max<=20ms".into()),
        }
    }
}

impl fmt::Display for LatencyLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.text())
    }
}

/// A checked configuration of a search.
#[derive(Clone, Debug)]
pub struct FindConfig {
    /// What every window has in common. Its rate is the first that is tried.
    pub load: Config,
    /// What is to hold.
    pub limit: LatencyLimit,
    /// How long a window takes at the rate that is asked for.
    pub window: Duration,
    /// Whether to say what each window found.
    pub quiet: bool,
}

/// Finds the highest rate, and the latencies over the rate on the way.
///
/// # Errors
///
/// If there is no server, if it counts wrong in a window, or if the search is interrupted.
pub fn find_rate(config: &FindConfig) -> Result<FoundRate, Failure> {
    let batch = config.load.workload.events_per_request();
    let first_rate = config.load.rate.unwrap_or(batch * FIRST_RATE);
    let unit = Unit::of(config.load.workload.batch);
    let mut search = Search::new(first_rate.min(RATE_MAX));
    let mut last = None;
    while let Some(rate) = search.next() {
        let report = window(config, rate)?;
        let window = report.window(&config.limit.0);
        if !config.quiet {
            // If standard error is closed, nobody reads it.
            let _ = writeln!(std::io::stderr(), "{}", window.line(rate, &config.limit, unit));
        }
        search.add(rate, window);
        last = Some(report);
    }
    let last = last.unwrap_or_else(|| unreachable!("a search tries one rate at least"));
    Ok(FoundRate::new(&config.limit, config.load.connections, &search, last))
}

/// Sends one window.
fn window(config: &FindConfig, rate: u64) -> Result<Report, Failure> {
    let of_window = (config.window.as_secs_f64() * rate as f64).min(EVENTS_MAX as f64);
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
            rate: Some(rate),
            progress: Show::Nothing,
            // All windows have the same users, so that none costs the server more than another.
            users: Users::Known(config.load.users.prefix().cloned().unwrap_or_default()),
            // The next window shows whether totals stay.
            quiet: Duration::ZERO,
            ..config.load.clone()
        },
        |_| {},
    )?;
    if report.is_interrupted() {
        return Err(Failure::Wrong("the search was interrupted".into()));
    }
    match report.verdict() {
        Verdict::Exact | Verdict::Undecided => Ok(report),
        Verdict::Wrong => Err(Failure::Wrong(format!(
            "the result is not exact at {rate} {}: {}",
            Unit::of(config.load.workload.batch).per_second(),
            report.reasons().join("; ")
        ))),
    }
}
