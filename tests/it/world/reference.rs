//! A second reader of HTTP/1.1, slow and obvious: it reads the whole input line by line, and is stateless between calls. The
//! fast reader must accept exactly what this one accepts.

/// A request that may be acted upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub method: String,
    /// The decoded path; `*` and `host:port` are as they were sent.
    pub path: Vec<u8>,
    pub body: Vec<u8>,
}

/// The state after the last accepted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// More may come.
    Open,
    /// The last request asked to close the connection.
    Closed,
    /// Something is refused, and the connection with it.
    Refused,
}

pub struct Limits {
    pub request_line: usize,
    pub head: usize,
    pub fields: usize,
    pub body: usize,
    pub batch: usize,
    pub chunk_framing: usize,
    pub empty_lines: usize,
}

/// The reason why no request was read.
enum Stop {
    Incomplete,
    Refused,
}

/// Reads all of a connection's input.
pub fn read(input: &[u8], limits: &Limits) -> (Vec<Accepted>, End) {
    let mut accepted = Vec::new();
    let mut rest = input;
    loop {
        match read_one(&mut rest, limits) {
            Ok((request, persists)) => {
                accepted.push(request);
                if !persists {
                    return (accepted, End::Closed);
                }
            }
            Err(Stop::Incomplete) => return (accepted, End::Open),
            Err(Stop::Refused) => return (accepted, End::Refused),
        }
    }
}

fn must(condition: bool) -> Result<(), Stop> {
    condition.then_some(()).ok_or(Stop::Refused)
}

/// Returns the line up to the next LF, without its CR LF.
fn line<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Stop> {
    let end = rest.iter().position(|byte| *byte == b'\n').ok_or(Stop::Incomplete)?;
    must(end > 0 && rest[end - 1] == b'\r')?;
    let line = &rest[..end - 1];
    *rest = &rest[end + 1..];
    Ok(line)
}

fn is_token(text: &[u8]) -> bool {
    let is_token_byte =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(is_token_byte)
}

fn read_one(rest: &mut &[u8], limits: &Limits) -> Result<(Accepted, bool), Stop> {
    let mut empty = 0;
    while rest.first() == Some(&b'\r') {
        must(rest.len() < 2 || rest[1] == b'\n')?;
        if rest.len() < 2 {
            return Err(Stop::Incomplete);
        }
        empty += 1;
        must(empty <= limits.empty_lines)?;
        *rest = &rest[2..];
    }
    let start = *rest;
    if start.is_empty() {
        return Err(Stop::Incomplete);
    }
    let head_len = match start.windows(4).position(|window| window == b"\r\n\r\n") {
        Some(end) => end + 4,
        None => {
            // It is refused now or when it continues, but never accepted.
            must(start.len() < limits.head)?;
            return Err(Stop::Incomplete);
        }
    };
    must(head_len <= limits.head)?;

    let request_line = line(rest)?;
    must(request_line.len() <= limits.request_line)?;
    let parts: Vec<&[u8]> = request_line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = parts[..] else { return Err(Stop::Refused) };
    must(is_token(method))?;
    must(!target.is_empty() && target.iter().all(|byte| *byte > b' ' && *byte != 0x7f))?;
    must(version.len() == 8 && version.starts_with(b"HTTP/1.") && version[7].is_ascii_digit())?;
    let is_1_1 = version[7] >= b'1';

    let mut fields: Vec<(String, &[u8])> = Vec::new();
    loop {
        let field = line(rest)?;
        if field.is_empty() {
            break;
        }
        let colon = field.iter().position(|byte| *byte == b':').ok_or(Stop::Refused)?;
        must(is_token(&field[..colon]))?;
        let value = &field[colon + 1..];
        must(value.iter().all(|byte| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f))?;
        let name = String::from_utf8_lossy(&field[..colon]).to_ascii_lowercase();
        fields.push((name, value.trim_ascii()));
    }
    must(fields.len() <= limits.fields)?;
    let all = |name: &str| -> Vec<&[u8]> {
        fields.iter().filter(|field| field.0 == name).map(|field| field.1).collect()
    };
    let options: Vec<String> = all("connection")
        .iter()
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(|option| String::from_utf8_lossy(option.trim_ascii()).to_ascii_lowercase())
        .collect();

    match all("host")[..] {
        [] => must(!is_1_1)?,
        [host] => must(is_host(host))?,
        _ => return Err(Stop::Refused),
    }
    let expectations = all("expect");
    let waits = |value: &&[u8]| value.eq_ignore_ascii_case(b"100-continue");
    must(!is_1_1 || expectations.iter().all(waits))?;

    let method = String::from_utf8_lossy(method).into_owned();
    let is_tunnel = method == "CONNECT" && !target.starts_with(b"/");
    let asks_to_persist = if is_1_1 { true } else { options.contains(&"keep-alive".into()) };
    let persists = asks_to_persist && !options.contains(&"close".into()) && !is_tunnel;

    let waits = is_1_1 && !expectations.is_empty();
    // A target is examined when the body has arrived, or when the client waits before it sends the body.
    let turned_down = |rest: &[u8]| {
        if !waits || !rest.is_empty() {
            return Ok(None);
        }
        let path = read_target(&method, target)?;
        let is_wanted = method == "POST" && (path == b"/event" || path == b"/events");
        Ok((!is_wanted).then(|| Accepted { method: method.clone(), path, body: Vec::new() }))
    };
    let is_batch =
        method == "POST" && read_target(&method, target).is_ok_and(|path| path == b"/events");
    let (body_max, framing_max) = match is_batch {
        true => (limits.batch, limits.batch.max(limits.chunk_framing)),
        false => (limits.body, limits.chunk_framing),
    };
    let body = match (all("content-length")[..].to_vec(), all("transfer-encoding")[..].to_vec()) {
        (lengths, codings) if codings.is_empty() => {
            must(lengths.len() <= 1)?;
            let length = match lengths.first() {
                None => 0,
                Some(digits) => {
                    must(!digits.is_empty() && digits.iter().all(u8::is_ascii_digit))?;
                    let digits = String::from_utf8_lossy(digits);
                    digits.parse::<u64>().map_err(|_| Stop::Refused)?
                }
            };
            must(length <= body_max as u64)?;
            if length > 0
                && let Some(request) = turned_down(rest)?
            {
                return Ok((request, false));
            }
            if (rest.len() as u64) < length {
                return Err(Stop::Incomplete);
            }
            #[allow(clippy::cast_possible_truncation, reason = "it is at most the rest")]
            let (body, after) = rest.split_at(length as usize);
            *rest = after;
            body.to_vec()
        }
        (lengths, codings) => {
            must(lengths.is_empty() && is_1_1 && codings.len() == 1)?;
            must(codings[0].eq_ignore_ascii_case(b"chunked"))?;
            if let Some(request) = turned_down(rest)? {
                return Ok((request, false));
            }
            read_chunked(rest, body_max, framing_max)?
        }
    };
    let path = read_target(&method, target)?;
    Ok((Accepted { method, path, body }, persists))
}

fn is_host(host: &[u8]) -> bool {
    let text = String::from_utf8_lossy(host).into_owned();
    let is_port = |port: &str| port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(bracketed) = text.strip_prefix('[') {
        let Some((address, port)) = bracketed.split_once(']') else { return false };
        return address.parse::<std::net::Ipv6Addr>().is_ok()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text.as_str(), None),
    };
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&byte))
        && port.is_none_or(|port| !name.is_empty() && is_port(port))
}

fn read_target(method: &str, target: &[u8]) -> Result<Vec<u8>, Stop> {
    must(target.iter().all(u8::is_ascii_graphic) && !target.contains(&b'#'))?;
    if method == "CONNECT" && !target.starts_with(b"/") {
        must(is_host(target) && target.contains(&b':'))?;
        return Ok(target.to_vec());
    }
    let mut path = target;
    if !target.starts_with(b"/") {
        if target == b"*" {
            must(method == "OPTIONS")?;
            return Ok(b"*".to_vec());
        }
        let text = target.to_ascii_lowercase();
        let scheme = if text.starts_with(b"http://") {
            7
        } else {
            must(text.starts_with(b"https://"))?;
            8
        };
        let after = &target[scheme..];
        let end = after.iter().position(|byte| b"/?".contains(byte)).unwrap_or(after.len());
        must(end > 0 && is_host(&after[..end]))?;
        path = &after[end..];
    }
    path = path.split(|byte| *byte == b'?').next().unwrap_or_default();
    if path.is_empty() {
        return Ok(if method == "OPTIONS" { b"*".to_vec() } else { b"/".to_vec() });
    }
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < path.len() {
        if path[at] != b'%' {
            decoded.push(path[at]);
            at += 1;
            continue;
        }
        let digits = path.get(at + 1..at + 3).ok_or(Stop::Refused)?;
        must(digits.iter().all(u8::is_ascii_hexdigit))?;
        let digits = String::from_utf8_lossy(digits).into_owned();
        decoded.push(u8::from_str_radix(&digits, 16).map_err(|_| Stop::Refused)?);
        at += 3;
    }
    Ok(decoded)
}

/// Returns whether this is `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )`, except that white space may not
/// come before the first `;` (RFC 9112 section 7.1.1).
fn is_extension(mut rest: &[u8]) -> bool {
    /// Takes the longest prefix of bytes that `is_part` accepts.
    fn take<'a>(rest: &mut &'a [u8], is_part: impl Fn(u8) -> bool) -> &'a [u8] {
        let end = rest.iter().position(|byte| !is_part(*byte)).unwrap_or(rest.len());
        let (taken, after) = rest.split_at(end);
        *rest = after;
        taken
    }
    fn skip_space(rest: &mut &[u8]) {
        take(rest, |byte| byte == b' ' || byte == b'\t');
    }
    let is_token_byte = |byte: u8| is_token(&[byte]);
    while !rest.is_empty() {
        let Some(after) = rest.strip_prefix(b";") else { return false };
        rest = after;
        skip_space(&mut rest);
        if take(&mut rest, is_token_byte).is_empty() {
            return false;
        }
        let before_space = rest;
        skip_space(&mut rest);
        if let Some(after) = rest.strip_prefix(b"=") {
            rest = after;
            skip_space(&mut rest);
            if let Some(after) = rest.strip_prefix(b"\"") {
                rest = after;
                loop {
                    let Some((byte, after)) = rest.split_first() else { return false };
                    rest = after;
                    let quoted = match byte {
                        b'"' => break,
                        b'\\' => {
                            let Some((quoted, after)) = rest.split_first() else { return false };
                            rest = after;
                            quoted
                        }
                        byte => byte,
                    };
                    if !(*quoted == b'\t' || *quoted >= b' ' && *quoted != 0x7f) {
                        return false;
                    }
                }
            } else if take(&mut rest, is_token_byte).is_empty() {
                return false;
            }
            let before_space = rest;
            skip_space(&mut rest);
            if rest.is_empty() {
                return before_space.is_empty();
            }
        } else if rest.is_empty() {
            return before_space.is_empty();
        }
    }
    true
}

/// Reads a chunked body (RFC 9112 section 7.1), with all framing counted against one limit.
fn read_chunked(rest: &mut &[u8], body_max: usize, framing_max: usize) -> Result<Vec<u8>, Stop> {
    let (mut body, mut framing) = (Vec::new(), 0);
    let is_text = |text: &[u8]| text.iter().all(|b| *b == b'\t' || *b >= b' ' && *b != 0x7f);
    let mut framing_line = |rest: &mut &[u8]| {
        let line = line(rest)?;
        framing += line.len() + 2;
        must(framing <= framing_max)?;
        Ok(line.to_vec())
    };
    loop {
        let size_line = framing_line(rest)?;
        let (digits, extension) = match size_line.iter().position(|byte| *byte == b';') {
            Some(at) => size_line.split_at(at),
            None => (&size_line[..], &b""[..]),
        };
        must(is_extension(extension))?;
        must(!digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit))?;
        let digits = String::from_utf8_lossy(digits);
        let size = u64::from_str_radix(&digits, 16).map_err(|_| Stop::Refused)?;
        if size == 0 {
            break;
        }
        must(size <= (body_max - body.len()) as u64)?;
        #[allow(clippy::cast_possible_truncation, reason = "it is at most the limit")]
        let size = size as usize;
        if rest.len() < size {
            return Err(Stop::Incomplete);
        }
        body.extend_from_slice(&rest[..size]);
        *rest = &rest[size..];
        must(framing_line(rest)?.is_empty())?;
    }
    loop {
        let trailer = framing_line(rest)?;
        if trailer.is_empty() {
            return Ok(body);
        }
        let colon = trailer.iter().position(|byte| *byte == b':').ok_or(Stop::Refused)?;
        must(is_token(&trailer[..colon]) && is_text(&trailer))?;
    }
}
