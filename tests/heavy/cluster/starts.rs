//! Databases that reject a server's login or its writes, and the errors that result.

use super::inspect;
use super::postgres::{Postgres, free_port};
use crate::world::{Server, eventually, output_within, ringtally, run, text};
use rustix::process::Signal;
use std::process::Command;
use std::time::{Duration, Instant};

/// Starts a server that must fail. Returns its error.
fn refused(url: &str, variables: &[(&str, &str)]) -> String {
    let mut command = ringtally();
    command.args(["serve", "--port", "0", "--store-timeout", "1s", "--store", url]);
    command.env_remove("PGPASSWORD").envs(variables.iter().copied());
    let output = output_within(&mut command, Duration::from_secs(30));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(!said.contains("s3cret"), "{said}");
    said
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn a_database_that_lets_a_server_not_in_is_named_with_what_to_do() {
    let database = Postgres::new(&[]);
    let port = database.port;
    let said = refused(&database.url("").replace("s3cret", "wrong"), &[]);
    assert!(said.contains("password authentication failed") && said.contains("28P01"), "{said}");
    let without = format!("postgres://tally@127.0.0.1:{port}/postgres");
    let said = refused(&without, &[("HOME", "/nonexistent")]);
    assert!(said.contains("set PGPASSWORD"), "{said}");
    let said = refused(&format!("postgres://tally:s3cret@127.0.0.1:{port}/nothing"), &[]);
    assert!(said.contains("does not exist") && said.contains("create the database"), "{said}");
    let started = Instant::now();
    let said = refused(&format!("postgres://tally:s3cret@127.0.0.1:{}/x", free_port()), &[]);
    assert!(said.contains("within 1s") && said.contains("refused"), "{said}");
    assert!(started.elapsed() >= Duration::from_millis(800), "the server waited for it");
    database.sql("CREATE ROLE weak LOGIN PASSWORD 's3cret'");
    database.sql("REVOKE CREATE ON DATABASE postgres FROM PUBLIC");
    let weak = format!("postgres://weak:s3cret@127.0.0.1:{port}/postgres");
    let said = refused(&weak, &[]);
    assert!(said.contains("permission denied") && said.contains("grant the role"), "{said}");
    database.sql("ALTER ROLE weak SET default_transaction_read_only = on");
    let said = refused(&weak, &[]);
    assert!(
        said.contains("default_transaction_read_only") && said.contains("no standby"),
        "{said}"
    );
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn the_rights_that_the_help_lists_are_enough() {
    let database = Postgres::new(&[]);
    let port = database.port;
    for role in ["owner", "writer"] {
        database.sql(&format!("CREATE ROLE {role} LOGIN PASSWORD 's3cret'"));
    }
    database.sql("REVOKE CREATE ON DATABASE postgres FROM PUBLIC");
    database.sql("CREATE SCHEMA ringtally AUTHORIZATION owner");
    let url = |role: &str| format!("postgres://{role}:s3cret@127.0.0.1:{port}/postgres");
    let owner = Server::start(&["--store", &url("owner")]);
    owner.client().event("a", 1.0);
    for grant in [
        "USAGE ON SCHEMA ringtally",
        "SELECT ON ringtally.format",
        "SELECT, UPDATE ON ringtally.tally",
        "SELECT, INSERT, UPDATE, DELETE ON ringtally.servers, ringtally.users",
    ] {
        database.sql(&format!("GRANT {grant} TO writer"));
    }
    let writer = Server::start(&["--store", &url("writer")]);
    writer.client().event("b", 1.0);
    assert_eq!(owner.stats().total, 2);
    assert_eq!(writer.client().post("/reset", "").status, 200);
    writer.client().event("c", 1.0);
    assert_eq!(owner.stats().total, 1);
    let rights = || text(&run(&["doctor", "--store", &url("writer")]).stdout);
    assert!(rights().contains("the role may use the schema ringtally"), "{}", rights());
    // Revoking one right ends the server, because a retry cannot help, and the doctor reports the missing right.
    database.sql("REVOKE UPDATE ON ringtally.servers FROM writer");
    assert!(rights().contains("the role may not write the tables"), "{}", rights());
    let (code, _, log) = writer.wait_with_log();
    assert_eq!(code, Some(3), "{log}");
    assert!(log.contains("permission denied"), "{log}");
    assert_eq!(owner.stop().total, 1);
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn a_schema_of_a_newer_format_is_refused_and_left_as_it_is() {
    let database = Postgres::new(&[]);
    let url = database.url("");
    let server = Server::start(&["--store", &url]);
    server.client().event("a", 1.0);
    server.stop();
    database.sql("UPDATE ringtally.format SET version = 2");
    let said = refused(&url, &[]);
    assert!(said.contains("has format 2") && said.contains("a newer one"), "{said}");
    let output = run(&["store", "inspect", &url]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert_eq!(database.sql("SELECT count(*) FROM ringtally.servers"), "1");
    database.sql("UPDATE ringtally.format SET version = 1");
    assert_eq!(inspect(&url).total, 1);
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn the_password_is_shown_nowhere() {
    let database = Postgres::new(&[]);
    let url = database.url("");
    let server = Server::start(&["--store", &url]);
    let title = std::fs::read_to_string(format!("/proc/{}/cmdline", server.pid())).unwrap();
    assert!(title.contains("postgres://tally@") && !title.contains("s3cret"), "{title}");
    server.client().event("a", 1.0);
    for path in ["/metrics", "/stats", "/health", "/"] {
        let response = server.client().get(path);
        assert!(!response.body.contains("s3cret"), "{response:?}");
    }
    database.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ringtally'");
    server.client().event("b", 1.0);
    server.signal(Signal::TERM);
    let (code, _, log) = server.wait_with_log();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("s3cret"), "{log}");
    assert!(!database.log().contains("s3cret"));
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn a_password_file_is_used_if_nobody_else_can_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let database = Postgres::new(&[]);
    let file = std::env::temp_dir().join(format!("ringtally-pgpass-{}", std::process::id()));
    std::fs::write(&file, format!("127.0.0.1:{}:postgres:tally:s3cret\n", database.port)).unwrap();
    let url = format!("postgres://tally@127.0.0.1:{}/postgres", database.port);
    let variables = [("PGPASSFILE", file.to_str().unwrap())];
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let said = refused(&url, &variables);
    assert!(said.contains("chmod 600"), "{said}");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = ringtally();
    command
        .args(["serve", "--port", "0", "--store", &url])
        .env_remove("PGPASSWORD")
        .envs(variables);
    let server = Server::start_command(command);
    server.client().event("a", 1.0);
    assert_eq!(server.stop().total, 1);
    std::fs::remove_file(file).unwrap();
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn tls_is_checked_as_far_as_sslmode_says() {
    let mut database = Postgres::new(&[]);
    let root = database.certify();
    let root = root.to_str().unwrap();
    let other = {
        let mut other = Postgres::new(&[]);
        let path = std::env::temp_dir().join(format!("ringtally-root-{}", std::process::id()));
        std::fs::copy(other.certify(), &path).unwrap();
        path
    };
    let port = database.port;
    let url = |host: &str, parameters: &str| {
        format!("postgres://tally:s3cret@{host}:{port}/postgres?{parameters}")
    };
    for (host, parameters) in [
        ("localhost", format!("sslmode=verify-full&sslrootcert={root}")),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={root}")),
        ("127.0.0.1", "sslmode=require".into()),
        ("127.0.0.1", "sslmode=require&channel_binding=require".into()),
        ("127.0.0.1", "sslmode=prefer".into()),
    ] {
        let server = Server::start(&["--store", &url(host, &parameters)]);
        server.client().event("a", 1.0);
        let sql = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
            WHERE application_name = 'ringtally'";
        assert_eq!(database.sql(sql), "t", "{parameters}");
        server.stop();
    }
    let said = refused(&url("127.0.0.1", "sslmode=disable&channel_binding=require"), &[]);
    assert!(said.contains("channel binding"), "{said}");
    let wrong = other.to_str().unwrap();
    for (host, parameters) in [
        // The certificate has the name but not the address.
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={root}")),
        ("localhost", format!("sslmode=verify-full&sslrootcert={wrong}")),
        ("localhost", format!("sslmode=verify-ca&sslrootcert={wrong}")),
        ("localhost", format!("sslmode=require&sslrootcert={wrong}")),
        ("localhost", "sslmode=verify-full&sslrootcert=/nowhere".into()),
    ] {
        let said = refused(&url(host, &parameters), &[]);
        assert!(said.contains("ertificate") || said.contains("sslrootcert"), "{said}");
    }
    database.sql("ALTER SYSTEM SET ssl = off");
    database.sql("SELECT pg_reload_conf()");
    eventually("TLS is off", || database.sql("SHOW ssl") == "off");
    let said = refused(&url("localhost", "sslmode=require"), &[]);
    assert!(said.contains("TLS"), "{said}");
    std::fs::remove_file(other).unwrap();
}

#[test]
#[ignore = "needs PostgreSQL, and a small file system: run ci/cluster"]
fn a_database_whose_disk_is_full_is_waited_for() {
    let folder = std::env::var("RINGTALLY_SMALL_DISK").unwrap();
    let database = Postgres::new(&[]);
    let small = std::path::Path::new(&folder).join("tables");
    std::fs::create_dir(&small).unwrap();
    Postgres::give(&small, 0o700);
    database.sql(&format!("CREATE TABLESPACE small LOCATION '{}'", small.display()));
    database.sql("CREATE DATABASE tally TABLESPACE small");
    let url = database.url("").replace("/postgres?", "/tally?");
    let server = Server::start(&["--store", &url, "--store-timeout", "1s"]);
    let ballast = std::path::Path::new(&folder).join("ballast");
    // Fills the rest of the file system, except for a little.
    let filled = Command::new("sh")
        .args(["-c", r#"head -c 1G /dev/zero > "$0"; truncate -s -300K "$0""#])
        .arg(&ballast)
        .status();
    filled.unwrap();
    let mut client = server.client();
    let (mut acknowledged, mut sent) = (0u64, 0u64);
    loop {
        let event = |at: u32| {
            let body = format!(r#"{{"userId":"{}{sent}_{at}","value":1}}"#, "x".repeat(200));
            crate::world::post("/event", &body)
        };
        client.send((0..100).map(event).collect::<String>().as_bytes());
        sent += 100;
        let read = |_: &u32| client.try_read().is_some_and(|response| response.status == 200);
        let count = (0..100).take_while(read).count();
        acknowledged += count as u64;
        if count < 100 {
            break;
        }
        assert!(sent < 1_000_000, "the disk is never full");
    }
    assert_eq!(server.client().get("/health").status, 503);
    std::fs::remove_file(ballast).unwrap();
    eventually("it is back", || server.client().get("/health").status == 200);
    server.client().event("one more", 1.0);
    let totals = server.stop();
    super::check(&totals);
    let possible = acknowledged + 1..=sent + 1;
    assert!(possible.contains(&totals.total), "{totals:?} of {possible:?}");
    assert_eq!(totals, inspect(&url));
}

#[test]
#[ignore = "needs PostgreSQL: run ci/cluster"]
fn the_doctor_says_what_a_database_promises() {
    let database = Postgres::new(&[]);
    let url = database.url("");
    let output = run(&["doctor", "--store", &url]);
    let said = text(&output.stdout);
    assert!(said.contains("store database") && said.contains("PostgreSQL 1"), "{said}");
    assert!(said.contains("the role may create it"), "{said}");
    database.sql("ALTER SYSTEM SET fsync = off");
    database.sql("SELECT pg_reload_conf()");
    eventually("the doctor warns", || {
        text(&run(&["doctor", "--store", &url]).stdout).contains("fsync = off: a power failure")
    });
    let said = text(
        &run(&["doctor", "--store", &format!("postgres://u@127.0.0.1:{}/x", free_port())]).stdout,
    );
    assert!(said.contains("WARN  store database"), "{said}");
}
