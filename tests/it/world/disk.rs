//! A disk that keeps what was synced. Of everything else, a power failure keeps any part. Above the disk is a page cache, which
//! continues to show what a failed sync has lost until it forgets that.

use fastrand::Rng;
use redb::StorageBackend;
use std::collections::BTreeSet;
use std::io::{Error, ErrorKind, Result};
use std::sync::{Arc, Mutex, MutexGuard};

/// A simulated disk with one file. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct Disk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// The content that a power failure cannot take.
    synced: Vec<u8>,
    /// The content that a reader sees.
    current: Vec<u8>,
    /// The changes between the two, without the lost ones.
    unsynced: Vec<Change>,
    /// Pages that a failed sync has lost: they can be read, and count as clean, so a later sync does not write them.
    lost: BTreeSet<usize>,
    /// Raised by each power failure and each restart: the backends from before are dead.
    life: u64,
    /// The number of writes, changes of the length, and syncs.
    operations: u64,
    /// The number of operations that still succeed before the power fails.
    left: Option<u64>,
    /// True after an operation has found the power gone.
    is_off: bool,
    /// The number of syncs that still succeed before one loses what it should write.
    syncs_left: Option<u64>,
    /// True after a sync has lost something in this life.
    has_lost: bool,
    /// Decides which pages are lost, and when the page cache forgets them.
    rng: Rng,
    faults: Faults,
}

/// The size of a page of the page cache.
const PAGE_BYTES: usize = 4096;

/// The faults of the disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// The error of every write and change of the length.
    pub write: Option<ErrorKind>,
    /// The error of every sync. Unsynced writes stay unsynced.
    pub sync: Option<ErrorKind>,
    /// True if a sync succeeds and does nothing.
    pub ignores_syncs: bool,
}

#[derive(Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    /// Makes the change. Everything beyond the end is lost, because a file system without the new length does not have a place
    /// for it.
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write(offset, data) => {
                let start = bytes.len().min(*offset);
                let end = bytes.len().min(offset + data.len());
                bytes[start..end].copy_from_slice(&data[..end - start]);
            }
            Change::Length(len) => bytes.resize(*len, 0),
        }
    }

    /// Makes the first part of the change.
    fn tear(&self, bytes: &mut Vec<u8>, rng: &mut Rng) {
        if let Change::Write(offset, data) = self {
            let torn = data[..rng.usize(0..=data.len())].to_vec();
            Change::Write(*offset, torn).apply(bytes);
        }
    }
}

impl Disk {
    /// Returns a disk whose file has these bytes, synced.
    pub fn with(bytes: &[u8]) -> Disk {
        Disk(Arc::new(Mutex::new(State {
            synced: bytes.to_vec(),
            current: bytes.to_vec(),
            unsynced: Vec::new(),
            lost: BTreeSet::new(),
            life: 0,
            operations: 0,
            left: None,
            is_off: false,
            syncs_left: None,
            has_lost: false,
            rng: Rng::with_seed(0),
            faults: Faults::default(),
        })))
    }

    /// Returns the file, which works until the power fails or its process ends.
    pub fn backend(&self) -> Backend {
        Backend { disk: self.clone(), life: self.state().life }
    }

    /// Returns the bytes that a reader sees.
    pub fn bytes(&self) -> Vec<u8> {
        self.state().current.clone()
    }

    /// Returns the number of writes, changes of the length, and syncs.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Sets the faults of the disk from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Lets `operations` more writes, changes of the length, and syncs succeed. Then the power fails, and nothing succeeds
    /// until [`Disk::crash`] brings it back.
    pub fn fail_after(&self, operations: u64) {
        self.state().left = Some(operations);
    }

    /// Returns whether an operation has found the power gone.
    pub fn is_off(&self) -> bool {
        self.state().is_off
    }

    /// Lets `syncs` more syncs succeed. The next sync fails, and loses any part of the data that it should write. As on ext4,
    /// lost data can be read and counts as clean: later syncs succeed without it, until it is written again. At any moment, the
    /// page cache may forget some of the lost data.
    pub fn lose_after(&self, syncs: u64, rng: &mut Rng) {
        let mut state = self.state();
        (state.syncs_left, state.rng) = (Some(syncs), rng.fork());
    }

    /// Returns whether a sync has lost something since the last restart or power failure.
    pub fn has_lost(&self) -> bool {
        self.state().has_lost
    }

    /// Ends the process that uses the file, so that another may begin. The page cache stays. Its dirty data stays dirty, or the
    /// write-back of that data fails, and nobody hears of it.
    pub fn restart(&self, rng: &mut Rng) {
        let mut state = self.state();
        state.rng = rng.fork();
        if rng.u8(0..4) == 0 {
            state.write_back_in_part();
        }
        if rng.bool() {
            let lost = state.lost.clone();
            lost.into_iter().filter(|_| rng.bool()).for_each(|page| state.forget(page));
        }
        state.begin_life();
    }

    /// Makes everything durable.
    pub fn sync(&self) {
        let mut state = self.state();
        (state.unsynced, state.lost) = (Vec::new(), BTreeSet::new());
        state.synced = state.current.clone();
    }

    /// Cuts the power and brings it back. Of everything that was not synced, the disk keeps any subset, and parts of some
    /// changes. Backends from before get nothing but errors.
    pub fn crash(&self, rng: &mut Rng) {
        let mut state = self.state();
        // A killed process loses nothing, and a disk without a cache loses everything.
        let kept = [0.0, 0.5, 0.9, 1.0][rng.usize(0..4)];
        let mut bytes = std::mem::take(&mut state.synced);
        for change in std::mem::take(&mut state.unsynced) {
            if rng.f64() < kept {
                change.apply(&mut bytes);
            } else if kept > 0.0 && rng.bool() {
                change.tear(&mut bytes, rng);
            }
        }
        (state.current, state.synced, state.lost) = (bytes.clone(), bytes, BTreeSet::new());
        state.begin_life();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    fn begin_life(&mut self) {
        (self.left, self.is_off) = (None, false);
        (self.syncs_left, self.has_lost) = (None, false);
        self.life += 1;
    }

    /// Writes any part of the dirty data to the disk, and loses the rest.
    fn write_back_in_part(&mut self) {
        let State { synced, current, unsynced, lost, rng, .. } = self;
        let mut dirty = BTreeSet::new();
        for change in unsynced.drain(..) {
            match change {
                Change::Write(offset, data) => dirty.extend(pages(offset, data.len())),
                // The file system writes its own data elsewhere.
                Change::Length(len) => synced.resize(len, 0),
            }
        }
        let kept = [0.0, 0.5, 0.9][rng.usize(0..3)];
        for page in dirty {
            let range = page_range(page, current.len().min(synced.len()));
            if rng.f64() < kept {
                synced[range.clone()].copy_from_slice(&current[range]);
            } else if !range.is_empty() {
                lost.insert(page);
            }
        }
    }

    /// Removes a lost page from the page cache.
    fn forget(&mut self, page: usize) {
        let range = page_range(page, self.current.len().min(self.synced.len()));
        self.current[range.clone()].copy_from_slice(&self.synced[range]);
        self.lost.remove(&page);
    }

    /// Counts an operation, or returns an error if the power is gone.
    fn begin(&mut self) -> Result<()> {
        assert!(!self.has_lost, "a file is left alone after a failed sync");
        match &mut self.left {
            Some(0) => {
                self.is_off = true;
                return Err(Error::other("the power is gone"));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        self.operations += 1;
        Ok(())
    }

    fn change(&mut self, change: Change) -> Result<()> {
        let was_off = self.is_off;
        if let Err(error) = self.begin() {
            // The first failed change was in progress when the power failed.
            if !was_off {
                self.unsynced.push(change);
            }
            return Err(error);
        }
        if let Some(kind) = self.faults.write {
            return Err(kind.into());
        }
        change.apply(&mut self.current);
        if let Change::Write(offset, data) = &change {
            // A write makes its whole page dirty.
            for page in pages(*offset, data.len()).filter(|page| self.lost.remove(page)) {
                let range = page_range(page, self.current.len());
                self.unsynced.push(Change::Write(range.start, self.current[range].to_vec()));
            }
        }
        self.unsynced.push(change);
        Ok(())
    }
}

/// Returns the pages that these bytes are on.
fn pages(offset: usize, len: usize) -> std::ops::Range<usize> {
    offset / PAGE_BYTES..(offset + len).div_ceil(PAGE_BYTES)
}

/// Returns the bytes of a page in a file of this length.
fn page_range(page: usize, len: usize) -> std::ops::Range<usize> {
    (page * PAGE_BYTES).min(len)..((page + 1) * PAGE_BYTES).min(len)
}

/// The file of a [`Disk`].
#[derive(Debug)]
pub struct Backend {
    disk: Disk,
    life: u64,
}

impl Backend {
    fn state(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.life == self.life { Ok(state) } else { Err(Error::other("the power was gone")) }
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> Result<u64> {
        Ok(self.state()?.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut state = self.state()?;
        // Memory may run short at any moment.
        if !state.lost.is_empty() && state.rng.u8(..) < 8 {
            let State { lost, rng, .. } = &mut *state;
            let page = *lost.iter().nth(rng.usize(..lost.len())).unwrap();
            state.forget(page);
        }
        let start = usize::try_from(offset).unwrap();
        let bytes = state.current.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.state()?.change(Change::Length(usize::try_from(len).unwrap()))
    }

    fn sync_data(&self) -> Result<()> {
        let mut state = self.state()?;
        state.begin()?;
        if let Some(kind) = state.faults.sync {
            return Err(kind.into());
        }
        match &mut state.syncs_left {
            Some(0) => {
                state.write_back_in_part();
                state.has_lost = true;
                return Err(Error::other("what was written is lost"));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        if !state.faults.ignores_syncs {
            let State { synced, unsynced, .. } = &mut *state;
            unsynced.drain(..).for_each(|change| change.apply(synced));
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.state()?.change(Change::Write(usize::try_from(offset).unwrap(), data.to_vec()))
    }
}
