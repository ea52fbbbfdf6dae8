//! The CPU time and the memory of a server and of every process that it started.

use crate::failure::Failure;
use crate::load::{self, Moment, Report};
use nix::time::ClockId;
use procfs::process::{Process, all_processes};
use std::collections::HashMap;
use std::time::Duration;

/// The most generations of processes that are followed from a process up to the keeper.
const GENERATIONS_MAX: usize = 64;

/// CPU time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CpuTime {
    pub(super) user: Duration,
    pub(super) system: Duration,
}

impl CpuTime {
    pub(super) fn all(self) -> Duration {
        self.user + self.system
    }

    /// Returns the time since an earlier moment.
    pub(super) fn since(self, earlier: CpuTime) -> CpuTime {
        CpuTime {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }
}

/// Runs a load, and returns its report with the CPU time that the server used during it. `cpu` reads the server's CPU time
/// so far.
pub(super) fn run(
    config: &load::Config,
    mut cpu: impl FnMut() -> Option<CpuTime>,
) -> (Result<Report, Failure>, Option<CpuTime>) {
    let (mut before, mut after) = (None, None);
    let report = load::run(config, |moment| match moment {
        Moment::Start => before = cpu(),
        Moment::End => after = cpu(),
    });
    let used = before.zip(after).map(|(before, after)| after.since(before));
    (report, used)
}

/// Returns the CPU time so far of all processes that a keeper has started, from `/proc`. Every ended process was reaped by its
/// parent or by the keeper, and its time was added to theirs.
pub(super) fn cpu(keeper: i32) -> Option<CpuTime> {
    let tick = Duration::from_secs(1) / u32::try_from(procfs::ticks_per_second()).ok()?;
    let ticks = |count: i64| tick * u32::try_from(count).unwrap_or(0);
    let own = Process::new(keeper).ok()?.stat().ok()?;
    let mut used = CpuTime { user: ticks(own.cutime), system: ticks(own.cstime) };
    for process in descendants(keeper) {
        let clock = ClockId::pid_cpu_clock_id(nix::unistd::Pid::from_raw(process.pid));
        let (Ok(stat), Ok(time)) = (process.stat(), clock.and_then(ClockId::now)) else { continue };
        // The kernel counts the sum in nanoseconds and its parts in ticks, so the sum is divided in proportion to them.
        let user = stat.utime as f64 / (stat.utime + stat.stime).max(1) as f64;
        let time = Duration::from(time);
        used.user += time.mul_f64(user) + ticks(stat.cutime);
        used.system += time.mul_f64(1.0 - user) + ticks(stat.cstime);
    }
    Some(used)
}

/// Returns the peak memory of a keeper's processes in bytes: the sum of their peaks, so shared memory counts once per process.
/// Returns `None` if none can be read.
pub(super) fn peak_rss_bytes(keeper: i32) -> Option<u64> {
    let peak = |process: &Process| process.status().ok()?.vmhwm;
    let peaks: Vec<u64> = descendants(keeper).iter().filter_map(peak).collect();
    (!peaks.is_empty()).then(|| peaks.iter().sum::<u64>() * 1024)
}

/// Returns every process below a keeper. None can leave: an orphan becomes the keeper's own child.
pub(super) fn descendants(keeper: i32) -> Vec<Process> {
    let mut parents: HashMap<i32, i32> = HashMap::new();
    let mut all: Vec<Process> = Vec::new();
    for process in all_processes().into_iter().flatten().flatten() {
        if let Ok(stat) = process.stat() {
            parents.insert(stat.pid, stat.ppid);
            all.push(process);
        }
    }
    let is_below = |process: &Process| {
        let parent = |pid: &i32| parents.get(pid).copied();
        let mut above = std::iter::successors(parent(&process.pid), parent);
        above.by_ref().take(GENERATIONS_MAX).any(|pid| pid == keeper)
    };
    all.into_iter().filter(is_below).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::{Command, Stdio};

    #[test]
    fn children_and_their_children_are_found_with_what_they_used() {
        let own = i32::try_from(std::process::id()).unwrap();
        let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sh -c 'echo ready; exec sleep 60'; true";
        let mut child =
            Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let root = i32::try_from(child.id()).unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
        let below: Vec<i32> = descendants(root).iter().map(|process| process.pid).collect();
        assert_eq!(below.len(), 1, "{below:?}");
        assert!(descendants(own).iter().any(|process| process.pid == below[0]));
        assert!(cpu(own).unwrap().all() > Duration::ZERO);
        assert!(peak_rss_bytes(root).unwrap() > 0);
        let grandchild = rustix::process::Pid::from_raw(below[0]).unwrap();
        rustix::process::kill_process(grandchild, rustix::process::Signal::KILL).unwrap();
        child.wait().unwrap();
        assert!(descendants(root).is_empty() && peak_rss_bytes(root).is_none());
    }
}
