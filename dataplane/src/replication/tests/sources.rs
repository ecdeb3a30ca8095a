//! Copies that come from another member than the upstream.

use super::proxy::Proxy;
use super::*;
use crate::store::prefix::PrefixPhase;

/// A primary with data beyond its WAL, a replica that has it, and a third that has nothing and should take it from the replica.
async fn three() -> (Node, Node, Node) {
    let a = primary().await;
    for _ in 0..3 {
        write_many(&a.prefix("data"), 100, 1_000);
        a.prefix("data").copy().unwrap().db.flush().unwrap();
    }
    let mut b = Node::new(2).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    b.equals(&a, "data").await;
    prune(&a.prefix("data")).await;
    let c = Node::new(3).await;
    c.store.set_bootstrap_source(Some(b.endpoint()));
    (a, b, c)
}

fn sent(node: &Node) -> u64 {
    node.ctx.stats.snapshot_bytes_sent.get()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_gives_the_copy_and_the_stream_goes_on_at_the_upstream() {
    let (a, b, mut c) = three().await;
    c.follow(&reign(1), a.endpoint(), &a.endpoint());
    write_many(&a.prefix("data"), 20, 100);
    c.equals(&a, "data").await;
    assert!(sent(&b) > 1 << 20, "{}", sent(&b));
    assert_eq!(sent(&a), 0);
    assert_eq!(c.follower.as_ref().unwrap().status().upstream, Some(member(1)));
    let last = write_many(&a.prefix("data"), 20, 100);
    c.equals(&a, "data").await;
    eventually("the new copy is acknowledged", || a.ctx.acks.lock().members_at(uuid_of("data"), last.sequence) == 2)
        .await;
    eventually("snapshot and hold are let go", || {
        a.ctx.stats.snapshots_open.get() == 0 && b.ctx.stats.snapshots_open.get() == 0
    })
    .await;
    for node in [c, b, a] {
        node.shut().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_from_a_source_behind_the_primary_counts_only_from_where_the_primary_was() {
    let (a, mut b, mut c) = three().await;
    // The source stays behind: whole, but without what is written now.
    b.stop_following().await;
    let behind = b.prefix("data").applied();
    let ordered_at = write_many(&a.prefix("data"), 50, 100);
    assert!(behind < ordered_at.sequence);
    c.follow(&reign(1), a.endpoint(), &a.endpoint());
    c.equals(&a, "data").await;
    assert!(sent(&b) > 1 << 20 && sent(&a) == 0, "the copy came from the source");
    let floor = c.hooks.floor(uuid_of("data")).expect("a floor");
    assert!(floor >= ordered_at, "{floor} is below {ordered_at}, where the primary was");
    for node in [c, b, a] {
        node.shut().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_below_its_floor_is_no_source_and_the_upstream_is_asked_instead() {
    let (a, b, mut c) = three().await;
    b.hooks.raise_floors(&[(b.prefix("data").uuid, Position::new(1, 1 << 40))]).unwrap();
    c.follow(&reign(1), a.endpoint(), &a.endpoint());
    c.equals(&a, "data").await;
    assert_eq!(sent(&b), 0);
    assert!(sent(&a) > 1 << 20);
    for node in [c, b, a] {
        node.shut().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_whose_position_the_upstream_can_no_longer_stream_from_is_not_used() {
    let (a, mut b, mut c) = three().await;
    b.stop_following().await;
    for _ in 0..3 {
        write_many(&a.prefix("data"), 100, 1_000);
        a.prefix("data").copy().unwrap().db.flush().unwrap();
    }
    // The follower's own hold has ended, and so its WAL goes.
    prune(&a.prefix("data")).await;
    assert!(a.prefix("data").copy().unwrap().db.oldest_in_wal().unwrap() > b.prefix("data").applied().next());
    c.follow(&reign(1), a.endpoint(), &a.endpoint());
    c.equals(&a, "data").await;
    assert_eq!(sent(&b), 0, "nothing was copied that could not be gone on with");
    for node in [c, b, a] {
        node.shut().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_dies_during_the_copy_is_replaced_by_the_upstream() {
    let (a, b, mut c) = three().await;
    // So slow that the source dies long before the copy is whole, however busy the machine is.
    let link = Proxy::new(&b).await;
    link.slow_down(64 << 10);
    c.store.set_bootstrap_source(Some(link.endpoint(&b)));
    c.follow(&reign(1), a.endpoint(), &a.endpoint());
    eventually("it copies from the source", || link.passed() > 128 << 10).await;
    assert!(a.ctx.holds.lock().live(0).any(|h| matches!(h.owner, Owner::Snapshot(_))), "the upstream holds its WAL");
    assert_eq!(c.prefix("data").phase(), PrefixPhase::Bootstrapping);
    drop(link);
    b.shut().await;
    c.equals(&a, "data").await;
    assert!(sent(&a) > 0);
    for node in [c, a] {
        node.shut().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pulled_under_a_seal_comes_from_the_named_member_alone_and_waits_for_no_primary() {
    let (a, b, mut c) = three().await;
    // What the orders named before: a source, and a primary that answers no more.
    let gone = Endpoint { data_uuid: Some(member(9)), replication: "127.0.0.1:1".to_owned(), ..Endpoint::default() };
    let upto = [(uuid_of("data"), a.prefix("data").position_at(a.prefix("data").applied()))];
    c.catalogue.create("data");
    c.store.set_role(RoleView {
        reign: Some(reign(1)),
        primary: Some(gone),
        upstream: Some(a.endpoint()),
        pull: Some(Arc::new(upto.into())),
        ..RoleView::default()
    });
    c.follower = Some(Follower::start(c.ctx.clone(), &tokio::runtime::Handle::current()).unwrap());
    c.equals(&a, "data").await;
    assert_eq!(sent(&b), 0);
    assert_eq!(c.ctx.stats.bootstrap_failures.get(), 0, "nobody was asked in vain");
    for node in [c, b, a] {
        node.shut().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_copy_that_is_replaced_under_a_seal_has_its_own_end_as_floor() {
    let (a, b, mut c) = three().await;
    c.follow(&reign(1), a.endpoint(), &a.endpoint());
    c.equals(&a, "data").await;
    c.stop_following().await;
    let here = c.prefix("data");
    let own = here.position_at(here.applied());
    write_many(&a.prefix("data"), 100, 1_000);
    prune(&a.prefix("data")).await;
    // The old primary told of records that nobody will ever have.
    here.set_upstream_latest(Position::new(1, 1 << 40));
    let decided = a.prefix("data").position_at(a.prefix("data").applied());
    c.store.set_role(RoleView {
        reign: Some(reign(1)),
        upstream: Some(a.endpoint()),
        pull: Some(Arc::new([(uuid_of("data"), decided)].into())),
        ..RoleView::default()
    });
    c.follower = Some(Follower::start(c.ctx.clone(), &tokio::runtime::Handle::current()).unwrap());
    c.equals(&a, "data").await;
    assert!(c.ctx.stats.bootstraps_completed.get() >= 2, "it was copied anew");
    assert!(own < decided);
    assert_eq!(c.hooks.floor(here.uuid), Some(decided), "not what the old primary told of");
    for node in [c, b, a] {
        node.shut().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raised_limit_is_obeyed_by_a_copy_under_way() {
    let (a, b, _) = three().await;
    // One chunk of this copy alone pauses it for longer than the test waits.
    let settings = Settings { bootstrap_max_bytes_per_second: 1 << 10, ..Settings::default() };
    let mut c = Node::with(3, store_uid(), settings, Tuning::default()).await;
    c.follow(&reign(1), a.endpoint(), &a.endpoint());
    eventually("it copies", || c.ctx.stats.bootstrap_bytes_received.get() > 0).await;
    c.store.settings.store(Arc::new(Settings::default()));
    c.equals(&a, "data").await;
    assert_eq!(c.ctx.stats.bootstrap_failures.get(), 0, "the same attempt goes on");
    for node in [c, b, a] {
        node.shut().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_source_does_not_disturb_a_copy_under_way() {
    let (a, b, _) = three().await;
    let settings = Settings { bootstrap_max_bytes_per_second: 4 << 20, ..Settings::default() };
    let mut c = Node::with(3, store_uid(), settings, Tuning::default()).await;
    c.store.set_bootstrap_source(Some(b.endpoint()));
    c.follow(&reign(1), a.endpoint(), &a.endpoint());
    eventually("it copies from the source", || sent(&b) > 0).await;
    c.store.set_bootstrap_source(None);
    c.equals(&a, "data").await;
    assert_eq!(c.ctx.stats.bootstrap_failures.get(), 0);
    assert_eq!(sent(&a), 0);
    for node in [c, b, a] {
        node.shut().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_table_of_the_source_is_not_taken_and_another_member_is_asked() {
    let (a, b, mut c) = three().await;
    b.prefix("data").copy().unwrap().db.flush().unwrap();
    let db = b.prefix("data").copy().unwrap().dir.join("db");
    let files = std::fs::read_dir(db).unwrap().map(|e| e.unwrap().path());
    let tables = files.filter(|path| path.extension().is_some_and(|e| e == "sst"));
    let table = tables.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&table).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    // In place: the engine has it open.
    std::fs::write(&table, bytes).unwrap();
    c.follow(&reign(1), a.endpoint(), &a.endpoint());
    c.equals(&a, "data").await;
    assert!(sent(&b) > 1 << 20 && sent(&a) > 1 << 20, "the source was asked first, then the upstream");
    assert_eq!(c.ctx.stats.damaged_copies.get(), 1);
    for node in [c, b, a] {
        node.shut().await;
    }
}
