//! Responses as bytes.

use super::context::Context;
use super::date::{DATE_BYTES, Date};
use super::method::Method;
use super::refusal::Refusal;
use super::status::Status;

/// The content of the `Connection` field of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persistence {
    /// The field is omitted: an HTTP/1.1 connection stays open.
    Implied,
    /// The connection stays open, because an HTTP/1.0 client requested that.
    KeepAlive,
    /// The connection closes.
    Close,
}

/// The form of a response, which depends on its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    pub(super) persistence: Persistence,
    /// Whether the request is a HEAD request: the response does not have a body (RFC 9110 section 9.3.2).
    pub(super) is_head: bool,
}

impl ReplyTo {
    /// The form of the last response of a connection.
    pub const LAST: ReplyTo = ReplyTo { persistence: Persistence::Close, is_head: false };

    /// Returns the same form for the last response of its connection.
    pub fn as_last(self) -> ReplyTo {
        ReplyTo { persistence: Persistence::Close, ..self }
    }

    /// Returns the form of the last response of a connection, to a request with this method.
    pub(super) fn last(method: Method) -> ReplyTo {
        ReplyTo { is_head: method == Method::Head, ..ReplyTo::LAST }
    }
}

/// Asks an HTTP/2 client to use HTTP/1.1 (RFC 9113 section 7): an empty SETTINGS frame, which a server must send first, and
/// GOAWAY with HTTP_1_1_REQUIRED.
const GO_AWAY: &[u8] = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\
    \x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0d";

/// The bytes of a response that are always the same except for the date.
#[derive(Clone, Debug)]
pub struct Prepared {
    status: Status,
    content_type: Option<&'static str>,
    body: &'static str,
    bytes: Vec<u8>,
    /// The position of the date in the bytes.
    date_at: usize,
}

impl Prepared {
    /// Prepares a response.
    pub fn new(status: Status, content_type: Option<&'static str>, body: &'static str) -> Self {
        let placeholder = Date([b'?'; DATE_BYTES]);
        let mut bytes = Vec::new();
        let plainly = ReplyTo { persistence: Persistence::Implied, is_head: false };
        Reply { out: &mut bytes, date: &placeholder, to: plainly }.send(
            status,
            content_type,
            &[],
            body.as_bytes(),
        );
        let date_at = memchr::memmem::find(&bytes, &placeholder.0);
        let date_at = date_at.expect("every response has a date");
        Prepared { status, content_type, body, bytes, date_at }
    }
}

/// The output for the response to one request. Each method named `send` or `send_*` writes the whole response
/// and returns its status.
#[derive(Debug)]
pub struct Reply<'a> {
    out: &'a mut Vec<u8>,
    date: &'a Date,
    to: ReplyTo,
}

impl<'a> Reply<'a> {
    /// Prepares to append the response to `out`.
    #[inline]
    pub fn new(out: &'a mut Vec<u8>, context: &'a Context, to: ReplyTo) -> Self {
        Reply { out, date: &context.date, to }
    }

    /// Returns the position of the response in the connection's unsent bytes.
    #[inline]
    pub fn position(&self) -> usize {
        self.out.len()
    }

    /// Sends a response that was prepared.
    #[inline]
    pub fn send_prepared(self, prepared: &Prepared) -> Status {
        if self.to.persistence == Persistence::Implied && !self.to.is_head {
            let date_at = self.out.len() + prepared.date_at;
            self.out.extend_from_slice(&prepared.bytes);
            self.out[date_at..date_at + DATE_BYTES].copy_from_slice(&self.date.0);
            prepared.status
        } else {
            self.send(prepared.status, prepared.content_type, &[], prepared.body.as_bytes())
        }
    }

    /// Sends a status, further fields, and a body.
    pub fn send(
        self,
        status: Status,
        content_type: Option<&str>,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> Status {
        self.send_parts(status, content_type, fields, Some(body))
    }

    fn send_parts(
        self,
        status: Status,
        content_type: Option<&str>,
        fields: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Status {
        let mut digits = itoa::Buffer::new();
        let out = self.out;
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
        let code = digits.format(status.code()).as_bytes();
        put(&[b"HTTP/1.1 ", code, b" ", status.reason().as_bytes(), b"\r\nDate: ", &self.date.0]);
        // A 204 must not have a Content-Length (RFC 9110 section 8.6).
        if let Some(body) = body.filter(|_| status != Status::NoContent) {
            put(&[b"\r\nContent-Length: ", digits.format(body.len()).as_bytes()]);
        }
        if let Some(content_type) = content_type {
            put(&[b"\r\nContent-Type: ", content_type.as_bytes()]);
        }
        for (name, value) in fields {
            put(&[b"\r\n", name.as_bytes(), b": ", value.as_bytes()]);
        }
        match self.to.persistence {
            Persistence::Implied => {}
            Persistence::KeepAlive => put(&[b"\r\nConnection: keep-alive"]),
            Persistence::Close => put(&[b"\r\nConnection: close"]),
        }
        put(&[b"\r\n\r\n"]);
        if let Some(body) = body.filter(|_| !self.to.is_head) {
            put(&[body]);
        }
        status
    }

    /// Sends a status and fields in response to a HEAD request, without making the body. The length is omitted, because it is
    /// known only once the body is made (RFC 9110 section 9.3.2).
    pub fn send_head(self, status: Status, content_type: &str, fields: &[(&str, &str)]) -> Status {
        self.send_parts(status, Some(content_type), fields, None)
    }

    /// Sends a JSON body.
    pub fn send_json(self, status: Status, body: &[u8]) -> Status {
        self.send(status, Some("application/json"), &[], body)
    }

    /// Sends `{"error": sentence}`.
    pub fn send_error(self, status: Status, fields: &[(&str, &str)], sentence: &str) -> Status {
        let body = serde_json::json!({ "error": sentence }).to_string();
        self.send(status, Some("application/json"), fields, body.as_bytes())
    }
}

/// Input that is not a request, or ends before it is complete. The response to it is the last of its connection, because the
/// start of the next request is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub(super) refusal: Refusal,
    /// Whether it begins like a HEAD request.
    pub(super) is_head: bool,
}

impl Refused {
    /// Returns the refusal of a request with this method whose body is too large.
    pub fn large_body(method: Method) -> Refused {
        Refused { refusal: Refusal::LargeBody, is_head: method == Method::Head }
    }

    /// Responds, and returns the status.
    pub fn respond(self, out: &mut Vec<u8>, context: &Context) -> Status {
        let (status, sentence) = self.refusal.response();
        if self.refusal == Refusal::Http2 {
            out.extend_from_slice(GO_AWAY);
            return status;
        }
        let reply_to = ReplyTo { is_head: self.is_head, ..ReplyTo::LAST };
        Reply::new(out, context, reply_to).send_error(status, &[], sentence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prepared_response_is_what_would_be_sent_without_preparation() {
        let prepared = Prepared::new(Status::Created, Some("application/json"), "{}");
        for is_head in [false, true] {
            for persistence in [Persistence::Implied, Persistence::KeepAlive, Persistence::Close] {
                for seconds in [0, 1] {
                    let date = Date::from_unix(seconds);
                    // Earlier bytes must remain unchanged.
                    let (mut direct, mut from_prepared) = (b"before".to_vec(), b"before".to_vec());
                    let to = ReplyTo { persistence, is_head };
                    Reply { out: &mut direct, date: &date, to }.send_json(Status::Created, b"{}");
                    Reply { out: &mut from_prepared, date: &date, to }.send_prepared(&prepared);
                    assert_eq!(direct, from_prepared);
                    assert_eq!(direct.ends_with(b"{}"), !is_head);
                }
            }
        }
    }

    #[test]
    fn an_error_is_valid_json_whatever_it_quotes() {
        let mut out = Vec::new();
        let reply = Reply { out: &mut out, date: &Date::from_unix(0), to: ReplyTo::LAST };
        reply.send_error(Status::BadRequest, &[], r#"send a "userId""#);
        assert!(out.ends_with(b"\r\n\r\n{\"error\":\"send a \\\"userId\\\"\"}"));
    }

    #[test]
    fn the_last_response_keeps_the_form_of_its_body() {
        let (persistence, close) = (Persistence::KeepAlive, Persistence::Close);
        for (method, is_head) in [(Method::Head, true), (Method::Get, false)] {
            let last = ReplyTo { persistence: close, is_head };
            assert_eq!(ReplyTo::last(method), last);
            assert_eq!(ReplyTo { persistence, is_head }.as_last(), last);
        }
    }

    #[test]
    fn a_response_begins_behind_what_is_unsent_and_has_the_date_of_its_context() {
        let mut context = Context::new("a", b"/events", 0);
        for unix_seconds in [0, 86_400] {
            context.set_date(unix_seconds);
            let mut out = b"unsent".to_vec();
            let reply = Reply::new(&mut out, &context, ReplyTo::LAST);
            assert_eq!(reply.position(), 6);
            reply.send_json(Status::Ok, b"{}");
            let date = Date::from_unix(unix_seconds);
            assert!(memchr::memmem::find(&out, &date.0).is_some(), "{unix_seconds}");
        }
    }

    #[test]
    fn a_refusal_of_head_has_no_body_and_one_of_http_2_is_no_http_1() {
        let context = Context::new("a", b"/events", 0);
        let responded = |refused: Refused| {
            let mut out = Vec::new();
            let status = refused.respond(&mut out, &context);
            (status, out)
        };
        for (method, has_body) in [(Method::Head, false), (Method::Post, true)] {
            let (status, out) = responded(Refused::large_body(method));
            assert_eq!(status, Status::ContentTooLarge);
            assert_eq!(out.ends_with(b"}"), has_body, "{method:?}");
            assert!(out.starts_with(b"HTTP/1.1 413 "));
        }
        let (_, out) = responded(Refused { refusal: Refusal::Http2, is_head: false });
        assert_eq!(out, GO_AWAY);
    }
}
