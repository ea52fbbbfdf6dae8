//! The counters through their public interface: models, splits across shards, limits, and threads
//! that read while others count.

use proptest::prelude::*;
use ringtally::tally::{
    Batch, Block, Cut, ExactSum, Finish, State, Tally, Totals, User, UserIds, UsersFull, Writer,
};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const SHARDS: usize = 8;

#[derive(Clone, Debug)]
enum Step {
    Count { shard: usize, user: u8, value: f64 },
    Publish { shard: usize },
    Reset,
    Read,
    Cut,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let value = prop_oneof![
        any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |value| value.is_finite()),
        Just(1.0),
        Just(-1.0),
        Just(f64::MAX),
        -1e3..1e3f64,
    ];
    let step = prop_oneof![
        20 => (0..SHARDS, 0..20u8, value)
            .prop_map(|(shard, user, value)| Step::Count { shard, user, value }),
        5 => (0..SHARDS).prop_map(|shard| Step::Publish { shard }),
        1 => Just(Step::Reset),
        3 => Just(Step::Read),
        3 => Just(Step::Cut),
    ];
    prop::collection::vec(step, 0..200)
}

/// Returns the totals of the obvious counter: a list of everything that was acknowledged.
fn totals_of(events: &[(u8, f64)]) -> Totals {
    let sum: ExactSum = events.iter().map(|(_, value)| *value).collect();
    Totals {
        total_requests: events.len() as u64,
        unique_users: events.iter().map(|(user, _)| user).collect::<HashSet<_>>().len() as u64,
        sum: sum.round(),
    }
}

/// The state that a schedule leads to, without its events.
#[derive(Debug, Default)]
struct Expected {
    generation: u64,
    /// The epoch of the last read or cut.
    epoch: u64,
    /// The users of this generation that were in a cut.
    cut: HashSet<u8>,
    /// The epoch of the last count of each shard whose events may be unpublished.
    counted: HashMap<usize, u64>,
}

impl Expected {
    /// Publishes everything that a shard has counted. The next cut has it, and the cut before
    /// does not.
    fn publish(&mut self, shard: usize, writer: &mut Writer) {
        writer.publish();
        if let Some(counted) = self.counted.remove(&shard) {
            assert!((counted + 1..=self.epoch + 1).contains(&writer.settles_at()));
        }
    }

    fn publish_all(&mut self, writers: &mut [Writer]) {
        writers.iter_mut().enumerate().for_each(|(shard, writer)| self.publish(shard, writer));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_schedule_over_eight_shards_counts_like_a_list(steps in steps()) {
        let (tally, mut writers, mut journal) = Tally::resume(SHARDS, 256, &State::default());
        let (mut events, mut expected) = (Vec::new(), Expected::default());
        for step in steps {
            match step {
                Step::Count { shard, user, value } => {
                    writers[shard].count(&[user], value).unwrap();
                    prop_assert_eq!(writers[shard].generation(), expected.generation);
                    expected.counted.insert(shard, expected.epoch);
                    events.push((user, value));
                }
                Step::Publish { shard } => expected.publish(shard, &mut writers[shard]),
                Step::Reset => {
                    prop_assert_eq!(tally.reset(), expected.epoch + 1);
                    expected.generation += 1;
                    prop_assert_eq!(tally.generation(), expected.generation);
                    expected.cut.clear();
                    events.clear();
                }
                Step::Read => {
                    expected.publish_all(&mut writers);
                    let (epoch, found) = tally.totals_with_epoch();
                    let list = totals_of(&events);
                    expected.epoch += 1;
                    prop_assert_eq!((epoch, found), (expected.epoch, list));
                    prop_assert_eq!(found.sum.to_bits(), list.sum.to_bits());
                    let avg = if events.is_empty() { 0.0 } else { list.sum / events.len() as f64 };
                    prop_assert_eq!(found.avg(), avg);
                    prop_assert_eq!(tally.next_epoch(), epoch + 1);
                }
                Step::Cut => {
                    expected.publish_all(&mut writers);
                    let Cut { epoch, state, new_users } = journal.cut();
                    expected.epoch += 1;
                    prop_assert_eq!(epoch, expected.epoch);
                    prop_assert_eq!(state.generation, expected.generation);
                    prop_assert_eq!(state.totals(), totals_of(&events));
                    let new = new_users.iter().map(|id| id[0]);
                    for user in new {
                        prop_assert!(expected.cut.insert(user), "{} is new again", user);
                    }
                    let all: HashSet<u8> = events.iter().map(|(user, _)| *user).collect();
                    prop_assert_eq!(&expected.cut, &all);
                }
            }
        }
    }
}

#[test]
fn every_user_on_every_shard_is_counted_once() {
    const USERS: u64 = 75_000;
    let (tally, writers) = Tally::new(SHARDS, 10_000_000);
    std::thread::scope(|scope| {
        for (shard, mut writer) in writers.into_iter().enumerate() {
            scope.spawn(move || {
                for i in 0..USERS {
                    let user = (i + shard as u64 * 9_000) % USERS;
                    writer.count(format!("user_{user}").as_bytes(), 0.5).unwrap();
                    if i % 7 == 0 {
                        writer.publish();
                    }
                }
                writer.publish();
            });
        }
    });
    let total_requests = USERS * SHARDS as u64;
    let sum = total_requests as f64 / 2.0;
    assert_eq!(tally.totals(), Totals { total_requests, unique_users: USERS, sum });
}

#[test]
fn the_user_over_the_limit_is_refused_and_known_users_go_on() {
    for limit in [1u64, 2, 100] {
        let (tally, mut writers) = Tally::new(2, limit);
        for i in 0..limit {
            writers[(i % 2) as usize].count(format!("{i}").as_bytes(), 1.0).unwrap();
        }
        for writer in &mut writers {
            assert_eq!(writer.count(b"one more", 1.0), Err(UsersFull));
            writer.count(b"0", 1.0).unwrap();
            writer.publish();
        }
        let totals = tally.totals();
        assert_eq!((totals.total_requests, totals.unique_users), (limit + 2, limit));
        tally.reset();
        writers[1].count(b"one more", 1.0).unwrap();
        writers[1].publish();
        assert_eq!(tally.totals(), Totals { total_requests: 1, unique_users: 1, sum: 1.0 });
    }
}

#[test]
fn a_shard_that_sleeps_through_a_reset_contributes_nothing() {
    let (tally, mut writers) = Tally::new(2, 100);
    for writer in &mut writers {
        writer.count(b"u", 1e300).unwrap();
        writer.publish();
    }
    tally.reset();
    assert_eq!(tally.totals(), Totals { total_requests: 0, unique_users: 0, sum: 0.0 });
    // This value has another magnitude, so that leftovers of the sum would show.
    writers[0].count(b"u", 5e-324).unwrap();
    writers[0].count(b"v", 1.0).unwrap();
    writers[0].publish();
    assert_eq!(tally.totals(), Totals { total_requests: 2, unique_users: 2, sum: 1.0 });
}

#[test]
fn ids_are_held_up_to_the_limit_across_resets() {
    const USERS_MAX: u64 = 1000;
    let (tally, mut writers) = Tally::new(4, USERS_MAX);
    for filled in 0..8 {
        let shard = filled % 4;
        for user in 0..USERS_MAX {
            writers[shard].count(format!("{filled}-{user}").as_bytes(), 1.0).unwrap();
        }
        assert_eq!(writers[shard].count(b"one more", 1.0), Err(UsersFull));
        // Before a reset nothing is stale, and after it everything is.
        let mut stale = || -> Vec<usize> {
            let users = |writer: &mut Writer| writer.take_stale().map_or(0, |taken| taken.users());
            writers.iter_mut().map(users).collect()
        };
        assert_eq!(stale(), [0; 4]);
        tally.reset();
        let taken = stale();
        assert_eq!(
            taken.iter().sum::<usize>() as u64,
            2 * USERS_MAX,
            "its copy and the shared one"
        );
        assert!(taken[shard] as u64 >= USERS_MAX, "{taken:?}");
        assert_eq!(stale(), [0; 4]);
    }
}

/// Counts on every shard while readers check all totals that they see.
fn read_while_counting(
    events: u64,
    user: impl Fn(usize, u64) -> String + Sync,
    check: impl Fn(&Totals) + Sync,
) {
    let (tally, writers) = Tally::new(SHARDS, 10_000_000);
    let published = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = 0;
                while !done.load(Ordering::Acquire) {
                    let before = published.load(Ordering::Acquire);
                    let totals = tally.totals();
                    check(&totals);
                    assert!(totals.total_requests >= last, "totals went down");
                    assert!(totals.total_requests >= before, "an acknowledged event is missing");
                    last = totals.total_requests;
                }
            });
        }
        let counting: Vec<_> = writers
            .into_iter()
            .enumerate()
            .map(|(shard, mut writer)| {
                let (user, published) = (&user, &published);
                scope.spawn(move || {
                    for batch in 0..events / 5 {
                        for i in 0..5 {
                            writer.count(user(shard, batch * 5 + i).as_bytes(), 1.0).unwrap();
                        }
                        writer.publish();
                        published.fetch_add(5, Ordering::Release);
                    }
                })
            })
            .collect();
        counting.into_iter().for_each(|thread| thread.join().unwrap());
        done.store(true, Ordering::Release);
    });
    assert_eq!(tally.totals().total_requests, events * SHARDS as u64);
}

#[test]
fn readers_never_see_torn_totals() {
    read_while_counting(
        40_000,
        |_, i| format!("user_{}", i % 100),
        |totals| {
            assert_eq!(totals.sum, totals.total_requests as f64);
            assert!(totals.unique_users <= 100);
        },
    );
}

#[test]
fn readers_see_every_new_user_with_its_event() {
    read_while_counting(
        10_000,
        |shard, i| format!("user_{shard}_{i}"),
        |totals| assert_eq!(totals.unique_users, totals.total_requests),
    );
}

#[test]
fn after_a_reset_the_totals_are_exactly_what_follows() {
    let (tally, writers) = Tally::new(SHARDS, 10_000_000);
    let resets = Arc::new(AtomicU64::new(0));
    std::thread::scope(|scope| {
        let counting: Vec<_> = writers
            .into_iter()
            .map(|mut writer| {
                let resets = Arc::clone(&resets);
                scope.spawn(move || {
                    // Events that this thread counted since it saw the last reset return, and
                    // events that may fall on either side of that reset.
                    let (mut since, mut unsure, mut seen) = (0u64, 0u64, 0);
                    for i in 0..50_000u64 {
                        let before = resets.load(Ordering::Acquire);
                        writer.count(format!("{}", i % 50).as_bytes(), 1.0).unwrap();
                        writer.publish();
                        let after = resets.load(Ordering::Acquire);
                        // An odd number means that a reset is in progress, so an event that is
                        // counted now may come after it.
                        let reset = after.div_ceil(2);
                        if reset != seen {
                            (since, unsure, seen) = (0, 0, reset);
                        }
                        match before == after && before.is_multiple_of(2) {
                            true => since += 1,
                            false => unsure += 1,
                        }
                    }
                    (since, unsure, seen, writer)
                })
            })
            .collect();
        for _ in 0..200 {
            resets.fetch_add(1, Ordering::AcqRel);
            tally.reset();
            resets.fetch_add(1, Ordering::AcqRel);
            std::thread::yield_now();
        }
        let ends: Vec<_> = counting.into_iter().map(|thread| thread.join().unwrap()).collect();
        let last = resets.load(Ordering::Acquire).div_ceil(2);
        let current = ends.iter().filter(|(_, _, seen, _)| *seen == last);
        let (since, unsure) =
            current.fold((0, 0), |(s, u), (since, unsure, ..)| (s + since, u + unsure));
        let totals = tally.totals();
        assert!(
            (since..=since + unsure).contains(&totals.total_requests),
            "{totals:?} {since} {unsure}"
        );
        assert_eq!(totals.sum, totals.total_requests as f64);
    });
}

/// Returns the new users of a cut, sorted.
fn ids(cut: &Cut) -> Vec<String> {
    let mut ids: Vec<_> =
        cut.new_users.iter().map(|id| String::from_utf8(id.to_vec()).unwrap()).collect();
    ids.sort();
    ids
}

#[test]
fn each_user_is_new_in_one_cut() {
    let (_tally, mut writers, mut journal) = Tally::resume(2, 10, &State::default());
    writers[0].count(b"a", 1.0).unwrap();
    writers[1].count(b"b", 1.0).unwrap();
    writers[1].count(b"a", 1.0).unwrap();
    let cut = journal.cut();
    assert_eq!((cut.state.events, cut.state.users), (2, 2), "unpublished events are not in it");
    assert_eq!(ids(&cut), ["a", "b"]);
    writers[0].count(b"c", 0.5).unwrap();
    writers.iter_mut().for_each(Writer::publish);
    let cut = journal.cut();
    assert_eq!((cut.state.events, cut.state.users, ids(&cut)), (4, 3, vec!["c".to_owned()]));
    assert!(journal.cut().new_users.is_empty());
}

#[test]
fn a_cut_has_what_was_published_before_it() {
    let (tally, mut writers, mut journal) = Tally::resume(1, 10, &State::default());
    let before = journal.cut().epoch;
    assert!(before < writers[0].settles_at() + 1);
    writers[0].count(b"a", 1.0).unwrap();
    writers[0].publish();
    assert!(writers[0].settles_at() > before, "the cut before does not have it");
    assert!(journal.cut().epoch >= writers[0].settles_at());
    let reset_at = tally.reset();
    let cut = journal.cut();
    assert!(cut.epoch >= reset_at);
    assert_eq!((cut.state.generation, cut.state.events), (1, 0));
}

#[test]
fn a_reset_forgets_the_users_that_no_cut_had() {
    let (tally, mut writers, mut journal) = Tally::resume(2, 10, &State::default());
    writers[0].count(b"a", 1.0).unwrap();
    writers[1].count(b"b", 1.0).unwrap();
    tally.reset();
    writers[1].count(b"b", 1.0).unwrap();
    let cut = journal.cut();
    assert_eq!((cut.state.generation, cut.state.users, ids(&cut)), (1, 1, vec!["b".to_owned()]));
}

#[test]
fn the_reset_of_another_server_begins_a_generation() {
    let state = State { generation: 7, ..State::default() };
    let (tally, _, journal) = Tally::resume(1, 10, &state);
    assert_eq!((journal.reset(), tally.generation()), (8, 8));
    assert_eq!((journal.reset(), tally.generation()), (9, 9));
}

#[test]
fn counting_goes_on_from_a_state() {
    let sum = [1e300, 0.1, -1e300].into_iter().collect();
    let state = State { generation: 7, events: 5, users: 2, sum };
    let (tally, mut writers, mut journal) = Tally::resume(2, 3, &state);
    let mut held = UserIds::default();
    held.push(b"a");
    held.push(b"b");
    assert_eq!(tally.restore_users(&held), 2);
    assert_eq!(tally.restore_users(&held), 0, "they are there");
    assert_eq!(journal.cut().state, state);
    writers[1].count(b"a", 0.25).unwrap();
    writers[1].count(b"c", 0.25).unwrap();
    writers[0].count(b"d", 0.25).unwrap_err();
    writers[1].publish();
    let cut = journal.cut();
    assert_eq!(ids(&cut), ["c"]);
    assert_eq!((cut.state.events, cut.state.users), (7, 3));
    assert_eq!(tally.totals().sum, 0.6);
    tally.reset();
    assert_eq!(journal.cut().state, State { generation: 8, ..State::default() });
}

#[test]
fn what_a_reset_drops_waits_for_the_cut_that_has_the_reset() {
    let (tally, mut writers, mut journal) = Tally::resume(2, 1, &State::default());
    writers[0].count(b"a", 1.0).unwrap();
    writers[0].publish();
    let before = journal.cut().epoch;
    // This event is counted but not published when the reset comes.
    writers[0].count(b"a", 1.0).unwrap();
    let reset_at = tally.reset();
    writers[1].count(b"b", 1.0).unwrap();
    assert_eq!(writers[0].count(b"c", 1.0), Err(UsersFull));
    writers[0].publish();
    assert!(writers[0].settles_at() >= reset_at, "a cut before the reset does not settle it");
    assert!(writers[0].settles_at() > before);
    let cut = journal.cut();
    assert_eq!((cut.state.generation, cut.state.events), (1, 1), "only what came after the reset");
}

#[test]
fn a_block_adds_what_its_events_would_add_one_by_one() {
    let (tally, mut writers, _) = Tally::resume(1, 1000, &State::default());
    let writer = &mut writers[0];
    for user in 0..100usize {
        writer.count(&user.to_le_bytes(), 0.5).unwrap();
    }
    let mut counted = 100;
    for events in [0, 1, Block::<usize>::EVENTS_MAX - 1, Block::<usize>::EVENTS_MAX] {
        // Two thirds of the users of a full block are unknown.
        let users: Vec<[u8; 8]> = (0..events).map(|n| (5 * n).to_le_bytes()).collect();
        let [mut together, mut singly] = [0, 1].map(|_| writer.begin_batch());
        let (mut block, mut unseen) = (Block::default(), vec![7777]);
        for (place, user) in users.iter().enumerate() {
            assert!(!block.is_full(), "{place} events");
            block.push(user, 0.5, place);
        }
        assert_eq!(block.is_full(), events == Block::<usize>::EVENTS_MAX);
        let mut expected = vec![7777];
        for (place, user) in users.iter().enumerate() {
            if !writer.add_to_batch(&mut singly, user, 0.5) {
                expected.push(place);
            }
        }
        // The second time, the block is empty.
        for _ in 0..2 {
            writer.add_block_to_batch(&mut together, &mut block, &mut unseen);
            assert_eq!((&unseen, together.events()), (&expected, events as u64));
            assert!(!block.is_full());
        }
        assert_eq!(singly.events(), events as u64);
        assert!([together, singly].map(|batch| writer.finish_batch(batch)) == [Finish::Counted; 2]);
        writer.publish();
        counted += 2 * events as u64;
        let totals =
            Totals { total_requests: counted, unique_users: 100, sum: counted as f64 / 2.0 };
        assert_eq!(tally.totals(), totals, "{events} events");
    }
}

/// Another batch would not find the users that are only claimed.
#[test]
fn one_batch_at_a_time_claims_users_until_it_is_finished_or_dropped() {
    let (tally, mut writers, _) = Tally::resume(2, 1000, &State::default());
    let mut batches: Vec<_> = writers.iter_mut().map(Writer::begin_batch).collect();
    let may = |writers: &mut [Writer], batches: &mut [Batch], shard: usize| {
        writers[shard].may_claim(&mut batches[shard])
    };
    assert!(may(&mut writers, &mut batches, 0) && may(&mut writers, &mut batches, 0));
    assert!(!may(&mut writers, &mut batches, 1));
    // Dropped, with a claim that then counts for nothing.
    writers[0].claim(&mut batches[0], b"u", 0);
    batches[0] = writers[0].begin_batch();
    assert!(may(&mut writers, &mut batches, 1) && !may(&mut writers, &mut batches, 0));
    assert!(!writers[1].add_to_batch(&mut batches[1], b"u", 2.0));
    writers[1].claim(&mut batches[1], b"u", 0);
    assert_eq!(writers[1].finish_batch(batches.pop().unwrap()), Finish::Counted);
    assert!(may(&mut writers, &mut batches, 0), "the other batch is finished");
    writers[1].publish();
    let totals = Totals { total_requests: 1, unique_users: 1, sum: 2.0 };
    assert_eq!(tally.totals(), totals);
}

#[test]
fn a_batch_is_of_the_generation_in_which_it_began() {
    let (tally, mut writers, _) = Tally::resume(1, 1000, &State::default());
    let [early, late] = [0, 1].map(|_| {
        let batch = writers[0].begin_batch();
        tally.reset();
        batch
    });
    assert_eq!((early.generation(), late.generation()), (0, 1));
    let settles_at = tally.next_epoch();
    let writer = &mut writers[0];
    for batch in [early, late] {
        assert_eq!(writer.finish_batch(batch), Finish::BeforeReset { settles_at });
    }
    let batch = writer.begin_batch();
    assert_eq!((batch.generation(), writer.finish_batch(batch)), (2, Finish::Counted));
}

/// Begins a batch of these users, whose lines are 10, 20, and so on.
fn claim_all(writer: &mut Writer, users: &[&str]) -> Batch {
    let mut batch = writer.begin_batch();
    assert!(writer.may_claim(&mut batch));
    for (user, line) in users.iter().zip((10..).step_by(10)) {
        // A user that is claimed twice is claimed once.
        for _ in 0..2 {
            assert!(!writer.add_to_batch(&mut batch, user.as_bytes(), 1.0));
            writer.claim(&mut batch, user.as_bytes(), line);
        }
    }
    batch
}

#[test]
fn a_user_that_a_batch_loses_to_another_event_is_counted_once() {
    let (tally, mut writers, mut journal) = Tally::resume(2, 1000, &State::default());
    for (round, lost) in [None, Some("b")].into_iter().enumerate() {
        let users = ["a", "b", "c"].map(|user| format!("{user}{round}"));
        let batch = claim_all(&mut writers[0], &users.each_ref().map(String::as_str));
        let before = tally.totals();
        if let Some(user) = lost {
            writers[1].count(format!("{user}{round}").as_bytes(), 1.0).unwrap();
        }
        assert_eq!(writers[0].finish_batch(batch), Finish::Counted);
        writers[1].publish();
        let (after, events) = (tally.totals(), 6 + u64::from(lost.is_some()));
        assert_eq!(after.total_requests, before.total_requests + events);
        assert_eq!(after.unique_users, before.unique_users + 3, "{lost:?} was lost");
        let mut new: Vec<_> = journal.cut().new_users.iter().map(<[u8]>::to_vec).collect();
        new.sort();
        assert_eq!(new, users.map(String::into_bytes));
    }
}

#[test]
fn a_batch_without_room_names_the_line_of_the_first_user_that_does_not_fit() {
    for (users_max, lost, line) in [
        (0, None, 10),
        (1, None, 20),
        (3, None, 40),
        // This user takes a place, and does not need one anymore.
        (1, Some("b"), 10),
        (2, Some("b"), 30),
        (3, Some("b"), 40),
        (3, Some("d"), 30),
    ] {
        let (tally, mut writers) = Tally::new(2, users_max);
        let batch = claim_all(&mut writers[0], &["a", "b", "c", "d"]);
        if let Some(user) = lost {
            writers[1].count(user.as_bytes(), 1.0).unwrap();
        }
        let end = writers[0].finish_batch(batch);
        assert_eq!(end, Finish::UsersFull { line }, "{users_max} users, {lost:?} was lost");
        writers.iter_mut().for_each(Writer::publish);
        let held = u64::from(lost.is_some());
        assert_eq!((tally.totals().total_requests, tally.totals().unique_users), (held, held));
    }
}

#[test]
fn users_from_before_a_reset_are_taken_once_and_only_if_there_are_any() {
    let (tally, mut writers) = Tally::new(1, 1000);
    let writer = &mut writers[0];
    assert!(writer.take_stale().is_none());
    tally.reset();
    assert!(writer.take_stale().is_none(), "there were no users");
    writer.count(b"u", 1.0).unwrap();
    tally.reset();
    assert!(writer.take_stale().is_some());
    assert!(writer.take_stale().is_none());
}

#[test]
fn users_are_forgotten_once_per_reset_and_only_those_from_before_it() {
    let (tally, mut writers) = Tally::new(2, 1000);
    for resets in 0..3 {
        // One user in a batch, and one in an event.
        let batch = claim_all(&mut writers[1], &["a"]);
        assert_eq!(writers[1].finish_batch(batch), Finish::Counted);
        assert_eq!(writers[1].count(b"b", 1.0), Ok(User::Unseen));
        // The other shard hears of the reset only now.
        assert_eq!(writers[0].take_stale().is_some(), resets > 0);
        for user in [b"a", b"b"] {
            assert_eq!(writers[0].count(user, 1.0), Ok(User::Unseen));
            assert_eq!(writers[0].count(user, 1.0), Ok(User::Seen));
        }
        assert_eq!(writers[1].count(b"b", 1.0), Ok(User::Seen));
        writers.iter_mut().for_each(Writer::publish);
        assert_eq!(tally.totals().unique_users, 2, "after {resets} resets");
        tally.reset();
    }
}

#[test]
fn the_users_of_dropped_batches_do_not_pile_up() {
    let (tally, mut writers) = Tally::new(1, 1000);
    for number in 0..20_000 {
        drop(claim_all(&mut writers[0], &[&number.to_string()]));
    }
    tally.reset();
    let users = writers[0].take_stale().map_or(0, |stale| stale.users());
    assert!(users < 5_000, "{users}");
}

/// The users of a batch are moved to the known ones when later batches claim others.
#[test]
fn many_users_are_new_in_one_batch_only() {
    let (tally, mut writers) = Tally::new(2, 100_000);
    // Every other id is long.
    let id = |number: usize| format!("{number:0width$}", width = 40 * (number % 2));
    let mut users = (0..40_000).map(id).collect::<Vec<_>>();
    let others = users.split_off(20_000);
    let mut expected = 0;
    for (shard, users, held) in
        [(0, &users, 20_000), (1, &others, 40_000), (1, &users, 40_000), (0, &others, 40_000)]
    {
        let writer = &mut writers[shard];
        let mut batch = writer.begin_batch();
        assert!(writer.may_claim(&mut batch));
        for (user, line) in [&users[..], users].concat().iter().zip(1..) {
            if !writer.add_to_batch(&mut batch, user.as_bytes(), 1.0) {
                writer.claim(&mut batch, user.as_bytes(), line);
            }
        }
        assert_eq!(writer.finish_batch(batch), Finish::Counted);
        writer.publish();
        expected += 40_000;
        assert_eq!((tally.totals().total_requests, tally.totals().unique_users), (expected, held));
    }
}
