//! Compares two results: whether they were obtained on the same machine in the same way, and what differs.

use super::Environment;
use crate::document::{self, Document, Format};
use crate::failure::Failure;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The parts of a report that describe how its run was set up, except the members of `setup`: name and place.
const SETUP_ELSEWHERE: [(&str, &str); 3] = [
    ("requests", "/requests"),
    ("warm-up requests", "/warm_up/requests"),
    ("server_cpus", "/server_cpus"),
];

/// The figures of a report that are compared: name and place.
const FIGURES: [(&str, &str); 4] = [
    ("requests_per_s", "/requests_per_s"),
    ("p50 µs", "/latency_us/p50"),
    ("p99 µs", "/latency_us/p99"),
    ("server_cpu_us_per_request", "/server_cpu_us_per_request"),
];

/// Something that differs between the two sides.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Difference {
    /// Its name: a part of the environment, or of the setup of a run.
    pub what: String,
    /// Its value on each side.
    pub values: [String; 2],
}

impl Difference {
    /// Returns the difference between two values, if there is one.
    fn between(what: &str, values: [String; 2]) -> Option<Difference> {
        (values[0] != values[1]).then(|| Difference { what: what.into(), values })
    }
}

/// A figure of two results.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct Figure {
    /// Its name.
    what: &'static str,
    /// Its value on each side.
    values: [f64; 2],
    /// The second divided by the first, unless that is zero.
    ratio: Option<f64>,
}

/// The differences between two environments, and between two runs if both sides are reports.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(super) struct Comparison {
    /// Whether nothing shows that these are two machines.
    is_same_machine: bool,
    /// Differences that show two machines.
    machine: Vec<Difference>,
    /// Differences in configuration, or in what runs on the machine.
    settings: Vec<Difference>,
    /// Differences in the requested setup of the runs.
    setup: Vec<Difference>,
    /// The measured figures.
    figures: Vec<Figure>,
}

/// The content of a file: a report, or the output of `doctor --json`.
struct Side {
    environment: Environment,
    report: Option<Value>,
}

impl Side {
    fn read(path: &Path) -> Result<Side, Failure> {
        let unusable = |why: String| {
            Failure::Usage(format!(
                "cannot compare {}: {why}: pass a file that --json of load, challenge, or doctor \
                 wrote",
                path.display()
            ))
        };
        let text = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
        let formats = [&Format::RUNS[..], &[Format::FindRate, Format::Doctor]].concat();
        let (_, json) = document::read(&text, &formats).map_err(unusable)?;
        Side::of(json).map_err(unusable)
    }

    fn of(json: Value) -> Result<Side, String> {
        let (environment, report) = match json.get("environment") {
            Some(environment) => (environment.clone(), Some(json)),
            None => (json, None),
        };
        let environment = serde_json::from_value(environment).map_err(|error| error.to_string())?;
        Ok(Side { environment, report })
    }
}

/// Returns the differences between the machines, their settings, and the setups of two reports.
///
/// # Errors
///
/// If either is not a report; the error is one sentence.
pub fn differences(a: &Value, b: &Value) -> Result<Vec<Difference>, String> {
    let Comparison { machine, settings, setup, .. } =
        Comparison::of(&Side::of(a.clone())?, &Side::of(b.clone())?);
    Ok([machine, settings, setup].concat())
}

/// Compares two reports, or one report with the current state of this machine, which `here` checks.
///
/// # Errors
///
/// If there are not one or two paths, or a file cannot be read or has another format.
pub(super) fn compare(
    paths: &[PathBuf],
    here: impl FnOnce() -> Environment,
) -> Result<Comparison, Failure> {
    let mut sides = paths.iter().map(|path| Side::read(path)).collect::<Result<Vec<_>, _>>()?;
    if sides.len() == 1 {
        sides.push(Side { environment: here(), report: None });
    }
    let [first, second] = <[Side; 2]>::try_from(sides)
        .map_err(|_| Failure::Usage("--compare takes one or two files".into()))?;
    Ok(Comparison::of(&first, &second))
}

impl Comparison {
    fn of(first: &Side, second: &Side) -> Comparison {
        let machine = differing_machine(&first.environment, &second.environment);
        let reports = first.report.as_ref().zip(second.report.as_ref());
        Comparison {
            is_same_machine: machine.is_empty(),
            machine,
            settings: differing_settings(&first.environment, &second.environment),
            setup: reports.map_or(Vec::new(), |(a, b)| differing_setup(a, b)),
            figures: reports.map_or(Vec::new(), |(a, b)| figures(a, b)),
        }
    }

    /// Reports whether nothing shows that these are two machines.
    pub(super) fn is_same_machine(&self) -> bool {
        self.is_same_machine
    }

    /// Returns it as one JSON object.
    pub(super) fn json(&self) -> String {
        Document::new(Format::DoctorCompare, self).json()
    }

    /// Returns it as text: a verdict, then one line per difference and per figure.
    pub(super) fn lines(&self) -> String {
        let has_differences = !self.settings.is_empty() || !self.setup.is_empty();
        let mut text = match (self.is_same_machine, has_differences) {
            (false, _) => "different machines: their results cannot be compared\n",
            (true, true) => "the same machine, but these settings differ\n",
            (true, false) => "the same machine with the same settings\n",
        }
        .to_owned();
        let differences = self.machine.iter().chain(&self.settings).chain(&self.setup);
        for Difference { what, values: [a, b] } in differences {
            text += &format!("  {what}: {a} | {b}\n");
        }
        for Figure { what, values: [a, b], ratio } in &self.figures {
            let ratio = ratio.map_or(String::new(), |ratio| format!(" ({ratio:.3})"));
            text += &format!("  {what}: {a:.2} | {b:.2}{ratio}\n");
        }
        text
    }
}

fn differing_machine(a: &Environment, b: &Environment) -> Vec<Difference> {
    let memory = |e: &Environment| e.memory_bytes.map_or("unknown".into(), |b| b.to_string());
    let of = |what, part: fn(&Environment) -> String| Difference::between(what, [part(a), part(b)]);
    [
        of("host", |e| e.host.clone()),
        of("cpu_model", |e| e.cpu_model.clone()),
        of("cpus_online", |e| e.cpus_online.clone()),
        of("memory_bytes", memory),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn differing_settings(a: &Environment, b: &Environment) -> Vec<Difference> {
    let of = |what, part: fn(&Environment) -> &String| {
        Difference::between(what, [part(a).clone(), part(b).clone()])
    };
    let mut differences: Vec<Difference> = [
        of("ringtally", |e| &e.version),
        of("kernel", |e| &e.kernel),
        of("cpus_allowed", |e| &e.cpus_allowed),
    ]
    .into_iter()
    .flatten()
    .collect();
    // The kernel is already listed above.
    let lasting = |e: &Environment| {
        let checks = e.checks.iter().filter(|check| !check.is_momentary && check.name != "kernel");
        checks.map(|check| (check.name.clone(), check.value.clone())).collect::<Vec<_>>()
    };
    let [of_a, of_b] = [a, b].map(lasting);
    let value = |checks: &[(String, String)], name: &str| {
        let found = checks.iter().find(|(own, _)| own == name);
        found.map_or("not checked".to_owned(), |(_, value)| value.clone())
    };
    let only_b = of_b.iter().filter(|(name, _)| of_a.iter().all(|(own, _)| own != name));
    for (name, _) in of_a.iter().chain(only_b) {
        differences.extend(Difference::between(name, [value(&of_a, name), value(&of_b, name)]));
    }
    differences
}

fn differing_setup(a: &Value, b: &Value) -> Vec<Difference> {
    let setups = [a, b].map(setup);
    let only_b = setups[1].iter().filter(|(name, _)| !setups[0].contains_key(*name));
    let names = setups[0].iter().chain(only_b).map(|(name, _)| name);
    names
        .filter_map(|name| {
            Difference::between(name, [&setups[0], &setups[1]].map(|of| in_words(of.get(name))))
        })
        .collect()
}

/// Returns the setup of a report's run, to the extent that the report's version records it.
fn setup(report: &Value) -> Map<String, Value> {
    let mut setup = report.get("setup").and_then(Value::as_object).cloned().unwrap_or_default();
    // The other members contain the same settings, including the defaults that were used.
    let command = setup.remove("command");
    let words = command.as_ref().and_then(Value::as_array).into_iter().flatten();
    if !words.into_iter().any(|word| word == "--user-prefix") {
        // The client chose the prefix, and chooses another one for each run on a server that cannot be reset.
        setup.remove("user_prefix");
    }
    if let Some(Value::Object(flags)) = setup.remove("server") {
        setup.extend(flags.into_iter().map(|(flag, value)| (format!("server_{flag}"), value)));
    }
    if let Some(Value::String(store)) = setup.get_mut("server_store")
        && !store.contains("://")
    {
        // Each run has a new file. Its directory determines the disk.
        let directory = Path::new(store.as_str()).parent().filter(|path| *path != Path::new(""));
        *store = format!("a file in {}", directory.unwrap_or(Path::new(".")).display());
    }
    if report.get("server_cpus").is_some() {
        // A challenge has its own server, on a port that happened to be free.
        setup.remove("url");
    }
    let of = |key: &str| setup.get(key).filter(|value| !value.is_null());
    // A closed loop that runs for a time sends as many requests as it can.
    let is_open_ended = of("duration_s").is_some() && of("rate").is_none();
    for (name, pointer) in SETUP_ELSEWHERE {
        if name == "requests" && is_open_ended {
            continue;
        }
        if let Some(value) = report.pointer(pointer) {
            setup.insert(name.into(), value.clone());
        }
    }
    setup
}

fn in_words(value: Option<&Value>) -> String {
    match value {
        None => "not recorded".into(),
        Some(Value::Null) => "none".into(),
        Some(Value::Bool(true)) => "yes".into(),
        Some(Value::Bool(false)) => "no".into(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn figures(a: &Value, b: &Value) -> Vec<Figure> {
    let figure = |(what, pointer): (&'static str, &str)| {
        let number = |report: &Value| report.pointer(pointer)?.as_f64();
        let values = [number(a)?, number(b)?];
        let ratio = (values[0] != 0.0).then(|| values[1] / values[0]);
        Some(Figure { what, values, ratio })
    };
    FIGURES.into_iter().filter_map(figure).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Check;
    use super::*;
    use serde_json::json;

    fn side(change: impl FnOnce(&mut Environment)) -> Side {
        let mut environment = Environment {
            version: "1".into(),
            revision: None,
            dirty: None,
            topology: "0 1".into(),
            date: "now".into(),
            host: "a".into(),
            kernel: "6.1".into(),
            cpu_model: "x".into(),
            cpus_online: "0-1".into(),
            cpus_allowed: "0-1".into(),
            memory_bytes: Some(1),
            checks: vec![
                Check::ok("governor", "performance"),
                Check::ok("load now", "1%").momentary(),
            ],
        };
        change(&mut environment);
        Side { environment, report: None }
    }

    #[test]
    fn two_machines_are_distinguished_from_two_moments_on_one() {
        let same = Comparison::of(
            &side(|_| {}),
            &side(|e| {
                e.date = "later".into();
                e.checks[1].value = "99%".into();
            }),
        );
        assert!(same.is_same_machine && same.settings.is_empty(), "{}", same.lines());
        for change in [
            (|e| e.host = "b".into()) as fn(&mut Environment),
            |e| e.cpu_model = "y".into(),
            |e| e.cpus_online = "0-3".into(),
            |e| e.memory_bytes = Some(2),
        ] {
            let other = Comparison::of(&side(|_| {}), &side(change));
            assert!(!other.is_same_machine && other.lines().starts_with("different machines"));
        }
    }

    #[test]
    fn a_setting_that_changed_is_named_with_both_values() {
        let changed = Comparison::of(
            &side(|e| e.checks.truncate(1)),
            &side(|e| {
                e.checks[0].value = "powersave".into();
                e.checks.push(Check::ok("turbo", "on"));
            }),
        );
        assert!(changed.is_same_machine);
        let lines = changed.lines();
        assert!(lines.contains("governor: performance | powersave"), "{lines}");
        assert!(lines.contains("turbo: not checked | on"), "{lines}");
    }

    /// Returns a report with this setup, made on the same machine as all others.
    fn report(setup: Value) -> Side {
        Side { report: Some(json!({"requests": 1000, "setup": setup})), ..side(|_| {}) }
    }

    #[test]
    fn each_difference_between_the_setups_of_two_runs_is_named() {
        let setup = json!({
            "url": "http://127.0.0.1:8000", "connections": 64, "threads": 1, "pipeline": 1,
            "rate": null, "users": 75000, "values": "integer", "engine": "ring",
            "was_reset": true,
        });
        let same = Comparison::of(&report(setup.clone()), &report(setup.clone()));
        assert_eq!(same.lines(), "the same machine with the same settings\n");
        for (name, other, line) in [
            ("url", json!("http://[::1]:1"), "url: http://127.0.0.1:8000 | http://[::1]:1"),
            ("connections", json!(65), "connections: 64 | 65"),
            ("threads", json!(2), "threads: 1 | 2"),
            ("pipeline", json!(16), "pipeline: 1 | 16"),
            ("rate", json!(20_000), "rate: none | 20000"),
            ("users", json!(1), "users: 75000 | 1"),
            ("values", json!("half"), "values: integer | half"),
            ("engine", json!("streams"), "engine: ring | streams"),
            ("was_reset", json!(false), "was_reset: yes | no"),
            ("burst", json!(1), "burst: not recorded | 1"),
        ] {
            let mut changed = setup.clone();
            changed[name] = other;
            let comparison = Comparison::of(&report(setup.clone()), &report(changed));
            assert!(comparison.is_same_machine, "{line}");
            let expected = format!("the same machine, but these settings differ\n  {line}\n");
            assert_eq!(comparison.lines(), expected);
        }
        let mut shorter = report(setup.clone());
        shorter.report.as_mut().unwrap()["requests"] = json!(999);
        let lines = Comparison::of(&report(setup), &shorter).lines();
        assert!(lines.contains("requests: 1000 | 999"), "{lines}");
    }

    #[test]
    fn runs_by_the_clock_may_have_sent_more_or_fewer_requests() {
        let run = |requests: u64, rate: Value, duration_s: Value| {
            let mut side = report(json!({"rate": rate, "duration_s": duration_s}));
            side.report.as_mut().unwrap()["requests"] = requests.into();
            side
        };
        let difference = |rate: Value, duration_s: Value| {
            let sides = [1, 2].map(|requests| run(requests, rate.clone(), duration_s.clone()));
            Comparison::of(&sides[0], &sides[1]).lines()
        };
        let same = "the same machine with the same settings\n";
        assert_eq!(difference(Value::Null, json!(30.0)), same);
        for (rate, duration_s) in [(json!(100), json!(30.0)), (Value::Null, Value::Null)] {
            assert!(difference(rate, duration_s).contains("requests: 1 | 2"));
        }
    }

    #[test]
    fn the_flags_of_a_server_are_compared_and_the_command_is_not() {
        let with = |spin: &str, command: &str| {
            report(json!({"server": {"spin_us": spin, "store": null}, "command": [command]}))
        };
        let same = Comparison::of(&with("auto", "a"), &with("auto", "b"));
        assert_eq!(same.lines(), "the same machine with the same settings\n");
        let lines = Comparison::of(&with("auto", "a"), &with("0", "a")).lines();
        assert!(lines.ends_with("differ\n  server_spin_us: auto | 0\n"), "{lines}");
        let unknown = report(json!({"server": null}));
        let lines = Comparison::of(&with("auto", "a"), &unknown).lines();
        assert!(lines.contains("server_spin_us: auto | not recorded"), "{lines}");
        assert!(lines.contains("server_store: none | not recorded"), "{lines}");
    }

    #[test]
    fn what_each_run_needs_anew_is_no_difference() {
        let with = |prefix: &str, command: &[&str], store: &str| {
            let server = json!({ "store": store });
            report(json!({"user_prefix": prefix, "command": command, "server": server}))
        };
        let first = with("user_", &["load"], "/disk/a.redb");
        for (second, line) in [
            (with("user_0badcafe_", &["load"], "/disk/b.redb"), None),
            (with("run7_", &["load", "--user-prefix", "run7_"], "/disk/b.redb"), Some("run7_")),
            (with("user_", &["load"], "/other/a.redb"), Some("a file in /disk | a file in /other")),
            (with("user_", &["load"], "postgres://h/d"), Some("a file in /disk | postgres://h/d")),
        ] {
            let lines = Comparison::of(&first, &second).lines();
            match line {
                None => assert_eq!(lines, "the same machine with the same settings\n"),
                Some(line) => assert!(lines.contains(line), "{lines}"),
            }
        }
    }

    #[test]
    fn the_port_of_a_challenge_is_no_difference() {
        let challenge = |url: &str, cpus: &str| {
            let mut side = report(json!({"url": url}));
            side.report.as_mut().unwrap()["server_cpus"] = json!(cpus);
            side
        };
        let [first, second] = ["http://127.0.0.1:1", "http://127.0.0.1:2"];
        let same = Comparison::of(&challenge(first, "0"), &challenge(second, "0"));
        assert_eq!(same.lines(), "the same machine with the same settings\n");
        let lines = Comparison::of(&challenge(first, "0"), &challenge(first, "1")).lines();
        assert!(lines.contains("server_cpus: 0 | 1"), "{lines}");
    }

    #[test]
    fn figures_are_compared_where_both_reports_have_them() {
        let with = |rate: f64| Side {
            report: Some(json!({"requests_per_s": rate, "latency_us": {"p50": 2.0}})),
            ..side(|_| {})
        };
        let lines = Comparison::of(&with(100.0), &with(150.0)).lines();
        assert!(lines.contains("requests_per_s: 100.00 | 150.00 (1.500)"), "{lines}");
        assert!(lines.contains("p50 µs: 2.00 | 2.00 (1.000)") && !lines.contains("p99"), "{lines}");
        let lines = Comparison::of(&with(0.0), &with(150.0)).lines();
        assert!(lines.contains("requests_per_s: 0.00 | 150.00\n"), "{lines}");
        assert!(Comparison::of(&with(1.0), &side(|_| {})).figures.is_empty());
    }
}
