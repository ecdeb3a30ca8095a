//! The replication port: streams to followers, acknowledgements, snapshots.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::Stream;
use parovoz_dataplane_core::acks::SessionId;
use parovoz_dataplane_core::follower::{PeerHello, check_follower};
use parovoz_dataplane_core::types::{DataUuid, Reign, ReignRef};
use parovoz_proto::v1;
use parovoz_proto::v1::follower_message::Message as FromFollower;
use parovoz_proto::v1::replication_server::{Replication, ReplicationServer};
use parovoz_proto::v1::upstream_message::Message as ToFollower;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::ReplicationCtx;
use super::sender::{Control, Link, Sender};
use super::snapshots::Snapshots;
use super::wire::{self, hello_from, hello_to, latest_from, position_from, prefix_from, reign_ref_from, reign_ref_to};
use crate::clock;

/// Frames that may wait for the network; their bytes are bounded by the follower's credit.
const FRAME_QUEUE: usize = 64;
/// Beats that may wait.
const QUEUE: usize = 8;
/// Resumes and the like that may wait: one per prefix and some.
const CONTROL_QUEUE: usize = 4096;
/// Bytes that may be under way on one connection, and on one stream of it.
const CONNECTION_WINDOW: u32 = 16 << 20;
const STREAM_WINDOW: u32 = 8 << 20;
/// How long streams may take to end when the process stops.
const GRACE: Duration = Duration::from_secs(2);
/// Reports for acknowledgements are at least this far apart.
const REPORT_PAUSE: Duration = Duration::from_millis(500);

/// Why the replication port can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The left-over checkpoints can't be removed.
    #[error("clear checkpoints: {0}")]
    Checkpoints(#[from] std::io::Error),
    /// The server ended.
    #[error("serve replication port: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves followers until `stop`.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(ctx: Arc<ReplicationCtx>, listener: TcpListener, stop: CancellationToken) -> Result<(), ServeError> {
    ctx.dirs.clear_checkpoints()?;
    let snapshots = Arc::new(Snapshots::new(ctx.clone()));
    let keeper = tokio::spawn(keep_house(ctx.clone(), snapshots.clone(), stop.clone()));
    let service = ReplicationServer::new(Service { ctx, snapshots: snapshots.clone() });
    // Nagle's algorithm would hold small frames back.
    let incoming = TcpListenerStream::new(listener);
    let served = tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(service)
        .serve_with_incoming_shutdown(NoDelay(incoming), stop.clone().cancelled_owned());
    let grace_is_over = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    let served = tokio::select! {
        served = served => served,
        // A peer that takes nothing must not keep the process.
        () = grace_is_over => Ok(()),
    };
    stop.cancel();
    // It ends by itself on `stop`; a panic in it was reported where it happened.
    let _ = keeper.await;
    snapshots.close_all().await;
    Ok(served?)
}

/// Sets TCP_NODELAY on what a listener accepts: tonic does so only for listeners of its own.
struct NoDelay(TcpListenerStream);

impl Stream for NoDelay {
    type Item = std::io::Result<tokio::net::TcpStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Self::Item>> {
        let next = std::task::ready!(Pin::new(&mut self.0).poll_next(cx));
        if let Some(Ok(stream)) = &next
            && let Err(error) = stream.set_nodelay(true)
        {
            tracing::debug!(%error, "set TCP_NODELAY");
        }
        std::task::Poll::Ready(next)
    }
}

/// Once a second: samples for lag, ends of holds and snapshots.
async fn keep_house(ctx: Arc<ReplicationCtx>, snapshots: Arc<Snapshots>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut was_primary = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return ctx.store.cut_streams(),
            _ = tick.tick() => {}
        }
        let now_ms = clock::boot_ms();
        ctx.holds.lock().expire(now_ms);
        snapshots.expire(now_ms).await;
        let role = ctx.store.role();
        let prefixes = ctx.store.prefixes();
        // Nobody copies what was dropped.
        snapshots.retain_prefixes(|p| prefixes.by_uuid.contains_key(&p)).await;
        ctx.holds.lock().retain_prefixes(|p| prefixes.by_uuid.contains_key(&p));
        let mut acks = ctx.acks.lock();
        if role.is_primary {
            acks.retain_prefixes(|p| prefixes.by_uuid.contains_key(&p));
            if let Some(reign) = &role.reign {
                acks.retain_members(reign);
            }
            for prefix in prefixes.by_uuid.values() {
                acks.sample(prefix.uuid, now_ms, prefix.applied(), prefix.bytes_total());
            }
        } else if was_primary {
            acks.clear();
        }
        was_primary = role.is_primary;
    }
}

#[derive(Debug)]
struct Service {
    ctx: Arc<ReplicationCtx>,
    snapshots: Arc<Snapshots>,
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    /// See [`admit`].
    fn admit(&self, hello: Option<&v1::Hello>) -> Result<Admitted, Status> {
        admit(&self.ctx, hello)
    }
}

/// A follower whose hello was checked.
#[derive(Debug)]
pub(super) struct Admitted {
    pub peer: PeerHello,
    /// What this member serves it under.
    pub reign: ReignRef,
    /// The whole of it; `None` = this member is only sealed, and completes others that are sealed for the same.
    pub whole: Option<Reign>,
}

/// Checks a follower's hello. A sealed member serves only who is sealed for exactly the same reign.
pub(super) fn admit(ctx: &ReplicationCtx, hello: Option<&v1::Hello>) -> Result<Admitted, Status> {
    let peer = hello_from(hello.ok_or(wire::WireError::Missing("hello"))?)?;
    let own = ctx.own(None);
    let refusal = match check_follower(&own, &peer) {
        Ok(reign) => {
            let role = ctx.store.role();
            let whole = role.reign.clone().filter(|r| r.to_ref() == reign && role.sealed.is_none());
            return match whole {
                None if role.sealed != Some(reign) => Err(Status::unavailable("the reign of this member is changing")),
                None if peer.reign != Some(reign) => {
                    Err(Status::unavailable("this member is sealed, and serves only who is sealed for the same reign"))
                }
                whole => Ok(Admitted { peer, reign, whole }),
            };
        }
        Err(refusal) => refusal,
    };
    tracing::warn!(peer = %peer.data_uuid, error = %refusal, "refuse a follower");
    if refusal.is_transient() {
        Err(Status::unavailable(refusal.to_string()))
    } else {
        Err(Status::failed_precondition(refusal.to_string()))
    }
}

/// The first message of a stream, within the time for connecting.
async fn first<T>(ctx: &ReplicationCtx, stream: &mut Streaming<T>) -> Result<T, Status> {
    tokio::time::timeout(ctx.tuning.connect, stream.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no hello came"))??
        .ok_or_else(|| Status::invalid_argument("the stream ended before its hello"))
}

#[tonic::async_trait]
impl Replication for Service {
    type StreamStream = Out<v1::UpstreamMessage>;
    type AcknowledgeStream = Out<v1::PrimaryBeat>;
    type ReadFileStream = Out<v1::FileChunk>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::FollowerMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let mut incoming = request.into_inner();
        let hello = match first(&self.ctx, &mut incoming).await?.message {
            Some(FromFollower::Hello(hello)) => hello,
            _ => return Err(wire::WireError::Missing("hello").into()),
        };
        // Before the check: a promise that is made in between ends the stream.
        let token = self.ctx.store.stream_token();
        let Admitted { peer, reign, whole } = self.admit(Some(&hello))?;
        let (out, receiver) = mpsc::channel(FRAME_QUEUE);
        let mut own = self.ctx.own(Some(peer.data_uuid));
        own.reign = Some(reign);
        let answer = v1::UpstreamMessage { message: Some(ToFollower::Hello(hello_to(&own, whole.as_ref()))) };
        // The channel is new and empty.
        let _ = out.try_send(Ok(answer));
        let link = Arc::new(Link::default());
        let (to_sender, control) = mpsc::channel(CONTROL_QUEUE);
        tracing::info!(follower = %peer.data_uuid, epoch = %reign.epoch, "begin stream");
        let ended = CancellationToken::new();
        tokio::spawn(read_follower(incoming, link.clone(), to_sender, ended.clone()));
        let mut sender = Sender::new(self.ctx.clone(), &peer, reign, out, control, link, token);
        sender.told = own.path;
        let ctx = self.ctx.clone();
        tokio::spawn(async move {
            ctx.stats.followers.inc();
            sender.run().await;
            ctx.stats.followers.dec();
            ended.cancel();
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn acknowledge(
        &self,
        request: Request<Streaming<v1::MemberBeat>>,
    ) -> Result<Response<Self::AcknowledgeStream>, Status> {
        let mut incoming = request.into_inner();
        let beat = first(&self.ctx, &mut incoming).await?;
        let stop = self.ctx.store.stream_token();
        let Admitted { peer, whole, .. } = self.admit(beat.hello.as_ref())?;
        let Some(reign) = whole.filter(|_| self.ctx.store.role().is_primary) else {
            return Err(Status::failed_precondition("take acknowledgements: this member is not the primary"));
        };
        let session = self.ctx.acks.lock().begin_session(peer.data_uuid);
        let (out, receiver) = mpsc::channel(QUEUE);
        let taker =
            AckTaker { ctx: self.ctx.clone(), member: peer.data_uuid, session, reign, reported: Instant::now(), stop };
        tokio::spawn(taker.run(beat, incoming, out));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn open_snapshot(&self, request: Request<v1::OpenSnapshotRequest>) -> Result<Response<v1::Snapshot>, Status> {
        let request = request.into_inner();
        let Admitted { peer, reign, whole } = self.admit(request.hello.as_ref())?;
        let mut own = self.ctx.own(Some(peer.data_uuid));
        own.reign = Some(reign);
        let mut snapshot = self.snapshots.open(peer.data_uuid, &request).await?;
        snapshot.hello = Some(hello_to(&own, whole.as_ref()));
        Ok(Response::new(snapshot))
    }

    async fn read_file(&self, request: Request<v1::ReadFileRequest>) -> Result<Response<Self::ReadFileStream>, Status> {
        let chunks = self.snapshots.read(request.into_inner())?;
        Ok(Response::new(Box::pin(ReceiverStream::new(chunks))))
    }

    async fn close_snapshot(
        &self,
        request: Request<v1::CloseSnapshotRequest>,
    ) -> Result<Response<v1::CloseSnapshotResponse>, Status> {
        self.snapshots.close(&request.into_inner().snapshot_id).await;
        Ok(Response::new(v1::CloseSnapshotResponse {}))
    }
}

/// Takes a follower's messages off the wire at once, so that neither side waits for the other.
async fn read_follower(
    mut incoming: Streaming<v1::FollowerMessage>,
    link: Arc<Link>,
    to_sender: mpsc::Sender<Control>,
    ended: CancellationToken,
) {
    loop {
        let message = tokio::select! {
            () = ended.cancelled() => return,
            message = incoming.message() => message,
        };
        let control = match message {
            Ok(Some(message)) => read_message(message, &link),
            Ok(None) => return,
            Err(error) => return tracing::debug!(%error, "read from follower"),
        };
        match control {
            Ok(None) => {}
            Ok(Some(control)) => {
                if to_sender.send(control).await.is_err() {
                    return;
                }
            }
            Err(error) => return tracing::warn!(%error, "read from follower"),
        }
    }
}

fn read_message(message: v1::FollowerMessage, link: &Link) -> Result<Option<Control>, wire::WireError> {
    match message.message.ok_or(wire::WireError::Missing("message"))? {
        FromFollower::Hello(_) => Err(wire::WireError::Malformed("a second hello")),
        FromFollower::Resume(r) => Ok(Some(Control::Resume {
            prefix: prefix_from(&r.prefix_uuid)?,
            after: position_from(r.after),
            attempt: r.attempt,
        })),
        FromFollower::CancelPrefixUuid(prefix) => Ok(Some(Control::Cancel(prefix_from(&prefix)?))),
        FromFollower::Credit(credit) => {
            link.credit.fetch_add(i64::try_from(credit.bytes).unwrap_or(i64::MAX / 2), Ordering::AcqRel);
            if credit.probe > 0 {
                link.applier_idle_permille.store(credit.applier_idle_permille, Ordering::Relaxed);
                link.probe.store(credit.probe, Ordering::Release);
            }
            link.signal.wake();
            let durable = latest_from(&credit.durable)?;
            Ok(if durable.is_empty() { None } else { Some(Control::Durable(durable)) })
        }
    }
}

/// One member's acknowledgements.
#[derive(Debug)]
struct AckTaker {
    ctx: Arc<ReplicationCtx>,
    member: DataUuid,
    session: SessionId,
    reign: Reign,
    reported: Instant,
    stop: CancellationToken,
}

impl AckTaker {
    async fn run(
        mut self,
        first: v1::MemberBeat,
        mut incoming: Streaming<v1::MemberBeat>,
        out: mpsc::Sender<Result<v1::PrimaryBeat, Status>>,
    ) {
        tracing::info!(member = %self.member, "begin acknowledgements");
        if let Err(status) = self.stream(first, &mut incoming, &out).await {
            tracing::info!(member = %self.member, error = status.message(), "end acknowledgements");
            // The member may be gone already.
            let _ = out.try_send(Err(status));
        }
        self.ctx.acks.lock().end_session(self.member, self.session);
        self.ctx.store.note_change();
    }

    async fn stream(
        &mut self,
        first: v1::MemberBeat,
        incoming: &mut Streaming<v1::MemberBeat>,
        out: &mpsc::Sender<Result<v1::PrimaryBeat, Status>>,
    ) -> Result<(), Status> {
        let stop = self.stop.clone();
        let mut own = self.ctx.own(Some(self.member));
        own.reign = Some(self.reign.to_ref());
        self.answer(out, Some(hello_to(&own, None))).await?;
        self.take(&first)?;
        let mut beat = tokio::time::interval(self.ctx.tuning.pulse);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Err(Status::unavailable("this member stops, or promised another reign")),
                message = incoming.message() => {
                    let message = message?.ok_or_else(|| Status::unavailable("the member closed its stream"))?;
                    self.take(&message)?;
                }
                _ = beat.tick() => self.answer(out, None).await?,
            }
        }
    }

    async fn answer(
        &self,
        out: &mpsc::Sender<Result<v1::PrimaryBeat, Status>>,
        hello: Option<v1::Hello>,
    ) -> Result<(), Status> {
        self.check_role()?;
        // A hello goes out in any case; without a working disk it carries no beat.
        let beat = self.ctx.member.beat().filter(|beat| beat.reign == self.reign.to_ref());
        if beat.is_none() && hello.is_none() {
            return Ok(());
        }
        let beat = v1::PrimaryBeat {
            hello,
            reign: Some(reign_ref_to(self.reign.to_ref())),
            sent_at_ms: beat.map_or(0, |beat| beat.sent_at_ms),
            serving: beat.is_some_and(|beat| beat.serving),
        };
        match tokio::time::timeout(self.ctx.tuning.send_deadline, out.send(Ok(beat))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::unavailable("the member closed its stream")),
            Err(_) => Err(Status::deadline_exceeded("the member took nothing for too long")),
        }
    }

    fn check_role(&self) -> Result<(), Status> {
        let role = self.ctx.store.role();
        if role.is_primary && role.reign.as_ref() == Some(&self.reign) {
            Ok(())
        } else {
            Err(Status::unavailable("this member leads another reign or none"))
        }
    }

    fn take(&mut self, beat: &v1::MemberBeat) -> Result<(), Status> {
        self.check_role()?;
        let reign: ReignRef = reign_ref_from(beat.reign.as_ref().ok_or(wire::WireError::Missing("reign"))?)?;
        if reign != self.reign.to_ref() {
            return Err(Status::failed_precondition("the member acknowledges under another reign"));
        }
        if beat.promise_for_ms > 0 {
            self.ctx.member.echoed(self.member, reign, beat.promise_for_ms);
        }
        self.ctx.stats.acks_received.inc();
        if let Some(rate) = beat.bytes_per_second {
            self.ctx.acks.lock().note_rate(self.session, self.member, rate);
        }
        let required = self.reign.required();
        for ack in &beat.acks {
            let (prefix, positions) = wire::ack_from(ack)?;
            let released = {
                let mut acks = self.ctx.acks.lock();
                let news = acks
                    .record(self.session, self.member, prefix, positions)
                    .map_err(|e| Status::failed_precondition(e.to_string()))?;
                if news { acks.released(prefix, &self.reign, required) } else { None }
            };
            if let Some(released) = released
                && let Some(prefix) = self.ctx.store.prefix_by_uuid(prefix)
                && prefix.release(released)
            {
                self.ctx.store.wake_loop(prefix.shard);
            }
        }
        if !beat.acks.is_empty() {
            self.ctx.member.acked();
        }
        if !beat.acks.is_empty() && self.reported.elapsed() >= REPORT_PAUSE {
            self.reported = Instant::now();
            self.ctx.store.note_change();
        }
        Ok(())
    }
}
