use std::sync::atomic::Ordering;

use parovoz_proto::v1;
use parovoz_proto::v1::follower_message::Message;
use parovoz_proto::v1::replication_client::ReplicationClient;
use tokio_stream::wrappers::ReceiverStream;

use super::proxy::Proxy;
use super::*;
use crate::replication::wire::{hello_to, position_to};
use crate::store::retention::Pruner;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_gets_prefixes_and_writes_and_its_acknowledgements_release_them() {
    let a = primary().await;
    write_many(&a.prefix("data"), 50, 100);
    let mut b = Node::new(2).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    b.equals(&a, "data").await;
    a.create("more");
    let last = write_many(&a.prefix("more"), 500, 100);
    b.equals(&a, "more").await;
    eventually("the writes are released", || a.prefix("more").released() == last.sequence).await;
    eventually("the primary sees no lag", || {
        let reports = a.ctx.follower_reports();
        matches!(&reports[..], [r] if r.data_uuid == member(2) && r.connected && r.lag_sequences == 0)
    })
    .await;
    assert_eq!(b.ctx.stats.bootstraps_started.get(), 0, "everything came by streaming");
    assert!(b.store.primary_silence_ms().is_some());
    assert!(b.follower.as_ref().unwrap().status().connected());
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_whose_name_nobody_resolves_is_reached_by_its_address() {
    let a = primary().await;
    let (ip, port) = a.address.rsplit_once(':').unwrap();
    let unnamed = Endpoint { replication: format!("primary.invalid:{port}"), ip: ip.to_owned(), ..a.endpoint() };
    let mut b = Node::new(2).await;
    b.follow(&reign(1), unnamed.clone(), &unnamed);
    let last = write_many(&a.prefix("data"), 5, 100);
    b.equals(&a, "data").await;
    eventually("it acknowledges there too", || a.prefix("data").released() == last.sequence).await;
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_connection_is_resumed_where_it_was() {
    let a = primary().await;
    let mut b = Node::new(2).await;
    let proxy = Proxy::new(&a).await;
    b.follow(&reign(1), proxy.endpoint(&a), &a.endpoint());
    for round in 0..5 {
        write_many(&a.prefix("data"), 200, 200);
        if round % 2 == 0 {
            proxy.cut_after(50_000)
        } else {
            proxy.cut_now()
        }
        write_many(&a.prefix("data"), 50, 200);
    }
    b.equals(&a, "data").await;
    assert!(b.ctx.stats.sessions.get() >= 3);
    assert_eq!(b.ctx.stats.bootstraps_started.get(), 0);
    assert_eq!(b.ctx.stats.gaps.get(), 0);
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_behind_the_ring_is_served_from_the_wal() {
    let a = primary().await;
    write_many(&a.prefix("data"), 3_000, 500);
    a.prefix("data").ring().trim(u64::MAX);
    let mut b = Node::new(2).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    write_many(&a.prefix("data"), 100, 500);
    b.equals(&a, "data").await;
    assert!(a.ctx.stats.catchup_bytes.get() > 10_000_000);
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_three_ends_up_equal_and_all_acknowledge_to_the_primary() {
    let a = primary().await;
    let mut b = Node::new(2).await;
    let mut c = Node::new(3).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    c.follow(&reign(1), b.endpoint(), &a.endpoint());
    let last = write_many(&a.prefix("data"), 500, 100);
    b.equals(&a, "data").await;
    c.equals(&a, "data").await;
    eventually("both acknowledge", || {
        let acks = a.ctx.acks.lock();
        [2, 3].iter().all(|&n| acks.position(member(n), uuid_of("data")).is_some_and(|p| p.durable == last))
    })
    .await;
    assert_eq!(a.ctx.acks.lock().released(uuid_of("data"), &reign(1), 2), Some(last.sequence));
    assert_eq!(a.ctx.stats.followers.get(), 1, "the last one streams from the middle");
    c.shut().await;
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_larger_than_a_frame_and_than_the_credit_travels_in_parts() {
    let a = primary().await;
    let mut b = Node::new(2).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    let big = vec![7; 12 << 20];
    write(&a.prefix("data"), &[(b"big", &big), (b"small", b"x")]);
    write(&a.prefix("data"), &[(b"after", b"y")]);
    b.equals(&a, "data").await;
    assert!(a.ctx.stats.frames_sent.get() >= 12);
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_damaged_on_the_way_is_refused_and_sent_again() {
    let a = primary().await;
    let mut b = Node::new(2).await;
    let proxy = Proxy::new(&a).await;
    b.follow(&reign(1), proxy.endpoint(&a), &a.endpoint());
    b.equals(&a, "data").await;
    proxy.damage_once(b"precious", b"poisoned");
    write(&a.prefix("data"), &[(b"key", b"precious")]);
    b.equals(&a, "data").await;
    assert_eq!(b.ctx.stats.crc_errors.get(), 1);
    assert_eq!(b.ctx.stats.bootstraps_started.get(), 0);
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_takes_nothing_is_cut_and_blocks_nobody() {
    let tuning = Tuning { send_deadline: Duration::from_millis(500), ..Tuning::default() };
    let a = Node::with(1, store_uid(), Settings::default(), tuning).await;
    a.lead(&reign(1));
    a.create("data");
    let mut b = Node::new(2).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    let c = Node::new(3).await;
    c.store.set_role(RoleView { reign: Some(reign(1)), ..RoleView::default() });
    let mut client = ReplicationClient::connect(format!("http://{}", a.address)).await.unwrap();
    let (tx, rx) = tokio::sync::mpsc::channel(8);
    let resume =
        v1::Resume { prefix_uuid: uuid_of("data").to_string(), after: Some(position_to(Position::ZERO)), attempt: 1 };
    for message in [
        Message::Hello(hello_to(&c.ctx.own(Some(member(1))), None)),
        Message::Resume(resume),
        Message::Credit(v1::Credit { bytes: 1 << 40, ..v1::Credit::default() }),
    ] {
        tx.send(v1::FollowerMessage { message: Some(message) }).await.unwrap();
    }
    // Opened and never read from.
    let unread = client.stream(ReceiverStream::new(rx)).await.unwrap();
    write_many(&a.prefix("data"), 2_000, 3_000);
    b.equals(&a, "data").await;
    eventually("the slow one is cut", || a.ctx.stats.slow_followers_cut.get() == 1).await;
    drop(unread);
    b.shut().await;
    c.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_stop_nothing_is_applied_any_more() {
    let a = primary().await;
    let mut b = Node::new(2).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    b.equals(&a, "data").await;
    let writer = {
        let prefix = a.prefix("data");
        let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stop = done.clone();
        (
            done,
            tokio::task::spawn_blocking(move || {
                while !stop.load(Ordering::Acquire) {
                    write_many(&prefix, 10, 100);
                }
            }),
        )
    };
    eventually("it streams", || b.prefix("data").applied() > Sequence(500)).await;
    b.stop_following().await;
    let at = b.prefix("data").applied();
    write_many(&a.prefix("data"), 0, 0);
    writer.0.store(true, Ordering::Release);
    writer.1.await.unwrap();
    assert_eq!(b.prefix("data").applied(), at);
    assert!(a.prefix("data").applied() > at);
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    b.equals(&a, "data").await;
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_holds_the_wal_that_it_still_needs_and_no_more() {
    let a = primary().await;
    let mut b = Node::new(2).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    b.equals(&a, "data").await;
    b.stop_following().await;
    let needed = a.ctx.needed_after(uuid_of("data")).expect("a hold that outlives the connection");
    assert!(needed <= b.prefix("data").durable());
    let last = write_many(&a.prefix("data"), 50, 100);
    assert_eq!(a.ctx.needed_after(uuid_of("data")), Some(needed));
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    eventually("the hold follows what is durable", || a.ctx.needed_after(uuid_of("data")) == Some(last.sequence)).await;
    b.shut().await;
    a.shut().await;
}

/// Answers what was needed before anybody held.
struct Before<'a>(&'a ReplicationCtx);

impl Needs for Before<'_> {
    fn needed_after(&self, _: PrefixUuid) -> Option<Sequence> {
        None
    }
    fn remove_unneeded(
        &self,
        prefix: PrefixUuid,
        end: Sequence,
        anyway: bool,
        remove: &mut dyn FnMut() -> Result<(), EngineError>,
    ) -> Result<bool, EngineError> {
        self.0.remove_unneeded(prefix, end, anyway, remove)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_that_is_taken_while_the_pruner_looks_is_kept() {
    let settings = Settings { wal_retention_seconds: 0, ..Settings::default() };
    let a = Node::with(1, store_uid(), settings, Tuning::default()).await;
    a.lead(&reign(1));
    let data = a.create("data");
    let copy = data.copy().unwrap();
    let archived = || copy.db.wal_files().unwrap().iter().filter(|file| file.archived).count();
    eventually("WAL is archived", || {
        write_many(&data, 5, 1_000);
        copy.db.flush().unwrap();
        archived() > 1
    })
    .await;
    let owner = Owner::Follower(member(2));
    let expires_ms = clock::boot_ms() + 600_000;
    let hold = Hold { owner: owner.clone(), prefix: Some(data.uuid), after: Sequence(0), expires_ms };
    a.ctx.holds.lock().put(hold);
    let mut pruner = Pruner::default();
    assert_eq!(pruner.pass(&a.store, u64::MAX, &Before(&a.ctx)).unwrap().files, 0);
    a.ctx.holds.lock().remove_one(&owner, data.uuid);
    assert!(pruner.pass(&a.store, u64::MAX, &Before(&a.ctx)).unwrap().files > 0);
    a.shut().await;
}
