//! Writing the decision record: what a new reign looks like.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parovoz_api::{Evidence, PastReign, ReignCause, ReignMember, ReignPhase, ReignRecord, StoreReignSpec};

use super::{Context, Plan, ReignWrite};
use crate::names::MAX_MEMBERS;
use crate::observed::Report;

/// How long a promise or a lease of a reign holds.
pub(super) const LEASE_DURATION_MS: i64 = 10_000;
/// How many past reigns the record keeps.
const HISTORY: usize = 20;
/// How long a phase should last at most before it is worth a look.
const PHASE_DEADLINE: SignedDuration = SignedDuration::from_secs(60);

/// Every member that answers now, by the identity on its volume.
pub(super) fn answering<'a>(context: &Context<'a>) -> BTreeMap<&'a str, (u32, &'a Report)> {
    let mut found = BTreeMap::new();
    for pod in &context.observed.pods {
        if let Some(report) = context.observed.answer(pod.ordinal) {
            found.entry(report.data_uuid.as_str()).or_insert((pod.ordinal, report));
        }
    }
    found
}

/// An epoch that nobody can have used: above the record's and above all that any member ever said.
pub(super) fn next_epoch(context: &Context<'_>) -> i64 {
    let recorded = context.observed.own_reign().map_or(0, |reign| reign.spec.current.epoch);
    let reported = context.observed.contacts.values().filter_map(|contact| contact.report.as_ref());
    let highest = reported.map(Report::highest_epoch).max().unwrap_or(0);
    recorded.max(i64::try_from(highest).unwrap_or(i64::MAX - 1)) + 1
}

/// The members of a new reign with these ordinals: as they answer now, else as the last reign knew them. One that was
/// never heard joins by a later reign.
pub(super) fn members(context: &Context<'_>, ordinals: &BTreeSet<u32>) -> Vec<ReignMember> {
    let known = context.observed.own_reign().map_or(&[][..], |reign| reign.spec.current.members.as_slice());
    (1..=MAX_MEMBERS)
        .filter(|ordinal| ordinals.contains(ordinal))
        .filter_map(|ordinal| {
            let name = context.name(ordinal);
            match context.observed.answer(ordinal) {
                Some(report) => Some(ReignMember { name, data_uuid: report.data_uuid.clone() }),
                None => known.iter().find(|member| member.name == name).cloned(),
            }
        })
        .collect()
}

/// What a decision rests on: who answered and who did not.
pub(super) fn evidence(context: &Context<'_>, summary: String) -> Evidence {
    let answering = answering(context);
    let known = context.observed.own_reign().map_or(&[][..], |reign| reign.spec.current.members.as_slice());
    Evidence {
        answered: answering.keys().map(|uuid| (*uuid).to_owned()).collect(),
        silent: known
            .iter()
            .map(|member| &member.data_uuid)
            .filter(|uuid| !answering.contains_key(uuid.as_str()))
            .cloned()
            .collect(),
        summary,
    }
}

/// What is particular about a new reign.
pub(super) struct NewReign {
    pub epoch: i64,
    pub cause: ReignCause,
    /// data_uuid of the member that is to lead; empty while Forming.
    pub primary: String,
    pub members: Vec<ReignMember>,
    pub summary: String,
}

/// Begin a reign: Promoting with a candidate, Forming without.
pub(super) fn begin(context: &Context<'_>, plan: &mut Plan, new: NewReign) -> ReignRecord {
    let replication = &context.observed.store.spec.replication;
    let record = ReignRecord {
        epoch: new.epoch,
        reign_id: context.observed.fresh_id.clone(),
        phase: if new.primary.is_empty() { ReignPhase::Forming } else { ReignPhase::Promoting },
        cause: new.cause,
        primary: new.primary,
        members: new.members,
        mode: replication.mode,
        min_sync_replicas: replication.min_sync_replicas,
        lease_duration_ms: LEASE_DURATION_MS,
        evidence: evidence(context, new.summary),
        begun_at: Time(context.observed.now),
        deadline: deadline(context.observed.now),
        serving_since: None,
    };
    swap(context, plan, record)
}

/// Put a record in the present one's place. A record of a higher epoch pushes the present one into history.
pub(super) fn swap(context: &Context<'_>, plan: &mut Plan, record: ReignRecord) -> ReignRecord {
    let observed = context.observed;
    let serving = record.phase == ReignPhase::Serving;
    let (expected, ever_served, mut history) = match &observed.reign {
        None => (None, false, Vec::new()),
        Some(facts) => {
            let mut history = facts.spec.history.clone();
            if record.epoch > facts.spec.current.epoch {
                history.insert(0, past(&facts.spec.current));
            }
            (Some(facts.resource_version.clone()), facts.spec.ever_served, history)
        }
    };
    history.truncate(HISTORY);
    let spec = StoreReignSpec {
        store_uid: observed.store.uid.clone(),
        ever_served: ever_served || serving,
        current: record.clone(),
        history,
    };
    plan.reign_write = Some(ReignWrite { expected, spec });
    record
}

pub(super) fn deadline(now: Timestamp) -> Option<Time> {
    now.checked_add(PHASE_DEADLINE).ok().map(Time)
}

fn past(record: &ReignRecord) -> PastReign {
    let name = record.members.iter().find(|member| member.data_uuid == record.primary);
    PastReign {
        epoch: record.epoch,
        reign_id: record.reign_id.clone(),
        phase: record.phase,
        cause: record.cause,
        primary: record.primary.clone(),
        primary_name: name.map(|member| member.name.clone()).unwrap_or_default(),
        begun_at: record.begun_at.clone(),
        serving_since: record.serving_since.clone(),
    }
}
