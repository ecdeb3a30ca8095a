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

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use crate::batch;
use crate::budget::{Backoff, CreditOverrun, CreditWindow, FRAME_COST};
use crate::types::{Epoch, Position, PrefixUuid, ReignRef, Sequence};

mod bundle;
mod hello;
mod messages;
#[cfg(test)]
mod tests;

pub use bundle::bundle_crc;
pub use hello::{HelloError, Own, PeerHello, check_follower, check_upstream};
pub use messages::{BootstrapCause, BundleIn, Effect, Event, FrameIn, Miss, ReceivedBatch, RefusalReason};

/// Misses in a row (frame out of order, checksum, cut part) after which resuming again does not help.
const MAX_MISSES: u32 = 3;
/// Pauses of one prefix between attempts, in milliseconds.
const PREFIX_BACKOFF: Backoff = Backoff::new(100, 5_000);

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
    prefixes: BTreeMap<PrefixUuid, PrefixStream>,
    partial: Option<Partial>,
    next_attempt: u64,
}

impl Session {
    /// A session under `reign`, after the hellos were checked. The credit given ahead stays between `min_window` and
    /// `max_window` bytes; a batch has at most `largest_batch`.
    #[must_use]
    pub fn new(reign: ReignRef, min_window: u64, max_window: u64, largest_batch: u64) -> Self {
        Self {
            reign,
            largest_batch,
            credit: CreditWindow::new(min_window, max_window),
            prefixes: BTreeMap::new(),
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

    /// Bytes that may be under way or wait to be applied at present.
    #[must_use]
    pub fn window(&self) -> u64 {
        self.credit.window()
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
            Event::Bundle(bundle) => self.bundle(now_ms, bundle, effects)?,
            Event::Refusal { prefix, attempt, reason } => self.refused(now_ms, prefix, attempt, reason, effects),
            Event::Beat { reign, latest } => {
                self.check_reign(reign)?;
                self.beat(&latest, effects);
            }
            Event::RoundTrip { ms } => self.credit.round_trip(ms),
            Event::Applied { prefix, cost, busy_us, pass_us } => {
                self.credit.applied(cost, busy_us, pass_us);
                if let Some(stream) = self.prefixes.get_mut(&prefix) {
                    stream.apply_failures = 0;
                }
            }
            Event::ApplyFailed { prefix, attempt, at, cost } => {
                self.credit.give_back(cost);
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
        self.prefixes
            .get(&prefix)
            .is_some_and(|p| p.attempt == attempt && matches!(p.state, StreamState::Resuming | StreamState::Streaming))
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
            self.credit.give_back(cost);
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
            self.credit.give_back(cut.cost);
            if cut.head.prefix != frame.prefix {
                self.missed(now_ms, cut.head.prefix, cut.head.attempt, Miss::Malformed, effects);
            } else if frame.offset > 0 || frame.first != cut.head.first {
                self.credit.give_back(cost);
                return Err(Miss::Malformed);
            }
        }
        if end > frame.total || frame.payload.is_empty() || (!continues && frame.offset != 0) {
            self.credit.give_back(cost);
            if let Some(cut) = self.partial.take() {
                self.credit.give_back(cut.cost);
            }
            return Err(if frame.offset != 0 { Miss::Gap } else { Miss::Malformed });
        }
        if !continues && end == frame.total {
            let bytes = frame.payload.clone();
            return Ok(Some((frame, bytes, cost)));
        }
        let partial =
            self.partial.get_or_insert_with(|| Partial { head: frame.clone(), bytes: BytesMut::new(), cost: 0 });
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
            self.credit.give_back(cost);
            self.missed(now_ms, head.prefix, head.attempt, miss, effects);
            return;
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
        stream.accept(head.prefix, batch, effects);
    }

    fn missed(&mut self, now_ms: u64, prefix: PrefixUuid, attempt: u64, miss: Miss, effects: &mut Vec<Effect>) {
        if !self.is_current(prefix, attempt) {
            return;
        }
        effects.push(Effect::Missed { prefix, miss });
        let Some(stream) = self.prefixes.get_mut(&prefix) else { return };
        if miss != Miss::NewerEpoch {
            stream.misses += 1;
        }
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

    fn refused(
        &mut self,
        now_ms: u64,
        prefix: PrefixUuid,
        attempt: u64,
        reason: RefusalReason,
        effects: &mut Vec<Effect>,
    ) {
        if !self.is_current(prefix, attempt) {
            return;
        }
        if self.partial.as_ref().is_some_and(|p| p.head.prefix == prefix)
            && let Some(cut) = self.partial.take()
        {
            self.credit.give_back(cut.cost);
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
    /// A checked batch that follows the last one is to be applied.
    fn accept(&mut self, prefix: PrefixUuid, batch: ReceivedBatch, effects: &mut Vec<Effect>) {
        self.last = Position { epoch: batch.epoch, sequence: batch.first.last_of(batch.count) };
        self.misses = 0;
        self.backoff.reset();
        if self.state != StreamState::Streaming {
            self.state = StreamState::Streaming;
            effects.push(Effect::Streams(prefix));
        }
        effects.push(Effect::Apply { prefix, batch });
    }

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
    check_records(head.epoch, head.first, head.count, bytes, last, reign)
}

/// The same without the checksum.
fn check_records(
    epoch: Epoch,
    first: Sequence,
    count: u32,
    bytes: &[u8],
    last: Position,
    reign: Epoch,
) -> Result<(), Miss> {
    let header = batch::header(bytes).map_err(|_| Miss::Malformed)?;
    let ends = first.0.checked_add(u64::from(count)).is_some();
    if count == 0 || header.count != count || !ends || epoch < last.epoch {
        return Err(Miss::Malformed);
    }
    if epoch > reign {
        return Err(Miss::NewerEpoch);
    }
    if last.sequence.0.checked_add(1) != Some(first.0) && !parovoz_mutant::on("sequence-not-checked") {
        return Err(Miss::Gap);
    }
    Ok(())
}
