//! A record that was restored from a backup, and knows less than the members.

use super::{Next, Out, Step, World};
use crate::state::{Lead, Phase, State};

impl World {
    /// Whether a reign is unknown to the record though it may have served since the last that the record calls Serving.
    fn is_unknown(s: &State, k: u8) -> bool {
        let known = s.reigns.iter().filter(|r| r.phase == Phase::Serving && !r.forgotten);
        let served = known.map(|r| r.epoch).max().unwrap_or(0);
        s.reign(k).is_some_and(|reign| reign.forgotten && reign.epoch > served)
    }

    /// Whether what this member says shows that the record is outdated: nothing is ordered then, nor decided.
    pub(super) fn outdated(&self, s: &State, i: u8) -> bool {
        let pod = Self::pod(s, i);
        let shows = Self::is_unknown(s, pod.promised) || Self::is_unknown(s, pod.sealed);
        shows
            && s.pods.iter().any(|pod| Self::is_unknown(s, pod.promised))
            && !self.off("restored-record-asks-everyone")
    }

    /// Every volume has answered: what they promised is put on record. If the highest serves it is the present one then; else a
    /// reign begins that asks for the votes of both lines.
    pub(super) fn learn(&self, s: &State, out: &mut Out) {
        let whole: Vec<u8> = s.pods.iter().map(|pod| pod.promised).filter(|k| Self::is_unknown(s, *k)).collect();
        let Some(newest) = whole.iter().copied().max_by_key(|k| s.epoch(*k)) else { return };
        let mut next = *s;
        for k in &whole {
            let reign = &mut next.reigns[usize::from(*k)];
            (reign.phase, reign.forgotten) = (Phase::Promoting, false);
        }
        let serves = s.pods.iter().any(|pod| pod.promised == newest && pod.lead == Lead::Served);
        if s.epoch(newest) > s.epoch(s.current) && serves {
            if s.reigns[usize::from(newest)].present != 0b111 {
                return;
            }
            next.reigns[usize::from(newest)].phase = Phase::Serving;
            next.current = newest;
        } else {
            let after = s.epoch(newest).max(s.epoch(s.current));
            let Some(begun) = self.begun(&next, after + 1, s.reigns[usize::from(s.current)].w) else { return };
            next = begun;
        }
        out.push(Next { step: Step::Learn { reign: newest }, state: next, violation: None });
    }
}
