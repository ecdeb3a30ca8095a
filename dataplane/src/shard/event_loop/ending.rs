//! The end of a pass: replies into their places and out, waits, and connections that close or move.

use std::io::{self, Write};
use std::net::Shutdown;
use std::sync::atomic::Ordering;

use parovoz_dataplane_core::resp::{Proto, Reply};

use super::{DRAIN_MS, EventLoop, INPUT_BYTES_MAX, STUCK_MS, WAITS_PER_MS, WRITE_BYTES};
use crate::clock;
use crate::shard::Shared;
use crate::shard::conn::{Conn, Pause, Ticket};
use crate::shard::exec::{Executor, MarkAt, replace_replies};
use crate::shard::message::{ConnId, Message, Replies, ReplyTo};
use crate::shard::relay::Relayed;
use crate::shard::stats::add;

impl EventLoop {
    /// Lets connections go on once writes are no longer frozen and the reign does not change any more.
    pub(super) fn thaw(&mut self) {
        if !self.frozen.is_empty() && !self.dispatch.exec.must_wait() {
            for id in std::mem::take(&mut self.frozen) {
                if let Some(conn) = self.conn(id)
                    && conn.session.pause == Pause::Frozen
                {
                    conn.session.pause = Pause::None;
                    self.ready.push(id.index as usize);
                }
            }
        }
    }

    /// Turns the replies of batches that were not committed, and those on which the gate has closed, into errors.
    pub(super) fn replace_failed(&mut self) {
        let failed = self.dispatch.exec.take_failed();
        let failed = failed.into_iter().map(|(mark, error)| (mark.at, mark.from, mark.to, error));
        let failed: Vec<_> = failed.chain(self.dispatch.exec.close_gate()).collect();
        let mut done: Vec<MarkAt> = Vec::new();
        for (at, _, _, error) in &failed {
            match *at {
                MarkAt::Item(shard, item) => self.dispatch.replace_item(shard, item, error),
                MarkAt::Conn(..) if done.contains(at) => {}
                MarkAt::Conn(id, segment) => {
                    done.push(*at);
                    let mut ranges: Vec<(usize, usize, &[u8])> = failed
                        .iter()
                        .filter(|(other, ..)| other == at)
                        .map(|(_, from, to, error)| (*from, *to, error.as_slice()))
                        .collect();
                    ranges.sort_unstable_by_key(|r| r.0);
                    let Some(conn) = self.conn(id) else { continue };
                    if let Some(bytes) = conn.session.output.segment(segment) {
                        replace_replies(bytes, &ranges);
                        conn.session.output.hold_all();
                    }
                }
            }
        }
    }

    pub(super) fn fill_all(&mut self, replies: &Replies) {
        for (to, from, end) in &replies.items {
            self.fill(*to, &replies.bytes[*from..*end]);
        }
        let counted = replies.items.iter().filter(|(to, ..)| to.counted).count();
        self.dispatch.answered(counted);
        if counted > 0 && !self.for_credit.is_empty() && self.dispatch.has_credit() {
            for id in std::mem::take(&mut self.for_credit) {
                self.resume(id, Pause::Credit);
            }
        }
    }

    /// Puts a reply where it belongs.
    pub(super) fn fill(&mut self, to: ReplyTo, bytes: &[u8]) {
        let index = to.conn.index as usize;
        let Some(Some(conn)) = self.conns.get_mut(index) else { return };
        if conn.session.id != to.conn {
            return;
        }
        conn.session.output.fill(to.hole, to.part, bytes);
        Self::mark_dirty(&mut self.dirty, conn, index);
    }

    /// Lets go what waited for a group that is durable now.
    pub(super) fn take_synced(&mut self) {
        let synced = self.dispatch.exec.take_synced();
        let may_answer = synced.is_empty() || self.dispatch.exec.may_answer_held();
        for (ticket, id) in synced {
            let index = id.index as usize;
            let Some(Some(conn)) = self.conns.get_mut(index) else { continue };
            if conn.session.id != id {
                continue;
            }
            // Whom no primary served here only reads what a replica has.
            if may_answer || !conn.session.led {
                conn.session.output.let_go(ticket);
                Self::mark_dirty(&mut self.dirty, conn, index);
            } else {
                // Nobody may say now what became of it, and replies can't be left out: the client sees an unknown outcome.
                self.close(index);
            }
        }
        let late = self.dispatch.exec.take_late();
        if !late.is_empty() {
            self.give_up(&late);
        }
    }

    /// Answers what the disk did not confirm in time.
    fn give_up(&mut self, late: &[(Ticket, ConnId)]) {
        let errors = Executor::disk_errors();
        for (ticket, id) in late {
            let index = id.index as usize;
            let Some(Some(conn)) = self.conns.get_mut(index) else { continue };
            if conn.session.id != *id {
                continue;
            }
            match conn.session.output.give_up(*ticket, &errors) {
                Some(replies) => {
                    self.dispatch.exec.count_given_up(replies);
                    Self::mark_dirty(&mut self.dirty, conn, index);
                }
                // A connection that ends says the same: outcome unknown.
                None => self.close(index),
            }
        }
    }

    /// Lets a connection go on that was paused for this reason.
    pub(super) fn resume(&mut self, id: ConnId, pause: Pause) {
        if let Some(conn) = self.conn(id)
            && conn.session.pause == pause
        {
            conn.session.pause = Pause::None;
            self.again.push(id.index as usize);
        }
    }

    /// Answers scans whose contents replicas have by now.
    pub(super) fn release_scans(&mut self) {
        let gated = self.dispatch.exec.is_gated();
        let now = clock::boot_ms();
        let leads = self.dispatch.exec.primary;
        for (scanned, deadline) in std::mem::take(&mut self.scanned) {
            let led = self.conn(scanned.to.conn).is_some_and(|conn| conn.session.led);
            if led && (!leads || !self.shared.store.gate.may_read(now)) {
                self.fill(scanned.to, b"-LOADING this member has stopped leading, try again\r\n");
            } else if !gated || scanned.seen.iter().all(|(prefix, sequence)| prefix.released() >= *sequence) {
                self.fill(scanned.to, &scanned.bytes);
            } else if now >= deadline {
                self.fill(scanned.to, b"-TRYAGAIN what the scan has seen was not confirmed in time\r\n");
            } else {
                self.scanned.push((scanned, deadline));
            }
        }
    }

    /// Answers each `WAIT` that has enough replicas, whose time is over or whose client has closed its side: that may wait
    /// for ever, and nobody would learn of it if it went away. Nor does anybody acknowledge to a member that leads no more.
    /// The more there is to look at, the longer the pause after it.
    pub(super) fn look_at_waits(&mut self) {
        let shared = self.shared.clone();
        let now = clock::boot_ms();
        if now < self.next_waits && self.dispatch.waits.iter().all(|wait| !wait.positions.is_empty()) {
            return;
        }
        let leads = self.dispatch.exec.has_led();
        let mut looked_at = 0;
        for mut wait in std::mem::take(&mut self.dispatch.waits) {
            if wait.positions.is_empty() {
                let map = shared.store.prefixes();
                wait.positions = map.by_name.values().map(|p| (p.uuid, p.applied())).collect();
            }
            looked_at += wait.positions.len() as u64;
            let Some(conn) = self.conn(wait.to.conn) else { continue };
            let leaves = conn.session.pause == Pause::Closing || conn.ending || !leads;
            let followers = shared.followers.get();
            let acked = followers.map_or(0, |f| {
                let least = wait.positions.iter().map(|(uuid, sequence)| f.acked(*uuid, *sequence)).min();
                least.unwrap_or_else(|| f.connected())
            });
            if acked as u64 >= wait.replicas || leaves || wait.deadline.is_some_and(|d| now >= d) {
                let mut bytes = Vec::new();
                Reply::new(&mut bytes, Default::default()).count(acked as u64);
                self.fill(wait.to, &bytes);
            } else {
                self.dispatch.waits.push(wait);
            }
        }
        self.next_waits = now + looked_at / WAITS_PER_MS;
    }

    /// Writes what waits, closes and moves what is ready for it, resumes what may go on.
    pub(super) fn write_all(&mut self) {
        for index in std::mem::take(&mut self.dirty) {
            let Some(Some(conn)) = self.conns.get_mut(index) else { continue };
            conn.session.dirty = false;
            let wrote = write(&self.shared, self.shard, conn);
            recount(&self.shared, conn);
            match wrote {
                Wrote::All => {}
                Wrote::Part => Self::mark_dirty(&mut self.dirty, conn, index),
                Wrote::Closed => {
                    self.close(index);
                    continue;
                }
            }
            let session = &mut conn.session;
            let answered = session.output.holes() == 0;
            match session.pause {
                Pause::Closing if !session.output.owes() => self.close(index),
                Pause::Relaying if !session.output.owes() => self.relay(index),
                // Groups are those of one loop.
                Pause::Moving(shard) if answered && !session.output.is_held() => self.hand_to(index, shard),
                Pause::Holes if answered => {
                    session.pause = Pause::None;
                    self.again.push(index);
                }
                // Stopped by its own output, or in the middle of its input: goes on once that is taken.
                Pause::None if session.may_run() && (conn.readable || conn.stalled) => self.again.push(index),
                _ => {}
            }
        }
        // A connection is looked at once a pass.
        self.again.sort_unstable();
        self.again.dedup();
    }

    /// Moves a connection to another loop.
    pub(super) fn hand_to(&mut self, index: usize, shard: usize) {
        let Some(mut conn) = self.conns.try_remove(index).flatten() else { return };
        add(&self.shared.stats[self.shard].moved, 1);
        self.shared.stats[self.shard].connections.fetch_sub(1, Ordering::Relaxed);
        match self.poll.registry().deregister(&mut conn.stream) {
            Ok(()) => self.shared.inboxes[shard].push(Message::Adopt(conn)),
            Err(e) => {
                tracing::warn!(error = %e, "deregister connection");
                self.forget(&mut conn);
            }
        }
    }

    /// Gives a connection to the member that leads now.
    fn relay(&mut self, index: usize) {
        let Some(mut conn) = self.conns.try_remove(index).flatten() else { return };
        self.shared.stats[self.shard].connections.fetch_sub(1, Ordering::Relaxed);
        self.forget(&mut conn);
        if let Err(e) = self.poll.registry().deregister(&mut conn.stream) {
            return tracing::warn!(error = %e, "deregister connection");
        }
        add(&self.shared.stats[self.shard].relayed, 1);
        let name = conn.session.client.names.lock().name.clone();
        let version = if conn.session.proto == Proto::Three { 3 } else { 2 };
        let input = std::mem::take(&mut conn.input);
        self.shared.relays.start(Relayed { stream: conn.stream.into(), input, version, name });
    }

    pub(super) fn close(&mut self, index: usize) {
        let Some(mut conn) = self.conns.try_remove(index).flatten() else { return };
        self.shared.stats[self.shard].connections.fetch_sub(1, Ordering::Relaxed);
        // Both are gone with the socket in any case.
        let _ = self.poll.registry().deregister(&mut conn.stream);
        let _ = conn.stream.shutdown(Shutdown::Write);
        self.forget(&mut conn);
    }

    pub(super) fn forget(&self, conn: &mut Conn) {
        let (_, counted) = conn.session.output.recount();
        self.shared.output_bytes.fetch_sub(counted, Ordering::Relaxed);
        self.shared.input_bytes.fetch_sub(conn.input.capacity(), Ordering::Relaxed);
        self.shared.clients.leave(conn.session.client.id);
    }

    pub(super) fn tick(&mut self, now: u64) {
        if let Some(l) = &mut self.listening {
            l.ready = true;
        }
        let long_ago = |since: u64| since > 0 && now.saturating_sub(since) > STUCK_MS;
        // Unfinished requests are in nobody's way until they take room that others need.
        let crowded = self.shared.input_bytes.load(Ordering::Relaxed) > INPUT_BYTES_MAX / 2;
        let stuck: Vec<usize> = self
            .conns
            .iter()
            .filter(|(_, c)| {
                c.as_ref().is_some_and(|c| {
                    long_ago(c.stuck_since) || (crowded && !c.input.is_empty() && long_ago(c.input_since))
                })
            })
            .map(|(index, _)| index)
            .collect();
        for index in stuck {
            add(&self.shared.stats[self.shard].stuck_closed, 1);
            self.close(index);
        }
    }

    /// Whether a stopping loop has nothing left to do.
    pub(super) fn is_drained(&mut self) -> bool {
        if !self.shared.stopping.load(Ordering::Acquire) {
            return false;
        }
        let now = clock::boot_ms();
        let since = *self.draining_since.get_or_insert(now);
        let owes = |c: &Option<Box<Conn>>| c.as_ref().is_some_and(|c| c.session.output.owes());
        let busy = self.dispatch.exec.is_syncing()
            || self.parked > 0
            || self.conns.iter().any(|(_, c)| owes(c))
            || self.shared.inboxes[self.shard].is_rung()
            || !self.inbox.is_empty();
        self.shared.drained[self.shard].store(!busy, Ordering::Release);
        self.shared.drained.iter().all(|d| d.load(Ordering::Acquire)) || now.saturating_sub(since) >= DRAIN_MS
    }
}

/// How far a write came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrote {
    /// As far as the client takes it.
    All,
    /// As far as one pass gives to one client; there is more.
    Part,
    /// The connection is over.
    Closed,
}

/// Counts what the connection holds among what all hold.
fn recount(shared: &Shared, conn: &mut Conn) {
    let (now, before) = conn.session.output.recount();
    if now > before {
        shared.output_bytes.fetch_add(now - before, Ordering::Relaxed);
    } else if now < before {
        shared.output_bytes.fetch_sub(before - now, Ordering::Relaxed);
    }
}

/// Writes what the client takes, but not so much that others wait for it.
fn write(shared: &Shared, shard: usize, conn: &mut Conn) -> Wrote {
    let mut left = WRITE_BYTES;
    loop {
        let unsent = conn.session.output.unsent();
        if unsent.is_empty() {
            conn.stuck_since = 0;
            return Wrote::All;
        }
        if left == 0 {
            return Wrote::Part;
        }
        match conn.stream.write(&unsent[..unsent.len().min(left)]) {
            Ok(0) => return Wrote::Closed,
            Ok(sent) => {
                left -= sent;
                conn.session.output.advance(sent);
                conn.stuck_since = 0;
                add(&shared.stats[shard].bytes_out, sent as u64);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if conn.stuck_since == 0 {
                    conn.stuck_since = clock::boot_ms();
                }
                return Wrote::All;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Wrote::Closed,
        }
    }
}
