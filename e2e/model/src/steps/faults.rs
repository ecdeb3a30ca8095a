//! Time that passes, and what goes wrong.

use crate::search::Next;
use crate::state::{Copy3, Heard, Lead, Log, NONE, Phase, Pod, State};

use super::{Out, Step, World, all, has};

impl World {
    pub(super) fn beat(&mut self, s: &State, p: u8, r: u8, out: &mut Out) {
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

    pub(super) fn renew(&mut self, s: &State, p: u8, out: &mut Out) {
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

    pub(super) fn lease_steps(&self, s: &State, out: &mut Out) {
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

    pub(super) fn fault_steps(&self, s: &State, out: &mut Out) {
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
}
