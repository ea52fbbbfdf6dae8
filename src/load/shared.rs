//! The state that all client threads of a run share.

use super::Config;
use super::part::Part;
use super::profile::Curve;
use super::schedule::Pace;
use super::thresholds::Threshold;
use super::workload::{Form, Rest, Workload};
use crossbeam_utils::CachePadded;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, OnceLock};
use std::time::{Duration, Instant};

/// The number of connections that must end after one response, contrary to the server's promise, before every
/// connection gets only one request.
const BROKEN_PROMISES: u64 = 2;

/// The progress of a thread. Only the thread writes it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Events that may have been sent. The counter is updated before they are sent.
    pub(super) sent: AtomicU64,
    pub(super) acknowledged: AtomicU64,
    /// Events whose requests have ended, with a response or without.
    pub(super) ended: AtomicU64,
    pub(super) connect_failures: AtomicU64,
    /// Other errors, counted in events, connections, or responses as in the report.
    pub(super) refused: AtomicU64,
    pub(super) unknown: AtomicU64,
    pub(super) reconnects: AtomicU64,
    pub(super) timeouts: AtomicU64,
    pub(super) rejected: AtomicU64,
    pub(super) malformed: AtomicU64,
}

/// The number of a client's connections over time.
#[derive(Debug)]
pub(super) struct Crowd {
    /// The greatest number at any time.
    pub(super) most: usize,
    /// The number over all parts; `None` if it is constant.
    pub(super) over_time: Option<Curve>,
}

impl Config {
    /// Returns the due times of an open loop's requests.
    pub(super) fn pace(&self) -> Option<Pace> {
        self.rate.as_ref().map(|rate| Pace::new(rate, self.duration, &self.workload))
    }

    /// Returns the number of connections over time for a client that can open up to `most`.
    pub(super) fn crowd(&self, most: usize) -> Crowd {
        let lasts = self.duration.unwrap_or(Duration::MAX);
        let over_time = self.connections_over_time.as_ref().map(|profile| profile.over(lasts));
        Crowd { most, over_time }
    }
}

impl Crowd {
    /// Returns the fewest connections of a part at any time, at least 1.
    pub(super) fn least(&self, part: Part) -> usize {
        let Some(curve) = &self.over_time else { return self.most.max(1) };
        let own = usize::try_from(part.share(curve.least())).unwrap_or(self.most);
        own.min(self.most).max(1)
    }

    /// Returns the most connections of a part at any time from `from_ns` to `to_ns`.
    pub(super) fn between(&self, part: Part, from_ns: u64, to_ns: u64) -> usize {
        let Some(curve) = &self.over_time else { return self.most };
        let own = part.share(curve.most_between(from_ns, to_ns));
        usize::try_from(own).map_or(self.most, |own| own.min(self.most))
    }
}

/// A run, as its threads see it.
pub(super) struct Run {
    pub(super) workload: Workload,
    /// The part of the workload that this client sends.
    pub(super) part: Part,
    pub(super) address: SocketAddr,
    /// The parts that all requests have in common.
    pub(super) form: Form,
    /// Requests in flight per connection.
    pub(super) depth: usize,
    /// The due times of an open loop's requests; `None` for a closed loop.
    pub(super) pace: Option<Pace>,
    /// The time during which requests are sent; a closed loop sends as many as fit.
    pub(super) duration: Option<Duration>,
    /// The number of connections during the measured part.
    pub(super) crowd: Crowd,
    pub(super) timeout: Duration,
    /// The number of events to send before the measured events of the workload.
    pub(super) warm_up: u64,
    pub(super) threads: usize,
    pub(super) keep_alive: KeepAlive,
    /// The start of the measured part, if several clients have agreed on it.
    pub(super) starts_at: OnceLock<Instant>,
    /// Whether the server cannot be reached, so that nothing more should be sent.
    pub(super) is_called_off: AtomicBool,
    /// The threshold that can no longer pass, so that nothing more should be sent.
    pub(super) aborted_by: OnceLock<Threshold>,
    /// The first request of the part's warm-up, and of its run, that no thread has taken.
    pub(super) next: [AtomicU64; 2],
    /// Events of the warm-up without a response, which may be counted at any time.
    pub(super) late: AtomicU64,
    pub(super) progress: Vec<CachePadded<Progress>>,
    /// The gate of a phase. Each thread passes it twice: when all threads are ready, and when all may start.
    pub(super) gate: Barrier,
}

impl Run {
    /// Returns the most connections of a thread at any time from `from_ns` to `to_ns`. Thread `t` of `T` has the
    /// connections that are `t` modulo `T`, so that all threads take part in a ramp.
    pub(super) fn connections_of(&self, thread: usize, from_ns: u64, to_ns: u64) -> usize {
        let all = self.crowd.between(self.part, from_ns, to_ns);
        all / self.threads + usize::from(thread < all % self.threads)
    }

    /// Reports whether the run has as many requests as it can send within its duration.
    pub(super) fn is_open_ended(&self) -> bool {
        self.pace.is_none() && self.duration.is_some()
    }

    /// Returns the time when sending stops. In a closed loop, this is the end of the run's duration. The requests of an
    /// open loop are all due before that, and may be late by the timeout.
    pub(super) fn stop_ns(&self) -> Option<u64> {
        let patience = if self.pace.is_some() { self.timeout } else { Duration::ZERO };
        let stop = self.duration?.saturating_add(patience);
        Some(u64::try_from(stop.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Returns the number of events that other clients may send, before the run and in it.
    pub(super) fn events_of_others(&self) -> u64 {
        let of_others = |workload: &Workload| workload.events - workload.len_of(self.part.rest(0));
        of_others(&self.workload) + of_others(&self.earlier())
    }

    /// Returns the events of the warm-up.
    pub(super) fn earlier(&self) -> Workload {
        Workload { events: self.warm_up, ..self.workload }
    }
}

/// The threads' common knowledge of whether the server keeps connections open.
#[derive(Debug)]
pub(super) struct KeepAlive {
    /// Whether the server closes connections after each response, so that each connection takes one request.
    is_one_shot: AtomicBool,
    /// Whether the server was ever found to do so.
    was_one_shot: AtomicBool,
    /// Connections that ended after one response, contrary to the server's promise, since one last took two requests.
    broken: AtomicU64,
}

impl KeepAlive {
    pub(super) fn new(keeps_alive: bool) -> KeepAlive {
        KeepAlive {
            is_one_shot: AtomicBool::new(!keeps_alive),
            was_one_shot: AtomicBool::new(!keeps_alive),
            broken: AtomicU64::new(0),
        }
    }

    /// Reports whether each connection takes only one request.
    #[inline]
    pub(super) fn is_one_shot(&self) -> bool {
        self.is_one_shot.load(Ordering::Relaxed)
    }

    /// Reports whether each connection took only one request at some time.
    pub(super) fn was_one_shot(&self) -> bool {
        self.was_one_shot.load(Ordering::Relaxed)
    }

    /// Records a connection that ended after one response, contrary to the server's promise.
    pub(super) fn note_broken(&self) {
        if self.broken.fetch_add(1, Ordering::Relaxed) + 1 >= BROKEN_PROMISES {
            self.is_one_shot.store(true, Ordering::Relaxed);
            self.was_one_shot.store(true, Ordering::Relaxed);
        }
    }

    /// Records a connection that took a second request.
    pub(super) fn note_second_response(&self) {
        if self.broken.load(Ordering::Relaxed) > 0 {
            self.broken.store(0, Ordering::Relaxed);
        }
    }

    /// Records a connection that stayed open after a response, although it was expected to close.
    pub(super) fn note_kept(&self) {
        self.broken.store(0, Ordering::Relaxed);
        self.is_one_shot.store(false, Ordering::Relaxed);
    }
}

/// Returns the requests of a part that no thread of a closed loop took.
pub(super) fn rest_of_closed_loop(part: Part, next: &AtomicU64, workload: &Workload) -> Rest {
    part.rest(next.load(Ordering::Relaxed).min(part.share(workload.requests())))
}
