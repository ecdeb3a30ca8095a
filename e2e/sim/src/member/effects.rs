//! Performs what the role's core asks for: in order, each done before the next, with a crash between any two now and then.

use std::collections::BTreeMap;

use parovoz_dataplane_core::history::EpochRecord;
use parovoz_dataplane_core::role::{Effect, Event};
use parovoz_dataplane_core::types::{Reign, Sequence};

use super::prefix::{Entry, Phase};
use super::{Cx, Out, Process, Timer, View};
use crate::msg::{API, CLIENTS, Msg, Response};

impl Process {
    /// Performs effects until one waits for the disk.
    pub(super) fn run_effects(&mut self, cx: &mut Cx<'_>) {
        while !self.waiting_for_disk {
            let Some(effect) = self.effects.front() else { break };
            if let Some(left) = &mut self.die_at_effect {
                if *left == 0 {
                    cx.cov.hit("crash between effects");
                    cx.out.push(Out::Die(super::IN_EFFECTS));
                    return;
                }
                *left -= 1;
            }
            if matches!(effect, Effect::SyncAll | Effect::Store(_) | Effect::WriteEpochRecords(_)) {
                if let Effect::WriteEpochRecords(reign) = effect {
                    let reign = reign.clone();
                    self.begin_epoch(cx, &reign);
                }
                self.waiting_for_disk = true;
                cx.out.push(Out::Disk(Timer::EffectDone));
                return;
            }
            if let Some(effect) = self.effects.pop_front() {
                self.perform(cx, effect);
            }
        }
        if self.effects.is_empty() {
            if let Some((from, call)) = self.answer.take() {
                self.told(cx, from, call);
            }
            self.next_order(cx);
        }
    }

    /// The disk did what the first effect asks for.
    pub(super) fn effect_done(&mut self, cx: &mut Cx<'_>) {
        self.waiting_for_disk = false;
        match self.effects.pop_front() {
            Some(Effect::SyncAll) => {
                for prefix in self.prefixes.values_mut() {
                    if let Some(copy) = &prefix.copy
                        && copy.db.sync().is_ok()
                    {
                        prefix.durable = prefix.applied;
                    }
                }
            }
            Some(Effect::Store(record)) => {
                self.stored = (*record).clone();
                cx.volume.store(*record, !parovoz_mutant::on("promise-not-synced"));
            }
            Some(Effect::WriteEpochRecords(reign)) => self.epoch_written(cx, &reign),
            Some(other) => self.perform(cx, other),
            None => {}
        }
        self.run_effects(cx);
    }

    fn perform(&mut self, cx: &mut Cx<'_>, effect: Effect) {
        self.report_due = true;
        match effect {
            Effect::StopServing => {
                for prefix in self.prefixes.values_mut() {
                    prefix.writer = None;
                    if prefix.phase == Phase::Serving {
                        prefix.phase = Phase::Open;
                    }
                }
                self.view = View::default();
                self.drop_ack_sessions(cx);
                self.refuse_waiting_reads(cx);
                self.refuse_frozen(cx);
            }
            Effect::StopFollowing => self.stop_following(cx),
            Effect::CutOldStreams => self.cut_old_streams(cx),
            Effect::RefuseParked => self.refuse_parked(cx),
            Effect::StartFollowing { reign: _, upstream, primary } => {
                self.view = View { is_primary: false, primary: Some(primary) };
                self.expect_catalogue();
                self.start_following(cx, upstream, None);
            }
            Effect::StartPulling { reign: _, source, upto } => {
                cx.cov.hit("pull");
                self.expect_catalogue();
                self.start_following(cx, source, Some(upto));
            }
            Effect::BeginLeading(reign) => {
                cx.check.started(cx.now, self.ordinal, self.me, &reign);
                let me = self.ordinal;
                cx.trace.say(cx.now, || format!("member {me}: begins to lead epoch {}", reign.epoch));
                self.drop_ack_sessions(cx);
                self.acks.clear();
                self.view = View { is_primary: true, primary: None };
                if self.prefixes.is_empty() {
                    self.create_blank(cx);
                }
                self.progress(cx);
            }
            Effect::ServePrefix(uuid) => self.serve_prefix(cx, uuid),
            Effect::AllServed => {
                cx.cov.hit("all served");
            }
            Effect::RenewLease { reign, sent_at_ms } => {
                cx.send(API, Msg::RenewLease { call: sent_at_ms, reign });
            }
            Effect::SyncAll | Effect::Store(_) | Effect::WriteEpochRecords(_) => {}
        }
    }

    /// The Lease's answer; the call is the time that the renewal counts from.
    pub(super) fn lease_answer(&mut self, cx: &mut Cx<'_>, sent_at_ms: u64, held: bool) {
        let Some(reign) = self.role.led().map(Reign::to_ref) else { return };
        let event = if held { Event::LeaseRenewed { reign, sent_at_ms } } else { Event::LeaseLost { reign } };
        cx.cov.hit(if held { "lease renewed" } else { "lease lost" });
        let _ = self.step(cx, event);
        self.release_all(cx);
    }

    /// What acknowledgements allow.
    pub(super) fn progress(&mut self, cx: &mut Cx<'_>) {
        let mut effects = Vec::new();
        self.role.progress(&self.acks, &mut effects);
        if !effects.is_empty() {
            self.effects.extend(effects);
            self.run_effects(cx);
        }
    }

    fn begin_epoch(&mut self, cx: &mut Cx<'_>, reign: &Reign) {
        for prefix in self.prefixes.values_mut() {
            let Some(copy) = &prefix.copy else { continue };
            let start = copy.db.latest().next();
            let record = EpochRecord { epoch: reign.epoch, reign_id: reign.reign_id, start };
            if prefix.history.push(record).is_err() {
                cx.check
                    .fail(cx.now, format!("member {}: epoch {} does not fit the history", self.ordinal, reign.epoch));
                return;
            }
            self.builder.put_meta(&record.key(), &record.value());
            let count = self.builder.count();
            let bytes = self.builder.finish();
            let Ok(first) = copy.db.write(&bytes, false) else {
                cx.out.push(Out::Die("a failed write"));
                return;
            };
            cx.check.wrote(cx.now, self.ordinal, prefix.uuid, reign.epoch, first, &bytes);
            prefix.publish(Entry { epoch: reign.epoch, first, count, bytes });
            prefix.writer = Some(reign.to_ref());
        }
    }

    fn epoch_written(&mut self, cx: &mut Cx<'_>, reign: &Reign) {
        let mut records: BTreeMap<_, Sequence> = BTreeMap::new();
        for prefix in self.prefixes.values_mut() {
            let Some(copy) = &prefix.copy else { continue };
            if copy.db.sync().is_err() {
                cx.out.push(Out::Die("a failed sync"));
                return;
            }
            prefix.durable = prefix.applied;
            if let Some(newest) = prefix.history.newest() {
                records.insert(prefix.uuid, newest.start);
            }
        }
        let uuids: Vec<_> = self.prefixes.keys().copied().collect();
        for uuid in uuids {
            self.push_streams(cx, uuid);
        }
        let _ = self.step(cx, Event::Written { reign: reign.to_ref(), records });
        self.progress(cx);
    }

    fn serve_prefix(&mut self, cx: &mut Cx<'_>, uuid: parovoz_dataplane_core::types::PrefixUuid) {
        let Some(reign) = self.role.led().cloned() else { return };
        if let Some(prefix) = self.prefixes.get_mut(&uuid) {
            prefix.phase = Phase::Serving;
            cx.check.serves(cx.now, self.ordinal, &reign, prefix);
            let (me, at) = (self.ordinal, prefix.at());
            let name = &prefix.name;
            cx.trace.say(cx.now, || format!("member {me}: serves {name} from {at}"));
        }
        self.release(cx, uuid);
    }

    fn refuse_parked(&mut self, cx: &mut Cx<'_>) {
        for prefix in self.prefixes.values_mut() {
            for parked in prefix.parked.drain(..) {
                cx.cov.hit("parked write answered: unknown");
                cx.out.push(Out::Send(CLIENTS, Msg::Response { op: parked.op, response: Response::Unknown }));
            }
        }
    }
}
