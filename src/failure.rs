//! Why a command ends without having done its job, and the exit code that says so.

use std::fmt;

/// A failure, by who can mend it. Each holds one sentence with the fix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The result is wrong, or a part of the program died.
    Wrong(String),
    /// The command line or a file that it names.
    Usage(String),
    /// The machine, its kernel, its limits, or a server that is not there.
    Environment(String),
}

impl Failure {
    /// The process's exit code.
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
            Failure::Wrong(what) | Failure::Usage(what) | Failure::Environment(what) => {
                f.write_str(what)
            }
        }
    }
}

impl std::error::Error for Failure {}
