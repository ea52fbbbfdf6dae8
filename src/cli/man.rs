//! `ringtally man`.

use super::Cli;
use crate::failure::Failure;
use crate::terminal;
use clap::CommandFactory;

pub(super) const EXAMPLES: &str = "\
Examples:
  ringtally man | man -l -
  ringtally man serve > ringtally-serve.1";

/// Returns the command with a name such as `store-inspect`: as in the name of its manual page, hyphens join the names of its
/// parents and its own.
fn find<'a>(program: &'a clap::Command, name: &str) -> Option<&'a clap::Command> {
    name.split('-').try_fold(program, |command, name| command.find_subcommand(name))
}

/// Prints the manual page of `command`, or of the whole program, in roff on standard output.
pub fn print_man(command: Option<&str>) -> Result<(), Failure> {
    let program = Cli::command();
    let page = match command {
        None => program,
        Some(name) => {
            let shown = program.get_subcommands().filter(|command| !command.is_hide_set());
            let names: Vec<&str> = shown.map(clap::Command::get_name).collect();
            let found = find(&program, name).cloned().ok_or_else(|| {
                Failure::Usage(format!("there is no command {name}: use {}", names.join(", ")))
            })?;
            found
                .display_name(format!("ringtally-{name}"))
                .bin_name(format!("ringtally {}", name.replace('-', " ")))
        }
    };
    let mut roff = Vec::new();
    clap_mangen::Man::new(page)
        .render(&mut roff)
        .map_err(|error| Failure::Environment(format!("cannot render the manual page: {error}")))?;
    terminal::print(&String::from_utf8_lossy(&roff))
}
