//! What a member tells the operator about itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parovoz_dataplane_core::role::Standing;
use parovoz_dataplane_core::types::PrefixUuid;
use parovoz_dataplane_core::vote::Vote;
use parovoz_proto::v1;

use super::{Member, votes};
use crate::clock;
use crate::disk::detached::ExportedTail;
use crate::disk::layout::Layout;
use crate::replication::wire::{position_to, reign_ref_to, reign_to};
use crate::shard::ShardsHandle;
use crate::store::prefix::{Prefix, PrefixPhase};
use crate::store::{Endpoint, Store};

/// An fsync that takes longer than this is told of, in milliseconds.
const STALLED_MS: u64 = 200;

/// What the role says at one moment.
struct Now {
    can_acknowledge: bool,
    stalled_fsync_ms: Option<u64>,
    frozen_ms: u64,
    uptime_ms: u64,
    silence_ms: Option<u64>,
}

fn vote_to(prefix: &Prefix, vote: Vote) -> v1::Vote {
    let (known, floor) = match vote {
        Vote::Known(position) => (Some(position), None),
        Vote::Unknown { floor } => (None, floor),
    };
    v1::Vote {
        prefix_uuid: prefix.uuid.to_string(),
        name: prefix.name.to_string(),
        known: known.map(position_to),
        floor: floor.map(position_to),
    }
}

/// Exported tails that a report names at most; the rest stands in `detached/`.
const MAX_TAILS: usize = 256;

/// Everything that is wrong, for people.
fn reason(disk: Option<String>, storage: Option<String>, incomplete: Option<String>) -> String {
    [disk, storage, incomplete].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// Who is named; empty if nobody is.
fn identity(endpoint: Option<&Endpoint>) -> String {
    endpoint.and_then(|endpoint| endpoint.data_uuid).map(|uuid| uuid.to_string()).unwrap_or_default()
}

fn tail_to(tail: &ExportedTail) -> v1::ExportedTail {
    v1::ExportedTail {
        prefix: tail.prefix.to_string(),
        prefix_uuid: tail.prefix_uuid.to_string(),
        epoch: tail.epoch.0,
        first_sequence: tail.first.0,
        last_sequence: tail.last.0,
        records: tail.records,
        file: tail.file.clone(),
    }
}

/// The stream from the upstream at one moment.
#[derive(Debug, Default)]
pub struct UpstreamView {
    /// Whether it is up.
    pub connected: bool,
    /// How far the bootstraps that wait or are under way are.
    pub bootstraps: HashMap<PrefixUuid, v1::BootstrapProgress>,
}

/// What replication knows besides the prefixes' own marks.
pub trait ReplicationView: Send + Sync + std::fmt::Debug {
    /// What the stream from the upstream is doing.
    fn upstream(&self) -> UpstreamView;
    /// The members that follow this primary.
    fn followers(&self) -> Vec<v1::FollowerReport>;
}

/// Builds reports.
#[derive(Debug)]
pub struct Reporter {
    /// Whose prefixes are reported.
    pub store: Arc<Store>,
    /// Whose promises are reported.
    pub member: Arc<Member>,
    /// The volume.
    pub layout: Layout,
    /// Streams and bootstraps.
    pub replication: Arc<dyn ReplicationView>,
    /// Name of the pod.
    pub pod_name: String,
    /// See [`super::process_id`].
    pub process_id: String,
    /// How long writes wait.
    pub loops: ShardsHandle,
}

impl Reporter {
    /// Grows whenever a prefix moves.
    #[must_use]
    pub fn marks(&self) -> u64 {
        let of =
            |p: &Arc<Prefix>| p.applied().0.wrapping_add(p.durable().0).wrapping_add(p.upstream_latest().sequence.0);
        self.store.prefixes().by_uuid.values().map(of).fold(0, u64::wrapping_add)
    }

    /// Waits until a prefix has moved since [`Reporter::marks`] answered `marks`; looks every `pause`.
    pub async fn moved(&self, marks: u64, pause: Duration) {
        loop {
            tokio::time::sleep(pause).await;
            if self.marks() != marks {
                return;
            }
        }
    }

    /// The present report.
    #[must_use]
    pub fn report(&self) -> v1::MemberReport {
        // First of all: whoever is told of a seal here is told the positions that stand under it.
        let record = self.member.record();
        let role = self.store.role();
        let now = clock::boot_ms();
        // The pulse sees a disk that hangs; one database alone may hang too.
        let syncing_ms = self.store.longest_sync().map_or(0, |(_, ms)| ms);
        let now_is = self.member.state().with(|role| Now {
            can_acknowledge: role.can_acknowledge(now),
            stalled_fsync_ms: Some(role.stalled_fsync_ms(now).unwrap_or(0).max(syncing_ms))
                .filter(|ms| *ms >= STALLED_MS),
            frozen_ms: role.frozen_until_ms().saturating_sub(now),
            uptime_ms: role.uptime_ms(now),
            silence_ms: role.silence_ms(now),
        });
        let incomplete = self.member.incomplete();
        let upstream = self.replication.upstream();
        let mut prefixes: Vec<_> = self.store.prefixes().by_uuid.values().map(|p| self.prefix(p, &upstream)).collect();
        prefixes.sort_by(|a, b| a.name.cmp(&b.name));
        let (free, total) = self.layout.space().unwrap_or_else(|error| {
            tracing::warn!(%error, "free space is not known");
            (0, 0)
        });
        let phase = self.phase(&prefixes, upstream.connected, incomplete.is_none());
        v1::MemberReport {
            store_uid: self.store.store_uid.to_string(),
            data_uuid: record.data_uuid.to_string(),
            pod_name: self.pod_name.clone(),
            process_id: self.process_id.clone(),
            role: if role.is_primary { v1::MemberRole::Primary } else { v1::MemberRole::Replica }.into(),
            phase: phase.into(),
            reign: record.promised.as_ref().map(reign_to),
            started_epoch: record.started.0,
            prefixes,
            followers: if role.is_primary { self.replication.followers() } else { Vec::new() },
            upstream_data_uuid: identity(role.upstream.as_ref()),
            upstream_address: role.upstream.as_ref().map(|u| u.replication.clone()).unwrap_or_default(),
            primary_data_uuid: identity(role.primary.as_ref()),
            upstream_connected: upstream.connected,
            disk_free_bytes: free,
            disk_total_bytes: total,
            complete: incomplete.is_none(),
            reason: reason(self.store.disk_trouble(), self.layout.storage_trouble(), incomplete),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at_ms: clock::wall_ms(),
            restarts: u32::try_from(record.starts.len().saturating_sub(1)).unwrap_or(u32::MAX),
            primary_silence_ms: if role.is_primary { None } else { now_is.silence_ms },
            config_hash: self.store.settings.load().fingerprint.clone(),
            sealed: record.sealed.map(reign_ref_to),
            can_acknowledge: role.is_primary && now_is.can_acknowledge,
            oldest_wait_ms: self.loops.oldest_wait_ms(),
            stalled_fsync_ms: now_is.stalled_fsync_ms,
            frozen_ms: now_is.frozen_ms,
            uptime_ms: now_is.uptime_ms,
            exported_tails: self.layout.exported_tails().iter().take(MAX_TAILS).map(tail_to).collect(),
            bootstrap_source_data_uuid: identity(self.store.bootstrap_source().as_deref()),
        }
    }

    fn phase(&self, prefixes: &[v1::PrefixReport], connected: bool, complete: bool) -> v1::MemberPhase {
        let role = self.store.role();
        if role.is_primary {
            let leads = self.member.state().with(|role| role.standing() == Standing::Leading);
            // Promoted, and waiting for replicas to join.
            return if leads { v1::MemberPhase::Serving } else { v1::MemberPhase::Waiting };
        }
        if role.reign.is_none() && prefixes.is_empty() {
            return v1::MemberPhase::Blank;
        }
        if role.upstream.is_none() {
            return v1::MemberPhase::Waiting;
        }
        if prefixes.iter().any(|p| p.state() == v1::PrefixState::Bootstrapping) {
            return v1::MemberPhase::Bootstrapping;
        }
        if !connected {
            return v1::MemberPhase::Waiting;
        }
        let warning = self.store.settings.load().lag_warning_sequences;
        let close = prefixes.iter().all(|p| {
            let sequence = |p: &Option<v1::Position>| p.as_ref().map_or(0, |p| p.sequence);
            p.state() == v1::PrefixState::Streaming
                && sequence(&p.upstream_latest).saturating_sub(sequence(&p.applied)) <= warning
        });
        if close && complete { v1::MemberPhase::Streaming } else { v1::MemberPhase::CatchingUp }
    }

    fn prefix(&self, prefix: &Prefix, upstream: &UpstreamView) -> v1::PrefixReport {
        let (state, reason) = match prefix.phase() {
            PrefixPhase::Open => (v1::PrefixState::Open, String::new()),
            PrefixPhase::Bootstrapping => (v1::PrefixState::Bootstrapping, String::new()),
            PrefixPhase::Streaming => (v1::PrefixState::Streaming, String::new()),
            PrefixPhase::Stopped { reason } => (v1::PrefixState::Stopped, reason),
            PrefixPhase::Serving => (v1::PrefixState::Serving, String::new()),
        };
        let mark = |sequence| Some(position_to(prefix.position_at(sequence)));
        v1::PrefixReport {
            name: prefix.name.to_string(),
            prefix_uuid: prefix.uuid.to_string(),
            state: state.into(),
            received: mark(prefix.received()),
            applied: mark(prefix.applied()),
            durable: mark(prefix.durable()),
            upstream_latest: Some(position_to(prefix.upstream_latest())),
            bootstrap: upstream.bootstraps.get(&prefix.uuid).cloned(),
            reason,
            oldest_wal_sequence: prefix.oldest_in_wal().map_or(0, |s| s.0),
            system: prefix.name.is_catalogue(),
            vote: Some(vote_to(prefix, votes::of(prefix, self.member.state()))),
            served: self.is_served(prefix),
        }
    }

    /// Whether clients of this primary are served: enough replicas hold the epoch's record.
    fn is_served(&self, prefix: &Prefix) -> bool {
        let role = self.store.role();
        let history = prefix.history();
        let record = history.newest().filter(|record| role.reign.as_ref().is_some_and(|r| r.epoch == record.epoch));
        role.is_primary && record.is_some_and(|record| prefix.released() >= record.start)
    }

    /// `None` if the member may take clients: a primary that serves, or a replica whose data is whole.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        let role = self.store.role();
        if role.is_primary || role.fenced {
            return None;
        }
        if role.reign.is_none() {
            return Some("no orders yet".into());
        }
        self.member.incomplete()
    }
}
