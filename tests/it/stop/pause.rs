//! The first request after a pause: a sleeping shard must wake up immediately, however long it has slept, on a new connection
//! as well as on an old one. And the stop: with nothing in flight it is immediate.
//!
//! A missed wake-up loses nothing, so no total shows it. It shows here as a response that arrives with the shard's next tick,
//! up to a second late, for tens of percent of the requests.
//!
//! `ci/kernels` runs this file's binary on other kernels: `RINGTALLY_TEST_BINARY` names the program there, and
//! `RINGTALLY_TEST_SLOWDOWN` is the factor by which everything may take longer on an emulated processor.

use crate::world::{Client, Server};
use ringtally::topology::{allowed_cpus, pin_to};
use rustix::process::Signal;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const SHARDS: [usize; 3] = [1, 2, 4];

/// A response that comes later than this is late.
const RESPONSE_MAX: Duration = Duration::from_millis(50);
/// A stop that takes longer than this is late.
const STOP_MAX: Duration = Duration::from_millis(250);

/// More late responses or stops than this are a missed wake-up, which delays tens of percent. The kernel delays one now and
/// then: a process that ends waits for locks of its memory, and a busy machine may stall several threads in a row.
const LATE_RESPONSES_MAX: usize = 1;
const LATE_STOPS_MAX: usize = 2;

/// Pauses in milliseconds, on a logarithmic scale from 1 ms to 3 s, in two lanes that take about the same time: one round of
/// the long pauses, and many rounds of the short ones.
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

/// Connections that a lane holds. With several shards, some new connections are handed over to another shard.
const HELD: usize = 4;
/// Connections of a lane before anything is timed.
const WARM_UP: usize = 3 * HELD;

/// The number of late responses of one server that is enough to know. Waiting for more would take long.
const LATE_ENOUGH: usize = 5;

fn start(engine: &str, shards: usize) -> Server {
    let mut command = crate::world::ringtally();
    command.args(["serve", "--port", "0", "--engine", engine, "--shards", &shards.to_string()]);
    Server::start_command(command)
}

/// Returns the time allowed for something that takes `max` on a real processor.
fn scaled(max: Duration) -> Duration {
    let slowdown = std::env::var("RINGTALLY_TEST_SLOWDOWN");
    max * slowdown.map_or(1, |times| times.parse().unwrap())
}

/// A watch for the times when this machine did not run a thread that was due, so that a server that had to wait, too, is not
/// blamed. On each CPU a thread sleeps for a tick, and notes when it was woken late.
///
/// This cannot hide a missed wake-up, because these threads are on time while the shard that misses it is late.
struct Scheduler {
    watches: Vec<Arc<Mutex<Watch>>>,
    done: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

struct Watch {
    woken: Instant,
    /// The intervals from when the thread was due until it ran.
    stalls: Vec<(Instant, Instant)>,
}

impl Scheduler {
    const TICK: Duration = Duration::from_millis(5);
    /// A thread that is woken later than this was stalled.
    const STALL_MIN: Duration = Duration::from_millis(5);
    /// The number of threads that run one after the other between a request and its response: the accepting shard's, the
    /// serving shard's, the client's, and one to spare. Each may be stalled as long as the others.
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

    /// Returns the additional time that something may have taken from `start` to `end` because threads were not run.
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
    /// Ends the oldest connection if one more would be too many.
    fn make_room(&mut self) {
        if self.0.len() == HELD {
            self.0.pop_front();
        }
    }

    fn oldest(&mut self) -> Client {
        self.0.pop_front().unwrap()
    }

    fn keep_after_event(&mut self, mut client: Client) {
        client.event("u", 1.0);
        self.0.push_back(client);
    }
}

/// The results of timing.
#[derive(Default)]
struct Findings {
    count: usize,
    longest: Duration,
    /// A sentence for each late response or stop.
    late: Vec<String>,
}

impl Findings {
    /// Notes something that began at `start` and has just ended.
    fn note(&mut self, start: Instant, max: Duration, scheduler: &Scheduler, what: &str) {
        let end = Instant::now();
        let taken = end - start;
        let max = scaled(max);
        self.count += 1;
        self.longest = self.longest.max(taken);
        if taken > max && taken > max + scheduler.allowance(start, end) {
            self.late.push(format!("{} ms {what}", taken.as_millis()));
        }
    }

    fn report(all: &[Findings], what: &str, late_max: usize) {
        let count: usize = all.iter().map(|findings| findings.count).sum();
        let longest = all.iter().map(|findings| findings.longest).max().unwrap();
        let late: Vec<&str> =
            all.iter().flat_map(|findings| &findings.late).map(String::as_str).collect();
        println!("{count} {what}, the longest took {} ms", longest.as_millis());
        assert!(
            late.len() <= late_max,
            "{} of {count} {what} were late:\n{}",
            late.len(),
            late.join("\n")
        );
    }
}

/// Sends requests on new and on held connections in turn, each after a pause without work for the server.
fn lane(
    engine: &str,
    shards: usize,
    pauses_ms: &[u64],
    rounds: usize,
    scheduler: &Scheduler,
) -> Findings {
    let server = start(engine, shards);
    let mut held = Held::default();
    let mut findings = Findings::default();
    // The first run of code reads it from the disk, and translates it if the processor is emulated.
    for _ in 0..WARM_UP {
        held.make_room();
        held.keep_after_event(server.client());
    }
    for round in 0..rounds {
        for pause_ms in pauses_ms {
            for kind in ["new", "held"] {
                if findings.late.len() == LATE_ENOUGH {
                    return findings;
                }
                if kind == "new" {
                    held.make_room();
                }
                thread::sleep(Duration::from_millis(*pause_ms));
                let start = Instant::now();
                let client = if kind == "new" { server.client() } else { held.oldest() };
                held.keep_after_event(client);
                let what = format!(
                    "with {engine} on {shards} shard(s), on a {kind} connection, after a pause of {pause_ms} ms in \
                     round {round}"
                );
                findings.note(start, RESPONSE_MAX, scheduler, &what);
            }
        }
    }
    assert_eq!(server.stop().total, (WARM_UP + findings.count) as u64);
    findings
}

fn every_first_response_is_in_time(engine: &str) {
    let scheduler = &Scheduler::watch();
    let findings: Vec<Findings> = thread::scope(|scope| {
        let lanes = SHARDS.iter().flat_map(|shards| LANES.map(|lane| (*shards, lane)));
        let threads: Vec<_> = lanes
            .map(|(shards, (pauses_ms, rounds))| {
                scope.spawn(move || lane(engine, shards, pauses_ms, rounds, scheduler))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    Findings::report(&findings, "responses", LATE_RESPONSES_MAX);
}

/// Stops servers without connections, and servers whose connections came and went and woke sleeping shards.
fn stops(engine: &str, shards: usize, scheduler: &Scheduler) -> Findings {
    let mut findings = Findings::default();
    for pause_ms in STOP_PAUSES_MS {
        for connections in STOP_CONNECTIONS {
            let server = start(engine, shards);
            let mut held = Held::default();
            for _ in 0..connections {
                held.make_room();
                thread::sleep(SLEEPY);
                held.keep_after_event(server.client());
            }
            thread::sleep(Duration::from_millis(pause_ms));
            let start = Instant::now();
            server.signal(Signal::TERM);
            let (code, printed, log) = server.wait_with_log();
            let what = format!(
                "with {engine} on {shards} shard(s), after {connections} connections and a pause of {pause_ms} ms: \
                 {log:?}"
            );
            findings.note(start, STOP_MAX, scheduler, &what);
            assert_eq!(code, Some(0), "{printed}");
        }
    }
    findings
}

fn every_stop_is_in_time(engine: &str) {
    let scheduler = &Scheduler::watch();
    let findings: Vec<Findings> = thread::scope(|scope| {
        let threads = SHARDS.map(|shards| scope.spawn(move || stops(engine, shards, scheduler)));
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    Findings::report(&findings, "stops", LATE_STOPS_MAX);
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
