//! Loops with real databases, spoken to over real sockets.
#![allow(clippy::unwrap_used)]

mod commands;
mod durable;
mod faulty;
mod quorum;
mod reign;
mod wire;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use clap::Parser as _;
use parovoz_dataplane_core::history::EpochHistory;
use parovoz_dataplane_core::lease::Serving;
use parovoz_dataplane_core::types::{DataUuid, Epoch, Limits, Mode, PrefixName, PrefixUuid, Reign, ReignId, StoreUid};
use parovoz_engine::memory::MemoryEngine;
use parovoz_engine::rocks::{RocksEngine, RocksSettings};
use parovoz_engine::{Engine, OpenSpec};
use uuid::Uuid;

use self::faulty::Faulty;
use super::*;
use crate::config::{Durability, Settings};
use crate::scratch::Scratch;
use crate::store::prefix::Copy;
use crate::store::{CreateError, CreateReply, Creator, Endpoint, RoleView};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    run: RunArgs,
}

/// A running store of one member.
struct Rig {
    store: Arc<Store>,
    shards: Shards,
    reign: Reign,
    maker: Arc<Maker>,
    fatal: Arc<OnceLock<String>>,
    _dir: Scratch,
}

/// Creates prefixes, on a thread of its own as the catalogue does.
#[derive(Debug)]
struct Maker {
    engine: Arc<dyn Engine>,
    dir: std::path::PathBuf,
    store: std::sync::Weak<Store>,
    loops: usize,
    made: AtomicUsize,
    reign: Reign,
    refuse: AtomicBool,
}

impl Maker {
    fn make(&self, name: &str) -> Arc<Prefix> {
        let store = self.store.upgrade().unwrap();
        let number = self.made.fetch_add(1, Ordering::SeqCst);
        let dir = self.dir.join(number.to_string());
        let db = self.engine.open(&dir, &OpenSpec { create: true, ..OpenSpec::default() }).unwrap();
        let name = PrefixName::new(name).unwrap();
        let prefix =
            Arc::new(Prefix::new(name, PrefixUuid(Uuid::new_v4()), number % self.loops, store.ring_budget.clone()));
        prefix.install(Copy { generation: 1, dir, sequence_offset: 0, db }, EpochHistory::default());
        prefix.begin_epoch(self.reign.to_ref(), false).unwrap();
        prefix.release(prefix.applied());
        store.add_prefix(prefix)
    }
}

impl Creator for Maker {
    fn create(&self, name: PrefixName, reply: CreateReply) {
        if self.refuse.load(Ordering::SeqCst) {
            return reply(Err(CreateError::TooMany { name, limit: 3 }));
        }
        let store = self.store.upgrade().unwrap();
        std::thread::scope(|s| {
            s.spawn(|| {
                let prefix = store.prefix(name.as_str().as_bytes()).unwrap_or_else(|| self.make(name.as_str()));
                reply(Ok(prefix));
            });
        });
    }
}

#[derive(Clone)]
struct Plan {
    loops: usize,
    rocks: bool,
    required: u32,
    max_connections: usize,
    cache_bytes: usize,
    durability: Durability,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            loops: 2,
            rocks: false,
            required: 0,
            max_connections: 100,
            cache_bytes: 4 << 20,
            durability: Durability::Os,
        }
    }
}

impl Rig {
    fn new() -> Self {
        Self::with(Plan::default())
    }

    fn with(plan: Plan) -> Self {
        let dir = Scratch::new();
        let engine: Arc<dyn Engine> = if plan.rocks {
            Arc::new(RocksEngine::new(&RocksSettings::default()).unwrap())
        } else {
            Arc::new(MemoryEngine::new())
        };
        let settings = Settings { durability: plan.durability, ..Settings::default() };
        let me = DataUuid(Uuid::new_v4());
        let store = Arc::new(Store::new(StoreUid("s".into()), me, Limits::default(), settings, 16 << 20));
        let mode = if plan.required > 0 { Mode::Quorum } else { Mode::Async };
        let reign = Reign {
            epoch: Epoch(1),
            reign_id: ReignId(Uuid::new_v4()),
            primary: me,
            members: vec![me],
            mode,
            min_sync_replicas: plan.required,
            lease_duration_ms: 5000,
        };
        let maker = Arc::new(Maker {
            engine,
            dir: dir.path().to_owned(),
            store: Arc::downgrade(&store),
            loops: plan.loops,
            made: AtomicUsize::new(0),
            reign: reign.clone(),
            refuse: AtomicBool::new(false),
        });
        store.set_creator(maker.clone());
        store.set_role(RoleView { reign: Some(reign.clone()), is_primary: true, ..RoleView::default() });
        let open = Serving { read_until_ms: u64::MAX, acknowledge_until_ms: u64::MAX };
        store.gate.publish(open, 0);
        let words = ["x", "--store-uid", "s", "--listen", "127.0.0.1", "--resp-port", "0"];
        let mut args = Cli::parse_from(words).run;
        args.max_connections = plan.max_connections;
        args.object_cache_bytes = plan.cache_bytes;
        let fatal = Arc::new(OnceLock::new());
        let told = fatal.clone();
        let switch = FatalSwitch::with(move |why| told.set(why.to_owned()).unwrap());
        let shards = Shards::start(store.clone(), &args, plan.loops, switch).unwrap();
        Self { store, shards, reign, maker, fatal, _dir: dir }
    }

    /// Makes prefixes in this order: the first belongs to loop 0, the second to loop 1, and so on in turn.
    fn prefixes(self, names: &[&str]) -> Self {
        for name in names {
            self.maker.make(name);
        }
        self
    }

    fn redis(&self) -> redis::Connection {
        let client = redis::Client::open(format!("redis://{}/", self.shards.address())).unwrap();
        let connection = client.get_connection_with_timeout(PATIENCE).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection
    }

    fn raw(&self) -> Raw {
        Raw::to(self.shards.address())
    }

    fn become_replica(&self) {
        let primary = Endpoint { resp: "10.0.0.9:6379".into(), client: "10.0.0.9:7000".into(), ..Endpoint::default() };
        self.store.set_role(RoleView {
            reign: Some(self.reign.clone()),
            is_primary: false,
            primary: Some(primary.clone()),
            upstream: Some(primary),
            ..RoleView::default()
        });
    }

    fn sum(&self, of: impl Fn(&ShardStats) -> &AtomicU64) -> u64 {
        self.shards.shared.stats.iter().map(|s| of(s).load(Ordering::Relaxed)).sum()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let ended = self.shards.stop(PATIENCE);
        if !std::thread::panicking() {
            assert!(ended, "loops end when stopped");
        }
    }
}

/// A socket and what is expected from it.
struct Raw(TcpStream);

impl Raw {
    fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).unwrap();
    }

    /// Reads exactly so many bytes as text.
    fn take(&mut self, len: usize) -> String {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Expects exactly this.
    fn expect(&mut self, text: &str) {
        assert_eq!(self.take(text.len()), text);
    }

    /// Expects one line that contains this.
    fn expect_line(&mut self, part: &str) {
        let mut line = String::new();
        while !line.ends_with("\r\n") {
            line += &self.take(1);
        }
        assert!(line.contains(part), "{line:?} lacks {part:?}");
    }

    /// Expects that nothing comes for a while.
    fn expect_silence(&mut self) {
        self.expect_silence_of(Duration::from_millis(100));
    }

    /// Expects that nothing has come yet.
    fn expect_silence_for_now(&mut self) {
        self.expect_silence_of(Duration::from_millis(1));
    }

    fn expect_silence_of(&mut self, time: Duration) {
        self.0.set_read_timeout(Some(time)).unwrap();
        let mut byte = [0];
        assert!(self.0.read(&mut byte).is_err(), "something came: {byte:?}");
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
    }

    /// Expects that the other side closes.
    fn expect_end(&mut self) {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).unwrap();
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }
}

/// Waits until something holds.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
