//! The engine on RocksDB.
//!
//! * [`options`]: how databases are set up, and the sizes that they share.
//! * [`database`]: one prefix's database; [`snapshot`]: a consistent view; [`wal`]: reading and pruning the log.
//! * [`keeper`]: housekeeping off the writers' threads.
//! * [`expiry`]: the compaction filter. [`errors`]: from RocksDB's errors to ours. [`ffi`]: all `unsafe`.

mod database;
mod errors;
mod expiry;
mod ffi;
mod keeper;
mod options;
mod snapshot;
mod wal;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

pub use options::RocksSettings;

use crate::{Database, Engine, EngineError, OpenSpec, Result};

/// Name of the data's column family.
const DATA: &str = "default";
/// Name of the epoch records' column family.
const META: &str = "meta";

/// What all databases of an engine use.
struct RocksShared {
    options: options::Shared,
    keeper: keeper::Keeper,
    memtable_bytes: usize,
}

impl RocksShared {
    fn over_budget(&self) -> bool {
        self.options.memtables.get_usage() > self.memtable_bytes
    }
}

/// Opens RocksDB databases that share cache, memtable budget, threads and rate limit.
#[derive(Clone)]
pub struct RocksEngine {
    shared: Arc<RocksShared>,
}

impl fmt::Debug for RocksEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocksEngine").field("memtable_bytes", &self.shared.memtable_bytes).finish_non_exhaustive()
    }
}

impl RocksEngine {
    /// An engine with these sizes. Its threads end when it and all its databases are dropped.
    ///
    /// # Errors
    /// [`EngineError::Io`] if threads can't be started.
    pub fn new(settings: &RocksSettings) -> Result<Self> {
        let options = options::Shared::new(settings)?;
        let keeper = keeper::Keeper::start(options.memtables.clone(), settings.memtable_bytes)?;
        Ok(Self { shared: Arc::new(RocksShared { options, keeper, memtable_bytes: settings.memtable_bytes }) })
    }
}

impl Engine for RocksEngine {
    fn open(&self, dir: &Path, spec: &OpenSpec) -> Result<Arc<dyn Database>> {
        Ok(Arc::new(database::RocksDatabase::open(&self.shared, dir, spec)?))
    }

    fn destroy(&self, dir: &Path) -> Result<()> {
        let action = || format!("destroy database {}", dir.display());
        if !dir.exists() {
            return Ok(());
        }
        // Takes the lock first, so that an open database is refused.
        self.shared.options.destroy(dir).map_err(|error| errors::other_error(&action(), error))?;
        match std::fs::remove_dir_all(dir) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(EngineError::Io { action: action(), cause: error.to_string() }),
        }
    }

    fn memory_bytes(&self) -> u64 {
        (self.shared.options.cache.get_usage() + self.shared.options.memtables.get_usage()) as u64
    }
}
