//! Loads with a shape: runs that end by the clock, changing rates and connections, and runs that end early. Each is judged as
//! exactly as a fixed number of requests at a fixed rate.

use crate::world::fake::{Fake, GOOD, Habits, assert_exact, assert_wrong, load};
use crate::world::{Directory, Server, eventually, ringtally, run, text};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a count"))
}

/// Checks that every event of a run was acknowledged.
fn assert_whole(report: &Value) {
    for none in ["refused", "unknown", "unsent", "timeouts", "malformed"] {
        assert_eq!(report[none], 0, "{none} in {report}");
    }
    assert_eq!(report["requests"], report["acknowledged"], "{report}");
    assert_eq!(report["server"], report["expected"], "{report}");
}

#[test]
fn a_closed_loop_that_ends_by_the_clock_is_exact() {
    let server = Server::start(&["--shards", "2"]);
    for flags in [
        &["--duration", "300ms", "-c", "20"][..],
        &[
            "--duration",
            "300ms",
            "-c",
            "7",
            "--threads",
            "2",
            "--pipeline",
            "16",
            "--warmup",
            "500",
        ],
        &["--duration", "300ms", "-c", "3", "--batch", "70", "--users", "1000000"],
        &["--duration", "300ms", "-c", "1", "--watch", "--values", "one"],
    ] {
        let found = load(&server.url(), flags);
        assert_exact(&found);
        let (_, report) = found;
        assert_whole(&report);
        assert!(number(&report["requests"]) > 0, "{report}");
        assert_eq!(report["server"]["totalRequests"], report["requests"]);
        assert_eq!(report["setup"]["duration_s"], 0.3);
        assert_eq!(report["setup"]["rate"], Value::Null);
        if let Some(batches) = report["batches"].as_u64() {
            assert_eq!(number(&report["requests"]), 70 * batches);
        }
    }
}

#[test]
fn servers_that_close_connections_leave_nothing_unsent_at_the_end_of_the_time() {
    for habits in [
        Habits { closes: true, connection: "close", ..GOOD },
        Habits { closes_every: 3, ..GOOD },
        Habits { closes_every: 5, closes_silently: true, ..GOOD },
    ] {
        let fake = Fake::start(habits);
        let found = load(&fake.url(), &["--duration", "300ms", "-c", "5"]);
        assert_exact(&found);
        assert_whole(&found.1);
    }
}

#[test]
fn what_a_server_does_wrong_in_a_time_is_found() {
    let flags = &["--duration", "400ms", "-c", "4", "--timeout", "1s"];
    // Each event takes a while, so there are few of them.
    let slow = Habits { delay: |_| Duration::from_millis(1), ..GOOD };
    let fake = Fake::start(Habits { loses: 5, ..slow });
    assert_wrong(&load(&fake.url(), flags), "lost");
    let fake = Fake::start(Habits { doubles: 5, ..slow });
    assert_wrong(&load(&fake.url(), flags), "too many");
    let fake = Fake::start(Habits { silent: 5, ..slow });
    let (code, report) = load(&fake.url(), flags);
    assert_eq!((code, &report["verdict"]), (Some(1), &"undecided".into()), "{report}");
    let [requests, acknowledged, unknown] =
        ["requests", "acknowledged", "unknown"].map(|key| number(&report[key]));
    assert!(unknown > 0 && requests == acknowledged + unknown, "{report}");
}

/// The server stops accepting connections, so right totals are not enough.
#[test]
fn a_run_that_gives_up_before_its_time_is_over_fails() {
    let fake = Fake::start(Habits { closes_every: 1, full_from: 200, ..GOOD });
    let (code, report) =
        load(&fake.url(), &["--duration", "60s", "-c", "4", "--timeout", "1s", "--threads", "1"]);
    assert_eq!((code, &report["verdict"]), (Some(1), &"exact".into()), "{report}");
    assert!(number(&report["unsent"]) > 0, "{report}");
    let all = ["acknowledged", "refused", "unsent"].map(|key| number(&report[key]));
    assert_eq!(number(&report["requests"]), all.iter().sum::<u64>(), "{report}");
}

#[test]
fn an_interrupted_run_tells_what_was_sent() {
    let server = Server::start(&["--shards", "1"]);
    let mut observer = server.client();
    let child = ringtally()
        .args(["load", "--duration", "1h", "-c", "8", "--url", &server.url(), "--json", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("events are counted", || observer.stats().total > 100);
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{report}");
    assert_eq!((&report["interrupted"], &report["verdict"]), (&true.into(), &"exact".into()));
    assert_whole(&report);
}

/// The number of events of an open loop is known before it starts.
#[test]
fn an_open_loop_sends_what_is_due_in_its_time() {
    let profiles = [
        (&["--rate", "0.5", "--duration", "1s"][..], 1, Value::from(0.5)),
        (&["--rate", "7.5", "--duration", "400ms"], 3, 7.5.into()),
        (&["--rate", "2k", "--duration", "300ms"], 600, 2000.into()),
        (&["--rate", "100:2000", "--duration", "500ms"], 525, "100:2000".into()),
        (&["--rate", "2000:0", "--duration", "500ms", "--batch", "7"], 500, "2000:0".into()),
        (&["--rate", "100:3000", "-n", "310"], 310, "100:3000".into()),
        (
            &["--stages", "100ms@1000,200ms@0,200ms@100:1100", "--watch"],
            220,
            "100ms@1000,200ms@0,200ms@100:1100".into(),
        ),
    ];
    std::thread::scope(|scope| {
        for (flags, requests, rate) in profiles {
            scope.spawn(move || check_profile(flags, requests, &rate));
        }
    });
}

fn check_profile(flags: &[&str], requests: u64, rate: &Value) {
    let server = Server::start(&["--shards", "1"]);
    let found = load(&server.url(), &[flags, &["-c", "9"]].concat());
    assert_exact(&found);
    let (_, report) = found;
    assert_whole(&report);
    assert_eq!(report["requests"], requests, "{flags:?}");
    assert_eq!((&report["setup"]["rate"], &report["open_loop"]["rate"]), (rate, rate));
    // Runs the same load again, from its report alone.
    let command = report["setup"]["command"].as_array().unwrap();
    let command: Vec<&str> = command.iter().map(|word| word.as_str().unwrap()).collect();
    let again = run(&[&command[1..], &["--quiet", "--json", "-"]].concat());
    let again: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(again["requests"], requests, "{command:?}");
    assert_eq!(again["setup"]["command"], report["setup"]["command"]);
}

/// Coordinated omission in a ramp: a request that is due while a server is stalled has waited since it was due.
#[test]
fn a_stall_in_a_ramp_shows_in_its_latencies() {
    let stall = Duration::from_millis(400);
    let fake = Fake::start(Habits { stalls: Some((100, stall)), ..GOOD });
    let found = load(&fake.url(), &["--rate", "100:1000", "--duration", "1s", "-c", "4"]);
    assert_exact(&found);
    let (_, report) = found;
    assert_eq!(report["requests"], 550);
    // Of 550 requests, far more come due in 400 ms than the four that were sent.
    let p90_us = report["latency_us"]["p90"].as_f64().unwrap();
    assert!(p90_us > 100_000.0, "{report}");
    assert!(number(&report["open_loop"]["queued"]) > 50, "{report}");
}

/// A backlog does not keep a run from ending: 500 requests of 100 ms each would take 50 s on one connection.
#[test]
fn an_open_loop_with_a_time_does_not_send_its_backlog_for_ever() {
    let fake = Fake::start(Habits { delay: |_| Duration::from_millis(100), ..GOOD });
    let flags = ["--rate", "1000", "--duration", "500ms", "-c", "1", "--timeout", "1s"];
    let (code, report) = load(&fake.url(), &flags);
    assert_eq!((code, &report["verdict"]), (Some(1), &"exact".into()), "{report}");
    assert_eq!(report["requests"], 500);
    let (sent, unsent) = (number(&report["acknowledged"]), number(&report["unsent"]));
    assert!(sent + unsent == 500 && unsent > 400, "{report}");
    // Unsent requests have waited, and are included in the percentiles.
    assert!(report["latency_us"]["lower_bounds"].to_string().contains("p50"), "{report}");
    assert!(report["open_loop"]["held"].as_f64().unwrap() < 0.5, "{report}");
}

/// A server that counts open connections, and connections closed before the last event.
#[derive(Default)]
struct Crowd {
    totals: Mutex<(u64, u64, HashSet<String>)>,
    open: AtomicU64,
    open_most: AtomicU64,
    opened: AtomicU64,
    closed_before_last: AtomicU64,
}

impl Crowd {
    fn start() -> (Arc<Crowd>, String) {
        Crowd::start_with_room_for(u64::MAX)
    }

    /// Starts a server that serves this number of connections. After those, it closes one every two seconds.
    fn start_with_room_for(most: u64) -> (Arc<Crowd>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        if most < u64::MAX {
            // This backlog has room for one connection.
            rustix::net::listen(&listener, 0).unwrap();
        }
        let url = format!("http://{}", listener.local_addr().unwrap());
        let crowd = Arc::new(Crowd::default());
        let shared = Arc::clone(&crowd);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let crowd = Arc::clone(&shared);
                if crowd.opened.fetch_add(1, Ordering::SeqCst) >= most {
                    drop(stream);
                    std::thread::sleep(Duration::from_secs(2));
                    continue;
                }
                let open = crowd.open.fetch_add(1, Ordering::SeqCst) + 1;
                crowd.open_most.fetch_max(open, Ordering::SeqCst);
                std::thread::spawn(move || {
                    crowd.serve(stream.unwrap());
                    crowd.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        (crowd, url)
    }

    fn serve(&self, mut stream: TcpStream) {
        stream.set_nodelay(true).unwrap();
        let (mut input, mut buffer) = (String::new(), [0; 4096]);
        while let Ok(received @ 1..) = stream.read(&mut buffer) {
            input.push_str(std::str::from_utf8(&buffer[..received]).unwrap());
            let Some((head, body)) = input.split_once("\r\n\r\n") else { continue };
            let is_event = head.starts_with("POST /event ");
            if is_event && !body.ends_with('}') {
                continue;
            }
            let mut totals = self.totals.lock().unwrap();
            if is_event {
                let event: Value = serde_json::from_str(body).unwrap();
                totals.0 += 1;
                totals.1 += number(&event["value"]);
                totals.2.insert(event["userId"].as_str().unwrap().to_owned());
                let closed = self.opened.load(Ordering::SeqCst) - self.open.load(Ordering::SeqCst);
                self.closed_before_last.store(closed, Ordering::SeqCst);
            } else if head.starts_with("POST /reset") {
                *totals = (0, 0, HashSet::new());
            }
            let avg = totals.1 as f64 / (totals.0.max(1)) as f64;
            let body = format!(
                r#"{{"totalRequests":{},"uniqueUsers":{},"sum":{}.0,"avg":{avg:?}}}"#,
                totals.0,
                totals.2.len(),
                totals.1
            );
            drop(totals);
            if is_event {
                // Slow responses keep the number of requests per connection small.
                std::thread::sleep(Duration::from_millis(2));
            }
            let response =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            if stream.write_all(response.as_bytes()).is_err() {
                return;
            }
            input.clear();
        }
    }
}

/// Connections of a run that do not send events: for the totals, and perhaps one to look for the server.
const OTHERS: u64 = 3;

#[test]
fn connections_ramp_up_and_the_verdict_is_exact() {
    for (flags, least) in [
        (&["--connections", "3:60", "--duration", "500ms"][..], 3),
        (&["--connections", "3:60", "--stages", "250ms@500,250ms@500:2000", "--threads", "2"], 3),
    ] {
        let (crowd, url) = Crowd::start();
        let found = load(&url, flags);
        assert_exact(&found);
        let (_, report) = found;
        assert_whole(&report);
        let open = number(&report["connections_open"]);
        // An open loop may end before its ramp does, because it ends with its last event.
        assert!(open == 60 || (open > 55 && flags.contains(&"--stages")), "{report}");
        assert_eq!(
            (&report["setup"]["connections"], &report["reconnects"]),
            (&60.into(), &0.into())
        );
        assert_eq!(report["setup"]["connections_over_time"], format!("{least}:60"));
        let opened = crowd.opened.load(Ordering::SeqCst);
        assert!((open..=open + OTHERS).contains(&opened), "{opened} of {open}");
    }
}

#[test]
fn connections_that_are_no_longer_wanted_are_closed_without_losing_anything() {
    let (crowd, url) = Crowd::start();
    let stages = "200ms@5,200ms@5:60,200ms@60:5,2s@5,100ms@5:20";
    let found = load(&url, &["-c", stages, "--pipeline", "1"]);
    assert_exact(&found);
    let (_, report) = found;
    assert_whole(&report);
    assert_eq!(report["reconnects"], 0, "{report}");
    assert_eq!(report["connections_open"], 60, "{report}");
    assert_eq!(report["setup"]["duration_s"], 2.7);
    let most = crowd.open_most.load(Ordering::SeqCst);
    assert!((60..=60 + OTHERS).contains(&most), "{most}");
    // One ramp closed connections, and the next one opened some again.
    let closed = crowd.closed_before_last.load(Ordering::SeqCst);
    let is_starved = report["client_limited"] == true;
    assert!(
        closed >= 55 || is_starved && closed >= 20,
        "{closed} were closed before the last event"
    );
    let opened = crowd.opened.load(Ordering::SeqCst);
    assert!((75..=75 + OTHERS).contains(&opened), "{opened} were opened");
}

/// The server accepts some connections of a ramp, and its backlog does not have room for the others. The client waits for
/// those, but the wait is not part of the run's time.
#[test]
fn connections_that_never_open_do_not_make_a_run_longer() {
    let (crowd, url) = Crowd::start_with_room_for(9);
    let started = std::time::Instant::now();
    let (code, report) =
        load(&url, &["-c", "2:40", "--duration", "1s", "--timeout", "8s", "--threads", "1"]);
    // Connections that fit the backlog got requests but no responses.
    assert_eq!(code, Some(1), "{report}");
    let open = number(&report["connections_open"]);
    assert!((2..40).contains(&open), "{report}");
    assert!(number(&report["connect_failures"]) > 0, "{report}");
    assert!(report["connect_errors"].to_string().contains("110"), "{report}");
    assert!(started.elapsed() >= Duration::from_secs(8), "the client did not wait for them");
    let elapsed_s = report["elapsed_s"].as_f64().unwrap();
    assert!(elapsed_s < 6.0, "{elapsed_s}");
    let rate = number(&report["acknowledged"]) as f64 / elapsed_s;
    assert!((report["requests_per_s"].as_f64().unwrap() - rate).abs() < 1.0, "{report}");
    drop(crowd);
}

#[test]
fn parts_that_end_by_the_clock_are_one_exact_run() {
    let server = Server::start(&["--shards", "2"]);
    for flags in [
        &["--duration", "500ms", "-c", "9"][..],
        &["--stages", "200ms@1000,100ms@0,200ms@100:1100", "-c", "2:9", "--threads", "2"],
    ] {
        let folder = Directory::new("shapes-parts");
        let mut children = Vec::new();
        let files: Vec<String> = (1..=2).map(|part| folder.file(&format!("{part}.json"))).collect();
        let start = std::time::SystemTime::now() + Duration::from_secs(5);
        let start = start.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64().to_string();
        for (number, file) in (1..).zip(&files) {
            let part = format!("{number}/2");
            let mut command = ringtally();
            command.args(["load", "--url", &server.url(), "--quiet", "--start-at", &start]);
            command.args(["--part", &part, "--json", file]).args(flags);
            children.push(command.stdout(Stdio::null()).spawn().unwrap());
        }
        for mut child in children {
            assert_eq!(child.wait().unwrap().code(), Some(0));
        }
        let output = run(&["merge", "--json", "-", &files[0], &files[1]]);
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
        assert_exact(&(output.status.code(), report.clone()));
        assert_whole(&report);
        let clients = report["clients"].as_array().unwrap();
        let sent: Vec<u64> = clients.iter().map(|client| number(&client["requests"])).collect();
        assert_eq!(sent.iter().sum::<u64>(), number(&report["requests"]), "{report}");
        assert!(sent.iter().all(|sent| *sent > 0), "{sent:?}");
        if flags.contains(&"--stages") {
            assert_eq!(sent, [160, 160]);
        }
    }
}

#[test]
fn a_run_ends_once_a_threshold_can_no_longer_pass() {
    let fake = Fake::start(Habits { refuses: 50, ..GOOD });
    for threshold in ["refused>3", "max>1ns", "mean>0.001ns", "rps<1G"] {
        // Sending this many takes hours.
        let (code, report) =
            load(&fake.url(), &["-n", "100M", "-c", "4", "--abort-if", threshold, "--rate", "5k"]);
        assert_eq!((code, &report["verdict"]), (Some(1), &"exact".into()), "{report}");
        assert_eq!(
            (&report["aborted_by"], &report["interrupted"]),
            (&threshold.into(), &false.into())
        );
        assert_eq!(report["requests"], 100_000_000);
        assert!(number(&report["unsent"]) > 90_000_000, "{report}");
        let checked = &report["thresholds"][0];
        assert_eq!((&checked["fail_if"], &checked["passed"]), (&threshold.into(), &false.into()));
    }
    let output = run(&[
        "load",
        "--url",
        &fake.url(),
        "--duration",
        "1h",
        "-c",
        "4",
        "--abort-if",
        "refused>3",
    ]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--abort-if refused>3 could no longer pass"), "{said}");
    assert!(said.contains("--abort-if refused>3: refused is"), "{said}");
    // Nothing was left to send when the threshold failed, so the run ended by itself.
    let delay = |number| Duration::from_millis(if number == 1 { 1500 } else { 0 });
    let slow = Fake::start(Habits { refuses: 2, delay, ..GOOD });
    let (code, report) = load(&slow.url(), &["-n", "2", "-c", "2", "--abort-if", "refused>0"]);
    assert_eq!((code, &report["refused"]), (Some(1), &1.into()), "{report}");
    assert_eq!((&report["aborted_by"], &report["unsent"]), (&Value::Null, &0.into()), "{report}");
    // A threshold that passes does not end the run.
    let passes = ["--abort-if", "refused>1000", "--abort-if", "p99>3600s"];
    let (_, report) = load(&fake.url(), &[&["-n", "600", "-c", "4"], &passes[..]].concat());
    assert_eq!((&report["aborted_by"], &report["unsent"]), (&Value::Null, &0.into()), "{report}");
}
