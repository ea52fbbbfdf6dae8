//! A list of user ids in one allocation, as it is passed from a shard to a store and back.

use std::collections::HashSet;

/// User ids, one after another: two bytes of length, little endian, and then the id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserIds {
    bytes: Vec<u8>,
    count: u64,
}

/// The number of bytes of a length.
const PREFIX: usize = 2;

impl UserIds {
    /// Appends an id, which [`event`](crate::event) limits to fewer than 2^16 bytes.
    pub fn push(&mut self, id: &[u8]) {
        let length = u16::try_from(id.len()).expect("the decoder refuses longer ids");
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(id);
        self.count += 1;
    }

    /// Returns the number of ids.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Returns whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the ids in the order that they were appended.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.bytes.as_slice();
        std::iter::from_fn(move || {
            let (id, after) = split(rest)?;
            rest = after;
            Some(id)
        })
    }

    /// Returns the list without the ids at these positions.
    pub(super) fn without(&self, places: &[usize]) -> UserIds {
        let places: HashSet<&usize> = places.iter().collect();
        let mut rest = UserIds::default();
        let kept = self.iter().enumerate().filter(|(place, _)| !places.contains(place));
        kept.for_each(|(_, id)| rest.push(id));
        rest
    }

    /// Moves the ids of another list to the end of this one.
    pub fn append(&mut self, other: &mut UserIds) {
        if self.is_empty() {
            std::mem::swap(self, other);
        } else {
            self.bytes.append(&mut other.bytes);
            self.count += std::mem::take(&mut other.count);
        }
    }

    /// Takes the first `count` ids, or all ids if there are fewer.
    pub fn take_first(&mut self, count: u64) -> UserIds {
        if count >= self.count {
            return std::mem::take(self);
        }
        let end: usize = self
            .iter()
            .take(usize::try_from(count).unwrap_or(usize::MAX))
            .map(|id| PREFIX + id.len())
            .sum();
        let rest = self.bytes.split_off(end);
        let first = std::mem::replace(&mut self.bytes, rest);
        self.count -= count;
        UserIds { bytes: first, count }
    }

    /// Returns the list as bytes, for [`UserIds::from_bytes`].
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the list that these bytes represent, or `None` if they do not represent a list.
    pub fn from_bytes(bytes: &[u8]) -> Option<UserIds> {
        let (mut rest, mut count) = (bytes, 0);
        while !rest.is_empty() {
            (_, rest) = split(rest)?;
            count += 1;
        }
        Some(UserIds { bytes: bytes.to_vec(), count })
    }
}

/// Returns the first id in these bytes, and the bytes after it.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<PREFIX>()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(ids: &[&str]) -> UserIds {
        let mut list = UserIds::default();
        ids.iter().for_each(|id| list.push(id.as_bytes()));
        list
    }

    #[test]
    fn a_list_splits_and_joins_anywhere() {
        let ids = ["a", "", "user_3", "ü", &"x".repeat(256)];
        let whole = list(&ids);
        assert_eq!(whole.iter().collect::<Vec<_>>(), ids.map(str::as_bytes));
        assert_eq!(UserIds::from_bytes(whole.as_bytes()).as_ref(), Some(&whole));
        for at in 0..=ids.len() {
            let mut rest = whole.clone();
            let mut first = rest.take_first(at as u64);
            assert_eq!((&first, &rest), (&list(&ids[..at]), &list(&ids[at..])));
            first.append(&mut rest);
            assert_eq!((first, rest), (whole.clone(), UserIds::default()));
        }
    }

    #[test]
    fn bytes_that_end_early_are_no_list() {
        let bytes = list(&["abc", "d"]).as_bytes().to_vec();
        let whole = [0, 5, bytes.len()];
        for end in 0..bytes.len() {
            assert_eq!(UserIds::from_bytes(&bytes[..end]).is_some(), whole.contains(&end), "{end}");
        }
    }
}
