//! The challenge's published events, and the totals that a server must report after them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::str::FromStr;

/// The values that events carry.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize, JsonSchema,
)]
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

/// Multiples of a half below this are exact in an `f64`, and so are their sums with a run's values.
const HALVES_EXACT_BELOW: f64 = (1u64 << 51) as f64;

/// The most events of a run: up to this number, every sum of halves is exact in an `f64`.
pub const EVENTS_MAX: u64 = 1 << 42;
const _: () = assert!(EVENTS_MAX <= (1 << 53) / (2 * VALUES));

/// The most events of a batch: up to this number, its body fits into what a ringtally server takes by default.
pub const BATCH_MAX: u64 = 150_000;
const _: () = assert!(BATCH_MAX * LINE_BYTES_MAX <= 8 << 20, "the default of serve --max-batch");

/// The bytes of an event on its own line, except for the digits of its user and its value, and for the prefix of the
/// user's id.
const LINE_BYTES: u64 = (USER.len() + VALUE.len() + END.len() + 1) as u64;
/// The most bytes of such a line with the published users, the most digits, and a fraction.
const LINE_BYTES_MAX: u64 =
    LINE_BYTES + PUBLISHED_PREFIX.len() as u64 + USER_DIGITS_MAX + VALUE_BYTES_MAX;
/// Digits of the largest number of a user, and bytes of the longest value.
const USER_DIGITS_MAX: u64 = 20;
const VALUE_BYTES_MAX: u64 = 3 + HALF.len() as u64;

/// The constant parts of an event, around its user and its value.
const USER: &[u8] = b"{\"userId\":\"";
const VALUE: &[u8] = b"\",\"value\":";
const HALF: &[u8] = b".5";
const END: &[u8] = b"}";

/// The most bytes of an event from the number of its user on.
#[allow(clippy::cast_possible_truncation, reason = "few")]
const TAIL_BYTES_MAX: usize =
    (USER_DIGITS_MAX + VALUE_BYTES_MAX) as usize + VALUE.len() + END.len();

/// The prefix of the published users' ids.
const PUBLISHED_PREFIX: &str = "user_";
/// The most bytes of a prefix. Servers accept every id that consists of such a prefix and a number.
const PREFIX_BYTES_MAX: usize = 32;

/// The prefix of the ids of a run's users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(into = "String", try_from = "String")]
pub struct UserPrefix(String);

impl Default for UserPrefix {
    fn default() -> UserPrefix {
        UserPrefix(PUBLISHED_PREFIX.into())
    }
}

impl UserPrefix {
    /// Creates a prefix that is unique to the run.
    pub(super) fn new() -> UserPrefix {
        // The system seeds `RandomState` for each process, and each instance in the process differs.
        let random = RandomState::new().build_hasher().finish();
        UserPrefix(format!("{PUBLISHED_PREFIX}{:08x}_", random >> 32))
    }

    /// Reports whether it is the published users' prefix.
    pub fn is_published(&self) -> bool {
        self.0 == PUBLISHED_PREFIX
    }

    /// Returns its length in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.len() as u64
    }
}

impl fmt::Display for UserPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<UserPrefix> for String {
    fn from(prefix: UserPrefix) -> String {
        prefix.0
    }
}

impl TryFrom<String> for UserPrefix {
    type Error = String;

    fn try_from(text: String) -> Result<UserPrefix, String> {
        text.parse()
    }
}

impl FromStr for UserPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<UserPrefix, String> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        match (1..=PREFIX_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_plain) {
            true => Ok(UserPrefix(text.into())),
            false => Err(format!(
                "expected 1 to {PREFIX_BYTES_MAX} letters, digits, and any of _ - ., such as run7_"
            )),
        }
    }
}

/// The parts that all requests of a run have in common.
pub(super) struct Form {
    /// The head, up to the value of Content-Length.
    head: Vec<u8>,
    /// An event, up to the number of its user.
    user: Vec<u8>,
    /// The start of a request with a single event, up to the number of its user, by the length of the rest of the event.
    starts: Vec<Vec<u8>>,
}

impl Form {
    pub(super) fn new(head: Vec<u8>, prefix: &UserPrefix) -> Form {
        let user = [USER, prefix.0.as_bytes()].concat();
        let start = |tail: usize| {
            let length = (user.len() + tail).to_string();
            [&head, length.as_bytes(), b"\r\n\r\n", &user].concat()
        };
        let starts = (0..=TAIL_BYTES_MAX).map(start).collect();
        Form { head, user, starts }
    }

    /// Returns the bytes of an event on its own line, except for the digits of its user and its value.
    fn line_bytes(&self) -> u64 {
        LINE_BYTES + (self.user.len() - USER.len()) as u64
    }
}

/// The events of a run. Event `i` comes from `user_{i % users}`, or from a user with another prefix, and its value
/// follows from `i`. Request `r` has event `r`, or the batch of events that begins with event `r * batch`.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// The number of events, at most [`EVENTS_MAX`].
    pub events: u64,
    /// The number of their users.
    pub users: u64,
    /// Their values.
    pub values: Values,
    /// Events per batch, at most [`BATCH_MAX`]; the last may have fewer. `None` is one event per `POST /event`.
    pub batch: Option<u64>,
}

/// The events of every `step`-th request from `start` to the end of the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Rest {
    /// The first request.
    pub(super) start: u64,
    /// The distance from one request to the next.
    pub(super) step: u64,
}

impl Rest {
    /// Returns the number of requests in it, for a workload with `requests` requests.
    pub(super) fn len(self, requests: u64) -> u64 {
        requests.saturating_sub(self.start).div_ceil(self.step)
    }
}

/// The four totals that a server reports.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// The totals of a server that has counted nothing.
    pub const ZERO: Totals = Totals { total_requests: 0, unique_users: 0, sum: 0.0, avg: 0.0 };

    /// Reports whether the sum, with and without a run's events, is exact in an `f64`.
    pub(super) fn sum_is_exact(&self) -> bool {
        self.sum.abs() < HALVES_EXACT_BELOW && (self.sum * 2.0).fract() == 0.0
    }
}

/// The numbers of decimals that a server may round an average to. With more decimals, rounding could not be
/// distinguished from an error in the last bits.
const DECIMALS: std::ops::RangeInclusive<usize> = 2..=10;

/// The precision of the average in some totals, compared with the quotient of their sum and their count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AvgPrecision {
    /// Exact to the last bit.
    Full,
    /// Rounded to this number of decimals.
    Rounded(usize),
    /// Neither exact nor rounded.
    Off,
}

impl Totals {
    /// Returns the sum divided by the count.
    pub(super) fn quotient(&self) -> f64 {
        if self.total_requests == 0 { 0.0 } else { self.sum / self.total_requests as f64 }
    }

    /// Returns the precision of the average. It may be exactly the quotient, or be rounded as programming languages
    /// round: exactly, or by way of a power of ten.
    pub(super) fn avg_precision(&self) -> AvgPrecision {
        let quotient = self.quotient();
        if self.avg == quotient {
            return AvgPrecision::Full;
        }
        let is_rounded = |decimals: &usize| {
            let decimals = *decimals;
            let exactly = format!("{quotient:.decimals$}").parse() == Ok(self.avg);
            let scale = 10_f64.powi(i32::try_from(decimals).unwrap_or(0));
            exactly || (quotient * scale).round() / scale == self.avg
        };
        DECIMALS.into_iter().find(is_rounded).map_or(AvgPrecision::Off, AvgPrecision::Rounded)
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

/// The totals of some events of a run, in integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// The number of events.
    pub events: u64,
    /// Twice the sum of their values.
    pub sum_in_halves: u64,
}

impl Workload {
    /// Returns twice the value of an event, for the tests to add up.
    #[cfg(test)]
    pub(super) fn value_in_halves(&self, event: u64) -> u64 {
        match self.values {
            Values::Integer => 2 * (event % VALUES),
            Values::Half => 2 * (event % VALUES) + 1,
            Values::One => 2,
        }
    }

    /// Returns the number of events per request; the last request may have fewer.
    pub(super) fn events_per_request(&self) -> u64 {
        self.batch.unwrap_or(1)
    }

    /// Returns the most bytes that the events of one request take, for users whose ids begin with `prefix`.
    pub(crate) fn request_bytes_max(&self, prefix: &UserPrefix) -> u64 {
        let digits = u64::from(self.users.min(self.events).max(1).ilog10()) + 1;
        (LINE_BYTES + prefix.bytes() + digits + VALUE_BYTES_MAX)
            * self.events_per_request().min(self.events)
    }

    /// Returns the number of requests.
    pub(crate) fn requests(&self) -> u64 {
        self.events.div_ceil(self.events_per_request())
    }

    /// Returns the events of a request.
    pub(super) fn events_of(&self, request: u64) -> Range<u64> {
        let batch = self.events_per_request();
        (request * batch).min(self.events)..((request + 1) * batch).min(self.events)
    }

    /// Returns the number of events in this request.
    #[inline]
    pub(super) fn size_of(&self, request: u64) -> u64 {
        let Range { start, end } = self.events_of(request);
        end - start
    }

    /// Appends an HTTP request.
    pub(super) fn append_request(&self, request: u64, form: &Form, out: &mut Vec<u8>) {
        let events = self.events_of(request);
        if self.batch.is_none() {
            let (mut tail, mut bytes) = ([0; TAIL_BYTES_MAX], 0);
            self.tail_of_event(events.start % self.users, events.start % VALUES, |piece| {
                tail[bytes..bytes + piece.len()].copy_from_slice(piece);
                bytes += piece.len();
            });
            out.extend_from_slice(&form.starts[bytes]);
            out.extend_from_slice(&tail[..bytes]);
            return;
        }
        let bytes = self.bytes_of_lines(&events, form);
        out.extend_from_slice(&form.head);
        out.extend_from_slice(itoa::Buffer::new().format(bytes).as_bytes());
        out.extend_from_slice(b"\r\n\r\n");
        let start = out.len();
        self.append_lines(events, form, out);
        debug_assert_eq!((out.len() - start) as u64, bytes, "Content-Length is that of the body");
    }

    /// Appends events, each on its own line.
    fn append_lines(&self, events: Range<u64>, form: &Form, out: &mut Vec<u8>) {
        let (mut user, mut value) = (events.start % self.users, events.start % VALUES);
        for _ in events {
            out.extend_from_slice(&form.user);
            self.tail_of_event(user, value, |piece| out.extend_from_slice(piece));
            out.push(b'\n');
            user = if user + 1 == self.users { 0 } else { user + 1 };
            value = if value + 1 == VALUES { 0 } else { value + 1 };
        }
    }

    /// Passes an event to `put` piece by piece, from the number of its user on.
    #[inline]
    fn tail_of_event(&self, user: u64, value: u64, mut put: impl FnMut(&[u8])) {
        let mut digits = itoa::Buffer::new();
        put(digits.format(user).as_bytes());
        put(VALUE);
        let value = if self.values == Values::One { 1 } else { value };
        put(digits.format(value).as_bytes());
        if self.values == Values::Half {
            put(HALF);
        }
        put(END);
    }

    /// Returns the length of events, each on its own line.
    fn bytes_of_lines(&self, events: &Range<u64>, form: &Form) -> u64 {
        let digits = |period: u64| {
            digits_of_first(events.end, period) - digits_of_first(events.start, period)
        };
        let count = events.end - events.start;
        let of_values = match self.values {
            Values::Integer => digits(VALUES),
            Values::Half => digits(VALUES) + count * HALF.len() as u64,
            Values::One => count,
        };
        count * form.line_bytes() + digits(self.users) + of_values
    }

    /// Returns the totals of all events.
    pub(super) fn whole(&self) -> Share {
        Share { events: self.events, sum_in_halves: self.sum_in_halves_of_first(self.events) }
    }

    /// Returns twice the sum of the values of the first `events` events.
    fn sum_in_halves_of_first(&self, events: u64) -> u64 {
        let (cycles, rest) = (events / VALUES, events % VALUES);
        let triangle = |n: u64| n * n.saturating_sub(1);
        let of_indices = cycles * triangle(VALUES) + triangle(rest);
        match self.values {
            Values::Integer => of_indices,
            Values::Half => of_indices + events,
            Values::One => 2 * events,
        }
    }

    /// Returns twice the sum of the values of some events.
    pub(super) fn sum_in_halves_of_events(&self, events: &Range<u64>) -> u64 {
        self.sum_in_halves_of_first(events.end) - self.sum_in_halves_of_first(events.start)
    }

    /// Returns the number of events in the rest of the workload.
    pub(super) fn len_of(&self, rest: Rest) -> u64 {
        let Range { start, end } = self.overhang(rest);
        rest.len(self.requests()) * self.events_per_request() - (end - start)
    }

    /// Returns the range of events that the last request lacks compared with other requests, if the rest has it.
    fn overhang(&self, rest: Rest) -> Range<u64> {
        let requests = self.requests();
        let has_last =
            rest.start < requests && (requests - 1 - rest.start).is_multiple_of(rest.step);
        let end = if has_last { requests * self.events_per_request() } else { self.events };
        self.events..end
    }

    /// Returns twice the sum of the values of the rest of the workload.
    pub(super) fn sum_in_halves_of(&self, rest: Rest) -> u64 {
        let (requests, batch) = (rest.len(self.requests()), self.events_per_request());
        // Values repeat after this number of its requests.
        let period = VALUES / greatest_common_divisor(VALUES, rest.step * batch);
        let of_first = |count: u64| -> u64 {
            let starts = (0..count).map(|index| (rest.start + index * rest.step) * batch);
            starts.map(|start| self.sum_in_halves_of_events(&(start..start + batch))).sum()
        };
        let all = match requests / period {
            0 => of_first(requests),
            cycles => cycles * of_first(period) + of_first(requests % period),
        };
        all - self.sum_in_halves_of_events(&self.overhang(rest))
    }
}

/// Returns the greatest number that divides both; neither is 0.
pub(super) fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Returns the total number of digits of the first `count` numbers of the sequence 0, 1, 2, and so on, which repeats
/// after `period` numbers.
fn digits_of_first(count: u64, period: u64) -> u64 {
    let (cycles, rest) = (count / period, count % period);
    let of_cycle = if cycles > 0 { cycles * digits_below(period) } else { 0 };
    of_cycle + digits_below(rest)
}

/// Returns the total number of digits of the numbers below `end`.
fn digits_below(end: u64) -> u64 {
    let (mut digits, mut least) = (end, 10);
    // Each number from 10 on has one more digit, each number from 100 on has another one, and so on.
    while least < end {
        digits += end - least;
        match u64::checked_mul(least, 10) {
            Some(next) => least = next,
            None => break,
        }
    }
    digits
}

impl Share {
    /// Returns the totals that an initially empty server must report for the share, given its number of users.
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
        Workload { events, users: 75_000, values, batch: None }
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
        let form = Form::new(b"Content-Length: ".to_vec(), &UserPrefix::default());
        workload(80_000, Values::Half).append_request(75_012, &form, &mut out);
        let body = r#"{"userId":"user_12","value":12.5}"#;
        let expected = format!("Content-Length: {}\r\n\r\n{body}", body.len());
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    /// Every event of a workload is in one batch, in order, and each batch states its length.
    #[test]
    fn batches_are_the_events_line_by_line() {
        let mut random = fastrand::Rng::with_seed(2);
        for _ in 0..200 {
            let values = [Values::Integer, Values::Half, Values::One][random.usize(0..3)];
            let users = [1, 7, 10, 11, 1000, 75_000, u64::MAX][random.usize(0..7)];
            let events = random.u64(1..3000);
            let batch = Some(random.u64(1..1200));
            let prefix = [UserPrefix::default(), UserPrefix::new(), "x".parse().unwrap()];
            let prefix = &prefix[random.usize(0..3)];
            let form = Form::new(Vec::new(), prefix);
            let batches = Workload { events, users, values, batch };
            let singles = Workload { batch: None, ..batches };
            let mut lines = String::new();
            let mut counts = 0;
            for request in 0..batches.requests() {
                let mut out = Vec::new();
                batches.append_request(request, &form, &mut out);
                assert!(batches.request_bytes_max(prefix) >= out.len() as u64 - 20);
                let text = String::from_utf8(out).unwrap();
                let (length, body) = text.split_once("\r\n\r\n").unwrap();
                assert_eq!(length, body.len().to_string());
                assert_eq!(body.lines().count() as u64, batches.size_of(request));
                counts += batches.size_of(request);
                lines += body;
            }
            assert_eq!(counts, events);
            assert_eq!(lines.matches(&prefix.0).count() as u64, events);
            for (event, line) in (0..events).zip(lines.lines()) {
                let mut out = Vec::new();
                singles.append_request(event, &form, &mut out);
                let length = line.len();
                assert_eq!(String::from_utf8(out).unwrap(), format!("{length}\r\n\r\n{line}"));
            }
        }
    }

    #[test]
    fn ids_begin_with_what_every_server_takes() {
        assert_ne!(UserPrefix::new(), UserPrefix::new());
        assert!(UserPrefix::default().is_published() && !UserPrefix::new().is_published());
        for (text, is_taken) in [
            ("a", true),
            ("run-7.b_", true),
            ("", false),
            ("a b", false),
            ("\"", false),
            ("é", false),
        ] {
            assert_eq!(text.parse::<UserPrefix>().is_ok(), is_taken, "{text}");
        }
        assert!("x".repeat(33).parse::<UserPrefix>().is_err());
        assert!(UserPrefix::new().to_string().parse::<UserPrefix>().is_ok());
    }

    #[test]
    fn the_digits_of_numbers_are_counted() {
        for end in [0, 1, 9, 10, 11, 99, 100, 101, 12_345] {
            let listed: usize = (0..end).map(|number: u64| number.to_string().len()).sum();
            assert_eq!(digits_below(end), listed as u64, "{end}");
        }
        assert_eq!(digits_of_first(23, 11), 2 * 12 + 1);
        assert_eq!(digits_of_first(5, u64::MAX), 5);
    }
}
