//! Places the client on CPUs away from the server's cores, if the server is on this machine.

use crate::listening;
use crate::topology::{self, alike, core_kind, format_cpu_list, siblings};
use procfs::net::TcpNetEntry;
use procfs::process::{Process, Status, all_processes};
use std::collections::{BTreeSet, HashSet};
use std::net::{SocketAddr, UdpSocket};

/// The location of a server, as far as this process can determine it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// Nothing on this machine listens at its address.
    Elsewhere,
    /// On these CPUs of this machine: the CPUs that its threads are pinned to, or all CPUs that its process may use if
    /// no thread is pinned.
    Here(Vec<usize>),
    /// On this machine, in a process that this one may not inspect.
    Hidden,
}

impl Whereabouts {
    fn cpus(&self) -> Option<&[usize]> {
        match self {
            Whereabouts::Here(cpus) => Some(cpus),
            Whereabouts::Elsewhere | Whereabouts::Hidden => None,
        }
    }
}

/// Other work that may have run on the CPUs of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Rivals {
    /// Other work, but not the server.
    #[default]
    Others,
    /// The server as well.
    Server,
    /// The server as well, if it runs on these CPUs.
    Unknown,
}

impl Rivals {
    /// Returns the rivals of a client on these CPUs.
    pub(super) fn of(client: &[usize], server: &Whereabouts) -> Rivals {
        match server {
            Whereabouts::Hidden => Rivals::Unknown,
            Whereabouts::Here(cpus) if client.iter().any(|cpu| cpus.contains(cpu)) => {
                Rivals::Server
            }
            Whereabouts::Here(_) | Whereabouts::Elsewhere => Rivals::Others,
        }
    }

    /// Returns the rivals as the subject of a sentence.
    pub(super) fn in_words(self) -> &'static str {
        match self {
            Rivals::Others => "other work",
            Rivals::Server => "the server, which shares it, or other work",
            Rivals::Unknown => "other work, perhaps the server,",
        }
    }
}

/// Finds the server at an address.
pub(super) fn find(address: SocketAddr) -> Whereabouts {
    // An IPv6 socket can be bound to an IPv4 address, as Java does.
    let ip = address.ip().to_canonical();
    let is_own = is_own(address);
    let listens = |entry: &TcpNetEntry| {
        let at = entry.local_address;
        let at_ip = at.ip().to_canonical();
        at.port() == address.port() && (at_ip == ip || (at_ip.is_unspecified() && is_own))
    };
    let entries = listening::sockets().unwrap_or_default().into_iter();
    let mut sockets: HashSet<u64> = entries.filter(listens).map(|entry| entry.inode).collect();
    if sockets.is_empty() {
        return Whereabouts::Elsewhere;
    }
    let mut cpus = BTreeSet::new();
    for process in all_processes().into_iter().flatten().flatten() {
        let own: HashSet<u64> = listening::sockets_of(&process).collect();
        if own.iter().any(|inode| sockets.contains(inode)) {
            sockets.retain(|inode| !own.contains(inode));
            cpus.extend(cpus_of(&process).unwrap_or_default());
        }
    }
    // A remaining socket belongs to a process that this one may not inspect. That process counts as the server as well.
    match sockets.is_empty() && !cpus.is_empty() {
        true => Whereabouts::Here(cpus.into_iter().collect()),
        false => Whereabouts::Hidden,
    }
}

/// Reports whether an address belongs to this machine: a socket can be bound only to such addresses.
fn is_own(mut address: SocketAddr) -> bool {
    address.set_port(0);
    UdpSocket::bind(address).is_ok()
}

fn cpus_of(process: &Process) -> Option<Vec<usize>> {
    let whole = allowed(&process.status().ok()?)?;
    let mut pinned = BTreeSet::new();
    for thread in process.tasks().ok()?.flatten() {
        // A thread may have ended in the meantime.
        let own = thread.status().ok().and_then(|status| allowed(&status)).unwrap_or_default();
        if own.len() < whole.len() {
            pinned.extend(own);
        }
    }
    Some(if pinned.is_empty() { whole } else { pinned.into_iter().collect() })
}

fn allowed(status: &Status) -> Option<Vec<usize>> {
    let ranges = status.cpus_allowed_list.as_ref()?;
    let cpus = ranges.iter().flat_map(|(first, last)| *first..=*last);
    Some(cpus.filter_map(|cpu| usize::try_from(cpu).ok()).collect())
}

/// Returns the CPUs for a client that was not given any: CPUs that do not share a core with the server; failing that,
/// CPUs that are not the server's; failing that, all CPUs. Among these, cores of the server's kind are preferred.
pub(super) fn choose(server: &Whereabouts) -> Result<Vec<usize>, topology::Error> {
    let allowed = topology::choose(None, &topology::allowed_cpus())?;
    Ok(choose_from(&allowed, server.cpus(), &siblings, &core_kind))
}

fn choose_from(
    allowed: &[usize],
    server: Option<&[usize]>,
    siblings: &dyn Fn(usize) -> Vec<usize>,
    kind: &dyn Fn(usize) -> u32,
) -> Vec<usize> {
    let Some(server) = server else { return allowed.to_vec() };
    let without = |taken: &[usize]| -> Vec<usize> {
        allowed.iter().copied().filter(|cpu| !taken.contains(cpu)).collect()
    };
    let cores: Vec<usize> = server.iter().flat_map(|cpu| siblings(*cpu)).collect();
    [without(&[server, &cores].concat()), without(server), allowed.to_vec()]
        .into_iter()
        .find(|cpus| !cpus.is_empty())
        .map(|cpus| alike(&cpus, server, kind))
        .unwrap_or_default()
}

/// Returns warnings about the CPUs of client and server.
pub(super) fn warnings(client: &[usize], server: &Whereabouts, is_chosen: bool) -> Vec<String> {
    match server {
        Whereabouts::Elsewhere => Vec::new(),
        Whereabouts::Here(server) => {
            let shared = warning_of(client, server, &siblings);
            shared.into_iter().chain(warning_of_kinds(client, server, &core_kind)).collect()
        }
        Whereabouts::Hidden => {
            let pinned = if is_chosen { "" } else { "no thread of the client was pinned, and " };
            vec![format!(
                "the server belongs to a process of this machine that this user may not look at: \
                 {pinned}whether client and server shared CPUs is unknown; run the client as the \
                 server's user or as root, or give each its own CPUs with taskset and --cpus"
            )]
        }
    }
}

fn warning_of_kinds(
    client: &[usize],
    server: &[usize],
    kind: &dyn Fn(usize) -> u32,
) -> Option<String> {
    let kinds = |cpus: &[usize]| cpus.iter().map(|cpu| kind(*cpu)).collect::<BTreeSet<_>>();
    (kinds(client) != kinds(server)).then(|| {
        "client and server run on different kinds of core: choose cores of one kind with --cpus, \
         which ringtally doctor lists"
            .into()
    })
}

fn warning_of(
    client: &[usize],
    server: &[usize],
    siblings: &dyn Fn(usize) -> Vec<usize>,
) -> Option<String> {
    let shared: Vec<usize> = client.iter().copied().filter(|cpu| server.contains(cpu)).collect();
    if !shared.is_empty() {
        return Some(format!(
            "client and server share {}: give each its own with taskset or --cpus",
            numbered(&shared)
        ));
    }
    let shares_core = |cpu: &usize| siblings(*cpu).iter().any(|other| server.contains(other));
    let shared: Vec<usize> = client.iter().copied().filter(shares_core).collect();
    (!shared.is_empty()).then(|| {
        format!(
            "the client shares cores with the server on {}: choose others with --cpus",
            numbered(&shared)
        )
    })
}

/// Formats CPUs by their numbers.
fn numbered(cpus: &[usize]) -> String {
    format!("CPU{} {}", if cpus.len() == 1 { "" } else { "s" }, format_cpu_list(cpus))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the CPUs of a core, on a machine with CPUs n and n + 4 on the same core.
    fn pairs(cpu: usize) -> Vec<usize> {
        vec![cpu % 4, cpu % 4 + 4]
    }

    fn equal(_: usize) -> u32 {
        0
    }

    #[test]
    fn a_client_keeps_off_the_servers_cores_if_it_can() {
        let all: Vec<usize> = (0..8).collect();
        assert_eq!(choose_from(&all, Some(&[0, 1]), &pairs, &equal), [2, 3, 6, 7]);
        assert_eq!(choose_from(&[0, 4], Some(&[0]), &pairs, &equal), [4]);
        assert_eq!(choose_from(&[0], Some(&[0]), &pairs, &equal), [0]);
        assert_eq!(choose_from(&all, None, &pairs, &equal), all);
    }

    #[test]
    fn a_client_gets_cores_of_the_servers_kind_if_there_are_any() {
        let all: Vec<usize> = (0..8).collect();
        let kind = |cpu: usize| u32::from(cpu < 4);
        let alone = |cpu: usize| vec![cpu];
        assert_eq!(choose_from(&all, Some(&[0, 1]), &alone, &kind), [2, 3]);
        assert_eq!(choose_from(&all, Some(&[5]), &alone, &kind), [4, 6, 7]);
        assert_eq!(choose_from(&all, Some(&[0, 1, 2, 3]), &alone, &kind), [4, 5, 6, 7]);
        assert_eq!(warning_of_kinds(&[2, 3], &[0, 1], &kind), None);
        assert!(warning_of_kinds(&[4], &[0, 1], &kind).unwrap().contains("kinds of core"));
    }

    #[test]
    fn what_is_shared_is_named() {
        assert_eq!(warning_of(&[2, 3], &[0, 1], &pairs), None);
        assert!(warning_of(&[1, 2], &[0, 1], &pairs).unwrap().contains("share CPU 1:"));
        assert!(warning_of(&[4, 2], &[0, 1], &pairs).unwrap().contains("on CPU 4:"));
        let server = Whereabouts::Here(vec![0, 1]);
        assert_eq!(Rivals::of(&[1, 2], &server), Rivals::Server);
        assert_eq!(Rivals::of(&[2], &server), Rivals::Others);
        assert_eq!(Rivals::of(&[2], &Whereabouts::Hidden), Rivals::Unknown);
        assert!(warnings(&[0], &Whereabouts::Hidden, false)[0].contains("no thread"));
        assert_eq!(warnings(&[0], &Whereabouts::Elsewhere, false), Vec::<String>::new());
    }

    #[test]
    fn a_listener_of_this_process_is_found_whatever_its_family() {
        for bound in ["127.0.0.1:0", "0.0.0.0:0", "[::ffff:127.0.0.1]:0", "[::]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(bound) else { continue };
            let port = listener.local_addr().unwrap().port();
            let Whereabouts::Here(found) = find(([127, 0, 0, 1], port).into()) else {
                panic!("{bound} is not found")
            };
            let is_allowed = |cpu| topology::allowed_cpus().contains(cpu);
            assert!(!found.is_empty() && found.iter().all(is_allowed));
            // An address for documentation, which no machine has.
            assert_eq!(find(([192, 0, 2, 1], port).into()), Whereabouts::Elsewhere, "{bound}");
            drop(listener);
            assert_eq!(find(([127, 0, 0, 1], port).into()), Whereabouts::Elsewhere);
        }
    }
}
