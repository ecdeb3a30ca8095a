//! Where replication puts files: the part of the disk layout that it needs, as a trait.

use std::io;
use std::path::{Path, PathBuf};

use parovoz_dataplane_core::types::{PrefixName, PrefixUuid};

use crate::disk::detached::ExportedTail;

/// Folders of prefixes, stagings and checkpoints. All calls block and are made from blocking threads.
pub trait PrefixDirs: Send + Sync + std::fmt::Debug {
    /// Folder of a bootstrap of one prefix; made if missing, kept across restarts, so that a copy cut in the middle goes on.
    ///
    /// Replication lays it out: `manifest.json` (what is being copied and what is done) and `db/` (the files of the database).
    ///
    /// # Errors
    /// What the disk says.
    fn staging_dir(&self, name: &PrefixName, uuid: PrefixUuid) -> io::Result<PathBuf>;

    /// Removes that folder, if there is one: the prefix was dropped.
    ///
    /// # Errors
    /// What the disk says; the next start removes it.
    fn forget_staging(&self, uuid: PrefixUuid) -> io::Result<()>;

    /// Makes the verified, closed and synced database in `staging/db` the present generation: writes `origin.json` with `offset`
    /// and `provenance`, moves `staging/db` to `gen-N/db`, syncs, switches `current` by one synced rename, removes what is
    /// left of `staging`. Answers N and the folder `gen-N`. The generation before stays on disk.
    ///
    /// # Errors
    /// What the disk says; the generation before is still the present one then.
    fn adopt(
        &self,
        name: &PrefixName,
        uuid: PrefixUuid,
        staging: &Path,
        offset: u64,
        provenance: &str,
    ) -> io::Result<(u64, PathBuf)>;

    /// Removes an old, closed generation that a verified one replaced.
    ///
    /// # Errors
    /// What the disk says.
    fn retire(&self, name: &PrefixName, uuid: PrefixUuid, generation: u64) -> io::Result<()>;

    /// Notes durably that a generation with records that exist nowhere else is to be set aside, and `why`: called before
    /// [`PrefixDirs::adopt`], so that no later start removes it.
    ///
    /// # Errors
    /// What the disk says.
    fn mark(&self, name: &PrefixName, uuid: PrefixUuid, generation: u64, why: &str) -> io::Result<()>;

    /// Moves an old generation that is marked to `detached/`; answers where it is.
    ///
    /// # Errors
    /// What the disk says.
    fn detach(&self, name: &PrefixName, uuid: PrefixUuid, generation: u64) -> io::Result<PathBuf>;

    /// Exports records that exist nowhere else to `detached/`, unless that is done already: `write` writes them, one a line, and
    /// answers how many they are.
    ///
    /// # Errors
    /// What the disk or `write` says; nothing is exported then.
    fn export_tail(
        &self,
        tail: &ExportedTail,
        write: &mut dyn FnMut(&mut dyn io::Write) -> io::Result<u64>,
    ) -> io::Result<()>;

    /// A folder name for a checkpoint that others copy from: it does not exist yet, its parent does, on the prefixes' file
    /// system (checkpoints are hard links).
    ///
    /// # Errors
    /// What the disk says.
    fn checkpoint_dir(&self, snapshot_id: &str) -> io::Result<PathBuf>;

    /// Removes all checkpoints: those of a process that ended.
    ///
    /// # Errors
    /// What the disk says.
    fn clear_checkpoints(&self) -> io::Result<()>;

    /// Free bytes of the volume.
    ///
    /// # Errors
    /// What the disk says.
    fn free_bytes(&self) -> io::Result<u64>;
}
