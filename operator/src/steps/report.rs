//! Step 4: the only writer of status and events.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event as ClusterEvent;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use parking_lot::Mutex;
use parovoz_api::{ReplicatedStore, ReplicatedStoreStatus};
use parovoz_operator_core::names;
use parovoz_operator_core::observed::{Observed, StoreFacts};
use parovoz_operator_core::plan::{Event, Plan};
use parovoz_operator_core::status::{events, failed, status, worth_writing};
use serde_json::json;

use super::apply::Applied;
use crate::error::{Class, Error, classify};
use crate::metrics::Metrics;

/// How long the same event is not told again.
const SAME_EVENT: Duration = Duration::from_secs(300);
/// How many told events are remembered.
const REMEMBERED: usize = 4096;

/// What this process wrote last, and what it told.
pub struct Reporter {
    client: Client,
    instance: String,
    written: Mutex<HashMap<String, (ReplicatedStoreStatus, Instant)>>,
    told: Mutex<HashMap<String, Instant>>,
}

impl Reporter {
    /// Reports of the process of this name.
    #[must_use]
    pub fn new(client: Client, instance: String) -> Self {
        Self { client, instance, written: Mutex::default(), told: Mutex::default() }
    }

    /// What was last written about the store with this uid.
    #[must_use]
    pub fn last(&self, uid: &str) -> Option<ReplicatedStoreStatus> {
        self.written.lock().get(uid).map(|(status, _)| status.clone())
    }

    /// Forget stores that are gone: all but those with these uids.
    pub fn retain(&self, uids: &dyn Fn(&str) -> bool) {
        self.written.lock().retain(|uid, _| uids(uid));
    }

    /// Write the status if it is worth it, and tell what happened.
    ///
    /// # Errors
    /// The status could not be written. Events that could not be told are only logged.
    pub async fn report(
        &self,
        metrics: &Metrics,
        observed: &Observed,
        plan: &Plan,
        applied: &Applied,
    ) -> Result<(), Error> {
        let store = &observed.store;
        let new = status(observed, plan, &applied.failures);
        metrics.store(format!("{}/{}", store.namespace, store.name), Some(new.phase));
        for event in &plan.events {
            self.tell(store, event).await;
        }
        self.write(metrics, store, new).await
    }

    /// A pass failed in a way that only a change by a person helps: say so, as far as that can be written.
    pub async fn failed(&self, metrics: &Metrics, store: &StoreFacts, error: &Error) {
        if error.class() != Class::Terminal {
            return;
        }
        let message = error.to_string().chars().take(1000).collect();
        let new = failed(store.status.as_ref(), store.generation, Timestamp::now(), message);
        metrics.store(format!("{}/{}", store.namespace, store.name), Some(new.phase));
        if let Err(error) = self.write(metrics, store, new).await {
            tracing::warn!(store = store.name, %error, "tell of a failed pass");
        }
    }

    async fn write(&self, metrics: &Metrics, store: &StoreFacts, new: ReplicatedStoreStatus) -> Result<(), Error> {
        for event in &events(store.status.as_ref(), &new) {
            self.tell(store, event).await;
        }
        let age = self.written.lock().get(&store.uid).map(|(_, at)| at.elapsed());
        if !worth_writing(store.status.as_ref(), &new, age) {
            return Ok(());
        }
        let api: Api<ReplicatedStore> = Api::namespaced(self.client.clone(), &store.namespace);
        let patch = json!({
            "apiVersion": ReplicatedStore::api_version(&()),
            "kind": ReplicatedStore::kind(&()),
            // The uid keeps it from the next store of that name.
            "metadata": {"name": store.name, "uid": store.uid},
            "status": new,
        });
        let params = PatchParams::apply(names::FIELD_MANAGER).force();
        match api.patch_status(&store.name, &params, &Patch::Apply(patch)).await {
            Ok(_) => {
                metrics.status_written();
                self.written.lock().insert(store.uid.clone(), (new, Instant::now()));
                Ok(())
            }
            // The store went away meanwhile; there is nobody left to tell.
            Err(error) if classify(&error) == Class::Gone => Ok(()),
            Err(error) => Err(Error::WriteStatus(error)),
        }
    }

    /// Tell what happened in a pass that another follows at once; the status is written by the last of them.
    pub async fn told(&self, observed: &Observed, plan: &Plan) {
        for event in &plan.events {
            self.tell(&observed.store, event).await;
        }
    }

    async fn tell(&self, store: &StoreFacts, event: &Event) {
        let reason = event.reason.text();
        let key = format!("{}/{reason}/{}", store.uid, event.note);
        if !self.is_news(key) {
            return;
        }
        let now = Timestamp::now();
        let message = ClusterEvent {
            metadata: ObjectMeta {
                name: Some(format!("{}.{:x}", store.name, now.as_nanosecond())),
                namespace: Some(store.namespace.clone()),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(now)),
            reporting_controller: Some(names::FIELD_MANAGER.into()),
            reporting_instance: Some(self.instance.clone()),
            action: Some("Reconcile".into()),
            reason: Some(reason),
            type_: Some(if event.warning { "Warning" } else { "Normal" }.into()),
            note: Some(event.note.chars().take(1000).collect()),
            regarding: Some(ObjectReference {
                api_version: Some(ReplicatedStore::api_version(&()).into_owned()),
                kind: Some(ReplicatedStore::kind(&()).into_owned()),
                name: Some(store.name.clone()),
                namespace: Some(store.namespace.clone()),
                uid: Some(store.uid.clone()),
                ..ObjectReference::default()
            }),
            ..ClusterEvent::default()
        };
        let api: Api<ClusterEvent> = Api::namespaced(self.client.clone(), &store.namespace);
        if let Err(error) = api.create(&PostParams::default(), &message).await {
            tracing::warn!(store = store.name, %error, "tell event");
        }
    }

    /// True if the same was not told lately.
    fn is_news(&self, key: String) -> bool {
        let mut told = self.told.lock();
        if told.get(&key).is_some_and(|at| at.elapsed() < SAME_EVENT) {
            return false;
        }
        if told.len() >= REMEMBERED {
            told.retain(|_, at| at.elapsed() < SAME_EVENT);
        }
        if told.len() < REMEMBERED {
            told.insert(key, Instant::now());
        }
        true
    }
}
