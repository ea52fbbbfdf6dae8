//! A server with a store: its shards, and its committer.

use super::Shard;
use fastrand::Rng;
use ringtally::http::{Limits, Timeouts};
use ringtally::metrics::{Reporter, StoreMetrics};
use ringtally::service::{Policy, Service};
use ringtally::store::{Committer, Durability, Settlement, Store, Wakeups};
use ringtally::tally::{State, Tally, UserIds};
use ringtally::uring::Wakeup;
use std::sync::Arc;
use tokio::sync::Notify;

/// The time that responses wait for the store.
pub const STORE_TIMEOUT_MS: u64 = 1000;

/// One life of a server.
pub struct Server {
    pub tally: Arc<Tally>,
    pub shards: Vec<Shard>,
    pub settlement: Arc<Settlement>,
    pub committer: Option<Committer>,
}

impl Server {
    /// Starts a server with the content of a store.
    pub fn start(rng: &mut Rng, shards: usize, mut store: Box<dyn Store>, state: State) -> Server {
        let (tally, writers, journal) = Tally::resume(shards, 1000, &state);
        let is_shared = store.shared().is_some();
        let settlement = Arc::new(Settlement::new(shards, state.totals(), is_shared));
        let of_shards: Vec<_> = (0..shards).map(|_| Arc::new(Wakeup::new().unwrap())).collect();
        let committer = Notify::new();
        let wakeups = Arc::new(Wakeups { committer, shards: of_shards.clone() });
        let timeouts = Timeouts { header_ms: 100_000, body_ms: 100_000, idle_ms: 100_000 };
        let limits = Limits { body_bytes_max: 400, batch_bytes_max: 8 << 20, timeouts };
        let policy = Policy::new("h");
        let shards = std::iter::zip(writers, Reporter::for_shards(shards, "none"))
            .zip(of_shards)
            .enumerate()
            .map(|(shard, ((writer, reporter), wakeup))| {
                let mut service = Service::new(writer, reporter, policy.clone(), 0);
                let (settlement, wakeups) = (Arc::clone(&settlement), Arc::clone(&wakeups));
                service.set_durability(Durability::new(
                    settlement,
                    wakeups,
                    shard,
                    STORE_TIMEOUT_MS,
                ));
                Shard::new(rng.fork(), service, limits, Some(wakeup))
            })
            .collect();
        let metrics = Arc::new(StoreMetrics::default());
        let committer =
            Committer::new(journal, store, state, Arc::clone(&settlement), wakeups, metrics);
        Server { tally, shards, settlement, committer: Some(committer) }
    }

    /// Restores the users of the store.
    pub fn restore(&self, users: &UserIds) -> u64 {
        self.tally.restore_users(users)
    }
}
