//! Sets of events and of users, in memory that does not grow with the length of a run.
//!
//! Events that a server did not count are the exception, unless something is very wrong: then there can be a trillion
//! of them. A set keeps only what a verdict needs: the number of events, the sum of their values, and the number of
//! events of each user.

use super::part::Part;
use super::workload::{Rest, Share, VALUE_IN_HALVES_MAX, Workload};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// The most users whose events a set counts separately. Beyond this limit, a set knows the number of its events but not
/// their additional users.
pub(super) const USERS_COUNTED_MAX: usize = 1 << 20;

/// Some events of a workload, each added once.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub(super) struct EventSet {
    /// The number of single events.
    singles: u64,
    /// Twice the sum of their values.
    singles_sum_in_halves: u64,
    /// The number of single events of each user, by the number in the user's name.
    by_user: HashMap<u64, u64>,
    /// Single events that are not in `by_user` because it is full.
    unattributed: u64,
    /// The rest of each share of the work. All have the same step, and each has its own remainder.
    rests: Vec<Rest>,
}

impl EventSet {
    /// Adds the events of one request.
    pub(super) fn insert(&mut self, workload: &Workload, request: u64) {
        let events = workload.events_of(request);
        self.singles += events.end - events.start;
        self.singles_sum_in_halves += workload.sum_in_halves_of_events(&events);
        events.for_each(|event| self.count(event % workload.users, 1));
    }

    fn count(&mut self, user: u64, events: u64) {
        if self.by_user.len() < USERS_COUNTED_MAX || self.by_user.contains_key(&user) {
            *self.by_user.entry(user).or_default() += events;
        } else {
            self.unattributed += events;
        }
    }

    /// Returns the steps of its rests.
    pub(super) fn steps(&self) -> impl Iterator<Item = u64> {
        self.rests.iter().map(|rest| rest.step)
    }

    /// Drops rests that do not contain a request, given the number of requests.
    pub(super) fn drop_empty_rests(&mut self, requests: u64) {
        self.rests.retain(|rest| rest.len(requests) > 0);
    }

    /// Rewrites its rests with a new step, which must be a multiple of theirs.
    pub(super) fn widen(&mut self, step: u64) {
        let narrow = std::mem::take(&mut self.rests);
        self.rests = narrow
            .into_iter()
            .flat_map(|Rest { start, step: own }| {
                (0..step / own).map(move |turn| Rest { start: start + turn * own, step })
            })
            .collect();
    }

    /// Reports whether a client can have recorded this set for its part of a workload. This checks a set that was read
    /// from a file.
    pub(super) fn is_possible(&self, workload: &Workload, part: Part) -> bool {
        let is_of_part = |rest: &Rest| {
            rest.step > 0
                && rest.step.is_multiple_of(part.of())
                && rest.start <= workload.requests().saturating_add(rest.step)
                && part.has(rest.start)
        };
        let attributed = self
            .by_user
            .values()
            .try_fold(self.unattributed, |sum, events| sum.checked_add(*events));
        self.singles <= workload.len_of(part.rest(0))
            && self.singles_sum_in_halves <= VALUE_IN_HALVES_MAX * self.singles
            && attributed == Some(self.singles)
            && self.by_user.keys().all(|user| *user < workload.users.min(workload.events))
            && self.rests.iter().all(is_of_part)
    }

    /// Adds the rest of a workload.
    pub(super) fn insert_rest(&mut self, rest: Rest) {
        debug_assert!(self.rests.iter().all(|other| other.step == rest.step));
        self.rests.push(rest);
    }

    /// Adds all events of another set.
    pub(super) fn merge(&mut self, other: EventSet) {
        self.singles += other.singles;
        self.singles_sum_in_halves += other.singles_sum_in_halves;
        self.unattributed += other.unattributed;
        for (user, events) in other.by_user {
            self.count(user, events);
        }
        for rest in other.rests {
            self.insert_rest(rest);
        }
    }

    /// Returns the number of a workload's events in the set.
    pub(super) fn len(&self, workload: &Workload) -> u64 {
        self.singles + self.rests.iter().map(|rest| workload.len_of(*rest)).sum::<u64>()
    }

    /// Returns the number of events in the set that are not in a rest.
    pub(super) fn singles(&self) -> u64 {
        self.singles
    }

    /// Returns the possible users of the set's events in a workload: the users of the single events, or all users if
    /// the set has the rest of a lost part.
    pub(super) fn users(&self, workload: &Workload) -> UserSet {
        // Each unattributed event may come from an additional user.
        let known = self.by_user.keys().copied();
        let has_rest = self.rests.iter().any(|rest| rest.len(workload.requests()) > 0);
        let below = if has_rest { workload.users.min(workload.events) } else { 0 };
        let beyond = known.filter(|user| *user >= below).collect();
        UserSet { below, beyond, unseen: self.unattributed, ..UserSet::default() }
    }
}

/// Users, identified by the number in their names: all below a limit with some exceptions, and some beyond the limit.
/// The true set may lack up to `lost` of them, and may have up to `unseen` more.
#[derive(Clone, Debug, Default)]
pub(super) struct UserSet {
    below: u64,
    without: HashSet<u64>,
    beyond: HashSet<u64>,
    lost: u64,
    unseen: u64,
}

impl UserSet {
    fn known(&self) -> u64 {
        self.below - self.without.len() as u64 + self.beyond.len() as u64
    }

    /// Returns the least number of users that the true set can have.
    pub(super) fn least(&self) -> u64 {
        self.known().saturating_sub(self.lost)
    }

    /// Returns the greatest number of users that the true set can have.
    pub(super) fn most(&self) -> u64 {
        self.known() + self.unseen
    }

    fn contains(&self, user: u64) -> bool {
        match user < self.below {
            true => !self.without.contains(&user),
            false => self.beyond.contains(&user),
        }
    }

    /// Returns the users that are in either set.
    pub(super) fn union(&self, other: &UserSet) -> UserSet {
        let below = self.below.max(other.below);
        let is_in_neither = |user: &&u64| !self.contains(**user) && !other.contains(**user);
        let is_beyond = |user: &&u64| **user >= below;
        UserSet {
            below,
            without: self.without.union(&other.without).filter(is_in_neither).copied().collect(),
            beyond: self.beyond.union(&other.beyond).filter(is_beyond).copied().collect(),
            lost: self.lost + other.lost,
            unseen: self.unseen + other.unseen,
        }
    }
}

impl Workload {
    /// Returns the users of all events except for the events in `sets`, which are disjoint.
    ///
    /// The time grows with the number of single events in the sets. If threads of an open loop stopped far from each
    /// other, it also grows with the number of users in between.
    pub(super) fn users_without(&self, sets: &[&EventSet]) -> UserSet {
        let rests = self.rests_of(sets);
        let starts = || rests.starts.values().map(|request| request * self.events_per_request());
        // Every event below `first` was taken, except for single events. If every remainder has a rest, no event from
        // `last` on was taken.
        let first = starts().min().unwrap_or(self.events);
        let is_everywhere = rests.starts.len() as u64 == rests.step;
        let last = starts().max().filter(|_| is_everywhere).unwrap_or(self.events);
        let users = self.users.min(self.events);
        let below = if first >= users { users } else { last.min(users) };
        let is_without = |user: &u64| {
            let singles = sets.iter().filter_map(|set| set.by_user.get(user)).sum::<u64>();
            let events = (self.events - user).div_ceil(self.users);
            singles + self.events_of_user_in_rests(*user, &rests) == events
        };
        let single = sets.iter().flat_map(|set| set.by_user.keys().copied());
        let without = single.filter(|user| *user < below).chain(first.min(below)..below);
        UserSet {
            below,
            without: without.filter(is_without).collect(),
            lost: sets.iter().map(|set| set.unattributed).sum(),
            ..UserSet::default()
        }
    }

    /// Returns the rests in `sets` that contain an event.
    fn rests_of(&self, sets: &[&EventSet]) -> Rests {
        let all = sets.iter().flat_map(|set| set.rests.iter().copied());
        let mut rests = Rests { step: 1, starts: HashMap::new() };
        for Rest { start, step } in all.filter(|rest| rest.start < self.requests()) {
            rests.step = step;
            rests.starts.insert(start % step, start);
        }
        rests
    }

    /// Returns the number of a user's events in the rests.
    fn events_of_user_in_rests(&self, user: u64, rests: &Rests) -> u64 {
        let batch = u128::from(self.events_per_request());
        let (user, users) = (u128::from(user), u128::from(self.users));
        let of_rest = |start: &u64| {
            let start = u128::from(*start) * batch;
            // The user's events from there on have the numbers `first..end`.
            let first = start.saturating_sub(user).div_ceil(users);
            let end = u128::from(self.events).saturating_sub(user).div_ceil(users);
            let behind = user + first * users - start;
            // A rest has `batch` events, repeated every `period` events.
            let period = batch * u128::from(rests.step);
            count_below(end.saturating_sub(first), users, behind, period, batch)
        };
        let found = rests.starts.values().map(of_rest).sum::<u128>();
        u64::try_from(found).unwrap_or_else(|_| unreachable!("there are no more than events"))
    }

    /// Returns the totals of a set's events.
    pub(super) fn share_of(&self, set: &EventSet) -> Share {
        let (whole, without) = (self.whole(), self.share_without(&[set]));
        Share {
            events: whole.events - without.events,
            sum_in_halves: whole.sum_in_halves - without.sum_in_halves,
        }
    }

    /// Returns the totals of all events except for the events in `sets`, which are disjoint.
    pub(super) fn share_without(&self, sets: &[&EventSet]) -> Share {
        let mut share = self.whole();
        for set in sets {
            share.events -= set.len(self);
            share.sum_in_halves -= set.singles_sum_in_halves;
            for rest in &set.rests {
                share.sum_in_halves -= self.sum_in_halves_of(*rest);
            }
        }
        share
    }
}

/// Rests with a common step. `starts` has the start of each rest by its remainder.
struct Rests {
    step: u64,
    starts: HashMap<u64, u64>,
}

/// Returns how many of the `count` numbers `first`, `first + step`, `first + 2 * step`, and so on have a remainder
/// below `limit` when divided by `divisor`, which is at least `limit`.
fn count_below(count: u128, step: u128, first: u128, divisor: u128, limit: u128) -> u128 {
    // A number with a remainder below the limit has a smaller quotient after the limit is subtracted.
    count + sum_of_quotients(count, step, first, divisor)
        - sum_of_quotients(count, step, first + divisor - limit, divisor)
}

/// Returns the sum of the quotients of the `count` numbers `first`, `first + step`, and so on, divided by `divisor` and
/// rounded down. The steps are similar to Euclid's algorithm.
fn sum_of_quotients(mut count: u128, mut step: u128, mut first: u128, mut divisor: u128) -> u128 {
    let mut sum = 0;
    while count > 0 {
        sum += count * (count - 1) / 2 * (step / divisor) + count * (first / divisor);
        (step, first) = (step % divisor, first % divisor);
        // The remaining points are below a line, and are counted from the other side of the line.
        let last = step * count + first;
        (count, first) = (last / divisor, last % divisor);
        (step, divisor) = (divisor, step);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::workload::Values;
    use std::time::{Duration, Instant};

    /// Returns the events in a small set as a list of all events.
    fn list(workload: &Workload, singles: &[u64], rests: &[Rest]) -> HashSet<u64> {
        let rests = rests.iter().flat_map(|rest| {
            (rest.start..workload.requests()).step_by(usize::try_from(rest.step).unwrap())
        });
        let requests = singles.iter().copied().chain(rests);
        requests.flat_map(|request| workload.events_of(request)).collect()
    }

    fn set(workload: &Workload, singles: &[u64], rests: &[Rest]) -> EventSet {
        let mut set = EventSet::default();
        singles.iter().for_each(|request| set.insert(workload, *request));
        rests.iter().for_each(|rest| set.insert_rest(*rest));
        set
    }

    /// Compares with a list of every event, for workloads with fewer and with more users than events, for one thread or
    /// several that stopped at different places, and for single events anywhere.
    #[test]
    fn closed_forms_agree_with_a_list_of_all_events() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..1000 {
            let values = [Values::Integer, Values::Half, Values::One][random.usize(0..3)];
            let events = random.u64(1..3000);
            let batch = random.bool().then(|| random.u64(1..200));
            let workload = Workload { events, users: random.u64(1..2500), values, batch };
            let requests = workload.requests();
            let step = [1, 1, 2, 3, 8, 12][random.usize(0..6)];
            let near = random.u64(0..requests + 50);
            let spread = [1, 60, 3000][random.usize(0..3)];
            let threads = if random.u8(0..4) == 0 { 0 } else { step };
            let rests: Vec<Rest> = (0..threads)
                .map(|thread| {
                    let near = near + random.u64(0..spread);
                    Rest { start: near / step * step + thread, step }
                })
                .collect();
            let rest = list(&workload, &[], &rests);
            let share = random.f64();
            let (out, left): (Vec<u64>, Vec<u64>) = (0..requests)
                .filter(|request| !rest.contains(&workload.events_of(*request).start))
                .partition(|_| random.f64() < share);
            let (some, others) = out.split_at(random.usize(0..=out.len()));
            let (first, second) = (set(&workload, some, &[]), set(&workload, others, &rests));
            let left = list(&workload, &left, &[]);
            let sum = left.iter().map(|event| workload.value_in_halves(*event)).sum();
            let expected = Share { events: left.len() as u64, sum_in_halves: sum };
            let users: HashSet<u64> = left.iter().map(|event| event % workload.users).collect();
            assert_eq!(workload.share_without(&[&first, &second]), expected);
            let found = workload.users_without(&[&first, &second]);
            assert_eq!((found.least(), found.most()), (users.len() as u64, users.len() as u64));
            for user in 0..workload.users {
                assert_eq!(found.contains(user), users.contains(&user), "{user}");
            }
            // A set that was filled in two parts gives the same results.
            let mut merged = first;
            merged.merge(second);
            assert_eq!(workload.share_without(&[&merged]), expected);
            assert_eq!(merged.len(&workload), events - left.len() as u64);
            assert_eq!(workload.users_without(&[&merged]).most(), users.len() as u64);
            // The union with the users of some other events is correct, too.
            let (fewer, picked) = (random.u64(0..=events), random.f64());
            let fewer = Workload { events: fewer.max(1), ..workload };
            let out: Vec<u64> = (0..fewer.requests()).filter(|_| random.f64() < picked).collect();
            let other = set(&fewer, &out, &[]);
            let out = list(&fewer, &out, &[]);
            let listed: HashSet<u64> = (0..fewer.events)
                .filter(|event| !out.contains(event))
                .map(|event| event % fewer.users)
                .collect();
            let union = found.union(&fewer.users_without(&[&other]));
            assert_eq!(union.most(), users.union(&listed).count() as u64);
            let of_out: HashSet<u64> = out.iter().map(|event| event % fewer.users).collect();
            assert_eq!(
                found.union(&other.users(&fewer)).most(),
                users.union(&of_out).count() as u64
            );
        }
    }

    #[test]
    fn a_trillion_events_that_were_not_sent_take_no_time() {
        let started = Instant::now();
        for users in [1, 75_000, 1 << 41, u64::MAX] {
            let workload = Workload { events: 1 << 42, users, values: Values::Half, batch: None };
            for threads in [1, 2, 16] {
                let rests: Vec<Rest> = (0..threads)
                    .map(|thread| Rest { start: 160_000 + 5 * threads + thread, step: threads })
                    .collect();
                let unsent = set(&workload, &[7], &rests);
                let share = workload.share_without(&[&unsent]);
                assert_eq!(share.events, 160_000 + 5 * threads - 1);
                let found = workload.users_without(&[&unsent]);
                // User 7 has other events, unless each event has its own user.
                let expected = users.min(160_000 + 5 * threads) - u64::from(users > 1 << 40);
                assert_eq!((found.least(), found.most()), (expected, expected));
            }
        }
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    }

    #[test]
    fn a_set_counts_the_users_of_so_many_and_knows_what_it_does_not_know() {
        let limit = USERS_COUNTED_MAX as u64;
        let workload =
            Workload { events: 10 * limit, users: 2 * limit, values: Values::One, batch: None };
        for (events, unattributed) in [(limit - 1, 0), (limit, 0), (limit + 1, 1)] {
            let mut set = EventSet::default();
            (0..events).for_each(|event| set.insert(&workload, event));
            // A user that is already in the set has room for another event.
            set.insert(&workload, workload.users);
            assert_eq!(set.len(&workload), events + 1);
            let users = set.users(&workload);
            assert_eq!((users.least(), users.most()), (events - unattributed, events));
            let left = workload.users_without(&[&set]);
            assert_eq!((left.least(), left.most()), (2 * limit - unattributed, 2 * limit));
        }
    }
}
