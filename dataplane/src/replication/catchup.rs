//! Reads batches back from the WAL for a follower that is behind the ring. Runs on a blocking thread: the iterator is bound
//! to the thread that opened it.

use std::sync::Arc;

use parovoz_dataplane_core::types::{PrefixUuid, Sequence};
use parovoz_engine::EngineError;
use tokio::sync::mpsc;

use crate::store::prefix::Prefix;
use crate::store::ring::{RingEntry, RingRead};

/// Bytes handed over at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks read ahead.
const CHUNKS_AHEAD: usize = 4;
/// Bytes after which another prefix gets its turn.
const TURN_BYTES: usize = 64 << 20;

/// What a read hands over.
#[derive(Debug)]
pub(super) enum Chunk {
    /// Batches that follow each other.
    Batches(Vec<RingEntry>),
    /// The last message.
    End(End),
}

/// Why a read ended.
#[derive(Debug)]
pub(super) enum End {
    /// The ring has what follows, or there is nothing more for now, or it is another prefix's turn.
    Pause,
    /// The WAL is gone from here on.
    Gap(Sequence),
    /// The WAL can't be read.
    Failed(EngineError),
}

/// A read under way. Dropping it ends the thread at its next chunk.
#[derive(Debug)]
pub(super) struct Catchup {
    pub prefix: PrefixUuid,
    pub attempt: u64,
    pub chunks: mpsc::Receiver<Chunk>,
}

/// Starts reading what follows `after`; with `durable_only` nothing beyond what is synced.
pub(super) fn start(prefix: Arc<Prefix>, attempt: u64, after: Sequence, durable_only: bool) -> Catchup {
    let (tx, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let uuid = prefix.uuid;
    tokio::task::spawn_blocking(move || {
        let end = match read(&prefix, after, durable_only, &tx) {
            Ok(()) => End::Pause,
            Err(EngineError::Gap { oldest, .. }) => End::Gap(oldest),
            Err(error) => End::Failed(error),
        };
        // The session may be gone; nobody is left to tell then.
        let _ = tx.blocking_send(Chunk::End(end));
    });
    Catchup { prefix: uuid, attempt, chunks }
}

fn read(prefix: &Prefix, after: Sequence, durable_only: bool, tx: &mpsc::Sender<Chunk>) -> Result<(), EngineError> {
    let Some(copy) = prefix.copy() else { return Ok(()) };
    let mut updates = copy.db.updates_after(after)?;
    let (mut batches, mut bytes, mut total, mut expected) = (Vec::new(), 0, 0, after.next());
    while let Some(batch) = updates.next_batch()? {
        if batch.first != expected {
            return Err(EngineError::Gap { after: Sequence(expected.0 - 1), oldest: batch.first });
        }
        let entry = RingEntry {
            epoch: prefix.position_at(batch.first).epoch,
            first: batch.first,
            count: batch.count,
            bytes: batch.bytes,
            committed_at_ms: 0,
        };
        if durable_only && entry.last() > prefix.durable() {
            break;
        }
        expected = entry.last().next();
        bytes += entry.bytes.len();
        total += entry.bytes.len();
        let last = entry.last();
        batches.push(entry);
        if bytes >= CHUNK_BYTES {
            bytes = 0;
            if tx.blocking_send(Chunk::Batches(std::mem::take(&mut batches))).is_err() {
                return Ok(());
            }
            if total >= TURN_BYTES || !matches!(prefix.ring().read(last, 1), RingRead::Older) {
                return Ok(());
            }
        }
    }
    if !batches.is_empty() {
        let _ = tx.blocking_send(Chunk::Batches(batches));
    }
    Ok(())
}
