//! The command line: the flags of each subcommand, and the step from what was typed to a checked
//! configuration.

mod challenge;
mod compare;
mod completions;
mod doctor;
mod keep;
mod load;
mod man;
mod merge;
mod passwords;
mod rerun;
mod schema;
mod serve;
mod shape;
mod store;
mod values;

use crate::document::Format;
use crate::log::Log;
pub use challenge::ChallengeArgs;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
pub use compare::CompareArgs;
pub use completions::print_completions;
pub use doctor::DoctorArgs;
pub use keep::KeepArgs;
pub use load::{LoadArgs, LoadCommand};
pub use man::print_man;
pub use merge::MergeArgs;
pub use rerun::rerun;
pub use schema::{print_schema, schema};
pub use serve::ServeArgs;
use std::path::PathBuf;
pub use store::{StoreArgs, run_store};

const ABOUT: &str = "\
An exact server for the One Million Request Challenge, and the client that
checks it

Start here:
  ringtally challenge    run server and client on this machine, print one report
  ringtally serve        start a server on http://127.0.0.1:8000
  ringtally load         send it a million events and check its totals";

const EXIT_CODES: &str = "\
Exit codes:
  0  success
  1  the result is wrong, or a threshold failed
  2  bad usage or configuration
  3  the environment cannot run it: no io_uring, port in use, no server there";

/// The command line.
#[derive(Debug, Parser)]
#[command(version, about = ABOUT, after_help = EXIT_CODES, max_term_width = 80)]
#[command(args_override_self = true)]
pub struct Cli {
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The command to run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Count events over HTTP and report exact totals
    #[command(long_about = serve::LONG_ABOUT, after_help = serve::EXAMPLES, allow_negative_numbers = true)]
    Serve(ServeArgs),
    /// Send the challenge's events to a server and check what it counted
    #[command(long_about = load::LONG_ABOUT, after_help = load::EXAMPLES, allow_negative_numbers = true)]
    Load(LoadArgs),
    /// Make one report and one verdict from the parts of a run
    #[command(long_about = merge::LONG_ABOUT, after_help = merge::EXAMPLES)]
    Merge(MergeArgs),
    /// Compare runs with other runs, from their reports
    #[command(long_about = compare::LONG_ABOUT, after_help = compare::EXAMPLES)]
    Compare(CompareArgs),
    /// Run a server and a client on separate CPUs and print a report
    #[command(long_about = challenge::LONG_ABOUT, after_help = challenge::EXAMPLES, allow_negative_numbers = true)]
    #[command(mut_args = challenge::present)]
    Challenge(ChallengeArgs),
    /// Keep a server for challenge, which starts this
    #[command(hide = true)]
    Keep(KeepArgs),
    /// Check what a benchmark on this machine depends on
    #[command(long_about = doctor::LONG_ABOUT, after_help = doctor::EXAMPLES)]
    Doctor(DoctorArgs),
    /// Look into what a server keeps in a store
    #[command(long_about = store::LONG_ABOUT, after_help = store::EXAMPLES)]
    Store(StoreArgs),
    /// Print the command that makes a run again, from its report
    #[command(long_about = rerun::LONG_ABOUT, after_help = rerun::EXAMPLES)]
    Rerun {
        /// Report of the run
        report: PathBuf,
    },
    /// Print the JSON Schema of what --json writes
    #[command(after_help = schema::EXAMPLES)]
    Schema {
        /// Document to describe
        name: Format,
    },
    /// Print a completion script for a shell
    #[command(after_help = completions::EXAMPLES)]
    Completions {
        /// Shell to complete for
        shell: Shell,
    },
    /// Print the manual page of ringtally or of a command
    #[command(after_help = man::EXAMPLES)]
    Man {
        /// Command, such as store-inspect [default: ringtally itself]
        command: Option<String>,
    },
}

/// Reads the command line. If it cannot be read or asks for help, prints the error or the help and ends the process. If an
/// argument contains the password of a database, the process executes itself again without it.
pub fn parse() -> Cli {
    if !crate::load::has_escapes() {
        // The libraries that print colors assume that any terminal of a CI job can show them.
        anstream::ColorChoice::Never.write_global();
    }
    // The arguments after `keep`'s own belong to another program, so they must not be changed.
    let is_keeper = std::env::args_os().nth(1).is_some_and(|name| name == "keep");
    if !is_keeper && let Err(failure) = passwords::hide() {
        Log::Text.error(&failure.to_string());
        std::process::exit(failure.exit_code().into());
    }
    Cli::try_parse().unwrap_or_else(|error| advised(error).exit())
}

/// Returns the error with better advice, if it is about a flag of another command, or about an argument without a flag.
/// clap compares letters only.
fn advised(mut error: clap::Error) -> clap::Error {
    let flag = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(flag)) if error.kind() == ErrorKind::UnknownArgument => flag,
        _ => return error,
    };
    let Some(name) = flag.strip_prefix("--").map(str::to_owned) else {
        return error;
    };
    let program = Cli::command();
    let with = |is_it: &dyn Fn(&clap::Arg) -> bool| -> Vec<&str> {
        let commands = program.get_subcommands().filter(|command| !command.is_hide_set());
        let found = commands.filter(|command| command.get_arguments().any(is_it));
        found.map(clap::Command::get_name).collect()
    };
    let has_flag = with(&|argument| argument.get_long() == Some(&name));
    let is_positional = |argument: &clap::Arg| {
        argument.is_positional() && argument.get_id().as_str().eq_ignore_ascii_case(&name)
    };
    let tip = if !has_flag.is_empty() {
        let these = match has_flag.as_slice() {
            [first @ .., next, last] if !first.is_empty() => {
                format!("{}, {next}, and {last}", first.join(", "))
            }
            one_or_two => one_or_two.join(" and "),
        };
        let have = if has_flag.len() == 1 { "has" } else { "have" };
        format!("{these} {have} '--{name}'")
    } else if !with(&is_positional).is_empty() {
        format!("{} is given without a flag", name.to_uppercase())
    } else {
        return error;
    };
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(tip)]));
    error.remove(ContextKind::SuggestedArg);
    // It belongs to the flag that clap suggested.
    error.remove(ContextKind::Usage);
    error
}
