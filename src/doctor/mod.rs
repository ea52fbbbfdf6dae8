//! What a benchmark on this machine depends on: a value, a verdict and a fix each. Nothing is
//! changed, and nothing needs root.

mod compare;
mod cpu;
mod kernel;
mod machine;
mod network;

use crate::failure::Failure;
use anstyle::{AnsiColor, Style};
pub use compare::compare;
pub use cpu::CpuUse;
use machine::Machine;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// How long the doctor looks at what the CPUs do.
const SAMPLE: Duration = Duration::from_millis(250);

/// What the command was asked for.
#[derive(Clone, Debug)]
pub struct Config {
    /// One JSON object in place of lines.
    pub json: bool,
    /// A warning, or a machine that differs, is a failure.
    pub strict: bool,
    /// Reports to compare: with each other, or one with this machine.
    pub compare: Vec<PathBuf>,
}

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// As a benchmark wants it.
    Ok,
    /// It changes or blurs results.
    Warn,
    /// It cannot be read here.
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// What to think of it.
    pub verdict: Verdict,
    /// What it is, or why it cannot be read.
    pub value: String,
    /// What to do about a warning.
    pub fix: Option<String>,
    /// It is another one each time, and says nothing about whether two machines are alike.
    pub is_momentary: bool,
}

impl Check {
    fn new(name: &str, verdict: Verdict, value: impl Into<String>, fix: Option<String>) -> Check {
        Check { name: name.into(), verdict, value: value.into(), fix, is_momentary: false }
    }

    fn ok(name: &str, value: impl Into<String>) -> Check {
        Check::new(name, Verdict::Ok, value, None)
    }

    fn skip(name: &str, reason: impl Into<String>) -> Check {
        Check::new(name, Verdict::Skip, reason, None)
    }

    /// A warning with its fix where `is_bad`.
    fn warn_if(is_bad: bool, name: &str, value: impl Into<String>, fix: &str) -> Check {
        match is_bad {
            true => Check::new(name, Verdict::Warn, value, Some(fix.into())),
            false => Check::ok(name, value),
        }
    }

    fn momentary(mut self) -> Check {
        self.is_momentary = true;
        self
    }
}

/// Where a run was made, and what its result depends on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Environment {
    /// Of ringtally.
    pub version: String,
    /// When it was looked at, in RFC 3339.
    pub date: String,
    /// The machine's own name.
    pub host: String,
    /// The kernel's release.
    pub kernel: String,
    /// The processor.
    pub cpu_model: String,
    /// The CPUs that are there.
    pub cpus_online: String,
    /// The CPUs that this process may use.
    pub cpus_allowed: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// What was checked.
    pub checks: Vec<Check>,
}

impl Environment {
    /// This machine, now. Takes as long as `sample`, in which it watches the CPUs.
    pub fn here(sample: Duration) -> Environment {
        Environment::of(&Machine::here(), sample)
    }

    fn of(machine: &Machine, sample: Duration) -> Environment {
        let mut checks = kernel::checks(machine);
        checks.extend(cpu::checks(machine, sample));
        checks.extend(network::checks(machine));
        let text = |path: &str| machine.text(path).unwrap_or_else(|| "unknown".into());
        Environment {
            version: env!("CARGO_PKG_VERSION").into(),
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

    /// How many checks warn.
    pub fn warnings(&self) -> usize {
        self.checks.iter().filter(|check| check.verdict == Verdict::Warn).count()
    }

    /// As one JSON object.
    pub fn json(&self) -> String {
        // Numbers and strings only: it has a JSON form.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// A line a check. Colours are for a terminal; whoever prints takes them out elsewhere.
    fn lines(&self) -> String {
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for Check { name, verdict, value, fix, .. } in &self.checks {
            let style = match verdict {
                Verdict::Ok => AnsiColor::Green.on_default(),
                Verdict::Warn => AnsiColor::Yellow.on_default().bold(),
                Verdict::Skip => Style::new().dimmed(),
            };
            let fix = fix.as_ref().map_or(String::new(), |fix| format!("; fix: {fix}"));
            text += &format!("{style}{verdict:<5}{style:#} {name:<width$}  {value}{fix}\n");
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

/// Looks at the machine, or compares what was seen of two, and says so on standard output.
pub fn run(config: Config) -> Result<(), Failure> {
    if !config.compare.is_empty() {
        let comparison = compare(&config.compare)?;
        print(&if config.json { comparison.json() + "\n" } else { comparison.lines() })?;
        return match config.strict && !comparison.is_same_machine() {
            true => Err(Failure::Wrong("the machines differ, and --strict was given".into())),
            false => Ok(()),
        };
    }
    let environment = Environment::here(SAMPLE);
    print(&if config.json { environment.json() + "\n" } else { environment.lines() })?;
    match environment.warnings() {
        warnings if config.strict && warnings > 0 => {
            Err(Failure::Wrong(format!("{warnings} warnings, and --strict was given")))
        }
        _ => Ok(()),
    }
}

fn print(text: &str) -> Result<(), Failure> {
    // Takes the colours out where it is no terminal, or NO_COLOR is set.
    anstream::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::Environment(format!("cannot write to standard output: {error}")))
}

#[cfg(test)]
mod tests {
    use super::machine::fixture::Fixture;
    use super::*;

    #[test]
    fn this_machine_has_a_line_for_everything_and_reads_back_from_json() {
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
        assert_eq!(names.len(), here.checks.len(), "each has a name of its own");
    }

    #[test]
    fn a_machine_of_which_nothing_can_be_read_is_skipped_not_trusted() {
        let nothing = Environment::of(&Fixture::new(&[]).machine(), Duration::ZERO);
        for check in &nothing.checks {
            // The ring is tried, not read, and what a missing file proves is all right.
            let may_be_known = check.name.starts_with("ring ")
                || ["conntrack", "irqbalance", "container"].contains(&check.name.as_str());
            assert!(may_be_known || check.verdict == Verdict::Skip, "{check:?}");
        }
    }
}
