//! The procedure of a new reign, rule by rule.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use jiff::SignedDuration;
use parovoz_api::{
    ConditionReason, ConditionStatus, ConditionType, LossOutcome, Mode, OnQuorumLoss, OperationPhase, ReignCause,
    ReignPhase, StorePhase, WaitingReason,
};
use parovoz_operator_core::plan::{OrderKind, Plan, SealEvidence};
use serde_json::json;
use world::World;

fn condition(world: &mut World, type_: ConditionType) -> (ConditionStatus, ConditionReason) {
    let status = world.status();
    let found = status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
    (found.status, found.reason)
}

fn seconds(seconds: i64) -> SignedDuration {
    SignedDuration::from_secs(seconds)
}

fn evidence(plan: &Plan) -> Vec<(&str, SealEvidence)> {
    let seal = |order: &parovoz_operator_core::plan::Order| match &order.kind {
        OrderKind::Seal { evidence, .. } => Some(*evidence),
        _ => None,
    };
    plan.orders.iter().filter_map(|order| Some((order.pod.as_str(), seal(order)?))).collect()
}

/// Kill the primary's container; the kubelet says so at once, and starts it anew only later.
fn kill_seen(world: &mut World, ordinal: u32) {
    let ended = world.kill(ordinal).unwrap();
    world.pods.get_mut(&ordinal).unwrap().ended_processes = vec![ended];
}

#[test]
fn a_killed_primary_is_replaced_at_once_on_the_kubelets_word_and_nothing_acknowledged_is_lost() {
    let mut world = World::quorum(3, 1);
    world.write("users", 100);
    world.stream();
    kill_seen(&mut world, 1);
    let began = world.now;
    let plan = world.step();
    assert_eq!(plan.reign_write.as_ref().unwrap().spec.current.cause, ReignCause::PrimaryDead);
    assert_eq!(evidence(&plan), [("cache-2", SealEvidence::Dead), ("cache-3", SealEvidence::Dead)]);
    world.until("another serves", |world| world.record().current.phase == ReignPhase::Serving);
    assert!(world.now.duration_since(began) < seconds(2), "{:?}", world.now.duration_since(began));
    assert_eq!(world.pods[&2].role.as_deref(), Some("primary"));
    assert!(world.volume(2).unwrap().positions["users"].sequence >= world.acknowledged);
    let receipt = world.record().last_failover.clone().unwrap();
    assert_eq!(
        (receipt.outcome, receipt.from.as_str(), receipt.to.as_str()),
        (LossOutcome::Unknown, "cache-1", "cache-2")
    );
    assert!(receipt.phases.seal.is_some() && receipt.phases.promote.is_some() && receipt.phases.total.is_some());
}

#[test]
fn a_text_of_another_process_is_no_proof_of_death() {
    let mut world = World::quorum(3, 1);
    world.kill(1);
    world.pods.get_mut(&1).unwrap().ended_processes = vec!["process-of-long-ago".into()];
    let plan = world.step();
    assert!(evidence(&plan).iter().all(|(_, evidence)| *evidence == SealEvidence::Silent));
}

#[test]
fn silence_is_believed_only_once_the_replicas_promises_are_over() {
    let mut world = World::quorum(3, 1);
    world.black_out(1);
    let began = world.now;
    world.until("Sealing", |world| world.record().current.phase == ReignPhase::Sealing);
    let sealed = |world: &World| world.volume(2).unwrap().sealed.is_some();
    world.step();
    assert!(!sealed(&world), "it heard the primary a moment ago and refuses");
    world.until("another serves", |world| world.record().current.phase == ReignPhase::Serving);
    let took = world.now.duration_since(began);
    assert!(took >= seconds(3) && took < seconds(6), "{took:?}");
    assert_eq!(world.record().current.cause, ReignCause::PrimarySilent);
}

#[test]
fn a_primary_that_only_the_operator_cannot_reach_goes_on() {
    let mut world = World::quorum(3, 1);
    world.cut(1);
    world.pass(seconds(60));
    assert_eq!((world.record().current.epoch, world.leader()), (1, Some(1)));
    assert!(world.waits(WaitingReason::MemberMustAnswer));
    world.write("users", 5);
    world.stream();
    assert_eq!(world.acknowledged, 5);
}

#[test]
fn a_primary_that_nobody_answers_for_is_waited_for() {
    let mut world = World::quorum(3, 1);
    for ordinal in 1..=3 {
        world.black_out(ordinal);
    }
    world.pass(seconds(60));
    assert_eq!(world.record().current.epoch, 1, "nothing is begun that could not be finished");
    assert!(world.waits(WaitingReason::PrimaryMustReturn));
    assert_eq!(condition(&mut world, ConditionType::Available).0, ConditionStatus::False);
}

#[test]
fn without_a_seal_quorum_in_reach_nothing_is_begun() {
    let mut world = World::quorum(3, 1);
    world.black_out(2);
    kill_seen(&mut world, 1);
    world.pass(seconds(30));
    assert_eq!(world.record().current.epoch, 1);
    assert!(world.waits(WaitingReason::SealQuorumOutOfReach));
    assert_eq!(world.status().phase, StorePhase::Unavailable);
    world.heal();
    world.until("another serves", |world| {
        world.record().current.phase == ReignPhase::Serving && world.record().current.epoch > 1
    });
}

#[test]
fn the_old_primary_is_found_again_and_the_receipt_names_what_only_it_had() {
    let mut world = World::converged(3);
    world.write("users", 100);
    world.stream();
    world.write("users", 7);
    kill_seen(&mut world, 1);
    world.until("another serves", |world| {
        world.record().current.phase == ReignPhase::Serving && world.record().current.epoch > 1
    });
    assert_eq!(world.record().last_failover.as_ref().unwrap().outcome, LossOutcome::Unknown);
    world.start(1);
    world.converge();
    let receipt = world.status().last_failover.unwrap();
    assert_eq!(receipt.outcome, LossOutcome::Ranges);
    let range = &receipt.ranges[0];
    assert_eq!((range.prefix.as_str(), range.epoch, range.first, range.last), ("users", 1, 101, 107));
    assert!(world.record().forks.is_empty());
    assert_eq!(world.status().phase, StorePhase::Healthy);
}

#[test]
fn an_old_primary_without_anything_more_closes_the_receipt_with_nothing_lost() {
    let mut world = World::quorum(3, 1);
    world.write("users", 10);
    world.stream();
    kill_seen(&mut world, 1);
    world.until("another serves", |world| {
        world.record().current.phase == ReignPhase::Serving && world.record().current.epoch > 1
    });
    world.start(1);
    world.converge();
    assert_eq!(world.status().last_failover.unwrap().lost, "none");
}

#[test]
fn without_a_quorum_an_isolated_primary_is_replaced_only_once_its_lease_stood_still() {
    let mut world = World::converged(3);
    world.write("users", 10);
    world.stream();
    world.black_out(1);
    let began = world.now;
    world.until("Sealing", |world| world.record().current.phase == ReignPhase::Sealing);
    world.pass(seconds(4));
    assert!(world.waits(WaitingReason::FenceOpen));
    assert!(world.lease.epoch > 1, "holders of the earlier epoch are stopped");
    world.until("another serves", |world| world.record().current.phase == ReignPhase::Serving);
    let took = world.now.duration_since(began);
    assert!(took >= seconds(10) && took < seconds(15), "{took:?}");
    assert_eq!(world.acknowledging(), [world.leader().unwrap()]);
    world.heal();
    world.converge();
    assert_eq!(world.status().phase, StorePhase::Healthy);
}

#[test]
fn a_replica_that_lacks_too_much_waits_for_a_person() {
    let mut world = World::converged(2);
    world.store.spec.failover.max_lag = 50;
    // The replica has not heard from the primary for a long time when the primary ends.
    world.processes.get_mut(&2).unwrap().upstream = None;
    world.apart.insert(2);
    world.pass(seconds(40));
    kill_seen(&mut world, 1);
    world.pass(seconds(30));
    assert!(world.waits(WaitingReason::LagAboveLimit));
    assert_eq!(world.leader(), None);
    let command = world.status().waiting.iter().find_map(|waiting| waiting.command.clone()).unwrap();
    assert!(command.contains("StoreOperation") && command.contains("acceptLoss"), "{command}");
}

#[test]
fn a_hung_disk_moves_the_reign_to_a_member_that_works() {
    let mut world = World::quorum(3, 1);
    world.write("users", 10);
    world.stream();
    world.processes.get_mut(&1).unwrap().hangs = true;
    world.until("another leads", |world| world.leader() != Some(1));
    assert_eq!(world.record().history[0].primary_name, "cache-1");
    assert_eq!(world.record().current.cause, ReignCause::PrimaryStalled);
    world.heal();
    world.converge();
    assert_eq!(world.status().phase, StorePhase::Healthy);
}

#[test]
fn a_primary_cut_off_from_its_replicas_is_replaced_though_it_answers_the_operator() {
    let mut world = World::quorum(3, 1);
    world.write("users", 10);
    world.stream();
    world.apart.insert(1);
    world.until("another leads", |world| world.leader() != Some(1) && world.leader().is_some());
    assert_eq!(world.record().current.cause, ReignCause::PrimaryStalled);
    world.heal();
    world.converge();
    assert_eq!(world.status().phase, StorePhase::Healthy);
}

#[test]
fn a_candidate_that_dies_gives_way_at_once_and_its_reign_is_asked_too() {
    let mut world = World::quorum(3, 1);
    world.write("users", 10);
    world.stream();
    kill_seen(&mut world, 1);
    world.until("a candidate is told", |world| world.record().current.phase == ReignPhase::Promoting);
    let candidate = world.record().current.primary.clone();
    let ordinal = (2..=3).find(|ordinal| world.volume(*ordinal).unwrap().data_uuid == candidate).unwrap();
    world.start(1);
    kill_seen(&mut world, ordinal);
    world.until("it serves again", |world| world.record().current.phase == ReignPhase::Serving);
    let record = world.record();
    assert_eq!(record.current.cause, ReignCause::CandidateFailed);
    assert!(record.history.iter().any(|past| past.phase == ReignPhase::Promoting && past.primary == candidate));
    let leader = world.leader().unwrap();
    assert!(world.volume(leader).unwrap().positions["users"].sequence >= world.acknowledged);
}

#[test]
fn the_operator_may_be_killed_after_any_part_of_any_plan() {
    for crash_at in 0..24 {
        let mut world = World::quorum(3, 1);
        world.write("users", 20);
        world.stream();
        kill_seen(&mut world, 1);
        for pass in 0..crash_at {
            let (_, mut plan) = world.plan();
            if pass + 1 == crash_at {
                // The swap is stored, and nothing else happens before another process takes over.
                plan.orders.clear();
                plan.labels.clear();
                plan.objects.clear();
                plan.deletes.clear();
            }
            world.carry_out(&plan);
            world.now = world.now.checked_add(SignedDuration::from_millis(100)).unwrap();
            world.cluster();
        }
        world.start(1);
        world.converge();
        let leader = world.leader().unwrap();
        assert!(world.volume(leader).unwrap().positions["users"].sequence >= world.acknowledged, "crash at {crash_at}");
    }
}

#[test]
fn two_operators_at_once_are_harmless() {
    let mut world = World::quorum(3, 1);
    world.write("users", 20);
    world.stream();
    kill_seen(&mut world, 1);
    let (_, first) = world.plan();
    let (_, second) = world.plan();
    world.carry_out(&first);
    // The second one's swap fails, so it sends nothing: its record is not the one that was observed.
    let present = world.reign.as_ref().unwrap().resource_version.clone();
    assert_ne!(second.reign_write.unwrap().expected, Some(present));
    world.start(1);
    world.converge();
    assert_eq!(world.status().phase, StorePhase::Healthy);
}

#[test]
fn failover_waits_for_delay_cooldown_and_budget_and_not_for_the_same_primary() {
    let mut world = World::quorum(3, 1);
    world.store.spec.failover.delay = parovoz_api::TimeSpan::seconds(20);
    world.black_out(1);
    world.pass(seconds(15));
    assert_eq!(world.record().current.epoch, 1);
    world.until("another serves", |world| {
        world.record().current.phase == ReignPhase::Serving && world.record().current.epoch > 1
    });
    world.store.spec.failover.delay = parovoz_api::TimeSpan::seconds(0);
    world.heal();
    world.until("healthy", |world| world.volume(1).unwrap().reign.as_ref().unwrap().epoch == 2);
    let leader = world.leader().unwrap();
    assert_eq!(condition(&mut world, ConditionType::FailoverReady).1, ConditionReason::Cooldown);
    kill_seen(&mut world, leader);
    world.pass(seconds(3));
    assert!(world.waits(WaitingReason::Cooldown));
    // The same member may lead again at any time.
    world.start(leader);
    world.until("it leads again", |world| world.leader() == Some(leader));
    world.converge();
    world.store.spec.failover.max_per_hour = 1;
    world.pass(seconds(60));
    let leader = world.leader().unwrap();
    kill_seen(&mut world, leader);
    world.pass(seconds(3));
    assert!(world.waits(WaitingReason::FailoverBudgetSpent));
}

#[test]
fn a_disabled_failover_leaves_the_decision_to_a_person() {
    let mut world = World::quorum(3, 1);
    world.store.spec.failover.enabled = false;
    kill_seen(&mut world, 1);
    world.pass(seconds(20));
    assert_eq!(world.record().current.epoch, 1);
    assert!(world.waits(WaitingReason::FailoverDisabled));
    world.start(1);
    world.converge();
    assert_eq!((world.leader(), world.record().current.epoch), (Some(1), 2));
}

#[test]
fn a_switchover_freezes_writes_and_changes_the_primary_without_a_receipt() {
    let mut world = World::quorum(3, 1);
    world.write("users", 50);
    world.stream();
    world.pass(seconds(40));
    let operation = world.ask(json!({"store": "cache", "type": "Switchover", "member": "cache-3"}));
    let freeze = world.step();
    assert!(matches!(freeze.orders[0].kind, OrderKind::Freeze { .. }));
    let began = world.now;
    world.until("the other serves", |world| {
        world.record().current.phase == ReignPhase::Serving && world.leader() == Some(3)
    });
    assert!(world.now.duration_since(began) < SignedDuration::from_millis(500));
    world.converge();
    let status = &world.operations.iter().find(|o| o.uid == operation).unwrap().status;
    assert_eq!(
        (status.phase, status.result.as_ref().unwrap().primary.as_str()),
        (OperationPhase::Succeeded, "cache-3")
    );
    assert_eq!(world.status().last_failover, None);
    assert_eq!(world.record().current.cause, ReignCause::Switchover);
    assert!(world.volume(3).unwrap().positions["users"].sequence >= world.acknowledged);
}

#[test]
fn a_switchover_to_a_member_that_does_not_catch_up_leaves_the_old_primary_leading() {
    let mut world = World::quorum(3, 1);
    world.pass(seconds(40));
    world.ask(json!({"store": "cache", "type": "Switchover", "member": "cache-3"}));
    world.step();
    // It stops in the middle of the freeze.
    world.write("users", 3);
    world.until("Sealing", |world| world.record().current.phase == ReignPhase::Sealing);
    world.black_out(3);
    world.volume_mut(3).positions.get_mut("catalogue").unwrap().sequence -= 1;
    world.until("it serves", |world| world.record().current.phase == ReignPhase::Serving);
    assert_eq!(world.leader(), Some(1));
    world.heal();
    world.converge();
}

#[test]
fn a_switchover_whose_primary_dies_becomes_a_failover() {
    let mut world = World::quorum(3, 1);
    world.write("users", 9);
    world.stream();
    world.pass(seconds(40));
    world.ask(json!({"store": "cache", "type": "Switchover"}));
    world.until("Sealing", |world| world.record().current.phase == ReignPhase::Sealing);
    kill_seen(&mut world, 1);
    world.until("another serves", |world| world.record().current.phase == ReignPhase::Serving);
    let leader = world.leader().unwrap();
    assert!(world.volume(leader).unwrap().positions["users"].sequence >= world.acknowledged);
}

#[test]
fn a_cordoned_node_a_deleted_pod_and_an_update_switch_over_first() {
    for case in 0..3 {
        let mut world = World::quorum(3, 1);
        world.pass(seconds(40));
        match case {
            0 => world.pods.get_mut(&1).unwrap().cordoned = true,
            1 => world.pods.get_mut(&1).unwrap().deleting = true,
            _ => {
                world.store.spec.image = Some("parovoz/dataplane:next".into());
                world.delete_pod(2);
                world.delete_pod(3);
            }
        }
        world.until("another leads", |world| world.leader().is_some_and(|leader| leader != 1));
        assert_eq!(world.record().current.cause, ReignCause::Switchover, "case {case}");
    }
}

#[test]
fn a_primary_whose_claim_is_deleted_gives_its_place_up_before_its_volume_goes() {
    let mut world = World::quorum(3, 1);
    world.write("users", 10);
    world.stream();
    world.pass(seconds(40));
    let before = world.volume(1).unwrap().data_uuid.clone();
    world.delete_claim(1);
    world.converge();
    assert_ne!(world.leader(), Some(1));
    assert_ne!(world.volume(1).unwrap().data_uuid, before, "its volume was made anew");
    assert_eq!((world.status().phase, world.status().last_failover), (StorePhase::Healthy, None));
    assert!(world.volume(1).unwrap().positions["users"].sequence >= world.acknowledged);
}

#[test]
fn a_person_promotes_a_member_where_safety_blocks_and_the_fence_is_never_waived() {
    let mut world = World::quorum(3, 1);
    world.write("users", 10);
    world.stream();
    world.black_out(1);
    world.black_out(2);
    world.pass(seconds(20));
    assert!(world.waits(WaitingReason::SealQuorumOutOfReach));
    let unproven = world.ask(json!({"store": "cache", "type": "Promote", "member": "cache-3", "acceptLoss": true}));
    world.pass(seconds(20));
    assert_eq!(world.record().current.phase, ReignPhase::Sealing);
    assert!(world.waits(WaitingReason::FenceOpen), "the old primary may still take writes");
    world.operations.retain(|operation| operation.uid != unproven);
    let attested = world.ask(
        json!({"store": "cache", "type": "Promote", "member": "cache-3", "acceptLoss": true, "attestPrimaryGone": true}),
    );
    world.until("it is told to lead", |world| world.leader() == Some(3));
    world.heal();
    world.converge();
    let status = &world.operations.iter().find(|o| o.uid == attested).unwrap().status;
    assert_eq!(status.phase, OperationPhase::Succeeded);
    assert_eq!(world.record().current.primary, world.volume(3).unwrap().data_uuid);
}

#[test]
fn what_a_person_attests_is_not_stretched_to_a_reign_that_began_later() {
    let mut world = World::quorum(3, 1);
    world.pass(seconds(60));
    let attest = json!(
        {"store": "cache", "type": "Promote", "member": "cache-3", "acceptLoss": true, "attestPrimaryGone": true}
    );
    let operation = world.ask(attest);
    world.operations[0].created = "2026-01-01T00:00:00Z".parse().unwrap();
    world.operations[0].status.started_at = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(world.now));
    world.black_out(1);
    world.black_out(2);
    world.until("it is begun", |world| world.record().current.operation == operation);
    assert!(world.record().current.accept_loss && !world.record().current.attested);
    world.pass(seconds(10));
    assert_eq!(world.leader(), Some(1), "the old primary may still take writes");
}

#[test]
fn a_lost_quorum_blocks_or_degrades_and_is_told_of_before_the_first_acknowledgement() {
    let mut world = World::quorum(3, 2);
    world.black_out(2);
    world.pass(seconds(10));
    assert!(world.waits(WaitingReason::QuorumLost));
    assert_eq!(condition(&mut world, ConditionType::Available).1, ConditionReason::QuorumLost);
    assert_eq!(world.record().current.epoch, 1);
    world.store.spec.replication.on_quorum_loss = OnQuorumLoss::Degrade;
    world.until("it goes on alone", |world| world.record().current.phase == ReignPhase::Promoting);
    let told = world.store.status.clone().unwrap();
    assert!(told.conditions.iter().any(|condition| condition.reason == ConditionReason::ServingWithoutQuorum));
    world.until("it serves", |world| world.record().current.phase == ReignPhase::Serving);
    assert_eq!((world.record().current.cause, world.record().current.min_sync_replicas), (ReignCause::Degraded, 0));
    world.heal();
    world.converge();
    assert_eq!(world.record().current.cause, ReignCause::QuorumRestored);
    assert_eq!(world.record().current.min_sync_replicas, 2);
    assert_eq!(world.status().phase, StorePhase::Healthy);
}

#[test]
fn newcomers_stream_uncounted_before_a_reign_lists_them() {
    let mut world = World::quorum(2, 1);
    world.scale(3);
    world.until("the newcomer streams", |world| world.processes.get(&3).is_some_and(|p| p.upstream.is_some()));
    assert_eq!(world.record().current.members.len(), 2, "it follows a reign that does not list it");
    world.converge();
    assert_eq!((world.record().current.members.len(), world.record().current.epoch), (3, 2));
}

#[test]
fn a_change_of_the_lease_is_a_new_reign() {
    let mut world = World::converged(2);
    world.store.spec.failover.lease_duration = parovoz_api::TimeSpan::seconds(5);
    world.converge();
    assert_eq!((world.record().current.lease_duration_ms, world.record().current.epoch), (5_000, 2));
}

#[test]
fn replicas_whose_volumes_are_lost_while_the_primary_waits_for_them_are_replaced() {
    let mut world = World::quorum(3, 1);
    world.write("users", 10);
    world.stream();
    world.restart(1);
    for ordinal in [2, 3] {
        world.delete_claim(ordinal);
        world.delete_pod(ordinal);
    }
    world.converge();
    assert_eq!((world.leader(), world.status().phase), (Some(1), StorePhase::Healthy));
    assert_eq!(world.record().current.members.len(), 3);
    assert!(world.volume(2).unwrap().positions["users"].sequence >= world.acknowledged);
}

#[test]
fn a_member_that_is_to_go_joins_the_reign_that_lists_it() {
    let mut world = World::quorum(3, 1);
    world.black_out(2);
    world.restart(1);
    world.scale(2);
    world.until("it serves with the help of the third", |world| {
        world.record().current.phase == ReignPhase::Serving && world.record().current.epoch > 1
    });
    assert!(world.pods.contains_key(&3));
    world.heal();
    world.converge();
    assert_eq!(world.pods.len(), 2);
}

#[test]
fn a_replica_that_missed_what_a_quorum_acknowledged_does_not_lead_once_nobody_is_waited_for() {
    let mut world = World::quorum(3, 1);
    world.write("users", 10);
    world.stream();
    // The third hears no more of this store; the second has what is acknowledged.
    world.black_out(3);
    world.write("users", 10);
    world.stream();
    world.store.spec.replication.mode = Mode::Async;
    world.store.spec.replication.min_sync_replicas = 0;
    world.store.generation += 1;
    world.until("no replica is waited for", |world| {
        let current = &world.record().current;
        current.phase == ReignPhase::Serving && current.min_sync_replicas == 0
    });
    let epoch = world.record().current.epoch;
    world.heal();
    world.processes.get_mut(&3).unwrap().upstream = None;
    world.black_out(1);
    world.black_out(2);
    world.pass(seconds(60));
    assert!(world.leader() != Some(3), "{:?}", world.record().current);
    world.heal();
    world.converge();
    let users = |ordinal: u32| world.volume(ordinal).unwrap().positions["users"];
    assert!(world.record().current.epoch >= epoch && (1..=3).all(|ordinal| users(ordinal).sequence >= 20));
}
