//! The findings of `ringtally load` about time, and about servers that are wrong in one way each.

use crate::world::fake::{Fake, GOOD, Habits, assert_exact, assert_wrong, load};
use crate::world::{Server, ringtally, run, text};
use serde_json::Value;
use std::time::Duration;

/// Returns the verdict on a server with these habits, with its reasons.
fn judged(habits: Habits, flags: &[&str]) -> (Option<i32>, Value) {
    load(&Fake::start(habits).url(), flags)
}

#[test]
fn one_event_in_ten_thousand_is_enough() {
    let lost = judged(Habits { loses: 10_000, ..GOOD }, &["10000", "20"]);
    assert_wrong(&lost, "1 event was lost");
    let doubled = judged(Habits { doubles: 10_000, ..GOOD }, &["10000", "20"]);
    assert_wrong(&doubled, "1 event too many");
}

#[test]
fn torn_responses_are_detected() {
    let flags = ["20000", "8", "--watch", "--values", "one"];
    let torn = judged(Habits { tears: true, ..GOOD }, &flags);
    assert_wrong(&torn, "the numbers did not belong together");
    assert!(torn.1["watch"]["torn"].as_u64().unwrap() > 0);
    // Without the watch it would go unnoticed.
    let unseen = judged(Habits { tears: true, ..GOOD }, &["2000", "8", "--values", "one"]);
    assert_eq!(unseen.1["verdict"], "exact");
}

#[test]
fn totals_that_go_down_are_detected() {
    let flags = ["20000", "8", "--watch", "--values", "one"];
    let forgetful = judged(Habits { forgets: 5, ..GOOD }, &flags);
    assert_wrong(&forgetful, "totals went down");
    assert_wrong(&forgetful, "acknowledged events were missing");
}

#[test]
fn a_server_that_acknowledges_before_it_counts_is_detected() {
    let soon = Habits { counts_after: Duration::from_millis(100), ..GOOD };
    assert_wrong(&judged(soon, &["500", "8"]), "acknowledged before they are counted");
    let habits = Habits { counts_after: Duration::from_millis(300), ..GOOD };
    let report = judged(habits, &["500", "8"]);
    assert_wrong(&report, "acknowledged before they are counted");
    let ms = report.1["settled_after_ms"].as_f64().unwrap();
    assert!((100.0..2000.0).contains(&ms), "{ms}");
    let watched = judged(habits, &["5000", "8", "--watch"]);
    assert!(watched.1["watch"]["below_acknowledged"].as_u64().unwrap() > 0, "{}", watched.1);
}

/// The totals may still be right, and the run continues to its end.
#[test]
fn bytes_after_a_response_are_counted_and_fail_the_run() {
    for (trails, trailer) in [(500, "and more"), (1, "\r\n"), (1, "\n")] {
        let habits = Habits { trails, trailer, ..GOOD };
        let (code, report) = judged(habits, &["2000", "4", "--timeout", "2s"]);
        assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("exact")), "{report}");
        assert!(report["malformed"].as_u64().unwrap() >= 3, "{report}");
        assert_eq!(report["acknowledged"], 2000);
    }
}

/// The quiet time is proportional to the slowest response: twice 400 ms.
#[test]
fn a_server_that_counts_again_later_is_detected() {
    let again =
        |ms, delay| Habits { counts_again_after: Some(Duration::from_millis(ms)), delay, ..GOOD };
    let slow = |event| Duration::from_millis(if event == 7 { 400 } else { 0 });
    let at_once = |_| Duration::ZERO;
    let flags = ["500", "8", "--watch"];
    for (habits, flags, is_strict) in [
        (again(300, at_once), &flags[..2], false),
        (again(300, at_once), &flags, false),
        (again(650, slow), &flags[..2], true),
    ] {
        let (_, report) = judged(habits, flags);
        let reasons = report["reasons"].to_string();
        let is_late = reasons.contains("although nothing was sent");
        // On a busy machine, the client may read its first totals only after that time.
        let may_be_early = !is_strict || report["client_limited"] == true;
        assert!(is_late || may_be_early && reasons.contains("events too many"), "{report}");
    }
    let good = judged(Habits { delay: slow, ..GOOD }, &["500", "8"]);
    assert_exact(&good);
    assert!(good.1["quiet_ms"].as_f64().unwrap() >= 800.0, "{}", good.1);
}

#[test]
fn an_average_that_is_rounded_is_a_remark_and_one_in_integers_is_wrong() {
    let rounded = |decimals| {
        let habits = Habits { avg_decimals: Some(decimals), ..GOOD };
        judged(habits, &["4001", "20", "--watch"])
    };
    for decimals in [2, 3, 6] {
        let report = rounded(decimals);
        assert_exact(&report);
        let remarks = report.1["remarks"].to_string();
        assert!(remarks.contains("avg is rounded to "), "{remarks}");
    }
    assert_wrong(&rounded(0), "avg is ");
    assert_wrong(&rounded(1), "avg is ");
}

#[test]
fn the_total_that_is_missing_is_named() {
    let fake = Fake::start(Habits { lacks_avg: true, ..GOOD });
    let output = run(&["load", "10", "1", "--url", &fake.url()]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("avg is missing"), "{}", text(&output.stderr));
}

#[test]
fn a_watch_that_saw_next_to_nothing_decides_nothing() {
    let hides_stats = |number| (4..=20).contains(&number);
    let habits = Habits { hides_stats, delay: |_| Duration::from_millis(5), ..GOOD };
    let (code, report) = judged(habits, &["500", "8", "--watch"]);
    assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("undecided")), "{report}");
    assert!(report["reasons"].to_string().contains("the watch saw too little"), "{report}");
}

/// A server that closes properly does not process the requests after its last response, so they are sent again.
#[test]
fn requests_behind_a_response_that_closes_are_sent_again() {
    for rate in [None, Some("4000")] {
        let mut flags = vec!["2000", "4", "--pipeline", "8", "--timeout", "2s", "--watch"];
        flags.extend(rate.iter().flat_map(|rate| ["--rate", rate]));
        let report = judged(Habits { closes_every: 50, ..GOOD }, &flags);
        assert_exact(&report);
        let count = |key: &str| report.1[key].as_u64().unwrap();
        assert_eq!((count("acknowledged"), count("unknown")), (2000, 0), "{}", report.1);
        assert!(rate.is_some() || count("resent") > 0, "{}", report.1);
    }
}

/// An HTTP/1.0 response ends its connection, and promises nothing about the requests after it.
#[test]
fn what_is_behind_a_last_response_without_a_promise_is_unknown() {
    let habits = Habits { closes_every: 50, closes_silently: true, ..GOOD };
    let (code, report) = judged(habits, &["2000", "4", "--pipeline", "8", "--timeout", "2s"]);
    let count = |key: &str| report[key].as_u64().unwrap();
    assert_eq!((code, count("resent")), (Some(1), 0), "{report}");
    assert!(report["verdict"] == "undecided" && count("unknown") > 0, "{report}");
    assert_eq!(count("acknowledged") + count("unknown"), 2000, "{report}");
}

/// The server must not process the remaining requests, so the client does not wait for them until the connection is closed.
#[test]
fn a_server_that_says_close_and_does_not_is_left_soon() {
    let habits = Habits { closes_every: 1, lingers: Duration::from_secs(8), ..GOOD };
    let report = judged(habits, &["2", "1", "--pipeline", "2", "--timeout", "20s"]);
    assert_exact(&report);
    let count = |key: &str| report.1[key].as_u64().unwrap();
    assert_eq!((count("acknowledged"), count("timeouts")), (2, 0), "{}", report.1);
    assert!(report.1["elapsed_s"].as_f64().unwrap() < 6.0, "{}", report.1);
}

/// The server closes one of two connections in the middle and rejects its successor, but both were open. The delay gives each
/// of them time to serve.
#[test]
fn a_connection_that_has_served_was_open_whatever_becomes_of_the_next() {
    let delay = |_| Duration::from_micros(100);
    let habits = Habits { closes_every: 1500, full_from: 1, delay, ..GOOD };
    let (_, report) = judged(habits, &["2000", "2", "--timeout", "5s"]);
    assert!(report["rejected"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["connections_open"], 2, "{report}");
}

#[test]
fn a_coding_that_is_none_is_no_chunked_body() {
    let habits =
        Habits { connection: "keep-alive\r\nTransfer-Encoding: identity", body: "{}", ..GOOD };
    let report = judged(habits, &["500", "4"]);
    assert_exact(&report);
    assert_eq!(report.1["malformed"], 0, "{}", report.1);
}

/// A server that stands still for a second, in the middle of ten seconds at 1,000 requests/s: 1,000 of 10,000 requests are
/// late. The first of them is late by a second, and later ones by evenly less. The latest 100 are 1% of all requests, and were
/// due in the first tenth of that second, so p99 is 0.9 s. By the same reasoning p99.9 is 0.99 s, and p90 is close to zero.
#[test]
fn a_one_second_stall_is_in_the_percentiles_where_arithmetic_puts_it() {
    let habits = Habits { stalls: Some((5000, Duration::from_secs(1))), ..GOOD };
    let (code, report) = judged(habits, &["10000", "16", "--rate", "1000", "--threads", "2"]);
    assert_eq!((code, report["verdict"].as_str()), (Some(0), Some("exact")), "{report}");
    let latency = &report["latency_us"];
    let within = |value: &Value, least: f64, most: f64| {
        let seconds = value.as_f64().unwrap() / 1e6;
        assert!((least..most).contains(&seconds), "{seconds} in {report}");
    };
    within(&latency["p50"], 0.0, 0.05);
    within(&latency["p99"], 0.88, 0.97);
    within(&latency["p99_9"], 0.97, 1.04);
    within(&latency["max"], 0.98, 1.06);
    // A closed loop would have seen one late request per connection, 16 of 10,000.
    within(&report["open_loop"]["service_time_us"]["p99"], 0.0, 0.3);
    within(&report["open_loop"]["service_time_us"]["max"], 0.9, 1.06);
    assert!(report["open_loop"]["queued"].as_u64().unwrap() > 900, "{report}");
    assert_eq!(report["open_loop"]["service_time_us"]["censored"], 0);
    let elapsed = report["elapsed_s"].as_f64().unwrap();
    assert!((9.9..10.6).contains(&elapsed), "{elapsed}");
}

#[test]
fn requests_that_were_given_up_are_lower_bounds_in_the_percentiles() {
    let (code, report) = judged(Habits { silent: 100, ..GOOD }, &["2000", "10", "--timeout", "1s"]);
    assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("undecided")), "{report}");
    let latency = &report["latency_us"];
    assert_eq!(latency["censored"], 20, "{report}");
    assert_eq!((&report["timeouts"], &report["broken_keep_alives"]), (&20.into(), &0.into()));
    let bounds = latency["lower_bounds"].to_string();
    assert!(bounds.contains("p99_9") && bounds.contains("max"), "{bounds}");
    assert!(!bounds.contains("p50") && !bounds.contains("p90"), "{bounds}");
    assert!(latency["p99_9"].as_f64().unwrap() >= 1_000_000.0);
    let fake = Fake::start(Habits { silent: 100, ..GOOD });
    let output = run(&["load", "2000", "10", "--timeout", "1s", "--url", &fake.url()]);
    assert!(text(&output.stdout).contains("p99.9 >= 1"), "{}", text(&output.stdout));
}

#[test]
fn an_open_loop_sends_every_request_at_its_rate() {
    let server = Server::start(&[]);
    for (requests, rate, threads) in [("3000", "3000", "1"), ("1001", "2000", "2"), ("1", "5", "1")]
    {
        let flags = [requests, "4", "--rate", rate, "--threads", threads, "--watch"];
        let (code, report) = load(&server.url(), &flags);
        assert_eq!((code, report["verdict"].as_str()), (Some(0), Some("exact")), "{report}");
        assert_eq!(report["acknowledged"].to_string(), requests);
        let due = (requests.parse::<f64>().unwrap() - 1.0) / rate.parse::<f64>().unwrap();
        let elapsed = report["elapsed_s"].as_f64().unwrap();
        let is_late = elapsed > due + 0.3 && report["client_limited"] == false;
        assert!(elapsed >= due && !is_late, "{elapsed} of {due}: {report}");
    }
}

#[test]
fn a_warm_up_is_neither_measured_nor_judged() {
    let server = Server::start(&[]);
    let (code, report) = load(&server.url(), &["500", "5", "--warmup", "3000"]);
    assert_eq!((code, report["verdict"].as_str()), (Some(0), Some("exact")), "{report}");
    assert_eq!(report["server"]["totalRequests"], 500);
    assert_eq!(report["warm_up"]["acknowledged"], 3000);
    assert_eq!(report["seconds"][0]["requests"], 500);
    // A server without a reset is measured from the totals that the warm-up left.
    let fake = Fake::start(Habits { reset_status: 404, ..GOOD });
    let (code, report) = load(&fake.url(), &["500", "5", "--warmup", "300", "--users", "50"]);
    assert_eq!((code, report["verdict"].as_str()), (Some(0), Some("exact")), "{report}");
    assert_eq!(report["server"]["totalRequests"], 800);
}

#[test]
fn a_long_warm_up_is_not_in_the_percentiles() {
    let server = Server::start(&[]);
    let flags = ["500", "16", "--warmup", "150000", "--threads", "2"];
    let (code, report) = load(&server.url(), &flags);
    assert_eq!((code, report["verdict"].as_str()), (Some(0), Some("exact")), "{report}");
    let seconds = report["seconds"].as_array().unwrap();
    let counted: u64 = seconds.iter().map(|second| second["requests"].as_u64().unwrap()).sum();
    assert_eq!(counted, 500, "{report}");
}

/// A connection that breaks once does not mean that each connection takes only one request.
#[test]
fn a_connection_that_breaks_is_replaced_and_nothing_else_changes() {
    for rate in [None, Some("2000")] {
        let fake = Fake::start(Habits { hangs_up: 700, ..GOOD });
        let mut flags = vec!["2000", "10", "--timeout", "2s"];
        flags.extend(rate.iter().flat_map(|rate| ["--rate", rate]));
        let (code, report) = load(&fake.url(), &flags);
        assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("undecided")), "{report}");
        assert_eq!((&report["unknown"], &report["acknowledged"]), (&2.into(), &1998.into()));
        assert_eq!(report["broken_keep_alives"], 2);
        assert_eq!(report["setup"]["one_request_per_connection"], false);
        assert!(report["elapsed_s"].as_f64().unwrap() < 1.9, "{report}");
    }
}

#[test]
fn a_server_that_never_responds_is_given_up() {
    for rate in [None, Some("500")] {
        let fake = Fake::start(Habits { silent: 1, ..GOOD });
        let mut flags = vec!["5000", "5", "--timeout", "1s"];
        flags.extend(rate.iter().flat_map(|rate| ["--rate", rate]));
        let (code, report) = load(&fake.url(), &flags);
        assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("undecided")), "{report}");
        let (unknown, unsent) =
            (report["unknown"].as_u64().unwrap(), report["unsent"].as_u64().unwrap());
        assert_eq!(unknown + unsent, 5000);
        assert!((15..=40).contains(&unknown), "{unknown}");
        assert!(report["elapsed_s"].as_f64().unwrap() < 10.0, "{report}");
        // Requests that were due and never sent have waited, too.
        let censored = report["latency_us"]["censored"].as_u64().unwrap();
        assert_eq!(censored > unknown, rate.is_some(), "{report}");
    }
}

#[test]
fn each_threshold_that_holds_fails_the_run_with_a_line() {
    let server = Server::start(&[]);
    let with = |gates: &[&str]| {
        let url = server.url();
        let mut flags = vec!["load", "500", "5", "--quiet", "--url", &url];
        gates.iter().for_each(|gate| flags.extend(["--fail-if", gate]));
        let output = run(&flags);
        (output.status.code(), text(&output.stderr))
    };
    assert_eq!(with(&["p99>10s", "rps<1", "verdict!=exact"]), (Some(0), String::new()));
    let (code, said) = with(&["p99>1ns", "rps>1", "verdict!=exact"]);
    assert_eq!((code, said.lines().count()), (Some(1), 2), "{said}");
    assert!(said.contains("p99>1ns: p99 is ") && said.contains("rps>1: rps is "), "{said}");
    let (code, said) = with(&["p98>1ms"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--fail-if"), "{said}");
}

#[test]
fn the_html_report_is_self_contained() {
    let server = Server::start(&[]);
    let output = run(&[
        "load",
        "3000",
        "10",
        "--quiet",
        "--html",
        "-",
        "--rate",
        "6000",
        "--url",
        &server.url(),
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let page = text(&output.stdout);
    assert_eq!(page.matches("<svg ").count(), 4);
    for word in ["exact", "Latency spectrum", "99.9%", "Environment", "scope=\"row\""] {
        assert!(page.contains(word), "{word}");
    }
    for outside in ["<script", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn the_screen_needs_a_terminal() {
    let output = ringtally().args(["load", "--tui"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--tui"));
}

#[test]
fn a_client_on_the_servers_cpus_says_so() {
    let allowed = ringtally::topology::allowed_cpus();
    let first = allowed[0].to_string();
    let server = Server::start(&["--cpus", &first]);
    let (_, shared) = load(&server.url(), &["500", "2", "--cpus", &first]);
    assert!(shared["warnings"][0].as_str().unwrap().contains("share"), "{shared}");
    if allowed.len() > 1 {
        let (_, apart) = load(&server.url(), &["500", "2"]);
        assert_eq!(apart["warnings"], Value::Array(Vec::new()));
        let cpus = apart["setup"]["cpus"].as_str().unwrap();
        assert!(!cpus.split(',').any(|cpu| cpu == first), "{cpus}");
    }
}

/// These figures describe what happened to connections and responses.
#[test]
fn thresholds_may_name_what_happened_to_responses() {
    let fake = Fake::start(Habits { trails: 50, ..GOOD });
    let with = |fake: &Fake, limit: &str| {
        let url = fake.url();
        run(&["load", "200", "2", "--quiet", "--url", &url, "--timeout", "2s", "--fail-if", limit])
    };
    for (limit, says) in [("malformed>0", "malformed is "), ("acked_per_s>1", "acked_per_s is ")] {
        let output = with(&fake, limit);
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(says), "{said}");
    }
    let fake = Fake::start(GOOD);
    for limit in ["connect_failures>0", "rejected>0", "malformed>0"] {
        let output = with(&fake, limit);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    }
}

/// A refused request was not completed.
#[test]
fn requests_per_second_are_those_that_were_acknowledged() {
    let (_, report) = judged(Habits { refuses: 2, ..GOOD }, &["400", "4"]);
    let of = |name: &str| report[name].as_f64().unwrap();
    let (rate, expected) = (of("requests_per_s"), 200.0 / of("elapsed_s"));
    assert!((rate / expected - 1.0).abs() < 1e-6, "{report}");
}
