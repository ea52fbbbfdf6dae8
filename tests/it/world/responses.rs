//! The responses in the bytes of a connection, and its end.

use super::{Client, Response, description, text};
use std::io::Read;

/// Splits raw bytes into the responses that they are. A HEAD's response cannot be told.
pub fn split_responses(mut bytes: &[u8]) -> Vec<Response> {
    let mut responses = Vec::new();
    while !bytes.is_empty() {
        let end = memchr::memmem::find(bytes, b"\r\n\r\n").expect("a whole head") + 4;
        let mut response = Response { status: 0, head: text(&bytes[..end]), body: String::new() };
        response.status = response.head.split(' ').nth(1).unwrap().parse().unwrap();
        let length: usize =
            response.field("content-length").map_or(0, |length| length.parse().unwrap());
        response.body = text(&bytes[end..end + length]);
        bytes = &bytes[end + length..];
        description::check_response(&response);
        responses.push(response);
    }
    responses
}

impl Client {
    /// Whether the server ends the connection without another word.
    pub fn is_closed(&mut self) -> bool {
        !self.has_part() && matches!(self.stream.read(&mut [0; 64]), Ok(0))
    }
}
