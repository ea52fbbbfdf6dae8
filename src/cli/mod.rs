//! The flags, and the step from what was typed to a checked configuration.

mod challenge;
mod completions;
mod doctor;
mod load;
mod man;
mod serve;
mod values;

use crate::failure::Failure;
pub use challenge::ChallengeArgs;
use clap::{Parser, Subcommand};
use clap_complete::Shell;
pub use completions::print_completions;
pub use doctor::DoctorArgs;
pub use load::LoadArgs;
pub use man::print_man;
pub use serve::ServeArgs;
use std::io::Write;

/// The One Million Request Challenge: an exact server, and the client that checks it.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 80)]
#[command(after_help = "Exit codes: 0 done, 1 the result is wrong or a gate failed, 2 bad usage \
    or configuration,\n3 the environment cannot run it (no io_uring, port taken, no server there).")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Count events over HTTP and report exact totals
    #[command(after_help = serve::HELP)]
    Serve(ServeArgs),
    /// Send the published events to a server and check what it counted
    #[command(after_help = load::HELP)]
    Load(LoadArgs),
    /// Run a server and a client on CPUs of their own, and report
    #[command(after_help = challenge::HELP)]
    Challenge(ChallengeArgs),
    /// Say what a benchmark on this machine depends on
    #[command(after_help = doctor::HELP)]
    Doctor(DoctorArgs),
    /// Print what a shell needs to complete these commands
    #[command(after_help = completions::HELP)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page of ringtally, or of one of its commands
    #[command(after_help = man::HELP)]
    Man {
        /// The command
        command: Option<String>,
    },
}

fn print(text: &[u8]) -> Result<(), Failure> {
    std::io::stdout()
        .write_all(text)
        .map_err(|error| Failure::Environment(format!("cannot write to standard output: {error}")))
}
