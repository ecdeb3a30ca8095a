//! A database with a disk that fails or takes its time.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};
use parovoz_dataplane_core::types::Sequence;
use parovoz_engine::{Database, EngineError};

/// See the module.
#[derive(Debug)]
pub(super) struct Faulty {
    inner: Arc<dyn Database>,
    full: bool,
    broken: bool,
    held: Mutex<bool>,
    bell: Condvar,
    begun: AtomicUsize,
}

impl Faulty {
    pub(super) fn around(inner: Arc<dyn Database>) -> Self {
        Self {
            inner,
            full: false,
            broken: false,
            held: Mutex::new(false),
            bell: Condvar::new(),
            begun: AtomicUsize::new(0),
        }
    }

    /// Writes fail.
    pub(super) fn full(self) -> Self {
        Self { full: true, ..self }
    }

    /// Syncs fail.
    pub(super) fn broken(self) -> Self {
        Self { broken: true, ..self }
    }

    /// From now on syncs wait, or no longer.
    pub(super) fn hold(&self, held: bool) {
        *self.held.lock() = held;
        self.bell.notify_all();
    }

    /// Syncs begun.
    pub(super) fn syncs(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }
}

impl Database for Faulty {
    fn latest(&self) -> Sequence {
        self.inner.latest()
    }
    fn get_with(
        &self,
        f: parovoz_engine::Family,
        key: &[u8],
        found: &mut dyn FnMut(&[u8]),
    ) -> parovoz_engine::Result<bool> {
        self.inner.get_with(f, key, found)
    }
    fn write(&self, batch: &[u8], sync: bool) -> parovoz_engine::Result<Sequence> {
        if self.full {
            return Err(EngineError::NoSpace { action: "write batch".into() });
        }
        self.inner.write(batch, sync)
    }
    fn sync(&self) -> parovoz_engine::Result<()> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let mut held = self.held.lock();
        while *held {
            self.bell.wait(&mut held);
        }
        if self.broken {
            return Err(EngineError::WriteFailed { action: "sync WAL".into(), cause: "the disk is gone".into() });
        }
        self.inner.sync()
    }
    fn snapshot(&self) -> Box<dyn parovoz_engine::Snapshot + '_> {
        self.inner.snapshot()
    }
    fn updates_after(&self, after: Sequence) -> parovoz_engine::Result<Box<dyn parovoz_engine::Updates + '_>> {
        self.inner.updates_after(after)
    }
    fn oldest_in_wal(&self) -> parovoz_engine::Result<Sequence> {
        self.inner.oldest_in_wal()
    }
    fn wal_files(&self) -> parovoz_engine::Result<Vec<parovoz_engine::WalFile>> {
        self.inner.wal_files()
    }
    fn remove_archived(&self, file: &parovoz_engine::WalFile) -> parovoz_engine::Result<()> {
        self.inner.remove_archived(file)
    }
    fn checkpoint(&self, dir: &std::path::Path) -> parovoz_engine::Result<()> {
        self.inner.checkpoint(dir)
    }
    fn flush(&self) -> parovoz_engine::Result<()> {
        self.inner.flush()
    }
    fn compact(&self) -> parovoz_engine::Result<()> {
        self.inner.compact()
    }
    fn verify_checksums(&self) -> parovoz_engine::Result<()> {
        self.inner.verify_checksums()
    }
    fn estimated_keys(&self) -> u64 {
        self.inner.estimated_keys()
    }
    fn disk_bytes(&self) -> u64 {
        self.inner.disk_bytes()
    }
}
