//! The sending side of streams: what the data plane's `replication/{server,sender}` do.

use std::collections::BTreeMap;

use parovoz_dataplane_core::budget::FRAME_COST;
use parovoz_dataplane_core::follower::{FrameIn, RefusalReason, check_follower};
use parovoz_dataplane_core::history::ResumeCheck;
use parovoz_dataplane_core::types::{DataUuid, Position, PrefixUuid, ReignRef, Sequence};

use super::prefix::{Phase, Prefix};
use super::{Cx, Process};
use crate::msg::{Conn, Msg, Node, ToFollower, ToUpstream};

/// Batches in one message.
const AT_ONCE: usize = 32;

/// Where the stream of one prefix is.
#[derive(Debug)]
struct Cursor {
    attempt: u64,
    sent: Sequence,
    copy_id: u64,
    told: Position,
}

/// One follower's stream.
#[derive(Debug)]
pub(super) struct StreamOut {
    node: Node,
    peer: DataUuid,
    pub(super) reign: ReignRef,
    credit: i64,
    cursors: BTreeMap<PrefixUuid, Cursor>,
    /// Whom this member followed when it told the follower.
    told: Vec<DataUuid>,
}

impl Process {
    pub(super) fn on_to_upstream(&mut self, cx: &mut Cx<'_>, from: Node, conn: Conn, m: ToUpstream) {
        match m {
            ToUpstream::Hello(hello) => {
                let own = self.own(None);
                let Ok(reign) = check_follower(&own, &hello.peer) else {
                    cx.cov.hit("hello refused");
                    return cx.send(from, Msg::Closed(conn));
                };
                let peer = hello.peer.data_uuid;
                let told = self.follow.as_ref().map(|f| f.path().to_vec()).unwrap_or_default();
                let stream = StreamOut { node: from, peer, reign, credit: 0, cursors: BTreeMap::new(), told };
                // A follower has one stream; one that it opened before is dead.
                self.streams.retain(|_, s| s.peer != stream.peer);
                self.streams.insert(conn, stream);
                let answer = self.hello(Some(hello.peer.data_uuid), true);
                cx.check.promised(cx.now, self.ordinal, self.me, &self.stored);
                cx.send(from, Msg::ToFollower(conn, ToFollower::Hello(answer)));
            }
            ToUpstream::Resume { prefix, after, attempt } => self.resume(cx, conn, prefix, after, attempt),
            ToUpstream::Cancel(prefix) => {
                if let Some(stream) = self.streams.get_mut(&conn) {
                    stream.cursors.remove(&prefix);
                }
            }
            ToUpstream::Credit(bytes) => {
                let Some(stream) = self.streams.get_mut(&conn) else { return cx.send(from, Msg::Closed(conn)) };
                stream.credit += i64::try_from(bytes).unwrap_or(0);
                let waiting: Vec<PrefixUuid> = stream.cursors.keys().copied().collect();
                for prefix in waiting {
                    self.push_stream(cx, conn, prefix);
                }
            }
        }
    }

    fn resume(&mut self, cx: &mut Cx<'_>, conn: Conn, prefix: PrefixUuid, after: Position, attempt: u64) {
        let Some(node) = self.streams.get(&conn).map(|s| s.node) else { return };
        let refusal = match self.prefixes.get(&prefix) {
            None => Some(RefusalReason::Unknown),
            Some(present) => self.check_resume(present, after),
        };
        let Some(stream) = self.streams.get_mut(&conn) else { return };
        stream.cursors.remove(&prefix);
        if let Some(reason) = refusal {
            cx.cov.hit(match reason {
                RefusalReason::TooOld { .. } => "resume refused: too old",
                RefusalReason::Diverged { .. } => "resume refused: diverged",
                RefusalReason::Unknown => "resume refused: unknown",
                RefusalReason::Busy => "resume refused: busy",
            });
            return cx.send(node, Msg::ToFollower(conn, ToFollower::Refusal { prefix, attempt, reason }));
        }
        let Some(present) = self.prefixes.get(&prefix) else { return };
        let cursor = Cursor { attempt, sent: after.sequence, copy_id: present.copy_id, told: Position::ZERO };
        stream.cursors.insert(prefix, cursor);
        if after == present.at() {
            let (reign, latest) = (stream.reign, vec![(prefix, present.at())]);
            cx.send(node, Msg::ToFollower(conn, ToFollower::Beat { reign, latest }));
        }
        self.push_stream(cx, conn, prefix);
    }

    fn check_resume(&self, prefix: &Prefix, after: Position) -> Option<RefusalReason> {
        let copy = prefix.copy.as_ref();
        if copy.is_none() || matches!(prefix.phase, Phase::Bootstrapping | Phase::Stopped) || self.below_floor(prefix) {
            return Some(RefusalReason::Busy);
        }
        let oldest = copy.and_then(|c| c.db.oldest_in_wal().ok()).unwrap_or(Sequence(0));
        match prefix.history.check_resume(after, prefix.applied, oldest, self.view.is_primary) {
            ResumeCheck::Stream => None,
            ResumeCheck::Behind => Some(RefusalReason::Busy),
            ResumeCheck::TooOld { oldest } => Some(RefusalReason::TooOld { oldest }),
            ResumeCheck::Diverged { fork } => Some(RefusalReason::Diverged { fork }),
        }
    }

    /// A prefix moved: sends to everyone who streams it.
    pub(super) fn push_streams(&mut self, cx: &mut Cx<'_>, prefix: PrefixUuid) {
        let conns: Vec<Conn> =
            self.streams.iter().filter(|(_, s)| s.cursors.contains_key(&prefix)).map(|(conn, _)| *conn).collect();
        for conn in conns {
            self.push_stream(cx, conn, prefix);
        }
    }

    fn push_stream(&mut self, cx: &mut Cx<'_>, conn: Conn, uuid: PrefixUuid) {
        let Some(prefix) = self.prefixes.get(&uuid) else { return };
        let Some(stream) = self.streams.get_mut(&conn) else { return };
        let Some(cursor) = stream.cursors.get_mut(&uuid) else { return };
        let (node, attempt, reign) = (stream.node, cursor.attempt, stream.reign);
        if cursor.copy_id != prefix.copy_id {
            stream.cursors.remove(&uuid);
            let refusal = ToFollower::Refusal { prefix: uuid, attempt, reason: RefusalReason::Busy };
            return cx.send(node, Msg::ToFollower(conn, refusal));
        }
        let limit = if self.syncs { prefix.durable } else { prefix.applied };
        let mut frames = Vec::new();
        while stream.credit > 0 && cursor.sent < limit {
            let entry = match prefix.next_after(cursor.sent) {
                Ok(Some(entry)) if entry.last() <= limit => entry,
                Ok(_) => break,
                Err(oldest) => {
                    stream.cursors.remove(&uuid);
                    let reason = if oldest.0 == 0 { RefusalReason::Busy } else { RefusalReason::TooOld { oldest } };
                    let refusal = ToFollower::Refusal { prefix: uuid, attempt, reason };
                    return cx.send(node, Msg::ToFollower(conn, refusal));
                }
            };
            cursor.sent = entry.last();
            let total = entry.bytes.len() as u64;
            let mut frame = FrameIn {
                prefix: uuid,
                attempt,
                reign,
                epoch: entry.epoch,
                first: entry.first,
                count: entry.count,
                crc32c: crc32c::crc32c(&entry.bytes),
                payload: entry.bytes.clone(),
                total,
                offset: 0,
                committed_at_ms: 0,
            };
            // Now and then a batch comes in parts.
            if cx.rng.permille(5) && total > 1 {
                let cut = 1 + cx.rng.index(entry.bytes.len() - 1);
                frame.payload = entry.bytes.slice(..cut);
                stream.credit -= i64::try_from(cut as u64 + FRAME_COST).unwrap_or(0);
                frames.push(frame.clone());
                frame.payload = entry.bytes.slice(cut..);
                frame.offset = cut as u64;
            }
            stream.credit -= i64::try_from(frame.payload.len() as u64 + FRAME_COST).unwrap_or(0);
            frames.push(frame);
            if frames.len() >= AT_ONCE {
                cx.send(node, Msg::ToFollower(conn, ToFollower::Frames(std::mem::take(&mut frames))));
            }
        }
        if !frames.is_empty() {
            cx.send(node, Msg::ToFollower(conn, ToFollower::Frames(frames)));
        }
    }

    /// Where every streamed prefix is; and what was not sent for want of a signal.
    pub(super) fn beat_streams(&mut self, cx: &mut Cx<'_>) {
        let conns: Vec<Conn> = self.streams.keys().copied().collect();
        let mine = self.stored.promise_ref();
        let upstreams: Vec<DataUuid> = self.follow.as_ref().map(|f| f.path().to_vec()).unwrap_or_default();
        for conn in conns {
            let Some(stream) = self.streams.get_mut(&conn) else { continue };
            if Some(stream.reign) != mine || (!upstreams.is_empty() && upstreams != stream.told) {
                cx.send(stream.node, Msg::Closed(conn));
                self.streams.remove(&conn);
                continue;
            }
            let (mut latest, mut stale) = (Vec::new(), Vec::new());
            for (uuid, cursor) in &mut stream.cursors {
                let Some(prefix) = self.prefixes.get(uuid) else { continue };
                let at = prefix.at();
                if at != cursor.told {
                    cursor.told = at;
                    latest.push((*uuid, at));
                }
                if prefix.applied > cursor.sent || cursor.copy_id != prefix.copy_id {
                    stale.push(*uuid);
                }
            }
            let (node, reign) = (stream.node, stream.reign);
            cx.send(node, Msg::ToFollower(conn, ToFollower::Beat { reign, latest }));
            for uuid in stale {
                self.push_stream(cx, conn, uuid);
            }
        }
    }

    /// Ends streams, in both directions, that are under an older promise.
    pub(super) fn cut_old_streams(&mut self, cx: &mut Cx<'_>) {
        let mine = self.stored.promise_ref();
        let old: Vec<Conn> =
            self.streams.iter().filter(|(_, s)| Some(s.reign) != mine).map(|(conn, _)| *conn).collect();
        for conn in old {
            if let Some(stream) = self.streams.remove(&conn) {
                cx.send(stream.node, Msg::Closed(conn));
            }
        }
        self.cut_old_session(cx);
    }
}
