//! The staging folder of a bootstrap: which files of which snapshot are there, so that a copy that was cut goes on.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use parovoz_dataplane_core::types::{DataUuid, Position};
use parovoz_proto::v1;
use serde::{Deserialize, Serialize};

use super::snapshots::crc_of;

/// One file of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StagedFile {
    pub name: String,
    pub size: u64,
    /// Of the whole file, once it is here, checked and synced.
    pub crc32c: Option<u32>,
}

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub format: u32,
    pub snapshot_id: String,
    pub source: DataUuid,
    /// Where that member was reached: a copy goes on there whoever is asked for new ones.
    #[serde(default)]
    pub source_address: String,
    pub sequence_offset: u64,
    pub held_after: Position,
    pub files: Vec<StagedFile>,
}

const FORMAT: u32 = 1;

/// What there is to do for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Todo {
    /// Nothing: it is here.
    Done(u32),
    /// It came with an earlier snapshot: only its checksum is asked for.
    Compare(u32),
    /// Fetch it, from the end of what is here.
    Fetch,
}

impl Manifest {
    /// Reads the manifest of a staging folder; `None` if there is none, or none that can be used.
    pub fn load(staging: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read(staging.join("manifest.json")) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(manifest) if manifest.format == FORMAT => Ok(Some(manifest)),
            Ok(_) => Ok(None),
            Err(error) => {
                tracing::warn!(staging = %staging.display(), %error, "read staging manifest: start again");
                Ok(None)
            }
        }
    }

    /// Writes it, so that it is there whole or not at all.
    pub fn save(&self, staging: &Path) -> io::Result<()> {
        let fresh = staging.join("manifest.new");
        let mut file = File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&fresh, staging.join("manifest.json"))?;
        sync_dir(staging)
    }

    /// The manifest of a snapshot, and what to do for each of its files, given what an earlier attempt left. Removes what
    /// does not belong to it.
    pub fn prepare(
        snapshot: &v1::Snapshot,
        source: DataUuid,
        source_address: &str,
        held_after: Position,
        staging: &Path,
        before: Option<&Self>,
    ) -> io::Result<(Self, Vec<Todo>)> {
        let db = db_dir(staging);
        fs::create_dir_all(&db)?;
        for entry in fs::read_dir(&db)? {
            let entry = entry?;
            if !snapshot.files.iter().any(|f| entry.file_name().to_str() == Some(&f.name)) {
                remove_any(&entry.path())?;
            }
        }
        let same = before.is_some_and(|b| b.snapshot_id == snapshot.snapshot_id);
        let mut todos = Vec::with_capacity(snapshot.files.len());
        let mut files = Vec::with_capacity(snapshot.files.len());
        for file in &snapshot.files {
            let known = before.and_then(|b| b.files.iter().find(|f| f.name == file.name && f.size == file.size));
            let path = db.join(&file.name);
            let here = fs::metadata(&path).map_or(0, |m| m.len());
            let whole = known.and_then(|k| k.crc32c).filter(|_| here == file.size);
            let todo = match whole {
                Some(crc) if same && (is_table(&file.name) || crc_of(&mut File::open(&path)?, here)? == crc) => {
                    Todo::Done(crc)
                }
                Some(crc) if is_table(&file.name) => Todo::Compare(crc),
                _ => {
                    // Only table files keep their contents under one name; anything else begins anew with a new snapshot, and
                    // where it is not what came.
                    let part = whole.is_none() && here <= file.size;
                    let keep = part && (same || (known.is_some() && is_table(&file.name)));
                    if !keep && path.exists() {
                        fs::remove_file(&path)?;
                    }
                    Todo::Fetch
                }
            };
            let crc32c = if let Todo::Done(crc) = todo { Some(crc) } else { None };
            files.push(StagedFile { name: file.name.clone(), size: file.size, crc32c });
            todos.push(todo);
        }
        let (snapshot_id, sequence_offset) = (snapshot.snapshot_id.clone(), snapshot.sequence_offset);
        let source_address = source_address.to_owned();
        Ok((Self { format: FORMAT, snapshot_id, source, source_address, sequence_offset, held_after, files }, todos))
    }

    /// Bytes that [`scratch_dir`] takes: tables are only linked.
    pub fn scratch_bytes(&self) -> u64 {
        self.files.iter().filter(|f| !is_table(&f.name)).map(|f| f.size).sum()
    }

    /// Bytes of all files.
    pub fn total(&self) -> u64 {
        self.files.iter().map(|f| f.size).sum()
    }
}

/// Where the database's files go.
pub(super) fn db_dir(staging: &Path) -> PathBuf {
    staging.join("db")
}

/// A copy of the fetched files to open: a database changes what it is opened on, and what was fetched must stay as it came, for
/// a copy that is cut now. Tables are never changed and only linked.
pub(super) fn scratch_dir(staging: &Path, files: &[StagedFile]) -> io::Result<PathBuf> {
    let (db, scratch) = (db_dir(staging), staging.join("check"));
    remove_scratch(staging)?;
    fs::create_dir(&scratch)?;
    for file in files {
        let (from, to) = (db.join(&file.name), scratch.join(&file.name));
        if is_table(&file.name) {
            fs::hard_link(from, to)?;
        } else {
            fs::copy(from, to)?;
        }
    }
    Ok(scratch)
}

/// Removes what [`scratch_dir`] made, if it did.
pub(super) fn remove_scratch(staging: &Path) -> io::Result<()> {
    match fs::remove_dir_all(staging.join("check")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether a file keeps its contents under its name for good. Of the others the size says nothing.
fn is_table(name: &str) -> bool {
    name.ends_with(".sst")
}

/// Bytes of the files that are here.
pub(super) fn bytes_here(staging: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(db_dir(staging))? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

/// Throws everything in a staging folder away.
pub(super) fn clear(staging: &Path) -> io::Result<()> {
    for entry in fs::read_dir(staging)? {
        remove_any(&entry?.path())?;
    }
    sync_dir(staging)
}

fn remove_any(path: &Path) -> io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Makes names in a folder durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use uuid::Uuid;

    fn snapshot(id: &str, files: &[(&str, u64)]) -> v1::Snapshot {
        let files = files.iter().map(|&(name, size)| v1::SnapshotFile { name: name.into(), size }).collect();
        v1::Snapshot { snapshot_id: id.into(), files, ..v1::Snapshot::default() }
    }

    fn prepare(dir: &Path, snapshot: &v1::Snapshot, before: Option<&Manifest>) -> (Manifest, Vec<Todo>) {
        Manifest::prepare(snapshot, DataUuid(Uuid::nil()), "", Position::ZERO, dir, before).unwrap()
    }

    #[test]
    fn finished_files_stay_and_those_of_another_snapshot_are_compared() {
        let dir = tempfile::tempdir().unwrap();
        let files = [("1.sst", 4), ("2.sst", 4), ("3.sst", 4), ("CURRENT", 2)];
        let (mut manifest, todos) = prepare(dir.path(), &snapshot("a", &files), None);
        assert_eq!(todos, vec![Todo::Fetch; 4]);
        let db = db_dir(dir.path());
        fs::write(db.join("1.sst"), b"abcd").unwrap();
        fs::write(db.join("2.sst"), b"ab").unwrap();
        fs::write(db.join("CURRENT"), b"x").unwrap();
        manifest.files[0].crc32c = Some(7);
        manifest.save(dir.path()).unwrap();

        let loaded = Manifest::load(dir.path()).unwrap().unwrap();
        let (_, todos) = prepare(dir.path(), &snapshot("a", &files), Some(&loaded));
        assert_eq!(todos, [Todo::Done(7), Todo::Fetch, Todo::Fetch, Todo::Fetch]);
        assert!(db.join("CURRENT").exists(), "a part of the same snapshot goes on");

        let files = [("1.sst", 4), ("2.sst", 4), ("CURRENT", 2)];
        fs::write(db.join("stranger"), b"x").unwrap();
        let (_, todos) = prepare(dir.path(), &snapshot("b", &files), Some(&loaded));
        assert_eq!(todos, [Todo::Compare(7), Todo::Fetch, Todo::Fetch]);
        assert!(db.join("2.sst").exists(), "the part of a table is kept: its checksum decides");
        assert!(!db.join("CURRENT").exists() && !db.join("stranger").exists());
    }

    #[test]
    fn a_small_file_that_is_not_what_came_is_fetched_again_and_checks_touch_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = snapshot("a", &[("1.sst", 4), ("CURRENT", 4)]);
        let (mut manifest, _) = prepare(dir.path(), &wanted, None);
        let db = db_dir(dir.path());
        for (file, name) in manifest.files.iter_mut().zip(["1.sst", "CURRENT"]) {
            fs::write(db.join(name), b"abcd").unwrap();
            file.crc32c = Some(crc32c::crc32c(b"abcd"));
        }
        let scratch = scratch_dir(dir.path(), &manifest.files).unwrap();
        assert_eq!(manifest.scratch_bytes(), 4);
        fs::write(scratch.join("CURRENT"), b"dcba").unwrap();
        fs::remove_file(scratch.join("1.sst")).unwrap();
        let done = Todo::Done(crc32c::crc32c(b"abcd"));
        assert_eq!(prepare(dir.path(), &wanted, Some(&manifest)).1, [done.clone(), done.clone()]);
        remove_scratch(dir.path()).unwrap();
        remove_scratch(dir.path()).unwrap();
        fs::write(db.join("CURRENT"), b"dcba").unwrap();
        assert_eq!(prepare(dir.path(), &wanted, Some(&manifest)).1, [done, Todo::Fetch]);
        assert!(!db.join("CURRENT").exists());
    }

    #[test]
    fn a_damaged_manifest_means_to_start_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("manifest.json"), b"{").unwrap();
        assert!(Manifest::load(dir.path()).unwrap().is_none());
    }
}
