//! `durability: Sync`: replies wait for the disk, and only those that must.

use super::*;

/// A store whose prefix `a` is on a disk that can be stopped.
fn rig() -> (Rig, Arc<Faulty>) {
    with(|db| db)
}

fn with(change: impl FnOnce(Faulty) -> Faulty) -> (Rig, Arc<Faulty>) {
    on(2, change)
}

/// The same with so many loops.
fn on(loops: usize, change: impl FnOnce(Faulty) -> Faulty) -> (Rig, Arc<Faulty>) {
    let rig = Rig::with(Plan { durability: Durability::Sync, loops, ..Plan::default() }).prefixes(&["a", "b"]);
    let mut raw = rig.raw();
    raw.send("SET a:old 1\r\nSET b:old 1\r\n");
    raw.expect("+OK\r\n+OK\r\n");
    let prefix = rig.store.prefix(b"a").unwrap();
    let copy = prefix.copy().unwrap();
    let db = Arc::new(change(Faulty::around(copy.db.clone())));
    let copy = Copy { generation: 2, dir: copy.dir.clone(), sequence_offset: 0, db: db.clone() };
    prefix.install(copy, prefix.history());
    // Another copy was seen: what was cached before is forgotten.
    raw.send("GET a:old\r\n");
    raw.expect("$1\r\n1\r\n");
    (rig, db)
}

#[test]
fn a_write_is_answered_once_it_is_durable_and_other_reads_do_not_wait_for_it() {
    let (rig, disk) = rig();
    let (mut writer, mut reader, mut other) = (rig.raw(), rig.raw(), rig.raw());
    disk.hold(true);
    writer.send("SET a:k v\r\nPING\r\n");
    wait_until("the sync is under way", || disk.syncs() == 1);
    writer.expect_silence();
    for _ in 0..100 {
        other.send("GET a:old\r\nGET b:old\r\nGET a:none\r\n");
        other.expect("$1\r\n1\r\n$1\r\n1\r\n$-1\r\n");
    }
    reader.send("GET a:k\r\n");
    reader.expect_silence();
    assert_eq!(rig.store.prefix(b"a").unwrap().durable().next(), rig.store.prefix(b"a").unwrap().applied());
    disk.hold(false);
    writer.expect("+OK\r\n+PONG\r\n");
    reader.expect("$1\r\nv\r\n");
}

#[test]
fn before_an_order_closes_the_gate_what_is_committed_becomes_durable_and_is_answered() {
    let (rig, disk) = rig();
    let mut writer = rig.raw();
    disk.hold(true);
    writer.send("SET a:k v\r\n");
    wait_until("the sync is under way", || disk.syncs() == 1);
    std::thread::scope(|scope| {
        let settling = scope.spawn(|| {
            rig.store.settle_loops(clock::boot_ms() + 60_000);
            rig.store.gate.publish(Serving::default(), 0);
        });
        writer.expect_silence_for_now();
        disk.hold(false);
        writer.expect("+OK\r\n");
        settling.join().unwrap();
    });
}

#[test]
fn what_comes_during_a_sync_shares_the_next_one() {
    let (rig, disk) = rig();
    disk.hold(true);
    let mut clients: Vec<Raw> = (0..30).map(|_| rig.raw()).collect();
    clients[0].send("SET a:k0 v\r\n");
    wait_until("the sync is under way", || disk.syncs() == 1);
    let before = rig.store.prefix(b"a").unwrap().applied();
    for (i, client) in clients.iter_mut().enumerate().skip(1) {
        client.send(format!("SET a:k{i} v\r\n"));
    }
    wait_until("all are committed", || rig.store.prefix(b"a").unwrap().applied().0 == before.0 + 29);
    clients.iter_mut().for_each(Raw::expect_silence_for_now);
    disk.hold(false);
    clients.iter_mut().for_each(|c| c.expect("+OK\r\n"));
    assert!(disk.syncs() <= 3, "{} syncs", disk.syncs());
}

#[test]
fn a_connection_goes_on_while_its_own_writes_are_synced() {
    let (rig, disk) = rig();
    let mut raw = rig.raw();
    disk.hold(true);
    raw.send("SET a:1 x\r\n");
    wait_until("the sync is under way", || disk.syncs() == 1);
    raw.send("GET a:old\r\nINCR a:old\r\n");
    let prefix = rig.store.prefix(b"a").unwrap();
    wait_until("the second write is committed", || prefix.applied().0 == prefix.durable().0 + 2);
    raw.expect_silence();
    disk.hold(false);
    raw.expect("+OK\r\n$1\r\n1\r\n:2\r\n");
}

#[test]
fn commands_over_several_prefixes_wait_for_each_disk() {
    let (rig, disk) = rig();
    let mut raw = rig.raw();
    disk.hold(true);
    raw.send("MSET a:1 x b:1 y\r\nMGET a:1 b:1\r\n");
    wait_until("the sync is under way", || disk.syncs() == 1);
    raw.expect_silence();
    disk.hold(false);
    raw.expect("+OK\r\n*2\r\n$1\r\nx\r\n$1\r\ny\r\n");
}

#[test]
fn scans_show_only_what_is_durable() {
    let (rig, disk) = rig();
    let (mut writer, mut reader) = (rig.raw(), rig.raw());
    disk.hold(true);
    writer.send("SET a:k v\r\n");
    wait_until("the sync is under way", || disk.syncs() == 1);
    reader.send("DBSIZE\r\n");
    reader.expect_silence();
    disk.hold(false);
    reader.expect(":3\r\n");
    writer.expect("+OK\r\n");
}

#[test]
fn a_failed_sync_ends_the_process_and_answers_nobody() {
    let (rig, _disk) = with(Faulty::broken);
    let mut raw = rig.raw();
    raw.send("SET a:k 2\r\n");
    wait_until("the process is told to end", || rig.fatal.get().is_some());
    raw.expect_silence();
}

#[test]
fn what_is_emptied_stays_unsaid_until_it_is_durable() {
    let (rig, disk) = rig();
    let (mut writer, mut reader) = (rig.raw(), rig.raw());
    disk.hold(true);
    writer.send("FLUSHDB\r\n");
    wait_until("the sync is under way", || disk.syncs() == 1);
    reader.send("GET a:old\r\n");
    reader.expect_silence();
    disk.hold(false);
    reader.expect("$-1\r\n");
    writer.expect("+OK\r\n");
}

#[tokio::test]
async fn calls_wait_for_the_disk_if_they_wrote_or_saw_what_is_not_on_it() {
    let (rig, disk) = rig();
    let handle = rig.shards.handle();
    let prefix = rig.store.prefix(b"a").unwrap();
    disk.hold(true);
    let set = Request::Set { key: "k".into(), value: "v".into(), ttl_ms: 0, if_absent: false };
    let (h, p) = (handle.clone(), prefix.clone());
    let write = tokio::spawn(async move { h.call(&p, set).await });
    while disk.syncs() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let get = |key: &'static str| Request::Get { keys: vec![key.into()] };
    let (h, p) = (handle.clone(), prefix.clone());
    let read = tokio::spawn(async move { h.call(&p, get("k")).await });
    let answer = tokio::time::timeout(PATIENCE, handle.call(&prefix, get("old"))).await.unwrap().unwrap();
    assert!(matches!(answer, Answer::Values(values) if values == [Some(("1".into(), 0))]));
    assert!(!write.is_finished() && !read.is_finished());
    disk.hold(false);
    assert!(matches!(write.await.unwrap().unwrap(), Answer::Written { outcome: 1, .. }));
    assert!(matches!(read.await.unwrap().unwrap(), Answer::Values(values) if values == [Some(("v".into(), 0))]));
}

#[test]
fn a_prefix_does_not_wait_for_the_disk_of_another_one_of_its_loop() {
    let (rig, disk) = on(1, |db| db);
    let (mut slow, mut quick) = (rig.raw(), rig.raw());
    disk.hold(true);
    // Both in one group.
    slow.send("MSET a:k v b:k v\r\nSET b:l v\r\n");
    wait_until("the sync is under way", || disk.syncs() == 1);
    for i in 0..5 {
        quick.send(format!("SET b:k {i}\r\nGET b:k\r\nINCR b:old\r\nGET b:l\r\n"));
        quick.expect(&format!("+OK\r\n${}\r\n{i}\r\n:{}\r\n$1\r\nv\r\n", i.to_string().len(), i + 2));
    }
    slow.expect_silence();
    disk.hold(false);
    slow.expect("+OK\r\n+OK\r\n");
}

#[test]
fn replies_that_wait_for_several_disks_keep_their_order() {
    let (rig, disk) = on(1, |db| db);
    let mut raw = rig.raw();
    disk.hold(true);
    raw.send("INCR b:n\r\nINCR a:n\r\nINCR b:n\r\nINCR a:n\r\nINCR b:n\r\n");
    raw.expect(":1\r\n");
    raw.expect_silence();
    disk.hold(false);
    raw.expect(":1\r\n:2\r\n:2\r\n:3\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_is_named_and_whoever_waits_for_it_learns_that_nobody_knows() {
    let (rig, disk) = rig();
    let handle = rig.shards.handle();
    let prefix = rig.store.prefix(b"a").unwrap();
    let mut clients: Vec<Raw> = (0..4).map(|_| rig.raw()).collect();
    disk.hold(true);
    clients[0].send("PING\r\nSET a:k v\r\nPING\r\nSET a:k w\r\n");
    clients[0].expect("+PONG\r\n");
    wait_until("the sync is under way", || rig.store.longest_sync().is_some());
    for client in &mut clients[1..] {
        client.send("GET a:k\r\nGET a:old\r\n");
    }
    let set = Request::Set { key: "k".into(), value: "v".into(), ttl_ms: 0, if_absent: false };
    let call = tokio::spawn(async move { handle.call(&prefix, set).await });
    wait_until("all are counted as blocked", || rig.sum(|s| &s.held) >= 5);
    assert_eq!(rig.store.disk_trouble(), None, "it may still end");

    let unknown = "-TIMEOUT write outcome unknown: it was not confirmed in time by the disk of this member";
    clients[0].expect_line(unknown);
    clients[0].expect("+PONG\r\n");
    clients[0].expect_line(unknown);
    for client in &mut clients[1..] {
        client.expect_line("-TRYAGAIN read not answered: what it shows was not confirmed in time by the disk");
        client.expect("$1\r\n1\r\n");
    }
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(&error, CallError::Unknown(why) if why.contains("disk")), "{error}");
    wait_until("the disk is named", || rig.store.disk_trouble().is_some_and(|why| why.contains("prefix a")));
    assert_eq!(rig.sum(|s| &s.held), 0);
    assert_eq!(rig.sum(|s| &s.parked_timeouts), 6);

    disk.hold(false);
    clients[0].send("SET a:k 2\r\nGET a:k\r\n");
    clients[0].expect("+OK\r\n$1\r\n2\r\n");
    wait_until("nothing is wrong any more", || rig.store.disk_trouble().is_none());
}

#[test]
fn what_was_written_before_syncs_were_wanted_is_shown_once_it_is_durable() {
    let (rig, disk) = rig();
    let wants = |durability| rig.store.settings.store(Arc::new(Settings { durability, ..Settings::default() }));
    let (mut raw, prefix) = (rig.raw(), rig.store.prefix(b"a").unwrap());
    wants(Durability::Os);
    disk.hold(true);
    raw.send("SET a:k v\r\nGET a:k\r\n");
    raw.expect("+OK\r\n$1\r\nv\r\n");
    assert!(prefix.durable() < prefix.applied());
    wants(Durability::Sync);
    raw.send("GET a:k\r\n");
    wait_until("the sync is under way", || disk.syncs() == 1);
    raw.expect_silence();
    disk.hold(false);
    raw.expect("$1\r\nv\r\n");
    assert_eq!(prefix.durable(), prefix.applied());
}
