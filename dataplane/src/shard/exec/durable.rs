//! `durability: Sync`: what replies show must be durable before they go out.
//!
//! Commits go into the WAL without a sync, and at the end of a pass as a group to the [`Syncer`]. A command's reply waits for
//! the group of what it wrote, and of what it read if that key may be in a group that is not durable; all other reads are
//! answered at once.

use std::collections::BTreeMap;

use parovoz_dataplane_core::types::Sequence;

use super::Executor;
use crate::shard::message::ConnId;
use crate::shard::pending::Pending;
use crate::shard::syncer::{Part, Syncer, add_part};

/// The groups that are not durable.
#[derive(Debug)]
pub(super) struct Durable {
    syncer: Option<Syncer>,
    /// Number of this pass's group; those before it were handed over.
    present: u64,
    /// The last group that is durable.
    done: u64,
    /// What this pass committed.
    parts: Vec<Part>,
    /// Keys of groups up to `older_last`.
    older: Pending,
    older_last: u64,
    /// Keys of the groups after it.
    newer: Pending,
    /// Connections whose output waits for a group.
    held: BTreeMap<u64, Vec<ConnId>>,
}

impl Default for Durable {
    fn default() -> Self {
        Self {
            syncer: None,
            present: 1,
            done: 0,
            parts: Vec::new(),
            older: Pending::default(),
            older_last: 0,
            newer: Pending::default(),
            held: BTreeMap::new(),
        }
    }
}

impl Executor {
    /// Sets who syncs; once, before the first pass.
    pub(in crate::shard) fn set_syncer(&mut self, syncer: Syncer) {
        self.durable.syncer = Some(syncer);
    }

    /// The present command changes a key: its reply waits for this pass's group.
    pub(super) fn will_sync(&mut self, hash: u64) {
        if self.sync {
            self.durable.newer.insert(hash);
            self.wait_for = self.durable.present;
        }
    }

    /// The present command reads a key: its reply waits for the group that the key may be part of.
    pub(super) fn reads_group(&mut self, index: usize, hash: u64) {
        let durable = &self.durable;
        let group = if durable.newer.may_hold(hash) {
            if self.pending.may_hold(hash) { durable.present } else { durable.present - 1 }
        } else if durable.older.may_hold(hash) {
            durable.older_last
        } else {
            0
        };
        let group = group.max(self.states[index].waits_for);
        if group > durable.done {
            self.wait_for = self.wait_for.max(group);
        }
    }

    /// Every key of a prefix counts as part of this pass's group: keys are hashed anew, or all were deleted.
    pub(super) fn sync_whole(&mut self, index: usize) {
        if self.sync {
            self.states[index].waits_for = self.durable.present;
        }
    }

    /// A batch was committed up to `last` without a sync.
    pub(super) fn gather(&mut self, index: usize, last: Sequence) {
        let part = Part { prefix: self.states[index].prefix.clone(), last, release: self.required == 0 };
        add_part(&mut self.durable.parts, part);
    }

    /// A connection's output waits for a group.
    pub(in crate::shard) fn held(&mut self, group: u64, conn: ConnId) {
        self.durable.held.entry(group).or_default().push(conn);
    }

    /// Takes note of groups that became durable: the last of them, and the connections that waited.
    pub(in crate::shard) fn take_synced(&mut self) -> (u64, Vec<ConnId>) {
        let durable = &mut self.durable;
        let done = durable.syncer.as_ref().map_or(0, Syncer::done);
        if done == durable.done {
            return (done, Vec::new());
        }
        durable.done = done;
        if done >= durable.older_last {
            durable.older.clear();
            std::mem::swap(&mut durable.older, &mut durable.newer);
            durable.older_last = durable.present - 1;
        }
        let later = durable.held.split_off(&(done + 1));
        let free = std::mem::replace(&mut durable.held, later);
        (done, free.into_values().flatten().collect())
    }

    /// Whether what waited for the disk may be answered. The sync may have taken longer than the Lease lasted, or this member
    /// may have stopped leading meanwhile.
    pub(in crate::shard) fn may_answer_held(&self) -> bool {
        self.primary && self.gate_refusal(true).is_none()
    }

    /// Hands this pass's group over, if anything waits for it. Call at the end of a pass.
    pub(in crate::shard) fn begin_sync(&mut self) {
        let durable = &mut self.durable;
        if durable.parts.is_empty() && !durable.held.contains_key(&durable.present) {
            return;
        }
        if let Some(syncer) = &durable.syncer {
            syncer.hand_over(durable.present, &mut durable.parts);
            durable.present += 1;
        }
    }

    /// Whether something is not durable that will be.
    pub(in crate::shard) fn is_syncing(&self) -> bool {
        self.durable.done + 1 < self.durable.present || !self.durable.parts.is_empty()
    }
}
