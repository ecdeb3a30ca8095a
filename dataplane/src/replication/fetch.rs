//! Fetches the files of a snapshot: in chunks with checksums, from where an earlier attempt ended.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use parovoz_dataplane_core::budget::TokenBucket;
use parovoz_proto::v1;
use parovoz_proto::v1::replication_client::ReplicationClient;
use tokio::sync::mpsc;
use tonic::transport::Channel;

use super::bootstrap::BootstrapError;
use super::progress::Meter;
use super::snapshots::crc_of;
use super::staging::Todo;
use super::stats::ReplicationStats;
use crate::clock;
use crate::config::Settings;

/// Chunks between the network and the disk.
const CHUNKS_AHEAD: usize = 32;
/// So soon a changed limit is obeyed by a copy under way.
const LIMIT_READ_EVERY: Duration = Duration::from_millis(500);

/// What the fetches of one bootstrap share.
#[derive(Debug, Clone)]
pub(super) struct Fetcher<'a> {
    pub client: ReplicationClient<Channel>,
    pub snapshot_id: String,
    pub silence: Duration,
    pub settings: &'a ArcSwap<Settings>,
    pub bucket: Arc<Mutex<TokenBucket>>,
    pub meter: Arc<Meter>,
    pub stats: &'a ReplicationStats,
}

impl Fetcher<'_> {
    /// Brings one file here; answers its checksum.
    pub async fn file(&self, name: &str, size: u64, path: PathBuf, todo: Todo) -> Result<u32, BootstrapError> {
        match todo {
            Todo::Done(crc) => Ok(crc),
            Todo::Compare(crc) => {
                if self.transfer(name, size, path.clone(), Some((size, crc))).await? == Outcome::Same {
                    return Ok(crc);
                }
                self.anew(name, size, path).await
            }
            Todo::Fetch => {
                let here = path.clone();
                let known = blocking(move || known_part(&here, size)).await?;
                match self.transfer(name, size, path.clone(), known).await? {
                    Outcome::Whole(crc) => Ok(crc),
                    Outcome::Same => known.map(|(_, crc)| crc).ok_or(BootstrapError::Checksum(name.to_owned())),
                    Outcome::Differs if known.is_some() => self.anew(name, size, path).await,
                    Outcome::Differs => Err(BootstrapError::Checksum(name.to_owned())),
                }
            }
        }
    }

    /// From the first byte on, whatever is here.
    async fn anew(&self, name: &str, size: u64, path: PathBuf) -> Result<u32, BootstrapError> {
        match self.transfer(name, size, path, None).await? {
            Outcome::Whole(crc) => Ok(crc),
            Outcome::Same | Outcome::Differs => Err(BootstrapError::Checksum(name.to_owned())),
        }
    }

    /// Fetches what is missing behind `known` (length and checksum of what is here).
    async fn transfer(
        &self,
        name: &str,
        size: u64,
        path: PathBuf,
        known: Option<(u64, u32)>,
    ) -> Result<Outcome, BootstrapError> {
        let (offset, crc) = known.unwrap_or((0, 0));
        let request = v1::ReadFileRequest {
            snapshot_id: self.snapshot_id.clone(),
            name: name.to_owned(),
            offset,
            max_bytes_per_second: 0,
        };
        let mut chunks = self.client.clone().read_file(request).await?.into_inner();
        let (tx, rx) = mpsc::channel(CHUNKS_AHEAD);
        let file = name.to_owned();
        let writer = tokio::task::spawn_blocking(move || write_chunks(&file, &path, offset, crc, rx));
        let mut at = offset;
        loop {
            let chunk =
                tokio::time::timeout(self.silence, chunks.message()).await.map_err(|_| BootstrapError::Silent)?;
            let Some(chunk) = chunk? else { break };
            let len = chunk.data.len() as u64;
            self.bucket.lock().take(len, clock::boot_ms());
            self.meter.add(len);
            self.stats.bootstrap_bytes_received.add(len);
            at += len;
            if at > size || tx.send(chunk).await.is_err() {
                break;
            }
            self.obey_limit().await;
        }
        drop(tx);
        let outcome = writer.await.map_err(|_| BootstrapError::CutOff)?;
        if matches!(outcome, Err(BootstrapError::Checksum(_)) | Ok(Outcome::Differs)) {
            self.stats.crc_errors.inc();
        }
        outcome
    }

    /// Waits until what was received is within the limit, whatever that has become meanwhile.
    async fn obey_limit(&self) {
        loop {
            let (limit, now_ms) = (self.settings.load().bootstrap_max_bytes_per_second, clock::boot_ms());
            let wait_ms = self.bucket.lock().wait_at(limit, now_ms);
            if wait_ms == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(wait_ms).min(LIMIT_READ_EVERY)).await;
        }
    }
}

/// How a transfer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Written to the end; the checksum is right.
    Whole(u32),
    /// Nothing was missing and the checksum is right.
    Same,
    /// The checksum of the whole is not what the source says; the file was removed.
    Differs,
}

/// Length and checksum of what is here of a file; `None` if nothing is.
fn known_part(path: &PathBuf, size: u64) -> Result<Option<(u64, u32)>, BootstrapError> {
    let Ok(mut file) = File::open(path) else { return Ok(None) };
    let len = file.metadata()?.len().min(size);
    if len == 0 {
        return Ok(None);
    }
    Ok(Some((len, crc_of(&mut file, len)?)))
}

/// Checks and writes chunks as they come; syncs at the end.
fn write_chunks(
    name: &str,
    path: &PathBuf,
    offset: u64,
    crc: u32,
    mut chunks: mpsc::Receiver<v1::FileChunk>,
) -> Result<Outcome, BootstrapError> {
    let mut file = File::options().create(true).write(true).truncate(false).open(path)?;
    file.set_len(offset)?;
    file.seek(SeekFrom::Start(offset))?;
    let (mut at, mut crc) = (offset, crc);
    while let Some(chunk) = chunks.blocking_recv() {
        if chunk.offset != at || crc32c::crc32c(&chunk.data) != chunk.crc32c {
            return Err(BootstrapError::Checksum(name.to_owned()));
        }
        file.write_all(&chunk.data)?;
        at += chunk.data.len() as u64;
        crc = crc32c::crc32c_combine(crc, chunk.crc32c, chunk.data.len());
        let Some(whole) = chunk.file_crc32c else { continue };
        if whole != crc {
            drop(file);
            fs::remove_file(path)?;
            return Ok(Outcome::Differs);
        }
        file.sync_all()?;
        return Ok(if at == offset && offset > 0 { Outcome::Same } else { Outcome::Whole(crc) });
    }
    Err(BootstrapError::CutOff)
}

/// Runs something that blocks on the disk.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BootstrapError> + Send + 'static,
) -> Result<T, BootstrapError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| BootstrapError::CutOff)?
}
