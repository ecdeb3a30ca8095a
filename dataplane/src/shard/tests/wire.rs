//! Sockets: fragments, pipelines, order, limits, slow clients, several loops.

use std::net::Shutdown;

use redis::Commands;

use super::*;

#[test]
fn a_request_may_arrive_byte_by_byte() {
    let rig = Rig::new().prefixes(&["a"]);
    let mut raw = rig.raw();
    for byte in b"*3\r\n$3\r\nSET\r\n$3\r\na:k\r\n$5\r\nhello\r\n*2\r\n$3\r\nGET\r\n$3\r\na:k\r\n" {
        raw.send([*byte]);
    }
    raw.expect("+OK\r\n$5\r\nhello\r\n");
}

#[test]
fn a_long_pipeline_over_prefixes_of_all_loops_is_answered_in_order() {
    for loops in [1, 2, 3] {
        let rig = Rig::with(Plan { loops, rocks: true, ..Plan::default() }).prefixes(&["a", "b", "c"]);
        let mut raw = rig.raw();
        let (mut request, mut expected) = (String::new(), String::new());
        for i in 0..10_000 {
            let prefix = ["a", "b", "c"][i * 7 % 3];
            request += &format!("SET {prefix}:{i} {i}\r\nGET {prefix}:{i}\r\n");
            expected += &format!("+OK\r\n${}\r\n{i}\r\n", i.to_string().len());
        }
        let mut writer = Raw(raw.0.try_clone().unwrap());
        let sender = std::thread::spawn(move || writer.send(request));
        assert!(raw.take(expected.len()) == expected, "with {loops} loops");
        sender.join().unwrap();
    }
}

#[test]
fn a_connection_whose_requests_all_belong_elsewhere_moves_there() {
    let rig = Rig::new().prefixes(&["a", "b"]);
    let mut connections: Vec<Raw> = (0..4).map(|_| rig.raw()).collect();
    for _ in 0..200 {
        for raw in &mut connections {
            raw.send("INCR b:n\r\n");
            raw.expect_line(":");
        }
    }
    assert_eq!(rig.sum(|s| &s.moved), 2, "those of the other loop, once");
    connections[0].send("GET b:n\r\n");
    connections[0].expect("$3\r\n800\r\n");
}

#[test]
fn increments_of_many_connections_add_up_and_share_commits() {
    let rig = Rig::with(Plan { rocks: true, ..Plan::default() }).prefixes(&["a", "n"]);
    let address = rig.shards.address();
    let threads: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                let mut raw = Raw::to(address);
                for _ in 0..20 {
                    raw.send("INCR n:sum\r\n".repeat(100));
                    for _ in 0..100 {
                        raw.expect_line(":");
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    assert_eq!(rig.redis().get::<_, i64>("n:sum").unwrap(), 16_000);
    let commits = rig.sum(|s| &s.commits);
    assert!(commits <= 16_000 / 4, "{commits} commits for 16,000 writes");
}

#[test]
fn a_client_that_does_not_read_is_paused_and_hurts_nobody() {
    let rig = Rig::new().prefixes(&["a"]);
    let mut c = rig.redis();
    let () = c.set("a:big", vec![b'x'; 1 << 20]).unwrap();
    let mut lazy = rig.raw();
    // Two gigabytes of replies, which nobody takes.
    let request = "GET a:big\r\n".repeat(2000);
    lazy.send(&request);
    for i in 0..1000 {
        let () = c.set("a:k", i).unwrap();
    }
    wait_until("its replies wait", || rig.sum(|s| &s.bytes_out) > 1 << 20);
    let held = rig.sum(|s| &s.bytes_out);
    assert!(held < 100 << 20, "{held} bytes went into buffers of one client");
    // Once it reads, it gets everything.
    for _ in 0..2000 {
        lazy.expect("$1048576\r\n");
        let mut rest = vec![0; (1 << 20) + 2];
        lazy.0.read_exact(&mut rest).unwrap();
    }
}

#[test]
fn a_connection_too_many_is_refused_with_a_reason() {
    let rig = Rig::with(Plan { max_connections: 2, ..Plan::default() });
    let mut kept = [rig.raw(), rig.raw()];
    for raw in &mut kept {
        raw.send("PING\r\n");
        raw.expect("+PONG\r\n");
    }
    let mut refused = rig.raw();
    refused.expect("-ERR max number of clients reached\r\n");
    refused.expect_end();
    drop(kept);
    wait_until("places are free again", || rig.shards.shared.clients.len() == 0);
    let mut raw = rig.raw();
    raw.send("PING\r\n");
    raw.expect("+PONG\r\n");
}

#[test]
fn nonsense_ends_only_its_own_connection() {
    let rig = Rig::new();
    let mut good = rig.raw();
    for (nonsense, words) in [("*1\r\n$-5\r\n", "invalid bulk length"), ("*9999999\r\n", "invalid multibulk length")] {
        let mut bad = rig.raw();
        bad.send(format!("PING\r\n{nonsense}PING\r\n"));
        bad.expect("+PONG\r\n");
        bad.expect_line(words);
        bad.expect_end();
    }
    for http in ["POST / HTTP/1.1\r\n\r\nSET a:b c\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r\nSET a:b c\r\n"] {
        let mut bad = rig.raw();
        bad.send(http);
        if http.starts_with("GET") {
            bad.expect_line("wrong number of arguments");
        }
        bad.expect_line("-ERR this is HTTP");
        bad.expect_end();
    }
    good.send("NONSENSE x\r\nPING\r\n");
    good.expect_line("-ERR unknown command 'NONSENSE', with args beginning with: 'x'");
    good.expect("+PONG\r\n");
}

#[test]
fn what_was_asked_before_the_client_closed_its_side_is_answered() {
    let rig = Rig::new().prefixes(&["a", "b"]);
    let mut raw = rig.raw();
    raw.send("SET a:k 1\r\nSET b:k 2\r\nGET b:k\r\n");
    raw.0.shutdown(Shutdown::Write).unwrap();
    raw.expect("+OK\r\n+OK\r\n$1\r\n2\r\n");
    raw.expect_end();
}

#[test]
fn prefixes_are_made_by_their_first_write_also_in_a_pipeline() {
    let rig = Rig::new();
    let mut raw = rig.raw();
    let names: Vec<String> = (0..20).map(|i| format!("p{i}")).collect();
    let request: String = names.iter().map(|n| format!("GET {n}:k\r\nSET {n}:k {n}\r\nGET {n}:k\r\n")).collect();
    let expected: String = names.iter().map(|n| format!("$-1\r\n+OK\r\n${}\r\n{n}\r\n", n.len())).collect();
    raw.send(request);
    raw.expect(&expected);
    assert_eq!(rig.store.prefixes().by_name.len(), 20);
}

#[test]
fn a_fatal_error_ends_the_process_and_answers_nobody() {
    let rig = Rig::new().prefixes(&["a"]);
    let mut raw = rig.raw();
    raw.send("SET a:k 1\r\n");
    raw.expect("+OK\r\n");
    let copy = rig.store.prefix(b"a").unwrap().copy().unwrap();
    let db = Arc::new(Faulty::around(copy.db.clone()).full());
    let broken = Copy { generation: 2, dir: copy.dir.clone(), sequence_offset: 0, db };
    rig.store.prefix(b"a").unwrap().install(broken, EpochHistory::default());
    raw.send("SET a:k 2\r\n");
    wait_until("the process is told to end", || rig.fatal.get().is_some());
    raw.expect_end();
}

const BIG: usize = 16 << 20;

/// A store with a value of 16 MiB in a prefix of each loop.
fn with_big_values() -> Rig {
    let rig = Rig::new().prefixes(&["a", "b"]);
    let mut c = rig.redis();
    for key in ["a:big", "b:big"] {
        let () = c.set(key, vec![b'x'; BIG]).unwrap();
    }
    let () = c.set("a:small", "1").unwrap();
    rig
}

/// Takes one reply to a GET of a big value; whether it was the value.
fn take_big(raw: &mut Raw) -> bool {
    if raw.take(1) == "-" {
        raw.expect_line("TRYAGAIN the member holds too many bytes of replies");
        return false;
    }
    raw.expect_line(&BIG.to_string());
    let mut rest = vec![0; BIG + 2];
    raw.0.read_exact(&mut rest).unwrap();
    assert!(rest.ends_with(b"x\r\n"));
    true
}

#[test]
fn a_small_read_is_answered_soon_while_others_read_big_values() {
    let rig = with_big_values();
    let mut small = rig.raw();
    let readers: Vec<_> = (0..10)
        .map(|i| {
            let mut raw = rig.raw();
            std::thread::spawn(move || {
                let request = if i % 2 == 0 { "GET a:big\r\n" } else { "GET b:big\r\n" };
                raw.send(request.repeat(8));
                (0..8).filter(|_| take_big(&mut raw)).count()
            })
        })
        .collect();
    let (mut slowest, mut asked) = (Duration::ZERO, 0);
    while readers.iter().any(|r| !r.is_finished()) {
        let begun = Instant::now();
        small.send("GET a:small\r\n");
        small.expect("$1\r\n1\r\n");
        slowest = slowest.max(begun.elapsed());
        asked += 1;
    }
    let got: usize = readers.into_iter().map(|r| r.join().unwrap()).sum();
    assert!(got >= 40, "{got}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}, of {asked}");
}

#[test]
fn replies_of_all_connections_together_are_bounded() {
    let rig = with_big_values();
    let held = || rig.shards.shared.output_bytes.load(Ordering::Relaxed);
    let mut idle: Vec<Raw> = (0..48).map(|_| rig.raw()).collect();
    idle.iter_mut().for_each(|raw| raw.send("GET a:big\r\n"));
    wait_until("replies wait", || held() > super::dispatch::OUTPUT_BYTES_MAX / 2);
    let mut small = rig.raw();
    for _ in 0..200 {
        small.send("GET a:small\r\n");
        small.expect("$1\r\n1\r\n");
        // What is on its way between loops is added before it is taken away.
        assert!(held() < super::dispatch::OUTPUT_BYTES_MAX + 6 * BIG, "{}", held());
    }
    let got = idle.iter_mut().filter_map(|raw| take_big(raw).then_some(())).count();
    assert!(got >= 24, "{got}");
    wait_until("nothing is held any more", || held() == 0);
}

#[test]
fn what_another_loop_wrote_is_answered_also_when_replies_have_no_room() {
    let rig = Rig::new().prefixes(&["a", "b"]);
    let mut raw = rig.raw();
    let big = "x".repeat(100_000);
    for key in ["a:k", "b:k"] {
        raw.send(format!("*3\r\n$3\r\nSET\r\n$3\r\n{key}\r\n$100000\r\n{big}\r\n"));
        raw.expect("+OK\r\n");
    }
    let full = super::dispatch::OUTPUT_BYTES_MAX * 2;
    rig.shards.shared.output_bytes.fetch_add(full, Ordering::Relaxed);
    // One of the two belongs to the other loop.
    for key in ["a:k", "b:k"] {
        raw.send(format!("GETDEL {key}\r\n"));
        raw.expect(&format!("$100000\r\n{big}\r\n"));
        raw.send(format!("EXISTS {key}\r\n"));
        raw.expect(":0\r\n");
    }
    rig.shards.shared.output_bytes.fetch_sub(full, Ordering::Relaxed);
}

#[test]
fn a_wait_without_a_limit_ends_with_its_client() {
    let rig = Rig::new().prefixes(&["a"]);
    let mut raw = rig.raw();
    raw.send("SET a:k 1\r\nWAIT 1 0\r\n");
    raw.expect("+OK\r\n");
    raw.0.shutdown(std::net::Shutdown::Write).unwrap();
    raw.expect(":0\r\n");
    let gone = rig.raw();
    drop(raw);
    wait_until("only the other connection is left", || rig.shards.shared.clients.len() == 1);
    drop(gone);
}

#[test]
fn announced_bytes_take_no_room_before_they_come() {
    let rig = Rig::new().prefixes(&["a"]);
    let mut idle: Vec<Raw> = (0..40).map(|_| rig.raw()).collect();
    idle.iter_mut().for_each(|raw| raw.send("*3\r\n$3\r\nSET\r\n$3\r\na:k\r\n$60000000\r\nx"));
    let mut raw = rig.raw();
    let big = "x".repeat(1_000_000);
    raw.send(format!("*3\r\n$3\r\nSET\r\n$3\r\na:b\r\n$1000000\r\n{big}\r\n"));
    raw.expect("+OK\r\n");
    let held = rig.shards.shared.input_bytes.load(Ordering::Relaxed);
    assert!(held < 8 << 20, "{held}");
}

#[test]
fn clients_are_listed_by_number() {
    let rig = Rig::new();
    let (mut a, mut b) = (rig.redis(), rig.redis());
    let id = |c: &mut redis::Connection| redis::cmd("CLIENT").arg("ID").query::<u64>(c).unwrap();
    let (first, second) = (id(&mut a), id(&mut b));
    let mut list = |words: &[&str]| redis::cmd("CLIENT").arg("LIST").arg(words).query::<String>(&mut a);
    assert_eq!(list(&[]).unwrap().lines().count(), 2);
    let one = list(&["ID", &second.to_string()]).unwrap();
    assert!(one.starts_with(&format!("id={second} ")) && one.lines().count() == 1, "{one}");
    assert_eq!(list(&["ID", &first.to_string(), &second.to_string(), "77"]).unwrap().lines().count(), 2);
    assert!(list(&["ID", "x"]).is_err() && list(&["KIND", "x"]).is_err());
}
