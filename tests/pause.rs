//! The first request after a pause: a shard that sleeps must wake up at once, however long it has slept,
//! on a new connection as on one that was held. And the stop: with nothing in flight it takes no time.
//!
//! A missed wake-up loses nothing, so no total shows it. It shows here as a response that comes with
//! the shard's next tick, up to a second late, in tens of percent of the requests.
//!
//! `ci/kernels` runs this file's binary on other kernels: `RINGTALLY_TEST_BINARY` names the program there,
//! and `RINGTALLY_TEST_SLOWDOWN` says how many times as long everything may take where the processor is
//! emulated.

#![allow(clippy::unwrap_used, reason = "a panic is a failure")]

mod common;

use common::{Client, Server};
use ringtally::topology::{allowed_cpus, pin_to};
use rustix::process::Signal;
use std::collections::VecDeque;
use std::fmt::Write;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const SHARDS: [&str; 3] = ["1", "2", "4"];

/// A response that comes later than this is late.
const RESPONSE_MAX: Duration = Duration::from_millis(50);
/// A stop that takes longer than this is late.
const STOP_MAX: Duration = Duration::from_millis(100);

/// Pauses in milliseconds, on a logarithmic scale from 1 ms to 3 s, in two lanes that take about as long as
/// each other: one round of the long pauses, many of the short ones.
const LONG_PAUSES_MS: [u64; 7] = [150, 250, 400, 650, 1000, 1800, 3000];
const SHORT_PAUSES_MS: [u64; 10] = [1, 2, 3, 5, 8, 13, 20, 33, 55, 90];
const SHORT_ROUNDS: usize = 28;
const LANES: [(&[u64], usize); 2] = [(&LONG_PAUSES_MS, 1), (&SHORT_PAUSES_MS, SHORT_ROUNDS)];

/// Pauses before a stop.
const STOP_PAUSES_MS: [u64; 4] = [0, 30, 300, 1500];
/// Connections before a stop: none, and more than are held.
const STOP_CONNECTIONS: [usize; 2] = [0, 3 * HELD];

/// After this long without work every shard sleeps.
const SLEEPY: Duration = Duration::from_millis(30);

/// Connections that a lane holds. With several shards, some of the new ones are handed over to another shard.
const HELD: usize = 4;

/// So many late responses of one server are enough to know, and waiting for more would take long.
const LATE_ENOUGH: usize = 5;

fn start(engine: &str, shards: &str) -> Server {
    let binary = std::env::var("RINGTALLY_TEST_BINARY");
    let mut command = Command::new(binary.as_deref().unwrap_or(env!("CARGO_BIN_EXE_ringtally")));
    command.args(["serve", "--port", "0", "--engine", engine, "--shards", shards]);
    Server::start_command(command)
}

/// How long something may take that takes `max` on a real processor.
fn scaled(max: Duration) -> Duration {
    let slowdown = std::env::var("RINGTALLY_TEST_SLOWDOWN");
    max * slowdown.map_or(1, |times| times.parse().unwrap())
}

/// Knows when this machine did not run a thread that was due, so that a server that was kept waiting with it
/// is not blamed. On each CPU a thread sleeps for a tick, and notes when it was woken late.
///
/// This cannot hide a missed wake-up: a shard that misses one is late while these threads are on time.
struct Scheduler {
    watches: Vec<Arc<Mutex<Watch>>>,
    done: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

struct Watch {
    woken: Instant,
    /// From when to when the thread was due and did not run.
    stalls: Vec<(Instant, Instant)>,
}

impl Scheduler {
    const TICK: Duration = Duration::from_millis(5);
    /// A thread that is woken later than this was stalled.
    const STALL_MIN: Duration = Duration::from_millis(5);
    /// Threads that run one after the other between a request and its response: of the shard that accepts, of the
    /// shard that serves, of the client, and one to spare. Each may be stalled as long as the others.
    const THREADS_IN_A_ROW: u32 = 4;

    fn watch() -> Scheduler {
        let done = Arc::new(AtomicBool::new(false));
        let (mut watches, mut threads) = (Vec::new(), Vec::new());
        for cpu in allowed_cpus() {
            let watch = Watch { woken: Instant::now(), stalls: Vec::new() };
            let watch = Arc::new(Mutex::new(watch));
            watches.push(Arc::clone(&watch));
            let done = Arc::clone(&done);
            threads.push(thread::spawn(move || {
                assert!(pin_to(cpu), "cannot pin a thread to CPU {cpu}");
                while !done.load(Ordering::Relaxed) {
                    let due = Instant::now() + Scheduler::TICK;
                    thread::sleep(Scheduler::TICK);
                    let woken = Instant::now();
                    let mut watch = watch.lock().unwrap();
                    watch.woken = woken;
                    if woken.saturating_duration_since(due) > Scheduler::STALL_MIN {
                        watch.stalls.push((due, woken));
                    }
                }
            }));
        }
        Scheduler { watches, done, threads }
    }

    /// How much longer something may have taken from `start` to `end` because threads were not run.
    fn allowance(&self, start: Instant, end: Instant) -> Duration {
        let longest = |watch: &Arc<Mutex<Watch>>| {
            // A stall that has not ended is not noted yet.
            while watch.lock().unwrap().woken < end {
                thread::sleep(Scheduler::TICK);
            }
            let watch = watch.lock().unwrap();
            let of_then = watch.stalls.iter().filter(|(due, woken)| *due < end && *woken > start);
            of_then.map(|(due, woken)| *woken - *due).max()
        };
        let longest = self.watches.iter().filter_map(longest).max();
        longest.unwrap_or_default() * Scheduler::THREADS_IN_A_ROW
    }

    /// Whether what began at `start` and has just ended took longer than `max`, and this machine does not
    /// explain it.
    fn is_late(&self, start: Instant, max: Duration) -> Option<Duration> {
        let end = Instant::now();
        let taken = end - start;
        (taken > max && taken > max + self.allowance(start, end)).then_some(taken)
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// The connections of a lane, oldest first.
#[derive(Default)]
struct Held(VecDeque<Client>);

impl Held {
    /// Ends the oldest connection where one more would be too many.
    fn make_room(&mut self) {
        if self.0.len() == HELD {
            self.0.pop_front();
        }
    }

    fn oldest(&mut self) -> Client {
        self.0.pop_front().unwrap()
    }

    fn keep(&mut self, client: Client) {
        self.0.push_back(client);
    }
}

/// What was late, a sentence each.
#[derive(Default)]
struct Findings {
    requests: usize,
    late: Vec<String>,
}

/// Requests on new and on held connections in turn, each after a pause in which the server has nothing to do.
fn lane(
    engine: &str,
    shards: &str,
    pauses_ms: &[u64],
    rounds: usize,
    scheduler: &Scheduler,
) -> Findings {
    let server = start(engine, shards);
    let mut held = Held::default();
    let mut findings = Findings::default();
    for round in 0..rounds {
        for pause_ms in pauses_ms {
            for is_new in [true, false] {
                if findings.late.len() == LATE_ENOUGH {
                    return findings;
                }
                if is_new {
                    held.make_room();
                }
                thread::sleep(Duration::from_millis(*pause_ms));
                let start = Instant::now();
                let mut client = if is_new { server.client() } else { held.oldest() };
                client.event("u", 1.0);
                findings.requests += 1;
                if let Some(taken) = scheduler.is_late(start, scaled(RESPONSE_MAX)) {
                    findings.late.push(format!(
                        "{engine}, {shards} shards: {} ms on a {} connection after a pause of {pause_ms} ms \
                         (round {round})",
                        taken.as_millis(),
                        if is_new { "new" } else { "held" },
                    ));
                }
                held.keep(client);
            }
        }
    }
    assert_eq!(server.stop().total, findings.requests as u64);
    findings
}

fn every_first_response_is_in_time(engine: &str) {
    let scheduler = Scheduler::watch();
    let findings: Vec<Findings> = thread::scope(|scope| {
        let lanes = SHARDS.iter().flat_map(|shards| LANES.map(|lane| (shards, lane)));
        let threads: Vec<_> = lanes
            .map(|(shards, (pauses_ms, rounds))| {
                let scheduler = &scheduler;
                scope.spawn(move || lane(engine, shards, pauses_ms, rounds, scheduler))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    report(&findings, "requests");
}

fn report(findings: &[Findings], what: &str) {
    let requests: usize = findings.iter().map(|findings| findings.requests).sum();
    let late: Vec<&String> = findings.iter().flat_map(|findings| &findings.late).collect();
    let mut text = String::new();
    for line in &late {
        writeln!(text, "{line}").unwrap();
    }
    assert!(late.is_empty(), "{} of {requests} {what} were late:\n{text}", late.len());
}

fn every_stop_is_in_time(engine: &str) {
    let scheduler = Scheduler::watch();
    let stops = |shards: &str| {
        let mut findings = Findings::default();
        for pause_ms in STOP_PAUSES_MS {
            for connections in STOP_CONNECTIONS {
                let server = start(engine, shards);
                // Connections come and go, and wake shards that sleep, as they do before most stops.
                let mut held = Held::default();
                for _ in 0..connections {
                    held.make_room();
                    thread::sleep(SLEEPY);
                    let mut client = server.client();
                    client.event("u", 1.0);
                    held.keep(client);
                }
                thread::sleep(Duration::from_millis(pause_ms));
                let start = Instant::now();
                server.signal(Signal::TERM);
                let (code, printed) = server.wait();
                let late = scheduler.is_late(start, scaled(STOP_MAX));
                assert_eq!(code, Some(0), "{printed}");
                findings.requests += 1;
                findings.late.extend(late.map(|taken| {
                    format!(
                        "{engine}, {shards} shards: {} ms with {} idle connections after a pause of \
                         {pause_ms} ms",
                        taken.as_millis(),
                        held.0.len(),
                    )
                }));
            }
        }
        findings
    };
    let findings: Vec<Findings> = thread::scope(|scope| {
        let threads: Vec<_> = SHARDS.iter().map(|shards| scope.spawn(|| stops(shards))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    report(&findings, "stops");
}

#[test]
fn ring_responds_at_once_after_any_pause() {
    every_first_response_is_in_time("ring");
}

#[test]
fn streams_respond_at_once_after_any_pause() {
    every_first_response_is_in_time("streams");
}

#[test]
fn ring_stops_at_once_with_nothing_in_flight() {
    every_stop_is_in_time("ring");
}

#[test]
fn streams_stop_at_once_with_nothing_in_flight() {
    every_stop_is_in_time("streams");
}
