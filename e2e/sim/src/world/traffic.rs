//! Clients' requests and answers on their way.

use super::{Ev, SECOND, World};
use crate::msg::{CLIENTS, Msg, Node};

impl World {
    fn service(&self) -> Option<Node> {
        let primary = |p: &&parovoz_operator_core::observed::PodFacts| {
            p.role.as_deref() == Some(parovoz_operator_core::names::ROLE_PRIMARY) && !p.deleting
        };
        self.api.pods.values().find(primary).and_then(|p| Node::try_from(p.ordinal).ok())
    }

    /// Every client begins in a second.
    pub(crate) fn start_clients(&mut self) {
        for client in 0..crate::clients::COUNT {
            self.at(SECOND, Ev::Client(client));
        }
    }

    pub(super) fn client(&mut self, client: usize) {
        let service = self.service();
        let Some(sent) = self.clients.begin(&mut self.rng, self.now, client, service) else { return };
        self.send(CLIENTS, sent.to, Msg::Request { op: sent.op, request: sent.request });
        let patience = 300_000 + self.rng.below(2 * SECOND);
        self.at(patience, Ev::GiveUp(sent.op));
    }

    pub(super) fn next_client(&mut self, client: usize) {
        if !self.clients.quiet {
            let pause = 2_000 + self.rng.below(self.setup.think_us);
            self.at(pause, Ev::Client(client));
        }
    }

    pub(super) fn answered(&mut self, op: u32, response: crate::msg::Response) {
        let Some(client) = self.clients.answered(self.now, op, response) else { return };
        if let crate::msg::Response::Done { epoch, prefix: Some(prefix), .. } = response {
            let record = self.clients.records[op as usize];
            match record.what {
                crate::msg::What::Get => self.check.read_seen(self.now, prefix, record.key, epoch, record.begin),
                _ => self.check.write_seen(self.now, prefix, record.key, epoch),
            }
        }
        self.next_client(client);
    }
}
