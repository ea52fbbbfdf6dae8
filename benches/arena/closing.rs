//! Clients that open a connection for each request, as those of the first entries and many health checkers do.

use hdrhistogram::Histogram;
use ringtally::topology::pin_to;
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a server may take to close a connection that it was asked to close.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// What the clients have measured.
pub(crate) struct Measured {
    pub(crate) requests_per_s: f64,
    /// From the connect to the end of the stream, in µs.
    pub(crate) latencies: Histogram<u64>,
    /// What is wrong with the totals.
    pub(crate) wrong: Option<String>,
}

/// Why nothing was measured.
pub(crate) enum Failure {
    /// The server keeps connections open that it was asked to close.
    StaysOpen,
    Other(String),
}

/// Sends events from as many clients on these CPUs, each of which has one connection at a time.
pub(crate) fn load(
    address: SocketAddr,
    cpus: &[usize],
    clients: u64,
    requests: u64,
) -> Result<Measured, Failure> {
    exchange(address, "POST", "/reset", "")?;
    let next = AtomicU64::new(0);
    let started = Instant::now();
    let latencies = thread::scope(|scope| {
        let client = |cpu: usize| {
            pin_to(cpu);
            send_events(address, &next, requests)
        };
        let threads: Vec<_> = cpus
            .iter()
            .copied()
            .cycle()
            .take(clients as usize)
            .map(|cpu| scope.spawn(move || client(cpu)))
            .collect();
        let mut all = histogram();
        for thread in threads {
            all += thread.join().unwrap()?;
        }
        Ok(all)
    })?;
    let took = started.elapsed();
    let totals = exchange(address, "GET", "/stats", "")?;
    let totals: Value = serde_json::from_str(&totals)
        .map_err(|error| Failure::Other(format!("/stats is not JSON: {error}")))?;
    let is_exact = totals["totalRequests"] == requests
        && totals["uniqueUsers"] == requests
        && totals["sum"].as_f64() == Some(requests as f64);
    Ok(Measured {
        requests_per_s: requests as f64 / took.as_secs_f64(),
        latencies,
        wrong: (!is_exact).then(|| format!("{requests} events of as many users are {totals}")),
    })
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).unwrap()
}

fn send_events(
    address: SocketAddr,
    next: &AtomicU64,
    requests: u64,
) -> Result<Histogram<u64>, Failure> {
    let mut latencies = histogram();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= requests {
            return Ok(latencies);
        }
        let started = Instant::now();
        exchange(
            address,
            "POST",
            "/event",
            &format!("{{\"userId\":\"user_{number}\",\"value\":1}}"),
        )?;
        latencies.saturating_record(started.elapsed().as_micros() as u64);
    }
}

/// Sends a request on a connection of its own, and returns the body of its response.
fn exchange(address: SocketAddr, method: &str, path: &str, body: &str) -> Result<String, Failure> {
    let other = |error: std::io::Error| Failure::Other(error.to_string());
    let mut connection = TcpStream::connect(address).map_err(other)?;
    connection.set_read_timeout(Some(CLOSE_MAX)).map_err(other)?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(request.as_bytes()).map_err(other)?;
    let mut response = Vec::new();
    match connection.read_to_end(&mut response) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::WouldBlock && !response.is_empty() => {
            return Err(Failure::StaysOpen);
        }
        Err(error) => return Err(other(error)),
    }
    let response = String::from_utf8_lossy(&response);
    match response.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 2") => Ok(body.to_owned()),
        _ => Err(Failure::Other(format!("it responded with {response:?}"))),
    }
}
