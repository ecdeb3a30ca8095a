//! What goes over the wire as one message: many small batches in a bundle, or a part of a big one; compressed or not.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use parovoz_dataplane_core::budget::FRAME_COST;
use parovoz_dataplane_core::follower::bundle_crc;
use parovoz_dataplane_core::types::{Epoch, Sequence};
use parovoz_proto::v1;
use zstd_safe::{CCtx, DCtx};

use super::wire::{FrameHead, WireError};
use crate::store::ring::RingEntry;

/// Bytes of a big batch in one frame: so few that one comes well within [`super::Tuning::silence`] over the slowest link.
const PART_BYTES: usize = 128 << 10;
/// A batch from this size on goes alone: copying it into a bundle would save nothing.
const ALONE_BYTES: usize = 64 << 10;
/// Bytes of a bundle.
pub(super) const BUNDLE_BYTES: usize = 256 << 10;
/// Uncompressed bytes of a message at most: what gRPC would take without compression.
const MAX_UNPACKED: u64 = 4 << 20;
/// zstd's fastest ordinary level: the link is slow only in comparison.
const LEVEL: i32 = 1;

/// One message's batches, or one batch's messages.
#[derive(Debug)]
pub(super) struct Parcel {
    pub epoch: Epoch,
    pub first: Sequence,
    pub last: Sequence,
    /// Bytes of the batches.
    pub raw: u64,
    /// Bytes that go over the wire for them.
    pub wire: u64,
    /// What the follower counts as their credit.
    pub cost: u64,
    /// Time spent on compressing.
    pub compress_us: u64,
    crc32c: u32,
    committed_at_ms: u64,
    contents: Contents,
}

#[derive(Debug)]
enum Contents {
    Bundle {
        lengths: Vec<u32>,
        payload: Packed,
    },
    /// One batch of so many records, each part with where it begins.
    Parts {
        count: u32,
        parts: Vec<(u64, Packed)>,
    },
}

#[derive(Debug)]
struct Packed {
    bytes: Bytes,
    compression: v1::Compression,
}

/// Puts batches that follow each other into parcels.
#[derive(Default)]
pub(super) struct Packer {
    /// `None` = nothing is to be compressed.
    compressor: Option<CCtx<'static>>,
    open: Option<Open>,
    done: Vec<Parcel>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").field("open", &self.open).field("done", &self.done.len()).finish_non_exhaustive()
    }
}

/// A bundle being filled.
#[derive(Debug)]
struct Open {
    epoch: Epoch,
    first: Sequence,
    last: Sequence,
    lengths: Vec<u32>,
    bytes: BytesMut,
    committed_at_ms: u64,
}

impl Packer {
    /// Says whether parcels from here on are compressed.
    pub fn compress(&mut self, on: bool) {
        if on != self.compressor.is_some() {
            // Without memory for its tables nothing is compressed, and the stream goes on.
            self.compressor = if on { CCtx::try_create() } else { None };
        }
    }

    /// Adds a batch; with `bundles` off it becomes a parcel of its own, as a follower of the first version wants it.
    pub fn add(&mut self, entry: &RingEntry, bundles: bool) {
        if !bundles || entry.bytes.len() >= ALONE_BYTES {
            self.close();
            let parcel = self.alone(entry);
            self.done.push(parcel);
            return;
        }
        let fits = |open: &Open| {
            open.epoch == entry.epoch
                && open.last.next() == entry.first
                && open.bytes.len() + entry.bytes.len() <= BUNDLE_BYTES
        };
        if !self.open.as_ref().is_some_and(fits) {
            self.close();
        }
        let open = self.open.get_or_insert_with(|| Open {
            epoch: entry.epoch,
            first: entry.first,
            last: entry.last(),
            lengths: Vec::new(),
            bytes: BytesMut::new(),
            committed_at_ms: 0,
        });
        open.bytes.extend_from_slice(&entry.bytes);
        // Below ALONE_BYTES.
        open.lengths.push(u32::try_from(entry.bytes.len()).unwrap_or(u32::MAX));
        open.last = entry.last();
        open.committed_at_ms = entry.committed_at_ms;
    }

    /// Ends the bundle that is being filled.
    pub fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        let raw = open.bytes.len() as u64;
        let crc32c = bundle_crc(&open.bytes, &open.lengths);
        let started = Instant::now();
        let payload = self.pack(open.bytes.freeze());
        self.done.push(Parcel {
            epoch: open.epoch,
            first: open.first,
            last: open.last,
            raw,
            wire: payload.bytes.len() as u64,
            cost: raw + FRAME_COST * open.lengths.len() as u64,
            compress_us: self.micros(started),
            crc32c,
            committed_at_ms: open.committed_at_ms,
            contents: Contents::Bundle { lengths: open.lengths, payload },
        });
    }

    /// Takes the parcels that are complete.
    pub fn take(&mut self) -> Vec<Parcel> {
        std::mem::take(&mut self.done)
    }

    fn alone(&mut self, entry: &RingEntry) -> Parcel {
        let raw = entry.bytes.len();
        let started = Instant::now();
        let parts: Vec<(u64, Packed)> = (0..raw)
            .step_by(PART_BYTES)
            .map(|at| (at as u64, self.pack(entry.bytes.slice(at..raw.min(at + PART_BYTES)))))
            .collect();
        Parcel {
            epoch: entry.epoch,
            first: entry.first,
            last: entry.last(),
            raw: raw as u64,
            wire: parts.iter().map(|(_, part)| part.bytes.len() as u64).sum(),
            cost: raw as u64 + FRAME_COST * parts.len() as u64,
            compress_us: self.micros(started),
            crc32c: crc32c::crc32c(&entry.bytes),
            committed_at_ms: entry.committed_at_ms,
            contents: Contents::Parts { count: entry.count, parts },
        }
    }

    fn micros(&self, started: Instant) -> u64 {
        if self.compressor.is_none() {
            return 0;
        }
        u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Compresses where that is on and makes it smaller.
    fn pack(&mut self, bytes: Bytes) -> Packed {
        if let Some(compressor) = &mut self.compressor {
            // One byte less than it is: what does not shrink is an error, and stays as it is.
            let mut packed = vec![0; bytes.len().saturating_sub(1)];
            if let Ok(length) = compressor.compress(packed.as_mut_slice(), &bytes, LEVEL) {
                packed.truncate(length);
                packed.shrink_to_fit();
                return Packed { bytes: packed.into(), compression: v1::Compression::Zstd };
            }
        }
        Packed { bytes, compression: v1::Compression::None }
    }
}

impl Parcel {
    /// Its messages.
    pub fn messages(self, head: &FrameHead) -> Vec<v1::upstream_message::Message> {
        use v1::upstream_message::Message;
        match self.contents {
            Contents::Bundle { lengths, payload } => vec![Message::Bundle(v1::Bundle {
                prefix_uuid: head.prefix_uuid.clone(),
                attempt: head.attempt,
                reign: Some(head.reign.clone()),
                epoch: self.epoch.0,
                first_sequence: self.first.0,
                lengths,
                crc32c: self.crc32c,
                payload: payload.bytes,
                compression: payload.compression.into(),
                committed_at_ms: self.committed_at_ms,
            })],
            Contents::Parts { count, parts } => {
                let frame = |(offset, part): (u64, Packed)| {
                    Message::Frame(v1::Frame {
                        prefix_uuid: head.prefix_uuid.clone(),
                        attempt: head.attempt,
                        reign: Some(head.reign.clone()),
                        epoch: self.epoch.0,
                        first_sequence: self.first.0,
                        count,
                        crc32c: self.crc32c,
                        payload: part.bytes,
                        total_bytes: self.raw,
                        offset,
                        compression: part.compression.into(),
                        committed_at_ms: self.committed_at_ms,
                    })
                };
                parts.into_iter().map(frame).collect()
            }
        }
    }
}

/// Undoes what a [`Packer`] did, never beyond what was announced.
#[derive(Default)]
pub(super) struct Unpacker(Option<DCtx<'static>>);

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Unpacker").finish()
    }
}

impl Unpacker {
    /// The payload of a frame.
    pub fn frame(&mut self, frame: &mut v1::Frame) -> Result<(), WireError> {
        let most = frame.total_bytes.saturating_sub(frame.offset);
        let payload = std::mem::take(&mut frame.payload);
        frame.payload = self.unpack(payload, frame.compression, most)?;
        frame.compression = v1::Compression::None.into();
        Ok(())
    }

    /// The payload of a bundle.
    pub fn bundle(&mut self, bundle: &mut v1::Bundle) -> Result<(), WireError> {
        let most = bundle.lengths.iter().map(|n| u64::from(*n)).sum();
        let payload = std::mem::take(&mut bundle.payload);
        bundle.payload = self.unpack(payload, bundle.compression, most)?;
        bundle.compression = v1::Compression::None.into();
        Ok(())
    }

    /// `payload` as it was before compression, of at most `most` bytes. Memory is taken only for what is announced and allowed.
    fn unpack(&mut self, payload: Bytes, compression: i32, most: u64) -> Result<Bytes, WireError> {
        match v1::Compression::try_from(compression) {
            Ok(v1::Compression::None) => return Ok(payload),
            Ok(v1::Compression::Zstd) => {}
            Err(_) => return Err(WireError::Malformed("compression")),
        }
        let malformed = || WireError::Malformed("compressed payload");
        let size = zstd_safe::get_frame_content_size(&payload).ok().flatten();
        let size = size.filter(|size| *size <= most.min(MAX_UNPACKED)).ok_or_else(malformed)?;
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| malformed())?];
        if self.0.is_none() {
            self.0 = DCtx::try_create();
        }
        let context = self.0.as_mut().ok_or(WireError::Malformed("compressed payload: no memory to unpack it"))?;
        let written = context.decompress(bytes.as_mut_slice(), &payload).map_err(|_| malformed())?;
        if written as u64 != size {
            return Err(malformed());
        }
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn entry(first: u64, bytes: Vec<u8>) -> RingEntry {
        RingEntry { epoch: Epoch(1), first: Sequence(first), count: 1, bytes: bytes.into(), committed_at_ms: 7 }
    }

    fn head() -> FrameHead {
        FrameHead { prefix_uuid: "p".into(), attempt: 1, reign: v1::ReignRef { epoch: 1, reign_id: "r".into() } }
    }

    fn packed(entries: &[RingEntry], bundles: bool, compress: bool) -> Vec<Parcel> {
        let mut packer = Packer::default();
        packer.compress(compress);
        entries.iter().for_each(|e| packer.add(e, bundles));
        packer.close();
        packer.take()
    }

    /// The batches as a follower gets them.
    fn delivered(parcels: Vec<Parcel>) -> Vec<Vec<u8>> {
        use v1::upstream_message::Message;
        let mut unpacker = Unpacker::default();
        let mut batches: Vec<Vec<u8>> = Vec::new();
        for message in parcels.into_iter().flat_map(|p| p.messages(&head())) {
            match message {
                Message::Bundle(mut bundle) => {
                    unpacker.bundle(&mut bundle).unwrap();
                    assert_eq!(bundle.crc32c, bundle_crc(&bundle.payload, &bundle.lengths));
                    let mut rest = &bundle.payload[..];
                    for n in bundle.lengths {
                        let (batch, after) = rest.split_at(n as usize);
                        batches.push(batch.to_vec());
                        rest = after;
                    }
                }
                Message::Frame(mut frame) => {
                    unpacker.frame(&mut frame).unwrap();
                    if frame.offset == 0 {
                        batches.push(Vec::new());
                    }
                    let batch = batches.last_mut().unwrap();
                    assert_eq!(batch.len() as u64, frame.offset);
                    batch.extend_from_slice(&frame.payload);
                }
                other => panic!("{other:?}"),
            }
        }
        batches
    }

    #[test]
    fn batches_of_all_sizes_arrive_as_they_were() {
        let sizes = [20, 100, ALONE_BYTES - 1, ALONE_BYTES, 13, PART_BYTES * 2 + 5, 40, BUNDLE_BYTES, 50];
        let entries: Vec<RingEntry> = (1u8..).zip(sizes).map(|(n, size)| entry(u64::from(n), vec![n; size])).collect();
        for (bundles, compress) in [(true, false), (true, true), (false, false), (false, true)] {
            let parcels = packed(&entries, bundles, compress);
            assert_eq!(parcels.iter().any(|p| p.wire < p.raw), compress);
            let expected: Vec<Vec<u8>> = entries.iter().map(|e| e.bytes.to_vec()).collect();
            assert!(delivered(parcels) == expected, "bundles {bundles}, compression {compress}");
        }
    }

    #[test]
    fn a_bundle_ends_at_its_size_at_another_epoch_and_at_a_hole() {
        let mut entries: Vec<RingEntry> = (1..=100).map(|n| entry(n, vec![1; 10_000])).collect();
        entries[50].epoch = Epoch(2);
        entries[99].first = Sequence(200);
        let parcels = packed(&entries, true, false);
        assert!(parcels.iter().all(|p| p.raw as usize <= BUNDLE_BYTES));
        assert!(parcels.iter().any(|p| p.first == Sequence(51) && p.last == Sequence(51)));
        assert!(parcels.iter().any(|p| p.first == Sequence(200)));
    }

    #[test]
    fn what_does_not_shrink_is_sent_as_it_is() {
        let mut x = 1u64;
        let random = std::iter::repeat_with(|| {
            x = x.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            (x >> 56) as u8
        });
        let parcels = packed(&[entry(1, random.take(200_000).collect())], true, true);
        assert_eq!(parcels[0].wire, 200_000);
    }

    fn bundle(payload: Vec<u8>, length: u32) -> v1::Bundle {
        let compression = v1::Compression::Zstd.into();
        v1::Bundle { lengths: vec![length], payload: payload.into(), compression, ..v1::Bundle::default() }
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![0; zstd_safe::compress_bound(bytes.len())];
        let length = CCtx::create().compress(out.as_mut_slice(), bytes, 1).unwrap();
        out.truncate(length);
        out
    }

    #[test]
    fn a_payload_that_grows_beyond_what_was_announced_is_refused() {
        let bomb = zstd(&vec![0; 64 << 20]);
        assert!(bomb.len() < 10_000);
        let mut unpacker = Unpacker::default();
        for length in [100, 1 << 20, u32::MAX] {
            assert!(unpacker.bundle(&mut bundle(bomb.clone(), length)).is_err(), "{length}");
        }
        let mut frame = v1::Frame {
            payload: bomb.into(),
            total_bytes: u64::MAX,
            compression: v1::Compression::Zstd.into(),
            ..v1::Frame::default()
        };
        assert!(unpacker.frame(&mut frame).is_err());
        // Two frames, of which only the first announces what it holds.
        let twice = [zstd(&[1; 1000]), zstd(&[2; 100_000])].concat();
        assert!(unpacker.bundle(&mut bundle(twice, 200_000)).is_err());
        assert!(unpacker.bundle(&mut bundle(zstd(&[1; 1000]), 1000)).is_ok(), "it goes on after what it refused");
    }

    #[test]
    fn a_truncated_payload_or_an_unknown_compression_is_refused() {
        let whole = zstd(&(0..100_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect::<Vec<u8>>());
        let mut unpacker = Unpacker::default();
        for length in (0..whole.len()).step_by(97) {
            assert!(unpacker.bundle(&mut bundle(whole[..length].to_vec(), 400_000)).is_err(), "{length}");
        }
        let unknown = &mut v1::Bundle { compression: 9, ..bundle(whole, 400_000) };
        assert_eq!(unpacker.bundle(unknown), Err(WireError::Malformed("compression")));
    }

    proptest! {
        #[test]
        fn damaged_and_arbitrary_payloads_never_grow_beyond_what_was_announced(
            text in proptest::collection::vec(0u8..4, 1..5000),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in proptest::option::of(any::<prop::sample::Index>()),
            arbitrary in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200)),
            length in 0u32..6000,
        ) {
            let mut payload = zstd(&text);
            damage.iter().for_each(|(at, with)| { let at = at.index(payload.len()); payload[at] ^= with; });
            if let Some(cut) = cut { payload.truncate(cut.index(payload.len())); }
            let payload = arbitrary.unwrap_or(payload);
            let mut bundle = bundle(payload, length);
            if Unpacker::default().bundle(&mut bundle).is_ok() {
                prop_assert!(bundle.payload.len() <= length as usize);
            }
        }
    }
}
