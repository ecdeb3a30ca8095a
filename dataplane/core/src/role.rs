//! One member as a whole: what it is told, hears and achieves comes in as events; what must be done comes out as effects. Pure.
//!
//! The data plane's shell and the simulator both drive this; neither decides anything of its own. How to drive it:
//!
//! 1. Give every [`Event`] to [`Role::step`] with the present time (milliseconds of a clock that counts suspension; never
//!    compared with another member's).
//! 2. Perform the [`Effect`]s **in their order**, each done before the next; a crash may come between any two. Only what
//!    [`Effect::Store`] stored survives, and a new process begins with [`Role::start`] from it. If storing or a sync fails,
//!    the process ends.
//! 3. Only then answer whoever gave an order: a refusal is `Err` and changed nothing.
//! 4. While it leads, after acknowledgements came into the [`AckTable`]: [`Role::progress`].
//! 5. Ask [`Role::serving`] *after* reading or committing, with a fresh time, before a reply goes out.
//!
//! ```text
//!  Following ──Seal──▶ Sealed ──(Pull)──Promote──▶ Joining ──W joined, records written──▶ Leading
//!      ▲                 │                            │                                     │
//!      └──── Follow ─────┴────────────────────────────┴──────── Seal: Fenced, Follow ───────┘
//! ```

use std::collections::BTreeMap;

use crate::acks::AckTable;
use crate::joining::{Joining, JoiningStep};
use crate::lease::{LeaseHold, LeaseKeeper, Promises, Serving};
use crate::member::{
    Endpoint, Following, Hearing, MemberRecord, OrderRefusal, Orders, PromoteOrder, Promotion, SealOrder, Sealing,
};
use crate::types::{DataUuid, PrefixUuid, Reign, ReignRef, Sequence, StoreUid};
use crate::vote::Votes;

mod messages;
#[cfg(test)]
mod tests;

pub use messages::{BeatOut, Effect, Event, Standing};

/// A successful fsync this recent, in milliseconds, says that the disk works.
pub const FSYNC_RECENT_MS: u64 = 2_000;
/// For so long writes can be frozen at most, in milliseconds.
pub const FREEZE_MS: u64 = 2_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heard {
    at_ms: u64,
    sent_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Lead {
    reign: Reign,
    joining: Joining,
    promises: Promises,
    lease: LeaseHold,
    /// When the newest beat was sent: nobody can echo a later one.
    beat_ms: u64,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    record: MemberRecord,
    keeper: LeaseKeeper,
    started_ms: u64,
    fsynced_ms: u64,
    /// The oldest fsync that was not answered.
    fsync_asked_ms: Option<u64>,
    heard: Option<Heard>,
    lead: Option<Lead>,
    fenced: bool,
    frozen_until_ms: u64,
}

impl Role {
    /// A process that begins at `now_ms` with what its slots hold: always a follower. Its caller has just synced the slots.
    #[must_use]
    pub fn start(record: MemberRecord, keeper: LeaseKeeper, now_ms: u64) -> Self {
        Self {
            record,
            keeper,
            started_ms: now_ms,
            fsynced_ms: now_ms,
            fsync_asked_ms: None,
            heard: None,
            lead: None,
            fenced: false,
            frozen_until_ms: 0,
        }
    }

    /// What a new process goes on with by its own orders. A sealed one waits for the next: what it took from its upstream would
    /// count for nothing, and whoever is to be completed from it must not find that it streams from there.
    pub fn resume(&self, effects: &mut Vec<Effect>) {
        if let (Some(Orders::Follow { upstream, primary }), Some(reign), None) =
            (&self.record.orders, &self.record.promised, self.record.sealed)
        {
            let (upstream, primary) = (upstream.clone(), primary.clone());
            effects.push(Effect::StartFollowing { reign: reign.clone(), upstream, primary });
        }
    }

    /// Takes one event; appends what must be done.
    ///
    /// # Errors
    /// An order that is refused; nothing changed and nothing is to be done then.
    pub fn step(&mut self, now_ms: u64, event: Event, effects: &mut Vec<Effect>) -> Result<(), OrderRefusal> {
        match event {
            Event::Seal(order) => self.seal(now_ms, &order, effects)?,
            Event::Promote { order, here } => self.promote(now_ms, &order, &here, effects)?,
            Event::Follow { store, member, reign, upstream, primary } => {
                self.follow(&store, member, &reign, upstream, primary, effects)?;
            }
            Event::Pull { store, member, reign, source, upto } => {
                self.record.check_addressee(&store, member)?;
                self.check_pull(reign, &source)?;
                effects.push(Effect::StartPulling { reign, source, upto });
            }
            Event::Freeze { store, member, reign, for_ms } => {
                self.record.check_addressee(&store, member)?;
                if self.lead.as_ref().is_none_or(|lead| lead.reign.to_ref() != reign) {
                    return Err(OrderRefusal::NotLeading { order: reign.epoch });
                }
                self.frozen_until_ms = now_ms + for_ms.min(FREEZE_MS);
            }
            Event::Met(reign) => self.met(&reign, effects)?,
            Event::PrimaryBeat { reign, sent_at_ms } => self.primary_beat(now_ms, reign, sent_at_ms),
            Event::Echo { member, reign, sent_at_ms } => self.echoed(member, reign, sent_at_ms),
            Event::FsyncAsked => self.fsync_asked_ms = self.fsync_asked_ms.or(Some(now_ms)),
            Event::Fsynced => {
                self.fsynced_ms = now_ms;
                self.fsync_asked_ms = None;
            }
            Event::LeaseRenewed { reign, sent_at_ms } => {
                if let Some(lead) = self.leads(reign) {
                    lead.lease.renewed(sent_at_ms);
                }
            }
            Event::LeaseLost { reign } => {
                if let Some(lead) = self.leads(reign) {
                    lead.lease.lose();
                }
            }
            Event::Written { reign, records } => self.written(reign, records, effects),
            Event::Dropped(prefix) => {
                if let Some(lead) = &mut self.lead {
                    lead.joining.forget(prefix);
                }
            }
            Event::Tick => self.renew(now_ms, effects),
        }
        Ok(())
    }

    fn leads(&mut self, reign: ReignRef) -> Option<&mut Lead> {
        self.lead.as_mut().filter(|lead| lead.reign.to_ref() == reign)
    }

    // ---- Orders. ----

    /// Rule: a seal is answered only after serving has stopped, all is synced, and the promise is stored.
    fn seal(&mut self, now_ms: u64, order: &SealOrder, effects: &mut Vec<Effect>) -> Result<(), OrderRefusal> {
        let hearing = Hearing { silence_ms: self.silence_ms(now_ms), uptime_ms: self.uptime_ms(now_ms) };
        if let Sealing::Start(next) = self.record.seal(order, hearing)? {
            self.stop_leading(effects);
            effects.push(Effect::StopFollowing);
            effects.push(Effect::SyncAll);
            self.store(*next, effects);
            effects.push(Effect::CutOldStreams);
        }
        Ok(())
    }

    fn promote(
        &mut self,
        now_ms: u64,
        order: &PromoteOrder,
        here: &Votes,
        effects: &mut Vec<Effect>,
    ) -> Result<(), OrderRefusal> {
        let Promotion::Start(next) = self.record.promote(order, self.lead.is_some(), here)? else { return Ok(()) };
        effects.push(Effect::StopFollowing);
        self.store(*next, effects);
        let reign = order.reign.clone();
        effects.push(Effect::BeginLeading(reign.clone()));
        self.lead = Some(Lead {
            joining: Joining::new(reign.clone(), &order.positions),
            promises: Promises::default(),
            lease: LeaseHold::new(self.keeper, reign.lease_duration_ms),
            beat_ms: 0,
            reign,
        });
        self.fenced = false;
        self.heard = None;
        self.frozen_until_ms = 0;
        self.progress(&AckTable::default(), effects);
        self.renew(now_ms, effects);
        Ok(())
    }

    fn follow(
        &mut self,
        store: &StoreUid,
        member: DataUuid,
        reign: &Reign,
        upstream: Endpoint,
        primary: Endpoint,
        effects: &mut Vec<Effect>,
    ) -> Result<(), OrderRefusal> {
        let decided = self.record.follow(store, member, reign, upstream.clone(), primary.clone())?;
        let Following::Start(next) = decided else { return Ok(()) };
        self.stop_leading(effects);
        self.store(*next, effects);
        effects.push(Effect::CutOldStreams);
        if self.fenced {
            effects.push(Effect::RefuseParked);
        }
        self.fenced = false;
        self.frozen_until_ms = 0;
        effects.push(Effect::StartFollowing { reign: reign.clone(), upstream, primary });
        Ok(())
    }

    /// Rule: only a sealed member is completed, from one sealed for exactly the same reign.
    fn check_pull(&self, reign: ReignRef, source: &Endpoint) -> Result<(), OrderRefusal> {
        if self.record.sealed != Some(reign) {
            return Err(OrderRefusal::PullUnsealed { order: reign.epoch });
        }
        if source.data_uuid == Some(self.record.data_uuid) || source.replication.is_empty() {
            return Err(OrderRefusal::Malformed("the source must be another member with a replication address"));
        }
        Ok(())
    }

    fn met(&mut self, reign: &Reign, effects: &mut Vec<Effect>) -> Result<(), OrderRefusal> {
        if let Some(next) = self.record.promise(reign)? {
            self.stop_leading(effects);
            self.store(next, effects);
            effects.push(Effect::CutOldStreams);
        }
        Ok(())
    }

    /// Rule: whoever led stops before it promises anything else.
    fn stop_leading(&mut self, effects: &mut Vec<Effect>) {
        if parovoz_mutant::on("sealed-goes-on-leading") {
            return;
        }
        if self.lead.take().is_some() {
            self.fenced = true;
            effects.push(Effect::StopServing);
        }
    }

    /// Rule: a promise is stored before it is acted on. What was heard under the promise before says nothing any more.
    fn store(&mut self, next: MemberRecord, effects: &mut Vec<Effect>) {
        if next.promised != self.record.promised {
            self.heard = None;
        }
        self.record = next.clone();
        effects.push(Effect::Store(Box::new(next)));
    }

    // ---- Leading. ----

    /// What the acknowledgements that came since allow: the epoch records, then the prefixes.
    pub fn progress(&mut self, acks: &AckTable, effects: &mut Vec<Effect>) {
        let Some(lead) = &mut self.lead else { return };
        let mut steps = Vec::new();
        lead.joining.progress(acks, &mut steps);
        effects.extend(steps.into_iter().map(|step| match step {
            JoiningStep::Write => Effect::WriteEpochRecords(lead.reign.clone()),
            JoiningStep::Serve(prefix) => Effect::ServePrefix(prefix),
            JoiningStep::AllServed => Effect::AllServed,
        }));
    }

    fn written(&mut self, reign: ReignRef, records: BTreeMap<PrefixUuid, Sequence>, effects: &mut Vec<Effect>) {
        if let Some(lead) = self.leads(reign) {
            lead.joining.written(records);
            self.progress(&AckTable::default(), effects);
        }
    }

    /// Rule: a renewal needs a disk that works.
    fn renew(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let works = self.disk_works(now_ms);
        if let Some(lead) = &mut self.lead
            && lead.reign.required() == 0
            && works
            && lead.lease.ask(now_ms)
        {
            effects.push(Effect::RenewLease { reign: lead.reign.clone(), sent_at_ms: now_ms });
        }
    }

    fn echoed(&mut self, member: DataUuid, reign: ReignRef, sent_at_ms: u64) {
        if let Some(lead) = self.leads(reign)
            && (1..=lead.beat_ms).contains(&sent_at_ms)
        {
            lead.promises.echo(member, sent_at_ms);
        }
    }

    /// The beat to send to every replica now; `None` = none: it leads nothing, or its disk does not work.
    pub fn beat(&mut self, now_ms: u64) -> Option<BeatOut> {
        let works = self.disk_works(now_ms);
        let serving = self.serving().may_read(now_ms);
        let lead = self.lead.as_mut().filter(|_| works)?;
        lead.beat_ms = lead.beat_ms.max(now_ms);
        Some(BeatOut { reign: lead.reign.to_ref(), sent_at_ms: now_ms, serving })
    }

    /// Until when this member may answer reads and acknowledge writes, as far as is known now.
    #[must_use]
    pub fn serving(&self) -> Serving {
        match &self.lead {
            Some(lead) if lead.joining.has_written() => Serving::of(&lead.reign, &lead.promises, &lead.lease),
            _ => Serving::default(),
        }
    }

    // ---- Following. ----

    fn primary_beat(&mut self, now_ms: u64, reign: ReignRef, sent_at_ms: u64) {
        if self.record.promised.as_ref().map(Reign::to_ref) == Some(reign) {
            let sent_at_ms = self.heard.map_or(sent_at_ms, |heard| heard.sent_at_ms.max(sent_at_ms));
            self.heard = Some(Heard { at_ms: now_ms, sent_at_ms });
        }
    }

    /// The promise that goes with this replica's next message to the primary: the newest beat, echoed. `None` = none.
    ///
    /// Rule: whoever is sealed, or whose disk does not work, promises nothing.
    #[must_use]
    pub fn echo(&self, now_ms: u64) -> Option<u64> {
        let unsealed = self.record.sealed.is_none() || parovoz_mutant::on("sealed-promises");
        let free = unsealed && self.lead.is_none();
        self.heard.filter(|_| free && self.disk_works(now_ms)).map(|heard| heard.sent_at_ms)
    }

    /// Milliseconds since a beat of the promised reign's primary itself; `None` = none in this process.
    #[must_use]
    pub fn silence_ms(&self, now_ms: u64) -> Option<u64> {
        self.heard.map(|heard| now_ms.saturating_sub(heard.at_ms))
    }

    // ---- What it is, for reports. ----

    /// What is stored, or about to be.
    #[must_use]
    pub fn record(&self) -> &MemberRecord {
        &self.record
    }

    /// Changes what of the record concerns no promise (floors, the clean stop), once it is stored.
    pub fn replace_record(&mut self, record: MemberRecord) {
        self.record = record;
    }

    /// What it is.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match &self.lead {
            Some(lead) if lead.joining.has_written() => Standing::Leading,
            Some(_) => Standing::Joining,
            None if self.fenced => Standing::Fenced,
            None if self.record.sealed.is_some() => Standing::Sealed,
            None if self.record.is_blank() => Standing::Blank,
            None => Standing::Replica,
        }
    }

    /// The reign that this process leads.
    #[must_use]
    pub fn led(&self) -> Option<&Reign> {
        self.lead.as_ref().map(|lead| &lead.reign)
    }

    /// Whether a prefix is served by this primary.
    #[must_use]
    pub fn is_served(&self, prefix: PrefixUuid) -> bool {
        self.lead.as_ref().is_some_and(|lead| lead.joining.is_served(prefix))
    }

    /// The prefixes whose epoch records are not written, or not held by enough replicas, yet.
    #[must_use]
    pub fn unserved(&self) -> Vec<PrefixUuid> {
        let of = |lead: &Lead| if lead.joining.is_done() { Vec::new() } else { lead.joining.unserved().collect() };
        self.lead.as_ref().map(of).unwrap_or_default()
    }

    /// Whether every prefix is.
    #[must_use]
    pub fn is_all_served(&self) -> bool {
        self.lead.as_ref().is_some_and(|lead| lead.joining.is_done())
    }

    /// Whether a write that replicas take could be acknowledged, and a fresh read answered, now.
    #[must_use]
    pub fn can_acknowledge(&self, now_ms: u64) -> bool {
        let serving = self.serving();
        serving.may_acknowledge(now_ms) && serving.may_read(now_ms) && self.disk_works(now_ms)
    }

    /// Until when writes wait; 0 = they do not.
    #[must_use]
    pub fn frozen_until_ms(&self) -> u64 {
        self.frozen_until_ms
    }

    /// Rule: beats, promises and renewals need a recent successful fsync.
    #[must_use]
    pub fn disk_works(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.fsynced_ms) < FSYNC_RECENT_MS
    }

    /// Since the last successful fsync, if one is waited for.
    #[must_use]
    pub fn stalled_fsync_ms(&self, now_ms: u64) -> Option<u64> {
        self.fsync_asked_ms.map(|asked| now_ms.saturating_sub(asked))
    }

    /// Since the process began.
    #[must_use]
    pub fn uptime_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.started_ms)
    }
}
