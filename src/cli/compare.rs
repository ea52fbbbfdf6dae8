//! `ringtally compare`.

use crate::compare::{ChangeLimit, Config, Output, Same};
use crate::failure::Failure;
use crate::load::Export;
use clap::Args;
use std::path::PathBuf;

pub(super) const LONG_ABOUT: &str = "\
Compare runs with other runs, from their reports

Pass the JSON reports of several runs of load, challenge, or merge, and those to
compare with them after --with. For each figure it prints both medians, and the
change from the first to the second with its 95% interval, which is a
percentile bootstrap over the runs: it assumes nothing about the noise, and one
disturbed run moves it little. Alternate the runs (A B B A), so that changes of
the machine affect both sides.

It needs at least five runs per side; with fewer there is no interval, and a
condition is inconclusive.

Runs are compared only if they have the same machine, settings, and flags, those
of a challenge's server included. Name an intended difference with --difference;
any other difference is an error that lists it. With --same class, machines of
one class may have other names and other memory.";

pub(super) const EXAMPLES: &str = "\
Examples:
  ringtally compare a-*.json --with b-*.json
  ringtally compare ring-*.json --with streams-*.json --difference engine
  ringtally compare old-*.json --with new-*.json --fail-if 'p99>+5%' \\
      --fail-if 'rps<-3%' --markdown change.md

Exit codes: 0 no condition holds (an undecided one does not fail), 1 a condition
holds, a bound or a missing figure leaves it open, or a run cannot pass (see
--fail-if), 2 the runs cannot be compared, or there is a condition and fewer
than five runs per side.";

/// The flags of `compare`.
#[derive(Args, Debug)]
pub struct CompareArgs {
    /// Reports of the base, the runs to compare with
    #[arg(required = true, value_name = "REPORT")]
    base: Vec<PathBuf>,
    /// Reports of the head, the runs that may differ
    #[arg(long, required = true, value_name = "REPORT", num_args = 1..)]
    with: Vec<PathBuf>,
    /// Intended difference, as an error names it
    ///
    /// May be given more than once.
    #[arg(long, value_name = "NAME")]
    difference: Vec<String>,
    /// What the machines must have in common
    ///
    /// With class, runs on machines that come and go, such as those of a CI service, are compared:
    /// their names and their memory may differ, and the comparison notes each such difference.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = Same::Machine)]
    same: Same,
    /// Exit with 1 if this holds, such as p99>+5%
    ///
    /// May be given more than once. A condition is a figure of the table, < or >, and a change in percent. It
    /// holds if the whole interval satisfies it, so noise alone does not fail a comparison. If only a part of
    /// the interval does, the condition is undecided and does not fail; more runs may decide it. Noise alone
    /// exceeds a limit of 0% in at most 1 of 20 comparisons. If a run knows a figure only as a bound, the
    /// condition fails unless the bound decides it. A head fails if one of its runs is not exact, had its
    /// client as the limit, or has a greater share of unacknowledged requests than every run of the base.
    #[arg(long, value_name = "CONDITION")]
    fail_if: Vec<ChangeLimit>,
    /// Write the comparison as JSON; - is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write Markdown; - is standard output
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write the comparison as one HTML page, with the latencies of all runs in one chart
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write a file for another tool, such as bmf=a.json
    ///
    /// The figures are the medians of the runs after --with, with the interval of the change from the
    /// others. The formats are those of load; csv has a row per figure of the table.
    #[arg(long, value_name = "FORMAT=FILE")]
    export: Vec<Export>,
    /// Do not show the table
    #[arg(long)]
    quiet: bool,
}

impl CompareArgs {
    /// Checks the flags.
    pub fn into_config(self) -> Result<Config, Failure> {
        let output = Output::open(self.json, self.markdown, self.html, self.export, self.quiet)?;
        Ok(Config {
            base: self.base,
            head: self.with,
            differences: self.difference,
            same: self.same,
            fail_if: self.fail_if,
            output,
        })
    }
}
