//! Every known server for the challenge side by side: `cargo bench --bench arena`.
//!
//! Each entry in turn is started on the server's CPUs, warmed up, loaded from the client's CPUs, and
//! stopped. Rounds are interleaved, so that what changes on the machine changes for all, and ratios
//! are taken within a round. `ci/arena` installs what the entries need.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark; a panic is a failure")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "event counts and pixels made of measured numbers: what they lose is less than a unit"
)]

mod closing;
mod document;
mod entry;
mod measure;
mod pause;
mod plot;
mod process;
mod statistics;

use clap::Parser;
use entry::{Build, Entry};
use measure::{Bench, Exactness, Run, Workload};
use ringtally::load::write_to;
use ringtally::topology::{
    allowed_cpus, choose, core_kind, divide, format_cpu_list, parse_cpu_list, siblings,
};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Compares servers for the challenge, and checks each for exactness
#[derive(Parser)]
struct Options {
    /// Entries, separated by commas [default: all]
    #[arg(long, value_delimiter = ',')]
    entries: Vec<String>,
    /// Entries that must not be skipped, separated by commas
    #[arg(long, value_delimiter = ',')]
    require: Vec<String>,
    /// Runs of each entry
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Numbers of keep-alive connections, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "64", value_parser = clap::value_parser!(u64).range(1..))]
    connections: Vec<u64>,
    /// Requests in flight per connection, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u64).range(1..))]
    pipeline: Vec<u64>,
    /// Also measure at these fixed rates in requests per second, separated by commas
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..))]
    rate: Vec<u64>,
    /// Also measure as many clients that open a connection for each request
    #[arg(long)]
    closing: bool,
    /// Length of a measured run in seconds, 0.1 or more
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// CPUs of the server, in taskset syntax [default: half of the allowed cores]
    #[arg(long)]
    server_cpus: Option<String>,
    /// CPUs of the client [default: the other half]
    #[arg(long)]
    client_cpus: Option<String>,
    /// Write all runs as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a chart as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write the tables as Markdown; - is standard output
    #[arg(long, value_name = "FILE", default_value = "-")]
    markdown: PathBuf,
    /// Cargo passes this
    #[arg(long, hide = true)]
    bench: bool,
}

/// An entry that is missing from the tables, and why.
struct Absent {
    name: String,
    reason: String,
    has_failed: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let started = Instant::now();
    let (bench, entries) = match prepare(&options) {
        Ok(prepared) => prepared,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let (entries, mut absent) = build(entries);
    let mut runs: Vec<Run> = Vec::new();
    for workload in workloads(&options) {
        for round in 0..options.rounds {
            for index in 0..entries.len() {
                // The entry that comes first changes from round to round.
                let entry = &entries[(index + round as usize) % entries.len()];
                eprintln!("round {} of {}, {workload}: {}", round + 1, options.rounds, entry.name);
                match bench.measure(entry, workload, round) {
                    Ok(run) => runs.push(run),
                    Err(reason) => note(&mut absent, entry, &format!("{workload}: {reason}")),
                }
            }
        }
    }
    let mut exactness: Vec<(String, Exactness)> = Vec::new();
    for entry in &entries {
        eprintln!("exactness and system calls: {}", entry.name);
        match bench.examine(entry) {
            Ok(found) => exactness.push((entry.name.clone(), found)),
            Err(reason) => note(&mut absent, entry, &reason),
        }
    }
    eprintln!("done in {:.0} s", started.elapsed().as_secs_f64());

    let environment = bench.environment();
    let versions: Vec<(String, String)> =
        entries.iter().map(|entry| (entry.name.clone(), entry.version(&bench.builds))).collect();
    let document = document::Document {
        environment: &environment,
        versions: &versions,
        entries: &entries,
        runs: &runs,
        exactness: &exactness,
        absent: &absent,
        bench: &bench,
    };
    let mut outputs = vec![(&options.markdown, document.markdown())];
    if let Some(path) = &options.json {
        let all = json!({
            "environment": environment,
            "command": document::command(),
            "server_cpus": format_cpu_list(&bench.server_cpus),
            "client_cpus": format_cpu_list(&bench.client_cpus),
            "versions": versions,
            "runs": runs,
            "exactness": exactness,
            "absent": absent.iter().map(|a| json!({"entry": a.name, "reason": a.reason}))
                .collect::<Vec<_>>(),
        });
        outputs.push((path, serde_json::to_string_pretty(&all).unwrap() + "\n"));
    }
    if let Some(path) = &options.svg {
        outputs.push((path, plot::svg(&runs)));
    }
    let mut all_written = true;
    for (path, text) in outputs {
        if let Err(failure) = write_to(path, &text) {
            eprintln!("error: {failure}");
            all_written = false;
        }
    }
    let is_missed = |absent: &&Absent| absent.has_failed || options.require.contains(&absent.name);
    let missed: Vec<&Absent> = absent.iter().filter(is_missed).collect();
    for absent in &missed {
        eprintln!("error: {}: {}", absent.name, absent.reason);
    }
    ExitCode::from(u8::from(!(missed.is_empty() && all_written)))
}

/// Checks the flags.
fn prepare(options: &Options) -> Result<(Bench, Vec<Entry>), String> {
    let allowed = allowed_cpus();
    let (server, client) = divide(&allowed, siblings, core_kind);
    let cpus = |given: &Option<String>, default: Vec<usize>| match given {
        Some(list) => parse_cpu_list(list)
            .and_then(|list| choose(Some(&list), &allowed))
            .map_err(|error| error.to_string()),
        None => Ok(default),
    };
    if !(options.seconds.is_finite() && options.seconds >= 0.1) {
        return Err("--seconds must be 0.1 or more".into());
    }
    let entries = entry::all();
    let named = options.entries.iter().chain(&options.require);
    for name in named {
        if !entries.iter().any(|entry| entry.name == *name) {
            let known: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
            return Err(format!("unknown entry {name}: use {}", known.join(", ")));
        }
    }
    let is_named = |entry: &Entry| {
        options.entries.contains(&entry.name) || options.require.contains(&entry.name)
    };
    let chosen = |entry: &Entry| options.entries.is_empty() || is_named(entry);
    let bench = Bench {
        server_cpus: cpus(&options.server_cpus, server)?,
        client_cpus: cpus(&options.client_cpus, client)?,
        length: Duration::from_secs_f64(options.seconds),
        builds: std::env::temp_dir().join("ringtally-peers"),
    };
    Ok((bench, entries.into_iter().filter(chosen).collect()))
}

/// Builds the entries. Returns those that were built, and the others.
fn build(entries: Vec<Entry>) -> (Vec<Entry>, Vec<Absent>) {
    let (mut there, mut absent) = (Vec::new(), Vec::new());
    for entry in entries {
        eprintln!("building {}", entry.name);
        let (reason, has_failed) = match entry.build() {
            Build::Done => {
                there.push(entry);
                continue;
            }
            Build::Skipped(reason) => (reason, false),
            Build::Failed(reason) => (reason, true),
        };
        absent.push(Absent { name: entry.name, reason, has_failed });
    }
    (there, absent)
}

fn note(absent: &mut Vec<Absent>, entry: &Entry, reason: &str) {
    eprintln!("{} failed: {reason}", entry.name);
    absent.push(Absent { name: entry.name.clone(), reason: reason.into(), has_failed: true });
}

fn workloads(options: &Options) -> Vec<Workload> {
    let mut workloads = Vec::new();
    for connections in &options.connections {
        for pipeline in &options.pipeline {
            workloads.push(Workload { pipeline: *pipeline, ..Workload::closed_loop(*connections) });
        }
        let at = |rate| Workload { rate: Some(rate), ..Workload::closed_loop(*connections) };
        workloads.extend(options.rate.iter().copied().map(at));
        if options.closing {
            workloads.push(Workload { closes: true, ..Workload::closed_loop(*connections) });
        }
    }
    workloads
}
