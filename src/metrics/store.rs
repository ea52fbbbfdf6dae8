//! The counters of the committer.

use super::{Counter, Text, bucket_of, canonical, nanoseconds};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The upper bounds of the duration of a commit, in microseconds.
const COMMIT_US: [u64; 13] = [
    100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000,
];

/// The upper bounds of the number of events that a commit carries.
const COMMIT_EVENTS: [u64; 7] = [1, 10, 100, 1000, 10_000, 100_000, 1_000_000];

/// The contribution of one server to the totals of a shared store.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerShare {
    /// The name of the server: a host and a port.
    pub name: String,
    /// The number of events that it has counted.
    pub events: u64,
    /// The number of users that it was the first to make durable.
    pub users: u64,
    /// The time since its last commit.
    pub age: Duration,
    /// Whether it is this server.
    pub is_this: bool,
}

/// The metrics of the store, written by the committer.
#[derive(Debug)]
pub struct StoreMetrics {
    durations: [Counter; COMMIT_US.len() + 1],
    duration_ns: Counter,
    events: [Counter; COMMIT_EVENTS.len() + 1],
    pub(crate) events_total: Counter,
    /// Commits that failed.
    pub errors: Counter,
    /// Commits that were superseded because another server had reset the totals.
    pub superseded: Counter,
    /// Reads of the totals across all servers.
    reads: Counter,
    /// The contributions of the servers to the last totals that were read, and the time of that read. `None` if other servers
    /// do not share the store, or nothing was read yet.
    group: Mutex<Option<(Vec<ServerShare>, Instant)>>,
    started: Instant,
    /// The time when the last commit became durable, in nanoseconds since `started`.
    settled_ns: AtomicU64,
    /// The time when the commit under way began, in nanoseconds since `started`; zero if no commit is under way.
    begun_ns: AtomicU64,
}

impl Default for StoreMetrics {
    /// Creates the metrics with all counters at zero and a commit just now, because what the store already held is durable.
    fn default() -> Self {
        StoreMetrics {
            durations: Default::default(),
            duration_ns: Counter::default(),
            events: Default::default(),
            events_total: Counter::default(),
            errors: Counter::default(),
            superseded: Counter::default(),
            reads: Counter::default(),
            group: Mutex::new(None),
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

    /// Counts a commit that carried `events` events and took `took`.
    pub fn note_commit(&self, events: u64, took: Duration) {
        let ns = nanoseconds(took);
        self.durations[bucket_of(&COMMIT_US, ns.div_ceil(1000))].add(1);
        self.duration_ns.add(ns);
        self.events[bucket_of(&COMMIT_EVENTS, events)].add(1);
        self.events_total.add(events);
        self.settled_ns.store(nanoseconds(self.started.elapsed()), Ordering::Relaxed);
        self.begun_ns.store(0, Ordering::Relaxed);
    }

    /// Counts a read of the totals. `servers` have contributed to them.
    pub fn note_read(&self, servers: Vec<ServerShare>) {
        self.reads.add(1);
        // The shares are replaced as a whole, so a lock that a panic has poisoned does not guard anything half done.
        *self.group.lock().unwrap_or_else(|error| error.into_inner()) =
            Some((servers, Instant::now()));
    }

    /// Returns the time since a noted time, in seconds.
    fn age(&self, noted_ns: u64) -> f64 {
        self.started.elapsed().saturating_sub(Duration::from_nanos(noted_ns)).as_secs_f64()
    }

    /// Writes the metrics. `waiting` groups of responses wait for a commit, and `voided` connections were closed because of
    /// another server's reset.
    pub(super) fn write(&self, text: &mut Text, waiting: u64, voided: u64) {
        let commits: u64 = self.durations.iter().map(Counter::get).sum();
        let name = "ringtally_store_commits_total";
        text.family(name, "counter", "Commits to the store.");
        text.sample(name, "", commits);
        let name = "ringtally_store_commit_duration_seconds";
        text.family(name, "histogram", "Time that a commit took until it was durable.");
        let seconds = self.duration_ns.get() as f64 / 1e9;
        let bounds = COMMIT_US.map(|us| canonical(us as f64 / 1e6));
        text.histogram(name, "", &bounds, &self.durations.each_ref().map(Counter::get), seconds);
        let name = "ringtally_store_commit_events";
        text.family(name, "histogram", "Events that a commit made durable.");
        let events = self.events_total.get() as f64;
        let bounds = COMMIT_EVENTS.map(|events| canonical(events as f64));
        text.histogram(name, "", &bounds, &self.events.each_ref().map(Counter::get), events);
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
        let group = self.group.lock().unwrap_or_else(|error| error.into_inner());
        if let Some((servers, read_at)) = &*group {
            self.write_group(text, servers, read_at.elapsed(), voided);
        }
    }

    /// Writes the metrics of the servers that share the store, which were read some time ago.
    fn write_group(&self, text: &mut Text, servers: &[ServerShare], ago: Duration, voided: u64) {
        let name = "ringtally_store_reads_total";
        text.family(name, "counter", "Reads of the totals over all servers.");
        text.sample(name, "", self.reads.get());
        let name = "ringtally_store_superseded_total";
        text.family(name, "counter", "Commits that met another server's reset, and were not made.");
        text.sample(name, "", self.superseded.get());
        let name = "ringtally_store_voided_total";
        text.family(
            name,
            "counter",
            "Connections closed without a response because of another server's reset.",
        );
        text.sample(name, "", voided);
        type Of = fn(&ServerShare) -> f64;
        let families: [(&str, &str, &str, Of); 4] = [
            (
                "events_total",
                "total",
                "Events since the last reset, by the server that counted them.",
                |s| s.events as f64,
            ),
            (
                "users_total",
                "total",
                "Their users, by the server that committed them first.",
                |s| s.users as f64,
            ),
            ("age_seconds", "gauge", "Time since a server's last commit.", |s| s.age.as_secs_f64()),
            ("is_this", "gauge", "1 for the server that reports this.", |s| f64::from(s.is_this)),
        ];
        let servers = by_name(servers, ago);
        for (name, kind, help, of) in families {
            let name = format!("ringtally_server_{name}");
            text.family(&name, kind, help);
            for server in &servers {
                text.sample(&name, &format!("server=\"{}\"", escaped(&server.name)), of(server));
            }
        }
    }
}

/// Merges servers by name, and adds the time since they were read to their ages. A restarted server has the same name as
/// before, so the contributions of both are added up, because a series has one value.
fn by_name(servers: &[ServerShare], ago: Duration) -> Vec<ServerShare> {
    let mut names: BTreeMap<&str, ServerShare> = BTreeMap::new();
    for server in servers {
        let age = server.age + ago;
        names
            .entry(&server.name)
            .and_modify(|known| {
                known.events += server.events;
                known.users += server.users;
                known.age = known.age.min(age);
                known.is_this |= server.is_this;
            })
            .or_insert_with(|| ServerShare { age, ..server.clone() });
    }
    names.into_values().collect()
}

/// Escapes a text as the value of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::*;

    fn share(name: &str, events: u64, users: u64, age_s: u64, is_this: bool) -> ServerShare {
        ServerShare { name: name.into(), events, users, age: Duration::from_secs(age_s), is_this }
    }

    #[test]
    fn each_name_has_one_series_with_what_all_its_servers_counted() {
        let metrics = StoreMetrics::default();
        let text = |metrics: &StoreMetrics| {
            let mut text = Text::new(Format::Prometheus, None);
            metrics.write(&mut text, 0, 7);
            text.finish()
        };
        assert!(!text(&metrics).contains("server"), "nobody shares the store");
        metrics.note_read(vec![
            share("b:1", 5, 3, 900, false),
            share("a\"\\:1", 1, 1, 2000, false),
            share("b:1", 7, 2, 100, true),
        ]);
        let text = text(&metrics);
        for line in [
            r#"ringtally_server_events_total{server="a\"\\:1"} 1"#,
            r#"ringtally_server_events_total{server="b:1"} 12"#,
            r#"ringtally_server_users_total{server="b:1"} 5"#,
            r#"ringtally_server_is_this{server="b:1"} 1"#,
            r#"ringtally_server_is_this{server="a\"\\:1"} 0"#,
            "ringtally_store_voided_total 7",
            "ringtally_store_reads_total 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        let age = r#"ringtally_server_age_seconds{server="b:1"} 10"#;
        assert!(text.contains(age), "the younger one's: {text}");
    }
}
