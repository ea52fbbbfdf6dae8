//! `ringtally doctor`.

use crate::doctor;
use clap::Args;
use std::path::PathBuf;

pub(super) const HELP: &str = "Examples:
  ringtally doctor
  ringtally doctor --strict && ringtally challenge
  ringtally doctor --compare before.json after.json";

/// The flags of `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Write one JSON object, as load and challenge embed it in their reports
    #[arg(long)]
    json: bool,
    /// Exit with 1 on a warning, or where --compare finds two machines
    #[arg(long)]
    strict: bool,
    /// Say what differs between two reports, or between one and this machine
    #[arg(long, value_name = "FILE", num_args = 1..=2)]
    compare: Vec<PathBuf>,
}

impl DoctorArgs {
    /// What was asked for.
    pub fn into_config(self) -> doctor::Config {
        doctor::Config { json: self.json, strict: self.strict, compare: self.compare }
    }
}
