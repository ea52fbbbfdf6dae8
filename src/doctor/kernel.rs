//! The kernel: its version, its memory, its limits, and the environment that it runs in.

use super::Check;
use super::machine::{Machine, limit};
use super::ring::KERNEL_FOR_RING;

/// Enough for the connections of the challenge on both sides, and for other open files.
const DESCRIPTORS: u64 = 2304;
/// Enough for a server with a million users and its client.
const MEMORY_BYTES: u64 = 512 * 1024 * 1024;

pub(super) fn checks(machine: &Machine) -> Vec<Check> {
    vec![
        kernel(machine),
        memory(machine),
        huge_pages(machine),
        descriptors(machine),
        mitigations(machine),
        virtual_machine(machine),
        container(machine),
    ]
}

fn kernel(machine: &Machine) -> Check {
    match (machine.release(), machine.text("proc/sys/kernel/osrelease")) {
        (Some(release), Some(text)) => Check::warn_if(
            release < KERNEL_FOR_RING,
            "kernel",
            format!("Linux {text}"),
            "use Linux 6.1 or later: on older ones, serve works with --engine streams only, load and \
             challenge not at all",
        ),
        _ => Check::skip("kernel", "/proc/sys/kernel/osrelease cannot be read"),
    }
}

fn memory(machine: &Machine) -> Check {
    let Some(total) = machine.memory_bytes() else {
        return Check::skip("memory", "/proc/meminfo cannot be read");
    };
    let files = ["memory.max", "memory.limit_in_bytes"].map(|f| machine.cgroup_files("memory", f));
    let limits = files.iter().flatten().filter_map(|text| text.parse::<u64>().ok());
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let least = limits.min().filter(|limit| *limit < total);
    let value = match least {
        Some(limit) => format!("{}, of which the cgroup allows {}", mib(total), mib(limit)),
        None => format!("{}, no cgroup limit", mib(total)),
    };
    let fix = match total < MEMORY_BYTES {
        true => "use a machine with 512 MiB of memory or more",
        false => "raise the cgroup's memory.max to 512 MiB or more",
    };
    Check::warn_if(least.unwrap_or(total) < MEMORY_BYTES, "memory", value, fix)
}

fn huge_pages(machine: &Machine) -> Check {
    let name = "transparent hugepages";
    let Some(text) = machine.text("sys/kernel/mm/transparent_hugepage/enabled") else {
        return Check::skip(name, "this kernel has no such setting");
    };
    let chosen = text.split(['[', ']']).nth(1).unwrap_or(&text).to_owned();
    let fix = "run echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, because with always a \
               background thread affects peak memory and latency";
    Check::warn_if(chosen == "always", name, chosen, fix)
}

fn descriptors(machine: &Machine) -> Check {
    let name = "file descriptors";
    let Some(files) = machine.limits().map(|limits| limits.max_open_files) else {
        return Check::skip(name, "/proc/self/limits cannot be read");
    };
    let (hard, soft) = (limit(files.hard_limit), limit(files.soft_limit));
    let text = |limit: Option<u64>| limit.map_or("unlimited".into(), |limit| limit.to_string());
    let value = format!("{} (soft limit {}, raised at startup)", text(hard), text(soft));
    let fix = format!(
        "raise ulimit -Hn to {DESCRIPTORS} or more: each connection takes a descriptor on each side"
    );
    Check::warn_if(hard.is_some_and(|hard| hard < DESCRIPTORS), name, value, &fix)
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
    // Not a fault, because production servers have them, too. But they make system calls slower, so they must be the same on
    // all machines whose results are compared.
    Check::ok("mitigations", format!("on: {}; vulnerable: {}", listed(&on), listed(&open)))
}

fn virtual_machine(machine: &Machine) -> Check {
    let name = "virtual machine";
    let Some(flags) = machine.cpu_field("flags").or_else(|| machine.cpu_field("Features")) else {
        return Check::skip(name, "/proc/cpuinfo does not say");
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
        (true, "") => "yes (unknown hypervisor)".into(),
        (true, maker) => format!("yes: {maker}"),
    };
    let fix = "measure on bare metal, or compare pairs of interleaved runs, because other guests on \
               the host take CPU time and cache";
    Check::warn_if(is_guest, name, value, fix)
}

fn container(machine: &Machine) -> Check {
    let marks = [(".dockerenv", "docker"), ("run/.containerenv", "podman")];
    let by_mark = marks.iter().find(|(file, _)| machine.exists(file)).map(|(_, kind)| *kind);
    let groups = machine.text("proc/1/cgroup").unwrap_or_default();
    let by_group = ["docker", "kubepods", "containerd", "lxc"];
    let kind = by_mark.or_else(|| by_group.into_iter().find(|kind| groups.contains(kind)));
    let value = kind.map_or("none found".into(), |kind| format!("{kind}: its limits apply here"));
    Check::ok("container", value)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::super::machine::fixture::{Fixture, limits};
    use super::*;

    /// Returns the verdict of `check` on a machine with these files.
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
    fn the_lowest_memory_limit_of_all_parent_cgroups_counts() {
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
    fn the_hard_limit_of_open_files_counts() {
        let on = |open: &str| verdict(descriptors, &[("proc/self/limits", &limits(open, "0"))]);
        assert_eq!(
            [on("2303"), on("2304"), on("2305"), on("unlimited")],
            [Verdict::Warn, Verdict::Ok, Verdict::Ok, Verdict::Ok]
        );
        assert_eq!(verdict(descriptors, &[]), Verdict::Skip);
    }

    #[test]
    fn virtual_machines_and_containers_are_found() {
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
