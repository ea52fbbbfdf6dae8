//! The challenge in one command: a server process, this process as its client on other CPUs if there are two or more, and
//! one report. The server is this program's own, or any command; several are compared in rounds.
//!
//! - `own`: this program's server, with the report of [`load`].
//! - `command`: the value of `--server`. `process`, `keeper`, `cgroup`, `usage`, `listeners`, `log`: a server that it names,
//!   from start to end, and the resources that it used.
//! - `rows`, `rounds`, `pause`: the loads, and the order in which servers get them. `measured`: the figures of one run.
//! - `comparison`, `score`: the result of all runs. `table`, `page`, `exported`: its forms.
//! - `network`: a network namespace with its own loopback device.

mod cgroup;
mod command;
mod comparison;
mod exported;
mod keeper;
mod listeners;
mod log;
mod measured;
mod network;
mod own;
mod page;
mod pause;
mod process;
mod rounds;
mod rows;
mod score;
mod table;
mod usage;

use crate::doctor::Environment;
use crate::document::{Document, Format};
use crate::failure::Failure;
use crate::load::{self, Destination, Export, Output, ServerUse, Time, put, write_exports};
use crate::topology::format_cpu_list;
use crate::{log as lines, terminal};
pub use command::ServerCommand;
use comparison::{RowFound, ServerFound};
pub use keeper::{Config as KeeperConfig, run as keep};
use measured::Run;
pub use network::{MTU_MAX, MTU_MIN, enter as enter_network};
pub use own::Config as OwnConfig;
use process::{Conditions, Error, Judged, Logs};
use rounds::Plan;
pub use rows::{DEFAULT as DEFAULT_ROWS, Row};
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;
use usage::CpuTime;

/// The most servers in a comparison.
pub const SERVERS_MAX: usize = 64;
/// The most rounds.
pub const ROUNDS_MAX: u64 = 1000;
/// The time that a comparison spends observing the machine before it starts.
const ENVIRONMENT_SAMPLE: Duration = Duration::from_millis(100);

/// A checked configuration.
pub enum Config {
    /// This program's own server, and one report.
    Own(Box<own::Config>),
    /// One server that `--server` names, and one report.
    One(Box<JudgeConfig>, Output),
    /// Servers, compared row by row.
    Several(Box<JudgeConfig>, Several),
}

/// The servers that `--server` names, and the load that all of them get.
pub struct JudgeConfig {
    /// The servers, at least one.
    pub servers: Vec<ServerCommand>,
    /// Their CPUs.
    pub server_cpus: Vec<usize>,
    /// The client's CPUs.
    pub client_cpus: Vec<usize>,
    /// The longest time from a server's start to its first response.
    pub start_max: Duration,
    /// Flags for this program's own server.
    pub tuning: Vec<String>,
    /// The load. Its server changes with each start.
    pub load: load::Config,
}

/// A comparison.
pub struct Several {
    /// The rows that each server gets in each round.
    pub rows: Vec<Row>,
    /// The number of rounds.
    pub rounds: u32,
    /// The destinations of its reports.
    pub output: Places,
}

/// The destinations of the reports of a comparison.
#[derive(Debug)]
pub struct Places {
    places: [Option<Destination>; 2],
    exports: (Vec<Export>, Vec<Destination>),
    quiet: bool,
}

impl Places {
    /// Opens the destinations that `--json`, `--html`, and `--export` name; `-` is standard output. `quiet` is true if
    /// `--quiet` was given.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] if two of them are the same, and [`Failure::Environment`] if one cannot be written.
    pub fn open(
        json: Option<PathBuf>,
        html: Option<PathBuf>,
        exports: Vec<Export>,
        quiet: bool,
    ) -> Result<Places, Failure> {
        let flags = [("--json", json), ("--html", html)];
        let named = exports.iter().map(Export::place).collect();
        let (places, of_exports) = Destination::open_all(flags, named)?;
        Ok(Places { places, exports: (exports, of_exports), quiet })
    }

    fn write(self, compared: &Compared) -> Result<(), Failure> {
        let Places { places: [json, html], exports: (exports, places), quiet } = self;
        let mut all = [&json, &html].into_iter().flatten().chain(&places);
        let is_beside_report = all.any(Destination::is_stdout);
        drop(all);
        let written = [
            put(json, || Ok(compared.json())),
            put(html, || Ok(compared.html())),
            if quiet { Ok(()) } else { terminal::tell(&compared.table(), is_beside_report) },
        ];
        let exported = write_exports(&exports, places, &compared.exported());
        Failure::all(written.into_iter().chain(exported))
    }
}

/// A comparison of servers.
#[derive(Serialize, JsonSchema)]
struct Compared {
    /// The command that repeats the comparison, without secrets.
    command: Vec<String>,
    /// The number of rounds.
    rounds: u32,
    /// The servers' CPUs.
    server_cpus: String,
    /// The client's CPUs.
    client_cpus: String,
    /// The number of connections.
    connections: usize,
    /// The MTU of the loopback device in bytes; null if it cannot be read. The usual 65,536 hides how responses are split
    /// into packets.
    loopback_mtu: Option<u64>,
    /// Whether the user ended it early.
    interrupted: bool,
    /// The time at which the first server was started.
    started: Time,
    /// The time at which the last server had ended.
    ended: Time,
    /// The servers, in the order of the flags.
    servers: Vec<ServerFound>,
    /// The rows, each with all servers.
    rows: Vec<RowFound>,
    /// Every run.
    runs: Vec<Run>,
    /// The machine.
    environment: Environment,
}

/// Returns the JSON Schema of a comparison of servers; `None` for another format.
pub fn schema(format: Format) -> Option<Schema> {
    (format == Format::Servers).then(|| format.schema::<Compared>())
}

/// Runs the challenge. No server outlives this process, however it ends.
///
/// # Errors
///
/// The errors of starting and stopping a server, of [`load::run`], and of writing the report's files; and [`Failure::Wrong`] if
/// a server is not exact.
pub fn run(config: Config) -> Result<(), Failure> {
    match config {
        Config::Own(config) => own::run(*config),
        Config::One(config, output) => judge(*config, output),
        Config::Several(config, several) => compare(*config, several),
    }
}

/// Judges one server, with the report of `load`.
fn judge(config: JudgeConfig, output: Output) -> Result<(), Failure> {
    let JudgeConfig { servers, server_cpus, start_max, tuning, load, .. } = config;
    let mut logs = Logs::make()?;
    let cpus = format_cpu_list(&server_cpus);
    let on = Conditions { cpus: server_cpus, start_max, tuning, logs: logs.path.clone() };
    let server = &servers[0];
    let log = on.log(&server.name);
    let mut fail = |error: &Error| {
        logs.are_kept = true;
        error.failure(&server.name, &log)
    };
    let mut judged = Judged::start(server, &on).map_err(|error| fail(&error))?;
    let load = load::Config {
        server: load::Server::parse(&format!("http://{}", judged.address))?,
        server_command: judged.command.clone(),
        ..load
    };
    let (report, used) = usage::run(&load, || judged.cpu());
    let (peak_rss_bytes, cpu_source) = (judged.peak_rss_bytes(), judged.cpu_source());
    let ended = judged.check();
    let had_to_be_killed = judged.stop();
    // Its log is complete only now.
    let ended = ended.map_err(|error| fail(&error));
    let mut report = match (report, &ended) {
        (Ok(report), _) => report,
        (Err(failure), Ok(())) => return Err(failure),
        // The server's failure is the cause of the client's.
        (Err(_), Err(_)) => return ended,
    };
    if had_to_be_killed {
        let seconds = process::STOP_MAX.as_secs();
        let name = &server.name;
        let what = format!("{name} did not end within {seconds} s of SIGTERM, and was killed");
        lines::Log::Text.warn(&what);
    }
    report.add_server(used.map(|CpuTime { user, system }| ServerUse {
        user,
        system,
        cpu_source,
        peak_rss_bytes,
        cpus,
    }));
    let written = output.write(&report);
    Failure::all([ended, report.check(), written])
}

/// Compares servers.
fn compare(config: JudgeConfig, several: Several) -> Result<(), Failure> {
    let JudgeConfig { servers, server_cpus, client_cpus, start_max, tuning, load } = config;
    let Several { rows, rounds, output } = several;
    let mut logs = Logs::make()?;
    let (of_server, of_client) = (format_cpu_list(&server_cpus), format_cpu_list(&client_cpus));
    let on = Conditions { cpus: server_cpus, start_max, tuning, logs: logs.path.clone() };
    // A typo in the last command would otherwise be found after minutes.
    for server in &servers {
        let checked = server.check_program().map_err(|error| Error::Spawn(error.to_string()));
        checked.map_err(|error| error.failure(&server.name, &on.log(&server.name)))?;
    }
    let environment = Environment::here(ENVIRONMENT_SAMPLE);
    let (connections, command) = (load.connections, load.command.clone());
    let is_quiet = output.quiet;
    let plan = Plan { servers, rows, rounds, on, load, client_cpus, is_quiet };
    let started = Time::now();
    let found = plan.run();
    let ended = Time::now();
    let (servers, rows) = comparison::of(&plan.servers, &plan.rows, connections, &found);
    logs.are_kept = servers.iter().any(|server| server.failure.is_some());
    let compared = Compared {
        command,
        rounds,
        server_cpus: of_server,
        client_cpus: of_client,
        connections,
        loopback_mtu: network::loopback_mtu(),
        interrupted: found.is_interrupted,
        started,
        ended,
        servers,
        rows,
        runs: found.runs,
        environment,
    };
    let written = output.write(&compared);
    Failure::all([compared.check(), written])
}

impl Compared {
    /// Returns it as one JSON object.
    fn json(&self) -> String {
        Document::new(Format::Servers, self).json()
    }

    /// Returns the source of CPU times in words.
    fn cpu_source(&self) -> &'static str {
        let is = |source| {
            self.servers.iter().filter_map(|server| server.cpu_source).any(|own| own == source)
        };
        match (is(load::CpuSource::Cgroup), is(load::CpuSource::Proc)) {
            (true, false) => "the cgroup of each server",
            (true, true) => "a cgroup or /proc",
            (false, _) => "/proc",
        }
    }

    /// Reports whether no server was ever ready.
    fn is_unstarted(&self) -> bool {
        self.servers.iter().all(|server| server.start_up_ms.is_none())
    }

    /// Fails unless every server was ready, and exact in every run.
    fn check(&self) -> Result<(), Failure> {
        let failures: Vec<String> =
            self.cases().into_iter().filter_map(|case| case.failure).collect();
        let all = failures.join("\n");
        match failures.is_empty() {
            true => Ok(()),
            // No server started.
            false if self.is_unstarted() && !self.interrupted => Err(Failure::Environment(all)),
            false => Err(Failure::Wrong(all)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::comparison::tests::{found, run, servers};
    use super::*;

    /// Of four servers, the second is slower, the third wrong, and the fourth failed.
    pub(super) fn compared() -> Compared {
        let runs = (0..5).flat_map(|round| {
            let mut wrong = run(2, round, 9000.0, 20.0);
            wrong.verdict = Some("wrong".into());
            wrong.reasons = vec!["totalRequests is 3 less".into()];
            wrong.p99_us = Some(200.0);
            wrong.p50_us = Some(100.0);
            [run(0, round, 1e5, 10.0), run(1, round, 5e4, 20.0), wrong]
        });
        let commands = servers(&["a", "b", "c", "d"]);
        let mut found = found(runs.collect(), 4);
        found.known[3].failure = Some("it ended".into());
        let (servers, rows) = comparison::of(&commands, &[Row::Saturated], 64, &found);
        Compared {
            command: vec!["ringtally".into()],
            rounds: 5,
            server_cpus: "0".into(),
            client_cpus: "1".into(),
            connections: 64,
            loopback_mtu: Some(65_536),
            interrupted: false,
            started: Time::now(),
            ended: Time::now(),
            servers,
            rows,
            runs: found.runs,
            environment: Environment::here(Duration::ZERO),
        }
    }

    #[test]
    fn what_is_wrong_or_failed_fails_and_what_is_slow_does_not() {
        let mut compared = compared();
        let why = compared.check().unwrap_err();
        assert_eq!(why.exit_code(), 1);
        for words in ["c in saturated is wrong: totalRequests is 3 less", "d: it ended"] {
            assert!(why.to_string().contains(words), "{why}");
        }
        assert_eq!(why.to_string().lines().count(), 2, "{why}");
        compared.rows[0].servers.retain(|server| server.server != 2);
        compared.servers.truncate(3);
        assert_eq!(compared.check(), Ok(()));
        compared.runs.clear();
        compared.servers[0].failure = Some("it ended".into());
        assert_eq!(compared.check().unwrap_err().exit_code(), 1);
        compared.servers.iter_mut().for_each(|server| server.start_up_ms = None);
        assert_eq!(compared.check().unwrap_err().exit_code(), 3);
    }
}
