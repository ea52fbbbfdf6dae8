//! `ringtally rerun`.

use super::Cli;
use crate::document::{self, Format};
use crate::failure::Failure;
use crate::{load, terminal};
use clap::CommandFactory;
use std::path::Path;

pub(super) const LONG_ABOUT: &str = "\
Print the command that repeats a run, from its report

Reads any JSON report of load, challenge, or merge. The command leaves out
output files and secrets: pass a token with --token-file, and the password of a
store as serve does. For a run in parts, it prints one command per client, after
the name of its machine; each writes its part report to part-K-again.json, and
if the parts started at a time, they start at $start, which you set on each
machine. A command that ringtally did not write is refused, but the servers of
challenge --server are commands, too: read them before you run a report of
somebody else.";

pub(super) const EXAMPLES: &str = "\
Examples:
  ringtally rerun report.json
  ringtally rerun report.json | sh";

/// Flags that name output files, which the command in a report never contains.
const PLACES: [&str; 4] = ["--json", "--hdr", "--html", "--export"];

/// Prints the command that repeats the run of a report.
///
/// # Errors
///
/// [`Failure::Usage`] if the file is not a report with a command.
pub fn rerun(report: &Path) -> Result<(), Failure> {
    let unusable = |why: String| {
        Failure::Usage(format!(
            "cannot repeat the run of {}: {why}: pass a report that --json of load, challenge, or merge wrote",
            report.display()
        ))
    };
    let text = std::fs::read(report).map_err(|error| unusable(error.to_string()))?;
    let formats = [&Format::RUNS[..], &[Format::FindRate, Format::Part, Format::Servers]].concat();
    let (_, json) = document::read(&text, &formats).map_err(unusable)?;
    terminal::print(&load::commands(&json, check).map_err(unusable)?)
}

/// Checks that a command looks like one from a report of `load` or `challenge`.
///
/// # Errors
///
/// If it does not: a report may come from anywhere, and its command is passed to a shell.
fn check(words: &[String]) -> Result<(), String> {
    let not_ours = |why: &str| Err(format!("its command is not one that ringtally writes ({why})"));
    if words.first().is_none_or(|word| word != "ringtally") {
        return not_ours("it does not begin with ringtally");
    }
    if words.get(1).is_none_or(|name| name != "load" && name != "challenge") {
        return not_ours("it is neither load nor challenge");
    }
    let is_place = |word: &str| PLACES.contains(&word.split('=').next().unwrap_or(word));
    if let Some(place) = words.iter().find(|word| is_place(word)) {
        return not_ours(&format!("it would write to the place of {place}"));
    }
    // A part needs a place for its report.
    let words = words.iter().map(String::as_str).chain(["--json=-"]);
    match Cli::command().try_get_matches_from(words) {
        Ok(_) => Ok(()),
        Err(_) => not_ours("this version does not know its flags"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_commands_that_reports_have_are_printed() {
        let check =
            |text: &str| check(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        for ours in [
            "ringtally load --requests 5 --connections 1 --url http://h:1",
            "ringtally load --part 1/2 --start-in 5s --requests 9",
            "ringtally challenge --requests 5 --cpus 0 --client-cpus 1 --store postgres://u@h/d",
        ] {
            assert_eq!(check(ours), Ok(()), "{ours}");
        }
        for (foreign, says) in [
            ("", "does not begin with ringtally"),
            ("rm -rf /", "does not begin with ringtally"),
            ("ringtally", "neither load nor challenge"),
            ("ringtally --version", "neither load nor challenge"),
            ("ringtally load --help", "does not know its flags"),
            ("ringtally serve --port 1", "neither load nor challenge"),
            ("ringtally load ; rm -rf /", "does not know its flags"),
            ("ringtally load --json /etc/passwd", "the place of --json"),
            (
                "ringtally load --export=junit=/etc/passwd",
                "the place of --export=junit=/etc/passwd",
            ),
            ("ringtally challenge --html /etc/passwd", "the place of --html"),
        ] {
            let said = check(foreign).unwrap_err();
            assert!(said.contains(says), "{foreign}: {said}");
        }
    }
}
