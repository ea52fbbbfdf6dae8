//! The load client against hostile servers: it ends in time, reports what happened, and uses little memory.

use crate::world::fake::load;
use crate::world::{Server, eventually, ringtally, run, text};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The server's behavior on the connection of an event, before it has sent anything.
type Answer = fn(&mut TcpStream, &Told);

/// The server's messages to the test.
#[derive(Default)]
struct Told {
    events: AtomicU64,
    /// The bytes that it could send.
    sent: AtomicU64,
}

/// Starts a server that answers requests for totals correctly, and events with `answer`.
fn start(answer: Answer) -> (String, Arc<Told>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let told = Arc::new(Told::default());
    let shared = Arc::clone(&told);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, told) = (stream.unwrap(), Arc::clone(&shared));
            std::thread::spawn(move || serve(&mut stream, answer, &told));
        }
    });
    (url, told)
}

fn serve(stream: &mut TcpStream, answer: Answer, told: &Told) {
    stream.set_nodelay(true).unwrap();
    let (mut input, mut buffer) = (String::new(), [0; 65536]);
    while let Ok(received @ 1..) = stream.read(&mut buffer) {
        input.push_str(&String::from_utf8_lossy(&buffer[..received]));
        while let Some((head, rest)) = input.split_once("\r\n\r\n") {
            let length = head.split("Content-Length: ").nth(1);
            let length: usize = length.map_or(0, |it| it.lines().next().unwrap().parse().unwrap());
            if rest.len() < length {
                break;
            }
            if head.starts_with("POST /event ") {
                told.events.fetch_add(1, Ordering::SeqCst);
                answer(stream, told);
            } else {
                let events = told.events.load(Ordering::SeqCst);
                let avg = if events == 0 { "0.0" } else { "1.0" };
                let body = format!(
                    r#"{{"totalRequests":{events},"uniqueUsers":{},"sum":{events}.0,"avg":{avg}}}"#,
                    events.min(1)
                );
                let status = if head.starts_with("GET /stats ") { 200 } else { 404 };
                let length = body.len();
                let response =
                    format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}");
                let _ = stream.write_all(response.as_bytes());
            }
            input.drain(..head.len() + 4 + length);
        }
    }
}

/// Runs a load of one user, in which every event has the value 1.
fn attacked(url: &str, flags: &[&str]) -> (Option<i32>, Value) {
    load(url, &[&["--users", "1", "--values", "one"], flags].concat())
}

fn count(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or_else(|| panic!("{key} in {report}"))
}

#[test]
fn responses_in_single_bytes_are_read_as_any_others() {
    let (url, _) = start(|stream, _| {
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-Slow: yes\r\n\r\nabc" {
            let _ = stream.write_all(&[*byte]);
        }
    });
    let (code, report) = attacked(&url, &["200", "4"]);
    assert_eq!((code, &report["verdict"]), (Some(0), &"exact".into()), "{report}");
}

/// The client closes the connection long before it has received the gigabyte.
#[test]
fn a_body_of_a_gigabyte_is_not_taken_in() {
    let (url, told) = start(|stream, told| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n");
        while stream.write_all(&[b'x'; 65536]).is_ok() {
            told.sent.fetch_add(65536, Ordering::SeqCst);
        }
    });
    let (code, report) = attacked(&url, &["4", "1", "--timeout", "5s"]);
    assert_eq!(code, Some(1), "{report}");
    assert_eq!((count(&report, "malformed"), count(&report, "unknown")), (4, 4), "{report}");
    // The bound covers four connections, each with the buffers of two sockets.
    let sent = told.sent.load(Ordering::SeqCst);
    assert!(sent < 256 << 20, "{sent}");
}

#[test]
fn a_head_without_an_end_and_interim_responses_without_number_are_malformed() {
    for answer in [
        (|stream, _| while stream.write_all(&[b'x'; 4096]).is_ok() {}) as Answer,
        |stream, _| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX: ");
            while stream.write_all(&[b'x'; 4096]).is_ok() {}
        },
        |stream, _| {
            let interim = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(100);
            while stream.write_all(&interim).is_ok() {}
        },
        |stream, _| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            let chunks = b"1\r\nx\r\n".repeat(500);
            while stream.write_all(&chunks).is_ok() {}
        },
    ] {
        let (url, _) = start(answer);
        let (code, report) = attacked(&url, &["1", "1", "--timeout", "20s"]);
        assert_eq!(code, Some(1), "{report}");
        assert_eq!((count(&report, "malformed"), count(&report, "timeouts")), (1, 0), "{report}");
    }
}

#[test]
fn garbage_is_malformed_and_no_event_of_it_is_acknowledged() {
    let (url, _) = start(|stream, _| {
        let _ = stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n");
    });
    let (code, report) = attacked(&url, &["20", "2", "--timeout", "2s"]);
    assert_eq!((code, &report["verdict"]), (Some(1), &"undecided".into()), "{report}");
    assert_eq!((count(&report, "acknowledged"), count(&report, "unknown")), (0, 20), "{report}");
}

/// The server accepts connections, and ends each at its first event.
#[test]
fn a_server_that_closes_at_once_ends_the_run() {
    let (url, _) = start(|stream, _| {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    });
    let (code, report) = attacked(&url, &["50", "4", "--timeout", "2s"]);
    assert_eq!((code, &report["verdict"]), (Some(1), &"undecided".into()), "{report}");
    assert_eq!(count(&report, "unknown") + count(&report, "unsent"), 50, "{report}");
}

/// Requests pile up in the sockets and in the client, and each is accounted for.
#[test]
fn a_server_that_stops_reading_is_given_up() {
    let (url, _) = start(|_, _| std::thread::sleep(Duration::from_secs(3600)));
    let flags = ["100k", "2", "--pipeline", "1024", "--timeout", "1s", "--threads", "1"];
    let started = Instant::now();
    let (code, report) = attacked(&url, &flags);
    assert_eq!((code, &report["verdict"]), (Some(1), &"undecided".into()), "{report}");
    let all = ["acknowledged", "refused", "unknown", "unsent"].map(|key| count(&report, key));
    assert_eq!(all.iter().sum::<u64>(), 100_000, "{report}");
    assert!(started.elapsed() < Duration::from_secs(60), "{report}");
}

/// Nothing is left to send in the quiet time: the run is complete, and the check continues and decides the verdict.
#[test]
fn an_interrupt_after_the_last_response_changes_nothing() {
    let server = Server::start(&["--shards", "1"]);
    let mut observer = server.client();
    for _ in 0..10 {
        let child = ringtally()
            .args(["load", "300", "2", "--url", &server.url(), "--json", "-", "--quiet"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        eventually("all events are counted", || observer.stats().total == 300);
        // The last response may still be on its way.
        std::thread::sleep(Duration::from_millis(50));
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let output = child.wait_with_output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
        assert_eq!(count(&report, "acknowledged"), 300);
        assert_eq!(
            (&report["verdict"], &report["interrupted"]),
            (&"exact".into(), &false.into()),
            "{report}"
        );
        assert_eq!(output.status.code(), Some(0), "{report}");
        assert_eq!(observer.post("/reset", "").status, 200);
    }
}

/// A forged report is refused before a shell sees any part of the command.
#[test]
fn a_foreign_command_is_not_printed() {
    let directory = crate::world::Directory::new("foreign");
    let file = directory.file("report.json");
    for command in [
        &["rm", "-rf", "/"][..],
        &["ringtally", "serve"],
        &["ringtally", "load", "--json", "/etc/passwd"],
        &["ringtally", "load", "--url", "http://h:1\nrm -rf /"],
    ] {
        let report =
            serde_json::json!({"format": "ringtally-load/1", "setup": {"command": command}});
        std::fs::write(&file, report.to_string()).unwrap();
        let output = run(&["rerun", &file]);
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{said}");
        assert!(said.contains("its command"), "{said}");
    }
}
