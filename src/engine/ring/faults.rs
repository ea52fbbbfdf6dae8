//! Which faults a ring under test has met, and those that no small size brings about.

use super::{Kind, NO_END, Plane, is_one_of};
use io_uring::opcode;
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::engine) enum Fault {
    /// A receive found no buffer: ENOBUFS.
    NoBuffers,
    /// A receive was cancelled that nobody here had cancelled: ECANCELED.
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
    static TURNS: Cell<usize> = const { Cell::new(0) };
}

pub(super) fn note(fault: Fault) {
    MET.with_borrow_mut(|met| met.insert(fault));
}

/// The faults that the ring of this thread has met.
pub(in crate::engine) fn met() -> BTreeSet<Fault> {
    MET.take()
}

/// Every few turns, cancels the receive of some connection.
pub(super) fn inject(plane: &mut Plane) {
    const EVERY: usize = 3;
    if plane.ring.submission().cq_overflow() {
        note(Fault::FullCompletionQueue);
    }
    let turn = TURNS.replace(TURNS.get() + 1);
    let places = plane.peers.len();
    if !turn.is_multiple_of(EVERY) || places == 0 {
        return;
    }
    let place = turn / EVERY % places;
    if plane.peers[place].as_ref().is_some_and(|peer| peer.is_receiving) {
        let entry = opcode::AsyncCancel::new(Kind::Receive.tag(place)).build();
        plane.push(&entry.user_data(Kind::Cancel.tag(place)));
    }
}

/// Whether the kernel is to look as if it took no operation now.
pub(super) fn refuses() -> bool {
    const EVERY: usize = 11;
    let push = PUSHES.replace(PUSHES.get() + 1);
    push % EVERY == EVERY - 1
}

pub(super) fn note_completion(plane: &Plane, kind: Kind, place: usize, result: i32) {
    let Some(peer) = plane.peers.get(place).and_then(Option::as_ref) else { return };
    match kind {
        Kind::Receive if is_one_of(result, &[Errno::NOBUFS]) => note(Fault::NoBuffers),
        Kind::Receive if is_one_of(result, NO_END) && !peer.is_cancelling => note(Fault::Cancelled),
        Kind::Receive | Kind::Send if is_one_of(result, &[Errno::CONNRESET, Errno::PIPE]) => {
            note(Fault::Reset);
        }
        Kind::Send if result > 0 && peer.sent + (result as usize) < peer.sending.len() => {
            note(Fault::ShortSend);
        }
        _ => {}
    }
}
