//! Checks of everything that a benchmark on this machine depends on: a value, a verdict, and a fix for each. The checks do not
//! change anything, and do not need root.

mod compare;
mod cpu;
mod database;
mod kernel;
mod machine;
mod network;
mod nic;
mod ring;
mod storage;

use crate::document::{Document, Format};
use crate::failure::Failure;
use crate::store::Location;
use crate::{terminal, topology};
use anstyle::{AnsiColor, Style};
use compare::compare;
pub use compare::{Difference, differences};
pub use cpu::CpuUse;
use machine::Machine;
pub use nic::Listener;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The time that the doctor spends observing the CPUs.
const SAMPLE: Duration = Duration::from_millis(250);

/// The start of a line with a command. Such a line is not wrapped, so that it can be copied.
const COMMAND_INDENT: &str = "      $ ";

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whether to print one JSON object instead of lines.
    pub json: bool,
    /// Whether to fail on a warning, or if the compared machines differ.
    pub strict: bool,
    /// Two reports to compare with each other, or one to compare with this machine.
    pub compare: Vec<PathBuf>,
    /// A store whose file system and device, or whose database, are checked as well.
    pub store: Option<Location>,
    /// The address of a server whose network cards are checked as well.
    pub listener: Option<Listener>,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(rename = "CheckVerdict")]
pub enum Verdict {
    /// Good for a benchmark.
    Ok,
    /// Changes results, or makes them noisy.
    Warn,
    /// Cannot be read here, or does not exist.
    Skip,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Ok => "OK",
            Verdict::Warn => "WARN",
            Verdict::Skip => "SKIP",
        })
    }
}

/// One thing that a benchmark depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// The subject of the check.
    pub name: String,
    /// Whether it is good for a benchmark.
    pub verdict: Verdict,
    /// The finding, or the reason why nothing could be read.
    pub value: String,
    /// The fix of a warning.
    pub fix: Option<String>,
    /// The shell commands of the fix, in order; empty unless it has commands that can be run as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
    /// Whether it changes from moment to moment and so does not distinguish machines.
    pub is_momentary: bool,
}

impl Check {
    fn new(name: &str, verdict: Verdict, value: impl Into<String>, fix: Option<String>) -> Check {
        let (name, value) = (name.into(), value.into());
        Check { name, verdict, value, fix, commands: Vec::new(), is_momentary: false }
    }

    fn ok(name: &str, value: impl Into<String>) -> Check {
        Check::new(name, Verdict::Ok, value, None)
    }

    fn skip(name: &str, reason: impl Into<String>) -> Check {
        Check::new(name, Verdict::Skip, reason, None)
    }

    fn warn(name: &str, value: impl Into<String>, fix: impl Into<String>) -> Check {
        Check::new(name, Verdict::Warn, value, Some(fix.into()))
    }

    /// Returns a warning with its fix if `is_bad`.
    fn warn_if(is_bad: bool, name: &str, value: impl Into<String>, fix: &str) -> Check {
        match is_bad {
            true => Check::warn(name, value, fix),
            false => Check::ok(name, value),
        }
    }

    fn commands(mut self, commands: impl IntoIterator<Item = String>) -> Check {
        self.commands = commands.into_iter().collect();
        self
    }

    fn momentary(mut self) -> Check {
        self.is_momentary = true;
        self
    }
}

/// The machine that a run was made on, and what the result depends on.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Environment {
    /// The version of ringtally.
    pub version: String,
    /// The git commit that it was built from; null in a debug build, or if it is not known.
    #[serde(default)]
    pub revision: Option<String>,
    /// Whether the sources had changes that are in no commit; null if the commit is not known.
    #[serde(default)]
    pub dirty: Option<bool>,
    /// The time of the check, in RFC 3339 format.
    pub date: String,
    /// The host name.
    pub host: String,
    /// The kernel release.
    pub kernel: String,
    /// The CPU model.
    pub cpu_model: String,
    /// The CPUs that are online.
    pub cpus_online: String,
    /// The CPUs that this process may use.
    pub cpus_allowed: String,
    /// The CPUs that this process may use, by core: `0,4 1,5` are two cores with two threads each.
    #[serde(default)]
    pub topology: String,
    /// The size of the memory in bytes, if it can be read.
    pub memory_bytes: Option<u64>,
    /// The results of all checks.
    pub checks: Vec<Check>,
}

impl Environment {
    /// Checks this machine. Takes at least `sample`, because it observes the CPUs for that time.
    pub fn here(sample: Duration) -> Environment {
        Environment::of(&Machine::here(), sample)
    }

    /// Checks the machine, including the network cards that a server would listen on.
    fn with_listener(sample: Duration, listener: Option<&Listener>) -> Environment {
        let mut here = Environment::here(sample);
        let of_listener = listener.map(|listener| nic::checks(&Machine::here(), listener));
        here.checks.extend(of_listener.into_iter().flatten());
        here
    }

    fn of(machine: &Machine, sample: Duration) -> Environment {
        let mut checks = kernel::checks(machine);
        checks.extend(ring::checks(machine));
        checks.extend(cpu::checks(machine, sample));
        checks.extend(network::checks(machine));
        let text = |path: &str| machine.text(path).unwrap_or_else(|| "unknown".into());
        let revision = Some(env!("RINGTALLY_REVISION")).filter(|revision| !revision.is_empty());
        Environment {
            version: env!("CARGO_PKG_VERSION").into(),
            revision: revision.map(str::to_owned),
            dirty: revision.map(|_| env!("RINGTALLY_IS_DIRTY") == "true"),
            topology: topology(),
            date: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
            host: text("proc/sys/kernel/hostname"),
            kernel: text("proc/sys/kernel/osrelease"),
            cpu_model: machine.cpu_field("model name").unwrap_or_else(|| "unknown".into()),
            cpus_online: text("sys/devices/system/cpu/online"),
            cpus_allowed: machine.cpus_allowed_text(),
            memory_bytes: machine.memory_bytes(),
            checks,
        }
    }

    /// Returns the number of warnings.
    pub fn warnings(&self) -> usize {
        self.checks.iter().filter(|check| check.verdict == Verdict::Warn).count()
    }

    /// Returns it as one JSON object.
    pub fn json(&self) -> String {
        Document::new(Format::Doctor, self).json()
    }

    /// Returns one line per check, and one per command of its fix, in color; `print` removes colors if the output is not
    /// a terminal.
    fn lines(&self) -> String {
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for Check { name, verdict, value, fix, commands, .. } in &self.checks {
            let style = match verdict {
                Verdict::Ok => AnsiColor::Green.on_default(),
                Verdict::Warn => AnsiColor::Yellow.on_default().bold(),
                Verdict::Skip => Style::new().dimmed(),
            };
            let fix = fix.as_ref().map_or(String::new(), |fix| format!("; fix: {fix}"));
            text += &format!("{style}{verdict:<5}{style:#} {name:<width$}  {value}{fix}\n");
            for command in commands {
                text += &format!("{COMMAND_INDENT}{command}\n");
            }
        }
        let count = |verdict| self.checks.iter().filter(|check| check.verdict == verdict).count();
        text += &format!(
            "{} OK, {} WARN, {} SKIP on {}: Linux {}, {}, CPUs {} of {}\n",
            count(Verdict::Ok),
            count(Verdict::Warn),
            count(Verdict::Skip),
            self.host,
            self.kernel,
            self.cpu_model,
            self.cpus_allowed,
            self.cpus_online,
        );
        text
    }
}

/// Returns the CPUs of this process by core.
fn topology() -> String {
    let siblings = topology::allowed_cpus().into_iter().map(topology::siblings);
    let cores: BTreeSet<Vec<usize>> = siblings.collect();
    let cores: Vec<String> = cores.iter().map(|core| topology::format_cpu_list(core)).collect();
    cores.join(" ")
}

/// Explains, in one sentence for the operator, an error from setting up or using an io_uring, and what to do about it on
/// this machine.
pub fn explain_ring_error(error: &io::Error) -> String {
    ring::explain_error(&Machine::here(), error)
}

/// Checks whether this process may lock the memory that `shards` shards need. The error is one sentence with what to do.
pub fn check_memlock(shards: usize) -> Result<(), String> {
    ring::check_memlock(&Machine::here(), shards)
}

/// Checks the machine, or compares two environments, and prints the result on standard output.
///
/// # Errors
///
/// If a file to compare cannot be read, standard output cannot be written to, or `strict` is set
/// and there is a warning or the machines differ.
pub fn run(config: Config) -> Result<(), Failure> {
    if !config.compare.is_empty() {
        let here = || Environment::with_listener(SAMPLE, config.listener.as_ref());
        let comparison = compare(&config.compare, here)?;
        terminal::print(&if config.json {
            comparison.json()
        } else {
            for_people(&comparison.lines())
        })?;
        return match config.strict && !comparison.is_same_machine() {
            true => Err(Failure::Wrong("the machines differ, and --strict was given".into())),
            false => Ok(()),
        };
    }
    let mut environment = Environment::with_listener(SAMPLE, config.listener.as_ref());
    match &config.store {
        Some(Location::File(file)) => {
            environment.checks.extend(storage::checks(&Machine::here(), file));
        }
        Some(Location::Postgres(target)) => environment.checks.extend(database::checks(target)),
        None => {}
    }
    terminal::print(&if config.json {
        environment.json()
    } else {
        for_people(&environment.lines())
    })?;
    match environment.warnings() {
        warnings if config.strict && warnings > 0 => {
            let plural = if warnings == 1 { "" } else { "s" };
            Err(Failure::Wrong(format!("{warnings} warning{plural}, and --strict was given")))
        }
        _ => Ok(()),
    }
}

/// Returns the JSON Schema of a document that the doctor writes; `None` if another module writes it.
pub fn schema(format: Format) -> Option<Schema> {
    match format {
        Format::Doctor => Some(format.schema::<Environment>()),
        Format::DoctorCompare => Some(format.schema::<compare::Comparison>()),
        _ => None,
    }
}

fn for_people(lines: &str) -> String {
    let fit = |line: &str| match line.starts_with(COMMAND_INDENT) {
        true => line.to_owned(),
        false => terminal::fit(line, io::stdout()),
    };
    lines.split_inclusive('\n').map(fit).collect()
}

#[cfg(test)]
mod tests {
    use super::machine::fixture::Fixture;
    use super::*;

    #[test]
    fn each_check_of_this_machine_has_one_line_and_survives_json() {
        let here = Environment::here(Duration::from_millis(20));
        assert!(here.checks.len() > 30, "{}", here.lines());
        for check in &here.checks {
            assert_eq!(check.fix.is_some(), check.verdict == Verdict::Warn, "{check:?}");
            assert!(!check.value.is_empty() && !check.value.contains('\n'), "{check:?}");
        }
        let again: Environment = serde_json::from_str(&here.json()).unwrap();
        assert_eq!(again.checks, here.checks);
        let mut names: Vec<&str> = here.checks.iter().map(|check| check.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), here.checks.len(), "names are unique");
    }

    #[test]
    fn a_command_has_a_line_of_its_own_and_is_a_member_only_where_there_is_one() {
        let mut here = Environment::of(&Fixture::new(&[]).machine(), Duration::ZERO);
        let command = "echo 0 > /proc/irq/41/smp_affinity_list".to_owned();
        here.checks = vec![
            Check::ok("a", "1"),
            Check::warn("b", "2", "run this").commands([command.clone()]),
        ];
        let lines = here.lines();
        assert!(
            lines.contains(&format!("; fix: run this\n{COMMAND_INDENT}{command}\n")),
            "{lines}"
        );
        let json: serde_json::Value = serde_json::from_str(&here.json()).unwrap();
        assert_eq!(json["checks"][0].get("commands"), None);
        assert_eq!(json["checks"][1]["commands"], serde_json::json!([command]));
        let again: Environment = serde_json::from_value(json).unwrap();
        assert_eq!(again.checks, here.checks);
    }

    #[test]
    fn what_cannot_be_read_is_skipped() {
        let nothing = Environment::of(&Fixture::new(&[]).machine(), Duration::ZERO);
        for check in &nothing.checks {
            // The ring is tried, not read, and a missing file can prove that everything is fine.
            let may_be_known = check.name.starts_with("ring ")
                || ["conntrack", "irqbalance", "container"].contains(&check.name.as_str());
            assert!(may_be_known || check.verdict == Verdict::Skip, "{check:?}");
        }
    }
}
