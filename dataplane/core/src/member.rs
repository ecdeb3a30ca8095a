//! What a member durably knows of itself, and which orders it may take.
//!
//! Rules kept here: every process starts as a follower; only a promotion makes a primary, and no epoch is started twice;
//! a promotion needs the seal of exactly its reign; a promise never shrinks; a reign's id is compared wherever its epoch
//! is. The shell stores the record that a decision returns, synced and in both slots, *before* it acts on it.
//!
//! ```text
//!            Follow(e >= promise)           Seal(e), then Promote(e)
//!   blank ───────────────────────▶ replica ──────────────────────────▶ primary
//!     └────── Seal(e), Promote(e) ────┼──────────────────────────────────▲ │
//!                                     ◀── Seal(e') ─ Follow(e'), restart ──┘
//! ```
//!
//! The *promise* of a member is the higher of the whole reign that it promised and of the bare (epoch, id) that it was
//! sealed for: [`MemberRecord::promise_ref`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::{DataUuid, Epoch, Position, PrefixUuid, Reign, ReignRef, StoreUid};
use crate::vote::{Vote, Votes};

mod seal;
#[cfg(test)]
mod tests;

pub use seal::{HEARD_MS, Hearing, SealEvidence, SealOrder, Sealing};

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
    /// The IP address that the names had when the order was given; empty if unknown.
    #[serde(default)]
    pub ip: String,
}

/// What a member was last told to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "do")]
#[expect(clippy::large_enum_variant, reason = "a member has one of them")]
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
    /// What it is sealed for: it takes nothing from a lower epoch. `None` once it follows or leads that reign or a later one.
    #[serde(default)]
    pub sealed: Option<ReignRef>,
    /// Highest epoch that this member started as a primary; 0 = never.
    pub started: Epoch,
    /// What it was last told; it goes on by this without an operator.
    pub orders: Option<Orders>,
    /// Below these positions its copies neither acknowledge, vote nor serve as a source.
    pub floors: BTreeMap<PrefixUuid, Position>,
    /// At a clean stop: the boot of the machine under which all was last written, empty if it is not known or the restarts were
    /// merely forgiven. `None` while running and after a crash.
    pub clean_stop: Option<String>,
    /// When the process was started lately without a clean stop before, in milliseconds since 1970.
    pub starts: Vec<u64>,
}

/// An order to lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromoteOrder {
    /// For this store.
    pub store: StoreUid,
    /// For this member.
    pub member: DataUuid,
    /// The reign to lead.
    pub reign: Reign,
    /// What the member voted when the reign was decided.
    pub positions: Votes,
    /// The first reign of a store, whose members are all blank.
    pub first: bool,
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
    /// A promotion needs the seal of its very reign.
    #[error("promote: this member is not sealed for epoch {order} under this id; seal it first")]
    NotSealed {
        /// Of the order.
        order: Epoch,
    },
    /// A volume without data can't lead a store that has any.
    #[error("promote: this member is blank, and this is not the first reign of the store")]
    Blank,
    /// The first reign is for blank members.
    #[error("promote: this is called the first reign of the store, but the member has known another")]
    NotBlank,
    /// The decision was made on other positions.
    #[error("promote: prefix {prefix}: the order names {named}, this member votes {here}")]
    PositionsDiffer {
        /// Which.
        prefix: PrefixUuid,
        /// By the order.
        named: Vote,
        /// By this member.
        here: Vote,
    },
    /// Silence is no evidence for one who heard the primary.
    #[error("seal: this member heard the primary itself {ago_ms} ms ago")]
    PrimaryHeard {
        /// Milliseconds.
        ago_ms: u64,
    },
    /// It may have forgotten a promise of its process before.
    #[error("seal: this member was started {uptime_ms} ms ago and may have heard the primary before")]
    JustStarted {
        /// Milliseconds.
        uptime_ms: u64,
    },
    /// A seal comes before its reign.
    #[error("seal: epoch {epoch} has begun here already")]
    Begun {
        /// Of the order.
        epoch: Epoch,
    },
    /// A sealed member waits for the reign that it is sealed for, or for an order.
    #[error("promise: epoch {met} was met at the upstream, and this member is sealed for another reign")]
    SealedForOther {
        /// Of the upstream.
        met: Epoch,
    },
    /// Only sealed members are completed.
    #[error("pull: this member is not sealed for epoch {order} under this id")]
    PullUnsealed {
        /// Of the order.
        order: Epoch,
    },
    /// Only a primary's writes can be frozen.
    #[error("freeze: this member does not lead epoch {order} under this id")]
    NotLeading {
        /// Of the order.
        order: Epoch,
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
            sealed: None,
            started: Epoch(0),
            orders: None,
            floors: BTreeMap::new(),
            clean_stop: None,
            starts: Vec::new(),
        }
    }

    /// Whether no reign of the store was ever known here. A blank member never votes; a seal alone does not end that.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.promised.is_none() && self.started == Epoch(0)
    }

    /// What this member promised: it takes nothing from a lower epoch, nor from another reign of the same.
    #[must_use]
    pub fn promise_ref(&self) -> Option<ReignRef> {
        let whole = self.promised.as_ref().map(Reign::to_ref);
        match (whole, self.sealed) {
            (Some(whole), Some(sealed)) => Some(if sealed.epoch > whole.epoch { sealed } else { whole }),
            (whole, sealed) => whole.or(sealed),
        }
    }

    pub(crate) fn check_addressee(&self, store: &StoreUid, member: DataUuid) -> Result<(), OrderRefusal> {
        if *store != self.store {
            return Err(OrderRefusal::OtherStore { order: store.clone(), mine: self.store.clone() });
        }
        if member != self.data_uuid {
            return Err(OrderRefusal::OtherMember { order: member, mine: self.data_uuid });
        }
        Ok(())
    }

    /// A reign that is to be taken is not older than the promise, and no other of the same epoch.
    fn check_promise(&self, reign: ReignRef) -> Result<(), OrderRefusal> {
        match self.promise_ref() {
            _ if reign.epoch == Epoch(0) => Err(OrderRefusal::Malformed("epoch 0 is no reign")),
            Some(promise) if reign.epoch < promise.epoch && !parovoz_mutant::on("older-order-accepted") => {
                Err(OrderRefusal::OlderReign { order: reign.epoch, promised: promise.epoch })
            }
            Some(promise)
                if reign.epoch == promise.epoch
                    && reign.reign_id != promise.reign_id
                    && !parovoz_mutant::on("reign-id-not-compared") =>
            {
                Err(OrderRefusal::OtherReign { epoch: reign.epoch })
            }
            _ => Ok(()),
        }
    }

    fn check_reign(&self, store: &StoreUid, member: DataUuid, reign: &Reign) -> Result<(), OrderRefusal> {
        self.check_addressee(store, member)?;
        if !reign.members.contains(&reign.primary) {
            return Err(OrderRefusal::Malformed("the primary is not a member of its reign"));
        }
        self.check_promise(reign.to_ref())
    }

    /// The record once a whole reign is promised; a seal for it or an older one has done its work.
    fn promising(&self, reign: &Reign) -> Self {
        let mut next = self.clone();
        next.sealed = next.sealed.filter(|sealed| sealed.epoch > reign.epoch);
        next.promised = Some(reign.clone());
        next
    }

    /// Decides a promotion. `leading` says whether this *process* leads the promised reign; `here` is what this member votes.
    ///
    /// # Errors
    /// See [`OrderRefusal`]; nothing changes then.
    pub fn promote(&self, order: &PromoteOrder, leading: bool, here: &Votes) -> Result<Promotion, OrderRefusal> {
        let reign = &order.reign;
        self.check_reign(&order.store, order.member, reign)?;
        if reign.primary != self.data_uuid {
            return Err(OrderRefusal::Malformed("the reign names another member as its primary"));
        }
        if leading && self.promised.as_ref() == Some(reign) {
            return Ok(Promotion::AlreadyLeading);
        }
        self.check_not_started(reign.epoch)?;
        self.check_sealed_for(reign.to_ref())?;
        self.check_first(order.first)?;
        check_positions(&order.positions, here)?;
        let mut next = self.promising(reign);
        next.started = reign.epoch;
        next.orders = Some(Orders::Lead);
        Ok(Promotion::Start(Box::new(next)))
    }

    /// An epoch is started once, whatever ended it.
    fn check_not_started(&self, epoch: Epoch) -> Result<(), OrderRefusal> {
        if epoch > self.started || parovoz_mutant::on("epoch-started-twice") {
            Ok(())
        } else {
            Err(OrderRefusal::AlreadyStarted { order: epoch, started: self.started })
        }
    }

    /// The positions that a decision was made on stand still only under the seal of that very reign.
    fn check_sealed_for(&self, reign: ReignRef) -> Result<(), OrderRefusal> {
        if self.sealed == Some(reign) { Ok(()) } else { Err(OrderRefusal::NotSealed { order: reign.epoch }) }
    }

    fn check_first(&self, first: bool) -> Result<(), OrderRefusal> {
        match (first, self.is_blank()) {
            (false, true) => Err(OrderRefusal::Blank),
            (true, false) => Err(OrderRefusal::NotBlank),
            _ => Ok(()),
        }
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
        if self.orders.as_ref() == Some(&orders) && self.has_promised(reign) {
            return Ok(Following::Unchanged);
        }
        let mut next = self.promising(reign);
        next.orders = Some(orders);
        Ok(Following::Start(Box::new(next)))
    }

    /// Raises the floor of a prefix; it never sinks.
    pub fn raise_floor(&mut self, prefix: PrefixUuid, floor: Position) {
        let now = self.floors.entry(prefix).or_insert(floor);
        *now = floor.max(*now);
    }

    /// Whom the last order to follow named as the primary.
    #[must_use]
    pub fn ordered_primary(&self) -> Option<&Endpoint> {
        match self.orders.as_ref()? {
            Orders::Follow { primary, .. } => Some(primary),
            Orders::Lead => None,
        }
    }

    /// Decides a promise to a reign that was met at the upstream; `None` if it is the promised one.
    ///
    /// Whoever is sealed promises only the reign that it is sealed for: its vote for that one may have been counted, and
    /// another reign, however new, is known to be right only from the operator.
    ///
    /// # Errors
    /// See [`OrderRefusal`]; nothing changes then.
    pub fn promise(&self, reign: &Reign) -> Result<Option<Self>, OrderRefusal> {
        self.check_reign(&self.store, self.data_uuid, reign)?;
        let sealed = self.sealed.filter(|_| !parovoz_mutant::on("sealed-meets-any"));
        if sealed.is_some_and(|sealed| sealed != reign.to_ref()) {
            return Err(OrderRefusal::SealedForOther { met: reign.epoch });
        }
        if self.has_promised(reign) {
            return Ok(None);
        }
        Ok(Some(self.promising(reign)))
    }

    /// Whether this very reign is the promise.
    fn has_promised(&self, reign: &Reign) -> bool {
        self.promised.as_ref() == Some(reign) && self.sealed.is_none()
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

/// A promotion acts on exactly the copies that the decision was made on: the same prefixes, each known, each at the same
/// position.
fn check_positions(named: &Votes, here: &Votes) -> Result<(), OrderRefusal> {
    let nothing = Vote::Unknown { floor: None };
    for prefix in named.keys().chain(here.keys()) {
        let of = |votes: &Votes| votes.get(prefix).copied().unwrap_or(nothing);
        let (named, here) = (of(named), of(here));
        if named != here || here.known().is_none() {
            return Err(OrderRefusal::PositionsDiffer { prefix: *prefix, named, here });
        }
    }
    Ok(())
}
