//! `ringtally completions`.

use super::Cli;
use crate::failure::Failure;
use crate::terminal;
use clap::CommandFactory;
use clap_complete::Shell;

pub(super) const EXAMPLES: &str = "\
Examples:
  ringtally completions bash > /etc/bash_completion.d/ringtally
  ringtally completions zsh > ~/.zfunc/_ringtally";

/// Prints a shell's completion script on standard output.
pub fn print_completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ringtally", &mut script);
    terminal::print(&String::from_utf8_lossy(&script))
}
