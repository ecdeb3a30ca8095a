//! The decision record: what happens when it was restored from a backup, and what its times are worth.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use parovoz_api::{ReignPhase, WaitingReason};
use world::World;

fn seconds(seconds: i64) -> SignedDuration {
    SignedDuration::from_secs(seconds)
}

/// A store whose record is taken back to before a failover: member 1 knows nothing of it, 2 leads and 3 follows with writes
/// that were acknowledged since.
fn restored() -> World {
    let mut world = World::quorum(3, 1);
    world.write("users", 100);
    world.stream();
    let backup = world.record().clone();
    world.black_out(1);
    world.until("another serves", |world| {
        world.record().current.phase == ReignPhase::Serving && world.record().current.epoch > backup.current.epoch
    });
    world.write("users", 50);
    world.stream();
    world.steps(3);
    assert!(world.acknowledged >= 150);
    let reign = world.reign.as_mut().unwrap();
    (reign.spec, reign.resource_version) = (backup, "restored".into());
    world
}

fn nothing_is_lost(world: &mut World) {
    let acknowledged = world.acknowledged;
    world.converge();
    let leader = world.leader().unwrap();
    assert!(world.volume(leader).unwrap().positions["users"].sequence >= acknowledged);
}

#[test]
fn a_restored_record_begins_nothing_before_every_volume_has_answered() {
    let mut world = restored();
    let epoch = world.record().current.epoch;
    world.restart(2);
    for _ in 0..20 {
        let plan = world.step();
        assert!(plan.reign_write.is_none() && plan.orders.is_empty(), "{plan:#?}");
    }
    assert!(world.waits(WaitingReason::MemberMustAnswer));
    assert_eq!(world.record().current.epoch, epoch);
    world.heal();
    nothing_is_lost(&mut world);
}

#[test]
fn a_loss_that_was_accepted_for_a_reign_that_served_waives_nothing_of_a_restored_record() {
    let mut world = restored();
    world.reign.as_mut().unwrap().spec.current.accept_loss = true;
    world.restart(2);
    world.steps(5);
    assert!(world.waits(WaitingReason::MemberMustAnswer));
    world.heal();
    nothing_is_lost(&mut world);
}

#[test]
fn a_seal_that_the_record_does_not_know_of_is_enough_to_ask_everybody() {
    let mut world = restored();
    let unknown = world.volume(2).unwrap().reign.clone().unwrap();
    // It sealed for the reign that it never heard of again: only who led that one has what was acknowledged.
    world.volume_mut(1).sealed =
        Some(parovoz_operator_core::observed::ReignRef { epoch: unknown.epoch, reign_id: unknown.reign_id });
    world.heal();
    world.black_out(2);
    world.black_out(3);
    world.restart(1);
    for _ in 0..20 {
        assert!(world.step().reign_write.is_none());
    }
    world.heal();
    nothing_is_lost(&mut world);
}

#[test]
fn reigns_that_were_begun_before_the_unknown_ones_were_heard_of_do_not_hide_them() {
    let mut world = restored();
    world.heal();
    world.kill(2);
    world.kill(3);
    // The only one that answers knows of nothing else, so it is promoted, again and again, first at an epoch that was used
    // under another id; it serves nobody.
    world.started.clear();
    for _ in 0..3 {
        world.restart(1);
        world.pass(seconds(20));
    }
    let unknown = world.volume(2).unwrap().reign.clone().unwrap();
    assert!(world.record().current.epoch > i64::try_from(unknown.epoch).unwrap(), "{:?}", world.record().current);
    assert_eq!(world.record().current.phase, ReignPhase::Promoting);
    // One of the two that know comes back: it is not told to follow, for it would lose what it alone has.
    world.start(3);
    world.pass(seconds(20));
    assert!(world.volume(3).unwrap().positions["users"].sequence >= world.acknowledged);
    assert!(world.waits(WaitingReason::MemberMustAnswer));
    world.start(2);
    nothing_is_lost(&mut world);
}

#[test]
fn a_reign_that_serves_is_taken_over_though_the_volume_of_a_member_that_it_lists_is_lost() {
    let mut world = restored();
    let (epoch, lost) = (world.volume(2).unwrap().started, world.volume(3).unwrap().data_uuid.clone());
    world.heal();
    world.delete_claim(3);
    world.delete_pod(3);
    world.until("its reign is on record", |world| world.record().current.epoch == i64::try_from(epoch).unwrap());
    let current = &world.record().current;
    assert_eq!((current.phase, current.primary.as_str()), (ReignPhase::Serving, &*world.volume(2).unwrap().data_uuid));
    // It counts as one of those whose votes may be needed, until another reign begins without it.
    assert!(current.members.iter().any(|member| member.data_uuid == lost && member.name == "cache-3"));
    nothing_is_lost(&mut world);
}

#[test]
fn a_volume_without_a_pod_is_asked_for_too_before_a_lost_record_is_rebuilt() {
    let mut world = World::quorum(3, 1);
    let mut left = world.claims[&3].clone();
    (left.name, left.ordinal, left.uid) = ("cache-4".into(), 4, "claim-left".into());
    world.claims.insert(4, left);
    world.reign = None;
    world.step();
    assert!(world.pods.contains_key(&4), "a pod is made for it, so that it can answer");
    world.black_out(4);
    world.steps(5);
    assert!(world.reign.is_none() && world.waits(WaitingReason::MemberMustAnswer));
    world.heal();
    world.converge();
    assert!(world.record().current.primary_process.contains("/process"), "{:?}", world.record().current);
}

#[test]
fn every_promotion_names_the_process_and_one_that_does_not_say_which_it_is_is_not_promoted() {
    let mut world = World::quorum(3, 1);
    for (ordinal, epochs) in [(1, 1), (2, 2)] {
        world.restart(ordinal);
        world.converge();
        let record = world.record();
        let named = |process: &str| process.contains("/process");
        assert!(named(&record.current.primary_process), "{:?}", record.current);
        assert!(record.history.iter().take(epochs).all(|past| named(&past.primary_process)));
    }
    let leader = world.leader().unwrap();
    world.restart(leader);
    world.processes.values_mut().for_each(|process| process.id.clear());
    world.steps(20);
    assert_ne!(world.record().current.phase, ReignPhase::Promoting);
    assert!(world.waits(WaitingReason::CandidateMissing));
}

#[test]
fn times_of_an_operator_whose_clock_is_ahead_hold_nothing_up() {
    let mut world = World::quorum(3, 1);
    world.black_out(1);
    world.until("another is promoted", |world| world.record().current.phase == ReignPhase::Promoting);
    let ahead = world.now.checked_add(seconds(900)).unwrap();
    world.reign.as_mut().unwrap().spec.current.begun_at = MicroTime(ahead);
    world.restart(2);
    let began = world.now;
    world.until("it serves again", |world| world.record().current.phase == ReignPhase::Serving);
    assert!(world.now.duration_since(began) < seconds(30), "{:?}", world.now.duration_since(began));
}
