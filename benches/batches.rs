//! The cost of batches, against a program that only receives them and against single requests: `cargo bench --bench
//! batches`.
//!
//! Each round measures everything once, one after the other on the same two CPUs, so that a disturbance affects the whole
//! round. The server has one CPU, and the clients have the other.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark; a panic is a failure")]

use clap::Parser;
use memchr::memchr_iter;
use ringtally::connection::{Connection, Moment};
use ringtally::event::decode;
use ringtally::http::{Limits, Timeouts};
use ringtally::metrics::Reporter;
use ringtally::service::{Policy, Service};
use ringtally::statistics::median;
use ringtally::tally::Tally;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Users of the published workload.
const USERS: usize = 75_000;
/// Connections that send single events.
const SINGLE_CONNECTIONS: usize = 64;
/// Connections that send batches.
const BATCH_CONNECTIONS: usize = 4;
/// The number of events in a batch, and in a batch that is nearly as large as `--max-batch` allows.
const BATCH: usize = 1_000;
const LARGE_BATCH: usize = 220_000;

/// Measures what batches cost
#[derive(Parser)]
struct Options {
    /// Rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds that each part of a round takes
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// CPU of the server
    #[arg(long, default_value_t = 0)]
    server_cpu: usize,
    /// CPU of the clients
    #[arg(long, default_value_t = 1)]
    client_cpu: usize,
    /// Measure only what needs no server
    #[arg(long)]
    in_memory: bool,
    /// Engine of the server
    #[arg(long, default_value = "auto")]
    engine: String,
    /// Be the program that only receives
    #[arg(long, hide = true)]
    floor: bool,
    /// Cargo passes this
    #[arg(long, hide = true)]
    bench: bool,
}

/// A process that serves on one CPU.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(mut command: Command) -> Server {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("it says where it listens").unwrap();
            if let Some((_, rest)) = line.split_once("listening on http://") {
                break rest.split(' ').next().unwrap().parse().unwrap();
            }
        };
        // Its later output is read, so that it never blocks.
        thread::spawn(move || lines.for_each(drop));
        Server { child, address }
    }

    fn ringtally(options: &Options) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringtally"));
        command.args(["serve", "--port", "0", "--spin-us", "0", "--engine", &options.engine]);
        command.args(["--cpus", &options.server_cpu.to_string()]);
        Server::start(command)
    }

    fn floor(options: &Options) -> Server {
        let mut command = Command::new("taskset");
        command.args(["-c", &options.server_cpu.to_string()]);
        command.arg(std::env::current_exe().unwrap()).arg("--floor");
        Server::start(command)
    }

    /// Returns the CPU time used by the process in nanoseconds, including ended threads, in steps of 10 ms.
    fn cpu_ns(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // These are behind the name, which may have spaces: fields 14 and 15 of proc_pid_stat(5).
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        ticks * 1e9 / rustix::param::clock_ticks_per_second() as f64
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Receives requests of known length. Responds to each after counting the lines of its body.
fn be_the_floor() -> ! {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    eprintln!("listening on http://{} ", listener.local_addr().unwrap());
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        thread::spawn(move || {
            let mut buffer = vec![0; 256 * 1024];
            let (mut left, mut lines) = (0usize, 0usize);
            loop {
                let received = stream.read(&mut buffer).unwrap_or(0);
                if received == 0 {
                    return;
                }
                let mut body = &buffer[..received];
                if left == 0 {
                    // The head of a request arrives in one piece, because its sender waits for the previous response.
                    let end = memchr::memmem::find(body, b"\r\n\r\n").unwrap() + 4;
                    let head = std::str::from_utf8(&body[..end]).unwrap();
                    let length = head.split("Content-Length: ").nth(1).unwrap();
                    left = length.split('\r').next().unwrap().parse().unwrap();
                    (body, lines) = (&body[end..], 0);
                }
                lines += memchr_iter(b'\n', body).count();
                left -= body.len();
                if left == 0 {
                    let accepted = format!("{{\"accepted\":{lines}}}");
                    let head =
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", accepted.len());
                    stream.write_all((head + &accepted).as_bytes()).unwrap();
                }
            }
        });
    }
    unreachable!("a listener goes on");
}

fn line(event: usize) -> String {
    format!("{{\"userId\":\"user_{}\",\"value\":{}.5}}\n", event % USERS, event % 1000)
}

/// Returns a batch of the published workload, as a request.
fn batch(first: usize, events: usize) -> Vec<u8> {
    let body: String = (first..first + events).map(line).collect();
    let head = format!(
        "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

/// Returns batches that together have every user.
fn batches(events: usize) -> Vec<Vec<u8>> {
    (0..USERS.div_ceil(events)).map(|index| batch(index * events, events)).collect()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Reads one response, whose body ends in a brace or is empty.
fn read_response(stream: &mut TcpStream, buffer: &mut [u8]) {
    let mut filled = 0;
    loop {
        let received = stream.read(&mut buffer[filled..]).unwrap();
        assert!(received > 0, "the server has closed the connection");
        filled += received;
        let response = &buffer[..filled];
        assert!(response.starts_with(&b"HTTP/1.1 200 OK"[..filled.min(15)]));
        if response.ends_with(b"}") || response.ends_with(b"Length: 0\r\n\r\n") {
            return;
        }
    }
}

fn pin(cpu: usize) {
    assert!(core_affinity::set_for_current(core_affinity::CoreId { id: cpu }), "CPU {cpu}");
}

/// Sends batches on some connections for as long as `during` takes. Returns the number of accepted events.
fn send_batches<T>(
    address: SocketAddr,
    cpu: usize,
    requests: &[Vec<u8>],
    events: usize,
    during: impl FnOnce() -> T,
) -> (u64, T) {
    let (accepted, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for first in 0..BATCH_CONNECTIONS {
            let (accepted, is_over) = (&accepted, &is_over);
            scope.spawn(move || {
                pin(cpu);
                let (mut stream, mut buffer) = (connect(address), [0; 1024]);
                let mut requests = requests.iter().cycle().skip(first * requests.len() / 4);
                while !is_over.load(Ordering::Relaxed) {
                    stream.write_all(requests.next().unwrap()).unwrap();
                    read_response(&mut stream, &mut buffer);
                    accepted.fetch_add(events as u64, Ordering::Relaxed);
                }
            });
        }
        let result = during();
        is_over.store(true, Ordering::Relaxed);
        (accepted.load(Ordering::Relaxed), result)
    })
}

/// Returns a server's CPU time per event in nanoseconds, and its events per second, for batches without pause.
fn cost_of_batches(server: &Server, options: &Options, requests: &[Vec<u8>]) -> (f64, f64) {
    let measured = || {
        // The measurement begins after the start.
        thread::sleep(Duration::from_secs_f64(options.seconds / 4.0));
        (server.cpu_ns(), Instant::now())
    };
    let events = BATCH;
    let (_, _) = send_batches(server.address, options.client_cpu, requests, events, measured);
    let before = server.cpu_ns();
    let start = Instant::now();
    let pause = || thread::sleep(Duration::from_secs_f64(options.seconds));
    let (accepted, ()) = send_batches(server.address, options.client_cpu, requests, events, pause);
    let seconds = start.elapsed().as_secs_f64();
    // Few events were on their way at the end.
    ((server.cpu_ns() - before) / accepted as f64, accepted as f64 / seconds)
}

/// Returns the same for single events on many connections, each with one in flight.
fn cost_of_singles(server: &Server, options: &Options) -> (f64, f64) {
    let requests: Vec<Vec<u8>> = (0..USERS)
        .map(|event| {
            let body = line(event);
            let body = body.trim_end();
            let head =
                "POST /event HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
            format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
        })
        .collect();
    let sending = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            pin(options.client_cpu);
            let mut streams: Vec<_> =
                (0..SINGLE_CONNECTIONS).map(|_| connect(server.address)).collect();
            let (mut buffer, mut requests) = ([0; 1024], requests.iter().cycle());
            let before = server.cpu_ns();
            let (start, mut accepted) = (Instant::now(), 0);
            while start.elapsed().as_secs_f64() < options.seconds {
                for stream in &mut streams {
                    stream.write_all(requests.next().unwrap()).unwrap();
                }
                for stream in &mut streams {
                    read_response(stream, &mut buffer);
                }
                accepted += SINGLE_CONNECTIONS;
            }
            let seconds = start.elapsed().as_secs_f64();
            ((server.cpu_ns() - before) / accepted as f64, accepted as f64 / seconds)
        });
        sender.join()
    });
    sending.unwrap()
}

/// Returns the 99th percentile of the latency of single events in microseconds.
fn p99_us(server: &Server, options: &Options) -> f64 {
    let output = Command::new("taskset")
        .args(["-c", &options.client_cpu.to_string()])
        .arg(env!("CARGO_BIN_EXE_ringtally"))
        .args(["load", &format!("{:.0}", options.seconds * 60_000.0)])
        .arg(SINGLE_CONNECTIONS.to_string())
        .args(["--url", &format!("http://{}", server.address)])
        .args(["--no-reset", "--json", "-", "--quiet"])
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["latency_us"]["p99"].as_f64().unwrap()
}

/// Returns the nanoseconds per event of decoding and counting in memory: one by one, and in batches through a connection.
fn costs_in_memory() -> (f64, f64) {
    let bodies: Vec<String> = (0..USERS).map(|event| line(event).trim_end().to_owned()).collect();
    let (tally, mut writers) = Tally::new(1, USERS as u64);
    let mut count_all = || {
        let start = Instant::now();
        for body in &bodies {
            let event = decode(body.as_bytes()).unwrap();
            writers[0].count(&event.user, event.value).unwrap();
        }
        writers[0].publish();
        start.elapsed().as_nanos() as f64 / USERS as f64
    };
    count_all();
    let single = (0..5).map(|_| count_all()).fold(f64::MAX, f64::min);
    assert_eq!(tally.totals().total_requests, 6 * USERS as u64);

    let (tally, mut writers) = Tally::new(1, USERS as u64);
    let reporter = Reporter::for_shards(1, "none").remove(0);
    let mut service = Service::new(writers.remove(0), reporter, Policy::new("localhost"), 0);
    let timeouts = Timeouts { header_ms: 10_000, body_ms: 10_000, idle_ms: 75_000 };
    let limits = Limits { body_bytes_max: 16 * 1024, batch_bytes_max: 8 << 20, timeouts };
    let mut connection = Connection::new(limits, true, 0);
    let requests = batches(BATCH);
    let mut count_all = || {
        let start = Instant::now();
        for request in &requests {
            connection.receive(request, &Moment::START, &mut service);
            while connection.has_work() {
                connection.renew();
                connection.work(&Moment::START, &mut service);
            }
            service.publish();
            let action = connection.action(&Moment::START, &mut service);
            connection.renew();
            drop(connection.take_responses(action.send, 0));
            connection.note_sent(action.send);
        }
        start.elapsed().as_nanos() as f64 / USERS as f64
    };
    count_all();
    count_all();
    let batched = (0..5).map(|_| count_all()).fold(f64::MAX, f64::min);
    assert_eq!(tally.totals().total_requests, 7 * USERS as u64);
    (single, batched)
}

/// Returns the average number of bytes of an event in a batch.
fn bytes_per_event() -> f64 {
    (0..USERS).map(|event| line(event).len()).sum::<usize>() as f64 / USERS as f64
}

/// The measurements of the rounds, by name.
#[derive(Default)]
struct Figures(Vec<(&'static str, Vec<f64>)>);

impl Figures {
    fn add(&mut self, name: &'static str, value: f64) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(value),
            None => self.0.push((name, vec![value])),
        }
    }
}

fn main() {
    let options = Options::parse();
    if options.floor {
        be_the_floor();
    }
    let (small, large) = (batches(BATCH), vec![batch(0, LARGE_BATCH)]);
    assert!(large[0].len() < 8 << 20, "a batch of the default size at most");
    let mut figures = Figures::default();
    for round in 1..=options.rounds {
        let (single_ns, batched_ns) = costs_in_memory();
        for (name, value) in [
            ("in memory, one by one: ns per event", single_ns),
            ("in memory, batches of 1,000: ns per event", batched_ns),
            ("in memory, batches of 1,000: GB/s", bytes_per_event() / batched_ns),
            ("in memory, batches against one by one", batched_ns / single_ns),
        ] {
            figures.add(name, value);
        }
        if options.in_memory {
            continue;
        }
        let floor = Server::floor(&options);
        let (floor_ns, floor_per_s) = cost_of_batches(&floor, &options, &small);
        drop(floor);
        let server = Server::ringtally(&options);
        let (batch_ns, batch_per_s) = cost_of_batches(&server, &options, &small);
        let (request_ns, request_per_s) = cost_of_singles(&server, &options);
        // Connections and code are warm.
        p99_us(&server, &options);
        let alone_us = p99_us(&server, &options);
        let (_, beside_us) =
            send_batches(server.address, options.client_cpu, &large, LARGE_BATCH, || {
                thread::sleep(Duration::from_millis(100));
                p99_us(&server, &options)
            });
        for (name, value) in [
            ("receives only: CPU ns per event", floor_ns),
            ("receives only: million events/s", floor_per_s / 1e6),
            ("batches of 1,000: CPU ns per event", batch_ns),
            ("batches of 1,000: million events/s", batch_per_s / 1e6),
            ("batches of 1,000: million events per CPU second", 1e3 / batch_ns),
            ("64 single requests: CPU ns per event", request_ns),
            ("64 single requests: thousand events/s", request_per_s / 1e3),
            ("64 single requests: thousand events per CPU second", 1e6 / request_ns),
            ("batches against receiving only", batch_ns / floor_ns),
            ("single requests against batches", request_ns / batch_ns),
            ("p99 of 64 single requests, alone: ms", alone_us / 1e3),
            ("p99 of 64 single requests, beside 8 MiB batches: ms", beside_us / 1e3),
        ] {
            figures.add(name, value);
        }
        eprintln!("round {round} of {}", options.rounds);
    }
    println!("{:<54} {:>9} {:>9} {:>9}", "", "median", "lowest", "highest");
    for (name, values) in &mut figures.0 {
        let middle = median(values).unwrap();
        let lowest = values.iter().copied().fold(f64::MAX, f64::min);
        let highest = values.iter().copied().fold(f64::MIN, f64::max);
        println!("{name:<54} {middle:>9.3} {lowest:>9.3} {highest:>9.3}");
    }
}
