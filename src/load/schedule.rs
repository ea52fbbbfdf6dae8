//! Which event a thread sends next, and when it is due.
//!
//! In a closed loop, an event is due as soon as a connection is free; threads take events from a common
//! counter. In an open loop, event `i` is due at `i / rate`, whatever the server does; thread `t` of
//! `T` has the events that are `t` modulo `T`, so that the spacing is even over all threads. Of a part
//! of a workload, both take the part's events only, each when it is due in the whole.

use super::event_set::Rest;
use super::parts::Part;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Events that a thread takes from the common counter at once.
const EVENTS_PER_GRAB: u64 = 32;

const NS_PER_SECOND: u128 = 1_000_000_000;

/// The most requests per second that can be asked for: one per nanosecond.
pub const RATE_MAX: u64 = 1_000_000_000;

/// An event, and when it is to be sent, in nanoseconds since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) event: u64,
    pub(super) ns: u64,
}

/// The events of one thread.
#[derive(Debug)]
pub(super) enum Schedule<'a> {
    /// Closed loop: the next of the part's `events` that no thread has taken, at once. They are counted
    /// within the part.
    Closed { part: Part, next: &'a AtomicU64, events: u64, grabbed: Range<u64> },
    /// Open loop: every `step`-th event of the whole workload.
    Open { next: u64, events: u64, step: u64, rate: u64 },
    /// There is nothing more to send.
    Ended,
}

/// What a thread took and did not send, or would have taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Events of a closed loop that only this thread has.
    Grabbed(Vec<u64>),
    /// The rest of an open loop's thread.
    Rest(Rest),
}

impl Schedule<'_> {
    /// For the part's share of a workload of `events`.
    pub(super) fn closed(part: Part, next: &AtomicU64, events: u64) -> Schedule<'_> {
        Schedule::Closed { part, next, events: part.share(events), grabbed: 0..0 }
    }

    /// For one of the part's threads, at `rate` requests per second over all threads of all parts.
    pub(super) fn open(
        part: Part,
        thread: u64,
        threads: u64,
        events: u64,
        rate: u64,
    ) -> Schedule<'static> {
        Schedule::Open { next: part.event(thread), events, step: part.of() * threads, rate }
    }

    /// Ends it, and returns what this thread leaves. What no thread of a closed loop took is not
    /// among it.
    pub(super) fn end(&mut self) -> Left {
        match std::mem::replace(self, Schedule::Ended) {
            Schedule::Closed { part, grabbed, .. } => {
                Left::Grabbed(grabbed.map(|nth| part.event(nth)).collect())
            }
            Schedule::Open { next, step, .. } => Left::Rest(Rest { start: next, step }),
            Schedule::Ended => Left::Grabbed(Vec::new()),
        }
    }

    /// Tells `note` how long the events that are due at `now_ns` have waited, and how many have
    /// waited for so long. Waits that `least_alike` maps to the same time are told together, as
    /// that time, so that the number of calls does not grow with the number of events.
    pub(super) fn overdue(
        &self,
        now_ns: u64,
        least_alike: impl Fn(u64) -> u64,
        mut note: impl FnMut(u64, u64),
    ) {
        let Schedule::Open { next, events, step, rate } = *self else { return };
        let mut event = next;
        while event < events && due_ns(event, rate) <= now_ns {
            let waited_ns = now_ns - due_ns(event, rate);
            let least_ns = least_alike(waited_ns).min(waited_ns);
            let count = (due_by(now_ns - least_ns, rate).min(events) - event).div_ceil(step);
            note(least_ns, count);
            event += count * step;
        }
    }

    /// When the next event is due; `None` if there is none.
    pub(super) fn next_ns(&self) -> Option<u64> {
        match self {
            Schedule::Closed { next, events, grabbed, .. } => {
                (!grabbed.is_empty() || next.load(Ordering::Relaxed) < *events).then_some(0)
            }
            Schedule::Open { next, events, rate, .. } => {
                (next < events).then(|| due_ns(*next, *rate))
            }
            Schedule::Ended => None,
        }
    }

    /// Takes the next event that is due at `now_ns`. In a closed loop it is due now.
    pub(super) fn take(&mut self, now_ns: u64) -> Option<Due> {
        match self {
            Schedule::Closed { part, next, events, grabbed } => {
                if grabbed.is_empty() {
                    let start = next.fetch_add(EVENTS_PER_GRAB, Ordering::Relaxed).min(*events);
                    *grabbed = start..(start + EVENTS_PER_GRAB).min(*events);
                }
                grabbed.next().map(|nth| Due { event: part.event(nth), ns: now_ns })
            }
            Schedule::Open { next, events, step, rate } => {
                let due = Due { event: *next, ns: due_ns(*next, *rate) };
                let is_due = *next < *events && due.ns <= now_ns;
                is_due.then(|| {
                    *next += *step;
                    due
                })
            }
            Schedule::Ended => None,
        }
    }
}

/// When an event is due, rounded down to a nanosecond: errors do not add up.
fn due_ns(event: u64, rate: u64) -> u64 {
    u64::try_from(u128::from(event) * NS_PER_SECOND / u128::from(rate)).unwrap_or(u64::MAX)
}

/// How many events are due at a time: those before this number.
fn due_by(ns: u64, rate: u64) -> u64 {
    let due = ((u128::from(ns) + 1) * u128::from(rate)).div_ceil(NS_PER_SECOND);
    u64::try_from(due).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_loop_sends_every_event_once_and_evenly() {
        for (threads, events, rate) in [(1, 10, 3), (3, 1000, 7), (4, 4001, 333_333), (2, 1, 1)] {
            let mut all: Vec<Due> = Vec::new();
            for thread in 0..threads {
                let mut schedule = Schedule::open(Part::WHOLE, thread, threads, events, rate);
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
            all.sort_by_key(|due| due.event);
            assert!(all.iter().map(|due| due.event).eq(0..events));
            let step = 1e9 / rate as f64;
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
        for mut schedules in [
            [Schedule::closed(Part::WHOLE, &next, 100), Schedule::closed(Part::WHOLE, &next, 100)],
            [Schedule::open(Part::WHOLE, 0, 2, 100, 5), Schedule::open(Part::WHOLE, 1, 2, 100, 5)],
        ] {
            let mut all: Vec<u64> =
                (0..40).map(|turn| schedules[turn % 2].take(u64::MAX).unwrap().event).collect();
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
            let schedule = Schedule::open(Part::WHOLE, thread, threads, events, rate);
            let mut found = Vec::new();
            schedule.overdue(now_ns, least_alike, |ns, count| found.push((ns, count)));
            let mut expected: Vec<(u64, u64)> = Vec::new();
            for event in (thread..events).step_by(usize::try_from(threads).unwrap()) {
                let Some(waited_ns) = now_ns.checked_sub(due_ns(event, rate)) else { break };
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
        let schedule = Schedule::open(Part::WHOLE, 0, 1, 1 << 42, RATE_MAX);
        let mut events = 0;
        let powers = |ns: u64| 1 << ns.max(1).ilog2();
        schedule.overdue(1 << 40, powers, |_, count| events += count);
        assert_eq!(events, (1 << 40) + 1);
    }

    #[test]
    fn a_closed_loop_gives_every_event_to_one_thread() {
        let next = AtomicU64::new(0);
        let mut schedules = [
            Schedule::closed(Part::WHOLE, &next, 1000),
            Schedule::closed(Part::WHOLE, &next, 1000),
        ];
        let mut taken = Vec::new();
        for turn in 0.. {
            let schedule = &mut schedules[turn % 2];
            match schedule.take(turn as u64) {
                Some(due) => taken.push(due.event),
                None if schedules.iter().all(|schedule| schedule.next_ns().is_none()) => break,
                None => {}
            }
        }
        taken.sort_unstable();
        assert!(taken.into_iter().eq(0..1000));
    }
}
