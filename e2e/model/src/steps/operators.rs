//! What operators do: any number of them, each without a memory.

use super::{Next, Out, Step, World, all, has};
use crate::cores::{Asked, Resume, Said, Whole};
use crate::state::{Copy3, Lead, NONE, Phase, REIGNS, State};

impl World {
    pub(super) fn operator_steps(&mut self, s: &State, out: &mut Out) {
        self.begin(s, out);
        self.learn(s, out);
        for k in 0..REIGNS as u8 {
            let Some(reign) = s.reign(k).copied() else { continue };
            for i in all() {
                // An order does not live as long as it takes to restore a record.
                if reign.forgotten || self.outdated(s, i) {
                    continue;
                }
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
        for w in self.bounds.w.iter().copied() {
            if let Some(next) = self.begun(s, s.epoch(s.current) + 1, w) {
                out.push(Next { step: Step::Begin { reign: next.current, w }, state: next, violation: None });
            }
        }
    }

    /// An epoch is recorded, under an id of its own.
    pub(super) fn begun(&self, s: &State, epoch: u8, w: u8) -> Option<State> {
        let free = s.reigns.iter().position(|r| r.phase == Phase::None).filter(|_| epoch <= self.bounds.epochs)?;
        let used = s.reigns.iter().filter(|r| r.phase != Phase::None && r.epoch == epoch).count();
        let id = u8::try_from(used).ok().filter(|id| *id <= 1)?;
        let mut next = *s;
        let reign = &mut next.reigns[free];
        (reign.epoch, reign.id, reign.phase, reign.present, reign.w) = (epoch, id, Phase::Sealing, 0b111, w);
        next.current = u8::try_from(free).unwrap_or(0);
        Some(next)
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
        if unsealed || mine.lead != Lead::No || mine.copy == Copy3::Damaged || !self.is_source(&source) {
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
        let said = [self.ballot(s, 0), self.ballot(s, 1), self.ballot(s, 2)];
        let olds = self.olds(s);
        for set in 1..8_u8 {
            if all().any(|i| has(set, i) && (said[usize::from(i)].is_none() || self.outdated(s, i))) {
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
}
