//! A cluster of values: it carries plans out as the shell and the members would, so that scenarios can be told step by
//! step. After every plan the planner's invariants are checked.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use parovoz_api::{MemberPhase, MemberRole, ReignPhase, ReplicatedStoreStatus, StoreReignSpec, WaitingReason};
use parovoz_operator_core::build::{self, Object};
use parovoz_operator_core::names;
use parovoz_operator_core::observed::{
    ClaimFacts, Contact, FollowerReport, KnownReign, ObjectKey, Observed, PodFacts, Position, PrefixReport, ReignFacts,
    Report, StoreFacts,
};
use parovoz_operator_core::plan::{DeleteKind, Order, OrderKind, Plan, plan};
use parovoz_operator_core::status::status;
use serde_json::{Value, json};

pub const STORE_UID: &str = "store-uid";
pub const TICK: SignedDuration = SignedDuration::from_secs(2);

/// What is on a volume. It outlives pods.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    pub data_uuid: String,
    pub blank: bool,
    pub reign: Option<KnownReign>,
    pub started: u64,
    pub positions: BTreeMap<String, Position>,
    pub complete: bool,
}

/// A running process.
#[derive(Clone, Debug, Default)]
pub struct Process {
    pub id: String,
    pub primary: bool,
    pub upstream: Option<(String, String)>,
    /// data_uuid of the bootstrap source.
    pub source: String,
    pub parked: bool,
}

#[derive(Clone, Debug)]
pub struct World {
    pub store: StoreFacts,
    pub pods: BTreeMap<u32, PodFacts>,
    pub claims: BTreeMap<u32, ClaimFacts>,
    pub objects: BTreeMap<ObjectKey, Value>,
    pub reign: Option<ReignFacts>,
    /// By uid of the claim.
    pub volumes: BTreeMap<String, Volume>,
    /// By ordinal; absent = the container does not run.
    pub processes: BTreeMap<u32, Process>,
    /// Members that the operator cannot reach, and since when.
    pub cut: BTreeMap<u32, Timestamp>,
    pub now: Timestamp,
    pub ids: u64,
    /// Epochs that any process ever started.
    pub started: BTreeSet<u64>,
}

impl World {
    pub fn new(replicas: i32) -> Self {
        Self::with_spec(json!({"replicas": replicas, "storage": {"size": "1Gi"}}))
    }

    pub fn with_spec(spec: Value) -> Self {
        Self {
            store: StoreFacts {
                name: "cache".into(),
                namespace: "prod".into(),
                uid: STORE_UID.into(),
                generation: 1,
                deleting: false,
                spec: serde_json::from_value(spec).unwrap(),
                status: None,
            },
            pods: BTreeMap::new(),
            claims: BTreeMap::new(),
            objects: BTreeMap::new(),
            reign: None,
            volumes: BTreeMap::new(),
            processes: BTreeMap::new(),
            cut: BTreeMap::new(),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            ids: 0,
            started: BTreeSet::new(),
        }
    }

    pub fn converged(replicas: i32) -> Self {
        let mut world = Self::new(replicas);
        world.converge();
        world
    }

    pub fn id(&mut self, what: &str) -> String {
        self.ids += 1;
        format!("{what}-{}", self.ids)
    }

    pub fn observe(&mut self) -> Observed {
        let contacts = self.pods.values().map(|pod| (pod.name.clone(), self.contact(pod.ordinal))).collect();
        Observed {
            store: self.store.clone(),
            pods: self.pods.values().cloned().collect(),
            claims: self.claims.values().cloned().collect(),
            objects: self.objects.clone(),
            reign: self.reign.clone(),
            contacts,
            now: self.now,
            fresh_id: self.id("reign"),
            default_image: "parovoz/dataplane:test".into(),
        }
    }

    fn contact(&self, ordinal: u32) -> Contact {
        let away = |since: Timestamp| {
            Duration::try_from(self.now.duration_since(since)).unwrap().max(Duration::from_millis(1))
        };
        match (self.cut.get(&ordinal), self.report(ordinal)) {
            (Some(since), report) => Contact { report, age: away(*since), unreachable_for: away(*since) },
            (None, Some(report)) => Contact { report: Some(report), ..Contact::default() },
            (None, None) => Contact { unreachable_for: Duration::from_secs(1), ..Contact::default() },
        }
    }

    pub fn volume(&self, ordinal: u32) -> Option<&Volume> {
        self.volumes.get(&self.claims.get(&ordinal)?.uid)
    }

    pub fn volume_mut(&mut self, ordinal: u32) -> &mut Volume {
        let uid = self.claims[&ordinal].uid.clone();
        self.volumes.get_mut(&uid).unwrap()
    }

    pub fn report(&self, ordinal: u32) -> Option<Report> {
        let process = self.processes.get(&ordinal)?;
        let volume = self.volume(ordinal)?;
        if process.parked {
            return Some(Report {
                store_uid: STORE_UID.into(),
                process_id: process.id.clone(),
                role: MemberRole::Replica,
                phase: MemberPhase::Parked,
                reason: "open member slot: checksum differs".into(),
                ..Report::default()
            });
        }
        let connected = process.upstream.is_some();
        let phase = match (process.primary, volume.blank) {
            (true, _) => MemberPhase::Serving,
            (false, true) => MemberPhase::Blank,
            (false, false) if !volume.complete => MemberPhase::Bootstrapping,
            (false, false) if connected => MemberPhase::Streaming,
            (false, false) => MemberPhase::Waiting,
        };
        let (upstream_data_uuid, upstream_address) = process.upstream.clone().unwrap_or_default();
        Some(Report {
            store_uid: STORE_UID.into(),
            data_uuid: volume.data_uuid.clone(),
            process_id: process.id.clone(),
            role: if process.primary { MemberRole::Primary } else { MemberRole::Replica },
            phase,
            reign: volume.reign.clone(),
            started_epoch: volume.started,
            prefixes: volume
                .positions
                .iter()
                .map(|(uuid, applied)| PrefixReport {
                    name: uuid.clone(),
                    prefix_uuid: uuid.clone(),
                    applied: *applied,
                    ..PrefixReport::default()
                })
                .collect(),
            followers: if process.primary { self.followers(volume) } else { Vec::new() },
            upstream_data_uuid,
            upstream_address,
            bootstrap_source: process.source.clone(),
            upstream_connected: connected,
            disk_free_bytes: 900,
            disk_total_bytes: 1000,
            complete: volume.complete && !volume.blank,
            ..Report::default()
        })
    }

    fn followers(&self, primary: &Volume) -> Vec<FollowerReport> {
        let others = self.processes.keys().filter_map(|ordinal| self.volume(*ordinal));
        others
            .filter(|volume| volume.data_uuid != primary.data_uuid && !volume.blank)
            .map(|volume| FollowerReport {
                data_uuid: volume.data_uuid.clone(),
                connected: true,
                lag_sequences: primary.positions.values().map(|p| p.sequence).sum::<u64>()
                    - volume
                        .positions
                        .values()
                        .map(|p| p.sequence)
                        .sum::<u64>()
                        .min(primary.positions.values().map(|p| p.sequence).sum()),
                ..FollowerReport::default()
            })
            .collect()
    }

    pub fn leader(&self) -> Option<u32> {
        self.processes.iter().find(|(_, process)| process.primary).map(|(ordinal, _)| *ordinal)
    }

    pub fn plan(&mut self) -> (Observed, Plan) {
        let observed = self.observe();
        let plan = plan(&observed);
        check(&observed, &plan);
        (observed, plan)
    }

    /// Observe, plan, carry out, report; then let the kubelet and the members do their part.
    pub fn step(&mut self) -> Plan {
        let (observed, plan) = self.plan();
        self.carry_out(&plan);
        self.store.status = Some(status(&observed, &plan, &[]));
        self.cluster();
        self.now = self.now.checked_add(TICK).unwrap();
        plan
    }

    pub fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.step();
        }
    }

    /// Step until nothing changes any more.
    pub fn converge(&mut self) {
        for _ in 0..80 {
            if self.step().changes_nothing() && self.step().changes_nothing() {
                return;
            }
        }
        panic!("the store does not come to rest: {:#?}", self.plan().1);
    }

    pub fn status(&mut self) -> ReplicatedStoreStatus {
        let (observed, plan) = self.plan();
        status(&observed, &plan, &[])
    }

    pub fn waits(&mut self, reason: WaitingReason) -> bool {
        self.plan().1.waiting.iter().any(|waiting| waiting.reason == reason)
    }

    pub fn carry_out(&mut self, plan: &Plan) {
        for object in &plan.objects {
            self.apply(object);
        }
        if let Some(write) = &plan.reign_write {
            let present = self.reign.as_ref().map(|reign| reign.resource_version.clone());
            assert_eq!(present, write.expected, "the swap is against what was observed");
            let resource_version = self.id("version");
            self.reign = Some(ReignFacts { spec: write.spec.clone(), resource_version });
        }
        for order in &plan.orders {
            self.obey(order);
        }
        for labels in &plan.labels {
            let pod = self.pods.values_mut().find(|pod| pod.uid == labels.uid).unwrap();
            pod.role = Some(labels.role.into());
            pod.in_standing = labels.in_standing;
        }
        for delete in &plan.deletes {
            match delete.kind {
                DeleteKind::Pod => {
                    let ordinal = self.pods.values().find(|pod| pod.uid == delete.uid).unwrap().ordinal;
                    self.delete_pod(ordinal);
                }
                DeleteKind::Claim => {
                    let ordinal = self.claims.values().find(|claim| claim.uid == delete.uid).unwrap().ordinal;
                    self.delete_claim(ordinal);
                }
            }
        }
    }

    fn apply(&mut self, object: &Object) {
        let value = build::to_value(object).unwrap();
        let annotation = |key: &str| value["metadata"]["annotations"][key].as_str().map(str::to_owned);
        match object {
            Object::Claim(_) => {
                let ordinal = names::ordinal_of_claim("cache", object.name()).unwrap();
                let fresh = self.id("claim");
                let uid = self.claims.get(&ordinal).map_or(fresh, |claim| claim.uid.clone());
                let claim = ClaimFacts {
                    name: object.name().into(),
                    ordinal,
                    uid,
                    store_uid: annotation(names::ANNOTATION_STORE_UID),
                    owned: !value["metadata"]["ownerReferences"].is_null(),
                    deleting: false,
                    bound: true,
                    requested_bytes: self.store.spec.storage.size.bytes().ok(),
                };
                self.claims.insert(ordinal, claim);
            }
            Object::Pod(_) => {
                let ordinal = names::ordinal_of("cache", object.name()).unwrap();
                let uid = self.id("pod");
                assert!(!self.pods.contains_key(&ordinal), "a pod is made once");
                let pod = PodFacts {
                    name: object.name().into(),
                    ordinal,
                    uid,
                    owned: true,
                    deleting: false,
                    ended: false,
                    ready: false,
                    node: None,
                    pod_hash: annotation(names::ANNOTATION_POD_HASH),
                    claim_uid: annotation(names::ANNOTATION_CLAIM_UID),
                    role: value["metadata"]["labels"][names::LABEL_ROLE].as_str().map(str::to_owned),
                    in_standing: false,
                    trouble: None,
                };
                self.pods.insert(ordinal, pod);
            }
            _ => {
                let plain = build::plain_objects(
                    &self.store,
                    &parovoz_operator_core::settings::Settings::parse(&self.store.spec).unwrap(),
                );
                let key = plain
                    .into_iter()
                    .map(|(key, _)| key)
                    .find(|key| key.name == object.name() && same_kind(key, object));
                self.objects.insert(key.unwrap(), value);
            }
        }
    }

    /// What a member does with an order: the rules that the data plane promises.
    fn obey(&mut self, order: &Order) {
        let Some(ordinal) = names::ordinal_of("cache", &order.pod) else { return };
        if self.cut.contains_key(&ordinal)
            || self.volume(ordinal).is_none_or(|volume| volume.data_uuid != order.data_uuid)
        {
            return;
        }
        if self.processes.get(&ordinal).is_none_or(|process| process.id != order.process_id) {
            return;
        }
        let volume = self.volume_mut(ordinal);
        let promised = volume.reign.as_ref().map_or(0, |reign| reign.epoch);
        match &order.kind {
            OrderKind::Promote => {
                assert!(order.reign.epoch > volume.started && order.reign.epoch >= promised, "refused promotion");
                volume.started = order.reign.epoch;
                volume.reign = Some(order.reign.clone());
                volume.blank = false;
                volume.complete = true;
                let epoch = order.reign.epoch;
                let catalogue = volume.positions.entry("catalogue".into()).or_default();
                *catalogue = Position { epoch, sequence: catalogue.sequence + 1 };
                assert!(self.started.insert(epoch), "epoch {epoch} is started twice");
                let process = self.processes.get_mut(&ordinal).unwrap();
                process.primary = true;
                process.upstream = None;
            }
            OrderKind::Follow { upstream, bootstrap_source, .. } => {
                assert!(order.reign.epoch >= promised, "refused order");
                volume.reign = Some(order.reign.clone());
                let process = self.processes.get_mut(&ordinal).unwrap();
                process.primary = false;
                process.upstream = Some((upstream.data_uuid.clone(), upstream.replication_address.clone()));
                process.source = bootstrap_source.as_ref().map(|source| source.data_uuid.clone()).unwrap_or_default();
            }
        }
    }

    /// The kubelet, the claim protection and the streams.
    pub fn cluster(&mut self) {
        let ordinals: Vec<u32> = self.pods.keys().copied().collect();
        for ordinal in ordinals {
            let runs = self.pods[&ordinal].node.is_some();
            if !runs {
                self.pods.get_mut(&ordinal).unwrap().node = Some(format!("node-{ordinal}"));
                self.start(ordinal);
            }
        }
        self.stream();
    }

    /// Start the container of a pod: on its volume, made empty at first.
    pub fn start(&mut self, ordinal: u32) {
        let Some(claim) = self.claims.get(&ordinal).map(|claim| claim.uid.clone()) else { return };
        if !self.volumes.contains_key(&claim) {
            let data_uuid = self.id("data");
            self.volumes.insert(claim, Volume { data_uuid, blank: true, ..Volume::default() });
        }
        let id = self.id("process");
        self.processes.insert(ordinal, Process { id, ..Process::default() });
    }

    /// Followers copy what their upstream has.
    pub fn stream(&mut self) {
        for _ in 0..self.processes.len() {
            let followers: Vec<u32> = self.processes.keys().copied().collect();
            for ordinal in followers {
                let Some((upstream, _)) = self.processes[&ordinal].upstream.clone() else { continue };
                let source = self.processes.keys().find_map(|other| {
                    self.volume(*other).filter(|volume| volume.data_uuid == upstream && !volume.blank)
                });
                let Some(source) = source.cloned() else { continue };
                let volume = self.volume_mut(ordinal);
                volume.blank = false;
                volume.complete = true;
                volume.positions = source.positions;
            }
        }
    }

    /// The primary takes writes.
    pub fn write(&mut self, prefix: &str, records: u64) {
        let Some(leader) = self.leader() else { return };
        let epoch = self.volume(leader).unwrap().started;
        let position = self.volume_mut(leader).positions.entry(prefix.into()).or_default();
        *position = Position { epoch, sequence: position.sequence + records };
    }

    /// The container ends and is started anew: every process starts as a follower.
    pub fn restart(&mut self, ordinal: u32) {
        if self.processes.remove(&ordinal).is_some() {
            self.start(ordinal);
        }
    }

    /// The process finds what only a person can set right: up, data closed, identity unknown.
    pub fn park(&mut self, ordinal: u32) {
        let process = self.processes.get_mut(&ordinal).unwrap();
        process.primary = false;
        process.upstream = None;
        process.parked = true;
    }

    pub fn delete_pod(&mut self, ordinal: u32) {
        self.pods.remove(&ordinal);
        self.processes.remove(&ordinal);
        self.cut.remove(&ordinal);
        if self.claims.get(&ordinal).is_some_and(|claim| claim.deleting) {
            self.lose(ordinal);
        }
    }

    /// As `kubectl delete pvc`: it stays until the pod is gone.
    pub fn delete_claim(&mut self, ordinal: u32) {
        if self.pods.contains_key(&ordinal) {
            self.claims.get_mut(&ordinal).unwrap().deleting = true;
        } else {
            self.lose(ordinal);
        }
    }

    fn lose(&mut self, ordinal: u32) {
        if let Some(claim) = self.claims.remove(&ordinal) {
            self.volumes.remove(&claim.uid);
        }
    }

    pub fn cut(&mut self, ordinal: u32) {
        self.cut.insert(ordinal, self.now);
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }

    pub fn scale(&mut self, replicas: i32) {
        self.store.spec.replicas = replicas;
        self.store.generation += 1;
    }

    pub fn record(&self) -> &StoreReignSpec {
        &self.reign.as_ref().unwrap().spec
    }
}

fn same_kind(key: &ObjectKey, object: &Object) -> bool {
    use parovoz_operator_core::observed::ObjectKind as Kind;
    matches!(
        (key.kind, object),
        (Kind::ServiceAccount, Object::ServiceAccount(_))
            | (Kind::ConfigMap, Object::ConfigMap(_))
            | (Kind::Service, Object::Service(_))
            | (Kind::PodDisruptionBudget, Object::PodDisruptionBudget(_))
    )
}

/// What must hold of every plan, whatever was observed.
pub fn check(observed: &Observed, plan: &Plan) {
    let promotions: Vec<&Order> = plan.orders.iter().filter(|order| order.kind == OrderKind::Promote).collect();
    assert!(promotions.len() <= 1, "two promotions in one plan");
    let primaries = plan.labels.iter().filter(|labels| labels.role == names::ROLE_PRIMARY).count();
    assert!(primaries <= 1, "two pods labelled primary");
    let record =
        plan.reign_write.as_ref().map(|write| &write.spec).or(observed.reign.as_ref().map(|reign| &reign.spec));
    if let Some(order) = promotions.first() {
        let record = record.expect("a promotion without a record");
        assert_eq!(record.current.phase, ReignPhase::Promoting);
        assert_eq!(record.current.primary, order.data_uuid);
        assert_eq!(record.current.reign_id, order.reign.reign_id);
        let report =
            observed.contacts.values().filter_map(Contact::fresh).find(|r| r.data_uuid == order.data_uuid).unwrap();
        let data_elsewhere = observed.contacts.values().filter_map(Contact::fresh).any(Report::usable);
        assert!(report.usable() || !data_elsewhere, "an empty or half copied member is promoted over one with data");
        assert!(report.usable() || !record.ever_served, "a store that served is led by a member without data");
    }
    if let (Some(write), Some(reign)) = (&plan.reign_write, &observed.reign) {
        let (new, old) = (&write.spec.current, &reign.spec.current);
        assert!(new.epoch >= old.epoch, "an epoch goes back");
        assert_eq!(new.epoch == old.epoch, new.reign_id == old.reign_id, "an epoch belongs to one reign");
        assert!(write.spec.ever_served || !reign.spec.ever_served);
        assert!(write.spec.history.len() <= 20);
        assert_eq!(write.expected.as_ref(), Some(&reign.resource_version));
    }
    for delete in plan.deletes.iter().filter(|delete| delete.kind == DeleteKind::Pod) {
        let pod = observed.pods.iter().find(|pod| pod.uid == delete.uid).expect("a deletion of what was not seen");
        let leads = observed.answer(pod.ordinal).is_some_and(|report| report.role == MemberRole::Primary);
        let listed = observed.reign.as_ref().is_some_and(|reign| {
            observed.answer(pod.ordinal).is_some_and(|report| reign.spec.current.primary == report.data_uuid)
        });
        assert!(!leads && !listed, "the primary's pod is deleted");
    }
    if observed.store.spec.paused || observed.store.deleting {
        assert!(plan.changes_nothing(), "a paused store is changed");
    }
    for waiting in &plan.waiting {
        assert!(!waiting.message.is_empty());
    }
    assert!(!plan.requeue_after.is_zero() && plan.requeue_after <= Duration::from_secs(60));
}
