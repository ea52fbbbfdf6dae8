//! The id of one user, short or long.

use std::sync::Arc;

/// The number of words of a short id.
const WORDS: usize = 3;
/// The maximum length of a short id in bytes. An additional byte holds the length.
pub(super) const SHORT_BYTES_MAX: usize = WORDS * size_of::<u64>() - 1;

/// A short id: its bytes in words, padded with zeros, and its length in the last byte. Two ids are equal if their words are
/// equal, so a lookup neither calls a comparison function nor follows a pointer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Short(pub(super) [u64; WORDS]);

impl Short {
    /// An id that no user has.
    pub(super) const EMPTY: Short = Short([0; WORDS]);

    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.0[WORDS - 1] == 0
    }

    /// Returns the short id of these bytes, or `None` if there are too many bytes or none.
    #[inline(always)]
    pub(super) fn new(user: &[u8]) -> Option<Short> {
        // Overlapping words are combined in registers. Copying the bytes would be a call, and reading words from bytes that
        // were just written would stall.
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

    /// Returns whether both ids are the same.
    #[inline(always)]
    pub(super) fn is(&self, other: &Short) -> bool {
        // This does not use `==` on the arrays: the compiler would compare them as vectors, which it reads from the stack right
        // after it has stored the words there, and the processor would wait for the stores.
        let ([a, b, c], [d, e, f]) = (self.0, other.0);
        (a ^ d) | (b ^ e) | (c ^ f) == 0
    }
}

/// The id of a user, for insertion into a table.
#[derive(Clone, Debug)]
pub(crate) enum Id {
    Short(Short),
    /// One copy that the shared set and the sets of all shards share.
    Long(Arc<[u8]>),
}

impl Id {
    pub(super) fn new(user: &[u8]) -> Id {
        Short::new(user).map_or_else(|| Id::Long(user.into()), Id::Short)
    }

    /// Returns whether this is the id of a user.
    pub(super) fn is(&self, user: &[u8]) -> bool {
        match self {
            Id::Short(held) => Short::new(user).is_some_and(|short| short.is(held)),
            Id::Long(held) => **held == *user,
        }
    }
}
