//! Counters of the event loops, in plain atomics: written by one loop each, read by whoever exports them.

use std::sync::atomic::{AtomicU64, Ordering};

use parovoz_dataplane_core::command::table;

/// Bounds of histogram buckets are powers of two: bucket i counts values up to 2^i.
pub const BUCKETS: usize = 27;

/// A histogram with bounds 1, 2, 4, ... 2^25 and infinity.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

impl Histogram {
    /// Counts one value.
    pub fn observe(&self, value: u64) {
        let bucket = value.checked_sub(1).map_or(0, |v| 64 - v.leading_zeros() as usize).min(BUCKETS - 1);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Values per bucket, not added up.
    #[must_use]
    pub fn buckets(&self) -> [u64; BUCKETS] {
        std::array::from_fn(|i| self.buckets[i].load(Ordering::Relaxed))
    }

    /// Sum of all values.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }
}

/// What one event loop did since its start.
#[derive(Debug)]
pub struct ShardStats {
    /// Commands, by [`parovoz_dataplane_core::command::CommandKind`].
    pub commands: [AtomicU64; table::COUNT],
    /// Replies that were errors.
    pub errors: AtomicU64,
    /// Bytes read from clients.
    pub bytes_in: AtomicU64,
    /// Bytes written to clients.
    pub bytes_out: AtomicU64,
    /// Connections that the loop has now.
    pub connections: AtomicU64,
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections refused for their number.
    pub refused: AtomicU64,
    /// Connections closed since their client did not read.
    pub stuck_closed: AtomicU64,
    /// Requests handed to another loop.
    pub forwarded: AtomicU64,
    /// Connections moved to another loop.
    pub moved: AtomicU64,
    /// Connections handed to the member that leads now.
    pub relayed: AtomicU64,
    /// Requests from gRPC.
    pub calls: AtomicU64,
    /// Batches committed.
    pub commits: AtomicU64,
    /// Batches that could not be committed.
    pub commit_failures: AtomicU64,
    /// Bytes of batches committed.
    pub commit_bytes: AtomicU64,
    /// Microseconds per commit, its sync left out.
    pub commit_micros: Histogram,
    /// Microseconds per sync of a group in one prefix.
    pub sync_micros: Histogram,
    /// Records per commit.
    pub group_records: Histogram,
    /// Reads that found their key.
    pub hits: AtomicU64,
    /// Reads that did not.
    pub misses: AtomicU64,
    /// Reads that the object cache answered.
    pub cache_hits: AtomicU64,
    /// Reads that the object cache could not answer.
    pub cache_misses: AtomicU64,
    /// Replies that wait for replicas now.
    pub parked: AtomicU64,
    /// Replies that wait for the disk now, those of a connection in one group counted once.
    pub held: AtomicU64,
    /// Replies that waited for replicas or for the disk in vain: outcome unknown.
    pub parked_timeouts: AtomicU64,
}

impl Default for ShardStats {
    fn default() -> Self {
        let zero = AtomicU64::default;
        Self {
            commands: std::array::from_fn(|_| zero()),
            errors: zero(),
            bytes_in: zero(),
            bytes_out: zero(),
            connections: zero(),
            accepted: zero(),
            refused: zero(),
            stuck_closed: zero(),
            forwarded: zero(),
            moved: zero(),
            relayed: zero(),
            calls: zero(),
            commits: zero(),
            commit_failures: zero(),
            commit_bytes: zero(),
            commit_micros: Histogram::default(),
            sync_micros: Histogram::default(),
            group_records: Histogram::default(),
            hits: zero(),
            misses: zero(),
            cache_hits: zero(),
            cache_misses: zero(),
            parked: zero(),
            held: zero(),
            parked_timeouts: zero(),
        }
    }
}

impl ShardStats {
    /// Commands of all kinds.
    #[must_use]
    pub fn commands_total(&self) -> u64 {
        self.commands.iter().map(|c| c.load(Ordering::Relaxed)).sum()
    }
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_counted_in_the_bucket_whose_bound_it_does_not_exceed() {
        let h = Histogram::default();
        for v in [0, 1, 2, 3, 4, 5, u64::MAX >> 1] {
            h.observe(v);
        }
        let b = h.buckets();
        assert_eq!(b[..4], [2, 1, 2, 1]);
        assert_eq!(b[BUCKETS - 1], 1);
    }
}
