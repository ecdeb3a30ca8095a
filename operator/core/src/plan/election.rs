//! Who leads when the primary does not: never a guess, never an empty or half copied member.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parovoz_api::{FailoverReceipt, ReignCause, ReignMember, ReignRecord, WaitingReason};

use super::record::{NewReign, answering, begin, members, next_epoch};
use super::{Context, EventReason, Plan, Step, members as wanted};
use crate::observed::Report;

/// After this long without an answer a replica is left out, provided that the old primary answered itself.
const LEFT_OUT_AFTER: Duration = Duration::from_secs(60);

/// What became of a member of the last reign.
enum Fate<'a> {
    Answers(u32, &'a Report),
    /// Its pod answers from another volume.
    VolumeLost,
    Silent,
}

fn fate<'a>(context: &Context<'a>, member: &ReignMember, answering: &BTreeMap<&'a str, (u32, &'a Report)>) -> Fate<'a> {
    if let Some((ordinal, report)) = answering.get(member.data_uuid.as_str()) {
        return Fate::Answers(*ordinal, report);
    }
    let replaced = context.ordinal(&member.name).and_then(|ordinal| context.observed.answer(ordinal));
    if replaced.is_some() { Fate::VolumeLost } else { Fate::Silent }
}

/// The primary's identity answers nowhere: its volume is lost, or it is away and is waited for.
pub(super) fn without_primary(context: &Context<'_>, plan: &mut Plan, current: &ReignRecord) -> Option<ReignRecord> {
    let answering = answering(context);
    let old = current.members.iter().find(|member| member.data_uuid == current.primary);
    let name = old.map_or_else(|| "the primary".to_owned(), |member| member.name.clone());
    match old.map(|member| fate(context, member, &answering)) {
        Some(Fate::VolumeLost) => elect(context, plan, current, None),
        _ => {
            let parked = context.ordinal(&name).and_then(|ordinal| context.observed.parked(ordinal));
            let what = parked
                .map_or("does not answer".to_owned(), |report| format!("keeps its data closed ({})", report.reason));
            let message = format!("the primary {name} {what}: nobody else is promoted while it is away");
            plan.wait(WaitingReason::PrimaryMustReturn, message, context.kubectl("describe pod", &name));
            None
        }
    }
}

/// The primary answers and does not lead: its process was started anew.
pub(super) fn with_primary(
    context: &Context<'_>,
    plan: &mut Plan,
    current: &ReignRecord,
    old: u32,
) -> Option<ReignRecord> {
    elect(context, plan, current, Some(old))
}

fn elect(context: &Context<'_>, plan: &mut Plan, current: &ReignRecord, old: Option<u32>) -> Option<ReignRecord> {
    let answering = answering(context);
    let mut present: Vec<(u32, &Report)> = Vec::new();
    let mut silent = Vec::new();
    for member in &current.members {
        match fate(context, member, &answering) {
            Fate::Answers(ordinal, report) => present.push((ordinal, report)),
            Fate::VolumeLost => {}
            Fate::Silent => {
                let ordinal = context.ordinal(&member.name);
                let away = ordinal.map_or(Duration::ZERO, |ordinal| context.observed.silence(ordinal));
                // A member that is parked will not say more by being waited for.
                let parked = ordinal.is_some_and(|ordinal| context.observed.parked(ordinal).is_some());
                if old.is_none() || !(parked || away >= LEFT_OUT_AFTER) {
                    silent.push(member.name.clone());
                }
            }
        }
    }
    if let Some(first) = silent.first() {
        let message = format!("choosing a primary waits until these members have answered: {}", silent.join(", "));
        plan.wait(WaitingReason::MemberMustAnswer, message, context.kubectl("describe pod", first));
        return None;
    }
    let eligible: Vec<_> = present.iter().copied().filter(|(_, report)| report.usable()).collect();
    match best(&eligible, old) {
        Some((ordinal, report)) => Some(crown(context, plan, current, old, ordinal, report)),
        None => nobody(context, plan, current),
    }
}

/// The member that no other surpasses in every prefix: the old primary if it is one of them, else the one that is
/// furthest in all, else the lowest.
pub(super) fn best<'a>(eligible: &[(u32, &'a Report)], old: Option<u32>) -> Option<(u32, &'a Report)> {
    let surpassed =
        |report: &Report| eligible.iter().any(|(_, other)| other.compare(report) == Some(Ordering::Greater));
    let top: Vec<_> = eligible.iter().copied().filter(|(_, report)| !surpassed(report)).collect();
    top.iter()
        .copied()
        .max_by_key(|(ordinal, report)| (Some(*ordinal) == old, report.summary(), std::cmp::Reverse(*ordinal)))
}

fn crown(
    context: &Context<'_>,
    plan: &mut Plan,
    current: &ReignRecord,
    old: Option<u32>,
    ordinal: u32,
    report: &Report,
) -> ReignRecord {
    let name = context.name(ordinal);
    let epoch = next_epoch(context);
    let same = old == Some(ordinal);
    let note = if same {
        plan.event(false, EventReason::PrimaryRestarted, format!("{name} leads again at epoch {epoch}"));
        format!("{name} was started anew and no member is ahead of it")
    } else {
        replaced(context, plan, current, old, (ordinal, report), epoch)
    };
    let (mut ordinals, _) = wanted::listed(context.observed);
    ordinals.extend(context.target.iter().copied());
    plan.step = Some(Step::Lead);
    begin(
        context,
        plan,
        NewReign {
            epoch,
            cause: if same { ReignCause::PrimaryRestarted } else { ReignCause::PrimaryReplaced },
            primary: report.data_uuid.clone(),
            members: members(context, &ordinals),
            summary: note,
        },
    )
}

/// Another member leads: say loudly what that may have cost.
fn replaced(
    context: &Context<'_>,
    plan: &mut Plan,
    current: &ReignRecord,
    old: Option<u32>,
    (ordinal, report): (u32, &Report),
    epoch: i64,
) -> String {
    let name = context.name(ordinal);
    let position = report.summary();
    let before = old.and_then(|ordinal| context.observed.answer(ordinal));
    let nothing_lost = before.is_some_and(|before| {
        before.usable() && matches!(report.compare(before), Some(Ordering::Greater | Ordering::Equal))
    });
    let lost = if nothing_lost {
        "none".to_owned()
    } else {
        format!("unknown after ({}, {})", position.epoch, position.sequence)
    };
    let from = current.members.iter().find(|member| member.data_uuid == current.primary);
    let from = from.map(|member| member.name.clone()).unwrap_or_default();
    let cause = if old.is_some() { "another member has more" } else { "the primary's volume is lost" };
    let note = format!("{name} takes the place of {from} at epoch {epoch}: {cause}; lost: {lost}");
    plan.event(true, EventReason::PrimaryReplaced, note.clone());
    plan.failover =
        Some(FailoverReceipt { at: Time(context.observed.now), epoch, from, to: name, cause: cause.to_owned(), lost });
    note
}

/// No member has a whole copy. A store that never served may start over with empty members; any other waits for a person.
fn nobody(context: &Context<'_>, plan: &mut Plan, current: &ReignRecord) -> Option<ReignRecord> {
    let observed = context.observed;
    let ever_served = observed.own_reign().is_some_and(|reign| reign.spec.ever_served);
    let wanted: Vec<_> =
        context.target.iter().filter_map(|ordinal| Some((*ordinal, observed.answer(*ordinal)?))).collect();
    // A candidate that ended while it began its very first epoch has promised and holds nothing: it never served.
    let nothing_anywhere =
        wanted.len() == context.target.len() && wanted.iter().all(|(_, report)| report.prefixes.is_empty());
    let first = wanted.iter().find(|(_, report)| report.blank());
    if let Some((ordinal, report)) = first.filter(|_| !ever_served && nothing_anywhere) {
        let ordinals: BTreeSet<u32> = context.target.iter().copied().collect();
        let epoch = next_epoch(context);
        let note = format!(
            "{} leads at epoch {epoch}: the store never served and no member holds anything",
            context.name(*ordinal)
        );
        plan.event(false, EventReason::FirstReign, note.clone());
        plan.step = Some(Step::Lead);
        let new = NewReign {
            epoch,
            cause: ReignCause::First,
            primary: report.data_uuid.clone(),
            members: members(context, &ordinals),
            summary: note,
        };
        return Some(begin(context, plan, new));
    }
    let states: Vec<_> = current
        .members
        .iter()
        .map(|member| {
            let report = context
                .ordinal(&member.name)
                .and_then(|ordinal| observed.answer(ordinal).or_else(|| observed.parked(ordinal)));
            let state = report.map_or_else(|| "silent".to_owned(), |report| format!("{:?}", report.phase));
            format!("{} is {state}", member.name)
        })
        .collect();
    let message = format!("no member has a whole copy of the store, so nobody is promoted: {}", states.join(", "));
    let rest = format!("{} -o yaml", observed.store.name);
    plan.wait(WaitingReason::NobodyEligible, message, context.kubectl("get rstore", &rest));
    None
}
