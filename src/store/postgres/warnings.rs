//! Warnings of PostgreSQL: warnings about a commit that its standby may not have, and all others, which are logged.

use crate::log::Log;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The shortest time between two logged warnings of one kind.
const EVERY: Duration = Duration::from_secs(60);

/// The most kinds that are remembered; if there are more, some are logged more often.
const KINDS_MAX: usize = 16;

/// Reports whether a warning is about a canceled wait for a standby (PostgreSQL's syncrep.c). The message may be in any
/// language; the name of the routine is not translated.
pub(super) fn is_about_a_standby(routine: Option<&str>, message: &str) -> bool {
    routine == Some("SyncRepWaitForLSN") || message.contains("synchronous replication")
}

/// Logs warnings, each kind once per minute: some come with every transaction.
pub(super) struct WarningLog {
    log: Log,
    /// The database, as it is shown.
    target: String,
    logged: Mutex<Vec<(Kind, Instant)>>,
}

/// The code and the routine, without the numbers in the message.
type Kind = (String, Option<String>);

impl WarningLog {
    pub(super) fn new(log: Log, target: String) -> WarningLog {
        WarningLog { log, target, logged: Mutex::default() }
    }

    /// Logs a warning, unless a warning of the same kind was logged recently.
    pub(super) fn note(&self, code: &str, routine: Option<&str>, message: &str) {
        if self.is_new((code.to_owned(), routine.map(str::to_owned)), Instant::now()) {
            let target = &self.target;
            self.log.warn(&format!("the store {target}: PostgreSQL warned \"{message}\" ({code})"));
        }
    }

    fn is_new(&self, kind: Kind, now: Instant) -> bool {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        logged.retain(|(_, at)| now.saturating_duration_since(*at) < EVERY);
        if logged.iter().any(|(known, _)| *known == kind) {
            return false;
        }
        if logged.len() == KINDS_MAX {
            logged.remove(0);
        }
        logged.push((kind, now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_wait_for_a_standby_counts_in_whatever_language() {
        let routine = Some("SyncRepWaitForLSN");
        assert!(is_about_a_standby(routine, "storniere Warten auf synchrone Replikation"));
        let english = "canceling wait for synchronous replication due to user request";
        assert!(is_about_a_standby(None, english));
        let wraparound = "database \"tally\" must be vacuumed within 39985967 transactions";
        assert!(!is_about_a_standby(Some("GetNewTransactionId"), wraparound));
    }

    #[test]
    fn each_kind_is_logged_once_per_minute() {
        let log = WarningLog::new(Log::Text, "x".into());
        let (start, kind) = (Instant::now(), |name: &str| ("01000".into(), Some(name.into())));
        let is_new = |name: &str, s| log.is_new(kind(name), start + Duration::from_secs(s));
        assert!(is_new("a", 0) && is_new("b", 30), "two kinds");
        assert!(!is_new("a", 59) && !is_new("b", 59), "within the minute");
        assert!(is_new("a", 60) && !is_new("b", 61) && is_new("b", 90), "after it");
        for number in 0..100 {
            is_new(&number.to_string(), 91);
        }
        assert!(log.logged.lock().unwrap().len() <= KINDS_MAX);
    }
}
