//! Listening sockets: one per shard, all on the same port, which is exclusive to this process.

use crate::engine::BACKLOG;
use crate::failure::Failure;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The time that a port in use has to become free. The kernel can hold a listener a moment longer than its process lives.
pub(super) const PORT_PATIENCE: Duration = Duration::from_millis(500);
/// The time that a stopped server waits for its port to become free.
const FREE_PATIENCE: Duration = Duration::from_secs(1);

/// Opens one listening socket per shard, all on the same port, which must not be in use by another process.
pub(super) fn listen(address: SocketAddr, shards: usize) -> Result<Vec<Socket>, Failure> {
    let refused = |error: io::Error| refusal(address, &error);
    let patience = Instant::now() + PORT_PATIENCE;
    let first = loop {
        match listen_alone(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < patience => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => break result.map_err(refused)?,
        }
    };
    let bound = first.local_addr().map_err(refused)?;
    let mut listeners = vec![first];
    for _ in 1..shards {
        let socket = open(address).map_err(refused)?;
        socket
            .set_reuse_port(true)
            .and_then(|()| socket.bind(&bound))
            .and_then(|()| socket.listen(BACKLOG.into()))
            .map_err(refused)?;
        listeners.push(socket);
    }
    Ok(listeners)
}

/// Returns one listening socket per shard on the address of an inherited socket, and whether all of them are the inherited
/// socket. SO_REUSEPORT groups only sockets of the same user, so if a service manager of another user opened the socket,
/// the shards share it.
pub(super) fn listen_beside(inherited: Socket, shards: usize) -> io::Result<(Vec<Socket>, bool)> {
    let bound = inherited.local_addr()?;
    let address = bound.as_socket().ok_or(ErrorKind::Unsupported)?;
    inherited.set_reuse_port(true)?;
    let beside = || -> io::Result<Socket> {
        let socket = open(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&bound)?;
        socket.listen(BACKLOG.into())?;
        Ok(socket)
    };
    let group: io::Result<Vec<Socket>> = (1..shards).map(|_| beside()).collect();
    let (others, is_one) = match group {
        Ok(others) => (others, false),
        Err(_) => {
            let clones: io::Result<_> = (1..shards).map(|_| inherited.try_clone()).collect();
            (clones?, true)
        }
    };
    Ok((std::iter::once(inherited).chain(others).collect(), is_one))
}

fn refusal(address: SocketAddr, error: &io::Error) -> Failure {
    let port = address.port();
    let what = match error.kind() {
        ErrorKind::AddrInUse => format!(
            "port {port} is in use: stop the process that uses it, or pass another --port (0 picks a \
             free one)"
        ),
        ErrorKind::AddrNotAvailable => {
            format!("no interface here has the address {}: pass another --host", address.ip())
        }
        ErrorKind::PermissionDenied => format!(
            "port {port} is reserved for root: pass a --port from 1024, or grant CAP_NET_BIND_SERVICE"
        ),
        _ => format!("cannot listen on {address}: pass another --host or --port"),
    };
    Failure::Environment(format!("{what} ({error})"))
}

fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // This way, connections of an earlier run in TIME_WAIT do not block the port.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Accepted connections inherit this on Linux.
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

/// Listens on a port that must be free. SO_REUSEPORT is set after the bind. If it were set before, this server would silently
/// share the port of another server that has also set it.
fn listen_alone(address: SocketAddr) -> io::Result<Socket> {
    let socket = open(address)?;
    socket.bind(&address.into())?;
    socket.set_reuse_port(true)?;
    socket.listen(BACKLOG.into())?;
    Ok(socket)
}

/// Waits until it is possible to listen on the port, so that the port is free when this process has ended.
pub(super) fn wait_until_free(address: SocketAddr) {
    let patience = Instant::now() + FREE_PATIENCE;
    while listen_alone(address).is_err() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(1));
    }
}
