//! The quiet time after a run. Correct totals must stay correct throughout it, because a server may count events again later.

use super::interrupt;
use super::latency::Slice;
use super::verdict::{Evidence, Stayed, Verdict};
use super::workload::Totals;
use std::thread;
use std::time::{Duration, Instant};

/// The length of the quiet time as a multiple of the slowest response, its maximum, and the interval between two
/// requests for the totals.
const QUIET_PER_LATENCY: u32 = 2;
const QUIET_MAX: Duration = Duration::from_secs(10);
const QUIET_EVERY: Duration = Duration::from_millis(50);

/// Returns the length of the quiet time: `least`, or longer if the server was slow to respond. A client that was
/// interrupted waits no longer than `least`.
pub(super) fn time(least: Duration, sent: &Slice) -> Duration {
    let latency = sent.from_send.as_ref().unwrap_or(&sent.latency);
    let slowest = Duration::from_secs_f64(latency.max().map_or(0.0, |max| max.micros) / 1e6);
    match interrupt::is_asked() {
        true => least,
        false => (slowest * QUIET_PER_LATENCY).clamp(least, QUIET_MAX.max(least)),
    }
}

/// Reports whether the totals were read and can be correct.
pub(super) fn is_right(evidence: &Evidence) -> bool {
    evidence.after.is_ok() && evidence.judge().verdict != Verdict::Wrong
}

/// Reads correct totals repeatedly during a quiet time while nothing is sent. Returns `None` if the totals were not
/// correct, or if the length of the quiet time is zero. `ended` is the time when the last request ended.
pub(super) fn stay(
    quiet: Duration,
    ended: Instant,
    mut totals: impl FnMut() -> Result<Totals, String>,
    evidence: &mut Evidence,
) -> Option<Stayed> {
    if quiet.is_zero() || !is_right(evidence) {
        return None;
    }
    let from = Instant::now();
    let mut stayed = Stayed { quiet, changed_after: None, unreadable: None };
    loop {
        // If this process is suspended, it reads the totals again afterwards.
        let left = quiet.saturating_sub(from.elapsed());
        if left.is_zero() {
            return Some(stayed);
        }
        thread::sleep(left.min(QUIET_EVERY));
        match totals() {
            Ok(after) => {
                evidence.after = Ok(after);
                stayed.unreadable = None;
            }
            Err(why) => stayed.unreadable = Some(why),
        }
        if !is_right(evidence) {
            stayed.changed_after = Some(ended.elapsed());
            return Some(stayed);
        }
    }
}
