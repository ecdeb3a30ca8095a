//! The members' part of the status.

use std::collections::BTreeSet;

use parovoz_api::{BootstrapStatus, Lag, MemberPhase, MemberStatus, Position, ReignRecord, TimeSpan};

use super::{signed, span};
use crate::names;
use crate::observed::{FollowerReport, Observed, PodFacts, Report};
use crate::plan::Plan;

pub(super) fn members(observed: &Observed, plan: &Plan, record: Option<&ReignRecord>) -> Vec<MemberStatus> {
    let pods = observed.pods.iter().filter(|pod| pod.owned).map(|pod| pod.ordinal);
    let all: BTreeSet<u32> = plan.target.iter().copied().chain(pods).collect();
    let leader = super::primary(observed, record);
    all.into_iter()
        .map(|ordinal| {
            let mut member = from_pod(observed, ordinal);
            match observed.answer(ordinal).or_else(|| observed.parked(ordinal)) {
                Some(report) => describe(observed, &mut member, report, leader.map(|(_, report)| report)),
                None => silent(observed, &mut member, ordinal),
            }
            member
        })
        .collect()
}

fn from_pod(observed: &Observed, ordinal: u32) -> MemberStatus {
    let pod = observed.pod(ordinal);
    MemberStatus {
        name: names::member(&observed.store.name, ordinal),
        node: pod.and_then(|pod| pod.node.clone()),
        phase: if pod.is_some_and(|pod| pod.node.is_some()) { MemberPhase::Unreachable } else { MemberPhase::Creating },
        reason: pod.and_then(|pod| pod.trouble.clone()),
        ..MemberStatus::default()
    }
}

/// A member that does not answer keeps the identity that it last told.
fn silent(observed: &Observed, member: &mut MemberStatus, ordinal: u32) {
    if observed.pod(ordinal).is_some_and(|pod: &PodFacts| pod.deleting) && member.reason.is_none() {
        member.reason = Some("the pod is being deleted".into());
    }
    if let Some(report) = observed.last_word(ordinal) {
        member.data_uuid = Some(report.data_uuid.clone()).filter(|uuid| !uuid.is_empty());
        member.position = position(report);
        if member.reason.is_none() {
            member.reason = Some("the member does not answer on its administration port".into());
        }
    }
}

fn describe(observed: &Observed, member: &mut MemberStatus, report: &Report, leader: Option<&Report>) {
    member.data_uuid = Some(report.data_uuid.clone()).filter(|uuid| !uuid.is_empty());
    member.role = report.role;
    member.phase = report.phase;
    member.restarts = i32::try_from(report.restarts).unwrap_or(i32::MAX);
    member.position = position(report);
    member.bootstrap = bootstrap(report);
    member.config_outdated = crate::settings::Settings::parse(&observed.store.spec)
        .is_ok_and(|settings| !report.config_hash.is_empty() && report.config_hash != settings.member.fingerprint());
    if !report.upstream_data_uuid.is_empty() {
        let by_identity = |pod: &&PodFacts| {
            observed.answer(pod.ordinal).is_some_and(|other| other.data_uuid == report.upstream_data_uuid)
        };
        member.upstream = observed.pods.iter().find(by_identity).map(|pod| pod.name.clone());
    }
    let progress = leader.and_then(|leader| {
        leader.followers.iter().find(|follower: &&FollowerReport| follower.data_uuid == report.data_uuid)
    });
    if let Some(progress) = progress {
        member.lag = Some(Lag {
            sequences: signed(progress.lag_sequences),
            bytes: signed(progress.lag_bytes),
            time: span(progress.lag_ms),
        });
        member.window_left = progress.window_left_seconds.map(TimeSpan::seconds);
    }
    let stopped = report.prefixes.iter().find(|prefix| !prefix.reason.is_empty());
    let reason = if report.reason.is_empty() {
        stopped.map(|prefix| format!("prefix {}: {}", prefix.name, prefix.reason))
    } else {
        Some(report.reason.clone())
    };
    member.reason = reason.or(member.reason.take());
}

fn position(report: &Report) -> Option<Position> {
    let sum = report.summary();
    (!report.prefixes.is_empty()).then(|| Position { epoch: signed(sum.epoch), sequence: signed(sum.sequence) })
}

/// All copies under way, as one.
fn bootstrap(report: &Report) -> Option<BootstrapStatus> {
    let copies = || report.prefixes.iter().filter_map(|prefix| prefix.bootstrap.as_ref());
    let method = copies().next()?.method.clone();
    let done: u64 = copies().map(|copy| copy.bytes_done).sum();
    let total: u64 = copies().map(|copy| copy.bytes_total).sum();
    let rate: u64 = copies().map(|copy| copy.bytes_per_second).sum();
    let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0).min(100);
    let eta = total.saturating_sub(done).checked_div(rate).map(TimeSpan::seconds);
    Some(BootstrapStatus {
        method,
        percent: i32::try_from(percent).unwrap_or(100),
        bytes: signed(done),
        bytes_total: signed(total),
        eta,
    })
}
