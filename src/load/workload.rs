//! The challenge's published events, and what a server must report after them.

use std::collections::{HashMap, HashSet};
use std::fmt;

/// The values that events carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Values {
    /// i % 1000
    Integer,
    /// i % 1000 + 0.5
    Half,
    /// 1, so that --watch sees every torn answer
    One,
}

/// Values repeat after this many events.
const VALUES: u64 = 1000;

/// Doubles below this are exact in halves, and so are their sums with the share of a run.
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

/// The four numbers that a server reports.
#[derive(Clone, Copy, Debug, PartialEq)]
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

/// What some of the events of a run add up to, in integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// Events.
    pub events: u64,
    /// Distinct users among them.
    pub users: u64,
    /// Twice the sum of their values.
    pub sum_in_halves: u64,
}

impl Workload {
    /// Twice the value of an event.
    fn value_in_halves(&self, event: u64) -> u64 {
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

    /// What some events add up to: at most so many users.
    pub(super) fn share_of(&self, events: &[u64]) -> Share {
        let users: HashSet<u64> = events.iter().map(|event| event % self.users).collect();
        Share {
            events: events.len() as u64,
            users: users.len() as u64,
            sum_in_halves: events.iter().map(|event| self.value_in_halves(*event)).sum(),
        }
    }

    /// What all events add up to.
    fn whole(&self) -> Share {
        let (cycles, rest) = (self.events / VALUES, self.events % VALUES);
        let triangle = |n: u64| n * n.saturating_sub(1);
        let of_indices = cycles * triangle(VALUES) + triangle(rest);
        Share {
            events: self.events,
            users: self.events.min(self.users),
            sum_in_halves: match self.values {
                Values::Integer => of_indices,
                Values::Half => of_indices + self.events,
                Values::One => 2 * self.events,
            },
        }
    }

    /// What all events but the `left_out` ones, each named once, add up to. Takes time that grows
    /// with those alone.
    pub(super) fn share_without(&self, left_out: impl Iterator<Item = u64>) -> Share {
        let mut share = self.whole();
        let mut lost: HashMap<u64, u64> = HashMap::new();
        for event in left_out {
            let user = event % self.users;
            let lost = lost.entry(user).or_default();
            *lost += 1;
            share.events -= 1;
            share.sum_in_halves -= self.value_in_halves(event);
            // Events of a user are `users` apart.
            share.users -= u64::from(*lost == (self.events - user).div_ceil(self.users));
        }
        share
    }
}

impl Share {
    /// The share as a server that held nothing before has to report it.
    pub(super) fn totals(&self) -> Totals {
        let sum = self.sum_in_halves as f64 / 2.0;
        Totals {
            total_requests: self.events,
            unique_users: self.users,
            sum,
            avg: if self.events == 0 { 0.0 } else { sum / self.events as f64 },
        }
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
        let integer = workload(1_000_000, Values::Integer).whole().totals();
        let half = workload(1_000_000, Values::Half).whole().totals();
        assert_eq!(
            (integer.unique_users, integer.sum, integer.avg),
            (75_000, 499_500_000.0, 499.5)
        );
        assert_eq!((half.total_requests, half.sum, half.avg), (1_000_000, 500_000_000.0, 500.0));
        assert_eq!(workload(0, Values::Half).whole().totals(), Totals::ZERO);
    }

    /// Against a count of every event that is left.
    #[test]
    fn what_is_left_out_is_what_is_missing() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..300 {
            let values = [Values::Integer, Values::Half, Values::One][random.usize(0..3)];
            let workload =
                Workload { events: random.u64(1..3000), users: random.u64(1..1500), values };
            let share = random.f64();
            let (out, left): (Vec<u64>, Vec<u64>) =
                (0..workload.events).partition(|_| random.f64() < share);
            assert_eq!(workload.share_without(out.into_iter()), workload.share_of(&left));
        }
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
