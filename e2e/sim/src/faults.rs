//! What breaks, and how it is made whole again.

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
    OneWay = "one-way",
    CutOperator = "cut-operator",
    CutReplicas = "cut-replicas",
    CutPair = "cut-pair",
    Blackout = "blackout",
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
}

impl World {
    /// Draws the next fault.
    pub(crate) fn break_something(&mut self) {
        if self.calm {
            return;
        }
        let after = self.setup.fault_every_us / 2 + self.rng.below(self.setup.fault_every_us);
        self.at(after, Ev::Break);
        let Some(fault) = self.rng.pick(&self.setup.faults).copied() else { return };
        let node = self.victim();
        if self.inflict(fault, node) {
            self.faults += 1;
            self.cov.hit(fault.name());
            self.trace.say(self.now, || format!("fault: {} at {node}", fault.name()));
        }
    }

    /// A member that exists; mostly the primary.
    fn victim(&mut self) -> Node {
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

    fn cut(&mut self, node: Node, others: &[Node], ways: (bool, bool), blocked: bool) {
        for other in others.iter().copied().filter(|o| *o != node) {
            if ways.0 {
                self.net.block(node, other, blocked);
            }
            if ways.1 {
                self.net.block(other, node, blocked);
            }
        }
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
            | Fault::OneWay
            | Fault::CutOperator
            | Fault::CutReplicas
            | Fault::CutPair
            | Fault::Blackout => self.part(fault, node),
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
                self.machines[usize::from(node)].die_at_effect = Some(at);
                running
            }
            _ => false,
        }
    }

    /// The network, for one member.
    fn part(&mut self, fault: Fault, node: Node) -> bool {
        let others: Vec<Node> = (1..MEMBERS).collect();
        match fault {
            Fault::Isolate => {
                self.net.hold = self.rng.permille(500);
                self.cut(node, &[others, OPERATORS.to_vec(), vec![API, CLIENTS]].concat(), (true, true), true);
                let after = self.lasts(500, 14_000);
                self.mends(fault, node, after)
            }
            Fault::OneWay => {
                self.net.hold = self.rng.permille(500);
                let out = self.rng.permille(500);
                self.cut(node, &[others, OPERATORS.to_vec()].concat(), (out, !out), true);
                let after = self.lasts(500, 9_000);
                self.mends(fault, node, after)
            }
            Fault::CutOperator => {
                self.cut(node, &OPERATORS, (true, true), true);
                let after = self.lasts(500, 9_000);
                self.mends(fault, node, after)
            }
            Fault::CutReplicas => {
                self.net.hold = self.rng.permille(500);
                self.cut(node, &others, (true, true), true);
                let after = self.lasts(500, 12_000);
                self.mends(fault, node, after)
            }
            Fault::CutPair => {
                let other = self.victim();
                self.net.hold = self.rng.permille(500);
                self.cut(node, &[other], (true, true), true);
                let after = self.lasts(500, 15_000);
                self.mends(fault, node, after)
            }
            Fault::Blackout => {
                // The machine runs on, and nobody hears of it, the kubelet included.
                self.cut(node, &[others, OPERATORS.to_vec(), vec![API, CLIENTS]].concat(), (true, true), true);
                let after = self.lasts(6_000, 25_000);
                self.mends(fault, node, after)
            }
            _ => false,
        }
    }

    /// The API server or the operators.
    fn hit_control(&mut self, fault: Fault, node: Node) -> bool {
        match fault {
            Fault::ApiDown => {
                self.api.up = false;
                let after = self.lasts(500, 15_000);
                self.mends(fault, node, after)
            }
            Fault::ApiAnswerLost => {
                self.operators[0].lose_answer = true;
                true
            }
            Fault::CutApi => {
                self.cut(node, &[API], (true, true), true);
                let after = self.lasts(500, 15_000);
                self.mends(fault, node, after)
            }
            Fault::OperatorCrash => {
                let stages = u8::try_from(self.rng.below(9)).unwrap_or(0);
                self.operators[0].die_at = Some(stages);
                true
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
                self.operators[0].frozen = Some(now);
                let after = self.lasts(1_000, 12_000);
                self.mends(fault, node, after)
            }
            _ => false,
        }
    }

    /// The network, for all.
    fn hit_network(&mut self, fault: Fault, node: Node) -> bool {
        match fault {
            Fault::Loss => {
                self.net.loss = self.rng.range(5, 60);
                let after = self.lasts(1_000, 8_000);
                self.mends(fault, node, after)
            }
            Fault::Twice => {
                self.net.twice = self.rng.range(20, 200);
                let after = self.lasts(1_000, 8_000);
                self.mends(fault, node, after)
            }
            Fault::Overtake => {
                self.net.overtake = self.rng.range(10, 150);
                self.net.jitter = self.net.jitter.max(3_000);
                let after = self.lasts(1_000, 8_000);
                self.mends(fault, node, after)
            }
            Fault::Slow => {
                self.net.jitter = self.rng.range(5_000, 250_000);
                let after = self.lasts(1_000, 8_000);
                self.mends(fault, node, after)
            }
            _ => false,
        }
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
        match fault {
            Fault::DiskHung => volume.hung = true,
            Fault::DiskSlow => volume.slowest_us = slow,
            _ => volume.full = true,
        }
        let after = self.lasts(500, 12_000);
        self.mends(fault, node, after)
    }

    /// Lost for good: never more than the store promises to survive, and never the last whole copy. A replica's may go while
    /// others lag, for the primary has everything.
    fn lose_volume(&mut self, node: Node) -> bool {
        let whole = self.whole_members();
        let listed = self.api.reign.as_ref().map_or(0, |r| r.spec.current.members.len());
        let leads = self.leader() == Some(node);
        let spared = if leads { whole.len() == listed && whole.len() >= 2 } else { !whole.is_empty() };
        if self.loss_open || !spared || (leads && !whole.contains(&node)) {
            return false;
        }
        let ordinal = u32::from(node);
        let Some(pod) = self.api.pods.get(&ordinal) else { return false };
        let (uid, claim) = (pod.uid.clone(), pod.claim_uid.clone().unwrap_or_default());
        self.end_process(node, false);
        if let Some(volume) = self.volumes.remove(&claim) {
            self.wipe(&volume);
        }
        self.loss_open = true;
        self.delete_claim(ordinal, &claim);
        self.delete_pod(ordinal, &uid, true);
        true
    }

    /// Members of the present reign that are up, whole and close to their primary; the primary among them if it serves. None
    /// before the record says so: until then the reign before may be asked for its members.
    #[must_use]
    pub fn whole_members(&self) -> Vec<Node> {
        let Some(reign) = &self.api.reign else { return Vec::new() };
        let Some(leader) = self.leader().and_then(|n| self.process(n)) else { return Vec::new() };
        if leader.role.led().map(|r| r.reign_id.to_string()).as_deref() != Some(&reign.spec.current.reign_id)
            || !leader.role.is_all_served()
            || reign.spec.current.phase != parovoz_api::ReignPhase::Serving
        {
            return Vec::new();
        }
        let whole = |node: &Node| {
            let Some(process) = self.process(*node) else { return false };
            let me = process.me.to_string();
            reign.spec.current.members.iter().any(|m| m.data_uuid == me)
                && leader.prefixes.values().all(|p| {
                    let mine = process.prefixes.get(&p.uuid);
                    mine.is_some_and(|m| m.copy.is_some() && m.durable >= p.released && process.has_known_vote(m))
                })
        };
        (1..MEMBERS).filter(whole).collect()
    }

    /// The decision record is restored from a backup that is not much older. Only where a quorum keeps two reigns of the same
    /// epoch from serving, and only while the store has the members that it had then: without the volumes of those a person
    /// would have to decide.
    fn restore_record(&mut self) -> bool {
        let now = self.api.version_of_reign();
        let Some(backup) = self.rng.pick(&self.api.backups).cloned() else { return false };
        let Some(present) = self.api.reign.as_ref() else { return false };
        let members = |spec: &parovoz_api::StoreReignSpec| {
            spec.current.members.iter().map(|m| m.data_uuid.clone()).collect::<std::collections::BTreeSet<_>>()
        };
        let older = backup.current.epoch < present.spec.current.epoch;
        if !self.setup.never_loses() || self.loss_open || !older || members(&backup) != members(&present.spec) {
            return false;
        }
        self.api.backups.clear();
        self.check.restored = true;
        let done = self.api.swap(now.as_deref(), backup);
        self.look_soon(0, 10_000);
        done
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
        let up = |name: &str| {
            let node = name.rsplit('-').next().and_then(|n| n.parse::<Node>().ok());
            node.and_then(|n| self.process(n)).is_some_and(|p| !p.prefixes.is_empty())
        };
        let member = listed.iter().map(|m| m.name.clone()).find(|name| up(name));
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
        let which = self.rng.below(3);
        let seconds = self.rng.range(3, 8);
        let w = i32::try_from(self.rng.range(1, 2)).unwrap_or(1);
        let changes_mode = self.setup.changes_mode && self.setup.syncs;
        let spec = &mut self.api.store.spec;
        match which {
            0 => spec.failover.lease_duration = TimeSpan(format!("{seconds}s")),
            1 if spec.replication.mode == Mode::Quorum && w < spec.replicas => spec.replication.min_sync_replicas = w,
            2 if changes_mode && spec.replicas > 1 => {
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
        if few.is_empty() { allowed.to_vec() } else { few }
    }

    /// How many clients there are.
    #[must_use]
    pub const fn clients() -> usize {
        clients::COUNT
    }
}
