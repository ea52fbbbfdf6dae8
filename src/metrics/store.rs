//! What the committer counts.

use super::{Counter, Text, bucket_of, nanoseconds};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Upper bounds of the duration of a commit, in microseconds.
const COMMIT_US: [u64; 13] = [
    100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000,
];

/// Upper bounds of the events that a commit carries.
const COMMIT_EVENTS: [u64; 7] = [1, 10, 100, 1000, 10_000, 100_000, 1_000_000];

/// The metrics of the store, written by the committer.
#[derive(Debug)]
pub struct StoreMetrics {
    durations: [Counter; COMMIT_US.len() + 1],
    duration_ns: Counter,
    events: [Counter; COMMIT_EVENTS.len() + 1],
    events_total: Counter,
    /// Commits that failed.
    pub errors: Counter,
    started: Instant,
    /// When the last commit was durable, in nanoseconds since `started`.
    settled_ns: AtomicU64,
    /// When the commit under way began, in the same way; zero when there is none.
    begun_ns: AtomicU64,
}

impl Default for StoreMetrics {
    /// All counters at zero, and a commit just now: what the store held is durable.
    fn default() -> Self {
        StoreMetrics {
            durations: Default::default(),
            duration_ns: Counter::default(),
            events: Default::default(),
            events_total: Counter::default(),
            errors: Counter::default(),
            started: Instant::now(),
            settled_ns: AtomicU64::new(0),
            begun_ns: AtomicU64::new(0),
        }
    }
}

impl StoreMetrics {
    /// Notes that a commit begins.
    pub fn begin_commit(&self) {
        self.begun_ns.store(nanoseconds(self.started.elapsed()).max(1), Ordering::Relaxed);
    }

    /// Counts a commit that carried so many events and took so long.
    pub fn note_commit(&self, events: u64, took: Duration) {
        let ns = nanoseconds(took);
        self.durations[bucket_of(&COMMIT_US, ns.div_ceil(1000))].add(1);
        self.duration_ns.add(ns);
        self.events[bucket_of(&COMMIT_EVENTS, events)].add(1);
        self.events_total.add(events);
        self.settled_ns.store(nanoseconds(self.started.elapsed()), Ordering::Relaxed);
        self.begun_ns.store(0, Ordering::Relaxed);
    }

    /// How long ago a time was that was noted, in seconds.
    fn age(&self, noted_ns: u64) -> f64 {
        self.started.elapsed().saturating_sub(Duration::from_nanos(noted_ns)).as_secs_f64()
    }

    /// Writes them; `waiting` connections have responses that wait for a commit.
    pub(super) fn write(&self, text: &mut Text, waiting: u64) {
        let commits: u64 = self.durations.iter().map(Counter::get).sum();
        let name = "ringtally_store_commits_total";
        text.family(name, "counter", "Commits to the store.");
        text.sample(name, "", commits);
        let name = "ringtally_store_commit_duration_seconds";
        text.family(name, "histogram", "Time that a commit took until it was durable.");
        let seconds = self.duration_ns.get() as f64 / 1e9;
        text.histogram(name, &COMMIT_US.map(|us| us as f64 / 1e6), &self.durations, seconds);
        let name = "ringtally_store_commit_events";
        text.family(name, "histogram", "Events that a commit made durable.");
        let events = self.events_total.get() as f64;
        text.histogram(name, &COMMIT_EVENTS.map(|events| events as f64), &self.events, events);
        let name = "ringtally_store_responses_waiting";
        text.family(name, "gauge", "Groups of responses on one connection that wait for a commit.");
        text.sample(name, "", waiting);
        let name = "ringtally_store_last_commit_age_seconds";
        text.family(name, "gauge", "Time since the last commit was durable.");
        text.sample(name, "", self.age(self.settled_ns.load(Ordering::Relaxed)));
        let name = "ringtally_store_behind_seconds";
        text.family(name, "gauge", "Age of the commit under way; 0 when everything is durable.");
        let begun_ns = self.begun_ns.load(Ordering::Relaxed);
        text.sample(name, "", if begun_ns == 0 { 0.0 } else { self.age(begun_ns) });
        let name = "ringtally_store_errors_total";
        text.family(name, "counter", "Commits that failed.");
        text.sample(name, "", self.errors.get());
    }
}
