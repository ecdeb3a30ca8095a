//! Reigns that are begun on purpose, with a primary that serves: members and settings change, another member is to lead,
//! or the primary is to go on without a quorum. Writes are frozen, not refused; only the primary seals, and the streams
//! of the others go on until they follow the new reign.

use std::collections::BTreeSet;
use std::time::Duration;

use parovoz_api::{
    MemberPhase, Mode, OnQuorumLoss, ReignCause, ReignMember, ReignPhase, ReignRecord, StoreReignSpec, WaitingReason,
};

use super::operations;
use super::orders::known;
use super::procedure::{Case, member_name, promote, pulled, seal_one};
use super::record::{NewReign, SEALING_DEADLINE, answering, begin, elapsed, last_served, may_try_again, members};
use super::suspect::hangs;
use super::{Context, EventReason, OrderKind, Plan, Step, WHILE_REIGN_BEGINS, members as wanted};
use crate::observed::{PrefixReport, Report};
use crate::quorum::Vote;

/// How long writes are held at most; the member that holds them lets go by itself then.
const FREEZE: Duration = Duration::from_secs(2);
/// A reign is begun only while so much of the freeze is left.
const FREEZE_LEFT: Duration = Duration::from_millis(1_200);
/// How long the next primary may take to reach the last one's position; then the last one leads on.
const CATCH_UP: Duration = Duration::from_millis(1_500);
/// A member that is further behind than this will not catch up within a freeze.
pub(super) const NEARLY_LEVEL: u64 = 20_000;
/// Pause between two attempts to change the primary on purpose.
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(30);
/// A quorum is lost once a write waits for so long, or all missing replicas are silent for so long.
const QUORUM_LOST: Duration = Duration::from_secs(3);

/// What a planned reign should be like.
struct Wanted {
    cause: ReignCause,
    /// data_uuid of who is to lead.
    primary: String,
    members: Vec<ReignMember>,
    mode: Mode,
    min_sync_replicas: i32,
    lease_duration_ms: i64,
    operation: String,
    note: String,
}

/// Begin a planned reign if one is wanted and may be begun.
pub(super) fn serving(
    context: &Context<'_>,
    plan: &mut Plan,
    spec: &StoreReignSpec,
    (ordinal, report): (u32, &Report),
) -> Option<ReignRecord> {
    if !report.serves_all() {
        return None;
    }
    if let Some(record) = degrade(context, plan, spec, (ordinal, report)) {
        return Some(record);
    }
    let wanted = change(context, plan, spec, ordinal).or_else(|| switch(context, plan, spec, (ordinal, report)))?;
    if let Some(waits) = too_few_level(context, &wanted) {
        let message = format!("{} waits until {waits} is complete and streams", wanted.note);
        plan.wait(WaitingReason::ReplicasMustStream, message, context.kubectl("describe pod", &waits));
        return None;
    }
    plan.within(WHILE_REIGN_BEGINS);
    let min_sync_replicas = wanted.min_sync_replicas;
    if min_sync_replicas != spec.current.min_sync_replicas && parovoz_mutant::on("w-changed-without-reign") {
        return Some(super::record::swap(context, plan, ReignRecord { min_sync_replicas, ..spec.current.clone() }));
    }
    if report.frozen < FREEZE_LEFT {
        let kind = OrderKind::Freeze { duration: FREEZE };
        plan.orders.push(super::orders::order(context, ordinal, report, &known(&spec.current), kind));
        plan.step = Some(step(wanted.cause));
        plan.urgent = true;
        return None;
    }
    start(context, plan, spec, wanted, (ordinal, report))
}

fn step(cause: ReignCause) -> Step {
    if cause == ReignCause::Switchover { Step::Lead } else { Step::ChangeMembers }
}

fn start(
    context: &Context<'_>,
    plan: &mut Plan,
    spec: &StoreReignSpec,
    wanted: Wanted,
    old: (u32, &Report),
) -> Option<ReignRecord> {
    let reason = match wanted.cause {
        ReignCause::Switchover => EventReason::Switchover,
        ReignCause::MembersChanged => EventReason::MembersChanged,
        ReignCause::Degraded => EventReason::ServingWithoutQuorum,
        _ => EventReason::SettingsChanged,
    };
    plan.event(wanted.cause == ReignCause::Degraded, reason, wanted.note.clone());
    plan.step = Some(step(wanted.cause));
    let new = NewReign {
        phase: ReignPhase::Sealing,
        cause: wanted.cause,
        primary: wanted.primary,
        members: wanted.members,
        mode: wanted.mode,
        min_sync_replicas: wanted.min_sync_replicas,
        lease_duration_ms: wanted.lease_duration_ms,
        summary: wanted.note,
        suspected_at: None,
        operation: wanted.operation,
        accept_loss: false,
        attested: false,
    };
    let record = begin(context, plan, new)?;
    let case = Case::unasked(spec);
    seal_one(context, plan, &record, &case, old);
    Some(record)
}

/// Other members, another mode, W or lease than the present reign has.
fn change(context: &Context<'_>, plan: &mut Plan, spec: &StoreReignSpec, primary: u32) -> Option<Wanted> {
    let current = &spec.current;
    let (listed, _) = wanted::listed(context.observed);
    let mut ordinals: BTreeSet<u32> = listed.clone();
    match listed.iter().rev().copied().find(|ordinal| !context.target.contains(ordinal)) {
        Some(surplus) => {
            let stay: Vec<u32> = listed.iter().copied().filter(|other| context.target.contains(other)).collect();
            match not_streaming(context, &stay, primary) {
                Some(waits) => {
                    let message =
                        format!("removing {} waits until {waits} is complete and streams", context.name(surplus));
                    plan.wait(WaitingReason::ReplicasMustStream, message, context.kubectl("describe pod", &waits));
                }
                None => drop(ordinals.remove(&surplus)),
            }
        }
        None => ordinals.extend(context.target.iter().copied()),
    }
    let members = settled(context, current, &ordinals, |uuid| streams(context, uuid));
    let replication = &context.observed.store.spec.replication;
    let alone = current.mode == Mode::Quorum && current.min_sync_replicas == 0;
    let level = members.iter().filter(|member| streams(context, &member.data_uuid)).count();
    let enough = level >= usize::try_from(replication.min_sync_replicas).unwrap_or(0);
    let stay_alone = alone && replication.mode == Mode::Quorum && !enough;
    let min_sync_replicas = if stay_alone { 0 } else { replication.min_sync_replicas };
    let lease_duration_ms = context.settings.failover.lease_duration_ms;
    let identities =
        |members: &[ReignMember]| members.iter().map(|member| member.data_uuid.clone()).collect::<BTreeSet<_>>();
    let members_differ = identities(&members) != identities(&current.members);
    let settings_differ = replication.mode != current.mode
        || min_sync_replicas != current.min_sync_replicas
        || lease_duration_ms != current.lease_duration_ms;
    let cause = match (members_differ, settings_differ) {
        (true, _) => ReignCause::MembersChanged,
        (false, true) if alone && replication.mode == Mode::Quorum && min_sync_replicas > 0 => {
            ReignCause::QuorumRestored
        }
        (false, true) => ReignCause::SettingsChanged,
        (false, false) => return None,
    };
    let names: Vec<_> = members.iter().map(|member| member.name.clone()).collect();
    let note = format!(
        "{} leads {} on, {:?} with {min_sync_replicas} synchronous replicas",
        context.name(primary),
        names.join(", "),
        replication.mode
    );
    Some(Wanted {
        cause,
        primary: current.primary.clone(),
        members,
        mode: replication.mode,
        min_sync_replicas,
        lease_duration_ms,
        operation: String::new(),
        note,
    })
}

/// The members with these ordinals as the next reign would list them: a newcomer belongs to it once it streams, and
/// until then whoever was there before.
fn settled(
    context: &Context<'_>,
    current: &ReignRecord,
    ordinals: &BTreeSet<u32>,
    is_ready: impl Fn(&str) -> bool,
) -> Vec<ReignMember> {
    let listed = |member: &ReignMember| current.members.iter().any(|other| other.data_uuid == member.data_uuid);
    let answers = members(context, ordinals);
    let ready = answers.into_iter().map(|member| {
        if listed(&member) || is_ready(&member.data_uuid) {
            return Some(member);
        }
        current.members.iter().find(|other| other.name == member.name).cloned()
    });
    ready.flatten().collect()
}

/// True if the member of this identity follows closely, or is the primary.
fn streams(context: &Context<'_>, data_uuid: &str) -> bool {
    answering(context).get(data_uuid).is_some_and(|(_, report)| report.streams())
}

/// True if a member has just what a primary has that has not begun, though it may be below its floor: it had more, and will be
/// past it only by the reign's first record.
fn could_join(context: &Context<'_>, data_uuid: &str, primary: &Report) -> bool {
    let Some((_, report)) = answering(context).get(data_uuid).copied() else { return false };
    let follows = report.upstream_connected && report.upstream_data_uuid == primary.data_uuid;
    let copied = matches!(report.phase, MemberPhase::CatchingUp | MemberPhase::Streaming);
    let has = |led: &PrefixReport| {
        report.prefixes.iter().any(|own| own.prefix_uuid == led.prefix_uuid && own.applied == led.applied)
    };
    follows && copied && primary.prefixes.iter().all(has)
}

/// The first of these members, other than the primary, that is not complete and streaming.
fn not_streaming(context: &Context<'_>, ordinals: &[u32], primary: u32) -> Option<String> {
    let streams = |ordinal: u32| context.observed.answer(ordinal).is_some_and(Report::streams);
    let waits = ordinals.iter().copied().find(|ordinal| *ordinal != primary && !streams(*ordinal))?;
    Some(context.name(waits))
}

/// A member that must stream first, if fewer than W others than the next primary do.
fn too_few_level(context: &Context<'_>, wanted: &Wanted) -> Option<String> {
    let others = || wanted.members.iter().filter(|member| member.data_uuid != wanted.primary);
    // The present primary becomes a replica that has everything.
    let leads =
        |uuid: &str| answering(context).get(uuid).is_some_and(|(_, report)| report.phase == MemberPhase::Serving);
    let level = |uuid: &str| streams(context, uuid) || leads(uuid);
    let count = others().filter(|member| level(&member.data_uuid)).count();
    if count >= usize::try_from(wanted.min_sync_replicas).unwrap_or(0) {
        return None;
    }
    others().find(|member| !level(&member.data_uuid)).map(|member| member.name.clone())
}

/// Another member is to lead: a person asked, or the primary's pod or node is about to go.
fn switch(
    context: &Context<'_>,
    plan: &mut Plan,
    spec: &StoreReignSpec,
    (ordinal, report): (u32, &Report),
) -> Option<Wanted> {
    let current = &spec.current;
    let asked = operations::switchover(context, spec);
    let pod = context.observed.pod(ordinal)?;
    let stale = wanted::stale(context, pod);
    let why = match &asked {
        Some(operation) => format!("operation {}", operation.name),
        None if pod.deleting => format!("{} is being deleted", pod.name),
        None if !keeps_volume(context, ordinal) => format!("the volume claim of {} is being deleted or gone", pod.name),
        None if pod.cordoned => format!("the node of {} takes no new pods", pod.name),
        None if stale && wanted::others_updated(context, ordinal) => format!("{} runs with old settings", pod.name),
        None => return None,
    };
    let names = asked.as_ref().and_then(|operation| operation.spec.member.clone());
    let eligible = |member: &&ReignMember| {
        let chosen = names.as_ref().is_none_or(|name| *name == member.name);
        let ordinal = context.ordinal(&member.name);
        let pod = ordinal.and_then(|ordinal| context.observed.pod(ordinal));
        let stays = pod.is_some_and(|pod| !pod.deleting && (!pod.cordoned || names.is_some()))
            && ordinal.is_some_and(|ordinal| keeps_volume(context, ordinal));
        // An update that moved the primary to a pod with old settings would move it once more.
        let updated = asked.is_some() || pod.is_some_and(|pod| !wanted::stale(context, pod));
        member.data_uuid != current.primary && chosen && stays && (updated || !stale)
    };
    let behind = |uuid: &str| {
        let progress = report.followers.iter().find(|follower| follower.data_uuid == uuid && follower.connected);
        progress.map(|progress| progress.lag_sequences)
    };
    let level = |member: &&ReignMember| {
        streams(context, &member.data_uuid) && behind(&member.data_uuid).is_some_and(|lag| lag <= NEARLY_LEVEL)
    };
    let candidate =
        current.members.iter().filter(eligible).filter(level).min_by_key(|member| behind(&member.data_uuid));
    let Some(candidate) = candidate else {
        let message = format!("another member should lead ({why}), and none streams that may: it waits");
        plan.wait(
            WaitingReason::CandidateBehind,
            message,
            context.kubectl("get rstore -o yaml", &context.observed.store.name),
        );
        return None;
    };
    let recent = elapsed(&current.begun_at, context.observed.now) < BETWEEN_ATTEMPTS;
    let repeated = asked.is_none_or(|operation| operation.uid == current.operation);
    if recent && repeated && !pod.deleting {
        let message = format!("another member should lead ({why}): the last reign began a moment ago, so it waits");
        plan.wait(WaitingReason::CandidateBehind, message, None);
        return None;
    }
    Some(Wanted {
        cause: ReignCause::Switchover,
        primary: candidate.data_uuid.clone(),
        members: current.members.clone(),
        mode: current.mode,
        min_sync_replicas: current.min_sync_replicas,
        lease_duration_ms: current.lease_duration_ms,
        operation: asked.map(|operation| operation.uid.clone()).unwrap_or_default(),
        note: format!("{} leads after {}: {why}", candidate.name, context.name(ordinal)),
    })
}

/// The primary leads and waits for replicas of which some will not come back, since their volumes are lost: once those
/// that take their place have copied enough, the next reign lists them.
pub(super) fn rejoin(
    context: &Context<'_>,
    plan: &mut Plan,
    spec: &StoreReignSpec,
    primary: (u32, &Report),
) -> Option<ReignRecord> {
    if !may_try_again(context, spec) {
        return None;
    }
    let wanted = change(context, plan, spec, primary.0)?;
    if wanted.cause != ReignCause::MembersChanged || too_few_level(context, &wanted).is_some() {
        return None;
    }
    start(context, plan, spec, wanted, primary)
}

/// A listed member lost its volume while the reign begins, and the reign may need just this one: the next reign lists who
/// streams in its place.
pub(super) fn replace(
    context: &Context<'_>,
    plan: &mut Plan,
    spec: &StoreReignSpec,
    (ordinal, report): (u32, &Report),
) -> Option<ReignRecord> {
    let current = &spec.current;
    let ordinals = current.members.iter().filter_map(|member| context.ordinal(&member.name)).collect();
    let ready = |uuid: &str| streams(context, uuid) || could_join(context, uuid, report);
    let members = settled(context, current, &ordinals, ready);
    let listed = |member: &ReignMember| current.members.iter().any(|other| other.data_uuid == member.data_uuid);
    if members.iter().all(listed) || !super::record::may_try_again(context, spec) {
        return None;
    }
    let names: Vec<_> = members.iter().filter(|member| !listed(member)).map(|member| member.name.clone()).collect();
    let note = format!("{} came back with new volumes while epoch {} began", names.join(", "), current.epoch);
    plan.event(false, EventReason::MembersChanged, note.clone());
    let new = NewReign { members, ..NewReign::like(current, ReignCause::MembersChanged, note) };
    let record = begin(context, plan, NewReign { primary: current.primary.clone(), ..new })?;
    plan.step = Some(Step::ChangeMembers);
    plan.within(WHILE_REIGN_BEGINS);
    let case = Case::unasked(spec);
    seal_one(context, plan, &record, &case, (ordinal, report));
    Some(record)
}

/// True if a member's volume claim is there to stay.
pub(super) fn keeps_volume(context: &Context<'_>, ordinal: u32) -> bool {
    context.observed.claim(ordinal).is_some_and(|claim| !claim.deleting)
}

/// A quorum that is lost is told of; where the store may go on without one, a reign without one is begun.
pub(super) fn degrade(
    context: &Context<'_>,
    plan: &mut Plan,
    spec: &StoreReignSpec,
    (ordinal, report): (u32, &Report),
) -> Option<ReignRecord> {
    let current = &spec.current;
    let w = usize::try_from(current.min_sync_replicas).unwrap_or(0);
    let others = || current.members.iter().filter(|member| member.data_uuid != current.primary);
    let connected = others().filter(|member| streams(context, &member.data_uuid)).count();
    if w == 0 || connected >= w || report.can_acknowledge {
        return None;
    }
    let missing: Vec<_> = others().filter(|member| !streams(context, &member.data_uuid)).collect();
    let silent = |member: &&ReignMember| context.silence_of(&member.data_uuid, &member.name) >= QUORUM_LOST;
    let lost = report.oldest_wait >= QUORUM_LOST || missing.iter().all(silent);
    let names: Vec<_> = missing.iter().map(|member| member.name.clone()).collect();
    let message = format!(
        "{} has {connected} of {w} replicas that it must wait for; missing: {}",
        context.name(ordinal),
        names.join(", ")
    );
    let first = names.first().cloned().unwrap_or_default();
    plan.wait(WaitingReason::QuorumLost, message.clone(), context.kubectl("describe pod", &first));
    let replication = &context.observed.store.spec.replication;
    if replication.on_quorum_loss != OnQuorumLoss::Degrade || !lost {
        return None;
    }
    let wanted = Wanted {
        cause: ReignCause::Degraded,
        primary: current.primary.clone(),
        members: current.members.clone(),
        mode: current.mode,
        min_sync_replicas: 0,
        lease_duration_ms: context.settings.failover.lease_duration_ms,
        operation: String::new(),
        note: format!("{message}: it acknowledges without them until they are back"),
    };
    start(context, plan, spec, wanted, (ordinal, report))
}

/// Sealing of a planned reign. None if the old primary is out after all: then everybody is asked.
pub(super) fn sealing(
    context: &Context<'_>,
    plan: &mut Plan,
    current: &ReignRecord,
    case: &Case,
) -> Option<ReignRecord> {
    let old = &case.olds.first()?.reign.primary;
    let answering = answering(context);
    let (old_ordinal, old_report) = answering.get(old.as_str()).copied()?;
    if !case.ballots.contains_key(old) {
        let late = elapsed(&current.begun_at, context.observed.now) > SEALING_DEADLINE;
        if old_report.phase == MemberPhase::Parked || hangs(old_report) || late {
            return None;
        }
        let name = context.name(old_ordinal);
        let message = format!("{name} was asked to seal for epoch {} and has not yet", current.epoch);
        plan.wait(WaitingReason::MemberMustAnswer, message, context.kubectl("logs", &name));
        seal_one(context, plan, current, case, (old_ordinal, old_report));
        return Some(current.clone());
    }
    // The old primary's own votes decide; if they do not, the others are asked.
    let decision = case.decide(false).ok()?;
    if current.cause == ReignCause::Degraded && !announced(context) {
        let message = "the status must say first that writes will be acknowledged without any replica".to_owned();
        plan.wait(WaitingReason::QuorumLost, message, None);
        return Some(current.clone());
    }
    let late = elapsed(&current.begun_at, context.observed.now) > CATCH_UP;
    let next = answering.get(current.primary.as_str()).copied().filter(|_| current.primary != *old);
    if let Some((ordinal, report)) = next
        && (!late || case.ballots.contains_key(&current.primary))
    {
        if case.ballots.contains_key(&current.primary) {
            if pulled(context, plan, current, case, &decision, &current.primary) {
                plan.step = Some(Step::Lead);
                return Some(promote(context, plan, current, (ordinal, report), &decision, false));
            }
            if !late {
                return Some(current.clone());
            }
        } else {
            let has = |(uuid, decided): (&String, &crate::quorum::Decided)| {
                report.ballot().is_some_and(|ballot| ballot.vote(uuid) == Vote::Known(decided.position))
            };
            if decision.iter().all(has) {
                seal_one(context, plan, current, case, (ordinal, report));
            }
            return Some(current.clone());
        }
    }
    let goes = context.observed.pod(old_ordinal).is_some_and(|pod| pod.deleting) || !keeps_volume(context, old_ordinal);
    if current.primary != *old && goes {
        // It would have to give its place up at once: the other fetches what it lacks.
        return None;
    }
    if current.primary != *old {
        let note = format!("{} leads on: the other member did not catch up in time", context.name(old_ordinal));
        plan.event(true, EventReason::SwitchoverGivenUp, note);
    }
    if !pulled(context, plan, current, case, &decision, old) {
        return Some(current.clone());
    }
    plan.step = Some(Step::Lead);
    Some(promote(context, plan, current, (old_ordinal, old_report), &decision, false))
}

/// True once the status that people and alerts see says that the quorum is given up.
fn announced(context: &Context<'_>) -> bool {
    use parovoz_api::{ConditionReason, ConditionStatus, ConditionType};
    let status = context.observed.store.status.as_ref();
    status.is_some_and(|status| {
        status.conditions.iter().any(|condition| {
            condition.type_ == ConditionType::Degraded
                && condition.status == ConditionStatus::True
                && condition.reason == ConditionReason::ServingWithoutQuorum
        })
    })
}

/// A switchover that ended with the old primary leading again did not do what was asked.
pub(super) fn changed_primary(spec: &StoreReignSpec) -> bool {
    last_served(spec).is_none_or(|past| past.primary != spec.current.primary)
}

/// For people: who leads.
pub(super) fn leader(spec: &StoreReignSpec) -> String {
    member_name(spec, &spec.current.primary)
}
