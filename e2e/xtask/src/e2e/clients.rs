//! Redis clients as Debian ships them, unmodified, against a store.

use serde_json::json;

use super::{Context, ensure};
use crate::error::Result;
use crate::exec::run;
use crate::resp::RESP_PORT;

/// redis-cli and redis-py on the primary, and on a replica that refuses writes.
pub fn unmodified(context: &Context) -> Result<()> {
    let store = context.healthy_store("cache", 2, json!({}))?;
    let primary = context.kube.forward(&store.namespace, &format!("service/{}-rw", store.name), RESP_PORT)?;
    let replica = context.kube.forward(&store.namespace, &format!("pod/{}", store.replica()?.name), RESP_PORT)?;
    let cli = |port: u16, words: &str| {
        run("redis-cli").words(&format!("-p {port} {words}")).text().map(|t| t.trim().to_owned())
    };
    for (words, wanted) in [
        ("ping", "PONG"),
        ("set app:greeting hello", "OK"),
        ("get app:greeting", "hello"),
        ("incrby app:count 41", "41"),
        ("incr app:count", "42"),
        ("set app:session x EX 100", "OK"),
        ("ttl app:session", "100"),
        ("mset a:1 one b:1 two", "OK"),
        ("mget a:1 b:1 b:2", "one\ntwo"),
        ("exists a:1 b:1 b:2", "2"),
        ("del a:1", "1"),
        ("dbsize", "4"),
        ("-3 hello 3", "server"),
    ] {
        let answer = cli(primary.port, words)?;
        ensure(answer.contains(wanted), || format!("redis-cli {words}: wanted {wanted:?}, got {answer:?}"))?;
    }
    store.await_equal_positions(2)?;
    let read = cli(replica.port, "get app:greeting")?;
    ensure(read == "hello", || format!("redis-cli get on a replica: {read:?}"))?;
    let refused = cli(replica.port, "set app:greeting other")?;
    ensure(refused.contains("READONLY"), || format!("redis-cli set on a replica: {refused:?}"))?;
    let said = run("/usr/bin/python3")
        .arg("-c")
        .arg(include_str!("clients.py"))
        .arg(primary.port.to_string())
        .arg(replica.port.to_string())
        .text()?;
    ensure(said.trim() == "ok", || format!("redis-py: {said}"))
}
