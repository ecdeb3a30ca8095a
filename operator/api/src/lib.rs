//! The API of Parovoz: its custom resources, their validation rules, and the closed lists of conditions and reasons.
//!
//! Everything here is data. The operator decides in `parovoz-operator-core`; the YAML under `crds/` is printed from
//! these types and never edited by hand. A setting whose feature does not exist is not in the schema, so that the API
//! server refuses it instead of ignoring it.
#![warn(missing_docs)]

mod conditions;
mod operation;
mod reign;
mod settings;
mod status;
mod store;
mod template;
mod units;

pub use conditions::{Condition, ConditionReason, ConditionStatus, ConditionType};
pub use operation::{
    OperationPhase, OperationResult, OperationType, StoreOperation, StoreOperationSpec, StoreOperationStatus,
};
pub use reign::{
    EarlierReceipt, Evidence, PastReign, ReignCause, ReignMember, ReignPhase, ReignRecord, StoreReign, StoreReignSpec,
};
pub use settings::{
    BootstrapSpec, DeletionPolicy, Durability, FailoverSpec, LagWarning, Mode, OnQuorumLoss, PrefixCreation,
    PrefixesSpec, RecoverySpec, ReplicationSpec, StorageSpec, StreamSpec, Topology, WalRetention,
};
pub use status::{
    BootstrapStatus, FailoverPhases, FailoverReceipt, Lag, LossOutcome, LostRange, MemberPhase, MemberRole,
    MemberStatus, Position, ReplicatedStoreStatus, StorePhase, Waiting, WaitingReason,
};
pub use store::{ReplicatedStore, ReplicatedStoreSpec};
pub use template::{EnvVar, ImagePullPolicy, PodTemplate};
pub use units::{ByteSize, ParseUnitError, TimeSpan};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt;

/// The API group of every resource defined here.
pub const GROUP: &str = "parovoz.dev";
/// The version of the API.
pub const VERSION: &str = "v1alpha1";

/// Every custom resource definition, in the order in which they are installed.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut crds = vec![ReplicatedStore::crd(), StoreReign::crd(), StoreOperation::crd()];
    for crd in &mut crds {
        for schema in crd.spec.versions.iter_mut().filter_map(|version| version.schema.as_mut()) {
            if let Some(root) = &mut schema.open_api_v3_schema {
                unwrap_descriptions(root);
            }
        }
    }
    crds
}

/// Join the lines of each description: they were broken for readers of the source, not of `kubectl explain`.
fn unwrap_descriptions(schema: &mut JSONSchemaProps) {
    if let Some(description) = &mut schema.description {
        let paragraphs: Vec<_> = description.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect();
        *description = paragraphs.join("\n\n");
    }
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        unwrap_descriptions(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        unwrap_descriptions(items);
    }
}
