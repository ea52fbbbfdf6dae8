//! `ringtally serve`, and the server's flags that `challenge` has too.

use super::values::{CpuList, count, cpu_list, duration, format_size, host, location, size};
use crate::engine::{Spin, Steer};
use crate::failure::Failure;
use crate::http::{Limits, Timeouts};
use crate::log::Log;
use crate::server::{Engine, StoreConfig};
use crate::service::{BatchMemory, Dialect, Policy};
use crate::store::{Location, file, postgres};
use crate::tally::{SHARDS_MAX, USERS_MAX};
use crate::{server, topology};
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use std::ffi::OsString;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(super) const LONG_ABOUT: &str = "\
Count events over HTTP and report exact totals

Endpoints:
  POST /event    count one event: {\"userId\": \"user_1\", \"value\": 499.5}
  POST /events   count a batch, all of it or nothing: one such event per line
  GET  /stats    the totals, of one moment over all shards
  POST /reset    set all totals to zero
  GET  /health   200 while the server can acknowledge events
  GET  /metrics  metrics for Prometheus
  GET  /         the live page, for a browser

The server is ready when it prints \"listening on\" with its address on standard
error. SIGTERM and SIGINT end it: it stops accepting, responds to the requests
it has, prints the final totals as one line of JSON on standard output, and
exits with 0. A second signal ends it at once, with exit code 1.

It needs io_uring: kernel.io_uring_disabled must be 0, and a container's seccomp
profile must allow the io_uring system calls. `ringtally doctor` checks this.

With --store FILE or a PostgreSQL URL, an event is acknowledged only once it is
durable. Any number of servers behind a load balancer can share one PostgreSQL:
/stats on each of them is the total over all. ci/deploy/OPERATIONS.md in the
repository describes the URL, the rights that the role needs, and backups.";

pub(super) const EXAMPLES: &str = "\
Examples:
  ringtally serve
  ringtally serve --host :: --port 9000 --cpus 0-3
  ringtally serve --store tally.redb
  ringtally serve --store 'postgres://tally@db1,db2/tally?sslrootcert=system'
  taskset -c 2-5 ringtally serve --dialect fasterapi
  numactl --cpunodebind=0 --membind=0 ringtally serve --cpus 0-7";

/// The flags of `serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Address to bind
    ///
    /// An IPv4 or IPv6 address of this machine, or localhost (127.0.0.1).
    #[arg(long, help_heading = LISTENING, default_value = "127.0.0.1", value_name = "ADDRESS", value_parser = host)]
    host: IpAddr,
    /// Port; 0 picks a free one
    #[arg(long, help_heading = LISTENING, default_value = "8000", value_name = "PORT", value_parser = count::<u16>(0..=65_535))]
    port: u16,
    /// CPUs to run on, such as 0-3,8 [default: all]
    ///
    /// Each CPU gets one shard. The list is in taskset syntax and must be within the affinity mask of this
    /// process, which taskset, numactl, and cpusets set. Run client and server on separate physical cores.
    /// `ringtally doctor --host ADDRESS --cpus LIST` relates the network card to these CPUs.
    #[arg(long, help_heading = LISTENING, value_name = "LIST", value_parser = cpu_list)]
    cpus: Option<CpuList>,
    /// The flags that `challenge` has too
    #[command(flatten)]
    tuning: ServerTuning,
    /// File with the token for POST /reset
    ///
    /// Clients send it as "Authorization: Bearer TOKEN". Without this flag, only clients on this
    /// machine may reset the totals, over HTTP/1.1 and not through a proxy. A server behind a proxy
    /// on this machine needs it: to the server, every client of the proxy is on this machine.
    #[arg(long, help_heading = OPERATIONS, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    /// Format of the log: text or json
    ///
    /// The log goes to standard error: plain text, or one JSON object per line with time, level, and
    /// message. If standard error is a pipe that nobody reads, lines are dropped and their number is logged.
    #[arg(long, help_heading = OPERATIONS, value_enum, default_value = "text", value_name = "FORMAT", hide_possible_values = true)]
    log: Log,
    /// Process to end with; `challenge` starts its server with it
    #[arg(long, hide = true, value_name = "PID")]
    parent: Option<u32>,
    /// Descriptor that the address is written to, on its own line, once the server is ready
    #[arg(long, hide = true, value_name = "FD")]
    ready_fd: Option<u32>,
}

/// The headings of the flags.
const LISTENING: &str = "Listening";
const PERFORMANCE: &str = "Performance";
const LIMITS: &str = "Limits";
const TIMEOUTS: &str = "Timeouts";
const STORE: &str = "Store";
const OPERATIONS: &str = "Operations";
pub(super) const HEADINGS: [&str; 6] =
    [LISTENING, PERFORMANCE, LIMITS, TIMEOUTS, STORE, OPERATIONS];

/// The server's flags, except its address and CPUs.
#[derive(Args, Debug)]
pub(super) struct ServerTuning {
    /// Number of shards [default: one per CPU]
    ///
    /// More shards than CPUs share them, which is for tests. A shard that accepts a connection while another
    /// has fewer hands it over; if connections are short, only while another has far fewer.
    #[arg(long, help_heading = LISTENING, value_name = "N", value_parser = count::<usize>(1..=SHARDS_MAX as u64))]
    shards: Option<usize>,
    /// Response to an event: 1mrc or fasterapi
    ///
    /// 1mrc, the default, is 200 without a body, as the challenge's original clients expect; fasterapi
    /// is 201 with {"status":"ok"}.
    #[arg(long, help_heading = LISTENING, value_enum, default_value = "1mrc", hide_default_value = true, hide_possible_values = true)]
    dialect: Dialect,
    /// Data plane: ring or streams [default: auto]
    ///
    /// ring gives each shard its own io_uring and needs Linux 6.1; streams uses the TCP streams of
    /// glommio. With auto, the server probes for what the ring engine needs, and if something is missing,
    /// it logs what and uses streams.
    #[arg(long, help_heading = PERFORMANCE, value_enum, default_value = "auto", hide_default_value = true, hide_possible_values = true)]
    engine: Engine,
    /// Time to poll when idle, in µs
    ///
    /// Polling lowers the latency at low concurrency and takes CPU time; 0 disables it. With auto, a shard
    /// of the ring engine polls while at most 16 connections are active and completions arrive within
    /// 50 µs, for up to twice the usual gap.
    #[arg(long, help_heading = PERFORMANCE, default_value = "auto", value_name = "N", value_parser = spin, allow_hyphen_values = true)]
    spin_us: Spin,
    /// Time to wait for more work, in µs
    ///
    /// A shard that is not idle wakes up at most once in this time, unless 64 requests wait, as network cards
    /// coalesce interrupts: below saturation, this saves CPU time and adds up to this much to each response.
    /// It needs the ring engine and Linux 6.12, and replaces polling. 0 responds at once.
    #[arg(long, help_heading = PERFORMANCE, default_value = "0", value_name = "N", value_parser = count::<u64>(0..=COALESCE_MICROS_MAX))]
    coalesce_us: u64,
    /// Choice of a shard: by hash or cpu
    ///
    /// With hash, a shard that accepts a connection while another has fewer hands it over. With cpu, the
    /// kernel picks the shard on the CPU that received the connection, and none is handed over. That helps
    /// if a network card spreads its queues over the CPUs of the shards (interrupt affinity or RPS; see
    /// `ringtally doctor`): a connection is then handled on one CPU from the packet to the response. If few
    /// queues receive, few shards work. A connection that arrives on a CPU without a shard goes to the shard
    /// whose number is that CPU's modulo the number of shards. Over loopback, the client's CPU receives. It
    /// needs one CPU per shard.
    #[arg(long, help_heading = PERFORMANCE, value_enum, default_value = "hash", hide_possible_values = true)]
    steer: Steer,
    /// Time to poll the network card, in µs
    ///
    /// Before a shard of the ring engine sleeps, it takes packets from the card itself for up to this long
    /// (NAPI busy polling, Linux 6.9), which saves the interrupt and the wake-up. It costs up to that much CPU
    /// time per wait, so a shard that waits often keeps its CPU busy, and whatever else runs there waits; an
    /// idle shard polls once per second. It does nothing over loopback or for devices without NAPI.
    #[arg(long, help_heading = PERFORMANCE, default_value = "0", value_name = "N", value_parser = count::<u64>(0..=BUSY_POLL_MICROS_MAX))]
    busy_poll_us: u64,
    /// Most connections [default: from ulimit -Hn]
    ///
    /// One more is refused with 503. A connection takes one file descriptor, so the limit on open files
    /// bounds this; the server raises its soft limit to the hard one. Each shard also queues up to
    /// 4,096 connections that it has yet to accept, or net.core.somaxconn if that is lower.
    #[arg(long, help_heading = LIMITS, value_name = "N", value_parser = count::<u64>(1..=u64::MAX))]
    max_connections: Option<u64>,
    /// Largest request body
    ///
    /// In bytes, or as 16KiB or 1MiB. A larger body gets 413.
    #[arg(long, help_heading = LIMITS, default_value = "16KiB", value_name = "SIZE", value_parser = size(1..=u64::from(u32::MAX)))]
    max_body: usize,
    /// Largest batch
    ///
    /// In bytes, or as 8MiB. A larger batch gets 413. A line of a batch may be as long as --max-body.
    #[arg(long, help_heading = LIMITS, default_value = "8MiB", value_name = "SIZE", value_parser = size(1..=u64::from(u32::MAX)))]
    max_batch: usize,
    /// Memory for all batches
    ///
    /// In bytes, or as 256MiB: the most that all batches being received may take. One more batch gets 503
    /// before its body is read. A chunked batch counts as --max-batch until it is counted. While it is
    /// counted, a batch takes up to three times its size, and one batch at a time, whose users are new, up
    /// to eight times.
    #[arg(long, help_heading = LIMITS, default_value = "256MiB", value_name = "SIZE", value_parser = size(1..=u64::MAX))]
    max_batch_memory: usize,
    /// Most distinct users
    ///
    /// An event of one more user gets 507. A user takes up to 128 bytes of memory with an id of at most 23
    /// bytes, up to 512 with the longest id (256 bytes), and 64 more for each further shard that sees it.
    #[arg(long, help_heading = LIMITS, default_value = "10000000", value_name = "N", value_parser = count::<u64>(1..=USERS_MAX))]
    max_users: u64,
    /// File or PostgreSQL URL that keeps the totals
    ///
    /// With a store, an event is acknowledged once it is durable, and the totals survive the end of the
    /// server, however that comes. A file serves one server at a time, and is created if it does not exist.
    /// Any number of servers share postgres://user@host/database. Without a store, the totals live in memory.
    #[arg(long, help_heading = STORE, value_name = "STORE", value_parser = location)]
    store: Option<Location>,
    /// Time to wait for the store
    ///
    /// If an acknowledgement waits longer, its connection is closed without a response. Further events get
    /// status 503 until the store responds.
    #[arg(long, help_heading = STORE, default_value = "5s", value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    store_timeout: Duration,
    /// Time for the head of a request
    ///
    /// The three timeouts of a client are totals: sending a byte now and then extends none of them. A request
    /// that has begun gets 408.
    #[arg(long, help_heading = TIMEOUTS, default_value = "10s", value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    header_timeout: Duration,
    /// Time for the body of a request
    #[arg(long, help_heading = TIMEOUTS, default_value = "10s", value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    body_timeout: Duration,
    /// Time without a request
    ///
    /// It is also the time that a client has to read 16 KiB of responses.
    #[arg(long, help_heading = TIMEOUTS, default_value = "75s", value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    idle_timeout: Duration,
    /// Time to finish after SIGTERM
    ///
    /// Connections have this long to finish after SIGTERM or SIGINT; then they are cut.
    #[arg(long, help_heading = TIMEOUTS, default_value = "5s", value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    drain_timeout: Duration,
}

/// The longest time to poll before sleeping: longer is a busy loop, not a wait.
const SPIN_MICROS_MAX: u64 = 1_000_000;
/// The longest time to wait for more: as long as a shard without work waits before it goes to sleep.
const COALESCE_MICROS_MAX: u64 = 10_000;

/// The longest time to poll a network device: as for [`SPIN_MICROS_MAX`].
const BUSY_POLL_MICROS_MAX: u64 = 1_000_000;

fn spin(text: &str) -> Result<Spin, String> {
    match text {
        "auto" => Ok(Spin::Auto),
        _ => match count(0..=SPIN_MICROS_MAX)(text) {
            Ok(micros) => Ok(Spin::Fixed(Duration::from_micros(micros))),
            Err(error) => Err(format!("{error}, or auto")),
        },
    }
}

/// Returns a timeout in milliseconds, rounded up, so that none is shorter than requested.
fn milliseconds(duration: Duration) -> u64 {
    // At most a day, which `values::duration` checks.
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

impl ServeArgs {
    /// Returns the log's format.
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
        let cpus = CpuList::choose(self.cpus.as_ref())?;
        let tuning = self.tuning;
        if tuning.max_batch_memory < tuning.max_batch {
            return Err(Failure::Usage(format!(
                "--max-batch-memory {} has no room for a batch of --max-batch {}: raise the one, or lower \
                 the other",
                format_size(tuning.max_batch_memory as u64),
                format_size(tuning.max_batch as u64)
            )));
        }
        let polls = !matches!(tuning.spin_us, Spin::Auto | Spin::Fixed(Duration::ZERO));
        if tuning.coalesce_us > 0 && polls {
            return Err(Failure::Usage(
                "--coalesce-us waits asleep, and --spin-us does not: leave out one of them".into(),
            ));
        }
        let placement = topology::place(&cpus, tuning.shards);
        if tuning.steer == Steer::Cpu && placement.len() > cpus.len() {
            let (shards, cpus) = (placement.len(), cpus.len());
            return Err(Failure::Usage(format!(
                "--steer cpu cannot choose between shards on one CPU, and --shards {shards} is more than the number \
                 of CPUs, {cpus}: lower --shards, or pass --steer hash"
            )));
        }
        Ok(server::Config {
            host: self.host,
            port: self.port,
            placement,
            engine: tuning.engine,
            spin: tuning.spin_us,
            coalesce: Duration::from_micros(tuning.coalesce_us),
            steer: tuning.steer,
            busy_poll: Duration::from_micros(tuning.busy_poll_us),
            connections_max: tuning.max_connections,
            limits: Limits {
                body_bytes_max: tuning.max_body,
                batch_bytes_max: tuning.max_batch,
                timeouts: Timeouts {
                    header_ms: milliseconds(tuning.header_timeout),
                    body_ms: milliseconds(tuning.body_timeout),
                    idle_ms: milliseconds(tuning.idle_timeout),
                },
            },
            users_max: tuning.max_users,
            store: tuning
                .store
                .map(|location| StoreConfig { location, timeout: tuning.store_timeout }),
            drain_timeout: tuning.drain_timeout,
            policy: Policy {
                dialect: tuning.dialect,
                admin_token,
                host: self.host.to_string(),
                line_bytes_max: tuning.max_body,
                batch_memory: BatchMemory::new(tuning.max_batch_memory),
            },
            log: self.log,
            ready: self.ready_fd.map(open_descriptor).transpose()?,
        })
    }
}

impl ServerTuning {
    /// Returns every flag, without its dashes, and its value; `None` if it was not given and lacks a default. The password of a
    /// store is left out.
    pub(super) fn settings(&self) -> Vec<(&'static str, Option<String>)> {
        let number = |value: u64| Some(value.to_string());
        let bytes = |value: usize| Some(value.to_string());
        let word = |value: Option<PossibleValue>| value.map(|value| value.get_name().to_owned());
        let time = |timeout: Duration| Some(humantime::format_duration(timeout).to_string());
        let spin_us = match self.spin_us {
            Spin::Fixed(duration) => duration.as_micros().to_string(),
            Spin::Auto => "auto".into(),
        };
        vec![
            ("shards", self.shards.map(|shards| shards.to_string())),
            ("dialect", word(self.dialect.to_possible_value())),
            ("engine", word(self.engine.to_possible_value())),
            ("spin-us", Some(spin_us)),
            ("coalesce-us", number(self.coalesce_us)),
            ("steer", word(self.steer.to_possible_value())),
            ("busy-poll-us", number(self.busy_poll_us)),
            ("max-connections", self.max_connections.map(|connections| connections.to_string())),
            ("max-body", bytes(self.max_body)),
            ("max-batch", bytes(self.max_batch)),
            ("max-batch-memory", bytes(self.max_batch_memory)),
            ("max-users", number(self.max_users)),
            ("store", self.store.as_ref().map(Location::to_string)),
            ("store-timeout", time(self.store_timeout)),
            ("header-timeout", time(self.header_timeout)),
            ("body-timeout", time(self.body_timeout)),
            ("idle-timeout", time(self.idle_timeout)),
            ("drain-timeout", time(self.drain_timeout)),
        ]
    }

    /// Returns the flags that give another process the same settings.
    pub(super) fn to_flags(&self) -> Vec<OsString> {
        let mut flags: Vec<OsString> = Vec::new();
        for (name, value) in self.settings() {
            let Some(value) = value else { continue };
            // A path need not be text.
            let value = match (&self.store, name) {
                (Some(Location::File(path)), "store") => path.clone().into_os_string(),
                _ => value.into(),
            };
            flags.extend([format!("--{name}").into(), value]);
        }
        flags
    }

    /// Refuses a store that contains events, for a command that begins with a reset.
    pub(super) fn check_store_is_empty(&self) -> Result<(), Failure> {
        let Some(location) = &self.store else { return Ok(()) };
        // A missing or empty file does not contain events.
        let (events, advice) = match location {
            Location::File(path) => {
                let holds_something = std::fs::metadata(path).is_ok_and(|file| file.len() > 0);
                let events = if holds_something { file::inspect(path)?.events } else { 0 };
                (events, "delete the file")
            }
            Location::Postgres(target) => {
                let held = postgres::inspect(target)?.map_or(0, |held| held.totals.total_requests);
                (held, "drop its schema ringtally")
            }
        };
        match events {
            0 => Ok(()),
            _ => Err(Failure::Usage(format!(
                "{location} holds events ({events}), and a challenge begins with a reset: pass another --store, \
                 or {advice}"
            ))),
        }
    }

    pub(super) fn max_batch(&self) -> usize {
        self.max_batch
    }

    pub(super) fn drain_timeout(&self) -> Duration {
        self.drain_timeout
    }
}

/// Opens an inherited descriptor for writing.
fn open_descriptor(descriptor: u32) -> Result<Arc<File>, Failure> {
    let opened = File::options().write(true).open(format!("/proc/self/fd/{descriptor}"));
    opened.map(Arc::new).map_err(|error| {
        Failure::Usage(format!(
            "cannot write to --ready-fd {descriptor}: {error}: pass a descriptor that is open for \
             writing"
        ))
    })
}

/// Reads the token in the file that `flag` names: its text, without the white space around it.
pub(super) fn read_token(flag: &str, file: &Path) -> Result<Arc<[u8]>, Failure> {
    let text = std::fs::read(file).map_err(|error| {
        Failure::Usage(format!("cannot read {flag} {}: {error}: check the path", file.display()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        tuning: ServerTuning,
    }

    #[test]
    fn a_server_of_challenge_gets_every_flag_as_it_was_typed() {
        let typed = [
            ("--shards", "3"),
            ("--dialect", "fasterapi"),
            ("--engine", "streams"),
            ("--spin-us", "20"),
            ("--coalesce-us", "50"),
            ("--steer", "cpu"),
            ("--busy-poll-us", "50"),
            ("--max-connections", "77"),
            ("--max-body", "1k"),
            ("--max-batch", "2M"),
            ("--max-batch-memory", "1G"),
            ("--max-users", "1e3"),
            ("--store", "tally.redb"),
            ("--store-timeout", "2s"),
            ("--header-timeout", "1ms"),
            ("--body-timeout", "1h 2m 3s"),
            ("--idle-timeout", "1500us"),
            ("--drain-timeout", "24h"),
        ];
        let program = std::iter::once("serve");
        let typed = typed.iter().flat_map(|(flag, value)| [*flag, *value]);
        let typed: Vec<&str> = program.chain(typed).collect();
        let first = Flags::parse_from(&typed);
        let passed_on = first.tuning.to_flags();
        for argument in Flags::command().get_arguments() {
            let flag = format!("--{}", argument.get_long().unwrap());
            assert!(typed.contains(&flag.as_str()), "{flag} is not tested here");
            assert!(passed_on.contains(&flag.clone().into()), "{flag} is not passed on");
        }
        let again = Flags::parse_from(std::iter::once("serve".into()).chain(passed_on));
        assert_eq!(format!("{first:?}"), format!("{again:?}"));
    }

    #[test]
    fn polling_is_auto_or_microseconds() {
        assert_eq!(spin("auto"), Ok(Spin::Auto));
        assert_eq!(spin("0"), Ok(Spin::Fixed(Duration::ZERO)));
        assert_eq!(spin("1000000"), Ok(Spin::Fixed(Duration::from_secs(1))));
        for text in ["1000001", "-1", "1ms", "AUTO"] {
            assert!(spin(text).unwrap_err().ends_with("or auto"), "{text}");
        }
    }

    #[test]
    fn timeouts_round_up_to_milliseconds() {
        for (micros, ms) in [(1000, 1), (1001, 2), (1999, 2), (2000, 2)] {
            assert_eq!(milliseconds(Duration::from_micros(micros)), ms);
        }
    }
}
