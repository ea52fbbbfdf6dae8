//! Reads the command line and calls one function per subcommand.

use ringtally::cli::{self, Command};
use ringtally::failure::Failure;
use ringtally::log::Log;
use ringtally::{challenge, doctor, load, server};
use std::process::ExitCode;

fn main() -> ExitCode {
    let (log, result) = match cli::parse().command {
        Command::Serve(args) => (args.log(), args.into_config().and_then(server::run)),
        Command::Load(args) => (Log::Text, args.into_config().and_then(run_load)),
        Command::Challenge(args) => (Log::Text, args.into_config().and_then(challenge::run)),
        Command::Doctor(args) => (Log::Text, doctor::run(args.into_config())),
        Command::Store(args) => (Log::Text, cli::run_store(args)),
        Command::Completions { shell } => (Log::Text, cli::print_completions(shell)),
        Command::Man { command } => (Log::Text, cli::print_man(command.as_deref())),
    };
    let Err(failure) = result else {
        return ExitCode::SUCCESS;
    };
    log.error(&failure.to_string());
    ExitCode::from(failure.exit_code())
}

fn run_load((config, output): (load::Config, load::Output)) -> Result<(), Failure> {
    let report = load::run(&config, |_| {})?;
    output.write(&report)?;
    report.check()
}
