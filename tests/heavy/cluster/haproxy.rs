//! HAProxy in TCP mode in front of three servers, as ci/deploy configures it, and the load client
//! through it.

use super::postgres::{Postgres, free_port};
use super::{inspect, servers};
use crate::world::{Server, eventually, output_within, ringtally, text};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// HAProxy. Dropping it kills the process.
struct Balancer {
    port: u16,
    process: Child,
    folder: PathBuf,
}

impl Balancer {
    fn before(servers: &[Server]) -> Balancer {
        let port = free_port();
        let folder =
            std::env::temp_dir().join(format!("ringtally-haproxy-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        // Uses the configuration of the example with the addresses of these servers.
        let example = include_str!("../../../ci/deploy/cluster/haproxy.cfg");
        let (common, _) = example.split_once("    server ").unwrap();
        let mut config = common.replace("bind :8000", &format!("bind 127.0.0.1:{port}"));
        for (number, server) in servers.iter().enumerate() {
            config += &format!("    server server{number} {}\n", server.address);
        }
        let file = folder.join("haproxy.cfg");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f", file.to_str().unwrap()]);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let balancer = Balancer { port, process, folder };
        eventually("HAProxy has servers", || {
            let answer = std::panic::catch_unwind(|| {
                let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
                std::net::TcpStream::connect(address).ok()?;
                crate::world::Client::connect(address).get("/health").status.into()
            });
            answer.ok().flatten() == Some(200)
        });
        balancer
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn load(balancer: &Balancer, flags: &[&str]) -> Command {
    let mut command = ringtally();
    command.args(["load", "--quiet", "--json", "-", "--url", &balancer.url()]).args(flags);
    command
}

#[test]
#[ignore = "needs PostgreSQL and HAProxy: run ci/cluster"]
fn a_load_through_a_balancer_is_exact() {
    let database = Postgres::new(&[]);
    let url = database.url("");
    let servers = servers(&url, 3);
    let balancer = Balancer::before(&servers);
    for flags in [["200000", "64"], ["200000", "64"]] {
        let output = output_within(&mut load(&balancer, &flags), Duration::from_secs(300));
        let said = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{said}{}", text(&output.stderr));
        let report: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(report["verdict"], "exact", "{said}");
        assert_eq!(report["reconnects"], 0, "{said}");
        assert_eq!(inspect(&url).total, 200_000);
    }
    for server in &servers {
        let metrics = server.client().get("/metrics").body;
        let own =
            metrics.lines().find(|line| line.starts_with("http_requests_total")).map(str::to_owned);
        assert!(own.is_some(), "{metrics}");
    }
    super::check_log(&database);
}

#[test]
#[ignore = "needs PostgreSQL and HAProxy: run ci/cluster"]
fn a_load_through_a_balancer_stays_within_its_bounds_if_a_server_and_the_database_are_killed() {
    let mut database = Postgres::new(&[]);
    let url = database.url("");
    let mut servers = servers(&url, 3);
    let balancer = Balancer::before(&servers);
    let mut command = load(&balancer, &["400000", "64", "--timeout", "20s"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the load is under way", || servers[2].stats().total > 20_000);
    // Dropping the server kills it.
    drop(servers.remove(0));
    eventually("the load continues", || servers[1].stats().total > 60_000);
    database.stop_immediately();
    database.start();
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stdout);
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    let get = |name: &str| report[name].as_u64().unwrap();
    let held = inspect(&url);
    let (acknowledged, unknown) = (get("acknowledged"), get("unknown"));
    eprintln!(
        "acknowledged {acknowledged}, unknown {unknown}, refused {}, held {held:?}",
        get("refused")
    );
    assert!((acknowledged..=acknowledged + unknown).contains(&held.total), "{held:?} {said}");
    assert!(acknowledged > 100_000, "{said}");
    for server in &servers {
        assert_eq!(server.stats(), held);
    }
    super::check_log(&database);
}
