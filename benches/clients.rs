//! The CPU time that clients take per request, ours and others, in pairs against one server: `cargo bench --bench clients`.
//! It needs taskset and wrk. `ci/client` installs the others.
//!
//! Server and client have a CPU each. The CPU time of a client includes its start and its end. `load` sends
//! the challenge's 75,000 users, and the others send one constant request.

#![allow(missing_docs, reason = "a benchmark")]

#[path = "paired/server.rs"]
mod server;

use clap::Parser;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use ringtally::failure::Failure;
use ringtally::statistics::median;
use ringtally::topology;
use serde_json::Value;
use server::{Places, Server};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

const BODY: &str = r#"{"userId":"user_12345","value":499}"#;
/// A script for wrk. Its argument is the number of requests that it sends at a time.
const WRK_SCRIPT: &str = r#"
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
function init(args)
    local all = {}
    for i = 1, tonumber(args[1]) do all[i] = wrk.format() end
    batch = table.concat(all)
end
function request() return batch end
"#;
/// Connections, and requests in flight on each, of the rows for all peers.
const SHAPES: [(usize, usize); 3] = [(1, 1), (64, 1), (1_000, 1)];
/// Connections, and requests in flight on each, of the row for peers that can pipeline.
const PIPELINED: (usize, usize) = (64, 16);
/// The stalled run: connections, requests per second, and seconds. The server stands still for one second in the middle.
const STALLED: (usize, u64, u64) = (16, 1_000, 10);

/// Compares the CPU time of load clients per request
#[derive(Parser)]
struct Options {
    /// Pairs of runs for each figure
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pairs: u64,
    /// Seconds that a run takes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Fail if our client takes more than this share of wrk's CPU time at 64 connections
    #[arg(long, value_name = "RATIO")]
    at_most: Option<f64>,
    /// Compare with wrk, this oha, and this bombardier in every row, and stall the server under each
    #[arg(long, value_name = "BIN", num_args = 2, value_names = ["OHA", "BOMBARDIER"])]
    peers: Option<Vec<PathBuf>>,
    /// The program that serves, and sends [default: this build]
    #[arg(long, value_name = "BIN", default_value = env!("CARGO_BIN_EXE_ringtally"), hide_default_value = true)]
    ringtally: PathBuf,
    /// Cargo passes this
    #[arg(long, hide = true)]
    bench: bool,
}

/// A load client.
enum Client {
    Load(PathBuf),
    Wrk,
    /// With the flag that includes the wait of late requests in their latency, or without it.
    Oha(PathBuf, bool),
    Bombardier(PathBuf),
}

/// The amount that a run sends.
#[derive(Clone, Copy)]
enum Amount {
    /// As much as possible for some seconds; our client sends as many requests as a peer did.
    Seconds(u64),
    Requests(u64),
    /// Requests per second, for some seconds. wrk does not have a rate.
    Rate(u64, u64),
}

/// The measurements of one run.
struct Run {
    requests: u64,
    requests_per_s: f64,
    cpu_us_per_request: f64,
    p99_ms: f64,
}

impl Client {
    fn name(&self) -> &'static str {
        match self {
            Client::Load(_) => "ringtally load",
            Client::Wrk => "wrk",
            Client::Oha(..) => "oha",
            Client::Bombardier(_) => "bombardier",
        }
    }

    /// Returns the program and its arguments.
    fn command(&self, url: &str, shape: (usize, usize), amount: Amount) -> Vec<String> {
        let (connections, pipeline) = shape;
        let event = format!("{url}/event");
        let (seconds, requests, rate) = match amount {
            Amount::Seconds(seconds) => (seconds, 0, None),
            Amount::Requests(requests) => (0, requests, None),
            Amount::Rate(rate, seconds) => (seconds, rate * seconds, Some(rate)),
        };
        let (program, flags, others) = match self {
            Client::Load(program) => {
                let flags = format!(
                    "load {requests} {connections} --pipeline {pipeline} --quiet --json - --url {url}"
                );
                (
                    program.display().to_string(),
                    flags,
                    rate.map(|rate| format!("--rate={rate}")).into_iter().collect(),
                )
            }
            Client::Wrk => {
                let flags = format!("-t1 -c{connections} -d{seconds}s --latency -s");
                let others =
                    [script().display().to_string(), event, "--".into(), pipeline.to_string()];
                ("wrk".into(), flags, others.to_vec())
            }
            Client::Oha(program, is_corrected) => {
                let rate = rate.map(|rate| format!(" -q {rate}")).unwrap_or_default();
                let corrected = if *is_corrected { " --latency-correction" } else { "" };
                let flags = format!(
                    "-z {seconds}s -c {connections}{rate}{corrected} --no-tui --output-format json -m POST \
                     -T application/json -d"
                );
                (program.display().to_string(), flags, vec![BODY.into(), event])
            }
            Client::Bombardier(program) => {
                let rate = rate.map(|rate| format!(" -r {rate}")).unwrap_or_default();
                let flags =
                    format!("-c {connections} -d {seconds}s{rate} -l -m POST -o json -p r -b");
                let header = "-HContent-Type: application/json".into();
                (program.display().to_string(), flags, vec![BODY.into(), header, event])
            }
        };
        let flags = flags.split(' ').map(str::to_owned);
        std::iter::once(program).chain(flags).chain(others).collect()
    }

    /// Reads the requests of a run, its requests per second, and its p99 in milliseconds from the client's output.
    fn read(&self, output: &str) -> Option<(u64, f64, f64)> {
        let json = || serde_json::from_str::<Value>(output).ok();
        match self {
            Client::Load(_) => {
                let report = json()?;
                let p99_ms = report["latency_us"]["p99"].as_f64()? / 1e3;
                Some((report["acknowledged"].as_u64()?, report["requests_per_s"].as_f64()?, p99_ms))
            }
            Client::Wrk => {
                let before = |mark: &str| {
                    output.lines().find(|line| line.contains(mark))?.split_whitespace().next()
                };
                let behind = |mark: &str| {
                    output.lines().find_map(|line| Some(line.trim().strip_prefix(mark)?.trim()))
                };
                let requests = before(" requests in ")?.parse().ok()?;
                Some((
                    requests,
                    behind("Requests/sec:")?.parse().ok()?,
                    milliseconds(behind("99%")?)?,
                ))
            }
            Client::Oha(..) => {
                let report = json()?;
                let p99_ms = report["latencyPercentiles"]["p99"].as_f64()? * 1e3;
                let requests = report["statusCodeDistribution"]["200"].as_u64()?;
                Some((requests, report["summary"]["requestsPerSec"].as_f64()?, p99_ms))
            }
            Client::Bombardier(_) => {
                let report = &json()?["result"];
                let (requests, seconds) =
                    (report["req2xx"].as_u64()?, report["timeTakenSeconds"].as_f64()?);
                let p99_ms = report["latency"]["percentiles"]["99"].as_f64()? / 1e3;
                Some((requests, requests as f64 / seconds, p99_ms))
            }
        }
    }

    /// Runs the client on its CPU.
    fn run(
        &self,
        places: &Places,
        url: &str,
        shape: (usize, usize),
        amount: Amount,
    ) -> Result<Run, Failure> {
        let before = children_cpu_us()?;
        let output = Command::new("taskset")
            .args(["-c", &places.client_cpus])
            .args(self.command(url, shape, amount))
            .stdin(Stdio::null())
            .output()
            .map_err(|error| Failure::Environment(format!("cannot start taskset: {error}")))?;
        let cpu_us = children_cpu_us()? - before;
        let text = String::from_utf8_lossy(&output.stdout);
        let read =
            self.read(&text).filter(|(requests, ..)| output.status.success() && *requests > 0);
        let Some((requests, requests_per_s, p99_ms)) = read else {
            let said = String::from_utf8_lossy(&output.stderr);
            let name = self.name();
            return Err(Failure::Environment(format!("{name} failed: {}{text}", said.trim())));
        };
        let cpu_us_per_request = cpu_us / requests as f64;
        Ok(Run { requests, requests_per_s, cpu_us_per_request, p99_ms })
    }
}

/// Reads a duration as wrk writes it.
fn milliseconds(text: &str) -> Option<f64> {
    let unit = [("us", 1e-3), ("ms", 1.0), ("s", 1e3)];
    unit.iter()
        .find_map(|(unit, times)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * times))
}

/// Returns the file of wrk's script.
fn script() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients.lua")
}

/// Returns the CPU time of all ended children in microseconds.
fn children_cpu_us() -> Result<f64, Failure> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)
        .map_err(|error| Failure::Environment(format!("getrusage: {error}")))?;
    let all = usage.user_time() + usage.system_time();
    Ok(all.num_microseconds() as f64)
}

/// Runs a peer and our client in turn, and returns the pairs. Both send about the same number of requests.
fn pairs(
    peer: &Client,
    places: &Places,
    url: &str,
    shape: (usize, usize),
    options: &Options,
) -> Result<Vec<[Run; 2]>, Failure> {
    let ours = Client::Load(options.ringtally.clone());
    let pair = |_| {
        let theirs = peer.run(places, url, shape, Amount::Seconds(options.seconds))?;
        let ours = ours.run(places, url, shape, Amount::Requests(theirs.requests))?;
        Ok([theirs, ours])
    };
    (0..options.pairs).map(pair).collect()
}

fn ratio([theirs, ours]: &[Run; 2]) -> f64 {
    ours.cpu_us_per_request / theirs.cpu_us_per_request
}

/// Prints our client's share of wrk's CPU time, and fails if it is above the maximum.
fn against_wrk(places: &Places, url: &str, options: &Options) -> Result<(), Failure> {
    let pairs = pairs(&Client::Wrk, places, url, (64, 1), options)?;
    for pair in &pairs {
        let [theirs, ours] = pair.each_ref().map(|run| run.cpu_us_per_request);
        println!("{:.3} of wrk's CPU time per request ({ours:.2} and {theirs:.2} µs)", ratio(pair));
    }
    let middle = median(&mut pairs.iter().map(ratio).collect::<Vec<_>>()).unwrap_or(f64::NAN);
    println!("{middle:.3}: the median of {} pairs", pairs.len());
    match options.at_most {
        Some(most) if middle > most => Err(Failure::Wrong(format!(
            "our client takes {middle:.3} of wrk's CPU time per request, and may take {most}"
        ))),
        _ => Ok(()),
    }
}

/// Prints the pair with the median ratio for every peer and shape, as a table.
fn table(peers: &[Client], places: &Places, url: &str, options: &Options) -> Result<(), Failure> {
    println!(
        "| peer | connections | pipelined | its CPU µs per request | ours | ratio | its requests/s | ours |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|");
    let all = SHAPES.iter().flat_map(|shape| peers.iter().map(|peer| (peer, *shape)));
    for (peer, shape) in all.chain([(&Client::Wrk, PIPELINED)]) {
        let mut pairs = pairs(peer, places, url, shape, options)?;
        pairs.sort_by(|a, b| ratio(a).total_cmp(&ratio(b)));
        let pair = &pairs[pairs.len() / 2];
        let [theirs, ours] = pair;
        println!(
            "| {} | {} | {} | {:.2} | {:.2} | {:.2} | {:.0} | {:.0} |",
            peer.name(),
            shape.0,
            shape.1,
            theirs.cpu_us_per_request,
            ours.cpu_us_per_request,
            ratio(pair),
            theirs.requests_per_s,
            ours.requests_per_s
        );
    }
    Ok(())
}

/// Runs every client while the server is suspended for a second, and prints the p99 that each reports, as a table.
fn stalls(clients: &[Client], places: &Places, server: &Server) -> Result<(), Failure> {
    let (connections, rate, seconds) = STALLED;
    println!(
        "\n| client at {rate} requests/s, {connections} connections, a stall of one second in {seconds} | p99 in ms |"
    );
    println!("|---|--:|");
    for client in clients {
        let amount = Amount::Rate(rate, seconds);
        let run = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_secs(seconds / 2));
                server.suspend(true);
                thread::sleep(Duration::from_secs(1));
                server.suspend(false);
            });
            client.run(places, &server.url, (connections, 1), amount)
        })?;
        let how = match client {
            Client::Load(_) => format!(" --rate {rate}"),
            Client::Oha(_, true) => format!(" -q {rate} --latency-correction"),
            Client::Oha(_, false) => format!(" -q {rate}"),
            Client::Bombardier(_) => format!(" -r {rate}"),
            Client::Wrk => ", which does not have a rate".into(),
        };
        println!("| {}{how} | {:.0} |", client.name(), run.p99_ms);
    }
    Ok(())
}

fn run(options: &Options) -> Result<(), Failure> {
    let cpus = topology::allowed_cpus();
    let [server, client, ..] = cpus[..] else {
        return Err(Failure::Environment("allow this process two CPUs".into()));
    };
    let places = Places { server_cpus: server.to_string(), client_cpus: client.to_string() };
    std::fs::write(script(), format!("wrk.body = '{BODY}'\n{WRK_SCRIPT}"))
        .map_err(|error| Failure::Environment(format!("cannot write wrk's script: {error}")))?;
    let server = Server::start(&options.ringtally, &places.server_cpus, &[])?;
    match options.peers.as_deref() {
        Some([oha, bombardier]) => {
            let oha = |is_corrected| Client::Oha(oha.clone(), is_corrected);
            let bombardier = || Client::Bombardier(bombardier.clone());
            table(&[Client::Wrk, oha(false), bombardier()], &places, &server.url, options)?;
            let load = Client::Load(options.ringtally.clone());
            let clients = [load, oha(true), oha(false), bombardier(), Client::Wrk];
            stalls(&clients, &places, &server)?;
        }
        _ => against_wrk(&places, &server.url, options)?,
    }
    server.stop()
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}
