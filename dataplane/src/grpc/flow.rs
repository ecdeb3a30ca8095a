//! What a range has read and its client has not taken: bounded in bytes, and given back when the client takes nothing for too
//! long, though its connection lives and its stream stays open.
//!
//! Nobody polls the body of a client that does not read, so what is kept for it must be within reach of others: messages that
//! wait, the rest of the one that is being sent, and the body itself with its buffers stand here. HTTP/2 gets pieces, each a
//! copy of its own, so that a piece that is stuck there does not keep a large message alive.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use hyper::body::Frame;
use parking_lot::{Condvar, Mutex};
use parovoz_proto::v1;
use tokio::sync::OwnedSemaphorePermit;
use tokio_stream::Stream;
use tonic::Status;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

/// Messages that wait for the client.
const MESSAGES: usize = 2;
/// What is handed to HTTP/2 at a time.
const PIECE: usize = 32 << 10;

type Message = (v1::RangeResponse, Option<OwnedSemaphorePermit>);

#[derive(Debug)]
struct State {
    waiting: VecDeque<Message>,
    /// The share of the budget of the message that is being sent.
    in_hand: Option<OwnedSemaphorePermit>,
    /// What is left of it.
    rest: Bytes,
    /// The reader is done.
    end: Option<Result<(), Status>>,
    /// Why the rest is not sent.
    given_up: Option<Status>,
    /// Nobody is there any more.
    gone: bool,
    /// The place among the open ranges.
    place: Option<OwnedSemaphorePermit>,
    /// Since when something waits that the client could have taken.
    untaken_since: Option<Instant>,
    waker: Option<Waker>,
}

/// See the module.
pub(super) struct Flow {
    state: Mutex<State>,
    room: Condvar,
    /// The encoded messages.
    body: Mutex<Option<tonic::body::Body>>,
}

impl std::fmt::Debug for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flow").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Flow {
    pub(super) fn new(place: OwnedSemaphorePermit) -> Arc<Self> {
        let state = State {
            waiting: VecDeque::new(),
            in_hand: None,
            rest: Bytes::new(),
            end: None,
            given_up: None,
            gone: false,
            place: Some(place),
            untaken_since: None,
            waker: None,
        };
        Arc::new(Self { state: Mutex::new(state), room: Condvar::new(), body: Mutex::new(None) })
    }

    /// Adds a message once there is room, with its share of a budget; false = nobody will take it.
    pub(super) fn push(&self, message: v1::RangeResponse, share: Option<OwnedSemaphorePermit>) -> bool {
        let mut state = self.state.lock();
        while state.is_open() && state.waiting.len() >= MESSAGES {
            self.room.wait(&mut state);
        }
        if state.is_open() {
            state.waiting.push_back((message, share));
            state.news();
        }
        state.is_open()
    }

    /// Nothing more comes.
    pub(super) fn finish(&self, end: Result<(), Status>) {
        let mut state = self.state.lock();
        state.end = Some(end);
        state.news();
    }

    /// Whether somebody may still take messages.
    pub(super) fn is_open(&self) -> bool {
        self.state.lock().is_open()
    }

    /// Gives back what is kept for a client that has taken nothing for `patience`; answers whether this ended.
    fn give_up_after(&self, patience: Duration) -> bool {
        let mut state = self.state.lock();
        if !state.is_open() {
            return true;
        }
        if state.untaken_since.is_none_or(|since| since.elapsed() < patience) {
            return false;
        }
        let text = format!("range: the client took nothing for {patience:?}; begin again after the last key");
        state.given_up = Some(Status::aborted(text));
        state.let_go();
        let waker = state.waker.take();
        drop(state);
        self.room.notify_all();
        // After the lock: the body holds the stream, which takes it when it is dropped.
        drop(self.body.lock().take());
        waker.into_iter().for_each(Waker::wake);
        true
    }

    fn leave(&self) {
        let mut state = self.state.lock();
        state.gone = true;
        state.let_go();
        drop(state);
        self.room.notify_all();
    }

    /// Ends the range once its client takes nothing for `patience`.
    pub(super) async fn watch(flow: Weak<Self>, patience: Duration) {
        loop {
            tokio::time::sleep(patience / 8).await;
            if flow.upgrade().is_none_or(|flow| flow.give_up_after(patience)) {
                return;
            }
        }
    }
}

impl State {
    fn is_open(&self) -> bool {
        !self.gone && self.given_up.is_none()
    }

    fn news(&mut self) {
        self.untaken_since.get_or_insert_with(Instant::now);
        self.waker.take().into_iter().for_each(Waker::wake);
    }

    fn let_go(&mut self) {
        self.waiting.clear();
        self.rest = Bytes::new();
        self.in_hand = None;
        self.place = None;
    }
}

/// The messages of one range.
#[derive(Debug)]
pub struct RangeStream {
    flow: Arc<Flow>,
}

impl RangeStream {
    pub(super) fn new(flow: Arc<Flow>) -> Self {
        Self { flow }
    }
}

impl Stream for RangeStream {
    type Item = Result<v1::RangeResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.flow.state.lock();
        // The message before was sent as far as HTTP/2 lets us.
        state.in_hand = None;
        if let Some((message, share)) = state.waiting.pop_front() {
            state.in_hand = share;
            self.flow.room.notify_all();
            return Poll::Ready(Some(Ok(message)));
        }
        if let Some(status) = state.given_up.clone() {
            return Poll::Ready(Some(Err(status)));
        }
        match state.end.replace(Ok(())) {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(status)) => Poll::Ready(Some(Err(status))),
            None => {
                state.end = None;
                state.untaken_since = None;
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for RangeStream {
    fn drop(&mut self) {
        self.flow.leave();
    }
}

/// The body of a range's response.
struct Pieces {
    flow: Arc<Flow>,
    ended: bool,
}

impl Pieces {
    /// The next piece of a message under way, or the end of what was given up.
    fn piece(&mut self) -> Option<Frame<Bytes>> {
        let mut state = self.flow.state.lock();
        if let Some(status) = &state.given_up {
            self.ended = true;
            let mut trailers = http::HeaderMap::new();
            // A message that is no header value can't come from here.
            let _ = status.add_header(&mut trailers);
            return Some(Frame::trailers(trailers));
        }
        if state.rest.is_empty() {
            return None;
        }
        state.untaken_since = Some(Instant::now());
        let len = state.rest.len().min(PIECE);
        let piece = Bytes::copy_from_slice(&state.rest[..len]);
        state.rest.advance(len);
        if state.rest.is_empty() {
            state.rest = Bytes::new();
        }
        Some(Frame::data(piece))
    }
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            if let Some(frame) = self.piece() {
                return Poll::Ready(Some(Ok(frame)));
            }
            let flow = self.flow.clone();
            let mut body = flow.body.lock();
            let Some(inner) = body.as_mut() else {
                drop(body);
                if flow.state.lock().given_up.is_none() {
                    return Poll::Ready(None);
                }
                // The next look tells why.
                continue;
            };
            match Pin::new(inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => flow.state.lock().rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return other,
            }
        }
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.flow.leave();
        // The body holds the stream, and that this: nobody else breaks the ring.
        let body = self.flow.body.lock().take();
        drop(body);
    }
}

/// A service whose responses to ranges are sent in pieces, and end when they are not taken.
#[derive(Debug, Clone)]
pub struct Paced<S>(pub S);

impl<S: NamedService> NamedService for Paced<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<tonic::body::Body>> for Paced<S>
where
    S: Service<http::Request<tonic::body::Body>, Response = http::Response<tonic::body::Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let response = self.0.call(request);
        Box::pin(async move {
            let mut response = response.await?;
            let Some(flow) = response.extensions_mut().remove::<Arc<Flow>>() else { return Ok(response) };
            Ok(response.map(|body| {
                *flow.body.lock() = Some(body);
                tonic::body::Body::new(Pieces { flow, ended: false })
            }))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::sync::Semaphore;

    use super::*;

    fn message(bytes: usize) -> v1::RangeResponse {
        let item = v1::KeyValue { key: Bytes::new(), value: vec![7; bytes].into(), expires_at_ms: 0 };
        v1::RangeResponse { items: vec![item] }
    }

    async fn flow() -> (Arc<Flow>, Arc<Semaphore>) {
        let places = Arc::new(Semaphore::new(1));
        (Flow::new(places.clone().acquire_owned().await.unwrap()), places)
    }

    #[tokio::test]
    async fn what_nobody_takes_is_given_back_and_the_client_learns_why() {
        let (flow, places) = flow().await;
        let budget = Arc::new(Semaphore::new(10));
        let share = budget.clone().acquire_many_owned(6).await.unwrap();
        let mut stream = RangeStream::new(flow.clone());
        assert!(flow.push(message(10), Some(share)) && flow.push(message(10), None));
        let reader = flow.clone();
        let blocked = std::thread::spawn(move || reader.push(message(10), None));
        assert!(!flow.give_up_after(Duration::from_secs(60)));
        assert_eq!((places.available_permits(), budget.available_permits()), (0, 4));
        assert!(flow.give_up_after(Duration::ZERO));
        assert_eq!((places.available_permits(), budget.available_permits()), (1, 10));
        assert!(!blocked.join().unwrap(), "the reader ends");
        let item = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await;
        let status = item.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::Aborted);
    }

    #[tokio::test]
    async fn a_client_that_waits_for_the_reader_is_not_given_up() {
        let (flow, places) = flow().await;
        let mut stream = RangeStream::new(flow.clone());
        let mut next = std::pin::pin!(std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)));
        assert!(std::future::poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx).is_pending())).await);
        assert!(!flow.give_up_after(Duration::ZERO));
        assert!(flow.push(message(10), None));
        assert_eq!(next.await.unwrap().unwrap(), message(10));
        drop(stream);
        assert!(!flow.push(message(1), None), "nobody is there");
        assert_eq!(places.available_permits(), 1);
    }
}
