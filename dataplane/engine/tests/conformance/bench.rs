//! What the suite needs of an engine, and short words for it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parovoz_dataplane_core::batch::BatchBuilder;
use parovoz_dataplane_core::types::Sequence;
use parovoz_engine::memory::MemoryEngine;
use parovoz_engine::rocks::{RocksEngine, RocksSettings};
use parovoz_engine::{Database, Direction, Engine, Family, LoggedBatch, OpenSpec, Snapshot};
use tempfile::TempDir;

pub trait Bench {
    fn engine(&self) -> &dyn Engine;
    fn dir(&self, name: &str) -> PathBuf;
    /// Damages what the closed database in `dir` has in tables.
    fn corrupt(&self, dir: &Path);
    /// What the disk would hold if the process that has `dir` open ended now; answers its folder.
    fn as_killed(&self, database: Arc<dyn Database>, dir: &Path) -> PathBuf;

    fn create(&self, name: &str) -> Arc<dyn Database> {
        self.engine().open(&self.dir(name), &OpenSpec { create: true, sequence_offset: 0 }).unwrap()
    }
    fn reopen(&self, name: &str) -> Arc<dyn Database> {
        self.engine().open(&self.dir(name), &OpenSpec::default()).unwrap()
    }
}

pub struct MemoryBench {
    pub engine: MemoryEngine,
}

impl MemoryBench {
    pub fn new() -> Self {
        Self { engine: MemoryEngine::new() }
    }
}

impl Bench for MemoryBench {
    fn engine(&self) -> &dyn Engine {
        &self.engine
    }
    fn dir(&self, name: &str) -> PathBuf {
        Path::new("/memory").join(name)
    }
    fn corrupt(&self, dir: &Path) {
        self.engine.corrupt(dir).unwrap();
    }
    fn as_killed(&self, database: Arc<dyn Database>, dir: &Path) -> PathBuf {
        drop(database);
        dir.to_owned()
    }
}

pub struct RocksBench {
    pub engine: RocksEngine,
    pub root: TempDir,
}

impl RocksBench {
    pub fn new() -> Self {
        Self::with(&RocksSettings { block_cache_bytes: 8 << 20, ..RocksSettings::default() })
    }
    pub fn with(settings: &RocksSettings) -> Self {
        Self { engine: RocksEngine::new(settings).unwrap(), root: tempfile::tempdir().unwrap() }
    }
}

impl Bench for RocksBench {
    fn engine(&self) -> &dyn Engine {
        &self.engine
    }
    fn dir(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }
    fn corrupt(&self, dir: &Path) {
        let table = files_named(dir, "sst").pop().expect("a table to damage");
        flip_byte(&table, 20);
    }
    fn as_killed(&self, database: Arc<dyn Database>, dir: &Path) -> PathBuf {
        // A process's end loses nothing that was written, synced or not: the files as they are now, with no closing.
        let copy = dir.with_extension("killed");
        fs::create_dir(&copy).unwrap();
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
            }
        }
        drop(database);
        copy
    }
}

/// Files in `dir` with this extension, sorted.
pub fn files_named(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

pub fn flip_byte(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0u8];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0xFF], at).unwrap();
}

/// A batch.
pub fn batch(build: impl FnOnce(&mut BatchBuilder)) -> Bytes {
    let mut builder = BatchBuilder::new();
    build(&mut builder);
    builder.finish()
}

/// A batch that sets `count` keys from `first` on.
pub fn puts(first: u32, count: u32) -> Bytes {
    batch(|b| (first..first + count).for_each(|n| b.put_value(format!("key{n:06}").as_bytes(), b"value", None)))
}

/// All rows of a family, by a scan of a snapshot.
pub fn rows(database: &dyn Database, family: Family) -> Vec<(Vec<u8>, Vec<u8>)> {
    scan(&*database.snapshot(), family, b"", b"", Direction::Forward)
}

pub fn scan(
    snapshot: &dyn Snapshot,
    family: Family,
    from: &[u8],
    to: &[u8],
    way: Direction,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    let mut each = |key: &[u8], value: &[u8]| {
        rows.push((key.to_vec(), value.to_vec()));
        true
    };
    snapshot.scan(family, from, to, way, &mut each).unwrap();
    rows
}

pub fn get(database: &dyn Database, family: Family, key: &[u8]) -> Option<Vec<u8>> {
    let mut value = None;
    let found = database.get_with(family, key, &mut |bytes| value = Some(bytes.to_vec())).unwrap();
    assert_eq!(found, value.is_some());
    value
}

/// All batches after a position.
pub fn drain(database: &dyn Database, after: u64) -> Vec<LoggedBatch> {
    let mut updates = database.updates_after(Sequence(after)).unwrap();
    let mut batches = Vec::new();
    while let Some(batch) = updates.next_batch().unwrap() {
        batches.push(batch);
    }
    batches
}

/// Streams everything after `to`'s position from `from`, as a follower does.
pub fn follow(from: &dyn Database, to: &dyn Database) {
    for batch in drain(from, to.latest().0) {
        assert_eq!(batch.first, to.latest().next());
        assert_eq!(to.write(&batch.bytes, false).unwrap(), batch.first);
    }
}

pub fn assert_same(one: &dyn Database, other: &dyn Database) {
    assert_eq!(one.latest(), other.latest());
    for family in [Family::Data, Family::Meta] {
        assert_eq!(rows(one, family), rows(other, family), "{family:?}");
    }
}

/// Flushes, then removes archived WAL files whose records all lie at or below `through`, as the pruner does.
pub fn prune(database: &dyn Database, through: u64) {
    database.flush().unwrap();
    let files = database.wal_files().unwrap();
    let ends = files.iter().skip(1).map(|next| next.first.0 - 1).chain([database.latest().0]);
    for (file, end) in files.iter().zip(ends) {
        if file.archived && end <= through {
            database.remove_archived(file).unwrap();
        }
    }
}

/// Waits until `done`, with a deadline.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within 30 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}
