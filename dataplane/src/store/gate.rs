//! What the event loops must know of the reign at every pass, in a few atomics: until when they may do what.

use std::sync::atomic::{AtomicU64, Ordering};

use parovoz_dataplane_core::lease::Serving;

/// Times are `clock::boot_ms`, exclusive; 0 = not at all. Written by the member's state and shell alone.
#[derive(Debug, Default)]
pub struct Gate {
    read_until_ms: AtomicU64,
    acknowledge_until_ms: AtomicU64,
    frozen_until_ms: AtomicU64,
    held_until_ms: AtomicU64,
    ending_until_ms: AtomicU64,
}

impl Gate {
    /// What holds from now on.
    pub fn publish(&self, serving: Serving, frozen_until_ms: u64) {
        self.read_until_ms.store(serving.read_until_ms, Ordering::SeqCst);
        self.acknowledge_until_ms.store(serving.acknowledge_until_ms, Ordering::SeqCst);
        self.frozen_until_ms.store(frozen_until_ms, Ordering::SeqCst);
    }

    /// Whether a primary may answer what it read before `now_ms`.
    #[must_use]
    pub fn may_read(&self, now_ms: u64) -> bool {
        now_ms < self.read_until_ms.load(Ordering::SeqCst)
    }

    /// Whether a primary may acknowledge what it committed before `now_ms` (under W > 0: what replicas have as well).
    #[must_use]
    pub fn may_acknowledge(&self, now_ms: u64) -> bool {
        now_ms < self.acknowledge_until_ms.load(Ordering::SeqCst)
    }

    /// While a reign changes, requests that can't be served wait until then, in place of being refused.
    pub fn hold_until(&self, ms: u64) {
        self.held_until_ms.store(ms, Ordering::SeqCst);
    }

    /// See [`Gate::hold_until`].
    #[must_use]
    pub fn held_until_ms(&self) -> u64 {
        self.held_until_ms.load(Ordering::SeqCst)
    }

    /// The gate is about to be closed: until then no request is begun, and what was begun is answered. 0 = go on.
    pub fn end_until(&self, ms: u64) {
        self.ending_until_ms.store(ms, Ordering::SeqCst);
    }

    /// See [`Gate::end_until`].
    #[must_use]
    pub fn is_ending(&self, now_ms: u64) -> bool {
        now_ms < self.ending_until_ms.load(Ordering::SeqCst)
    }

    /// Until when writes wait.
    #[must_use]
    pub fn frozen_until_ms(&self) -> u64 {
        self.frozen_until_ms.load(Ordering::SeqCst)
    }
}
