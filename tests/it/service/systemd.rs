//! `ringtally serve` as a service: readiness, the watchdog, and a listening socket that was passed on, each as systemd does it,
//! but without systemd.

use crate::world::{Client, PATIENCE, Server, engine, ringtally};
use rustix::process::Signal;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The socket that receives reports in place of systemd.
struct Reports {
    socket: UnixDatagram,
    path: std::path::PathBuf,
}

impl Reports {
    fn new(name: &str) -> Reports {
        let file = format!("ringtally-{name}-{}-{}", std::process::id(), engine());
        let path = std::env::temp_dir().join(file);
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Reports { socket, path }
    }

    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let len = self.socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).unwrap();
    }
}

fn serve(flags: &[&str]) -> Command {
    let mut command = ringtally();
    command.args(["serve", "--port", "0", "--engine", &engine()]).args(flags);
    command
}

#[test]
fn it_reports_that_it_is_ready_alive_and_stopping() {
    let reports = Reports::new("reports");
    let mut command = serve(&["--shards", "3"]);
    command.env("NOTIFY_SOCKET", &reports.path).env("WATCHDOG_USEC", "3000000");
    let server = Server::start_command(command);
    let ready = reports.next();
    assert!(ready.starts_with("READY=1\n"), "{ready}");
    let status = format!("STATUS=listening on http://{} (3 shards", server.address);
    assert!(ready.contains(&status), "{ready}");
    // An idle server reports over several intervals, at least twice per interval, or systemd would end it.
    let start = Instant::now();
    for _ in 0..4 {
        assert_eq!(reports.next().trim(), "WATCHDOG=1");
    }
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
    server.signal(Signal::TERM);
    let stopping =
        std::iter::repeat_with(|| reports.next()).find(|report| !report.contains("WATCH"));
    assert!(stopping.as_ref().unwrap().starts_with("STOPPING=1\nSTATUS=SIGTERM: draining"));
    assert_eq!(server.wait().0, Some(0));
}

#[test]
fn a_watchdog_that_an_idle_server_cannot_keep_is_refused() {
    let output = serve(&[]).env("WATCHDOG_USEC", "2999999").output().unwrap();
    let said = crate::world::text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("raise WatchdogSec= to 3s or more"), "{said}");
}

#[test]
fn nobody_who_listens_for_reports_is_a_warning() {
    let mut command = serve(&["--shards", "1"]);
    command.env("NOTIFY_SOCKET", "/nonexistent");
    let server = Server::start_command(command);
    server.client().event("u", 1.0);
    server.signal(Signal::TERM);
    let (code, _, log) = server.wait_with_log();
    assert_eq!(code, Some(0));
    assert!(log.contains("warning: cannot report to NOTIFY_SOCKET"), "{log}");
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Checks that connections wait in the socket while no server runs, and that the next server serves them.
fn serves_across_restarts(prefix: &str) {
    let (listener, address) = listener();
    for restart in 0..3 {
        let mut early = Client::connect(address);
        let server = Server::start_on(&listener, prefix, 3);
        assert_eq!(server.address, address, "{restart}");
        early.event("early", 1.0);
        let mut clients: Vec<_> = (0..12).map(|_| Client::connect(address)).collect();
        clients.iter_mut().for_each(|client| client.event("u", 1.0));
        let totals = server.stop();
        assert_eq!((totals.total, totals.users), (13, 2), "{restart}");
    }
}

#[test]
fn a_passed_socket_is_served_and_outlives_the_server() {
    serves_across_restarts("");
}

/// SO_REUSEPORT groups sockets of one user only, so the shards share the one socket here.
#[test]
fn a_socket_that_another_user_has_made_is_shared_by_all_shards() {
    if rustix::process::geteuid().is_root() {
        serves_across_restarts("setpriv --reuid=65534 --clear-groups");
    }
}

/// Returns the CPU time of a process in clock ticks, which are a hundredth of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Shuts the socket down, as another process that has it can.
fn shut_down(listener: &TcpListener) {
    socket2::SockRef::from(listener).shutdown(std::net::Shutdown::Read).unwrap();
}

/// Starts a server whose shards all lose their socket, and checks that this ends it.
fn ends_without_a_socket(prefix: &str, shards: usize) {
    let (listener, _) = listener();
    let server = Server::start_on(&listener, prefix, shards);
    server.client().event("u", 1.0);
    shut_down(&listener);
    let (code, printed, log) = server.wait_with_log();
    assert_eq!(code, Some(3), "{log}");
    assert_eq!(crate::world::Totals::parse(&printed).total, 1, "{printed}");
    assert!(log.contains("no listening socket is left"), "{log}");
    let lost = log.lines().filter(|line| line.contains("has no listening socket anymore"));
    assert_eq!(lost.count(), shards, "{log}");
}

#[test]
fn a_server_without_a_socket_that_listens_ends() {
    ends_without_a_socket("", 1);
    if rustix::process::geteuid().is_root() {
        ends_without_a_socket("setpriv --reuid=65534 --clear-groups", 3);
    }
}

#[test]
fn a_shard_without_a_socket_leaves_accepting_to_the_others_and_rests() {
    let (listener, address) = listener();
    let server = Server::start_on(&listener, "", 3);
    let mut early: Vec<_> = (0..12).map(|_| Client::connect(address)).collect();
    early.iter_mut().for_each(|client| client.event("early", 1.0));
    shut_down(&listener);
    let mut late: Vec<_> = (0..12).map(|_| Client::connect(address)).collect();
    late.iter_mut().for_each(|client| client.event("late", 1.0));
    early.iter_mut().for_each(|client| client.event("early", 1.0));
    let before = cpu_ticks(server.pid());
    std::thread::sleep(Duration::from_secs(2));
    let used = cpu_ticks(server.pid()) - before;
    assert!(used < 40, "{used} ticks of 200");
    server.signal(Signal::TERM);
    let (code, printed, log) = server.wait_with_log();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(crate::world::Totals::parse(&printed).total, 36);
    assert_eq!(log.matches("has no listening socket anymore").count(), 1, "{log}");
}

#[test]
fn anything_but_one_listening_tcp_socket_is_refused() {
    let datagrams = UnixDatagram::unbound().unwrap();
    for (descriptor, count) in [(OwnedFd::from(datagrams), 1), (OwnedFd::from(listener().0), 2)] {
        let script = format!(
            r#"exec 3<&0 0</dev/null 4<&3; LISTEN_PID=$$ LISTEN_FDS={count} exec "$0" serve"#
        );
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(ringtally().get_program());
        let output = command.stdin(Stdio::from(descriptor)).output().unwrap();
        let said = crate::world::text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("LISTEN_FDS") && said.contains("ListenStream="), "{said}");
    }
}
