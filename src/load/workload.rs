//! The challenge's published events, and what a server must report after them.

use super::event_set::{Rest, greatest_common_divisor};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The values that events carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Values {
    /// i % 1000
    Integer,
    /// i % 1000 + 0.5
    Half,
    /// 1, so that --watch sees every torn response
    One,
}

/// Values repeat after this many events.
const VALUES: u64 = 1000;

/// Twice the largest value of an event.
pub(super) const VALUE_IN_HALVES_MAX: u64 = 2 * VALUES;

/// Multiples of a half below this are exact in an `f64`, and so are their sums with those of a run.
const HALVES_EXACT_BELOW: f64 = (1u64 << 51) as f64;

/// Most events of a run: up to here every sum of halves is exact in an `f64`.
pub const EVENTS_MAX: u64 = 1 << 42;
const _: () = assert!(EVENTS_MAX <= (1 << 53) / (2 * VALUES));

/// Event `i` of a run comes from `user_{i % users}` with a value that follows from `i`.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// How many events there are, at most [`EVENTS_MAX`].
    pub events: u64,
    /// How many users they come from.
    pub users: u64,
    /// Which values they carry.
    pub values: Values,
}

/// The four totals that a server reports.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Events counted.
    pub total_requests: u64,
    /// Distinct users.
    pub unique_users: u64,
    /// Sum of the values.
    pub sum: f64,
    /// Sum divided by events.
    pub avg: f64,
}

impl Totals {
    /// Nothing counted.
    pub const ZERO: Totals = Totals { total_requests: 0, unique_users: 0, sum: 0.0, avg: 0.0 };

    /// Whether the sum, and that of it and a run's events, is exact in an `f64`.
    pub(super) fn sum_is_exact(&self) -> bool {
        self.sum.abs() < HALVES_EXACT_BELOW && (self.sum * 2.0).fract() == 0.0
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals { total_requests, unique_users, sum, avg } = self;
        write!(
            f,
            "totalRequests {total_requests}, uniqueUsers {unique_users}, sum {sum:?}, avg {avg:?}"
        )
    }
}

/// What some events of a run add up to, in integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// Events.
    pub events: u64,
    /// Twice the sum of their values.
    pub sum_in_halves: u64,
}

impl Workload {
    /// Twice the value of an event.
    pub(super) fn value_in_halves(&self, event: u64) -> u64 {
        match self.values {
            Values::Integer => 2 * (event % VALUES),
            Values::Half => 2 * (event % VALUES) + 1,
            Values::One => 2,
        }
    }

    /// Appends one event as an HTTP request with `head` before its Content-Length.
    pub(super) fn append_request(&self, event: u64, head: &[u8], out: &mut Vec<u8>) {
        let (mut user, mut whole, mut length) =
            (itoa::Buffer::new(), itoa::Buffer::new(), itoa::Buffer::new());
        let user = user.format(event % self.users).as_bytes();
        let one = self.values == Values::One;
        let whole = whole.format(if one { 1 } else { event % VALUES }).as_bytes();
        let fraction: &[u8] = if self.values == Values::Half { b".5" } else { b"" };
        let parts: [&[u8]; 6] =
            [b"{\"userId\":\"user_", user, b"\",\"value\":", whole, fraction, b"}"];
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        out.extend_from_slice(head);
        out.extend_from_slice(length.format(bytes).as_bytes());
        out.extend_from_slice(b"\r\n\r\n");
        parts.iter().for_each(|part| out.extend_from_slice(part));
    }

    /// What all events add up to.
    pub(super) fn whole(&self) -> Share {
        let (cycles, rest) = (self.events / VALUES, self.events % VALUES);
        let triangle = |n: u64| n * n.saturating_sub(1);
        let of_indices = cycles * triangle(VALUES) + triangle(rest);
        Share {
            events: self.events,
            sum_in_halves: match self.values {
                Values::Integer => of_indices,
                Values::Half => of_indices + self.events,
                Values::One => 2 * self.events,
            },
        }
    }

    /// Twice the sum of the values of the rest of the workload.
    pub(super) fn sum_in_halves_of(&self, rest: Rest) -> u64 {
        let events = rest.len(self.events);
        // Values repeat after so many of its events.
        let period = VALUES / greatest_common_divisor(VALUES, rest.step);
        let of_first = |count: u64| -> u64 {
            (0..count).map(|index| self.value_in_halves(rest.start + index * rest.step)).sum()
        };
        events / period * of_first(period) + of_first(events % period)
    }
}

impl Share {
    /// The share as a server that held nothing before has to report it, with its users.
    pub(super) fn totals(&self, unique_users: u64) -> Totals {
        let sum = self.sum_in_halves as f64 / 2.0;
        let avg = if self.events == 0 { 0.0 } else { sum / self.events as f64 };
        Totals { total_requests: self.events, unique_users, sum, avg }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(events: u64, values: Values) -> Workload {
        Workload { events, users: 75_000, values }
    }

    #[test]
    fn the_published_totals_come_out() {
        let totals = |events, values| {
            let workload = workload(events, values);
            workload.whole().totals(workload.users_without(&[]).most())
        };
        let integer = totals(1_000_000, Values::Integer);
        let half = totals(1_000_000, Values::Half);
        assert_eq!(
            (integer.unique_users, integer.sum, integer.avg),
            (75_000, 499_500_000.0, 499.5)
        );
        assert_eq!((half.total_requests, half.sum, half.avg), (1_000_000, 500_000_000.0, 500.0));
        assert_eq!(totals(0, Values::Half), Totals::ZERO);
    }

    #[test]
    fn a_request_is_what_the_challenge_publishes() {
        let mut out = Vec::new();
        workload(1, Values::Half).append_request(75_012, b"Content-Length: ", &mut out);
        let body = r#"{"userId":"user_12","value":12.5}"#;
        let expected = format!("Content-Length: {}\r\n\r\n{body}", body.len());
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
