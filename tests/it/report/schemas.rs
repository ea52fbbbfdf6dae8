//! The documents that `--json` writes: each matches its schema, and `benches/REPORTS.md` describes every key.

use crate::world::{Directory, Server, run, schema, text};
use clap::ValueEnum;
use ringtally::cli;
use ringtally::document::Format;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The line that ends the handwritten part of the page.
const MARK: &str = "<!-- What follows is made from the schemas: RINGTALLY_WRITE=1 cargo test --test it schemas -->\n";

#[test]
fn the_page_about_reports_has_every_key_and_no_other() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/REPORTS.md");
    let is = std::fs::read_to_string(&page).unwrap();
    let (by_hand, _) = is.split_once(MARK).unwrap();
    let must_be = format!("{by_hand}{MARK}{}", described());
    if std::env::var_os("RINGTALLY_WRITE").is_some() {
        std::fs::write(&page, &must_be).unwrap();
    } else {
        assert!(
            is == must_be,
            "benches/REPORTS.md does not match the schemas: RINGTALLY_WRITE=1 cargo test --test it schemas"
        );
    }
}

/// Returns the tables of all keys.
fn described() -> String {
    let (mut text, mut shared) = (String::new(), BTreeMap::new());
    let schemas =
        Format::value_variants().iter().map(|format| (format, cli::schema(*format).to_value()));
    for (format, schema) in schemas {
        let is_as_load = Format::RUNS.contains(format) && *format != Format::Load;
        if let Some(objects) = schema.get("$defs").and_then(Value::as_object) {
            for (name, object) in objects {
                let known = shared.entry(name.clone()).or_insert_with(|| object.clone());
                assert_eq!(known, object, "two objects have the name {name}");
            }
        }
        text += &format!("\n## `{}`\n\n", format.text());
        text += &match is_as_load {
            true => "The same keys as [`ringtally-load/1`](#ringtally-load1).\n".to_owned(),
            false => table(&schema),
        };
    }
    for (name, object) in shared {
        let about = object["description"].as_str().map(in_one_line).unwrap_or_default();
        text += &match object.get("properties") {
            Some(_) => format!("\n### {name}\n\n{about}\n\n{}", table(&object)),
            None => format!("\n### {name}\n\n{about}{}\n", words(&object)),
        };
    }
    text
}

/// Returns the words that a value may be, if they are listed.
fn words(schema: &Value) -> String {
    let several = schema["enum"].as_array().into_iter().flatten();
    let variants = schema["oneOf"].as_array().into_iter().flatten();
    let lines = several.map(|word| format!("\n- `{}`", word.as_str().unwrap())).chain(
        variants.flat_map(|variant| {
            let about = variant["description"].as_str().map(in_one_line).unwrap_or_default();
            let word = variant.get("const").or_else(|| variant["enum"].get(0)).unwrap();
            [format!("\n- `{}`: {about}", word.as_str().unwrap())]
        }),
    );
    let lines: String = lines.collect();
    if lines.is_empty() { lines } else { format!("\n{lines}") }
}

fn table(schema: &Value) -> String {
    let required = schema["required"].as_array().into_iter().flatten();
    let required: Vec<&str> = required.filter_map(Value::as_str).collect();
    let mut text = String::from("| key | value | meaning |\n|---|---|---|\n");
    for (key, member) in schema["properties"].as_object().unwrap() {
        let about = member["description"].as_str().map(in_one_line);
        let about =
            about.unwrap_or_else(|| panic!("{key} of {:?} is not described", schema["title"]));
        let left_out = if required.contains(&key.as_str()) { "" } else { ", may be left out" };
        text +=
            &format!("| `{key}` | {}{left_out} | {} |\n", kind(member), about.replace('|', "\\|"));
    }
    text
}

/// Returns the type of a value, in words.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(several) = schema["anyOf"].as_array() {
        return several.iter().map(kind).collect::<Vec<_>>().join(" or ");
    }
    let of = |name: &str| match name {
        "array" => format!("list of {}", kind(&schema["items"])),
        "object" => match &schema["additionalProperties"] {
            Value::Bool(_) | Value::Null => "object by number".to_owned(),
            values => format!("object by name, {}", kind(values)),
        },
        other => other.to_owned(),
    };
    match &schema["type"] {
        Value::String(one) if schema.get("const").is_none() => of(one),
        Value::String(_) => format!("`{}`", schema["const"].as_str().unwrap()),
        Value::Array(several) => {
            several.iter().map(|name| of(name.as_str().unwrap())).collect::<Vec<_>>().join(" or ")
        }
        other => panic!("{other}"),
    }
}

fn in_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_schema_is_printed_as_it_is_known_here() {
    for format in Format::value_variants() {
        let output = run(&["schema", &format.name()]);
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(printed, cli::schema(*format).to_value());
        assert_eq!(printed["properties"]["format"]["const"], format.text());
    }
    assert_eq!(run(&["schema", "nothing"]).status.code(), Some(2));
}

/// One document of each format. The documents of other tests are checked as well.
#[test]
fn a_document_of_each_format_is_as_its_schema_says() {
    let server = Server::start(&["--shards", "1"]);
    let (directory, url) = (Directory::new("schemas"), server.url());
    let file = |name: &str| directory.file(name);
    let write = |arguments: &[&str], name: &str| -> Value {
        let output = run(&[arguments, &["--json", &file(name)]].concat());
        let document = std::fs::read(file(name)).unwrap_or_else(|_| panic!("{output:?}"));
        serde_json::from_slice(&document).unwrap()
    };
    let load = |more: &[&str], name: &str| {
        write(&[&["load", "900", "3", "--url", &url, "--quiet"], more].concat(), name)
    };
    let closed = load(&["--watch", "--warmup", "9", "--fail-if", "p99>10s"], "load");
    let open = load(&["--rate", "9000", "--batch", "9", "--fail-if", "verdict!=exact"], "open");
    // Nothing is that fast, so the search ends at the lowest rate that its windows allow.
    let found = load(&["--find-rate", "p50<1us", "--rate", "1k", "--window", "100ms"], "found");
    let part = load(&["--part", "1/1", "--start-in", "5s"], "part");
    let merged = write(&["merge", &file("part"), "--quiet"], "merge");
    let challenge = write(&["challenge", "9", "1", "--quiet"], "challenge");
    let servers = ["challenge", "9", "1", "--quiet", "--server", "ringtally", "--rows", "stats"];
    let servers = write(&[&servers[..], &["--rounds", "1"]].concat(), "servers");
    let compared = write(
        &["compare", &file("load"), "--with", &file("load"), "--quiet", "--fail-if", "p99>5%"],
        "compare",
    );
    let printed = text(&run(&["rerun", &file("servers")]).stdout);
    assert!(printed.starts_with("ringtally challenge --requests 9 "), "{printed}");
    assert!(printed.contains(" --server ringtally=ringtally --rows stats "), "{printed}");
    let doctor: Value = serde_json::from_slice(&run(&["doctor", "--json"]).stdout).unwrap();
    let flags = ["doctor", "--json", "--compare", &file("load"), &file("open")];
    let machines: Value = serde_json::from_slice(&run(&flags).stdout).unwrap();
    for (document, format) in [
        (&closed, Format::Load),
        (&open, Format::Load),
        (&found, Format::FindRate),
        (&part, Format::Part),
        (&merged, Format::Merge),
        (&challenge, Format::Challenge),
        (&servers, Format::Servers),
        (&compared, Format::Compare),
        (&doctor, Format::Doctor),
        (&machines, Format::DoctorCompare),
    ] {
        assert_eq!(document["format"], format.text());
        assert_eq!(schema::check(document), Ok(()));
    }
    for report in [&closed, &open, &found, &merged, &challenge, &servers] {
        check_provenance(report, &doctor);
    }
    assert!(url.ends_with(closed["origin"]["address"].as_str().unwrap()), "{}", closed["origin"]);
    assert_eq!(closed["connections_open"], 3);
    // Any change of a document is detected.
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 6] = [
        (|report| report["requests"] = "9".into(), "/requests is \"9\""),
        (|report| report["unsent"] = (-1).into(), "/unsent is -1"),
        (|report| report["setup"]["more"] = 1.into(), "/setup/more is not in the schema"),
        (|report| report["verdict"] = "good".into(), "/verdict is \"good\""),
        (|report| drop(report.as_object_mut().unwrap().remove("server")), "required"),
        (|report| report["format"] = "ringtally-load/0".into(), "no format ringtally-load/0"),
    ];
    for (change, says) in changes {
        let mut report = closed.clone();
        change(&mut report);
        let said = schema::check(&report).unwrap_err();
        assert!(said.contains(says), "{said}");
    }
    // A document of another version is refused, and the error names the version that is read.
    for (format, says) in [
        (Some("ringtally-load/999"), "format ringtally-load/999, and this version reads"),
        (None, "it names no format"),
    ] {
        let mut other = closed.clone();
        match format {
            Some(format) => other["format"] = format.into(),
            None => drop(other.as_object_mut().unwrap().remove("format")),
        }
        std::fs::write(file("other"), other.to_string()).unwrap();
        for arguments in [
            &["compare", &file("other"), "--with", &file("load")][..],
            &["doctor", "--compare", &file("other")],
            &["merge", &file("other")],
        ] {
            let output = run(arguments);
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(arguments[0] == "merge" || said.contains(says), "{said}");
            assert!(said.contains("ringtally-") && said.contains("--json"), "{said}");
        }
    }
}

/// Checks that a report has everything that its run depended on, as `doctor` reports it for the same machine.
fn check_provenance(report: &Value, doctor: &Value) {
    let environment = &report["environment"];
    for key in [
        "version",
        "revision",
        "dirty",
        "host",
        "kernel",
        "cpu_model",
        "cpus_online",
        "cpus_allowed",
        "topology",
        "memory_bytes",
    ] {
        // A debug build does not know its commit.
        let is_known = !matches!(key, "revision" | "dirty");
        assert!(!is_known || doctor.get(key).is_some_and(|value| !value.is_null()), "{key}");
        assert_eq!(environment.get(key), doctor.get(key), "{key} of {}", report["format"]);
    }
    let mtu = |of: &Value| {
        let checks = of["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == "loopback MTU").unwrap()["value"].clone()
    };
    assert_eq!(mtu(environment), mtu(doctor));
    // Several servers have no address in common.
    let origin = report.get("origin").unwrap_or(report);
    let times = [origin["started"].as_str(), origin["ended"].as_str()];
    assert!(times[0].is_some() && times[0] <= times[1], "{origin}");
}

/// A run, a search, and a comparison, in every form that other tools read. The content of each form is tested next to it.
#[test]
fn results_are_exported_in_every_form_and_a_run_can_be_made_again() {
    let server = Server::start(&["--shards", "1"]);
    let (directory, url) = (Directory::new("exports"), server.url());
    let file = |name: &str| directory.file(name);
    let formats = [
        "bmf",
        "github-action-benchmark",
        "github-action-benchmark-bigger",
        "junit",
        "markdown",
        "csv",
    ];
    let exports = |name: &str| -> Vec<String> {
        let flag =
            |format: &&str| format!("--export={format}={}", file(&format!("{name}.{format}")));
        formats.iter().map(flag).collect()
    };
    let export = |arguments: &[&str], name: &str| {
        let flags = exports(name);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let output = run(&[arguments, &flags, &["--quiet", "--json", &file(name)]].concat());
        let code = output.status.code();
        let of = |format: &str| std::fs::read_to_string(file(&format!("{name}.{format}"))).unwrap();
        (code, formats.map(of))
    };
    let load = ["load", "500", "2", "--url", &url, "--fail-if", "rps<1G", "--fail-if", "unsent>0"];
    let (code, [bmf, smaller, bigger, junit, markdown, csv]) = export(&load, "load");
    assert_eq!(code, Some(1));
    let json = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    assert!(json(&bmf)["ringtally load"]["p99"]["value"].as_f64().unwrap() > 0.0, "{bmf}");
    assert!(smaller.contains("ringtally load: p99.9") && !smaller.contains("rps"), "{smaller}");
    assert!(bigger.contains("ringtally load: rps") && !bigger.contains("p99"), "{bigger}");
    assert!(junit.contains("tests=\"7\" failures=\"1\"") && junit.contains("rps&lt;1G"), "{junit}");
    assert!(markdown.contains("- **failed**: --fail-if rps&lt;1G") && markdown.contains("| p50 |"));
    let events =
        csv.lines().skip(1).map(|row| row.split(',').nth(1).unwrap().parse::<u64>().unwrap());
    assert_eq!(
        (events.sum::<u64>(), csv.lines().next().unwrap()),
        (500, "second,requests,p50_us,p99_us,max_us,lower_bounds")
    );
    let flags = [
        "load",
        "500",
        "2",
        "--url",
        &url,
        "--find-rate",
        "p50<1us",
        "--rate",
        "1k",
        "--window",
        "100ms",
    ];
    let (code, [bmf, _, _, junit, _, csv]) = export(&flags, "found");
    assert!(code == Some(1) && junit.contains("failures=\"1\""), "{junit}");
    assert!(bmf.contains("ringtally load --find-rate") && csv.starts_with("rate,holds,"), "{csv}");
    let report = file("load");
    let compare = [
        "compare", &report, &report, &report, &report, &report, "--with", &report, &report,
        &report, &report, &report,
    ];
    let (code, [bmf, _, _, junit, ..]) =
        export(&[&compare[..], &["--fail-if", "p99>5%"]].concat(), "compare");
    let p99 = &json(&bmf)["ringtally compare"]["p99"];
    assert!(p99["lower_value"] == p99["value"] && p99["upper_value"] == p99["value"], "{bmf}");
    assert!(code.is_some() && junit.contains("--fail-if p99&gt;5%"), "{junit}");
    // One path is one file, whichever flag names it.
    let twice = format!("junit={report}");
    let output = run(&["load", "--url", &url, "--json", &report, "--export", &twice]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--json and --export junit name one file"), "{output:?}");
    // The report has the command of the run, and its origin.
    let printed = text(&run(&["rerun", &report]).stdout);
    let printed = printed.trim_end();
    assert!(printed.starts_with("ringtally load --requests 500 --connections 2 "), "{printed}");
    let again = std::process::Command::new("sh")
        .args(["-c", &format!("set -- {printed}; shift; exec \"$0\" \"$@\" --quiet --json -")])
        .arg(env!("CARGO_BIN_EXE_ringtally"))
        .output()
        .unwrap();
    let (first, again) =
        (json(&std::fs::read_to_string(&report).unwrap()), json(&text(&again.stdout)));
    assert_eq!(first["setup"]["command"], again["setup"]["command"]);
    assert_eq!(first["origin"]["server_version"], env!("CARGO_PKG_VERSION"));
    assert!(url.ends_with(first["origin"]["address"].as_str().unwrap()), "{}", first["origin"]);
    let (started, ended) = (first["origin"]["started"].as_str(), first["origin"]["ended"].as_str());
    assert!(started < ended && ended < again["origin"]["started"].as_str());
    assert!(!first["environment"]["topology"].as_str().unwrap().is_empty());
    let challenged = file("challenge");
    run(&["challenge", "9", "1", "--quiet", "--json", &challenged]);
    let challenge = json(&std::fs::read_to_string(&challenged).unwrap());
    let printed = text(&run(&["rerun", &challenged]).stdout);
    assert!(printed.starts_with("ringtally challenge --requests 9 --connections 1 "), "{printed}");
    let server_command = challenge["origin"]["server_command"].as_array().unwrap();
    assert_eq!(server_command[..2], ["ringtally", "serve"]);
}
