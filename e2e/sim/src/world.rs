//! One seed's world: a queue of what happens when, and everybody whom it happens to.

mod fence;
mod traffic;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use parovoz_engine::Engine;
use parovoz_engine::memory::MemoryEngine;

use crate::api::Api;
use crate::check::Checker;
use crate::clients::Clients;
use crate::coverage::Coverage;
use crate::faults::Fault;
use crate::member::{Cx, IN_EFFECTS, Out, Process, Start, Timer};
use crate::msg::{API, CLIENTS, MEMBERS, Msg, Node, OPERATORS};
use crate::net::{Fate, Net};
use crate::operator::{Operator, Stage};
use crate::rng::Rng;
use crate::setup::Setup;
use crate::trace::Trace;
use crate::volume::Volume;

/// A second, in the world's microseconds.
pub const SECOND: u64 = 1_000_000;
/// Messages that wait for a partition's end.
const HELD: usize = 2_000;

/// What happens.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "most are messages; the queue holds them in boxes")]
pub enum Ev {
    /// A message arrives.
    Message { from: Node, to: Node, msg: Msg },
    /// A process's timer; void for a later process.
    Timer { node: Node, process: u64, timer: Timer },
    /// The kubelet starts the pod's container.
    StartContainer { ordinal: u32, pod: String },
    /// The kubelet tells the API server what ended.
    ContainerEnded { ordinal: u32, pod: String, process: String },
    /// The kubelet carries a pod's deletion out.
    PodGone { ordinal: u32, pod: String },
    /// An operator's next look, or the next stage of its pass.
    Look { operator: usize, life: u64, ticket: u64 },
    /// See [`Stage`].
    Pass { operator: usize, life: u64, stage: Stage },
    /// An operator looks after its connections.
    Watch { operator: usize, life: u64 },
    /// An operator's process starts.
    StartOperator { operator: usize },
    /// A client begins.
    Client(usize),
    /// A client has waited long enough.
    GiveUp(u32),
    /// Something breaks.
    Break,
    /// A volume is lost, if a reign is just being changed.
    Vanish,
    /// A stranded member loses the API server.
    Sever(Node),
    /// Something is whole again.
    Mend(Fault, Node),
}

#[derive(Debug)]
struct Entry {
    at: u64,
    number: u64,
    ev: Box<Ev>,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// A machine with the one pod that runs on it.
#[derive(Debug, Default)]
pub struct Machine {
    /// Counts the processes that ran here.
    pub process: u64,
    /// Counts how often it had power.
    runs: u64,
    pub running: Option<Box<Process>>,
    /// What its clock showed at the world's beginning, in milliseconds.
    offset_ms: u64,
    /// Millionths by which its clock runs fast (or slow).
    drift_ppm: i64,
    /// Stopped: everything waits.
    pub paused: bool,
    waiting: VecDeque<Ev>,
    /// What waits for the disk.
    disk_waiting: Vec<Timer>,
    /// No power.
    pub down: bool,
    /// The next process dies before its effect of this number.
    pub die_at_effect: Option<u32>,
}

impl Machine {
    /// What its clock shows, in milliseconds.
    #[must_use]
    pub fn clock_ms(&self, now: u64) -> u64 {
        let run = i128::from(now) * i128::from(1_000_000 + self.drift_ppm) / 1_000_000_000;
        self.offset_ms + u64::try_from(run).unwrap_or(0)
    }
}

/// See the module.
#[derive(Debug)]
pub struct World {
    pub setup: Setup,
    pub now: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    number: u64,
    pub rng: Rng,
    pub net: Net,
    held: VecDeque<(Node, Node, Msg)>,
    pub api: Api,
    pub machines: Vec<Machine>,
    /// By uid of the claim.
    pub volumes: BTreeMap<String, Volume>,
    volumes_made: u64,
    pub engine: MemoryEngine,
    pub operators: [Operator; 2],
    pub clients: Clients,
    pub check: Checker,
    pub cov: Coverage,
    pub trace: Trace,
    /// What broke and had an effect; changes that were asked for are none.
    pub faults: u64,
    pub calm: bool,
    /// Volumes that were lost and are not made good yet.
    pub losses_open: usize,
    /// Why the run tells too little.
    pub thin: Option<String>,
    out: Vec<Out>,
    pub events: u64,
}

impl World {
    /// The world of a seed, before anything happened.
    #[must_use]
    pub fn new(setup: Setup, rng: Rng, trace: bool) -> Self {
        let mut rng = rng;
        let machines = (0..MEMBERS)
            .map(|_| Machine {
                offset_ms: 10_000 + rng.below(100_000_000),
                drift_ppm: setup.drift(&mut rng),
                ..Machine::default()
            })
            .collect();
        let mut check = Checker::default();
        check.syncs = setup.syncs;
        let api = Api::new(setup.store());
        let mut world = Self {
            api,
            net: Net::default(),
            held: VecDeque::new(),
            machines,
            volumes: BTreeMap::new(),
            volumes_made: 0,
            engine: MemoryEngine::new(),
            operators: [Operator::new(0, &mut rng, &setup), Operator::new(1, &mut rng, &setup)],
            clients: Clients::default(),
            check,
            cov: Coverage::default(),
            trace: Trace::new(trace),
            faults: 0,
            calm: false,
            losses_open: 0,
            thin: None,
            setup,
            now: 0,
            queue: BinaryHeap::new(),
            number: 0,
            rng,
            out: Vec::new(),
            events: 0,
        };
        world.at(1_000, Ev::StartOperator { operator: 0 });
        world.start_clients();
        world
    }

    /// Something happens after so many microseconds.
    pub fn at(&mut self, after: u64, ev: Ev) {
        self.number += 1;
        self.queue.push(Reverse(Entry { at: self.now + after, number: self.number, ev: Box::new(ev) }));
    }

    /// Runs until a moment, or until an invariant is broken. Answers whether all went well.
    pub fn run_until(&mut self, until: u64) -> bool {
        while self.check.violation().is_none() {
            match self.queue.peek() {
                Some(Reverse(entry)) if entry.at <= until => {}
                _ => {
                    self.now = until;
                    return true;
                }
            }
            let Some(Reverse(entry)) = self.queue.pop() else { return true };
            self.now = entry.at;
            self.events += 1;
            self.happen(*entry.ev);
        }
        false
    }

    fn happen(&mut self, ev: Ev) {
        match ev {
            Ev::Message { from, to, msg } => self.arrive(from, to, msg),
            Ev::Timer { node, process, timer } => self.timer(node, process, timer),
            Ev::StartContainer { ordinal, pod } => self.start_container(ordinal, &pod),
            Ev::ContainerEnded { ordinal, pod, process } => self.container_ended(ordinal, &pod, process),
            Ev::PodGone { ordinal, pod } => self.pod_gone(ordinal, &pod),
            Ev::Look { operator, life, ticket } => self.look(operator, life, ticket),
            Ev::Pass { operator, life, stage } => self.pass(operator, life, stage),
            Ev::Watch { operator, life } => self.watch(operator, life),
            Ev::StartOperator { operator } => self.start_operator(operator),
            Ev::Client(client) => self.client(client),
            Ev::GiveUp(op) => {
                if let Some(client) = self.clients.give_up(op) {
                    self.cov.hit("client gave up");
                    self.next_client(client);
                }
            }
            Ev::Break => self.break_something(),
            Ev::Vanish => self.vanish(),
            Ev::Sever(node) => self.sever(node),
            Ev::Mend(fault, node) => self.mend(fault, node),
        }
    }

    // ---- Messages. ----

    /// Sends a message over the network.
    pub fn send(&mut self, from: Node, to: Node, msg: Msg) {
        match self.net.send(&mut self.rng, self.now, from, to, &msg) {
            Fate::Arrives(after) => self.at(after, Ev::Message { from, to, msg }),
            Fate::Twice(first, second) => {
                self.at(second, Ev::Message { from, to, msg: msg.clone() });
                self.at(first, Ev::Message { from, to, msg });
            }
            Fate::Held => {
                if self.held.len() == HELD {
                    self.held.pop_front();
                }
                self.held.push_back((from, to, msg));
            }
            Fate::Lost => {}
        }
    }

    /// What waited for the end of a partition goes on its way.
    pub fn release_held(&mut self) {
        for (from, to, msg) in std::mem::take(&mut self.held) {
            self.send(from, to, msg);
        }
    }

    fn arrive(&mut self, from: Node, to: Node, msg: Msg) {
        match to {
            API => self.api_message(from, msg),
            CLIENTS => {
                if let Msg::Response { op, response } = msg {
                    self.answered(op, response);
                }
            }
            _ if OPERATORS.contains(&to) => self.operator_message(usize::from(to - OPERATORS[0]), from, msg),
            _ => self.member(to, Ev::Message { from, to, msg }),
        }
    }

    fn api_message(&mut self, from: Node, msg: Msg) {
        if !self.api.up {
            return;
        }
        if let Msg::RenewLease { call, reign } = msg {
            let held = self.api.renew(reign.epoch.0, &reign.primary.to_string());
            self.send(API, from, Msg::Renewed { call, held });
        }
    }

    fn timer(&mut self, node: Node, process: u64, timer: Timer) {
        if self.machines[usize::from(node)].process == process {
            self.member(node, Ev::Timer { node, process, timer });
        }
    }

    /// Something for a member's process.
    fn member(&mut self, node: Node, ev: Ev) {
        let machine = &mut self.machines[usize::from(node)];
        if machine.down {
            return;
        }
        if machine.paused {
            machine.waiting.push_back(ev);
            return;
        }
        let Some(mut process) = machine.running.take() else {
            // Nobody listens: the connection is refused.
            if let Ev::Message { from, msg, .. } = ev {
                self.refuse(node, from, &msg);
            }
            return;
        };
        let number = machine.process;
        if let Some(at) = machine.die_at_effect.take() {
            process.die_at_effect = Some(at);
        }
        let mut out = std::mem::take(&mut self.out);
        self.with_cx(node, &mut out, |cx| match ev {
            Ev::Message { from, msg, .. } => process.message(cx, from, msg),
            Ev::Timer { timer, .. } => process.timer(cx, timer),
            _ => {}
        });
        self.machines[usize::from(node)].running = Some(process);
        self.carry_out(node, number, &mut out);
        self.out = out;
    }

    fn with_cx(&mut self, node: Node, out: &mut Vec<Out>, act: impl FnOnce(&mut Cx<'_>)) {
        let ordinal = u32::from(node);
        let Some(claim) = self.api.pods.get(&ordinal).and_then(|p| p.claim_uid.clone()) else { return };
        let Some(volume) = self.volumes.get_mut(&claim) else { return };
        let mut cx = Cx {
            now: self.now,
            now_ms: self.machines[usize::from(node)].clock_ms(self.now),
            rng: &mut self.rng,
            engine: &self.engine,
            volume,
            check: &mut self.check,
            cov: &mut self.cov,
            trace: &mut self.trace,
            out,
        };
        act(&mut cx);
    }

    fn carry_out(&mut self, node: Node, process: u64, out: &mut Vec<Out>) {
        let mut dies = None;
        for what in out.drain(..) {
            match what {
                // Nothing is sent after the end.
                _ if dies.is_some() => {}
                Out::Send(to, msg) => self.send(node, to, msg),
                Out::After(after, timer) => self.at(after, Ev::Timer { node, process, timer }),
                Out::Disk(timer) => self.disk(node, process, timer),
                Out::Die(why) => dies = Some(why),
            }
        }
        if let Some(why) = dies {
            self.trace.say(self.now, || format!("member {node}: its process ends: {why}"));
            if why == IN_EFFECTS {
                self.struck(Fault::CrashInEffects, node);
            }
            self.end_process(node, false);
        }
    }

    fn disk(&mut self, node: Node, process: u64, timer: Timer) {
        let claim = self.api.pods.get(&u32::from(node)).and_then(|p| p.claim_uid.as_ref());
        let Some(volume) = claim.and_then(|c| self.volumes.get(c)) else { return };
        if volume.hung {
            self.machines[usize::from(node)].disk_waiting.push(timer);
            return;
        }
        let after = volume.latency(&mut self.rng);
        self.at(after, Ev::Timer { node, process, timer });
    }

    /// A disk answers again.
    pub fn disk_back(&mut self, node: Node) {
        let process = self.machines[usize::from(node)].process;
        for timer in std::mem::take(&mut self.machines[usize::from(node)].disk_waiting) {
            let after = 100 + self.rng.below(2_000);
            self.at(after, Ev::Timer { node, process, timer });
        }
    }

    /// A machine goes on after a pause.
    pub fn go_on(&mut self, node: Node) {
        let machine = &mut self.machines[usize::from(node)];
        machine.paused = false;
        for ev in std::mem::take(&mut machine.waiting) {
            match ev {
                Ev::Timer { node, process, timer } => self.timer(node, process, timer),
                ev => self.member(node, ev),
            }
        }
    }

    fn refuse(&mut self, node: Node, from: Node, msg: &Msg) {
        let answer = match msg {
            Msg::ToUpstream(conn, _) | Msg::ToFollower(conn, _) | Msg::ToPrimary(conn, _) | Msg::ToReplica(conn, _) => {
                Msg::Closed(*conn)
            }
            Msg::Order { call, .. } => Msg::Ordered { call: *call, refused: Some("nobody listens".to_owned()) },
            Msg::OpenSnapshot { call, .. } => Msg::Snapshot { call: *call, answer: Err("nobody listens".to_owned()) },
            Msg::Request { op, .. } => {
                Msg::Response { op: *op, response: crate::msg::Response::Refused { primary: None } }
            }
            Msg::Watch => return self.hang_up(from, node),
            _ => return,
        };
        self.send(node, from, answer);
    }

    /// An operator learns at once that a connection is gone, unless the way is cut.
    fn hang_up(&mut self, operator: Node, node: Node) {
        if OPERATORS.contains(&operator) && !self.net.is_blocked(node, operator) {
            self.contact_lost(usize::from(operator - OPERATORS[0]), u32::from(node));
        }
    }

    // ---- Processes and pods. ----

    fn start_container(&mut self, ordinal: u32, pod: &str) {
        let Ok(node) = Node::try_from(ordinal) else { return };
        let Some(facts) = self.api.pods.get(&ordinal).filter(|p| p.uid == pod && !p.deleting) else { return };
        let claim = facts.claim_uid.clone().unwrap_or_default();
        let machine = &self.machines[usize::from(node)];
        if machine.down || machine.paused || machine.running.is_some() || !self.volumes.contains_key(&claim) {
            if machine.running.is_none() {
                let pod = pod.to_owned();
                self.at(SECOND, Ev::StartContainer { ordinal, pod });
            }
            return;
        }
        let machine = &mut self.machines[usize::from(node)];
        machine.process += 1;
        let number = machine.process;
        let process_id = format!("machine-{node}-{}/{}", machine.runs, self.rng.uuid());
        let store = self.api.store.uid.clone();
        let syncs = self.setup.syncs;
        let id_base = (u64::from(node) << 56) | (number << 40);
        let mut out = std::mem::take(&mut self.out);
        let mut started = None;
        self.trace.say(self.now, || format!("member {node}: process {number} begins"));
        self.with_cx(node, &mut out, |cx| {
            let start = Start { ordinal: node, pod_uid: pod, process_id, store: &store, syncs, id_base };
            started = Some(Box::new(Process::start(cx, start)));
        });
        self.machines[usize::from(node)].running = started;
        self.carry_out(node, number, &mut out);
        self.out = out;
    }

    /// A member's process ends; with `power` gone, what was not synced is gone too.
    pub fn end_process(&mut self, node: Node, power: bool) {
        let machine = &mut self.machines[usize::from(node)];
        machine.waiting.clear();
        machine.disk_waiting.clear();
        machine.die_at_effect = None;
        machine.paused = false;
        let ended = machine.running.take();
        // Timers of it are void.
        machine.process += 1;
        machine.runs += u64::from(power);
        let ordinal = u32::from(node);
        let process_id = ended.as_ref().map(|p| p.process_id.clone());
        if let Some(process) = ended.as_ref().filter(|_| power) {
            self.check.power_lost(process.me);
        }
        drop(ended);
        let Some(pod) = self.api.pods.get(&ordinal) else { return };
        let (pod, claim) = (pod.uid.clone(), pod.claim_uid.clone().unwrap_or_default());
        if power && let Some(volume) = self.volumes.get_mut(&claim) {
            volume.lose_power();
            self.engine.crash_all(&volume.dir);
        }
        if process_id.is_none() {
            return;
        }
        if let Some(process) = process_id
            && !power
        {
            let after = 20_000 + self.rng.below(1_500_000);
            self.at(after, Ev::ContainerEnded { ordinal, pod: pod.clone(), process });
        }
        for operator in OPERATORS {
            if !power {
                self.hang_up(operator, node);
            }
        }
        let after = 100_000 + self.rng.below(2_500_000);
        self.at(after, Ev::StartContainer { ordinal, pod });
    }

    fn container_ended(&mut self, ordinal: u32, pod: &str, process: String) {
        let Ok(node) = Node::try_from(ordinal) else { return };
        if !self.api.up || self.net.is_blocked(node, API) || self.machines[usize::from(node)].down {
            let pod = pod.to_owned();
            return self.at(500_000, Ev::ContainerEnded { ordinal, pod, process });
        }
        if let Some(facts) = self.api.pods.get_mut(&ordinal).filter(|p| p.uid == pod) {
            // The kubelet keeps the last and the present state of a container.
            if facts.ended_processes.len() == 2 {
                facts.ended_processes.remove(0);
            }
            facts.ended_processes.push(process);
            self.api.changed(self.now);
            for operator in 0..self.operators.len() {
                self.look_soon(operator, 30_000);
            }
        }
    }

    /// A pod's deletion was asked for.
    pub fn delete_pod(&mut self, ordinal: u32, uid: &str, at_once: bool) {
        let Some(pod) = self.api.pods.get_mut(&ordinal).filter(|p| p.uid == uid && !p.deleting) else { return };
        pod.deleting = true;
        self.api.changed(self.now);
        let after = if at_once { 1_000 } else { 200_000 + self.rng.below(SECOND) };
        self.at(after, Ev::PodGone { ordinal, pod: uid.to_owned() });
    }

    fn pod_gone(&mut self, ordinal: u32, pod: &str) {
        let Ok(node) = Node::try_from(ordinal) else { return };
        if self.api.pods.get(&ordinal).is_none_or(|p| p.uid != pod) {
            return;
        }
        if self.machines[usize::from(node)].down || self.net.is_blocked(API, node) || !self.api.up {
            return self.at(SECOND, Ev::PodGone { ordinal, pod: pod.to_owned() });
        }
        self.end_process(node, false);
        self.api.pods.remove(&ordinal);
        if self.api.claims.get(&ordinal).is_some_and(|c| c.deleting) {
            self.remove_claim(ordinal);
        }
        self.api.changed(self.now);
        self.trace.say(self.now, || format!("pod {ordinal} is gone"));
    }

    /// A claim's deletion was asked for; it goes once no pod uses it.
    pub fn delete_claim(&mut self, ordinal: u32, uid: &str) {
        let Some(claim) = self.api.claims.get_mut(&ordinal).filter(|c| c.uid == uid) else { return };
        claim.deleting = true;
        if !self.api.pods.contains_key(&ordinal) {
            self.remove_claim(ordinal);
        }
        self.api.changed(self.now);
    }

    fn remove_claim(&mut self, ordinal: u32) {
        if let Some(claim) = self.api.claims.remove(&ordinal)
            && let Some(volume) = self.volumes.remove(&claim.uid)
        {
            self.wipe(&volume);
        }
    }

    /// Everything on a volume is gone.
    pub fn wipe(&self, volume: &Volume) {
        self.engine.crash_all(&volume.dir);
        for (_, generation) in volume.current.values() {
            let _ = self.engine.destroy(&volume.generation_dir(*generation));
        }
    }

    /// A claim was made: it gets an empty volume.
    pub fn provision(&mut self, ordinal: u32) {
        if let Some(claim) = self.api.claims.get(&ordinal) {
            self.volumes_made += 1;
            let volume = Volume::new(claim.uid.clone(), self.volumes_made);
            self.volumes.insert(claim.uid.clone(), volume);
        }
    }
}
