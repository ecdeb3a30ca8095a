//! Why a bootstrap failed, and what follows from it: another source, a pause, or one less of the copies an hour.

use parovoz_dataplane_core::budget::Backoff;
use parovoz_dataplane_core::types::DataUuid;
use parovoz_engine::EngineError;

use super::super::client::{LinkError, jitter};
use super::PER_HOUR;

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::replication) enum BootstrapError {
    #[error("bootstrap prefix: there is no upstream, or the orders changed")]
    NoUpstream,
    #[error("bootstrap prefix: who leads is known, but not where, and the copy counts from the primary's position on")]
    NoPrimary,
    #[error("bootstrap prefix: it was dropped")]
    Dropped,
    #[error("bootstrap prefix: the follower stops")]
    Stopping,
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("bootstrap prefix: {}", .0.message())]
    Call(#[from] tonic::Status),
    #[error("bootstrap prefix: {address} could not be reached, it is asked again in {wait_ms} ms")]
    Rests { address: String, wait_ms: u64 },
    #[error("bootstrap prefix: the source said nothing for too long")]
    Silent,
    #[error("bootstrap prefix: the copy was cut off")]
    CutOff,
    #[error("bootstrap prefix: the snapshot is closed, its hold has ended: the copy is discarded")]
    SnapshotGone,
    #[error("bootstrap prefix: checksum of {0} differs")]
    Checksum(String),
    #[error("bootstrap prefix: {need} bytes are needed, {free} are free")]
    NoSpace { need: u64, free: u64 },
    #[error("bootstrap prefix: it was copied anew {PER_HOUR} times within the hour, the next time is in {} s", .wait_ms / 1000)]
    Budget { wait_ms: u64 },
    #[error("bootstrap prefix: verify copy: {0}")]
    Verify(String),
    #[error("bootstrap prefix: a table of {source_member} is damaged, though it came as it is there: {cause}")]
    Damaged { source_member: DataUuid, cause: String },
    #[error("bootstrap prefix: {0}")]
    Disk(#[from] std::io::Error),
    #[error("bootstrap prefix: {0}")]
    Engine(#[from] EngineError),
    #[error("bootstrap prefix: {0}")]
    Member(String),
}

impl BootstrapError {
    /// How long to wait before the next attempt, in milliseconds.
    pub fn pause_ms(&self, backoff: &mut Backoff) -> u64 {
        match self {
            Self::Budget { wait_ms } | Self::Rests { wait_ms, .. } => *wait_ms,
            Self::NoSpace { .. } => 30_000,
            Self::NoUpstream
            | Self::NoPrimary
            | Self::Dropped
            | Self::Stopping
            | Self::Link(_)
            | Self::Call(_)
            | Self::Silent
            | Self::CutOff
            | Self::SnapshotGone
            | Self::Checksum(_)
            | Self::Verify(_)
            | Self::Damaged { .. }
            | Self::Disk(_)
            | Self::Engine(_)
            | Self::Member(_) => backoff.next_ms(jitter()),
        }
    }

    /// Whether another source would not help: it is this member that can't, or must not.
    pub fn is_ours(&self) -> bool {
        match self {
            Self::NoUpstream
            | Self::NoPrimary
            | Self::Dropped
            | Self::Stopping
            | Self::NoSpace { .. }
            | Self::Budget { .. }
            | Self::Disk(_)
            | Self::Member(_) => true,
            Self::Link(_)
            | Self::Call(_)
            | Self::Rests { .. }
            | Self::Silent
            | Self::CutOff
            | Self::SnapshotGone
            | Self::Checksum(_)
            | Self::Verify(_)
            | Self::Damaged { .. }
            | Self::Engine(_) => false,
        }
    }

    /// Whether it says nothing of the data: network, time, somebody busy. Such is tried for ever, outside the copies an hour.
    pub fn passes(&self) -> bool {
        match self {
            Self::NoUpstream
            | Self::NoPrimary
            | Self::Dropped
            | Self::Stopping
            | Self::Link(_)
            | Self::Call(_)
            | Self::Rests { .. }
            | Self::Silent
            | Self::CutOff
            | Self::NoSpace { .. }
            | Self::Budget { .. }
            | Self::Engine(EngineError::NoSpace { .. })
            | Self::Member(_) => true,
            Self::Disk(error) => crate::disk::reserve::is_full(error),
            Self::SnapshotGone | Self::Checksum(_) | Self::Verify(_) | Self::Damaged { .. } | Self::Engine(_) => false,
        }
    }

    /// Whether an attempt that ended so is one of the copies an hour; `fetched`: data of it came.
    pub fn counts(&self, fetched: bool) -> bool {
        match self {
            Self::Verify(_) | Self::Damaged { .. } | Self::Checksum(_) => true,
            _ => fetched && !self.passes(),
        }
    }

    /// Whether what is in staging is worth nothing any more.
    pub fn spoils_staging(&self) -> bool {
        matches!(self, Self::Verify(_))
            || matches!(self, Self::Engine(error) if !matches!(error, EngineError::NoSpace { .. }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_says_something_of_the_data_is_one_of_the_copies_an_hour() {
        let link = || LinkError::Connect { address: "a:1".into(), cause: "refused".into() };
        for passing in [
            BootstrapError::Link(link()),
            BootstrapError::Call(tonic::Status::unavailable("busy")),
            BootstrapError::Silent,
            BootstrapError::CutOff,
            BootstrapError::NoUpstream,
            BootstrapError::Rests { address: "a:1".into(), wait_ms: 1 },
            BootstrapError::Disk(std::io::ErrorKind::StorageFull.into()),
        ] {
            assert!(!passing.counts(true), "{passing}");
        }
        assert!(BootstrapError::Verify("x".into()).counts(false));
        assert!(BootstrapError::Checksum("x".into()).counts(false));
        assert!(BootstrapError::SnapshotGone.counts(true));
        assert!(!BootstrapError::SnapshotGone.counts(false), "it was gone before anything came");
    }
}
