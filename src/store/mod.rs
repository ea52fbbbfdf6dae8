//! Makes the totals outlive the process.

pub mod file;

use crate::failure::Failure;
use crate::tally::{State, UserIds};

/// Keeps a [`State`] and its users where a crash or a power failure cannot take them.
pub trait Store: Send {
    /// Calls `each` with the users of the state that the store held when it was opened, part by part.
    ///
    /// # Errors
    ///
    /// [`Failure::Environment`]: what the store holds cannot be read, or contradicts itself.
    fn users(&mut self, each: &mut dyn FnMut(&UserIds)) -> Result<(), Failure>;

    /// Makes a state durable, in the place of the one before it, together with those of its users that no
    /// commit of the same generation had. Returns once it cannot be lost anymore.
    ///
    /// # Errors
    ///
    /// [`Failure::Environment`]: whether the state is durable is unknown, and the store must not be used
    /// again: fsync(2) does not report an error twice.
    fn commit(&mut self, state: &State, new_users: &UserIds) -> Result<(), Failure>;
}
