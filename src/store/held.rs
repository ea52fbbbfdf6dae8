//! The responses of one connection that wait for the store.

use std::collections::VecDeque;

/// Which of the bytes that a connection has to send must not leave yet: from some byte on, all of them, since
/// responses leave in order.
#[derive(Debug, Default)]
pub struct Held {
    /// In the order of their bytes, and so of their epochs.
    marks: VecDeque<Mark>,
    /// What must wait is not published yet: from this byte on.
    unpublished: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    /// The first byte that waits.
    from: usize,
    /// The epoch that it waits for.
    epoch: u64,
    /// When it has waited too long, in the engine's milliseconds.
    deadline_ms: u64,
}

impl Held {
    /// Whether something waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty() && self.unpublished.is_none()
    }

    /// Holds back everything from a byte on, until what it acknowledges is published and settled.
    #[inline]
    pub fn hold(&mut self, from: usize) {
        self.unpublished.get_or_insert(from);
    }

    /// Notes that everything so far is published, and is settled with `epoch`, for which it waits until
    /// `deadline_ms`. Returns whether something has come to wait for it.
    #[inline]
    pub fn publish(&mut self, epoch: u64, deadline_ms: u64) -> bool {
        let Some(from) = self.unpublished.take() else { return false };
        debug_assert!(
            self.marks.back().is_none_or(|last| last.epoch <= epoch && last.from <= from)
        );
        if self.marks.back().is_none_or(|last| last.epoch < epoch) {
            self.marks.push_back(Mark { from, epoch, deadline_ms });
        }
        true
    }

    /// How many of `bytes` bytes may leave, where everything up to an epoch is settled.
    #[inline]
    pub fn release(&mut self, settled: u64, bytes: usize) -> usize {
        while self.marks.front().is_some_and(|mark| mark.epoch <= settled) {
            self.marks.pop_front();
        }
        let unpublished = self.unpublished.unwrap_or(bytes);
        self.marks.front().map_or(unpublished, |mark| mark.from)
    }

    /// Notes that the first `bytes` bytes have left.
    pub fn note_taken(&mut self, bytes: usize) {
        self.marks.iter_mut().for_each(|mark| mark.from -= bytes);
        self.unpublished = self.unpublished.map(|from| from - bytes);
    }

    /// The epoch that is waited for first.
    pub fn epoch(&self) -> Option<u64> {
        self.marks.front().map(|mark| mark.epoch)
    }

    /// When what waits for it has waited too long.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.marks.front().map(|mark| mark.deadline_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order_as_their_epochs_settle() {
        let mut held = Held::default();
        assert_eq!(held.release(0, 7), 7, "nothing waits");
        held.hold(10);
        held.hold(20);
        assert!(!held.is_empty());
        assert_eq!(held.release(u64::MAX, 30), 10, "what is not published never leaves");
        assert!(held.publish(5, 105));
        assert!(!held.publish(6, 106), "nothing new waits");
        held.hold(30);
        assert!(held.publish(5, 155), "the same epoch");
        held.hold(40);
        assert!(held.publish(8, 108));
        assert_eq!((held.release(4, 50), held.epoch()), (10, Some(5)));
        assert_eq!(held.deadline_ms(), Some(105), "of what came first");
        held.note_taken(10);
        assert_eq!(held.release(4, 40), 0);
        assert_eq!((held.release(7, 40), held.epoch()), (30, Some(8)));
        held.note_taken(30);
        assert_eq!((held.release(8, 10), held.epoch()), (10, None));
        assert!(held.is_empty());
    }
}
