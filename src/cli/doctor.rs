//! `ringtally doctor`.

use super::values::location;
use crate::doctor;
use crate::store::Location;
use clap::Args;
use std::path::PathBuf;

pub(super) const LONG_ABOUT: &str = "\
Check what a benchmark on this machine depends on

Prints OK, WARN, or SKIP per check, each warning with its fix. It tries every
io_uring feature that the ring engine uses and reads the rest: seccomp, cgroups,
affinity, SMT, NUMA, frequency governor, turbo, idle states, isolated CPUs,
interrupts, clock source, stolen time, load, limits, queues, loopback, and
whether this is a virtual machine or a container. With --store, also whether
what a store acknowledged survives a power failure: the file system of the file,
its mount options, the write caches of its devices, and the free space; or of a
PostgreSQL its settings, its standbys, and the rights of the role. It changes
nothing and does not need root. Reports of load and challenge hold its
findings, apart from those of --store, as `environment`.";

pub(super) const EXAMPLES: &str = "\
Examples:
  ringtally doctor
  ringtally doctor --strict && ringtally challenge
  ringtally doctor --store /var/lib/ringtally/tally.redb
  ringtally doctor --store postgres://tally@db/tally
  ringtally doctor --compare before.json after.json";

/// The flags of `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Print one JSON object, as the reports of load and challenge hold it
    #[arg(long)]
    json: bool,
    /// Exit with 1 on a warning, or if --compare finds two machines
    #[arg(long)]
    strict: bool,
    /// Show the differences between two reports, or a report and this machine
    #[arg(long, value_name = "FILE", num_args = 1..=2)]
    compare: Vec<PathBuf>,
    /// Also check where a store is, or would be
    #[arg(long, value_name = "STORE", value_parser = location, conflicts_with = "compare")]
    store: Option<Location>,
}

impl DoctorArgs {
    /// The configuration that the flags describe.
    pub fn into_config(self) -> doctor::Config {
        doctor::Config {
            json: self.json,
            strict: self.strict,
            compare: self.compare,
            store: self.store,
        }
    }
}
