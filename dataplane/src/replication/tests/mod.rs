//! Members of one process on real RocksDB and real TCP.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bootstrap;
mod pace;
mod proxy;
mod refusals;
mod sources;
mod streaming;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use parovoz_dataplane_core::batch::{self, BatchBuilder, Record};
use parovoz_dataplane_core::history::EpochHistory;
use parovoz_dataplane_core::types::{
    DataUuid, Epoch, Limits, Mode, Position, PrefixName, PrefixUuid, Reign, ReignId, Sequence, StoreUid, catalogue_uuid,
};
use parovoz_engine::rocks::{RocksEngine, RocksSettings};
use parovoz_engine::{Direction, Engine, Family, OpenSpec};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::*;
use crate::config::Settings;
use crate::disk::layout::Layout;
use crate::scratch::Scratch;
use crate::store::RoleView;
use crate::store::prefix::Copy;

/// Long, so that a busy machine fails nothing: only a test that fails waits for it.
const WAIT: Duration = Duration::from_secs(90);

/// Waits until `ready`, with a deadline.
async fn eventually(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + WAIT;
    while !ready() {
        assert!(tokio::time::Instant::now() < deadline, "not within {WAIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn member(n: u128) -> DataUuid {
    DataUuid(Uuid::from_u128(n))
}

fn store_uid() -> StoreUid {
    StoreUid("store".to_owned())
}

fn uuid_of(name: &str) -> PrefixUuid {
    PrefixUuid(Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()))
}

/// A reign of three members whose primary is number 1.
fn reign(epoch: u64) -> Reign {
    Reign {
        epoch: Epoch(epoch),
        reign_id: ReignId(Uuid::from_u128(u128::from(epoch))),
        primary: member(1),
        members: vec![member(1), member(2), member(3)],
        mode: Mode::Quorum,
        min_sync_replicas: 1,
        lease_duration_ms: 5000,
    }
}

#[derive(Debug, Default)]
struct TestMember {
    store: Mutex<Option<Arc<Store>>>,
    floors: Mutex<HashMap<PrefixUuid, Position>>,
    fatal: Mutex<Vec<String>>,
    promised: Mutex<Vec<Reign>>,
}

impl MemberHooks for TestMember {
    fn promise(&self, reign: &Reign) -> Result<(), String> {
        self.promised.lock().push(reign.clone());
        let store = self.store.lock().clone().unwrap();
        let role = store.role();
        store.set_role(RoleView { reign: Some(reign.clone()), ..RoleView::clone(&role) });
        Ok(())
    }
    fn raise_floors(&self, raised: &[(PrefixUuid, Position)]) -> Result<(), String> {
        let mut floors = self.floors.lock();
        for (prefix, floor) in raised {
            let now = floors.entry(*prefix).or_default();
            *now = (*now).max(*floor);
        }
        Ok(())
    }
    fn floor(&self, prefix: PrefixUuid) -> Option<Position> {
        self.floors.lock().get(&prefix).copied()
    }
    fn beat(&self) -> Option<BeatOut> {
        let reign = self.store.lock().as_ref()?.role().reign.as_ref()?.to_ref();
        Some(BeatOut { reign, sent_at_ms: clock::boot_ms(), serving: true })
    }
    fn heard(&self, _: ReignRef, _: u64) {}
    fn echo(&self) -> u64 {
        0
    }
    fn echoed(&self, _: DataUuid, _: ReignRef, _: u64) {}
    fn acked(&self) {}
    fn fatal(&self, cause: &str) {
        self.fatal.lock().push(cause.to_owned());
    }
}

/// A catalogue whose records are plain: name -> nothing; the identity follows from the name.
#[derive(Debug)]
struct TestCatalogue {
    engine: Arc<dyn Engine>,
    layout: Layout,
    store: Arc<Store>,
}

impl TestCatalogue {
    fn create(&self, name: &str) -> Arc<Prefix> {
        let (name, uuid) = (PrefixName::new(name).unwrap(), uuid_of(name));
        open_prefix(&self.engine, &self.layout, &self.store, name, uuid)
    }
}

impl CatalogueHook for TestCatalogue {
    fn applied(&self, _: &Prefix, entry: &RingEntry) -> Result<(), String> {
        for record in batch::records(&entry.bytes).unwrap() {
            if let Record::Put { family: batch::DATA_FAMILY, key, .. } = record.unwrap() {
                self.create(std::str::from_utf8(key).unwrap());
            }
        }
        Ok(())
    }
    fn replaced(&self, catalogue: &Prefix, _: bool) -> Result<(), String> {
        for (key, _) in contents(catalogue) {
            self.create(std::str::from_utf8(&key).unwrap());
        }
        Ok(())
    }
    fn forget(&self, _: &Prefix) -> Result<(), String> {
        Ok(())
    }
}

fn open_prefix(
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

/// One member.
struct Node {
    dir: Scratch,
    store: Arc<Store>,
    ctx: Arc<ReplicationCtx>,
    hooks: Arc<TestMember>,
    catalogue: Arc<TestCatalogue>,
    address: String,
    stop: CancellationToken,
    server: Option<tokio::task::JoinHandle<()>>,
    follower: Option<Follower>,
}

impl Node {
    async fn new(number: u128) -> Self {
        Self::with(number, store_uid(), Settings::default(), Tuning::default()).await
    }

    async fn with(number: u128, store_uid: StoreUid, settings: Settings, tuning: Tuning) -> Self {
        let dir = Scratch::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let sizes = RocksSettings { block_cache_bytes: 8 << 20, memtable_bytes: 64 << 20, ..RocksSettings::default() };
        let engine: Arc<dyn Engine> = Arc::new(RocksEngine::new(&sizes).unwrap());
        let layout = Layout::open(dir.path()).unwrap();
        let store = Arc::new(Store::new(store_uid, member(number), Limits::default(), settings, 64 << 20));
        let hooks = Arc::new(TestMember { store: Mutex::new(Some(store.clone())), ..TestMember::default() });
        let catalogue =
            Arc::new(TestCatalogue { engine: engine.clone(), layout: layout.clone(), store: store.clone() });
        let advertise =
            Endpoint { data_uuid: Some(member(number)), replication: address.clone(), ..Endpoint::default() };
        let mut ctx =
            ReplicationCtx::new(store.clone(), engine, Arc::new(layout), hooks.clone(), catalogue.clone(), advertise);
        ctx.tuning = tuning;
        let ctx = Arc::new(ctx);
        let uuid = catalogue_uuid(&store.store_uid);
        open_prefix(&ctx.engine, &catalogue.layout, &store, PrefixName::catalogue(), uuid);
        let stop = CancellationToken::new();
        let (serving, stopping) = (ctx.clone(), stop.clone());
        let server = tokio::spawn(async move { serve(serving, listener, stopping).await.unwrap() });
        Self { dir, store, ctx, hooks, catalogue, address, stop, server: Some(server), follower: None }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint { data_uuid: Some(self.store.data_uuid), replication: self.address.clone(), ..Endpoint::default() }
    }

    /// Makes it the primary of `reign`, with an epoch record in each prefix.
    fn lead(&self, reign: &Reign) {
        let role = RoleView { reign: Some(reign.clone()), is_primary: true, ..RoleView::default() };
        self.store.set_role(role);
        for prefix in self.store.prefixes().by_uuid.values() {
            prefix.begin_epoch(reign.to_ref(), true).unwrap();
        }
    }

    /// Orders it to follow, and starts the follower if it is not running.
    fn follow(&mut self, reign: &Reign, upstream: Endpoint, primary: &Endpoint) {
        self.store.set_role(RoleView {
            reign: Some(reign.clone()),
            is_primary: false,
            primary: Some(primary.clone()),
            upstream: Some(upstream),
            ..RoleView::default()
        });
        if self.follower.is_none() {
            self.follower = Some(Follower::start(self.ctx.clone(), &tokio::runtime::Handle::current()).unwrap());
        }
    }

    async fn stop_following(&mut self) {
        if let Some(follower) = self.follower.take() {
            follower.stop().await;
        }
    }

    /// Creates a prefix on the primary, through the catalogue.
    fn create(&self, name: &str) -> Arc<Prefix> {
        let prefix = self.catalogue.create(name);
        let reign = self.store.role().reign.as_ref().unwrap().to_ref();
        prefix.begin_epoch(reign, true).unwrap();
        write(&self.prefix_by(catalogue_uuid(&self.store.store_uid)), &[(name.as_bytes(), b"")]);
        prefix
    }

    fn prefix_by(&self, uuid: PrefixUuid) -> Arc<Prefix> {
        self.store.prefix_by_uuid(uuid).unwrap()
    }

    fn prefix(&self, name: &str) -> Arc<Prefix> {
        self.prefix_by(uuid_of(name))
    }

    /// Waits until a prefix here is where `upstream`'s is, and compares contents and history.
    async fn equals(&self, upstream: &Node, name: &str) {
        let uuid = uuid_of(name);
        eventually(&format!("{name} follows"), || {
            self.store
                .prefix_by_uuid(uuid)
                .is_some_and(|p| p.copy().is_some() && p.durable() == upstream.prefix(name).durable())
        })
        .await;
        let (ours, theirs) = (self.prefix(name), upstream.prefix(name));
        assert_eq!(ours.copy().unwrap().db.latest(), theirs.copy().unwrap().db.latest());
        assert_eq!(ours.history(), theirs.history());
        assert!(contents(&ours) == contents(&theirs), "contents of {name} differ");
        assert_eq!(self.hooks.fatal.lock().as_slice(), [""; 0]);
    }

    async fn shut(mut self) {
        self.stop_following().await;
        self.stop.cancel();
        if let Some(server) = self.server.take() {
            tokio::time::timeout(WAIT, server).await.expect("the server stops").unwrap();
        }
    }
}

/// Commits one batch.
fn write(prefix: &Prefix, records: &[(&[u8], &[u8])]) -> Position {
    let mut builder = BatchBuilder::new();
    for (key, value) in records {
        builder.put(key, value);
    }
    let count = builder.count();
    prefix.commit(builder.finish(), count, true).unwrap()
}

/// Commits `batches` batches of ten records with values of `len` bytes that do not compress.
fn write_many(prefix: &Prefix, batches: u32, len: usize) -> Position {
    let mut last = Position::ZERO;
    for n in 0..batches {
        let at = prefix.applied().0;
        let records: Vec<(Vec<u8>, Vec<u8>)> = (0..10u32)
            .map(|i| {
                let key = format!("{:08}-{n:06}-{i}", at);
                let mut x = (at << 20 | u64::from(i) << 16 | u64::from(n)).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
                let value = std::iter::repeat_with(|| {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    x.to_le_bytes()
                })
                .flatten()
                .take(len)
                .collect();
                (key.into_bytes(), value)
            })
            .collect();
        let records: Vec<(&[u8], &[u8])> = records.iter().map(|(k, v)| (k.as_slice(), v.as_slice())).collect();
        last = write(prefix, &records);
    }
    last
}

fn contents(prefix: &Prefix) -> Vec<(Vec<u8>, Vec<u8>)> {
    let copy = prefix.copy().unwrap();
    let mut all = Vec::new();
    let mut each = |key: &[u8], value: &[u8]| {
        all.push((key.to_vec(), value.to_vec()));
        true
    };
    copy.db.snapshot().scan(Family::Data, b"", b"", Direction::Forward, &mut each).unwrap();
    all
}

/// Takes the upstream's WAL away up to the present, so that whoever is behind has a gap.
async fn prune(prefix: &Prefix) {
    let last = prefix.applied();
    prefix.ring().trim(u64::MAX);
    let copy = prefix.copy().unwrap();
    eventually("the WAL is archived and pruned", || {
        copy.db.flush().unwrap();
        for file in copy.db.wal_files().unwrap().iter().filter(|f| f.archived) {
            copy.db.remove_archived(file).unwrap();
        }
        copy.db.oldest_in_wal().unwrap() > last || copy.db.oldest_in_wal().unwrap() > Sequence(last.0 / 2)
    })
    .await;
}

/// A primary with one prefix, `data`, and its reign.
async fn primary() -> Node {
    let node = Node::new(1).await;
    node.lead(&reign(1));
    node.create("data");
    node
}
