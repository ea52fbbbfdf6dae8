//! Third-party servers under `ringtally challenge --server`: good ones, and servers that misbehave in every way that a referee
//! must survive. Each server is `sh`, or this test program, which the command starts again.

use crate::world::fake::{Fake, GOOD, Habits};
use crate::world::{Directory, eventually, output_within, ringtally, run, text};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

/// The variable that names the kind of server that [`a_server`] runs.
const KIND: &str = "RINGTALLY_TEST_SERVER";

/// Not a test, but the servers that the tests start.
#[test]
#[ignore = "the tests start it as a server"]
fn a_server() {
    let Ok(kind) = std::env::var(KIND) else { return };
    let address =
        SocketAddr::from(([127, 0, 0, 1], std::env::var("PORT").unwrap().parse().unwrap()));
    let listen = || TcpListener::bind(address).unwrap();
    let habits = match kind.as_str() {
        "loses" => Habits { loses: 50, ..GOOD },
        "dies" => Habits {
            delay: |event| {
                if event > 300 {
                    eprintln!("out of luck");
                    std::process::exit(7);
                }
                Duration::ZERO
            },
            ..GOOD
        },
        "sleeps" => Habits { delay: |_| Duration::from_millis(20), ..GOOD },
        "takes no batches" => Habits { takes_batches: false, ..GOOD },
        "warms up" => Habits { hides_stats: |_| true, ..GOOD },
        _ => GOOD,
    };
    let listener = match kind.as_str() {
        "shares" => {
            let listener = sharing(address);
            std::fs::write(std::env::var("PORT_FILE").unwrap(), address.port().to_string())
                .unwrap();
            let go = format!("{}.go", std::env::var("PORT_FILE").unwrap());
            eventually("the other listener", || Path::new(&go).exists());
            listener
        }
        _ => listen(),
    };
    let _server = Fake::start_on(listener, habits);
    if kind == "prints" {
        let line = "words without end ".repeat(50);
        // Prints until a write fails.
        while writeln!(std::io::stderr(), "{line}").is_ok() {}
    }
    loop {
        std::thread::park();
    }
}

/// Returns a listener on a port that others may share.
fn sharing(address: SocketAddr) -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(64).unwrap();
    socket.into()
}

/// Returns the command of a server of this kind, after its name.
fn server(name: &str, kind: &str) -> String {
    format!("{name}={}", command(kind))
}

fn command(kind: &str) -> String {
    let program = std::env::current_exe().unwrap();
    let module =
        module_path!().split_once("::").map_or(String::new(), |(_, rest)| format!("{rest}::"));
    format!(
        "env '{KIND}={kind}' '{}' {module}a_server --exact --ignored --nocapture",
        program.display()
    )
}

/// Runs a challenge of servers, with logs in a directory.
fn challenge(logs: &Directory, arguments: &[&str]) -> Output {
    let mut command = ringtally();
    command.arg("challenge").args(arguments).arg("--quiet").env("TMPDIR", &logs.0);
    output_within(&mut command, Duration::from_secs(180))
}

/// Runs a challenge of one server with a small load. Returns the exit code, the report, and standard error.
fn judge(name: &str, server: &str, flags: &[&str]) -> (Option<i32>, Value, String) {
    let logs = Directory::new(&format!("referee-{name}"));
    let arguments = [&["2000", "8", "--json", "-", "--server", server], flags].concat();
    let output = challenge(&logs, &arguments);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), report, text(&output.stderr))
}

/// Returns the processes with an argument that contains this text.
fn processes_with(words: &str) -> Vec<i32> {
    let all = procfs::process::all_processes().unwrap().flatten();
    let is_it = |process: &procfs::process::Process| {
        let is_over = process.stat().map_or(true, |stat| stat.state == 'Z');
        let line = process.cmdline().unwrap_or_default();
        !is_over && line.iter().any(|argument| argument.contains(words))
    };
    all.filter(is_it).map(|process| process.pid).collect()
}

/// Returns an argument of `sleep` that is unique to its process.
fn unique_seconds(name: u32) -> String {
    format!("9{name}.{}", std::process::id())
}

#[test]
fn a_server_of_somebody_else_gets_the_report_of_our_own() {
    let (code, report, said) = judge("good", &command("good"), &[]);
    assert_eq!((code, &report["verdict"]), (Some(0), &"exact".into()), "{said}{report}");
    assert_eq!(report["format"], "ringtally-challenge/1");
    assert_eq!(report["acknowledged"], 2000);
    assert!(report["server_peak_rss_bytes"].as_u64().unwrap() > 0);
    assert!(["cgroup", "proc"].contains(&report["server_cpu_source"].as_str().unwrap()));
    assert_eq!(report["origin"]["server_command"][0], "env");
    let told = report["setup"]["command"].to_string();
    assert!(told.contains("--server") && told.contains("--start-timeout"), "{told}");
}

#[test]
fn a_server_that_loses_events_is_wrong_by_how_much() {
    let (code, report, said) = judge("loses", &server("loser", "loses"), &[]);
    assert_eq!((code, &report["verdict"]), (Some(1), &"wrong".into()), "{said}");
    assert_eq!(report["server"]["totalRequests"], 2000 - 40, "{report}");
}

#[test]
fn a_server_that_is_never_ready_is_given_up_with_its_last_words() {
    let server = "slow=sh -c 'echo still loading; exec sleep 600' {port}";
    let (code, _, said) = judge("never", server, &["--start-timeout", "1s"]);
    assert_eq!(code, Some(3), "{said}");
    for words in [
        "slow: neither /health nor /stats returned 200 within 1s",
        "and at last /stats failed: Connection refused",
        "slow.log: still loading",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let server = format!("warms-up={}", command("warms up"));
    let (code, _, said) = judge("warms-up", &server, &["--start-timeout", "1s"]);
    assert!(code == Some(3) && said.contains("and at last /stats returned 503: "), "{said}");
    let (code, _, said) = judge("deaf", "sleep 600", &["--start-timeout", "100ms"]);
    assert!(code == Some(3) && said.contains("write {port} into its command"), "{said}");
    assert!(said.contains("it did not write anything"), "{said}");
}

#[test]
fn a_command_that_cannot_run_or_ends_says_how() {
    let (code, _, said) = judge("absent", "./no/such/server {port}", &[]);
    assert!(code == Some(3) && said.contains("cannot be run: No such file"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let (code, _, said) = judge("ends", "sh -c 'echo port in use >&2; exit 9'", &[]);
    assert!(code == Some(3) && said.contains("ended with exit code 9"), "{said}");
    assert!(said.contains("sh.log: port in use"), "{said}");
    let (code, _, said) = judge("killed", "sh -c 'kill -KILL $$'", &[]);
    assert!(code == Some(3) && said.contains("ended with signal 9"), "{said}");
}

/// Nothing is measured if one of several commands cannot be run.
#[test]
fn a_typo_in_one_of_several_commands_is_found_before_anything_runs() {
    let logs = Directory::new("referee-typo");
    let servers = ["--server", "ringtally", "--server", "typo=./no/such/server {port}"];
    let output = challenge(&logs, &[&servers[..], &["--rows", "saturated"]].concat());
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("typo: the command cannot be run: No such file"), "{said}");
    assert!(!said.contains("round 1"), "{said}");
}

#[test]
fn a_server_that_dies_under_load_fails_the_run_and_is_quoted() {
    let (code, report, said) = judge("dies", &server("frail", "dies"), &["--timeout", "1s"]);
    assert_eq!(code, Some(1), "{said}{report}");
    assert!(said.contains("frail: it ended with exit code 7 while it was measured"), "{said}");
    assert!(said.contains("out of luck"), "{said}");
}

#[test]
fn what_a_server_starts_ends_with_it_wherever_it_fled() {
    let seconds = unique_seconds(1);
    let forks = format!(
        "forks=sh -c 'setsid sleep {seconds} & (setsid sh -c \"sleep {seconds} & wait\" &); exec {}'",
        command("good").replace('\'', "\"")
    );
    let (code, _, said) = judge("forks", &forks, &[]);
    // All of them got SIGTERM, and obeyed it.
    assert!(code == Some(0) && !said.contains("was killed"), "{said}");
    assert_eq!(processes_with(&seconds), Vec::<i32>::new());
}

#[test]
fn a_server_that_ignores_sigterm_is_killed_and_that_is_said() {
    let stubborn =
        format!("stubborn=sh -c 'trap \"\" TERM; exec {}'", command("good").replace('\'', "\""));
    let (code, report, said) = judge("stubborn", &stubborn, &[]);
    assert_eq!((code, &report["verdict"]), (Some(0), &"exact".into()), "{said}");
    assert!(said.contains("stubborn did not end within 5 s of SIGTERM, and was killed"), "{said}");
}

#[test]
fn a_server_that_prints_without_end_has_a_log_of_bounded_size() {
    let (code, report, said) = judge("prints", &server("loud", "prints"), &[]);
    assert_eq!((code, &report["verdict"]), (Some(0), &"exact".into()), "{said}");
    // A log that is named in an error is kept.
    let logs = Directory::new("referee-loud");
    let server = "loud=sh -c 'while :; do echo many words; done'";
    let output = challenge(&logs, &["9", "1", "--server", server, "--start-timeout", "1500ms"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("many words"), "{}", text(&output.stderr));
    let folder = std::fs::read_dir(&logs.0).unwrap().next().unwrap().unwrap().path();
    let size = std::fs::metadata(folder.join("loud.log")).unwrap().len();
    assert!(size > 0 && size <= (1 << 20) + (1 << 16) + 64, "{size}");
}

/// A killed challenge cannot end its server, so the server's keeper does.
#[test]
fn nothing_outlives_a_challenge_that_is_killed() {
    let logs = Directory::new("referee-killed-challenge");
    let seconds = unique_seconds(2);
    let server = format!(
        "kept=sh -c 'setsid sleep {seconds} & exec {}'",
        command("good").replace('\'', "\"")
    );
    let mut challenge = ringtally()
        .args(["challenge", "--duration", "60s", "-c", "4", "--quiet", "--server", &server])
        .env("TMPDIR", &logs.0)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the server runs", || !processes_with(&seconds).is_empty());
    challenge.kill().unwrap();
    challenge.wait().unwrap();
    eventually("its processes end", || processes_with(&seconds).is_empty());
}

/// This holds without a cgroup, too, because the keeper adopts processes that lose their parents.
#[test]
fn a_keeper_without_a_cgroup_ends_everything_when_nobody_listens() {
    let logs = Directory::new("referee-keeper");
    let seconds = unique_seconds(3);
    let script =
        format!("(setsid sh -c 'sleep {seconds} & sleep {seconds}' &); exec sleep {seconds}");
    let mut keeper = ringtally()
        .args([
            "keep",
            "--cpus",
            &first_cpu(),
            "--stop-timeout",
            "1s",
            "--log",
            &logs.file("log"),
            "--",
        ])
        .args(["sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(keeper.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().starts_with("pid "));
    eventually("all three run", || processes_with(&seconds).len() >= 3);
    drop(keeper.stdin.take());
    assert!(lines.any(|line| line == "stopped killed"));
    assert!(keeper.wait().unwrap().success());
    assert_eq!(processes_with(&seconds), Vec::<i32>::new());
}

fn first_cpu() -> String {
    ringtally::topology::allowed_cpus()[0].to_string()
}

#[test]
fn a_port_that_somebody_else_has_is_no_server_of_the_command() {
    let logs = Directory::new("referee-port");
    let file = logs.file("port");
    let server = format!("hidden=sh -c 'echo {{port}} > {file}; exec sleep 600'");
    let challenge = start(&logs, &server);
    let port = read_port(&file);
    let _other = Fake::start_on(TcpListener::bind(("127.0.0.1", port)).unwrap(), GOOD);
    let output = challenge.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert!(
        output.status.code() == Some(3) && said.contains("was not started by the command"),
        "{said}"
    );
}

#[test]
fn a_second_listener_on_the_port_is_found() {
    let logs = Directory::new("referee-second");
    let file = logs.file("port");
    let server = format!("shared=env PORT_FILE={file} {}", command("shares"));
    let challenge = start(&logs, &server);
    let _other = sharing(([127, 0, 0, 1], read_port(&file)).into());
    std::fs::write(format!("{file}.go"), "").unwrap();
    let output = challenge.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert!(
        output.status.code() == Some(3) && said.contains("another process listens on its port"),
        "{said}"
    );
}

fn start(logs: &Directory, server: &str) -> std::process::Child {
    ringtally()
        .args(["challenge", "9", "1", "--quiet", "--server", server])
        .env("TMPDIR", &logs.0)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn read_port(file: &str) -> u16 {
    let read = || std::fs::read_to_string(file).ok()?.trim().parse().ok();
    eventually("the port is known", || read().is_some());
    read().unwrap()
}

#[test]
fn servers_are_compared_row_by_row_and_the_wrong_one_is_not_ranked() {
    let logs = Directory::new("referee-several");
    let file = |name: &str| logs.file(name);
    let html = file("page.html");
    let [junit, csv, bmf] = ["junit", "csv", "bmf"].map(|form| format!("{form}={}", file(form)));
    let [good, loses] =
        ["takes no batches", "loses"].map(|kind| server(&kind.replace(' ', "-"), kind));
    let output = challenge(
        &logs,
        &[
            "--server",
            &good,
            "--server",
            &loses,
            "--server",
            "ringtally",
            "--rounds",
            "1",
            "--duration",
            "150ms",
            "-c",
            "4",
            "--rows",
            "saturated,rate:1000,close,pipeline:4,batch:10,stats",
            "--json",
            "-",
            "--html",
            &html,
            "--export",
            &junit,
            "--export",
            &csv,
            "--export",
            &bmf,
        ],
    );
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["format"], "ringtally-servers/1");
    let in_row = |row: usize, server: u64| {
        let servers = found["rows"][row]["servers"].as_array().unwrap();
        servers.iter().find(|one| one["server"] == server).unwrap()
    };
    // The first two servers keep connections that they are asked to close, so row 2 is not in this list.
    for row in [0, 1, 3, 4, 5] {
        let wrong = in_row(row, 1);
        assert_eq!(
            (&wrong["verdict"], &wrong["rank"]),
            (&"wrong".into(), &Value::Null),
            "{row}: {wrong}"
        );
        assert!(!wrong["why"].as_str().unwrap().is_empty());
    }
    for row in [0, 2, 3, 4, 5] {
        assert_eq!(in_row(row, 2)["verdict"], "exact", "{row}: {}", in_row(row, 2));
    }
    // A run on a busy machine may be void because it did not saturate the server.
    let keeps = |server| in_row(2, server)["why"].to_string().contains("closes connections");
    assert!(keeps(0) && !keeps(2), "{} {}", in_row(2, 0), in_row(2, 2));
    assert_eq!(in_row(2, 0)["void_runs"], 1);
    // This server does not take batches.
    assert_eq!(in_row(4, 0)["void_runs"], 1);
    assert!(in_row(4, 0)["why"].as_str().unwrap().contains("takes no batches"), "{}", in_row(4, 0));
    assert!(found["servers"][2]["start_up_ms"]["median"].as_f64().unwrap() > 0.0);
    assert!(found["loopback_mtu"].as_u64().unwrap() >= 576);
    assert_eq!(found["runs"].as_array().unwrap().len(), 3 * 6);
    assert!(found["runs"][5]["stats_responses"].as_u64().is_some());
    assert!(said.contains("loses in saturated is wrong: "), "{said}");
    let read = |name: &str| std::fs::read_to_string(file(name)).unwrap();
    assert!(read("page.html").contains("a connection per request"));
    assert!(read("junit").contains("loses in saturated is wrong"));
    assert_eq!(read("csv").lines().count(), 1 + 3 * 6);
    assert!(read("bmf").contains("ringtally challenge: ringtally in saturated"));
}

#[test]
fn a_share_of_the_capacity_and_the_first_responses_after_pauses_are_rows() {
    let logs = Directory::new("referee-pause");
    let flags = ["--server", "ringtally", "--rows", "near:50,pause", "--rounds", "1"];
    let output = challenge(&logs, &[&flags[..], &["--duration", "300ms", "--json", "-"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [near, pause] = [0, 1].map(|row: usize| &found["rows"][row]["servers"][0]);
    assert!(pause["p99_us"]["median"].as_f64().unwrap() > 0.0, "{pause}");
    let capacity = found["servers"][0]["capacity_per_s"].as_f64().unwrap();
    // A run on a busy machine may be void, because it did not send what was due.
    if near["void_runs"] == 0 {
        let share = near["requests_per_s"]["median"].as_f64().unwrap() / capacity;
        assert!((0.4..0.6).contains(&share), "{near} of {capacity}");
    }
}

#[test]
fn a_server_that_fails_leaves_the_comparison_and_the_others_go_on() {
    let logs = Directory::new("referee-fails");
    let arguments = [
        "--server",
        "gone=sh -c 'echo no luck; exit 4'",
        "--server",
        "ringtally",
        "--rounds",
        "2",
        "--rows",
        "saturated",
        "--duration",
        "200ms",
        "-c",
        "4",
        "--json",
        "-",
    ];
    let output = challenge(&logs, &arguments);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let why = found["servers"][0]["failure"].as_str().unwrap();
    assert!(why.contains("exit code 4") && why.contains("no luck"), "{why}");
    assert_eq!(found["runs"].as_array().unwrap().len(), 2);
    // No server is left.
    let output = challenge(&logs, &[&arguments[..2], &arguments[4..]].concat());
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
}

/// The server sleeps before each response, so its CPU does not limit the run.
#[test]
fn a_run_that_nothing_saturates_is_void() {
    let logs = Directory::new("referee-idle");
    let server = server("idle", "sleeps");
    let output = challenge(
        &logs,
        &[
            "--server",
            &server,
            "--rows",
            "saturated",
            "--rounds",
            "1",
            "--duration",
            "500ms",
            "-c",
            "2",
            "--json",
            "-",
        ],
    );
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let one = &found["rows"][0]["servers"][0];
    // On a busy machine, the client may be too slow.
    let is_client = one["limit"] == "client";
    assert!(is_client || (one["void_runs"] == 1 && one["rank"].is_null()), "{one}");
    let why = one["why"].as_str().unwrap_or_default();
    assert!(is_client || why.starts_with("not saturated: "), "{one}");
}

#[test]
fn flags_that_do_not_go_together_are_refused_with_what_to_use() {
    for (flags, says) in [
        (&["--server", ""][..], "there is no command"),
        (&["--server", "a | b"], "write sh -c"),
        (&["--server", "./a", "--server", "b/a"], "two servers have the name a"),
        (&["--rows", "saturated"], "--server"),
        (&["--server", "a", "--rows", "fast"], "use saturated, rate:N"),
        (&["--server", "a", "--rounds", "0"], "from 1 to 1000"),
        (&["--server", "a", "--rounds", "1001"], "from 1 to 1000"),
        (&["--server", "a", "--rounds", "1", "--rate", "5"], "use --rows rate:N"),
        (&["--server", "a", "--rounds", "1", "--batch", "5"], "use --rows batch:N"),
        (&["--connections", "256", "--server", "a", "--rows", "batch:150000"], "in flight at once"),
        (&["--server", "a", "--rounds", "1", "--hdr", "x"], "are for one run"),
        (&["--server", "a", "--rounds", "1", "--fail-if", "rps<1"], "--fail-if and --abort-if"),
        (&["--server", "ringtally --store=a.redb"], "pass --store as a flag of challenge"),
        (&["--mtu", "575"], "from 576 to 65536"),
        (&["--mtu", "65537"], "from 576 to 65536"),
        (&["--server", "a", "--start-timeout", "0s"], "a time from 1ms"),
    ] {
        let output = run(&[&["challenge"], flags].concat());
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(says), "{flags:?}: {said}");
    }
    for (servers, code) in [(64, 3), (65, 2)] {
        let named: Vec<String> =
            (0..servers).map(|n| format!("--server=s{n}=./none/{n}")).collect();
        let named: Vec<&str> = named.iter().map(String::as_str).collect();
        let output = run(&[&["challenge", "--quiet"], &named[..]].concat());
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
    }
}

#[test]
fn a_namespace_has_the_mtu_that_was_asked_for_or_says_what_it_needs() {
    let arguments = [
        "challenge",
        "500",
        "2",
        "--quiet",
        "--json",
        "-",
        "--mtu",
        "1500",
        "--server",
        "ringtally",
    ];
    let output = run(&[&arguments[..], &["--rounds", "1", "--rows", "saturated"]].concat());
    let said = text(&output.stderr);
    if output.status.code() == Some(3) {
        assert!(said.contains("--mtu 1500 needs a network namespace"), "{said}");
        return;
    }
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
    assert_eq!(found["loopback_mtu"], 1500);
}

/// Ctrl-C ends a comparison, which then reports the results so far.
#[test]
fn an_interrupted_comparison_reports_what_it_has() {
    let logs = Directory::new("referee-interrupted");
    let json = logs.file("json");
    let mut challenge = ringtally()
        .args([
            "challenge",
            "--server",
            "ringtally",
            "--rows",
            "saturated",
            "--rounds",
            "9",
            "-c",
            "4",
        ])
        .args(["--duration", "60s", "--json", &json])
        .env("TMPDIR", &logs.0)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(challenge.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("ringtally: saturated")));
    // The run begins some time after its name is printed. A signal at any other time ends the challenge immediately.
    let pid = Pid::from_raw(i32::try_from(challenge.id()).unwrap()).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    kill_process(pid, Signal::INT).unwrap();
    let code = challenge.wait().unwrap().code();
    if code == Some(130) {
        return;
    }
    assert_eq!(code, Some(1));
    let found: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(found["interrupted"], true);
}
