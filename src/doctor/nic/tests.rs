//! Machines with network cards of several kinds, as their kernels describe them.

use super::super::Verdict;
use super::super::machine::fixture::Fixture;
use super::*;
use std::os::unix::fs::symlink;

const HOST: &str = "10.0.0.1";

/// The files of a machine.
#[derive(Default)]
struct Files(Vec<(String, String)>);

impl Files {
    fn with(mut self, path: impl Into<String>, text: impl Into<String>) -> Files {
        self.0.push((path.into(), text.into()));
        self
    }

    /// Adds a card with this number of queues of each kind, without RPS, whose TX queues serve one CPU each.
    fn card(mut self, name: &str, queues: usize) -> Files {
        let folder = format!("sys/class/net/{name}");
        self = self
            .with(format!("{folder}/flags"), "0x1003\n")
            .with(format!("{folder}/device/id"), "");
        for queue in 0..queues {
            self = self
                .with(format!("{folder}/queues/rx-{queue}/rps_cpus"), "00000000,00000000\n")
                .with(format!("{folder}/queues/tx-{queue}/xps_cpus"), format_mask(&[queue]));
        }
        self
    }

    /// Adds the interrupts of a card, numbered from 40, each with its name and the list of its CPUs.
    fn interrupts(mut self, card: &str, of_queues: &[(&str, &str)]) -> Files {
        let mut text =
            String::from("            CPU0       CPU1\n  1:  9 0  IO-APIC  1-edge  i8042\n");
        for (number, (name, cpus)) in (40..).zip(of_queues) {
            text += &format!(" {number}:   7  0  IR-PCI-MSIX-0000:17:00.0  0-edge   {name}\n");
            self = self
                .with(format!("sys/class/net/{card}/device/msi_irqs/{number}"), "msix\n")
                .with(format!("proc/irq/{number}/smp_affinity_list"), "0-127\n")
                .with(format!("proc/irq/{number}/effective_affinity_list"), format!("{cpus}\n"));
        }
        self.with("proc/interrupts", text + "NMI:   0   0   Non-maskable interrupts\n")
    }

    fn fixture(&self) -> Fixture {
        let files: Vec<(&str, &str)> =
            self.0.iter().map(|(p, t)| (p.as_str(), t.as_str())).collect();
        Fixture::new(&files)
    }

    /// Returns the checks for a server on eth0 with shards on these CPUs.
    fn checks(&self, cpus: &[usize]) -> Vec<Check> {
        on(&self.fixture(), HOST, cpus)
    }
}

/// Returns the checks for a server on an address: eth0 has [`HOST`], and each other interface the address listed with it.
fn on(fixture: &Fixture, host: &str, cpus: &[usize]) -> Vec<Check> {
    let listener = Listener { host: host.parse().unwrap(), placement: cpus.to_vec() };
    let addresses: Vec<Address> =
        [("lo", "127.0.0.1"), ("eth0", HOST), ("eth0.5", "10.5.0.1"), ("veth7", "fd00::7")]
            .map(|(name, address)| (name.into(), address.parse().unwrap()))
            .into();
    let checks = of_listener(&fixture.machine(), &listener, &addresses);
    for check in &checks {
        assert_eq!(check.fix.is_some(), check.verdict == Verdict::Warn, "{check:?}");
        assert!(check.commands.is_empty() || check.fix.is_some(), "{check:?}");
    }
    checks
}

/// Returns the check of an aspect of eth0.
fn of<'a>(checks: &'a [Check], what: &str) -> &'a Check {
    let name = format!("NIC eth0 {what}");
    checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("{name}: {checks:?}"))
}

/// Returns strings as slices, for comparisons.
fn words(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

/// Returns the verdicts on queues, interrupts, RPS, XPS, and the node of eth0, by their first letters.
fn verdicts(checks: &[Check]) -> String {
    ["queues", "interrupts", "RPS", "XPS", "node"]
        .map(|what| of(checks, what).verdict.to_string().remove(0))
        .iter()
        .collect()
}

/// Returns a card with a name for each of its pairs of queues, whose interrupts go to these CPUs.
fn four_queues(cpus: [&str; 4]) -> Files {
    let names = ["eth0-TxRx-0", "eth0-TxRx-1", "eth0-TxRx-2", "eth0-TxRx-3"];
    let mut named: Vec<(&str, &str)> = names.into_iter().zip(cpus).collect();
    named.push(("eth0", "5"));
    let files = Files::default().card("eth0", 4).interrupts("eth0", &named);
    files.with("sys/devices/system/node/node0/cpulist", "0-7")
}

#[test]
fn a_card_in_line_is_good_in_any_order_of_its_queues() {
    let checks = four_queues(["0", "1", "2", "3"]).checks(&[0, 1, 2, 3]);
    assert_eq!(verdicts(&checks), "OOOOO", "{checks:?}");
    assert_eq!(of(&checks, "queues").value, "4 RX queues for 4 CPUs with shards");
    let said = &of(&checks, "interrupts").value;
    assert_eq!(said, "those of 4 queues go evenly to CPUs 0-3, for serve --steer cpu");
    let turned = four_queues(["3", "2", "1", "0"]).checks(&[3, 2, 1, 0]);
    assert_eq!(verdicts(&turned), "OOOWO", "only XPS is for the other order: {turned:?}");
    // Two shards on one CPU count as one destination for packets.
    let shared = four_queues(["0", "1", "2", "3"]).checks(&[0, 1, 2, 3, 0, 1, 2, 3]);
    assert_eq!(verdicts(&shared), "OOOOO", "{shared:?}");
}

#[test]
fn interrupts_on_other_cpus_or_together_are_moved_and_no_others() {
    for (cpus, value, commands) in [
        (["0", "1", "6", "3"], "queue 2: on CPU 6, which has no shard", &["2 > /proc/irq/42"][..]),
        (
            ["0", "4", "5", "6"],
            "queues 1-3: on CPUs 4-6, which have no shard",
            &["1 > /proc/irq/41", "2 > /proc/irq/42", "3 > /proc/irq/43"],
        ),
        (["0", "1", "0", "3"], "2 queues on CPU 0, and none on CPU 2", &["2 > /proc/irq/42"]),
        (["0", "1", "2", "0-3"], "queue 3: on any of CPUs 0-3", &["3 > /proc/irq/43"]),
    ] {
        let checks = four_queues(cpus).checks(&[0, 1, 2, 3]);
        let check = of(&checks, "interrupts");
        assert_eq!((check.verdict, check.value.as_str()), (Verdict::Warn, value));
        let expected: Vec<String> =
            commands.iter().map(|command| format!("echo {command}/smp_affinity_list")).collect();
        assert_eq!(check.commands, expected);
        assert!(check.fix.as_ref().unwrap().contains("--steer cpu"), "{check:?}");
    }
}

#[test]
fn irqbalance_undoes_it() {
    let files = four_queues(["0", "1", "2", "3"]).with("proc/77/comm", "irqbalance\n");
    let checks = files.checks(&[0, 1, 2, 3]);
    let check = of(&checks, "interrupts");
    assert_eq!(check.verdict, Verdict::Warn);
    assert_eq!(check.commands, ["systemctl stop irqbalance"]);
}

#[test]
fn as_many_queues_as_cpus_with_shards_are_wanted() {
    for (cpus, verdict, commands) in [
        (&[0, 1, 2, 3][..], Verdict::Ok, &[][..]),
        (&[0, 1], Verdict::Warn, &["ethtool -L eth0 combined 2"]),
        (&[0, 1, 2, 3, 4], Verdict::Warn, &["ethtool -L eth0 combined 5"]),
    ] {
        let checks = four_queues(["0", "1", "2", "3"]).checks(cpus);
        let check = of(&checks, "queues");
        assert_eq!((check.verdict, words(&check.commands)), (verdict, commands.to_vec()));
    }
    let apart = [("eth0-rx-0", "0"), ("eth0-rx-1", "1"), ("eth0-tx-0", "0"), ("eth0-tx-1", "1")];
    let checks = Files::default().card("eth0", 2).interrupts("eth0", &apart).checks(&[0]);
    assert_eq!(of(&checks, "queues").commands, ["ethtool -L eth0 rx 1 tx 1"]);
}

#[test]
fn rps_is_superfluous_where_each_cpu_has_a_queue() {
    let files = four_queues(["0", "1", "2", "3"]);
    let rps = "sys/class/net/eth0/queues/rx-1/rps_cpus";
    let checks = files.with(rps, "00000000,000000f0").checks(&[0, 1, 2, 3]);
    let check = of(&checks, "RPS");
    assert_eq!((check.verdict, check.value.as_str()), (Verdict::Warn, "hands packets to CPUs 4-7"));
    assert_eq!(check.commands, [format!("echo 0 > /{rps}")]);
}

#[test]
fn a_single_queue_reaches_all_shards_by_rps() {
    let single = || Files::default().card("eth0", 1).interrupts("eth0", &[("eth0", "0")]);
    let rps = "sys/class/net/eth0/queues/rx-0/rps_cpus";
    let checks = single().checks(&[0, 1, 2, 3]);
    assert_eq!(verdicts(&checks), "WOWOS", "{checks:?}");
    assert_eq!(
        of(&checks, "interrupts").value,
        "those of 1 queue go evenly to CPU 0, for serve --steer cpu"
    );
    assert_eq!(of(&checks, "RPS").commands, [format!("echo f > /{rps}")]);
    for (mask, verdict) in [("f", Verdict::Ok), ("7", Verdict::Warn), ("1f", Verdict::Warn)] {
        let checks = single().with(rps, mask).checks(&[0, 1, 2, 3]);
        assert_eq!(of(&checks, "RPS").verdict, verdict, "{mask}");
    }
}

#[test]
fn the_completion_vectors_of_a_mellanox_card_are_its_queues() {
    let names = ["async0", "comp0", "comp1", "comp2", "comp3"];
    let names = names.map(|name| format!("mlx5_{name}@pci:0000:17:00.0"));
    let cpus = ["0", "8", "9", "2", "3"];
    let named: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(cpus).collect();
    // There are more vectors than channels.
    let checks = Files::default().card("eth0", 2).interrupts("eth0", &named).checks(&[8, 10]);
    let check = of(&checks, "interrupts");
    assert_eq!(check.value, "queue 1: on CPU 9, which has no shard");
    assert_eq!(check.commands, ["echo 10 > /proc/irq/42/smp_affinity_list"]);
    let xps = of(&checks, "XPS");
    assert_eq!(
        xps.commands,
        [
            "echo 100 > /sys/class/net/eth0/queues/tx-0/xps_cpus",
            "echo 400 > /sys/class/net/eth0/queues/tx-1/xps_cpus"
        ]
    );
}

#[test]
fn a_virtio_card_is_a_child_of_the_device_with_its_interrupts() {
    let files = Files::default()
        .with("sys/devices/pci/virtio2/uevent", "DRIVER=virtio_net")
        .with("sys/devices/pci/numa_node", "1")
        .with("sys/class/net/eth0/queues/rx-0/rps_cpus", "0")
        .with("sys/class/net/eth0/queues/tx-0/xps_cpus", "0")
        .with("sys/class/net/eth0/queues/rx-1/rps_cpus", "0")
        .with("sys/class/net/eth0/queues/tx-1/xps_cpus", "0")
        .with("sys/devices/system/node/node0/cpulist", "0-1")
        .with("sys/devices/system/node/node1/cpulist", "2-3")
        .with("proc/self/status", "Cpus_allowed_list:\t0-3\n")
        .with(
            "proc/interrupts",
            "     CPU0  CPU1\n 37:  0 0 PCI-MSIX-0000:00:03.0 0-edge virtio2-config\n\
             38: 0 9 PCI-MSIX-0000:00:03.0 1-edge virtio2-input.0\n\
             39: 7 0 PCI-MSIX-0000:00:03.0 2-edge virtio2-output.0\n\
             40: 0 9 PCI-MSIX-0000:00:03.0 3-edge virtio2-input.1\n\
             41: 7 0 PCI-MSIX-0000:00:03.0 4-edge virtio2-output.1\n\
             42: 7 0 PCI-MSIX-0000:00:04.0 1-edge virtio3-input.0\n",
        );
    let cpus = [(38, "0"), (39, "0"), (40, "1"), (41, "0")];
    let files = cpus.iter().fold(files, |files, (number, cpus)| {
        files
            .with(format!("sys/devices/pci/msi_irqs/{number}"), "msix")
            .with(format!("proc/irq/{number}/smp_affinity_list"), *cpus)
    });
    let fixture = files.with("sys/devices/pci/msi_irqs/37", "msix").fixture();
    symlink("../../../devices/pci/virtio2", fixture.root().join("sys/class/net/eth0/device"))
        .unwrap();
    let checks = on(&fixture, HOST, &[0, 1]);
    assert_eq!(verdicts(&checks), "OWOWW", "{checks:?}");
    let check = of(&checks, "interrupts");
    assert_eq!(check.value, "queue 1: what was sent is on other CPUs");
    assert_eq!(check.commands, ["echo 1 > /proc/irq/41/smp_affinity_list"]);
    let node = of(&checks, "node");
    assert_eq!(node.value, "node 1, while other nodes have CPUs 0-1 with shards");
    assert_eq!(node.commands, ["ringtally serve --host 10.0.0.1 --cpus 2-3"]);
}

#[test]
fn the_node_of_the_card_is_that_of_the_cpus() {
    let with = |node: &str, allowed: &str| {
        let files = four_queues(["0", "1", "2", "3"])
            .with("sys/devices/system/node/node0/cpulist", "0-3,8-11\n")
            .with("sys/devices/system/node/node1/cpulist", "4-7,12-15\n")
            .with("sys/devices/system/node/possible", "0-1\n")
            .with("sys/class/net/eth0/device/numa_node", node)
            .with("proc/self/status", format!("Cpus_allowed_list:\t{allowed}\n"));
        of(&files.checks(&[0, 1, 2, 3]), "node").clone()
    };
    assert_eq!(with("0", "0-15").verdict, Verdict::Ok);
    assert_eq!(with("-1", "0-15").verdict, Verdict::Skip);
    assert_eq!(with("7", "0-15").verdict, Verdict::Skip);
    assert_eq!(with("1", "0-15").commands, ["ringtally serve --host 10.0.0.1 --cpus 4-7"]);
    assert_eq!(with("1", "0-4,13").commands, ["ringtally serve --host 10.0.0.1 --cpus 4,13"]);
    let shut_out = with("1", "0-3");
    assert_eq!(shut_out.verdict, Verdict::Warn);
    assert!(shut_out.commands.is_empty());
    assert!(shut_out.fix.unwrap().starts_with("allow this process CPUs 4-7,12-15 "));
}

#[test]
fn the_masks_of_128_cpus_have_four_groups() {
    let names: Vec<String> = (0..64).map(|queue| format!("ice-eth0-TxRx-{queue}")).collect();
    // Each queue is on the CPU after the planned one.
    let cpus: Vec<String> = (0..64).map(|queue| (queue + 65).to_string()).collect();
    let named: Vec<(&str, &str)> =
        names.iter().map(String::as_str).zip(cpus.iter().map(String::as_str)).collect();
    let shards: Vec<usize> = (64..128).collect();
    let files = Files::default().card("eth0", 64).interrupts("eth0", &named);
    let checks = files.checks(&shards);
    let check = of(&checks, "interrupts");
    assert_eq!(check.value, "queue 63: on CPU 128, which has no shard");
    assert_eq!(check.commands, ["echo 64 > /proc/irq/103/smp_affinity_list"]);
    let xps = &of(&checks, "XPS").commands;
    assert_eq!(xps.len(), 64);
    assert_eq!(
        xps[62],
        "echo 80000000,00000000,00000000,00000000 > /sys/class/net/eth0/queues/tx-62/xps_cpus"
    );
    // Queue 63 moves to CPU 0, so queue 0, which is on CPU 65, also gets CPU 1.
    let all: Vec<usize> = (0..128).collect();
    let checks = files.checks(&all);
    let rps = &of(&checks, "RPS").commands;
    assert_eq!(rps.len(), 64);
    assert_eq!(rps[0], "echo 2,00000000,00000002 > /sys/class/net/eth0/queues/rx-0/rps_cpus");
}

#[test]
fn a_vlan_and_a_bond_are_followed_to_their_cards() {
    let vlan = four_queues(["0", "1", "2", "3"])
        .with("sys/class/net/eth0.5/lower_eth0/name", "")
        .with("sys/class/net/eth0.5/uevent", "DEVTYPE=vlan\nINTERFACE=eth0.5\n");
    let checks = on(&vlan.fixture(), "10.5.0.1", &[0, 1, 2, 3]);
    assert_eq!(
        (checks[0].name.as_str(), checks[0].value.as_str()),
        ("NIC eth0.5", "vlan on eth0, whose queues count")
    );
    assert_eq!(verdicts(&checks), "OOOOO");
    let bond = Files::default()
        .card("eth1", 2)
        .card("eth2", 2)
        .with("sys/class/net/eth0/lower_bond0/name", "")
        .with("sys/class/net/bond0/lower_eth2/name", "")
        .with("sys/class/net/bond0/lower_eth1/name", "")
        // Kernels do not create loops like this.
        .with("sys/class/net/bond0/lower_eth0/name", "");
    let checks = bond.checks(&[0, 1]);
    assert_eq!(checks[0].value, "a virtual interface on eth1 and eth2, whose queues count");
    assert_eq!(checks.len(), 1 + 2 * 5);
}

#[test]
fn loopback_has_nothing_to_line_up() {
    for host in ["127.0.0.1", "127.9.9.9", "::1"] {
        let checks = on(&Files::default().fixture(), host, &[0]);
        let [check] = checks.as_slice() else { panic!("{checks:?}") };
        assert_eq!((check.name.as_str(), check.verdict), ("NIC lo", Verdict::Ok));
        assert!(check.value.contains("nothing to line up"), "{check:?}");
    }
}

#[test]
fn an_interface_without_a_card_says_what_is_not_known() {
    let veth = |mask: &str| {
        let files = Files::default().with("sys/class/net/veth7/queues/rx-0/rps_cpus", mask);
        let checks = on(&files.fixture(), "fd00::7", &[0, 1]);
        let [check] = checks.as_slice() else { panic!("{checks:?}") };
        assert_eq!((check.name.as_str(), check.verdict), ("NIC veth7", Verdict::Skip));
        check.value.clone()
    };
    assert!(veth("0").contains("on the CPU that sent them"));
    assert!(veth("3").contains("on CPUs 0-1, by its RPS"));
}

#[test]
fn all_physical_interfaces_that_are_up_serve_every_address() {
    let files = four_queues(["0", "1", "2", "3"])
        .card("eth1", 1)
        .with("sys/class/net/eth1/operstate", "down")
        .card("eth2", 1)
        .with("sys/class/net/eth2/flags", "0x1002")
        .card("eth3", 1)
        .with("sys/class/net/eth3/operstate", "unknown")
        .with("sys/class/net/docker0/flags", "0x1003");
    for host in ["0.0.0.0", "::"] {
        let mut cards: Vec<String> = on(&files.fixture(), host, &[0, 1, 2, 3])
            .iter()
            .map(|check| check.name.split(' ').nth(1).unwrap().to_owned())
            .collect();
        cards.dedup();
        assert_eq!(cards, ["eth0", "eth3"]);
    }
    let none = on(&Files::default().fixture(), "0.0.0.0", &[0]);
    assert_eq!((none.len(), none[0].verdict), (1, Verdict::Skip));
}

#[test]
fn an_address_that_nobody_has_cannot_be_bound() {
    let checks = on(&Files::default().fixture(), "10.9.9.9", &[0]);
    assert_eq!((checks.len(), checks[0].verdict), (1, Verdict::Warn));
}

#[test]
fn what_cannot_be_read_or_vanishes_is_skipped() {
    let gone = Files::default().checks(&[0]);
    assert_eq!((gone.len(), gone[0].verdict), (1, Verdict::Skip), "{gone:?}");
    let going = Files::default().with("sys/class/net/eth0/device/id", "").checks(&[0]);
    assert_eq!((going.len(), going[0].verdict), (1, Verdict::Skip), "{going:?}");
    // Its queues are listed, but their files are gone.
    let files = Files::default()
        .with("sys/class/net/eth0/device/id", "")
        .with("sys/class/net/eth0/queues/rx-0/gone", "")
        .with("sys/class/net/eth0/queues/rx-1/gone", "")
        .with("sys/class/net/eth0/queues/tx-1/gone", "");
    assert_eq!(verdicts(&files.checks(&[0, 1])), "OSSSS");
    // The interrupts cannot be read: here, a directory takes the place of the file.
    let files =
        Files::default().card("eth0", 1).with("sys/class/net/eth0/device/msi_irqs/40", "msix");
    let files = files.with("proc/interrupts", " 40: 1 MSI eth0-TxRx-0\n");
    let hidden = files.with("proc/irq/40/smp_affinity_list/folder", "").checks(&[0]);
    let check = of(&hidden, "interrupts");
    assert_eq!(check.verdict, Verdict::Skip);
    assert_eq!(check.value, "/proc/irq/40/smp_affinity_list cannot be read");
    // The names do not identify the queues.
    let names = [("eth0-a", "0"), ("eth0-b", "1")];
    let odd = Files::default().card("eth0", 2).interrupts("eth0", &names).checks(&[0, 1]);
    assert!(of(&odd, "interrupts").value.contains("eth0-a"), "{odd:?}");
    assert_eq!(verdicts(&odd), "OSOSS");
}
