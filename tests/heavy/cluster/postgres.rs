//! Private PostgreSQL clusters, on free ports, in their own directories, run by a user without privileges.

use crate::world::{eventually, output_within, text};
use rustix::process::{Pid, Signal, kill_process};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The time that a PostgreSQL program may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Returns an unused port.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A cluster. Dropping it kills it and removes its directory.
pub(crate) struct Postgres {
    folder: PathBuf,
    pub(crate) port: u16,
    flags: Vec<String>,
    postmaster: Option<Child>,
}

/// Returns the directory of the newest PostgreSQL's programs.
fn programs() -> PathBuf {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .expect("ci/cluster installs PostgreSQL")
        .map(|version| version.unwrap().path().join("bin"))
        .filter(|folder| folder.join("postgres").exists())
        .collect();
    found.sort();
    found.pop().expect("ci/cluster installs PostgreSQL")
}

/// Returns the user and group of clusters if this process runs as root, which PostgreSQL refuses.
fn owner() -> Option<(u32, u32)> {
    if !rustix::process::getuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:")).expect("a user postgres");
    let fields: Vec<&str> = line.split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}

/// Returns a command that runs a PostgreSQL program as the user of clusters.
fn program(name: &str) -> Command {
    as_owner(&programs().join(name))
}

/// Returns a command that runs a program as the user of clusters.
pub(crate) fn as_owner(path: &Path) -> Command {
    let mut command = match owner() {
        None => Command::new(path),
        Some((user, group)) => {
            let mut command = Command::new("setpriv");
            command.arg(format!("--reuid={user}")).arg(format!("--regid={group}"));
            command.args(["--clear-groups", "--pdeathsig=KILL"]).arg(path);
            command
        }
    };
    command.current_dir("/").env_remove("PGPASSWORD");
    command
}

fn run(command: &mut Command) -> String {
    let output = output_within(command, PATIENCE);
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

impl Postgres {
    /// Creates and starts a cluster with additional settings, such as `max_connections=20`.
    pub(crate) fn new(settings: &[&str]) -> Postgres {
        let folder = Postgres::folder();
        let password = folder.join("password");
        Postgres::write(&password, "s3cret");
        run(program("initdb")
            .args(["-A", "scram-sha-256", "-U", "tally", "--no-sync", "-D"])
            .args([
                folder.join("data").to_str().unwrap(),
                "--pwfile",
                password.to_str().unwrap(),
                "--locale=C",
                "-E",
                "UTF8",
            ]));
        let mut cluster = Postgres::in_folder(folder, settings);
        cluster.start();
        cluster
    }

    /// Creates a directory for a cluster in `RINGTALLY_CLUSTER_FOLDER`, such as a small file system, or else in `/var/tmp`.
    pub(crate) fn folder() -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let base = std::env::var("RINGTALLY_CLUSTER_FOLDER").unwrap_or_else(|_| "/var/tmp".into());
        let name = format!("ringtally-cluster-{}-{number}", std::process::id());
        let folder = Path::new(&base).join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Postgres::give(&folder, 0o700);
        folder
    }

    /// Gives a file to the user of clusters, with this mode.
    pub(crate) fn give(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        if let Some((user, group)) = owner() {
            chown(path, Some(user), Some(group)).unwrap();
        }
    }

    pub(crate) fn write(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
        Postgres::give(path, 0o600);
    }

    fn in_folder(folder: PathBuf, settings: &[&str]) -> Postgres {
        let port = free_port();
        let mut cluster = Postgres { folder, port, flags: Vec::new(), postmaster: None };
        let hba = "local all all trust\nlocal replication all trust\nhost all all 127.0.0.1/32 scram-sha-256\n\
                   host replication all 127.0.0.1/32 trust\n";
        Postgres::write(&cluster.data().join("pg_hba.conf"), hba);
        cluster.flags = cluster.flags(settings);
        cluster
    }

    fn flags(&self, settings: &[&str]) -> Vec<String> {
        let folder = self.folder.display();
        let base = [
            format!("port={}", self.port),
            "listen_addresses=127.0.0.1".into(),
            format!("unix_socket_directories={folder}"),
            "shared_buffers=32MB".into(),
            "max_connections=60".into(),
            "log_lock_waits=on".into(),
            "deadlock_timeout=200ms".into(),
            "wal_level=replica".into(),
            "checkpoint_timeout=30s".into(),
        ];
        base.into_iter().chain(settings.iter().map(|setting| (*setting).to_owned())).collect()
    }

    /// Creates a standby of this cluster. Commits on this cluster wait for it.
    pub(crate) fn standby(&self) -> Postgres {
        let standby = self.follower();
        self.sql("ALTER SYSTEM SET synchronous_standby_names = 'standby'");
        self.sql("SELECT pg_reload_conf()");
        eventually("the standby is synchronous", || {
            self.sql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == "1"
        });
        standby
    }

    /// Creates a standby of this cluster. Nothing waits for it.
    pub(crate) fn follower(&self) -> Postgres {
        let folder = Postgres::folder();
        let data = folder.join("data");
        run(program("pg_basebackup")
            .args([
                "-h",
                self.folder.to_str().unwrap(),
                "-U",
                "tally",
                "-R",
                "-c",
                "fast",
                "--no-sync",
            ])
            .args(["-p", &self.port.to_string(), "-D", data.to_str().unwrap()]));
        let primary = format!(
            "primary_conninfo=host=127.0.0.1 port={} user=tally application_name=standby",
            self.port
        );
        let mut standby = Postgres::in_folder(folder, &[&primary]);
        standby.start();
        standby
    }

    /// Waits until the standby has everything that this cluster has written.
    pub(crate) fn wait_for_standby(&self) {
        let written = self.sql("SELECT pg_current_wal_lsn()");
        let sql =
            format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{written}'");
        eventually("the standby has everything", || self.sql(&sql) == "1");
    }

    /// Refuses standbys, so that none of them receives later writes.
    pub(crate) fn refuse_standbys(&self) {
        let hba = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
        Postgres::write(&self.data().join("pg_hba.conf"), hba);
        self.sql("SELECT pg_reload_conf()");
        eventually("no standby is connected", || {
            self.sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication") == "0"
        });
    }

    /// Returns a function that sends signals to the receiving process of this standby.
    pub(crate) fn receiver(&self) -> impl Fn(Signal) + use<> {
        let mut pid = String::new();
        eventually("it receives", || {
            pid = self.sql("SELECT pid FROM pg_stat_wal_receiver");
            !pid.is_empty()
        });
        let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
        move |signal| kill_process(pid, signal).unwrap()
    }

    pub(crate) fn promote(&self) {
        self.sql("SELECT pg_promote()");
        // The new primary does not have a standby to wait for.
        self.sql("ALTER SYSTEM SET synchronous_standby_names = ''");
        self.sql("SELECT pg_reload_conf()");
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Starts the cluster, and waits until it accepts connections.
    pub(crate) fn start(&mut self) {
        self.launch();
        eventually("PostgreSQL accepts connections", || {
            let mut ready = program("pg_isready");
            ready.args(["-q", "-h", self.folder.to_str().unwrap(), "-p", &self.port.to_string()]);
            ready.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
        });
    }

    /// Starts the cluster and does not wait.
    pub(crate) fn launch(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))
            .unwrap();
        let mut command = program("postgres");
        command.args(["-D", self.data().to_str().unwrap()]);
        for flag in &self.flags {
            command.args(["-c", flag]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.postmaster = Some(command.spawn().unwrap());
    }

    /// Ends the cluster as `pg_ctl stop -m immediate` does: without a checkpoint, so that the next start recovers.
    pub(crate) fn stop_immediately(&mut self) {
        self.signal(Signal::QUIT);
        self.postmaster.take().unwrap().wait().unwrap();
    }

    /// Kills all of its processes, as a machine failure does.
    pub(crate) fn kill(&mut self) {
        let Some(mut postmaster) = self.postmaster.take() else { return };
        let children = children(postmaster.id());
        let _ = postmaster.kill();
        for pid in children {
            let _ = kill_process(pid, Signal::KILL);
        }
        postmaster.wait().unwrap();
    }

    fn signal(&self, signal: Signal) {
        let pid = self.postmaster.as_ref().unwrap().id();
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
    }

    /// Stops or continues all of its processes.
    pub(crate) fn signal_all(&self, signal: Signal) {
        let pid = self.postmaster.as_ref().unwrap().id();
        self.signal(signal);
        for pid in children(pid) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Runs SQL as the owner of the cluster, in the database of the tests.
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.sql_in("postgres", sql)
    }

    pub(crate) fn sql_in(&self, database: &str, sql: &str) -> String {
        let port = self.port.to_string();
        let mut psql = program("psql");
        psql.args([
            "-h",
            self.folder.to_str().unwrap(),
            "-p",
            &port,
            "-U",
            "tally",
            "-d",
            database,
        ]);
        run(psql.args(["-v", "ON_ERROR_STOP=1", "-Atqc", sql])).trim().to_owned()
    }

    /// Runs a pgbench script on a new table. Returns its output.
    pub(crate) fn pgbench(&self, table: &str, script: &str, flags: &[&str]) -> String {
        self.sql(table);
        let file = self.folder.join("script.sql");
        Postgres::write(&file, script);
        let mut pgbench = program("pgbench");
        pgbench.args(["-n", "-h", self.folder.to_str().unwrap(), "-p", &self.port.to_string()]);
        run(pgbench.args(["-U", "tally", "-f", file.to_str().unwrap()]).args(flags).arg("postgres"))
    }

    /// Returns the CPU seconds that all of its processes have used.
    pub(crate) fn cpu_s(&self) -> f64 {
        let pid = self.postmaster.as_ref().unwrap().id();
        let children =
            children(pid).into_iter().map(|child| child.as_raw_nonzero().get().cast_unsigned());
        children.chain([pid]).map(super::figures::cpu_s).sum()
    }

    /// Returns the URL for a server, with additional parameters.
    pub(crate) fn url(&self, parameters: &str) -> String {
        format!("postgres://tally:s3cret@127.0.0.1:{}/postgres?{parameters}", self.port)
    }

    /// Starts to run SQL through a pooler, as another client of that pooler.
    pub(crate) fn start_sql_through(&self, port: u16, sql: &str) -> Child {
        let mut psql = program("psql");
        let url = format!("postgres://tally:s3cret@127.0.0.1:{port}/postgres");
        psql.args(["-d", &url, "-v", "ON_ERROR_STOP=1", "-Atqc", sql]);
        psql.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// Installs a certificate for `localhost`, signed by its own root. Returns the path of the root's certificate.
    pub(crate) fn certify(&mut self) -> PathBuf {
        let folder = self.data();
        let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let openssl = |arguments: &[&str]| run(Command::new("openssl").args(arguments));
        let (root, root_key) = (file("root.crt"), file("root.key"));
        let (key, request) = (file("server.key"), file("server.csr"));
        let (certificate, extensions) = (file("server.crt"), file("extensions"));
        let new = ["req", "-new", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
        let of_root = ["-x509", "-subj", "/CN=root", "-keyout", &root_key, "-out", &root];
        openssl(&[&new[..], &of_root].concat());
        let of_server = ["-subj", "/CN=localhost", "-keyout", &key, "-out", &request];
        openssl(&[&new[..], &of_server].concat());
        let mut written = std::fs::File::create(&extensions).unwrap();
        writeln!(written, "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE").unwrap();
        openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &root,
            "-CAkey",
            &root_key,
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &extensions,
            "-out",
            &certificate,
        ]);
        Postgres::give(Path::new(&key), 0o600);
        Postgres::give(Path::new(&certificate), 0o600);
        let copy = self.folder.join("root.crt");
        std::fs::copy(&root, &copy).unwrap();
        self.sql("ALTER SYSTEM SET ssl = on");
        self.sql("SELECT pg_reload_conf()");
        copy
    }
}

/// Returns the children of a process.
fn children(parent: u32) -> Vec<Pid> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let Ok(list) = std::fs::read_to_string(path) else { return Vec::new() };
    list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("PostgreSQL logged:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        }
        if self.postmaster.is_some() {
            self.signal_all(Signal::CONT);
        }
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
