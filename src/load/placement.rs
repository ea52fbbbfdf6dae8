//! Where the client runs: off the cores of the server, if that is on this machine.

use crate::topology::{allowed_cpus, format_cpu_list, siblings};
use procfs::net::{TcpNetEntry, TcpState, tcp, tcp6};
use procfs::process::{FDTarget, Process, Status, all_processes};
use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;

/// The CPUs that a server on this machine runs on: those that its threads are pinned to, or all that
/// its process may use if none is. `None` if it is not on this machine, or if this process may not
/// look at it.
pub(super) fn server_cpus(address: SocketAddr) -> Option<Vec<usize>> {
    let listens = |entry: &TcpNetEntry| {
        let at = entry.local_address;
        entry.state == TcpState::Listen
            && at.port() == address.port()
            && (at.ip() == address.ip() || at.ip().is_unspecified())
    };
    let entries = tcp().into_iter().chain(tcp6()).flatten();
    let sockets: HashSet<u64> = entries.filter(listens).map(|entry| entry.inode).collect();
    if sockets.is_empty() {
        return None;
    }
    let mut cpus = BTreeSet::new();
    for process in all_processes().ok()?.flatten() {
        if has_one_of(&process, &sockets) {
            cpus.extend(cpus_of(&process).unwrap_or_default());
        }
    }
    (!cpus.is_empty()).then(|| cpus.into_iter().collect())
}

fn has_one_of(process: &Process, sockets: &HashSet<u64>) -> bool {
    let Ok(descriptors) = process.fd() else { return false };
    descriptors
        .flatten()
        .any(|open| matches!(open.target, FDTarget::Socket(inode) if sockets.contains(&inode)))
}

fn cpus_of(process: &Process) -> Option<Vec<usize>> {
    let whole = allowed(&process.status().ok()?)?;
    let mut pinned = BTreeSet::new();
    for thread in process.tasks().ok()?.flatten() {
        // A thread may have ended meanwhile.
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

/// The CPUs for a client that was not given any: those that are neither the server's nor share a core
/// with one of them; if there are none, those that are not the server's; if there are none, all.
pub(super) fn choose(server: Option<&[usize]>) -> Vec<usize> {
    choose_from(&allowed_cpus(), server, &siblings)
}

fn choose_from(
    allowed: &[usize],
    server: Option<&[usize]>,
    siblings: &dyn Fn(usize) -> Vec<usize>,
) -> Vec<usize> {
    let Some(server) = server else { return allowed.to_vec() };
    let without = |taken: &[usize]| -> Vec<usize> {
        allowed.iter().copied().filter(|cpu| !taken.contains(cpu)).collect()
    };
    let cores: Vec<usize> = server.iter().flat_map(|cpu| siblings(*cpu)).collect();
    [without(&[server, &cores].concat()), without(server), allowed.to_vec()]
        .into_iter()
        .find(|cpus| !cpus.is_empty())
        .unwrap_or_default()
}

/// A sentence about CPUs or cores that client and server share, if there are any.
pub(super) fn warning(client: &[usize], server: Option<&[usize]>) -> Option<String> {
    warning_of(client, server?, &siblings)
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

/// CPUs by their numbers.
fn numbered(cpus: &[usize]) -> String {
    format!("CPU{} {}", if cpus.len() == 1 { "" } else { "s" }, format_cpu_list(cpus))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CPUs n and n + 4 share a core.
    fn pairs(cpu: usize) -> Vec<usize> {
        vec![cpu % 4, cpu % 4 + 4]
    }

    #[test]
    fn a_client_keeps_off_the_servers_cores_if_it_can() {
        let all: Vec<usize> = (0..8).collect();
        assert_eq!(choose_from(&all, Some(&[0, 1]), &pairs), [2, 3, 6, 7]);
        assert_eq!(choose_from(&[0, 4], Some(&[0]), &pairs), [4]);
        assert_eq!(choose_from(&[0], Some(&[0]), &pairs), [0]);
        assert_eq!(choose_from(&all, None, &pairs), all);
    }

    #[test]
    fn what_is_shared_is_named() {
        assert_eq!(warning_of(&[2, 3], &[0, 1], &pairs), None);
        assert!(warning_of(&[1, 2], &[0, 1], &pairs).unwrap().contains("share CPU 1:"));
        assert!(warning_of(&[4, 2], &[0, 1], &pairs).unwrap().contains("on CPU 4:"));
    }

    #[test]
    fn a_listener_of_this_process_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = server_cpus(listener.local_addr().unwrap()).unwrap();
        assert!(!found.is_empty() && found.iter().all(|cpu| allowed_cpus().contains(cpu)));
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        assert_eq!(server_cpus(([127, 0, 0, 1], port).into()), None);
    }
}
