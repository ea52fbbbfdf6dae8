//! A cgroup (v2) for one server. Processes cannot leave it, and its CPU time includes ended processes.

use super::usage::CpuTime;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The longest time that the kernel may take to remove killed processes from a group.
const EMPTY_MAX: Duration = Duration::from_secs(5);

/// A group. Dropping it kills its processes and removes it.
#[derive(Debug)]
pub(super) struct Group {
    path: PathBuf,
}

impl Group {
    /// Makes a group below this process's own. Returns `None` if that is not allowed here, or without cgroup v2.
    pub(super) fn make() -> Option<Group> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = own()?.join(format!("ringtally-{}-{number}", std::process::id()));
        fs::create_dir(&path).ok()?;
        let group = Group { path };
        // A group that cannot be read or emptied is useless.
        let is_usable = group.cpu().is_some() && group.path.join("cgroup.kill").exists();
        is_usable.then_some(group)
    }

    /// Returns its directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the user and system time of all processes that ran in it.
    pub(super) fn cpu(&self) -> Option<CpuTime> {
        cpu_in(&fs::read_to_string(self.path.join("cpu.stat")).ok()?)
    }

    /// Reports whether a process is in it.
    #[cfg(test)]
    fn has_processes(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.procs")).is_ok_and(|procs| !procs.is_empty())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        end(&self.path);
    }
}

/// Kills every process in a group, and removes the group.
pub(super) fn end(path: &Path) {
    let deadline = Instant::now() + EMPTY_MAX;
    loop {
        // Both fail if it is gone already.
        let _ = kill(path);
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            _ => return,
        }
        if Instant::now() >= deadline {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends SIGKILL to all processes of a group together, so that none can fork away.
pub(super) fn kill(path: &Path) -> io::Result<()> {
    fs::write(path.join("cgroup.kill"), "1")
}

/// Runs `start` while this process is in the group, so that whatever it starts is in the group from the beginning.
pub(super) fn within<T>(path: &Path, start: impl FnOnce() -> T) -> io::Result<T> {
    let home = own().ok_or(io::ErrorKind::NotFound)?;
    // Zero stands for the process that writes it.
    fs::write(path.join("cgroup.procs"), "0")?;
    let started = start();
    fs::write(home.join("cgroup.procs"), "0")?;
    Ok(started)
}

/// Returns the directory of this process's own group.
fn own() -> Option<PathBuf> {
    let read = |file: &str| fs::read_to_string(format!("/proc/self/{file}")).ok();
    directory(&read("mountinfo")?, &read("cgroup")?)
}

/// Returns the directory of a process's group, from its mounts and its groups (proc_pid_mountinfo(5), cgroups(7)).
fn directory(mounts: &str, groups: &str) -> Option<PathBuf> {
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let is_v2 = file_system.split(' ').next() == Some("cgroup2");
        let below = Path::new(group).strip_prefix(root).ok().filter(|_| is_v2)?;
        Some(Path::new(point).join(below))
    })
}

/// Returns the times in a group's `cpu.stat`.
fn cpu_in(stat: &str) -> Option<CpuTime> {
    let of = |key: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(key))?;
        Some(Duration::from_micros(line.trim().parse().ok()?))
    };
    Some(CpuTime { user: of("user_usec ")?, system: of("system_usec ")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_a_process_is_below_the_mount() {
        let mounts = "30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs rw\n\
                      31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      32 30 0:28 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        let of = |mounts: &str, groups| directory(mounts, groups);
        let path = "/sys/fs/cgroup/unified/user.slice/a";
        assert_eq!(of(mounts, "4:memory:/x\n0::/user.slice/a\n"), Some(path.into()));
        assert_eq!(of(mounts, "0::/\n"), Some("/sys/fs/cgroup/unified/".into()));
        // In a container, the root of the mount is the container's group.
        let container = mounts.replace("0:28 / ", "0:28 /docker/b ");
        assert_eq!(of(&container, "0::/docker/b/c\n"), Some("/sys/fs/cgroup/unified/c".into()));
        assert_eq!(of(&container, "0::/other\n"), None);
        assert_eq!(of(mounts, "4:memory:/x\n"), None);
        assert_eq!(of("", "0::/\n"), None);
    }

    #[test]
    fn times_are_read_in_microseconds() {
        let stat = "usage_usec 3500\nuser_usec 1500\nsystem_usec 2000\nnice_usec 0\n";
        let cpu = cpu_in(stat).unwrap();
        assert_eq!((cpu.user.as_micros(), cpu.system.as_micros()), (1500, 2000));
        assert!(cpu_in("usage_usec 1\n").is_none());
    }

    #[test]
    fn a_group_that_was_made_is_empty_and_gone_at_the_end() {
        // Without cgroups, the tests of whole challenges cover the fallback.
        let Some(group) = Group::make() else { return };
        let path = group.path().to_owned();
        assert!(path.is_dir() && !group.has_processes());
        assert_eq!(group.cpu().map(|cpu| cpu.user + cpu.system), Some(Duration::ZERO));
        drop(group);
        assert!(!path.exists());
    }
}
