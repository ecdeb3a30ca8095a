//! A prefix's epoch records, and whether a follower's position lies in that history.
//!
//! Two copies that hold the same (epoch, sequence) hold the same records up to there: an epoch has one writer. So a resume
//! is sound exactly when the upstream's own record at that sequence is of that epoch.

use crate::types::{Epoch, Position, ReignId, Sequence};
use uuid::Uuid;

/// From `start` on, records belong to `epoch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochRecord {
    /// The reign's number.
    pub epoch: Epoch,
    /// The reign's identity.
    pub reign_id: ReignId,
    /// Sequence of the epoch record itself, the first of the epoch.
    pub start: Sequence,
}

/// What stands before the epoch in the `meta` family's keys.
const KEY_TAG: &[u8] = b"epoch/";

/// Why a `meta` entry is not an epoch record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// Key or value has another form.
    #[error("read epoch record: {0}")]
    Malformed(&'static str),
    /// Epochs or starts don't grow.
    #[error("read epoch history: epoch {epoch} at {start} does not follow epoch {before} at {before_start}")]
    Disordered {
        /// Of the record that does not fit.
        epoch: Epoch,
        /// Where it starts.
        start: Sequence,
        /// Of the record before it.
        before: Epoch,
        /// Where that starts.
        before_start: Sequence,
    },
}

impl EpochRecord {
    /// Smallest and smallest-past-the-end key of all epoch records in `meta`.
    pub const KEY_RANGE: (&'static [u8], &'static [u8]) = (b"epoch/", b"epoch0");

    /// Key in the `meta` family: sorts by epoch.
    #[must_use]
    pub fn key(&self) -> Vec<u8> {
        [KEY_TAG, &self.epoch.0.to_be_bytes()].concat()
    }

    /// Value in the `meta` family: reign id (16 bytes), start sequence (8 bytes, little-endian).
    #[must_use]
    pub fn value(&self) -> Vec<u8> {
        [self.reign_id.0.as_bytes().as_slice(), &self.start.0.to_le_bytes()].concat()
    }

    /// Whether a `meta` key names an epoch record.
    #[must_use]
    pub fn is_key(key: &[u8]) -> bool {
        key.starts_with(KEY_TAG)
    }

    /// Reads one entry of `meta`.
    ///
    /// # Errors
    /// [`HistoryError::Malformed`] for another form.
    pub fn decode(key: &[u8], value: &[u8]) -> Result<Self, HistoryError> {
        let epoch = key
            .strip_prefix(KEY_TAG)
            .and_then(|k| <[u8; 8]>::try_from(k).ok())
            .ok_or(HistoryError::Malformed("the key is not epoch/ and 8 bytes"))?;
        let (id, start) = value.split_first_chunk::<16>().ok_or(HistoryError::Malformed("the value is too short"))?;
        let start = <[u8; 8]>::try_from(start).map_err(|_| HistoryError::Malformed("the value is not 24 bytes"))?;
        Ok(Self {
            epoch: Epoch(u64::from_be_bytes(epoch)),
            reign_id: ReignId(Uuid::from_bytes(*id)),
            start: Sequence(u64::from_le_bytes(start)),
        })
    }
}

/// All epochs of one prefix, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EpochHistory {
    records: Vec<EpochRecord>,
}

/// What an upstream answers to a resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResumeCheck {
    /// Send what follows.
    Stream,
    /// A gap: the WAL after the position is gone.
    TooOld {
        /// The oldest sequence that can still be sent.
        oldest: Sequence,
    },
    /// The follower's records after `fork` are not in this history.
    Diverged {
        /// The last position that both may share, as far as this side knows.
        fork: Position,
    },
    /// The follower is ahead of this upstream, which is only a replica and may yet catch up.
    Behind,
}

impl EpochHistory {
    /// From records in any order.
    ///
    /// # Errors
    /// [`HistoryError::Disordered`] if a later epoch does not start later.
    pub fn new(mut records: Vec<EpochRecord>) -> Result<Self, HistoryError> {
        records.sort_by_key(|r| r.epoch);
        let mut history = Self::default();
        for record in records {
            history.push(record)?;
        }
        Ok(history)
    }

    /// Adds the newest epoch; pushing the newest once more changes nothing.
    ///
    /// # Errors
    /// [`HistoryError::Disordered`] if it does not follow the newest.
    pub fn push(&mut self, record: EpochRecord) -> Result<(), HistoryError> {
        if let Some(last) = self.records.last() {
            if *last == record {
                return Ok(());
            }
            if record.epoch <= last.epoch || record.start <= last.start {
                return Err(HistoryError::Disordered {
                    epoch: record.epoch,
                    start: record.start,
                    before: last.epoch,
                    before_start: last.start,
                });
            }
        }
        self.records.push(record);
        Ok(())
    }

    /// The records, oldest first.
    #[must_use]
    pub fn records(&self) -> &[EpochRecord] {
        &self.records
    }

    /// The newest epoch's record.
    #[must_use]
    pub fn newest(&self) -> Option<&EpochRecord> {
        self.records.last()
    }

    /// Whether a copy that ends at `last` has records that this history left: a copy that is merely behind is of no newer epoch.
    #[must_use]
    pub fn has_left(&self, last: Position) -> bool {
        last.sequence.0 > 0 && self.epoch_at(last.sequence) > last.epoch
    }

    /// Epoch of the record at `sequence`; 0 before the first epoch.
    #[must_use]
    pub fn epoch_at(&self, sequence: Sequence) -> Epoch {
        let after = self.records.partition_point(|r| r.start <= sequence);
        after.checked_sub(1).map_or(Epoch(0), |i| self.records[i].epoch)
    }

    /// The position of the record at `sequence`.
    #[must_use]
    pub fn position_at(&self, sequence: Sequence) -> Position {
        Position { epoch: self.epoch_at(sequence), sequence }
    }

    /// Last sequence of `epoch` in a history that ends at `latest`; `None` if the epoch is not in it.
    fn end_of(&self, epoch: Epoch, latest: Sequence) -> Option<Sequence> {
        let i = self.records.iter().position(|r| r.epoch == epoch)?;
        Some(self.records.get(i + 1).map_or(latest, |next| Sequence(next.start.0 - 1)))
    }

    /// Whether a follower at `after` may be sent what follows, by an upstream whose history this is.
    ///
    /// `latest` and `oldest` are the upstream's last sequence and the oldest that its WAL still has; `authoritative` says that
    /// it is the primary, so that nobody can be rightly ahead of it.
    #[must_use]
    pub fn check_resume(
        &self,
        after: Position,
        latest: Sequence,
        oldest: Sequence,
        authoritative: bool,
    ) -> ResumeCheck {
        let newest = self.newest().map_or(Epoch(0), |r| r.epoch);
        let beyond = after.sequence > latest;
        if !authoritative && (after.epoch > newest || (beyond && after.epoch == newest)) {
            return ResumeCheck::Behind;
        }
        let other = self.epoch_at(after.sequence) != after.epoch && !parovoz_mutant::on("epoch-ignored-on-resume");
        if beyond || other {
            return ResumeCheck::Diverged { fork: self.fork(after, latest) };
        }
        if after.sequence.next() < oldest {
            return ResumeCheck::TooOld { oldest };
        }
        ResumeCheck::Stream
    }

    /// The last position that this history may share with one that ends at `other`.
    fn fork(&self, other: Position, latest: Sequence) -> Position {
        self.records
            .iter()
            .rev()
            .filter(|r| r.epoch <= other.epoch && r.start <= other.sequence)
            .find_map(|r| self.end_of(r.epoch, latest).map(|end| (r.epoch, end)))
            .map_or(Position::ZERO, |(epoch, end)| Position { epoch, sequence: end.min(other.sequence).min(latest) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn history(starts: &[(u64, u64)]) -> EpochHistory {
        let records = starts.iter().map(|&(e, s)| EpochRecord {
            epoch: Epoch(e),
            reign_id: ReignId(Uuid::from_u128(u128::from(e))),
            start: Sequence(s),
        });
        EpochHistory::new(records.collect()).unwrap()
    }

    fn check(h: &EpochHistory, after: (u64, u64), authoritative: bool) -> ResumeCheck {
        h.check_resume(Position::new(after.0, after.1), Sequence(100), Sequence(20), authoritative)
    }

    #[test]
    fn a_record_survives_its_encoding() {
        let r = EpochRecord { epoch: Epoch(7), reign_id: ReignId(Uuid::from_u128(9)), start: Sequence(300) };
        assert_eq!(EpochRecord::decode(&r.key(), &r.value()), Ok(r));
        assert!(EpochRecord::decode(b"epoch/1", &r.value()).is_err());
        assert!(EpochRecord::decode(&r.key(), b"short").is_err());
        let (from, to) = EpochRecord::KEY_RANGE;
        assert!(from <= r.key().as_slice() && r.key().as_slice() < to);
    }

    #[test]
    fn the_same_sequence_of_another_epoch_is_divergence() {
        let h = history(&[(1, 1), (3, 50)]);
        assert_eq!(check(&h, (1, 49), true), ResumeCheck::Stream);
        assert_eq!(check(&h, (3, 50), true), ResumeCheck::Stream);
        assert_eq!(check(&h, (1, 50), true), ResumeCheck::Diverged { fork: Position::new(1, 49) });
        assert_eq!(check(&h, (2, 60), true), ResumeCheck::Diverged { fork: Position::new(1, 49) });
    }

    #[test]
    fn a_follower_with_more_than_its_primary_has_diverged() {
        let h = history(&[(1, 1)]);
        assert_eq!(check(&h, (1, 101), true), ResumeCheck::Diverged { fork: Position::new(1, 100) });
        assert_eq!(check(&h, (1, 101), false), ResumeCheck::Behind);
        assert_eq!(check(&h, (2, 90), false), ResumeCheck::Behind);
    }

    #[test]
    fn a_replica_upstream_still_sees_a_fork_in_an_old_epoch() {
        let h = history(&[(1, 1), (3, 50)]);
        assert_eq!(check(&h, (1, 120), false), ResumeCheck::Diverged { fork: Position::new(1, 49) });
    }

    #[test]
    fn a_gap_names_the_oldest_that_is_left() {
        let h = history(&[(1, 1)]);
        assert_eq!(check(&h, (1, 19), true), ResumeCheck::Stream);
        assert_eq!(check(&h, (1, 18), true), ResumeCheck::TooOld { oldest: Sequence(20) });
        assert_eq!(check(&h, (0, 0), true), ResumeCheck::TooOld { oldest: Sequence(20) });
    }

    #[test]
    fn an_empty_follower_may_resume_where_the_wal_is_whole() {
        let h = history(&[(1, 1)]);
        assert_eq!(h.check_resume(Position::ZERO, Sequence(5), Sequence(1), true), ResumeCheck::Stream);
    }

    #[test]
    fn epochs_must_start_in_order() {
        let record = |e, s| EpochRecord { epoch: Epoch(e), reign_id: ReignId(Uuid::nil()), start: Sequence(s) };
        assert!(EpochHistory::new(vec![record(1, 5), record(2, 5)]).is_err());
        assert!(EpochHistory::new(vec![record(2, 5), record(1, 1)]).is_ok());
    }
}
