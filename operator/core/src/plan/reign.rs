//! Which reign there should be: the first, the next of the same primary, or none for now.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parovoz_api::{MemberPhase, Mode, ReignCause, ReignMember, ReignPhase, ReignRecord, WaitingReason};

use super::record::{NewReign, answering, begin, members, next_epoch, swap};
use super::{Context, EventReason, Plan, Step, election, members as wanted};
use crate::observed::Report;

/// Decide about the reign. Returns the record that orders are given under, which the plan writes if it differs from the
/// present one. None while there is nothing that anybody may be ordered.
pub(super) fn decide(context: &Context<'_>, plan: &mut Plan) -> Option<ReignRecord> {
    match &context.observed.reign {
        None => {
            no_record(context, plan);
            None
        }
        Some(reign) if reign.spec.store_uid != context.observed.store.uid => {
            let message = "the decision record belongs to an earlier store of this name and is not gone yet".to_owned();
            plan.wait(
                WaitingReason::ForeignObject,
                message,
                context.kubectl("delete storereign", &context.observed.store.name),
            );
            None
        }
        Some(reign) => match reign.spec.current.phase {
            ReignPhase::Forming => form(context, plan, &reign.spec.current),
            ReignPhase::Sealing | ReignPhase::Promoting | ReignPhase::Serving => {
                lead(context, plan, &reign.spec.current)
            }
        },
    }
}

/// All wanted members' reports, or a wait that names who is missing.
fn all_answers<'a>(context: &Context<'a>, plan: &mut Plan, what: &str) -> Option<Vec<(u32, &'a Report)>> {
    let observed = context.observed;
    // A pod that is not wanted may still hold what a lost record knew: it is asked as well.
    let others = observed.pods.iter().filter(|pod| pod.owned && !pod.deleting).map(|pod| pod.ordinal);
    let asked: BTreeSet<u32> = context.target.iter().copied().chain(others).collect();
    let silent: Vec<_> = asked
        .iter()
        .filter(|ordinal| observed.answer(**ordinal).is_none())
        .map(|ordinal| context.name(*ordinal))
        .collect();
    if silent.is_empty() {
        return Some(asked.iter().filter_map(|ordinal| Some((*ordinal, observed.answer(*ordinal)?))).collect());
    }
    let message = format!("{what} waits until every member has answered: {}", silent.join(", "));
    plan.wait(WaitingReason::MemberMustAnswer, message, context.kubectl("describe pod", &silent[0]));
    None
}

fn no_record(context: &Context<'_>, plan: &mut Plan) {
    let Some(answers) = all_answers(context, plan, "the first reign") else { return };
    if answers.iter().all(|(_, report)| report.blank() && report.highest_epoch() == 0) {
        let members = members(context, &context.target.iter().copied().collect());
        let summary = "every member answered and is empty".to_owned();
        begin(context, plan, NewReign { epoch: 1, cause: ReignCause::First, primary: String::new(), members, summary });
        plan.step = Some(Step::Form);
        return;
    }
    rebuild(context, plan, &answers);
}

/// The record was lost and members hold data: take over the highest reign that any of them knows, once each member that
/// it lists has answered.
fn rebuild(context: &Context<'_>, plan: &mut Plan, answers: &[(u32, &Report)]) {
    let known = answers.iter().filter_map(|(_, report)| report.reign.as_ref()).max_by_key(|reign| reign.epoch);
    let missing = |uuid: &String| !answers.iter().any(|(_, report)| report.data_uuid == *uuid);
    let Some(known) = known.filter(|reign| !reign.members.iter().any(missing)) else {
        let message = "members hold data, the decision record is gone, and not every member of the last reign answers: nobody is promoted".to_owned();
        let selector = format!("-l {}", crate::names::selector(&context.observed.store.name));
        plan.wait(WaitingReason::NobodyEligible, message, context.kubectl("get pods,pvc", &selector));
        return;
    };
    let listed = |report: &Report| known.members.contains(&report.data_uuid);
    let record = ReignRecord {
        epoch: i64::try_from(known.epoch).unwrap_or(i64::MAX - 1),
        reign_id: known.reign_id.clone(),
        phase: ReignPhase::Serving,
        cause: ReignCause::Unknown,
        primary: known.primary.clone(),
        members: answers
            .iter()
            .filter(|(_, report)| listed(report))
            .map(|(ordinal, report)| ReignMember { name: context.name(*ordinal), data_uuid: report.data_uuid.clone() })
            .collect(),
        mode: known.mode,
        min_sync_replicas: i32::try_from(known.min_sync_replicas).unwrap_or(0),
        lease_duration_ms: super::record::LEASE_DURATION_MS,
        evidence: super::record::evidence(context, "rebuilt from what every member knows".into()),
        begun_at: Time(context.observed.now),
        deadline: None,
        serving_since: None,
    };
    swap(context, plan, record);
    plan.event(
        true,
        EventReason::RecordRebuilt,
        format!("the decision record was lost and is rebuilt at epoch {}", known.epoch),
    );
}

fn form(context: &Context<'_>, plan: &mut Plan, current: &ReignRecord) -> Option<ReignRecord> {
    let answers = all_answers(context, plan, "the first reign")?;
    if let Some((ordinal, _)) = answers.iter().find(|(_, report)| !report.blank() || report.highest_epoch() > 0) {
        let message = format!(
            "{} holds data though the store has never had a primary: nobody is promoted",
            context.name(*ordinal)
        );
        plan.wait(WaitingReason::NobodyEligible, message, context.kubectl("logs", &context.name(*ordinal)));
        return None;
    }
    let going = |ordinal: &&u32| context.observed.claim(**ordinal).is_none_or(|claim| claim.deleting);
    if let Some(ordinal) = context.target.iter().find(going) {
        let name = context.name(*ordinal);
        let message = format!("the first reign waits until {name} has a volume that stays");
        plan.wait(WaitingReason::MemberMustAnswer, message, context.kubectl("describe pod", &name));
        return None;
    }
    let members = members(context, &context.target.iter().copied().collect());
    if members != current.members {
        // Nobody was told anything yet: the list may still change within the epoch.
        let record = ReignRecord { members, ..current.clone() };
        swap(context, plan, record);
        plan.step = Some(Step::Form);
        return None;
    }
    let first = members.first()?.clone();
    let replication = &context.observed.store.spec.replication;
    let record = ReignRecord {
        phase: ReignPhase::Promoting,
        primary: first.data_uuid,
        mode: replication.mode,
        min_sync_replicas: replication.min_sync_replicas,
        evidence: super::record::evidence(context, "every member answered and is empty; the lowest leads".into()),
        deadline: super::record::deadline(context.observed.now),
        ..current.clone()
    };
    plan.step = Some(Step::Lead);
    plan.event(false, EventReason::FirstReign, format!("{} leads the first reign, epoch {}", first.name, record.epoch));
    Some(swap(context, plan, record))
}

fn lead(context: &Context<'_>, plan: &mut Plan, current: &ReignRecord) -> Option<ReignRecord> {
    let answering = answering(context);
    let epoch = u64::try_from(current.epoch).unwrap_or(0);
    let Some((ordinal, report)) = answering.get(current.primary.as_str()).copied() else {
        return election::without_primary(context, plan, current);
    };
    if report.leads(epoch, &current.reign_id) {
        return Some(led(context, plan, current, ordinal, report));
    }
    if report.phase == MemberPhase::Parked {
        let message = format!("the primary {} keeps its data closed: {}", context.name(ordinal), report.reason);
        plan.wait(WaitingReason::PrimaryMustReturn, message, context.kubectl("logs", &context.name(ordinal)));
        return None;
    }
    if current.phase == ReignPhase::Promoting && may_start(report, current) {
        plan.step = Some(Step::Lead);
        return Some(current.clone());
    }
    election::with_primary(context, plan, current, ordinal)
}

/// True if a member may still be told to start this reign: it never started it or a later one, has promised nothing
/// later, and its copy is whole (or the store is new).
pub(super) fn may_start(report: &Report, record: &ReignRecord) -> bool {
    let epoch = u64::try_from(record.epoch).unwrap_or(0);
    let promised = match &report.reign {
        None => true,
        Some(reign) => reign.epoch < epoch || (reign.epoch == epoch && reign.reign_id == record.reign_id),
    };
    report.started_epoch < epoch && promised && (report.usable() || report.blank())
}

/// The primary leads: note that it serves, and see whether the reign's configuration is still the one asked for.
fn led(context: &Context<'_>, plan: &mut Plan, current: &ReignRecord, ordinal: u32, report: &Report) -> ReignRecord {
    if report.phase != MemberPhase::Serving {
        return current.clone();
    }
    if current.phase != ReignPhase::Serving {
        let record = ReignRecord {
            phase: ReignPhase::Serving,
            deadline: None,
            serving_since: Some(Time(context.observed.now)),
            ..current.clone()
        };
        plan.event(
            false,
            EventReason::PrimaryServing,
            format!("{} serves at epoch {}", context.name(ordinal), current.epoch),
        );
        return swap(context, plan, record);
    }
    planned(context, plan, current, ordinal).unwrap_or_else(|| current.clone())
}

/// A new reign of the same primary, if members or settings should be others.
fn planned(context: &Context<'_>, plan: &mut Plan, current: &ReignRecord, primary: u32) -> Option<ReignRecord> {
    let (listed, _) = wanted::listed(context.observed);
    let mut ordinals = listed.clone();
    let surplus = listed.iter().rev().copied().find(|ordinal| !context.target.contains(ordinal));
    match surplus {
        Some(ordinal) => {
            let stay: Vec<u32> = listed.iter().copied().filter(|other| context.target.contains(other)).collect();
            if let Some(waits) = not_streaming(context, &stay, primary) {
                let message = format!("removing {} waits until {waits} is complete and streams", context.name(ordinal));
                plan.wait(WaitingReason::ReplicasMustStream, message, context.kubectl("describe pod", &waits));
            } else {
                ordinals.remove(&ordinal);
            }
        }
        None => ordinals.extend(context.target.iter().copied()),
    }
    let members = members(context, &ordinals);
    let replication = &context.observed.store.spec.replication;
    let identities =
        |members: &[ReignMember]| members.iter().map(|member| member.data_uuid.clone()).collect::<BTreeSet<_>>();
    let members_differ = identities(&members) != identities(&current.members);
    let settings_differ =
        replication.mode != current.mode || replication.min_sync_replicas != current.min_sync_replicas;
    if !members_differ && !settings_differ {
        return None;
    }
    if settings_differ && replication.mode == Mode::Quorum {
        let all: Vec<u32> = ordinals.iter().copied().collect();
        if let Some(waits) = not_streaming(context, &all, primary) {
            let message = format!("mode Quorum waits until {waits} is complete and streams");
            plan.wait(WaitingReason::ReplicasMustStream, message, context.kubectl("describe pod", &waits));
            return None;
        }
    }
    let (cause, reason) = if members_differ {
        (ReignCause::MembersChanged, EventReason::MembersChanged)
    } else {
        (ReignCause::SettingsChanged, EventReason::SettingsChanged)
    };
    let names: Vec<_> = members.iter().map(|member| member.name.clone()).collect();
    let epoch = next_epoch(context);
    let note = format!("{} leads {} on at epoch {epoch}", context.name(primary), names.join(", "));
    plan.event(false, reason, note.clone());
    plan.step = Some(Step::ChangeMembers);
    let primary = current.primary.clone();
    Some(begin(context, plan, NewReign { epoch, cause, primary, members, summary: note }))
}

/// The first of these members, other than the primary, that is not complete and streaming.
fn not_streaming(context: &Context<'_>, ordinals: &[u32], primary: u32) -> Option<String> {
    let streams = |ordinal: u32| {
        let report = context.observed.answer(ordinal);
        report.is_some_and(|report| {
            report.usable() && report.phase == MemberPhase::Streaming && report.upstream_connected
        })
    };
    ordinals
        .iter()
        .copied()
        .find(|ordinal| *ordinal != primary && !streams(*ordinal))
        .map(|ordinal| context.name(ordinal))
}
