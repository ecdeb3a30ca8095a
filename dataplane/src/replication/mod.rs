//! Replication: serves followers, follows an upstream, acknowledges to the primary, copies whole prefixes.
//!
//! ```text
//! upstream:  ring or WAL -> sender -----frames-----> session -> core::follower -> apply threads   :follower
//!                                                                                      |
//! primary:   ack table <----------------acknowledgements (straight)--------------- ack client
//! source:    snapshots ----------------------files-------------------------------> bootstrap
//! ```
//!
//! Invariants: nothing here blocks a writer; every queue is bounded by credit, by a channel's size or by the number of
//! prefixes; a batch of the catalogue is acknowledged only after [`CatalogueHook::applied`] returned.

mod ack_client;
mod apply;
mod bootstrap;
mod catchup;
mod client;
pub mod dirs;
mod fetch;
pub mod holds;
mod parcel;
mod progress;
mod sender;
mod server;
mod session;
mod snapshots;
mod staging;
pub mod stats;
pub(crate) mod tails;
#[cfg(test)]
mod tests;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use parovoz_dataplane_core::acks::{AckTable, FollowerProgress, Present, Retention};
use parovoz_dataplane_core::budget::TokenBucket;
use parovoz_dataplane_core::follower::Own;
use parovoz_dataplane_core::role::BeatOut;
use parovoz_dataplane_core::types::{DataUuid, Position, PrefixUuid, Reign, ReignRef, Sequence};
use parovoz_engine::{Engine, EngineError};
use parovoz_proto::{MIN_PROTOCOL_VERSION, PROTOCOL_VERSION};

pub use self::client::Follower;
pub(crate) use self::client::by_name_or_ip;
pub use self::dirs::PrefixDirs;
pub use self::holds::{Hold, Holds, Owner};
pub use self::progress::{BootstrapProgress, FollowerStatus, SessionPhase};
pub use self::server::serve;
pub use self::stats::ReplicationStats;
use crate::clock;
use crate::config::Durability;
use crate::store::prefix::Prefix;
use crate::store::retention::Needs;
use crate::store::ring::RingEntry;
use crate::store::{Endpoint, Store};

/// What the catalogue's owner does with records of the catalogue that come from the upstream.
pub trait CatalogueHook: Send + Sync + std::fmt::Debug {
    /// A batch of the catalogue was applied: creates and drops prefixes *before* the batch is acknowledged. Runs on an apply
    /// thread and may block on the disk.
    ///
    /// # Errors
    /// A text for people; the process ends then and repairs itself at its start.
    fn applied(&self, catalogue: &Prefix, entry: &RingEntry) -> Result<(), String>;

    /// The catalogue's copy was replaced as a whole: does the same for everything in it. If the one before had `diverged`,
    /// what the new one does not list never was in the store: it is set aside. Runs on a blocking thread.
    ///
    /// # Errors
    /// As [`CatalogueHook::applied`].
    fn replaced(&self, catalogue: &Prefix, diverged: bool) -> Result<(), String>;

    /// A prefix was dropped while it was copied: sets aside what was put in its place after that, if anything was. Runs on a
    /// blocking thread.
    ///
    /// # Errors
    /// What the disk says; the next start does it.
    fn forget(&self, dropped: &Prefix) -> Result<(), String>;
}

/// What replication needs of the member's state. All calls may block on the disk and come from blocking threads.
pub trait MemberHooks: Send + Sync + std::fmt::Debug {
    /// A newer reign was met at the upstream: promises it durably in both slots, puts it into the store's role, and only then
    /// returns.
    ///
    /// # Errors
    /// Why it is not promised; nothing of that reign is accepted then.
    fn promise(&self, reign: &Reign) -> Result<(), String>;

    /// Raises floors of prefixes durably, before their copies are touched. A floor never sinks.
    ///
    /// # Errors
    /// A text for people; the bootstrap waits then.
    fn raise_floors(&self, floors: &[(PrefixUuid, Position)]) -> Result<(), String>;

    /// A prefix's floor, if it has one: below it nothing is acknowledged.
    fn floor(&self, prefix: PrefixUuid) -> Option<Position>;

    /// The beat that this primary sends to a replica now; `None` = none, its disk does not work. Never blocks, as all below.
    fn beat(&self) -> Option<BeatOut>;

    /// A beat of the primary itself came, straight from it.
    fn heard(&self, reign: ReignRef, sent_at_ms: u64);

    /// The beat that this replica echoes as its promise; 0 = none.
    fn echo(&self) -> u64;

    /// A replica echoed a beat of this primary.
    fn echoed(&self, member: DataUuid, reign: ReignRef, sent_at_ms: u64);

    /// Acknowledgements came in.
    fn acked(&self);

    /// What is in memory and on disk may differ: ends the process.
    fn fatal(&self, cause: &str);
}

impl Needs for ReplicationCtx {
    fn needed_after(&self, prefix: PrefixUuid) -> Option<Sequence> {
        self.holds.lock().oldest_needed(prefix, clock::boot_ms())
    }

    fn remove_unneeded(
        &self,
        prefix: PrefixUuid,
        end: Sequence,
        anyway: bool,
        remove: &mut dyn FnMut() -> Result<(), EngineError>,
    ) -> Result<bool, EngineError> {
        // Kept until it is removed: who holds looks afterwards what is there.
        let holds = self.holds.lock();
        let needed = holds.oldest_needed(prefix, clock::boot_ms()).is_some_and(|after| after.next() < end);
        if needed && !anyway {
            return Ok(false);
        }
        remove().map(|()| true)
    }
}

/// Times that tests shorten.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Between beats of a stream.
    pub heartbeat: Duration,
    /// Between a primary's beats to a replica, which promises rest on: several within the time that a promise counts.
    pub pulse: Duration,
    /// A follower that takes nothing for so long is cut.
    pub send_deadline: Duration,
    /// An upstream that says nothing for so long is given up.
    pub silence: Duration,
    /// Connecting and the first answer.
    pub connect: Duration,
    /// First and longest pause between sessions, in milliseconds.
    pub backoff_ms: (u64, u64),
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            pulse: Duration::from_millis(300),
            send_deadline: Duration::from_secs(30),
            silence: Duration::from_secs(10),
            connect: Duration::from_secs(5),
            backoff_ms: (100, 5_000),
        }
    }
}

/// What the parts of replication share.
#[derive(Debug)]
pub struct ReplicationCtx {
    /// What this member holds.
    pub store: Arc<Store>,
    /// Opens databases.
    pub engine: Arc<dyn Engine>,
    /// Where files go.
    pub dirs: Arc<dyn PrefixDirs>,
    /// The member's state.
    pub member: Arc<dyn MemberHooks>,
    /// The catalogue's owner.
    pub catalogue: Arc<dyn CatalogueHook>,
    /// Where others reach this member.
    pub advertise: Endpoint,
    /// Who has what; used while this member is the primary.
    pub acks: Mutex<AckTable>,
    /// Who needs which WAL of this member.
    pub holds: Mutex<Holds>,
    /// Counters.
    pub stats: ReplicationStats,
    /// Times.
    pub tuning: Tuning,
    /// Everyone that this member streams from now, the nearest first.
    upstreams: ArcSwap<Vec<DataUuid>>,
    /// Bytes a second to all followers together.
    total_rate: Mutex<TokenBucket>,
}

impl ReplicationCtx {
    /// With the usual times.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        engine: Arc<dyn Engine>,
        dirs: Arc<dyn PrefixDirs>,
        member: Arc<dyn MemberHooks>,
        catalogue: Arc<dyn CatalogueHook>,
        advertise: Endpoint,
    ) -> Self {
        let total_rate = store.settings.load().max_total_bytes_per_second;
        let total_rate = Mutex::new(TokenBucket::new(total_rate, clock::boot_ms()));
        Self {
            store,
            engine,
            dirs,
            member,
            catalogue,
            advertise,
            acks: Mutex::default(),
            holds: Mutex::default(),
            stats: ReplicationStats::default(),
            tuning: Tuning::default(),
            upstreams: ArcSwap::default(),
            total_rate,
        }
    }

    /// The followers' progress; empty unless this member is the primary.
    #[must_use]
    pub fn follower_reports(&self) -> Vec<FollowerProgress> {
        if !self.store.role().is_primary {
            return Vec::new();
        }
        let settings = self.store.settings.load();
        let retention = Retention { seconds: settings.wal_retention_seconds, bytes: settings.wal_retention_max_bytes };
        let prefixes = self.store.prefixes();
        let at = |p: &Arc<Prefix>| Present { prefix: p.uuid, sequence: p.applied(), bytes_total: p.bytes_total() };
        let present: Vec<_> = prefixes.by_uuid.values().map(at).collect();
        self.acks.lock().follower_reports(clock::boot_ms(), retention, &present)
    }

    /// When a hold that is made or renewed now ends.
    fn hold_expiry_ms(&self) -> u64 {
        clock::boot_ms() + self.store.settings.load().hold_timeout_seconds * 1000
    }

    fn syncs(&self) -> bool {
        self.store.settings.load().durability == Durability::Sync
    }

    /// What this member is, for a hello to `wanted`.
    fn own(&self, wanted: Option<DataUuid>) -> Own {
        let mut path = vec![self.store.data_uuid];
        path.extend(self.upstreams.load().iter());
        Own {
            version: PROTOCOL_VERSION,
            min_version: MIN_PROTOCOL_VERSION,
            store: self.store.store_uid.clone(),
            data_uuid: self.store.data_uuid,
            reign: self.store.role().promise(),
            wanted,
            path,
        }
    }

    /// Whether a prefix has not yet reached its floor here: it is neither acknowledged nor a source then.
    fn is_below_floor(&self, prefix: &Prefix) -> bool {
        self.member.floor(prefix.uuid).is_some_and(|floor| prefix.position_at(prefix.applied()) < floor)
    }

    /// Largest batch that may come: the limit of requests with room for records' overhead.
    fn largest_batch(&self) -> u64 {
        (self.store.limits.batch as u64).saturating_mul(2).max(1 << 20)
    }
}
