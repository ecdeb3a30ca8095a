#![allow(clippy::unwrap_used)]
use super::*;
use crate::acks::AckPositions;
use crate::member::{HEARD_MS, SealEvidence};
use crate::types::{Epoch, Mode, Position, ReignId};
use crate::vote::Vote;
use proptest::prelude::*;
use uuid::Uuid;

const P: PrefixUuid = PrefixUuid(Uuid::from_u128(70));

fn who(n: u128) -> DataUuid {
    DataUuid(Uuid::from_u128(n))
}
fn store() -> StoreUid {
    StoreUid("s".into())
}
fn reign(epoch: u64, primary: u128, w: u32) -> Reign {
    Reign {
        epoch: Epoch(epoch),
        reign_id: ReignId(Uuid::from_u128(u128::from(epoch) * 10)),
        primary: who(primary),
        members: (1..=3).map(who).collect(),
        mode: if w > 0 { Mode::Quorum } else { Mode::Async },
        min_sync_replicas: w,
        lease_duration_ms: 9_000,
    }
}
fn endpoint(n: u128) -> Endpoint {
    Endpoint { data_uuid: Some(who(n)), replication: format!("h{n}:1"), ..Endpoint::default() }
}

/// One member, and a clock.
struct Rig {
    role: Role,
    now: u64,
}

impl Rig {
    fn new() -> Self {
        let record = MemberRecord::blank(store(), who(1), String::new());
        Self { role: Role::start(record, LeaseKeeper::Kubernetes, 1_000), now: 1_000 }
    }

    fn give(&mut self, event: Event) -> Result<Vec<Effect>, OrderRefusal> {
        let before = self.role.clone();
        let mut effects = Vec::new();
        let result = self.role.step(self.now, event, &mut effects);
        if let Err(refusal) = result {
            assert!(effects.is_empty() && before == self.role, "a refusal changes nothing");
            return Err(refusal);
        }
        Ok(effects)
    }

    fn seal(&mut self, epoch: u64, evidence: SealEvidence) -> Result<Vec<Effect>, OrderRefusal> {
        let about = self.role.record().promised.as_ref().map(Reign::to_ref);
        let reign = reign(epoch, 1, 1).to_ref();
        self.give(Event::Seal(SealOrder { store: store(), member: who(1), reign, about, evidence }))
    }

    fn promote(&mut self, reign: Reign, at: u64) -> Result<Vec<Effect>, OrderRefusal> {
        let first = self.role.record().is_blank();
        let here: Votes = if first { Votes::new() } else { [(P, Vote::Known(Position::new(1, at)))].into() };
        let order = PromoteOrder { store: store(), member: who(1), reign, positions: here.clone(), first };
        self.give(Event::Promote { order, here })
    }

    fn follow(&mut self, reign: Reign) -> Result<Vec<Effect>, OrderRefusal> {
        let (upstream, primary) = (endpoint(2), endpoint(2));
        self.give(Event::Follow { store: store(), member: who(1), reign, upstream, primary })
    }

    fn fsynced(&mut self) {
        self.give(Event::FsyncAsked).unwrap();
        self.give(Event::Fsynced).unwrap();
    }

    /// Leads `reign`, its records written.
    fn leading(epoch: u64, w: u32) -> Self {
        let mut rig = Self::new();
        rig.seal(epoch, SealEvidence::Silent).unwrap();
        rig.promote(reign(epoch, 1, w), 0).unwrap();
        rig.give(Event::Written { reign: reign(epoch, 1, w).to_ref(), records: [(P, Sequence(1))].into() }).unwrap();
        rig
    }

    fn echo(&mut self, member: u128, epoch: u64, sent_at_ms: u64) {
        self.give(Event::Echo { member: who(member), reign: reign(epoch, 1, 1).to_ref(), sent_at_ms }).unwrap();
    }
}

/// Where an effect of this kind is.
fn at(effects: &[Effect], wanted: impl Fn(&Effect) -> bool) -> usize {
    effects.iter().position(wanted).unwrap_or_else(|| panic!("not in {effects:?}"))
}

#[test]
fn a_seal_stops_serving_syncs_and_stores_before_it_is_answered() {
    let mut rig = Rig::leading(1, 1);
    rig.fsynced();
    rig.role.beat(rig.now).unwrap();
    rig.echo(2, 1, rig.now);
    assert!(rig.role.serving().may_read(rig.now));
    let effects = rig.seal(2, SealEvidence::Silent).unwrap();
    assert_eq!((rig.role.serving(), rig.role.standing()), (Serving::default(), Standing::Fenced));
    let (stop, sync) = (at(&effects, |e| *e == Effect::StopServing), at(&effects, |e| *e == Effect::SyncAll));
    let store = at(&effects, |e| matches!(e, Effect::Store(r) if r.sealed.is_some()));
    assert!(stop < sync && sync < store, "{effects:?}");
    assert_eq!(rig.role.beat(rig.now), None);
    assert!(rig.seal(2, SealEvidence::Silent).unwrap().is_empty(), "again: nothing more to do");
}

#[test]
fn a_sealed_member_follows_nobody_before_it_is_told_whom() {
    let mut rig = Rig::new();
    rig.follow(reign(1, 2, 1)).unwrap();
    let follows = |e: &Effect| matches!(e, Effect::StartFollowing { .. });
    let effects = rig.seal(2, SealEvidence::Dead).unwrap();
    assert!(effects.contains(&Effect::StopFollowing) && !effects.iter().any(follows), "{effects:?}");
    let mut effects = Vec::new();
    rig.role.resume(&mut effects);
    assert!(effects.is_empty(), "nor after a restart: {effects:?}");
    assert!(rig.follow(reign(2, 2, 1)).unwrap().iter().any(follows));
}

#[test]
fn a_replica_promises_only_while_it_is_unsealed_and_its_disk_works() {
    let mut rig = Rig::new();
    let first = reign(1, 2, 1);
    rig.follow(first.clone()).unwrap();
    assert_eq!(rig.role.echo(rig.now), None);
    rig.give(Event::PrimaryBeat { reign: reign(7, 2, 1).to_ref(), sent_at_ms: 77 }).unwrap();
    assert_eq!(rig.role.echo(rig.now), None, "another reign's beat is nobody's");
    rig.give(Event::PrimaryBeat { reign: first.to_ref(), sent_at_ms: 55 }).unwrap();
    assert_eq!(rig.role.echo(rig.now), Some(55));
    rig.now += FSYNC_RECENT_MS;
    rig.give(Event::PrimaryBeat { reign: first.to_ref(), sent_at_ms: 66 }).unwrap();
    assert_eq!(rig.role.echo(rig.now), None, "its disk said nothing for too long");
    rig.fsynced();
    assert_eq!(rig.role.echo(rig.now), Some(66));
    assert!(matches!(rig.seal(2, SealEvidence::Silent), Err(OrderRefusal::PrimaryHeard { .. })));
    rig.seal(2, SealEvidence::PrimarySealed).unwrap();
    assert_eq!(rig.role.echo(rig.now), None);
}

#[test]
fn silence_is_refused_for_as_long_as_the_promise_may_count() {
    let mut rig = Rig::new();
    rig.now += 10_000;
    rig.follow(reign(1, 2, 1)).unwrap();
    rig.give(Event::PrimaryBeat { reign: reign(1, 2, 1).to_ref(), sent_at_ms: 5 }).unwrap();
    rig.now += HEARD_MS - 1;
    assert!(rig.seal(2, SealEvidence::Silent).is_err());
    rig.now += 1;
    assert!(rig.seal(2, SealEvidence::Silent).is_ok());
}

#[test]
fn epoch_records_wait_for_replicas_and_reads_for_the_records() {
    let mut rig = Rig::new();
    rig.follow(reign(1, 2, 1)).unwrap();
    rig.seal(2, SealEvidence::Dead).unwrap();
    let effects = rig.promote(reign(2, 1, 1), 10).unwrap();
    assert!(matches!(effects.last(), Some(Effect::BeginLeading(_))), "{effects:?}");
    let store = at(&effects, |e| matches!(e, Effect::Store(r) if r.started == Epoch(2) && r.sealed.is_none()));
    assert!(store < effects.len() - 1, "started is stored before it leads");
    let mut acks = AckTable::default();
    let session = acks.begin_session(who(3));
    let mut ack = |epoch, sequence| {
        let p = Position::new(epoch, sequence);
        acks.record(session, who(3), P, AckPositions { received: p, applied: p, durable: p }).unwrap();
        let mut effects = Vec::new();
        rig.role.progress(&acks, &mut effects);
        effects
    };
    assert!(ack(1, 9).is_empty());
    assert_eq!(ack(1, 10), [Effect::WriteEpochRecords(reign(2, 1, 1))]);
    rig.role.beat(rig.now).unwrap();
    rig.echo(3, 2, rig.now);
    assert!(!rig.role.serving().may_read(rig.now), "promises alone do not make a primary serve");
    rig.give(Event::Written { reign: reign(2, 1, 1).to_ref(), records: [(P, Sequence(11))].into() }).unwrap();
    assert!(rig.role.serving().may_read(rig.now));
    assert!(!rig.role.is_served(P));
    let p = Position::new(2, 11);
    acks.record(session, who(3), P, AckPositions { received: p, applied: p, durable: p }).unwrap();
    let mut effects = Vec::new();
    rig.role.progress(&acks, &mut effects);
    assert_eq!(effects, [Effect::ServePrefix(P), Effect::AllServed]);
    assert!(rig.role.is_served(P) && rig.role.is_all_served());
}

#[test]
fn an_echo_of_a_beat_that_was_never_sent_counts_nothing() {
    let mut rig = Rig::leading(1, 1);
    rig.role.beat(rig.now).unwrap();
    rig.echo(2, 1, rig.now + 1);
    rig.echo(2, 1, 0);
    rig.echo(2, 9, rig.now);
    assert!(!rig.role.serving().may_read(rig.now));
}

#[test]
fn without_replicas_the_lease_is_asked_for_at_once_and_gates_reads_and_writes() {
    let mut rig = Rig::new();
    rig.seal(1, SealEvidence::Silent).unwrap();
    let effects = rig.promote(reign(1, 1, 0), 0).unwrap();
    at(&effects, |e| matches!(e, Effect::WriteEpochRecords(_)));
    let sent_at_ms = rig.now;
    assert_eq!(effects.last(), Some(&Effect::RenewLease { reign: reign(1, 1, 0), sent_at_ms }));
    let told = rig.give(Event::Written { reign: reign(1, 1, 0).to_ref(), records: [(P, Sequence(1))].into() });
    assert_eq!(told.unwrap(), [Effect::ServePrefix(P), Effect::AllServed]);
    assert!(!rig.role.serving().may_acknowledge(rig.now));
    rig.now += 100;
    rig.give(Event::LeaseRenewed { reign: reign(1, 1, 0).to_ref(), sent_at_ms }).unwrap();
    // A twentieth of its 9 s before others may take it.
    assert!(rig.role.serving().may_acknowledge(sent_at_ms + 8_549));
    assert!(!rig.role.serving().may_acknowledge(sent_at_ms + 8_550));
    rig.give(Event::LeaseLost { reign: reign(1, 1, 0).to_ref() }).unwrap();
    assert!(!rig.role.serving().may_acknowledge(rig.now));
}

#[test]
fn a_lease_is_not_renewed_by_one_whose_disk_hangs() {
    let mut rig = Rig::leading(1, 0);
    rig.now += 60_000;
    assert!(rig.give(Event::Tick).unwrap().is_empty());
    rig.fsynced();
    assert_eq!(rig.give(Event::Tick).unwrap().len(), 1);
}

#[test]
fn parked_writes_are_kept_over_a_promotion_and_refused_on_an_order_to_follow() {
    let mut rig = Rig::leading(1, 1);
    let sealed = rig.seal(2, SealEvidence::Silent).unwrap();
    assert!(!sealed.contains(&Effect::RefuseParked));
    let mut again = Rig { role: rig.role.clone(), now: rig.now };
    let effects = again.promote(reign(2, 1, 1), 5).unwrap();
    assert!(!effects.contains(&Effect::RefuseParked));
    let effects = rig.follow(reign(2, 2, 1)).unwrap();
    at(&effects, |e| *e == Effect::RefuseParked);
    assert_eq!(rig.role.standing(), Standing::Replica);
}

#[test]
fn a_newer_reign_met_by_a_primary_stops_it_first() {
    let mut rig = Rig::leading(1, 1);
    let effects = rig.follow(reign(2, 2, 1)).unwrap();
    let stop = at(&effects, |e| *e == Effect::StopServing);
    assert!(stop < at(&effects, |e| matches!(e, Effect::Store(_))));
}

#[test]
fn a_process_that_begins_anew_leads_nothing() {
    let rig = Rig::leading(3, 1);
    let mut again = Rig { role: Role::start(rig.role.record().clone(), LeaseKeeper::Kubernetes, 9_000), now: 9_000 };
    assert_eq!((again.role.standing(), again.role.beat(again.now)), (Standing::Replica, None));
    let refused = again.promote(reign(3, 1, 1), 1);
    assert_eq!(refused, Err(OrderRefusal::AlreadyStarted { order: Epoch(3), started: Epoch(3) }));
}

#[test]
fn a_pull_needs_the_seal_and_freezing_the_leading_reign() {
    let mut rig = Rig::leading(1, 1);
    let pull = |epoch| Event::Pull {
        store: store(),
        member: who(1),
        reign: reign(epoch, 1, 1).to_ref(),
        source: endpoint(2),
        upto: [(P, Position::new(1, 9))].into(),
    };
    assert!(rig.give(pull(2)).is_err());
    let freeze =
        |epoch| Event::Freeze { store: store(), member: who(1), reign: reign(epoch, 1, 1).to_ref(), for_ms: 9_999 };
    assert!(rig.give(freeze(2)).is_err());
    rig.give(freeze(1)).unwrap();
    assert_eq!(rig.role.frozen_until_ms(), rig.now + FREEZE_MS);
    rig.seal(2, SealEvidence::Silent).unwrap();
    assert!(matches!(rig.give(pull(2)).unwrap().as_slice(), [Effect::StartPulling { .. }]));
    assert!(rig.give(pull(3)).is_err());
}

#[test]
fn a_stalled_disk_is_reported_and_silences_the_primary() {
    let mut rig = Rig::leading(1, 1);
    rig.give(Event::FsyncAsked).unwrap();
    rig.now += FSYNC_RECENT_MS;
    assert_eq!(rig.role.stalled_fsync_ms(rig.now), Some(FSYNC_RECENT_MS));
    assert_eq!(rig.role.beat(rig.now), None);
    rig.give(Event::Fsynced).unwrap();
    assert_eq!(rig.role.stalled_fsync_ms(rig.now), None);
    assert!(rig.role.beat(rig.now).is_some());
}

proptest! {
    /// Whatever comes: no epoch is begun twice, promises never shrink, and nobody serves under a seal.
    #[test]
    fn any_order_of_events_keeps_the_rules(
        steps in prop::collection::vec((0u8..8, 1u64..6, 1u128..4, 0u32..2), 0..80),
    ) {
        let mut rig = Rig::new();
        let mut begun = Vec::new();
        for (kind, epoch, primary, w) in steps {
            rig.now += 700;
            let before = rig.role.record().promise_ref();
            let r = reign(epoch, primary, w);
            let effects = match kind {
                0 => rig.seal(epoch, SealEvidence::Dead),
                1 => rig.promote(r, epoch),
                2 => rig.follow(r),
                3 => rig.give(Event::Met(r)),
                4 => rig.give(Event::Written { reign: r.to_ref(), records: [(P, Sequence(1))].into() }),
                5 => { rig.fsynced(); rig.role.beat(rig.now); Ok(Vec::new()) }
                6 => { rig.echo(2, epoch, rig.now); rig.echo(3, epoch, rig.now); rig.give(Event::Tick) }
                _ => {
                    rig.role = Role::start(rig.role.record().clone(), LeaseKeeper::Kubernetes, rig.now);
                    Ok(Vec::new())
                }
            };
            for effect in effects.unwrap_or_default() {
                if let Effect::BeginLeading(r) = effect {
                    prop_assert!(!begun.contains(&r.epoch), "epoch {} began twice", r.epoch);
                    begun.push(r.epoch);
                }
            }
            let after = rig.role.record().promise_ref();
            if let Some(before) = before {
                let after = after.unwrap();
                prop_assert!(after.epoch > before.epoch || after == before);
            }
            if rig.role.serving() != Serving::default() {
                prop_assert!(rig.role.record().sealed.is_none());
                prop_assert_eq!(rig.role.led(), rig.role.record().promised.as_ref());
                prop_assert_eq!(rig.role.led().map(|r| r.epoch), Some(rig.role.record().started));
            }
        }
    }
}
