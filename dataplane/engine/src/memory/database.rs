//! Handles on databases in memory.

use std::fmt;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use parovoz_dataplane_core::types::Sequence;

use super::Disks;
use super::disk::{Disk, Image};
use crate::{Database, Direction, EngineError, Family, LoggedBatch, Result, Snapshot, Updates, WalFile};

pub(super) struct MemoryDatabase {
    dir: PathBuf,
    disk: Arc<Mutex<Disk>>,
    generation: u64,
    disks: Disks,
}

impl fmt::Debug for MemoryDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDatabase").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Drop for MemoryDatabase {
    fn drop(&mut self) {
        self.disk.lock().close(self.generation);
    }
}

impl MemoryDatabase {
    pub(super) fn new(dir: PathBuf, disk: Arc<Mutex<Disk>>, generation: u64, disks: Disks) -> Self {
        Self { dir, disk, generation, disks }
    }

    /// The disk, unless it crashed since this handle was opened.
    fn alive(&self, action: &str) -> Result<MutexGuard<'_, Disk>> {
        let disk = self.disk.lock();
        if disk.serves(self.generation) {
            Ok(disk)
        } else {
            Err(EngineError::Io {
                action: action.to_owned(),
                cause: "the machine crashed since it was opened".to_owned(),
            })
        }
    }
}

impl Database for MemoryDatabase {
    fn latest(&self) -> Sequence {
        self.disk.lock().latest()
    }

    fn get_with(&self, family: Family, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value = self.alive("read key")?.now.rows(family).get(key).cloned();
        Ok(value.map(|value| found(&value)).is_some())
    }

    fn write(&self, batch: &[u8], sync: bool) -> Result<Sequence> {
        self.alive("write batch")?.write(batch, sync)
    }

    fn sync(&self) -> Result<()> {
        self.alive("sync WAL")?.sync();
        Ok(())
    }

    fn snapshot(&self) -> Box<dyn Snapshot + '_> {
        let disk = self.disk.lock();
        Box::new(MemorySnapshot { image: disk.now.clone(), sequence: disk.latest() })
    }

    fn updates_after(&self, after: Sequence) -> Result<Box<dyn Updates + '_>> {
        let first = self.alive("read WAL")?.batch_after(after)?;
        Ok(Box::new(MemoryUpdates { database: self, after, first }))
    }

    fn oldest_in_wal(&self) -> Result<Sequence> {
        Ok(self.alive("find oldest WAL record")?.oldest())
    }

    fn wal_files(&self) -> Result<Vec<WalFile>> {
        let disk = self.alive("list WAL files")?;
        let files = disk.logs.iter().filter_map(|log| {
            let folder = if log.archived { self.dir.join("archive") } else { self.dir.clone() };
            Some(WalFile {
                path: folder.join(format!("{:06}.log", log.number)),
                archived: log.archived,
                first: disk.logical(log.first()?),
                bytes: log.bytes(),
                modified: log.modified,
            })
        });
        Ok(files.collect())
    }

    fn remove_archived(&self, file: &WalFile) -> Result<()> {
        let action = format!("remove {}", file.path.display());
        let number = file.path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        match number {
            Some(number) if file.archived => {
                self.alive(&action)?.remove_archived(number);
                Ok(())
            }
            Some(_) => Err(EngineError::Io { action, cause: "it is not archived".to_owned() }),
            None => Err(EngineError::Io { action, cause: "it is no WAL file".to_owned() }),
        }
    }

    fn checkpoint(&self, dir: &Path) -> Result<()> {
        let action = format!("checkpoint into {}", dir.display());
        let copy = self.alive(&action)?.checkpoint();
        let mut disks = self.disks.lock();
        if disks.contains_key(dir) {
            return Err(EngineError::Io { action, cause: "it exists".to_owned() });
        }
        disks.insert(dir.to_owned(), Arc::new(Mutex::new(copy)));
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.alive("flush")?.flush();
        Ok(())
    }

    fn compact(&self) -> Result<()> {
        self.flush()
    }

    fn verify_checksums(&self) -> Result<()> {
        let action = "verify checksums";
        if self.alive(action)?.corrupt {
            return Err(EngineError::Corruption { action: action.to_owned(), cause: "checksum differs".to_owned() });
        }
        Ok(())
    }

    fn estimated_keys(&self) -> u64 {
        self.disk.lock().now.data.len() as u64
    }

    fn disk_bytes(&self) -> u64 {
        self.disk.lock().row_bytes()
    }
}

struct MemorySnapshot {
    image: Image,
    sequence: Sequence,
}

impl Snapshot for MemorySnapshot {
    fn sequence(&self) -> Sequence {
        self.sequence
    }

    fn get_with(&self, family: Family, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.image.rows(family).get(key).map(|value| found(value)).is_some())
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        direction: Direction,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<()> {
        if !to.is_empty() && from >= to {
            return Ok(());
        }
        let end = if to.is_empty() { Bound::Unbounded } else { Bound::Excluded(to) };
        let mut rows = self.image.rows(family).range::<[u8], _>((Bound::Included(from), end));
        let mut next = || -> Option<(&Bytes, &Bytes)> {
            match direction {
                Direction::Forward => rows.next(),
                Direction::Reverse => rows.next_back(),
            }
        };
        while let Some((key, value)) = next() {
            if !each(key, value) {
                break;
            }
        }
        Ok(())
    }
}

struct MemoryUpdates<'a> {
    database: &'a MemoryDatabase,
    after: Sequence,
    /// Read at opening already, so that a gap shows there.
    first: Option<LoggedBatch>,
}

impl Updates for MemoryUpdates<'_> {
    fn next_batch(&mut self) -> Result<Option<LoggedBatch>> {
        let batch = match self.first.take() {
            Some(batch) => Some(batch),
            None => self.database.alive("read WAL")?.batch_after(self.after)?,
        };
        if let Some(batch) = &batch {
            self.after = batch.first.last_of(batch.count);
        }
        Ok(batch)
    }
}
