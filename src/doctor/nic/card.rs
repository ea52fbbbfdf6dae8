//! A network card as the kernel describes it: its queues, and the CPUs that their packets go to.

use super::super::machine::Machine;
use std::collections::BTreeMap;

/// Words in the names of interrupts that do not serve a queue.
const NOT_OF_A_QUEUE: [&str; 10] =
    ["config", "async", "ctrl", "mgmnt", "misc", "cmd", "pages", "event", "hwc", "admin"];

/// An interrupt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interrupt {
    pub(super) number: u32,
    /// The CPUs that it may go to.
    pub(super) cpus: Vec<usize>,
}

/// The interrupts of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// The receive interrupt, which usually also serves transmission.
    pub(super) rx: Interrupt,
    /// The transmit interrupt, if it is a separate one.
    pub(super) tx: Option<Interrupt>,
}

/// A network card.
#[derive(Debug)]
pub(super) struct Card {
    pub(super) name: String,
    /// The number of RX queues.
    pub(super) queues: usize,
    /// Whether RX and TX queues have separate interrupts, so that `ethtool -L` counts them separately.
    pub(super) is_separate: bool,
    /// The interrupts of each RX queue, or the reason why they are unknown.
    pub(super) lines: Result<Vec<Line>, String>,
    /// The CPUs that each RX queue spreads its packets over; empty if it does not spread them.
    pub(super) rps: Option<Vec<Vec<usize>>>,
    /// The CPUs that send through each TX queue.
    pub(super) xps: Option<Vec<Vec<usize>>>,
    /// The number of TX queues.
    pub(super) tx_queues: usize,
    /// The node that it is attached to.
    pub(super) node: Option<usize>,
}

impl Card {
    pub(super) fn read(machine: &Machine, name: &str) -> Card {
        let folder = format!("sys/class/net/{name}");
        let [queues, tx_queues] = ["rx", "tx"].map(|kind| {
            let names = machine.names(&format!("{folder}/queues"));
            let number = |queue: &String| queue.strip_prefix(kind)?.strip_prefix('-')?.parse().ok();
            names.iter().filter_map(number).map(|number: usize| number + 1).max().unwrap_or(0)
        });
        let masks = |kind: &str, count: usize, file: &str| -> Option<Vec<Vec<usize>>> {
            let path = |queue| format!("{folder}/queues/{kind}-{queue}/{file}");
            (0..count).map(|queue| parse_mask(&machine.text(&path(queue))?)).collect()
        };
        let named = Named::read(machine, name);
        // A virtio card is a child of the device that is attached.
        let node = ["device/numa_node", "device/../numa_node"]
            .iter()
            .find_map(|file| machine.number(&format!("{folder}/{file}")));
        Card {
            name: name.into(),
            queues,
            is_separate: named.is_separate(),
            lines: named.lines(machine, queues),
            rps: masks("rx", queues, "rps_cpus"),
            xps: masks("tx", tx_queues, "xps_cpus"),
            tx_queues,
            // The kernel reports -1 if it is unknown.
            node: node.and_then(|node| usize::try_from(node).ok()),
        }
    }
}

/// The purpose of an interrupt, judged by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Receiving on an RX queue, and perhaps transmission, too.
    Receive,
    /// Transmission only.
    Send,
    /// A queue whose direction the name does not show: mlx4-3, or eth0-fp-3.
    Queue,
    /// Not a queue.
    Other,
}

/// Returns the role and the queue number in an interrupt's name, ignoring the interface's name.
fn role(name: &str, interface: &str) -> (Role, Option<usize>) {
    // The device's address follows: mlx5_comp3@pci:0000:03:00.0.
    let name = name.split('@').next().unwrap_or(name).replace(interface, "").to_lowercase();
    let number = name
        .rsplit(|c: char| !c.is_ascii_digit())
        .find(|digits| !digits.is_empty())
        .and_then(|digits| digits.parse().ok());
    let contains = |part: &str| name.contains(part);
    let role = if NOT_OF_A_QUEUE.iter().any(|part| contains(part)) {
        Role::Other
    } else if contains("rx") || contains("input") || contains("comp") {
        Role::Receive
    } else if contains("tx") || contains("output") {
        Role::Send
    } else if number.is_some() {
        Role::Queue
    } else {
        Role::Other
    };
    (role, number)
}

/// The interrupts of a card with their names.
struct Named(Vec<(u32, String, Role, Option<usize>)>);

impl Named {
    fn read(machine: &Machine, interface: &str) -> Named {
        let names = interrupt_names(&machine.text("proc/interrupts").unwrap_or_default());
        let numbers = ["device/msi_irqs", "device/../msi_irqs"]
            .iter()
            .map(|folder| machine.names(&format!("sys/class/net/{interface}/{folder}")))
            .find(|numbers| !numbers.is_empty());
        let is_of_interface = |name: &str| {
            name.split(|c: char| !c.is_alphanumeric() && c != '_').any(|part| part == interface)
        };
        let is_ours = |number: u32, name: &str| match &numbers {
            Some(numbers) => numbers.contains(&number.to_string()),
            // The interrupt is not message-signaled, or does not use PCI.
            None => is_of_interface(name),
        };
        let ours = names.into_iter().filter(|(number, name)| is_ours(*number, name));
        Named(
            ours.map(|(number, name)| {
                let (role, queue) = role(&name, interface);
                (number, name, role, queue)
            })
            .collect(),
        )
    }

    /// Returns the queues and the numbers of the interrupts in a role, in the order of the queues.
    fn in_role(&self, wanted: Role) -> Vec<(Option<usize>, u32)> {
        let in_role = self.0.iter().filter(|(_, _, role, _)| *role == wanted);
        let mut found: Vec<_> = in_role.map(|(number, _, _, queue)| (*queue, *number)).collect();
        found.sort_unstable();
        found
    }

    fn is_separate(&self) -> bool {
        // The pairs of virtio are counted together: virtio0-input.0, virtio0-output.0.
        let receives = |name: &str| name.contains("rx") && !name.contains("tx");
        self.0
            .iter()
            .any(|(_, name, role, _)| *role == Role::Receive && receives(&name.to_lowercase()))
            && self.0.iter().any(|(_, _, role, _)| *role == Role::Send)
    }

    /// Returns the interrupts of each queue, or the reason why they are unknown.
    fn lines(&self, machine: &Machine, queues: usize) -> Result<Vec<Line>, String> {
        let [receive, send, other] =
            [Role::Receive, Role::Send, Role::Queue].map(|role| self.in_role(role));
        let is_gve = self.0.iter().any(|(_, name, ..)| name.starts_with("gve"));
        let rx = if !receive.is_empty() {
            of_queues(&receive, queues)
        } else if is_gve {
            // Google's card: the first half of its interrupts serves TX queues.
            of_queues(&other[other.len() / 2..], queues)
        } else if other.is_empty() && queues == 1 && self.0.len() == 1 {
            // A single interrupt for everything, with the name of the interface.
            Some(vec![self.0[0].0])
        } else {
            of_queues(&other, queues)
        };
        let Some(rx) = rx else {
            return Err(match self.0.first() {
                None => "neither msi_irqs nor /proc/interrupts shows an interrupt of it".into(),
                Some((_, name, ..)) => format!(
                    "the names of its interrupts, such as {name}, do not say which queue they serve"
                ),
            });
        };
        let tx = if receive.is_empty() { None } else { of_queues(&send, queues) };
        let interrupt = |number: u32| -> Result<Interrupt, String> {
            let cpus = interrupt_cpus(machine, number);
            let why = || format!("/proc/irq/{number}/smp_affinity_list cannot be read");
            Ok(Interrupt { number, cpus: cpus.ok_or_else(why)? })
        };
        (0..queues)
            .map(|queue| {
                let tx = tx.as_ref().map(|tx| interrupt(tx[queue])).transpose()?;
                Ok(Line { rx: interrupt(rx[queue])?, tx })
            })
            .collect()
    }
}

/// Returns the interrupts of the first `queues` queues, if there are enough: by the numbers in their names, or in their order
/// if the numbers do not begin at 0.
fn of_queues(found: &[(Option<usize>, u32)], queues: usize) -> Option<Vec<u32>> {
    let by_number: Option<Vec<u32>> = (0..queues)
        .map(|queue| found.iter().find(|(number, _)| *number == Some(queue)).map(|f| f.1))
        .collect();
    by_number.or_else(|| Some(found.get(..queues)?.iter().map(|(_, number)| *number).collect()))
}

/// Returns the CPUs of an interrupt: the CPU that the kernel has chosen or, if that is unknown, the CPUs that it may
/// choose from.
pub(in crate::doctor) fn interrupt_cpus(machine: &Machine, number: u32) -> Option<Vec<usize>> {
    ["effective_affinity_list", "smp_affinity_list"]
        .iter()
        .find_map(|file| machine.cpus(&format!("proc/irq/{number}/{file}")))
}

/// Returns the numbers and names in the text of /proc/interrupts. A name is the last word of its line, because the number of
/// words before it depends on the architecture.
fn interrupt_names(text: &str) -> BTreeMap<u32, String> {
    let of_line = |line: &str| {
        let (number, rest) = line.split_once(':')?;
        Some((number.trim().parse().ok()?, rest.split_ascii_whitespace().next_back()?.to_owned()))
    };
    text.lines().filter_map(of_line).collect()
}

/// Parses the CPUs in a kernel mask: hexadecimal, in groups of 32 bits, with the lowest group last.
pub(super) fn parse_mask(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for (group, digits) in text.rsplit(',').enumerate() {
        let bits = u32::from_str_radix(digits, 16).ok()?;
        cpus.extend((0..32).filter(|bit| bits >> bit & 1 == 1).map(|bit| 32 * group + bit));
    }
    Some(cpus)
}

/// Returns the mask of these CPUs, as the kernel reads it.
pub(super) fn format_mask(cpus: &[usize]) -> String {
    let groups = cpus.iter().max().map_or(1, |highest| highest / 32 + 1);
    let bits = |group: usize| {
        cpus.iter().filter(|cpu| *cpu / 32 == group).fold(0_u32, |bits, cpu| bits | 1 << (cpu % 32))
    };
    let lower = (0..groups - 1).rev().map(|group| format!(",{:08x}", bits(group)));
    format!("{:x}{}", bits(groups - 1), lower.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_groups_of_32_bits() {
        for (cpus, mask) in [
            (&[][..], "0"),
            (&[0], "1"),
            (&[0, 1, 2, 3], "f"),
            (&[31], "80000000"),
            (&[32], "1,00000000"),
            (&[0, 63], "80000000,00000001"),
            (&[4, 64, 127], "80000000,00000001,00000000,00000010"),
        ] {
            assert_eq!(format_mask(cpus), mask);
            assert_eq!(parse_mask(mask).as_deref(), Some(cpus));
        }
        assert_eq!(parse_mask("00000000,00000000,00000000,0000000f"), Some(vec![0, 1, 2, 3]));
        for odd in ["", "x", "1,,1", "100000000"] {
            assert_eq!(parse_mask(odd), None, "{odd}");
        }
    }

    #[test]
    fn the_names_that_drivers_give_say_which_queue_an_interrupt_serves() {
        for (name, expected) in [
            ("eth0-TxRx-3", (Role::Receive, Some(3))),
            ("i40e-eth0-TxRx-12", (Role::Receive, Some(12))),
            ("eth0-Tx-Rx-3", (Role::Receive, Some(3))),
            ("eth0-rx-1", (Role::Receive, Some(1))),
            ("eth0-q2-rx", (Role::Receive, Some(2))),
            ("eth0-tx-1", (Role::Send, Some(1))),
            ("virtio0-input.5", (Role::Receive, Some(5))),
            ("virtio0-output.5", (Role::Send, Some(5))),
            ("mlx5_comp7@pci:0000:03:00.0", (Role::Receive, Some(7))),
            ("hns3-0000:7d:00.0-TxRx-4", (Role::Receive, Some(4))),
            ("mlx4-3@0000:03:00.0", (Role::Queue, Some(3))),
            ("eth0-fp-3", (Role::Queue, Some(3))),
            ("gve-ntfy-blk9@pci:0000:00:04.0", (Role::Queue, Some(9))),
            ("mana_q1@pci:7870:00:00.0", (Role::Queue, Some(1))),
        ] {
            assert_eq!(role(name, "eth0"), expected, "{name}");
        }
        for name in [
            "virtio0-config",
            "mlx5_async0@pci:0000:03:00.0",
            "ena-mgmnt@pci:0000:00:05.0",
            "i40e-0000:17:00.0:misc",
            "mana_hwc@pci:7870:00:00.0",
            "eth0-event-2",
            "eth0",
        ] {
            assert_eq!(role(name, "eth0").0, Role::Other, "{name}");
        }
    }

    #[test]
    fn queues_are_numbered_from_0_or_in_order() {
        let found = |numbers: &[usize]| -> Vec<(Option<usize>, u32)> {
            (40..).zip(numbers).map(|(interrupt, number)| (Some(*number), interrupt)).collect()
        };
        assert_eq!(of_queues(&found(&[0, 1, 2]), 2), Some(vec![40, 41]));
        assert_eq!(of_queues(&found(&[1, 2, 3]), 3), Some(vec![40, 41, 42]));
        assert_eq!(of_queues(&found(&[0, 1]), 3), None);
    }
}
