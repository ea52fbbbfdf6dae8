//! The failures of a command, and the exit codes that show who is at fault.

use std::fmt;

/// A failure, classified by who can fix it. Each holds one sentence: what happened, and what to do. Modules convert their own
/// errors to this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The result is wrong, or a part of the program failed.
    Wrong(String),
    /// The command line, or a file that it names, must change.
    Usage(String),
    /// The machine, its kernel, its limits, or the server must change.
    Environment(String),
}

impl Failure {
    /// Returns the process's exit code. Only this function assigns one.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Wrong(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Environment(_) => 3,
        }
    }

    /// Fails if any of the results is a failure: with the kind of the first failure, and a line for each.
    pub fn all(results: impl IntoIterator<Item = Result<(), Failure>>) -> Result<(), Failure> {
        let failures: Vec<Failure> = results.into_iter().filter_map(Result::err).collect();
        let all = failures.iter().map(Failure::to_string).collect::<Vec<_>>().join("\n");
        match failures.first() {
            None => Ok(()),
            Some(Failure::Wrong(_)) => Err(Failure::Wrong(all)),
            Some(Failure::Usage(_)) => Err(Failure::Usage(all)),
            Some(Failure::Environment(_)) => Err(Failure::Environment(all)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_failures_the_first_decides_and_all_are_told() {
        let wrong = || Err(Failure::Wrong("wrong".into()));
        let environment = || Err(Failure::Environment("full".into()));
        assert_eq!(Failure::all([Ok(()), Ok(())]), Ok(()));
        assert_eq!(Failure::all([Ok(()), environment()]), environment());
        let both = Failure::Wrong("wrong\nfull".into());
        assert_eq!(Failure::all([wrong(), Ok(()), environment()]), Err(both));
    }
}
