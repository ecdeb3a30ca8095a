//! What people are told: status, conditions and events, and when they are written.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use std::time::Duration;

use parovoz_api::{ConditionReason, ConditionStatus, ConditionType, WaitingReason};
use parovoz_operator_core::status::{Failure, events, status, worth_writing};
use world::World;

fn condition(world: &mut World, type_: ConditionType) -> (ConditionStatus, ConditionReason) {
    let status = world.status();
    let found = status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
    assert_eq!(found.observed_generation, world.store.generation);
    (found.status, found.reason)
}

#[test]
fn status_is_written_for_what_changed_at_once_and_for_moving_figures_every_five_seconds() {
    let mut world = World::converged(2);
    let old = world.status();
    assert!(!worth_writing(Some(&old), &old, None));
    world.write("users", 3);
    let moved = world.status();
    assert_ne!(old, moved);
    assert!(!worth_writing(Some(&old), &moved, Some(Duration::from_secs(4))));
    assert!(worth_writing(Some(&old), &moved, Some(Duration::from_secs(5))));
    world.delete_pod(2);
    assert!(worth_writing(Some(&old), &world.status(), Some(Duration::ZERO)));
    assert!(worth_writing(None, &old, None));
}

#[test]
fn a_condition_that_turns_is_an_event_and_keeps_its_time_until_it_turns_again() {
    let mut world = World::converged(2);
    let healthy = world.store.status.clone().unwrap();
    world.black_out(1);
    world.black_out(2);
    world.steps(2);
    let down = world.store.status.clone().unwrap();
    let told = events(Some(&healthy), &down);
    assert!(
        told.iter().any(|event| event.warning && event.note.starts_with("Available is False (PrimaryUnreachable)"))
    );
    let since = |status: &parovoz_api::ReplicatedStoreStatus| {
        status.conditions.iter().find(|c| c.type_ == ConditionType::Available).unwrap().last_transition_time.clone()
    };
    world.steps(5);
    assert_eq!(since(&world.store.status.clone().unwrap()), since(&down));
    assert!(events(None, &down).is_empty());
}

#[test]
fn what_the_api_server_refuses_is_in_the_status() {
    let mut world = World::converged(1);
    let (observed, plan) = world.plan();
    let failure =
        Failure { message: "apply claim data-cache-1: forbidden".into(), terminal: true, foreign: false, claim: true };
    let told = status(&observed, &plan, &[failure]);
    assert_eq!(told.waiting[0].reason, WaitingReason::Refused);
    let reasons: Vec<_> = told.conditions.iter().map(|condition| condition.reason).collect();
    assert!(
        reasons.contains(&ConditionReason::ResizeRefused) && reasons.contains(&ConditionReason::SpecificationInvalid)
    );
}

#[test]
fn lag_and_copies_are_told_by_member_and_for_the_store() {
    let mut world = World::converged(3);
    world.write("users", 20_000);
    let status = world.status();
    assert_eq!(status.lag.as_ref().unwrap().sequences, 20_000);
    assert_eq!(status.members[0].lag, None);
    assert_eq!(status.members[1].lag.as_ref().unwrap().sequences, 20_000);
    assert_eq!(status.members[1].upstream.as_deref(), Some("cache-1"));
    assert_eq!(condition(&mut world, ConditionType::ReplicationHealthy).1, ConditionReason::LagAboveWarning);
}

#[test]
fn a_store_being_deleted_is_left_to_the_garbage_collector() {
    let mut world = World::converged(2);
    world.store.deleting = true;
    world.delete_pod(1);
    assert!(world.step().changes_nothing());
}

#[test]
fn an_unreadable_setting_is_reported_and_nothing_is_done() {
    let mut world = World::converged(1);
    world.store.spec.recovery.window = parovoz_api::TimeSpan("soon".into());
    world.delete_pod(1);
    let plan = world.step();
    assert!(plan.changes_nothing() && plan.invalid.unwrap().contains("soon"));
    assert_eq!(condition(&mut world, ConditionType::Degraded).1, ConditionReason::SpecificationInvalid);
}
