//! The flags, and the step from what was typed to a checked configuration.

use crate::failure::Failure;
use crate::http::{Limits, Timeouts};
use crate::load::{self, EVENTS_MAX, Output, RATE_MAX, Show, Threshold, Values};
use crate::log::Log;
use crate::server::Engine;
use crate::service::{Dialect, Policy};
use crate::tally::{SHARDS_MAX, USERS_MAX};
use crate::{challenge, doctor, engine, server, topology};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The One Million Request Challenge: an exact server, and the client that checks it.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 80)]
#[command(after_help = "Exit codes: 0 done, 1 the result is wrong or a gate failed, 2 bad usage \
    or configuration,\n3 the environment cannot run it (no io_uring, port taken, no server there).")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Count events over HTTP and report exact totals
    #[command(after_help = SERVE_HELP)]
    Serve(ServeArgs),
    /// Send the published events to a server and check what it counted
    #[command(after_help = LOAD_HELP)]
    Load(LoadArgs),
    /// Run a server and a client on CPUs of their own, and report
    #[command(after_help = CHALLENGE_HELP)]
    Challenge(ChallengeArgs),
    /// Say what a benchmark on this machine depends on
    #[command(after_help = DOCTOR_HELP)]
    Doctor(DoctorArgs),
    /// Print what a shell needs to complete these commands
    #[command(after_help = COMPLETIONS_HELP)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page of ringtally, or of one of its commands
    #[command(after_help = MAN_HELP)]
    Man {
        /// The command
        command: Option<String>,
    },
}

const SERVE_HELP: &str = "Examples:
  ringtally serve
  ringtally serve --host :: --port 9000 --cpus 0-3
  taskset -c 2,3 ringtally serve --dialect fasterapi

SIGTERM and SIGINT finish what is in flight and print the final totals.";

const LOAD_HELP: &str = "Examples:
  ringtally load
  ringtally load 100000 64 --url http://127.0.0.1:9000 --values half
  ringtally load 300000 64 --rate 30000 --html report.html
  ringtally load --watch --values one --fail-if 'p99>5ms' --fail-if 'rps<100000'
  ringtally load --json report.json --hdr latency.hgrm";

const CHALLENGE_HELP: &str = "Examples:
  ringtally challenge
  ringtally challenge 5000000 64 --pipeline 16
  ringtally challenge --cpus 0-3 --client-cpus 4-7 --json -";

const DOCTOR_HELP: &str = "Examples:
  ringtally doctor
  ringtally doctor --strict && ringtally challenge
  ringtally doctor --compare before.json after.json";

/// The flags of `serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Address to bind, IPv4 or IPv6
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: IpAddr,
    /// Port; 0 picks a free one
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// The flags that `challenge` has too
    #[command(flatten)]
    tuning: ServerTuning,
    /// File with the token that POST /reset then needs
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    /// How to write to standard error
    #[arg(long, value_enum, default_value = "text", value_name = "FORM")]
    log: Log,
    /// The process to end with: `challenge` starts its server with it
    #[arg(long, hide = true, value_name = "PID")]
    parent: Option<u32>,
}

/// The server's flags that do not say where it listens.
#[derive(Args, Debug)]
#[command(next_help_heading = "Server options")]
pub struct ServerTuning {
    /// CPUs in taskset syntax (0-3,8), one shard each [default: all allowed]
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    cpus: Option<CpuList>,
    /// Number of shards; more than CPUs share them [default: one a CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=SHARDS_MAX as u64))]
    shards: Option<u64>,
    /// How an event is acknowledged
    #[arg(long, value_enum, default_value = "1mrc")]
    dialect: Dialect,
    /// Data plane
    #[arg(long, value_enum, default_value = "auto")]
    engine: Engine,
    /// Microseconds that an idle shard polls before it sleeps; 0 never
    #[arg(long, default_value = "auto", value_name = "N", value_parser = spin)]
    spin_us: Spin,
    /// Connections over all shards; one more is refused [default: what the file limit allows]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_connections: Option<u64>,
    /// Bytes of a request body
    #[arg(long, default_value_t = 16384, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..))]
    max_body: u32,
    /// Distinct users held; the event of one more gets 507
    #[arg(long, default_value_t = 10_000_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=USERS_MAX))]
    max_users: u64,
    /// Time for a request's head
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = duration)]
    header_timeout: Duration,
    /// Time for a request's body
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = duration)]
    body_timeout: Duration,
    /// Time between requests
    #[arg(long, default_value = "75s", value_name = "TIME", value_parser = duration)]
    idle_timeout: Duration,
    /// Time for connections to finish on SIGTERM or SIGINT
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = duration)]
    drain_timeout: Duration,
}

/// CPUs, as typed.
#[derive(Clone, Debug)]
struct CpuList(Vec<usize>);

fn cpu_list(text: &str) -> Result<CpuList, String> {
    topology::parse_cpu_list(text).map(CpuList)
}

/// `--spin-us`.
#[derive(Clone, Copy, Debug)]
enum Spin {
    Auto,
    Micros(u32),
}

fn spin(text: &str) -> Result<Spin, String> {
    match text {
        "auto" => Ok(Spin::Auto),
        _ => match text.parse() {
            Ok(micros) if micros <= SPIN_MICROS_MAX => Ok(Spin::Micros(micros)),
            _ => Err(format!("write auto, or microseconds from 0 to {SPIN_MICROS_MAX}")),
        },
    }
}

const COMPLETIONS_HELP: &str = "Examples:
  ringtally completions bash > /etc/bash_completion.d/ringtally
  ringtally completions zsh > ~/.zfunc/_ringtally";

const MAN_HELP: &str = "Examples:
  ringtally man | man -l -
  ringtally man serve > ringtally-serve.1";

/// Completions of a shell, on standard output.
pub fn print_completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ringtally", &mut script);
    print(&script)
}

/// A manual page in roff, of the whole or of one command, on standard output.
pub fn print_man(command: Option<&str>) -> Result<(), Failure> {
    let whole = Cli::command();
    let page = match command {
        None => whole,
        Some(name) => {
            let names: Vec<&str> = whole.get_subcommands().map(clap::Command::get_name).collect();
            let found = whole.find_subcommand(name).cloned().ok_or_else(|| {
                Failure::Usage(format!("there is no command {name}: use {}", names.join(", ")))
            })?;
            found.display_name(format!("ringtally-{name}")).bin_name(format!("ringtally {name}"))
        }
    };
    let mut roff = Vec::new();
    clap_mangen::Man::new(page)
        .render(&mut roff)
        .map_err(|error| Failure::Environment(format!("cannot write the manual: {error}")))?;
    print(&roff)
}

fn print(text: &[u8]) -> Result<(), Failure> {
    std::io::stdout()
        .write_all(text)
        .map_err(|error| Failure::Environment(format!("cannot write to standard output: {error}")))
}

/// The longest time to poll before sleeping: longer is a busy loop, not a wait.
const SPIN_MICROS_MAX: u32 = 1_000_000;

/// The longest timeout.
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|_| "write a time with its unit, such as 10s or 500ms".to_owned())?;
    match duration {
        Duration::ZERO => Err("a timeout is at least 1ms".into()),
        longer if longer > DURATION_MAX => Err("a timeout is at most 24h".into()),
        duration => Ok(duration.max(Duration::from_millis(1))),
    }
}

impl ServeArgs {
    /// How to write to standard error.
    pub fn log(&self) -> Log {
        self.log
    }

    /// Checks the flags against the machine.
    pub fn into_config(self) -> Result<server::Config, Failure> {
        if let Some(parent) = self.parent {
            server::end_with(parent)?;
        }
        let admin_token = self.admin_token_file.as_deref().map(read_token).transpose()?;
        let tuning = self.tuning;
        let wanted = tuning.cpus.as_ref().map(|list| list.0.as_slice());
        let cpus = topology::choose(wanted, &topology::allowed_cpus()).map_err(Failure::Usage)?;
        let milliseconds = |duration: Duration| duration.as_millis() as u64;
        Ok(server::Config {
            host: self.host,
            port: self.port,
            placement: topology::place(&cpus, tuning.shards.map(|shards| shards as usize)),
            engine: tuning.engine,
            spin: match tuning.spin_us {
                Spin::Auto => engine::Spin::Auto,
                Spin::Micros(micros) => {
                    engine::Spin::Fixed(Duration::from_micros(u64::from(micros)))
                }
            },
            connections_max: tuning.max_connections,
            limits: Limits {
                body_bytes_max: tuning.max_body as usize,
                timeouts: Timeouts {
                    header_ms: milliseconds(tuning.header_timeout),
                    body_ms: milliseconds(tuning.body_timeout),
                    idle_ms: milliseconds(tuning.idle_timeout),
                },
            },
            users_max: tuning.max_users,
            drain_timeout: tuning.drain_timeout,
            policy: Policy { dialect: tuning.dialect, admin_token, host: self.host.to_string() },
            log: self.log,
        })
    }
}

/// The flags of `load`.
#[derive(Args, Debug)]
pub struct LoadArgs {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    url: String,
    /// CPUs that threads are pinned to, in taskset syntax [default: those allowed that keep off the
    /// cores of a server on this machine]
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    cpus: Option<CpuList>,
    /// Measure from the totals found, without a reset
    #[arg(long)]
    no_reset: bool,
    /// The flags that `challenge` has too
    #[command(flatten)]
    tuning: LoadTuning,
}

/// The client's flags that do not say where the server is.
#[derive(Args, Debug)]
#[command(next_help_heading = "Client options")]
pub struct LoadTuning {
    /// Events to send
    #[arg(default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=EVENTS_MAX))]
    requests: u64,
    /// Keep-alive connections
    #[arg(default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=WORKERS_MAX))]
    workers: u32,
    /// Values that events carry
    #[arg(long, value_enum, default_value = "integer")]
    values: Values,
    /// Users that events come from
    #[arg(long, default_value_t = 75_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    users: u64,
    /// Requests in flight on a connection
    #[arg(long, default_value_t = 1, value_name = "D", value_parser = clap::value_parser!(u32).range(1..=PIPELINE_MAX))]
    pipeline: u32,
    /// Client threads [default: one a CPU]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Open loop: requests a second, due at even times whatever the server does; latencies count
    /// from then
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..=RATE_MAX))]
    rate: Option<u64>,
    /// Requests to send before, outside of what is measured and of the verdict
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u64).range(..=EVENTS_MAX))]
    warmup: u64,
    /// Poll /stats during the run, and report answers that cannot be
    #[arg(long)]
    watch: bool,
    /// Exit with 1 if this holds, such as p99>5ms, rps<100000 or verdict!=exact; repeatable
    #[arg(long, value_name = "GATE")]
    fail_if: Vec<Threshold>,
    /// Time for an answer, a connection, or a server that is gone
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = duration)]
    timeout: Duration,
    /// Write the report as JSON; - is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the latencies as an HdrHistogram percentile table; - is standard output
    #[arg(long, value_name = "FILE")]
    hdr: Option<PathBuf>,
    /// Write the report as one offline HTML page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Show the run on the whole terminal
    #[arg(long, conflicts_with = "quiet")]
    tui: bool,
    /// Print no progress and no summary
    #[arg(long)]
    quiet: bool,
}

/// Most connections of a client. One address has at most 64,511 unprivileged ports.
const WORKERS_MAX: i64 = 64_511;
/// Most requests in flight on a connection.
const PIPELINE_MAX: i64 = 1024;

impl LoadArgs {
    /// Checks the flags against the machine.
    pub fn into_config(self) -> Result<(load::Config, Output), Failure> {
        let server = load::Server::parse(&self.url)?;
        let allowed = topology::allowed_cpus();
        let output = self.tuning.output()?;
        let choose = |list: CpuList| topology::choose(Some(&list.0), &allowed);
        let cpus = self.cpus.map(choose).transpose().map_err(Failure::Usage)?;
        Ok((self.tuning.into_config(server, cpus, None, !self.no_reset), output))
    }
}

impl LoadTuning {
    /// Where the report goes. Fails if a place that was asked for cannot be had.
    fn output(&self) -> Result<Output, Failure> {
        if self.tui && !std::io::stderr().is_terminal() {
            return Err(Failure::Usage("--tui needs a terminal on standard error".into()));
        }
        Output::new(self.json.clone(), self.hdr.clone(), self.html.clone(), self.quiet)
    }

    fn into_config(
        self,
        server: load::Server,
        cpus: Option<Vec<usize>>,
        server_cpus: Option<Vec<usize>>,
        reset: bool,
    ) -> load::Config {
        let workers = (self.workers as usize).min(self.requests as usize);
        load::Config {
            server,
            workload: load::Workload {
                events: self.requests,
                users: self.users,
                values: self.values,
            },
            workers,
            warm_up: self.warmup,
            threads: self.threads.map(|threads| threads as usize),
            cpus,
            server_cpus,
            pipeline: self.pipeline as usize,
            rate: self.rate,
            timeout: self.timeout,
            reset,
            watch: self.watch,
            thresholds: self.fail_if,
            progress: match (self.quiet, self.tui) {
                (true, _) => Show::Nothing,
                (false, false) => Show::Line,
                (false, true) => Show::Screen,
            },
        }
    }
}

/// The flags of `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Write one JSON object, as load and challenge embed it in their reports
    #[arg(long)]
    json: bool,
    /// Exit with 1 on a warning, or where --compare finds two machines
    #[arg(long)]
    strict: bool,
    /// Say what differs between two reports, or between one and this machine
    #[arg(long, value_name = "FILE", num_args = 1..=2)]
    compare: Vec<PathBuf>,
}

impl DoctorArgs {
    /// What was asked for.
    pub fn into_config(self) -> doctor::Config {
        doctor::Config { json: self.json, strict: self.strict, compare: self.compare }
    }
}

/// The flags of `challenge`.
#[derive(Args, Debug)]
pub struct ChallengeArgs {
    /// The client's
    #[command(flatten)]
    load: LoadTuning,
    /// CPUs of the client, in taskset syntax [default: the half that the server has not]
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    client_cpus: Option<CpuList>,
    /// The server's
    #[command(flatten)]
    server: ServerTuning,
}

impl ChallengeArgs {
    /// Checks the flags against the machine. What the client is to do is known once the server
    /// says where it listens.
    pub fn into_config(self) -> Result<challenge::Config, Failure> {
        let allowed = topology::allowed_cpus();
        let given = |list: &Option<CpuList>| {
            let wanted = list.as_ref().map(|list| list.0.as_slice());
            wanted
                .map(|wanted| topology::choose(Some(wanted), &allowed))
                .transpose()
                .map_err(Failure::Usage)
        };
        let without = |taken: &[usize]| {
            let rest: Vec<usize> =
                allowed.iter().copied().filter(|cpu| !taken.contains(cpu)).collect();
            if rest.is_empty() { allowed.clone() } else { rest }
        };
        let (server_cpus, client_cpus) =
            match (given(&self.server.cpus)?, given(&self.client_cpus)?) {
                (Some(server), Some(client)) => (server, client),
                (Some(server), None) => (server.clone(), without(&server)),
                (None, Some(client)) => (without(&client), client),
                (None, None) => topology::divide(&allowed, topology::siblings),
            };
        let output = self.load.output()?;
        let server_flags = self.server.to_flags();
        let of_server = server_cpus.clone();
        let load = self.load;
        Ok(challenge::Config {
            server_flags,
            server_cpus,
            load: Box::new(move |server| {
                (load.into_config(server, Some(client_cpus), Some(of_server), true), output)
            }),
        })
    }
}

impl ServerTuning {
    /// The flags as they would be typed, but for the CPUs and the engine's default.
    fn to_flags(&self) -> Vec<OsString> {
        let name = |value: &dyn std::fmt::Display| OsString::from(value.to_string());
        let time =
            |time: Duration| name(&humantime::format_duration(time).to_string().replace(' ', ""));
        let dialect = self.dialect.to_possible_value();
        let mut flags = vec![
            ("--dialect", dialect.map_or_else(OsString::new, |value| name(&value.get_name()))),
            ("--max-body", name(&self.max_body)),
            ("--max-users", name(&self.max_users)),
            ("--header-timeout", time(self.header_timeout)),
            ("--body-timeout", time(self.body_timeout)),
            ("--idle-timeout", time(self.idle_timeout)),
            ("--drain-timeout", time(self.drain_timeout)),
        ];
        if let Spin::Micros(micros) = self.spin_us {
            flags.push(("--spin-us", name(&micros)));
        }
        if let Some(shards) = self.shards {
            flags.push(("--shards", name(&shards)));
        }
        if let Some(connections) = self.max_connections {
            flags.push(("--max-connections", name(&connections)));
        }
        if let Some(engine) = self.engine.to_possible_value() {
            flags.push(("--engine", name(&engine.get_name())));
        }
        flags.into_iter().flat_map(|(flag, value)| [OsString::from(flag), value]).collect()
    }
}

/// Reads a token: the file's text without white space around it.
fn read_token(file: &Path) -> Result<Arc<[u8]>, Failure> {
    let text = std::fs::read(file).map_err(|error| {
        Failure::Usage(format!("cannot read --admin-token-file {}: {error}", file.display()))
    })?;
    let token = text.trim_ascii();
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Err(Failure::Usage(format!(
            "--admin-token-file {} must hold one token of visible ASCII characters",
            file.display()
        )));
    }
    Ok(token.into())
}
