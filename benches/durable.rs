//! The cost of a store in a file: the same loads on servers with and without `--store`, in pairs: `cargo bench --bench
//! durable`. `ci/durable` compares it with PostgreSQL, too.
//!
//! Every load runs on a new server. Server and client have a CPU each.

#![allow(missing_docs, reason = "a benchmark")]

#[path = "paired/server.rs"]
mod server;

use clap::Parser;
use ringtally::failure::Failure;
use ringtally::statistics::median;
use ringtally::topology;
use serde_json::json;
use server::{Places, Server};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Events and connections of the loads.
const MANY: (u64, u64) = (1_000_000, 1_000);
const FEW: (u64, u64) = (300_000, 64);
/// One event at a time, so that each is alone in a commit.
const ALONE: (u64, u64) = (2_000, 1);

/// Measures what a store costs
#[derive(Parser)]
#[command(
    max_term_width = 80,
    after_help = "Exit codes:\n  0  every goal is met\n  1  a goal is missed, or a server counted incorrectly"
)]
struct Options {
    /// Pairs of runs for each figure
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pairs: u64,
    /// Directory of the store [default: the build's]
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"), hide_default_value = true)]
    directory: PathBuf,
    /// Transactions/s of PostgreSQL on the same disk, with one INSERT per event
    #[arg(long, value_name = "N")]
    transactions_per_s: Option<f64>,
    /// Write all figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The program that serves, and sends [default: this build]
    #[arg(long, value_name = "BIN", default_value = env!("CARGO_BIN_EXE_ringtally"), hide_default_value = true)]
    ringtally: PathBuf,
    /// Cargo passes this
    #[arg(long, hide = true)]
    bench: bool,
}

/// The measurements of one load.
#[derive(serde::Serialize)]
struct Run {
    requests_per_s: f64,
    p99_us: f64,
    /// CPU microseconds of the shard per request.
    shard_us: f64,
    /// Microseconds per commit; NaN without a store.
    commit_us: f64,
    /// The size of the store.
    bytes: u64,
}

/// A figure, and what it should be.
#[derive(serde::Serialize)]
struct Goal {
    what: &'static str,
    value: f64,
    goal: &'static str,
    limit: f64,
    is_met: bool,
}

impl Goal {
    fn at_least(what: &'static str, value: f64, limit: f64) -> Self {
        Goal { what, value, goal: "at least", limit, is_met: value >= limit }
    }

    fn at_most(what: &'static str, value: f64, limit: f64) -> Self {
        Goal { what, value, goal: "at most", limit, is_met: value <= limit }
    }
}

/// Runs one load on a new server, with a new store or without one.
fn run(
    ringtally: &Path,
    places: &Places,
    store: Option<&Path>,
    (requests, connections): (u64, u64),
) -> Result<Run, Failure> {
    let file = store.map(|store| store.display().to_string());
    let mut flags = Vec::new();
    if let Some(file) = &file {
        // This fails before the first run.
        let _ = std::fs::remove_file(file);
        flags.extend(["--store", file]);
    }
    let server = Server::start(ringtally, &places.server_cpus, &flags)?;
    let shape = [requests.to_string(), connections.to_string()];
    let report = server.load(ringtally, &places.client_cpus, &shape)?;
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or(f64::NAN);
    let [commits, commit_s, shard_s] = server.metrics([
        "ringtally_store_commits_total",
        "ringtally_store_commit_duration_seconds_sum",
        "ringtally_cpu_seconds_total",
    ])?;
    server.stop()?;
    Ok(Run {
        requests_per_s: number(&report["requests_per_s"]),
        p99_us: number(&report["latency_us"]["p99"]),
        shard_us: shard_s * 1e6 / requests as f64,
        commit_us: commit_s * 1e6 / commits,
        bytes: store.and_then(|store| store.metadata().ok()).map_or(0, |of| of.len()),
    })
}

/// Returns the median of a figure.
fn middle(runs: &[Run], figure: fn(&Run) -> f64) -> f64 {
    median(&mut runs.iter().map(figure).collect::<Vec<_>>()).unwrap_or(f64::NAN)
}

/// Returns the median over the pairs of the ratio of a figure, with a store to without one.
fn ratio([without, with]: &[Vec<Run>; 2], figure: fn(&Run) -> f64) -> f64 {
    let ratios = without.iter().zip(with).map(|(without, with)| figure(with) / figure(without));
    median(&mut ratios.collect::<Vec<_>>()).unwrap_or(f64::NAN)
}

fn measure(options: &Options) -> Result<bool, Failure> {
    let allowed = topology::allowed_cpus();
    let client = allowed.get(1).unwrap_or(&allowed[0]);
    let places = Places { server_cpus: allowed[0].to_string(), client_cpus: client.to_string() };
    let store = options.directory.join("durable.redb");
    let (mut many, mut few, mut alone) =
        (<[Vec<Run>; 2]>::default(), <[Vec<Run>; 2]>::default(), Vec::new());
    for pair in 1..=options.pairs {
        eprintln!("pair {pair} of {}", options.pairs);
        for (runs, load) in [(&mut many, MANY), (&mut few, FEW)] {
            runs[0].push(run(&options.ringtally, &places, None, load)?);
            runs[1].push(run(&options.ringtally, &places, Some(&store), load)?);
        }
        alone.push(run(&options.ringtally, &places, Some(&store), ALONE)?);
    }
    // Nothing needs it anymore.
    let _ = std::fs::remove_file(&store);
    let commit_us = middle(&alone, |run| run.commit_us);
    let two_commits = middle(&few[0], |run| run.p99_us) + 2.0 * commit_us;
    let mut goals = vec![
        Goal::at_least(
            "requests/s, 1,000 connections, to the same without a store",
            ratio(&many, |run| run.requests_per_s),
            0.90,
        ),
        Goal::at_most(
            "shard CPU per request, 1,000 connections, to the same without a store",
            ratio(&many, |run| run.shard_us),
            1.10,
        ),
        Goal::at_most(
            "p99 at 64 connections in µs, to the p99 without a store and two commits",
            middle(&few[1], |run| run.p99_us),
            two_commits,
        ),
        Goal::at_most(
            "bytes of the store after 1 million events of 75,000 users",
            middle(&many[1], |run| run.bytes as f64),
            f64::from(8 << 20),
        ),
    ];
    if let Some(transactions) = options.transactions_per_s {
        let rate = middle(&many[1], |run| run.requests_per_s) / transactions;
        goals.push(Goal::at_least(
            "events/s, 1,000 connections, to one INSERT per event in PostgreSQL",
            rate,
            20.0,
        ));
    }
    for Goal { what, value, goal, limit, is_met } in &goals {
        let word = if *is_met { "ok    " } else { "MISSED" };
        let round = |number: &f64| (number * 1e3).round() / 1e3;
        println!("{word} {} ({goal} {}): {what}", round(value), round(limit));
    }
    println!("a commit alone: {commit_us:.0} µs");
    for (name, [without, with]) in [("1,000 connections", &many), ("64 connections", &few)] {
        for (side, runs) in [("without", without), ("with", with)] {
            println!(
                "{name}, {side} a store: {:.0} requests/s, p99 {:.0} µs, shard CPU {:.2} µs per request",
                middle(runs, |run| run.requests_per_s),
                middle(runs, |run| run.p99_us),
                middle(runs, |run| run.shard_us)
            );
        }
    }
    if let Some(file) = &options.json {
        let document = json!({
            "goals": goals,
            "commit_alone_us": commit_us,
            "postgresql_transactions_per_s": options.transactions_per_s,
            "runs": {"without_1000": many[0], "with_1000": many[1], "without_64": few[0], "with_64": few[1], "alone": alone},
        });
        std::fs::write(file, format!("{document:#}\n"))
            .map_err(|error| Failure::Usage(format!("cannot write {}: {error}", file.display())))?;
    }
    Ok(goals.iter().all(|goal| goal.is_met))
}

fn main() -> ExitCode {
    match measure(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}
