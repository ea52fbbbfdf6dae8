//! Servers take turns: in each round, every server is started, warmed up, measured in each row, and stopped. The order is
//! reversed from round to round (A B B A), so that changes in the machine affect all servers.

use super::command::ServerCommand;
use super::measured::{Run, Seen};
use super::pause;
use super::process::{Conditions, Error, Judged};
use super::rows::Row;
use super::usage;
use crate::failure::Failure;
use crate::load::{self, CpuSource};
use crate::statistics::median;
use serde_json::Value;
use std::io::Write;
use std::time::Duration;

/// A warm-up ends when a part is not faster than the fastest one by this factor, or after as many parts as a JVM needs.
const WARM_UP_GAIN: f64 = 1.05;
const WARM_UP_PARTS: std::ops::RangeInclusive<u32> = 2..=8;
const WARM_UP_PART: Duration = Duration::from_millis(500);
/// The number of runs whose median is a capacity, and the length of each.
const CAPACITY_RUNS: usize = 3;
const CAPACITY_RUN: Duration = Duration::from_secs(1);

/// The plan of a comparison.
pub(super) struct Plan {
    pub(super) servers: Vec<ServerCommand>,
    pub(super) rows: Vec<Row>,
    pub(super) rounds: u32,
    pub(super) on: Conditions,
    /// The load that all rows share.
    pub(super) load: load::Config,
    pub(super) client_cpus: Vec<usize>,
    /// Whether to suppress progress messages.
    pub(super) is_quiet: bool,
}

/// The facts known about a server, except its runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Its whole command, in the first round.
    pub(super) command: Vec<String>,
    pub(super) start_ups_ms: Vec<f64>,
    pub(super) peak_rss_bytes: Option<u64>,
    /// The requests per second that saturate it, and whether the client was the limit of that figure.
    pub(super) capacity_per_s: Option<f64>,
    pub(super) capacity_is_clients: bool,
    pub(super) cpu_source: Option<CpuSource>,
    /// The number of times that it had to be killed.
    pub(super) kills: u32,
    /// The reason why it was given up.
    pub(super) failure: Option<String>,
}

/// The result of all rounds.
pub(super) struct Found {
    /// One entry per server, in the order of the flags.
    pub(super) known: Vec<Known>,
    pub(super) runs: Vec<Run>,
    pub(super) is_interrupted: bool,
}

/// The reason why a server is not loaded further.
enum Stop {
    /// It failed, for this reason.
    Failed(Error),
    /// The user interrupted the challenge.
    Interrupted,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Failed(error)
    }
}

impl Plan {
    /// Runs all rounds. A server that fails is given up, and the others continue.
    pub(super) fn run(&self) -> Found {
        let mut found = Found {
            known: vec![Known::default(); self.servers.len()],
            runs: Vec::new(),
            is_interrupted: false,
        };
        for round in 0..self.rounds {
            for index in order(self.servers.len(), round) {
                if found.known[index].failure.is_some() {
                    continue;
                }
                match self.visit(index, round, &mut found) {
                    Ok(()) => {}
                    Err(Stop::Failed(error)) => {
                        let name = &self.servers[index].name;
                        let why = error.sentence(&self.on.log(name));
                        self.say(&format!("{name} failed: {why}"));
                        found.known[index].failure = Some(why);
                    }
                    Err(Stop::Interrupted) => {
                        found.is_interrupted = true;
                        return found;
                    }
                }
            }
        }
        found
    }

    /// Starts, measures, and stops one server in one round.
    fn visit(&self, index: usize, round: u32, found: &mut Found) -> Result<(), Stop> {
        let server = &self.servers[index];
        self.say(&format!("round {} of {}: {}", round + 1, self.rounds, server.name));
        let mut judged = Judged::start(server, &self.on)?;
        let known = &mut found.known[index];
        known.start_ups_ms.push(judged.start_up.as_secs_f64() * 1e3);
        known.cpu_source = Some(judged.cpu_source());
        if known.command.is_empty() {
            known.command.clone_from(&judged.command);
        }
        self.warm_up(&mut judged)?;
        if known.capacity_per_s.is_none() && self.rows.iter().any(|row| matches!(row, Row::Near(_)))
        {
            let (capacity, is_clients) = self.capacity(&mut judged)?;
            (known.capacity_per_s, known.capacity_is_clients) = (Some(capacity), is_clients);
        }
        let capacity = known.capacity_per_s.unwrap_or(1.0);
        for (number, row) in self.rows.iter().enumerate() {
            self.say(&format!("  {}: {row}", server.name));
            let seen = self.ask(&mut judged, *row, capacity)?;
            found.runs.push(Run::new((index, number, round), *row, &seen, self.on.cpus.len()));
        }
        let known = &mut found.known[index];
        known.peak_rss_bytes = known.peak_rss_bytes.max(judged.peak_rss_bytes());
        judged.check()?;
        known.kills += u32::from(judged.stop());
        Ok(())
    }

    /// Measures a server in a row. If the client was the limit, the row is repeated with more client threads, provided that
    /// there are CPUs for them.
    fn ask(&self, judged: &mut Judged, row: Row, capacity: f64) -> Result<Seen, Stop> {
        if row == Row::Pause {
            let cpu = self.client_cpus.first().copied().unwrap_or(0);
            let taken = pause::first_responses_us(judged.address, cpu);
            judged.check()?;
            return Ok(Seen::Pause(taken.map_err(|error| error.to_string())));
        }
        let mut config = row.load(&self.load, capacity);
        let seen = self.load(judged, &config)?;
        let is_limited = matches!(&seen, Seen::Load(seen) if seen.is_client_limited());
        if !is_limited || !has_idle_cpus(config.threads, self.client_cpus.len()) {
            return Ok(seen);
        }
        self.say(&format!("  {row} again, with a client thread per CPU"));
        config.threads = None;
        self.load(judged, &config)
    }

    /// Runs a load, and measures what it cost the server.
    fn load(&self, judged: &mut Judged, config: &load::Config) -> Result<Seen, Stop> {
        let server = load::Server::parse(&format!("http://{}", judged.address));
        let server = server.map_err(|error| Stop::Failed(Error::Spawn(error.to_string())))?;
        let config = load::Config { server, ..config.clone() };
        let (report, used) = usage::run(&config, || judged.cpu());
        judged.check()?;
        // A run that had nothing left to send does not report an interruption.
        if load::was_interrupted() {
            return Err(Stop::Interrupted);
        }
        Ok(match report {
            Err(Failure::Wrong(why) | Failure::Usage(why) | Failure::Environment(why)) => {
                Seen::Nothing(why)
            }
            Ok(report) => {
                let json: Value = serde_json::from_str(&report.json())
                    .unwrap_or_else(|error| unreachable!("a report is JSON: {error}"));
                Seen::load(json, used)
            }
        })
    }

    /// Returns the closed loop that warms up and finds capacities.
    fn saturating(&self, time: Duration) -> load::Config {
        load::Config {
            duration: Some(time),
            quiet: Duration::ZERO,
            thresholds: Vec::new(),
            abort_if: Vec::new(),
            workload: load::Workload { events: load::EVENTS_MAX, ..self.load.workload },
            ..self.load.clone()
        }
    }

    fn speed(&self, judged: &mut Judged, time: Duration) -> Result<(f64, bool), Stop> {
        match self.load(judged, &self.saturating(time))? {
            Seen::Load(seen) => {
                Ok((seen.number("/requests_per_s").unwrap_or(0.0), seen.is_client_limited()))
            }
            Seen::Nothing(_) | Seen::Pause(_) => Ok((0.0, false)),
        }
    }

    fn warm_up(&self, judged: &mut Judged) -> Result<(), Stop> {
        let mut fastest = 0.0;
        for part in 1..=*WARM_UP_PARTS.end() {
            let (speed, _) = self.speed(judged, WARM_UP_PART)?;
            if part >= *WARM_UP_PARTS.start() && speed < fastest * WARM_UP_GAIN {
                break;
            }
            fastest = speed.max(fastest);
        }
        Ok(())
    }

    fn capacity(&self, judged: &mut Judged) -> Result<(f64, bool), Stop> {
        let (mut speeds, mut is_clients) = (Vec::new(), false);
        for _ in 0..CAPACITY_RUNS {
            let (speed, is_client_limited) = self.speed(judged, CAPACITY_RUN)?;
            speeds.push(speed);
            is_clients |= is_client_limited;
        }
        Ok((median(&mut speeds).unwrap_or(1.0), is_clients))
    }

    fn say(&self, line: &str) {
        if !self.is_quiet {
            // If standard error is closed, nobody is waiting for the line.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }
}

/// Reports whether the client has more CPUs than threads. Without a number, it has one thread per CPU.
fn has_idle_cpus(threads: Option<usize>, cpus: usize) -> bool {
    threads.is_some_and(|threads| threads < cpus)
}

/// Returns the order of servers in a round.
fn order(servers: usize, round: u32) -> Vec<usize> {
    match round.is_multiple_of(2) {
        true => (0..servers).collect(),
        false => (0..servers).rev().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_threads_are_tried_if_there_are_cpus_for_them() {
        let cases =
            [(None, 4, false), (Some(3), 4, true), (Some(4), 4, false), (Some(5), 4, false)];
        for (threads, cpus, tries) in cases {
            assert_eq!(has_idle_cpus(threads, cpus), tries, "{threads:?} {cpus}");
        }
    }

    #[test]
    fn each_server_is_as_often_before_another_as_after_it() {
        let rounds: Vec<Vec<usize>> = (0..4).map(|round| order(3, round)).collect();
        assert_eq!(rounds, [[0, 1, 2], [2, 1, 0], [0, 1, 2], [2, 1, 0]]);
    }
}
