//! The counters under loom: the same source as `tally`, compiled against loom's atomics and locks,
//! and run in every interleaving (up to a bound on preemptions) with every value that the memory
//! model lets a load return.

#[allow(dead_code, unused_imports, unreachable_pub, reason = "the model uses only a part of it")]
#[path = "../src/tally/mod.rs"]
mod tally;

mod primitives {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
    pub(crate) use loom::sync::{Mutex, MutexGuard};
}

use primitives::{AtomicU64, Ordering};
use std::sync::Arc;
use tally::{Tally, Writer};

fn model(preemptions: usize, check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(check);
}

fn two_shards() -> (Arc<Tally>, Writer, Writer) {
    let (tally, writers) = Tally::new(2, 100);
    let [a, b]: [Writer; 2] = writers.try_into().expect("two writers");
    (tally, a, b)
}

#[test]
fn a_reader_never_sees_half_an_event() {
    model(2, || {
        let (tally, mut a, _) = two_shards();
        let writing = loom::thread::spawn(move || {
            for user in ["u", "v"] {
                a.count(user.as_bytes(), 1.0).unwrap();
                a.publish();
            }
        });
        for _ in 0..2 {
            let totals = tally.totals();
            assert_eq!(totals.sum, totals.total_requests as f64);
            assert_eq!(totals.unique_users, totals.total_requests);
        }
        writing.join().unwrap();
        assert_eq!(tally.totals().total_requests, 2);
    });
}

#[test]
fn an_event_is_seen_with_every_event_acknowledged_before_it_was_sent() {
    model(2, || {
        let (tally, mut a, mut b) = two_shards();
        let acknowledged = Arc::new(AtomicU64::new(0));
        let first = loom::thread::spawn({
            let acknowledged = Arc::clone(&acknowledged);
            move || {
                a.count(b"u", 1.0).unwrap();
                a.publish();
                acknowledged.store(1, Ordering::Release);
            }
        });
        let second = loom::thread::spawn(move || {
            if acknowledged.load(Ordering::Acquire) == 1 {
                b.count(b"v", -1.0).unwrap();
                b.publish();
            }
        });
        let totals = tally.totals();
        assert!(totals.sum >= 0.0, "the second event without the first: {totals:?}");
        first.join().unwrap();
        second.join().unwrap();
    });
}

#[test]
fn a_user_is_counted_with_its_first_visible_event_and_once() {
    model(2, || {
        let (tally, mut a, mut b) = two_shards();
        let one = loom::thread::spawn(move || {
            a.count(b"u", 1.0).unwrap();
            a.publish();
        });
        let other = loom::thread::spawn(move || {
            b.count(b"u", 1.0).unwrap();
            b.publish();
        });
        let totals = tally.totals();
        assert_eq!(totals.unique_users, totals.total_requests.min(1));
        one.join().unwrap();
        other.join().unwrap();
        let totals = tally.totals();
        assert_eq!((totals.total_requests, totals.unique_users), (2, 1));
    });
}

#[test]
fn a_reset_is_one_point_in_time_for_two_shards_and_a_user() {
    model(2, || {
        let (tally, mut a, mut b) = two_shards();
        a.count(b"u", 1.0).unwrap();
        a.publish();
        let resetting = loom::thread::spawn({
            let tally = Arc::clone(&tally);
            move || {
                tally.reset();
                a.count(b"u", 1.0).unwrap();
                a.publish();
            }
        });
        let counting = loom::thread::spawn(move || {
            b.count(b"u", 1.0).unwrap();
            b.publish();
            b
        });
        let totals = tally.totals();
        assert_eq!(totals.sum, totals.total_requests as f64);
        assert_eq!(totals.unique_users, totals.total_requests.min(1));
        resetting.join().unwrap();
        let mut b = counting.join().unwrap();
        // The event in flight fell on either side; what was sent after the reset is there.
        let after = tally.totals();
        assert!((1..=2).contains(&after.total_requests), "{after:?}");
        assert_eq!(after.unique_users, 1);
        b.count(b"u", 1.0).unwrap();
        b.publish();
        let end = tally.totals();
        assert_eq!((end.total_requests, end.unique_users), (after.total_requests + 1, 1));
    });
}

#[test]
fn readers_that_race_both_get_a_cut() {
    model(1, || {
        let (tally, mut a, _) = two_shards();
        a.count(b"u", 1.0).unwrap();
        a.publish();
        let writing = loom::thread::spawn(move || {
            for _ in 0..2 {
                a.count(b"u", 1.0).unwrap();
                a.publish();
            }
        });
        let reading = loom::thread::spawn({
            let tally = Arc::clone(&tally);
            move || {
                let first = tally.totals().total_requests;
                let second = tally.totals().total_requests;
                assert!(1 <= first && first <= second, "{first} then {second}");
            }
        });
        let totals = tally.totals();
        assert!((1..=3).contains(&totals.total_requests));
        assert_eq!(totals.sum, totals.total_requests as f64);
        writing.join().unwrap();
        reading.join().unwrap();
    });
}

/// Two publications that overlap a read can overwrite the slot with the last publication from before
/// it, while the reader examines the slots one after the other.
#[test]
fn a_read_has_every_earlier_event_although_two_publications_overlap_it() {
    model(3, || {
        let (tally, mut writers) = Tally::new(1, 100);
        let mut writer = writers.pop().expect("one writer");
        // Each round starts an epoch. After two, the reader examines the slot that is written next
        // before the one that was written last.
        for round in 0..2 {
            assert_eq!(tally.totals().total_requests, round);
            writer.count(b"u", 1.0).unwrap();
            writer.publish();
        }
        let writing = loom::thread::spawn(move || {
            for _ in 0..2 {
                writer.count(b"u", 1.0).unwrap();
                writer.publish();
            }
        });
        let totals = tally.totals();
        assert!((2..=4).contains(&totals.total_requests), "{totals:?}");
        assert_eq!(totals.sum, totals.total_requests as f64);
        writing.join().unwrap();
    });
}

#[test]
fn forgotten_users_are_taken_while_others_count() {
    model(2, || {
        let (tally, mut a, mut b) = two_shards();
        a.count(b"u", 1.0).unwrap();
        b.count(b"u", 1.0).unwrap();
        let resetting = loom::thread::spawn({
            let tally = Arc::clone(&tally);
            move || tally.reset()
        });
        let counting = loom::thread::spawn(move || {
            a.count(b"u", 1.0).unwrap();
            a.publish();
            a
        });
        let taken = b.take_forgotten().map_or(0, |forgotten| forgotten.users());
        resetting.join().unwrap();
        let mut a = counting.join().unwrap();
        let taken = taken + b.take_forgotten().map_or(0, |forgotten| forgotten.users());
        // The copy of `b`, and the shared one unless `a` dropped it first.
        assert!((1..=2).contains(&taken), "{taken}");
        a.count(b"u", 1.0).unwrap();
        a.publish();
        let totals = tally.totals();
        assert!((1..=2).contains(&totals.total_requests), "{totals:?}");
        assert_eq!(totals.unique_users, 1);
    });
}
