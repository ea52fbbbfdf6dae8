//! Requests and responses as the tests read them, in bytes, without a socket.

use super::description;

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Totals {
    pub total: u64,
    pub users: u64,
    pub sum: f64,
    pub avg: f64,
}

impl Totals {
    pub fn parse(text: &str) -> Totals {
        let json: serde_json::Value = serde_json::from_str(text).unwrap();
        Totals {
            total: json["totalRequests"].as_u64().unwrap(),
            users: json["uniqueUsers"].as_u64().unwrap(),
            sum: json["sum"].as_f64().unwrap(),
            avg: json["avg"].as_f64().unwrap(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

pub fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Splits raw bytes into responses. It does not recognize a response to HEAD.
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
