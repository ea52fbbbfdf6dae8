//! The output of a run, a part, or a search, and the places that it is written to.

use super::destination::{Destination, put};
use super::export::{self, Export, Findings};
use super::find::FoundRate;
use super::parts::PartReport;
use super::report::Report;
use crate::failure::Failure;
use crate::terminal;
use std::path::PathBuf;

/// The places that the reports of a run are written to. Standard output is used at most once.
#[derive(Debug)]
pub struct Output {
    json: Option<Destination>,
    hdr: Option<Destination>,
    html: Option<Destination>,
    exports: (Vec<Export>, Vec<Destination>),
    quiet: bool,
}

impl Output {
    /// Opens the places that `--json`, `--hdr`, `--html`, and `--export` name. `-` is standard output, and `quiet` is
    /// whether `--quiet` was given.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] if two of them are the same place, and [`Failure::Environment`] if a place cannot be written.
    pub fn open(
        json: Option<PathBuf>,
        hdr: Option<PathBuf>,
        html: Option<PathBuf>,
        exports: Vec<Export>,
        quiet: bool,
    ) -> Result<Output, Failure> {
        let flags = [("--json", json), ("--hdr", hdr), ("--html", html)];
        let of_exports = exports.iter().map(Export::place).collect();
        let ([json, hdr, html], places) = Destination::open_all(flags, of_exports)?;
        Ok(Output { json, hdr, html, exports: (exports, places), quiet })
    }

    /// Writes the report to every requested place. Writes the summary to standard output, or to standard error if a
    /// report goes to standard output.
    pub fn write(mut self, report: &Report) -> Result<(), Failure> {
        let summary = Summary::of(&self, report.summary());
        let exported = self.exported(|| report.exported());
        let written = [
            put(self.json, || Ok(report.json())),
            put(self.hdr, || Ok(report.percentile_table())),
            put(self.html, || report.html()),
            summary.write(),
        ];
        Failure::all(written.into_iter().chain(exported))
    }

    /// Writes a client's report on its part as JSON, and a summary.
    pub fn write_part(self, report: &PartReport) -> Result<(), Failure> {
        let summary = Summary::of(&self, report.summary());
        Failure::all([put(self.json, || Ok(report.json())), summary.write()])
    }

    /// Writes the result of a search as JSON and as a page, and a summary.
    pub fn write_found(mut self, found: &FoundRate) -> Result<(), Failure> {
        let summary = Summary::of(&self, found.summary());
        let exported = self.exported(|| found.exported());
        let written =
            [put(self.json, || Ok(found.json())), put(self.html, || found.html()), summary.write()];
        Failure::all(written.into_iter().chain(exported))
    }

    /// Writes the requested exports.
    fn exported(&mut self, findings: impl FnOnce() -> Findings) -> Vec<Result<(), Failure>> {
        let (exports, places) = std::mem::take(&mut self.exports);
        match exports.is_empty() {
            true => Vec::new(),
            false => export::write(&exports, places, &[findings()]),
        }
    }
}

/// The summary of a run for the terminal.
struct Summary {
    text: String,
    quiet: bool,
    /// Whether a report goes to standard output.
    is_beside_report: bool,
}

impl Summary {
    fn of(output: &Output, text: String) -> Summary {
        let places = [&output.json, &output.hdr, &output.html];
        let mut places = places.into_iter().flatten().chain(&output.exports.1);
        let is_beside_report = places.any(Destination::is_stdout);
        Summary { text, quiet: output.quiet, is_beside_report }
    }

    fn write(self) -> Result<(), Failure> {
        match self.quiet {
            true => Ok(()),
            false => terminal::tell(&self.text, self.is_beside_report),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::destination::tests::Directory;
    use super::*;
    use std::fs;

    fn usage(opened: Result<Output, Failure>) -> String {
        match opened {
            Err(Failure::Usage(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_one_report_goes_to_standard_output() {
        let directory = Directory::new("stdout");
        let dash = || Some(PathBuf::from("-"));
        let [a, b] = ["a", "b"].map(|name| Some(directory.file(name)));
        for (json, hdr, html) in [(dash(), None, None), (a, dash(), b), (None, None, dash())] {
            assert!(Output::open(json, hdr, html, Vec::new(), false).is_ok());
        }
        for (json, hdr, html, flags) in [
            (dash(), dash(), None, "--json - and --hdr - would"),
            (None, dash(), dash(), "--hdr - and --html - would"),
            (dash(), None, dash(), "--json - and --html - would"),
        ] {
            let why = usage(Output::open(json, hdr, html, Vec::new(), true));
            assert!(why.starts_with(flags), "{why}");
        }
        assert_eq!(directory.names(), Vec::<String>::new());
    }

    #[test]
    fn two_reports_in_one_file_are_refused_however_it_is_named() {
        let directory = Directory::new("one-file");
        let (there, new) = (directory.file("there"), directory.file("new"));
        fs::write(&there, "old").unwrap();
        std::os::unix::fs::symlink(&there, directory.file("link")).unwrap();
        let roundabout = directory.0.join("../").join(directory.0.file_name().unwrap()).join("new");
        for (one, other) in
            [(&there, &there), (&there, &directory.file("link")), (&new, &new), (&new, &roundabout)]
        {
            let why =
                usage(Output::open(Some(one.clone()), None, Some(other.clone()), Vec::new(), true));
            assert!(why.starts_with("--json and --html name one file"), "{why}");
        }
        assert!(Output::open(Some(there.clone()), Some(new), None, Vec::new(), true).is_ok());
        let null = || Some(PathBuf::from("/dev/null"));
        assert!(Output::open(null(), null(), null(), Vec::new(), true).is_ok());
        assert_eq!(fs::read_to_string(&there).unwrap(), "old");
    }
}
