//! Every step that the world can take, and the invariants.
//!
//! What is no step, and why nothing is missed:
//! - Messages are taken when they are sent. What a late one finds changed at its receiver would have refused it (each side's
//!   checks are asked), and until its receiver acts on it nobody can tell that it came early.
//! - Any number of operators: they remember nothing. Whatever was ever recorded may be ordered at any later time, again and
//!   again; a decision may rest on any of the ballots; only the swap of the record needs it as it is.
//! - A process that is down is one that takes no step; so a crash includes the start after it.
//! - A write is acknowledged as soon as it may be: late acknowledgements oblige to less.
//! - A replica syncs when it acknowledges, a primary when something is released; a crash keeps any part of the rest.
//! - A candidate is any sealed member that the rules allow; which of them is preferred is no question of safety.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;

use crate::bounds::Bounds;
use crate::cores::{After, Asked, Cores, Member, Progress, Ref, Resume, Said, Whole};
use crate::search::{Machine, Next};
use crate::state::{Copy3, Heard, Lead, Log, N, NONE, Phase, Pod, REIGNS, Reign, State, write_record};

/// One step. Members are numbered from 0; reigns by their place in the list of those ever recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A client's write reaches this primary.
    Write { at: u8 },
    /// One record is streamed (and the upstream's reign promised).
    Stream { from: u8, to: u8 },
    /// A replica syncs and acknowledges.
    Acknowledge { from: u8, to: u8 },
    /// The new primary writes its epoch record.
    WriteEpochRecord { at: u8 },
    /// A beat of the primary, and the promise that comes back.
    Beat { from: u8, to: u8 },
    /// So much time passes that promises of this replica count no more anywhere, and it heard nobody.
    Quiet { at: u8 },
    /// A process ends and begins anew, with so many records kept.
    Crash { at: u8, keeps: u8 },
    /// A volume is lost; an empty one takes its place.
    LoseVolume { at: u8 },
    /// A copy becomes unreadable.
    Damage { at: u8 },
    /// A replica begins to replace its copy.
    Rebuild { at: u8, from: u8 },
    /// The copy is replaced by one of this member's.
    Replace { at: u8, from: u8 },
    /// An operator records the next reign.
    Begin { reign: u8, w: u8 },
    /// An operator orders a seal.
    Seal { at: u8, reign: u8, proof: bool },
    /// An operator has a sealed member completed from another.
    Pull { at: u8, from: u8 },
    /// An operator records whom to promote, on these ballots.
    Decide { reign: u8, candidate: u8, ballots: u8 },
    /// An operator orders the recorded candidate to lead.
    Promote { reign: u8, at: u8 },
    /// An operator orders to follow.
    Follow { reign: u8, at: u8 },
    /// An operator records that the reign serves.
    Served { reign: u8 },
    /// An older record is restored from a backup.
    Restore { reign: u8 },
    /// A primary renews its Lease.
    Renew { at: u8 },
    /// An operator raises the epoch in the Lease.
    Raise { reign: u8 },
    /// An operator saw the Lease unmoved for its duration.
    Unmoved { reign: u8 },
}

/// The world within bounds, by the rules of the cores, with none or one removed.
pub struct World {
    bounds: Bounds,
    cores: Cores,
    /// The rule of the model's own that is removed.
    without: Option<&'static str>,
    hasher: FixedState,
}

type Out = Vec<Next<Step, State>>;

/// Members' numbers.
fn all() -> impl Iterator<Item = u8> {
    0..3
}

fn has(set: u8, member: u8) -> bool {
    set >> member & 1 == 1
}

impl World {
    /// A world with nothing known yet.
    #[must_use]
    pub fn new(bounds: Bounds, without: Option<&'static str>) -> Self {
        Self { bounds, cores: Cores::default(), without, hasher: FixedState::default() }
    }

    /// How many different questions the cores were asked.
    #[must_use]
    pub fn questions(&self) -> usize {
        self.cores.questions()
    }

    fn off(&self, rule: &str) -> bool {
        self.without == Some(rule)
    }

    // ---- What the cores are asked about. ----

    fn name(s: &State, index: u8) -> Option<Ref> {
        s.reign(index).map(|reign| Ref { epoch: reign.epoch, id: reign.id })
    }

    fn whole(s: &State, index: u8) -> Option<Whole> {
        let reign = s.reign(index).filter(|reign| reign.phase >= Phase::Promoting)?;
        let name = Ref { epoch: reign.epoch, id: reign.id };
        Some(Whole { name, primary: reign.primary, present: reign.present, w: reign.w })
    }

    fn index(s: &State, name: Option<Ref>) -> u8 {
        let Some(name) = name else { return NONE };
        let at = s.reigns.iter().position(|r| r.phase != Phase::None && r.epoch == name.epoch && r.id == name.id);
        at.and_then(|at| u8::try_from(at).ok()).unwrap_or(NONE)
    }

    fn member(s: &State, me: u8) -> Member {
        let pod = Self::pod(s, me);
        Member {
            me,
            promised: Self::whole(s, pod.promised),
            sealed: Self::name(s, pod.sealed),
            started: pod.started,
            leading: pod.lead != Lead::No,
            heard: pod.heard,
        }
    }

    fn pod(s: &State, i: u8) -> &Pod {
        &s.pods[usize::from(i)]
    }

    fn pod_mut(s: &mut State, i: u8) -> &mut Pod {
        &mut s.pods[usize::from(i)]
    }

    fn promise(s: &State, pod: &Pod) -> Option<Ref> {
        let (promised, sealed) = (Self::name(s, pod.promised), Self::name(s, pod.sealed));
        if s.epoch(pod.sealed) > s.epoch(pod.promised) { sealed } else { promised.or(sealed) }
    }

    /// What an order made of a member is put on record.
    fn apply(s: &mut State, i: u8, after: &After) {
        let (promised, sealed) = (Self::index(s, after.promised), Self::index(s, after.sealed));
        let pod = Self::pod_mut(s, i);
        (pod.promised, pod.sealed, pod.started, pod.heard) = (promised, sealed, after.started, after.heard);
        if !after.leading {
            pod.stop_leading();
        }
    }

    fn counts(&mut self, pod: &Pod) -> bool {
        let floor = if self.off("floor-kept-from-sources") { 0 } else { pod.floor };
        self.cores.counts(pod.copy, pod.log.end(), floor)
    }

    fn progress(&mut self, s: &State, i: u8) -> Progress {
        let pod = Self::pod(s, i);
        let Some(reign) = Self::whole(s, pod.promised) else { return Progress::default() };
        let stage = if pod.lead == Lead::Joining { Lead::Joining } else { Lead::Written };
        let start = s.reigns[usize::from(pod.promised)].at;
        self.cores.progress(reign, stage, start, pod.acks)
    }

    fn serving(&mut self, s: &State, i: u8) -> (bool, bool) {
        let pod = *Self::pod(s, i);
        if pod.lead < Lead::Written {
            return (false, false);
        }
        let Some(reign) = Self::whole(s, pod.promised) else { return (false, false) };
        self.cores.serving(reign, pod.promises, pod.lease, pod.lease_lost)
    }

    // ---- Data. ----

    fn data_steps(&mut self, s: &State, out: &mut Out) {
        for p in all() {
            if Self::pod(s, p).lead != Lead::No {
                self.primary_steps(s, p, out);
            }
            for r in all().filter(|r| *r != p) {
                self.stream(s, p, r, out);
                self.replace(s, p, r, out);
                if Self::pod(s, p).lead != Lead::No {
                    self.acknowledge(s, r, p, out);
                    self.rebuild(s, r, p, out);
                    self.beat(s, p, r, out);
                }
            }
        }
    }

    fn primary_steps(&mut self, s: &State, p: u8, out: &mut Out) {
        let pod = Self::pod(s, p);
        let epoch = s.epoch(pod.promised);
        if pod.lead == Lead::Joining && self.progress(s, p).write && pod.log.len() < 8 {
            let mut next = *s;
            let id = s.reigns[usize::from(pod.promised)].id;
            let new = Self::pod_mut(&mut next, p);
            new.log = new.log.with(epoch << 4 | id);
            new.lead = Lead::Asked;
            self.released(&mut next, p);
            out.push(Next { step: Step::WriteEpochRecord { at: p }, state: next, violation: None });
        }
        if pod.lead >= Lead::Asked && s.writes < self.bounds.writes && pod.log.len() < 8 {
            let mut next = *s;
            let new = Self::pod_mut(&mut next, p);
            if new.lead == Lead::Asked {
                new.sync();
                new.lead = Lead::Written;
            }
            new.log = new.log.with(write_record(epoch, s.writes));
            next.writes += 1;
            self.released(&mut next, p);
            out.push(Next { step: Step::Write { at: p }, state: next, violation: None });
        }
        if s.reigns[usize::from(pod.promised)].w == 0 {
            self.renew(s, p, out);
        }
    }

    /// What follows from what the others have: the record counts as written, the reign serves, writes are acknowledged.
    fn released(&mut self, s: &mut State, p: u8) {
        let index = Self::pod(s, p).promised;
        let alone = s.reigns[usize::from(index)].w == 0;
        let progress = self.progress(s, p);
        let synced = !self.off("primary-synced-before-ack");
        let pod = Self::pod_mut(s, p);
        if pod.lead == Lead::Asked && (alone || progress.released > 0) {
            pod.lead = Lead::Written;
        }
        if pod.lead == Lead::Written && progress.serve {
            pod.lead = Lead::Served;
            s.reigns[usize::from(index)].served = true;
        }
        let pod = Self::pod_mut(s, p);
        if pod.lead < Lead::Written {
            return;
        }
        if (alone || progress.released > 0) && synced {
            pod.sync();
        }
        let upto = if alone { pod.log.len() } else { progress.released.min(pod.log.len()) };
        let writes = pod.log.first(upto).writes();
        if self.serving(s, p).1 || (alone && self.off("lease-checked-after-commit")) {
            s.acked |= writes;
        }
    }

    /// Whether `u` gives `r` what it has: hellos, seals, floors. Answers `r` once it promised what it met.
    fn session(&mut self, s: &State, u: u8, r: u8) -> Option<State> {
        let (up, down) = (*Self::pod(s, u), *Self::pod(s, r));
        let theirs = Self::name(s, up.promised)?;
        if up.sealed != NONE && !self.off("sealed-serves-no-streams") {
            return None;
        }
        if !self.counts(&up) || !self.cores.upstream(r, Self::promise(s, &down), u, theirs) {
            return None;
        }
        let after = self.cores.met(Self::member(s, r), Self::whole(s, up.promised)?)?;
        let mut next = *s;
        Self::apply(&mut next, r, &after);
        let down = Self::pod(&next, r);
        (down.lead == Lead::No && (down.sealed == NONE || self.off("sealed-follows-nobody"))).then_some(next)
    }

    fn stream(&mut self, s: &State, u: u8, r: u8, out: &mut Out) {
        let (up, down) = (*Self::pod(s, u), *Self::pod(s, r));
        if down.copy != Copy3::Open || down.log.len() >= up.log.len() || up.promised == NONE {
            return;
        }
        let record = up.log.record(down.log.len() + 1);
        let Some(mut next) = self.session(s, u, r) else { return };
        if record >> 4 > s.epoch(up.promised)
            || self.cores.resume(up.log, down.log.end(), up.lead != Lead::No) != Resume::Stream
        {
            return;
        }
        let new = Self::pod_mut(&mut next, r);
        new.log = new.log.with(record);
        out.push(Next { step: Step::Stream { from: u, to: r }, state: next, violation: None });
    }

    fn acknowledge(&mut self, s: &State, r: u8, p: u8, out: &mut Out) {
        let (replica, primary) = (*Self::pod(s, r), *Self::pod(s, p));
        let at = replica.log.end();
        if replica.promised != primary.promised || at == 0 || !self.counts(&replica) {
            return;
        }
        if replica.sealed != NONE && !self.off("sealed-follows-nobody") {
            return;
        }
        let Some(own) = Self::name(s, primary.promised) else { return };
        if !self.cores.follower(p, own, r, Self::promise(s, &replica)) {
            return;
        }
        let mut next = *s;
        if !self.off("replica-synced-before-ack") {
            Self::pod_mut(&mut next, r).sync();
        }
        Self::pod_mut(&mut next, p).acks[usize::from(r)] = at;
        self.released(&mut next, p);
        if next != *s {
            out.push(Next { step: Step::Acknowledge { from: r, to: p }, state: next, violation: None });
        }
    }

    /// A replica begins to replace its copy: it left the history, is unreadable, or fell out of the window.
    fn rebuild(&mut self, s: &State, r: u8, p: u8, out: &mut Out) {
        let (replica, primary) = (*Self::pod(s, r), *Self::pod(s, p));
        if replica.copy == Copy3::Replacing {
            return;
        }
        let Some(mut next) = self.session(s, p, r) else { return };
        let diverged =
            replica.copy == Copy3::Open && self.cores.resume(primary.log, replica.log.end(), true) == Resume::Diverged;
        if !diverged && replica.copy == Copy3::Open {
            if s.budget.rebuilds == 0 || replica.log.is_empty() {
                return;
            }
            next.budget.rebuilds -= 1;
        }
        let new = Self::pod_mut(&mut next, r);
        new.floor = new.floor.max(new.log.end()).max(primary.log.end());
        Self::begin_replacing(new, self.off("floor-stored"));
        out.push(Next { step: Step::Rebuild { at: r, from: p }, state: next, violation: None });
    }

    fn begin_replacing(pod: &mut Pod, without_floor: bool) {
        pod.copy = Copy3::Replacing;
        pod.log = Log(0);
        pod.durable = 0;
        if without_floor {
            pod.floor = 0;
        }
    }

    fn replace(&mut self, s: &State, u: u8, r: u8, out: &mut Out) {
        let (up, down) = (*Self::pod(s, u), *Self::pod(s, r));
        if down.copy != Copy3::Replacing || up.promised == NONE {
            return;
        }
        let Some(mut next) = self.session(s, u, r) else { return };
        let new = Self::pod_mut(&mut next, r);
        (new.log, new.copy) = (up.log, Copy3::Open);
        new.sync();
        out.push(Next { step: Step::Replace { at: r, from: u }, state: next, violation: None });
    }

    // ---- Time. ----

    fn beat(&mut self, s: &State, p: u8, r: u8, out: &mut Out) {
        if !self.bounds.clocks {
            return;
        }
        let Some(reign) = Self::name(s, Self::pod(s, p).promised) else { return };
        let Some(after) = self.cores.beat(Self::member(s, r), reign) else { return };
        if Self::pod(s, r).promised != Self::pod(s, p).promised {
            return;
        }
        let mut next = *s;
        Self::apply(&mut next, r, &after);
        if after.echoes {
            Self::pod_mut(&mut next, p).promises |= 1 << r;
        }
        self.released(&mut next, p);
        if next != *s {
            out.push(Next { step: Step::Beat { from: p, to: r }, state: next, violation: None });
        }
    }

    fn quiet(&self, s: &State, r: u8, out: &mut Out) {
        let mut next = *s;
        Self::pod_mut(&mut next, r).heard = Heard::Old;
        for pod in &mut next.pods {
            pod.promises &= !(1 << r);
        }
        if next != *s {
            out.push(Next { step: Step::Quiet { at: r }, state: next, violation: None });
        }
    }

    fn renew(&mut self, s: &State, p: u8, out: &mut Out) {
        let epoch = s.epoch(Self::pod(s, p).promised);
        let mut next = *s;
        if s.lease_epoch <= epoch {
            next.lease_epoch = epoch;
            Self::pod_mut(&mut next, p).lease = true;
        } else {
            Self::pod_mut(&mut next, p).lease_lost = true;
        }
        self.released(&mut next, p);
        if next != *s {
            out.push(Next { step: Step::Renew { at: p }, state: next, violation: None });
        }
    }

    fn lease_steps(&self, s: &State, out: &mut Out) {
        let current = s.reigns[usize::from(s.current)];
        if current.epoch > s.lease_epoch {
            let state = State { lease_epoch: current.epoch, ..*s };
            out.push(Next { step: Step::Raise { reign: s.current }, state, violation: None });
        }
        for (k, reign) in (0..).zip(&s.reigns).filter(|(_, r)| r.phase >= Phase::Promoting && r.w == 0 && !r.unmoved) {
            let raised = s.lease_epoch > reign.epoch || self.off("lease-raised-before-it-counts");
            if !raised || reign.epoch >= current.epoch {
                continue;
            }
            let mut next = *s;
            next.reigns[usize::from(k)].unmoved = true;
            let pod = Self::pod_mut(&mut next, reign.primary);
            if pod.promised == k {
                pod.lease = false;
            }
            out.push(Next { step: Step::Unmoved { reign: k }, state: next, violation: None });
        }
    }

    // ---- What goes wrong. ----

    fn fault_steps(&self, s: &State, out: &mut Out) {
        for i in all() {
            if self.bounds.clocks {
                self.quiet(s, i, out);
            }
            let pod = Self::pod(s, i);
            if s.budget.crashes > 0 {
                for keeps in pod.durable..=pod.log.len() {
                    let mut next = self.ended(s, i);
                    next.budget.crashes -= 1;
                    let new = Self::pod_mut(&mut next, i);
                    new.log = new.log.first(keeps);
                    new.sync();
                    out.push(Next { step: Step::Crash { at: i, keeps }, state: next, violation: None });
                }
            }
            if s.budget.damages > 0 && pod.copy == Copy3::Open && !pod.log.is_empty() {
                // A primary ends by it; a replica goes on without the copy.
                let mut next = if pod.lead == Lead::No { *s } else { self.ended(s, i) };
                next.budget.damages -= 1;
                let new = Self::pod_mut(&mut next, i);
                (new.copy, new.log, new.durable) = (Copy3::Damaged, Log(0), 0);
                out.push(Next { step: Step::Damage { at: i }, state: next, violation: None });
            }
            if s.budget.losses > 0 {
                let mut next = self.ended(s, i);
                next.budget.losses -= 1;
                *Self::pod_mut(&mut next, i) = Pod::blank();
                if !self.bounds.clocks {
                    Self::pod_mut(&mut next, i).heard = Heard::Old;
                }
                for reign in &mut next.reigns {
                    if !self.off("volume-has-an-identity") {
                        reign.present &= !(1 << i);
                    }
                }
                for other in &mut next.pods {
                    other.acks[usize::from(i)] = 0;
                    other.promises &= !(1 << i);
                }
                out.push(Next { step: Step::LoseVolume { at: i }, state: next, violation: None });
            }
        }
    }

    /// A process ended, and the next one begins.
    fn ended(&self, s: &State, i: u8) -> State {
        let mut next = *s;
        for reign in next.reigns.iter_mut().filter(|r| r.phase >= Phase::Promoting && r.primary == i) {
            reign.ended |= has(reign.present, i);
        }
        let pod = Self::pod_mut(&mut next, i);
        pod.stop_leading();
        if self.off("promise-stored") {
            pod.sealed = NONE;
        }
        pod.heard = if self.bounds.clocks { Heard::JustStarted } else { Heard::Old };
        next
    }

    // ---- Operators. ----

    fn operator_steps(&mut self, s: &State, out: &mut Out) {
        self.begin(s, out);
        for k in 0..REIGNS as u8 {
            let Some(reign) = s.reign(k).copied() else { continue };
            for i in all() {
                self.seal(s, i, k, out);
                if reign.phase >= Phase::Promoting {
                    self.promote(s, i, k, out);
                    self.follow(s, i, k, out);
                }
            }
        }
        for m in all() {
            for from in all().filter(|from| *from != m) {
                self.pull(s, m, from, out);
            }
        }
        self.decide(s, out);
        let current = s.reigns[usize::from(s.current)];
        if current.phase == Phase::Promoting && current.served {
            let mut next = *s;
            next.reigns[usize::from(s.current)].phase = Phase::Serving;
            out.push(Next { step: Step::Served { reign: s.current }, state: next, violation: None });
        }
        if s.budget.restores > 0 {
            for k in (0..s.current).filter(|k| s.reigns[usize::from(*k)].phase == Phase::Serving) {
                let mut next = *s;
                next.budget.restores -= 1;
                next.current = k;
                let epoch = s.epoch(k);
                for reign in next.reigns.iter_mut().filter(|r| r.epoch > epoch) {
                    reign.forgotten = true;
                }
                out.push(Next { step: Step::Restore { reign: k }, state: next, violation: None });
            }
        }
    }

    fn begin(&self, s: &State, out: &mut Out) {
        let current = s.reigns[usize::from(s.current)];
        let epoch = current.epoch + 1;
        let free = s.reigns.iter().position(|r| r.phase == Phase::None);
        let Some(free) = free.filter(|_| epoch <= self.bounds.epochs) else { return };
        let used = s.reigns.iter().filter(|r| r.phase != Phase::None && r.epoch == epoch).count();
        for w in self.bounds.w.iter().copied() {
            let mut next = *s;
            let reign = &mut next.reigns[free];
            reign.epoch = epoch;
            reign.id = u8::try_from(used).unwrap_or(0);
            if reign.id > 1 {
                continue;
            }
            reign.phase = Phase::Sealing;
            reign.present = 0b111;
            reign.w = w;
            next.current = u8::try_from(free).unwrap_or(0);
            out.push(Next { step: Step::Begin { reign: next.current, w }, state: next, violation: None });
        }
    }

    /// The best evidence that there is about the reign that the member promised.
    fn proven(s: &State, promised: u8) -> bool {
        let Some(reign) = s.reign(promised).filter(|r| r.phase >= Phase::Promoting) else { return false };
        let primary = Self::pod(s, reign.primary);
        reign.ended || (has(reign.present, reign.primary) && s.promise(primary) > reign.epoch)
    }

    fn seal(&mut self, s: &State, i: u8, k: u8, out: &mut Out) {
        let member = Self::member(s, i);
        let Some(name) = Self::name(s, k) else { return };
        let promised = member.promised.map(|whole| whole.name);
        // Evidence about the promised reign if there is any; else about another, if there is any; else silence.
        let proof = Self::proven(s, Self::pod(s, i).promised);
        let other = (0..REIGNS as u8).find(|k| *k != Self::pod(s, i).promised && Self::proven(s, *k));
        let (about, claimed) = match other {
            Some(other) if !proof => (Self::name(s, other), true),
            _ => (promised, proof),
        };
        let Some(after) = self.cores.seal(member, name, about, claimed) else { return };
        let mut next = *s;
        Self::apply(&mut next, i, &after);
        Self::pod_mut(&mut next, i).sync();
        if next != *s {
            out.push(Next { step: Step::Seal { at: i, reign: k, proof }, state: next, violation: None });
        }
    }

    fn pull(&mut self, s: &State, m: u8, from: u8, out: &mut Out) {
        let (mine, source) = (*Self::pod(s, m), *Self::pod(s, from));
        let unsealed = mine.sealed == NONE || source.sealed != mine.sealed;
        if unsealed || mine.lead != Lead::No || mine.copy == Copy3::Damaged || !self.counts(&source) {
            return;
        }
        let mut next = *s;
        let new = Self::pod_mut(&mut next, m);
        if mine.copy == Copy3::Replacing {
            (new.log, new.copy) = (source.log, Copy3::Open);
            new.sync();
        } else {
            match self.cores.resume(source.log, mine.log.end(), false) {
                Resume::Stream => {
                    new.log = source.log;
                    new.sync();
                }
                Resume::Diverged => {
                    new.floor = new.floor.max(new.log.end()).max(source.log.end());
                    Self::begin_replacing(new, self.off("floor-stored"));
                }
                Resume::Wait => return,
            }
        }
        if next != *s {
            out.push(Next { step: Step::Pull { at: m, from }, state: next, violation: None });
        }
    }

    /// The reigns that may have acknowledged: the last that was Serving, and each later one that reached Promoting.
    fn olds(&self, s: &State) -> [Option<(Whole, bool, bool)>; 4] {
        let before = s.epoch(s.current);
        let of = |k: u8| s.reign(k).filter(|r| r.epoch < before && !r.forgotten && r.phase >= Phase::Promoting);
        let known: Vec<u8> = (0..REIGNS as u8).filter(|k| of(*k).is_some()).collect();
        let epoch = |k: &u8| s.epoch(*k);
        let serving = known.iter().filter(|k| of(**k).is_some_and(|r| r.phase == Phase::Serving)).map(epoch).max();
        let mut olds = [None; 4];
        let asked = known.into_iter().filter(|k| Some(epoch(k)) >= serving);
        let asked = asked.filter(|k| !self.off("later-promoting-reigns-asked") || Some(epoch(k)) == serving);
        for (place, k) in olds.iter_mut().zip(asked) {
            *place = Self::whole(s, k).zip(s.reign(k)).map(|(whole, reign)| (whole, reign.ended, reign.unmoved));
        }
        if self.off("each-reign-by-its-own-w") {
            let w = s.reigns[usize::from(s.current)].w;
            olds.iter_mut().flatten().for_each(|old| old.0.w = w);
        }
        olds
    }

    fn ballot(&mut self, s: &State, i: u8) -> Option<Said> {
        let pod = *Self::pod(s, i);
        let blank = pod.promised == NONE && pod.started == 0;
        let sealed = pod.sealed == s.current || self.off("only-sealed-members-vote");
        (sealed && !blank).then(|| self.cores.vote(pod.copy, pod.log.end(), pod.floor))
    }

    fn decide(&mut self, s: &State, out: &mut Out) {
        let current = s.reigns[usize::from(s.current)];
        let swap = current.phase == Phase::Sealing || (current.phase == Phase::Promoting && self.off("record-swapped"));
        if !swap {
            return;
        }
        // A record that came from a backup may know nothing of the last reigns: every member must say what it knows.
        let everyone = s.reigns.iter().any(|r| r.forgotten) && !self.off("restored-record-asks-everyone");
        let said = [self.ballot(s, 0), self.ballot(s, 1), self.ballot(s, 2)];
        let olds = self.olds(s);
        for set in 1..8_u8 {
            let silent = all().any(|i| has(set, i) && said[usize::from(i)].is_none());
            if silent || (everyone && set != 7) {
                continue;
            }
            let mut ballots = said;
            for i in all().filter(|i| !has(set, *i)) {
                ballots[usize::from(i)] = None;
            }
            for candidate in all().filter(|i| has(set, *i)) {
                let Some(at) = self.cores.decide(Asked { olds, ballots, candidate }) else { continue };
                let mut next = *s;
                let reign = &mut next.reigns[usize::from(s.current)];
                (reign.phase, reign.primary, reign.at) = (Phase::Promoting, candidate, at);
                reign.has = Self::pod(s, candidate).log.writes();
                reign.ended = false;
                let violation = all().any(|i| has(set, i) && Self::votes_below_floor(s, said[usize::from(i)], i));
                let violation = violation.then_some("a vote from a copy below its floor");
                let step = Step::Decide { reign: s.current, candidate, ballots: set };
                out.push(Next { step, state: next, violation });
            }
        }
    }

    fn votes_below_floor(s: &State, said: Option<Said>, i: u8) -> bool {
        let pod = Self::pod(s, i);
        matches!(said, Some(Said::Known(_))) && (pod.copy != Copy3::Open || pod.log.end() < pod.floor)
    }

    fn promote(&mut self, s: &State, i: u8, k: u8, out: &mut Out) {
        let reign = s.reigns[usize::from(k)];
        let other_process = reign.ended && !self.off("promote-names-the-process");
        if reign.primary != i || !has(reign.present, i) || other_process {
            return;
        }
        let pod = *Self::pod(s, i);
        let Some(whole) = Self::whole(s, k) else { return };
        let here = self.cores.vote(pod.copy, pod.log.end(), pod.floor);
        let Some(after) = self.cores.promote(Self::member(s, i), whole, reign.at, here) else { return };
        if pod.lead != Lead::No && pod.promised == k {
            return;
        }
        let mut next = *s;
        Self::pod_mut(&mut next, i).stop_leading();
        Self::apply(&mut next, i, &after);
        Self::pod_mut(&mut next, i).lead = Lead::Joining;
        next.reigns[usize::from(k)].starts += 1;
        out.push(Next { step: Step::Promote { reign: k, at: i }, state: next, violation: None });
    }

    fn follow(&mut self, s: &State, i: u8, k: u8, out: &mut Out) {
        let Some(whole) = Self::whole(s, k) else { return };
        let Some(after) = self.cores.follow(Self::member(s, i), whole) else { return };
        let mut next = *s;
        Self::apply(&mut next, i, &after);
        if next != *s {
            out.push(Next { step: Step::Follow { reign: k, at: i }, state: next, violation: None });
        }
    }

    // ---- Invariants. ----

    fn violation(&mut self, before: &State, s: &State) -> Option<&'static str> {
        if s.reigns.iter().any(|r| r.starts > 1) {
            return Some("an epoch is started twice");
        }
        let shrinks = |(old, new): (&Pod, &Pod)| before.promise(old) > s.promise(new) && new.promised != NONE;
        if before.budget.losses == s.budget.losses && before.pods.iter().zip(&s.pods).any(shrinks) {
            return Some("a promise shrinks");
        }
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            if forked(&s.pods[a], &s.pods[b]) {
                return Some("equal epoch and sequence, other content");
            }
        }
        let quorum = s.reigns.iter().all(|r| r.phase == Phase::None || r.w > 0);
        if quorum { self.loses(before, s).or_else(|| self.stale(s)) } else { self.shared(before, s) }
    }

    /// Quorum: what was acknowledged is in every later reign that serves; nothing commits in a reign that is over.
    fn loses(&mut self, before: &State, s: &State) -> Option<&'static str> {
        for pod in s.pods.iter().filter(|pod| pod.lead == Lead::Served) {
            let epoch = s.epoch(pod.promised);
            let missing = s.acked & !pod.log.writes();
            // What a later reign acknowledged is no business of an older one that does not know yet that it is over.
            let newest = s.reigns.iter().all(|r| !r.served || r.epoch <= epoch);
            if missing != 0 && newest {
                return Some("an acknowledged write is not in a later reign that serves");
            }
        }
        let new = s.acked & !before.acked;
        if new == 0 {
            return None;
        }
        // The reign that released it: a later one may release what an older one wrote.
        for i in all() {
            let pod = *Self::pod(s, i);
            if pod.lead < Lead::Written {
                continue;
            }
            let epoch = s.epoch(pod.promised);
            let here = new & pod.log.first(self.progress(s, i).released).writes();
            let over = |r: &Reign| r.phase >= Phase::Promoting && r.epoch > epoch && here & !r.has != 0;
            if s.reigns.iter().any(over) {
                return Some("a write commits in an old epoch after the seal quorum");
            }
        }
        None
    }

    /// Quorum: whoever may read sees every acknowledged write.
    fn stale(&mut self, s: &State) -> Option<&'static str> {
        if s.acked == 0 || !self.bounds.clocks {
            return None;
        }
        for i in all() {
            let pod = *Self::pod(s, i);
            if pod.lead == Lead::Served && self.serving(s, i).0 {
                let shown = pod.log.first(self.progress(s, i).released).writes();
                if s.acked & !shown != 0 {
                    return Some("a fresh read is older than an acknowledged write");
                }
            }
        }
        None
    }

    /// W = 0: nobody reads or acknowledges in a reign once a later one does.
    fn shared(&mut self, before: &State, s: &State) -> Option<&'static str> {
        let new = s.acked & !before.acked;
        for i in all() {
            let pod = Self::pod(s, i);
            let epoch = s.epoch(pod.promised);
            let (read, acknowledge) = self.serving(s, i);
            // What a later primary that has it acknowledges is no act of this one.
            let later = |p: &&Pod| p.lead >= Lead::Written && s.epoch(p.promised) > epoch;
            let theirs = s.pods.iter().filter(later).fold(0, |set, p| set | p.log.writes());
            let acknowledged = pod.lead >= Lead::Written && pod.log.writes() & new & !theirs != 0;
            if (read || acknowledge || acknowledged) && s.reigns.iter().any(|r| r.served && r.epoch > epoch) {
                return Some("an old primary serves beside a later one");
            }
        }
        None
    }
}

/// Whether two copies differ below a record that they share by name.
fn forked(a: &Pod, b: &Pod) -> bool {
    let shared = (1..=a.log.len().min(b.log.len())).rev().find(|at| a.log.record(*at) >> 4 == b.log.record(*at) >> 4);
    shared.is_some_and(|upto| a.log.first(upto) != b.log.first(upto))
}

impl Machine for World {
    type State = State;
    type Step = Step;

    fn initial(&self) -> State {
        State::initial(self.bounds.w[0], self.bounds.budget)
    }

    fn steps(&mut self, from: &State, out: &mut Vec<Next<Step, State>>) {
        self.data_steps(from, out);
        self.operator_steps(from, out);
        self.fault_steps(from, out);
        if self.bounds.w[0] == 0 {
            self.lease_steps(from, out);
        }
        for next in out.iter_mut() {
            if next.violation.is_none() {
                next.violation = self.violation(from, &next.state);
            }
        }
    }

    fn canonical(&self, state: &State) -> State {
        state.canonical()
    }

    fn fingerprint(&self, state: &State) -> u64 {
        self.hasher.hash_one(state).max(1)
    }
}

const _: () = assert!(N == 3);
