//! One prefix's RocksDB.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use parovoz_dataplane_core::types::Sequence;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::properties;
use rocksdb::{ColumnFamily, DB, FlushOptions, ReadOptions, WriteBatch, WriteOptions};

use super::errors::{other_error, text_error, write_error};
use super::keeper::Chore;
use super::options::{BUSY_AFTER, BUSY_OPTIONS, CHECKPOINT_FLUSH_FROM, FLUSH_META_AFTER};
use super::snapshot::RocksSnapshot;
use super::{DATA, META, RocksShared, ffi, wal};
use crate::{Database, EngineError, Family, OpenSpec, Result, Snapshot, Updates, WalFile, checked};

/// Bytes written between two looks at the memory that all memtables use.
const LOOK_EVERY: u64 = 1 << 20;
/// A flush that is waited for is asked for again after this long, then after twice that, and so on.
const NUDGE: Duration = Duration::from_millis(200);
const NUDGE_MAX: Duration = Duration::from_secs(5);

/// The open database, which the keeper reaches too.
pub(super) struct Core {
    pub(super) db: DB,
    pub(super) dir: PathBuf,
    /// Logical sequence = the database's own + this.
    pub(super) offset: u64,
}

impl Core {
    /// Never absent: both families were found at opening, and none is ever dropped.
    pub(super) fn family(&self, family: Family) -> Result<&ColumnFamily> {
        let name = match family {
            Family::Data => DATA,
            Family::Meta => META,
        };
        self.db
            .cf_handle(name)
            .ok_or_else(|| EngineError::Io { action: format!("find family {name}"), cause: "it is missing".to_owned() })
    }

    pub(super) fn logical(&self, own: u64) -> Sequence {
        Sequence(own + self.offset)
    }

    pub(super) fn flush_data(&self) -> Result<()> {
        let family = self.family(Family::Data)?;
        self.nudged(|| self.db.flush_cf(family)).map_err(|error| write_error("flush data", error))
    }

    pub(super) fn flush_meta(&self) -> Result<()> {
        self.db.flush_cf(self.family(Family::Meta)?).map_err(|error| write_error("flush meta", error))
    }

    /// Does what waits for a flush of the data family, and repeats the request until the work is done. A flush was seen to wait
    /// for ever with all of RocksDB's threads idle: where memtables are merged before they are flushed, beginning a flush that
    /// was queued before, for older memtables only, clears the mark of the later request too, and the younger ones stay.
    pub(super) fn nudged<T>(&self, work: impl FnOnce() -> T) -> T {
        let (done, waiting) = channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut options = FlushOptions::default();
                options.set_wait(false);
                let mut pause = NUDGE;
                while waiting.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                    pause = NUDGE_MAX.min(pause * 2);
                    let again = self.family(Family::Data).and_then(|family| {
                        self.db.flush_cf_opt(family, &options).map_err(|error| write_error("flush data again", error))
                    });
                    self.report("repeat the request for a flush", again);
                }
            });
            let result = work();
            drop(done);
            result
        })
    }

    pub(super) fn mark_busy(&self) -> Result<()> {
        self.db.set_options(&BUSY_OPTIONS).map_err(|error| other_error("set options", error))
    }

    /// Bytes in memtables of the data family; 0 while they are being flushed.
    pub(super) fn unflushed_bytes(&self) -> u64 {
        if self.number(Family::Data, properties::NUM_RUNNING_FLUSHES) > 0 {
            return 0;
        }
        self.number(Family::Data, properties::CUR_SIZE_ALL_MEM_TABLES)
    }

    /// A property's value, 0 if RocksDB has none.
    fn number(&self, family: Family, property: &properties::PropName) -> u64 {
        self.family(family)
            .ok()
            .and_then(|family| self.db.property_int_value_cf(family, property).ok().flatten())
            .unwrap_or_default()
    }

    /// Logs what nobody waits for.
    pub(super) fn report(&self, what: &str, result: Result<()>) {
        if let Err(error) = result {
            tracing::warn!(dir = %self.dir.display(), %error, "{what} failed");
        }
    }
}

/// What the one writer keeps between writes. Atomics only because the trait's calls take `&self`.
#[derive(Default)]
struct Written {
    bytes: AtomicU64,
    looked_at: AtomicU64,
    marked_busy: AtomicBool,
    /// Bytes at the last record in `meta` that was not flushed since; 0 if there is none.
    meta_at: AtomicU64,
}

/// One prefix's RocksDB; closes when dropped.
pub(super) struct RocksDatabase {
    id: u64,
    pub(super) core: Arc<Core>,
    shared: Arc<RocksShared>,
    reading: ReadOptions,
    unsynced: WriteOptions,
    synced: WriteOptions,
    written: Written,
}

impl fmt::Debug for RocksDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocksDatabase")
            .field("dir", &self.core.dir)
            .field("offset", &self.core.offset)
            .finish_non_exhaustive()
    }
}

impl Drop for RocksDatabase {
    fn drop(&mut self) {
        self.shared.keeper.leave(self.id);
    }
}

impl RocksDatabase {
    pub(super) fn open(shared: &Arc<RocksShared>, dir: &Path, spec: &OpenSpec) -> Result<Self> {
        let action = || format!("open database {}", dir.display());
        if !spec.create && !dir.join("CURRENT").exists() {
            return Err(EngineError::Missing { dir: dir.display().to_string() });
        }
        wal::sync_left(dir)?;
        let db = DB::open_cf_descriptors(&shared.options.database(spec.create), dir, shared.options.families())
            .map_err(|error| other_error(&action(), error))?;
        let core = Arc::new(Core { db, dir: dir.to_owned(), offset: spec.sequence_offset });
        for (family, number) in [(Family::Data, 0), (Family::Meta, 1)] {
            let found = ffi::family_number(core.family(family)?);
            if found != number {
                let cause = format!("{family:?} has number {found}, batches need {number}");
                return Err(EngineError::Corruption { action: action(), cause });
            }
        }
        wal::remove_unrecovered(&core)?;
        let id = shared.keeper.next_id();
        shared.keeper.enter(id, &core);
        let mut synced = WriteOptions::new();
        synced.set_sync(true);
        Ok(Self {
            id,
            core,
            shared: Arc::clone(shared),
            reading: ReadOptions::default(),
            unsynced: WriteOptions::new(),
            synced,
            written: Written::default(),
        })
    }

    /// Bookkeeping after a write of `bytes`; never fails, never waits.
    fn after_write(&self, bytes: u64, meta: bool) {
        let written = &self.written;
        let total = written.bytes.load(Ordering::Relaxed) + bytes;
        written.bytes.store(total, Ordering::Relaxed);
        if meta {
            written.meta_at.store(total, Ordering::Relaxed);
        }
        if total < written.looked_at.load(Ordering::Relaxed) + LOOK_EVERY {
            return;
        }
        written.looked_at.store(total, Ordering::Relaxed);
        let keeper = &self.shared.keeper;
        if self.shared.over_budget() {
            // No room means that one is waiting already.
            keeper.ask(Chore::Relieve);
        }
        let meta_at = written.meta_at.load(Ordering::Relaxed);
        if meta_at > 0 && total >= meta_at + FLUSH_META_AFTER && keeper.ask(Chore::FlushMeta(self.id)) {
            written.meta_at.store(0, Ordering::Relaxed);
        }
        if total >= BUSY_AFTER && !written.marked_busy.load(Ordering::Relaxed) && keeper.ask(Chore::MarkBusy(self.id)) {
            written.marked_busy.store(true, Ordering::Relaxed);
        }
    }
}

impl Database for RocksDatabase {
    fn latest(&self) -> Sequence {
        self.core.logical(self.core.db.latest_sequence_number())
    }

    fn get_with(&self, family: Family, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value = match family {
            // Without a handle: RocksDB has the default family at hand.
            Family::Data => self.core.db.get_pinned_opt(key, &self.reading),
            Family::Meta => self.core.db.get_pinned_cf_opt(self.core.family(family)?, key, &self.reading),
        };
        let value = value.map_err(|error| other_error("read key", error))?;
        Ok(value.map(|value| found(&value)).is_some())
    }

    fn write(&self, batch: &[u8], sync: bool) -> Result<Sequence> {
        let checked = checked::check(batch)?;
        let db = &self.core.db;
        let before = db.latest_sequence_number();
        let options = if sync { &self.synced } else { &self.unsynced };
        db.write_opt(WriteBatch::from_data(batch), options).map_err(|error| write_error("write batch", error))?;
        let after = db.latest_sequence_number();
        if after != before + u64::from(checked.count) {
            let cause = format!(
                "sequence went from {before} to {after} by {} records: somebody else writes too",
                checked.count
            );
            return Err(EngineError::WriteFailed { action: "write batch".to_owned(), cause });
        }
        self.after_write(batch.len() as u64, checked.meta);
        Ok(self.core.logical(before + 1))
    }

    fn sync(&self) -> Result<()> {
        self.core.db.flush_wal(true).map_err(|error| write_error("sync WAL", error))
    }

    fn snapshot(&self) -> Box<dyn Snapshot + '_> {
        Box::new(RocksSnapshot::new(&self.core))
    }

    fn updates_after(&self, after: Sequence) -> Result<Box<dyn Updates + '_>> {
        Ok(Box::new(wal::RocksUpdates::open(&self.core, after)?))
    }

    fn oldest_in_wal(&self) -> Result<Sequence> {
        wal::oldest(&self.core)
    }

    fn wal_files(&self) -> Result<Vec<WalFile>> {
        wal::files(&self.core)
    }

    fn remove_archived(&self, file: &WalFile) -> Result<()> {
        wal::remove_archived(file)
    }

    fn checkpoint(&self, dir: &Path) -> Result<()> {
        let action = || format!("checkpoint into {}", dir.display());
        let create =
            |checkpoint: Checkpoint<'_>| checkpoint.create_checkpoint_with_log_size(dir, CHECKPOINT_FLUSH_FROM);
        self.core
            .nudged(|| Checkpoint::new(&self.core.db).and_then(create))
            .map_err(|error| other_error(&action(), error))
    }

    fn flush(&self) -> Result<()> {
        self.core.flush_data()?;
        self.core.flush_meta()
    }

    fn compact(&self) -> Result<()> {
        let compact = |family| -> Result<()> {
            self.core.db.compact_range_cf(self.core.family(family)?, None::<&[u8]>, None::<&[u8]>);
            Ok(())
        };
        // It flushes first.
        self.core.nudged(|| compact(Family::Data))?;
        compact(Family::Meta)
    }

    fn verify_checksums(&self) -> Result<()> {
        ffi::verify_checksum(&self.core.db).map_err(|text| text_error("verify checksums", text))
    }

    fn estimated_keys(&self) -> u64 {
        self.core.number(Family::Data, properties::ESTIMATE_NUM_KEYS)
    }

    fn disk_bytes(&self) -> u64 {
        [Family::Data, Family::Meta]
            .into_iter()
            .map(|family| self.core.number(family, properties::TOTAL_SST_FILES_SIZE))
            .sum()
    }
}
