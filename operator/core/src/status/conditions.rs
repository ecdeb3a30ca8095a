//! The conditions of a store.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parovoz_api::{
    Condition, ConditionReason as Reason, ConditionStatus as Status, ConditionType as Type, MemberPhase, MemberRole,
    MemberStatus, Mode, ReignPhase, WaitingReason,
};

use super::View;
use crate::plan::record::change_allowed;
use crate::plan::{Context, Step};
use crate::settings::Settings;

/// Seconds of window left below which a replica is about to need a new copy.
const WINDOW_WARNING_SECONDS: u64 = 600;

/// Status, reason and message of one condition.
type Verdict = (Status, Reason, String);

pub(super) fn conditions(view: &View<'_>, old: &[Condition]) -> Vec<Condition> {
    let verdicts = [
        (Type::Available, available(view)),
        (Type::Progressing, progressing(view)),
        (Type::Degraded, degraded(view)),
        (Type::ReplicationHealthy, replication(view)),
        (Type::FailoverReady, failover_ready(view)),
        (Type::StorageHealthy, storage(view)),
        (Type::Paused, paused(view)),
    ];
    verdicts
        .into_iter()
        .map(|(type_, (status, reason, message))| {
            let since = old.iter().find(|before| before.type_ == type_ && before.status == status);
            Condition {
                type_,
                status,
                reason,
                message,
                observed_generation: view.observed.store.generation,
                last_transition_time: since
                    .map_or(Time(view.observed.now), |before| before.last_transition_time.clone()),
            }
        })
        .collect()
}

/// True if the condition, as it is, is bad news.
pub(super) fn is_bad(condition: &Condition) -> bool {
    match condition.type_ {
        Type::Available | Type::ReplicationHealthy | Type::FailoverReady | Type::StorageHealthy => {
            condition.status == Status::False
        }
        Type::Degraded => condition.status == Status::True,
        Type::Progressing | Type::Paused | Type::Unknown => false,
    }
}

fn available(view: &View<'_>) -> Verdict {
    if let Some((_, report)) = view.primary {
        let name = view.primary_name().unwrap_or_default();
        if let Some(lost) = view.plan.waiting.iter().find(|waiting| waiting.reason == WaitingReason::QuorumLost) {
            return (Status::False, Reason::QuorumLost, lost.message.clone());
        }
        if report.phase == MemberPhase::Serving {
            return (Status::True, Reason::PrimaryServing, format!("{name} serves"));
        }
        let why = if report.reason.is_empty() { format!("{:?}", report.phase) } else { report.reason.clone() };
        return (Status::False, Reason::PrimaryNotServing, format!("{name} leads and does not serve: {why}"));
    }
    let Some(record) = view.record.filter(|record| record.phase != ReignPhase::Forming) else {
        let message = first_wait(view).unwrap_or_else(|| "members are being made".into());
        return (Status::False, Reason::FirstReignForming, message);
    };
    if record.phase == ReignPhase::Sealing {
        let message = first_wait(view).unwrap_or_else(|| format!("epoch {} begins: {:?}", record.epoch, record.cause));
        return (Status::False, Reason::Sealing, message);
    }
    let name = view.primary_name().unwrap_or_default();
    let answers = view.members.iter().any(|member| {
        member.name == name
            && !matches!(member.phase, MemberPhase::Unreachable | MemberPhase::Creating)
            && member.data_uuid.as_deref() == Some(record.primary.as_str())
    });
    if !answers {
        let message = first_wait(view).unwrap_or_else(|| format!("{name} does not answer"));
        return (Status::False, Reason::PrimaryUnreachable, message);
    }
    if record.phase == ReignPhase::Serving {
        let message = first_wait(view).unwrap_or_else(|| format!("{name} answers and does not lead"));
        return (Status::False, Reason::PrimaryNotServing, message);
    }
    (Status::False, Reason::PrimaryPromoting, format!("{name} is told to lead at epoch {}", record.epoch))
}

fn first_wait(view: &View<'_>) -> Option<String> {
    let relevant = |reason: WaitingReason| {
        matches!(
            reason,
            WaitingReason::MemberMustAnswer
                | WaitingReason::PrimaryMustReturn
                | WaitingReason::NobodyEligible
                | WaitingReason::SealQuorumOutOfReach
                | WaitingReason::FenceOpen
                | WaitingReason::VotesMissing
                | WaitingReason::CandidateMissing
                | WaitingReason::PullingTails
                | WaitingReason::ReplicasMustJoin
                | WaitingReason::LagAboveLimit
                | WaitingReason::FailoverDisabled
                | WaitingReason::Cooldown
                | WaitingReason::FailoverBudgetSpent
                | WaitingReason::QuorumLost
                | WaitingReason::ForeignClaim
                | WaitingReason::ForeignObject
        )
    };
    view.plan.waiting.iter().find(|waiting| relevant(waiting.reason)).map(|waiting| waiting.message.clone())
}

fn progressing(view: &View<'_>) -> Verdict {
    let plan = view.plan;
    let yes = |reason, message: String| (Status::True, reason, message);
    match &plan.step {
        Some(Step::Form) => return yes(Reason::ChangingReign, "the members of the first reign are listed".into()),
        Some(Step::Lead) => return yes(Reason::ChangingReign, "a member is told to lead".into()),
        Some(Step::ChangeMembers) => return yes(Reason::ChangingReign, "the members of the reign change".into()),
        Some(Step::RemovePod(pod)) => return yes(Reason::ScalingDown, format!("{pod} is removed")),
        None => {}
    }
    let existing = view.observed.pods.iter().filter(|pod| pod.owned && !pod.deleting).count();
    if existing < plan.target.len() {
        let reason = if view.record.is_some() { Reason::ScalingUp } else { Reason::CreatingMembers };
        return yes(reason, format!("{existing} of {} members exist", plan.target.len()));
    }
    if existing > plan.target.len() {
        return yes(Reason::ScalingDown, format!("{existing} members exist, {} are wanted", plan.target.len()));
    }
    if let Some(member) = view.members.iter().find(|member| member.phase == MemberPhase::Bootstrapping) {
        let percent = member.bootstrap.as_ref().map_or(0, |bootstrap| bootstrap.percent);
        return yes(Reason::Bootstrapping, format!("{} copies data: {percent}%", member.name));
    }
    if let Some(waiting) = plan.waiting.iter().find(|waiting| waiting.reason != WaitingReason::Paused) {
        return yes(Reason::Waiting, waiting.message.clone());
    }
    (Status::False, Reason::Converged, "everything asked for is there".into())
}

fn degraded(view: &View<'_>) -> Verdict {
    let yes = |reason, message: String| (Status::True, reason, message);
    if let Some(invalid) = &view.plan.invalid {
        return yes(Reason::SpecificationInvalid, invalid.clone());
    }
    // Before all that may stay refused for long: the first acknowledgement waits until this is told.
    let alone = |record: &&parovoz_api::ReignRecord| {
        record.mode == Mode::Quorum && record.min_sync_replicas == 0 && record.phase != ReignPhase::Forming
    };
    if let Some(record) = view.record.filter(alone) {
        let message = format!("since epoch {} writes are acknowledged without any replica", record.epoch);
        return yes(Reason::ServingWithoutQuorum, message);
    }
    if let Some(failure) = view.failures.iter().find(|failure| failure.terminal) {
        return yes(Reason::SpecificationInvalid, failure.message.clone());
    }
    let find = |phases: &[MemberPhase]| view.members.iter().find(|member| phases.contains(&member.phase));
    if let Some(member) = find(&[MemberPhase::Parked]) {
        let why = member.reason.clone().unwrap_or_default();
        return yes(Reason::MemberParked, format!("{} keeps its data closed: {why}", member.name));
    }
    if let Some(member) = find(&[MemberPhase::Unreachable, MemberPhase::Creating, MemberPhase::Unknown]) {
        let why = member.reason.clone().unwrap_or_else(|| "it does not answer yet".into());
        return yes(Reason::MemberUnreachable, format!("{}: {why}", member.name));
    }
    if let Some(member) = find(&[MemberPhase::Bootstrapping, MemberPhase::Blank, MemberPhase::Waiting]) {
        return yes(Reason::MemberIncomplete, format!("{} has no usable copy yet: {:?}", member.name, member.phase));
    }
    (Status::False, Reason::AsExpected, "every member works".into())
}

fn replicas<'a>(view: &View<'a>) -> impl Iterator<Item = &'a MemberStatus> {
    let primary = view.primary_name();
    view.members
        .iter()
        .filter(move |member| Some(&member.name) != primary.as_ref() && member.role != MemberRole::Primary)
}

fn replication(view: &View<'_>) -> Verdict {
    let Some((_, report)) = view.primary else {
        return (Status::Unknown, Reason::PrimaryUnreachable, "there is no primary to ask".into());
    };
    if replicas(view).next().is_none() {
        return (Status::True, Reason::SingleMember, "the store has one member".into());
    }
    let no = |reason, message: String| (Status::False, reason, message);
    if let Some(member) = replicas(view).find(|member| member.phase == MemberPhase::Bootstrapping) {
        return no(Reason::Bootstrapping, format!("{} copies data", member.name));
    }
    let streams = |member: &&MemberStatus| matches!(member.phase, MemberPhase::Streaming | MemberPhase::CatchingUp);
    if let Some(member) = replicas(view).find(|member| !streams(member)) {
        return no(Reason::ReplicaDisconnected, format!("{} does not stream: {:?}", member.name, member.phase));
    }
    let identity = |uuid: &str| {
        let member = view.members.iter().find(|member| member.data_uuid.as_deref() == Some(uuid));
        member.map_or_else(|| uuid.to_owned(), |member| member.name.clone())
    };
    let members = |uuid: &str| view.members.iter().any(|member| member.data_uuid.as_deref() == Some(uuid));
    let followers = || report.followers.iter().filter(|follower| members(&follower.data_uuid));
    let closing = |left: Option<u64>| left.filter(|left| *left < WINDOW_WARNING_SECONDS);
    if let Some(follower) = followers().find(|follower| closing(follower.window_left_seconds).is_some()) {
        let left = follower.window_left_seconds.unwrap_or(0);
        return no(Reason::WindowClosing, format!("{} needs a new copy in {left} s", identity(&follower.data_uuid)));
    }
    let Ok(settings) = Settings::parse(&view.observed.store.spec) else {
        return (Status::Unknown, Reason::SpecificationInvalid, "the specification cannot be read".into());
    };
    let behind = followers().find(|follower| {
        follower.lag_sequences > settings.lag_warning_sequences || follower.lag_ms > settings.lag_warning_ms
    });
    if let Some(follower) = behind {
        let message = format!(
            "{} is {} sequences and {} ms behind",
            identity(&follower.data_uuid),
            follower.lag_sequences,
            follower.lag_ms
        );
        return no(Reason::LagAboveWarning, message);
    }
    (Status::True, Reason::AllStreaming, "every replica streams".into())
}

fn failover_ready(view: &View<'_>) -> Verdict {
    let no = |reason, message: String| (Status::False, reason, message);
    let wanted = view.plan.target.len().max(view.members.len());
    if wanted <= 1 {
        return no(Reason::SingleMember, "the store has one member".into());
    }
    let (Ok(settings), Some(spec)) =
        (Settings::parse(&view.observed.store.spec), super::recorded(view.observed, view.plan))
    else {
        return no(Reason::NoReplicaInStanding, "the store has had no primary yet".into());
    };
    let context = Context { observed: view.observed, settings: &settings, target: &view.plan.target };
    if let Err((reason, message)) = change_allowed(&context, spec) {
        let reason = match reason {
            WaitingReason::FailoverDisabled => Reason::FailoverDisabled,
            WaitingReason::Cooldown => Reason::Cooldown,
            _ => Reason::FailoverBudgetSpent,
        };
        return no(reason, message);
    }
    if spec.current.phase != ReignPhase::Serving {
        return no(Reason::ReignUnderWay, format!("epoch {} is {:?}", spec.current.epoch, spec.current.phase));
    }
    let listed =
        |uuid: &Option<String>| spec.current.members.iter().any(|member| Some(&member.data_uuid) == uuid.as_ref());
    let standing: Vec<_> =
        replicas(view).filter(|member| member.phase == MemberPhase::Streaming && listed(&member.data_uuid)).collect();
    if standing.is_empty() {
        return no(Reason::NoReplicaInStanding, "no replica of the reign is complete and streams".into());
    }
    let w = usize::try_from(spec.current.min_sync_replicas).unwrap_or(0);
    let needed = spec.current.members.len().saturating_sub(w);
    if w > 0 && standing.len() < needed {
        let message = format!(
            "{} of {needed} replicas stream that would have to answer if the primary were gone",
            standing.len()
        );
        return no(Reason::SealQuorumOutOfReach, message);
    }
    let lag = |member: &&&MemberStatus| {
        member.lag.as_ref().is_some_and(|lag| u64::try_from(lag.sequences).unwrap_or(0) <= settings.failover.max_lag)
    };
    if w == 0 && view.primary.is_some() && !standing.iter().any(|member| lag(&member)) {
        let message = format!("every replica lacks more than failover.maxLag, {} records", settings.failover.max_lag);
        return no(Reason::LagAboveLimit, message);
    }
    (Status::True, Reason::ReplicaInStanding, format!("{} replicas are complete and stream", standing.len()))
}

fn storage(view: &View<'_>) -> Verdict {
    let no = |reason, message: String| (Status::False, reason, message);
    let observed = view.observed;
    if let Some(waiting) = view.plan.waiting.iter().find(|waiting| waiting.reason == WaitingReason::ForeignClaim) {
        return no(Reason::ForeignClaim, waiting.message.clone());
    }
    if let Some(failure) = view.failures.iter().find(|failure| failure.claim) {
        return no(Reason::ResizeRefused, failure.message.clone());
    }
    for ordinal in &view.plan.target {
        let name = crate::names::claim(&observed.store.name, *ordinal);
        match observed.claim(*ordinal) {
            None => return no(Reason::ClaimLost, format!("{name} does not exist")),
            Some(claim) if claim.deleting => return no(Reason::ClaimLost, format!("{name} is being deleted")),
            Some(claim) if !claim.bound => return no(Reason::ClaimPending, format!("{name} is not bound to a volume")),
            Some(_) => {}
        }
    }
    for ordinal in &view.plan.target {
        let Some(report) = observed.answer(*ordinal) else { continue };
        let (free, total) = (report.disk_free_bytes, report.disk_total_bytes);
        if total > 0 && free < total / 10 {
            let member = crate::names::member(&observed.store.name, *ordinal);
            return no(Reason::DiskAlmostFull, format!("{member} has {free} of {total} bytes free"));
        }
    }
    (Status::True, Reason::VolumesHealthy, "every volume is bound and has room".into())
}

fn paused(view: &View<'_>) -> Verdict {
    if view.observed.store.spec.paused {
        (Status::True, Reason::PausedBySpecification, "spec.paused is true".into())
    } else {
        (Status::False, Reason::NotPaused, "spec.paused is false".into())
    }
}
