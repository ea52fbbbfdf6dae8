//! The TCP sockets that listen on this machine, and the processes that have them.

use procfs::net::{TcpNetEntries, TcpNetEntry};
use procfs::process::{FDTarget, Process};
use procfs::{FromBufReadSI, ProcResult, current_system_info};
use std::fs::File;
use std::io::{self, BufRead, BufReader};

/// What `/proc/net/tcp` and `/proc/net/tcp6` have as the state of a socket that listens.
const LISTENS: &str = "0A";
/// The column of the state.
const STATE: usize = 3;

/// Returns the sockets that listen, on IPv4 and IPv6, in the network namespace of this process.
///
/// The kernel lists them before all others (`tcp_seq_start` in `net/ipv4/tcp_ipv4.c`). The rest is not read, because it takes
/// the kernel milliseconds for every ten thousand connections, including those in TIME_WAIT.
///
/// # Errors
///
/// Fails if `/proc/net/tcp` cannot be read. If only `/proc/net/tcp6` cannot be read, which a kernel without IPv6 lacks, returns
/// the sockets of IPv4.
pub(crate) fn sockets() -> ProcResult<Vec<TcpNetEntry>> {
    let mut sockets = first_listening(BufReader::new(File::open("/proc/net/tcp")?))?;
    if let Ok(file) = File::open("/proc/net/tcp6") {
        sockets.extend(first_listening(BufReader::new(file)).unwrap_or_default());
    }
    Ok(sockets)
}

/// Returns the inodes of a process's sockets; none if this process may not inspect it.
pub(crate) fn sockets_of(process: &Process) -> impl Iterator<Item = u64> {
    let descriptors = process.fd().into_iter().flatten().flatten();
    descriptors.filter_map(|descriptor| match descriptor.target {
        FDTarget::Socket(inode) => Some(inode),
        _ => None,
    })
}

/// Returns the sockets before the first one that does not listen.
fn first_listening(table: impl BufRead) -> ProcResult<Vec<TcpNetEntry>> {
    let mut lines = table.lines();
    let mut first = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        let line = line?;
        if line.split_whitespace().nth(STATE) != Some(LISTENS) {
            break;
        }
        first.push('\n');
        first.push_str(&line);
    }
    Ok(TcpNetEntries::from_buf_read(io::Cursor::new(first), current_system_info())?.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use procfs::net::TcpState;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn listening_sockets_are_found_and_connections_are_not() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let address = listener.local_addr().unwrap();
            let _connection = TcpStream::connect(address).unwrap();
            let found = sockets().unwrap();
            assert_eq!(found.iter().filter(|socket| socket.local_address == address).count(), 1);
            assert!(found.iter().all(|socket| socket.state == TcpState::Listen));
        }
    }

    /// Reading the whole table would fail at its last line.
    #[test]
    fn the_table_is_read_up_to_the_first_connection() {
        let line =
            |state: &&str| format!("0: 0100007F:1F90 00000000:0000 {state} 0:0 0:0 0 0 0 77 1 0\n");
        let table = |states: &[&str]| {
            let lines: String = states.iter().map(line).collect();
            first_listening(io::Cursor::new(format!("sl local rem st\n{lines}")))
                .map(|all| all.len())
        };
        assert_eq!(table(&[]).unwrap(), 0);
        assert_eq!(table(&["0A", "0A"]).unwrap(), 2);
        assert_eq!(table(&["0A", "06", "nonsense"]).unwrap(), 1);
        assert_eq!(first_listening(io::empty()).unwrap().len(), 0);
    }
}
