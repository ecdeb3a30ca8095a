//! What a member tells the operator about itself: as the data plane's `member/report`, without the protobuf in between.

use std::rc::Rc;
use std::time::Duration;

use parovoz_api::{MemberPhase, MemberRole, Mode};
use parovoz_dataplane_core::acks::{Present, Retention};
use parovoz_dataplane_core::follower::StreamState;
use parovoz_dataplane_core::role::Standing;
use parovoz_dataplane_core::types::{DataUuid, Mode as CoreMode, Position, Reign, ReignRef};
use parovoz_dataplane_core::vote::{Vote, vote};
use parovoz_operator_core::observed::{
    FollowerReport, KnownReign, Position as Seen, PrefixReport, ReignRef as SeenRef, Report,
};
use parovoz_operator_core::quorum::Vote as SeenVote;

use super::prefix::{Phase, Prefix};
use super::{Cx, Process};
use crate::msg::Msg;

/// An fsync that takes longer than this is told of.
const STALLED_MS: u64 = 200;

fn seen(at: Position) -> Seen {
    Seen { epoch: at.epoch.0, sequence: at.sequence.0 }
}

fn seen_ref(reign: ReignRef) -> SeenRef {
    SeenRef { epoch: reign.epoch.0, reign_id: reign.reign_id.to_string() }
}

/// A reign as the operator knows it.
#[must_use]
pub fn known(reign: &Reign) -> KnownReign {
    KnownReign {
        epoch: reign.epoch.0,
        reign_id: reign.reign_id.to_string(),
        primary: reign.primary.to_string(),
        members: reign.members.iter().map(ToString::to_string).collect(),
        mode: match reign.mode {
            CoreMode::Async => Mode::Async,
            CoreMode::Quorum => Mode::Quorum,
        },
        min_sync_replicas: reign.min_sync_replicas,
        lease_duration_ms: reign.lease_duration_ms,
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Process {
    /// Sends a report to every operator that listens.
    pub(super) fn report(&mut self, cx: &mut Cx<'_>) {
        if self.watchers.is_empty() {
            return;
        }
        self.report_due = false;
        self.reported_ms = cx.now_ms;
        cx.check.voted(cx.now, self.ordinal, self.me, &self.votes());
        if self.stored.sealed.is_some() {
            cx.check.promised(cx.now, self.ordinal, self.me, &self.stored);
        }
        let report = Rc::new(self.present(cx));
        for watcher in self.watchers.clone() {
            cx.send(watcher, Msg::Report { pod_uid: self.pod_uid.clone(), report: report.clone() });
        }
    }

    fn present(&self, cx: &Cx<'_>) -> Report {
        let now = cx.now_ms;
        let fenced = self.role.standing() == Standing::Fenced;
        let complete = self.is_complete();
        let (upstream, connected) = match &self.follow {
            Some(follow) => (Some(&follow.upstream), follow.is_connected()),
            None => (None, false),
        };
        let prefixes: Vec<PrefixReport> = self.prefixes.values().map(|p| self.prefix_report(p)).collect();
        Report {
            store_uid: self.store.to_string(),
            data_uuid: self.me.to_string(),
            process_id: self.process_id.clone(),
            role: if self.view.is_primary { MemberRole::Primary } else { MemberRole::Replica },
            phase: self.phase(complete, connected),
            reign: self.stored.promised.as_ref().map(known),
            started_epoch: self.stored.started.0,
            prefixes,
            followers: if self.view.is_primary { self.followers(now) } else { Vec::new() },
            upstream_data_uuid: upstream.and_then(|u| u.data_uuid).map(|u| u.to_string()).unwrap_or_default(),
            upstream_address: upstream.map(|u| u.replication.clone()).unwrap_or_default(),
            bootstrap_source: self.source.as_ref().and_then(|s| s.data_uuid).map(|s| s.to_string()).unwrap_or_default(),
            primary_data_uuid: self.told_primary().map(|p| p.to_string()).unwrap_or_default(),
            upstream_connected: connected,
            disk_free_bytes: if cx.volume.full { 0 } else { 1 << 30 },
            disk_total_bytes: 2 << 30,
            reason: String::new(),
            restarts: 0,
            complete: complete || fenced,
            sealed: self.stored.sealed.map(seen_ref),
            primary_silence: if self.view.is_primary { None } else { self.role.silence_ms(now).map(ms) },
            can_acknowledge: self.view.is_primary && self.role.can_acknowledge(now),
            oldest_wait: ms(self.oldest_wait_ms(now)),
            stalled_fsync: self.role.stalled_fsync_ms(now).filter(|s| *s >= STALLED_MS).map(ms),
            frozen: ms(self.role.frozen_until_ms().saturating_sub(now)),
            uptime: ms(self.role.uptime_ms(now)),
            config_hash: String::new(),
        }
    }

    /// The primary of the promised reign, if an order named it.
    fn told_primary(&self) -> Option<DataUuid> {
        let leader = self.promised().map(|reign| reign.primary);
        self.view.primary.as_ref().and_then(|p| p.data_uuid).filter(|told| Some(*told) == leader)
    }

    fn is_complete(&self) -> bool {
        let catalogue = self.prefixes.get(&self.catalogue());
        let known = catalogue.is_some_and(|c| c.copy.is_some() && c.history.newest().is_some());
        known
            && self.unlisted.is_empty()
            && self.prefixes.values().all(|p| {
                p.copy.is_some() && !matches!(p.phase, Phase::Bootstrapping | Phase::Stopped) && !self.below_floor(p)
            })
    }

    fn phase(&self, complete: bool, connected: bool) -> MemberPhase {
        if self.view.is_primary {
            return MemberPhase::Serving;
        }
        if self.stored.promised.is_none() && self.prefixes.is_empty() {
            return MemberPhase::Blank;
        }
        if self.follow.is_none() {
            return MemberPhase::Waiting;
        }
        if self.prefixes.values().any(|p| p.phase == Phase::Bootstrapping) {
            return MemberPhase::Bootstrapping;
        }
        if !connected {
            return MemberPhase::Waiting;
        }
        let close = self.prefixes.values().all(|p| {
            let state = self.follow.as_ref().and_then(|f| f.state(p.uuid));
            let lag = p.upstream_latest.sequence.0.saturating_sub(p.applied.0);
            state == Some(StreamState::Streaming) && lag <= 10_000
        });
        if close && complete { MemberPhase::Streaming } else { MemberPhase::CatchingUp }
    }

    fn prefix_report(&self, prefix: &Prefix) -> PrefixReport {
        let vote = match vote(self.facts(prefix)) {
            Vote::Known(at) => SeenVote::Known(seen(at)),
            Vote::Unknown { floor } => SeenVote::Unknown { floor: floor.map(seen) },
        };
        PrefixReport {
            name: prefix.name.to_string(),
            prefix_uuid: prefix.uuid.to_string(),
            applied: seen(prefix.at()),
            bootstrap: None,
            reason: String::new(),
            system: prefix.name.is_catalogue(),
            vote,
            served: self.view.is_primary && self.role.is_served(prefix.uuid),
            upstream_latest: seen(prefix.upstream_latest),
        }
    }

    fn followers(&self, now_ms: u64) -> Vec<FollowerReport> {
        let keep = Retention { seconds: 7_200, bytes: None };
        let at = |p: &Prefix| Present { prefix: p.uuid, sequence: p.applied, bytes_total: p.bytes_total };
        let present: Vec<_> = self.prefixes.values().map(at).collect();
        let reports = self.acks.follower_reports(now_ms, keep, &present).into_iter();
        reports
            .map(|f| FollowerReport {
                data_uuid: f.data_uuid.to_string(),
                connected: f.connected,
                lag_sequences: f.lag_sequences,
                lag_bytes: f.lag_bytes,
                lag_ms: f.lag_ms,
                window_left_seconds: f.window_left_seconds,
            })
            .collect()
    }
}
