//! Range reads: one snapshot, read on a blocking thread, streamed in pieces as the client takes them.
//!
//! Memory: a stream keeps a few small messages, and there are at most so many streams. A value that makes a larger message is
//! copied only once it has its share of a budget that all ranges of a port have together.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parovoz_dataplane_core::types::Sequence;
use parovoz_dataplane_core::value;
use parovoz_engine::{Direction, Family};
use parovoz_proto::v1;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Response, Status};

use super::flow::{Flow, RangeStream};
use super::read;
use crate::clock;
use crate::store::Store;
use crate::store::prefix::Prefix;

/// A message is sent once it has reached this size; only a single large value makes a larger one.
const MESSAGE_BYTES: usize = 64 << 10;
/// Range streams that may be open on a port.
const OPEN_MAX: usize = 256;
/// KiB of larger messages that the streams of a port may keep.
const LARGE_KIB: usize = 64 << 10;
/// A client that takes nothing of what waits for it for so long loses its stream.
const UNREAD: Duration = Duration::from_secs(30);

/// The bounds of one port's ranges.
#[derive(Debug, Clone)]
pub(super) struct Ranges {
    open: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

impl Default for Ranges {
    fn default() -> Self {
        Self { open: Arc::new(Semaphore::new(OPEN_MAX)), large: Arc::new(Semaphore::new(LARGE_KIB)) }
    }
}

impl Ranges {
    /// Starts a range; nothing is sent before what it shows may be shown.
    pub(super) async fn start(
        &self,
        store: &Store,
        prefix: Arc<Prefix>,
        request: v1::RangeRequest,
        deadline: Instant,
    ) -> Result<Response<RangeStream>, Status> {
        let place = timeout_at(deadline, self.open.clone().acquire_owned())
            .await
            .map_err(|_| Status::resource_exhausted(format!("range: {OPEN_MAX} ranges are open already")))?
            .map_err(|_| Status::unavailable("range: the member is stopping"))?;
        let flow = Flow::new(place);
        let stream = RangeStream::new(flow.clone());
        let (opened, sequence) = oneshot::channel();
        let (go, gone) = oneshot::channel();
        let reader = Reader {
            prefix: prefix.clone(),
            flow: flow.clone(),
            large: self.large.clone(),
            runtime: Handle::current(),
        };
        tokio::task::spawn_blocking(move || reader.run(&request, opened, gone));
        let sequence = timeout_at(deadline, sequence)
            .await
            .map_err(|_| Status::deadline_exceeded("range: no thread was free to read"))?
            .map_err(|_| Status::unavailable(format!("range: prefix {} has no open copy", prefix.name)))?;
        read::wait_released(store, &prefix, sequence, deadline).await?;
        // If the reader is gone, the stream tells.
        let _ = go.send(());
        tokio::spawn(Flow::watch(Arc::downgrade(&flow), UNREAD));
        let mut response = Response::new(stream);
        response.extensions_mut().insert(flow);
        Ok(response)
    }
}

struct Reader {
    prefix: Arc<Prefix>,
    flow: Arc<Flow>,
    large: Arc<Semaphore>,
    runtime: Handle,
}

impl Reader {
    fn run(&self, request: &v1::RangeRequest, opened: oneshot::Sender<Sequence>, go: oneshot::Receiver<()>) {
        // Dropping `opened` says that there is no copy.
        let Some(copy) = self.prefix.copy() else { return };
        let snapshot = copy.db.snapshot();
        if opened.send(snapshot.sequence()).is_err() || go.blocking_recv().is_err() {
            return;
        }
        let direction = if request.reverse { Direction::Reverse } else { Direction::Forward };
        let mut left = if request.limit == 0 { u64::MAX } else { request.limit };
        let mut page = Page { reader: self, items: Vec::new(), bytes: 0 };
        let mut failed = None;
        let now = clock::wall_ms();
        let mut each = |key: &[u8], stored: &[u8]| match value::decode(stored) {
            Ok(stored) if stored.is_expired(now) => self.flow.is_open(),
            Ok(stored) => {
                left -= 1;
                match page.add(key, &stored) {
                    Ok(open) => open && left > 0,
                    Err(status) => {
                        failed = Some(status);
                        false
                    }
                }
            }
            Err(e) => {
                failed = Some(Status::internal(format!("range: {e}")));
                false
            }
        };
        let result = snapshot.scan(Family::Data, &request.from, &request.to, direction, &mut each);
        let end = match (result, failed) {
            (_, Some(status)) => Err(status),
            (Err(e), None) => Err(Status::internal(format!("range: {e}"))),
            (Ok(()), None) => {
                page.send();
                Ok(())
            }
        };
        self.flow.finish(end);
    }

    /// The share of a large message in the budget; waits for it, but not longer than unread streams keep theirs.
    fn share(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Status> {
        let kib = u32::try_from((bytes >> 10).clamp(1, LARGE_KIB)).unwrap_or(u32::MAX);
        let share = self.runtime.block_on(timeout(UNREAD, self.large.clone().acquire_many_owned(kib)));
        let text = "range: too many bytes of large values wait for clients that don't take them, try again";
        share.map_err(|_| Status::resource_exhausted(text))?.map_err(|_| Status::unavailable("the member is stopping"))
    }
}

/// A message that grows.
struct Page<'a> {
    reader: &'a Reader,
    items: Vec<v1::KeyValue>,
    bytes: usize,
}

impl Page<'_> {
    /// Adds a pair; answers whether somebody takes more.
    fn add(&mut self, key: &[u8], stored: &value::Stored<'_>) -> Result<bool, Status> {
        let bytes = key.len() + stored.value.len() + 32;
        let large = bytes > MESSAGE_BYTES;
        if large && !self.send() {
            return Ok(false);
        }
        let share = if large { Some(self.reader.share(bytes)?) } else { None };
        self.items.push(v1::KeyValue {
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(stored.value),
            expires_at_ms: stored.expires_at_ms.unwrap_or(0),
        });
        self.bytes += bytes;
        Ok(self.bytes < MESSAGE_BYTES || self.send_with(share))
    }

    fn send(&mut self) -> bool {
        self.items.is_empty() || self.send_with(None)
    }

    fn send_with(&mut self, share: Option<OwnedSemaphorePermit>) -> bool {
        self.bytes = 0;
        self.reader.flow.push(v1::RangeResponse { items: std::mem::take(&mut self.items) }, share)
    }
}
