//! Where a report goes: to files, to standard output, or both.

use super::{FoundRate, Report};
use crate::failure::Failure;
use crate::load::parts::PartReport;
use crate::terminal;
use std::io::{Write, stderr, stdout};
use std::path::{Path, PathBuf};

/// Where a run's report goes. At most one of the paths is `-`.
#[derive(Clone, Debug, Default)]
pub struct Output {
    json: Option<PathBuf>,
    hdr: Option<PathBuf>,
    html: Option<PathBuf>,
    quiet: bool,
}

impl Output {
    /// Takes the paths of `--json`, `--hdr`, and `--html`, where `-` is standard output, and whether
    /// `--quiet` was given. Fails if more than one of them is `-`: their text would be mixed.
    pub fn new(
        json: Option<PathBuf>,
        hdr: Option<PathBuf>,
        html: Option<PathBuf>,
        quiet: bool,
    ) -> Result<Output, Failure> {
        let output = Output { json, hdr, html, quiet };
        let flags = [("--json", &output.json), ("--hdr", &output.hdr), ("--html", &output.html)];
        check_stdout(&flags)?;
        Ok(output)
    }

    /// Writes the report to every place that was asked for, and the summary to standard output,
    /// or to standard error where one of the reports goes to standard output.
    pub fn write(&self, report: &Report) -> Result<(), Failure> {
        if let Some(path) = &self.json {
            write_to(path, &(report.json()? + "\n"))?;
        }
        if let Some(path) = &self.hdr {
            write_to(path, &report.percentile_table())?;
        }
        if let Some(path) = &self.html {
            write_to(path, &report.html()?)?;
        }
        self.summarize(&report.summary())
    }

    /// Writes what a client found of its part as JSON, and a summary.
    pub fn write_part(&self, report: &PartReport) -> Result<(), Failure> {
        if let Some(path) = &self.json {
            write_to(path, &(report.json()? + "\n"))?;
        }
        self.summarize(&report.summary())
    }

    /// Writes what a search found as JSON and as a page, and a summary.
    pub fn write_found(&self, found: &FoundRate) -> Result<(), Failure> {
        if let Some(path) = &self.json {
            write_to(path, &(found.json()? + "\n"))?;
        }
        if let Some(path) = &self.html {
            write_to(path, &found.html()?)?;
        }
        self.summarize(&found.summary())
    }

    fn summarize(&self, summary: &str) -> Result<(), Failure> {
        match (self.quiet, [&self.json, &self.hdr, &self.html].into_iter().any(is_stdout)) {
            (true, _) => Ok(()),
            (false, false) => write_to(Path::new("-"), &terminal::fit(summary, stdout())),
            (false, true) => {
                // If standard error is closed, nobody reads the summary.
                let summary = terminal::fit(summary, stderr());
                let _ = write!(anstream::stderr(), "{summary}");
                Ok(())
            }
        }
    }
}

/// Fails if more than one of the paths is `-`, each of which comes with its flag.
pub(crate) fn check_stdout(flags: &[(&str, &Option<PathBuf>)]) -> Result<(), Failure> {
    let on_stdout: Vec<&str> =
        flags.iter().filter(|(_, path)| is_stdout(path)).map(|(flag, _)| *flag).collect();
    match on_stdout.as_slice() {
        [] | [_] => Ok(()),
        [first, rest @ ..] => Err(Failure::Usage(format!(
            "{first} - and {} - would be mixed on standard output: write all but one to a file",
            rest.join(" - and ")
        ))),
    }
}

fn is_stdout(path: &Option<PathBuf>) -> bool {
    path.as_deref() == Some(Path::new("-"))
}

/// Writes text to a file, or to standard output if the path is `-`.
pub fn write_to(path: &Path, text: &str) -> Result<(), Failure> {
    let written = if path.as_os_str() == "-" {
        // Strips colors if standard output is not a terminal or NO_COLOR is set.
        anstream::stdout().write_all(text.as_bytes())
    } else {
        std::fs::write(path, text)
    };
    written.map_err(|error| {
        Failure::Environment(format!(
            "cannot write {}: {error}: name a file that can be written",
            path.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_report_goes_to_standard_output() {
        let (dash, file) = (|| Some(PathBuf::from("-")), || Some(PathBuf::from("report")));
        for (json, hdr, html) in
            [(dash(), None, None), (file(), dash(), file()), (None, None, dash())]
        {
            assert!(Output::new(json, hdr, html, false).is_ok());
        }
        for (json, hdr, html, flags) in [
            (dash(), dash(), None, "--json - and --hdr - would"),
            (None, dash(), dash(), "--hdr - and --html - would"),
            (dash(), dash(), dash(), "--json - and --hdr - and --html - would"),
        ] {
            match Output::new(json, hdr, html, true) {
                Err(Failure::Usage(why)) => assert!(why.starts_with(flags), "{why}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
