//! PgBouncer between servers and their database, in the mode that they need, and in the mode that gives each transaction any
//! free session.

use super::load::{Load, check};
use super::postgres::{Postgres, as_owner, free_port};
use super::{CONNECTIONS, Scenario, check_log, inspect, servers};
use crate::world::{Server, eventually, ringtally};
use rustix::process::Signal;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// PgBouncer in front of a database. Dropping it kills the process.
struct Pooler {
    port: u16,
    folder: PathBuf,
    process: Option<Child>,
}

impl Pooler {
    /// Starts one in a `pool_mode`.
    fn before(database: &Postgres, mode: &str) -> Pooler {
        let (port, folder) = (free_port(), Postgres::folder());
        let users = folder.join("users");
        Postgres::write(&users, "\"tally\" \"s3cret\"\n");
        let config = format!(
            "[databases]\npostgres = host=127.0.0.1 port={} dbname=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\npool_mode = {mode}\n\
             server_login_retry = 0\n",
            database.port,
            users.display()
        );
        Postgres::write(&folder.join("config"), &config);
        let mut pooler = Pooler { port, folder, process: None };
        pooler.start();
        pooler
    }

    fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.join("log"));
        let mut command = as_owner(Path::new("pgbouncer"));
        command.arg(self.folder.join("config")).stdin(Stdio::null()).stdout(Stdio::null());
        self.process = Some(command.stderr(log.unwrap()).spawn().unwrap());
        eventually("PgBouncer accepts connections", || {
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    fn url(&self) -> String {
        format!("postgres://tally:s3cret@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            eprintln!("PgBouncer logged:\n{log}");
        }
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
#[ignore = "needs PostgreSQL and PgBouncer: run ci/cluster"]
fn servers_behind_a_pooler_in_session_mode_are_exact_even_if_it_is_killed() {
    let database = Postgres::new(&[]);
    let mut pooler = Pooler::before(&database, "session");
    let mut scenario = Scenario::of(database, servers(&pooler.url(), 2));
    for _ in 0..3 {
        scenario.load.wait_for(300);
        pooler.kill();
        pooler.start();
    }
    scenario.load.wait_for(300);
    assert_eq!(scenario.load.refused(), 0, "the pooler was away for less than --store-timeout");
    scenario.end();
    let Scenario { database, servers, .. } = scenario;
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ringtally'";
    eventually("each has a session", || database.sql(sessions) == "2");
    for server in &servers {
        server.client().event("a", 1.0);
        assert_eq!(server.client().post("/reset", "").status, 200);
        for other in &servers {
            assert_eq!(other.stats().total, 0);
        }
    }
    for server in servers {
        assert_eq!(server.stop().total, 0);
    }
    check_log(&database);
}

/// Starts a server that may fail to start. Returns its log if it fails.
fn refusal(url: &str) -> Option<String> {
    let mut command = ringtally();
    command.args(["serve", "--port", "0", "--store-timeout", "5s", "--store", url]);
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let (mut output, mut said) = (BufReader::new(child.stderr.take().unwrap()), String::new());
    while !said.contains("listening on") && output.read_line(&mut said).unwrap() > 0 {}
    let is_ready = said.contains("listening on");
    if is_ready {
        child.kill().unwrap();
    }
    let code = child.wait().unwrap().code();
    output.read_to_string(&mut said).unwrap();
    assert!(is_ready || code == Some(3), "{code:?}: {said}");
    (!is_ready).then_some(said)
}

#[test]
#[ignore = "needs PostgreSQL and PgBouncer: run ci/cluster"]
fn a_pooler_in_transaction_mode_loses_nothing_and_is_what_a_server_names() {
    let database = Postgres::new(&[]);
    let pooler = Pooler::before(&database, "transaction");
    let server = Server::start(&["--store", &pooler.url(), "--store-timeout", "20s"]);
    let mut load = Load::start(std::slice::from_ref(&server), CONNECTIONS);
    load.wait_for(300);
    // Another server may work, because PgBouncer 1.21 and newer can distinguish their prepared statements. If it does not, it
    // reports why.
    let refusals: Vec<String> = (0..3).filter_map(|_| refusal(&pooler.url())).collect();
    for said in &refusals {
        assert!(said.contains("session mode") && !said.contains("restore it"), "{said}");
    }
    // Any other client's transaction takes the session that the server had.
    for _ in 0..5 {
        let sql = "BEGIN; SELECT pg_sleep(0.2); COMMIT";
        let others: Vec<Child> =
            (0..2).map(|_| database.start_sql_through(pooler.port, sql)).collect();
        for mut other in others {
            assert!(other.wait().unwrap().success());
        }
        load.wait_for(50);
    }
    let (acknowledged, begun) = load.stop();
    let held = inspect(&database.url(""));
    check(&held);
    let possible = acknowledged..=begun;
    assert!(possible.contains(&held.total), "{held:?} of {possible:?}");
    assert_eq!(server.stats(), held);
    server.signal(Signal::TERM);
    let (code, printed, log) = server.wait_with_log();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(super::Totals::parse(&printed), held);
    let is_named = log.contains("session mode") || !refusals.is_empty();
    eprintln!("{} servers were refused; the first logged:\n{log}", refusals.len());
    assert!(is_named || !log.contains("trying again"), "{log}");
    check_log(&database);
}
