//! What a member says and does: the rules that the data plane promises, on values.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use parovoz_api::{MemberPhase, MemberRole};
use parovoz_operator_core::names;
use parovoz_operator_core::observed::{FollowerReport, KnownReign, Position, PrefixReport, ReignRef, Report};
use parovoz_operator_core::plan::{Order, OrderKind, PrefixPosition, SealEvidence};
use parovoz_operator_core::quorum::Vote;

use super::{CATALOGUE, PROMISE, Process, STORE_UID, Volume, World};

impl World {
    pub fn report(&self, ordinal: u32) -> Option<Report> {
        let process = self.processes.get(&ordinal)?;
        let volume = self.volume(ordinal)?;
        if process.parked {
            return Some(Report {
                store_uid: STORE_UID.into(),
                process_id: process.id.clone(),
                role: MemberRole::Replica,
                phase: MemberPhase::Parked,
                reason: "open member slot: checksum differs".into(),
                ..Report::default()
            });
        }
        let connected = process.upstream.is_some() && process.heard == Some(self.now);
        let serves = process.primary && self.serves(ordinal);
        let since = |time: Timestamp| Duration::try_from(self.now.duration_since(time)).unwrap();
        let phase = match (process.primary, volume.blank) {
            (true, _) if serves => MemberPhase::Serving,
            (true, _) => MemberPhase::Waiting,
            (false, true) => MemberPhase::Blank,
            (false, false) if !volume.complete => MemberPhase::Bootstrapping,
            (false, false) if connected => MemberPhase::Streaming,
            (false, false) => MemberPhase::Waiting,
        };
        let (upstream_data_uuid, upstream_address) = process.upstream.clone().unwrap_or_default();
        Some(Report {
            store_uid: STORE_UID.into(),
            data_uuid: volume.data_uuid.clone(),
            process_id: process.id.clone(),
            // A sealed primary is none any more.
            role: if process.primary && volume.sealed.is_none() { MemberRole::Primary } else { MemberRole::Replica },
            phase,
            reign: volume.reign.clone(),
            started_epoch: volume.started,
            prefixes: volume
                .positions
                .iter()
                .map(|(uuid, applied)| PrefixReport {
                    name: uuid.clone(),
                    prefix_uuid: uuid.clone(),
                    applied: *applied,
                    system: uuid == CATALOGUE,
                    vote: if volume.complete { Vote::Known(*applied) } else { Vote::Unknown { floor: Some(*applied) } },
                    served: serves,
                    upstream_latest: *applied,
                    ..PrefixReport::default()
                })
                .collect(),
            followers: if process.primary { self.followers(volume) } else { Vec::new() },
            upstream_data_uuid,
            upstream_address,
            primary_data_uuid: process.told_primary.clone(),
            bootstrap_source: process.source.clone(),
            upstream_connected: connected,
            disk_free_bytes: 900,
            disk_total_bytes: 1000,
            complete: volume.complete && !volume.blank,
            sealed: volume.sealed.clone(),
            primary_silence: if process.primary { None } else { process.heard.map(since) },
            can_acknowledge: serves && !process.hangs && self.acknowledges(ordinal),
            stalled_fsync: process.hangs.then_some(Duration::from_secs(30)),
            frozen: process
                .frozen
                .map_or(Duration::ZERO, |until| Duration::try_from(until.duration_since(self.now)).unwrap_or_default()),
            uptime: process.started_at.map(since).unwrap_or_default(),
            ..Report::default()
        })
    }

    /// Replicas that follow a primary under its own reign, whole and in reach.
    pub(super) fn joined(&self, primary: u32) -> usize {
        let Some(volume) = self.volume(primary) else { return 0 };
        let reign = volume.reign.as_ref();
        let joined = |(ordinal, process): &(&u32, &Process)| {
            **ordinal != primary
                && process.upstream.as_ref().is_some_and(|(uuid, _)| *uuid == volume.data_uuid)
                && !self.apart.contains(*ordinal)
                && !self.apart.contains(&primary)
                && self.volume(**ordinal).is_some_and(|other| {
                    other.complete
                        && other.sealed.is_none()
                        && other.reign.as_ref() == reign
                        && reign.is_some_and(|reign| reign.members.contains(&other.data_uuid))
                })
        };
        self.processes.iter().filter(joined).count()
    }

    pub(super) fn acknowledges(&self, ordinal: u32) -> bool {
        let volume = self.volume(ordinal).unwrap();
        let Some(reign) = &volume.reign else { return false };
        volume.sealed.is_none() && self.joined(ordinal) >= usize::try_from(reign.min_sync_replicas).unwrap()
    }

    /// The members that would acknowledge a write now.
    pub fn acknowledging(&self) -> Vec<u32> {
        let leads = |(ordinal, process): (&u32, &Process)| {
            let ordinal = *ordinal;
            let reign = self.volume(ordinal)?.reign.clone()?;
            let lease = reign.min_sync_replicas > 0
                || (!self.apart.contains(&ordinal)
                    && self.lease.epoch <= reign.epoch
                    && self.now.duration_since(self.lease_moved) < SignedDuration::from_secs(10));
            let acknowledges = process.primary && !process.hangs && self.serves(ordinal) && self.acknowledges(ordinal);
            (acknowledges && lease).then_some(ordinal)
        };
        self.processes.iter().filter_map(leads).collect()
    }

    /// A primary serves from when W replicas joined; it goes on while they are away, and stops when it is sealed.
    pub(super) fn serves(&self, ordinal: u32) -> bool {
        let volume = self.volume(ordinal).unwrap();
        let epoch = volume.reign.as_ref().map_or(0, |reign| reign.epoch);
        volume.sealed.is_none() && volume.positions.get(CATALOGUE).is_some_and(|at| at.epoch == epoch)
    }

    pub(super) fn followers(&self, primary: &Volume) -> Vec<FollowerReport> {
        let others = self.processes.keys().filter_map(|ordinal| self.volume(*ordinal));
        others
            .filter(|volume| volume.data_uuid != primary.data_uuid && !volume.blank)
            .map(|volume| FollowerReport {
                data_uuid: volume.data_uuid.clone(),
                connected: true,
                lag_sequences: primary.positions.values().map(|p| p.sequence).sum::<u64>()
                    - volume
                        .positions
                        .values()
                        .map(|p| p.sequence)
                        .sum::<u64>()
                        .min(primary.positions.values().map(|p| p.sequence).sum()),
                ..FollowerReport::default()
            })
            .collect()
    }

    /// What a member does with an order: the rules that the data plane promises.
    pub(super) fn obey(&mut self, order: &Order) {
        let Some(ordinal) = names::ordinal_of("cache", &order.pod) else { return };
        if self.cut.contains_key(&ordinal)
            || self.volume(ordinal).is_none_or(|volume| volume.data_uuid != order.data_uuid)
        {
            return;
        }
        if self.processes.get(&ordinal).is_none_or(|process| process.id != order.process_id) {
            return;
        }
        let now = self.now;
        let hangs = self.processes[&ordinal].hangs;
        let (heard, begun) = (self.processes[&ordinal].heard, self.processes[&ordinal].started_at);
        let lately =
            |time: Option<Timestamp>| time.is_some_and(|time| now.duration_since(time).unsigned_abs() < PROMISE);
        let source = match &order.kind {
            OrderKind::Pull { source, .. } => self
                .processes
                .keys()
                .find_map(|other| self.volume(*other).filter(|volume| volume.data_uuid == source.data_uuid))
                .cloned(),
            _ => None,
        };
        let volume = self.volume_mut(ordinal);
        let reference = |reign: &KnownReign| ReignRef { epoch: reign.epoch, reign_id: reign.reign_id.clone() };
        let given = reference(&order.reign);
        let promised = volume.reign.as_ref().map(reference).into_iter().chain(volume.sealed.clone()).max();
        let newer = promised.as_ref().is_some_and(|promised| {
            promised.epoch > given.epoch || (promised.epoch == given.epoch && promised.reign_id != given.reign_id)
        });
        match &order.kind {
            OrderKind::Seal { about, evidence } => {
                let led = volume.reign.as_ref().is_some_and(|reign| reign.primary == volume.data_uuid);
                let other = volume.reign.as_ref().is_some_and(|reign| reference(reign) != *about);
                let silent = (*evidence == SealEvidence::Silent || other) && !led;
                if newer || hangs || (silent && (lately(heard) || lately(begun))) {
                    return;
                }
                volume.sealed = Some(given);
            }
            OrderKind::Pull { upto, .. } => {
                assert_eq!(volume.sealed.as_ref(), Some(&given), "a pull to a member that is not sealed");
                let source = source.expect("a pull from nobody");
                for wanted in upto {
                    assert_eq!(source.positions.get(&wanted.prefix_uuid), Some(&wanted.position));
                    volume.positions.insert(wanted.prefix_uuid.clone(), wanted.position);
                    volume.complete = true;
                }
            }
            OrderKind::Freeze { duration } => {
                assert_eq!(volume.reign.as_ref(), Some(&order.reign), "frozen under another reign");
                let until = now.checked_add(SignedDuration::try_from(*duration).unwrap()).unwrap();
                self.processes.get_mut(&ordinal).unwrap().frozen = Some(until);
            }
            OrderKind::Promote { positions, first } => self.promoted(ordinal, order, positions, *first),
            OrderKind::Follow { upstream, primary, bootstrap_source } => {
                if newer || hangs {
                    return;
                }
                volume.reign = Some(order.reign.clone());
                volume.sealed = None;
                let process = self.processes.get_mut(&ordinal).unwrap();
                process.primary = false;
                process.frozen = None;
                process.told_primary = primary.data_uuid.clone();
                process.upstream = Some((upstream.data_uuid.clone(), upstream.replication_address.clone()));
                process.source = bootstrap_source.as_ref().map(|source| source.data_uuid.clone()).unwrap_or_default();
            }
        }
    }

    fn promoted(&mut self, ordinal: u32, order: &Order, positions: &[PrefixPosition], first: bool) {
        let epoch = order.reign.epoch;
        let volume = self.volume_mut(ordinal);
        let given = ReignRef { epoch, reign_id: order.reign.reign_id.clone() };
        assert_eq!(volume.sealed, Some(given), "a promotion of a member that did not seal it");
        assert!(epoch > volume.started, "an epoch is started again");
        assert!(first || !volume.blank, "a blank member is promoted");
        let mine = &volume.positions;
        assert_eq!(positions.len(), mine.len());
        assert!(positions.iter().all(|at| mine.get(&at.prefix_uuid) == Some(&at.position)));
        volume.started = epoch;
        volume.reign = Some(order.reign.clone());
        volume.sealed = None;
        volume.blank = false;
        volume.complete = true;
        assert!(self.started.insert(epoch), "epoch {epoch} is started twice");
        let process = self.processes.get_mut(&ordinal).unwrap();
        process.primary = true;
        process.upstream = None;
        process.frozen = None;
        self.begin_epochs();
    }

    /// Primaries that W replicas have joined write their epoch records.
    pub(super) fn begin_epochs(&mut self) {
        let leaders: Vec<u32> =
            self.processes.iter().filter(|(_, process)| process.primary).map(|(ordinal, _)| *ordinal).collect();
        for ordinal in leaders {
            if self.processes[&ordinal].hangs || !self.acknowledges(ordinal) || self.serves(ordinal) {
                continue;
            }
            let volume = self.volume_mut(ordinal);
            let epoch = volume.started;
            volume.positions.entry(CATALOGUE.into()).or_default();
            for position in volume.positions.values_mut() {
                *position = Position { epoch, sequence: position.sequence + 1 };
            }
        }
    }

    /// True if a primary of the reign that a member promised reaches it: it runs, and is not hung.
    pub(super) fn hears(&self, ordinal: u32) -> bool {
        let Some(reign) = self.volume(ordinal).and_then(|volume| volume.reign.clone()) else { return false };
        let leads = |(other, process): (&u32, &Process)| {
            process.primary
                && !process.hangs
                && !self.apart.contains(other)
                && self.volume(*other).is_some_and(|volume| {
                    volume.data_uuid == reign.primary && volume.started == reign.epoch && volume.sealed.is_none()
                })
        };
        !self.apart.contains(&ordinal) && self.processes.iter().any(leads)
    }

    /// Followers copy what their upstream has.
    pub fn stream(&mut self) {
        for ordinal in self.processes.keys().copied().collect::<Vec<_>>() {
            if self.hears(ordinal) {
                self.processes.get_mut(&ordinal).unwrap().heard = Some(self.now);
            }
        }
        for _ in 0..self.processes.len() {
            let followers: Vec<u32> = self.processes.keys().copied().collect();
            for ordinal in followers {
                let Some((upstream, _)) = self.processes[&ordinal].upstream.clone() else { continue };
                let reign = self.volume(ordinal).unwrap().reign.clone();
                let source = self.processes.keys().filter(|other| !self.apart.contains(other)).find_map(|other| {
                    self.volume(*other)
                        .filter(|volume| volume.data_uuid == upstream && !volume.blank && volume.reign == reign)
                });
                let Some(source) = source.cloned().filter(|_| !self.apart.contains(&ordinal)) else { continue };
                let volume = self.volume_mut(ordinal);
                if volume.sealed.is_some() {
                    continue;
                }
                volume.blank = false;
                volume.complete = true;
                volume.positions = source.positions;
            }
        }
        self.acknowledge();
    }

    /// The primary takes writes.
    pub fn write(&mut self, prefix: &str, records: u64) {
        let Some(leader) = self.leader().filter(|leader| self.serves(*leader)) else { return };
        let frozen = self.processes[&leader].frozen.is_some_and(|until| until > self.now);
        if frozen || self.processes[&leader].hangs {
            return;
        }
        let epoch = self.volume(leader).unwrap().started;
        let position = self.volume_mut(leader).positions.entry(prefix.into()).or_default();
        *position = Position { epoch, sequence: position.sequence + records };
    }

    /// A primary acknowledges what W replicas of its reign have.
    pub(super) fn acknowledge(&mut self) {
        for leader in self.acknowledging() {
            let volume = self.volume(leader).unwrap();
            let reign = volume.reign.clone().unwrap();
            let has = |volume: &Volume| volume.positions.get("users").map_or(0, |at| at.sequence);
            let follows = |ordinal: &&u32| {
                **ordinal != leader
                    && self.volume(**ordinal).is_some_and(|other| {
                        other.reign.as_ref() == Some(&reign) && reign.members.contains(&other.data_uuid)
                    })
            };
            let mut held: Vec<u64> =
                self.processes.keys().filter(follows).map(|ordinal| has(self.volume(*ordinal).unwrap())).collect();
            held.sort_unstable_by(|one, other| other.cmp(one));
            let w = usize::try_from(reign.min_sync_replicas).unwrap();
            let by_replicas = if w == 0 { u64::MAX } else { held.get(w - 1).copied().unwrap_or(0) };
            self.acknowledged = self.acknowledged.max(has(volume).min(by_replicas));
        }
    }
}
