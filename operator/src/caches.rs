//! What the operator watches, narrowly: its stores, operations on them, and objects that carry a store's label. No
//! secrets; of nodes, where it may see them, only whether they take new pods.

use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{Lookup, ObjectRef, Store, store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use parovoz_api::{ReplicatedStore, StoreOperation};
use parovoz_operator_core::names::LABEL_STORE;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::error::StoreRef;
use crate::metrics::Metrics;

/// A store that may be unreadable: one that is must not stop the watch on all others.
pub type GuardedStore = DeserializeGuard<ReplicatedStore>;

/// Caches of everything that is watched.
#[derive(Clone)]
pub struct Caches {
    /// The stores.
    pub stores: Store<GuardedStore>,
    /// Members' pods.
    pub pods: Store<Pod>,
    /// Members' volume claims.
    pub claims: Store<PersistentVolumeClaim>,
    /// Services.
    pub services: Store<Service>,
    /// ConfigMaps.
    pub configs: Store<ConfigMap>,
    /// Service accounts.
    pub accounts: Store<ServiceAccount>,
    /// Disruption budgets.
    pub budgets: Store<PodDisruptionBudget>,
    /// Roles of the members.
    pub roles: Store<Role>,
    /// Who has those roles.
    pub bindings: Store<RoleBinding>,
    /// Operations on stores.
    pub operations: Store<StoreOperation>,
    /// Nodes, without all but whether they take new pods. None where the operator may not see them.
    pub nodes: Option<Store<Node>>,
}

/// The watches that fill the caches, and the queue that they and the members feed.
pub struct Watches {
    client: Client,
    namespace: Option<String>,
    queue: mpsc::Sender<StoreRef>,
    metrics: Arc<Metrics>,
    tasks: JoinSet<()>,
}

impl Watches {
    /// Start all watches. Changes put the store that they belong to into the queue.
    pub fn start(
        client: Client,
        namespace: Option<String>,
        nodes: bool,
        queue: mpsc::Sender<StoreRef>,
        metrics: Arc<Metrics>,
    ) -> (Caches, JoinSet<()>) {
        let mut watches = Self { client, namespace, queue, metrics, tasks: JoinSet::new() };
        let caches = Caches {
            stores: watches.stores(),
            pods: watches.labelled(),
            claims: watches.labelled(),
            services: watches.labelled(),
            configs: watches.labelled(),
            accounts: watches.labelled(),
            budgets: watches.labelled(),
            roles: watches.labelled(),
            bindings: watches.labelled(),
            operations: watches.operations(),
            nodes: None,
        };
        let nodes = nodes.then(|| watches.nodes(caches.pods.clone()));
        let caches = Caches { nodes, ..caches };
        (caches, watches.tasks)
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    fn stores(&mut self) -> Store<GuardedStore> {
        let (reader, writer) = store::<GuardedStore>();
        // The operator's own status writes are no news to it.
        let news = |store: &GuardedStore| {
            let meta = store.meta();
            let mut hasher = DefaultHasher::new();
            (meta.generation, &meta.uid, meta.deletion_timestamp.is_some()).hash(&mut hasher);
            Some(hasher.finish())
        };
        let stream = watcher(self.api::<GuardedStore>(), watcher::Config::default())
            .default_backoff()
            .reflect(writer)
            .touched_objects()
            .predicate_filter(news, kube::runtime::PredicateConfig::default());
        self.drive(stream, |store: &GuardedStore| Some(ObjectRef::from_obj(store)));
        reader
    }

    fn labelled<K>(&mut self) -> Store<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Lookup<DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        let (reader, writer) = store::<K>();
        let stream = watcher(self.api::<K>(), watcher::Config::default().labels(LABEL_STORE))
            .default_backoff()
            .modify(|object| {
                // Never looked at, and often the larger part of an object.
                ResourceExt::managed_fields_mut(object).clear();
            })
            .reflect(writer)
            .touched_objects();
        self.drive(stream, |object: &K| {
            let name = ResourceExt::labels(object).get(LABEL_STORE)?;
            Some(StoreRef::new(name).within(&ResourceExt::namespace(object)?))
        });
        reader
    }

    fn operations(&mut self) -> Store<StoreOperation> {
        let (reader, writer) = store::<StoreOperation>();
        let stream = watcher(self.api::<StoreOperation>(), watcher::Config::default())
            .default_backoff()
            .reflect(writer)
            .touched_objects();
        self.drive(stream, |operation: &StoreOperation| {
            Some(StoreRef::new(&operation.spec.store).within(&ResourceExt::namespace(operation)?))
        });
        reader
    }

    /// A node that stops or begins to take pods is news to the stores that have a member there.
    fn nodes(&mut self, pods: Store<Pod>) -> Store<Node> {
        let (reader, writer) = store::<Node>();
        let news = |node: &Node| {
            let mut hasher = DefaultHasher::new();
            (&node.metadata.uid, cordoned(node)).hash(&mut hasher);
            Some(hasher.finish())
        };
        let stream = watcher(Api::<Node>::all(self.client.clone()), watcher::Config::default())
            .default_backoff()
            .modify(|node| {
                ResourceExt::managed_fields_mut(node).clear();
                ResourceExt::annotations_mut(node).clear();
                ResourceExt::labels_mut(node).clear();
                node.status = None;
            })
            .reflect(writer)
            .touched_objects()
            .predicate_filter(news, kube::runtime::PredicateConfig::default());
        let (queue, metrics) = (self.queue.clone(), self.metrics.clone());
        self.tasks.spawn(async move {
            let mut stream = std::pin::pin!(stream);
            while let Some(item) = stream.next().await {
                let node = match item {
                    Ok(node) => node.name_any(),
                    Err(error) => {
                        metrics.watch_failed();
                        tracing::warn!(%error, "watch nodes");
                        continue;
                    }
                };
                let here = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) == Some(&node);
                for pod in pods.state().iter().filter(|pod| here(pod.as_ref())) {
                    let labels = ResourceExt::labels(pod.as_ref());
                    if let (Some(name), Some(namespace)) =
                        (labels.get(LABEL_STORE), ResourceExt::namespace(pod.as_ref()))
                        && queue.send(StoreRef::new(name).within(&namespace)).await.is_err()
                    {
                        return;
                    }
                }
            }
        });
        reader
    }

    fn drive<K: Send + 'static>(
        &mut self,
        stream: impl Stream<Item = Result<K, watcher::Error>> + Send + 'static,
        to_store: impl Fn(&K) -> Option<StoreRef> + Send + 'static,
    ) {
        let (queue, metrics) = (self.queue.clone(), self.metrics.clone());
        self.tasks.spawn(async move {
            let mut stream = std::pin::pin!(stream);
            while let Some(item) = stream.next().await {
                match item {
                    Ok(object) => {
                        if let Some(store) = to_store(&object) {
                            // Waits while the queue is full: a change of an object is never dropped.
                            if queue.send(store).await.is_err() {
                                return;
                            }
                        }
                    }
                    Err(error) => {
                        metrics.watch_failed();
                        tracing::warn!(%error, "watch API server");
                    }
                }
            }
        });
    }
}

impl Caches {
    /// Wait until every cache was filled once.
    ///
    /// # Errors
    /// A watch ended before.
    pub async fn filled(&self) -> Result<(), kube::runtime::reflector::store::WriterDropped> {
        self.stores.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        self.claims.wait_until_ready().await?;
        self.services.wait_until_ready().await?;
        self.configs.wait_until_ready().await?;
        self.accounts.wait_until_ready().await?;
        self.budgets.wait_until_ready().await?;
        self.roles.wait_until_ready().await?;
        self.bindings.wait_until_ready().await?;
        self.operations.wait_until_ready().await?;
        match &self.nodes {
            Some(nodes) => nodes.wait_until_ready().await,
            None => Ok(()),
        }
    }

    /// Operations on one store.
    pub fn operations_on(&self, namespace: &str, store: &str) -> Vec<Arc<StoreOperation>> {
        self.operations.state_filter(|operation| {
            ResourceExt::namespace(operation).as_deref() == Some(namespace) && operation.spec.store == store
        })
    }

    /// True if the node of this name is known to take no new pods.
    #[must_use]
    pub fn cordoned(&self, node: &str) -> bool {
        let found = self.nodes.as_ref().and_then(|nodes| nodes.get(&kube::runtime::reflector::ObjectRef::new(node)));
        found.is_some_and(|node| cordoned(&node))
    }

    /// Every object of one kind that carries the label of a store.
    pub fn of_store<K>(cache: &Store<K>, namespace: &str, store: &str) -> Vec<Arc<K>>
    where
        K: ResourceExt + Lookup + Clone + 'static,
        <K as Lookup>::DynamicType: std::hash::Hash + Eq + Clone,
    {
        cache.state_filter(|object| {
            ResourceExt::namespace(object).as_deref() == Some(namespace)
                && ResourceExt::labels(object).get(LABEL_STORE).map(String::as_str) == Some(store)
        })
    }
}

fn cordoned(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false)
}
