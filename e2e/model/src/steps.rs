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

mod backup;
mod invariants;
mod operators;

use std::hash::BuildHasher;

use foldhash::fast::FixedState;

use crate::bounds::Bounds;
use crate::cores::{After, Cores, Member, Progress, Ref, Resume, Whole};
use crate::search::{Machine, Next};
use crate::state::{Copy3, Heard, Lead, Log, N, NONE, Phase, Pod, State, write_record};

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
    /// Every volume has answered, and this reign and what else the record lacks is put on record.
    Learn { reign: u8 },
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

    fn is_source(&mut self, pod: &Pod) -> bool {
        self.cores.is_source(pod.copy, pod.log.end(), pod.floor)
    }

    fn progress(&mut self, s: &State, i: u8) -> Progress {
        let pod = Self::pod(s, i);
        let Some(reign) = Self::whole(s, pod.promised) else { return Progress::default() };
        let stage = if pod.lead == Lead::Joining { Lead::Joining } else { Lead::Written };
        let start = s.reigns[usize::from(pod.promised)].at;
        // What was released stays so, though who acknowledged it is gone.
        let mut acks = pod.acks;
        let kept = std::mem::take(&mut acks[usize::from(i)]);
        let progress = self.cores.progress(reign, stage, start, acks);
        Progress { released: progress.released.max(kept), ..progress }
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
        if pod.lead == Lead::Asked && (alone || progress.released > 0 || progress.serve) {
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
        if !self.is_source(&up) {
            return None;
        }
        // An order names the primary of its reign as the upstream: only there another one is met. Where there is but one line
        // of reigns, it makes no difference who meets whom.
        let named = s.reign(down.promised).is_none_or(|reign| reign.primary == u);
        if self.restored(s) && down.promised != up.promised && !named {
            return None;
        }
        if self.goes_on(&down) && down.promised == up.promised {
            return Some(*s);
        }
        if !self.cores.upstream(r, Self::promise(s, &down), u, theirs) {
            return None;
        }
        let after = self.cores.met(Self::member(s, r), Self::whole(s, up.promised)?)?;
        let mut next = *s;
        Self::apply(&mut next, r, &after);
        let down = Self::pod(&next, r);
        (down.lead == Lead::No && down.sealed == NONE).then_some(next)
    }

    /// Whether a record was restored from a backup.
    fn restored(&self, s: &State) -> bool {
        s.budget.restores < self.bounds.budget.restores
    }

    /// Whether a sealed member's streams and acknowledgements go on, since nothing ended them: no hello is exchanged again.
    fn goes_on(&self, pod: &Pod) -> bool {
        pod.sealed != NONE && pod.lead == Lead::No && self.off("seal-ends-streams")
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
        if replica.promised != primary.promised || at == 0 {
            return;
        }
        if !self.cores.may_acknowledge(replica.copy, at, replica.floor, s.epoch(replica.promised)) {
            return;
        }
        if !self.goes_on(&replica) {
            let Some(own) = Self::name(s, primary.promised) else { return };
            if replica.sealed != NONE || !self.cores.follower(p, own, r, Self::promise(s, &replica)) {
                return;
            }
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

    fn fault_steps(&mut self, s: &State, out: &mut Out) {
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
                let state = self.lost(s, i);
                out.push(Next { step: Step::LoseVolume { at: i }, state, violation: None });
            }
        }
    }

    fn lost(&mut self, s: &State, i: u8) -> State {
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
        for other in all().filter(|other| *other != i) {
            let written = Self::pod(s, other).lead >= Lead::Written;
            let released = if written { self.progress(s, other).released } else { 0 };
            let pod = Self::pod_mut(&mut next, other);
            pod.acks[usize::from(other)] = released;
            pod.acks[usize::from(i)] = 0;
            pod.promises &= !(1 << i);
        }
        next
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
