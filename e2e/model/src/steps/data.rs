//! What happens to data: writes, streams, acknowledgements, copies.

use crate::cores::Resume;
use crate::search::Next;
use crate::state::{Copy3, Lead, Log, NONE, Pod, State, write_record};

use super::{Out, Step, World, all};

impl World {
    pub(super) fn data_steps(&mut self, s: &State, out: &mut Out) {
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
    pub(super) fn released(&mut self, s: &mut State, p: u8) {
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

    pub(super) fn begin_replacing(pod: &mut Pod, without_floor: bool) {
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
}
