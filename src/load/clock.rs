//! Estimates the difference between two clients' clocks from the server's `Date` fields.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime};

/// The longest delay of a `Date` behind the server's clock. A `Date` does not have fractions of a second, and many
/// servers update it once per second.
const DATE_BEHIND_MAX: Duration = Duration::from_secs(2);

/// The lead of this machine's clock over the server's: between `least_ms` and `most_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct ClockOffset {
    /// The least possible lead, in milliseconds.
    least_ms: f64,
    /// The greatest possible lead, in milliseconds.
    most_ms: f64,
}

impl ClockOffset {
    /// Returns the offset that a response reveals, given the time when its request was sent and the time when it was received.
    pub(super) fn of(sent: SystemTime, received: SystemTime, date: SystemTime) -> ClockOffset {
        ClockOffset {
            least_ms: ms_between(date + DATE_BEHIND_MAX, sent),
            most_ms: ms_between(date, received),
        }
    }

    /// Combines two observations. If they contradict each other, a clock was set in between, and the later one counts.
    pub(super) fn and(self, later: ClockOffset) -> ClockOffset {
        let both = ClockOffset {
            least_ms: self.least_ms.max(later.least_ms),
            most_ms: self.most_ms.min(later.most_ms),
        };
        if both.least_ms <= both.most_ms { both } else { later }
    }

    /// Returns the least possible lead of this clock over another client's: negative if it is behind, and zero if the
    /// clocks may agree.
    pub(super) fn ahead_of_ms(self, other: ClockOffset) -> f64 {
        let (least, most) = (self.least_ms - other.most_ms, self.most_ms - other.least_ms);
        least.max(0.0) + most.min(0.0)
    }
}

/// Returns the milliseconds from one time to another, which may be earlier.
pub(super) fn ms_between(from: SystemTime, to: SystemTime) -> f64 {
    match to.duration_since(from) {
        Ok(after) => after.as_secs_f64() * 1e3,
        Err(error) => -error.duration().as_secs_f64() * 1e3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the offset that is found if the server's clock is exact, this clock is ahead by `ahead_ms`, and a
    /// request that takes 5 ms is sent every `every_ms` for three seconds.
    fn found(ahead_ms: i64, every_ms: u64) -> ClockOffset {
        let at = |ms: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        (0..3000 / every_ms)
            .map(|turn| {
                let server_ms = 1_000_000 + turn * every_ms;
                let local_ms = server_ms.checked_add_signed(ahead_ms).unwrap();
                ClockOffset::of(at(local_ms), at(local_ms + 5), at(server_ms / 1000 * 1000))
            })
            .reduce(ClockOffset::and)
            .unwrap()
    }

    #[test]
    fn clocks_are_told_apart_only_if_they_must_differ() {
        for ahead_ms in [-5000, -1200, 0, 700, 5000] {
            let ClockOffset { least_ms, most_ms } = found(ahead_ms, 100);
            let truth = ahead_ms as f64;
            assert!(least_ms <= truth && truth <= most_ms, "{least_ms} {truth} {most_ms}");
            assert!(most_ms - least_ms < 1200.0, "{least_ms} to {most_ms}");
        }
        let [behind, same, ahead] = [-5000, 0, 5000].map(|ahead_ms| found(ahead_ms, 100));
        assert_eq!(same.ahead_of_ms(found(700, 100)), 0.0);
        assert!((-10_000.0..-8500.0).contains(&behind.ahead_of_ms(ahead)));
        assert!((8500.0..10_000.0).contains(&ahead.ahead_of_ms(behind)));
    }

    #[test]
    fn a_clock_that_was_set_is_known_as_it_is_now() {
        assert_eq!(found(-5000, 100).and(found(5000, 100)), found(5000, 100));
    }
}
