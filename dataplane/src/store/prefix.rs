//! One prefix of this member: its database, its ring, how far it is, and who is told when it moves.
//!
//! Owner rules: on a primary the prefix's event loop is the only caller of [`Prefix::commit`]; on a replica the apply thread of
//! its stream is the only caller of [`Prefix::apply`]. The writer's lock makes a change of role wait for a commit under way.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use parovoz_dataplane_core::history::{EpochHistory, EpochRecord};
use parovoz_dataplane_core::types::{Epoch, Position, PrefixName, PrefixUuid, ReignRef, Sequence};
use parovoz_engine::{Database, EngineError};

use super::ring::{Ring, RingBudget, RingEntry};
use super::signal::Subscription;
use crate::clock;

/// The present copy of a prefix's data: one generation on disk, opened.
#[derive(Debug)]
pub struct Copy {
    /// N of `gen-N`.
    pub generation: u64,
    /// Its folder.
    pub dir: PathBuf,
    /// Logical sequence = the database's own + this.
    pub sequence_offset: u64,
    /// The opened database.
    pub db: Arc<dyn Database>,
}

/// What a prefix is doing on this member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrefixPhase {
    /// Opened; nobody streams into it or writes.
    Open,
    /// Its data is being copied from a source; an old copy may still be open for stale reads.
    Bootstrapping,
    /// Follows its upstream.
    Streaming,
    /// A gap, a divergence or a corruption stopped it; it waits for a new bootstrap.
    Stopped {
        /// Why, for people.
        reason: String,
    },
    /// Written by this member, the primary.
    Serving,
}

/// When a committed batch is synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalSync {
    /// Before the commit returns.
    Now,
    /// By [`Prefix::sync`], which the caller has called; only then followers are told.
    Later,
    /// When the operating system likes.
    Never,
}

/// Why a write was not committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// This member does not write this prefix (any more).
    #[error("commit to prefix: this member is not its primary")]
    NotPrimary,
    /// There is no open copy.
    #[error("commit to prefix: it has no open database")]
    Closed,
    /// The database refused. If fatal, the process must end.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Why a batch from the upstream was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// `first == last + 1` does not hold.
    #[error("apply batch at {first}: the last record here is {last}")]
    NotContiguous {
        /// Of the batch.
        first: Sequence,
        /// Of this copy.
        last: Sequence,
    },
    /// The batch's epoch differs from what the history says, or its epoch record does not fit.
    #[error("apply batch at {first}: {cause}")]
    History {
        /// Of the batch.
        first: Sequence,
        /// What does not fit.
        cause: String,
    },
    /// There is no open copy.
    #[error("apply batch: the prefix has no open database")]
    Closed,
    /// The database refused. If fatal, the process must end.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// See the module.
#[derive(Debug)]
pub struct Prefix {
    /// Its name.
    pub name: PrefixName,
    /// Its identity.
    pub uuid: PrefixUuid,
    /// The event loop that owns it.
    pub shard: usize,
    copy: ArcSwapOption<Copy>,
    ring: Ring,
    history: RwLock<EpochHistory>,
    phase: Mutex<PrefixPhase>,
    /// The reign that may commit here; the lock is held during a commit.
    writer: Mutex<Option<ReignRef>>,
    /// Whole batches received from the upstream (replica) or committed (primary).
    received: AtomicU64,
    applied: AtomicU64,
    durable: AtomicU64,
    /// `boot_ms` when the sync under way began; 0 = there is none.
    syncing_since: AtomicU64,
    /// Writes up to here may be answered.
    released: AtomicU64,
    /// What the upstream last said of its own position.
    upstream_latest: Mutex<Position>,
    subscriptions: ArcSwap<Vec<Arc<Subscription>>>,
    /// Serializes changes of `subscriptions`.
    subscribing: Mutex<()>,
    /// Bytes committed or applied since the start; the difference of two readings is lag in bytes.
    bytes_total: AtomicU64,
    /// See [`Prefix::oldest_in_wal`].
    oldest_in_wal: AtomicU64,
    dropped: AtomicBool,
    /// See [`Prefix::lacks_room`].
    lacks_room: AtomicBool,
    /// See [`Prefix::lost_its_end`].
    lost_its_end: AtomicBool,
}

impl Prefix {
    /// A prefix without a copy yet.
    #[must_use]
    pub fn new(name: PrefixName, uuid: PrefixUuid, shard: usize, budget: Arc<RingBudget>) -> Self {
        Self {
            name,
            uuid,
            shard,
            copy: ArcSwapOption::empty(),
            ring: Ring::new(budget, Sequence(0)),
            history: RwLock::default(),
            phase: Mutex::new(PrefixPhase::Open),
            writer: Mutex::new(None),
            received: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            syncing_since: AtomicU64::new(0),
            released: AtomicU64::new(0),
            upstream_latest: Mutex::new(Position::ZERO),
            subscriptions: ArcSwap::from_pointee(Vec::new()),
            subscribing: Mutex::new(()),
            bytes_total: AtomicU64::new(0),
            oldest_in_wal: AtomicU64::new(0),
            dropped: AtomicBool::new(false),
            lacks_room: AtomicBool::new(false),
            lost_its_end: AtomicBool::new(false),
        }
    }

    /// Puts a verified copy in place of the present one (or of none) and cuts all streams from this prefix.
    pub fn install(&self, copy: Copy, history: EpochHistory) {
        let _writer = self.writer.lock();
        let latest = copy.db.latest();
        *self.history.write() = history;
        self.copy.store(Some(Arc::new(copy)));
        self.set_lacks_room(false);
        self.set_lost_its_end(false);
        self.ring.reset(latest);
        self.oldest_in_wal.store(0, Ordering::Release);
        for mark in [&self.received, &self.applied, &self.durable, &self.released] {
            mark.store(latest.0, Ordering::Release);
        }
        let _subscribing = self.subscribing.lock();
        for subscription in self.subscriptions.swap(Arc::default()).iter() {
            subscription.cut();
        }
    }

    /// Takes the copy out, for replacing or dropping it; readers that hold it keep it open until they are done.
    pub fn close(&self) -> Option<Arc<Copy>> {
        let _writer = self.writer.lock();
        self.copy.swap(None)
    }

    /// The open copy, if there is one.
    #[must_use]
    pub fn copy(&self) -> Option<Arc<Copy>> {
        self.copy.load_full()
    }

    /// Commits one batch as the primary; see the owner rules. On success the batch is in the WAL (synced if `sync`), in the
    /// ring, and followers are told.
    ///
    /// # Errors
    /// See [`CommitError`]; an engine error of severity `Fatal` obliges the caller to end the process.
    pub fn commit(&self, batch: Bytes, count: u32, sync: bool) -> Result<Position, CommitError> {
        self.commit_as(None, batch, count, if sync { WalSync::Now } else { WalSync::Never })
    }

    /// The same, with a choice of when it is synced, and under this reign only: its rules say who must have the batch.
    ///
    /// # Errors
    /// As [`Prefix::commit`]; under another reign by now, as if it was not the primary.
    pub fn commit_as(
        &self,
        under: Option<ReignRef>,
        batch: Bytes,
        count: u32,
        sync: WalSync,
    ) -> Result<Position, CommitError> {
        let writer = self.writer.lock();
        let reign = writer.as_ref().filter(|now| under.is_none_or(|under| under == **now));
        let reign = reign.ok_or(CommitError::NotPrimary)?;
        let copy = self.copy.load();
        let copy = copy.as_ref().ok_or(CommitError::Closed)?;
        let first = copy.db.write(&batch, sync == WalSync::Now)?;
        let entry = RingEntry { epoch: reign.epoch, first, count, bytes: batch, committed_at_ms: clock::wall_ms() };
        let position = Position { epoch: reign.epoch, sequence: entry.last() };
        self.received.store(position.sequence.0, Ordering::Release);
        self.publish(entry, sync);
        drop(writer);
        Ok(position)
    }

    /// Applies one whole batch from the upstream, without a sync; see the owner rules.
    ///
    /// # Errors
    /// See [`ApplyError`]; nothing was written then. An engine error of severity `Fatal` obliges the caller to end the process.
    pub fn apply(&self, entry: RingEntry, epoch_record: Option<EpochRecord>) -> Result<Position, ApplyError> {
        let _writer = self.writer.lock();
        let copy = self.copy.load();
        let copy = copy.as_ref().ok_or(ApplyError::Closed)?;
        let last = copy.db.latest();
        if entry.first != last.next() {
            return Err(ApplyError::NotContiguous { first: entry.first, last });
        }
        self.extend_history(&entry, epoch_record)?;
        copy.db.write(&entry.bytes, false)?;
        let position = Position { epoch: entry.epoch, sequence: entry.last() };
        self.publish(entry, WalSync::Never);
        Ok(position)
    }

    fn extend_history(&self, entry: &RingEntry, record: Option<EpochRecord>) -> Result<(), ApplyError> {
        let fail = |cause: String| ApplyError::History { first: entry.first, cause };
        if let Some(record) = record {
            if record.epoch != entry.epoch || record.start != entry.first {
                return Err(fail(format!("its epoch record says epoch {} from {}", record.epoch, record.start)));
            }
            return self.history.write().push(record).map_err(|e| fail(e.to_string()));
        }
        let known = self.history.read().epoch_at(entry.first);
        if known == entry.epoch {
            Ok(())
        } else {
            Err(fail(format!("its epoch is {}, the history here says {known}", entry.epoch)))
        }
    }

    fn publish(&self, entry: RingEntry, sync: WalSync) {
        let last = entry.last().0;
        self.bytes_total.fetch_add(entry.bytes.len() as u64, Ordering::Relaxed);
        self.ring.push(entry);
        self.applied.store(last, Ordering::Release);
        match sync {
            WalSync::Now => self.mark_durable(last),
            WalSync::Never => {}
            // Nobody may have it yet.
            WalSync::Later => return,
        }
        self.signal();
    }

    /// Tells everyone who streams it.
    fn signal(&self) {
        for subscription in self.subscriptions.load().iter() {
            subscription.signal();
        }
    }

    fn mark_durable(&self, last: u64) {
        self.durable.fetch_max(last, Ordering::AcqRel);
    }

    /// Makes what is applied durable and answers up to where it is.
    ///
    /// # Errors
    /// A failed sync obliges the caller to end the process.
    pub fn sync(&self) -> Result<Sequence, EngineError> {
        let applied = self.applied.load(Ordering::Acquire);
        if let Some(copy) = self.copy.load().as_ref()
            && self.durable.load(Ordering::Acquire) < applied
        {
            self.watched(|| copy.db.sync())?;
            self.mark_durable(applied);
            // Senders of synced bytes only may have waited for this.
            self.signal();
        }
        Ok(self.durable())
    }

    /// Says while it runs since when the disk is waited for; of several at once, the one that began first.
    fn watched<T>(&self, sync: impl FnOnce() -> T) -> T {
        let began = clock::boot_ms().max(1);
        let first = self.syncing_since.compare_exchange(0, began, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let result = sync();
        if first {
            self.syncing_since.store(0, Ordering::Release);
        }
        result
    }

    /// `boot_ms` when the sync that is under way began.
    #[must_use]
    pub fn syncing_since(&self) -> Option<u64> {
        Some(self.syncing_since.load(Ordering::Acquire)).filter(|began| *began > 0)
    }

    /// Lets `reign` (or nobody) commit; waits for a commit under way. Adding the reign's epoch record to the data is the
    /// caller's next commit.
    pub fn set_writer(&self, reign: Option<ReignRef>) {
        *self.writer.lock() = reign;
    }

    /// Commits the epoch record of `reign` as the first record of its epoch, and lets it write from then on.
    ///
    /// # Errors
    /// As [`Prefix::commit`].
    pub fn begin_epoch(&self, reign: ReignRef, sync: bool) -> Result<Position, CommitError> {
        let mut writer = self.writer.lock();
        let copy = self.copy.load();
        let copy = copy.as_ref().ok_or(CommitError::Closed)?;
        let start = copy.db.latest().next();
        let record = EpochRecord { epoch: reign.epoch, reign_id: reign.reign_id, start };
        self.history.write().push(record).map_err(|e| {
            CommitError::Engine(EngineError::Corruption { action: "begin epoch".into(), cause: e.to_string() })
        })?;
        let mut builder = parovoz_dataplane_core::batch::BatchBuilder::new();
        builder.put_meta(&record.key(), &record.value());
        let count = builder.count();
        let bytes = builder.finish();
        let first = copy.db.write(&bytes, sync)?;
        *writer = Some(reign);
        self.received.store(first.0, Ordering::Release);
        let sync = if sync { WalSync::Now } else { WalSync::Never };
        self.publish(RingEntry { epoch: reign.epoch, first, count, bytes, committed_at_ms: clock::wall_ms() }, sync);
        Ok(Position { epoch: reign.epoch, sequence: first })
    }

    /// What was received in whole batches, applied or not (replica).
    pub fn note_received(&self, last: Sequence) {
        self.received.fetch_max(last.0, Ordering::AcqRel);
    }

    /// Writes up to `sequence` may be answered; answers whether that is news.
    pub fn release(&self, sequence: Sequence) -> bool {
        self.released.fetch_max(sequence.0, Ordering::AcqRel) < sequence.0
    }

    /// Up to where writes may be answered.
    #[must_use]
    pub fn released(&self) -> Sequence {
        Sequence(self.released.load(Ordering::Acquire))
    }

    /// Received, as a sequence.
    #[must_use]
    pub fn received(&self) -> Sequence {
        Sequence(self.received.load(Ordering::Acquire))
    }

    /// Applied, as a sequence: the last record that reads show.
    #[must_use]
    pub fn applied(&self) -> Sequence {
        Sequence(self.applied.load(Ordering::Acquire))
    }

    /// Durable, as a sequence.
    #[must_use]
    pub fn durable(&self) -> Sequence {
        Sequence(self.durable.load(Ordering::Acquire))
    }

    /// The position of a sequence, by this copy's epoch records.
    #[must_use]
    pub fn position_at(&self, sequence: Sequence) -> Position {
        self.history.read().position_at(sequence)
    }

    /// A copy of the epoch records.
    #[must_use]
    pub fn history(&self) -> EpochHistory {
        self.history.read().clone()
    }

    /// The newest epoch in this copy.
    #[must_use]
    pub fn newest_epoch(&self) -> Epoch {
        self.history.read().newest().map_or(Epoch(0), |r| r.epoch)
    }

    /// The latest batches, in memory.
    #[must_use]
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// What it is doing.
    #[must_use]
    pub fn phase(&self) -> PrefixPhase {
        self.phase.lock().clone()
    }

    /// Says what it is doing from now on.
    pub fn set_phase(&self, phase: PrefixPhase) {
        *self.phase.lock() = phase;
    }

    /// What the upstream last said of its own position.
    #[must_use]
    pub fn upstream_latest(&self) -> Position {
        *self.upstream_latest.lock()
    }

    /// Notes what the upstream says of its own position.
    pub fn set_upstream_latest(&self, position: Position) {
        *self.upstream_latest.lock() = position;
    }

    /// Bytes of batches since the start of the process.
    #[must_use]
    pub fn bytes_total(&self) -> u64 {
        self.bytes_total.load(Ordering::Relaxed)
    }

    /// The oldest record in the WAL when the pruner last looked; `None` before it has.
    #[must_use]
    pub fn oldest_in_wal(&self) -> Option<Sequence> {
        match self.oldest_in_wal.load(Ordering::Acquire) {
            0 => None,
            oldest => Some(Sequence(oldest)),
        }
    }

    /// Notes what the pruner saw: listing the files for each report would cost too much.
    pub fn note_oldest_in_wal(&self, oldest: Sequence) {
        self.oldest_in_wal.store(oldest.0, Ordering::Release);
    }

    /// Tells `subscription` of every batch from now on.
    pub fn subscribe(&self, subscription: Arc<Subscription>) {
        let _subscribing = self.subscribing.lock();
        let mut all = Vec::clone(&self.subscriptions.load());
        all.push(subscription);
        self.subscriptions.store(Arc::new(all));
    }

    /// Ends a subscription.
    pub fn unsubscribe(&self, subscription: &Arc<Subscription>) {
        let _subscribing = self.subscribing.lock();
        let mut all = Vec::clone(&self.subscriptions.load());
        all.retain(|s| !Arc::ptr_eq(s, subscription));
        self.subscriptions.store(Arc::new(all));
    }

    /// Whether its copy lies here and only can't be opened while the volume is full: it is not missing.
    #[must_use]
    pub fn lacks_room(&self) -> bool {
        self.lacks_room.load(Ordering::Acquire)
    }

    /// Says whether its copy waits for room to be opened.
    pub fn set_lacks_room(&self, lacks: bool) {
        self.lacks_room.store(lacks, Ordering::Release);
    }

    /// Whether its copy can't be opened and nothing says up to where it had acknowledged: until a new one is ordered, whose
    /// floor is where the primary was then.
    #[must_use]
    pub fn lost_its_end(&self) -> bool {
        self.lost_its_end.load(Ordering::Acquire)
    }

    /// Says whether it is unknown how far a lost copy was.
    pub fn set_lost_its_end(&self, lost: bool) {
        self.lost_its_end.store(lost, Ordering::Release);
    }

    /// Whether the catalogue dropped it.
    #[must_use]
    pub fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    /// Marks it as dropped by the catalogue.
    pub fn mark_dropped(&self) {
        self.dropped.store(true, Ordering::Release);
    }
}
