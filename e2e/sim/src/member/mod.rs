//! One process of the data plane, as a value: the cores glued together as the data plane's shell glues them, without threads.
//!
//! What the shell does on several threads happens here between events; every wait for a disk is an event of its own, so that
//! others come in between.

mod acks;
mod boot;
mod catalogue;
mod effects;
mod follow;
pub mod prefix;
pub mod report;
mod serve;
mod upstream;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use parovoz_dataplane_core::acks::AckTable;
use parovoz_dataplane_core::batch::BatchBuilder;
use parovoz_dataplane_core::follower::{Own, PeerHello};
use parovoz_dataplane_core::lease::LeaseKeeper;
use parovoz_dataplane_core::member::{Endpoint, MemberRecord};
use parovoz_dataplane_core::role::{Effect, Event, Role, Standing};
use parovoz_dataplane_core::types::{
    DataUuid, Position, PrefixName, PrefixUuid, Reign, Sequence, StoreUid, catalogue_uuid,
};
use parovoz_dataplane_core::vote::{CopyFacts, CopyState, Vote, Votes, vote};
use parovoz_engine::memory::MemoryEngine;

use crate::check::Checker;
use crate::coverage::Coverage;
use crate::msg::{Conn, Hello, Msg, Node, Order, OrderKind};
use crate::rng::Rng;
use crate::trace::Trace;
use crate::volume::Volume;

use prefix::Prefix;

/// Between beats, acknowledgements without news and probes of the disk.
pub const HEARTBEAT_MS: u64 = 250;
/// A stream on which nothing came for so long is given up.
pub const SILENCE_MS: u64 = 4_000;
/// Between looks at what waits.
const TICK_US: u64 = 250_000;

/// What happens to a process besides messages.
#[derive(Debug, Clone)]
pub enum Timer {
    Tick,
    /// The sync of a lane is done: what was applied by its begin is durable.
    Synced {
        lane: usize,
        upto: Vec<(PrefixUuid, u64, Sequence)>,
    },
    /// The disk did what an effect asked of it.
    EffectDone,
    /// The disk answered a probe.
    Probed,
    /// The files of a snapshot are here.
    Fetched {
        prefix: PrefixUuid,
        attempt: u64,
    },
    /// Answers that were made up go out.
    Answer {
        op: u32,
        prefix: PrefixUuid,
        value: u64,
        at: Sequence,
    },
    /// Connect again.
    Connect,
}

/// How a process ends that dies between two effects.
pub const IN_EFFECTS: &str = "a crash between two effects";

/// What a process wants done.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "most are messages, and all are moved once")]
pub enum Out {
    Send(Node, Msg),
    /// After so many microseconds of true time.
    After(u64, Timer),
    /// Once the disk did it.
    Disk(Timer),
    /// It ends.
    Die(&'static str),
}

/// What a process works with.
pub struct Cx<'a> {
    /// True time, in microseconds; for checkers and traces alone.
    pub now: u64,
    /// The member's own clock, in milliseconds.
    pub now_ms: u64,
    pub rng: &'a mut Rng,
    pub engine: &'a MemoryEngine,
    pub volume: &'a mut Volume,
    pub check: &'a mut Checker,
    pub cov: &'a mut Coverage,
    pub trace: &'a mut Trace,
    pub out: &'a mut Vec<Out>,
}

impl Cx<'_> {
    pub fn send(&mut self, to: Node, msg: Msg) {
        self.out.push(Out::Send(to, msg));
    }
}

/// One group of prefixes that are synced together.
#[derive(Debug, Default)]
struct Lane {
    running: bool,
    dirty: BTreeSet<PrefixUuid>,
}

/// See the module.
#[derive(Debug)]
pub struct Process {
    pub ordinal: Node,
    pub pod_uid: std::rc::Rc<str>,
    pub process_id: String,
    pub store: StoreUid,
    pub me: DataUuid,
    pub role: Role,
    /// What the slots hold: the role may be ahead while a change is under way, and nobody is told of that yet.
    pub stored: MemberRecord,
    /// Whether only synced records are sent and acknowledged.
    pub syncs: bool,
    pub prefixes: BTreeMap<PrefixUuid, Prefix>,
    /// The catalogue is not here yet.
    loading: bool,
    /// The reign that it leads, once it takes followers; or follows.
    view: View,
    lanes: [Lane; 2],
    effects: VecDeque<Effect>,
    /// The first of `effects` waits for the disk.
    waiting_for_disk: bool,
    /// Orders that wait for those before them.
    orders: VecDeque<(Node, u64, Order)>,
    /// Whom to answer once all effects are done.
    answer: Option<(Node, u64)>,
    follow: Option<follow::Follow>,
    /// Whom missing copies are taken from, if not from the upstream.
    source: Option<Endpoint>,
    boots: BTreeMap<PrefixUuid, boot::Boot>,
    /// Prefixes here that the catalogue that was copied does not list (yet): this member is not complete.
    unlisted: BTreeSet<PrefixUuid>,
    streams: BTreeMap<Conn, upstream::StreamOut>,
    snapshots: BTreeMap<u64, boot::Held>,
    acks: AckTable,
    ack_in: BTreeMap<Conn, acks::AckIn>,
    ack_out: Option<acks::AckOut>,
    /// Prefixes to acknowledge.
    moved: BTreeSet<PrefixUuid>,
    builder: BatchBuilder,
    /// Requests that wait for the end of a freeze.
    frozen: VecDeque<(u32, crate::msg::Request)>,
    watchers: BTreeSet<Node>,
    report_due: bool,
    reported_ms: u64,
    beat_ms: u64,
    probe_running: bool,
    last_standing: Standing,
    /// Counts calls and streams that this process began.
    next_id: u64,
    /// Dies before the effect of this number: a crash in the middle.
    pub die_at_effect: Option<u32>,
    parked_since: Option<u64>,
}

/// What this process is to others.
#[derive(Debug, Default, Clone)]
struct View {
    is_primary: bool,
    primary: Option<Endpoint>,
}

/// What a process begins with.
pub struct Start<'a> {
    pub ordinal: Node,
    pub pod_uid: &'a str,
    pub process_id: String,
    pub store: &'a str,
    pub syncs: bool,
    pub id_base: u64,
}

impl Process {
    /// A process begins on a volume.
    pub fn start(cx: &mut Cx<'_>, start: Start<'_>) -> Self {
        let store = StoreUid(start.store.to_owned());
        let record = cx.volume.cached.clone().unwrap_or_else(|| {
            let fresh = DataUuid(cx.rng.uuid());
            let again = DataUuid(uuid::Uuid::from_u128(u128::from(start.ordinal)));
            let fresh = if parovoz_mutant::on("blank-volume-votes") { again } else { fresh };
            MemberRecord::blank(store.clone(), fresh, cx.volume.claim_uid.clone())
        });
        cx.volume.store(record.clone(), true);
        let me = record.data_uuid;
        cx.check.recovered(cx.now, start.ordinal, me, &record);
        let role = Role::start(record.clone(), LeaseKeeper::Kubernetes, cx.now_ms);
        let mut process = Self {
            ordinal: start.ordinal,
            pod_uid: start.pod_uid.into(),
            process_id: start.process_id,
            store,
            me,
            last_standing: role.standing(),
            role,
            stored: record,
            syncs: start.syncs,
            prefixes: BTreeMap::new(),
            loading: false,
            view: View::default(),
            lanes: Default::default(),
            effects: VecDeque::new(),
            waiting_for_disk: false,
            orders: VecDeque::new(),
            answer: None,
            follow: None,
            source: None,
            boots: BTreeMap::new(),
            unlisted: BTreeSet::new(),
            streams: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            acks: AckTable::default(),
            ack_in: BTreeMap::new(),
            ack_out: None,
            moved: BTreeSet::new(),
            builder: BatchBuilder::new(),
            frozen: VecDeque::new(),
            watchers: BTreeSet::new(),
            report_due: true,
            reported_ms: 0,
            beat_ms: 0,
            probe_running: false,
            next_id: start.id_base,
            die_at_effect: None,
            parked_since: None,
        };
        process.open_all(cx);
        let mut effects = Vec::new();
        process.role.resume(&mut effects);
        process.effects.extend(effects);
        process.run_effects(cx);
        cx.out.push(Out::After(cx.rng.below(TICK_US), Timer::Tick));
        process
    }

    pub fn catalogue(&self) -> PrefixUuid {
        catalogue_uuid(&self.store)
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Gives the core an event; its effects are performed in order.
    fn step(&mut self, cx: &mut Cx<'_>, event: Event) -> Result<(), String> {
        let mut effects = Vec::new();
        self.role.step(cx.now_ms, event, &mut effects).map_err(|e| e.to_string())?;
        self.effects.extend(effects);
        self.run_effects(cx);
        Ok(())
    }

    /// A message came.
    pub fn message(&mut self, cx: &mut Cx<'_>, from: Node, msg: Msg) {
        match msg {
            Msg::ToUpstream(conn, m) => self.on_to_upstream(cx, from, conn, m),
            Msg::ToFollower(conn, m) => self.on_to_follower(cx, from, conn, m),
            Msg::ToPrimary(conn, m) => self.on_to_primary(cx, from, conn, m),
            Msg::ToReplica(conn, m) => self.on_to_replica(cx, from, conn, m),
            Msg::Closed(conn) => self.closed(cx, conn),
            Msg::OpenSnapshot { call, hello, prefix, wanted } => {
                let answer = self.open_snapshot(cx, &hello, prefix, wanted);
                cx.send(from, Msg::Snapshot { call, answer });
            }
            Msg::Snapshot { call, answer } => self.snapshot_answer(cx, call, answer),
            Msg::KeepSnapshot { call, snapshot } => {
                let held = self.snapshots.get_mut(&snapshot).is_some_and(|s| s.renew(cx.now_ms));
                cx.send(from, Msg::Kept { call, held });
            }
            Msg::Kept { call, held } => self.snapshot_kept(cx, call, held),
            Msg::Order { call, order } => {
                if self.orders.len() < 64 {
                    self.orders.push_back((from, call, order));
                }
                self.next_order(cx);
            }
            Msg::Watch => {
                self.watchers.insert(from);
                self.report_due = true;
                self.report(cx);
            }
            Msg::Request { op, request } => self.request(cx, op, request),
            Msg::Renewed { call, held } => self.lease_answer(cx, call, held),
            Msg::Ordered { .. } | Msg::Report { .. } | Msg::Response { .. } | Msg::RenewLease { .. } => {}
        }
        self.after(cx);
    }

    /// Time passed, or the disk answered.
    pub fn timer(&mut self, cx: &mut Cx<'_>, timer: Timer) {
        match timer {
            Timer::Tick => self.tick(cx),
            Timer::Synced { lane, upto } => self.synced(cx, lane, &upto),
            Timer::EffectDone => self.effect_done(cx),
            Timer::Probed => {
                self.probe_running = false;
                if !self.volume_full(cx) {
                    let _ = self.step(cx, Event::Fsynced);
                }
            }
            Timer::Fetched { prefix, attempt } => self.fetched(cx, prefix, attempt),
            Timer::Answer { op, prefix, value, at } => self.answer_read(cx, op, prefix, value, at),
            Timer::Connect => self.connect(cx),
        }
        self.after(cx);
    }

    /// Whether a full disk ends this process's syncs; the reserve keeps the slots writable.
    fn volume_full(&self, cx: &Cx<'_>) -> bool {
        cx.volume.full
    }

    fn after(&mut self, cx: &mut Cx<'_>) {
        let standing = self.role.standing();
        if standing != self.last_standing {
            let (me, before) = (self.ordinal, self.last_standing);
            match crate::coverage::standing(before, standing) {
                Some(name) => cx.cov.hit(name),
                None => cx.check.fail(cx.now, format!("member {me} goes from {before:?} to {standing:?}")),
            }
            cx.trace.say(cx.now, || format!("member {me}: {before:?} -> {standing:?}"));
            self.last_standing = standing;
            self.report_due = true;
        }
    }

    fn tick(&mut self, cx: &mut Cx<'_>) {
        cx.out.push(Out::After(TICK_US, Timer::Tick));
        let _ = self.step(cx, Event::Tick);
        if cx.now_ms >= self.beat_ms + HEARTBEAT_MS {
            self.beat_ms = cx.now_ms;
            if !self.probe_running {
                self.probe_running = true;
                let _ = self.step(cx, Event::FsyncAsked);
                cx.out.push(Out::Disk(Timer::Probed));
            }
            self.beat_replicas(cx);
            self.beat_streams(cx);
            self.beat_primary(cx);
            self.sample(cx);
        }
        self.tick_follow(cx);
        self.tick_boots(cx);
        self.tick_serve(cx);
        self.snapshots.retain(|_, s| s.is_held(cx.now_ms));
        let due = if self.report_due { 200 } else { 2_000 };
        if cx.now_ms >= self.reported_ms + due {
            self.report(cx);
        }
    }

    /// What this process says of itself at the begin of a stream.
    fn own(&self, wanted: Option<DataUuid>) -> Own {
        let mut path = vec![self.me];
        if let Some(follow) = &self.follow {
            path.extend(follow.path());
        }
        Own {
            version: 1,
            min_version: 1,
            store: self.store.clone(),
            data_uuid: self.me,
            reign: self.stored.promise_ref(),
            wanted,
            path,
        }
    }

    fn hello(&self, expected: Option<DataUuid>, whole: bool) -> Hello {
        let own = self.own(expected);
        let promised = self.stored.promised.as_ref().filter(|r| whole && Some(r.to_ref()) == own.reign);
        Hello {
            whole: promised.cloned(),
            peer: PeerHello {
                version: own.version,
                min_version: own.min_version,
                store: own.store,
                data_uuid: own.data_uuid,
                expected,
                reign: own.reign,
                path: own.path,
            },
        }
    }

    // ---- Orders. ----

    fn next_order(&mut self, cx: &mut Cx<'_>) {
        while self.effects.is_empty() && self.answer.is_none() {
            let Some((from, call, order)) = self.orders.pop_front() else { return };
            if !order.process.is_empty() && order.process != self.process_id {
                let refused = Some("it is meant for another process".to_owned());
                cx.send(from, Msg::Ordered { call, refused });
                continue;
            }
            let what = crate::coverage::order(&order.kind);
            match self.order(cx, order) {
                Ok(()) => {
                    cx.cov.hit(what);
                    let me = self.ordinal;
                    cx.trace.say(cx.now, || format!("member {me}: {what} taken"));
                    if self.effects.is_empty() {
                        self.told(cx, from, call);
                    } else {
                        self.answer = Some((from, call));
                    }
                }
                Err(why) => {
                    let me = self.ordinal;
                    cx.cov.hit("order refused");
                    cx.trace.say(cx.now, || format!("member {me}: {what} refused: {why}"));
                    cx.send(from, Msg::Ordered { call, refused: Some(why) });
                }
            }
        }
    }

    fn told(&mut self, cx: &mut Cx<'_>, from: Node, call: u64) {
        cx.check.promised(cx.now, self.ordinal, self.me, &self.stored);
        cx.send(from, Msg::Ordered { call, refused: None });
        self.report_due = true;
        self.report(cx);
    }

    fn order(&mut self, cx: &mut Cx<'_>, order: Order) -> Result<(), String> {
        use parovoz_dataplane_core::member::{PromoteOrder, SealOrder};
        let (store, member) = (StoreUid(order.store), order.member);
        let mut source = None;
        let leads_or_follows = matches!(order.kind, OrderKind::Promote { .. } | OrderKind::Follow { .. });
        let event = match order.kind {
            OrderKind::Seal { reign, about, evidence } => {
                Event::Seal(SealOrder { store, member, reign, about, evidence })
            }
            OrderKind::Promote { reign, positions, first } => {
                let here = self.votes();
                Event::Promote { order: PromoteOrder { store, member, reign, positions, first }, here }
            }
            OrderKind::Follow { reign, upstream, primary, source: from } => {
                source = from.map(|source| *source);
                Event::Follow { store, member, reign, upstream, primary }
            }
            OrderKind::Pull { reign, source, upto } => Event::Pull { store, member, reign, source, upto },
            OrderKind::Freeze { reign, for_ms } => Event::Freeze { store, member, reign, for_ms },
        };
        self.step(cx, event)?;
        if leads_or_follows {
            self.source = source;
        }
        Ok(())
    }

    // ---- Votes. ----

    /// What a copy is worth, as the vote's facts.
    fn facts(&self, prefix: &Prefix) -> CopyFacts {
        let floor = self.stored.floors.get(&prefix.uuid).copied();
        let state = match (&prefix.copy, prefix.phase) {
            (_, prefix::Phase::Bootstrapping) => CopyState::Replacing,
            // A copy that was stopped by a gap or a divergence ends where it ends.
            (None, prefix::Phase::Stopped) => CopyState::Damaged,
            (None, _) => CopyState::Missing,
            (Some(_), _) => CopyState::Open(prefix.at()),
        };
        CopyFacts { state, floor }
    }

    /// What this member votes now, for each prefix that it knows of.
    pub fn votes(&self) -> Votes {
        self.prefixes.values().map(|p| (p.uuid, vote(self.facts(p)))).collect()
    }

    /// False while it is copied anew or below its floor.
    #[must_use]
    pub fn has_known_vote(&self, prefix: &Prefix) -> bool {
        matches!(vote(self.facts(prefix)), Vote::Known(_))
    }

    fn below_floor(&self, prefix: &Prefix) -> bool {
        let floor = self.stored.floors.get(&prefix.uuid).copied();
        parovoz_dataplane_core::vote::is_below_floor(prefix.at(), floor)
    }

    /// Stores floors anew; the record's promises stay as they are.
    fn store_floor(&mut self, cx: &mut Cx<'_>, prefix: PrefixUuid, floor: Option<Position>) {
        let mut record = self.stored.clone();
        match floor {
            Some(floor) => record.raise_floor(prefix, floor),
            None => drop(record.floors.remove(&prefix)),
        }
        cx.volume.store(record.clone(), true);
        self.stored = record.clone();
        self.role.replace_record(record);
    }

    fn promised(&self) -> Option<&Reign> {
        self.stored.promised.as_ref()
    }

    /// The node of a member's address.
    pub fn node_of(endpoint: &Endpoint) -> Option<Node> {
        node_of_address(&endpoint.replication)
    }
}

/// `s-3.s-members...:7002` is node 3.
pub fn node_of_address(address: &str) -> Option<Node> {
    let host = address.split(['.', ':']).next()?;
    host.rsplit('-').next()?.parse().ok()
}

/// A name that a test's prefix has.
pub fn prefix_name(index: u8) -> PrefixName {
    PrefixName::new(&format!("p{index}")).unwrap_or_else(|_| PrefixName::catalogue())
}
