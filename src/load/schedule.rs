//! Which request a thread sends next, and when it is due.
//!
//! In a closed loop, a request is due as soon as a connection is free; threads take requests from a common
//! counter. In an open loop, request `i` is due when its first event is, at `i * batch / rate`, whatever the
//! server does; thread `t` of `T` has the requests that are `t` modulo `T`, so that the spacing is even
//! over all threads. Of a part of a workload, both take the part's requests only, each when it is due in
//! the whole.

use super::event_set::Rest;
use super::parts::Part;
use super::workload::Workload;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Events that a thread takes from the common counter at once, unless a request has more.
const EVENTS_PER_GRAB: u64 = 32;

const NS_PER_SECOND: u128 = 1_000_000_000;

/// The most events per second that can be asked for: one per nanosecond.
pub const RATE_MAX: u64 = 1_000_000_000;

/// A request, and when it is to be sent, in nanoseconds since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) request: u64,
    pub(super) ns: u64,
}

/// The requests of one thread.
#[derive(Debug)]
pub(super) enum Schedule<'a> {
    /// Closed loop: the next of the part's `requests` that no thread has taken, at once, `grab` of them
    /// together. They are counted within the part.
    Closed { part: Part, next: &'a AtomicU64, requests: u64, grab: u64, grabbed: Range<u64> },
    /// Open loop: every `step`-th request of the whole workload.
    Open { next: u64, requests: u64, step: u64, pace: Pace },
    /// There is nothing more to send.
    Ended,
}

/// What a thread took and did not send, or would have taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Requests of a closed loop that only this thread has.
    Grabbed(Vec<u64>),
    /// The rest of an open loop's thread.
    Rest(Rest),
}

impl Schedule<'_> {
    /// For the part's share of a workload.
    pub(super) fn closed<'a>(part: Part, next: &'a AtomicU64, workload: &Workload) -> Schedule<'a> {
        let grab = (EVENTS_PER_GRAB / workload.events_per_request()).max(1);
        let requests = part.share(workload.requests());
        Schedule::Closed { part, next, requests, grab, grabbed: 0..0 }
    }

    /// For one of the part's threads, at `rate` events per second over all threads of all parts.
    pub(super) fn open(
        part: Part,
        thread: u64,
        threads: u64,
        workload: &Workload,
        rate: u64,
    ) -> Schedule<'static> {
        Schedule::Open {
            next: part.nth(thread),
            requests: workload.requests(),
            step: part.of() * threads,
            pace: Pace { batch: workload.events_per_request(), rate },
        }
    }

    /// Ends it, and returns what this thread leaves. What no thread of a closed loop took is not
    /// among it.
    pub(super) fn end(&mut self) -> Left {
        match std::mem::replace(self, Schedule::Ended) {
            Schedule::Closed { part, grabbed, .. } => {
                Left::Grabbed(grabbed.map(|nth| part.nth(nth)).collect())
            }
            Schedule::Open { next, step, .. } => Left::Rest(Rest { start: next, step }),
            Schedule::Ended => Left::Grabbed(Vec::new()),
        }
    }

    /// Tells `note` how long the requests that are due at `now_ns` have waited, and how many have
    /// waited for so long. Waits that `least_alike` maps to the same time are told together, as
    /// that time, so that the number of calls does not grow with the number of requests.
    pub(super) fn overdue(
        &self,
        now_ns: u64,
        least_alike: impl Fn(u64) -> u64,
        mut note: impl FnMut(u64, u64),
    ) {
        let Schedule::Open { next, requests, step, pace } = *self else { return };
        let mut request = next;
        while request < requests && pace.due_ns(request) <= now_ns {
            let waited_ns = now_ns - pace.due_ns(request);
            let least_ns = least_alike(waited_ns).min(waited_ns);
            let due = pace.due_by(now_ns - least_ns).min(requests);
            let count = (due - request).div_ceil(step);
            note(least_ns, count);
            request += count * step;
        }
    }

    /// When the next request is due; `None` if there is none.
    pub(super) fn next_ns(&self) -> Option<u64> {
        match self {
            Schedule::Closed { next, requests, grabbed, .. } => {
                (!grabbed.is_empty() || next.load(Ordering::Relaxed) < *requests).then_some(0)
            }
            Schedule::Open { next, requests, pace, .. } => {
                (next < requests).then(|| pace.due_ns(*next))
            }
            Schedule::Ended => None,
        }
    }

    /// Takes the next request that is due at `now_ns`. In a closed loop it is due now.
    pub(super) fn take(&mut self, now_ns: u64) -> Option<Due> {
        match self {
            Schedule::Closed { part, next, requests, grab, grabbed } => {
                if grabbed.is_empty() {
                    let start = next.fetch_add(*grab, Ordering::Relaxed).min(*requests);
                    *grabbed = start..(start + *grab).min(*requests);
                }
                grabbed.next().map(|nth| Due { request: part.nth(nth), ns: now_ns })
            }
            Schedule::Open { next, requests, step, pace } => {
                let due = Due { request: *next, ns: pace.due_ns(*next) };
                let is_due = *next < *requests && due.ns <= now_ns;
                is_due.then(|| {
                    *next += *step;
                    due
                })
            }
            Schedule::Ended => None,
        }
    }
}

/// How fast an open loop sends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Events per request.
    batch: u64,
    /// Events per second.
    rate: u64,
}

impl Pace {
    /// When a request is due, rounded down to a nanosecond: errors do not add up.
    fn due_ns(self, request: u64) -> u64 {
        let event = u128::from(request) * u128::from(self.batch);
        u64::try_from(event * NS_PER_SECOND / u128::from(self.rate)).unwrap_or(u64::MAX)
    }

    /// How many requests are due at a time: those before this number.
    fn due_by(self, ns: u64) -> u64 {
        let events = ((u128::from(ns) + 1) * u128::from(self.rate)).div_ceil(NS_PER_SECOND);
        u64::try_from(events.div_ceil(u128::from(self.batch))).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::workload::Values;

    fn workload(events: u64, batch: Option<u64>) -> Workload {
        Workload { events, users: 1, values: Values::One, batch }
    }

    fn due_ns(request: u64, rate: u64) -> u64 {
        Pace { batch: 1, rate }.due_ns(request)
    }

    #[test]
    fn an_open_loop_sends_every_request_once_and_evenly() {
        for (threads, events, batch, rate) in [
            (1, 10, None, 3),
            (3, 1000, None, 7),
            (4, 4001, None, 333_333),
            (2, 1, None, 1),
            (3, 4001, Some(10), 333_333),
            (2, 5, Some(1000), 1),
        ] {
            let workload = workload(events, batch);
            let mut all: Vec<Due> = Vec::new();
            for thread in 0..threads {
                let mut schedule = Schedule::open(Part::WHOLE, thread, threads, &workload, rate);
                while let Some(ns) = schedule.next_ns() {
                    if ns > 0 {
                        assert_eq!(schedule.take(ns - 1), None, "a nanosecond early");
                    }
                    let due = schedule.take(ns).unwrap();
                    assert_eq!(due.ns, ns);
                    all.push(due);
                }
                assert_eq!(schedule.take(u64::MAX), None);
            }
            all.sort_by_key(|due| due.request);
            assert!(all.iter().map(|due| due.request).eq(0..workload.requests()));
            let step = 1e9 * batch.unwrap_or(1) as f64 / rate as f64;
            for (index, due) in all.iter().enumerate() {
                assert!((due.ns as f64 - index as f64 * step).abs() <= 1.0, "{due:?}");
            }
        }
    }

    #[test]
    fn the_last_event_of_a_long_run_is_due_in_its_nanosecond() {
        assert_eq!(due_ns(1 << 42, RATE_MAX), 1 << 42);
        assert_eq!(due_ns(1_000_000, 3), 333_333_333_333_333);
        assert_eq!(due_ns(u64::MAX, 1), u64::MAX);
    }

    #[test]
    fn the_rest_is_what_was_not_taken() {
        let next = AtomicU64::new(0);
        let hundred = workload(100, None);
        let closed = || Schedule::closed(Part::WHOLE, &next, &hundred);
        let open = |thread| Schedule::open(Part::WHOLE, thread, 2, &hundred, 5);
        for mut schedules in [[closed(), closed()], [open(0), open(1)]] {
            let mut all: Vec<u64> =
                (0..40).map(|turn| schedules[turn % 2].take(u64::MAX).unwrap().request).collect();
            if matches!(schedules[0], Schedule::Closed { .. }) {
                all.extend(next.load(Ordering::Relaxed)..100);
            }
            for schedule in &mut schedules {
                match schedule.end() {
                    Left::Grabbed(events) => all.extend(events),
                    Left::Rest(Rest { start, step }) => {
                        all.extend((start..100).step_by(usize::try_from(step).unwrap()));
                    }
                }
                assert_eq!((schedule.next_ns(), schedule.take(u64::MAX)), (None, None));
            }
            all.sort_unstable();
            assert!(all.into_iter().eq(0..100));
        }
    }

    /// Against each event by itself, with waits that are told apart to a part in so many.
    #[test]
    fn overdue_events_are_counted_by_how_long_they_waited() {
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..500 {
            let (threads, scale) = (random.u64(1..5), random.u32(0..30));
            let rate = random.u64(1..=RATE_MAX >> scale);
            let thread = random.u64(0..threads);
            let events = random.u64(1..2000);
            let now_ns = due_ns(random.u64(0..3000), rate) + random.u64(0..3);
            let grain = 1 << random.u32(0..20);
            let least_alike = |ns: u64| ns / grain * grain;
            let batch = random.bool().then(|| random.u64(1..50));
            let workload = workload(events, batch);
            let schedule = Schedule::open(Part::WHOLE, thread, threads, &workload, rate);
            let pace = Pace { batch: workload.events_per_request(), rate };
            let mut found = Vec::new();
            schedule.overdue(now_ns, least_alike, |ns, count| found.push((ns, count)));
            let mut expected: Vec<(u64, u64)> = Vec::new();
            let step = usize::try_from(threads).unwrap();
            for request in (thread..workload.requests()).step_by(step) {
                let Some(waited_ns) = now_ns.checked_sub(pace.due_ns(request)) else { break };
                match expected.last_mut() {
                    Some((ns, count)) if *ns == least_alike(waited_ns) => *count += 1,
                    _ => expected.push((least_alike(waited_ns), 1)),
                }
            }
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_trillion_overdue_events_take_no_time() {
        let schedule = Schedule::open(Part::WHOLE, 0, 1, &workload(1 << 42, None), RATE_MAX);
        let mut events = 0;
        let powers = |ns: u64| 1 << ns.max(1).ilog2();
        schedule.overdue(1 << 40, powers, |_, count| events += count);
        assert_eq!(events, (1 << 40) + 1);
    }

    #[test]
    fn a_closed_loop_gives_every_request_to_one_thread() {
        for batch in [None, Some(1), Some(3), Some(32), Some(33), Some(2000)] {
            let next = AtomicU64::new(0);
            let workload = workload(1000, batch);
            let closed = || Schedule::closed(Part::WHOLE, &next, &workload);
            let mut schedules = [closed(), closed()];
            let mut taken = Vec::new();
            for turn in 0.. {
                let schedule = &mut schedules[turn % 2];
                match schedule.take(turn as u64) {
                    Some(due) => taken.push(due.request),
                    None if schedules.iter().all(|schedule| schedule.next_ns().is_none()) => break,
                    None => {}
                }
            }
            taken.sort_unstable();
            assert!(taken.into_iter().eq(0..workload.requests()), "{batch:?}");
        }
    }
}
