//! Whether the server of one commit, the head, is slower than that of another, the base, on a machine
//! that may be shared and noisy: `cargo bench --bench paired -- --base BIN --head BIN`.
//!
//! The servers are compared in blocks A B B A on their own CPUs, with the same client for both. The
//! server's CPU time per million events decides, because it is meaningful even if the client is the
//! limit; requests/s and p99 are reported next to it. Each block gives one ratio, head to base. Blocks
//! that compare the base with itself are spread between them, and show what the setup makes of no
//! change: the noise floor. The rules are in the module `verdict`.

#![allow(missing_docs, reason = "a benchmark")]

mod blocks;
mod counts;
mod options;
mod report;
mod server;
mod verdict;

use blocks::Block;
use clap::Parser;
use options::Options;
use report::{Comparison, Report};
use ringtally::failure::Failure;
use ringtally::{load, topology};
use server::Places;
use std::process::ExitCode;
use std::time::Instant;
use verdict::{Evidence, Pair, Verdict};

/// Server and client get separate CPUs: on a shared one, each would also measure the other.
fn places() -> Result<Places, Failure> {
    let (server, client) =
        topology::divide(&topology::allowed_cpus(), topology::siblings, topology::core_kind);
    if server == client {
        let reason =
            "a comparison needs two CPUs, and this process may use one: widen its affinity mask";
        return Err(Failure::Environment(reason.into()));
    }
    Ok(Places {
        server_cpus: topology::format_cpu_list(&server),
        client_cpus: topology::format_cpu_list(&client),
    })
}

/// Runs blocks until there is a verdict, or no time for another block.
fn compare(options: &Options) -> Result<Comparison, Failure> {
    let started = Instant::now();
    let mut evidence = Evidence::default();
    let mut comparison = Comparison::new(places()?);
    loop {
        let block_started = Instant::now();
        let pair = evidence.next();
        let (other, blocks) = match pair {
            Pair::Head => (&options.head, &mut comparison.head),
            Pair::Floor => (&options.base, &mut comparison.floor),
        };
        let block = Block::run(&options.base, other, options, &comparison.places)?;
        evidence.add(pair, block.log_ratio(|leg| leg.cpu));
        blocks.push(block);
        comparison.verdict = evidence.verdict(options.seed);
        comparison.elapsed = started.elapsed();
        let next_would_end = comparison.elapsed + block_started.elapsed();
        if comparison.verdict != Verdict::Inconclusive || next_would_end > options.time_limit {
            return Ok(comparison);
        }
    }
}

/// Compares, and writes the reports, which say so if nothing could be compared.
fn run(options: &Options) -> Result<u8, Failure> {
    let instructions = options.instructions()?;
    let report = load::export(&options.export, || {
        let report = Report { options, instructions, outcome: compare(options) };
        let findings = report.findings();
        Ok((report, findings))
    })?;
    eprint!("{}", report.line());
    if let Some(file) = &options.markdown {
        report::write(file, &report.markdown())?;
    }
    if let Some(file) = &options.json {
        report::write(file, &report.record().json())?;
    }
    Ok(report.exit_code())
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}
