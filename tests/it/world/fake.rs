//! A slow and obvious server of the challenge that behaves as published ones do, or misbehaves in ways that a client
//! must detect.

use super::{eventually, run, text};
use serde_json::Value;
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

/// The habits of a published server, right or wrong.
#[derive(Clone, Copy)]
pub struct Habits {
    pub status: u16,
    pub body: &'static str,
    /// The `Connection` field, and whether the server closes after each response.
    pub connection: &'static str,
    pub closes: bool,
    /// Writes sums as Java does.
    pub java_floats: bool,
    /// The status of `POST /reset`; 200 resets.
    pub reset_status: u16,
    /// Counts every event for a new user.
    pub recounts_users: bool,
    /// Every nth request has all its events lost, counted twice, refused with a status, or left without a response; 0
    /// means never.
    pub loses: u64,
    pub doubles: u64,
    pub refuses: u64,
    pub refusal: u16,
    pub silent: u64,
    /// Every nth response is followed by bytes that nobody requested; 0 means never.
    pub trails: u64,
    pub trailer: &'static str,
    /// Every nth response has `Connection: close`, and is the last on its connection; 0 means never.
    pub closes_every: u64,
    /// True if that response is HTTP/1.0 without the field, and the time until its connection is closed.
    pub closes_silently: bool,
    pub lingers: Duration,
    /// From this number of requests on, new connections are rejected; 0 means never.
    pub full_from: u64,
    /// Every nth request has its connection closed without a response; 0 means never.
    pub hangs_up: u64,
    /// True if it has `POST /events`, and if it reports how many events it accepted.
    pub takes_batches: bool,
    pub tells_accepted: bool,
    /// Every nth batch is counted without its last event, is acknowledged with one event less, or has its connection closed
    /// before it is read completely; 0 means never.
    pub cuts: u64,
    pub misstates: u64,
    pub stops_reading: u64,
    /// Every nth `/stats` response is from an earlier moment; 0 means never.
    pub forgets: u64,
    /// `/stats` reads the sum, and some time later the count.
    pub tears: bool,
    /// Acknowledges first, and counts after this time.
    pub counts_after: Duration,
    /// Counts every event again after this time.
    pub counts_again_after: Option<Duration>,
    /// `/stats` has `avg` with this number of decimals, lacks `avg`, or is refused, by the number of the request.
    pub avg_decimals: Option<usize>,
    pub lacks_avg: bool,
    pub hides_stats: fn(u64) -> bool,
    /// Before this request with events, everything stands still for this time.
    pub stalls: Option<(u64, Duration)>,
    /// The number of requests with events that are completed per second, in their order and evenly, however many wait; 0 means
    /// any number.
    pub capacity: u32,
    /// The time that the connection of a request with events takes to count them, by the request's number from 1 on.
    pub delay: fn(u64) -> Duration,
}

pub const GOOD: Habits = Habits {
    status: 200,
    body: "",
    connection: "keep-alive",
    closes: false,
    reset_status: 200,
    recounts_users: false,
    java_floats: false,
    loses: 0,
    doubles: 0,
    refuses: 0,
    refusal: 500,
    silent: 0,
    trails: 0,
    trailer: "and more",
    closes_every: 0,
    closes_silently: false,
    full_from: 0,
    lingers: Duration::ZERO,
    hangs_up: 0,
    takes_batches: true,
    tells_accepted: true,
    cuts: 0,
    misstates: 0,
    stops_reading: 0,
    forgets: 0,
    tears: false,
    counts_after: Duration::ZERO,
    counts_again_after: None,
    avg_decimals: None,
    lacks_avg: false,
    hides_stats: |_| false,
    stalls: None,
    capacity: 0,
    delay: |_| Duration::ZERO,
};

#[derive(Clone, Default)]
struct Counted {
    events: u64,
    users: HashSet<String>,
    sum: f64,
}

/// The state that all connections of a server share.
#[derive(Default)]
struct State {
    counted: Mutex<Counted>,
    /// Earlier totals.
    old: Mutex<Counted>,
    seen: AtomicU64,
    begun: AtomicU64,
    asked: AtomicU64,
    /// The time when the next request may be completed, if there is a capacity.
    slot: Mutex<Option<Instant>>,
    /// While this is held for writing, no request gets a response.
    stall: RwLock<()>,
}

/// A slow and obvious server: one thread per connection, and one lock.
pub struct Fake {
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
    state: Arc<State>,
}

impl Fake {
    pub fn start(habits: Habits) -> Fake {
        Fake::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), habits)
    }

    pub fn start_on(listener: TcpListener, habits: Habits) -> Fake {
        let address = listener.local_addr().unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let state = Arc::new(State::default());
        let fake = Fake { address, is_over: Arc::clone(&is_over), state: Arc::clone(&state) };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if is_over.load(Ordering::Acquire) {
                    return;
                }
                let state = Arc::clone(&state);
                let is_full = (1..=state.seen.load(Ordering::Relaxed)).contains(&habits.full_from);
                std::thread::spawn(move || match is_full {
                    true => turn_away(stream.unwrap()),
                    false => serve(stream.unwrap(), habits, &state),
                });
            }
        });
        fake
    }

    /// Waits until a request with events has arrived.
    pub fn wait_for_a_request(&self) {
        eventually("a request with events arrives", || self.state.seen.load(Ordering::Relaxed) > 0);
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
    }
}

fn turn_away(mut stream: TcpStream) {
    let response = "HTTP/1.1 503 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let _ = stream.write_all(response.as_bytes());
    let _ = stream.shutdown(Shutdown::Write);
    // Unread input would reset the connection, and lose the response.
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

fn serve(mut stream: TcpStream, habits: Habits, state: &Arc<State>) {
    stream.set_nodelay(true).unwrap();
    let mut input = Vec::new();
    loop {
        let is_turn = |number: u64, every: u64| every > 0 && number.is_multiple_of(every);
        let stops_reading = |head: &str| {
            let begins = || state.begun.fetch_add(1, Ordering::Relaxed) + 1;
            is_batch(head) && is_turn(begins(), habits.stops_reading)
        };
        let Some((head, body)) = read_request(&mut stream, &mut input, stops_reading) else {
            return;
        };
        let response = |status: u16, body: &str| {
            format!(
                "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: {}\r\n\r\n{body}",
                body.len(),
                habits.connection
            )
        };
        let mut is_last = habits.closes;
        let is_batch = is_batch(&head);
        let is_event = head.starts_with("POST /event ") || (is_batch && !body.is_empty());
        let response = if is_batch && !habits.takes_batches {
            response(404, "")
        } else if is_event {
            let number = state.seen.fetch_add(1, Ordering::Relaxed) + 1;
            if let Some((_, pause)) = habits.stalls.filter(|(at, _)| *at == number) {
                let _all = state.stall.write().unwrap();
                std::thread::sleep(pause);
            }
            drop(state.stall.read().unwrap());
            if habits.capacity > 0 {
                let slot = state.take_slot(Duration::from_secs(1) / habits.capacity);
                std::thread::sleep(slot.saturating_duration_since(Instant::now()));
            }
            std::thread::sleep((habits.delay)(number));
            if is_turn(number, habits.silent) {
                continue;
            }
            if is_turn(number, habits.hangs_up) {
                return;
            }
            if is_turn(number, habits.refuses) {
                response(habits.refusal, "no")
            } else {
                let times = 1 + u64::from(is_turn(number, habits.doubles))
                    - u64::from(is_turn(number, habits.loses));
                let sent = body.lines().count();
                let counted = sent - usize::from(is_batch && is_turn(number, habits.cuts));
                let body = body.lines().take(counted).collect::<Vec<_>>().join("\n");
                if let Some(after) = habits.counts_again_after {
                    let (state, body) = (Arc::clone(state), body.clone());
                    std::thread::spawn(move || {
                        std::thread::sleep(after);
                        state.count(&body, 1, habits.recounts_users);
                    });
                }
                if habits.counts_after.is_zero() {
                    state.count(&body, times, habits.recounts_users);
                } else {
                    let state = Arc::clone(state);
                    std::thread::spawn(move || {
                        std::thread::sleep(habits.counts_after);
                        state.count(&body, times, habits.recounts_users);
                    });
                }
                let accepted = sent - usize::from(is_turn(number, habits.misstates));
                let accepted = format!(r#"{{"accepted":{accepted}}}"#);
                let tells = is_batch && habits.tells_accepted;
                let mut response =
                    response(habits.status, if tells { &accepted } else { habits.body });
                if is_turn(number, habits.trails) {
                    response.push_str(habits.trailer);
                }
                if is_turn(number, habits.closes_every) {
                    is_last = true;
                    response = match habits.closes_silently {
                        true => response
                            .replace("HTTP/1.1", "HTTP/1.0")
                            .replace("Connection: keep-alive\r\n", ""),
                        false => response.replace("Connection: keep-alive", "Connection: close"),
                    };
                }
                response
            }
        } else if is_batch {
            response(400, "")
        } else if head.starts_with("GET /stats ") {
            let number = state.asked.fetch_add(1, Ordering::Relaxed) + 1;
            let mut shown = state.counted.lock().unwrap().clone();
            if habits.tears {
                std::thread::sleep(Duration::from_millis(1));
                shown.events = state.counted.lock().unwrap().events;
            }
            if is_turn(number, habits.forgets) {
                shown = state.old.lock().unwrap().clone();
            }
            let avg = if shown.events == 0 { 0.0 } else { shown.sum / shown.events as f64 };
            let avg = match habits.avg_decimals {
                _ if habits.lacks_avg => String::new(),
                None => format!(r#","avg":{avg:?}"#),
                Some(decimals) => format!(r#","avg":{avg:.decimals$}"#),
            };
            let sum = match habits.java_floats {
                true => format!("{:?}", shown.sum * 1e-8) + "E8",
                false => format!("{:?}", shown.sum),
            };
            let status = if (habits.hides_stats)(number) { 503 } else { 200 };
            response(
                status,
                &format!(
                    r#"{{"totalRequests":{},"uniqueUsers":{},"sum":{sum}{avg}}}"#,
                    shown.events,
                    shown.users.len()
                ),
            )
        } else if head.starts_with("POST /reset ") {
            if habits.reset_status == 200 {
                *state.counted.lock().unwrap() = Counted::default();
            }
            response(habits.reset_status, "")
        } else {
            response(404, "")
        };
        if stream.write_all(response.as_bytes()).is_err() {
            return;
        }
        if is_last {
            std::thread::sleep(habits.lingers);
            return;
        }
    }
}

impl State {
    /// Returns the time when the next request is completed: one after the other, each takes `takes`.
    fn take_slot(&self, takes: Duration) -> Instant {
        let mut slot = self.slot.lock().unwrap();
        let now = Instant::now();
        let end = slot.map_or(now, |free| free.max(now)) + takes;
        *slot = Some(end);
        end
    }

    /// Counts the events of a request, one per line.
    fn count(&self, body: &str, times: u64, recounts_users: bool) {
        let events: Vec<Value> =
            body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let mut counted = self.counted.lock().unwrap();
        for event in (0..times).flat_map(|_| &events) {
            counted.events += 1;
            counted.sum += event["value"].as_f64().unwrap();
            let user = event["userId"].as_str().unwrap();
            let number = if recounts_users { counted.events } else { 0 };
            counted.users.insert(format!("{user} {number}"));
            if counted.events == 100 {
                *self.old.lock().unwrap() = counted.clone();
            }
        }
    }
}

fn is_batch(head: &str) -> bool {
    head.starts_with("POST /events ")
}

/// Returns the head and the body of the next request, unless reading stops after a head.
fn read_request(
    stream: &mut TcpStream,
    input: &mut Vec<u8>,
    stops_after: impl Fn(&str) -> bool,
) -> Option<(String, String)> {
    let mut is_head_read = false;
    loop {
        let all = text(input);
        if let Some((head, rest)) = all.split_once("\r\n\r\n") {
            if !is_head_read && stops_after(head) {
                return None;
            }
            is_head_read = true;
            let length = head
                .split("Content-Length: ")
                .nth(1)
                .map_or(0, |rest| rest.lines().next().unwrap().parse().unwrap());
            if rest.len() >= length {
                input.drain(..head.len() + 4 + length);
                return Some((head.to_owned(), rest[..length].to_owned()));
            }
        }
        let mut buffer = [0; 65536];
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(received) => input.extend_from_slice(&buffer[..received]),
        }
    }
}

/// Runs `load` and returns its exit code and its JSON report.
pub fn load(url: &str, flags: &[&str]) -> (Option<i32>, Value) {
    let output = run(&[&["load", "--url", url, "--quiet", "--json", "-"], flags].concat());
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}{}", text(&output.stdout), text(&output.stderr)));
    (output.status.code(), report)
}

/// Checks that the report of [`load`] finds the server right.
pub fn assert_exact(report: &(Option<i32>, Value)) {
    let (code, report) = report;
    assert_eq!((*code, report["verdict"].as_str()), (Some(0), Some("exact")), "{report}");
}

/// Checks that the report of [`load`] finds the server wrong, for this reason among others.
pub fn assert_wrong(report: &(Option<i32>, Value), reason: &str) {
    let (code, report) = report;
    assert_eq!((*code, report["verdict"].as_str()), (Some(1), Some("wrong")), "{report}");
    let reasons = report["reasons"].to_string();
    assert!(reasons.contains(reason), "{reasons}");
}
