//! `load --batch` and `challenge --batch`: events in batches, judged by batch outcome, against our own server and against small
//! servers that handle batches correctly, or incorrectly in one way each.

use crate::world::fake::{Fake, GOOD, Habits, assert_wrong, load};
use crate::world::{Server, run, text};
use serde_json::Value;
use std::time::Duration;

/// Returns the verdict on a server with these habits, in batches of 100.
fn judged(habits: Habits, flags: &[&str]) -> (Option<i32>, Value) {
    load(&Fake::start(habits).url(), &[&["--batch", "100"], flags].concat())
}

#[test]
fn a_report_counts_events_and_batches() {
    for flags in [
        &["2050", "4"][..],
        &["2050", "3", "--pipeline", "3", "--threads", "2", "--values", "half", "--users", "7"],
        &["2050", "4", "--rate", "20000", "--warmup", "250"],
        &["2050", "4", "--watch", "--values", "one"],
        &["7", "4"],
    ] {
        let (code, report) = judged(GOOD, flags);
        assert_eq!((code, report["verdict"].as_str()), (Some(0), Some("exact")), "{report}");
        let events: u64 = flags[0].parse().unwrap();
        assert_eq!(
            (&report["requests"], &report["acknowledged"]),
            (&events.into(), &events.into())
        );
        assert_eq!(report["batches"], events.div_ceil(100));
        assert_eq!(report["server"]["totalRequests"], events);
        assert_eq!((&report["setup"]["batch"], &report["misstated"]), (&100.into(), &0.into()));
        let seconds = report["seconds"].as_array().unwrap();
        let of_seconds: u64 = seconds.iter().map(|one| one["requests"].as_u64().unwrap()).sum();
        assert_eq!(of_seconds, events);
        let rate =
            report["requests_per_s"].as_f64().unwrap() * report["elapsed_s"].as_f64().unwrap();
        assert!((rate / events as f64 - 1.0).abs() < 1e-6, "{report}");
    }
}

#[test]
fn our_server_counts_batches_exactly_with_both_engines() {
    for engine in ["ring", "streams"] {
        let server = Server::start(&["--engine", engine, "--shards", "2"]);
        for flags in [
            &["50500", "4", "--batch", "1000"][..],
            &["20000", "20", "--batch", "1", "--pipeline", "8", "--values", "half"],
            &["300000", "2", "--batch", "150000", "--users", "7"],
            &["30000", "8", "--batch", "333", "--watch", "--values", "one", "--warmup", "1000"],
            &["30000", "4", "--batch", "50", "--rate", "60000", "--threads", "2"],
        ] {
            let (code, report) = load(&server.url(), flags);
            assert_eq!((code, report["verdict"].as_str()), (Some(0), Some("exact")), "{report}");
            assert_eq!(report["acknowledged"], report["requests"]);
            assert_eq!(report["server"], report["expected"]);
        }
    }
}

/// Of 100 batches of 100 events, only those with users among the first 950 fit. Each is counted completely or not at all.
#[test]
fn our_server_refuses_what_does_not_fit_and_counts_nothing_of_it() {
    for engine in ["ring", "streams"] {
        let server = Server::start(&["--engine", engine, "--max-users", "950"]);
        let flags = ["10000", "4", "--batch", "100", "--users", "5000"];
        let (code, report) = load(&server.url(), &flags);
        assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("exact")), "{report}");
        let refused = report["refused_by_status"]["507"].as_u64().unwrap();
        assert!(refused % 100 == 0 && refused >= 10_000 - 2 * 900, "{report}");
        let server = Server::start(&["--engine", engine, "--max-batch", "4000"]);
        let (code, report) = load(&server.url(), &["2050", "4", "--batch", "200"]);
        assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("exact")), "{report}");
        // Only the last batch is short enough.
        assert_eq!(report["refused_by_status"]["413"], 2000);
        assert_eq!(report["acknowledged"], 50);
    }
}

#[test]
fn the_challenge_takes_batches_that_its_server_takes() {
    let output = run(&["challenge", "500k", "4", "--batch", "1000", "--quiet", "--json", "-"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["verdict"]), (Some(0), &"exact".into()), "{report}");
    assert_eq!((&report["requests"], &report["batches"]), (&500_000.into(), &500.into()));
    let output = run(&["challenge", "--batch", "1000", "--max-batch", "20000"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(text(&output.stderr).contains("--max-batch is 20000"), "{output:?}");
}

#[test]
fn a_batch_that_is_counted_in_part_is_detected() {
    assert_wrong(&judged(Habits { cuts: 20, ..GOOD }, &["2000", "4"]), "1 event was lost");
    assert_wrong(&judged(Habits { loses: 20, ..GOOD }, &["2000", "4"]), "100 events were lost");
    assert_wrong(&judged(Habits { doubles: 20, ..GOOD }, &["2000", "4"]), "100 events too many");
}

/// The totals are right, but the acknowledgements do not match the batches that were sent.
#[test]
fn an_acknowledgement_of_another_number_of_events_is_wrong() {
    let less = judged(Habits { misstates: 5, ..GOOD }, &["2000", "4"]);
    assert_wrong(&less, "4 acknowledgements were of another number of events");
    assert_wrong(&less, "of a batch of 100, one said accepted 99");
    assert_eq!(less.1["misstated"], 4);
    let silent = judged(Habits { tells_accepted: false, ..GOOD }, &["2000", "4"]);
    assert_wrong(&silent, "one said not how many events were accepted");
}

#[test]
fn a_batch_without_a_response_is_unknown_with_all_its_events() {
    for habits in [Habits { hangs_up: 15, ..GOOD }, Habits { stops_reading: 15, ..GOOD }] {
        for connections in ["1", "4"] {
            let (code, report) = judged(habits, &["2050", connections, "--timeout", "2s"]);
            assert_eq!((code, &report["verdict"]), (Some(1), &"undecided".into()), "{report}");
            assert_eq!((&report["unknown"], &report["acknowledged"]), (&100.into(), &1950.into()));
            assert!(report["reasons"].to_string().contains("100 events got no response"));
            assert_eq!(report["latency_us"]["censored"], 1);
            // If there are several connections, the others may send everything that is left before the lost one reconnects.
            let reconnects = report["reconnects"].as_u64().unwrap();
            assert!(reconnects == 1 || connections != "1" && reconnects == 0, "{report}");
        }
    }
    let (code, report) = judged(Habits { silent: 15, ..GOOD }, &["2050", "4", "--timeout", "1s"]);
    assert_eq!((code, &report["unknown"]), (Some(1), &100.into()), "{report}");
    assert_eq!(report["timeouts"], 1);
}

#[test]
fn a_refused_batch_is_refused_with_all_its_events_and_advice() {
    for (refusal, advice) in [
        (400, ""),
        (413, "use a smaller --batch"),
        (503, "raise its --max-batch-memory"),
        (507, "raise its --max-users"),
    ] {
        let habits = Habits { refuses: 10, refusal, ..GOOD };
        let (code, report) = judged(habits, &["2000", "4"]);
        assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("exact")), "{report}");
        assert_eq!((&report["refused"], &report["acknowledged"]), (&200.into(), &1800.into()));
        assert_eq!(report["refused_by_status"][refusal.to_string()], 200);
        assert!(report["warnings"].to_string().contains(advice), "{report}");
    }
}

#[test]
fn a_server_without_batches_is_said_to_have_none() {
    let fake = Fake::start(Habits { takes_batches: false, ..GOOD });
    let output = run(&["load", "2000", "4", "--batch", "100", "--url", &fake.url()]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let said = text(&output.stderr);
    assert!(said.contains("takes no batches") && said.contains("leave out --batch"), "{said}");
}

/// Three seconds of 100 batches per second, with a stall of one second in the middle: 100 of 300 batches are late. The first of
/// them is late by a second, and later ones by evenly less.
#[test]
fn the_latency_of_a_batch_counts_from_when_it_was_due() {
    let habits = Habits { stalls: Some((100, Duration::from_secs(1))), ..GOOD };
    let (code, report) = judged(habits, &["30000", "4", "--rate", "10000"]);
    assert_eq!((code, report["verdict"].as_str()), (Some(0), Some("exact")), "{report}");
    let seconds = |figure: &str| report["latency_us"][figure].as_f64().unwrap() / 1e6;
    assert!(seconds("p50") < 0.1, "{report}");
    assert!((0.65..0.8).contains(&seconds("p90")), "{report}");
    assert!((0.95..1.1).contains(&seconds("p99")), "{report}");
    let held = report["open_loop"]["held"].as_f64().unwrap();
    assert!((0.95..1.05).contains(&held), "{report}");
}

#[test]
fn batches_that_cannot_be_are_refused() {
    for (flags, says) in [
        (&["--batch", "0"][..], "from 1 to 150000"),
        (&["--batch", "150001"], "from 1 to 150000"),
        (&["100M", "1000", "--batch", "50k"], "would be in flight at once"),
        (&["--batch", "1", "--pipeline", "1024", "100M", "30000"], "would be in flight at once"),
        (
            &["1000", "10", "--batch", "500", "--part", "1/3", "--start-in", "5s", "--json", "-"],
            "more connections and batches",
        ),
    ] {
        let output = run(&[&["load"], flags].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flags:?} {said}");
        assert!(said.contains(says), "{said}");
    }
    // A run with few requests has few in flight.
    let output = run(&["load", "300k", "1000", "--batch", "150k", "--url", "http://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}
