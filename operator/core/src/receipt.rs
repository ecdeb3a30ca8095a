//! The receipt of a failover: how long each phase took, and what was lost. It stands in the decision record, because what
//! was lost is often known only once the old primary is found, perhaps by another operator process.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use parovoz_api::{
    FailoverPhases, FailoverReceipt, LossOutcome, LostRange, ReignCause, ReignPhase, ReignRecord, StoreReignSpec,
};

use crate::observed::{Position, ReignRef, Report};
use crate::plan::procedure::{Case, member_name};
use crate::plan::record::{answering, last_served, swap_with};
use crate::plan::{Context, EventReason, OrderKind, Plan, SealEvidence, orders};
use crate::quorum::{Decision, Vote};

/// Prefixes whose beginnings are kept until the old primary is found.
const FORKS: usize = 1024;
/// Ranges listed.
const RANGES: usize = 64;

/// The receipt of the reign that a plan is about to promote, and where it begins in each prefix. What is on record stays
/// if the reign is planned or the primary is the same again.
pub(crate) fn begun(
    context: &Context<'_>,
    plan: &mut Plan,
    record: &ReignRecord,
    decision: &Decision,
) -> (Option<FailoverReceipt>, BTreeMap<String, String>) {
    let Some(spec) = context.observed.own_reign().map(|reign| &reign.spec) else { return (None, BTreeMap::new()) };
    let unchanged = (spec.last_failover.clone(), spec.forks.clone());
    let Some(old) = last_served(spec) else { return unchanged };
    if record.cause.planned() || record.cause == ReignCause::First || old.primary == record.primary {
        return unchanged;
    }
    let ballots = Case::new(context, spec).ballots;
    let found = ballots.get(&old.primary);
    // Sealed with known votes throughout, it has nothing beyond the decision.
    let none = found.is_some_and(|ballot| decision.keys().all(|uuid| ballot.vote(uuid).known().is_some()))
        && !record.accept_loss;
    let (from, to) = (old.primary_name.clone(), member_name(spec, &record.primary));
    let top = decision.values().map(|decided| decided.position).fold(Position::default(), |sum, at| Position {
        epoch: sum.epoch.max(at.epoch),
        sequence: sum.sequence.saturating_add(at.sequence),
    });
    let lost = if none { "none".to_owned() } else { format!("unknown after ({}, {})", top.epoch, top.sequence) };
    let note = format!("{to} takes the place of {from} at epoch {}: {:?}; lost: {lost}", record.epoch, record.cause);
    plan.event(true, EventReason::PrimaryReplaced, note);
    let receipt = FailoverReceipt {
        at: record.begun_at.clone(),
        epoch: record.epoch,
        from,
        from_data_uuid: old.primary.clone(),
        to,
        cause: format!("{:?}", record.cause),
        phases: phases(record),
        outcome: if none { LossOutcome::None } else { LossOutcome::Unknown },
        lost,
        ranges: Vec::new(),
    };
    let fork = |(uuid, decided): (&String, &crate::quorum::Decided)| {
        (uuid.clone(), format!("{}.{}", decided.position.epoch, decided.position.sequence))
    };
    let forks = if none || decision.len() > FORKS { BTreeMap::new() } else { decision.iter().map(fork).collect() };
    (Some(receipt), forks)
}

/// How long each phase took so far.
fn phases(record: &ReignRecord) -> FailoverPhases {
    let first = record.suspected_at.as_ref().unwrap_or(&record.begun_at).0;
    let ms = |from: Timestamp, to: Timestamp| {
        let span = Duration::try_from(to.duration_since(from)).unwrap_or_default();
        i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
    };
    let promoting = record.promoting_since.as_ref().map(|time| time.0);
    let serving = record.serving_since.as_ref().map(|time| time.0);
    FailoverPhases {
        suspect: ms(first, record.begun_at.0),
        seal: promoting.map(|time| ms(record.begun_at.0, time)),
        promote: promoting.zip(serving).map(|(from, to)| ms(from, to)),
        total: serving.map(|time| ms(first, time)),
    }
}

/// The receipt once the reign serves.
pub(crate) fn served(spec: &StoreReignSpec, record: &ReignRecord) -> Option<FailoverReceipt> {
    let receipt = spec.last_failover.clone()?;
    if receipt.epoch != record.epoch {
        return Some(receipt);
    }
    Some(FailoverReceipt { phases: phases(record), ..receipt })
}

/// The old primary of a receipt that is still open: it is asked what it has before it is told to follow, because following
/// throws away what it has too much of.
pub(crate) fn unresolved(context: &Context<'_>, spec: &StoreReignSpec, current: &ReignRecord) -> Vec<String> {
    let Some(receipt) = open(spec) else { return Vec::new() };
    // Only a reign that serves can still be compared with; and whoever follows it already was compared.
    let epoch = u64::try_from(current.epoch).unwrap_or(0);
    let follows = answering(context)
        .get(receipt.from_data_uuid.as_str())
        .is_some_and(|(_, report)| report.promised(epoch, &current.reign_id) && report.sealed.is_none());
    if follows { Vec::new() } else { vec![receipt.from_data_uuid.clone()] }
}

fn open(spec: &StoreReignSpec) -> Option<&FailoverReceipt> {
    spec.last_failover.as_ref().filter(|receipt| receipt.outcome == LossOutcome::Unknown && !spec.forks.is_empty())
}

/// Find out what the old primary has beyond the new one: it is sealed for the present reign, so that what it says is
/// final, and then compared.
pub(crate) fn resolve(context: &Context<'_>, plan: &mut Plan, spec: &StoreReignSpec) -> Option<ReignRecord> {
    let receipt = open(spec)?;
    let current = &spec.current;
    // While Promoting too: the old primary may be one of the replicas that the new one needs.
    let leads = matches!(current.phase, ReignPhase::Promoting | ReignPhase::Serving);
    if !leads || current.primary == receipt.from_data_uuid {
        return None;
    }
    let (ordinal, report) = answering(context).get(receipt.from_data_uuid.as_str()).copied()?;
    let epoch = u64::try_from(current.epoch).unwrap_or(0);
    if report.promised(epoch, &current.reign_id) && report.sealed.is_none() {
        return None;
    }
    if !report.is_sealed(epoch, &current.reign_id) {
        let about = ReignRef { epoch, reign_id: current.reign_id.clone() };
        let kind = OrderKind::Seal { about, evidence: SealEvidence::PrimarySealed };
        plan.orders.push(orders::order(context, ordinal, report, &orders::known(current), kind));
        plan.urgent = true;
        return None;
    }
    let (outcome, ranges) = compare(spec, report);
    let lost = match outcome {
        LossOutcome::None => "none".to_owned(),
        LossOutcome::Ranges => in_words(&ranges),
        LossOutcome::Unknown => format!("{}; the old primary cannot tell", receipt.lost),
    };
    let note = format!("{} was found again: lost at epoch {}: {lost}", receipt.from, receipt.epoch);
    plan.event(outcome != LossOutcome::None, EventReason::LossKnown, note);
    let lost = lost.chars().take(1000).collect();
    let receipt = FailoverReceipt { outcome, lost, ranges, ..receipt.clone() };
    Some(swap_with(context, plan, current.clone(), Some(receipt), BTreeMap::new()))
}

/// What a sealed old primary has beyond where the new one began.
fn compare(spec: &StoreReignSpec, report: &Report) -> (LossOutcome, Vec<LostRange>) {
    let mut ranges = Vec::new();
    let mut unknown = false;
    for prefix in &report.prefixes {
        let fork = spec.forks.get(&prefix.prefix_uuid).and_then(|text| parse(text)).unwrap_or_default();
        match prefix.vote {
            Vote::Known(at) if at.sequence > fork.sequence => ranges.push(LostRange {
                prefix: prefix.name.clone(),
                epoch: i64::try_from(at.epoch).unwrap_or(i64::MAX),
                first: i64::try_from(fork.sequence + 1).unwrap_or(i64::MAX),
                last: i64::try_from(at.sequence).unwrap_or(i64::MAX),
                exported: format!("{}-{}-", prefix.name, prefix.prefix_uuid),
            }),
            Vote::Known(_) => {}
            Vote::Unknown { .. } => unknown = true,
        }
    }
    ranges.truncate(RANGES);
    let outcome = match (unknown, ranges.is_empty()) {
        (true, _) => LossOutcome::Unknown,
        (false, true) => LossOutcome::None,
        (false, false) => LossOutcome::Ranges,
    };
    (outcome, ranges)
}

fn parse(text: &str) -> Option<Position> {
    let (epoch, sequence) = text.split_once('.')?;
    Some(Position { epoch: epoch.parse().ok()?, sequence: sequence.parse().ok()? })
}

fn in_words(ranges: &[LostRange]) -> String {
    let one = |range: &LostRange| {
        format!("{} sequences {} to {} of epoch {}", range.prefix, range.first, range.last, range.epoch)
    };
    ranges.iter().map(one).collect::<Vec<_>>().join(", ")
}
