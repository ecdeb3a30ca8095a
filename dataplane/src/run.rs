//! Start and stop: opens the volume, starts the threads in order, and stops them in the reverse order.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parovoz_dataplane_core::member::{MemberRecord, StartAllowed};
use parovoz_dataplane_core::types::{DataUuid, Limits, StoreUid};
use parovoz_engine::{Engine, EngineError};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::clock;
use crate::config::{ConfigError, RunArgs, Settings};
use crate::disk::layout::{Layout, LayoutError};
use crate::disk::slots::{SlotError, Slots};

/// Ends the process when going on could lose data. Tests put another ending in.
#[derive(Clone)]
pub struct FatalSwitch {
    ending: Arc<dyn Fn(&str) + Send + Sync>,
    done: Arc<AtomicBool>,
}

impl std::fmt::Debug for FatalSwitch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FatalSwitch").field("done", &self.done).finish_non_exhaustive()
    }
}

impl FatalSwitch {
    /// Aborts the process: no destructor runs, so nothing half-written is flushed as if it were whole.
    #[must_use]
    pub fn abort() -> Self {
        Self::with(|_| std::process::abort())
    }

    /// Another ending.
    #[must_use]
    pub fn with(ending: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { ending: Arc::new(ending), done: Arc::default() }
    }

    /// Ends the process, the first time it is called.
    pub fn end(&self, why: &str) {
        if !self.done.swap(true, Ordering::AcqRel) {
            tracing::error!(%why, "fatal: the process ends");
            (self.ending)(why);
        }
    }
}

/// Why the process can't start or has to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Member slots.
    #[error(transparent)]
    Slots(#[from] SlotError),
    /// Folders.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// RocksDB.
    #[error("start engine: {0}")]
    Engine(#[from] EngineError),
    /// The catalogue.
    #[error(transparent)]
    Catalogue(#[from] crate::store::catalogue::CatalogueError),
    /// Event loops.
    #[error("start event loops: {0}")]
    Loops(String),
    /// A thread or a runtime.
    #[error("start thread {name}: {cause}")]
    Thread {
        /// Its name.
        name: &'static str,
        /// Why.
        cause: io::Error,
    },
    /// A port.
    #[error("listen on {address}: {cause}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        cause: io::Error,
    },
    /// The data folder is in use or can't be used.
    #[error("lock data folder {path}: {cause}")]
    Lock {
        /// The folder.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The volume is another store's.
    #[error("open volume: it belongs to store {found}, this member is of store {expected}; attach the right volume")]
    OtherStore {
        /// On the volume.
        found: StoreUid,
        /// By the configuration.
        expected: StoreUid,
    },
    /// There is data, but nothing that says whose.
    #[error(
        "open volume: there are prefixes but no member slot, so nobody knows what this member promised. The data is kept \
         untouched; restore a slot from a backup, or delete this member's volume claim"
    )]
    SlotsMissing,
    /// Restarted too often.
    #[error(
        "start: {restarts} restarts within {window_seconds} s are over the budget (recovery.maxAttempts); see why the process \
         ended before, then delete the pod or change spec.recovery to try again"
    )]
    OverBudget {
        /// Restarts in the window.
        restarts: usize,
        /// The window.
        window_seconds: u64,
    },
    /// Descriptors.
    #[error("check limits: {have} file descriptors, at least {need} are needed; raise the limit (ulimit -n)")]
    Descriptors {
        /// The limit.
        have: u64,
        /// What is needed.
        need: u64,
    },
}

impl RunError {
    /// Whether the volume had no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Slots(error) => error.is_full(),
            Self::Layout(error) => error.is_full(),
            Self::Catalogue(error) => error.is_full(),
            Self::Engine(error) => matches!(error, EngineError::NoSpace { .. }),
            Self::Lock { cause, .. } => crate::disk::reserve::is_full(cause),
            Self::Config(_)
            | Self::Loops(_)
            | Self::Thread { .. }
            | Self::Listen { .. }
            | Self::OtherStore { .. }
            | Self::SlotsMissing
            | Self::OverBudget { .. }
            | Self::Descriptors { .. } => false,
        }
    }
}

/// Descriptors below which the process does not start: 1,000 prefixes were seen to use 7,000.
const MIN_DESCRIPTORS: u64 = 1024;
/// How long a stop waits for requests under way.
pub const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Raises the descriptor limit as far as allowed and checks it.
///
/// # Errors
/// [`RunError::Descriptors`].
pub fn raise_descriptor_limit() -> Result<u64, RunError> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX).min(1 << 20);
    // Keeping the old limit is fine as long as it is enough, which is checked next.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum });
    let have = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if have < MIN_DESCRIPTORS { Err(RunError::Descriptors { have, need: MIN_DESCRIPTORS }) } else { Ok(have) }
}

/// The opened volume.
#[derive(Debug)]
pub struct Volume {
    /// Held as long as the process lives: two processes never share a volume.
    pub lock: File,
    /// Folders.
    pub layout: Layout,
    /// Member slots.
    pub slots: Slots,
    /// What they hold, this start counted.
    pub record: MemberRecord,
}

/// Opens the volume: lock, slots, folders. A blank one gets its identity here, durably.
///
/// # Errors
/// See [`RunError`]; nothing is changed on a volume that is not this member's.
pub fn open_volume(args: &RunArgs, settings: &Settings) -> Result<Volume, RunError> {
    let lock_error = |cause| RunError::Lock { path: args.data_dir.clone(), cause };
    std::fs::create_dir_all(&args.data_dir).map_err(lock_error)?;
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(args.data_dir.join("lock"))
        .map_err(lock_error)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|e| match e {
        rustix::io::Errno::WOULDBLOCK => lock_error(io::Error::other("another process uses it; end that one first")),
        other => lock_error(other.into()),
    })?;
    let (mut slots, found) = Slots::open(&args.data_dir)?;
    let store = StoreUid(args.store_uid.clone());
    let record = match found {
        Some(record) if record.store != store => {
            return Err(RunError::OtherStore { found: record.store, expected: store });
        }
        Some(mut record) => {
            if !record.claim_uid.is_empty() && !args.claim_uid.is_empty() && record.claim_uid != args.claim_uid {
                let before = record.data_uuid;
                record.data_uuid = DataUuid(Uuid::new_v4());
                record.orders = None;
                tracing::warn!(%before, now = %record.data_uuid, "the volume is a copy of another member's: new identity");
            }
            record.claim_uid.clone_from(&args.claim_uid);
            record
        }
        None if has_prefixes(args) => return Err(RunError::SlotsMissing),
        None => MemberRecord::blank(store, DataUuid(Uuid::new_v4()), args.claim_uid.clone()),
    };
    let record = record.started_at(clock::wall_ms(), settings.recovery.window_seconds * 1000);
    slots.write_both(&record)?;
    check_budget(&record, settings)?;
    let layout = Layout::open(&args.data_dir)?;
    Ok(Volume { lock, layout, slots, record })
}

/// Waits as the restart budget says; over it, nothing is opened.
fn check_budget(record: &MemberRecord, settings: &Settings) -> Result<(), RunError> {
    let recovery = settings.recovery;
    match record.start_allowed(clock::wall_ms(), recovery.max_attempts, recovery.backoff_seconds * 1000) {
        StartAllowed::After { ms } => {
            if ms > 0 {
                tracing::warn!(ms, restarts = record.starts.len() - 1, "restarted lately: waiting before the start");
                std::thread::sleep(Duration::from_millis(ms));
            }
            Ok(())
        }
        StartAllowed::Park => Err(RunError::OverBudget {
            restarts: record.starts.len().saturating_sub(1),
            window_seconds: recovery.window_seconds,
        }),
    }
}

fn has_prefixes(args: &RunArgs) -> bool {
    std::fs::read_dir(args.data_dir.join("prefixes")).is_ok_and(|mut entries| entries.next().is_some())
}

/// Forgives the restarts so far: a person looked.
///
/// # Errors
/// If the slots can't be written.
pub fn forgive_restarts(args: &RunArgs) -> Result<(), RunError> {
    let (mut slots, found) = Slots::open(&args.data_dir)?;
    if let Some(mut record) = found {
        record.starts.clear();
        // No restart is counted for it, and nothing is said of what was synced.
        record.clean_stop = Some(String::new());
        slots.write_both(&record)?;
    }
    Ok(())
}

/// Writes the process's identity to the container's termination message: the kubelet shows it once the container has ended,
/// which proves that this very process has. Without it nobody can prove that, and a failover takes longer.
pub fn announce(args: &RunArgs, process_id: &str) {
    // Only a file that the kubelet made is of use.
    if !args.termination_log.exists() {
        return;
    }
    if let Err(error) = std::fs::write(&args.termination_log, format!("process_id={process_id}\n")) {
        tracing::warn!(%error, path = %args.termination_log.display(), "termination message not written");
    }
}

/// Sizes that requests may have.
#[must_use]
pub fn limits() -> Limits {
    Limits::default()
}

/// Binds a port.
///
/// # Errors
/// [`RunError::Listen`].
pub async fn listen(args: &RunArgs, port: u16) -> Result<TcpListener, RunError> {
    let address = SocketAddr::new(args.listen, port);
    TcpListener::bind(address).await.map_err(|cause| RunError::Listen { address, cause })
}

/// Opens RocksDB for this process.
///
/// # Errors
/// If its shared parts can't be made.
pub fn open_engine(args: &RunArgs) -> Result<Arc<dyn Engine>, RunError> {
    let options = parovoz_engine::rocks::RocksSettings {
        block_cache_bytes: args.block_cache_bytes,
        memtable_bytes: args.write_buffer_bytes,
        ..parovoz_engine::rocks::RocksSettings::default()
    };
    Ok(Arc::new(parovoz_engine::rocks::RocksEngine::new(&options)?))
}
