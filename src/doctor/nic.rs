//! Checks whether packets arrive on the CPUs of the shards: how the queues, interrupts, and node of a server's network card
//! relate to the CPUs that it would use, and the commands that align them.
//!
//! The interrupt of a queue determines the CPU that receives its packets, unless RPS passes them to other CPUs (see
//! Documentation/networking/scaling.rst of the kernel). `serve --steer cpu` gives a connection to the shard on that CPU.

mod card;
mod plan;
#[cfg(test)]
mod tests;

use super::machine::Machine;
use super::{Check, cpu};
use crate::topology::{distinct, format_cpu_ranges};
pub(super) use card::interrupt_cpus;
use card::{Card, Line, format_mask};
use nix::ifaddrs::getifaddrs;
use std::net::IpAddr;

/// The most interfaces stacked on top of each other; the kernel's limit is 8 (MAX_NEST_DEV).
const NESTED_MAX: usize = 8;
/// The flag of an interface that is up (netdevice(7)).
const IFF_UP: u64 = 1;

/// The address and the CPUs of a server.
#[derive(Clone, Debug)]
pub struct Listener {
    /// The address that it would bind.
    pub host: IpAddr,
    /// The CPU of each shard; there is at least one.
    pub placement: Vec<usize>,
}

/// An address of this machine, and the interface that has it.
type Address = (String, IpAddr);

/// Checks the cards of this machine that `listener` would listen on.
pub(super) fn checks(machine: &Machine, listener: &Listener) -> Vec<Check> {
    match addresses() {
        Ok(addresses) => of_listener(machine, listener, &addresses),
        Err(error) => {
            vec![Check::skip(
                "NIC",
                format!("the addresses of this machine cannot be read: {error}"),
            )]
        }
    }
}

fn addresses() -> nix::Result<Vec<Address>> {
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let storage = interface.address?;
        let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let address = v4.or_else(|| Some(IpAddr::V6(storage.as_sockaddr_in6()?.ip())))?;
        Some((interface.interface_name, address))
    };
    Ok(getifaddrs()?.filter_map(address).collect())
}

fn of_listener(machine: &Machine, listener: &Listener, addresses: &[Address]) -> Vec<Check> {
    let host = listener.host;
    if host.is_unspecified() {
        let cards = cards_that_are_up(machine);
        return match cards.is_empty() {
            true => {
                vec![Check::skip("NIC", "/sys/class/net shows no physical interface that is up")]
            }
            false => cards.iter().flat_map(|card| of_card(machine, card, listener)).collect(),
        };
    }
    let holder = addresses.iter().find(|(_, address)| *address == host);
    let interface = match holder {
        Some((interface, _)) => interface.as_str(),
        // All of 127.0.0.0/8 is local, whatever addresses the interface lists.
        None if host.is_loopback() => "lo",
        None => {
            return vec![Check::warn(
                "NIC",
                format!("no interface has the address {host}: serve cannot bind it"),
                "pass one that ip address show lists, or add it",
            )];
        }
    };
    of_interface(machine, interface, listener)
}

fn of_interface(machine: &Machine, interface: &str, listener: &Listener) -> Vec<Check> {
    let name = format!("NIC {interface}");
    let folder = format!("sys/class/net/{interface}");
    if listener.host.is_loopback() {
        let value = "loopback has neither queues nor interrupts: there is nothing to line up";
        return vec![Check::ok(&name, value)];
    }
    if !machine.exists(&folder) {
        let why = "it is gone, or belongs to another network namespace";
        return vec![Check::skip(&name, format!("/{folder} cannot be read: {why}"))];
    }
    let cards = cards_below(machine, interface, NESTED_MAX);
    let kind = kind(machine, &folder);
    match cards.as_slice() {
        [] => vec![Check::skip(&name, without_card(machine, &folder, &kind))],
        [card] if card == interface => of_card(machine, card, listener),
        cards => {
            let value = format!("{kind} on {}, whose queues count", cards.join(" and "));
            let of_cards = cards.iter().flat_map(|card| of_card(machine, card, listener));
            std::iter::once(Check::ok(&name, value)).chain(of_cards).collect()
        }
    }
}

/// Returns the kind of interface, such as vlan or bond.
fn kind(machine: &Machine, folder: &str) -> String {
    let uevent = machine.text(&format!("{folder}/uevent")).unwrap_or_default();
    let kind = uevent.lines().find_map(|line| line.strip_prefix("DEVTYPE="));
    kind.unwrap_or("a virtual interface").into()
}

/// Returns the physical interfaces that an interface sends and receives through.
fn cards_below(machine: &Machine, interface: &str, nested_max: usize) -> Vec<String> {
    let folder = format!("sys/class/net/{interface}");
    if machine.exists(&format!("{folder}/device")) {
        return vec![interface.into()];
    }
    if nested_max == 0 {
        return Vec::new();
    }
    let names = machine.names(&folder);
    let lower = names.iter().filter_map(|name| name.strip_prefix("lower_"));
    let mut cards: Vec<String> =
        lower.flat_map(|lower| cards_below(machine, lower, nested_max - 1)).collect();
    cards.sort_unstable();
    cards.dedup();
    cards
}

fn cards_that_are_up(machine: &Machine) -> Vec<String> {
    let is_up = |interface: &String| {
        let file = |name: &str| machine.text(&format!("sys/class/net/{interface}/{name}"));
        let flags = file("flags").unwrap_or_default();
        let flags = flags.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        machine.exists(&format!("sys/class/net/{interface}/device"))
            && flags.is_some_and(|flags| flags & IFF_UP != 0)
            // An interface without a cable has that flag, too.
            && file("operstate").is_none_or(|state| state != "down")
    };
    machine.names("sys/class/net").into_iter().filter(is_up).collect()
}

/// Describes an interface without a visible card below it, such as one end of a veth pair.
fn without_card(machine: &Machine, folder: &str, kind: &str) -> String {
    let queues = machine.names(&format!("{folder}/queues"));
    let masks = queues.iter().filter(|queue| queue.starts_with("rx-")).filter_map(|queue| {
        card::parse_mask(&machine.text(&format!("{folder}/queues/{queue}/rps_cpus"))?)
    });
    let cpus = distinct(masks.flatten());
    let receiver = match cpus.is_empty() {
        true => "on the CPU that sent them, or that the interrupt of a card outside picks".into(),
        false => format!("on {}, by its RPS", named("CPU", &cpus)),
    };
    format!("{kind} without a card that can be seen from here: packets are received {receiver}")
}

/// A card and the CPUs with shards, in relation to each other.
struct Relation<'a> {
    machine: &'a Machine,
    listener: &'a Listener,
    card: &'a Card,
    /// The CPUs with shards, in ascending order.
    cpus: &'a [usize],
    /// The planned CPU for each queue's interrupt.
    assigned: Vec<usize>,
}

fn of_card(machine: &Machine, name: &str, listener: &Listener) -> Vec<Check> {
    let card = &Card::read(machine, name);
    let cpus = distinct(listener.placement.iter().copied());
    if card.queues == 0 || cpus.is_empty() {
        let why = format!("/sys/class/net/{name}/queues shows none: the card may be gone");
        return vec![Check::skip(&format!("NIC {name} queues"), why)];
    }
    let lines = card.lines.as_deref().unwrap_or_default();
    let mut current: Vec<Option<usize>> = lines
        .iter()
        .map(|line| match line.rx.cpus.as_slice() {
            [cpu] => Some(*cpu),
            _ => None,
        })
        .collect();
    current.resize(card.queues, None);
    let assigned = plan::assign(&current, &cpus);
    let relation = Relation { machine, listener, card, cpus: &cpus, assigned };
    vec![relation.queues(), relation.interrupts(), relation.rps(), relation.xps(), relation.node()]
}

impl Relation<'_> {
    fn name(&self, what: &str) -> String {
        format!("NIC {} {what}", self.card.name)
    }

    fn queues(&self) -> Check {
        let (queues, cpus) = (self.card.queues, self.cpus.len());
        let value =
            format!("{} for {} with shards", counted(queues, "RX queue"), counted(cpus, "CPU"));
        let card = &self.card.name;
        let fix = match queues.cmp(&cpus) {
            std::cmp::Ordering::Equal => return Check::ok(&self.name("queues"), value),
            std::cmp::Ordering::Greater => {
                "run what follows and doctor again, because more queues mean more interrupts for \
                 as many packets"
                    .into()
            }
            std::cmp::Ordering::Less => format!(
                "run what follows and doctor again, because a CPU without a queue gets its packets \
                 from another CPU; ethtool -l {card} shows how many queues it has at most"
            ),
        };
        let count = match self.card.is_separate {
            true => format!("rx {cpus} tx {cpus}"),
            false => format!("combined {cpus}"),
        };
        Check::warn(&self.name("queues"), value, fix)
            .commands([format!("ethtool -L {card} {count}")])
    }

    fn interrupts(&self) -> Check {
        let name = self.name("interrupts");
        let lines = match &self.card.lines {
            Ok(lines) => lines,
            Err(why) => return Check::skip(&name, why),
        };
        let mut problems = self.receive_problems(lines);
        let receives_elsewhere = !problems.is_empty();
        let sends = self.sends_elsewhere(lines);
        let sends_elsewhere = !sends.is_empty();
        if sends_elsewhere {
            problems.push(format!("{}: what was sent is on other CPUs", named("queue", &sends)));
        }
        let mut commands = Vec::new();
        if cpu::runs_irqbalance(self.machine) {
            problems.push("irqbalance runs, and places them anew every ten seconds".into());
            commands.push("systemctl stop irqbalance".into());
        }
        for (line, cpu) in lines.iter().zip(&self.assigned) {
            for interrupt in std::iter::once(&line.rx).chain(&line.tx) {
                if interrupt.cpus != [*cpu] {
                    let number = interrupt.number;
                    commands.push(format!("echo {cpu} > /proc/irq/{number}/smp_affinity_list"));
                }
            }
        }
        if problems.is_empty() {
            let cpus = distinct(self.assigned.iter().copied());
            let (queues, cpus) = (counted(lines.len(), "queue"), named("CPU", &cpus));
            let value = format!("those of {queues} go evenly to {cpus}, for serve --steer cpu");
            return Check::ok(&name, value);
        }
        let cost = if receives_elsewhere {
            "otherwise each packet goes from the CPU that receives it to another, with a wake-up \
             and the cache lines that it touched"
        } else if sends_elsewhere {
            "what was sent is freed on the CPU that its queue interrupts"
        } else {
            "connections go where interrupts go"
        };
        let fix = format!("run what follows as root, and serve with --steer cpu, because {cost}");
        Check::warn(&name, problems.join("; "), fix).commands(commands)
    }

    /// Returns the queues whose transmit interrupt is not on the planned CPU.
    fn sends_elsewhere(&self, lines: &[Line]) -> Vec<usize> {
        let is_elsewhere =
            |(line, cpu): (&Line, &usize)| line.tx.as_ref().is_some_and(|tx| tx.cpus != [*cpu]);
        let planned = lines.iter().zip(&self.assigned).enumerate();
        planned.filter(|(_, planned)| is_elsewhere(*planned)).map(|(queue, _)| queue).collect()
    }

    /// Describes the receive interrupts that are not on the planned CPU.
    fn receive_problems(&self, lines: &[Line]) -> Vec<String> {
        let mut problems = Vec::new();
        let queues_with = |is_so: &dyn Fn(&Line) -> bool| -> Vec<usize> {
            let with = lines.iter().enumerate().filter(|(_, line)| is_so(line));
            with.map(|(queue, _)| queue).collect()
        };
        let cpus_of = |queues: &[usize]| {
            distinct(queues.iter().flat_map(|queue| lines[*queue].rx.cpus.iter().copied()))
        };
        let strays = queues_with(
            &|line| matches!(line.rx.cpus.as_slice(), [cpu] if !self.cpus.contains(cpu)),
        );
        if !strays.is_empty() {
            let cpus = cpus_of(&strays);
            let have = if cpus.len() == 1 { "has" } else { "have" };
            let (queues, cpus) = (named("queue", &strays), named("CPU", &cpus));
            problems.push(format!("{queues}: on {cpus}, which {have} no shard"));
        }
        let wide = queues_with(&|line| line.rx.cpus.len() != 1);
        if !wide.is_empty() {
            let (queues, cpus) = (named("queue", &wide), named("CPU", &cpus_of(&wide)));
            problems.push(format!("{queues}: on any of {cpus}"));
        }
        let count = |cpu: &usize| lines.iter().filter(|line| line.rx.cpus == [*cpu]).count();
        let counts: Vec<usize> = self.cpus.iter().map(count).collect();
        let [least, most] =
            [counts.iter().min(), counts.iter().max()].map(|n| n.copied().unwrap_or(0));
        if most > least + 1 || (most > 1 && least == 0) {
            let with = |wanted: usize| -> Vec<usize> {
                let found = self.cpus.iter().zip(&counts).filter(|(_, count)| **count == wanted);
                found.map(|(cpu, _)| *cpu).collect()
            };
            problems.push(format!(
                "{most} queues on {}, and {} on {}",
                named("CPU", &with(most)),
                if least == 0 { "none".into() } else { least.to_string() },
                named("CPU", &with(least)),
            ));
        }
        problems
    }

    fn rps(&self) -> Check {
        let name = self.name("RPS");
        let Some(masks) = &self.card.rps else {
            return Check::skip(&name, "rps_cpus of its RX queues cannot be read");
        };
        let wanted = plan::spread(&self.assigned, self.cpus);
        let commands = || {
            let changed =
                masks.iter().zip(&wanted).enumerate().filter(|(_, (is, to_be))| is != to_be);
            let command = |(queue, (_, cpus)): (usize, (_, &Vec<usize>))| {
                let mask = format_mask(cpus);
                format!(
                    "echo {mask} > /sys/class/net/{}/queues/rx-{queue}/rps_cpus",
                    self.card.name
                )
            };
            changed.map(command).collect::<Vec<_>>()
        };
        let cpus = distinct(masks.concat());
        let has_enough = self.card.queues >= self.cpus.len();
        let value = match cpus.is_empty() {
            true => "off: each packet stays on the CPU of its interrupt".into(),
            false => format!("hands packets to {}", named("CPU", &cpus)),
        };
        if has_enough && cpus.is_empty() {
            Check::ok(&name, value)
        } else if has_enough {
            let fix = "run what follows as root, because there is a queue for each CPU with a \
                       shard, and RPS adds an interrupt from one CPU to another";
            Check::warn(&name, value, fix).commands(commands())
        } else if cpus == self.cpus {
            Check::ok(&name, format!("{value}, for serve --steer cpu"))
        } else {
            let fix = "run what follows as root where the card has no more queues, and serve with \
                       --steer cpu, because all packets are received on the CPUs of its queues \
                       otherwise";
            Check::warn(&name, value, fix).commands(commands())
        }
    }

    fn xps(&self) -> Check {
        let name = self.name("XPS");
        if self.card.tx_queues <= 1 {
            return Check::ok(&name, "one TX queue, which all CPUs share");
        }
        let Some(masks) = &self.card.xps else {
            return Check::skip(&name, "xps_cpus of its TX queues cannot be read");
        };
        if self.card.lines.is_err() {
            return Check::skip(
                &name,
                "it is not known which CPU the interrupt of each queue goes to",
            );
        }
        let wanted = plan::senders(&self.assigned, self.cpus);
        let is_other = |(is, to_be): (&Vec<usize>, &Vec<usize>)| {
            let is: Vec<usize> = is.iter().copied().filter(|cpu| self.cpus.contains(cpu)).collect();
            is != *to_be
        };
        let changed: Vec<usize> = (0..masks.len().min(wanted.len()))
            .filter(|queue| is_other((&masks[*queue], &wanted[*queue])))
            .collect();
        if changed.is_empty() {
            return Check::ok(&name, "each shard sends through a queue that interrupts its CPU");
        }
        let commands = changed.iter().map(|queue| {
            let mask = format_mask(&wanted[*queue]);
            format!("echo {mask} > /sys/class/net/{}/queues/tx-{queue}/xps_cpus", self.card.name)
        });
        let value = match masks.iter().all(Vec::is_empty) {
            true => "off: a shard sends through any queue".into(),
            false => format!("{}: for other CPUs than they interrupt", named("TX queue", &changed)),
        };
        let fix = "run what follows as root, because what was sent is freed on the CPU that its \
                   queue interrupts";
        Check::warn(&name, value, fix).commands(commands)
    }

    fn node(&self) -> Check {
        let name = self.name("node");
        let nodes = cpu::nodes_with_cpus(self.machine);
        if nodes.len() == 1 {
            return Check::ok(&name, "the machine has one node");
        }
        let found = self.card.node.and_then(|node| nodes.iter().find(|(own, _)| *own == node));
        let Some((node, near)) = found else {
            return Check::skip(
                &name,
                "the kernel does not say which node the card is attached to",
            );
        };
        let far: Vec<usize> = self.cpus.iter().copied().filter(|cpu| !near.contains(cpu)).collect();
        if far.is_empty() {
            return Check::ok(&name, format!("node {node}, as are the CPUs with shards"));
        }
        let value =
            format!("node {node}, while other nodes have {} with shards", named("CPU", &far));
        let allowed = self.machine.cpus_allowed().unwrap_or_default();
        let usable: Vec<usize> = near
            .iter()
            .copied()
            .filter(|cpu| allowed.contains(cpu))
            .take(self.cpus.len())
            .collect();
        let cost = "because what the card writes to memory goes from one node to another";
        if usable.is_empty() {
            let near = named("CPU", near);
            return Check::warn(
                &name,
                value,
                format!("allow this process {near} (taskset, cpuset.cpus), {cost}"),
            );
        }
        let (host, list) = (self.listener.host, format_cpu_ranges(&usable));
        Check::warn(&name, value, format!("run it on the CPUs of this node, {cost}"))
            .commands([format!("ringtally serve --host {host} --cpus {list}")])
    }
}

/// Returns a number of things, in words.
fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Returns things with their numbers, in words: CPUs 0-3,8.
fn named(noun: &str, numbers: &[usize]) -> String {
    format!("{noun}{} {}", if numbers.len() == 1 { "" } else { "s" }, format_cpu_ranges(numbers))
}
