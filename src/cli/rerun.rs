//! `ringtally rerun`.

use crate::document::{self, Format};
use crate::failure::Failure;
use crate::{load, terminal};
use std::path::Path;

pub(super) const LONG_ABOUT: &str = "\
Print the command that makes a run again, from its report

Reads a report of load, challenge, merge, or load --part, or what load
--find-rate found. Places of reports are not in the command, nor are secrets:
pass a token with --token-file, and the password of a store as serve does. Of a
run in parts it prints one command per client, after the name of its machine.";

pub(super) const EXAMPLES: &str = "\
Examples:
  ringtally rerun report.json
  ringtally rerun report.json | sh";

/// Prints the command that makes the run of a report again.
///
/// # Errors
///
/// [`Failure::Usage`]: the file is no such report.
pub fn rerun(report: &Path) -> Result<(), Failure> {
    let unusable = |why: String| {
        Failure::Usage(format!(
            "cannot tell how to make {} again: {why}: pass a report that --json of load, challenge, or merge wrote",
            report.display()
        ))
    };
    let text = std::fs::read(report).map_err(|error| unusable(error.to_string()))?;
    let formats = [&Format::RUNS[..], &[Format::FindRate, Format::Part]].concat();
    let (_, json) = document::read(&text, &formats).map_err(unusable)?;
    terminal::print(&load::commands(&json).map_err(unusable)?)
}
