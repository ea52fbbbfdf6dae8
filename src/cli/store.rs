//! `ringtally store`.

use super::values::location;
use crate::failure::Failure;
use crate::log::Log;
use crate::store::{Location, file, postgres};
use crate::tally::Totals;
use crate::terminal;
use clap::{Args, Subcommand};
use serde::Serialize;

pub(super) const LONG_ABOUT: &str = "\
Look into what a server keeps in a store

A store is what `ringtally serve --store` writes and restores from. These
commands need no server and change nothing: a store that a crash left is read as
a server would restore it, and not a byte of it is written.";

pub(super) const EXAMPLES: &str = "\
Examples:
  ringtally store inspect tally.redb
  ringtally store inspect tally.redb | jq .totalRequests
  ringtally store inspect postgres://tally@db1,db2/tally";

const INSPECT_LONG_ABOUT: &str = "\
Print the totals and the number of users in a store as JSON

The totals are those that /stats would report after a start on this store, and
`users` counts the users in its lists: if the two disagree, the store is refused
as damaged. A file in use by a server is refused too, because its /stats has the
same totals. A database is read at one moment, even while servers use it. If
there are several hosts, the first one that can be written is read; without one,
a standby is read, and a warning names it.";

/// The arguments of `store`.
#[derive(Args, Debug)]
pub struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

/// The action on a store.
#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Print the totals and the number of users in a store as JSON
    #[command(long_about = INSPECT_LONG_ABOUT, after_help = EXAMPLES)]
    Inspect {
        /// File of the store, or the URL of a PostgreSQL
        #[arg(value_parser = location)]
        store: Location,
    },
}

/// The output of `store inspect`.
#[derive(Serialize)]
struct Inspection {
    #[serde(flatten)]
    totals: Totals,
    users: u64,
}

/// Runs `store`.
///
/// # Errors
///
/// [`Failure::Environment`] if the store cannot be read, or standard output cannot be written.
pub fn run_store(args: StoreArgs) -> Result<(), Failure> {
    let StoreCommand::Inspect { store } = args.command;
    let inspection = match store {
        Location::File(path) => {
            let state = file::inspect(&path)?;
            Inspection { totals: state.totals(), users: state.users }
        }
        Location::Postgres(target) => {
            let held = postgres::inspect(&target)?.ok_or_else(|| {
                Failure::Environment(format!(
                    "the store {target} holds no totals: start a server on it first"
                ))
            })?;
            if let Some(standby) = held.standby {
                Log::Text.warn(&format!(
                    "the store {target} was read on a standby, {standby}: servers may have counted more; to see that, \
                     name the primary in the URL"
                ));
            }
            Inspection { totals: held.totals, users: held.users }
        }
    };
    let json = serde_json::to_string(&inspection).expect("finite numbers have a JSON form");
    terminal::print(&format!("{json}\n"))
}
