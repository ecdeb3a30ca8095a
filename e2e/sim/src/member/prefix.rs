//! One prefix of a simulated member, as the data plane's own `store/prefix` keeps it.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parovoz_dataplane_core::history::{EpochHistory, EpochRecord};
use parovoz_dataplane_core::types::{Epoch, Position, PrefixName, PrefixUuid, ReignRef, Sequence};
use parovoz_engine::{Database, Direction, Family};

/// Batches kept in memory for followers that are close.
const RING: usize = 96;

/// A batch in the ring.
#[derive(Debug, Clone)]
pub struct Entry {
    pub epoch: Epoch,
    pub first: Sequence,
    pub count: u32,
    pub bytes: Bytes,
}

impl Entry {
    pub fn last(&self) -> Sequence {
        self.first.last_of(self.count)
    }
}

/// The present copy.
#[derive(Debug)]
pub struct Copy {
    pub generation: u64,
    pub dir: PathBuf,
    pub db: Arc<dyn Database>,
}

/// What a prefix is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Open,
    Bootstrapping,
    Streaming,
    Stopped,
    Serving,
}

/// A write that waits for its acknowledgements.
#[derive(Debug, Clone, Copy)]
pub struct Parked {
    pub at: Sequence,
    pub epoch: Epoch,
    pub op: u32,
    pub key: u8,
    pub value: u64,
}

/// A read that waits until what it would show is acknowledged.
#[derive(Debug, Clone, Copy)]
pub struct WaitingRead {
    pub at: Sequence,
    pub op: u32,
    pub key: u8,
}

/// See the module.
#[derive(Debug)]
pub struct Prefix {
    pub name: PrefixName,
    pub uuid: PrefixUuid,
    pub copy: Option<Copy>,
    /// Changes with each copy: streams of an earlier one are cut.
    pub copy_id: u64,
    pub history: EpochHistory,
    pub phase: Phase,
    pub writer: Option<ReignRef>,
    pub received: Sequence,
    pub applied: Sequence,
    pub durable: Sequence,
    pub released: Sequence,
    pub upstream_latest: Position,
    pub ring: VecDeque<Entry>,
    pub parked: VecDeque<Parked>,
    pub reads: Vec<WaitingRead>,
    /// Last unreleased write of each key.
    pub hot: BTreeMap<u8, Sequence>,
    pub bytes_total: u64,
}

impl Prefix {
    pub fn new(name: PrefixName, uuid: PrefixUuid) -> Self {
        Self {
            name,
            uuid,
            copy: None,
            copy_id: 0,
            history: EpochHistory::default(),
            phase: Phase::Open,
            writer: None,
            received: Sequence(0),
            applied: Sequence(0),
            durable: Sequence(0),
            released: Sequence(0),
            upstream_latest: Position::ZERO,
            ring: VecDeque::new(),
            parked: VecDeque::new(),
            reads: Vec::new(),
            hot: BTreeMap::new(),
            bytes_total: 0,
        }
    }

    /// Puts a copy in place.
    pub fn install(&mut self, copy: Copy, history: EpochHistory) -> Option<Copy> {
        let latest = copy.db.latest();
        self.history = history;
        self.copy_id += 1;
        self.ring.clear();
        self.received = latest;
        self.applied = latest;
        self.durable = latest;
        self.released = latest;
        self.hot.clear();
        self.copy.replace(copy)
    }

    pub fn position_at(&self, sequence: Sequence) -> Position {
        self.history.position_at(sequence)
    }

    pub fn at(&self) -> Position {
        self.position_at(self.applied)
    }

    /// Notes a batch that the database took.
    pub fn publish(&mut self, entry: Entry) {
        self.applied = entry.last();
        self.received = self.received.max(entry.last());
        self.bytes_total += entry.bytes.len() as u64;
        if self.ring.len() == RING {
            self.ring.pop_front();
        }
        self.ring.push_back(entry);
    }

    /// The next batch after a sequence, from the ring or the WAL.
    ///
    /// # Errors
    /// The oldest sequence that there is, if what follows is gone; 0 if it can't be read.
    pub fn next_after(&self, after: Sequence) -> Result<Option<Entry>, Sequence> {
        if after >= self.applied {
            return Ok(None);
        }
        if self.ring.front().is_some_and(|e| e.first <= after.next()) {
            let at = self.ring.partition_point(|e| e.last() <= after);
            return Ok(self.ring.get(at).cloned());
        }
        let Some(copy) = &self.copy else { return Err(Sequence(0)) };
        let read = copy.db.updates_after(after).and_then(|mut updates| updates.next_batch());
        match read {
            Ok(batch) => Ok(batch.map(|b| Entry {
                epoch: self.history.epoch_at(b.first),
                first: b.first,
                count: b.count,
                bytes: b.bytes,
            })),
            Err(parovoz_engine::EngineError::Gap { oldest, .. }) => Err(oldest),
            Err(_) => Err(Sequence(0)),
        }
    }
}

/// Reads a database's epoch records.
pub fn read_history(db: &dyn Database) -> Option<EpochHistory> {
    let (from, to) = EpochRecord::KEY_RANGE;
    let mut records = Vec::new();
    db.snapshot()
        .scan(Family::Meta, from, to, Direction::Forward, &mut |key, value| {
            records.push(EpochRecord::decode(key, value));
            true
        })
        .ok()?;
    EpochHistory::new(records.into_iter().collect::<Result<_, _>>().ok()?).ok()
}
