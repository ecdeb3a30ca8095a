//! One session of a follower with its upstream: what to do with each thing that comes, over all prefixes. Pure.
//!
//! ```text
//!            Follow                 first frame, or a beat that names the prefix
//!   (none) ---------> Resuming ------------------------------------------------> Streaming
//!                       ^  |  Unknown, Busy                                          |
//!                       |  v                                     gap, CRC, cut part  |
//!                     Waiting <------------------------------------------------------+
//!                       |  TooOld, Diverged, the same miss again
//!                       v
//!                     Stopped ----BootstrapStarted----> Bootstrapping ----Follow----> Resuming
//! ```
//!
//! Invariants: an [`Effect::Apply`] of an attempt is contiguous with the one before it (or with the position that the attempt
//! resumed after); bytes under way never exceed the credit by more than one batch; at most one batch is being put together.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};

use crate::batch;
use crate::budget::{Backoff, CreditOverrun, CreditWindow, FRAME_COST};
use crate::types::{DataUuid, Epoch, Position, PrefixUuid, ReignRef, Sequence, StoreUid};

#[cfg(test)]
mod tests;

/// Misses in a row (frame out of order, checksum, cut part) after which resuming again does not help.
const MAX_MISSES: u32 = 3;
/// Pauses of one prefix between attempts, in milliseconds.
const PREFIX_BACKOFF: Backoff = Backoff::new(100, 5_000);

/// What the other side of a connection says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerHello {
    /// Newest protocol version that it speaks.
    pub version: u32,
    /// Oldest that it understands.
    pub min_version: u32,
    /// Its store.
    pub store: StoreUid,
    /// Its volume.
    pub data_uuid: DataUuid,
    /// Whom it believes to talk to.
    pub expected: Option<DataUuid>,
    /// The reign that it promised; `None` before its first orders.
    pub reign: Option<ReignRef>,
    /// Itself and everyone that it streams from.
    pub path: Vec<DataUuid>,
}

/// What this side of a connection is.
#[derive(Debug, Clone)]
pub struct Own {
    /// Newest protocol version spoken here.
    pub version: u32,
    /// Oldest understood here.
    pub min_version: u32,
    /// The store.
    pub store: StoreUid,
    /// This member.
    pub data_uuid: DataUuid,
    /// The reign promised here.
    pub reign: Option<ReignRef>,
    /// Whom this side wanted to reach; `None` = anyone.
    pub wanted: Option<DataUuid>,
    /// This member and everyone that it streams from.
    pub path: Vec<DataUuid>,
}

/// Why two members do not talk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// No protocol version in common.
    #[error("check hello: the peer speaks protocol {min} to {max}, this member {own_min} to {own_max}")]
    Version {
        /// The peer's newest.
        max: u32,
        /// The peer's oldest.
        min: u32,
        /// Newest here.
        own_max: u32,
        /// Oldest here.
        own_min: u32,
    },
    /// Another store.
    #[error("check hello: the peer belongs to store {theirs}, this member to {ours}")]
    ForeignStore {
        /// The peer's.
        theirs: StoreUid,
        /// This member's.
        ours: StoreUid,
    },
    /// The address leads to another member.
    #[error("check hello: the peer is {found}, expected was {expected}")]
    WrongMember {
        /// Who it is.
        found: DataUuid,
        /// Who it should be.
        expected: DataUuid,
    },
    /// Both sides have one data_uuid: a copied volume, or a member that follows itself.
    #[error("check hello: the peer has this member's own data_uuid {0}")]
    Itself(DataUuid),
    /// One streams from the other already.
    #[error("check hello: {0} already streams from this member: following it would close a cycle")]
    Cycle(DataUuid),
    /// The peer's reign is older than the one promised here.
    #[error("check hello: the peer's reign {theirs} is older than {ours}")]
    OlderReign {
        /// The peer's.
        theirs: Epoch,
        /// Promised here.
        ours: Epoch,
    },
    /// Two reigns of one epoch.
    #[error("check hello: the peer's reign of epoch {0} has another identity")]
    ForeignReign(Epoch),
    /// The peer was not told yet what to do.
    #[error("check hello: the peer has no reign yet")]
    NoReign,
    /// The peer promised a newer reign than this member: its orders will come here too.
    #[error("check hello: the peer's reign {theirs} is newer than {ours}, which this member serves")]
    NewerReign {
        /// The peer's.
        theirs: Epoch,
        /// Here.
        ours: Epoch,
    },
}

impl HelloError {
    /// Whether waiting alone can cure it; otherwise somebody must change addresses, orders or versions. Both are tried again.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::OlderReign { .. } | Self::NoReign | Self::NewerReign { .. } => true,
            Self::Version { .. }
            | Self::ForeignStore { .. }
            | Self::WrongMember { .. }
            | Self::Itself(_)
            | Self::Cycle(_)
            | Self::ForeignReign(_) => false,
        }
    }
}

fn check_identity(own: &Own, peer: &PeerHello) -> Result<(), HelloError> {
    if peer.min_version > own.version || peer.version < own.min_version {
        let (max, min) = (peer.version, peer.min_version);
        return Err(HelloError::Version { max, min, own_max: own.version, own_min: own.min_version });
    }
    if peer.store != own.store {
        return Err(HelloError::ForeignStore { theirs: peer.store.clone(), ours: own.store.clone() });
    }
    if peer.data_uuid == own.data_uuid {
        return Err(HelloError::Itself(own.data_uuid));
    }
    match (own.wanted, peer.expected) {
        (Some(wanted), _) if wanted != peer.data_uuid => Err(HelloError::WrongMember { found: peer.data_uuid, expected: wanted }),
        (_, Some(expected)) if expected != own.data_uuid => Err(HelloError::WrongMember { found: own.data_uuid, expected }),
        _ => Ok(()),
    }
}

/// The follower's check of its upstream. `Ok(Some)` = a newer reign that must be promised before anything is accepted.
///
/// # Errors
/// See [`HelloError`].
pub fn check_upstream(own: &Own, peer: &PeerHello) -> Result<Option<ReignRef>, HelloError> {
    check_identity(own, peer)?;
    if peer.path.contains(&own.data_uuid) {
        return Err(HelloError::Cycle(peer.data_uuid));
    }
    let theirs = peer.reign.ok_or(HelloError::NoReign)?;
    match own.reign {
        Some(ours) if theirs.epoch < ours.epoch => Err(HelloError::OlderReign { theirs: theirs.epoch, ours: ours.epoch }),
        Some(ours) if theirs.epoch == ours.epoch && theirs.reign_id != ours.reign_id => Err(HelloError::ForeignReign(ours.epoch)),
        Some(ours) if theirs == ours => Ok(None),
        _ => Ok(Some(theirs)),
    }
}

/// The upstream's (and the primary's) check of a follower.
///
/// # Errors
/// See [`HelloError`].
pub fn check_follower(own: &Own, peer: &PeerHello) -> Result<ReignRef, HelloError> {
    check_identity(own, peer)?;
    if own.path.contains(&peer.data_uuid) {
        return Err(HelloError::Cycle(peer.data_uuid));
    }
    let ours = own.reign.ok_or(HelloError::NoReign)?;
    match peer.reign {
        Some(theirs) if theirs.epoch > ours.epoch => Err(HelloError::NewerReign { theirs: theirs.epoch, ours: ours.epoch }),
        Some(theirs) if theirs.epoch == ours.epoch && theirs.reign_id != ours.reign_id => {
            Err(HelloError::ForeignReign(ours.epoch))
        }
        _ => Ok(ours),
    }
}

/// Why a session ends. All are retryable: the next session starts with a new hello.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Something came under another reign than the session's.
    #[error("follow upstream: it sends under reign {theirs}, the session's is {ours}")]
    ReignChanged {
        /// What came.
        theirs: Epoch,
        /// The session's.
        ours: Epoch,
    },
    /// Credit was ignored.
    #[error("follow upstream: {0}")]
    Credit(#[from] CreditOverrun),
    /// A batch beyond the limit.
    #[error("follow upstream: a batch of {bytes} bytes exceeds the limit of {limit}")]
    BatchTooBig {
        /// Announced.
        bytes: u64,
        /// Allowed.
        limit: u64,
    },
}

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

/// Why a whole batch was not taken; counted by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    /// Its first sequence is not the expected one.
    Gap,
    /// Its checksum is wrong.
    Crc,
    /// Its header, count, epoch or parts do not fit.
    Malformed,
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
        /// How long the oldest waited.
        queued_ms: u64,
        /// Whether the applier has nothing left.
        ran_dry: bool,
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

/// What a prefix's stream is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamState {
    /// Asks again at this time.
    Waiting {
        /// In milliseconds of the caller's clock.
        until_ms: u64,
    },
    /// Asked; nothing came yet.
    Resuming,
    /// Frames come, or there is nothing to send.
    Streaming,
    /// Can't go on with this copy.
    Stopped(BootstrapCause),
    /// Is being copied.
    Bootstrapping,
}

#[derive(Debug)]
struct PrefixStream {
    state: StreamState,
    attempt: u64,
    /// Last record handed on.
    last: Position,
    misses: u32,
    apply_failures: u32,
    backoff: Backoff,
}

/// A batch being put together.
#[derive(Debug)]
struct Partial {
    head: FrameIn,
    bytes: BytesMut,
    cost: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    reign: ReignRef,
    largest_batch: u64,
    credit: CreditWindow,
    prefixes: HashMap<PrefixUuid, PrefixStream>,
    partial: Option<Partial>,
    next_attempt: u64,
}

impl Session {
    /// A session under `reign`, after the hellos were checked. `window` bytes may be under way; a batch has at most
    /// `largest_batch`.
    #[must_use]
    pub fn new(reign: ReignRef, window: u64, largest_batch: u64) -> Self {
        Self {
            reign,
            largest_batch,
            credit: CreditWindow::new(window),
            prefixes: HashMap::new(),
            partial: None,
            next_attempt: 1,
        }
    }

    /// What a prefix's stream is doing.
    #[must_use]
    pub fn state(&self, prefix: PrefixUuid) -> Option<StreamState> {
        self.prefixes.get(&prefix).map(|p| p.state)
    }

    /// All prefixes of the session.
    pub fn prefixes(&self) -> impl Iterator<Item = (PrefixUuid, StreamState)> + '_ {
        self.prefixes.iter().map(|(uuid, p)| (*uuid, p.state))
    }

    /// Bytes received and not yet applied.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.credit.in_flight()
    }

    /// Takes one event and appends what is to be done.
    ///
    /// # Errors
    /// See [`SessionError`]: the session is over.
    pub fn step(&mut self, now_ms: u64, event: Event, effects: &mut Vec<Effect>) -> Result<(), SessionError> {
        match event {
            Event::Follow { prefix, after } => self.follow(prefix, after, effects),
            Event::Forget(prefix) => {
                if self.prefixes.remove(&prefix).is_some() {
                    effects.push(Effect::Cancel(prefix));
                }
            }
            Event::BootstrapStarted(prefix) => self.bootstrap_started(prefix, effects),
            Event::Frame(frame) => self.frame(now_ms, frame, effects)?,
            Event::Refusal { prefix, attempt, reason } => self.refused(now_ms, prefix, attempt, reason, effects),
            Event::Beat { reign, latest } => {
                self.check_reign(reign)?;
                self.beat(&latest, effects);
            }
            Event::Applied { prefix, cost, queued_ms, ran_dry } => {
                self.credit.give_back(cost, queued_ms, ran_dry);
                if let Some(stream) = self.prefixes.get_mut(&prefix) {
                    stream.apply_failures = 0;
                }
            }
            Event::ApplyFailed { prefix, attempt, at, cost } => {
                self.credit.give_back(cost, 0, false);
                self.apply_failed(now_ms, prefix, attempt, at, effects);
            }
            Event::Tick => self.tick(now_ms, effects),
        }
        if let Some(bytes) = self.credit.grant() {
            effects.push(Effect::Grant(bytes));
        }
        Ok(())
    }

    fn check_reign(&self, reign: ReignRef) -> Result<(), SessionError> {
        if reign == self.reign {
            Ok(())
        } else {
            Err(SessionError::ReignChanged { theirs: reign.epoch, ours: self.reign.epoch })
        }
    }

    fn follow(&mut self, prefix: PrefixUuid, after: Position, effects: &mut Vec<Effect>) {
        let attempt = self.next_attempt;
        self.next_attempt += 1;
        let stream = PrefixStream {
            state: StreamState::Resuming,
            attempt,
            last: after,
            misses: 0,
            apply_failures: 0,
            backoff: PREFIX_BACKOFF,
        };
        self.prefixes.insert(prefix, stream);
        effects.push(Effect::Resume { prefix, after, attempt });
    }

    fn bootstrap_started(&mut self, prefix: PrefixUuid, effects: &mut Vec<Effect>) {
        let attempt = self.next_attempt;
        self.next_attempt += 1;
        let stream = self.prefixes.entry(prefix).or_insert_with(|| PrefixStream {
            state: StreamState::Bootstrapping,
            attempt,
            last: Position::ZERO,
            misses: 0,
            apply_failures: 0,
            backoff: PREFIX_BACKOFF,
        });
        if matches!(stream.state, StreamState::Resuming | StreamState::Streaming) {
            effects.push(Effect::Cancel(prefix));
        }
        stream.state = StreamState::Bootstrapping;
        stream.attempt = attempt;
    }

    /// Whether frames of this attempt are wanted.
    fn is_current(&self, prefix: PrefixUuid, attempt: u64) -> bool {
        self.prefixes.get(&prefix).is_some_and(|p| {
            p.attempt == attempt && matches!(p.state, StreamState::Resuming | StreamState::Streaming)
        })
    }

    fn frame(&mut self, now_ms: u64, frame: FrameIn, effects: &mut Vec<Effect>) -> Result<(), SessionError> {
        let cost = frame.payload.len() as u64 + FRAME_COST;
        // Parts cost FRAME_COST each; a quarter on top of the batch covers any sensible size of parts.
        self.credit.consume(cost, self.largest_batch + self.largest_batch / 4 + FRAME_COST)?;
        self.check_reign(frame.reign)?;
        if frame.total > self.largest_batch {
            return Err(SessionError::BatchTooBig { bytes: frame.total, limit: self.largest_batch });
        }
        if !self.is_current(frame.prefix, frame.attempt) {
            self.credit.give_back(cost, 0, false);
            return Ok(());
        }
        let (prefix, attempt) = (frame.prefix, frame.attempt);
        match self.assemble(now_ms, frame, cost, effects) {
            Ok(Some((head, bytes, cost))) => self.batch(now_ms, &head, bytes, cost, effects),
            Ok(None) => {}
            Err(miss) => self.missed(now_ms, prefix, attempt, miss, effects),
        }
        Ok(())
    }

    /// Puts parts together; answers a whole batch with its credit.
    fn assemble(
        &mut self,
        now_ms: u64,
        frame: FrameIn,
        cost: u64,
        effects: &mut Vec<Effect>,
    ) -> Result<Option<(FrameIn, Bytes, u64)>, Miss> {
        let end = frame.offset.saturating_add(frame.payload.len() as u64);
        let continues = self.partial.as_ref().is_some_and(|p| {
            p.head.prefix == frame.prefix
                && p.head.attempt == frame.attempt
                && p.head.first == frame.first
                && p.head.total == frame.total
                && p.bytes.len() as u64 == frame.offset
        });
        if !continues && let Some(cut) = self.partial.take() {
            self.credit.give_back(cut.cost, 0, false);
            if cut.head.prefix != frame.prefix {
                self.missed(now_ms, cut.head.prefix, cut.head.attempt, Miss::Malformed, effects);
            } else if frame.offset > 0 || frame.first != cut.head.first {
                self.credit.give_back(cost, 0, false);
                return Err(Miss::Malformed);
            }
        }
        if end > frame.total || frame.payload.is_empty() || (!continues && frame.offset != 0) {
            self.credit.give_back(cost, 0, false);
            if let Some(cut) = self.partial.take() {
                self.credit.give_back(cut.cost, 0, false);
            }
            return Err(if frame.offset != 0 { Miss::Gap } else { Miss::Malformed });
        }
        if !continues && end == frame.total {
            let bytes = frame.payload.clone();
            return Ok(Some((frame, bytes, cost)));
        }
        let partial = self.partial.get_or_insert_with(|| Partial { head: frame.clone(), bytes: BytesMut::new(), cost: 0 });
        partial.bytes.extend_from_slice(&frame.payload);
        partial.cost += cost;
        if end < frame.total {
            return Ok(None);
        }
        Ok(self.partial.take().map(|p| (p.head, p.bytes.freeze(), p.cost)))
    }

    fn batch(&mut self, now_ms: u64, head: &FrameIn, bytes: Bytes, cost: u64, effects: &mut Vec<Effect>) {
        let Some(stream) = self.prefixes.get_mut(&head.prefix) else { return };
        if let Err(miss) = check_batch(head, &bytes, stream.last, self.reign.epoch) {
            self.credit.give_back(cost, 0, false);
            self.missed(now_ms, head.prefix, head.attempt, miss, effects);
            return;
        }
        stream.last = Position { epoch: head.epoch, sequence: head.first.last_of(head.count) };
        stream.misses = 0;
        stream.backoff.reset();
        if stream.state != StreamState::Streaming {
            stream.state = StreamState::Streaming;
            effects.push(Effect::Streams(head.prefix));
        }
        let batch = ReceivedBatch {
            attempt: head.attempt,
            epoch: head.epoch,
            first: head.first,
            count: head.count,
            bytes,
            committed_at_ms: head.committed_at_ms,
            cost,
        };
        effects.push(Effect::Apply { prefix: head.prefix, batch });
    }

    fn missed(&mut self, now_ms: u64, prefix: PrefixUuid, attempt: u64, miss: Miss, effects: &mut Vec<Effect>) {
        if !self.is_current(prefix, attempt) {
            return;
        }
        effects.push(Effect::Missed { prefix, miss });
        let Some(stream) = self.prefixes.get_mut(&prefix) else { return };
        stream.misses += 1;
        effects.push(Effect::Cancel(prefix));
        if stream.misses >= MAX_MISSES && miss == Miss::Gap {
            let cause = BootstrapCause::Gap { last: stream.last, oldest: Sequence(0) };
            stream.state = StreamState::Stopped(cause);
            effects.push(Effect::StartBootstrap { prefix, cause });
            return;
        }
        // Damage on the way is not this copy's fault: it is asked for again for ever, ever more slowly.
        stream.wait(now_ms, prefix);
    }

    fn refused(&mut self, now_ms: u64, prefix: PrefixUuid, attempt: u64, reason: RefusalReason, effects: &mut Vec<Effect>) {
        if !self.is_current(prefix, attempt) {
            return;
        }
        if self.partial.as_ref().is_some_and(|p| p.head.prefix == prefix)
            && let Some(cut) = self.partial.take()
        {
            self.credit.give_back(cut.cost, 0, false);
        }
        let Some(stream) = self.prefixes.get_mut(&prefix) else { return };
        let cause = match reason {
            RefusalReason::TooOld { oldest } => BootstrapCause::Gap { last: stream.last, oldest },
            RefusalReason::Diverged { fork } => BootstrapCause::Diverged { last: stream.last, fork },
            RefusalReason::Unknown | RefusalReason::Busy => return stream.wait(now_ms, prefix),
        };
        stream.state = StreamState::Stopped(cause);
        effects.push(Effect::StartBootstrap { prefix, cause });
    }

    fn apply_failed(&mut self, now_ms: u64, prefix: PrefixUuid, attempt: u64, at: Position, effects: &mut Vec<Effect>) {
        if !self.is_current(prefix, attempt) {
            return;
        }
        let Some(stream) = self.prefixes.get_mut(&prefix) else { return };
        stream.last = at;
        stream.apply_failures += 1;
        effects.push(Effect::Cancel(prefix));
        if stream.apply_failures < MAX_MISSES {
            return stream.wait(now_ms, prefix);
        }
        let cause = BootstrapCause::Corrupt { last: at };
        stream.state = StreamState::Stopped(cause);
        effects.push(Effect::StartBootstrap { prefix, cause });
    }

    fn beat(&mut self, latest: &[(PrefixUuid, Position)], effects: &mut Vec<Effect>) {
        for &(prefix, position) in latest {
            let Some(stream) = self.prefixes.get_mut(&prefix) else { continue };
            effects.push(Effect::UpstreamLatest { prefix, position });
            if stream.state == StreamState::Resuming && position == stream.last {
                stream.state = StreamState::Streaming;
                stream.backoff.reset();
                effects.push(Effect::Streams(prefix));
            }
        }
    }

    fn tick(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        for (&prefix, stream) in &mut self.prefixes {
            if let StreamState::Waiting { until_ms } = stream.state
                && until_ms <= now_ms
            {
                stream.attempt = self.next_attempt;
                self.next_attempt += 1;
                stream.state = StreamState::Resuming;
                effects.push(Effect::Resume { prefix, after: stream.last, attempt: stream.attempt });
            }
        }
    }
}

impl PrefixStream {
    /// Waits for the next attempt; prefixes spread by their identity, so that not all ask at once.
    fn wait(&mut self, now_ms: u64, prefix: PrefixUuid) {
        let jitter = f64::from(prefix.0.as_bytes()[0]) / 255.0;
        self.state = StreamState::Waiting { until_ms: now_ms + self.backoff.next_ms(jitter) };
    }
}

/// Whether a whole batch is sound and follows `last` under a reign of `reign`.
fn check_batch(head: &FrameIn, bytes: &Bytes, last: Position, reign: Epoch) -> Result<(), Miss> {
    if crc32c::crc32c(bytes) != head.crc32c {
        return Err(Miss::Crc);
    }
    let header = batch::header(bytes).map_err(|_| Miss::Malformed)?;
    let ends = head.first.0.checked_add(u64::from(head.count)).is_some();
    if head.count == 0 || header.count != head.count || !ends || head.epoch < last.epoch || head.epoch > reign {
        return Err(Miss::Malformed);
    }
    if last.sequence.0.checked_add(1) != Some(head.first.0) {
        return Err(Miss::Gap);
    }
    Ok(())
}
