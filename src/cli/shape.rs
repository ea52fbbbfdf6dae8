//! The shape of a run: its amount, rate, and connections, from the client's flags.

use super::values::{count, duration};
use crate::failure::Failure;
use crate::load::{EVENTS_MAX, Profile, grouped};
use clap::Args;
use std::time::Duration;

/// Headings of the flags of a load.
pub(super) const WORKLOAD: &str = "Workload";
pub(super) const PACING: &str = "Pacing";

/// Keeps the positional arguments under "Arguments" in the help of `challenge`, too.
const NO_HEADING: Option<&str> = None;

/// The most connections of a client: one address has 64,511 unprivileged ports.
const WORKERS_MAX: u64 = 64_511;

/// The default numbers of events and connections.
const REQUESTS: u64 = 1_000_000;
const WORKERS: u64 = 1000;

/// The flags.
#[derive(Args, Debug)]
pub(super) struct ShapeArgs {
    /// Events to send [default: 1000000]
    #[arg(help_heading = NO_HEADING, value_parser = count::<u64>(1..=EVENTS_MAX))]
    requests: Option<u64>,
    /// Keep-alive connections, at most one per event [default: 1000]
    #[arg(help_heading = NO_HEADING, value_parser = count::<u64>(1..=WORKERS_MAX))]
    workers: Option<u64>,
    /// Events to send, as REQUESTS
    #[arg(short = 'n', long = "requests", help_heading = WORKLOAD, value_name = "N", value_parser = count::<u64>(1..=EVENTS_MAX))]
    requests_flag: Option<u64>,
    /// Connections, as WORKERS, or a ramp
    ///
    /// A ramp such as 100:5000 goes evenly from the first number to the second, over --duration or --stages. Stages have
    /// their own times, as in 10s@100,1s@100:5000,30s@5000,1s@5000:100: the run ends with the last one, and
    /// in a closed loop sends until then. Connections open one by one, and close once they have all their
    /// responses, so that no event becomes unknown. A client has at most one thread per connection.
    #[arg(short = 'c', long = "connections", help_heading = WORKLOAD, value_name = "N", value_parser = connections)]
    connections: Option<Profile>,
    /// Time to send for, instead of REQUESTS
    ///
    /// With --rate, the run has the events that are due in that time. If they are late, the client continues
    /// to send them for at most --timeout; the rest counts as unsent. Without --rate, the client sends as many
    /// events as fit, and waits for their responses. Either way, the verdict is as exact as with REQUESTS.
    #[arg(long, help_heading = WORKLOAD, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,
    /// Events per second [default: closed loop]
    ///
    /// The events are sent on schedule, in an open loop, at a fixed rate or a ramp such as 1000:20000. Event i is due after i/R seconds, whatever the server does, on the connections in turn.
    /// Latency counts from when a request was due, so a server that stalls shows in the
    /// percentiles. A closed loop waits for a connection's response before it sends the next
    /// request, and hides such a stall (coordinated omission). The report also has the latency from
    /// when a request was sent, how late the client was, and how many requests found every
    /// connection busy. R may have three decimals: at 0.5, an event is due every two seconds. A ramp
    /// goes evenly from the first rate to the second, over --duration or, without it, over the time that
    /// REQUESTS take.
    #[arg(long, help_heading = PACING, value_name = "R", value_parser = rate)]
    rate: Option<Profile>,
    /// Rates, such as 10s@1000,30s@5000:20000
    ///
    /// A stage is a time with a rate or a ramp: here, 10 seconds at 1,000 events per second, and then 30
    /// seconds in which the rate grows from 5,000 to 20,000. A stage at 0 is a pause. The run ends with the
    /// last stage, as with --duration.
    #[arg(long, help_heading = PACING, value_name = "STAGES", value_parser = stages)]
    stages: Option<Profile>,
}

/// The shape that the flags describe.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// The number of events, or the most possible if the run sends as many as fit in its time.
    pub(super) events: u64,
    pub(super) duration: Option<Duration>,
    pub(super) rate: Option<Profile>,
    /// The most and the fewest connections at any time.
    pub(super) connections: usize,
    pub(super) connections_least: usize,
    /// The number of connections over time, if it changes.
    pub(super) connections_over_time: Option<Profile>,
}

fn rate(text: &str) -> Result<Profile, String> {
    let profile: Profile = text.parse()?;
    match profile {
        Profile::Stages(_) => Err(format!("pass stages as --stages {text}")),
        _ if !profile.is_rate() => {
            Err("at a rate of 0, nothing is ever sent: leave out --rate for a closed loop".into())
        }
        _ => Ok(profile),
    }
}

fn stages(text: &str) -> Result<Profile, String> {
    if !text.contains('@') {
        return Err(format!(
            "'{text}' is not a stage: write TIME@RATE, such as 10s@1000 or 30s@5000:20000"
        ));
    }
    let profile: Profile = text.parse()?;
    match profile.is_rate() {
        true => Ok(profile),
        false => Err("nothing is sent in any stage: give one a rate above 0".into()),
    }
}

fn connections(text: &str) -> Result<Profile, String> {
    let profile: Profile = text.parse()?;
    let is_possible = |number: u64| (1..=WORKERS_MAX).contains(&number);
    match profile.amounts().into_iter().all(|amount| amount.as_whole().is_some_and(is_possible)) {
        true => Ok(profile),
        false => Err(format!(
            "a number of connections is a whole number from 1 to {WORKERS_MAX}, such as 1000 or 100:5000"
        )),
    }
}

impl ShapeArgs {
    /// Returns the rate that a search begins with.
    pub(super) fn first_rate(&self) -> Result<Option<u64>, Failure> {
        let changing = [
            ("--duration", self.duration.is_some()),
            ("--stages", self.stages.is_some()),
            ("--connections with a ramp", self.over_time().is_some()),
        ];
        if let Some((flag, _)) = changing.into_iter().find(|(_, is_given)| *is_given) {
            return Err(Failure::Usage(format!(
                "--find-rate cannot be used with {flag}: it chooses the rate and the length of its windows; pass \
                 --window for their length"
            )));
        }
        let begins = |rate: &Profile| {
            rate.as_whole().filter(|rate| *rate > 0).ok_or_else(|| {
                Failure::Usage(format!(
                    "--rate {rate}: --find-rate begins with a whole number of events per second, such as --rate 1000"
                ))
            })
        };
        self.rate.as_ref().map(begins).transpose()
    }

    /// Sets a run's duration and connections unless flags set them.
    pub(super) fn default_to(&mut self, duration: Duration, connections: u64) {
        let is_over_time = self.over_time().is_some_and(|it| it.lasts().is_some());
        let requests = self.requests.or(self.requests_flag);
        if requests.is_none() && self.stages.is_none() && !is_over_time {
            self.duration.get_or_insert(duration);
        }
        if self.connections.is_none() {
            self.workers.get_or_insert(connections);
        }
    }

    /// Returns the connections over time, if their number changes.
    fn over_time(&self) -> Option<&Profile> {
        self.connections.as_ref().filter(|connections| connections.as_whole().is_none())
    }

    /// Checks that the flags are compatible, and computes the rest.
    pub(super) fn check(&self) -> Result<Shape, Failure> {
        let usage = |why: String| Err(Failure::Usage(why));
        let events = match (self.requests, self.requests_flag) {
            (Some(requests), Some(_)) => {
                return usage(format!(
                    "{requests} is REQUESTS, and --requests is given, too: leave out one, and pass connections as -c"
                ));
            }
            (positional, flag) => positional.or(flag),
        };
        if self.workers.is_some() && self.connections.is_some() {
            return usage("WORKERS and --connections are both given: leave out one".into());
        }
        let over_time = self.over_time();
        let lengths = [
            ("REQUESTS", events.is_some()),
            ("--duration", self.duration.is_some()),
            ("--stages", self.stages.is_some()),
            ("--connections with stages", over_time.is_some_and(|it| it.lasts().is_some())),
        ];
        let given: Vec<&str> =
            lengths.iter().filter(|(_, is_given)| *is_given).map(|(name, _)| *name).collect();
        if let [first, second, ..] = given.as_slice() {
            return usage(format!(
                "{first} and {second} both say when the run ends: leave out one{}",
                if *first == "REQUESTS" { ", and pass connections as -c" } else { "" }
            ));
        }
        if self.stages.is_some() && self.rate.is_some() {
            return usage("--stages and --rate are both rates: leave out one".into());
        }
        let of_stages = |profile: Option<&Profile>| profile.and_then(Profile::lasts);
        let duration = self.duration.or(of_stages(self.stages.as_ref())).or(of_stages(over_time));
        if let (Some(connections), None) = (over_time, duration) {
            return usage(format!(
                "--connections {connections} needs a time: pass --duration or --stages"
            ));
        }
        let rate = self.stages.as_ref().or(self.rate.as_ref()).cloned();
        let ends = |least: bool| {
            let workers = self.workers.unwrap_or(WORKERS);
            let amounts = self.connections.as_ref().map(Profile::amounts).unwrap_or_default();
            let numbers = amounts.into_iter().filter_map(|amount| amount.as_whole());
            let found = if least { numbers.min() } else { numbers.max() };
            usize::try_from(found.unwrap_or(workers)).unwrap_or(usize::MAX)
        };
        Ok(Shape {
            events: events_of(events, rate.as_ref(), duration)?,
            duration,
            rate,
            connections: ends(false),
            connections_least: ends(true),
            connections_over_time: over_time.cloned(),
        })
    }

    /// Returns the arguments that repeat this run.
    pub(super) fn to_flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        let mut add = |flag: &str, value: Option<String>| {
            flags.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
        };
        let is_timed = self.duration.is_some()
            || self.stages.is_some()
            || self.over_time().is_some_and(|connections| connections.lasts().is_some());
        let requests = self.requests.or(self.requests_flag).unwrap_or(REQUESTS);
        add("--requests", (!is_timed).then(|| requests.to_string()));
        let workers = self.workers.unwrap_or(WORKERS).to_string();
        let connections = self.connections.as_ref().map_or(workers, ToString::to_string);
        add("--connections", Some(connections));
        let time = |time: Duration| humantime::format_duration(time).to_string();
        add("--duration", self.duration.map(time));
        add("--rate", self.rate.as_ref().map(ToString::to_string));
        add("--stages", self.stages.as_ref().map(ToString::to_string));
        flags
    }
}

/// Returns the number of events in a run.
fn events_of(
    events: Option<u64>,
    rate: Option<&Profile>,
    duration: Option<Duration>,
) -> Result<u64, Failure> {
    let usage = |why: String| Err(Failure::Usage(why));
    match (rate, duration) {
        (None, None) => Ok(events.unwrap_or(REQUESTS)),
        // The run has as many events as it sends in that time.
        (None, Some(_)) => Ok(EVENTS_MAX),
        (Some(rate), None) => {
            let events = events.unwrap_or(REQUESTS);
            match rate {
                Profile::Ramp(..) if rate.ramp_for(events).is_none() => usage(format!(
                    "{} events at --rate {rate} take centuries: use fewer, or a higher rate",
                    grouped(events)
                )),
                _ => Ok(events),
            }
        }
        (Some(rate), Some(duration)) => match rate.events_in(duration) {
            0 => usage(format!(
                "no event is due at {rate} in that time: use a longer one, or a higher rate"
            )),
            events @ ..=EVENTS_MAX => Ok(events),
            events => usage(format!(
                "{} events are due at {rate} in that time, and a run has at most {}: use a shorter one, or a lower \
                 rate",
                grouped(events),
                grouped(EVENTS_MAX)
            )),
        },
    }
}
