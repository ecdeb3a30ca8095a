//! The gate of a primary: what it read or committed may be answered only while it surely leads. Asked at the beginning of a
//! pass, so that nothing is done in vain, and again at its end, after all was read and committed, since the process may have
//! been suspended in between.

use super::park::{MarkAt, refusal_bytes};
use super::{Executor, Refusal};
use crate::clock;

/// What the gate says at the beginning of a pass.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AtBegin {
    pub(super) may_read: bool,
    pub(super) may_write: bool,
    /// Writes wait.
    pub(super) frozen: bool,
    /// What can't be served waits.
    pub(super) held: bool,
    /// Nothing new is begun.
    pub(super) ending: bool,
}

/// Replies that show what this primary read or, under W = 0, wrote: those from `from` to `to` in their buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown {
    pub(super) at: MarkAt,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) changed: bool,
}

/// A reply that the gate has closed on, by its place in a buffer.
pub(in crate::shard) type Withheld = (MarkAt, usize, usize, Vec<u8>);

impl Executor {
    pub(super) fn look_at_gate(&mut self) {
        let gate = &self.shared.store.gate;
        let now = self.boot_ms;
        self.at_begin = AtBegin {
            may_read: gate.may_read(now),
            may_write: gate.may_acknowledge(now),
            frozen: now < gate.frozen_until_ms(),
            held: now < gate.held_until_ms(),
            ending: gate.is_ending(now),
        };
    }

    /// Whether writes wait at the moment.
    pub(in crate::shard) fn is_frozen(&self) -> bool {
        self.at_begin.frozen
    }

    /// Whether this primary is about to stop leading. What clients ask waits; what another loop handed over was begun there
    /// and is still executed.
    pub(in crate::shard) fn is_ending(&self) -> bool {
        self.at_begin.ending && self.has_led()
    }

    /// Whether this member leads, or did until a moment ago and follows nobody yet.
    pub(in crate::shard) fn has_led(&self) -> bool {
        self.primary || self.fenced
    }

    /// Whether a command that [`Executor::admit`] refuses so is to wait instead: the reign changes, and soon it is known how.
    pub(in crate::shard) fn is_held(&self, refusal: &Refusal) -> bool {
        self.at_begin.held && matches!(refusal, Refusal::NotSure | Refusal::Fenced)
    }

    /// Whether what waits in its connections has to go on waiting.
    pub(in crate::shard) fn must_wait(&self) -> bool {
        let AtBegin { may_read, may_write, frozen, held, .. } = self.at_begin;
        frozen || self.is_ending() || (held && (self.fenced || (self.primary && !(may_read && may_write))))
    }

    /// Whether a command about data may be executed here now. `led` says that its client was served by the primary here: it
    /// must not be shown a replica's data without noticing.
    pub(in crate::shard) fn admit(&self, writes: bool, led: bool) -> Result<(), Refusal> {
        if self.primary {
            let open = if writes { self.at_begin.may_write } else { self.at_begin.may_read };
            return if open { Ok(()) } else { Err(Refusal::NotSure) };
        }
        if self.fenced {
            return Err(Refusal::Fenced);
        }
        if writes || led { Err(self.read_only()) } else { Ok(()) }
    }

    /// Notes a reply of this pass that needs the gate at the end of it.
    pub(super) fn show(&mut self, at: MarkAt, from: usize, to: usize) {
        if !self.primary {
            return;
        }
        let changed = self.wrote;
        match self.shown.last_mut() {
            // One note for all replies of a connection in a row.
            Some(last) if last.at == at && last.to == from && last.changed == changed => last.to = to,
            _ => self.shown.push(Shown { at, from, to, changed }),
        }
    }

    /// Why an answer that was made just now may not go out; `None` = it may.
    pub(super) fn gate_refusal(&self, changed: bool) -> Option<Refusal> {
        let gate = &self.shared.store.gate;
        let now = clock::boot_ms();
        let open = if changed && self.required == 0 { gate.may_acknowledge(now) } else { gate.may_read(now) };
        if open {
            return None;
        }
        Some(if changed {
            Refusal::Unknown("this member stopped leading before it could say so")
        } else {
            Refusal::NotSure
        })
    }

    /// The end of a pass: everything is read and committed. Answers what must not go out.
    pub(in crate::shard) fn close_gate(&mut self) -> Vec<Withheld> {
        if self.shown.is_empty() {
            return Vec::new();
        }
        let refusals = [self.gate_refusal(false), self.gate_refusal(true)].map(|r| r.map(|r| refusal_bytes(&r)));
        let shown = std::mem::take(&mut self.shown);
        if refusals.iter().all(Option::is_none) {
            // Keeps its memory for the next pass.
            self.shown = shown;
            self.shown.clear();
            return Vec::new();
        }
        let withheld = |s: Shown| Some((s.at, s.from, s.to, refusals[usize::from(s.changed)].clone()?));
        shown.into_iter().filter_map(withheld).collect()
    }
}
