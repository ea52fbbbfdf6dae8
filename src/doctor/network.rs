//! The network: queues, ports, loopback, and what looks at every packet.

use super::Check;
use super::machine::Machine;
use crate::topology::{format_cpu_list, parse_cpu_list};

/// The backlog that a shard asks for; the kernel cuts it to somaxconn.
const BACKLOG: u64 = 4096;
/// Connections of the challenge, which come all at once.
const CONNECTIONS: u64 = 1000;
/// The MTU of the loopback interface as Linux sets it: one segment takes any answer.
const LOOPBACK_MTU: u64 = 65536;

pub(super) fn checks(machine: &Machine) -> Vec<Check> {
    vec![
        at_least(
            machine,
            "somaxconn",
            "proc/sys/net/core/somaxconn",
            BACKLOG,
            "sysctl -w net.core.somaxconn=4096: connections beyond it wait for a second",
        ),
        at_least(
            machine,
            "SYN backlog",
            "proc/sys/net/ipv4/tcp_max_syn_backlog",
            CONNECTIONS,
            "sysctl -w net.ipv4.tcp_max_syn_backlog=4096",
        ),
        ports(machine),
        at_least(
            machine,
            "loopback MTU",
            "sys/class/net/lo/mtu",
            LOOPBACK_MTU,
            "ip link set lo mtu 65536: large answers are cut into more segments",
        ),
        congestion_control(machine),
        conntrack(machine),
        interrupts(machine),
    ]
}

fn at_least(machine: &Machine, name: &str, path: &str, least: u64, fix: &str) -> Check {
    match machine.number(path) {
        Some(value) => Check::warn_if(value < least, name, value.to_string(), fix),
        None => Check::skip(name, format!("/{path} cannot be read")),
    }
}

fn ports(machine: &Machine) -> Check {
    let name = "port range";
    let read = || {
        let text = machine.text("proc/sys/net/ipv4/ip_local_port_range")?;
        let mut ends = text.split_ascii_whitespace().map(str::parse::<u64>);
        Some((ends.next()?.ok()?, ends.next()?.ok()?))
    };
    let Some((first, last)) = read() else {
        return Check::skip(name, "/proc/sys/net/ipv4/ip_local_port_range cannot be read");
    };
    let ports = (last + 1).saturating_sub(first);
    // A connection that was closed keeps its port for a minute.
    Check::warn_if(
        ports < 10 * CONNECTIONS,
        name,
        format!("{first}-{last}: {ports} connections to one address"),
        "sysctl -w net.ipv4.ip_local_port_range='1024 65535'",
    )
}

fn congestion_control(machine: &Machine) -> Check {
    let name = "congestion control";
    match machine.text("proc/sys/net/ipv4/tcp_congestion_control") {
        Some(control) => Check::warn_if(
            control.starts_with("bbr"),
            name,
            control,
            "sysctl -w net.ipv4.tcp_congestion_control=cubic: bbr sets a timer to pace packets, \
             over loopback too",
        ),
        None => Check::skip(name, "/proc/sys/net/ipv4/tcp_congestion_control cannot be read"),
    }
}

fn conntrack(machine: &Machine) -> Check {
    let name = "conntrack";
    match machine.number("proc/sys/net/netfilter/nf_conntrack_count") {
        None => Check::ok(name, "not there"),
        // Loaded without a rule that wants it, it tracks nothing.
        Some(0) => Check::ok(name, "loaded, tracks nothing"),
        Some(count) => Check::warn_if(
            true,
            name,
            format!("tracks {count} connections: each packet pays a look-up"),
            "iptables -t raw -A OUTPUT -o lo -j NOTRACK, or remove the rules that need it",
        ),
    }
}

/// Where the interrupts of network cards go. A run over loopback does not cause them; other
/// traffic of the machine does.
fn interrupts(machine: &Machine) -> Check {
    let name = "NIC interrupts";
    let mut numbers = Vec::new();
    for card in machine.names("sys/class/net") {
        // A virtio card is a device below the one that interrupts.
        for folder in ["device/msi_irqs", "device/../msi_irqs"] {
            numbers.extend(machine.names(&format!("sys/class/net/{card}/{folder}")));
        }
    }
    let mut cpus: Vec<usize> = numbers
        .iter()
        .filter_map(|number| {
            let folder = format!("proc/irq/{number}");
            let effective = machine.text(&format!("{folder}/effective_affinity_list"));
            let list = effective.filter(|list| !list.is_empty());
            parse_cpu_list(&list.or_else(|| machine.text(&format!("{folder}/smp_affinity_list")))?)
                .ok()
        })
        .flatten()
        .collect();
    cpus.sort_unstable();
    cpus.dedup();
    let (Some(allowed), false) = (machine.cpus_allowed(), cpus.is_empty()) else {
        return Check::skip(name, "no card whose interrupts can be read");
    };
    let hits = cpus.iter().any(|cpu| allowed.contains(cpu));
    let value = format!("on CPUs {}", format_cpu_list(&cpus));
    let fix = "keep traffic away while you measure, or write other CPUs to \
               /proc/irq/N/smp_affinity_list";
    Check::warn_if(hits, name, value, fix)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::super::machine::fixture::Fixture;
    use super::*;

    fn verdict(check: fn(&Machine) -> Check, files: &[(&str, &str)]) -> Verdict {
        check(&Fixture::new(files).machine()).verdict
    }

    #[test]
    fn queues_are_judged_at_their_edges() {
        let path = "proc/sys/net/core/somaxconn";
        for (value, expected) in [("4095", Verdict::Warn), ("4096", Verdict::Ok)] {
            let fixture = Fixture::new(&[(path, value)]);
            let check = at_least(&fixture.machine(), "somaxconn", path, BACKLOG, "raise it");
            assert_eq!(check.verdict, expected, "{value}");
        }
        let range = "proc/sys/net/ipv4/ip_local_port_range";
        assert_eq!(verdict(ports, &[(range, "32768\t42767\n")]), Verdict::Ok);
        assert_eq!(verdict(ports, &[(range, "32768\t42766\n")]), Verdict::Warn);
        assert_eq!(verdict(ports, &[(range, "9\t1\n")]), Verdict::Warn);
        assert_eq!(verdict(ports, &[(range, "odd")]), Verdict::Skip);
    }

    #[test]
    fn what_looks_at_every_packet_is_found() {
        let control = "proc/sys/net/ipv4/tcp_congestion_control";
        assert_eq!(verdict(congestion_control, &[(control, "cubic\n")]), Verdict::Ok);
        assert_eq!(verdict(congestion_control, &[(control, "bbr\n")]), Verdict::Warn);
        let count = "proc/sys/net/netfilter/nf_conntrack_count";
        assert_eq!(verdict(conntrack, &[]), Verdict::Ok);
        assert_eq!(verdict(conntrack, &[(count, "0")]), Verdict::Ok);
        assert_eq!(verdict(conntrack, &[(count, "12")]), Verdict::Warn);
    }

    #[test]
    fn interrupts_on_our_cpus_are_found() {
        let with = |list: &str| {
            verdict(
                interrupts,
                &[
                    ("proc/self/status", "Cpus_allowed_list:\t2-3\n"),
                    ("sys/class/net/eth0/device/msi_irqs/41", "msix"),
                    ("proc/irq/41/smp_affinity_list", list),
                ],
            )
        };
        assert_eq!([with("0-1\n"), with("3\n")], [Verdict::Ok, Verdict::Warn]);
        assert_eq!(verdict(interrupts, &[]), Verdict::Skip);
    }
}
