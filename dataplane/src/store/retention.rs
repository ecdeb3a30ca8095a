//! The WAL pruner: reads what there is, asks the core what may go, removes it, and reports who is cut off.

use std::sync::Arc;
use std::time::SystemTime;

use parovoz_dataplane_core::retention::{ArchivedWal, Policy, plan};
use parovoz_dataplane_core::types::{PrefixUuid, Sequence};
use parovoz_engine::{EngineError, WalFile};

use super::Store;
use super::prefix::{Copy, Prefix};

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

/// Removes WAL files that may go. `needed_after` says what is needed of a prefix; `volume_bytes` is the volume's size.
///
/// # Errors
/// If a database can't list or remove its files; what was removed before stays removed, which is harmless.
pub fn prune(
    store: &Store,
    volume_bytes: u64,
    needed_after: &dyn Fn(PrefixUuid) -> Option<Sequence>,
) -> Result<Pruned, EngineError> {
    let settings = store.settings.load();
    let policy = Policy {
        min_age_ms: settings.wal_retention_seconds * 1000,
        max_bytes: settings.wal_retention_max_bytes.unwrap_or(volume_bytes / 4),
    };
    let mut live_bytes = 0;
    let mut archived = Vec::new();
    let mut owners: Vec<(Arc<Prefix>, Arc<Copy>, WalFile)> = Vec::new();
    for (number, prefix) in store.prefixes().by_uuid.values().enumerate() {
        let Some(copy) = prefix.copy() else { continue };
        let files = copy.db.wal_files()?;
        prefix.note_oldest_in_wal(files.first().map_or_else(|| copy.db.latest().next(), |f| f.first));
        let ends = files.iter().skip(1).map(|f| f.first).chain([copy.db.latest().next()]).collect::<Vec<_>>();
        for (file, end) in files.into_iter().zip(ends) {
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
                needed_after: needed_after(prefix.uuid),
            });
            owners.push((prefix.clone(), copy.clone(), file));
        }
    }
    let mut pruned = Pruned::default();
    for removal in plan(&archived, live_bytes, policy) {
        let (prefix, copy, file) = &owners[removal.index];
        copy.db.remove_archived(file)?;
        // The oldest goes first, so what follows this file is the oldest now.
        prefix.note_oldest_in_wal(archived[removal.index].end);
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
