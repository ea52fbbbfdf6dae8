//! The formats of results for other tools, in one table. The rest of the program does not know these formats.

use super::destination::Destination;
use super::figures::{Better, FIGURES, Figure, Quantity};
use super::latency::Bound;
use super::markup::escape;
use crate::failure::Failure;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::str::FromStr;

/// The findings of a run, a search, or a comparison, as exporters need them.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// The command, such as `ringtally load`.
    pub name: String,
    /// The measured figures.
    pub values: Vec<Finding>,
    /// The conditions that were checked.
    pub cases: Vec<Case>,
    /// The column heads of a table. The table of a run has a row for each second.
    pub heads: Vec<&'static str>,
    /// The rows of the table.
    pub rows: Vec<Vec<String>>,
    /// Lines for human readers, below the table of values.
    pub lines: Vec<String>,
}

/// The value of a figure, and its 95% confidence interval if that is known.
#[derive(Clone, Debug)]
pub struct Finding {
    pub(crate) figure: Figure,
    pub(crate) value: Bound,
    pub(crate) range: Option<[f64; 2]>,
}

impl Finding {
    /// Creates a finding for the figure with this name in conditions, with its interval.
    ///
    /// # Errors
    ///
    /// Fails if the figure does not exist.
    pub fn new(name: &str, value: f64, range: Option<[f64; 2]>) -> Result<Finding, String> {
        let figure = Figure::named(name, &FIGURES)?;
        Ok(Finding { figure, value: Bound::exactly(value), range })
    }

    /// Returns the least and the greatest possible value, as far as they are known.
    fn limits(&self) -> [Option<f64>; 2] {
        match self.range {
            Some(range) => range.map(Some),
            None => [self.value.is_at_least.then_some(self.value.micros), None],
        }
    }

    /// Returns these limits as text, with each value formatted by `write`; `None` if neither limit is known.
    fn limits_in_words(&self, write: impl Fn(f64) -> String) -> Option<String> {
        Some(match self.limits() {
            [Some(low), Some(high)] => format!("{} to {}", write(low), write(high)),
            [Some(low), None] => format!("at least {}", write(low)),
            [None, _] => return None,
        })
    }
}

/// A check, and the reason if it failed.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// The reason why it did not pass.
    pub failure: Option<String>,
}

/// An export format, by its name in `--export`.
type Exporter = (&'static str, fn(&[Findings]) -> String);

const EXPORTERS: [Exporter; 6] = [
    ("bmf", bmf),
    ("github-action-benchmark", |all| for_action(all, Better::Lower)),
    ("github-action-benchmark-bigger", |all| for_action(all, Better::Higher)),
    ("junit", junit),
    ("markdown", markdown),
    ("csv", csv),
];

/// A value of `--export`.
#[derive(Clone, Debug)]
pub struct Export {
    exporter: Exporter,
    path: PathBuf,
}

impl FromStr for Export {
    type Err = String;

    fn from_str(text: &str) -> Result<Export, String> {
        let (name, path) = text
            .split_once('=')
            .filter(|(_, path)| !path.is_empty())
            .ok_or("write a format and a file, such as junit=report.xml")?;
        let exporter = EXPORTERS.into_iter().find(|(own, _)| *own == name).ok_or_else(|| {
            format!("there is no format '{name}': use {}", EXPORTERS.map(|(own, _)| own).join(", "))
        })?;
        Ok(Export { exporter, path: path.into() })
    }
}

impl Export {
    /// Returns the flag, for messages, and the place that it names.
    pub(crate) fn place(&self) -> (String, PathBuf) {
        (format!("--export {}", self.exporter.0), self.path.clone())
    }
}

/// Opens the places that `exports` name, and writes the findings of `find` to them.
///
/// # Errors
///
/// [`Failure::Usage`] if two of them are the same place, and [`Failure::Environment`] if a place cannot be written.
pub fn export<T>(
    exports: &[Export],
    find: impl FnOnce() -> Result<(T, Findings), Failure>,
) -> Result<T, Failure> {
    let (_, places) = Destination::open_all([], exports.iter().map(Export::place).collect())?;
    let (found, findings) = find()?;
    Failure::all(write(exports, places, &[findings]))?;
    Ok(found)
}

/// Writes findings to the places that `exports` name, which were opened in this order. If there are several findings,
/// each is a benchmark, and all use the column heads of the first.
pub(crate) fn write(
    exports: &[Export],
    places: Vec<Destination>,
    all: &[Findings],
) -> Vec<Result<(), Failure>> {
    let pairs = exports.iter().zip(places);
    pairs.map(|(export, place)| place.write(&export.exporter.1(all))).collect()
}

/// Formats findings in Bencher Metric Format: a measure per figure, with its interval. A value that is a lower bound
/// does not have an upper limit.
fn bmf(all: &[Findings]) -> String {
    let benchmarks: Map<String, Value> =
        all.iter().map(|findings| (findings.name.clone(), measures(findings))).collect();
    pretty(&benchmarks)
}

fn measures(findings: &Findings) -> Value {
    let measures = findings.values.iter().map(|finding| {
        let mut measure = json!({ "value": finding.value });
        for (name, limit) in ["lower_value", "upper_value"].into_iter().zip(finding.limits()) {
            if let Some(limit) = limit {
                measure[name] = limit.into();
            }
        }
        // The name of a measure is a slug.
        (finding.figure.name.replace(['.', '_'], "-"), measure)
    });
    Value::Object(measures.collect())
}

/// An entry of a custom tool in github-action-benchmark. Each tool takes figures that improve in the same direction.
#[derive(Serialize)]
struct Entry {
    name: String,
    unit: &'static str,
    value: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    range: Option<String>,
}

fn for_action(all: &[Findings], better: Better) -> String {
    let values = all
        .iter()
        .flat_map(|findings| findings.values.iter().map(|finding| (&findings.name, finding)));
    let entries: Vec<Entry> = values
        .filter(|(_, finding)| finding.figure.better == better)
        .map(|(name, finding)| Entry {
            name: format!("{name}: {}", finding.figure.name),
            unit: unit(&finding.figure),
            value: finding.value.micros,
            range: finding.limits_in_words(|limit| limit.to_string()),
        })
        .collect();
    pretty(&entries)
}

fn unit(figure: &Figure) -> &'static str {
    match figure.quantity {
        Quantity::Latency | Quantity::CpuTime => "us",
        Quantity::Rate => "1/s",
        Quantity::Share => "share",
        Quantity::Count | Quantity::Word(_) => "count",
    }
}

fn pretty(value: &impl Serialize) -> String {
    let json = serde_json::to_string_pretty(value);
    json.unwrap_or_else(|error| unreachable!("its keys are text: {error}")) + "\n"
}

/// Formats findings as JUnit XML, which CI systems display: a test case per verdict and threshold.
fn junit(all: &[Findings]) -> String {
    let counts = |cases: &[&Case]| {
        let failures = cases.iter().filter(|case| case.failure.is_some()).count();
        format!("tests=\"{}\" failures=\"{failures}\" errors=\"0\"", cases.len())
    };
    let cases: Vec<&Case> = all.iter().flat_map(|findings| &findings.cases).collect();
    let mut text =
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites {}>\n", counts(&cases));
    for findings in all.iter().filter(|findings| !findings.cases.is_empty()) {
        let counts = counts(&findings.cases.iter().collect::<Vec<_>>());
        text += &suite(findings, &counts);
    }
    text + "</testsuites>\n"
}

fn suite(Findings { name, cases, .. }: &Findings, counts: &str) -> String {
    let name = xml(name);
    let mut text = format!("  <testsuite name=\"{name}\" {counts}>\n");
    for case in cases {
        let head = format!("    <testcase name=\"{}\" classname=\"{name}\"", xml(&case.name));
        let _ = match &case.failure {
            None => writeln!(text, "{head}/>"),
            Some(why) => writeln!(
                text,
                "{head}>\n      <failure message=\"{}\">{}</failure>\n    </testcase>",
                xml(why.lines().next().unwrap_or_default()),
                xml(why)
            ),
        };
    }
    text + "  </testsuite>\n"
}

/// Escapes text for XML 1.0, and drops the characters that a document must not contain (section 2.2).
fn xml(text: &str) -> String {
    let is_allowed = |c: char| match c {
        '\n' | '\t' => true,
        '\u{fffe}' | '\u{ffff}' => false,
        other => !other.is_control(),
    };
    escape(&text.chars().filter(|c| is_allowed(*c)).collect::<String>())
}

/// Formats findings as Markdown for a job summary or a comment.
fn markdown(all: &[Findings]) -> String {
    all.iter().map(section).collect::<Vec<_>>().join("\n")
}

fn section(findings: &Findings) -> String {
    let mut text = format!("### {}\n\n", findings.name);
    for Case { name, failure } in &findings.cases {
        let _ = match failure {
            None => writeln!(text, "- passed: {}", in_markdown(name)),
            Some(why) => {
                writeln!(text, "- **failed**: {}: {}", in_markdown(name), in_markdown(why))
            }
        };
    }
    text += "\n| figure | value | 95% interval |\n|---|--:|--:|\n";
    for finding in &findings.values {
        let in_words = |value| finding.figure.in_words(value);
        let interval = finding.range.and_then(|_| finding.limits_in_words(in_words));
        let (name, value) = (finding.figure.name, in_words(finding.value.micros));
        let value = if finding.value.is_at_least { format!("≥ {value}") } else { value };
        let _ = writeln!(text, "| {name} | {value} | {} |", interval.unwrap_or_default());
    }
    if !findings.lines.is_empty() {
        text += "\n";
    }
    for line in &findings.lines {
        let _ = writeln!(text, "- {}", in_markdown(line));
    }
    text
}

/// Returns text on one line, escaped so that none of it is mistaken for markup or for the end of a cell.
fn in_markdown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.lines().collect::<Vec<_>>().join("; ").chars() {
        if "\\`*_[]|~#".contains(character) {
            shown.push('\\');
        }
        shown.push(if character.is_control() { ' ' } else { character });
    }
    escape(&shown)
}

/// Formats a number as a cell of a table, which is empty if the number is not known.
pub fn cell(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// Formats findings as comma-separated values (RFC 4180). None of the values needs quotes.
fn csv(all: &[Findings]) -> String {
    let heads = all.first().map(|findings| findings.heads.join(","));
    let mut text = heads.unwrap_or_default() + "\r\n";
    for row in all.iter().flat_map(|findings| &findings.rows) {
        text += &(row.join(",") + "\r\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Findings {
        let finding = |name, value, range| Finding::new(name, value, range).unwrap();
        let mut max = finding("max", 2000.0, None);
        max.value.is_at_least = true;
        Findings {
            name: "ringtally <load>".into(),
            values: vec![
                finding("p99.9", 1500.0, Some([1400.0, 1600.0])),
                finding("rps", 9e4, None),
                finding("connections_open", 8.0, None),
                max,
            ],
            cases: vec![
                Case { name: "verdict".into(), failure: None },
                Case {
                    name: "p99>5ms".into(),
                    failure: Some("a \"b\"\u{1}\u{ffff}\n<c> | d & e".into()),
                },
            ],
            heads: vec!["second", "requests", "p50_us"],
            rows: [[Some(0.0), Some(9.0), Some(1.5)], [Some(1.0), Some(0.0), None]]
                .map(|row| row.map(cell).to_vec())
                .to_vec(),
            lines: vec!["a note".into()],
        }
    }

    fn exported(format: &str) -> String {
        let export: Export = format!("{format}=file").parse().unwrap();
        export.exporter.1(&[findings()])
    }

    /// Bencher's reference describes an object per benchmark. Each measure has a value, and may have both limits.
    #[test]
    fn bmf_has_a_value_per_measure_and_the_limits_that_are_known() {
        let json: Value = serde_json::from_str(&exported("bmf")).unwrap();
        for (benchmark, measures) in json.as_object().unwrap() {
            assert!(!benchmark.is_empty());
            for (measure, metric) in measures.as_object().unwrap() {
                let is_slug = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
                assert!(measure.chars().all(is_slug), "{measure}");
                let metric = metric.as_object().unwrap();
                assert!(metric["value"].is_f64());
                for (key, value) in metric {
                    assert!(["value", "lower_value", "upper_value"].contains(&key.as_str()));
                    assert!(value.is_f64(), "{key}");
                }
            }
        }
        let measure = &json["ringtally <load>"]["p99-9"];
        assert_eq!(
            (&measure["lower_value"], &measure["upper_value"]),
            (&1400.0.into(), &1600.0.into())
        );
        assert_eq!(json["ringtally <load>"]["rps"], json!({"value": 9e4}));
        let max = json!({"value": 2000.0, "lower_value": 2000.0});
        assert_eq!(json["ringtally <load>"]["max"], max);
    }

    /// The tool's README describes a list of entries. Each has a name, a unit, a value, and optionally a range and
    /// more, as text.
    #[test]
    fn each_tool_of_the_action_gets_the_figures_of_its_direction() {
        for (format, expected) in [
            (
                "github-action-benchmark",
                &[("p99.9", Some("1400 to 1600")), ("max", Some("at least 2000"))][..],
            ),
            ("github-action-benchmark-bigger", &[("rps", None)]),
        ] {
            let json: Value = serde_json::from_str(&exported(format)).unwrap();
            let entries = json.as_array().unwrap();
            assert_eq!(entries.len(), expected.len(), "{json}");
            for (entry, (name, range)) in entries.iter().zip(expected) {
                assert_eq!(entry["name"], format!("ringtally <load>: {name}"));
                assert!(entry["value"].is_f64() && entry["unit"].is_string(), "{json}");
                assert_eq!(entry.get("range").and_then(Value::as_str), *range, "{json}");
            }
        }
    }

    /// JUnit's XSD allows suites in suites, cases in suites, and failures in cases. All required attributes must be
    /// present, and the counts must match the elements.
    #[test]
    fn junit_is_well_formed_and_counts_what_it_has() {
        let text = exported("junit");
        let rest = text.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n").unwrap();
        let (mut open, mut cases, mut failures) = (Vec::new(), 0, 0);
        for tag in rest.split('<').skip(1) {
            let (tag, content) = tag.split_once('>').unwrap();
            assert!(
                !content.contains(['"', '\u{1}', '\u{ffff}']) || open.last() == Some(&"testcase"),
                "{content}"
            );
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
                continue;
            }
            let name = tag.split([' ', '/']).next().unwrap();
            let (parent, attributes): (_, &[&str]) = match name {
                "testsuites" => (None, &["tests=\"2\"", "failures=\"1\""]),
                "testsuite" => (
                    Some(&"testsuites"),
                    &["name=", "tests=\"2\"", "failures=\"1\"", "errors=\"0\""],
                ),
                "testcase" => {
                    (Some(&"testsuite"), &["name=", "classname=\"ringtally &lt;load&gt;\""])
                }
                "failure" => (Some(&"testcase"), &["message=\"a "]),
                other => panic!("{other}"),
            };
            assert_eq!(open.last(), parent);
            attributes.iter().for_each(|attribute| assert!(tag.contains(attribute), "{tag}"));
            cases += usize::from(name == "testcase");
            failures += usize::from(name == "failure");
            if !tag.ends_with('/') {
                open.push(name);
            }
        }
        assert!(open.is_empty() && (cases, failures) == (2, 1), "{text}");
        assert!(
            text.contains("&lt;c&gt; | d &amp; e") && !text.contains(['\u{1}', '\u{ffff}']),
            "{text}"
        );
    }

    #[test]
    fn markdown_and_csv_have_every_row() {
        let text = exported("markdown");
        for line in [
            "- passed: verdict",
            "&lt;c&gt; \\| d &amp; e",
            "| p99.9 | 1.5 ms | 1.4 ms to 1.6 ms |",
            "| rps | 90,000 |  |",
            "| max | ≥ 2 ms |  |",
            "- a note",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert_eq!(
            in_markdown("a_b*[c](d)\\`\r\n\u{1b}#'e'"),
            "a\\_b\\*\\[c\\](d)\\\\\\`;  \\#&#39;e&#39;"
        );
        assert_eq!(exported("csv"), "second,requests,p50_us\r\n0,9,1.5\r\n1,0,\r\n");
    }

    #[test]
    fn a_format_that_is_not_known_is_refused_with_those_that_are() {
        for (text, says) in [
            ("junit", "such as junit=report.xml"),
            ("junit=", "such as junit=report.xml"),
            (
                "xml=a",
                "use bmf, github-action-benchmark, github-action-benchmark-bigger, junit, markdown, csv",
            ),
        ] {
            let said = text.parse::<Export>().unwrap_err();
            assert!(said.contains(says), "{said}");
        }
    }
}
