//! HTTP/1.1 without sockets or clocks: received bytes in, requests out, responses to bytes.
//!
//! The caller pulls: [`Connection::step`] takes received bytes and returns one [`Step`], such as a complete request. The caller
//! responds to a request with a [`Reply`]. The grammar of RFC 9112 is applied strictly: if two readers of the same bytes could
//! disagree about the end of a request, the request is refused and the connection is closed.

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

/// The maximum length of a request line in bytes, without its line ending. RFC 9112 section 3
/// recommends at least 8,000.
pub const REQUEST_LINE_BYTES_MAX: usize = 8192;
/// The maximum length of a request head in bytes: the request line, the fields, and the empty line.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The maximum number of fields of one request.
pub const FIELDS_MAX: usize = 100;
/// The maximum number of bytes that chunk sizes, extensions, line endings, and trailers may add to a chunked body.
pub const CHUNK_FRAMING_BYTES_MAX: usize = 4096;
/// The maximum number of empty lines before a request line. RFC 9112 section 2.2 asks for at least one.
pub const EMPTY_LINES_MAX: usize = 8;
/// With this many bytes of unsent responses, further requests are not handled until the peer has read some.
pub const UNSENT_BYTES_MAX: usize = 16_384;

const _: () = assert!(REQUEST_LINE_BYTES_MAX >= 8000 && REQUEST_LINE_BYTES_MAX < HEAD_BYTES_MAX);

/// The times that a peer may take, in milliseconds. Trickling bytes do not extend them.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From the first byte of a request to the end of its head.
    pub header_ms: u64,
    /// From the end of the head to the end of the body.
    pub body_ms: u64,
    /// From a response to the first byte of the next request, and for reading responses.
    pub idle_ms: u64,
}

/// The limits of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The maximum number of bytes of a request body, decoded.
    pub body_bytes_max: usize,
    /// The maximum number of bytes of a batch, decoded.
    pub batch_bytes_max: usize,
    /// The times that the peer may take.
    pub timeouts: Timeouts,
}

/// Returns the value of a hexadecimal digit.
fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}
