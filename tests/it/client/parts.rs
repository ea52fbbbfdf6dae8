//! A run in parts: clients that each send a part of one workload, and `merge`, which combines their results into one report and
//! one verdict.

use crate::world::fake::{Fake, GOOD, Habits};
use crate::world::{Directory, PATIENCE, Server, ringtally, run, text};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// The clients of one run, each with its part, and the files that they write.
struct Clients {
    children: Vec<Child>,
    files: Vec<String>,
}

impl Clients {
    /// Starts three clients that begin together after five seconds.
    fn start(folder: &Directory, url: &str, flags: &[&str]) -> Clients {
        let start = SystemTime::now() + Duration::from_secs(5);
        let start = start.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64().to_string();
        let (mut children, mut files) = (Vec::new(), Vec::new());
        for number in 1..=3 {
            let file = folder.file(&format!("{number}.json"));
            let mut command = ringtally();
            command.args(["load", "--url", url, "--start-at", &start, "--quiet"]).args(flags);
            command.args(["--part", &format!("{number}/3"), "--json", &file]);
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            children.push(command.spawn().unwrap());
            files.push(file);
        }
        Clients { children, files }
    }

    fn signal(&self, index: usize, signal: Signal) {
        let pid = Pid::from_raw(self.children[index].id() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for all clients, and returns their exit codes and files.
    fn join(self) -> (Vec<Option<i32>>, Vec<String>) {
        let codes = self.children.into_iter().map(|child| {
            let output = child.wait_with_output().unwrap();
            if output.status.code() != Some(0) {
                eprintln!("{}", text(&output.stderr));
            }
            output.status.code()
        });
        (codes.collect(), self.files)
    }
}

/// Merges parts, and returns the exit code, the report, and standard error.
fn merge(args: &[&str]) -> (Option<i32>, Value, String) {
    let output = run(&[&["merge", "--json", "-"], args].concat());
    let report = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), report, text(&output.stderr))
}

fn names(files: &[String]) -> Vec<&str> {
    files.iter().map(String::as_str).collect()
}

#[test]
fn three_clients_together_are_exact_and_one_report_tells_of_all() {
    let folder = Directory::new("parts-exact");
    let server = Server::start(&["--shards", "2"]);
    // The totals of another run are reset once, before any part starts.
    server.client().event("somebody", 1.0);
    let flags = ["9001", "10", "--rate", "9000", "--warmup", "100", "--values", "half"];
    let (codes, files) = Clients::start(&folder, &server.url(), &flags).join();
    assert_eq!(codes, [Some(0), Some(0), Some(0)]);
    let html = folder.file("run.html");
    let mut args = names(&files);
    args.extend(["--html", &html, "--fail-if", "rps<1", "--fail-if", "held<0.05"]);
    let (code, report, said) = merge(&args);
    assert_eq!((code, &report["verdict"]), (Some(0), &"exact".into()), "{report} {said}");
    assert_eq!((&report["requests"], &report["acknowledged"]), (&9001.into(), &9001.into()));
    assert_eq!(report["server"], report["expected"]);
    assert_eq!(
        (&report["setup"]["connections"], &report["setup"]["was_reset"]),
        (&10.into(), &true.into())
    );
    assert_eq!(report["warm_up"]["acknowledged"], 100);
    let clients = report["clients"].as_array().unwrap();
    let sent: Vec<u64> = clients.iter().map(|c| c["requests"].as_u64().unwrap()).collect();
    assert_eq!(sent, [3001, 3000, 3000]);
    // Each event is due when it is due in the whole run, so that all parts together take as long as one client.
    let elapsed_s = report["elapsed_s"].as_f64().unwrap();
    assert!(elapsed_s >= 9000.0 / 9000.0, "{elapsed_s}");
    let in_seconds: u64 =
        report["seconds"].as_array().unwrap().iter().map(|s| s["requests"].as_u64().unwrap()).sum();
    assert_eq!(in_seconds, 9001);
    let page = std::fs::read_to_string(Path::new(&html)).unwrap();
    for number in 1..=3 {
        assert!(
            said.contains(&format!("{number}/3 on ")) && page.contains(&format!("{number}/3 on "))
        );
    }
    // A missing or repeated part is named.
    let (code, _, said) = merge(&names(&files[..2]));
    assert!(code == Some(2) && said.contains("part 3/3 is missing"), "{said}");
    let (code, _, said) = merge(&[&files[0], &files[1], &files[2], &files[1]]);
    assert!(code == Some(2) && said.contains("part 2/3 is there twice"), "{said}");
    // Totals from a file are judged, too.
    let totals = folder.file("totals.json");
    for (counted, code) in [(9001, 0), (9000, 1)] {
        let sum = report["expected"]["sum"].as_f64().unwrap();
        let avg = sum / f64::from(counted);
        let saved = serde_json::json!(
            {"totalRequests": counted, "uniqueUsers": 9001, "sum": sum, "avg": avg});
        std::fs::write(&totals, saved.to_string()).unwrap();
        let found = merge(&[&names(&files)[..], &["--server-totals", &totals]].concat());
        assert_eq!(found.0, Some(code), "{}", found.2);
    }
}

/// The clients send batches, and part 1 watches the totals.
#[test]
fn three_clients_that_send_batches_are_what_one_would_be() {
    let folder = Directory::new("parts-batches");
    let server = Server::start(&["--shards", "2"]);
    let flags = ["60050", "9", "--batch", "100", "--warmup", "250", "--watch", "--values", "one"];
    let (codes, files) = Clients::start(&folder, &server.url(), &flags).join();
    assert_eq!(codes, [Some(0), Some(0), Some(0)]);
    let (code, report, said) = merge(&names(&files));
    assert_eq!((code, &report["verdict"]), (Some(0), &"exact".into()), "{report} {said}");
    assert_eq!((&report["requests"], &report["batches"]), (&60_050.into(), &601.into()));
    let sent = |key: &str| -> Vec<u64> {
        report["clients"].as_array().unwrap().iter().map(|c| c[key].as_u64().unwrap()).collect()
    };
    // Part 1 has the last of the 601 batches.
    assert_eq!(
        (sent("requests"), sent("batches")),
        (vec![20_050, 20_000, 20_000], vec![201, 200, 200])
    );
    assert!(report["watch"]["answers"].as_u64().unwrap() > 0, "{report}");
}

/// Part 1 detects a server that shows torn totals, whatever the others send.
#[test]
fn what_part_1_has_watched_is_in_the_verdict_of_all() {
    let folder = Directory::new("parts-watched");
    let fake = Fake::start(Habits { tears: true, ..GOOD });
    let flags = ["9000", "9", "--rate", "6000", "--watch", "--values", "one"];
    let (codes, files) = Clients::start(&folder, &fake.url(), &flags).join();
    assert_eq!(codes, [Some(0), Some(0), Some(0)]);
    let (code, report, _) = merge(&names(&files));
    assert_eq!((code, &report["verdict"]), (Some(1), &"wrong".into()), "{report}");
    assert!(report["watch"]["torn"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(
        (&report["watch"]["above_sent"], &report["watch"]["below_acknowledged"]),
        (&0.into(), &0.into())
    );
}

#[test]
fn a_client_that_is_stopped_or_killed_leaves_bounds_that_hold() {
    let folder = Directory::new("parts-killed");
    let server = Server::start(&["--shards", "1"]);
    // These are far more events than can be sent before the clients are stopped.
    let clients = Clients::start(&folder, &server.url(), &["90k", "9", "--rate", "30k"]);
    // The clients are stopped in the middle of the run: after the first events have been counted.
    let mut observer = server.client();
    while observer.stats().total < 5000 {
        std::thread::sleep(Duration::from_millis(5));
    }
    clients.signal(1, Signal::INT);
    clients.signal(2, Signal::KILL);
    let (codes, files) = clients.join();
    assert_eq!(codes, [Some(0), Some(1), None]);
    let (code, _, said) = merge(&names(&files[..2]));
    assert!(code == Some(2) && said.contains("--lost 3"), "{said}");
    let (code, report, said) = merge(&[&files[0], &files[1], "--lost", "3"]);
    assert_eq!((code, &report["verdict"]), (Some(1), &"undecided".into()), "{report} {said}");
    let number = |of: &Value| of.as_u64().unwrap();
    let counted = number(&report["server"]["totalRequests"]);
    let (acknowledged, unknown) = (number(&report["acknowledged"]), number(&report["unknown"]));
    assert!((30_000..60_000).contains(&acknowledged), "{acknowledged}");
    // The number of the stopped client's unsent events is known. Nothing is known of the other client.
    assert!(unknown >= 30_000 && number(&report["unsent"]) > 0, "{report}");
    assert!((acknowledged..=acknowledged + unknown).contains(&counted), "{report}");
    assert_eq!(acknowledged + unknown + number(&report["unsent"]), 90_000);
    // Less than the acknowledged number is wrong, whatever the lost client did.
    let totals = folder.file("totals.json");
    let saved = serde_json::json!(
        {"totalRequests": acknowledged - 1, "uniqueUsers": 1, "sum": 0.0, "avg": 0.0});
    std::fs::write(&totals, saved.to_string()).unwrap();
    let flags = [&files[0], &files[1], "--lost", "3", "--server-totals", &totals];
    assert_eq!(merge(&flags).1["verdict"], "wrong");
}

#[test]
fn a_client_that_waits_for_the_start_can_be_interrupted() {
    let server = Server::start(&["--shards", "1"]);
    let child = ringtally()
        .args(["load", "100", "4", "--url", &server.url(), "--json", "-"])
        .args(["--part", "1/2", "--start-in", "10m"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // After this time it has connected, and waits.
    std::thread::sleep(Duration::from_secs(2));
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::INT).unwrap();
    let interrupted = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(interrupted.elapsed() < PATIENCE);
    // As in shells, the code is 130 if a process is interrupted before it has a run to end.
    assert!(matches!(output.status.code(), Some(1 | 130)), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
}

/// The totals of all parts must stay right for a quiet time, as with a single client.
#[test]
fn a_server_that_counts_again_after_all_parts_is_wrong() {
    let folder = Directory::new("parts-again");
    let again = Some(Duration::from_millis(300));
    let fake = Fake::start(Habits { counts_again_after: again, ..GOOD });
    let (codes, files) = Clients::start(&folder, &fake.url(), &["300", "6"]).join();
    assert_eq!(codes, [Some(0), Some(0), Some(0)]);
    let (code, report, said) = merge(&names(&files));
    assert_eq!((code, &report["verdict"]), (Some(1), &"wrong".into()), "{report} {said}");
    // Saved totals have been read only once.
    let totals = folder.file("totals.json");
    let right = &report["expected"];
    std::fs::write(&totals, right.to_string()).unwrap();
    let (code, report, said) = merge(&[names(&files), vec!["--server-totals", &totals]].concat());
    assert_eq!(code, Some(0), "{report} {said}");
    assert!(report["remarks"].to_string().contains("read once"), "{report}");
}
