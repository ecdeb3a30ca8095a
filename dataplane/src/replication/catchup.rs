//! Reads batches back from the WAL for a follower that is behind the ring. Runs on a blocking thread: the iterator is bound
//! to the thread that opened it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parovoz_dataplane_core::types::{PrefixUuid, Sequence};
use parovoz_engine::EngineError;
use tokio::sync::mpsc;

use super::parcel::{Packer, Parcel};
use crate::store::prefix::Prefix;
use crate::store::ring::{RingEntry, RingRead};

/// Parcels read, and compressed, ahead.
const PARCELS_AHEAD: usize = 4;
/// Bytes after which another prefix gets its turn.
const TURN_BYTES: u64 = 64 << 20;

/// What a read hands over.
#[derive(Debug)]
pub(super) enum Chunk {
    /// What follows.
    Parcel(Parcel),
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

/// How a follower wants what is read.
#[derive(Debug, Clone)]
pub(super) struct Manner {
    /// Nothing beyond what is synced.
    pub durable_only: bool,
    /// Small batches in bundles.
    pub bundles: bool,
    /// Compressed, as long as this says so.
    pub compress: Arc<AtomicBool>,
}

/// Starts reading what follows `after`.
pub(super) fn start(prefix: Arc<Prefix>, attempt: u64, after: Sequence, manner: Manner) -> Catchup {
    let (tx, chunks) = mpsc::channel(PARCELS_AHEAD);
    let uuid = prefix.uuid;
    tokio::task::spawn_blocking(move || {
        let end = match read(&prefix, after, &manner, &tx) {
            Ok(()) => End::Pause,
            Err(EngineError::Gap { oldest, .. }) => End::Gap(oldest),
            Err(error) => End::Failed(error),
        };
        // The session may be gone; nobody is left to tell then.
        let _ = tx.blocking_send(Chunk::End(end));
    });
    Catchup { prefix: uuid, attempt, chunks }
}

fn read(prefix: &Prefix, after: Sequence, manner: &Manner, tx: &mpsc::Sender<Chunk>) -> Result<(), EngineError> {
    let Some(copy) = prefix.copy() else { return Ok(()) };
    let mut updates = copy.db.updates_after(after)?;
    let (mut packer, mut total, mut expected) = (Packer::default(), 0, after.next());
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
        if manner.durable_only && entry.last() > prefix.durable() {
            break;
        }
        expected = entry.last().next();
        packer.compress(manner.compress.load(Ordering::Relaxed));
        packer.add(&entry, manner.bundles);
        for parcel in packer.take() {
            total += parcel.raw;
            let last = parcel.last;
            if tx.blocking_send(Chunk::Parcel(parcel)).is_err() {
                return Ok(());
            }
            // What was added since is read again, by whoever goes on.
            if total >= TURN_BYTES || !matches!(prefix.ring().read(last, 1), RingRead::Older) {
                return Ok(());
            }
        }
    }
    packer.close();
    for parcel in packer.take() {
        if tx.blocking_send(Chunk::Parcel(parcel)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
