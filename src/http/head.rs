//! A request's head: where it ends, what it says, and whether it may be believed.

use super::target::{self, Target};
use super::{FIELDS_MAX, HEAD_BYTES_MAX, REQUEST_LINE_BYTES_MAX, Refusal};
use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::ops::Range;

/// A request method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET
    Get,
    /// HEAD
    Head,
    /// POST
    Post,
    /// OPTIONS
    Options,
    /// CONNECT
    Connect,
    /// PUT, DELETE, PATCH or TRACE: known, and of no use here.
    Other,
    /// A method that no registry knows.
    Unknown,
}

impl Method {
    fn from_name(name: &str) -> Method {
        match name {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            "OPTIONS" => Method::Options,
            "CONNECT" => Method::Connect,
            "PUT" | "DELETE" | "PATCH" | "TRACE" => Method::Other,
            _ => Method::Unknown,
        }
    }
}

/// A part of the head's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    start: u16,
    end: u16,
}
const _: () = assert!(HEAD_BYTES_MAX <= u16::MAX as usize);

impl Span {
    fn of(part: &[u8], head: &[u8]) -> Span {
        let start = part.as_ptr() as usize - head.as_ptr() as usize;
        debug_assert!(start + part.len() <= head.len());
        Span { start: start as u16, end: (start + part.len()) as u16 }
    }

    pub(super) fn range(self) -> Range<usize> {
        usize::from(self.start)..usize::from(self.end)
    }
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

/// A field that a handler asks for, seen zero times, once, or more often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Field {
    #[default]
    Absent,
    Once(Span),
    Repeated,
}

impl Field {
    fn see(&mut self, value: &[u8], head: &[u8]) {
        *self = match self {
            Field::Absent => Field::Once(Span::of(value, head)),
            _ => Field::Repeated,
        };
    }
}

/// What a complete head says. The texts stay in the buffer; spans point into it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) target: Span,
    /// Known here, so that a head that is not parsed again spares its target too.
    pub(super) has_plain_path: bool,
    /// HTTP/1.1 or later, by its own word.
    pub(super) is_1_1: bool,
    pub(super) persistent: bool,
    pub(super) framing: Framing,
    /// The value of `Content-Length`.
    pub(super) length: Option<Span>,
    pub(super) expects_continue: bool,
    pub(super) host: Field,
    pub(super) origin: Field,
    pub(super) fetch_site: Field,
    pub(super) authorization: Field,
    /// Bytes of the head, its empty line included.
    pub(super) bytes: usize,
}

impl Head {
    /// What the request is for and, in absolute-form, the host that it names instead of `Host`.
    /// `bytes` begin with the head as it came.
    #[inline]
    pub(super) fn target<'a>(
        &self,
        bytes: &'a [u8],
    ) -> Result<(Target<'a>, Option<&'a [u8]>), Refusal> {
        let raw = &bytes[self.target.range()];
        if self.has_plain_path {
            return Ok((Target::Path(Cow::Borrowed(raw)), None));
        }
        target::parse(self.method, raw)
    }
}

/// How far the search for the end of a head has come, so that no byte is looked at twice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scan {
    searched: usize,
    request_line_ended: bool,
    /// Length at which an incomplete head is looked at for early refusal; it doubles, so that
    /// a head that comes byte by byte costs linear time.
    next_look: usize,
}

impl Scan {
    /// Before the first byte.
    pub(super) const START: Scan = Scan { searched: 0, request_line_ended: false, next_look: 0 };

    /// Finds the length of the head at the start of `input`, which is what was given before
    /// and more; or what is wrong with its lines, and how many bytes come before that.
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
        // One more byte may be the CR that ends a line of exactly the limit.
        if !self.request_line_ended && input.len() > REQUEST_LINE_BYTES_MAX + 1 {
            return Err((REQUEST_LINE_BYTES_MAX, Refusal::LongRequestLine));
        }
        if input.len() >= HEAD_BYTES_MAX {
            return Err((HEAD_BYTES_MAX, Refusal::LongHead));
        }
        Ok(None)
    }

    /// Reads the head at the start of `input`; `None` where it goes on.
    pub(super) fn parse(&mut self, input: &[u8]) -> Result<Option<Head>, Refusal> {
        match self.find_end(input) {
            Ok(Some(end)) => return parse(&input[..end]).map(Some),
            Ok(None) => {}
            Err((before, refusal)) => {
                // What is wrong first decides, however the bytes were split.
                refuse_early(&input[..before])?;
                return Err(refusal);
            }
        }
        if input.len() >= self.next_look {
            self.next_look = 2 * input.len();
            refuse_early(input)?;
        }
        Ok(None)
    }
}

/// Refuses what cannot become a request, such as a TLS hello, without waiting for its end.
fn refuse_early(input: &[u8]) -> Result<(), Refusal> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(input, &mut fields) {
        // Whether the version is one of 1.x is seen when the head is complete.
        Ok(_) | Err(httparse::Error::Version) => Ok(()),
        Err(error) => Err(refusal(error)),
    }
}

fn refusal(error: httparse::Error) -> Refusal {
    match error {
        httparse::Error::TooManyHeaders => Refusal::ManyFields,
        httparse::Error::Version => Refusal::Version,
        _ => Refusal::Malformed,
    }
}

/// Reads a complete head.
fn parse(head: &[u8]) -> Result<Head, Refusal> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut fields) {
        Ok(httparse::Status::Complete(bytes)) if bytes == head.len() => interpret(&request, head),
        Ok(_) => Err(Refusal::Malformed),
        Err(httparse::Error::Version) => parse_other_version(head),
        Err(error) => Err(refusal(error)),
    }
}

/// Tells a later minor version, which is treated as 1.1 (RFC 9110 section 2.5), from what
/// this server does not speak and from what is no version at all.
fn parse_other_version(head: &[u8]) -> Result<Head, Refusal> {
    let line_end = memchr::memchr(b'\r', head).unwrap_or(head.len());
    let version = line_end.checked_sub(8).map_or(0, |start| start);
    match &head[version..line_end] {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9'] => {
            let mut as_1_1 = head.to_vec();
            as_1_1[line_end - 1] = b'1';
            parse(&as_1_1)
        }
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(Refusal::Version)
        }
        _ => Err(Refusal::Malformed),
    }
}

fn interpret(request: &httparse::Request<'_, '_>, bytes: &[u8]) -> Result<Head, Refusal> {
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
    else {
        return Err(Refusal::Malformed);
    };
    let mut head = Head {
        method: Method::from_name(method),
        target: Span::of(target.as_bytes(), bytes),
        has_plain_path: target::is_plain_path(target.as_bytes()),
        is_1_1: minor == 1,
        persistent: minor == 1,
        framing: Framing::Length(0),
        length: None,
        expects_continue: false,
        host: Field::Absent,
        origin: Field::Absent,
        fetch_site: Field::Absent,
        authorization: Field::Absent,
        bytes: bytes.len(),
    };
    let mut length = None;
    let mut codings = None;
    let (mut keep_alive, mut close, mut unmet) = (false, false, false);
    for field in request.headers.iter() {
        let (name, value) = (field.name, field.value);
        match name.len() {
            4 if name.eq_ignore_ascii_case("host") => head.host.see(value, bytes),
            6 if name.eq_ignore_ascii_case("origin") => head.origin.see(value, bytes),
            6 if name.eq_ignore_ascii_case("expect") => {
                head.expects_continue = value.eq_ignore_ascii_case(b"100-continue");
                unmet |= !head.expects_continue;
            }
            10 if name.eq_ignore_ascii_case("connection") => {
                for option in list(value) {
                    close |= option.eq_ignore_ascii_case(b"close");
                    keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            13 if name.eq_ignore_ascii_case("authorization") => {
                head.authorization.see(value, bytes);
            }
            14 if name.eq_ignore_ascii_case("content-length") => {
                let repeated = length.replace(content_length(value)?).is_some();
                if repeated {
                    return Err(Refusal::Length);
                }
                head.length = Some(Span::of(value, bytes));
            }
            14 if name.eq_ignore_ascii_case("sec-fetch-site") => head.fetch_site.see(value, bytes),
            17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                let repeated = codings.replace(value).is_some();
                if repeated {
                    return Err(Refusal::TransferEncoding);
                }
            }
            _ => {}
        }
    }
    head.framing = framing(length, codings, head.is_1_1)?;
    check_host(&head, bytes)?;
    head.persistent = !close && (head.is_1_1 || keep_alive);
    if unmet && head.is_1_1 {
        return Err(Refusal::Expectation);
    }
    // RFC 9110 section 10.1.1: an HTTP/1.0 client cannot read a 100.
    head.expects_continue &= head.is_1_1;
    Ok(head)
}

/// The elements of a comma-separated list (RFC 9110 section 5.6.1).
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// A decimal number and nothing else; `parse` of the standard library would take a sign.
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

/// The framing rules of RFC 9112 section 6.3, without any of its leniencies.
fn framing(length: Option<u64>, codings: Option<&[u8]>, is_1_1: bool) -> Result<Framing, Refusal> {
    let Some(codings) = codings else {
        return Ok(Framing::Length(length.unwrap_or(0)));
    };
    if length.is_some() {
        return Err(Refusal::Length);
    }
    let chunked = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let last_is_chunked = list(codings).last().as_ref().is_some_and(chunked);
    if !is_1_1 || !last_is_chunked || list(codings).filter(|coding| chunked(coding)).count() > 1 {
        return Err(Refusal::TransferEncoding);
    }
    if list(codings).count() > 1 {
        return Err(Refusal::UnknownCoding);
    }
    Ok(Framing::Chunked)
}

fn check_host(head: &Head, bytes: &[u8]) -> Result<(), Refusal> {
    match head.host {
        Field::Once(host) if valid_host(&bytes[host.range()]) => Ok(()),
        Field::Absent if !head.is_1_1 => Ok(()),
        _ => Err(Refusal::Host),
    }
}

/// `uri-host [":" port]` of RFC 3986 section 3.2.2, by its characters. Empty is legal.
pub(super) fn valid_host(value: &[u8]) -> bool {
    let (name, port) = match value.first() {
        Some(b'[') => {
            let Some(end) = memchr::memchr(b']', value) else {
                return false;
            };
            let address = std::str::from_utf8(&value[1..end]).unwrap_or("");
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            (&[][..], &value[end + 1..])
        }
        _ => value.split_at(memchr::memchr(b':', value).unwrap_or(value.len())),
    };
    let named =
        name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(byte));
    let ported = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    // A port belongs to a name.
    named && ported && (!name.is_empty() || port.is_empty() || value[0] == b'[')
}
