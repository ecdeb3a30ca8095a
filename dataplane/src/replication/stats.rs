//! Counters of replication. Plain atomics: whoever serves metrics reads them.

use std::sync::atomic::{AtomicU64, Ordering};

/// One counter that only grows, or a gauge that is added to and taken from.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Adds 1.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Takes 1 away (gauges).
    pub fn dec(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// The present value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All counters since the start of the process. Gauges say so.
#[derive(Debug, Default)]
pub struct ReplicationStats {
    /// Frames and bundles sent to followers.
    pub frames_sent: Counter,
    /// Bytes of batches sent to followers, as they are without compression.
    pub bytes_sent: Counter,
    /// Bytes of batches sent to followers, as they went over the wire.
    pub wire_bytes_sent: Counter,
    /// Bytes of batches that were read back from the WAL for followers.
    pub catchup_bytes: Counter,
    /// Frames and bundles taken from the upstream.
    pub frames_received: Counter,
    /// Bytes of batches taken from the upstream, as they are without compression.
    pub bytes_received: Counter,
    /// Records applied.
    pub records_applied: Counter,
    /// Bytes of batches applied.
    pub bytes_applied: Counter,
    /// Batches that did not follow the one before.
    pub gaps: Counter,
    /// Batches and chunks with a wrong checksum.
    pub crc_errors: Counter,
    /// Batches that were malformed.
    pub malformed: Counter,
    /// `TooOld` answers given to followers.
    pub too_old_sent: Counter,
    /// `Diverged` answers given to followers.
    pub diverged_sent: Counter,
    /// Sessions to the upstream that were established.
    pub sessions: Counter,
    /// Sessions to the upstream that failed or could not be established.
    pub session_failures: Counter,
    /// Followers streaming from here now (gauge).
    pub followers: Counter,
    /// Followers cut because they took nothing for too long.
    pub slow_followers_cut: Counter,
    /// Acknowledgement messages taken.
    pub acks_received: Counter,
    /// Bootstraps begun from nothing.
    pub bootstraps_started: Counter,
    /// Bootstraps that went on where an earlier attempt ended.
    pub bootstraps_resumed: Counter,
    /// Bootstraps that ended with a new copy.
    pub bootstraps_completed: Counter,
    /// Attempts of bootstraps that failed.
    pub bootstrap_failures: Counter,
    /// Copies that were refused because tables of their source are damaged.
    pub damaged_copies: Counter,
    /// Bytes of files taken for bootstraps.
    pub bootstrap_bytes_received: Counter,
    /// Bytes of files sent for bootstraps of others.
    pub snapshot_bytes_sent: Counter,
    /// Snapshots open for others now (gauge).
    pub snapshots_open: Counter,
}
