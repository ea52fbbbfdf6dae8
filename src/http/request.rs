//! A request, and the form of its response.

use super::accept::{self, MediaType};
use super::authority;
use super::head::Head;
use super::method::Method;
use super::response::ReplyTo;
use super::target::Target;

/// A request whose head has arrived and, depending on the step, also its body.
#[derive(Debug)]
pub struct Request<'a> {
    pub(super) head: Head,
    /// The head, then the decoded body.
    pub(super) bytes: &'a [u8],
    /// The target of the request.
    pub target: Target<'a>,
    /// Whether the peer's address is a loopback address.
    pub peer_is_loopback: bool,
    pub(super) reply_to: ReplyTo,
}

impl<'a> Request<'a> {
    /// Returns the request method.
    #[inline]
    pub fn method(&self) -> Method {
        self.head.method
    }

    /// Returns the decoded body, which is empty if it has not arrived.
    #[inline]
    pub fn body(&self) -> &'a [u8] {
        &self.bytes[self.head.bytes..]
    }

    /// Returns the form that the response must have.
    #[inline]
    pub fn reply_to(&self) -> ReplyTo {
        self.reply_to
    }

    /// Returns the `Authorization` field. A repeated field reads as empty, which does not authorize anybody.
    pub fn authorization(&self) -> Option<&'a [u8]> {
        self.head.authorization.map(|span| &self.bytes[span.range()])
    }

    /// Returns whether the client prefers type `one` to type `other` for the response.
    pub fn prefers(&self, one: MediaType, other: MediaType) -> bool {
        let accept = self.head.accept.map(|span| &self.bytes[span.range()]);
        accept.is_some_and(|accept| accept::prefers(accept, one, other))
    }

    /// Returns whether a browser sent this, possibly for a page of another site. This is determined once per
    /// head, not per request.
    #[inline]
    pub fn is_cross_site(&self) -> bool {
        self.head.is_cross_site
    }

    /// Returns the length of the head in bytes.
    pub fn head_bytes(&self) -> usize {
        self.head.bytes
    }

    /// Returns whether this may have come through a proxy: it has `Forwarded`, `X-Forwarded-*`, `X-Real-IP`, or `Via`, or it
    /// uses HTTP/1.0, which nginx sends to servers by default, without any of these fields.
    pub fn may_be_forwarded(&self) -> bool {
        self.head.is_forwarded || !self.head.is_1_1
    }

    /// Returns whether its body has a content coding, such as gzip.
    #[inline]
    pub fn is_encoded(&self) -> bool {
        self.head.is_encoded
    }

    /// Returns whether it is addressed to a loopback address, `localhost`, or `bound_host`.
    pub fn names_server(&self, bound_host: &str) -> bool {
        authority::names_server(&self.bytes[self.head.host.range()], bound_host)
    }
}

#[cfg(test)]
mod tests {
    use super::super::head::Scan;
    use super::*;

    /// Calls `check` with a request that has these fields in addition to `Host`.
    fn with<T>(version: &str, fields: &str, check: impl Fn(&Request<'_>) -> T) -> T {
        let bytes = format!("POST /event HTTP/{version}\r\nHost: a\r\n{fields}\r\nbody");
        let mut scan = Scan::START;
        let head = scan.parse(bytes.as_bytes(), "a").unwrap().unwrap();
        check(&Request {
            head,
            bytes: bytes.as_bytes(),
            target: head.target(bytes.as_bytes()).unwrap(),
            peer_is_loopback: true,
            reply_to: ReplyTo::LAST,
        })
    }

    #[test]
    fn a_request_tells_its_parts() {
        let parts = with("1.1", "", |request| {
            (request.method(), request.body().to_vec(), request.head_bytes(), request.reply_to())
        });
        let head_bytes = "POST /event HTTP/1.1\r\nHost: a\r\n\r\n".len();
        assert_eq!(parts, (Method::Post, b"body".to_vec(), head_bytes, ReplyTo::LAST));
    }

    #[test]
    fn a_repeated_authorization_authorizes_nobody() {
        let authorization =
            |fields| with("1.1", fields, |request| request.authorization().map(<[u8]>::to_vec));
        assert_eq!(authorization(""), None);
        assert_eq!(authorization("Authorization: Bearer x\r\n"), Some(b"Bearer x".to_vec()));
        let twice = "Authorization: Bearer x\r\n".repeat(2);
        assert_eq!(authorization(&twice), Some(Vec::new()));
    }

    #[test]
    fn without_accept_no_type_is_preferred() {
        let [one, other] = ["text/html", "text/plain"].map(|name| MediaType { name, version: "1" });
        let prefers = |fields| with("1.1", fields, |request| request.prefers(one, other));
        assert!(!prefers("") && !prefers("Accept: text/plain\r\n"));
        assert!(prefers("Accept: text/html\r\n"));
    }

    #[test]
    fn a_field_of_a_proxy_or_an_old_version_means_that_there_may_be_a_proxy() {
        for (version, fields, expected) in [
            ("1.1", "", false),
            ("1.0", "", true),
            ("1.1", "Via: 1.1 p\r\n", true),
            ("1.0", "X-Forwarded-For: 192.0.2.1\r\n", true),
        ] {
            assert_eq!(
                with(version, fields, |request| request.may_be_forwarded()),
                expected,
                "{fields}"
            );
        }
    }

    #[test]
    fn the_host_names_the_server() {
        let names = |bound_host| with("1.1", "", |request| request.names_server(bound_host));
        assert!(names("a") && !names("b"));
    }
}
