//! What replication may ask of the member and of the catalogue.

use std::sync::Arc;

use parovoz_dataplane_core::role::{BeatOut, Effect, Event};
use parovoz_dataplane_core::types::{DataUuid, Position, PrefixUuid, Reign, ReignRef};
use tokio::sync::Notify;

use super::state::MemberState;
use crate::clock;
use crate::replication::{CatalogueHook, MemberHooks};
use crate::run::FatalSwitch;
use crate::store::catalogue::Catalogue;
use crate::store::prefix::Prefix;
use crate::store::ring::RingEntry;
use crate::store::{RoleView, Store};

/// The member as replication sees it.
#[derive(Debug)]
pub struct Hooks {
    /// Promises and floors.
    pub state: Arc<MemberState>,
    /// Its role follows the promise.
    pub store: Arc<Store>,
    /// Wakes whoever looks at acknowledgements while a reign begins.
    pub acked: Arc<Notify>,
    /// Ends the process.
    pub fatal: FatalSwitch,
}

impl Hooks {
    /// What replication asks, of these.
    #[must_use]
    pub fn new(state: &Arc<MemberState>, store: &Arc<Store>, acked: &Arc<Notify>, fatal: &FatalSwitch) -> Self {
        Self { state: state.clone(), store: store.clone(), acked: acked.clone(), fatal: fatal.clone() }
    }
}

impl MemberHooks for Hooks {
    fn promise(&self, reign: &Reign) -> Result<(), String> {
        let mut change = self.state.change();
        let effects = change.step(Event::Met(reign.clone())).map_err(|e| e.to_string())?;
        for effect in effects {
            match effect {
                Effect::Store(record) => {
                    if let Err(error) = change.store(&record) {
                        self.fatal.end(&error.to_string());
                        return Err(error.to_string());
                    }
                    let mut role = RoleView::clone(&self.store.role());
                    // Another primary is somewhere else: its address comes with the orders, or from the upstream's beats. Orders
                    // that named it are not carried out a second time.
                    role.primary = record.ordered_primary().filter(|p| p.data_uuid == Some(reign.primary)).cloned();
                    self.store.set_role(RoleView { reign: record.promised, sealed: record.sealed, pull: None, ..role });
                    tracing::info!(epoch = %reign.epoch, reign_id = %reign.reign_id, "a newer reign was met and promised");
                }
                Effect::CutOldStreams => self.store.cut_streams(),
                // Only who leads would have to stop, and who leads has no upstream to meet.
                other => tracing::error!(?other, "unexpected effect of a met reign"),
            }
        }
        Ok(())
    }

    fn raise_floors(&self, floors: &[(PrefixUuid, Position)]) -> Result<(), String> {
        self.state.raise_floors(floors).map_err(|e| e.to_string())
    }

    fn floor(&self, prefix: PrefixUuid) -> Option<Position> {
        self.state.floor(prefix)
    }

    fn beat(&self) -> Option<BeatOut> {
        self.state.beat()
    }

    fn heard(&self, reign: ReignRef, sent_at_ms: u64) {
        self.state.hear(Event::PrimaryBeat { reign, sent_at_ms });
    }

    fn echo(&self) -> u64 {
        self.state.with(|role| role.echo(clock::boot_ms())).unwrap_or(0)
    }

    fn echoed(&self, member: DataUuid, reign: ReignRef, sent_at_ms: u64) {
        self.state.hear(Event::Echo { member, reign, sent_at_ms });
    }

    fn acked(&self) {
        if self.state.with(|role| role.led().is_some() && !role.is_all_served()) {
            self.acked.notify_one();
        }
    }

    fn fatal(&self, cause: &str) {
        self.fatal.end(cause);
    }
}

/// The catalogue as replication sees it.
impl CatalogueHook for Catalogue {
    fn applied(&self, _: &Prefix, entry: &RingEntry) -> Result<(), String> {
        self.apply_records(&entry.bytes).map_err(|e| e.to_string())
    }

    fn replaced(&self, catalogue: &Prefix, diverged: bool) -> Result<(), String> {
        self.open_listed(catalogue, diverged).map_err(|e| e.to_string())
    }

    fn forget(&self, dropped: &Prefix) -> Result<(), String> {
        self.detach(&dropped.name, dropped.uuid).map_err(|e| e.to_string())
    }
}
