//! Step 3: carry a plan out, in its order and without choices of its own: the decision record first, and nothing of the
//! rest if its swap fails; then the Lease, orders and labels, objects, deletions.

use futures::future::join_all;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt};
use parovoz_api::{ReplicatedStore, StoreOperation, StoreReign};
use parovoz_operator_core::build::Object;
use parovoz_operator_core::names;
use parovoz_operator_core::observed::{Observed, StoreFacts};
use parovoz_operator_core::plan::{Delete, DeleteKind, OperationWrite, Plan, ReignWrite, RoleLabels};
use parovoz_operator_core::status::Failure;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::fmt::Debug;
use std::sync::Arc;

use super::lease::{PATIENCE, raise};
use super::observe::{FromName, controlled};
use crate::error::{Class, Error, StoreRef, classify};
use crate::member::Members;
use crate::metrics::Metrics;

/// What a plan is carried out with.
pub struct Tools<'a> {
    /// The API server.
    pub client: &'a Client,
    /// The members.
    pub members: &'a Arc<Members>,
    /// Metrics.
    pub metrics: &'a Metrics,
}

/// A plan that was carried out. Only this can be reported.
#[derive(Debug)]
pub struct Applied {
    /// What could not be done; the rest was.
    pub failures: Vec<Failure>,
    /// True if something failed that is worth trying again soon.
    pub again: bool,
    /// Orders that were carried out.
    pub ordered: usize,
}

/// Carry a plan out.
///
/// # Errors
/// The decision record could not be swapped. Nothing else was done then.
pub async fn apply(tools: &Tools<'_>, observed: &Observed, plan: &Plan) -> Result<Applied, Error> {
    let Plan {
        objects,
        deletes,
        labels,
        reign_write,
        lease,
        orders,
        operations,
        step: _,
        waiting: _,
        events: _,
        target: _,
        invalid: _,
        requeue_after: _,
        asked: _,
        urgent: _,
    } = plan;
    let store = &observed.store;
    let mut applied = Applied { failures: Vec::new(), again: false, ordered: 0 };
    let version = match reign_write {
        Some(write) => swap(tools, store, write).await?,
        None => observed.reign.as_ref().map(|reign| reign.resource_version.clone()),
    };
    let reference = StoreRef::from_obj_name(&store.name, &store.namespace);
    if let Some(write) = lease {
        raise(tools.client, store, write).await?;
    }
    // Clients follow the labels, so they are set at the same time.
    let labelling = join_all(labels.iter().map(|label| labelled(tools.client, &store.namespace, label)));
    let ordering = tools.members.order_all(&reference, &store.uid, orders, PATIENCE);
    let (set, sent) = tokio::join!(labelling, ordering);
    for (label, result) in labels.iter().zip(set) {
        applied.note(result, &format!("label pod {}", label.pod), false);
    }
    for result in sent {
        match result {
            Ok(()) => applied.ordered += 1,
            Err(error) => {
                tracing::warn!(store = %reference, %error, "order not carried out");
                applied.again = true;
            }
        }
    }
    for object in objects {
        let result = object_applied(tools.client, store, object).await;
        applied.note(result, &format!("apply {}", object.name()), matches!(object, Object::Claim(_)));
    }
    for write in operations {
        let result = operation_told(tools.client, &store.namespace, write).await;
        applied.note(result, &format!("write status of operation {}", write.name), false);
    }
    let stands = deletes.is_empty() || record_stands(tools.client, store, version).await;
    applied.again |= !stands;
    for delete in deletes.iter().filter(|_| stands) {
        let result = deleted(tools.client, &store.namespace, delete).await;
        applied.note(result, &format!("delete {}", delete.name), false);
    }
    Ok(applied)
}

/// Why an object was not applied.
#[derive(Debug)]
enum Refusal {
    Foreign,
    Api(kube::Error),
}

impl From<kube::Error> for Refusal {
    fn from(error: kube::Error) -> Self {
        Self::Api(error)
    }
}

impl Applied {
    fn note(&mut self, result: Result<(), Refusal>, what: &str, claim: bool) {
        let (message, terminal, foreign) = match result {
            Ok(()) => return,
            Err(Refusal::Foreign) => (format!("{what}: an object of this name belongs to somebody else"), true, true),
            Err(Refusal::Api(error)) => match classify(&error) {
                // Seen too late or too early: the next observation knows better.
                Class::Gone | Class::Conflict => {
                    self.again = true;
                    return;
                }
                class => (format!("{what}: {}", cause(&error)), class == Class::Terminal, false),
            },
        };
        tracing::warn!(message, terminal, "plan not carried out in full");
        self.again |= !terminal;
        self.failures.push(Failure { message, terminal, foreign, claim: claim && terminal });
    }
}

/// What the API server said, without its codes and without the comparison that may follow the first line.
fn cause(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.lines().next().unwrap_or_default().to_owned(),
        other => other.to_string(),
    }
}

/// True if the decision record is still the one that the plan rests on. Orders may have taken seconds, in which another
/// operator that leads by now may have listed the very member that is about to go.
async fn record_stands(client: &Client, store: &StoreFacts, version: Option<String>) -> bool {
    let api: Api<StoreReign> = Api::namespaced(client.clone(), &store.namespace);
    match api.get_metadata_opt(&store.name).await {
        Ok(found) => found.and_then(|reign| reign.metadata.resource_version) == version,
        Err(error) => {
            tracing::warn!(store = store.name, %error, "nothing deleted: decision record not read again");
            false
        }
    }
}

/// Answers the record's new version.
async fn swap(tools: &Tools<'_>, store: &StoreFacts, write: &ReignWrite) -> Result<Option<String>, Error> {
    let api: Api<StoreReign> = Api::namespaced(tools.client.clone(), &store.namespace);
    let mut reign = StoreReign::new(&store.name, write.spec.clone());
    reign.metadata = ObjectMeta {
        name: Some(store.name.clone()),
        namespace: Some(store.namespace.clone()),
        resource_version: write.expected.clone(),
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
    };
    let params = PostParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PostParams::default() };
    let written = match &write.expected {
        Some(_) => api.replace(&store.name, &params, &reign).await,
        None => api.create(&params, &reign).await,
    };
    match written {
        Ok(written) => {
            tools.metrics.reign_written();
            let current = &write.spec.current;
            tracing::info!(
                store = store.name,
                namespace = store.namespace,
                epoch = current.epoch,
                phase = ?current.phase,
                cause = ?current.cause,
                "decision record swapped"
            );
            Ok(written.metadata.resource_version)
        }
        Err(error) if matches!(classify(&error), Class::Conflict | Class::Gone) => Err(Error::Conflict),
        Err(error) => Err(Error::WriteReign(error)),
    }
}

async fn object_applied(client: &Client, store: &StoreFacts, object: &Object) -> Result<(), Refusal> {
    match object {
        Object::ServiceAccount(object) => one(client, store, object, owned).await,
        Object::ConfigMap(object) => one(client, store, object, owned).await,
        Object::Service(object) => one(client, store, object, owned).await,
        Object::PodDisruptionBudget(object) => one(client, store, object, owned).await,
        Object::Role(object) => one(client, store, object, owned).await,
        Object::RoleBinding(object) => one(client, store, object, owned).await,
        Object::Pod(object) => one(client, store, object, owned).await,
        Object::Claim(object) => one(client, store, object, of_this_store).await,
    }
}

fn owned<K: Resource>(present: &K, store: &StoreFacts) -> bool {
    controlled(present, &store.uid)
}

/// Claims outlive their store by default, so they name it instead of being owned by it.
fn of_this_store<K: ResourceExt>(present: &K, store: &StoreFacts) -> bool {
    present.annotations().get(names::ANNOTATION_STORE_UID) == Some(&store.uid)
}

/// Apply one object, unless one of that name belongs to somebody else.
async fn one<K>(
    client: &Client,
    store: &StoreFacts,
    object: &K,
    mine: fn(&kube::core::PartialObjectMeta<K>, &StoreFacts) -> bool,
) -> Result<(), Refusal>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), &store.namespace);
    let name = object.name_any();
    if let Some(present) = api.get_metadata_opt(&name).await?
        && !mine(&present, store)
    {
        return Err(Refusal::Foreign);
    }
    let params = PatchParams::apply(names::FIELD_MANAGER).force();
    api.patch(&name, &params, &Patch::Apply(object)).await?;
    Ok(())
}

/// Set the labels of exactly the pod that was seen: a pod of that name made since has another uid and is refused.
async fn labelled(client: &Client, namespace: &str, labels: &RoleLabels) -> Result<(), Refusal> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let standing = labels.in_standing.then_some("true");
    let patch = json!({"metadata": {
        "uid": labels.uid,
        "labels": {names::LABEL_ROLE: labels.role, names::LABEL_IN_STANDING: standing},
    }});
    let params = PatchParams { field_manager: Some(names::ROLE_MANAGER.into()), ..PatchParams::default() };
    api.patch_metadata(&labels.pod, &params, &Patch::Merge(patch)).await?;
    Ok(())
}

/// Write how an operation goes, into exactly the object that was seen.
async fn operation_told(client: &Client, namespace: &str, write: &OperationWrite) -> Result<(), Refusal> {
    let api: Api<StoreOperation> = Api::namespaced(client.clone(), namespace);
    let patch = json!({"metadata": {"uid": write.uid}, "status": write.status});
    let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PatchParams::default() };
    api.patch_status(&write.name, &params, &Patch::Merge(patch)).await?;
    Ok(())
}

async fn deleted(client: &Client, namespace: &str, delete: &Delete) -> Result<(), Refusal> {
    let exactly = Preconditions { uid: Some(delete.uid.clone()), resource_version: None };
    let params = DeleteParams::background().preconditions(exactly);
    match delete.kind {
        DeleteKind::Pod => {
            let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
            api.delete(&delete.name, &params).await?;
        }
        DeleteKind::Operation => {
            let api: Api<StoreOperation> = Api::namespaced(client.clone(), namespace);
            api.delete(&delete.name, &params).await?;
        }
        DeleteKind::Claim => {
            let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
            api.delete(&delete.name, &params).await?;
        }
    }
    Ok(())
}
