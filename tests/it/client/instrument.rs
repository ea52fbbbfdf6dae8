//! The reports of `ringtally load` if its own machine prevents the requested run: connections cannot be opened, the client is
//! stopped, the server's process may not be inspected, or threads cannot be started.

use crate::world::fake::{Fake, GOOD, Habits, assert_exact, load};
use crate::world::{Server, ringtally, text};
use rustix::process::{Pid, Signal, getuid, kill_process};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
/// Runs a command that is followed by the program and its flags.
fn run_by(command: &[&str], flags: &[&str]) -> Output {
    let (first, rest) = command.split_first().unwrap();
    let mut command = Command::new(first);
    command.args(rest).arg(ringtally().get_program()).args(flags);
    command.stdin(Stdio::null()).output().unwrap()
}

fn report(output: &Output) -> (Option<i32>, Value) {
    let report = serde_json::from_slice(&output.stdout);
    let said = || format!("{}{}", text(&output.stdout), text(&output.stderr));
    (output.status.code(), report.unwrap_or_else(|_| panic!("{}", said())))
}

/// Copies the program in a separate process. This process may not hold the file open for writing: a process that another test
/// starts at that moment would inherit it, and such a file cannot be executed.
fn copy_program(to: &Path) {
    let copied = Command::new("cp").arg(ringtally().get_program()).arg(to).status().unwrap();
    assert!(copied.success());
}

/// Reports whether a program exists and succeeds with these flags.
fn can(program: &str, flags: &[&str]) -> bool {
    let output = Command::new(program).args(flags).output();
    output.is_ok_and(|output| output.status.success())
}

/// A limit of 64 open files leaves room for fewer than 100 connections. The run is not the requested one, and the report names
/// the reason without a wait.
#[test]
fn connections_that_cannot_be_opened_are_counted_with_the_reason() {
    if !can("prlimit", &["--version"]) {
        return;
    }
    let server = Server::start(&[]);
    let url = server.url();
    let flags =
        ["load", "2000", "100", "--url", &url, "--quiet", "--json", "-", "--timeout", "20s"];
    let limited =
        |more: &[&str]| report(&run_by(&["prlimit", "--nofile=64:64"], &[&flags, more].concat()));
    let started = Instant::now();
    let (code, found) = limited(&[]);
    assert!(started.elapsed() < Duration::from_secs(15), "it waited for nothing");
    assert_eq!((code, found["verdict"].as_str()), (Some(1), Some("exact")), "{found}");
    let open = found["connections_open"].as_u64().unwrap();
    assert!((8..60).contains(&open), "{found}");
    assert_eq!(found["setup"]["connections"], 100, "{found}");
    let error = &found["connect_errors"][0];
    assert_eq!(
        (&error["errno"], &error["attempts"]),
        (&24.into(), &(100 - open).into()),
        "{found}"
    );
    let warnings = found["warnings"].to_string();
    assert!(warnings.contains(&format!("only {open} of 100 connections were open")), "{warnings}");
    assert!(
        warnings.contains("Too many open files") && warnings.contains("ulimit -n"),
        "{warnings}"
    );
    // A threshold may allow fewer connections.
    assert_exact(&limited(&["--fail-if", "connections_open<8"]));
    assert_eq!(limited(&["--fail-if", "connections_open<100"]).0, Some(1));
    let output = run_by(&["prlimit", "--nofile=64:64"], &["load", "2000", "100", "--url", &url]);
    let said = text(&output.stdout);
    assert!(said.contains(&format!("over {open} of 100 connections")), "{said}");
}

/// The challenge runs in a separate network with ten ports for outgoing connections.
#[test]
fn a_machine_without_ports_is_named() {
    if !can("unshare", &["--net", "sh", "-c", "ip link set lo up"]) {
        return;
    }
    let ports =
        "ip link set lo up; echo 40000 40009 > /proc/sys/net/ipv4/ip_local_port_range; \"$@\"";
    let flags = ["challenge", "2000", "20", "--quiet", "--json", "-", "--timeout", "20s"];
    let started = Instant::now();
    let output = run_by(&["unshare", "--net", "sh", "-c", ports, "sh"], &flags);
    let (code, found) = report(&output);
    assert!(started.elapsed() < Duration::from_secs(15), "it waited for nothing");
    assert_eq!((code, found["verdict"].as_str()), (Some(1), Some("exact")), "{found}");
    assert!((5..=10).contains(&found["connections_open"].as_u64().unwrap()), "{found}");
    assert_eq!(found["connect_errors"][0]["errno"], 99, "{found}");
    assert!(text(&output.stderr).contains("ip_local_port_range"), "{}", text(&output.stderr));
}

/// Runs an open loop at 2,000 requests/s, stops it for 300 ms in the middle, and continues it.
fn stopped(server: &Server, connections: &str) -> (Option<i32>, Value) {
    let url = server.url();
    let child = ringtally()
        .args([
            "load",
            "8000",
            connections,
            "--rate",
            "2000",
            "--quiet",
            "--json",
            "-",
            "--url",
            &url,
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_child(&child);
    std::thread::sleep(Duration::from_millis(2000));
    kill_process(pid, Signal::STOP).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    kill_process(pid, Signal::CONT).unwrap();
    report(&child.wait_with_output().unwrap())
}

/// Of 8,000 requests, 600 were due while the client was stopped. With two connections, all but two of them find both
/// connections busy afterward, and that is also the client's fault.
#[test]
fn time_in_which_the_client_did_not_run_is_its_own() {
    let server = Server::start(&[]);
    for connections in ["2", "1", "64"] {
        let (_, found) = stopped(&server, connections);
        let open_loop = &found["open_loop"];
        assert!(open_loop["due_in_stalls"].as_u64().unwrap() >= 550, "{found}");
        let lag_p99_us = open_loop["schedule_lag_us"]["p99"].as_f64().unwrap();
        assert!(lag_p99_us > 100_000.0, "{found}");
        assert_eq!(found["client_limited"], true, "{found}");
        assert!(found["client_suspended_s"].as_f64().unwrap() >= 0.25, "{found}");
        assert!(found["warnings"].to_string().contains("did not run for 0."), "{found}");
    }
}

/// Requests that a stalled server delays are not charged to the client, which ran the whole time.
#[test]
fn a_stall_of_the_server_is_the_servers() {
    let stalls = Some((2000, Duration::from_millis(500)));
    let fake = Fake::start(Habits { stalls, ..GOOD });
    let (_, found) = load(&fake.url(), &["4000", "4", "--rate", "1000"]);
    let open_loop = &found["open_loop"];
    let count = |key: &str| open_loop[key].as_u64().unwrap();
    assert!(count("queued") > 350, "{found}");
    // Other tests may delay the client for a moment, or all the time.
    let is_starved = found["client_waiting"].as_f64().unwrap() > 0.1;
    assert!(count("due_in_stalls") < 100 || is_starved, "{found}");
}

/// Nor is a client charged that is never awake for long while another process has its CPU.
#[test]
fn an_idle_client_is_not_the_limit_whatever_else_runs() {
    let cpu = *ringtally::topology::allowed_cpus().last().unwrap();
    let fake = Fake::start(Habits { delay: |_| Duration::from_millis(300), ..GOOD });
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let found = std::thread::scope(|scope| {
        scope.spawn(|| {
            ringtally::topology::pin_to(cpu);
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let (_, found) =
            load(&fake.url(), &["10", "2", "--threads", "1", "--cpus", &cpu.to_string()]);
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        found
    });
    assert!(found["client_cpus"]["busy"].as_f64().unwrap() > 0.8, "{found}");
    let limits = found["client_limited_by"].to_string();
    assert!(!limits.contains("CPUs were"), "{limits}");
}

/// A server of root's, and a client of nobody's, which may not inspect the server's CPUs.
#[test]
fn a_server_of_another_user_is_said_to_be_hidden() {
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    if !getuid().is_root() || !can(nobody[0], &[&nobody[1..], &["true"]].concat()) {
        return;
    }
    let folder = std::env::temp_dir().join(format!("ringtally-hidden-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let program = folder.join("ringtally");
    copy_program(&program);
    let server = Server::start(&[]);
    let run = |flags: &[&str]| {
        let output = Command::new(nobody[0])
            .args(&nobody[1..])
            .arg(&program)
            .args(["load", "500", "2", "--quiet", "--json", "-", "--url", &server.url()])
            .args(flags)
            .output()
            .unwrap();
        report(&output)
    };
    let (code, found) = run(&[]);
    assert_eq!((code, &found["setup"]["pinned"]), (Some(0), &false.into()), "{found}");
    assert!(found["warnings"].to_string().contains("may not look at"), "{found}");
    let cpu = ringtally::topology::allowed_cpus()[0].to_string();
    let (_, found) = run(&["--cpus", &cpu]);
    assert_eq!(found["setup"]["pinned"], true, "{found}");
    assert!(found["warnings"].to_string().contains("is unknown"), "{found}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// No thread keeps waiting for another thread that could not be started.
#[test]
fn threads_that_cannot_be_started_are_an_error_of_the_environment() {
    if !can("setpriv", &["--version"]) || !can("prlimit", &["--version"]) {
        return;
    }
    let server = Server::start(&[]);
    let folder = std::env::temp_dir().join(format!("ringtally-threads-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let program = folder.join("ringtally");
    copy_program(&program);
    // A search with one client thread has three more: for signals, for progress, and for samples.
    let many = ["500", "4", "--threads", "4"];
    let few = ["1", "4", "--threads", "1", "--find-rate", "p99<1s", "--window", "2s"];
    let limits = (1..=4).flat_map(|processes| [&many[..], &few].map(|flags| (processes, flags)));
    for (processes, flags) in limits {
        let limit = format!("--nproc={processes}:{processes}");
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", "20", "prlimit", &limit]);
        if getuid().is_root() {
            // The limit does not apply to root, and it counts all processes of a user. This user does not have any others.
            command.args(["setpriv", "--reuid=64321", "--regid=64321", "--clear-groups"]);
        }
        command.arg(&program).args(["load", "--url", &server.url()]).args(flags);
        let output = command.output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{processes}: {said}");
        assert!(said.contains("cannot start a client thread"), "{processes}: {said}");
        assert!(said.contains("ulimit -u"), "{processes}: {said}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A terminal that does not understand escape sequences does not get any.
#[test]
fn a_dumb_terminal_gets_plain_text() {
    if !can("script", &["--version"]) {
        return;
    }
    let server = Server::start(&[]);
    let program = ringtally().get_program().to_str().unwrap().to_owned();
    // The environment of a CI job must not bring the sequences back.
    let shown = |terminal: &str| {
        let line = format!("{program} load 2000 2 --url {} --rate 4000", server.url());
        let mut command = Command::new("script");
        command
            .args(["-qec", &line, "/dev/null"])
            .env("TERM", terminal)
            .env("CI", "true")
            .stdin(Stdio::null());
        text(&command.output().unwrap().stdout)
    };
    let (plain, full) = (shown("dumb"), shown("xterm"));
    assert!(plain.contains("exact") && !plain.contains('\x1b'), "{plain:?}");
    assert!(full.contains('\x1b'), "{full:?}");
}
