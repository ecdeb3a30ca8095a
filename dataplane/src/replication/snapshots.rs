//! Snapshots of prefixes that other members copy from here: a checkpoint, and a hold on the WAL from its position on. Who
//! copies from another member and streams from this one has a snapshot without files here: the hold alone.
//!
//! Invariant: the hold is taken before the checkpoint and lives exactly as long as the snapshot is open; each read renews both.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use parovoz_dataplane_core::budget::TokenBucket;
use parovoz_dataplane_core::types::{DataUuid, Position, PrefixUuid};
use parovoz_proto::v1;
use tokio::sync::mpsc;
use tonic::Status;
use uuid::Uuid;

use super::ReplicationCtx;
use super::holds::{Hold, Owner};
use super::wire::{position_from, position_to, prefix_from};
use crate::clock;
use crate::store::prefix::{Copy, Prefix, PrefixPhase};

/// Bytes of one chunk: several files come at a time, and each chunk must within [`super::Tuning::silence`].
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks read ahead of the network.
const CHUNKS_AHEAD: usize = 16;
/// Snapshots that may be open at a time.
const MAX_OPEN: usize = 8;

#[derive(Debug)]
struct OpenSnapshot {
    id: Uuid,
    reader: DataUuid,
    prefix: PrefixUuid,
    prefix_name: String,
    sequence_offset: u64,
    held_after: Position,
    /// None of a hold alone.
    dir: Option<PathBuf>,
    files: Vec<v1::SnapshotFile>,
    expires_ms: AtomicU64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Snapshots {
    ctx: Arc<ReplicationCtx>,
    open: Mutex<HashMap<Uuid, Arc<OpenSnapshot>>>,
}

/// Why no snapshot was made.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("open snapshot: {0}")]
    Unavailable(&'static str),
    #[error("hold WAL after {after}: {why}")]
    NotHeld { after: Position, why: String },
    #[error("open snapshot: {0}")]
    Disk(#[from] std::io::Error),
    #[error("open snapshot: {0}")]
    Engine(#[from] parovoz_engine::EngineError),
}

impl From<OpenError> for Status {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Unavailable(_) => Self::unavailable(error.to_string()),
            OpenError::NotHeld { .. } => Self::out_of_range(error.to_string()),
            OpenError::Disk(_) | OpenError::Engine(_) => {
                tracing::error!(%error, "open snapshot for a follower");
                Self::internal(error.to_string())
            }
        }
    }
}

impl Snapshots {
    pub fn new(ctx: Arc<ReplicationCtx>) -> Self {
        Self { ctx, open: Mutex::default() }
    }

    /// Opens a snapshot, or answers the one that is open under the wanted identity.
    pub async fn open(&self, reader: DataUuid, request: &v1::OpenSnapshotRequest) -> Result<v1::Snapshot, Status> {
        let prefix = prefix_from(&request.prefix_uuid)?;
        if !request.snapshot_id.is_empty() {
            let snapshot = self.find(&request.snapshot_id)?;
            if snapshot.reader != reader || snapshot.prefix != prefix {
                return Err(Status::not_found("open snapshot: it was opened by another member or for another prefix"));
            }
            return Ok(self.message(&snapshot));
        }
        let present = self.ctx.store.prefix_by_uuid(prefix).filter(|p| !p.is_dropped());
        let present = present.ok_or_else(|| Status::unavailable("open snapshot: there is no such prefix here"))?;
        let kind = request.kind();
        if kind == v1::SnapshotKind::Position {
            // Of a copy that is not whole here nobody must take the position for the whole.
            let latest = complete(&self.ctx, &present).map(|_| present.position_at(present.applied()))?;
            return Ok(v1::Snapshot { latest: Some(position_to(latest)), ..v1::Snapshot::default() });
        }
        self.close_matching(|s| s.reader == reader && s.prefix == prefix).await;
        if self.open.lock().len() >= MAX_OPEN {
            return Err(Status::unavailable("open snapshot: too many are open"));
        }
        let (ctx, after) = (self.ctx.clone(), position_from(request.hold_after));
        let made = tokio::task::spawn_blocking(move || match kind {
            v1::SnapshotKind::Hold => hold(&ctx, &present, reader, after),
            v1::SnapshotKind::Files | v1::SnapshotKind::Position => make(&ctx, &present, reader),
        });
        let snapshot = Arc::new(made.await.map_err(|_| Status::internal("open snapshot: cut off"))??);
        let message = self.message(&snapshot);
        tracing::info!(reader = %reader, prefix = %snapshot.prefix_name, snapshot = %snapshot.id, held_after = %snapshot.held_after,
            "open snapshot");
        self.open.lock().insert(snapshot.id, snapshot);
        self.ctx.stats.snapshots_open.inc();
        Ok(message)
    }

    fn find(&self, id: &str) -> Result<Arc<OpenSnapshot>, Status> {
        let id = Uuid::parse_str(id).map_err(|_| Status::invalid_argument("find snapshot: not an identity"))?;
        let snapshot =
            self.open.lock().get(&id).cloned().ok_or_else(|| Status::not_found("find snapshot: it is not open"))?;
        self.renew(&snapshot)?;
        Ok(snapshot)
    }

    fn renew(&self, snapshot: &OpenSnapshot) -> Result<(), Status> {
        let expires_ms = self.ctx.hold_expiry_ms();
        // Without its hold a snapshot is worth nothing, whatever files are left.
        if !self.ctx.holds.lock().renew(&Owner::Snapshot(snapshot.id), expires_ms) {
            return Err(Status::not_found("renew snapshot: its hold ended"));
        }
        snapshot.expires_ms.store(expires_ms, Ordering::Release);
        Ok(())
    }

    fn message(&self, snapshot: &OpenSnapshot) -> v1::Snapshot {
        let latest = self.ctx.store.prefix_by_uuid(snapshot.prefix).map(|p| position_to(p.position_at(p.applied())));
        v1::Snapshot {
            latest,
            snapshot_id: snapshot.id.to_string(),
            prefix_uuid: snapshot.prefix.to_string(),
            prefix_name: snapshot.prefix_name.clone(),
            sequence_offset: snapshot.sequence_offset,
            held_after: Some(position_to(snapshot.held_after)),
            files: snapshot.files.clone(),
            hold_ms: self.ctx.store.settings.load().hold_timeout_seconds * 1000,
            hello: None,
        }
    }

    /// Reads one file from an offset; the chunks come through the channel.
    pub fn read(
        self: &Arc<Self>,
        request: v1::ReadFileRequest,
    ) -> Result<mpsc::Receiver<Result<v1::FileChunk, Status>>, Status> {
        let snapshot = self.find(&request.snapshot_id)?;
        let file = snapshot.files.iter().find(|f| f.name == request.name);
        let size = file.ok_or_else(|| Status::not_found("read file: the snapshot has no such file"))?.size;
        if request.offset > size {
            return Err(Status::out_of_range("read file: the offset is beyond its end"));
        }
        let (tx, rx) = mpsc::channel(CHUNKS_AHEAD);
        let snapshots = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(status) = snapshots.send_file(&snapshot, &request, size, &tx) {
                // The reader may be gone; it asks again then.
                let _ = tx.blocking_send(Err(status));
            }
        });
        Ok(rx)
    }

    fn send_file(
        &self,
        snapshot: &OpenSnapshot,
        request: &v1::ReadFileRequest,
        size: u64,
        tx: &mpsc::Sender<Result<v1::FileChunk, Status>>,
    ) -> Result<(), Status> {
        let fail = |e: std::io::Error| Status::internal(format!("read file: {e}"));
        let dir = snapshot.dir.as_ref().ok_or_else(|| Status::not_found("read file: the snapshot has no files"))?;
        let mut file = File::open(dir.join(&request.name)).map_err(fail)?;
        // The checksum of the whole file needs what the reader has already.
        let mut file_crc = crc_of(&mut file, request.offset).map_err(fail)?;
        file.seek(SeekFrom::Start(request.offset)).map_err(fail)?;
        let mut bucket = TokenBucket::new(request.max_bytes_per_second, clock::boot_ms());
        let mut offset = request.offset;
        loop {
            self.renew(snapshot)?;
            let len = CHUNK_BYTES.min(usize::try_from(size - offset).unwrap_or(CHUNK_BYTES));
            let mut data = vec![0; len];
            file.read_exact(&mut data).map_err(fail)?;
            let crc32c = crc32c::crc32c(&data);
            file_crc = crc32c::crc32c_combine(file_crc, crc32c, len);
            let last = offset + len as u64 == size;
            let data = Bytes::from(data);
            let chunk = v1::FileChunk { offset, data, crc32c, file_crc32c: last.then_some(file_crc) };
            std::thread::sleep(Duration::from_millis(bucket.take(len as u64, clock::boot_ms()).min(1000)));
            if tx.blocking_send(Ok(chunk)).is_err() {
                return Ok(());
            }
            self.ctx.stats.snapshot_bytes_sent.add(len as u64);
            offset += len as u64;
            if last {
                return Ok(());
            }
        }
    }

    /// Closes one; an unknown one is closed already.
    pub async fn close(&self, id: &str) {
        if let Ok(id) = Uuid::parse_str(id) {
            self.close_matching(|s| s.id == id).await;
        }
    }

    /// Closes those that nobody read for too long.
    pub async fn expire(&self, now_ms: u64) {
        self.close_matching(|s| s.expires_ms.load(Ordering::Acquire) <= now_ms).await;
    }

    /// Closes those of prefixes that `keep` does not know.
    pub async fn retain_prefixes(&self, keep: impl Fn(PrefixUuid) -> bool) {
        self.close_matching(|s| !keep(s.prefix)).await;
    }

    pub async fn close_all(&self) {
        self.close_matching(|_| true).await;
    }

    async fn close_matching(&self, wanted: impl Fn(&OpenSnapshot) -> bool) {
        let closed: Vec<Arc<OpenSnapshot>> = {
            let mut open = self.open.lock();
            open.extract_if(|_, s| wanted(s)).map(|(_, s)| s).collect()
        };
        for snapshot in closed {
            self.ctx.holds.lock().remove(&Owner::Snapshot(snapshot.id));
            self.ctx.stats.snapshots_open.dec();
            tracing::info!(prefix = %snapshot.prefix_name, snapshot = %snapshot.id, "close snapshot");
            let Some(dir) = snapshot.dir.clone() else { continue };
            // A panic in it was reported where it happened; what is left is removed at the next start.
            let _ = tokio::task::spawn_blocking(move || remove(&dir)).await;
        }
    }
}

fn remove(dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "remove checkpoint");
    }
}

/// The copy, if it is whole: only such a one is a source.
fn complete(ctx: &ReplicationCtx, prefix: &Prefix) -> Result<Arc<Copy>, OpenError> {
    let copy = prefix.copy().ok_or(OpenError::Unavailable("there is no copy of the prefix here"))?;
    if matches!(prefix.phase(), PrefixPhase::Bootstrapping | PrefixPhase::Stopped { .. }) || ctx.is_below_floor(prefix)
    {
        return Err(OpenError::Unavailable("the prefix is not complete here"));
    }
    Ok(copy)
}

/// Holds the WAL after a position of another member's copy, if that is in the history here and can still be streamed; blocks.
fn hold(ctx: &ReplicationCtx, prefix: &Prefix, reader: DataUuid, after: Position) -> Result<OpenSnapshot, OpenError> {
    let copy = complete(ctx, prefix)?;
    let refuse = |why: String| OpenError::NotHeld { after, why };
    let latest = prefix.position_at(prefix.applied());
    if after.sequence > latest.sequence {
        return Err(refuse(format!("this member is at {latest}")));
    }
    if prefix.position_at(after.sequence) != after {
        return Err(refuse(format!("here it is {}", prefix.position_at(after.sequence))));
    }
    // First the hold, then the look: what is there now stays.
    let open = hold_from(ctx, prefix, reader, &copy, after);
    let checked = copy.db.oldest_in_wal().map_err(OpenError::from).and_then(|oldest| {
        if oldest <= after.sequence.next() { Ok(()) } else { Err(refuse(format!("the oldest kept is {oldest}"))) }
    });
    checked.inspect_err(|_| ctx.holds.lock().remove(&Owner::Snapshot(open.id)))?;
    Ok(open)
}

/// Holds the WAL of a prefix after a position; a snapshot without files as yet.
fn hold_from(ctx: &ReplicationCtx, prefix: &Prefix, reader: DataUuid, copy: &Copy, after: Position) -> OpenSnapshot {
    let id = Uuid::new_v4();
    let expires_ms = ctx.hold_expiry_ms();
    let owner = Owner::Snapshot(id);
    ctx.holds.lock().put(Hold { owner, prefix: Some(prefix.uuid), after: after.sequence, expires_ms });
    OpenSnapshot {
        id,
        reader,
        prefix: prefix.uuid,
        prefix_name: prefix.name.to_string(),
        sequence_offset: copy.sequence_offset,
        held_after: after,
        dir: None,
        files: Vec::new(),
        expires_ms: AtomicU64::new(expires_ms),
    }
}

/// Makes the checkpoint; blocks.
fn make(ctx: &ReplicationCtx, prefix: &Prefix, reader: DataUuid) -> Result<OpenSnapshot, OpenError> {
    let copy = complete(ctx, prefix)?;
    let open = hold_from(ctx, prefix, reader, &copy, prefix.position_at(prefix.applied()));
    let dir = ctx.dirs.checkpoint_dir(&open.id.to_string());
    let made = dir.map_err(OpenError::from).and_then(|dir| match checkpoint(prefix, &copy, &dir) {
        Ok(files) => Ok((dir, files)),
        Err(error) => {
            remove(&dir);
            Err(error)
        }
    });
    let (dir, files) = made.inspect_err(|_| ctx.holds.lock().remove(&Owner::Snapshot(open.id)))?;
    Ok(OpenSnapshot { dir: Some(dir), files, ..open })
}

fn checkpoint(prefix: &Prefix, copy: &Arc<Copy>, dir: &Path) -> Result<Vec<v1::SnapshotFile>, OpenError> {
    copy.db.checkpoint(dir)?;
    // What the checkpoint shows must not be lost here while it lives on elsewhere.
    prefix.sync()?;
    if !prefix.copy().is_some_and(|now| Arc::ptr_eq(&now, copy)) {
        return Err(OpenError::Unavailable("the copy was exchanged meanwhile"));
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            files.push(v1::SnapshotFile { name, size: metadata.len() });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// CRC32C of the first `len` bytes of a file.
pub(super) fn crc_of(file: &mut File, len: u64) -> std::io::Result<u32> {
    file.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let (mut crc, mut left) = (0, len);
    while left > 0 {
        let n = CHUNK_BYTES.min(usize::try_from(left).unwrap_or(CHUNK_BYTES));
        file.read_exact(&mut buffer[..n])?;
        crc = crc32c::crc32c_append(crc, &buffer[..n]);
        left -= n as u64;
    }
    Ok(crc)
}
