//! The seal: a member's durable promise to take nothing from an epoch below the named one.
//!
//! A fence is made of seals, so what a member answers here is what keeps an old primary from acknowledging unnoticed. A
//! member may refuse only mere silence, and only while a promise that it gave to the primary may still count there.

use super::{MemberRecord, OrderRefusal};
use crate::types::{DataUuid, ReignRef, StoreUid};

/// For so long, in milliseconds, a member stands by what it echoed to the primary: longer than the primary may count it, by a
/// quarter, which is far more than two clocks differ in their rate. A failover by silence takes at least this long.
pub const HEARD_MS: u64 = 2_500;

/// Why the operator thinks that the old primary is fenced or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealEvidence {
    /// Its very process ended, says the kubelet.
    Dead,
    /// It is sealed itself.
    PrimarySealed,
    /// Nobody heard it. The only evidence that may be refused.
    Silent,
}

/// An order to seal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealOrder {
    /// For this store.
    pub store: StoreUid,
    /// For this member.
    pub member: DataUuid,
    /// The reign to come.
    pub reign: ReignRef,
    /// The reign that the evidence is about.
    pub about: Option<ReignRef>,
    /// Why now.
    pub evidence: SealEvidence,
}

/// What a member heard lately, by a clock that counts suspension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hearing {
    /// Milliseconds since the last beat of the promised reign's primary itself; `None` = none in this process.
    pub silence_ms: Option<u64>,
    /// Milliseconds since this process began.
    pub uptime_ms: u64,
}

/// What to do about an accepted seal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sealing {
    /// It is sealed for that very reign: nothing to do.
    Already,
    /// Stop what the seal forbids, sync all, store this record in both slots, then answer.
    Start(Box<MemberRecord>),
}

impl MemberRecord {
    /// Decides a seal.
    ///
    /// # Errors
    /// See [`OrderRefusal`]; nothing changes then.
    pub fn seal(&self, order: &SealOrder, hearing: Hearing) -> Result<Sealing, OrderRefusal> {
        self.check_addressee(&order.store, order.member)?;
        self.check_promise(order.reign)?;
        if self.sealed == Some(order.reign) {
            return Ok(Sealing::Already);
        }
        if self.promise_ref() == Some(order.reign) && !parovoz_mutant::on("epoch-started-twice") {
            return Err(OrderRefusal::Begun { epoch: order.reign.epoch });
        }
        self.check_silence(order, hearing)?;
        let mut next = self.clone();
        next.sealed = Some(order.reign);
        Ok(Sealing::Start(Box::new(next)))
    }

    /// Mere silence is believed only by a member whose word to the primary counts no more.
    fn check_silence(&self, order: &SealOrder, hearing: Hearing) -> Result<(), OrderRefusal> {
        let Some(promised) = &self.promised else { return Ok(()) };
        // A sealed member gave no word since; a primary gives none to itself, and stops before it answers.
        if self.sealed.is_some() || promised.primary == self.data_uuid {
            return Ok(());
        }
        // Evidence about another reign says nothing of the one that this member stands by.
        let about = order.about == Some(promised.to_ref()) || parovoz_mutant::on("evidence-about-another");
        let silent = order.evidence == SealEvidence::Silent || !about;
        match hearing.silence_ms {
            Some(ago_ms) if silent && ago_ms < HEARD_MS && !parovoz_mutant::on("silence-believed") => {
                Err(OrderRefusal::PrimaryHeard { ago_ms })
            }
            _ if silent && hearing.uptime_ms < HEARD_MS && !parovoz_mutant::on("start-not-counted") => {
                Err(OrderRefusal::JustStarted { uptime_ms: hearing.uptime_ms })
            }
            _ => Ok(()),
        }
    }
}
