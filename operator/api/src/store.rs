//! `ReplicatedStore`: what a user asks for.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::settings::{
    BootstrapSpec, DeletionPolicy, FailoverSpec, PrefixesSpec, RecoverySpec, ReplicationSpec, StorageSpec,
};
use crate::status::ReplicatedStoreStatus;
use crate::template::{ImagePullPolicy, PodTemplate};

/// What the store should be. Only storage.size is required.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "parovoz.dev",
    version = "v1alpha1",
    kind = "ReplicatedStore",
    plural = "replicatedstores",
    singular = "replicatedstore",
    shortname = "rstore",
    category = "parovoz",
    namespaced,
    status = "ReplicatedStoreStatus",
    derive = "PartialEq",
    doc = "A replicated key-value store: one primary that takes writes, replicas that stream its write-ahead log.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Primary", type_ = "string", json_path = ".status.primary", description = "The member that takes writes"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas", description = "Members that serve"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".spec.replicas", description = "Members wanted"),
    printcolumn(name = "Lag", type_ = "integer", json_path = ".status.lag.sequences", description = "Sequences by which the slowest replica is behind"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "The store in one word"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = (
        "self.metadata.name.size() <= 40",
        "the name must have at most 40 characters, so that the names of pods and services made from it stay valid: choose a shorter one"
    ),
    validation = (
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "the name must begin with a letter and have only small letters, digits and hyphens, because services are named after it: choose another"
    )
)]
#[x_kube(
    validation = (
        "self.replication.minSyncReplicas < self.replicas",
        "replication.minSyncReplicas must be below replicas: with fewer members no write could ever be acknowledged"
    ),
    validation = (
        "!has(self.replication.walRetention.maxSize) || quantity(self.replication.walRetention.maxSize).compareTo(quantity(self.storage.size)) < 0",
        "replication.walRetention.maxSize must be below storage.size: lower it, or enlarge the volume"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ReplicatedStoreSpec {
    /// How many members the store has, the primary included.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 9))]
    pub replicas: i32,
    /// Image of the data plane. The operator's default unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// When the kubelet fetches the image: Always, IfNotPresent or Never.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,
    /// Placement, resources and metadata of the members' pods.
    #[serde(default)]
    pub template: PodTemplate,
    /// True: the operator changes nothing of this store and only reports. The members go on as they are.
    #[serde(default)]
    pub paused: bool,
    /// The volume of each member.
    pub storage: StorageSpec,
    /// How writes reach the replicas.
    #[serde(default)]
    pub replication: ReplicationSpec,
    /// How a member gets its first copy.
    #[serde(default)]
    pub bootstrap: BootstrapSpec,
    /// How prefixes, the independent databases of a store, come about.
    #[serde(default)]
    pub prefixes: PrefixesSpec,
    /// When another member takes the primary's place by itself.
    #[serde(default)]
    pub failover: FailoverSpec,
    /// How often a member's process may be started anew before it stays up with its data closed.
    #[serde(default)]
    pub recovery: RecoverySpec,
    /// What becomes of the volumes when the store or a member is removed: Retain or Delete.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

fn three() -> i32 {
    3
}
