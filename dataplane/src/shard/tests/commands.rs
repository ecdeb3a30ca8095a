//! What commands answer.

use std::collections::HashSet;

use redis::{Commands, Value};

use super::*;

fn run<T: redis::FromRedisValue>(c: &mut redis::Connection, line: &str) -> redis::RedisResult<T> {
    let mut words = line.split(' ');
    let mut cmd = redis::cmd(words.next().unwrap());
    words.for_each(|w| {
        cmd.arg(w);
    });
    cmd.query(c)
}

fn error(c: &mut redis::Connection, line: &str) -> String {
    let e = run::<Value>(c, line).unwrap_err();
    format!("{} {}", e.code().unwrap_or(""), e.detail().unwrap_or(""))
}

fn plans() -> [Plan; 4] {
    let plan = Plan::default();
    [
        plan.clone(),
        Plan { rocks: true, ..plan.clone() },
        Plan { rocks: true, durability: Durability::Sync, ..plan.clone() },
        Plan { cache_bytes: 0, ..plan },
    ]
}

#[test]
fn strings_behave_as_in_redis_on_both_engines_with_and_without_cache() {
    for plan in plans() {
        let rig = Rig::with(plan);
        let c = &mut rig.redis();
        let ok = |c: &mut redis::Connection, line: &str| assert_eq!(run::<String>(c, line).unwrap(), "OK", "{line}");
        ok(c, "SET a:k v1");
        assert_eq!(run::<Option<String>>(c, "SET a:k v2 GET").unwrap().as_deref(), Some("v1"));
        assert_eq!(run::<Option<String>>(c, "SET a:k v3 NX").unwrap(), None);
        assert_eq!(run::<Option<String>>(c, "SET a:new v XX").unwrap(), None);
        assert_eq!(run::<Option<String>>(c, "GET a:new").unwrap(), None);
        assert_eq!(run::<i64>(c, "SETNX a:k x").unwrap(), 0);
        assert_eq!(run::<i64>(c, "SETNX a:n x").unwrap(), 1);
        assert_eq!(run::<String>(c, "GETSET a:n y").unwrap(), "x");
        assert_eq!(run::<String>(c, "GETDEL a:n").unwrap(), "y");
        assert_eq!(run::<Option<String>>(c, "GET a:n").unwrap(), None);
        assert_eq!(run::<String>(c, "TYPE a:k").unwrap(), "string");
        assert_eq!(run::<String>(c, "TYPE a:none").unwrap(), "none");
        assert_eq!(run::<i64>(c, "STRLEN a:k").unwrap(), 2);
        ok(c, "MSET a:1 x b:1 y a:2 z plain w");
        let got: Vec<Option<String>> = run(c, "MGET b:1 a:1 nowhere:1 plain a:2").unwrap();
        assert_eq!(got, [Some("y".into()), Some("x".into()), None, Some("w".into()), Some("z".into())]);
        assert_eq!(run::<String>(c, "GET default:plain").unwrap(), "w", "both spellings are one key");
        assert_eq!(run::<i64>(c, "EXISTS a:1 a:1 b:1 c:9").unwrap(), 3);
        assert_eq!(run::<i64>(c, "DEL a:1 a:1 b:1 c:9 plain").unwrap(), 3);
        assert_eq!(run::<i64>(c, "EXISTS a:1 b:1 plain").unwrap(), 0);
    }
}

#[test]
fn counters_start_at_zero_and_refuse_what_is_no_number() {
    for plan in plans() {
        let rig = Rig::with(plan);
        let c = &mut rig.redis();
        assert_eq!(run::<i64>(c, "INCR n:a").unwrap(), 1);
        assert_eq!(run::<i64>(c, "INCRBY n:a 41").unwrap(), 42);
        assert_eq!(run::<i64>(c, "DECRBY n:a 2").unwrap(), 40);
        assert_eq!(run::<i64>(c, "DECR n:a").unwrap(), 39);
        run::<()>(c, "SET n:s text").unwrap();
        assert!(error(c, "INCR n:s").contains("value is not an integer or out of range"));
        run::<()>(c, &format!("SET n:m {}", i64::MAX)).unwrap();
        assert!(error(c, "INCR n:m").contains("increment or decrement would overflow"));
        run::<()>(c, "SET n:e 7 PX 1").unwrap();
        wait_until("expiry", || run::<i64>(c, "EXISTS n:e").unwrap() == 0);
        assert_eq!(run::<i64>(c, "INCR n:e").unwrap(), 1, "an expired counter starts anew");
        assert_eq!(run::<i64>(c, "TTL n:e").unwrap(), -1);
    }
}

#[test]
fn times_to_live_are_exact() {
    for plan in plans() {
        let rig = Rig::with(plan);
        let c = &mut rig.redis();
        assert_eq!(run::<i64>(c, "TTL t:none").unwrap(), -2);
        run::<()>(c, "SET t:k v").unwrap();
        assert_eq!(run::<i64>(c, "TTL t:k").unwrap(), -1);
        assert_eq!(run::<i64>(c, "EXPIRE t:k 100").unwrap(), 1);
        assert_eq!(run::<i64>(c, "TTL t:k").unwrap(), 100);
        assert!((99_000..=100_000).contains(&run::<i64>(c, "PTTL t:k").unwrap()));
        assert_eq!(run::<i64>(c, "EXPIRE t:k 50 GT").unwrap(), 0);
        assert_eq!(run::<i64>(c, "EXPIRE t:k 50 LT").unwrap(), 1);
        assert_eq!(run::<i64>(c, "EXPIRE t:k 50 NX").unwrap(), 0);
        run::<()>(c, "SET t:k w KEEPTTL").unwrap();
        assert_eq!(run::<i64>(c, "TTL t:k").unwrap(), 50);
        assert_eq!(run::<String>(c, "GETEX t:k EX 70").unwrap(), "w");
        assert_eq!(run::<i64>(c, "TTL t:k").unwrap(), 70);
        assert_eq!(run::<i64>(c, "PERSIST t:k").unwrap(), 1);
        assert_eq!(run::<i64>(c, "PERSIST t:k").unwrap(), 0);
        assert_eq!(run::<i64>(c, "PEXPIREAT t:k 4102444800000").unwrap(), 1);
        assert_eq!(run::<i64>(c, "EXPIRETIME t:k").unwrap(), 4_102_444_800);
        run::<()>(c, "SET t:k x").unwrap();
        assert_eq!(run::<i64>(c, "TTL t:k").unwrap(), -1, "SET clears it");
        assert_eq!(run::<i64>(c, "EXPIRE t:k -1").unwrap(), 1);
        assert_eq!(run::<i64>(c, "EXISTS t:k").unwrap(), 0, "the past deletes");
        assert_eq!(run::<i64>(c, "EXPIRE t:k 10").unwrap(), 0);
    }
}

#[test]
fn a_scan_answers_every_key_once_in_a_spelling_that_reads_it_back() {
    for plan in plans() {
        let rig = Rig::with(plan);
        let c = &mut rig.redis();
        let mut expected = HashSet::new();
        for i in 0..500 {
            for key in [format!("a:{i}"), format!("b:x:{i}"), format!("plain{i}"), format!("default:q:{i}")] {
                let () = c.set(&key, i).unwrap();
                expected.insert(key);
            }
        }
        let scan = |c: &mut redis::Connection, options: &str| {
            let (mut cursor, mut keys) = ("0".to_owned(), Vec::new());
            loop {
                let (next, page): (String, Vec<String>) = run(c, &format!("SCAN {cursor}{options}")).unwrap();
                keys.extend(page);
                if next == "0" {
                    return keys;
                }
                cursor = next;
            }
        };
        let all = scan(c, " COUNT 77");
        assert_eq!(all.len(), expected.len(), "once each");
        assert_eq!(all.iter().cloned().collect::<HashSet<_>>(), expected);
        for key in all.iter().step_by(97) {
            assert!(c.get::<_, Option<i64>>(key).unwrap().is_some(), "{key}");
        }
        let narrowed = scan(c, " MATCH b:x:1* COUNT 1000");
        assert_eq!(narrowed.len(), 111);
        assert!(narrowed.iter().all(|k| k.starts_with("b:x:1")));
        assert_eq!(scan(c, " MATCH default:* COUNT 1000").len(), 1000);
        assert!(scan(c, " TYPE hash").is_empty());
        assert!(error(c, "SCAN 12345").contains("unknown cursor"));
        assert_eq!(run::<i64>(c, "DBSIZE").unwrap(), 2000);
        run::<()>(c, "FLUSHDB").unwrap();
        assert_eq!(run::<i64>(c, "DBSIZE").unwrap(), 0);
        assert!(scan(c, "").is_empty());
        assert_eq!(c.get::<_, Option<i64>>("a:1").unwrap(), None);
        let () = c.set("a:1", 5).unwrap();
        assert_eq!(run::<i64>(c, "DBSIZE").unwrap(), 1);
    }
}

#[test]
fn a_pipeline_sees_what_it_wrote_before_whatever_lies_in_between() {
    let rig = Rig::with(Plan { rocks: true, ..Plan::default() }).prefixes(&["a", "b"]);
    let mut raw = rig.raw();
    raw.send("SET a:1 x\r\nSET b:1 y\r\nFLUSHDB\r\nSET a:2 z\r\nGET a:1\r\nGET a:2\r\nMSET a:3 p b:3 q\r\nGET a:3\r\nGET b:3\r\nDBSIZE\r\n");
    raw.expect("+OK\r\n+OK\r\n+OK\r\n+OK\r\n$-1\r\n$1\r\nz\r\n+OK\r\n$1\r\np\r\n$1\r\nq\r\n:3\r\n");
}

#[test]
fn limits_are_refused_with_clear_errors_and_nothing_else_is_lost() {
    let rig = Rig::new();
    let c = &mut rig.redis();
    let long = "k".repeat(8193);
    assert!(error(c, &format!("SET a:{long} v")).contains("key is 8193 bytes, the limit is 8192"));
    let () = c.set(format!("a:{}", &long[1..]), "v").unwrap();
    let huge = vec![b'x'; (16 << 20) + 1];
    let e = c.set::<_, _, ()>("a:huge", &huge).unwrap_err();
    assert!(e.to_string().contains("the limit is 16777216"), "{e}");
    let () = c.set("a:large", &huge[1..]).unwrap();
    assert_eq!(c.get::<_, Vec<u8>>("a:large").unwrap().len(), 16 << 20);
    assert!(error(c, "SET bad/name:1 v").contains("invalid prefix 'bad/name'"));
    assert!(error(c, "GET :x").contains("invalid prefix ''"));
    rig.maker.refuse.store(true, Ordering::SeqCst);
    assert!(error(c, "SET fresh:1 v").contains("maxPrefixes"));
    assert_eq!(run::<Option<String>>(c, "GET fresh:1").unwrap(), None);
}

#[test]
fn a_replica_reads_and_names_the_primary_to_writers() {
    let rig = Rig::new().prefixes(&["a", "b"]);
    let () = rig.redis().set("a:k", 1).unwrap();
    rig.become_replica();
    let c = &mut rig.redis();
    assert_eq!(c.get::<_, i64>("a:k").unwrap(), 1);
    for line in ["SET a:k v", "SET b:k v", "DEL a:k", "INCR a:k", "MSET a:k 1", "FLUSHDB", "SET fresh:k v"] {
        let e = error(c, line);
        assert!(e.contains("READONLY") && e.contains("10.0.0.9:6379"), "{line}: {e}");
    }
    let role: (String, String, u16, String, i64) = run(c, "ROLE").unwrap();
    assert_eq!((role.0.as_str(), role.1.as_str(), role.2), ("slave", "10.0.0.9", 6379));
}

#[test]
fn a_prefix_without_a_copy_is_loading() {
    let rig = Rig::new().prefixes(&["a"]);
    let c = &mut rig.redis();
    let () = c.set("a:k", 1).unwrap();
    let copy = rig.store.prefix(b"a").unwrap().close().unwrap();
    assert!(error(c, "GET a:k").contains("LOADING"));
    assert!(error(c, "SET a:k 2").contains("LOADING"));
    assert_eq!(Arc::strong_count(&copy), 1, "an idle loop holds no copy");
}

#[test]
fn a_replaced_copy_is_not_answered_from_the_cache() {
    let rig = Rig::new().prefixes(&["a", "other"]);
    let c = &mut rig.redis();
    let () = c.set("a:k", "old").unwrap();
    assert_eq!(c.get::<_, String>("a:k").unwrap(), "old");
    let other = rig.store.prefix(b"other").unwrap().copy().unwrap();
    let copy = Copy { generation: 2, dir: other.dir.clone(), sequence_offset: 0, db: other.db.clone() };
    rig.store.prefix(b"a").unwrap().install(copy, EpochHistory::default());
    assert_eq!(c.get::<_, Option<String>>("a:k").unwrap(), None);
}

#[test]
fn a_write_that_is_not_committed_is_an_error_and_is_not_seen_later() {
    let rig = Rig::new().prefixes(&["a", "b"]);
    let mut raw = rig.raw();
    raw.send("SET a:k old\r\n");
    raw.expect("+OK\r\n");
    rig.store.prefix(b"a").unwrap().set_writer(None);
    raw.send("SET b:k fine\r\nSET a:k new\r\nGET a:k\r\nPING\r\n");
    raw.expect("+OK\r\n");
    raw.expect_line("-TRYAGAIN");
    raw.expect_line("-TRYAGAIN");
    raw.expect("+PONG\r\n");
    raw.send("GET a:k\r\n");
    raw.expect("$3\r\nold\r\n");
}

#[test]
fn a_session_is_introduced_as_redis_clients_expect() {
    let rig = Rig::new();
    let mut raw = rig.raw();
    raw.send("HELLO 3 SETNAME me\r\n");
    raw.expect("%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n");
    while raw.take(1) != "*" {}
    raw.expect("0\r\n");
    raw.send("CLIENT GETNAME\r\nGET nothing\r\nCONFIG GET save\r\nCOMMAND DOCS\r\nSELECT 0\r\nSELECT 1\r\nECHO hi\r\n");
    raw.expect("$2\r\nme\r\n_\r\n%1\r\n$4\r\nsave\r\n$0\r\n\r\n%0\r\n+OK\r\n");
    raw.expect_line("-ERR DB index is out of range");
    raw.expect("$2\r\nhi\r\n");
    raw.send("RESET\r\nGET nothing\r\nAUTH x\r\n");
    raw.expect("+RESET\r\n$-1\r\n");
    raw.expect_line("without any password configured");
    raw.send("QUIT\r\n");
    raw.expect("+OK\r\n");
    raw.expect_end();
    let c = &mut rig.redis();
    let info: String = run(c, "INFO").unwrap();
    for part in ["redis_version:", "connected_clients:", "used_memory:", "role:master", "keyspace_hits:"] {
        assert!(info.contains(part), "{part}");
    }
    assert_eq!(run::<i64>(c, "COMMAND COUNT").unwrap(), parovoz_dataplane_core::command::table::COUNT as i64);
    assert_eq!(run::<i64>(c, "WAIT 0 10").unwrap(), 0);
    assert_eq!(run::<i64>(c, "WAIT 1 10").unwrap(), 0, "nobody follows");
}

#[test]
fn counts_are_exact_below_the_bound_however_often_keys_were_overwritten_or_deleted() {
    let rig = Rig::with(Plan { rocks: true, ..Plan::default() }).prefixes(&["a", "b", "c"]);
    let mut c = rig.redis();
    let mut many = |command: &str, prefix: &str, keys: usize, times: usize| {
        for first in (0..times).step_by(5_000) {
            let mut pipe = redis::pipe();
            for n in first..times.min(first + 5_000) {
                let pipe = pipe.cmd(command).arg(format!("{prefix}:{}", n % keys));
                if command == "SET" {
                    pipe.arg(n).ignore()
                } else {
                    pipe.ignore()
                };
            }
            pipe.query::<()>(&mut c).unwrap();
        }
    };
    many("SET", "a", 1, 220_000);
    many("SET", "b", 120_000, 120_000);
    many("DEL", "b", 120_000, 119_990);
    many("SET", "c", 7, 7);
    let mut c = rig.redis();
    let info = |c: &mut redis::Connection| redis::cmd("INFO").arg("keyspace").query::<String>(c).unwrap();
    wait_until("asking has the keys counted", || info(&mut c).contains("prefix_a:keys=1,estimated=0,"));
    assert_eq!(redis::cmd("DBSIZE").query::<u64>(&mut c).unwrap(), 18);
    let text = info(&mut c);
    for part in ["db0:keys=18,", "prefix_a:keys=1,estimated=0,", "prefix_b:keys=10,", "prefix_c:keys=7,"] {
        assert!(text.contains(part), "{text} lacks {part}");
    }
    redis::cmd("SET").arg("c:brief").arg(1).arg("PX").arg(300).query::<()>(&mut c).unwrap();
    assert_eq!(redis::cmd("DBSIZE").query::<u64>(&mut c).unwrap(), 19);
    wait_until("an expired key is not counted", || redis::cmd("DBSIZE").query::<u64>(&mut c).unwrap() == 18);
    redis::cmd("FLUSHDB").query::<()>(&mut c).unwrap();
    assert_eq!(redis::cmd("DBSIZE").query::<u64>(&mut c).unwrap(), 0);
}
