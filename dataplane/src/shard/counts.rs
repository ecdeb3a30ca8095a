//! How many keys each prefix has, as last counted: for `DBSIZE`, which has what changed counted anew, and for `INFO`, which
//! takes what is known and leaves word that somebody wants to know.
//!
//! RocksDB's own estimate counts every overwrite and every deletion that is not compacted yet, so it is wrong without bound. It
//! stands in only above [`COUNTED_MAX`] keys, and in `INFO` before the first count.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use parovoz_dataplane_core::types::{PrefixUuid, Sequence};
use parovoz_dataplane_core::value;
use parovoz_engine::{Direction, Family};

use super::scan::Seen;
use crate::store::prefix::{Copy, Prefix};

/// Keys of a prefix that are counted one by one; beyond that the database's estimate is taken.
pub(super) const COUNTED_MAX: u64 = 100_000;

/// How many keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) keys: u64,
    pub(super) estimated: bool,
}

/// A count, and what it is about.
#[derive(Debug)]
struct Known {
    generation: u64,
    sequence: Sequence,
    /// When the next of the counted keys expires, in milliseconds since 1970.
    until_ms: u64,
    count: Count,
}

impl Known {
    fn is_fresh(&self, copy: &Copy, now_ms: u64) -> bool {
        self.generation == copy.generation && self.sequence == copy.db.latest() && now_ms < self.until_ms
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Counts {
    known: Mutex<HashMap<PrefixUuid, Known>>,
    wanted: AtomicBool,
}

impl Counts {
    /// The last count, or the database's estimate. Has it counted anew, soon, if it may have changed.
    pub(super) fn last(&self, prefix: &Prefix, now_ms: u64) -> Count {
        let Some(copy) = prefix.copy() else { return Count { keys: 0, estimated: true } };
        let known = self.known.lock();
        let known = known.get(&prefix.uuid).filter(|known| known.generation == copy.generation);
        if known.is_none_or(|known| !known.is_fresh(&copy, now_ms)) {
            self.wanted.store(true, Ordering::Relaxed);
        }
        known.map_or_else(|| Count { keys: copy.db.estimated_keys(), estimated: true }, |known| known.count)
    }

    /// Whether somebody asked for what may have changed, since the last call.
    pub(super) fn take_wanted(&self) -> bool {
        self.wanted.swap(false, Ordering::Relaxed)
    }

    /// Whether a prefix would have to be counted anew.
    pub(super) fn is_stale(&self, prefix: &Prefix, now_ms: u64) -> bool {
        let Some(copy) = prefix.copy() else { return false };
        self.known.lock().get(&prefix.uuid).is_none_or(|known| !known.is_fresh(&copy, now_ms))
    }

    /// Forgets prefixes that are gone.
    pub(super) fn retain(&self, is_there: impl Fn(PrefixUuid) -> bool) {
        self.known.lock().retain(|prefix, _| is_there(*prefix));
    }

    /// The present count of keys that have not expired, and how many were looked at for it: none if nothing has changed.
    pub(super) fn count(&self, prefix: &Arc<Prefix>, now_ms: u64, seen: &mut Seen) -> Result<(Count, u64), String> {
        let Some(copy) = prefix.copy() else {
            return Err(format!("LOADING prefix '{}' is being loaded on this member", prefix.name));
        };
        if let Some(known) = self.known.lock().get(&prefix.uuid).filter(|known| known.is_fresh(&copy, now_ms)) {
            seen.push((prefix.clone(), known.sequence));
            return Ok((known.count, 0));
        }
        let snapshot = copy.db.snapshot();
        let (mut here, mut looked_at, mut until_ms) = (0, 0, u64::MAX);
        let mut each = |_: &[u8], stored: &[u8]| {
            looked_at += 1;
            if let Ok(stored) = value::decode(stored)
                && !stored.is_expired(now_ms)
            {
                here += 1;
                until_ms = until_ms.min(stored.expires_at_ms.unwrap_or(u64::MAX));
            }
            looked_at <= COUNTED_MAX
        };
        snapshot.scan(Family::Data, &[], &[], Direction::Forward, &mut each).map_err(|e| format!("ERR {e}"))?;
        let sequence = snapshot.sequence();
        seen.push((prefix.clone(), sequence));
        let estimated = looked_at > COUNTED_MAX;
        let keys = if estimated { copy.db.estimated_keys().max(here) } else { here };
        let count = Count { keys, estimated };
        let known = Known { generation: copy.generation, sequence, until_ms, count };
        self.known.lock().insert(prefix.uuid, known);
        Ok((count, looked_at))
    }
}
