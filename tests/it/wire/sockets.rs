//! `ringtally serve` on real sockets: the promises of `/stats` under load, the stop, the limits, and every way that it refuses
//! to start.

use crate::world::{Client, PATIENCE, Server, Totals, eventually, post, ringtally, run, text};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const EIGHT_SHARDS: [&str; 2] = ["--shards", "8"];

/// Counts over many connections while readers on their own connections check every response.
fn read_during_load(user: impl Fn(usize, u64) -> String + Sync, check: impl Fn(&Totals) + Sync) {
    const CONNECTIONS: usize = 24;
    const EVENTS: u64 = 1500;
    let server = Server::start(&EIGHT_SHARDS);
    let acknowledged = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = server.client();
                let mut last = 0;
                while !done.load(Ordering::Acquire) {
                    let before = acknowledged.load(Ordering::Acquire);
                    let stats = client.stats();
                    check(&stats);
                    assert_eq!(stats.sum, stats.total as f64);
                    assert_eq!(stats.avg, if stats.total == 0 { 0.0 } else { 1.0 });
                    assert!(stats.total >= last, "{} after {last}", stats.total);
                    assert!(stats.total >= before, "{} of {before} acknowledged", stats.total);
                    last = stats.total;
                }
            });
        }
        let counting: Vec<_> = (0..CONNECTIONS)
            .map(|connection| {
                let (server, user, acknowledged) = (&server, &user, &acknowledged);
                scope.spawn(move || {
                    let mut client = server.client();
                    for i in 0..EVENTS {
                        client.event(&user(connection, i), 1.0);
                        acknowledged.fetch_add(1, Ordering::Release);
                    }
                })
            })
            .collect();
        counting.into_iter().for_each(|thread| thread.join().unwrap());
        done.store(true, Ordering::Release);
    });
    assert_eq!(server.stop().total, CONNECTIONS as u64 * EVENTS);
}

#[test]
fn no_response_is_torn_on_eight_shards() {
    read_during_load(|_, i| format!("user_{}", i % 10), |stats| assert!(stats.users <= 10));
}

#[test]
fn a_response_with_a_new_users_event_counts_the_user() {
    read_during_load(
        |connection, i| format!("user_{connection}_{i}"),
        |stats| assert_eq!(stats.users, stats.total),
    );
}

#[test]
fn a_reset_under_load_is_one_point_in_time() {
    const SENT: u64 = 1;
    const RETURNED: u64 = 2;
    let server = Server::start(&EIGHT_SHARDS);
    let reset = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    let (mut around, mut after) = (0u64, 0u64);
    std::thread::scope(|scope| {
        let counting: Vec<_> = (0..16)
            .map(|connection| {
                let (server, reset, done) = (&server, &reset, &done);
                scope.spawn(move || {
                    let mut client = server.client();
                    // Events that overlap the reset, and events sent after it returned.
                    let (mut around, mut after) = (0u64, 0u64);
                    while !done.load(Ordering::Acquire) {
                        let before = reset.load(Ordering::Acquire);
                        client.event(&format!("user_{connection}"), 1.0);
                        match (before, reset.load(Ordering::Acquire)) {
                            (RETURNED, _) => after += 1,
                            (_, SENT..) => around += 1,
                            _ => {}
                        }
                    }
                    (around, after)
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(100));
        let mut client = server.client();
        reset.store(SENT, Ordering::Release);
        assert_eq!(client.post("/reset", "").status, 200);
        reset.store(RETURNED, Ordering::Release);
        std::thread::sleep(Duration::from_millis(100));
        done.store(true, Ordering::Release);
        for thread in counting {
            let ends = thread.join().unwrap();
            around += ends.0;
            after += ends.1;
        }
    });
    let stats = server.stop();
    assert!(after > 0 && (after..=after + around).contains(&stats.total), "{stats:?} {after}");
    assert_eq!((stats.sum, stats.users), (stats.total as f64, 16));
}

#[test]
fn seventy_five_thousand_users_are_counted_once_over_eight_shards() {
    const USERS: usize = 75_000;
    const CONNECTIONS: usize = 24;
    let server = Server::start(&EIGHT_SHARDS);
    // There are enough connections that every shard has some. Each sends every user, pipelined.
    std::thread::scope(|scope| {
        for connection in 0..CONNECTIONS {
            let server = &server;
            scope.spawn(move || {
                let mut client = server.client();
                for start in (0..USERS).step_by(250) {
                    let first = (start + connection * 3000) % USERS;
                    let batch: String = (first..first + 250)
                        .map(|user| {
                            post("/event", &format!(r#"{{"userId":"user_{user}","value":0.5}}"#))
                        })
                        .collect();
                    client.send(batch.as_bytes());
                    (0..250).for_each(|_| assert_eq!(client.read().status, 200));
                }
            });
        }
    });
    let stats = server.stop();
    let total = (CONNECTIONS * USERS) as u64;
    assert_eq!(stats, Totals { total, users: USERS as u64, sum: total as f64 / 2.0, avg: 0.5 });
}

#[test]
fn a_full_server_logs_it_once() {
    let server = Server::start(&["--max-connections", "2"]);
    let held: Vec<_> = (0..2)
        .map(|_| {
            let mut client = server.client();
            client.event("u", 1.0);
            client
        })
        .collect();
    for _ in 0..5 {
        assert_eq!(server.client().read().status, 503);
    }
    drop(held);
    server.signal(Signal::TERM);
    let (code, _, log) = server.wait_with_log();
    assert_eq!(code, Some(0));
    let said =
        log.matches("refused 1 connection: all 2 are in use: raise --max-connections").count();
    assert_eq!(said, 1, "{log}");
}

/// A polling shard checks the clock, too, even when its idle timer fires while it polls.
#[test]
fn a_polling_shard_times_out_idle_connections() {
    for spin_us in ["0", "auto", "20000"] {
        let server = Server::start(&["--spin-us", spin_us, "--idle-timeout", "500ms"]);
        let mut clients: Vec<_> = (0..3).map(|_| server.client()).collect();
        clients.iter_mut().for_each(|client| client.event("u", 1.0));
        let start = Instant::now();
        assert!(clients.iter_mut().all(Client::is_closed), "{spin_us}");
        assert!(start.elapsed() < Duration::from_secs(4), "{spin_us}: {:?}", start.elapsed());
    }
}

/// The time of a shard that slept is the time when it wakes, not when it fell asleep.
#[test]
fn a_request_after_a_pause_has_its_whole_time() {
    let server = Server::start(&["--header-timeout", "1s", "--shards", "1"]);
    let mut client = server.client();
    for _ in 0..3 {
        client.event("u", 1.0);
        std::thread::sleep(Duration::from_millis(1200));
        client.send(b"GET /health HTTP/1.1\r\n");
        std::thread::sleep(Duration::from_millis(150));
        client.send(b"Host: h\r\n\r\n");
        assert_eq!(client.read().status, 200);
    }
}

#[test]
fn slow_clients_time_out() {
    let flags = ["--header-timeout", "300ms", "--body-timeout", "300ms", "--idle-timeout", "600ms"];
    let server = Server::start(&flags);
    let start = Instant::now();
    let mut silent = server.client();
    let mut head = server.client();
    let mut body = server.client();
    body.send(b"POST /event HTTP/1.1\r\nHost: h\r\nContent-Length: 24\r\n\r\n");
    // Sending a byte at a time does not extend the deadline.
    for byte in b"GET /stats HTTP/1.1\r\nHost: hhhhhhhhh" {
        if head.stream.write_all(&[*byte]).is_err() || start.elapsed() > Duration::from_secs(1) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(head.read().status, 408);
    assert_eq!(body.read().status, 408);
    assert!(silent.is_closed());
    assert!(start.elapsed() >= Duration::from_millis(500));
    assert_eq!(server.stats().total, 0);
}

/// Most of the body is taken from the socket without a buffer in between.
#[test]
fn a_large_batch_that_stalls_times_out_and_one_whose_client_leaves_is_closed() {
    let server = Server::start(&["--body-timeout", "1s"]);
    let head = b"POST /events HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n";
    for arrived in [1, 4_000, 60_000] {
        let begun = [&head[..], &vec![b'\n'; arrived]].concat();
        let mut stalled = server.client();
        stalled.send(&begun);
        let mut leaves = server.client();
        leaves.send(&begun);
        leaves.stream.shutdown(Shutdown::Write).unwrap();
        assert!(leaves.is_closed(), "{arrived} bytes, and the end");
        assert_eq!(stalled.read().status, 408, "{arrived} bytes");
    }
    let mut whole = server.client();
    whole.send(&[&head[..], &vec![b'\n'; 100_000]].concat());
    assert_eq!(whole.read().body, r#"{"accepted":0}"#);
}

#[test]
fn one_connection_over_the_limit_gets_503_and_no_other_is_affected() {
    let server = Server::start(&["--max-connections", "3", "--shards", "2"]);
    let mut clients: Vec<Client> = (0..3).map(|_| server.client()).collect();
    clients.iter_mut().for_each(|client| client.event("u", 1.0));
    let mut over = server.client();
    // Bytes on their way must not turn the response into a reset.
    over.send(post("/event", r#"{"userId":"u","value":1}"#).as_bytes());
    let response = over.read();
    assert_eq!((response.status, response.field("connection")), (503, Some("close")));
    assert_eq!(response.field("retry-after"), Some("1"));
    assert!(over.is_closed());
    clients.iter_mut().for_each(|client| client.event("u", 1.0));
    clients.pop();
    eventually("a place is free again", || {
        let mut client = server.client();
        client.send(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n");
        client.try_read().is_some_and(|response| response.status == 200)
    });
    drop(clients);
    assert_eq!(server.stop().total, 6);
}

#[test]
fn each_of_many_connections_over_the_limit_gets_its_503() {
    let server = Server::start(&["--max-connections", "2"]);
    let mut clients: Vec<Client> = (0..2).map(|_| server.client()).collect();
    clients.iter_mut().for_each(|client| client.event("u", 1.0));
    // All of these are open at the same time.
    let mut over: Vec<Client> = (0..300).map(|_| server.client()).collect();
    for client in &mut over {
        client.send(post("/event", r#"{"userId":"u","value":1}"#).as_bytes());
    }
    assert!(over.iter_mut().all(|client| client.read().status == 503));
    clients.iter_mut().for_each(|client| client.event("u", 1.0));
    drop(over);
    assert_eq!(server.stop().total, 4);
}

#[test]
fn a_server_without_memory_for_batches_refuses_them_and_goes_on() {
    let server = Server::start(&["--shards", "1"]);
    let mut client = server.client();
    client.event("u", 1.0);
    // There is room for some batches of unknown length. Each takes as much as any batch may.
    let limit = server.status_kib("VmSize:") * 1024 + (40 << 20);
    let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap());
    let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
    prlimit(pid, Resource::As, limit).unwrap();
    let head = "POST /events HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut batches: Vec<Client> = (0..20).map(|_| server.client()).collect();
    batches.iter_mut().for_each(|batch| batch.send(head.as_bytes()));
    let rest = "19\r\n{\"userId\":\"u\",\"value\":1}\n\r\n0\r\n\r\n";
    batches.iter_mut().for_each(|batch| batch.send(rest.as_bytes()));
    let statuses: Vec<u16> = batches.iter_mut().map(|batch| batch.read().status).collect();
    let counted = statuses.iter().filter(|status| **status == 200).count() as u64;
    let refused = statuses.iter().filter(|status| **status == 503).count() as u64;
    assert_eq!(counted + refused, 20, "{statuses:?}");
    assert!(refused > 0, "{statuses:?}");
    client.event("u", 1.0);
    drop(batches);
    assert_eq!(server.stop().total, counted + 2);
}

/// The lines of unseen users take memory only for the body, and that is reserved.
#[test]
fn a_batch_of_new_users_takes_the_memory_that_is_reserved_for_it() {
    const BATCHES: usize = 4;
    let server = Server::start(&["--shards", "1"]);
    server.client().event("u", 1.0);
    let before = server.status_kib("VmHWM:");
    let mut body: String =
        (0..250_000u32).map(|user| format!("{{\"userId\":\"{user:x}\",\"value\":1}}\n")).collect();
    // The last line is refused, so in the end none of the users is held.
    body.push('?');
    let request = post("/events", &body);
    let (first, last) = request.as_bytes().split_at(request.len() - 1);
    let mut clients: Vec<Client> = (0..BATCHES).map(|_| server.client()).collect();
    clients.iter_mut().for_each(|client| client.send(first));
    clients.iter_mut().for_each(|client| client.send(last));
    assert!(clients.iter_mut().all(|client| client.read().status == 400));
    let grown = (server.status_kib("VmHWM:") - before) * 1024;
    let reserved = (BATCHES * body.len()) as u64;
    assert!(grown < reserved + reserved / 5 + (4 << 20), "{grown} bytes for {reserved}");
    assert_eq!(server.stop().total, 1);
}

/// A shard checks its connections from time to time, including connections that got a response before their body arrived.
#[test]
fn a_client_that_keeps_a_refused_connection_open_harms_nobody() {
    let server = Server::start(&["--shards", "1"]);
    let refused = [
        "POST /nope HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n".to_owned(),
        "PUT /event HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n".into(),
        format!(
            "POST /nope HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n8000\r\n{}",
            "x".repeat(0x8000)
        ),
        "POST /event HTTP/1.1\r\nHost: h\r\nContent-Length: 99\r\nContent-Encoding: gzip\r\n\r\nx".into(),
        "GET /stats HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nx".into(),
    ];
    let mut clients: Vec<Client> = refused.iter().map(|_| server.client()).collect();
    for (client, request) in clients.iter_mut().zip(&refused) {
        client.send(request.as_bytes());
    }
    // This is longer than two checks of all connections.
    std::thread::sleep(Duration::from_millis(300));
    server.client().event("u", 1.0);
    drop(clients);
    assert_eq!(server.stop().total, 1);
}

#[test]
fn a_body_of_megabytes_is_received_and_a_stop_ends_it() {
    let server = Server::start(&["--shards", "1", "--max-body", "8388608"]);
    let body = |bytes| format!(r#"{{"userId":"u","value":1,"x":"{}"}}"#, "y".repeat(bytes));
    let mut client = server.client();
    for bytes in [1_000_000, 1_300_000, 4_000_000] {
        assert_eq!(client.post("/event", &body(bytes)).status, 200, "{bytes}");
    }
    // A part of another event has arrived when the server is signaled to stop.
    client.send(&post("/event", &body(4_000_000)).as_bytes()[..3_000_000]);
    assert_eq!(server.stop().total, 3);
}

#[test]
fn a_response_reaches_a_client_that_is_still_sending() {
    let server = Server::start(&[]);
    let body = vec![b'x'; 1 << 20];
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                let mut client = server.client();
                let head = format!(
                    "POST /event HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                client.send(head.as_bytes());
                client.send(&body);
                assert_eq!(client.read().status, 413);
            });
        }
    });
}

#[test]
fn a_half_closed_client_gets_its_responses() {
    let server = Server::start(&[]);
    let mut client = server.client();
    client.send(post("/event", r#"{"userId":"u","value":1}"#).repeat(100).as_bytes());
    client.stream.shutdown(Shutdown::Write).unwrap();
    (0..100).for_each(|_| assert_eq!(client.read().status, 200));
    assert!(client.is_closed());
    assert_eq!(server.stop().total, 100);
}

#[test]
fn a_client_that_never_reads_is_held_back_and_slows_no_other() {
    let server = Server::start(&["--cpus", &first_cpu()]);
    let mut greedy = server.client();
    greedy.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let many = "GET /stats HTTP/1.1\r\nHost: h\r\n\r\n".repeat(1000);
    // Writes until the server takes no more.
    let taken =
        (0..10_000).take_while(|_| greedy.stream.write_all(many.as_bytes()).is_ok()).count();
    assert!(taken < 10_000, "it took everything");
    server.client().event("u", 1.0);
    let peak = server.status_kib("VmHWM:");
    assert!(peak < 40 * 1024, "{peak} KiB");
    drop(greedy);
    assert_eq!(server.stop().total, 1);
}

#[test]
fn connection_storms_leak_no_descriptor() {
    let server = Server::start(&EIGHT_SHARDS);
    server.client().event("u", 1.0);
    eventually("the first client is gone", || server.descriptors() > 0);
    let before = server.descriptors();
    for round in 0..300 {
        let socket = TcpStream::connect(server.address).unwrap();
        let mut socket = socket2::Socket::from(socket);
        match round % 3 {
            0 => {}
            1 => socket.write_all(b"POST /event HTTP/1.1\r\nHost: h\r\nContent-Le").unwrap(),
            _ => {
                socket.write_all(post("/event", r#"{"userId":"u","value":1}"#).as_bytes()).unwrap();
            }
        }
        // Half of them end with a reset.
        if round % 2 == 0 {
            socket.set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
    eventually("every descriptor is closed", || server.descriptors() <= before);
    server.client().event("u", 1.0);
}

#[test]
fn a_server_out_of_descriptors_recovers() {
    // There is room for 32 connections, and for some that are rejected.
    let server = Server::start_command(with_limit(
        "ulimit -n 120",
        &["serve", "--port", "0", "--shards", "1"],
    ));
    let mut clients = Vec::new();
    for _ in 0..200 {
        clients.push(TcpStream::connect(server.address).unwrap());
    }
    std::thread::sleep(Duration::from_millis(100));
    drop(clients);
    eventually("it serves again", || {
        let mut client = server.client();
        client.send(post("/event", r#"{"userId":"u","value":1}"#).as_bytes());
        client.try_read().is_some_and(|response| response.status == 200)
    });
}

#[test]
fn the_user_over_the_limit_gets_507_on_any_shard() {
    let server = Server::start(&["--shards", "4", "--max-users", "2"]);
    let mut clients: Vec<Client> = (0..8).map(|_| server.client()).collect();
    clients[0].event("a", 1.0);
    clients[1].event("b", 1.0);
    for client in &mut clients {
        assert_eq!(client.post("/event", r#"{"userId":"c","value":1}"#).status, 507);
        client.event("a", 1.0);
    }
    let stats = server.stop();
    assert_eq!((stats.total, stats.users), (10, 2));
}

#[test]
fn the_sum_is_exact_over_shards_and_beyond_the_largest_float() {
    let server = Server::start(&EIGHT_SHARDS);
    let values = [1e308, 1e-308, 1e308, -1e308, 0.1, -1e308, -0.1];
    for (i, value) in values.iter().enumerate() {
        server.client().event(&format!("{i}"), *value);
    }
    assert_eq!(server.stats().sum, 1e-308);
    for _ in 0..4 {
        server.client().event("big", f64::MAX);
    }
    let response = server.client().get("/stats").body;
    assert!(
        response.contains(r#""sum":1.7976931348623157e+308,"#) || response.contains("e308,"),
        "{response}"
    );
    assert_eq!(Totals::parse(&response).sum, f64::MAX);
    for _ in 0..4 {
        server.client().event("big", f64::MIN);
    }
    assert_eq!(server.stop().sum, 1e-308);
}

#[test]
fn the_ready_line_names_address_shards_and_engine() {
    let server = Server::start(&["--cpus", &first_cpu(), "--shards", "3"]);
    let expected = format!(
        "listening on http://{} (3 shards on CPU {}; engine {})",
        server.address,
        first_cpu(),
        crate::world::engine()
    );
    assert_eq!(server.ready_line, expected);
    assert_ne!(server.address.port(), 0);
    let json = Server::start(&["--log", "json", "--host", "::1"]);
    let line: serde_json::Value = serde_json::from_str(&json.ready_line).unwrap();
    assert!(line["message"].as_str().unwrap().starts_with("listening on http://[::1]:"), "{line}");
    assert!(json.address.is_ipv6());
    json.client().event("u", 1.0);
}

fn first_cpu() -> String {
    ringtally::topology::allowed_cpus()[0].to_string()
}

#[test]
fn the_affinity_mask_is_respected() {
    let allowed = ringtally::topology::allowed_cpus();
    let cpu = allowed[allowed.len() - 1];
    // A child inherits the mask of the thread that starts it.
    std::thread::spawn(move || {
        assert!(ringtally::topology::pin_to(cpu));
        let server = Server::start(&["--shards", "2"]);
        assert!(
            server.ready_line.contains(&format!("(2 shards on CPU {cpu};")),
            "{}",
            server.ready_line
        );
        for task in std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap() {
            let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let list =
                status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
            assert_eq!(list.trim(), cpu.to_string());
        }
        let outside = if cpu == 0 { 1 } else { cpu - 1 }.to_string();
        let refused = run(&["serve", "--port", "0", "--cpus", &outside]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(text(&refused.stderr).contains("outside the affinity mask"), "{refused:?}");
    })
    .join()
    .unwrap();
}

/// Returns a command under a limit that a shell sets.
fn with_limit(limit: &str, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args([
        "-c",
        &format!("{limit} && exec \"$0\" \"$@\""),
        ringtally().get_program().to_str().unwrap(),
    ]);
    command.args(args);
    command
}

/// Runs a command that is refused. Returns its exit code and its error.
fn refusal(command: &mut Command) -> (Option<i32>, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.stdout.is_empty() && !said.contains("panicked"), "{said}");
    (output.status.code(), said)
}

fn serve(flags: &[&str]) -> (Option<i32>, String) {
    let (code, said) = refusal(ringtally().arg("serve").args(flags));
    assert!(code != Some(3) || said.lines().count() == 1, "one sentence: {said}");
    (code, said)
}

#[test]
fn a_port_in_use_is_refused_even_if_another_ringtally_has_it() {
    let other = Server::start(&[]);
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    for port in [other.address.port(), plain.local_addr().unwrap().port()] {
        let (code, said) = serve(&["--port", &port.to_string()]);
        assert_eq!(code, Some(3), "{said}");
        let expected = format!("error: port {port} is in use: stop the process that uses it");
        assert!(said.starts_with(&expected) && said.contains("--port"), "{said}");
    }
    // The existing server has not noticed anything.
    other.client().event("u", 1.0);
    assert_eq!(other.stop().total, 1);
}

#[test]
fn wrong_flags_are_refused_with_their_name() {
    for flags in [
        &["--cpus", "x"][..],
        &["--cpus", "1023"],
        &["--shards", "0"],
        &["--shards", "1025"],
        &["--port", "65536"],
        &["--host", "nowhere"],
        &["--dialect", "other"],
        &["--engine", "other"],
        &["--spin-us", "fast"],
        &["--spin-us", "1000001"],
        &["--coalesce-us", "10001"],
        &["--coalesce-us", "1", "--spin-us", "1"],
        &["--max-connections", "0"],
        &["--max-body", "0"],
        &["--max-users", "0"],
        &["--idle-timeout", "0s"],
        &["--idle-timeout", "25h"],
        &["--header-timeout", "10"],
        &["--admin-token-file", "/nonexistent"],
        &["--unknown"],
    ] {
        let (code, said) = serve(flags);
        assert_eq!(code, Some(2), "{flags:?}: {said}");
        assert!(said.contains(flags[0]) || said.contains("CPU 1023"), "{flags:?}: {said}");
    }
}

#[test]
fn coalescing_is_refused_where_it_cannot_be() {
    let (code, said) = serve(&["--coalesce-us", "50", "--engine", "streams", "--port", "0"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("--coalesce-us needs the ring engine"), "{said}");
}

#[test]
fn an_address_of_no_interface_is_refused() {
    // TEST-NET-1, RFC 5737.
    let (code, said) = serve(&["--host", "192.0.2.1", "--port", "0"]);
    assert_eq!(code, Some(3));
    assert!(said.contains("--host"), "{said}");
}

#[test]
fn too_few_descriptors_are_refused_and_the_soft_limit_is_raised() {
    let (code, said) =
        refusal(&mut with_limit("ulimit -n 80", &["serve", "--port", "0", "--shards", "1"]));
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("ulimit -n"), "{said}");
    let flags = ["serve", "--port", "0", "--shards", "1", "--max-connections", "13"];
    let (code, said) = refusal(&mut with_limit("ulimit -n 100", &flags));
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("--max-connections"), "{said}");
    // One connection less fits.
    let flags = ["serve", "--port", "0", "--shards", "1", "--max-connections", "12"];
    Server::start_command(with_limit("ulimit -n 100", &flags)).stop();
    let server = Server::start_command(with_limit("ulimit -Sn 50", &["serve", "--port", "0"]));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let open_files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let columns: Vec<&str> = open_files.split_whitespace().collect();
    assert_eq!(columns[3], columns[4], "soft and hard: {open_files}");
}

#[test]
fn a_blocked_io_uring_is_reported_with_its_cause() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
    const SYS_IO_URING_SETUP: i64 = 425;
    let server = Server::start(&[]);
    let url = format!("http://{}", server.address);
    for error in [1, 38] {
        let url = url.clone();
        // The filter applies to the thread and to the processes that it starts.
        let (served, loaded) = std::thread::spawn(move || {
            let filter = SeccompFilter::new(
                BTreeMap::from([(SYS_IO_URING_SETUP, vec![])]),
                SeccompAction::Allow,
                SeccompAction::Errno(error),
                std::env::consts::ARCH.try_into().unwrap(),
            );
            apply_filter(&BpfProgram::try_from(filter.unwrap()).unwrap()).unwrap();
            (serve(&["--port", "0"]), run(&["load", "10", "1", "--quiet", "--url", &url]))
        })
        .join()
        .unwrap();
        let loaded = (loaded.status.code(), text(&loaded.stderr));
        let cause = "a seccomp filter blocks io_uring: allow io_uring_setup";
        for (code, said) in [served, loaded] {
            assert_eq!(code, Some(3), "{said}");
            assert!(said.starts_with(&format!("error: {cause}")), "{said}");
        }
    }
}

#[test]
fn an_admin_token_guards_the_reset() {
    let file = std::env::temp_dir().join(format!("ringtally-token-{}", std::process::id()));
    std::fs::write(&file, "s3cret\n").unwrap();
    let server = Server::start(&["--admin-token-file", file.to_str().unwrap()]);
    let mut client = server.client();
    client.event("u", 1.0);
    assert_eq!(client.post("/reset", "").status, 401);
    let with_token = "POST /reset HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer s3cret\r\n\r\n";
    assert_eq!(client.ask(with_token).status, 200);
    assert_eq!(client.stats().total, 0);
    std::fs::write(&file, " \n").unwrap();
    assert_eq!(serve(&["--admin-token-file", file.to_str().unwrap()]).0, Some(2));
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn random_bytes_do_not_stop_the_server() {
    let server = Server::start(&EIGHT_SHARDS);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..300 {
        let bytes: Vec<u8> = (0..200)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    server.client().event("u", 1.0);
    assert_eq!(server.stop().total, 1);
}

/// Returns the samples of `/metrics`, after a check of their form.
fn metrics(client: &mut Client) -> HashMap<String, f64> {
    let response = client.get("/metrics");
    assert_eq!(response.field("content-type"), Some("text/plain; version=0.0.4"));
    let (mut samples, mut family) = (HashMap::new(), String::new());
    for line in response.body.lines() {
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            family = typed.split(' ').next().unwrap().to_owned();
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with(&family), "{name} in {family}");
            assert!(samples.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{name}");
        }
    }
    samples
}

#[test]
fn metrics_come_in_openmetrics_for_who_prefers_it() {
    let server = Server::start(&["--shards", "2"]);
    let mut client = server.client();
    client.event("a", -1.5);
    let plain = metrics(&mut client);
    let response = client.ask(
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\
         Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.4\r\n\r\n",
    );
    let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(response.field("content-type"), Some(media_type));
    let lines = response.body.strip_suffix("# EOF\n").unwrap().lines();
    let (mut family, mut kind, mut units, mut samples) = ("", "", Vec::new(), Vec::new());
    for line in lines {
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            (family, kind) = typed.split_once(' ').unwrap();
            assert!(kind != "counter" || !family.ends_with("_total"), "{line}");
        } else if let Some(unit) = line.strip_prefix("# UNIT ") {
            let (name, unit) = unit.split_once(' ').unwrap();
            assert!(name == family && name.ends_with(&format!("_{unit}")), "{line}");
            units.push(name);
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let suffixes: &[&str] = match kind {
                "counter" => &["_total", "_created"],
                "histogram" => &["_bucket", "_count", "_sum", "_created"],
                "info" => &["_info"],
                "gauge" => &[""],
                other => panic!("{other}"),
            };
            let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("{name}: {family}"));
            assert!(suffixes.contains(&suffix), "{line} in {family}");
            assert!(kind != "counter" || !value.starts_with('-'), "{line}");
            samples.push(series);
        }
    }
    for unit in ["process_cpu_seconds", "process_resident_memory_bytes", "ringtally_sent_bytes"] {
        assert!(units.contains(&unit), "{unit}: {units:?}");
    }
    // Both have the same series, except for the times when counters of this process began.
    let (created, rest): (Vec<&str>, Vec<&str>) = samples
        .into_iter()
        .partition(|series| series.split('{').next().unwrap().ends_with("_created"));
    let in_both = rest.iter().filter(|series| plain.contains_key(**series)).count();
    // The second includes the request for the first.
    assert_eq!((in_both, rest.len()), (plain.len(), plain.len() + 1), "{rest:?}");
    assert!(
        created
            .contains(&r#"http_request_duration_seconds_created{method="POST",endpoint="/event"}"#),
        "{created:?}"
    );
    assert!(created.contains(&"ringtally_accepted_created{shard=\"0\"}"), "{created:?}");
    // A reset and a store give the totals another age.
    assert!(created.iter().all(|series| !series.starts_with("events_p")), "{created:?}");
    assert_eq!(plain["event_values_sum_total"], -1.5);
}

#[test]
fn metrics_count_what_was_done() {
    let server = Server::start(&["--shards", "3", "--max-users", "2", "--header-timeout", "1s"]);
    let mut client = server.client();
    client.event("a", 1.5);
    client.event("b", 2.0);
    assert_eq!(client.post("/event", r#"{"userId":"c","value":1}"#).status, 507);
    assert_eq!(client.post("/event", r#"{"userId":"","value":1}"#).status, 400);
    assert_eq!(client.get("/none").status, 404);
    let mut broken = server.client();
    broken.send(b"nonsense\r\n\r\n");
    assert_eq!(broken.read().status, 400);
    let mut slow = server.client();
    slow.send(b"GET /sta");
    assert_eq!(slow.read().status, 408);
    drop((broken, slow));
    eventually("their connections are gone", || {
        let samples = metrics(&mut client);
        let open =
            (0..3).map(|shard| samples[&format!("ringtally_connections{{shard=\"{shard}\"}}")]);
        open.sum::<f64>() == 1.0
    });
    let samples = metrics(&mut client);
    let of_shards = |name: &str| -> f64 {
        let name = format!("ringtally_{name}{{");
        samples.iter().filter(|(key, _)| key.starts_with(&name)).map(|(_, value)| value).sum()
    };
    for (sample, value) in [
        (r#"http_requests_total{method="POST",endpoint="/event",status="200"}"#, 2.0),
        (r#"http_requests_total{method="POST",endpoint="/event",status="400"}"#, 1.0),
        (r#"http_requests_total{method="POST",endpoint="/event",status="507"}"#, 1.0),
        (r#"http_requests_total{method="GET",endpoint="other",status="404"}"#, 1.0),
        (r#"http_requests_total{method="unknown",endpoint="other",status="400"}"#, 1.0),
        (r#"http_requests_total{method="unknown",endpoint="other",status="408"}"#, 1.0),
        (r#"events_failed_total{reason="users_full"}"#, 1.0),
        (r#"events_failed_total{reason="empty_user"}"#, 1.0),
        ("events_processed_total", 2.0),
        ("event_values_sum_total", 3.5),
        ("unique_users_total", 2.0),
    ] {
        assert_eq!(samples.get(sample), Some(&value), "{sample}");
    }
    assert_eq!(of_shards("accepted_total"), 3.0);
    assert!(of_shards("received_bytes_total") > 200.0 && of_shards("sent_bytes_total") > 500.0);
    assert_eq!(of_shards("timed_out_total"), 1.0);
    assert!(of_shards("cpu_seconds_total") > 0.0);
    assert!(samples["process_open_fds"] > 3.0 && samples["process_resident_memory_bytes"] > 1e6);
    // Handled requests are in the histogram, and each bucket includes the buckets below it.
    let handled: f64 = samples
        .iter()
        .filter(|(name, _)| name.starts_with("http_requests_total{") && !name.contains("unknown"))
        .map(|(_, count)| count)
        .sum();
    let of_all = |name: &str| -> f64 {
        let name = format!("http_request_duration_seconds_{name}{{");
        samples.iter().filter(|(key, _)| key.starts_with(&name)).map(|(_, value)| value).sum()
    };
    let events = r#"{method="POST",endpoint="/event""#;
    let mut buckets: Vec<(f64, f64)> = samples
        .iter()
        .filter_map(|(name, count)| {
            let bound = name.strip_prefix("http_request_duration_seconds_bucket")?;
            let bound = bound.strip_prefix(events)?.strip_prefix(",le=\"")?;
            let bound = bound.trim_end_matches("\"}").replace("+Inf", "inf");
            Some((bound.parse().unwrap(), *count))
        })
        .collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert_eq!(buckets[0].0, 10e-6);
    assert!(buckets.windows(2).all(|two| two[0].1 <= two[1].1), "{buckets:?}");
    assert_eq!(buckets.last().unwrap().1, 4.0, "two that are counted, and two that are not");
    assert_eq!(samples[&format!("http_request_duration_seconds_count{events}}}")], 4.0);
    assert_eq!(handled, of_all("count"));
    assert!(of_all("sum") > 0.0);
    assert!(samples.contains_key(&format!("http_requests_in_flight{events}}}")), "{samples:?}");
}

#[test]
fn the_live_page_comes_from_memory_under_a_strict_policy() {
    let server = Server::start(&[]);
    let mut client = server.client();
    let page = client.get("/");
    assert_eq!((page.status, page.field("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.field("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    assert!(page.body.starts_with("<!doctype html>") && page.body.ends_with("</html>\n"));
    let asked = client.ask("OPTIONS / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!((asked.status, asked.field("allow")), (204, Some("GET, HEAD, OPTIONS")));
    assert_eq!(client.post("/", "{}").status, 405);
}
