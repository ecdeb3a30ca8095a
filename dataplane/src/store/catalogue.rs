//! The catalogue: a replicated system prefix whose records create and drop all others.
//!
//! Records: `p/NAME` -> the prefix's identity; `d/UUID` -> the name of a dropped one. A drop deletes `p/NAME` and puts
//! `d/UUID` in one batch. Only an applied `d/` record ever takes a prefix away; absence means nothing, but where a catalogue
//! that had diverged was replaced: see [`unlisted`].
//!
//! On a primary one thread creates and drops, so there is one writer. On a replica the apply thread of the catalogue calls
//! `Catalogue::apply_records` for each batch *before* the batch is acknowledged.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use parking_lot::Mutex;
use parovoz_dataplane_core::batch::{self, BatchBuilder, DATA_FAMILY, Record};
use parovoz_dataplane_core::history::{EpochHistory, EpochRecord};
use parovoz_dataplane_core::types::{Position, PrefixName, PrefixUuid, Sequence, catalogue_uuid};
use parovoz_dataplane_core::value;
use parovoz_engine::{Database, Direction, Engine, EngineError, Family, OpenSpec, Severity};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::prefix::{CommitError, Copy, Prefix, PrefixPhase};
use super::{CreateError, CreateReply, Creator, Store};
use crate::clock;
use crate::config::{Durability, PrefixCreate};
use crate::disk::layout::{Generation, Layout, LayoutError};
use crate::run::FatalSwitch;

#[cfg(test)]
mod tests;
mod unlisted;

/// Databases that are opened at a time: more gained nothing on two cores.
const OPENERS: usize = 16;
/// Creations and drops that may wait at a time.
const QUEUE: usize = 1024;

/// Why the catalogue or a database that it lists can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// Folders.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The database.
    #[error("prefix {name}: {cause}")]
    Engine {
        /// Which one.
        name: PrefixName,
        /// What happened.
        cause: EngineError,
    },
    /// A record can't be read.
    #[error("read catalogue record: {0}")]
    Malformed(String),
    /// It can't be dropped.
    #[error("drop prefix {0}: there is none of this name")]
    NoPrefix(PrefixName),
    /// Too many creations and drops wait.
    #[error("drop prefix: too many changes are waiting, try again")]
    Busy,
    /// Writing was refused.
    #[error("write catalogue: {0}")]
    Commit(#[from] CommitError),
}

impl CatalogueError {
    /// Whether the volume had no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Layout(error) => error.is_full(),
            Self::Engine { cause, .. } | Self::Commit(CommitError::Engine(cause)) => {
                matches!(cause, EngineError::NoSpace { .. })
            }
            Self::Malformed(_)
            | Self::NoPrefix(_)
            | Self::Busy
            | Self::Commit(CommitError::NotPrimary | CommitError::Closed) => false,
        }
    }

    /// Whether the process must end.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Engine { cause, .. } | Self::Commit(CommitError::Engine(cause)) => {
                cause.severity() == Severity::Fatal
            }
            Self::Layout(_)
            | Self::Malformed(_)
            | Self::NoPrefix(_)
            | Self::Busy
            | Self::Commit(CommitError::NotPrimary | CommitError::Closed) => false,
        }
    }
}

/// What `p/NAME` holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    prefix_uuid: PrefixUuid,
}

/// What `d/UUID` holds.
#[derive(Debug, Serialize, Deserialize)]
struct DropEntry {
    name: PrefixName,
}

/// Called with the dropped prefix's position, or why it was not dropped.
pub type DropReply = Box<dyn FnOnce(Result<(PrefixUuid, Position), CatalogueError>) + Send>;

enum Job {
    /// `declared`: asked for on the admin port, which `prefixes.create: Declared` allows.
    Create {
        name: PrefixName,
        declared: bool,
        reply: CreateReply,
    },
    Drop {
        name: PrefixName,
        reply: DropReply,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Catalogue {
    store: Arc<Store>,
    engine: Arc<dyn Engine>,
    layout: Layout,
    loops: usize,
    jobs: SyncSender<Job>,
    fatal: FatalSwitch,
    /// Prefixes of this member that the catalogue it copied does not list: it is behind, and will.
    unlisted: Mutex<HashMap<PrefixUuid, PrefixName>>,
    detaching: Mutex<()>,
}

impl Catalogue {
    /// A catalogue whose thread is started; it ends when the catalogue is dropped.
    ///
    /// # Errors
    /// If the thread can't be started.
    pub fn start(
        store: Arc<Store>,
        engine: Arc<dyn Engine>,
        layout: Layout,
        loops: usize,
        fatal: FatalSwitch,
    ) -> std::io::Result<Arc<Self>> {
        let (jobs, queue) = sync_channel(QUEUE);
        let catalogue = Arc::new(Self {
            store,
            engine,
            layout,
            loops,
            jobs,
            fatal,
            unlisted: Mutex::default(),
            detaching: Mutex::default(),
        });
        let weak = Arc::downgrade(&catalogue);
        std::thread::Builder::new().name("catalogue".into()).spawn(move || {
            for job in JobQueue(queue) {
                match weak.upgrade() {
                    Some(catalogue) => catalogue.run(job),
                    None => break,
                }
            }
        })?;
        Ok(catalogue)
    }

    /// The catalogue's own identity.
    #[must_use]
    pub fn uuid(&self) -> PrefixUuid {
        catalogue_uuid(&self.store.store_uid)
    }

    /// Opens everything that is on the volume: the catalogue, then each prefix that it lists. A listed prefix without a
    /// database is added without a copy: it will be bootstrapped. Answers whether the volume has a catalogue.
    ///
    /// # Errors
    /// If the catalogue itself can't be opened. A prefix that can't be opened is stopped with its reason.
    pub fn open_all(&self) -> Result<bool, CatalogueError> {
        let (name, uuid) = (PrefixName::catalogue(), self.uuid());
        if self.layout.current(&name, uuid)?.is_none() {
            self.store.set_loading(true);
            return Ok(false);
        }
        let diverged = self.layout.has_marked_generation(&name, uuid)?;
        let catalogue = self.add(name.clone(), uuid);
        self.open_present(&catalogue)?;
        self.open_listed(&catalogue, diverged)?;
        // Last: its mark says what is still to be done.
        self.layout.remove_stale_generations(&name, uuid, clock::wall_ms())?;
        Ok(true)
    }

    /// Adds the catalogue without a copy, so that following bootstraps it; a present one stays.
    pub fn expect(&self) {
        self.add(PrefixName::catalogue(), self.uuid());
    }

    /// Makes an empty catalogue on a blank volume, for the first reign.
    ///
    /// # Errors
    /// See [`CatalogueError`].
    pub fn create_blank(&self) -> Result<Arc<Prefix>, CatalogueError> {
        let catalogue = self.add(PrefixName::catalogue(), self.uuid());
        if catalogue.copy().is_none() {
            self.create_copy(&catalogue)?;
        }
        self.store.set_loading(false);
        Ok(catalogue)
    }

    /// A batch was applied to the catalogue of this replica: makes and detaches what it says.
    ///
    /// # Errors
    /// See [`CatalogueError`].
    pub(crate) fn apply_records(&self, bytes: &[u8]) -> Result<(), CatalogueError> {
        let malformed = |e: &dyn std::fmt::Display| CatalogueError::Malformed(e.to_string());
        for record in batch::records(bytes).map_err(|e| malformed(&e))? {
            if let Record::Put { family: DATA_FAMILY, key, value } = record.map_err(|e| malformed(&e))? {
                match read_record(key, value)? {
                    Change::Created(name, uuid) => {
                        self.unlisted.lock().remove(&uuid);
                        self.create_listed(name, uuid)?;
                    }
                    Change::Dropped(name, uuid) => self.detach(&name, uuid)?,
                }
            }
        }
        Ok(())
    }

    /// Makes a prefix that was created elsewhere. It is shown with its copy: without one, readers would be told that it is
    /// being loaded, and who follows would copy what is empty.
    fn create_listed(&self, name: PrefixName, uuid: PrefixUuid) -> Result<(), CatalogueError> {
        if let Some(present) = self.store.prefix_by_uuid(uuid) {
            return if present.copy().is_none() { self.create_copy(&present) } else { Ok(()) };
        }
        let prefix = Arc::new(self.make(name, uuid));
        let created = self.create_copy(&prefix);
        self.store.add_prefix(prefix);
        created
    }

    /// Creates a prefix for the admin port.
    pub fn declare(&self, name: PrefixName, reply: CreateReply) {
        self.enqueue_create(name, true, reply);
    }

    /// Drops a prefix: only on the primary.
    pub fn drop_prefix(&self, name: PrefixName, reply: DropReply) {
        if let Err(TrySendError::Full(Job::Drop { reply, .. }) | TrySendError::Disconnected(Job::Drop { reply, .. })) =
            self.jobs.try_send(Job::Drop { name, reply })
        {
            reply(Err(CatalogueError::Busy));
        }
    }

    fn enqueue_create(&self, name: PrefixName, declared: bool, reply: CreateReply) {
        let refused = self.jobs.try_send(Job::Create { name, declared, reply });
        if let Err(
            TrySendError::Full(Job::Create { name, reply, .. })
            | TrySendError::Disconnected(Job::Create { name, reply, .. }),
        ) = refused
        {
            reply(Err(CreateError::Busy(name)));
        }
    }

    fn run(&self, job: Job) {
        match job {
            Job::Create { name, declared, reply } => reply(self.create_now(&name, declared)),
            Job::Drop { name, reply } => {
                let result = self.drop_now(&name);
                if let Err(error) = &result
                    && error.is_fatal()
                {
                    self.fatal.end(&error.to_string());
                }
                reply(result);
            }
        }
    }

    fn create_now(&self, name: &PrefixName, declared: bool) -> Result<Arc<Prefix>, CreateError> {
        if let Some(present) = self.store.prefix(name.as_str().as_bytes()) {
            return Ok(present);
        }
        let settings = self.store.settings.load();
        if !self.store.role().is_primary || !self.store.gate.may_acknowledge(clock::boot_ms()) {
            return Err(CreateError::NotPrimary);
        }
        if settings.prefix_create == PrefixCreate::Declared && !declared {
            return Err(CreateError::NotOnWrite(name.clone()));
        }
        if self.store.prefixes().by_name.len() >= settings.max_prefixes {
            return Err(CreateError::TooMany { name: name.clone(), limit: settings.max_prefixes });
        }
        self.create_as_primary(name, settings.durability == Durability::Sync).map_err(|error| {
            if error.is_fatal() {
                self.fatal.end(&error.to_string());
            }
            CreateError::Failed { name: name.clone(), cause: error.to_string() }
        })
    }

    /// The database comes first and the record second: a listed prefix always has one. It is added to the store last, so
    /// that nobody writes to a prefix that the catalogue does not have yet.
    fn create_as_primary(&self, name: &PrefixName, sync: bool) -> Result<Arc<Prefix>, CatalogueError> {
        let _reigning = self.store.reigning.lock();
        let reign = self.store.role().reign.as_ref().map(|r| r.to_ref()).ok_or(CommitError::NotPrimary)?;
        let catalogue = self.store.prefix_by_uuid(self.uuid()).ok_or(CommitError::Closed)?;
        let prefix = Arc::new(self.make(name.clone(), PrefixUuid(Uuid::new_v4())));
        self.create_copy(&prefix)?;
        prefix.begin_epoch(reign, sync)?;
        let mut builder = BatchBuilder::new();
        let entry = serde_json::to_vec(&Entry { prefix_uuid: prefix.uuid });
        builder.put_value(
            format!("p/{name}").as_bytes(),
            &entry.map_err(|e| CatalogueError::Malformed(e.to_string()))?,
            None,
        );
        self.commit(&catalogue, builder, sync)?;
        prefix.set_phase(PrefixPhase::Serving);
        tracing::info!(prefix = %name, uuid = %prefix.uuid, "prefix created");
        Ok(self.store.add_prefix(prefix))
    }

    fn commit(&self, catalogue: &Prefix, mut builder: BatchBuilder, sync: bool) -> Result<Position, CatalogueError> {
        let count = builder.count();
        let position = catalogue.commit(builder.finish(), count, sync)?;
        if self.store.role().required_acks() == 0 {
            catalogue.release(position.sequence);
        }
        Ok(position)
    }

    fn drop_now(&self, name: &PrefixName) -> Result<(PrefixUuid, Position), CatalogueError> {
        let missing = || CatalogueError::NoPrefix(name.clone());
        let prefix = self.store.prefix(name.as_str().as_bytes()).ok_or_else(missing)?;
        let catalogue = self.store.prefix_by_uuid(self.uuid()).ok_or(CommitError::Closed)?;
        let mut builder = BatchBuilder::new();
        builder.delete(format!("p/{name}").as_bytes());
        let entry = serde_json::to_vec(&DropEntry { name: name.clone() });
        builder.put_value(
            format!("d/{}", prefix.uuid).as_bytes(),
            &entry.map_err(|e| CatalogueError::Malformed(e.to_string()))?,
            None,
        );
        let sync = self.store.settings.load().durability == Durability::Sync;
        let position = self.commit(&catalogue, builder, sync)?;
        self.detach(name, prefix.uuid)?;
        Ok((prefix.uuid, position))
    }

    /// Takes a prefix out and keeps its data; one that is gone is so already.
    pub(crate) fn detach(&self, name: &PrefixName, uuid: PrefixUuid) -> Result<(), CatalogueError> {
        // Its record and a copy that comes too late may both ask for it.
        let _detaching = self.detaching.lock();
        self.unlisted.lock().remove(&uuid);
        if let Some(gone) = self.store.remove_prefix(uuid) {
            gone.set_writer(None);
            gone.close();
        }
        if self.layout.prefix_dir(name, uuid).exists() {
            let kept = self.layout.detach_prefix(name, uuid, clock::wall_ms())?;
            tracing::info!(prefix = %name, %uuid, kept = %kept.display(), "prefix dropped, its data is kept");
        }
        Ok(())
    }

    fn make(&self, name: PrefixName, uuid: PrefixUuid) -> Prefix {
        let shard = usize::try_from(uuid.0.as_u128() % self.loops as u128).unwrap_or(0);
        Prefix::new(name, uuid, shard, self.store.ring_budget.clone())
    }

    fn add(&self, name: PrefixName, uuid: PrefixUuid) -> Arc<Prefix> {
        match self.store.prefix_by_uuid(uuid) {
            Some(present) => present,
            None => self.store.add_prefix(Arc::new(self.make(name, uuid))),
        }
    }

    /// Makes an empty database as the first generation of a prefix.
    fn create_copy(&self, prefix: &Prefix) -> Result<(), CatalogueError> {
        if self.layout.current(&prefix.name, prefix.uuid)?.is_some() {
            return self.open_copy(prefix);
        }
        let generation = self.layout.next_generation(&prefix.name, prefix.uuid, 0, "created")?;
        let spec = OpenSpec { sequence_offset: 0, create: true };
        let db = self.open_database(&generation, &spec).map_err(|cause| engine_error(prefix, cause))?;
        self.layout.switch(&prefix.name, prefix.uuid, &generation)?;
        prefix.install(
            Copy { generation: generation.number, dir: generation.dir, sequence_offset: 0, db },
            EpochHistory::default(),
        );
        Ok(())
    }

    /// Opening writes too: on a full disk the reserve is given for it.
    fn open_database(&self, generation: &Generation, spec: &OpenSpec) -> Result<Arc<dyn Database>, EngineError> {
        match self.engine.open(&generation.db_dir(), spec) {
            Err(EngineError::NoSpace { .. }) if self.layout.release_reserve() => {
                self.engine.open(&generation.db_dir(), spec)
            }
            opened => opened,
        }
    }

    /// Opens the present generation of a prefix.
    fn open_copy(&self, prefix: &Prefix) -> Result<(), CatalogueError> {
        self.layout.remove_stale_generations(&prefix.name, prefix.uuid, clock::wall_ms())?;
        self.open_present(prefix)
    }

    fn open_present(&self, prefix: &Prefix) -> Result<(), CatalogueError> {
        let Some(generation) = self.layout.current(&prefix.name, prefix.uuid)? else { return Ok(()) };
        let sequence_offset = generation.origin.sequence_offset;
        let spec = OpenSpec { sequence_offset, create: false };
        let db = self.open_database(&generation, &spec).map_err(|cause| engine_error(prefix, cause))?;
        let history = read_history(&*db).map_err(|cause| engine_error(prefix, cause))?;
        prefix.install(Copy { generation: generation.number, dir: generation.dir, sequence_offset, db }, history);
        Ok(())
    }

    /// Adds and opens what the catalogue lists and detaches what it says was dropped; if it replaced one that had `diverged`,
    /// everything else too.
    pub(crate) fn open_listed(&self, catalogue: &Prefix, diverged: bool) -> Result<(), CatalogueError> {
        let Some(copy) = catalogue.copy() else { return Ok(()) };
        let mut listed = Vec::new();
        for change in list(&*copy.db).map_err(|cause| engine_error(catalogue, cause))? {
            match change? {
                Change::Created(name, uuid) => listed.push(Arc::new(self.make(name, uuid))),
                Change::Dropped(name, uuid) => self.detach(&name, uuid)?,
            }
        }
        // First, so that a name is free for who has it now.
        self.settle_unlisted(&listed.iter().map(|prefix| prefix.uuid).collect(), diverged)?;
        let known = listed.into_iter().map(|new| self.store.prefix_by_uuid(new.uuid).unwrap_or(new));
        let known: Vec<_> = known.collect();
        self.open_copies(&known.iter().filter(|prefix| prefix.copy().is_none()).cloned().collect::<Vec<_>>());
        // Last: who follows would copy what is shown without a copy.
        self.store.add_prefixes(known);
        self.store.set_loading(false);
        Ok(())
    }

    /// Opens copies that could not be opened for lack of room, if there is some now. Called now and then.
    pub fn open_waiting(&self) {
        let prefixes = self.store.prefixes();
        // While it is copied anew, nothing else may touch it.
        let waits = |prefix: &Prefix| {
            prefix.lacks_room() && prefix.copy().is_none() && prefix.phase() != PrefixPhase::Bootstrapping
        };
        let waiting: Vec<_> = prefixes.by_uuid.values().filter(|prefix| waits(prefix)).cloned().collect();
        // The reserve is whole only where there was room for more.
        if waiting.is_empty() || self.layout.storage_trouble().is_some() {
            return;
        }
        self.open_copies(&waiting);
        for prefix in waiting.iter().filter(|prefix| prefix.copy().is_some()) {
            tracing::info!(prefix = %prefix.name, "there is room again: prefix opened");
            if matches!(prefix.phase(), PrefixPhase::Stopped { .. }) {
                prefix.set_phase(PrefixPhase::Open);
            }
        }
        // Whoever follows looks at them again.
        self.store.bump();
    }

    /// Opens the copies of these prefixes, several at a time: an open mostly waits for the disk to sync. One that can't be
    /// opened is stopped with its reason.
    fn open_copies(&self, prefixes: &[Arc<Prefix>]) {
        let next = AtomicUsize::new(0);
        let open = || {
            while let Some(prefix) = prefixes.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.open_copy(prefix) {
                    tracing::error!(prefix = %prefix.name, %error, "prefix can't be opened");
                    prefix.set_lacks_room(error.is_full());
                    prefix.set_phase(PrefixPhase::Stopped { reason: error.to_string() });
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..OPENERS.min(prefixes.len()) {
                // Without help this thread opens all: slower, and no error.
                if let Err(error) = std::thread::Builder::new().name("open".into()).spawn_scoped(scope, open) {
                    tracing::warn!(%error, "open prefixes with fewer threads");
                    break;
                }
            }
            open();
        });
    }
}

impl Creator for Catalogue {
    fn create(&self, name: PrefixName, reply: CreateReply) {
        self.enqueue_create(name, false, reply);
    }
}

/// A receiver as an iterator that ends when all senders are gone.
struct JobQueue(Receiver<Job>);

impl Iterator for JobQueue {
    type Item = Job;
    fn next(&mut self) -> Option<Job> {
        self.0.recv().ok()
    }
}

fn engine_error(prefix: &Prefix, cause: EngineError) -> CatalogueError {
    CatalogueError::Engine { name: prefix.name.clone(), cause }
}

enum Change {
    Created(PrefixName, PrefixUuid),
    Dropped(PrefixName, PrefixUuid),
}

fn read_record(key: &[u8], stored: &[u8]) -> Result<Change, CatalogueError> {
    let malformed = |why: String| CatalogueError::Malformed(format!("{:?}: {why}", String::from_utf8_lossy(key)));
    let text = std::str::from_utf8(key).map_err(|e| malformed(e.to_string()))?;
    let value = value::decode(stored).map_err(|e| malformed(e.to_string()))?.value;
    if let Some(name) = text.strip_prefix("p/") {
        let name = PrefixName::new(name).map_err(|e| malformed(e.to_string()))?;
        let entry: Entry = serde_json::from_slice(value).map_err(|e| malformed(e.to_string()))?;
        return Ok(Change::Created(name, entry.prefix_uuid));
    }
    if let Some(uuid) = text.strip_prefix("d/") {
        let uuid = uuid.parse().map_err(|e| malformed(format!("{e}")))?;
        let entry: DropEntry = serde_json::from_slice(value).map_err(|e| malformed(e.to_string()))?;
        return Ok(Change::Dropped(entry.name, uuid));
    }
    Err(malformed("unknown kind of record".into()))
}

fn list(db: &dyn Database) -> Result<Vec<Result<Change, CatalogueError>>, EngineError> {
    let mut found = Vec::new();
    db.snapshot().scan(Family::Data, b"", b"", Direction::Forward, &mut |key, stored| {
        found.push(read_record(key, stored));
        true
    })?;
    Ok(found)
}

/// Reads a database's epoch records.
///
/// # Errors
/// If the database can't be read or the records don't fit together.
pub fn read_history(db: &dyn Database) -> Result<EpochHistory, EngineError> {
    let corrupt = |cause: String| EngineError::Corruption { action: "read epoch records".into(), cause };
    let (from, to) = EpochRecord::KEY_RANGE;
    let mut records = Vec::new();
    db.snapshot().scan(Family::Meta, from, to, Direction::Forward, &mut |key, value| {
        records.push(EpochRecord::decode(key, value));
        true
    })?;
    let records = records.into_iter().collect::<Result<Vec<_>, _>>().map_err(|e| corrupt(e.to_string()))?;
    let history = EpochHistory::new(records).map_err(|e| corrupt(e.to_string()))?;
    match history.newest() {
        Some(newest) if newest.start > db.latest() => Err(corrupt(format!(
            "epoch {} starts at {} but the last record is {}",
            newest.epoch,
            newest.start,
            db.latest()
        ))),
        None if db.latest() > Sequence(0) => Err(corrupt("there are records but no epoch".into())),
        _ => Ok(history),
    }
}
