//! Passes operations to the kernel: entries, the line of operations for a full queue, and `io_uring_enter`.

#[cfg(test)]
use super::faults;
use super::{BUFFER_BYTES, BUFFER_GROUP, GATHERED_MAX, Key, Slot, Uring, Wait, whole_micros};
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, opcode, squeue};
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// `POLLIN` of poll(2).
const POLL_IN: u32 = rustix::event::PollFlags::IN.bits() as u32;

/// MSG_WAITALL of send(2), which io_uring gives a meaning for sends (Linux 5.19): a short send is an error.
const WAIT_ALL: SendFlags = SendFlags::from_bits_retain(rustix::net::RecvFlags::WAITALL.bits());

/// The time that [`Wait::Gather`] waits for the first completion before it checks its ring anyway.
const GATHER_END: Duration = Duration::from_secs(1);

/// The operations that a ring supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Operation {
    Accept,
    Connect,
    Receive,
    ReceiveMultishot,
    Send,
    SendSkippingCompletion,
    CancelReceive,
    CancelConnect,
    Watch,
    Timer,
    CancelAccept,
    CancelWatch,
    CancelTimer,
}

impl Operation {
    const ALL: [Operation; 13] = [
        Operation::Accept,
        Operation::Connect,
        Operation::Receive,
        Operation::ReceiveMultishot,
        Operation::Send,
        Operation::SendSkippingCompletion,
        Operation::CancelReceive,
        Operation::CancelConnect,
        Operation::Watch,
        Operation::Timer,
        Operation::CancelAccept,
        Operation::CancelWatch,
        Operation::CancelTimer,
    ];

    /// Returns the user data of its entry. Both kinds of receives share a tag, and so do both kinds of sends: a slot has at
    /// most one receive and one send in progress, and the code that cancels or completes it need not know the kind.
    pub(super) fn tag(self, slot: u32) -> u64 {
        let operation = match self {
            Operation::ReceiveMultishot => Operation::Receive,
            Operation::SendSkippingCompletion => Operation::Send,
            other => other,
        };
        u64::from(operation as u32) << 32 | u64::from(slot)
    }

    pub(super) fn of(tag: u64) -> (Operation, Key) {
        let operation = usize::try_from(tag >> 32).ok().and_then(|at| Self::ALL.get(at));
        let operation = operation.expect("the kernel returns the user data of an entry of ours");
        #[expect(clippy::cast_possible_truncation, reason = "the low half of the tag")]
        (*operation, Key(tag as u32))
    }

    /// Reports whether it belongs to a slot.
    pub(super) fn is_of_slot(self) -> bool {
        use Operation::{Accept, CancelAccept, CancelTimer, CancelWatch, Timer, Watch};
        !matches!(self, Accept | Watch | Timer | CancelAccept | CancelWatch | CancelTimer)
    }
}

impl<T> Uring<T> {
    /// Starts an operation. From here on, it is in progress, even if it waits for space.
    pub(super) fn begin(&mut self, operation: Operation, slot: u32) {
        self.under_way += 1;
        if operation.is_of_slot() {
            self.slots[slot as usize].operations += 1;
        }
        if !self.waiting.is_empty() || !self.push(operation, slot) {
            self.waiting.push_back((operation, slot));
        }
    }

    /// Queues an operation. Returns whether there was space.
    fn push(&mut self, operation: Operation, slot: u32) -> bool {
        #[cfg(test)]
        if faults::refuses() {
            return false;
        }
        let entry = self.entry(operation, slot).user_data(operation.tag(slot));
        #[expect(unsafe_code, reason = "the kernel is given an entry that points to memory")]
        // SAFETY: the memory that the entry points to and the descriptor that it names belong to `self` and stay as they are
        // until the operation has ended, as the module's documentation explains: the slot is not vacated, `sending`, `address`,
        // and `timer` are not touched, and the listener and the wake-up are not closed. If a ring is dropped earlier, it leaks
        // all of them.
        let has_room = unsafe { self.kernel.ring.submission().push(&entry) }.is_ok();
        #[cfg(test)]
        if !has_room {
            faults::note(faults::Fault::FullSubmissionQueue);
        }
        if has_room && operation == Operation::SendSkippingCompletion {
            self.skipping.push(Key(slot));
        }
        has_room
    }

    fn entry(&self, operation: Operation, slot: u32) -> squeue::Entry {
        let cancel = |operation: Operation| opcode::AsyncCancel::new(operation.tag(slot)).build();
        let slot = || &self.slots[slot as usize];
        let socket = || Fd(slot().socket.as_raw_fd());
        match operation {
            Operation::Accept => {
                let listener = self.listener.socket().expect("accepting has a listener");
                let listener = Fd(listener.as_raw_fd());
                let flags = rustix::net::SocketFlags::CLOEXEC.bits().cast_signed();
                if self.accepts_once {
                    let (address, length) = (std::ptr::null_mut(), std::ptr::null_mut());
                    return opcode::Accept::new(listener, address, length).flags(flags).build();
                }
                opcode::AcceptMulti::new(listener).flags(flags).build()
            }
            Operation::Connect => {
                let address = slot().address.as_ref().expect("a connect has an address");
                opcode::Connect::new(socket(), address.as_ptr().cast(), address.len()).build()
            }
            Operation::Receive => {
                #[expect(clippy::cast_possible_truncation, reason = "a buffer is a page")]
                let entry = opcode::Recv::new(socket(), std::ptr::null_mut(), BUFFER_BYTES as u32);
                entry.buf_group(BUFFER_GROUP).build().flags(squeue::Flags::BUFFER_SELECT)
            }
            Operation::ReceiveMultishot => opcode::RecvMulti::new(socket(), BUFFER_GROUP).build(),
            Operation::Send => self.send_entry(slot(), SendFlags::NOSIGNAL),
            Operation::SendSkippingCompletion => {
                let at_once = SendFlags::NOSIGNAL | SendFlags::DONTWAIT | WAIT_ALL;
                self.send_entry(slot(), at_once).flags(squeue::Flags::SKIP_SUCCESS)
            }
            Operation::Watch => {
                let wakeup = self.wakeup.as_ref().expect("watching has a wake-up");
                opcode::PollAdd::new(Fd(wakeup.as_raw_fd()), POLL_IN).multi(true).build()
            }
            Operation::Timer => opcode::Timeout::new(&raw const *self.timer).build(),
            Operation::CancelAccept => cancel(Operation::Accept),
            #[cfg(test)]
            Operation::CancelReceive if faults::fails_cancels() => cancel(Operation::CancelTimer),
            Operation::CancelReceive => cancel(Operation::Receive),
            Operation::CancelConnect => cancel(Operation::Connect),
            Operation::CancelWatch => cancel(Operation::Watch),
            Operation::CancelTimer => cancel(Operation::Timer),
        }
    }

    fn send_entry(&self, slot: &Slot<T>, flags: SendFlags) -> squeue::Entry {
        let rest = slot.sending.rest();
        // The rest of longer output follows as after any short send.
        let len = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        opcode::Send::new(Fd(slot.socket.as_raw_fd()), rest.as_ptr(), len)
            .flags(flags.bits().cast_signed())
            .build()
    }

    /// Queues the operations that did not fit before. Returns whether all of them do.
    pub(super) fn submit_waiting(&mut self) -> io::Result<bool> {
        while let Some((operation, slot)) = self.waiting.front().copied() {
            if self.push(operation, slot) {
                self.waiting.pop_front();
                continue;
            }
            let queued = self.kernel.ring.submission().len();
            self.enter(EnterFlags::empty(), Wait::No)?;
            if self.kernel.ring.submission().len() == queued {
                // The kernel requires that completions are taken first.
                return Ok(false);
            }
        }
        Ok(true)
    }

    #[expect(unsafe_code, reason = "io_uring_enter(2) takes a raw argument")]
    pub(super) fn enter(&mut self, flags: EnterFlags, wait: Wait) -> io::Result<()> {
        self.enters += 1;
        #[expect(clippy::cast_possible_truncation, reason = "the queue's size is a u32")]
        let queued = self.kernel.ring.submission().len() as u32;
        let submitter = self.kernel.ring.submitter();
        let flags_bits = flags.bits();
        let bounded = |completions, time, gathered_for| {
            let time = Timespec::from(time);
            let arguments =
                SubmitArgs::new().timespec(&time).min_wait_usec(whole_micros(gathered_for));
            let flags = (flags | EnterFlags::EXT_ARG).bits();
            // SAFETY: EXT_ARG means that the argument is a `SubmitArgs`, and both the argument and the time live until the call
            // returns; `push` has ensured that the memory of the entries stays valid.
            unsafe { submitter.enter(queued, completions, flags, Some(&arguments)) }
        };
        let entered = match wait {
            // SAFETY: no argument is passed, and `push` has ensured that the memory of the entries stays valid.
            Wait::No => unsafe { submitter.enter::<u64>(queued, 0, flags_bits, None) },
            // SAFETY: as above.
            Wait::One => unsafe { submitter.enter::<u64>(queued, 1, flags_bits, None) },
            Wait::For(time) => bounded(1, time, Duration::ZERO),
            // Without a time for the whole wait, the kernel would end it empty-handed after the shorter time.
            Wait::Gather(time) => bounded(GATHERED_MAX, GATHER_END, time),
        };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                // Late, interrupted, or with completions to take first: the next iteration continues.
                Some(Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN | Errno::NOMEM) => {
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }
}
