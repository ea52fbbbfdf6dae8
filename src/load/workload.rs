//! The challenge's published events, and what a server must report after them.

use std::collections::HashSet;

/// The values that events carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Values {
    /// i % 1000
    Integer,
    /// i % 1000 + 0.5
    Half,
}

/// Values repeat after this many events.
const VALUES: u64 = 1000;

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
pub struct Figures {
    /// Events counted.
    pub total_requests: u64,
    /// Distinct users.
    pub unique_users: u64,
    /// Sum of the values.
    pub sum: f64,
    /// Sum divided by events.
    pub avg: f64,
}

impl Figures {
    /// Nothing counted.
    pub const ZERO: Figures = Figures { total_requests: 0, unique_users: 0, sum: 0.0, avg: 0.0 };
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
        2 * (event % VALUES) + u64::from(self.values == Values::Half)
    }

    /// Appends one event as an HTTP request with `head` before its Content-Length.
    pub(super) fn append_request(&self, event: u64, head: &[u8], out: &mut Vec<u8>) {
        let (mut user, mut whole, mut length) =
            (itoa::Buffer::new(), itoa::Buffer::new(), itoa::Buffer::new());
        let user = user.format(event % self.users).as_bytes();
        let whole = whole.format(event % VALUES).as_bytes();
        let fraction: &[u8] = if self.values == Values::Half { b".5" } else { b"" };
        let parts: [&[u8]; 6] =
            [b"{\"userId\":\"user_", user, b"\",\"value\":", whole, fraction, b"}"];
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        out.extend_from_slice(head);
        out.extend_from_slice(length.format(bytes).as_bytes());
        out.extend_from_slice(b"\r\n\r\n");
        parts.iter().for_each(|part| out.extend_from_slice(part));
    }

    /// What all events but the `left_out` ones add up to. Takes time that grows with the events
    /// only if some are left out.
    pub(super) fn share_without(&self, left_out: &HashSet<u64>) -> Share {
        if left_out.is_empty() {
            let (cycles, rest) = (self.events / VALUES, self.events % VALUES);
            let triangle = |n: u64| n * n.saturating_sub(1);
            let halves = if self.values == Values::Half { self.events } else { 0 };
            return Share {
                events: self.events,
                users: self.events.min(self.users),
                sum_in_halves: cycles * triangle(VALUES) + triangle(rest) + halves,
            };
        }
        let mut users = HashSet::new();
        let mut share = Share { events: 0, users: 0, sum_in_halves: 0 };
        for event in (0..self.events).filter(|event| !left_out.contains(event)) {
            share.events += 1;
            share.sum_in_halves += self.value_in_halves(event);
            users.insert(event % self.users);
        }
        share.users = users.len() as u64;
        share
    }
}

impl Share {
    /// The share as a server that held nothing before has to report it.
    pub(super) fn figures(&self) -> Figures {
        let sum = self.sum_in_halves as f64 / 2.0;
        Figures {
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
        let none = HashSet::new();
        let integer = workload(1_000_000, Values::Integer).share_without(&none).figures();
        let half = workload(1_000_000, Values::Half).share_without(&none).figures();
        assert_eq!(
            (integer.unique_users, integer.sum, integer.avg),
            (75_000, 499_500_000.0, 499.5)
        );
        assert_eq!((half.total_requests, half.sum, half.avg), (1_000_000, 500_000_000.0, 500.0));
        assert_eq!(workload(0, Values::Half).share_without(&none).figures(), Figures::ZERO);
    }

    #[test]
    fn the_formula_and_the_count_agree() {
        for events in [1, 2, 999, 1000, 1001, 2750] {
            for values in [Values::Integer, Values::Half] {
                let workload = Workload { events, users: 1500, values };
                let counted = workload.share_without(&HashSet::from([u64::MAX]));
                assert_eq!(counted, workload.share_without(&HashSet::new()));
                let first = workload.share_without(&HashSet::from([0]));
                assert_eq!(
                    first.sum_in_halves,
                    counted.sum_in_halves - workload.value_in_halves(0)
                );
            }
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
