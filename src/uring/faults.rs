//! Faults of a ring under test: the faults that it has met, and injected faults that do not result from small sizes.

use super::errors::{NOT_THE_END, is_one_of};
use super::{Key, Operation, Receiving, Uring};
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// A receive did not find a buffer: ENOBUFS.
    NoBuffers,
    /// A receive was canceled, but not by its owner: ECANCELED.
    Cancelled,
    /// A connection was reset by its peer.
    Reset,
    /// A send took a part of its bytes.
    ShortSend,
    FullSubmissionQueue,
    /// The kernel keeps completions in its overflow list.
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

/// Injects faults into the rings of this thread from here on.
pub(crate) fn begin() {
    IS_FAULTY.set(true);
}

/// Makes the next `count` cancels of receives miss them, so that the receives continue.
pub(super) fn fail_cancels(count: usize) {
    CANCELS_TO_FAIL.set(count);
}

/// Reports whether the next cancel misses.
pub(super) fn fails_cancels() -> bool {
    let left = CANCELS_TO_FAIL.get();
    CANCELS_TO_FAIL.set(left.saturating_sub(1));
    left > 0
}

/// Returns the faults that the rings of this thread have met.
pub(crate) fn met() -> BTreeSet<Fault> {
    MET.take()
}

/// Cancels the receive of some slot every few turns.
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

/// Reports whether the submission queue must look full.
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
