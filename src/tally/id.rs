//! The id of one user, short or long.

use std::sync::Arc;

/// Words of a short id.
const WORDS: usize = 3;
/// Bytes of the longest short id: one more is its length.
pub(super) const SHORT_BYTES_MAX: usize = WORDS * size_of::<u64>() - 1;

/// A short id: its bytes in words, zeros behind them, and its length in the last byte. Two ids are equal if
/// their words are, so a lookup neither calls a comparison nor follows a pointer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Short(pub(super) [u64; WORDS]);

impl Short {
    /// An id that nobody has.
    pub(super) const EMPTY: Short = Short([0; WORDS]);

    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.0[WORDS - 1] == 0
    }

    /// The short id of these bytes; `None` if they are too many, or none.
    #[inline(always)]
    pub(super) fn new(user: &[u8]) -> Option<Short> {
        // Words that overlap are put together in registers. A copy of the bytes would be a call, and reading words
        // where bytes were just written would stall.
        let word = |at: usize| {
            user.get(at..)?.first_chunk().map(|bytes: &[u8; 8]| u64::from_le_bytes(*bytes))
        };
        let half = |at: usize| {
            user.get(at..)?.first_chunk().map(|bytes| u64::from(u32::from_le_bytes(*bytes)))
        };
        let byte = |at: usize| u64::from(user[at]) << (8 * at);
        let length = user.len();
        let [first, second, third] = match length {
            16..=SHORT_BYTES_MAX => {
                [word(0)?, word(8)?, word(length - 8)? >> 8 >> (8 * (SHORT_BYTES_MAX - length))]
            }
            8..16 => [word(0)?, word(length - 8)? >> 8 >> (8 * (15 - length)), 0],
            4..8 => [half(0)? | half(length - 4)? << (8 * (length - 4)), 0, 0],
            1..4 => [byte(0) | byte(length / 2) | byte(length - 1), 0, 0],
            _ => return None,
        };
        Some(Short([first, second, third | (length as u64) << 56]))
    }

    /// Whether both are the same id.
    #[inline(always)]
    pub(super) fn is(&self, other: &Short) -> bool {
        // Not `==` of the arrays: the compiler compares these as vectors, which it reads from the stack
        // where it has just put the words, and the processor waits until they are there.
        let ([a, b, c], [d, e, f]) = (self.0, other.0);
        (a ^ d) | (b ^ e) | (c ^ f) == 0
    }
}

/// The id of a user, to be put into a table.
#[derive(Clone, Debug)]
pub(crate) enum Id {
    Short(Short),
    /// One copy for the shared set and the sets of all shards.
    Long(Arc<[u8]>),
}

impl Id {
    pub(super) fn new(user: &[u8]) -> Id {
        Short::new(user).map_or_else(|| Id::Long(user.into()), Id::Short)
    }

    /// Whether this is the id of a user.
    pub(super) fn is(&self, user: &[u8]) -> bool {
        match self {
            Id::Short(held) => Short::new(user).is_some_and(|short| short.is(held)),
            Id::Long(held) => **held == *user,
        }
    }
}
