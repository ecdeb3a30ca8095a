//! How fast and in which form it streams: compression, limits, rates, signals.

use parovoz_proto::v1;
use parovoz_proto::v1::follower_message::Message;
use parovoz_proto::v1::replication_client::ReplicationClient;
use parovoz_proto::v1::upstream_message::Message as FromUpstream;
use tokio_stream::wrappers::ReceiverStream;

use super::proxy::Proxy;
use super::*;
use crate::replication::wire::{hello_to, position_to};

async fn primary_with(settings: Settings, tuning: Tuning) -> Node {
    let node = Node::with(1, store_uid(), settings, tuning).await;
    node.lead(&reign(1));
    node.create("data");
    node
}

fn lively() -> Tuning {
    Tuning { heartbeat: Duration::from_millis(100), silence: Duration::from_secs(6), ..Tuning::default() }
}

/// Commits `batches` batches of ten records of 1,000 bytes that shrink to a small part.
fn write_compressible(prefix: &Prefix, batches: u64) {
    for n in 0..batches {
        let records: Vec<(String, String)> =
            (0..10).map(|i| (format!("{n:08}-{i}"), format!("{n} {i} ").repeat(500)[..1000].to_owned())).collect();
        let records: Vec<(&[u8], &[u8])> = records.iter().map(|(k, v)| (k.as_bytes(), v.as_bytes())).collect();
        write(prefix, &records);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catch_up_over_a_slow_link_is_compressed_and_arrives_as_it_was() {
    let a = primary_with(Settings::default(), lively()).await;
    let mut b = Node::with(2, store_uid(), Settings::default(), lively()).await;
    let proxy = Proxy::new(&a).await;
    b.follow(&reign(1), proxy.endpoint(&a), &a.endpoint());
    b.equals(&a, "data").await;
    b.stop_following().await;
    // Many times what windows and buffers take before the link is known to be slow.
    write_compressible(&a.prefix("data"), 14_000);
    a.prefix("data").ring().trim(u64::MAX);
    proxy.slow_down(2 << 20);
    b.follow(&reign(1), proxy.endpoint(&a), &a.endpoint());
    b.equals(&a, "data").await;
    let (raw, wire) = (a.ctx.stats.bytes_sent.get(), a.ctx.stats.wire_bytes_sent.get());
    assert!(raw > 140_000_000, "{raw}");
    assert!(wire < raw / 10 * 7, "{wire} of {raw} bytes went over the wire");
    assert_eq!(b.ctx.stats.crc_errors.get() + b.ctx.stats.gaps.get() + b.ctx.stats.bootstraps_started.get(), 0);
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_of_the_first_version_gets_frames_only() {
    let a = primary().await;
    let prefix = a.prefix("data");
    write_many(&prefix, 2_000, 200);
    // The first half from the WAL, the second from the ring.
    prefix.ring().trim(u64::MAX);
    let last = write_many(&prefix, 2_000, 200).sequence;
    let c = Node::new(3).await;
    c.store.set_role(RoleView { reign: Some(reign(1)), ..RoleView::default() });
    for version in [1, 2] {
        let mut client = ReplicationClient::connect(format!("http://{}", a.address)).await.unwrap();
        let (tx, rx) = tokio::sync::mpsc::channel(8);
        let after = Some(position_to(Position::ZERO));
        for message in [
            Message::Hello(v1::Hello { protocol_version: version, ..hello_to(&c.ctx.own(Some(member(1))), None) }),
            Message::Resume(v1::Resume { prefix_uuid: uuid_of("data").to_string(), after, attempt: 1 }),
            Message::Credit(v1::Credit { bytes: 1 << 40, ..v1::Credit::default() }),
        ] {
            tx.send(v1::FollowerMessage { message: Some(message) }).await.unwrap();
        }
        let mut stream = client.stream(ReceiverStream::new(rx)).await.unwrap().into_inner();
        let (mut bundles, mut at) = (0, 0);
        while at < last.0 {
            let message = tokio::time::timeout(WAIT, stream.message()).await.unwrap().unwrap().unwrap();
            match message.message.unwrap() {
                FromUpstream::Frame(frame) => {
                    assert_eq!((frame.first_sequence, frame.compression()), (at + 1, v1::Compression::None));
                    at += u64::from(frame.count);
                }
                FromUpstream::Bundle(bundle) => {
                    assert_eq!(bundle.first_sequence, at + 1);
                    let mut rest = &bundle.payload[..];
                    for length in bundle.lengths {
                        let (batch, after) = rest.split_at(length as usize);
                        at += u64::from(batch::header(batch).unwrap().count);
                        rest = after;
                    }
                    bundles += 1;
                }
                _ => {}
            }
        }
        assert_eq!(bundles > 0, version > 1, "{bundles} bundles for version {version}");
    }
    c.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_followers_share_one_limit_and_its_pauses_end_no_session() {
    // The second follower's pause is longer than silence may last.
    let settings = Settings { max_total_bytes_per_second: 200_000, ..Settings::default() };
    let a = primary_with(settings, lively()).await;
    let mut followers = Vec::new();
    for number in [2, 3] {
        followers.push(Node::with(number, store_uid(), Settings::default(), lively()).await);
    }
    write(&a.prefix("data"), &[(b"big", &vec![7; 1_000_000])]);
    let started = tokio::time::Instant::now();
    for b in &mut followers {
        b.follow(&reign(1), a.endpoint(), &a.endpoint());
    }
    for b in &followers {
        b.equals(&a, "data").await;
    }
    write(&a.prefix("data"), &[(b"after", b"it")]);
    for b in &followers {
        b.equals(&a, "data").await;
        assert_eq!(b.ctx.stats.sessions.get(), 1);
    }
    let took = started.elapsed();
    assert!(took > Duration::from_secs(8), "2 MB at 200 kB/s took {took:?}");
    for b in followers {
        b.shut().await;
    }
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_reports_how_fast_a_follower_applies() {
    let a = primary_with(Settings::default(), lively()).await;
    let mut b = Node::with(2, store_uid(), Settings::default(), lively()).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    eventually("the rate is more than nothing while it applies", || {
        write_many(&a.prefix("data"), 5, 1_000);
        matches!(&a.ctx.follower_reports()[..], [r] if r.bytes_per_second > 10_000)
    })
    .await;
    eventually(
        "and nothing when it is idle",
        || matches!(&a.ctx.follower_reports()[..], [r] if r.bytes_per_second == 0),
    )
    .await;
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_primary_syncs_later_is_sent_at_once_and_not_before() {
    // No beat helps: the next is a minute away.
    let rare = Tuning { heartbeat: Duration::from_secs(60), silence: Duration::from_secs(300), ..Tuning::default() };
    let a = primary_with(Settings::default(), rare).await;
    let mut b = Node::new(2).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    eventually("it streams", || {
        b.store.prefix_by_uuid(uuid_of("data")).is_some_and(|p| p.applied() == a.prefix("data").applied())
    })
    .await;
    let data = a.prefix("data");
    for n in 0..20u8 {
        let mut builder = BatchBuilder::new();
        builder.put(b"key", &[n]);
        let at = data.commit(builder.finish(), 1, false).unwrap().sequence;
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(b.prefix("data").applied() < at, "nothing is sent that is not synced");
        data.sync().unwrap();
        let sent = eventually("what was synced arrives", || b.prefix("data").applied() == at);
        tokio::time::timeout(Duration::from_secs(10), sent).await.expect("without waiting for a beat");
    }
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_big_batch_arrives_over_a_link_that_needs_longer_for_it_than_silence_may_last() {
    let hasty = Tuning { silence: Duration::from_secs(3), ..Tuning::default() };
    let a = primary_with(Settings::default(), hasty).await;
    let mut b = Node::with(2, store_uid(), Settings::default(), hasty).await;
    let proxy = Proxy::new(&a).await;
    b.follow(&reign(1), proxy.endpoint(&a), &a.endpoint());
    b.equals(&a, "data").await;
    // A megabyte in eight seconds.
    proxy.slow_down(128 << 10);
    let sessions = b.ctx.stats.sessions.get();
    let mut x = 1u64;
    let random = std::iter::repeat_with(|| {
        x = x.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
        (x >> 56) as u8
    });
    let value: Vec<u8> = random.take(1 << 20).collect();
    write(&a.prefix("data"), &[(b"big", &value)]);
    b.equals(&a, "data").await;
    assert_eq!(b.ctx.stats.sessions.get(), sessions, "the session lasted");
    b.shut().await;
    a.shut().await;
}
