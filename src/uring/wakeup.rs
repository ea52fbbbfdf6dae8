//! An eventfd that lets a thread wake another thread that waits in its ring.

use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Wakes the thread whose ring watches it. A wake-up that comes before the thread waits is kept, and several that come before
/// the thread processes them count as one.
#[derive(Debug)]
pub struct Wakeup(OwnedFd);

impl Wakeup {
    /// Creates a wake-up that is not pending.
    ///
    /// # Errors
    ///
    /// If the process or the system is out of descriptors.
    pub fn new() -> io::Result<Wakeup> {
        Ok(Wakeup(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Wakes the thread, from any thread.
    pub fn wake(&self) {
        // An eventfd refuses a write only if its count is close to 2^64, and in that case it is readable.
        let _ = rustix::io::retry_on_intr(|| rustix::io::write(&self.0, &1u64.to_ne_bytes()));
    }

    /// Clears it, and returns whether it was pending. Call this before checking the reason for the wake-up: anything that is
    /// added later wakes the thread again.
    pub fn clear(&self) -> bool {
        rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut [0; 8])).is_ok()
    }
}

impl AsFd for Wakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Wakeup {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
