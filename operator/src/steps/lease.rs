//! The Lease of a store's primary: seen by one clock of this process, and raised by compare-and-swap.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use parking_lot::Mutex;
use parovoz_api::ReplicatedStore;
use parovoz_operator_core::names;
use parovoz_operator_core::observed::{LeaseFacts, StoreFacts};
use parovoz_operator_core::plan::LeaseWrite;
use serde_json::json;

use crate::error::{Class, Error, classify};

/// What was last seen of one Lease, and since when. A clock of this process alone: another one begins anew.
#[derive(Debug)]
struct Seen {
    /// Holder and renewal, as they stand there.
    state: (Option<String>, Option<String>),
    since: Instant,
    raised: Vec<(u64, Instant)>,
}

/// The Leases that decisions rest on, by uid of the store.
#[derive(Debug, Default)]
pub struct Leases(Mutex<HashMap<String, Seen>>);

impl Leases {
    /// Read the Lease of a store's primary, from the API server itself.
    ///
    /// # Errors
    /// The API server did not answer, or refused.
    pub async fn look(&self, client: &Client, store: &StoreFacts) -> Result<LeaseFacts, Error> {
        let api: Api<Lease> = Api::namespaced(client.clone(), &store.namespace);
        let found = api.get_opt(&names::lease(&store.name)).await.map_err(Error::ReadLease)?;
        let Some(lease) = found else {
            self.0.lock().remove(&store.uid);
            return Ok(LeaseFacts::default());
        };
        Ok(self.seen(&store.uid, &lease))
    }

    fn seen(&self, uid: &str, lease: &Lease) -> LeaseFacts {
        let spec = lease.spec.clone().unwrap_or_default();
        let epoch = lease.annotations().get(names::ANNOTATION_EPOCH).and_then(|text| text.parse().ok()).unwrap_or(0);
        let renewed = spec.renew_time.map(|time| time.0.to_string());
        let state = (spec.holder_identity.clone(), renewed);
        let now = Instant::now();
        let mut all = self.0.lock();
        let seen =
            all.entry(uid.to_owned()).or_insert_with(|| Seen { state: state.clone(), since: now, raised: Vec::new() });
        if seen.state != state {
            seen.state = state;
            seen.since = now;
        }
        if epoch > 0 && seen.raised.last().is_none_or(|(raised, _)| *raised < epoch) {
            seen.raised.push((epoch, now));
            let surplus = seen.raised.len().saturating_sub(64);
            seen.raised.drain(..surplus);
        }
        LeaseFacts {
            resource_version: lease.resource_version().unwrap_or_default(),
            epoch,
            holder: spec.holder_identity,
            unmoved_for: seen.since.elapsed(),
            raised: seen.raised.iter().map(|(epoch, since)| (*epoch, since.elapsed())).collect(),
        }
    }

    /// Forget stores that are gone: all but those with these uids.
    pub fn retain(&self, uids: &dyn Fn(&str) -> bool) {
        self.0.lock().retain(|uid, _| uids(uid));
    }
}

/// Raise the epoch in the Lease, or make it with that epoch and no holder.
///
/// # Errors
/// It is not what was seen any more, or the API server refused.
pub async fn raise(client: &Client, store: &StoreFacts, write: &LeaseWrite) -> Result<(), Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), &store.namespace);
    let name = names::lease(&store.name);
    let epoch = write.epoch.to_string();
    let written = if write.resource_version.is_empty() {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(name),
                annotations: Some([(names::ANNOTATION_EPOCH.to_owned(), epoch)].into()),
                labels: Some([(names::LABEL_STORE.to_owned(), store.name.clone())].into()),
                owner_references: Some(vec![OwnerReference {
                    api_version: ReplicatedStore::api_version(&()).into_owned(),
                    kind: ReplicatedStore::kind(&()).into_owned(),
                    name: store.name.clone(),
                    uid: store.uid.clone(),
                    controller: Some(true),
                    block_owner_deletion: Some(true),
                }]),
                ..ObjectMeta::default()
            },
            spec: None,
        };
        api.create(&PostParams::default(), &lease).await
    } else {
        // The version makes it a swap: a renewal in between is seen before the epoch is raised.
        let patch = json!({"metadata": {
            "resourceVersion": write.resource_version,
            "annotations": {names::ANNOTATION_EPOCH: epoch},
        }});
        let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PatchParams::default() };
        api.patch(&name, &params, &Patch::Merge(patch)).await
    };
    match written {
        Ok(_) => Ok(()),
        Err(error) if matches!(classify(&error), Class::Conflict | Class::Gone) => Err(Error::Conflict),
        Err(error) => Err(Error::WriteLease(error)),
    }
}

/// For how long orders are waited for before the next look: a member that answers late is heard of later.
pub const PATIENCE: Duration = Duration::from_millis(400);

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::coordination::v1::LeaseSpec;

    fn lease(epoch: u64, holder: &str) -> Lease {
        let mut lease = Lease { spec: Some(LeaseSpec::default()), ..Lease::default() };
        lease.spec.as_mut().unwrap().holder_identity = Some(holder.into());
        lease.annotations_mut().insert(names::ANNOTATION_EPOCH.into(), epoch.to_string());
        lease
    }

    #[test]
    fn a_raise_is_no_movement_and_a_new_holder_is() {
        let leases = Leases::default();
        leases.seen("store", &lease(1, "a"));
        std::thread::sleep(Duration::from_millis(5));
        let raised = leases.seen("store", &lease(2, "a"));
        assert!(raised.unmoved_for >= Duration::from_millis(5));
        assert!(raised.unmoved(1).unwrap() >= Duration::from_millis(5));
        assert_eq!(raised.unmoved(2), None, "the reign of that epoch may renew it");
        let moved = leases.seen("store", &lease(2, "b"));
        assert!(moved.unmoved_for < raised.unmoved_for);
    }
}
