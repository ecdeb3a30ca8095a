//! The facts about this member's copies, from which the core makes its votes.

use std::collections::BTreeMap;

use parovoz_dataplane_core::types::PrefixUuid;
use parovoz_dataplane_core::vote::{self, CopyFacts, CopyState, Vote};

use super::state::MemberState;
use crate::store::Store;
use crate::store::prefix::{Prefix, PrefixPhase};

/// One vote for each prefix that this member knows of. A blank member has none.
#[must_use]
pub fn all(store: &Store, state: &MemberState) -> BTreeMap<PrefixUuid, Vote> {
    store.prefixes().by_uuid.values().map(|prefix| (prefix.uuid, of(prefix, state))).collect()
}

/// The vote of one copy: where it ends once it is synced, as a seal does before it is answered.
#[must_use]
pub fn of(prefix: &Prefix, state: &MemberState) -> Vote {
    let open = prefix.copy().is_some();
    let state_of_copy = match prefix.phase() {
        PrefixPhase::Bootstrapping => CopyState::Replacing,
        // A copy that was stopped by a gap or a divergence ends where it ends; one that could not be opened has no end.
        PrefixPhase::Stopped { .. } if !open => CopyState::Damaged,
        _ if !open => CopyState::Missing,
        _ => CopyState::Open(prefix.position_at(prefix.applied())),
    };
    vote::vote(CopyFacts { state: state_of_copy, floor: state.floor(prefix.uuid) })
}
