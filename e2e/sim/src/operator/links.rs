//! An operator's connections to the members: who answers, since when not, and what was said last.

use std::rc::Rc;

use parovoz_operator_core::observed::Report;

use super::{Link, SILENT_US, Stage, WATCH_US};
use crate::msg::{Msg, Node};
use crate::world::{Ev, World};

impl World {
    pub(crate) fn watch(&mut self, operator: usize, life: u64) {
        if self.operators[operator].life != life {
            return;
        }
        let me = &self.operators[operator];
        let at = me.frozen.unwrap_or(self.now).min(self.now.saturating_sub(me.cache_lag));
        let view = self.api.view(at);
        let now = me.clock(self.now);
        let node = me.node;
        let mut calls = Vec::new();
        let me = &mut self.operators[operator];
        me.links.retain(|ordinal, _| view.pods.iter().any(|p| p.ordinal == *ordinal));
        let mut lost = false;
        for pod in &view.pods {
            let link = me.links.entry(pod.ordinal).or_default();
            if *link.pod_uid != *pod.uid {
                let pod_uid: Rc<str> = pod.uid.as_str().into();
                *link = Link { pod_uid, report: None, heard: now, down_since: Some(now) };
            }
            if link.down_since.is_none() && now.saturating_sub(link.heard) > SILENT_US {
                link.down_since = Some(link.heard);
                lost = true;
            }
            if link.down_since.is_some() {
                calls.push(pod.ordinal);
            }
        }
        for ordinal in calls {
            if let Ok(to) = Node::try_from(ordinal) {
                self.send(node, to, Msg::Watch);
            }
        }
        if lost {
            self.look_soon(operator, 10_000);
        }
        self.at(WATCH_US, Ev::Watch { operator, life });
    }

    pub(crate) fn contact_lost(&mut self, operator: usize, ordinal: u32) {
        let now = self.operators[operator].clock(self.now);
        let me = &mut self.operators[operator];
        let Some(link) = me.links.get_mut(&ordinal) else { return };
        if link.down_since.is_none() {
            link.down_since = Some(now);
            self.look_soon(operator, 5_000);
        }
    }

    pub(crate) fn operator_message(&mut self, operator: usize, from: Node, msg: Msg) {
        let now = self.operators[operator].clock(self.now);
        let me = &mut self.operators[operator];
        if !me.up {
            return;
        }
        match msg {
            Msg::Report { pod_uid, report } => {
                let Some(link) = me.links.get_mut(&u32::from(from)).filter(|l| l.pod_uid == pod_uid) else { return };
                let news = link.down_since.is_some() || link.report.as_ref().is_none_or(|old| is_news(old, &report));
                link.report = Some(report);
                link.heard = now;
                link.down_since = None;
                if news {
                    self.look_soon(operator, 10_000);
                }
            }
            Msg::Ordered { call, refused } => {
                let Some(pass) = me.pass.as_mut() else { return };
                if !pass.calls.remove(&call) {
                    return;
                }
                pass.failed |= refused.is_some();
                if pass.calls.is_empty() {
                    self.next_stage(operator, Stage::Objects);
                }
            }
            _ => {}
        }
    }
}

/// Whether a report says more than that figures moved.
fn is_news(old: &Report, new: &Report) -> bool {
    let prefixes = |r: &Report| -> Vec<(bool, Option<parovoz_operator_core::quorum::Vote>)> {
        let votes = r.sealed.is_some();
        r.prefixes.iter().map(|p| (p.served, votes.then_some(p.vote))).collect()
    };
    old.process_id != new.process_id
        || old.role != new.role
        || old.phase != new.phase
        || old.reign != new.reign
        || old.sealed != new.sealed
        || old.started_epoch != new.started_epoch
        || old.complete != new.complete
        || old.upstream_connected != new.upstream_connected
        || old.can_acknowledge != new.can_acknowledge
        || prefixes(old) != prefixes(new)
}
