//! `ringtally load` and `ringtally challenge`: against our own server, and against small servers
//! that behave as published ones do, or misbehave in ways that the client must detect.

use crate::world::fake::{Fake, GOOD, Habits, load};
use crate::world::{Server, run, text};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn our_server_is_exact_in_both_dialects_and_with_every_setting() {
    for dialect in ["1mrc", "fasterapi"] {
        let server = Server::start(&["--dialect", dialect, "--shards", "3"]);
        for flags in [
            &["20000", "50"][..],
            &["20000", "50", "--values", "half", "--users", "7"],
            &["20001", "3", "--pipeline", "16", "--threads", "2"],
            &["1", "1"],
            &["5", "100"],
        ] {
            let (code, report) = load(&server.url(), flags);
            assert_eq!((code, report["verdict"].as_str()), (Some(0), Some("exact")), "{report}");
            let requests: u64 = flags[0].parse().unwrap();
            assert_eq!(report["requests"], requests);
            assert_eq!(report["acknowledged"], requests);
            for none in ["refused", "unknown", "unsent", "reconnects", "timeouts", "malformed"] {
                assert_eq!(report[none], 0, "{none} in {report}");
            }
            assert_eq!(report["server"], report["expected"]);
        }
    }
}

#[test]
fn the_report_has_what_the_contract_names() {
    let server = Server::start(&[]);
    let (_, report) = load(&server.url(), &["2000", "10"]);
    for key in ["elapsed_s", "requests_per_s"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}");
    }
    let latency = &report["latency_us"];
    let percentiles: Vec<f64> = ["p50", "p90", "p99", "p99_9", "max"]
        .iter()
        .map(|p| latency[p].as_f64().unwrap())
        .collect();
    assert!(percentiles.is_sorted() && percentiles[0] > 0.0, "{percentiles:?}");
    assert!(latency["mean"].as_f64().unwrap() > 0.0);
    for side in ["expected", "server"] {
        let expected = serde_json::json!(
            {"totalRequests": 2000, "uniqueUsers": 2000, "sum": 999_000.0, "avg": 499.5});
        assert_eq!(report[side], expected);
    }
    assert!(report["client_limited"].is_boolean());
    assert!(report["environment"]["kernel"].is_string());
}

#[test]
fn servers_with_published_habits_are_exact() {
    for habits in [
        Habits { status: 201, body: r#"{"status":"ok"}"#, ..GOOD },
        Habits { body: "OK", connection: "Keep-Alive", java_floats: true, ..GOOD },
        Habits { connection: "close", closes: true, ..GOOD },
        // This server announces one thing and does the other.
        Habits { connection: "keep-alive", closes: true, ..GOOD },
        Habits { reset_status: 404, ..GOOD },
    ] {
        let fake = Fake::start(habits);
        for round in 0..2 {
            let (code, report) = load(&fake.url(), &["1500", "20", "--users", "500"]);
            let has_reset = habits.reset_status == 200;
            assert_eq!((code, report["verdict"].as_str()), (Some(0), Some("exact")), "{report}");
            // If the users were not new, users of an earlier run might be among them.
            let users = if has_reset || round == 0 { 500 } else { 1000 };
            assert_eq!(report["server"]["uniqueUsers"], users);
            let is_published = report["setup"]["user_prefix"] == "user_";
            assert_eq!(is_published, users == 500, "{report}");
            assert_eq!(report["remarks"].to_string().contains("as in no other run"), !is_published);
            let total = if has_reset { 1500 } else { 1500 * (round + 1) };
            assert_eq!(report["server"]["totalRequests"], total);
            assert_eq!(report["setup"]["one_request_per_connection"], habits.closes);
            assert_eq!(report["unknown"], 0);
            assert_eq!(report["reconnects"].as_u64().unwrap() > 0, habits.closes);
        }
    }
}

#[test]
fn a_server_that_counts_wrong_is_detected() {
    for (habits, reason) in [
        (Habits { loses: 1000, ..GOOD }, "3 events were lost"),
        (Habits { doubles: 1000, ..GOOD }, "3 events too many"),
    ] {
        let fake = Fake::start(habits);
        let (code, report) = load(&fake.url(), &["3000", "10"]);
        assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("wrong")), "{report}");
        let reasons = report["reasons"].to_string();
        assert!(reasons.contains(reason) && reasons.contains("sum is"), "{reasons}");
    }
}

#[test]
fn refusals_are_counted_by_status_and_fail_the_run() {
    let fake = Fake::start(Habits { refuses: 100, ..GOOD });
    let (code, report) = load(&fake.url(), &["3000", "10"]);
    assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("exact")), "{report}");
    assert_eq!((&report["acknowledged"], &report["refused"]), (&2970.into(), &30.into()));
    assert_eq!(report["refused_by_status"]["500"], 30);
}

#[test]
fn a_request_without_a_response_is_unknown_and_the_verdict_undecided() {
    let fake = Fake::start(Habits { silent: 1000, ..GOOD });
    let (code, report) = load(&fake.url(), &["3000", "10", "--timeout", "1s"]);
    assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("undecided")), "{report}");
    assert_eq!((&report["unknown"], &report["timeouts"]), (&3.into(), &3.into()));
    assert_eq!(report["acknowledged"], 2997);
}

#[test]
fn a_run_without_a_reset_starts_from_the_totals_it_found() {
    let server = Server::start(&[]);
    let mut client = server.client();
    client.event("somebody", 10.0);
    let flags = ["100", "5", "--no-reset", "--user-prefix", "user_"];
    let (code, report) = load(&server.url(), &flags);
    assert_eq!((code, &report["server"]["totalRequests"]), (Some(1), &101.into()));
    assert_eq!(report["verdict"], "undecided");
    assert!(report["reasons"][0].as_str().unwrap().contains("1 user before"), "{report}");
    // With unique users, the verdict is decided.
    let (code, report) = load(&server.url(), &["100", "5", "--no-reset"]);
    assert_eq!((code, &report["server"]["totalRequests"]), (Some(0), &201.into()), "{report}");
    assert_eq!(report["server"]["uniqueUsers"], 201, "{report}");
    drop(client);
    let (code, report) = load(&server.url(), &["100", "5"]);
    assert_eq!((code, &report["server"]["totalRequests"]), (Some(0), &100.into()));
}

#[test]
fn a_missing_server_or_another_one_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let output = run(&["load", "--url", &url]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("--url"), "{output:?}");
    assert_eq!(text(&output.stderr).lines().count(), 1);
    let talker = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", talker.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = talker.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        stream.write_all(b"SSH-2.0-OpenSSH_9.0\r\n").unwrap();
    });
    assert_eq!(run(&["load", "--url", &url]).status.code(), Some(3));
}

#[test]
fn wrong_flags_are_refused() {
    for args in [
        &["load", "0"][..],
        &["load", "1", "0"],
        &["load", "1", "64512"],
        &["load", "--url", "ftp://x"],
        &["load", "--pipeline", "0"],
        &["load", "--pipeline", "1025"],
        &["load", "--values", "thirds"],
        &["load", "--cpus", "1023"],
        &["load", "--users", "0"],
        &["load", "--timeout", "soon"],
        &["challenge", "--cpus", "1023"],
        &["challenge", "--client-cpus", "x"],
        &["challenge", "--shards", "0"],
        &["other"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?} {output:?}");
        assert!(!text(&output.stderr).contains("panicked"));
    }
}

#[test]
fn files_are_written_and_a_full_disk_is_an_error() {
    let server = Server::start(&[]);
    let folder = std::env::temp_dir().join(format!("ringtally-reports-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (json, hdr) = (folder.join("report.json"), folder.join("latency.hgrm"));
    let output = run(&[
        "load",
        "5000",
        "10",
        "--url",
        &server.url(),
        "--json",
        json.to_str().unwrap(),
        "--hdr",
        hdr.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("exact"), "{output:?}");
    assert!(output.stderr.is_empty(), "no progress without a terminal: {output:?}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["verdict"], "exact");
    let table = std::fs::read_to_string(&hdr).unwrap();
    let last = table.lines().rfind(|line| !line.starts_with('#')).unwrap();
    assert!(
        table.contains("Percentile TotalCount") && last.contains("1.000000000000       5000"),
        "{table}"
    );
    std::fs::remove_dir_all(&folder).unwrap();
    let output = run(&["load", "10", "1", "--url", &server.url(), "--json", "/dev/full"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}

#[test]
fn the_challenge_is_one_command() {
    let output = run(&["challenge", "50000", "100", "--json", "-", "--values", "half"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["verdict"], "exact");
    assert_eq!(report["server"]["sum"], 25_000_000.0);
    assert!(report["server_cpu_us_per_request"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["server_peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
    let allowed = ringtally::topology::allowed_cpus();
    if allowed.len() > 1 {
        let (server, _) = {
            use ringtally::topology::{core_kind, divide, siblings};
            divide(&allowed, siblings, core_kind)
        };
        assert_eq!(report["server_cpus"], ringtally::topology::format_cpu_list(&server));
    }
    assert!(text(&output.stderr).contains("exact"), "the summary is on standard error");
    let tuned = run(&[
        "challenge",
        "2000",
        "10",
        "--shards",
        "3",
        "--dialect",
        "fasterapi",
        "--spin-us",
        "20",
        "--max-users",
        "10",
        "--pipeline",
        "4",
        "--threads",
        "2",
        "--quiet",
        "--json",
        "-",
    ]);
    // Ten users fit, and the events of the others are refused.
    let report: Value = serde_json::from_slice(&tuned.stdout).unwrap();
    assert_eq!((tuned.status.code(), &report["verdict"]), (Some(1), &"exact".into()), "{report}");
    assert_eq!(
        (&report["acknowledged"], &report["refused_by_status"]["507"]),
        (&10.into(), &1990.into())
    );
}

#[test]
fn a_second_event_stream_on_the_server_is_noticed() {
    let server = Server::start(&[]);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = server.client();
            while !is_over.load(Ordering::Acquire) {
                client.post("/event", r#"{"userId":"stranger","value":1}"#);
            }
        });
        let (code, report) = load(&server.url(), &["20000", "10"]);
        is_over.store(true, Ordering::Release);
        assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("wrong")), "{report}");
        assert!(report["reasons"].to_string().contains("too many"), "{report}");
    });
}

#[test]
fn a_client_that_may_not_use_io_uring_says_what_blocks_it() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
    const SYS_IO_URING_SETUP: i64 = 425;
    let server = Server::start(&[]);
    for error in [1, 38] {
        let url = server.url();
        // The filter applies to the thread and to the processes that it starts.
        let output = std::thread::spawn(move || {
            let filter = SeccompFilter::new(
                [(SYS_IO_URING_SETUP, vec![])].into(),
                SeccompAction::Allow,
                SeccompAction::Errno(error),
                std::env::consts::ARCH.try_into().unwrap(),
            );
            apply_filter(&BpfProgram::try_from(filter.unwrap()).unwrap()).unwrap();
            run(&["load", "10", "1", "--url", &url])
        })
        .join()
        .unwrap();
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let said = text(&output.stderr);
        let expected = "error: a seccomp filter blocks io_uring: allow io_uring_setup";
        assert!(said.starts_with(expected), "{said}");
    }
}
