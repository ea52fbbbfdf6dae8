//! The JSON documents that the program writes: each names its format and the number of it, which a change of meaning
//! raises, and whoever reads one checks that name first.

use clap::ValueEnum;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::Value;

/// A kind of document, as `ringtally schema` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Report of load
    Load,
    /// Report of merge, on all parts of a run
    Merge,
    /// Report of challenge
    Challenge,
    /// Servers that challenge --server compared
    Servers,
    /// Report of load --part
    Part,
    /// What load --find-rate found
    FindRate,
    /// Comparison of runs
    Compare,
    /// Checks of doctor
    Doctor,
    /// Differences that doctor --compare found
    DoctorCompare,
    /// Comparison of two servers by ci/perf
    Perf,
}

impl Format {
    /// The keys of one run.
    pub const RUNS: [Format; 3] = [Format::Load, Format::Merge, Format::Challenge];

    /// Returns its name, which is an argument and a part of each document's `format`.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(|| unreachable!("no format is hidden"), |value| value.get_name().into())
    }

    /// Returns its number. A change that a reader would misread raises it.
    fn number(self) -> u32 {
        1
    }

    /// Returns the `format` of its documents, such as `ringtally-load/1`.
    pub fn text(self) -> String {
        format!("ringtally-{}/{}", self.name(), self.number())
    }

    /// Returns the command that writes such documents, as its user knows it.
    pub(crate) fn command(self) -> String {
        match self {
            Format::FindRate => "ringtally load --find-rate".into(),
            Format::Servers => "ringtally challenge".into(),
            Format::Perf => "ci/perf".into(),
            _ => format!("ringtally {}", self.name()),
        }
    }

    /// Returns the JSON Schema of a document with such content.
    pub(crate) fn schema<T: JsonSchema>(self) -> Schema {
        let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
        let mut schema = generator.into_root_schema_for::<Document<T>>();
        schema.insert("title".into(), self.text().into());
        for (key, what) in [("secs", "Whole seconds."), ("nanos", "Nanoseconds beyond them.")] {
            // The standard library does not describe its durations.
            let place = format!("/$defs/Duration/properties/{key}");
            if let Some(part) = schema.pointer_mut(&place) {
                part["description"] = what.into();
            }
        }
        if let Some(format) = schema.pointer_mut("/properties/format") {
            format["const"] = self.text().into();
        }
        schema
    }
}

/// A document.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Document<T> {
    /// The format of the document, and its number. Within 0.x, a change of meaning raises the number.
    format: String,
    #[serde(flatten)]
    content: T,
}

impl<T: Serialize> Document<T> {
    pub(crate) fn new(format: Format, content: T) -> Document<T> {
        Document { format: format.text(), content }
    }

    /// Returns it as JSON that people can read, too.
    pub(crate) fn json(&self) -> String {
        written(serde_json::to_string_pretty(self))
    }

    /// Returns it as one line of JSON.
    pub(crate) fn line(&self) -> String {
        written(serde_json::to_string(self))
    }
}

fn written(json: serde_json::Result<String>) -> String {
    json.unwrap_or_else(|error| unreachable!("its keys are text: {error}")) + "\n"
}

/// Returns the content of a document in one of these formats.
///
/// # Errors
///
/// If it is none of them: one clause says why, and which version reads it.
pub(crate) fn read(text: &[u8], formats: &[Format]) -> Result<(Format, Value), String> {
    let json: Value =
        serde_json::from_slice(text).map_err(|error| format!("it is not JSON ({error})"))?;
    let writer = match json.pointer("/environment/version").or_else(|| json.get("version")) {
        Some(Value::String(version)) => format!("ringtally {version}"),
        _ => "the ringtally".into(),
    };
    let names = formats.iter().map(|format| format.text()).collect::<Vec<_>>().join(", ");
    let Some(own) = json.get("format").and_then(Value::as_str) else {
        return Err(format!(
            "it names no format, and this version reads {names}; if it is an old report, {writer} that wrote it reads it"
        ));
    };
    if let Some(format) = formats.iter().find(|format| format.text() == own) {
        return Ok((*format, json));
    }
    let kind = |text: &str| text.split_once('/').map(|(kind, _)| kind.to_owned());
    let is_other_number = formats.iter().any(|format| kind(&format.text()) == kind(own));
    Err(match is_other_number {
        true => format!(
            "it has the format {own}, and this version reads {names}: {writer} that wrote it reads it"
        ),
        false => format!("it has the format {own}, and only {names} can be used here"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_document_of_another_format_is_refused_with_the_version_that_reads_it() {
        let read = |json: Value| read(json.to_string().as_bytes(), &Format::RUNS);
        assert_eq!(
            read(json!({"format": "ringtally-merge/1", "a": 1})).unwrap(),
            (Format::Merge, json!({"format": "ringtally-merge/1", "a": 1}))
        );
        for (document, says) in [
            (
                json!({"environment": {"version": "0.0.9"}}),
                "names no format, and this version reads ringtally-load/1, ringtally-merge/1, \
                 ringtally-challenge/1; if it is an old report, ringtally 0.0.9 that wrote it reads it",
            ),
            (
                json!({"format": "ringtally-load/2", "environment": {"version": "9.0"}}),
                "the format ringtally-load/2, and this version reads ringtally-load/1, ringtally-merge/1, \
                 ringtally-challenge/1: ringtally 9.0 that wrote it reads it",
            ),
            (json!({"format": "ringtally-part/1"}), "the format ringtally-part/1, and only"),
            (json!([]), "names no format"),
        ] {
            let said = read(document).unwrap_err();
            assert!(said.contains(says), "{said}");
        }
    }
}
