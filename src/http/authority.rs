//! Hosts with an optional port, as in `Host` and in absolute-form targets: their grammar, and
//! whether they mean this server.

use std::net::{IpAddr, Ipv6Addr};

/// Returns whether `value` is `uri-host [":" port]` (RFC 3986 section 3.2.2). An
/// empty value is legal.
pub(super) fn is_valid(value: &[u8]) -> bool {
    let (name, port) = match value.first() {
        Some(b'[') => {
            let Some(end) = memchr::memchr(b']', value) else {
                return false;
            };
            let address = std::str::from_utf8(&value[1..end]).unwrap_or("");
            if address.parse::<Ipv6Addr>().is_err() {
                return false;
            }
            (&[][..], &value[end + 1..])
        }
        _ => value.split_at(memchr::memchr(b':', value).unwrap_or(value.len())),
    };
    let has_valid_name =
        name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(byte));
    let has_valid_port = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    // A port without a name does not name anything.
    has_valid_name && has_valid_port && (!name.is_empty() || port.is_empty() || value[0] == b'[')
}

/// Returns whether a valid `value` means this server: a loopback address, `localhost`, or the host
/// that the server is bound to. The port does not matter. An empty value does not name a server.
pub(super) fn names_server(value: &[u8], bound_host: &str) -> bool {
    // A valid authority is ASCII.
    let Ok(value) = std::str::from_utf8(value) else {
        return false;
    };
    let name = match value.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next(),
        None => value.split(':').next(),
    };
    let name = name.unwrap_or_default();
    match name.parse::<IpAddr>() {
        Ok(address) => {
            let bound_host = bound_host.trim_start_matches('[').trim_end_matches(']');
            address.to_canonical().is_loopback() || bound_host.parse() == Ok(address)
        }
        Err(_) => {
            let is_bound_host = !name.is_empty() && name.eq_ignore_ascii_case(bound_host);
            name.eq_ignore_ascii_case("localhost") || is_bound_host
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_addresses_localhost_and_the_bound_host_name_this_server() {
        for (host, bound_host, expected) in [
            ("localhost", "192.0.2.1", true),
            ("LOCALHOST:8000", "192.0.2.1", true),
            ("127.0.0.1", "192.0.2.1", true),
            ("127.1.2.3:80", "192.0.2.1", true),
            ("[::1]:80", "192.0.2.1", true),
            ("[0:0::1]", "192.0.2.1", true),
            ("[::ffff:127.0.0.1]", "192.0.2.1", true),
            ("192.0.2.1:8000", "192.0.2.1", true),
            ("0.0.0.0:8000", "0.0.0.0", true),
            ("[2001:db8::0:1]", "2001:db8::1", true),
            ("[2001:db8::1]", "[2001:db8::1]", true),
            ("Server.example:1", "server.example", true),
            ("", "192.0.2.1", false),
            ("", "", false),
            ("192.0.2.2", "192.0.2.1", false),
            ("evil.example", "192.0.2.1", false),
            ("localhost.evil.example", "192.0.2.1", false),
            ("127.0.0.1.evil.example", "192.0.2.1", false),
            ("localhost.", "192.0.2.1", false),
            ("2130706433", "192.0.2.1", false),
            ("[::2]", "192.0.2.1", false),
        ] {
            assert!(is_valid(host.as_bytes()), "{host}");
            assert_eq!(names_server(host.as_bytes(), bound_host), expected, "{host}");
        }
    }
}
