//! Two other readers of the same bytes: a slow reader written for these tests, and hyper's server.

use crate::world::agreement::{agree, has, ours, ours_and_last_response, theirs};
use crate::world::reference::{Accepted, End};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use tokio::io::AsyncWriteExt;

/// Parts of requests, valid and invalid.
const METHODS: &[&str] =
    &["GET", "POST", "HEAD", "OPTIONS", "CONNECT", "PUT", "BREW", "get", "P\tT"];
const TARGETS: &[&str] = &[
    "/event",
    "/event",
    "/stats",
    "/",
    "/%65vent?x=%zz",
    "/%zz",
    "//event",
    "*",
    "http://h/event",
    "HTTPS://h:1?x",
    "h:80",
    "/a#b",
    "http://",
    "",
    "/\u{e9}",
    "/a b",
];
const VERSIONS: &[&str] = &[
    "HTTP/1.1",
    "HTTP/1.1",
    "HTTP/1.1",
    "HTTP/1.0",
    "HTTP/1.2",
    "HTTP/2.0",
    "http/1.1",
    "HTTP/1.10",
    "",
];
const FIELDS: &[&str] = &[
    "Host: h\r\n",
    "Host:\r\n",
    "Host: [::1]:80\r\n",
    "Host: a b\r\n",
    "Host: h:x\r\n",
    "Host: :1\r\n",
    "Content-Length: 24\r\n",
    "Content-Length: 024\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: 201\r\n",
    "Content-Length: +5\r\n",
    "Content-Length: 5, 5\r\n",
    "Content-Length: 18446744073709551616\r\n",
    "Content-Length:\r\n",
    "content-LENGTH :5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "transfer-encoding: CHUNKED\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer-Encoding: chunked, chunked\r\n",
    "Transfer-Encoding: \x0bchunked\r\n",
    "Transfer-Encoding: identity\r\n",
    "Connection: close\r\n",
    "Connection: Keep-Alive\r\n",
    "Connection: x , close\r\n",
    "Expect: 100-continue\r\n",
    "Expect: x\r\n",
    "A: \u{e9}\t\r\n",
    "A: b\rc\r\n",
    "A: b\n",
    " folded\r\n",
    ": x\r\n",
    "A\0: x\r\n",
    "A: \x7f\r\n",
    "X-Y_Z!: ok\r\n",
];
const BODIES: &[&str] = &[
    "",
    "",
    r#"{"userId":"u","value":1}"#,
    "0\r\n\r\n",
    "5\r\nhello\r\n0\r\n\r\n",
    "5;a=b\r\nhello\r\n0\r\nT: 1\r\n\r\n",
    "5;\r\nhello\r\n0\r\n\r\n",
    "5; a\t= \"b;\\\"c\" ;d\r\nhello\r\n0;e\r\n\r\n",
    "5;=b\r\nhello\r\n0\r\n\r\n",
    "5;a=\r\nhello\r\n0\r\n\r\n",
    "5;a=\"b\r\nhello\r\n0\r\n\r\n",
    "5;a b\r\nhello\r\n0\r\n\r\n",
    "5 ;a\r\nhello\r\n0\r\n\r\n",
    "C9\r\n",
    "5\r\nhello0\r\n\r\n",
    "\r\n",
    "0x5\r\nhello\r\n",
    "00000000000000000001\r\nx\r\n0\r\n\r\n",
    "10000000000000000\r\n",
    "5\nhello\r\n",
    "0\r\n: x\r\n\r\n",
    "0\r\n fold\r\n\r\n",
    "0\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
];

/// Generates requests from these parts. Most have the required fields.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let pick = |parts: &'static [&'static str]| prop::sample::select(parts);
    let sound = (pick(&["GET", "POST"]), pick(&["/event", "/stats", "/%65vent?x"]), any::<bool>())
        .prop_map(|(method, target, chunked)| {
            let (framing, body) = match chunked {
                true => (
                    "Transfer-Encoding: chunked",
                    "18\r\n{\"userId\":\"u\",\"value\":1}\r\n0\r\n\r\n",
                ),
                false => ("Content-Length: 24", r#"{"userId":"u","value":1}"#),
            };
            format!("{method} {target} HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n{body}").into_bytes()
        });
    let any_parts = (
        pick(&["", "", "", "\r\n", "\n", "\r\n\r\n"]),
        (pick(METHODS), pick(TARGETS), pick(VERSIONS)),
        prop::bool::weighted(0.8),
        prop::collection::vec(pick(FIELDS), 0..4),
        pick(BODIES),
    )
        .prop_map(|(before, (method, target, version), has_host, fields, body)| {
            let host = if has_host { "Host: h\r\n" } else { "" };
            let fields = fields.concat();
            format!("{before}{method} {target} {version}\r\n{host}{fields}\r\n{body}").into_bytes()
        });
    prop_oneof![3 => sound, 2 => any_parts]
}

/// Generates a few requests in a row, with a few bytes changed, inserted, or removed.
fn input() -> impl Strategy<Value = Vec<u8>> {
    let edit = (any::<prop::sample::Index>(), 0..4u8, any::<u8>());
    let few = prop_oneof![4 => Just(0..1usize), 3 => Just(1..2), 1 => Just(2..5)];
    (prop::collection::vec(request(), 1..4), few)
        .prop_flat_map(move |(requests, few)| {
            (Just(requests.concat()), prop::collection::vec(edit.clone(), few))
        })
        .prop_map(|(mut bytes, edits)| {
            for (at, kind, byte) in edits {
                let at = at.index(bytes.len().max(1));
                match kind {
                    _ if bytes.is_empty() => {}
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    2 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at),
                }
            }
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn the_slow_reader_accepts_and_refuses_the_same(input in input()) {
        agree(&input, &ours(&[&input]), &theirs(&input));
    }

    #[test]
    fn the_slow_reader_agrees_on_pieces(input in input(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 1..6)) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
        cuts.extend([0, input.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &input[cut[0]..cut[1]]).collect();
        // The response to a client that waits for 100 depends on what has arrived, and so on the cuts.
        if has(&input, "expect") {
            return Ok(());
        }
        agree(&input, &ours(&pieces), &theirs(&input));
    }
}

/// Returns the requests that hyper's server accepts from the same bytes, as far as it reads whole bodies.
fn hypers(input: &[u8]) -> Vec<Accepted> {
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let accepted = Arc::clone(&accepted);
        async move {
            let (method, uri) = (request.method().clone(), request.uri().clone());
            if let Ok(body) = request.into_body().collect().await {
                let path = match method {
                    hyper::Method::CONNECT if uri.authority().is_some() => "tunnel",
                    hyper::Method::OPTIONS if uri.path() == "/" && uri.host().is_some() => "*",
                    _ => uri.path(),
                };
                let body = body.to_bytes().to_vec();
                let (method, path) = (method.to_string(), path.as_bytes().to_vec());
                accepted.lock().unwrap().push(Accepted { method, path, body });
            }
            Ok::<_, Infallible>(hyper::Response::new(Full::new(Bytes::from_static(b"{}"))))
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        client.write_all(input).await.unwrap();
        client.shutdown().await.unwrap();
        let mut http = hyper::server::conn::http1::Builder::new();
        http.half_close(true).header_read_timeout(None);
        // A refusal is an error here, and not a request above.
        let _ = http.serve_connection(TokioIo::new(server), service).await;
    });
    Arc::into_inner(accepted).unwrap().into_inner().unwrap()
}

/// Requests that this server refuses and hyper may accept: the start of the refusal's sentence, and the reason.
const STRICTER: &[(&str, &str)] = &[
    ("send exactly one valid Host field", "hyper leaves Host to the application"),
    ("end every line with CR LF", "hyper accepts a bare LF (RFC 9112 section 2.2 lets it)"),
    ("send a percent-encoded path", "hyper passes any URI to the application"),
    ("send no expectation other than", "hyper ignores other expectations"),
    ("send a smaller body", "hyper leaves the limit to the application"),
    ("send either one decimal", "hyper lets Transfer-Encoding override Content-Length"),
    ("send transfer-encoding: chunked once", "hyper examines only the last coding"),
    ("send no transfer coding other", "hyper leaves other codings to the application"),
    ("send chunks in the grammar", "hyper accepts white space behind a size, and any extension"),
];

type Applies = fn(&[u8]) -> bool;

/// Requests that hyper refuses and this server accepts: a check that the case may apply, and the reason.
const LOOSER: &[(Applies, &str)] = &[
    (
        |input| (b'2'..=b'9').any(|minor| has(input, &format!("http/1.{}", char::from(minor)))),
        "RFC 9110 section 2.5 wants HTTP/1.2 and later treated as 1.1",
    ),
    (
        |input| {
            let words: Vec<&[u8]> = input.split(|byte| b" \n".contains(byte)).collect();
            let mut targets = words.windows(2).filter(|two| two[1].starts_with(b"HTTP/1."));
            targets.any(|two| two[0].iter().any(|byte| b"\"<>\\^`{|}".contains(byte)))
        },
        "a path with characters that RFC 3986 does not have gets 404, like any other",
    ),
    (
        |input| has(input, "100-continue"),
        "a client that waits to send a body that is not wanted gets its response at once",
    ),
    (
        |input| has(input, "://") || has(input, "connect"),
        "the http crate is stricter about the authority in a target",
    ),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn hyper_reads_the_same_requests(input in input()) {
        let (ours, end, last) = ours_and_last_response(&[&input]);
        let hypers = hypers(&input);
        for (at, (request, other)) in ours.iter().zip(&hypers).enumerate() {
            prop_assert_eq!(&request.body, &other.body, "{} at {}", input.escape_ascii(), at);
            // The bytes after a request for a tunnel are not requests, but hyper continues to read them.
            if request.path == b"tunnel" {
                return Ok(());
            }
            // hyper leaves decoding to the application.
            if !other.path.contains(&b'%') {
                prop_assert_eq!(&request.path, &other.path, "{} at {}", input.escape_ascii(), at);
            }
        }
        if hypers.len() < ours.len() {
            let is_listed = LOOSER.iter().any(|(applies, _)| applies(&input));
            prop_assert!(is_listed, "{}", input.escape_ascii());
        }
        if hypers.len() > ours.len() {
            // hyper ignores the options of a Connection field that is not ASCII.
            if end == End::Closed && !input.is_ascii() {
                return Ok(());
            }
            prop_assert_eq!(end, End::Refused, "{}", input.escape_ascii());
            // A response to HEAD does not have a body, and so does not have a sentence.
            let is_listed = last.ends_with(b"\r\n\r\n")
                || STRICTER.iter().any(|(sentence, _)| has(&last, &sentence.to_lowercase()));
            prop_assert!(is_listed, "{}: {}", input.escape_ascii(), last.escape_ascii());
        }
    }
}
