//! The few requests around a run: what the server has counted, and its reset.

use super::response::{self, join_chunks};
use super::workload::Totals;
use crate::failure::Failure;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// How long a server that promised to keep a connection may take to break the promise.
const FALSE_KEEP_ALIVE_WAIT: Duration = Duration::from_millis(50);
/// Bytes of an answer to a control request.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A server, as named by `--url`.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where to connect.
    pub address: SocketAddr,
    /// The `Host` field.
    pub host: String,
}

/// What a control request was answered with.
struct Answer {
    status: u16,
    body: Vec<u8>,
    /// The server closed the connection without having said so.
    broke_keep_alive: bool,
    says_close: bool,
}

impl Server {
    /// Parses `http://host:port` and resolves the host. Without a port, it is 80.
    pub fn parse(url: &str) -> Result<Server, Failure> {
        let wrong = |why: &str| Failure::Usage(format!("--url {url}: {why}"));
        let rest = url
            .strip_prefix("http://")
            .ok_or_else(|| wrong("only http is supported: write http://host:port"))?;
        let host = rest.strip_suffix('/').unwrap_or(rest);
        if host.contains(['/', '?', '#']) {
            return Err(wrong(
                "leave out the path: the client itself requests /event, /stats, and /reset",
            ));
        }
        if host.contains('@') {
            return Err(wrong("user names and passwords are not supported: leave them out"));
        }
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !host.ends_with(']') => (name, Some(port)),
            _ => (host, None),
        };
        let unbracketed = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        if unbracketed.is_none() && name.contains(':') {
            return Err(wrong("put the IPv6 address in brackets, as in http://[::1]:8000"));
        }
        let name = unbracketed.unwrap_or(name);
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong("the host is missing or invalid: write http://host:port"));
        }
        let port = port.map_or(Some(80), |port| {
            let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
            port.parse::<u16>().ok().filter(|port| is_number && *port > 0)
        });
        let port = port.ok_or_else(|| wrong("the port must be a number from 1 to 65535"))?;
        let address = (name, port)
            .to_socket_addrs()
            .ok()
            // Most servers listen on IPv4 only, unless they are named by an IPv6 address.
            .and_then(|addresses| addresses.min_by_key(SocketAddr::is_ipv6))
            .ok_or_else(|| wrong("this host has no address: check its name"))?;
        Ok(Server { address, host: host.to_owned() })
    }

    fn unreachable(&self, error: &io::Error) -> Failure {
        let hint = match error.kind() {
            ErrorKind::ConnectionRefused => {
                "nobody listens there: start the server, or change --url"
            }
            ErrorKind::TimedOut | ErrorKind::WouldBlock => "it does not answer in time",
            _ => "it cannot be talked to",
        };
        Failure::Environment(format!("no server at http://{}: {hint} ({error})", self.host))
    }

    /// Makes one request on a connection of its own. `linger` waits for one that is closed against
    /// its promise.
    fn ask(
        &self,
        method: &str,
        path: &str,
        timeout: Duration,
        linger: Duration,
    ) -> io::Result<Answer> {
        let mut stream = TcpStream::connect_timeout(&self.address, timeout)?;
        self.exchange(&mut stream, method, path, timeout, linger)
    }

    fn exchange(
        &self,
        stream: &mut TcpStream,
        method: &str,
        path: &str,
        timeout: Duration,
        linger: Duration,
    ) -> io::Result<Answer> {
        let deadline = Instant::now() + timeout;
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\n\r\n", self.host);
        stream.write_all(request.as_bytes())?;
        let (mut input, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            stream.set_read_timeout(Some(left))?;
            let received = match stream.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                received => received?,
            };
            input.extend_from_slice(&buffer[..received]);
            let garbage = || io::Error::new(ErrorKind::InvalidData, "its answer is not HTTP/1.1");
            match response::read(&input, received == 0).map_err(|_| garbage())? {
                Some(found) => {
                    let wire = &input[found.body_start..found.end];
                    let body = match found.is_chunked {
                        true => join_chunks(wire).map_err(|_| garbage())?,
                        false => wire.to_vec(),
                    };
                    let broke_keep_alive =
                        !found.says_close && !linger.is_zero() && ends_within(stream, linger);
                    let says_close = found.says_close;
                    return Ok(Answer { status: found.status, body, broke_keep_alive, says_close });
                }
                None if received == 0 => return Err(ErrorKind::UnexpectedEof.into()),
                None if input.len() > ANSWER_BYTES_MAX => return Err(garbage()),
                None => {}
            }
        }
    }

    /// The server's totals.
    pub fn totals(&self, timeout: Duration) -> Result<Totals, Failure> {
        let answer = self
            .ask("GET", "/stats", timeout, Duration::ZERO)
            .map_err(|error| self.unreachable(&error))?;
        read_totals(&answer).ok_or_else(|| self.not_a_challenge_server(&answer))
    }

    /// The server's totals, over a connection that is kept where the server keeps it. `None` where
    /// there was no answer, or none with the totals.
    pub fn totals_over(&self, kept: &mut Option<TcpStream>, timeout: Duration) -> Option<Totals> {
        let ask = |stream: &mut TcpStream| {
            self.exchange(stream, "GET", "/stats", timeout, Duration::ZERO).ok()
        };
        // A server may close what it was to keep: then a new connection is asked.
        let answered = kept.take().and_then(|mut stream| Some((ask(&mut stream)?, stream)));
        let (answer, stream) = match answered {
            Some(answered) => answered,
            None => {
                let mut stream = TcpStream::connect_timeout(&self.address, timeout).ok()?;
                (ask(&mut stream)?, stream)
            }
        };
        *kept = (!answer.says_close).then_some(stream);
        read_totals(&answer)
    }

    /// The server's totals, and whether a connection takes more than one request: a server
    /// that closes gets a connection a request, whether it says so or not.
    pub fn first_totals(&self, timeout: Duration) -> Result<(Totals, bool), Failure> {
        let answer = self
            .ask("GET", "/stats", timeout, FALSE_KEEP_ALIVE_WAIT)
            .map_err(|error| self.unreachable(&error))?;
        let figures = read_totals(&answer).ok_or_else(|| self.not_a_challenge_server(&answer))?;
        Ok((figures, !answer.says_close && !answer.broke_keep_alive))
    }

    fn not_a_challenge_server(&self, answer: &Answer) -> Failure {
        Failure::Environment(format!(
            "http://{}/stats answers {} without the four totals: is this a server of the challenge?",
            self.host, answer.status
        ))
    }

    /// Resets the server. Returns whether it has a reset and did it.
    pub fn reset(&self, timeout: Duration) -> Result<bool, Failure> {
        let answer = self
            .ask("POST", "/reset", timeout, Duration::ZERO)
            .map_err(|error| self.unreachable(&error))?;
        Ok((200..300).contains(&answer.status))
    }
}

fn ends_within(stream: &mut TcpStream, wait: Duration) -> bool {
    let is_set = stream.set_read_timeout(Some(wait)).is_ok();
    let waited = stream.read(&mut [0]);
    let still_open = waited
        .is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
    is_set && !still_open
}

fn read_totals(answer: &Answer) -> Option<Totals> {
    if answer.status != 200 {
        return None;
    }
    let json: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
    // Some servers write whole numbers as floats.
    let whole = |name: &str| {
        let number = json.get(name)?;
        let float = number.as_f64().filter(|float| float.fract() == 0.0 && *float >= 0.0);
        number.as_u64().or(float.map(|float| float as u64))
    };
    Some(Totals {
        total_requests: whole("totalRequests")?,
        unique_users: whole("uniqueUsers")?,
        sum: json.get("sum")?.as_f64()?,
        avg: json.get("avg")?.as_f64()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read_as_servers_of_any_language_write_them() {
        let read = |text: &str| {
            let body = text.as_bytes().to_vec();
            read_totals(&Answer { status: 200, body, broke_keep_alive: false, says_close: false })
        };
        let expected =
            Totals { total_requests: 1_000_000, unique_users: 75_000, sum: 5e8, avg: 500.0 };
        for text in [
            r#"{"totalRequests":1000000,"uniqueUsers":75000,"sum":5.0E8,"avg":500.0}"#,
            r#"{"avg":500,"sum":500000000,"uniqueUsers":75000,"totalRequests":1e6,"extra":null}"#,
        ] {
            assert_eq!(read(text), Some(expected), "{text}");
        }
        for text in ["", "[]", r#"{"totalRequests":1.5,"uniqueUsers":1,"sum":1,"avg":1}"#] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn a_url_is_a_host_and_a_port() {
        for (url, address) in [
            ("http://127.0.0.1:8000", "127.0.0.1:8000"),
            ("http://127.0.0.1:8000/", "127.0.0.1:8000"),
            ("http://127.0.0.1", "127.0.0.1:80"),
            ("http://[::1]", "[::1]:80"),
            ("http://localhost:65535", "127.0.0.1:65535"),
            ("http://[::1]:9", "[::1]:9"),
        ] {
            assert_eq!(Server::parse(url).unwrap().address.to_string(), address);
        }
        for (bad, expected) in [
            ("https://x", "only http"),
            ("127.0.0.1:8000", "only http"),
            ("http://", "missing or invalid"),
            ("http://:8000", "missing or invalid"),
            ("http://[]:8000", "missing or invalid"),
            ("http://a b", "missing or invalid"),
            ("http://u@127.0.0.1:1", "user names"),
            ("http://127.0.0.1:1/x", "leave out the path"),
            ("http://127.0.0.1:1?x", "leave out the path"),
            ("http://::1:8000", "in brackets"),
            ("http://127.0.0.1:0", "from 1 to 65535"),
            ("http://127.0.0.1:65536", "from 1 to 65535"),
            ("http://127.0.0.1:99999", "from 1 to 65535"),
            ("http://127.0.0.1:+1", "from 1 to 65535"),
            ("http://127.0.0.1:", "from 1 to 65535"),
        ] {
            let failure = Server::parse(bad).unwrap_err();
            assert!(matches!(failure, Failure::Usage(_)), "{bad}: {failure}");
            assert!(failure.to_string().contains(expected), "{bad}: {failure}");
        }
    }
}
