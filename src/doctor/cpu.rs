//! The CPUs: which of them this process may use, what they share, how fast they run, and what else uses them.

use super::Check;
use super::machine::Machine;
use crate::topology::{format_cpu_list, format_cpu_ranges};
use procfs::{CpuTime, KernelStats};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::thread::sleep;
use std::time::Duration;

/// The share of CPU time above which other work makes results noisy.
const BUSY_SHARE_MAX: f64 = 0.05;
/// The share of CPU time, given by the host to other virtual machines, above which results are noisy.
const STEAL_SHARE_MAX: f64 = 0.01;
/// An idle state that takes longer to leave than this, in microseconds, affects latencies over loopback.
const IDLE_EXIT_US_MAX: u64 = 10;

pub(super) fn checks(machine: &Machine, sample: Duration) -> Vec<Check> {
    let cpus = machine.cpus_allowed().unwrap_or_default();
    let [steal, load] = use_of_cpus(machine, &cpus, sample);
    vec![
        affinity(machine),
        quota(machine, &cpus),
        siblings(machine, &cpus),
        kinds(machine, &cpus),
        nodes(machine, &cpus),
        governor(machine, &cpus),
        turbo(machine),
        idle_states(machine, &cpus),
        isolation(machine, "isolcpus", "sys/devices/system/cpu/isolated", &cpus),
        isolation(machine, "nohz_full", "sys/devices/system/cpu/nohz_full", &cpus),
        irqbalance(machine),
        clock_source(machine),
        steal,
        load,
    ]
}

fn affinity(machine: &Machine) -> Check {
    let name = "affinity";
    let (Some(allowed), Some(online)) =
        (machine.cpus_allowed(), machine.cpus("sys/devices/system/cpu/online"))
    else {
        return Check::skip(
            name,
            "the affinity mask of this process, or the list of CPUs, cannot be read",
        );
    };
    let files = ["cpuset.cpus.effective", "cpuset.effective_cpus"];
    let set = files.iter().find_map(|file| {
        machine.cgroup_files("cpuset", file).into_iter().find(|set| !set.is_empty())
    });
    let value = format!(
        "CPUs {} of {} online, cpuset {}",
        machine.cpus_allowed_text(),
        format_cpu_ranges(&online),
        set.unwrap_or_else(|| "none".into())
    );
    let fix = "allow two CPUs or more (taskset, cpuset.cpus): client and server share one here";
    Check::warn_if(allowed.len() < 2, name, value, fix)
}

fn quota(machine: &Machine, cpus: &[usize]) -> Check {
    let name = "CPU quota";
    let share = |quota: &str, period: &str| {
        Some(quota.parse::<f64>().ok().filter(|quota| *quota > 0.0)? / period.parse::<f64>().ok()?)
    };
    let new = machine.cgroup_files("cpu", "cpu.max");
    let new_shares = new.iter().filter_map(|text| {
        let (quota, period) = text.split_once(' ')?;
        share(quota, period)
    });
    let quotas = machine.cgroup_files("cpu", "cpu.cfs_quota_us");
    let periods = machine.cgroup_files("cpu", "cpu.cfs_period_us");
    let old_shares = quotas.iter().zip(&periods).filter_map(|(quota, period)| share(quota, period));
    let least = new_shares.chain(old_shares).min_by(f64::total_cmp);
    if !machine.exists("proc/self/cgroup") {
        return Check::skip(name, "/proc/self/cgroup cannot be read");
    }
    let fix = "raise cpu.max, or allow only as many CPUs as it pays for: a server that reaches its \
               quota stops for the rest of the period";
    match least {
        None => Check::ok(name, "none"),
        Some(share) => {
            let value = format!("{share:.2} CPUs' worth of time for {} allowed CPUs", cpus.len());
            Check::warn_if(share < cpus.len() as f64, name, value, fix)
        }
    }
}

fn siblings(machine: &Machine, cpus: &[usize]) -> Check {
    let name = "SMT siblings";
    let cores: BTreeSet<Vec<usize>> = cpus
        .iter()
        .filter_map(|cpu| {
            machine.cpus(&format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"))
        })
        .collect();
    if cores.is_empty() {
        return Check::skip(name, "the kernel does not say which CPUs share a core");
    }
    let shared = cores.iter().filter(|core| core.iter().filter(|c| cpus.contains(c)).count() > 1);
    let shared: Vec<String> = shared.map(|core| format_cpu_list(core)).collect();
    let count = format!("{} core{}", cores.len(), if cores.len() == 1 { "" } else { "s" });
    let value = match shared.as_slice() {
        [] => format!("{count}, none shared"),
        shared => format!("{count}; CPUs that share one: {}", shared.join(" ")),
    };
    let fix = "give client and server different cores with --cpus, or turn SMT off";
    Check::warn_if(!shared.is_empty(), name, value, fix)
}

fn kinds(machine: &Machine, cpus: &[usize]) -> Check {
    let name = "kinds of core";
    let mut kinds: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for cpu in cpus {
        kinds.entry(machine.core_kind(*cpu)).or_default().push(*cpu);
    }
    let lists: Vec<String> = kinds.values().map(|cpus| format_cpu_ranges(cpus)).collect();
    let value = match lists.as_slice() {
        [] => return Check::skip(name, "the affinity mask of this process cannot be read"),
        [_] => "one".to_owned(),
        lists => format!("{}: CPUs {}", lists.len(), lists.join(" and ")),
    };
    let fix = "give client and server cores of one kind with --cpus, or the same number of each: \
               slower cores make any result theirs";
    Check::warn_if(lists.len() > 1, name, value, fix)
}

/// Returns the nodes of the machine, and the CPUs of each.
pub(super) fn nodes_with_cpus(machine: &Machine) -> Vec<(usize, Vec<usize>)> {
    const FOLDER: &str = "sys/devices/system/node";
    let number = |name: &String| name.strip_prefix("node")?.parse::<usize>().ok();
    let numbers = machine.names(FOLDER).iter().filter_map(number).collect::<BTreeSet<_>>();
    let cpus = |node| machine.cpus(&format!("{FOLDER}/node{node}/cpulist")).unwrap_or_default();
    numbers.into_iter().map(|node| (node, cpus(node))).collect()
}

fn nodes(machine: &Machine, cpus: &[usize]) -> Check {
    let nodes = nodes_with_cpus(machine);
    if nodes.is_empty() {
        return Check::skip("NUMA", "the kernel does not list nodes");
    }
    let has_ours = |(_, of_node): &&(usize, Vec<usize>)| of_node.iter().any(|c| cpus.contains(c));
    let used = nodes.iter().filter(has_ours).count();
    let plural = if nodes.len() == 1 { "" } else { "s" };
    let value = format!("the allowed CPUs are on {used} of {} node{plural}", nodes.len());
    let fix = "stay on one node with numactl --cpunodebind=0 --membind=0";
    Check::warn_if(used > 1, "NUMA", value, fix)
}

/// Returns the distinct values of a file over the CPUs.
fn of_each(machine: &Machine, cpus: &[usize], file: &str) -> BTreeSet<String> {
    let path = |cpu| format!("sys/devices/system/cpu/cpu{cpu}/{file}");
    cpus.iter().filter_map(|cpu| machine.text(&path(cpu))).collect()
}

fn governor(machine: &Machine, cpus: &[usize]) -> Check {
    let governors = of_each(machine, cpus, "cpufreq/scaling_governor");
    if governors.is_empty() {
        return Check::skip(
            "governor",
            "there is no cpufreq here: the host or the firmware decides",
        );
    }
    let is_slow = governors.iter().any(|governor| governor != "performance");
    let value = governors.into_iter().collect::<Vec<_>>().join(" ");
    Check::warn_if(is_slow, "governor", value, "run cpupower frequency-set -g performance")
}

fn turbo(machine: &Machine) -> Check {
    let intel = machine.number("sys/devices/system/cpu/intel_pstate/no_turbo").map(|no| no == 0);
    let is_on = intel.or(machine.number("sys/devices/system/cpu/cpufreq/boost").map(|on| on == 1));
    let fix = match intel {
        Some(_) => {
            "run echo 1 > /sys/devices/system/cpu/intel_pstate/no_turbo, so that the clock rate \
                    is the same in each run"
        }
        None => {
            "run echo 0 > /sys/devices/system/cpu/cpufreq/boost, so that the clock rate is the same \
                 in each run"
        }
    };
    match is_on {
        Some(is_on) => Check::warn_if(is_on, "turbo", if is_on { "on" } else { "off" }, fix),
        None => {
            Check::skip("turbo", "there is no such setting here: the host or the firmware decides")
        }
    }
}

fn idle_states(machine: &Machine, cpus: &[usize]) -> Check {
    let name = "idle states";
    let mut slowest: Option<(u64, String)> = None;
    let mut is_known = false;
    for cpu in cpus {
        let folder = format!("sys/devices/system/cpu/cpu{cpu}/cpuidle");
        for state in machine.names(&folder) {
            let of = |file: &str| format!("{folder}/{state}/{file}");
            let Some(exit_us) = machine.number(&of("latency")) else { continue };
            is_known = true;
            if machine.number(&of("disable")) == Some(1) {
                continue;
            }
            let name = machine.text(&of("name")).unwrap_or(state);
            slowest = slowest.max(Some((exit_us, name)));
        }
    }
    match slowest {
        _ if !is_known => Check::skip(name, "there is no cpuidle here: the host decides"),
        None => Check::ok(name, "all disabled"),
        Some((exit_us, state)) => Check::warn_if(
            exit_us > IDLE_EXIT_US_MAX,
            name,
            format!("down to {state}, which takes {exit_us} µs to leave"),
            "run cpupower idle-set -D 10, because a sleeping core delays the first response",
        ),
    }
}

fn isolation(machine: &Machine, name: &str, path: &str, cpus: &[usize]) -> Check {
    let Some(text) = machine.text(path) else {
        return Check::skip(name, "this kernel has no such setting");
    };
    let isolated = machine.cpus(path).unwrap_or_default();
    let used = cpus.iter().filter(|cpu| isolated.contains(cpu)).count();
    let fix = match isolated.is_empty() {
        true => {
            format!("for the least noise, boot with {name}=LIST and run on it (taskset -c LIST)")
        }
        false => format!("run on these CPUs (taskset -c {text})"),
    };
    let value = match isolated.is_empty() {
        true => "none: the kernel may interrupt every CPU for other work".into(),
        false => format!("CPUs {text}, of which this process may use {used}"),
    };
    Check::warn_if(used == 0, name, value, &fix)
}

/// Reports whether irqbalance is running, which moves interrupts between CPUs.
pub(super) fn runs_irqbalance(machine: &Machine) -> bool {
    let is_it = |pid: &String| {
        pid.bytes().all(|b| b.is_ascii_digit())
            && machine.text(&format!("proc/{pid}/comm")).as_deref() == Some("irqbalance")
    };
    machine.names("proc").iter().any(is_it)
}

fn irqbalance(machine: &Machine) -> Check {
    let runs = runs_irqbalance(machine);
    let value = if runs { "running: it moves interrupts between CPUs" } else { "not running" };
    let fix = "stop it while you measure (systemctl stop irqbalance)";
    Check::warn_if(runs, "irqbalance", value, fix)
}

fn clock_source(machine: &Machine) -> Check {
    let name = "clock source";
    let path = "sys/devices/system/clocksource/clocksource0/current_clocksource";
    // The clock sources that the vDSO reads without a system call.
    const FAST: [&str; 5] = [
        "tsc",
        "kvm-clock",
        "hyperv_clocksource_tsc_page",
        "arch_sys_counter",
        "riscv_clocksource",
    ];
    match machine.text(path) {
        Some(source) => {
            let is_slow = !FAST.contains(&source.as_str());
            let fix = "boot with clocksource=tsc if the TSC is stable, because each read of this \
                       clock is a system call";
            Check::warn_if(is_slow, name, source, fix)
        }
        None => Check::skip(name, "the kernel does not say"),
    }
}

/// Checks the CPU time that other virtual machines, and all processes here, used during `sample`.
fn use_of_cpus(machine: &Machine, cpus: &[usize], sample: Duration) -> [Check; 2] {
    let (steal, load) = ("steal time", "load now");
    let before = machine.stat();
    sleep(sample);
    let (Some(before), Some(after)) = (before, machine.stat()) else {
        let skip = |name| Check::skip(name, "/proc/stat cannot be read").momentary();
        return [skip(steal), skip(load)];
    };
    let boot_steal = ratio(after.total.steal.unwrap_or(0), all(&after.total));
    let CpuUse { steal: stolen, busy, .. } = CpuUse::between(&before, &after, cpus);
    let percent = |share: f64| format!("{:.1}%", share * 100.0);
    [
        Check::warn_if(
            stolen.max(boot_steal) > STEAL_SHARE_MAX,
            steal,
            format!("{} now, {} since boot", percent(stolen), percent(boot_steal)),
            "use a dedicated host, or compare pairs of interleaved runs: the host runs other virtual \
             machines on these CPUs",
        )
        .momentary(),
        Check::warn_if(
            busy > BUSY_SHARE_MAX,
            load,
            format!("{} of the time of the allowed CPUs", percent(busy)),
            "stop what else is running (see top), or choose idle CPUs with taskset",
        )
        .momentary(),
    ]
}

/// The use of CPU time between two readings, as shares from 0 to 1.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CpuUse {
    /// Given by the host to other virtual machines.
    pub steal: f64,
    /// Spent in soft interrupts, most of them for the network.
    pub softirq: f64,
    /// Everything except idle time.
    pub busy: f64,
}

impl CpuUse {
    /// Returns the use between two readings of proc/stat. The shares are 0 if no time has passed.
    pub(crate) fn between(before: &KernelStats, after: &KernelStats, cpus: &[usize]) -> CpuUse {
        let of = |stat: &[CpuTime], part: fn(&CpuTime) -> u64| -> u64 {
            // If CPUs are offline, the indices of the others shift; in that case, all CPUs count.
            let is_ours =
                |index: &usize| cpus.contains(index) || cpus.iter().any(|c| *c >= stat.len());
            stat.iter().enumerate().filter(|(i, _)| is_ours(i)).map(|(_, time)| part(time)).sum()
        };
        let grown = |part| of(&after.cpu_time, part).saturating_sub(of(&before.cpu_time, part));
        let total = grown(all);
        CpuUse {
            steal: ratio(grown(|time| time.steal.unwrap_or(0)), total),
            softirq: ratio(grown(|time| time.softirq.unwrap_or(0)), total),
            busy: ratio(grown(|time| all(time) - idle(time)), total),
        }
    }
}

fn idle(time: &CpuTime) -> u64 {
    time.idle + time.iowait.unwrap_or(0)
}

/// Returns all time of a CPU. The time of guests is part of `user` (proc_stat(5)).
fn all(time: &CpuTime) -> u64 {
    let of_interrupts = time.irq.unwrap_or(0) + time.softirq.unwrap_or(0);
    time.user + time.nice + time.system + idle(time) + of_interrupts + time.steal.unwrap_or(0)
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::super::machine::fixture::Fixture;
    use super::*;

    fn verdict(check: impl Fn(&Machine) -> Check, files: &[(&str, &str)]) -> Verdict {
        check(&Fixture::new(files).machine()).verdict
    }

    #[test]
    fn one_cpu_is_too_few() {
        let with = |allowed: &str| {
            verdict(
                affinity,
                &[
                    ("proc/self/status", &format!("Cpus_allowed_list:\t{allowed}\n")),
                    ("sys/devices/system/cpu/online", "0-3\n"),
                ],
            )
        };
        assert_eq!(
            [with("0"), with("0-1"), with("2,3")],
            [Verdict::Warn, Verdict::Ok, Verdict::Ok]
        );
    }

    #[test]
    fn two_kinds_of_core_are_a_warning_with_their_cpus() {
        let hybrid = Fixture::new(&[
            ("sys/devices/cpu_core/cpus", "0-3\n"),
            ("sys/devices/cpu_atom/cpus", "4-7\n"),
        ]);
        let check = kinds(&hybrid.machine(), &[0, 1, 4, 5, 6]);
        assert_eq!((check.verdict, check.value.as_str()), (Verdict::Warn, "2: CPUs 0-1 and 4-6"));
        assert_eq!(kinds(&hybrid.machine(), &[5, 6]).verdict, Verdict::Ok);
        assert_eq!(kinds(&Fixture::new(&[]).machine(), &[0, 1]).verdict, Verdict::Ok);
    }

    #[test]
    fn a_quota_below_the_allowed_cpus_is_found_in_both_hierarchies() {
        let new = |max: &str| {
            verdict(
                |m| quota(m, &[0, 1]),
                &[("proc/self/cgroup", "0::/job\n"), ("sys/fs/cgroup/job/cpu.max", max)],
            )
        };
        let max = [new("max 100000"), new("200000 100000"), new("199999 100000")];
        assert_eq!(max, [Verdict::Ok, Verdict::Ok, Verdict::Warn]);
        let old = |quota_us: &str| {
            verdict(
                |m| quota(m, &[0, 1]),
                &[
                    ("proc/self/cgroup", "1:cpu:/\n"),
                    ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", quota_us),
                    ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"),
                ],
            )
        };
        assert_eq!(
            [old("-1"), old("200000"), old("150000")],
            [Verdict::Ok, Verdict::Ok, Verdict::Warn]
        );
    }

    #[test]
    fn shared_cores_and_nodes_count_among_the_allowed_cpus_only() {
        let files = [
            ("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0,2"),
            ("sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "1,3"),
            ("sys/devices/system/cpu/cpu2/topology/thread_siblings_list", "0,2"),
            ("sys/devices/system/node/node0/cpulist", "0,2"),
            ("sys/devices/system/node/node1/cpulist", "1,3"),
            ("sys/devices/system/node/possible", "0-1"),
        ];
        assert_eq!(verdict(|m| siblings(m, &[0, 1]), &files), Verdict::Ok);
        assert_eq!(verdict(|m| siblings(m, &[0, 2]), &files), Verdict::Warn);
        assert_eq!(verdict(|m| nodes(m, &[0, 2]), &files), Verdict::Ok);
        assert_eq!(verdict(|m| nodes(m, &[0, 1]), &files), Verdict::Warn);
    }

    #[test]
    fn clock_rates_and_clock_sources_are_judged() {
        let file = |path: &'static str, text: &'static str| [(path, text)];
        let cpu0 = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor";
        assert_eq!(verdict(|m| governor(m, &[0]), &file(cpu0, "performance\n")), Verdict::Ok);
        assert_eq!(verdict(|m| governor(m, &[0]), &file(cpu0, "powersave\n")), Verdict::Warn);
        let no_turbo = "sys/devices/system/cpu/intel_pstate/no_turbo";
        assert_eq!(verdict(turbo, &file(no_turbo, "1")), Verdict::Ok);
        assert_eq!(verdict(turbo, &file(no_turbo, "0")), Verdict::Warn);
        assert_eq!(
            verdict(turbo, &file("sys/devices/system/cpu/cpufreq/boost", "1")),
            Verdict::Warn
        );
        let source = "sys/devices/system/clocksource/clocksource0/current_clocksource";
        assert_eq!(verdict(clock_source, &file(source, "tsc\n")), Verdict::Ok);
        assert_eq!(verdict(clock_source, &file(source, "hpet\n")), Verdict::Warn);
        assert_eq!(verdict(irqbalance, &file("proc/77/comm", "irqbalance\n")), Verdict::Warn);
        assert_eq!(verdict(irqbalance, &file("proc/77/comm", "sh\n")), Verdict::Ok);
    }

    #[test]
    fn only_slow_idle_states_that_are_enabled_count() {
        let with = |latency: &str, disable: &str| {
            verdict(
                |m| idle_states(m, &[0]),
                &[
                    ("sys/devices/system/cpu/cpu0/cpuidle/state0/latency", "0"),
                    ("sys/devices/system/cpu/cpu0/cpuidle/state1/latency", latency),
                    ("sys/devices/system/cpu/cpu0/cpuidle/state1/disable", disable),
                ],
            )
        };
        assert_eq!(
            [with("10", "0"), with("11", "0"), with("11", "1")],
            [Verdict::Ok, Verdict::Warn, Verdict::Ok]
        );
    }

    #[test]
    fn isolated_cpus_count_only_if_this_process_may_use_them() {
        let path = "sys/devices/system/cpu/isolated";
        let with =
            |list: &str| verdict(|m| isolation(m, "isolcpus", path, &[2, 3]), &[(path, list)]);
        assert_eq!(
            [with("\n"), with("0-1\n"), with("2-3\n")],
            [Verdict::Warn, Verdict::Warn, Verdict::Ok]
        );
    }

    #[test]
    fn stolen_time_and_busy_time_are_distinguished() {
        let stat = |user: u64, idle: u64, steal: u64| {
            let times = format!("{user} 0 0 {idle} 0 0 0 {steal} 0 0");
            format!(
                "cpu  {times}\ncpu0 {times}\nctxt 1\nbtime 1\nprocesses 1\nprocs_running 1\n\
                     procs_blocked 0\n"
            )
        };
        let of = |text: &str| {
            let fixture = Fixture::new(&[("proc/stat", text)]);
            use_of_cpus(&fixture.machine(), &[0], Duration::ZERO)
        };
        let [steal, load] = of(&stat(500, 489, 11));
        assert_eq!((steal.verdict, load.verdict), (Verdict::Warn, Verdict::Ok));
        assert_eq!(of(&stat(500, 490, 10))[0].verdict, Verdict::Ok);
        assert!(steal.is_momentary && load.is_momentary);
    }
}
