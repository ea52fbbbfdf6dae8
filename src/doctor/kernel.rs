//! The kernel: its version, io_uring and what may block it, memory, limits, and what it runs in.

use super::machine::{Machine, limit};
use super::{Check, Verdict};
use crate::uring;
use std::io::ErrorKind;

/// The first Linux on which the ring engine works: it has DEFER_TASKRUN.
const KERNEL_FOR_RING: (u32, u32) = (6, 1);
/// Since this Linux the memory of a ring is counted in the cgroup, not against RLIMIT_MEMLOCK.
const KERNEL_WITHOUT_MEMLOCK: (u32, u32) = (5, 12);
/// What glommio locks for an executor, in bytes.
const MEMLOCK_BYTES: u64 = 512 * 1024;
/// The connections of the challenge on both sides, and what else is open.
const DESCRIPTORS: u64 = 2304;
/// A server with a million users, and its client.
const MEMORY_BYTES: u64 = 512 * 1024 * 1024;

pub(super) fn checks(machine: &Machine) -> Vec<Check> {
    let mut checks = vec![kernel(machine), io_uring_disabled(machine)];
    let is_filtered = machine.status("Seccomp").is_some_and(|mode| mode != "0");
    let features = uring::probe();
    let ring_works = features.iter().all(|feature| feature.result.is_ok());
    for uring::Feature { name, since, result } in features {
        let name = format!("ring {name}");
        checks.push(match result {
            Ok(()) => Check::ok(&name, format!("works (Linux {since})")),
            Err(error) => {
                let fix = match error.kind() {
                    // A seccomp profile refuses with one or the other.
                    ErrorKind::PermissionDenied | ErrorKind::Unsupported if is_filtered => {
                        "allow the io_uring system calls in the container's seccomp profile".into()
                    }
                    ErrorKind::PermissionDenied => "sysctl -w kernel.io_uring_disabled=0".into(),
                    ErrorKind::OutOfMemory => "raise ulimit -l".into(),
                    _ => format!("use Linux {since} or later, or --engine streams"),
                };
                Check::new(&name, Verdict::Warn, error.to_string(), Some(fix))
            }
        });
    }
    checks.extend([
        seccomp(machine, ring_works),
        memory(machine),
        huge_pages(machine),
        descriptors(machine),
        memlock(machine),
        mitigations(machine),
        virtual_machine(machine),
        container(machine),
    ]);
    checks
}

/// The first two numbers of a release.
fn release(machine: &Machine) -> Option<(u32, u32)> {
    let text = machine.text("proc/sys/kernel/osrelease")?;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn kernel(machine: &Machine) -> Check {
    match (release(machine), machine.text("proc/sys/kernel/osrelease")) {
        (Some(release), Some(text)) => Check::warn_if(
            release < KERNEL_FOR_RING,
            "kernel",
            format!("Linux {text}"),
            "use Linux 6.1 or later, which the ring engine needs",
        ),
        _ => Check::skip("kernel", "/proc/sys/kernel/osrelease cannot be read"),
    }
}

fn io_uring_disabled(machine: &Machine) -> Check {
    let name = "io_uring_disabled";
    match machine.number("proc/sys/kernel/io_uring_disabled") {
        Some(0) => Check::ok(name, "0: everybody may use io_uring"),
        Some(value) => Check::warn_if(
            true,
            name,
            format!("{value}: io_uring is blocked for {}", if value == 1 { "most" } else { "all" }),
            "sysctl -w kernel.io_uring_disabled=0",
        ),
        None => Check::skip(name, "this kernel has no such setting (it came with Linux 6.6)"),
    }
}

fn seccomp(machine: &Machine, ring_works: bool) -> Check {
    let fix = "allow io_uring_setup, io_uring_enter and io_uring_register in the profile";
    match machine.status("Seccomp").as_deref() {
        Some("0") => Check::ok("seccomp", "no filter"),
        Some("2") if ring_works => Check::ok("seccomp", "a filter that lets io_uring through"),
        Some("2") => Check::warn_if(true, "seccomp", "a filter", fix),
        Some(mode) => Check::warn_if(true, "seccomp", format!("mode {mode}"), fix),
        None => Check::skip("seccomp", "/proc/self/status does not tell"),
    }
}

fn memory(machine: &Machine) -> Check {
    let files = ["memory.max", "memory.limit_in_bytes"].map(|f| machine.cgroup_files("memory", f));
    let limits = files.iter().flatten().filter_map(|text| text.parse::<u64>().ok());
    let total = machine.memory_bytes();
    if total == 0 {
        return Check::skip("memory", "/proc/meminfo cannot be read");
    }
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let least = limits.min().filter(|limit| *limit < total);
    let value = match least {
        Some(limit) => format!("{}, of which the cgroup allows {}", mib(total), mib(limit)),
        None => format!("{}, no cgroup limit", mib(total)),
    };
    let is_little = least.unwrap_or(total) < MEMORY_BYTES;
    Check::warn_if(is_little, "memory", value, "raise the cgroup's memory.max to 512 MiB or more")
}

fn huge_pages(machine: &Machine) -> Check {
    let name = "transparent hugepages";
    let Some(text) = machine.text("sys/kernel/mm/transparent_hugepage/enabled") else {
        return Check::skip(name, "this kernel has none");
    };
    let chosen = text.split(['[', ']']).nth(1).unwrap_or(&text).to_owned();
    let fix = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: with always, peak memory \
               and latency depend on a background thread";
    Check::warn_if(chosen == "always", name, chosen, fix)
}

fn descriptors(machine: &Machine) -> Check {
    let name = "file descriptors";
    match machine.limits().map(|limits| limits.max_open_files) {
        Some(open) => Check::warn_if(
            limit(open.hard_limit) < DESCRIPTORS,
            name,
            format!("{} allowed, {} at start", bounded(open.hard_limit), bounded(open.soft_limit)),
            "raise ulimit -Hn: a connection takes one on each side",
        ),
        None => Check::skip(name, "/proc/self/limits cannot be read"),
    }
}

fn bounded(value: procfs::process::LimitValue) -> String {
    match limit(value) {
        u64::MAX => "any number".into(),
        number => number.to_string(),
    }
}

fn memlock(machine: &Machine) -> Check {
    let Some(locked) = machine.limits().map(|limits| limit(limits.max_locked_memory.soft_limit))
    else {
        return Check::skip("memlock", "/proc/self/limits cannot be read");
    };
    let value = match locked {
        u64::MAX => "unlimited".into(),
        bytes => format!("{} KiB", bytes / 1024),
    };
    let counts = release(machine).is_none_or(|release| release < KERNEL_WITHOUT_MEMLOCK);
    let fix = "raise ulimit -l to 512 (KiB) a shard or more";
    Check::warn_if(locked < MEMLOCK_BYTES && counts, "memlock", value, fix)
}

fn mitigations(machine: &Machine) -> Check {
    const FOLDER: &str = "sys/devices/system/cpu/vulnerabilities";
    let names = machine.names(FOLDER);
    if names.is_empty() {
        return Check::skip("mitigations", "the kernel does not list them");
    }
    let states: Vec<(String, String)> = names
        .into_iter()
        .filter_map(|name| Some((name.clone(), machine.text(&format!("{FOLDER}/{name}"))?)))
        .collect();
    let of = |kind: &str| -> Vec<&str> {
        let found = states.iter().filter(|(_, state)| state.starts_with(kind));
        found.map(|(name, _)| name.as_str()).collect()
    };
    let (on, open) = (of("Mitigation"), of("Vulnerable"));
    let listed = |names: &[&str]| match names {
        [] => "none".to_owned(),
        names => names.join(" "),
    };
    // Not a fault: they are what a server in use has. They make system calls dearer, so they must
    // be alike where results are compared.
    Check::ok("mitigations", format!("on: {}; vulnerable: {}", listed(&on), listed(&open)))
}

fn virtual_machine(machine: &Machine) -> Check {
    let name = "virtual machine";
    let Some(flags) = machine.cpu_field("flags").or_else(|| machine.cpu_field("Features")) else {
        return Check::skip(name, "/proc/cpuinfo does not tell");
    };
    let maker = ["sys_vendor", "product_name"]
        .iter()
        .filter_map(|file| machine.text(&format!("sys/class/dmi/id/{file}")))
        .collect::<Vec<_>>()
        .join(" ");
    let is_guest = flags.split_ascii_whitespace().any(|flag| flag == "hypervisor")
        || machine.exists("sys/hypervisor/type");
    let value = match (is_guest, maker.as_str()) {
        (false, _) => "none".into(),
        (true, "") => "yes, of an unknown kind".into(),
        (true, maker) => format!("yes: {maker}"),
    };
    let fix =
        "measure on bare metal, or compare in pairs in one run: neighbours take time and caches";
    Check::warn_if(is_guest, name, value, fix)
}

fn container(machine: &Machine) -> Check {
    let marks = [(".dockerenv", "docker"), ("run/.containerenv", "podman")];
    let by_mark = marks.iter().find(|(file, _)| machine.exists(file)).map(|(_, kind)| *kind);
    let groups = machine.text("proc/1/cgroup").unwrap_or_default();
    let by_group = ["docker", "kubepods", "containerd", "lxc"];
    let kind = by_mark.or_else(|| by_group.into_iter().find(|kind| groups.contains(kind)));
    let value = kind.map_or("none seen".into(), |kind| format!("{kind}: its limits hold here too"));
    Check::ok("container", value)
}

#[cfg(test)]
mod tests {
    use super::super::machine::fixture::Fixture;
    use super::*;

    /// The verdict of `check` on a machine with these files.
    fn verdict(check: fn(&Machine) -> Check, files: &[(&str, &str)]) -> Verdict {
        let check = check(&Fixture::new(files).machine());
        assert_eq!(check.fix.is_some(), check.verdict == Verdict::Warn);
        check.verdict
    }

    #[test]
    fn kernels_are_compared_by_number() {
        let on = |text| verdict(kernel, &[("proc/sys/kernel/osrelease", text)]);
        assert_eq!(on("6.1.0-13-amd64\n"), Verdict::Ok);
        assert_eq!(on("6.10.2"), Verdict::Ok);
        assert_eq!(on("6.0.19"), Verdict::Warn);
        assert_eq!(on("5.15.0"), Verdict::Warn);
        assert_eq!(on("odd"), Verdict::Skip);
    }

    #[test]
    fn a_blocked_io_uring_is_found() {
        let with =
            |text| verdict(io_uring_disabled, &[("proc/sys/kernel/io_uring_disabled", text)]);
        assert_eq!(
            [with("0\n"), with("1\n"), with("2\n")],
            [Verdict::Ok, Verdict::Warn, Verdict::Warn]
        );
        let filtered = Fixture::new(&[("proc/self/status", "Name:\tx\nSeccomp:\t2\n")]);
        assert_eq!(seccomp(&filtered.machine(), true).verdict, Verdict::Ok);
        assert_eq!(seccomp(&filtered.machine(), false).verdict, Verdict::Warn);
    }

    #[test]
    fn the_tightest_memory_limit_above_the_process_counts() {
        let memory_info = ("proc/meminfo", "MemTotal:       4194304 kB\n");
        let group = ("proc/self/cgroup", "0::/a/b\n");
        let with = |top: &str, own: &str| {
            verdict(
                memory,
                &[
                    memory_info,
                    group,
                    ("sys/fs/cgroup/a/memory.max", top),
                    ("sys/fs/cgroup/a/b/memory.max", own),
                ],
            )
        };
        assert_eq!(with("max\n", "max\n"), Verdict::Ok);
        assert_eq!(with("268435456\n", "max\n"), Verdict::Warn);
        assert_eq!(with("max\n", "536870912\n"), Verdict::Ok);
        assert_eq!(with("max\n", "536870911\n"), Verdict::Warn);
        let old = [
            memory_info,
            ("proc/self/cgroup", "4:memory:/x\n"),
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "1048576"),
        ];
        assert_eq!(verdict(memory, &old), Verdict::Warn);
    }

    #[test]
    fn limits_are_read_with_their_edges() {
        let limits = |open: &str, locked: &str| {
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
        };
        let on = |check, release: &str, open: &str, locked: &str| {
            verdict(
                check,
                &[
                    ("proc/self/limits", &limits(open, locked)),
                    ("proc/sys/kernel/osrelease", release),
                ],
            )
        };
        assert_eq!(on(descriptors, "6.1", "2304", "0"), Verdict::Ok);
        assert_eq!(on(descriptors, "6.1", "2303", "0"), Verdict::Warn);
        assert_eq!(on(descriptors, "6.1", "unlimited", "0"), Verdict::Ok);
        assert_eq!(on(memlock, "5.11", "1", "524288"), Verdict::Ok);
        assert_eq!(on(memlock, "5.11", "1", "524287"), Verdict::Warn);
        assert_eq!(on(memlock, "5.12", "1", "65536"), Verdict::Ok);
    }

    #[test]
    fn what_it_runs_in_is_told() {
        let with = |text| verdict(virtual_machine, &[("proc/cpuinfo", text)]);
        assert_eq!(with("flags\t: fpu hypervisor sse\n"), Verdict::Warn);
        assert_eq!(with("flags\t: fpu sse\n"), Verdict::Ok);
        let thp = "sys/kernel/mm/transparent_hugepage/enabled";
        assert_eq!(verdict(huge_pages, &[(thp, "always [madvise] never")]), Verdict::Ok);
        assert_eq!(verdict(huge_pages, &[(thp, "[always] madvise never")]), Verdict::Warn);
        let docker = Fixture::new(&[(".dockerenv", "")]);
        assert!(container(&docker.machine()).value.starts_with("docker"));
    }
}
