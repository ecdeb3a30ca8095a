//! The shell of one member's role: takes orders, stores promises before acting on them, and changes the role.
//!
//! One owner: every change of role goes through [`Member`], under its lock, in the order *decide (pure) -> store, synced ->
//! act*. A crash between two steps leaves a promise without an act, which is what a restart expects.

pub mod following;
pub mod hooks;
pub mod report;
pub mod state;

use std::sync::Arc;

use parking_lot::Mutex;
use parovoz_dataplane_core::member::{MemberRecord, OrderRefusal, Orders};
use parovoz_dataplane_core::types::{DataUuid, Epoch, Reign, StoreUid};

use self::following::Following;
use self::state::MemberState;
use crate::config::Durability;
use crate::disk::slots::SlotError;
use crate::run::FatalSwitch;
use crate::store::catalogue::{Catalogue, CatalogueError};
use crate::store::prefix::{CommitError, Prefix, PrefixPhase};
use crate::store::{Endpoint, RoleView, Store};

/// The first epoch of any store.
const FIRST_EPOCH: Epoch = Epoch(1);

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// The rules forbid it.
    #[error(transparent)]
    Refused(#[from] OrderRefusal),
    /// The promise could not be stored; nothing was done.
    #[error(transparent)]
    Slots(#[from] SlotError),
    /// The follower can't be started.
    #[error("start follower: {0}")]
    Follower(std::io::Error),
    /// The catalogue can't be used.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The member lacks data that the reign needs.
    #[error("promote: this member is not complete: {0}")]
    Incomplete(String),
    /// A blank member leads only a store that is new: elsewhere it would lead with nothing what others have.
    #[error(
        "promote: this member is blank, and epoch {0} is not the first reign of its store; restore its volume, or let it follow \
         a member that has the data"
    )]
    Blank(Epoch),
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
    /// Serializes orders. Never taken by replication's threads, so that stopping them under it can't dead-lock.
    orders: Mutex<()>,
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
        fatal: FatalSwitch,
    ) -> Self {
        Self { store, catalogue, follower, state, orders: Mutex::new(()), fatal }
    }

    /// What the slots hold.
    #[must_use]
    pub fn record(&self) -> MemberRecord {
        self.state.record()
    }

    /// Goes on as last ordered: a follower follows, a former primary waits, read-only, for a new promotion.
    ///
    /// # Errors
    /// If the follower can't be started.
    pub fn resume_orders(&self) -> Result<(), MemberError> {
        let _orders = self.orders.lock();
        let record = self.state.record();
        match (record.orders, record.promised) {
            (Some(Orders::Follow { upstream, primary }), Some(reign)) => {
                self.catalogue.expect();
                self.start_following(reign, upstream, primary)
            }
            (_, reign) => {
                self.store.set_role(RoleView { reign, ..RoleView::default() });
                Ok(())
            }
        }
    }

    /// Makes this member the primary of `reign`. Blocks on the disk. `first_reign`: the order says that the store has never had
    /// a primary and that all its members are blank; only then, or in epoch 1, a blank member leads.
    ///
    /// # Errors
    /// See [`MemberError`]; a refusal changes nothing.
    pub fn promote(
        &self,
        store: &StoreUid,
        member: DataUuid,
        reign: &Reign,
        first_reign: bool,
    ) -> Result<(), MemberError> {
        let _orders = self.orders.lock();
        let blank = self.state.record().promised.is_none() && self.store.prefixes().by_uuid.is_empty();
        if blank && !first_reign && reign.epoch != FIRST_EPOCH {
            return Err(MemberError::Blank(reign.epoch));
        }
        if !blank {
            self.check_complete()?;
        }
        if !self.state.promote(store, member, reign)? {
            return Ok(());
        }
        self.follower.stop();
        self.store.set_bootstrap_source(None);
        if blank {
            self.catalogue.create_blank()?;
        }
        self.state.lead(reign)?;
        self.begin_epoch(reign)?;
        tracing::info!(epoch = %reign.epoch, reign_id = %reign.reign_id, "promoted: this member is the primary");
        Ok(())
    }

    /// Lets this member follow an upstream. Blocks on the disk. Another `bootstrap_source` alone restarts nothing: it is where
    /// the next missing copy is taken from, `None` being the upstream.
    ///
    /// # Errors
    /// See [`MemberError`]; a refusal changes nothing.
    pub fn follow(
        &self,
        store: &StoreUid,
        member: DataUuid,
        reign: &Reign,
        upstream: Endpoint,
        primary: Endpoint,
        bootstrap_source: Option<Endpoint>,
    ) -> Result<(), MemberError> {
        let _orders = self.orders.lock();
        let news = self.state.follow(store, member, reign, upstream.clone(), primary.clone())?;
        self.store.set_bootstrap_source(bootstrap_source);
        if !news {
            return Ok(());
        }
        self.demote();
        self.catalogue.expect();
        tracing::info!(epoch = %reign.epoch, upstream = %upstream.replication, "following");
        self.start_following(reign.clone(), upstream, primary)
    }

    /// Ends writing, makes everything durable and notes that the stop was clean. The last thing that a member does.
    pub fn stop(&self) {
        let _orders = self.orders.lock();
        self.follower.stop();
        self.demote();
        for prefix in self.store.prefixes().by_uuid.values() {
            if let Err(error) = prefix.sync() {
                tracing::error!(prefix = %prefix.name, %error, "last sync failed");
                return;
            }
        }
        if let Err(error) = self.state.stop_cleanly(boot_id()) {
            tracing::error!(%error, "clean stop not noted");
        }
    }

    fn demote(&self) {
        for prefix in self.store.prefixes().by_uuid.values() {
            prefix.set_writer(None);
            if prefix.phase() == PrefixPhase::Serving {
                prefix.set_phase(PrefixPhase::Open);
            }
        }
    }

    fn start_following(&self, reign: Reign, upstream: Endpoint, primary: Endpoint) -> Result<(), MemberError> {
        self.store.set_role(RoleView {
            reign: Some(reign),
            is_primary: false,
            primary: Some(primary),
            upstream: Some(upstream),
        });
        self.follower.start().map_err(MemberError::Follower)
    }

    /// A member that lacks a prefix's copy must not lead: what it lacks would be gone.
    fn check_complete(&self) -> Result<(), MemberError> {
        match self.incomplete() {
            None => Ok(()),
            Some(why) => Err(MemberError::Incomplete(why)),
        }
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
    /// keeps its floor: it may just not be copied yet.
    pub fn forget_reached_floors(&self) {
        let prefixes = self.store.prefixes();
        let reached = |uuid, floor| {
            prefixes.by_uuid.get(&uuid).is_some_and(|prefix| {
                let whole = prefix.copy().is_some() && prefix.phase() != PrefixPhase::Bootstrapping;
                whole && prefix.position_at(prefix.durable()) >= floor
            })
        };
        if let Err(error) = self.state.keep_floors(|uuid, floor| !reached(uuid, floor)) {
            tracing::error!(%error, "reached floors not forgotten");
        }
    }

    /// Begins the reign's epoch in every prefix, the catalogue last but before the role: once it is written, all are.
    fn begin_epoch(&self, reign: &Reign) -> Result<(), MemberError> {
        let _reigning = self.store.reigning.lock();
        let sync = self.store.settings.load().durability == Durability::Sync;
        let prefixes = self.store.prefixes();
        let mut all: Vec<&Arc<Prefix>> = prefixes.by_uuid.values().collect();
        all.sort_by_key(|p| p.name.is_catalogue());
        let role = RoleView { reign: Some(reign.clone()), is_primary: true, primary: None, upstream: None };
        for prefix in all {
            let position = prefix.begin_epoch(reign.to_ref(), sync).map_err(|cause| {
                if let CommitError::Engine(error) = &cause
                    && error.severity() == parovoz_engine::Severity::Fatal
                {
                    self.fatal.end(&error.to_string());
                }
                MemberError::Begin { prefix: prefix.name.to_string(), cause }
            })?;
            if role.required_acks() == 0 {
                prefix.release(position.sequence);
            }
            prefix.set_phase(PrefixPhase::Serving);
        }
        self.store.set_role(role);
        Ok(())
    }
}

/// Identity of the machine's present boot; empty where the kernel does not tell.
#[must_use]
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned()).unwrap_or_default()
}
