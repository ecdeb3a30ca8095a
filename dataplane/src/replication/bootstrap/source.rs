//! Where a copy comes from: the member that an earlier attempt copied from, the one that the orders name, or the upstream, in
//! this order; and the hold at the upstream that a copy from elsewhere needs.
//!
//! Whatever the source, the copy goes on as a stream from the upstream, so the hold is taken there, from the position of the
//! source's checkpoint on and before a byte is copied. And whatever the source, the copy counts only once it has reached the
//! position that the *primary* had when it was begun: that is its floor.

use std::error::Error;
use std::time::Duration;

use parovoz_dataplane_core::follower::check_upstream;
use parovoz_dataplane_core::types::{DataUuid, Position};
use parovoz_proto::v1;
use parovoz_proto::v1::replication_client::ReplicationClient;
use tonic::transport::Channel;

use super::super::client::{LinkError, connect};
use super::super::fetch::blocking;
use super::super::staging::Manifest;
use super::super::wire::{WireError, hello_from, hello_to, position_from};
use super::{BootstrapError, Job};
use crate::store::Endpoint;
use crate::store::prefix::Prefix;

/// Floors that are noted at most for what a diverged catalogue may have made, the newest first: a slot has room for some
/// thousands.
const ENDS_KEPT: usize = 1_024;

/// Failures of one bootstrap after which only the upstream is asked.
const TRUST: u32 = 3;

/// A snapshot that is open at a source.
pub(super) struct Opened {
    pub peer: Peer,
    pub snapshot: v1::Snapshot,
    pub source: DataUuid,
    /// Whether an earlier attempt opened it.
    pub resumed: bool,
    /// The hold at the upstream; none if that is the source, whose snapshot holds.
    pub held: Option<Held>,
}

/// A hold at the upstream.
#[derive(Clone)]
pub(super) struct Held {
    pub peer: Peer,
    pub id: String,
    every: Duration,
}

impl Held {
    pub(super) fn new(peer: Peer, snapshot: &v1::Snapshot) -> Self {
        let every = Duration::from_millis((snapshot.hold_ms / 4).clamp(50, 30_000));
        Self { peer, id: snapshot.snapshot_id.clone(), every }
    }
}

/// A member that is asked.
#[derive(Clone)]
pub(super) struct Peer {
    pub client: ReplicationClient<Channel>,
    pub endpoint: Endpoint,
}

impl Job {
    /// Opens a snapshot where it can be had, with everything that must be there before a byte is copied: hold and floor.
    pub(super) async fn open(&self, before: Option<&Manifest>) -> Result<Opened, BootstrapError> {
        let mut last = BootstrapError::NoUpstream;
        let mut may_go_on = false;
        for (endpoint, earlier) in self.candidates(before) {
            if earlier.is_none()
                && let Err(over) = self.shared.bootstraps.check_budget(self.prefix.uuid)
            {
                // To go on with an earlier snapshot is free, and may work soon.
                return Err(if may_go_on { last } else { over });
            }
            match self.open_at(&endpoint, earlier).await {
                Ok(opened) => return Ok(opened),
                Err(error) if error.is_ours() => return Err(error),
                Err(error) => {
                    tracing::info!(prefix = %self.prefix.name, source = %endpoint.replication, resumed = earlier.is_some(),
                        %error, "this source is not used");
                    may_go_on |= earlier.is_some() && error.passes();
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// Who is asked, in this order, and for which snapshot of an earlier attempt.
    fn candidates<'a>(&self, before: Option<&'a Manifest>) -> Vec<(Endpoint, Option<&'a str>)> {
        let own = self.ctx().store.data_uuid;
        let ordered = self.ctx().store.bootstrap_source().map(|source| Endpoint::clone(&source));
        let pulls = self.pulls();
        let ordered = ordered.filter(|s| !pulls && s.data_uuid != Some(own) && !s.replication.is_empty());
        let mut all: Vec<(Endpoint, Option<&str>)> = Vec::new();
        if let Some(before) = before {
            let known = [Some(&self.upstream), ordered.as_ref()].into_iter().flatten();
            let mut known = known.filter(|e| e.data_uuid == Some(before.source)).cloned();
            let earlier = known.next().or_else(|| match before.source_address.as_str() {
                "" => self.upstream.data_uuid.is_none().then(|| self.upstream.clone()),
                address => Some(Endpoint {
                    data_uuid: Some(before.source),
                    replication: address.to_owned(),
                    ..Endpoint::default()
                }),
            });
            all.extend(earlier.map(|endpoint| (endpoint, Some(before.snapshot_id.as_str()))));
        }
        all.extend(ordered.map(|endpoint| (endpoint, None)));
        let trusts_upstream = self.trusts(&self.upstream);
        let anybody = !pulls && (self.failures < TRUST || !trusts_upstream);
        all.retain(|(endpoint, _)| anybody || self.is_upstream(endpoint));
        all.retain(|(endpoint, earlier)| earlier.is_some() || !self.is_upstream(endpoint));
        all.push((self.upstream.clone(), None));
        if anybody && !trusts_upstream {
            all.extend(self.primary().map(|primary| (primary, None)));
        }
        all.retain(|(endpoint, _)| self.trusts(endpoint));
        if all.is_empty() {
            // There is nobody else: its tables may be repaired by now.
            all.push((self.upstream.clone(), None));
        }
        all
    }

    /// Whether what is missing is pulled under a seal: then the named member alone is sure to have exactly what was decided, and
    /// nobody leads.
    fn pulls(&self) -> bool {
        self.ctx().store.role().pull.is_some()
    }

    /// Whether no copy from this member was damaged.
    fn trusts(&self, endpoint: &Endpoint) -> bool {
        endpoint.data_uuid.is_none_or(|member| !self.distrusted.contains(&member))
    }

    /// The primary, if it is another member than the upstream and known where.
    fn primary(&self) -> Option<Endpoint> {
        let primary = self.shared.primary_endpoint(&self.ctx().store.role());
        primary.filter(|p| !self.is_upstream(p) && p.data_uuid != self.upstream.data_uuid)
    }

    fn is_upstream(&self, endpoint: &Endpoint) -> bool {
        endpoint.replication == self.upstream.replication
    }

    async fn open_at(&self, endpoint: &Endpoint, earlier: Option<&str>) -> Result<Opened, BootstrapError> {
        let peer = self.reach(endpoint).await?;
        let files = v1::OpenSnapshotRequest {
            snapshot_id: earlier.unwrap_or_default().to_owned(),
            ..v1::OpenSnapshotRequest::default()
        };
        let snapshot = self.ask(&peer, files).await?;
        let with_rest = self.hold_and_floor(&peer, &snapshot, earlier.is_some()).await;
        let held = match with_rest {
            Ok(held) => held,
            Err(error) => {
                self.let_go(&peer, snapshot.snapshot_id.clone());
                return Err(error);
            }
        };
        let hello = snapshot.hello.as_ref().ok_or(WireError::Missing("hello")).map_err(LinkError::from)?;
        let source = hello_from(hello).map_err(LinkError::from)?.data_uuid;
        Ok(Opened { peer, snapshot, source, resumed: earlier.is_some(), held })
    }

    async fn hold_and_floor(
        &self,
        peer: &Peer,
        snapshot: &v1::Snapshot,
        resumed: bool,
    ) -> Result<Option<Held>, BootstrapError> {
        let mut held = None;
        let mut upstream_latest = position_from(snapshot.latest.or(snapshot.held_after));
        if !self.is_upstream(&peer.endpoint) {
            let upstream = self.reach(&self.upstream).await?;
            let hold = v1::OpenSnapshotRequest {
                kind: v1::SnapshotKind::Hold.into(),
                hold_after: snapshot.held_after,
                ..v1::OpenSnapshotRequest::default()
            };
            let hold = self.ask(&upstream, hold).await?;
            if hold.held_after != snapshot.held_after {
                // An upstream that knows no holds alone opened a snapshot of its own.
                self.let_go(&upstream, hold.snapshot_id);
                return Err(BootstrapError::Verify("the upstream holds its WAL from elsewhere".to_owned()));
            }
            upstream_latest = position_from(hold.latest);
            held = Some(Held::new(upstream, &hold));
        }
        // The floor of a copy that goes on was stored when it was begun.
        if !resumed {
            let at_primary = self.primary_position(upstream_latest).await?;
            self.raise_floor(at_primary).await?;
        }
        self.prefix.set_lost_its_end(false);
        Ok(held)
    }

    /// Where the primary is now. `upstream_latest` is where the upstream is, which may be the primary.
    async fn primary_position(&self, upstream_latest: Position) -> Result<Position, BootstrapError> {
        let role = self.ctx().store.role();
        let leader = role.reign.as_ref().map(|reign| reign.primary);
        if self.pulls() || leader == self.upstream.data_uuid {
            return Ok(upstream_latest);
        }
        let primary = self.shared.primary_endpoint(&role).ok_or(BootstrapError::NoPrimary)?;
        if self.is_upstream(&primary) {
            return Ok(upstream_latest);
        }
        let peer = self.reach(&primary).await?;
        let kind = v1::SnapshotKind::Position.into();
        let answer = self.ask(&peer, v1::OpenSnapshotRequest { kind, ..v1::OpenSnapshotRequest::default() }).await?;
        Ok(position_from(answer.latest.or(answer.held_after)))
    }

    /// Stores that the new copy counts only from the higher of `at_least` and this member's own position on; where that may not
    /// be known, from the upstream's too.
    pub(super) async fn raise_floor(&self, at_least: Position) -> Result<(), BootstrapError> {
        let own = self.prefix.position_at(self.prefix.applied());
        let upstream = if self.knows_its_end() { own } else { self.prefix.upstream_latest() };
        let floor = own.max(upstream).max(at_least);
        if floor == Position::ZERO {
            return Ok(());
        }
        let (ctx, prefix) = (self.ctx().clone(), self.prefix.clone());
        blocking(move || ctx.member.raise_floors(&[(prefix.uuid, floor)]).map_err(BootstrapError::Member)).await
    }

    /// Floors for what a diverged catalogue may have made after the `fork`, at where it ends: what the new one does not list is set
    /// aside, and if the one that made it wins after all, it begins anew below what this member had acknowledged. Not later
    /// than this: whoever stops the follower may hold what a floor needs, and replacing a copy is not given up.
    pub(super) async fn keep_ends(&self, fork: Position) -> Result<(), BootstrapError> {
        let ctx = self.ctx().clone();
        blocking(move || {
            let made = |prefix: &Prefix| prefix.history().records().first().map(|first| first.epoch);
            let prefixes = ctx.store.prefixes();
            let here = prefixes.by_uuid.values().filter(|p| !p.name.is_catalogue() && p.copy().is_some());
            let mut here: Vec<_> = here.filter(|prefix| made(prefix) >= Some(fork.epoch)).collect();
            here.sort_by_key(|prefix| std::cmp::Reverse(made(prefix)));
            here.truncate(ENDS_KEPT);
            let ends: Vec<_> = here.into_iter().map(|p| (p.uuid, p.position_at(p.applied()))).collect();
            ctx.member.raise_floors(&ends).map_err(BootstrapError::Member)
        })
        .await
    }

    /// Whether a copy that is replaced under a seal says, with the floor that it has, all that this member acknowledged. What the
    /// old primary had beyond may be gone for good, and then nobody could ever be above such a floor.
    fn knows_its_end(&self) -> bool {
        self.pulls() && self.cause.replaces_a_whole_copy() && self.prefix.copy().is_some()
    }

    async fn reach(&self, endpoint: &Endpoint) -> Result<Peer, BootstrapError> {
        let bootstraps = &self.shared.bootstraps;
        bootstraps.check_rest(&endpoint.replication)?;
        let channel = connect(self.ctx(), endpoint).await;
        let channel = channel.inspect_err(|_| bootstraps.unreachable(&endpoint.replication))?;
        Ok(Peer { client: ReplicationClient::new(channel), endpoint: endpoint.clone() })
    }

    /// Asks for a snapshot; the request's prefix and hello are filled in here.
    async fn ask(&self, peer: &Peer, request: v1::OpenSnapshotRequest) -> Result<v1::Snapshot, BootstrapError> {
        let (bootstraps, address) = (&self.shared.bootstraps, &peer.endpoint.replication);
        let answer = self.ask_once(peer, request).await;
        match &answer {
            Ok(_) => bootstraps.reached(address),
            Err(BootstrapError::Link(_) | BootstrapError::Silent) => bootstraps.unreachable(address),
            // With a cause behind it, it is not the member's answer: the connection broke.
            Err(BootstrapError::Call(status)) if status.source().is_some() => bootstraps.unreachable(address),
            Err(_) => {}
        }
        answer
    }

    async fn ask_once(&self, peer: &Peer, request: v1::OpenSnapshotRequest) -> Result<v1::Snapshot, BootstrapError> {
        let own = self.ctx().own(peer.endpoint.data_uuid);
        let prefix_uuid = self.prefix.uuid.to_string();
        let request = v1::OpenSnapshotRequest { hello: Some(hello_to(&own, None)), prefix_uuid, ..request };
        // A checkpoint flushes first, which may take a while.
        let limit = self.ctx().tuning.silence * 6;
        let answer = tokio::time::timeout(limit, peer.client.clone().open_snapshot(request)).await;
        let snapshot = match answer.map_err(|_| BootstrapError::Silent)? {
            Ok(snapshot) => snapshot.into_inner(),
            Err(status) if status.code() == tonic::Code::NotFound => return Err(BootstrapError::SnapshotGone),
            Err(status) => return Err(status.into()),
        };
        let hello = snapshot.hello.as_ref().ok_or(WireError::Missing("hello")).map_err(LinkError::from)?;
        let answered = hello_from(hello).map_err(LinkError::from)?;
        check_upstream(&own, &answered).map_err(LinkError::from)?;
        Ok(snapshot)
    }

    /// Asks whether a snapshot or a hold is still open, which renews it.
    pub(super) async fn renew(&self, peer: &Peer, id: &str) -> Result<(), BootstrapError> {
        let request = v1::OpenSnapshotRequest { snapshot_id: id.to_owned(), ..v1::OpenSnapshotRequest::default() };
        self.ask(peer, request).await.map(drop)
    }

    /// Keeps a hold alive; returns only if it has ended.
    pub(super) async fn keep(&self, held: &Held) -> BootstrapError {
        loop {
            tokio::time::sleep(held.every).await;
            match self.renew(&held.peer, &held.id).await {
                Err(BootstrapError::SnapshotGone) => return BootstrapError::SnapshotGone,
                Err(error) => tracing::debug!(%error, "renew hold"),
                Ok(()) => {}
            }
        }
    }

    /// Lets a snapshot or a hold go, without waiting for it; if it fails it ends by itself.
    pub(super) fn let_go(&self, peer: &Peer, snapshot_id: String) {
        let mut client = peer.client.clone();
        tokio::spawn(async move {
            if let Err(error) = client.close_snapshot(v1::CloseSnapshotRequest { snapshot_id }).await {
                tracing::debug!(error = error.message(), "close snapshot");
            }
        });
    }
}

/// What the log says of where a copy comes from.
impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.endpoint.replication)
    }
}

impl Opened {
    /// After this position the upstream holds its WAL.
    pub(super) fn held_after(&self) -> Position {
        position_from(self.snapshot.held_after)
    }
}
