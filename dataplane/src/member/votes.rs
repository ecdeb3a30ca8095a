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
    // A copy that waits for room, or one that is damaged, may have ended far above what is stored as its floor.
    let untold = !open && (prefix.lacks_room() || prefix.lost_its_end());
    let floor = if untold { None } else { state.floor(prefix.uuid) };
    vote::vote(CopyFacts { state: state_of_copy, floor })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use parovoz_dataplane_core::lease::LeaseKeeper;
    use parovoz_dataplane_core::member::MemberRecord;
    use parovoz_dataplane_core::types::{DataUuid, Limits, Position, PrefixName, StoreUid};
    use uuid::Uuid;

    use super::*;
    use crate::config::Settings;
    use crate::disk::slots::Slots;
    use crate::scratch::Scratch;

    #[test]
    fn a_copy_that_waits_for_room_or_is_damaged_may_have_ended_above_its_floor() {
        let dir = Scratch::new();
        let (store_uid, me) = (StoreUid("s".into()), DataUuid(Uuid::from_u128(1)));
        let store = Arc::new(Store::new(store_uid.clone(), me, Limits::default(), Settings::default(), 1 << 20));
        let (slots, _) = Slots::open(dir.path()).unwrap();
        let record = MemberRecord::blank(store_uid, me, String::new());
        let state = MemberState::new(slots, record, store.clone(), LeaseKeeper::Nobody);
        let uuid = PrefixUuid(Uuid::from_u128(2));
        let prefix = Prefix::new(PrefixName::new("p").unwrap(), uuid, 0, store.ring_budget.clone());
        prefix.set_phase(PrefixPhase::Stopped { reason: "no room".into() });
        let floor = Position::new(1, 7);
        state.raise_floors(&[(uuid, floor)]).unwrap();
        assert_eq!(of(&prefix, &state), Vote::Unknown { floor: Some(floor) });
        prefix.set_lacks_room(true);
        assert_eq!(of(&prefix, &state), Vote::Unknown { floor: None });
        prefix.set_lacks_room(false);
        prefix.set_lost_its_end(true);
        prefix.set_phase(PrefixPhase::Bootstrapping);
        assert_eq!(of(&prefix, &state), Vote::Unknown { floor: None }, "ordered, and the primary not asked yet");
    }
}
