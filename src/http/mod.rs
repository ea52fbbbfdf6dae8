//! HTTP/1.1 without sockets or clocks: bytes in, requests out, answers to bytes.
//!
//! [`Connection`] is what an engine drives. It keeps what is incomplete, hands every complete
//! request to a [`Handler`], and says when the connection is to be closed. The grammar is
//! RFC 9112's, read strictly: where two readers of the same bytes could disagree on where a
//! request ends, the request is refused and the connection closed.

mod chunked;
mod connection;
mod head;
mod head_cache;
mod response;
mod target;

pub use connection::{Connection, Handler, Limits, Outcome, Request, Timeouts, Waited};
pub use head::Method;
pub use head_cache::HeadCache;
pub use response::{Date, Prepared, Reply};
pub use target::Target;

/// Longest request line in bytes, its line end not counted. RFC 9112 section 3 asks for 8,000 at least.
pub const REQUEST_LINE_BYTES_MAX: usize = 8192;
/// Longest request head in bytes: the request line, the fields and the empty line.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most fields of one request.
pub const FIELDS_MAX: usize = 100;
/// Most bytes that chunk sizes, extensions, line ends and trailers may add to a chunked body.
pub const CHUNK_FRAMING_BYTES_MAX: usize = 4096;
/// Most empty lines before a request line. RFC 9112 section 2.2 asks for one at least.
pub const EMPTY_LINES_MAX: usize = 8;
/// Answers waiting to be sent after which no further request is handled: the peer must take
/// some first.
pub const UNSENT_BYTES_MAX: usize = 16 * 1024;

const _: () = assert!(REQUEST_LINE_BYTES_MAX >= 8000 && REQUEST_LINE_BYTES_MAX < HEAD_BYTES_MAX);

/// Why a request is refused by the protocol, before any path is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not the grammar of RFC 9112.
    Malformed,
    /// A line that ends in LF without CR.
    BareLineFeed,
    /// `Host` missing, repeated or malformed, in HTTP/1.1.
    Host,
    /// `Content-Length` repeated, not a number, or with `Transfer-Encoding`.
    Length,
    /// `Transfer-Encoding` that does not end in one `chunked`, or in HTTP/1.0.
    TransferEncoding,
    /// A transfer coding other than `chunked`.
    UnknownCoding,
    /// A chunk size or line that is malformed.
    Chunk,
    /// A target that is no path, or with broken percent-encoding.
    Target,
    /// The request line is longer than [`REQUEST_LINE_BYTES_MAX`].
    LongRequestLine,
    /// The head is longer than [`HEAD_BYTES_MAX`].
    LongHead,
    /// More fields than [`FIELDS_MAX`].
    ManyFields,
    /// The body is larger than the limit.
    LargeBody,
    /// A version that is not HTTP/1.x.
    Version,
    /// `Expect` with anything but `100-continue`.
    Expectation,
    /// The request did not arrive in time.
    Timeout,
}

impl Refusal {
    /// The status code and one sentence that says what to do.
    pub fn response(self) -> (u16, &'static str) {
        match self {
            Refusal::Malformed => (400, "send a request in the grammar of HTTP/1.1 (RFC 9112)"),
            Refusal::BareLineFeed => (400, "end lines with CR LF"),
            Refusal::Host => (400, "send exactly one valid Host field"),
            Refusal::Length => {
                (400, "send one decimal Content-Length, or Transfer-Encoding, not both")
            }
            Refusal::TransferEncoding => {
                (400, "send Transfer-Encoding: chunked, once, in HTTP/1.1")
            }
            Refusal::UnknownCoding => (501, "send no transfer coding but chunked"),
            Refusal::Chunk => (400, "send chunks in the grammar of RFC 9112 section 7.1"),
            Refusal::Target => (400, "send a path as the request target, percent-encoded"),
            Refusal::LongRequestLine => (414, "send a request line of at most 8192 bytes"),
            Refusal::LongHead => (431, "send a request head of at most 16384 bytes"),
            Refusal::ManyFields => (431, "send at most 100 fields"),
            Refusal::LargeBody => (413, "send a smaller body, or raise --max-body"),
            Refusal::Version => (505, "send HTTP/1.1"),
            Refusal::Expectation => (417, "send no expectation but 100-continue"),
            Refusal::Timeout => (408, "send the whole request sooner"),
        }
    }
}
const _: () =
    assert!(REQUEST_LINE_BYTES_MAX == 8192 && HEAD_BYTES_MAX == 16384 && FIELDS_MAX == 100);
