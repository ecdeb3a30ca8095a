//! How far each prefix was durable, kept apart from its database.
//!
//! RocksDB recovers up to the first damaged record of a log and says nothing of what came after it. A database that comes
//! back below what is noted here has lost records that it had acknowledged: it gets a floor (see `member/state`) and counts as
//! incomplete until it has reached it again.
//!
//! The file is rewritten every second while something moves, without a sync: it must survive the process, and after a power
//! cut an older note only makes the check weaker. Its loss is harmless.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use parovoz_dataplane_core::types::{Position, PrefixUuid};
use serde::{Deserialize, Serialize};

/// Positions by prefix.
pub type Marks = BTreeMap<PrefixUuid, Position>;

#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    crc32c: u32,
    marks: Marks,
}

/// See the module.
#[derive(Debug)]
pub struct Watermarks {
    path: PathBuf,
    written: Marks,
}

fn checksum(marks: &Marks) -> u32 {
    marks.iter().fold(0, |crc, (prefix, at)| {
        let crc = crc32c::crc32c_append(crc, prefix.0.as_bytes());
        let crc = crc32c::crc32c_append(crc, &at.epoch.0.to_le_bytes());
        crc32c::crc32c_append(crc, &at.sequence.0.to_le_bytes())
    })
}

impl Watermarks {
    /// Reads what was noted last. A missing or damaged file notes nothing.
    #[must_use]
    pub fn open(data_dir: &Path) -> Self {
        let path = data_dir.join("watermarks");
        let written = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .ok()
                .filter(|noted: &Noted| checksum(&noted.marks) == noted.crc32c)
                .map_or_else(
                    || {
                        tracing::warn!(path = %path.display(), "the watermarks are damaged: lost records of a log would go unnoticed at this start");
                        Marks::new()
                    },
                    |noted| noted.marks,
                ),
            Err(_) => Marks::new(),
        };
        Self { path, written }
    }

    /// What was noted last.
    #[must_use]
    pub fn marks(&self) -> &Marks {
        &self.written
    }

    /// Notes where the prefixes are now, if that changed.
    ///
    /// # Errors
    /// What the disk says; the note before stays then.
    pub fn write(&mut self, marks: Marks) -> io::Result<()> {
        if marks == self.written {
            return Ok(());
        }
        let noted = Noted { crc32c: checksum(&marks), marks };
        let fresh = self.path.with_extension("new");
        std::fs::write(&fresh, serde_json::to_vec(&noted)?)?;
        std::fs::rename(&fresh, &self.path)?;
        self.written = noted.marks;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use uuid::Uuid;

    #[test]
    fn what_was_noted_is_read_again_and_damage_notes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let marks: Marks = [(PrefixUuid(Uuid::from_u128(1)), Position::new(2, 30))].into();
        Watermarks::open(dir.path()).write(marks.clone()).unwrap();
        assert_eq!(Watermarks::open(dir.path()).marks(), &marks);
        let path = dir.path().join("watermarks");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("30", "20")).unwrap();
        assert!(Watermarks::open(dir.path()).marks().is_empty());
    }
}
