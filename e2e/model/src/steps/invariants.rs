//! The invariants of the design, asked after every step.

use super::{World, all};
use crate::state::{Lead, NONE, Phase, Pod, Reign, State};

impl World {
    pub(super) fn violation(&mut self, before: &State, s: &State) -> Option<&'static str> {
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
        let recorded = || s.reigns.iter().filter(|r| r.phase != Phase::None);
        if recorded().all(|r| r.w > 0) {
            return self.loses(before, s).or_else(|| self.stale(s));
        }
        if recorded().any(|r| r.w > 0)
            && let Some(what) = Self::loses_beside(s)
        {
            return Some(what);
        }
        self.shared(before, s)
    }

    /// Reigns with and without a quorum: until one without is followed by another, nothing that was acknowledged is lost.
    fn loses_beside(s: &State) -> Option<&'static str> {
        for pod in s.pods.iter().filter(|pod| pod.lead == Lead::Served) {
            let epoch = s.epoch(pod.promised);
            let newest = s.reigns.iter().all(|r| !r.served || r.epoch <= epoch);
            let alone = |r: &Reign| r.phase >= Phase::Promoting && r.w == 0 && r.epoch < epoch;
            if newest && s.acked & !pod.log.writes() != 0 && !s.reigns.iter().any(alone) {
                return Some("an acknowledged write is not in a later reign that serves");
            }
        }
        None
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
            // Once a record was restored, of two lines of reigns one comes to nothing: only what serves is held against it.
            let restored = self.restored(s);
            let counts = |r: &Reign| r.phase >= Phase::Promoting && (r.served || !restored);
            let over = |r: &Reign| counts(r) && r.epoch > epoch && here & !r.has != 0;
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

    /// W = 0 somewhere: nobody reads or acknowledges in a reign once a later one does. What a quorum was asked for may be
    /// acknowledged late if the later reign has it.
    fn shared(&mut self, before: &State, s: &State) -> Option<&'static str> {
        let new = s.acked & !before.acked;
        for i in all() {
            let pod = Self::pod(s, i);
            let epoch = s.epoch(pod.promised);
            let (read, acknowledge) = self.serving(s, i);
            let acknowledge = acknowledge && s.reign(pod.promised).is_some_and(|r| r.w == 0);
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
