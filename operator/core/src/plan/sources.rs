//! Who missing copies are taken from: the least loaded complete replica, so that the primary serves clients meanwhile.

use std::collections::BTreeMap;

use parovoz_api::{MemberPhase, ReignRecord};

use super::Context;
use super::orders::Endpoint;
use super::record::answering;
use crate::observed::{KnownReign, Report};

/// What is decided for one follower.
pub(super) struct Choice {
    /// data_uuid of the source; None = the upstream.
    pub chosen: Option<String>,
    /// True if the follower lacks data and does not know a source that can give it, though there is one.
    pub matters: bool,
}

struct Source<'a> {
    report: &'a Report,
    ordinal: u32,
    /// Members that stream or copy from it.
    load: usize,
}

/// The replicas that may be sources under a reign, and how much each has to do.
pub(super) struct Sources<'a> {
    all: BTreeMap<&'a str, Source<'a>>,
}

impl<'a> Sources<'a> {
    pub(super) fn new(context: &Context<'a>, record: &ReignRecord, reign: &KnownReign) -> Self {
        let answering = answering(context);
        let listed = |uuid: &str| record.members.iter().any(|member| member.data_uuid == uuid);
        let load = |uuid: &str| {
            let takes = |report: &Report| {
                report.upstream_data_uuid == uuid || (!report.complete && report.bootstrap_source == uuid)
            };
            answering.values().filter(|(_, report)| takes(report)).count()
        };
        let all = answering
            .iter()
            .filter(|(uuid, (_, report))| **uuid != record.primary && listed(uuid) && gives(report, reign))
            .map(|(uuid, (ordinal, report))| (*uuid, Source { report, ordinal: *ordinal, load: load(uuid) }))
            .collect();
        Self { all }
    }

    /// The source of one follower. What it was told before stays as long as it can: a copy under way is not disturbed.
    pub(super) fn of(&self, follower: &Report, upstream: &Endpoint) -> Choice {
        let fits = |uuid: &str, source: &Source<'_>| {
            uuid != follower.data_uuid
                && uuid != upstream.data_uuid
                && source.report.upstream_data_uuid != follower.data_uuid
        };
        let present = self.all.get_key_value(follower.bootstrap_source.as_str()).filter(|(uuid, s)| fits(uuid, s));
        if let Some((uuid, _)) = present {
            return Choice { chosen: Some((*uuid).to_owned()), matters: false };
        }
        let candidates = self.all.iter().filter(|(uuid, source)| fits(uuid, source));
        let least = candidates
            .min_by_key(|(_, source)| (source.load, source.report.phase != MemberPhase::Streaming, source.ordinal));
        let chosen = least.map(|(uuid, _)| (*uuid).to_owned());
        Choice { matters: chosen.is_some() && !follower.complete, chosen }
    }

    /// Counts an order that was just given.
    pub(super) fn load(&mut self, uuid: Option<&str>) {
        if let Some(source) = uuid.and_then(|uuid| self.all.get_mut(uuid)) {
            source.load += 1;
        }
    }
}

/// True if a replica is whole and follows this very reign: its data plane refuses anybody else anyway.
fn gives(report: &Report, reign: &KnownReign) -> bool {
    report.usable()
        && report.upstream_connected
        && report.role != parovoz_api::MemberRole::Primary
        && report.promised(reign.epoch, &reign.reign_id)
}
