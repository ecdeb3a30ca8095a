//! What members read and whom they run as.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};

use crate::names;
use crate::observed::StoreFacts;
use crate::settings::Settings;

/// The key of the file in the ConfigMap.
pub(super) const CONFIG_FILE: &str = "config.json";

/// The members' configuration file.
#[must_use]
pub fn config_map(store: &StoreFacts, settings: &Settings) -> ConfigMap {
    ConfigMap {
        metadata: super::owned_meta(store, names::config(&store.name)),
        data: Some(BTreeMap::from([(CONFIG_FILE.to_owned(), settings.member.file())])),
        ..ConfigMap::default()
    }
}

/// The account that members run as. It may renew the store's own Lease, and gets a short-lived token for that only.
#[must_use]
pub fn service_account(store: &StoreFacts) -> ServiceAccount {
    ServiceAccount {
        metadata: super::owned_meta(store, names::account(&store.name)),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}
