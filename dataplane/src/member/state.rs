//! The durable part of a member: its record in the slots. Every change is stored, synced, before anyone sees it.
//!
//! Its lock is held for a write of a slot at most, never while threads are stopped: replication calls in here from its own
//! threads.

use parking_lot::Mutex;
use parovoz_dataplane_core::member::{Following, MemberRecord, OrderRefusal, Promotion};
use parovoz_dataplane_core::types::{DataUuid, Position, PrefixUuid, Reign, ReignRef, StoreUid};

use super::MemberError;
use crate::disk::slots::{SlotError, Slots};
use crate::store::Endpoint;

#[derive(Debug)]
struct Inner {
    slots: Slots,
    record: MemberRecord,
    /// The reign that this process leads.
    leading: Option<ReignRef>,
}

/// See the module.
#[derive(Debug)]
pub struct MemberState(Mutex<Inner>);

impl MemberState {
    /// The state of an opened volume.
    #[must_use]
    pub fn new(slots: Slots, record: MemberRecord) -> Self {
        Self(Mutex::new(Inner { slots, record, leading: None }))
    }

    /// The record as it is on disk.
    #[must_use]
    pub fn record(&self) -> MemberRecord {
        self.0.lock().record.clone()
    }

    /// Decides a promotion and stores the promise and the start. Answers false if this process leads that reign already.
    ///
    /// # Errors
    /// A refusal changes nothing; a slot that can't be written leaves the record before.
    pub fn promote(&self, store: &StoreUid, member: DataUuid, reign: &Reign) -> Result<bool, MemberError> {
        let mut inner = self.0.lock();
        let leading = inner.leading == Some(reign.to_ref());
        match inner.record.promote(store, member, reign, leading)? {
            Promotion::AlreadyLeading => Ok(false),
            Promotion::Start(next) => {
                inner.store(*next, true)?;
                Ok(true)
            }
        }
    }

    /// Decides an order to follow and stores it. Answers false if it is in force already.
    ///
    /// # Errors
    /// As [`MemberState::promote`].
    pub fn follow(
        &self,
        store: &StoreUid,
        member: DataUuid,
        reign: &Reign,
        upstream: Endpoint,
        primary: Endpoint,
    ) -> Result<bool, MemberError> {
        let mut inner = self.0.lock();
        match inner.record.follow(store, member, reign, upstream, primary)? {
            Following::Unchanged => Ok(false),
            Following::Start(next) => {
                let new_promise = next.promised != inner.record.promised;
                inner.leading = None;
                inner.store(*next, new_promise)?;
                Ok(true)
            }
        }
    }

    /// This process leads `reign` from now on, unless a newer one was promised meanwhile.
    ///
    /// # Errors
    /// [`OrderRefusal::OlderReign`] then.
    pub fn lead(&self, reign: &Reign) -> Result<(), OrderRefusal> {
        let mut inner = self.0.lock();
        match &inner.record.promised {
            Some(promised) if promised == reign => {
                inner.leading = Some(reign.to_ref());
                Ok(())
            }
            promised => Err(OrderRefusal::OlderReign {
                order: reign.epoch,
                promised: promised.as_ref().map_or(reign.epoch, |p| p.epoch),
            }),
        }
    }

    /// Stores a promise to a reign that was met at the upstream. Answers false if it was promised already.
    ///
    /// # Errors
    /// As [`MemberState::promote`].
    pub fn promise(&self, reign: &Reign) -> Result<bool, MemberError> {
        let mut inner = self.0.lock();
        let Some(next) = inner.record.promise(reign)? else { return Ok(false) };
        inner.store(next, true)?;
        Ok(true)
    }

    /// Raises a prefix's floor; it never sinks.
    ///
    /// # Errors
    /// If the slot can't be written.
    pub fn raise_floor(&self, prefix: PrefixUuid, floor: Position) -> Result<(), SlotError> {
        let mut inner = self.0.lock();
        if inner.record.floors.get(&prefix).is_some_and(|f| *f >= floor) {
            return Ok(());
        }
        let mut next = inner.record.clone();
        next.floors.insert(prefix, floor);
        inner.store(next, false)
    }

    /// A prefix's floor.
    #[must_use]
    pub fn floor(&self, prefix: PrefixUuid) -> Option<Position> {
        self.0.lock().record.floors.get(&prefix).copied()
    }

    /// Forgets the floors that `keep` does not want.
    ///
    /// # Errors
    /// If the slot can't be written.
    pub fn keep_floors(&self, keep: impl Fn(PrefixUuid, Position) -> bool) -> Result<(), SlotError> {
        let mut inner = self.0.lock();
        if inner.record.floors.iter().all(|(prefix, floor)| keep(*prefix, *floor)) {
            return Ok(());
        }
        let mut next = inner.record.clone();
        next.floors.retain(|prefix, floor| keep(*prefix, *floor));
        inner.store(next, false)
    }

    /// Notes a clean stop; the last write of a process.
    ///
    /// # Errors
    /// If the slot can't be written.
    pub fn stop_cleanly(&self, boot_id: String) -> Result<(), SlotError> {
        let mut inner = self.0.lock();
        let mut next = inner.record.clone();
        next.clean_stop = Some(boot_id);
        inner.store(next, false)
    }
}

impl Inner {
    fn store(&mut self, next: MemberRecord, both: bool) -> Result<(), SlotError> {
        if both {
            self.slots.write_both(&next)?;
        } else {
            self.slots.write(&next)?;
        }
        self.record = next;
        Ok(())
    }
}
