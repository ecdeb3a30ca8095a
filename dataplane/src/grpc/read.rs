//! What a read demands: a position that must be there, and how stale a replica may be.

use std::sync::Arc;
use std::time::Duration;

use parovoz_dataplane_core::types::{Position, Sequence};
use parovoz_proto::v1;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::Status;

use crate::clock;
use crate::config::Durability;
use crate::store::Store;
use crate::store::prefix::Prefix;
use crate::store::signal::{SessionSignal, Subscription};

/// Between two looks at what nobody signals.
const LOOK: Duration = Duration::from_millis(1);

/// Waits until a prefix shows what `options` demand.
///
/// # Errors
/// UNAVAILABLE if the replica is staler than asked, DEADLINE_EXCEEDED if the position does not come in time, ABORTED if it is
/// not in this member's history.
pub(super) async fn check(
    store: &Store,
    prefix: &Arc<Prefix>,
    options: Option<&v1::ReadOptions>,
    deadline: Instant,
) -> Result<(), Status> {
    let Some(options) = options else { return Ok(()) };
    if let Some(p) = &options.min_position {
        wait_for(prefix, Position::new(p.epoch, p.sequence), deadline).await?;
    }
    // After the wait: it must hold now.
    if options.max_staleness_ms > 0 && !store.role().is_primary {
        let silence = store.staleness_ms();
        if silence.is_none_or(|ms| ms > options.max_staleness_ms) {
            let shown = silence.map_or_else(|| "ever".to_owned(), |ms| format!("{ms} ms"));
            return Err(Status::unavailable(format!(
                "read: this replica has not heard from a serving primary for {shown}, at most {} ms are asked for",
                options.max_staleness_ms
            )));
        }
    }
    Ok(())
}

/// Whether a position is in a prefix's history: `None` = not yet.
fn holds(prefix: &Prefix, wanted: Position) -> Option<bool> {
    if prefix.applied() >= wanted.sequence && prefix.position_at(wanted.sequence).epoch == wanted.epoch {
        return Some(true);
    }
    // A record of a later epoch in its place: it was lost when that epoch began.
    let newest = prefix.newest_epoch();
    let overtaken = newest > wanted.epoch && prefix.applied() >= wanted.sequence;
    let passed = newest > wanted.epoch && prefix.position_at(prefix.applied()).epoch > wanted.epoch;
    if overtaken || passed { Some(false) } else { None }
}

async fn wait_for(prefix: &Arc<Prefix>, wanted: Position, deadline: Instant) -> Result<(), Status> {
    if wanted == Position::ZERO || holds(prefix, wanted) == Some(true) {
        return Ok(());
    }
    let interest = Interest::new(prefix.clone());
    loop {
        interest.subscription.rearm();
        match holds(prefix, wanted) {
            Some(true) => return Ok(()),
            Some(false) => {
                return Err(Status::aborted(format!(
                    "read: position {wanted} is not in this member's history; it was lost in a change of primary"
                )));
            }
            None => {}
        }
        if timeout_at(deadline, interest.session.moved()).await.is_err() {
            return Err(Status::deadline_exceeded(format!(
                "read: position {wanted} has not arrived, this member is at {}",
                prefix.position_at(prefix.applied())
            )));
        }
        // An exchanged copy cuts subscriptions: it must be made again.
        if interest.subscription.is_cut() {
            return Box::pin(wait_for(prefix, wanted, deadline)).await;
        }
    }
}

/// A subscription that ends with its reader.
struct Interest {
    prefix: Arc<Prefix>,
    session: Arc<SessionSignal>,
    subscription: Arc<Subscription>,
}

impl Interest {
    fn new(prefix: Arc<Prefix>) -> Self {
        let session = Arc::new(SessionSignal::default());
        let subscription = Subscription::new(prefix.uuid, session.clone());
        prefix.subscribe(subscription.clone());
        Self { prefix, session, subscription }
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        self.prefix.unsubscribe(&self.subscription);
    }
}

/// Waits until everything up to `sequence` may be shown: on a primary under W > 0, until replicas have it; under `durability:
/// Sync`, until it is durable.
///
/// # Errors
/// UNAVAILABLE at the deadline.
pub(super) async fn wait_released(
    store: &Store,
    prefix: &Prefix,
    sequence: Sequence,
    deadline: Instant,
) -> Result<(), Status> {
    loop {
        let role = store.role();
        if role.fenced {
            return Err(Status::unavailable("read: this member has stopped leading"));
        }
        let waits = role.required_acks() > 0 || store.settings.load().durability == Durability::Sync;
        if !role.is_primary || !waits || prefix.released() >= sequence {
            let sure = !role.is_primary || store.gate.may_read(clock::boot_ms());
            return if sure {
                Ok(())
            } else {
                Err(Status::unavailable("read: this member can't be sure that it still leads"))
            };
        }
        let next = Instant::now() + LOOK;
        if next >= deadline {
            return Err(Status::unavailable("read: what it would show was not confirmed in time"));
        }
        sleep_until(next).await;
    }
}
