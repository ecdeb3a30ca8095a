//! What a database in memory consists of: contents, WAL, and how much of both is durable.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use parovoz_dataplane_core::batch::{self, Record};
use parovoz_dataplane_core::types::Sequence;

use crate::{EngineError, Family, LoggedBatch, Result, checked};

/// Keys and stored values of a family. Shared with snapshots; a write copies it while one holds it.
pub(super) type Rows = Arc<BTreeMap<Bytes, Bytes>>;

/// The contents at a sequence.
#[derive(Clone, Default)]
pub(super) struct Image {
    pub(super) data: Rows,
    pub(super) meta: Rows,
    /// The database's own sequence.
    pub(super) sequence: u64,
}

impl Image {
    pub(super) fn rows(&self, family: Family) -> &Rows {
        match family {
            Family::Data => &self.data,
            Family::Meta => &self.meta,
        }
    }

    fn rows_mut(&mut self, number: u32) -> Result<&mut BTreeMap<Bytes, Bytes>> {
        Ok(match checked::family(number)? {
            Family::Data => Arc::make_mut(&mut self.data),
            Family::Meta => Arc::make_mut(&mut self.meta),
        })
    }

    fn apply(&mut self, bytes: &[u8]) -> Result<()> {
        let records = batch::records(bytes).map_err(checked::bad)?;
        self.sequence += u64::from(records.header().count);
        for record in records {
            match record.map_err(checked::bad)? {
                Record::Put { family, key, value } => {
                    self.rows_mut(family)?.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                }
                Record::Delete { family, key } | Record::SingleDelete { family, key } => {
                    self.rows_mut(family)?.remove(key);
                }
                Record::DeleteRange { family, from, to } => {
                    let rows = self.rows_mut(family)?;
                    let range = (Bound::Included(from), Bound::Excluded(to));
                    let gone: Vec<Bytes> = if from < to {
                        rows.range::<[u8], _>(range).map(|(key, _)| key.clone()).collect()
                    } else {
                        Vec::new()
                    };
                    for key in gone {
                        rows.remove(&key);
                    }
                }
                Record::Merge { .. } => {
                    return Err(EngineError::BadBatch { cause: "merge records are not used here".to_owned() });
                }
                Record::LogData(_) | Record::Noop => {}
            }
        }
        Ok(())
    }
}

/// A batch in the WAL, with own sequences.
#[derive(Clone)]
struct Entry {
    first: u64,
    count: u32,
    bytes: Bytes,
}

impl Entry {
    fn last(&self) -> u64 {
        self.first + u64::from(self.count) - 1
    }
}

/// A WAL file.
#[derive(Clone)]
pub(super) struct Log {
    pub(super) number: u64,
    pub(super) archived: bool,
    pub(super) modified: SystemTime,
    entries: Vec<Entry>,
}

impl Log {
    fn new(number: u64) -> Self {
        Self { number, archived: false, modified: SystemTime::UNIX_EPOCH, entries: Vec::new() }
    }

    /// Own sequence of the first record; `None` in an empty file.
    pub(super) fn first(&self) -> Option<u64> {
        self.entries.first().map(|entry| entry.first)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.bytes.len() as u64).sum()
    }
}

/// What stays when a database is closed.
#[derive(Clone)]
pub(super) struct Disk {
    pub(super) now: Image,
    /// What tables on disk hold.
    flushed: Image,
    /// Oldest first; the last one is written to. Batches without records are not kept: nobody ever reads them.
    pub(super) logs: Vec<Log>,
    /// Own sequence up to which the WAL is durable.
    synced: u64,
    offset: u64,
    open: bool,
    generation: u64,
    pub(super) corrupt: bool,
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            now: Image::default(),
            flushed: Image::default(),
            logs: vec![Log::new(1)],
            synced: 0,
            offset: 0,
            open: false,
            generation: 0,
            corrupt: false,
        }
    }
}

impl Disk {
    /// Opens, and answers the generation that the handle belongs to.
    pub(super) fn open(&mut self, offset: u64) -> std::result::Result<u64, &'static str> {
        if self.open {
            return Err("it is open already");
        }
        self.open = true;
        self.offset = offset;
        // As with the files of a process that was killed: what is seen again is durable.
        self.sync();
        self.generation += 1;
        Ok(self.generation)
    }

    pub(super) fn close(&mut self, generation: u64) {
        self.open &= self.generation != generation;
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Whether a handle of this generation may still be used.
    pub(super) fn serves(&self, generation: u64) -> bool {
        self.open && self.generation == generation
    }

    pub(super) fn logical(&self, own: u64) -> Sequence {
        Sequence(own + self.offset)
    }

    pub(super) fn latest(&self) -> Sequence {
        self.logical(self.now.sequence)
    }

    pub(super) fn write(&mut self, bytes: &[u8], sync: bool) -> Result<Sequence> {
        let count = checked::check(bytes)?.count;
        let first = self.now.sequence + 1;
        self.now.apply(bytes)?;
        if count > 0 {
            let mut copy = bytes.to_vec();
            batch::set_sequence(&mut copy, first).map_err(checked::bad)?;
            if let Some(log) = self.logs.last_mut() {
                log.entries.push(Entry { first, count, bytes: copy.into() });
                log.modified = SystemTime::now();
            }
        }
        if sync {
            self.sync();
        }
        Ok(self.logical(first))
    }

    pub(super) fn sync(&mut self) {
        self.synced = self.now.sequence;
    }

    /// Tables take over all contents; the WAL so far is archived.
    pub(super) fn flush(&mut self) {
        self.sync();
        self.flushed = self.now.clone();
        if let Some(log) = self.logs.last_mut()
            && !log.entries.is_empty()
        {
            log.archived = true;
            let number = log.number + 1;
            self.logs.push(Log::new(number));
        }
    }

    /// Back to what is durable.
    pub(super) fn crash(&mut self) {
        self.open = false;
        self.generation += 1;
        let synced = self.synced;
        let mut image = self.flushed.clone();
        for log in &mut self.logs {
            log.entries.retain(|entry| entry.last() <= synced);
            for entry in &log.entries {
                // What tables hold already comes first. The rest was applied before: it can't fail now.
                if entry.first == image.sequence + 1 {
                    let applied = image.apply(&entry.bytes);
                    debug_assert!(applied.is_ok());
                }
            }
        }
        self.now = image;
    }

    pub(super) fn prune_through(&mut self, through: Sequence) {
        self.flush();
        let through = through.0.saturating_sub(self.offset);
        for log in &mut self.logs {
            log.entries.retain(|entry| entry.last() > through);
        }
        self.logs.retain(|log| !log.archived || !log.entries.is_empty());
    }

    pub(super) fn remove_archived(&mut self, number: u64) {
        self.logs.retain(|log| !(log.archived && log.number == number));
    }

    /// A copy for another folder: as durable as a checkpoint's files are.
    pub(super) fn checkpoint(&self) -> Self {
        let mut copy = self.clone();
        copy.logs.retain(|log| !log.archived);
        copy.sync();
        copy.open = false;
        copy
    }

    pub(super) fn oldest(&self) -> Sequence {
        let first = self.logs.iter().find_map(Log::first);
        self.logical(first.unwrap_or(self.now.sequence + 1))
    }

    /// The batch that starts right after `after`.
    pub(super) fn batch_after(&self, after: Sequence) -> Result<Option<LoggedBatch>> {
        let latest = self.latest();
        if after > latest {
            return Err(EngineError::Ahead { after, latest });
        }
        let Some(own) = after.0.checked_sub(self.offset) else {
            return Err(EngineError::Gap { after, oldest: self.oldest() });
        };
        if after == latest {
            return Ok(None);
        }
        let log = self.logs.iter().find(|log| log.entries.last().is_some_and(|entry| entry.last() > own));
        let entry = log.and_then(|log| log.entries.get(log.entries.partition_point(|entry| entry.last() <= own)));
        match entry {
            Some(entry) if entry.first == own + 1 => {
                let first = self.logical(entry.first);
                let mut bytes = entry.bytes.to_vec();
                batch::set_sequence(&mut bytes, first.0).map_err(checked::bad)?;
                Ok(Some(LoggedBatch { first, count: entry.count, bytes: bytes.into() }))
            }
            Some(entry) if entry.first > own => Err(EngineError::Gap { after, oldest: self.logical(entry.first) }),
            // Within a batch.
            Some(entry) => Err(EngineError::Gap { after, oldest: self.logical(entry.last()).next() }),
            None => Err(EngineError::Gap { after, oldest: latest.next() }),
        }
    }

    /// Bytes of keys, values and WAL.
    pub(super) fn bytes(&self) -> u64 {
        self.row_bytes() + self.logs.iter().map(Log::bytes).sum::<u64>()
    }

    /// Bytes of keys and values.
    pub(super) fn row_bytes(&self) -> u64 {
        [&self.now.data, &self.now.meta]
            .iter()
            .flat_map(|rows| rows.iter())
            .map(|(key, value)| (key.len() + value.len()) as u64)
            .sum()
    }
}
