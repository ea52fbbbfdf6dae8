//! The rows of a comparison, which are the loads that each server gets.

use crate::load::{self, BATCH_MAX, EVENTS_MAX, Profile, RATE_MAX, Values, grouped};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The most requests in flight per connection.
const PIPELINE_MAX: u64 = 1024;
/// The largest share of a server's own capacity, in percent, for a row: above it, the backlog grows without bound.
const SHARE_MAX: u64 = 99;

/// A load that servers are compared under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// As many requests as a server takes.
    Saturated,
    /// A fixed rate.
    Rate(u64),
    /// A percentage of the server's own capacity.
    Near(u64),
    /// A connection for each request.
    Close,
    /// This number of requests in flight per connection.
    Pipeline(u64),
    /// Batches of this number of events.
    Batch(u64),
    /// As many requests as it takes, and `/stats` at the same time.
    Stats,
    /// The first response after a pause.
    Pause,
}

/// The rows if none are named: they distinguish servers within a minute per server.
pub const DEFAULT: [Row; 4] = [Row::Saturated, Row::Near(80), Row::Near(90), Row::Stats];

impl FromStr for Row {
    type Err = String;

    fn from_str(text: &str) -> Result<Row, String> {
        let (name, value) = match text.split_once(':') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let number = |most: u64| {
            let digits = value.unwrap_or_default();
            let number = digits.parse::<u64>().ok().filter(|n| (1..=most).contains(n));
            number.ok_or_else(|| {
                format!(
                    "the row {name} needs a number from 1 to {}, as in {name}:{}",
                    grouped(most),
                    most.min(80)
                )
            })
        };
        let row = match name {
            "saturated" => Row::Saturated,
            "rate" => Row::Rate(number(RATE_MAX)?),
            "near" => Row::Near(number(SHARE_MAX)?),
            "close" => Row::Close,
            "pipeline" => Row::Pipeline(number(PIPELINE_MAX)?),
            "batch" => Row::Batch(number(BATCH_MAX)?),
            "stats" => Row::Stats,
            "pause" => Row::Pause,
            _ => {
                return Err(
                    "use saturated, rate:N, near:PERCENT, close, pipeline:N, batch:N, stats, or pause".into(),
                );
            }
        };
        match (row.to_string() == text, value) {
            (false, Some(_)) => Err(format!("the row {name} is written as {row}")),
            _ => Ok(row),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Row::Saturated => f.write_str("saturated"),
            Row::Rate(rate) => write!(f, "rate:{rate}"),
            Row::Near(percent) => write!(f, "near:{percent}"),
            Row::Close => f.write_str("close"),
            Row::Pipeline(depth) => write!(f, "pipeline:{depth}"),
            Row::Batch(events) => write!(f, "batch:{events}"),
            Row::Stats => f.write_str("stats"),
            Row::Pause => f.write_str("pause"),
        }
    }
}

impl Row {
    /// Returns its description.
    pub(super) fn title(self, connections: usize) -> String {
        let all = format!("{} connections", grouped(connections as u64));
        match self {
            Row::Saturated => format!("saturated, {all}"),
            Row::Rate(rate) => format!("{} requests/s, {all}", grouped(rate)),
            Row::Near(percent) => format!("{percent}% of each server's own capacity, {all}"),
            Row::Close => format!("a connection per request, {all} at a time"),
            Row::Pipeline(depth) => format!("{depth} requests in flight per connection, {all}"),
            Row::Batch(events) => format!("batches of {} events, {all}", grouped(events)),
            Row::Stats => format!("saturated, with /stats 100 times per second, {all}"),
            Row::Pause => "first response after a pause of 20 to 200 ms".into(),
        }
    }

    /// Returns the number of events in a batch; `None` for another row.
    pub fn batch(self) -> Option<u64> {
        match self {
            Row::Batch(events) => Some(events),
            _ => None,
        }
    }

    /// Reports whether requests are sent on schedule, whatever the server does.
    pub(super) fn is_open_loop(self) -> bool {
        matches!(self, Row::Rate(_) | Row::Near(_))
    }

    /// Returns the load of the row, derived from the load that all rows share. `capacity` is the server's own, in requests
    /// per second.
    pub(super) fn load(self, base: &load::Config, capacity: f64) -> load::Config {
        let mut load = base.clone();
        match self {
            Row::Saturated | Row::Pause => {}
            Row::Rate(rate) => at_rate(&mut load, rate),
            Row::Near(percent) => at_rate(&mut load, share(capacity, percent)),
            Row::Close => load.one_request_per_connection = true,
            Row::Pipeline(depth) => load.pipeline = usize::try_from(depth).unwrap_or(1),
            Row::Batch(events) => load.workload.batch = Some(events),
            Row::Stats => (load.watch, load.workload.values) = (true, Values::One),
        }
        load
    }
}

/// Returns a share of a capacity as a whole rate, at least one request per second.
fn share(capacity: f64, percent: u64) -> u64 {
    #[allow(clippy::cast_possible_truncation, reason = "a cast clamps")]
    #[allow(clippy::cast_sign_loss, reason = "a capacity is not negative")]
    let rate = (capacity * percent as f64 / 100.0).round() as u64;
    rate.clamp(1, RATE_MAX)
}

fn at_rate(load: &mut load::Config, rate: u64) {
    load.rate = rate.to_string().parse::<Profile>().ok();
    let due = |time: Duration| {
        let profile = load.rate.as_ref();
        profile.map_or(1, |profile| profile.events_in(time)).clamp(1, EVENTS_MAX)
    };
    if let Some(time) = load.duration {
        load.workload.events = due(time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_as_it_is_written() {
        for text in [
            "saturated",
            "rate:20000",
            "near:80",
            "close",
            "pipeline:16",
            "batch:1000",
            "stats",
            "pause",
        ] {
            assert_eq!(text.parse::<Row>().unwrap().to_string(), text);
        }
        for (text, says) in [
            ("fast", "use saturated, rate:N"),
            ("rate", "needs a number from 1 to 1,000,000,000"),
            ("near:0", "from 1 to 99, as in near:80"),
            ("pipeline:x", "from 1 to 1,024"),
            ("close:1", "is written as close"),
            ("near:080", "is written as near:80"),
        ] {
            assert!(text.parse::<Row>().unwrap_err().contains(says), "{text}");
        }
        for (least, most) in [("near", SHARE_MAX), ("pipeline", PIPELINE_MAX), ("rate", RATE_MAX)] {
            let is_fine = |number| format!("{least}:{number}").parse::<Row>().is_ok();
            assert_eq!([most - 1, most, most + 1].map(is_fine), [true, true, false], "{least}");
        }
    }

    #[test]
    fn a_share_of_a_capacity_is_a_rate() {
        assert_eq!(share(1000.0, 80), 800);
        assert_eq!(share(0.2, 90), 1);
        assert_eq!(share(f64::MAX, 99), RATE_MAX);
    }
}
