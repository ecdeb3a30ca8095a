//! Folders of the volume: generations of prefixes, staging, detached data and the reserve.
//!
//! ```text
//! prefixes/NAME-UUID/gen-N/db, origin.json     prefixes/NAME-UUID/current -> "gen-N"
//! staging/NAME-UUID/        a bootstrap under way        staging/checkpoints/    sources of others' bootstraps
//! detached/NAME-UUID-...    what was dropped or replaced and is kept for a while
//! reserve                   given back when the disk is full
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use parovoz_dataplane_core::types::{PrefixName, PrefixUuid};
use serde::{Deserialize, Serialize};

/// Size of the file that is given back when the disk is full.
const RESERVE_BYTES: u64 = 8 << 20;

/// Why the volume's folders can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The disk refused.
    #[error("{action} {path}: {cause}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// A file that a program wrote does not hold what it should.
    #[error("read {path}: {cause}; the prefix's data is kept untouched")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
}

/// `origin.json`: where a generation comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// Version of this file's format.
    pub format: u32,
    /// Logical sequence = the database's own + this.
    pub sequence_offset: u64,
    /// `created`, or what it was copied from.
    pub provenance: String,
}

/// Format of `origin.json` that this program writes.
const ORIGIN_FORMAT: u32 = 1;

/// The present generation of a prefix on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// N.
    pub number: u64,
    /// `gen-N`.
    pub dir: PathBuf,
    /// From its `origin.json`.
    pub origin: Origin,
}

impl Generation {
    /// Folder of the database itself.
    #[must_use]
    pub fn db_dir(&self) -> PathBuf {
        self.dir.join("db")
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> LayoutError {
    let path = path.to_owned();
    move |cause| LayoutError::Io { action, path, cause }
}

/// Syncs a folder, so that names in it are durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), LayoutError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(io("sync", dir))
}

fn make_dir(dir: &Path) -> Result<(), LayoutError> {
    fs::create_dir_all(dir).map_err(io("create", dir))
}

/// Writes a small file so that it appears whole and durable, or not at all.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), LayoutError> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh).map_err(io("create", &fresh))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io("write", &fresh))?;
    fs::rename(&fresh, path).map_err(io("rename", path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

impl Layout {
    /// Makes the folders that are missing and removes what other members were copying from here.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn open(root: &Path) -> Result<Self, LayoutError> {
        let layout = Self { root: root.to_owned() };
        for dir in ["prefixes", "staging", "detached"] {
            make_dir(&root.join(dir))?;
        }
        let checkpoints = layout.checkpoints();
        if checkpoints.exists() {
            fs::remove_dir_all(&checkpoints).map_err(io("remove", &checkpoints))?;
        }
        make_dir(&checkpoints)?;
        layout.fill_reserve();
        Ok(layout)
    }

    /// The folders of a volume as they are, without making or removing any.
    #[must_use]
    pub fn untouched(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Folder for checkpoints that others copy from; emptied at each start.
    #[must_use]
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("staging/checkpoints")
    }

    /// Folder of one prefix.
    #[must_use]
    pub fn prefix_dir(&self, name: &PrefixName, uuid: PrefixUuid) -> PathBuf {
        self.root.join("prefixes").join(format!("{name}-{uuid}"))
    }

    /// Folder of a bootstrap of one prefix; made if missing, kept across restarts.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn staging(&self, name: &PrefixName, uuid: PrefixUuid) -> Result<PathBuf, LayoutError> {
        let dir = self.root.join("staging").join(format!("{name}-{uuid}"));
        make_dir(&dir)?;
        Ok(dir)
    }

    /// The present generation of a prefix; `None` if it has none.
    ///
    /// # Errors
    /// [`LayoutError::Malformed`] if `current` or `origin.json` is damaged.
    pub fn current(&self, name: &PrefixName, uuid: PrefixUuid) -> Result<Option<Generation>, LayoutError> {
        let pointer = self.prefix_dir(name, uuid).join("current");
        let text = match fs::read_to_string(&pointer) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(LayoutError::Io { action: "read", path: pointer, cause }),
        };
        let number = text.trim().strip_prefix("gen-").and_then(|n| n.parse().ok());
        let number = number.ok_or_else(|| LayoutError::Malformed {
            path: pointer,
            cause: format!("{:?} names no generation", text.trim()),
        })?;
        let dir = self.generation_dir(name, uuid, number);
        let origin_path = dir.join("origin.json");
        let text = fs::read(&origin_path).map_err(io("read", &origin_path))?;
        let malformed = |cause: String| LayoutError::Malformed { path: origin_path.clone(), cause };
        let origin: Origin = serde_json::from_slice(&text).map_err(|e| malformed(e.to_string()))?;
        if origin.format > ORIGIN_FORMAT {
            return Err(malformed(format!(
                "format {} is newer than {ORIGIN_FORMAT}; run the newer version",
                origin.format
            )));
        }
        Ok(Some(Generation { number, dir, origin }))
    }

    fn generation_dir(&self, name: &PrefixName, uuid: PrefixUuid, number: u64) -> PathBuf {
        self.prefix_dir(name, uuid).join(format!("gen-{number}"))
    }

    /// Prepares the next generation: its folder (for a database made in place, with `db` missing) and `origin.json`. It
    /// is nothing until [`Layout::switch`].
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn next_generation(
        &self,
        name: &PrefixName,
        uuid: PrefixUuid,
        sequence_offset: u64,
        provenance: &str,
    ) -> Result<Generation, LayoutError> {
        let number = self.highest_generation(name, uuid)? + 1;
        let dir = self.generation_dir(name, uuid, number);
        make_dir(&dir)?;
        let origin = Origin { format: ORIGIN_FORMAT, sequence_offset, provenance: provenance.to_owned() };
        let json = serde_json::to_vec_pretty(&origin)
            .map_err(|e| LayoutError::Malformed { path: dir.join("origin.json"), cause: e.to_string() })?;
        write_file(&dir.join("origin.json"), &json)?;
        Ok(Generation { number, dir, origin })
    }

    /// Makes `generation` the present one by one synced rename.
    ///
    /// # Errors
    /// See [`LayoutError`]; the old one is still present then.
    pub fn switch(&self, name: &PrefixName, uuid: PrefixUuid, generation: &Generation) -> Result<(), LayoutError> {
        let dir = self.prefix_dir(name, uuid);
        sync_dir(&generation.dir)?;
        sync_dir(&dir)?;
        write_file(&dir.join("current"), format!("gen-{}\n", generation.number).as_bytes())?;
        sync_dir(&self.root.join("prefixes"))
    }

    fn highest_generation(&self, name: &PrefixName, uuid: PrefixUuid) -> Result<u64, LayoutError> {
        let dir = self.prefix_dir(name, uuid);
        if !dir.exists() {
            return Ok(0);
        }
        let mut highest = 0;
        for entry in fs::read_dir(&dir).map_err(io("list", &dir))? {
            let entry = entry.map_err(io("list", &dir))?;
            let number = entry.file_name().to_str().and_then(|n| n.strip_prefix("gen-")).and_then(|n| n.parse().ok());
            highest = highest.max(number.unwrap_or(0));
        }
        Ok(highest)
    }

    /// Removes generations that are not the present one: left over from a crash between two steps.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn remove_stale_generations(&self, name: &PrefixName, uuid: PrefixUuid) -> Result<(), LayoutError> {
        let Some(current) = self.current(name, uuid)? else { return Ok(()) };
        for number in 1..=self.highest_generation(name, uuid)? {
            let dir = self.generation_dir(name, uuid, number);
            if number != current.number && dir.exists() {
                fs::remove_dir_all(&dir).map_err(io("remove", &dir))?;
            }
        }
        Ok(())
    }

    /// Moves one generation of a prefix to `detached/`, where it stays readable, and answers where it is.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn detach_generation(
        &self,
        name: &PrefixName,
        uuid: PrefixUuid,
        number: u64,
        now_ms: u64,
    ) -> Result<PathBuf, LayoutError> {
        let from = self.generation_dir(name, uuid, number);
        let to = self.root.join("detached").join(format!("{name}-{uuid}-gen-{number}-{now_ms}"));
        fs::rename(&from, &to).map_err(io("detach", &from))?;
        sync_dir(&self.root.join("detached"))?;
        Ok(to)
    }

    /// Moves a whole prefix to `detached/`.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn detach_prefix(&self, name: &PrefixName, uuid: PrefixUuid, now_ms: u64) -> Result<PathBuf, LayoutError> {
        let from = self.prefix_dir(name, uuid);
        let to = self.root.join("detached").join(format!("{name}-{uuid}-{now_ms}"));
        fs::rename(&from, &to).map_err(io("detach", &from))?;
        sync_dir(&self.root.join("prefixes"))?;
        sync_dir(&self.root.join("detached"))?;
        Ok(to)
    }

    /// Folders under `prefixes/`, as (name, identity, folder); others are ignored.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn prefixes(&self) -> Result<Vec<(PrefixName, PrefixUuid)>, LayoutError> {
        let dir = self.root.join("prefixes");
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(io("list", &dir))? {
            let name = entry.map_err(io("list", &dir))?.file_name();
            // NAME-UUID: the UUID has 36 characters.
            let Some((name, uuid)) = name.to_str().and_then(|n| n.split_at_checked(n.len().checked_sub(36)?)) else {
                continue;
            };
            let name = name.strip_suffix('-').and_then(|n| PrefixName::try_from(n.to_owned()).ok());
            if let (Some(name), Ok(uuid)) = (name, uuid.parse()) {
                found.push((name, uuid));
            }
        }
        Ok(found)
    }

    /// (free, total) bytes of the volume.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn space(&self) -> Result<(u64, u64), LayoutError> {
        let stat = rustix::fs::statvfs(&self.root).map_err(|e| io("ask free space of", &self.root)(e.into()))?;
        Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
    }

    /// Preallocates the reserve; on a full disk it stays missing, which is not an error here.
    fn fill_reserve(&self) {
        let path = self.root.join("reserve");
        let filled = File::options().create(true).write(true).truncate(false).open(&path).and_then(|file| {
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES).map_err(Into::into)
        });
        if let Err(error) = filled {
            tracing::warn!(%error, "no reserve: the volume is full or can't preallocate");
        }
    }

    /// Gives the reserve back, so that state can still be written on a full disk.
    pub fn release_reserve(&self) {
        let _ = fs::remove_file(self.root.join("reserve"));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use uuid::Uuid;

    fn prefix() -> (PrefixName, PrefixUuid) {
        (PrefixName::new("a-b").unwrap(), PrefixUuid(Uuid::from_u128(5)))
    }

    #[test]
    fn a_generation_counts_only_once_switched_to() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        let (name, uuid) = prefix();
        assert_eq!(layout.current(&name, uuid).unwrap(), None);
        let first = layout.next_generation(&name, uuid, 0, "created").unwrap();
        assert_eq!(layout.current(&name, uuid).unwrap(), None);
        layout.switch(&name, uuid, &first).unwrap();
        let second = layout.next_generation(&name, uuid, 7, "scan").unwrap();
        assert_eq!(layout.current(&name, uuid).unwrap(), Some(first));
        layout.switch(&name, uuid, &second).unwrap();
        assert_eq!(layout.current(&name, uuid).unwrap().unwrap().origin.sequence_offset, 7);
        layout.remove_stale_generations(&name, uuid).unwrap();
        assert_eq!(layout.highest_generation(&name, uuid).unwrap(), 2);
        assert!(!layout.generation_dir(&name, uuid, 1).exists());
    }

    #[test]
    fn prefixes_are_found_by_their_folders() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        let (name, uuid) = prefix();
        layout.next_generation(&name, uuid, 0, "created").unwrap();
        fs::create_dir(dir.path().join("prefixes/lost+found")).unwrap();
        assert_eq!(layout.prefixes().unwrap(), [(name.clone(), uuid)]);
        let moved = layout.detach_prefix(&name, uuid, 9).unwrap();
        assert!(moved.join("gen-1/origin.json").exists());
        assert!(layout.prefixes().unwrap().is_empty());
    }

    #[test]
    fn a_damaged_pointer_is_an_error_and_not_an_empty_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        let (name, uuid) = prefix();
        let first = layout.next_generation(&name, uuid, 0, "created").unwrap();
        layout.switch(&name, uuid, &first).unwrap();
        fs::write(layout.prefix_dir(&name, uuid).join("current"), "nonsense").unwrap();
        assert!(matches!(layout.current(&name, uuid), Err(LayoutError::Malformed { .. })));
    }
}
