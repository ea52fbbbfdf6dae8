//! The event and the totals. The four totals are separate atomics, so `/stats` is exact only while
//! no event is in flight; each total by itself is always exact for the published workloads.

use dashmap::DashSet;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub const HEALTHY: &str = r#"{"status":"healthy"}"#;
pub const RESET: &str = r#"{"status":"reset"}"#;

const USER_ID_BYTES_MAX: usize = 256;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event<'body> {
    // Borrowed unless it contains an escape.
    #[serde(borrow)]
    user_id: Cow<'body, str>,
    value: f64,
}

impl<'body> Event<'body> {
    /// Returns `None` for a body that must be refused with 400.
    pub fn parse(body: &'body [u8]) -> Option<Event<'body>> {
        let event: Event = serde_json::from_slice(body).ok()?;
        (1..=USER_ID_BYTES_MAX).contains(&event.user_id.len()).then_some(event)
    }

    /// Returns the user, independent of the body, and the value.
    pub fn into_owned(self) -> (String, f64) {
        (self.user_id.into_owned(), self.value)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Stats {
    total_requests: u64,
    unique_users: usize,
    sum: f64,
    avg: f64,
}

/// Returns the body of `/stats`.
pub fn stats(total_requests: u64, unique_users: usize, sum: f64) -> String {
    let avg = if total_requests == 0 { 0.0 } else { sum / total_requests as f64 };
    let stats = Stats { total_requests, unique_users, sum, avg };
    serde_json::to_string(&stats).expect("four numbers have a JSON form")
}

#[derive(Default)]
pub struct Tally {
    requests: AtomicU64,
    sum_bits: AtomicU64,
    users: DashSet<String>,
}

impl Tally {
    pub fn add(&self, event: &Event) {
        // Most events belong to known users, and do not need an exclusive lock or an allocation.
        if !self.users.contains(event.user_id.as_ref()) {
            self.users.insert(event.user_id.clone().into_owned());
        }
        let added = |bits| Some((f64::from_bits(bits) + event.value).to_bits());
        let _ = self.sum_bits.fetch_update(Relaxed, Relaxed, added);
        self.requests.fetch_add(1, Relaxed);
    }

    pub fn reset(&self) {
        self.requests.store(0, Relaxed);
        self.sum_bits.store(0, Relaxed);
        self.users.clear();
    }

    /// Returns the body of `/stats`.
    pub fn stats(&self) -> String {
        let requests = self.requests.load(Relaxed);
        let sum = f64::from_bits(self.sum_bits.load(Relaxed));
        stats(requests, self.users.len(), sum)
    }
}
