//! Which event a thread sends next, and when it is due.
//!
//! Closed loop: as soon as a connection is free; threads take events from a common number. Open loop:
//! event `i` is due at `i / rate`, whatever the server does, and thread `t` of `T` has the events
//! that are `t` modulo `T`, so that the spacing is even over all of them.

use std::iter::StepBy;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Events that a thread takes from the common number at once.
const EVENTS_A_GRAB: u64 = 32;

const NS_PER_SECOND: u128 = 1_000_000_000;

/// The most requests a second that can be asked for: one a nanosecond.
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
    /// Closed loop: whatever of `events` nobody has taken, at once.
    Closed { next: &'a AtomicU64, events: u64, grabbed: Range<u64> },
    /// Open loop.
    Open { next: u64, events: u64, threads: u64, rate: u64 },
}

impl Schedule<'_> {
    pub(super) fn closed(next: &AtomicU64, events: u64) -> Schedule<'_> {
        Schedule::Closed { next, events, grabbed: 0..0 }
    }

    /// For a thread of so many, at `rate` requests a second over all of them.
    pub(super) fn open(thread: u64, threads: u64, events: u64, rate: u64) -> Schedule<'static> {
        Schedule::Open { next: thread, events, threads, rate }
    }

    /// Takes all the rest of this thread, and returns it. What nobody has taken of a closed loop is
    /// for others to send.
    pub(super) fn end(&mut self) -> StepBy<Range<u64>> {
        match self {
            Schedule::Closed { grabbed, .. } => std::mem::replace(grabbed, 0..0).step_by(1),
            Schedule::Open { next, events, threads, .. } => {
                (std::mem::replace(next, *events)..*events).step_by(*threads as usize)
            }
        }
    }

    /// When the next event is due; `None` where there is none.
    pub(super) fn next_ns(&self) -> Option<u64> {
        match self {
            Schedule::Closed { next, events, grabbed } => {
                (!grabbed.is_empty() || next.load(Ordering::Relaxed) < *events).then_some(0)
            }
            Schedule::Open { next, events, rate, .. } => {
                (next < events).then(|| due_ns(*next, *rate))
            }
        }
    }

    /// Takes the next event that is due at `now_ns`. In a closed loop it is due now.
    pub(super) fn take(&mut self, now_ns: u64) -> Option<Due> {
        match self {
            Schedule::Closed { next, events, grabbed } => {
                if grabbed.is_empty() {
                    let start = next.fetch_add(EVENTS_A_GRAB, Ordering::Relaxed).min(*events);
                    *grabbed = start..(start + EVENTS_A_GRAB).min(*events);
                }
                grabbed.next().map(|event| Due { event, ns: now_ns })
            }
            Schedule::Open { next, events, threads, rate } => {
                let due = Due { event: *next, ns: due_ns(*next, *rate) };
                let is_due = *next < *events && due.ns <= now_ns;
                is_due.then(|| {
                    *next += *threads;
                    due
                })
            }
        }
    }
}

/// When an event is due, rounded down to a nanosecond: errors do not add up.
fn due_ns(event: u64, rate: u64) -> u64 {
    u64::try_from(u128::from(event) * NS_PER_SECOND / u128::from(rate)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_loop_sends_every_event_once_and_evenly() {
        for (threads, events, rate) in [(1, 10, 3), (3, 1000, 7), (4, 4001, 333_333), (2, 1, 1)] {
            let mut all: Vec<Due> = Vec::new();
            for thread in 0..threads {
                let mut schedule = Schedule::open(thread, threads, events, rate);
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
            [Schedule::closed(&next, 100), Schedule::closed(&next, 100)],
            [Schedule::open(0, 2, 100, 5), Schedule::open(1, 2, 100, 5)],
        ] {
            let mut all: Vec<u64> =
                (0..40).map(|turn| schedules[turn % 2].take(u64::MAX).unwrap().event).collect();
            for schedule in &mut schedules {
                all.extend(schedule.end());
            }
            if matches!(schedules[0], Schedule::Closed { .. }) {
                all.extend(next.load(Ordering::Relaxed)..100);
            }
            all.sort_unstable();
            assert!(all.into_iter().eq(0..100));
        }
    }

    #[test]
    fn a_closed_loop_gives_every_event_to_one_thread() {
        let next = AtomicU64::new(0);
        let mut schedules = [Schedule::closed(&next, 1000), Schedule::closed(&next, 1000)];
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
