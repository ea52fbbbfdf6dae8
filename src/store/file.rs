//! A store in one file: an embedded database whose every commit is durable.
//!
//! The database has a table with one row, the totals, and a table of users per generation, which gets a row per commit. Users
//! do not need separate rows, because uniqueness is kept in memory.
//!
//! redb protects every page and both of its commit slots with a checksum, but not the flags that select the current slot;
//! `Recovered` compensates for that. Everything is checked before the first byte of a file is changed, with the changes of
//! redb's recovery kept in memory.
//!
//! # The content of the disk
//!
//! After a failed sync, Linux considers the pages clean: a later sync does not write them, and succeeds. ext4 and XFS keep them
//! readable, with content that the disk does not have, until memory runs short; btrfs returns to the content of the disk
//! (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020;
//! <https://wiki.postgresql.org/wiki/Fsync_Errors>). The failure is reported once to each descriptor that was open, and
//! otherwise to the next one, unless somebody else has seen it (Linux 4.13 and 4.16; fsync(2); "Handling errors during
//! writeback" in the kernel's Documentation/filesystems/vfs.rst). So neither a readable page nor a successful sync shows that a
//! page is on the disk. Only a write of the page shows that, followed by a successful sync on a descriptor that was open before
//! the write. On every file system, this store relies on that alone:
//!
//! - The pages of the primary slot are on the disk: redb syncs a transaction before it makes its slot the primary one, and does
//!   not write to any of its pages while the slot is primary. The header itself may be readable without being on the disk, so
//!   it is read once and kept, and redb writes and syncs it before the store is used.
//! - A newer slot that is not the primary one belongs to a commit that was cut off or failed. Before the slot is even read,
//!   every page is written again and synced. If that fails, the disk still has the primary slot.
//! - After a failed write or sync, nothing is written, and no sync is tried again: redb refuses to, and the simulated disk of
//!   the tests panics.
//!
//! In addition, a file is synced and dropped from the page cache when it is opened. Dropping it is only advice to the kernel,
//! which keeps a page that another process maps or reads. It covers something that no store can know, which is whether a copy
//! of the file, made by another program, is on the disk; and it shows the content of the disk to an inspection.

mod backend;
mod creation;
mod errors;
#[cfg(test)]
mod tests;

use super::{Outcome, Store};
use crate::failure::Failure;
use crate::tally::{ExactSum, State, UserIds};
use backend::{HEADER_BYTES, Overlay, Shared};
use errors::Named;
use redb::{
    Builder, Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable,
    StorageBackend, TableDefinition, TableError, TableHandle, WriteTransaction,
};
use std::path::Path;
use std::sync::Arc;

/// The version of the tables' content. A store of another version is refused.
const FORMAT: u64 = 1;

/// The totals: one row.
const TOTALS: TableDefinition<(), &[u8]> = TableDefinition::new("totals");

/// The number of bytes in that row: format, generation, events, users, and the sum.
const TOTALS_BYTES: usize = 4 * 8 + ExactSum::BYTES;

/// The most bytes in a row of users: with its header, it fits a page of 32 KiB in redb, whose page sizes are powers of two.
const ROW_BYTES_MAX: usize = 32_000;

/// The number of bytes of the database that redb keeps in memory: users are read once, so only the inner pages matter.
const CACHE_BYTES: usize = 32 << 20;

/// The first bytes of every redb database.
const MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";

/// A store in a file. Dropping it closes the file.
#[derive(Debug)]
pub struct FileStore {
    database: Database,
    name: Named,
    /// The state at the last commit, without its sum, which is not needed.
    generation: u64,
    users: u64,
    /// The number of the next row of users.
    next_row: u64,
    /// The reason why the store must not be used again.
    failure: Option<Failure>,
}

impl FileStore {
    /// Opens a store and returns its state. Creates a store if the file does not exist or is empty.
    ///
    /// # Errors
    ///
    /// [`Failure::Environment`] if the file is in use, not a store, of a newer format, damaged, or cannot be read and written.
    /// The file is unchanged then.
    pub fn open(path: &Path) -> Result<(FileStore, State), Failure> {
        let name = Named::new(path);
        let file = creation::open_or_create(path, &name)?;
        FileStore::start(name, Arc::new(file))
    }

    /// Opens the store in some bytes, or creates one if they are empty. It is for tests, which pass a disk that fails. If a
    /// creation is cut off, the bytes that it leaves are refused.
    ///
    /// # Errors
    ///
    /// The errors of [`FileStore::open`].
    pub fn on(backend: impl StorageBackend) -> Result<(FileStore, State), Failure> {
        let name = Named::new(Path::new("(no file)"));
        let bytes = Arc::new(backend);
        if bytes.len().map_err(|error| name.cannot_read(&error))? == 0 {
            let image = creation::image().map_err(|error| name.explain(error))?;
            let written = bytes.set_len(image.len() as u64);
            let written = written.and_then(|()| bytes.write(0, &image));
            written.and_then(|()| bytes.sync_data()).map_err(|error| name.cannot_create(&error))?;
        }
        FileStore::start(name, bytes)
    }

    fn start(name: Named, bytes: Arc<dyn StorageBackend>) -> Result<(FileStore, State), Failure> {
        let Recovered { bytes, state, next_row } = Recovered::new(&name, Shared::new(bytes))?;
        let opened = builder().create_with_backend(bytes);
        let database = opened.map_err(|error| name.explain(error.into()))?;
        let (generation, users) = (state.generation, state.users);
        let store = FileStore { database, name, generation, users, next_row, failure: None };
        Ok((store, state))
    }

    /// Writes a state in one transaction.
    fn write(&mut self, state: &State, new_users: &UserIds) -> Result<(), redb::Error> {
        let transaction = begin(&self.database)?;
        if state.generation != self.generation {
            forget_users(&transaction)?;
            self.next_row = 0;
        }
        if !new_users.is_empty() {
            let name = users_table(state.generation);
            let mut table = transaction.open_table::<u64, &[u8]>(TableDefinition::new(&name))?;
            for row in rows(new_users) {
                table.insert(self.next_row, row.as_bytes())?;
                self.next_row += 1;
            }
        }
        transaction.open_table(TOTALS)?.insert((), encode(state).as_slice())?;
        transaction.commit()?;
        Ok(())
    }
}

impl Store for FileStore {
    fn users(&mut self, each: &mut dyn FnMut(&UserIds)) -> Result<(), Failure> {
        let transaction =
            self.database.begin_read().map_err(|error| self.name.explain(error.into()))?;
        read_users(&self.name, &transaction, self.generation, self.users, each)
    }

    fn commit(&mut self, state: &State, new_users: &UserIds) -> Result<Outcome, Failure> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let held = if state.generation == self.generation { self.users } else { 0 };
        assert!(state.generation >= self.generation, "resets only add up");
        assert_eq!(state.users, held + new_users.len(), "a user is written with its first state");
        if let Err(error) = self.write(state, new_users) {
            let failure = self.name.explain_commit(error);
            self.failure = Some(failure.clone());
            return Err(failure);
        }
        (self.generation, self.users) = (state.generation, state.users);
        Ok(Outcome::Durable)
    }
}

/// Returns the state that a file holds, without changing the file.
///
/// # Errors
///
/// [`Failure::Environment`] if the file does not exist, a server uses it, or it is not a sound store.
pub fn inspect(path: &Path) -> Result<State, Failure> {
    let name = Named::new(path);
    let file = creation::open_to_read(path, &name)?;
    // Pages that would be written again stay in memory.
    let overlay = Overlay::new(Shared::new(Arc::new(file)));
    let bytes = Shared::new(Arc::new(overlay.map_err(|error| name.cannot_read(&error))?));
    let Recovered { bytes, state, .. } = Recovered::new(&name, bytes)?;
    let database = in_memory(&bytes).map_err(|error| name.explain(error))?;
    let transaction = database.begin_read().map_err(|error| name.explain(error.into()))?;
    read_users(&name, &transaction, state.generation, state.users, &mut |_| {})?;
    Ok(state)
}

/// Bytes that form a sound store and are on the disk.
struct Recovered {
    /// The bytes, with the commit slot to start from.
    bytes: Shared,
    state: State,
    next_row: u64,
}

impl Recovered {
    /// Checks some bytes. Their content stays as it is.
    ///
    /// Commits have two phases, so the slot that the flags name is complete; if it is not, redb refuses it. But the flags are
    /// not covered by a checksum: one flipped bit would bring the state of the previous commit back. So if the other slot is
    /// newer and its transaction is complete, that slot is used. A commit that was cut off between its phases, or whose sync
    /// failed, looks the same. Using it is as good as not using it, but until every page has been written again, it may be
    /// readable without being on the disk.
    fn new(name: &Named, bytes: Shared) -> Result<Recovered, Failure> {
        let mut magic = [0; MAGIC.len()];
        let len = bytes.len().map_err(|error| name.cannot_read(&error))?;
        if len >= magic.len() as u64 {
            bytes.read(0, &mut magic).map_err(|error| name.cannot_read(&error))?;
        }
        if magic != MAGIC {
            return Err(name.foreign());
        }
        if len < HEADER_BYTES {
            return Err(name.damaged("it ends early"));
        }
        let bytes = bytes.with_header().map_err(|error| name.cannot_read(&error))?;
        let found = Recovered::read(name, bytes.clone())?;
        if let Some(newer) = bytes.with_newer_slot().map_err(|error| name.cannot_read(&error))? {
            bytes.rewrite().map_err(|error| name.cannot_write(&error))?;
            if let Ok(newer) = Recovered::read(name, newer) {
                return Ok(newer);
            }
        }
        Ok(found)
    }

    /// Checks all pages of the current slot, and reads the totals.
    fn read(name: &Named, bytes: Shared) -> Result<Recovered, Failure> {
        let database = in_memory(&bytes).map_err(|error| name.explain(error))?;
        let transaction = database.begin_read().map_err(|error| name.explain(error.into()))?;
        let state = read_totals(name, &transaction)?;
        let next_row = match open_users(&transaction, state.generation) {
            Ok(Some(table)) => match table.last() {
                Ok(last) => last.map_or(0, |(number, _)| number.value() + 1),
                Err(error) => return Err(name.explain(error.into())),
            },
            Ok(None) => 0,
            Err(error) => return Err(name.explain(error)),
        };
        Ok(Recovered { bytes, state, next_row })
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Opens a database whose changes stay in memory, and verifies it, because redb otherwise panics on some
/// damage (`Builder::set_check_integrity_on_open`).
fn in_memory(bytes: &Shared) -> Result<Database, redb::Error> {
    let overlay = Overlay::new(bytes.clone())?;
    Ok(builder().set_check_integrity_on_open(true).create_with_backend(overlay)?)
}

/// Begins a transaction that is durable once its commit returns.
///
/// It has two phases, with a sync each, for two reasons. First, clients choose the user ids, and redb advises two phases for
/// malicious input (docs/design.md, "Security of 1PC+C"): with one phase, only its checksums decide after a crash whether a
/// commit was complete. Second, with one phase, a damaged commit looks like a commit that was cut off, so redb would silently
/// return to the state before it: a lost acknowledgement. The second sync takes a commit from 0.24 ms to 0.41 ms; writing and
/// syncing 4 KiB takes 0.1 ms.
fn begin(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

/// Returns the name of the table of a generation's users.
fn users_table(generation: u64) -> String {
    format!("users of generation {generation}")
}

/// Deletes every table of users.
fn forget_users(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    let tables: Vec<_> = transaction.list_tables()?.collect();
    for table in tables.into_iter().filter(|table| table.name() != TOTALS.name()) {
        transaction.delete_table(table)?;
    }
    Ok(())
}

/// Splits users into rows.
fn rows(users: &UserIds) -> Vec<UserIds> {
    if users.as_bytes().len() <= ROW_BYTES_MAX {
        return vec![users.clone()];
    }
    let (mut rows, mut row) = (Vec::new(), UserIds::default());
    for id in users.iter() {
        if row.as_bytes().len() + 2 + id.len() > ROW_BYTES_MAX {
            rows.push(std::mem::take(&mut row));
        }
        row.push(id);
    }
    rows.push(row);
    rows
}

type UsersTable = redb::ReadOnlyTable<u64, &'static [u8]>;

/// Opens the table of a generation's users; `None` if the generation does not have any.
fn open_users(
    transaction: &ReadTransaction,
    generation: u64,
) -> Result<Option<UsersTable>, redb::Error> {
    let name = users_table(generation);
    match transaction.open_table(TableDefinition::<u64, &[u8]>::new(&name)) {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Passes the users of a generation to `each`. Their number must be `expected`.
fn read_users(
    name: &Named,
    transaction: &ReadTransaction,
    generation: u64,
    expected: u64,
    each: &mut dyn FnMut(&UserIds),
) -> Result<(), Failure> {
    let mut count = 0;
    if let Some(table) = open_users(transaction, generation).map_err(|error| name.explain(error))? {
        for row in table.iter().map_err(|error| name.explain(error.into()))? {
            let (_, row) = row.map_err(|error| name.explain(error.into()))?;
            let users = UserIds::from_bytes(row.value())
                .ok_or_else(|| name.damaged("a row holds no list of users"))?;
            count += users.len();
            each(&users);
        }
    }
    if count != expected {
        let why = format!("its totals have {expected} users, and its lists {count}");
        return Err(name.damaged(&why));
    }
    Ok(())
}

/// The count of events or resets never gets this far.
const NUMBERS_END: u64 = 1 << 62;

fn encode(state: &State) -> Vec<u8> {
    let mut row = Vec::with_capacity(TOTALS_BYTES);
    for number in [FORMAT, state.generation, state.events, state.users] {
        row.extend_from_slice(&number.to_le_bytes());
    }
    row.extend_from_slice(&state.sum.to_bytes());
    row
}

fn read_totals(name: &Named, transaction: &ReadTransaction) -> Result<State, Failure> {
    let table = match transaction.open_table(TOTALS) {
        Ok(table) => table,
        Err(TableError::Storage(error)) => return Err(name.explain(error.into())),
        Err(_) => return Err(name.foreign()),
    };
    let row = table.get(()).map_err(|error| name.explain(error.into()))?;
    let row = row.ok_or_else(|| name.damaged("it has no totals"))?;
    let row: &[u8] = row.value();
    let (format, rest) =
        row.split_first_chunk().ok_or_else(|| name.damaged("its totals are cut off"))?;
    let format = u64::from_le_bytes(*format);
    if format != FORMAT {
        return Err(name.newer(format));
    }
    decode(rest).ok_or_else(|| name.damaged("its totals are not as they were written"))
}

/// Returns the state in a row, given the part after the format.
fn decode(row: &[u8]) -> Option<State> {
    let (numbers, rest) = row.as_chunks::<8>();
    let (numbers, sum) = numbers.split_first_chunk::<3>()?;
    let [generation, events, users] = numbers.map(u64::from_le_bytes);
    let sum: &[u8; ExactSum::BYTES] = sum.as_flattened().try_into().ok()?;
    let sum = ExactSum::from_bytes(sum)?;
    let is_possible = rest.is_empty() && users <= events && events.max(generation) < NUMBERS_END;
    is_possible.then_some(State { generation, events, users, sum })
}
