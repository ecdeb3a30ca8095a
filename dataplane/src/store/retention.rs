//! The WAL pruner: reads what there is, asks the core what may go, removes it, and reports who is cut off.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use parovoz_dataplane_core::retention::{ArchivedWal, Policy, plan};
use parovoz_dataplane_core::types::{PrefixUuid, Sequence};
use parovoz_engine::{EngineError, WalFile};

use super::Store;
use super::prefix::{Copy, Prefix};

/// Who needs which WAL.
pub trait Needs {
    /// What follows this of a prefix is needed; `None` = nothing is.
    fn needed_after(&self, prefix: PrefixUuid) -> Option<Sequence>;

    /// Calls `remove` if nobody needs what is before `end` of a prefix, or `anyway`; nobody can begin to meanwhile. Answers
    /// whether it did.
    ///
    /// # Errors
    /// What `remove` says.
    fn remove_unneeded(
        &self,
        prefix: PrefixUuid,
        end: Sequence,
        anyway: bool,
        remove: &mut dyn FnMut() -> Result<(), EngineError>,
    ) -> Result<bool, EngineError>;
}

/// What one pass did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Pruned {
    /// Files removed.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files removed by the size limit though a follower or a bootstrap needed them.
    pub cut_off: u64,
}

/// A prefix without writes is looked at again only so often: listing its files costs opening each of them, and a thousand idle
/// prefixes would keep a core busy for nothing.
const IDLE_LOOK: Duration = Duration::from_secs(30);

/// What a look at one prefix found.
#[derive(Debug)]
struct Look {
    copy: Weak<Copy>,
    bytes_total: u64,
    at: Instant,
    files: Vec<WalFile>,
}

/// Looks after the WAL of all prefixes, pass after pass.
#[derive(Debug, Default)]
pub struct Pruner {
    looks: HashMap<PrefixUuid, Look>,
}

impl Pruner {
    /// Removes WAL files that may go. `volume_bytes` is the volume's size.
    ///
    /// # Errors
    /// If a database can't list or remove its files; what was removed before stays removed, which is harmless.
    pub fn pass(&mut self, store: &Store, volume_bytes: u64, needs: &dyn Needs) -> Result<Pruned, EngineError> {
        let settings = store.settings.load();
        let policy = Policy {
            min_age_ms: settings.wal_retention_seconds * 1000,
            max_bytes: settings.wal_retention_max_bytes.unwrap_or(volume_bytes / 4),
        };
        let prefixes = store.prefixes();
        self.looks.retain(|uuid, _| prefixes.by_uuid.contains_key(uuid));
        let mut live_bytes = 0;
        let mut archived = Vec::new();
        let mut owners: Vec<(Arc<Prefix>, Arc<Copy>, WalFile)> = Vec::new();
        for (number, prefix) in prefixes.by_uuid.values().enumerate() {
            let Some(copy) = prefix.copy() else { continue };
            let files = self.files(prefix, &copy)?;
            let ends = files.iter().skip(1).map(|f| f.first).chain([copy.db.latest().next()]);
            for (file, end) in files.iter().zip(ends) {
                if !file.archived {
                    live_bytes += file.bytes;
                    continue;
                }
                let age = SystemTime::now().duration_since(file.modified).unwrap_or_default();
                archived.push(ArchivedWal {
                    prefix: number,
                    end,
                    bytes: file.bytes,
                    age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
                    needed_after: needs.needed_after(prefix.uuid),
                });
                owners.push((prefix.clone(), copy.clone(), file.clone()));
            }
        }
        let mut pruned = Pruned::default();
        let mut held: HashSet<PrefixUuid> = HashSet::new();
        for removal in plan(&archived, live_bytes, policy) {
            let (prefix, copy, file) = &owners[removal.index];
            let end = archived[removal.index].end;
            // Who began to need it since the plan was made finds it, and what follows it.
            let mut remove = || copy.db.remove_archived(file);
            if held.contains(&prefix.uuid) || !needs.remove_unneeded(prefix.uuid, end, removal.cuts_off, &mut remove)? {
                held.insert(prefix.uuid);
                continue;
            }
            // The oldest goes first, so what follows this file is the oldest now.
            prefix.note_oldest_in_wal(end);
            self.looks.remove(&prefix.uuid);
            pruned.files += 1;
            pruned.bytes += file.bytes;
            if removal.cuts_off {
                pruned.cut_off += 1;
                tracing::warn!(prefix = %prefix.name, file = %file.path.display(),
                    "WAL removed by walRetention.maxSize though a follower needs it: it will be bootstrapped");
            }
        }
        Ok(pruned)
    }

    /// The WAL files of a prefix, as they are, or as they were a short while ago if nothing was written since.
    fn files(&mut self, prefix: &Prefix, copy: &Arc<Copy>) -> Result<&[WalFile], EngineError> {
        // Taken first: what is written while the files are listed makes the next pass look again.
        let bytes_total = prefix.bytes_total();
        let stands = self.looks.get(&prefix.uuid).is_some_and(|look| {
            look.bytes_total == bytes_total
                && look.at.elapsed() < IDLE_LOOK
                && std::ptr::eq(look.copy.as_ptr(), Arc::as_ptr(copy))
        });
        if !stands {
            let files = copy.db.wal_files()?;
            prefix.note_oldest_in_wal(files.first().map_or_else(|| copy.db.latest().next(), |f| f.first));
            let look = Look { copy: Arc::downgrade(copy), bytes_total, at: Instant::now(), files };
            self.looks.insert(prefix.uuid, look);
        }
        Ok(self.looks.get(&prefix.uuid).map_or(&[], |look| look.files.as_slice()))
    }
}
