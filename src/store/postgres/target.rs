//! The PostgreSQL to connect to: a URL as libpq reads it, and the environment variables that complete it.
//!
//! No message here repeats the text, because it may contain a misplaced password.

use super::tls::{Mode, Roots};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio_postgres::config::ChannelBinding;

/// The schemes of a URL.
const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];

/// The parameters that a URL may have, and the environment variable that stands in for each, as in libpq.
const PARAMETERS: [(&str, Option<&str>); 19] = [
    ("application_name", Some("PGAPPNAME")),
    ("channel_binding", Some("PGCHANNELBINDING")),
    ("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    ("dbname", Some("PGDATABASE")),
    ("host", Some("PGHOST")),
    ("hostaddr", Some("PGHOSTADDR")),
    ("keepalives", None),
    ("keepalives_count", None),
    ("keepalives_idle", None),
    ("keepalives_interval", None),
    ("options", Some("PGOPTIONS")),
    ("passfile", Some("PGPASSFILE")),
    ("password", Some("PGPASSWORD")),
    ("port", Some("PGPORT")),
    ("sslmode", Some("PGSSLMODE")),
    ("sslrootcert", Some("PGSSLROOTCERT")),
    ("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    ("tcp_user_timeout", None),
    ("user", Some("PGUSER")),
];

/// The port of a host that does not specify one.
const PORT: u16 = 5432;

/// The directory of Debian's PostgreSQL socket: the host of a URL that does not specify one.
const SOCKETS: &str = "/var/run/postgresql";

/// The time that a host may take to accept a connection, unless the URL sets it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The time that a connection may be silent before the kernel probes the other side, and the interval and number of probes
/// until it gives up: libpq's two hours are longer than anybody waits for an acknowledgement.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVE_COUNT: u32 = 5;
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);

/// A password, which is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Password(pub(super) String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

/// A host of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// A name, an address, or the directory of a socket.
    pub(super) name: String,
    /// The address to use instead of resolving the name.
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
}

impl Host {
    /// Reports whether it is the directory of a Unix-domain socket.
    pub(super) fn is_socket(&self) -> bool {
        self.name.starts_with('/')
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.contains(':') {
            true => write!(f, "[{}]:{}", self.name, self.port),
            false => write!(f, "{}:{}", self.name, self.port),
        }
    }
}

/// The timeouts for connecting, and for giving up a silent connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Patience {
    pub(super) connect: Duration,
    pub(super) keepalives: bool,
    pub(super) idle: Duration,
    pub(super) interval: Duration,
    pub(super) count: u32,
    pub(super) user_timeout: Duration,
}

/// The PostgreSQL to connect to. It is shown as the URL without its password.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// The URL without its password.
    shown: String,
    pub(super) hosts: Vec<Host>,
    pub(super) user: String,
    pub(super) database: String,
    /// The password in the URL or in `PGPASSWORD`.
    pub(super) password: Option<Password>,
    /// The file of passwords.
    pub(super) passfile: Option<PathBuf>,
    pub(super) tls: Mode,
    pub(super) roots: Roots,
    /// Whether the password is proved for this connection only: `channel_binding`.
    pub(super) binding: ChannelBinding,
    pub(super) patience: Patience,
    pub(super) options: Option<String>,
    pub(super) application: Option<String>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.shown).finish()
    }
}

impl Target {
    /// Reports whether a text is meant to be the URL of a PostgreSQL.
    pub fn is_url(text: &str) -> bool {
        SCHEMES.iter().any(|scheme| text.starts_with(scheme))
    }

    /// Parses a URL, and completes it from the environment of this process.
    ///
    /// # Errors
    ///
    /// A sentence that describes the problem, without the text itself.
    pub fn parse(text: &str) -> Result<Target, String> {
        Target::parse_with(text, &|variable| std::env::var(variable).ok())
    }

    pub(super) fn parse_with(
        text: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Target, String> {
        let Parts { parameters, shown, .. } = split(text)?;
        let get = |name: &str| {
            let given = parameters.get(name).cloned();
            let variable = PARAMETERS.iter().find(|(known, _)| *known == name)?.1;
            given.or_else(|| environment(variable?)).filter(|value| !value.is_empty())
        };
        let home = environment("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let user = get("user").or_else(|| environment("USER")).filter(|user| !user.is_empty());
        let user = user.ok_or("has no user: write postgres://user@host/database")?;
        check_session(get("target_session_attrs").as_deref())?;
        let seconds = |name: &str, default: Duration| match get(name) {
            None => Ok(default),
            Some(text) => match text.parse() {
                Ok(0) => Ok(default),
                Ok(seconds) => Ok(Duration::from_secs(seconds)),
                Err(_) => Err(format!(
                    "has a {name} that is not a number of seconds: use one such as {name}=10"
                )),
            },
        };
        let count = get("keepalives_count").map_or(Ok(KEEPALIVE_COUNT), |text| text.parse());
        let tcp_user_timeout = match get("tcp_user_timeout").map(|text| text.parse()) {
            None | Some(Ok(0)) => TCP_USER_TIMEOUT,
            Some(Ok(ms)) => Duration::from_millis(ms),
            Some(Err(_)) => {
                return Err("has a tcp_user_timeout that is not a number of milliseconds: \
                            use one such as 10000"
                    .into());
            }
        };
        let root_of_home = home.as_ref().map(|home| home.join(".postgresql/root.crt"));
        let roots = Roots::new(get("sslrootcert").as_deref(), root_of_home);
        Ok(Target {
            hosts: hosts(get("host"), get("hostaddr"), get("port"))?,
            database: get("dbname").unwrap_or_else(|| user.clone()),
            user,
            password: get("password").map(Password),
            passfile: match get("passfile") {
                Some(file) => Some(file.into()),
                None => home.map(|home| home.join(".pgpass")),
            },
            tls: Mode::new(get("sslmode").as_deref(), &roots)?,
            roots,
            binding: match get("channel_binding").as_deref() {
                None | Some("prefer") => ChannelBinding::Prefer,
                Some("disable") => ChannelBinding::Disable,
                Some("require") => ChannelBinding::Require,
                Some(_) => {
                    return Err(
                        "has an unknown channel_binding: use disable, prefer, or require".into()
                    );
                }
            },
            patience: Patience {
                connect: seconds("connect_timeout", CONNECT_TIMEOUT)?,
                keepalives: get("keepalives").as_deref() != Some("0"),
                idle: seconds("keepalives_idle", KEEPALIVE_IDLE)?,
                interval: seconds("keepalives_interval", KEEPALIVE_INTERVAL)?,
                count: count.map_err(
                    |_| "has a keepalives_count that is not a number: use one such as 3",
                )?,
                user_timeout: tcp_user_timeout,
            },
            options: get("options"),
            application: get("application_name"),
            shown,
        })
    }
}

/// Splits the password off a URL, so that the rest can be shown. Returns `None` if the URL does not have a password.
///
/// # Errors
///
/// The errors of [`Target::parse`].
pub fn without_password(text: &str) -> Result<Option<(String, String)>, String> {
    let Parts { parameters, shown, has_password } = split(text)?;
    let password = parameters.get("password").filter(|_| has_password);
    Ok(password.map(|password| (shown, password.clone())))
}

/// The parts of a URL.
struct Parts {
    parameters: BTreeMap<&'static str, String>,
    /// The URL without its password.
    shown: String,
    has_password: bool,
}

/// Returns the name of a parameter, as it is listed.
fn known(name: &str) -> Option<&'static str> {
    PARAMETERS.iter().map(|(known, _)| *known).find(|known| *known == name)
}

/// Splits a URL into its parts, as libpq does (PostgreSQL documentation, section 34.1.1.2).
fn split(text: &str) -> Result<Parts, String> {
    let scheme = SCHEMES.iter().find(|scheme| text.starts_with(**scheme));
    let scheme = scheme.ok_or("does not start with postgres://")?;
    let rest = &text[scheme.len()..];
    let mut parts =
        Parts { parameters: BTreeMap::new(), shown: (*scheme).into(), has_password: false };
    let before_path = rest.find('/').unwrap_or(rest.len());
    let rest = match rest[..before_path].split_once('@') {
        Some((owner, _)) => {
            let (user, password) = match owner.split_once(':') {
                Some((user, password)) => (user, Some(password)),
                None => (owner, None),
            };
            parts.shown += user;
            parts.shown.push('@');
            parts.add("user", &decode(user)?);
            if let Some(password) = password {
                parts.has_password = true;
                parts.add("password", &decode(password)?);
            }
            &rest[owner.len() + 1..]
        }
        None => rest,
    };
    let (place, query) = match rest.split_once('?') {
        Some((place, query)) => (place, Some(query)),
        None => (rest, None),
    };
    if place.contains('@') {
        return Err(
            "has more than one @: write an @ in a user or password as %40, a / as %2F".into()
        );
    }
    let (authority, database) = place.split_once('/').unwrap_or((place, ""));
    parts.shown += place;
    parts.add_hosts(authority)?;
    parts.add("dbname", &decode(database)?);
    let mut separator = '?';
    for pair in query.into_iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty())
    {
        let (name, value) = pair.split_once('=').ok_or("has a parameter without a value")?;
        let name = known(name).ok_or_else(|| {
            let names: Vec<&str> = PARAMETERS.iter().map(|(name, _)| *name).collect();
            format!("has an unknown parameter: use {}", names.join(", "))
        })?;
        parts.add(name, &decode(value)?);
        if name == "password" {
            parts.has_password = true;
        } else {
            parts.shown.push(separator);
            parts.shown += pair;
            separator = '&';
        }
    }
    Ok(parts)
}

impl Parts {
    fn add(&mut self, name: &'static str, value: &str) {
        if !value.is_empty() {
            self.parameters.insert(name, value.into());
        }
    }

    /// Adds hosts with their ports: `host1:5432,[::1]:5433,%2Ffolder`.
    fn add_hosts(&mut self, authority: &str) -> Result<(), String> {
        let (mut hosts, mut ports) = (Vec::new(), Vec::new());
        for part in authority.split(',') {
            let (host, port) = match part.strip_prefix('[') {
                Some(rest) => {
                    let (host, after) =
                        rest.split_once(']').ok_or("has an IPv6 address without its ]")?;
                    (host, after.strip_prefix(':').unwrap_or(after))
                }
                None => part.split_once(':').unwrap_or((part, "")),
            };
            hosts.push(decode(host)?);
            ports.push(port);
        }
        if hosts.iter().any(|host| !host.is_empty()) {
            self.add("host", &hosts.join(","));
        }
        if ports.iter().any(|port| !port.is_empty()) {
            self.add("port", &ports.join(","));
        }
        Ok(())
    }
}

/// Decodes percent-encoding (RFC 3986, section 2.1).
fn decode(text: &str) -> Result<String, String> {
    let bad = || "has a % that two hexadecimal digits do not follow: write a % as %25".to_owned();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_first_chunk::<2>().ok_or_else(bad)?;
        let digit = |byte: u8| char::from(byte).to_digit(16).ok_or_else(bad);
        let byte = digit(digits[0])? * 16 + digit(digits[1])?;
        bytes.push(u8::try_from(byte).map_err(|_| bad())?);
        rest = after;
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(
            "is not text after percent-decoding: encode each byte of its UTF-8 as %XX, without NUL"
                .into(),
        ),
    }
}

/// Returns the hosts from three lists; the last two lists are as long as the first, or have one entry, or none.
fn hosts(
    names: Option<String>,
    addresses: Option<String>,
    ports: Option<String>,
) -> Result<Vec<Host>, String> {
    let list = |text: &Option<String>| -> Vec<String> {
        text.iter().flat_map(|text| text.split(',')).map(str::to_owned).collect()
    };
    let (mut names, addresses, ports) = (list(&names), list(&addresses), list(&ports));
    if names.is_empty() {
        names = match addresses.is_empty() {
            true => vec![SOCKETS.into()],
            false => addresses.clone(),
        };
    }
    if !addresses.is_empty() && addresses.len() != names.len() {
        return Err(
            "has a different number of hosts and of hostaddr: give one hostaddr per host".into()
        );
    }
    if ports.len() > 1 && ports.len() != names.len() {
        return Err(
            "has a different number of hosts and ports: give one port for all hosts, or one \
                    per host"
                .into(),
        );
    }
    let host = |(at, name): (usize, String)| {
        let address = match addresses.get(at).filter(|address| !address.is_empty()) {
            Some(text) => Some(
                text.parse()
                    .map_err(|_| "has a hostaddr that is not an IP address: pass names as host")?,
            ),
            None => None,
        };
        let port = match ports.get(at).or(ports.first()).filter(|port| !port.is_empty()) {
            Some(text) => match text.parse() {
                Ok(port) if port > 0 => port,
                _ => {
                    return Err(
                        "has a port that is not a number from 1 to 65535: use one such as 5432"
                            .to_owned(),
                    );
                }
            },
            None => PORT,
        };
        let name = if name.is_empty() { SOCKETS.into() } else { name };
        Ok(Host { name, address, port })
    };
    names.into_iter().enumerate().map(host).collect()
}

/// Checks the session that a URL requests: a server writes, so it needs a writable one.
fn check_session(attributes: Option<&str>) -> Result<(), String> {
    match attributes {
        None | Some("any" | "read-write" | "primary") => Ok(()),
        Some(_) => {
            Err("has a target_session_attrs that allows read-only sessions: use read-write".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Target, String> {
        parse_in(text, &[("USER", "me"), ("HOME", "/home/me")])
    }

    fn parse_in(text: &str, environment: &[(&str, &str)]) -> Result<Target, String> {
        Target::parse_with(text, &|variable| {
            let found = environment.iter().find(|(name, _)| *name == variable);
            found.map(|(_, value)| (*value).into())
        })
    }

    fn host(name: &str, port: u16) -> Host {
        Host { name: name.into(), address: None, port }
    }

    #[test]
    fn a_url_is_read_as_libpq_reads_it() {
        let target =
            parse("postgres://ana:p%40ss@db1:5433,db2,[::1]:1/tally?connect_timeout=7").unwrap();
        assert_eq!(target.hosts, [host("db1", 5433), host("db2", 5432), host("::1", 1)]);
        assert_eq!((target.user.as_str(), target.database.as_str()), ("ana", "tally"));
        assert_eq!(target.password, Some(Password("p@ss".into())));
        assert_eq!(target.patience.connect, Duration::from_secs(7));
        assert_eq!(target.passfile, Some("/home/me/.pgpass".into()));
        let target = parse("postgresql://%2Frun%2Fpg?user=bo&port=6000").unwrap();
        assert_eq!(target.hosts, [host("/run/pg", 6000)]);
        assert!(target.hosts[0].is_socket());
        assert_eq!((target.user.as_str(), target.database.as_str()), ("bo", "bo"));
        let target = parse("postgres:///tally?host=a,b&hostaddr=10.0.0.1,::2&port=1,2").unwrap();
        let address = |at: usize| target.hosts[at].address.unwrap().to_string();
        assert_eq!((address(0), address(1)), ("10.0.0.1".into(), "::2".into()));
        assert_eq!(parse("postgres://").unwrap().hosts, [host(SOCKETS, 5432)]);
    }

    #[test]
    fn what_a_url_leaves_open_comes_from_the_environment() {
        let environment = [
            ("PGUSER", "eve"),
            ("PGPASSWORD", "secret"),
            ("PGHOST", "db"),
            ("PGPORT", "77"),
            ("PGDATABASE", "tally"),
            ("PGSSLMODE", "require"),
            ("PGPASSFILE", "/etc/pass"),
        ];
        let target = parse_in("postgres://", &environment).unwrap();
        assert_eq!(target.hosts, [host("db", 77)]);
        assert_eq!((target.user.as_str(), target.database.as_str()), ("eve", "tally"));
        assert_eq!(target.password, Some(Password("secret".into())));
        assert_eq!(target.passfile, Some("/etc/pass".into()));
        let target = parse_in("postgres://ana:own@other/x?sslmode=disable", &environment).unwrap();
        assert_eq!(target.hosts, [host("other", 77)]);
        assert_eq!((target.user.as_str(), target.database.as_str()), ("ana", "x"));
        assert_eq!((target.password, target.tls), (Some(Password("own".into())), Mode::Disable));
        assert!(parse_in("postgres://db/x", &[]).unwrap_err().contains("no user"));
    }

    #[test]
    fn no_form_of_a_target_shows_its_password() {
        for text in [
            "postgres://ana:s3cret@db/tally",
            "postgres://ana@db/tally?password=s3cret",
            "postgres://ana:other@db/tally?connect_timeout=3&password=s3cret&sslmode=disable",
            "postgres://ana:s3cret@db",
            "postgres://:s3cret@db/tally?user=ana",
        ] {
            let target = parse(text).unwrap();
            assert_eq!(target.password, Some(Password("s3cret".into())), "{text}");
            for shown in
                [target.to_string(), format!("{target:?}"), format!("{:?}", target.password)]
            {
                assert!(!shown.contains("s3cret") && !shown.contains("other"), "{shown}");
            }
            let (shown, password) = without_password(text).unwrap().unwrap();
            assert_eq!(
                (shown.as_str(), password.as_str()),
                (target.to_string().as_str(), "s3cret")
            );
            let again = parse(&shown).unwrap();
            assert_eq!(
                (&again.hosts, &again.user, again.password),
                (&target.hosts, &target.user, None)
            );
            assert_eq!((again.patience, again.tls), (target.patience, target.tls));
        }
        assert_eq!(without_password("postgres://ana@db/tally?sslmode=disable"), Ok(None));
    }

    #[test]
    fn a_url_that_cannot_be_read_is_refused_without_repeating_it() {
        for (text, expected) in [
            ("postgres://ana:s3cret@x@db/tally", "more than one @"),
            ("postgres://ana:s3cret/x@db/tally", "more than one @"),
            ("postgres://ana:s3cret/x", "port"),
            ("postgres://ana:s3cret", "port"),
            ("postgres://ana:s3cret%@db", "%25"),
            ("postgres://ana:%00s3cret@db", "not text"),
            ("postgres://ana@db?s3cret", "without a value"),
            ("postgres://ana@db?s3cret=1", "unknown parameter"),
            ("postgres://ana@[::1", "its ]"),
            ("postgres://ana@db:0/", "port"),
            ("postgres://ana@a,b,c/x?port=1,2", "hosts and ports"),
            ("postgres://ana@a,b/x?hostaddr=1.1.1.1", "of hostaddr"),
            ("postgres://ana@a/x?hostaddr=s3cret", "not an IP address"),
            ("postgres://ana@a/x?sslmode=s3cret", "sslmode"),
            ("postgres://ana@a/x?channel_binding=s3cret", "channel_binding"),
            ("postgres://ana@a/x?target_session_attrs=standby", "read-write"),
            ("postgres://ana@a/x?connect_timeout=s3cret", "connect_timeout"),
            ("mysql://ana:s3cret@db", "postgres://"),
        ] {
            let said = parse(text).unwrap_err();
            assert!(said.contains(expected) && !said.contains("s3cret"), "{text}: {said}");
        }
    }
}
