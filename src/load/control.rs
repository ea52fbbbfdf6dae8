//! The few requests around a run, which read the server's totals and reset them.

use super::clock::ClockOffset;
use super::response::{self, join_chunks};
use super::workload::Totals;
use crate::failure::Failure;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// The time to wait for a server to close a connection despite its promise to keep it.
const FALSE_KEEP_ALIVE_WAIT: Duration = Duration::from_millis(50);
/// The most bytes of a response to a control request.
const RESPONSE_BYTES_MAX: usize = 1 << 20;
/// The time that a server may take to name its engine. The run does not depend on the answer.
const ENGINE_WAIT: Duration = Duration::from_secs(1);
/// The shortest wait for a socket. It lets bytes that have arrived be read even after the deadline.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// A server, as named by `--url`.
#[derive(Clone, Debug)]
pub struct Server {
    /// The addresses that its name resolves to, at least one. They are tried in this order until one listens.
    pub addresses: Vec<SocketAddr>,
    /// The value of the `Host` field.
    pub host: String,
}

impl Server {
    /// Parses `http://host:port` and resolves the host. The default port is 80.
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
        let unknown = |why: &dyn fmt::Display| {
            Failure::Environment(format!(
                "--url {url}: {name} has no address ({why}): check the name"
            ))
        };
        let found = (name, port).to_socket_addrs().map_err(|error| unknown(&error))?;
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in found {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        // Most servers listen on IPv4 only, unless they are named by an IPv6 address.
        addresses.sort_by_key(SocketAddr::is_ipv6);
        match addresses.is_empty() {
            false => Ok(Server { addresses, host: host.to_owned() }),
            true => Err(unknown(&"none was found")),
        }
    }

    /// Returns a list of the server's addresses for a message, or an empty string if there is only one.
    fn tried(&self) -> String {
        let addresses: Vec<String> = self.addresses.iter().map(SocketAddr::to_string).collect();
        match addresses.len() {
            1 => String::new(),
            _ => format!(" ({})", addresses.join(", ")),
        }
    }

    /// Connects to the first of the server's addresses that listens. If none does, a refusal is the most useful error,
    /// because it shows that the machine exists.
    fn connect(&self, timeout: Duration) -> io::Result<TcpStream> {
        let mut failed = io::Error::from(ErrorKind::NotFound);
        for address in &self.addresses {
            match TcpStream::connect_timeout(address, timeout) {
                Ok(stream) => return Ok(stream),
                Err(_) if failed.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

/// The reason why a control request failed.
#[derive(Debug)]
pub(super) enum ControlError {
    /// The connection could not be opened, or it broke.
    Io(io::Error),
    /// No response arrived within this time.
    Silent(Duration),
    /// The connection ended before the response was complete.
    Closed,
    /// The response is not HTTP/1.1.
    Garbled,
    /// The server refused the request with 503.
    Unavailable(&'static str),
    /// The response to `GET /stats` has this status and lacks the four totals for this reason.
    NoTotals(u16, String),
}

impl From<io::Error> for ControlError {
    fn from(error: io::Error) -> ControlError {
        ControlError::Io(error)
    }
}

impl ControlError {
    /// Describes what happened and what to do about it.
    pub(super) fn sentence(&self, server: &Server) -> String {
        let host = &server.host;
        match self {
            ControlError::Io(error) if error.kind() == ErrorKind::ConnectionRefused => format!(
                "no server listens at http://{host}{}: start the server, or pass its address with --url",
                server.tried()
            ),
            ControlError::Io(error) => format!(
                "cannot talk to the server at http://{host}: {error}: check that it is running, or \
                 pass its address with --url"
            ),
            ControlError::Silent(timeout) => format!(
                "the server at http://{host} did not respond within {}: check what it is doing, or \
                 raise --timeout",
                humantime::format_duration(*timeout)
            ),
            ControlError::Closed => format!(
                "the server at http://{host} closed the connection without a response: check its \
                 log, and whether it has room for more connections"
            ),
            ControlError::Garbled => format!(
                "what responds at http://{host} is not an HTTP/1.1 server: pass the address of one \
                 with --url"
            ),
            ControlError::Unavailable(path) => format!(
                "the server at http://{host} refused {path} with status 503: it has no room for \
                 another connection, or cannot count events: use fewer connections, or raise its \
                 limit"
            ),
            ControlError::NoTotals(status, why) => format!(
                "http://{host}/stats responded with status {status}, without the four totals: {why}: \
                 pass the address of a server written for the challenge with --url"
            ),
        }
    }

    /// Converts the error into the reason why a command ends.
    pub(super) fn into_failure(self, server: &Server) -> Failure {
        Failure::Environment(self.sentence(server))
    }
}

/// The result of a `POST /reset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reset {
    /// The totals are zero.
    Done,
    /// The server does not offer a reset.
    Missing,
    /// The server refused to reset, with this status.
    Refused(u16),
}

/// A response to a control request.
struct Response {
    status: u16,
    body: Vec<u8>,
    says_close: bool,
}

/// Makes control requests to one server, one at a time.
pub(super) struct Control<'a> {
    server: &'a Server,
    timeout: Duration,
    /// The token of `POST /reset`.
    token: Option<Arc<[u8]>>,
    /// Whether to keep the connection, because a full server may not accept a new one when it is needed. If the server
    /// serves only one connection at a time, the connection must be closed instead.
    keeps: bool,
    kept: Option<TcpStream>,
    /// The first address that listened. All later requests use only this address.
    address: Option<SocketAddr>,
    /// The difference between the clocks, as far as responses reveal it.
    clock: Option<ClockOffset>,
}

impl<'a> Control<'a> {
    /// Creates a client for a server that may take this long to respond.
    pub(super) fn new(server: &'a Server, timeout: Duration, keeps: bool) -> Control<'a> {
        Control { server, timeout, token: None, keeps, kept: None, address: None, clock: None }
    }

    /// Sets the token for `POST /reset`.
    pub(super) fn with_token(mut self, token: Option<Arc<[u8]>>) -> Control<'a> {
        self.token = token;
        self
    }

    /// Restricts the client to a single address of the server.
    pub(super) fn at(mut self, address: SocketAddr) -> Control<'a> {
        self.address = Some(address);
        self
    }

    /// Returns the server's totals, and whether a connection takes more than one request. A server that closes
    /// connections gets a new connection for each request, whether or not it announces the close.
    pub(super) fn first_totals(&mut self) -> Result<(Totals, bool), ControlError> {
        let (response, keeps_alive) = self.probe()?;
        let totals = read_totals(&response)?;
        // A single connection that ends may have been an accident.
        let keeps_alive = keeps_alive || (!response.says_close && self.probe()?.1);
        Ok((totals, keeps_alive))
    }

    /// Requests the totals on a new connection, and reports whether the server keeps it open afterwards.
    fn probe(&mut self) -> Result<(Response, bool), ControlError> {
        let mut stream = self.connect()?;
        let response = self.exchange(&mut stream, "GET", "/stats")?;
        let keeps_alive = !response.says_close && !ends_within(&stream, FALSE_KEEP_ALIVE_WAIT)?;
        self.kept = (self.keeps && keeps_alive).then_some(stream);
        Ok((response, keeps_alive))
    }

    /// Returns the server's totals.
    pub(super) fn totals(&mut self) -> Result<Totals, ControlError> {
        read_totals(&self.ask("GET", "/stats")?)
    }

    /// Returns the lead of this machine's clock over the server's, if responses had a `Date`.
    pub(super) fn clock(&self) -> Option<ClockOffset> {
        self.clock
    }

    /// Returns the status if the server refuses a `POST` to `path` because it does not know the path. The request does
    /// not have a body, so it does not change anything.
    pub(super) fn lacks(&mut self, path: &'static str) -> Option<u16> {
        // If the server does not respond, the run will show why.
        let status = self.ask("POST", path).ok()?.status;
        matches!(status, 404 | 405 | 501).then_some(status)
    }

    /// Returns the engine and the version that a ringtally server names in its metrics; `None` for any other server.
    pub(super) fn build_info(&mut self) -> [Option<String>; 2] {
        let timeout = self.timeout;
        self.timeout = timeout.min(ENGINE_WAIT);
        let response = self.ask("GET", "/metrics");
        self.timeout = timeout;
        let found = response.ok().filter(|response| response.status == 200);
        ["engine", "version"].map(|label| label_of(&found.as_ref()?.body, label))
    }

    /// Resets the server.
    pub(super) fn reset(&mut self) -> Result<Reset, ControlError> {
        Ok(match self.ask("POST", "/reset")?.status {
            200..300 => Reset::Done,
            404 | 405 | 501 => Reset::Missing,
            503 => return Err(ControlError::Unavailable("POST /reset")),
            status => Reset::Refused(status),
        })
    }

    /// Sends a request that may be repeated, on the connection that was kept or on a new one.
    fn ask(&mut self, method: &str, path: &str) -> Result<Response, ControlError> {
        if let Some(mut stream) = self.kept.take() {
            match self.exchange(&mut stream, method, path) {
                // The server may have closed it since the last request.
                Err(ControlError::Io(_) | ControlError::Closed) => {}
                answered => return self.keep(stream, answered?),
            }
        }
        let mut stream = self.connect()?;
        let response = self.exchange(&mut stream, method, path)?;
        self.keep(stream, response)
    }

    fn connect(&mut self) -> io::Result<TcpStream> {
        if let Some(address) = self.address {
            return TcpStream::connect_timeout(&address, self.timeout);
        }
        let stream = self.server.connect(self.timeout)?;
        self.address = Some(stream.peer_addr()?);
        Ok(stream)
    }

    /// Returns the address in use. Until an address has listened, this is the first in the list.
    pub(super) fn address(&self) -> SocketAddr {
        self.address.unwrap_or(self.server.addresses[0])
    }

    fn keep(&mut self, stream: TcpStream, response: Response) -> Result<Response, ControlError> {
        self.kept = (self.keeps && !response.says_close).then_some(stream);
        Ok(response)
    }

    fn exchange(
        &mut self,
        stream: &mut TcpStream,
        method: &str,
        path: &str,
    ) -> Result<Response, ControlError> {
        let deadline = Instant::now() + self.timeout;
        let sent = SystemTime::now();
        let host = &self.server.host;
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n").into_bytes();
        if let Some(token) = self.token.as_deref().filter(|_| path == "/reset") {
            request.extend_from_slice(&[b"Authorization: Bearer ", token, b"\r\n"].concat());
        }
        request.extend_from_slice(b"Content-Length: 0\r\n\r\n");
        stream.set_write_timeout(Some(self.timeout))?;
        stream.write_all(&request)?;
        let (mut input, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            // If this process was suspended, the deadline may have passed although a response is ready to be read.
            let left = deadline.saturating_duration_since(Instant::now()).max(WAIT_MIN);
            stream.set_read_timeout(Some(left))?;
            let received = match stream.read(&mut buffer) {
                Ok(received) => received,
                Err(error) if is_time_out(&error) && Instant::now() >= deadline => {
                    return Err(ControlError::Silent(self.timeout));
                }
                Err(error) if is_time_out(&error) || error.kind() == ErrorKind::Interrupted => {
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            input.extend_from_slice(&buffer[..received]);
            let found = response::read(&input, received == 0).map_err(|_| ControlError::Garbled)?;
            match found {
                Some(found) => {
                    let wire = &input[found.body_start..found.end];
                    let body = match found.is_chunked {
                        true => join_chunks(wire).map_err(|_| ControlError::Garbled)?,
                        false => wire.to_vec(),
                    };
                    let (status, says_close) = (found.status, found.says_close);
                    if let Some(date) = date_of(&input[..found.body_start]) {
                        let offset = ClockOffset::of(sent, SystemTime::now(), date);
                        self.clock = Some(self.clock.map_or(offset, |clock| clock.and(offset)));
                    }
                    return Ok(Response { status, body, says_close });
                }
                None if received == 0 => return Err(ControlError::Closed),
                None if input.len() > RESPONSE_BYTES_MAX => return Err(ControlError::Garbled),
                // The response arrives in drips. Any bytes that arrived while this process was suspended have had a
                // chance to be read.
                None if Instant::now() >= deadline + self.timeout => {
                    return Err(ControlError::Silent(self.timeout));
                }
                None => {}
            }
        }
    }
}

/// Returns the `Date` of a response.
fn date_of(head: &[u8]) -> Option<SystemTime> {
    let field = std::str::from_utf8(head).ok()?.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("date").then_some(value.trim())
    });
    httpdate::parse_http_date(field?).ok()
}

fn is_time_out(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Reports whether the peer ends an idle connection within this time.
fn ends_within(mut stream: &TcpStream, wait: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + wait;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        stream.set_read_timeout(Some(left.max(WAIT_MIN)))?;
        match stream.read(&mut [0]) {
            // A signal, a debugger, or a suspended machine can interrupt a read. This reveals nothing about the server.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_time_out(&error) => {
                if Instant::now() >= deadline {
                    return Ok(false);
                }
            }
            Ok(_) | Err(_) => return Ok(true),
        }
    }
}

fn read_totals(response: &Response) -> Result<Totals, ControlError> {
    match response.status {
        200 => parse_totals(&response.body).map_err(|why| ControlError::NoTotals(200, why)),
        503 => Err(ControlError::Unavailable("GET /stats")),
        status => Err(ControlError::NoTotals(status, "there must be a GET /stats".into())),
    }
}

/// Returns a label of `ringtally_build_info` from Prometheus metrics.
fn label_of(metrics: &[u8], label: &str) -> Option<String> {
    let metrics = std::str::from_utf8(metrics).ok()?;
    let line = metrics.lines().find_map(|line| line.strip_prefix("ringtally_build_info{"))?;
    let (name, _) = line.split_once(&format!("{label}=\""))?.1.split_once('"')?;
    Some(name.to_owned())
}

/// Returns the totals in the body of a response to `GET /stats`, or the reason why it does not have them.
pub(super) fn parse_totals(body: &[u8]) -> Result<Totals, String> {
    let json: serde_json::Value =
        serde_json::from_slice(body).map_err(|_| "it is not JSON".to_owned())?;
    let member = |name: &str| json.get(name).ok_or_else(|| format!("{name} is missing"));
    let float =
        |name: &str| member(name)?.as_f64().ok_or_else(|| format!("{name} is not a number"));
    // Some servers write whole numbers as floats.
    let whole = |name: &str| {
        let number = member(name)?;
        let float = number.as_f64().filter(|float| float.fract() == 0.0 && *float >= 0.0);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is whole and not negative; beyond the range it becomes the largest number, \
                      which no run can reach"
        )]
        let rounded = float.map(|float| float as u64);
        number.as_u64().or(rounded).ok_or_else(|| format!("{name} is not a whole number"))
    };
    Ok(Totals {
        total_requests: whole("totalRequests")?,
        unique_users: whole("uniqueUsers")?,
        sum: float("sum")?,
        avg: float("avg")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read_as_servers_of_any_language_write_them() {
        let read = |text: &str| parse_totals(text.as_bytes());
        let expected =
            Totals { total_requests: 1_000_000, unique_users: 75_000, sum: 5e8, avg: 500.0 };
        for text in [
            r#"{"totalRequests":1000000,"uniqueUsers":75000,"sum":5.0E8,"avg":500.0}"#,
            r#"{"avg":500,"sum":500000000,"uniqueUsers":75000,"totalRequests":1e6,"extra":null}"#,
        ] {
            assert_eq!(read(text), Ok(expected), "{text}");
        }
        for (text, why) in [
            ("", "it is not JSON"),
            ("[]", "totalRequests is missing"),
            (r#"{"totalRequests":1,"uniqueUsers":1,"sum":1}"#, "avg is missing"),
            (r#"{"totalRequests":1,"uniqueUsers":1,"sum":"1","avg":1}"#, "sum is not a number"),
            (
                r#"{"totalRequests":1.5,"uniqueUsers":1,"sum":1,"avg":1}"#,
                "totalRequests is not a whole number",
            ),
        ] {
            assert_eq!(read(text), Err(why.to_owned()), "{text}");
        }
    }

    #[test]
    fn the_date_of_a_response_is_read_whatever_its_case() {
        let date = "Tue, 24 Nov 2026 10:00:00 GMT";
        let head = format!("HTTP/1.1 200 OK\r\nX-Date: no\r\ndATE: {date}\r\n\r\n");
        assert_eq!(date_of(head.as_bytes()), httpdate::parse_http_date(date).ok());
        for none in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nDate: now\r\n\r\n"] {
            assert_eq!(date_of(none.as_bytes()), None);
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
            ("http://[::1]", "[::1]:80"),
        ] {
            assert_eq!(Server::parse(url).unwrap().addresses[0].to_string(), address);
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

    /// The server sends an endless response, one byte at a time.
    #[test]
    fn a_response_that_drips_is_waited_for_no_longer_than_twice_the_timeout() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX: ");
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let server = Server { addresses: vec![address], host: address.to_string() };
        let mut control = Control::new(&server, Duration::from_millis(200), true);
        assert!(matches!(control.totals(), Err(ControlError::Silent(_))));
    }

    #[test]
    fn a_name_without_an_address_is_not_a_wrong_flag() {
        let failure = Server::parse("http://nowhere.invalid:1").unwrap_err();
        assert_eq!(failure.exit_code(), 3, "{failure}");
        assert!(failure.to_string().contains("nowhere.invalid has no address"), "{failure}");
    }

    /// Nothing listens at the first address. The second is used for all later requests, and is the address that is reported.
    #[test]
    fn every_address_of_a_name_is_tried() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.2:0").unwrap();
        let open = listener.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 1024]);
                let body = r#"{"totalRequests":0,"uniqueUsers":0,"sum":0.0,"avg":0.0}"#;
                let head = format!(
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                stream.write_all((head + body).as_bytes()).unwrap();
            }
        });
        let server = Server { addresses: vec![closed, open], host: "name:1".into() };
        let mut control = Control::new(&server, Duration::from_secs(5), true);
        assert_eq!(control.address(), closed);
        assert_eq!(control.totals().unwrap(), Totals::ZERO);
        assert_eq!(control.address(), open);
        assert_eq!(control.totals().unwrap(), Totals::ZERO);
        serving.join().unwrap();
        // A connection to the broadcast address fails, but it is not refused.
        let broadcast = "255.255.255.255:1".parse().unwrap();
        for addresses in [[closed, closed], [closed, broadcast], [broadcast, closed]] {
            let none = Server { addresses: addresses.to_vec(), host: "name:1".into() };
            let mut control = Control::new(&none, Duration::from_secs(5), true);
            let said = control.totals().unwrap_err().sentence(&none);
            assert!(said.contains("no server listens"), "{said}");
            assert!(said.contains(&closed.to_string()), "{said}");
        }
    }

    /// The server closes its first connections after one response without announcing it.
    #[test]
    fn a_server_closes_each_connection_if_it_closes_two() {
        for (closes, keeps_alive) in [(0, true), (1, true), (2, false)] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let serving = std::thread::spawn(move || {
                let mut kept = Vec::new();
                for number in 1..=closes.clamp(1, 2) + usize::from(closes == 1) {
                    let (mut stream, _) = listener.accept().unwrap();
                    let _ = stream.read(&mut [0; 1024]);
                    let body = r#"{"totalRequests":0,"uniqueUsers":0,"sum":0.0,"avg":0.0}"#;
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                    stream.write_all((head + body).as_bytes()).unwrap();
                    if number > closes {
                        kept.push(stream);
                    }
                }
                kept
            });
            let server = Server { addresses: vec![address], host: address.to_string() };
            let mut control = Control::new(&server, Duration::from_secs(5), true);
            let (totals, found) = control.first_totals().unwrap();
            assert_eq!((totals, found), (Totals::ZERO, keeps_alive), "{closes}");
            drop(serving.join().unwrap());
        }
    }
}
