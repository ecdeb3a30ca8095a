//! New copies from an upstream's snapshot, one prefix at a time: what the data plane's `replication/{bootstrap,snapshots}` do.

use std::rc::Rc;

use parovoz_dataplane_core::follower::{BootstrapCause, check_follower, check_upstream};
use parovoz_dataplane_core::history::EpochHistory;
use parovoz_dataplane_core::mutant;
use parovoz_dataplane_core::types::{Position, PrefixUuid};
use parovoz_engine::{Engine, OpenSpec};

use super::prefix::{Copy, Phase, read_history};
use super::{Cx, Out, Process, Timer};
use crate::msg::{Hello, Msg, Node, Snapshot};

/// How long a snapshot is held without a sign of its reader.
const HOLD_MS: u64 = 8_000;
/// How long an answer is waited for.
const PATIENCE_MS: u64 = 3_000;

/// A snapshot that somebody reads.
#[derive(Debug)]
pub(super) struct Held {
    until_ms: u64,
}

impl Held {
    pub(super) fn is_held(&self, now_ms: u64) -> bool {
        now_ms < self.until_ms
    }

    pub(super) fn renew(&mut self, now_ms: u64) -> bool {
        let held = self.is_held(now_ms);
        if held {
            self.until_ms = now_ms + HOLD_MS;
        }
        held
    }
}

/// A copy that waits or is under way.
#[derive(Debug)]
pub(super) struct Boot {
    pub(super) cause: BootstrapCause,
    state: State,
    failures: u32,
    attempt: u64,
}

#[derive(Debug)]
enum State {
    Waiting { until_ms: u64 },
    Asked { call: u64, until_ms: u64 },
    Fetching { snapshot: Snapshot },
    Confirming { call: u64, until_ms: u64, copy: Copy, history: EpochHistory },
}

impl Boot {
    pub(super) fn is_under_way(&self) -> bool {
        !matches!(self.state, State::Waiting { .. })
    }
}

impl Process {
    /// A prefix is to be copied anew.
    pub(super) fn bootstrap(&mut self, cx: &mut Cx<'_>, uuid: PrefixUuid, cause: BootstrapCause) {
        cx.cov.hit(match cause {
            BootstrapCause::Missing => "bootstrap: missing",
            BootstrapCause::Gap { .. } => "bootstrap: gap",
            BootstrapCause::Diverged { .. } => "bootstrap: diverged",
            BootstrapCause::Corrupt { .. } => "bootstrap: corrupt",
        });
        if let Some(prefix) = self.prefixes.get_mut(&uuid) {
            prefix.phase = Phase::Stopped;
            let me = self.ordinal;
            let name = &prefix.name;
            cx.trace.say(cx.now, || format!("member {me}: {name} is to be copied anew: {cause:?}"));
        }
        if let Some(boot) = self.boots.get_mut(&uuid) {
            if !matches!(boot.cause, BootstrapCause::Diverged { .. }) {
                boot.cause = cause;
            }
        } else {
            let boot = Boot { cause, state: State::Waiting { until_ms: 0 }, failures: 0, attempt: 0 };
            self.boots.insert(uuid, boot);
        }
        self.report_due = true;
        self.tick_boots(cx);
    }

    /// Begins the next copy that is due; ends one that is not answered.
    pub(super) fn tick_boots(&mut self, cx: &mut Cx<'_>) {
        let late: Vec<PrefixUuid> = self
            .boots
            .iter()
            .filter(|(_, b)| match &b.state {
                State::Asked { until_ms, .. } | State::Confirming { until_ms, .. } => cx.now_ms > *until_ms,
                _ => false,
            })
            .map(|(uuid, _)| *uuid)
            .collect();
        for uuid in late {
            self.boot_failed(cx, uuid);
        }
        if self.boots.values().any(Boot::is_under_way) || !self.effects.is_empty() {
            return;
        }
        let Some(follow) = self.follow.as_ref().filter(|f| f.is_connected()) else { return };
        let Some(node) = Self::node_of(&follow.upstream) else { return };
        let expected = follow.upstream.data_uuid;
        let catalogue = self.catalogue();
        let pulled = |uuid: &PrefixUuid| follow.pull.as_ref().is_none_or(|upto| upto.contains_key(uuid));
        let due = self.boots.iter().filter(|(uuid, b)| {
            pulled(uuid) && matches!(b.state, State::Waiting { until_ms } if until_ms <= cx.now_ms)
        });
        let Some(uuid) = due.map(|(uuid, _)| *uuid).min_by_key(|uuid| *uuid != catalogue) else { return };
        let Some(prefix) = self.prefixes.get_mut(&uuid) else {
            self.boots.remove(&uuid);
            return;
        };
        prefix.phase = Phase::Bootstrapping;
        let floor = prefix.at().max(prefix.upstream_latest);
        if floor > Position::ZERO && !mutant::on("floor-not-stored") {
            self.store_floor(cx, uuid, Some(floor));
        }
        let call = self.fresh_id();
        if let Some(boot) = self.boots.get_mut(&uuid) {
            boot.state = State::Asked { call, until_ms: cx.now_ms + PATIENCE_MS };
        }
        let hello = self.hello(expected, false);
        cx.send(node, Msg::OpenSnapshot { call, hello, prefix: uuid });
        self.report_due = true;
    }

    fn boot_failed(&mut self, cx: &mut Cx<'_>, uuid: PrefixUuid) {
        cx.cov.hit("bootstrap failed");
        let Some(boot) = self.boots.get_mut(&uuid) else { return };
        boot.failures = (boot.failures + 1).min(6);
        let pause = (100 << boot.failures) + cx.rng.below(200);
        let state = std::mem::replace(&mut boot.state, State::Waiting { until_ms: cx.now_ms + pause });
        if let State::Confirming { copy, .. } = state {
            discard(cx, copy);
        }
        if let Some(prefix) = self.prefixes.get_mut(&uuid) {
            prefix.phase = Phase::Stopped;
        }
    }

    pub(super) fn stop_boots(&mut self, cx: &mut Cx<'_>) {
        for (_, boot) in std::mem::take(&mut self.boots) {
            if let State::Confirming { copy, .. } = boot.state {
                discard(cx, copy);
            }
        }
        for prefix in self.prefixes.values_mut() {
            if matches!(prefix.phase, Phase::Bootstrapping | Phase::Stopped) {
                prefix.phase = Phase::Open;
            }
        }
    }

    // ---- The source. ----

    pub(super) fn open_snapshot(&mut self, cx: &mut Cx<'_>, from: Node, call: u64, hello: &Hello, uuid: PrefixUuid) {
        let answer = self.make_snapshot(cx, hello, uuid);
        cx.send(from, Msg::Snapshot { call, answer });
    }

    fn make_snapshot(&mut self, cx: &mut Cx<'_>, hello: &Hello, uuid: PrefixUuid) -> Result<Snapshot, String> {
        let own = self.own(None);
        check_follower(&own, &hello.peer).map_err(|e| e.to_string())?;
        let id = self.fresh_id();
        let prefix = self.prefixes.get(&uuid).ok_or("there is no such prefix here")?;
        let copy = prefix.copy.as_ref().ok_or("there is no copy of it here")?;
        let whole = !matches!(prefix.phase, Phase::Bootstrapping | Phase::Stopped);
        if !whole || (self.below_floor(prefix) && !mutant::on("source-below-floor")) {
            return Err("it is not complete here".to_owned());
        }
        copy.db.flush().map_err(|e| e.to_string())?;
        let held_after = prefix.at();
        let dir = cx.volume.dir.join(format!("snapshot-{id}"));
        copy.db.checkpoint(&dir).map_err(|e| e.to_string())?;
        self.snapshots.insert(id, Held { until_ms: cx.now_ms + HOLD_MS });
        let hello = self.hello(Some(hello.peer.data_uuid), true);
        Ok(Snapshot { id, dir: Rc::from(dir.as_path()), held_after, bytes: copy.db.disk_bytes(), hello })
    }

    // ---- The reader. ----

    pub(super) fn snapshot_answer(&mut self, cx: &mut Cx<'_>, call: u64, answer: Result<Snapshot, String>) {
        let asked = |b: &Boot| matches!(b.state, State::Asked { call: c, .. } if c == call);
        let Some(uuid) = self.boots.iter().find(|(_, b)| asked(b)).map(|(uuid, _)| *uuid) else { return };
        let wanted = self.follow.as_ref().and_then(|f| f.upstream.data_uuid);
        let snapshot = answer.ok().filter(|s| check_upstream(&self.own(wanted), &s.hello.peer).is_ok());
        let Some(snapshot) = snapshot else { return self.boot_failed(cx, uuid) };
        let takes = 2_000 + snapshot.bytes * 20 + cx.rng.below(300_000);
        if let Some(boot) = self.boots.get_mut(&uuid) {
            boot.attempt += 1;
            let attempt = boot.attempt;
            boot.state = State::Fetching { snapshot };
            cx.out.push(Out::After(takes, Timer::Fetched { prefix: uuid, attempt }));
        }
    }

    pub(super) fn fetched(&mut self, cx: &mut Cx<'_>, uuid: PrefixUuid, attempt: u64) {
        let Some(boot) = self.boots.get_mut(&uuid).filter(|b| b.attempt == attempt) else { return };
        let State::Fetching { snapshot } = &boot.state else { return };
        let snapshot = snapshot.clone();
        let node = self.follow.as_ref().and_then(|f| Self::node_of(&f.upstream));
        let (generation, dir) = cx.volume.next_dir();
        // Another reader may have the files: the source makes them for each.
        let here = cx.engine.rename(&snapshot.dir, &dir).is_ok() && !cx.volume.full;
        let opened = if here { cx.engine.open(&dir, &OpenSpec::default()).ok() } else { None };
        let verified = opened.and_then(|db| {
            let history = read_history(&*db)?;
            let held = snapshot.held_after;
            let good = db.latest() >= held.sequence && history.epoch_at(held.sequence) == held.epoch;
            good.then_some((Copy { generation, dir: dir.clone(), db }, history))
        });
        let (Some((copy, history)), Some(node)) = (verified, node) else {
            let _ = cx.engine.destroy(&dir);
            return self.boot_failed(cx, uuid);
        };
        let call = self.fresh_id();
        if let Some(boot) = self.boots.get_mut(&uuid) {
            boot.state = State::Confirming { call, until_ms: cx.now_ms + PATIENCE_MS, copy, history };
        }
        cx.send(node, Msg::KeepSnapshot { call, snapshot: snapshot.id });
    }

    /// The hold outlived the copy, or not.
    pub(super) fn snapshot_kept(&mut self, cx: &mut Cx<'_>, call: u64, held: bool) {
        let waits = |b: &Boot| matches!(&b.state, State::Confirming { call: c, .. } if *c == call);
        let Some(uuid) = self.boots.iter().find(|(_, b)| waits(b)).map(|(uuid, _)| *uuid) else { return };
        if !held {
            return self.boot_failed(cx, uuid);
        }
        let Some(boot) = self.boots.remove(&uuid) else { return };
        let State::Confirming { copy, history, .. } = boot.state else { return };
        let Some(prefix) = self.prefixes.get_mut(&uuid) else { return discard(cx, copy) };
        cx.volume.current.insert(uuid, (prefix.name.clone(), copy.generation));
        let old = prefix.install(copy, history);
        prefix.phase = Phase::Open;
        let (me, at) = (self.ordinal, prefix.at());
        let name = prefix.name.clone();
        cx.trace.say(cx.now, || format!("member {me}: a new copy of {name} is in place at {at}"));
        cx.check.replaced(cx.now, self.ordinal, prefix);
        if let Some(old) = old {
            discard(cx, old);
        }
        cx.cov.hit("bootstrap done");
        if uuid == self.catalogue() {
            self.open_listed(cx);
        }
        self.report_due = true;
        self.restart_acks(cx);
        self.reconcile(cx);
        self.tick_boots(cx);
    }
}

fn discard(cx: &mut Cx<'_>, copy: Copy) {
    let Copy { dir, db, .. } = copy;
    drop(db);
    let _ = cx.engine.destroy(&dir);
}
