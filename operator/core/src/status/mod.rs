//! What is told to people: a view of one observation and its plan. No decision rests on it.

mod conditions;
mod members;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parovoz_api::{
    Condition, ConditionReason, ConditionStatus, ConditionType, Lag, MemberPhase, MemberRole, ReignPhase,
    ReplicatedStoreStatus, StorePhase, TimeSpan, Waiting, WaitingReason,
};

use crate::names;
use crate::observed::{Observed, Report};
use crate::plan::{Event, EventReason, Plan};

/// How often positions, lag and progress are written at most, while nothing else changes.
pub const VOLATILE_EVERY: Duration = Duration::from_secs(5);

/// Waits listed at most.
const WAITING: usize = 32;

/// What the executor could not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What was tried, worded "verb object: cause".
    pub message: String,
    /// True if trying again as it is cannot help.
    pub terminal: bool,
    /// True if an object of somebody else is in the way.
    pub foreign: bool,
    /// True if it was about a volume claim.
    pub claim: bool,
}

/// The status of a store after a plan was carried out, failures included.
#[must_use]
pub fn status(observed: &Observed, plan: &Plan, failures: &[Failure]) -> ReplicatedStoreStatus {
    let store = &observed.store;
    let old = store.status.clone().unwrap_or_default();
    let record = current(observed, plan);
    let members = members::members(observed, plan, record);
    let mut waiting = plan.waiting.clone();
    waiting.extend(failures.iter().map(refused));
    waiting.sort_by(|one, other| (one.reason, &one.message).cmp(&(other.reason, &other.message)));
    waiting.truncate(WAITING);
    let view = View { observed, plan, members: &members, record, primary: primary(observed, record), failures };
    let conditions = conditions::conditions(&view, &old.conditions);
    let holds = |type_: ConditionType| {
        conditions.iter().any(|condition| condition.type_ == type_ && condition.status == ConditionStatus::True)
    };
    ReplicatedStoreStatus {
        observed_generation: store.generation,
        phase: phase(&view, holds(ConditionType::Available), holds(ConditionType::Degraded)),
        epoch: record.map_or(0, |record| record.epoch),
        primary: view.primary_name(),
        replicas: count(observed.pods.iter().filter(|pod| pod.owned && !pod.deleting).count()),
        ready_replicas: count(
            members
                .iter()
                .filter(|member| matches!(member.phase, MemberPhase::Serving | MemberPhase::Streaming))
                .count(),
        ),
        selector: names::selector(&store.name),
        lag: worst_lag(&members),
        last_failover: recorded(observed, plan).and_then(|spec| spec.last_failover.clone()),
        members,
        waiting,
        conditions,
    }
}

/// The status of a store that nothing can be done for until a person changes something: as it was, but for why.
#[must_use]
pub fn failed(
    old: Option<&ReplicatedStoreStatus>,
    generation: i64,
    now: Timestamp,
    message: String,
) -> ReplicatedStoreStatus {
    let mut new = old.cloned().unwrap_or_default();
    let before = new.conditions.iter().position(|condition| condition.type_ == ConditionType::Degraded);
    let before = before.map(|index| new.conditions.remove(index));
    let since = before.filter(|condition| condition.status == ConditionStatus::True);
    new.conditions.push(Condition {
        type_: ConditionType::Degraded,
        status: ConditionStatus::True,
        reason: ConditionReason::SpecificationInvalid,
        message: message.clone(),
        observed_generation: generation,
        last_transition_time: since.map_or(Time(now), |condition| condition.last_transition_time),
    });
    if new.phase == StorePhase::Healthy {
        new.phase = StorePhase::Degraded;
    }
    let refused = Waiting { reason: WaitingReason::Refused, message, command: None };
    new.waiting.retain(|waiting| *waiting != refused);
    new.waiting.truncate(WAITING - 1);
    new.waiting.push(refused);
    new
}

/// What all parts of the status look at.
struct View<'a> {
    observed: &'a Observed,
    plan: &'a Plan,
    members: &'a [parovoz_api::MemberStatus],
    record: Option<&'a parovoz_api::ReignRecord>,
    /// The ordinal and the report of the member that leads, if it answers and leads.
    primary: Option<(u32, &'a Report)>,
    failures: &'a [Failure],
}

impl View<'_> {
    fn primary_name(&self) -> Option<String> {
        if let Some((ordinal, _)) = self.primary {
            return Some(names::member(&self.observed.store.name, ordinal));
        }
        let record = self.record.filter(|record| record.phase != ReignPhase::Forming)?;
        record.members.iter().find(|member| member.data_uuid == record.primary).map(|member| member.name.clone())
    }
}

/// The record that holds after the plan.
fn recorded<'a>(observed: &'a Observed, plan: &'a Plan) -> Option<&'a parovoz_api::StoreReignSpec> {
    match &plan.reign_write {
        Some(write) => Some(&write.spec),
        None => observed.own_reign().map(|reign| &reign.spec),
    }
}

fn current<'a>(observed: &'a Observed, plan: &'a Plan) -> Option<&'a parovoz_api::ReignRecord> {
    recorded(observed, plan).map(|spec| &spec.current)
}

fn primary<'a>(observed: &'a Observed, record: Option<&parovoz_api::ReignRecord>) -> Option<(u32, &'a Report)> {
    let record = record?;
    let leads = |report: &&Report| report.role == MemberRole::Primary && report.data_uuid == record.primary;
    observed.pods.iter().find_map(|pod| Some((pod.ordinal, observed.answer(pod.ordinal).filter(leads)?)))
}

fn refused(failure: &Failure) -> Waiting {
    let reason = if failure.foreign { WaitingReason::ForeignObject } else { WaitingReason::Refused };
    Waiting { reason, message: failure.message.clone(), command: None }
}

fn phase(view: &View<'_>, available: bool, degraded: bool) -> StorePhase {
    let ever_served = view.observed.own_reign().is_some_and(|reign| reign.spec.ever_served);
    match (available, degraded) {
        (true, false) => StorePhase::Healthy,
        (true, true) => StorePhase::Degraded,
        (false, _) => match view.record.map(|record| record.phase) {
            None | Some(ReignPhase::Forming) if !ever_served => StorePhase::Pending,
            Some(ReignPhase::Sealing | ReignPhase::Promoting) => StorePhase::Promoting,
            _ => StorePhase::Unavailable,
        },
    }
}

fn worst_lag(members: &[parovoz_api::MemberStatus]) -> Option<Lag> {
    let lags = || members.iter().filter_map(|member| member.lag.as_ref());
    let time = lags().map(|lag| &lag.time).max_by_key(|time| time.duration().unwrap_or_default())?;
    Some(Lag {
        sequences: lags().map(|lag| lag.sequences).max().unwrap_or(0),
        bytes: lags().map(|lag| lag.bytes).max().unwrap_or(0),
        time: time.clone(),
    })
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn span(millis: u64) -> TimeSpan {
    if millis < 10_000 { TimeSpan(format!("{millis}ms")) } else { TimeSpan::seconds(millis / 1_000) }
}

/// True if a new status should be written over the old one: at once if anything but figures that always move changed,
/// else once those are five seconds old.
#[must_use]
pub fn worth_writing(
    old: Option<&ReplicatedStoreStatus>,
    new: &ReplicatedStoreStatus,
    last_write: Option<Duration>,
) -> bool {
    let Some(old) = old else { return true };
    if old == new {
        return false;
    }
    steady(old) != steady(new) || last_write.is_none_or(|age| age >= VOLATILE_EVERY)
}

/// The status without the figures that move all the time.
fn steady(status: &ReplicatedStoreStatus) -> ReplicatedStoreStatus {
    let mut status = status.clone();
    status.lag = None;
    for member in &mut status.members {
        member.position = None;
        member.lag = None;
        member.window_left = None;
        if let Some(bootstrap) = &mut member.bootstrap {
            *bootstrap = parovoz_api::BootstrapStatus { method: bootstrap.method.clone(), ..Default::default() };
        }
    }
    for condition in &mut status.conditions {
        // Messages name figures; status and reason are what alerts rest on.
        condition.message.clear();
    }
    status
}

/// Events for conditions whose status or reason changed.
#[must_use]
pub fn events(old: Option<&ReplicatedStoreStatus>, new: &ReplicatedStoreStatus) -> Vec<Event> {
    let Some(old) = old.filter(|old| !old.conditions.is_empty()) else { return Vec::new() };
    let changed = |condition: &&Condition| {
        let before = old.conditions.iter().find(|before| before.type_ == condition.type_);
        before.is_some_and(|before| before.status != condition.status)
    };
    new.conditions
        .iter()
        .filter(changed)
        .map(|condition| Event {
            warning: conditions::is_bad(condition),
            reason: EventReason::Condition(condition.reason),
            note: format!(
                "{:?} is {:?} ({:?}): {}",
                condition.type_, condition.status, condition.reason, condition.message
            ),
        })
        .collect()
}
