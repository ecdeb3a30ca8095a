//! Breadth-first search over all states: the first violation found has a shortest trace.
//!
//! States are compared by a 64-bit fingerprint of their canonical form, and remembered with that of the state they came from
//! (16 bytes a state). With 50 million states, the chance that any two share a fingerprint is below 1 in 10,000.
//! A library was looked at first (stateright 0.31): it reduces by symmetry only when it searches in depth, which gives no
//! shortest traces, keeps whole states, and brings a web server.

use std::time::{Duration, Instant};

/// What is searched.
pub trait Machine {
    /// Everything that there is, small enough to be copied.
    type State: Copy + Eq;
    /// One step, named for traces.
    type Step: Copy + std::fmt::Debug;

    /// Where everything begins.
    fn initial(&self) -> Self::State;
    /// All steps that are possible, with where each leads and what it violates.
    fn steps(&mut self, from: &Self::State, out: &mut Vec<Next<Self::Step, Self::State>>);
    /// The representative of all states that differ only in names.
    fn canonical(&self, state: &Self::State) -> Self::State;
    /// Of a canonical state; never 0.
    fn fingerprint(&self, state: &Self::State) -> u64;
}

/// Where a step leads.
#[derive(Debug, Clone, Copy)]
pub struct Next<Step, State> {
    /// The step.
    pub step: Step,
    /// The state after it.
    pub state: State,
    /// The invariant that it breaks.
    pub violation: Option<&'static str>,
}

/// How far to search.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// States to remember at most.
    pub states: usize,
    /// For how long at most.
    pub time: Duration,
}

/// What a search came to.
#[derive(Debug, Clone)]
pub struct Found<Step, State> {
    /// Distinct states seen.
    pub states: usize,
    /// Steps taken.
    pub steps: u64,
    /// Steps from the beginning to the last state.
    pub depth: u32,
    /// How long it took.
    pub time: Duration,
    /// Whether every state within the bounds was seen.
    pub complete: bool,
    /// The first violation: which, and the steps to it from the beginning.
    pub violation: Option<(&'static str, Vec<(Step, State)>)>,
}

/// Fingerprints with that of the state before: open addressing, a power of two of places.
struct Seen {
    places: Vec<(u64, u64)>,
    used: usize,
}

impl Seen {
    fn new() -> Self {
        Self { places: vec![(0, 0); 1 << 16], used: 0 }
    }

    fn place(&self, fingerprint: u64) -> usize {
        let mask = self.places.len() - 1;
        let mut at = usize::try_from(fingerprint & mask as u64).unwrap_or(0);
        while self.places[at].0 != 0 && self.places[at].0 != fingerprint {
            at = (at + 1) & mask;
        }
        at
    }

    /// Whether it is new.
    fn insert(&mut self, fingerprint: u64, before: u64) -> bool {
        let at = self.place(fingerprint);
        if self.places[at].0 != 0 {
            return false;
        }
        self.places[at] = (fingerprint, before);
        self.used += 1;
        if self.used * 4 > self.places.len() * 3 {
            let doubled = vec![(0, 0); self.places.len() * 2];
            for entry in std::mem::replace(&mut self.places, doubled) {
                if entry.0 != 0 {
                    let at = self.place(entry.0);
                    self.places[at] = entry;
                }
            }
        }
        true
    }

    /// From the beginning to this state.
    fn path(&self, mut fingerprint: u64) -> Vec<u64> {
        let mut path = Vec::new();
        while fingerprint != 0 {
            path.push(fingerprint);
            fingerprint = self.places[self.place(fingerprint)].1;
        }
        path.reverse();
        path
    }
}

/// Searches all states, level by level.
pub fn search<M: Machine>(machine: &mut M, limits: Limits) -> Found<M::Step, M::State> {
    let begun = Instant::now();
    let mut seen = Seen::new();
    let initial = machine.canonical(&machine.initial());
    seen.insert(machine.fingerprint(&initial), 0);
    let mut level = vec![initial];
    let mut found = Found { states: 1, steps: 0, depth: 0, time: Duration::ZERO, complete: true, violation: None };
    let (mut next_level, mut out) = (Vec::new(), Vec::new());
    'levels: while !level.is_empty() {
        for (i, state) in level.iter().enumerate() {
            if i % 1024 == 0 && (begun.elapsed() > limits.time || seen.used > limits.states) {
                found.complete = false;
                break 'levels;
            }
            let here = machine.fingerprint(state);
            machine.steps(state, &mut out);
            found.steps += out.len() as u64;
            for next in out.drain(..) {
                let canonical = machine.canonical(&next.state);
                let fingerprint = machine.fingerprint(&canonical);
                if let Some(what) = next.violation {
                    let mut path = seen.path(here);
                    path.push(fingerprint);
                    found.depth += 1;
                    found.complete = false;
                    found.violation = Some((what, replay(machine, &path)));
                    break 'levels;
                }
                if seen.insert(fingerprint, here) {
                    next_level.push(canonical);
                }
            }
        }
        std::mem::swap(&mut level, &mut next_level);
        next_level.clear();
        found.depth += u32::from(!level.is_empty());
    }
    found.states = seen.used;
    found.time = begun.elapsed();
    found
}

/// The steps of a path, with names that stay the same along it.
fn replay<M: Machine>(machine: &mut M, path: &[u64]) -> Vec<(M::Step, M::State)> {
    let mut state = machine.initial();
    let mut trace = Vec::new();
    let mut out = Vec::new();
    for (i, wanted) in path.iter().enumerate().skip(1) {
        machine.steps(&state, &mut out);
        let last = i + 1 == path.len();
        let taken = out.iter().find(|next| {
            machine.fingerprint(&machine.canonical(&next.state)) == *wanted && (!last || next.violation.is_some())
        });
        let Some(taken) = taken else { break };
        trace.push((taken.step, taken.state));
        state = taken.state;
        out.clear();
    }
    trace
}
