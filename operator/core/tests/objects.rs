//! The built objects, whole, as they reach the API server.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use parovoz_operator_core::build::{self, Object, to_value};
use parovoz_operator_core::observed::ClaimFacts;
use parovoz_operator_core::settings::Settings;
use serde_json::{Value, json};
use world::World;

fn store() -> World {
    World::with_spec(json!({
        "replicas": 3,
        "storage": {"size": "10Gi", "storageClassName": "fast"},
        "image": "registry.example/parovoz:1",
        "template": {
            "labels": {"team": "search"},
            "annotations": {"note": "x"},
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "stores", "operator": "Exists"}],
            "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}},
            "env": [{"name": "RUST_LOG", "value": "info"}],
        },
        "replication": {"walRetention": {"time": "1h30m", "maxSize": "2Gi"}},
        "deletionPolicy": "Delete",
    }))
}

fn claim() -> ClaimFacts {
    ClaimFacts {
        name: "data-cache-2".into(),
        ordinal: 2,
        uid: "claim-uid".into(),
        store_uid: Some(world::STORE_UID.into()),
        owned: true,
        deleting: false,
        bound: false,
        requested_bytes: None,
    }
}

#[test]
fn a_pod_of_a_store_with_every_template_setting() {
    let pod = build::pod(&store().store, &claim(), "unused");
    insta::assert_yaml_snapshot!(to_value(&Object::Pod(pod)).unwrap());
}

#[test]
fn a_pod_of_the_smallest_store() {
    let pod = build::pod(&World::new(1).store, &claim(), "parovoz/dataplane:default");
    insta::assert_yaml_snapshot!(to_value(&Object::Pod(pod)).unwrap());
}

#[test]
fn a_volume_claim_that_goes_with_the_store() {
    insta::assert_yaml_snapshot!(to_value(&Object::Claim(build::claim(&store().store, 2))).unwrap());
}

#[test]
fn services_accounts_budgets_and_configuration() {
    let store = store().store;
    let settings = Settings::parse(&store.spec).unwrap();
    let objects: Vec<Value> =
        build::plain_objects(&store, &settings).iter().map(|(_, object)| to_value(object).unwrap()).collect();
    insta::assert_yaml_snapshot!(objects);
}

#[test]
fn the_fingerprint_is_that_of_the_file_as_members_read_it() {
    let store = store().store;
    let settings = Settings::parse(&store.spec).unwrap();
    let objects = build::plain_objects(&store, &settings);
    let values = objects.iter().map(|(_, object)| to_value(object).unwrap());
    let file = values.filter_map(|object| object["data"]["config.json"].as_str().map(str::to_owned)).next().unwrap();
    assert_eq!(settings.member.fingerprint(), format!("{:08x}", crc32c::crc32c(file.as_bytes())));
}

#[test]
fn the_status_of_a_healthy_store() {
    let mut world = World::converged(2);
    world.write("users", 7);
    insta::assert_yaml_snapshot!(world.status());
}

#[test]
fn the_plan_that_promotes_the_first_primary() {
    let mut world = World::new(2);
    world.steps(3);
    insta::assert_debug_snapshot!(world.plan().1);
}

#[test]
fn every_pod_passes_the_restricted_pod_security_standard() {
    let pod = to_value(&Object::Pod(build::pod(&store().store, &claim(), "x"))).unwrap();
    let spec = &pod["spec"];
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    for container in spec["containers"].as_array().unwrap() {
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
        assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    }
    assert_eq!(spec["automountServiceAccountToken"], false);
}
