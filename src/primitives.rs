//! The locks, atomics, and hash keys that `tally` is built on.
//!
//! They are named in one place so that `tests/loom.rs` can compile the same source against loom's versions, which try every
//! interleaving that the memory model allows, and against hash keys that are the same in every run.

pub(crate) use foldhash::quality::RandomState;
pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};
pub(crate) use std::sync::{Mutex, MutexGuard};
