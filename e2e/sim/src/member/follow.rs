//! The receiving side of a stream: what the data plane's `replication/{session,apply}` do.

use std::collections::BTreeMap;

use parovoz_dataplane_core::batch::{self, META_FAMILY, Record};
use parovoz_dataplane_core::follower::{
    BootstrapCause, Effect, Event, ReceivedBatch, RefusalReason, Session, StreamState, check_upstream,
};
use parovoz_dataplane_core::history::EpochRecord;
use parovoz_dataplane_core::member::Endpoint;
use parovoz_dataplane_core::role::Event as RoleEvent;
use parovoz_dataplane_core::types::{DataUuid, Position, PrefixUuid, ReignRef, Sequence};
use parovoz_dataplane_core::vote::{floor_is_met, is_below_floor};

use super::prefix::{Entry, Phase};
use super::{Cx, Out, Process, SILENCE_MS, Timer};
use crate::msg::{Conn, Hello, Msg, Node, ToFollower, ToUpstream};

/// Bytes that may be under way: from, to.
const WINDOW: (u64, u64) = (64 << 10, 256 << 10);
const LARGEST_BATCH: u64 = 64 << 10;

/// Whom this member follows, and how far that is.
#[derive(Debug)]
pub(super) struct Follow {
    pub(super) upstream: Endpoint,
    /// Fetch only these, up to here: under a seal.
    pub(super) pull: Option<BTreeMap<PrefixUuid, Position>>,
    link: Link,
    failures: u32,
    again_ms: u64,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of them in a process")]
enum Link {
    Off,
    Opening {
        conn: Conn,
        since_ms: u64,
    },
    /// The upstream's reign is being promised.
    Promising {
        conn: Conn,
        peer: Hello,
        reign: ReignRef,
    },
    Live(Box<Live>),
}

#[derive(Debug)]
struct Live {
    conn: Conn,
    node: Node,
    reign: ReignRef,
    path: Vec<DataUuid>,
    core: Session,
    heard_ms: u64,
}

impl Follow {
    /// Everyone that this member streams from.
    pub(super) fn path(&self) -> &[DataUuid] {
        match &self.link {
            Link::Live(live) => &live.path,
            _ => &[],
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        matches!(self.link, Link::Live(_))
    }

    pub(super) fn state(&self, prefix: PrefixUuid) -> Option<StreamState> {
        match &self.link {
            Link::Live(live) => live.core.state(prefix),
            _ => None,
        }
    }
}

impl Process {
    pub(super) fn start_following(
        &mut self,
        cx: &mut Cx<'_>,
        upstream: Endpoint,
        pull: Option<BTreeMap<PrefixUuid, Position>>,
    ) {
        // A running session for the same upstream under the same promise goes on.
        let mine = self.stored.promise_ref();
        if let Some(follow) = &mut self.follow
            && follow.upstream == upstream
            && matches!(&follow.link, Link::Live(live) if Some(live.reign) == mine)
        {
            if follow.pull != pull {
                follow.pull = pull;
                self.reconcile(cx);
            }
            return;
        }
        self.end_session(cx);
        self.follow = Some(Follow { upstream, pull, link: Link::Off, failures: 0, again_ms: 0 });
        self.connect(cx);
    }

    /// Nothing is applied, acknowledged or replaced after this.
    pub(super) fn stop_following(&mut self, cx: &mut Cx<'_>) {
        self.end_session(cx);
        self.follow = None;
        if !parovoz_mutant::on("sealed-promises") {
            self.stop_acks(cx);
        }
        self.stop_boots(cx);
    }

    fn end_session(&mut self, cx: &mut Cx<'_>) {
        let Some(follow) = &mut self.follow else { return };
        let conn = match std::mem::replace(&mut follow.link, Link::Off) {
            Link::Off => return,
            Link::Opening { conn, .. } | Link::Promising { conn, .. } => conn,
            Link::Live(live) => live.conn,
        };
        if let Some(node) = Self::node_of(&follow.upstream) {
            cx.send(node, Msg::Closed(conn));
        }
        for prefix in self.prefixes.values_mut() {
            if prefix.phase == Phase::Streaming {
                prefix.phase = Phase::Open;
            }
        }
        self.report_due = true;
    }

    fn failed(&mut self, cx: &mut Cx<'_>, why: &str) {
        let me = self.ordinal;
        cx.trace.say(cx.now, || format!("member {me}: its stream ends: {why}"));
        self.end_session(cx);
        if let Some(follow) = &mut self.follow {
            follow.link = Link::Off;
            follow.failures = (follow.failures + 1).min(5);
            let pause = (50 << follow.failures) + cx.rng.below(100);
            follow.again_ms = cx.now_ms + pause;
            cx.out.push(Out::After(pause * 1000 + 2_000, Timer::Connect));
        }
    }

    pub(super) fn connect(&mut self, cx: &mut Cx<'_>) {
        let Some(follow) = &self.follow else { return };
        if !matches!(follow.link, Link::Off) || cx.now_ms < follow.again_ms {
            return;
        }
        let wanted = follow.upstream.data_uuid;
        let Some(node) = Self::node_of(&follow.upstream) else { return };
        let conn = self.fresh_id();
        let hello = self.hello(wanted, false);
        if let Some(follow) = &mut self.follow {
            follow.link = Link::Opening { conn, since_ms: cx.now_ms };
        }
        cx.send(node, Msg::ToUpstream(conn, ToUpstream::Hello(hello)));
    }

    pub(super) fn closed(&mut self, cx: &mut Cx<'_>, conn: Conn) {
        self.streams.remove(&conn);
        self.end_ack_in(conn);
        let mine = self.follow.as_ref().is_some_and(|f| match &f.link {
            Link::Off => false,
            Link::Opening { conn: c, .. } | Link::Promising { conn: c, .. } => *c == conn,
            Link::Live(live) => live.conn == conn,
        });
        if mine {
            self.failed(cx, "closed");
        }
        self.ack_out_closed(cx, conn);
    }

    pub(super) fn on_to_follower(&mut self, cx: &mut Cx<'_>, from: Node, conn: Conn, m: ToFollower) {
        let Some(follow) = &mut self.follow else { return cx.send(from, Msg::Closed(conn)) };
        match (&mut follow.link, m) {
            (Link::Opening { conn: c, .. }, ToFollower::Hello(hello)) if *c == conn => self.hello_came(cx, conn, hello),
            (Link::Live(live), m) if live.conn == conn => {
                live.heard_ms = cx.now_ms;
                match m {
                    ToFollower::Hello(_) => self.failed(cx, "a second hello"),
                    ToFollower::Frames(frames) => {
                        for frame in frames {
                            self.session(cx, Event::Frame(frame));
                        }
                    }
                    ToFollower::Refusal { prefix, attempt, reason } => {
                        let me = self.ordinal;
                        cx.trace.say(cx.now, || format!("member {me}: {prefix} refused: {reason:?}"));
                        self.session(cx, Event::Refusal { prefix, attempt, reason });
                        if reason == RefusalReason::Unknown && parovoz_mutant::on("absence-is-deletion") {
                            self.session(cx, Event::Forget(prefix));
                            self.take_for_deleted(cx, prefix);
                        }
                    }
                    ToFollower::Beat { reign, latest } => self.session(cx, Event::Beat { reign, latest }),
                }
            }
            _ => cx.send(from, Msg::Closed(conn)),
        }
    }

    fn hello_came(&mut self, cx: &mut Cx<'_>, conn: Conn, hello: Hello) {
        let Some(follow) = &mut self.follow else { return };
        let wanted = follow.upstream.data_uuid;
        let own = self.own(wanted);
        let Some(follow) = &mut self.follow else { return };
        match check_upstream(&own, &hello.peer) {
            Err(error) => {
                cx.cov.hit("upstream refused");
                self.failed(cx, &error.to_string());
            }
            Ok(None) => {
                let Some(reign) = own.reign else { return self.failed(cx, "no reign") };
                follow.link = Link::Promising { conn, peer: hello, reign };
                self.go_live(cx);
            }
            Ok(Some(newer)) => {
                let Some(whole) = hello.whole.clone().filter(|w| w.to_ref() == newer) else {
                    return self.failed(cx, "no whole reign");
                };
                cx.cov.hit("newer reign met");
                follow.link = Link::Promising { conn, peer: hello, reign: newer };
                if let Err(error) = self.step(cx, RoleEvent::Met(whole)) {
                    self.failed(cx, &error);
                }
                self.go_live(cx);
            }
        }
    }

    /// Begins the session once the promise is stored.
    pub(super) fn go_live(&mut self, cx: &mut Cx<'_>) {
        if !self.effects.is_empty() {
            return;
        }
        let mine = self.stored.promise_ref();
        let Some(follow) = &mut self.follow else { return };
        let Link::Promising { conn, peer, reign } = &follow.link else { return };
        if Some(*reign) != mine {
            return self.failed(cx, "the promise changed");
        }
        let Some(node) = Self::node_of(&follow.upstream) else { return };
        let live = Live {
            conn: *conn,
            node,
            reign: *reign,
            path: peer.peer.path.clone(),
            core: Session::new(*reign, WINDOW.0, WINDOW.1, LARGEST_BATCH),
            heard_ms: cx.now_ms,
        };
        follow.link = Link::Live(Box::new(live));
        follow.failures = 0;
        self.report_due = true;
        cx.check.promised(cx.now, self.ordinal, self.me, &self.stored);
        self.reconcile(cx);
        self.start_acks(cx);
    }

    pub(super) fn cut_old_session(&mut self, cx: &mut Cx<'_>) {
        let mine = self.stored.promise_ref();
        let old = self.follow.as_ref().is_some_and(|f| match &f.link {
            Link::Live(live) => Some(live.reign) != mine,
            Link::Promising { reign, .. } => Some(*reign) != mine,
            Link::Opening { .. } => true,
            Link::Off => false,
        });
        if old {
            self.end_session(cx);
            if let Some(follow) = &mut self.follow {
                follow.again_ms = cx.now_ms;
                cx.out.push(Out::After(5_000, Timer::Connect));
            }
        }
        if self.stored.sealed.is_none() || !parovoz_mutant::on("sealed-promises") {
            self.restart_acks(cx);
        }
    }

    /// Makes the session follow exactly the prefixes that there are (or that are to be pulled) and that are not copied.
    pub(super) fn reconcile(&mut self, cx: &mut Cx<'_>) {
        let Some(follow) = &self.follow else { return };
        if !follow.is_connected() {
            return;
        }
        let wanted: Vec<PrefixUuid> = match &follow.pull {
            None => self.prefixes.keys().copied().collect(),
            Some(upto) => {
                let lacks = |uuid: &&PrefixUuid| {
                    let at = self.prefixes.get(uuid).filter(|p| p.copy.is_some()).map(super::Prefix::at);
                    at != upto.get(uuid).copied()
                };
                upto.keys().filter(lacks).copied().collect()
            }
        };
        if let Link::Live(live) = &follow.link {
            let gone: Vec<PrefixUuid> = live.core.prefixes().map(|(p, _)| p).filter(|p| !wanted.contains(p)).collect();
            for prefix in gone {
                self.session(cx, Event::Forget(prefix));
            }
        }
        for uuid in wanted {
            let Some(prefix) = self.prefixes.get(&uuid) else { continue };
            let (has_copy, at) = (prefix.copy.is_some(), prefix.at());
            if !has_copy && !self.boots.contains_key(&uuid) {
                self.bootstrap(cx, uuid, BootstrapCause::Missing);
            }
            let Some(state) = self.follow.as_ref().map(|f| f.state(uuid)) else { return };
            if self.boots.contains_key(&uuid) {
                if state != Some(StreamState::Bootstrapping) {
                    self.session(cx, Event::BootstrapStarted(uuid));
                }
            } else if matches!(state, None | Some(StreamState::Bootstrapping | StreamState::Stopped(_))) {
                self.session(cx, Event::Follow { prefix: uuid, after: at });
            }
        }
    }

    fn session(&mut self, cx: &mut Cx<'_>, event: Event) {
        let Some(Follow { link: Link::Live(live), .. }) = &mut self.follow else { return };
        let mut effects = Vec::new();
        let stepped = live.core.step(cx.now_ms, event, &mut effects);
        let (conn, node) = (live.conn, live.node);
        for effect in effects {
            self.session_effect(cx, conn, node, effect);
        }
        if let Err(error) = stepped {
            cx.cov.hit("session ended by its core");
            self.failed(cx, &error.to_string());
        }
    }

    fn session_effect(&mut self, cx: &mut Cx<'_>, conn: Conn, node: Node, effect: Effect) {
        match effect {
            Effect::Resume { prefix, after, attempt } => {
                cx.send(node, Msg::ToUpstream(conn, ToUpstream::Resume { prefix, after, attempt }));
            }
            Effect::Cancel(prefix) => cx.send(node, Msg::ToUpstream(conn, ToUpstream::Cancel(prefix))),
            Effect::Grant(bytes) => cx.send(node, Msg::ToUpstream(conn, ToUpstream::Credit(bytes))),
            Effect::Apply { prefix, batch } => self.apply(cx, prefix, batch),
            Effect::StartBootstrap { prefix, cause } => {
                self.bootstrap(cx, prefix, cause);
                self.reconcile(cx);
            }
            Effect::UpstreamLatest { prefix, position } => {
                if let Some(prefix) = self.prefixes.get_mut(&prefix) {
                    prefix.upstream_latest = position;
                }
            }
            Effect::Streams(prefix) => {
                if let Some(prefix) = self.prefixes.get_mut(&prefix) {
                    prefix.phase = Phase::Streaming;
                    self.report_due = true;
                }
                self.moved.insert(prefix);
            }
            Effect::Missed { .. } => cx.cov.hit("batch refused"),
        }
    }

    fn apply(&mut self, cx: &mut Cx<'_>, uuid: PrefixUuid, batch: ReceivedBatch) {
        let (attempt, cost) = (batch.attempt, batch.cost);
        let upto = Position { epoch: batch.epoch, sequence: batch.first.last_of(batch.count) };
        // Under a pull nothing beyond the named position is taken.
        let pulled = self.follow.as_ref().and_then(|f| f.pull.as_ref()).map(|upto| upto.get(&uuid).copied());
        if let Some(target) = pulled
            && target.is_none_or(|target| upto > target)
        {
            return self.session(cx, Event::Forget(uuid));
        }
        match self.apply_one(cx, uuid, &batch) {
            Ok(()) => {
                if let Some(prefix) = self.prefixes.get_mut(&uuid)
                    && prefix.upstream_latest < upto
                {
                    prefix.upstream_latest = upto;
                }
                self.session(cx, Event::Applied { prefix: uuid, cost, busy_us: 1, pass_us: 1 });
                self.touch(cx, uuid);
            }
            Err(()) => {
                cx.cov.hit("batch not applied");
                let at = self.prefixes.get(&uuid).map_or(Position::ZERO, super::Prefix::at);
                self.session(cx, Event::ApplyFailed { prefix: uuid, attempt, at, cost });
            }
        }
        if pulled.is_some_and(|target| target == Some(upto)) {
            cx.cov.hit("tail pulled");
            self.session(cx, Event::Forget(uuid));
            self.report_due = true;
        }
    }

    fn apply_one(&mut self, cx: &mut Cx<'_>, uuid: PrefixUuid, batch: &ReceivedBatch) -> Result<(), ()> {
        let prefix = self.prefixes.get_mut(&uuid).ok_or(())?;
        let copy = prefix.copy.as_ref().ok_or(())?;
        let last = copy.db.latest();
        if batch.first != last.next() && !parovoz_mutant::on("sequence-not-checked") {
            return Err(());
        }
        let newest = prefix.history.newest().map_or(parovoz_dataplane_core::types::Epoch(0), |r| r.epoch);
        let record = if batch.epoch == newest { None } else { epoch_record(&batch.bytes)? };
        let fits = match record {
            Some(record) => {
                record.epoch == batch.epoch && record.start == batch.first && prefix.history.push(record).is_ok()
            }
            None => prefix.history.epoch_at(batch.first) == batch.epoch,
        };
        if !fits {
            return Err(());
        }
        if cx.volume.full {
            cx.out.push(Out::Die("a full disk"));
            return Err(());
        }
        let first = copy.db.write(&batch.bytes, false).map_err(drop)?;
        cx.check.wrote(cx.now, self.ordinal, uuid, batch.epoch, first, &batch.bytes);
        if first != batch.first {
            cx.check.fail(cx.now, format!("member {}: wrote {first} where {} was due", self.ordinal, batch.first));
        }
        prefix.publish(Entry { epoch: batch.epoch, first, count: batch.count, bytes: batch.bytes.clone() });
        if uuid == self.catalogue() {
            self.catalogue_applied(cx, &batch.bytes);
        }
        Ok(())
    }

    // ---- Syncs. ----

    /// A prefix was written: it is synced with the others of its lane.
    pub(super) fn touch(&mut self, cx: &mut Cx<'_>, uuid: PrefixUuid) {
        if !self.syncs {
            if let Some(prefix) = self.prefixes.get_mut(&uuid) {
                prefix.durable = prefix.applied;
            }
            self.became_durable(cx, uuid);
            return;
        }
        let lane = usize::from(uuid.0.as_bytes()[15] & 1);
        self.lanes[lane].dirty.insert(uuid);
        self.run_lane(cx, lane);
    }

    fn run_lane(&mut self, cx: &mut Cx<'_>, lane: usize) {
        if self.lanes[lane].running || self.lanes[lane].dirty.is_empty() {
            return;
        }
        let dirty = std::mem::take(&mut self.lanes[lane].dirty);
        let upto: Vec<(PrefixUuid, u64, Sequence)> =
            dirty.iter().filter_map(|u| self.prefixes.get(u).map(|p| (*u, p.copy_id, p.applied))).collect();
        self.lanes[lane].running = true;
        cx.out.push(Out::Disk(Timer::Synced { lane, upto }));
        let _ = self.step(cx, RoleEvent::FsyncAsked);
    }

    pub(super) fn synced(&mut self, cx: &mut Cx<'_>, lane: usize, upto: &[(PrefixUuid, u64, Sequence)]) {
        self.lanes[lane].running = false;
        if cx.volume.full {
            return cx.out.push(Out::Die("a failed sync"));
        }
        let _ = self.step(cx, RoleEvent::Fsynced);
        for (uuid, copy_id, applied) in upto {
            let Some(prefix) = self.prefixes.get_mut(uuid).filter(|p| p.copy_id == *copy_id) else { continue };
            let Some(copy) = &prefix.copy else { continue };
            if copy.db.sync().is_err() {
                return cx.out.push(Out::Die("a failed sync"));
            }
            prefix.durable = prefix.durable.max(*applied);
            self.became_durable(cx, *uuid);
        }
        self.run_lane(cx, lane);
    }

    fn became_durable(&mut self, cx: &mut Cx<'_>, uuid: PrefixUuid) {
        self.push_streams(cx, uuid);
        if self.view.is_primary {
            self.release(cx, uuid);
        } else {
            self.moved.insert(uuid);
            self.send_acks(cx);
        }
    }

    pub(super) fn tick_follow(&mut self, cx: &mut Cx<'_>) {
        self.go_live(cx);
        let Some(follow) = &mut self.follow else { return };
        match &mut follow.link {
            Link::Off => self.connect(cx),
            Link::Opening { since_ms, .. } => {
                if cx.now_ms > *since_ms + SILENCE_MS {
                    self.failed(cx, "no hello");
                }
            }
            Link::Promising { .. } => {}
            Link::Live(live) => {
                if cx.now_ms > live.heard_ms + SILENCE_MS {
                    cx.cov.hit("upstream silent");
                    self.failed(cx, "silent");
                } else {
                    self.session(cx, Event::Tick);
                    self.reconcile(cx);
                }
            }
        }
        self.forget_reached_floors(cx);
    }

    /// A whole copy that durably reached its floor needs none any more.
    fn forget_reached_floors(&mut self, cx: &mut Cx<'_>) {
        if !self.effects.is_empty() {
            return;
        }
        let pulled = |uuid: &PrefixUuid| self.follow.as_ref()?.pull.as_ref()?.get(uuid).copied();
        let reached: Vec<PrefixUuid> = self
            .stored
            .floors
            .iter()
            .filter(|(uuid, floor)| {
                self.prefixes.get(uuid).is_some_and(|p| {
                    let whole = p.copy.is_some() && p.phase != Phase::Bootstrapping && !self.boots.contains_key(uuid);
                    whole && floor_is_met(p.position_at(p.durable), **floor, pulled(uuid), self.promised())
                })
            })
            .map(|(uuid, _)| *uuid)
            .collect();
        for uuid in reached {
            let floor = self.stored.floors.get(&uuid).copied();
            let at = self.prefixes.get(&uuid).map(|p| p.position_at(p.durable));
            if let Some(at) = at.filter(|at| is_below_floor(*at, floor)) {
                cx.cov.hit("floor met by a pull");
                cx.check.settled(self.me, uuid, at);
            }
            self.store_floor(cx, uuid, None);
            self.moved.insert(uuid);
            self.report_due = true;
        }
    }
}

/// The epoch record in a batch, if it has one.
fn epoch_record(bytes: &[u8]) -> Result<Option<EpochRecord>, ()> {
    for record in batch::records(bytes).map_err(drop)? {
        if let Record::Put { family: META_FAMILY, key, value } = record.map_err(drop)?
            && EpochRecord::is_key(key)
        {
            return EpochRecord::decode(key, value).map(Some).map_err(drop);
        }
    }
    Ok(None)
}
