//! `ringtally serve`, and the server's flags that `challenge` has too.

use super::values::{CpuList, cpu_list, duration};
use crate::failure::Failure;
use crate::http::{Limits, Timeouts};
use crate::log::Log;
use crate::server::Engine;
use crate::service::{Dialect, Policy};
use crate::tally::{SHARDS_MAX, USERS_MAX};
use crate::{engine, server, topology};
use clap::{Args, ValueEnum};
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(super) const HELP: &str = "Examples:
  ringtally serve
  ringtally serve --host :: --port 9000 --cpus 0-3
  taskset -c 2,3 ringtally serve --dialect fasterapi

SIGTERM and SIGINT finish what is in flight and print the final totals.";

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
pub(super) struct ServerTuning {
    /// CPUs in taskset syntax (0-3,8), one shard each [default: all allowed]
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    pub(super) cpus: Option<CpuList>,
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

/// The longest time to poll before sleeping: longer is a busy loop, not a wait.
const SPIN_MICROS_MAX: u32 = 1_000_000;

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
        let read = |file: &Path| read_token("--admin-token-file", file);
        let admin_token = self.admin_token_file.as_deref().map(read).transpose()?;
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

impl ServerTuning {
    /// The flags as they would be typed, but for the CPUs and the engine's default.
    pub(super) fn to_flags(&self) -> Vec<OsString> {
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
pub(super) fn read_token(flag: &str, file: &Path) -> Result<Arc<[u8]>, Failure> {
    let text = std::fs::read(file).map_err(|error| {
        Failure::Usage(format!("cannot read {flag} {}: {error}", file.display()))
    })?;
    let token = text.trim_ascii();
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Err(Failure::Usage(format!(
            "{flag} {} must hold one token of visible ASCII characters",
            file.display()
        )));
    }
    Ok(token.into())
}
