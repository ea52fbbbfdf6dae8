//! Finds, locks, and creates the file of a store.
//!
//! A file under the path of a store is either empty or complete: a new store is written under another name, synced, and
//! renamed. So a creation that a crash cuts off never leaves a file that is refused.

use super::backend::{PathFile, Shared};
use super::errors::Named;
use super::{TOTALS, begin, builder, encode};
use crate::failure::Failure;
use crate::tally::State;
use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The number of times that a file may be replaced between being opened and being locked.
const ATTEMPTS: usize = 100;

/// Opens and locks the file of a store. Creates a store if the file does not exist or is empty.
pub(super) fn open_or_create(path: &Path, name: &Named) -> Result<PathFile, Failure> {
    for _ in 0..ATTEMPTS {
        let (file, is_created) = open_or_create_empty(path, name)?;
        let file = lock(file, path, name, File::try_lock)?;
        // It may have been replaced before it was locked.
        let Some(file) = file else { continue };
        if file.len().map_err(|error| name.cannot_read(&error))? > 0 {
            file.read_from_disk()
                .and_then(|()| sync_name(file.path()))
                .map_err(|error| name.cannot_write(&error))?;
            return Ok(file);
        }
        return replace_empty(&file, name).inspect_err(|_| {
            if is_created && file.is_named() {
                // The failure that matters is already known.
                let _ = fs::remove_file(file.path());
            }
        });
    }
    Err(name.unsteady())
}

/// Opens and locks the file of a store for reading. Others may read it at the same time.
pub(super) fn open_to_read(path: &Path, name: &Named) -> Result<PathFile, Failure> {
    for _ in 0..ATTEMPTS {
        let file = File::open(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => name.missing(),
            _ => name.cannot_open(&error),
        })?;
        let Some(file) = lock(file, path, name, File::try_lock_shared)? else { continue };
        if file.len().map_err(|error| name.cannot_read(&error))? == 0 {
            return Err(name.empty());
        }
        file.read_from_disk().map_err(|error| name.cannot_write(&error))?;
        return Ok(file);
    }
    Err(name.unsteady())
}

/// Returns the file at a path, and whether it is new.
fn open_or_create_empty(path: &Path, name: &Named) -> Result<(File, bool), Failure> {
    let options = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options
    };
    match options().open(path) {
        Ok(file) => Ok((file, false)),
        Err(error) if error.kind() == ErrorKind::IsADirectory => Err(name.directory()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            match options().create_new(true).open(path) {
                Ok(file) => Ok((file, true)),
                // Somebody else was faster, or the path is a link to a file that does not exist yet.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => options()
                    .create(true)
                    .truncate(false)
                    .open(path)
                    .map(|file| (file, false))
                    .map_err(|error| name.cannot_open(&error)),
                Err(error) => Err(name.cannot_create(&error)),
            }
        }
        Err(error) => Err(name.cannot_open(&error)),
    }
}

/// Locks a file; `None` if the path no longer names it.
fn lock(
    file: File,
    path: &Path,
    name: &Named,
    try_lock: fn(&File) -> Result<(), TryLockError>,
) -> Result<Option<PathFile>, Failure> {
    let metadata = file.metadata().map_err(|error| name.cannot_read(&error))?;
    if metadata.is_dir() {
        return Err(name.directory());
    }
    if !metadata.is_file() {
        return Err(name.foreign());
    }
    match try_lock(&file) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(name.in_use()),
        Err(TryLockError::Error(error)) => return Err(name.cannot_lock(&error)),
    }
    // Resolve links, so that a rename replaces the file, and not a link to it.
    let Ok(path) = path.canonicalize() else { return Ok(None) };
    let file = PathFile::new(file, path).map_err(|error| name.cannot_read(&error))?;
    Ok(file.is_named().then_some(file))
}

/// Replaces an empty file that this process has locked with a new store.
fn replace_empty(empty: &PathFile, name: &Named) -> Result<PathFile, Failure> {
    let image = image().map_err(|error| name.explain(error))?;
    let (file, unfinished) =
        create_beside(empty.path()).map_err(|error| name.cannot_create(&error))?;
    let finish = || -> io::Result<()> {
        (&file).write_all(&image)?;
        file.set_permissions(fs::metadata(empty.path())?.permissions())?;
        file.sync_all()?;
        // Lock it before it gets the name that others look for.
        file.try_lock()?;
        fs::rename(&unfinished, empty.path())
    };
    finish().map_err(|error| {
        // If this fails, the file only takes up space.
        let _ = fs::remove_file(&unfinished);
        name.cannot_create(&error)
    })?;
    let path = empty.path().to_owned();
    sync_name(&path)
        .and_then(|()| PathFile::new(file, path))
        .map_err(|error| name.cannot_create(&error))
}

/// Makes the name of a file durable by syncing its directory: a server that renamed it may have ended before syncing it.
fn sync_name(path: &Path) -> io::Result<()> {
    match File::open(path.parent().unwrap_or(Path::new("/"))) {
        Ok(directory) => directory.sync_all(),
        // Another user has put the file there.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}

/// Creates a file in the same directory under an unused name.
fn create_beside(path: &Path) -> io::Result<(File, PathBuf)> {
    let mut attempt = 0;
    loop {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{}-{attempt}.new", std::process::id()));
        let beside = path.with_file_name(name);
        match OpenOptions::new().read(true).write(true).create_new(true).open(&beside) {
            Ok(file) => return Ok((file, beside)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Returns the bytes of a store without events.
pub(super) fn image() -> Result<Vec<u8>, redb::Error> {
    let memory: Arc<InMemoryBackend> = Arc::new(InMemoryBackend::new());
    let database =
        builder().create_with_backend(Shared::new(Arc::<InMemoryBackend>::clone(&memory)))?;
    let transaction = begin(&database)?;
    transaction.open_table(TOTALS)?.insert((), encode(&State::default()).as_slice())?;
    transaction.commit()?;
    database.close()?;
    let len = usize::try_from(memory.len()?).expect("it fits in memory");
    let mut image = vec![0; len];
    memory.read(0, &mut image)?;
    Ok(image)
}
