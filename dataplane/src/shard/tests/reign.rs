//! What clients see while the primary may not serve, is sealed, or is none any more.

use parovoz_dataplane_core::lease::Serving;
use parovoz_dataplane_core::types::ReignRef;
use redis::Commands as _;

use super::*;

const OPEN: Serving = Serving { read_until_ms: u64::MAX, acknowledge_until_ms: u64::MAX };

impl Rig {
    fn be(&self, is_primary: bool, fenced: bool) {
        self.store.set_role(RoleView { reign: Some(self.reign.clone()), is_primary, fenced, ..RoleView::default() });
    }
}

/// A member that leads, and another that does not lead yet and is named by the first one once that stops leading.
struct Pair {
    old: Rig,
    next: Rig,
}

impl Pair {
    fn new() -> Self {
        let pair = Self { old: Rig::new().prefixes(&["a"]), next: Rig::new().prefixes(&["a"]) };
        pair.next.be(false, false);
        pair
    }

    /// The next one's address, under an identity.
    fn follow(&self, identity: DataUuid) {
        let address = self.next.shards.address();
        let primary = Endpoint {
            data_uuid: Some(identity),
            resp: format!("nobody.invalid:{}", address.port()),
            ip: address.ip().to_string(),
            ..Endpoint::default()
        };
        let reign = Some(self.old.reign.clone());
        self.old.store.set_role(RoleView { reign, primary: Some(primary), ..RoleView::default() });
    }

    fn step_down(&self) {
        self.follow(self.next.store.data_uuid);
        self.old.store.gate.publish(Serving::default(), 0);
    }

    /// A client of the old one that is relayed, and has read an answer of the next one.
    fn relayed(&self) -> Raw {
        let mut raw = self.old.raw();
        raw.send("SET a:k 1\r\n");
        raw.expect("+OK\r\n");
        self.step_down();
        self.next.be(true, false);
        raw.send("SET a:k 2\r\n");
        raw.expect("+OK\r\n");
        assert_eq!(self.old.sum(|s| &s.relayed), 1);
        raw
    }
}

#[test]
fn who_asks_for_the_first_time_while_the_primary_changes_is_relayed_too() {
    let pair = Pair::new();
    let (mut writer, mut reader) = (pair.old.raw(), pair.old.raw());
    pair.old.store.gate.publish(OPEN, clock::boot_ms() + 60_000);
    writer.send("SET a:k 2\r\n");
    writer.expect_silence();
    pair.old.store.gate.hold_until(clock::boot_ms() + 60_000);
    pair.old.be(false, true);
    pair.old.store.gate.publish(Serving::default(), 0);
    reader.send("GET a:k\r\n");
    reader.expect_silence();
    pair.next.be(true, false);
    pair.follow(pair.next.store.data_uuid);
    pair.old.store.gate.hold_until(0);
    writer.expect("+OK\r\n");
    // It may have overtaken the writer.
    let answer = reader.take(5);
    assert!(answer.starts_with("$-1") || answer.starts_with("$1"), "{answer}");
    assert_eq!(pair.old.sum(|s| &s.relayed), 2);
}

#[test]
fn nobody_is_relayed_to_another_who_answers_at_the_members_address() {
    let pair = Pair::new();
    pair.next.be(true, false);
    let mut raw = pair.old.raw();
    raw.send("SET a:k 1\r\n");
    raw.expect("+OK\r\n");
    pair.follow(DataUuid(Uuid::new_v4()));
    pair.old.store.gate.publish(Serving::default(), 0);
    raw.send("SET a:k 2\r\n");
    assert_eq!(raw.0.read(&mut [0]).unwrap(), 0, "it is closed");
    assert_eq!(pair.next.redis().get::<_, Option<String>>("a:k").unwrap(), None);
}

#[test]
fn a_relay_ends_once_another_member_leads() {
    let pair = Pair::new();
    let mut raw = pair.relayed();
    pair.follow(DataUuid(Uuid::new_v4()));
    assert_eq!(raw.0.read(&mut [0]).unwrap(), 0);
}

#[test]
fn what_is_relayed_when_the_member_stops_is_still_answered() {
    let pair = Pair::new();
    let mut raw = pair.relayed();
    pair.next.store.gate.publish(OPEN, clock::boot_ms() + 60_000);
    raw.send("SET a:k 3\r\n");
    raw.expect_silence();
    let Pair { mut old, next } = pair;
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| old.shards.stop(PATIENCE));
        raw.expect_silence();
        next.store.gate.publish(OPEN, 0);
        raw.expect("+OK\r\n");
        assert_eq!(raw.0.read(&mut [0]).unwrap(), 0);
        assert!(stopping.join().unwrap());
    });
}

#[test]
fn a_wait_is_answered_when_nobody_can_acknowledge_any_more() {
    let rig = Rig::new().prefixes(&["a"]);
    let mut raw = rig.raw();
    raw.send("SET a:k v\r\nWAIT 1 0\r\n");
    raw.expect("+OK\r\n");
    raw.expect_silence();
    rig.be(false, true);
    raw.expect_silence();
    rig.become_replica();
    raw.expect(":0\r\n");
}

#[test]
fn a_batch_that_was_begun_under_another_reign_is_not_committed() {
    let rig = Rig::new().prefixes(&["a"]);
    let mut raw = rig.raw();
    raw.send("SET a:k 1\r\n");
    raw.expect("+OK\r\n");
    let prefix = rig.store.prefix(b"a").unwrap();
    // The writer changes, and the loops have not heard of it yet.
    prefix.set_writer(Some(ReignRef { epoch: Epoch(2), ..rig.reign.to_ref() }));
    raw.send("SET a:k 2\r\n");
    raw.expect_line("-TRYAGAIN");
    prefix.set_writer(Some(rig.reign.to_ref()));
    raw.send("GET a:k\r\n");
    raw.expect("$1\r\n1\r\n");
}

#[test]
fn whom_a_primary_served_is_relayed_to_the_next_one_and_sees_a_pause_and_no_error() {
    let pair = Pair::new();
    let mut raw = pair.old.raw();
    raw.send("HELLO 3 SETNAME me\r\n");
    let mut hello = String::new();
    while !hello.ends_with("modules\r\n*0\r\n") {
        hello += &raw.take(1);
    }
    raw.send("SET a:old 1\r\nGET a:old\r\n");
    raw.expect("+OK\r\n$1\r\n1\r\n");
    pair.step_down();
    raw.send("GET a:old\r\nSET a:new 2\r\nGET a:new\r\nCLIENT GETNAME\r\n");
    // The next one is not asked before it leads: as a replica it would show old data.
    wait_until("the next member is asked", || pair.next.sum(|s| &s.accepted) == 1);
    assert_eq!(pair.next.sum(|s| &s.hits) + pair.next.sum(|s| &s.misses), 0);
    pair.next.be(true, false);
    raw.expect("_\r\n+OK\r\n$1\r\n2\r\n$2\r\nme\r\n");
    assert_eq!((pair.old.sum(|s| &s.relayed), pair.next.sum(|s| &s.accepted)), (1, 1));
    // A second change closes it: nobody is relayed twice.
    pair.next.be(false, false);
    raw.send("GET a:new\r\n");
    raw.expect_line("-READONLY");
    assert_eq!(raw.0.read(&mut [0]).unwrap(), 0);
}

#[test]
fn who_only_read_at_a_replica_is_not_relayed_and_a_next_primary_that_never_leads_ends_the_connection() {
    let pair = Pair::new();
    let (mut led, mut reader) = (pair.old.raw(), pair.old.raw());
    led.send("SET a:k 1\r\n");
    led.expect("+OK\r\n");
    pair.step_down();
    reader.send("GET a:k\r\n");
    reader.expect("$1\r\n1\r\n");
    led.send("GET a:k\r\n");
    assert_eq!(led.0.read(&mut [0]).unwrap(), 0, "after a while: nobody leads");
    assert_eq!(pair.old.sum(|s| &s.relayed), 1);
}

/// The first line of every whole reply.
fn first_lines(text: &str) -> impl Iterator<Item = &str> {
    let mut lines = text[..text.rfind("\r\n").map_or(0, |end| end + 2)].split_terminator("\r\n");
    std::iter::from_fn(move || {
        let line = lines.next()?;
        if line.starts_with('$') && line != "$-1" {
            lines.next();
        }
        Some(line)
    })
}

#[test]
fn a_primary_behind_a_closed_gate_answers_neither_reads_nor_writes() {
    for required in [0, 1] {
        let rig = Rig::with(Plan { required, ..Plan::default() }).prefixes(&["a"]);
        rig.store.gate.publish(Serving { read_until_ms: 0, acknowledge_until_ms: 0 }, 0);
        let mut raw = rig.raw();
        for command in ["GET a:k\r\n", "SET a:k v\r\n", "MGET a:k a:l\r\n", "DBSIZE\r\n", "FLUSHDB\r\n"] {
            raw.send(command);
            raw.expect_line("-LOADING this member leads");
        }
        raw.send("PING\r\n");
        raw.expect("+PONG\r\n");
    }
}

#[test]
fn under_w_a_write_needs_no_promise_but_a_read_does() {
    let rig = Rig::with(Plan { required: 1, ..Plan::default() }).prefixes(&["a"]);
    rig.store.gate.publish(Serving { read_until_ms: 0, acknowledge_until_ms: u64::MAX }, 0);
    let mut raw = rig.raw();
    raw.send("SET a:k v\r\n");
    wait_until("the write is parked", || rig.sum(|s| &s.parked) == 1);
    let prefix = rig.store.prefix(b"a").unwrap();
    prefix.release(prefix.applied());
    rig.store.wake_loop(prefix.shard);
    raw.expect("+OK\r\n");
    raw.send("GET a:k\r\n");
    raw.expect_line("-LOADING");
}

#[test]
fn a_gate_that_closes_during_a_pass_withholds_what_the_pass_has_read_and_written() {
    // With two loops the second connection's commands are executed by the other loop than its own.
    for loops in [1, 2] {
        let rig = Rig::with(Plan { loops, ..Plan::default() }).prefixes(&["a", "b"]);
        let mut raw = rig.raw();
        raw.send("SET a:k v\r\nSET b:k v\r\n");
        raw.expect("+OK\r\n+OK\r\n");
        // Enough commands for many passes; the gate closes somewhere among them, and never opens again.
        let burst = "INCR a:n\r\nGET a:k\r\nGET b:k\r\n".repeat(20_000);
        let mut writer = raw.0.try_clone().unwrap();
        let sender = std::thread::spawn(move || writer.write_all(burst.as_bytes()));
        raw.expect(":1\r\n");
        rig.store.gate.publish(Serving::default(), 0);
        // Whole answers go before the first refusal, and nothing but refusals come after it.
        let mut answers = Vec::new();
        while !answers.ends_with(b"try again\r\n") || answers.len() < 10_000 {
            let mut chunk = [0; 4096];
            let read = raw.0.read(&mut chunk).unwrap();
            answers.extend_from_slice(&chunk[..read]);
            let refused = answers.iter().position(|b| *b == b'-').unwrap_or(answers.len());
            if answers.len() - refused > 1000 {
                break;
            }
        }
        let text = String::from_utf8_lossy(&answers);
        let (before, after) = text.split_at(text.find('-').unwrap());
        assert!(before.is_empty() || before.ends_with("\r\n"), "{before}");
        let refused = |line: &str| line.starts_with("-LOADING") || line.starts_with("-TIMEOUT");
        let lines: Vec<&str> = after.split("\r\n").collect();
        let whole = &lines[..lines.len() - 1];
        assert!(loops == 2 || whole.iter().all(|line| refused(line)), "{after}");
        for (n, line) in first_lines(&text).enumerate() {
            // The first reply was read before: every third from the third on is one to a write.
            assert!(
                n % 3 == 2 || !line.starts_with("-TIMEOUT"),
                "a read is no write whose outcome nobody knows: {line}"
            );
        }
        raw.0.shutdown(std::net::Shutdown::Both).unwrap();
        // Cut off in the middle, most likely.
        let _ = sender.join().unwrap();
    }
}

#[test]
fn what_loops_had_begun_is_answered_before_an_order_closes_the_gate_and_the_rest_waits() {
    for loops in [1, 2] {
        let rig = Rig::with(Plan { loops, ..Plan::default() }).prefixes(&["a", "b"]);
        let mut raw = rig.raw();
        raw.send("SET a:k v\r\nSET b:k v\r\n");
        raw.expect("+OK\r\n+OK\r\n");
        let (times, request) = (100_000, "GET a:k\r\nGET b:k\r\nINCR a:n\r\n");
        let mut writer = raw.0.try_clone().unwrap();
        let sender = std::thread::spawn(move || writer.write_all(request.repeat(times).as_bytes()));
        let reader = std::thread::spawn(move || {
            for n in 1..=times {
                raw.expect(&format!("$1\r\nv\r\n$1\r\nv\r\n:{n}\r\n"));
            }
        });
        let mut closed = 0;
        while !reader.is_finished() {
            let later = clock::boot_ms() + 60_000;
            rig.store.settle_loops(later);
            rig.store.gate.publish(Serving::default(), 0);
            rig.store.gate.hold_until(later);
            rig.store.gate.end_until(0);
            rig.be(false, true);
            let before = rig.sum(|s| &s.hits);
            rig.be(true, false);
            assert_eq!(rig.sum(|s| &s.hits), before, "nothing is begun behind a closed gate");
            rig.store.gate.publish(OPEN, 0);
            closed += 1;
            wait_until("it goes on", || reader.is_finished() || rig.sum(|s| &s.hits) > before);
        }
        reader.join().unwrap();
        sender.join().unwrap().unwrap();
        assert!(closed > 1, "{closed}");
    }
}

#[test]
fn frozen_writes_wait_in_their_connections_and_reads_go_on() {
    let rig = Rig::new().prefixes(&["a"]);
    let (mut writer, mut reader) = (rig.raw(), rig.raw());
    rig.store.gate.publish(OPEN, clock::boot_ms() + 60_000);
    writer.send("SET a:k v\r\nGET a:k\r\n");
    reader.send("GET a:k\r\n");
    reader.expect("$-1\r\n");
    rig.store.gate.publish(OPEN, 0);
    writer.expect("+OK\r\n$1\r\nv\r\n");
}

#[test]
fn while_the_reign_changes_reads_and_writes_wait_for_what_comes_of_it() {
    let rig = Rig::new().prefixes(&["a"]);
    let (mut reader, mut writer) = (rig.raw(), rig.raw());
    reader.send("SET a:k v\r\n");
    reader.expect("+OK\r\n");
    rig.store.gate.hold_until(clock::boot_ms() + 60_000);
    rig.store.gate.publish(Serving::default(), 0);
    rig.be(false, true);
    reader.send("GET a:k\r\n");
    writer.send("SET a:k w\r\n");
    reader.expect_silence();
    rig.be(true, false);
    reader.expect_silence();
    rig.store.gate.publish(OPEN, 0);
    reader.expect_line("$1");
    writer.expect("+OK\r\n");
    rig.store.gate.publish(Serving::default(), 0);
    rig.store.gate.hold_until(0);
    writer.send("GET a:k\r\n");
    writer.expect_line("-LOADING");
}

#[test]
fn parked_writes_outlive_a_seal_and_are_released_by_the_next_reign_of_the_same_primary() {
    let rig = Rig::with(Plan { required: 1, ..Plan::default() }).prefixes(&["a"]);
    let (mut raw, mut other) = (rig.raw(), rig.raw());
    raw.send("SET a:k v\r\n");
    wait_until("the write is parked", || rig.sum(|s| &s.parked) == 1);
    rig.be(false, true);
    other.send("GET a:k\r\n");
    other.expect_line("-LOADING this member has stopped leading");
    let prefix = rig.store.prefix(b"a").unwrap();
    prefix.release(prefix.applied());
    rig.store.wake_loop(prefix.shard);
    other.send("SET a:k w\r\n");
    other.expect_line("-LOADING this member has stopped leading");
    assert_eq!(rig.sum(|s| &s.parked), 1, "a fenced member acknowledges nothing");
    rig.be(true, false);
    raw.expect("+OK\r\n");
}

#[test]
fn a_connection_that_a_primary_served_is_shown_no_replicas_data() {
    let rig = Rig::new().prefixes(&["a"]);
    let mut old = rig.raw();
    old.send("SET a:k v\r\n");
    old.expect("+OK\r\n");
    // Nor is it relayed while nobody knows where to.
    rig.be(false, false);
    old.send("GET a:k\r\n");
    old.expect_line("-READONLY");
    old.expect_end();
    let mut new = rig.raw();
    new.send("GET a:k\r\n");
    new.expect("$1\r\nv\r\n");
}
