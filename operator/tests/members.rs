//! Talking to members, over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fake;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use fake::{FakeMember, until};
use parovoz_api::{MemberPhase, Mode};
use parovoz_operator::error::StoreRef;
use parovoz_operator::member::{MemberPod, Members, OrderError};
use parovoz_operator::metrics::Metrics;
use parovoz_operator_core::observed::{Contact, KnownReign};
use parovoz_operator_core::plan::{Order, OrderKind};
use parovoz_proto::v1::{self, MemberReport};
use tokio::sync::mpsc;

fn blank() -> MemberReport {
    let mut report =
        MemberReport { store_uid: "u".into(), data_uuid: "d".into(), process_id: "p".into(), ..Default::default() };
    report.set_phase(v1::MemberPhase::Blank);
    report.set_role(v1::MemberRole::Replica);
    report
}

fn store() -> StoreRef {
    StoreRef::new("cache").within("prod")
}

fn pod(member: &FakeMember, uid: &str) -> MemberPod {
    MemberPod { name: "cache-1".into(), uid: uid.into(), ip: Some(member.address.ip()) }
}

fn pool(member: &FakeMember) -> (Members, mpsc::Receiver<StoreRef>, Arc<Metrics>) {
    let (sender, queue) = mpsc::channel(64);
    let metrics = Arc::new(Metrics::default());
    (Members::new(member.address.port(), sender, metrics.clone()), queue, metrics)
}

fn promote() -> Order {
    Order {
        pod: "cache-1".into(),
        data_uuid: "d".into(),
        process_id: "p".into(),
        reign: KnownReign {
            epoch: 1,
            reign_id: "r".into(),
            primary: "d".into(),
            members: vec!["d".into()],
            mode: Mode::Async,
            min_sync_replicas: 0,
        },
        kind: OrderKind::Promote,
        first_reign: true,
    }
}

fn contact(members: &Members, pods: &[MemberPod]) -> Option<Contact> {
    members.sync(&store(), pods).remove("cache-1")
}

#[tokio::test]
async fn a_report_reaches_the_pool_and_wakes_its_store() {
    let member = FakeMember::start(blank());
    let (members, mut queue, metrics) = pool(&member);
    let pods = [pod(&member, "one")];
    let first = contact(&members, &pods).unwrap();
    assert!(first.report.is_none() && !first.unreachable_for.is_zero());
    assert_eq!(tokio::time::timeout(Duration::from_secs(10), queue.recv()).await.unwrap(), Some(store()));
    let contact = contact(&members, &pods).unwrap();
    assert_eq!(contact.fresh().unwrap().phase, MemberPhase::Blank);
    assert!(metrics.encode().unwrap().contains("member_connections 1"));
}

#[tokio::test]
async fn an_order_changes_the_report_before_the_stream_tells() {
    let member = FakeMember::start(blank());
    let (members, mut queue, _) = pool(&member);
    let pods = [pod(&member, "one")];
    let _ = contact(&members, &pods);
    queue.recv().await.unwrap();
    members.order(&store(), "u", 10_000, &promote()).await.unwrap();
    assert_eq!(*member.orders.lock(), ["promote d to 1"]);
    let report = contact(&members, &pods).unwrap().report.unwrap();
    assert!(report.leads(1, "r"));
}

#[tokio::test]
async fn a_refusal_and_a_missing_pod_are_told_apart() {
    let member = FakeMember::start(blank());
    let (members, mut queue, metrics) = pool(&member);
    let missing = members.order(&store(), "u", 10_000, &promote()).await.unwrap_err();
    assert!(matches!(missing, OrderError::Unreachable { .. }));
    let _ = contact(&members, &[pod(&member, "one")]);
    queue.recv().await.unwrap();
    *member.refuse.lock() = true;
    let refused = members.order(&store(), "u", 10_000, &promote()).await.unwrap_err();
    assert_eq!(refused.to_string(), "order member cache-1: it refuses: promised a later reign");
    assert!(metrics.encode().unwrap().contains("orders_total{order=\"Promote\",result=\"Refused\"} 1"));
}

#[tokio::test]
async fn a_pod_made_anew_begins_with_nothing_known() {
    let member = FakeMember::start(blank());
    let (members, mut queue, _) = pool(&member);
    let _ = contact(&members, &[pod(&member, "one")]);
    queue.recv().await.unwrap();
    assert!(contact(&members, &[pod(&member, "one")]).unwrap().report.is_some());
    assert!(contact(&members, &[pod(&member, "two")]).unwrap().report.is_none());
    assert!(contact(&members, &[]).is_none(), "a pod that is gone is not talked to");
}

#[tokio::test]
async fn a_member_that_ends_is_unreachable_and_is_found_again() {
    let member = FakeMember::start(blank());
    let (members, mut queue, metrics) = pool(&member);
    let pods = [pod(&member, "one")];
    let _ = contact(&members, &pods);
    queue.recv().await.unwrap();
    let address = member.address;
    drop(member);
    until("the member counts as unreachable", || {
        contact(&members, &pods).is_some_and(|contact| !contact.unreachable_for.is_zero())
    })
    .await;
    assert!(contact(&members, &pods).unwrap().report.is_some(), "its last word is remembered");
    assert!(metrics.encode().unwrap().contains("member_connections 0"));
    let mut listener = None;
    until("the port is free again", || {
        listener = TcpListener::bind(address).ok();
        listener.is_some()
    })
    .await;
    let _again = FakeMember::on(listener.unwrap(), blank());
    until("the member reports again", || contact(&members, &pods).unwrap().fresh().is_some()).await;
}
