use super::*;
use crate::load::clock::ClockOffset;
use crate::load::latency::{Latencies, Slice};
use crate::load::ledger::Ledger;
use crate::load::origin::Time;
use crate::load::report::tests::{environment, origin, setup};
use crate::load::run_record::Work;
use crate::load::schedule::{Left, Pace, Schedule};
use crate::load::timeline::RawSecond;
use crate::load::verdict::Evidence;
use crate::load::watch::Watched;
use crate::load::workload::{EVENTS_MAX, Values};
use crate::load::{Config, Profile, Show, Users};
use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

fn config(workload: Workload, connections: usize, rate: Option<Profile>) -> Config {
    Config {
        server: Server::parse("http://127.0.0.1:1").unwrap(),
        workload,
        warm_up: 0,
        connections,
        connections_over_time: None,
        threads: None,
        cpus: None,
        server_cpus: None,
        one_request_per_connection: false,
        pipeline: 1,
        rate,
        duration: None,
        timeout: Duration::from_secs(1),
        quiet: Duration::ZERO,
        users: Users::Published,
        reset: true,
        reset_token: None,
        part: Part::WHOLE,
        watch: false,
        thresholds: Vec::new(),
        abort_if: Vec::new(),
        sample_every: None,
        command: Vec::new(),
        server_command: Vec::new(),
        server_settings: None,
        progress: Show::Nothing,
    }
}

/// Returns the start of the parts in these tests.
fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
}

fn clock(ahead_ms: i64) -> ClockOffset {
    let local = start().checked_add(Duration::from_secs(100)).unwrap();
    let server = match ahead_ms {
        0.. => local - Duration::from_millis(ahead_ms.unsigned_abs()),
        _ => local + Duration::from_millis(ahead_ms.unsigned_abs()),
    };
    ClockOffset::of(local, local, server)
}

/// Returns the record of a client with these latencies, in an open loop if requested.
fn record(ledger: Ledger, latency: Latencies, is_open_loop: bool) -> ClientRun {
    let further = || is_open_loop.then(|| latency.clone());
    let (from_send, lag) = (further(), further());
    ClientRun {
        work: Work { ledger, ..Work::default() },
        total: Slice { latency, from_send, lag, ..Slice::default() },
        elapsed: Duration::from_secs(2),
        busy: 0.5,
        ..ClientRun::default()
    }
}

fn part_report(config: &Config, part: Part, run: ClientRun) -> PartReport {
    let at = Time(start() - Duration::from_secs(1));
    PartReport {
        part,
        run_id: Some("a".into()),
        parameters: Parameters::of(config),
        setup: setup(),
        first_totals: Totals::ZERO,
        before: part.leads().then_some(Before { at, totals: Totals::ZERO, was_reset: true }),
        started: Time(start()),
        clock_ahead_of_server: Some(clock(0)),
        origin: origin(),
        run,
        environment: environment(),
    }
}

/// Returns the reports of a run with all events acknowledged.
fn good(parts: u64) -> Vec<(String, PartReport)> {
    let workload = Workload { events: 1000, users: 70, values: Values::Half, batch: None };
    let config = config(workload, 10, None);
    (1..=parts)
        .map(|number| {
            let part = Part::new(number, parts);
            let ledger = Ledger { acknowledged: part.share(1000), ..Ledger::default() };
            let run = record(ledger, Latencies::new(), false);
            (format!("{number}.json"), part_report(&config, part, run))
        })
        .collect()
}

fn refusal(reports: Vec<(String, PartReport)>, lost: &[u64]) -> String {
    Parts::check(reports, lost).err().unwrap_or_else(|| panic!("they were accepted"))
}

/// Returns a report as `merge` reads it from a file.
fn through_a_file(report: &PartReport) -> PartReport {
    let read: PartReport = serde_json::from_str(&report.json()).unwrap();
    read.check_ledgers().unwrap();
    read
}

/// The events that a client sent, each with its outcome and latency, and the events that it left.
struct Sender {
    ledger: Ledger,
    latencies: Latencies,
    dues: Vec<(u64, u64)>,
}

impl Sender {
    /// Sends a part over some threads that each stop at their own time.
    fn send(
        part: Part,
        threads: u64,
        workload: Workload,
        rate: Option<&Profile>,
        fate: &dyn Fn(u64) -> u16,
        stops_at: &mut dyn FnMut() -> u64,
    ) -> Sender {
        let next = AtomicU64::new(0);
        let pace = rate.map(|rate| Pace::new(rate, None, &workload));
        let mut all =
            Sender { ledger: Ledger::default(), latencies: Latencies::new(), dues: Vec::new() };
        for thread in 0..threads {
            let mut schedule = match &pace {
                Some(pace) => Schedule::open(part, thread, threads, &workload, pace),
                None => Schedule::closed(part, &next, &workload),
            };
            let mut left = stops_at();
            while left > 0
                && let Some(due) = schedule.take(u64::MAX)
            {
                left -= 1;
                all.dues.push((due.request, if rate.is_some() { due.ns } else { 0 }));
                all.latencies.record(1 + due.request * 1000);
                match fate(due.request) {
                    0 => all.ledger.unknown.insert(&workload, due.request),
                    1 => all.ledger.unsent.insert(&workload, due.request),
                    status => all.ledger.note(&workload, due.request, status),
                }
            }
            match schedule.end() {
                Left::Grabbed(requests) => requests
                    .into_iter()
                    .for_each(|request| all.ledger.unsent.insert(&workload, request)),
                Left::Rest(rest) => all.ledger.leave(rest),
            }
        }
        if rate.is_none() {
            all.ledger.leave(crate::load::shared::rest_of_closed_loop(part, &next, &workload));
        }
        all
    }
}

fn evidence(workload: Workload, ledger: &Ledger) -> Evidence {
    let none = Ledger::default();
    let account = Account {
        workload,
        warm_up: 0,
        first: Totals::ZERO,
        before: Totals::ZERO,
        was_reset: true,
        novelty: Novelty::Unknown,
        ledger,
        warm_up_ledger: &none,
        is_unbounded: false,
        after: Ok(Totals::ZERO),
    };
    account.evidence()
}

/// Returns a fixed rate, a ramp, or stages; the last stage sends the rest.
fn random_rate(random: &mut fastrand::Rng) -> Option<Profile> {
    let mut rate = || random.u64(1..1_000_000);
    let text = match rate() % 3 {
        0 => rate().to_string(),
        1 => format!("{}:{}", rate(), rate()),
        _ => format!("{}ms@{}:0,7ms@0,23h@{}", 1 + rate() % 9, rate(), rate()),
    };
    Some(text.parse().unwrap())
}

/// Splits any workload into any number of parts, each with any number of threads. The parts send the same requests at the
/// same times and over the same number of connections as one client would, and the merged results are the same as well.
#[test]
fn any_split_equals_the_whole() {
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..300 {
        let values = [Values::Integer, Values::Half, Values::One][random.usize(0..3)];
        let batch = random.bool().then(|| random.u64(1..30));
        let workload =
            Workload { events: random.u64(20..3000), users: random.u64(1..2500), values, batch };
        let rate = [random_rate, |_: &mut _| None][random.usize(0..2)](&mut random);
        let seed = random.u64(..);
        let trouble = random.u64(0..4);
        // The fate of a request is the same for every sender.
        let fate = |request: u64| match fastrand::Rng::with_seed(seed ^ request).u64(0..40) {
            0 if trouble > 0 => 0,
            1 if trouble > 1 => 1,
            2 if trouble > 2 => 500,
            _ => 200,
        };
        let config = config(workload, random.usize(8..100), rate.clone());
        let rate = rate.as_ref();
        let of = random.u64(1..8);
        let mut never = || u64::MAX;
        let whole = Sender::send(Part::WHOLE, 1, workload, rate, &fate, &mut never);
        let (mut dues, mut connections) = (Vec::new(), 0);
        let mut reports = Vec::new();
        for number in 1..=of {
            let part = Part::new(number, of);
            let threads = random.u64(1..4);
            let sender = Sender::send(part, threads, workload, rate, &fate, &mut never);
            dues.extend(sender.dues);
            connections += part.share(config.connections as u64);
            let run = record(sender.ledger, sender.latencies, rate.is_some());
            let report = part_report(&config, part, run);
            reports.push((number.to_string(), through_a_file(&report)));
        }
        dues.sort_unstable();
        assert_eq!(dues, whole.dues);
        assert_eq!(connections, config.connections as u64);
        random.shuffle(&mut reports);
        let parts = Parts::check(reports, &[]).unwrap();
        let run = parts.run().unwrap();
        let ledger = &run.work.ledger;
        assert_eq!(ledger.acknowledged, whole.ledger.acknowledged);
        assert_eq!(ledger.refused_by_status, whole.ledger.refused_by_status);
        let [ours, theirs] = [ledger, &whole.ledger].map(|ledger| evidence(workload, ledger));
        assert_eq!((ours.acknowledged, ours.possible), (theirs.acknowledged, theirs.possible));
        assert_eq!(ours.users, theirs.users);
        let latencies = run.total;
        assert_eq!(latencies.latency.histogram(), whole.latencies.histogram());
        for further in [latencies.from_send, latencies.lag] {
            assert_eq!(further.is_some(), rate.is_some());
            assert!(further.is_none_or(|it| it.histogram() == whole.latencies.histogram()));
        }
    }
}

/// Compares with a list of all events when clients stop at any point and some are lost.
#[test]
fn what_stopped_and_lost_clients_leave_is_known_exactly() {
    let mut random = fastrand::Rng::with_seed(12);
    for _ in 0..300 {
        let values = [Values::Integer, Values::Half, Values::One][random.usize(0..3)];
        let batch = random.bool().then(|| random.u64(1..30));
        let workload =
            Workload { events: random.u64(20..2000), users: random.u64(1..1500), values, batch };
        let rate: Option<Profile> = random.bool().then(|| "1000".parse().unwrap());
        let config = config(workload, 8, rate.clone());
        let rate = rate.as_ref();
        let of = random.u64(2..6);
        let lost: Vec<u64> = (2..=of).filter(|_| random.u8(0..3) == 0).collect();
        let (mut acknowledged, mut reports) = (HashSet::new(), Vec::new());
        for number in (1..=of).filter(|number| !lost.contains(number)) {
            let part = Part::new(number, of);
            let threads = random.u64(1..4);
            let mut stops_at = || random.u64(0..800);
            let sender = Sender::send(part, threads, workload, rate, &|_| 200, &mut stops_at);
            let mut dues = sender.dues;
            acknowledged
                .extend(dues.drain(..).flat_map(|(request, _)| workload.events_of(request)));
            let run = record(sender.ledger, sender.latencies, rate.is_some());
            let report = part_report(&config, part, run);
            reports.push((number.to_string(), through_a_file(&report)));
        }
        let is_lost =
            |request: &u64| lost.iter().any(|number| Part::new(*number, of).has(*request));
        let lost_requests = (0..workload.requests()).filter(is_lost);
        let mut possible: HashSet<u64> =
            lost_requests.flat_map(|request| workload.events_of(request)).collect();
        possible.extend(&acknowledged);
        let parts = Parts::check(reports, &lost).unwrap();
        let run = parts.run().unwrap();
        let found = evidence(workload, &run.work.ledger);
        let listed = |events: &HashSet<u64>| {
            let sum: u64 = events.iter().map(|event| workload.value_in_halves(*event)).sum();
            let users: HashSet<u64> = events.iter().map(|event| event % workload.users).collect();
            (events.len() as u64, sum, users.len() as u64)
        };
        let (least, most) = (found.acknowledged, found.possible);
        assert_eq!((least.events, least.sum_in_halves, found.users.least), listed(&acknowledged));
        assert_eq!((most.events, most.sum_in_halves, found.users.most), listed(&possible));
    }
}

#[test]
fn a_part_that_is_missing_or_twice_is_named() {
    assert!(Parts::check(good(3), &[]).is_ok());
    let mut missing = good(3);
    missing.remove(1);
    assert!(refusal(missing.clone(), &[]).starts_with("part 2/3 is missing"));
    assert!(Parts::check(missing.clone(), &[2]).is_ok());
    let twice = [good(3), vec![("again.json".into(), good(3).remove(1).1)]].concat();
    let said = refusal(twice, &[]);
    assert!(said.starts_with("part 2/3 is there twice, in 2.json and in again.json"), "{said}");
    assert!(refusal(good(3), &[2]).contains("part 2/3 is there, and --lost"));
    assert!(refusal(good(3), &[4]).contains("had parts 1 to 3"));
    let first_lost = good(3).split_off(1);
    assert!(refusal(first_lost, &[1]).starts_with("part 1 is lost"));
    assert!(refusal(Vec::new(), &[]).contains("nothing to merge"));
}

#[test]
fn parts_of_two_runs_are_told_apart_by_what_differs() {
    let with = |change: fn(&mut PartReport)| {
        let mut reports = good(2);
        change(&mut reports[1].1);
        refusal(reports, &[])
    };
    for (said, expected) in [
        (with(|report| report.run_id = Some("b".into())), "their run id is a and b"),
        (with(|report| report.run_id = None), "their run id is a and none"),
        (with(|report| report.parameters.users = 71), "their users is 70 and 71"),
        (
            with(|report| report.parameters.rate = Some("5".parse().unwrap())),
            "their rate is null and 5",
        ),
        (with(|report| report.parameters.batch = Some(9)), "their batch is null and 9"),
        (with(|report| report.parameters.values = Values::One), r#"is "half" and "one""#),
    ] {
        assert!(said.starts_with("1.json and 2.json are not of one run"), "{said}");
        assert!(said.contains(expected), "{said}");
    }
    let mixed = vec![good(2).remove(0), good(3).remove(1)];
    assert!(refusal(mixed, &[]).contains("they are of 2 and of 3 parts"));
}

#[test]
fn parts_must_have_run_together() {
    let with = |change: fn(&mut PartReport)| {
        let mut reports = good(2);
        change(&mut reports[1].1);
        Parts::check(reports, &[]).map(|_| ()).err().unwrap_or_default()
    };
    assert_eq!(with(|report| report.started.0 += Duration::from_millis(1999)), "");
    let said = with(|report| report.started.0 += Duration::from_millis(2100));
    assert!(said.starts_with("part 1/2 ended 0.1 s before part 2/2 started"), "{said}");
    assert_eq!(with(|report| report.started.0 -= Duration::from_millis(900)), "");
    let said = with(|report| report.started.0 -= Duration::from_millis(1100));
    assert!(said.starts_with("part 2/2 started 0.1 s before part 1 had prepared"), "{said}");
    for (ahead_ms, expected) in
        [(3000, "at least 1.0 s ahead of"), (-3000, "at least 1.0 s behind")]
    {
        let mut reports = good(2);
        reports[1].1.clock_ahead_of_server = Some(clock(ahead_ms));
        let said = refusal(reports, &[]);
        assert!(said.contains(expected), "{said}");
    }
    assert_eq!(with(|report| report.clock_ahead_of_server = Some(clock(2100))), "");
    assert_eq!(with(|report| report.clock_ahead_of_server = None), "");
}

#[test]
fn a_report_that_has_an_event_twice_or_not_at_all_is_refused() {
    let (_, report) = good(2).remove(0);
    assert_eq!(report.check_ledgers(), Ok(()));
    let with = |change: &dyn Fn(&mut Ledger, &Workload)| {
        let mut changed = report.clone();
        change(&mut changed.run.work.ledger, &report.parameters.workload());
        changed.check_ledgers().is_err()
    };
    assert!(with(&|ledger, _| ledger.acknowledged -= 1));
    assert!(with(&|ledger, _| ledger.acknowledged = u64::MAX));
    assert!(with(&|ledger, workload| ledger.unknown.insert(workload, 2)));
    assert!(!with(&|ledger, workload| {
        ledger.unknown.insert(workload, 2);
        ledger.acknowledged -= 1;
    }));
    // This is the rest of the other part.
    assert!(with(&|ledger, _| {
        ledger.acknowledged = 499;
        ledger.leave(crate::load::workload::Rest { start: 999, step: 2 });
    }));
    assert!(with(&|ledger, _| ledger.leave(crate::load::workload::Rest { start: 0, step: 0 })));
    assert!(with(&|ledger, _| {
        ledger.leave(crate::load::workload::Rest { start: u64::MAX - 1, step: 2 });
    }));
}

#[test]
fn the_merged_report_has_each_client_and_their_sums() {
    let mut reports = good(3);
    reports[2].1.run.limited_by.push("a client thread was 95% busy".into());
    reports[1].1.started.0 += Duration::from_millis(500);
    let workload = Workload { events: 1000, users: 70, values: Values::Half, batch: None };
    let total = workload.whole().totals(70);
    let parts = Parts::check(reports, &[]).unwrap();
    let report = parts.report(parts.run().unwrap(), Ok(total), |_| None, Vec::new());
    assert_eq!(report.check(), Ok(()));
    let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
    assert_eq!((&json["verdict"], &json["acknowledged"]), (&"exact".into(), &1000.into()));
    assert_eq!((&json["elapsed_s"], &json["client_limited"]), (&2.5.into(), &true.into()));
    assert_eq!(json["clients"][1]["started_after_ms"], 500.0);
    assert!(json["warnings"].to_string().contains("part 2/3 started 0.5 s after the first"));
    let (text, page, table) = (report.summary(), report.html().unwrap(), report.percentile_table());
    for part in ["1/3 on host", "2/3 on host", "3/3 on host"] {
        assert!(text.contains(part) && page.contains(part) && table.contains(part), "{text}");
    }
    assert!(text.contains("part 3/3: a client thread was 95% busy"), "{text}");
}

/// The number of events that a client sends until a time is known only to the client itself.
#[test]
fn a_lost_part_of_a_run_by_the_clock_is_in_no_count_and_leaves_the_verdict_open() {
    let workload = Workload { events: EVENTS_MAX, users: 70, values: Values::Half, batch: None };
    let config = Config { duration: Some(Duration::from_secs(2)), ..config(workload, 10, None) };
    let reports = [1, 2].map(|number| {
        let part = Part::new(number, 3);
        let mut ledger = Ledger { acknowledged: 100, ..Ledger::default() };
        ledger.leave(part.rest(100));
        let mut run = record(ledger, Latencies::new(), false);
        run.work.last_sent = Duration::from_secs(2);
        let mut report = part_report(&config, part, run);
        report.setup.duration_s = Some(2.0);
        report.check_ledgers().unwrap();
        (part.to_string(), report)
    });
    let parts = Parts::check(reports.to_vec(), &[3]).unwrap();
    let mut whole = Ledger::default();
    (1..=2).for_each(|number| whole.leave(Part::new(number, 3).rest(100)));
    whole.leave(Part::new(3, 3).rest(0));
    let least = workload.share_without(&[&whole.unsent]).totals(70);
    assert_eq!(least.total_requests, 200);
    let more = Totals { total_requests: 290, sum: least.sum + 9000.5, avg: 0.0, ..least };
    let more = Totals { avg: more.quotient(), ..more };
    let fewer = Totals { total_requests: 199, avg: 0.0, ..least };
    let fewer = Totals { avg: fewer.quotient(), ..fewer };
    let little = Totals { sum: least.sum - 1.0, avg: 0.0, ..least };
    let little = Totals { avg: little.quotient(), ..little };
    for (after, verdict, says) in [
        (more, "undecided", "how many events the lost clients sent is not known"),
        (fewer, "wrong", "1 event was lost"),
        (little, "wrong", "and must be at least "),
    ] {
        let report = parts.report(parts.run().unwrap(), Ok(after), |_| None, Vec::new());
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["verdict"], verdict, "{}", json["reasons"]);
        assert!(json["reasons"].to_string().contains(says), "{}", json["reasons"]);
        assert_eq!((&json["requests"], &json["unknown"]), (&200.into(), &0.into()));
        assert!(json["warnings"].to_string().contains("part 3/3 is lost"));
    }
}

#[test]
fn parts_of_two_servers_are_refused() {
    let mut reports = good(3);
    let check = |reports| Parts::check(reports, &[]).unwrap().check_url();
    assert_eq!(check(reports.clone()), Ok(()));
    reports[2].1.setup.url = "http://10.0.0.9:8000".into();
    let why = check(reports).unwrap_err();
    assert!(why.contains("part 3/3 to http://10.0.0.9:8000") && why.contains("--url"), "{why}");
}

/// Collects the paths of all numbers in a JSON value.
fn numbers(json: &serde_json::Value, path: &str, found: &mut Vec<String>) {
    match json {
        serde_json::Value::Number(_) => found.push(path.to_owned()),
        serde_json::Value::Array(items) => {
            let items = items.iter().enumerate();
            items.for_each(|(index, item)| numbers(item, &format!("{path}/{index}"), found));
        }
        serde_json::Value::Object(members) => {
            let members = members.iter();
            members.for_each(|(name, item)| numbers(item, &format!("{path}/{name}"), found));
        }
        _ => {}
    }
}

/// A report with any number changed is either refused or merged, and never ends the program.
#[test]
fn no_edited_number_is_too_much() {
    let workload = Workload { events: 1000, users: 70, values: Values::Half, batch: Some(3) };
    let config = Config { warm_up: 10, ..config(workload, 10, Some("500".parse().unwrap())) };
    let fate = |request: u64| [200, 200, 200, 503, 0, 1][(request % 6) as usize];
    let part = |number| {
        let part = Part::new(number, 2);
        let mut sent = Sender::send(part, 1, workload, config.rate.as_ref(), &fate, &mut || 100);
        sent.ledger.trouble.reconnects = 3;
        sent.ledger.connect_errors.insert(111, 3);
        let warm_up = Ledger {
            acknowledged: part.share(4) * 3 - u64::from(number == 2) * 2,
            ..Ledger::default()
        };
        let second = RawSecond { second: 1, events: 3, latency: (&sent.latencies).into() };
        let watched = Watched { answers: 9, unanswered: 1, ..Watched::default() };
        let mut run = record(sent.ledger, sent.latencies, true);
        run.work.last_sent = Duration::from_secs(1);
        run.warm_up = warm_up;
        run.seconds = vec![second];
        run.watched = (number == 1).then_some(watched);
        part_report(&config, part, run)
    };
    let parts = [1, 2].map(|number| serde_json::from_str(&part(number).json()).unwrap());
    let merge = |parts: [serde_json::Value; 2]| -> Result<(), String> {
        let [one, other] = parts.map(|part| PartReport::of_json(part.to_string().as_bytes()));
        let run = Parts::check(vec![("1".into(), one?), ("2".into(), other?)], &[])?;
        run.check_url()?;
        let after = Totals { total_requests: 500, unique_users: 70, sum: 1.0, avg: 0.002 };
        let thresholds = vec!["p99>1s".parse().unwrap()];
        let report = run.report(run.run()?, Ok(after), |_| None, thresholds);
        report.json();
        report.html().map_err(|failure| failure.to_string())?;
        report.summary();
        report.percentile_table();
        Ok(())
    };
    merge(parts.clone()).unwrap();
    let mut paths = Vec::new();
    parts.iter().for_each(|part| numbers(part, "", &mut paths));
    paths.sort();
    paths.dedup();
    assert!(paths.len() > 60 && paths.iter().any(|path| path == "/run/elapsed/secs"), "{paths:?}");
    let (mut merged, mut panicked) = (0, Vec::new());
    let values =
        ["0", "1", "-1", "999999999", "9007199254740993", "18446744073709551615", "1e300", "-0.5"];
    for (path, value) in paths.iter().flat_map(|path| values.map(|value| (path, value))) {
        // The number is changed in one part, and then in both parts in the same way, because common values must be equal.
        for first in [1, 0] {
            let mut edited = parts.clone();
            for number in edited[first..].iter_mut().filter_map(|part| part.pointer_mut(path)) {
                *number = serde_json::from_str(value).unwrap();
            }
            match std::panic::catch_unwind(|| merge(edited)) {
                Ok(result) => merged += usize::from(result.is_ok()),
                Err(_) => panicked.push((path, value)),
            }
        }
    }
    assert!(merged > 100, "{merged}");
    assert!(panicked.is_empty(), "{panicked:?}");
}

/// The summary and the exit code of the part show the failure before any merge, even if every event was acknowledged.
#[test]
fn a_part_without_all_its_connections_fails() {
    let mut part = good(2).remove(0).1;
    assert_eq!(part.check(), Ok(()));
    assert!(!part.summary().contains("warning"), "{}", part.summary());
    part.run.work.ledger.trouble.never_open = 4;
    part.run.work.ledger.trouble.malformed = 2;
    let said = part.check().unwrap_err().to_string();
    for flaw in ["only 6 of 10 connections were open", "2 responses were malformed"] {
        assert!(said.contains(flaw), "{said}");
        assert!(part.summary().contains(flaw), "{}", part.summary());
    }
}
