//! The compaction filter that drops values which expired long ago.

use std::time::{SystemTime, UNIX_EPOCH};

use parovoz_dataplane_core::value;
use rocksdb::compaction_filter::Decision;

/// How long an expired value stays, in milliseconds: longer than clocks differ, so that no member drops what another still
/// serves, and long enough for a verification that is under way.
pub(super) const GRACE_MS: u64 = 60 * 60 * 1000;

/// Decides about one value of the `default` family. Has no state: several compactions call it at once.
pub(super) fn keep_or_drop(_level: u32, _key: &[u8], stored: &[u8]) -> Decision {
    // A value that can't be decoded stays: its reader reports it.
    match value::decode(stored) {
        Ok(value::Stored { expires_at_ms: Some(at), .. }) if is_due(at, now_ms()) => Decision::Remove,
        Ok(_) | Err(_) => Decision::Keep,
    }
}

fn is_due(expires_at_ms: u64, now_ms: u64) -> bool {
    expires_at_ms.saturating_add(GRACE_MS) <= now_ms
}

fn now_ms() -> u64 {
    // A clock before 1970 drops nothing.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_due_an_hour_after_its_expiry() {
        assert!(!is_due(1_000, GRACE_MS + 999));
        assert!(is_due(1_000, GRACE_MS + 1_000));
        assert!(!is_due(u64::MAX, u64::MAX - 1));
    }
}
