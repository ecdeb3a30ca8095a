//! What a member says of its copy of one prefix when a new reign is decided: where it ends, or that nobody can tell.
//!
//! A vote is a claim: "all that I ever acknowledged of this prefix is in this copy, and it ends here". A copy of which that
//! may be untrue has no known vote; its floor says from which known vote of others on it changes nothing.

use std::collections::BTreeMap;
use std::fmt;

use crate::types::{Epoch, Position, PrefixUuid, Reign};

/// The vote of one copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vote {
    /// The copy's last record.
    Known(Position),
    /// The copy is being replaced, below its floor, damaged or missing.
    Unknown {
        /// Counts once a known vote is at or above this; `None` = nothing is known of it.
        floor: Option<Position>,
    },
}

/// One member's votes.
pub type Votes = BTreeMap<PrefixUuid, Vote>;

impl Vote {
    /// The position, if it is known.
    #[must_use]
    pub fn known(self) -> Option<Position> {
        match self {
            Self::Known(position) => Some(position),
            Self::Unknown { .. } => None,
        }
    }
}

impl fmt::Display for Vote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(position) => position.fmt(f),
            Self::Unknown { floor: Some(floor) } => write!(f, "unknown below {floor}"),
            Self::Unknown { floor: None } => f.write_str("unknown"),
        }
    }
}

/// What a member has of a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyState {
    /// Its creation is not applied here: nothing of it was ever acknowledged.
    NotCreated,
    /// The catalogue here lists it, and there is no database.
    Missing,
    /// Its copy is being replaced, from the order to do so until the new one is verified.
    Replacing,
    /// Its copy refused to be opened or read.
    Damaged,
    /// An open copy that ends at this position.
    Open(Position),
}

/// The facts that a vote is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyFacts {
    /// What there is.
    pub state: CopyState,
    /// Below this the copy neither acknowledges, votes nor serves as a source: where an earlier copy, or this one before it
    /// lost the end of its log, had been.
    pub floor: Option<Position>,
}

/// The vote of one copy.
#[must_use]
pub fn vote(facts: CopyFacts) -> Vote {
    let unknown = Vote::Unknown { floor: facts.floor };
    match facts.state {
        CopyState::NotCreated if facts.floor.is_none() => Vote::Known(Position::ZERO),
        CopyState::NotCreated | CopyState::Missing | CopyState::Replacing | CopyState::Damaged => unknown,
        CopyState::Open(at) if is_below_floor(at, facts.floor) && !parovoz_mutant::on("votes-below-floor") => unknown,
        CopyState::Open(at) => Vote::Known(at),
    }
}

/// Whether a copy that ends at `at` may not count yet.
#[must_use]
pub fn is_below_floor(at: Position, floor: Option<Position>) -> bool {
    floor.is_some_and(|floor| at < floor)
}

/// Whether a floor has done its work: a whole copy durably reached it, or ends exactly where the reign that the member is
/// sealed for was decided to begin (`pulled`). Whatever was acknowledged before is at or below that place; what the member had
/// beyond may be gone, and it could never be above that floor. Where the `promised` reign waits for no replica, nothing
/// proves that what was decided is all.
#[must_use]
pub fn floor_is_met(at: Position, floor: Position, pulled: Option<Position>, promised: Option<&Reign>) -> bool {
    let proven = promised.is_some_and(|reign| reign.required() > 0);
    at >= floor || (proven && pulled == Some(at))
}

/// Whether a copy that ends at `at` may be acknowledged to the primary of `reign`.
///
/// Below its floor it may not count for anything that a reign acknowledges. A position of an earlier epoch never does: it is
/// compared with where the reign begins, and with nothing else. Whatever was acknowledged before is at or below that place,
/// so a copy that ends exactly there lacks nothing of it, whatever its floor is. Without this, replicas that had more than
/// a new primary and were copied anew from it would stay below what they had had, and it could never begin.
#[must_use]
pub fn may_acknowledge(at: Position, floor: Option<Position>, reign: Epoch) -> bool {
    !is_below_floor(at, floor) || at.epoch < reign || parovoz_mutant::on("ack-below-floor")
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::types::{DataUuid, Mode, ReignId};

    const AT: Position = Position::new(3, 100);

    fn reign(w: u32) -> Reign {
        let member = |n| DataUuid(Uuid::from_u128(n));
        Reign {
            epoch: Epoch(3),
            reign_id: ReignId(Uuid::from_u128(1)),
            primary: member(1),
            members: vec![member(1), member(2)],
            mode: if w > 0 { Mode::Quorum } else { Mode::Async },
            min_sync_replicas: w,
            lease_duration_ms: 5_000,
        }
    }

    fn of(state: CopyState, floor: Option<Position>) -> Vote {
        vote(CopyFacts { state, floor })
    }

    #[test]
    fn a_whole_copy_votes_where_it_ends() {
        assert_eq!(of(CopyState::Open(AT), None), Vote::Known(AT));
        assert_eq!(of(CopyState::Open(AT), Some(AT)), Vote::Known(AT));
    }

    #[test]
    fn a_copy_below_its_floor_or_without_data_votes_unknown_and_names_the_floor() {
        let floor = Some(Position::new(3, 101));
        let unknown = Vote::Unknown { floor };
        for state in [CopyState::Open(AT), CopyState::Missing, CopyState::Replacing, CopyState::Damaged] {
            assert_eq!(of(state, floor), unknown, "{state:?}");
        }
        assert_eq!(of(CopyState::Missing, None), Vote::Unknown { floor: None });
        let later_epoch = Some(Position::new(4, 1));
        assert_eq!(of(CopyState::Open(AT), later_epoch), Vote::Unknown { floor: later_epoch });
    }

    #[test]
    fn a_copy_under_replacement_never_votes_however_far_it_is() {
        assert_eq!(of(CopyState::Replacing, None).known(), None);
    }

    #[test]
    fn below_its_floor_a_copy_is_acknowledged_only_to_a_reign_that_has_not_begun_in_it() {
        let floor = Some(Position::new(3, 120));
        assert!(may_acknowledge(AT, floor, Epoch(4)), "to join");
        assert!(!may_acknowledge(AT, floor, Epoch(3)), "would count for what epoch 3 acknowledges");
        assert!(may_acknowledge(Position::new(4, 1), floor, Epoch(4)));
    }

    #[test]
    fn a_floor_is_met_there_or_exactly_where_the_next_reign_was_decided_to_begin() {
        let floor = Position::new(3, 101);
        let waits = reign(1);
        let met = |at, pulled| floor_is_met(at, floor, pulled, Some(&waits));
        assert!(met(floor, None) && met(AT, Some(AT)));
        assert!(!met(AT, None) && !met(AT, Some(Position::new(3, 99))));
        // Nobody proved that no more was acknowledged.
        assert!(!floor_is_met(AT, floor, Some(AT), Some(&reign(0))) && !floor_is_met(AT, floor, Some(AT), None));
    }

    #[test]
    fn a_creation_that_was_not_applied_votes_zero() {
        assert_eq!(of(CopyState::NotCreated, None), Vote::Known(Position::ZERO));
    }
}
