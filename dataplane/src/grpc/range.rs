//! Range reads: one snapshot, read on a blocking thread, streamed in pieces through a bounded channel.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use parovoz_dataplane_core::types::Sequence;
use parovoz_dataplane_core::value;
use parovoz_engine::{Direction, Family};
use parovoz_proto::v1;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_stream::Stream;
use tonic::Status;

use super::read;
use crate::clock;
use crate::store::Store;
use crate::store::prefix::Prefix;

/// A message is sent once it has reached this size; only a single large value makes a larger one.
const MESSAGE_BYTES: usize = 256 << 10;
/// Messages that wait for the client.
const MESSAGES: usize = 4;

type Item = Result<v1::RangeResponse, Status>;

/// The messages of one range; holds its place among the open ones.
#[derive(Debug)]
pub struct RangeStream {
    items: Receiver<Item>,
    _permit: OwnedSemaphorePermit,
}

impl Stream for RangeStream {
    type Item = Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        self.items.poll_recv(cx)
    }
}

/// Starts a range; nothing is sent before what it shows may be shown.
pub(super) async fn start(
    store: &Store,
    prefix: Arc<Prefix>,
    request: v1::RangeRequest,
    deadline: Instant,
    permit: OwnedSemaphorePermit,
) -> Result<RangeStream, Status> {
    let (items, receiver) = channel(MESSAGES);
    let (opened, sequence) = oneshot::channel();
    let (go, gone) = oneshot::channel();
    let reader = prefix.clone();
    tokio::task::spawn_blocking(move || scan(&reader, &request, opened, gone, &items));
    let sequence = timeout_at(deadline, sequence)
        .await
        .map_err(|_| Status::deadline_exceeded("range: no thread was free to read"))?
        .map_err(|_| Status::unavailable(format!("range: prefix {} has no open copy", prefix.name)))?;
    read::wait_released(store, &prefix, sequence, deadline).await?;
    // If the reader is gone, the stream tells.
    let _ = go.send(());
    Ok(RangeStream { items: receiver, _permit: permit })
}

fn scan(
    prefix: &Prefix,
    request: &v1::RangeRequest,
    opened: oneshot::Sender<Sequence>,
    go: oneshot::Receiver<()>,
    items: &Sender<Item>,
) {
    // Dropping `opened` says that there is no copy.
    let Some(copy) = prefix.copy() else { return };
    let snapshot = copy.db.snapshot();
    if opened.send(snapshot.sequence()).is_err() || go.blocking_recv().is_err() {
        return;
    }
    let now = clock::wall_ms();
    let direction = if request.reverse { Direction::Reverse } else { Direction::Forward };
    let mut left = if request.limit == 0 { u64::MAX } else { request.limit };
    let mut page = Vec::new();
    let mut bytes = 0;
    let mut broken = None;
    let mut each = |key: &[u8], stored: &[u8]| {
        let stored = match value::decode(stored) {
            Ok(stored) => stored,
            Err(e) => {
                broken = Some(e);
                return false;
            }
        };
        if stored.is_expired(now) {
            return !items.is_closed();
        }
        bytes += key.len() + stored.value.len() + 32;
        page.push(v1::KeyValue {
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(stored.value),
            expires_at_ms: stored.expires_at_ms.unwrap_or(0),
        });
        left -= 1;
        let mut open = true;
        if bytes >= MESSAGE_BYTES {
            bytes = 0;
            open = items.blocking_send(Ok(v1::RangeResponse { items: std::mem::take(&mut page) })).is_ok();
        }
        open && left > 0
    };
    let result = snapshot.scan(Family::Data, &request.from, &request.to, direction, &mut each);
    let end = match (result, broken) {
        (Err(e), _) => Err(Status::internal(format!("range: {e}"))),
        (Ok(()), Some(e)) => Err(Status::internal(format!("range: {e}"))),
        (Ok(()), None) if page.is_empty() => return,
        (Ok(()), None) => Ok(v1::RangeResponse { items: page }),
    };
    // The client may have gone.
    let _ = items.blocking_send(end);
}
