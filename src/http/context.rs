//! What the connections of one shard share.

use super::connection::Handler;
use super::head_cache::HeadCache;
use super::response::Date;

/// What the connections of one shard share: what responds to their requests, and what HTTP needs
/// besides.
#[derive(Debug)]
pub struct Context<H> {
    /// Responds to the requests.
    pub handler: H,
    /// The date of responses.
    pub(super) date: Date,
    pub(super) head_cache: HeadCache,
    /// The host that the server is bound to, which `Host` may name besides loopback.
    pub(super) bound_host: String,
}

impl<H: Handler> Context<H> {
    /// The context of connections whose requests `handler` responds to, on a server bound to
    /// `bound_host`, at a Unix time in seconds.
    pub fn of(handler: H, bound_host: &str, unix_seconds: u64) -> Self {
        Context {
            handler,
            date: Date::from_unix(unix_seconds),
            head_cache: HeadCache::default(),
            bound_host: bound_host.to_owned(),
        }
    }

    /// Sets the date of responses to a Unix time in seconds.
    pub fn set_date(&mut self, unix_seconds: u64) {
        self.date = Date::from_unix(unix_seconds);
    }
}
