//! What a member has and the catalogue that it copied does not list.
//!
//! Such a catalogue may be behind: then absence means nothing, the record comes with its stream, and this member is not complete
//! until then. But if the copy before it had diverged, its records after the fork never were in the store: prefixes that only
//! they made are exported, as far as their WAL reaches, and set aside.

use std::collections::HashSet;
use std::sync::Arc;

use parovoz_dataplane_core::types::{Position, PrefixName, PrefixUuid};

use super::{Catalogue, CatalogueError};
use crate::replication::tails;

const WHY: &str = "the catalogue that made it had diverged, and the one that replaced it does not list it";

impl Catalogue {
    /// A prefix here that the catalogue does not list (yet).
    #[must_use]
    pub fn unlisted(&self) -> Option<PrefixName> {
        self.unlisted.lock().values().next().cloned()
    }

    /// Sets aside what is not listed if the catalogue before `diverged`, and remembers it otherwise.
    pub(super) fn settle_unlisted(&self, listed: &HashSet<PrefixUuid>, diverged: bool) -> Result<(), CatalogueError> {
        let strange = |uuid: &PrefixUuid| *uuid != self.uuid() && !listed.contains(uuid);
        let prefixes = self.store.prefixes();
        let here = prefixes.by_uuid.values().filter(|prefix| strange(&prefix.uuid));
        let here = here.map(|prefix| (prefix.uuid, prefix.name.clone())).collect();
        if !diverged {
            *self.unlisted.lock() = here;
            return Ok(());
        }
        let on_volume = self.layout.prefixes()?.into_iter().map(|(name, uuid)| (uuid, name));
        for (uuid, name) in on_volume.filter(|(uuid, _)| strange(uuid)).chain(here) {
            self.set_aside(&name, uuid)?;
        }
        Ok(())
    }

    fn set_aside(&self, name: &PrefixName, uuid: PrefixUuid) -> Result<(), CatalogueError> {
        if self.layout.prefix_dir(name, uuid).exists() {
            let prefix = self.store.prefix_by_uuid(uuid).unwrap_or_else(|| Arc::new(self.make(name.clone(), uuid)));
            if prefix.copy().is_none()
                && let Err(error) = self.open_present(&prefix)
            {
                tracing::error!(prefix = %name, %error, "its records are not exported, its database is kept as it is");
            }
            tails::export(&self.layout, &prefix, Position::ZERO);
            self.layout.mark_prefix(name, uuid, WHY)?;
            tracing::warn!(prefix = %name, %uuid, "set prefix aside: {WHY}");
        }
        self.detach(name, uuid)
    }
}
