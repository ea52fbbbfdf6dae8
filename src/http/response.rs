//! Responses as bytes.

use std::time::{Duration, SystemTime};

/// Bytes of a date in the preferred format of RFC 9110 section 5.6.7, IMF-fixdate.
const DATE_BYTES: usize = 29;

/// The value of the `Date` field. Made once per second, so that no response formats anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Date([u8; DATE_BYTES]);

impl Date {
    /// The date of a Unix time in seconds, up to the end of the year 9999.
    pub(super) fn from_unix(seconds: u64) -> Date {
        const END_OF_9999: u64 = 253_402_300_799;
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(END_OF_9999));
        let text = httpdate::fmt_http_date(time);
        Date(text.as_bytes().try_into().expect("an IMF-fixdate has 29 bytes until the year 9999"))
    }
}

/// Declares the statuses in one table, so that a code, its reason, and its place cannot disagree.
macro_rules! statuses {
    ($($name:ident = $code:literal $reason:literal,)*) => {
        /// The statuses of this server's responses.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Status {
            $(#[doc = concat!($code, " ", $reason)] $name,)*
        }

        impl Status {
            /// All of them, in the order of their codes, so that `status as usize` is an index.
            pub const ALL: [Status; [$($code),*].len()] = [$(Status::$name),*];

            /// The status code.
            pub fn code(self) -> u16 {
                match self { $(Status::$name => $code,)* }
            }

            fn reason(self) -> &'static str {
                match self { $(Status::$name => $reason,)* }
            }
        }
    };
}

statuses! {
    Ok = 200 "OK",
    Created = 201 "Created",
    NoContent = 204 "No Content",
    BadRequest = 400 "Bad Request",
    Unauthorized = 401 "Unauthorized",
    Forbidden = 403 "Forbidden",
    NotFound = 404 "Not Found",
    MethodNotAllowed = 405 "Method Not Allowed",
    RequestTimeout = 408 "Request Timeout",
    ContentTooLarge = 413 "Content Too Large",
    UriTooLong = 414 "URI Too Long",
    UnsupportedMediaType = 415 "Unsupported Media Type",
    ExpectationFailed = 417 "Expectation Failed",
    FieldsTooLarge = 431 "Request Header Fields Too Large",
    NotImplemented = 501 "Not Implemented",
    ServiceUnavailable = 503 "Service Unavailable",
    VersionNotSupported = 505 "HTTP Version Not Supported",
    InsufficientStorage = 507 "Insufficient Storage",
}

/// What the `Connection` field of a response has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persistence {
    /// Nothing: HTTP/1.1 stays open.
    Implied,
    /// That it stays open, for an HTTP/1.0 client that asked for it.
    KeepAlive,
    /// That it closes.
    Close,
}

/// A response of which only the date changes, as bytes.
#[derive(Clone, Debug)]
pub struct Prepared {
    status: Status,
    content_type: Option<&'static str>,
    body: &'static str,
    bytes: Vec<u8>,
    /// Where in the bytes the date belongs.
    date_at: usize,
}

impl Prepared {
    /// Prepares a response.
    pub fn new(status: Status, content_type: Option<&'static str>, body: &'static str) -> Self {
        let placeholder = Date([b'?'; DATE_BYTES]);
        let mut bytes = Vec::new();
        Reply::new(&mut bytes, &placeholder, Persistence::Implied, false).send(
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

/// Where the response to one request goes. Each of its methods writes the whole response and returns
/// its status.
#[derive(Debug)]
pub struct Reply<'a> {
    out: &'a mut Vec<u8>,
    date: &'a Date,
    persistence: Persistence,
    /// The request is a HEAD request: everything but the body (RFC 9110 section 9.3.2).
    without_body: bool,
}

impl<'a> Reply<'a> {
    pub(super) fn new(
        out: &'a mut Vec<u8>,
        date: &'a Date,
        persistence: Persistence,
        without_body: bool,
    ) -> Self {
        Reply { out, date, persistence, without_body }
    }

    /// Where in the connection's unsent bytes the response begins.
    #[inline]
    pub fn position(&self) -> usize {
        self.out.len()
    }

    /// Sends a response that was prepared.
    #[inline]
    pub fn send_prepared(self, prepared: &Prepared) -> Status {
        if self.persistence == Persistence::Implied && !self.without_body {
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
        // RFC 9110 section 8.6: a 204 has no Content-Length.
        if let Some(body) = body.filter(|_| status != Status::NoContent) {
            put(&[b"\r\nContent-Length: ", digits.format(body.len()).as_bytes()]);
        }
        if let Some(content_type) = content_type {
            put(&[b"\r\nContent-Type: ", content_type.as_bytes()]);
        }
        for (name, value) in fields {
            put(&[b"\r\n", name.as_bytes(), b": ", value.as_bytes()]);
        }
        match self.persistence {
            Persistence::Implied => {}
            Persistence::KeepAlive => put(&[b"\r\nConnection: keep-alive"]),
            Persistence::Close => put(&[b"\r\nConnection: close"]),
        }
        put(&[b"\r\n\r\n"]);
        if let Some(body) = body.filter(|_| !self.without_body) {
            put(&[body]);
        }
        status
    }

    /// Sends a status and fields in response to a HEAD request whose body is not made: without its length, which is known only
    /// then (RFC 9110 section 9.3.2).
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_an_imf_fixdate_through_the_year_9999() {
        assert_eq!(&Date::from_unix(784_111_777).0, b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(&Date::from_unix(u64::MAX).0, b"Fri, 31 Dec 9999 23:59:59 GMT");
    }

    #[test]
    fn the_index_of_a_status_is_its_place() {
        for (index, status) in Status::ALL.into_iter().enumerate() {
            assert_eq!(status as usize, index, "{status:?}");
        }
        assert!(Status::ALL.is_sorted_by_key(|status| status.code()));
    }

    #[test]
    fn a_prepared_response_is_what_would_be_sent_without_preparation() {
        let prepared = Prepared::new(Status::Created, Some("application/json"), "{}");
        for without_body in [false, true] {
            for persistence in [Persistence::Implied, Persistence::KeepAlive, Persistence::Close] {
                for seconds in [0, 1] {
                    let date = Date::from_unix(seconds);
                    // What was sent before stays as it is.
                    let (mut direct, mut from_prepared) = (b"before".to_vec(), b"before".to_vec());
                    Reply::new(&mut direct, &date, persistence, without_body)
                        .send_json(Status::Created, b"{}");
                    Reply::new(&mut from_prepared, &date, persistence, without_body)
                        .send_prepared(&prepared);
                    assert_eq!(direct, from_prepared);
                    assert_eq!(direct.ends_with(b"{}"), !without_body);
                }
            }
        }
    }

    #[test]
    fn an_error_is_valid_json_whatever_it_quotes() {
        let mut out = Vec::new();
        Reply::new(&mut out, &Date::from_unix(0), Persistence::Implied, false).send_error(
            Status::BadRequest,
            &[],
            r#"send a "userId""#,
        );
        assert!(out.ends_with(b"\r\n\r\n{\"error\":\"send a \\\"userId\\\"\"}"));
    }
}
