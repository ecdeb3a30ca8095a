//! `StoreOperation`s: what a person asked for once. Their state is a view of the decision record, which names the
//! operation that a reign was begun for.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parovoz_api::{
    OperationPhase, OperationResult, OperationType, ReignCause, ReignMember, ReignPhase, ReignRecord,
    StoreOperationStatus, StoreReignSpec,
};

use super::procedure::seal_all;
use super::record::{NewReign, begin, may_have_served};
use super::{Context, Delete, DeleteKind, EventReason, Plan, Step, planned};
use crate::observed::OperationFacts;

/// A status to write.
#[derive(Clone, Debug, PartialEq)]
pub struct OperationWrite {
    /// metadata.name
    pub name: String,
    /// metadata.uid; another object of that name is left alone.
    pub uid: String,
    /// The status.
    pub status: StoreOperationStatus,
}

fn over(operation: &OperationFacts) -> bool {
    matches!(operation.status.phase, OperationPhase::Succeeded | OperationPhase::Failed)
}

/// The operation whose turn it is: the oldest that is not over.
fn active<'a>(context: &Context<'a>) -> Option<&'a OperationFacts> {
    let waiting = context.observed.operations.iter().filter(|operation| !over(operation));
    waiting.min_by_key(|operation| (operation.created, operation.name.clone()))
}

/// The switchover whose turn it is, if the primary is not yet who it asks for.
pub(super) fn switchover<'a>(context: &Context<'a>, spec: &StoreReignSpec) -> Option<&'a OperationFacts> {
    let operation = active(context).filter(|operation| operation.spec.type_ == OperationType::Switchover)?;
    (!expired(context, operation) && outcome(spec, operation).is_none()).then_some(operation)
}

/// True if the operation whose turn it is promotes a member and accepts what that may lose.
pub(super) fn accepts_loss(context: &Context<'_>) -> bool {
    active(context)
        .is_some_and(|operation| operation.spec.type_ == OperationType::Promote && operation.spec.accept_loss)
}

/// A promotion that accepts a loss and was not begun yet: it may interrupt whatever blocks.
pub(super) fn promotion(context: &Context<'_>, plan: &mut Plan, spec: &StoreReignSpec) -> Option<ReignRecord> {
    let operation = active(context).filter(|operation| operation.spec.type_ == OperationType::Promote)?;
    let current = &spec.current;
    if expired(context, operation) || current.operation == operation.uid || outcome(spec, operation).is_some() {
        return None;
    }
    let name = operation.spec.member.as_deref()?;
    let ordinal = context.ordinal(name)?;
    let report = context.observed.answer(ordinal).filter(|report| !report.blank() && report.ballot().is_some())?;
    let mut new = NewReign {
        primary: report.data_uuid.clone(),
        operation: operation.uid.clone(),
        accept_loss: operation.spec.accept_loss,
        attested: operation.spec.attest_primary_gone && attested(spec, operation),
        ..NewReign::like(current, ReignCause::PromotedByPerson, format!("operation {} promotes {name}", operation.name))
    };
    if !new.members.iter().any(|member| member.data_uuid == report.data_uuid) {
        new.members.retain(|member| member.name != name);
        new.members.push(ReignMember { name: name.to_owned(), data_uuid: report.data_uuid.clone() });
    }
    plan.event(true, EventReason::PromotedByPerson, new.summary.clone());
    let record = begin(context, plan, new)?;
    plan.step = Some(Step::Lead);
    let case = super::procedure::Case::unasked(spec);
    seal_all(context, plan, &record, &case);
    Some(record)
}

/// True if what a person attests is about every reign that may have served: none of them began later.
fn attested(spec: &StoreReignSpec, operation: &OperationFacts) -> bool {
    let epochs: Vec<u64> = may_have_served(spec, true).iter().map(|past| past.reign.epoch).collect();
    let listed = |epoch: i64| u64::try_from(epoch).is_ok_and(|epoch| epochs.contains(&epoch));
    let current = listed(spec.current.epoch).then_some(&spec.current.begun_at);
    let history = spec.history.iter().filter(|past| listed(past.epoch)).map(|past| &past.begun_at);
    current.into_iter().chain(history).all(|begun| begun.0 <= operation.created)
}

fn expired(context: &Context<'_>, operation: &OperationFacts) -> bool {
    let began = operation.status.started_at.as_ref().map_or(operation.created, |time| time.0);
    let limit = operation.spec.timeout.duration().unwrap_or(Duration::from_secs(300));
    Duration::try_from(context.observed.now.duration_since(began)).unwrap_or_default() > limit
}

/// What came of an operation, if a reign that was begun for it serves.
fn outcome(spec: &StoreReignSpec, operation: &OperationFacts) -> Option<OperationResult> {
    let current = &spec.current;
    if current.phase == ReignPhase::Serving {
        let leader = planned::leader(spec);
        let asked = operation.spec.member.as_ref().is_none_or(|member| *member == leader);
        let own =
            current.operation == operation.uid && (planned::changed_primary(spec) || operation.spec.member.is_some());
        let already = operation.spec.type_ == OperationType::Switchover && operation.spec.member.is_some();
        if asked && (own || already) {
            return Some(OperationResult { epoch: current.epoch, primary: leader });
        }
    }
    let past = spec.history.iter().find(|past| past.operation == operation.uid && past.phase == ReignPhase::Serving)?;
    let asked = operation.spec.member.as_ref().is_none_or(|member| *member == past.primary_name);
    asked.then(|| OperationResult { epoch: past.epoch, primary: past.primary_name.clone() })
}

/// Bring the operations' states up to date, and remove those that were kept long enough.
pub(super) fn track(context: &Context<'_>, plan: &mut Plan) {
    let record = plan.reign_write.as_ref().map(|write| &write.spec);
    let spec = record.or(context.observed.own_reign().map(|reign| &reign.spec)).cloned();
    let turn = active(context).map(|operation| operation.uid.clone());
    for operation in &context.observed.operations {
        if over(operation) {
            let finished = operation.status.finished_at.as_ref().map_or(operation.created, |time| time.0);
            let ttl = operation.spec.ttl.duration().unwrap_or(Duration::from_secs(86_400));
            if Duration::try_from(context.observed.now.duration_since(finished)).unwrap_or_default() > ttl {
                let (name, uid) = (operation.name.clone(), operation.uid.clone());
                plan.deletes.push(Delete { kind: DeleteKind::Operation, name, uid });
            }
            continue;
        }
        let status = state(context, plan, spec.as_ref(), operation, turn.as_ref() == Some(&operation.uid));
        if status != operation.status {
            let (name, uid) = (operation.name.clone(), operation.uid.clone());
            plan.operations.push(OperationWrite { name, uid, status });
        }
    }
}

fn state(
    context: &Context<'_>,
    plan: &Plan,
    spec: Option<&StoreReignSpec>,
    operation: &OperationFacts,
    turn: bool,
) -> StoreOperationStatus {
    let now = Time(context.observed.now);
    let started_at = operation.status.started_at.clone().or_else(|| turn.then(|| now.clone()));
    let status = |phase, progress, message: String| StoreOperationStatus {
        phase,
        message: message.chars().take(1000).collect(),
        progress,
        started_at: started_at.clone(),
        ..StoreOperationStatus::default()
    };
    if !turn {
        return status(OperationPhase::Pending, 0, "another operation comes first".into());
    }
    let ended =
        |phase, message: String| StoreOperationStatus { finished_at: Some(now.clone()), ..status(phase, 100, message) };
    if operation.spec.type_ == OperationType::Unknown {
        return ended(OperationPhase::Failed, "this version of the operator does not know the type".into());
    }
    let Some(spec) = spec else {
        return status(OperationPhase::Pending, 0, "the store has never had a primary".into());
    };
    if let Some(result) = outcome(spec, operation) {
        let message = format!("{} leads at epoch {}", result.primary, result.epoch);
        return StoreOperationStatus { result: Some(result), ..ended(OperationPhase::Succeeded, message) };
    }
    if let Some(member) = &operation.spec.member
        && context.ordinal(member).and_then(|ordinal| context.observed.pod(ordinal)).is_none()
    {
        return ended(OperationPhase::Failed, format!("{member} is no member of the store"));
    }
    let under_way = spec.current.operation == operation.uid && spec.current.phase != ReignPhase::Serving;
    if expired(context, operation) && !under_way {
        let why = plan.waiting.first().map_or_else(String::new, |waiting| format!(": {}", waiting.message));
        return ended(OperationPhase::Failed, format!("not done in time{why}"));
    }
    if under_way {
        let progress = if spec.current.phase == ReignPhase::Promoting { 66 } else { 33 };
        let why = plan.waiting.first().map_or_else(String::new, |waiting| format!(": {}", waiting.message));
        let message = format!("epoch {} is {:?}{why}", spec.current.epoch, spec.current.phase);
        return status(OperationPhase::Running, progress, message);
    }
    let why = plan.waiting.first().map_or_else(|| "it begins".to_owned(), |waiting| waiting.message.clone());
    status(OperationPhase::Pending, 0, why)
}
