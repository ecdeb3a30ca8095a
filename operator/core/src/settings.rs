//! The specification with its texts turned into numbers, and the file that members read.

use std::time::Duration;

use parovoz_api::{Durability, ParseUnitError, PrefixCreation, ReplicatedStoreSpec};
use serde::Serialize;

/// The specification, parsed. Made once for each plan, so that a bad text is found before anything is done.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Members wanted, 1 to 9.
    pub replicas: u32,
    /// Size of each volume in bytes.
    pub storage_bytes: u64,
    /// Replicas that must have a write durably before it is acknowledged.
    pub min_sync_replicas: u32,
    /// Lag from which a replica is reported, in sequences.
    pub lag_warning_sequences: u64,
    /// Lag from which a replica is reported, in milliseconds.
    pub lag_warning_ms: u64,
    /// When another member takes the primary's place by itself.
    pub failover: Failover,
    /// What members read from their file.
    pub member: MemberConfig,
}

/// When another member takes the primary's place by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failover {
    /// False: only if a person asks for it.
    pub enabled: bool,
    /// How long an absence is waited out.
    pub delay: Duration,
    /// For how long a lease of a new reign holds, in milliseconds.
    pub lease_duration_ms: i64,
    /// Records that a candidate may lack where writes wait for no replica.
    pub max_lag: u64,
    /// Pause after a failover.
    pub cooldown: Duration,
    /// Failovers within an hour.
    pub max_per_hour: usize,
}

/// The file that every member reads, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberConfig {
    /// `Sync` or `Os`.
    pub durability: Durability,
    /// How long write-ahead log is kept at least.
    pub wal_retention_seconds: u64,
    /// Size at which the oldest log goes; the member's own share of its volume unless set.
    pub wal_retention_max_bytes: Option<u64>,
    /// How far a stream reads ahead at least. Left out like the other limits that came later as long as nobody sets it: a
    /// member of an older version refuses a file with names that it does not know.
    #[serde(skip_serializing_if = "is_default_min_batch")]
    pub min_batch_bytes: u64,
    /// How far it reads ahead at most.
    pub max_batch_bytes: u64,
    /// Limit of each stream; 0 = none.
    pub max_bytes_per_second: u64,
    /// Limit of all streams of a member together; 0 = none.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_total_bytes_per_second: u64,
    /// Limit of one copy; 0 = none.
    pub bootstrap_max_bytes_per_second: u64,
    /// How long a hold lasts unless it is renewed.
    pub hold_timeout_seconds: u64,
    /// `OnWrite` or `Declared`.
    pub prefix_create: PrefixCreation,
    /// How many prefixes the store may have.
    pub max_prefixes: u64,
    /// Lag from which a member logs a warning.
    pub lag_warning_sequences: u64,
    /// The limit on restarts.
    pub recovery: RecoveryConfig,
}

/// The limit on restarts of a member's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryConfig {
    /// Starts allowed within the window.
    pub max_attempts: u64,
    /// The window.
    pub window_seconds: u64,
    /// Pause before the second and later starts.
    pub backoff_seconds: u64,
}

impl Settings {
    /// Parse a specification.
    ///
    /// # Errors
    /// A length of time or a size is not one. Terminal until the specification changes.
    pub fn parse(spec: &ReplicatedStoreSpec) -> Result<Self, ParseUnitError> {
        let replication = &spec.replication;
        let stream = &replication.stream;
        let lag_warning_sequences = unsigned(stream.lag_warning.sequences);
        Ok(Self {
            replicas: spec.replicas.clamp(1, 9).unsigned_abs(),
            storage_bytes: spec.storage.size.bytes()?,
            min_sync_replicas: replication.min_sync_replicas.clamp(0, 8).unsigned_abs(),
            lag_warning_sequences,
            lag_warning_ms: u64::try_from(stream.lag_warning.time.duration()?.as_millis()).unwrap_or(u64::MAX),
            failover: Failover {
                enabled: spec.failover.enabled,
                delay: spec.failover.delay.duration()?,
                lease_duration_ms: i64::try_from(spec.failover.lease_duration.duration()?.as_millis())
                    .unwrap_or(60_000)
                    .clamp(1_000, 60_000),
                max_lag: unsigned(spec.failover.max_lag),
                cooldown: spec.failover.cooldown.duration()?,
                max_per_hour: usize::try_from(spec.failover.max_per_hour).unwrap_or(1),
            },
            member: MemberConfig {
                durability: replication.durability,
                wal_retention_seconds: replication.wal_retention.time.duration()?.as_secs(),
                wal_retention_max_bytes: match &replication.wal_retention.max_size {
                    Some(size) => Some(size.bytes()?),
                    None => None,
                },
                min_batch_bytes: unsigned(stream.min_batch_bytes),
                max_batch_bytes: unsigned(stream.max_batch_bytes),
                max_bytes_per_second: unsigned(stream.max_bytes_per_second),
                max_total_bytes_per_second: unsigned(stream.max_total_bytes_per_second),
                bootstrap_max_bytes_per_second: unsigned(spec.bootstrap.max_bytes_per_second),
                hold_timeout_seconds: spec.bootstrap.hold_timeout.duration()?.as_secs(),
                prefix_create: spec.prefixes.create,
                max_prefixes: unsigned(i64::from(spec.prefixes.max_prefixes)),
                lag_warning_sequences,
                recovery: RecoveryConfig {
                    max_attempts: unsigned(i64::from(spec.recovery.max_attempts)),
                    window_seconds: spec.recovery.window.duration()?.as_secs(),
                    backoff_seconds: spec.recovery.backoff.duration()?.as_secs(),
                },
            },
        })
    }
}

impl MemberConfig {
    /// The file, as it stands in the ConfigMap.
    #[must_use]
    pub fn file(&self) -> String {
        // Numbers, enums and structs: nothing in it could fail to become JSON.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// The fingerprint by which a member says that it uses this file: CRC-32C of its bytes, so that neither side has to know
    /// what the other makes of them.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        format!("{:08x}", crc32c::crc32c(self.file().as_bytes()))
    }
}

/// What a member takes without being told.
const DEFAULT_MIN_BATCH_BYTES: u64 = 64 << 10;

// serde asks by reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_default_min_batch(bytes: &u64) -> bool {
    *bytes == DEFAULT_MIN_BATCH_BYTES
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Hash of those parts of the specification that take effect only in a new pod. Only what a user wrote goes in: a new
/// operator with another default image must not ask for restarts.
#[must_use]
pub fn pod_hash(spec: &ReplicatedStoreSpec) -> String {
    let text = serde_json::json!([spec.image, spec.image_pull_policy, spec.template]).to_string();
    // FNV-1a: short, and the same in every build for ever; nothing here has to resist an attacker.
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}
