//! The labels that services select by: a view of what members say, never a decision.

use parovoz_api::{MemberPhase, ReignRecord};

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

/// The labels that differ. A member that does not answer keeps its own, unless another one leads: readiness takes it out
/// of the services meanwhile.
pub(super) fn labels(context: &Context<'_>, record: &ReignRecord) -> Vec<RoleLabels> {
    let epoch = u64::try_from(record.epoch).unwrap_or(0);
    let previous = context.observed.own_reign().map(|reign| &reign.spec.current);
    let leads = |pod: &PodFacts| {
        context.observed.answer(pod.ordinal).is_some_and(|report| {
            // While the same primary goes from one epoch to the next, it leads the earlier one for a moment.
            let earlier = previous.is_some_and(|previous| {
                previous.primary == record.primary
                    && report.leads(u64::try_from(previous.epoch).unwrap_or(0), &previous.reign_id)
            });
            report.data_uuid == record.primary && (report.leads(epoch, &record.reign_id) || earlier)
        })
    };
    let pods = || context.observed.pods.iter().filter(|pod| pod.owned && !pod.deleting);
    let leader = pods().find(|pod| leads(pod)).map(|pod| pod.ordinal);
    let mut changed: Vec<RoleLabels> = pods()
        .filter_map(|pod| {
            let wanted = wanted(context, pod, leader);
            let present = (pod.role.as_deref(), pod.in_standing);
            (present != (Some(wanted.role), wanted.in_standing)).then_some(wanted)
        })
        .collect();
    changed.sort_by_key(|labels| labels.role == ROLE_PRIMARY);
    changed
}

fn wanted(context: &Context<'_>, pod: &PodFacts, leader: Option<u32>) -> RoleLabels {
    let was_primary = pod.role.as_deref() == Some(ROLE_PRIMARY);
    let report = context.observed.answer(pod.ordinal);
    let primary = leader == Some(pod.ordinal) || (leader.is_none() && report.is_none() && was_primary);
    let standing = match report {
        Some(report) => report.usable() && report.phase == MemberPhase::Streaming && report.upstream_connected,
        None => pod.in_standing,
    };
    RoleLabels {
        pod: pod.name.clone(),
        uid: pod.uid.clone(),
        role: if primary { ROLE_PRIMARY } else { ROLE_REPLICA },
        in_standing: standing && !primary,
    }
}
