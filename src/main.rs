//! Reads the command line and calls one function a subcommand.

use clap::Parser;
use ringtally::cli::{Cli, Command};
use ringtally::failure::Failure;
use ringtally::log::Log;
use std::process::ExitCode;

fn main() -> ExitCode {
    let (log, result) = match Cli::parse().command {
        Command::Serve(args) => (
            args.log(),
            args.into_config().and_then(ringtally::server::run),
        ),
    };
    finish(log, result)
}

fn finish(log: Log, result: Result<(), Failure>) -> ExitCode {
    let Err(failure) = result else {
        return ExitCode::SUCCESS;
    };
    log.error(&failure.to_string());
    ExitCode::from(failure.exit_code())
}
