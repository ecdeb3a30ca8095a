//! What the operator watches, narrowly: its stores, and objects that carry a store's label. No secrets, no nodes.

use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{Lookup, ObjectRef, Store, store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use parovoz_api::ReplicatedStore;
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
        };
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
        self.budgets.wait_until_ready().await
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
