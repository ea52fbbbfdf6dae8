//! Parses the responses of servers to find the end of each response, its status, and whether the connection stays open.
//! Anything that RFC 9112 does not allow is an error, so that no server passes by luck.

use std::mem::MaybeUninit;

/// The most fields that a response may have.
const FIELDS_MAX: usize = 64;
/// The most bytes of a response head.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// The rule that determines the end of a body (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// A response whose end has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    /// The start of the body, and the end of the response. A chunked body is in the form that it had on the wire.
    pub(super) body_start: usize,
    pub(super) end: usize,
    /// Whether the server announces that it will close the connection.
    pub(super) says_close: bool,
    /// Whether it does so explicitly in HTTP/1.1, and must therefore not process further requests on the connection
    /// (RFC 9112 section 9.6). A response that merely ends with its connection does not promise that.
    pub(super) excludes_rest: bool,
    pub(super) is_chunked: bool,
}

/// The error if the bytes are not a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads responses. Most responses of a server begin with the same bytes as the previous response, and these bytes need
/// not be parsed again.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// All bytes of the last response up to its body, if a length delimits the body; empty otherwise.
    head: Vec<u8>,
    last: Option<Response>,
}

impl Reader {
    /// Reads the response at the start of `input`, as [`read`] does.
    #[inline]
    pub(super) fn read(
        &mut self,
        input: &[u8],
        at_end: bool,
    ) -> Result<Option<Response>, Malformed> {
        if let Some(last) = self.last
            && input.starts_with(&self.head)
        {
            return Ok((input.len() >= last.end).then_some(last));
        }
        self.read_another(input, at_end)
    }

    #[cold]
    fn read_another(&mut self, input: &[u8], at_end: bool) -> Result<Option<Response>, Malformed> {
        let found = read(input, at_end)?;
        // A response that announces a close may be delimited by the close, and it occurs only once per connection.
        self.last = found.filter(|response| !response.is_chunked && !response.says_close);
        self.head.clear();
        if let Some(response) = self.last {
            self.head.extend_from_slice(&input[..response.body_start]);
        }
        Ok(found)
    }
}

/// Reads the response at the start of `input`; `None` while it is incomplete. If `at_end` is set, the server has closed
/// the connection, which ends a body that nothing else delimits.
pub(super) fn read(input: &[u8], at_end: bool) -> Result<Option<Response>, Malformed> {
    let mut start = 0;
    loop {
        let Some(mut response) = read_one(&input[start..], at_end)? else {
            return Ok(None);
        };
        response.body_start += start;
        response.end += start;
        // Interim responses precede the final one.
        if !(100..200).contains(&response.status) {
            return Ok(Some(response));
        }
        start = response.end;
    }
}

fn read_one(input: &[u8], at_end: bool) -> Result<Option<Response>, Malformed> {
    // httparse skips empty lines before a response, but no rule allows a server to send them.
    if input.first().is_some_and(|first| matches!(first, b'\r' | b'\n')) {
        return Err(Malformed);
    }
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut head, input, &mut fields)
        .map_err(|_| Malformed)?;
    let httparse::Status::Complete(body_start) = parsed else {
        return if input.len() > HEAD_BYTES_MAX { Err(Malformed) } else { Ok(None) };
    };
    let (Some(status), Some(minor)) = (head.code, head.version) else {
        return Err(Malformed);
    };
    let (mut length, mut is_chunked, mut is_coded) = (None, false, false);
    let (mut close, mut keep_alive) = (false, false);
    for field in head.headers.iter() {
        if field.name.eq_ignore_ascii_case("content-length") {
            let stated = number(field.value, 10)?;
            // Different lengths leave the end of the body open (RFC 9112 section 6.3).
            if length.replace(stated).is_some_and(|other| other != stated) {
                return Err(Malformed);
            }
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            for coding in field.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                // `identity` was once the name for the absence of a coding (RFC 2616 section 3.6).
                if coding.is_empty() || coding.eq_ignore_ascii_case(b"identity") {
                    continue;
                }
                // Chunked must be the last coding, and must occur only once (RFC 9112 section 6.1).
                if is_chunked {
                    return Err(Malformed);
                }
                is_chunked = coding.eq_ignore_ascii_case(b"chunked");
                is_coded = true;
            }
        } else if field.name.eq_ignore_ascii_case("connection") {
            for option in field.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                close |= option.eq_ignore_ascii_case(b"close");
                keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        }
    }
    // Transfer-Encoding overrides Content-Length.
    let framing = match (length, is_chunked) {
        _ if matches!(status, 100..200 | 204 | 304) => Framing::Length(0),
        (_, true) => Framing::Chunked,
        (Some(length), false) if !is_coded => Framing::Length(length),
        (_, false) => Framing::UntilClose,
    };
    let arrived = &input[body_start..];
    let body_bytes = match framing {
        // A length that no memory can hold never arrives.
        Framing::Length(length) => {
            usize::try_from(length).ok().filter(|length| *length <= arrived.len())
        }
        Framing::Chunked => chunked_bytes(arrived)?,
        Framing::UntilClose => at_end.then_some(arrived.len()),
    };
    Ok(body_bytes.map(|body_bytes| Response {
        status,
        body_start,
        end: body_start + body_bytes,
        excludes_rest: close && minor == 1,
        says_close: close || framing == Framing::UntilClose || (minor == 0 && !keep_alive),
        is_chunked: framing == Framing::Chunked,
    }))
}

/// Returns the length of a chunked body on the wire, once it is complete.
fn chunked_bytes(wire: &[u8]) -> Result<Option<usize>, Malformed> {
    let mut at = 0;
    while let Some((line, size)) = chunk_size(&wire[at..])? {
        at += line;
        if size == 0 {
            // Trailers follow, up to an empty line.
            return loop {
                let Some(end) = memchr::memchr(b'\n', &wire[at..]) else {
                    break Ok(None);
                };
                at += end + 1;
                if end <= 1 {
                    break Ok(Some(at));
                }
            };
        }
        let end = at.checked_add(size).ok_or(Malformed)?;
        at = end.checked_add(2).ok_or(Malformed)?;
        if at > wire.len() {
            return Ok(None);
        }
        if &wire[end..at] != b"\r\n" {
            return Err(Malformed);
        }
    }
    Ok(None)
}

/// Returns the length of a chunk's first line, and the size that it states.
fn chunk_size(wire: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let Some(end) = memchr::memchr(b'\n', wire) else {
        return Ok(None);
    };
    let line = wire[..end].strip_suffix(b"\r").ok_or(Malformed)?;
    let digits = line.split(|byte| *byte == b';').next().unwrap_or(b"").trim_ascii_end();
    let size = usize::try_from(number(digits, 16)?).map_err(|_| Malformed)?;
    Ok(Some((end + 1, size)))
}

/// Parses a number according to HTTP's grammar, which allows only digits.
fn number(digits: &[u8], radix: u32) -> Result<u64, Malformed> {
    let is_digit = |byte: &u8| char::from(*byte).is_digit(radix);
    if digits.is_empty() || !digits.iter().all(is_digit) {
        return Err(Malformed);
    }
    let text = std::str::from_utf8(digits).map_err(|_| Malformed)?;
    u64::from_str_radix(text, radix).map_err(|_| Malformed)
}

/// Joins the chunks of a complete chunked body.
pub(super) fn join_chunks(wire: &[u8]) -> Result<Vec<u8>, Malformed> {
    let (mut body, mut at) = (Vec::new(), 0);
    while let Some((line, size)) = chunk_size(&wire[at..])? {
        if size == 0 {
            return Ok(body);
        }
        at += line;
        body.extend_from_slice(wire.get(at..at + size).ok_or(Malformed)?);
        at += size + 2;
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_framing_is_read_at_every_split() {
        for (text, status, body, says_close) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "", false),
            (
                "HTTP/1.1 201 Created\r\ncontent-length: 2\r\nConnection: Keep-Alive\r\n\r\n{}",
                201,
                "{}",
                false,
            ),
            (
                "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x\r\n}\r\n0\r\nT: 1\r\n\r\n",
                200,
                "{}",
                false,
            ),
            ("HTTP/1.1 204 No Content\r\n\r\n", 204, "", false),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}",
                200,
                "{}",
                false,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Identity, Chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
                200,
                "{}",
                false,
            ),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
                200,
                "x",
                false,
            ),
            ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx", 200, "x", true),
            ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, "x", true),
            ("HTTP/1.0 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx", 200, "x", true),
            (
                "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx",
                200,
                "x",
                false,
            ),
        ] {
            for split in 0..text.len() {
                assert_eq!(read(&text.as_bytes()[..split], false), Ok(None), "{text:?} at {split}");
            }
            let more = format!("{text}HTTP");
            let response = read(more.as_bytes(), false).unwrap().unwrap();
            assert_eq!((response.status, response.end), (status, text.len()), "{text:?}");
            assert_eq!(response.says_close, says_close, "{text:?}");
            let excludes_rest = text.starts_with("HTTP/1.1") && says_close;
            assert_eq!(response.excludes_rest, excludes_rest, "{text:?}");
            let wire = &text.as_bytes()[response.body_start..response.end];
            let joined =
                if response.is_chunked { join_chunks(wire).unwrap() } else { wire.to_vec() };
            assert_eq!(joined, body.as_bytes());
        }
    }

    #[test]
    fn a_body_without_length_ends_with_the_connection() {
        for fields in ["", "Transfer-Encoding: gzip\r\nContent-Length: 2\r\n"] {
            let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\nsome");
            assert_eq!(read(text.as_bytes(), false), Ok(None));
            let response = read(text.as_bytes(), true).unwrap().unwrap();
            assert!(response.says_close && response.end == text.len());
            assert!(!response.excludes_rest, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_response_is_an_error() {
        for bad in [
            "SSH-2.0-x\r\n",
            "\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 2x0 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: -0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        ] {
            assert_eq!(read(bad.as_bytes(), false), Err(Malformed), "{bad:?}");
        }
        let twice = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello";
        assert!(read(twice.as_bytes(), false).unwrap().is_some());
        for bad in [
            "ffffffffffffffff\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            " 5\r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            ";x\r\n\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello!!0\r\n\r\n",
        ] {
            let wire = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{bad}");
            assert_eq!(read(wire.as_bytes(), false), Err(Malformed), "{bad:?}");
        }
    }
}
