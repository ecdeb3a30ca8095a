#![allow(clippy::unwrap_used)]
use super::*;
use crate::types::{Mode, ReignId};
use proptest::prelude::*;
use uuid::Uuid;

fn member(n: u128) -> DataUuid {
    DataUuid(Uuid::from_u128(n))
}
fn store() -> StoreUid {
    StoreUid("s".into())
}
fn reign(epoch: u64, id: u128, primary: u128) -> Reign {
    Reign {
        epoch: Epoch(epoch),
        reign_id: ReignId(Uuid::from_u128(id)),
        primary: member(primary),
        members: vec![member(1), member(2)],
        mode: Mode::Async,
        min_sync_replicas: 0,
        lease_duration_ms: 10_000,
    }
}
fn blank() -> MemberRecord {
    MemberRecord::blank(store(), member(1), String::new())
}
fn order(reign: &Reign, first: bool) -> PromoteOrder {
    PromoteOrder { store: store(), member: member(1), reign: reign.clone(), positions: Votes::new(), first }
}
fn promote(record: &MemberRecord, reign: &Reign, leading: bool) -> Result<Promotion, OrderRefusal> {
    record.promote(&order(reign, record.is_blank()), leading, &Votes::new())
}
fn seal_order(reign: ReignRef, about: Option<ReignRef>, evidence: SealEvidence) -> SealOrder {
    SealOrder { store: store(), member: member(1), reign, about, evidence }
}
const LONG_SILENT: Hearing = Hearing { silence_ms: None, uptime_ms: 60_000 };
fn sealed(record: &MemberRecord, reign: &Reign) -> MemberRecord {
    match record.seal(&seal_order(reign.to_ref(), None, SealEvidence::Silent), LONG_SILENT).unwrap() {
        Sealing::Start(next) => *next,
        Sealing::Already => record.clone(),
    }
}
fn promoted(record: &MemberRecord, reign: &Reign) -> MemberRecord {
    match promote(&sealed(record, reign), reign, false).unwrap() {
        Promotion::Start(next) => *next,
        Promotion::AlreadyLeading => panic!("not leading"),
    }
}
fn endpoint(n: u128) -> Endpoint {
    Endpoint { data_uuid: Some(member(n)), replication: format!("h{n}:1"), ..Endpoint::default() }
}

#[test]
fn an_epoch_is_never_started_twice() {
    let record = promoted(&blank(), &reign(1, 10, 1));
    let again = promote(&record, &reign(1, 10, 1), false);
    assert_eq!(again, Err(OrderRefusal::AlreadyStarted { order: Epoch(1), started: Epoch(1) }));
    assert_eq!(promote(&record, &reign(1, 10, 1), true), Ok(Promotion::AlreadyLeading));
    assert_eq!(promoted(&record, &reign(2, 11, 1)).started, Epoch(2));
}

#[test]
fn a_reign_of_the_same_epoch_and_another_id_is_refused() {
    let record = promoted(&blank(), &reign(3, 10, 1));
    let other = record.follow(&store(), member(1), &reign(3, 11, 2), endpoint(2), endpoint(2));
    assert_eq!(other, Err(OrderRefusal::OtherReign { epoch: Epoch(3) }));
}

#[test]
fn orders_for_somebody_else_are_refused() {
    let r = reign(1, 10, 1);
    let blank_sealed = sealed(&blank(), &r);
    let foreign = PromoteOrder { store: StoreUid("t".into()), ..order(&r, true) };
    assert!(matches!(blank_sealed.promote(&foreign, false, &Votes::new()), Err(OrderRefusal::OtherStore { .. })));
    let another = PromoteOrder { member: member(2), ..order(&r, true) };
    assert!(matches!(blank_sealed.promote(&another, false, &Votes::new()), Err(OrderRefusal::OtherMember { .. })));
    assert!(matches!(promote(&blank_sealed, &reign(1, 10, 2), false), Err(OrderRefusal::Malformed(_))));
    assert!(blank().follow(&store(), member(1), &reign(1, 1, 2), endpoint(1), endpoint(2)).is_err());
    assert!(blank().follow(&store(), member(1), &reign(1, 1, 2), Endpoint::default(), endpoint(2)).is_err());
}

#[test]
fn repeated_orders_change_nothing() {
    let Following::Start(record) =
        blank().follow(&store(), member(1), &reign(1, 1, 2), endpoint(2), endpoint(2)).unwrap()
    else {
        panic!()
    };
    let again = record.follow(&store(), member(1), &reign(1, 1, 2), endpoint(2), endpoint(2));
    assert_eq!(again, Ok(Following::Unchanged));
}

#[test]
fn only_unclean_starts_within_the_window_count() {
    let mut record = blank().started_at(1_000, 300_000).started_at(2_000, 300_000);
    assert_eq!(record.starts, [1_000, 2_000]);
    record.clean_stop = Some("boot".into());
    assert_eq!(record.started_at(3_000, 300_000).starts, [1_000, 2_000]);
    assert_eq!(record.started_at(301_500, 300_000).starts, [2_000]);
}

#[test]
fn the_first_restart_is_at_once_later_ones_wait_and_too_many_park() {
    let mut record = blank();
    let mut at = 0;
    let mut pauses = Vec::new();
    loop {
        record = record.started_at(at, 300_000);
        match record.start_allowed(at, 5, 15_000) {
            StartAllowed::After { ms } => pauses.push(ms),
            StartAllowed::Park => break,
        }
        at += 1_000;
    }
    assert_eq!(pauses, [0, 0, 14_000, 14_000, 14_000, 14_000]);
    record.clean_stop = Some("boot".into());
    let later = record.started_at(at + 400_000, 300_000);
    assert_eq!(later.start_allowed(at + 400_000, 5, 15_000), StartAllowed::After { ms: 0 });
}

proptest! {
    #[test]
    fn promises_and_starts_never_shrink(orders in prop::collection::vec((1u64..6, 0u128..3, 1u128..3, any::<bool>()), 0..40)) {
        let mut record = blank();
        let mut started = Vec::new();
        for (epoch, id, primary, promote_it) in orders {
            let r = reign(epoch, id, primary);
            let before = record.clone();
            if promote_it {
                let order = seal_order(r.to_ref(), None, SealEvidence::Silent);
                if let Ok(Sealing::Start(next)) = record.seal(&order, LONG_SILENT) {
                    record = *next;
                }
                if let Ok(Promotion::Start(next)) = promote(&record, &r, false) {
                    prop_assert!(!started.contains(&epoch), "epoch {epoch} was started twice");
                    started.push(epoch);
                    record = *next;
                }
            } else if let Ok(Following::Start(next)) =
                record.follow(&store(), member(1), &r, endpoint(2), endpoint(2))
            {
                record = *next;
            }
            prop_assert!(record.started >= before.started);
            let epoch_of = |m: &MemberRecord| m.promised.as_ref().map(|r| r.epoch);
            prop_assert!(epoch_of(&record) >= epoch_of(&before));
            if let (Some(a), Some(b)) = (record.promise_ref(), before.promise_ref()) {
                prop_assert!(a.epoch > b.epoch || a.reign_id == b.reign_id);
            }
        }
    }
}

fn following(epoch: u64, id: u128, primary: u128) -> MemberRecord {
    let r = reign(epoch, id, primary);
    match blank().follow(&store(), member(1), &r, endpoint(primary), endpoint(primary)).unwrap() {
        Following::Start(next) => *next,
        Following::Unchanged => panic!("new"),
    }
}

#[test]
fn only_silence_is_refused_and_only_by_whoever_heard_the_primary_or_began_just_now() {
    let record = following(4, 40, 2);
    let about = Some(reign(4, 40, 2).to_ref());
    let next = reign(5, 50, 2).to_ref();
    let heard = Hearing { silence_ms: Some(HEARD_MS - 1), uptime_ms: 60_000 };
    let young = Hearing { silence_ms: None, uptime_ms: HEARD_MS - 1 };
    let silent = seal_order(next, about, SealEvidence::Silent);
    assert_eq!(record.seal(&silent, heard), Err(OrderRefusal::PrimaryHeard { ago_ms: HEARD_MS - 1 }));
    assert_eq!(record.seal(&silent, young), Err(OrderRefusal::JustStarted { uptime_ms: HEARD_MS - 1 }));
    assert!(record.seal(&silent, Hearing { silence_ms: Some(HEARD_MS), uptime_ms: HEARD_MS }).is_ok());
    for evidence in [SealEvidence::Dead, SealEvidence::PrimarySealed] {
        assert!(record.seal(&seal_order(next, about, evidence), heard).is_ok(), "{evidence:?}");
        let other = Some(reign(4, 41, 2).to_ref());
        for stale in [None, other, Some(reign(3, 30, 2).to_ref())] {
            assert!(record.seal(&seal_order(next, stale, evidence), heard).is_err(), "evidence about another reign");
        }
    }
}

#[test]
fn a_primary_a_blank_member_and_one_sealed_before_always_seal() {
    let heard = Hearing { silence_ms: Some(0), uptime_ms: 0 };
    let silent = |epoch, id| seal_order(reign(epoch, id, 1).to_ref(), None, SealEvidence::Silent);
    assert!(promoted(&blank(), &reign(4, 40, 1)).seal(&silent(5, 50), heard).is_ok());
    assert!(blank().seal(&silent(1, 10), heard).is_ok());
    let before = sealed(&following(4, 40, 2), &reign(5, 50, 1));
    assert!(before.seal(&silent(6, 60), heard).is_ok());
}

#[test]
fn a_seal_bars_what_is_lower_and_what_is_another_reign() {
    let record = sealed(&following(4, 40, 2), &reign(6, 60, 1));
    assert_eq!(record.promise_ref(), Some(reign(6, 60, 1).to_ref()));
    let follow = |r: Reign| record.follow(&store(), member(1), &r, endpoint(2), endpoint(2));
    assert!(matches!(follow(reign(5, 50, 2)), Err(OrderRefusal::OlderReign { .. })));
    assert!(matches!(follow(reign(4, 40, 2)), Err(OrderRefusal::OlderReign { .. })));
    assert_eq!(follow(reign(6, 61, 2)), Err(OrderRefusal::OtherReign { epoch: Epoch(6) }));
    assert!(record.promise(&reign(4, 40, 2)).is_err());
    let later = record.promise(&reign(7, 70, 2));
    assert_eq!(later, Err(OrderRefusal::SealedForOther { met: Epoch(7) }), "only an order says that it is right");
    assert!(follow(reign(7, 70, 2)).is_ok());
    let again = seal_order(reign(6, 60, 1).to_ref(), None, SealEvidence::Silent);
    assert_eq!(record.seal(&again, LONG_SILENT), Ok(Sealing::Already));
    for lower in [reign(5, 50, 1), reign(6, 61, 1)] {
        assert!(record.seal(&seal_order(lower.to_ref(), None, SealEvidence::Dead), LONG_SILENT).is_err());
    }
    let Ok(Following::Start(led)) = follow(reign(6, 60, 2)) else { panic!() };
    assert_eq!((led.sealed, led.promise_ref()), (None, Some(reign(6, 60, 2).to_ref())));
    assert_eq!(led.seal(&again, LONG_SILENT), Err(OrderRefusal::Begun { epoch: Epoch(6) }));
}

#[test]
fn a_promotion_needs_the_seal_of_exactly_its_reign() {
    let record = following(4, 40, 2);
    let bare = promote(&record, &reign(5, 50, 1), false);
    assert_eq!(bare, Err(OrderRefusal::NotSealed { order: Epoch(5) }));
    let record = sealed(&record, &reign(5, 50, 1));
    assert_eq!(promote(&record, &reign(6, 60, 1), false), Err(OrderRefusal::NotSealed { order: Epoch(6) }));
    assert!(promote(&record, &reign(5, 51, 1), false).is_err());
    assert!(promote(&record, &reign(5, 50, 1), false).is_ok());
}

#[test]
fn a_promotion_acts_on_the_very_positions_of_the_decision() {
    let p = |n| PrefixUuid(Uuid::from_u128(n));
    let at = |n| Vote::Known(Position::new(4, n));
    let record = sealed(&following(4, 40, 2), &reign(5, 50, 1));
    let here: Votes = [(p(1), at(10)), (p(2), at(20))].into();
    let try_with = |positions: Votes, here: &Votes| {
        record.promote(&PromoteOrder { positions, ..order(&reign(5, 50, 1), false) }, false, here)
    };
    assert!(try_with(here.clone(), &here).is_ok());
    for bad in [
        Votes::new(),
        [(p(1), at(10))].into(),
        [(p(1), at(10)), (p(2), at(21))].into(),
        [(p(1), at(10)), (p(2), at(20)), (p(3), at(1))].into(),
    ] {
        assert!(matches!(try_with(bad, &here), Err(OrderRefusal::PositionsDiffer { .. })));
    }
    let unknown: Votes = [(p(1), Vote::Unknown { floor: Some(Position::new(4, 10)) })].into();
    assert!(try_with(unknown.clone(), &unknown).is_err(), "an unknown position can't be led with");
}

#[test]
fn only_the_first_reign_begins_from_blank() {
    let blank_sealed = sealed(&blank(), &reign(3, 30, 1));
    assert!(blank_sealed.is_blank(), "a seal alone is no data");
    let bare = blank_sealed.promote(&order(&reign(3, 30, 1), false), false, &Votes::new());
    assert_eq!(bare, Err(OrderRefusal::Blank));
    let known = sealed(&following(2, 20, 2), &reign(3, 30, 1));
    let first = known.promote(&order(&reign(3, 30, 1), true), false, &Votes::new());
    assert_eq!(first, Err(OrderRefusal::NotBlank));
}

#[test]
fn a_record_without_a_seal_is_read_from_older_slots() {
    let mut json = serde_json::to_value(following(2, 20, 2)).unwrap();
    json.as_object_mut().unwrap().remove("sealed");
    let read: MemberRecord = serde_json::from_value(json).unwrap();
    assert_eq!(read, following(2, 20, 2));
}
