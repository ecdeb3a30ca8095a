//! The invariants: everything that must hold after every step, seen from outside, by what members really did and said.

pub mod linear;
mod loss;

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::FixedState;
use parovoz_dataplane_core::history::EpochHistory;
use parovoz_dataplane_core::member::MemberRecord;
use parovoz_dataplane_core::types::{DataUuid, Epoch, Position, PrefixUuid, Reign, ReignId, ReignRef, Sequence};
use parovoz_dataplane_core::vote::{Vote, Votes};

use crate::member::prefix::Prefix;
use crate::msg::Node;

/// A reign that served a prefix, and what its history was then.
#[derive(Debug)]
struct Served {
    epoch: Epoch,
    history: EpochHistory,
    latest: Sequence,
}

/// What was acknowledged in one epoch of a prefix.
#[derive(Debug, Clone, Copy)]
struct Acked {
    upto: Sequence,
    /// Up to here replicas had to have it.
    by_quorum: Sequence,
}

/// See the module. The first violation stays.
#[derive(Debug, Default)]
pub struct Checker {
    /// Whether acknowledgements mean synced records.
    pub syncs: bool,
    /// The decision record was restored from a backup: an epoch may begin again, under another id.
    pub restored: bool,
    violation: Option<String>,
    contents: HashMap<(PrefixUuid, Epoch, Sequence), u64, FixedState>,
    starts: BTreeMap<Epoch, (ReignId, DataUuid)>,
    promises: BTreeMap<DataUuid, ReignRef>,
    /// What each member said to have durably.
    said: HashMap<(DataUuid, PrefixUuid), Position, FixedState>,
    acked: BTreeMap<PrefixUuid, BTreeMap<Epoch, Acked>>,
    served: BTreeMap<PrefixUuid, Vec<Served>>,
    /// First acknowledgement of a write to a key in each epoch.
    first_acked: HashMap<(PrefixUuid, u8), Vec<(Epoch, u64)>, FixedState>,
    /// The newest reign whose candidate was chosen, on proof that none before it acknowledges anything more.
    decided: Epoch,
    losses: loss::Losses,
}

impl Checker {
    /// Notes a violation.
    pub fn fail(&mut self, now: u64, what: String) {
        if self.violation.is_none() {
            self.violation = Some(format!("at {}.{:06} s: {what}", now / 1_000_000, now % 1_000_000));
        }
    }

    /// The first violation.
    #[must_use]
    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// A member let somebody else know what it promised. Promises never shrink, across crashes too.
    pub fn promised(&mut self, now: u64, who: Node, me: DataUuid, record: &MemberRecord) {
        let Some(promise) = record.promise_ref() else { return };
        let before = self.promises.insert(me, promise);
        if let Some(before) = before
            && (promise.epoch < before.epoch || (promise.epoch == before.epoch && promise != before))
        {
            self.fail(now, format!("member {who} had promised epoch {} and now says {}", before.epoch, promise.epoch));
        }
    }

    /// A process read its record back.
    pub fn recovered(&mut self, now: u64, who: Node, me: DataUuid, record: &MemberRecord) {
        let mine = record.promise_ref();
        if let Some(before) = self.promises.get(&me).copied()
            && mine.is_none_or(|p| p.epoch < before.epoch || (p.epoch == before.epoch && p != before))
        {
            let found = mine.map_or(0, |p| p.epoch.0);
            self.fail(now, format!("member {who} had promised epoch {} and finds {found} after a crash", before.epoch));
        }
    }

    /// A member begins to lead. One start per epoch and id.
    pub fn started(&mut self, now: u64, who: Node, me: DataUuid, reign: &Reign) {
        if let Some((id, before)) = self.starts.insert(reign.epoch, (reign.reign_id, me))
            && (id == reign.reign_id || !self.restored)
        {
            self.fail(now, format!("member {who} starts epoch {}, which {before} had started", reign.epoch));
        }
    }

    /// Whether a member was ever told to start an epoch, and did.
    #[must_use]
    pub fn starts(&self) -> usize {
        self.starts.len()
    }

    /// A member's database took a batch. Equal prefix, epoch and sequence mean equal content.
    pub fn wrote(&mut self, now: u64, who: Node, prefix: PrefixUuid, epoch: Epoch, first: Sequence, bytes: &[u8]) {
        self.note_written(prefix, epoch, first, bytes);
        // The first eight bytes are the sequence, which the sender may leave open.
        let crc = u64::from(crc32c::crc32c(bytes.get(8..).unwrap_or_default())) << 32 | bytes.len() as u64;
        if *self.contents.entry((prefix, epoch, first)).or_insert(crc) != crc {
            self.fail(now, format!("member {who} has another record than others at {epoch}/{first} of {prefix}"));
        }
    }

    /// A replica said where it is durably.
    pub fn acknowledged(&mut self, me: DataUuid, prefix: PrefixUuid, durable: Position) {
        let said = self.said.entry((me, prefix)).or_insert(durable);
        *said = (*said).max(durable);
    }

    /// A member forgot a floor that it is below: its copy ends where a reign was decided to begin.
    pub fn settled(&mut self, me: DataUuid, prefix: PrefixUuid, at: Position) {
        self.said.insert((me, prefix), at);
    }

    /// A member said what it votes. No vote is below what the same volume ever acknowledged.
    pub fn voted(&mut self, now: u64, who: Node, me: DataUuid, votes: &Votes) {
        if !self.syncs || self.violation.is_some() {
            return;
        }
        for (prefix, vote) in votes {
            if let (Vote::Known(at), Some(said)) = (vote, self.said.get(&(me, *prefix)))
                && at < said
            {
                let what = format!("member {who} votes {at} in {prefix}, though it had acknowledged {said}");
                return self.fail(now, what);
            }
        }
    }

    /// A reign begins to serve a prefix: everything that was acknowledged under a quorum is in its history.
    pub fn serves(&mut self, now: u64, who: Node, reign: &Reign, prefix: &Prefix) {
        let mut missing = None;
        for (epoch, acked) in self.acked.get(&prefix.uuid).into_iter().flatten() {
            if *epoch >= reign.epoch {
                continue;
            }
            let has = end_of(&prefix.history, *epoch, prefix.applied);
            if acked.by_quorum > has {
                missing = Some((*epoch, acked.by_quorum, has));
            }
        }
        if let Some((epoch, acked, has)) = missing {
            let name = &prefix.name;
            self.fail(
                now,
                format!(
                    "member {who} serves {name} in epoch {} and lacks acknowledged writes: epoch {epoch} up to {acked}, it has {has}",
                    reign.epoch
                ),
            );
        }
        self.judge_loss(now, who, reign, prefix);
        let served = Served { epoch: reign.epoch, history: prefix.history.clone(), latest: prefix.applied };
        self.served.entry(prefix.uuid).or_default().push(served);
    }

    /// A primary answers a write as done.
    pub fn write_answered(
        &mut self,
        now: u64,
        who: Node,
        reign: &Reign,
        prefix: PrefixUuid,
        epoch: Epoch,
        at: Sequence,
    ) {
        let acked = self.acked.entry(prefix).or_default().entry(epoch);
        let acked = acked.or_insert(Acked { upto: Sequence(0), by_quorum: Sequence(0) });
        acked.upto = acked.upto.max(at);
        if reign.required() > 0 {
            acked.by_quorum = acked.by_quorum.max(at);
        } else if reign.epoch < self.decided && !self.restored {
            // What replicas acknowledged may be answered late; what nobody else has must end before.
            let (epoch, decided) = (reign.epoch, self.decided);
            self.fail(now, format!("member {who} acknowledges under epoch {epoch} what it alone has, though epoch {decided} was decided"));
        }
        let later = self
            .served
            .get(&prefix)
            .into_iter()
            .flatten()
            .find(|s| s.epoch > reign.epoch && end_of(&s.history, epoch, s.latest) < at);
        if let Some(later) = later {
            let what = format!(
                "member {who} acknowledges {epoch}/{at} of {prefix} under epoch {}, though epoch {} serves without it",
                reign.epoch, later.epoch
            );
            self.fail(now, what);
        }
    }

    /// A client was told that its write to a key is done.
    pub fn write_seen(&mut self, now: u64, prefix: PrefixUuid, key: u8, epoch: Epoch) {
        let firsts = self.first_acked.entry((prefix, key)).or_default();
        if firsts.iter().all(|(e, _)| *e != epoch) {
            firsts.push((epoch, now));
        }
    }

    /// A client was told what a key holds: nothing older than an acknowledged write.
    pub fn read_seen(&mut self, now: u64, prefix: PrefixUuid, key: u8, epoch: Epoch, begun: u64) {
        let newer =
            self.first_acked.get(&(prefix, key)).into_iter().flatten().find(|(e, at)| *e > epoch && *at < begun);
        if let Some((newer, at)) = newer {
            let what = format!(
                "a read begun at {begun} was answered by epoch {epoch}, though a write of epoch {newer} was acknowledged at {at}"
            );
            self.fail(now, what);
        }
    }

    /// A copy was replaced by a new one.
    pub fn replaced(&mut self, now: u64, who: Node, prefix: &Prefix) {
        if prefix.copy.is_none() || prefix.at() == Position::ZERO && prefix.history.newest().is_some() {
            self.fail(now, format!("member {who} replaced {} by an empty copy", prefix.name));
        }
    }
}

/// Last sequence of an epoch in a history that ends at `latest`; 0 if the epoch is not in it.
fn end_of(history: &EpochHistory, epoch: Epoch, latest: Sequence) -> Sequence {
    let records = history.records();
    let Some(i) = records.iter().position(|r| r.epoch == epoch) else { return Sequence(0) };
    records.get(i + 1).map_or(latest, |next| Sequence(next.start.0 - 1))
}
