//! The engine's twin in memory, for tests and simulation: the same sequences, the same WAL window, the same errors, and the
//! loss of what was not synced.
//!
//! Contents, WAL and what of it is durable live in the engine, keyed by folder, and outlast the databases that are open on
//! them, as a disk does. [`MemoryEngine::crash`] takes back what was not synced; handles from before answer errors.

mod database;
mod disk;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use parovoz_dataplane_core::types::Sequence;

use crate::{Database, Engine, EngineError, OpenSpec, Result};
use database::MemoryDatabase;
use disk::Disk;

/// The folders of an engine.
type Disks = Arc<Mutex<HashMap<PathBuf, Arc<Mutex<Disk>>>>>;

/// Opens databases in memory.
#[derive(Clone, Default)]
pub struct MemoryEngine {
    disks: Disks,
}

impl fmt::Debug for MemoryEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryEngine").field("databases", &self.disks.lock().len()).finish()
    }
}

impl MemoryEngine {
    /// An engine without databases.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The machine loses power: the database in `dir` goes back to what was durable, and open handles on it die.
    ///
    /// # Errors
    /// [`EngineError::Missing`].
    pub fn crash(&self, dir: &Path) -> Result<()> {
        self.disk(dir)?.lock().crash();
        Ok(())
    }

    /// [`Self::crash`] for every database in the folder `dir` or below.
    pub fn crash_all(&self, dir: &Path) {
        for (path, disk) in self.disks.lock().iter() {
            if path.starts_with(dir) {
                disk.lock().crash();
            }
        }
    }

    /// Forgets WAL batches that end at or before `through` (logical), after a flush: makes a gap.
    ///
    /// # Errors
    /// [`EngineError::Missing`].
    pub fn prune_wal(&self, dir: &Path, through: Sequence) -> Result<()> {
        self.disk(dir)?.lock().prune_through(through);
        Ok(())
    }

    /// Damages the database in `dir`, so that its checksums differ.
    ///
    /// # Errors
    /// [`EngineError::Missing`].
    pub fn corrupt(&self, dir: &Path) -> Result<()> {
        self.disk(dir)?.lock().corrupt = true;
        Ok(())
    }

    /// Moves a closed database to another folder, as a rename does.
    ///
    /// # Errors
    /// [`EngineError::Missing`], or [`EngineError::Io`] if there is one at `to`.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let mut disks = self.disks.lock();
        if disks.contains_key(to) {
            return Err(EngineError::Io {
                action: format!("rename to {}", to.display()),
                cause: "it exists".to_owned(),
            });
        }
        let disk = disks.remove(from).ok_or_else(|| missing(from))?;
        disks.insert(to.to_owned(), disk);
        Ok(())
    }

    fn disk(&self, dir: &Path) -> Result<Arc<Mutex<Disk>>> {
        self.disks.lock().get(dir).cloned().ok_or_else(|| missing(dir))
    }
}

fn missing(dir: &Path) -> EngineError {
    EngineError::Missing { dir: dir.display().to_string() }
}

impl Engine for MemoryEngine {
    fn open(&self, dir: &Path, spec: &OpenSpec) -> Result<Arc<dyn Database>> {
        let disk = {
            let mut disks = self.disks.lock();
            match disks.get(dir) {
                Some(disk) => Arc::clone(disk),
                None if spec.create => Arc::clone(disks.entry(dir.to_owned()).or_default()),
                None => return Err(missing(dir)),
            }
        };
        let generation = disk.lock().open(spec.sequence_offset).map_err(|cause| EngineError::Io {
            action: format!("open database {}", dir.display()),
            cause: cause.to_owned(),
        })?;
        Ok(Arc::new(MemoryDatabase::new(dir.to_owned(), disk, generation, Arc::clone(&self.disks))))
    }

    fn destroy(&self, dir: &Path) -> Result<()> {
        let mut disks = self.disks.lock();
        let Some(disk) = disks.get(dir) else { return Ok(()) };
        if disk.lock().is_open() {
            return Err(EngineError::Io {
                action: format!("destroy database {}", dir.display()),
                cause: "it is open".to_owned(),
            });
        }
        disks.remove(dir);
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        self.disks.lock().values().map(|disk| disk.lock().bytes()).sum()
    }
}
