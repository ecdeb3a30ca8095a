//! The member slots: two checksummed files written in turn, so that one is whole whatever happens during a write.
//!
//! Layout of a slot: magic (8 bytes), format version (u32), length of the body (u32), generation (u64), CRC32C of all before
//! the CRC with the body appended (u32), body (JSON), zero padding up to [`SLOT_BYTES`]. All numbers little-endian.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use parovoz_dataplane_core::member::MemberRecord;

use super::reserve::{self, Reserve};

const MAGIC: &[u8; 8] = b"PAROVOZM";
/// Version of the body's format.
pub const FORMAT_VERSION: u32 = 1;
const HEADER: usize = 28;
/// Preallocated size of a slot: a full disk does not stop a promise from being stored.
pub const SLOT_BYTES: usize = 256 << 10;

/// What is wrong with the slots.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The disk refused.
    #[error("{action} member slot {path}: {cause}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// Neither slot is whole, though at least one was written once.
    #[error(
        "open member slots: {first}; {second}. The volume's data is kept untouched; restore a slot from a backup, or delete \
         this member's volume claim so that it is rebuilt from the others"
    )]
    BothBroken {
        /// What is wrong with `member.0`.
        first: String,
        /// What is wrong with `member.1`.
        second: String,
    },
    /// Whole, and still not understood. The other slot may be older and know less of what this member promised.
    #[error(
        "open member slot {path}: its checksum is right and its content is not understood ({cause}): it was written by \
         another version; run that version again"
    )]
    NotUnderstood {
        /// The file.
        path: PathBuf,
        /// What is not understood.
        cause: serde_json::Error,
    },
    /// Written by a newer program.
    #[error(
        "open member slot {path}: format version {found} is newer than {FORMAT_VERSION}; run the newer version again"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The record is larger than a slot.
    #[error("write member slot: {0} bytes do not fit into a slot")]
    TooLarge(usize),
    /// The record can't be put into JSON.
    #[error("encode member slot: {0}")]
    Encode(serde_json::Error),
}

impl SlotError {
    /// Whether the disk had no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { cause, .. } if reserve::is_full(cause))
    }
}

/// The two slots of a volume, and the record that they hold.
#[derive(Debug)]
pub struct Slots {
    paths: [PathBuf; 2],
    reserve: Reserve,
    generation: u64,
}

enum Found {
    Absent,
    Broken(String),
    Whole(u64, Box<MemberRecord>),
}

impl Slots {
    /// Opens the slots of the volume in `dir`; the record is `None` on a blank volume.
    ///
    /// # Errors
    /// See [`SlotError`]; nothing is written.
    pub fn open(dir: &Path) -> Result<(Self, Option<MemberRecord>), SlotError> {
        let paths = [dir.join("member.0"), dir.join("member.1")];
        let found = [read_slot(&paths[0])?, read_slot(&paths[1])?];
        let best = match found {
            [Found::Whole(a, first), Found::Whole(b, second)] => Some(if a >= b { (a, first) } else { (b, second) }),
            [Found::Whole(g, record), other] | [other, Found::Whole(g, record)] => {
                if let Found::Broken(why) = other {
                    tracing::warn!(%why, "one member slot is broken, the other is used");
                }
                Some((g, record))
            }
            [Found::Absent, Found::Absent] => None,
            [first, second] => {
                return Err(SlotError::BothBroken { first: first.describe(), second: second.describe() });
            }
        };
        let (generation, record) = best.map_or((0, None), |(g, r)| (g, Some(*r)));
        Ok((Self { paths, reserve: Reserve::of(dir), generation }, record))
    }

    /// Stores a record in the older slot and syncs it; on success it is what a later open finds. On a full disk the reserve is
    /// given back for it.
    ///
    /// # Errors
    /// See [`SlotError`]; the newer slot still holds the previous record then.
    pub fn write(&mut self, record: &MemberRecord) -> Result<(), SlotError> {
        let generation = self.generation + 1;
        let bytes = encode(record, generation)?;
        let path = &self.paths[usize::from(generation.is_multiple_of(2))];
        self.reserve.with_room(SlotError::is_full, || write_slot(path, &bytes))?;
        self.generation = generation;
        Ok(())
    }

    /// Stores a record in both slots: a promise must survive the loss of either.
    ///
    /// # Errors
    /// As [`Slots::write`].
    pub fn write_both(&mut self, record: &MemberRecord) -> Result<(), SlotError> {
        self.write(record)?;
        self.write(record)
    }
}

impl Found {
    fn describe(&self) -> String {
        match self {
            Self::Absent => "the other is missing".into(),
            Self::Broken(why) => why.clone(),
            Self::Whole(..) => "whole".into(),
        }
    }
}

fn encode(record: &MemberRecord, generation: u64) -> Result<Vec<u8>, SlotError> {
    let body = serde_json::to_vec(record).map_err(SlotError::Encode)?;
    if body.len() > SLOT_BYTES - HEADER {
        return Err(SlotError::TooLarge(body.len()));
    }
    let mut bytes = Vec::with_capacity(SLOT_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&generation.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), &body);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes.resize(SLOT_BYTES, 0);
    Ok(bytes)
}

fn write_slot(path: &Path, bytes: &[u8]) -> Result<(), SlotError> {
    let fail = |action| move |cause| SlotError::Io { action, path: path.to_owned(), cause };
    // A slot appears whole or not at all: a crash during the very first write must not look like damage.
    let target = if path.exists() { path.to_owned() } else { path.with_extension("new") };
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&target).map_err(fail("open"))?;
    file.write_all_at(bytes, 0).map_err(fail("write"))?;
    file.sync_all().map_err(fail("sync"))?;
    if target != path {
        std::fs::rename(&target, path).map_err(fail("rename"))?;
        if let Some(dir) = path.parent() {
            File::open(dir).and_then(|d| d.sync_all()).map_err(fail("sync folder of"))?;
        }
    }
    Ok(())
}

fn read_slot(path: &Path) -> Result<Found, SlotError> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(SLOT_BYTES as u64).read_to_end(&mut bytes).map_err(|cause| SlotError::Io {
            action: "read",
            path: path.to_owned(),
            cause,
        })?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Absent),
        Err(cause) => return Err(SlotError::Io { action: "open", path: path.to_owned(), cause }),
    };
    let broken = |why: &str| Ok(Found::Broken(format!("{}: {why}", path.display())));
    let field = |at: usize| bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    if bytes.len() < HEADER || &bytes[..8] != MAGIC {
        return broken("it does not begin like a member slot");
    }
    let length = field(12) as usize;
    let Some(body) = bytes.get(HEADER..HEADER + length) else { return broken("it is cut short") };
    if crc32c::crc32c_append(crc32c::crc32c(&bytes[..24]), body) != field(24) {
        return broken("its checksum differs");
    }
    // The checksum is right, so this is no damage: an older program must not touch it.
    let version = field(8);
    if version > FORMAT_VERSION {
        return Err(SlotError::Newer { path: path.to_owned(), found: version });
    }
    let generation = u64::from(field(16)) | u64::from(field(20)) << 32;
    match serde_json::from_slice(body) {
        Ok(record) => Ok(Found::Whole(generation, Box::new(record))),
        Err(cause) => Err(SlotError::NotUnderstood { path: path.to_owned(), cause }),
    }
}

/// Turns one byte of a slot around.
#[cfg(test)]
fn damage(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0xff], at).unwrap();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use parovoz_dataplane_core::types::{DataUuid, Epoch, StoreUid};
    use uuid::Uuid;

    fn record(started: u64) -> MemberRecord {
        let mut record = MemberRecord::blank(StoreUid("s".into()), DataUuid(Uuid::from_u128(7)), "claim".into());
        record.started = Epoch(started);
        record
    }

    #[test]
    fn the_newest_record_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut slots, none) = Slots::open(dir.path()).unwrap();
        assert!(none.is_none());
        for n in 1..=5 {
            slots.write(&record(n)).unwrap();
            let (_, found) = Slots::open(dir.path()).unwrap();
            assert_eq!(found.unwrap().started, Epoch(n));
        }
    }

    #[test]
    fn a_torn_write_leaves_the_record_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let (mut slots, _) = Slots::open(dir.path()).unwrap();
        slots.write(&record(1)).unwrap();
        slots.write(&record(2)).unwrap();
        damage(&dir.path().join("member.1"), 40);
        let (mut slots, found) = Slots::open(dir.path()).unwrap();
        assert_eq!(found.unwrap().started, Epoch(1));
        slots.write_both(&record(3)).unwrap();
        damage(&dir.path().join("member.0"), 40);
        assert_eq!(Slots::open(dir.path()).unwrap().1.unwrap().started, Epoch(3));
    }

    #[test]
    fn two_broken_slots_are_an_error_and_not_a_blank_volume() {
        let dir = tempfile::tempdir().unwrap();
        let (mut slots, _) = Slots::open(dir.path()).unwrap();
        slots.write_both(&record(1)).unwrap();
        damage(&dir.path().join("member.0"), 26);
        damage(&dir.path().join("member.1"), 3);
        let error = Slots::open(dir.path()).unwrap_err();
        assert!(matches!(error, SlotError::BothBroken { .. }), "{error}");
    }

    #[test]
    fn one_broken_slot_with_the_other_missing_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (mut slots, _) = Slots::open(dir.path()).unwrap();
        slots.write(&record(1)).unwrap();
        let written = if dir.path().join("member.0").exists() { "member.0" } else { "member.1" };
        damage(&dir.path().join(written), 60);
        assert!(matches!(Slots::open(dir.path()), Err(SlotError::BothBroken { .. })));
    }

    /// Puts the right checksum into a slot.
    fn sum(bytes: &mut [u8]) {
        let length = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..24]), &bytes[HEADER..HEADER + length]);
        bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    }

    #[test]
    fn a_whole_slot_that_is_not_understood_does_not_make_way_for_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let (mut slots, _) = Slots::open(dir.path()).unwrap();
        slots.write_both(&record(1)).unwrap();
        let mut bytes = encode(&record(2), 9).unwrap();
        bytes[HEADER] = b'[';
        sum(&mut bytes);
        std::fs::write(dir.path().join("member.0"), &bytes).unwrap();
        let error = Slots::open(dir.path()).unwrap_err();
        assert!(matches!(error, SlotError::NotUnderstood { .. }), "{error}");
    }

    #[test]
    fn a_newer_format_is_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = encode(&record(1), 1).unwrap();
        bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
        sum(&mut bytes);
        std::fs::write(dir.path().join("member.0"), &bytes).unwrap();
        assert!(matches!(Slots::open(dir.path()), Err(SlotError::Newer { found: 2, .. })));
    }
}
