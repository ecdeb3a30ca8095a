//! The member's role and its record in the slots. Whatever changes the record holds [`MemberState::change`], so that what is
//! decided is stored before the next decision; what only is heard (beats, echoes) takes a lock that never waits for a disk.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use parovoz_dataplane_core::acks::AckTable;
use parovoz_dataplane_core::lease::LeaseKeeper;
use parovoz_dataplane_core::member::{MemberRecord, OrderRefusal};
use parovoz_dataplane_core::role::{BeatOut, Effect, Event, Role};
use parovoz_dataplane_core::types::{Position, PrefixUuid};

use crate::clock;
use crate::disk::slots::{SlotError, Slots};
use crate::store::Store;

#[derive(Debug)]
struct Inner {
    role: Role,
    /// What the slots hold: the role may be ahead while a change is under way, and nobody is told of that yet.
    stored: MemberRecord,
}

/// See the module.
#[derive(Debug)]
pub struct MemberState {
    slots: Mutex<Slots>,
    inner: Mutex<Inner>,
    store: Arc<Store>,
}

/// A change under way: no other one begins before it is dropped.
#[derive(Debug)]
pub struct Change<'a> {
    state: &'a MemberState,
    slots: MutexGuard<'a, Slots>,
}

impl MemberState {
    /// The state of an opened volume, whose slots hold `record`.
    #[must_use]
    pub fn new(slots: Slots, record: MemberRecord, store: Arc<Store>, keeper: LeaseKeeper) -> Self {
        let role = Role::start(record.clone(), keeper, clock::boot_ms());
        Self { slots: Mutex::new(slots), inner: Mutex::new(Inner { role, stored: record }), store }
    }

    /// Begins a change; waits, possibly for a disk, until the one before is over.
    pub fn change(&self) -> Change<'_> {
        Change { state: self, slots: self.slots.lock() }
    }

    /// The record as it is on disk.
    #[must_use]
    pub fn record(&self) -> MemberRecord {
        self.inner.lock().stored.clone()
    }

    /// Looks at the role.
    pub fn with<T>(&self, look: impl FnOnce(&Role) -> T) -> T {
        look(&self.inner.lock().role)
    }

    /// Takes what was heard or done and has no effects of its own: beats, echoes, fsyncs, answers about the Lease.
    pub fn hear(&self, event: Event) {
        let mut inner = self.inner.lock();
        let mut effects = Vec::new();
        // Only orders are refused.
        let _ = inner.role.step(clock::boot_ms(), event, &mut effects);
        debug_assert!(effects.is_empty(), "{effects:?}");
        self.publish(&inner.role);
    }

    /// The beat that a primary sends now.
    #[must_use]
    pub fn beat(&self) -> Option<BeatOut> {
        self.inner.lock().role.beat(clock::boot_ms())
    }

    /// Tells the loops what holds. Under the lock, so that an older view never follows a newer one.
    fn publish(&self, role: &Role) {
        self.store.gate.publish(role.serving(), role.frozen_until_ms());
    }

    /// A prefix's floor.
    #[must_use]
    pub fn floor(&self, prefix: PrefixUuid) -> Option<Position> {
        self.inner.lock().stored.floors.get(&prefix).copied()
    }

    /// Raises floors of prefixes; they never sink.
    ///
    /// # Errors
    /// If the slot can't be written.
    pub fn raise_floors(&self, floors: &[(PrefixUuid, Position)]) -> Result<(), SlotError> {
        self.change().amend(|record| {
            for (prefix, floor) in floors {
                record.raise_floor(*prefix, *floor);
            }
        })
    }

    /// Forgets the floors that `keep` does not want.
    ///
    /// # Errors
    /// If the slot can't be written.
    pub fn keep_floors(&self, keep: impl Fn(PrefixUuid, Position) -> bool) -> Result<(), SlotError> {
        self.change().amend(|record| record.floors.retain(|prefix, floor| keep(*prefix, *floor)))
    }

    /// Notes a clean stop; the last write of a process.
    ///
    /// # Errors
    /// If the slot can't be written.
    pub fn stop_cleanly(&self, boot: String) -> Result<(), SlotError> {
        self.change().amend(|record| record.clean_stop = Some(boot))
    }
}

impl Change<'_> {
    /// Decides about an event. What it answers must be done in order, before the change is over.
    ///
    /// # Errors
    /// A refused order; nothing changed.
    pub fn step(&mut self, event: Event) -> Result<Vec<Effect>, OrderRefusal> {
        let mut inner = self.state.inner.lock();
        let mut effects = Vec::new();
        inner.role.step(clock::boot_ms(), event, &mut effects)?;
        self.state.publish(&inner.role);
        Ok(effects)
    }

    /// What acknowledgements allow by now.
    pub fn progress(&mut self, acks: &Mutex<AckTable>) -> Vec<Effect> {
        let acks = acks.lock();
        let mut inner = self.state.inner.lock();
        let mut effects = Vec::new();
        inner.role.progress(&acks, &mut effects);
        self.state.publish(&inner.role);
        effects
    }

    /// Stores what was decided, in both slots.
    ///
    /// # Errors
    /// If a slot can't be written: the role is ahead of the disk then, and the process must end.
    pub fn store(&mut self, record: &MemberRecord) -> Result<(), SlotError> {
        self.slots.write_both(record)?;
        self.state.inner.lock().stored = record.clone();
        Ok(())
    }

    /// Changes what concerns no promise. Nothing is written if nothing changes.
    fn amend(&mut self, change: impl FnOnce(&mut MemberRecord)) -> Result<(), SlotError> {
        let now = self.state.record();
        let mut next = now.clone();
        change(&mut next);
        if next == now {
            return Ok(());
        }
        self.slots.write(&next)?;
        let mut inner = self.state.inner.lock();
        inner.role.replace_record(next.clone());
        inner.stored = next;
        Ok(())
    }
}
