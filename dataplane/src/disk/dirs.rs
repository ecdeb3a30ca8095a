//! The layout as replication sees it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parovoz_dataplane_core::types::{PrefixName, PrefixUuid};

use super::detached::ExportedTail;
use super::layout::{Layout, LayoutError, sync_dir};
use crate::clock;
use crate::replication::dirs::PrefixDirs;

fn plain(error: LayoutError) -> io::Error {
    match error {
        LayoutError::Io { action, path, cause } => {
            io::Error::new(cause.kind(), format!("{action} {}: {cause}", path.display()))
        }
        LayoutError::Malformed { .. } => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
    }
}

impl PrefixDirs for Layout {
    fn staging_dir(&self, name: &PrefixName, uuid: PrefixUuid) -> io::Result<PathBuf> {
        self.staging(name, uuid).map_err(plain)
    }

    fn forget_staging(&self, uuid: PrefixUuid) -> io::Result<()> {
        // A writer may still be at its last file.
        let mut tries = 0..20;
        loop {
            match self.forget_stagings(|prefix| prefix != uuid) {
                Err(_) if tries.next().is_some() => std::thread::sleep(Duration::from_millis(50)),
                done => return done.map_err(plain),
            }
        }
    }

    fn adopt(
        &self,
        name: &PrefixName,
        uuid: PrefixUuid,
        staging: &Path,
        offset: u64,
        provenance: &str,
    ) -> io::Result<(u64, PathBuf)> {
        let generation = self.next_generation(name, uuid, offset, provenance).map_err(plain)?;
        fs::rename(staging.join("db"), generation.db_dir())?;
        self.switch(name, uuid, &generation).map_err(plain)?;
        // The copy is in place: what is left of the staging is of no use, and harmless if it can't be removed now.
        if let Err(error) = fs::remove_dir_all(staging) {
            tracing::warn!(staging = %staging.display(), %error, "staging not removed");
        }
        Ok((generation.number, generation.dir))
    }

    fn retire(&self, name: &PrefixName, uuid: PrefixUuid, generation: u64) -> io::Result<()> {
        fs::remove_dir_all(self.prefix_dir(name, uuid).join(format!("gen-{generation}")))
    }

    fn mark(&self, name: &PrefixName, uuid: PrefixUuid, generation: u64, why: &str) -> io::Result<()> {
        self.mark_generation(name, uuid, generation, why).map_err(plain)
    }

    fn detach(&self, name: &PrefixName, uuid: PrefixUuid, generation: u64) -> io::Result<PathBuf> {
        self.detach_generation(name, uuid, generation, clock::wall_ms()).map_err(plain)
    }

    fn export_tail(
        &self,
        tail: &ExportedTail,
        write: &mut dyn FnMut(&mut dyn io::Write) -> io::Result<u64>,
    ) -> io::Result<()> {
        Self::export_tail(self, tail, clock::wall_ms(), write)
    }

    fn checkpoint_dir(&self, snapshot_id: &str) -> io::Result<PathBuf> {
        Ok(self.checkpoints().join(snapshot_id))
    }

    fn clear_checkpoints(&self) -> io::Result<()> {
        let dir = self.checkpoints();
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => fs::create_dir_all(&dir)?,
        }
        sync_dir(&dir).map_err(plain)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.space().map(|(free, _)| free).map_err(plain)
    }
}
