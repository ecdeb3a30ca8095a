//! What a member durably knows of itself, and which orders it may take.
//!
//! Rules kept here: every process starts as a follower; only a promotion makes a primary, and no epoch is started twice;
//! a promise never shrinks; a reign's id is compared wherever its epoch is. The shell stores the record that a decision
//! returns, synced and in both slots, *before* it acts on it.
//!
//! ```text
//!            Follow(e >= promised)            Promote(e > started, e >= promised)
//!   blank ───────────────────────▶ replica ───────────────────────────────────────▶ primary
//!     └────────────── Promote ────────┼───────────────────────────────────────────────▲ │
//!                                     ◀────────── Follow(e' > e), restart ──────────────┘
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::{DataUuid, Epoch, Position, PrefixUuid, Reign, StoreUid};

/// Where a member takes what: host:port each, empty if unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The member's identity; `None` = not known yet.
    pub data_uuid: Option<DataUuid>,
    /// Replication port.
    pub replication: String,
    /// gRPC client port.
    pub client: String,
    /// RESP port.
    pub resp: String,
}

/// What a member was last told to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "do")]
pub enum Orders {
    /// Lead the promised reign. After a restart it is history: only a new promotion makes a primary.
    Lead,
    /// Follow an upstream under the promised reign.
    Follow {
        /// Whom to stream from.
        upstream: Endpoint,
        /// Whom to acknowledge to.
        primary: Endpoint,
    },
}

/// The body of a member slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberRecord {
    /// The store that the volume belongs to.
    pub store: StoreUid,
    /// The volume's identity.
    pub data_uuid: DataUuid,
    /// uid of the volume claim; another one at a start means a copied volume. Empty where there is no claim.
    pub claim_uid: String,
    /// The newest reign that this member promised, whole.
    pub promised: Option<Reign>,
    /// Highest epoch that this member started as a primary; 0 = never.
    pub started: Epoch,
    /// What it was last told; it goes on by this without an operator.
    pub orders: Option<Orders>,
    /// Below these positions its copies neither acknowledge, vote nor serve as a source.
    pub floors: BTreeMap<PrefixUuid, Position>,
    /// Boot id of the machine at a clean stop; `None` while running and after a crash.
    pub clean_stop: Option<String>,
    /// When the process was started lately without a clean stop before, in milliseconds since 1970.
    pub starts: Vec<u64>,
}

/// Why an order is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderRefusal {
    /// It is for another store.
    #[error("take order: it is for store {order}, this member belongs to {mine}")]
    OtherStore {
        /// Named by the order.
        order: StoreUid,
        /// This member's.
        mine: StoreUid,
    },
    /// It is for another member: an address was reused.
    #[error("take order: it is for member {order}, this is {mine}")]
    OtherMember {
        /// Named by the order.
        order: DataUuid,
        /// This member's.
        mine: DataUuid,
    },
    /// This member promised a newer reign.
    #[error("take order: epoch {order} is older than the promised {promised}")]
    OlderReign {
        /// Of the order.
        order: Epoch,
        /// Of this member's promise.
        promised: Epoch,
    },
    /// This member promised another reign of the same epoch.
    #[error("take order: epoch {epoch} was promised to another reign")]
    OtherReign {
        /// Of both.
        epoch: Epoch,
    },
    /// An epoch is started once.
    #[error("promote: epoch {order} is not above the started {started}")]
    AlreadyStarted {
        /// Of the order.
        order: Epoch,
        /// The highest started.
        started: Epoch,
    },
    /// The reign does not fit the order.
    #[error("take order: {0}")]
    Malformed(&'static str),
}

/// What to do about an accepted promotion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Promotion {
    /// This member leads that very reign already: nothing to do.
    AlreadyLeading,
    /// Store this record in both slots, then begin the epoch in every prefix.
    Start(Box<MemberRecord>),
}

/// What to do about an accepted order to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Following {
    /// The orders are those in force.
    Unchanged,
    /// Store this record (in both slots if the promise is new), then follow.
    Start(Box<MemberRecord>),
}

/// Whether and when a process may go on with its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAllowed {
    /// After this pause; 0 = at once.
    After {
        /// Milliseconds.
        ms: u64,
    },
    /// Not at all: over budget, a person must look.
    Park,
}

impl MemberRecord {
    /// The record of a blank volume.
    #[must_use]
    pub fn blank(store: StoreUid, data_uuid: DataUuid, claim_uid: String) -> Self {
        Self {
            store,
            data_uuid,
            claim_uid,
            promised: None,
            started: Epoch(0),
            orders: None,
            floors: BTreeMap::new(),
            clean_stop: None,
            starts: Vec::new(),
        }
    }

    fn check_reign(&self, store: &StoreUid, member: DataUuid, reign: &Reign) -> Result<(), OrderRefusal> {
        if *store != self.store {
            return Err(OrderRefusal::OtherStore { order: store.clone(), mine: self.store.clone() });
        }
        if member != self.data_uuid {
            return Err(OrderRefusal::OtherMember { order: member, mine: self.data_uuid });
        }
        if reign.epoch == Epoch(0) {
            return Err(OrderRefusal::Malformed("epoch 0 is no reign"));
        }
        if !reign.members.contains(&reign.primary) {
            return Err(OrderRefusal::Malformed("the primary is not a member of its reign"));
        }
        match &self.promised {
            Some(promised) if reign.epoch < promised.epoch => {
                Err(OrderRefusal::OlderReign { order: reign.epoch, promised: promised.epoch })
            }
            Some(promised) if reign.epoch == promised.epoch && reign.reign_id != promised.reign_id => {
                Err(OrderRefusal::OtherReign { epoch: reign.epoch })
            }
            _ => Ok(()),
        }
    }

    /// Decides a promotion. `leading` says whether this *process* leads the promised reign.
    ///
    /// # Errors
    /// See [`OrderRefusal`]; nothing changes then.
    pub fn promote(
        &self,
        store: &StoreUid,
        member: DataUuid,
        reign: &Reign,
        leading: bool,
    ) -> Result<Promotion, OrderRefusal> {
        self.check_reign(store, member, reign)?;
        if reign.primary != self.data_uuid {
            return Err(OrderRefusal::Malformed("the reign names another member as its primary"));
        }
        if leading && self.promised.as_ref() == Some(reign) {
            return Ok(Promotion::AlreadyLeading);
        }
        if reign.epoch <= self.started {
            return Err(OrderRefusal::AlreadyStarted { order: reign.epoch, started: self.started });
        }
        let mut next = self.clone();
        next.promised = Some(reign.clone());
        next.started = reign.epoch;
        next.orders = Some(Orders::Lead);
        Ok(Promotion::Start(Box::new(next)))
    }

    /// Decides an order to follow.
    ///
    /// # Errors
    /// See [`OrderRefusal`]; nothing changes then.
    pub fn follow(
        &self,
        store: &StoreUid,
        member: DataUuid,
        reign: &Reign,
        upstream: Endpoint,
        primary: Endpoint,
    ) -> Result<Following, OrderRefusal> {
        self.check_reign(store, member, reign)?;
        if reign.primary == self.data_uuid {
            return Err(OrderRefusal::Malformed("the primary of the reign can't follow under it"));
        }
        if upstream.data_uuid == Some(self.data_uuid) {
            return Err(OrderRefusal::Malformed("a member can't follow itself"));
        }
        if upstream.replication.is_empty() || primary.replication.is_empty() {
            return Err(OrderRefusal::Malformed("upstream and primary need a replication address"));
        }
        let orders = Orders::Follow { upstream, primary };
        if self.orders.as_ref() == Some(&orders) && self.promised.as_ref() == Some(reign) {
            return Ok(Following::Unchanged);
        }
        let mut next = self.clone();
        next.promised = Some(reign.clone());
        next.orders = Some(orders);
        Ok(Following::Start(Box::new(next)))
    }

    /// Decides a promise to a reign that was met at the upstream; `None` if it is the promised one.
    ///
    /// # Errors
    /// See [`OrderRefusal`]; nothing changes then.
    pub fn promise(&self, reign: &Reign) -> Result<Option<Self>, OrderRefusal> {
        self.check_reign(&self.store, self.data_uuid, reign)?;
        if self.promised.as_ref() == Some(reign) {
            return Ok(None);
        }
        let mut next = self.clone();
        next.promised = Some(reign.clone());
        Ok(Some(next))
    }

    /// What the restart budget says about this start, which is in the record already: starts that followed an unclean end,
    /// all within the window. The first is at once, later ones are `backoff_ms` apart, and more than `max_attempts` park.
    #[must_use]
    pub fn start_allowed(&self, now_ms: u64, max_attempts: u32, backoff_ms: u64) -> StartAllowed {
        // The first entry of a window is the start that nothing had failed before.
        let restarts = self.starts.len().saturating_sub(1);
        if restarts > max_attempts as usize {
            return StartAllowed::Park;
        }
        let before = self.starts.len().checked_sub(2).and_then(|i| self.starts.get(i));
        match before {
            Some(before) if restarts >= 2 => {
                StartAllowed::After { ms: (before + backoff_ms).saturating_sub(now_ms).min(backoff_ms) }
            }
            _ => StartAllowed::After { ms: 0 },
        }
    }

    /// The record at a start of the process: counts the start unless the last stop was clean.
    #[must_use]
    pub fn started_at(&self, now_ms: u64, window_ms: u64) -> Self {
        let mut next = self.clone();
        next.starts.retain(|&at| at <= now_ms && now_ms - at < window_ms);
        if next.clean_stop.take().is_none() {
            next.starts.push(now_ms);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::types::{Mode, ReignId};
    use proptest::prelude::*;
    use uuid::Uuid;

    fn member(n: u128) -> DataUuid {
        DataUuid(Uuid::from_u128(n))
    }
    fn store() -> StoreUid {
        StoreUid("s".into())
    }
    fn reign(epoch: u64, id: u128, primary: u128) -> Reign {
        Reign {
            epoch: Epoch(epoch),
            reign_id: ReignId(Uuid::from_u128(id)),
            primary: member(primary),
            members: vec![member(1), member(2)],
            mode: Mode::Async,
            min_sync_replicas: 0,
            lease_duration_ms: 10_000,
        }
    }
    fn blank() -> MemberRecord {
        MemberRecord::blank(store(), member(1), String::new())
    }
    fn promoted(record: &MemberRecord, reign: &Reign) -> MemberRecord {
        match record.promote(&store(), member(1), reign, false).unwrap() {
            Promotion::Start(next) => *next,
            Promotion::AlreadyLeading => panic!("not leading"),
        }
    }
    fn endpoint(n: u128) -> Endpoint {
        Endpoint { data_uuid: Some(member(n)), replication: format!("h{n}:1"), ..Endpoint::default() }
    }

    #[test]
    fn an_epoch_is_never_started_twice() {
        let record = promoted(&blank(), &reign(1, 10, 1));
        let again = record.promote(&store(), member(1), &reign(1, 10, 1), false);
        assert_eq!(again, Err(OrderRefusal::AlreadyStarted { order: Epoch(1), started: Epoch(1) }));
        assert_eq!(record.promote(&store(), member(1), &reign(1, 10, 1), true), Ok(Promotion::AlreadyLeading));
        assert_eq!(promoted(&record, &reign(2, 11, 1)).started, Epoch(2));
    }

    #[test]
    fn a_reign_of_the_same_epoch_and_another_id_is_refused() {
        let record = promoted(&blank(), &reign(3, 10, 1));
        let other = record.follow(&store(), member(1), &reign(3, 11, 2), endpoint(2), endpoint(2));
        assert_eq!(other, Err(OrderRefusal::OtherReign { epoch: Epoch(3) }));
    }

    #[test]
    fn orders_for_somebody_else_are_refused() {
        let r = reign(1, 10, 1);
        assert!(matches!(
            blank().promote(&StoreUid("t".into()), member(1), &r, false),
            Err(OrderRefusal::OtherStore { .. })
        ));
        assert!(matches!(blank().promote(&store(), member(2), &r, false), Err(OrderRefusal::OtherMember { .. })));
        assert!(matches!(
            blank().promote(&store(), member(1), &reign(1, 1, 2), false),
            Err(OrderRefusal::Malformed(_))
        ));
        assert!(blank().follow(&store(), member(1), &reign(1, 1, 2), endpoint(1), endpoint(2)).is_err());
        assert!(blank().follow(&store(), member(1), &reign(1, 1, 2), Endpoint::default(), endpoint(2)).is_err());
    }

    #[test]
    fn repeated_orders_change_nothing() {
        let Following::Start(record) =
            blank().follow(&store(), member(1), &reign(1, 1, 2), endpoint(2), endpoint(2)).unwrap()
        else {
            panic!()
        };
        let again = record.follow(&store(), member(1), &reign(1, 1, 2), endpoint(2), endpoint(2));
        assert_eq!(again, Ok(Following::Unchanged));
    }

    #[test]
    fn only_unclean_starts_within_the_window_count() {
        let mut record = blank().started_at(1_000, 300_000).started_at(2_000, 300_000);
        assert_eq!(record.starts, [1_000, 2_000]);
        record.clean_stop = Some("boot".into());
        assert_eq!(record.started_at(3_000, 300_000).starts, [1_000, 2_000]);
        assert_eq!(record.started_at(301_500, 300_000).starts, [2_000]);
    }

    #[test]
    fn the_first_restart_is_at_once_later_ones_wait_and_too_many_park() {
        let mut record = blank();
        let mut at = 0;
        let mut pauses = Vec::new();
        loop {
            record = record.started_at(at, 300_000);
            match record.start_allowed(at, 5, 15_000) {
                StartAllowed::After { ms } => pauses.push(ms),
                StartAllowed::Park => break,
            }
            at += 1_000;
        }
        assert_eq!(pauses, [0, 0, 14_000, 14_000, 14_000, 14_000]);
        record.clean_stop = Some("boot".into());
        let later = record.started_at(at + 400_000, 300_000);
        assert_eq!(later.start_allowed(at + 400_000, 5, 15_000), StartAllowed::After { ms: 0 });
    }

    proptest! {
        #[test]
        fn promises_and_starts_never_shrink(orders in prop::collection::vec((1u64..6, 0u128..3, 1u128..3, any::<bool>()), 0..40)) {
            let mut record = blank();
            let mut started = Vec::new();
            for (epoch, id, primary, promote) in orders {
                let r = reign(epoch, id, primary);
                let before = record.clone();
                if promote {
                    if let Ok(Promotion::Start(next)) = record.promote(&store(), member(1), &r, false) {
                        prop_assert!(!started.contains(&epoch), "epoch {epoch} was started twice");
                        started.push(epoch);
                        record = *next;
                    }
                } else if let Ok(Following::Start(next)) =
                    record.follow(&store(), member(1), &r, endpoint(2), endpoint(2))
                {
                    record = *next;
                }
                prop_assert!(record.started >= before.started);
                let epoch_of = |m: &MemberRecord| m.promised.as_ref().map(|r| r.epoch);
                prop_assert!(epoch_of(&record) >= epoch_of(&before));
                if let (Some(a), Some(b)) = (&record.promised, &before.promised) {
                    prop_assert!(a.epoch > b.epoch || a.reign_id == b.reign_id);
                }
            }
        }
    }
}
