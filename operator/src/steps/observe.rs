//! Step 1: everything that a plan may depend on, as values.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::Api;
use kube::{Client, Resource, ResourceExt};
use parovoz_api::{ByteSize, ReplicatedStore, ReplicatedStoreStatus, StoreOperation, StoreReign};
use parovoz_operator_core::names;
use parovoz_operator_core::observed::{
    ClaimFacts, ObjectKey, ObjectKind, Observed, OperationFacts, PodFacts, ReignFacts, StoreFacts,
};
use serde::Serialize;
use serde_json::Value;

use super::lease::Leases;
use crate::caches::Caches;
use crate::error::{Error, StoreRef};
use crate::member::{MemberPod, Members};

/// Where a pass reads from.
pub struct Sources<'a> {
    /// The API server, for the decision record.
    pub client: &'a Client,
    /// Everything else.
    pub caches: &'a Caches,
    /// The members.
    pub members: &'a Members,
    /// The Leases of the primaries.
    pub leases: &'a Leases,
    /// Image for stores that name none.
    pub default_image: &'a str,
}

/// Observe one store. `last_status` is what this process wrote last, which the cache may not know yet.
///
/// # Errors
/// The decision record could not be read, or the store lacks what every stored object has.
pub async fn observe(
    sources: &Sources<'_>,
    store: &ReplicatedStore,
    last_status: Option<ReplicatedStoreStatus>,
) -> Result<Observed, Error> {
    let facts = store_facts(store, last_status)?;
    let (namespace, name, uid) = (facts.namespace.as_str(), facts.name.as_str(), facts.uid.as_str());
    // Read uncached: a decision on an old record would only fail its swap, but orders rest on it as well.
    let reigns: Api<StoreReign> = Api::namespaced(sources.client.clone(), namespace);
    let reign = reigns.get_opt(name).await.map_err(Error::ReadReign)?;
    let pods = Caches::of_store(&sources.caches.pods, namespace, name);
    let claims = Caches::of_store(&sources.caches.claims, namespace, name);
    let member_pods: Vec<MemberPod> =
        pods.iter().filter(|pod| controlled(pod.as_ref(), uid)).map(|pod| member_pod(pod)).collect();
    let contacts = sources.members.sync(&StoreRef::from_obj_name(name, namespace), &member_pods);
    let reign = reign.map(|reign| ReignFacts {
        resource_version: reign.metadata.resource_version.unwrap_or_default(),
        spec: reign.spec,
    });
    let lease = match Observed::wants_lease(reign.as_ref()) {
        true => Some(sources.leases.look(sources.client, &facts).await?),
        false => None,
    };
    let operations = sources.caches.operations_on(namespace, name);
    Ok(Observed {
        pods: pods.iter().filter_map(|pod| pod_facts(pod, name, uid, sources.caches)).collect(),
        claims: claims.iter().filter_map(|claim| claim_facts(claim, name, uid)).collect(),
        objects: plain(sources.caches, namespace, name),
        reign,
        lease,
        operations: operations.iter().filter_map(operation_facts).collect(),
        contacts: contacts.into_iter().collect(),
        now: Timestamp::now(),
        fresh_id: uuid::Uuid::new_v4().to_string(),
        default_image: sources.default_image.to_owned(),
        store: facts,
    })
}

/// A reference made from names.
pub trait FromName {
    /// Name a store.
    fn from_obj_name(name: &str, namespace: &str) -> Self;
}

impl FromName for StoreRef {
    fn from_obj_name(name: &str, namespace: &str) -> Self {
        Self::new(name).within(namespace)
    }
}

/// What a pass needs of the store itself. `last_status` is what this process wrote last.
///
/// # Errors
/// The store lacks what every stored object has.
pub fn store_facts(store: &ReplicatedStore, last_status: Option<ReplicatedStoreStatus>) -> Result<StoreFacts, Error> {
    let meta = &store.metadata;
    Ok(StoreFacts {
        name: meta.name.clone().ok_or(Error::Incomplete("name"))?,
        namespace: meta.namespace.clone().ok_or(Error::Incomplete("namespace"))?,
        uid: meta.uid.clone().ok_or(Error::Incomplete("uid"))?,
        generation: meta.generation.unwrap_or(0),
        deleting: meta.deletion_timestamp.is_some(),
        spec: store.spec.clone(),
        status: last_status.or_else(|| store.status.clone()),
    })
}

/// True if the store with this uid controls the object.
pub fn controlled<K: Resource>(object: &K, uid: &str) -> bool {
    object.owner_references().iter().any(|owner| owner.uid == uid && owner.controller == Some(true))
}

fn member_pod(pod: &Pod) -> MemberPod {
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref());
    MemberPod {
        name: pod.name_any(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        ip: ip.and_then(|ip| ip.parse::<IpAddr>().ok()),
    }
}

fn pod_facts(pod: &Arc<Pod>, store: &str, uid: &str, caches: &Caches) -> Option<PodFacts> {
    let name = pod.name_any();
    let annotation = |key: &str| pod.annotations().get(key).cloned();
    let status = pod.status.as_ref();
    let ready = status.and_then(|status| status.conditions.as_ref()).is_some_and(|conditions| {
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    });
    Some(PodFacts {
        ordinal: names::ordinal_of(store, &name)?,
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        owned: controlled(pod.as_ref(), uid),
        deleting: pod.metadata.deletion_timestamp.is_some(),
        ended: matches!(status.and_then(|status| status.phase.as_deref()), Some("Failed" | "Succeeded")),
        ready,
        cordoned: pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).is_some_and(|node| caches.cordoned(node)),
        ended_processes: ended(pod),
        ip: member_pod(pod).ip,
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        pod_hash: annotation(names::ANNOTATION_POD_HASH),
        claim_uid: annotation(names::ANNOTATION_CLAIM_UID),
        role: pod.labels().get(names::LABEL_ROLE).cloned(),
        in_standing: pod.labels().get(names::LABEL_IN_STANDING).map(String::as_str) == Some("true"),
        trouble: trouble(pod),
        name,
    })
}

/// Termination messages of containers that the kubelet saw end. What it lost sight of may still run.
fn ended(pod: &Pod) -> Vec<String> {
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let states = containers.flat_map(|container| [container.state.as_ref(), container.last_state.as_ref()]);
    let terminated = states.flatten().filter_map(|state| state.terminated.as_ref());
    terminated
        .filter(|ended| ended.reason.as_deref() != Some("ContainerStatusUnknown"))
        .filter_map(|ended| ended.message.clone())
        .collect()
}

fn operation_facts(operation: &Arc<StoreOperation>) -> Option<OperationFacts> {
    Some(OperationFacts {
        name: operation.name_any(),
        uid: operation.metadata.uid.clone()?,
        created: operation.metadata.creation_timestamp.as_ref()?.0,
        spec: operation.spec.clone(),
        status: operation.status.clone().unwrap_or_default(),
    })
}

/// What keeps a container from running: not placed, image not there, ending again and again.
fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter().flatten();
    for container in containers {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        if let Some(reason) = waiting.and_then(|waiting| waiting.reason.clone()) {
            if reason == "ContainerCreating" || reason == "PodInitializing" {
                continue;
            }
            let message = waiting.and_then(|waiting| waiting.message.clone()).unwrap_or_default();
            return Some(format!("{reason}: {message}").trim_end_matches([':', ' ']).to_owned());
        }
    }
    let placed = status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled");
    let unplaced = placed.filter(|condition| condition.status == "False")?;
    Some(format!("not placed on a node: {}", unplaced.message.clone().unwrap_or_default()))
}

fn claim_facts(claim: &Arc<PersistentVolumeClaim>, store: &str, uid: &str) -> Option<ClaimFacts> {
    let name = claim.name_any();
    let requests =
        claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()).and_then(|resources| resources.requests.as_ref());
    Some(ClaimFacts {
        ordinal: names::ordinal_of_claim(store, &name)?,
        uid: claim.metadata.uid.clone().unwrap_or_default(),
        store_uid: claim.annotations().get(names::ANNOTATION_STORE_UID).cloned(),
        owned: controlled(claim.as_ref(), uid),
        deleting: claim.metadata.deletion_timestamp.is_some(),
        bound: claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound"),
        requested_bytes: requests
            .and_then(|requests| requests.get("storage"))
            .and_then(|quantity| ByteSize(quantity.0.clone()).bytes().ok()),
        name,
    })
}

fn plain(caches: &Caches, namespace: &str, store: &str) -> BTreeMap<ObjectKey, Value> {
    let mut objects = BTreeMap::new();
    let mut put = |kind: ObjectKind, name: String, value: Option<Value>| {
        if let Some(value) = value {
            objects.insert(ObjectKey { kind, name }, value);
        }
    };
    for object in Caches::of_store(&caches.accounts, namespace, store) {
        put(ObjectKind::ServiceAccount, object.name_any(), value(object.as_ref()));
    }
    for object in Caches::of_store(&caches.configs, namespace, store) {
        put(ObjectKind::ConfigMap, object.name_any(), value(object.as_ref()));
    }
    for object in Caches::of_store(&caches.services, namespace, store) {
        put(ObjectKind::Service, object.name_any(), value(object.as_ref()));
    }
    for object in Caches::of_store(&caches.roles, namespace, store) {
        put(ObjectKind::Role, object.name_any(), value(object.as_ref()));
    }
    for object in Caches::of_store(&caches.bindings, namespace, store) {
        put(ObjectKind::RoleBinding, object.name_any(), value(object.as_ref()));
    }
    for object in Caches::of_store(&caches.budgets, namespace, store) {
        put(ObjectKind::PodDisruptionBudget, object.name_any(), value(object.as_ref()));
    }
    objects
}

fn value<K: Serialize>(object: &K) -> Option<Value> {
    serde_json::to_value(object).ok()
}
