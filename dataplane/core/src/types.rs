//! Positions, epochs, names and reigns. Each is a type of its own, so that a sequence is never taken for an epoch.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The number of a reign. Grows for ever; 0 means "no reign yet".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// A *logical* RocksDB sequence number: the same on every member for the same record.
///
/// The database's own number is this minus the offset in `origin.json`; only the engine knows the difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The sequence that follows.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The last sequence of a batch of `count` records that starts here; `count` must not be 0.
    #[must_use]
    pub const fn last_of(self, count: u32) -> Self {
        Self(self.0 + count as u64 - 1)
    }
}

/// (epoch, sequence) of the last record in a prefix. Compared in that order: a higher epoch wins over any sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    /// Epoch that the record was written in.
    pub epoch: Epoch,
    /// The record's logical sequence; 0 in an empty prefix.
    pub sequence: Sequence,
}

impl Position {
    /// Before the first record.
    pub const ZERO: Self = Self { epoch: Epoch(0), sequence: Sequence(0) };

    /// A position from bare numbers, as they stand on the wire.
    #[must_use]
    pub const fn new(epoch: u64, sequence: u64) -> Self {
        Self { epoch: Epoch(epoch), sequence: Sequence(sequence) }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.epoch, self.sequence)
    }
}

/// Identity of a member's volume. A member is known by it, never by its pod's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DataUuid(pub Uuid);

/// Identity of a prefix: a dropped and re-created prefix of the same name has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PrefixUuid(pub Uuid);

/// Identity of a reign; compared wherever an epoch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReignId(pub Uuid);

/// Why a text is not an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read {what} {text:?}: not a UUID")]
pub struct BadUuid {
    what: &'static str,
    text: String,
}

macro_rules! uuid_text {
    ($type:ident, $what:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
        impl FromStr for $type {
            type Err = BadUuid;
            fn from_str(text: &str) -> Result<Self, BadUuid> {
                Uuid::parse_str(text).map(Self).map_err(|_| BadUuid { what: $what, text: text.to_owned() })
            }
        }
    };
}
uuid_text!(DataUuid, "data_uuid");
uuid_text!(PrefixUuid, "prefix_uuid");
uuid_text!(ReignId, "reign_id");

/// The uid of the `ReplicatedStore` object: the store's identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StoreUid(pub String);

impl fmt::Display for StoreUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a prefix: `[A-Za-z0-9_.-]{1,64}`, or the catalogue's `$catalogue`, which no client can name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PrefixName(Box<str>);

/// Why a text is not a prefix's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("name prefix {0:?}: a name is 1 to 64 of A-Z a-z 0-9 _ . -")]
pub struct BadPrefixName(String);

impl PrefixName {
    /// Longest name, in bytes.
    pub const MAX_LEN: usize = 64;
    /// The name of the catalogue, the system prefix that lists all others.
    pub const CATALOGUE: &'static str = "$catalogue";

    /// Checks and takes a name.
    pub fn new(name: &str) -> Result<Self, BadPrefixName> {
        if Self::is_valid(name.as_bytes()) {
            Ok(Self(name.into()))
        } else {
            Err(BadPrefixName(name.chars().take(80).collect()))
        }
    }

    /// The catalogue's.
    #[must_use]
    pub fn catalogue() -> Self {
        Self(Self::CATALOGUE.into())
    }

    /// Whether these bytes are a name that a client may use. `.` and `..` are not, since names become folders.
    #[must_use]
    pub fn is_valid(name: &[u8]) -> bool {
        !name.is_empty()
            && name.len() <= Self::MAX_LEN
            && name != b"."
            && name != b".."
            && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the catalogue.
    #[must_use]
    pub fn is_catalogue(&self) -> bool {
        &*self.0 == Self::CATALOGUE
    }
}

impl fmt::Display for PrefixName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl TryFrom<String> for PrefixName {
    type Error = BadPrefixName;
    fn try_from(name: String) -> Result<Self, BadPrefixName> {
        if name == Self::CATALOGUE { Ok(Self::catalogue()) } else { Self::new(&name) }
    }
}
impl From<PrefixName> for String {
    fn from(name: PrefixName) -> Self {
        name.0.into()
    }
}

/// The catalogue's prefix_uuid: derived from the store, so that a blank member knows it without asking.
#[must_use]
pub fn catalogue_uuid(store: &StoreUid) -> PrefixUuid {
    PrefixUuid(Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("parovoz catalogue of {store}").as_bytes()))
}

/// How writes are acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// Once the primary has them.
    Async,
    /// Once W replicas have them durably as well.
    Quorum,
}

/// One primary's rule under one immutable configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reign {
    /// Its number.
    pub epoch: Epoch,
    /// Its random identity.
    pub reign_id: ReignId,
    /// The member that takes writes.
    pub primary: DataUuid,
    /// Every member, the primary included.
    pub members: Vec<DataUuid>,
    /// How writes are acknowledged.
    pub mode: Mode,
    /// W: how many replicas must have a write durably before it is acknowledged.
    pub min_sync_replicas: u32,
    /// Of the primary's Lease, in milliseconds.
    pub lease_duration_ms: u64,
}

/// Names a reign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReignRef {
    /// Its number.
    pub epoch: Epoch,
    /// Its identity.
    pub reign_id: ReignId,
}

impl Reign {
    /// The reign's name.
    #[must_use]
    pub fn to_ref(&self) -> ReignRef {
        ReignRef { epoch: self.epoch, reign_id: self.reign_id }
    }

    /// W as it applies: replicas that must hold a write durably before it is acknowledged; 0 in Async.
    #[must_use]
    pub fn required(&self) -> u32 {
        match self.mode {
            Mode::Quorum => self.min_sync_replicas,
            Mode::Async => 0,
        }
    }

    /// Every member but the primary.
    pub fn replicas(&self) -> impl Iterator<Item = DataUuid> + '_ {
        self.members.iter().copied().filter(|member| *member != self.primary)
    }
}

/// Largest sizes that a request may have, in bytes. What is over is refused, never cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Of a key without its prefix.
    pub key: usize,
    /// Of a value.
    pub value: usize,
    /// Of one atomic batch, and of one request.
    pub batch: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { key: 8 << 10, value: 16 << 20, batch: 64 << 20 }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_higher_epoch_wins_over_any_sequence() {
        assert!(Position::new(2, 1) > Position::new(1, u64::MAX));
        assert!(Position::new(2, 2) > Position::new(2, 1));
    }

    #[test]
    fn names_that_would_leave_the_folder_are_refused() {
        for bad in ["", ".", "..", "a/b", "a:b", "$catalogue", "ü", &"x".repeat(65)] {
            assert!(PrefixName::new(bad).is_err(), "{bad}");
        }
        assert!(PrefixName::new("..a-B_9").is_ok());
    }

    #[test]
    fn only_the_store_reads_the_catalogues_name() {
        assert!(PrefixName::try_from(PrefixName::CATALOGUE.to_owned()).unwrap().is_catalogue());
    }
}
