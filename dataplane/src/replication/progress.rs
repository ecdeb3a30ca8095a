//! What the follower tells of itself, for reports.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use parovoz_dataplane_core::follower::StreamState;
use parovoz_dataplane_core::types::{DataUuid, PrefixUuid};

use crate::clock;

/// What the connection to the upstream is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionPhase {
    /// There is no upstream to follow.
    #[default]
    Idle,
    /// Connecting, or waiting to connect again.
    Connecting,
    /// Streams.
    Connected,
    /// The upstream refused, or was refused: somebody must change addresses, orders or versions. It is tried again.
    Refused,
}

/// The follower's present state.
#[derive(Debug, Clone, Default)]
pub struct FollowerStatus {
    /// What the connection is doing.
    pub phase: SessionPhase,
    /// Who the upstream is, once it said so.
    pub upstream: Option<DataUuid>,
    /// Where it is.
    pub address: String,
    /// Why it is not connected, for people; empty if it is.
    pub reason: String,
    /// Streams of the present session.
    pub prefixes: HashMap<PrefixUuid, StreamState>,
    /// Bootstraps that wait or are under way.
    pub bootstraps: HashMap<PrefixUuid, BootstrapProgress>,
}

impl FollowerStatus {
    /// Whether the upstream is connected.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.phase == SessionPhase::Connected
    }
}

/// How far a bootstrap is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BootstrapProgress {
    /// Bytes here and checked, or being written.
    pub bytes_done: u64,
    /// Bytes of all files.
    pub bytes_total: u64,
    /// Mean of this attempt.
    pub bytes_per_second: u64,
    /// Seconds left at that rate; 0 if unknown.
    pub eta_seconds: u64,
    /// Attempts so far.
    pub attempts: u32,
}

/// The counters behind [`BootstrapProgress`].
#[derive(Debug, Default)]
pub(super) struct Meter {
    total: AtomicU64,
    /// Here before this attempt.
    before: AtomicU64,
    fetched: AtomicU64,
    since_ms: AtomicU64,
    attempts: AtomicU64,
}

impl Meter {
    /// A new attempt.
    pub fn attempt(&self) {
        self.fetched.store(0, Ordering::Relaxed);
        self.attempts.fetch_add(1, Ordering::Relaxed);
    }

    /// Files are about to be fetched; `before` bytes are here already.
    pub fn begin(&self, total: u64, before: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.before.store(before, Ordering::Relaxed);
        self.fetched.store(0, Ordering::Relaxed);
        self.since_ms.store(clock::boot_ms(), Ordering::Relaxed);
    }

    /// Bytes came.
    pub fn add(&self, bytes: u64) {
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether data came in this attempt.
    pub fn has_fetched(&self) -> bool {
        self.fetched.load(Ordering::Relaxed) > 0
    }

    pub fn read(&self) -> BootstrapProgress {
        let (total, fetched) = (self.total.load(Ordering::Relaxed), self.fetched.load(Ordering::Relaxed));
        let bytes_done = (self.before.load(Ordering::Relaxed) + fetched).min(total);
        let passed_ms = clock::boot_ms().saturating_sub(self.since_ms.load(Ordering::Relaxed)).max(1);
        let bytes_per_second = fetched.saturating_mul(1000) / passed_ms;
        BootstrapProgress {
            bytes_done,
            bytes_total: total,
            bytes_per_second,
            eta_seconds: (total - bytes_done).checked_div(bytes_per_second).unwrap_or(0),
            attempts: u32::try_from(self.attempts.load(Ordering::Relaxed)).unwrap_or(u32::MAX),
        }
    }
}

/// The status, shared by session and bootstraps.
#[derive(Debug, Default)]
pub(super) struct Board {
    status: Mutex<FollowerStatus>,
}

impl Board {
    pub fn update(&self, change: impl FnOnce(&mut FollowerStatus)) {
        change(&mut self.status.lock());
    }

    pub fn read(&self) -> FollowerStatus {
        self.status.lock().clone()
    }
}
