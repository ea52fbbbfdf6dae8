//! The reasons why input is not a request, and what the client should do.

use super::status::Status;
use super::{FIELDS_MAX, HEAD_BYTES_MAX, REQUEST_LINE_BYTES_MAX};

/// The reason why the protocol refuses a request, before its path matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The request does not match the grammar of RFC 9112.
    Malformed,
    /// A line ends in LF without CR.
    BareLineFeed,
    /// `Host` is missing, repeated, or malformed in HTTP/1.1.
    Host,
    /// `Content-Length` is repeated, not a number, or sent with `Transfer-Encoding`.
    Length,
    /// `Transfer-Encoding` does not end in exactly one `chunked`, or came with HTTP/1.0.
    TransferEncoding,
    /// A transfer coding that is not `chunked`.
    UnknownCoding,
    /// A malformed chunk size, extension, or line.
    Chunk,
    /// A target that is not a path, or has broken percent-encoding.
    Target,
    /// The request line is longer than [`REQUEST_LINE_BYTES_MAX`].
    LongRequestLine,
    /// The head is longer than [`HEAD_BYTES_MAX`].
    LongHead,
    /// There are more fields than [`FIELDS_MAX`].
    ManyFields,
    /// The body is larger than the limit.
    LargeBody,
    /// The batch is larger than the limit.
    LargeBatch,
    /// A version that is not HTTP/1.x.
    Version,
    /// The connection preface of HTTP/2.
    Http2,
    /// `Expect` has a value that is not `100-continue`.
    Expectation,
    /// The request did not arrive in time.
    Timeout,
}

impl Refusal {
    /// Returns the status, and one sentence that states what to do.
    pub(super) fn response(self) -> (Status, &'static str) {
        match self {
            Refusal::Malformed => {
                (Status::BadRequest, "send a request in the grammar of HTTP/1.1 (RFC 9112)")
            }
            Refusal::BareLineFeed => (Status::BadRequest, "end every line with CR LF"),
            Refusal::Host => (Status::BadRequest, "send exactly one valid Host field"),
            Refusal::Length => (
                Status::BadRequest,
                "send either one decimal Content-Length or Transfer-Encoding, not both",
            ),
            Refusal::TransferEncoding => {
                (Status::BadRequest, "send Transfer-Encoding: chunked once, and in HTTP/1.1")
            }
            Refusal::UnknownCoding => {
                (Status::NotImplemented, "send no transfer coding other than chunked")
            }
            Refusal::Chunk => {
                (Status::BadRequest, "send chunks in the grammar of RFC 9112 section 7.1")
            }
            Refusal::Target => {
                (Status::BadRequest, "send a percent-encoded path as the request target")
            }
            Refusal::LongRequestLine => {
                (Status::UriTooLong, "send a request line of at most 8192 bytes")
            }
            Refusal::LongHead => {
                (Status::FieldsTooLarge, "send a request head of at most 16384 bytes")
            }
            Refusal::ManyFields => (Status::FieldsTooLarge, "send at most 100 fields"),
            Refusal::LargeBody => (
                Status::ContentTooLarge,
                "send a smaller body, or start the server with a larger --max-body",
            ),
            Refusal::LargeBatch => (
                Status::ContentTooLarge,
                "send a smaller batch, or start the server with a larger --max-batch",
            ),
            Refusal::Version | Refusal::Http2 => {
                (Status::VersionNotSupported, "send the request in HTTP/1.1")
            }
            Refusal::Expectation => {
                (Status::ExpectationFailed, "send no expectation other than 100-continue")
            }
            Refusal::Timeout => (Status::RequestTimeout, "send the whole request sooner"),
        }
    }
}
const _: () = assert!(
    REQUEST_LINE_BYTES_MAX == 8192 && HEAD_BYTES_MAX == 16384 && FIELDS_MAX == 100,
    "sentences name these limits"
);
