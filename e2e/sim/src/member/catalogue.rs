//! The catalogue: which prefixes there are. What the data plane's `store/catalogue` does.

use std::collections::BTreeSet;

use parovoz_dataplane_core::batch::{self, DATA_FAMILY, Record};
use parovoz_dataplane_core::history::{EpochHistory, EpochRecord};
use parovoz_dataplane_core::types::{PrefixName, PrefixUuid};
use parovoz_dataplane_core::value;
use parovoz_engine::{Direction, Engine, Family, OpenSpec};

use super::prefix::{Copy, Entry, Phase, Prefix, read_history};
use super::{Cx, Out, Process};

impl Process {
    /// Opens everything that is on the volume.
    pub(super) fn open_all(&mut self, cx: &mut Cx<'_>) {
        let catalogue = self.catalogue();
        if !cx.volume.current.contains_key(&catalogue) {
            self.loading = true;
            return;
        }
        self.expect_catalogue();
        self.open_copy(cx, catalogue);
        self.open_listed(cx, false);
    }

    /// Adds the catalogue without a copy, so that following bootstraps it.
    pub(super) fn expect_catalogue(&mut self) {
        let uuid = self.catalogue();
        self.prefixes.entry(uuid).or_insert_with(|| Prefix::new(PrefixName::catalogue(), uuid));
    }

    /// Makes an empty catalogue on a blank volume, for the first reign.
    pub(super) fn create_blank(&mut self, cx: &mut Cx<'_>) {
        self.expect_catalogue();
        let uuid = self.catalogue();
        self.create_copy(cx, uuid);
        self.loading = false;
    }

    fn create_copy(&mut self, cx: &mut Cx<'_>, uuid: PrefixUuid) {
        if cx.volume.current.contains_key(&uuid) {
            return self.open_copy(cx, uuid);
        }
        let Some(prefix) = self.prefixes.get_mut(&uuid) else { return };
        let (generation, dir) = cx.volume.next_dir();
        let Ok(db) = cx.engine.open(&dir, &OpenSpec { sequence_offset: 0, create: true }) else { return };
        cx.volume.current.insert(uuid, (prefix.name.clone(), generation));
        prefix.install(Copy { generation, dir, db }, EpochHistory::default());
    }

    fn open_copy(&mut self, cx: &mut Cx<'_>, uuid: PrefixUuid) {
        let Some((_, generation)) = cx.volume.current.get(&uuid).cloned() else { return };
        let dir = cx.volume.generation_dir(generation);
        let Some(prefix) = self.prefixes.get_mut(&uuid) else { return };
        let Ok(db) = cx.engine.open(&dir, &OpenSpec::default()) else { return };
        let Some(history) = read_history(&*db) else {
            return cx.check.fail(cx.now, format!("member {}: history of {} can't be read", self.ordinal, prefix.name));
        };
        prefix.install(Copy { generation, dir, db }, history);
        prefix.phase = Phase::Open;
    }

    /// Adds and opens what the catalogue lists. What it does not list is set aside if it replaced one that had `diverged`: its
    /// creation never was in the store. Else it may just be behind, and its stream lists it yet.
    pub(super) fn open_listed(&mut self, cx: &mut Cx<'_>, diverged: bool) {
        let Some(catalogue) = self.prefixes.get(&self.catalogue()).and_then(|p| p.copy.as_ref()) else { return };
        let mut listed = Vec::new();
        let _ = catalogue.db.snapshot().scan(Family::Data, b"", b"", Direction::Forward, &mut |key, stored| {
            listed.extend(read_record(key, stored));
            true
        });
        for (name, uuid) in &listed {
            self.prefixes.entry(*uuid).or_insert_with(|| Prefix::new(name.clone(), *uuid));
            if self.prefixes.get(uuid).is_some_and(|p| p.copy.is_none()) {
                self.open_copy(cx, *uuid);
            }
        }
        let mine = self.catalogue();
        let strange = |uuid: &PrefixUuid| *uuid != mine && !listed.iter().any(|(_, l)| l == uuid);
        self.unlisted = self.prefixes.keys().copied().filter(strange).collect();
        if diverged {
            let on_volume = cx.volume.current.keys().copied().filter(strange);
            for uuid in on_volume.chain(self.unlisted.clone()).collect::<BTreeSet<_>>() {
                cx.cov.hit("creation undone");
                self.set_aside(cx, uuid);
            }
        }
        self.loading = false;
    }

    /// A prefix that is not in the catalogue any more leaves; its files are kept apart.
    /// If the catalogue that made it wins after all, it begins anew below what this member had acknowledged.
    fn set_aside(&mut self, cx: &mut Cx<'_>, uuid: PrefixUuid) {
        if let Some(end) = self.prefixes.get(&uuid).filter(|p| p.copy.is_some()).map(Prefix::at) {
            self.store_floor(cx, uuid, Some(end));
        }
        if let Some(prefix) = self.prefixes.remove(&uuid) {
            let (me, name) = (self.ordinal, prefix.name);
            cx.trace.say(cx.now, || format!("member {me}: sets {name} {uuid} aside"));
            for parked in prefix.parked {
                cx.send(
                    crate::msg::CLIENTS,
                    crate::msg::Msg::Response { op: parked.op, response: crate::msg::Response::Unknown },
                );
            }
        }
        self.boots.remove(&uuid);
        self.unlisted.remove(&uuid);
        cx.volume.current.remove(&uuid);
    }

    /// What only the record of a drop may do, for the bug that is planted there: the copy goes, and what it acknowledged.
    pub(super) fn take_for_deleted(&mut self, cx: &mut Cx<'_>, uuid: PrefixUuid) {
        if uuid != self.catalogue() {
            self.set_aside(cx, uuid);
            self.store_floor(cx, uuid, None);
        }
    }

    /// A batch of the catalogue was applied on this replica.
    pub(super) fn catalogue_applied(&mut self, cx: &mut Cx<'_>, bytes: &[u8]) {
        let Ok(records) = batch::records(bytes) else { return };
        let mut created = Vec::new();
        for record in records.flatten() {
            if let Record::Put { family: DATA_FAMILY, key, value } = record {
                created.extend(read_record(key, value));
            }
        }
        for (name, uuid) in created {
            self.unlisted.remove(&uuid);
            self.prefixes.entry(uuid).or_insert_with(|| Prefix::new(name, uuid));
            if self.prefixes.get(&uuid).is_some_and(|p| p.copy.is_none()) {
                self.create_copy(cx, uuid);
            }
        }
        self.loading = false;
        self.report_due = true;
        self.reconcile(cx);
    }

    /// A write names a prefix that there is not: it is made. The database comes first and the record second.
    pub(super) fn create_prefix(&mut self, cx: &mut Cx<'_>, name: &PrefixName) -> Option<PrefixUuid> {
        let reign = self.role.led()?.to_ref();
        let uuid = PrefixUuid(cx.rng.uuid());
        self.prefixes.insert(uuid, Prefix::new(name.clone(), uuid));
        self.create_copy(cx, uuid);
        let prefix = self.prefixes.get_mut(&uuid)?;
        let copy = prefix.copy.as_ref()?;
        let record = EpochRecord { epoch: reign.epoch, reign_id: reign.reign_id, start: copy.db.latest().next() };
        prefix.history.push(record).ok()?;
        self.builder.put_meta(&record.key(), &record.value());
        let (count, bytes) = (self.builder.count(), self.builder.finish());
        let first = copy.db.write(&bytes, false).ok()?;
        // The shell syncs it before it goes on.
        copy.db.sync().ok()?;
        cx.check.wrote(cx.now, self.ordinal, uuid, reign.epoch, first, &bytes);
        prefix.publish(Entry { epoch: reign.epoch, first, count, bytes });
        prefix.durable = prefix.applied;
        prefix.writer = Some(reign);
        prefix.phase = Phase::Serving;
        cx.cov.hit("prefix created");
        let me = self.ordinal;
        cx.trace.say(cx.now, || format!("member {me}: creates {name} as {uuid}"));
        let entry = serde_json::json!({ "prefixUuid": uuid }).to_string();
        let catalogue = self.catalogue();
        self.builder.put_value(format!("p/{name}").as_bytes(), entry.as_bytes(), None);
        let (count, bytes) = (self.builder.count(), self.builder.finish());
        let listing = self.prefixes.get_mut(&catalogue)?;
        let Ok(first) = listing.copy.as_ref()?.db.write(&bytes, false) else {
            cx.out.push(Out::Die("a failed write"));
            return None;
        };
        let _ = listing.copy.as_ref()?.db.sync();
        cx.check.wrote(cx.now, self.ordinal, catalogue, reign.epoch, first, &bytes);
        listing.publish(Entry { epoch: reign.epoch, first, count, bytes });
        listing.durable = listing.applied;
        self.push_streams(cx, catalogue);
        self.release(cx, catalogue);
        self.report_due = true;
        Some(uuid)
    }

    pub(super) fn find(&self, name: &PrefixName) -> Option<PrefixUuid> {
        self.prefixes.values().find(|p| p.name == *name).map(|p| p.uuid)
    }
}

fn read_record(key: &[u8], stored: &[u8]) -> Option<(PrefixName, PrefixUuid)> {
    let name = std::str::from_utf8(key).ok()?.strip_prefix("p/")?;
    let entry: serde_json::Value = serde_json::from_slice(value::decode(stored).ok()?.value).ok()?;
    Some((PrefixName::new(name).ok()?, entry.get("prefixUuid")?.as_str()?.parse().ok()?))
}
