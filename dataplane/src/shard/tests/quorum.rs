//! W > 0: replies wait for replicas.

use super::*;

fn quorum() -> Rig {
    Rig::with(Plan { required: 1, ..Plan::default() }).prefixes(&["a", "b"])
}

impl Rig {
    /// Says that replicas have everything that a prefix has.
    fn confirm(&self, name: &str) {
        let prefix = self.store.prefix(name.as_bytes()).unwrap();
        prefix.release(prefix.applied());
        self.store.wake_loop(prefix.shard);
    }

    fn parked(&self) -> u64 {
        self.sum(|s| &s.parked)
    }
}

impl Raw {
    pub(super) fn expect_silence(&mut self) {
        self.0.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut byte = [0];
        assert!(self.0.read(&mut byte).is_err(), "something came: {byte:?}");
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
    }
}

#[test]
fn writes_and_the_reads_after_them_wait_until_replicas_have_them() {
    let rig = quorum();
    let (mut writer, mut reader) = (rig.raw(), rig.raw());
    writer.send("SET a:k v\r\nPING\r\n");
    wait_until("the write is parked", || rig.parked() == 1);
    writer.expect_silence();
    reader.send("GET a:k\r\n");
    wait_until("the read is parked", || rig.parked() == 2);
    reader.expect_silence();
    rig.confirm("a");
    writer.expect("+OK\r\n+PONG\r\n");
    reader.expect("$1\r\nv\r\n");
    reader.send("GET a:k\r\n");
    reader.expect("$1\r\nv\r\n");
}

#[test]
fn a_command_over_several_prefixes_waits_for_each() {
    let rig = quorum();
    let mut raw = rig.raw();
    raw.send("MSET a:1 x b:1 y\r\n");
    wait_until("both are parked", || rig.parked() == 2);
    rig.confirm("a");
    raw.expect_silence();
    rig.confirm("b");
    raw.expect("+OK\r\n");
    raw.send("FLUSHDB\r\n");
    wait_until("both are parked again", || rig.parked() == 2);
    rig.confirm("b");
    raw.expect_silence();
    rig.confirm("a");
    raw.expect("+OK\r\n");
}

#[test]
fn a_primary_that_loses_its_role_says_that_nobody_knows() {
    let rig = quorum();
    let mut raw = rig.raw();
    raw.send("SET a:k v\r\n");
    wait_until("the write is parked", || rig.parked() == 1);
    rig.become_replica();
    raw.expect_line("-TIMEOUT write outcome unknown");
}

#[test]
fn without_enough_replicas_the_wait_is_bounded() {
    let rig = quorum();
    let mut raw = rig.raw();
    raw.send("SET a:k v\r\n");
    raw.expect_line("-TIMEOUT write outcome unknown");
    assert_eq!(rig.sum(|s| &s.parked_timeouts), 1);
}

#[test]
fn scans_and_counts_show_only_what_replicas_have() {
    let rig = quorum();
    let (mut writer, mut reader) = (rig.raw(), rig.raw());
    writer.send("SET a:k v\r\n");
    wait_until("the write is parked", || rig.parked() == 1);
    reader.send("DBSIZE\r\n");
    reader.expect_silence();
    rig.confirm("a");
    reader.expect(":1\r\n");
    writer.expect("+OK\r\n");
}

#[tokio::test]
async fn calls_are_answered_with_their_position_once_replicas_have_it() {
    let rig = quorum();
    let handle = rig.shards.handle();
    let prefix = rig.store.prefix(b"a").unwrap();
    let set = |value: &'static [u8]| Request::Set { key: "k".into(), value: value.into(), ttl_ms: 0, if_absent: false };
    let (h, p) = (handle.clone(), prefix.clone());
    let call = tokio::spawn(async move { h.call(&p, set(b"5")).await });
    while rig.parked() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!call.is_finished());
    rig.confirm("a");
    let Answer::Written { position, outcome } = call.await.unwrap().unwrap() else { panic!() };
    assert_eq!((position, outcome), (prefix.position_at(prefix.applied()), 1));
    let (h, p) = (handle.clone(), prefix.clone());
    let before = prefix.applied();
    let call = tokio::spawn(async move { h.call(&p, Request::Inc { key: "k".into(), by: 2 }).await });
    // The counter may still show the first call; only a moved prefix says that this one was committed.
    while prefix.applied() == before || rig.parked() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rig.confirm("a");
    assert!(matches!(call.await.unwrap().unwrap(), Answer::Written { outcome: 7, .. }));
    let answer = handle.call(&prefix, Request::Get { keys: vec!["k".into(), "none".into()] }).await.unwrap();
    let Answer::Values(values) = answer else { panic!() };
    assert_eq!(values, [Some(("7".into(), 0)), None]);
}
