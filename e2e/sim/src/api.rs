//! The API server, as far as one store sees it: objects with versions, compare-and-swap, and what caches saw of it and when.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use parovoz_operator_core::build::{self, Object};
use parovoz_operator_core::names;
use parovoz_operator_core::observed::{
    ClaimFacts, ObjectKey, ObjectKind, OperationFacts, PodFacts, ReignFacts, StoreFacts,
};
use serde_json::Value;

/// Backups of the decision record.
const BACKUPS: usize = 3;
/// Versions of what is cached that are remembered.
const VIEWS: usize = 64;

/// What a cache holds.
#[derive(Debug, Clone)]
pub struct View {
    pub store: StoreFacts,
    pub pods: Vec<PodFacts>,
    pub claims: Vec<ClaimFacts>,
    pub objects: Rc<BTreeMap<ObjectKey, Value>>,
    pub operations: Vec<OperationFacts>,
}

/// The primary's Lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lease {
    pub version: u64,
    pub epoch: u64,
    pub holder: Option<String>,
    /// Changes with every renewal.
    pub renewals: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Api {
    /// Whether it answers.
    pub up: bool,
    version: u64,
    pub store: StoreFacts,
    pub reign: Option<ReignFacts>,
    pub pods: BTreeMap<u32, PodFacts>,
    pub claims: BTreeMap<u32, ClaimFacts>,
    pub objects: Rc<BTreeMap<ObjectKey, Value>>,
    pub operations: Vec<OperationFacts>,
    pub lease: Lease,
    /// Everything that was written, but for renewals of the Lease.
    pub writes: u64,
    /// The record as it was whenever a reign served, newest last.
    pub backups: Vec<parovoz_api::StoreReignSpec>,
    views: VecDeque<(u64, Rc<View>)>,
}

impl Api {
    /// One that holds nothing but the store.
    #[must_use]
    pub fn new(store: StoreFacts) -> Self {
        let mut api = Self {
            up: true,
            version: 0,
            store,
            reign: None,
            pods: BTreeMap::new(),
            claims: BTreeMap::new(),
            objects: Rc::default(),
            operations: Vec::new(),
            lease: Lease::default(),
            writes: 0,
            backups: Vec::new(),
            views: VecDeque::new(),
        };
        api.changed(0);
        api
    }

    /// A number that nothing had before.
    pub fn fresh(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// Something that caches show was changed.
    pub fn changed(&mut self, now: u64) {
        self.writes += 1;
        let view = View {
            store: self.store.clone(),
            pods: self.pods.values().cloned().collect(),
            claims: self.claims.values().cloned().collect(),
            objects: self.objects.clone(),
            operations: self.operations.clone(),
        };
        if self.views.len() == VIEWS {
            self.views.pop_front();
        }
        self.views.push_back((now, Rc::new(view)));
    }

    /// What a cache holds that is as old as this moment.
    #[must_use]
    pub fn view(&self, at: u64) -> Rc<View> {
        let upto = self.views.partition_point(|(time, _)| *time <= at);
        let index = upto.saturating_sub(1);
        // There is always one: it is made with the server.
        match self.views.get(index) {
            Some((_, view)) => view.clone(),
            None => Rc::new(View {
                store: self.store.clone(),
                pods: Vec::new(),
                claims: Vec::new(),
                objects: self.objects.clone(),
                operations: Vec::new(),
            }),
        }
    }

    /// The version of the decision record.
    #[must_use]
    pub fn version_of_reign(&self) -> Option<String> {
        self.reign.as_ref().map(|r| r.resource_version.clone())
    }

    /// Swaps the decision record. Answers whether the expected version was the present one.
    pub fn swap(&mut self, expected: Option<&str>, spec: parovoz_api::StoreReignSpec) -> bool {
        if self.reign.as_ref().map(|r| r.resource_version.as_str()) != expected {
            return false;
        }
        let resource_version = self.fresh().to_string();
        if spec.current.phase == parovoz_api::ReignPhase::Serving {
            if self.backups.len() == BACKUPS {
                self.backups.remove(0);
            }
            self.backups.push(spec.clone());
        }
        self.reign = Some(ReignFacts { spec, resource_version });
        self.writes += 1;
        true
    }

    /// A member renews its Lease: whether it holds it.
    pub fn renew(&mut self, epoch: u64, holder: &str) -> bool {
        let another = self.lease.holder.as_deref().is_some_and(|h| h != holder);
        if self.lease.epoch > epoch || (self.lease.epoch == epoch && another) {
            return false;
        }
        self.lease.version = self.fresh();
        self.lease.epoch = epoch;
        self.lease.holder = Some(holder.to_owned());
        self.lease.renewals += 1;
        true
    }

    /// An operator raises the Lease's epoch and frees it for the reign to come. Answers whether the version was the present one.
    pub fn raise(&mut self, version: &str, epoch: u64) -> bool {
        let present = if self.lease.version == 0 { String::new() } else { self.lease.version.to_string() };
        if present != version {
            return false;
        }
        self.lease.version = self.fresh();
        self.lease.epoch = epoch;
        self.lease.holder = None;
        self.writes += 1;
        true
    }

    /// Applies an object. A pod or claim that is new is answered, so that the kubelet can do its part.
    pub fn apply(&mut self, now: u64, object: &Object) -> Option<Made> {
        let value = build::to_value(object).ok()?;
        let made = match object {
            Object::Claim(_) => {
                let ordinal = names::ordinal_of_claim(&self.store.name, object.name())?;
                let uid = match self.claims.get(&ordinal) {
                    Some(present) => present.uid.clone(),
                    None => format!("claim-{}", self.fresh()),
                };
                let new = !self.claims.contains_key(&ordinal);
                let deleting = self.claims.get(&ordinal).is_some_and(|c| c.deleting);
                let bytes = self.store.spec.storage.size.bytes().ok();
                let claim = ClaimFacts { deleting, ..ClaimFacts::as_made(ordinal, uid, &value, bytes) };
                self.claims.insert(ordinal, claim);
                new.then_some(Made::Claim(ordinal))
            }
            Object::Pod(_) => {
                let ordinal = names::ordinal_of(&self.store.name, object.name())?;
                if self.pods.contains_key(&ordinal) {
                    return None;
                }
                let uid = format!("pod-{}", self.fresh());
                let mut pod = PodFacts { ready: true, ..PodFacts::as_made(ordinal, uid, &value) };
                // Without the volume that it asks for no node takes it.
                let there = self.claims.get(&ordinal).is_some_and(|c| pod.claim_uid.as_ref() == Some(&c.uid));
                pod.node = there.then(|| format!("node-{ordinal}"));
                self.pods.insert(ordinal, pod);
                Some(Made::Pod(ordinal))
            }
            _ => {
                let kind = kind_of(object)?;
                let key = ObjectKey { kind, name: object.name().to_owned() };
                Rc::make_mut(&mut self.objects).insert(key, value);
                None
            }
        };
        self.changed(now);
        made
    }
}

/// What was made by an apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    Pod(u32),
    Claim(u32),
}

fn kind_of(object: &Object) -> Option<ObjectKind> {
    Some(match object {
        Object::ServiceAccount(_) => ObjectKind::ServiceAccount,
        Object::ConfigMap(_) => ObjectKind::ConfigMap,
        Object::Service(_) => ObjectKind::Service,
        Object::PodDisruptionBudget(_) => ObjectKind::PodDisruptionBudget,
        Object::Role(_) => ObjectKind::Role,
        Object::RoleBinding(_) => ObjectKind::RoleBinding,
        Object::Pod(_) | Object::Claim(_) => return None,
    })
}
