//! What the kernel tells of a machine in files: below `/`, or below a folder that stands for an odd
//! machine in a test.

use crate::topology::parse_cpu_list;
use procfs::process::{LimitValue, Limits};
use procfs::{FromBufRead, FromBufReadSI, KernelStats, ProcessCGroups, current_system_info};
use std::fs::{read, read_dir, read_to_string};
use std::path::PathBuf;

/// The files of a machine.
pub(super) struct Machine {
    root: PathBuf,
}

impl Machine {
    pub(super) fn here() -> Machine {
        Machine { root: "/".into() }
    }

    /// A file's text without white space around it; `None` where it cannot be read. A setting that
    /// is empty is there.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        Some(read_to_string(self.root.join(path)).ok()?.trim().to_owned())
    }

    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// The names in a folder, sorted.
    pub(super) fn names(&self, folder: &str) -> Vec<String> {
        let entries = read_dir(self.root.join(folder)).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        names
    }

    /// A file with a list of CPUs.
    pub(super) fn cpus(&self, path: &str) -> Option<Vec<usize>> {
        parse_cpu_list(&self.text(path)?).ok()
    }

    /// A field of this process's status (proc_pid_status(5)).
    pub(super) fn status(&self, name: &str) -> Option<String> {
        let status = self.text("proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().to_owned())
    }

    /// The CPUs that this process may use, as the kernel writes them.
    pub(super) fn cpus_allowed_text(&self) -> String {
        self.status("Cpus_allowed_list").unwrap_or_else(|| "unknown".into())
    }

    pub(super) fn cpus_allowed(&self) -> Option<Vec<usize>> {
        parse_cpu_list(&self.status("Cpus_allowed_list")?).ok()
    }

    /// The first field of that name in proc/cpuinfo.
    pub(super) fn cpu_field(&self, name: &str) -> Option<String> {
        let info = self.text("proc/cpuinfo")?;
        let is_it = |line: &&str| line.split(':').next().is_some_and(|key| key.trim() == name);
        Some(info.lines().find(is_it)?.split_once(':')?.1.trim().to_owned())
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        let read = || {
            let info = self.text("proc/meminfo")?;
            let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        };
        read().unwrap_or(0) * 1024
    }

    pub(super) fn limits(&self) -> Option<Limits> {
        Limits::from_buf_read(read(self.root.join("proc/self/limits")).ok()?.as_slice()).ok()
    }

    pub(super) fn stat(&self) -> Option<KernelStats> {
        let bytes = read(self.root.join("proc/stat")).ok()?;
        KernelStats::from_buf_read(bytes.as_slice(), current_system_info()).ok()
    }

    /// Every file of that name that bounds this process, from its own cgroup up to the top one:
    /// below the unified hierarchy, or below that of a controller (cgroups(7)).
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

/// A limit as a number; the largest for none.
pub(super) fn limit(value: LimitValue) -> u64 {
    match value {
        LimitValue::Unlimited => u64::MAX,
        LimitValue::Value(value) => value,
    }
}

#[cfg(test)]
pub(super) mod fixture {
    use super::Machine;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A folder with the files of a machine, removed at the end.
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

        pub(in crate::doctor) fn machine(&self) -> Machine {
            Machine { root: self.0.clone() }
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
