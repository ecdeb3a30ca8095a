//! `durability: Sync`: what replies show must be durable before they go out.
//!
//! Commits go into the WAL without a sync, and at the end of a pass as a group to the [`Syncer`], which makes each prefix
//! durable by itself. A command's reply waits for its prefix's part of the group of what it wrote, and of what it read if that
//! key may be in a group that is not durable; all other reads are answered at once.

use std::collections::BTreeMap;

use parovoz_dataplane_core::types::Sequence;

use super::Executor;
use super::park::PARKED_MS;
use crate::shard::conn::Ticket;
use crate::shard::message::ConnId;
use crate::shard::pending::Pending;
use crate::shard::syncer::{Part, Syncer};

/// Between two looks at deadlines.
const LOOK_EVERY_MS: u64 = 250;

/// How durable a prefix is, by groups.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    /// Replies about any key wait for this group.
    whole: u64,
    /// The last group that has something of the prefix, and the one before it.
    last: u64,
    before: u64,
    /// The prefix is durable up to this group.
    done: u64,
    /// Connections whose output waits for a group.
    held: BTreeMap<u64, Held>,
}

/// Who waits for one group of a prefix.
#[derive(Debug)]
struct Held {
    /// `boot_ms` when they give up.
    deadline: u64,
    conns: Vec<ConnId>,
}

impl Syncs {
    /// Whether something of it is not durable.
    pub(super) fn is_open(&self) -> bool {
        self.last > self.done
    }
}

/// The groups that are not durable.
#[derive(Debug)]
pub(super) struct Durable {
    syncer: Option<Syncer>,
    /// Number of this pass's group; those before it were handed over.
    present: u64,
    /// What this pass committed.
    parts: Vec<Part>,
    /// Prefixes with a group that is not durable.
    open: Vec<usize>,
    /// When deadlines are looked at next.
    look_at: u64,
    /// Keys of groups up to `older_last`.
    older: Pending,
    older_last: u64,
    /// Keys of the groups after it.
    newer: Pending,
}

impl Default for Durable {
    fn default() -> Self {
        Self {
            syncer: None,
            present: 1,
            parts: Vec::new(),
            open: Vec::new(),
            look_at: 0,
            older: Pending::default(),
            older_last: 0,
            newer: Pending::default(),
        }
    }
}

impl Executor {
    /// Sets who syncs; once, before the first pass.
    pub(in crate::shard) fn set_syncer(&mut self, syncer: Syncer) {
        self.durable.syncer = Some(syncer);
    }

    /// The present command changes a key: its reply waits for this pass's group.
    pub(super) fn will_sync(&mut self, index: usize, hash: u64) {
        if self.sync {
            self.durable.newer.insert(hash);
            self.wait_for = Ticket { index, group: self.durable.present };
        }
    }

    /// The present command reads a key: its reply waits for the group that the key may be part of.
    pub(super) fn reads_group(&mut self, index: usize, hash: u64) {
        if !self.sync {
            return;
        }
        let (durable, state) = (&self.durable, &self.states[index]);
        let syncs = &state.syncs;
        let last = if state.builder.count() > 0 { durable.present } else { syncs.last };
        if last <= syncs.done {
            return;
        }
        let before = if syncs.last == durable.present { syncs.before } else { syncs.last };
        let group = if durable.newer.may_hold(hash) {
            if self.pending.may_hold(hash) { last } else { before }
        } else if durable.older.may_hold(hash) {
            before.min(durable.older_last)
        } else {
            0
        };
        let group = group.max(syncs.whole.min(last));
        if group > syncs.done {
            self.wait_for = Ticket { index, group: self.wait_for.group.max(group) };
        }
    }

    /// The present command concerns every key of a prefix.
    pub(super) fn will_sync_whole(&mut self, index: usize) {
        if self.sync {
            self.wait_for = Ticket { index, group: self.durable.present };
        }
    }

    /// Every key of a prefix counts as part of its last group: keys are hashed anew, or all were deleted.
    pub(super) fn sync_whole(&mut self, index: usize) {
        let state = &mut self.states[index];
        let batched = state.builder.count() > 0;
        state.syncs.whole = if batched { self.durable.present } else { state.syncs.last };
    }

    /// Syncs are wanted from now on: nothing that was committed before without one is shown until it has had it.
    pub(super) fn sync_all(&mut self) {
        for index in 0..self.states.len() {
            let state = &self.states[index];
            let (applied, durable) = (state.prefix.applied(), state.prefix.durable());
            if self.primary && !state.gone && durable < applied {
                self.gather(index, (self.required == 0).then_some(applied));
                self.sync_whole(index);
            }
        }
    }

    /// Something was committed without a sync, or might have been. Once it is durable, replies up to `release` may go.
    pub(super) fn gather(&mut self, index: usize, release: Option<Sequence>) {
        let durable = &mut self.durable;
        let state = &mut self.states[index];
        let syncs = &mut state.syncs;
        if syncs.last == durable.present {
            if let Some(part) = durable.parts.iter_mut().find(|part| part.index == index) {
                part.release = part.release.max(release);
            }
            return;
        }
        if !syncs.is_open() {
            syncs.done = durable.present - 1;
            durable.open.push(index);
        }
        (syncs.before, syncs.last) = (syncs.last, durable.present);
        durable.parts.push(Part { index, prefix: state.prefix.clone(), release });
    }

    /// A connection's output waits for a group of a prefix.
    pub(in crate::shard) fn held(&mut self, ticket: Ticket, conn: ConnId) {
        let deadline = self.boot_ms + PARKED_MS;
        let held = &mut self.states[ticket.index].syncs.held;
        let held = held.entry(ticket.group).or_insert_with(|| Held { deadline, conns: Vec::new() });
        // A connection's requests of one pass are executed in a row.
        if held.conns.last() != Some(&conn) {
            held.conns.push(conn);
        }
    }

    /// Takes note of groups that became durable: of which prefix, and a connection that waited.
    pub(in crate::shard) fn take_synced(&mut self) -> Vec<(Ticket, ConnId)> {
        let durable = &mut self.durable;
        let done = durable.syncer.as_ref().map_or_else(Vec::new, Syncer::take_done);
        if done.is_empty() {
            return Vec::new();
        }
        let mut free = Vec::new();
        for (index, group) in done {
            let syncs = &mut self.states[index].syncs;
            syncs.done = syncs.done.max(group);
            let later = syncs.held.split_off(&(syncs.done + 1));
            let ticket = Ticket { index, group: syncs.done };
            let waited = std::mem::replace(&mut syncs.held, later);
            free.extend(waited.into_values().flat_map(|held| held.conns).map(|conn| (ticket, conn)));
        }
        let states = &self.states;
        durable.open.retain(|index| states[*index].syncs.is_open());
        if durable.open.iter().all(|index| states[*index].syncs.done >= durable.older_last) {
            durable.older.clear();
            std::mem::swap(&mut durable.older, &mut durable.newer);
            durable.older_last = durable.present - 1;
        }
        free
    }

    /// Whether what waited for the disk may be answered. The sync may have taken longer than the Lease lasted, or this member
    /// may have stopped leading meanwhile.
    pub(in crate::shard) fn may_answer_held(&self) -> bool {
        self.primary && self.gate_refusal(true).is_none()
    }

    /// Connections that waited too long, and for what: nobody knows whether the disk will ever confirm it.
    pub(in crate::shard) fn take_late(&mut self) -> Vec<(Ticket, ConnId)> {
        let (durable, now) = (&mut self.durable, self.boot_ms);
        let mut late = Vec::new();
        if now < durable.look_at {
            return late;
        }
        durable.look_at = now + LOOK_EVERY_MS;
        for &index in &durable.open {
            let held = &mut self.states[index].syncs.held;
            for (group, held) in held.extract_if(.., |_, held| held.deadline <= now) {
                late.extend(held.conns.into_iter().map(|conn| (Ticket { index, group }, conn)));
            }
        }
        late
    }

    /// Connections that wait, those that wait for several groups counted as often.
    pub(super) fn held_count(&self) -> usize {
        let of = |index: &usize| self.states[*index].syncs.held.values().map(|held| held.conns.len()).sum::<usize>();
        self.durable.open.iter().map(of).sum()
    }

    /// Hands this pass's group over. Call at the end of a pass.
    pub(in crate::shard) fn begin_sync(&mut self) {
        let durable = &mut self.durable;
        if durable.parts.is_empty() {
            return;
        }
        if let Some(syncer) = &durable.syncer {
            syncer.hand_over(durable.present, &mut durable.parts);
            durable.present += 1;
        }
    }

    /// Whether something is not durable that will be.
    pub(in crate::shard) fn is_syncing(&self) -> bool {
        !self.durable.open.is_empty()
    }
}
