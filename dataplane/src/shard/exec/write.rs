//! Writes into the batch of a pass, and its commit.

use std::time::Instant;

use parovoz_dataplane_core::types::Reign;
use parovoz_engine::Severity;

use super::{Executor, Refusal};
use crate::shard::cache::Cached;
use crate::shard::stats::add;
use crate::store::prefix::{CommitError, WalSync};

/// A batch that has reached this size is committed before more is added, so that followers get pieces of a handy size.
const GROUP_BYTES: usize = 4 << 20;

impl Executor {
    /// Makes a prefix ready for changes of up to about `bytes` that must stand in one batch.
    pub(super) fn prepare(&mut self, index: usize, bytes: usize) -> Result<(), Refusal> {
        if !self.primary {
            return Err(self.read_only());
        }
        if bytes > self.limits.batch {
            return Err(Refusal::LongBatch { len: bytes, limit: self.limits.batch });
        }
        self.touch(index)?;
        let builder = &self.states[index].builder;
        if builder.count() > 0 && builder.len() + bytes > GROUP_BYTES {
            self.commit(index)?;
        }
        Ok(())
    }

    /// Sets a key; `expires_at_ms` 0 = never.
    pub(super) fn put(&mut self, index: usize, hash: u64, key: &[u8], value: &[u8], expires_at_ms: u64) {
        let state = &mut self.states[index];
        state.builder.put_value(key, value, (expires_at_ms > 0).then_some(expires_at_ms));
        let object = Cached { value: Some(value), expires_at_ms };
        self.cache.insert(hash, state.cache_owner, key, object);
        self.wrote(index, hash);
    }

    /// The batch holds this key now.
    fn wrote(&mut self, index: usize, hash: u64) {
        self.pending.insert(hash);
        self.in_batch = true;
        self.wrote = true;
        self.will_sync(index, hash);
    }

    /// Sets a key to what lies in the scratch buffer.
    pub(super) fn put_scratch(&mut self, index: usize, hash: u64, key: &[u8], expires_at_ms: u64) {
        let value = std::mem::take(&mut self.scratch);
        self.put(index, hash, key, &value, expires_at_ms);
        self.scratch = value;
    }

    /// Deletes a key.
    pub(super) fn delete(&mut self, index: usize, hash: u64, key: &[u8]) {
        let state = &mut self.states[index];
        state.builder.delete(key);
        self.cache.insert(hash, state.cache_owner, key, Cached { value: None, expires_at_ms: 0 });
        self.wrote(index, hash);
    }

    /// Deletes everything in a prefix.
    pub(in crate::shard) fn flush(&mut self, index: usize) -> Result<(), Refusal> {
        self.prepare(index, 0)?;
        // Above every key that the limit allows.
        let end = vec![0xFF; self.limits.key.max(8 << 10) + 1];
        let state = &mut self.states[index];
        state.builder.delete_range(&[], &end);
        state.flushes = true;
        self.forget(index);
        self.in_batch = true;
        self.wrote = true;
        self.will_sync_whole(index);
        self.depend(index);
        Ok(())
    }

    /// Commits a prefix's batch, if there is one.
    pub(super) fn commit(&mut self, index: usize) -> Result<(), Refusal> {
        let sync = if self.sync { WalSync::Later } else { WalSync::Never };
        let state = &mut self.states[index];
        let count = state.builder.count();
        if count == 0 {
            self.sequence_waiting(index, None);
            return Ok(());
        }
        let bytes = state.builder.finish();
        let size = bytes.len() as u64;
        let started = Instant::now();
        // Under the reign that it was batched in, or not at all.
        let reign = self.role.reign.as_ref().map(Reign::to_ref);
        let result = state.prefix.commit_as(reign, bytes, count, sync);
        let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        state.flushes = false;
        let batch = state.batch;
        state.batch = state.batch.wrapping_add(1);
        let stats = self.stats();
        match result {
            Ok(position) => {
                stats.commit_micros.observe(micros);
                stats.group_records.observe(u64::from(count));
                add(&stats.commits, 1);
                add(&stats.commit_bytes, size);
                if sync == WalSync::Later {
                    self.gather(index, (self.required == 0).then_some(position.sequence));
                } else if self.required == 0 {
                    self.states[index].prefix.release(position.sequence);
                }
                self.sequence_waiting(index, Some(position));
                Ok(())
            }
            Err(e) => {
                add(&stats.commit_failures, 1);
                if sync == WalSync::Later {
                    // Replies that wait for this group still wait for what was committed before.
                    self.gather(index, None);
                }
                let refusal = self.commit_refusal(index, e);
                self.forget(index);
                self.fail_waiting(index, &refusal);
                self.failed.push((index, batch, refusal.clone()));
                Err(refusal)
            }
        }
    }

    fn commit_refusal(&mut self, index: usize, error: CommitError) -> Refusal {
        let name = &self.states[index].prefix.name;
        match error {
            CommitError::NotPrimary if self.shared.store.role().is_primary => Refusal::NotServed(name.to_string()),
            CommitError::NotPrimary if self.shared.store.role().fenced => Refusal::Fenced,
            CommitError::NotPrimary => self.read_only(),
            CommitError::Closed => Refusal::Loading(name.clone()),
            CommitError::Engine(e) => {
                tracing::error!(prefix = %name, error = %e, "commit");
                if e.severity() == Severity::Fatal {
                    self.fatal = Some(e.to_string());
                }
                Refusal::Engine(e.to_string())
            }
        }
    }
}
