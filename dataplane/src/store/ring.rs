//! The latest batches of one prefix, in memory: followers that are close are served from here and not from the WAL.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use parovoz_dataplane_core::types::{Epoch, Sequence};

/// One committed batch, as it goes into a frame.
#[derive(Debug, Clone)]
pub struct RingEntry {
    /// Epoch of its records.
    pub epoch: Epoch,
    /// Logical sequence of the first record.
    pub first: Sequence,
    /// Records in it, never 0.
    pub count: u32,
    /// The whole batch in RocksDB's format.
    pub bytes: Bytes,
    /// When the primary committed it, in milliseconds since 1970.
    pub committed_at_ms: u64,
}

impl RingEntry {
    /// Sequence of its last record.
    #[must_use]
    pub fn last(&self) -> Sequence {
        self.first.last_of(self.count)
    }
}

/// Bytes that all rings of the process may hold together.
#[derive(Debug)]
pub struct RingBudget {
    used: AtomicUsize,
    limit: usize,
}

impl RingBudget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    /// Bytes held now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// What a ring answers to "what follows this sequence?".
#[derive(Debug)]
pub enum RingRead {
    /// These batches, in order, without a hole; never empty.
    Batches(Vec<RingEntry>),
    /// Nothing newer has been committed.
    UpToDate,
    /// The ring begins later: read the WAL.
    Older,
}

#[derive(Debug, Default)]
struct Inner {
    entries: VecDeque<RingEntry>,
    /// Last sequence that ever passed through, so that an emptied ring still knows where it ended.
    last: Sequence,
}

/// See the module.
#[derive(Debug)]
pub struct Ring {
    inner: Mutex<Inner>,
    budget: Arc<RingBudget>,
}

/// What an entry costs besides its bytes.
const ENTRY_OVERHEAD: usize = 96;

impl Ring {
    /// An empty ring of a database whose last sequence is `last`.
    #[must_use]
    pub fn new(budget: Arc<RingBudget>, last: Sequence) -> Self {
        Self { inner: Mutex::new(Inner { entries: VecDeque::new(), last }), budget }
    }

    /// Adds a batch; one that does not follow directly empties the ring first.
    pub fn push(&self, entry: RingEntry) {
        let mut inner = self.inner.lock();
        if entry.first != inner.last.next() {
            self.free(inner.entries.drain(..));
        }
        inner.last = entry.last();
        let cost = entry.bytes.len() + ENTRY_OVERHEAD;
        let mut used = self.budget.used.fetch_add(cost, Ordering::Relaxed) + cost;
        inner.entries.push_back(entry);
        while used > self.budget.limit {
            let Some(oldest) = inner.entries.pop_front() else { break };
            used = self.free(std::iter::once(oldest));
        }
    }

    /// What follows `after`, up to about `max_bytes` (at least one batch).
    #[must_use]
    pub fn read(&self, after: Sequence, max_bytes: usize) -> RingRead {
        let inner = self.inner.lock();
        if after >= inner.last {
            return RingRead::UpToDate;
        }
        let start = inner.entries.partition_point(|e| e.first <= after);
        match inner.entries.get(start) {
            Some(entry) if entry.first == after.next() => {}
            _ => return RingRead::Older,
        }
        let mut bytes = 0;
        let mut batches = Vec::new();
        for entry in inner.entries.range(start..) {
            if bytes > 0 && bytes + entry.bytes.len() > max_bytes {
                break;
            }
            bytes += entry.bytes.len();
            batches.push(entry.clone());
        }
        RingRead::Batches(batches)
    }

    /// Drops what was committed before `before_ms`: an idle prefix must not hold the shared budget.
    pub fn trim(&self, before_ms: u64) {
        let mut inner = self.inner.lock();
        let keep_from = inner.entries.partition_point(|e| e.committed_at_ms < before_ms);
        self.free(inner.entries.drain(..keep_from));
    }

    /// Forgets everything: the copy of the prefix was exchanged for one that ends at `last`.
    pub fn reset(&self, last: Sequence) {
        let mut inner = self.inner.lock();
        self.free(inner.entries.drain(..));
        inner.last = last;
    }

    fn free(&self, entries: impl Iterator<Item = RingEntry>) -> usize {
        let bytes: usize = entries.map(|e| e.bytes.len() + ENTRY_OVERHEAD).sum();
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed) - bytes
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        let bytes: usize = inner.entries.drain(..).map(|e| e.bytes.len() + ENTRY_OVERHEAD).sum();
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entry(first: u64, count: u32, len: usize) -> RingEntry {
        RingEntry {
            epoch: Epoch(1),
            first: Sequence(first),
            count,
            bytes: Bytes::from(vec![0; len]),
            committed_at_ms: first,
        }
    }

    #[test]
    fn batches_come_back_in_order_and_bounded() {
        let ring = Ring::new(RingBudget::new(1 << 20), Sequence(0));
        ring.push(entry(1, 2, 100));
        ring.push(entry(3, 1, 100));
        ring.push(entry(4, 5, 100));
        let RingRead::Batches(all) = ring.read(Sequence(0), usize::MAX) else { panic!() };
        assert_eq!(all.iter().map(|e| e.first.0).collect::<Vec<_>>(), [1, 3, 4]);
        let RingRead::Batches(some) = ring.read(Sequence(2), 150) else { panic!() };
        assert_eq!(some.len(), 1);
        assert!(matches!(ring.read(Sequence(8), 1), RingRead::UpToDate));
        assert!(matches!(ring.read(Sequence(1), 1), RingRead::Older), "inside a batch: not a boundary");
    }

    #[test]
    fn a_full_budget_drops_the_oldest_and_the_reader_is_sent_to_the_wal() {
        let budget = RingBudget::new(1000);
        let ring = Ring::new(budget.clone(), Sequence(0));
        for i in 1..=20 {
            ring.push(entry(i, 1, 100));
        }
        assert!(budget.used() <= 1000);
        assert!(matches!(ring.read(Sequence(0), 1), RingRead::Older));
        assert!(matches!(ring.read(Sequence(19), 1), RingRead::Batches(_)));
        drop(ring);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_hole_empties_the_ring() {
        let ring = Ring::new(RingBudget::new(1 << 20), Sequence(0));
        ring.push(entry(1, 1, 10));
        ring.push(entry(5, 1, 10));
        assert!(matches!(ring.read(Sequence(0), 1), RingRead::Older));
        assert!(matches!(ring.read(Sequence(4), 1), RingRead::Batches(_)));
    }

    #[test]
    fn a_trimmed_ring_still_knows_where_it_ended() {
        let ring = Ring::new(RingBudget::new(1 << 20), Sequence(0));
        ring.push(entry(1, 1, 10));
        ring.trim(100);
        assert!(matches!(ring.read(Sequence(1), 1), RingRead::UpToDate));
        assert!(matches!(ring.read(Sequence(0), 1), RingRead::Older));
    }
}
