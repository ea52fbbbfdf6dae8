//! A request's head: its end, its content, and whether it can be trusted.

use super::authority;
use super::method::Method;
use super::refusal::Refusal;
use super::target::{self, Target};
use super::{FIELDS_MAX, HEAD_BYTES_MAX, REQUEST_LINE_BYTES_MAX};
use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::ops::Range;

/// A part of the head's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    start: u16,
    end: u16,
}
const _: () = assert!(HEAD_BYTES_MAX <= u16::MAX as usize);

impl Span {
    const EMPTY: Span = Span { start: 0, end: 0 };

    fn of(part: &[u8], head: &[u8]) -> Span {
        let start = part.as_ptr() as usize - head.as_ptr() as usize;
        let end = start + part.len();
        assert!(end <= head.len(), "a span is a part of its head");
        #[expect(clippy::cast_possible_truncation, reason = "a head is shorter than 2^16 bytes")]
        let span = Span { start: start as u16, end: end as u16 };
        span
    }

    pub(super) fn range(self) -> Range<usize> {
        usize::from(self.start)..usize::from(self.end)
    }
}

/// The rule that determines the end of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

/// A field that may be sent at most once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Field<T> {
    #[default]
    Absent,
    Once(T),
    Repeated,
}

impl<T: Copy> Field<T> {
    fn see(&mut self, value: T) {
        *self = match self {
            Field::Absent => Field::Once(value),
            Field::Once(_) | Field::Repeated => Field::Repeated,
        };
    }

    /// Returns whether the field is absent or has a value that `accepts` returns true for.
    fn is_none_or(self, accepts: impl Fn(T) -> bool) -> bool {
        match self {
            Field::Absent => true,
            Field::Once(value) => accepts(value),
            Field::Repeated => false,
        }
    }
}

/// The content of a complete head. The text stays in the buffer; spans point into it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) target: Span,
    /// Determined here, so that a head that is not parsed again does not need its target parsed, either.
    pub(super) has_plain_path: bool,
    /// Whether the version is HTTP/1.1 or later.
    pub(super) is_1_1: bool,
    pub(super) is_persistent: bool,
    pub(super) framing: Framing,
    /// The value of `Content-Length`.
    pub(super) length: Option<Span>,
    pub(super) expects_continue: bool,
    /// The host that the request is for: `Host`, unless an absolute-form target names a different host.
    pub(super) host: Span,
    /// Whether a browser sent this, possibly for a page of another site.
    pub(super) is_cross_site: bool,
    /// Whether it has a field that proxies add.
    pub(super) is_forwarded: bool,
    /// Whether the body has a content coding.
    pub(super) is_encoded: bool,
    /// Whether the handler takes the body as a batch. Determined with the head, so that a head found in the cache
    /// saves this check, too.
    pub(super) is_batch: bool,
    /// The value of `Authorization`; an empty span if the field is repeated.
    pub(super) authorization: Option<Span>,
    /// The value of `Accept`, unless the field is repeated: the server may then send any type.
    pub(super) accept: Option<Span>,
    /// The number of bytes of the head, including its empty line.
    pub(super) bytes: usize,
}

impl Head {
    /// Returns the number of bytes of the head, which is less than 2^16.
    pub(super) fn length(&self) -> u16 {
        u16::try_from(self.bytes).unwrap_or(u16::MAX)
    }

    /// Returns whether the client will not send anything after the request: it has announced that, or HTTP/1.0 implies it (RFC
    /// 9112 section 9.6), and neither an optional body nor the data of a tunnel can follow.
    #[inline]
    pub(super) fn is_last(&self) -> bool {
        !self.is_persistent && !self.expects_continue && self.method != Method::Connect
    }

    /// Returns the target of the request. `bytes` must start with the head.
    #[inline]
    pub(super) fn target<'a>(&self, bytes: &'a [u8]) -> Result<Target<'a>, Refusal> {
        let raw = &bytes[self.target.range()];
        if self.has_plain_path {
            return Ok(Target::Path(Cow::Borrowed(raw)));
        }
        let (target, _) = target::parse(self.method, raw)?;
        Ok(target)
    }
}

/// The progress of the search for the end of a head. It ensures that no byte is examined twice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scan {
    searched: usize,
    request_line_ended: bool,
    /// The length that an incomplete head must reach before it is next checked for early refusal. It doubles, so that a head
    /// that arrives byte by byte costs linear time.
    next_check: usize,
}

impl Scan {
    /// The state before the first byte.
    pub(super) const START: Scan = Scan { searched: 0, request_line_ended: false, next_check: 0 };

    /// Finds the length of the head at the start of `input`, which begins with the input of earlier
    /// calls. If a line is invalid, returns the reason and the number of bytes before it.
    fn find_end(&mut self, input: &[u8]) -> Result<Option<usize>, (usize, Refusal)> {
        for line_feed in memchr::memchr_iter(b'\n', &input[self.searched..]) {
            let at = self.searched + line_feed;
            if at == 0 || input[at - 1] != b'\r' {
                return Err((at, Refusal::BareLineFeed));
            }
            if !self.request_line_ended {
                self.request_line_ended = true;
                if at - 1 > REQUEST_LINE_BYTES_MAX {
                    return Err((REQUEST_LINE_BYTES_MAX, Refusal::LongRequestLine));
                }
            }
            if at >= HEAD_BYTES_MAX {
                return Err((HEAD_BYTES_MAX, Refusal::LongHead));
            }
            if at >= 2 && input[at - 2] == b'\n' {
                return Ok(Some(at + 1));
            }
        }
        self.searched = input.len();
        // An additional byte may be the CR that ends a line of exactly the maximum length.
        if !self.request_line_ended && input.len() > REQUEST_LINE_BYTES_MAX + 1 {
            return Err((REQUEST_LINE_BYTES_MAX, Refusal::LongRequestLine));
        }
        if input.len() >= HEAD_BYTES_MAX {
            return Err((HEAD_BYTES_MAX, Refusal::LongHead));
        }
        Ok(None)
    }

    /// Parses the head at the start of `input`, sent to a server that is bound to `bound_host`.
    /// Returns `None` if the head is incomplete.
    pub(super) fn parse(
        &mut self,
        input: &[u8],
        bound_host: &str,
    ) -> Result<Option<Head>, Refusal> {
        match self.find_end(input) {
            Ok(Some(end)) => return parse(&input[..end], bound_host).map(Some),
            Ok(None) => {}
            Err((before, refusal)) => {
                // The first error counts, however the bytes were split.
                refuse_early(&input[..before])?;
                return Err(refusal);
            }
        }
        if input.len() >= self.next_check {
            self.next_check = 2 * input.len();
            refuse_early(input)?;
        }
        Ok(None)
    }
}

/// Refuses input that cannot become a request, such as a TLS handshake, without waiting for its end.
fn refuse_early(input: &[u8]) -> Result<(), Refusal> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(input, &mut fields) {
        // The version is checked when the head is complete.
        Ok(_) | Err(httparse::Error::Version) => Ok(()),
        Err(error) => Err(refusal(error)),
    }
}

fn refusal(error: httparse::Error) -> Refusal {
    match error {
        httparse::Error::TooManyHeaders => Refusal::ManyFields,
        _ => Refusal::Malformed,
    }
}

/// Parses a complete head.
fn parse(head: &[u8], bound_host: &str) -> Result<Head, Refusal> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut fields) {
        Ok(httparse::Status::Complete(bytes)) if bytes == head.len() => {
            interpret(&request, head, bound_host)
        }
        Ok(_) => Err(Refusal::Malformed),
        Err(httparse::Error::Version) => parse_other_version(head, bound_host),
        Err(error) => Err(refusal(error)),
    }
}

/// The start of the HTTP/2 connection preface, up to the bytes that look like the end of a head (RFC 9113 section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// Parses a later minor version as 1.1 (RFC 9110 section 2.5), and distinguishes an unsupported version from a
/// malformed one.
fn parse_other_version(head: &[u8], bound_host: &str) -> Result<Head, Refusal> {
    let line_end = memchr::memchr(b'\r', head).unwrap_or(head.len());
    match &head[line_end.saturating_sub(8)..line_end] {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9'] => {
            let mut as_1_1 = head.to_vec();
            as_1_1[line_end - 1] = b'1';
            parse(&as_1_1, bound_host)
        }
        b"HTTP/2.0" if head == HTTP2_PREFACE => Err(Refusal::Http2),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(Refusal::Version)
        }
        _ => Err(Refusal::Malformed),
    }
}

/// The content of a head's fields.
#[derive(Debug, Default)]
struct Fields<'a> {
    host: Field<&'a [u8]>,
    origin: Field<&'a [u8]>,
    fetch_site: Field<&'a [u8]>,
    length: Field<&'a [u8]>,
    codings: Field<&'a [u8]>,
    authorization: Field<&'a [u8]>,
    accept: Field<&'a [u8]>,
    is_forwarded: bool,
    is_encoded: bool,
    keep_alive: bool,
    close: bool,
    expects_continue: bool,
    expects_other: bool,
}

impl<'a> Fields<'a> {
    fn see(&mut self, name: &str, value: &'a [u8]) {
        match name.len() {
            3 if name.eq_ignore_ascii_case("via") => self.is_forwarded = true,
            4 if name.eq_ignore_ascii_case("host") => self.host.see(value),
            6 if name.eq_ignore_ascii_case("origin") => self.origin.see(value),
            6 if name.eq_ignore_ascii_case("accept") => self.accept.see(value),
            6 if name.eq_ignore_ascii_case("expect") => {
                self.expects_continue = value.eq_ignore_ascii_case(b"100-continue");
                self.expects_other |= !self.expects_continue;
            }
            9 if name.eq_ignore_ascii_case("forwarded") => self.is_forwarded = true,
            9 if name.eq_ignore_ascii_case("x-real-ip") => self.is_forwarded = true,
            10 if name.eq_ignore_ascii_case("connection") => {
                for option in list(value) {
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            13 if name.eq_ignore_ascii_case("authorization") => self.authorization.see(value),
            14 if name.eq_ignore_ascii_case("content-length") => self.length.see(value),
            14 if name.eq_ignore_ascii_case("sec-fetch-site") => self.fetch_site.see(value),
            16 if name.eq_ignore_ascii_case("content-encoding") => {
                let is_identity = |coding: &[u8]| coding.eq_ignore_ascii_case(b"identity");
                self.is_encoded |=
                    !list(value).all(|coding| coding.is_empty() || is_identity(coding));
            }
            17 if name.eq_ignore_ascii_case("transfer-encoding") => self.codings.see(value),
            13.. => {
                let start = &name.as_bytes()[..12];
                self.is_forwarded |= start.eq_ignore_ascii_case(b"x-forwarded-");
            }
            _ => {}
        }
    }
}

fn interpret(
    request: &httparse::Request<'_, '_>,
    bytes: &[u8],
    bound_host: &str,
) -> Result<Head, Refusal> {
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
    else {
        panic!("httparse sets all parts of a request line that it calls complete");
    };
    let (method, target) = (Method::from_name(method), target.as_bytes());
    let is_1_1 = minor == 1;
    let mut fields = Fields::default();
    request.headers.iter().for_each(|field| fields.see(field.name, field.value));
    let framing = framing(fields.length, fields.codings, is_1_1)?;
    let host = match fields.host {
        Field::Once(host) if authority::is_valid(host) => host,
        Field::Absent if !is_1_1 => b"",
        _ => return Err(Refusal::Host),
    };
    if fields.expects_other && is_1_1 {
        return Err(Refusal::Expectation);
    }
    let has_plain_path = target::is_plain_path(target);
    let host = match has_plain_path {
        true => host,
        // A target that cannot be parsed is refused once the request is complete.
        false => target::parse(method, target).ok().and_then(|(_, host)| host).unwrap_or(host),
    };
    let once = |field: Field<&[u8]>| match field {
        Field::Once(value) => Some(Span::of(value, bytes)),
        Field::Absent | Field::Repeated => None,
    };
    Ok(Head {
        method,
        target: Span::of(target, bytes),
        has_plain_path,
        is_1_1,
        is_persistent: !fields.close && (is_1_1 || fields.keep_alive),
        framing,
        length: once(fields.length),
        // RFC 9110 section 10.1.1: an HTTP/1.0 client cannot read a 100.
        expects_continue: fields.expects_continue && is_1_1,
        host: if host.is_empty() { Span::EMPTY } else { Span::of(host, bytes) },
        is_cross_site: is_cross_site(fields.origin, fields.fetch_site, host, bound_host),
        is_forwarded: fields.is_forwarded,
        is_encoded: fields.is_encoded,
        is_batch: false,
        authorization: match fields.authorization {
            Field::Repeated => Some(Span::EMPTY),
            field => once(field),
        },
        accept: once(fields.accept),
        bytes: bytes.len(),
    })
}

/// Returns whether a browser sent a request, possibly for a page of another site. Only browsers send `Origin` and
/// `Sec-Fetch-Site`. A request with either field is trusted if both name this server's own page as its source, and if the host
/// is not a name that somebody else has pointed at this server.
fn is_cross_site(
    origin: Field<&[u8]>,
    fetch_site: Field<&[u8]>,
    host: &[u8],
    bound_host: &str,
) -> bool {
    if origin == Field::Absent && fetch_site == Field::Absent {
        return false;
    }
    let is_same_origin = origin.is_none_or(|origin| {
        origin.strip_prefix(b"http://").is_some_and(|origin| origin.eq_ignore_ascii_case(host))
    }) && fetch_site.is_none_or(|site| site == b"same-origin");
    !(is_same_origin && authority::names_server(host, bound_host))
}

/// Returns the elements of a comma-separated list (RFC 9110 section 5.6.1).
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// Returns the value of `Content-Length`: decimal digits and nothing else. `str::parse` would accept a sign.
pub(super) fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() {
        return Err(Refusal::Length);
    }
    value
        .iter()
        .try_fold(0u64, |length, byte| {
            let digit = byte.checked_sub(b'0').filter(|digit| *digit <= 9)?;
            length.checked_mul(10)?.checked_add(u64::from(digit))
        })
        .ok_or(Refusal::Length)
}

/// Applies the framing rules of RFC 9112 section 6.3, without any of its leniencies.
fn framing(length: Field<&[u8]>, codings: Field<&[u8]>, is_1_1: bool) -> Result<Framing, Refusal> {
    match (length, codings) {
        (Field::Absent, Field::Absent) => Ok(Framing::Length(0)),
        (Field::Once(length), Field::Absent) => content_length(length).map(Framing::Length),
        (Field::Absent, Field::Once(codings)) => chunked(codings, is_1_1),
        (Field::Absent, Field::Repeated) => Err(Refusal::TransferEncoding),
        (Field::Repeated, _) | (Field::Once(_), _) => Err(Refusal::Length),
    }
}

/// Returns the framing that a list of transfer codings specifies.
fn chunked(codings: &[u8], is_1_1: bool) -> Result<Framing, Refusal> {
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let is_last_chunked = list(codings).last().is_some_and(is_chunked);
    let times_chunked = list(codings).filter(|coding| is_chunked(coding)).count();
    if !is_1_1 || !is_last_chunked || times_chunked > 1 {
        return Err(Refusal::TransferEncoding);
    }
    if list(codings).count() > 1 {
        return Err(Refusal::UnknownCoding);
    }
    Ok(Framing::Chunked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(head: &str) -> Result<Head, Refusal> {
        let mut scan = Scan::START;
        scan.parse(head.as_bytes(), "a").map(|head| head.expect("the head is complete"))
    }

    fn with(field: &str) -> Result<Head, Refusal> {
        parsed(&format!("POST /event HTTP/1.1\r\nHost: a\r\n{field}\r\n"))
    }

    /// Returns everything about a head except its length.
    fn meaning(head: Result<Head, Refusal>) -> String {
        format!("{:?}", head.map(|head| Head { bytes: 0, ..head }))
    }

    #[test]
    fn fields_are_known_by_their_whole_names() {
        let plain = meaning(with(""));
        for (name, value) in [
            ("Via", "1.1 p"),
            ("Host", "b"),
            ("Origin", "http://b"),
            ("Accept", "text/plain"),
            ("Expect", "100-continue"),
            ("Forwarded", "for=b"),
            ("X-Real-IP", "192.0.2.1"),
            ("Connection", "close"),
            ("Authorization", "Bearer b"),
            ("Content-Length", "7"),
            ("Sec-Fetch-Site", "cross-site"),
            ("Content-Encoding", "gzip"),
            ("Transfer-Encoding", "chunked"),
            ("X-Forwarded-For", "192.0.2.1"),
        ] {
            let as_it_is = meaning(with(&format!("{name}: {value}\r\n")));
            assert_ne!(as_it_is, plain, "{name}");
            let in_capitals = meaning(with(&format!("{}: {value}\r\n", name.to_uppercase())));
            assert_eq!(in_capitals, as_it_is, "{name}");
            let other = format!("Q{}", &name[1..]);
            assert_eq!(meaning(with(&format!("{other}: {value}\r\n"))), plain, "{other}");
        }
    }

    #[test]
    fn a_request_is_the_last_if_nothing_may_follow_it() {
        let is_last = |head: &str| parsed(head).unwrap().is_last();
        for (head, expected) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", true),
            ("GET / HTTP/1.0\r\n\r\n", true),
            ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", false),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n",
                false,
            ),
            ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nConnection: close\r\n\r\n", false),
        ] {
            assert_eq!(is_last(head), expected, "{head}");
            assert_eq!(usize::from(parsed(head).unwrap().length()), head.len());
        }
    }

    #[test]
    fn a_version_that_is_not_supported_is_a_version() {
        for (version, expected) in [
            ("HTTP/2.0", Refusal::Version),
            ("HTTP/0.9", Refusal::Version),
            ("HTTP/x.1", Refusal::Malformed),
            ("HTTP/2.x", Refusal::Malformed),
            ("HTTP/11.", Refusal::Malformed),
        ] {
            assert_eq!(
                parsed(&format!("GET / {version}\r\n\r\n")).unwrap_err(),
                expected,
                "{version}"
            );
        }
        assert!(parsed("GET / HTTP/1.2\r\nHost: a\r\n\r\n").unwrap().is_1_1);
        assert_eq!(parsed("PRI * HTTP/2.0\r\n\r\n").unwrap_err(), Refusal::Http2);
    }

    #[test]
    fn request_lines_and_heads_are_refused_above_their_limits_however_they_arrive() {
        let line = |bytes: usize| format!("GET /{} HTTP/1.1", "a".repeat(bytes - 14));
        let with_line = |bytes| line(bytes) + "\r\nHost: a\r\n\r\n";
        let with_head = |bytes: usize| {
            let start = "GET / HTTP/1.1\r\nHost: a\r\nX: ";
            format!("{start}{}\r\n\r\n", "x".repeat(bytes - start.len() - 4))
        };
        let (line_max, head_max) = (REQUEST_LINE_BYTES_MAX, HEAD_BYTES_MAX);
        for (head, refusal) in [
            (with_line(line_max - 1), None),
            (with_line(line_max), None),
            (with_line(line_max + 1), Some(Refusal::LongRequestLine)),
            (with_head(head_max - 1), None),
            (with_head(head_max), None),
            (with_head(head_max + 1), Some(Refusal::LongHead)),
        ] {
            let edges = [line_max, head_max, head.len()];
            let around = edges.iter().flat_map(|edge| edge.saturating_sub(3)..edge + 3);
            for first in around.chain([1, 20]).filter(|first| *first < head.len()) {
                let mut scan = Scan::START;
                let begun = scan.parse(&head.as_bytes()[..first], "a").map(|whole| {
                    assert!(whole.is_none(), "{first} of {} bytes", head.len());
                });
                let all = begun.and_then(|()| scan.parse(head.as_bytes(), "a"));
                assert_eq!(all.err(), refusal, "{first} of {} bytes first", head.len());
            }
        }
        // The end does not have to arrive.
        let begun = |input: &str| {
            let mut scan = Scan::START;
            scan.parse(input.as_bytes(), "a").map(|_| ())
        };
        let endless = line(line_max + 2);
        assert_eq!(begun(&endless[..=line_max]), Ok(()), "a CR may come next");
        assert_eq!(begun(&endless), Err(Refusal::LongRequestLine));
        let endless = with_head(head_max + 9);
        assert_eq!(begun(&endless[..head_max - 1]), Ok(()));
        assert_eq!(begun(&endless[..head_max]), Err(Refusal::LongHead));
    }

    #[test]
    fn what_cannot_become_a_request_is_refused_before_its_end() {
        let begun = |input: &[u8]| {
            let mut scan = Scan::START;
            scan.parse(input, "a").map(|_| ())
        };
        assert_eq!(begun(b"\x16\x03\x01"), Err(Refusal::Malformed), "a TLS handshake");
        assert_eq!(begun(b"GET / HTTP/1.1\r\nHost a\r\n"), Err(Refusal::Malformed));
        assert_eq!(begun(b"GET / HTTP/7.7\r\n"), Ok(()), "the version comes last");
        let fields = |number: usize| "A: b\r\n".repeat(number - 1);
        for (number, refusal) in [(FIELDS_MAX, None), (FIELDS_MAX + 1, Some(Refusal::ManyFields))] {
            assert_eq!(with(&fields(number)).err(), refusal, "{number} fields");
        }
        // Checks become rarer as the input grows.
        let mut scan = Scan::START;
        for (length, next_check) in [(3, 6), (5, 6), (6, 12), (11, 12), (13, 26)] {
            scan.parse(&b"GET / HTTP/1."[..length], "a").unwrap();
            assert_eq!(scan.next_check, next_check, "after {length} bytes");
        }
    }

    #[test]
    fn chunked_must_come_last_and_once_and_alone() {
        let refusal = |codings| with(&format!("Transfer-Encoding: {codings}\r\n")).err();
        assert_eq!(refusal("Chunked"), None);
        for codings in ["chunked, chunked", "chunked, gzip", "gzip"] {
            assert_eq!(refusal(codings), Some(Refusal::TransferEncoding), "{codings}");
        }
        assert_eq!(refusal("gzip, chunked"), Some(Refusal::UnknownCoding));
    }

    #[test]
    fn one_field_that_names_this_server_as_the_source_is_enough() {
        for (fields, expected) in [
            ("", false),
            ("Origin: http://A\r\n", false),
            ("Sec-Fetch-Site: same-origin\r\n", false),
            ("Origin: http://a\r\nSec-Fetch-Site: same-origin\r\n", false),
            ("Origin: http://b\r\nSec-Fetch-Site: same-origin\r\n", true),
            ("Origin: http://a\r\nSec-Fetch-Site: same-site\r\n", true),
            ("Origin: http://a\r\nOrigin: http://a\r\n", true),
            ("Origin: a\r\n", true),
        ] {
            assert_eq!(with(fields).unwrap().is_cross_site, expected, "{fields}");
        }
    }
}
