//! `ringtally man`.

use super::{Cli, print};
use crate::failure::Failure;
use clap::CommandFactory;

pub(super) const HELP: &str = "Examples:
  ringtally man | man -l -
  ringtally man serve > ringtally-serve.1";

/// A manual page in roff, of the whole or of one command, on standard output.
pub fn print_man(command: Option<&str>) -> Result<(), Failure> {
    let whole = Cli::command();
    let page = match command {
        None => whole,
        Some(name) => {
            let names: Vec<&str> = whole.get_subcommands().map(clap::Command::get_name).collect();
            let found = whole.find_subcommand(name).cloned().ok_or_else(|| {
                Failure::Usage(format!("there is no command {name}: use {}", names.join(", ")))
            })?;
            found.display_name(format!("ringtally-{name}")).bin_name(format!("ringtally {name}"))
        }
    };
    let mut roff = Vec::new();
    clap_mangen::Man::new(page)
        .render(&mut roff)
        .map_err(|error| Failure::Environment(format!("cannot write the manual: {error}")))?;
    print(&roff)
}
