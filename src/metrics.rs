//! The metrics that Prometheus scrapes: counters with one writer per shard, and their text in two formats.

mod batches;
mod store;

use crate::event;
use crate::http::{Method, Status, Waited};
use crate::tally::Totals;
pub use batches::BatchMetrics;
use crossbeam_utils::CachePadded;
use procfs::process::Process;
use procfs::{boot_time_secs, page_size, ticks_per_second};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};
use std::fmt::Write;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;
pub use store::{ServerShare, StoreMetrics};

/// A number that one thread writes and any thread may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the counter. Only the thread that owns the counter may call this, because it is not an atomic read-modify-write.
    #[inline]
    pub fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    /// Sets a gauge.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Subtracts from a gauge. Only the thread that owns it may call this.
    pub fn subtract(&self, less: u64) {
        self.add(less.wrapping_neg());
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Declares an enum with the label of each variant, so that a counter's index and its label cannot disagree.
macro_rules! labeled {
    ($(#[$about:meta])* $visibility:vis enum $name:ident {
        $($(#[$about_variant:meta])* $variant:ident = $label:literal,)*
    }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $visibility enum $name {
            $($(#[$about_variant])* $variant,)*
        }

        impl $name {
            /// The labels, in the order of the variants: `variant as usize` is an index.
            const LABELS: [&str; [$($label),*].len()] = [$($label),*];
        }
    };
}

labeled! {
    /// The endpoint of a request.
    pub enum Endpoint {
        /// `/event`
        Event = "/event",
        /// `/events`
        Batch = "/events",
        /// `/stats`
        Stats = "/stats",
        /// `/health`
        Health = "/health",
        /// `/reset`
        Reset = "/reset",
        /// `/metrics`
        Metrics = "/metrics",
        /// `/openapi.json`
        Description = "/openapi.json",
        /// `/`
        Page = "/",
        /// Any other path, no path, or a request that was refused before its path was known.
        Other = "other",
    }
}

labeled! {
    /// The reason why an event was not counted.
    pub enum Failure {
        /// See [`event::Refusal::NotUtf8`].
        NotUtf8 = "not_utf8",
        /// See [`event::Refusal::LoneSurrogate`].
        LoneSurrogate = "lone_surrogate",
        /// See [`event::Refusal::NotJson`].
        NotJson = "not_json",
        /// See [`event::Refusal::WrongType`].
        WrongType = "wrong_type",
        /// See [`event::Refusal::Repeated`].
        RepeatedMember = "repeated_member",
        /// See [`event::Refusal::Missing`].
        MissingMember = "missing_member",
        /// See [`event::Refusal::EmptyUser`].
        EmptyUser = "empty_user",
        /// See [`event::Refusal::LongUser`].
        LongUser = "long_user",
        /// A line of a batch that is longer than the body of one event may be.
        LongLine = "long_line",
        /// `--max-users` users are already held.
        UsersFull = "users_full",
    }
}

impl From<event::Refusal> for Failure {
    fn from(refusal: event::Refusal) -> Failure {
        match refusal {
            event::Refusal::NotUtf8 => Failure::NotUtf8,
            event::Refusal::LoneSurrogate => Failure::LoneSurrogate,
            event::Refusal::NotJson => Failure::NotJson,
            event::Refusal::WrongType => Failure::WrongType,
            event::Refusal::Repeated => Failure::RepeatedMember,
            event::Refusal::Missing => Failure::MissingMember,
            event::Refusal::EmptyUser => Failure::EmptyUser,
            event::Refusal::LongUser => Failure::LongUser,
        }
    }
}

labeled! {
    /// The step that a peer was too slow to complete: sending something, or reading responses.
    enum Slowness {
        Idle = "idle",
        Header = "header",
        Body = "body",
        Send = "send",
    }
}

impl From<Option<Waited>> for Slowness {
    fn from(waited: Option<Waited>) -> Slowness {
        match waited {
            Some(Waited::Idle) => Slowness::Idle,
            Some(Waited::Header) => Slowness::Header,
            Some(Waited::Body) => Slowness::Body,
            None => Slowness::Send,
        }
    }
}

/// Every method with its label.
const METHODS: [(Method, &str); 7] = [
    (Method::Get, "GET"),
    (Method::Head, "HEAD"),
    (Method::Post, "POST"),
    (Method::Options, "OPTIONS"),
    (Method::Connect, "CONNECT"),
    (Method::Other, "other"),
    (Method::Unknown, "unknown"),
];
const _: () = {
    let mut index = 0;
    while index < METHODS.len() {
        assert!(METHODS[index].0 as usize == index, "`method as usize` is an index");
        index += 1;
    }
};

/// The upper bounds of the duration histogram, in microseconds.
const BUCKETS_US: [u64; 14] =
    [10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 1_000_000];

/// Converts a duration to nanoseconds, which fit for five centuries.
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns the index of the bucket that a value belongs to. A value above all bounds belongs to the
/// bucket after the last bound.
#[inline]
fn bucket_of(bounds: &[u64], value: u64) -> usize {
    bounds.iter().position(|bound| value <= *bound).unwrap_or(bounds.len())
}

/// The kind of a request in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The endpoint of the request.
    pub endpoint: Endpoint,
    /// The method of the request.
    pub method: Method,
}

impl Kind {
    /// An event.
    pub const EVENT: Kind = Kind { endpoint: Endpoint::Event, method: Method::Post };
    /// A batch.
    pub const BATCH: Kind = Kind { endpoint: Endpoint::Batch, method: Method::Post };

    /// A request whose kind is not known yet.
    pub const OTHER: Kind = Kind { endpoint: Endpoint::Other, method: Method::Other };

    /// Returns whether requests to an endpoint usually have this method. The series of usual requests exist
    /// before the first of them.
    fn is_usual(endpoint: usize, method: usize) -> bool {
        const WRITTEN: [usize; 3] =
            [Endpoint::Event as usize, Endpoint::Batch as usize, Endpoint::Reset as usize];
        let usual = if WRITTEN.contains(&endpoint) { Method::Post } else { Method::Get };
        endpoint != Endpoint::Other as usize && method == usual as usize
    }

    fn labels(endpoint: usize, method: usize) -> String {
        format!("method=\"{}\",endpoint=\"{}\"", METHODS[method].1, Endpoint::LABELS[endpoint])
    }
}

/// A number for each kind of request.
pub type OfKinds<T> = [[T; METHODS.len()]; Endpoint::LABELS.len()];

/// The durations of the requests of one kind.
#[derive(Debug, Default)]
struct Durations {
    buckets: [Counter; BUCKETS_US.len() + 1],
    ns: Counter,
}

/// The metrics of one shard, written by its thread.
#[derive(Debug, Default)]
pub struct ShardMetrics {
    requests: [[[Counter; Status::ALL.len()]; METHODS.len()]; Endpoint::LABELS.len()],
    failures: [Counter; Failure::LABELS.len()],
    durations: OfKinds<Durations>,
    timeouts: [Counter; Slowness::LABELS.len()],
    /// The CPU time of the shard's thread at its last tick, in nanoseconds.
    cpu_ns: Counter,
    /// Requests in progress or with unsent responses, at the last tick.
    in_flight: OfKinds<Counter>,
    /// The counters of batches.
    pub batches: BatchMetrics,
    /// Groups of responses on one connection that wait for the store.
    pub waiting: Counter,
    /// Connections that this shard serves.
    pub connections: Counter,
    /// Connections accepted from the listener.
    pub accepted: Counter,
    /// Accepted connections that were rejected with a response, or closed without one.
    pub refused: Counter,
    /// Accepted connections that were given to another shard.
    pub handed_off: Counter,
    /// Bytes of requests.
    pub received_bytes: Counter,
    /// Bytes of responses.
    pub sent_bytes: Counter,
    /// Turns. In each turn, received bytes were handled before responses were sent.
    pub turns: Counter,
    /// Calls of io_uring_enter by the ring engine.
    pub enters: Counter,
    /// Completions of the ring engine.
    pub completions: Counter,
    /// Times that the ring engine went to sleep.
    pub sleeps: Counter,
    /// The time that the ring engine has polled, in nanoseconds.
    pub polled_ns: Counter,
    /// Receives without a free buffer.
    pub exhausted: Counter,
    /// Connections that were closed because another server's reset voided their unsettled events.
    pub voided: Counter,
}

impl ShardMetrics {
    /// Counts a response.
    #[inline]
    pub fn note_response(&self, method: Method, endpoint: Endpoint, status: Status) {
        self.requests[endpoint as usize][method as usize][status as usize].add(1);
    }

    /// Counts a reason why an event was not counted.
    pub fn note_failure(&self, failure: Failure) {
        self.failures[failure as usize].add(1);
    }

    /// Counts a peer that was too slow to send something or, with `None`, to read its responses.
    pub fn note_timeout(&self, waited: Option<Waited>) {
        self.timeouts[Slowness::from(waited) as usize].add(1);
    }

    /// Counts events and other requests that were received together, and whose responses were queued `took` later.
    #[inline]
    pub fn note_iteration(&self, events: u64, others: &[Kind], took: Duration) {
        let ns = nanoseconds(took);
        let bucket = bucket_of(&BUCKETS_US, ns.div_ceil(1000));
        let note = |kind: Kind, requests: u64| {
            let durations = &self.durations[kind.endpoint as usize][kind.method as usize];
            durations.buckets[bucket].add(requests);
            durations.ns.add(ns * requests);
        };
        note(Kind::EVENT, events);
        others.iter().for_each(|kind| note(*kind, 1));
        self.turns.add(1);
    }

    /// Notes how many requests of each kind are in flight.
    pub fn note_in_flight(&self, in_flight: &OfKinds<u64>) {
        for (counters, counts) in self.in_flight.iter().zip(in_flight) {
            counters.iter().zip(counts).for_each(|(counter, count)| counter.set(*count));
        }
    }

    /// Notes the CPU time of the calling thread, which must be the shard's. Each shard reads its own CPU clock, because reading
    /// another thread's clock takes a file per thread.
    pub fn note_cpu_time(&self) {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        // A CPU clock starts at zero.
        self.cpu_ns.set(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64);
    }
}

/// The metrics of all shards.
#[derive(Debug)]
struct Metrics {
    engine: &'static str,
    /// The start of the process in seconds since the Unix epoch, if known.
    start_seconds: Option<f64>,
    shards: Vec<CachePadded<ShardMetrics>>,
    /// The metrics of the store, if there is one.
    store: OnceLock<Arc<StoreMetrics>>,
}

/// The metrics of one shard, for the thread that writes them. Can also report the metrics of all shards.
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
    /// Creates a reporter for each of `shards` shards of an engine, with all counters at zero.
    pub fn for_shards(shards: usize, engine: &'static str) -> Vec<Reporter> {
        let of_shards = (0..shards).map(|_| CachePadded::new(ShardMetrics::default())).collect();
        let start_seconds = *START_SECONDS;
        let store = OnceLock::new();
        let metrics = Arc::new(Metrics { engine, start_seconds, shards: of_shards, store });
        (0..shards).map(|shard| Reporter { metrics: Arc::clone(&metrics), shard }).collect()
    }

    /// Returns the number of shards.
    pub fn shards(&self) -> u32 {
        u32::try_from(self.metrics.shards.len()).unwrap_or(u32::MAX)
    }

    /// Adds the metrics of a store to the report. Call this at most once.
    pub fn report_store(&self, store: Arc<StoreMetrics>) {
        assert!(self.metrics.store.set(store).is_ok(), "a server has one store");
    }

    /// Returns the metrics of all shards, and of the memory that batches use. `totals` belong to one moment, and are left out
    /// if they are unknown; the other numbers are read one by one. The cost grows with the number of shards, not with the
    /// number of connections. The calling shard pays it, and its connections wait for that long.
    pub fn text(&self, totals: Option<&Totals>, batch_memory_bytes: u64, format: Format) -> String {
        self.metrics.text(totals, batch_memory_bytes, format)
    }
}

impl Metrics {
    fn text(&self, totals: Option<&Totals>, batch_memory_bytes: u64, format: Format) -> String {
        let mut text = Text::new(format, self.start_seconds);
        write_requests(&KindSums::of(&self.shards), &mut text);
        if let Some(totals) = totals {
            write_totals(&mut text, totals);
        }
        text.family("events_failed_total", "counter", "Events refused, by reason.");
        for (index, reason) in Failure::LABELS.iter().enumerate() {
            let failed = self.sum(|shard| &shard.failures[index]);
            text.sample("events_failed_total", &format!("reason=\"{reason}\""), failed);
        }
        let batches = self.shards.iter().map(|shard| &shard.batches);
        batches::write(batches, batch_memory_bytes, &mut text);
        self.write_shards(&mut text);
        if let Some(store) = self.store.get() {
            let waiting = self.sum(|shard| &shard.waiting);
            store.write(&mut text, waiting, self.sum(|shard| &shard.voided));
        }
        self.write_process(&mut text);
        text.finish()
    }

    fn sum(&self, of: impl Fn(&ShardMetrics) -> &Counter) -> u64 {
        self.shards.iter().map(|shard| of(shard).get()).sum()
    }

    fn write_shards(&self, text: &mut Text) {
        type Of = fn(&ShardMetrics) -> &Counter;
        let families: [(&str, &str, &str, Of); 11] = [
            ("connections", "gauge", "Connections now.", |s| &s.connections),
            ("accepted_total", "counter", "Connections accepted.", |s| &s.accepted),
            (
                "refused_total",
                "counter",
                "Connections rejected because the server was full.",
                |s| &s.refused,
            ),
            ("handed_over_total", "counter", "Connections given to a shard with fewer.", |s| {
                &s.handed_off
            }),
            ("received_bytes_total", "counter", "Bytes received.", |s| &s.received_bytes),
            ("sent_bytes_total", "counter", "Bytes sent.", |s| &s.sent_bytes),
            ("turns_total", "counter", "Turns in which requests were handled together.", |s| {
                &s.turns
            }),
            ("ring_enters_total", "counter", "Calls of io_uring_enter.", |s| &s.enters),
            ("ring_completions_total", "counter", "Completions of io_uring operations.", |s| {
                &s.completions
            }),
            ("ring_sleeps_total", "counter", "Times that an idle shard went to sleep.", |s| {
                &s.sleeps
            }),
            (
                "ring_buffers_exhausted_total",
                "counter",
                "Receives for which no buffer was free.",
                |s| &s.exhausted,
            ),
        ];
        for (name, kind, help, of) in families {
            let name = format!("ringtally_{name}");
            text.family(&name, kind, help);
            for (index, shard) in self.shards.iter().enumerate() {
                text.sample(&name, &shard_label(index), of(shard).get());
            }
        }
        let name = "ringtally_ring_polled_seconds_total";
        text.family(name, "counter", "Time that an idle shard polled before it slept.");
        for (index, shard) in self.shards.iter().enumerate() {
            let seconds = shard.polled_ns.get() as f64 / 1e9;
            text.sample(name, &shard_label(index), seconds);
        }
        let name = "ringtally_timed_out_total";
        text.family(name, "counter", "Connections ended because the peer was too slow.");
        for (index, shard) in self.shards.iter().enumerate() {
            for (kind, timeouts) in Slowness::LABELS.iter().zip(&shard.timeouts) {
                let labels = [&shard_label(index), ",waited=\"", kind, "\""].concat();
                text.sample(name, &labels, timeouts.get());
            }
        }
        let name = "ringtally_cpu_seconds_total";
        text.family(name, "counter", "CPU time of a shard's thread, as of its last tick.");
        for (index, shard) in self.shards.iter().enumerate() {
            let seconds = shard.cpu_ns.get() as f64 / 1e9;
            text.sample(name, &shard_label(index), seconds);
        }
    }

    fn write_process(&self, text: &mut Text) {
        text.family("ringtally_build_info", "info", "Version and engine.");
        let (version, engine) = (env!("CARGO_PKG_VERSION"), self.engine);
        let labels = format!("version=\"{version}\",engine=\"{engine}\"");
        text.sample("ringtally_build_info", &labels, 1u64);
        if let Some(start_seconds) = self.start_seconds {
            let name = "process_start_time_seconds";
            text.family(name, "gauge", "Start, in seconds of the Unix epoch.");
            text.sample(name, "", start_seconds);
        }
        // Without /proc, these are left out.
        if let Some(Ok(stat)) = PROCESS.as_ref().map(Process::stat) {
            let seconds = (stat.utime + stat.stime) as f64 / ticks_per_second() as f64;
            let resident_bytes = stat.rss * page_size();
            for (name, kind, help, value) in [
                ("process_cpu_seconds_total", "counter", "User and system CPU time.", seconds),
                (
                    "process_resident_memory_bytes",
                    "gauge",
                    "Resident memory.",
                    resident_bytes as f64,
                ),
                ("process_virtual_memory_bytes", "gauge", "Virtual memory.", stat.vsize as f64),
                ("process_threads", "gauge", "Threads.", stat.num_threads as f64),
            ] {
                text.family(name, kind, help);
                text.sample(name, "", value);
            }
        }
        // Listing the descriptors would take time that grows with the number of connections. Since
        // Linux 6.2, the size of the directory is the number of descriptors; before, it is zero.
        let open_fds = std::fs::metadata("/proc/self/fd").map_or(0, |folder| folder.len());
        if open_fds > 0 {
            text.family("process_open_fds", "gauge", "Open file descriptors.");
            text.sample("process_open_fds", "", open_fds);
        }
        if let Some(max_fds) = getrlimit(Resource::Nofile).current {
            text.family("process_max_fds", "gauge", "Limit of open file descriptors.");
            text.sample("process_max_fds", "", max_fds);
        }
    }
}

fn shard_label(index: usize) -> String {
    ["shard=\"", itoa::Buffer::new().format(index), "\""].concat()
}

/// The counters of all shards by the kind of request.
struct KindSums {
    requests: OfKinds<[u64; Status::ALL.len()]>,
    buckets: OfKinds<[u64; BUCKETS_US.len() + 1]>,
    ns: OfKinds<u64>,
    in_flight: OfKinds<u64>,
}

impl KindSums {
    /// Reads one shard after another, each in memory order, because there are two thousand counters per shard.
    fn of(shards: &[CachePadded<ShardMetrics>]) -> Box<KindSums> {
        let mut sums = Box::new(KindSums {
            requests: Default::default(),
            buckets: Default::default(),
            ns: Default::default(),
            in_flight: Default::default(),
        });
        let add_all = |sums: &mut [u64], counters: &[Counter]| {
            sums.iter_mut().zip(counters).for_each(|(sum, counter)| *sum += counter.get());
        };
        for shard in shards {
            for endpoint in 0..Endpoint::LABELS.len() {
                for method in 0..METHODS.len() {
                    add_all(
                        &mut sums.requests[endpoint][method],
                        &shard.requests[endpoint][method],
                    );
                    let durations = &shard.durations[endpoint][method];
                    sums.in_flight[endpoint][method] += shard.in_flight[endpoint][method].get();
                    let ns = durations.ns.get();
                    if ns > 0 {
                        sums.ns[endpoint][method] += ns;
                        add_all(&mut sums.buckets[endpoint][method], &durations.buckets);
                    }
                }
            }
        }
        sums
    }

    /// Returns the kinds that had requests, and the usual kinds.
    fn kinds(of_kinds: &OfKinds<u64>) -> impl Iterator<Item = (usize, usize, u64)> {
        of_kinds.iter().enumerate().flat_map(|(endpoint, of_methods)| {
            let of_methods = of_methods.iter().enumerate();
            of_methods.map(move |(method, number)| (endpoint, method, *number)).filter(
                |(endpoint, method, number)| *number > 0 || Kind::is_usual(*endpoint, *method),
            )
        })
    }
}

fn write_requests(sums: &KindSums, text: &mut Text) {
    let name = "http_requests_total";
    text.family(name, "counter", "Responses, by method, endpoint, and status.");
    for (endpoint, of_methods) in sums.requests.iter().enumerate() {
        for (method, of_statuses) in of_methods.iter().enumerate() {
            for (status, count) in Status::ALL.iter().zip(of_statuses) {
                if *count > 0 {
                    let kind = Kind::labels(endpoint, method);
                    let labels = format!("{kind},status=\"{}\"", status.code());
                    text.sample(name, &labels, *count);
                }
            }
        }
    }
    let name = "http_request_duration_seconds";
    let help = "Time in the server from receiving a request to queuing its response.";
    text.family(name, "histogram", help);
    let bounds = BUCKETS_US.map(|us| canonical(us as f64 / 1e6));
    for (endpoint, method, ns) in KindSums::kinds(&sums.ns) {
        let counts = &sums.buckets[endpoint][method];
        text.histogram(name, &Kind::labels(endpoint, method), &bounds, counts, ns as f64 / 1e9);
    }
    let name = "http_requests_in_flight";
    text.family(name, "gauge", "Requests in progress, or whose responses were not taken yet.");
    for (endpoint, method, count) in KindSums::kinds(&sums.in_flight) {
        text.sample(name, &Kind::labels(endpoint, method), count);
    }
}

fn write_totals(text: &mut Text, totals: &Totals) {
    text.family("events_processed_total", "total", "Events counted since the last reset.");
    text.sample("events_processed_total", "", totals.total_requests);
    text.family("event_values_sum_total", "sum", "Sum of the values of counted events.");
    text.sample("event_values_sum_total", "", totals.sum);
    text.family("unique_users_total", "total", "Users of counted events.");
    text.sample("unique_users_total", "", totals.unique_users);
}

/// This process, whose folder in /proc is found once.
static PROCESS: LazyLock<Option<Process>> = LazyLock::new(|| Process::myself().ok());

/// The start of this process in seconds since the Unix epoch. It is determined once, at startup, because reading the boot time
/// takes longer the more CPUs and interrupts the machine has.
static START_SECONDS: LazyLock<Option<f64>> = LazyLock::new(|| {
    let stat = PROCESS.as_ref()?.stat().ok()?;
    let boot_seconds = boot_time_secs().ok()?;
    Some(boot_seconds as f64 + stat.starttime as f64 / ticks_per_second() as f64)
});

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

/// The units that OpenMetrics declares, which are the last part of a family's name.
const UNITS: [&str; 2] = ["seconds", "bytes"];

/// Formats a number as OpenMetrics requires in a label, so that both formats have the same series.
fn canonical(number: f64) -> String {
    match number < 1e-4 {
        // The exponent has two digits, unlike in Rust.
        true => format!("{number:e}").replace("e-", "e-0"),
        false => format!("{number:?}"),
    }
}

/// The value of a sample.
enum Number {
    Integer(u64),
    Float(f64),
}

impl From<u64> for Number {
    fn from(value: u64) -> Number {
        Number::Integer(value)
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Number {
        Number::Float(value)
    }
}

/// Appends the name and the labels of a sample.
fn push_series(text: &mut String, name: &str, suffix: &str, labels: &str) {
    let (open, close) = if labels.is_empty() { ("", " ") } else { ("{", "} ") };
    [name, suffix, open, labels, close].iter().for_each(|part| text.push_str(part));
}

/// The metrics in a text format, line by line. Long lists of lines are built without a formatter, because with many shards
/// there are more than a thousand lines.
struct Text {
    text: String,
    format: Format,
    /// The time when counters began to count, in seconds since the Unix epoch, if known.
    start_seconds: Option<String>,
    /// Whether the samples of this family count since that time.
    counts_since_start: bool,
}

impl Text {
    fn new(format: Format, start_seconds: Option<f64>) -> Text {
        let text = String::with_capacity(16 * 1024);
        let start_seconds = start_seconds.map(|seconds| seconds.to_string());
        Text { text, format, start_seconds, counts_since_start: false }
    }

    /// Starts a family. Its kind is an OpenMetrics kind, or:
    /// - `total`: a counter of the tally. A reset makes it younger than the process, and a store may make it older;
    /// - `sum`: like `total`, for numbers that may be negative. By its name it is a counter, and Prometheus accepts it as a
    ///   counter, but OpenMetrics does not allow a counter to decrease.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.counts_since_start = kind == "counter";
        let (name, kind) = match (self.format, kind) {
            (Format::Prometheus, "total" | "sum") => (name, "counter"),
            (Format::Prometheus, "info") => (name, "gauge"),
            (Format::OpenMetrics, "total" | "counter") => {
                (name.strip_suffix("_total").unwrap_or(name), "counter")
            }
            (Format::OpenMetrics, "sum") => (name, "gauge"),
            (Format::OpenMetrics, "info") => (name.strip_suffix("_info").unwrap_or(name), "info"),
            (_, kind) => (name, kind),
        };
        // Writing to a string cannot fail.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        let unit = name.rsplit_once('_').map_or("", |(_, unit)| unit);
        if self.format == Format::OpenMetrics && UNITS.contains(&unit) {
            let _ = writeln!(self.text, "# UNIT {name} {unit}");
        }
    }

    /// Appends the samples of a histogram. `counts` has a count for each bucket, and the last bucket is above all bounds.
    /// `bounds` are formatted by [`canonical`].
    fn histogram(&mut self, name: &str, labels: &str, bounds: &[String], counts: &[u64], sum: f64) {
        let mut count = 0;
        let comma = if labels.is_empty() { "" } else { "," };
        let bounds = bounds.iter().map(String::as_str).chain(["+Inf"]);
        for (bound, more) in bounds.zip(counts) {
            count += more;
            for part in [name, "_bucket{", labels, comma, "le=\"", bound, "\"} "] {
                self.text.push_str(part);
            }
            self.end_line(Number::Integer(count));
        }
        self.sample_of(name, "_sum", labels, sum);
        self.sample_of(name, "_count", labels, count);
        self.created(name, labels);
    }

    fn sample_of(&mut self, name: &str, suffix: &str, labels: &str, value: impl Into<Number>) {
        push_series(&mut self.text, name, suffix, labels);
        self.end_line(value.into());
    }

    fn end_line(&mut self, value: Number) {
        match value {
            Number::Integer(value) => {
                self.text.push_str(itoa::Buffer::new().format(value));
                self.text.push('\n');
            }
            Number::Float(value) => {
                // Writing to a string cannot fail.
                let _ = writeln!(self.text, "{value}");
            }
        }
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Into<Number>) {
        self.sample_of(name, "", labels, value);
        if self.counts_since_start
            && let Some(family) = name.strip_suffix("_total")
        {
            self.created(family, labels);
        }
    }

    /// Appends the time when the last counter, or the histogram that ends here, began to count. Only
    /// OpenMetrics has such samples.
    fn created(&mut self, family: &str, labels: &str) {
        if let (Format::OpenMetrics, Some(seconds)) = (self.format, &self.start_seconds) {
            push_series(&mut self.text, family, "_created", labels);
            self.text.push_str(seconds);
            self.text.push('\n');
        }
    }

    fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}
