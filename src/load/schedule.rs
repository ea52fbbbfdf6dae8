//! The next request of a thread, and its due time.
//!
//! In a closed loop, a request is due as soon as a connection is free. Threads take requests from a common counter
//! until none are left or the time is over. In an open loop, request `i` is due when its first event is due, regardless
//! of the server: at `i * batch / rate` for a fixed rate. Thread `t` of `T` has the requests with numbers that are `t`
//! modulo `T`, so that the spacing is even over all threads. For a part of a workload, both loops take only the part's
//! requests. Each is due at the same time as in the whole workload.

use super::part::Part;
use super::profile::{Curve, Profile};
use super::workload::{Rest, Workload};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The number of events that a thread takes from the common counter at a time, unless a request has more.
const EVENTS_PER_GRAB: u64 = 32;

/// A request, and its due time in nanoseconds since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) request: u64,
    pub(super) ns: u64,
}

/// The requests of one thread.
#[derive(Debug)]
pub(super) enum Schedule<'a> {
    /// Closed loop: the next of the part's `requests` that no thread has taken, immediately, in groups of `grab`.
    /// Requests are counted within the part.
    Closed { part: Part, next: &'a AtomicU64, requests: u64, grab: u64, grabbed: Range<u64> },
    /// Closed loop: the next of the part's requests that no thread has taken, until the time is over.
    Timed { part: Part, next: &'a AtomicU64, requests: u64, until_ns: u64 },
    /// Open loop: every `step`-th request of the whole workload, the next one when it is due.
    Open { next: Due, requests: u64, step: u64, pace: &'a Pace },
    /// Nothing is left to send.
    Ended,
}

/// The requests that a thread took and did not send, or would have taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Requests of a closed loop that only this thread has.
    Grabbed(Vec<u64>),
    /// The rest of a thread's requests in an open loop.
    Rest(Rest),
}

impl Schedule<'_> {
    /// Creates the schedule of a closed loop for the part's share of a workload.
    pub(super) fn closed<'a>(part: Part, next: &'a AtomicU64, workload: &Workload) -> Schedule<'a> {
        let grab = (EVENTS_PER_GRAB / workload.events_per_request()).max(1);
        let requests = part.share(workload.requests());
        Schedule::Closed { part, next, requests, grab, grabbed: 0..0 }
    }

    /// Creates the schedule of a closed loop that ends at a time, for the part's share of an endless workload. Threads
    /// take requests one by one and send all that they have taken, so that the sequence of sent events does not have gaps.
    pub(super) fn timed<'a>(
        part: Part,
        next: &'a AtomicU64,
        workload: &Workload,
        until_ns: u64,
    ) -> Schedule<'a> {
        Schedule::Timed { part, next, requests: part.share(workload.requests()), until_ns }
    }

    /// Creates the schedule of a thread of the part in an open loop, at the common pace of all threads of all parts.
    pub(super) fn open<'a>(
        part: Part,
        thread: u64,
        threads: u64,
        workload: &Workload,
        pace: &'a Pace,
    ) -> Schedule<'a> {
        let next = pace.due(part.nth(thread));
        let requests = workload.requests();
        Schedule::Open { next, requests, step: part.of() * threads, pace }
    }

    /// Ends the schedule, and returns the requests that this thread leaves. They do not include requests that no thread
    /// of a closed loop has taken.
    pub(super) fn end(&mut self) -> Left {
        match std::mem::replace(self, Schedule::Ended) {
            Schedule::Closed { part, grabbed, .. } => {
                Left::Grabbed(grabbed.map(|nth| part.nth(nth)).collect())
            }
            Schedule::Open { next, step, .. } => Left::Rest(Rest { start: next.request, step }),
            Schedule::Timed { .. } | Schedule::Ended => Left::Grabbed(Vec::new()),
        }
    }

    /// Calls `note` with each wait of the requests that are due at `now_ns`, and with the number of requests that have
    /// this wait. Waits that `least_alike` maps to the same time are combined into that time, so that the number of
    /// calls does not grow with the number of requests.
    pub(super) fn overdue(
        &self,
        now_ns: u64,
        least_alike: impl Fn(u64) -> u64,
        mut note: impl FnMut(u64, u64),
    ) {
        let Schedule::Open { next, requests, step, pace } = *self else { return };
        let mut request = next.request;
        while request < requests && pace.due_ns(request) <= now_ns {
            let waited_ns = now_ns - pace.due_ns(request);
            let least_ns = least_alike(waited_ns).min(waited_ns);
            let due = pace.due_by(now_ns - least_ns).min(requests);
            let count = (due - request).div_ceil(step);
            note(least_ns, count);
            request += count * step;
        }
    }

    /// Returns the due time of the next request; `None` if there are no more requests.
    pub(super) fn next_ns(&self) -> Option<u64> {
        match self {
            Schedule::Closed { next, requests, grabbed, .. } => {
                (!grabbed.is_empty() || next.load(Ordering::Relaxed) < *requests).then_some(0)
            }
            Schedule::Timed { next, requests, .. } => {
                (next.load(Ordering::Relaxed) < *requests).then_some(0)
            }
            Schedule::Open { next, requests, .. } => (next.request < *requests).then_some(next.ns),
            Schedule::Ended => None,
        }
    }

    /// Ends a closed loop whose time is over.
    pub(super) fn expire(&mut self, now_ns: u64) {
        if matches!(self, Schedule::Timed { until_ns, .. } if *until_ns <= now_ns) {
            *self = Schedule::Ended;
        }
    }

    /// Takes the next request that is due at `now_ns`. In a closed loop, a request is always due.
    pub(super) fn take(&mut self, now_ns: u64) -> Option<Due> {
        self.expire(now_ns);
        match self {
            Schedule::Closed { part, next, requests, grab, grabbed } => {
                if grabbed.is_empty() {
                    let start = next.fetch_add(*grab, Ordering::Relaxed).min(*requests);
                    *grabbed = start..(start + *grab).min(*requests);
                }
                grabbed.next().map(|nth| Due { request: part.nth(nth), ns: now_ns })
            }
            Schedule::Timed { part, next, requests, .. } => {
                let nth = next.fetch_add(1, Ordering::Relaxed);
                (nth < *requests).then(|| Due { request: part.nth(nth), ns: now_ns })
            }
            Schedule::Open { next, requests, step, pace } => {
                let is_due = next.request < *requests && next.ns <= now_ns;
                is_due.then(|| {
                    let following = pace.due(next.request + *step);
                    std::mem::replace(next, following)
                })
            }
            Schedule::Ended => None,
        }
    }
}

/// The due times of an open loop's requests.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// Events per request.
    batch: u64,
    /// Events per second.
    rate: Curve,
}

impl Pace {
    /// Returns the pace of a workload at a rate. Without a duration, a ramp lasts as long as its events take.
    pub(super) fn new(rate: &Profile, duration: Option<Duration>, workload: &Workload) -> Pace {
        let lasts = duration.or_else(|| rate.ramp_for(workload.events)).unwrap_or(Duration::MAX);
        Pace { batch: workload.events_per_request(), rate: rate.over(lasts) }
    }

    fn due(&self, request: u64) -> Due {
        Due { request, ns: self.due_ns(request) }
    }

    /// Returns the due time of a request, rounded down to a nanosecond. Rounding errors do not add up.
    fn due_ns(&self, request: u64) -> u64 {
        self.rate.due_ns(request.saturating_mul(self.batch))
    }

    /// Returns the number of requests that are due at a time. These are the requests with lower numbers.
    fn due_by(&self, ns: u64) -> u64 {
        self.rate.due_before(ns.saturating_add(1)).div_ceil(self.batch)
    }

    /// Returns the share of the pace that was held if `events` events were sent, the last at `last_sent`: the due time
    /// of the last request divided by `last_sent`. Returns `None` if it was due at the start.
    pub(super) fn held(&self, events: u64, last_sent: Duration) -> Option<f64> {
        let last_due_ns = self.due_ns(events.div_ceil(self.batch).saturating_sub(1));
        let is_told = last_due_ns > 0 && !last_sent.is_zero();
        is_told.then(|| Duration::from_nanos(last_due_ns).as_secs_f64() / last_sent.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::profile::{Amount, RATE_MAX};
    use crate::load::workload::Values;

    fn workload(events: u64, batch: Option<u64>) -> Workload {
        Workload { events, users: 1, values: Values::One, batch }
    }

    fn pace(rate: u64, workload: &Workload) -> Pace {
        Pace::new(&Profile::Fixed(Amount::whole(rate)), None, workload)
    }

    fn due_ns(request: u64, rate: u64) -> u64 {
        pace(rate, &workload(1, None)).due_ns(request)
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
            let pace = pace(rate, &workload);
            for thread in 0..threads {
                let mut schedule = Schedule::open(Part::WHOLE, thread, threads, &workload, &pace);
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
        let pace = pace(5, &hundred);
        let open = |thread| Schedule::open(Part::WHOLE, thread, 2, &hundred, &pace);
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

    /// Compares with each event individually, for waits of limited resolution.
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
            let pace = pace(rate, &workload);
            let schedule = Schedule::open(Part::WHOLE, thread, threads, &workload, &pace);
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
        let workload = workload(1 << 42, None);
        let pace = pace(RATE_MAX, &workload);
        let schedule = Schedule::open(Part::WHOLE, 0, 1, &workload, &pace);
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
