//! Request methods.

/// A request method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET
    Get,
    /// HEAD
    Head,
    /// POST
    Post,
    /// OPTIONS
    Options,
    /// CONNECT
    Connect,
    /// PUT, DELETE, PATCH, TRACE, or QUERY: known, but not used here.
    Other,
    /// Any other method.
    Unknown,
}

impl Method {
    pub(super) fn from_name(name: &str) -> Method {
        match name {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            "OPTIONS" => Method::Options,
            "CONNECT" => Method::Connect,
            "PUT" | "DELETE" | "PATCH" | "TRACE" | "QUERY" => Method::Other,
            _ => Method::Unknown,
        }
    }
}
