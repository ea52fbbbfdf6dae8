//! The state that the connections of one shard share.

use super::date::Date;
use super::head_cache::HeadCache;

/// The state that the connections of one shard share.
#[derive(Debug)]
pub struct Context {
    /// The date of responses.
    pub(super) date: Date,
    pub(super) head_cache: HeadCache,
    /// The host that the server is bound to, which `Host` may name in addition to loopback.
    pub(super) bound_host: String,
    /// The path for batches.
    pub(super) batch_path: &'static [u8],
}

impl Context {
    /// Creates the context of connections to a server that is bound to `bound_host` and accepts batches at `batch_path`, at a
    /// Unix time in seconds. The body of a batch is received into its own memory (see [`Step`](super::Step)).
    pub fn new(bound_host: &str, batch_path: &'static [u8], unix_seconds: u64) -> Self {
        Context {
            date: Date::from_unix(unix_seconds),
            head_cache: HeadCache::default(),
            bound_host: bound_host.to_owned(),
            batch_path,
        }
    }

    /// Sets the date of responses to a Unix time in seconds.
    pub fn set_date(&mut self, unix_seconds: u64) {
        self.date = Date::from_unix(unix_seconds);
    }
}
