//! A request, and where its response goes.

use super::accept::{self, MediaType};
use super::authority;
use super::head::Head;
use super::method::Method;
use super::response::ReplyTo;
use super::target::Target;

/// A request whose head has arrived, and depending on the step its body, too.
#[derive(Debug)]
pub struct Request<'a> {
    pub(super) head: Head,
    /// The head, then the decoded body.
    pub(super) bytes: &'a [u8],
    /// Its target.
    pub target: Target<'a>,
    /// Whether the peer's address is a loopback address.
    pub peer_is_loopback: bool,
    pub(super) reply_to: ReplyTo,
}

impl<'a> Request<'a> {
    /// The request method.
    #[inline]
    pub fn method(&self) -> Method {
        self.head.method
    }

    /// Its decoded body, or nothing if that has not arrived.
    #[inline]
    pub fn body(&self) -> &'a [u8] {
        &self.bytes[self.head.bytes..]
    }

    /// The form that its response must have.
    #[inline]
    pub fn reply_to(&self) -> ReplyTo {
        self.reply_to
    }

    /// The `Authorization` field. A repeated one reads as empty, which authorizes nobody.
    pub fn authorization(&self) -> Option<&'a [u8]> {
        self.head.authorization.map(|span| &self.bytes[span.range()])
    }

    /// Whether the client prefers a response of type `one` to one of type `other`.
    pub fn prefers(&self, one: MediaType, other: MediaType) -> bool {
        let accept = self.head.accept.map(|span| &self.bytes[span.range()]);
        accept.is_some_and(|accept| accept::prefers(accept, one, other))
    }

    /// Whether a browser sent this, and may have done so for a page of another site. Determined once
    /// per head, not per request.
    #[inline]
    pub fn is_cross_site(&self) -> bool {
        self.head.is_cross_site
    }

    /// The length of its head in bytes.
    pub fn head_bytes(&self) -> usize {
        self.head.bytes
    }

    /// Whether this may have come through a proxy: it has `Forwarded`, `X-Forwarded-*`, `X-Real-IP`, or `Via`, or it
    /// is of HTTP/1.0, which nginx speaks to servers by default, without any of these fields.
    pub fn may_be_forwarded(&self) -> bool {
        self.head.is_forwarded || !self.head.is_1_1
    }

    /// Whether its body has a content coding, such as gzip.
    #[inline]
    pub fn is_encoded(&self) -> bool {
        self.head.is_encoded
    }

    /// Whether it is addressed to a loopback address, `localhost`, or `bound_host`.
    pub fn names_server(&self, bound_host: &str) -> bool {
        authority::names_server(&self.bytes[self.head.host.range()], bound_host)
    }
}
