//! The server over real sockets, with the engines side by side: `cargo bench --bench macro`.
//!
//! Each round runs `challenge` once with every engine, in alternating order, and every run must be exact. The server's CPU time
//! per request is compared pair by pair. It is meaningful even if the client is the limit, when requests/s reveals little.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark; a panic is a failure")]

use clap::Parser;
use serde_json::Value;
use std::process::{Command, Stdio};

const ENGINES: [&str; 2] = ["ring", "streams"];

/// Compares the engines over loopback
#[derive(Parser)]
struct Options {
    /// Numbers of keep-alive connections, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "1,64,1000")]
    connections: Vec<usize>,
    /// Requests in flight per connection, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pipeline: Vec<usize>,
    /// Runs per engine
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Events per run
    #[arg(long, default_value_t = 200_000)]
    requests: usize,
    /// Cargo passes this
    #[arg(long, hide = true)]
    bench: bool,
}

/// The measurements of one run.
struct Run {
    requests_per_s: f64,
    p50_us: f64,
    cpu_us: f64,
}

fn run(engine: &str, requests: usize, connections: usize, pipeline: usize) -> Run {
    let (requests, connections) = (requests.to_string(), connections.to_string());
    let pipeline = pipeline.to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_ringtally"))
        .args(["challenge", &requests, &connections, "--pipeline", &pipeline])
        .args(["--engine", engine, "--json", "-", "--quiet"])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{engine} ended with {}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["verdict"], "exact");
    Run {
        requests_per_s: report["requests_per_s"].as_f64().unwrap(),
        p50_us: report["latency_us"]["p50"].as_f64().unwrap(),
        cpu_us: report["server_cpu_us_per_request"].as_f64().unwrap(),
    }
}

/// Returns the median, the lowest, and the highest value.
fn summary(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

fn main() {
    let options = Options::parse();
    println!("medians of {} runs [lowest-highest]; ratio to ring pair by pair", options.rounds);
    println!(
        "{:>11} {:>8} {:8} {:>26} {:>9} {:>18} {:>18}",
        "connections", "pipeline", "engine", "requests/s", "p50 us", "CPU us/request", "ratio"
    );
    for connections in &options.connections {
        for pipeline in &options.pipeline {
            let mut runs = [const { Vec::new() }; ENGINES.len()];
            for round in 0..options.rounds {
                for turn in 0..ENGINES.len() {
                    let engine = (round + turn) % ENGINES.len();
                    runs[engine].push(run(
                        ENGINES[engine],
                        options.requests,
                        *connections,
                        *pipeline,
                    ));
                }
            }
            for (engine, of_engine) in ENGINES.iter().zip(&runs) {
                let of = |figure: fn(&Run) -> f64| summary(of_engine.iter().map(figure).collect());
                let (rate, least, most) = of(|run| run.requests_per_s);
                let (p50, ..) = of(|run| run.p50_us);
                let (cpu, cpu_least, cpu_most) = of(|run| run.cpu_us);
                let pairs = of_engine.iter().zip(&runs[0]);
                let (ratio, ratio_least, ratio_most) =
                    summary(pairs.map(|(run, ring)| run.cpu_us / ring.cpu_us).collect());
                println!(
                    "{connections:11} {pipeline:8} {engine:8} {:>26} {p50:9.0} {:>18} {:>18}",
                    format!("{rate:.0} [{least:.0}-{most:.0}]"),
                    format!("{cpu:.2} [{cpu_least:.2}-{cpu_most:.2}]"),
                    format!("{ratio:.2} [{ratio_least:.2}-{ratio_most:.2}]"),
                );
            }
        }
    }
}
