//! A disk that keeps what was synced; of the rest, a power failure keeps any part.

use fastrand::Rng;
use redb::StorageBackend;
use std::io::{Error, ErrorKind, Result};
use std::sync::{Arc, Mutex, MutexGuard};

/// A simulated disk with one file. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// What a power failure cannot take.
    synced: Vec<u8>,
    /// What a reader sees.
    current: Vec<u8>,
    /// What turns the one into the other.
    unsynced: Vec<Change>,
    /// Raised by a power failure: the backends from before it are dead.
    life: u64,
    /// Writes, changes of the length, and syncs so far.
    operations: u64,
    /// Operations that still succeed, before the power fails.
    left: Option<u64>,
    /// Whether an operation has found the power gone.
    is_off: bool,
    faults: Faults,
}

/// What the disk does wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// The error of every write and change of the length.
    pub write: Option<ErrorKind>,
    /// The error of every sync. What was not synced stays so.
    pub sync: Option<ErrorKind>,
    /// A sync succeeds and does nothing.
    pub ignores_syncs: bool,
}

#[derive(Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    /// Makes the change. What lies beyond the end is lost: a file system without the new length has no place
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
    /// A disk whose file has these bytes, synced.
    pub fn with(bytes: &[u8]) -> Disk {
        let state = State { synced: bytes.to_vec(), current: bytes.to_vec(), ..State::default() };
        Disk(Arc::new(Mutex::new(state)))
    }

    /// The file, until the power fails.
    pub fn backend(&self) -> Backend {
        Backend { disk: self.clone(), life: self.state().life }
    }

    /// The bytes that a reader sees.
    pub fn bytes(&self) -> Vec<u8> {
        self.state().current.clone()
    }

    /// Writes, changes of the length, and syncs so far.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Sets what the disk does wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Lets `operations` more writes, changes of the length, and syncs succeed; then the power fails, and
    /// nothing succeeds until [`Disk::crash`] brings it back.
    pub fn fail_after(&self, operations: u64) {
        self.state().left = Some(operations);
    }

    /// Whether an operation has found the power gone.
    pub fn is_off(&self) -> bool {
        self.state().is_off
    }

    /// Makes everything durable.
    pub fn sync(&self) {
        let mut state = self.state();
        state.unsynced.clear();
        state.synced = state.current.clone();
    }

    /// A power failure, and the power back: of what was not synced, the disk keeps any subset, and a part
    /// of some. Backends from before see nothing but errors.
    pub fn crash(&self, rng: &mut Rng) {
        let mut state = self.state();
        // A process that was killed loses nothing; a disk without a cache loses all.
        let kept = [0.0, 0.5, 0.9, 1.0][rng.usize(0..4)];
        let mut bytes = std::mem::take(&mut state.synced);
        for change in std::mem::take(&mut state.unsynced) {
            if rng.f64() < kept {
                change.apply(&mut bytes);
            } else if kept > 0.0 && rng.bool() {
                change.tear(&mut bytes, rng);
            }
        }
        (state.current, state.synced) = (bytes.clone(), bytes);
        (state.left, state.is_off) = (None, false);
        state.life += 1;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    /// Counts an operation; an error once the power is gone.
    fn begin(&mut self) -> Result<()> {
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
            // The first one was under way when the power failed.
            if !was_off {
                self.unsynced.push(change);
            }
            return Err(error);
        }
        if let Some(kind) = self.faults.write {
            return Err(kind.into());
        }
        change.apply(&mut self.current);
        self.unsynced.push(change);
        Ok(())
    }
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
        let state = self.state()?;
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
