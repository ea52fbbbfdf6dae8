//! Receiving without the ring: bytes that have arrived are copied once, to where they belong.

#![allow(unsafe_code, reason = "the kernel writes to memory that was not initialized")]

use rustix::net::{RecvFlags, recv};
use socket2::Socket;
use std::io;

/// Appends what has arrived on a socket to `bytes`, at most `bytes_max` bytes, and only as many as have room without an
/// allocation. Nothing may be receiving on the socket. Returns how many there were: at the end of the stream, none.
///
/// # Errors
///
/// Nothing has arrived, or the connection has failed.
pub(crate) fn receive_now(
    socket: &Socket,
    bytes: &mut Vec<u8>,
    bytes_max: usize,
) -> io::Result<usize> {
    let room = bytes.spare_capacity_mut();
    let bytes_max = bytes_max.min(room.len());
    let ((received, _), _) = recv(socket, &mut room[..bytes_max], RecvFlags::DONTWAIT)?;
    let received = received.len();
    // SAFETY: the first `received` bytes behind the end have just been initialized, and are within the capacity.
    unsafe { bytes.set_len(bytes.len() + received) };
    Ok(received)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
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
}
