//! Faults of a ring under test: which it has met, and those that no small size brings about.

use super::errors::{NOT_THE_END, is_one_of};
use super::{Key, Operation, Receiving, Uring};
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// A receive found no buffer: ENOBUFS.
    NoBuffers,
    /// A receive was canceled that nobody here had canceled: ECANCELED.
    Cancelled,
    /// A connection was reset by its peer.
    Reset,
    /// A send took a part of its bytes.
    ShortSend,
    FullSubmissionQueue,
    /// The kernel keeps completions aside.
    FullCompletionQueue,
}

thread_local! {
    static MET: RefCell<BTreeSet<Fault>> = const { RefCell::new(BTreeSet::new()) };
    static PUSHES: Cell<usize> = const { Cell::new(0) };
    static ITERATIONS: Cell<usize> = const { Cell::new(0) };
    static IS_FAULTY: Cell<bool> = const { Cell::new(false) };
    static CANCELS_TO_FAIL: Cell<usize> = const { Cell::new(0) };
}

pub(super) fn note(fault: Fault) {
    MET.with_borrow_mut(|met| met.insert(fault));
}

/// From here on the rings of this thread meet faults that are injected.
pub(crate) fn begin() {
    IS_FAULTY.set(true);
}

/// Makes the next `count` cancels of receives find nothing, so that the receives continue.
pub(super) fn fail_cancels(count: usize) {
    CANCELS_TO_FAIL.set(count);
}

/// Whether the next one does.
pub(super) fn fails_cancels() -> bool {
    let left = CANCELS_TO_FAIL.get();
    CANCELS_TO_FAIL.set(left.saturating_sub(1));
    left > 0
}

/// The faults that the rings of this thread have met.
pub(crate) fn met() -> BTreeSet<Fault> {
    MET.take()
}

/// Every few turns, cancels the receive of some slot.
pub(super) fn inject<T>(ring: &mut Uring<T>) {
    const EVERY: usize = 3;
    if ring.kernel.ring.submission().cq_overflow() {
        note(Fault::FullCompletionQueue);
    }
    if !IS_FAULTY.get() || ring.is_ending {
        return;
    }
    let iteration = ITERATIONS.replace(ITERATIONS.get() + 1);
    let slots = ring.slots.len();
    if !iteration.is_multiple_of(EVERY) || slots == 0 {
        return;
    }
    let receiving = ring.slots.iter().nth(iteration / EVERY % slots);
    if let Some((index, slot)) = receiving
        && slot.receiving == Receiving::UnderWay
    {
        ring.begin(Operation::CancelReceive, u32::try_from(index).unwrap());
    }
}

/// Whether the submission queue must look full.
pub(super) fn refuses() -> bool {
    const EVERY: usize = 11;
    if !IS_FAULTY.get() {
        return false;
    }
    let push = PUSHES.replace(PUSHES.get() + 1);
    push % EVERY == EVERY - 1
}

pub(super) fn note_completion<T>(ring: &Uring<T>, operation: Operation, key: Key, result: i32) {
    use Operation::{Receive, Send};
    let Some(slot) = ring.slots.get(key.index()) else { return };
    match operation {
        Receive if is_one_of(result, &[Errno::NOBUFS]) => note(Fault::NoBuffers),
        Receive if is_one_of(result, NOT_THE_END) && slot.receiving != Receiving::Cancelling => {
            note(Fault::Cancelled);
        }
        Receive | Send if is_one_of(result, &[Errno::CONNRESET, Errno::PIPE]) => {
            note(Fault::Reset);
        }
        Send if usize::try_from(result)
            .is_ok_and(|sent| sent > 0 && sent < slot.sending.rest().len()) =>
        {
            note(Fault::ShortSend);
        }
        _ => {}
    }
}
