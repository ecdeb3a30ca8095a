//! How far each prefix was durable, kept apart from its database.
//!
//! RocksDB recovers up to the first damaged record of a log and says nothing of what came after it. A database that comes
//! back below what is noted here has lost records that it had acknowledged: it gets a floor (see `member/state`) and counts as
//! incomplete until it has reached it again.
//!
//! One entry of 44 bytes a prefix, written in place, only where something moved and at most every [`NOTED_EVERY`]; so what is
//! lost from the last tenth of a second of a log may go unnoticed. Not synced: an entry must survive the process, and after a
//! power cut an older one only makes the check weaker. Each has a checksum; the loss of one, or of the file, is harmless.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parovoz_dataplane_core::types::{Epoch, Position, PrefixUuid, Sequence};
use uuid::Uuid;

/// Positions by prefix.
pub type Marks = BTreeMap<PrefixUuid, Position>;

/// How often positions are noted at most.
pub const NOTED_EVERY: Duration = Duration::from_millis(100);
/// The version of the format is in here too.
const MAGIC: &[u8; 8] = b"PAROVOZ1";
/// Identity, epoch, sequence, checksum, eight spare bytes.
const ENTRY: usize = 44;

/// See the module.
#[derive(Debug)]
pub struct Watermarks {
    path: PathBuf,
    file: Option<File>,
    written: BTreeMap<PrefixUuid, (usize, Position)>,
    /// Places of prefixes that are gone.
    free: Vec<usize>,
    places: usize,
}

fn encode(prefix: PrefixUuid, at: Position) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    entry[..16].copy_from_slice(prefix.0.as_bytes());
    entry[16..24].copy_from_slice(&at.epoch.0.to_le_bytes());
    entry[24..32].copy_from_slice(&at.sequence.0.to_le_bytes());
    let crc = crc32c::crc32c(&entry[..32]);
    entry[32..36].copy_from_slice(&crc.to_le_bytes());
    entry
}

/// `None` if it is damaged or nobody's.
fn decode(entry: &[u8]) -> Option<(PrefixUuid, Position)> {
    let number = |at: usize| Some(u64::from_le_bytes(entry.get(at..at + 8)?.try_into().ok()?));
    let uuid = Uuid::from_slice(entry.get(..16)?).ok()?;
    let crc = u32::from_le_bytes(entry.get(32..36)?.try_into().ok()?);
    let whole = !uuid.is_nil() && crc == crc32c::crc32c(entry.get(..32)?);
    whole.then_some((PrefixUuid(uuid), Position { epoch: Epoch(number(16)?), sequence: Sequence(number(24)?) }))
}

impl Watermarks {
    /// Reads what was noted last. A missing file notes nothing, and neither does a damaged entry.
    #[must_use]
    pub fn open(data_dir: &Path) -> Self {
        let path = data_dir.join("watermarks");
        let mut marks = Self { path, file: None, written: BTreeMap::new(), free: Vec::new(), places: 0 };
        let Ok(bytes) = std::fs::read(&marks.path) else { return marks };
        let Some(entries) = bytes.strip_prefix(MAGIC) else {
            tracing::warn!(path = %marks.path.display(), "the watermarks can't be read: lost records of a log would go unnoticed at this start");
            return marks;
        };
        for entry in entries.chunks(ENTRY) {
            match decode(entry) {
                Some((prefix, at)) if !marks.written.contains_key(&prefix) => {
                    marks.written.insert(prefix, (marks.places, at));
                }
                _ => marks.free.push(marks.places),
            }
            marks.places += 1;
        }
        match File::options().write(true).open(&marks.path) {
            Ok(file) => marks.file = Some(file),
            Err(error) => tracing::warn!(%error, "watermarks are not noted"),
        }
        marks
    }

    /// What was noted last.
    #[must_use]
    pub fn marks(&self) -> Marks {
        self.written.iter().map(|(prefix, (_, at))| (*prefix, *at)).collect()
    }

    /// How many prefixes are noted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.written.len()
    }

    /// Whether nothing is noted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.written.is_empty()
    }

    /// What was noted last of one prefix.
    #[must_use]
    pub fn of(&self, prefix: PrefixUuid) -> Option<Position> {
        self.written.get(&prefix).map(|(_, at)| *at)
    }

    /// Notes where a prefix is now, if that changed.
    ///
    /// # Errors
    /// What the disk says; the note before stays then.
    pub fn note(&mut self, prefix: PrefixUuid, at: Position) -> io::Result<()> {
        let known = self.written.get(&prefix).copied();
        if known.is_some_and(|(_, noted)| noted == at) {
            return Ok(());
        }
        let place = known.map(|(place, _)| place).or_else(|| self.free.last().copied()).unwrap_or(self.places);
        self.put(place, &encode(prefix, at))?;
        if known.is_none() && self.free.pop().is_none() {
            self.places += 1;
        }
        self.written.insert(prefix, (place, at));
        Ok(())
    }

    /// Forgets prefixes that `keep` does not know: they were dropped.
    ///
    /// # Errors
    /// What the disk says; what could not be forgotten is noted still.
    pub fn retain(&mut self, keep: impl Fn(PrefixUuid) -> bool) -> io::Result<()> {
        let gone: Vec<_> =
            self.written.iter().filter(|(p, _)| !keep(**p)).map(|(p, (place, _))| (*p, *place)).collect();
        for (prefix, place) in gone {
            self.put(place, &[0; ENTRY])?;
            self.written.remove(&prefix);
            self.free.push(place);
        }
        Ok(())
    }

    fn put(&mut self, place: usize, entry: &[u8; ENTRY]) -> io::Result<()> {
        if self.file.is_none() {
            let file = File::options().create(true).write(true).truncate(true).open(&self.path)?;
            file.write_all_at(MAGIC, 0)?;
            self.file = Some(file);
        }
        let at = MAGIC.len() + place * ENTRY;
        self.file.as_ref().map_or(Ok(()), |file| file.write_all_at(entry, at as u64))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn prefix(n: u128) -> PrefixUuid {
        PrefixUuid(Uuid::from_u128(n))
    }

    #[test]
    fn what_was_noted_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut marks = Watermarks::open(dir.path());
        for n in 1..=3 {
            marks.note(prefix(n), Position::new(2, 30)).unwrap();
        }
        marks.note(prefix(2), Position::new(2, 31)).unwrap();
        let mut again = Watermarks::open(dir.path());
        assert_eq!(again.marks(), marks.marks());
        assert_eq!(again.of(prefix(2)), Some(Position::new(2, 31)));
        again.retain(|p| p != prefix(1)).unwrap();
        again.note(prefix(4), Position::new(3, 1)).unwrap();
        let third = Watermarks::open(dir.path());
        assert_eq!(third.marks().keys().copied().collect::<Vec<_>>(), [prefix(2), prefix(3), prefix(4)]);
        let bytes = std::fs::metadata(dir.path().join("watermarks")).unwrap().len();
        assert_eq!(bytes, (MAGIC.len() + 3 * ENTRY) as u64, "the place of a dropped prefix is used again");
    }

    #[test]
    fn a_damaged_entry_notes_nothing_and_the_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let mut marks = Watermarks::open(dir.path());
        marks.note(prefix(1), Position::new(2, 30)).unwrap();
        marks.note(prefix(2), Position::new(2, 40)).unwrap();
        let path = dir.path().join("watermarks");
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[0x77], (MAGIC.len() + 25) as u64).unwrap();
        let mut again = Watermarks::open(dir.path());
        assert_eq!(again.marks(), [(prefix(2), Position::new(2, 40))].into());
        again.note(prefix(1), Position::new(2, 50)).unwrap();
        assert_eq!(Watermarks::open(dir.path()).of(prefix(1)), Some(Position::new(2, 50)));
        std::fs::write(&path, b"nonsense of another kind").unwrap();
        assert!(Watermarks::open(dir.path()).marks().is_empty());
        Watermarks::open(dir.path()).note(prefix(1), Position::new(2, 60)).unwrap();
        assert_eq!(Watermarks::open(dir.path()).of(prefix(1)), Some(Position::new(2, 60)), "it begins anew");
    }
}
