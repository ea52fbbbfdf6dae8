//! `serve --steer cpu` and `--busy-poll-us`: the shard that gets a connection, and every way that these flags are refused. Over
//! loopback, the client's CPU is the CPU that receives.

use crate::world::{Client, Server, engine, ringtally, run, text};
use ringtally::{topology, uring};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

/// Returns the first two CPUs that may be used, or `None` if there is one, or if the client does not decide which CPU receives.
fn two_cpus() -> Option<[usize; 2]> {
    let rps = std::fs::read_to_string("/sys/class/net/lo/queues/rx-0/rps_cpus").unwrap_or_default();
    let is_steered = rps.chars().any(|digit| digit.is_ascii_hexdigit() && digit != '0');
    topology::allowed_cpus().first_chunk().copied().filter(|_| !is_steered)
}

/// Runs a function on a CPU.
fn on<T: Send>(cpu: usize, what: impl FnOnce() -> T + Send) -> T {
    let pinned = || {
        assert!(topology::pin_to(cpu));
        what()
    };
    std::thread::scope(|scope| scope.spawn(pinned).join().unwrap())
}

/// Returns this number of clients that have connected on a CPU and were served.
fn clients(address: SocketAddr, cpu: usize, count: usize) -> Vec<Client> {
    let served = || {
        let mut client = Client::connect(address);
        client.event("u", 1.0);
        client
    };
    on(cpu, || (0..count).map(|_| served()).collect())
}

/// Returns a figure of each of two shards.
fn by_shard(client: &mut Client, name: &str) -> [u64; 2] {
    let text = client.get("/metrics").body;
    [0, 1].map(|shard| {
        let series = format!("ringtally_{name}{{shard=\"{shard}\"}} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&series)).unwrap();
        value.parse().unwrap()
    })
}

/// Checks that connections are on the shards of the CPUs that received them, and stay there.
fn check_steered(address: SocketAddr, cpus: [usize; 2]) {
    let mut asking = clients(address, cpus[0], 1).remove(0);
    let before = by_shard(&mut asking, "accepted_total");
    // These are unequal on purpose: hand-over would balance them.
    let first = clients(address, cpus[0], 30);
    let second = clients(address, cpus[1], 10);
    let after = by_shard(&mut asking, "accepted_total");
    assert_eq!([after[0] - before[0], after[1] - before[1]], [30, 10]);
    assert_eq!(by_shard(&mut asking, "connections"), [31, 10]);
    assert_eq!(by_shard(&mut asking, "handed_over_total"), [0, 0]);
    drop((first, second));
}

fn cpu_list(cpus: [usize; 2]) -> String {
    topology::format_cpu_list(&cpus)
}

#[test]
fn the_shard_on_the_cpu_that_received_a_connection_serves_it() {
    let Some(cpus) = two_cpus() else { return };
    for host in ["127.0.0.1", "::1"] {
        let server = Server::start(&["--steer", "cpu", "--cpus", &cpu_list(cpus), "--host", host]);
        check_steered(server.address, cpus);
        assert_eq!(server.stop().total, 41);
    }
}

#[test]
fn by_hash_connections_are_balanced_wherever_they_come_from() {
    let Some(cpus) = two_cpus() else { return };
    let server = Server::start(&["--cpus", &cpu_list(cpus)]);
    let mut clients = clients(server.address, cpus[1], 40);
    assert_eq!(by_shard(&mut clients[0], "connections"), [20, 20]);
}

#[test]
fn one_shard_serves_what_any_cpu_receives() {
    let Some(cpus) = two_cpus() else { return };
    let server = Server::start(&["--steer", "cpu", "--cpus", &cpus[1].to_string()]);
    assert!(server.ready_line.contains("(1 shard on CPU"), "{}", server.ready_line);
    let mut clients = clients(server.address, cpus[0], 3);
    clients.iter_mut().for_each(|client| client.event("u", 1.0));
    drop(clients);
    assert_eq!(server.stop().total, 6);
}

#[test]
fn a_stop_answers_what_was_sent_on_every_connection() {
    let Some(cpus) = two_cpus() else { return };
    for _ in 0..5 {
        let server = Server::start(&["--steer", "cpu", "--cpus", &cpu_list(cpus)]);
        let event = crate::world::post("/event", r#"{"userId":"u","value":1}"#);
        // The stop reaches the shards before, while, and after they accept these.
        let mut clients: Vec<Client> = (0..100)
            .flat_map(|_| cpus)
            .map(|cpu| {
                let mut client = on(cpu, || Client::connect(server.address));
                client.send(event.as_bytes());
                client
            })
            .collect();
        server.signal(Signal::TERM);
        clients.iter_mut().for_each(|client| assert_eq!(client.read().status, 200));
        let (code, said, log) = server.wait_with_log();
        assert_eq!(code, Some(0), "{log}");
        assert!(said.contains(r#""totalRequests":200,"#), "{said}");
    }
}

/// Runs a command that is refused, and returns its exit code and its error.
fn refusal(flags: &[&str]) -> (Option<i32>, String) {
    let flags = [&["serve", "--port", "0"], flags].concat();
    let output = run(&flags);
    (output.status.code(), text(&output.stderr))
}

#[test]
fn what_cannot_be_done_is_refused_with_advice() {
    let cpu = topology::allowed_cpus()[0].to_string();
    for (flags, code, advice) in [
        (&["--steer", "cpu", "--shards", "3", "--cpus", &cpu][..], 2, "lower --shards, or pass"),
        (&["--steer", "queue"], 2, "[possible values: hash, cpu]"),
        (&["--busy-poll-us", "1000001"], 2, "--busy-poll-us"),
        (&["--busy-poll-us", "50", "--engine", "streams"], 3, "pass --engine ring"),
    ] {
        let (refused, said) = refusal(flags);
        assert_eq!(refused, Some(code), "{flags:?}: {said}");
        assert!(said.contains(advice) && said.contains(flags[0]), "{flags:?}: {said}");
    }
}

#[test]
fn a_kernel_without_busy_polling_is_named() {
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, apply_filter,
    };
    const SYS_IO_URING_REGISTER: i64 = 427;
    const IORING_REGISTER_NAPI: u64 = 27;
    // The errors of kernels before Linux 6.9, and of kernels that were built without busy polling.
    for (error, advice) in [(22, "use Linux 6.9 or later"), (95, "CONFIG_NET_RX_BUSY_POLL")] {
        // The filter applies to the thread and to the processes that it starts.
        let filtered = std::thread::spawn(move || {
            let is_it = SeccompCondition::new(
                1,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::Eq,
                IORING_REGISTER_NAPI,
            );
            let rule = SeccompRule::new(vec![is_it.unwrap()]).unwrap();
            let filter = SeccompFilter::new(
                BTreeMap::from([(SYS_IO_URING_REGISTER, vec![rule])]),
                SeccompAction::Allow,
                SeccompAction::Errno(error),
                std::env::consts::ARCH.try_into().unwrap(),
            );
            apply_filter(&BpfProgram::try_from(filter.unwrap()).unwrap()).unwrap();
            let (code, said) = refusal(&["--busy-poll-us", "50", "--engine", "ring"]);
            assert_eq!(code, Some(3), "{said}");
            assert!(said.contains(advice), "{said}");
            // Without the flag, the kernel is not asked.
            Server::start(&["--shards", "1"]).stop();
        });
        filtered.join().unwrap();
    }
}

#[test]
fn polling_the_device_changes_no_response() {
    if engine() != "ring" || uring::check_busy_poll().is_err() {
        return;
    }
    let server = Server::start(&["--busy-poll-us", "100", "--shards", "2"]);
    let mut clients: Vec<_> = (0..8).map(|_| server.client()).collect();
    for _ in 0..50 {
        clients.iter_mut().for_each(|client| client.event("u", 1.0));
    }
    assert_eq!(clients[0].stats().total, 400);
    drop(clients);
    assert_eq!(server.stop().total, 400);
}

/// Returns the command of a server on a socket that it inherits. `prefix` can run it as another user.
fn on_socket(listener: &TcpListener, prefix: &str, flags: &str) -> Command {
    let script = format!(
        r#"exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 \
           exec {prefix} "$0" serve --engine {} {flags}"#,
        engine()
    );
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(ringtally().get_program());
    command.stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap())));
    command
}

#[test]
fn an_inherited_socket_is_steered_and_keeps_nothing_of_it_for_the_next_server() {
    let Some(cpus) = two_cpus() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let cpu = format!("--steer cpu --cpus {}", cpu_list(cpus));
    for _ in 0..2 {
        let server = Server::start_command(on_socket(&listener, "", &cpu));
        check_steered(address, cpus);
        assert_eq!(server.stop().total, 41);
    }
    let killed = Server::start_command(on_socket(&listener, "", &cpu));
    killed.signal(Signal::KILL);
    killed.wait();
    let by_hash = format!("--steer hash --cpus {}", cpu_list(cpus));
    let server = Server::start_command(on_socket(&listener, "", &by_hash));
    let mut clients = clients(server.address, cpus[0], 40);
    let accepted = by_shard(&mut clients[0], "accepted_total");
    assert!(accepted[0] > 0 && accepted[1] > 0, "40 of one CPU by hash: {accepted:?}");
}

#[test]
fn a_socket_that_others_listen_beside_or_that_is_another_users_is_not_steered() {
    let Some(cpus) = two_cpus() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let flags = |steer: &str| format!("--steer {steer} --cpus {}", cpu_list(cpus));
    let refused = |prefix: &str, advice: &str| {
        let output = on_socket(&listener, prefix, &flags("cpu")).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains(advice) && said.contains("--steer hash"), "{said}");
    };
    if rustix::process::geteuid().is_root() {
        refused("setpriv --reuid=65534 --clear-groups", "which another user has made");
    }
    let other = Server::start_command(on_socket(&listener, "", &flags("hash")));
    refused("", "other sockets listen on");
    other.stop();
    // The other server's sockets are gone with it.
    let server = Server::start_command(on_socket(&listener, "", &flags("cpu")));
    check_steered(server.address, cpus);
}
