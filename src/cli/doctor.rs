//! `ringtally doctor`.

use super::values::{CpuList, count, cpu_list, host, location};
use crate::failure::Failure;
use crate::store::Location;
use crate::tally::SHARDS_MAX;
use crate::{doctor, topology};
use clap::Args;
use std::net::IpAddr;
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
PostgreSQL its settings, its standbys, and the rights of the role. With --host,
also whether the network card with that address lines up with the CPUs that
`serve` would use: its queues and their interrupts, RPS, XPS, and its node, each
with the commands that line them up (lines that begin with $, and `commands` in
the JSON). It changes nothing and does not need root. Reports of load and
challenge contain its findings as `environment`, except those of --store and
--host.";

pub(super) const EXAMPLES: &str = "\
Examples:
  ringtally doctor
  ringtally doctor --strict && ringtally challenge
  ringtally doctor --store /var/lib/ringtally/tally.redb
  ringtally doctor --store postgres://tally@db/tally
  ringtally doctor --host 10.0.0.1 --cpus 0-7
  ringtally doctor --host 0.0.0.0 --json | jq -r '.checks[].commands[]?'
  ringtally doctor --compare before.json after.json";

/// The flags of `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Print one JSON object, as the reports of load and challenge hold it
    #[arg(long)]
    json: bool,
    /// Exit with 1 on a warning, or if the machines differ
    #[arg(long)]
    strict: bool,
    /// Show the differences between two reports, or a report and this machine
    #[arg(long, value_name = "FILE", num_args = 1..=2)]
    compare: Vec<PathBuf>,
    /// Also check where a store is, or would be
    #[arg(long, value_name = "STORE", value_parser = location, conflicts_with = "compare")]
    store: Option<Location>,
    /// Also check the network card with this address, for serve to listen on
    ///
    /// With 0.0.0.0 or ::, each physical interface that is up. With --compare, this machine is compared
    /// together with its cards.
    #[arg(long, value_name = "ADDRESS", value_parser = host)]
    host: Option<IpAddr>,
    /// The CPUs that serve would run on, such as 0-3,8 [default: all allowed]
    #[arg(long, value_name = "LIST", value_parser = cpu_list, requires = "host")]
    cpus: Option<CpuList>,
    /// The number of shards that serve would have [default: one per CPU]
    #[arg(long, value_name = "N", value_parser = count::<usize>(1..=SHARDS_MAX as u64), requires = "host")]
    shards: Option<usize>,
}

impl DoctorArgs {
    /// Checks the flags against the machine.
    pub fn into_config(self) -> Result<doctor::Config, Failure> {
        if self.host.is_some() && self.compare.len() > 1 {
            return Err(Failure::Usage(
                "--host is about this machine, and two files are compared: pass one file, or no \
                 --host"
                    .into(),
            ));
        }
        let cpus = CpuList::choose(self.cpus.as_ref())?;
        let placement = topology::place(&cpus, self.shards);
        Ok(doctor::Config {
            json: self.json,
            strict: self.strict,
            compare: self.compare,
            store: self.store,
            listener: self.host.map(|host| doctor::Listener { host, placement }),
        })
    }
}
