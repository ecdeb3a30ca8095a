//! `StoreReign`: the decision record of a store.

#![allow(clippy::duplicated_attributes, reason = "columns of one type are no duplicates")]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::settings::Mode;
use crate::status::FailoverReceipt;

/// Where a reign is in its life. A reign that was not brought to Serving is followed by one of a higher epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ReignPhase {
    /// The members are listed; nobody was told anything. Only the first reign of a store is ever in this phase.
    Forming,
    /// Members are asked to accept nothing from earlier reigns.
    Sealing,
    /// The candidate is told to start. From here on it may serve.
    Promoting,
    /// The candidate reported that it serves.
    Serving,
}

/// Why a reign was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ReignCause {
    /// The store has never had a primary.
    First,
    /// The primary's process was started anew; the same member goes on.
    PrimaryRestarted,
    /// The primary's process has ended, as the kubelet says.
    PrimaryDead,
    /// Neither the operator nor a follower hears the primary.
    PrimarySilent,
    /// The primary answers and can acknowledge nothing, or says that it is unhealthy.
    PrimaryStalled,
    /// The reign before it was not brought to Serving: its candidate failed.
    CandidateFailed,
    /// A member promised a reign that is newer than the recorded one.
    RecordOutdated,
    /// Members were added or removed, or a member has a new volume.
    MembersChanged,
    /// Mode, minSyncReplicas or the lease changed.
    SettingsChanged,
    /// Another member was to lead: asked for by a person, before a drain, or during an update.
    Switchover,
    /// A person promoted a member and accepted a loss.
    PromotedByPerson,
    /// Too few replicas are left and onQuorumLoss is Degrade: the primary acknowledges alone.
    Degraded,
    /// Enough replicas are back: the primary waits for them again.
    QuorumRestored,
    /// Written by another version of the operator.
    #[serde(other)]
    Unknown,
}

impl ReignCause {
    /// True if the reign was begun on purpose, with a primary that answered and served.
    #[must_use]
    pub fn planned(self) -> bool {
        match self {
            Self::MembersChanged | Self::SettingsChanged | Self::Switchover | Self::Degraded | Self::QuorumRestored => {
                true
            }
            Self::First
            | Self::PrimaryRestarted
            | Self::PrimaryDead
            | Self::PrimarySilent
            | Self::PrimaryStalled
            | Self::CandidateFailed
            | Self::RecordOutdated
            | Self::PromotedByPerson
            | Self::Unknown => false,
        }
    }
}

/// A member as a reign lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReignMember {
    /// The member's pod, for people: members are known by their volume.
    #[schemars(length(max = 63))]
    pub name: String,
    /// The identity that is kept on the member's volume.
    #[serde(rename = "dataUUID")]
    #[schemars(length(max = 64))]
    pub data_uuid: String,
}

/// What was known when a reign was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// dataUUIDs of the members whose reports the decision rests on.
    #[schemars(length(max = 16))]
    pub answered: Vec<String>,
    /// dataUUIDs of the last reign's members that did not answer.
    #[schemars(length(max = 16))]
    pub silent: Vec<String>,
    /// What the decision rests on, for people.
    #[schemars(length(max = 1024))]
    pub summary: String,
}

/// One primary's rule under one configuration that never changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReignRecord {
    /// The number of the reign. Grows for ever; never used twice.
    #[schemars(range(min = 0))]
    pub epoch: i64,
    /// Random; compared wherever an epoch is.
    #[serde(rename = "reignID")]
    #[schemars(length(max = 64))]
    pub reign_id: String,
    /// Where the reign is in its life.
    pub phase: ReignPhase,
    /// Why it was begun.
    pub cause: ReignCause,
    /// dataUUID of the primary, or of the candidate until it serves. Empty while Forming.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub primary: String,
    /// Every member, the primary included.
    #[schemars(length(max = 16))]
    pub members: Vec<ReignMember>,
    /// Async or Quorum.
    pub mode: Mode,
    /// How many replicas must have a write durably before it is acknowledged.
    pub min_sync_replicas: i32,
    /// For how long a promise or a lease of this reign holds, in milliseconds.
    pub lease_duration_ms: i64,
    /// What was known when it was begun.
    pub evidence: Evidence,
    /// The very process of the primary that was told to lead, as BOOT/PROCESS. Proof that it ended must name it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub primary_process: String,
    /// True if the primary syncs what it acknowledges, as far as it was configured when it was told to lead.
    #[serde(default)]
    pub synced: bool,
    /// Digest of the positions that the candidate had when it was told to lead: it is refused at any others.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub positions: String,
    /// uid of the StoreOperation that asked for the reign.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub operation: String,
    /// True if a person accepted that acknowledged writes may be lost.
    #[serde(default)]
    pub accept_loss: bool,
    /// True if a person attests that no process of an earlier primary runs any more.
    #[serde(default)]
    pub attested: bool,
    /// When the first sign of trouble was seen. Absent for a planned reign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspected_at: Option<MicroTime>,
    /// When it was begun.
    pub begun_at: MicroTime,
    /// When the present phase should be over. Absent once Serving.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
    /// When the candidate was told to lead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoting_since: Option<MicroTime>,
    /// When the primary was first seen to serve every prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving_since: Option<MicroTime>,
}

/// A reign that is over, in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PastReign {
    /// The number of the reign.
    pub epoch: i64,
    /// Its random identity.
    #[serde(rename = "reignID")]
    #[schemars(length(max = 64))]
    pub reign_id: String,
    /// The last phase it reached.
    pub phase: ReignPhase,
    /// Why it was begun.
    pub cause: ReignCause,
    /// dataUUID of the primary.
    #[schemars(length(max = 64))]
    pub primary: String,
    /// The primary's pod, for people.
    #[schemars(length(max = 63))]
    pub primary_name: String,
    /// The very process that was told to lead.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub primary_process: String,
    /// True if the primary synced what it acknowledged.
    #[serde(default)]
    pub synced: bool,
    /// dataUUIDs of its members, the primary included. Whoever decides about a later reign must know them.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub members: Vec<String>,
    /// Async or Quorum.
    #[serde(default)]
    pub mode: Mode,
    /// How many replicas had to have a write durably before it was acknowledged.
    #[serde(default)]
    pub min_sync_replicas: i32,
    /// For how long a promise or a lease of it held, in milliseconds.
    #[serde(default)]
    pub lease_duration_ms: i64,
    /// uid of the StoreOperation that asked for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub operation: String,
    /// When it was begun.
    pub begun_at: MicroTime,
    /// When its primary was first seen to serve every prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving_since: Option<MicroTime>,
}

/// The decision record of one store, of the same name. Written by the operator only, by compare-and-swap, before
/// anything is done that rests on it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "parovoz.dev",
    version = "v1alpha1",
    kind = "StoreReign",
    plural = "storereigns",
    singular = "storereign",
    category = "parovoz",
    namespaced,
    derive = "PartialEq",
    doc = "Who may be primary of a store, and why: the operator's decision record. Not for editing.",
    printcolumn(
        name = "Epoch",
        type_ = "integer",
        json_path = ".spec.current.epoch",
        description = "The number of the present reign"
    ),
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".spec.current.phase",
        description = "Where the present reign is in its life"
    ),
    printcolumn(
        name = "Cause",
        type_ = "string",
        json_path = ".spec.current.cause",
        description = "Why the present reign was begun"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = (
        "self.storeUID == oldSelf.storeUID",
        "storeUID cannot change: a decision record belongs to one store for ever"
    ),
    validation = (
        "self.current.epoch >= oldSelf.current.epoch",
        "current.epoch cannot go back: an epoch that was used before would let two primaries believe in it"
    ),
    validation = (
        "self.current.epoch != oldSelf.current.epoch || self.current.reignID == oldSelf.current.reignID",
        "current.reignID cannot change within an epoch: begin a new epoch instead"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct StoreReignSpec {
    /// uid of the store that the record belongs to.
    #[serde(rename = "storeUID")]
    #[schemars(length(min = 1, max = 64))]
    pub store_uid: String,
    /// True once any reign of the store was Serving: from then on an empty volume never becomes primary.
    #[serde(default)]
    pub ever_served: bool,
    /// The present reign.
    pub current: ReignRecord,
    /// The last reigns before it, newest first: twenty, and as many more as later decisions must ask for.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub history: Vec<PastReign>,
    /// The receipt of the last unplanned change of primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failover: Option<FailoverReceipt>,
    /// Where the new primary began in each prefix, by prefix_uuid as `epoch.sequence`, while it is not known what the old
    /// one had beyond it. Empty for a store of more prefixes than fit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 1024))]
    pub forks: BTreeMap<String, String>,
    /// What `lastFailover` and `forks` were before the attempt under way: if it is given up, it leaves no receipt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_attempt: Option<EarlierReceipt>,
}

/// What a decision record said of the last unplanned change of primary.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EarlierReceipt {
    /// See the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failover: Option<FailoverReceipt>,
    /// See the record.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 1024))]
    pub forks: BTreeMap<String, String>,
}
