//! The shell of one member's role: gives orders to the core, and does what the core says, in its order.
//!
//! One owner: every change of role goes through [`Member`], one at a time. What the core decided is stored, synced, before it
//! is acted on; a crash between two steps leaves a promise without an act, which is what a restart expects.

pub mod following;
pub mod hooks;
pub mod keeper;
pub mod lease;
mod perform;
pub mod report;
pub mod state;
pub mod votes;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parovoz_dataplane_core::member::{Endpoint, MemberRecord, OrderRefusal, PromoteOrder, SealOrder};
use parovoz_dataplane_core::role::{Effect, Event, FREEZE_MS, Role};
use parovoz_dataplane_core::types::PrefixUuid;
use parovoz_dataplane_core::vote::{Vote, floor_is_met};
use tokio::sync::mpsc;

use self::following::Following;
use self::lease::Renewal;
use self::state::{Change, MemberState};
use crate::clock;
use crate::disk::slots::{SlotError, Slots};
use crate::run::FatalSwitch;
use crate::store::catalogue::{Catalogue, CatalogueError};
use crate::store::prefix::{CommitError, Prefix, PrefixPhase};
use crate::store::{RoleView, Store};

/// Silence of the primary, or of the disk, that is worth a report at once, in milliseconds.
const SILENCE_MS: u64 = 1_000;

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// The rules forbid it.
    #[error(transparent)]
    Refused(#[from] OrderRefusal),
    /// The promise could not be stored; the process ends.
    #[error(transparent)]
    Slots(#[from] SlotError),
    /// What was written could not be synced; the process ends.
    #[error("sync prefix {prefix}: {cause}")]
    Sync {
        /// Which.
        prefix: String,
        /// Why.
        cause: parovoz_engine::EngineError,
    },
    /// The follower can't be started.
    #[error("start follower: {0}")]
    Follower(std::io::Error),
    /// The catalogue can't be used.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// An epoch could not be begun.
    #[error("begin epoch in prefix {prefix}: {cause}")]
    Begin {
        /// Where.
        prefix: String,
        /// Why.
        cause: CommitError,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Member {
    store: Arc<Store>,
    catalogue: Arc<Catalogue>,
    follower: Arc<Following>,
    state: Arc<MemberState>,
    renewals: mpsc::Sender<Renewal>,
    /// What was last reported of what changes by time alone.
    seen: AtomicU8,
    fatal: FatalSwitch,
}

impl Member {
    /// A member with what its slots hold; nothing is acted on yet.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        catalogue: Arc<Catalogue>,
        follower: Arc<Following>,
        state: Arc<MemberState>,
        renewals: mpsc::Sender<Renewal>,
        fatal: FatalSwitch,
    ) -> Self {
        Self { store, catalogue, follower, state, renewals, seen: AtomicU8::new(0), fatal }
    }

    /// What the slots hold.
    #[must_use]
    pub fn record(&self) -> MemberRecord {
        self.state.record()
    }

    /// The role and its record.
    #[must_use]
    pub fn state(&self) -> &Arc<MemberState> {
        &self.state
    }

    /// Goes on as last ordered: a follower follows, a former primary waits, read-only, for a new promotion.
    ///
    /// # Errors
    /// If the follower can't be started.
    pub fn resume_orders(&self) -> Result<(), MemberError> {
        let mut change = self.state.change();
        let mut effects = Vec::new();
        self.state.with(|role| role.resume(&mut effects));
        if effects.is_empty() {
            let record = self.state.record();
            self.store.set_role(RoleView { reign: record.promised, sealed: record.sealed, ..RoleView::default() });
        }
        self.perform(&mut change, effects)
    }

    /// Takes an order to seal; on success its promise is stored and everything is synced. Blocks on the disk.
    ///
    /// # Errors
    /// See [`MemberError`]; a refusal changes nothing.
    pub fn seal(&self, order: SealOrder) -> Result<(), MemberError> {
        self.closing_order(|_| Event::Seal(order))
    }

    /// Makes this member the primary of a reign. Blocks on the disk.
    ///
    /// # Errors
    /// See [`MemberError`]; a refusal changes nothing.
    pub fn promote(&self, order: PromoteOrder) -> Result<(), MemberError> {
        self.closing_order(|member| Event::Promote { order, here: member.votes() })?;
        self.store.set_bootstrap_source(None);
        Ok(())
    }

    /// Takes an order to follow. Another `bootstrap_source` alone restarts nothing: it is where the next missing copy is taken
    /// from, `None` being the upstream. Blocks on the disk.
    ///
    /// # Errors
    /// See [`MemberError`]; a refusal changes nothing.
    pub fn follow(&self, order: Event, bootstrap_source: Option<Endpoint>) -> Result<(), MemberError> {
        self.closing_order(|_| order)?;
        self.store.set_bootstrap_source(bootstrap_source);
        Ok(())
    }

    /// Takes any other order: to pull, to freeze. Blocks on the disk.
    ///
    /// # Errors
    /// See [`MemberError`]; a refusal changes nothing.
    pub fn take(&self, order: Event) -> Result<(), MemberError> {
        self.order(|_| order)
    }

    /// Time passes, and acknowledgements may have come.
    ///
    /// # Errors
    /// If what is due can't be done.
    pub fn tick(&self) -> Result<(), MemberError> {
        let mut change = self.state.change();
        let mut effects = change.step(Event::Tick)?;
        for prefix in self.state.with(Role::unserved) {
            if self.store.prefix_by_uuid(prefix).is_none() {
                effects.extend(change.step(Event::Dropped(prefix))?);
            }
        }
        effects.extend(change.progress(self.follower.acks()));
        self.perform(&mut change, effects)?;
        self.tell_of_changes();
        Ok(())
    }

    /// What changes by time alone is reported when it does.
    fn tell_of_changes(&self) {
        let now = clock::boot_ms();
        let seen = self.state.with(|role| {
            let silent = role.silence_ms(now).is_some_and(|ms| ms >= SILENCE_MS);
            let stalled = role.stalled_fsync_ms(now).is_some_and(|ms| ms >= SILENCE_MS);
            [role.can_acknowledge(now), silent, stalled, role.frozen_until_ms() > now]
        });
        let seen = seen.iter().fold(0, |bits, bit| bits << 1 | u8::from(*bit));
        if self.seen.swap(seen, Ordering::AcqRel) != seen {
            self.store.note_change();
        }
    }

    fn order(&self, event: impl FnOnce(&Self) -> Event) -> Result<(), MemberError> {
        let mut change = self.state.change();
        let event = event(self);
        let effects = change.step(event)?;
        self.perform(&mut change, effects)
    }

    /// An order after which this member may not be the primary any more, or not of the same reign.
    fn closing_order(&self, event: impl FnOnce(&Self) -> Event) -> Result<(), MemberError> {
        if !self.store.role().is_primary {
            return self.order(event);
        }
        self.store.settle_loops(clock::boot_ms() + FREEZE_MS);
        let done = self.order(event);
        self.store.gate.end_until(0);
        done
    }

    fn perform(&self, change: &mut Change<'_>, effects: Vec<Effect>) -> Result<(), MemberError> {
        let done = perform::all(self, change, effects);
        if let Err(error) = &done {
            // The role is ahead of what was done: only a new process knows again what it is.
            self.fatal.end(&error.to_string());
        }
        done
    }

    /// Ends writing, makes everything durable and notes that the stop of this process was clean. The last thing that a
    /// member does.
    pub fn stop(&self, process_id: &str) {
        self.follower.stop();
        self.take_writing_away();
        for prefix in self.store.prefixes().by_uuid.values() {
            if let Err(error) = prefix.sync() {
                tracing::error!(prefix = %prefix.name, %error, "last sync failed");
                return;
            }
        }
        let boot = process_id.split_once('/').map_or("", |(boot, _)| boot);
        if let Err(error) = self.state.stop_cleanly(boot.to_owned()) {
            tracing::error!(%error, "clean stop not noted");
        }
    }

    fn take_writing_away(&self) {
        for prefix in self.store.prefixes().by_uuid.values() {
            prefix.set_writer(None);
            if prefix.phase() == PrefixPhase::Serving {
                prefix.set_phase(PrefixPhase::Open);
            }
        }
    }

    /// What this member votes, or would vote.
    #[must_use]
    pub fn votes(&self) -> std::collections::BTreeMap<PrefixUuid, Vote> {
        votes::all(&self.store, &self.state)
    }

    /// Why this member's data is not whole; `None` if it is.
    #[must_use]
    pub fn incomplete(&self) -> Option<String> {
        let prefixes = self.store.prefixes();
        let Some(catalogue) = prefixes.by_uuid.get(&self.catalogue.uuid()) else {
            return Some("it has no catalogue".into());
        };
        if catalogue.history().newest().is_none() {
            return Some("its catalogue is empty".into());
        }
        if let Some(name) = self.catalogue.unlisted() {
            return Some(format!("prefix {name} is not in the catalogue that it copied"));
        }
        prefixes.by_uuid.values().find_map(|p| match p.phase() {
            PrefixPhase::Bootstrapping => Some(format!("prefix {} is being copied", p.name)),
            PrefixPhase::Stopped { reason } => Some(format!("prefix {} is stopped: {reason}", p.name)),
            _ if p.copy().is_none() => Some(format!("prefix {} has no copy", p.name)),
            _ if self.below_floor(p).is_some() => self.below_floor(p),
            PrefixPhase::Open | PrefixPhase::Streaming | PrefixPhase::Serving => None,
        })
    }

    fn below_floor(&self, prefix: &Prefix) -> Option<String> {
        let (floor, at) = (self.state.floor(prefix.uuid)?, prefix.position_at(prefix.applied()));
        (at < floor).then(|| {
            format!(
                "prefix {} is at {at} and was once at {floor}: it must catch up or be copied from another member",
                prefix.name
            )
        })
    }

    /// Forgets floors that a whole copy has durably reached, so that the slots stay small. A prefix that is not known here
    /// keeps its floor: it may just not be copied yet. While the catalogue is replaced all do: it may set aside what is here.
    pub fn forget_reached_floors(&self) {
        let prefixes = self.store.prefixes();
        let role = self.store.role();
        let pulled = |uuid| role.pull.as_ref().and_then(|upto| upto.get(&uuid).copied());
        let catalogue = prefixes.by_uuid.get(&self.catalogue.uuid());
        let listed = || catalogue.is_some_and(|catalogue| catalogue.phase() != PrefixPhase::Bootstrapping);
        let reached = |uuid, floor| {
            listed()
                && prefixes.by_uuid.get(&uuid).is_some_and(|prefix| {
                    let whole = prefix.copy().is_some() && prefix.phase() != PrefixPhase::Bootstrapping;
                    whole
                        && floor_is_met(prefix.position_at(prefix.durable()), floor, pulled(uuid), role.reign.as_ref())
                })
        };
        if let Err(error) = self.state.keep_floors(|uuid, floor| !reached(uuid, floor)) {
            tracing::error!(%error, "reached floors not forgotten");
        }
    }
}

/// The identity of the process that is about to run on a volume: that of the machine's boot in sixteen digits, as far as it
/// is known, and a random one. What a process wrote and did not sync is there as long as the former stays; so after a clean
/// stop, which syncs all, it is that of the process before, on whatever machine.
#[must_use]
pub fn process_id(data_dir: &Path) -> String {
    let process = uuid::Uuid::new_v4();
    // What can't be read is told of when it is opened.
    let stopped = Slots::open(data_dir).ok().and_then(|(_, record)| record?.clean_stop);
    let boot = stopped.filter(|boot| !boot.is_empty()).unwrap_or_else(boot_id);
    let boot: String = boot.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    if boot.is_empty() { process.to_string() } else { format!("{boot}/{process}") }
}

/// Identity of the machine's present boot; empty where the kernel does not tell.
#[must_use]
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned()).unwrap_or_default()
}
