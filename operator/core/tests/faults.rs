//! Faults in the middle of a procedure, and what its receipt says of them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use parovoz_api::{LossOutcome, OnQuorumLoss, ReignCause, ReignPhase, TimeSpan, WaitingReason};
use parovoz_operator_core::observed::Position;
use parovoz_operator_core::plan::OrderKind;
use parovoz_operator_core::status::Failure;
use serde_json::json;
use world::World;

fn seconds(seconds: i64) -> SignedDuration {
    SignedDuration::from_secs(seconds)
}

/// Kill the container; the kubelet says so at once, and starts it anew only later.
fn kill_seen(world: &mut World, ordinal: u32) {
    let ended = world.kill(ordinal).unwrap();
    world.pods.get_mut(&ordinal).unwrap().ended_processes = vec![ended];
}

/// One pass of which the member learns nothing.
fn step_without(world: &mut World, ordinal: u32) {
    let (_, mut plan) = world.plan();
    let name = format!("cache-{ordinal}");
    plan.orders.retain(|order| order.pod != name);
    world.carry_out(&plan);
    world.now = world.now.checked_add(SignedDuration::from_millis(250)).unwrap();
    world.cluster();
}

fn served_since(world: &World, epoch: i64) -> bool {
    world.record().current.phase == ReignPhase::Serving && world.record().current.epoch > epoch
}

fn users(world: &World, ordinal: u32) -> u64 {
    world.volume(ordinal).unwrap().positions["users"].sequence
}

/// A store without quorum whose primary, the first member, has seven records that nobody else has.
fn with_a_tail(replicas: i32) -> World {
    let mut world = World::converged(replicas);
    world.write("users", 100);
    world.stream();
    world.write("users", 7);
    world.processes.values_mut().for_each(|process| process.upstream = None);
    world
}

#[test]
fn a_primary_that_is_back_and_seals_late_is_waited_for() {
    for enabled in [true, false] {
        let mut world = with_a_tail(3);
        world.store.spec.failover.enabled = enabled;
        world.restart(1);
        (0..8).for_each(|_| step_without(&mut world, 1));
        assert_eq!(world.record().current.phase, ReignPhase::Sealing);
        assert!(world.waits(WaitingReason::MemberMustAnswer));
        world.converge();
        assert!(world.leader() == Some(1) && users(&world, 1) >= 107);
    }
}

#[test]
fn a_primary_that_is_back_and_gone_again_keeps_its_place_while_no_other_may_take_it() {
    let mut world = with_a_tail(3);
    world.store.spec.failover.enabled = false;
    world.restart(1);
    step_without(&mut world, 1);
    kill_seen(&mut world, 1);
    world.pass(seconds(30));
    assert!(world.waits(WaitingReason::FailoverDisabled));
    assert_eq!(world.leader(), None);
    world.start(1);
    world.converge();
    assert!(world.leader() == Some(1) && users(&world, 1) >= 107);
}

#[test]
fn an_old_primary_that_does_not_know_its_position_does_not_waive_the_lag() {
    let mut world = World::converged(2);
    world.processes.get_mut(&2).unwrap().upstream = None;
    world.apart.insert(2);
    world.pass(seconds(40));
    world.restart(1);
    world.volume_mut(1).complete = false;
    world.pass(seconds(30));
    assert!(world.waits(WaitingReason::LagAboveLimit));
    assert_eq!(world.leader(), None);
}

#[test]
fn what_a_person_accepted_ends_with_the_reign_that_serves() {
    let mut world = World::quorum(3, 1);
    world.pass(seconds(1));
    world.black_out(1);
    world.black_out(2);
    world.ask(
        json!({"store": "cache", "type": "Promote", "member": "cache-3", "acceptLoss": true, "attestPrimaryGone": true}),
    );
    world.until("it is told to lead", |world| world.leader() == Some(3));
    assert!(world.record().current.accept_loss && world.record().current.attested);
    world.heal();
    world.until("it serves", |world| served_since(world, 1));
    assert!(!world.record().current.accept_loss && !world.record().current.attested);
}

#[test]
fn a_refused_object_does_not_keep_a_primary_from_going_on_alone() {
    let mut world = World::quorum(3, 2);
    let message = "apply data-cache-1: forbidden".to_owned();
    world.failures.push(Failure { message, terminal: true, foreign: false, claim: true });
    world.black_out(2);
    world.store.spec.replication.on_quorum_loss = OnQuorumLoss::Degrade;
    world.until("it goes on alone", |world| served_since(world, 1));
    assert_eq!(world.record().current.cause, ReignCause::Degraded);
}

#[test]
fn refusals_are_tried_again_later_only_where_nothing_else_is_to_be_done() {
    let mut world = World::quorum(3, 1);
    world.objects.pop_first();
    let (observed, plan) = world.plan();
    assert!(!plan.objects.is_empty() && plan.can_rest(&observed));
    world.restart(1);
    let (observed, plan) = world.plan();
    assert!(!plan.can_rest(&observed));
}

#[test]
fn a_primary_whose_pod_is_made_anew_and_not_placed_is_replaced_after_the_delay() {
    let mut world = World::quorum(3, 1);
    world.store.spec.failover.delay = TimeSpan::seconds(5);
    world.write("users", 10);
    world.stream();
    world.remake_unplaced(1);
    let began = world.now;
    world.until("another serves", |world| served_since(world, 1));
    let took = world.now.duration_since(began);
    assert!(took >= seconds(5) && took < seconds(10), "{took:?}");
}

#[test]
fn a_candidate_that_is_not_placed_or_does_not_know_itself_or_whose_disk_hangs_gives_way() {
    for case in 0..3 {
        let mut world = World::quorum(3, 1);
        world.write("users", 10);
        world.stream();
        kill_seen(&mut world, 1);
        world.until("a candidate is told", |world| world.record().current.phase == ReignPhase::Promoting);
        let candidate = world.leader().unwrap();
        match case {
            0 => world.remake_unplaced(candidate),
            1 => world.park(candidate),
            _ => world.processes.get_mut(&candidate).unwrap().hangs = true,
        }
        world.start(1);
        world.until("another serves", |world| served_since(world, 2));
        assert_ne!(world.record().current.primary, world.volume(candidate).unwrap().data_uuid, "case {case}");
        let leader = world.leader().unwrap();
        assert!(users(&world, leader) >= world.acknowledged);
    }
}

#[test]
fn a_candidate_whose_disk_hangs_and_that_nobody_can_stand_in_for_is_told_of() {
    let mut world = World::quorum(3, 1);
    kill_seen(&mut world, 1);
    world.until("a candidate is told", |world| world.record().current.phase == ReignPhase::Promoting);
    let candidate = world.leader().unwrap();
    world.processes.get_mut(&candidate).unwrap().hangs = true;
    world.pass(seconds(10));
    assert!(world.waits(WaitingReason::SealQuorumOutOfReach));
    world.heal();
    world.start(1);
    world.converge();
}

/// A planned reign has begun, and the old primary knows nothing of it yet.
fn switchover_begun(world: &mut World) {
    world.pass(seconds(40));
    world.ask(json!({"store": "cache", "type": "Switchover", "member": "cache-3"}));
    for _ in 0..20 {
        let (_, mut plan) = world.plan();
        let begun = plan.reign_write.is_some();
        plan.orders.retain(|_| !begun);
        world.carry_out(&plan);
        if begun {
            return;
        }
    }
    panic!("no switchover is begun");
}

#[test]
fn a_planned_reign_whose_old_primary_hangs_goes_on_with_the_others() {
    let mut world = World::quorum(3, 1);
    switchover_begun(&mut world);
    world.processes.get_mut(&1).unwrap().hangs = true;
    world.steps(2);
    world.until("another serves", |world| served_since(world, 1));
    assert_ne!(world.leader(), Some(1));
    assert_eq!(world.record().current.cause, ReignCause::PrimaryStalled);
    world.heal();
    world.converge();
}

#[test]
fn a_planned_reign_whose_old_primary_has_not_sealed_yet_says_what_it_waits_for() {
    let mut world = World::quorum(3, 1);
    switchover_begun(&mut world);
    assert!(world.waits(WaitingReason::MemberMustAnswer));
    world.converge();
    assert_eq!((world.leader(), world.record().current.cause), (Some(3), ReignCause::Switchover));
    assert_eq!(world.status().last_failover, None);
}

#[test]
fn a_switchover_whose_old_primary_dies_before_it_seals_is_a_failover_with_a_receipt() {
    let mut world = World::converged(3);
    world.write("users", 100);
    world.stream();
    switchover_begun(&mut world);
    world.volume_mut(1).positions.get_mut("users").unwrap().sequence += 7;
    kill_seen(&mut world, 1);
    world.until("another serves", |world| served_since(world, 1));
    assert_eq!(world.record().current.cause, ReignCause::PrimaryDead);
    let receipt = world.record().last_failover.clone().unwrap();
    assert_eq!((receipt.from.as_str(), receipt.outcome), ("cache-1", LossOutcome::Unknown));
    world.start(1);
    world.converge();
    let receipt = world.status().last_failover.unwrap();
    let range = &receipt.ranges[0];
    assert_eq!((range.prefix.as_str(), range.first, range.last), ("users", 101, 107));
}

#[test]
fn a_primary_that_takes_over_a_lower_copy_has_a_receipt() {
    let mut world = with_a_tail(2);
    world.store.spec.failover.enabled = false;
    world.restart(1);
    // What it had synced is not all there, and it knows that.
    world.volume_mut(1).complete = false;
    world.volume_mut(1).positions.get_mut("users").unwrap().sequence = 50;
    world.converge();
    assert_eq!((world.leader(), users(&world, 1) < 107), (Some(1), true));
    let receipt = world.status().last_failover.unwrap();
    assert_eq!((receipt.from, receipt.to, receipt.outcome), ("cache-1".into(), "cache-1".into(), LossOutcome::Unknown));
    assert!(receipt.phases.total.is_some());
}

#[test]
fn the_receipt_of_a_reign_that_never_served_goes_when_the_old_primary_leads_on() {
    let mut world = World::quorum(3, 1);
    world.write("users", 10);
    world.stream();
    kill_seen(&mut world, 1);
    world.until("a candidate is told", |world| world.record().current.phase == ReignPhase::Promoting);
    assert!(world.record().last_failover.is_some());
    let candidate = world.leader().unwrap();
    world.start(1);
    kill_seen(&mut world, candidate);
    world.until("it serves again", |world| served_since(world, 2));
    assert_eq!(world.leader(), Some(1));
    assert!(world.record().last_failover.is_none() && world.record().forks.is_empty(), "{:?}", world.record().forks);
}

#[test]
fn an_attempt_that_is_given_up_leaves_the_receipt_of_the_failover_before_it() {
    let mut world = World::quorum(3, 1);
    world.write("users", 10);
    world.stream();
    kill_seen(&mut world, 1);
    world.until("another serves", |world| served_since(world, 1));
    world.start(1);
    world.converge();
    let receipt = world.record().last_failover.clone().unwrap();
    assert_eq!((receipt.outcome, world.record().before_attempt.clone()), (LossOutcome::None, None));
    world.pass(seconds(600));
    let leader = world.leader().unwrap();
    kill_seen(&mut world, leader);
    world.until("a candidate is told", |world| world.record().current.phase == ReignPhase::Promoting);
    assert_ne!(world.record().last_failover.as_ref().unwrap().epoch, receipt.epoch);
    let (epoch, candidate) = (world.record().current.epoch, world.leader().unwrap());
    world.start(leader);
    kill_seen(&mut world, candidate);
    world.until("it serves again", |world| served_since(world, epoch));
    assert_eq!((world.leader(), world.record().last_failover.clone()), (Some(leader), Some(receipt)));
}

#[test]
fn a_tail_below_a_later_epochs_position_is_lost_all_the_same() {
    let mut world = World::converged(3);
    world.write("users", 90);
    world.stream();
    world.write("users", 3);
    kill_seen(&mut world, 1);
    world.until("a candidate is told", |world| world.record().current.phase == ReignPhase::Promoting);
    let candidate = world.leader().unwrap();
    let epoch = world.volume(candidate).unwrap().started;
    // It got further than the old primary, and the third followed; then it dies before it was seen to serve.
    world.volume_mut(candidate).positions.insert("users".into(), Position { epoch, sequence: 95 });
    let copy = world.volume(candidate).unwrap().positions.clone();
    let third = 5 - candidate;
    world.volume_mut(third).positions = copy;
    world.start(1);
    kill_seen(&mut world, candidate);
    world.until("it serves again", |world| served_since(world, 2));
    assert_eq!(world.leader(), Some(third));
    world.start(candidate);
    world.converge();
    let receipt = world.status().last_failover.unwrap();
    // Nobody asked the one that died what it had acknowledged.
    assert_eq!(receipt.outcome, LossOutcome::Unknown, "{receipt:?}");
    assert!(receipt.lost.ends_with(", and perhaps more"), "{receipt:?}");
    let range = &receipt.ranges[0];
    assert_eq!((range.prefix.as_str(), range.epoch, range.first, range.last), ("users", 1, 91, 93));
}

#[test]
fn a_pull_is_not_looked_after_at_once() {
    let mut world = with_a_tail(2);
    world.store.spec.failover.enabled = false;
    world.restart(1);
    // It lost what it had not synced, and the replica had it already.
    world.volume_mut(1).positions.get_mut("users").unwrap().sequence = 90;
    let mut pulls = 0;
    for _ in 0..20 {
        let (_, plan) = world.plan();
        if plan.orders.iter().any(|order| matches!(order.kind, OrderKind::Pull { .. })) {
            pulls += 1;
            // The first of them raises the Lease as well; and it takes a while.
            assert!(pulls == 1 || !plan.urgent);
        }
        if (1..3).contains(&pulls) { step_without(&mut world, 1) } else { drop(world.step()) }
    }
    assert_eq!(pulls, 3);
    world.converge();
    assert_eq!((world.leader(), world.status().last_failover), (Some(1), None));
}

#[test]
fn the_first_reign_is_not_begun_over_past_a_volume_that_nobody_asked() {
    let mut world = World::new(2);
    world.until("it is told to lead", |world| {
        world.reign.as_ref().is_some_and(|reign| reign.spec.current.phase == ReignPhase::Promoting)
    });
    assert_eq!(world.leader(), Some(1));
    world.write("users", 10);
    // A restored record that lists only the other, for a store that was made smaller; the first has no pod.
    let spec = &mut world.reign.as_mut().unwrap().spec;
    let past = json!({
        "epoch": spec.current.epoch, "reignID": spec.current.reign_id, "phase": "Promoting", "cause": "First",
        "primary": spec.current.primary, "primaryName": "cache-1",
        "members": spec.current.members.iter().map(|member| &member.data_uuid).collect::<Vec<_>>(),
        "leaseDurationMs": 10_000, "begunAt": spec.current.begun_at,
    });
    spec.history.insert(0, serde_json::from_value(past).unwrap());
    spec.current.members.retain(|member| member.name == "cache-2");
    spec.current.primary = spec.current.members[0].data_uuid.clone();
    (spec.current.phase, spec.current.epoch) = (ReignPhase::Sealing, spec.current.epoch + 1);
    spec.current.reign_id = "another".into();
    world.scale(1);
    world.delete_pod(1);
    world.steps(40);
    assert_eq!(world.volume(2).unwrap().started, 0, "an empty member leads and the data is forgotten");
    assert!(world.pods.contains_key(&1), "a pod is made for the volume, so that it can answer");
}

#[test]
fn a_suspicion_of_an_operator_whose_clock_is_ahead_does_not_block_a_failover() {
    let mut world = World::converged(3);
    world.black_out(1);
    world.until("Sealing", |world| world.record().current.phase == ReignPhase::Sealing);
    let ahead = MicroTime(world.now.checked_add(seconds(900)).unwrap());
    world.reign.as_mut().unwrap().spec.current.suspected_at = Some(ahead);
    world.until("another serves", |world| served_since(world, 1));
    assert_ne!(world.leader(), Some(1));
}
