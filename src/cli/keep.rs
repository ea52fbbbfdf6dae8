//! `ringtally keep`, which `challenge --server` starts for each server.

use super::values::{CpuList, cpu_list, duration};
use crate::challenge::KeeperConfig;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// The flags of `keep`.
#[derive(Args, Debug)]
pub struct KeepArgs {
    /// CPUs of the server
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    cpus: CpuList,
    /// File for its output
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
    /// Its cgroup
    #[arg(long, value_name = "DIRECTORY")]
    cgroup: Option<PathBuf>,
    /// How long it may take to end after SIGTERM
    #[arg(long, value_name = "TIME", value_parser = duration)]
    stop_timeout: Duration,
    /// Its command
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl KeepArgs {
    /// Returns the configuration.
    pub fn into_config(self) -> KeeperConfig {
        KeeperConfig {
            command: self.command,
            cpus: self.cpus.0,
            log: self.log,
            cgroup: self.cgroup,
            stop_max: self.stop_timeout,
        }
    }
}
