//! What breaks, and how it is made whole again.

mod loss;
mod mend;

use parovoz_api::{
    Mode, OnQuorumLoss, OperationPhase, OperationType, StoreOperationSpec, StoreOperationStatus, TimeSpan,
};
use parovoz_dataplane_core::types::Sequence;
use parovoz_operator_core::observed::OperationFacts;

use crate::clients;
use crate::msg::{API, CLIENTS, MEMBERS, Node, OPERATORS};
use crate::rng::Rng;
use crate::world::{Ev, World};

macro_rules! faults {
    ($($variant:ident = $name:literal,)*) => {
        /// Kinds of faults and of planned changes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Fault { $(#[doc = $name] $variant,)* }

        impl Fault {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name, as on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

faults! {
    Kill = "kill",
    Power = "power",
    Pause = "pause",
    CrashInEffects = "crash-in-effects",
    Isolate = "isolate",
    Strand = "strand",
    OneWay = "one-way",
    CutOperator = "cut-operator",
    CutReplicas = "cut-replicas",
    CutPair = "cut-pair",
    Blackout = "blackout",
    Relieve = "relieve",
    ApiDown = "api-down",
    ApiAnswerLost = "api-answer-lost",
    CutApi = "cut-api",
    OperatorCrash = "operator-crash",
    TwoOperators = "two-operators",
    StaleCache = "stale-cache",
    Loss = "loss",
    Twice = "twice",
    Overtake = "overtake",
    Slow = "slow",
    DiskHung = "disk-hung",
    DiskSlow = "disk-slow",
    DiskFull = "disk-full",
    VolumeLost = "volume-lost",
    PodDeleted = "pod-deleted",
    WalPruned = "wal-pruned",
    RecordRestored = "record-restored",
    Switchover = "switchover",
    Scale = "scale",
    Settings = "settings",
    NewPrefix = "new-prefix",
}

impl Fault {
    /// By its name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|f| f.name() == name)
    }

    /// Whether something breaks, and nobody merely asks the store for something.
    #[must_use]
    pub const fn is_real(self) -> bool {
        !matches!(self, Self::Switchover | Self::Scale | Self::Settings | Self::NewPrefix)
    }

    /// Whether it can strike at nearly any moment in any store.
    const fn is_ready(self) -> bool {
        self.is_real()
            && !self.waits()
            && !matches!(self, Self::CutPair | Self::VolumeLost | Self::WalPruned | Self::RecordRestored)
    }

    /// Whether it is armed first and counts only where it strikes.
    const fn waits(self) -> bool {
        matches!(self, Self::CrashInEffects | Self::ApiAnswerLost | Self::OperatorCrash)
    }
}

/// Within so many milliseconds a stranded member loses the API server too.
const SEVERED_MS: u64 = 6_000;

/// Kinds that are tried until one has an effect.
const TRIES: usize = 4;

impl World {
    /// Draws the next fault.
    pub(crate) fn break_something(&mut self) {
        if self.calm {
            return;
        }
        let after = self.setup.fault_every_us / 2 + self.rng.below(self.setup.fault_every_us);
        self.at(after, Ev::Break);
        for _ in 0..TRIES {
            let Some(fault) = self.rng.pick(&self.setup.faults).copied() else { return };
            let node = self.victim();
            if self.inflict(fault, node) {
                if !fault.waits() {
                    self.struck(fault, node);
                }
                return;
            }
        }
    }

    /// A fault had its effect.
    pub(crate) fn struck(&mut self, fault: Fault, node: Node) {
        self.faults += u64::from(fault.is_real());
        self.cov.hit(fault.name());
        self.trace.say(self.now, || format!("fault: {} at {node}", fault.name()));
    }

    /// A member that exists; mostly the primary.
    pub(crate) fn victim(&mut self) -> Node {
        let primary = self.leader();
        if let Some(primary) = primary
            && self.rng.permille(450)
        {
            return primary;
        }
        let all: Vec<Node> = self.api.pods.keys().filter_map(|o| Node::try_from(*o).ok()).collect();
        self.rng.pick(&all).copied().unwrap_or(1)
    }

    /// A process that leads.
    #[must_use]
    pub fn leader(&self) -> Option<Node> {
        let leads = |node: &Node| self.process(*node).is_some_and(|p| p.role.led().is_some());
        (1..MEMBERS).filter(leads).max_by_key(|n| self.process(*n).and_then(|p| p.role.led()).map(|r| r.epoch))
    }

    /// The process that runs on a machine.
    #[must_use]
    pub fn process(&self, node: Node) -> Option<&crate::member::Process> {
        self.machines.get(usize::from(node))?.running.as_deref()
    }

    fn lasts(&mut self, from_ms: u64, to_ms: u64) -> u64 {
        self.rng.range(from_ms, to_ms) * 1_000
    }

    /// Answers whether any way was another one before.
    fn cut(&mut self, node: Node, others: &[Node], ways: (bool, bool), blocked: bool) -> bool {
        let mut new = false;
        for other in others.iter().copied().filter(|o| *o != node) {
            new |= ways.0 && self.net.block(node, other, blocked);
            new |= ways.1 && self.net.block(other, node, blocked);
        }
        new
    }

    fn volume_of(&mut self, node: Node) -> Option<&mut crate::volume::Volume> {
        // By the claim: a disk outlives the pod that uses it.
        let claim = self.api.claims.get(&u32::from(node))?.uid.clone();
        self.volumes.get_mut(&claim)
    }

    /// Answers whether it could be done.
    fn inflict(&mut self, fault: Fault, node: Node) -> bool {
        match fault {
            Fault::Kill | Fault::Power | Fault::Pause | Fault::CrashInEffects => self.hit_process(fault, node),
            Fault::Isolate
            | Fault::Strand
            | Fault::OneWay
            | Fault::CutOperator
            | Fault::CutReplicas
            | Fault::CutPair
            | Fault::Blackout => self.part(fault, node),
            Fault::Relieve => self.relieve(node),
            Fault::ApiDown
            | Fault::ApiAnswerLost
            | Fault::CutApi
            | Fault::OperatorCrash
            | Fault::TwoOperators
            | Fault::StaleCache => self.hit_control(fault, node),
            Fault::Loss | Fault::Twice | Fault::Overtake | Fault::Slow => self.hit_network(fault, node),
            Fault::DiskHung | Fault::DiskSlow | Fault::DiskFull => self.hurt_disk(fault, node),
            Fault::VolumeLost => self.lose_volume(node),
            Fault::PodDeleted => match self.api.pods.get(&u32::from(node)) {
                Some(pod) if !pod.deleting => {
                    let uid = pod.uid.clone();
                    self.delete_pod(u32::from(node), &uid, true);
                    true
                }
                _ => false,
            },
            Fault::WalPruned => self.prune(node),
            Fault::RecordRestored => self.restore_record(),
            Fault::Switchover => self.switch_over(),
            Fault::Scale => self.scale(),
            Fault::Settings => self.change_settings(),
            Fault::NewPrefix => {
                let room = self.clients.prefixes < 6;
                self.clients.prefixes += u8::from(room);
                room
            }
        }
    }

    /// A process or its machine.
    fn hit_process(&mut self, fault: Fault, node: Node) -> bool {
        let running = self.process(node).is_some();
        match fault {
            Fault::Kill => {
                if running {
                    self.end_process(node, false);
                }
                running
            }
            Fault::Power => self.power_off(node),
            Fault::Pause => {
                let machine = &mut self.machines[usize::from(node)];
                if !running || machine.paused {
                    return false;
                }
                machine.paused = true;
                let after = self.lasts(300, 9_000);
                self.mends(fault, node, after)
            }
            Fault::CrashInEffects => {
                let at = u32::try_from(self.rng.below(7)).unwrap_or(0);
                let armed = self.process(node).is_some_and(|p| p.die_at_effect.is_none());
                if armed {
                    self.machines[usize::from(node)].die_at_effect = Some(at);
                }
                armed
            }
            _ => false,
        }
    }

    /// The network, for one member.
    fn part(&mut self, fault: Fault, node: Node) -> bool {
        let others: Vec<Node> = (1..MEMBERS).collect();
        let everyone = [others.clone(), OPERATORS.to_vec(), vec![API, CLIENTS]].concat();
        let (hold, out, other) = (self.rng.permille(500), self.rng.permille(500), self.victim());
        // After a black-out the machine has run on, and nobody has heard of it, the kubelet included.
        let (whom, ways, longest) = match fault {
            Fault::Isolate => (everyone, (true, true), 14_000),
            // Clients still reach it, and only its own clock tells it when to stop.
            Fault::Strand => ([others, OPERATORS.to_vec()].concat(), (true, true), 24_000),
            Fault::OneWay => ([others, OPERATORS.to_vec()].concat(), (out, !out), 9_000),
            Fault::CutOperator => (OPERATORS.to_vec(), (true, true), 9_000),
            Fault::CutReplicas => (others, (true, true), 12_000),
            Fault::CutPair => (vec![other], (true, true), 15_000),
            Fault::Blackout => (everyone, (true, true), 25_000),
            _ => return false,
        };
        if !self.cut(node, &whom, ways, true) {
            return false;
        }
        if !matches!(fault, Fault::CutOperator | Fault::Blackout) {
            self.net.hold = hold;
        }
        if fault == Fault::Strand {
            // It may renew its Lease until the very moment in which an operator takes that over.
            let after = self.lasts(0, SEVERED_MS);
            self.at(after, Ev::Sever(node));
        }
        let shortest = match fault {
            Fault::Blackout => 6_000,
            Fault::Strand => SEVERED_MS,
            _ => 500,
        };
        let after = self.lasts(shortest, longest);
        self.mends(fault, node, after)
    }

    /// Who was away comes back just as all others go.
    fn relieve(&mut self, node: Node) -> bool {
        if self.leader() == Some(node) || self.api.pods.len() < 3 || !self.part(Fault::Blackout, node) {
            return false;
        }
        // What the others agree on meanwhile is what it lacks.
        if self.setup.changes_mode && self.rng.permille(500) {
            let _ = self.change_settings();
        }
        let after = self.lasts(2_000, 9_000);
        self.mends(Fault::Relieve, node, after)
    }

    /// The API server or the operators.
    fn hit_control(&mut self, fault: Fault, node: Node) -> bool {
        match fault {
            Fault::ApiDown => {
                if !std::mem::take(&mut self.api.up) {
                    return false;
                }
                let after = self.lasts(500, 15_000);
                self.mends(fault, node, after)
            }
            Fault::ApiAnswerLost => {
                self.operators[0].up && !std::mem::replace(&mut self.operators[0].lose_answer, true)
            }
            Fault::CutApi => {
                if !self.cut(node, &[API], (true, true), true) {
                    return false;
                }
                let after = self.lasts(500, 15_000);
                self.mends(fault, node, after)
            }
            Fault::OperatorCrash => {
                let stages = u8::try_from(self.rng.below(9)).unwrap_or(0);
                self.operators[0].up && self.operators[0].die_at.replace(stages).is_none()
            }
            Fault::TwoOperators => {
                if self.operators[1].up {
                    return false;
                }
                self.start_operator(1);
                let after = self.lasts(3_000, 25_000);
                self.mends(fault, node, after)
            }
            Fault::StaleCache => {
                let now = self.now;
                if !self.operators[0].up || self.operators[0].frozen.replace(now).is_some() {
                    return false;
                }
                let after = self.lasts(1_000, 12_000);
                self.mends(fault, node, after)
            }
            _ => false,
        }
    }

    /// The network, for all.
    fn hit_network(&mut self, fault: Fault, node: Node) -> bool {
        let (loss, twice, overtake) = (self.rng.range(5, 60), self.rng.range(20, 200), self.rng.range(10, 150));
        let jitter = self.rng.range(5_000, 250_000);
        let net = &mut self.net;
        let new = match fault {
            Fault::Loss => std::mem::replace(&mut net.loss, loss) == 0,
            Fault::Twice => std::mem::replace(&mut net.twice, twice) == 0,
            Fault::Overtake => {
                net.jitter = net.jitter.max(3_000);
                std::mem::replace(&mut net.overtake, overtake) == 0
            }
            Fault::Slow => std::mem::replace(&mut net.jitter, jitter) < 5_000,
            _ => return false,
        };
        let after = self.lasts(1_000, 8_000);
        new && self.mends(fault, node, after)
    }

    fn mends(&mut self, fault: Fault, node: Node, after: u64) -> bool {
        self.at(after, Ev::Mend(fault, node));
        true
    }

    fn power_off(&mut self, node: Node) -> bool {
        if self.machines[usize::from(node)].down || self.process(node).is_none() {
            return false;
        }
        self.end_process(node, true);
        self.machines[usize::from(node)].down = true;
        let after = self.lasts(800, 12_000);
        self.mends(Fault::Power, node, after)
    }

    fn hurt_disk(&mut self, fault: Fault, node: Node) -> bool {
        let slow = self.rng.range(20_000, 400_000);
        let Some(volume) = self.volume_of(node) else { return false };
        let new = match fault {
            Fault::DiskHung => !std::mem::replace(&mut volume.hung, true),
            Fault::DiskSlow => std::mem::replace(&mut volume.slowest_us, slow) < 20_000,
            _ => !std::mem::replace(&mut volume.full, true),
        };
        let after = self.lasts(500, 12_000);
        new && self.mends(fault, node, after)
    }

    /// What every member has durably needs no WAL: a follower that comes later finds a gap.
    fn prune(&mut self, node: Node) -> bool {
        let Some(process) = self.process(node) else { return false };
        let mut pruned = false;
        for prefix in process.prefixes.values() {
            if let Some(copy) = &prefix.copy
                && prefix.durable > Sequence(2)
            {
                pruned |= self.engine.prune_wal(&copy.dir, Sequence(prefix.durable.0 - 1)).is_ok();
            }
        }
        if pruned && let Some(process) = self.machines[usize::from(node)].running.as_deref_mut() {
            process.prefixes.values_mut().for_each(|p| p.ring.clear());
        }
        pruned
    }

    fn switch_over(&mut self) -> bool {
        let open = |o: &OperationFacts| matches!(o.status.phase, OperationPhase::Pending | OperationPhase::Running);
        if self.api.operations.iter().any(open) || self.api.operations.len() > 20 {
            return false;
        }
        self.operate(OperationType::Switchover, None)
    }

    fn operate(&mut self, type_: OperationType, member: Option<String>) -> bool {
        let number = self.api.fresh();
        let spec = StoreOperationSpec {
            store: self.api.store.name.clone(),
            type_,
            accept_loss: type_ == OperationType::Promote,
            attest_primary_gone: false,
            member,
            timeout: TimeSpan("60s".into()),
            ttl: TimeSpan("24h".into()),
        };
        let created = self.operators[0].time(self.now);
        self.api.operations.push(OperationFacts {
            name: format!("op-{number}"),
            uid: format!("op-uid-{number}"),
            created,
            spec,
            status: StoreOperationStatus::default(),
        });
        self.spec_changed();
        true
    }

    /// A person accepts a loss, where the store waits for one.
    pub fn rescue(&mut self) -> bool {
        let open = |o: &OperationFacts| matches!(o.status.phase, OperationPhase::Pending | OperationPhase::Running);
        if self.api.operations.iter().any(open) {
            return false;
        }
        let listed = self.api.reign.as_ref().map(|r| r.spec.current.members.clone()).unwrap_or_default();
        let process = |name: &str| self.process(name.rsplit('-').next()?.parse().ok()?);
        let up = listed.into_iter().filter(|m| process(&m.name).is_some_and(|p| !p.prefixes.is_empty()));
        // Somebody whose copies are known to be whole, as a person would choose.
        let whole = |name: &str| process(name).is_some_and(|p| p.prefixes.values().all(|copy| p.has_known_vote(copy)));
        let member = up.min_by_key(|m| !whole(&m.name)).map(|m| m.name);
        member.is_some_and(|member| self.operate(OperationType::Promote, Some(member)))
    }

    fn scale(&mut self) -> bool {
        let replicas = self.api.store.spec.replicas;
        let least = self.api.store.spec.replication.min_sync_replicas + 1;
        let next = if self.rng.permille(500) { replicas + 1 } else { replicas - 1 };
        if next < least.max(1) || next > 5 {
            return false;
        }
        self.api.store.spec.replicas = next;
        self.spec_changed();
        true
    }

    fn change_settings(&mut self) -> bool {
        let which = if self.setup.changes_mode { self.rng.below(5) } else { self.rng.below(2) };
        let seconds = self.rng.range(3, 8);
        let w = i32::try_from(self.rng.range(1, 2)).unwrap_or(1);
        let changes_mode = self.setup.changes_mode && self.setup.syncs;
        let spec = &mut self.api.store.spec;
        match which {
            0 => spec.failover.lease_duration = TimeSpan(format!("{seconds}s")),
            1 if spec.replication.mode == Mode::Quorum && w < spec.replicas => spec.replication.min_sync_replicas = w,
            2.. if changes_mode && spec.replicas > 1 => {
                spec.replication.mode = match spec.replication.mode {
                    Mode::Quorum => Mode::Async,
                    _ => Mode::Quorum,
                };
                let quorum = spec.replication.mode == Mode::Quorum;
                spec.replication.min_sync_replicas = i32::from(quorum);
                spec.replication.on_quorum_loss = OnQuorumLoss::Block;
            }
            _ => return false,
        }
        self.spec_changed();
        true
    }

    fn spec_changed(&mut self) {
        self.api.store.generation += 1;
        self.api.changed(self.now);
        for operator in 0..self.operators.len() {
            self.look_soon(operator, 60_000);
        }
    }

    /// A fault of each seed's own choice: most have all kinds, some only a few.
    #[must_use]
    pub fn draw_faults(rng: &mut Rng, allowed: &[Fault]) -> Vec<Fault> {
        if allowed.is_empty() || rng.permille(500) {
            return allowed.to_vec();
        }
        let few: Vec<Fault> = allowed.iter().copied().filter(|_| rng.permille(350)).collect();
        // Something must break: of what only at times can, a seed may see too little.
        if few.iter().any(|f| f.is_ready()) { few } else { allowed.to_vec() }
    }

    /// How many clients there are.
    #[must_use]
    pub const fn clients() -> usize {
        clients::COUNT
    }
}
