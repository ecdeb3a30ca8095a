//! A RocksDB snapshot as the trait shows it.

use parovoz_dataplane_core::types::Sequence;
use rocksdb::{DB, ReadOptions, SnapshotWithThreadMode};

use super::database::Core;
use super::errors::other_error;
use crate::{Direction, Family, Result, Snapshot};

pub(super) struct RocksSnapshot<'a> {
    core: &'a Core,
    inner: SnapshotWithThreadMode<'a, DB>,
}

impl<'a> RocksSnapshot<'a> {
    pub(super) fn new(core: &'a Core) -> Self {
        Self { core, inner: core.db.snapshot() }
    }
}

impl Snapshot for RocksSnapshot<'_> {
    fn sequence(&self) -> Sequence {
        self.core.logical(self.inner.sequence_number())
    }

    fn get_with(&self, family: Family, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value = self
            .inner
            .get_pinned_cf(self.core.family(family)?, key)
            .map_err(|error| other_error("read key at snapshot", error))?;
        Ok(value.map(|value| found(&value)).is_some())
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        direction: Direction,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<()> {
        let mut reading = ReadOptions::default();
        // A scan of everything would push what clients read out of the cache.
        reading.fill_cache(false);
        reading.set_iterate_lower_bound(from);
        if !to.is_empty() {
            if from >= to {
                return Ok(());
            }
            reading.set_iterate_upper_bound(to);
        }
        let mut rows = self.inner.raw_iterator_cf_opt(self.core.family(family)?, reading);
        match direction {
            Direction::Forward => rows.seek_to_first(),
            Direction::Reverse => rows.seek_to_last(),
        }
        while let Some((key, value)) = rows.item() {
            if !each(key, value) {
                return Ok(());
            }
            match direction {
                Direction::Forward => rows.next(),
                Direction::Reverse => rows.prev(),
            }
        }
        rows.status().map_err(|error| other_error("scan", error))
    }
}
