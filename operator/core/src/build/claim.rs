//! A member's volume claim.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parovoz_api::DeletionPolicy;

use crate::names;
use crate::observed::StoreFacts;

/// The volume claim of one member. It carries the store's uid, so that a left-over of an earlier store of the same name
/// is never taken for this store's data.
#[must_use]
pub fn claim(store: &StoreFacts, ordinal: u32) -> PersistentVolumeClaim {
    let storage = &store.spec.storage;
    let member = names::member(&store.name, ordinal);
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(names::claim(&store.name, ordinal)),
            namespace: Some(store.namespace.clone()),
            labels: Some(super::member_labels(store, &member)),
            annotations: Some(BTreeMap::from([(names::ANNOTATION_STORE_UID.to_owned(), store.uid.clone())])),
            owner_references: match store.spec.deletion_policy {
                DeletionPolicy::Retain => None,
                DeletionPolicy::Delete => Some(vec![super::owner(store)]),
            },
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), Quantity(storage.size.0.clone()))])),
                limits: None,
            }),
            storage_class_name: storage.storage_class_name.clone(),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}
