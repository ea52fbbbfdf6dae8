//! Stops of `ringtally serve`: requests in flight are finished, acknowledged events are printed, and neither a stalled client
//! nor a flood of connections delays a stop.

use crate::world::{
    Client, PATIENCE, Server, Totals, engine, eventually, full_pipe, post, ringtally,
};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

#[test]
fn sigterm_under_load_prints_every_acknowledged_event() {
    const CLIENTS: usize = 16;
    for _ in 0..5 {
        let server = Server::start(&["--shards", "4"]);
        let address = server.address;
        let all_connected = Arc::new(Barrier::new(CLIENTS + 1));
        let counting: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let all_connected = Arc::clone(&all_connected);
                std::thread::spawn(move || {
                    let mut client = Client::connect(address);
                    all_connected.wait();
                    let request = post("/event", r#"{"userId":"u","value":1}"#);
                    let mut acknowledged = 0u64;
                    loop {
                        if client.stream.write_all(request.as_bytes()).is_err() {
                            return acknowledged;
                        }
                        match client.try_read() {
                            Some(response) => {
                                assert_eq!(response.status, 200);
                                acknowledged += 1;
                            }
                            None => return acknowledged,
                        }
                    }
                })
            })
            .collect();
        all_connected.wait();
        std::thread::sleep(Duration::from_millis(50));
        let stats = server.stop();
        // The port is free immediately, for a server that insists on having it alone.
        TcpListener::bind(address).map(drop).or_else(|_| rebind(address)).unwrap();
        let acknowledged: u64 = counting.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(acknowledged > 0);
        // An event can be counted and its response lost with the connection, but not the reverse.
        assert!(
            (acknowledged..=acknowledged + CLIENTS as u64).contains(&stats.total),
            "{acknowledged} {stats:?}"
        );
    }
}

#[test]
fn a_standard_error_that_nobody_reads_stops_nothing() {
    let (mut reader, writer) = full_pipe();
    let stderr = Stdio::from(writer.try_clone().unwrap());
    let server = Server::start_unheard(&["--max-connections", "1"], stderr);
    let mut client = server.client();
    client.event("u", 1.0);
    // A shard logs that it refuses this client.
    let mut refused = server.client();
    assert_eq!(refused.read().status, 503);
    client.event("u", 1.0);
    assert_eq!(client.stats().total, 2);
    server.signal(Signal::TERM);
    let (code, printed) = server.wait();
    assert_eq!(code, Some(0));
    assert_eq!(Totals::parse(&printed).total, 2);
    drop(writer);
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert!(said.bytes().all(|byte| byte == b'x'), "nothing had room: {said}");
}

#[test]
fn a_standard_error_that_is_closed_stops_nothing() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let server = Server::start_unheard(&["--max-connections", "1"], Stdio::from(writer));
    let mut client = server.client();
    client.event("u", 1.0);
    assert_eq!(server.client().read().status, 503);
    client.event("u", 1.0);
    assert_eq!(server.stop().total, 2);
}

/// Binds as servers do: the last server's connections in TIME_WAIT do not matter.
fn rebind(address: std::net::SocketAddr) -> std::io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1)
}

#[test]
fn a_stopping_server_finishes_what_is_in_flight_and_closes_what_is_idle() {
    let server = Server::start(&["--drain-timeout", "10s"]);
    let mut idle = server.client();
    idle.event("u", 1.0);
    let mut busy = server.client();
    busy.send(b"POST /event HTTP/1.1\r\nHost: h\r\nContent-Length: 24\r\n\r\n{\"userId\"");
    std::thread::sleep(Duration::from_millis(50));
    server.signal(Signal::TERM);
    assert!(idle.is_closed());
    eventually("new connections are refused", || TcpStream::connect(server.address).is_err());
    busy.send(b":\"u\",\"value\":1}");
    let response = busy.read();
    assert_eq!((response.status, response.field("connection")), (200, Some("close")));
    assert!(busy.is_closed());
    let (code, printed) = server.wait();
    assert_eq!((code, Totals::parse(&printed).total), (Some(0), 2));
}

#[test]
fn a_stalled_client_holds_the_stop_until_the_deadline_or_a_second_signal() {
    for (timeout, second_signal, code, said) in
        [("300ms", false, 0, "drain timed out"), ("60s", true, 1, "stopped by a second signal")]
    {
        let server = Server::start(&["--drain-timeout", timeout, "--header-timeout", "60s"]);
        let mut stalled = server.client();
        stalled.send(b"GET /sta");
        std::thread::sleep(Duration::from_millis(50));
        let start = Instant::now();
        server.signal(Signal::TERM);
        if second_signal {
            std::thread::sleep(Duration::from_millis(250));
            server.signal(Signal::INT);
        }
        let (ended, printed, log) = server.wait_with_log();
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(200) && took < PATIENCE, "{took:?}");
        assert_eq!(ended, Some(code), "{log}");
        assert_eq!(Totals::parse(&printed).total, 0);
        assert!(log.contains("SIGTERM: draining 1 connection, for"), "{log}");
        assert!(log.contains(said) && log.contains("1 connection "), "{log}");
    }
}

/// The connections are in the backlog, or accepted but not yet processed, when the server receives the signal.
#[test]
fn connections_established_before_the_signal_get_every_response() {
    const CLIENTS: usize = 300;
    const REQUESTS: usize = 3;
    const EVENT: &str = r#"{"userId":"u","value":1}"#;
    let server = Server::start(&["--shards", "4"]);
    server.signal(Signal::STOP);
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut client = server.client();
            // The requests are pipelined.
            (0..REQUESTS).for_each(|_| client.send(post("/event", EVENT).as_bytes()));
            client
        })
        .collect();
    server.signal(Signal::TERM);
    server.signal(Signal::CONT);
    for client in &mut clients {
        (0..REQUESTS).for_each(|_| assert_eq!(client.read().status, 200));
        assert!(client.is_closed());
    }
    let (code, printed) = server.wait();
    assert_eq!((code, Totals::parse(&printed).total), (Some(0), (CLIENTS * REQUESTS) as u64));
}

/// A request is sent on a connection without anything in flight, just as the server is signaled to stop.
#[test]
fn a_request_that_crosses_the_signal_is_answered() {
    let server = Server::start(&["--shards", "2"]);
    let mut clients: Vec<_> = (0..8).map(|_| server.client()).collect();
    clients.iter_mut().for_each(|client| client.event("u", 1.0));
    server.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(3));
    for client in &mut clients {
        client.send(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    for client in &mut clients {
        assert_eq!(client.read().status, 200);
    }
    assert_eq!(server.wait().0, Some(0));
}

/// Some shards have stopped before others start.
#[test]
fn a_signal_during_the_start_is_a_stop() {
    for delay_ms in 0..24 {
        let mut command = ringtally();
        command.args(["serve", "--port", "0", "--shards", "8", "--engine", &engine()]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms * 5));
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let output = child.wait_with_output().unwrap();
        // Until the server listens for signals, the signal itself ends it.
        let is_killed = output.status.code().is_none();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(is_killed || output.status.success(), "after {delay_ms}: {said}");
    }
}

/// A flood of connections does not keep a stop from its deadline.
#[test]
fn a_flood_of_connections_does_not_hold_up_the_stop() {
    let server = Server::start(&["--shards", "2", "--drain-timeout", "500ms"]);
    let address = server.address;
    let is_over = Arc::new(AtomicBool::new(false));
    let flood: Vec<_> = (0..4)
        .map(|_| {
            let is_over = Arc::clone(&is_over);
            std::thread::spawn(move || {
                let mut held = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    // Each connection sends half a request, so that it is not idle.
                    if let Ok(mut stream) = TcpStream::connect(address) {
                        let _ = stream.write_all(b"GET /he");
                        held.push(stream);
                    }
                    if held.len() == 100 {
                        held.clear();
                    }
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    let start = Instant::now();
    server.signal(Signal::TERM);
    let (code, ..) = server.wait();
    let took = start.elapsed();
    is_over.store(true, Ordering::Relaxed);
    flood.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(3), "{took:?}");
}

/// Starts a server as `nohup` would.
fn start_ignoring_hangups() -> Server {
    let mut command = Command::new("sh");
    command.args(["-c", r#"trap "" HUP; exec "$0" serve --port 0"#]);
    command.arg(ringtally().get_program());
    Server::start_command(command)
}

#[test]
fn a_hangup_drains_unless_it_was_ignored_at_the_start() {
    let server = Server::start(&[]);
    server.client().event("u", 1.0);
    server.signal(Signal::HUP);
    let (code, printed) = server.wait();
    assert_eq!((code, Totals::parse(&printed).total), (Some(0), 1));

    let server = start_ignoring_hangups();
    server.signal(Signal::HUP);
    std::thread::sleep(Duration::from_millis(100));
    server.client().event("u", 1.0);
    assert_eq!(server.stop().total, 1);
}
