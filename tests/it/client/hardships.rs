//! The reports of `ringtally load` and `challenge` if something goes wrong in the middle of a run: servers that die or are
//! full, interrupts, suspended processes, and clients that are too slow.

use crate::world::fake::{Fake, GOOD, Habits, assert_exact, assert_wrong, load};
use crate::world::{PATIENCE, Server, eventually, ringtally, run, text};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A running command. Its signals have their defaults, whoever started this test.
struct Running {
    child: Child,
    started: Instant,
}

impl Running {
    fn start(args: &[&str]) -> Running {
        let mut command = Command::new("env");
        command.arg("--default-signal=INT,TERM").arg(ringtally().get_program()).args(args);
        Running::start_command(command)
    }

    fn start_command(mut command: Command) -> Running {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Running { child, started: Instant::now() }
    }

    /// Starts `load` with a report on standard output.
    fn load(url: &str, flags: &[&str]) -> Running {
        Running::start(&[&["load", "--url", url, "--quiet", "--json", "-"], flags].concat())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for the end. Returns the exit code, standard output, standard error, and the time from `since` to the end.
    fn wait(mut self, since: Instant) -> (Option<i32>, String, String, Duration) {
        let mut out = self.child.stdout.take().unwrap();
        let mut err = self.child.stderr.take().unwrap();
        let read = |pipe: &mut dyn Read| {
            let mut text = String::new();
            pipe.read_to_string(&mut text).unwrap();
            text
        };
        let output = std::thread::spawn(move || {
            let mut text = String::new();
            out.read_to_string(&mut text).unwrap();
            text
        });
        let deadline = Instant::now() + 2 * PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                self.child.kill().unwrap();
                panic!("it does not end");
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let took = since.elapsed();
        (status.code(), output.join().unwrap(), read(&mut err), took)
    }

    /// Waits for the end, and returns the exit code and the report.
    fn report(self) -> (Option<i32>, Value) {
        let started = self.started;
        let (code, out, err, _) = self.wait(started);
        let report = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
        (code, report)
    }
}
fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// Waits until a client has sent more events than this to a server.
fn wait_for_events(server: &Server, events: u64) {
    eventually("the client is at work", || server.stats().total > events);
}

fn warnings(report: &Value) -> String {
    report["warnings"].to_string()
}

fn count(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or_else(|| panic!("{key} in {report}"))
}

/// A read interrupted by a signal does not mean that the server closes its connections.
#[test]
fn a_client_that_is_stopped_at_its_start_keeps_its_connections() {
    let server = Server::start(&[]);
    for _ in 0..3 {
        let client = Running::load(&server.url(), &["20000", "64"]);
        while client.started.elapsed() < Duration::from_millis(500) {
            client.signal(Signal::STOP);
            pause(30);
            client.signal(Signal::CONT);
            pause(5);
        }
        let (code, report) = client.report();
        assert_eq!((code, report["verdict"].as_str()), (Some(0), Some("exact")), "{report}");
        assert_eq!(report["setup"]["one_request_per_connection"], false);
        assert!(!warnings(&report).contains("one request only"), "{report}");
        assert_eq!(count(&report, "reconnects"), 0, "{report}");
    }
}

#[test]
fn both_sides_may_be_stopped_at_any_moment() {
    let mut random = fastrand::Rng::with_seed(25);
    for flags in [&["100000", "32"][..], &["30000", "32", "--rate", "20000", "--pipeline", "4"]] {
        let server = Server::start(&[]);
        let client = Running::load(&server.url(), flags);
        let client_pid = client.pid();
        let is_over = AtomicBool::new(false);
        let report = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Acquire) {
                    let is_server = random.bool();
                    let send = |signal| match is_server {
                        true => server.signal(signal),
                        // The client may have ended.
                        false => drop(kill_process(client_pid, signal)),
                    };
                    send(Signal::STOP);
                    pause(random.u64(0..60));
                    send(Signal::CONT);
                    pause(random.u64(0..40));
                }
            });
            let report = client.report();
            is_over.store(true, Ordering::Release);
            report
        });
        let (code, report) = report;
        assert_eq!((code, report["verdict"].as_str()), (Some(0), Some("exact")), "{report}");
        assert_eq!(count(&report, "reconnects"), 0, "{report}");
        assert_eq!(report["setup"]["one_request_per_connection"], false);
    }
}

/// Both sides stand still for longer than the timeout, as on a suspended machine. Requests that were sent before get their
/// responses afterward.
#[test]
fn a_suspension_is_not_a_time_out_and_is_reported() {
    let server = Server::start(&[]);
    let client = Running::load(&server.url(), &["100000000", "16", "--timeout", "1s"]);
    wait_for_events(&server, 1000);
    client.signal(Signal::STOP);
    server.signal(Signal::STOP);
    pause(2500);
    client.signal(Signal::CONT);
    pause(300);
    server.signal(Signal::CONT);
    pause(500);
    client.signal(Signal::INT);
    let (code, report) = client.report();
    assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("exact")), "{report}");
    assert_eq!((count(&report, "timeouts"), count(&report, "unknown")), (0, 0), "{report}");
    assert!(report["client_suspended_s"].as_f64().unwrap() >= 2.0, "{report}");
    assert!(warnings(&report).contains("did not run for"), "{report}");
}

#[test]
fn a_server_that_dies_leaves_a_report_of_what_was_measured() {
    for rate in [None, Some("2000")] {
        let server = Server::start(&[]);
        let mut flags = vec!["50000000", "20", "--timeout", "1s"];
        flags.extend(rate.iter().flat_map(|rate| ["--rate", rate]));
        let client = Running::load(&server.url(), &flags);
        wait_for_events(&server, 1000);
        drop(server);
        let (code, report) = client.report();
        assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("undecided")), "{report}");
        assert!(report["reasons"][0].as_str().unwrap().contains("no server listens"), "{report}");
        assert!(report["server"].is_null(), "{report}");
        assert!(count(&report, "acknowledged") > 100, "{report}");
        assert!(report["latency_us"]["p50"].as_f64().unwrap() > 0.0, "{report}");
    }
}

/// The client waits for a server that is gone for as long as `--timeout`, and no longer.
#[test]
fn a_server_that_comes_back_in_time_is_used_again() {
    let server = Server::start(&[]);
    let port = server.address.port().to_string();
    let client = Running::load(&server.url(), &["100000000", "4", "--timeout", "8s"]);
    wait_for_events(&server, 1000);
    drop(server);
    pause(3000);
    let mut command = ringtally();
    command.args(["serve", "--port", &port]);
    let server = Server::start_command(command);
    eventually("the client is back", || server.stats().total > 1000);
    client.signal(Signal::INT);
    let (code, report) = client.report();
    // The new server's totals start at zero, and the old ones are lost.
    assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("wrong")), "{report}");
    assert!(count(&report, "reconnects") >= 4, "{report}");
}

#[test]
fn a_long_run_that_is_cut_short_reports_at_once() {
    for flags in [
        &["1000000000000", "4", "--timeout", "1s"][..],
        &["1000000000000", "4", "--timeout", "1s", "--rate", "1000000000", "--threads", "2"],
        &["1000000000000", "4", "--timeout", "1s", "--rate", "100", "--users", "500000000000"],
    ] {
        let server = Server::start(&[]);
        let client = Running::load(&server.url(), flags);
        wait_for_events(&server, 20);
        drop(server);
        let killed = Instant::now();
        let (code, out, err, took) = client.wait(killed);
        assert_eq!(code, Some(1), "{err}");
        let report: Value = serde_json::from_str(&out).unwrap();
        let (sent, unsent) = (count(&report, "acknowledged"), count(&report, "unsent"));
        assert_eq!(sent + count(&report, "unknown") + unsent, 1_000_000_000_000, "{report}");
        let users = report["expected"]["uniqueUsers"].as_u64().unwrap();
        assert!(users <= sent && users > 0, "{report}");
        // The client gives up a second after the server's end.
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
}

/// A server without room for most connections is used with the connections that it accepts, and reported as full.
#[test]
fn a_full_server_is_named_as_such() {
    let server = Server::start(&["--max-connections", "10", "--shards", "1"]);
    let (code, report) = load(&server.url(), &["20000", "64", "--timeout", "3s"]);
    assert_ne!(code, Some(3), "{report}");
    assert_ne!(report["verdict"], "wrong", "{report}");
    assert!(count(&report, "rejected") >= 50, "{report}");
    assert!(warnings(&report).contains("no room for"), "{report}");
    assert!(count(&report, "acknowledged") > 19_000, "{report}");
    // A full server does not get a run.
    let full = Server::start(&["--max-connections", "1", "--shards", "1"]);
    let _taken = full.client();
    let output = run(&["load", "100", "4", "--url", &full.url()]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("room for") && !said.contains("no server"), "{said}");
}

#[test]
fn an_interrupted_load_reports_what_it_measured() {
    for (signal, flags) in [
        (Signal::INT, &["100000000", "32"][..]),
        (Signal::TERM, &["100000000", "32", "--threads", "2", "--pipeline", "4"]),
        (Signal::INT, &["100000000", "32", "--rate", "3000", "--threads", "2"]),
    ] {
        let server = Server::start(&[]);
        let client = Running::load(&server.url(), flags);
        wait_for_events(&server, 1000);
        client.signal(signal);
        let interrupted = Instant::now();
        let (code, out, err, took) = client.wait(interrupted);
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains("interrupted"), "{err}");
        let report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
        assert_eq!(report["verdict"], "exact", "{report}");
        assert_eq!(report["interrupted"], true, "{report}");
        let sent = count(&report, "acknowledged");
        assert!(sent > 500, "{report}");
        assert_eq!(sent + count(&report, "unsent"), 100_000_000, "{report}");
        assert_eq!(report["server"]["totalRequests"], sent, "{report}");
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    // The report also comes in words, and as a percentile table.
    let server = Server::start(&[]);
    let client =
        Running::start(&["load", "100000000", "8", "--url", &server.url(), "--hdr", "/dev/stderr"]);
    wait_for_events(&server, 1000);
    client.signal(Signal::INT);
    let started = client.started;
    let (code, out, err, _) = client.wait(started);
    assert_eq!(code, Some(1), "{err}");
    assert!(out.contains("verdict") && out.contains("exact"), "{out}");
    assert!(err.contains("Percentile"), "{err}");
}

/// All eight requests are due and sent before the interrupt. The first response closes the connection, so the others were not
/// processed, and each has waited as long as the first.
#[test]
fn what_an_interrupted_open_loop_did_not_get_sent_has_waited() {
    let delay = |_| Duration::from_millis(400);
    let fake = Fake::start(Habits { closes_every: 1, delay, ..GOOD });
    let client = Running::load(&fake.url(), &["8", "1", "--rate", "1000", "--pipeline", "8"]);
    fake.wait_for_a_request();
    pause(150);
    client.signal(Signal::INT);
    let (code, report) = client.report();
    assert_eq!((code, count(&report, "acknowledged")), (Some(1), 1), "{report}");
    assert_eq!((count(&report, "unsent"), count(&report, "unknown")), (7, 0), "{report}");
    assert_eq!(report["latency_us"]["censored"], 7, "{report}");
    assert!(report["latency_us"]["p50"].as_f64().unwrap() > 100_000.0, "{report}");
}

#[test]
fn a_second_signal_ends_the_client_at_once() {
    let fake = Fake::start(Habits { silent: 1, ..GOOD });
    let client = Running::load(&fake.url(), &["1000", "4"]);
    pause(1000);
    client.signal(Signal::INT);
    pause(100);
    client.signal(Signal::TERM);
    let second = Instant::now();
    let (code, out, _, took) = client.wait(second);
    assert_eq!((code, out.as_str()), (Some(130), ""));
    assert!(took < Duration::from_millis(500), "{took:?}");
}

/// A shell starts its background jobs with the interrupt ignored.
#[test]
fn an_ignored_interrupt_stays_ignored() {
    let server = Server::start(&[]);
    let mut command = Command::new("env");
    command.args(["--ignore-signal=INT", "--default-signal=TERM"]).arg(ringtally().get_program());
    command.args(["load", "3000", "4", "--rate", "2000", "--quiet", "--json", "-"]);
    command.args(["--url", &server.url()]);
    let client = Running::start_command(command);
    pause(800);
    client.signal(Signal::INT);
    let (code, report) = client.report();
    assert_eq!((code, count(&report, "acknowledged")), (Some(0), 3000), "{report}");
}

#[test]
fn an_interrupted_challenge_reports_and_leaves_nothing_behind() {
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let flags = ["challenge", "100000000", "50", "--quiet", "--json", "-"];
        let challenge = Running::start(&flags);
        let children = format!("/proc/{0}/task/{0}/children", challenge.child.id());
        let mut server = None;
        eventually("the server is there and has work", || {
            let list = std::fs::read_to_string(&children).unwrap_or_default();
            server = list.split_whitespace().next().and_then(|pid| pid.parse::<i32>().ok());
            server.is_some_and(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| line.contains("serve"))
            })
        });
        let server = server.unwrap();
        // Less CPU time is not reported per request.
        eventually("the server has worked for a while", || {
            let process = procfs::process::Process::new(server).and_then(|process| process.stat());
            process.is_ok_and(|stat| stat.utime + stat.stime >= procfs::ticks_per_second() / 2)
        });
        challenge.signal(signal);
        let started = challenge.started;
        let (code, out, err, _) = challenge.wait(started);
        if signal == Signal::KILL {
            assert_eq!(code, None);
        } else {
            let report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
            assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("exact")), "{report}");
            assert!(!report["server_cpu_us_per_request"].is_null(), "{report}");
        }
        let server = Pid::from_raw(server).unwrap();
        eventually("the server is gone", || {
            test_kill_process(server).is_err() || is_zombie(server)
        });
    }
}

/// Reports whether a process has ended and has not been reaped by the process that inherited it.
fn is_zombie(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}

/// A server that never recognizes a user again is detected if all users that it can have are the client's. Otherwise nobody can
/// tell, and the verdict is undecided.
#[test]
fn users_are_checked_for_equality_or_not_at_all() {
    let recounts = Habits { recounts_users: true, reset_status: 404, ..GOOD };
    let flags = ["500", "5", "--users", "50"];
    let (code, report) = load(&Fake::start(recounts).url(), &flags);
    assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("wrong")), "{report}");
    // After a warm-up, the users that the server has are the client's own.
    let loads = [("300", "50"), ("30", "50"), ("30", "5000"), ("700", "600")];
    std::thread::scope(|scope| {
        for (warm_up, users) in loads {
            scope.spawn(move || {
                let flags = ["500", "5", "--warmup", warm_up, "--users", users];
                let (_, report) = load(&Fake::start(recounts).url(), &flags);
                assert_eq!(report["verdict"], "wrong", "{warm_up} {users} {report}");
                let fake = Fake::start(Habits { reset_status: 404, ..GOOD });
                let (_, report) = load(&fake.url(), &flags);
                assert_eq!(report["verdict"], "exact", "{warm_up} {users} {report}");
                check_runs_without_reset(&fake.url());
            });
        }
    });
    // Such a server is also detected if it has users that nobody knows.
    let fake = Fake::start(recounts);
    load(&fake.url(), &["10", "5", "--users", "10"]);
    assert_wrong(&load(&fake.url(), &flags), "uniqueUsers is ");
}

/// Checks runs on a server that cannot be reset and has counted a run already.
fn check_runs_without_reset(url: &str) {
    // The next run has new users, unless it must send the same ones.
    assert_exact(&load(url, &["100", "5", "--users", "50", "--warmup", "30"]));
    assert_exact(&load(url, &["100", "5", "--no-reset", "--batch", "7"]));
    let is_undecided = |flags: &[&str], reason: &str| {
        let (code, report) = load(url, flags);
        assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("undecided")), "{report}");
        assert!(report["reasons"].to_string().contains(reason), "{report}");
    };
    let flags = ["100", "5", "--users", "50", "--user-prefix", "user_"];
    is_undecided(&flags, "uniqueUsers could only be checked");
    let flags = ["100", "5", "--user-prefix", "mine-"];
    assert_exact(&load(url, &flags));
    // If the command is repeated, the users are the same.
    is_undecided(&flags, "that no run had");
}

/// A response to a request of an abandoned warm-up must not be mistaken for another request's response. An event of that
/// warm-up that is counted late must not be a surprise.
#[test]
fn a_warm_up_that_was_given_up_leaves_nothing_in_the_run() {
    // The second event shifts one connection by half a timeout, so the other connection has the eighth event in flight when the
    // sixth timeout in a row ends the warm-up.
    let delay = |event: u64| match event {
        2 => Duration::from_millis(500),
        1..=8 => Duration::from_millis(5000),
        _ => Duration::ZERO,
    };
    let fake = Fake::start(Habits { delay, ..GOOD });
    let mut flags = vec!["40", "2", "--threads", "1", "--warmup", "12", "--timeout", "1s"];
    flags.extend(["--rate", "20", "--watch"]);
    let (_, report) = load(&fake.url(), &flags);
    assert_ne!(report["verdict"], "wrong", "{report}");
    assert!(report["warm_up"]["unknown"].as_u64().unwrap() > 0, "{report}");
    assert_eq!((count(&report, "acknowledged"), count(&report, "malformed")), (40, 0), "{report}");
    let max_us = report["latency_us"]["max"].as_f64().unwrap();
    assert!(max_us < 600_000.0, "{report}");
    assert!(report["server"]["totalRequests"].as_u64().unwrap() > 40, "{report}");
    assert_eq!(report["watch"]["above_sent"], 0, "{report}");
}

#[test]
fn an_open_loop_says_how_busy_it_was_without_polling() {
    let server = Server::start(&[]);
    for rate in ["200", "20000"] {
        let requests = (rate.parse::<u64>().unwrap() * 2).to_string();
        let (_, report) = load(&server.url(), &[&requests, "16", "--rate", rate, "--threads", "1"]);
        let of = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("{key} in {report}"));
        let (work, polling) = (of("client_cpu_us_per_request"), of("client_poll_us_per_request"));
        assert!((0.5..200.0).contains(&work), "{report}");
        assert!(polling > 0.0, "{report}");
        let busy = work * of("requests_per_s") / 1e6;
        assert!((of("client_busy") - busy).abs() < 0.05 + busy / 4.0, "{busy} {report}");
    }
}

/// Other work on the client's CPU limits it, however little CPU time the client itself gets.
#[test]
fn a_client_without_a_cpu_of_its_own_says_so() {
    let server = Server::start(&[]);
    let cpu = *ringtally::topology::allowed_cpus().last().unwrap();
    let is_over = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                ringtally::topology::pin_to(cpu);
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let flags =
            ["60000", "16", "--threads", "1", "--rate", "30000", "--cpus", &cpu.to_string()];
        let (_, report) = load(&server.url(), &flags);
        is_over.store(true, Ordering::Relaxed);
        report
    });
    assert_eq!(report["client_limited"], true, "{report}");
    let limits = report["client_limited_by"].to_string();
    assert!(limits.contains("waited for a CPU"), "{limits}");
    assert!(report["client_waiting"].as_f64().unwrap() > 0.1, "{report}");
}

#[test]
fn a_rate_that_is_not_held_is_a_warning_and_a_threshold() {
    let fake = Fake::start(Habits { delay: |_| Duration::from_millis(2), ..GOOD });
    let flags = ["400", "1", "--rate", "5000", "--fail-if", "held<0.9"];
    let (code, report) = load(&fake.url(), &flags);
    assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("exact")), "{report}");
    let held = report["open_loop"]["held"].as_f64().unwrap();
    assert!((0.01..0.2).contains(&held), "{report}");
    let output = run(&["load", "400", "1", "--rate", "5000", "--url", &fake.url()]);
    // On a busy machine, the client is the limit in both cases.
    let said = text(&output.stdout);
    let advises = said.contains("use more connections");
    assert!(advises || said.contains("the client was the limit"), "{said}");
    // With enough connections the rate is held.
    let flags = ["400", "16", "--rate", "400", "--fail-if", "held<0.9"];
    let (code, report) = load(&fake.url(), &flags);
    assert!(code == Some(0) || report["client_limited"] == true, "{report}");
}

#[test]
fn an_idle_open_loop_finds_no_connection_taken() {
    let server = Server::start(&[]);
    for (requests, rate) in [("1", "1"), ("20", "100")] {
        let (_, report) = load(&server.url(), &[requests, "4", "--rate", rate]);
        assert_eq!(report["open_loop"]["queued"], 0, "{report}");
    }
}

#[test]
fn a_refused_reset_is_a_warning_and_a_token_is_the_way() {
    let folder = std::env::temp_dir().join(format!("ringtally-load-token-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("token");
    std::fs::write(&file, "open-sesame\n").unwrap();
    let path = file.to_str().unwrap();
    let server = Server::start(&["--admin-token-file", path]);
    server.client().event("somebody", 1.0);
    let (_, report) = load(&server.url(), &["100", "5"]);
    assert_eq!(report["setup"]["was_reset"], false, "{report}");
    assert!(warnings(&report).contains("refused POST /reset with status 4"), "{report}");
    assert!(warnings(&report).contains("--token-file"), "{report}");
    let (code, report) = load(&server.url(), &["100", "5", "--token-file", path]);
    assert_eq!((code, &report["setup"]["was_reset"]), (Some(0), &true.into()), "{report}");
    assert_eq!(report["server"]["totalRequests"], 100, "{report}");
    // A server without a reset does not cause a warning.
    let (_, report) = load(&Fake::start(Habits { reset_status: 404, ..GOOD }).url(), &["100", "5"]);
    assert!(!warnings(&report).contains("reset"), "{report}");
    std::fs::remove_dir_all(&folder).unwrap();
    let missing = run(&["load", "--token-file", path]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("--token-file"));
}

#[test]
fn connections_that_are_not_used_are_a_warning() {
    let server = Server::start(&[]);
    let (code, report) = load(&server.url(), &["10", "10000"]);
    assert_eq!((code, &report["setup"]["connections"]), (Some(0), &10.into()), "{report}");
    assert!(warnings(&report).contains("10 of 10000 connections are used"), "{report}");
    let (_, report) = load(&server.url(), &["10", "10"]);
    assert!(!warnings(&report).contains("connections are used"), "{report}");
}
