//! A store on a cluster, as its users see it: the object, its status, its members.

use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::kube::{Kube, items, text};
use crate::poll;
use crate::resp::Client;

/// Enough for volumes, pods and the first reign on a busy machine.
pub const HEALTHY_LIMIT: Duration = Duration::from_secs(180);

/// One store by name.
#[derive(Clone, Debug)]
pub struct Store {
    /// The cluster it is on.
    pub kube: Kube,
    /// Where it is.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A member as the status tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The pod.
    pub name: String,
    /// The node, or "".
    pub node: String,
    /// Primary, Replica or Unknown.
    pub role: String,
    /// What it does.
    pub phase: String,
    /// The identity on its volume, or "" while there is none.
    pub data_uuid: String,
    /// Epoch, and the sum of the sequences of all prefixes.
    pub position: (i64, i64),
}

impl Store {
    /// Makes the object with `replicas` members and small volumes; `spec` is merged into it.
    pub fn create(&self, replicas: u32, spec: Value) -> Result<()> {
        let mut all = json!({"replicas": replicas, "storage": {"size": "1Gi"}});
        if let (Some(all), Value::Object(more)) = (all.as_object_mut(), spec) {
            all.extend(more);
        }
        self.kube.apply(&self.document(all).to_string())
    }

    /// The whole object with this specification.
    pub fn document(&self, spec: Value) -> Value {
        json!({
            "apiVersion": "parovoz.dev/v1alpha1", "kind": "ReplicatedStore",
            "metadata": {"name": self.name, "namespace": self.namespace}, "spec": spec,
        })
    }

    fn query(&self) -> String {
        format!("get rstore {} -n {}", self.name, self.namespace)
    }

    /// The object.
    pub fn get(&self) -> Result<Value> {
        self.kube.json(&self.query())
    }

    /// The epoch of the status.
    pub fn epoch(&self) -> Result<i64> {
        Ok(self.get()?.pointer("/status/epoch").and_then(Value::as_i64).unwrap_or(0))
    }

    /// Waits until exactly `replicas` members serve and the store is healthy at its present generation.
    pub fn await_healthy(&self, replicas: usize) -> Result<Vec<Member>> {
        let what = format!("store {} to be healthy with {replicas} members", self.name);
        self.kube.until(&what, HEALTHY_LIMIT, &self.query(), |object| {
            let members = members(object);
            let status = object.pointer("/status").cloned().unwrap_or_default();
            let current = status.get("observedGeneration") == object.pointer("/metadata/generation");
            let ready = status.get("readyReplicas").and_then(Value::as_u64) == Some(replicas as u64);
            let settled = members.iter().all(|m| matches!(m.phase.as_str(), "Serving" | "Streaming"));
            if current && ready && settled && members.len() == replicas && text(&status, "/phase") == "Healthy" {
                Ok(members)
            } else {
                Err(describe(object))
            }
        })
    }

    /// Waits until the status meets a condition; its `Err` says what is missing.
    pub fn await_status<T>(
        &self,
        what: &str,
        mut accept: impl FnMut(&[Member], &Value) -> std::result::Result<T, String>,
    ) -> Result<T> {
        self.kube.until(what, HEALTHY_LIMIT, &self.query(), |object| {
            accept(&members(object), object).map_err(|missing| format!("{missing} ({})", describe(object)))
        })
    }

    /// Waits until all members report the primary's position. To be asked once writes have stopped.
    pub fn await_equal_positions(&self, replicas: usize) -> Result<Vec<Member>> {
        self.await_status("all members to reach the primary's position", |members, _| {
            let primary = members.iter().find(|m| m.role == "Primary").map(|m| m.position);
            let equal = members.len() == replicas && members.iter().all(|m| Some(m.position) == primary);
            if equal { Ok(members.to_vec()) } else { Err("positions differ".into()) }
        })
    }

    /// The primary's pod.
    pub fn primary(&self) -> Result<String> {
        let name = text(&self.get()?, "/status/primary").to_owned();
        if name.is_empty() { Err(Error::failed(format!("store {} has no primary", self.name))) } else { Ok(name) }
    }

    /// A replica's pod.
    pub fn replica(&self) -> Result<Member> {
        let found = members(&self.get()?).into_iter().find(|m| m.role == "Replica");
        found.ok_or_else(|| Error::failed(format!("store {} has no replica", self.name)))
    }

    /// Connects to a member's own client port.
    pub fn connect(&self, pod: &str) -> Result<Client> {
        Client::connect(&self.kube, &self.namespace, &format!("pod/{pod}"))
    }

    /// The uid of an object of this store's namespace, or `None` where it is not there.
    pub fn uid(&self, kind: &str, name: &str) -> Result<Option<String>> {
        let object = self.kube.find(&format!("get {kind} {name} -n {}", self.namespace))?;
        Ok(object.map(|o| text(&o, "/metadata/uid").to_owned()))
    }

    /// Deletes a member's pod; does not wait.
    pub fn delete_pod(&self, pod: &str) -> Result<()> {
        self.kube.kubectl(&format!("delete pod {pod} -n {} --wait=false", self.namespace)).done()
    }

    /// Deletes a member's volume with its pod; does not wait.
    pub fn delete_volume(&self, pod: &str) -> Result<()> {
        self.kube.kubectl(&format!("delete pvc data-{pod} -n {} --wait=false", self.namespace)).done()?;
        self.delete_pod(pod)
    }

    /// Removes the store, its pods, its decision record and its volumes; waits until they are gone.
    pub fn remove(&self) -> Result<()> {
        if self.kube.find("get crd replicatedstores.parovoz.dev")?.is_none() {
            return Ok(());
        }
        let ns = &self.namespace;
        self.kube.kubectl(&format!("delete rstore {} -n {ns} --ignore-not-found --timeout=60s", self.name)).done()?;
        self.kube
            .kubectl(&format!("delete storereign {} -n {ns} --ignore-not-found --timeout=60s", self.name))
            .done()?;
        let claims: Vec<String> = (1..=9).map(|i| format!("data-{}-{i}", self.name)).collect();
        let label = format!("-l parovoz.dev/store={} -n {ns}", self.name);
        self.kube.kubectl(&format!("delete pods {label} --ignore-not-found --timeout=60s")).done()?;
        self.kube
            .kubectl(&format!("delete pvc {} -n {ns} --ignore-not-found --timeout=60s", claims.join(" ")))
            .done()?;
        poll::until("the store's pods to be gone", Duration::from_secs(60), Duration::from_millis(300), || {
            let pods = self.kube.json(&format!("get pods {label}")).map_err(|e| e.to_string())?;
            poll::ready(items(&pods, "/items").is_empty(), || format!("{} pods", items(&pods, "/items").len()))
        })
    }
}

/// The members that a store's status names.
pub fn members(object: &Value) -> Vec<Member> {
    items(object, "/status/members")
        .iter()
        .map(|m| Member {
            name: text(m, "/name").to_owned(),
            node: text(m, "/node").to_owned(),
            role: text(m, "/role").to_owned(),
            phase: text(m, "/phase").to_owned(),
            data_uuid: text(m, "/dataUUID").to_owned(),
            position: (
                m.pointer("/position/epoch").and_then(Value::as_i64).unwrap_or(0),
                m.pointer("/position/sequence").and_then(Value::as_i64).unwrap_or(-1),
            ),
        })
        .collect()
}

/// A status in one line.
pub fn describe(object: &Value) -> String {
    let all: Vec<String> = members(object)
        .iter()
        .map(|m| format!("{} {} {} at {}/{}", m.name, m.role, m.phase, m.position.0, m.position.1))
        .collect();
    let waiting: Vec<&str> = items(object, "/status/waiting").iter().map(|w| text(w, "/message")).collect();
    let ready = object.pointer("/status/readyReplicas").and_then(Value::as_i64).unwrap_or(0);
    let phase = text(object, "/status/phase");
    let waits = if waiting.is_empty() { String::new() } else { format!("; waiting: {}", waiting.join("; ")) };
    format!("phase {phase}, {ready} ready; {}{waits}", all.join(", "))
}
