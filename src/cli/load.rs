//! `ringtally load`, and the client's flags that `challenge` has too.

use super::serve::read_token;
use super::values::{CpuList, cpu_list, duration};
use crate::failure::Failure;
use crate::load::{self, EVENTS_MAX, Output, RATE_MAX, Show, Threshold, Values};
use crate::topology;
use clap::Args;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) const HELP: &str = "Examples:
  ringtally load
  ringtally load 100000 64 --url http://127.0.0.1:9000 --values half
  ringtally load 300000 64 --rate 30000 --html report.html
  ringtally load --watch --values one --fail-if 'p99>5ms' --fail-if 'rps<100000'
  ringtally load --json report.json --hdr latency.hgrm";

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
    /// File with the token that the server requires for POST /reset (its --admin-token-file)
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The flags that `challenge` has too
    #[command(flatten)]
    tuning: LoadTuning,
}

/// The client's flags that do not say where the server is.
#[derive(Args, Debug)]
#[command(next_help_heading = "Client options")]
pub(super) struct LoadTuning {
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
        let read = |file: &Path| read_token("--token-file", file);
        let reset_token = self.token_file.as_deref().map(read).transpose()?;
        let config = self.tuning.into_config(server, cpus, None, !self.no_reset);
        Ok((load::Config { reset_token, ..config }, output))
    }
}

impl LoadTuning {
    /// Where the report goes. Fails if a place that was asked for cannot be had.
    pub(super) fn output(&self) -> Result<Output, Failure> {
        if self.tui && !std::io::stderr().is_terminal() {
            return Err(Failure::Usage("--tui needs a terminal on standard error".into()));
        }
        Output::new(self.json.clone(), self.hdr.clone(), self.html.clone(), self.quiet)
    }

    pub(super) fn into_config(
        self,
        server: load::Server,
        cpus: Option<Vec<usize>>,
        server_cpus: Option<Vec<usize>>,
        reset: bool,
    ) -> load::Config {
        load::Config {
            server,
            workload: load::Workload {
                events: self.requests,
                users: self.users,
                values: self.values,
            },
            connections: self.workers as usize,
            warm_up: self.warmup,
            threads: self.threads.map(|threads| threads as usize),
            cpus,
            server_cpus,
            pipeline: self.pipeline as usize,
            rate: self.rate,
            timeout: self.timeout,
            reset,
            reset_token: None,
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
