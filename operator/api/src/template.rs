//! What a user may say about the members' pods.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, ResourceRequirements, Toleration};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When the kubelet fetches the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// Fetch at every start of a container.
    Always,
    /// Fetch only what the node does not have.
    #[default]
    IfNotPresent,
    /// Never fetch; the image must be on the node.
    Never,
}

impl ImagePullPolicy {
    /// The value as Kubernetes spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Placement, resources and metadata of the members' pods. A change takes effect when a pod is made anew; until then
/// status.waiting names the pods that still run with the old settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplate {
    /// CPU and memory of the data plane container. Nothing is requested and nothing limited unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Labels that a node must have to run a member.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the members' pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Scheduling rules. Replaces the default, which prefers different nodes for different members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Annotations added to the members' pods. Keys under parovoz.dev/ are the operator's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = (
        "self.all(k, !k.startsWith('parovoz.dev/'))",
        "annotations under parovoz.dev/ belong to the operator: use a key of your own domain"
    ))]
    pub annotations: BTreeMap<String, String>,
    /// Labels added to the members' pods. Keys under parovoz.dev/ and app.kubernetes.io/ are the operator's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = (
        "self.all(k, !k.startsWith('parovoz.dev/') && !k.startsWith('app.kubernetes.io/'))",
        "labels under parovoz.dev/ and app.kubernetes.io/ belong to the operator: use a key of your own domain"
    ))]
    pub labels: BTreeMap<String, String>,
    /// Environment variables added to the data plane container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub env: Vec<EnvVar>,
}

/// One environment variable with a literal value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// The name of the variable. Names that begin with PAROVOZ_ or POD_ are the operator's.
    #[schemars(length(min = 1, max = 128), pattern(r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    #[x_kube(validation = (
        "!self.startsWith('PAROVOZ_') && !self.startsWith('POD_')",
        "variables that begin with PAROVOZ_ or POD_ are set by the operator: choose another name"
    ))]
    pub name: String,
    /// The value of the variable.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub value: String,
}
