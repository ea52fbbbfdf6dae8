//! Reports of made-up runs.

use super::super::figures::{FIGURES, Measured};
use super::super::latency::Encoded;
use super::super::ledger::Ledger;
use super::super::timeline::RawSecond;
use super::super::verdict::Users;
use super::*;

pub(in crate::load) fn setup() -> Setup {
    Setup {
        url: "http://127.0.0.1:8000".into(),
        engine: Some("ring".into()),
        connections: 10,
        threads: 1,
        cpus: "1".into(),
        pipeline: 1,
        rate: None,
        duration_s: None,
        connections_over_time: None,
        users: 100,
        values: Values::Integer,
        batch: None,
        one_request_per_connection: false,
        was_reset: true,
        user_prefix: UserPrefix::default(),
        address: None,
        pinned: true,
        timeout_s: 10.0,
        watch: false,
        server: None,
        command: vec!["ringtally".into(), "load".into()],
    }
}

pub(in crate::load) fn origin() -> Origin {
    let [started, ended] = ["2026-01-01T00:00:00Z", "2026-01-01T00:00:02Z"]
        .map(|time| super::super::origin::Time::try_from(time.to_owned()).unwrap());
    let address = "127.0.0.1:8000".into();
    Origin { started, ended, address, server_version: None, server_command: Vec::new() }
}

pub(in crate::load) fn environment() -> Environment {
    Environment {
        version: "1".into(),
        revision: None,
        dirty: None,
        topology: "0 1".into(),
        date: "2026-01-01T00:00:00Z".into(),
        host: "host".into(),
        kernel: "6.18".into(),
        cpu_model: "<model>".into(),
        cpus_online: "0-1".into(),
        cpus_allowed: "0-1".into(),
        memory_bytes: Some(1 << 30),
        checks: Vec::new(),
    }
}

/// Returns the outcome of a run of 1,000 requests in two seconds, each of 1 ms, with every event acknowledged.
pub(super) fn outcome() -> Outcome {
    let workload = Workload { events: 1000, users: 100, values: Values::Integer, batch: None };
    let share = workload.share_without(&[]);
    let mut total = Slice::new(0, false);
    (0..1000).for_each(|_| total.latency.record(1_000_000));
    let second = |second| RawSecond { second, events: 500, latency: Encoded::from(&total.latency) };
    let ledger = Ledger { acknowledged: 1000, ..Ledger::default() };
    let cpu = Duration::from_millis(3);
    Outcome {
        run: ClientRun {
            work: Work { ledger, cpu, ..Work::default() },
            seconds: vec![second(0), second(1)],
            elapsed: Duration::from_secs(2),
            busy: 0.5,
            cpus: vec![CpuUse { steal: 0.0, softirq: 0.25, busy: 0.5 }],
            total,
            ..ClientRun::default()
        },
        workload,
        warm_up: 0,
        held: None,
        evidence: Evidence {
            users_if_known: None,
            is_unbounded: false,
            before: Totals::ZERO,
            acknowledged: share,
            possible: share,
            users: Users { least: 100, most: 100, strangers: 0 },
            after: Ok(share.totals(100)),
        },
        settled_after: None,
        stayed: None,
        remarks: Vec::new(),
        setup: setup(),
        thresholds: Vec::new(),
        abort_if: Vec::new(),
        aborted_by: None,
        clients: Vec::new(),
        origin: origin(),
        environment: environment(),
        flow: None,
    }
}

#[test]
fn an_export_has_a_row_for_every_second_and_marks_what_may_be_more() {
    let mut outcome = outcome();
    outcome.run.seconds[1].second = 3;
    outcome.run.total.latency.record_many_at_least(2_000_000_000, 500);
    let mut late = Latencies::new();
    late.record_at_least(2_000_000_000);
    outcome.run.seconds.push(RawSecond { second: 4, events: 0, latency: Encoded::from(&late) });
    outcome.run.limited_by.push("busy".into());
    let exported = Report::new(outcome).exported();
    let firsts = exported.rows.iter().map(|row| format!("{} {}", row[0], row[1]));
    assert_eq!(firsts.collect::<Vec<_>>(), ["0 500", "1 0", "2 0", "3 500", "4 0"]);
    assert!(exported.rows.iter().all(|row| row.len() == exported.heads.len()));
    assert_eq!((&*exported.rows[1][2], &*exported.rows[3][5]), ("", ""));
    assert_eq!(exported.rows[4][5], "p50_us p99_us max_us");
    let is_bound = |name: &str| {
        let mut values = exported.values.iter();
        values.find(|value| value.figure.name == name).unwrap().value.is_at_least
    };
    assert!(is_bound("p99") && is_bound("max") && !is_bound("p50") && !is_bound("rps"));
    assert!(exported.lines[0].contains("so requests/s is a lower bound"), "{:?}", exported.lines);
}

/// Returns the outcome of the same run in an open loop of 500 requests per second.
pub(in crate::load) fn open_loop(lag_ns: u64) -> Outcome {
    let mut outcome = outcome();
    outcome.setup.rate = Some("500".parse().unwrap());
    // 999 of the 1,000 events were sent before the last.
    outcome.run.work.last_sent = Duration::from_secs(2);
    outcome.held = Some(0.999);
    let mut total = Slice::new(0, true);
    for _ in 0..1000 {
        total.latency.record(1_000_000);
        total.from_send.as_mut().unwrap().record(900_000);
        total.lag.as_mut().unwrap().record(lag_ns);
    }
    outcome.run.total = total;
    outcome
}

fn json(report: &Report) -> serde_json::Value {
    serde_json::from_str(&report.json()).unwrap()
}

fn server_use(cpu: Duration) -> ServerUse {
    let (user, system) = (cpu / 4, cpu - cpu / 4);
    let (cpu_source, cpus) = (CpuSource::Proc, "0".into());
    ServerUse { user, system, cpu_source, peak_rss_bytes: Some(1 << 20), cpus }
}

#[test]
fn json_has_each_threshold_with_its_value_and_whether_it_passed() {
    let mut outcome = open_loop(1000);
    outcome.thresholds = ["p99>0.5ms", "p99.99>5ms", "held<0.99", "verdict!=exact"]
        .map(|threshold| threshold.parse().unwrap())
        .to_vec();
    let report = Report::new(outcome);
    let thresholds = json(&report)["thresholds"].clone();
    let found: Vec<_> = thresholds.as_array().unwrap().iter().collect();
    assert_eq!(
        *found[0],
        serde_json::json!({"fail_if": "p99>0.5ms", "figure": "p99", "value": 1000.447,
            "is_lower_bound": false, "passed": false})
    );
    assert_eq!((&found[1]["figure"], &found[1]["passed"]), (&"p99.99".into(), &true.into()));
    assert_eq!((&found[2]["value"], &found[2]["passed"]), (&0.999.into(), &true.into()));
    assert_eq!((&found[3]["value"], &found[3]["passed"]), (&"exact".into(), &true.into()));
    let failure = report.check().unwrap_err().to_string();
    assert_eq!(failure, "--fail-if p99>0.5ms: p99 is 1.000447 ms");
}

#[test]
fn every_figure_is_measured() {
    let mut report = Report::new(open_loop(1000));
    report.add_server(Some(server_use(Duration::from_millis(200))));
    for figure in FIGURES.into_iter().filter(|figure| figure.name != "rate") {
        let measured = figure.of(&report.value());
        assert!(!matches!(measured, Measured::Unknown(_)), "{figure:?}: {measured:?}");
    }
}

#[test]
fn a_figure_that_a_run_does_not_have_is_unknown_and_fails() {
    for (threshold, says) in [
        ("held<0.99", "pass --rate"),
        ("server_cpu_us>5", "only the challenge"),
        ("p95>1s", "no request ended"),
    ] {
        let mut outcome = outcome();
        outcome.run.total = Slice::new(0, false);
        outcome.thresholds = vec![threshold.parse().unwrap()];
        let failure = Report::new(outcome).check().unwrap_err().to_string();
        assert!(failure.contains(says), "{failure}");
    }
}

#[test]
fn a_run_without_responses_has_no_latencies() {
    let mut outcome = outcome();
    outcome.run.total = Slice::new(0, false);
    let latency = json(&Report::new(outcome))["latency_us"].clone();
    for figure in ["mean", "p50", "p90", "p95", "p99", "p99_9", "p99_99", "max"] {
        assert_eq!(latency[figure], serde_json::Value::Null, "{figure}");
    }
}

#[test]
fn what_ticks_cannot_tell_is_not_told() {
    for (ms, is_told) in [(99, false), (100, true), (101, true)] {
        let mut report = Report::new(outcome());
        report.add_server(Some(server_use(Duration::from_millis(ms))));
        let us = &json(&report)["server_cpu_us_per_request"];
        assert_eq!(us.as_f64(), is_told.then_some(ms as f64), "{ms} ms");
    }
    for (ms, is_told) in [(999, false), (1000, true), (1001, true)] {
        let mut outcome = outcome();
        outcome.run.elapsed = Duration::from_millis(ms);
        let report = Report::new(outcome);
        assert_eq!(json(&report)["client_cpus"].is_object(), is_told, "{ms} ms");
    }
}

#[test]
fn a_client_that_is_the_limit_bounds_what_it_limits() {
    let limited = |mut outcome: Outcome| {
        outcome.run.limited_by = vec!["the client's CPUs were 99% busy".to_owned()];
        Report::new(outcome)
    };
    let closed = limited(outcome());
    assert!(closed.limit().unwrap().contains("requests/s is a lower bound"));
    let late = limited(open_loop(2_000_000));
    assert!(late.client_limited);
    assert!(late.summary().contains("99% busy"));
    assert!(late.limit().unwrap().contains("latencies are upper bounds"));
    assert_eq!(Report::new(open_loop(1000)).limit(), None);
    assert_eq!(Report::new(outcome()).limit(), None);
}

#[test]
fn an_interrupted_run_fails_whatever_it_found() {
    let mut outcome = outcome();
    outcome.run.interrupted = true;
    let report = Report::new(outcome);
    assert_eq!(report.check().unwrap_err().to_string(), "the run was interrupted");
    assert_eq!(json(&report)["interrupted"], true);
}

#[test]
fn totals_that_could_not_be_read_are_null() {
    let mut outcome = outcome();
    outcome.evidence.after = Err("the server is gone".into());
    let report = Report::new(outcome);
    assert_eq!(json(&report)["server"], serde_json::Value::Null);
    assert!(report.summary().contains("totals    unknown"));
    assert!(report.check().unwrap_err().to_string().contains("the server is gone"));
}

#[test]
fn totals_that_became_unreadable_were_right_for_no_known_time() {
    for (unreadable, quiet_ms) in [(None, Some(500.0)), (Some("it is gone".to_owned()), None)] {
        let quiet = Duration::from_millis(500);
        let stayed = Some(Stayed { quiet, changed_after: None, unreadable });
        let report = Report::new(Outcome { stayed, ..outcome() });
        assert_eq!(json(&report)["quiet_ms"].as_f64(), quiet_ms);
        assert_eq!(report.summary().contains("did not change for another"), quiet_ms.is_some());
    }
}

/// A threshold on failed attempts does not set the number of connections that must be open.
#[test]
fn missing_connections_fail_a_run_unless_a_threshold_names_them() {
    for (thresholds, fails) in [
        (&[][..], true),
        (&["connect_failures>9"], true),
        (&["connections_open<10"], true),
        (&["connections_open<6"], false),
    ] {
        let mut outcome = outcome();
        outcome.run.work.ledger.trouble.never_open = 4;
        outcome.thresholds = thresholds.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(Report::new(outcome).check().is_err(), fails, "{thresholds:?}");
    }
}

#[test]
fn cpu_time_is_told_apart_from_polling() {
    let mut outcome = open_loop(1000);
    outcome.run.work.polling = Duration::from_secs(1);
    let json = json(&Report::new(outcome));
    assert_eq!(json["client_cpu_us_per_request"], 3.0);
    assert_eq!(json["client_poll_us_per_request"], 1000.0);
}
