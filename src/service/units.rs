//! The costs of requests, in units of a [`Budget`](crate::http::Budget), which are about a nanosecond each.
//! `what_attacks_cost` in `tests/it/simulation/stalls.rs` made the measurements, on an EPYC of family 26; each number has room
//! for a slower machine and cold caches.

/// A usual event of a user that the shard has seen, with the bytes of its request: measured 90 ns, and 220 ns if the
/// user is not in a cache.
pub(super) const EVENT: u32 = 150;
/// The user of an event that the shard has not seen, in two tables, and a publication: measured 100 ns in the cache.
pub(super) const UNSEEN: u32 = 600;
/// An event in an unusual shape, and each of its bytes: measured 170 ns for 50 bytes, 2.0 µs for 1.1 kB, 370 ns with a number
/// of 26 characters near a tie, and 1.0 µs with 720 characters.
pub(super) const UNUSUAL: u32 = 250;
pub(super) const UNUSUAL_BYTE: u32 = 5;
/// A response with an error, mostly its JSON: measured 0.2 µs. With the kernel's part of its 215 bytes, it takes 0.7 µs more
/// than the response to a counted event on an EPYC of family 25.
pub(super) const ERROR: u32 = 1_000;
/// The totals as JSON, and what each shard adds to them: measured 0.2 µs with one shard.
pub(super) const STATS: u32 = 300;
pub(super) const STATS_SHARD: u32 = 150;
/// The metrics of the process, and the metrics of each shard: measured 43 µs with one shard, 17 of them in the kernel.
pub(super) const METRICS: u32 = 45_000;
pub(super) const METRICS_SHARD: u32 = 3_000;
/// A byte of the head of a request for the metrics, whose format depends on `Accept`.
pub(super) const ACCEPT_BYTE: u32 = 4;
/// Bytes of a page that are copied per unit, including the kernel's copy.
pub(super) const PAGE_BYTES: usize = 4;

/// A usual line of a batch, without its bytes: measured 52 ns for 36 bytes.
pub(super) const LINE: u32 = 25;
/// The claim of a user that the shard has not seen: measured 100 ns in the cache, including reading the line again.
pub(super) const CLAIM: u32 = 300;
/// Bytes of a batch that are searched for lines per unit.
pub(super) const SEARCHED_BYTES: usize = 8;
/// The end of a batch.
pub(super) const BATCH: u32 = 2_000;

/// Returns the cost of this number of bytes at this cost per byte.
#[inline(always)]
pub(super) fn of_bytes(bytes: usize, each: u32) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX).saturating_mul(each)
}

/// Returns the cost of usual lines of a batch, except for their bytes.
pub(super) fn of_lines(lines: u64) -> u32 {
    u32::try_from(lines).unwrap_or(u32::MAX).saturating_mul(LINE)
}
