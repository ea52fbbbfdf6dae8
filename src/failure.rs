//! Why a command failed, and the exit code that says whose fault it is.

use std::fmt;

/// A failure, by who can fix it. Each holds one sentence that says what happened and what to do.
/// Modules with errors of their own convert them to this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The result is wrong, or a part of the program failed.
    Wrong(String),
    /// The command line, or a file that it names, has to change.
    Usage(String),
    /// The machine, its kernel, its limits, or the server has to change.
    Environment(String),
}

impl Failure {
    /// The process's exit code: the only place that assigns one.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Wrong(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Environment(_) => 3,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Wrong(reason) | Failure::Usage(reason) | Failure::Environment(reason) => {
                f.write_str(reason)
            }
        }
    }
}

impl std::error::Error for Failure {}
