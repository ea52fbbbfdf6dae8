//! Claims of users that a batch will be the first to count.
//!
//! A batch with new users takes many turns, and must become visible in one publication, which counts all of its users together.
//! Until then, it *claims* them one by one in a table next to the known users of each stripe. The claims share one [`Claim`],
//! which holds the end of the batch. A shard that finds a claimed user checks it, with the stripe locked:
//!
//! - The batch is counted: the user is known.
//! - The batch was dropped: the user is new.
//! - The batch is still in progress: the event is the first event of its user, whether or not the batch will be counted, and
//!   the batch loses the user. The event is published while the claim is locked, and the batch is published under the same
//!   lock, so it follows the event.
//!
//! Only one batch claims users at a time, so two batches never claim the same user. Claims of a batch that has ended remain
//! until a shard finds them or makes room for others.

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
    /// The end of the batch, once it has ended.
    pub(crate) end: Option<End>,
    /// The numbers of the claims that were lost to other events.
    pub(crate) lost: Vec<usize>,
}

impl State {
    /// Notes that an event that is being counted is the first event of a claimed user.
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
            // A shard that panicked while it held the lock ends the process; continue until then.
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    /// Drops the claims unless they have been settled.
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

/// A user that a batch has claimed.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(super) hash: u64,
    pub(super) id: Id,
    /// The number of the claim within its batch.
    pub(super) index: usize,
    pub(super) claim: Arc<Claim>,
}

/// The result of claiming a user.
pub(crate) enum Claimed {
    /// The batch will be the first to count the user.
    New,
    /// The batch had already claimed the user.
    Already,
    /// An event of the user is already counted.
    Known(Id),
    /// A reset has happened since the batch began.
    Reset,
}
