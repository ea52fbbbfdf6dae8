//! Reads the command line and calls one function per subcommand.

use ringtally::cli::{self, Command, LoadCommand};
use ringtally::failure::Failure;
use ringtally::log::Log;
use ringtally::{challenge, compare, doctor, load, server};
use std::process::ExitCode;

fn main() -> ExitCode {
    let (log, result) = match cli::parse().command {
        Command::Serve(args) => (args.log(), args.into_config().and_then(server::run)),
        Command::Load(args) => (Log::Text, args.into_command().and_then(run_load)),
        Command::Merge(args) => (Log::Text, args.into_config().and_then(run_merge)),
        Command::Compare(args) => (Log::Text, args.into_config().and_then(compare::run)),
        Command::Challenge(args) => (Log::Text, args.into_config().and_then(challenge::run)),
        Command::Keep(args) => {
            challenge::keep(&args.into_config());
            (Log::Text, Ok(()))
        }
        Command::Doctor(args) => (Log::Text, args.into_config().and_then(doctor::run)),
        Command::Store(args) => (Log::Text, cli::run_store(args)),
        Command::Rerun { report } => (Log::Text, cli::rerun(&report)),
        Command::Schema { name } => (Log::Text, cli::print_schema(name)),
        Command::Completions { shell } => (Log::Text, cli::print_completions(shell)),
        Command::Man { command } => (Log::Text, cli::print_man(command.as_deref())),
    };
    let code = match &result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            log.error(&failure.to_string());
            ExitCode::from(failure.exit_code())
        }
    };
    ringtally::log::finish();
    code
}

fn run_load(command: LoadCommand) -> Result<(), Failure> {
    match command {
        LoadCommand::Whole(config, output) => {
            let report = load::run(&config, |_| {})?;
            let written = output.write(&report);
            Failure::all([report.check(), written])
        }
        LoadCommand::Part(config, participation, output) => {
            let report = load::run_part(&config, &participation)?;
            let written = output.write_part(&report);
            Failure::all([report.check(), written])
        }
        LoadCommand::FindRate(config, output) => {
            let found = load::find_rate(&config)?;
            let written = output.write_found(&found);
            Failure::all([found.check(), written])
        }
    }
}

fn run_merge((config, output): (load::MergeConfig, load::Output)) -> Result<(), Failure> {
    let report = load::merge(&config)?;
    let written = output.write(&report);
    Failure::all([report.check(), written])
}
