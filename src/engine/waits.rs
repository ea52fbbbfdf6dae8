//! Connections whose responses wait for the store, and when to send the store requests for them.

use crate::connection::Action;
use crate::store::Durability;
use std::collections::VecDeque;

/// The time that a busy shard lets responses wait before it requests a commit, in milliseconds. With 1,000
/// connections, a request after every iteration costs a quarter of the throughput; with 4 ms instead of 2 ms, commits
/// take half as much CPU time.
const COMMIT_AFTER_MS: u64 = 4;

/// One connection that waits for an epoch.
#[derive(Clone, Copy, Debug)]
struct Waiting<K> {
    key: K,
    epoch: u64,
    since_ms: u64,
}

/// The waiting connections of a shard, with each list in the order of its epochs.
#[derive(Debug)]
pub struct Waits<K> {
    /// Connections whose responses wait until an epoch is settled.
    settling: VecDeque<Waiting<K>>,
    /// Connections whose responses wait until totals are read after the cut of an epoch.
    reading: VecDeque<Waiting<K>>,
    /// The time when the first connection that still needs a request to the store began to wait.
    unasked_since_ms: Option<u64>,
}

impl<K> Default for Waits<K> {
    fn default() -> Waits<K> {
        Waits { settling: VecDeque::new(), reading: VecDeque::new(), unasked_since_ms: None }
    }
}

impl<K: Clone> Waits<K> {
    /// Notes what a connection waits for after an action, if anything.
    #[inline]
    pub fn join(&mut self, key: &K, action: &Action, since_ms: u64) {
        for (epoch, list) in [(action.settle, &mut self.settling), (action.read, &mut self.reading)]
        {
            if let Some(epoch) = epoch {
                list.push_back(Waiting { key: key.clone(), epoch, since_ms });
                self.unasked_since_ms.get_or_insert(since_ms);
            }
        }
    }

    /// Returns whether no connection waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.settling.is_empty() && self.reading.is_empty()
    }

    /// Returns the number of waiting connections.
    pub fn len(&self) -> usize {
        self.settling.len() + self.reading.len()
    }

    /// Returns whether some connections wait for something that was not requested yet.
    #[inline]
    pub fn has_unasked(&self) -> bool {
        self.unasked_since_ms.is_some()
    }

    /// Returns whether the store must be asked now, although the shard has work.
    #[inline]
    pub fn must_ask(&self, now_ms: u64) -> bool {
        self.unasked_since_ms.is_some_and(|since_ms| now_ms >= since_ms + COMMIT_AFTER_MS)
    }

    /// Requests from the store what was not requested yet. Returns whether some of it has already arrived; nothing will wake
    /// this shard for that.
    pub fn ask(&mut self, durability: &Durability) -> bool {
        if self.unasked_since_ms.take().is_none() {
            return false;
        }
        // The read is requested first, so that one commit does both.
        let read = self.reading.back().is_some_and(|last| durability.request_read(last.epoch));
        let settled = self.settling.back().is_some_and(|last| durability.request(last.epoch));
        read || settled
    }

    /// Calls `each` with the connections whose epoch the store has settled or whose totals it has read, and forgets them.
    pub fn release(&mut self, durability: &Durability, mut each: impl FnMut(K)) {
        let reached =
            [(&mut self.settling, durability.settled()), (&mut self.reading, durability.read())];
        for (list, epoch) in reached {
            while list.front().is_some_and(|first| first.epoch <= epoch)
                && let Some(Waiting { key, .. }) = list.pop_front()
            {
                each(key);
            }
        }
    }

    /// Notes if the store is late with something that connections, including ended ones, have been waiting for.
    pub fn note_late(&self, durability: &Durability, now_ms: u64) {
        for list in [&self.settling, &self.reading] {
            let is_late = |waiting: &Waiting<K>| {
                now_ms >= waiting.since_ms.saturating_add(durability.timeout_ms())
            };
            if let Some(last) = list.partition_point(is_late).checked_sub(1) {
                durability.note_late(list[last].epoch);
            }
        }
    }

    /// Lists the connections that wait for totals, each with the epoch of the cut that they wait for.
    pub fn reading(&self) -> impl Iterator<Item = (&K, u64)> {
        self.reading.iter().map(|waiting| (&waiting.key, waiting.epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Next;
    use crate::tally::State;

    /// Returns an action that waits for these epochs.
    fn action(settle: Option<u64>, read: Option<u64>) -> Action {
        Action { send: 0, then: Next::Receive, settle, read, has_work: false }
    }

    #[test]
    fn the_store_has_to_be_asked_a_while_after_the_first_has_come_to_wait() {
        let mut waits = Waits::default();
        waits.join(&1, &action(None, None), 100);
        assert!(waits.is_empty() && !waits.has_unasked() && !waits.must_ask(u64::MAX));
        waits.join(&1, &action(Some(5), None), 100);
        waits.join(&2, &action(Some(6), Some(6)), 102);
        assert_eq!(waits.len(), 3);
        assert!(waits.has_unasked() && !waits.must_ask(99 + COMMIT_AFTER_MS));
        assert!(waits.must_ask(100 + COMMIT_AFTER_MS), "from the first that waits");
    }
    /// Nothing wakes the shard for what has arrived before it asks.
    #[test]
    fn asking_reports_either_of_what_has_come_meanwhile() {
        for (totals, settle, read, has_come) in [
            (false, Some(5), None, true),
            (false, Some(5), Some(5), true),
            (true, None, Some(5), true),
            (true, Some(6), Some(5), true),
            (false, None, Some(5), false),
            (true, Some(6), Some(6), false),
        ] {
            let (durability, settlement) = Durability::for_test(1000, true);
            let mut waits = Waits::default();
            waits.join(&1, &action(settle, read), 100);
            settlement.settle(5, totals.then(|| State::default().totals()), |_| {});
            assert_eq!(waits.ask(&durability), has_come, "{settle:?} {read:?}");
            assert!(!waits.ask(&durability), "nothing new waits");
        }
    }

    #[test]
    fn the_store_is_late_with_the_last_that_has_waited_too_long() {
        let (durability, settlement) = Durability::for_test(1000, true);
        let mut waits = Waits::default();
        for (epoch, since_ms) in [(5, 100), (6, 200)] {
            waits.join(&1, &action(Some(epoch), None), since_ms);
        }
        waits.note_late(&durability, 1099);
        assert!(!settlement.is_late());
        waits.note_late(&durability, 1100);
        assert!(settlement.is_late());
        settlement.settle(5, None, |_| {});
        assert!(!settlement.is_late(), "the second is not late yet");
    }
}
