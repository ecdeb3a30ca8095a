//! Seals, promotions and pulls between real processes, some of them killed or stopped.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use parovoz_proto::v1;
use parovoz_proto::v1::SealEvidence::{Dead, PrimarySealed, Silent};
use rustix::process::Signal;

use crate::node::{
    Node, STORE, caught_up, contents, fill, follow, named, promote, promote_sealed, quorum_reign, reign, seal, served,
    store_of, votes, within,
};

/// A quorum store with W = 1 that serves.
async fn quorum_of(primary: &Node, replicas: &[&Node]) -> v1::Reign {
    let members: Vec<&Node> = std::iter::once(primary).chain(replicas.iter().copied()).collect();
    let first = quorum_reign(1, 1, &members).await;
    promote(primary, &first).await.unwrap();
    for replica in replicas {
        follow(replica, &first, primary, primary).await;
    }
    served(primary).await;
    first
}

/// Sets a key in a thread; the answer comes as text.
fn set_aside(node: &Node, key: &'static str) -> std::thread::JoinHandle<Result<(), String>> {
    let mut connection = node.redis();
    std::thread::spawn(move || {
        redis::cmd("SET").arg(key).arg("v").query::<()>(&mut connection).map_err(|e| e.to_string())
    })
}

fn waits(report: &v1::MemberReport) -> Option<()> {
    (report.oldest_wait_ms > 0).then_some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_primary_acknowledges_nothing_after_its_seal_and_answers_no_read() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    quorum_of(&a, &[&b]).await;
    fill(&a, "p", 0, 100, 10);
    let mut old = a.redis();
    b.signal(Signal::STOP);
    let parked = set_aside(&a, "p:parked");
    within("the write waits", async || waits(&a.report().await)).await;
    let second = quorum_reign_like(&a, 2).await;
    let report = seal(&a, &second, Silent).await.unwrap();
    assert_eq!(report.sealed, Some(named(&second)));
    assert!(!report.can_acknowledge);
    let error = redis::cmd("GET").arg("p:key-1").query::<String>(&mut old).unwrap_err();
    assert!(error.to_string().contains("stopped leading"), "{error}");
    let error = redis::cmd("SET").arg("p:x").arg("y").query::<()>(&mut old).unwrap_err();
    assert!(error.to_string().contains("stopped leading"), "{error}");
    // Its acknowledgement comes now, and is nobody's any more.
    b.signal(Signal::CONT);
    assert!(seal(&a, &second, Silent).await.is_ok(), "a repeated seal is answered again");
    let answer = parked.join().unwrap().unwrap_err();
    assert!(answer.contains("outcome unknown"), "{answer}");
}

/// The reign that a member promised, at another epoch and under another id.
async fn quorum_reign_like(node: &Node, epoch: u64) -> v1::Reign {
    let reign = node.report().await.reign.unwrap();
    v1::Reign { epoch, reign_id: uuid::Uuid::new_v4().to_string(), ..reign }
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_no_evidence_while_the_primary_beats_and_for_a_while_after() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    quorum_of(&a, &[&b]).await;
    let second = quorum_reign_like(&b, 2).await;
    let refused = seal(&b, &second, Silent).await.unwrap_err();
    assert!(refused.message().contains("heard the primary"), "{refused}");
    a.signal(Signal::STOP);
    let stopped = Instant::now();
    let sealed = within("the silence is long enough", async || seal(&b, &second, Silent).await.ok()).await;
    let after = stopped.elapsed();
    a.signal(Signal::CONT);
    assert_eq!(sealed.sealed, Some(named(&second)));
    // The last beat was at most one interval before the stop.
    assert!(after > Duration::from_millis(2_400), "sealed {after:?} after the last beats");
    within("the primary can't answer fresh reads without its replica's promises", async || {
        (!a.report().await.can_acknowledge).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_is_taken_at_once_and_only_about_the_promised_reign() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    let first = quorum_of(&a, &[&b]).await;
    let second = quorum_reign_like(&b, 2).await;
    let about_another = v1::SealRequest {
        store_uid: STORE.to_owned(),
        data_uuid: b.report().await.data_uuid,
        reign: Some(named(&second)),
        about: Some(v1::ReignRef { reign_id: uuid::Uuid::new_v4().to_string(), ..named(&first) }),
        evidence: Dead.into(),
    };
    let refused = b.admin().await.seal(about_another).await.unwrap_err();
    assert!(refused.message().contains("heard the primary"), "{refused}");
    seal(&b, &second, Dead).await.unwrap();
    let other = quorum_reign_like(&b, 2).await;
    let refused = seal(&b, &other, Dead).await.unwrap_err();
    assert!(refused.message().contains("promised to another reign"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_leads_without_the_seal_or_on_other_positions_or_an_epoch_twice() {
    let mut a = Node::start("a");
    store_of(&a, &[]).await;
    fill(&a, "p", 0, 10, 10);
    let second = reign(2, &[&a]).await;
    let refused = promote_sealed(&a, &second).await.unwrap_err();
    assert!(refused.message().contains("not sealed"), "{refused}");
    let report = seal(&a, &second, Silent).await.unwrap();
    let mut positions: Vec<v1::Vote> = report.prefixes.iter().filter_map(|p| p.vote.clone()).collect();
    positions[0].known.as_mut().unwrap().sequence += 1;
    let order = v1::PromoteRequest {
        store_uid: STORE.to_owned(),
        data_uuid: report.data_uuid.clone(),
        reign: Some(second.clone()),
        process_id: String::new(),
        positions,
        first: false,
    };
    let refused = a.admin().await.promote(order.clone()).await.unwrap_err();
    assert!(refused.message().contains("this member votes"), "{refused}");
    let stale = v1::PromoteRequest { process_id: "of-yesterday".into(), ..order };
    assert!(a.admin().await.promote(stale).await.unwrap_err().message().contains("has ended"));
    promote_sealed(&a, &second).await.unwrap();
    served(&a).await;
    a.kill();
    a.spawn();
    let refused = promote_sealed(&a, &second).await.unwrap_err();
    assert!(refused.message().contains("not above the started"), "{refused}");
    let third = reign(3, &[&a]).await;
    promote(&a, &third).await.unwrap();
    served(&a).await;
    assert_eq!(contents(&a).len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_member_is_completed_from_another_and_leads_with_its_tail() {
    let (mut a, b, mut c) = (Node::start("a"), Node::start("b"), Node::start("c"));
    quorum_of(&a, &[&b, &c]).await;
    fill(&a, "p", 0, 1000, 100);
    caught_up(&c, &a).await;
    c.kill();
    fill(&a, "p", 1000, 1000, 100);
    fill(&a, "late", 0, 100, 100);
    caught_up(&b, &a).await;
    let expected = contents(&a);
    a.kill();
    c.spawn();
    let second = v1::Reign { primary: c.report().await.data_uuid, ..quorum_reign_like(&b, 2).await };
    let ahead = seal(&b, &second, Dead).await.unwrap();
    let behind = seal(&c, &second, Dead).await.unwrap();
    assert!(votes(&behind)["p"] < votes(&ahead)["p"] && !votes(&behind).contains_key("late"));
    let pull = v1::PullRequest {
        store_uid: STORE.to_owned(),
        data_uuid: behind.data_uuid.clone(),
        reign: Some(named(&second)),
        source: Some(b.endpoint().await),
        upto: ahead.prefixes.iter().filter_map(|p| p.vote.clone()).collect(),
    };
    c.admin().await.pull(pull).await.unwrap();
    within("c has what b has", async || (votes(&c.report().await) == votes(&ahead)).then_some(())).await;
    assert_eq!(votes(&b.report().await), votes(&ahead), "the source stands still");
    promote_sealed(&c, &second).await.unwrap();
    follow(&b, &second, &c, &c).await;
    served(&c).await;
    assert_eq!(contents(&c), expected);
    fill(&c, "p", 5000, 10, 10);
    caught_up(&b, &c).await;
}

/// Writes unique keys until told to stop, or until the connection fails; notes what was acknowledged.
fn load(node: &Node, stop: &Arc<AtomicBool>) -> (Arc<Mutex<Vec<usize>>>, Vec<std::thread::JoinHandle<()>>) {
    let acked = Arc::new(Mutex::new(Vec::new()));
    let threads = (0..4)
        .map(|thread| {
            let (stop, acked, mut connection) = (stop.clone(), acked.clone(), node.redis());
            std::thread::spawn(move || {
                for n in (thread..).step_by(4) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let key = format!("p{}:key-{n}", n % 3);
                    if redis::cmd("SET").arg(&key).arg(n).query::<()>(&mut connection).is_err() {
                        return;
                    }
                    acked.lock().unwrap().push(n);
                }
            })
        })
        .collect();
    (acked, threads)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_primary_loses_no_acknowledged_write_and_follows_when_it_is_back() {
    let (mut a, b, c) = (Node::start("a"), Node::start("b"), Node::start("c"));
    quorum_of(&a, &[&b, &c]).await;
    for prefix in ["p0", "p1", "p2"] {
        fill(&a, prefix, 1_000_000, 1, 1);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (acked, threads) = load(&a, &stop);
    within("enough was written", async || (acked.lock().unwrap().len() > 3000).then_some(())).await;
    a.kill();
    for thread in threads {
        thread.join().unwrap();
    }
    let acked = acked.lock().unwrap().clone();
    let second = v1::Reign { primary: b.report().await.data_uuid, ..quorum_reign_like(&b, 2).await };
    let mut reports = BTreeMap::new();
    for node in [&b, &c] {
        reports.insert(node.name.clone(), seal(node, &second, Dead).await.unwrap());
    }
    // The tails of each prefix, wherever they are, come to b.
    let ahead: Vec<v1::Vote> = reports["c"]
        .prefixes
        .iter()
        .filter(|p| votes(&reports["c"])[&p.name] > votes(&reports["b"])[&p.name])
        .filter_map(|p| p.vote.clone())
        .collect();
    if !ahead.is_empty() {
        let names: Vec<String> = ahead.iter().map(|v| v.name.clone()).collect();
        let pull = v1::PullRequest {
            store_uid: STORE.to_owned(),
            data_uuid: reports["b"].data_uuid.clone(),
            reign: Some(named(&second)),
            source: Some(c.endpoint().await),
            upto: ahead,
        };
        b.admin().await.pull(pull).await.unwrap();
        within("b has the tails", async || {
            let now = votes(&b.report().await);
            names.iter().all(|name| now[name] == votes(&reports["c"])[name]).then_some(())
        })
        .await;
    }
    promote_sealed(&b, &second).await.unwrap();
    follow(&c, &second, &b, &b).await;
    served(&b).await;
    let found = contents(&b);
    let lost: Vec<usize> =
        acked.iter().copied().filter(|n| !found.contains_key(format!("p{}:key-{n}", n % 3).as_bytes())).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged writes are lost: {lost:?}", lost.len(), acked.len());
    fill(&b, "p0", 2_000_000, 100, 10);
    a.spawn();
    follow(&a, &second, &b, &b).await;
    caught_up(&a, &b).await;
    caught_up(&c, &b).await;
    assert_eq!(contents(&a), contents(&b));
}

#[tokio::test(flavor = "multi_thread")]
async fn frozen_writes_wait_and_go_on_by_themselves() {
    let a = Node::start("a");
    let first = store_of(&a, &[]).await;
    fill(&a, "p", 0, 10, 10);
    let freeze = v1::FreezeRequest {
        store_uid: STORE.to_owned(),
        data_uuid: a.report().await.data_uuid,
        reign: Some(named(&first)),
        for_ms: 700,
    };
    let mut connection = a.redis();
    let begin = Instant::now();
    let report = a.admin().await.freeze(freeze).await.unwrap().into_inner();
    assert!(report.frozen_ms > 0);
    let before = votes(&report);
    let value: String = redis::cmd("GET").arg("p:key-1").query(&mut connection).unwrap();
    assert_eq!(value.len(), 10, "reads go on");
    redis::cmd("SET").arg("p:frozen").arg("v").query::<()>(&mut connection).unwrap();
    let waited = begin.elapsed();
    assert!(waited > Duration::from_millis(650) && waited < Duration::from_secs(5), "{waited:?}");
    assert_ne!(votes(&a.report().await), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_reign_of_the_same_primary_lets_waiting_writes_through() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    quorum_of(&a, &[&b]).await;
    fill(&a, "p", 0, 10, 10);
    b.signal(Signal::STOP);
    let parked = set_aside(&a, "p:parked");
    within("the write waits", async || waits(&a.report().await)).await;
    let second = quorum_reign_like(&a, 2).await;
    seal(&a, &second, PrimarySealed).await.unwrap();
    promote_sealed(&a, &second).await.unwrap();
    b.signal(Signal::CONT);
    follow(&b, &second, &a, &a).await;
    assert_eq!(parked.join().unwrap(), Ok(()), "released by an acknowledgement of the next reign");
    served(&a).await;
    caught_up(&b, &a).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_primary_that_follows_says_that_nobody_knows_and_relays_its_clients() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    quorum_of(&a, &[&b]).await;
    fill(&a, "p", 0, 10, 10);
    caught_up(&b, &a).await;
    let mut old = a.redis();
    let _: String = redis::cmd("GET").arg("p:key-1").query(&mut old).unwrap();
    b.signal(Signal::STOP);
    let parked = set_aside(&a, "p:parked");
    within("the write waits", async || waits(&a.report().await)).await;
    let second = v1::Reign {
        min_sync_replicas: 1,
        primary: {
            b.signal(Signal::CONT);
            b.report().await.data_uuid
        },
        ..quorum_reign_like(&a, 2).await
    };
    seal(&a, &second, PrimarySealed).await.unwrap();
    seal(&b, &second, PrimarySealed).await.unwrap();
    promote_sealed(&b, &second).await.unwrap();
    follow(&a, &second, &b, &b).await;
    let answer = parked.join().unwrap();
    // The stopped replica may have taken it, and acknowledged it, just before the seal.
    assert!(answer.is_ok() || answer.as_ref().unwrap_err().contains("outcome unknown"), "{answer:?}");
    served(&b).await;
    // From its next request on it talks to the new primary, without noticing.
    let (value, set, role): (String, String, Vec<redis::Value>) =
        redis::pipe().get("p:key-1").cmd("SET").arg("p:relayed").arg("1").cmd("ROLE").query(&mut old).unwrap();
    assert!(!value.is_empty() && set == "OK");
    assert_eq!(role[0], redis::Value::BulkString(b"master".to_vec()));
    caught_up(&a, &b).await;
    assert_eq!(contents(&a), contents(&b));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_member_seals_and_knows_no_votes() {
    let mut a = Node::start("a");
    store_of(&a, &[]).await;
    fill(&a, "p", 0, 10, 10);
    a.kill();
    a.settings["recovery"] = serde_json::json!({"maxAttempts": 0, "windowSeconds": 300, "backoffSeconds": 0});
    a.spawn();
    let report = a.report().await;
    assert_eq!(report.phase(), v1::MemberPhase::Parked);
    let second = reign(2, &[&a]).await;
    let report = seal(&a, &second, Dead).await.unwrap();
    assert_eq!(report.sealed, Some(named(&second)));
    assert_eq!(report.prefixes.len(), 2);
    assert!(report.prefixes.iter().all(|p| p.vote.as_ref().is_some_and(|v| v.known.is_none())));
    let lower = v1::Reign { epoch: 1, ..second.clone() };
    assert!(seal(&a, &lower, Dead).await.is_err());
    assert!(promote_sealed(&a, &second).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_leaves_its_identity_where_the_kubelet_finds_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("termination-log");
    std::fs::write(&log, "").unwrap();
    let mut a = Node::new("a", serde_json::json!({}));
    a.extra = vec!["--termination-log".into(), log.display().to_string()];
    a.spawn();
    let process_id = a.report().await.process_id;
    a.kill();
    assert!(std::fs::read_to_string(&log).unwrap().contains(&process_id), "after its end, too");
}
