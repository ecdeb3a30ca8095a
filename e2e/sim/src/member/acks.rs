//! Acknowledgements and beats, straight between a replica and its primary, on both sides.

use parovoz_dataplane_core::acks::{AckPositions, SessionId};
use parovoz_dataplane_core::follower::{check_follower, check_upstream};
use parovoz_dataplane_core::role::Event;
use parovoz_dataplane_core::types::{DataUuid, Epoch, PrefixUuid, Reign, ReignRef};
use parovoz_dataplane_core::vote::may_acknowledge;

use super::prefix::{Phase, Prefix};
use super::{Cx, Process, SILENCE_MS};
use crate::msg::{Conn, Hello, Msg, Node, ToPrimary, ToReplica};

/// A replica that acknowledges to this primary.
#[derive(Debug)]
pub(super) struct AckIn {
    node: Node,
    member: DataUuid,
    session: SessionId,
    reign: Reign,
}

/// The primary that this replica acknowledges to.
#[derive(Debug)]
pub(super) struct AckOut {
    conn: Conn,
    node: Node,
    primary: DataUuid,
    reign: ReignRef,
    live: bool,
    heard_ms: u64,
}

impl Process {
    // ---- The replica. ----

    /// Opens a session with the primary of the promised reign, unless there is one.
    pub(super) fn start_acks(&mut self, cx: &mut Cx<'_>) {
        if self.view.is_primary || self.stored.sealed.is_some() {
            return;
        }
        let Some(reign) = self.promised().map(Reign::to_ref) else { return };
        let Some(primary) = self.promised().map(|r| r.primary).filter(|p| *p != self.me) else { return };
        // A newer reign that was met at the upstream may have another primary than the last order named.
        let names = |e: &&parovoz_dataplane_core::member::Endpoint| e.data_uuid == Some(primary);
        let upstream = self.follow.as_ref().map(|f| &f.upstream).filter(names);
        let Some(endpoint) = self.view.primary.as_ref().filter(names).or(upstream) else { return };
        let Some(node) = Self::node_of(endpoint).filter(|_| self.follow.as_ref().is_none_or(|f| f.pull.is_none()))
        else {
            return;
        };
        if self.ack_out.as_ref().is_some_and(|a| a.reign == reign && a.node == node) {
            return;
        }
        self.stop_acks(cx);
        let conn = self.fresh_id();
        self.ack_out = Some(AckOut { conn, node, primary, reign, live: false, heard_ms: cx.now_ms });
        let hello = self.hello(Some(primary), false);
        self.moved.clear();
        let all = self.prefixes.values().filter_map(|p| Some((p.uuid, self.ack_of(p)?))).collect();
        self.note_acks(cx, &all);
        cx.send(node, Msg::ToPrimary(conn, ToPrimary::Hello(hello, all)));
    }

    pub(super) fn stop_acks(&mut self, cx: &mut Cx<'_>) {
        if let Some(out) = self.ack_out.take() {
            cx.send(out.node, Msg::Closed(out.conn));
        }
    }

    /// Positions may have moved backwards: a new session begins.
    pub(super) fn restart_acks(&mut self, cx: &mut Cx<'_>) {
        self.stop_acks(cx);
        self.start_acks(cx);
    }

    pub(super) fn ack_out_closed(&mut self, _cx: &mut Cx<'_>, conn: Conn) {
        if self.ack_out.as_ref().is_some_and(|a| a.conn == conn) {
            self.ack_out = None;
        }
    }

    fn ack_of(&self, prefix: &Prefix) -> Option<AckPositions> {
        prefix.copy.as_ref()?;
        if matches!(prefix.phase, Phase::Bootstrapping | Phase::Stopped) {
            return None;
        }
        let durable = if parovoz_mutant::on("ack-before-sync") { prefix.applied } else { prefix.durable };
        let applied = prefix.applied.max(durable);
        let received = prefix.received.max(applied);
        let at = |s| prefix.position_at(s);
        let positions = AckPositions { received: at(received), applied: at(applied), durable: at(durable) };
        let floor = self.stored.floors.get(&prefix.uuid).copied();
        let reign = self.promised().map_or(Epoch(0), |r| r.epoch);
        if !may_acknowledge(positions.durable, floor, reign) {
            return None;
        }
        Some(positions)
    }

    fn note_acks(&self, cx: &mut Cx<'_>, acks: &Vec<(PrefixUuid, AckPositions)>) {
        if self.syncs {
            for (prefix, at) in acks {
                cx.check.acknowledged(self.me, *prefix, at.durable);
            }
        }
    }

    pub(super) fn send_acks(&mut self, cx: &mut Cx<'_>) {
        if self.ack_out.as_ref().is_some_and(|a| a.live) && !self.moved.is_empty() {
            self.send_beat(cx);
        }
    }

    fn send_beat(&mut self, cx: &mut Cx<'_>) {
        let moved = std::mem::take(&mut self.moved);
        let acks: Vec<_> =
            moved.iter().filter_map(|uuid| Some((*uuid, self.ack_of(self.prefixes.get(uuid)?)?))).collect();
        self.note_acks(cx, &acks);
        let promise_for = self.role.echo(cx.now_ms);
        let Some(out) = &self.ack_out else { return };
        if promise_for.is_some() {
            cx.check.promised(cx.now, self.ordinal, self.me, &self.stored);
        }
        cx.send(out.node, Msg::ToPrimary(out.conn, ToPrimary::Beat { reign: out.reign, acks, promise_for }));
    }

    /// What moved, and that this member is there.
    pub(super) fn beat_primary(&mut self, cx: &mut Cx<'_>) {
        match &self.ack_out {
            Some(out) if cx.now_ms > out.heard_ms + SILENCE_MS => {
                self.restart_acks(cx);
                if let Some(out) = &mut self.ack_out {
                    out.heard_ms = cx.now_ms;
                }
            }
            Some(out) if out.live => self.send_beat(cx),
            Some(_) => {}
            None if self.follow.as_ref().is_some_and(super::follow::Follow::is_connected) => self.start_acks(cx),
            None => {}
        }
    }

    pub(super) fn on_to_replica(&mut self, cx: &mut Cx<'_>, from: Node, conn: Conn, m: ToReplica) {
        let Some(out) = self.ack_out.as_mut().filter(|o| o.conn == conn) else {
            return cx.send(from, Msg::Closed(conn));
        };
        let (primary, expected) = (out.primary, out.reign);
        match m {
            ToReplica::Hello(hello) => {
                out.heard_ms = cx.now_ms;
                let good =
                    check_upstream(&self.own(Some(primary)), &hello.peer).is_ok() && hello.peer.reign == Some(expected);
                match &mut self.ack_out {
                    Some(out) if good => out.live = true,
                    _ => self.stop_acks(cx),
                }
                self.send_acks(cx);
            }
            ToReplica::Beat { reign, sent_at_ms, serving: _ } => {
                if reign != expected {
                    return self.stop_acks(cx);
                }
                out.heard_ms = cx.now_ms;
                let _ = self.step(cx, Event::PrimaryBeat { reign, sent_at_ms });
                if self.ack_out.as_ref().is_some_and(|a| a.live) {
                    self.send_beat(cx);
                }
            }
        }
    }

    // ---- The primary. ----

    pub(super) fn on_to_primary(&mut self, cx: &mut Cx<'_>, from: Node, conn: Conn, m: ToPrimary) {
        match m {
            ToPrimary::Hello(hello, acks) => self.begin_acks(cx, from, conn, &hello, acks),
            ToPrimary::Beat { reign, acks, promise_for } => {
                let Some(session) = self.ack_in.get(&conn) else { return cx.send(from, Msg::Closed(conn)) };
                let member = session.member;
                if session.reign.to_ref() != reign && !parovoz_mutant::on("reign-id-not-compared") {
                    return cx.send(from, Msg::Closed(conn));
                }
                if let Some(sent_at_ms) = promise_for {
                    let _ = self.step(cx, Event::Echo { member, reign, sent_at_ms });
                }
                self.take_acks(cx, conn, acks);
            }
        }
    }

    fn begin_acks(
        &mut self,
        cx: &mut Cx<'_>,
        from: Node,
        conn: Conn,
        hello: &Hello,
        acks: Vec<(PrefixUuid, AckPositions)>,
    ) {
        let own = self.own(None);
        let admitted = check_follower(&own, &hello.peer);
        let leads = self.role.led().filter(|_| self.view.is_primary).cloned();
        let (Ok(reign), Some(led)) = (admitted, leads) else { return cx.send(from, Msg::Closed(conn)) };
        // Whoever acknowledges promised this very reign.
        if led.to_ref() != reign || hello.peer.reign != Some(reign) {
            return cx.send(from, Msg::Closed(conn));
        }
        let member = hello.peer.data_uuid;
        self.ack_in.retain(|_, a| a.member != member);
        let session = self.acks.begin_session(member);
        self.ack_in.insert(conn, AckIn { node: from, member, session, reign: led });
        let answer = self.hello(Some(member), false);
        cx.send(from, Msg::ToReplica(conn, ToReplica::Hello(answer)));
        self.send_primary_beat(cx, conn);
        self.take_acks(cx, conn, acks);
        self.report_due = true;
    }

    fn take_acks(&mut self, cx: &mut Cx<'_>, conn: Conn, acks: Vec<(PrefixUuid, AckPositions)>) {
        let Some(session) = self.ack_in.get(&conn) else { return };
        let (id, member, node) = (session.session, session.member, session.node);
        let mut released = Vec::new();
        for (prefix, at) in acks {
            match self.acks.record(id, member, prefix, at) {
                Ok(true) => released.push(prefix),
                Ok(false) => {}
                Err(_) => {
                    cx.cov.hit("acknowledgement refused");
                    self.end_ack_in(conn);
                    return cx.send(node, Msg::Closed(conn));
                }
            }
        }
        if !self.role.is_all_served() {
            self.progress(cx);
        }
        for prefix in released {
            self.release(cx, prefix);
        }
    }

    pub(super) fn end_ack_in(&mut self, conn: Conn) {
        if let Some(session) = self.ack_in.remove(&conn) {
            self.acks.end_session(session.member, session.session);
        }
    }

    pub(super) fn drop_ack_sessions(&mut self, cx: &mut Cx<'_>) {
        for (conn, session) in std::mem::take(&mut self.ack_in) {
            cx.send(session.node, Msg::Closed(conn));
        }
    }

    pub(super) fn beat_replicas(&mut self, cx: &mut Cx<'_>) {
        let conns: Vec<Conn> = self.ack_in.keys().copied().collect();
        for conn in conns {
            self.send_primary_beat(cx, conn);
        }
    }

    fn send_primary_beat(&mut self, cx: &mut Cx<'_>, conn: Conn) {
        if !self.view.is_primary {
            return;
        }
        let Some(beat) = self.role.beat(cx.now_ms) else { return };
        if let Some(session) = self.ack_in.get(&conn) {
            let m = ToReplica::Beat { reign: beat.reign, sent_at_ms: beat.sent_at_ms, serving: beat.serving };
            cx.send(session.node, Msg::ToReplica(conn, m));
        }
    }

    /// What this primary has, for lag.
    pub(super) fn sample(&mut self, cx: &mut Cx<'_>) {
        if self.view.is_primary {
            for prefix in self.prefixes.values() {
                self.acks.sample(prefix.uuid, cx.now_ms, prefix.applied, prefix.bytes_total);
            }
        }
    }
}
