//! The layers between redb and the bytes of a store: the file, a view of the file that several owners share, and an overlay
//! that keeps every change in memory.

use redb::StorageBackend;
use rustix::fs::{Advice, fadvise};
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The error that the path of a store no longer names the open file, so that nobody would find the data written to it.
#[derive(Debug)]
pub(super) struct Gone;

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the file was deleted or replaced")
    }
}

impl std::error::Error for Gone {}

/// A locked file that must remain the file at its path.
#[derive(Debug)]
pub(super) struct PathFile {
    file: File,
    path: PathBuf,
    identity: (u64, u64),
}

impl PathFile {
    /// Creates it from an open file and its path, which must not depend on the working directory.
    pub(super) fn new(file: File, path: PathBuf) -> io::Result<PathFile> {
        let identity = identity(&file.metadata()?);
        Ok(PathFile { file, path, identity })
    }

    /// Returns the path, without links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes dirty pages back, and drops the page cache, so that later reads come from the disk. Dropping is only advice: a
    /// page stays if another process maps or reads it (`invalidate_mapping_pages` in the kernel's mm/truncate.c), and tmpfs
    /// does not have anything to drop.
    ///
    /// # Errors
    ///
    /// If a write-back fails, or has failed unnoticed.
    pub(super) fn read_from_disk(&self) -> io::Result<()> {
        self.file.sync_all()?;
        let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
        Ok(())
    }

    /// Reports whether the path still names the file.
    pub(super) fn is_named(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity)
    }
}

/// Returns the identity of a file on this machine.
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

    /// Nothing durable is acknowledged before this returns, so the path is checked here.
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()?;
        if self.is_named() { Ok(()) } else { Err(io::Error::other(Gone)) }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }
}

/// The byte in redb's header whose lowest bit selects the primary of its two commit slots, and the offsets of the slots'
/// transaction numbers (docs/design.md of redb, "Database header").
const FLAGS: usize = 9;
const PRIMARY: u8 = 1;
const TRANSACTIONS: [usize; 2] = [64 + 104, 192 + 104];

/// The number of bytes in redb's header.
pub(super) const HEADER_BYTES: u64 = HEADER_LEN as u64;
const HEADER_LEN: usize = 320;

/// Bytes that several owners share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    bytes: Arc<dyn StorageBackend>,
    /// The header, if it was kept, so that reading it does not depend on the page cache.
    header: Option<Arc<Mutex<[u8; HEADER_LEN]>>>,
}

impl Shared {
    /// Shares the bytes as they are.
    pub(super) fn new(bytes: Arc<dyn StorageBackend>) -> Shared {
        Shared { bytes, header: None }
    }

    /// Shares the bytes of a database, and keeps their header: its present content, and whatever is written to it later.
    pub(super) fn with_header(&self) -> io::Result<Shared> {
        let mut header = [0; HEADER_LEN];
        self.read(0, &mut header)?;
        Ok(self.replace_header(header))
    }

    fn replace_header(&self, header: [u8; HEADER_LEN]) -> Shared {
        Shared { bytes: Arc::clone(&self.bytes), header: Some(Arc::new(Mutex::new(header))) }
    }

    /// Returns the same bytes with the other commit slot as the primary one, if that slot claims a later transaction.
    pub(super) fn with_newer_slot(&self) -> io::Result<Option<Shared>> {
        let mut header = [0; HEADER_LEN];
        self.read(0, &mut header)?;
        let number = |slot: usize| {
            let bytes = header[TRANSACTIONS[slot]..].first_chunk().expect("it is in the header");
            u64::from_le_bytes(*bytes)
        };
        let primary = usize::from(header[FLAGS] & PRIMARY);
        if number(1 - primary) <= number(primary) {
            return Ok(None);
        }
        header[FLAGS] ^= PRIMARY;
        Ok(Some(self.replace_header(header)))
    }

    /// Writes every page again and syncs them, so that the content that is read is on the disk. A page of zeros does not belong
    /// to a transaction; it may be a hole, which stays one.
    pub(super) fn rewrite(&self) -> io::Result<()> {
        let len = self.len()?;
        let mut page = [0; PAGE_LEN];
        for offset in (0..len).step_by(PAGE_LEN) {
            let left = usize::try_from(len - offset).unwrap_or(PAGE_LEN);
            let page = &mut page[..left.min(PAGE_LEN)];
            self.read(offset, page)?;
            if page.iter().any(|byte| *byte != 0) {
                self.write(offset, page)?;
            }
        }
        self.sync_data()
    }

    /// Returns the part of a range at `offset` that lies in the kept header, if there is one.
    fn kept(
        &self,
        offset: u64,
        len: usize,
    ) -> Option<(MutexGuard<'_, [u8; HEADER_LEN]>, Range<usize>)> {
        let header = self.header.as_ref()?;
        let start = usize::try_from(offset).ok().filter(|start| *start < HEADER_LEN)?;
        let header = header.lock().unwrap_or_else(PoisonError::into_inner);
        Some((header, start..HEADER_LEN.min(start + len)))
    }
}

impl StorageBackend for Shared {
    fn len(&self) -> io::Result<u64> {
        self.bytes.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.bytes.read(offset, out)?;
        if let Some((header, part)) = self.kept(offset, out.len()) {
            out[..part.len()].copy_from_slice(&header[part]);
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
        if let Some((mut header, part)) = self.kept(offset, data.len()) {
            let len = part.len();
            header[part].copy_from_slice(&data[..len]);
        }
        Ok(())
    }
}

/// The size of a page: of the overlay, of redb, and of the page cache.
const PAGE_BYTES: u64 = PAGE_LEN as u64;
const PAGE_LEN: usize = 4096;

/// Bytes that can be changed while the bytes below them stay as they are.
#[derive(Debug)]
pub(super) struct Overlay {
    below: Shared,
    changes: Mutex<Changes>,
}

#[derive(Debug)]
struct Changes {
    /// The total number of bytes.
    len: u64,
    /// The number of bytes below that still show through.
    below_len: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl Overlay {
    /// Shows the bytes below, without ever changing them.
    pub(super) fn new(below: Shared) -> io::Result<Overlay> {
        let len = below.len()?;
        let changes = Changes { len, below_len: len, pages: BTreeMap::new() };
        Ok(Overlay { below, changes: Mutex::new(changes) })
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads bytes that no page covers: zeros beyond the bytes below.
    fn read_below(&self, below_len: u64, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = below_len.saturating_sub(offset).min(out.len() as u64);
        let there = usize::try_from(there).expect("it is at most the length of a slice");
        out[there..].fill(0);
        if there > 0 { self.below.read(offset, &mut out[..there]) } else { Ok(()) }
    }
}

/// Splits a range of bytes at page boundaries, into the page, the start of the part in that page, and the part's range.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
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

    /// Keeps the pages that differ from the bytes below.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut changes = self.changes();
        let below_len = changes.below_len;
        for (page, inside, part) in parts(offset, data.len()) {
            let mut bytes = match changes.pages.remove(&page) {
                Some(bytes) => bytes,
                None => {
                    let mut bytes = vec![0; PAGE_LEN].into_boxed_slice();
                    self.read_below(below_len, page * PAGE_BYTES, &mut bytes)?;
                    if bytes[inside..inside + part.len()] == data[part.clone()] {
                        continue;
                    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use redb::backends::InMemoryBackend;

    #[test]
    fn an_overlay_keeps_only_the_pages_that_change() {
        let below = InMemoryBackend::new();
        let bytes: Vec<u8> = (1..=251).cycle().take(3 * PAGE_LEN + 100).collect();
        below.set_len(bytes.len() as u64).unwrap();
        below.write(0, &bytes).unwrap();
        let overlay = Arc::new(Overlay::new(Shared::new(Arc::new(below))).unwrap());
        let kept = || overlay.changes().pages.keys().copied().collect::<Vec<u64>>();
        Shared::new(Arc::<Overlay>::clone(&overlay)).rewrite().unwrap();
        assert!(kept().is_empty(), "{:?}", kept());
        // Two pages are written, and only the second changes; zeros extend the bytes.
        let mut expected = bytes.clone();
        expected[PAGE_LEN + 7] ^= 1;
        overlay.write(7, &expected[7..2 * PAGE_LEN]).unwrap();
        expected.resize(5 * PAGE_LEN, 0);
        overlay.write(expected.len() as u64 - 9, &[0; 9]).unwrap();
        assert_eq!(kept(), [1]);
        let mut read = vec![1; expected.len()];
        overlay.read(0, &mut read).unwrap();
        assert!(overlay.len().unwrap() == expected.len() as u64 && read == expected);
        // The change is undone.
        overlay.write(0, &bytes).unwrap();
        overlay.read(0, &mut read[..bytes.len()]).unwrap();
        assert!(read[..bytes.len()] == bytes);
    }
}
