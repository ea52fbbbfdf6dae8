//! The network: loopback, queues, ports, and anything that inspects each packet.

use super::Check;
use super::machine::Machine;
use super::nic::interrupt_cpus;
use crate::topology::{distinct, format_cpu_list};

/// The backlog that a shard requests; the kernel reduces it to somaxconn.
const BACKLOG: u64 = 4096;
/// The number of connections of the challenge, all opened at the same time.
const CONNECTIONS: u64 = 1000;
/// The default MTU of the loopback interface: each response fits into one segment.
const LOOPBACK_MTU: u64 = 65536;
/// The flag of an interface that is up (netdevice(7)).
const IFF_UP: u64 = 1;

pub(super) fn checks(machine: &Machine) -> Vec<Check> {
    vec![
        loopback(machine),
        at_least(
            machine,
            "somaxconn",
            "proc/sys/net/core/somaxconn",
            BACKLOG,
            "run sysctl -w net.core.somaxconn=4096, because a connection that does not fit waits for a \
             second",
        ),
        at_least(
            machine,
            "SYN backlog",
            "proc/sys/net/ipv4/tcp_max_syn_backlog",
            CONNECTIONS,
            "run sysctl -w net.ipv4.tcp_max_syn_backlog=4096",
        ),
        ports(machine),
        at_least(
            machine,
            "loopback MTU",
            "sys/class/net/lo/mtu",
            LOOPBACK_MTU,
            "run ip link set lo mtu 65536, because large responses are split into more segments",
        ),
        congestion_control(machine),
        conntrack(machine),
        interrupts(machine),
    ]
}

/// Checks whether the loopback interface is up. If it is not, connections over it fail or time out.
fn loopback(machine: &Machine) -> Check {
    let name = "loopback";
    let path = "sys/class/net/lo/flags";
    let flags =
        machine.text(path).and_then(|text| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok());
    match flags {
        Some(flags) if flags & IFF_UP != 0 => Check::ok(name, "up"),
        Some(_) => Check::warn(
            name,
            "down: nothing here can connect to 127.0.0.1",
            "run ip link set lo up",
        ),
        None => Check::skip(name, format!("/{path} cannot be read")),
    }
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
    // A closed connection keeps its port for a minute (TIME_WAIT).
    Check::warn_if(
        ports < 10 * CONNECTIONS,
        name,
        format!("{first}-{last}: {ports} connections to one address and port"),
        "run sysctl -w net.ipv4.ip_local_port_range='1024 65535'",
    )
}

fn congestion_control(machine: &Machine) -> Check {
    let name = "congestion control";
    match machine.text("proc/sys/net/ipv4/tcp_congestion_control") {
        Some(control) => Check::warn_if(
            control.starts_with("bbr"),
            name,
            control,
            "run sysctl -w net.ipv4.tcp_congestion_control=cubic, because bbr sets timers to pace \
             packets, over loopback too",
        ),
        None => Check::skip(name, "/proc/sys/net/ipv4/tcp_congestion_control cannot be read"),
    }
}

fn conntrack(machine: &Machine) -> Check {
    let name = "conntrack";
    match machine.number("proc/sys/net/netfilter/nf_conntrack_count") {
        None => Check::ok(name, "not loaded"),
        // It tracks connections only if a rule needs that.
        Some(0) => Check::ok(name, "loaded, tracks nothing"),
        Some(count) => Check::warn_if(
            true,
            name,
            format!("tracks {count} connection{}", if count == 1 { "" } else { "s" }),
            "run iptables -t raw -A OUTPUT -o lo -j NOTRACK, or remove the rules that need it, because \
             it looks each packet up",
        ),
    }
}

/// Checks which CPUs handle the interrupts of network cards. A run over loopback does not cause any, but other traffic does.
fn interrupts(machine: &Machine) -> Check {
    let name = "NIC interrupts";
    let mut numbers = Vec::new();
    for card in machine.names("sys/class/net") {
        // A virtio card is a child of the device that has the interrupts.
        for folder in ["device/msi_irqs", "device/../msi_irqs"] {
            numbers.extend(machine.names(&format!("sys/class/net/{card}/{folder}")));
        }
    }
    let numbers = numbers.iter().filter_map(|number| number.parse().ok());
    let cpus = distinct(numbers.filter_map(|number| interrupt_cpus(machine, number)).flatten());
    let (Some(allowed), false) = (machine.cpus_allowed(), cpus.is_empty()) else {
        return Check::skip(name, "there is no network card whose interrupts can be read");
    };
    let hits = cpus.iter().any(|cpu| allowed.contains(cpu));
    let plural = if cpus.len() == 1 { "" } else { "s" };
    let value = format!("on CPU{plural} {}", format_cpu_list(&cpus));
    let fix = "avoid other network traffic while you measure, or write other CPUs to \
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
    fn queues_and_port_ranges_are_judged_at_their_limits() {
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
    fn a_loopback_interface_that_is_down_is_found() {
        let with = |flags| verdict(loopback, &[("sys/class/net/lo/flags", flags)]);
        assert_eq!(
            [with("0x9\n"), with("0x8\n"), with("odd"), verdict(loopback, &[])],
            [Verdict::Ok, Verdict::Warn, Verdict::Skip, Verdict::Skip]
        );
    }

    #[test]
    fn what_inspects_each_packet_is_found() {
        let control = "proc/sys/net/ipv4/tcp_congestion_control";
        assert_eq!(verdict(congestion_control, &[(control, "cubic\n")]), Verdict::Ok);
        assert_eq!(verdict(congestion_control, &[(control, "bbr\n")]), Verdict::Warn);
        let count = "proc/sys/net/netfilter/nf_conntrack_count";
        assert_eq!(verdict(conntrack, &[]), Verdict::Ok);
        assert_eq!(verdict(conntrack, &[(count, "0")]), Verdict::Ok);
        assert_eq!(verdict(conntrack, &[(count, "12")]), Verdict::Warn);
    }

    #[test]
    fn interrupts_on_the_allowed_cpus_are_found() {
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
