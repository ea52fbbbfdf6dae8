//! The real server over a store in a file: killed at random moments, out of space, on a disk that loses writes, and robbed of
//! its file.
//!
//! `RINGTALLY_KILLS=n` sets the number of kills, and `RINGTALLY_CONNECTIONS=n` the number of connections; `ci/crash` does so.
//! `RINGTALLY_STORE_FOLDER` is a directory on a small file system that a test may fill.

use crate::world::{Client, Server, Totals, engine, eventually, post, ringtally, run, text};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A directory that is removed when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("ringtally-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    fn store(&self) -> String {
        self.0.join("tally.redb").to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Starts a server that must refuse to start. Returns its error.
fn refused(store: &str) -> String {
    let output = run(&["serve", "--port", "0", "--store", store]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    text(&output.stderr)
}

fn inspect(store: &str) -> Output {
    run(&["store", "inspect", store])
}

/// Clients that send events without pause, one after the other on each connection, until the server ends.
#[derive(Default)]
struct Load {
    /// A number for each event, which is also its user.
    sent: AtomicU64,
    acknowledged: AtomicU64,
    /// Requests without a response.
    unknown: AtomicU64,
}

impl Load {
    fn start(self: &Arc<Load>, server: &Server, connections: u64) -> Vec<JoinHandle<()>> {
        let start = |_| {
            let (load, mut client) = (Arc::clone(self), server.client());
            std::thread::spawn(move || {
                loop {
                    let event = load.sent.fetch_add(1, Ordering::Relaxed);
                    let body = format!(r#"{{"userId":"user_{event}","value":1}}"#);
                    // An event that is not sent completely is not counted. An event that is sent may be counted.
                    let is_sent = send(&mut client, post("/event", &body).as_bytes());
                    match is_sent.then(|| client.try_read()).flatten() {
                        Some(response) => {
                            assert_eq!(response.status, 200, "{response:?}");
                            load.acknowledged.fetch_add(1, Ordering::Relaxed);
                        }
                        None => {
                            load.unknown.fetch_add(1, Ordering::Relaxed);
                            return;
                        }
                    }
                }
            })
        };
        (0..connections).map(start).collect()
    }
}

fn send(client: &mut Client, bytes: &[u8]) -> bool {
    use std::io::Write;
    client.stream.write_all(bytes).is_ok()
}

/// Requests the totals without pause, and returns the largest total that it was shown.
fn poll(server: &Server, is_over: &Arc<AtomicBool>) -> JoinHandle<u64> {
    let (mut client, is_over) = (server.client(), Arc::clone(is_over));
    std::thread::spawn(move || {
        let mut most = 0;
        while !is_over.load(Ordering::Relaxed)
            && send(&mut client, b"GET /stats HTTP/1.1\r\nHost: h\r\n\r\n")
            && let Some(response) = client.try_read()
        {
            let totals = Totals::parse(&response.body);
            check(&totals);
            assert!(totals.total >= most, "totals never decrease");
            most = totals.total;
        }
        most
    })
}

/// Checks totals of events that each have the value 1 and their own user.
fn check(totals: &Totals) {
    assert_eq!(totals.sum, totals.total as f64, "{totals:?}");
    assert_eq!(totals.users, totals.total, "{totals:?}");
}

#[test]
fn what_was_acknowledged_survives_kills() {
    let folder = Folder::new("kills");
    let store = folder.store();
    let connections = number("RINGTALLY_CONNECTIONS", 8);
    let load = Arc::new(Load::default());
    let mut rng = fastrand::Rng::new();
    let mut at_least = 0;
    for kill in 0..number("RINGTALLY_KILLS", 6) {
        let server = Server::start(&["--store", &store]);
        let before = server.stats();
        check(&before);
        let at_most = at_least + load.unknown.swap(0, Ordering::Relaxed);
        assert!(
            (at_least..=at_most).contains(&before.total),
            "{kill}: {at_least} {at_most} {before:?}"
        );
        load.acknowledged.store(before.total, Ordering::Relaxed);
        let is_over = Arc::new(AtomicBool::new(false));
        let clients = load.start(&server, connections);
        let poller = poll(&server, &is_over);
        std::thread::sleep(Duration::from_millis(rng.u64(5..250)));
        // Dropping the server kills it.
        drop(server);
        is_over.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().unwrap());
        let shown = poller.join().unwrap();
        at_least = load.acknowledged.load(Ordering::Relaxed);
        let inspected = inspect(&store);
        assert_eq!(inspected.status.code(), Some(0), "{}", text(&inspected.stderr));
        let held = Totals::parse(&text(&inspected.stdout));
        assert!(held.total >= at_least.max(shown), "{kill}: {held:?} of {at_least}, {shown} shown");
    }
    assert!(at_least > 0, "something was counted");
}

#[test]
fn what_sigterm_prints_is_what_a_restart_restores() {
    let folder = Folder::new("restart");
    let store = folder.store();
    let server = Server::start(&["--store", &store, "--shards", "2"]);
    let mut client = server.client();
    for event in 0..100 {
        client.event(&format!("user_{}", event % 7), 0.1);
    }
    let said = refused(&store);
    assert!(said.contains("is in use by another ringtally"), "{said}");
    let printed = server.stop();
    assert_eq!((printed.total, printed.users), (100, 7));
    let server = Server::start(&["--store", &store]);
    assert_eq!(server.stats(), printed);
    let mut client = server.client();
    client.event("user_3", -0.25);
    assert_eq!(client.stats().users, 7, "a user that was restored is known");
    assert_eq!(client.post("/reset", "").status, 200);
    client.event("user_3", 2.5);
    drop(server);
    let server = Server::start(&["--store", &store]);
    let totals = server.stats();
    assert_eq!((totals.total, totals.users, totals.sum), (1, 1, 2.5), "the reset was durable");
}

#[test]
fn a_file_that_is_deleted_under_the_server_ends_it() {
    let folder = Folder::new("deleted");
    let store = folder.store();
    let server = Server::start(&["--store", &store]);
    server.client().event("u", 1.0);
    std::fs::remove_file(&store).unwrap();
    let mut client = server.client();
    client.send(post("/event", r#"{"userId":"v","value":1}"#).as_bytes());
    assert_eq!(client.try_read(), None, "nothing is acknowledged that nobody can find");
    let (code, _, log) = server.wait_with_log();
    assert_eq!(code, Some(3));
    assert!(log.contains("was deleted or replaced"), "{log}");
}

/// Starts a server whose file may have this number of KiB, and then cannot grow.
fn start_limited(store: &str, kib: u64) -> Server {
    let mut command = Command::new("sh");
    // POSIX counts in blocks of 512 bytes.
    command.args(["-c", &format!(r#"ulimit -f {}; exec "$0" "$@""#, 2 * kib)]);
    command.arg(ringtally().get_program());
    command.args(["serve", "--port", "0", "--engine", &engine(), "--store", store]);
    Server::start_command(command)
}

/// Sends events of new users with long ids until the server ends. Returns the number of acknowledged events.
fn fill(server: Server, pattern: &str) -> u64 {
    let mut client = server.client();
    let mut acknowledged = 0;
    let long = "x".repeat(240);
    loop {
        let body = format!(r#"{{"userId":"{long}{acknowledged}","value":1}}"#);
        let is_sent = send(&mut client, post("/event", &body).as_bytes());
        match is_sent.then(|| client.try_read()).flatten() {
            Some(response) => assert_eq!(response.status, 200),
            None => break,
        }
        acknowledged += 1;
    }
    let (code, printed, log) = server.wait_with_log();
    assert_eq!((code, printed.as_str()), (Some(3), ""), "{log}");
    assert!(log.contains(pattern), "{log}");
    acknowledged
}

#[test]
fn a_file_that_cannot_grow_ends_the_server_and_loses_nothing() {
    let folder = Folder::new("limit");
    let store = folder.store();
    let acknowledged = fill(start_limited(&store, 1500), "cannot be written");
    assert!(acknowledged > 0);
    let totals = Server::start(&["--store", &store]).stats();
    check(&totals);
    assert!(
        (acknowledged..=acknowledged + 1).contains(&totals.total),
        "{totals:?} of {acknowledged}"
    );
}

#[test]
#[ignore = "needs a small file system: ci/crash makes one"]
fn a_full_disk_ends_the_server_and_loses_nothing() {
    let folder = std::env::var("RINGTALLY_STORE_FOLDER").unwrap();
    let store = Path::new(&folder).join("tally.redb");
    let ballast = Path::new(&folder).join("ballast");
    std::fs::write(&ballast, vec![1; 512 << 10]).unwrap();
    let store = store.to_str().unwrap();
    let acknowledged = fill(Server::start(&["--store", store]), "its disk is full");
    std::fs::remove_file(ballast).unwrap();
    let server = Server::start(&["--store", store]);
    let totals = server.stats();
    check(&totals);
    assert!(
        (acknowledged..=acknowledged + 1).contains(&totals.total),
        "{totals:?} of {acknowledged}"
    );
    server.client().event("one more", 1.0);
}

/// A write-back that fails leaves pages that can be read but are not on the disk.
#[test]
#[ignore = "needs a disk that can lose what is written: ci/crash makes one"]
fn a_failed_write_back_and_a_restart_lose_nothing() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let (folder, image) = (variable("RINGTALLY_STORE_FOLDER"), variable("RINGTALLY_IMAGE"));
    let run_tool = |arguments: &[&str]| {
        let status = Command::new(arguments[0]).args(&arguments[1..]).status().unwrap();
        assert!(status.success(), "{arguments:?}");
    };
    let store = format!("{folder}/tally.redb");
    let server = Server::start(&["--store", &store]);
    let mut client = server.client();
    let (mut acknowledged, long) = (0, "x".repeat(200));
    loop {
        let event = |user| format!("{{\"userId\":\"{long}{user:07}\",\"value\":1}}\n");
        let lines: String = (acknowledged..acknowledged + 100).map(event).collect();
        let is_sent = send(&mut client, post("/events", &lines).as_bytes());
        match is_sent.then(|| client.try_read()).flatten() {
            Some(response) => assert_eq!(response.status, 200, "{response:?}"),
            None => break,
        }
        acknowledged += 100;
    }
    let (code, _, log) = server.wait_with_log();
    assert_eq!(code, Some(3), "{log}");
    assert!(acknowledged > 1000 && log.contains("cannot be written"), "{acknowledged} {log}");
    // From here on, the disk is repaired and loses nothing.
    let tmpfs = Path::new(&image).parent().unwrap().to_str().unwrap();
    run_tool(&["mount", "-o", "remount,size=128m", tmpfs]);
    let server = Server::start(&["--store", &store]);
    let restored = server.stats();
    check(&restored);
    assert!((acknowledged..=acknowledged + 100).contains(&restored.total), "{restored:?}");
    server.client().event("one more", 1.0);
    drop(server);
    // The page cache is lost, as in a power failure.
    run_tool(&["umount", &folder]);
    run_tool(&["mount", "-o", "loop", &image, &folder]);
    let inspected = inspect(&store);
    assert_eq!(inspected.status.code(), Some(0), "{}", text(&inspected.stderr));
    assert_eq!(Totals::parse(&text(&inspected.stdout)).total, restored.total + 1);
    let server = Server::start(&["--store", &store]);
    check(&server.stats());
    assert_eq!(server.stats().total, restored.total + 1, "{acknowledged} were acknowledged");
}

#[test]
#[ignore = "needs a file system that can be frozen: ci/crash makes one"]
fn a_disk_that_hangs_is_late_and_then_recovers() {
    let folder = std::env::var("RINGTALLY_STORE_FOLDER").unwrap();
    let store = Path::new(&folder).join("tally.redb");
    let freeze = |flag: &str| {
        let status = Command::new("fsfreeze").args([flag, &folder]).status().unwrap();
        assert!(status.success(), "fsfreeze {flag}");
    };
    let server = Server::start(&["--store", store.to_str().unwrap(), "--store-timeout", "500ms"]);
    server.client().event("a", 1.0);
    freeze("-f");
    let mut client = server.client();
    client.send(post("/event", r#"{"userId":"b","value":1}"#).as_bytes());
    let response = client.try_read();
    let refused = server.client().post("/event", r#"{"userId":"c","value":1}"#);
    let health = server.client().get("/health");
    let shown = server.stats();
    freeze("-u");
    assert_eq!(response, None, "closed without a response");
    assert_eq!((refused.status, health.status), (503, 503), "{refused:?}");
    assert_eq!(shown.total, 1, "nothing that is not durable is shown");
    eventually("the store responds again", || server.client().get("/health").status == 200);
    server.client().event("d", 1.0);
    assert_eq!(server.stop().total, 3, "what got a 503 is not counted");
}

#[test]
fn a_challenge_over_a_store_is_exact() {
    let folder = Folder::new("challenge");
    let store = folder.store();
    let output = run(&["challenge", "20000", "50", "--store", &store, "--quiet", "--json", "-"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["verdict"], "exact");
    let held = Totals::parse(&text(&inspect(&store).stdout));
    assert_eq!((held.total, held.users), (20_000, 20_000));
    let again = run(&["challenge", "100", "5", "--store", &store]);
    assert_eq!(again.status.code(), Some(2), "a benchmark does not erase what somebody keeps");
    let said = text(&again.stderr);
    assert!(said.contains("holds events (20000)"), "{said}");
    assert_eq!(Totals::parse(&text(&inspect(&store).stdout)), held);
}

#[test]
fn metrics_say_how_far_the_store_is() {
    let folder = Folder::new("metrics");
    let server = Server::start(&["--store", &folder.store()]);
    let mut client = server.client();
    client.event("u", 1.0);
    let text = client.get("/metrics").body;
    for sample in [
        "ringtally_store_commits_total 1\n",
        "ringtally_store_commit_duration_seconds_count 1\n",
        "ringtally_store_commit_events_sum 1\n",
        "ringtally_store_responses_waiting 0\n",
        "ringtally_store_behind_seconds 0\n",
        "ringtally_store_errors_total 0\n",
        "events_processed_total 1\n",
    ] {
        assert!(text.contains(sample), "{sample}{text}");
    }
    assert!(text.contains("ringtally_store_last_commit_age_seconds 0."), "{text}");
    let without = Server::start(&[]).client().get("/metrics").body;
    assert!(!without.contains("_store_"), "a server without a store omits them");
}

/// The server is killed between batches of requests on one connection: the acknowledged requests are a prefix of the sent ones.
#[test]
fn pipelined_acknowledgements_are_a_durable_prefix() {
    let folder = Folder::new("pipelined");
    let store = folder.store();
    let server = Server::start(&["--store", &store]);
    let acknowledged = Arc::new(Mutex::new(0));
    let mut client = server.client();
    let reader = std::thread::spawn({
        let acknowledged = Arc::clone(&acknowledged);
        move || {
            let event = post("/event", r#"{"userId":"u","value":1}"#);
            let stats = "GET /stats HTTP/1.1\r\nHost: h\r\n\r\n";
            let batch = [event.repeat(7), stats.to_owned()].concat();
            while send(&mut client, batch.as_bytes()) {
                for _ in 0..7 {
                    if client.try_read().is_none() {
                        return;
                    }
                    *acknowledged.lock().unwrap() += 1;
                }
                let Some(response) = client.try_read() else { return };
                let totals = Totals::parse(&response.body);
                assert_eq!(
                    totals.total,
                    *acknowledged.lock().unwrap(),
                    "its own events, no others"
                );
            }
        }
    });
    eventually("some are acknowledged", || *acknowledged.lock().unwrap() > 200);
    drop(server);
    reader.join().unwrap();
    let acknowledged = *acknowledged.lock().unwrap();
    let held = Totals::parse(&text(&inspect(&store).stdout));
    assert!((acknowledged..=acknowledged + 7).contains(&held.total), "{held:?} of {acknowledged}");
}

#[test]
fn batches_are_whole_in_the_store_after_a_crash() {
    let folder = Folder::new("batches");
    let flags = ["--shards", "2", "--store", &folder.store()];
    let server = Server::start(&flags);
    let batch = |events: u64| {
        let line = |event| format!("{{\"userId\":\"user_{}\",\"value\":0.5}}\n", event % 700);
        post("/events", &(0..events).map(line).collect::<String>())
    };
    let (large, small) = (batch(100_000), batch(3));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut client = server.client();
                for _ in 0..2 {
                    client.send(large.as_bytes());
                    client.send(small.as_bytes());
                    assert_eq!(client.read().body, r#"{"accepted":100000}"#);
                    assert_eq!(client.read().body, r#"{"accepted":3}"#);
                    client.event("single", 1.0);
                }
                // This batch is not acknowledged before the end, so the store has all of its events or none.
                client.send(large.as_bytes());
            });
        }
    });
    drop(server);
    let totals = Server::start(&flags).stats();
    assert!((0..3).any(|more| totals.total == 400_016 + 100_000 * more), "{totals:?}");
    assert_eq!(totals.users, 701);
}
