//! New copies from snapshots of the upstream or of another member, one prefix at a time: what the data plane's
//! `replication/{bootstrap,snapshots}` do.

use std::rc::Rc;

use parovoz_dataplane_core::follower::{BootstrapCause, check_follower, check_upstream};
use parovoz_dataplane_core::history::EpochHistory;
use parovoz_dataplane_core::member::Endpoint;
use parovoz_dataplane_core::types::{Position, PrefixUuid};
use parovoz_engine::{Engine, OpenSpec};

use super::prefix::{Copy, Phase, Prefix, read_history};
use super::{Cx, Out, Process, Timer};
use crate::msg::{Hello, Msg, Node, Snapshot, Wanted};

/// How long a snapshot is held without a sign of its reader.
const HOLD_MS: u64 = 8_000;
/// Failures of one bootstrap after which only the upstream is asked.
const TRUST: u32 = 3;
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
    Asked { call: u64, until_ms: u64, whom: Endpoint, what: Asked },
    Fetching { snapshot: Snapshot, hold: Hold },
    Confirming { call: u64, until_ms: u64, copy: Copy, history: EpochHistory },
}

/// What is asked before a byte is copied.
#[derive(Debug)]
enum Asked {
    /// The files.
    Files,
    /// The upstream, to hold what follows the files of another member.
    Hold(Snapshot),
    /// The primary, where it is: the copy counts from there on.
    Primary(Snapshot, Hold),
}

/// What keeps what follows the copy: at the member that is streamed from.
#[derive(Debug, Clone, Copy)]
struct Hold {
    node: Node,
    id: u64,
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
        let catalogue = self.catalogue();
        let pulled = |uuid: &PrefixUuid| follow.pull.as_ref().is_none_or(|upto| upto.contains_key(uuid));
        let due = self.boots.iter().filter(|(uuid, b)| {
            pulled(uuid) && matches!(b.state, State::Waiting { until_ms } if until_ms <= cx.now_ms)
        });
        let Some(uuid) = due.map(|(uuid, _)| *uuid).min_by_key(|uuid| *uuid != catalogue) else { return };
        let Some(whom) = self.copies_from(uuid) else { return };
        let Some(prefix) = self.prefixes.get_mut(&uuid) else {
            self.boots.remove(&uuid);
            return;
        };
        prefix.phase = Phase::Bootstrapping;
        self.raise_floor(cx, uuid, Position::ZERO);
        self.ask(cx, uuid, whom, Asked::Files);
        self.report_due = true;
    }

    /// Whom a copy is taken from first. Under a pull the named member alone is sure to have exactly what is missing.
    fn copies_from(&self, uuid: PrefixUuid) -> Option<Endpoint> {
        let follow = self.follow.as_ref()?;
        let trusted = follow.pull.is_none() && self.boots.get(&uuid).is_some_and(|b| b.failures < TRUST);
        let source = self.source.as_ref().filter(|s| trusted && s.data_uuid != Some(self.me));
        Some(source.unwrap_or(&follow.upstream).clone())
    }

    /// The new copy counts only from the higher of this and of this member's own position on; where that may not be known, from
    /// the upstream's too.
    fn raise_floor(&mut self, cx: &mut Cx<'_>, uuid: PrefixUuid, at_least: Position) {
        let Some(prefix) = self.prefixes.get(&uuid) else { return };
        let upstream = if self.knows_its_end(prefix) { prefix.at() } else { prefix.upstream_latest };
        let floor = prefix.at().max(upstream).max(at_least);
        if floor > Position::ZERO && !parovoz_mutant::on("floor-not-stored") {
            self.store_floor(cx, uuid, Some(floor));
        }
    }

    /// Whether a copy that is replaced under a seal says itself all that this member acknowledged.
    fn knows_its_end(&self, prefix: &Prefix) -> bool {
        let pulls = self.follow.as_ref().is_some_and(|f| f.pull.is_some());
        let cause = self.boots.get(&prefix.uuid).map(|boot| &boot.cause);
        pulls && cause.is_some_and(BootstrapCause::replaces_a_whole_copy) && prefix.copy.is_some()
    }

    fn ask(&mut self, cx: &mut Cx<'_>, uuid: PrefixUuid, whom: Endpoint, what: Asked) {
        let Some(node) = Self::node_of(&whom) else { return self.boot_failed(cx, uuid) };
        let call = self.fresh_id();
        let hello = self.hello(whom.data_uuid, false);
        let wanted = match &what {
            Asked::Files => Wanted::Files,
            Asked::Hold(snapshot) => Wanted::Hold { after: snapshot.held_after },
            Asked::Primary(..) => Wanted::Position,
        };
        if let Some(boot) = self.boots.get_mut(&uuid) {
            boot.state = State::Asked { call, until_ms: cx.now_ms + PATIENCE_MS, whom, what };
        }
        cx.send(node, Msg::OpenSnapshot { call, hello, prefix: uuid, wanted });
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

    pub(super) fn open_snapshot(
        &mut self,
        cx: &mut Cx<'_>,
        hello: &Hello,
        uuid: PrefixUuid,
        wanted: Wanted,
    ) -> Result<Snapshot, String> {
        let own = self.own(None);
        check_follower(&own, &hello.peer).map_err(|e| e.to_string())?;
        let id = self.fresh_id();
        let prefix = self.prefixes.get(&uuid).ok_or("there is no such prefix here")?;
        let copy = prefix.copy.as_ref().ok_or("there is no copy of it here")?;
        let whole = !matches!(prefix.phase, Phase::Bootstrapping | Phase::Stopped);
        if !whole || (self.below_floor(prefix) && !parovoz_mutant::on("source-below-floor")) {
            return Err("it is not complete here".to_owned());
        }
        let latest = prefix.at();
        let hello = self.hello(Some(hello.peer.data_uuid), true);
        let mut snapshot = Snapshot { id, dir: None, held_after: latest, latest, bytes: copy.db.disk_bytes(), hello };
        match wanted {
            Wanted::Position => return Ok(snapshot),
            Wanted::Hold { after } => {
                let oldest = copy.db.oldest_in_wal().map_err(|e| e.to_string())?;
                let streams = after.sequence <= latest.sequence && oldest <= after.sequence.next();
                if !streams || prefix.position_at(after.sequence) != after {
                    cx.cov.hit("hold refused");
                    return Err("what follows that can't be streamed from here".to_owned());
                }
                snapshot.held_after = after;
            }
            Wanted::Files => {
                copy.db.flush().map_err(|e| e.to_string())?;
                let dir = cx.volume.dir.join(format!("snapshot-{id}"));
                copy.db.checkpoint(&dir).map_err(|e| e.to_string())?;
                snapshot.dir = Some(Rc::from(dir.as_path()));
            }
        }
        self.snapshots.insert(id, Held { until_ms: cx.now_ms + HOLD_MS });
        Ok(snapshot)
    }

    // ---- The reader. ----

    pub(super) fn snapshot_answer(&mut self, cx: &mut Cx<'_>, call: u64, answer: Result<Snapshot, String>) {
        let asked = |b: &&mut Boot| matches!(b.state, State::Asked { call: c, .. } if c == call);
        let Some((uuid, boot)) = self.boots.iter_mut().map(|(u, b)| (*u, b)).find(|(_, b)| asked(b)) else { return };
        let state = std::mem::replace(&mut boot.state, State::Waiting { until_ms: cx.now_ms });
        let State::Asked { whom, what, .. } = state else { return };
        let Some(upstream) = self.follow.as_ref().map(|f| f.upstream.clone()) else { return };
        let answer = answer.ok().filter(|s| check_upstream(&self.own(whom.data_uuid), &s.hello.peer).is_ok());
        let Some(answer) = answer else {
            if whom == upstream || matches!(what, Asked::Primary(..)) {
                return self.boot_failed(cx, uuid);
            }
            cx.cov.hit("bootstrap: the source is of no use");
            return self.ask(cx, uuid, upstream, Asked::Files);
        };
        match what {
            Asked::Files if whom != upstream => self.ask(cx, uuid, upstream, Asked::Hold(answer)),
            Asked::Files => self.ask_primary(cx, uuid, &upstream, answer.latest, answer.id, answer),
            Asked::Hold(snapshot) => self.ask_primary(cx, uuid, &upstream, answer.latest, answer.id, snapshot),
            Asked::Primary(snapshot, hold) => self.fetch(cx, uuid, answer.latest, snapshot, hold),
        }
    }

    /// Asks where the primary is; if the upstream is the primary, that is known. Under a seal nobody leads.
    fn ask_primary(
        &mut self,
        cx: &mut Cx<'_>,
        uuid: PrefixUuid,
        upstream: &Endpoint,
        latest: Position,
        hold: u64,
        snapshot: Snapshot,
    ) {
        let Some(node) = Self::node_of(upstream) else { return self.boot_failed(cx, uuid) };
        let hold = Hold { node, id: hold };
        let pulls = self.follow.as_ref().is_some_and(|f| f.pull.is_some());
        let leader = self.promised().map(|reign| reign.primary);
        if pulls || leader == upstream.data_uuid {
            return self.fetch(cx, uuid, latest, snapshot, hold);
        }
        match self.view.primary.clone().filter(|p| p.data_uuid == leader) {
            Some(primary) => self.ask(cx, uuid, primary, Asked::Primary(snapshot, hold)),
            None => self.boot_failed(cx, uuid),
        }
    }

    fn fetch(&mut self, cx: &mut Cx<'_>, uuid: PrefixUuid, primary_at: Position, snapshot: Snapshot, hold: Hold) {
        self.raise_floor(cx, uuid, primary_at);
        let takes = 2_000 + snapshot.bytes * 20 + cx.rng.below(300_000);
        if let Some(boot) = self.boots.get_mut(&uuid) {
            boot.attempt += 1;
            let attempt = boot.attempt;
            boot.state = State::Fetching { snapshot, hold };
            cx.out.push(Out::After(takes, Timer::Fetched { prefix: uuid, attempt }));
        }
    }

    pub(super) fn fetched(&mut self, cx: &mut Cx<'_>, uuid: PrefixUuid, attempt: u64) {
        let Some(boot) = self.boots.get_mut(&uuid).filter(|b| b.attempt == attempt) else { return };
        let State::Fetching { snapshot, hold } = &boot.state else { return };
        let (snapshot, hold) = (snapshot.clone(), *hold);
        let (generation, dir) = cx.volume.next_dir();
        // Another reader may have the files: the source makes them for each.
        let here = snapshot.dir.as_ref().is_some_and(|from| cx.engine.rename(from, &dir).is_ok()) && !cx.volume.full;
        let opened = if here { cx.engine.open(&dir, &OpenSpec::default()).ok() } else { None };
        let verified = opened.and_then(|db| {
            let history = read_history(&*db)?;
            let held = snapshot.held_after;
            let good = db.latest() >= held.sequence && history.epoch_at(held.sequence) == held.epoch;
            good.then_some((Copy { generation, dir: dir.clone(), db }, history))
        });
        let Some((copy, history)) = verified else {
            let _ = cx.engine.destroy(&dir);
            return self.boot_failed(cx, uuid);
        };
        let call = self.fresh_id();
        if let Some(boot) = self.boots.get_mut(&uuid) {
            boot.state = State::Confirming { call, until_ms: cx.now_ms + PATIENCE_MS, copy, history };
        }
        if snapshot.id != hold.id {
            cx.cov.hit("bootstrap: from another member");
        }
        cx.send(hold.node, Msg::KeepSnapshot { call, snapshot: hold.id });
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
        let diverged = matches!(boot.cause, BootstrapCause::Diverged { .. }) || history.has_left(prefix.at());
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
            self.open_listed(cx, diverged);
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
