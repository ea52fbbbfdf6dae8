//! The statuses of responses.

/// Declares the statuses in one table, so that a code, its reason, and its place cannot disagree.
macro_rules! statuses {
    ($($name:ident = $code:literal $reason:literal,)*) => {
        /// The statuses of this server's responses.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Status {
            $(#[doc = concat!($code, " ", $reason)] $name,)*
        }

        impl Status {
            /// All statuses in the order of their codes, so that `status as usize` is an index.
            pub const ALL: [Status; [$($code),*].len()] = [$(Status::$name),*];

            /// Returns the status code.
            pub fn code(self) -> u16 {
                match self { $(Status::$name => $code,)* }
            }

            pub(super) fn reason(self) -> &'static str {
                match self { $(Status::$name => $reason,)* }
            }
        }
    };
}

statuses! {
    Ok = 200 "OK",
    Created = 201 "Created",
    NoContent = 204 "No Content",
    BadRequest = 400 "Bad Request",
    Unauthorized = 401 "Unauthorized",
    Forbidden = 403 "Forbidden",
    NotFound = 404 "Not Found",
    MethodNotAllowed = 405 "Method Not Allowed",
    RequestTimeout = 408 "Request Timeout",
    ContentTooLarge = 413 "Content Too Large",
    UriTooLong = 414 "URI Too Long",
    UnsupportedMediaType = 415 "Unsupported Media Type",
    ExpectationFailed = 417 "Expectation Failed",
    FieldsTooLarge = 431 "Request Header Fields Too Large",
    NotImplemented = 501 "Not Implemented",
    ServiceUnavailable = 503 "Service Unavailable",
    VersionNotSupported = 505 "HTTP Version Not Supported",
    InsufficientStorage = 507 "Insufficient Storage",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_of_a_status_is_its_place() {
        for (index, status) in Status::ALL.into_iter().enumerate() {
            assert_eq!(status as usize, index, "{status:?}");
        }
        assert!(Status::ALL.is_sorted_by_key(|status| status.code()));
    }
}
