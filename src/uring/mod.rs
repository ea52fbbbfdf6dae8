//! io_uring with typed operations: the bottom layer, shared by the server's engine and the client's transport.
//!
//! A `Uring` owns a table of slots. A slot holds one connected or connecting socket, its owner's data, and everything
//! that the kernel may touch for it. Operations are started by naming a slot, never by a raw submission entry, and end
//! as an `Event`.
//!
//! # Ownership of memory that the kernel may touch
//!
//! - Receive buffers and their ring outlive the io_uring.
//! - The bytes of a send belong to the slot from `Uring::send` until `Event::Sent` gives them
//!   back. Nobody can change, move, or free them in between.
//! - A send may skip its completion if it succeeds. The kernel tries it while it takes its entry, never later (MSG_DONTWAIT),
//!   and completes it if it could not send everything (MSG_WAITALL). So once the kernel has taken all entries and every
//!   completion was processed, sends without a completion have succeeded.
//! - The address of a connect belongs to the slot until the connect has ended.
//! - A slot is vacated, and its descriptor closed, only when none of its operations is in progress, so a completion is never
//!   mistaken for another connection's.
//! - Dropping a ring brings every operation to completion. If one does not complete in time, its memory is leaked, not freed
//!   while the kernel may use it.
//!
//! # A full submission queue
//!
//! There is one policy, and callers never see it: if an operation does not fit, it waits in line, and the next iteration
//! submits it before it waits for anything. No operation is refused or lost.
//!
//! # Waiting
//!
//! A thread waits for its ring in `io_uring_enter` on it and nowhere else. With DEFER_TASKRUN, no other descriptor reliably
//! shows that the ring has work: an eventfd registered with it goes silent for good once the kernel has deferred a signal to it
//! (Linux 6.12 and 6.18). Anything that must wake the thread from outside arrives as a completion: see [`Wakeup`].

mod buffers;
mod completion;
mod direct;
mod errors;
#[cfg(test)]
pub(crate) mod faults;
mod napi;
mod probe;
mod submission;
#[cfg(test)]
mod tests;
mod wakeup;

pub(crate) use buffers::BUFFER_BYTES;
pub(crate) use direct::{receive_now, send_now};
pub use napi::check_busy_poll;
pub use probe::{Feature, check, gathers, probe};
pub use wakeup::Wakeup;

use buffers::{BUFFER_GROUP, Buffers};
use io_uring::types::Timespec;
use io_uring::{EnterFlags, IoUring};
use slab::Slab;
use socket2::{SockAddr, Socket};
use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};
use submission::Operation;

/// The time that dropping a ring waits for operations that it has canceled.
const LAST_WAIT: Duration = Duration::from_secs(1);
/// The longest single wait.
const LAST_WAIT_STEP: Duration = Duration::from_millis(2);

/// The number of reads of the task-run flag between two reads of the clock while polling.
const POLLS_PER_CLOCK_READ: u32 = 32;

/// The sizes of a ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// The number of entries in the submission queue.
    pub(crate) submissions: u32,
    /// The number of entries in the completion queue. Beyond it, the kernel keeps completions in an overflow list (Linux 5.5).
    pub(crate) completions: u32,
    /// The number of receive buffers, a power of two.
    pub(crate) buffers: u16,
}

/// The thread that will use a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Issuer {
    /// The thread that creates it.
    ThisThread,
    /// The thread that calls [`Uring::enable`].
    Later,
}

/// The way to wait for completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Do not wait.
    No,
    /// Wait for one completion, as long as it takes.
    One,
    /// Wait for one completion, at most this long. This makes the kernel program a timer.
    For(Duration),
    /// Wait at most this long for [`GATHERED_MAX`] completions, and then for the first one as long as it takes. This makes the
    /// kernel program two timers, and needs [`Uring::gathers`].
    Gather(Duration),
}

/// The number of completions that ends a [`Wait::Gather`] before its time.
pub(crate) const GATHERED_MAX: u32 = 64;

/// Names a slot of a ring. A slot that was closed may be given to another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u32);

impl Key {
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// A buffer with received bytes. It goes back to the kernel through [`Uring::give_back`].
#[derive(Debug)]
#[must_use = "a buffer that is not given back is lost to the ring"]
pub(crate) struct Filled {
    buffer: u16,
    len: usize,
}

/// The result of an operation.
#[derive(Debug)]
pub(crate) enum Event {
    /// A connection was accepted; accepting continues.
    Accepted(Socket),
    /// Accepting has stopped with an error.
    AcceptStopped {
        /// The reason. If descriptors or memory have run out, accepting again immediately would fail, too.
        error: io::Error,
    },
    /// The socket of a slot is connected.
    Connected(Key),
    /// It could not be connected.
    ConnectFailed(Key, io::Error),
    /// Bytes were received: see [`Uring::received`].
    Received(Key, Filled),
    /// The receive has ended although the peer may still send: it was canceled or interrupted, or no buffer was free.
    ReceiveStopped(Key, NoBuffers),
    /// The peer will not send anything more.
    PeerClosed(Key),
    /// The connection was reset, or failed in another way.
    ReceiveFailed(Key),
    /// The kernel has taken all bytes of a send, which are returned here.
    Sent(Key, Vec<u8>),
    /// A send failed. Its bytes are lost.
    SendFailed(Key),
    /// The watched [`Wakeup`] was pending, and was cleared.
    Woken,
    /// The timer has run out.
    Timer,
}

/// Whether a receive has ended because all receive buffers were in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoBuffers(pub(crate) bool);

/// The io_uring, and the receive buffers that it knows: dropped in this order.
struct Kernel {
    ring: IoUring,
    buffers: Buffers,
}

impl Kernel {
    fn new(sizes: &Sizes, issuer: Issuer) -> io::Result<Kernel> {
        let buffers = Buffers::new(sizes.buffers)?;
        let mut kernel = Kernel { ring: build(sizes, issuer)?, buffers };
        #[expect(unsafe_code, reason = "the kernel is given memory")]
        // SAFETY: the ring is declared before the buffers, and is therefore dropped before them, both here and wherever
        // `kernel` is dropped.
        unsafe {
            kernel.buffers.register(&kernel.ring)?;
        }
        Ok(kernel)
    }
}

/// The state of a slot's receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    No,
    UnderWay,
    Cancelling,
}

/// A socket, and the state that its operations need.
struct Slot<T> {
    socket: Socket,
    data: T,
    /// Whether its owner has closed it: it waits for its operations to end, and reports nothing more.
    is_closed: bool,
    sending: Sending,
    receiving: Receiving,
    /// The address of a connect in progress.
    address: Option<Box<SockAddr>>,
    /// The number of operations in progress, including cancellations.
    operations: u32,
}

/// The bytes that a slot sends.
enum Sending {
    /// Nothing.
    No,
    /// These bytes; the kernel has taken the first `sent`.
    UnderWay {
        bytes: Vec<u8>,
        sent: usize,
        /// Whether it skips its completion if it succeeds.
        skips_completion: bool,
    },
}

impl Sending {
    /// Returns the bytes that the kernel has not taken.
    fn rest(&self) -> &[u8] {
        match self {
            Sending::No => &[],
            Sending::UnderWay { bytes, sent, .. } => &bytes[*sent..],
        }
    }

    /// Notes that there will be a completion. Returns whether it might have been skipped.
    fn expect_completion(&mut self) -> bool {
        match self {
            Sending::No => false,
            Sending::UnderWay { skips_completion, .. } => std::mem::take(skips_completion),
        }
    }
}

/// The listener of a ring.
enum Listener {
    /// The ring does not have a listener.
    No,
    /// It is open, and nothing is accepting.
    Resting(Socket),
    Accepting(Socket),
    /// It is closed once accepting has ended.
    Closing(Socket),
}

impl Listener {
    fn socket(&self) -> Option<&Socket> {
        match self {
            Listener::No => None,
            Listener::Resting(socket) | Listener::Accepting(socket) | Listener::Closing(socket) => {
                Some(socket)
            }
        }
    }
}

/// An open slot, as its owner sees it.
pub(crate) struct OpenSlot<'a, T> {
    pub(crate) key: Key,
    /// The owner's data.
    pub(crate) data: &'a mut T,
    pub(crate) socket: &'a Socket,
    pub(crate) is_sending: bool,
    pub(crate) is_receiving: bool,
}

impl<'a, T> OpenSlot<'a, T> {
    fn new(index: usize, slot: &'a mut Slot<T>) -> Option<Self> {
        #[expect(clippy::cast_possible_truncation, reason = "made of a u32 by `Uring::insert`")]
        let key = Key(index as u32);
        (!slot.is_closed).then_some(OpenSlot {
            key,
            data: &mut slot.data,
            socket: &slot.socket,
            is_sending: !matches!(slot.sending, Sending::No),
            is_receiving: slot.receiving != Receiving::No,
        })
    }
}

/// An io_uring, and the sockets that it serves. `T` is the data that their owner keeps for each.
pub(crate) struct Uring<T> {
    /// It is dropped explicitly, or leaked.
    kernel: ManuallyDrop<Kernel>,
    slots: Slab<Box<Slot<T>>>,
    listener: Listener,
    is_listener_shared: bool,
    /// Whether each accept brings only one connection: see [`accepts_once`].
    accepts_once: bool,
    wakeup: Option<Arc<Wakeup>>,
    is_watching: bool,
    /// The kernel reads it when the timer's entry is submitted.
    timer: Box<Timespec>,
    is_timer_set: bool,
    /// Operations that found the submission queue full, in order.
    waiting: VecDeque<(Operation, u32)>,
    /// The number of operations in progress, including those that wait for space.
    under_way: usize,
    completions: Vec<(u64, i32, u32)>,
    /// The number of processed completions.
    looked_at: usize,
    /// Slots with a send that may skip its completion, if the kernel has it or is about to get it.
    skipping: Vec<Key>,
    /// The slots whose sends are over once all completions have been processed.
    skipped: Vec<Key>,
    /// Whether the last iteration left entries or completions behind, perhaps from such sends.
    is_skipping_unknown: bool,
    /// The number of calls of `io_uring_enter`.
    enters: u64,
    /// The flags for waiting.
    wait_flags: EnterFlags,
    /// Whether it is being dropped, so that nothing is started again.
    is_ending: bool,
}

impl<T> Uring<T> {
    /// Creates a ring without slots.
    ///
    /// # Errors
    ///
    /// If the kernel does not support this kind of ring (before Linux 6.1), io_uring is blocked, or the process may not lock
    /// enough memory.
    pub(crate) fn new(sizes: &Sizes, issuer: Issuer) -> io::Result<Self> {
        let kernel = Kernel::new(sizes, issuer)?;
        let mut wait_flags = EnterFlags::GETEVENTS;
        if kernel.ring.params().is_feature_no_iowait() {
            // Linux 6.15. Without this flag, an idle thread counts as waiting for a disk.
            wait_flags |= EnterFlags::NO_IOWAIT;
        }
        Ok(Uring {
            kernel: ManuallyDrop::new(kernel),
            slots: Slab::new(),
            listener: Listener::No,
            is_listener_shared: false,
            accepts_once: accepts_once(&rustix::system::uname().release().to_string_lossy()),
            wakeup: None,
            is_watching: false,
            timer: Box::new(Timespec::new()),
            is_timer_set: false,
            waiting: VecDeque::new(),
            under_way: 0,
            completions: Vec::new(),
            looked_at: 0,
            skipping: Vec::new(),
            skipped: Vec::new(),
            is_skipping_unknown: false,
            enters: 0,
            wait_flags,
            is_ending: false,
        })
    }

    /// Makes the calling thread the only user of a ring of [`Issuer::Later`].
    pub(crate) fn enable(&mut self) -> io::Result<()> {
        self.kernel.ring.submitter().register_enable_rings()
    }

    /// Puts a socket in a new slot.
    pub(crate) fn insert(&mut self, socket: Socket, data: T) -> Key {
        let index = self.slots.insert(Box::new(Slot {
            socket,
            data,
            is_closed: false,
            sending: Sending::No,
            receiving: Receiving::No,
            address: None,
            operations: 0,
        }));
        // An iteration is likely to receive at most once on each slot.
        self.kernel.buffers.circulate(self.slots.len());
        Key(u32::try_from(index).expect("there are fewer descriptors than 2^32"))
    }

    /// Returns the owner's data of a slot; `None` once it is closed.
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.open_slot(key).map(|slot| &mut slot.data)
    }

    /// Returns the owner's data of a slot, and the bytes that were received on it.
    pub(crate) fn received(&mut self, key: Key, filled: &Filled) -> Option<(&mut T, &[u8])> {
        let slot = self.slots.get_mut(key.index()).filter(|slot| !slot.is_closed)?;
        Some((&mut slot.data, self.kernel.buffers.filled(filled.buffer, filled.len)))
    }

    /// Returns the bytes in a buffer.
    pub(crate) fn bytes(&self, filled: &Filled) -> &[u8] {
        self.kernel.buffers.filled(filled.buffer, filled.len)
    }

    /// Returns an open slot.
    pub(crate) fn slot(&mut self, key: Key) -> Option<OpenSlot<'_, T>> {
        OpenSlot::new(key.index(), self.slots.get_mut(key.index())?)
    }

    /// Returns all open slots.
    pub(crate) fn open_slots(&mut self) -> impl Iterator<Item = OpenSlot<'_, T>> {
        self.slots.iter_mut().filter_map(|(index, slot)| OpenSlot::new(index, slot))
    }

    /// Reports whether all slots are free. Closed slots that wait for their operations are not free.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Reports whether the kernel supports [`Wait::Gather`]: since Linux 6.12.
    pub(crate) fn gathers(&self) -> bool {
        self.kernel.ring.params().is_feature_min_timeout()
    }

    /// Returns the number of io_uring_enter calls since the ring was made.
    pub(crate) fn enters(&self) -> u64 {
        self.enters
    }

    fn open_slot(&mut self, key: Key) -> Option<&mut Slot<T>> {
        self.slots.get_mut(key.index()).map(Box::as_mut).filter(|slot| !slot.is_closed)
    }

    /// Accepts on a listener until [`Uring::close_listener`]. A shared one keeps listening for its other holders.
    pub(crate) fn listen(&mut self, listener: Socket, is_shared: bool) {
        assert!(matches!(self.listener, Listener::No), "a ring has one listener");
        self.listener = Listener::Resting(listener);
        self.is_listener_shared = is_shared;
        self.accept();
    }

    /// Returns the listener, while there is one.
    pub(crate) fn listener(&self) -> Option<&Socket> {
        self.listener.socket()
    }

    /// Continues accepting after [`Event::AcceptStopped`].
    pub(crate) fn accept(&mut self) {
        match std::mem::replace(&mut self.listener, Listener::No) {
            Listener::Resting(listener) => {
                self.listener = Listener::Accepting(listener);
                self.begin(Operation::Accept, 0);
            }
            other => self.listener = other,
        }
    }

    /// Reports whether the listener is accepting.
    pub(crate) fn is_accepting(&self) -> bool {
        matches!(self.listener, Listener::Accepting(_) | Listener::Closing(_))
    }

    /// Stops listening. Connections that were accepted before are still reported.
    pub(crate) fn close_listener(&mut self) {
        if let Some(listener) = self.listener.socket()
            && !self.is_listener_shared
        {
            // This frees a TCP port immediately. It fails only if the port is free already.
            let _ = listener.shutdown(Shutdown::Read);
        }
        match std::mem::replace(&mut self.listener, Listener::No) {
            Listener::Accepting(listener) => {
                self.listener = Listener::Closing(listener);
                self.begin(Operation::CancelAccept, 0);
            }
            Listener::Closing(listener) => self.listener = Listener::Closing(listener),
            Listener::No | Listener::Resting(_) => {}
        }
    }

    /// Watches for wake-ups until the ring is dropped.
    pub(crate) fn watch(&mut self, wakeup: Arc<Wakeup>) {
        assert!(self.wakeup.is_none(), "a ring has one wake-up");
        self.wakeup = Some(wakeup);
        self.is_watching = true;
        self.begin(Operation::Watch, 0);
    }

    /// Sets the ring's only timer, which must not be set.
    pub(crate) fn set_timer(&mut self, after: Duration) {
        assert!(!self.is_timer_set, "a ring has one timer");
        *self.timer = Timespec::from(after);
        self.is_timer_set = true;
        self.begin(Operation::Timer, 0);
    }

    /// Connects the socket of a slot.
    pub(crate) fn connect(&mut self, key: Key, address: SockAddr) {
        if let Some(slot) = self.open_slot(key) {
            assert!(slot.address.is_none(), "a socket is connected once");
            slot.address = Some(Box::new(address));
            self.begin(Operation::Connect, key.0);
        }
    }

    /// Receives once on a slot.
    pub(crate) fn receive(&mut self, key: Key) {
        self.start_receiving(key, Operation::Receive);
    }

    /// Receives on a slot until [`Uring::stop_receiving`], the end of the stream, or a lack of buffers.
    pub(crate) fn receive_multishot(&mut self, key: Key) {
        self.start_receiving(key, Operation::ReceiveMultishot);
    }

    fn start_receiving(&mut self, key: Key, how: Operation) {
        if let Some(slot) = self.open_slot(key) {
            assert!(slot.receiving == Receiving::No, "a socket has one receive at a time");
            slot.receiving = Receiving::UnderWay;
            self.begin(how, key.0);
        }
    }

    /// Stops receiving on a slot. Bytes that arrived before are still reported.
    pub(crate) fn stop_receiving(&mut self, key: Key) {
        if let Some(slot) = self.open_slot(key)
            && slot.receiving == Receiving::UnderWay
        {
            slot.receiving = Receiving::Cancelling;
            self.begin(Operation::CancelReceive, key.0);
        }
    }

    /// Sends all of `bytes` on a slot that is not sending.
    pub(crate) fn send(&mut self, key: Key, bytes: Vec<u8>) {
        self.start_sending(key, bytes, Operation::Send);
    }

    /// Sends all of `bytes`, but without a completion if the socket takes everything immediately, so that it does not end a
    /// wait: [`Event::Sent`] comes in an iteration that something else has ended.
    pub(crate) fn send_skipping_completion(&mut self, key: Key, bytes: Vec<u8>) {
        // Output that is too long for a result is sent in parts, which have completions.
        let is_short = i32::try_from(bytes.len()).is_ok();
        let how = if is_short { Operation::SendSkippingCompletion } else { Operation::Send };
        self.start_sending(key, bytes, how);
    }

    fn start_sending(&mut self, key: Key, bytes: Vec<u8>, how: Operation) {
        if let Some(slot) = self.open_slot(key) {
            let is_free = matches!(slot.sending, Sending::No) && !bytes.is_empty();
            assert!(is_free, "a socket has one send at a time");
            let skips_completion = how == Operation::SendSkippingCompletion;
            slot.sending = Sending::UnderWay { bytes, sent: 0, skips_completion };
            self.begin(how, key.0);
        }
    }

    /// Closes a slot, connected or connecting. It reports nothing more, and its descriptor is closed
    /// once its operations have ended.
    pub(crate) fn close(&mut self, key: Key) {
        let Some(slot) = self.open_slot(key) else { return };
        slot.is_closed = true;
        if slot.operations > 0 {
            // This ends the operations of a connected socket. It fails only if the connection has already ended.
            let _ = slot.socket.shutdown(Shutdown::Both);
        }
        if slot.address.is_some() {
            self.begin(Operation::CancelConnect, key.0);
        }
        self.vacate(key);
    }

    /// Gives a buffer back to the kernel, which sees it in the next iteration.
    pub(crate) fn give_back(&mut self, filled: Filled) {
        self.kernel.buffers.put(filled.buffer);
    }

    /// Gives the kernel the operations that were started, without waiting for or processing anything.
    ///
    /// # Errors
    ///
    /// If the ring is broken.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        self.submit_waiting()?;
        if self.kernel.ring.submission().is_empty() {
            return Ok(());
        }
        self.enter(EnterFlags::empty(), Wait::No)
    }

    /// Gives the kernel the operations that were started, waits, and takes in the completions, for [`Uring::next_event`] to
    /// report. Returns the number of completions. The events of the previous iteration must have been taken.
    ///
    /// # Errors
    ///
    /// If the ring is broken.
    pub(crate) fn iterate(&mut self, wait: Wait) -> io::Result<usize> {
        let is_done = self.looked_at == self.completions.len() && self.skipped.is_empty();
        assert!(is_done, "events of the last iteration are left");
        self.kernel.buffers.publish();
        // It will be known without a wait whether these are over.
        let wait = if self.is_skipping_unknown { Wait::No } else { wait };
        match (self.submit_waiting()?, wait) {
            // Operations that did not fit do not wait for anything.
            (false, _) | (true, Wait::No) => self.enter(EnterFlags::GETEVENTS, Wait::No)?,
            (true, wait) => self.enter(self.wait_flags, wait)?,
        }
        #[cfg(test)]
        faults::inject(self);
        self.completions.clear();
        self.looked_at = 0;
        self.completions.extend(
            self.kernel
                .ring
                .completion()
                .map(|done| (done.user_data(), done.result(), done.flags())),
        );
        self.settle_skipping_sends();
        Ok(self.completions.len())
    }

    /// Finds the sends without a completion that are over, because they can no longer get one.
    fn settle_skipping_sends(&mut self) {
        if self.skipping.is_empty() {
            self.is_skipping_unknown = false;
            return;
        }
        for (tag, ..) in &self.completions {
            if let (Operation::Send, key) = Operation::of(*tag)
                && self.slots[key.index()].sending.expect_completion()
            {
                self.skipping.retain(|skipping| *skipping != key);
            }
        }
        let submission = self.kernel.ring.submission();
        self.is_skipping_unknown =
            !self.skipping.is_empty() && (!submission.is_empty() || submission.cq_overflow());
        if !self.is_skipping_unknown {
            std::mem::swap(&mut self.skipping, &mut self.skipped);
        }
    }

    /// Polls for work until `until` without entering the kernel. Returns whether there is work for an iteration without a wait
    /// to take in.
    pub(crate) fn poll(&mut self, until: Instant) -> bool {
        loop {
            for _ in 0..POLLS_PER_CLOCK_READ {
                if self.kernel.ring.submission().taskrun() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if Instant::now() >= until {
                return false;
            }
        }
    }

    /// Returns the next event of the last iteration.
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        while let Some((tag, result, flags)) = self.completions.get(self.looked_at).copied() {
            self.looked_at += 1;
            if let Some(event) = self.complete(tag, result, flags) {
                return Some(event);
            }
        }
        while let Some(key) = self.skipped.pop() {
            let sent = self.slots[key.index()].sending.rest().len();
            let sent = i32::try_from(sent).expect("a longer send has a completion");
            if let Some(event) = self.complete(Operation::Send.tag(key.0), sent, 0) {
                return Some(event);
            }
        }
        None
    }

    /// Ends every operation, or stops after the longest wait.
    fn end_operations(&mut self) {
        self.is_ending = true;
        self.close_listener();
        let open: Vec<Key> = self.open_slots().map(|slot| slot.key).collect();
        open.into_iter().for_each(|key| self.close(key));
        if self.is_watching {
            self.begin(Operation::CancelWatch, 0);
        }
        if self.is_timer_set {
            self.begin(Operation::CancelTimer, 0);
        }
        let patience = Instant::now() + LAST_WAIT;
        loop {
            while let Some(event) = self.next_event() {
                if let Event::Received(_, filled) = event {
                    self.give_back(filled);
                }
            }
            if self.under_way == 0
                || Instant::now() >= patience
                || self.iterate(Wait::For(LAST_WAIT_STEP)).is_err()
            {
                return;
            }
        }
    }
}

impl<T> Drop for Uring<T> {
    fn drop(&mut self) {
        // A thread that panics ends the process or leaves it immediately; nothing may delay it.
        if !std::thread::panicking() {
            self.end_operations();
        }
        if self.under_way > 0 {
            std::mem::forget(std::mem::take(&mut self.slots));
            std::mem::forget(std::mem::replace(&mut self.listener, Listener::No));
            std::mem::forget(self.wakeup.take());
            std::mem::forget(std::mem::take(&mut self.timer));
            return;
        }
        #[expect(
            unsafe_code,
            reason = "the other way to leak it is to check for it in every access"
        )]
        // SAFETY: it is not used again, and no operation in progress could touch what `self` owns.
        unsafe {
            ManuallyDrop::drop(&mut self.kernel);
        }
    }
}

/// Returns a time in the form that the kernel expects in some places: in microseconds, rounded down, and at most 71 minutes.
fn whole_micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

/// Reports whether multishot accept must not be used on a kernel of this release. On 6.6 and 6.7, a multishot accept that meets
/// a full completion queue can report poll flags as if they were a descriptor.
fn accepts_once(release: &str) -> bool {
    let mut parts = release.split(|character: char| !character.is_ascii_digit());
    matches!((parts.next(), parts.next()), (Some("6"), Some("6" | "7")))
}

fn build(sizes: &Sizes, issuer: Issuer) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_cqsize(sizes.completions);
    if issuer == Issuer::Later {
        builder.setup_r_disabled();
    }
    builder.build(sizes.submissions)
}
