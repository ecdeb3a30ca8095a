//! Whether the primary of a Serving reign is still fit to lead, and whether a new reign could be begun without it.

use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use parovoz_api::{MemberPhase, ReignCause, ReignRecord, StoreReignSpec, WaitingReason};

use super::procedure::{Case, ended, in_words, member_name, proof, seal_all};
use super::record::{NewReign, answering, begin, change_allowed, earlier_quorum, may_have_served};
use super::{Context, EventReason, Plan, SOON, Step, WHILE_REIGN_BEGINS};
use crate::observed::Report;
use crate::quorum::{self, Ballots};

/// A follower that heard nothing for this long has lost the primary's beats, which come several times a second.
const LOST_BEATS: Duration = Duration::from_secs(1);
/// A primary whose fsync, or whose oldest write, waits for this long is stalled.
const STALLED: Duration = Duration::from_secs(5);
/// A quorum primary that cannot acknowledge is cut off once this many of its followers miss it for so long.
const CUT_OFF: Duration = Duration::from_secs(3);

/// What is to be thought of the primary.
pub(super) enum Verdict<'a> {
    /// It answers, leads, and works.
    Healthy(u32, &'a Report),
    /// Something must be done.
    Suspect {
        /// Why.
        cause: ReignCause,
        /// For how long there have been signs of it.
        since: Duration,
        /// What was seen, for people.
        what: String,
    },
    /// Not enough is known, or it is not time yet.
    Wait(WaitingReason, String),
}

/// Judge the primary of a Serving reign.
pub(super) fn judge<'a>(context: &Context<'a>, spec: &StoreReignSpec) -> Verdict<'a> {
    let current = &spec.current;
    let name = member_name(spec, &current.primary);
    let answering = answering(context);
    match answering.get(current.primary.as_str()).copied() {
        Some((ordinal, report)) => present(context, current, &name, (ordinal, report)),
        None => absent(context, current, &name),
    }
}

fn present<'a>(
    context: &Context<'a>,
    current: &ReignRecord,
    name: &str,
    (ordinal, report): (u32, &'a Report),
) -> Verdict<'a> {
    let epoch = u64::try_from(current.epoch).unwrap_or(0);
    let suspect = |cause, since, what| Verdict::Suspect { cause, since, what };
    if report.phase == MemberPhase::Parked {
        let what = format!("{name} keeps its data closed: {}", report.reason);
        return suspect(ReignCause::PrimaryStalled, report.uptime, what);
    }
    if !report.leads(epoch, &current.reign_id) {
        return suspect(ReignCause::PrimaryRestarted, report.uptime, format!("{name} was started anew"));
    }
    if let Some(stalled) = report.stalled_fsync.filter(|_| hangs(report)) {
        return suspect(ReignCause::PrimaryStalled, stalled, format!("the disk of {name} hangs"));
    }
    let w = usize::try_from(current.min_sync_replicas).unwrap_or(0);
    let cut_off = followers(context, current).filter(|report| report.primary_silence.is_some_and(|s| s >= CUT_OFF));
    if w > 0 && !report.can_acknowledge && cut_off.count() >= current.members.len().saturating_sub(w) {
        return suspect(ReignCause::PrimaryStalled, CUT_OFF, format!("{name} is cut off from its replicas"));
    }
    Verdict::Healthy(ordinal, report)
}

/// True if the disk of a member hangs: it answers, and can promise or acknowledge nothing.
pub(super) fn hangs(report: &Report) -> bool {
    report.stalled_fsync.is_some_and(|stalled| stalled >= STALLED)
}

/// Members of the reign that answer, other than the primary.
fn followers<'a>(context: &Context<'a>, current: &ReignRecord) -> impl Iterator<Item = &'a Report> {
    let answering = answering(context);
    let others = current.members.iter().filter(|member| member.data_uuid != current.primary);
    let found: Vec<_> = others.filter_map(|member| answering.get(member.data_uuid.as_str())).map(|(_, r)| *r).collect();
    found.into_iter()
}

/// True if a follower lost the primary.
pub(super) fn lost_beats(report: &Report) -> bool {
    report.primary_silence.is_none_or(|silence| silence >= LOST_BEATS)
}

fn absent<'a>(context: &Context<'a>, current: &ReignRecord, name: &str) -> Verdict<'a> {
    let pod = context.ordinal(name).and_then(|ordinal| context.observed.pod(ordinal));
    let there = pod.filter(|pod| context.observed.answer(pod.ordinal).is_none());
    let silence = there.and_then(|pod| context.observed.silence(pod.ordinal));
    // The last of its followers to hear it knows since when it is gone though its pod was made anew. One that never heard it
    // misses it since its own start.
    let missed = |report: &Report| report.primary_silence.unwrap_or(report.uptime);
    let heard = followers(context, current).map(missed).min().unwrap_or_default();
    // Never longer than the operator itself has missed it: what a candidate lacks is judged by this.
    let since = silence.unwrap_or(heard);
    if since.max(heard) < context.settings.failover.delay {
        let message = format!("the primary {name} does not answer; failover.delay is waited out");
        return Verdict::Wait(WaitingReason::PrimaryMustReturn, message);
    }
    if ended(context, &current.primary_process) {
        let what = format!("the process of {name} has ended");
        return Verdict::Suspect { cause: ReignCause::PrimaryDead, since, what };
    }
    if followers(context, current).next().is_none() {
        let message = format!("the primary {name} does not answer, and no other member does: it is waited for");
        return Verdict::Wait(WaitingReason::PrimaryMustReturn, message);
    }
    if followers(context, current).any(|report| lost_beats(report) || !report.upstream_connected) {
        let what = format!("neither the operator nor a replica hears {name}");
        return Verdict::Suspect { cause: ReignCause::PrimarySilent, since, what };
    }
    let message = format!("the operator cannot reach the primary {name}, but its replicas do: nothing is done");
    Verdict::Wait(WaitingReason::MemberMustAnswer, message)
}

/// Begin a new reign for an unfit primary, if that could lead anywhere.
pub(super) fn act(
    context: &Context<'_>,
    plan: &mut Plan,
    spec: &StoreReignSpec,
    cause: ReignCause,
    since: Duration,
    what: String,
) -> Option<ReignRecord> {
    let name = member_name(spec, &spec.current.primary);
    plan.within(WHILE_REIGN_BEGINS);
    if cause != ReignCause::PrimaryRestarted
        && let Err((reason, message)) = change_allowed(context, spec)
    {
        plan.within(SOON);
        plan.wait(reason, format!("{what}; {message}"), context.promote_command(&spec.current, false));
        return None;
    }
    if let Err((reason, message)) = probe(context, spec, cause) {
        plan.wait(reason, format!("{what}; {message}"), context.kubectl("describe pod", &name));
        return None;
    }
    let now = context.observed.now;
    let since = SignedDuration::try_from(since).unwrap_or_default();
    let suspected_at = now.checked_sub(since).ok().map(MicroTime);
    plan.event(true, EventReason::PrimarySuspect, what.clone());
    let new = NewReign {
        suspected_at,
        operation: String::new(),
        accept_loss: false,
        attested: false,
        ..NewReign::like(&spec.current, cause, what)
    };
    let record = begin(context, plan, new)?;
    plan.step = Some(Step::Lead);
    let case = Case::unasked(spec);
    seal_all(context, plan, &record, &case);
    Some(record)
}

/// What would each member vote, and would that be enough? Nothing is asked of anybody that it could not take back.
pub(super) fn probe(
    context: &Context<'_>,
    spec: &StoreReignSpec,
    cause: ReignCause,
) -> Result<(), (WaitingReason, String)> {
    let olds = may_have_served(spec, true);
    let (suspect, process) = (&spec.current.primary, &spec.current.primary_process);
    let gone = ended(context, process);
    let answers = |uuid: &str| answering(context).contains_key(uuid);
    let would_seal = |uuid: &str, report: &Report| {
        // A member that still hears the primary will refuse, unless it is shown proof.
        let stalled = cause == ReignCause::PrimaryStalled;
        let proven = gone || (answers(suspect) && !stalled);
        if uuid == suspect { !stalled } else { proven || lost_beats(report) || !report.upstream_connected }
    };
    let ballots: Ballots = answering(context)
        .into_iter()
        .filter(|(uuid, (_, report))| would_seal(uuid, report))
        .filter_map(|(uuid, (_, report))| Some((uuid.to_owned(), report.ballot()?)))
        .collect();
    let out_of_reach = |message: String| Err((WaitingReason::SealQuorumOutOfReach, message));
    for past in &olds {
        let mut proof = proof(context, past, spec.current.attested);
        // It can still be waited for.
        proof.lease_unmoved = Some(Duration::MAX);
        if !quorum::fence(&past.reign, &ballots, proof) {
            return out_of_reach(format!(
                "too few members answer to keep the primary {} of epoch {} from acknowledging more",
                member_name(spec, &past.reign.primary),
                past.reign.epoch
            ));
        }
    }
    let reigns: Vec<_> = olds.into_iter().map(|past| past.reign).collect();
    let decision = match quorum::decide_after(&reigns, &earlier_quorum(spec, true), &ballots) {
        Ok(decision) => decision,
        Err(undecided) => return out_of_reach(in_words(&undecided)),
    };
    let among = spec.current.members.iter().map(|member| member.data_uuid.clone()).collect();
    match quorum::candidate(&reigns, &ballots, &decision, &among, suspect) {
        Some(_) => Ok(()),
        None => Err((WaitingReason::NobodyEligible, "no member that answers could lead".to_owned())),
    }
}
