//! The flags of a comparison.

use super::counts;
use clap::Parser;
use ringtally::compare::{Counted, Instructions};
use ringtally::failure::Failure;
use ringtally::load::Export;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The server of this build: a run without arguments measures the machine's noise.
const THIS_BUILD: &str = env!("CARGO_BIN_EXE_ringtally");

/// Compares the CPU time of two ringtally servers, pair by pair
#[derive(Parser)]
#[command(
    max_term_width = 80,
    after_help = "\
Exit codes:
  0  same or faster
  1  slower, more instructions than allowed, or a server counted incorrectly
  2  bad usage
  3  the environment cannot run it
  4  inconclusive: no decision within the time limit"
)]
pub(crate) struct Options {
    /// The server to compare with [default: this build]
    #[arg(long, value_name = "BIN", default_value = THIS_BUILD, hide_default_value = true)]
    pub(crate) base: PathBuf,
    /// The server that may be slower [default: this build]
    #[arg(long, value_name = "BIN", default_value = THIS_BUILD, hide_default_value = true)]
    pub(crate) head: PathBuf,
    /// What reports call the base [default: its file]
    #[arg(long, value_name = "NAME")]
    base_name: Option<String>,
    /// What reports call the head [default: its file]
    #[arg(long, value_name = "NAME")]
    head_name: Option<String>,
    /// The client for both servers [default: the head]
    #[arg(long, value_name = "BIN")]
    client: Option<PathBuf>,
    /// Events per leg; a block has four legs. Short legs make many blocks, most of them undisturbed
    #[arg(long, value_name = "N", default_value_t = 20_000,
        value_parser = clap::value_parser!(u64).range(1_000..=1_000_000_000))]
    pub(crate) requests: u64,
    /// Keep-alive connections
    #[arg(long, value_name = "N", default_value_t = 64,
        value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub(crate) connections: u64,
    /// Requests in flight per connection
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub(crate) pipeline: u64,
    /// Start no block that would end after this time
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    pub(crate) time_limit: Duration,
    /// Seed of the bootstrap
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// The instructions of base and head, as `cargo bench --bench instructions -- --output-format=json`
    /// writes them
    #[arg(long, num_args = 2, value_names = ["BASE_FILE", "HEAD_FILE"])]
    counts: Option<Vec<PathBuf>>,
    /// Add this to the reason of the verdict on instructions
    #[arg(long, value_name = "TEXT", requires = "counts")]
    counts_note: Option<String>,
    /// The reason why instructions could not be counted
    #[arg(long, value_name = "REASON", conflicts_with = "counts")]
    not_counted: Option<String>,
    /// Write everything as JSON; - is standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write a summary as Markdown; - is standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) markdown: Option<PathBuf>,
    /// Write a file for another tool, such as junit=paired.xml, as ringtally load does; may be given
    /// more than once
    #[arg(long, value_name = "FORMAT=FILE")]
    pub(crate) export: Vec<Export>,
    /// Cargo passes this
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    pub(crate) fn client(&self) -> &Path {
        self.client.as_deref().unwrap_or(&self.head)
    }

    /// What reports call base and head.
    pub(crate) fn names(&self) -> [String; 2] {
        [(&self.base_name, &self.base), (&self.head_name, &self.head)]
            .map(|(name, file)| name.clone().unwrap_or_else(|| file.display().to_string()))
    }

    /// Compares the counts of instructions. Returns `None` if neither the counts nor a reason without them were given.
    pub(crate) fn instructions(&self) -> Result<Option<Instructions>, Failure> {
        if let Some([base, head]) = self.counts.as_deref() {
            return counts::compare(base, head, self.counts_note.as_deref()).map(Some);
        }
        let skipped = |reason: &String| Instructions {
            verdict: Counted::Skipped,
            reason: reason.clone(),
            counts: Vec::new(),
        };
        Ok(self.not_counted.as_ref().map(skipped))
    }

    /// The share of events with a new user is that of the challenge: 75,000 per million.
    pub(crate) fn users(&self) -> u64 {
        self.requests * 75_000 / 1_000_000
    }
}
