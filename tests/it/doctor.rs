//! `ringtally doctor`, and the machine in reports.

use crate::world::{ringtally, run, text};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

/// A file of this test run, which is removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, content: &str) -> Scratch {
        let name = format!("ringtally-{}-{name}", std::process::id());
        let file = Scratch(std::env::temp_dir().join(name));
        std::fs::write(&file.0, content).unwrap();
        file
    }

    fn name(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn every_line_has_a_verdict_and_every_warning_a_fix() {
    let output = run(&["doctor"]);
    assert_eq!(output.status.code(), Some(0));
    let said = text(&output.stdout);
    let (last, lines) = said.trim_end().rsplit_once('\n').map(|(a, b)| (b, a)).unwrap();
    let mut warnings = 0;
    for line in lines.lines() {
        let verdict = line.split_ascii_whitespace().next().unwrap();
        assert!(["OK", "WARN", "SKIP"].contains(&verdict), "{line}");
        assert_eq!(line.contains("; fix: "), verdict == "WARN", "{line}");
        warnings += usize::from(verdict == "WARN");
    }
    assert!(last.contains(&format!("{warnings} WARN")), "{last}");
    let strict = run(&["doctor", "--strict"]).status.code();
    assert_eq!(strict, Some(i32::from(warnings > 0)));
}

#[test]
fn a_limit_of_locked_memory_below_what_a_shard_needs_is_a_warning() {
    // One KiB less than glommio requires, on each kernel and for each user.
    let script = r#"ulimit -l 511 && exec "$0" doctor"#;
    let output =
        Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_ringtally")]).output().unwrap();
    let said = text(&output.stdout);
    let line = said.lines().find(|line| line.contains(" memlock ")).unwrap();
    assert!(line.starts_with("WARN") && line.contains("511 KiB"), "{line}");
    assert!(line.contains("; fix: raise the limit with ulimit -l "), "{line}");
}

#[test]
fn the_place_of_a_store_is_checked_where_it_is_named() {
    let checks = |flags: &[&str]| -> Vec<Value> {
        let output = run(&[&["doctor", "--json"], flags].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = report["checks"].as_array().unwrap().iter();
        checks.filter(|c| c["name"].as_str().unwrap().starts_with("store ")).cloned().collect()
    };
    assert!(checks(&[]).is_empty());
    let file = Scratch::new("tally.redb", "");
    assert_eq!(checks(&["--store", file.name()]).len(), 5);
    // On every Linux, this directory is in memory.
    let shared_memory = &checks(&["--store", "/dev/shm/tally.redb"])[0];
    assert_eq!(shared_memory["verdict"], "WARN", "{shared_memory}");
    assert!(shared_memory["value"].as_str().unwrap().starts_with("tmpfs on /dev/shm: "));
    let missing = &checks(&["--store", "/nonexistent/tally.redb"])[0];
    assert_eq!(missing["verdict"], "WARN", "{missing}");
    for wrong in [&["--store", "postgres://a/b"][..], &["--store", "a", "--compare", "b"]] {
        assert_eq!(run(&[&["doctor"], wrong].concat()).status.code(), Some(2), "{wrong:?}");
    }
}

/// Returns the checks of network cards in a report.
fn cards(report: &[u8]) -> Vec<Value> {
    let report: Value = serde_json::from_slice(report).unwrap();
    let checks = report["checks"].as_array().unwrap().iter();
    checks.filter(|c| c["name"].as_str().unwrap().starts_with("NIC ")).cloned().collect()
}

#[test]
fn the_card_that_has_an_address_is_checked_where_the_address_is_named() {
    let checks = |flags: &[&str]| {
        let output = run(&[&["doctor", "--json"], flags].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let mut checks = cards(&output.stdout);
        // This check is about all cards, and always there.
        checks.retain(|check| check["name"] != "NIC interrupts");
        checks
    };
    assert!(checks(&[]).is_empty());
    for host in ["localhost", "127.0.0.1", "[::1]"] {
        let checks = checks(&["--host", host, "--cpus", "0", "--shards", "2"]);
        assert_eq!((checks.len(), &checks[0]["name"]), (1, &"NIC lo".into()), "{checks:?}");
    }
    // Documentation addresses (RFC 5737, RFC 3849), and any cards that this machine has.
    for host in ["203.0.113.77", "2001:db8::77", "0.0.0.0", "::"] {
        for check in checks(&["--host", host]) {
            let is_warning = check["verdict"] == "WARN";
            assert_eq!(check["fix"].is_string(), is_warning, "{check}");
            assert!(is_warning || check.get("commands").is_none(), "{check}");
        }
    }
    for wrong in [
        &["--host", "nowhere"][..],
        &["--cpus", "0"],
        &["--shards", "1"],
        &["--host", "::1", "--cpus", "1023"],
        &["--host", "::1", "--compare", "a", "b"],
    ] {
        assert_eq!(run(&[&["doctor"], wrong].concat()).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn a_machine_is_compared_with_its_cards_where_an_address_is_named() {
    let with_card = text(&run(&["doctor", "--json", "--host", "::1"]).stdout);
    let file = Scratch::new("card.json", &with_card);
    let compare = |flags: &[&str]| {
        text(&run(&[&["doctor", "--compare", file.name()], flags].concat()).stdout)
    };
    assert!(!compare(&["--host", "::1"]).contains("NIC lo"));
    assert!(compare(&[]).contains("NIC lo: loopback has neither"));
}

#[test]
fn only_a_terminal_gets_color() {
    for command in ["doctor", "--help", "load --help"] {
        let output = run(&command.split(' ').collect::<Vec<_>>());
        assert!(!output.stdout.contains(&0x1b), "{command}");
    }
    // This variable makes any output count as a terminal.
    let forced = ringtally().arg("doctor").env("CLICOLOR_FORCE", "1").output().unwrap();
    assert!(forced.stdout.contains(&0x1b));
    let never = ringtally().arg("doctor").env("NO_COLOR", "1").output().unwrap();
    assert!(!never.stdout.contains(&0x1b));
}

#[test]
fn reports_embed_the_checks_of_the_doctor() {
    let output = run(&["challenge", "1000", "4", "--quiet", "--json", "-"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let doctor: Value = serde_json::from_slice(&run(&["doctor", "--json"]).stdout).unwrap();
    let names = |environment: &Value| -> Vec<String> {
        let checks = environment["checks"].as_array().unwrap();
        checks.iter().map(|check| check["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&report["environment"]), names(&doctor));
    assert_eq!(report["environment"]["cpu_model"], doctor["cpu_model"]);
}

#[test]
fn results_of_different_machines_are_distinguished() {
    let here = text(&run(&["doctor", "--json"]).stdout);
    let mut elsewhere: Value = serde_json::from_str(&here).unwrap();
    elsewhere["cpu_model"] = "abacus".into();
    let same = format!(r#"{{"format":"ringtally-load/1","environment":{here}}}"#);
    let same = Scratch::new("same.json", &same);
    let other = Scratch::new("other.json", &elsewhere.to_string());
    let compare = |files: &[&str], code: i32| {
        let output = run(&[&["doctor", "--strict", "--compare"], files].concat());
        assert_eq!(output.status.code(), Some(code), "{files:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    assert!(compare(&[same.name(), same.name()], 0).starts_with("the same machine"));
    assert!(compare(&[same.name()], 0).starts_with("the same machine"));
    let said = compare(&[same.name(), other.name()], 1);
    assert!(said.starts_with("different machines"), "{said}");
    assert!(said.contains("abacus"), "{said}");

    let broken = Scratch::new("broken.json", r#"{"format":"ringtally-load/1","environment":{}}"#);
    for file in [broken.name(), "/nonexistent/report.json"] {
        let output = run(&["doctor", "--compare", file]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(file), "{}", text(&output.stderr));
    }
}

#[test]
fn reports_of_different_runs_differ_in_their_setup() {
    let challenge = |workers: &str, more: &[&str]| {
        let flags = [&["challenge", "1000", workers, "--quiet", "--json", "-"], more].concat();
        let output = run(&flags);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let one = Scratch::new("one.json", &challenge("4", &[]));
    let again = Scratch::new("again.json", &challenge("4", &[]));
    let other = Scratch::new("other-run.json", &challenge("5", &["--values", "half"]));
    let compare =
        |second: &Scratch| text(&run(&["doctor", "--compare", one.name(), second.name()]).stdout);
    let said = compare(&again);
    assert!(said.starts_with("the same machine with the same settings\n"), "{said}");
    let said = compare(&other);
    assert!(said.starts_with("the same machine, but these settings differ\n"), "{said}");
    assert!(
        said.contains("connections: 4 | 5") && said.contains("values: integer | half"),
        "{said}"
    );
}
