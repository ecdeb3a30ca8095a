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

mod data;
mod faults;
mod invariants;
mod operators;

use std::hash::BuildHasher;

use foldhash::fast::FixedState;

use crate::bounds::Bounds;
use crate::cores::{After, Cores, Member, Progress, Ref, Whole};
use crate::search::{Machine, Next};
use crate::state::{Lead, N, NONE, Phase, Pod, State};

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
