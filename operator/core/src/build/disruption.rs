//! How many members may be drained at once.

use std::collections::BTreeMap;

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::names;
use crate::observed::StoreFacts;

/// One member at a time, in a store of any size: a store of one member may be drained.
#[must_use]
pub fn disruption_budget(store: &StoreFacts) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: super::owned_meta(store, store.name.clone()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector {
                match_labels: Some(BTreeMap::from([(names::LABEL_STORE.to_owned(), store.name.clone())])),
                match_expressions: None,
            }),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}
