//! What this member holds: its identity, its settings, its role and all its prefixes. Shared by every thread.

pub mod catalogue;
pub mod gate;
pub mod prefix;
pub mod retention;
pub mod ring;
pub mod signal;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
pub use parovoz_dataplane_core::member::Endpoint;
use parovoz_dataplane_core::types::{DataUuid, Limits, Position, PrefixName, PrefixUuid, Reign, ReignRef, StoreUid};
use tokio_util::sync::CancellationToken;

use self::gate::Gate;
use self::prefix::Prefix;
use self::ring::RingBudget;
use crate::clock;
use crate::config::Settings;

/// A sync that takes so long hangs.
const HUNG_SYNC_MS: u64 = 10_000;
/// What loops have begun is answered by then, or withheld by the gate.
const SETTLE: Duration = Duration::from_millis(50);
/// What was committed is durable by then, or its outcome unknown.
const SETTLE_DISK: Duration = Duration::from_millis(400);
/// Between two looks at how far the loops are.
const SETTLE_LOOK: Duration = Duration::from_micros(200);

/// What this member is at the moment. Replaced as a whole.
#[derive(Debug, Clone, Default)]
pub struct RoleView {
    /// The reign that it promised or leads; `None` before its first orders.
    pub reign: Option<Reign>,
    /// Whether it leads it.
    pub is_primary: bool,
    /// The primary, for clients that ask the wrong member and for acknowledgements; `None` on the primary.
    pub primary: Option<Endpoint>,
    /// Whom it follows; `None` on the primary and before its first orders.
    pub upstream: Option<Endpoint>,
    /// What it is sealed for: it takes nothing from a lower epoch.
    pub sealed: Option<ReignRef>,
    /// It led in this process and is sealed: it answers nobody, and writes that wait for replicas go on waiting.
    pub fenced: bool,
    /// It completes itself under the seal: only these prefixes, up to these positions, from `upstream`.
    pub pull: Option<Arc<BTreeMap<PrefixUuid, Position>>>,
}

impl RoleView {
    /// W: replicas that must hold a write durably before it is answered. 0 in Async.
    #[must_use]
    pub fn required_acks(&self) -> u32 {
        self.reign.as_ref().map_or(0, Reign::required)
    }

    /// What this member promised: the seal if there is one, since it is above the reign then.
    #[must_use]
    pub fn promise(&self) -> Option<ReignRef> {
        self.sealed.or_else(|| self.reign.as_ref().map(Reign::to_ref))
    }
}

/// All prefixes, by name and by identity. Replaced as a whole when one comes or goes.
#[derive(Debug, Default)]
pub struct PrefixMap {
    /// By name; the catalogue is not in here.
    pub by_name: HashMap<Box<[u8]>, Arc<Prefix>>,
    /// By identity, the catalogue included.
    pub by_uuid: HashMap<PrefixUuid, Arc<Prefix>>,
}

/// Why a prefix was not created.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CreateError {
    /// Writes belong to the primary.
    #[error("create prefix: this member is not the primary")]
    NotPrimary,
    /// `prefixes.create: Declared`.
    #[error("create prefix {0}: the store creates no prefixes by writing (prefixes.create is Declared)")]
    NotOnWrite(PrefixName),
    /// `maxPrefixes` is reached.
    #[error("create prefix {name}: the store has {limit} prefixes already (prefixes.maxPrefixes)")]
    TooMany {
        /// The refused one.
        name: PrefixName,
        /// The limit.
        limit: usize,
    },
    /// Too many creations wait.
    #[error("create prefix {0}: too many creations are waiting, try again")]
    Busy(PrefixName),
    /// The disk or the database refused.
    #[error("create prefix {name}: {cause}")]
    Failed {
        /// The refused one.
        name: PrefixName,
        /// What happened.
        cause: String,
    },
}

/// Called once with the created (or already existing) prefix.
pub type CreateReply = Box<dyn FnOnce(Result<Arc<Prefix>, CreateError>) + Send>;

/// Takes creations; the catalogue's thread.
pub trait Creator: Send + Sync + std::fmt::Debug {
    /// Creates a prefix and answers; never blocks.
    fn create(&self, name: PrefixName, reply: CreateReply);
}

/// One event loop, as other threads see it.
pub trait Wake: Send + Sync + std::fmt::Debug {
    /// Makes the loop run a pass: something that it waits for may have come.
    fn wake(&self);

    /// How many passes it has begun.
    fn passes(&self) -> u64;

    /// Whether replies waited for the disk at the end of its last pass.
    fn owes(&self) -> bool;
}

/// See the module.
#[derive(Debug)]
pub struct Store {
    /// The store that this member belongs to.
    pub store_uid: StoreUid,
    /// This member's volume.
    pub data_uuid: DataUuid,
    /// Sizes that requests may have.
    pub limits: Limits,
    /// The settings in effect.
    pub settings: ArcSwap<Settings>,
    /// Shared by the rings of all prefixes.
    pub ring_budget: Arc<RingBudget>,
    /// Until when the loops may answer and acknowledge.
    pub gate: Gate,
    role: ArcSwap<RoleView>,
    /// Ends the streams and acknowledgements that were begun under an older promise.
    streams: Mutex<CancellationToken>,
    prefixes: ArcSwap<PrefixMap>,
    /// Grows with every change of role or prefixes: event loops compare it and drop what they cached.
    version: AtomicU64,
    changing: Mutex<()>,
    /// Held while a reign begins in all prefixes and while a prefix is created under one: no prefix misses a reign.
    pub(crate) reigning: Mutex<()>,
    loops: OnceLock<Vec<Arc<dyn Wake>>>,
    creator: OnceLock<Arc<dyn Creator>>,
    /// The catalogue is not here yet, so nobody knows which prefixes there are.
    loading: AtomicBool,
    /// Where missing copies are taken from; none = the upstream.
    bootstrap_source: ArcSwapOption<Endpoint>,
    /// `clock::boot_ms` when something was last heard from the primary; 0 = never.
    heard_primary_ms: AtomicU64,
    /// The same for what it said while it could answer fresh reads.
    heard_serving_ms: AtomicU64,
    /// Tells the member's shell that a report is due.
    changed: tokio::sync::watch::Sender<u64>,
}

impl Store {
    /// An empty store. `shards` is the number of event loops.
    #[must_use]
    pub fn new(
        store_uid: StoreUid,
        data_uuid: DataUuid,
        limits: Limits,
        settings: Settings,
        ring_bytes: usize,
    ) -> Self {
        Self {
            store_uid,
            data_uuid,
            limits,
            settings: ArcSwap::from_pointee(settings),
            ring_budget: RingBudget::new(ring_bytes),
            gate: Gate::default(),
            role: ArcSwap::default(),
            streams: Mutex::default(),
            prefixes: ArcSwap::default(),
            version: AtomicU64::new(1),
            changing: Mutex::new(()),
            reigning: Mutex::new(()),
            loops: OnceLock::new(),
            creator: OnceLock::new(),
            loading: AtomicBool::new(false),
            bootstrap_source: ArcSwapOption::empty(),
            heard_primary_ms: AtomicU64::new(0),
            heard_serving_ms: AtomicU64::new(0),
            changed: tokio::sync::watch::channel(0).0,
        }
    }

    /// What this member is now.
    #[must_use]
    pub fn role(&self) -> Arc<RoleView> {
        self.role.load_full()
    }

    /// Changes what this member is. Only the member's shell calls it.
    pub fn set_role(&self, role: RoleView) {
        self.role.store(Arc::new(role));
        self.bump();
    }

    /// Ends when streams under the present promise must.
    #[must_use]
    pub fn stream_token(&self) -> CancellationToken {
        self.streams.lock().child_token()
    }

    /// Ends all streams and acknowledgements, in and out, that were begun until now.
    pub fn cut_streams(&self) {
        std::mem::take(&mut *self.streams.lock()).cancel();
    }

    /// Where missing copies are taken from; `None` = the upstream. As last ordered; a new process begins with none.
    #[must_use]
    pub fn bootstrap_source(&self) -> Option<Arc<Endpoint>> {
        self.bootstrap_source.load_full()
    }

    /// Says where the next missing copies are taken from; a copy under way stays with its source.
    pub fn set_bootstrap_source(&self, source: Option<Endpoint>) {
        self.bootstrap_source.store(source.map(Arc::new));
        self.note_change();
    }

    /// All prefixes.
    #[must_use]
    pub fn prefixes(&self) -> Arc<PrefixMap> {
        self.prefixes.load_full()
    }

    /// A prefix by the bytes of its name.
    #[must_use]
    pub fn prefix(&self, name: &[u8]) -> Option<Arc<Prefix>> {
        self.prefixes.load().by_name.get(name).cloned()
    }

    /// A prefix by its identity.
    #[must_use]
    pub fn prefix_by_uuid(&self, uuid: PrefixUuid) -> Option<Arc<Prefix>> {
        self.prefixes.load().by_uuid.get(&uuid).cloned()
    }

    /// Adds a prefix; a present one of the same identity stays and is answered. The name is the added one's from now on.
    pub fn add_prefix(&self, prefix: Arc<Prefix>) -> Arc<Prefix> {
        let uuid = prefix.uuid;
        if let Some(present) = self.prefix_by_uuid(uuid)
            && (prefix.name.is_catalogue()
                || self.prefix(prefix.name.as_str().as_bytes()).is_some_and(|named| named.uuid == uuid))
        {
            return present;
        }
        self.add_prefixes(vec![prefix.clone()]);
        self.prefix_by_uuid(uuid).unwrap_or(prefix)
    }

    /// Adds many at once, at the cost of one; present ones of the same identity stay.
    pub fn add_prefixes(&self, prefixes: Vec<Arc<Prefix>>) {
        let changing = self.changing.lock();
        let now = self.prefixes.load();
        let mut next = PrefixMap { by_name: now.by_name.clone(), by_uuid: now.by_uuid.clone() };
        for prefix in prefixes {
            // Who is added has the name, also where another had it meanwhile.
            let prefix = next.by_uuid.get(&prefix.uuid).cloned().unwrap_or(prefix);
            if !prefix.name.is_catalogue() {
                next.by_name.insert(prefix.name.as_str().as_bytes().into(), prefix.clone());
            }
            next.by_uuid.insert(prefix.uuid, prefix);
        }
        self.prefixes.store(Arc::new(next));
        drop(changing);
        self.bump();
    }

    /// Takes a prefix out (its drop was applied).
    pub fn remove_prefix(&self, uuid: PrefixUuid) -> Option<Arc<Prefix>> {
        let changing = self.changing.lock();
        let now = self.prefixes.load();
        let mut next = PrefixMap { by_name: now.by_name.clone(), by_uuid: now.by_uuid.clone() };
        let gone = next.by_uuid.remove(&uuid)?;
        if next.by_name.get(gone.name.as_str().as_bytes()).is_some_and(|p| p.uuid == uuid) {
            next.by_name.remove(gone.name.as_str().as_bytes());
        }
        self.prefixes.store(Arc::new(next));
        drop(changing);
        gone.mark_dropped();
        self.bump();
        Some(gone)
    }

    /// Creates a prefix as the primary and calls `reply`, from another thread, when it can be written.
    pub fn create_prefix(&self, name: PrefixName, reply: CreateReply) {
        match self.creator.get() {
            Some(creator) => creator.create(name, reply),
            None => reply(Err(CreateError::NotPrimary)),
        }
    }

    /// Sets who creates prefixes; once, at start.
    pub fn set_creator(&self, creator: Arc<dyn Creator>) {
        let _ = self.creator.set(creator);
    }

    /// Sets the event loops' wakers, in the order of their numbers; once, at start.
    pub fn set_loops(&self, loops: Vec<Arc<dyn Wake>>) {
        let _ = self.loops.set(loops);
    }

    /// Wakes the event loop that owns a prefix: its `released` moved, say.
    pub fn wake_loop(&self, shard: usize) {
        if let Some(waker) = self.loops.get().and_then(|l| l.get(shard)) {
            waker.wake();
        }
    }

    /// Has the loops of a primary answer what they have begun and begin nothing more until `ms` (`clock::boot_ms`): called
    /// before its gate is closed by an order, so that nothing is withheld which was read already. Blocks, briefly.
    pub fn settle_loops(&self, ms: u64) {
        self.gate.end_until(ms);
        let until = Instant::now() + SETTLE;
        // What a pass has handed to another loop is executed by the first pass that begins there after it.
        if self.passes_end(1, until) && self.passes_end(2, until) {
            self.await_loops(until + SETTLE_DISK, |l, _| !l.owes());
        }
    }

    /// Waits until each loop has begun `passes` more; false if some did not in time.
    fn passes_end(&self, passes: u64, until: Instant) -> bool {
        let begun: Vec<u64> = self.loops.get().into_iter().flatten().map(|l| l.passes()).collect();
        self.await_loops(until, |l, n| begun.get(n).is_none_or(|begun| l.passes() >= begun + passes))
    }

    /// Wakes the loops until each is so; false if some were not in time.
    fn await_loops(&self, until: Instant, is_so: impl Fn(&dyn Wake, usize) -> bool) -> bool {
        let Some(loops) = self.loops.get() else { return true };
        loop {
            let mut late = loops.iter().enumerate().filter(|(n, l)| !is_so(l.as_ref(), *n)).peekable();
            if late.peek().is_none() {
                return true;
            }
            late.for_each(|(_, l)| l.wake());
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(SETTLE_LOOK);
        }
    }

    /// Grows with every change of role or prefixes.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Something that reports show changed: a report is due.
    pub fn note_change(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Sees every change that [`Store::note_change`] told of.
    #[must_use]
    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Says whether the catalogue is still to come; an unknown prefix means "wait" then and not "there is none".
    pub fn set_loading(&self, loading: bool) {
        if self.loading.swap(loading, Ordering::AcqRel) != loading {
            self.bump();
        }
    }

    /// Whether the catalogue is still to come.
    #[must_use]
    pub fn is_loading(&self) -> bool {
        self.loading.load(Ordering::Acquire)
    }

    /// Something came from the primary just now.
    pub fn note_heard_primary(&self) {
        self.heard_primary_ms.store(clock::boot_ms(), Ordering::Release);
    }

    /// A beat came that the primary sent while it could answer fresh reads.
    pub fn note_heard_serving(&self) {
        self.heard_serving_ms.store(clock::boot_ms(), Ordering::Release);
    }

    /// How stale the data of a replica may be, in milliseconds; `None` = nobody knows.
    #[must_use]
    pub fn staleness_ms(&self) -> Option<u64> {
        match self.heard_serving_ms.load(Ordering::Acquire) {
            0 => None,
            at => Some(clock::boot_ms().saturating_sub(at)),
        }
    }

    /// Milliseconds since something came from the primary; `None` = never.
    #[must_use]
    pub fn primary_silence_ms(&self) -> Option<u64> {
        match self.heard_primary_ms.load(Ordering::Acquire) {
            0 => None,
            at => Some(clock::boot_ms().saturating_sub(at)),
        }
    }

    /// The prefix whose sync is under way for the longest time, and for how many milliseconds.
    #[must_use]
    pub fn longest_sync(&self) -> Option<(PrefixName, u64)> {
        let prefixes = self.prefixes.load();
        let (prefix, began) =
            prefixes.by_uuid.values().filter_map(|p| Some((p, p.syncing_since()?))).min_by_key(|(_, began)| *began)?;
        Some((prefix.name.clone(), clock::boot_ms().saturating_sub(began)))
    }

    /// What is wrong with the disk, for people: a sync that hangs.
    #[must_use]
    pub fn disk_trouble(&self) -> Option<String> {
        let (prefix, ms) = self.longest_sync().filter(|(_, ms)| *ms > HUNG_SYNC_MS)?;
        Some(format!("the disk hangs: the sync of prefix {prefix} has not ended for {ms} ms"))
    }

    fn bump(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
        for waker in self.loops.get().into_iter().flatten() {
            waker.wake();
        }
        self.note_change();
    }
}
