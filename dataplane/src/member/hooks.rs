//! What replication may ask of the member and of the catalogue.

use std::sync::Arc;

use parovoz_dataplane_core::types::{Position, PrefixUuid, Reign};

use super::state::MemberState;
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
    /// Ends the process.
    pub fatal: FatalSwitch,
}

impl MemberHooks for Hooks {
    fn promise(&self, reign: &Reign) -> Result<(), String> {
        if self.state.promise(reign).map_err(|e| e.to_string())? {
            let role = self.store.role();
            self.store.set_role(RoleView { reign: Some(reign.clone()), ..RoleView::clone(&role) });
            tracing::info!(epoch = %reign.epoch, reign_id = %reign.reign_id, "a newer reign was met and promised");
        }
        Ok(())
    }

    fn raise_floor(&self, prefix: &Prefix, floor: Position) -> Result<(), String> {
        self.state.raise_floor(prefix.uuid, floor).map_err(|e| e.to_string())
    }

    fn floor(&self, prefix: PrefixUuid) -> Option<Position> {
        self.state.floor(prefix)
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
