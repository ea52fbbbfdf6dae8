//! Users that a batch will be the first to count.
//!
//! A batch with new users takes many turns, and must become visible in one publication, which counts all of its users
//! together. Until then it *claims* them, one after the other, in a table next to the known users of each stripe. The
//! claims share one [`Claim`], which holds the end of the batch. Whoever finds
//! a claimed user asks it, with the stripe locked:
//!
//! - The batch is counted: the user is known.
//! - The batch was dropped: the user is new.
//! - The batch goes on: the event is the first of its user, whatever becomes of the batch, which loses the user. The
//!   event is published while the claim is locked, and the batch is published with the same lock: after it.
//!
//! One batch claims users at a time, so two of them never claim the same user. Claims of a batch that has ended are
//! left to whoever finds them, or makes room for others.

use super::id::Id;
use crate::primitives::{Mutex, MutexGuard};
use std::sync::Arc;

/// The end of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Counted,
    Dropped,
}

/// The state that the claims of one batch share.
#[derive(Debug)]
pub(crate) struct Claim(Mutex<State>);

#[derive(Debug)]
pub(crate) struct State {
    /// The end of the batch.
    pub(crate) end: Option<End>,
    /// The numbers of the claims that were lost to other events.
    pub(crate) lost: Vec<usize>,
}

impl State {
    /// Notes that an event, counted now, is the first of a user who was claimed.
    pub(crate) fn lose(&mut self, index: usize) {
        if self.end.is_none() {
            self.lost.push(index);
        }
    }
}

impl Claim {
    pub(crate) fn new() -> Arc<Claim> {
        Arc::new(Claim(Mutex::new(State { end: None, lost: Vec::new() })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        match self.0.lock() {
            Ok(state) => state,
            // A shard that panicked with the lock ends the process; until then, go on.
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    /// Gives up what is not settled.
    pub(crate) fn drop_unsettled(&self) {
        self.lock().end.get_or_insert(End::Dropped);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.lock().end.is_some()
    }

    pub(crate) fn is_counted(&self) -> bool {
        self.lock().end == Some(End::Counted)
    }
}

/// A user whom a batch has claimed.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(super) hash: u64,
    pub(super) id: Id,
    /// The number of the claim within its batch.
    pub(super) index: usize,
    pub(super) claim: Arc<Claim>,
}

impl Pending {
    pub(super) fn is(&self, hash: u64, user: &[u8]) -> bool {
        self.hash == hash && self.id.is(user)
    }
}

/// The result of claiming a user.
pub(crate) enum Claimed {
    /// The batch will be the first to count the user.
    New,
    /// It already was.
    Already,
    /// The user is counted.
    Known(Id),
    /// A reset has come since the batch began.
    Reset,
}
