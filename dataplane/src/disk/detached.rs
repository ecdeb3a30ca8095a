//! `detached/`: what was dropped, replaced or exported and is kept for a while. Each entry is one folder whose name ends in the
//! time at which it came, in milliseconds since 1970.
//!
//! An exported tail is a folder of `records.jsonl` (one record a line) and `tail.json` (what it is).

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use parovoz_dataplane_core::types::{Epoch, PrefixName, PrefixUuid, Sequence};
use serde::{Deserialize, Serialize};

/// How the folder of an export is called until it is whole.
const UNFINISHED: &str = ".new";

/// Records of a diverged copy that are not in the upstream's history, exported so that people and programs can read them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportedTail {
    /// The prefix.
    pub prefix: PrefixName,
    /// Its identity.
    pub prefix_uuid: PrefixUuid,
    /// Epoch of the last record.
    pub epoch: Epoch,
    /// First record after the fork.
    pub first: Sequence,
    /// Last record.
    pub last: Sequence,
    /// How many records are in the file; fewer than the range holds if the log was gone or the file had become too large.
    pub records: u64,
    /// The file, relative to the volume.
    pub file: String,
}

/// What a pass removed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// Entries.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The tails in `dir`, those that can be read; the newest first.
pub(super) fn tails(dir: &Path) -> io::Result<Vec<ExportedTail>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let Ok(text) = fs::read(path.join("tail.json")) else { continue };
        match serde_json::from_slice(&text) {
            Ok(tail) => found.push((came_at(&path), tail)),
            Err(error) => tracing::warn!(path = %path.display(), %error, "read exported tail"),
        }
    }
    found.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    Ok(found.into_iter().map(|(_, tail)| tail).collect())
}

/// Writes a tail as a folder that appears whole or not at all. `write` writes the lines and answers how many there are.
pub(super) fn export(
    root: &Path,
    tail: &ExportedTail,
    now_ms: u64,
    write: &mut dyn FnMut(&mut dyn Write) -> io::Result<u64>,
) -> io::Result<()> {
    let name = format!("{}-{}-tail-{}-{}-{now_ms}", tail.prefix, tail.prefix_uuid, tail.first, tail.last);
    let dir = root.join("detached");
    let fresh = dir.join(format!("{name}{UNFINISHED}"));
    fs::create_dir_all(&fresh)?;
    let done = (|| {
        let mut file = io::BufWriter::new(fs::File::create(fresh.join("records.jsonl"))?);
        let records = write(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        let tail = ExportedTail { records, file: format!("detached/{name}/records.jsonl"), ..tail.clone() };
        let mut about = fs::File::create(fresh.join("tail.json"))?;
        about.write_all(&serde_json::to_vec_pretty(&tail)?)?;
        about.sync_all()?;
        fs::File::open(&fresh)?.sync_all()?;
        fs::rename(&fresh, dir.join(&name))?;
        fs::File::open(&dir)?.sync_all()
    })();
    if done.is_err() {
        // What is left of it is removed at the next start at the latest.
        let _ = fs::remove_dir_all(&fresh);
    }
    done
}

/// Removes exports that were cut off by the end of a process.
pub(super) fn remove_unfinished(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.to_str().is_some_and(|p| p.ends_with(UNFINISHED)) {
            remove_any(&path)?;
        }
    }
    Ok(())
}

/// Removes what came more than `max_age_ms` ago, and the oldest while all is larger than `max_bytes`.
pub(super) fn prune(dir: &Path, now_ms: u64, max_age_ms: u64, max_bytes: u64) -> io::Result<Removed> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.to_str().is_some_and(|p| p.ends_with(UNFINISHED)) {
            continue;
        }
        let bytes = size_of(&path)?;
        entries.push((came_at(&path), bytes, path));
    }
    entries.sort();
    let mut total: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
    let mut removed = Removed::default();
    for (at, bytes, path) in entries {
        let old = now_ms.saturating_sub(at) > max_age_ms;
        if !old && total <= max_bytes {
            continue;
        }
        tracing::warn!(path = %path.display(), bytes, old, "remove detached data");
        remove_any(&path)?;
        total -= bytes;
        removed.entries += 1;
        removed.bytes += bytes;
    }
    Ok(removed)
}

/// When an entry came: what its name ends in, else when it was last written.
fn came_at(path: &Path) -> u64 {
    let named =
        path.file_name().and_then(|n| n.to_str()).and_then(|n| n.rsplit('-').next()).and_then(|n| n.parse().ok());
    let written = || {
        let modified = fs::metadata(path).and_then(|m| m.modified()).ok()?;
        let since = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
        u64::try_from(since.as_millis()).ok()
    };
    named.or_else(written).unwrap_or(0)
}

/// Bytes of everything under `path` that no other name keeps: a file that a living copy or checkpoint shares costs nothing.
fn size_of(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return Ok(if metadata.nlink() > 1 { 0 } else { metadata.len() });
    }
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        bytes += size_of(&entry?.path())?;
    }
    Ok(bytes)
}

/// Removes a file, or a folder with what is in it.
pub(super) fn remove_any(path: &PathBuf) -> io::Result<()> {
    let removed = if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use uuid::Uuid;

    fn entry(dir: &Path, name: &str, bytes: usize) {
        fs::create_dir_all(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("data"), vec![1; bytes]).unwrap();
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_old_goes_and_the_oldest_goes_while_there_is_too_much() {
        let dir = tempfile::tempdir().unwrap();
        for at in [100, 900, 950, 990] {
            entry(dir.path(), &format!("p-x-{at}"), 1000);
        }
        let removed = prune(dir.path(), 1000, 500, u64::MAX).unwrap();
        assert_eq!(removed, Removed { entries: 1, bytes: 1000 });
        assert_eq!(names(dir.path()), ["p-x-900", "p-x-950", "p-x-990"]);
        let removed = prune(dir.path(), 1000, 500, 1500).unwrap();
        assert_eq!(removed, Removed { entries: 2, bytes: 2000 });
        assert_eq!(names(dir.path()), ["p-x-990"]);
        assert_eq!(prune(dir.path(), 1000, 500, 1500).unwrap(), Removed::default());
    }

    #[test]
    fn an_export_appears_whole_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("detached");
        fs::create_dir(&dir).unwrap();
        let tail = ExportedTail {
            prefix: PrefixName::new("p").unwrap(),
            prefix_uuid: PrefixUuid(Uuid::from_u128(1)),
            epoch: Epoch(3),
            first: Sequence(11),
            last: Sequence(12),
            records: 0,
            file: String::new(),
        };
        let broken = export(root.path(), &tail, 5, &mut |_| Err(io::Error::other("no log")));
        assert!(broken.is_err() && names(&dir).is_empty());
        export(root.path(), &tail, 5, &mut |out| out.write_all(b"{}\n{}\n").map(|()| 2)).unwrap();
        let found = tails(&dir).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].records, found[0].first, found[0].last), (2, Sequence(11), Sequence(12)));
        assert_eq!(fs::read(root.path().join(&found[0].file)).unwrap(), b"{}\n{}\n");
        fs::create_dir(dir.join(format!("q{UNFINISHED}"))).unwrap();
        remove_unfinished(&dir).unwrap();
        assert_eq!(names(&dir).len(), 1);
    }
}
