//! What Prometheus is told: counters with one writer a shard, and their text.

use crate::http::{Method, Waited};
use crate::tally::Totals;
use crossbeam_utils::CachePadded;
use procfs::process::Process;
use procfs::{boot_time_secs, page_size, ticks_per_second};
use std::fmt::Write;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that one thread writes and any may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it. For the thread alone that this counter belongs to: no read-modify-write.
    #[inline]
    pub fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    /// Sets it, where it is a gauge.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Takes from it, where it is a gauge.
    pub fn subtract(&self, less: u64) {
        self.add(less.wrapping_neg());
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a request was for, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/event`
    Event,
    /// `/stats`
    Stats,
    /// `/health`
    Health,
    /// `/reset`
    Reset,
    /// `/metrics`
    Metrics,
    /// `/`
    Page,
    /// Any other path, none, or a request refused before it had one.
    Other,
}

const ENDPOINTS: [&str; 7] = ["/event", "/stats", "/health", "/reset", "/metrics", "/", "other"];
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "OPTIONS", "CONNECT", "other", "unknown"];
const STATUSES: [u16; 18] =
    [200, 201, 204, 400, 401, 403, 404, 405, 408, 413, 414, 417, 431, 501, 503, 505, 507, 0];

fn method_index(method: Method) -> usize {
    match method {
        Method::Get => 0,
        Method::Head => 1,
        Method::Post => 2,
        Method::Options => 3,
        Method::Connect => 4,
        Method::Other => 5,
        Method::Unknown => 6,
    }
}

/// Why an event was not counted, as a label; the index is the counter's.
pub const FAILURES: [&str; 9] = [
    "not_utf8",
    "lone_surrogate",
    "not_json",
    "wrong_type",
    "repeated_member",
    "missing_member",
    "empty_user",
    "long_user",
    "users_full",
];

/// Upper bounds of the duration histogram, in microseconds.
const BUCKETS_US: [u64; 14] =
    [10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 1_000_000];

/// What a slow peer was waited for, as a label; the last are answers to be taken.
const WAITED: [&str; 4] = ["idle", "header", "body", "send"];

/// The numbers of one shard, written by its thread.
#[derive(Debug, Default)]
pub struct ShardMetrics {
    requests: [[[Counter; STATUSES.len()]; METHODS.len()]; ENDPOINTS.len()],
    failures: [Counter; FAILURES.len()],
    buckets: [Counter; BUCKETS_US.len() + 1],
    duration_ns: Counter,
    timeouts: [Counter; WAITED.len()],
    /// Requests begun and not answered, or answered and not taken, at the last tick.
    pub in_flight: Counter,
    /// Connections that this shard serves.
    pub connections: Counter,
    /// Connections accepted from the listener.
    pub accepted: Counter,
    /// Of those, told that there is no room, or closed without a word.
    pub refused: Counter,
    /// Of those, given to another shard.
    pub handed_over: Counter,
    /// Bytes of requests.
    pub received_bytes: Counter,
    /// Bytes of answers.
    pub sent_bytes: Counter,
    /// Batches of received bytes that were handled before answers left.
    pub turns: Counter,
    /// Calls of io_uring_enter by the ring engine.
    pub enters: Counter,
    /// Completions of the ring engine.
    pub completions: Counter,
    /// Times that the ring engine went to sleep.
    pub sleeps: Counter,
    /// Nanoseconds that it has polled.
    pub polled_ns: Counter,
    /// Receives that found no buffer.
    pub exhausted: Counter,
    /// The kernel's number of the shard's thread.
    pub thread: Counter,
}

impl ShardMetrics {
    /// Counts an answer.
    #[inline]
    pub fn note_response(&self, method: Method, endpoint: Endpoint, status: u16) {
        // The common ones come first.
        let known = STATUSES.iter().position(|known| *known == status);
        let status = known.unwrap_or(STATUSES.len() - 1);
        self.requests[endpoint as usize][method_index(method)][status].add(1);
    }

    /// Counts an event that was not counted, by its index in [`FAILURES`].
    pub fn note_failure(&self, reason: usize) {
        self.failures[reason].add(1);
    }

    /// Counts a peer that was too slow: to send, or, with `None`, to take its answers.
    pub fn note_timeout(&self, waited: Option<Waited>) {
        self.timeouts[waited.map_or(WAITED.len() - 1, |waited| waited as usize)].add(1);
    }

    /// Counts requests that were received together and whose answers were queued `took` later.
    #[inline]
    pub fn note_turn(&self, requests: u64, took: Duration) {
        let ns = took.as_nanos() as u64;
        let bucket = BUCKETS_US.iter().position(|bound| ns <= bound * 1000);
        self.buckets[bucket.unwrap_or(BUCKETS_US.len())].add(requests);
        self.duration_ns.add(ns * requests);
        self.turns.add(1);
    }
}

/// The numbers of all shards.
#[derive(Debug)]
struct Metrics {
    engine: &'static str,
    shards: Vec<CachePadded<ShardMetrics>>,
}

/// The numbers of one shard, for the thread that writes them, and a way to those of all.
#[derive(Debug)]
pub struct Reporter {
    metrics: Arc<Metrics>,
    shard: usize,
}

impl Deref for Reporter {
    type Target = ShardMetrics;

    #[inline]
    fn deref(&self) -> &ShardMetrics {
        &self.metrics.shards[self.shard]
    }
}

impl Reporter {
    /// One for each of so many shards on an engine, with zero everywhere.
    pub fn for_shards(shards: usize, engine: &'static str) -> Vec<Reporter> {
        let of_shards = (0..shards).map(|_| CachePadded::new(ShardMetrics::default())).collect();
        let metrics = Arc::new(Metrics { engine, shards: of_shards });
        (0..shards).map(|shard| Reporter { metrics: Arc::clone(&metrics), shard }).collect()
    }

    /// The numbers of all shards in the text format 0.0.4 of Prometheus. `totals` belong to one
    /// moment; the other numbers are read one by one. Cost: grows with the number of shards.
    pub fn text(&self, totals: &Totals) -> String {
        self.metrics.text(totals)
    }
}

impl Metrics {
    fn text(&self, totals: &Totals) -> String {
        let mut text = Text(String::with_capacity(16 * 1024));
        self.write_requests(&mut text);
        text.family("http_requests_in_flight", "gauge", "Requests begun and not answered yet.");
        text.sample("http_requests_in_flight", "", self.sum(|shard| &shard.in_flight));
        text.family("events_processed_total", "counter", "Events counted since the last reset.");
        text.sample("events_processed_total", "", totals.total_requests);
        text.family("events_failed_total", "counter", "Events refused, by reason.");
        for (index, reason) in FAILURES.iter().enumerate() {
            let failed = self.sum(|shard| &shard.failures[index]);
            text.sample("events_failed_total", &format!("reason=\"{reason}\""), failed);
        }
        text.family("event_values_sum_total", "counter", "Sum of the values of counted events.");
        text.sample("event_values_sum_total", "", totals.sum);
        text.family("unique_users_total", "counter", "Users of counted events.");
        text.sample("unique_users_total", "", totals.unique_users);
        self.write_shards(&mut text);
        self.write_process(&mut text);
        text.0
    }

    fn sum(&self, of: impl Fn(&ShardMetrics) -> &Counter) -> u64 {
        self.shards.iter().map(|shard| of(shard).get()).sum()
    }

    fn write_requests(&self, text: &mut Text) {
        let name = "http_requests_total";
        text.family(name, "counter", "Answers, by method, endpoint and status.");
        for (endpoint, endpoint_name) in ENDPOINTS.iter().enumerate() {
            for (method, method_name) in METHODS.iter().enumerate() {
                for (index, status) in STATUSES.iter().enumerate() {
                    let count = self.sum(|shard| &shard.requests[endpoint][method][index]);
                    if count > 0 {
                        let labels = format!(
                            "method=\"{method_name}\",endpoint=\"{endpoint_name}\",status=\"{status}\""
                        );
                        text.sample(name, &labels, count);
                    }
                }
            }
        }
        let name = "http_request_duration_seconds";
        text.family(name, "histogram", "Time in the server from receive to queued answer.");
        let mut count = 0;
        for (index, bound) in BUCKETS_US.iter().enumerate() {
            count += self.sum(|shard| &shard.buckets[index]);
            let labels = format!("le=\"{}\"", *bound as f64 / 1e6);
            text.sample("http_request_duration_seconds_bucket", &labels, count);
        }
        count += self.sum(|shard| &shard.buckets[BUCKETS_US.len()]);
        text.sample("http_request_duration_seconds_bucket", "le=\"+Inf\"", count);
        let seconds = self.sum(|shard| &shard.duration_ns) as f64 / 1e9;
        text.sample("http_request_duration_seconds_sum", "", seconds);
        text.sample("http_request_duration_seconds_count", "", count);
    }

    fn write_shards(&self, text: &mut Text) {
        type Of = fn(&ShardMetrics) -> &Counter;
        let families: [(&str, &str, &str, Of); 11] = [
            ("connections", "gauge", "Connections now.", |s| &s.connections),
            ("accepted_total", "counter", "Connections accepted.", |s| &s.accepted),
            ("refused_total", "counter", "Connections that there was no room for.", |s| &s.refused),
            ("handed_over_total", "counter", "Connections given to an emptier shard.", |s| {
                &s.handed_over
            }),
            ("received_bytes_total", "counter", "Bytes received.", |s| &s.received_bytes),
            ("sent_bytes_total", "counter", "Bytes of answers.", |s| &s.sent_bytes),
            ("turns_total", "counter", "Batches handled before their answers left.", |s| &s.turns),
            ("ring_enters_total", "counter", "Calls of io_uring_enter.", |s| &s.enters),
            ("ring_completions_total", "counter", "Completions.", |s| &s.completions),
            ("ring_sleeps_total", "counter", "Times that an idle ring slept.", |s| &s.sleeps),
            ("ring_buffers_exhausted_total", "counter", "Receives without a buffer.", |s| {
                &s.exhausted
            }),
        ];
        for (name, kind, help, of) in families {
            let name = format!("ringtally_{name}");
            text.family(&name, kind, help);
            for (index, shard) in self.shards.iter().enumerate() {
                text.sample(&name, &format!("shard=\"{index}\""), of(shard).get());
            }
        }
        let name = "ringtally_ring_polled_seconds_total";
        text.family(name, "counter", "Time that an idle ring polled before it slept.");
        for (index, shard) in self.shards.iter().enumerate() {
            let seconds = shard.polled_ns.get() as f64 / 1e9;
            text.sample(name, &format!("shard=\"{index}\""), seconds);
        }
        let name = "ringtally_timed_out_total";
        text.family(name, "counter", "Connections ended because the peer was slow.");
        for (index, shard) in self.shards.iter().enumerate() {
            for (kind, timeouts) in WAITED.iter().zip(&shard.timeouts) {
                text.sample(name, &format!("shard=\"{index}\",waited=\"{kind}\""), timeouts.get());
            }
        }
        text.family("ringtally_cpu_seconds_total", "counter", "CPU time of a shard's thread.");
        for (index, shard) in self.shards.iter().enumerate() {
            if let Some(seconds) = thread_cpu_seconds(shard.thread.get()) {
                text.sample("ringtally_cpu_seconds_total", &format!("shard=\"{index}\""), seconds);
            }
        }
    }

    fn write_process(&self, text: &mut Text) {
        text.family("ringtally_build_info", "gauge", "Version and engine.");
        let (version, engine) = (env!("CARGO_PKG_VERSION"), self.engine);
        let labels = format!("version=\"{version}\",engine=\"{engine}\"");
        text.sample("ringtally_build_info", &labels, 1);
        // A process may be unable to read its own numbers; they are left out then.
        let Ok(process) = Process::myself() else { return };
        if let Ok(stat) = process.stat() {
            let ticks = ticks_per_second() as f64;
            let seconds = (stat.utime + stat.stime) as f64 / ticks;
            let boot = boot_time_secs().unwrap_or(0) as f64;
            for (name, kind, help, value) in [
                ("process_cpu_seconds_total", "counter", "User and system CPU time.", seconds),
                (
                    "process_resident_memory_bytes",
                    "gauge",
                    "Resident memory.",
                    (stat.rss * page_size()) as f64,
                ),
                ("process_virtual_memory_bytes", "gauge", "Virtual memory.", stat.vsize as f64),
                (
                    "process_start_time_seconds",
                    "gauge",
                    "Start, in seconds of the Unix epoch.",
                    boot + stat.starttime as f64 / ticks,
                ),
                ("process_threads", "gauge", "Threads.", stat.num_threads as f64),
            ] {
                text.family(name, kind, help);
                text.sample(name, "", value);
            }
        }
        if let (Ok(open), Ok(limits)) = (process.fd_count(), process.limits()) {
            text.family("process_open_fds", "gauge", "Open file descriptors.");
            text.sample("process_open_fds", "", open);
            if let procfs::process::LimitValue::Value(max) = limits.max_open_files.soft_limit {
                text.family("process_max_fds", "gauge", "Limit of open file descriptors.");
                text.sample("process_max_fds", "", max);
            }
        }
    }
}

/// User and system time of a thread of this process.
fn thread_cpu_seconds(thread: u64) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
    let ns: u64 = stat.split(' ').next()?.parse().ok()?;
    Some(ns as f64 / 1e9)
}

/// The text format, a line at a time.
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }
}
