//! What is: the operator's view of a store. Only a view; decisions are kept in `StoreReign`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::Condition;
use crate::units::TimeSpan;

/// The store in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum StorePhase {
    /// Members are being made; there is no primary yet.
    #[default]
    Pending,
    /// A primary was chosen and does not serve yet.
    Promoting,
    /// The primary serves and every member works.
    Healthy,
    /// The primary serves; something else does not work.
    Degraded,
    /// The primary does not serve.
    Unavailable,
    /// Written by another version of the operator.
    #[serde(other)]
    Unknown,
}

/// What the operator sees of one store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicatedStoreStatus {
    /// The generation of the specification that this status is about.
    #[serde(default)]
    pub observed_generation: i64,
    /// The store in one word: Pending, Promoting, Healthy, Degraded or Unavailable.
    #[serde(default)]
    pub phase: StorePhase,
    /// The number of the present reign. Grows with every new one.
    #[serde(default)]
    pub epoch: i64,
    /// The member that takes writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
    /// Members whose pods exist.
    #[serde(default)]
    pub replicas: i32,
    /// Members that serve: the primary, and replicas that are complete and stream.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Label selector of the members' pods, for the scale subresource.
    #[serde(default)]
    pub selector: String,
    /// How far the slowest replica is behind. Absent without replicas or without a primary to ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<Lag>,
    /// Each member.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub members: Vec<MemberStatus>,
    /// The last change of primary that was not planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failover: Option<FailoverReceipt>,
    /// Why something that was asked for has not happened yet, and the command that helps.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub waiting: Vec<Waiting>,
    /// Available, Progressing, Degraded, ReplicationHealthy, FailoverReady, StorageHealthy, Paused.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}

/// How far a replica is behind the primary, measured from what it acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Lag {
    /// Records, summed over all prefixes.
    pub sequences: i64,
    /// Bytes, summed over all prefixes.
    pub bytes: i64,
    /// Time, of the prefix that is furthest behind.
    pub time: TimeSpan,
}

/// What a member is at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum MemberRole {
    /// It takes writes.
    Primary,
    /// It follows another member.
    Replica,
    /// It has not said.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What a member does at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum MemberPhase {
    /// Its pod or volume is being made.
    Creating,
    /// It runs and does not answer the operator.
    Unreachable,
    /// Its volume has no data; it waits for its first orders.
    Blank,
    /// It has data and no valid orders, or its upstream is gone: read-only.
    Waiting,
    /// It copies at least one prefix from another member.
    Bootstrapping,
    /// It follows and is not close yet.
    CatchingUp,
    /// It follows closely.
    Streaming,
    /// It is the primary and serves.
    Serving,
    /// It is up with its data closed.
    Parked,
    /// It has not said.
    #[default]
    #[serde(other)]
    Unknown,
}

/// A place in history: compared by epoch, then by sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Position {
    /// The highest epoch of any prefix.
    pub epoch: i64,
    /// The sum of the sequences of all prefixes.
    pub sequence: i64,
}

/// One member.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// The member's pod.
    pub name: String,
    /// The node it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The identity that is kept on its volume. A new one means a new, empty volume.
    #[serde(default, rename = "dataUUID", skip_serializing_if = "Option::is_none")]
    pub data_uuid: Option<String>,
    /// Primary or Replica, as the member says itself.
    #[serde(default)]
    pub role: MemberRole,
    /// What it does at present.
    #[serde(default)]
    pub phase: MemberPhase,
    /// The member that it streams from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// Where it is in history: highest epoch, and the sum of the sequences of its prefixes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// How far it is behind the primary. Absent on the primary and when nobody can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<Lag>,
    /// Time left until it falls out of the kept write-ahead log. Absent = nothing threatens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_left: Option<TimeSpan>,
    /// The copy under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<BootstrapStatus>,
    /// Starts of its process in the present window of recovery.
    #[serde(default)]
    pub restarts: i32,
    /// True while its process still runs with an older configuration than the present one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub config_outdated: bool,
    /// Why the phase is what it is. Absent when nothing is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A copy under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BootstrapStatus {
    /// How the copy is made.
    pub method: String,
    /// How much of it is done, in percent.
    pub percent: i32,
    /// Bytes copied so far.
    pub bytes: i64,
    /// Bytes to copy in all.
    pub bytes_total: i64,
    /// Time left at the present rate. Absent while it cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta: Option<TimeSpan>,
}

/// The last unplanned change of primary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailoverReceipt {
    /// When the new reign was written.
    pub at: MicroTime,
    /// The number of the new reign.
    pub epoch: i64,
    /// The member that was primary.
    pub from: String,
    /// dataUUID of the member that was primary.
    #[serde(default, rename = "fromDataUUID", skip_serializing_if = "String::is_empty")]
    pub from_data_uuid: String,
    /// The member that took its place.
    pub to: String,
    /// Why: the cause of the new reign.
    pub cause: String,
    /// How long each phase took.
    #[serde(default)]
    pub phases: FailoverPhases,
    /// What was lost, as one word: None, Ranges or Unknown.
    #[serde(default)]
    pub outcome: LossOutcome,
    /// What was lost, for people: `none`, the ranges, or `unknown after (epoch, sequence)` of the new primary.
    pub lost: String,
    /// The records that the old primary had and the new one lacks, once the old one was found. At most 512 are listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    pub ranges: Vec<LostRange>,
}

/// How long each phase of a failover took, in milliseconds. Absent while it is not over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailoverPhases {
    /// From the first sign of trouble to the decision to begin a new reign.
    #[serde(default)]
    pub suspect: i64,
    /// Until enough members had sealed, the positions were decided and missing records fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<i64>,
    /// Until the new primary served every prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promote: Option<i64>,
    /// From the first sign of trouble until the new primary served every prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<i64>,
}

/// What a failover lost, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum LossOutcome {
    /// Nothing: the old primary had sealed, or was found with nothing more.
    None,
    /// The listed records.
    Ranges,
    /// Not known until the old primary is found.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Records of one prefix that the old primary had and the new one lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LostRange {
    /// The prefix.
    pub prefix: String,
    /// The epoch that they were written in.
    pub epoch: i64,
    /// The first sequence.
    pub first: i64,
    /// The last sequence.
    pub last: i64,
    /// Where they are kept, in the folder `detached` of the old primary's volume: names that begin so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub exported: String,
}

/// Why something waits, as one word of a closed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum WaitingReason {
    /// A member must answer first.
    MemberMustAnswer,
    /// The primary must come back.
    PrimaryMustReturn,
    /// Replicas must be complete and stream first.
    ReplicasMustStream,
    /// Too few members answer to find out what was acknowledged; nobody may lead before.
    SealQuorumOutOfReach,
    /// It is not proven yet that the old primary acknowledges nothing more.
    FenceOpen,
    /// Too few members know their position in a prefix.
    VotesMissing,
    /// Enough is known, and no member that could lead has sealed.
    CandidateMissing,
    /// The next primary fetches records from other members.
    PullingTails,
    /// The new primary leads and waits for enough replicas to join it.
    ReplicasMustJoin,
    /// The only candidate is further behind than failover.maxLag.
    LagAboveLimit,
    /// The primary is gone and spec.failover.enabled is false.
    FailoverDisabled,
    /// The primary changed less than failover.cooldown ago.
    Cooldown,
    /// The primary changed failover.maxPerHour times within an hour; a person must decide.
    FailoverBudgetSpent,
    /// Fewer replicas than minSyncReplicas are in reach: writes wait.
    QuorumLost,
    /// The member that should lead next has not caught up within a pause of the writes.
    CandidateBehind,
    /// Running members use an older configuration than the present one.
    ConfigurationPending,
    /// Pods must be made anew for a changed specification.
    RestartNeeded,
    /// A volume claim of another store is in the way.
    ForeignClaim,
    /// An object of the same name belongs to somebody else.
    ForeignObject,
    /// No member may be promoted by the rules; a person must decide.
    NobodyEligible,
    /// The API server refused an object; the message quotes it.
    Refused,
    /// The specification asks the operator to change nothing.
    Paused,
    /// Written by another version of the operator.
    #[serde(other)]
    Unknown,
}

/// One thing that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// Why, as one word of a closed list.
    pub reason: WaitingReason,
    /// What waits, and for what.
    pub message: String,
    /// The command that helps, where one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}
