//! Acknowledges straight to the primary: what moved at once, everything at the start of a session.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use parovoz_dataplane_core::acks::AckPositions;
use parovoz_dataplane_core::budget::Backoff;
use parovoz_dataplane_core::follower::check_upstream;
use parovoz_dataplane_core::types::{DataUuid, Epoch, PrefixUuid, ReignRef};
use parovoz_dataplane_core::vote::may_acknowledge;
use parovoz_proto::v1;
use parovoz_proto::v1::replication_client::ReplicationClient;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::ReplicationCtx;
use super::client::{LinkError, Shared, connect, jitter};
use super::wire::{ack_to, hello_from, hello_to, reign_ref_from, reign_ref_to};
use crate::clock;
use crate::store::Endpoint;
use crate::store::prefix::{Prefix, PrefixPhase};

/// Messages that may wait; when they do, what moved is gathered meanwhile.
const QUEUE: usize = 2;

/// Which prefixes moved since they were last acknowledged.
#[derive(Debug, Default)]
pub(super) struct AckBoard {
    moved: Mutex<HashSet<PrefixUuid>>,
    notify: Notify,
    /// Grows when positions may have moved backwards: a copy was exchanged, so a new session must begin.
    restarts: AtomicU64,
}

impl AckBoard {
    /// A prefix's positions moved.
    pub fn mark(&self, prefix: PrefixUuid) {
        if self.moved.lock().insert(prefix) {
            self.notify.notify_one();
        }
    }

    /// A prefix's copy was exchanged.
    pub fn restart(&self) {
        self.restarts.fetch_add(1, Ordering::AcqRel);
        self.notify.notify_one();
    }

    fn take(&self) -> HashSet<PrefixUuid> {
        std::mem::take(&mut *self.moved.lock())
    }
}

/// Whom to acknowledge to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    at: Endpoint,
    primary: DataUuid,
    reign: ReignRef,
}

fn target(shared: &Shared) -> Option<Target> {
    let role = shared.ctx.store.role();
    // A sealed member owes nothing to the primary of a lower epoch, and promises it nothing.
    let reign = role.reign.as_ref().filter(|_| !role.is_primary && role.sealed.is_none())?;
    let at = shared.primary_endpoint(&role)?;
    Some(Target { at, primary: reign.primary, reign: reign.to_ref() })
}

/// Acknowledges until the follower stops.
pub(super) async fn run(shared: Arc<Shared>) {
    let (base, cap) = shared.ctx.tuning.backoff_ms;
    let mut backoff = Backoff::new(base, cap);
    let mut changes = shared.ctx.store.changes();
    while !shared.stop.is_cancelled() {
        let Some(target) = target(&shared) else {
            tokio::select! {
                () = shared.stop.cancelled() => return,
                _ = changes.changed() => {}
                () = tokio::time::sleep(shared.ctx.tuning.heartbeat) => {}
            }
            continue;
        };
        let started = clock::boot_ms();
        let ended = tokio::select! {
            () = shared.stop.cancelled() => return,
            // At once, whatever the old primary is doing: a new one waits for this member to join.
            () = replaced(&shared, &target) => Ok(()),
            ended = session(&shared, &target) => ended,
        };
        match ended {
            Ok(()) => backoff.reset(),
            Err(error) => {
                if clock::boot_ms() - started > 10_000 {
                    backoff.reset();
                }
                tracing::info!(primary = %target.primary, address = %target.at.replication, %error, "acknowledge to primary");
                let pause = std::time::Duration::from_millis(backoff.next_ms(jitter()));
                tokio::select! {
                    () = shared.stop.cancelled() => return,
                    () = replaced(&shared, &target) => {}
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }
}

/// Returns once acknowledgements belong to somebody else.
async fn replaced(shared: &Shared, to: &Target) {
    let mut changes = shared.ctx.store.changes();
    while target(shared).as_ref() == Some(to) {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// One session; `Ok` = begin another at once.
async fn session(shared: &Shared, to: &Target) -> Result<(), LinkError> {
    let ctx = &shared.ctx;
    let restarts = shared.acks.restarts.load(Ordering::Acquire);
    let channel = connect(ctx, &to.at).await?;
    let (tx, rx) = mpsc::channel(QUEUE);
    // What moved until now is in the full set.
    drop(shared.acks.take());
    let own = ctx.own(Some(to.primary));
    if own.reign != Some(to.reign) {
        return Ok(());
    }
    let all = ctx.store.prefixes().by_uuid.values().filter_map(|p| ack_of(ctx, p)).collect();
    let first = v1::MemberBeat { hello: Some(hello_to(&own, None)), ..beat(ctx, to.reign, all) };
    // The channel is new and empty.
    let _ = tx.try_send(first);
    let mut client = ReplicationClient::new(channel);
    let answer = tokio::time::timeout(ctx.tuning.connect, client.acknowledge(ReceiverStream::new(rx)));
    let mut incoming: Streaming<v1::PrimaryBeat> = answer.await.map_err(|_| LinkError::Silent)??.into_inner();
    let mut tick = tokio::time::interval(ctx.tuning.heartbeat);
    let mut rate = Rate { bytes: ctx.stats.bytes_applied.get(), at: Instant::now() };
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            message = incoming.message() => {
                let message = message?.ok_or(LinkError::Closed)?;
                heard = Instant::now();
                if heard_primary(ctx, to, &message)? {
                    // Its promise goes back at once: it counts from the beat's sending.
                    send_moved(shared, to, &tx, None).await?;
                }
            }
            () = shared.acks.notify.notified() => {
                if shared.acks.restarts.load(Ordering::Acquire) != restarts {
                    return Ok(());
                }
                send_moved(shared, to, &tx, None).await?;
            }
            _ = tick.tick() => {
                if heard.elapsed() >= ctx.tuning.silence {
                    return Err(LinkError::Quiet(ctx.tuning.silence));
                }
                send_moved(shared, to, &tx, Some(rate.next(ctx.stats.bytes_applied.get()))).await?;
            }
        }
    }
}

/// Takes a message of the primary; answers whether it was a beat.
fn heard_primary(ctx: &ReplicationCtx, to: &Target, message: &v1::PrimaryBeat) -> Result<bool, LinkError> {
    if let Some(hello) = &message.hello {
        check_upstream(&ctx.own(Some(to.primary)), &hello_from(hello)?)?;
    }
    let reign = message.reign.as_ref().map(reign_ref_from).transpose()?;
    if reign != Some(to.reign) {
        return Err(LinkError::Closed);
    }
    ctx.store.note_heard_primary();
    if message.sent_at_ms == 0 {
        return Ok(false);
    }
    ctx.member.heard(to.reign, message.sent_at_ms);
    if message.serving {
        ctx.store.note_heard_serving();
    }
    Ok(true)
}

/// What was applied lately.
struct Rate {
    bytes: u64,
    at: Instant,
}

impl Rate {
    /// Bytes a second since the last call.
    fn next(&mut self, bytes: u64) -> u64 {
        let passed = u64::try_from(self.at.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
        let rate = (bytes - self.bytes).saturating_mul(1_000_000) / passed;
        *self = Self { bytes, at: Instant::now() };
        rate
    }
}

/// Sends what moved, and on a regular beat the rate.
async fn send_moved(
    shared: &Shared,
    to: &Target,
    tx: &mpsc::Sender<v1::MemberBeat>,
    bytes_per_second: Option<u64>,
) -> Result<(), LinkError> {
    let ctx = &shared.ctx;
    let store = &ctx.store;
    let acks = shared.acks.take().into_iter().filter_map(|uuid| ack_of(ctx, &*store.prefix_by_uuid(uuid)?)).collect();
    let beat = v1::MemberBeat { bytes_per_second, ..beat(ctx, to.reign, acks) };
    let sent = tokio::time::timeout(ctx.tuning.silence, tx.send(beat)).await;
    sent.map_err(|_| LinkError::Silent)?.map_err(|_| LinkError::Closed)
}

fn beat(ctx: &ReplicationCtx, reign: ReignRef, acks: Vec<v1::Ack>) -> v1::MemberBeat {
    v1::MemberBeat {
        hello: None,
        data_uuid: ctx.store.data_uuid.to_string(),
        reign: Some(reign_ref_to(reign)),
        acks,
        sent_at_ms: clock::wall_ms(),
        promise_for_ms: ctx.member.echo(),
        bytes_per_second: None,
    }
}

/// A prefix's acknowledgement; `None` while its copy must not be acknowledged.
fn ack_of(ctx: &ReplicationCtx, prefix: &Prefix) -> Option<v1::Ack> {
    prefix.copy()?;
    if matches!(prefix.phase(), PrefixPhase::Bootstrapping | PrefixPhase::Stopped { .. }) {
        return None;
    }
    // Read in this order, so that received >= applied >= durable holds whatever moves meanwhile.
    // Without syncs nothing is known to be durable; such a store counts nobody and measures lag by what is applied.
    let durable = prefix.durable();
    let applied = prefix.applied().max(durable);
    let received = prefix.received().max(applied);
    let positions = AckPositions {
        received: prefix.position_at(received),
        applied: prefix.position_at(applied),
        durable: prefix.position_at(durable),
    };
    let reached = if ctx.syncs() { positions.durable } else { positions.applied };
    let reign = ctx.store.role().reign.as_ref().map_or(Epoch(0), |r| r.epoch);
    if !may_acknowledge(reached, ctx.member.floor(prefix.uuid), reign) {
        return None;
    }
    Some(ack_to(prefix.uuid, positions))
}
