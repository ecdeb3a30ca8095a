//! From an observation to a plan.
//!
//! One plan holds at most one topology step and at most one promotion. Orders are always given under the reign that the
//! plan itself writes, or under the one already on record: the executor writes the record first and sends no order if
//! the swap fails.

mod first;
mod labels;
mod members;
mod operations;
pub(crate) mod orders;
mod planned;
pub(crate) mod procedure;
pub(crate) mod record;
mod reign;
mod sources;
mod suspect;

use std::collections::BTreeSet;
use std::time::Duration;

use parovoz_api::{ConditionReason, ReignPhase, ReignRecord, StoreReignSpec, Waiting, WaitingReason};

pub use labels::RoleLabels;
pub use members::target;
pub use operations::OperationWrite;
pub use orders::{Endpoint, Order, OrderKind, PrefixPosition, SealEvidence};
pub use record::{Past, may_have_served};

use crate::build::{self, Object};
use crate::observed::Observed;
use crate::settings::Settings;

/// How soon to look again after something was changed.
pub const SOON: Duration = Duration::from_secs(1);
/// How soon to look again while a reign begins or a primary is missed: a lost message costs no more than this.
pub const WHILE_REIGN_BEGINS: Duration = Duration::from_millis(250);
/// How soon to look again while something waits.
pub const WHILE_WAITING: Duration = Duration::from_secs(3);
/// How soon to look again when there is nothing to do. Never never: a missed event must not stall a store.
pub const WHEN_SETTLED: Duration = Duration::from_secs(30);

/// What should be done now. It leaves its executor no choices.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Objects that differ from what they should be, in the order in which they are applied.
    pub objects: Vec<Object>,
    /// Pods and claims to delete.
    pub deletes: Vec<Delete>,
    /// Role labels that differ from what they should be; the one that gives the primary's comes first.
    pub labels: Vec<RoleLabels>,
    /// The new content of the decision record. Swapped before any order is sent.
    pub reign_write: Option<ReignWrite>,
    /// The Lease of the primary, raised after that swap and before any order is sent.
    pub lease: Option<LeaseWrite>,
    /// Orders to members.
    pub orders: Vec<Order>,
    /// Operations whose state changed.
    pub operations: Vec<OperationWrite>,
    /// The one topology step that this plan takes.
    pub step: Option<Step>,
    /// Why anything waits, and the command that helps.
    pub waiting: Vec<Waiting>,
    /// What happened, for people.
    pub events: Vec<Event>,
    /// Ordinals of the members that the store should have.
    pub target: Vec<u32>,
    /// Ordinals of the volumes that must all answer before anybody leads; their pods are kept or made.
    pub asked: BTreeSet<u32>,
    /// Why the specification cannot be carried out at all. Terminal until it changes.
    pub invalid: Option<String>,
    /// When to look again, whatever else happens.
    pub requeue_after: Duration,
    /// True if what comes next rests only on what this plan does: look again at once, before anything is reported.
    pub urgent: bool,
}

/// A raise of the epoch in the primary's Lease, which makes every holder of an earlier one stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseWrite {
    /// The new epoch.
    pub epoch: u64,
    /// The version that must still be the present one; empty if there must be no Lease yet.
    pub resource_version: String,
}

/// A deletion, bound to the object that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delete {
    /// What kind of object.
    pub kind: DeleteKind,
    /// metadata.name
    pub name: String,
    /// metadata.uid; an object of the same name made since is left alone.
    pub uid: String,
}

/// What may be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeleteKind {
    /// A member's pod.
    Pod,
    /// A member's volume claim.
    Claim,
    /// A `StoreOperation` that was kept long enough.
    Operation,
}

/// A swap of the decision record.
#[derive(Clone, Debug, PartialEq)]
pub struct ReignWrite {
    /// The version that must still be the present one; None if there must be no record yet.
    pub expected: Option<String>,
    /// The new content.
    pub spec: StoreReignSpec,
}

/// One change of who belongs to the store or who leads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The members of the first reign are listed.
    Form,
    /// A member is to lead: the first, the same again, or another.
    Lead,
    /// The members of the reign change.
    ChangeMembers,
    /// A pod that no reign lists any more goes.
    RemovePod(String),
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// True if somebody may have to act.
    pub warning: bool,
    /// What, as one word of a closed list.
    pub reason: EventReason,
    /// What, for people.
    pub note: String,
}

/// What happened, as one word of a closed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventReason {
    /// The first reign was begun.
    FirstReign,
    /// The primary is believed to be out, and a new reign is begun.
    PrimarySuspect,
    /// Another member leads.
    PrimaryReplaced,
    /// What a failover lost is known.
    LossKnown,
    /// Another member was asked to lead.
    Switchover,
    /// A switchover was given up and the old primary leads on.
    SwitchoverGivenUp,
    /// A person promoted a member and accepted a loss.
    PromotedByPerson,
    /// The primary acknowledges without replicas until they are back.
    ServingWithoutQuorum,
    /// The members of the reign changed.
    MembersChanged,
    /// Mode or minSyncReplicas changed.
    SettingsChanged,
    /// The decision record was rebuilt from the members.
    RecordRebuilt,
    /// The primary serves.
    PrimaryServing,
    /// A pod is deleted so that it is made anew with a new volume.
    VolumeLost,
    /// A pod that had ended is deleted so that it is made anew.
    PodEnded,
    /// A pod is removed because fewer members were asked for.
    MemberRemoved,
    /// A condition of the store changed, for this reason.
    Condition(ConditionReason),
}

impl EventReason {
    /// The word.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            Self::Condition(reason) => format!("{reason:?}"),
            other => format!("{other:?}"),
        }
    }
}

impl Plan {
    /// True if it asks for nothing to be changed.
    #[must_use]
    pub fn changes_nothing(&self) -> bool {
        self.objects.is_empty()
            && self.deletes.is_empty()
            && self.labels.is_empty()
            && self.reign_write.is_none()
            && self.lease.is_none()
            && self.operations.is_empty()
            && self.orders.is_empty()
    }

    /// True if it only brings objects about, for a store whose primary serves and that waits for nothing: what is refused of
    /// it may be tried again later.
    #[must_use]
    pub fn can_rest(&self, observed: &Observed) -> bool {
        let serving = observed.own_reign().is_some_and(|reign| reign.spec.current.phase == ReignPhase::Serving);
        let only_objects = Self { objects: Vec::new(), deletes: Vec::new(), ..self.clone() }.changes_nothing();
        serving && only_objects && self.waiting.is_empty() && self.requeue_after >= SOON
    }

    /// Look again within this time.
    pub(crate) fn within(&mut self, pause: Duration) {
        self.requeue_after = self.requeue_after.min(pause);
    }

    pub(crate) fn wait(&mut self, reason: WaitingReason, message: String, command: Option<String>) {
        self.waiting.push(Waiting { reason, message, command });
    }

    pub(crate) fn event(&mut self, warning: bool, reason: EventReason, note: String) {
        self.events.push(Event { warning, reason, note });
    }
}

/// What every part of the planner sees.
pub(crate) struct Context<'a> {
    pub(crate) observed: &'a Observed,
    pub(crate) settings: &'a Settings,
    pub(crate) target: &'a [u32],
}

/// How long a member counts as silent whose pod is gone, holds another volume, or can say nothing for it.
const GONE: Duration = Duration::from_secs(3);

impl Context<'_> {
    /// For how long the member of this identity, once in the pod of this name, has not answered.
    pub(crate) fn silence_of(&self, data_uuid: &str, name: &str) -> Duration {
        let pod = self.ordinal(name).and_then(|ordinal| self.observed.pod(ordinal));
        match pod.and_then(|pod| self.observed.answer(pod.ordinal)) {
            Some(report) if report.data_uuid == data_uuid => Duration::ZERO,
            Some(_) => GONE,
            None => pod.and_then(|pod| self.observed.silence(pod.ordinal)).unwrap_or(GONE),
        }
    }

    /// The command by which a person promotes a member and accepts what that may lose.
    pub(crate) fn promote_command(&self, record: &ReignRecord, attest: bool) -> Option<String> {
        let store = &self.observed.store;
        let listed = record.members.iter().filter(|member| member.data_uuid != record.primary);
        let answers = |name: &str| self.ordinal(name).is_some_and(|ordinal| self.observed.answer(ordinal).is_some());
        let member = listed.map(|member| member.name.as_str()).find(|name| answers(name)).unwrap_or("MEMBER");
        let attest = if attest { r#","attestPrimaryGone":true"# } else { "" };
        Some(format!(
            r#"echo '{{"apiVersion":"parovoz.dev/v1alpha1","kind":"StoreOperation","metadata":{{"generateName":"{name}-promote-"}},"spec":{{"store":"{name}","type":"Promote","member":"{member}","acceptLoss":true{attest}}}}}' | kubectl create -n {namespace} -f -"#,
            name = store.name,
            namespace = store.namespace,
        ))
    }

    pub(crate) fn name(&self, ordinal: u32) -> String {
        crate::names::member(&self.observed.store.name, ordinal)
    }

    pub(crate) fn ordinal(&self, name: &str) -> Option<u32> {
        crate::names::ordinal_of(&self.observed.store.name, name)
    }

    /// `kubectl VERB -n NAMESPACE REST`
    pub(crate) fn kubectl(&self, verb: &str, rest: &str) -> Option<String> {
        Some(format!("kubectl {verb} -n {} {rest}", self.observed.store.namespace))
    }
}

/// Decide what to do about one store.
#[must_use]
pub fn plan(observed: &Observed) -> Plan {
    let mut plan = Plan { requeue_after: WHEN_SETTLED, ..Plan::default() };
    if observed.store.deleting {
        // Everything is owned and goes by itself; volumes stay or go as the policy said while they were made.
        return plan;
    }
    let settings = match Settings::parse(&observed.store.spec) {
        Ok(settings) => settings,
        Err(error) => {
            plan.invalid = Some(error.to_string());
            return plan;
        }
    };
    plan.target = target(observed, settings.replicas);
    if observed.store.spec.paused {
        let command = format!(
            "kubectl patch rstore -n {} {} --type merge -p '{{\"spec\":{{\"paused\":false}}}}'",
            observed.store.namespace, observed.store.name
        );
        plan.wait(WaitingReason::Paused, "spec.paused is true: nothing is changed".into(), Some(command));
        return plan;
    }
    plain(observed, &settings, &mut plan);
    let target = plan.target.clone();
    let context = Context { observed, settings: &settings, target: &target };
    let record = reign::decide(&context, &mut plan);
    members::plan(&context, &mut plan);
    if let Some(record) = record.as_ref().or(observed.own_reign().map(|reign| &reign.spec.current)) {
        plan.labels = labels::labels(&context, record);
    }
    config(&context, &mut plan);
    operations::track(&context, &mut plan);
    // An answer to any of these is the next step's ground; silence may take a while to be believed.
    plan.urgent |= plan.orders.iter().any(|order| match order.kind {
        OrderKind::Seal { evidence, .. } => evidence != SealEvidence::Silent,
        OrderKind::Freeze { .. } | OrderKind::Promote { .. } => true,
        // A pull is answered before it is done; that it is done is news by itself.
        OrderKind::Pull { .. } | OrderKind::Follow { .. } => false,
    });
    let pause = if !plan.changes_nothing() {
        SOON
    } else if plan.waiting.is_empty() && all_answer(&context) {
        WHEN_SETTLED
    } else {
        WHILE_WAITING
    };
    plan.within(pause);
    plan
}

/// Members that run with an older configuration than the present one are told of.
fn config(context: &Context<'_>, plan: &mut Plan) {
    let present = context.settings.member.fingerprint();
    let outdated = |ordinal: &&u32| {
        let report = context.observed.answer(**ordinal);
        report.is_some_and(|report| !report.config_hash.is_empty() && report.config_hash != present)
    };
    let names: Vec<_> = context.target.iter().filter(outdated).map(|ordinal| context.name(*ordinal)).collect();
    if let Some(first) = names.first() {
        let message = format!(
            "the configuration changed and these members have not read it yet, which takes the kubelet up to two minutes: {}",
            names.join(", ")
        );
        plan.wait(WaitingReason::ConfigurationPending, message, context.kubectl("logs", first));
    }
}

fn all_answer(context: &Context<'_>) -> bool {
    context.target.iter().all(|ordinal| context.observed.answer(*ordinal).is_some())
}

fn plain(observed: &Observed, settings: &Settings, plan: &mut Plan) {
    for (key, object) in build::plain_objects(&observed.store, settings) {
        let present = observed.objects.get(&key);
        let wanted = build::to_value(&object).unwrap_or_default();
        if !present.is_some_and(|present| build::contains(present, &wanted)) {
            plan.objects.push(object);
        }
    }
}
