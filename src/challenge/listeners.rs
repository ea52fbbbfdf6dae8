//! The listeners on a port. If a server shares its port with an older one, it is unknown which of them responds.

use crate::listening;
use procfs::net::TcpNetEntry;
use procfs::process::Process;
use std::collections::BTreeSet;

/// The listeners on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listeners {
    /// Only processes of the server.
    Own,
    /// The server and somebody else.
    Shared,
    /// Somebody else alone.
    Foreign,
    /// It cannot be determined.
    Unknown,
}

/// Returns who listens on a port, as seen from the processes of a server.
pub(super) fn of(port: u16, processes: &[Process]) -> Listeners {
    let Ok(sockets) = listening::sockets() else { return Listeners::Unknown };
    let is_listener = |socket: &TcpNetEntry| socket.local_address.port() == port;
    let all: BTreeSet<u64> =
        sockets.into_iter().filter(is_listener).map(|socket| socket.inode).collect();
    judge(&all, &processes.iter().flat_map(listening::sockets_of).collect())
}

fn judge(all: &BTreeSet<u64>, own: &BTreeSet<u64>) -> Listeners {
    match (all.is_disjoint(own), all.is_subset(own)) {
        _ if all.is_empty() => Listeners::Unknown,
        (true, _) => Listeners::Foreign,
        (false, true) => Listeners::Own,
        (false, false) => Listeners::Shared,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn listeners_are_found_by_their_sockets() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(of(port, &[Process::myself().unwrap()]), Listeners::Own);
        assert_eq!(of(port, &[]), Listeners::Foreign);
        drop(listener);
        let set = |inodes: &[u64]| inodes.iter().copied().collect::<BTreeSet<_>>();
        for (all, own, found) in [
            (&[][..], &[1][..], Listeners::Unknown),
            (&[1], &[1, 2], Listeners::Own),
            (&[1, 3], &[1, 2], Listeners::Shared),
            (&[3], &[1, 2], Listeners::Foreign),
        ] {
            assert_eq!(judge(&set(all), &set(own)), found);
        }
    }
}
