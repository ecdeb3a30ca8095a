//! One process: its volume, its limits, its ports.

use std::os::unix::fs::FileExt;

use crate::node::{Node, fill, promote, promote_sealed, reign, store_of, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_blank_member_waits_for_orders_and_is_not_ready() {
    let node = Node::start("a");
    let report = node.report().await;
    assert_eq!(report.phase(), parovoz_proto::v1::MemberPhase::Blank);
    assert!(!node.http("/readyz").unwrap().0);
    assert!(node.http("/healthz").unwrap().0);
    let error = redis::cmd("SET").arg("k").arg("v").query::<()>(&mut node.redis()).unwrap_err();
    assert_eq!(error.code(), Some("READONLY"), "{error}");
    for read in [vec!["GET", "k"], vec!["EXISTS", "k"], vec!["DBSIZE"], vec!["SCAN", "0"]] {
        let error = redis::cmd(read[0]).arg(&read[1..]).query::<redis::Value>(&mut node.redis()).unwrap_err();
        assert!(error.to_string().contains("catalogue"), "{read:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_survives_a_kill_and_waits_for_a_new_epoch() {
    let mut node = Node::start("a");
    store_of(&node, &[]).await;
    fill(&node, "p", 0, 1000, 100);
    let before = node.report().await;
    node.kill();
    node.spawn();
    let after = node.report().await;
    assert_eq!(before.data_uuid, after.data_uuid);
    assert_eq!(after.role(), parovoz_proto::v1::MemberRole::Replica, "every process starts as a follower");
    assert_eq!(crate::node::positions(&before), crate::node::positions(&after));
    let error = redis::cmd("SET").arg("p:k").arg("v").query::<()>(&mut node.redis()).unwrap_err();
    assert_eq!(error.code(), Some("READONLY"), "{error}");
    let value: String = redis::cmd("GET").arg("p:key-7").query(&mut node.redis()).unwrap();
    assert_eq!(value.len(), 100);

    let again = promote_sealed(&node, before.reign.as_ref().unwrap()).await.unwrap_err();
    assert!(again.message().contains("not above the started"), "{again}");
    promote(&node, &reign(2, &[&node]).await).await.unwrap();
    redis::cmd("SET").arg("p:k").arg("v").query::<()>(&mut node.redis()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_process_cleanly_and_is_no_restart() {
    let mut node = Node::start("a");
    store_of(&node, &[]).await;
    fill(&node, "p", 0, 10, 10);
    assert!(node.terminate().success(), "{}", node.log());
    node.spawn();
    assert_eq!(node.report().await.restarts, 0);
    node.kill();
    node.spawn();
    assert_eq!(node.report().await.restarts, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_slot_is_survived_and_two_park_the_member_with_its_data_untouched() {
    let mut node = Node::start("a");
    store_of(&node, &[]).await;
    fill(&node, "p", 0, 10, 10);
    let uuid = node.report().await.data_uuid;
    let damage = |slot: &str| {
        let file = std::fs::File::options().write(true).open(node.data().join(slot)).unwrap();
        file.write_all_at(b"damage", 40).unwrap();
    };
    damage("member.0");
    node.kill();
    node.spawn();
    assert_eq!(node.report().await.data_uuid, uuid);
    node.kill();
    for slot in ["member.0", "member.1"] {
        let file = std::fs::File::options().write(true).open(node.data().join(slot)).unwrap();
        file.write_all_at(b"damage", 40).unwrap();
    }
    node.spawn();
    let report = node.report().await;
    assert_eq!(report.phase(), parovoz_proto::v1::MemberPhase::Parked);
    assert!(report.reason.contains("member slots"), "{}", report.reason);
    assert!(!node.http("/readyz").unwrap().0);
    assert!(node.data().join("prefixes").read_dir().unwrap().count() >= 2, "data is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_stores_volume_parks_the_member() {
    let mut node = Node::start("a");
    store_of(&node, &[]).await;
    node.kill();
    let path = node.data().join("member.0");
    assert!(path.exists());
    // The same volume under another store: the slots say whose it is.
    let slots = parovoz_dataplane::disk::slots::Slots::open(&node.data()).unwrap();
    let (mut slots, record) = (slots.0, slots.1.unwrap());
    let mut other = record;
    other.store = parovoz_dataplane_core::types::StoreUid("another".into());
    slots.write_both(&other).unwrap();
    node.spawn();
    let report = node.report().await;
    assert_eq!(report.phase(), parovoz_proto::v1::MemberPhase::Parked);
    assert!(report.reason.contains("belongs to store another"), "{}", report.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_long_keys_and_bad_prefixes_are_refused_and_the_connection_lives_on() {
    let node = Node::start("a");
    store_of(&node, &[]).await;
    let mut connection = node.redis();
    let long = format!("p:{}", "k".repeat(9 << 10));
    let error = redis::cmd("SET").arg(&long).arg("v").query::<()>(&mut connection).unwrap_err();
    assert!(error.to_string().contains("key"), "{error}");
    let error = redis::cmd("SET").arg("no/prefix:k").arg("v").query::<()>(&mut connection).unwrap_err();
    assert!(error.to_string().contains("prefix"), "{error}");
    redis::cmd("SET").arg("p:k").arg("v").query::<()>(&mut connection).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_as_many_prefixes_as_allowed_are_made() {
    let node = Node::start_with("a", serde_json::json!({"maxPrefixes": 2}));
    store_of(&node, &[]).await;
    let mut connection = node.redis();
    for prefix in ["a", "b"] {
        redis::cmd("SET").arg(format!("{prefix}:k")).arg("v").query::<()>(&mut connection).unwrap();
    }
    let error = redis::cmd("SET").arg("c:k").arg("v").query::<()>(&mut connection).unwrap_err();
    assert!(error.to_string().contains("maxPrefixes"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn declared_prefixes_come_and_go_by_the_admin_port() {
    let node = Node::start_with("a", serde_json::json!({"prefixCreate": "Declared"}));
    store_of(&node, &[]).await;
    let mut connection = node.redis();
    assert!(redis::cmd("SET").arg("a:k").arg("v").query::<()>(&mut connection).is_err());
    let name = || parovoz_proto::v1::PrefixRequest { name: "a".into() };
    node.admin().await.create_prefix(name()).await.unwrap();
    redis::cmd("SET").arg("a:k").arg("v").query::<()>(&mut connection).unwrap();
    node.admin().await.drop_prefix(name()).await.unwrap();
    let value: Option<String> = redis::cmd("GET").arg("a:k").query(&mut connection).unwrap();
    assert_eq!(value, None);
    assert_eq!(node.data().join("detached").read_dir().unwrap().count(), 1, "dropped data is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_openmetrics_and_tell_the_role() {
    let node = Node::start("a");
    store_of(&node, &[]).await;
    fill(&node, "p", 0, 100, 10);
    let text = within("metrics show the primary", async || {
        node.http("/metrics").map(|(_, text)| text).filter(|t| t.contains("parovoz_dataplane_primary 1"))
    })
    .await;
    assert!(text.contains("application/openmetrics-text"), "{text}");
    assert!(text.trim_end().ends_with("# EOF"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_restarts_park_the_member_until_a_person_has_looked() {
    let mut node = Node::start("a");
    store_of(&node, &[]).await;
    fill(&node, "p", 0, 10, 10);
    for _ in 0..6 {
        node.kill();
        node.spawn();
        node.report().await;
    }
    let report = node.report().await;
    assert_eq!(report.phase(), parovoz_proto::v1::MemberPhase::Parked);
    assert!(report.reason.contains("recovery.maxAttempts"), "{}", report.reason);
    // Deleting the pod is a person's word.
    assert!(node.terminate().success());
    node.spawn();
    let report = node.report().await;
    assert_ne!(report.phase(), parovoz_proto::v1::MemberPhase::Parked);
    assert_eq!(crate::node::positions(&report)["p"].1, 11, "the data is as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_is_told_of_and_the_member_does_not_lead_with_what_is_left() {
    let mut node = Node::start("a");
    store_of(&node, &[]).await;
    fill(&node, "p", 0, 6000, 1000);
    let uuid = node.report().await.prefixes.iter().find(|p| p.name == "p").unwrap().prefix_uuid.clone();
    let volume = node.data();
    within("the durable position is noted", async || {
        let marks = parovoz_dataplane::disk::watermarks::Watermarks::open(&volume);
        (marks.of(uuid.parse().unwrap())?.sequence.0 == 6001).then_some(())
    })
    .await;
    node.kill();
    let mut logs = crate::replication::find(&node.data().join("prefixes").join(format!("p-{uuid}")), ".log");
    logs.sort_by_key(|l| l.metadata().unwrap().len());
    let log = std::fs::File::options().write(true).open(logs.last().unwrap()).unwrap();
    log.write_all_at(&[0x55; 60], 2 << 20).unwrap();
    node.spawn();
    let report = node.report().await;
    assert!(!report.complete);
    assert!(report.reason.contains("was once at 1/6001"), "{}", report.reason);
    assert!(node.log().contains("its log is damaged"));
    let refused = promote(&node, &reign(2, &[&node]).await).await.unwrap_err();
    assert!(refused.message().contains("this member votes unknown below 1/6001"), "{refused}");
}
