//! What the planner does when the number of members or the fate of their volumes changes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use parovoz_api::{ReignPhase, StorePhase, WaitingReason};
use parovoz_operator_core::plan::Step;
use serde_json::json;
use world::World;

#[test]
fn scaling_up_makes_members_and_lets_them_join() {
    let mut world = World::converged(1);
    world.write("users", 50);
    world.scale(3);
    world.converge();
    let status = world.status();
    assert_eq!((status.ready_replicas, status.primary.as_deref()), (3, Some("cache-1")));
    assert_eq!(world.record().current.members.len(), 3);
    assert_eq!(world.volume(3).unwrap().positions, world.volume(1).unwrap().positions);
}

#[test]
fn a_store_that_is_scaled_down_before_its_first_reign_comes_to_life() {
    let mut world = World::new(4);
    world.step();
    world.step();
    assert!(world.reign.is_none() && world.claims.len() == 4);
    world.scale(1);
    // This one found no volume, so it holds nothing and is not waited for.
    world.claims.get_mut(&4).unwrap().bound = false;
    world.black_out(4);
    world.converge();
    let status = world.status();
    assert_eq!((status.phase, status.ready_replicas, world.pods.len()), (StorePhase::Healthy, 1, 1));
}

#[test]
fn scaling_down_takes_the_highest_replica_after_a_reign_without_it_serves() {
    let mut world = World::converged(3);
    world.scale(2);
    let freeze = world.step();
    assert_eq!(freeze.step, Some(Step::ChangeMembers));
    assert!(freeze.reign_write.is_none() && freeze.deletes.is_empty(), "the reign without the member comes first");
    let mut removed = None;
    for _ in 0..10 {
        let plan = world.step();
        if let Some(delete) = plan.deletes.first() {
            assert_eq!(world.record().current.phase, ReignPhase::Serving);
            removed = Some(delete.name.clone());
        }
    }
    assert_eq!(removed.as_deref(), Some("cache-3"));
    world.converge();
    assert!(world.claims.contains_key(&3), "Retain keeps the volume");
    assert_eq!(world.status().replicas, 2);
}

#[test]
fn a_member_that_was_scaled_away_is_brought_back_if_its_vote_is_lacking() {
    let mut world = World::quorum(3, 1);
    world.write("users", 9);
    world.stream();
    world.scale(2);
    world.until("the reign without the third is promoted", |world| {
        let current = &world.record().current;
        current.phase == ReignPhase::Promoting && current.members.len() == 2
    });
    // The candidate loses its volume, the next one waits for it, and the one that is not listed any more has no pod.
    world.delete_claim(1);
    world.delete_pod(1);
    world.until("the second is promoted", |world| {
        let current = &world.record().current;
        current.phase == ReignPhase::Promoting && world.volume(2).unwrap().data_uuid == current.primary
    });
    world.black_out(1);
    world.delete_pod(3);
    world.restart(2);
    world.until("its vote is asked for", |world| world.pods.contains_key(&3));
    world.heal();
    world.converge();
    assert_eq!((world.leader(), world.pods.keys().copied().collect::<Vec<_>>()), (Some(2), vec![1, 2]));
}

#[test]
fn scaling_down_never_takes_the_primary_whatever_its_number() {
    let mut world = World::converged(3);
    world.write("users", 9);
    world.stream();
    world.volume_mut(1).positions.get_mut("users").unwrap().sequence = 1;
    world.volume_mut(2).positions.get_mut("users").unwrap().sequence = 1;
    world.restart(1);
    world.converge();
    assert_eq!(world.leader(), Some(3));
    world.scale(1);
    world.converge();
    assert_eq!(world.pods.keys().copied().collect::<Vec<_>>(), [3]);
    assert_eq!(world.status().phase, StorePhase::Healthy);
}

#[test]
fn scaling_down_waits_until_those_who_stay_stream() {
    let mut world = World::converged(3);
    world.cut(2);
    world.scale(2);
    for _ in 0..40 {
        let plan = world.step();
        assert!(plan.deletes.is_empty() && plan.reign_write.is_none());
    }
    assert!(world.waits(WaitingReason::ReplicasMustStream));
    world.heal();
    world.converge();
    assert_eq!(world.pods.len(), 2);
}

#[test]
fn scaling_down_by_two_goes_one_member_at_a_time() {
    let mut world = World::converged(3);
    world.scale(1);
    for _ in 0..30 {
        let before = world.pods.len();
        world.step();
        assert!(before - world.pods.len() <= 1);
    }
    world.converge();
    assert_eq!(world.pods.keys().copied().collect::<Vec<_>>(), [1]);
    assert_eq!(world.record().current.epoch, 3);
}

#[test]
fn a_member_that_was_scaled_away_comes_back_with_the_volume_it_left() {
    let mut world = World::converged(3);
    let identity = world.volume(3).unwrap().data_uuid.clone();
    world.scale(2);
    world.converge();
    world.scale(3);
    world.converge();
    assert_eq!(world.volume(3).unwrap().data_uuid, identity);
    assert_eq!(world.status().ready_replicas, 3);
}

#[test]
fn deletion_policy_delete_owns_the_claims_and_removes_them_with_their_members() {
    let mut world = World::with_spec(json!({"replicas": 2, "storage": {"size": "1Gi"}, "deletionPolicy": "Delete"}));
    world.converge();
    assert!(world.claims.values().all(|claim| claim.owned));
    world.scale(1);
    world.converge();
    assert_eq!(world.claims.keys().copied().collect::<Vec<_>>(), [1]);
}

#[test]
fn changing_the_deletion_policy_changes_who_owns_the_claims() {
    let mut world = World::converged(1);
    assert!(!world.claims[&1].owned);
    world.store.spec.deletion_policy = parovoz_api::DeletionPolicy::Delete;
    world.converge();
    assert!(world.claims[&1].owned);
}
