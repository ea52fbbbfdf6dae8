//! The flags, and the step from what was typed to a checked configuration.

use crate::failure::Failure;
use crate::http::{Limits, Timeouts};
use crate::log::Log;
use crate::service::{Dialect, Policy};
use crate::tally::{SHARDS_MAX, USERS_MAX};
use crate::{server, topology};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The One Million Request Challenge: an exact server, and the client that checks it.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 80)]
#[command(
    after_help = "Exit codes: 0 done, 1 the result is wrong or a gate failed, 2 bad usage \
    or configuration,\n3 the environment cannot run it (no io_uring, port taken, no server there)."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Count events over HTTP and report exact totals
    Serve(ServeArgs),
}

/// How bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// The best that this kernel has
    Auto,
    /// glommio's own TCP streams
    Streams,
}

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
    /// How to write to standard error
    #[arg(long, value_enum, default_value = "text", value_name = "FORM")]
    log: Log,
}

/// The server's flags that do not say where it listens.
#[derive(Args, Debug)]
#[command(next_help_heading = "Server")]
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
    /// File with the token that POST /reset then needs
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
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
            _ => Err(format!(
                "write auto, or microseconds from 0 to {SPIN_MICROS_MAX}"
            )),
        },
    }
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
        self.tuning.into_config(self.host, self.port, self.log)
    }
}

impl ServerTuning {
    fn into_config(self, host: IpAddr, port: u16, log: Log) -> Result<server::Config, Failure> {
        let wanted = self.cpus.as_ref().map(|list| list.0.as_slice());
        let cpus = topology::choose(wanted, &topology::allowed_cpus()).map_err(Failure::Usage)?;
        let admin_token = self
            .admin_token_file
            .as_deref()
            .map(read_token)
            .transpose()?;
        let milliseconds = |duration: Duration| duration.as_millis() as u64;
        let shards = self.shards.map(|shards| shards as usize);
        Ok(server::Config {
            host,
            port,
            placement: topology::place(&cpus, shards),
            spin: match self.spin_us {
                Spin::Auto => Duration::ZERO,
                Spin::Micros(micros) => Duration::from_micros(u64::from(micros)),
            },
            connections_max: self.max_connections,
            limits: Limits {
                body_bytes_max: self.max_body as usize,
                timeouts: Timeouts {
                    header_ms: milliseconds(self.header_timeout),
                    body_ms: milliseconds(self.body_timeout),
                    idle_ms: milliseconds(self.idle_timeout),
                },
            },
            users_max: self.max_users,
            drain_timeout: self.drain_timeout,
            policy: Policy {
                dialect: self.dialect,
                admin_token,
                host: host.to_string(),
            },
            log,
        })
    }
}

/// Reads a token: the file's text without white space around it.
fn read_token(file: &Path) -> Result<Arc<[u8]>, Failure> {
    let text = std::fs::read(file).map_err(|error| {
        Failure::Usage(format!(
            "cannot read --admin-token-file {}: {error}",
            file.display()
        ))
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
