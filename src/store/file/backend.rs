//! What stands between redb and the bytes of a store: the file, one view of them for several owners, and
//! an overlay that keeps every change in memory.

use redb::StorageBackend;
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The path of a store no longer names the file that is open: what is written would be found by nobody.
#[derive(Debug)]
pub(super) struct Gone;

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the file was deleted or replaced")
    }
}

impl std::error::Error for Gone {}

/// A locked file that stays the one that its path names.
#[derive(Debug)]
pub(super) struct PathFile {
    file: File,
    path: PathBuf,
    identity: (u64, u64),
}

impl PathFile {
    /// A file that is open, and its path, which must not depend on the working directory.
    pub(super) fn new(file: File, path: PathBuf) -> io::Result<PathFile> {
        let identity = identity(&file.metadata()?);
        Ok(PathFile { file, path, identity })
    }

    /// The path, without links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path still names the file.
    pub(super) fn is_named(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity)
    }
}

/// What tells a file from every other one of this machine.
fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl StorageBackend for PathFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    /// Everything durable is acknowledged only after this, so this is where the path is looked at.
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()?;
        if self.is_named() { Ok(()) } else { Err(io::Error::other(Gone)) }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }
}

/// The byte of redb's header whose lowest bit says which of two commit slots is the primary one, and where
/// the slots have the number of their transaction (docs/design.md of redb, "Database header").
const FLAGS: u64 = 9;
const PRIMARY: u8 = 1;
const TRANSACTIONS: [u64; 2] = [64 + 104, 192 + 104];

/// The same bytes for several owners; with `is_swapped`, read as if the other commit slot were the primary
/// one, until the flags are written.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    bytes: Arc<dyn StorageBackend>,
    is_swapped: Arc<AtomicBool>,
}

impl Shared {
    /// The bytes as they are.
    pub(super) fn new(bytes: Arc<dyn StorageBackend>) -> Shared {
        Shared { bytes, is_swapped: Arc::new(AtomicBool::new(false)) }
    }

    /// The same bytes with the other commit slot as the primary one.
    pub(super) fn swapped(&self) -> Shared {
        Shared { bytes: Arc::clone(&self.bytes), is_swapped: Arc::new(AtomicBool::new(true)) }
    }

    /// Whether the slot that is not the primary one claims to be of a later transaction.
    pub(super) fn is_other_slot_newer(&self) -> io::Result<bool> {
        let mut flags = [0];
        self.read(FLAGS, &mut flags)?;
        let mut numbers = [0; 2];
        for (number, offset) in numbers.iter_mut().zip(TRANSACTIONS) {
            let mut bytes = [0; 8];
            self.read(offset, &mut bytes)?;
            *number = u64::from_le_bytes(bytes);
        }
        let primary = usize::from(flags[0] & PRIMARY);
        Ok(numbers[1 - primary] > numbers[primary])
    }
}

impl StorageBackend for Shared {
    fn len(&self) -> io::Result<u64> {
        self.bytes.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.bytes.read(offset, out)?;
        if self.is_swapped.load(Ordering::Relaxed)
            && let Some(at) = FLAGS.checked_sub(offset)
            && let Some(flags) = usize::try_from(at).ok().and_then(|at| out.get_mut(at))
        {
            *flags ^= PRIMARY;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.bytes.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.bytes.write(offset, data)?;
        if (offset..offset + data.len() as u64).contains(&FLAGS) {
            self.is_swapped.store(false, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Bytes of a page of an overlay.
const PAGE_BYTES: u64 = PAGE_LEN as u64;
const PAGE_LEN: usize = 4096;

/// Bytes that can be changed while those below stay as they are.
#[derive(Debug)]
pub(super) struct Overlay {
    below: Shared,
    changes: Mutex<Changes>,
}

#[derive(Debug)]
struct Changes {
    /// Bytes that there are.
    len: u64,
    /// How many of those below still show where no page covers them.
    below_len: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl Overlay {
    /// Shows the bytes below, and will not change them.
    pub(super) fn new(below: Shared) -> io::Result<Overlay> {
        let len = below.len()?;
        let changes = Changes { len, below_len: len, pages: BTreeMap::new() };
        Ok(Overlay { below, changes: Mutex::new(changes) })
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what no page covers: zeros where there is nothing below.
    fn read_below(&self, below_len: u64, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = below_len.saturating_sub(offset).min(out.len() as u64);
        let there = usize::try_from(there).expect("it is at most the length of a slice");
        out[there..].fill(0);
        self.below.read(offset, &mut out[..there])
    }
}

/// Splits a range of bytes at the bounds of pages: the page, where in it the part starts, and the part's range.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let inside = usize::try_from(at % PAGE_BYTES).expect("it is below the size of a page");
        let part = done..len.min(done + PAGE_LEN - inside);
        done = part.end;
        (!part.is_empty()).then_some((at / PAGE_BYTES, inside, part))
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.changes().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let changes = self.changes();
        let end = offset + out.len() as u64;
        if end > changes.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if changes.pages.range(offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES)).next().is_none() {
            return self.read_below(changes.below_len, offset, out);
        }
        for (page, inside, part) in parts(offset, out.len()) {
            let out = &mut out[part.clone()];
            match changes.pages.get(&page) {
                Some(bytes) => out.copy_from_slice(&bytes[inside..inside + part.len()]),
                None => self.read_below(changes.below_len, offset + part.start as u64, out)?,
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut changes = self.changes();
        if len < changes.len {
            changes.pages.split_off(&len.div_ceil(PAGE_BYTES));
            if let Some(bytes) = changes.pages.get_mut(&(len / PAGE_BYTES)) {
                let inside =
                    usize::try_from(len % PAGE_BYTES).expect("it is below the size of a page");
                bytes[inside..].fill(0);
            }
            changes.below_len = changes.below_len.min(len);
        }
        changes.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut changes = self.changes();
        let below_len = changes.below_len;
        for (page, inside, part) in parts(offset, data.len()) {
            let mut bytes = match changes.pages.remove(&page) {
                Some(bytes) => bytes,
                None => {
                    let mut bytes = vec![0; PAGE_LEN].into_boxed_slice();
                    self.read_below(below_len, page * PAGE_BYTES, &mut bytes)?;
                    bytes
                }
            };
            bytes[inside..inside + part.len()].copy_from_slice(&data[part]);
            changes.pages.insert(page, bytes);
        }
        changes.len = changes.len.max(offset + data.len() as u64);
        Ok(())
    }
}
