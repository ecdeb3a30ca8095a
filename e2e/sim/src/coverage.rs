//! Which states, orders, causes and faults the runs came by.

use std::collections::BTreeMap;

use parovoz_api::{ReignCause, ReignPhase};
use parovoz_dataplane_core::role::Standing;

use crate::msg::OrderKind;

/// How often each thing was seen.
#[derive(Debug, Default, Clone)]
pub struct Coverage(BTreeMap<&'static str, u64>);

impl Coverage {
    /// It was seen.
    pub fn hit(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    /// Adds what others saw.
    pub fn add(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            *self.0.entry(what).or_default() += count;
        }
    }

    /// How often something was seen.
    #[must_use]
    pub fn count(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// Everything that was seen.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().map(|(what, count)| (*what, *count))
    }

    /// What must be seen and was not.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        WANTED.iter().copied().filter(|what| self.count(what) == 0).collect()
    }
}

/// The name of a change of a member's standing; `None` of one that must not be. Nobody leads without having joined: the
/// epoch records are on the disk in between, so `Leading` follows `Joining` alone.
#[must_use]
pub fn standing(from: Standing, to: Standing) -> Option<&'static str> {
    use Standing::{Blank, Fenced, Joining, Leading, Replica, Sealed};
    Some(match (from, to) {
        (Blank, Sealed) => "role: blank to sealed",
        (Blank, Replica) => "role: blank to replica",
        (Sealed, Joining) => "role: sealed to joining",
        (Sealed, Replica) => "role: sealed to replica",
        (Replica, Sealed) => "role: replica to sealed",
        (Joining, Leading) => "role: joining to leading",
        (Joining, Fenced) => "role: joining to fenced",
        (Leading, Fenced) => "role: leading to fenced",
        (Leading, Replica) => "role: leading to replica",
        (Fenced, Replica) => "role: fenced to replica",
        (Fenced, Joining) => "role: fenced to joining",
        (Joining, Replica) => "role: joining to replica",
        _ => return None,
    })
}

/// The name of an order.
#[must_use]
pub fn order(kind: &OrderKind) -> &'static str {
    use parovoz_dataplane_core::member::SealEvidence;
    match kind {
        OrderKind::Seal { evidence: SealEvidence::Dead, .. } => "order: seal, primary dead",
        OrderKind::Seal { evidence: SealEvidence::PrimarySealed, .. } => "order: seal, primary sealed",
        OrderKind::Seal { evidence: SealEvidence::Silent, .. } => "order: seal, primary silent",
        OrderKind::Promote { first: true, .. } => "order: promote first",
        OrderKind::Promote { first: false, .. } => "order: promote",
        OrderKind::Follow { .. } => "order: follow",
        OrderKind::Pull { .. } => "order: pull",
        OrderKind::Freeze { .. } => "order: freeze",
    }
}

/// The name of a phase that a reign reached.
#[must_use]
pub fn phase(phase: ReignPhase) -> &'static str {
    match phase {
        ReignPhase::Forming => "phase: Forming",
        ReignPhase::Sealing => "phase: Sealing",
        ReignPhase::Promoting => "phase: Promoting",
        ReignPhase::Serving => "phase: Serving",
    }
}

/// The name of why a reign was begun.
#[must_use]
pub fn cause(cause: ReignCause) -> &'static str {
    match cause {
        ReignCause::First => "cause: First",
        ReignCause::PrimaryRestarted => "cause: PrimaryRestarted",
        ReignCause::PrimaryDead => "cause: PrimaryDead",
        ReignCause::PrimarySilent => "cause: PrimarySilent",
        ReignCause::PrimaryStalled => "cause: PrimaryStalled",
        ReignCause::CandidateFailed => "cause: CandidateFailed",
        ReignCause::RecordOutdated => "cause: RecordOutdated",
        ReignCause::MembersChanged => "cause: MembersChanged",
        ReignCause::SettingsChanged => "cause: SettingsChanged",
        ReignCause::Switchover => "cause: Switchover",
        ReignCause::PromotedByPerson => "cause: PromotedByPerson",
        ReignCause::Degraded => "cause: Degraded",
        ReignCause::QuorumRestored => "cause: QuorumRestored",
        ReignCause::Unknown => "cause: Unknown",
    }
}

/// What a long run must have seen. Not among it: the cause `RecordOutdated`, which no operator of this version writes.
pub const WANTED: &[&str] = &[
    "a second volume lost",
    "acknowledged writes lost, no replica waited for",
    "all served",
    "bootstrap done",
    "bootstrap failed",
    "bootstrap: diverged",
    "bootstrap: from another member",
    "bootstrap: gap",
    "bootstrap: missing",
    "cause: CandidateFailed",
    "cause: Degraded",
    "cause: First",
    "cause: MembersChanged",
    "cause: PrimaryDead",
    "cause: PrimaryRestarted",
    "cause: PrimarySilent",
    "cause: PrimaryStalled",
    "cause: PromotedByPerson",
    "cause: QuorumRestored",
    "cause: SettingsChanged",
    "cause: Switchover",
    "cause: Unknown",
    "crash between effects",
    "hello refused",
    "lease lost",
    "lease renewed",
    "newer reign met",
    "nothing deleted by an older record",
    "operator dies before the Lease",
    "operator dies before the objects",
    "operator dies before the orders",
    "operator dies before the status",
    "operator dies before the swap",
    "order not answered in time",
    "order refused",
    "order: follow",
    "order: freeze",
    "order: promote",
    "order: promote first",
    "order: pull",
    "order: seal, primary dead",
    "order: seal, primary sealed",
    "order: seal, primary silent",
    "parked write answered: unknown",
    "phase: Forming",
    "phase: Promoting",
    "phase: Sealing",
    "phase: Serving",
    "prefix created",
    "raise of the Lease failed",
    "read refused: no promises",
    "record brought up to date",
    "resume refused: diverged",
    "resume refused: too old",
    "role: blank to replica",
    "role: blank to sealed",
    "role: fenced to joining",
    "role: fenced to replica",
    "role: joining to fenced",
    "role: joining to leading",
    "role: joining to replica",
    "role: leading to fenced",
    "role: leading to replica",
    "role: replica to sealed",
    "role: sealed to joining",
    "role: sealed to replica",
    "swap: answer lost",
    "swap: conflict",
    "tail pulled",
    "upstream silent",
    "volume lost while promoting",
    "volume lost while sealing",
    "write waited for a freeze",
];
