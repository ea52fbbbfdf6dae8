//! Where a run's report goes.

use crate::failure::Failure;
use crate::load;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Where a run's report goes.
#[derive(Clone, Debug)]
pub struct Output {
    pub(super) json: Option<PathBuf>,
    pub(super) hdr: Option<PathBuf>,
    pub(super) html: Option<PathBuf>,
    pub(super) quiet: bool,
}

impl Output {
    /// Writes the report to every place that was asked for, and the summary to standard output,
    /// or to standard error where something else goes there.
    pub fn write(&self, report: &load::Report) -> Result<(), Failure> {
        if let Some(path) = &self.json {
            load::write_to(path, &(report.json() + "\n"))?;
        }
        if let Some(path) = &self.hdr {
            load::write_to(path, &report.percentile_table())?;
        }
        if let Some(path) = &self.html {
            load::write_to(path, &report.html())?;
        }
        let is_taken = |path: &Option<PathBuf>| path.as_deref() == Some(Path::new("-"));
        let is_taken = [&self.json, &self.hdr, &self.html].into_iter().any(is_taken);
        match (self.quiet, is_taken) {
            (true, _) => Ok(()),
            (false, false) => load::write_to(Path::new("-"), &report.summary()),
            (false, true) => {
                // Nobody is left to tell when standard error is closed.
                let _ = write!(anstream::stderr(), "{}", report.summary());
                Ok(())
            }
        }
    }
}
