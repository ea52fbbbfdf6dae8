//! The first response after a pause, when the server has to wake up, on new and on held connections.

use crate::topology::pin_to;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// The pauses, on a logarithmic scale.
const PAUSES_MS: [u64; 5] = [20, 36, 63, 112, 200];
/// The number of responses that are timed, half of them on new connections.
pub(super) const RESPONSES: usize = 50;
const _: () = assert!(RESPONSES.is_multiple_of(2 * PAUSES_MS.len()));
/// The number of connections that are held.
const HELD: usize = 4;
/// The longest time that a response may take before the server is given up.
const RESPONSE_MAX: Duration = Duration::from_secs(10);

const EVENT: &[u8] =
    b"POST /event HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
    Content-Length: 29\r\n\r\n{\"userId\":\"user_1\",\"value\":1}";

/// Returns the median, the 99th percentile, and the mean, in µs, of the first responses after a pause. The client runs
/// on `cpu`.
///
/// # Errors
///
/// If the server does not respond.
pub(super) fn first_responses_us(address: SocketAddr, cpu: usize) -> io::Result<[f64; 3]> {
    let timed = thread::Builder::new().spawn(move || {
        pin_to(cpu);
        first_responses(address)
    })?;
    let taken = timed.join().map_err(|_| io::Error::other("the client panicked"))??;
    let mut us: Vec<f64> = taken.iter().map(|time| time.as_secs_f64() * 1e6).collect();
    us.sort_unstable_by(f64::total_cmp);
    let at = |percent: usize| us[(us.len() * percent).div_ceil(100) - 1];
    Ok([at(50), at(99), us.iter().sum::<f64>() / us.len() as f64])
}

fn first_responses(address: SocketAddr) -> io::Result<Vec<Duration>> {
    let mut held: VecDeque<TcpStream> = VecDeque::new();
    for _ in 0..HELD {
        held.push_back(connect_and_respond(address)?);
    }
    let mut taken = Vec::new();
    for number in 0..RESPONSES {
        thread::sleep(Duration::from_millis(PAUSES_MS[number / 2 % PAUSES_MS.len()]));
        let started = Instant::now();
        // A new connection takes the place of the oldest one.
        let oldest = held.pop_front();
        let kept = oldest.filter(|_| number % 2 == 1).and_then(|mut connection| {
            // A server that closes its connections gets a new one, as from any client.
            respond(&mut connection).ok().map(|()| connection)
        });
        let connection = match kept {
            Some(connection) => connection,
            None => connect_and_respond(address)?,
        };
        taken.push(started.elapsed());
        held.push_back(connection);
    }
    Ok(taken)
}

fn connect_and_respond(address: SocketAddr) -> io::Result<TcpStream> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(RESPONSE_MAX))?;
    respond(&mut connection)?;
    Ok(connection)
}

/// Sends an event, and waits for the beginning of its response.
fn respond(connection: &mut TcpStream) -> io::Result<()> {
    let mut bytes = [0; 4096];
    // Discard the rest of the previous response.
    connection.set_nonblocking(true)?;
    let rest = connection.read(&mut bytes);
    connection.set_nonblocking(false)?;
    if !matches!(&rest, Ok(1..)) && !rest.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    connection.write_all(EVENT)?;
    match connection.read(&mut bytes)? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
