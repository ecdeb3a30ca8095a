//! `StoreOperation`: something to do once, with a result that stays for a while.

#![allow(clippy::duplicated_attributes, reason = "columns of one type are no duplicates")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::TimeSpan;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum OperationType {
    /// Another member leads, without losing anything and with writes paused for an instant.
    Switchover,
    /// A member leads though it cannot be told that it has everything: for when safety blocks.
    Promote,
    /// Written by another version of the operator.
    #[serde(other)]
    Unknown,
}

/// Where an operation is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum OperationPhase {
    /// Not looked at yet, or waiting for its turn.
    #[default]
    Pending,
    /// Under way.
    Running,
    /// Done.
    Succeeded,
    /// Not done, and not tried any more.
    Failed,
    /// Written by another version of the operator.
    #[serde(other)]
    Unknown,
}

/// What came of an operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperationResult {
    /// The reign that it led to.
    pub epoch: i64,
    /// The member that leads.
    pub primary: String,
}

/// How an operation goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoreOperationStatus {
    /// Pending, Running, Succeeded or Failed.
    #[serde(default)]
    pub phase: OperationPhase,
    /// What it waits for, what it did, or why it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,
    /// How far it is, in percent.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub progress: i32,
    /// When it was first looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it succeeded or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// What came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<OperationResult>,
}

/// Something to do once. It cannot change; make another one instead.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "parovoz.dev",
    version = "v1alpha1",
    kind = "StoreOperation",
    plural = "storeoperations",
    singular = "storeoperation",
    shortname = "rsop",
    category = "parovoz",
    namespaced,
    status = "StoreOperationStatus",
    derive = "PartialEq",
    doc = "Something to do once to a ReplicatedStore: a switchover, or a promotion that accepts a loss.",
    printcolumn(name = "Store", type_ = "string", json_path = ".spec.store", description = "The store"),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type", description = "What is to be done"),
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "Where it is in its life"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.message",
        description = "What it waits for or did"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = (
        "self == oldSelf",
        "an operation cannot change: delete it and make another one"
    ),
    validation = (
        "self.type != 'Promote' || has(self.member)",
        "type Promote needs the member to promote: set member to the name of its pod"
    ),
    validation = (
        "self.type != 'Promote' || self.acceptLoss",
        "type Promote is for when safety blocks and may lose acknowledged writes: set acceptLoss to true if that is meant, or use type Switchover"
    ),
    validation = (
        "self.type == 'Promote' || (!self.acceptLoss && !self.attestPrimaryGone)",
        "acceptLoss and attestPrimaryGone belong to type Promote: leave them out"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct StoreOperationSpec {
    /// The store, in the same namespace.
    #[schemars(length(min = 1, max = 40))]
    pub store: String,
    /// Switchover or Promote.
    #[serde(rename = "type")]
    pub type_: OperationType,
    /// The member that should lead, by the name of its pod. A switchover chooses one itself unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub member: Option<String>,
    /// Promote: acknowledged writes that only members out of reach have may be lost.
    #[serde(default)]
    pub accept_loss: bool,
    /// Promote: you have made sure that no process of an earlier primary runs any more. If one does, two members take
    /// writes.
    #[serde(default)]
    pub attest_primary_gone: bool,
    /// How long it is tried before it fails.
    #[serde(default = "five_minutes")]
    pub timeout: TimeSpan,
    /// How long it is kept once it is over.
    #[serde(default = "one_day")]
    pub ttl: TimeSpan,
}

fn five_minutes() -> TimeSpan {
    TimeSpan::seconds(300)
}

fn one_day() -> TimeSpan {
    TimeSpan("24h".into())
}
