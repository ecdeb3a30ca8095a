//! A member's volume: what of it survives what.

use std::collections::BTreeMap;
use std::path::PathBuf;

use parovoz_dataplane_core::member::MemberRecord;
use parovoz_dataplane_core::types::{PrefixName, PrefixUuid};

use crate::rng::Rng;

/// See the module. Databases are in the engine, under `dir`.
#[derive(Debug)]
pub struct Volume {
    /// uid of its claim.
    pub claim_uid: String,
    /// Folder of its databases.
    pub dir: PathBuf,
    /// What both slots hold, synced.
    pub stored: Option<MemberRecord>,
    /// What a process reads back while the machine stays up.
    pub cached: Option<MemberRecord>,
    /// The present generation of each prefix; switched by a synced rename.
    pub current: BTreeMap<PrefixUuid, (PrefixName, u64)>,
    next_generation: u64,
    /// Nothing can be written.
    pub full: bool,
    /// Nothing that goes to the disk comes back.
    pub hung: bool,
    /// Slowest sync, in microseconds.
    pub slowest_us: u64,
}

impl Volume {
    /// An empty one.
    #[must_use]
    pub fn new(claim_uid: String, number: u64) -> Self {
        Self {
            claim_uid,
            dir: PathBuf::from(format!("/v{number}")),
            stored: None,
            cached: None,
            current: BTreeMap::new(),
            next_generation: 1,
            full: false,
            hung: false,
            slowest_us: 1_500,
        }
    }

    /// A folder for a new copy.
    pub fn next_dir(&mut self) -> (u64, PathBuf) {
        let number = self.next_generation;
        self.next_generation += 1;
        (number, self.generation_dir(number))
    }

    /// The folder of a generation.
    #[must_use]
    pub fn generation_dir(&self, generation: u64) -> PathBuf {
        self.dir.join(format!("gen-{generation}"))
    }

    /// Writes the record into both slots.
    pub fn store(&mut self, record: MemberRecord, synced: bool) {
        if synced {
            self.stored = Some(record.clone());
        }
        self.cached = Some(record);
    }

    /// The machine lost power: what was not synced is gone. The engine's databases are the caller's.
    pub fn lose_power(&mut self) {
        self.cached.clone_from(&self.stored);
    }

    /// How long a sync takes, in microseconds.
    pub fn latency(&self, rng: &mut Rng) -> u64 {
        60 + rng.below(self.slowest_us)
    }
}
