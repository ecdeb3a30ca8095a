//! Wire messages to the core's values and back.

use std::time::Duration;

use parovoz_api::{MemberPhase, MemberRole, Mode};
use parovoz_operator_core::observed::{
    BootstrapProgress, FollowerReport, KnownReign, Position, PrefixReport, ReignRef, Report,
};
use parovoz_operator_core::plan::{Endpoint, PrefixPosition, SealEvidence};
use parovoz_operator_core::quorum::Vote;
use parovoz_proto::v1;

/// What a member said, as the core sees it. Values that this build does not know become `Unknown`.
#[must_use]
pub fn report(message: v1::MemberReport) -> Report {
    Report {
        role: match message.role() {
            v1::MemberRole::Primary => MemberRole::Primary,
            v1::MemberRole::Replica => MemberRole::Replica,
            v1::MemberRole::Unspecified => MemberRole::Unknown,
        },
        phase: match message.phase() {
            v1::MemberPhase::Unspecified => MemberPhase::Unknown,
            v1::MemberPhase::Blank => MemberPhase::Blank,
            v1::MemberPhase::Waiting => MemberPhase::Waiting,
            v1::MemberPhase::Bootstrapping => MemberPhase::Bootstrapping,
            v1::MemberPhase::CatchingUp => MemberPhase::CatchingUp,
            v1::MemberPhase::Streaming => MemberPhase::Streaming,
            v1::MemberPhase::Serving => MemberPhase::Serving,
            v1::MemberPhase::Parked => MemberPhase::Parked,
        },
        store_uid: message.store_uid,
        data_uuid: message.data_uuid,
        process_id: message.process_id,
        // An empty reign is how a member says that it has none.
        reign: message.reign.map(known_reign).filter(|reign| reign.epoch > 0),
        started_epoch: message.started_epoch,
        prefixes: message.prefixes.into_iter().map(prefix).collect(),
        followers: message.followers.into_iter().map(follower).collect(),
        upstream_data_uuid: message.upstream_data_uuid,
        upstream_address: message.upstream_address,
        primary_data_uuid: message.primary_data_uuid,
        bootstrap_source: message.bootstrap_source_data_uuid,
        upstream_connected: message.upstream_connected,
        disk_free_bytes: message.disk_free_bytes,
        disk_total_bytes: message.disk_total_bytes,
        reason: message.reason,
        restarts: message.restarts,
        complete: message.complete,
        sealed: message
            .sealed
            .map(|sealed| ReignRef { epoch: sealed.epoch, reign_id: sealed.reign_id })
            .filter(|sealed| sealed.epoch > 0),
        primary_silence: message.primary_silence_ms.map(Duration::from_millis),
        can_acknowledge: message.can_acknowledge,
        oldest_wait: Duration::from_millis(message.oldest_wait_ms),
        stalled_fsync: message.stalled_fsync_ms.map(Duration::from_millis),
        frozen: Duration::from_millis(message.frozen_ms),
        uptime: Duration::from_millis(message.uptime_ms),
        config_hash: message.config_hash,
    }
}

fn place(position: v1::Position) -> Position {
    Position { epoch: position.epoch, sequence: position.sequence }
}

/// A vote that is absent is unknown: a member of an earlier version does not vote.
fn vote(vote: Option<v1::Vote>) -> Vote {
    match vote {
        Some(v1::Vote { known: Some(known), .. }) => Vote::Known(place(known)),
        Some(v1::Vote { floor, .. }) => Vote::Unknown { floor: floor.map(place) },
        None => Vote::Unknown { floor: None },
    }
}

fn known_reign(reign: v1::Reign) -> KnownReign {
    KnownReign {
        mode: match reign.mode() {
            v1::Mode::Quorum => Mode::Quorum,
            v1::Mode::Async | v1::Mode::Unspecified => Mode::Async,
        },
        epoch: reign.epoch,
        reign_id: reign.reign_id,
        primary: reign.primary,
        members: reign.members,
        min_sync_replicas: reign.min_sync_replicas,
        lease_duration_ms: reign.lease_duration_ms,
    }
}

fn prefix(prefix: v1::PrefixReport) -> PrefixReport {
    PrefixReport {
        name: prefix.name,
        prefix_uuid: prefix.prefix_uuid,
        applied: place(prefix.applied.unwrap_or_default()),
        system: prefix.system,
        vote: vote(prefix.vote),
        served: prefix.served,
        upstream_latest: place(prefix.upstream_latest.unwrap_or_default()),
        bootstrap: prefix.bootstrap.map(|copy| BootstrapProgress {
            method: copy.method,
            bytes_done: copy.bytes_done,
            bytes_total: copy.bytes_total,
            bytes_per_second: copy.bytes_per_second,
        }),
        reason: prefix.reason,
    }
}

fn follower(follower: v1::FollowerReport) -> FollowerReport {
    FollowerReport {
        data_uuid: follower.data_uuid,
        connected: follower.connected,
        lag_sequences: follower.lag_sequences,
        lag_bytes: follower.lag_bytes,
        lag_ms: follower.lag_ms,
        window_left_seconds: follower.window_left_seconds,
    }
}

/// A reign for the wire.
pub(super) fn wire_reign(reign: &KnownReign) -> v1::Reign {
    let mode = match reign.mode {
        Mode::Async => v1::Mode::Async,
        Mode::Quorum => v1::Mode::Quorum,
    };
    v1::Reign {
        epoch: reign.epoch,
        reign_id: reign.reign_id.clone(),
        primary: reign.primary.clone(),
        members: reign.members.clone(),
        mode: mode.into(),
        min_sync_replicas: reign.min_sync_replicas,
        lease_duration_ms: reign.lease_duration_ms,
    }
}

/// An endpoint for the wire.
pub(super) fn wire_endpoint(endpoint: &Endpoint) -> v1::Endpoint {
    v1::Endpoint {
        data_uuid: endpoint.data_uuid.clone(),
        replication_address: endpoint.replication_address.clone(),
        client_address: endpoint.client_address.clone(),
        resp_address: endpoint.resp_address.clone(),
        ip: endpoint.ip.map(|ip| ip.to_string()).unwrap_or_default(),
    }
}

/// Names a reign on the wire.
pub(super) fn wire_ref(reign: &ReignRef) -> v1::ReignRef {
    v1::ReignRef { epoch: reign.epoch, reign_id: reign.reign_id.clone() }
}

/// Positions for the wire.
pub(super) fn wire_positions(positions: &[PrefixPosition]) -> Vec<v1::Vote> {
    let one = |at: &PrefixPosition| v1::Vote {
        prefix_uuid: at.prefix_uuid.clone(),
        name: at.name.clone(),
        known: Some(v1::Position { epoch: at.position.epoch, sequence: at.position.sequence }),
        floor: None,
    };
    positions.iter().map(one).collect()
}

/// Evidence for the wire.
pub(super) fn wire_evidence(evidence: SealEvidence) -> v1::SealEvidence {
    match evidence {
        SealEvidence::Dead => v1::SealEvidence::Dead,
        SealEvidence::PrimarySealed => v1::SealEvidence::PrimarySealed,
        SealEvidence::Silent => v1::SealEvidence::Silent,
    }
}
