//! How what broke is made whole again.

use super::Fault;
use crate::msg::{API, MEMBERS, Node};
use crate::world::{Ev, SECOND, World};

impl World {
    pub(crate) fn mend(&mut self, fault: Fault, node: Node) {
        let everyone: Vec<Node> = (1..=API).collect();
        match fault {
            Fault::Pause => self.go_on(node),
            Fault::Power => {
                self.machines[usize::from(node)].down = false;
                self.container_lost(node);
            }
            Fault::Isolate
            | Fault::Strand
            | Fault::OneWay
            | Fault::CutOperator
            | Fault::CutReplicas
            | Fault::Blackout => {
                let _ = self.cut(node, &everyone, (true, true), false);
                self.release_held();
            }
            Fault::Relieve => {
                self.mend(Fault::Blackout, node);
                let others: Vec<Node> = self.api.pods.keys().filter_map(|o| Node::try_from(*o).ok()).collect();
                for other in others.into_iter().filter(|other| *other != node) {
                    let _ = !self.calm && self.part(Fault::Blackout, other);
                }
            }
            Fault::CutPair => {
                let members: Vec<Node> = (1..MEMBERS).collect();
                let _ = self.cut(node, &members, (true, true), false);
                self.release_held();
            }
            Fault::CutApi => {
                let _ = self.cut(node, &[API], (true, true), false);
            }
            Fault::ApiDown => self.api.up = true,
            Fault::TwoOperators => {
                // Either of the two goes.
                let which = self.rng.index(2);
                let other = 1 - which;
                if self.operators[which].up && self.operators[other].up {
                    self.end_operator(which);
                }
                if which == 0 {
                    self.at(5 * SECOND, Ev::StartOperator { operator: 0 });
                }
            }
            Fault::StaleCache => {
                self.operators[0].frozen = None;
                self.look_soon(0, 10_000);
            }
            Fault::Loss => self.net.loss = 0,
            Fault::Twice => self.net.twice = 0,
            Fault::Overtake => self.net.overtake = 0,
            Fault::Slow => self.net.jitter = 400,
            Fault::DiskHung => {
                if let Some(volume) = self.volume_of(node) {
                    volume.hung = false;
                }
                self.disk_back(node);
            }
            Fault::DiskSlow => {
                if let Some(volume) = self.volume_of(node) {
                    volume.slowest_us = 1_500;
                }
            }
            Fault::DiskFull => {
                if let Some(volume) = self.volume_of(node) {
                    volume.full = false;
                }
            }
            _ => {}
        }
    }

    /// A stranded member loses the API server too, until the whole fault is mended.
    pub(crate) fn sever(&mut self, node: Node) {
        if !self.calm {
            let _ = self.cut(node, &[API], (true, true), true);
        }
    }

    /// Power is back: the kubelet finds that the container is not there any more, and does not know how it ended.
    fn container_lost(&mut self, node: Node) {
        let ordinal = u32::from(node);
        if let Some(pod) = self.api.pods.get(&ordinal).map(|p| p.uid.clone()) {
            let after = 200_000 + self.rng.below(SECOND);
            self.at(after, Ev::StartContainer { ordinal, pod });
        }
    }

    /// Everything that is broken is made whole; nothing breaks any more.
    pub fn heal(&mut self) {
        self.calm = true;
        self.net.heal();
        self.release_held();
        self.api.up = true;
        for volume in self.volumes.values_mut() {
            volume.hung = false;
            volume.full = false;
            volume.slowest_us = 1_500;
        }
        for node in 1..MEMBERS {
            let machine = &mut self.machines[usize::from(node)];
            machine.die_at_effect = None;
            if let Some(process) = machine.running.as_deref_mut() {
                process.die_at_effect = None;
            }
            let (paused, down) = (machine.paused, machine.down);
            machine.down = false;
            self.disk_back(node);
            if paused {
                self.go_on(node);
            }
            if down {
                self.container_lost(node);
            }
        }
        for operator in 0..self.operators.len() {
            let me = &mut self.operators[operator];
            me.frozen = None;
            me.die_at = None;
            me.lose_answer = false;
        }
        self.end_operator(1);
        if self.operators[0].up {
            self.look_soon(0, 10_000);
        } else {
            self.start_operator(0);
        }
    }
}
