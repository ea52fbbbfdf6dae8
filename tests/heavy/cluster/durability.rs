//! Databases that would lose acknowledged events, or show events that may still be lost: an old primary, a lagging
//! standby, and settings that are lowered while servers run.

use super::postgres::Postgres;
use super::proxy::Injector;
use super::{inspect, servers};
use crate::world::{Server, Totals, eventually, post, ringtally, run, text};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// Returns the URL of a database on two hosts, in this order.
fn both(first: &Postgres, second: &Postgres) -> String {
    let (first, second) = (first.port, second.port);
    format!("postgres://tally:s3cret@127.0.0.1:{first},127.0.0.1:{second}/postgres")
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn a_server_that_is_superseded_again_and_again_resets_nobody() {
    let database = Postgres::new(&[]);
    let servers = servers(&database.url(""), 5);
    // A server relies on the time of its row even after the row is gone, so a write that changes the sequence of a row must
    // also update the time. The trigger records writes that do not.
    for sql in [
        "CREATE TABLE unseen (id bytea)",
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
            $$BEGIN INSERT INTO public.unseen VALUES (new.id); RETURN new; END$$",
        "CREATE TRIGGER note BEFORE UPDATE ON ringtally.servers FOR EACH ROW
            WHEN (new.sequence <> old.sequence AND new.seen = old.seen) EXECUTE FUNCTION note()",
    ] {
        database.sql(sql);
    }
    let (other, paused) = servers.split_first().unwrap();
    let mut resets = 0;
    for _ in 0..5 {
        for server in paused {
            server.client().event("a", 1.0);
            server.signal(Signal::STOP);
        }
        // After this time no reset waits for them.
        std::thread::sleep(Duration::from_millis(3200));
        let (mut client, started) = (other.client(), Instant::now());
        let mut are_paused = true;
        while started.elapsed() < Duration::from_millis(500) {
            for _ in 0..4 {
                assert_eq!(client.post("/reset", "").status, 200);
                resets += 1;
            }
            client.event("b", 1.0);
            assert_eq!(client.stats().total, 1, "nobody else has reset the totals");
            if are_paused && started.elapsed() > Duration::from_millis(50) {
                paused.iter().for_each(|server| server.signal(Signal::CONT));
                are_paused = false;
            }
        }
    }
    let generation: u64 = database.sql("SELECT generation FROM ringtally.tally").parse().unwrap();
    assert_eq!(generation, resets, "only the requested resets took place");
    assert_eq!(database.sql("SELECT count(*) FROM unseen"), "0");
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn a_server_on_a_primary_that_was_replaced_answers_with_what_its_successor_has() {
    let primary = Postgres::new(&[]);
    let standby = primary.standby();
    let servers = servers(&both(&primary, &standby), 1);
    servers[0].client().event("a", 1.0);
    standby.promote();
    // Another server, on the new primary, acknowledges five events that add no new users.
    standby.sql(
        "INSERT INTO ringtally.servers SELECT '\\x01', 'other', generation, 1, 5, 0, '\\x0000' FROM ringtally.tally",
    );
    assert_eq!(servers[0].stats().total, 6);
    // The new primary takes the commits that the old one could not confirm.
    servers[0].client().event("b", 1.0);
    assert_eq!(servers[0].stats().total, 7);
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ringtally'";
    assert_eq!(standby.sql(sql), "1", "the server has a session there");
    // Another server that finds the old primary first does not stay with it either.
    let late = super::servers(&both(&primary, &standby), 1);
    assert_eq!(late[0].stats().total, 7);
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn totals_have_no_event_that_the_standby_does_not_have() {
    let primary = Postgres::new(&[]);
    let standby = primary.standby();
    let servers = servers(&primary.url(""), 2);
    let receiver = standby.receiver();
    servers[0].client().event("a", 1.0);
    servers[1].client().event("b", 1.0);
    receiver(Signal::STOP);
    let mut waiting = servers[0].client();
    waiting.send(post("/event", r#"{"userId":"c","value":1}"#).as_bytes());
    let is_waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    eventually("a commit waits", || primary.sql(is_waiting) != "0");
    // From here on the commit is visible, although only the primary has it.
    primary.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
    let mut reader = servers[1].client();
    reader.send(b"GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n");
    reader.stream.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    assert_eq!(reader.try_read(), None, "the totals are shown before the standby has them");
    reader.stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    receiver(Signal::CONT);
    assert_eq!(waiting.read().status, 200);
    assert_eq!(Totals::parse(&reader.read().body).total, 3);
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn a_configuration_that_is_read_again_does_not_lower_durability() {
    let mut database = Postgres::new(&[]);
    let url = database.url("");
    let server = Server::start(&["--store", &url]);
    let mut client = server.client();
    client.event("a", 1.0);
    for settings in ["synchronous_commit = off", "client_min_messages = error"] {
        database.sql(&format!("ALTER SYSTEM SET {settings}"));
    }
    database.sql("SELECT pg_reload_conf()");
    eventually("the setting is off", || database.sql("SHOW synchronous_commit") == "off");
    for _ in 0..300 {
        client.event("a", 1.0);
    }
    database.kill();
    drop(server);
    database.start();
    assert_eq!(inspect(&url).total, 301);
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn a_session_whose_durability_somebody_else_lowers_acknowledges_nothing() {
    let database = Postgres::new(&[]);
    let injector = Injector::to(database.port);
    let url = database.url("").replace(&database.port.to_string(), &injector.port.to_string());
    let server = Server::start(&["--store", &url, "--store-timeout", "20s"]);
    server.client().event("a", 1.0);
    let of_server = "SELECT pid FROM pg_stat_activity WHERE application_name = 'ringtally'";
    for (round, setting) in
        ["synchronous_commit = off", "client_min_messages = error"].iter().enumerate()
    {
        let session = database.sql(of_server);
        injector.inject(&format!("SET {setting}"));
        // A pooler that runs another client's statement on this session does the same. The server notices, and uses a
        // separate session.
        server.client().event("a", 1.0);
        assert_ne!(database.sql(of_server), session, "{setting}");
        assert_eq!(server.stats().total, 2 + round as u64);
    }
    server.signal(Signal::TERM);
    let (code, _, log) = server.wait_with_log();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("session mode"), "{log}");
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn an_older_database_is_found_out_by_whatever_it_lacks() {
    let mut primary = Postgres::new(&[]);
    let standby = primary.follower();
    let url = both(&primary, &standby);
    // The standby has the row of the first server, but lacks one of its heartbeats and the row of the second server.
    let first = servers(&url, 1).remove(0);
    first.client().event("a", 1.0);
    primary.wait_for_standby();
    primary.refuse_standbys();
    let second = servers(&url, 1).remove(0);
    let mut client = second.client();
    for _ in 0..5 {
        client.event("b", 1.0);
    }
    assert_eq!(first.stats().total, 6);
    primary.kill();
    standby.promote();
    for server in [first, second] {
        let (code, _, log) = server.wait_with_log();
        assert_eq!(code, Some(3), "{log}");
        assert!(log.contains("holds an older state than it had confirmed"), "{log}");
    }
    assert_eq!(servers(&url, 1)[0].stats().total, 1, "a restart continues from that state");
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn another_process_with_the_same_row_ends_the_server() {
    let database = Postgres::new(&[]);
    let server = Server::start(&["--store", &database.url("")]);
    server.client().event("a", 1.0);
    // Writes as a copy of the virtual machine would.
    database.sql("UPDATE ringtally.servers SET sequence = sequence + 1, events = 5");
    let (code, _, log) = server.wait_with_log();
    assert_eq!(code, Some(3), "{log}");
    assert!(log.contains("another process writes to the row of this server"), "{log}");
    assert_eq!(database.sql("SELECT sum(events) FROM ringtally.servers"), "5", "the row stays");
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn warnings_of_other_things_are_logged_and_do_not_stop_acknowledgements() {
    let database = Postgres::new(&[]);
    let url = database.url("");
    let server = Server::start(&["--store", &url]);
    database.sql(
        "CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE WARNING 'database \"postgres\" must be vacuumed within % transactions', txid_current();
            RETURN NEW; END $$;
         CREATE TRIGGER warn BEFORE UPDATE ON ringtally.servers FOR EACH ROW EXECUTE FUNCTION warn()",
    );
    for _ in 0..20 {
        server.client().event("a", 1.0);
    }
    assert_eq!(server.stats().total, 20);
    server.signal(Signal::TERM);
    let (code, _, log) = server.wait_with_log();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(log.matches("must be vacuumed").count(), 1, "once per minute: {log}");
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn a_server_finds_the_primary_behind_a_host_that_never_answers() {
    let database = Postgres::new(&[]);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (silent_port, port) = (silent.local_addr().unwrap().port(), database.port);
    // The first host does not have a socket. A third of the timeout is less than the time that a host may take.
    let url = format!(
        "postgres://tally:s3cret@%2Fnone,127.0.0.1:{silent_port},127.0.0.1:{port}/postgres"
    );
    let server = Server::start(&["--store-timeout", "5s", "--store", &url]);
    server.client().event("a", 1.0);
    assert_eq!(server.stats().total, 1);
    server.stop();
}

/// Starts a server. Returns its exit code, its log, and the time until its exit, measured from the signal that stops it, or
/// from its start if there is none.
fn start(
    url: &str,
    timeout: &str,
    stop_after: Option<Duration>,
) -> (Option<i32>, String, Duration) {
    let mut command = ringtally();
    command.args(["serve", "--port", "0", "--store-timeout", timeout, "--store", url]);
    command.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    let mut since = Instant::now();
    if let Some(after) = stop_after {
        std::thread::sleep(after);
        let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
        since = Instant::now();
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), text(&output.stderr), since.elapsed())
}

/// Returns the time that an idle server takes to end.
fn idle_stop() -> Duration {
    let server = Server::start(&[]);
    let since = Instant::now();
    server.stop();
    since.elapsed()
}

/// Checks that a signal ends a start immediately: three of five starts end within the time that an idle server takes on this
/// machine, which may be busy, plus 100 ms.
fn check_signal_ends_start(url: &str) {
    let bound = (0..3).map(|_| idle_stop()).max().unwrap() + Duration::from_millis(100);
    let mut stops: Vec<Duration> = (0..5)
        .map(|number| {
            let after = Duration::from_millis(300 + 37 * number);
            let (code, log, took) = start(url, "60s", Some(after));
            assert_eq!(code, Some(0), "{log}");
            assert!(log.contains("stopped before the store was read"), "{log}");
            took
        })
        .collect();
    stops.sort();
    eprintln!("a start ends {stops:?} after a signal, of {bound:?}");
    assert!(stops[2] <= bound, "{stops:?} after a signal, of {bound:?}");
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn every_wait_of_a_start_is_bounded_and_ends_with_a_signal() {
    let mut database = Postgres::new(&[]);
    let url = database.url("");
    Server::start(&["--store", &url]).stop();
    database.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    database.sql("SELECT pg_reload_conf()");
    eventually("the database waits for the standby `nobody`", || {
        database.sql("SHOW synchronous_standby_names") == "nobody"
    });
    let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    for is_canceled in [false, true] {
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while is_canceled && !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    database.sql(cancel);
                }
            });
            let (code, log, took) = start(&url, "2s", None);
            assert_eq!(code, Some(3), "{log}");
            assert!(log.contains("could not be used within 2s"), "{log}");
            assert!(took < Duration::from_secs(10), "{took:?}: {log}");
            check_signal_ends_start(&url);
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
    database.kill();
    check_signal_ends_start(&url);
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn of_several_hosts_the_primary_is_inspected_and_else_a_standby_by_name() {
    let mut primary = Postgres::new(&[]);
    let standby = primary.follower();
    let url = both(&standby, &primary);
    let server = servers(&url, 1).remove(0);
    server.client().event("a", 1.0);
    primary.wait_for_standby();
    primary.refuse_standbys();
    server.client().event("b", 1.0);
    let inspect = || {
        let output = run(&["store", "inspect", &url]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
        (Totals::parse(&text(&output.stdout)), said)
    };
    assert_eq!(inspect(), (server.stats(), String::new()));
    let doctor = || text(&run(&["doctor", "--store", &url]).stdout);
    let (of_primary, of_standby) =
        (format!("on 127.0.0.1:{}", primary.port), format!("on 127.0.0.1:{}", standby.port));
    assert!(doctor().contains(&of_primary));
    drop(server);
    primary.kill();
    let (held, said) = inspect();
    assert_eq!(held.total, 1);
    assert!(said.contains("was read on a standby") && said.contains(&of_standby), "{said}");
    assert!(said.contains("Connection refused"), "it reports why it was not the primary: {said}");
    let said = doctor();
    assert!(said.contains(&of_standby) && said.contains("no host can be written"), "{said}");
}
