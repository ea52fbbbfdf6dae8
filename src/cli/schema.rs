//! `ringtally schema`.

use crate::document::Format;
use crate::failure::Failure;
use crate::{challenge, compare, doctor, load, terminal};
use schemars::Schema;

pub(super) const EXAMPLES: &str = "\
Examples:
  ringtally schema load > ringtally-load.schema.json
  ringtally schema find-rate

benches/REPORTS.md describes every key.";

/// Prints the JSON Schema of a format.
///
/// # Errors
///
/// [`Failure::Environment`] if standard output cannot be written.
pub fn print_schema(format: Format) -> Result<(), Failure> {
    let schema = serde_json::to_string_pretty(&schema(format));
    let schema = schema.unwrap_or_else(|error| unreachable!("its keys are text: {error}"));
    terminal::print(&(schema + "\n"))
}

/// Returns the JSON Schema of a format.
pub fn schema(format: Format) -> Schema {
    let schema = load::schema(format)
        .or_else(|| doctor::schema(format))
        .or_else(|| challenge::schema(format))
        .or_else(|| compare::schema(format));
    schema.unwrap_or_else(|| unreachable!("a module writes each format"))
}
