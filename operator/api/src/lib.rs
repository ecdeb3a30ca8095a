//! The API of Parovoz: its custom resources, their validation rules, and the closed lists of conditions and reasons.
//!
//! Everything here is data. The operator decides in `parovoz-operator-core`; the YAML under `crds/` is printed from
//! these types and never edited by hand. A setting whose feature does not exist is not in the schema, so that the API
//! server refuses it instead of ignoring it.
#![warn(missing_docs)]

mod conditions;
mod reign;
mod settings;
mod status;
mod store;
mod template;
mod units;

pub use conditions::{Condition, ConditionReason, ConditionStatus, ConditionType};
pub use reign::{Evidence, PastReign, ReignCause, ReignMember, ReignPhase, ReignRecord, StoreReign, StoreReignSpec};
pub use settings::{
    BootstrapSpec, DeletionPolicy, Durability, LagWarning, Mode, PrefixCreation, PrefixesSpec, RecoverySpec,
    ReplicationSpec, StorageSpec, StreamSpec, Topology, WalRetention,
};
pub use status::{
    BootstrapStatus, FailoverReceipt, Lag, MemberPhase, MemberRole, MemberStatus, Position, ReplicatedStoreStatus,
    StorePhase, Waiting, WaitingReason,
};
pub use store::{ReplicatedStore, ReplicatedStoreSpec};
pub use template::{EnvVar, ImagePullPolicy, PodTemplate};
pub use units::{ByteSize, ParseUnitError, TimeSpan};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// The API group of every resource defined here.
pub const GROUP: &str = "parovoz.dev";
/// The version of the API.
pub const VERSION: &str = "v1alpha1";

/// Every custom resource definition, in the order in which they are installed.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![ReplicatedStore::crd(), StoreReign::crd()]
}
