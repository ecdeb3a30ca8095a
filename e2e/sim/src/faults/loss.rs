//! What does not come back by itself: volumes that are lost for good, and a decision record that is older than it was.

use std::collections::BTreeSet;

use parovoz_api::{ReignPhase, StoreReignSpec};

use crate::member::Process;
use crate::member::prefix::Prefix;
use crate::msg::{MEMBERS, Node};
use crate::world::World;

/// A reign whose members a decision to come must ask.
struct Asked {
    primary: String,
    members: Vec<String>,
    w: usize,
}

impl Asked {
    /// Whether those who are left can decide about it: its primary, or n - W of its replicas. The word of a primary that is
    /// not to lead any more counts for nothing here: once it follows, what it had beyond is gone, and so may be its vote.
    fn is_decided_by(&self, left: &BTreeSet<String>, leads: &str) -> bool {
        let replicas = self.members.iter().filter(|m| **m != self.primary && left.contains(*m)).count();
        (self.primary == leads && left.contains(leads)) || replicas + self.w >= self.members.len()
    }
}

/// Every reign that may have acknowledged writes which no later Serving one stands for.
fn asked(spec: &StoreReignSpec) -> Vec<Asked> {
    let w = |w: i32| usize::try_from(w).unwrap_or(0);
    let current = &spec.current;
    let mut found = Vec::new();
    if matches!(current.phase, ReignPhase::Promoting | ReignPhase::Serving) {
        let members = current.members.iter().map(|m| m.data_uuid.clone()).collect();
        found.push(Asked { primary: current.primary.clone(), members, w: w(current.min_sync_replicas) });
    }
    if current.phase == ReignPhase::Serving {
        return found;
    }
    for past in &spec.history {
        if matches!(past.phase, ReignPhase::Promoting | ReignPhase::Serving) {
            let members = past.members.clone();
            found.push(Asked { primary: past.primary.clone(), members, w: w(past.min_sync_replicas) });
        }
        if past.phase == ReignPhase::Serving {
            break;
        }
    }
    found
}

impl World {
    /// Lost for good, where the store promises to survive it.
    pub(super) fn lose_volume(&mut self, node: Node) -> bool {
        let ordinal = u32::from(node);
        let Some(pod) = self.api.pods.get(&ordinal).filter(|_| self.may_lose(node)) else { return false };
        let (uid, claim) = (pod.uid.clone(), pod.claim_uid.clone().unwrap_or_default());
        let Some(volume) = self.volumes.remove(&claim) else { return false };
        self.end_process(node, false);
        self.wipe(&volume);
        self.note_loss();
        self.delete_claim(ordinal, &claim);
        self.delete_pod(ordinal, &uid, true);
        true
    }

    fn note_loss(&mut self) {
        self.losses_open += 1;
        if self.losses_open > 1 {
            self.cov.hit("a second volume lost");
        }
        match self.api.reign.as_ref().map(|r| r.spec.current.phase) {
            Some(ReignPhase::Sealing) => self.cov.hit("volume lost while sealing"),
            Some(ReignPhase::Promoting) => self.cov.hit("volume lost while promoting"),
            _ => {}
        }
    }

    /// A volume vanishes in the middle of a change of reigns.
    pub(crate) fn vanish(&mut self) {
        let phase = self.api.reign.as_ref().map(|r| r.spec.current.phase);
        let between = matches!(phase, Some(ReignPhase::Sealing | ReignPhase::Promoting));
        let node = self.victim();
        if between && !self.calm && self.lose_volume(node) {
            self.struck(super::Fault::VolumeLost, node);
        }
    }

    /// Never more than W members at a time, and only while those who are left can decide about every reign that may have
    /// acknowledged something: others may just be copied anew, and know nothing for certain.
    fn may_lose(&self, node: Node) -> bool {
        let Some(reign) = &self.api.reign else { return false };
        let asked = asked(&reign.spec);
        let least = asked.iter().map(|a| a.w).min().unwrap_or(0);
        if least == 0 {
            return self.may_lose_without_quorum(node);
        }
        // A restored record may lack reigns, and the volume of one that it lacks must not go before it was heard.
        let knows_all = !self.check.restored || !self.whole_members().is_empty();
        let left: BTreeSet<String> =
            (1..MEMBERS).filter(|n| *n != node).filter_map(|n| self.votes_for_all(n)).collect();
        let leads = &reign.spec.current.primary;
        self.losses_open < least && knows_all && asked.iter().all(|a| a.is_decided_by(&left, leads))
    }

    /// Where no replica is waited for: a replica's while the primary has everything, the primary's while all have.
    fn may_lose_without_quorum(&self, node: Node) -> bool {
        let whole = self.whole_members();
        let listed = self.api.reign.as_ref().map_or(0, |r| r.spec.current.members.len());
        let leads = self.leader() == Some(node);
        let spared = if leads { whole.len() == listed && whole.len() >= 2 } else { !whole.is_empty() };
        self.losses_open == 0 && spared && (!leads || whole.contains(&node))
    }

    /// The identity of a running member that knows of every prefix there is, and has a vote in each that it keeps: it has nothing
    /// that the next primary lacks, for then it would copy anew.
    fn votes_for_all(&self, node: Node) -> Option<String> {
        let process = self.process(node)?;
        let primary = self.api.reign.as_ref().map(|r| r.spec.current.primary.as_str()).unwrap_or_default();
        let leads = (1..MEMBERS).filter_map(|n| self.process(n)).find(|p| p.me.to_string() == primary);
        let keeps = |mine: &Prefix| {
            leads.is_none_or(|leads| {
                let theirs = leads.prefixes.get(&mine.uuid);
                theirs.is_some_and(|t| {
                    mine.applied <= t.applied && t.history.epoch_at(mine.applied) == mine.history.epoch_at(mine.applied)
                })
            })
        };
        let known = |uuid| {
            let mine = process.prefixes.get(uuid);
            mine.is_some_and(|p| p.copy.is_some() && process.has_known_vote(p) && keeps(p))
        };
        let everywhere = (1..MEMBERS).filter_map(|n| self.process(n)).flat_map(|p: &Process| p.prefixes.keys());
        let all: BTreeSet<_> = everywhere.collect();
        (!all.is_empty() && all.into_iter().all(known)).then(|| process.me.to_string())
    }

    /// Members of the present reign that are up, whole and close to their primary; the primary among them if it serves. None
    /// before the record says so: until then the reign before may be asked for its members.
    #[must_use]
    pub fn whole_members(&self) -> Vec<Node> {
        let Some(reign) = &self.api.reign else { return Vec::new() };
        let Some(leader) = self.leader().and_then(|n| self.process(n)) else { return Vec::new() };
        if leader.role.led().map(|r| r.reign_id.to_string()).as_deref() != Some(&reign.spec.current.reign_id)
            || !leader.role.is_all_served()
            || reign.spec.current.phase != ReignPhase::Serving
        {
            return Vec::new();
        }
        let whole = |node: &Node| {
            let Some(process) = self.process(*node) else { return false };
            let me = process.me.to_string();
            reign.spec.current.members.iter().any(|m| m.data_uuid == me)
                && leader.prefixes.values().all(|p| {
                    let mine = process.prefixes.get(&p.uuid);
                    mine.is_some_and(|m| m.copy.is_some() && m.durable >= p.released && process.has_known_vote(m))
                })
        };
        (1..MEMBERS).filter(whole).collect()
    }

    /// The decision record is restored from a backup that is not much older. Only where a quorum keeps two reigns of the same
    /// epoch from serving, and only while the store has the members that it had then: without the volumes of those a person
    /// would have to decide.
    pub(super) fn restore_record(&mut self) -> bool {
        let now = self.api.version_of_reign();
        let Some(backup) = self.rng.pick(&self.api.backups).cloned() else { return false };
        let Some(present) = self.api.reign.as_ref() else { return false };
        let members =
            |spec: &StoreReignSpec| spec.current.members.iter().map(|m| m.data_uuid.clone()).collect::<BTreeSet<_>>();
        let older = backup.current.epoch < present.spec.current.epoch;
        if !self.setup.never_loses() || self.losses_open > 0 || !older || members(&backup) != members(&present.spec) {
            return false;
        }
        self.api.backups.clear();
        self.check.restored = true;
        let done = self.api.swap(now.as_deref(), backup);
        self.look_soon(0, 10_000);
        done
    }
}
