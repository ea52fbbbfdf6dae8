//! The counters under loom: the same source as `tally`, compiled against loom's atomics and locks,
//! and run in every interleaving (up to a bound on preemptions) with every value that the memory
//! model lets a load return.

#[allow(dead_code, unused_imports, unreachable_pub, reason = "the model uses only a part of it")]
#[path = "../src/tally/mod.rs"]
mod tally;

#[allow(dead_code, unreachable_pub, reason = "the model uses only a part of it")]
#[path = "../src/store/settle.rs"]
mod settle;

mod primitives {
    pub(crate) use foldhash::quality::FixedState as RandomState;
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
    pub(crate) use loom::sync::{Mutex, MutexGuard};
}

use primitives::{AtomicU64, Ordering};
use settle::{Settlement, Waker};
use std::sync::Arc;
use tally::{Finish, State, Tally, Writer};

fn model(preemptions: usize, check: impl Fn() + Sync + Send + 'static) {
    builder(preemptions).check(check);
}

fn builder(preemptions: usize) -> loom::model::Builder {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder
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
        // The event in flight fell on either side. The event that was sent after the reset is there.
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

/// Two publications that overlap a read can overwrite the slot with the last publication from before the read, while the reader
/// examines the slots one after the other. All interleavings take half a minute: `.ci/run` sets `LOOM_MAX_PERMUTATIONS` to more
/// than there are, and without it a part of them is run.
#[test]
fn a_read_has_every_earlier_event_although_two_publications_overlap_it() {
    let mut builder = builder(3);
    // Loom checks the number only after each interval.
    builder.checkpoint_interval = 5000;
    builder.max_permutations = builder.max_permutations.or(Some(5000));
    builder.check(|| {
        let (tally, mut writers) = Tally::new(1, 100);
        let mut writer = writers.pop().expect("one writer");
        // Each round starts an epoch. After two rounds, the reader examines the next slot to be written before the slot that
        // was written last.
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
        let taken = b.take_stale().map_or(0, |stale| stale.users());
        resetting.join().unwrap();
        let mut a = counting.join().unwrap();
        let taken = taken + b.take_stale().map_or(0, |stale| stale.users());
        // The copy of `b`, and the shared copy unless `a` dropped it first.
        assert!((1..=2).contains(&taken), "{taken}");
        a.count(b"u", 1.0).unwrap();
        a.publish();
        let totals = tally.totals();
        assert!((1..=2).contains(&totals.total_requests), "{totals:?}");
        assert_eq!(totals.unique_users, 1);
    });
}

/// Counts a batch with an event of each of these users, who may be new.
fn count_batch(writer: &mut Writer, users: &[&str]) -> Finish {
    let mut batch = writer.begin_batch();
    let is_unseen = |user: &&&str| !writer.add_to_batch(&mut batch, user.as_bytes(), 1.0);
    let unseen: Vec<_> = users.iter().filter(is_unseen).collect();
    if !unseen.is_empty() {
        while !writer.may_claim(&mut batch) {
            loom::thread::yield_now();
        }
        unseen.into_iter().for_each(|user| writer.claim(&mut batch, user.as_bytes(), 1));
    }
    let finish = writer.finish_batch(batch);
    writer.publish();
    finish
}

#[test]
fn a_batch_is_seen_whole_with_its_users_and_with_those_it_lost() {
    model(2, || {
        let (tally, mut a, mut b) = two_shards();
        let batch = loom::thread::spawn(move || {
            assert_eq!(count_batch(&mut a, &["u", "v"]), Finish::Counted);
        });
        let single = loom::thread::spawn(move || {
            b.count(b"u", 1.0).unwrap();
            b.publish();
        });
        let totals = tally.totals();
        assert_eq!(totals.unique_users, totals.total_requests.min(2), "{totals:?}");
        batch.join().unwrap();
        single.join().unwrap();
        let totals = tally.totals();
        assert_eq!((totals.total_requests, totals.unique_users), (3, 2));
    });
}

#[test]
fn batches_with_the_same_new_users_count_them_once() {
    model(2, || {
        let (tally, mut a, mut b) = two_shards();
        let one = loom::thread::spawn(move || {
            assert_eq!(count_batch(&mut a, &["u", "v"]), Finish::Counted);
        });
        assert_eq!(count_batch(&mut b, &["u"]), Finish::Counted);
        let totals = tally.totals();
        assert_eq!(totals.unique_users, if totals.total_requests == 1 { 1 } else { 2 });
        one.join().unwrap();
        let totals = tally.totals();
        assert_eq!((totals.total_requests, totals.unique_users), (3, 2));
    });
}

#[test]
fn a_batch_falls_wholly_before_or_after_a_reset() {
    model(2, || {
        let (tally, mut a, mut b) = two_shards();
        let batch = loom::thread::spawn(move || count_batch(&mut a, &["u", "v"]));
        let resetting = loom::thread::spawn({
            let tally = Arc::clone(&tally);
            move || {
                tally.reset();
                b.count(b"u", 1.0).unwrap();
                b.publish();
            }
        });
        let finish = batch.join().unwrap();
        resetting.join().unwrap();
        let totals = tally.totals();
        let (events, users) = (totals.total_requests, totals.unique_users);
        match finish {
            Finish::BeforeReset { .. } => assert_eq!((events, users), (1, 1)),
            _ => assert!((events, users) == (1, 1) || (events, users) == (3, 2), "{totals:?}"),
        }
    });
}

#[test]
fn a_dropped_batch_leaves_no_user_behind() {
    model(2, || {
        let (tally, mut a, mut b) = two_shards();
        let dropping = loom::thread::spawn(move || {
            let mut batch = a.begin_batch();
            assert!(a.may_claim(&mut batch));
            a.claim(&mut batch, b"u", 1);
        });
        b.count(b"u", 1.0).unwrap();
        b.publish();
        let totals = tally.totals();
        assert_eq!((totals.total_requests, totals.unique_users), (1, 1));
        dropping.join().unwrap();
        assert_eq!(count_batch(&mut b, &["u", "v"]), Finish::Counted);
        let totals = tally.totals();
        assert_eq!((totals.total_requests, totals.unique_users), (3, 2));
    });
}

#[test]
fn a_cut_has_a_batch_whole_or_not_at_all_and_all_of_its_ids() {
    model(2, || {
        let (_, writers, mut journal) = Tally::resume(2, 100, &State::default());
        let [mut a, mut b]: [Writer; 2] = writers.try_into().expect("two writers");
        let batch = loom::thread::spawn(move || count_batch(&mut a, &["u", "v"]));
        let single = loom::thread::spawn(move || {
            b.count(b"v", 1.0).unwrap();
            b.publish();
        });
        let before = journal.cut();
        batch.join().unwrap();
        single.join().unwrap();
        let after = journal.cut();
        assert_eq!(before.state.users, before.state.events.min(2));
        assert_eq!(before.new_users.len(), before.state.users);
        assert_eq!((after.state.events, after.state.users), (3, 2));
        let mut ids: Vec<&[u8]> = before.new_users.iter().chain(after.new_users.iter()).collect();
        ids.sort_unstable();
        assert_eq!(ids, [b"u", b"v"]);
    });
}

/// A wake-up that is kept until it is read, like an eventfd.
#[derive(Default)]
struct Wakeup {
    is_pending: primitives::Mutex<bool>,
    changed: loom::sync::Condvar,
}

impl Wakeup {
    fn wake(&self) {
        *self.is_pending.lock().expect("nobody panics") = true;
        self.changed.notify_one();
    }

    /// Waits for the wake-up and clears it.
    fn wait(&self) {
        let mut is_pending = self.is_pending.lock().expect("nobody panics");
        while !*is_pending {
            is_pending = self.changed.wait(is_pending).expect("nobody panics");
        }
        *is_pending = false;
    }
}

#[test]
fn a_cut_has_the_id_of_every_user_that_it_counts() {
    model(2, || {
        let (_, writers, mut journal) = Tally::resume(2, 100, &State::default());
        let [mut a, mut b]: [Writer; 2] = writers.try_into().expect("two writers");
        let first = loom::thread::spawn(move || {
            a.count(b"u", 1.0).unwrap();
            a.publish();
        });
        let second = loom::thread::spawn(move || {
            b.count(b"u", 1.0).unwrap();
            b.publish();
        });
        let before = journal.cut();
        first.join().unwrap();
        second.join().unwrap();
        let after = journal.cut();
        assert_eq!(before.new_users.len(), before.state.users);
        assert_eq!(before.new_users.len() + after.new_users.len(), after.state.users);
        assert_eq!((after.state.events, after.state.users), (2, 1));
    });
}

#[test]
fn no_response_leaves_early_and_none_waits_for_ever() {
    // The shard's turn is to count, publish, note what waits, make a request, and wait until it is settled. The committer's
    // turn is to wait for a request, cut, make durable, and settle.
    model(2, || {
        let (_, mut writers, mut journal) = Tally::resume(1, 100, &State::default());
        let mut writer = writers.remove(0);
        let settlement = Arc::new(Settlement::new(1, State::default().totals(), false));
        let wakeups = Arc::new((Wakeup::default(), Wakeup::default()));
        // The number of durable events.
        let durable = Arc::new(AtomicU64::new(0));
        const EVENTS: u64 = 2;
        let shard = loom::thread::spawn({
            let (settlement, wakeups, durable) =
                (Arc::clone(&settlement), Arc::clone(&wakeups), Arc::clone(&durable));
            move || {
                for event in 1..=EVENTS {
                    writer.count(b"u", 1.0).unwrap();
                    writer.publish();
                    let epoch = writer.settles_at();
                    let is_settled = settlement.request(0, epoch, |waker| match waker {
                        Waker::Committer => wakeups.0.wake(),
                        Waker::Shard(_) => unreachable!("a shard wakes no shard"),
                    });
                    while !is_settled && settlement.settled() < epoch {
                        wakeups.1.wait();
                    }
                    assert!(durable.load(Ordering::Acquire) >= event, "a response left early");
                    assert!(settlement.totals().total_requests >= event, "and may be shown");
                }
            }
        });
        let mut committed = 0;
        while committed < EVENTS {
            while !settlement.is_requested() {
                wakeups.0.wait();
            }
            let cut = journal.cut();
            committed = cut.state.events;
            durable.store(committed, Ordering::Release);
            settlement.settle(cut.epoch, Some(cut.state.totals()), |waker| match waker {
                Waker::Committer => unreachable!("the committer does not wake itself"),
                Waker::Shard(shard) => {
                    assert_eq!(shard, 0);
                    wakeups.1.wake();
                }
            });
        }
        shard.join().unwrap();
    });
}

#[test]
fn a_cut_that_another_shard_has_asked_for_does_not_settle_what_is_published_after_it() {
    model(2, || {
        let (_, mut writers, mut journal) = Tally::resume(1, 100, &State::default());
        let mut writer = writers.remove(0);
        let settlement = Arc::new(Settlement::new(1, State::default().totals(), false));
        let durable = Arc::new(AtomicU64::new(0));
        let shard = loom::thread::spawn({
            let (settlement, durable) = (Arc::clone(&settlement), Arc::clone(&durable));
            move || {
                writer.count(b"u", 1.0).unwrap();
                writer.publish();
                if settlement.request(0, writer.settles_at(), |_| ()) {
                    assert_eq!(durable.load(Ordering::Acquire), 1, "a response left early");
                }
            }
        });
        // The committer is at work because of another shard.
        for _ in 0..2 {
            let cut = journal.cut();
            durable.store(cut.state.events, Ordering::Release);
            settlement.settle(cut.epoch, Some(cut.state.totals()), |_| ());
        }
        shard.join().unwrap();
    });
}

#[test]
fn around_the_reset_of_another_server_a_response_leaves_only_if_its_event_counts() {
    // The shard counts one event at any time around the reset. The committer's first commit either meets the reset or comes
    // before it. An event that the first commit has counted may be void nevertheless: its outcome is then unknown, and it must
    // not count after the reset.
    for meets_reset in [true, false] {
        model(2, move || {
            let (_, mut writers, mut journal) = Tally::resume(1, 100, &State::default());
            let mut writer = writers.remove(0);
            let settlement = Arc::new(Settlement::new(1, State::default().totals(), true));
            let wakeups = Arc::new((Wakeup::default(), Wakeup::default()));
            // The events that the group counted before it was reset and after that, and whether the shard is done.
            let counted = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
            let done = Arc::new(AtomicU64::new(0));
            let shard = loom::thread::spawn({
                let (settlement, wakeups) = (Arc::clone(&settlement), Arc::clone(&wakeups));
                let (counted, done) = (Arc::clone(&counted), Arc::clone(&done));
                move || {
                    writer.count(b"u", 1.0).unwrap();
                    let generation = writer.generation();
                    writer.publish();
                    let epoch = writer.settles_at();
                    let is_settled = settlement.request(0, epoch, |_| wakeups.0.wake());
                    while !is_settled && settlement.settled() < epoch {
                        wakeups.1.wait();
                    }
                    let is_void = settlement.is_void(epoch, generation);
                    let [before, after] = [0, 1].map(|at| counted[at].load(Ordering::Acquire));
                    match is_void {
                        true => assert_eq!(after, 0, "a void event of generation {generation}"),
                        false => assert_eq!(before + after, 1, "event of generation {generation}"),
                    }
                    done.store(1, Ordering::Release);
                    wakeups.0.wake();
                }
            });
            let commit = |journal: &mut tally::Journal| {
                let cut = journal.cut();
                let is_after = usize::from(cut.state.generation > 0);
                counted[is_after].fetch_max(cut.state.events, Ordering::AcqRel);
                settlement.settle(cut.epoch, None, |_| wakeups.1.wake());
            };
            if !meets_reset {
                commit(&mut journal);
            }
            journal.cut();
            settlement.void_before(journal.reset());
            commit(&mut journal);
            while done.load(Ordering::Acquire) == 0 {
                match settlement.is_requested() {
                    true => commit(&mut journal),
                    false => wakeups.0.wait(),
                }
            }
            shard.join().unwrap();
        });
    }
}

#[test]
fn totals_that_were_read_for_a_request_have_what_came_before_it() {
    model(2, || {
        let (tally, mut writers, mut journal) = Tally::resume(1, 100, &State::default());
        let mut writer = writers.remove(0);
        let settlement = Arc::new(Settlement::new(1, State::default().totals(), true));
        let wakeups = Arc::new((Wakeup::default(), Wakeup::default()));
        // The number of durable events at this server and at another one.
        let durable = Arc::new(AtomicU64::new(0));
        let shard = loom::thread::spawn({
            let (settlement, wakeups, durable) =
                (Arc::clone(&settlement), Arc::clone(&wakeups), Arc::clone(&durable));
            move || {
                writer.count(b"u", 1.0).unwrap();
                writer.publish();
                // Another server acknowledges an event.
                durable.fetch_add(1, Ordering::AcqRel);
                let epoch = tally.next_epoch();
                assert!(epoch >= writer.settles_at());
                let is_read = settlement.request_read(0, epoch, |_| wakeups.0.wake());
                while !is_read && settlement.read() < epoch {
                    wakeups.1.wait();
                }
                assert_eq!(settlement.totals().total_requests, 2);
            }
        });
        let (mut committed, mut rounds) = (0, 0);
        // The first round may begin before the request.
        while settlement.read() == 0 || settlement.totals().total_requests < 2 {
            while rounds > 0 && !settlement.is_requested() {
                wakeups.0.wait();
            }
            rounds += 1;
            let cut = journal.cut();
            durable.fetch_add(cut.state.events - committed, Ordering::AcqRel);
            committed = cut.state.events;
            let total_requests = durable.load(Ordering::Acquire);
            let totals = tally::Totals { total_requests, ..State::default().totals() };
            let is_read = settlement.is_read_requested();
            settlement.settle(cut.epoch, is_read.then_some(totals), |_| wakeups.1.wake());
        }
        shard.join().unwrap();
    });
}

#[test]
fn two_shards_that_ask_for_the_same_epoch_are_both_woken() {
    model(2, || {
        let settlement = Arc::new(Settlement::new(2, State::default().totals(), false));
        let wakeups: Arc<[Wakeup; 3]> = Arc::default();
        let shards: Vec<_> = (0..2)
            .map(|shard| {
                let (settlement, wakeups) = (Arc::clone(&settlement), Arc::clone(&wakeups));
                loom::thread::spawn(move || {
                    let is_settled = settlement.request(shard, 1, |_| wakeups[2].wake());
                    while !is_settled && settlement.settled() < 1 {
                        wakeups[shard].wait();
                    }
                })
            })
            .collect();
        // The first shard that asked woke the committer. If both found it settled, neither did.
        wakeups[2].wait();
        settlement.settle(1, Some(State::default().totals()), |waker| match waker {
            Waker::Committer => unreachable!("the committer does not wake itself"),
            Waker::Shard(shard) => wakeups[shard].wake(),
        });
        shards.into_iter().for_each(|shard| shard.join().unwrap());
    });
}

#[test]
fn what_was_late_is_late_until_it_is_settled() {
    model(0, || {
        let settlement = Settlement::new(1, State::default().totals(), false);
        assert!(!settlement.is_late());
        settlement.note_late(2);
        assert!(settlement.is_late());
        settlement.settle(1, Some(State::default().totals()), |_| ());
        assert!(settlement.is_late());
        settlement.settle(2, Some(State::default().totals()), |_| ());
        assert!(!settlement.is_late());
    });
}
