//! The instructions that valgrind counted for the operations of two commits, next to each other.

use ringtally::compare::{Counted, Counts, Instructions};
use ringtally::failure::Failure;
use serde_json::Value;
use std::path::Path;

/// The ratio of head to base above which an operation takes too many instructions.
const RATIO_MAX: f64 = 1.01;

/// Reads what `cargo bench --bench instructions -- --output-format=json` has written, a line per benchmark.
/// Returns the name of each, and its instructions.
fn read(file: &Path) -> Result<Vec<(String, u64)>, Failure> {
    let unreadable = |why: String| Failure::Usage(format!("cannot read {}: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| unreadable(error.to_string()))?;
    let counts = text.lines().filter(|line| !line.is_empty()).map(|line| {
        let of: Value = serde_json::from_str(line).ok()?;
        let name = format!("{}/{}", of["function_name"].as_str()?, of["id"].as_str()?);
        let count = of.pointer("/profiles/0/data/total/metrics/Ir/values/new")?.as_u64()?;
        Some((name, count))
    });
    let counts: Option<Vec<_>> = counts.collect();
    counts.ok_or_else(|| unreadable("it is not the output of the instruction bench".into()))
}

/// Compares the counts of two files. A benchmark that only one side has is listed, and not compared. The note is added to the
/// reason of the verdict.
pub(crate) fn compare(
    base: &Path,
    head: &Path,
    note: Option<&str>,
) -> Result<Instructions, Failure> {
    let (base, head) = (read(base)?, read(head)?);
    let of = |counts: &[(String, u64)], name: &str| {
        counts.iter().find(|(other, _)| other == name).map(|(_, count)| *count)
    };
    let new = head.iter().filter(|(name, _)| of(&base, name).is_none());
    let counts: Vec<Counts> = base
        .iter()
        .chain(new)
        .map(|(name, _)| {
            let (base, head) = (of(&base, name), of(&head, name));
            let ratio = base.zip(head).map(|(base, head)| head as f64 / base as f64);
            Counts { name: name.clone(), base, head, ratio }
        })
        .collect();
    let verdict = match counts.iter().filter_map(|counts| counts.ratio).reduce(f64::max) {
        None => Counted::NotCompared,
        Some(most) if most > RATIO_MAX => Counted::Failed,
        Some(_) => Counted::Passed,
    };
    let note = note.map(|note| format!("; {note}")).unwrap_or_default();
    Ok(Instructions { verdict, reason: format!("more than 1% more fails{note}"), counts })
}
