//! Turns completions into events.

use super::errors::{NOT_THE_END, is_one_of};
#[cfg(test)]
use super::faults;
use super::{Event, Filled, Key, Listener, NoBuffers, Operation, Receiving, Sending, Slot, Uring};
use io_uring::cqueue;
use rustix::io::Errno;
use socket2::Socket;
use std::io;
use std::os::fd::FromRawFd;

/// The errors that require another try of a send.
const INTERRUPTED: &[Errno] = &[Errno::AGAIN, Errno::INTR];

impl<T> Slot<T> {
    /// Notes that an operation has ended.
    fn note_ended(&mut self, operation: Operation, result: i32) {
        self.operations = self.operations.checked_sub(1).expect("only what has begun ends");
        match operation {
            Operation::Connect => self.address = None,
            Operation::Receive => self.receiving = Receiving::No,
            Operation::CancelReceive if result < 0 && self.receiving == Receiving::Cancelling => {
                // ENOENT or EALREADY: a multishot receive may continue all the same (liburing issue 1375). Its next completion
                // cancels it again.
                self.receiving = Receiving::UnderWay;
            }
            _ => {}
        }
    }
}

impl<T> Uring<T> {
    /// Turns a completion into an event, if there is something to report.
    pub(super) fn complete(&mut self, tag: u64, result: i32, flags: u32) -> Option<Event> {
        let (operation, key) = Operation::of(tag);
        #[cfg(test)]
        faults::note_completion(self, operation, key, result);
        let has_ended = !cqueue::more(flags);
        if has_ended {
            self.under_way = self.under_way.checked_sub(1).expect("only what has begun ends");
        }
        if operation.is_of_slot() {
            return self.complete_of_slot(operation, key, result, flags);
        }
        match operation {
            Operation::Accept => self.accepted(result, has_ended),
            Operation::Watch => {
                self.is_watching = !has_ended;
                self.wakeup.as_ref()?.clear();
                if has_ended && !self.is_ending {
                    self.is_watching = true;
                    self.begin(Operation::Watch, 0);
                }
                Some(Event::Woken)
            }
            Operation::Timer => {
                self.is_timer_set = false;
                Some(Event::Timer)
            }
            _ => None,
        }
    }

    fn accepted(&mut self, result: i32, has_ended: bool) -> Option<Event> {
        if has_ended {
            self.listener = match std::mem::replace(&mut self.listener, Listener::No) {
                Listener::Accepting(listener) => Listener::Resting(listener),
                Listener::Closing(_) => Listener::No,
                other => other,
            };
        }
        if result >= 0 {
            #[expect(unsafe_code, reason = "the kernel returns a bare descriptor")]
            // SAFETY: the kernel has just opened this descriptor for this accept, and nothing else owns it.
            let socket = unsafe { Socket::from_raw_fd(result) };
            if has_ended {
                // Accepting continues by itself.
                self.accept();
            }
            return Some(Event::Accepted(socket));
        }
        has_ended.then(|| Event::AcceptStopped { error: io::Error::from_raw_os_error(-result) })
    }

    fn complete_of_slot(
        &mut self,
        operation: Operation,
        key: Key,
        result: i32,
        flags: u32,
    ) -> Option<Event> {
        let slot = &mut self.slots[key.index()];
        let has_ended = !cqueue::more(flags);
        if has_ended {
            slot.note_ended(operation, result);
        }
        let is_closed = slot.is_closed;
        let buffer = cqueue::buffer_select(flags);
        let event = match (operation, usize::try_from(result)) {
            (Operation::Connect, Ok(_)) => Some(Event::Connected(key)),
            (Operation::Connect, Err(_)) => {
                Some(Event::ConnectFailed(key, io::Error::from_raw_os_error(-result)))
            }
            (Operation::Receive, Ok(len @ 1..)) if !is_closed => {
                let buffer = buffer.expect("bytes are received in a buffer");
                return Some(Event::Received(key, Filled { buffer, len }));
            }
            (Operation::Receive, Ok(_)) => Some(Event::PeerClosed(key)),
            (Operation::Receive, Err(_)) if is_one_of(result, NOT_THE_END) => {
                let no_buffers = is_one_of(result, &[Errno::NOBUFS]);
                if no_buffers {
                    self.kernel.buffers.circulate_more();
                }
                Some(Event::ReceiveStopped(key, NoBuffers(no_buffers)))
            }
            (Operation::Receive, Err(_)) => Some(Event::ReceiveFailed(key)),
            (Operation::Send, Ok(more)) => match &mut slot.sending {
                Sending::No => None,
                Sending::UnderWay { bytes, sent, skips_completion } => {
                    *sent += more;
                    assert!(*sent <= bytes.len(), "the kernel took what there was");
                    *skips_completion = false;
                    if *sent == bytes.len() {
                        let bytes = std::mem::take(bytes);
                        slot.sending = Sending::No;
                        Some(Event::Sent(key, bytes))
                    } else {
                        self.send_rest(key)
                    }
                }
            },
            (Operation::Send, Err(_)) if is_one_of(result, INTERRUPTED) => self.send_rest(key),
            (Operation::Send, Err(_)) => {
                slot.sending = Sending::No;
                Some(Event::SendFailed(key))
            }
            _ => None,
        };
        if let Some(buffer) = buffer {
            self.kernel.buffers.put(buffer);
        }
        if is_closed {
            self.vacate(key);
            return None;
        }
        event
    }

    /// Sends the bytes that a send has left over.
    fn send_rest(&mut self, key: Key) -> Option<Event> {
        if let Some(slot) = self.open_slot(key) {
            slot.sending.expect_completion();
            self.begin(Operation::Send, key.0);
        }
        None
    }

    /// Vacates a slot that is closed and whose operations have all ended.
    pub(super) fn vacate(&mut self, key: Key) {
        if let Some(slot) = self.slots.get(key.index())
            && slot.is_closed
            && slot.operations == 0
        {
            self.slots.remove(key.index());
        }
    }
}
