//! The parts of a store's specification that say how data is kept and replicated.

use kube::KubeSchema;
use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{ByteSize, TimeSpan};

/// Whether a write waits for replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// A write is acknowledged once the primary has it. A lost primary loses at most the lag at that moment.
    #[default]
    Async,
    /// A write is acknowledged once minSyncReplicas replicas have it durably.
    Quorum,
}

/// What becomes of writes while too few replicas are in reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum OnQuorumLoss {
    /// Writes wait until enough replicas are back.
    #[default]
    Block,
    /// The primary acknowledges alone, which status and events show before it begins, until enough are back.
    Degrade,
}

/// When a write counts as kept on a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Durability {
    /// After fsync; groups of writes share one.
    #[default]
    Sync,
    /// Once handed to the operating system: survives the process, not the machine.
    Os,
}

/// Who streams from whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Topology {
    /// Every replica streams from the primary.
    #[default]
    Star,
    /// Each replica streams from the one before it, in the order of their names; the first from the primary.
    Chain,
}

/// What a first write to an unknown prefix does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PrefixCreation {
    /// It makes the prefix.
    #[default]
    OnWrite,
    /// It is refused: prefixes are made through the administration port only.
    Declared,
}

/// What becomes of the volumes when the store, or a member of it, is removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// Volume claims stay until a person deletes them.
    #[default]
    Retain,
    /// Volume claims go with the store, and with a member that is scaled away.
    Delete,
}

/// The volume of each member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)",
    "storageClassName cannot change: make a new store with the other class and copy the data into it"
))]
pub struct StorageSpec {
    /// Size of each member's volume, such as 10Gi. It may grow where the storage class allows it, never shrink.
    #[x_kube(validation = (
        "quantity(self).compareTo(quantity(oldSelf)) >= 0",
        "storage.size cannot shrink: keep the present size, or make a smaller store and copy the data into it"
    ))]
    pub size: ByteSize,
    /// Storage class of the volumes; the cluster's default class unless set. Cannot change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

/// How writes reach the replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::from((
        "self.mode != 'Quorum' || self.durability == 'Sync'",
        "mode Quorum promises durable copies: set replication.durability to Sync, or replication.mode to Async"
    )),
    Rule::from((
        "self.mode != 'Quorum' || self.minSyncReplicas >= 1",
        "mode Quorum waits for at least one replica: set replication.minSyncReplicas to 1 or more, or replication.mode to Async"
    )),
    Rule::from((
        "self.mode != 'Async' || self.minSyncReplicas == 0",
        "mode Async waits for no replica: set replication.minSyncReplicas to 0, or replication.mode to Quorum"
    )),
    Rule::from((
        "self.mode == 'Quorum' || self.onQuorumLoss == 'Block'",
        "onQuorumLoss Degrade means nothing without a quorum: set replication.mode to Quorum, or leave onQuorumLoss out"
    ))
]))]
pub struct ReplicationSpec {
    /// Async: a write is acknowledged once the primary has it. Quorum: once minSyncReplicas replicas have it durably.
    pub mode: Mode,
    /// How many replicas must have a write durably before it is acknowledged. 0 in Async, at least 1 in Quorum, and
    /// always below replicas.
    #[schemars(range(min = 0, max = 8))]
    pub min_sync_replicas: i32,
    /// Block: while too few replicas are in reach, writes wait. Degrade: the primary goes on alone until they are back.
    pub on_quorum_loss: OnQuorumLoss,
    /// Sync: a write counts after fsync. Os: once handed to the operating system, which a crash of the machine loses.
    pub durability: Durability,
    /// Star: every replica streams from the primary. Chain: each from the one before it.
    pub topology: Topology,
    /// How long write-ahead log is kept that nobody needs any more: the window in which a replica may come back without
    /// a new copy.
    pub wal_retention: WalRetention,
    /// Limits of the streams to the replicas.
    pub stream: StreamSpec,
}

/// How long write-ahead log is kept for replicas that are away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WalRetention {
    /// Time for which log is kept at least, such as 2h.
    pub time: TimeSpan,
    /// Size at which the oldest log goes even if it is younger. A quarter of the volume unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size: Option<ByteSize>,
}

impl Default for WalRetention {
    fn default() -> Self {
        Self { time: TimeSpan("2h".into()), max_size: None }
    }
}

/// Limits of the streams to the replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [Rule::from((
    "self.minBatchBytes <= self.maxBatchBytes",
    "replication.stream.minBatchBytes must not exceed maxBatchBytes: lower it, or raise maxBatchBytes"
))]))]
pub struct StreamSpec {
    /// How far a stream to a replica reads ahead at least, in bytes. In between it follows round trip and apply time.
    #[schemars(range(min = 65_536, max = 67_108_864))]
    pub min_batch_bytes: i64,
    /// How far a stream to a replica reads ahead at most, in bytes.
    #[schemars(range(min = 65_536, max = 67_108_864))]
    pub max_batch_bytes: i64,
    /// Limit of the stream to each replica, in bytes a second. 0 = none.
    #[schemars(range(min = 0, max = 1_000_000_000_000_i64))]
    pub max_bytes_per_second: i64,
    /// Limit of all streams from one member together, in bytes a second. 0 = none.
    #[schemars(range(min = 0, max = 1_000_000_000_000_i64))]
    pub max_total_bytes_per_second: i64,
    /// From which lag on a replica is reported in conditions and events.
    pub lag_warning: LagWarning,
}

impl Default for StreamSpec {
    fn default() -> Self {
        Self {
            min_batch_bytes: 64 << 10,
            max_batch_bytes: 8 << 20,
            max_bytes_per_second: 0,
            max_total_bytes_per_second: 0,
            lag_warning: LagWarning::default(),
        }
    }
}

/// From which lag on a replica is reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LagWarning {
    /// Sequences that a replica may be behind before it is reported.
    #[schemars(range(min = 1, max = 1_000_000_000_000_i64))]
    pub sequences: i64,
    /// Time that a replica may be behind before it is reported.
    pub time: TimeSpan,
}

impl Default for LagWarning {
    fn default() -> Self {
        Self { sequences: 10_000, time: TimeSpan::seconds(30) }
    }
}

/// How a member gets its first copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BootstrapSpec {
    /// Limit of one copy, in bytes a second. 0 = none.
    #[schemars(range(min = 0, max = 1_000_000_000_000_i64))]
    pub max_bytes_per_second: i64,
    /// How long the source keeps log and files for a copy that no longer renews its hold. At least 1s.
    #[schemars(extend("x-kubernetes-validations" = [Rule::from((
        "duration(self).getSeconds() >= 1",
        "bootstrap.holdTimeout must be at least 1s, otherwise a copy loses what it still has to read: lengthen it"
    ))]))]
    pub hold_timeout: TimeSpan,
}

impl Default for BootstrapSpec {
    fn default() -> Self {
        Self { max_bytes_per_second: 0, hold_timeout: TimeSpan::seconds(600) }
    }
}

/// How prefixes, the independent databases of a store, come about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PrefixesSpec {
    /// OnWrite: the first write to an unknown prefix makes it. Declared: it is refused.
    pub create: PrefixCreation,
    /// How many prefixes the store may have. A write that would make one more is refused.
    #[schemars(range(min = 1, max = 10_000))]
    pub max_prefixes: i32,
}

impl Default for PrefixesSpec {
    fn default() -> Self {
        Self { create: PrefixCreation::default(), max_prefixes: 1_000 }
    }
}

/// How often a member's process may be started anew before it stays up with its data closed and says why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [Rule::from((
    "duration(self.window).getSeconds() > self.maxAttempts * duration(self.backoff).getSeconds()",
    "recovery.window must be longer than recovery.maxAttempts x recovery.backoff, otherwise the limit is never reached: lengthen the window, or lower one of the others"
))]))]
pub struct RecoverySpec {
    /// Starts allowed within the window.
    #[schemars(range(min = 1, max = 100))]
    pub max_attempts: i32,
    /// The time over which starts are counted.
    pub window: TimeSpan,
    /// Pause before the second and every later start.
    pub backoff: TimeSpan,
}

impl Default for RecoverySpec {
    fn default() -> Self {
        Self { max_attempts: 5, window: TimeSpan::seconds(300), backoff: TimeSpan::seconds(15) }
    }
}

/// When another member takes the primary's place by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FailoverSpec {
    /// False: no member takes the primary's place unless a person asks for it. The same member still leads again after a
    /// restart.
    pub enabled: bool,
    /// How long an unannounced absence of the primary is waited out before anything is done about it. At most 1h.
    #[schemars(extend("x-kubernetes-validations" = [Rule::from((
        "duration(self).getSeconds() <= 3600",
        "failover.delay must be at most 1h: to keep members from taking over, set failover.enabled to false"
    ))]))]
    pub delay: TimeSpan,
    /// For how long a primary that waits for no replica may go on after its last renewal of its Lease; also for how long a
    /// failover waits that has no other proof of its end. 3s to 60s. A change begins a new reign.
    #[schemars(extend("x-kubernetes-validations" = [Rule::from((
        "duration(self).getSeconds() >= 3 && duration(self).getSeconds() <= 60",
        "failover.leaseDuration must be from 3s to 60s: shorter ones are lost by a slow API server, longer ones delay every failover without quorum"
    ))]))]
    pub lease_duration: TimeSpan,
    /// Records that a candidate may lack, as far as it knows, where writes wait for no replica. A failover that would lose
    /// more waits for a person.
    #[schemars(range(min = 0, max = 1_000_000_000_000_i64))]
    pub max_lag: i64,
    /// Pause after a failover before the next one.
    #[schemars(extend("x-kubernetes-validations" = [Rule::from((
        "duration(self).getSeconds() <= 3600",
        "failover.cooldown must be at most 1h: to allow fewer failovers, lower failover.maxPerHour"
    ))]))]
    pub cooldown: TimeSpan,
    /// Failovers within an hour; the next one waits for a person.
    #[schemars(range(min = 1, max = 60))]
    pub max_per_hour: i32,
}

impl Default for FailoverSpec {
    fn default() -> Self {
        Self {
            enabled: true,
            delay: TimeSpan::seconds(0),
            lease_duration: TimeSpan::seconds(10),
            max_lag: 100_000,
            cooldown: TimeSpan::seconds(30),
            max_per_hour: 6,
        }
    }
}
