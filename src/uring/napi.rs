//! NAPI busy polling: before a thread that waits for its ring goes to sleep, it polls the network devices of its sockets
//! (IORING_REGISTER_NAPI, Linux 6.9).
//!
//! The kernel identifies the devices by the packets that the sockets have received. Loopback, and any other device without
//! NAPI, is never polled.

use super::{Uring, whole_micros};
use io_uring::IoUring;
use io_uring::types::Napi;
use std::io;
use std::time::Duration;

impl<T> Uring<T> {
    /// Makes every wait poll for up to `time`, in whole microseconds. The devices' interrupts stay on.
    ///
    /// # Errors
    ///
    /// See [`check_busy_poll`].
    pub(crate) fn busy_poll(&self, time: Duration) -> io::Result<()> {
        register(&self.kernel.ring, time)
    }
}

/// Checks whether a ring can poll network devices.
///
/// # Errors
///
/// `InvalidInput` before Linux 6.9; `Unsupported` if the kernel was built without CONFIG_NET_RX_BUSY_POLL or does not
/// have rings.
pub fn check_busy_poll() -> io::Result<()> {
    register(&IoUring::new(2)?, Duration::from_micros(1))
}

fn register(ring: &IoUring, time: Duration) -> io::Result<()> {
    ring.submitter().register_napi(&mut Napi::new().set_busy_poll_timeout(whole_micros(time)))
}
