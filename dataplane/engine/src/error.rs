//! What can go wrong in a database, and how bad it is.

use parovoz_dataplane_core::types::Sequence;

/// What the caller must do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Try again, with backoff.
    Retryable,
    /// This prefix's copy can't go on; others can.
    Terminal,
    /// The process must end: what is in memory and on disk may differ.
    Fatal,
}

/// An engine's error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// The WAL no longer holds what follows a position.
    #[error("read WAL after {after}: gone, the oldest kept is {oldest}")]
    Gap {
        /// What was asked for.
        after: Sequence,
        /// The oldest that can be had.
        oldest: Sequence,
    },
    /// Asked for what follows a position that is itself not written yet: whoever asks has more than this database.
    #[error("read WAL after {after}: not written yet, the latest is {latest}")]
    Ahead {
        /// What was asked for.
        after: Sequence,
        /// The last record that there is.
        latest: Sequence,
    },
    /// There is no database in the folder.
    #[error("open database {dir}: there is none")]
    Missing {
        /// The folder.
        dir: String,
    },
    /// A checksum or the structure is wrong.
    #[error("{action}: corruption: {cause}")]
    Corruption {
        /// What was tried.
        action: String,
        /// RocksDB's words.
        cause: String,
    },
    /// A batch that is not one.
    #[error("read batch: {cause}")]
    BadBatch {
        /// What is wrong with it.
        cause: String,
    },
    /// No room on the volume.
    #[error("{action}: no space left on the volume")]
    NoSpace {
        /// What was tried.
        action: String,
    },
    /// A write or sync of the WAL or memtable failed.
    #[error("{action}: write failed: {cause}")]
    WriteFailed {
        /// What was tried.
        action: String,
        /// RocksDB's words.
        cause: String,
    },
    /// Busy, stalled or timed out.
    #[error("{action}: busy: {cause}")]
    Busy {
        /// What was tried.
        action: String,
        /// RocksDB's words.
        cause: String,
    },
    /// Anything else that the disk or RocksDB said.
    #[error("{action}: {cause}")]
    Io {
        /// What was tried.
        action: String,
        /// RocksDB's words.
        cause: String,
    },
}

impl EngineError {
    /// How bad it is.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::Busy { .. } => Severity::Retryable,
            Self::Gap { .. }
            | Self::Ahead { .. }
            | Self::Missing { .. }
            | Self::Corruption { .. }
            | Self::BadBatch { .. }
            | Self::Io { .. } => Severity::Terminal,
            Self::NoSpace { .. } | Self::WriteFailed { .. } => Severity::Fatal,
        }
    }
}
