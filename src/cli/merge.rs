//! `ringtally merge`.

use super::load::ReportFiles;
use super::values::duration;
use crate::failure::Failure;
use crate::load::{MergeConfig, Output, Server, Threshold};
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

pub(super) const LONG_ABOUT: &str = "\
Make one report and one verdict from the parts of a run

Each client of a run in parts (load --part) writes a part report. This checks
that the reports are those of one run: all parts, each once, with the same
parameters and run id, on clocks that agree, at the same time. It adds up what
became of each event, merges the histograms without loss, asks the server for
its totals, and judges them as load does.

Run it before anything else sends events to the server. If you cannot, save the
response to GET /stats right after the run, and pass that file with
--server-totals.";

pub(super) const EXAMPLES: &str = "\
Examples:
  ringtally merge part-*.json
  ringtally merge part-1.json part-2.json --lost 3 --json run.json
  curl -s http://10.0.0.9:8000/stats > totals.json
  ringtally merge part-*.json --server-totals totals.json --html run.html

Exit codes: 0 the verdict is exact, 1 it is not, requests were refused, or a
threshold failed, 2 the parts do not belong together.";

/// The flags of `merge`.
#[derive(Args, Debug)]
pub struct MergeArgs {
    /// Part reports that load --part wrote
    #[arg(required = true, value_name = "PART")]
    parts: Vec<PathBuf>,
    /// File with the server's totals after the run, as GET /stats responds [default: ask it]
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    server_totals: Option<PathBuf>,
    /// URL of the server [default: as in the parts]
    ///
    /// Parts that went to different URLs are merged only with it, or with --server-totals: pass one
    /// of them if all are one server, or servers that share a store.
    #[arg(long)]
    url: Option<String>,
    /// Number of a part whose client ended without a report; may be given more than once
    ///
    /// Whether its events were sent, and counted, is unknown: the totals may lie anywhere between
    /// what the others were acknowledged and that plus all events of this part. Part 1 cannot be
    /// lost, because it reads the totals that the run starts from.
    #[arg(long, value_name = "K")]
    lost: Vec<u64>,
    /// Exit with 1 if this holds, such as p99>5ms: see load --help
    #[arg(long, value_name = "THRESHOLD")]
    fail_if: Vec<Threshold>,
    /// Time limit for a response
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    timeout: Duration,
    #[command(flatten)]
    report: ReportFiles,
    /// Do not show a summary
    #[arg(long)]
    quiet: bool,
}

impl MergeArgs {
    /// Checks the flags.
    pub fn into_config(self) -> Result<(MergeConfig, Output), Failure> {
        let output = self.report.output(self.quiet)?;
        let config = MergeConfig {
            reports: self.parts,
            lost: self.lost,
            server_totals: self.server_totals,
            server: self.url.as_deref().map(Server::parse).transpose()?,
            timeout: self.timeout,
            thresholds: self.fail_if,
        };
        Ok((config, output))
    }
}
