//! What goes into and comes out of a session's state machine.

use bytes::Bytes;

use crate::types::{Epoch, Position, PrefixUuid, ReignRef, Sequence};

/// A frame as it came, its identities parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameIn {
    /// Whose.
    pub prefix: PrefixUuid,
    /// Of which attempt.
    pub attempt: u64,
    /// The sender's reign.
    pub reign: ReignRef,
    /// The records' epoch.
    pub epoch: Epoch,
    /// The first record.
    pub first: Sequence,
    /// Records.
    pub count: u32,
    /// CRC32C of the whole batch.
    pub crc32c: u32,
    /// This part of the batch.
    pub payload: Bytes,
    /// Length of the whole batch.
    pub total: u64,
    /// Where in the batch this part begins.
    pub offset: u64,
    /// When the primary committed it.
    pub committed_at_ms: u64,
}

/// Whole batches of one prefix and one epoch that follow each other, unpacked and its identities parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleIn {
    /// Whose.
    pub prefix: PrefixUuid,
    /// Of which attempt.
    pub attempt: u64,
    /// The sender's reign.
    pub reign: ReignRef,
    /// The records' epoch.
    pub epoch: Epoch,
    /// The first record of the first batch.
    pub first: Sequence,
    /// Length in bytes of each batch; their counts stand in their headers.
    pub lengths: Vec<u32>,
    /// See [`bundle_crc`](super::bundle_crc).
    pub crc32c: u32,
    /// The batches, one behind the other.
    pub payload: Bytes,
    /// When the primary committed the last one; 0 = unknown.
    pub committed_at_ms: u64,
}

/// Why the upstream does not stream a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// A gap.
    TooOld {
        /// Oldest sequence that can still be sent.
        oldest: Sequence,
    },
    /// Another history.
    Diverged {
        /// The last common position, as far as known.
        fork: Position,
    },
    /// The upstream's catalogue has no such prefix (yet).
    Unknown,
    /// Not now.
    Busy,
}

/// Why a copy has to be made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootstrapCause {
    /// There is no copy, or an order asked for a new one.
    Missing,
    /// A gap between the copy and what the upstream still has.
    Gap {
        /// Where the copy ends.
        last: Position,
        /// Oldest sequence that the upstream still has; 0 = frames did not follow each other, whatever was asked for.
        oldest: Sequence,
    },
    /// Records after `fork` are not in the upstream's history.
    Diverged {
        /// Where the copy ends.
        last: Position,
        /// The last common position.
        fork: Position,
    },
    /// The copy refuses batches that are well-formed.
    Corrupt {
        /// Where the copy ends.
        last: Position,
    },
}

impl BootstrapCause {
    /// Whether the copy that is to be replaced is whole, so that it and its floor say all that the member acknowledged.
    #[must_use]
    pub fn replaces_a_whole_copy(&self) -> bool {
        match self {
            Self::Gap { .. } | Self::Diverged { .. } => true,
            Self::Missing | Self::Corrupt { .. } => false,
        }
    }
}

/// Why a whole batch was not taken; counted by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    /// Its first sequence is not the expected one.
    Gap,
    /// Its checksum is wrong.
    Crc,
    /// Its header, count, epoch or parts do not fit.
    Malformed,
    /// It is of a reign that began at the upstream after this session did: the next session brings it.
    NewerEpoch,
}

/// A whole, checked batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedBatch {
    /// Of which attempt.
    pub attempt: u64,
    /// Epoch of its records.
    pub epoch: Epoch,
    /// First record.
    pub first: Sequence,
    /// Records.
    pub count: u32,
    /// The batch.
    pub bytes: Bytes,
    /// When the primary committed it.
    pub committed_at_ms: u64,
    /// Credit to give back once it is applied.
    pub cost: u64,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// Follow a prefix from its copy's last position on; also after a bootstrap.
    Follow {
        /// Which.
        prefix: PrefixUuid,
        /// Where its copy ends.
        after: Position,
    },
    /// Follow it no more.
    Forget(PrefixUuid),
    /// Its bootstrap is under way.
    BootstrapStarted(PrefixUuid),
    /// A frame came.
    Frame(FrameIn),
    /// A bundle came.
    Bundle(BundleIn),
    /// A refusal came.
    Refusal {
        /// Whose.
        prefix: PrefixUuid,
        /// Of which attempt.
        attempt: u64,
        /// Why.
        reason: RefusalReason,
    },
    /// A beat came.
    Beat {
        /// The sender's reign.
        reign: ReignRef,
        /// Its latest positions.
        latest: Vec<(PrefixUuid, Position)>,
    },
    /// Batches were applied (and synced where that counts).
    Applied {
        /// Whose.
        prefix: PrefixUuid,
        /// Their credit.
        cost: u64,
        /// How long that took the applier, in microseconds.
        busy_us: u64,
        /// How long its whole pass took.
        pass_us: u64,
    },
    /// A question to the upstream was answered after this time.
    RoundTrip {
        /// In milliseconds.
        ms: u64,
    },
    /// A batch could not be applied; later ones of the attempt were thrown away.
    ApplyFailed {
        /// Whose.
        prefix: PrefixUuid,
        /// Of which attempt.
        attempt: u64,
        /// Where the copy ends.
        at: Position,
        /// Credit of what was thrown away.
        cost: u64,
    },
    /// Time passed.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask for what follows.
    Resume {
        /// Whose.
        prefix: PrefixUuid,
        /// After what.
        after: Position,
        /// The attempt's number.
        attempt: u64,
    },
    /// Ask for no more of it.
    Cancel(PrefixUuid),
    /// Grant bytes.
    Grant(u64),
    /// Apply a batch.
    Apply {
        /// Whose.
        prefix: PrefixUuid,
        /// What.
        batch: ReceivedBatch,
    },
    /// Copy the prefix anew.
    StartBootstrap {
        /// Which.
        prefix: PrefixUuid,
        /// Why.
        cause: BootstrapCause,
    },
    /// The upstream told where it is.
    UpstreamLatest {
        /// Whose.
        prefix: PrefixUuid,
        /// Where.
        position: Position,
    },
    /// It streams now.
    Streams(PrefixUuid),
    /// A batch was refused.
    Missed {
        /// Whose.
        prefix: PrefixUuid,
        /// Why.
        miss: Miss,
    },
}
