//! Replies that may not go out yet: they wait for their batch's commit, and under W > 0 for replicas.
//!
//! Under W = 0 replies are written at once into the buffer that goes out after the commit; a [`Mark`] says which of them a
//! failed commit must turn into errors. Under `durability: Sync` the buffer is held until the commit's group is durable
//! (`durable`). Everything else ([`Waiter`]) is kept apart until it may go.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use parovoz_dataplane_core::resp::reply::reply_len;
use parovoz_dataplane_core::types::{Position, Sequence};

use super::{Executor, Refusal};
use crate::shard::conn::{READY, Ticket};
use crate::shard::message::{Answer, CallReply, ConnId, ReplyTo};
use crate::shard::stats::add;

/// How long a reply waits for replicas or for the disk, in milliseconds.
pub(super) const PARKED_MS: u64 = 10_000;
/// Why a write, or a read, is not answered where nothing but the own disk had to confirm it.
const DISK_WRITE: Refusal = Refusal::Unknown("it was not confirmed in time by the disk of this member");
const DISK_READ: Refusal = Refusal::Unconfirmed("what it shows was not confirmed in time by the disk of this member");
/// The same where replicas had to.
const REPLICAS_WRITE: Refusal = Refusal::Unknown("it was not confirmed in time by enough replicas");
const REPLICAS_READ: Refusal = Refusal::Unconfirmed("what it shows was not confirmed in time by enough replicas");

/// A reply that is ready: where it belongs, and its bytes.
pub(in crate::shard) type Finished = (ReplyTo, Vec<u8>);

/// Which buffer replies stand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::shard) enum MarkAt {
    /// A segment of a connection's output.
    Conn(ConnId, u64),
    /// An item of the replies to another loop.
    Item(usize, usize),
}

/// Replies that depend on a batch of this pass: those from `from` to `to` in their buffer.
#[derive(Debug, Clone, Copy)]
pub(in crate::shard) struct Mark {
    pub(in crate::shard) at: MarkAt,
    pub(in crate::shard) from: usize,
    pub(in crate::shard) to: usize,
    pub(in crate::shard) index: usize,
    pub(in crate::shard) batch: u32,
}

/// Who waits.
#[derive(Debug)]
pub(in crate::shard) enum Waiter {
    /// A connection, here or at another loop.
    Reply(ReplyTo, Vec<u8>),
    /// A thread that is not a loop.
    Call(CallReply, Answer),
}

/// What becomes of a command's reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::shard) enum Settled {
    /// It goes out after the pass.
    Goes,
    /// It is kept apart, with what waits on this prefix.
    Waits(usize),
    /// It stays where it is, but goes out only when this group is durable; whether it is about a write.
    Held(Ticket, bool),
}

/// A reply that waits for replicas or for the disk.
#[derive(Debug)]
struct Parked {
    /// Up to here, in this very history: another reign may have put another record in its place.
    until: Position,
    deadline: u64,
    wrote: bool,
    waiter: Waiter,
}

/// What waits on one prefix.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// For the commit of the batch under way; whether they wrote.
    commit: Vec<(Waiter, bool)>,
    /// For replicas, in order.
    replicas: VecDeque<Parked>,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.commit.is_empty() && self.replicas.is_empty()
    }
}

impl Executor {
    /// What becomes of the reply of the command just executed. If it depends on batches, it is marked.
    ///
    /// A reply that is kept apart concerns one prefix only: commands over several are split before.
    pub(in crate::shard) fn settle(&mut self, at: MarkAt, from: usize, to: usize) -> Settled {
        if self.required > 0 {
            let Some(&index) = self.depends.first() else {
                self.show(at, from, to);
                return Settled::Goes;
            };
            self.depends.clear();
            let behind = self.states[index].prefix.released() < self.latest(index);
            let waits = self.states[index].builder.count() > 0 || behind;
            if !waits {
                self.show(at, from, to);
            }
            return if waits { Settled::Waits(index) } else { Settled::Goes };
        }
        let in_place = matches!(at, MarkAt::Conn(_, READY));
        let wait_for = self.wait_for;
        if wait_for.group > 0 && !in_place {
            return Settled::Waits(wait_for.index);
        }
        self.show(at, from, to);
        for index in self.depends.drain(..) {
            let batch = self.states[index].batch;
            match self.marks.last_mut() {
                // One mark for all replies of a connection in a row.
                Some(last) if last.at == at && last.to == from && last.index == index && last.batch == batch => {
                    last.to = to
                }
                _ => self.marks.push(Mark { at, from, to, index, batch }),
            }
        }
        if wait_for.group > 0 { Settled::Held(wait_for, self.wrote) } else { Settled::Goes }
    }

    /// Keeps a reply until a prefix's batch is committed and, under W > 0, held by replicas.
    pub(in crate::shard) fn park(&mut self, index: usize, waiter: Waiter) {
        self.states[index].waiting.commit.push((waiter, self.wrote));
        if !self.touched.contains(&index) {
            // So that the end of the pass looks at it even if its copy is gone.
            self.touched.push(index);
        }
    }

    /// The batch that replies waited for is committed at `position` (or there was none): now they wait for replicas.
    pub(super) fn sequence_waiting(&mut self, index: usize, position: Option<Position>) {
        if self.states[index].waiting.commit.is_empty() {
            return;
        }
        let latest = self.states[index].prefix.applied();
        let now_at = self.states[index].prefix.position_at(latest);
        let deadline = self.boot_ms + PARKED_MS;
        let waiting = std::mem::take(&mut self.states[index].waiting.commit);
        let refusals = [false, true].map(|wrote| self.gate_refusal(wrote));
        for (mut waiter, wrote) in waiting {
            // What only was read is no proof of leading, and under W = 0 a commit is none either.
            if (!wrote || self.required == 0)
                && self.primary
                && let Some(refusal) = refusals[usize::from(wrote)].clone()
            {
                self.refuse(waiter, &refusal);
                continue;
            }
            if let Waiter::Call(_, Answer::Written { position: at, .. }) = &mut waiter {
                *at = position.unwrap_or(now_at);
            }
            let until = position.unwrap_or(now_at);
            self.states[index].waiting.replicas.push_back(Parked { until, deadline, wrote, waiter });
        }
        self.release(index);
    }

    /// Lets go what replicas have by now.
    fn release(&mut self, index: usize) {
        if self.fenced {
            return;
        }
        let gated = self.is_gated();
        let disk_only = self.sync && self.required == 0;
        // Under W = 0 they waited for the disk, and the Lease may have run out meanwhile.
        let refusals = if self.required == 0 && self.primary {
            [false, true].map(|wrote| self.gate_refusal(wrote))
        } else {
            [None, None]
        };
        let mut refused: Vec<(Waiter, Refusal)> = Vec::new();
        let state = &mut self.states[index];
        // What was released while syncs were not wanted may not be durable.
        let durable = if disk_only { state.prefix.durable() } else { Sequence(u64::MAX) };
        let released = state.prefix.released().min(durable);
        while let Some(front) = state.waiting.replicas.front() {
            if gated && front.until.sequence > released {
                break;
            }
            let Some(parked) = state.waiting.replicas.pop_front() else { break };
            if let Some(refusal) = &refusals[usize::from(parked.wrote)] {
                refused.push((parked.waiter, refusal.clone()));
                continue;
            }
            match parked.waiter {
                Waiter::Reply(to, bytes) => self.finished.push((to, bytes)),
                Waiter::Call(reply, answer) => reply.send(Ok(answer)),
            }
        }
        for (waiter, refusal) in refused {
            self.refuse(waiter, &refusal);
        }
    }

    /// Lets go what replicas have by now, of all prefixes, and gives up what waited too long.
    pub(in crate::shard) fn release_all(&mut self) -> usize {
        let mut left = 0;
        for index in 0..self.states.len() {
            if self.states[index].waiting.replicas.is_empty() {
                continue;
            }
            self.release(index);
            let boot_ms = self.boot_ms;
            let replicas = &mut self.states[index].waiting.replicas;
            let late = replicas.iter().take_while(|p| p.deadline <= boot_ms).count();
            let late: Vec<Parked> = replicas.drain(..late).collect();
            left += replicas.len();
            let (write, read) =
                if self.required > 0 { (REPLICAS_WRITE, REPLICAS_READ) } else { (DISK_WRITE, DISK_READ) };
            self.give_up(late, &write, &read);
        }
        let (parked, held) = if self.required > 0 { (left, 0) } else { (0, left) };
        self.stats().parked.store(parked as u64, Ordering::Relaxed);
        self.stats().held.store((held + self.held_count()) as u64, Ordering::Relaxed);
        let waited = self.oldest_wait_ms();
        let since = if left == 0 { 0 } else { self.boot_ms - waited };
        self.shared.waiting_since[self.shard].store(since, Ordering::Release);
        left
    }

    /// Answers what waited for a record that is not in the history any more: this member leads again, and meanwhile took
    /// another one's place in it.
    pub(super) fn abandon_lost(&mut self, index: usize) {
        let state = &mut self.states[index];
        let waiting = std::mem::take(&mut state.waiting.replicas);
        let prefix = state.prefix.clone();
        let (kept, lost): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|p| prefix.position_at(p.until.sequence) == p.until);
        self.states[index].waiting.replicas = kept.into();
        let why = "it is not in the history of the reign that followed";
        self.give_up(lost, &Refusal::Unknown(why), &Refusal::Unconfirmed(why));
    }

    /// Milliseconds for which the oldest reply has been waiting for replicas; 0 = none waits.
    pub(in crate::shard) fn oldest_wait_ms(&self) -> u64 {
        let oldest = self.states.iter().filter_map(|s| s.waiting.replicas.front()).map(|p| p.deadline).min();
        oldest.map_or(0, |deadline| self.boot_ms.saturating_sub(deadline.saturating_sub(PARKED_MS)))
    }

    /// This member is no longer the prefix's primary: nobody will say what becomes of what waits for replicas.
    pub(super) fn abandon(&mut self, index: usize) {
        let waiting = std::mem::take(&mut self.states[index].waiting.replicas);
        let why = "this member is no longer the prefix's primary";
        self.give_up(waiting.into(), &Refusal::Unknown(why), &Refusal::Unconfirmed(why));
    }

    /// Answers in the words for writes or in those for reads: a read has no outcome that anybody could wonder about.
    fn give_up(&mut self, waiting: Vec<Parked>, write: &Refusal, read: &Refusal) {
        add(&self.stats().parked_timeouts, waiting.len() as u64);
        for parked in waiting {
            self.refuse(parked.waiter, if parked.wrote { write } else { read });
        }
    }

    /// What stands in the place of replies about writes, and about reads, that the disk did not confirm in time.
    pub(in crate::shard) fn disk_errors() -> [Vec<u8>; 2] {
        [refusal_bytes(&DISK_WRITE), refusal_bytes(&DISK_READ)]
    }

    /// So many replies were given up that stood in their connection's output.
    pub(in crate::shard) fn count_given_up(&mut self, replies: usize) {
        self.errors += replies as u64;
        add(&self.stats().parked_timeouts, replies as u64);
    }

    /// The batch that replies waited for was not committed.
    pub(super) fn fail_waiting(&mut self, index: usize, refusal: &Refusal) {
        for (waiter, _) in std::mem::take(&mut self.states[index].waiting.commit) {
            self.refuse(waiter, refusal);
        }
    }

    fn refuse(&mut self, waiter: Waiter, refusal: &Refusal) {
        match waiter {
            Waiter::Reply(to, _) => {
                self.errors += 1;
                self.finished.push((to, refusal_bytes(refusal)));
            }
            Waiter::Call(reply, _) => reply.send(Err(self.call_error(refusal.clone()))),
        }
    }

    /// Marks of this pass whose batch was not committed, each with the error that takes its replies' place.
    pub(in crate::shard) fn take_failed(&mut self) -> Vec<(Mark, Vec<u8>)> {
        let failed = std::mem::take(&mut self.failed);
        let marks = self.marks.drain(..);
        if failed.is_empty() {
            return Vec::new();
        }
        let refusal = |m: &Mark| failed.iter().find(|(index, batch, _)| *index == m.index && *batch == m.batch);
        marks.filter_map(|m| refusal(&m).map(|(_, _, r)| (m, refusal_bytes(r)))).collect()
    }
}

pub(super) fn refusal_bytes(refusal: &Refusal) -> Vec<u8> {
    let mut bytes = Vec::new();
    parovoz_dataplane_core::resp::Reply::new(&mut bytes, Default::default()).error(&refusal.to_string());
    bytes
}

/// Puts an error in the place of every reply in one of the ranges, which are in order. Ranges may overlap: the first counts.
pub(in crate::shard) fn replace_replies(bytes: &mut Vec<u8>, ranges: &[(usize, usize, &[u8])]) {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    for (from, to, error) in ranges {
        let from = (*from).max(at);
        if *to <= from {
            continue;
        }
        out.extend_from_slice(&bytes[at..from]);
        at = from;
        while at < *to {
            at += reply_len(&bytes[at..]).unwrap_or(bytes.len() - at);
            out.extend_from_slice(error);
        }
    }
    out.extend_from_slice(&bytes[at..]);
    *bytes = out;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_replies_become_errors_and_others_stay() {
        let mut bytes = b"+A\r\n+OK\r\n:1\r\n$1\r\nx\r\n+Z\r\n".to_vec();
        replace_replies(&mut bytes, &[(4, 13, b"-E\r\n"), (9, 13, b"-F\r\n"), (20, 24, b"-G\r\n")]);
        assert_eq!(String::from_utf8_lossy(&bytes), "+A\r\n-E\r\n-E\r\n$1\r\nx\r\n-G\r\n");
    }
}
