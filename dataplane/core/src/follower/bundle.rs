//! Many small batches in one message.

use super::{BundleIn, Effect, Miss, ReceivedBatch, Session, SessionError, check_records};
use crate::batch;
use crate::budget::FRAME_COST;

/// The checksum of a bundle: CRC32C of its batches, followed by their lengths as four bytes each, little-endian.
#[must_use]
pub fn bundle_crc(payload: &[u8], lengths: &[u32]) -> u32 {
    lengths.iter().fold(crc32c::crc32c(payload), |crc, length| crc32c::crc32c_append(crc, &length.to_le_bytes()))
}

impl Session {
    /// Takes a bundle: all of its batches, or those before the first that does not fit.
    pub(super) fn bundle(
        &mut self,
        now_ms: u64,
        bundle: BundleIn,
        effects: &mut Vec<Effect>,
    ) -> Result<(), SessionError> {
        let cost = (bundle.payload.len() as u64).saturating_add(FRAME_COST.saturating_mul(bundle.lengths.len() as u64));
        self.credit.consume(cost, self.largest_batch + self.largest_batch / 4 + FRAME_COST)?;
        self.check_reign(bundle.reign)?;
        let (prefix, attempt) = (bundle.prefix, bundle.attempt);
        // A batch in parts was cut short if something else comes between.
        if let Some(cut) = self.partial.take() {
            self.credit.give_back(cut.cost);
            self.missed(now_ms, cut.head.prefix, cut.head.attempt, Miss::Malformed, effects);
        }
        if !self.is_current(prefix, attempt) {
            self.credit.give_back(cost);
            return Ok(());
        }
        let (taken, miss) = self.unbundle(bundle, effects);
        self.credit.give_back(cost.saturating_sub(taken));
        if let Some(miss) = miss {
            self.missed(now_ms, prefix, attempt, miss, effects);
        }
        Ok(())
    }

    /// Hands on what fits; answers its credit, and why it ended early.
    fn unbundle(&mut self, bundle: BundleIn, effects: &mut Vec<Effect>) -> (u64, Option<Miss>) {
        let Some(stream) = self.prefixes.get_mut(&bundle.prefix) else { return (0, None) };
        if bundle_crc(&bundle.payload, &bundle.lengths) != bundle.crc32c {
            return (0, Some(Miss::Crc));
        }
        let total = bundle.lengths.iter().map(|n| u64::from(*n)).sum::<u64>();
        if total != bundle.payload.len() as u64 || bundle.lengths.is_empty() {
            return (0, Some(Miss::Malformed));
        }
        let (mut rest, mut first, mut taken) = (bundle.payload, bundle.first, 0);
        effects.reserve(bundle.lengths.len());
        for length in bundle.lengths {
            let bytes = rest.split_to(length as usize);
            let Ok(header) = batch::header(&bytes) else { return (taken, Some(Miss::Malformed)) };
            let at = stream.last;
            if let Err(miss) = check_records(bundle.epoch, first, header.count, &bytes, at, self.reign.epoch) {
                return (taken, Some(miss));
            }
            let cost = u64::from(length) + FRAME_COST;
            taken += cost;
            let batch = ReceivedBatch {
                attempt: bundle.attempt,
                epoch: bundle.epoch,
                first,
                count: header.count,
                bytes,
                committed_at_ms: bundle.committed_at_ms,
                cost,
            };
            stream.accept(bundle.prefix, batch, effects);
            first = stream.last.sequence.next();
        }
        (taken, None)
    }
}
