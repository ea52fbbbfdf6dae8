//! Answers to bytes.

use std::time::{Duration, SystemTime};

/// Bytes of a date in the preferred format of RFC 9110 section 5.6.7, IMF-fixdate.
const DATE_BYTES: usize = 29;

/// The value of the `Date` field. Made once a second, so that no answer formats anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Date([u8; DATE_BYTES]);

impl Date {
    /// The date of a Unix time in seconds, which ends with the year 9999.
    pub fn from_unix(seconds: u64) -> Date {
        const END_OF_9999: u64 = 253_402_300_799;
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(END_OF_9999));
        let mut date = [b' '; DATE_BYTES];
        for (to, from) in date.iter_mut().zip(httpdate::fmt_http_date(time).bytes()) {
            *to = from;
        }
        Date(date)
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "Error",
    }
}

/// What the `Connection` field of an answer has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persistence {
    /// Nothing: HTTP/1.1 stays open.
    Implied,
    /// That it stays open, to an HTTP/1.0 client that asked for it.
    KeepAlive,
    Close,
}

/// An answer that never changes but for its date, as bytes.
#[derive(Clone, Debug)]
pub struct Prepared {
    status: u16,
    content_type: Option<&'static str>,
    body: &'static str,
    bytes: Vec<u8>,
}

impl Prepared {
    /// Prepares an answer.
    pub fn new(
        status: u16,
        content_type: Option<&'static str>,
        body: &'static str,
        date: &Date,
    ) -> Self {
        let mut prepared = Prepared { status, content_type, body, bytes: Vec::new() };
        prepared.set_date(date);
        prepared
    }

    /// Puts another date in.
    pub fn set_date(&mut self, date: &Date) {
        self.bytes.clear();
        let reply = Reply::new(&mut self.bytes, date, Persistence::Implied, false);
        reply.send(self.status, self.content_type, &[], self.body.as_bytes());
    }
}

/// Where the answer to one request goes. Each of its methods writes the whole answer and returns its
/// status.
#[derive(Debug)]
pub struct Reply<'a> {
    out: &'a mut Vec<u8>,
    date: &'a Date,
    persistence: Persistence,
    /// A HEAD request: everything but the body (RFC 9110 section 9.3.2).
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

    /// Answers with bytes made before.
    #[inline]
    pub fn send_prepared(self, prepared: &Prepared) -> u16 {
        if self.persistence == Persistence::Implied && !self.without_body {
            self.out.extend_from_slice(&prepared.bytes);
            prepared.status
        } else {
            self.send(prepared.status, prepared.content_type, &[], prepared.body.as_bytes())
        }
    }

    /// Answers with a status, a body and further fields.
    pub fn send(
        self,
        status: u16,
        content_type: Option<&str>,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> u16 {
        let mut digits = itoa::Buffer::new();
        let out = self.out;
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
        put(&[b"HTTP/1.1 ", digits.format(status).as_bytes(), b" ", reason(status).as_bytes()]);
        put(&[b"\r\nDate: ", &self.date.0]);
        // RFC 9110 section 8.6: a 204 has no Content-Length.
        if status != 204 {
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
        if !self.without_body {
            put(&[body]);
        }
        status
    }

    /// Answers with a JSON body.
    pub fn send_json(self, status: u16, body: &[u8]) -> u16 {
        self.send(status, Some("application/json"), &[], body)
    }

    /// Answers `{"error": sentence}`. The sentence is ours and stands as it is in JSON.
    pub fn send_error(self, status: u16, fields: &[(&str, &str)], sentence: &str) -> u16 {
        let body = format!("{{\"error\":\"{sentence}\"}}");
        self.send(status, Some("application/json"), fields, body.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_an_imf_fixdate_up_to_its_last_year() {
        assert_eq!(&Date::from_unix(784_111_777).0, b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(&Date::from_unix(u64::MAX).0, b"Fri, 31 Dec 9999 23:59:59 GMT");
    }

    #[test]
    fn a_prepared_answer_is_the_answer_that_would_be_sent() {
        let (mut now, mut then) = (Vec::new(), Vec::new());
        let dates = [Date::from_unix(0), Date::from_unix(1)];
        let mut prepared = Prepared::new(201, Some("application/json"), "{}", &dates[0]);
        prepared.set_date(&dates[1]);
        Reply::new(&mut now, &dates[1], Persistence::Implied, false).send_json(201, b"{}");
        Reply::new(&mut then, &dates[1], Persistence::Implied, false).send_prepared(&prepared);
        assert_eq!(now, then);
        assert!(
            now.ends_with(b"\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}")
        );
    }
}
