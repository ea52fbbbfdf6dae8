//! The errors of a store, as its user sees them: what happened, and what to do.

use super::backend::Gone;
use crate::failure::Failure;
use std::io::{self, ErrorKind};
use std::path::Path;

/// A store, as its user named it.
#[derive(Clone, Debug)]
pub(super) struct Named(String);

impl Named {
    pub(super) fn new(path: &Path) -> Named {
        Named(path.display().to_string())
    }

    fn say(&self, rest: &str) -> Failure {
        Failure::Environment(format!("the store {} {rest}", self.0))
    }

    /// Returns the error for a file with other content, or without content.
    pub(super) fn foreign(&self) -> Failure {
        self.say("was not written by ringtally: pass another path, of a store or of no file")
    }

    /// Returns the error for a format that this program does not know.
    pub(super) fn newer(&self, format: u64) -> Failure {
        self.say(&format!(
            "has format {format}, which this version of ringtally does not know: use the version that \
             wrote it, or a newer one"
        ))
    }

    /// Returns the error for content that differs from what was written.
    pub(super) fn damaged(&self, why: &str) -> Failure {
        self.say(&format!(
            "is damaged, and was left as it is ({why}): check its disk, and restore the file from a \
             backup, or pass another path to start from zero"
        ))
    }

    /// Returns the error for a file that another process, or this one, has open.
    pub(super) fn in_use(&self) -> Failure {
        self.say(
            "is in use by another ringtally: stop that server, pass another path, or read its /stats",
        )
    }

    /// Returns the error for a path that names one file after another.
    pub(super) fn unsteady(&self) -> Failure {
        self.say("is being replaced by another process: stop that process, and try again")
    }

    pub(super) fn directory(&self) -> Failure {
        self.say("is a directory: pass another path, of a store or of no file")
    }

    pub(super) fn empty(&self) -> Failure {
        self.say("is empty: start a server on it first")
    }

    pub(super) fn missing(&self) -> Failure {
        self.say("does not exist: check the path")
    }

    pub(super) fn cannot_create(&self, error: &io::Error) -> Failure {
        self.say(&format!("cannot be created{}", advice(error)))
    }

    pub(super) fn cannot_open(&self, error: &io::Error) -> Failure {
        self.say(&format!("cannot be opened{}", advice(error)))
    }

    pub(super) fn cannot_lock(&self, error: &io::Error) -> Failure {
        let lock = format!(
            "cannot be locked ({error}): without a lock, two servers could overwrite each other; put it \
             on a local file system"
        );
        self.say(&lock)
    }

    pub(super) fn cannot_read(&self, error: &io::Error) -> Failure {
        self.say(&format!("cannot be read ({error}): check its disk and the kernel's log"))
    }

    /// Returns the failure for an error that occurred while a store was opened or read.
    pub(super) fn explain(&self, error: redb::Error) -> Failure {
        match error {
            redb::Error::Corrupted(why) => self.damaged(&why),
            redb::Error::UpgradeRequired(version) => {
                self.say(&format!("has the old database format {version}: pass another path"))
            }
            redb::Error::DatabaseAlreadyOpen => self.in_use(),
            redb::Error::Io(error) if error.kind() == ErrorKind::UnexpectedEof => {
                self.damaged("it ends early")
            }
            redb::Error::Io(error) => self.cannot_open(&error),
            other => self.damaged(&other.to_string()),
        }
    }

    /// Returns the failure for an error that occurred while a state was made durable.
    pub(super) fn explain_commit(&self, error: redb::Error) -> Failure {
        let redb::Error::Io(error) = error else {
            return self.say(&format!(
                "failed ({error}): restart the server, which restores what was acknowledged"
            ));
        };
        if error.get_ref().is_some_and(|error| error.is::<Gone>()) {
            return self.say(
                "was deleted or replaced while the server used it: nothing more is acknowledged; put \
                 the file back, or pass another path to start from zero",
            );
        }
        self.cannot_write(&error)
    }

    /// Returns the failure for writes that do not reach the disk.
    pub(super) fn cannot_write(&self, error: &io::Error) -> Failure {
        let advice = match error.kind() {
            _ if is_full(error) => ", because its disk is full: free some space".to_owned(),
            ErrorKind::ReadOnlyFilesystem => format!(", because {READ_ONLY}"),
            _ => format!(" ({error}): check its disk and the kernel's log"),
        };
        self.say(&format!(
            "cannot be written{advice}, and restart the server, which restores what was acknowledged"
        ))
    }
}

const READ_ONLY: &str = "its file system is read-only, as Linux makes it after an error of its disk: see the \
                         kernel's log, mount it again";

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// Returns the reason why a file cannot be opened or created, and what to do.
fn advice(error: &io::Error) -> String {
    let advice = match error.kind() {
        ErrorKind::NotFound => "its directory does not exist: create it first",
        ErrorKind::NotADirectory => "a part of its path is not a directory: check the path",
        ErrorKind::PermissionDenied => {
            "this user may not read and write it and its directory: change their permissions, or pass \
             another path"
        }
        ErrorKind::ReadOnlyFilesystem => {
            return format!(", because {READ_ONLY}, or pass a path on another one");
        }
        _ if is_full(error) => "its disk is full: free some space",
        _ => return format!(" ({error}): check its disk and its path"),
    };
    format!(", because {advice}")
}
