//! Folders of the volume: generations of prefixes, staging, detached data and the reserve.
//!
//! ```text
//! prefixes/NAME-UUID/gen-N/db, origin.json     prefixes/NAME-UUID/current -> "gen-N"
//! staging/NAME-UUID/        a bootstrap under way        staging/checkpoints/    sources of others' bootstraps
//! detached/NAME-UUID-...    what was dropped, replaced or exported and is kept for a while, see `detached`
//! reserve                   given back when the disk is full, see `reserve`
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parovoz_dataplane_core::types::{PrefixName, PrefixUuid};
use serde::{Deserialize, Serialize};

use super::detached::{self, ExportedTail, Removed, remove_any};
use super::reserve::{self, Reserve};

/// Age from which a bootstrap that was left is not gone on with: its source has forgotten it long ago.
const STALE_STAGING: Duration = Duration::from_secs(24 * 3600);

/// In the folder of a generation: it is to be set aside and not removed, and why. Written before another takes its place.
const WHY: &str = "why.txt";

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

impl LayoutError {
    /// Whether the disk had no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { cause, .. } if reserve::is_full(cause))
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
    reserve: Reserve,
    /// What is exported in `detached/`, as of the last change of ours.
    tails: Arc<ArcSwap<Vec<ExportedTail>>>,
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

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), LayoutError> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh).map_err(io("create", &fresh))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io("write", &fresh))?;
    fs::rename(&fresh, path).map_err(io("rename", path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// NAME-UUID, taken apart: the UUID has 36 characters.
fn named(entry: &std::ffi::OsStr) -> Option<(PrefixName, PrefixUuid)> {
    let text = entry.to_str()?;
    let (name, uuid) = text.split_at_checked(text.len().checked_sub(36)?)?;
    Some((PrefixName::try_from(name.strip_suffix('-')?.to_owned()).ok()?, uuid.parse().ok()?))
}

impl Layout {
    /// Makes the folders that are missing and removes what a process left half done: what other members were copying from
    /// here, strays in `staging/`, exports that were cut off.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn open(root: &Path) -> Result<Self, LayoutError> {
        let layout = Self { root: root.to_owned(), reserve: Reserve::of(root), tails: Arc::default() };
        layout.reserve.with_room(LayoutError::is_full, || {
            ["prefixes", "staging", "detached"].iter().try_for_each(|dir| make_dir(&root.join(dir)))
        })?;
        layout.remove_stray_staging()?;
        let checkpoints = layout.checkpoints();
        layout.reserve.with_room(LayoutError::is_full, || make_dir(&checkpoints))?;
        let detached = root.join("detached");
        detached::remove_unfinished(&detached).map_err(io("clean", &detached))?;
        layout.read_tails();
        layout.reserve.fill();
        Ok(layout)
    }

    /// The folders of a volume as they are, without making or removing any.
    #[must_use]
    pub fn untouched(root: &Path) -> Self {
        Self { root: root.to_owned(), reserve: Reserve::of(root), tails: Arc::default() }
    }

    /// Everything in `staging/` that is no bootstrap's folder goes, the checkpoints for others included.
    fn remove_stray_staging(&self) -> Result<(), LayoutError> {
        let staging = self.root.join("staging");
        for entry in fs::read_dir(&staging).map_err(io("list", &staging))? {
            let entry = entry.map_err(io("list", &staging))?;
            let path = entry.path();
            if named(&entry.file_name()).is_some() && entry.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            if entry.file_name() != "checkpoints" {
                tracing::warn!(path = %path.display(), "remove a stray from staging");
            }
            remove_any(&path).map_err(io("remove", &path))?;
        }
        Ok(())
    }

    /// Removes bootstraps of prefixes that `keep` does not know, and those that nobody went on with for a day. Only while
    /// nothing is followed: a bootstrap under way is not told.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn forget_stagings(&self, keep: impl Fn(PrefixUuid) -> bool) -> Result<(), LayoutError> {
        let staging = self.root.join("staging");
        for entry in fs::read_dir(&staging).map_err(io("list", &staging))? {
            let entry = entry.map_err(io("list", &staging))?;
            let Some((_, uuid)) = named(&entry.file_name()) else { continue };
            let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
            if keep(uuid) && age.unwrap_or_default() < STALE_STAGING {
                continue;
            }
            let path = entry.path();
            tracing::warn!(path = %path.display(), "remove a bootstrap that nobody goes on with");
            remove_any(&path).map_err(io("remove", &path))?;
        }
        Ok(())
    }

    /// Writes a small file so that it appears whole and durable, or not at all; on a full disk with the reserve's help.
    pub(crate) fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), LayoutError> {
        self.reserve.with_room(LayoutError::is_full, || write_whole(path, bytes))
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
        self.reserve.with_room(LayoutError::is_full, || make_dir(&dir))?;
        let origin = Origin { format: ORIGIN_FORMAT, sequence_offset, provenance: provenance.to_owned() };
        let json = serde_json::to_vec_pretty(&origin)
            .map_err(|e| LayoutError::Malformed { path: dir.join("origin.json"), cause: e.to_string() })?;
        self.write_file(&dir.join("origin.json"), &json)?;
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
        self.write_file(&dir.join("current"), format!("gen-{}\n", generation.number).as_bytes())?;
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

    /// Notes that a generation is to be set aside once another took its place, whatever happens to this process meanwhile.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn mark_generation(
        &self,
        name: &PrefixName,
        uuid: PrefixUuid,
        number: u64,
        why: &str,
    ) -> Result<(), LayoutError> {
        let dir = self.generation_dir(name, uuid, number);
        self.write_file(&dir.join(WHY), format!("{why}\n").as_bytes())?;
        sync_dir(&dir)
    }

    /// Generations that are not the present one, and whether each is marked to be set aside.
    fn stale_generations(&self, name: &PrefixName, uuid: PrefixUuid) -> Result<Vec<(u64, bool)>, LayoutError> {
        let Some(current) = self.current(name, uuid)? else { return Ok(Vec::new()) };
        let stale = (1..=self.highest_generation(name, uuid)?).filter(|number| *number != current.number);
        let dirs = stale.map(|number| (number, self.generation_dir(name, uuid, number)));
        Ok(dirs.filter(|(_, dir)| dir.exists()).map(|(number, dir)| (number, dir.join(WHY).exists())).collect())
    }

    /// Whether a generation that is to be set aside was replaced and is still in its place.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn has_marked_generation(&self, name: &PrefixName, uuid: PrefixUuid) -> Result<bool, LayoutError> {
        Ok(self.stale_generations(name, uuid)?.into_iter().any(|(_, marked)| marked))
    }

    /// Puts generations away that are not the present one: left over from a crash between two steps. One that was to be set
    /// aside is moved to `detached/`, the others are removed.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn remove_stale_generations(
        &self,
        name: &PrefixName,
        uuid: PrefixUuid,
        now_ms: u64,
    ) -> Result<(), LayoutError> {
        for (number, marked) in self.stale_generations(name, uuid)? {
            if marked {
                let kept = self.detach_generation(name, uuid, number, now_ms)?;
                tracing::warn!(prefix = %name, kept = %kept.display(), "set a replaced copy aside");
                continue;
            }
            let dir = self.generation_dir(name, uuid, number);
            fs::remove_dir_all(&dir).map_err(io("remove", &dir))?;
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

    /// Notes why a whole prefix is about to be moved to `detached/`.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn mark_prefix(&self, name: &PrefixName, uuid: PrefixUuid, why: &str) -> Result<(), LayoutError> {
        self.write_file(&self.prefix_dir(name, uuid).join(WHY), format!("{why}\n").as_bytes())
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
            found.extend(named(&entry.map_err(io("list", &dir))?.file_name()));
        }
        Ok(found)
    }

    /// (free, total) bytes of the volume.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn space(&self) -> Result<(u64, u64), LayoutError> {
        reserve::space(&self.root).map_err(io("ask free space of", &self.root))
    }

    /// Gives the reserve back, so that databases can be opened and state written on a full disk; answers whether there was
    /// one.
    pub fn release_reserve(&self) -> bool {
        self.reserve.release()
    }

    /// Makes the reserve again once there is room.
    pub fn keep_reserve(&self) {
        if !self.reserve.is_whole() && self.space().is_ok_and(|(free, _)| free >= reserve::ROOM_BYTES) {
            self.reserve.fill();
        }
    }

    /// What is wrong with the volume, for people; `None` if nothing is.
    #[must_use]
    pub fn storage_trouble(&self) -> Option<String> {
        if self.reserve.is_whole() {
            return None;
        }
        let (free, total) = self.space().unwrap_or_default();
        Some(format!(
            "the volume is full ({free} of {total} bytes are free) and the reserve for state is used up: enlarge \
             storage.size, or drop prefixes"
        ))
    }

    /// The tails that were exported here and are still kept, the newest first.
    #[must_use]
    pub fn exported_tails(&self) -> Arc<Vec<ExportedTail>> {
        self.tails.load_full()
    }

    /// Exports a tail unless that is done already; see [`detached::export`].
    pub(super) fn export_tail(
        &self,
        tail: &ExportedTail,
        now_ms: u64,
        write: &mut dyn FnMut(&mut dyn Write) -> std::io::Result<u64>,
    ) -> std::io::Result<()> {
        let same = |t: &ExportedTail| (t.prefix_uuid, t.epoch, t.first, t.last);
        if self.tails.load().iter().any(|known| same(known) == same(tail)) {
            return Ok(());
        }
        detached::export(&self.root, tail, now_ms, write)?;
        self.read_tails();
        Ok(())
    }

    /// Removes what is too old or too much in `detached/`.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn prune_detached(&self, now_ms: u64, max_age_ms: u64, max_bytes: u64) -> Result<Removed, LayoutError> {
        let dir = self.root.join("detached");
        let removed = detached::prune(&dir, now_ms, max_age_ms, max_bytes).map_err(io("prune", &dir))?;
        if removed.entries > 0 {
            self.read_tails();
        }
        Ok(removed)
    }

    fn read_tails(&self) {
        match detached::tails(&self.root.join("detached")) {
            Ok(tails) => self.tails.store(Arc::new(tails)),
            Err(error) => tracing::warn!(%error, "exported tails are not known"),
        }
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
        layout.remove_stale_generations(&name, uuid, 9).unwrap();
        assert_eq!(layout.highest_generation(&name, uuid).unwrap(), 2);
        assert!(!layout.generation_dir(&name, uuid, 1).exists());
        assert_eq!(fs::read_dir(dir.path().join("detached")).unwrap().count(), 0);
    }

    #[test]
    fn a_generation_that_was_to_be_set_aside_is_so_by_the_next_process_too() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        let (name, uuid) = prefix();
        let first = layout.next_generation(&name, uuid, 0, "created").unwrap();
        layout.switch(&name, uuid, &first).unwrap();
        layout.mark_generation(&name, uuid, 1, "diverged").unwrap();
        layout.remove_stale_generations(&name, uuid, 9).unwrap();
        assert_eq!(layout.current(&name, uuid).unwrap(), Some(first), "the present one stays, marked or not");
        let second = layout.next_generation(&name, uuid, 7, "copied").unwrap();
        layout.switch(&name, uuid, &second).unwrap();
        // The process ends here; the next one opens the volume.
        let layout = Layout::open(dir.path()).unwrap();
        layout.remove_stale_generations(&name, uuid, 9).unwrap();
        let kept = dir.path().join(format!("detached/{name}-{uuid}-gen-1-9"));
        assert_eq!(fs::read_to_string(kept.join(WHY)).unwrap(), "diverged\n");
        assert!(kept.join("origin.json").exists());
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

    #[test]
    fn strays_in_staging_go_at_the_start_and_bootstraps_stay() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        let (name, uuid) = prefix();
        let other = PrefixUuid(Uuid::from_u128(6));
        let mine = layout.staging(&name, uuid).unwrap();
        let gone = layout.staging(&name, other).unwrap();
        fs::write(dir.path().join("staging/stray"), b"x").unwrap();
        fs::write(dir.path().join(format!("staging/f-{uuid}")), b"a file, no folder").unwrap();
        fs::create_dir(dir.path().join("staging/no-prefix")).unwrap();
        fs::create_dir(layout.checkpoints().join("left")).unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path().join("staging")).unwrap().map(|e| e.unwrap().path()).collect();
        left.sort();
        let mut expected = vec![layout.checkpoints(), mine.clone(), gone.clone()];
        expected.sort();
        assert_eq!(left, expected);
        assert_eq!(fs::read_dir(layout.checkpoints()).unwrap().count(), 0);
        layout.forget_stagings(|prefix| prefix == uuid).unwrap();
        assert!(mine.exists() && !gone.exists());
    }
}
