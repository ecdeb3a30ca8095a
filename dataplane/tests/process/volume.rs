//! The volume: full disks, what is set aside, where copies come from, many prefixes.

use std::fs::File;
use std::io::Write;

use crate::node::{
    Node, caught_up, contents, fill, follow, follow_from, positions, promote, reign, seal, store_of, within,
};
use crate::replication::find;
use parovoz_proto::v1;

/// Leaves no room at all on a node's volume.
fn take_all_room(node: &Node) {
    let mut file = File::options().create(true).append(true).open(node.data().join("filler")).unwrap();
    for chunk in [1 << 20, 4096, 1] {
        let bytes = vec![1; chunk];
        while file.write_all(&bytes).is_ok() {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_no_promise_and_the_member_says_so_until_there_is_room() {
    let (mut a, b) = (Node::start_on_small_volume("a", 192 << 20), Node::start("b"));
    store_of(&a, &[&b]).await;
    fill(&a, "p", 0, 2000, 100);
    caught_up(&b, &a).await;
    take_all_room(&a);
    let mut connection = a.redis();
    let value = "v".repeat(1000);
    let mut acknowledged = 0;
    while redis::cmd("SET").arg(format!("p:late-{acknowledged}")).arg(&value).query::<()>(&mut connection).is_ok() {
        acknowledged += 1;
        assert!(acknowledged < 1000, "writes on a full disk are acknowledged");
    }
    assert!(!a.wait_end().success(), "a write that can't be kept ends the process");

    a.spawn();
    let report = a.report().await;
    assert_ne!(report.phase(), v1::MemberPhase::Parked, "{}", report.reason);
    assert!(report.reason.contains("the volume is full"), "{}", report.reason);
    assert!(!a.data().join("reserve").exists());
    let value: String = redis::cmd("GET").arg("p:key-7").query(&mut a.redis()).unwrap();
    assert_eq!(value.len(), 100, "data is still read");
    // A promise to a newer reign is kept, on a disk without room.
    take_all_room(&a);
    let second = reign(2, &[&b, &a]).await;
    promote(&b, &second).await.unwrap();
    let order = v1::FollowRequest {
        store_uid: crate::node::STORE.into(),
        data_uuid: report.data_uuid,
        reign: Some(second),
        upstream: Some(b.endpoint().await),
        primary: Some(b.endpoint().await),
        bootstrap_source: None,
    };
    // What it then streams finds no room and ends it, perhaps before it has answered.
    let _ = a.admin().await.follow(order).await;
    let promised = || parovoz_dataplane::disk::slots::Slots::open(&a.data()).unwrap().1.unwrap().promised.unwrap();
    within("the promise is stored", async || (promised().epoch.0 == 2).then_some(())).await;

    a.kill();
    std::fs::remove_file(a.data().join("filler")).unwrap();
    a.spawn();
    within("the reserve is back and nothing is wrong any more", async || {
        let report = a.report().await;
        (a.data().join("reserve").exists() && !report.reason.contains("full")).then_some(())
    })
    .await;
    caught_up(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_a_full_disk_ended_too_often_starts_again_once_there_is_room() {
    let mut node = Node::start_on_small_volume("a", 192 << 20);
    store_of(&node, &[]).await;
    fill(&node, "p", 0, 10, 10);
    take_all_room(&node);
    for _ in 0..6 {
        node.kill();
        node.spawn();
        node.report().await;
    }
    let report = node.report().await;
    assert_eq!(report.phase(), v1::MemberPhase::Parked);
    assert!(report.reason.contains("recovery.maxAttempts"), "{}", report.reason);
    std::fs::remove_file(node.data().join("filler")).unwrap();
    assert!(node.wait_end().success(), "it ends by itself, to be started");
    node.spawn();
    let report = node.report().await;
    assert_ne!(report.phase(), v1::MemberPhase::Parked, "{}", report.reason);
    assert_eq!(positions(&report)["p"].1, 11, "the data is as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_diverged_tail_is_exported_and_named_in_the_report() {
    let (mut a, mut b) = (Node::start("a"), Node::start("b"));
    store_of(&a, &[&b]).await;
    fill(&a, "p", 0, 100, 10);
    caught_up(&b, &a).await;
    b.kill();
    redis::cmd("SET").arg("p:only-here").arg("lost").query::<()>(&mut a.redis()).unwrap();
    let before = a.report().await;
    let tail = positions(&before)["p"].1;
    a.kill();
    b.spawn();
    let second = reign(2, &[&b]).await;
    let second = v1::Reign { members: vec![second.primary.clone(), before.data_uuid], ..second };
    promote(&b, &second).await.unwrap();
    // Not before: by its last orders the other would follow it, and have the tail too.
    a.spawn();
    fill(&b, "p", 100, 50, 10);
    follow(&a, &second, &b, &b).await;
    caught_up(&a, &b).await;
    assert_eq!(contents(&a), contents(&b));
    let tails = a.report().await.exported_tails;
    let of_p: Vec<_> = tails.iter().filter(|t| t.prefix == "p").collect();
    assert_eq!(of_p.len(), 1, "{tails:?}");
    assert_eq!((of_p[0].epoch, of_p[0].first_sequence, of_p[0].last_sequence, of_p[0].records), (1, tail, tail, 1));
    let text = std::fs::read_to_string(a.data().join(&of_p[0].file)).unwrap();
    let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!((line["key"].as_str(), line["value"].as_str()), (Some("only-here"), Some("lost")), "{text}");
    // It is still known to the next process, until it is too old.
    a.settings["detachedRetentionSeconds"] = serde_json::json!(0);
    a.kill();
    a.spawn();
    within("what is too old goes", async || {
        let left = a.data().join("detached").read_dir().unwrap().count();
        (left == 0 && a.report().await.exported_tails.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_member_copies_from_a_replica_and_streams_from_the_primary() {
    let (a, b, c) = (Node::start("a"), Node::start("b"), Node::start("c"));
    let first = reign(1, &[&a, &b, &c]).await;
    promote(&a, &first).await.unwrap();
    follow(&b, &first, &a, &a).await;
    fill(&a, "p", 0, 20_000, 500);
    caught_up(&b, &a).await;
    follow_from(&c, &first, &a, &a, Some(&b)).await;
    assert_eq!(c.report().await.bootstrap_source_data_uuid, b.report().await.data_uuid);
    fill(&a, "p", 20_000, 5_000, 500);
    caught_up(&c, &a).await;
    assert_eq!(contents(&c), contents(&a));
    let copies = c.log().lines().filter(|l| l.contains("copy prefix")).map(str::to_owned).collect::<Vec<_>>();
    assert!(copies.len() >= 2 && copies.iter().all(|l| l.contains(&format!("{}:7002", b.ip))), "{copies:?}");
    // Another source alone is no new order to follow.
    follow(&c, &first, &a, &a).await;
    assert!(c.report().await.bootstrap_source_data_uuid.is_empty());
    assert_eq!(c.log().matches("\"following\"").count(), 1, "{}", c.log());
    assert_eq!(c.report().await.upstream_data_uuid, a.report().await.data_uuid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blank_member_leads_no_store_that_has_data_elsewhere() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    store_of(&a, &[]).await;
    fill(&a, "p", 0, 10, 10);
    let next = reign(20, &[&b, &a]).await;
    seal(&b, &next, v1::SealEvidence::PrimarySealed).await.unwrap();
    let order = v1::PromoteRequest {
        store_uid: crate::node::STORE.into(),
        data_uuid: b.report().await.data_uuid,
        reign: Some(next),
        ..v1::PromoteRequest::default()
    };
    let refused = b.admin().await.promote(order).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("blank"), "{refused}");
    assert_eq!(b.report().await.started_epoch, 0, "nothing was started");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_prefixes_are_all_opened_again_and_strays_are_gone() {
    let mut node = Node::start("a");
    store_of(&node, &[]).await;
    let mut connection = node.redis();
    for n in 0..80 {
        redis::cmd("SET").arg(format!("prefix-{n}:k")).arg(n).query::<()>(&mut connection).unwrap();
    }
    let before = positions(&node.report().await);
    assert_eq!(before.len(), 81);
    node.kill();
    let staging = node.data().join("staging");
    std::fs::write(staging.join("stray"), b"x").unwrap();
    let unlisted = staging.join("gone-00000000-0000-4000-8000-000000000001");
    std::fs::create_dir(&unlisted).unwrap();
    node.spawn();
    let report = node.report().await;
    assert!(report.complete, "{}", report.reason);
    assert_eq!(positions(&report), before);
    assert_eq!(find(&staging, "").len(), 0, "only empty folders of ours are left");
    assert!(!unlisted.exists());
    let own_logs = find(&node.data().join("prefixes"), "/LOG");
    assert!(own_logs.is_empty(), "RocksDB tells its troubles in our log: {own_logs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn prefixes_that_only_a_diverged_primary_made_are_exported_and_set_aside() {
    let (mut a, mut b) = (Node::start("a"), Node::start("b"));
    store_of(&a, &[&b]).await;
    fill(&a, "common", 0, 100, 100);
    caught_up(&b, &a).await;
    b.kill();
    fill(&a, "both", 0, 50, 100);
    fill(&a, "only-a", 0, 50, 100);
    let of_a = a.report().await.data_uuid;
    a.kill();
    b.spawn();
    let second = reign(2, &[&b]).await;
    let second = v1::Reign { members: vec![second.primary.clone(), of_a], ..second };
    promote(&b, &second).await.unwrap();
    fill(&b, "both", 1000, 30, 50);
    a.spawn();
    follow(&a, &second, &b, &b).await;
    caught_up(&a, &b).await;
    assert_eq!(contents(&a), contents(&b));
    let mut names: Vec<_> = a.report().await.prefixes.into_iter().map(|p| p.name).collect();
    names.sort();
    let mut expected: Vec<_> = b.report().await.prefixes.into_iter().map(|p| p.name).collect();
    expected.sort();
    assert_eq!(names, expected, "one of each name");
    let tails = a.report().await.exported_tails;
    for prefix in ["both", "only-a"] {
        assert!(tails.iter().any(|tail| tail.prefix == prefix && tail.records > 0), "{prefix} in {tails:?}");
    }
    // And it can lead again, with what the store has.
    let third = reign(3, &[&a, &b]).await;
    promote(&a, &third).await.unwrap();
    follow(&b, &third, &a, &a).await;
    fill(&a, "only-a", 5000, 10, 50);
    caught_up(&b, &a).await;
    assert_eq!(contents(&a), contents(&b));
}
