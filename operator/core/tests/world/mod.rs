//! A cluster of values: it carries plans out as the shell and the members would, so that scenarios can be told step by
//! step. After every plan the planner's invariants are checked.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use parovoz_api::{
    MemberRole, ReignPhase, ReplicatedStoreStatus, StoreOperationSpec, StoreOperationStatus, StoreReignSpec,
    WaitingReason,
};
use parovoz_operator_core::build::{self, Object};
use parovoz_operator_core::names;
use parovoz_operator_core::observed::OperationFacts;
use parovoz_operator_core::observed::{
    ClaimFacts, Contact, KnownReign, LeaseFacts, ObjectKey, Observed, PodFacts, Position, ReignFacts, ReignRef, Report,
    StoreFacts,
};
use parovoz_operator_core::plan::{DeleteKind, Order, OrderKind, Plan, may_have_served, plan};
use parovoz_operator_core::status::{Failure, status};
use serde_json::{Value, json};

mod member;

pub const STORE_UID: &str = "store-uid";
pub const CATALOGUE: &str = "catalogue";
/// Longest time that passes between two passes.
pub const TICK: SignedDuration = SignedDuration::from_secs(2);
/// Time that a pass takes which another follows at once.
const AT_ONCE: SignedDuration = SignedDuration::from_millis(20);
/// A member refuses to seal on silence if it heard the primary so lately.
const PROMISE: Duration = Duration::from_secs(3);

/// What is on a volume. It outlives pods.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    pub data_uuid: String,
    pub blank: bool,
    pub reign: Option<KnownReign>,
    pub sealed: Option<ReignRef>,
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
    pub told_primary: String,
    /// data_uuid of the bootstrap source.
    pub source: String,
    pub parked: bool,
    /// Writes are held until then.
    pub frozen: Option<Timestamp>,
    /// When it last heard the primary of the reign that it follows.
    pub heard: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    /// Its disk hangs: it answers, and neither acknowledges nor seals.
    pub hangs: bool,
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
    /// Members that no other member reaches.
    pub apart: BTreeSet<u32>,
    /// Pods that no node takes: they have no address.
    pub unplaced: BTreeSet<u32>,
    /// How often the power of each machine was cut.
    pub cuts: BTreeMap<u32, u64>,
    /// What the API server refuses.
    pub failures: Vec<Failure>,
    pub operations: Vec<OperationFacts>,
    pub lease: LeaseFacts,
    /// When the Lease last moved.
    pub lease_moved: Timestamp,
    /// The highest sequence of the prefix `users` that was acknowledged.
    pub acknowledged: u64,
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
            apart: BTreeSet::new(),
            unplaced: BTreeSet::new(),
            cuts: BTreeMap::new(),
            failures: Vec::new(),
            operations: Vec::new(),
            lease: LeaseFacts::default(),
            lease_moved: "2026-01-01T00:00:00Z".parse().unwrap(),
            acknowledged: 0,
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

    /// A converged store with a quorum of one replica.
    pub fn quorum(replicas: i32, w: i32) -> Self {
        let replication = json!({"mode": "Quorum", "minSyncReplicas": w});
        let mut world =
            Self::with_spec(json!({"replicas": replicas, "storage": {"size": "1Gi"}, "replication": replication}));
        world.converge();
        world
    }

    pub fn id(&mut self, what: &str) -> String {
        self.ids += 1;
        format!("{what}-{}", self.ids)
    }

    pub fn observe(&mut self) -> Observed {
        let addressed = self.pods.values().filter(|pod| !self.unplaced.contains(&pod.ordinal));
        let contacts = addressed.map(|pod| (pod.name.clone(), self.contact(pod.ordinal))).collect();
        Observed {
            store: self.store.clone(),
            pods: self.pods.values().cloned().collect(),
            claims: self.claims.values().cloned().collect(),
            objects: self.objects.clone(),
            reign: self.reign.clone(),
            lease: Observed::wants_lease(self.reign.as_ref()).then(|| LeaseFacts {
                unmoved_for: Duration::try_from(self.now.duration_since(self.lease_moved)).unwrap(),
                ..self.lease.clone()
            }),
            operations: self.operations.clone(),
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

    /// The member that leads the newest reign of all that any member leads.
    pub fn leader(&self) -> Option<u32> {
        let leaders = self.processes.iter().filter(|(_, process)| process.primary).map(|(ordinal, _)| *ordinal);
        leaders.max_by_key(|ordinal| self.volume(*ordinal).map_or(0, |volume| volume.started))
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
        if !plan.urgent {
            self.store.status = Some(status(&observed, &plan, &self.failures));
        }
        let pause = SignedDuration::try_from(plan.requeue_after).unwrap().min(TICK);
        self.now = self.now.checked_add(if plan.urgent { AT_ONCE } else { pause }).unwrap();
        self.cluster();
        plan
    }

    /// Step until something holds; panics after many steps.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        for _ in 0..400 {
            if holds(self) {
                return;
            }
            self.step();
        }
        panic!("never: {what}; {:#?}", self.plan().1);
    }

    /// Step until this much time has passed.
    pub fn pass(&mut self, time: SignedDuration) {
        let until = self.now.checked_add(time).unwrap();
        while self.now < until {
            self.step();
        }
    }

    pub fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.step();
        }
    }

    /// Step until nothing changes any more.
    pub fn converge(&mut self) {
        for _ in 0..600 {
            if self.step().changes_nothing()
                && self.step().changes_nothing()
                && self.step().requeue_after >= Duration::from_secs(30)
            {
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
        if let Some(write) = &plan.lease {
            assert_eq!(
                write.resource_version, self.lease.resource_version,
                "the Lease is raised against what was seen"
            );
            self.lease.resource_version = self.id("lease");
            self.lease.epoch = write.epoch;
        }
        for order in &plan.orders {
            self.obey(order);
        }
        for write in &plan.operations {
            let operation = self.operations.iter_mut().find(|operation| operation.uid == write.uid).unwrap();
            operation.status = write.status.clone();
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
                DeleteKind::Operation => self.operations.retain(|operation| operation.uid != delete.uid),
            }
        }
    }

    fn apply(&mut self, object: &Object) {
        let value = build::to_value(object).unwrap();
        match object {
            Object::Claim(_) => {
                let ordinal = names::ordinal_of_claim("cache", object.name()).unwrap();
                let fresh = self.id("claim");
                let uid = self.claims.get(&ordinal).map_or(fresh, |claim| claim.uid.clone());
                let bytes = self.store.spec.storage.size.bytes().ok();
                let claim = ClaimFacts::as_made(ordinal, uid, &value, bytes);
                self.claims.insert(ordinal, claim);
            }
            Object::Pod(_) => {
                let ordinal = names::ordinal_of("cache", object.name()).unwrap();
                let uid = self.id("pod");
                assert!(!self.pods.contains_key(&ordinal), "a pod is made once");
                self.pods.insert(ordinal, PodFacts::as_made(ordinal, uid, &value));
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

    /// The kubelet, the claim protection and the streams.
    pub fn cluster(&mut self) {
        let ordinals: Vec<u32> = self.pods.keys().copied().collect();
        for ordinal in ordinals {
            let runs = self.pods[&ordinal].node.is_some();
            if !runs && !self.unplaced.contains(&ordinal) {
                self.pods.get_mut(&ordinal).unwrap().node = Some(format!("node-{ordinal}"));
                self.start(ordinal);
            }
        }
        self.stream();
        self.begin_epochs();
        self.stream();
        if self.leader().is_some_and(|leader| self.serves(leader) && !self.apart.contains(&leader)) {
            self.lease_moved = self.now;
        }
    }

    /// Start the container of a pod: on its volume, made empty at first.
    pub fn start(&mut self, ordinal: u32) {
        let Some(claim) = self.claims.get(&ordinal).map(|claim| claim.uid.clone()) else { return };
        if !self.volumes.contains_key(&claim) {
            let data_uuid = self.id("data");
            self.volumes.insert(claim, Volume { data_uuid, blank: true, ..Volume::default() });
        }
        let cuts = self.cuts.get(&ordinal).copied().unwrap_or_default();
        let id = format!("machine-{ordinal}-{cuts}/{}", self.id("process"));
        self.processes.insert(ordinal, Process { id, started_at: Some(self.now), ..Process::default() });
    }

    /// The container ends and is started anew: every process starts as a follower.
    pub fn restart(&mut self, ordinal: u32) {
        if let Some(ended) = self.kill(ordinal) {
            self.start(ordinal);
            self.pods.get_mut(&ordinal).unwrap().ended_processes = vec![ended];
        }
    }

    /// The container ends; nobody is told of it yet.
    pub fn kill(&mut self, ordinal: u32) -> Option<String> {
        self.processes.remove(&ordinal).map(|process| process.id)
    }

    /// The machine of a member loses power, and with it what was written last and not synced; it does not run yet.
    pub fn cut_power(&mut self, ordinal: u32, prefix: &str, unsynced: u64) {
        self.kill(ordinal);
        *self.cuts.entry(ordinal).or_default() += 1;
        let position = self.volume_mut(ordinal).positions.get_mut(prefix).unwrap();
        position.sequence -= unsynced;
    }

    /// A person asks for something.
    pub fn ask(&mut self, spec: Value) -> String {
        let uid = self.id("operation");
        let spec: StoreOperationSpec = serde_json::from_value(spec).unwrap();
        let status = StoreOperationStatus::default();
        self.operations.push(OperationFacts { name: uid.clone(), uid: uid.clone(), created: self.now, spec, status });
        uid
    }

    /// The process finds what only a person can set right: up, data closed, identity unknown.
    pub fn park(&mut self, ordinal: u32) {
        let process = self.processes.get_mut(&ordinal).unwrap();
        process.primary = false;
        process.upstream = None;
        process.parked = true;
    }

    /// The pod is gone and made anew between two passes, and no node takes it.
    pub fn remake_unplaced(&mut self, ordinal: u32) {
        self.kill(ordinal);
        let uid = self.id("pod");
        let pod = self.pods.get_mut(&ordinal).unwrap();
        (pod.uid, pod.node) = (uid, None);
        pod.ended_processes.clear();
        self.unplaced.insert(ordinal);
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

    /// Nobody reaches the member, and it reaches nobody.
    pub fn black_out(&mut self, ordinal: u32) {
        self.cut(ordinal);
        self.apart.insert(ordinal);
    }

    pub fn heal(&mut self) {
        self.cut.clear();
        self.apart.clear();
        for process in self.processes.values_mut() {
            process.hangs = false;
        }
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
            | (Kind::Role, Object::Role(_))
            | (Kind::RoleBinding, Object::RoleBinding(_))
    )
}

/// What must hold of every plan, whatever was observed.
pub fn check(observed: &Observed, plan: &Plan) {
    let promotions: Vec<&Order> =
        plan.orders.iter().filter(|order| matches!(order.kind, OrderKind::Promote { .. })).collect();
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
        // Who began to lead the first reign and came no further than that has no prefix either.
        let holds = |report: &Report| report.usable() && !report.prefixes.is_empty();
        let data_elsewhere = observed.contacts.values().filter_map(Contact::fresh).any(holds);
        assert!(!report.blank() || !data_elsewhere, "an empty member is promoted over one with data");
        assert!(!report.blank() || !record.ever_served, "a store that served is led by a member without data");
        assert!(report.is_sealed(order.reign.epoch, &order.reign.reign_id), "promoted without being sealed");
    }
    if let (Some(write), Some(reign)) = (&plan.reign_write, &observed.reign) {
        let (new, old) = (&write.spec.current, &reign.spec.current);
        assert!(new.epoch >= old.epoch, "an epoch goes back");
        assert_eq!(new.epoch == old.epoch, new.reign_id == old.reign_id, "an epoch belongs to one reign");
        assert!(write.spec.ever_served || !reign.spec.ever_served);
        assert!(write.spec.history.len() <= 64);
        let asked = |spec: &StoreReignSpec, with| may_have_served(spec, with).len();
        if new.epoch > old.epoch {
            let (before, after) = (asked(&reign.spec, true), asked(&write.spec, false));
            assert!(after >= before, "a reign that may have served is forgotten");
        }
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
