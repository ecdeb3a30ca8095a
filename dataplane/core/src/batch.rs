//! RocksDB write batches as bytes: building, reading and checking them without RocksDB.
//!
//! A batch is an 8-byte sequence and a 4-byte count, both little-endian, then tagged records with varint32 lengths. These
//! bytes are what the WAL holds and what followers get, so both ends look at them with this module alone.
//!
//! Sizes of keys, values and batches are limited by the callers; this module only says whether bytes are a batch.

use bytes::{BufMut, Bytes, BytesMut};

/// Length of a batch's header, in bytes.
pub const HEADER_LEN: usize = 12;
/// Number of the column family `default`, which holds the data.
pub const DATA_FAMILY: u32 = 0;
/// Number of the column family `meta`, which holds the epoch records.
pub const META_FAMILY: u32 = 1;

const TAG_DELETION: u8 = 0x0;
const TAG_VALUE: u8 = 0x1;
const TAG_MERGE: u8 = 0x2;
const TAG_LOG_DATA: u8 = 0x3;
const TAG_FAMILY_DELETION: u8 = 0x4;
const TAG_FAMILY_VALUE: u8 = 0x5;
const TAG_FAMILY_MERGE: u8 = 0x6;
const TAG_SINGLE_DELETION: u8 = 0x7;
const TAG_FAMILY_SINGLE_DELETION: u8 = 0x8;
const TAG_NOOP: u8 = 0xD;
const TAG_FAMILY_RANGE_DELETION: u8 = 0xE;
const TAG_RANGE_DELETION: u8 = 0xF;

/// Room that a builder's buffer is grown by, in bytes: many batches share one allocation.
const CHUNK: usize = 64 << 10;

/// Why bytes are not a batch. Every one is terminal: the same bytes will not become better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// There is no room for a header.
    #[error("read batch header: {len} bytes of {HEADER_LEN}")]
    Short {
        /// Bytes that there are.
        len: usize,
    },
    /// A record ends before its length says.
    #[error("read batch record at byte {at}: cut off")]
    CutOff {
        /// Where the record starts.
        at: usize,
    },
    /// A length or family number is not a varint32.
    #[error("read batch record at byte {at}: a number is longer than 32 bits")]
    BadNumber {
        /// Where the record starts.
        at: usize,
    },
    /// A record of a kind that is not known or never written here.
    #[error("read batch record at byte {at}: unknown tag {tag}")]
    UnknownTag {
        /// The tag.
        tag: u8,
        /// Where the record starts.
        at: usize,
    },
    /// The header's count is not that of the records.
    #[error("count batch records: header says {header}, there are {found}")]
    WrongCount {
        /// What the header says.
        header: u32,
        /// What was found.
        found: u64,
    },
}

/// A batch's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Sequence of the first record; meaningless before the batch is written.
    pub sequence: u64,
    /// How many records take a sequence; log data and no-ops don't.
    pub count: u32,
}

/// One record, with its family's number and borrowed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    /// Sets a key.
    Put {
        /// Column family.
        family: u32,
        /// Key.
        key: &'a [u8],
        /// Stored value.
        value: &'a [u8],
    },
    /// Deletes a key.
    Delete {
        /// Column family.
        family: u32,
        /// Key.
        key: &'a [u8],
    },
    /// Deletes a key that was put once.
    SingleDelete {
        /// Column family.
        family: u32,
        /// Key.
        key: &'a [u8],
    },
    /// Deletes keys in [from, to).
    DeleteRange {
        /// Column family.
        family: u32,
        /// First key.
        from: &'a [u8],
        /// First key that stays.
        to: &'a [u8],
    },
    /// Merges an operand into a key.
    Merge {
        /// Column family.
        family: u32,
        /// Key.
        key: &'a [u8],
        /// Operand.
        operand: &'a [u8],
    },
    /// Bytes that travel through the WAL only and take no sequence.
    LogData(&'a [u8]),
    /// Nothing; takes no sequence.
    Noop,
}

impl Record<'_> {
    /// Whether the record takes a sequence.
    #[must_use]
    pub const fn takes_sequence(&self) -> bool {
        match self {
            Self::Put { .. }
            | Self::Delete { .. }
            | Self::SingleDelete { .. }
            | Self::DeleteRange { .. }
            | Self::Merge { .. } => true,
            Self::LogData(_) | Self::Noop => false,
        }
    }
}

/// Reads a batch's header.
///
/// # Errors
/// [`BatchError::Short`].
pub fn header(bytes: &[u8]) -> Result<Header, BatchError> {
    match bytes.split_at_checked(HEADER_LEN) {
        Some(([s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3], _)) => Ok(Header {
            sequence: u64::from_le_bytes([*s0, *s1, *s2, *s3, *s4, *s5, *s6, *s7]),
            count: u32::from_le_bytes([*c0, *c1, *c2, *c3]),
        }),
        _ => Err(BatchError::Short { len: bytes.len() }),
    }
}

/// Writes the header's sequence.
///
/// # Errors
/// [`BatchError::Short`].
pub fn set_sequence(bytes: &mut [u8], sequence: u64) -> Result<(), BatchError> {
    let len = bytes.len();
    let header = bytes.get_mut(..HEADER_LEN).ok_or(BatchError::Short { len })?;
    header[..8].copy_from_slice(&sequence.to_le_bytes());
    Ok(())
}

/// The records of a batch, in order. The last item is an error if the structure or the count is wrong; nothing follows it.
///
/// # Errors
/// [`BatchError::Short`].
pub fn records(bytes: &[u8]) -> Result<Records<'_>, BatchError> {
    let header = header(bytes)?;
    Ok(Records { bytes, at: HEADER_LEN, header, found: 0, ended: false })
}

/// Checks the whole structure, the count included, and answers the header.
///
/// # Errors
/// Whatever is wrong first.
pub fn check(bytes: &[u8]) -> Result<Header, BatchError> {
    let mut records = records(bytes)?;
    records.try_for_each(|record| record.map(drop))?;
    Ok(records.header)
}

/// Iterator over a batch's records; made by [`records`].
#[derive(Debug, Clone)]
pub struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
    header: Header,
    found: u64,
    ended: bool,
}

impl Records<'_> {
    /// The batch's header.
    #[must_use]
    pub const fn header(&self) -> Header {
        self.header
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        if self.at >= self.bytes.len() {
            self.ended = true;
            let (header, found) = (self.header.count, self.found);
            return (found != u64::from(header)).then_some(Err(BatchError::WrongCount { header, found }));
        }
        let mut reader = Reader { bytes: self.bytes, at: self.at, start: self.at };
        let record = reader.record();
        match &record {
            Ok(record) => {
                self.at = reader.at;
                self.found += u64::from(record.takes_sequence());
            }
            Err(_) => self.ended = true,
        }
        Some(record)
    }
}

/// A cursor within one record.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    start: usize,
}

impl<'a> Reader<'a> {
    fn record(&mut self) -> Result<Record<'a>, BatchError> {
        let tag = self.byte()?;
        let family = match tag {
            TAG_FAMILY_DELETION
            | TAG_FAMILY_VALUE
            | TAG_FAMILY_MERGE
            | TAG_FAMILY_SINGLE_DELETION
            | TAG_FAMILY_RANGE_DELETION => self.number()?,
            _ => DATA_FAMILY,
        };
        Ok(match tag {
            TAG_VALUE | TAG_FAMILY_VALUE => Record::Put { family, key: self.slice()?, value: self.slice()? },
            TAG_DELETION | TAG_FAMILY_DELETION => Record::Delete { family, key: self.slice()? },
            TAG_SINGLE_DELETION | TAG_FAMILY_SINGLE_DELETION => Record::SingleDelete { family, key: self.slice()? },
            TAG_RANGE_DELETION | TAG_FAMILY_RANGE_DELETION => {
                Record::DeleteRange { family, from: self.slice()?, to: self.slice()? }
            }
            TAG_MERGE | TAG_FAMILY_MERGE => Record::Merge { family, key: self.slice()?, operand: self.slice()? },
            TAG_LOG_DATA => Record::LogData(self.slice()?),
            TAG_NOOP => Record::Noop,
            _ => return Err(BatchError::UnknownTag { tag, at: self.start }),
        })
    }

    fn byte(&mut self) -> Result<u8, BatchError> {
        let byte = *self.bytes.get(self.at).ok_or(BatchError::CutOff { at: self.start })?;
        self.at += 1;
        Ok(byte)
    }

    fn number(&mut self) -> Result<u32, BatchError> {
        let mut number = 0u32;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.byte()?;
            if shift == 28 && byte > 0x0F {
                return Err(BatchError::BadNumber { at: self.start });
            }
            number |= u32::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(BatchError::BadNumber { at: self.start })
    }

    fn slice(&mut self) -> Result<&'a [u8], BatchError> {
        let len = self.number()? as usize;
        let (slice, _) = self.bytes[self.at..].split_at_checked(len).ok_or(BatchError::CutOff { at: self.start })?;
        self.at += len;
        Ok(slice)
    }
}

/// Builds batches, one after another, in a buffer that is shared by many of them.
///
/// Invariant: what was built so far is a batch at any time, its header's count included; its sequence is 0. Keys and values
/// are shorter than 4 GiB and a batch has fewer than 2^32 records: callers' limits are far below.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    bytes: BytesMut,
    count: u32,
}

impl BatchBuilder {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key to what `stored` holds, value header included.
    pub fn put(&mut self, key: &[u8], stored: &[u8]) {
        self.start(TAG_VALUE, key.len() + stored.len());
        self.slice(key);
        self.slice(stored);
        self.count_one();
    }

    /// Sets a key to a user's value, encoding value header and expiry (ms since 1970) in place.
    pub fn put_value(&mut self, key: &[u8], value: &[u8], expires_at_ms: Option<u64>) {
        let len = crate::value::encoded_len(value, expires_at_ms);
        self.start(TAG_VALUE, key.len() + len);
        self.slice(key);
        self.number(len);
        crate::value::encode_into(&mut self.bytes, value, expires_at_ms);
        self.count_one();
    }

    /// Deletes a key.
    pub fn delete(&mut self, key: &[u8]) {
        self.start(TAG_DELETION, key.len());
        self.slice(key);
        self.count_one();
    }

    /// Sets a key in the `meta` family.
    pub fn put_meta(&mut self, key: &[u8], value: &[u8]) {
        self.start(TAG_FAMILY_VALUE, key.len() + value.len());
        self.number(META_FAMILY as usize);
        self.slice(key);
        self.slice(value);
        self.count_one();
    }

    /// Deletes the data in [from, to).
    pub fn delete_range(&mut self, from: &[u8], to: &[u8]) {
        self.start(TAG_RANGE_DELETION, from.len() + to.len());
        self.slice(from);
        self.slice(to);
        self.count_one();
    }

    /// Adds bytes that travel through the WAL and take no sequence.
    pub fn put_log_data(&mut self, data: &[u8]) {
        self.start(TAG_LOG_DATA, data.len());
        self.slice(data);
    }

    /// Records so far that take a sequence.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Whether nothing was added, log data included.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.len() <= HEADER_LEN
    }

    /// Length of the batch so far, in bytes, header included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len().max(HEADER_LEN)
    }

    /// Throws away what was added.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }

    /// The batch; the builder is empty again and keeps the rest of its buffer.
    #[must_use]
    pub fn finish(&mut self) -> Bytes {
        self.start_batch(0);
        self.count = 0;
        self.bytes.split().freeze()
    }

    fn start_batch(&mut self, room: usize) {
        if self.bytes.is_empty() {
            if self.bytes.capacity() < HEADER_LEN + room {
                self.bytes.reserve(CHUNK.max(HEADER_LEN + room));
            }
            self.bytes.put_bytes(0, HEADER_LEN);
        }
    }

    fn start(&mut self, tag: u8, len: usize) {
        // A tag, a family and two lengths of at most 5 bytes.
        self.start_batch(len + 16);
        self.bytes.put_u8(tag);
    }

    fn count_one(&mut self) {
        self.count += 1;
        self.bytes[8..HEADER_LEN].copy_from_slice(&self.count.to_le_bytes());
    }

    fn number(&mut self, mut number: usize) {
        debug_assert!(u32::try_from(number).is_ok());
        while number >= 0x80 {
            self.bytes.put_u8((number & 0x7F) as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.put_u8(number as u8);
    }

    fn slice(&mut self, slice: &[u8]) {
        self.number(slice.len());
        self.bytes.put_slice(slice);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<Record<'_>>, BatchError> {
        records(bytes)?.collect()
    }

    #[test]
    fn every_kind_of_record_comes_back_as_it_went_in() {
        let mut builder = BatchBuilder::new();
        builder.put(b"k", b"\0v");
        builder.put_log_data(b"note");
        builder.delete(b"gone");
        builder.put_meta(b"epoch", b"1");
        builder.delete_range(b"a", b"b");
        builder.put_value(b"x", b"y", Some(7));
        assert_eq!(builder.count(), 5);
        let bytes = builder.finish();
        assert_eq!(
            read(&bytes).unwrap(),
            [
                Record::Put { family: 0, key: b"k", value: b"\0v" },
                Record::LogData(b"note"),
                Record::Delete { family: 0, key: b"gone" },
                Record::Put { family: 1, key: b"epoch", value: b"1" },
                Record::DeleteRange { family: 0, from: b"a", to: b"b" },
                Record::Put { family: 0, key: b"x", value: &[1, 7, 0, 0, 0, 0, 0, 0, 0, b'y'] },
            ]
        );
        assert_eq!(check(&bytes).unwrap(), Header { sequence: 0, count: 5 });
    }

    #[test]
    fn the_bytes_are_those_that_rocksdb_writes() {
        let mut builder = BatchBuilder::new();
        builder.put(b"ab", b"c");
        builder.put_meta(b"m", b"");
        let mut expected = vec![0u8; 8];
        expected.extend([2, 0, 0, 0, 1, 2, b'a', b'b', 1, b'c', 5, 1, 1, b'm', 0]);
        assert_eq!(builder.finish(), expected);
    }

    #[test]
    fn families_written_by_others_are_read() {
        let mut bytes = vec![0u8; 8];
        bytes.extend([5, 0, 0, 0]);
        bytes.extend([TAG_FAMILY_DELETION, 2, 1, b'a', TAG_FAMILY_MERGE, 3, 1, b'b', 1, b'c', TAG_NOOP]);
        bytes.extend([TAG_FAMILY_SINGLE_DELETION, 4, 1, b'd', TAG_FAMILY_RANGE_DELETION, 0x80, 1, 1, b'e', 1, b'f']);
        bytes.extend([TAG_MERGE, 0, 0]);
        assert_eq!(
            read(&bytes).unwrap(),
            [
                Record::Delete { family: 2, key: b"a" },
                Record::Merge { family: 3, key: b"b", operand: b"c" },
                Record::Noop,
                Record::SingleDelete { family: 4, key: b"d" },
                Record::DeleteRange { family: 128, from: b"e", to: b"f" },
                Record::Merge { family: 0, key: b"", operand: b"" },
            ]
        );
    }

    #[test]
    fn each_kind_of_damage_has_its_own_error() {
        let mut builder = BatchBuilder::new();
        builder.put(b"key", b"value");
        let good = builder.finish();
        assert_eq!(header(&good[..11]), Err(BatchError::Short { len: 11 }));
        assert_eq!(check(&good[..good.len() - 1]), Err(BatchError::CutOff { at: 12 }));
        let mut bad = good.to_vec();
        bad[8] = 2;
        assert_eq!(check(&bad), Err(BatchError::WrongCount { header: 2, found: 1 }));
        bad[8] = 1;
        bad[12] = 0x16;
        assert_eq!(check(&bad), Err(BatchError::UnknownTag { tag: 0x16, at: 12 }));
        bad.truncate(12);
        bad.extend([TAG_DELETION, 0xFF, 0xFF, 0xFF, 0xFF, 0x10]);
        assert_eq!(check(&bad), Err(BatchError::BadNumber { at: 12 }));
    }

    #[test]
    fn nothing_follows_an_error() {
        let mut bytes = vec![0u8; HEADER_LEN];
        bytes.extend([0x40, TAG_NOOP, TAG_NOOP]);
        let mut records = records(&bytes).unwrap();
        assert!(records.next().unwrap().is_err());
        assert_eq!(records.next(), None);
    }

    #[test]
    fn a_builder_starts_afresh_after_each_batch_and_after_clear() {
        let mut builder = BatchBuilder::new();
        builder.put(b"a", b"1");
        let first = builder.finish();
        builder.put(b"zzz", b"thrown away");
        builder.clear();
        assert!(builder.is_empty());
        builder.delete(b"b");
        let second = builder.finish();
        assert_eq!(read(&first).unwrap(), [Record::Put { family: 0, key: b"a", value: b"1" }]);
        assert_eq!(read(&second).unwrap(), [Record::Delete { family: 0, key: b"b" }]);
        assert_eq!(check(&builder.finish()).unwrap().count, 0);
    }

    #[test]
    fn the_sequence_is_written_and_read() {
        let mut bytes = BatchBuilder::new().finish().to_vec();
        set_sequence(&mut bytes, u64::MAX - 1).unwrap();
        assert_eq!(header(&bytes).unwrap().sequence, u64::MAX - 1);
        assert_eq!(set_sequence(&mut bytes[..5], 1), Err(BatchError::Short { len: 5 }));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = check(&bytes);
        }

        #[test]
        fn damaged_batches_never_panic_and_never_grow(
            puts in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..300), any::<Option<u64>>()), 1..20),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let mut builder = BatchBuilder::new();
            for (bytes, expiry) in &puts {
                builder.put_value(bytes, bytes, *expiry);
            }
            let mut bytes = builder.finish().to_vec();
            prop_assert_eq!(check(&bytes).unwrap().count as usize, puts.len());
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let read = records(&bytes).unwrap().filter(Result::is_ok).count();
            prop_assert!(read <= bytes.len());
        }

        #[test]
        fn any_numbers_survive(len in 0usize..70_000) {
            let mut builder = BatchBuilder::new();
            let value = vec![7u8; len];
            builder.put(b"k", &value);
            let bytes = builder.finish();
            prop_assert_eq!(read(&bytes).unwrap(), vec![Record::Put { family: 0, key: b"k", value: &value }]);
        }
    }
}
