//! Databases of prefixes: the [`Engine`] that opens them and the [`Database`] that one is.
//!
//! Two implementations: [`rocks`] (RocksDB) and [`memory`] (its in-memory twin for tests and simulation, with the same
//! sequences, the same WAL window and with losses of what was not synced).
//!
//! Sequences here are *logical*. A database made by a range scan starts at RocksDB sequence 0; [`OpenSpec::sequence_offset`]
//! maps it, and nothing above this crate sees another number.

pub mod memory;
#[cfg(feature = "rocks")]
pub mod rocks;

mod checked;
mod error;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use parovoz_dataplane_core::types::Sequence;

pub use error::{EngineError, Severity};

/// Result of an engine call.
pub type Result<T> = std::result::Result<T, EngineError>;

/// The two column families of every prefix. Their numbers stand in the replicated batches and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// `default`: the data (number 0).
    Data,
    /// `meta`: epoch records (number 1).
    Meta,
}

/// How a database is opened.
#[derive(Debug, Clone, Default)]
pub struct OpenSpec {
    /// Logical sequence = the database's own + this.
    pub sequence_offset: u64,
    /// Make an empty database if there is none; otherwise a missing one is an error.
    pub create: bool,
}

/// Opens databases that share one block cache, write-buffer manager, environment and rate limiter.
pub trait Engine: Send + Sync + fmt::Debug {
    /// Opens (or creates) the database in `dir`. What it shows then is durable: a process that was killed may have left records
    /// that only the operating system had. Mostly waits for fsyncs: open many from several threads at once.
    fn open(&self, dir: &Path, spec: &OpenSpec) -> Result<Arc<dyn Database>>;
    /// Removes a closed database's files.
    fn destroy(&self, dir: &Path) -> Result<()>;
    /// Bytes used by block cache and memtables of all databases.
    fn memory_bytes(&self) -> u64;
}

/// One batch read back from the WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedBatch {
    /// Logical sequence of its first record.
    pub first: Sequence,
    /// Its records; never 0 (empty batches are left out).
    pub count: u32,
    /// The whole batch in RocksDB's format, header included, the header's sequence being the logical one.
    pub bytes: Bytes,
}

/// A WAL file, live or archived.
#[derive(Debug, Clone)]
pub struct WalFile {
    /// Where it is.
    pub path: PathBuf,
    /// Whether RocksDB is done with it, so that the pruner may remove it.
    pub archived: bool,
    /// Logical sequence of its first record.
    pub first: Sequence,
    /// Its length.
    pub bytes: u64,
    /// Last written.
    pub modified: SystemTime,
}

/// Which way a range is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the first key up.
    Forward,
    /// From the last key down.
    Reverse,
}

/// One prefix's database. All calls may come from any thread; one thread at a time writes (its caller sees to that).
pub trait Database: Send + Sync + fmt::Debug {
    /// Logical sequence of the last record, 0 if there is none.
    fn latest(&self) -> Sequence;

    /// Reads one key; calls `found` with the stored bytes if it exists, and answers whether it does.
    fn get_with(&self, family: Family, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<bool>;

    /// Writes a batch in RocksDB's format (the header's sequence is ignored; `count` in the header must be right) and answers
    /// the logical sequence of its first record. With `sync` it is on disk on return.
    fn write(&self, batch: &[u8], sync: bool) -> Result<Sequence>;

    /// Makes everything written so far durable.
    fn sync(&self) -> Result<()>;

    /// A consistent view of the present contents.
    fn snapshot(&self) -> Box<dyn Snapshot + '_>;

    /// Batches that start after `after`, oldest first, from the WAL, up to what is written now and possibly less.
    ///
    /// # Errors
    /// [`EngineError::Gap`] if the records right after `after` can't be had: no longer in the WAL, or `after` lies within a
    /// batch (positions are batch boundaries). [`EngineError::Ahead`] if `after` is past the latest.
    fn updates_after(&self, after: Sequence) -> Result<Box<dyn Updates + '_>>;

    /// Logical sequence from which the WAL is whole up to now (`latest + 1` if the WAL holds nothing).
    fn oldest_in_wal(&self) -> Result<Sequence>;

    /// WAL files, oldest first.
    fn wal_files(&self) -> Result<Vec<WalFile>>;

    /// Removes one archived WAL file; the pruner's. Not an error if it is gone already.
    fn remove_archived(&self, file: &WalFile) -> Result<()>;

    /// A consistent copy by hard links in the new folder `dir`, which must not exist; its parent must.
    fn checkpoint(&self, dir: &Path) -> Result<()>;

    /// Writes memtables out.
    fn flush(&self) -> Result<()>;

    /// Compacts everything.
    fn compact(&self) -> Result<()>;

    /// Reads every block and compares checksums.
    fn verify_checksums(&self) -> Result<()>;

    /// About how many keys there are.
    fn estimated_keys(&self) -> u64;

    /// Bytes of the files on disk, WAL left out.
    fn disk_bytes(&self) -> u64;
}

/// A consistent view of a database.
pub trait Snapshot {
    /// Logical sequence that it shows.
    fn sequence(&self) -> Sequence;
    /// Reads one key.
    fn get_with(&self, family: Family, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<bool>;
    /// Calls `each(key, stored value)` for keys in [from, to) until it answers false; an empty `to` is the end.
    /// In reverse the order is from the last key below `to` down to `from`.
    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        direction: Direction,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<()>;
}

/// A read of the WAL. Not `Send`: use it on the thread that opened it.
pub trait Updates {
    /// The next batch; `None` at the end of what is written. Contiguity is checked inside: a hole is [`EngineError::Gap`].
    fn next_batch(&mut self) -> Result<Option<LoggedBatch>>;
}
