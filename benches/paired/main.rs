//! Whether the server of one commit, the head, is slower than that of another, the base, on a machine
//! that may be shared and noisy: `cargo bench --bench paired -- --base BIN --head BIN`.
//!
//! The servers are compared in blocks A B B A on their own CPUs, with the same client for both. The
//! server's CPU time per million events decides, because it is meaningful even if the client is the
//! limit; requests/s and p99 are reported next to it. Each block gives one ratio, head to base. Blocks
//! that compare the base with itself are spread between them, and show what the setup makes of no
//! change: the noise floor. The rules are in the module `verdict`.

#![allow(missing_docs, reason = "a benchmark")]

mod blocks;
mod report;
mod verdict;

use blocks::{Block, Places};
use clap::Parser;
use report::Comparison;
use ringtally::failure::Failure;
use ringtally::load::{self, Case, Export};
use ringtally::topology;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use verdict::{Evidence, Pair, Verdict};

/// The server of this build: a run without arguments measures the machine's noise.
const THIS_BUILD: &str = env!("CARGO_BIN_EXE_ringtally");

/// Compares the CPU time of two ringtally servers, pair by pair
#[derive(Parser)]
#[command(
    max_term_width = 80,
    after_help = "\
Exit codes:
  0  same or faster
  1  slower, or a server counted incorrectly
  2  bad usage
  3  the environment cannot run it
  4  inconclusive: no decision within the time limit"
)]
pub(crate) struct Options {
    /// The server to compare with [default: this build]
    #[arg(long, value_name = "BIN", default_value = THIS_BUILD, hide_default_value = true)]
    base: PathBuf,
    /// The server that may be slower [default: this build]
    #[arg(long, value_name = "BIN", default_value = THIS_BUILD, hide_default_value = true)]
    head: PathBuf,
    /// The client for both servers [default: the head]
    #[arg(long, value_name = "BIN")]
    client: Option<PathBuf>,
    /// Events per leg; a block has four legs. Short legs make many blocks, most of them undisturbed
    #[arg(long, value_name = "N", default_value_t = 20_000,
        value_parser = clap::value_parser!(u64).range(1_000..=1_000_000_000))]
    requests: u64,
    /// Keep-alive connections
    #[arg(long, value_name = "N", default_value_t = 64,
        value_parser = clap::value_parser!(u64).range(1..=1_000))]
    connections: u64,
    /// Requests in flight per connection
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pipeline: u64,
    /// Start no block that would end after this time
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    time_limit: Duration,
    /// Seed of the bootstrap
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Write everything as JSON; - is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a summary as Markdown; - is standard output
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write a file for another tool, such as junit=paired.xml, as ringtally load does; may be given
    /// more than once
    #[arg(long, value_name = "FORMAT=FILE")]
    export: Vec<Export>,
    /// Result of a check that was made elsewhere, for the exports: its name, and =REASON if it failed
    #[arg(long, value_name = "NAME[=REASON]", value_parser = checked)]
    checked: Vec<Case>,
    /// Cargo passes this
    #[arg(long, hide = true)]
    bench: bool,
}

fn checked(text: &str) -> Result<Case, String> {
    let (name, failure) = match text.split_once('=') {
        Some((name, reason)) => (name, Some(reason.to_owned())),
        None => (text, None),
    };
    Ok(Case { name: name.to_owned(), failure })
}

impl Options {
    fn client(&self) -> &Path {
        self.client.as_deref().unwrap_or(&self.head)
    }

    /// The share of events with a new user is that of the challenge: 75,000 per million.
    fn users(&self) -> u64 {
        self.requests * 75_000 / 1_000_000
    }
}

/// Server and client get separate CPUs: on a shared one, each would also measure the other.
fn places() -> Result<Places, Failure> {
    let (server, client) =
        topology::divide(&topology::allowed_cpus(), topology::siblings, topology::core_kind);
    if server == client {
        let reason =
            "a comparison needs two CPUs, and this process may use one: widen its affinity mask";
        return Err(Failure::Environment(reason.into()));
    }
    Ok(Places {
        server_cpus: topology::format_cpu_list(&server),
        client_cpus: topology::format_cpu_list(&client),
    })
}

/// Runs blocks until there is a verdict, or no time for another block.
fn compare(options: &Options) -> Result<Comparison, Failure> {
    let started = Instant::now();
    let mut evidence = Evidence::default();
    let mut comparison = Comparison::new(places()?);
    loop {
        let block_started = Instant::now();
        let pair = evidence.next();
        let (other, blocks) = match pair {
            Pair::Head => (&options.head, &mut comparison.head),
            Pair::Floor => (&options.base, &mut comparison.floor),
        };
        let block = Block::run(&options.base, other, options, &comparison.places)?;
        evidence.add(pair, block.log_ratio(|leg| leg.cpu));
        blocks.push(block);
        comparison.verdict = evidence.verdict(options.seed);
        comparison.elapsed = started.elapsed();
        let next_would_end = comparison.elapsed + block_started.elapsed();
        if comparison.verdict != Verdict::Inconclusive || next_would_end > options.time_limit {
            return Ok(comparison);
        }
    }
}

fn run(options: &Options) -> Result<Verdict, Failure> {
    let comparison = load::export(&options.export, || {
        let comparison = compare(options)?;
        let findings = comparison.findings(options);
        Ok((comparison, findings))
    })?;
    eprint!("{}", comparison.line(options.seed));
    if let Some(file) = &options.markdown {
        report::write(file, &comparison.markdown(options))?;
    }
    if let Some(file) = &options.json {
        report::write(file, &format!("{:#}\n", comparison.json(options)))?;
    }
    Ok(comparison.verdict)
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(verdict) => ExitCode::from(verdict.exit_code()),
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}
