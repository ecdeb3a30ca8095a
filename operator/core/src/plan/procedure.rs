//! The one procedure of a new reign: Sealing, then Promoting, then Serving. It keeps nothing between passes: the record,
//! the members' reports, the pods and the Lease say all that it needs, so any operator process carries on at any step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use parovoz_api::{Durability, ReignCause, ReignPhase, ReignRecord, StoreReignSpec, WaitingReason};

use super::orders::{PrefixPosition, SealEvidence, endpoint, follow, known, order};
use super::record::{
    self, NewReign, PROMOTING_DEADLINE, Past, SEALING_DEADLINE, answering, begin, change_allowed, deadline, elapsed,
    evidence, may_have_served, may_try_again, swap_with,
};
use super::suspect::hangs;
use super::{Context, EventReason, LeaseWrite, OrderKind, Plan, Step, WHILE_REIGN_BEGINS, first, planned};
use crate::observed::{ReignRef, Report};
use crate::quorum::{self, Ballots, Decided, Decision, Proof, Undecided, Vote};
use crate::receipt;

/// A candidate that is silent for this long while it is promoted has failed.
const CANDIDATE_SILENT: Duration = Duration::from_millis(1_500);

/// What is known in the middle of a procedure.
pub(crate) struct Case {
    /// Reigns that may have acknowledged something, newest first.
    pub olds: Vec<Past>,
    /// What is proven of the primary of each, in the same order.
    pub proofs: Vec<Proof>,
    /// Reigns before those that waited for replicas, where the last that served waits for none.
    pub earlier: Vec<quorum::OldReign>,
    /// What the members say that are sealed for the very reign to come.
    pub ballots: Ballots,
}

impl Case {
    /// What a reign that begins now starts from, before anybody has sealed for it.
    pub(crate) fn unasked(spec: &StoreReignSpec) -> Self {
        let (olds, earlier) = (may_have_served(spec, true), record::earlier_quorum(spec, true));
        Self { olds, earlier, proofs: Vec::new(), ballots: Ballots::new() }
    }

    pub(crate) fn new(context: &Context<'_>, spec: &StoreReignSpec) -> Self {
        let current = &spec.current;
        let olds = may_have_served(spec, false);
        let epoch = u64::try_from(current.epoch).unwrap_or(0);
        let sealed = |report: &Report| {
            report.sealed.as_ref().is_some_and(|sealed| {
                sealed.epoch == epoch && (sealed.reign_id == current.reign_id || parovoz_mutant::on("reign-id-ignored"))
            })
        };
        let ballots = answering(context).into_iter().filter(|(_, (_, report))| sealed(report));
        let ballots = ballots.filter_map(|(uuid, (_, report))| Some((uuid.to_owned(), report.ballot()?))).collect();
        let proofs = olds.iter().map(|past| proof(context, past, current.attested)).collect();
        Self { olds, earlier: record::earlier_quorum(spec, false), proofs, ballots }
    }

    fn reigns(&self) -> Vec<quorum::OldReign> {
        self.olds.iter().map(|past| past.reign.clone()).collect()
    }

    /// The first old reign, newest first, that may still acknowledge something.
    fn unfenced(&self) -> Option<&Past> {
        let open = |(past, proof): &(&Past, &Proof)| !quorum::fence(&past.reign, &self.ballots, **proof);
        self.olds.iter().zip(&self.proofs).find(open).map(|(past, _)| past)
    }

    pub(crate) fn decide(&self, accept_loss: bool) -> Result<Decision, Undecided> {
        if accept_loss {
            return quorum::decide_with_loss(&self.ballots);
        }
        quorum::decide_after(&self.reigns(), &self.earlier, &self.ballots)
    }
}

/// What is proven of the process that led an old reign.
pub(crate) fn proof(context: &Context<'_>, past: &Past, attested: bool) -> Proof {
    Proof {
        ended: attested || ended(context, &past.process),
        lease_unmoved: context.observed.lease.as_ref().and_then(|lease| lease.unmoved(past.reign.epoch)),
    }
}

/// True if the kubelet saw this very process end.
pub(crate) fn ended(context: &Context<'_>, process: &str) -> bool {
    let named = |text: &String| text.contains(process);
    !process.is_empty() && context.observed.pods.iter().any(|pod| pod.ended_processes.iter().any(named))
}

/// Members are asked to seal; once enough have, the decision is made and carried out.
pub(crate) fn sealing(context: &Context<'_>, plan: &mut Plan, spec: &StoreReignSpec) -> Option<ReignRecord> {
    let current = &spec.current;
    plan.within(WHILE_REIGN_BEGINS);
    if outrun(context, current) {
        let summary = "a member promised another reign of this epoch or a later one".to_owned();
        return next(context, plan, spec, current.cause, summary);
    }
    let case = Case::new(context, spec);
    raise_lease(context, plan, current, &case);
    if case.olds.is_empty() || first::nothing_anywhere(context, plan) {
        return first::sealing(context, plan, current);
    }
    if current.cause.planned()
        && let Some(record) = planned::sealing(context, plan, current, &case)
    {
        return Some(record);
    }
    seal_all(context, plan, current, &case);
    if let Some(name) = returning(context, spec, &case) {
        let message =
            format!("{name} was started anew and has not sealed yet: what only it has would be lost without it");
        plan.wait(WaitingReason::MemberMustAnswer, message, context.kubectl("logs", &name));
        return Some(current.clone());
    }
    Some(conclude(context, plan, spec, &case).unwrap_or_else(|| current.clone()))
}

/// The primary that is back, as long as it may yet seal: its own end is a fence, so the others could go on without what only
/// it has.
fn returning(context: &Context<'_>, spec: &StoreReignSpec, case: &Case) -> Option<String> {
    let current = &spec.current;
    let before = &record::last_served(spec)?.primary;
    let (ordinal, report) = answering(context).get(before.as_str()).copied()?;
    let late = elapsed(&current.begun_at, context.observed.now) > SEALING_DEADLINE;
    let sealed = case.ballots.contains_key(before);
    let waits = current.cause == ReignCause::PrimaryRestarted && !sealed && !late && !hangs(report);
    waits.then(|| context.name(ordinal))
}

/// Why only the primary that was started anew may lead, if no other may take its place now.
fn reserved(context: &Context<'_>, spec: &StoreReignSpec) -> Option<(WaitingReason, String)> {
    let restarted = spec.current.cause == ReignCause::PrimaryRestarted && !spec.current.accept_loss;
    restarted.then(|| change_allowed(context, spec).err()).flatten()
}

/// True if a member that answers promised something that forbids it to seal or follow this reign.
pub(crate) fn outrun(context: &Context<'_>, current: &ReignRecord) -> bool {
    let epoch = u64::try_from(current.epoch).unwrap_or(0);
    answering(context).values().any(|(_, report)| {
        let other = |id: &str| id != current.reign_id;
        report.highest_epoch() > epoch
            || report.sealed.as_ref().is_some_and(|sealed| sealed.epoch == epoch && other(&sealed.reign_id))
            || report.reign.as_ref().is_some_and(|reign| reign.epoch == epoch && other(&reign.reign_id))
    })
}

/// The next epoch with the same members and settings, after a pause that grows.
pub(crate) fn next(
    context: &Context<'_>,
    plan: &mut Plan,
    spec: &StoreReignSpec,
    cause: ReignCause,
    summary: String,
) -> Option<ReignRecord> {
    plan.within(WHILE_REIGN_BEGINS);
    if !may_try_again(context, spec) {
        return Some(spec.current.clone());
    }
    let record = begin(context, plan, NewReign::like(&spec.current, cause, summary))?;
    plan.step = Some(Step::Lead);
    Some(record)
}

/// Nobody of an earlier epoch may renew the Lease from here on.
fn raise_lease(context: &Context<'_>, plan: &mut Plan, current: &ReignRecord, case: &Case) {
    let alone = current.min_sync_replicas == 0 || case.olds.iter().any(|past| past.reign.w == 0);
    let Some(lease) = context.observed.lease.as_ref().filter(|_| alone) else { return };
    let epoch = u64::try_from(current.epoch).unwrap_or(0);
    if lease.epoch < epoch {
        plan.lease = Some(LeaseWrite { epoch, resource_version: lease.resource_version.clone() });
        plan.urgent = true;
    }
}

/// Ask everybody to seal who belongs to an old reign or to the new one and has not.
pub(crate) fn seal_all(context: &Context<'_>, plan: &mut Plan, current: &ReignRecord, case: &Case) {
    let mut involved: BTreeSet<&str> = current.members.iter().map(|member| member.data_uuid.as_str()).collect();
    let earlier = case.olds.iter().map(|past| &past.reign).chain(&case.earlier);
    involved.extend(earlier.flat_map(|reign| reign.members.iter().map(String::as_str)));
    // What a stalled primary has and nobody else does would only hold the others up, unless nothing else helps.
    let late = elapsed(&current.begun_at, context.observed.now) > SEALING_DEADLINE;
    if current.cause == ReignCause::PrimaryStalled
        && !late
        && let Some(past) = case.olds.first()
    {
        involved.remove(past.reign.primary.as_str());
    }
    for (uuid, (ordinal, report)) in answering(context) {
        if involved.contains(uuid) && (!report.blank() || parovoz_mutant::on("blank-volume-votes")) {
            seal_one(context, plan, current, case, (ordinal, report));
        }
    }
}

/// Ask one member to seal, with the best evidence there is.
pub(crate) fn seal_one(
    context: &Context<'_>,
    plan: &mut Plan,
    current: &ReignRecord,
    case: &Case,
    (ordinal, report): (u32, &Report),
) {
    let reign = known(current);
    if report.is_sealed(reign.epoch, &reign.reign_id) {
        return;
    }
    let about = |past: &&Past| report.promised(past.reign.epoch, &past.reign.id);
    let Some(past) = case.olds.iter().find(about).or(case.olds.first()) else { return };
    let evidence = if case.ballots.contains_key(&past.reign.primary) || past.reign.primary == report.data_uuid {
        SealEvidence::PrimarySealed
    } else if proof(context, past, current.attested).ended {
        SealEvidence::Dead
    } else {
        SealEvidence::Silent
    };
    let about = ReignRef { epoch: past.reign.epoch, reign_id: past.reign.id.clone() };
    plan.orders.push(order(context, ordinal, report, &reign, OrderKind::Seal { about, evidence }));
}

/// Fence, decide, choose, pull, promote: as far as it goes. None while something waits.
fn conclude(context: &Context<'_>, plan: &mut Plan, spec: &StoreReignSpec, case: &Case) -> Option<ReignRecord> {
    let current = &spec.current;
    if let Some(past) = case.unfenced() {
        let name = member_name(spec, &past.reign.primary);
        let message = if past.reign.w > 0 {
            format!(
                "too few members have sealed: the primary {name} of epoch {} may still acknowledge writes",
                past.reign.epoch
            )
        } else {
            format!(
                "the primary {name} of epoch {} may still take writes: it has not sealed, is not known to have ended, and its Lease has not been still for {:?}",
                past.reign.epoch, past.reign.lease
            )
        };
        let command = context.promote_command(current, true);
        plan.wait(WaitingReason::FenceOpen, message, command);
        return None;
    }
    let decision = match case.decide(current.accept_loss) {
        Ok(decision) => decision,
        Err(undecided) => {
            plan.wait(WaitingReason::VotesMissing, in_words(&undecided), context.promote_command(current, false));
            return None;
        }
    };
    let Some((candidate, (ordinal, report))) = choose(context, spec, case, &decision) else {
        let nobody = || (WaitingReason::CandidateMissing, "no member that has sealed could lead".to_owned());
        let (reason, message) = reserved(context, spec).unwrap_or_else(nobody);
        plan.wait(reason, message, context.promote_command(current, false));
        return None;
    };
    if let Some(message) = too_far_behind(context, current, case, &decision, report) {
        plan.wait(WaitingReason::LagAboveLimit, message, context.promote_command(current, false));
        return None;
    }
    if !pulled(context, plan, current, case, &decision, &candidate) {
        return None;
    }
    plan.step = Some(Step::Lead);
    let cause = in_truth(context, current, case);
    Some(promote(context, plan, &ReignRecord { cause, ..current.clone() }, (ordinal, report), &decision, false))
}

/// Why a reign is promoted: one that was planned and whose old primary was lost before it sealed is a failover.
fn in_truth(context: &Context<'_>, current: &ReignRecord, case: &Case) -> ReignCause {
    let Some(past) = case.olds.first().filter(|past| !case.ballots.contains_key(&past.reign.primary)) else {
        return current.cause;
    };
    match current.cause.planned() {
        false => current.cause,
        true if ended(context, &past.process) => ReignCause::PrimaryDead,
        true if answering(context).contains_key(past.reign.primary.as_str()) => ReignCause::PrimaryStalled,
        true => ReignCause::PrimarySilent,
    }
}

/// Who is to lead, as far as it answers.
fn choose<'a>(
    context: &Context<'a>,
    spec: &StoreReignSpec,
    case: &Case,
    decision: &Decision,
) -> Option<(String, (u32, &'a Report))> {
    let current = &spec.current;
    let before = record::last_served(spec).map(|past| past.primary.clone()).unwrap_or_default();
    let answering = answering(context);
    let mut among: BTreeSet<String> = current.members.iter().map(|member| member.data_uuid.clone()).collect();
    if current.accept_loss {
        among = BTreeSet::from([current.primary.clone()]);
    } else if reserved(context, spec).is_some() {
        // It fetches what it lacks; if it is gone again, it is waited for.
        among = BTreeSet::from([before.clone()]);
    }
    let olds = if current.accept_loss { Vec::new() } else { case.reigns() };
    // Whoever is about to go leads only where nobody else could.
    let stays = |uuid: &String| {
        let pod = answering.get(uuid.as_str()).and_then(|(ordinal, _)| context.observed.pod(*ordinal));
        pod.is_some_and(|pod| !pod.deleting && planned::keeps_volume(context, pod.ordinal))
    };
    let level = |uuid: &String| {
        let cost = quorum::cost(&case.ballots[uuid], decision);
        cost.copies == 0 && cost.records <= planned::NEARLY_LEVEL
    };
    let sealed = among.iter().filter(|uuid| case.ballots.contains_key(*uuid));
    let staying = sealed.filter(|uuid| stays(uuid) && level(uuid)).cloned().collect();
    let best = |among| quorum::candidate(&olds, &case.ballots, decision, among, &before);
    let fit = |uuid: &&str| {
        let report = answering.get(*uuid).map(|(_, report)| *report);
        report.is_some_and(|report| too_far_behind(context, current, case, decision, report).is_none())
    };
    let chosen = best(&staying).filter(fit).or_else(|| best(&among))?;
    Some((chosen.to_owned(), *answering.get(chosen)?))
}

/// Where writes waited for no replica: whether the candidate lacks too much, as far as it knows.
fn too_far_behind(
    context: &Context<'_>,
    current: &ReignRecord,
    case: &Case,
    decision: &Decision,
    report: &Report,
) -> Option<String> {
    // A primary that sealed and does not know its position says nothing of what is missing.
    let open = |past: &&Past| past.reign.w == 0 && !quorum::knows(&case.ballots, &past.reign.primary, decision);
    let past = case.olds.iter().find(open)?;
    if current.accept_loss || past.reign.primary == report.data_uuid {
        return None;
    }
    let since = elapsed(current.suspected_at.as_ref().unwrap_or(&current.begun_at), context.observed.now);
    if report.primary_silence.is_none_or(|silence| silence > since.saturating_add(past.reign.lease)) {
        return Some(
            "the candidate had not heard from the primary for longer than the Lease when it failed".to_owned(),
        );
    }
    let (lag, limit) = (report.known_lag(), context.settings.failover.max_lag);
    (lag > limit).then(|| format!("the candidate lacks {lag} records that it knows of; failover.maxLag is {limit}"))
}

/// True once the candidate has all that was decided; until then it is told to fetch the rest.
pub(crate) fn pulled(
    context: &Context<'_>,
    plan: &mut Plan,
    current: &ReignRecord,
    case: &Case,
    decision: &Decision,
    candidate: &str,
) -> bool {
    let answering = answering(context);
    let Some(tails) = quorum::missing(&case.ballots, decision, candidate) else {
        let message = "what the candidate lacks is on no member that has sealed".to_owned();
        plan.wait(WaitingReason::VotesMissing, message, context.promote_command(current, false));
        return false;
    };
    if tails.is_empty() {
        return true;
    }
    let Some((ordinal, report)) = answering.get(candidate).copied() else { return false };
    receipt::copied(context, plan, current, case, decision, candidate);
    let mut names = Vec::new();
    for tail in tails {
        let Some((source, _)) = answering.get(tail.source.as_str()) else { continue };
        names.push(context.name(*source));
        let upto = tail.upto.iter().map(|(uuid, decided)| PrefixPosition {
            prefix_uuid: uuid.clone(),
            name: decided.name.clone(),
            position: decided.position,
        });
        let kind = OrderKind::Pull { source: endpoint(context, *source, &tail.source), upto: upto.collect() };
        plan.orders.push(order(context, ordinal, report, &known(current), kind));
    }
    let message = format!("{} fetches what it lacks from {}", context.name(ordinal), names.join(", "));
    plan.wait(WaitingReason::PullingTails, message, None);
    false
}

/// Write down who is to lead, and tell it.
pub(crate) fn promote(
    context: &Context<'_>,
    plan: &mut Plan,
    current: &ReignRecord,
    (ordinal, report): (u32, &Report),
    decision: &Decision,
    first: bool,
) -> ReignRecord {
    let now = context.observed.now;
    let name = context.name(ordinal);
    if report.process_id.is_empty() {
        // Nothing could ever prove that this primary is dead.
        let message = format!("{name} does not say which process it is: it is not promoted");
        plan.wait(WaitingReason::CandidateMissing, message, context.kubectl("logs", &name));
        return current.clone();
    }
    let positions = positions(report);
    let record = ReignRecord {
        phase: ReignPhase::Promoting,
        primary: report.data_uuid.clone(),
        primary_process: report.process_id.clone(),
        synced: context.settings.member.durability == Durability::Sync,
        positions: digest(&positions),
        evidence: evidence(context, current.evidence.summary.clone()),
        deadline: deadline(now, PROMOTING_DEADLINE),
        promoting_since: Some(MicroTime(now)),
        ..current.clone()
    };
    let receipts = receipt::begun(context, plan, &record, decision);
    let record = swap_with(context, plan, record, receipts);
    plan.orders.push(order(context, ordinal, report, &known(&record), OrderKind::Promote { positions, first }));
    record
}

/// A member's own positions. Only known ones: a member with an unknown vote is not promoted.
fn positions(report: &Report) -> Vec<PrefixPosition> {
    let known = |prefix: &crate::observed::PrefixReport| match prefix.vote {
        Vote::Known(position) => {
            Some(PrefixPosition { prefix_uuid: prefix.prefix_uuid.clone(), name: prefix.name.clone(), position })
        }
        Vote::Unknown { .. } => None,
    };
    report.prefixes.iter().filter_map(known).collect()
}

fn digest(positions: &[PrefixPosition]) -> String {
    let decided = |at: &PrefixPosition| Decided { name: at.name.clone(), catalogue: false, position: at.position };
    let all: BTreeMap<_, _> = positions.iter().map(|at| (at.prefix_uuid.clone(), decided(at))).collect();
    quorum::digest(&all)
}

/// The candidate was told to lead: it leads, is told again, or has failed.
pub(crate) fn promoting(context: &Context<'_>, plan: &mut Plan, spec: &StoreReignSpec) -> Option<ReignRecord> {
    let current = &spec.current;
    let epoch = u64::try_from(current.epoch).unwrap_or(0);
    plan.within(WHILE_REIGN_BEGINS);
    let answering = answering(context);
    let name = member_name(spec, &current.primary);
    if let Some((ordinal, report)) = answering.get(current.primary.as_str()).copied() {
        // The first reign waits for the disk: what it was told may still be done, and nobody else has anything to lead with.
        let leading = report.leads(epoch, &current.reign_id);
        if spec.ever_served && hangs(report) && !(leading && report.serves_all()) {
            return stalled(context, plan, spec, &name);
        }
        if leading {
            return Some(leads(context, plan, spec, (ordinal, report)));
        }
        let positions = positions(report);
        let as_decided = report.process_id == current.primary_process
            && report.is_sealed(epoch, &current.reign_id)
            && report.started_epoch < epoch
            && (digest(&positions) == current.positions || parovoz_mutant::on("positions-not-compared"));
        if as_decided {
            let first = report.blank() && !spec.ever_served;
            plan.step = Some(Step::Lead);
            let kind = OrderKind::Promote { positions, first };
            plan.orders.push(order(context, ordinal, report, &known(current), kind));
            return Some(current.clone());
        }
        return failed(context, plan, spec, format!("{name} did not begin epoch {epoch} and cannot any more"));
    }
    let silence = context.silence_of(&current.primary, &name);
    if ended(context, &current.primary_process) {
        return failed(context, plan, spec, format!("{name} ended while it was to begin epoch {epoch}"));
    }
    if silence >= CANDIDATE_SILENT {
        return failed(context, plan, spec, format!("{name} is silent while it is to begin epoch {epoch}"));
    }
    let message = format!("{name} was told to lead at epoch {epoch} and does not answer");
    plan.wait(WaitingReason::MemberMustAnswer, message, context.kubectl("describe pod", &name));
    Some(current.clone())
}

/// The next epoch at once: the remaining votes decide.
fn failed(context: &Context<'_>, plan: &mut Plan, spec: &StoreReignSpec, summary: String) -> Option<ReignRecord> {
    if first::nothing_anywhere(context, plan) {
        return if may_try_again(context, spec) { first::again(context, plan) } else { Some(spec.current.clone()) };
    }
    without(context, plan, spec, ReignCause::CandidateFailed, summary)
}

/// The disk of the candidate hangs: the others go on, as far as they can without it.
fn stalled(context: &Context<'_>, plan: &mut Plan, spec: &StoreReignSpec, name: &str) -> Option<ReignRecord> {
    let summary = format!("the disk of {name} hangs while it is to begin epoch {}", spec.current.epoch);
    without(context, plan, spec, ReignCause::PrimaryStalled, summary)
}

/// The next epoch, if the votes that are in reach without the candidate suffice.
fn without(
    context: &Context<'_>,
    plan: &mut Plan,
    spec: &StoreReignSpec,
    cause: ReignCause,
    summary: String,
) -> Option<ReignRecord> {
    if let Err((reason, message)) = super::suspect::probe(context, spec, cause) {
        plan.wait(reason, format!("{summary}; {message}"), context.promote_command(&spec.current, false));
        return Some(spec.current.clone());
    }
    next(context, plan, spec, cause, summary)
}

/// The candidate leads: the others follow it; the reign is Serving once every prefix is served.
fn leads(
    context: &Context<'_>,
    plan: &mut Plan,
    spec: &StoreReignSpec,
    (ordinal, report): (u32, &Report),
) -> ReignRecord {
    let current = &spec.current;
    let name = context.name(ordinal);
    if report.serves_all() {
        let now = MicroTime(context.observed.now);
        // What a person accepted or attested was about the reigns before this one.
        let (accept_loss, attested) = (false, false);
        let record = ReignRecord {
            phase: ReignPhase::Serving,
            deadline: None,
            serving_since: Some(now),
            accept_loss,
            attested,
            ..current.clone()
        };
        plan.event(false, EventReason::PrimaryServing, format!("{name} serves at epoch {}", current.epoch));
        let receipts = receipt::served(spec, &record);
        let record = swap_with(context, plan, record, receipts);
        let except = receipt::unresolved(context, spec, &record);
        plan.orders.extend(follow(context, &record, &except.iter().map(String::as_str).collect::<Vec<_>>()));
        return record;
    }
    if let Some(record) = receipt::resolve(context, plan, spec) {
        return record;
    }
    if let Some(record) = planned::replace(context, plan, spec, (ordinal, report)) {
        return record;
    }
    let except = receipt::unresolved(context, spec, current);
    plan.orders.extend(follow(context, current, &except.iter().map(String::as_str).collect::<Vec<_>>()));
    let rejoined = planned::rejoin(context, plan, spec, (ordinal, report));
    rejoined.or_else(|| planned::degrade(context, plan, spec, (ordinal, report))).unwrap_or_else(|| {
        let served = report.prefixes.iter().filter(|prefix| prefix.served).count();
        let message = format!(
            "{name} leads at epoch {} and serves {served} of {} prefixes: {} replicas must join it first",
            current.epoch,
            report.prefixes.len(),
            current.min_sync_replicas
        );
        plan.wait(WaitingReason::ReplicasMustJoin, message, context.kubectl("describe pod", &name));
        current.clone()
    })
}

/// The name of a member's pod, for people.
pub(crate) fn member_name(spec: &StoreReignSpec, data_uuid: &str) -> String {
    let listed = spec.current.members.iter().find(|member| member.data_uuid == data_uuid);
    let past = || spec.history.iter().find(|past| past.primary == data_uuid).map(|past| past.primary_name.clone());
    listed.map(|member| member.name.clone()).or_else(past).unwrap_or_else(|| data_uuid.to_owned())
}

/// A missing decision, for people.
pub(crate) fn in_words(undecided: &Undecided) -> String {
    match undecided {
        Undecided::NoCatalogue => "no member that has sealed says anything of the catalogue".to_owned(),
        Undecided::TooFewVotes { prefix, epoch, counted, needed } => format!(
            "prefix {prefix}: {counted} of {needed} replicas of epoch {epoch} know their position, so an acknowledged write may be missed"
        ),
        Undecided::NoCopy { prefix } => format!("prefix {prefix}: no member that has sealed has a whole copy"),
    }
}
