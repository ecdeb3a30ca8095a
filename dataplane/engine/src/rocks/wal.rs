//! Reading, listing and pruning the WAL.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use parovoz_dataplane_core::batch;
use parovoz_dataplane_core::types::Sequence;

use super::database::Core;
use super::errors::{is_hole, text_error};
use super::ffi::{self, ListedWal, WalReader};
use crate::{EngineError, LoggedBatch, Result, Updates, WalFile, checked};

/// A read of the WAL from a position on.
///
/// RocksDB's iterator may end early (it knows only the files that there were at its start) or meet a seam between files;
/// opening it again right behind the last batch tells that from a hole. Once per batch: without progress it is a gap.
pub(super) struct RocksUpdates<'a> {
    core: &'a Core,
    reader: Option<WalReader<'a>>,
    /// Own sequence of the last record given out, or asked for.
    last: u64,
    reopened: bool,
    /// Read at opening already, so that a gap shows there.
    first: Option<LoggedBatch>,
}

impl<'a> RocksUpdates<'a> {
    pub(super) fn open(core: &'a Core, after: Sequence) -> Result<Self> {
        let latest = core.logical(core.db.latest_sequence_number());
        if after > latest {
            return Err(EngineError::Ahead { after, latest });
        }
        let Some(last) = after.0.checked_sub(core.offset) else {
            // Before the scan that made this database.
            return Err(EngineError::Gap { after, oldest: oldest(core)? });
        };
        let mut updates = Self { core, reader: None, last, reopened: false, first: None };
        updates.first = updates.read()?;
        Ok(updates)
    }

    fn read(&mut self) -> Result<Option<LoggedBatch>> {
        loop {
            if self.last >= self.core.db.latest_sequence_number() {
                return Ok(None);
            }
            match self.step() {
                Ok(Some(bytes)) => {
                    let header = batch::header(&bytes).map_err(checked::bad)?;
                    if header.count == 0 {
                        continue;
                    }
                    if header.sequence == self.last + 1 {
                        return self.give(bytes, header).map(Some);
                    }
                    let next = if header.sequence > self.last {
                        header.sequence
                    } else {
                        header.sequence + u64::from(header.count)
                    };
                    self.retry_or(|updates| updates.gap(updates.core.logical(next)))?;
                }
                // Records are missing though the database has them.
                Ok(None) => self.retry_or(Self::gap_of_unknown_end)?,
                Err(text) if is_hole(&text) => self.retry_or(|updates| {
                    tracing::warn!(dir = %updates.core.dir.display(), cause = text, "WAL has a hole");
                    updates.gap_of_unknown_end()
                })?,
                Err(text) => return Err(text_error("read WAL", text)),
            }
        }
    }

    /// The reader's next batch, opening the reader if there is none.
    fn step(&mut self) -> std::result::Result<Option<Vec<u8>>, String> {
        match &mut self.reader {
            Some(reader) => reader.next(),
            None => self.reader.insert(WalReader::open(&self.core.db, self.last + 1)?).next(),
        }
    }

    fn give(&mut self, mut bytes: Vec<u8>, header: batch::Header) -> Result<LoggedBatch> {
        let first = self.core.logical(header.sequence);
        batch::set_sequence(&mut bytes, first.0).map_err(checked::bad)?;
        self.last += u64::from(header.count);
        self.reopened = false;
        Ok(LoggedBatch { first, count: header.count, bytes: Bytes::from(bytes) })
    }

    fn retry_or(&mut self, error: impl FnOnce(&Self) -> EngineError) -> Result<()> {
        self.reader = None;
        if self.reopened {
            return Err(error(self));
        }
        self.reopened = true;
        Ok(())
    }

    fn gap(&self, oldest: Sequence) -> EngineError {
        EngineError::Gap { after: self.core.logical(self.last), oldest }
    }

    /// A gap of which only the beginning is known: what follows the latest can be had for certain.
    fn gap_of_unknown_end(&self) -> EngineError {
        let end = self.core.logical(self.core.db.latest_sequence_number()).next();
        let oldest = oldest(self.core).unwrap_or(end);
        self.gap(if oldest > self.core.logical(self.last).next() { oldest } else { end })
    }
}

impl Updates for RocksUpdates<'_> {
    fn next_batch(&mut self) -> Result<Option<LoggedBatch>> {
        match self.first.take() {
            Some(batch) => Ok(Some(batch)),
            None => self.read(),
        }
    }
}

/// Logical sequence of the oldest record in the WAL, `latest + 1` if there is none.
pub(super) fn oldest(core: &Core) -> Result<Sequence> {
    let failed = |text| text_error("find oldest WAL record", text);
    let mut reader = WalReader::open(&core.db, 0).map_err(failed)?;
    while let Some(bytes) = reader.next().map_err(failed)? {
        let header = batch::header(&bytes).map_err(checked::bad)?;
        if header.count > 0 {
            return Ok(core.logical(header.sequence));
        }
    }
    Ok(core.logical(core.db.latest_sequence_number()).next())
}

/// Makes durable what an earlier process left in its WAL. Recovery reads it back from the operating system's memory and syncs
/// neither these files nor, ever again, through the database: it writes to a new one.
pub(super) fn sync_left(dir: &Path) -> Result<()> {
    let failed = |cause: std::io::Error| EngineError::WriteFailed {
        action: format!("sync WAL left in {}", dir.display()),
        cause: cause.to_string(),
    };
    let mut found = false;
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            fs::File::open(path).and_then(|file| file.sync_data()).map_err(failed)?;
            found = true;
        }
    }
    // A file that was never synced may not be in its folder yet.
    if found { fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed) } else { Ok(()) }
}

/// WAL files with records, oldest first. One that goes while they are listed is left out.
pub(super) fn files(core: &Core) -> Result<Vec<WalFile>> {
    let listed = ffi::sorted_wal_files(&core.db).map_err(|text| text_error("list WAL files", text))?;
    let mut files = Vec::with_capacity(listed.len());
    for file in listed {
        if let Some((path, archived, modified)) = locate(core, &file)? {
            files.push(WalFile { path, archived, first: core.logical(file.first), bytes: file.bytes, modified });
        }
    }
    Ok(files)
}

/// Where a listed file is now: it may have been archived since.
fn locate(core: &Core, file: &ListedWal) -> Result<Option<(PathBuf, bool, SystemTime)>> {
    let name = file.path.trim_start_matches('/');
    let mut places = vec![(core.dir.join(name), file.archived)];
    if !file.archived {
        places.push((core.dir.join("archive").join(name), true));
    }
    for (path, archived) in places {
        match fs::metadata(&path).and_then(|metadata| metadata.modified()) {
            Ok(modified) => return Ok(Some((path, archived, modified))),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                return Err(EngineError::Io {
                    action: format!("look at {}", path.display()),
                    cause: error.to_string(),
                });
            }
        }
    }
    Ok(None)
}

/// Removes an archived file; its being gone is fine.
pub(super) fn remove_archived(file: &WalFile) -> Result<()> {
    let action = || format!("remove {}", file.path.display());
    if !file.archived {
        return Err(EngineError::Io { action: action(), cause: "it is not archived".to_owned() });
    }
    match fs::remove_file(&file.path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(EngineError::Io { action: action(), cause: error.to_string() }),
    }
}

/// Removes WAL files whose records were not recovered, right after opening.
///
/// Where a crash of the machine damaged a WAL file, recovery ends there and leaves later files behind, archived. Their
/// sequences are then given out again: a reader that lands in such a file would stream records that this database lost.
pub(super) fn remove_unrecovered(core: &Core) -> Result<()> {
    let next = core.db.latest_sequence_number() + 1;
    let listed = ffi::sorted_wal_files(&core.db).map_err(|text| text_error("list WAL files", text))?;
    for file in listed.iter().filter(|file| file.first > next) {
        let Some((path, _, _)) = locate(core, file)? else { continue };
        tracing::warn!(path = %path.display(), first = file.first, latest = next - 1, bytes = file.bytes,
            "remove WAL file behind a damaged one: its records were not recovered");
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(EngineError::Io { action: format!("remove {}", path.display()), cause: error.to_string() });
        }
    }
    Ok(())
}
