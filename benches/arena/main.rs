//! Every known server for the challenge, side by side: `cargo bench --bench arena`.
//!
//! It builds the entries and lets `ringtally challenge` compare them. `ci/arena` installs what the entries need.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark; a panic is a failure")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "pixels made of measured numbers: what they lose is less than a unit"
)]

mod document;
mod entry;
mod plot;

use clap::Parser;
use entry::{Build, Entry};
use ringtally::load::write_to;
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// Compares servers for the challenge, and checks each for exactness
#[derive(Parser)]
struct Options {
    /// Entries, separated by commas [default: all]
    #[arg(long, value_delimiter = ',')]
    entries: Vec<String>,
    /// Entries that must not be skipped, separated by commas
    #[arg(long, value_delimiter = ',')]
    require: Vec<String>,
    /// Write the comparison as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a chart as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write the tables as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Cargo passes this
    #[arg(long, hide = true)]
    bench: bool,
    /// Flags of `ringtally challenge`, after --, such as --rounds 3 --rows saturated,rate:5000
    #[arg(last = true)]
    challenge: Vec<String>,
}

/// An entry that is missing from the tables, and the reason.
struct Absent {
    name: String,
    reason: String,
    has_failed: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let entries = match chosen(&options) {
        Ok(entries) => entries,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let (entries, absent) = build(entries);
    let Some(found) = compare(&entries, &options) else {
        eprintln!("error: nothing was compared");
        return ExitCode::FAILURE;
    };
    let document = document::Document { found: &found, entries: &entries, absent: &absent };
    let mut outputs = Vec::new();
    outputs.extend(
        options
            .json
            .as_ref()
            .map(|path| (path, serde_json::to_string_pretty(&found).unwrap() + "\n")),
    );
    outputs.extend(options.markdown.as_ref().map(|path| (path, document.markdown())));
    outputs.extend(options.svg.as_ref().map(|path| (path, plot::svg(&found))));
    let mut is_failed = false;
    for (path, text) in outputs {
        if let Err(failure) = write_to(path, &text) {
            eprintln!("error: {failure}");
            is_failed = true;
        }
    }
    let missed = |absent: &&Absent| absent.has_failed || options.require.contains(&absent.name);
    let missed =
        absent.iter().filter(missed).map(|absent| format!("{}: {}", absent.name, absent.reason));
    for line in missed.chain(failures(&found, &entries)) {
        eprintln!("error: {line}");
        is_failed = true;
    }
    ExitCode::from(u8::from(is_failed))
}

/// Returns the entries that were named.
fn chosen(options: &Options) -> Result<Vec<Entry>, String> {
    let entries = entry::all();
    for name in options.entries.iter().chain(&options.require) {
        if !entries.iter().any(|entry| entry.name == *name) {
            let known: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
            return Err(format!("unknown entry {name}: use {}", known.join(", ")));
        }
    }
    let is_named = |entry: &Entry| {
        options.entries.contains(&entry.name) || options.require.contains(&entry.name)
    };
    let is_chosen = |entry: &Entry| options.entries.is_empty() || is_named(entry);
    Ok(entries.into_iter().filter(is_chosen).collect())
}

/// Builds the entries. Returns the built entries and the others.
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

/// Lets `ringtally challenge` compare the entries. Returns its comparison, or `None` if it did not make one.
fn compare(entries: &[Entry], options: &Options) -> Option<Value> {
    let file = std::env::temp_dir().join(format!("ringtally-arena-{}.json", std::process::id()));
    let mut challenge = Command::new(env!("CARGO_BIN_EXE_ringtally"));
    challenge.arg("challenge");
    for entry in entries {
        challenge.args(["--server", &entry.server()]);
    }
    // Cargo adds its own flag.
    let flags: Vec<&String> = options.challenge.iter().filter(|flag| *flag != "--bench").collect();
    // Rows that every entry takes, in as many rounds as the published tables have.
    for (flag, value) in [("--rounds", "3"), ("--rows", "saturated,stats")] {
        if !flags.iter().any(|own| own.starts_with(flag)) {
            challenge.args([flag, value]);
        }
    }
    challenge.args(flags).arg("--json").arg(&file);
    // Entries that do not count make it fail, so its findings decide, and not its exit code.
    challenge.status().ok()?;
    let text = std::fs::read(&file).ok()?;
    let _ = std::fs::remove_file(&file);
    serde_json::from_slice(&text).ok()
}

/// Returns the reasons, one per line, that entries that count are not exact, or that entries gave up.
fn failures(found: &Value, entries: &[Entry]) -> Vec<String> {
    let servers = found["servers"].as_array().into_iter().flatten();
    let failed = servers.filter_map(|server| {
        Some(format!("{}: {}", server["name"].as_str()?, server["failure"].as_str()?))
    });
    let rows = found["rows"].as_array().into_iter().flatten();
    let wrong =
        rows.flat_map(|row| row["servers"].as_array().into_iter().flatten()).filter_map(|one| {
            let entry = &entries[usize::try_from(one["server"].as_u64()?).ok()?];
            let is_wrong = entry.counts() && one["verdict"] == "wrong";
            is_wrong.then(|| {
                format!("{}: {}", entry.name, one["why"].as_str().unwrap_or("it is wrong"))
            })
        });
    failed.chain(wrong).collect()
}
