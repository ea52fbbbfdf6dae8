//! The files that the kernel uses to describe a machine: below `/`, or below a directory that stands for an unusual machine in
//! a test.
//!
//! Some files are parsed by hand because the parsers of `procfs` reject some of them: its `Status`, `Meminfo`, and `CpuInfo`
//! require fields that other architectures, sandboxes, and fixtures lack, and its `KernelVersion` requires three numbers.

use crate::topology::{kind_of, parse_cpu_list};
use procfs::process::{LimitValue, Limits, MountInfo};
use procfs::{FromBufRead, FromBufReadSI, KernelStats, ProcessCGroups, current_system_info};
use std::fs::{read, read_dir, read_to_string};
use std::path::PathBuf;

/// The first two numbers of a kernel release.
pub(super) type Release = (u32, u32);

/// The files of a machine.
pub(super) struct Machine {
    root: PathBuf,
}

impl Machine {
    pub(super) fn here() -> Machine {
        Machine { root: "/".into() }
    }

    /// Returns the text of a file without surrounding white space, even if it is empty; `None` if it cannot be read.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        Some(read_to_string(self.root.join(path)).ok()?.trim().to_owned())
    }

    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// Returns the names in a directory, sorted; the list is empty if it cannot be read.
    pub(super) fn names(&self, folder: &str) -> Vec<String> {
        let entries = read_dir(self.root.join(folder)).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        names
    }

    /// Returns the last name of a path once all links in it are followed; `None` if it does not exist.
    pub(super) fn final_name(&self, path: &str) -> Option<String> {
        self.root.join(path).canonicalize().ok()?.file_name()?.to_str().map(str::to_owned)
    }

    /// Returns the mount with this number (proc_pid_mountinfo(5)).
    pub(super) fn mount(&self, id: u64) -> Option<MountInfo> {
        let mounts = self.text("proc/self/mountinfo")?;
        let start = format!("{id} ");
        MountInfo::from_line(mounts.lines().find(|line| line.starts_with(&start))?).ok()
    }

    /// Returns the CPUs in a file with a list of CPUs.
    pub(super) fn cpus(&self, path: &str) -> Option<Vec<usize>> {
        parse_cpu_list(&self.text(path)?).ok()
    }

    /// Returns the kind of core that a CPU belongs to.
    pub(super) fn core_kind(&self, cpu: usize) -> u32 {
        kind_of(&self.root.join("sys/devices"), cpu)
    }

    /// Returns a field of this process's status (proc_pid_status(5)).
    pub(super) fn status(&self, name: &str) -> Option<String> {
        let status = self.text("proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().to_owned())
    }

    /// Reports whether this process has a capability in effect, given its number (capabilities(7)).
    pub(super) fn has_capability(&self, number: u32) -> bool {
        let mask = self.status("CapEff").and_then(|hex| u64::from_str_radix(&hex, 16).ok());
        mask.is_some_and(|mask| mask >> number & 1 == 1)
    }

    /// Returns the release of the kernel.
    pub(super) fn release(&self) -> Option<Release> {
        Machine::parse_release(&self.text("proc/sys/kernel/osrelease")?)
    }

    /// Returns the first two numbers in a text such as `6.12.9-amd64` or `6.1`.
    pub(super) fn parse_release(text: &str) -> Option<Release> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    }

    /// Returns the CPUs that this process may use, in the kernel's format.
    pub(super) fn cpus_allowed_text(&self) -> String {
        self.status("Cpus_allowed_list").unwrap_or_else(|| "unknown".into())
    }

    pub(super) fn cpus_allowed(&self) -> Option<Vec<usize>> {
        parse_cpu_list(&self.status("Cpus_allowed_list")?).ok()
    }

    /// Returns the first field with this name in proc/cpuinfo.
    pub(super) fn cpu_field(&self, name: &str) -> Option<String> {
        let info = self.text("proc/cpuinfo")?;
        let is_it = |line: &&str| line.split(':').next().is_some_and(|key| key.trim() == name);
        Some(info.lines().find(is_it)?.split_once(':')?.1.trim().to_owned())
    }

    /// Returns the size of the memory.
    pub(super) fn memory_bytes(&self) -> Option<u64> {
        let info = self.text("proc/meminfo")?;
        let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    }

    pub(super) fn limits(&self) -> Option<Limits> {
        Limits::from_buf_read(read(self.root.join("proc/self/limits")).ok()?.as_slice()).ok()
    }

    pub(super) fn stat(&self) -> Option<KernelStats> {
        let bytes = read(self.root.join("proc/stat")).ok()?;
        KernelStats::from_buf_read(bytes.as_slice(), current_system_info()).ok()
    }

    /// Returns the text of each file with this name that applies to this process, from its own cgroup up to the root,
    /// in the unified hierarchy or in a controller's (cgroups(7)).
    pub(super) fn cgroup_files(&self, controller: &str, name: &str) -> Vec<String> {
        let bytes = read(self.root.join("proc/self/cgroup")).unwrap_or_default();
        let Ok(groups) = ProcessCGroups::from_buf_read(bytes.as_slice()) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for group in groups {
            let mounts: &[String] = match group.controllers.iter().any(|own| own == controller) {
                true => &[format!("sys/fs/cgroup/{controller}")],
                false if group.hierarchy == 0 => {
                    &["sys/fs/cgroup".into(), "sys/fs/cgroup/unified".into()]
                }
                false => continue,
            };
            for mount in mounts {
                let mut path = group.pathname.as_str();
                loop {
                    found.extend(self.text(&format!("{mount}{path}/{name}")));
                    match path.trim_end_matches('/').rsplit_once('/') {
                        Some((parent, _)) => path = parent,
                        None => break,
                    }
                }
            }
        }
        found
    }
}

/// Returns a limit as a number; `None` if it is unlimited.
pub(super) fn limit(value: LimitValue) -> Option<u64> {
    match value {
        LimitValue::Unlimited => None,
        LimitValue::Value(value) => Some(value),
    }
}

#[cfg(test)]
pub(super) mod fixture {
    use super::Machine;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A directory with the files of a machine. Dropping it removes the directory.
    pub(in crate::doctor) struct Fixture(PathBuf);

    impl Fixture {
        pub(in crate::doctor) fn new(files: &[(&str, &str)]) -> Fixture {
            static NEXT: AtomicU64 = AtomicU64::new(0);
            let next = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("ringtally-doctor-{}-{next}", std::process::id());
            let fixture = Fixture(std::env::temp_dir().join(name));
            std::fs::create_dir_all(&fixture.0).unwrap();
            for (path, text) in files {
                let path = fixture.0.join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            fixture
        }

        pub(in crate::doctor) fn root(&self) -> &Path {
            &self.0
        }

        pub(in crate::doctor) fn machine(&self) -> Machine {
            Machine { root: self.0.clone() }
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// Returns a proc/self/limits with this hard limit on open files and this limit on locked memory.
    pub(in crate::doctor) fn limits(open: &str, locked: &str) -> String {
        format!(
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max cpu time              unlimited            unlimited            seconds   \n\
             Max file size             unlimited            unlimited            bytes     \n\
             Max data size             unlimited            unlimited            bytes     \n\
             Max stack size            8388608              unlimited            bytes     \n\
             Max core file size        0                    unlimited            bytes     \n\
             Max resident set          unlimited            unlimited            bytes     \n\
             Max processes             95886                95886                processes \n\
             Max open files            1024                 {open:<20} files     \n\
             Max locked memory         {locked:<20} {locked:<20} bytes     \n\
             Max address space         unlimited            unlimited            bytes     \n\
             Max file locks            unlimited            unlimited            locks     \n\
             Max pending signals       95886                95886                signals   \n\
             Max msgqueue size         819200               819200               bytes     \n\
             Max nice priority         0                    0                    \n\
             Max realtime priority     0                    0                    \n\
             Max realtime timeout      unlimited            unlimited            us        \n"
        )
    }
}
