//! The printed CRDs: every field explained, every rule at work.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use kube::core::cel::{validate_cel, validate_cel_update};
use kube::{CustomResourceExt, ResourceExt};
use parovoz_api::{ReplicatedStore, StoreOperation, StoreReign, crds};
use serde_json::{Value, json};

fn store(spec: Value) -> ReplicatedStore {
    named("cache", spec)
}

fn named(name: &str, spec: Value) -> ReplicatedStore {
    serde_json::from_value(json!({
        "apiVersion": "parovoz.dev/v1alpha1", "kind": "ReplicatedStore", "metadata": {"name": name}, "spec": spec,
    }))
    .unwrap()
}

fn refusal(store: &ReplicatedStore) -> String {
    validate_cel(store).expect_err("the rules accept what they should refuse").to_string()
}

fn update_refusal(new: Value, old: Value) -> String {
    validate_cel_update(&store(new), &store(old)).expect_err("the rules accept the change").to_string()
}

fn without_description(path: &str, schema: &Value, missing: &mut Vec<String>) {
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        for (name, property) in properties {
            let here = format!("{path}.{name}");
            if property.get("description").is_none() {
                missing.push(here.clone());
            }
            without_description(&here, property, missing);
        }
    }
    if let Some(items) = schema.get("items") {
        without_description(&format!("{path}[]"), items, missing);
    }
}

#[test]
fn every_field_has_a_description_for_kubectl_explain() {
    for crd in crds() {
        let schema = serde_json::to_value(crd.spec.versions[0].schema.as_ref().unwrap()).unwrap();
        let root = &schema["openAPIV3Schema"]["properties"];
        let mut missing = Vec::new();
        for part in ["spec", "status"] {
            without_description(part, &root[part], &mut missing);
        }
        // Kubernetes' own types leave some fields of their selectors unexplained.
        missing.retain(|path| !path.contains("affinity"));
        assert!(missing.is_empty(), "{} without description: {missing:?}", crd.name_any());
    }
}

#[test]
fn the_smallest_store_is_filled_with_the_documented_defaults() {
    let small = store(json!({"storage": {"size": "1Gi"}}));
    validate_cel(&small).unwrap();
    let spec = serde_json::to_value(&small.spec).unwrap();
    assert_eq!(spec["replicas"], 3);
    assert_eq!(spec["replication"]["mode"], "Async");
    assert_eq!(spec["replication"]["durability"], "Sync");
    assert_eq!(spec["replication"]["walRetention"], json!({"time": "2h"}));
    assert_eq!(spec["replication"]["stream"]["lagWarning"]["sequences"], 10_000);
    assert_eq!(spec["bootstrap"]["holdTimeout"], "600s");
    assert_eq!(spec["prefixes"], json!({"create": "OnWrite", "maxPrefixes": 1000}));
    assert_eq!(spec["recovery"], json!({"maxAttempts": 5, "window": "300s", "backoff": "15s"}));
    assert_eq!(spec["deletionPolicy"], "Retain");
    let failover = json!({
        "enabled": true, "delay": "0s", "leaseDuration": "10s", "maxLag": 100_000, "cooldown": "30s", "maxPerHour": 6,
    });
    assert_eq!(spec["failover"], failover);
    assert_eq!(spec["replication"]["onQuorumLoss"], "Block");
}

#[test]
fn a_lease_too_short_or_too_long_and_a_degrade_without_a_quorum_are_refused() {
    let failover = |failover: Value| store(json!({"storage": {"size": "1Gi"}, "failover": failover}));
    validate_cel(&failover(json!({"leaseDuration": "3s"}))).unwrap();
    for lease in ["2s", "61s"] {
        assert!(refusal(&failover(json!({"leaseDuration": lease}))).contains("from 3s to 60s"), "{lease}");
    }
    assert!(refusal(&failover(json!({"delay": "2h"}))).contains("failover.enabled to false"));
    let degrade = |mode: &str, w: i32| {
        store(json!({"storage": {"size": "1Gi"},
            "replication": {"mode": mode, "minSyncReplicas": w, "onQuorumLoss": "Degrade"}}))
    };
    validate_cel(&degrade("Quorum", 1)).unwrap();
    assert!(refusal(&degrade("Async", 0)).contains("means nothing without a quorum"));
}

#[test]
fn an_operation_says_what_it_risks_and_never_changes() {
    let operation = |spec: Value| -> StoreOperation {
        serde_json::from_value(json!({
            "apiVersion": "parovoz.dev/v1alpha1", "kind": "StoreOperation", "metadata": {"name": "x"}, "spec": spec,
        }))
        .unwrap()
    };
    let refused = |spec: Value| validate_cel(&operation(spec)).unwrap_err().to_string();
    validate_cel(&operation(json!({"store": "cache", "type": "Switchover"}))).unwrap();
    let promote = json!({"store": "cache", "type": "Promote", "member": "cache-2", "acceptLoss": true});
    validate_cel(&operation(promote.clone())).unwrap();
    assert!(refused(json!({"store": "cache", "type": "Promote", "acceptLoss": true})).contains("needs the member"));
    assert!(refused(json!({"store": "cache", "type": "Promote", "member": "cache-2"})).contains("acceptLoss to true"));
    assert!(refused(json!({"store": "cache", "type": "Switchover", "acceptLoss": true})).contains("leave them out"));
    let other = json!({"store": "cache", "type": "Promote", "member": "cache-3", "acceptLoss": true});
    let changed = validate_cel_update(&operation(other), &operation(promote)).unwrap_err().to_string();
    assert!(changed.contains("make another one"));
}

#[test]
fn the_schema_carries_the_defaults_so_that_the_api_server_fills_them_in() {
    let schema = serde_json::to_value(ReplicatedStore::crd().spec.versions[0].schema.as_ref().unwrap()).unwrap();
    let spec = &schema["openAPIV3Schema"]["properties"]["spec"]["properties"];
    assert_eq!(spec["replicas"]["default"], 3);
    assert_eq!(spec["recovery"]["default"]["window"], "300s");
    assert_eq!(spec["replication"]["properties"]["walRetention"]["properties"]["time"]["default"], "2h");
    assert!(spec["image"].get("default").is_none());
}

#[test]
fn names_that_would_break_pod_or_service_names_are_refused() {
    let spec = json!({"storage": {"size": "1Gi"}});
    validate_cel(&named(&"a".repeat(40), spec.clone())).unwrap();
    assert!(refusal(&named(&"a".repeat(41), spec.clone())).contains("at most 40 characters"));
    for name in ["1cache", "my.cache", "cache-"] {
        assert!(refusal(&named(name, spec.clone())).contains("begin with a letter"), "{name}");
    }
}

#[test]
fn a_restart_window_that_can_never_fill_is_refused() {
    let recovery = |window: &str| {
        store(json!({"storage": {"size": "1Gi"}, "recovery": {"maxAttempts": 5, "window": window, "backoff": "15s"}}))
    };
    validate_cel(&recovery("76s")).unwrap();
    assert!(refusal(&recovery("75s")).contains("recovery.window must be longer"));
}

#[test]
fn a_hold_that_ends_at_once_is_refused() {
    let hold = |time: &str| store(json!({"storage": {"size": "1Gi"}, "bootstrap": {"holdTimeout": time}}));
    validate_cel(&hold("1s")).unwrap();
    assert!(refusal(&hold("500ms")).contains("bootstrap.holdTimeout must be at least 1s"));
}

#[test]
fn contradictions_of_mode_durability_and_counts_are_refused_with_advice() {
    let with = |replicas: i32, replication: Value| {
        store(json!({"replicas": replicas, "storage": {"size": "1Gi"}, "replication": replication}))
    };
    validate_cel(&with(3, json!({"mode": "Quorum", "minSyncReplicas": 2}))).unwrap();
    assert!(refusal(&with(3, json!({"mode": "Quorum"}))).contains("set replication.minSyncReplicas to 1 or more"));
    assert!(refusal(&with(3, json!({"minSyncReplicas": 1}))).contains("set replication.minSyncReplicas to 0"));
    assert!(
        refusal(&with(3, json!({"mode": "Quorum", "minSyncReplicas": 1, "durability": "Os"})))
            .contains("set replication.durability to Sync")
    );
    assert!(refusal(&with(2, json!({"mode": "Quorum", "minSyncReplicas": 2}))).contains("must be below replicas"));
}

#[test]
fn a_volume_grows_and_never_shrinks_or_changes_its_class() {
    let of = |size: &str| json!({"storage": {"size": size}});
    validate_cel_update(&store(of("10Gi")), &store(of("5Gi"))).unwrap();
    validate_cel_update(&store(of("1024Mi")), &store(of("1Gi"))).unwrap();
    assert!(update_refusal(of("4Gi"), of("5Gi")).contains("storage.size cannot shrink"));
    let class = |class: &str| json!({"storage": {"size": "1Gi", "storageClassName": class}});
    validate_cel_update(&store(class("fast")), &store(class("fast"))).unwrap();
    assert!(update_refusal(class("slow"), class("fast")).contains("storageClassName cannot change"));
    assert!(update_refusal(class("slow"), of("1Gi")).contains("storageClassName cannot change"));
}

#[test]
fn kept_log_must_fit_the_volume() {
    let keep =
        |size: &str| store(json!({"storage": {"size": "1Gi"}, "replication": {"walRetention": {"maxSize": size}}}));
    validate_cel(&keep("512Mi")).unwrap();
    assert!(refusal(&keep("1Gi")).contains("must be below storage.size"));
}

#[test]
fn labels_and_variables_of_the_operator_are_refused_in_the_template() {
    let template = |template: Value| store(json!({"storage": {"size": "1Gi"}, "template": template}));
    validate_cel(&template(json!({"labels": {"team": "a"}, "env": [{"name": "RUST_LOG", "value": "debug"}]}))).unwrap();
    assert!(refusal(&template(json!({"labels": {"parovoz.dev/role": "primary"}}))).contains("belong to the operator"));
    assert!(refusal(&template(json!({"annotations": {"parovoz.dev/x": "1"}}))).contains("belong to the operator"));
    assert!(refusal(&template(json!({"env": [{"name": "PAROVOZ_STORE_UID"}]}))).contains("choose another name"));
}

#[test]
fn status_and_scale_are_subresources_and_the_columns_are_those_promised() {
    let crd = ReplicatedStore::crd();
    let version = &crd.spec.versions[0];
    let sub = version.subresources.as_ref().unwrap();
    assert!(sub.status.is_some());
    let scale = sub.scale.as_ref().unwrap();
    assert_eq!(scale.spec_replicas_path, ".spec.replicas");
    assert_eq!(scale.status_replicas_path, ".status.replicas");
    assert_eq!(scale.label_selector_path.as_deref(), Some(".status.selector"));
    let columns: Vec<_> =
        version.additional_printer_columns.as_ref().unwrap().iter().map(|c| c.name.as_str()).collect();
    assert_eq!(columns, ["Primary", "Ready", "Replicas", "Lag", "Phase", "Age"]);
    assert_eq!(crd.spec.names.short_names.as_deref(), Some(&["rstore".to_string()][..]));
}

#[test]
fn an_epoch_never_goes_back_and_keeps_its_reign_id() {
    let reign = |epoch: i64, id: &str| -> StoreReign {
        serde_json::from_value(json!({
            "apiVersion": "parovoz.dev/v1alpha1", "kind": "StoreReign", "metadata": {"name": "cache"},
            "spec": {"storeUID": "u", "current": {
                "epoch": epoch, "reignID": id, "phase": "Serving", "cause": "First", "members": [], "mode": "Async",
                "minSyncReplicas": 0, "leaseDurationMs": 10000, "begunAt": "2026-01-01T00:00:00Z",
                "evidence": {"answered": [], "silent": [], "summary": ""},
            }},
        }))
        .unwrap()
    };
    validate_cel_update(&reign(2, "b"), &reign(1, "a")).unwrap();
    validate_cel_update(&reign(1, "a"), &reign(1, "a")).unwrap();
    let back = validate_cel_update(&reign(1, "a"), &reign(2, "b")).unwrap_err().to_string();
    assert!(back.contains("cannot go back"));
    let swapped = validate_cel_update(&reign(1, "b"), &reign(1, "a")).unwrap_err().to_string();
    assert!(swapped.contains("begin a new epoch"));
}
