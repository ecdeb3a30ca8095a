//! The receipt of a failover: how long each phase took, and what was lost. It stands in the decision record, because what
//! was lost is often known only once the old primary is found, perhaps by another operator process.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use parovoz_api::{
    Durability, EarlierReceipt, FailoverPhases, FailoverReceipt, LossOutcome, LostRange, PastReign, ReignCause,
    ReignPhase, ReignRecord, StoreReignSpec,
};

use crate::observed::{Position, ReignRef, Report};
use crate::plan::procedure::{Case, member_name};
use crate::plan::record::{self, Past, Receipts, answering, last_served, swap_with};
use crate::plan::{Context, EventReason, OrderKind, Plan, SealEvidence, orders};
use crate::quorum::{Ballot, Decided, Decision, Vote};

/// Prefixes whose beginnings are kept until the old primary is found.
const FORKS: usize = 1024;
/// Ranges listed; with more, the receipt says that there are.
const RANGES: usize = 512;
/// Characters in which a loss is told to people.
const WORDS: usize = 1000;

/// The receipt of the reign that a plan is about to promote, and where it begins in each prefix. What is on record stays
/// if the primary is the same again, or was relieved on purpose and nothing of it can be missing.
pub(crate) fn begun(context: &Context<'_>, plan: &mut Plan, record: &ReignRecord, decision: &Decision) -> Receipts {
    let Some(spec) = context.observed.own_reign().map(|reign| &reign.spec) else { return Receipts::default() };
    let unchanged = Receipts::of(spec);
    let Some(old) = last_served(spec).filter(|_| record.cause != ReignCause::First) else { return unchanged };
    let stands = since(spec, old);
    let case = Case::new(context, spec);
    let whole = |past: &Past| {
        let ballot = case.ballots.get(&past.reign.primary);
        ballot.is_some_and(|ballot| is_within(ballot, decision)) && remembers(context, past)
    };
    // Where no replica is waited for, whoever was told to lead may have acknowledged something, though it never served.
    let later = |past: &&Past| i64::try_from(past.reign.epoch).unwrap_or(i64::MAX) > old.epoch;
    let attempts = case.olds.iter().filter(later).filter(|past| past.reign.w == 0).all(&whole);
    let of_old = case.olds.iter().find(|past| !later(past));
    let same = old.primary == record.primary;
    let told = if same { of_old.is_some_and(|past| remembers(context, past)) } else { of_old.is_some_and(&whole) };
    let told = told && attempts && !record.accept_loss;
    if let Some(receipt) = stands.filter(|receipt| is_final(receipt, spec, decision)) {
        return carried(spec, receipt, record, decision, told);
    }
    if same {
        return match (told, stands) {
            (false, _) => forgot(spec, plan, record, old, decision),
            (true, None) => unchanged,
            // Whoever was to take its place meanwhile never served.
            (true, Some(_)) => {
                let before = spec.before_attempt.clone().unwrap_or_default();
                Receipts { last: before.last_failover, forks: before.forks, before: None }
            }
        };
    }
    let forks = forks(spec, old, decision);
    if record.cause.planned() && attempts && case.olds.first().is_some_and(&whole) {
        // What is still open is compared with where this one begins, which may have fetched more of the old primary's.
        let forks = if unchanged.forks.is_empty() { BTreeMap::new() } else { forks };
        let attempt = stands.map(|receipt| of_attempt(receipt, record, member_name(spec, &record.primary)));
        return Receipts { forks, last: attempt.or(unchanged.last), before: unchanged.before };
    }
    let receipt = receipt(record, old, member_name(spec, &record.primary), &forks, told);
    let note = format!(
        "{} takes the place of {} at epoch {}: {:?}; lost: {}",
        receipt.to, receipt.from, record.epoch, record.cause, receipt.lost
    );
    plan.event(true, EventReason::PrimaryReplaced, note);
    let forks = if told || forks.len() > FORKS { BTreeMap::new() } else { forks };
    Receipts { last: Some(receipt), forks, before: before(spec, old) }
}

/// The receipt of an attempt that never served, as the reign's that takes the old primary's place after all and has what the
/// attempt had. Ranges that it does not have made the receipt a final one, so it has all that were found.
fn of_attempt(receipt: &FailoverReceipt, record: &ReignRecord, to: String) -> FailoverReceipt {
    let mut receipt = FailoverReceipt { epoch: record.epoch, to, ..receipt.clone() };
    if receipt.outcome == LossOutcome::Ranges {
        (receipt.outcome, receipt.lost, receipt.ranges) = (LossOutcome::None, "none".to_owned(), Vec::new());
    }
    receipt
}

/// The ranges of a receipt that a decision does not bring back: the old primary may lead again before its tail is gone.
fn left(receipt: &FailoverReceipt, decision: &Decision) -> Vec<LostRange> {
    let is_in = |range: &LostRange, decided: &Decided| {
        let at = decided.position;
        decided.name == range.prefix
            && i64::try_from(at.epoch).is_ok_and(|epoch| epoch == range.epoch)
            && i64::try_from(at.sequence).unwrap_or(i64::MAX) >= range.last
    };
    let lost = |range: &&LostRange| !decision.values().any(|decided| is_in(range, decided));
    receipt.ranges.iter().filter(lost).cloned().collect()
}

/// True if a receipt tells of what is lost whoever leads next: the old primary was found and the tail that it had is not in
/// the decision, it took over copies of others, or nobody will ever be able to tell.
fn is_final(receipt: &FailoverReceipt, spec: &StoreReignSpec, decision: &Decision) -> bool {
    match receipt.outcome {
        LossOutcome::Ranges => !left(receipt, decision).is_empty(),
        LossOutcome::Unknown => spec.forks.is_empty(),
        LossOutcome::None => false,
    }
}

/// That receipt as one of the reign that begins.
fn carried(
    spec: &StoreReignSpec,
    receipt: &FailoverReceipt,
    record: &ReignRecord,
    decision: &Decision,
    told: bool,
) -> Receipts {
    let ranges = left(receipt, decision);
    let to = member_name(spec, &record.primary);
    let mut receipt = FailoverReceipt { epoch: record.epoch, to, ranges, ..receipt.clone() };
    if receipt.outcome == LossOutcome::Ranges {
        receipt.lost = in_words(&receipt.ranges, !told);
        if !told {
            receipt.outcome = LossOutcome::Unknown;
        }
    }
    Receipts { last: Some(receipt), ..Receipts::of(spec) }
}

/// What stands again if the attempt under way is given up.
fn before(spec: &StoreReignSpec, old: &PastReign) -> Option<EarlierReceipt> {
    let first = || EarlierReceipt { last_failover: spec.last_failover.clone(), forks: spec.forks.clone() };
    if since(spec, old).is_none() { Some(first()) } else { spec.before_attempt.clone() }
}

/// The receipt of a primary that leads on after its machine lost what it had not synced, or after another that nobody knows
/// enough of: how much is missing nobody can say.
fn forgot(
    spec: &StoreReignSpec,
    plan: &mut Plan,
    record: &ReignRecord,
    old: &PastReign,
    decision: &Decision,
) -> Receipts {
    let receipt = receipt(record, old, old.primary_name.clone(), &forks(spec, old, decision), false);
    let note = format!(
        "{} leads on at epoch {}, and what was acknowledged beyond what it has is not known; lost: {}",
        receipt.to, record.epoch, receipt.lost
    );
    plan.event(true, EventReason::LossKnown, note);
    Receipts { last: Some(receipt), forks: BTreeMap::new(), before: before(spec, old) }
}

/// True if the primary of a reign still has all that it took then: it synced what it acknowledged, or its machine was not booted
/// since, or only after a clean stop.
fn remembers(context: &Context<'_>, past: &Past) -> bool {
    let boot = |process: &str| process.split_once('/').map(|(boot, _)| boot.to_owned());
    let same = |now: &str| now == past.process || (boot(now).is_some() && boot(now) == boot(&past.process));
    let syncs = past.synced && context.settings.member.durability == Durability::Sync;
    let now = answering(context).get(past.reign.primary.as_str()).map(|(_, report)| &report.process_id);
    syncs || parovoz_mutant::on("power-forgives") || now.is_some_and(|now| same(now))
}

/// A primary that leads on is about to take another's copy of a prefix in which it does not know what it had, and will know
/// its position afterwards: that is noted first. Where writes wait for replicas, votes proved that none is missing.
pub(crate) fn copied(
    context: &Context<'_>,
    plan: &mut Plan,
    current: &ReignRecord,
    case: &Case,
    decision: &Decision,
    candidate: &str,
) {
    let Some(spec) = context.observed.own_reign().map(|reign| &reign.spec) else { return };
    let Some(old) = last_served(spec).filter(|old| old.primary == candidate) else { return };
    let may_lack = current.accept_loss || case.olds.iter().any(|past| past.reign.w == 0);
    let whole = case.ballots.get(candidate).is_some_and(|ballot| is_within(ballot, decision));
    let noted = since(spec, old).is_some_and(|receipt| receipt.to == receipt.from);
    if !may_lack || whole || noted {
        return;
    }
    let receipt = receipt(current, old, old.primary_name.clone(), &forks(spec, old, decision), false);
    let note = format!("{} takes over copies of others at epoch {}; lost: {}", receipt.to, current.epoch, receipt.lost);
    plan.event(true, EventReason::LossKnown, note);
    let receipts = Receipts { last: Some(receipt), forks: BTreeMap::new(), before: before(spec, old) };
    swap_with(context, plan, current.clone(), receipts);
}

/// The receipt of a reign that was begun since this one served.
fn since<'a>(spec: &'a StoreReignSpec, old: &PastReign) -> Option<&'a FailoverReceipt> {
    spec.last_failover.as_ref().filter(|receipt| receipt.epoch > old.epoch)
}

/// True if a sealed member has nothing that is not in a decision's history. Records of an earlier epoch may have left it.
fn is_within(ballot: &Ballot, decision: &Decision) -> bool {
    let within = |(uuid, decided): (&String, &Decided)| {
        let at = ballot.vote(uuid).known();
        at.is_some_and(|at| at.sequence == 0 || at.epoch == decided.position.epoch)
    };
    decision.iter().all(within)
}

fn receipt(
    record: &ReignRecord,
    old: &PastReign,
    to: String,
    forks: &BTreeMap<String, String>,
    none: bool,
) -> FailoverReceipt {
    let top = forks.values().filter_map(|text| parse(text)).fold(Position::default(), |sum, at| Position {
        epoch: sum.epoch.max(at.epoch),
        sequence: sum.sequence.saturating_add(at.sequence),
    });
    FailoverReceipt {
        at: record.begun_at.clone(),
        epoch: record.epoch,
        from: old.primary_name.clone(),
        from_data_uuid: old.primary.clone(),
        to,
        cause: format!("{:?}", record.cause),
        phases: phases(record),
        outcome: if none { LossOutcome::None } else { LossOutcome::Unknown },
        lost: if none { "none".to_owned() } else { format!("unknown after ({}, {})", top.epoch, top.sequence) },
        ranges: Vec::new(),
    }
}

/// Where the history left the old primary's, in each prefix: where a reign began that did not come to serve, if the decision
/// goes on from that.
fn forks(spec: &StoreReignSpec, old: &PastReign, decision: &Decision) -> BTreeMap<String, String> {
    let before = since(spec, old).and_then(|receipt| u64::try_from(receipt.epoch).ok());
    let fork = |(uuid, decided): (&String, &Decided)| {
        let at = decided.position;
        let earlier = before.filter(|epoch| at.epoch >= *epoch).and_then(|_| spec.forks.get(uuid));
        (uuid.clone(), earlier.cloned().unwrap_or_else(|| format!("{}.{}", at.epoch, at.sequence)))
    };
    decision.iter().map(fork).collect()
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
pub(crate) fn served(spec: &StoreReignSpec, record: &ReignRecord) -> Receipts {
    let mut receipts = Receipts { before: None, ..Receipts::of(spec) };
    if let Some(receipt) = receipts.last.as_mut().filter(|receipt| receipt.epoch == record.epoch) {
        receipt.phases = phases(record);
    }
    receipts
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
    let led = |past: &&PastReign| {
        past.epoch < receipt.epoch && past.phase == ReignPhase::Serving && past.primary == receipt.from_data_uuid
    };
    let past = spec.history.iter().find(led);
    // The old primary cannot answer for whoever was to lead after it, and may have acknowledged something.
    let between = |other: &PastReign| {
        let later = past.is_some_and(|past| other.epoch > past.epoch) && other.epoch < receipt.epoch;
        later
            && other.phase == ReignPhase::Promoting
            && other.min_sync_replicas == 0
            && other.primary != receipt.from_data_uuid
    };
    let knows = past.is_some_and(|past| remembers(context, &record::old(past))) && !spec.history.iter().any(between);
    let (outcome, ranges) = compare(spec, report, knows);
    let lost = match outcome {
        LossOutcome::None => "none".to_owned(),
        LossOutcome::Unknown if ranges.is_empty() => format!("{}; the old primary cannot tell", receipt.lost),
        LossOutcome::Ranges | LossOutcome::Unknown => in_words(&ranges, outcome == LossOutcome::Unknown),
    };
    let note = format!("{} was found again: lost at epoch {}: {lost}", receipt.from, receipt.epoch);
    plan.event(outcome != LossOutcome::None, EventReason::LossKnown, note);
    let receipt = FailoverReceipt { outcome, lost, ranges, ..receipt.clone() };
    let receipts = Receipts { last: Some(receipt), forks: BTreeMap::new(), ..Receipts::of(spec) };
    Some(swap_with(context, plan, current.clone(), receipts))
}

/// What a sealed old primary has beyond where the new one began; `knows` if that is all that can be missing.
fn compare(spec: &StoreReignSpec, report: &Report, knows: bool) -> (LossOutcome, Vec<LostRange>) {
    let mut ranges = Vec::new();
    let mut unknown = !knows;
    // Without a record of the fork's own epoch nobody knows where the two histories parted.
    let parted =
        |at: Position, fork: Position| at.sequence > 0 && at.epoch != fork.epoch && fork != Position::default();
    // It has followed since, perhaps in an attempt that was given up, and what it had beyond is gone.
    let since = spec.last_failover.as_ref().map_or(0, |receipt| receipt.epoch.unsigned_abs());
    for prefix in &report.prefixes {
        let fork = spec.forks.get(&prefix.prefix_uuid).and_then(|text| parse(text)).unwrap_or_default();
        match prefix.vote {
            Vote::Known(at) if parted(at, fork) => unknown = true,
            Vote::Known(at) if at.epoch >= since => unknown = true,
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
    unknown |= ranges.len() > RANGES;
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

/// Ranges for people, and whether there may be `more`, in no more than [`WORDS`] characters.
fn in_words(ranges: &[LostRange], more: bool) -> String {
    let one = |range: &LostRange| {
        format!("{} sequences {} to {} of epoch {}", range.prefix, range.first, range.last, range.epoch)
    };
    let and_more = if more { ", and perhaps more" } else { "" };
    let all = ranges.iter().map(one).collect::<Vec<_>>().join(", ");
    if all.len() + and_more.len() <= WORDS {
        return all + and_more;
    }
    let listed = ", ...; see ranges";
    let room = WORDS - listed.len() - and_more.len();
    all.chars().take(room).collect::<String>() + listed + and_more
}
