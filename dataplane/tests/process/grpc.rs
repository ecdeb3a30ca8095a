//! The `Store` service as a gRPC client sees it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use parovoz_proto::v1;
use parovoz_proto::v1::store_client::StoreClient;
use tonic::Code;
use tonic::transport::Channel;

use crate::node::{Node, caught_up, store_of, within};

async fn client(node: &Node, port: u16) -> StoreClient<Channel> {
    let address = format!("http://{}:{port}", node.ip);
    let client = within("the client port answers", async || StoreClient::connect(address.clone()).await.ok()).await;
    client.max_decoding_message_size(32 << 20).max_encoding_message_size(32 << 20)
}

fn key(key: &str) -> v1::GetRequest {
    v1::GetRequest { prefix: "p".into(), key: key.to_owned().into(), read: None }
}

fn set(key: &str, value: &str) -> v1::SetRequest {
    v1::SetRequest { prefix: "p".into(), key: key.to_owned().into(), value: value.to_owned().into(), ttl_ms: 0 }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_does_what_it_says() {
    let node = Node::start("a");
    store_of(&node, &[]).await;
    let mut c = client(&node, 7000).await;
    assert_eq!(c.get(key("a")).await.unwrap_err().code(), Code::NotFound, "the prefix does not exist yet");

    let first = c.set(set("a", "1")).await.unwrap().into_inner();
    assert!(first.applied);
    let second = c.set_nx(set("a", "2")).await.unwrap().into_inner();
    assert!(!second.applied, "the key exists");
    let third = c.set_nx(set("b", "2")).await.unwrap().into_inner();
    assert!(third.applied);
    let sequence = |w: &v1::WriteResponse| w.position.as_ref().unwrap().sequence;
    assert_eq!(sequence(&third), sequence(&first) + 1, "every write answers its position");

    let got = c.get(key("a")).await.unwrap().into_inner();
    assert_eq!((got.found, &got.value[..]), (true, b"1".as_slice()));
    assert!(c.has(key("b")).await.unwrap().into_inner().found);
    let keys = ["a", "b", "c"].map(|k| k.to_owned().into()).to_vec();
    let many = v1::MultiGetRequest { prefix: "p".into(), keys, read: None };
    let many = c.multi_get(many).await.unwrap().into_inner().values;
    assert_eq!(many.iter().map(|v| v.found).collect::<Vec<_>>(), [true, true, false]);

    let inc = |by| v1::IncRequest { prefix: "p".into(), key: "n".to_owned().into(), by };
    assert_eq!(c.inc(inc(5)).await.unwrap().into_inner().value, 5);
    assert_eq!(c.inc(inc(-7)).await.unwrap().into_inner().value, -2);

    let put = |k: &str| v1::BatchOp {
        op: Some(v1::batch_op::Op::Put(v1::batch_op::Put {
            key: k.to_owned().into(),
            value: "x".to_owned().into(),
            ttl_ms: 0,
        })),
    };
    let del = v1::BatchOp { op: Some(v1::batch_op::Op::Del("a".to_owned().into())) };
    let batch = v1::BatchRequest { prefix: "p".into(), ops: vec![put("r1"), put("r2"), put("r3"), del] };
    c.batch(batch).await.unwrap();
    assert!(!c.has(key("a")).await.unwrap().into_inner().found);

    let range = |from: &str, reverse, limit| v1::RangeRequest {
        prefix: "p".into(),
        from: from.to_owned().into(),
        to: "s".to_owned().into(),
        limit,
        reverse,
        read: None,
    };
    assert_eq!(keys_of(&mut c, range("r", false, 0)).await, ["r1", "r2", "r3"]);
    assert_eq!(keys_of(&mut c, range("r", true, 2)).await, ["r3", "r2"]);

    let gone = v1::DelRequest { prefix: "p".into(), keys: ["r1", "nope"].map(|k| k.to_owned().into()).to_vec() };
    assert_eq!(c.del(gone).await.unwrap().into_inner().deleted, 1);
    let prefixes = c.list_prefixes(v1::ListPrefixesRequest {}).await.unwrap().into_inner().prefixes;
    assert_eq!(prefixes.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["p"]);

    // The bulk port is the same API.
    let mut bulk = client(&node, 7001).await;
    assert!(bulk.has(key("b")).await.unwrap().into_inner().found);
}

async fn keys_of(c: &mut StoreClient<Channel>, request: v1::RangeRequest) -> Vec<String> {
    let mut stream = c.range(request).await.unwrap().into_inner();
    let mut keys = Vec::new();
    while let Some(page) = stream.message().await.unwrap() {
        keys.extend(page.items.iter().map(|i| String::from_utf8(i.key.to_vec()).unwrap()));
    }
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_range_is_streamed_in_pages_of_one_snapshot() {
    let node = Node::start("a");
    store_of(&node, &[]).await;
    crate::node::fill(&node, "p", 0, 20_000, 500);
    let mut c = client(&node, 7000).await;
    let all = v1::RangeRequest { prefix: "p".into(), ..v1::RangeRequest::default() };
    let mut stream = c.range(all).await.unwrap().into_inner();
    let (mut pages, mut items) = (0, 0);
    while let Some(page) = stream.message().await.unwrap() {
        pages += 1;
        items += page.items.len();
        if pages == 1 {
            crate::node::fill(&node, "p", 20_000, 1_000, 500);
        }
    }
    assert_eq!(items, 20_000, "what is written meanwhile is not in it");
    assert!(pages > 5, "{pages}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_refused_with_the_field_that_breaks_them() {
    let node = Node::start("a");
    store_of(&node, &[]).await;
    let mut c = client(&node, 7000).await;
    let long = c.set(set(&"k".repeat(9 << 10), "v")).await.unwrap_err();
    assert_eq!(long.code(), Code::InvalidArgument, "{long}");
    let big = c.set(set("k", &"v".repeat(17 << 20))).await.unwrap_err();
    assert!(matches!(big.code(), Code::InvalidArgument | Code::ResourceExhausted), "{big}");
    let name = v1::SetRequest { prefix: "no/prefix".into(), ..set("k", "v") };
    assert_eq!(c.set(name).await.unwrap_err().code(), Code::InvalidArgument);
    c.set(set("k", "v")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_refuses_writes_with_the_primarys_address_and_reads_what_one_wrote() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    store_of(&a, &[&b]).await;
    let (mut primary, mut replica) = (client(&a, 7000).await, client(&b, 7000).await);
    let written = primary.set(set("k", "v0")).await.unwrap().into_inner();
    caught_up(&b, &a).await;
    let refused = replica.set(set("k", "v")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let hint = refused.metadata().get("parovoz-primary").unwrap().to_str().unwrap();
    assert_eq!(hint, format!("{}:7000", a.ip));

    assert!(written.position.is_some());
    for n in 1..200 {
        let value = format!("v{n}");
        let position = primary.set(set("k", &value)).await.unwrap().into_inner().position;
        let read = Some(v1::ReadOptions { min_position: position, max_staleness_ms: 0 });
        let got = replica.get(v1::GetRequest { read, ..key("k") }).await.unwrap().into_inner();
        assert_eq!(got.value, value.as_bytes(), "read-your-writes on a replica");
    }
    // A position that the primary never reached is not waited for without end.
    let far =
        Some(v1::ReadOptions { min_position: Some(v1::Position { epoch: 1, sequence: 1 << 40 }), max_staleness_ms: 0 });
    let mut request = tonic::Request::new(v1::GetRequest { read: far, ..key("k") });
    request.set_timeout(Duration::from_millis(500));
    assert!(replica.get(request).await.is_err());
    let fresh = Some(v1::ReadOptions { min_position: None, max_staleness_ms: 60_000 });
    replica.get(v1::GetRequest { read: fresh, ..key("k") }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_nobody_reads_are_ended_and_leave_the_other_port_alone() {
    let node = Node::start("a");
    store_of(&node, &[]).await;
    crate::node::fill(&node, "p", 0, 2_000, 5_000);
    let all = v1::RangeRequest { prefix: "p".into(), ..v1::RangeRequest::default() };
    let mut unread = Vec::new();
    for _ in 0..4 {
        let mut c = client(&node, 7000).await;
        for _ in 0..64 {
            unread.push(c.range(all.clone()).await.unwrap().into_inner());
        }
    }
    let one = v1::RangeRequest { limit: 1, ..all };
    let mut bulk = client(&node, 7001).await;
    let mut stream = bulk.range(one.clone()).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().items.len(), 1, "the bulk port has places of its own");
    let mut c = client(&node, 7000).await;
    within("places are given back", async || c.range(one.clone()).await.ok()).await;
    // All at once: those of one connection share its window. Some may be read before their time is over.
    let mut ends = tokio::task::JoinSet::new();
    for mut stream in unread {
        ends.spawn(async move {
            loop {
                match stream.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(status) => return Some(status),
                }
            }
        });
    }
    let ends: Vec<tonic::Status> = ends.join_all().await.into_iter().flatten().collect();
    assert!(!ends.is_empty(), "none was ended");
    for status in ends {
        assert_eq!(status.code(), Code::Aborted, "{status}");
        assert!(status.message().contains("took nothing"), "{status}");
    }
}

/// Whether the node's socket of this connection has a timer: that of keepalive, if it is idle.
fn has_timer(server: SocketAddr, client: SocketAddr) -> bool {
    let port = |a: SocketAddr| format!(":{:04X}", a.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let fields = table.lines().map(|l| l.split_ascii_whitespace().collect::<Vec<_>>());
    let mut ours = fields.filter(|f| f[1].ends_with(&port(server)) && f[2].ends_with(&port(client)));
    ours.next().is_some_and(|f| f[5].starts_with("02:"))
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_gone_without_a_word_are_noticed_on_every_port() {
    let node = Node::start("a");
    store_of(&node, &[]).await;
    let mut streams = Vec::new();
    for port in [6379, 7000, 7001] {
        let address = SocketAddr::from((node.ip, port));
        let stream =
            within("the port listens", async || TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok())
                .await;
        let local = stream.local_addr().unwrap();
        within("TCP watches the connection", async || has_timer(address, local).then_some(())).await;
        streams.push(stream);
    }
    // A client that never answers a ping is closed.
    let mut silent = streams.remove(1);
    silent.set_read_timeout(Some(crate::node::DEADLINE)).unwrap();
    silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut pinged = false;
    let closed = tokio::task::spawn_blocking(move || {
        let mut head = [0; 9];
        while silent.read_exact(&mut head).is_ok() {
            let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            pinged |= head[3] == 6;
            silent.read_exact(&mut vec![0; len as usize]).unwrap();
        }
        pinged
    });
    assert!(closed.await.unwrap(), "a ping came before the end");
}
