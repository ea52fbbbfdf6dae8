//! The batch counters of a shard.

use super::{Counter, Text, bucket_of, canonical};

/// The upper bounds of the number of events of a batch.
const BATCH_EVENTS: [u64; 8] = [0, 1, 10, 100, 1000, 10_000, 100_000, 1_000_000];

/// The batch counters of one shard, written by its thread.
#[derive(Debug, Default)]
pub struct BatchMetrics {
    events: [Counter; BATCH_EVENTS.len() + 1],
    events_total: Counter,
    /// Lines that caused a batch to be refused.
    pub refused_lines: Counter,
}

impl BatchMetrics {
    /// Counts a batch whose events, this many, were counted.
    pub fn note_batch(&self, events: u64) {
        self.events[bucket_of(&BATCH_EVENTS, events)].add(1);
        self.events_total.add(events);
    }
}

/// Writes the batch counters of all shards. `memory_bytes` are reserved for batches.
pub(super) fn write<'a>(
    of_shards: impl Iterator<Item = &'a BatchMetrics>,
    memory_bytes: u64,
    text: &mut Text,
) {
    let all = BatchMetrics::default();
    for of_shard in of_shards {
        for (bucket, more) in all.events.iter().zip(&of_shard.events) {
            bucket.add(more.get());
        }
        all.events_total.add(of_shard.events_total.get());
        all.refused_lines.add(of_shard.refused_lines.get());
    }
    let name = "ringtally_batch_events";
    text.family(name, "histogram", "Events of a counted batch.");
    let bounds = BATCH_EVENTS.map(|events| canonical(events as f64));
    let counts = all.events.each_ref().map(Counter::get);
    text.histogram(name, "", &bounds, &counts, all.events_total.get() as f64);
    let name = "ringtally_batch_lines_refused_total";
    text.family(name, "counter", "Lines for which a batch was refused.");
    text.sample(name, "", all.refused_lines.get());
    let name = "ringtally_batch_memory_bytes";
    text.family(name, "gauge", "Memory of the batches that are being received or counted.");
    text.sample(name, "", memory_bytes);
}
