//! The reasons for failures in a database, and whether trying again can help.

use super::target::Target;
use crate::failure::Failure;
use std::error::Error as _;
use std::fmt;
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;

/// Advice for statements that were prepared in another session.
const POOLER: &str = "if there is a pooler, use its session mode (pool_mode = session), or connect to PostgreSQL itself";

/// The rights of a role that does not own the schema.
pub const RIGHTS: &str = "USAGE on the schema ringtally; SELECT on its table format; SELECT and UPDATE on tally; and \
                          SELECT, INSERT, UPDATE, and DELETE on servers and users";

/// The reason why something failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// It may work later: the database is away, full, or starting.
    Passing(String),
    /// The host did not confirm in time, or the wait for its standby was canceled. Its standby may have replaced it, so another
    /// host may work.
    Unconfirmed(String),
    /// Trying again would not help: a clause with what happened and what to do.
    Lasting(String),
    /// The database rejects this user's login. At the start, that is lasting; later, a change of the password may be
    /// in progress.
    Refused(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Passing(why)
            | StoreError::Unconfirmed(why)
            | StoreError::Lasting(why)
            | StoreError::Refused(why) => f.write_str(why),
        }
    }
}

impl StoreError {
    /// Returns it as the failure of a command.
    pub(super) fn failure(&self, target: &Target) -> Failure {
        Failure::Environment(format!("the store {target}: {self}"))
    }
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> StoreError {
        match error.as_db_error() {
            Some(said) => judge(said.code(), said.message()),
            None => {
                // For a connection error, the cause is more informative than the error.
                let mut why = error.to_string();
                if let Some(cause) = error.source() {
                    why = cause.to_string();
                }
                StoreError::Passing(why)
            }
        }
    }
}

/// Returns the meaning of a database error by its code (PostgreSQL documentation, appendix A).
fn judge(code: &SqlState, message: &str) -> StoreError {
    let said = |advice: &str| format!("PostgreSQL said \"{message}\" ({}): {advice}", code.code());
    match code.code() {
        "28P01" => StoreError::Refused(said(
            "check the user and its password, which PGPASSWORD or the file that PGPASSFILE names has",
        )),
        "28000" => StoreError::Refused(said("check the user and what pg_hba.conf says about it")),
        "3D000" => StoreError::Refused(said("create the database, or name another one")),
        "42501" => StoreError::Lasting(said(&format!("grant the role what it needs: {RIGHTS}"))),
        // The statement was already prepared: on this connection, by somebody else.
        "42P05" => StoreError::Lasting(said(POOLER)),
        // A prepared statement is missing. Another connection may lead to a server that keeps prepared statements.
        "26000" => StoreError::Passing(said(POOLER)),
        "08P01" if message.contains("prepared statement") => StoreError::Passing(said(POOLER)),
        // Tables, columns, and functions; values; and constraints: the schema is not as it was made.
        code if ["42", "22", "23", "3F", "0A"].iter().any(|class| code.starts_with(class)) => {
            StoreError::Lasting(said(
                "the schema ringtally is not as it was made: restore it, or name another database",
            ))
        }
        _ => StoreError::Passing(format!("PostgreSQL said \"{message}\" ({})", code.code())),
    }
}

/// Does something in a limited time.
///
/// # Errors
///
/// The errors of the work, or that it took longer.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(StoreError::Unconfirmed(format!(
            "it did not respond within {:.1} s",
            limit.as_secs_f64()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_lasting_only_if_no_retry_can_mend_it() {
        for (code, expected) in [
            ("53100", "passing"), // disk full
            ("53300", "passing"), // too many connections
            ("57P01", "passing"), // admin shutdown
            ("57P03", "passing"), // starting up
            ("40P01", "passing"), // deadlock
            ("40001", "passing"), // serialization
            ("25006", "passing"), // read only: a standby
            ("58030", "passing"), // I/O error
            ("XX000", "passing"),
            ("26000", "passing"), // a prepared statement that is not there: a pooler
            ("42P05", "lasting"), // one that is there: a pooler
            ("28P01", "refused"),
            ("28000", "refused"),
            ("3D000", "refused"),
            ("42501", "lasting"),
            ("42P01", "lasting"),
            ("3F000", "lasting"),
            ("22003", "lasting"),
            ("23514", "lasting"),
        ] {
            let kind = match judge(&SqlState::from_code(code), "no") {
                StoreError::Passing(_) | StoreError::Unconfirmed(_) => "passing",
                StoreError::Refused(_) => "refused",
                StoreError::Lasting(_) => "lasting",
            };
            assert_eq!(kind, expected, "{code}");
        }
    }

    #[test]
    fn statements_that_are_mixed_up_are_blamed_on_a_pooler() {
        let said = "prepared statement \"s0\" already exists";
        for code in ["42P05", "26000", "08P01"] {
            let said = judge(&SqlState::from_code(code), said).to_string();
            assert!(said.contains("session mode") && !said.contains("schema"), "{said}");
        }
        let other = judge(&SqlState::from_code("08P01"), "invalid message format").to_string();
        assert!(!other.contains("pooler"), "{other}");
    }
}
