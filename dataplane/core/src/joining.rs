//! The first steps of a new primary: it waits for replicas, writes its epoch records, then serves prefix by prefix.
//!
//! It writes nothing before W replicas have joined its reign *and* hold all that it holds: until then a later reign may still
//! bring it records that it lacks. What it writes first is the epoch record of each prefix; once W replicas hold that one,
//! every later decision finds this epoch, and the prefix is served.

use std::collections::{BTreeMap, BTreeSet};

use crate::acks::AckTable;
use crate::types::{DataUuid, Position, PrefixUuid, Reign, Sequence};
use crate::vote::Votes;

/// What is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoiningStep {
    /// Write the epoch records of all prefixes unsynced, then sync them all; tell [`Joining::written`].
    Write,
    /// This prefix is served from now on.
    Serve(PrefixUuid),
    /// All prefixes that there were at the promotion are served.
    AllServed,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joining {
    reign: Reign,
    /// Where each prefix ended at the promotion.
    starts: BTreeMap<PrefixUuid, Position>,
    asked: bool,
    /// Where each prefix's epoch record stands, once written.
    records: Option<BTreeMap<PrefixUuid, Sequence>>,
    served: BTreeSet<PrefixUuid>,
    all_told: bool,
}

impl Joining {
    /// A reign that begins with these copies.
    #[must_use]
    pub fn new(reign: Reign, positions: &Votes) -> Self {
        let starts = positions.iter().map(|(prefix, vote)| (*prefix, vote.known().unwrap_or(Position::ZERO))).collect();
        Self { reign, starts, asked: false, records: None, served: BTreeSet::new(), all_told: false }
    }

    /// Whether the epoch records are written: the primary may take writes.
    #[must_use]
    pub fn has_written(&self) -> bool {
        self.records.is_some()
    }

    /// Whether a prefix is served; one that was created later is, by its creation.
    #[must_use]
    pub fn is_served(&self, prefix: PrefixUuid) -> bool {
        self.records.as_ref().is_some_and(|r| !r.contains_key(&prefix)) || self.served.contains(&prefix)
    }

    /// The prefixes that are not served yet.
    pub fn unserved(&self) -> impl Iterator<Item = PrefixUuid> + '_ {
        let written = self.records.iter().flat_map(|records| records.keys());
        self.starts.keys().chain(written).copied().filter(|prefix| !self.served.contains(prefix))
    }

    /// Whether all prefixes are.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.all_told
    }

    /// The epoch records are written and synced, at these places.
    pub fn written(&mut self, records: BTreeMap<PrefixUuid, Sequence>) {
        self.records = Some(records);
    }

    /// A replica has joined once it holds, durably, exactly what this primary began with, in every prefix.
    fn has_joined(&self, member: DataUuid, acks: &AckTable) -> bool {
        let holds = |(prefix, start): (&PrefixUuid, &Position)| {
            acks.position(member, *prefix).is_some_and(|at| at.durable == *start)
        };
        acks.knows(member) && self.starts.iter().all(holds)
    }

    /// What the acknowledgements so far allow; each step is answered once.
    pub fn progress(&mut self, acks: &AckTable, steps: &mut Vec<JoiningStep>) {
        let required = self.reign.required();
        if !self.asked {
            let joined = self.reign.replicas().filter(|member| self.has_joined(*member, acks)).count();
            if joined >= required as usize || parovoz_mutant::on("joined-alone") {
                self.asked = true;
                steps.push(JoiningStep::Write);
            }
        }
        let Some(records) = &self.records else { return };
        for (prefix, record) in records {
            let held = required == 0 || acks.released(*prefix, &self.reign, required).is_some_and(|to| to >= *record);
            let held = held || parovoz_mutant::on("joined-alone");
            if held && self.served.insert(*prefix) {
                steps.push(JoiningStep::Serve(*prefix));
            }
        }
        if self.served.len() == records.len() && !self.all_told {
            self.all_told = true;
            steps.push(JoiningStep::AllServed);
        }
    }

    /// A prefix was dropped: nobody waits for it any more.
    pub fn forget(&mut self, prefix: PrefixUuid) {
        self.starts.remove(&prefix);
        self.served.remove(&prefix);
        if let Some(records) = &mut self.records {
            records.remove(&prefix);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::acks::AckPositions;
    use crate::types::{Epoch, Mode, ReignId};
    use crate::vote::Vote;
    use uuid::Uuid;

    const P: PrefixUuid = PrefixUuid(Uuid::from_u128(70));
    const Q: PrefixUuid = PrefixUuid(Uuid::from_u128(71));

    fn who(n: u128) -> DataUuid {
        DataUuid(Uuid::from_u128(n))
    }

    fn reign(w: u32) -> Reign {
        Reign {
            epoch: Epoch(5),
            reign_id: ReignId(Uuid::from_u128(1)),
            primary: who(1),
            members: (1..=3).map(who).collect(),
            mode: Mode::Quorum,
            min_sync_replicas: w,
            lease_duration_ms: 5000,
        }
    }

    fn begin(w: u32) -> Joining {
        let votes = [(P, Vote::Known(Position::new(4, 10))), (Q, Vote::Known(Position::new(4, 20)))];
        Joining::new(reign(w), &votes.into_iter().collect())
    }

    fn ack(acks: &mut AckTable, member: u128, at: &[(PrefixUuid, Position)]) {
        let session = acks.begin_session(who(member));
        for (prefix, p) in at {
            let positions = AckPositions { received: *p, applied: *p, durable: *p };
            acks.record(session, who(member), *prefix, positions).unwrap();
        }
    }

    fn steps(joining: &mut Joining, acks: &AckTable) -> Vec<JoiningStep> {
        let mut steps = Vec::new();
        joining.progress(acks, &mut steps);
        steps
    }

    #[test]
    fn records_are_written_once_enough_replicas_hold_exactly_what_the_primary_began_with() {
        let mut joining = begin(1);
        let mut acks = AckTable::default();
        ack(&mut acks, 2, &[(P, Position::new(4, 10))]);
        assert!(steps(&mut joining, &acks).is_empty(), "a prefix is missing");
        ack(&mut acks, 2, &[(P, Position::new(4, 10)), (Q, Position::new(3, 40))]);
        assert!(steps(&mut joining, &acks).is_empty(), "a tail of an older epoch is not what the primary has");
        ack(&mut acks, 9, &[(P, Position::new(4, 10)), (Q, Position::new(4, 20))]);
        assert!(steps(&mut joining, &acks).is_empty(), "a learner does not count");
        ack(&mut acks, 2, &[(P, Position::new(4, 10)), (Q, Position::new(4, 20))]);
        assert_eq!(steps(&mut joining, &acks), [JoiningStep::Write]);
        assert!(steps(&mut joining, &acks).is_empty(), "once");
    }

    #[test]
    fn a_copy_below_its_floor_joins_where_the_reign_begins_and_releases_nothing() {
        let (mut joining, mut acks) = (begin(1), AckTable::default());
        let floor = Some(Position::new(4, 15));
        let begins = Position::new(4, 10);
        assert!(crate::vote::may_acknowledge(begins, floor, reign(1).epoch));
        assert!(!crate::vote::may_acknowledge(begins, floor, begins.epoch), "it would count where it counted before");
        ack(&mut acks, 2, &[(P, begins), (Q, Position::new(4, 20))]);
        assert_eq!(steps(&mut joining, &acks), [JoiningStep::Write]);
        assert_eq!(acks.released(P, &reign(1), 1), None);
        joining.written([(P, Sequence(11)), (Q, Sequence(21))].into());
        assert!(steps(&mut joining, &acks).is_empty(), "nothing is served by what it had before");
    }

    #[test]
    fn a_prefix_is_served_once_enough_replicas_hold_its_record() {
        let mut joining = begin(1);
        let mut acks = AckTable::default();
        ack(&mut acks, 3, &[(P, Position::new(4, 10)), (Q, Position::new(4, 20))]);
        assert_eq!(steps(&mut joining, &acks), [JoiningStep::Write]);
        joining.written([(P, Sequence(11)), (Q, Sequence(21))].into());
        assert!(steps(&mut joining, &acks).is_empty());
        ack(&mut acks, 3, &[(P, Position::new(5, 11)), (Q, Position::new(4, 20))]);
        assert_eq!(steps(&mut joining, &acks), [JoiningStep::Serve(P)]);
        assert!(joining.is_served(P) && !joining.is_served(Q) && !joining.is_done());
        ack(&mut acks, 2, &[(Q, Position::new(5, 25))]);
        assert_eq!(steps(&mut joining, &acks), [JoiningStep::Serve(Q), JoiningStep::AllServed]);
        assert!(joining.is_done() && steps(&mut joining, &acks).is_empty());
    }

    #[test]
    fn the_first_reign_waits_for_replicas_too_though_they_hold_nothing() {
        let mut joining = Joining::new(reign(1), &crate::vote::Votes::new());
        let mut acks = AckTable::default();
        assert!(steps(&mut joining, &acks).is_empty());
        ack(&mut acks, 2, &[]);
        assert_eq!(steps(&mut joining, &acks), [JoiningStep::Write]);
    }

    #[test]
    fn without_required_replicas_nobody_is_waited_for() {
        let mut joining = begin(0);
        let acks = AckTable::default();
        assert_eq!(steps(&mut joining, &acks), [JoiningStep::Write]);
        joining.written([(P, Sequence(11)), (Q, Sequence(21))].into());
        assert_eq!(steps(&mut joining, &acks).len(), 3);
    }
}
