//! The request target (RFC 9112 section 3.2).

use super::authority;
use super::hex_digit;
use super::method::Method;
use super::refusal::Refusal;
use std::borrow::Cow;

/// The target of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// A percent-decoded path, without its query.
    Path(Cow<'a, [u8]>),
    /// `OPTIONS *`: the server as a whole.
    Server,
    /// `CONNECT host:port`: a tunnel.
    Tunnel,
}

/// Returns whether a target is already a plain path, without a query and
/// without anything to decode.
pub(super) fn is_plain_path(raw: &[u8]) -> bool {
    raw.starts_with(b"/")
        && raw.iter().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'?' | b'#'))
}

/// Returns the target of a request and, for a target in absolute form, the host that it names,
/// which overrides `Host`.
pub(super) fn parse(method: Method, raw: &[u8]) -> Result<(Target<'_>, Option<&[u8]>), Refusal> {
    if !raw.iter().all(u8::is_ascii_graphic) || raw.contains(&b'#') {
        return Err(Refusal::Target);
    }
    if method == Method::Connect && !raw.starts_with(b"/") {
        return match authority::is_valid(raw) && raw.contains(&b':') {
            true => Ok((Target::Tunnel, None)),
            false => Err(Refusal::Target),
        };
    }
    if raw.starts_with(b"/") {
        return Ok((Target::Path(decode(without_query(raw))?), None));
    }
    if raw == b"*" && method == Method::Options {
        return Ok((Target::Server, None));
    }
    let rest = ["http://", "https://"]
        .iter()
        .find(|scheme| {
            raw.get(..scheme.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes()))
        })
        .map(|scheme| &raw[scheme.len()..])
        .ok_or(Refusal::Target)?;
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    if host.is_empty() || !authority::is_valid(host) {
        return Err(Refusal::Target);
    }
    let path = match without_query(path) {
        // OPTIONS without a path means the server as a whole (RFC 9112 section 3.2.4).
        b"" if method == Method::Options => return Ok((Target::Server, Some(host))),
        b"" => b"/",
        path => path,
    };
    Ok((Target::Path(decode(path)?), Some(host)))
}

fn without_query(path: &[u8]) -> &[u8] {
    let end = memchr::memchr(b'?', path).unwrap_or(path.len());
    &path[..end]
}

/// Resolves percent-encoding (RFC 3986 section 2.1).
fn decode(path: &[u8]) -> Result<Cow<'_, [u8]>, Refusal> {
    if memchr::memchr(b'%', path).is_none() {
        return Ok(Cow::Borrowed(path));
    }
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.iter().copied();
    let digit = |byte: Option<u8>| byte.and_then(hex_digit).ok_or(Refusal::Target);
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => (digit(bytes.next())? << 4) + digit(bytes.next())?,
            _ => byte,
        });
    }
    Ok(Cow::Owned(decoded))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(raw: &str) -> Result<String, Refusal> {
        match parse(Method::Get, raw.as_bytes())? {
            (Target::Path(path), _) => Ok(String::from_utf8_lossy(&path).into_owned()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn queries_and_percent_encoding_do_not_change_the_path() {
        for same in [
            "/event",
            "/event?x=1",
            "/%65vent",
            "/%65%76ent?%zz",
            "http://h/event",
            "HTTP://h:1/event?",
        ] {
            assert_eq!(path(same), Ok("/event".into()), "{same}");
        }
        for (other, is) in [
            ("//event", "//event"),
            ("/./event", "/./event"),
            ("http://h", "/"),
            ("http://h?x", "/"),
        ] {
            assert_eq!(path(other), Ok(is.into()), "{other}");
        }
    }

    #[test]
    fn malformed_targets_are_refused() {
        for bad in [
            "*",
            "event",
            "/%zz",
            "/%6",
            "/%",
            "/a#b",
            "/é",
            "/a b",
            "host:80",
            "http://",
            "http:///x",
            "ftp://h/",
        ] {
            assert_eq!(path(bad), Err(Refusal::Target), "{bad}");
        }
        assert_eq!(parse(Method::Connect, b"nohost"), Err(Refusal::Target));
    }

    #[test]
    fn special_forms_belong_to_their_methods() {
        assert_eq!(parse(Method::Options, b"*"), Ok((Target::Server, None)));
        assert_eq!(parse(Method::Options, b"http://h"), Ok((Target::Server, Some(&b"h"[..]))));
        assert_eq!(parse(Method::Connect, b"h:443"), Ok((Target::Tunnel, None)));
    }
}
