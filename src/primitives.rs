//! The locks and atomics that `tally` is built on.
//!
//! They are named in one place so that `tests/interleavings.rs` can compile the same source
//! against loom's versions, which try every interleaving that the memory model allows.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};
pub(crate) use std::sync::{Mutex, MutexGuard};
