//! Receives and sends without the ring if a socket is ready: large bodies are copied only once, to their destination, and a
//! connection's last response does not need a completion.

#![allow(unsafe_code, reason = "the kernel writes to memory that was not initialized")]

use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::Socket;
use std::io;

/// Appends the bytes that have arrived on a socket to `bytes`: at most `bytes_max`, and only as many as fit without an
/// allocation. No receive may be in progress on the socket. Returns their number, which is 0 at the end of the stream.
///
/// # Errors
///
/// If nothing has arrived, or the connection has failed.
pub(crate) fn receive_now(
    socket: &Socket,
    bytes: &mut Vec<u8>,
    bytes_max: usize,
) -> io::Result<usize> {
    let room = bytes.spare_capacity_mut();
    let bytes_max = bytes_max.min(room.len());
    let ((received, _), _) = recv(socket, &mut room[..bytes_max], RecvFlags::DONTWAIT)?;
    let received = received.len();
    // SAFETY: the first `received` bytes after the end have just been initialized, and are within the capacity.
    unsafe { bytes.set_len(bytes.len() + received) };
    Ok(received)
}

/// Sends the bytes that a socket takes immediately. No send may be in progress on the socket. Returns the number of bytes that
/// it took.
///
/// # Errors
///
/// If the socket does not take anything now, or the connection has failed.
pub(crate) fn send_now(socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
    Ok(send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Type};
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn what_has_arrived_is_appended_up_to_the_limit_and_the_room() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let receiver = Socket::from(listener.accept().unwrap().0);
        let mut bytes = Vec::with_capacity(20);
        bytes.extend_from_slice(b"so far ");
        let nothing = receive_now(&receiver, &mut bytes, 5).map_err(|error| error.kind());
        assert_eq!(nothing, Err(io::ErrorKind::WouldBlock));
        sender.write_all(&[b'x'; 100]).unwrap();
        while receive_now(&receiver, &mut bytes, 5).is_err() {}
        assert_eq!(bytes, b"so far xxxxx");
        receive_now(&receiver, &mut bytes, 1000).unwrap();
        assert_eq!((bytes.len(), bytes.capacity()), (20, 20));
        drop(sender);
        bytes = Vec::with_capacity(1000);
        assert_eq!(receive_now(&receiver, &mut bytes, 1000).unwrap(), 87);
        assert_eq!(receive_now(&receiver, &mut bytes, 1000).unwrap(), 0, "the end");
    }

    #[test]
    fn a_socket_takes_what_it_has_room_for() {
        let (sender, mut receiver) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
        let bytes = vec![b'x'; 4 << 20];
        let sent = send_now(&sender, &bytes).unwrap();
        assert!((1..bytes.len()).contains(&sent), "{sent}");
        let full = send_now(&sender, &bytes).map_err(|error| error.kind());
        assert_eq!(full, Err(io::ErrorKind::WouldBlock));
        drop(sender);
        let mut received = Vec::new();
        receiver.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), sent);
        let (sender, receiver) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
        drop(receiver);
        let gone = send_now(&sender, b"x").map_err(|error| error.kind());
        assert_eq!(gone, Err(io::ErrorKind::BrokenPipe));
    }
}
