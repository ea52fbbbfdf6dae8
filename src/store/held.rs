//! The responses of one connection that wait for the store.

use std::collections::VecDeque;

/// The bytes of a connection that must not leave yet: all bytes from some byte on, because responses leave in order.
#[derive(Debug, Default)]
pub struct Held {
    /// The marks, in the order of their bytes, which is the order of their epochs.
    marks: VecDeque<Mark>,
    /// The first byte of the responses that must wait and are not published yet, and the generation that counted them.
    unpublished: Option<(usize, u64)>,
}

/// The part of a connection's responses that may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// This number of bytes.
    Bytes(usize),
    /// This number of bytes, and never any more: another server has reset the totals, and the events that the next response
    /// acknowledges are not counted anywhere.
    Void(usize),
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    /// The first byte that must wait.
    from: usize,
    /// The epoch that it waits for.
    epoch: u64,
    /// The generation that counted the first event.
    generation: u64,
    /// Its deadline, in the engine's milliseconds.
    deadline_ms: u64,
}

impl Held {
    /// Reports whether something waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty() && self.unpublished.is_none()
    }

    /// Holds back everything from a byte on, until the events that it acknowledges, which were counted in a generation or
    /// later, are published and settled.
    #[inline]
    pub fn hold(&mut self, from: usize, generation: u64) {
        self.unpublished.get_or_insert((from, generation));
    }

    /// Notes that all events until now are published and will be settled with `epoch`. Their responses wait for it until
    /// `deadline_ms`. Returns whether a response has begun to wait for it.
    #[inline]
    pub fn publish(&mut self, epoch: u64, deadline_ms: u64) -> bool {
        let Some((from, generation)) = self.unpublished.take() else { return false };
        debug_assert!(
            self.marks.back().is_none_or(|last| last.epoch <= epoch && last.from <= from)
        );
        if self.marks.back().is_none_or(|last| last.epoch < epoch) {
            self.marks.push_back(Mark { from, epoch, generation, deadline_ms });
        }
        true
    }

    /// Returns the part of `bytes` bytes that may leave once everything up to the epoch `settled` is settled. `is_void` decides
    /// from the epoch that a response needs, and the generation that counted it, whether it must never leave.
    #[inline]
    pub fn release(
        &mut self,
        settled: u64,
        bytes: usize,
        is_void: impl Fn(u64, u64) -> bool,
    ) -> Release {
        while let Some(mark) = self.marks.front()
            && mark.epoch <= settled
        {
            if is_void(mark.epoch, mark.generation) {
                return Release::Void(mark.from);
            }
            self.marks.pop_front();
        }
        let unpublished = self.unpublished.map_or(bytes, |(from, _)| from);
        Release::Bytes(self.marks.front().map_or(unpublished, |mark| mark.from))
    }

    /// Forgets the bytes that wait, which then never leave.
    pub fn clear(&mut self) {
        *self = Held::default();
    }

    /// Notes that the first `bytes` bytes have left.
    pub fn note_taken(&mut self, bytes: usize) {
        self.marks.iter_mut().for_each(|mark| mark.from -= bytes);
        self.unpublished = self.unpublished.map(|(from, generation)| (from - bytes, generation));
    }

    /// Returns the deadline of the bytes that have waited longest.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.marks.front().map(|mark| mark.deadline_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(held: &mut Held, settled: u64, bytes: usize) -> usize {
        match held.release(settled, bytes, |_, _| false) {
            Release::Bytes(bytes) => bytes,
            Release::Void(_) => unreachable!("nothing is void"),
        }
    }

    #[test]
    fn bytes_leave_in_order_as_their_epochs_settle() {
        let mut held = Held::default();
        assert_eq!(release(&mut held, 0, 7), 7, "nothing waits");
        held.hold(10, 0);
        held.hold(20, 0);
        assert!(!held.is_empty());
        assert_eq!(release(&mut held, u64::MAX, 30), 10, "what is not published never leaves");
        assert!(held.publish(5, 105));
        assert!(!held.publish(6, 106), "nothing new waits");
        held.hold(30, 0);
        assert!(held.publish(5, 155), "the same epoch");
        held.hold(40, 0);
        assert!(held.publish(8, 108));
        assert_eq!(release(&mut held, 4, 50), 10);
        assert_eq!(held.deadline_ms(), Some(105), "of what came first");
        held.note_taken(10);
        assert_eq!(release(&mut held, 4, 40), 0);
        assert_eq!((release(&mut held, 7, 40), held.deadline_ms()), (30, Some(108)));
        held.note_taken(30);
        assert_eq!((release(&mut held, 8, 10), held.deadline_ms()), (10, None));
        assert!(held.is_empty());
    }

    #[test]
    fn what_is_void_never_leaves_nor_what_follows_it() {
        let mut held = Held::default();
        let is_void = |epoch, generation| epoch > 5 && generation < 2;
        for (from, epoch, generation) in [(10, 5, 1), (20, 6, 1), (30, 7, 2)] {
            held.hold(from, generation);
            // The first of several that are published together determines the generation.
            held.hold(from + 5, 3);
            assert!(held.publish(epoch, 100));
        }
        assert_eq!(held.release(5, 40, is_void), Release::Bytes(20), "settled before");
        assert_eq!(held.release(9, 40, is_void), Release::Void(20));
        held.note_taken(20);
        assert_eq!(held.release(9, 20, is_void), Release::Void(0), "for good");
        held.clear();
        assert!(held.is_empty());
    }

    #[test]
    fn what_waits_moves_up_when_bytes_in_front_of_it_have_left() {
        for is_published in [false, true] {
            let mut held = Held::default();
            held.hold(10, 0);
            held.publish(5, 100);
            held.hold(20, 0);
            if is_published {
                held.publish(6, 100);
            }
            held.note_taken(4);
            assert_eq!(release(&mut held, 4, 50), 6);
            assert_eq!(release(&mut held, 5, 50), 16);
        }
    }
}
