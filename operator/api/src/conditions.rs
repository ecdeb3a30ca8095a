//! The conditions of a store and the closed list of their reasons.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a condition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ConditionType {
    /// Clients can write: a primary serves.
    Available,
    /// The operator is on its way from what is to what was asked for.
    Progressing,
    /// Something that should be there or work does not, though the store may still serve.
    Degraded,
    /// Every replica streams and none is further behind than the warning allows.
    ReplicationHealthy,
    /// A complete replica could take the primary's place.
    FailoverReady,
    /// Every member has its volume and enough room on it.
    StorageHealthy,
    /// The specification asks the operator to change nothing.
    Paused,
    /// Written by another version of the operator.
    #[serde(other)]
    Unknown,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It cannot be told.
    #[serde(other)]
    Unknown,
}

/// Why a condition is as it is. One list for all conditions, so that a metric or an alert can name each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ConditionReason {
    /// Available: the primary reports that it serves.
    PrimaryServing,
    /// Available: the store has no primary yet; members are being made or have not answered.
    FirstReignForming,
    /// Available: a member was chosen and has not begun to serve yet.
    PrimaryPromoting,
    /// Available, ReplicationHealthy: the primary's pod or process does not answer.
    PrimaryUnreachable,
    /// Available: the primary answers and cannot serve; the message says why.
    PrimaryNotServing,
    /// Available: the primary serves and fewer replicas than it needs are in reach: writes wait.
    QuorumLost,
    /// Available: members are asked what they have, so that the next primary lacks nothing.
    Sealing,
    /// Progressing: everything asked for is there.
    Converged,
    /// Progressing: pods or volumes are being made.
    CreatingMembers,
    /// Progressing: members are being chosen or told their roles.
    ChangingReign,
    /// Progressing: more members were asked for.
    ScalingUp,
    /// Progressing: fewer members were asked for.
    ScalingDown,
    /// Progressing, ReplicationHealthy: a member copies data from another.
    Bootstrapping,
    /// Progressing: something must happen first; status.waiting says what.
    Waiting,
    /// Degraded: all members are there and work.
    AsExpected,
    /// Degraded: a member that was asked for does not answer.
    MemberUnreachable,
    /// Degraded: a member keeps its data closed; its reason says why.
    MemberParked,
    /// Degraded: a member has no usable copy yet.
    MemberIncomplete,
    /// Degraded: too few replicas were left and onQuorumLoss is Degrade: writes are acknowledged without them.
    ServingWithoutQuorum,
    /// Degraded: the specification cannot be carried out; the message says what to change.
    SpecificationInvalid,
    /// ReplicationHealthy: every replica streams.
    AllStreaming,
    /// ReplicationHealthy, FailoverReady: the store has one member only.
    SingleMember,
    /// ReplicationHealthy: a replica is further behind than replication.stream.lagWarning.
    LagAboveWarning,
    /// ReplicationHealthy: a replica does not stream.
    ReplicaDisconnected,
    /// ReplicationHealthy: a replica will soon fall out of the kept write-ahead log and need a new copy.
    WindowClosing,
    /// FailoverReady: at least one replica is complete and streams.
    ReplicaInStanding,
    /// FailoverReady: no replica is complete and streams.
    NoReplicaInStanding,
    /// FailoverReady: a failover would find what was acknowledged only if one more member answered.
    SealQuorumOutOfReach,
    /// FailoverReady: every replica is further behind than failover.maxLag.
    LagAboveLimit,
    /// FailoverReady: spec.failover.enabled is false.
    FailoverDisabled,
    /// FailoverReady: the primary changed less than failover.cooldown ago.
    Cooldown,
    /// FailoverReady: the primary changed failover.maxPerHour times within an hour.
    FailoverBudgetSpent,
    /// FailoverReady: a new reign is under way.
    ReignUnderWay,
    /// StorageHealthy: every volume is bound and has room.
    VolumesHealthy,
    /// StorageHealthy: a volume claim is not bound.
    ClaimPending,
    /// StorageHealthy: a volume claim is being deleted or is gone.
    ClaimLost,
    /// StorageHealthy: a volume claim is a left-over of another store of the same name.
    ForeignClaim,
    /// StorageHealthy: less than a tenth of a volume is free.
    DiskAlmostFull,
    /// StorageHealthy: a volume could not be enlarged.
    ResizeRefused,
    /// Paused: spec.paused is true.
    PausedBySpecification,
    /// Paused: spec.paused is false.
    NotPaused,
    /// Written by another version of the operator.
    #[serde(other)]
    Unknown,
}

/// One aspect of the store's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What the condition is about.
    #[serde(rename = "type")]
    pub type_: ConditionType,
    /// Whether it holds: True, False or Unknown.
    pub status: ConditionStatus,
    /// Why, as one word of a closed list.
    pub reason: ConditionReason,
    /// Why, for people.
    pub message: String,
    /// The generation of the specification that this was decided for.
    pub observed_generation: i64,
    /// When the status last changed.
    pub last_transition_time: Time,
}
