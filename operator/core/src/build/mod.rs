//! Builders of the store's Kubernetes objects. They take facts and give objects; nothing here asks a cluster.

mod claim;
mod config;
mod disruption;
mod pod;
mod rights;
mod services;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use parovoz_api::ReplicatedStore;
use serde_json::Value;

pub use claim::claim;
pub use config::{config_map, service_account};
pub use disruption::disruption_budget;
pub use pod::pod;
pub use rights::{role, role_binding};
pub use services::services;

use crate::names::{LABEL_MEMBER, LABEL_STORE};
use crate::observed::{ObjectKey, ObjectKind, StoreFacts};
use crate::settings::Settings;

/// An object that should be as it is here.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "a plan holds a handful of them, once")]
pub enum Object {
    /// The members' service account.
    ServiceAccount(ServiceAccount),
    /// What the members read.
    ConfigMap(ConfigMap),
    /// One of the four services.
    Service(Service),
    /// How many members may be drained at once.
    PodDisruptionBudget(PodDisruptionBudget),
    /// What the members may do at the API server.
    Role(Role),
    /// That it is the members who may.
    RoleBinding(RoleBinding),
    /// A member's volume claim.
    Claim(PersistentVolumeClaim),
    /// A member. Made once; never changed by applying it again.
    Pod(Pod),
}

impl Object {
    /// metadata.name
    #[must_use]
    pub fn name(&self) -> &str {
        let meta = match self {
            Self::ServiceAccount(object) => object.meta(),
            Self::ConfigMap(object) => object.meta(),
            Self::Service(object) => object.meta(),
            Self::PodDisruptionBudget(object) => object.meta(),
            Self::Role(object) => object.meta(),
            Self::RoleBinding(object) => object.meta(),
            Self::Claim(object) => object.meta(),
            Self::Pod(object) => object.meta(),
        };
        meta.name.as_deref().unwrap_or_default()
    }
}

/// The objects that carry no decision, in the order in which they are applied.
#[must_use]
pub fn plain_objects(store: &StoreFacts, settings: &Settings) -> Vec<(ObjectKey, Object)> {
    let mut objects = vec![
        (ObjectKind::ServiceAccount, Object::ServiceAccount(service_account(store))),
        (ObjectKind::Role, Object::Role(role(store))),
        (ObjectKind::RoleBinding, Object::RoleBinding(role_binding(store))),
        (ObjectKind::ConfigMap, Object::ConfigMap(config_map(store, settings))),
    ];
    objects.extend(services(store).into_iter().map(|service| (ObjectKind::Service, Object::Service(service))));
    objects.push((ObjectKind::PodDisruptionBudget, Object::PodDisruptionBudget(disruption_budget(store))));
    objects.into_iter().map(|(kind, object)| (ObjectKey { kind, name: object.name().to_owned() }, object)).collect()
}

/// The object as the API server takes it.
///
/// # Errors
/// Serializing fails, which no object built here does.
pub fn to_value(object: &Object) -> serde_json::Result<Value> {
    match object {
        Object::ServiceAccount(object) => serde_json::to_value(object),
        Object::Role(object) => serde_json::to_value(object),
        Object::RoleBinding(object) => serde_json::to_value(object),
        Object::ConfigMap(object) => serde_json::to_value(object),
        Object::Service(object) => serde_json::to_value(object),
        Object::PodDisruptionBudget(object) => serde_json::to_value(object),
        Object::Claim(object) => serde_json::to_value(object),
        Object::Pod(object) => serde_json::to_value(object),
    }
}

/// True if everything in `wanted` is in `present`, whatever else is there: what the API server fills in is no drift.
#[must_use]
pub fn contains(present: &Value, wanted: &Value) -> bool {
    match (present, wanted) {
        (Value::Object(present), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| match present.get(key) {
            Some(present) => contains(present, wanted),
            None => empty(wanted),
        }),
        (Value::Array(present), Value::Array(wanted)) => {
            present.len() == wanted.len() && present.iter().zip(wanted).all(|(one, other)| contains(one, other))
        }
        (present, wanted) => present == wanted,
    }
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(empty),
    }
}

/// The reference by which the store owns an object.
fn owner(store: &StoreFacts) -> OwnerReference {
    OwnerReference {
        api_version: ReplicatedStore::api_version(&()).into_owned(),
        kind: ReplicatedStore::kind(&()).into_owned(),
        name: store.name.clone(),
        uid: store.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Labels that every object of the store has.
fn labels(store: &StoreFacts) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "parovoz"),
        ("app.kubernetes.io/component", "dataplane"),
        ("app.kubernetes.io/managed-by", "parovoz-operator"),
        ("app.kubernetes.io/instance", store.name.as_str()),
        (LABEL_STORE, store.name.as_str()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

/// Labels of one member's objects.
fn member_labels(store: &StoreFacts, member: &str) -> BTreeMap<String, String> {
    let mut labels = labels(store);
    labels.insert(LABEL_MEMBER.into(), member.into());
    labels
}

/// Metadata of an object that goes with the store.
fn owned_meta(store: &StoreFacts, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(store.namespace.clone()),
        labels: Some(labels(store)),
        owner_references: Some(vec![owner(store)]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_api_server_adds_is_no_drift_and_what_somebody_changes_is() {
        let wanted = json!({"spec": {"ports": [{"port": 1}], "selector": {"a": "b"}}, "status": {"x": null}});
        let filled = json!({"spec": {"ports": [{"port": 1, "protocol": "TCP"}], "selector": {"a": "b"}, "ip": "x"}});
        assert!(contains(&filled, &wanted));
        let edited = json!({"spec": {"ports": [{"port": 1}], "selector": {"a": "c"}}});
        assert!(!contains(&edited, &wanted));
        let longer = json!({"spec": {"ports": [{"port": 1}, {"port": 2}], "selector": {"a": "b"}}});
        assert!(!contains(&longer, &wanted));
    }
}
