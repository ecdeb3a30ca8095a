//! What members may do at the API server: look at one Lease, and renew it.

use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};

use crate::names;
use crate::observed::StoreFacts;

/// The right to the store's own Lease, and to nothing else.
#[must_use]
pub fn role(store: &StoreFacts) -> Role {
    Role {
        metadata: super::owned_meta(store, names::account(&store.name)),
        rules: Some(vec![PolicyRule {
            api_groups: Some(vec!["coordination.k8s.io".into()]),
            resources: Some(vec!["leases".into()]),
            resource_names: Some(vec![names::lease(&store.name)]),
            verbs: vec!["get".into(), "update".into(), "patch".into()],
            ..PolicyRule::default()
        }]),
    }
}

/// The members have that right.
#[must_use]
pub fn role_binding(store: &StoreFacts) -> RoleBinding {
    RoleBinding {
        metadata: super::owned_meta(store, names::account(&store.name)),
        role_ref: RoleRef {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: "Role".into(),
            name: names::account(&store.name),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name: names::account(&store.name),
            namespace: Some(store.namespace.clone()),
            api_group: None,
        }]),
    }
}
