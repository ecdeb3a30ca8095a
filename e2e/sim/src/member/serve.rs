//! Clients: what the data plane's event loops do with a read, a write and an increment.

use parovoz_dataplane_core::role::Standing;
use parovoz_dataplane_core::types::{Epoch, PrefixUuid, Sequence};
use parovoz_dataplane_core::value;
use parovoz_engine::Family;

use super::prefix::{Entry, Parked, WaitingRead};
use super::{Cx, Out, Process, Timer, prefix_name};
use crate::msg::{CLIENTS, Msg, Request, Response, What};

/// Requests that may wait for the end of a freeze.
const FROZEN: usize = 256;

impl Process {
    pub(super) fn request(&mut self, cx: &mut Cx<'_>, op: u32, request: Request) {
        if self.role.standing() != Standing::Leading || !self.view.is_primary {
            let primary = self.view.primary.as_ref().and_then(Self::node_of);
            return respond(cx, op, Response::Refused { primary });
        }
        let name = prefix_name(request.prefix);
        let served = |uuid| self.role.is_served(uuid);
        let found = self.find(&name);
        match (found, request.what) {
            (Some(uuid), _) if !served(uuid) => respond(cx, op, Response::Refused { primary: None }),
            (Some(uuid), What::Get) => self.read(cx, op, uuid, request.key),
            (None, What::Get) => {
                // That there is none is a read of the catalogue.
                if served(self.catalogue()) && self.may_read(cx) {
                    let (epoch, at) = (self.epoch(), Sequence(0));
                    respond(cx, op, Response::Done { value: 0, epoch, at, prefix: None });
                } else {
                    respond(cx, op, Response::Refused { primary: None });
                }
            }
            (_, What::Put(_) | What::Add) if cx.now_ms < self.role.frozen_until_ms() => {
                if self.frozen.len() < FROZEN {
                    cx.cov.hit("write waited for a freeze");
                    self.frozen.push_back((op, request));
                } else {
                    respond(cx, op, Response::Refused { primary: None });
                }
            }
            (Some(uuid), _) => self.write(cx, op, uuid, request),
            (None, _) => {
                if !served(self.catalogue()) || cx.volume.full {
                    return respond(cx, op, Response::Refused { primary: None });
                }
                match self.create_prefix(cx, &name) {
                    Some(uuid) => self.write(cx, op, uuid, request),
                    None => respond(cx, op, Response::Unknown),
                }
            }
        }
    }

    fn epoch(&self) -> Epoch {
        self.role.led().map_or(Epoch(0), |r| r.epoch)
    }

    fn may_read(&self, cx: &Cx<'_>) -> bool {
        self.role.serving().may_read(cx.now_ms)
    }

    fn value_of(&self, uuid: PrefixUuid, key: u8) -> u64 {
        let mut found = 0;
        if let Some(copy) = self.prefixes.get(&uuid).and_then(|p| p.copy.as_ref()) {
            let _ = copy.db.get_with(Family::Data, &[key], &mut |stored| found = decode(stored));
        }
        found
    }

    fn read(&mut self, cx: &mut Cx<'_>, op: u32, uuid: PrefixUuid, key: u8) {
        let Some(prefix) = self.prefixes.get_mut(&uuid) else { return };
        if let Some(at) = prefix.hot.get(&key).copied().filter(|at| *at > prefix.released)
            && !parovoz_mutant::on("unacknowledged-shown")
        {
            return prefix.reads.push(WaitingRead { at, op, key });
        }
        let at = prefix.applied;
        let value = self.value_of(uuid, key);
        // The answer goes out at the end of the pass; now and then much comes in between.
        if cx.rng.permille(250) {
            cx.out.push(Out::After(20 + cx.rng.below(400), Timer::Answer { op, prefix: uuid, value, at }));
        } else {
            self.answer_read(cx, op, uuid, value, at);
        }
    }

    /// Rule: whether a read may be answered is asked after the data was read.
    pub(super) fn answer_read(&mut self, cx: &mut Cx<'_>, op: u32, uuid: PrefixUuid, value: u64, at: Sequence) {
        if self.role.is_served(uuid) && self.may_read(cx) {
            let epoch = self.epoch();
            respond(cx, op, Response::Done { value, epoch, at, prefix: Some(uuid) });
        } else {
            cx.cov.hit("read refused: no promises");
            respond(cx, op, Response::Refused { primary: None });
        }
    }

    fn write(&mut self, cx: &mut Cx<'_>, op: u32, uuid: PrefixUuid, request: Request) {
        let value = match request.what {
            What::Put(value) => value,
            What::Add => self.value_of(uuid, request.key) + 1,
            What::Get => return,
        };
        if cx.volume.full {
            return respond(cx, op, Response::Refused { primary: None });
        }
        let Some(prefix) = self.prefixes.get_mut(&uuid) else { return };
        let (Some(writer), Some(copy)) = (prefix.writer, prefix.copy.as_ref()) else {
            return respond(cx, op, Response::Refused { primary: None });
        };
        self.builder.put_value(&[request.key], &value.to_le_bytes(), None);
        let (count, bytes) = (self.builder.count(), self.builder.finish());
        let Ok(first) = copy.db.write(&bytes, false) else {
            respond(cx, op, Response::Unknown);
            return cx.out.push(Out::Die("a failed write"));
        };
        cx.check.wrote(cx.now, self.ordinal, uuid, writer.epoch, first, &bytes);
        prefix.publish(Entry { epoch: writer.epoch, first, count, bytes });
        let at = prefix.applied;
        prefix.hot.insert(request.key, at);
        prefix.parked.push_back(Parked { at, epoch: writer.epoch, op, key: request.key, value });
        if parovoz_mutant::on("ack-before-commit") {
            prefix.released = at;
            self.answer_parked(cx, uuid);
        }
        self.touch(cx, uuid);
    }

    /// What may be answered now in one prefix.
    pub(super) fn release(&mut self, cx: &mut Cx<'_>, uuid: PrefixUuid) {
        let Some(reign) = self.role.led() else { return };
        if !self.role.serving().may_acknowledge(cx.now_ms) && !parovoz_mutant::on("lease-not-checked") {
            return;
        }
        let required = reign.required();
        let Some(prefix) = self.prefixes.get_mut(&uuid) else { return };
        let limit = match required {
            0 => Some(prefix.durable),
            _ => self.acks.released(uuid, reign, required),
        };
        let Some(limit) = limit.filter(|l| *l > prefix.released) else { return };
        prefix.released = limit;
        self.answer_parked(cx, uuid);
    }

    fn answer_parked(&mut self, cx: &mut Cx<'_>, uuid: PrefixUuid) {
        let Some(reign) = self.role.led() else { return };
        let Some(prefix) = self.prefixes.get_mut(&uuid) else { return };
        let limit = prefix.released;
        while let Some(parked) = prefix.parked.front().copied().filter(|p| p.at <= limit) {
            prefix.parked.pop_front();
            // Another record may have taken its place meanwhile, where this member leads again with a copy of others.
            if prefix.history.epoch_at(parked.at) != parked.epoch {
                cx.cov.hit("parked write answered: not in the history");
                cx.out.push(Out::Send(CLIENTS, Msg::Response { op: parked.op, response: Response::Unknown }));
                continue;
            }
            cx.check.write_answered(cx.now, self.ordinal, reign, uuid, parked.epoch, parked.at);
            let done = Response::Done { value: parked.value, epoch: parked.epoch, at: parked.at, prefix: Some(uuid) };
            cx.out.push(Out::Send(CLIENTS, Msg::Response { op: parked.op, response: done }));
        }
        prefix.hot.retain(|_, at| *at > limit);
        let (ready, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut prefix.reads).into_iter().partition(|r| r.at <= limit);
        prefix.reads = waiting;
        for read in ready {
            self.read(cx, read.op, uuid, read.key);
        }
    }

    pub(super) fn release_all(&mut self, cx: &mut Cx<'_>) {
        let uuids: Vec<PrefixUuid> = self.prefixes.keys().copied().collect();
        for uuid in uuids {
            self.release(cx, uuid);
        }
    }

    pub(super) fn tick_serve(&mut self, cx: &mut Cx<'_>) {
        if self.view.is_primary {
            self.release_all(cx);
        }
        if cx.now_ms >= self.role.frozen_until_ms() {
            for (op, request) in std::mem::take(&mut self.frozen) {
                self.request(cx, op, request);
            }
        }
        let waits = self.prefixes.values().any(|p| !p.parked.is_empty());
        self.parked_since = if waits { self.parked_since.or(Some(cx.now_ms)) } else { None };
    }

    /// For how long the oldest waiting write has been waiting, about.
    pub fn oldest_wait_ms(&self, now_ms: u64) -> u64 {
        self.parked_since.map_or(0, |since| now_ms.saturating_sub(since))
    }

    pub(super) fn refuse_waiting_reads(&mut self, cx: &mut Cx<'_>) {
        for prefix in self.prefixes.values_mut() {
            for read in prefix.reads.drain(..) {
                respond(cx, read.op, Response::Refused { primary: None });
            }
        }
    }

    pub(super) fn refuse_frozen(&mut self, cx: &mut Cx<'_>) {
        for (op, _) in std::mem::take(&mut self.frozen) {
            respond(cx, op, Response::Refused { primary: None });
        }
    }
}

fn decode(stored: &[u8]) -> u64 {
    let plain = value::decode(stored).ok().and_then(|s| <[u8; 8]>::try_from(s.value).ok());
    plain.map_or(0, u64::from_le_bytes)
}

fn respond(cx: &mut Cx<'_>, op: u32, response: Response) {
    cx.send(CLIENTS, Msg::Response { op, response });
}
