//! The first reign of a store, and the record that was lost.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use parovoz_api::{PastReign, ReignCause, ReignMember, ReignPhase, ReignRecord, StoreReignSpec, WaitingReason};

use super::orders::{SealEvidence, known, order};
use super::record::{NewReign, begin, evidence, members, swap};
use super::{Context, EventReason, OrderKind, Plan, Step, WHILE_REIGN_BEGINS, procedure};
use crate::observed::{ClaimFacts, KnownReign, ReignRef, Report};
use crate::quorum::Decision;

/// All wanted members' reports, or a wait that names who is missing.
pub(super) fn all_answers<'a>(context: &Context<'a>, plan: &mut Plan, what: &str) -> Option<Vec<(u32, &'a Report)>> {
    answers_of(context, plan, what, context.target.iter().copied().chain(pods(context)).collect())
}

/// The members in pods. One that is not wanted may still hold what a lost record knew, unless it never had a volume.
fn pods(context: &Context<'_>) -> impl Iterator<Item = u32> {
    let observed = context.observed;
    let never_bound = |ordinal: u32| observed.claim(ordinal).is_some_and(|claim| !claim.bound);
    let pods = observed.pods.iter().filter(move |pod| pod.owned && !pod.deleting && !never_bound(pod.ordinal));
    pods.map(|pod| pod.ordinal)
}

/// The reports of every volume of the store that may hold anything, or a wait that names whose is missing. What has no pod
/// gets one, for it can't answer without.
fn every_volume<'a>(context: &Context<'a>, plan: &mut Plan, what: &str) -> Option<Vec<(u32, &'a Report)>> {
    plan.asked = context.target.iter().copied().chain(pods(context)).chain(volumes(context)).collect();
    answers_of(context, plan, what, plan.asked.clone())
}

/// The ordinals of the volumes of the store that may hold anything. A claim that was never bound has no volume yet.
pub(super) fn volumes(context: &Context<'_>) -> impl Iterator<Item = u32> {
    let uid = context.observed.store.uid.as_str();
    let may_hold_data =
        move |claim: &&ClaimFacts| claim.bound && !claim.deleting && claim.store_uid.as_deref() == Some(uid);
    context.observed.claims.iter().filter(may_hold_data).map(|claim| claim.ordinal)
}

fn answers_of<'a>(
    context: &Context<'a>,
    plan: &mut Plan,
    what: &str,
    asked: BTreeSet<u32>,
) -> Option<Vec<(u32, &'a Report)>> {
    let answer = |ordinal: &u32| context.observed.answer(*ordinal);
    let silent: Vec<_> = asked.iter().filter(|o| answer(o).is_none()).map(|o| context.name(*o)).collect();
    if silent.is_empty() {
        return Some(asked.iter().filter_map(|ordinal| Some((*ordinal, answer(ordinal)?))).collect());
    }
    let message = format!("{what} waits until every member has answered: {}", silent.join(", "));
    plan.wait(WaitingReason::MemberMustAnswer, message, context.kubectl("describe pod", &silent[0]));
    None
}

/// There is no record: the store is new, or the record was lost.
pub(super) fn no_record(context: &Context<'_>, plan: &mut Plan) {
    let Some(answers) = every_volume(context, plan, "the first reign") else { return };
    if answers.iter().all(|(_, report)| report.blank() && report.highest_epoch() == 0) {
        let members = members(context, &context.target.iter().copied().collect());
        let summary = "every member answered and is empty".to_owned();
        let new = NewReign::specified(context, ReignCause::First, members, summary);
        begin(context, plan, NewReign { phase: ReignPhase::Forming, ..new });
        plan.step = Some(Step::Form);
        return;
    }
    rebuild(context, plan, &answers);
}

/// The record was lost and members hold data: take over the highest reign that any of them knows, once each member that
/// it lists has answered, or can be named without. Its primary is asked to seal like any other, so nothing rests on what
/// the record said beyond. It counts as Serving only if it is seen to serve; else it may need members that nobody would
/// wait for then.
fn rebuild(context: &Context<'_>, plan: &mut Plan, answers: &[(u32, &Report)]) {
    let known = answers.iter().filter_map(|(_, report)| report.reign.as_ref()).max_by_key(|reign| reign.epoch);
    let Some((known, members)) = known.and_then(|known| Some((known, members_of(context, answers, known)?))) else {
        let message = "members hold data, the decision record is gone, and not every member of the last reign answers: nobody is promoted".to_owned();
        let selector = format!("-l {}", crate::names::selector(&context.observed.store.name));
        plan.wait(WaitingReason::NobodyEligible, message, context.kubectl("get pods,pvc", &selector));
        return;
    };
    let record = ReignRecord {
        epoch: i64::try_from(known.epoch).unwrap_or(i64::MAX - 1),
        reign_id: known.reign_id.clone(),
        phase: if serves(answers, known) { ReignPhase::Serving } else { ReignPhase::Promoting },
        cause: ReignCause::Unknown,
        primary: known.primary.clone(),
        members,
        mode: known.mode,
        min_sync_replicas: i32::try_from(known.min_sync_replicas).unwrap_or(0),
        lease_duration_ms: i64::try_from(known.lease_duration_ms).unwrap_or(60_000).max(1_000),
        evidence: evidence(context, "rebuilt from what every member knows".into()),
        primary_process: process_that_leads(answers, known),
        synced: false,
        positions: String::new(),
        operation: String::new(),
        accept_loss: false,
        attested: false,
        suspected_at: None,
        begun_at: MicroTime(context.observed.now),
        deadline: None,
        promoting_since: None,
        serving_since: None,
    };
    swap(context, plan, record);
    let note = format!("the decision record was lost and is rebuilt at epoch {}", known.epoch);
    plan.event(true, EventReason::RecordRebuilt, note);
}

/// The members that a reign lists, if all answer. One whose volume is lost since is not missed where the reign is seen to
/// serve, if the record, which is older then, still says which member that was.
fn members_of(context: &Context<'_>, answers: &[(u32, &Report)], reign: &KnownReign) -> Option<Vec<ReignMember>> {
    let recorded = context.observed.own_reign().map_or(&[][..], |own| own.spec.current.members.as_slice());
    let serves = serves(answers, reign);
    let member = |uuid: &String| match answers.iter().find(|(_, report)| report.data_uuid == *uuid) {
        Some((ordinal, _)) => Some(ReignMember { name: context.name(*ordinal), data_uuid: uuid.clone() }),
        None => recorded.iter().find(|member| serves && member.data_uuid == *uuid).cloned(),
    };
    let mut members = reign.members.iter().map(member).collect::<Option<Vec<_>>>()?;
    members.sort_by_key(|member| context.ordinal(&member.name));
    Some(members)
}

/// True if a reign is seen to serve: W replicas hold its epoch records.
fn serves(answers: &[(u32, &Report)], reign: &KnownReign) -> bool {
    answers.iter().any(|(_, report)| report.leads(reign.epoch, &reign.reign_id) && report.serves_all())
}

/// The process that leads a reign now; empty if none does.
fn process_that_leads(answers: &[(u32, &Report)], reign: &KnownReign) -> String {
    let leads = answers.iter().find(|(_, report)| report.leads(reign.epoch, &reign.reign_id));
    leads.map(|(_, report)| report.process_id.clone()).unwrap_or_default()
}

/// The record does not know of a reign that a member promised, since the last that served: it was restored from a backup.
/// Nothing is begun then before every volume of the store has answered, for whichever is silent may hold a reign that
/// acknowledged writes; and what they know is put on record. None if all is known, or if a person accepted the loss.
pub(super) fn outdated(context: &Context<'_>, plan: &mut Plan, spec: &StoreReignSpec) -> Option<()> {
    let current = &spec.current;
    let ours = |report: &&Report| report.store_uid == context.observed.store.uid;
    let mut reports = context.observed.contacts.values().filter_map(|contact| contact.report.as_ref()).filter(ours);
    let promised = |report: &Report| {
        let seal = report.sealed.as_ref().map(|sealed| (sealed.epoch, sealed.reign_id.clone()));
        let whole = report.reign.as_ref().map(|reign| (reign.epoch, reign.reign_id.clone()));
        seal.into_iter().chain(whole).any(|(epoch, id)| is_unknown(spec, epoch, &id))
    };
    // Members that sealed for a reign that nobody led take no orders of the recorded one.
    let outrun = current.phase != ReignPhase::Sealing && procedure::outrun(context, current);
    let shows = outrun || reports.any(promised);
    let accepted = current.accept_loss && current.phase != ReignPhase::Serving;
    if accepted || !shows || parovoz_mutant::on("restored-record-asks-nobody") {
        return None;
    }
    plan.within(WHILE_REIGN_BEGINS);
    let Some(answers) = every_volume(context, plan, "bringing the outdated decision record up to date") else {
        return Some(());
    };
    let whole = answers.iter().filter_map(|(_, report)| report.reign.as_ref());
    let unknown: Vec<&KnownReign> = whole.filter(|reign| is_unknown(spec, reign.epoch, &reign.reign_id)).collect();
    let newest = unknown.iter().max_by_key(|reign| reign.epoch);
    if newest.is_none() && !outrun {
        // Where nobody promised one of them whole, none of them can have served.
        return None;
    }
    let above = |reign: &&&KnownReign| reign.epoch > u64::try_from(current.epoch).unwrap_or(0);
    if newest.filter(above).is_some_and(|newest| serves(&answers, newest)) {
        rebuild(context, plan, &answers);
    } else {
        // What the restored record led to is another line of reigns, and either may have acknowledged something: only one that
        // asks for the votes of both goes on.
        let summary = "the record was restored and knew nothing of reigns that members promised".to_owned();
        let new = NewReign::like(current, ReignCause::Unknown, summary.clone());
        if begin(context, plan, new).is_some() {
            plan.step = Some(Step::Lead);
            plan.event(true, EventReason::RecordRebuilt, summary);
        }
    }
    put_on_record(context, plan, spec, &answers, &unknown);
    Some(())
}

/// True if a reign may have acknowledged writes and the record says nothing of it.
fn is_unknown(spec: &StoreReignSpec, epoch: u64, id: &str) -> bool {
    let current = (spec.current.epoch, &spec.current.reign_id, spec.current.phase);
    let earlier = spec.history.iter().map(|past| (past.epoch, &past.reign_id, past.phase));
    for (number, recorded, phase) in std::iter::once(current).chain(earlier) {
        let number = u64::try_from(number).unwrap_or(0);
        if (number == epoch && recorded == id) || (phase == ReignPhase::Serving && number >= epoch) {
            return false;
        }
        if phase == ReignPhase::Serving {
            return true;
        }
    }
    true
}

/// The reigns that the record did not know of go into the history of the one that is to be written, so that whoever comes
/// next asks for their votes.
fn put_on_record(
    context: &Context<'_>,
    plan: &mut Plan,
    spec: &StoreReignSpec,
    answers: &[(u32, &Report)],
    unknown: &[&KnownReign],
) {
    let Some(write) = &mut plan.reign_write else { return };
    let present = write.spec.current.epoch;
    for reign in unknown {
        let epoch = i64::try_from(reign.epoch).unwrap_or(i64::MAX - 1);
        let history = &mut write.spec.history;
        if epoch >= present || history.iter().any(|past| past.reign_id == reign.reign_id) {
            continue;
        }
        let named = spec.current.members.iter().find(|member| member.data_uuid == reign.primary);
        let place = history.iter().position(|past| past.epoch < epoch).unwrap_or(history.len());
        let missed = PastReign {
            epoch,
            reign_id: reign.reign_id.clone(),
            phase: ReignPhase::Promoting,
            cause: ReignCause::Unknown,
            primary: reign.primary.clone(),
            primary_name: named.map(|member| member.name.clone()).unwrap_or_default(),
            primary_process: process_that_leads(answers, reign),
            synced: false,
            members: reign.members.clone(),
            mode: reign.mode,
            min_sync_replicas: i32::try_from(reign.min_sync_replicas).unwrap_or(0),
            lease_duration_ms: i64::try_from(reign.lease_duration_ms).unwrap_or(60_000).max(1_000),
            operation: String::new(),
            begun_at: MicroTime(context.observed.now),
            serving_since: None,
        };
        history.insert(place, missed);
    }
}

/// The members are listed and nobody was told anything.
pub(super) fn form(context: &Context<'_>, plan: &mut Plan, current: &ReignRecord) -> Option<ReignRecord> {
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
        phase: ReignPhase::Sealing,
        primary: first.data_uuid,
        mode: replication.mode,
        min_sync_replicas: replication.min_sync_replicas,
        lease_duration_ms: context.settings.failover.lease_duration_ms,
        evidence: evidence(context, "every member answered and is empty; the lowest leads".into()),
        ..current.clone()
    };
    plan.event(false, EventReason::FirstReign, format!("{} leads the first reign", first.name));
    let record = swap(context, plan, record);
    seal(context, plan, &record);
    Some(record)
}

/// True if no reign can have acknowledged anything that is left: none ever served, every volume of the store answers, wanted
/// or not, and nobody holds a single prefix.
pub(super) fn nothing_anywhere(context: &Context<'_>, plan: &mut Plan) -> bool {
    let observed = context.observed;
    let ever_served = observed.own_reign().is_some_and(|reign| reign.spec.ever_served);
    let mut answers = observed.pods.iter().filter_map(|pod| observed.answer(pod.ordinal));
    // Whoever is silent is asked for only if nobody is known to hold anything: else votes decide.
    let holds = ever_served || answers.any(|report| !report.prefixes.is_empty());
    !holds && every_volume(context, plan, "the first reign").is_some()
}

/// Ask the one member that is to lead the first reign to seal.
fn seal(context: &Context<'_>, plan: &mut Plan, record: &ReignRecord) {
    let answering = super::record::answering(context);
    if let Some((ordinal, report)) = answering.get(record.primary.as_str()) {
        let kind = OrderKind::Seal { about: ReignRef::default(), evidence: SealEvidence::PrimarySealed };
        plan.orders.push(order(context, *ordinal, report, &known(record), kind));
    }
}

/// Sealing where nothing is to be found out: the chosen member seals and is promoted; if it is gone, another is chosen.
pub(super) fn sealing(context: &Context<'_>, plan: &mut Plan, current: &ReignRecord) -> Option<ReignRecord> {
    let epoch = u64::try_from(current.epoch).unwrap_or(0);
    let answering = super::record::answering(context);
    match answering.get(current.primary.as_str()) {
        Some((ordinal, report)) if report.is_sealed(epoch, &current.reign_id) => {
            plan.step = Some(Step::Lead);
            Some(procedure::promote(context, plan, current, (*ordinal, report), &Decision::new(), true))
        }
        Some(_) => {
            seal(context, plan, current);
            Some(current.clone())
        }
        None => again(context, plan),
    }
}

/// Begin the first reign over: the member that was to lead is gone or failed, and nobody holds anything.
pub(super) fn again(context: &Context<'_>, plan: &mut Plan) -> Option<ReignRecord> {
    let answers = every_volume(context, plan, "the first reign")?;
    if let Some((ordinal, _)) = answers.iter().find(|(_, report)| !report.prefixes.is_empty()) {
        let name = context.name(*ordinal);
        let message = format!("{name} holds data though the store has never served: nobody is promoted");
        plan.wait(WaitingReason::NobodyEligible, message, context.kubectl("logs", &name));
        return None;
    }
    let wanted = || answers.iter().filter(|(ordinal, _)| context.target.contains(ordinal));
    let (ordinal, report) = wanted().find(|(_, report)| report.blank()).or_else(|| wanted().next())?;
    let ordinals: BTreeSet<u32> = context.target.iter().copied().collect();
    let note = format!("{} leads: the store never served and no member holds anything", context.name(*ordinal));
    plan.event(false, EventReason::FirstReign, note.clone());
    let new = NewReign::specified(context, ReignCause::First, members(context, &ordinals), note);
    let record = begin(context, plan, NewReign { primary: report.data_uuid.clone(), ..new })?;
    plan.step = Some(Step::Lead);
    seal(context, plan, &record);
    Some(record)
}
