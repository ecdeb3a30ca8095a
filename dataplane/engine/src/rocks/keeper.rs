//! Housekeeping on a thread of its own, so that the threads that write never wait for it.
//!
//! RocksDB's write-buffer manager looks only at memtables that are still written to. Ours wait in numbers to be merged, and
//! those of a thousand prefixes would wait in memory for ever: the keeper flushes the largest while all are over the budget.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex};
use rocksdb::WriteBufferManager;

use super::database::Core;
use crate::{EngineError, Result};

/// Chores that wait at most; a chore that finds no room is asked for again with a later write.
const QUEUE: usize = 256;
/// Databases flushed for one request at most.
const ROUNDS: usize = 64;
/// Memtables that are not worth a flush, in bytes.
const SMALL: u64 = 1 << 20;

/// Something to do for a database, or for all.
#[derive(Debug, Clone, Copy)]
pub(super) enum Chore {
    /// Flush the largest memtables while all are over the budget.
    Relieve,
    /// Flush `meta`, which holds back the WAL.
    FlushMeta(u64),
    /// Give the memtables a bloom filter.
    MarkBusy(u64),
}

#[derive(Default)]
struct Open {
    next_id: u64,
    databases: Vec<(u64, Weak<Core>)>,
    /// The database that the keeper works on.
    working: Option<u64>,
}

/// The databases that are open, and who works on them.
#[derive(Default)]
struct Registry {
    open: Mutex<Open>,
    idle: Condvar,
}

/// Hands chores to the thread, which ends when the last `Keeper` is dropped.
pub(super) struct Keeper {
    chores: SyncSender<Chore>,
    registry: Arc<Registry>,
}

impl Keeper {
    pub(super) fn start(memtables: WriteBufferManager, budget: usize) -> Result<Self> {
        let registry = Arc::new(Registry::default());
        let (chores, queue) = sync_channel(QUEUE);
        let keeper = Self { chores, registry: Arc::clone(&registry) };
        std::thread::Builder::new()
            .name("engine-keeper".to_owned())
            .spawn(move || run(&queue, &registry, &memtables, budget))
            .map_err(|error| EngineError::Io { action: "start keeper thread".to_owned(), cause: error.to_string() })?;
        Ok(keeper)
    }

    /// Whether there was room for the chore.
    pub(super) fn ask(&self, chore: Chore) -> bool {
        self.chores.try_send(chore).is_ok()
    }

    /// A number for a database to be.
    pub(super) fn next_id(&self) -> u64 {
        let mut open = self.registry.open.lock();
        open.next_id += 1;
        open.next_id
    }

    pub(super) fn enter(&self, id: u64, core: &Arc<Core>) {
        self.registry.open.lock().databases.push((id, Arc::downgrade(core)));
    }

    /// Takes a database out and waits until the keeper has let go of it, so that it closes with its last owner.
    pub(super) fn leave(&self, id: u64) {
        let mut open = self.registry.open.lock();
        open.databases.retain(|(other, _)| *other != id);
        while open.working == Some(id) {
            self.registry.idle.wait(&mut open);
        }
    }
}

impl Registry {
    /// Runs `work` on a database unless it is closed.
    fn with(&self, id: u64, work: impl FnOnce(&Core)) {
        let core = {
            let mut open = self.open.lock();
            let found = open.databases.iter().find(|(other, _)| *other == id).and_then(|(_, core)| core.upgrade());
            let Some(core) = found else { return };
            open.working = Some(id);
            core
        };
        work(&core);
        drop(core);
        self.open.lock().working = None;
        self.idle.notify_all();
    }

    /// The database with the largest memtables that does not flush already.
    fn largest(&self) -> Option<u64> {
        let open = self.open.lock();
        let sizes =
            open.databases.iter().filter_map(|(id, core)| core.upgrade().map(|core| (core.unflushed_bytes(), *id)));
        sizes.filter(|(bytes, _)| *bytes >= SMALL).max().map(|(_, id)| id)
    }
}

fn run(queue: &Receiver<Chore>, registry: &Registry, memtables: &WriteBufferManager, budget: usize) {
    while let Ok(chore) = queue.recv() {
        match chore {
            Chore::Relieve => {
                for _ in 0..ROUNDS {
                    if memtables.get_usage() <= budget {
                        break;
                    }
                    let Some(id) = registry.largest() else { break };
                    registry.with(id, |core| core.report("flush under memory pressure", core.flush_data()));
                }
            }
            Chore::FlushMeta(id) => registry.with(id, |core| core.report("flush meta", core.flush_meta())),
            Chore::MarkBusy(id) => registry.with(id, |core| core.report("set memtable bloom filter", core.mark_busy())),
        }
    }
}
