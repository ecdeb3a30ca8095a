//! Who may talk to whom: the checks of both sides' hellos.

use crate::types::{DataUuid, Epoch, ReignRef, StoreUid};

/// What the other side of a connection says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerHello {
    /// Newest protocol version that it speaks.
    pub version: u32,
    /// Oldest that it understands.
    pub min_version: u32,
    /// Its store.
    pub store: StoreUid,
    /// Its volume.
    pub data_uuid: DataUuid,
    /// Whom it believes to talk to.
    pub expected: Option<DataUuid>,
    /// The reign that it promised; `None` before its first orders.
    pub reign: Option<ReignRef>,
    /// Itself and everyone that it streams from.
    pub path: Vec<DataUuid>,
}

/// The first protocol version that knows bundles, compressed or not, and questions about the round trip.
const BUNDLES_SINCE: u32 = 2;

impl PeerHello {
    /// Whether it understands bundles and compressed payloads.
    #[must_use]
    pub fn takes_bundles(&self) -> bool {
        self.version >= BUNDLES_SINCE
    }
}

/// What this side of a connection is.
#[derive(Debug, Clone)]
pub struct Own {
    /// Newest protocol version spoken here.
    pub version: u32,
    /// Oldest understood here.
    pub min_version: u32,
    /// The store.
    pub store: StoreUid,
    /// This member.
    pub data_uuid: DataUuid,
    /// The reign promised here.
    pub reign: Option<ReignRef>,
    /// Whom this side wanted to reach; `None` = anyone.
    pub wanted: Option<DataUuid>,
    /// This member and everyone that it streams from.
    pub path: Vec<DataUuid>,
}

/// Why two members do not talk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// No protocol version in common.
    #[error("check hello: the peer speaks protocol {min} to {max}, this member {own_min} to {own_max}")]
    Version {
        /// The peer's newest.
        max: u32,
        /// The peer's oldest.
        min: u32,
        /// Newest here.
        own_max: u32,
        /// Oldest here.
        own_min: u32,
    },
    /// Another store.
    #[error("check hello: the peer belongs to store {theirs}, this member to {ours}")]
    ForeignStore {
        /// The peer's.
        theirs: StoreUid,
        /// This member's.
        ours: StoreUid,
    },
    /// The address leads to another member.
    #[error("check hello: the peer is {found}, expected was {expected}")]
    WrongMember {
        /// Who it is.
        found: DataUuid,
        /// Who it should be.
        expected: DataUuid,
    },
    /// Both sides have one data_uuid: a copied volume, or a member that follows itself.
    #[error("check hello: the peer has this member's own data_uuid {0}")]
    Itself(DataUuid),
    /// One streams from the other already.
    #[error("check hello: {0} already streams from this member: following it would close a cycle")]
    Cycle(DataUuid),
    /// The peer's reign is older than the one promised here.
    #[error("check hello: the peer's reign {theirs} is older than {ours}")]
    OlderReign {
        /// The peer's.
        theirs: Epoch,
        /// Promised here.
        ours: Epoch,
    },
    /// Two reigns of one epoch.
    #[error("check hello: the peer's reign of epoch {0} has another identity")]
    ForeignReign(Epoch),
    /// The peer was not told yet what to do.
    #[error("check hello: the peer has no reign yet")]
    NoReign,
    /// The peer promised a newer reign than this member: its orders will come here too.
    #[error("check hello: the peer's reign {theirs} is newer than {ours}, which this member serves")]
    NewerReign {
        /// The peer's.
        theirs: Epoch,
        /// Here.
        ours: Epoch,
    },
}

impl HelloError {
    /// Whether waiting alone can cure it; otherwise somebody must change addresses, orders or versions. Both are tried again.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::OlderReign { .. } | Self::NoReign | Self::NewerReign { .. } => true,
            Self::Version { .. }
            | Self::ForeignStore { .. }
            | Self::WrongMember { .. }
            | Self::Itself(_)
            | Self::Cycle(_)
            | Self::ForeignReign(_) => false,
        }
    }
}

fn check_identity(own: &Own, peer: &PeerHello) -> Result<(), HelloError> {
    if peer.min_version > own.version || peer.version < own.min_version {
        let (max, min) = (peer.version, peer.min_version);
        return Err(HelloError::Version { max, min, own_max: own.version, own_min: own.min_version });
    }
    if peer.store != own.store {
        return Err(HelloError::ForeignStore { theirs: peer.store.clone(), ours: own.store.clone() });
    }
    if peer.data_uuid == own.data_uuid {
        return Err(HelloError::Itself(own.data_uuid));
    }
    match (own.wanted, peer.expected) {
        (Some(wanted), _) if wanted != peer.data_uuid => {
            Err(HelloError::WrongMember { found: peer.data_uuid, expected: wanted })
        }
        (_, Some(expected)) if expected != own.data_uuid => {
            Err(HelloError::WrongMember { found: own.data_uuid, expected })
        }
        _ => Ok(()),
    }
}

/// The follower's check of its upstream. `Ok(Some)` = a newer reign that must be promised before anything is accepted.
///
/// # Errors
/// See [`HelloError`].
pub fn check_upstream(own: &Own, peer: &PeerHello) -> Result<Option<ReignRef>, HelloError> {
    check_identity(own, peer)?;
    if peer.path.contains(&own.data_uuid) {
        return Err(HelloError::Cycle(peer.data_uuid));
    }
    let theirs = peer.reign.ok_or(HelloError::NoReign)?;
    match own.reign {
        Some(ours) if theirs.epoch < ours.epoch => {
            Err(HelloError::OlderReign { theirs: theirs.epoch, ours: ours.epoch })
        }
        Some(ours) if theirs.epoch == ours.epoch && theirs.reign_id != ours.reign_id => {
            Err(HelloError::ForeignReign(ours.epoch))
        }
        Some(ours) if theirs == ours => Ok(None),
        _ => Ok(Some(theirs)),
    }
}

/// The upstream's (and the primary's) check of a follower.
///
/// # Errors
/// See [`HelloError`].
pub fn check_follower(own: &Own, peer: &PeerHello) -> Result<ReignRef, HelloError> {
    check_identity(own, peer)?;
    if own.path.contains(&peer.data_uuid) {
        return Err(HelloError::Cycle(peer.data_uuid));
    }
    let ours = own.reign.ok_or(HelloError::NoReign)?;
    match peer.reign {
        Some(theirs) if theirs.epoch > ours.epoch => {
            Err(HelloError::NewerReign { theirs: theirs.epoch, ours: ours.epoch })
        }
        Some(theirs) if theirs.epoch == ours.epoch && theirs.reign_id != ours.reign_id => {
            Err(HelloError::ForeignReign(ours.epoch))
        }
        _ => Ok(ours),
    }
}
