//! The labels that services select by: a view of what members say, never a decision.

use parovoz_api::{MemberRole, ReignPhase, ReignRecord};

use super::Context;
use crate::names::{ROLE_PRIMARY, ROLE_REPLICA};
use crate::observed::PodFacts;

/// Role labels that a pod should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleLabels {
    /// The pod.
    pub pod: String,
    /// Its uid; a pod of the same name made since is left alone.
    pub uid: String,
    /// `primary` or `replica`.
    pub role: &'static str,
    /// True on a replica that is complete and streams.
    pub in_standing: bool,
}

/// The labels that differ. Whoever has the primary's keeps it until another one leads: proxies take up to a second to notice
/// a change, so a service that loses its endpoint before it gets the next one is late by as much. Whom it leads to an old
/// primary meanwhile, that one holds or tells where to go.
pub(super) fn labels(context: &Context<'_>, record: &ReignRecord) -> Vec<RoleLabels> {
    let epoch = u64::try_from(record.epoch).unwrap_or(0);
    let leads = |pod: &PodFacts| {
        context.observed.answer(pod.ordinal).is_some_and(|report| {
            report.data_uuid == record.primary && report.leads(epoch, &record.reign_id) && report.serves_catalogue()
        })
    };
    let pods = || context.observed.pods.iter().filter(|pod| pod.owned && !pod.deleting);
    let leader = pods().find(|pod| leads(pod)).or_else(|| pods().find(|pod| is_about_to_lead(context, record, pod)));
    let leader = leader.map(|pod| pod.ordinal);
    let mut changed: Vec<RoleLabels> = pods()
        .filter_map(|pod| {
            let wanted = wanted(context, pod, leader);
            let present = (pod.role.as_deref(), pod.in_standing);
            (present != (Some(wanted.role), wanted.in_standing)).then_some(wanted)
        })
        .collect();
    changed.sort_by_key(|labels| labels.role != ROLE_PRIMARY);
    changed
}

/// True for whom a failover has chosen, where nobody else leads: services take a while to follow a label, and meanwhile it
/// begins to serve.
fn is_about_to_lead(context: &Context<'_>, record: &ReignRecord, pod: &PodFacts) -> bool {
    let answer = |ordinal| context.observed.answer(ordinal);
    let anybody = || context.observed.pods.iter().filter_map(|pod| answer(pod.ordinal));
    record.phase == ReignPhase::Promoting
        && !record.cause.planned()
        && answer(pod.ordinal).is_some_and(|report| report.data_uuid == record.primary)
        && !anybody().any(|report| report.role == MemberRole::Primary && report.data_uuid != record.primary)
}

fn wanted(context: &Context<'_>, pod: &PodFacts, leader: Option<u32>) -> RoleLabels {
    let was_primary = pod.role.as_deref() == Some(ROLE_PRIMARY);
    let report = context.observed.answer(pod.ordinal);
    let primary = leader == Some(pod.ordinal) || (leader.is_none() && was_primary);
    let standing = match report {
        Some(report) => report.streams(),
        None => pod.in_standing,
    };
    RoleLabels {
        pod: pod.name.clone(),
        uid: pod.uid.clone(),
        role: if primary { ROLE_PRIMARY } else { ROLE_REPLICA },
        in_standing: standing && !primary,
    }
}
