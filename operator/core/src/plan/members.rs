//! Which members there should be, and their pods and volume claims.

use std::collections::BTreeSet;

use parovoz_api::{DeletionPolicy, MemberRole, ReignMember, ReignPhase, WaitingReason};

use super::{Context, Delete, DeleteKind, EventReason, Plan, Step, first, record};
use crate::build::{self, Object};
use crate::names::{self, MAX_MEMBERS};
use crate::observed::{ClaimFacts, Contact, Observed, PodFacts, Report};
use crate::quorum::OldReign;
use crate::settings::pod_hash;

/// Ordinals of the members that the store should have. The primary is always among them: scaling down takes the highest
/// of the others, scaling up the lowest that are free. A primary that is to lose its volume is never alone, so that another
/// can lead first.
#[must_use]
pub fn target(observed: &Observed, replicas: u32) -> Vec<u32> {
    let (mut members, primary) = listed(observed);
    let goes = |ordinal| observed.claim(ordinal).is_some_and(|claim| claim.deleting);
    let least = if primary.is_some_and(goes) { 2 } else { 1 };
    let count = usize::try_from(replicas).unwrap_or(1).max(least);
    while members.len() > count {
        let Some(last) = members.iter().rev().copied().find(|ordinal| Some(*ordinal) != primary) else { break };
        members.remove(&last);
    }
    let mut free = (1..=MAX_MEMBERS).filter(|ordinal| !members.contains(ordinal)).collect::<Vec<_>>().into_iter();
    while members.len() < count {
        let Some(next) = free.next() else { break };
        members.insert(next);
    }
    members.into_iter().collect()
}

/// The ordinals that the present reign lists, and its primary's. Empty before the first.
pub(super) fn listed(observed: &Observed) -> (BTreeSet<u32>, Option<u32>) {
    let Some(reign) = observed.own_reign() else { return (BTreeSet::new(), None) };
    let current = &reign.spec.current;
    if current.phase == ReignPhase::Forming {
        return (BTreeSet::new(), None);
    }
    let ordinal = |name: &str| names::ordinal_of(&observed.store.name, name);
    let members = current.members.iter().filter_map(|member| ordinal(&member.name)).collect();
    let primary = current.members.iter().find(|member| member.data_uuid == current.primary);
    (members, primary.and_then(|member| ordinal(&member.name)))
}

pub(super) fn plan(context: &Context<'_>, plan: &mut Plan) {
    let mut stale = Vec::new();
    let kept = kept(context, plan);
    for ordinal in &kept {
        one(context, *ordinal, plan, &mut stale);
    }
    restarts(context, &stale, plan);
    leftovers(context, plan, &kept);
}

/// The members whose pods are kept up: those wanted and, while nobody leads, all that the reign lists, because each may
/// have to be heard before anybody does; where the record is missing or outdated, those of every volume.
fn kept(context: &Context<'_>, plan: &Plan) -> BTreeSet<u32> {
    let mut kept: BTreeSet<u32> = context.target.iter().copied().collect();
    let leads =
        |pod: &PodFacts| context.observed.answer(pod.ordinal).is_some_and(|report| report.role == MemberRole::Primary);
    if !context.observed.pods.iter().any(leads) {
        kept.extend(listed(context.observed).0);
    }
    kept.extend(&plan.asked);
    if votes_lack(context, plan) {
        kept.extend(first::volumes(context));
    }
    kept
}

/// True if a reign has waited for votes for long while a member of an earlier one is missed: scaled away since, it is listed
/// no more, and its vote may be the one that is lacking.
fn votes_lack(context: &Context<'_>, plan: &Plan) -> bool {
    let Some(reign) = context.observed.own_reign() else { return false };
    let lacking = |reason| {
        matches!(reason, WaitingReason::FenceOpen | WaitingReason::VotesMissing | WaitingReason::SealQuorumOutOfReach)
    };
    let late = record::elapsed(&reign.spec.current.begun_at, context.observed.now) > record::SEALING_DEADLINE;
    let serves = reign.spec.current.phase == ReignPhase::Serving;
    if serves || !late || !plan.waiting.iter().any(|waiting| lacking(waiting.reason)) {
        return false;
    }
    let answering = record::answering(context);
    let missed = |old: &OldReign| old.members.iter().any(|member| !answering.contains_key(member.as_str()));
    record::may_have_served(&reign.spec, false).iter().any(|past| missed(&past.reign))
        || record::earlier_quorum(&reign.spec, false).iter().any(missed)
}

/// Bring the claim and the pod of one member about, one after the other: a pod is made for a claim that is known.
fn one(context: &Context<'_>, ordinal: u32, plan: &mut Plan, stale: &mut Vec<u32>) {
    let observed = context.observed;
    let pod = observed.pod(ordinal);
    if let Some(pod) = pod.filter(|pod| !pod.owned) {
        let message = format!("pod {} belongs to somebody else and is in the way of a member", pod.name);
        plan.wait(WaitingReason::ForeignObject, message, context.kubectl("delete pod", &pod.name));
        return;
    }
    match observed.claim(ordinal) {
        None => match pod {
            None => plan.objects.push(Object::Claim(build::claim(&observed.store, ordinal))),
            Some(pod) => release(context, pod, plan),
        },
        Some(claim) if claim.store_uid.as_deref() != Some(observed.store.uid.as_str()) => {
            let message = format!(
                "volume claim {} was made by another store: its data is not touched; delete it to begin with an empty volume",
                claim.name
            );
            plan.wait(WaitingReason::ForeignClaim, message, context.kubectl("delete pvc", &claim.name));
        }
        Some(claim) if claim.deleting => {
            if let Some(pod) = pod {
                release(context, pod, plan);
            }
        }
        Some(claim) => {
            if claim_differs(context, claim) {
                plan.objects.push(Object::Claim(build::claim(&observed.store, ordinal)));
            }
            match pod {
                None => plan.objects.push(Object::Pod(build::pod(&observed.store, claim, &observed.default_image))),
                Some(pod) => existing(context, pod, claim, plan, stale),
            }
        }
    }
}

fn existing(context: &Context<'_>, pod: &PodFacts, claim: &ClaimFacts, plan: &mut Plan, old: &mut Vec<u32>) {
    if pod.deleting {
        return;
    }
    if pod.claim_uid.as_deref() != Some(claim.uid.as_str()) {
        release(context, pod, plan);
    } else if pod.ended {
        plan.event(true, EventReason::PodEnded, format!("{} has ended and is made anew", pod.name));
        plan.deletes.push(delete_pod(pod));
    } else if stale(context, pod) {
        old.push(pod.ordinal);
    }
    if let Some(report) = context.observed.parked(pod.ordinal) {
        let message = format!("{} keeps its data closed until a person has looked: {}", pod.name, report.reason);
        plan.wait(WaitingReason::MemberMustAnswer, message, context.kubectl("logs", &pod.name));
    }
    let said = context.observed.contacts.get(&pod.name).and_then(Contact::fresh);
    if let Some(report) =
        said.filter(|report| !report.store_uid.is_empty() && report.store_uid != context.observed.store.uid)
    {
        let message = format!(
            "the volume of {} holds data of another store ({}): it is not touched; delete its claim to begin with an empty volume",
            pod.name, report.store_uid
        );
        plan.wait(WaitingReason::ForeignClaim, message, context.kubectl("delete pvc", &claim.name));
    }
}

/// Let go of a pod whose volume claim is gone or going, so that both can be made anew. Not the primary's: it may hold
/// what nobody else has, and its going is a decision for a person. One that no node has taken holds nothing.
fn release(context: &Context<'_>, pod: &PodFacts, plan: &mut Plan) {
    if pod.deleting {
        return;
    }
    let leads = context.observed.answer(pod.ordinal).is_some_and(|report| report.role == MemberRole::Primary);
    let reign = context.observed.own_reign();
    let between = reign.is_some_and(|reign| {
        let current = &reign.spec.current;
        let listed = |member: &ReignMember| {
            let report = context.observed.last_word(pod.ordinal);
            member.name == pod.name && report.is_none_or(|report| report.data_uuid == member.data_uuid)
        };
        matches!(current.phase, ReignPhase::Sealing | ReignPhase::Promoting) && current.members.iter().any(listed)
    });
    let placed = pod.node.is_some() || context.observed.last_word(pod.ordinal).is_some();
    if placed && between && !leads {
        // Its votes may be needed yet, or it may be about to lead.
        return;
    }
    if placed && (leads || listed(context.observed).1 == Some(pod.ordinal)) {
        let message = format!(
            "the volume claim of the primary {} is gone or being deleted: the pod still holds the volume and is left alone. Deleting it loses the volume, and with it what no replica has yet",
            pod.name
        );
        plan.wait(WaitingReason::NobodyEligible, message, context.kubectl("delete pod", &pod.name));
        return;
    }
    let note = format!(
        "the volume claim of {} is gone or being deleted: the member is made anew with an empty volume",
        pod.name
    );
    plan.event(true, EventReason::VolumeLost, note);
    plan.deletes.push(delete_pod(pod));
}

/// True if a pod runs with other settings than those asked for.
pub(super) fn stale(context: &Context<'_>, pod: &PodFacts) -> bool {
    pod.pod_hash.as_deref() != Some(pod_hash(&context.observed.store.spec).as_str())
}

/// True if every wanted member but this one runs with the settings asked for, and streams.
pub(super) fn others_updated(context: &Context<'_>, ordinal: u32) -> bool {
    let mut others = context.target.iter().filter(|other| **other != ordinal);
    others.all(|other| {
        context.observed.pod(*other).is_some_and(|pod| !stale(context, pod))
            && context.observed.answer(*other).is_some_and(Report::streams)
    })
}

fn claim_differs(context: &Context<'_>, claim: &ClaimFacts) -> bool {
    let wants_owner = match context.observed.store.spec.deletion_policy {
        DeletionPolicy::Retain => false,
        DeletionPolicy::Delete => true,
    };
    // A claim can grow only once it is bound.
    let smaller = claim.requested_bytes.is_some_and(|bytes| bytes < context.settings.storage_bytes);
    claim.owned != wants_owner || (claim.bound && smaller)
}

fn restarts(context: &Context<'_>, stale: &[u32], plan: &mut Plan) {
    let primary = listed(context.observed).1;
    // Replicas first, the primary last.
    let mut order: Vec<u32> = stale.to_vec();
    order.sort_by_key(|ordinal| (Some(*ordinal) == primary, *ordinal));
    let Some(first) = order.first().copied() else { return };
    let names: Vec<_> = order.iter().map(|ordinal| context.name(*ordinal)).collect();
    let message = format!(
        "image or template changed: these pods run with the old settings until they are deleted, one after the other in this order: {}",
        names.join(", ")
    );
    plan.wait(WaitingReason::RestartNeeded, message, context.kubectl("delete pod", &context.name(first)));
}

/// Pods and claims that are not wanted any more and that the reign on record does not list.
fn leftovers(context: &Context<'_>, plan: &mut Plan, kept: &BTreeSet<u32>) {
    let observed = context.observed;
    let (members, primary) = listed(observed);
    let leads = |ordinal| observed.answer(ordinal).is_some_and(|report| report.role == MemberRole::Primary);
    // While nobody leads, a learner that no reign lists yet may be all that is left.
    let serving = observed.own_reign().is_some_and(|reign| reign.spec.current.phase == ReignPhase::Serving)
        && primary.is_some_and(leads);
    let unwanted = |ordinal: u32| !kept.contains(&ordinal) && !members.contains(&ordinal);
    if plan.step.is_some() || plan.reign_write.is_some() || !plan.asked.is_empty() {
        return;
    }
    let mut pods: Vec<_> = observed.pods.iter().filter(|pod| unwanted(pod.ordinal) && pod.owned).collect();
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.ordinal));
    if let Some(pod) = pods.iter().find(|pod| !pod.deleting) {
        // Before the first reign only a member that says it is empty may go: the record may have been lost.
        if serving || observed.answer(pod.ordinal).is_some_and(Report::blank) {
            plan.event(
                false,
                EventReason::MemberRemoved,
                format!("{} is removed: fewer members were asked for", pod.name),
            );
            plan.deletes.push(delete_pod(pod));
            plan.step = Some(Step::RemovePod(pod.name.clone()));
        }
        return;
    }
    if serving && observed.store.spec.deletion_policy == DeletionPolicy::Delete {
        let gone = |ordinal: u32| observed.pod(ordinal).is_none();
        let ours = |claim: &&ClaimFacts| claim.store_uid.as_deref() == Some(observed.store.uid.as_str());
        for claim in observed.claims.iter().filter(ours) {
            if unwanted(claim.ordinal) && gone(claim.ordinal) && !claim.deleting {
                let delete = Delete { kind: DeleteKind::Claim, name: claim.name.clone(), uid: claim.uid.clone() };
                plan.deletes.push(delete);
            }
        }
    }
}

fn delete_pod(pod: &PodFacts) -> Delete {
    Delete { kind: DeleteKind::Pod, name: pod.name.clone(), uid: pod.uid.clone() }
}
