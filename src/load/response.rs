//! Responses as servers really send them: where one ends, what its status is, and whether the
//! connection is said to stay open.

use std::mem::MaybeUninit;

/// Fields that a response may have.
const FIELDS_MAX: usize = 64;
/// Bytes of a response head.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// How the end of a body is known (RFC 9112 section 6.3).
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
    /// Where the body starts, and where the response ends. A chunked body is as on the wire.
    pub(super) body_start: usize,
    pub(super) end: usize,
    /// The server says that it will close the connection.
    pub(super) says_close: bool,
    pub(super) is_chunked: bool,
}

/// Bytes that are no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads the response at the start of `input`: `None` while it is incomplete. With `at_end` the
/// server has closed, which ends a body that nothing else ends.
pub(super) fn read(input: &[u8], at_end: bool) -> Result<Option<Response>, Malformed> {
    let mut start = 0;
    loop {
        let Some(mut response) = read_one(&input[start..], at_end)? else {
            return Ok(None);
        };
        response.body_start += start;
        response.end += start;
        // An interim response comes before the one that is waited for.
        if !(100..200).contains(&response.status) {
            return Ok(Some(response));
        }
        start = response.end;
    }
}

fn read_one(input: &[u8], at_end: bool) -> Result<Option<Response>, Malformed> {
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
    let mut framing = None;
    let (mut close, mut keep_alive) = (false, false);
    for field in head.headers.iter() {
        if field.name.eq_ignore_ascii_case("content-length") {
            let length = std::str::from_utf8(field.value).ok().and_then(|text| text.parse().ok());
            // Transfer-Encoding, where there is one, decides.
            framing.get_or_insert(Framing::Length(length.ok_or(Malformed)?));
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            framing = Some(Framing::Chunked);
        } else if field.name.eq_ignore_ascii_case("connection") {
            for option in field.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                close |= option.eq_ignore_ascii_case(b"close");
                keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        }
    }
    if matches!(status, 100..200 | 204 | 304) {
        framing = Some(Framing::Length(0));
    }
    let framing = framing.unwrap_or(Framing::UntilClose);
    let arrived = &input[body_start..];
    let body_bytes = match framing {
        Framing::Length(length) => (length <= arrived.len() as u64).then_some(length as usize),
        Framing::Chunked => chunked_bytes(arrived)?,
        Framing::UntilClose => at_end.then_some(arrived.len()),
    };
    Ok(body_bytes.map(|body_bytes| Response {
        status,
        body_start,
        end: body_start + body_bytes,
        says_close: close || framing == Framing::UntilClose || (minor == 0 && !keep_alive),
        is_chunked: framing == Framing::Chunked,
    }))
}

/// The bytes of a whole chunked body on the wire.
fn chunked_bytes(wire: &[u8]) -> Result<Option<usize>, Malformed> {
    let mut at = 0;
    while let Some((line, size)) = chunk_size(&wire[at..])? {
        at += line;
        if size == 0 {
            // Trailers, up to an empty line.
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
        at = at.checked_add(size).and_then(|at| at.checked_add(2)).ok_or(Malformed)?;
        if at > wire.len() {
            return Ok(None);
        }
    }
    Ok(None)
}

/// The length of a chunk's first line, and the size that it states.
fn chunk_size(wire: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let Some(end) = memchr::memchr(b'\n', wire) else {
        return Ok(None);
    };
    let digits = wire[..end].split(|byte| *byte == b';').next().unwrap_or(b"").trim_ascii();
    let digits = std::str::from_utf8(digits).map_err(|_| Malformed)?;
    let size = usize::from_str_radix(digits, 16).map_err(|_| Malformed)?;
    Ok(Some((end + 1, size)))
}

/// Joins the chunks of a whole chunked body.
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
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
                200,
                "x",
                false,
            ),
            ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx", 200, "x", true),
            ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, "x", true),
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
            let wire = &text.as_bytes()[response.body_start..response.end];
            let joined =
                if response.is_chunked { join_chunks(wire).unwrap() } else { wire.to_vec() };
            assert_eq!(joined, body.as_bytes());
        }
    }

    #[test]
    fn a_body_without_length_ends_with_the_connection() {
        let text = b"HTTP/1.1 200 OK\r\n\r\nsome";
        assert_eq!(read(text, false), Ok(None));
        let response = read(text, true).unwrap().unwrap();
        assert!(response.says_close && response.end == text.len());
    }

    #[test]
    fn what_is_no_response_is_told() {
        for bad in [
            "SSH-2.0-x\r\n",
            "HTTP/1.1 2x0 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        ] {
            assert_eq!(read(bad.as_bytes(), false), Err(Malformed), "{bad:?}");
        }
        let chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n";
        assert_eq!(read(chunk, false), Err(Malformed));
    }
}
