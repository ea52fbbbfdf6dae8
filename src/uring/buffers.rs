//! The receive buffers of a ring, and the ring that passes them to the kernel.

#![allow(unsafe_code, reason = "the kernel writes to the buffers that it was given")]

use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use std::alloc::{Layout, LayoutError, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

/// Bytes per buffer.
pub(crate) const BUFFER_BYTES: usize = 4096;
/// The same number in the type that the kernel uses.
const BUFFER_BYTES_U32: u32 = 4096;
const _: () = assert!(BUFFER_BYTES == BUFFER_BYTES_U32 as usize);
/// The number of bytes from the start of one buffer to the start of the next. Requests are short: if it were a power of two,
/// all of them would compete for the same few sets of the processor's caches.
const STRIDE_BYTES: usize = BUFFER_BYTES + 3 * 64;
/// The number of buffers that the kernel has from the start.
const CIRCULATING_MIN: u16 = 64;
/// The kernel requires the ring of buffers to begin on a page: 4 KiB on x86-64, and 4, 16, or 64 KiB on 64-bit ARM.
const PAGE_BYTES_MAX: usize = 65536;
/// The buffer group that contains all of them.
pub(super) const BUFFER_GROUP: u16 = 0;

/// A requested number of receive buffers, which is a power of two.
///
/// The kernel fills them in turn, so it gets only as many as are likely to be needed simultaneously: with fewer buffers, each
/// is filled again sooner, while the processor's caches still hold it. [`Buffers::circulate`] puts the others in circulation.
#[derive(Debug)]
pub(super) struct Buffers {
    entries: *mut BufRingEntry,
    bytes: *mut u8,
    count: u16,
    /// The buffers below this number are in circulation.
    circulating: u16,
    tail: u16,
}

// SAFETY: it owns the memory that it points to, and nothing in it is tied to a thread.
unsafe impl Send for Buffers {}

impl Buffers {
    fn layouts(count: u16) -> Result<(Layout, Layout), LayoutError> {
        let of = |bytes| Layout::from_size_align(usize::from(count) * bytes, PAGE_BYTES_MAX);
        Ok((of(size_of::<BufRingEntry>())?, of(STRIDE_BYTES)?))
    }

    /// Allocates buffers that the kernel does not know about yet: see [`Buffers::register`].
    pub(super) fn new(count: u16) -> io::Result<Buffers> {
        assert!(count.is_power_of_two(), "the kernel wants a power of two");
        let (of_entries, of_bytes) = Self::layouts(count).map_err(io::Error::other)?;
        // SAFETY: both layouts have a size.
        let (entries, bytes) = unsafe { (alloc_zeroed(of_entries), alloc_zeroed(of_bytes)) };
        if entries.is_null() || bytes.is_null() {
            handle_alloc_error(of_bytes);
        }
        Ok(Buffers { entries: entries.cast(), bytes, count, circulating: 0, tail: 0 })
    }

    /// Gives the kernel the ring of buffers, and the first buffers.
    ///
    /// # Safety
    ///
    /// `self` must outlive `ring`.
    ///
    /// # Errors
    ///
    /// If the kernel does not have buffer rings (before Linux 5.19), or the process may not lock enough memory.
    pub(super) unsafe fn register(&mut self, ring: &IoUring) -> io::Result<()> {
        let entries = self.entries as u64;
        // SAFETY: the entries are valid, on a page, and zeroed, and the caller keeps `self` for
        // longer than the ring.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(entries, self.count, BUFFER_GROUP, 0)?;
        }
        self.circulate(usize::from(CIRCULATING_MIN));
        self.publish();
        Ok(())
    }

    /// Puts buffers in circulation until there are `wanted` of them, rounded up to a power of two. That is the number of
    /// buffers that may be filled before the first of them is processed. The kernel sees them after [`Buffers::publish`].
    pub(super) fn circulate(&mut self, wanted: usize) {
        let wanted =
            wanted.checked_next_power_of_two().and_then(|wanted| u16::try_from(wanted).ok());
        let wanted = wanted.unwrap_or(self.count).min(self.count);
        for id in self.circulating..wanted {
            self.put(id);
        }
        self.circulating = self.circulating.max(wanted);
    }

    /// Doubles the number of buffers in circulation, because all of them were filled.
    pub(super) fn circulate_more(&mut self) {
        self.circulate(2 * usize::from(self.circulating));
    }

    /// Returns the first `len` bytes of a buffer that the kernel has filled and that has not been given back.
    pub(super) fn filled(&self, id: u16, len: usize) -> &[u8] {
        assert!(id < self.count && len <= BUFFER_BYTES, "the kernel names a buffer of ours");
        // SAFETY: in bounds by the line above, initialized because it was zeroed, and the kernel
        // does not write to a buffer between its completion and `put`, which needs `&mut self`.
        unsafe { std::slice::from_raw_parts(self.bytes.add(usize::from(id) * STRIDE_BYTES), len) }
    }

    /// Puts a buffer back; the kernel sees it after [`Buffers::publish`].
    pub(super) fn put(&mut self, id: u16) {
        assert!(id < self.count, "the kernel names a buffer of ours");
        // SAFETY: both indices are below the count, and the kernel does not read entries at the tail or after it. The fields
        // are written one by one because the tail lies in the first entry.
        unsafe {
            let entry = &mut *self.entries.add(usize::from(self.tail & (self.count - 1)));
            entry.set_addr(self.bytes.add(usize::from(id) * STRIDE_BYTES) as u64);
            entry.set_len(BUFFER_BYTES_U32);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel the returned buffers.
    pub(super) fn publish(&self) {
        // SAFETY: the tail is an aligned u16 in the first entry, which lives as long as `self`;
        // the kernel only reads it.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        let Ok((of_entries, of_bytes)) = Self::layouts(self.count) else { return };
        // SAFETY: allocated with these layouts, and by the contract of `register` the ring is gone.
        unsafe {
            dealloc(self.entries.cast(), of_entries);
            dealloc(self.bytes, of_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_of_buffers_begins_on_a_page_of_any_size() {
        for count in [1, 2, 256] {
            let buffers = Buffers::new(count).expect("there is memory for them");
            assert_eq!(buffers.entries.addr() % PAGE_BYTES_MAX, 0);
        }
    }

    #[test]
    fn more_buffers_circulate_as_more_are_needed_and_each_of_them_once() {
        let mut buffers = Buffers::new(256).expect("there is memory for them");
        for (wanted, circulating) in [(64, 64), (1, 64), (65, 128), (256, 256), (usize::MAX, 256)] {
            buffers.circulate(wanted);
            assert_eq!((buffers.circulating, buffers.tail), (circulating, circulating));
        }
        let mut buffers = Buffers::new(256).expect("there is memory for them");
        buffers.circulate(1);
        for circulating in [2, 4, 8, 16, 32, 64, 128, 256, 256] {
            buffers.circulate_more();
            assert_eq!((buffers.circulating, buffers.tail), (circulating, circulating));
        }
    }
}
