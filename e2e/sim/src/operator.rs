//! An operator's process: observe, plan, swap, order, apply, report, with the real core in the middle, and a crash between any
//! two of these now and then. It keeps between passes only what the real shell keeps: caches, contacts and what it saw of
//! the Lease.

mod links;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;
use parovoz_api::{ReignPhase, ReignRecord, ReplicatedStoreStatus};
use parovoz_operator_core::observed::{Contact, LeaseFacts, ObjectKey, Observed, Report};
use parovoz_operator_core::plan::{DeleteKind, EventReason, Plan, SOON, plan};
use parovoz_operator_core::status::{status, worth_writing};

use crate::api::Made;
use crate::coverage;
use crate::faults::Fault;
use crate::msg::{API, Msg, Node, OPERATORS};
use crate::orders;
use crate::rng::Rng;
use crate::setup::Setup;
use crate::world::{Ev, SECOND, World};

type Objects = BTreeMap<ObjectKey, serde_json::Value>;

/// How long an order's answer is waited for.
const ORDER_US: u64 = 3 * SECOND;
/// Between looks at the connections.
const WATCH_US: u64 = 400_000;
/// Without a report for so long a connection is gone.
const SILENT_US: u64 = 3_500_000;
/// Of a thousand swaps, so many are followed by the loss of a volume where that may be.
const VANISHES: u64 = 40;
/// 2026, in milliseconds since 1970.
const EPOCH_MS: i64 = 1_767_225_600_000;

/// Where a pass is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Swap,
    Lease,
    Orders,
    /// The orders of this ticket have had their time.
    Late(u64),
    Objects,
    Status,
}

/// A connection to a member.
#[derive(Debug, Clone, Default)]
struct Link {
    pod_uid: Rc<str>,
    report: Option<Rc<Report>>,
    heard: u64,
    down_since: Option<u64>,
}

/// What was seen of the Lease, by this operator's clock.
#[derive(Debug, Clone, Default)]
struct LeaseSeen {
    state: Option<(Option<String>, u64)>,
    moved: u64,
    raised: BTreeMap<u64, u64>,
}

#[derive(Debug)]
struct Pass {
    observed: Observed,
    plan: Plan,
    /// Version of the decision record that it rests on.
    version: Option<String>,
    calls: BTreeSet<u64>,
    failed: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Operator {
    node: Node,
    pub up: bool,
    /// Counts its processes.
    pub life: u64,
    ticket: u64,
    offset_ms: u64,
    drift_ppm: i64,
    links: BTreeMap<u32, Link>,
    /// How old its caches are, in microseconds.
    pub cache_lag: u64,
    /// Its caches stand still since then.
    pub frozen: Option<u64>,
    lease: LeaseSeen,
    pass: Option<Pass>,
    again: bool,
    status: Option<(ReplicatedStoreStatus, u64)>,
    /// Dies before this many more stages.
    pub die_at: Option<u8>,
    /// An answer of the API server to a swap is lost.
    pub lose_answer: bool,
    calls: u64,
    settled: bool,
    /// The objects that the last look saw, so that they need not be copied for each.
    objects: Option<(Rc<Objects>, Objects)>,
    /// What was last traced of what waits.
    waits: Vec<String>,
}

impl Operator {
    /// One that was not started yet.
    #[must_use]
    pub fn new(index: usize, rng: &mut Rng, setup: &Setup) -> Self {
        Self {
            node: OPERATORS[index],
            up: false,
            life: 0,
            ticket: 0,
            offset_ms: rng.below(1_000_000),
            drift_ppm: setup.drift(rng),
            links: BTreeMap::new(),
            cache_lag: 20_000,
            frozen: None,
            lease: LeaseSeen::default(),
            pass: None,
            again: false,
            status: None,
            die_at: None,
            lose_answer: false,
            calls: 0,
            settled: false,
            objects: None,
            waits: Vec::new(),
        }
    }

    /// What its monotonic clock shows, in microseconds.
    fn clock(&self, now: u64) -> u64 {
        let run = i128::from(now) * i128::from(1_000_000 + self.drift_ppm) / 1_000_000;
        self.offset_ms * 1000 + u64::try_from(run).unwrap_or(0)
    }

    /// What its wall clock shows.
    #[must_use]
    pub fn time(&self, now: u64) -> Timestamp {
        let ms = EPOCH_MS + i64::try_from(self.clock(now) / 1_000).unwrap_or(0);
        Timestamp::from_millisecond(ms).unwrap_or_default()
    }

    /// Whether its last pass found nothing to do and nothing to wait for.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.up && self.settled && self.pass.is_none()
    }
}

impl World {
    pub(crate) fn start_operator(&mut self, operator: usize) {
        let lag = 2_000 + self.rng.below(120_000);
        let me = &mut self.operators[operator];
        if me.up {
            return;
        }
        me.up = true;
        me.life += 1;
        me.links.clear();
        me.lease = LeaseSeen::default();
        me.pass = None;
        me.again = false;
        me.status = None;
        me.die_at = None;
        me.frozen = None;
        me.cache_lag = lag;
        let life = me.life;
        self.trace.say(self.now, || format!("operator {operator}: begins"));
        self.at(1_000, Ev::Watch { operator, life });
        self.look_soon(operator, 100_000);
    }

    /// An operator's process ends.
    pub fn end_operator(&mut self, operator: usize) {
        let me = &mut self.operators[operator];
        me.up = false;
        me.life += 1;
        me.pass = None;
        me.settled = false;
        self.trace.say(self.now, || format!("operator {operator}: ends"));
    }

    /// An operator looks again within so many microseconds.
    pub fn look_soon(&mut self, operator: usize, after: u64) {
        let me = &mut self.operators[operator];
        if !me.up {
            return;
        }
        if me.pass.is_some() {
            me.again = true;
            return;
        }
        me.settled = false;
        me.ticket += 1;
        let (life, ticket) = (me.life, me.ticket);
        self.at(after, Ev::Look { operator, life, ticket });
    }

    fn api_reachable(&self, operator: usize) -> bool {
        let node = OPERATORS[operator];
        self.api.up && !self.net.is_blocked(node, API) && !self.net.is_blocked(API, node)
    }

    pub(crate) fn look(&mut self, operator: usize, life: u64, ticket: u64) {
        let me = &self.operators[operator];
        if me.life != life || me.ticket != ticket || me.pass.is_some() {
            return;
        }
        if !self.api_reachable(operator) {
            let after = 500_000 + self.rng.below(SECOND);
            return self.look_soon(operator, after);
        }
        let (mut observed, objects) = self.observe(operator);
        let plan = plan(&observed);
        let seen = std::mem::take(&mut observed.objects);
        self.operators[operator].objects = Some((objects, seen));
        if plan.events.iter().any(|event| event.reason == EventReason::RecordRebuilt) {
            self.cov.hit("record brought up to date");
        }
        self.note_plan(operator, &plan);
        let me = &mut self.operators[operator];
        me.again = false;
        me.settled = plan.changes_nothing() && plan.waiting.is_empty();
        let version = observed.reign.as_ref().map(|r| r.resource_version.clone());
        me.pass = Some(Pass { observed, plan, version, calls: BTreeSet::new(), failed: false });
        self.next_stage(operator, Stage::Swap);
    }

    fn observe(&mut self, operator: usize) -> (Observed, Rc<Objects>) {
        let me = &self.operators[operator];
        let at = me.frozen.unwrap_or(self.now).min(self.now.saturating_sub(me.cache_lag));
        let view = self.api.view(at);
        let now = me.clock(self.now);
        let contact = |ordinal: u32, uid: &str| {
            let link = me.links.get(&ordinal).filter(|l| *l.pod_uid == *uid);
            let Some(link) = link else {
                return Contact { unreachable_for: Duration::from_millis(1), ..Contact::default() };
            };
            Contact {
                report: link.report.as_deref().cloned(),
                age: Duration::from_micros(now.saturating_sub(link.heard)),
                unreachable_for: link
                    .down_since
                    .map_or(Duration::ZERO, |since| Duration::from_micros(now.saturating_sub(since).max(1_000))),
            }
        };
        let contacts = view.pods.iter().map(|pod| (pod.name.clone(), contact(pod.ordinal, &pod.uid))).collect();
        let mut store = view.store.clone();
        if let Some((status, _)) = &me.status {
            store.status = Some(status.clone());
        }
        let kept = self.operators[operator].objects.take().filter(|(from, _)| Rc::ptr_eq(from, &view.objects));
        let objects = kept.map_or_else(|| (*view.objects).clone(), |(_, kept)| kept);
        let lease = if Observed::wants_lease(self.api.reign.as_ref()) { Some(self.see_lease(operator)) } else { None };
        let observed = Observed {
            store,
            pods: view.pods.clone(),
            claims: view.claims.clone(),
            objects,
            reign: self.api.reign.clone(),
            lease,
            operations: view.operations.clone(),
            contacts,
            now: self.operators[operator].time(self.now),
            fresh_id: self.rng.uuid().to_string(),
            default_image: "image".into(),
        };
        (observed, view.objects.clone())
    }

    fn see_lease(&mut self, operator: usize) -> LeaseFacts {
        let present = self.api.lease.clone();
        let me = &mut self.operators[operator];
        let now = me.clock(self.now);
        let state = Some((present.holder.clone(), present.renewals));
        if me.lease.state != state {
            me.lease.state = state;
            me.lease.moved = now;
        }
        if present.epoch > 0 {
            me.lease.raised.entry(present.epoch).or_insert(now);
        }
        let since = |at: u64| Duration::from_micros(now.saturating_sub(at));
        LeaseFacts {
            resource_version: if present.version == 0 { String::new() } else { present.version.to_string() },
            epoch: present.epoch,
            holder: present.holder,
            unmoved_for: since(me.lease.moved),
            raised: me.lease.raised.iter().map(|(epoch, at)| (*epoch, since(*at))).collect(),
        }
    }

    fn note_plan(&mut self, operator: usize, plan: &Plan) {
        if !self.trace.is_on() {
            return;
        }
        let waits: Vec<String> = plan.waiting.iter().map(|w| format!("{:?}: {}", w.reason, w.message)).collect();
        if plan.changes_nothing() && waits.is_empty() {
            return;
        }
        if plan.changes_nothing() && self.operators[operator].waits == waits {
            return;
        }
        self.operators[operator].waits.clone_from(&waits);
        self.trace.say(self.now, || {
            let orders: Vec<String> = plan.orders.iter().map(|o| format!("{} {:?}", o.pod, o.kind)).collect();
            let write = plan.reign_write.as_ref().map(|w| {
                let c = &w.spec.current;
                format!("epoch {} {:?} {:?} primary {}", c.epoch, c.phase, c.cause, c.primary)
            });
            format!(
                "operator {operator}: swap {write:?}; orders {orders:?}; {} objects, {} labels, {} deletes; waits {waits:?}",
                plan.objects.len(),
                plan.labels.len(),
                plan.deletes.len()
            )
        });
    }

    fn next_stage(&mut self, operator: usize, stage: Stage) {
        let me = &mut self.operators[operator];
        if let Some(left) = &mut me.die_at {
            if *left == 0 {
                self.cov.hit(match stage {
                    Stage::Swap => "operator dies before the swap",
                    Stage::Lease => "operator dies before the Lease",
                    Stage::Orders => "operator dies before the orders",
                    Stage::Late(_) | Stage::Objects => "operator dies before the objects",
                    Stage::Status => "operator dies before the status",
                });
                self.struck(Fault::OperatorCrash, OPERATORS[operator]);
                self.end_operator(operator);
                let after = SECOND + self.rng.below(4 * SECOND);
                return self.at(after, Ev::StartOperator { operator });
            }
            *left -= 1;
        }
        let life = self.operators[operator].life;
        let after = 500 + self.rng.below(8_000);
        self.at(after, Ev::Pass { operator, life, stage });
    }

    pub(crate) fn pass(&mut self, operator: usize, life: u64, stage: Stage) {
        if self.operators[operator].life != life {
            return;
        }
        let Some(mut pass) = self.operators[operator].pass.take() else { return };
        match stage {
            Stage::Swap => {
                if !self.swap(operator, &pass) {
                    return;
                }
                if pass.plan.reign_write.is_some() {
                    pass.version = self.api.version_of_reign();
                }
                self.operators[operator].pass = Some(pass);
                self.next_stage(operator, Stage::Lease);
            }
            Stage::Lease => {
                if let Some(write) = &pass.plan.lease
                    && (!self.api_reachable(operator) || !self.api.raise(&write.resource_version, write.epoch))
                {
                    self.cov.hit("raise of the Lease failed");
                    return self.abandon(operator, 100_000);
                }
                self.operators[operator].pass = Some(pass);
                self.next_stage(operator, Stage::Orders);
            }
            Stage::Orders => {
                self.send_orders(operator, &mut pass);
                let none = pass.calls.is_empty();
                self.operators[operator].pass = Some(pass);
                if none {
                    self.next_stage(operator, Stage::Objects);
                } else {
                    let ticket = self.operators[operator].calls;
                    self.at(ORDER_US, Ev::Pass { operator, life, stage: Stage::Late(ticket) });
                }
            }
            Stage::Late(ticket) => {
                let late = self.operators[operator].calls == ticket && !pass.calls.is_empty();
                if late {
                    self.cov.hit("order not answered in time");
                    pass.calls.clear();
                    pass.failed = true;
                }
                self.operators[operator].pass = Some(pass);
                if late {
                    self.next_stage(operator, Stage::Objects);
                }
            }
            Stage::Objects => {
                if !self.api_reachable(operator) {
                    return self.abandon(operator, 500_000);
                }
                self.apply_objects(&pass);
                if pass.plan.urgent {
                    return self.abandon(operator, 1_000);
                }
                self.operators[operator].pass = Some(pass);
                self.next_stage(operator, Stage::Status);
            }
            Stage::Status => self.finish(operator, &pass),
        }
    }

    /// A pass ends early.
    fn abandon(&mut self, operator: usize, after: u64) {
        self.operators[operator].pass = None;
        self.look_soon(operator, after);
    }

    fn swap(&mut self, operator: usize, pass: &Pass) -> bool {
        let Some(write) = &pass.plan.reign_write else { return true };
        if !self.api_reachable(operator) {
            self.abandon(operator, 500_000);
            return false;
        }
        let current = &write.spec.current;
        let (phase, cause) = (coverage::phase(current.phase), coverage::cause(current.cause));
        if !self.api.swap(write.expected.as_deref(), write.spec.clone()) {
            self.cov.hit("swap: conflict");
            self.trace.say(self.now, || format!("operator {operator}: the swap fails"));
            self.abandon(operator, 50_000);
            return false;
        }
        self.cov.hit(phase);
        self.cov.hit(cause);
        if current.phase == ReignPhase::Promoting {
            let (waived, heard) = (current.accept_loss || current.attested, heard(&pass.observed, current));
            self.check.decided(current.epoch.unsigned_abs(), &current.reign_id, waived, heard);
            self.all_before_are_silent(waived, current.epoch.unsigned_abs());
        }
        if self.setup.faults.contains(&Fault::VolumeLost) && self.rng.permille(VANISHES) {
            let after = self.rng.below(50_000);
            self.at(after, Ev::Vanish);
        }
        if std::mem::take(&mut self.operators[operator].lose_answer) {
            self.cov.hit("swap: answer lost");
            self.struck(Fault::ApiAnswerLost, OPERATORS[operator]);
            self.abandon(operator, SECOND);
            return false;
        }
        true
    }

    fn send_orders(&mut self, operator: usize, pass: &mut Pass) {
        let node = self.operators[operator].node;
        let store = pass.observed.store.uid.clone();
        for order in &pass.plan.orders {
            let ordinal = parovoz_operator_core::names::ordinal_of(&pass.observed.store.name, &order.pod);
            let Some(to) = ordinal.and_then(|o| Node::try_from(o).ok()) else { continue };
            let Some(told) = orders::convert(&store, order) else {
                self.check.fail(self.now, format!("order {order:?} names no identities"));
                return;
            };
            let me = &mut self.operators[operator];
            me.calls += 1;
            let call = me.calls;
            pass.calls.insert(call);
            self.send(node, to, Msg::Order { call, order: told });
        }
    }

    fn apply_objects(&mut self, pass: &Pass) {
        let plan = &pass.plan;
        for object in &plan.objects {
            match self.api.apply(self.now, object) {
                Some(Made::Claim(ordinal)) => self.provision(ordinal),
                Some(Made::Pod(ordinal)) => {
                    let pod = self.api.pods.get(&ordinal).map(|p| p.uid.clone()).unwrap_or_default();
                    let after = 200_000 + self.rng.below(SECOND);
                    self.at(after, Ev::StartContainer { ordinal, pod });
                }
                None => {}
            }
        }
        for label in &plan.labels {
            if let Some(pod) = self.api.pods.values_mut().find(|p| p.uid == label.uid) {
                pod.role = Some(label.role.to_owned());
                pod.in_standing = label.in_standing;
            }
        }
        for write in &plan.operations {
            if let Some(operation) = self.api.operations.iter_mut().find(|o| o.uid == write.uid) {
                operation.status = write.status.clone();
            }
        }
        if !plan.labels.is_empty() || !plan.operations.is_empty() {
            self.api.changed(self.now);
        }
        if plan.deletes.is_empty() {
            return;
        }
        if self.api.version_of_reign() != pass.version {
            return self.cov.hit("nothing deleted by an older record");
        }
        for delete in &plan.deletes {
            self.delete(delete.kind, &delete.uid);
        }
    }

    fn delete(&mut self, kind: DeleteKind, uid: &str) {
        match kind {
            DeleteKind::Pod => {
                let found = self.api.pods.values().find(|p| p.uid == uid).map(|p| p.ordinal);
                if let Some(ordinal) = found {
                    self.check_removal(ordinal);
                    self.delete_pod(ordinal, uid, false);
                }
            }
            DeleteKind::Claim => {
                let found = self.api.claims.values().find(|c| c.uid == uid).map(|c| c.ordinal);
                if let Some(ordinal) = found {
                    self.check_removal(ordinal);
                    self.delete_claim(ordinal, uid);
                }
            }
            DeleteKind::Operation => {
                self.api.operations.retain(|o| o.uid != uid);
                self.api.changed(self.now);
            }
        }
    }

    /// Never fewer copies because of an action of ours: whoever the decision record lists keeps pod and volume, unless its
    /// volume is going or gone by another's doing.
    fn check_removal(&mut self, ordinal: u32) {
        let Some(reign) = &self.api.reign else { return };
        let claim = self.api.claims.get(&ordinal);
        if claim.is_none_or(|c| c.deleting) {
            return;
        }
        let pod = self.api.pods.get(&ordinal);
        if pod.is_some_and(|p| p.ended || p.claim_uid != claim.map(|c| c.uid.clone())) {
            return;
        }
        let claim = claim.map(|c| c.uid.clone()).unwrap_or_default();
        let record = self.volumes.get(&claim).and_then(|v| v.stored.as_ref());
        let Some(uuid) = record.map(|r| r.data_uuid.to_string()) else { return };
        if reign.spec.current.members.iter().any(|m| m.data_uuid == uuid) && reign.spec.ever_served {
            let what = format!("the operator removes member {ordinal}, which epoch {} lists", reign.spec.current.epoch);
            self.check.fail(self.now, what);
        }
    }

    fn finish(&mut self, operator: usize, pass: &Pass) {
        let new = status(&pass.observed, &pass.plan, &[]);
        let me = &self.operators[operator];
        let age = me.status.as_ref().map(|(_, at)| Duration::from_micros(self.now - at));
        if worth_writing(pass.observed.store.status.as_ref(), &new, age) && self.api_reachable(operator) {
            if self.trace.is_on() {
                let text = |s: Option<&ReplicatedStoreStatus>| {
                    s.and_then(|s| serde_json::to_value(s).ok()).unwrap_or_default()
                };
                let (old, fresh) = (text(pass.observed.store.status.as_ref()), text(Some(&new)));
                self.trace
                    .say(self.now, || format!("operator {operator}: writes the status: {}", differs(&old, &fresh)));
            }
            self.api.store.status = Some(new.clone());
            self.api.changed(self.now);
            self.operators[operator].status = Some((new, self.now));
        }
        let goes_on = pass.failed || pass.plan.reign_write.is_some() || !pass.plan.orders.is_empty();
        let pause = if goes_on { pass.plan.requeue_after.min(SOON) } else { pass.plan.requeue_after };
        let settled = self.operators[operator].settled;
        let soon = if self.operators[operator].again { 30_000 } else { u64::MAX };
        let after = u64::try_from(pause.as_micros()).unwrap_or(SECOND).min(soon);
        self.operators[operator].pass = None;
        self.look_soon(operator, after);
        self.operators[operator].settled = settled && soon == u64::MAX;
    }
}

/// Who is sealed for a reign and says for certain what it has in every prefix.
fn heard(observed: &Observed, record: &ReignRecord) -> BTreeSet<String> {
    let reports = observed.contacts.values().filter_map(Contact::fresh);
    let sealed = reports.filter(|r| r.is_sealed(record.epoch.unsigned_abs(), &record.reign_id));
    let all = sealed.filter(|r| !r.prefixes.is_empty() && r.prefixes.iter().all(|p| p.vote.known().is_some()));
    all.map(|r| r.data_uuid.clone()).collect()
}

/// What differs between two objects, shortly.
fn differs(old: &serde_json::Value, new: &serde_json::Value) -> String {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return format!("{old} -> {new}") };
    let changed = new.iter().filter(|(key, value)| old.get(*key) != Some(value));
    let words: Vec<String> = changed.map(|(key, value)| format!("{key}: {:?} -> {value}", old.get(key))).collect();
    words.join("; ").chars().take(1_500).collect()
}
