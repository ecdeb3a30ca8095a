//! How fast a replica streams, beside what its disk and processor could do alone.
//!
//! `cargo bench -p parovoz-dataplane --bench streaming -- [catch-up|delay] [RECORDS] [ROUNDS]`
//!
//! Catch-up: a replica streams what a primary of the same process wrote before, over loopback TCP, and applies it; compared
//! with applying the same batches to an empty database in one thread. Delay: from a commit on the primary to the moment at
//! which the replica's reads show it, at 50,000 records a second.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use parovoz_dataplane::clock;
use parovoz_dataplane::config::{Durability, Settings};
use parovoz_dataplane::disk::layout::Layout;
use parovoz_dataplane::replication::{CatalogueHook, Follower, MemberHooks, ReplicationCtx, serve};
use parovoz_dataplane::store::prefix::{Copy, Prefix};
use parovoz_dataplane::store::ring::RingEntry;
use parovoz_dataplane::store::signal::{SessionSignal, Subscription};
use parovoz_dataplane::store::{Endpoint, RoleView, Store};
use parovoz_dataplane_core::batch::BatchBuilder;
use parovoz_dataplane_core::history::EpochHistory;
use parovoz_dataplane_core::role::BeatOut;
use parovoz_dataplane_core::types::{
    DataUuid, Epoch, Limits, Mode, Position, PrefixName, PrefixUuid, Reign, ReignId, ReignRef, Sequence, StoreUid,
    catalogue_uuid,
};
use parovoz_engine::rocks::{RocksEngine, RocksSettings};
use parovoz_engine::{Engine, OpenSpec};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const VALUE: usize = 100;
const RING_BYTES: usize = 64 << 20;
/// Records in a batch: one, what a busy loop commits at once, a bulk load.
const BATCHES: [u32; 3] = [1, 10, 100];
const DELAY_RATE: u64 = 50_000;
const DELAY_SECONDS: u64 = 10;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let what = args.first().map_or("all", String::as_str);
    let records: u64 = args.get(1).map_or(2_000_000, |n| n.parse().expect("RECORDS is a number"));
    let rounds: usize = args.get(2).map_or(3, |n| n.parse().expect("ROUNDS is a number"));
    println!("load average: {}", std::fs::read_to_string("/proc/loadavg").unwrap().trim());
    if what != "delay" {
        for durability in [Durability::Os, Durability::Sync] {
            BATCHES.iter().for_each(|&batch| catch_up(durability, records, batch, rounds));
        }
    }
    if what != "catch-up" {
        [Durability::Os, Durability::Sync].into_iter().for_each(delay);
    }
    println!("load average: {}", std::fs::read_to_string("/proc/loadavg").unwrap().trim());
}

/// Streams and applies locally in turns, and prints the medians.
fn catch_up(durability: Durability, records: u64, batch: u32, rounds: usize) {
    let primary = Member::new(1, durability);
    primary.lead();
    let prefix = primary.create();
    let mut written = Vec::new();
    for n in 0..records / u64::from(batch) {
        let bytes = batch_of(n * u64::from(batch), batch);
        prefix.commit(bytes.clone(), batch, false).unwrap();
        written.push(bytes);
    }
    prefix.sync().unwrap();
    // All of it comes from the WAL.
    prefix.ring().trim(u64::MAX);
    let (mut streamed, mut applied) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        applied.push(apply_locally(durability, &written));
        streamed.push(stream(&primary, durability));
    }
    let (stream, local) = (median(streamed), median(applied));
    let rate = |time: Duration| records as f64 / time.as_secs_f64() / 1000.0;
    println!(
        "catch-up, {durability:?}, {batch:>3} records a batch: streamed {:.0}k/s, applied locally {:.0}k/s, ratio {:.2}",
        rate(stream),
        rate(local),
        local.as_secs_f64() / stream.as_secs_f64()
    );
}

/// One thread, one database, nothing else; synced as often as a replica's apply thread does.
fn apply_locally(durability: Durability, batches: &[Bytes]) -> Duration {
    let member = Member::new(9, durability);
    let copy = member.open(name(), uuid()).copy().unwrap();
    let started = Instant::now();
    let (mut bytes, mut since) = (0, Instant::now());
    for batch in batches {
        copy.db.write(batch, false).unwrap();
        bytes += batch.len();
        if durability == Durability::Sync && (bytes > 4 << 20 || since.elapsed() > Duration::from_millis(5)) {
            copy.db.sync().unwrap();
            (bytes, since) = (0, Instant::now());
        }
    }
    if durability == Durability::Sync {
        copy.db.sync().unwrap();
    }
    started.elapsed()
}

/// From the replica's start to its last record.
fn stream(primary: &Member, durability: Durability) -> Duration {
    let last = primary.prefix().applied();
    let replica = Member::new(2, durability);
    let started = Instant::now();
    let follower = replica.follow(primary);
    let deadline = started + Duration::from_secs(600);
    let done = |prefix: &Prefix| match durability {
        Durability::Sync => prefix.durable() == last,
        Durability::Os => prefix.applied() == last,
    };
    while !replica.store.prefix_by_uuid(uuid()).is_some_and(|p| done(&p)) {
        assert!(Instant::now() < deadline, "the replica does not arrive");
        std::thread::sleep(Duration::from_millis(2));
    }
    let took = started.elapsed();
    replica.runtime.block_on(follower.stop());
    took
}

/// Prints how long after its commit a batch is read on the replica.
fn delay(durability: Durability) {
    let primary = Member::new(1, durability);
    primary.lead();
    let prefix = primary.create();
    let replica = Member::new(2, durability);
    let follower = replica.follow(&primary);
    let deadline = Instant::now() + Duration::from_secs(30);
    while replica.store.prefix_by_uuid(uuid()).is_none_or(|p| p.applied() < prefix.applied()) {
        assert!(Instant::now() < deadline, "the replica does not follow");
        std::thread::sleep(Duration::from_millis(5));
    }
    let waiting: Arc<Mutex<VecDeque<(Sequence, Instant)>>> = Arc::default();
    let shown = watch(&replica, waiting.clone());
    let started = Instant::now();
    let mut written = 0;
    while started.elapsed() < Duration::from_secs(DELAY_SECONDS) {
        let due = u64::try_from(started.elapsed().as_micros()).unwrap() * DELAY_RATE / 1_000_000;
        if due == written {
            std::thread::sleep(Duration::from_micros(100));
            continue;
        }
        let count = u32::try_from((due - written).min(1000)).unwrap();
        let bytes = batch_of(written, count);
        let at = prefix.commit(bytes, count, durability == Durability::Sync).unwrap();
        // Counted from when the writer could be answered.
        waiting.lock().push_back((at.sequence, Instant::now()));
        written += u64::from(count);
    }
    let rate = written as f64 / started.elapsed().as_secs_f64() / 1000.0;
    let deadline = Instant::now() + Duration::from_secs(30);
    while !waiting.lock().is_empty() {
        assert!(Instant::now() < deadline, "the replica does not arrive");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut delays = std::mem::take(&mut *shown.lock());
    delays.sort_unstable();
    let at = |permille: usize| delays[(delays.len() - 1) * permille / 1000].as_secs_f64() * 1000.0;
    println!(
        "delay, {durability:?}, {rate:.0}k records/s in {} batches: p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms",
        delays.len(),
        at(500),
        at(990),
        at(999)
    );
    replica.runtime.block_on(follower.stop());
}

/// Takes down when what waits is shown by the replica's reads.
fn watch(replica: &Member, waiting: Arc<Mutex<VecDeque<(Sequence, Instant)>>>) -> Arc<Mutex<Vec<Duration>>> {
    let shown: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let (prefix, delays) = (replica.prefix(), shown.clone());
    let signal = Arc::new(SessionSignal::default());
    let subscription = Subscription::new(uuid(), signal.clone());
    prefix.subscribe(subscription.clone());
    replica.runtime.spawn(async move {
        loop {
            // The replica may have been faster than the note of the commit.
            let _ = tokio::time::timeout(Duration::from_millis(1), signal.moved()).await;
            signal.take();
            subscription.rearm();
            let (at, now) = (prefix.applied(), Instant::now());
            let mut waiting = waiting.lock();
            while waiting.front().is_some_and(|(sequence, _)| *sequence <= at) {
                if let Some((_, since)) = waiting.pop_front() {
                    delays.lock().push(now.saturating_duration_since(since));
                }
            }
        }
    });
    shown
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// A batch of new keys with values that do not compress.
fn batch_of(from: u64, count: u32) -> Bytes {
    let mut builder = BatchBuilder::new();
    let mut value = [0u8; VALUE];
    for n in from..from + u64::from(count) {
        let mut x = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        for part in value.chunks_mut(8) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            part.copy_from_slice(&x.to_le_bytes()[..part.len()]);
        }
        builder.put(format!("key:{:012}", n.wrapping_mul(7_919) % 100_000_007).as_bytes(), &value);
    }
    builder.finish()
}

fn name() -> PrefixName {
    PrefixName::new("data").unwrap()
}

fn uuid() -> PrefixUuid {
    PrefixUuid(Uuid::from_u128(77))
}

fn reign() -> Reign {
    let member = |n| DataUuid(Uuid::from_u128(n));
    Reign {
        epoch: Epoch(1),
        reign_id: ReignId(Uuid::from_u128(1)),
        primary: member(1),
        members: vec![member(1), member(2)],
        mode: Mode::Async,
        min_sync_replicas: 0,
        lease_duration_ms: 5000,
    }
}

/// One member: a store on a volume of its own, and what serves and follows.
struct Member {
    runtime: Runtime,
    store: Arc<Store>,
    ctx: Arc<ReplicationCtx>,
    engine: Arc<dyn Engine>,
    layout: Layout,
    address: String,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Member {
    fn new(number: u128, durability: Durability) -> Self {
        // As the process has it: a thread of its own.
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let engine: Arc<dyn Engine> = Arc::new(RocksEngine::new(&RocksSettings::default()).unwrap());
        let layout = Layout::open(dir.path()).unwrap();
        let settings = Settings { durability, ..Settings::default() };
        let uid = StoreUid("bench".to_owned());
        let data_uuid = DataUuid(Uuid::from_u128(number));
        let store = Arc::new(Store::new(uid, data_uuid, Limits::default(), settings, RING_BYTES));
        let advertise = Endpoint { data_uuid: Some(data_uuid), replication: address.clone(), ..Endpoint::default() };
        let hooks = Arc::new(Hooks { engine: engine.clone(), layout: layout.clone(), store: store.clone() });
        let ctx = ReplicationCtx::new(
            store.clone(),
            engine.clone(),
            Arc::new(layout.clone()),
            hooks.clone(),
            hooks,
            advertise,
        );
        let (ctx, stop) = (Arc::new(ctx), CancellationToken::new());
        let serving = serve(ctx.clone(), listener, stop.clone());
        runtime.spawn(async move { serving.await.unwrap() });
        let member = Self { runtime, store, ctx, engine, layout, address, stop, _dir: dir };
        member.open(PrefixName::catalogue(), catalogue_uuid(&member.store.store_uid));
        member
    }

    fn open(&self, name: PrefixName, uuid: PrefixUuid) -> Arc<Prefix> {
        open(&self.engine, &self.layout, &self.store, name, uuid)
    }

    fn lead(&self) {
        let role = RoleView { reign: Some(reign()), is_primary: true, ..RoleView::default() };
        self.store.set_role(role);
        for prefix in self.store.prefixes().by_uuid.values() {
            prefix.begin_epoch(reign().to_ref(), true).unwrap();
        }
    }

    /// Creates the prefix, through the catalogue.
    fn create(&self) -> Arc<Prefix> {
        let prefix = self.open(name(), uuid());
        prefix.begin_epoch(reign().to_ref(), true).unwrap();
        let mut record = BatchBuilder::new();
        record.put(b"data", b"");
        let catalogue = self.store.prefix_by_uuid(catalogue_uuid(&self.store.store_uid)).unwrap();
        catalogue.commit(record.finish(), 1, true).unwrap();
        prefix
    }

    fn prefix(&self) -> Arc<Prefix> {
        self.store.prefix_by_uuid(uuid()).unwrap()
    }

    fn follow(&self, primary: &Self) -> Follower {
        let upstream = Endpoint {
            data_uuid: Some(primary.store.data_uuid),
            replication: primary.address.clone(),
            ..Endpoint::default()
        };
        self.store.set_role(RoleView {
            reign: Some(reign()),
            is_primary: false,
            primary: Some(upstream.clone()),
            upstream: Some(upstream),
            ..RoleView::default()
        });
        Follower::start(self.ctx.clone(), self.runtime.handle()).unwrap()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn open(
    engine: &Arc<dyn Engine>,
    layout: &Layout,
    store: &Arc<Store>,
    name: PrefixName,
    uuid: PrefixUuid,
) -> Arc<Prefix> {
    if let Some(present) = store.prefix_by_uuid(uuid) {
        return present;
    }
    let generation = layout.next_generation(&name, uuid, 0, "created").unwrap();
    let db = engine.open(&generation.db_dir(), &OpenSpec { sequence_offset: 0, create: true }).unwrap();
    layout.switch(&name, uuid, &generation).unwrap();
    let prefix = Arc::new(Prefix::new(name, uuid, 0, store.ring_budget.clone()));
    let copy = Copy { generation: generation.number, dir: generation.dir, sequence_offset: 0, db };
    prefix.install(copy, EpochHistory::default());
    store.add_prefix(prefix)
}

/// A member that never changes its reign, and a catalogue of one prefix.
#[derive(Debug)]
struct Hooks {
    engine: Arc<dyn Engine>,
    layout: Layout,
    store: Arc<Store>,
}

impl MemberHooks for Hooks {
    fn promise(&self, _: &Reign) -> Result<(), String> {
        Err("the reign does not change here".to_owned())
    }
    fn raise_floors(&self, _: &[(PrefixUuid, Position)]) -> Result<(), String> {
        Ok(())
    }
    fn floor(&self, _: PrefixUuid) -> Option<Position> {
        None
    }
    fn beat(&self) -> Option<BeatOut> {
        Some(BeatOut { reign: reign().to_ref(), sent_at_ms: clock::boot_ms(), serving: true })
    }
    fn heard(&self, _: ReignRef, _: u64) {}
    fn echo(&self) -> u64 {
        0
    }
    fn echoed(&self, _: DataUuid, _: ReignRef, _: u64) {}
    fn acked(&self) {}
    fn fatal(&self, cause: &str) {
        panic!("{cause}");
    }
}

impl CatalogueHook for Hooks {
    fn applied(&self, _: &Prefix, entry: &RingEntry) -> Result<(), String> {
        // The first record is the epoch's, the second creates the prefix.
        if entry.first == Sequence(2) {
            open(&self.engine, &self.layout, &self.store, name(), uuid());
        }
        Ok(())
    }
    fn replaced(&self, _: &Prefix, _: bool) -> Result<(), String> {
        Ok(())
    }
    fn forget(&self, _: &Prefix) -> Result<(), String> {
        Ok(())
    }
}
