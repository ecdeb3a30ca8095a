//! Between the messages of the wire and the types of the core. Whatever a peer sends is checked here first.

use parovoz_dataplane_core::acks::AckPositions;
use parovoz_dataplane_core::follower::{BundleIn, FrameIn, Own, PeerHello, RefusalReason};
use parovoz_dataplane_core::types::{
    DataUuid, Epoch, Mode, Position, PrefixUuid, Reign, ReignId, ReignRef, Sequence, StoreUid,
};
use parovoz_proto::v1;

/// Why a message of a peer can't be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field that must be set is not.
    #[error("read message: {0} is missing")]
    Missing(&'static str),
    /// A field has another form.
    #[error("read message: {0} is malformed")]
    Malformed(&'static str),
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// A position as it goes over the wire.
#[must_use]
pub fn position_to(p: Position) -> v1::Position {
    v1::Position { epoch: p.epoch.0, sequence: p.sequence.0 }
}

/// An absent position is the one before the first record.
#[must_use]
pub fn position_from(p: Option<v1::Position>) -> Position {
    p.map_or(Position::ZERO, |p| Position::new(p.epoch, p.sequence))
}

/// A prefix's identity from the wire.
///
/// # Errors
/// [`WireError`] if it is malformed.
pub fn prefix_from(text: &str) -> Result<PrefixUuid, WireError> {
    text.parse().map_err(|_| WireError::Malformed("prefix_uuid"))
}

pub(super) fn member_from(text: &str) -> Result<DataUuid, WireError> {
    text.parse().map_err(|_| WireError::Malformed("data_uuid"))
}

/// A reign's name as it goes over the wire.
#[must_use]
pub fn reign_ref_to(r: ReignRef) -> v1::ReignRef {
    v1::ReignRef { epoch: r.epoch.0, reign_id: r.reign_id.to_string() }
}

/// A reign's name from the wire.
///
/// # Errors
/// [`WireError`] if its identity is malformed.
pub fn reign_ref_from(r: &v1::ReignRef) -> Result<ReignRef, WireError> {
    let reign_id: ReignId = r.reign_id.parse().map_err(|_| WireError::Malformed("reign_id"))?;
    Ok(ReignRef { epoch: Epoch(r.epoch), reign_id })
}

/// A reign as it goes over the wire.
#[must_use]
pub fn reign_to(r: &Reign) -> v1::Reign {
    v1::Reign {
        epoch: r.epoch.0,
        reign_id: r.reign_id.to_string(),
        primary: r.primary.to_string(),
        members: r.members.iter().map(ToString::to_string).collect(),
        mode: match r.mode {
            Mode::Async => v1::Mode::Async.into(),
            Mode::Quorum => v1::Mode::Quorum.into(),
        },
        min_sync_replicas: r.min_sync_replicas,
        lease_duration_ms: r.lease_duration_ms,
    }
}

/// A reign from the wire.
///
/// # Errors
/// [`WireError`] if an identity or the mode is malformed, or the primary is no member.
pub fn reign_from(r: &v1::Reign) -> Result<Reign, WireError> {
    let members = r.members.iter().map(|m| member_from(m)).collect::<Result<Vec<_>, _>>()?;
    let primary = member_from(&r.primary)?;
    let mode = match v1::Mode::try_from(r.mode) {
        Ok(v1::Mode::Async) => Mode::Async,
        Ok(v1::Mode::Quorum) => Mode::Quorum,
        _ => return Err(WireError::Malformed("mode")),
    };
    if !members.contains(&primary) {
        return Err(WireError::Malformed("members"));
    }
    Ok(Reign {
        epoch: Epoch(r.epoch),
        reign_id: r.reign_id.parse().map_err(|_| WireError::Malformed("reign_id"))?,
        primary,
        members,
        mode,
        min_sync_replicas: r.min_sync_replicas,
        lease_duration_ms: r.lease_duration_ms,
    })
}

pub(super) fn hello_to(own: &Own, whole: Option<&Reign>) -> v1::Hello {
    v1::Hello {
        protocol_version: own.version,
        min_protocol_version: own.min_version,
        store_uid: own.store.0.clone(),
        data_uuid: own.data_uuid.to_string(),
        expected_data_uuid: own.wanted.map(|w| w.to_string()).unwrap_or_default(),
        reign: own.reign.map(reign_ref_to),
        upstream_path: own.path.iter().map(ToString::to_string).collect(),
        whole_reign: whole.map(reign_to),
    }
}

pub(super) fn hello_from(hello: &v1::Hello) -> Result<PeerHello, WireError> {
    let expected =
        if hello.expected_data_uuid.is_empty() { None } else { Some(member_from(&hello.expected_data_uuid)?) };
    Ok(PeerHello {
        version: hello.protocol_version,
        min_version: hello.min_protocol_version,
        store: StoreUid(hello.store_uid.clone()),
        data_uuid: member_from(&hello.data_uuid)?,
        expected,
        reign: hello.reign.as_ref().map(reign_ref_from).transpose()?,
        path: hello.upstream_path.iter().map(|m| member_from(m)).collect::<Result<_, _>>()?,
    })
}

/// A frame whose payload was unpacked already.
pub(super) fn frame_from(f: v1::Frame) -> Result<FrameIn, WireError> {
    Ok(FrameIn {
        prefix: prefix_from(&f.prefix_uuid)?,
        attempt: f.attempt,
        reign: reign_ref_from(f.reign.as_ref().ok_or(WireError::Missing("reign"))?)?,
        epoch: Epoch(f.epoch),
        first: Sequence(f.first_sequence),
        count: f.count,
        crc32c: f.crc32c,
        payload: f.payload,
        total: f.total_bytes,
        offset: f.offset,
        committed_at_ms: f.committed_at_ms,
    })
}

/// What all frames of one prefix's stream have in common.
#[derive(Debug, Clone)]
pub(super) struct FrameHead {
    pub prefix_uuid: String,
    pub attempt: u64,
    pub reign: v1::ReignRef,
}

/// A bundle whose payload was unpacked already.
pub(super) fn bundle_from(b: v1::Bundle) -> Result<BundleIn, WireError> {
    Ok(BundleIn {
        prefix: prefix_from(&b.prefix_uuid)?,
        attempt: b.attempt,
        reign: reign_ref_from(b.reign.as_ref().ok_or(WireError::Missing("reign"))?)?,
        epoch: Epoch(b.epoch),
        first: Sequence(b.first_sequence),
        lengths: b.lengths,
        crc32c: b.crc32c,
        payload: b.payload,
        committed_at_ms: b.committed_at_ms,
    })
}

pub(super) fn refusal_from(r: v1::Refusal) -> Result<(PrefixUuid, u64, RefusalReason), WireError> {
    use v1::refusal::Reason;
    let reason = match r.reason.ok_or(WireError::Missing("reason"))? {
        Reason::TooOld(t) => RefusalReason::TooOld { oldest: Sequence(t.oldest_sequence) },
        Reason::Diverged(d) => RefusalReason::Diverged { fork: position_from(d.fork) },
        Reason::Unknown(_) => RefusalReason::Unknown,
        Reason::Busy(_) => RefusalReason::Busy,
    };
    Ok((prefix_from(&r.prefix_uuid)?, r.attempt, reason))
}

pub(super) fn latest_from(latest: &[v1::PrefixLatest]) -> Result<Vec<(PrefixUuid, Position)>, WireError> {
    latest.iter().map(|l| Ok((prefix_from(&l.prefix_uuid)?, position_from(l.position)))).collect()
}

pub(super) fn ack_from(a: &v1::Ack) -> Result<(PrefixUuid, AckPositions), WireError> {
    let positions = AckPositions {
        received: position_from(a.received),
        applied: position_from(a.applied),
        durable: position_from(a.durable),
    };
    Ok((prefix_from(&a.prefix_uuid)?, positions))
}

pub(super) fn ack_to(prefix: PrefixUuid, a: AckPositions) -> v1::Ack {
    v1::Ack {
        prefix_uuid: prefix.to_string(),
        received: Some(position_to(a.received)),
        applied: Some(position_to(a.applied)),
        durable: Some(position_to(a.durable)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_reign_survives_the_wire_and_a_primary_outside_its_members_does_not() {
        let reign = Reign {
            epoch: Epoch(4),
            reign_id: ReignId(Uuid::from_u128(1)),
            primary: DataUuid(Uuid::from_u128(2)),
            members: vec![DataUuid(Uuid::from_u128(2)), DataUuid(Uuid::from_u128(3))],
            mode: Mode::Quorum,
            min_sync_replicas: 1,
            lease_duration_ms: 10,
        };
        assert_eq!(reign_from(&reign_to(&reign)).unwrap(), reign);
        let stranger = Reign { primary: DataUuid(Uuid::from_u128(9)), ..reign };
        assert!(reign_from(&reign_to(&stranger)).is_err());
    }
}
