//! Whether two results were made on one machine, and what changed on it.

use super::{Environment, SAMPLE};
use crate::failure::Failure;
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Something that is not the same in two environments.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Difference {
    what: String,
    values: [String; 2],
}

/// A figure of two results.
#[derive(Clone, Debug, Serialize)]
struct Figure {
    what: &'static str,
    values: [f64; 2],
    /// The second by the first.
    ratio: f64,
}

/// Two environments, side by side.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    is_same_machine: bool,
    /// What makes them two machines.
    machine: Vec<Difference>,
    /// What is set or running otherwise.
    settings: Vec<Difference>,
    /// What was measured, where both are reports of a run.
    figures: Vec<Figure>,
}

/// What was read from a file: a report, or what the doctor printed.
struct Side {
    environment: Environment,
    report: Option<Value>,
}

impl Side {
    fn read(path: &Path) -> Result<Side, Failure> {
        let wrong = |why: String| {
            Failure::Usage(format!(
                "--compare {}: {why}: name a file that --json of load, challenge or doctor wrote",
                path.display()
            ))
        };
        let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let json: Value =
            serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        let (environment, report) = match json.get("environment") {
            Some(environment) => (environment.clone(), Some(json)),
            None => (json, None),
        };
        let environment =
            serde_json::from_value(environment).map_err(|error| wrong(error.to_string()))?;
        Ok(Side { environment, report })
    }
}

/// Compares two reports, or one with this machine as it is now.
pub fn compare(paths: &[PathBuf]) -> Result<Comparison, Failure> {
    let mut sides = paths.iter().map(|path| Side::read(path)).collect::<Result<Vec<_>, _>>()?;
    if sides.len() == 1 {
        sides.push(Side { environment: Environment::here(SAMPLE), report: None });
    }
    let [first, second] = <[Side; 2]>::try_from(sides)
        .map_err(|_| Failure::Usage("--compare takes one file or two".into()))?;
    Ok(Comparison::of(&first, &second))
}

impl Comparison {
    fn of(first: &Side, second: &Side) -> Comparison {
        let (a, b) = (&first.environment, &second.environment);
        let difference = |what: &str, a: String, b: String| {
            (a != b).then(|| Difference { what: what.into(), values: [a, b] })
        };
        let of = |what, part: fn(&Environment) -> String| difference(what, part(a), part(b));
        let machine: Vec<Difference> = [
            of("host", |e| e.host.clone()),
            of("cpu_model", |e| e.cpu_model.clone()),
            of("cpus_online", |e| e.cpus_online.clone()),
            of("memory_bytes", |e| e.memory_bytes.to_string()),
        ]
        .into_iter()
        .flatten()
        .collect();
        let mut settings: Vec<Difference> = [
            of("ringtally", |e| e.version.clone()),
            of("kernel", |e| e.kernel.clone()),
            of("cpus_allowed", |e| e.cpus_allowed.clone()),
        ]
        .into_iter()
        .flatten()
        .collect();
        // The kernel is named above.
        let lasting = |e: &Environment| {
            let checks = e.checks.iter().filter(|check| !check.is_momentary);
            let pairs = checks.map(|check| (check.name.clone(), check.value.clone()));
            pairs.filter(|(name, _)| name != "kernel").collect::<Vec<_>>()
        };
        let (of_a, of_b) = (lasting(a), lasting(b));
        let value = |checks: &[(String, String)], name: &str| {
            let found = checks.iter().find(|(own, _)| own == name);
            found.map_or("not checked".to_owned(), |(_, value)| value.clone())
        };
        let only_b = of_b.iter().filter(|(name, _)| of_a.iter().all(|(own, _)| own != name));
        for (name, _) in of_a.iter().chain(only_b) {
            settings.extend(difference(name, value(&of_a, name), value(&of_b, name)));
        }
        let mut figures = Vec::new();
        for (what, pointer) in [
            ("requests_per_s", "/requests_per_s"),
            ("p50 µs", "/latency_us/p50"),
            ("p99 µs", "/latency_us/p99"),
            ("server_cpu_us_per_request", "/server_cpu_us_per_request"),
        ] {
            let number = |side: &Side| side.report.as_ref()?.pointer(pointer)?.as_f64();
            if let (Some(a), Some(b)) = (number(first), number(second)) {
                figures.push(Figure { what, values: [a, b], ratio: b / a });
            }
        }
        Comparison { is_same_machine: machine.is_empty(), machine, settings, figures }
    }

    /// Whether nothing says that these are two machines.
    pub fn is_same_machine(&self) -> bool {
        self.is_same_machine
    }

    /// As one JSON object.
    pub fn json(&self) -> String {
        // Numbers and strings only: it has a JSON form.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// A few lines.
    pub fn lines(&self) -> String {
        let mut text = match (self.is_same_machine, self.settings.is_empty()) {
            (false, _) => "different machines: their results do not compare\n",
            (true, false) => "the same machine, but for these settings\n",
            (true, true) => "the same machine with the same settings\n",
        }
        .to_owned();
        for Difference { what, values: [a, b] } in self.machine.iter().chain(&self.settings) {
            text += &format!("  {what}: {a} | {b}\n");
        }
        for Figure { what, values: [a, b], ratio } in &self.figures {
            text += &format!("  {what}: {a:.2} | {b:.2} ({ratio:.3})\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::Check;
    use super::*;

    fn side(change: impl FnOnce(&mut Environment)) -> Side {
        let mut environment = Environment {
            version: "1".into(),
            date: "now".into(),
            host: "a".into(),
            kernel: "6.1".into(),
            cpu_model: "x".into(),
            cpus_online: "0-1".into(),
            cpus_allowed: "0-1".into(),
            memory_bytes: 1,
            checks: vec![
                Check::ok("governor", "performance"),
                Check::ok("load now", "1 %").momentary(),
            ],
        };
        change(&mut environment);
        Side { environment, report: None }
    }

    #[test]
    fn two_machines_are_told_from_two_moments_of_one() {
        let same = Comparison::of(
            &side(|_| {}),
            &side(|e| {
                e.date = "later".into();
                e.checks[1].value = "99 %".into();
            }),
        );
        assert!(same.is_same_machine && same.settings.is_empty(), "{}", same.lines());
        for change in [
            (|e| e.host = "b".into()) as fn(&mut Environment),
            |e| e.cpu_model = "y".into(),
            |e| e.cpus_online = "0-3".into(),
            |e| e.memory_bytes = 2,
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
}
