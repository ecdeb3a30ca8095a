//! Several processes: streaming, kills, gaps, bootstraps.

use std::time::Duration;

use crate::node::{Node, caught_up, contents, fill, follow, promote, reign, served, store_of, within};
use parovoz_proto::v1;

#[tokio::test(flavor = "multi_thread")]
async fn replicas_follow_and_hold_the_same() {
    let (a, b, c) = (Node::start("a"), Node::start("b"), Node::start("c"));
    store_of(&a, &[&b, &c]).await;
    for prefix in ["users", "orders", "default"] {
        fill(&a, prefix, 0, 2000, 100);
    }
    caught_up(&b, &a).await;
    caught_up(&c, &a).await;
    let expected = contents(&a);
    assert_eq!(expected.len(), 6000);
    assert_eq!(contents(&b), expected);
    assert_eq!(contents(&c), expected);
    let error = redis::cmd("SET").arg("users:k").arg("v").query::<()>(&mut b.redis()).unwrap_err();
    assert_eq!(error.code(), Some("READONLY"), "{error}");
    within("the primary sees both replicas without lag", async || {
        let followers = a.report().await.followers;
        (followers.len() == 2 && followers.iter().all(|f| f.connected && f.lag_sequences == 0)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_goes_on_by_its_own_orders_while_writes_continue() {
    let (a, mut b) = (Node::start("a"), Node::start("b"));
    store_of(&a, &[&b]).await;
    fill(&a, "p", 0, 5000, 100);
    b.kill();
    fill(&a, "p", 5000, 5000, 100);
    fill(&a, "made-meanwhile", 0, 100, 100);
    b.spawn();
    caught_up(&b, &a).await;
    assert_eq!(contents(&b), contents(&a));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_primary_is_followed_again_at_its_new_epoch() {
    let (mut a, b) = (Node::start("a"), Node::start("b"));
    store_of(&a, &[&b]).await;
    fill(&a, "p", 0, 3000, 100);
    a.kill();
    a.spawn();
    let second = reign(2, &[&a, &b]).await;
    promote(&a, &second).await.unwrap();
    follow(&b, &second, &a, &a).await;
    fill(&a, "p", 3000, 1000, 100);
    caught_up(&b, &a).await;
    assert_eq!(contents(&b), contents(&a));
    let positions = crate::node::positions(&b.report().await);
    assert!(positions.values().all(|&(epoch, _)| epoch == 2), "{positions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_member_is_bootstrapped_by_snapshot_while_writes_go_on() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    store_of(&a, &[]).await;
    fill(&a, "p", 0, 50_000, 500);
    let second = reign(2, &[&a, &b]).await;
    promote(&a, &second).await.unwrap();
    follow(&b, &second, &a, &a).await;
    fill(&a, "p", 50_000, 10_000, 500);
    caught_up(&b, &a).await;
    assert_eq!(contents(&b), contents(&a));
    let origin = find(&b.data().join("prefixes"), "origin.json");
    assert!(origin.iter().any(|p| std::fs::read_to_string(p).unwrap().contains("snapshot")), "{origin:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_outside_the_wal_window_bootstraps_by_itself() {
    let keep_nothing =
        serde_json::json!({"walRetentionSeconds": 0, "walRetentionMaxBytes": 0, "holdTimeoutSeconds": 1});
    let (a, mut b) = (Node::start_with("a", keep_nothing), Node::start("b"));
    store_of(&a, &[&b]).await;
    fill(&a, "p", 0, 100, 100);
    caught_up(&b, &a).await;
    b.kill();
    // Enough for several memtables, so that WAL files are archived and pruned.
    fill(&a, "p", 100, 150_000, 1000);
    within("WAL is pruned", async || {
        let report = a.report().await;
        report.prefixes.iter().find(|p| p.name == "p").filter(|p| p.oldest_wal_sequence > 200).map(|_| ())
    })
    .await;
    b.spawn();
    caught_up(&b, &a).await;
    assert_eq!(contents(&b), contents(&a));
    assert!(b.log().contains("gap") || b.log().contains("too old"), "the gap is told of");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_cut_by_a_kill_is_resumed() {
    // Slow enough to be cut in the middle: 60 MB at 8 MB/s.
    let slow = serde_json::json!({"bootstrapMaxBytesPerSecond": 8 << 20});
    let (a, mut b) = (Node::start("a"), Node::start_with("b", slow));
    store_of(&a, &[]).await;
    fill(&a, "p", 0, 60_000, 1000);
    let second = reign(2, &[&a, &b]).await;
    promote(&a, &second).await.unwrap();
    follow(&b, &second, &a, &a).await;
    within("the bootstrap is under way", async || {
        let report = b.report().await;
        let progress = report.prefixes.iter().find(|p| p.name == "p")?.bootstrap.clone()?;
        (progress.bytes_done > 12 << 20 && progress.bytes_done < progress.bytes_total).then_some(())
    })
    .await;
    b.kill();
    // Tables, or the log where the source had not flushed yet.
    let staged: u64 = [".sst", ".log"]
        .iter()
        .flat_map(|e| find(&b.data().join("staging"), e))
        .map(|f| f.metadata().unwrap().len())
        .sum();
    assert!(staged > 10 << 20, "what was copied is on the volume: {staged} bytes");
    b.settings["bootstrapMaxBytesPerSecond"] = serde_json::json!(0);
    b.spawn();
    caught_up(&b, &a).await;
    assert_eq!(contents(&b), contents(&a));
    assert!(b.log().contains("\"resumed\":true"), "the second attempt goes on with the first one's files");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_three_streams_through_the_middle() {
    let (a, b, c) = (Node::start("a"), Node::start("b"), Node::start("c"));
    let first = reign(1, &[&a, &b, &c]).await;
    promote(&a, &first).await.unwrap();
    follow(&b, &first, &a, &a).await;
    follow(&c, &first, &b, &a).await;
    fill(&a, "p", 0, 5000, 100);
    caught_up(&c, &a).await;
    assert_eq!(contents(&c), contents(&a));
    within("the primary counts the end of the chain", async || {
        let followers = a.report().await.followers;
        (followers.len() == 2 && followers.iter().all(|f| f.lag_sequences == 0)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_prefix_is_detached_on_the_replica_too() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    store_of(&a, &[&b]).await;
    fill(&a, "p", 0, 100, 10);
    caught_up(&b, &a).await;
    a.admin().await.drop_prefix(v1::PrefixRequest { name: "p".into() }).await.unwrap();
    within("the replica detaches it", async || {
        let gone = b.report().await.prefixes.iter().all(|p| p.name != "p");
        (gone && b.data().join("detached").read_dir().unwrap().count() == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quorum_write_waits_for_a_replica_that_has_it() {
    let (a, mut b) = (Node::start("a"), Node::start("b"));
    let mut first = reign(1, &[&a, &b]).await;
    first.mode = v1::Mode::Quorum.into();
    first.min_sync_replicas = 1;
    promote(&a, &first).await.unwrap();
    follow(&b, &first, &a, &a).await;
    served(&a).await;
    fill(&a, "p", 0, 500, 100);
    b.kill();
    let mut connection = a.redis();
    connection.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    let waiting = redis::cmd("SET").arg("p:late").arg("v").query::<()>(&mut connection);
    assert!(waiting.is_err(), "nobody else has it, so it is not acknowledged");
    b.spawn();
    fill(&a, "p", 500, 10, 100);
    served(&a).await;
    caught_up(&b, &a).await;
    assert_eq!(contents(&b), contents(&a));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_not_followed() {
    let (a, b, c) = (Node::start("a"), Node::start("b"), Node::start("c"));
    let first = store_of(&a, &[]).await;
    // The address of `c` with the identity of `a`: an address that was reused.
    let mut wrong = c.endpoint().await;
    wrong.data_uuid = a.report().await.data_uuid;
    let order = v1::FollowRequest {
        store_uid: crate::node::STORE.into(),
        data_uuid: b.report().await.data_uuid,
        reign: Some(v1::Reign { epoch: 1, ..first }),
        upstream: Some(wrong.clone()),
        primary: Some(wrong),
        bootstrap_source: None,
    };
    b.admin().await.follow(order).await.unwrap();
    within("the refusal is told of", async || b.log().contains("data_uuid").then_some(())).await;
    assert!(!b.report().await.upstream_connected);
}

/// Files below `dir` whose names end so.
pub fn find(dir: &std::path::Path, ending: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(find(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found
}
