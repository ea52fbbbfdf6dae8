//! Several servers on one PostgreSQL while something fails under load: a server, the database, or a connection. Afterwards the
//! totals on every server have everything that was acknowledged and nothing that was not sent.
//!
//! `ci/cluster` runs these tests, which need PostgreSQL, and some of them HAProxy or PgBouncer. `RINGTALLY_PAUSE=n` sets the
//! seconds that something is paused, 30 by default.

mod durability;
mod figures;
mod haproxy;
mod load;
mod pgbouncer;
mod postgres;
mod proxy;
mod starts;

use crate::world::{Server, Totals, eventually, post, run, text};
use load::{Load, check};
use postgres::Postgres;
use proxy::Proxy;
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// Connections to each server, not counting the one that requests totals.
const CONNECTIONS: usize = 8;

/// Starts servers on the database at this URL. They wait for it longer than it is unavailable.
fn servers(url: &str, count: usize) -> Vec<Server> {
    let flags = ["--store", url, "--shards", "1", "--store-timeout", "20s"];
    (0..count).map(|_| Server::start(&flags)).collect()
}

/// Returns the content of a store, read without a server.
fn inspect(url: &str) -> Totals {
    let output = run(&["store", "inspect", url]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    Totals::parse(&text(&output.stdout))
}

/// Servers on one database, under load.
struct Scenario {
    database: Postgres,
    servers: Vec<Server>,
    load: Load,
}

impl Scenario {
    /// Starts this number of servers on a new database, and their load.
    fn start(count: usize) -> Scenario {
        let database = Postgres::new(&[]);
        let servers = servers(&database.url(""), count);
        Scenario::of(database, servers)
    }

    /// Starts the load on these servers.
    fn of(database: Postgres, servers: Vec<Server>) -> Scenario {
        let load = Load::start(&servers, CONNECTIONS);
        Scenario { database, servers, load }
    }

    /// Ends the load, and checks the totals against it. Returns the smallest and the largest total that the load allows.
    fn end(&mut self) -> (u64, u64) {
        let totals = self.load.stop();
        self.agree(totals);
        totals
    }

    /// Checks that every server and the store have the same totals, within these bounds, and checks the database's log.
    fn agree(&self, (at_least, at_most): (u64, u64)) {
        let held = inspect(&self.database.url(""));
        check(&held);
        assert!((at_least..=at_most).contains(&held.total), "{held:?} of {at_least} to {at_most}");
        for server in &self.servers {
            assert_eq!(server.stats(), held, "every server reports the same");
        }
        check_log(&self.database);
    }
}

fn check_log(database: &Postgres) {
    let log = database.log();
    for bad in ["deadlock detected", "PANIC", "syntax error"] {
        assert!(!log.contains(bad), "{bad}: {log}");
    }
}

fn pause() -> Duration {
    let seconds = std::env::var("RINGTALLY_PAUSE").map_or(30, |text| text.parse().unwrap());
    Duration::from_secs(seconds)
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn a_server_that_is_killed_takes_nothing_with_it() {
    let mut scenario = Scenario::start(3);
    for _ in 0..3 {
        scenario.load.wait_for(300);
        // Dropping a server kills it.
        drop(scenario.servers.remove(0));
        let server = Server::start(&["--store", &scenario.database.url("")]);
        // The others move up one place, and the new server takes the last one.
        scenario.servers.push(server);
        for (place, server) in scenario.servers.iter().enumerate() {
            scenario.load.replace(place, server);
        }
    }
    scenario.load.wait_for(300);
    scenario.end();
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn a_server_that_is_told_to_end_prints_the_totals_of_the_group_and_the_others_go_on() {
    let mut scenario = Scenario::start(3);
    scenario.load.wait_for(500);
    let before = scenario.load.acknowledged();
    let printed = scenario.servers.remove(0).stop();
    check(&printed);
    assert!(printed.total >= before, "{printed:?} of {before}");
    scenario.load.replace(0, &scenario.servers[0]);
    scenario.load.wait_for(500);
    scenario.end();
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn a_server_that_is_paused_goes_on_where_it_was() {
    let mut scenario = Scenario::start(3);
    scenario.load.wait_for(500);
    scenario.servers[0].signal(Signal::STOP);
    std::thread::sleep(pause());
    scenario.load.wait_for(500);
    scenario.servers[0].signal(Signal::CONT);
    scenario.load.wait_for(500);
    scenario.end();
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn a_database_that_crashes_and_restarts_is_waited_for() {
    let mut scenario = Scenario::start(3);
    for away_ms in [0, 300, 1000] {
        scenario.load.wait_for(500);
        scenario.database.stop_immediately();
        std::thread::sleep(Duration::from_millis(away_ms));
        scenario.database.start();
    }
    scenario.load.wait_for(500);
    let refused = scenario.load.refused();
    assert_eq!(refused, 0, "the database was away for less than --store-timeout");
    scenario.end();
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn sessions_that_are_terminated_are_begun_anew() {
    let mut scenario = Scenario::start(3);
    for _ in 0..20 {
        scenario.load.wait_for(50);
        scenario.database.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ringtally'",
        );
    }
    scenario.load.wait_for(500);
    let (acknowledged, possible) = scenario.end();
    assert_eq!(acknowledged, possible, "every event was acknowledged in the end");
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn a_database_that_is_paused_takes_the_servers_out_until_it_goes_on() {
    let database = Postgres::new(&[]);
    let url = database.url("");
    let servers = (0..3).map(|_| Server::start(&["--store", &url, "--store-timeout", "1s"]));
    let mut scenario = Scenario::of(database, servers.collect());
    scenario.load.wait_for(500);
    scenario.database.signal_all(Signal::STOP);
    for server in &scenario.servers {
        eventually("it reports that it is late", || server.client().get("/health").status == 503);
        let refused = server.client().post("/event", r#"{"userId":"u","value":1}"#);
        assert_eq!(refused.status, 503, "{refused:?}");
    }
    std::thread::sleep(pause() / 3);
    scenario.database.signal_all(Signal::CONT);
    for server in &scenario.servers {
        eventually("it is back", || server.client().get("/health").status == 200);
    }
    scenario.load.wait_for(500);
    assert!(scenario.load.refused() > 0);
    scenario.end();
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn an_idle_server_is_late_while_the_database_is_away_and_comes_back() {
    let mut database = Postgres::new(&[]);
    let url = database.url("");
    let server = Server::start(&["--store", &url, "--store-timeout", "500ms"]);
    server.client().event("u", 1.0);
    assert_eq!(server.client().get("/health").status, 200);
    database.stop_immediately();
    // No client sends anything.
    eventually("it reports that it is late", || server.client().get("/health").status == 503);
    database.start();
    eventually("it is back", || server.client().get("/health").status == 200);
    server.client().event("v", 1.0);
    assert_eq!(server.stats().total, 2);
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn a_commit_whose_outcome_is_unknown_is_counted_once() {
    let database = Postgres::new(&[]);
    let url = database.url("");
    let proxy = Proxy::to(database.port);
    let behind = url.replace(&database.port.to_string(), &proxy.port.to_string());
    let servers = [servers(&behind, 2), servers(&url, 1)].into_iter().flatten().collect();
    let mut scenario = Scenario::of(database, servers);
    for _ in 0..60 {
        // Each server has a connection again, and uses it.
        for server in &scenario.servers {
            server.stats();
        }
        scenario.load.wait_for(20);
        proxy.cut();
    }
    scenario.load.wait_for(500);
    let (acknowledged, possible) = scenario.end();
    assert_eq!(acknowledged, possible, "every event was acknowledged in the end");
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn a_failover_to_a_synchronous_standby_loses_nothing() {
    let mut primary = Postgres::new(&[]);
    let standby = primary.standby();
    let both = format!(
        "postgres://tally:s3cret@127.0.0.1:{},127.0.0.1:{}/postgres?target_session_attrs=read-write",
        primary.port, standby.port
    );
    let mut scenario = Scenario::of(standby, servers(&both, 3));
    scenario.load.wait_for(1000);
    primary.kill();
    scenario.database.promote();
    scenario.load.wait_for(1000);
    let (acknowledged, possible) = scenario.end();
    assert_eq!(acknowledged, possible, "the servers followed in time");
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn a_commit_that_no_standby_has_is_not_acknowledged() {
    let primary = Postgres::new(&[]);
    let mut standby = primary.standby();
    let url = primary.url("");
    let server = Server::start(&["--store", &url, "--store-timeout", "2s"]);
    server.client().event("a", 1.0);
    standby.kill();
    let mut client = server.client();
    client.send(post("/event", r#"{"userId":"b","value":1}"#).as_bytes());
    std::thread::sleep(Duration::from_millis(500));
    // This cancels its wait, and PostgreSQL warns that only this machine has the commit.
    primary.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
    assert_eq!(client.try_read(), None, "closed without a response");
    standby.start();
    eventually("it is back", || server.client().get("/health").status == 200);
    assert_eq!(server.stats().total, 2, "it was counted, and both databases have it");
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn a_reset_under_load_is_one_moment_on_every_server() {
    let mut scenario = Scenario::start(3);
    let Scenario { load, servers, .. } = &mut scenario;
    for number in 0..10 {
        load.wait_for(300);
        let before = load.reset(&servers[number % 3]);
        let at_least = load.since_reset();
        let seen = servers[(number + 1) % 3].stats();
        check(&seen);
        let at_most = load.begun() - before;
        assert!((at_least..=at_most).contains(&seen.total), "{seen:?} of {at_least} to {at_most}");
    }
    load.wait_for(300);
    let before = load.reset(&servers[0]);
    load.wait_for(300);
    load.stop();
    let bounds = (load.since_reset(), load.begun() - before);
    scenario.agree(bounds);
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn a_reset_does_not_wait_long_for_a_server_that_is_paused_which_then_joins() {
    let database = Postgres::new(&[]);
    let url = database.url("");
    let servers = servers(&url, 2);
    servers[0].client().event("a", 1.0);
    servers[1].client().event("b", 1.0);
    servers[1].signal(Signal::STOP);
    let mut waiting = std::net::TcpStream::connect(servers[1].address).unwrap();
    std::io::Write::write_all(
        &mut waiting,
        post("/event", r#"{"userId":"c","value":1}"#).as_bytes(),
    )
    .unwrap();
    let started = Instant::now();
    assert_eq!(servers[0].client().post("/reset", "").status, 200);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(servers[0].stats().total, 0);
    servers[1].signal(Signal::CONT);
    eventually("the server has learned of the reset", || servers[1].stats().total <= 1);
    servers[1].client().event("b", 1.0);
    let totals = servers[0].stats();
    assert!((1..=2).contains(&totals.total), "{totals:?}");
    check(&totals);
    assert_eq!(servers[1].stats(), totals);
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn the_same_new_users_on_every_server_at_once_are_counted_once() {
    let database = Postgres::new(&[]);
    let url = database.url("");
    let servers = servers(&url, 3);
    let users = 3000;
    let clients: Vec<_> = servers
        .iter()
        .flat_map(|server| std::iter::repeat_n(server, 4))
        .enumerate()
        .map(|(seed, server)| {
            let mut client = server.client();
            std::thread::spawn(move || {
                let mut order: Vec<u32> = (0..users).collect();
                fastrand::Rng::with_seed(seed as u64).shuffle(&mut order);
                // Many are in flight, so that a commit has many of the same users.
                for part in order.chunks(100) {
                    let event = |user: &u32| {
                        post("/event", &format!(r#"{{"userId":"user_{user}","value":1}}"#))
                    };
                    client.send(part.iter().map(event).collect::<String>().as_bytes());
                    for _ in part {
                        assert_eq!(client.read().status, 200);
                    }
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    let held = inspect(&url);
    assert_eq!((held.total, held.users), (12 * u64::from(users), u64::from(users)));
    for server in &servers {
        assert_eq!(server.stats(), held);
    }
    check_log(&database);
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn a_restart_of_all_servers_restores_what_they_counted() {
    let database = Postgres::new(&[]);
    let url = database.url("");
    for round in 1..=3 {
        let servers = servers(&url, 2);
        for server in &servers {
            server.client().event("same", 0.1);
            server.client().event(&format!("user_{round}"), 0.1);
        }
        let held = inspect(&url);
        assert_eq!((held.total, held.users), (4 * round, 1 + round));
        for server in servers {
            assert_eq!(server.stop(), held);
        }
    }
    let server = Server::start_command({
        let mut command = crate::world::ringtally();
        command.args(["serve", "--port", "0", "--store", &url]);
        command
    });
    assert_eq!(server.stats().total, 12);
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn what_counts_for_nothing_anymore_is_removed_and_the_totals_stay() {
    let database = Postgres::new(&[]);
    let url = database.url("");
    let keeper = Server::start(&["--store", &url]);
    for (user, is_old) in [("a", true), ("b", true), ("a", false), ("c", false)] {
        let other = Server::start(&["--store", &url]);
        other.client().event(user, 0.1);
        if user == "b" && is_old {
            assert_eq!(other.client().post("/reset", "").status, 200);
        }
        other.stop();
    }
    keeper.client().event("c", 0.1);
    let before = keeper.stats();
    assert_eq!((before.total, before.users), (3, 2));
    let left = "SELECT (SELECT count(*) FROM ringtally.users) || ' ' || (SELECT count(*) FROM ringtally.servers)";
    let deadline = Instant::now() + Duration::from_secs(90);
    // Two users, the row of the remaining server, and one row for all others.
    while database.sql(left) != "2 2" {
        assert!(Instant::now() < deadline, "{}", database.sql(left));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(keeper.stats(), before);
    assert_eq!(inspect(&url), before);
    keeper.client().event("d", 0.1);
    assert_eq!(inspect(&url).users, 3);
}
