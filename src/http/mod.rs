//! HTTP/1.1 without sockets or clocks: received bytes in, requests out, responses to bytes.
//!
//! It is pulled: [`Connection::step`] takes what was received and returns one [`Step`], such as a complete request,
//! which its caller responds to with a [`Reply`]. The grammar is RFC 9112's, read strictly: if two readers of the same
//! bytes could disagree on where a request ends, the request is refused and the connection is closed.

mod accept;
mod authority;
mod budget;
mod chunked;
mod connection;
mod context;
mod date;
mod head;
mod head_cache;
mod method;
mod refusal;
mod request;
mod response;
mod status;
mod target;

pub use accept::MediaType;
pub use budget::Budget;
pub use connection::{CONTINUE, Connection, End, Step, UnderWay, Waited};
pub use context::Context;
pub use method::Method;
pub use request::Request;
pub use response::{Prepared, Refused, Reply, ReplyTo};
pub use status::Status;
pub use target::Target;

/// The longest request line in bytes, without its line ending. RFC 9112 section 3 asks for at least
/// 8,000.
pub const REQUEST_LINE_BYTES_MAX: usize = 8192;
/// The longest request head in bytes: the request line, the fields, and the empty line.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The most fields of one request.
pub const FIELDS_MAX: usize = 100;
/// The most bytes that chunk sizes, extensions, line endings, and trailers may add to a chunked body.
pub const CHUNK_FRAMING_BYTES_MAX: usize = 4096;
/// The most empty lines before a request line. RFC 9112 section 2.2 asks for at least one.
pub const EMPTY_LINES_MAX: usize = 8;
/// The number of bytes of unsent responses at which no further request is handled until the peer has read some.
pub const UNSENT_BYTES_MAX: usize = 16 * 1024;

const _: () = assert!(REQUEST_LINE_BYTES_MAX >= 8000 && REQUEST_LINE_BYTES_MAX < HEAD_BYTES_MAX);

/// The times that a peer may take, in milliseconds. Each is a total that trickling bytes do not extend.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From the first byte of a request to the end of its head.
    pub header_ms: u64,
    /// From the end of the head to the end of the body.
    pub body_ms: u64,
    /// From a response to the first byte of the next request, and for taking responses.
    pub idle_ms: u64,
}

/// The limits of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request body, decoded.
    pub body_bytes_max: usize,
    /// Bytes of a batch, decoded.
    pub batch_bytes_max: usize,
    /// The times that the peer may take.
    pub timeouts: Timeouts,
}

/// The value of a hexadecimal digit.
fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}
