use super::proxy::Proxy;
use super::*;
use crate::store::prefix::PrefixPhase;

/// A prefix of several table files, about `files` megabytes together.
fn fill(prefix: &Prefix, files: u32) {
    for _ in 0..files {
        write_many(prefix, 100, 1_000);
        prefix.copy().unwrap().db.flush().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_is_never_skipped_but_copied_and_streaming_goes_on() {
    let a = primary().await;
    let mut b = Node::new(2).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    write_many(&a.prefix("data"), 20, 100);
    b.equals(&a, "data").await;
    b.stop_following().await;
    let old = b.prefix("data").copy().unwrap().generation;
    fill(&a.prefix("data"), 3);
    prune(&a.prefix("data")).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    write_many(&a.prefix("data"), 20, 100);
    b.equals(&a, "data").await;
    assert_eq!(b.ctx.stats.bootstraps_completed.get(), 1);
    assert!(b.ctx.stats.gaps.get() >= 1);
    assert!(b.prefix("data").copy().unwrap().generation > old);
    let last = write_many(&a.prefix("data"), 20, 100);
    b.equals(&a, "data").await;
    eventually("the new copy is acknowledged", || a.prefix("data").released() == last.sequence).await;
    eventually("snapshot and hold are let go", || a.ctx.stats.snapshots_open.get() == 0).await;
    let old_dir = b.dir.path().join("prefixes").join(format!("data-{}", uuid_of("data"))).join(format!("gen-{old}"));
    eventually("the old copy is removed", || !old_dir.exists()).await;
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_cut_goes_on_without_sending_finished_files_again() {
    let a = primary().await;
    fill(&a.prefix("data"), 8);
    prune(&a.prefix("data")).await;
    let mut b = Node::new(2).await;
    let proxy = Proxy::new(&a).await;
    proxy.cut_after(3 << 20);
    b.follow(&reign(1), proxy.endpoint(&a), &a.endpoint());
    eventually("the first attempt was cut", || b.ctx.stats.bootstrap_failures.get() >= 1).await;
    // A new process goes on as well as the old one.
    b.stop_following().await;
    b.follow(&reign(1), proxy.endpoint(&a), &a.endpoint());
    b.equals(&a, "data").await;
    assert!(b.ctx.stats.bootstraps_resumed.get() >= 1);
    assert_eq!(b.ctx.stats.bootstraps_started.get(), 1);
    let disk = a.prefix("data").copy().unwrap().db.disk_bytes();
    let taken = b.ctx.stats.bootstrap_bytes_received.get();
    assert!(disk > 6 << 20, "{disk}");
    assert!(taken < disk + disk / 10 + (1 << 20), "{taken} bytes were taken for {disk}");
    assert!(proxy.passed() < disk + disk / 2);
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_a_discarded_copy_are_used_again_if_their_checksums_agree() {
    let a = primary().await;
    fill(&a.prefix("data"), 8);
    prune(&a.prefix("data")).await;
    let mut b = Node::new(2).await;
    let proxy = Proxy::new(&a).await;
    proxy.cut_after(5 << 20);
    b.follow(&reign(1), proxy.endpoint(&a), &a.endpoint());
    eventually("the first attempt was cut", || b.ctx.stats.bootstrap_failures.get() >= 1).await;
    b.stop_following().await;
    // The hold ends: the snapshot is worth nothing any more.
    let holds: Vec<Owner> = a.ctx.holds.lock().live(0).map(|h| h.owner.clone()).collect();
    for owner in holds.iter().filter(|o| matches!(o, Owner::Snapshot(_))) {
        a.ctx.holds.lock().remove(owner);
    }
    b.follow(&reign(1), proxy.endpoint(&a), &a.endpoint());
    b.equals(&a, "data").await;
    assert_eq!(b.ctx.stats.bootstraps_started.get(), 2, "a new snapshot was needed");
    let disk = a.prefix("data").copy().unwrap().db.disk_bytes();
    let taken = b.ctx.stats.bootstrap_bytes_received.get();
    assert!(taken < disk + disk / 4 + (1 << 20), "{taken} bytes were taken for {disk}");
    b.shut().await;
    a.shut().await;
}

/// A primary and a replica that copies from it, no faster than this.
async fn copying(bytes_per_second: u64) -> (Node, Node) {
    let settings = Settings { bootstrap_max_bytes_per_second: bytes_per_second, ..Settings::default() };
    let a = primary().await;
    fill(&a.prefix("data"), 6);
    prune(&a.prefix("data")).await;
    let mut b = Node::with(2, store_uid(), settings, Tuning::default()).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    eventually("it copies", || b.ctx.stats.bootstrap_bytes_received.get() > 0).await;
    (a, b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_it_copies_writes_go_on_and_the_hold_keeps_the_wal() {
    let (a, b) = copying(4 << 20).await;
    let held = a.ctx.needed_after(uuid_of("data")).expect("a hold");
    assert!(held <= a.prefix("data").applied());
    let progress = b.follower.as_ref().unwrap().status().bootstraps[&uuid_of("data")];
    assert!(progress.bytes_total > 5 << 20 && progress.attempts == 1);
    assert_eq!(b.prefix("data").phase(), PrefixPhase::Bootstrapping);
    write_many(&a.prefix("data"), 300, 100);
    b.equals(&a, "data").await;
    assert_eq!(b.ctx.stats.bootstraps_completed.get(), 1);
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_diverged_replica_is_rebuilt_and_its_old_copy_is_set_aside() {
    let a = primary().await;
    let mut b = Node::new(2).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    write_many(&a.prefix("data"), 20, 100);
    b.equals(&a, "data").await;
    b.stop_following().await;
    // Records of epoch 1 that nobody else has, and a new epoch elsewhere.
    let tail = b.prefix("data");
    let fork = tail.applied();
    tail.set_writer(Some(reign(1).to_ref()));
    write(&tail, &[(b"lost", b"1"), (b"lost too", b"2"), (b"and this", b"3")]);
    tail.set_writer(None);
    a.lead(&reign(2));
    write_many(&a.prefix("data"), 20, 100);
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    b.equals(&a, "data").await;
    assert_eq!(a.ctx.stats.diverged_sent.get(), 1);
    let detached = b.dir.path().join("detached");
    eventually("the old copy is set aside", || std::fs::read_dir(&detached).unwrap().count() == 2).await;
    let tails = b.catalogue.layout.exported_tails();
    assert_eq!(tails.len(), 1);
    let tail = &tails[0];
    assert_eq!((tail.prefix.as_str(), tail.prefix_uuid, tail.epoch), ("data", uuid_of("data"), Epoch(1)));
    assert_eq!((tail.first.0, tail.last.0, tail.records), (fork.0 + 1, fork.0 + 3, 3));
    let lines = std::fs::read_to_string(b.dir.path().join(&tail.file)).unwrap();
    let keys: Vec<_> = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["key"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(keys, ["lost", "lost too", "and this"]);
    let entries = std::fs::read_dir(&detached).unwrap().map(|e| e.unwrap().path());
    let kept = entries.into_iter().find(|p| p.to_string_lossy().contains("-gen-")).unwrap();
    eventually("and says why", || kept.join("why.txt").exists()).await;
    let why = std::fs::read_to_string(kept.join("why.txt")).unwrap();
    assert!(why.contains(&format!("after 1/{fork} up to 1/{}", fork.0 + 3)), "{why}");
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_everything_ends_is_noted_before_a_diverged_catalogue_is_replaced() {
    let a = primary().await;
    let mut b = Node::new(2).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    b.equals(&a, "data").await;
    b.stop_following().await;
    // A prefix that only this member has, by a catalogue that has left the history.
    let listing = b.prefix_by(catalogue_uuid(&b.store.store_uid));
    listing.set_writer(Some(reign(1).to_ref()));
    write(&listing, &[(b"only-b", b"")]);
    listing.set_writer(None);
    let alone = b.catalogue.create("only-b");
    alone.begin_epoch(reign(1).to_ref(), true).unwrap();
    let end = write_many(&alone, 5, 100);
    a.lead(&reign(2));
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    b.equals(&a, "data").await;
    eventually("the catalogue is the primary's", || {
        let (here, there) = (&listing, a.prefix_by(listing.uuid));
        here.position_at(here.applied()) == there.position_at(there.applied())
    })
    .await;
    assert_eq!(b.hooks.floor(alone.uuid), Some(end));
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_can_have_a_prefix_copied_anew() {
    let a = primary().await;
    write_many(&a.prefix("data"), 20, 100);
    let mut b = Node::new(2).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    b.equals(&a, "data").await;
    let old = b.prefix("data").copy().unwrap().generation;
    b.follower.as_ref().unwrap().reseed(uuid_of("data"));
    eventually("a new copy", || b.prefix("data").copy().unwrap().generation > old).await;
    write_many(&a.prefix("data"), 20, 100);
    b.equals(&a, "data").await;
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalogue_beyond_the_wal_is_copied_and_its_prefixes_follow() {
    let a = primary().await;
    for name in ["one", "two", "three"] {
        write_many(&a.create(name), 5, 100);
    }
    prune(&a.prefix_by(catalogue_uuid(&store_uid()))).await;
    let mut b = Node::new(2).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    for name in ["one", "two", "three"] {
        b.equals(&a, name).await;
    }
    assert_eq!(b.ctx.stats.bootstraps_completed.get(), 1);
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_can_not_be_reached_for_a_while_costs_none_of_the_copies_an_hour() {
    let a = primary().await;
    let names: Vec<String> = (0..20).map(|n| format!("p{n}")).collect();
    for name in &names {
        write_many(&a.create(name), 1, 100);
    }
    let mut b = Node::new(2).await;
    let proxy = Proxy::new(&a).await;
    b.follow(&reign(1), proxy.endpoint(&a), &a.endpoint());
    for name in &names {
        b.equals(&a, name).await;
    }
    proxy.refuse(true);
    let begin = std::time::Instant::now();
    for name in &names {
        b.follower.as_ref().unwrap().reseed(uuid_of(name));
    }
    eventually("five attempts failed", || b.ctx.stats.bootstrap_failures.get() >= 5).await;
    assert!(begin.elapsed() > Duration::from_secs(1), "the upstream was asked for each prefix at once");
    proxy.refuse(false);
    for name in &names {
        eventually("a new copy", || b.prefix(name).copy().unwrap().generation > 1).await;
        b.equals(&a, name).await;
    }
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_the_copy_of_a_prefix_that_is_dropped_meanwhile() {
    let (a, b) = copying(128 << 10).await;
    let staging = b.dir.path().join("staging").join(format!("data-{}", uuid_of("data")));
    eventually("it fetches", || staging.exists()).await;
    b.store.remove_prefix(uuid_of("data")).unwrap();
    a.store.remove_prefix(uuid_of("data")).unwrap();
    eventually("the staging is removed", || !staging.exists()).await;
    eventually("the source's checkpoint is removed", || a.ctx.stats.snapshots_open.get() == 0).await;
    assert!(b.follower.as_ref().unwrap().status().bootstraps.is_empty());
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_waits_for_room_is_not_missing() {
    let a = primary().await;
    let mut b = Node::new(2).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    write_many(&a.prefix("data"), 5, 100);
    b.equals(&a, "data").await;
    b.stop_following().await;
    let closed = b.prefix("data").close().unwrap();
    b.prefix("data").set_lacks_room(true);
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    write_many(&a.create("other"), 5, 100);
    b.equals(&a, "other").await;
    assert_eq!(b.ctx.stats.bootstraps_started.get(), 0);
    assert!(b.follower.as_ref().unwrap().status().bootstraps.is_empty());
    // There is room.
    let history = b.prefix("data").history();
    let copy = Copy { generation: 1, dir: closed.dir.clone(), sequence_offset: 0, db: closed.db.clone() };
    b.prefix("data").install(copy, history);
    b.store.set_loading(true);
    b.store.set_loading(false);
    write_many(&a.prefix("data"), 5, 100);
    b.equals(&a, "data").await;
    assert_eq!(b.ctx.stats.bootstraps_started.get(), 0);
    b.shut().await;
    a.shut().await;
}
