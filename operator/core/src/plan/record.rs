//! Reading and writing the decision record: which reigns may have served, and what a new one looks like.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use parovoz_api::{
    EarlierReceipt, Evidence, FailoverReceipt, Mode, PastReign, ReignCause, ReignMember, ReignPhase, ReignRecord,
    StoreReignSpec, WaitingReason,
};

use super::{Context, Plan, ReignWrite};
use crate::names::MAX_MEMBERS;
use crate::observed::Report;
use crate::quorum::OldReign;

/// How many past reigns the record keeps though nobody has to ask for them any more.
const HISTORY: usize = 20;
/// How many it keeps at most.
const LONGEST_HISTORY: usize = 256;
/// How long members are asked before the old primary is taken back if it answers.
pub(crate) const SEALING_DEADLINE: Duration = Duration::from_secs(20);
/// How long a new primary may take before it is worth a look.
pub(crate) const PROMOTING_DEADLINE: Duration = Duration::from_secs(60);
/// Pause after the first failed attempt; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// How often it doubles at most: 16 s.
const DOUBLINGS: u32 = 6;

/// An earlier reign that may have acknowledged writes, and the process that led it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// The reign.
    pub reign: OldReign,
    /// process_id of its primary, empty if nobody was told to lead.
    pub process: String,
    /// True if it synced what it acknowledged.
    pub synced: bool,
}

/// Every reign that may have acknowledged writes and that no later Serving one stands for, newest first: those that
/// reached Promoting, back to the last that was Serving. The present one is among them only if asked for.
#[must_use]
pub fn may_have_served(spec: &StoreReignSpec, with_current: bool) -> Vec<Past> {
    let current = with_current.then(|| past(&spec.current));
    let mut found = Vec::new();
    for past in current.iter().chain(&spec.history) {
        match past.phase {
            ReignPhase::Forming | ReignPhase::Sealing => {}
            ReignPhase::Promoting => {
                if !parovoz_mutant::on("promoting-reigns-forgotten") {
                    found.push(old(past));
                }
            }
            ReignPhase::Serving => {
                found.push(old(past));
                break;
            }
        }
    }
    found
}

/// Reigns that waited for replicas, below one that waits for none and served since. None of them can acknowledge anything any
/// more, and what they did is in that one; but a candidate that never followed it may not even have that.
#[must_use]
pub fn earlier_quorum(spec: &StoreReignSpec, with_current: bool) -> Vec<OldReign> {
    let current = with_current.then(|| past(&spec.current));
    let all: Vec<&PastReign> = current.iter().chain(&spec.history).collect();
    let Some(served) = all.iter().position(|past| past.phase == ReignPhase::Serving) else { return Vec::new() };
    if all[served].min_sync_replicas > 0 {
        return Vec::new();
    }
    let last = all.iter().position(|past| is_quorum(past)).map_or(all.len(), |index| index + 1);
    let waited = all.into_iter().take(last).skip(served).filter(|past| past.min_sync_replicas > 0);
    let told = waited.filter(|past| matches!(past.phase, ReignPhase::Promoting | ReignPhase::Serving));
    told.map(|past| old(past).reign).collect()
}

fn is_quorum(past: &PastReign) -> bool {
    past.phase == ReignPhase::Serving && past.min_sync_replicas > 0
}

pub(crate) fn old(past: &PastReign) -> Past {
    Past {
        reign: OldReign {
            epoch: u64::try_from(past.epoch).unwrap_or(0),
            id: past.reign_id.clone(),
            primary: past.primary.clone(),
            members: past.members.clone(),
            w: past.min_sync_replicas.unsigned_abs(),
            lease: Duration::from_millis(u64::try_from(past.lease_duration_ms).unwrap_or(0)),
        },
        process: past.primary_process.clone(),
        synced: past.synced,
    }
}

/// The reign that was Serving last, if it is not the present one.
pub(crate) fn last_served(spec: &StoreReignSpec) -> Option<&PastReign> {
    spec.history.iter().find(|past| past.phase == ReignPhase::Serving)
}

/// Every member that answers now, by the identity on its volume.
pub(crate) fn answering<'a>(context: &Context<'a>) -> BTreeMap<&'a str, (u32, &'a Report)> {
    let mut found = BTreeMap::new();
    for pod in &context.observed.pods {
        if let Some(report) = context.observed.answer(pod.ordinal) {
            found.entry(report.data_uuid.as_str()).or_insert((pod.ordinal, report));
        }
    }
    found
}

/// An epoch that nobody can have used: above the record's and above all that any member ever said.
pub(crate) fn next_epoch(context: &Context<'_>) -> i64 {
    let recorded = context.observed.own_reign().map_or(0, |reign| reign.spec.current.epoch);
    let reported = context.observed.contacts.values().filter_map(|contact| contact.report.as_ref());
    let highest = reported.map(Report::highest_epoch).max().unwrap_or(0);
    recorded.max(i64::try_from(highest).unwrap_or(i64::MAX - 1)) + 1
}

/// The members of a new reign with these ordinals: as they answer now, else as the last reign knew them. One that was
/// never heard joins by a later reign.
pub(crate) fn members(context: &Context<'_>, ordinals: &BTreeSet<u32>) -> Vec<ReignMember> {
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
pub(crate) fn evidence(context: &Context<'_>, summary: String) -> Evidence {
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
        summary: summary.chars().take(1000).collect(),
    }
}

/// What is particular about a new reign.
pub(crate) struct NewReign {
    pub phase: ReignPhase,
    pub cause: ReignCause,
    /// data_uuid of the member that is to lead; empty if the votes decide.
    pub primary: String,
    pub members: Vec<ReignMember>,
    pub mode: Mode,
    pub min_sync_replicas: i32,
    pub lease_duration_ms: i64,
    pub summary: String,
    pub suspected_at: Option<MicroTime>,
    pub operation: String,
    pub accept_loss: bool,
    pub attested: bool,
}

impl NewReign {
    /// As the specification asks for it, with these members.
    pub fn specified(context: &Context<'_>, cause: ReignCause, members: Vec<ReignMember>, summary: String) -> Self {
        let replication = &context.observed.store.spec.replication;
        Self {
            phase: ReignPhase::Sealing,
            cause,
            primary: String::new(),
            members,
            mode: replication.mode,
            min_sync_replicas: replication.min_sync_replicas,
            lease_duration_ms: context.settings.failover.lease_duration_ms,
            summary,
            suspected_at: None,
            operation: String::new(),
            accept_loss: false,
            attested: false,
        }
    }

    /// With members and settings of another one. What a person accepted or attested was about the reigns before that one:
    /// it goes on only while that one told nobody to lead.
    pub fn like(record: &ReignRecord, cause: ReignCause, summary: String) -> Self {
        let untold = record.phase == ReignPhase::Sealing;
        let accept_loss = record.accept_loss && untold;
        Self {
            phase: ReignPhase::Sealing,
            cause,
            primary: if cause.planned() || accept_loss { record.primary.clone() } else { String::new() },
            members: record.members.clone(),
            mode: record.mode,
            min_sync_replicas: record.min_sync_replicas,
            lease_duration_ms: record.lease_duration_ms,
            summary,
            suspected_at: record.suspected_at.clone(),
            operation: record.operation.clone(),
            accept_loss,
            attested: record.attested && untold,
        }
    }
}

/// Begin a reign of the next epoch. None, with the reason, if the record has no room for one more that would have to be
/// asked for.
pub(crate) fn begin(context: &Context<'_>, plan: &mut Plan, new: NewReign) -> Option<ReignRecord> {
    if context.observed.own_reign().is_some_and(|reign| kept(&reign.spec.history) >= LONGEST_HISTORY - 1) {
        let message = format!("{LONGEST_HISTORY} reigns were begun and none was brought to serve: a person must look");
        plan.wait(
            WaitingReason::CandidateMissing,
            message,
            context.kubectl("get storereign -o yaml", &context.observed.store.name),
        );
        return None;
    }
    let now = context.observed.now;
    let record = ReignRecord {
        epoch: next_epoch(context),
        reign_id: context.observed.fresh_id.clone(),
        phase: new.phase,
        cause: new.cause,
        primary: new.primary,
        members: new.members,
        mode: new.mode,
        min_sync_replicas: new.min_sync_replicas,
        lease_duration_ms: new.lease_duration_ms,
        evidence: evidence(context, new.summary),
        primary_process: String::new(),
        synced: false,
        positions: String::new(),
        operation: new.operation,
        accept_loss: new.accept_loss,
        attested: new.attested,
        suspected_at: new.suspected_at,
        begun_at: MicroTime(now),
        deadline: deadline(now, SEALING_DEADLINE),
        promoting_since: None,
        serving_since: None,
    };
    Some(swap(context, plan, record))
}

/// When a phase that begins now should be over.
pub(crate) fn deadline(now: Timestamp, after: Duration) -> Option<Time> {
    now.checked_add(SignedDuration::try_from(after).ok()?).ok().map(Time)
}

/// How many past reigns must be kept: all back to the last that was Serving.
fn kept(history: &[PastReign]) -> usize {
    history.iter().position(|past| past.phase == ReignPhase::Serving).map_or(history.len(), |index| index + 1)
}

/// What the record says of the last failover.
#[derive(Clone, Debug, Default)]
pub(crate) struct Receipts {
    pub last: Option<FailoverReceipt>,
    pub forks: BTreeMap<String, String>,
    pub before: Option<EarlierReceipt>,
}

impl Receipts {
    /// As they are.
    pub fn of(spec: &StoreReignSpec) -> Self {
        Self { last: spec.last_failover.clone(), forks: spec.forks.clone(), before: spec.before_attempt.clone() }
    }
}

/// Put a record in the present one's place. A record of a higher epoch pushes the present one into history.
pub(crate) fn swap(context: &Context<'_>, plan: &mut Plan, record: ReignRecord) -> ReignRecord {
    let receipts = context.observed.own_reign().map(|reign| Receipts::of(&reign.spec)).unwrap_or_default();
    swap_with(context, plan, record, receipts)
}

/// The same, with other receipts.
pub(crate) fn swap_with(
    context: &Context<'_>,
    plan: &mut Plan,
    record: ReignRecord,
    receipts: Receipts,
) -> ReignRecord {
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
    // What was acknowledged by a quorum is asked for as long as it is known.
    let quorum = history.iter().position(is_quorum).map_or(0, |index| index + 1).min(LONGEST_HISTORY);
    history.truncate(kept(&history).max(HISTORY).max(quorum));
    let spec = StoreReignSpec {
        store_uid: observed.store.uid.clone(),
        ever_served: ever_served || serving,
        current: record.clone(),
        history,
        last_failover: receipts.last,
        forks: receipts.forks,
        before_attempt: receipts.before,
    };
    plan.reign_write = Some(ReignWrite { expected, spec });
    plan.urgent = true;
    record
}

pub(crate) fn past(record: &ReignRecord) -> PastReign {
    let name = record.members.iter().find(|member| member.data_uuid == record.primary);
    PastReign {
        epoch: record.epoch,
        reign_id: record.reign_id.clone(),
        phase: record.phase,
        cause: record.cause,
        primary: record.primary.clone(),
        primary_name: name.map(|member| member.name.clone()).unwrap_or_default(),
        primary_process: record.primary_process.clone(),
        synced: record.synced,
        members: record.members.iter().map(|member| member.data_uuid.clone()).collect(),
        mode: record.mode,
        min_sync_replicas: record.min_sync_replicas,
        lease_duration_ms: record.lease_duration_ms,
        operation: record.operation.clone(),
        begun_at: record.begun_at.clone(),
        serving_since: record.serving_since.clone(),
    }
}

/// Time between two moments of the record, never negative.
pub(crate) fn between(earlier: &MicroTime, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier.0)).unwrap_or_default()
}

/// For how long something lasts that the record says began then. A moment to come was written by another operator, whose
/// clock is ahead: nothing may wait until this one has caught up, so it counts as long ago.
pub(crate) fn elapsed(began: &MicroTime, now: Timestamp) -> Duration {
    if began.0 > now { Duration::MAX } else { between(began, now) }
}

/// True once the present attempt has lasted long enough for the next one to begin: the pause doubles with every reign
/// that was begun and never served.
pub(crate) fn may_try_again(context: &Context<'_>, spec: &StoreReignSpec) -> bool {
    let failed = spec.history.iter().take_while(|past| past.phase != ReignPhase::Serving).count();
    let doublings = u32::try_from(failed).unwrap_or(u32::MAX).min(DOUBLINGS);
    elapsed(&spec.current.begun_at, context.observed.now) >= FIRST_PAUSE * 2_u32.pow(doublings)
}

/// When the primary changed without having been asked to, newest first, as far as the record remembers.
pub(crate) fn failovers(spec: &StoreReignSpec) -> Vec<MicroTime> {
    let current = past(&spec.current);
    let served = std::iter::once(&current).chain(&spec.history).filter(|past| past.phase == ReignPhase::Serving);
    let served: Vec<&PastReign> = served.collect();
    let changed = |pair: &&[&PastReign]| pair[0].primary != pair[1].primary && unplanned(pair[0].cause);
    served.windows(2).filter(changed).map(|pair| pair[0].begun_at.clone()).collect()
}

fn unplanned(cause: ReignCause) -> bool {
    !cause.planned() && !matches!(cause, ReignCause::First | ReignCause::PromotedByPerson)
}

/// Whether another member may take the primary's place by itself now, and if not, why not.
pub(crate) fn change_allowed(context: &Context<'_>, spec: &StoreReignSpec) -> Result<(), (WaitingReason, String)> {
    let failover = &context.settings.failover;
    if !failover.enabled {
        let message = "spec.failover.enabled is false: no member takes the primary's place by itself".to_owned();
        return Err((WaitingReason::FailoverDisabled, message));
    }
    let times = failovers(spec);
    let age = |time: &MicroTime| between(time, context.observed.now);
    let lately = times.iter().filter(|time| age(time) < Duration::from_secs(3600)).count();
    if lately >= failover.max_per_hour {
        let message =
            format!("the primary changed {lately} times within an hour: a person must decide about the next time");
        return Err((WaitingReason::FailoverBudgetSpent, message));
    }
    let left = times.first().and_then(|time| failover.cooldown.checked_sub(elapsed(time, context.observed.now)));
    if let Some(left) = left.filter(|left| !left.is_zero()) {
        let message = format!("the primary changed lately: no other change for {} s", left.as_secs() + 1);
        return Err((WaitingReason::Cooldown, message));
    }
    Ok(())
}
