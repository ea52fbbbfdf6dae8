//! The search for the highest rate that a server holds, `--find-rate`, and what ends it without a result.

use crate::world::fake::{Fake, GOOD, Habits, load};
use crate::world::{Server, run, text};
use serde_json::Value;
use std::time::Duration;

/// One connection to a server that takes 1 ms for each batch of 50: above 50,000 events/s the server falls behind.
#[test]
fn the_rate_of_events_at_which_a_server_falls_behind_is_found() {
    let fake = Fake::start(Habits { delay: |_| Duration::from_millis(1), ..GOOD });
    let flags = ["1", "1", "--find-rate", "p99<60ms", "--window", "250ms", "--rate", "40k"];
    let (code, found) = load(&fake.url(), &[&["--batch", "50"], &flags[..]].concat());
    let rate = found["rate"].as_u64().unwrap_or(0);
    assert!(rate <= 65_000, "{found}");
    // A busy machine lowers the rate that the client finds, and never raises it.
    let is_found = code == Some(0) && found["confirmed"] == true && rate >= 20_000;
    assert!(is_found || found["client_limited"] == true, "{found}");
}

/// A server that completes exactly 1,000 requests/s, and keeps all others waiting. Until the window ends, the backlog of a higher
/// rate fits the connections, and its latencies stay within the limit.
#[test]
fn a_rate_that_is_sent_and_not_completed_does_not_hold() {
    let fake = Fake::start(Habits { capacity: 1000, ..GOOD });
    let flags = ["1", "200", "--find-rate", "p99<100ms", "--window", "200ms", "--rate", "800"];
    let (_, found) = load(&fake.url(), &flags);
    let rate = found["rate"].as_u64().unwrap_or(0);
    assert!(rate <= 1020, "{found}");
    let curve = found["curve"].as_array().unwrap();
    let at = |point: &Value| point["rate"].as_u64().unwrap();
    let is_too_much = |point: &Value| at(point) > 1000 && point["holds"] == false;
    assert!(curve.iter().any(is_too_much) || found["client_limited"] == true, "{found}");
    assert!(curve.iter().all(|point| at(point) > rate || point["holds"] == true), "{found}");
    assert!(found["client_limited_from"].as_u64().is_none_or(|from| from > rate), "{found}");
}

/// A rate does not hold if requests are refused, however fast the refusals are.
#[test]
fn a_server_that_refuses_holds_no_rate() {
    let fake = Fake::start(Habits { refuses: 1, ..GOOD });
    let flags = ["1", "2", "--find-rate", "p99<100ms", "--window", "250ms", "--rate", "800"];
    let (code, found) = load(&fake.url(), &flags);
    assert_eq!((code, &found["rate"]), (Some(1), &Value::Null), "{found}");
    assert!(found["curve"][0]["reasons"].to_string().contains("not acknowledged"), "{found}");
}

#[test]
fn a_server_that_counts_wrong_ends_a_search() {
    let fake = Fake::start(Habits { doubles: 50, ..GOOD });
    let url = fake.url();
    let flags = ["load", "1", "2", "--url", &url, "--find-rate", "p99<100ms", "--window", "250ms"];
    let output = run(&flags);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("not exact at 1000 requests/s"), "{said}");
}

/// The latencies would describe a different number of connections, or bytes that only look like responses.
#[test]
fn a_search_without_all_its_connections_or_with_malformed_responses_ends() {
    let fake = Fake::start(Habits { trails: 50, ..GOOD });
    let full = Server::start(&["--max-connections", "4", "--shards", "1"]);
    for (url, says) in [(fake.url(), "malformed"), (full.url(), "of 8 connections were open")] {
        let flags = ["load", "1", "8", "--find-rate", "p99<100ms", "--window", "250ms"];
        let output = run(&[&flags[..], &["--url", &url]].concat());
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(says), "{said}");
        assert!(said.contains("at 1000 requests/s, "), "{said}");
    }
}

#[test]
fn a_search_with_windows_of_one_request_is_refused() {
    let flags = ["load", "1", "1000", "--find-rate", "p99<1us", "--window", "1ms", "--rate", "400"];
    let output = run(&flags);
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("pass --window 250ms"), "{said}");
    let output = run(&["load", "1", "9", "--find-rate", "p99<500ms", "--window", "1ms"]);
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("too short for p99<500ms"), "{said}");
}
