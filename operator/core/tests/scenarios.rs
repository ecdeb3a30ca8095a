//! Stories of a store, told step by step against a cluster of values.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use parovoz_api::{
    ConditionReason, ConditionStatus, ConditionType, MemberPhase, ReignCause, ReignPhase, StorePhase, WaitingReason,
};
use parovoz_operator_core::build::Object;
use parovoz_operator_core::plan::{DeleteKind, EventReason, OrderKind, Step, WHEN_SETTLED};
use serde_json::json;
use world::World;

fn condition(world: &mut World, type_: ConditionType) -> (ConditionStatus, ConditionReason) {
    let status = world.status();
    let found = status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
    assert_eq!(found.observed_generation, world.store.generation);
    (found.status, found.reason)
}

#[test]
fn a_new_store_forms_promotes_its_lowest_member_and_tells_the_others_to_follow() {
    let mut world = World::new(3);
    let first = world.step();
    assert_eq!(first.objects.iter().filter(|object| matches!(object, Object::Claim(_))).count(), 3);
    assert!(first.objects.iter().all(|object| !matches!(object, Object::Pod(_))), "a pod needs its claim's uid");
    let second = world.step();
    assert_eq!(second.objects.iter().filter(|object| matches!(object, Object::Pod(_))).count(), 3);
    let form = world.step();
    let write = form.reign_write.unwrap();
    assert_eq!(write.expected, None);
    assert_eq!(write.spec.current.phase, ReignPhase::Forming);
    assert!(form.orders.is_empty(), "nobody is told anything while the reign forms");
    let seal = world.step();
    assert_eq!(seal.reign_write.unwrap().spec.current.phase, ReignPhase::Sealing);
    assert_eq!((seal.orders.len(), seal.orders[0].pod.as_str()), (1, "cache-1"));
    assert!(matches!(seal.orders[0].kind, OrderKind::Seal { .. }), "a promotion follows a seal, also the first");
    let promote = world.step();
    assert_eq!(promote.step, Some(Step::Lead));
    assert_eq!((promote.orders.len(), promote.orders[0].pod.as_str()), (1, "cache-1"));
    assert_eq!(promote.orders[0].kind, OrderKind::Promote { positions: Vec::new(), first: true });
    assert_eq!(promote.orders[0].reign.epoch, 1);
    let serve = world.step();
    assert_eq!(serve.reign_write.unwrap().spec.current.phase, ReignPhase::Serving);
    assert_eq!(serve.orders.len(), 2);
    for order in &serve.orders {
        let OrderKind::Follow { upstream, primary, .. } = &order.kind else { panic!("a second promotion") };
        assert_eq!(upstream.replication_address, "cache-1.cache-members.prod.svc:7002");
        assert_eq!(upstream, primary);
    }
    world.converge();
    let status = world.status();
    assert_eq!((status.phase, status.epoch, status.primary.as_deref()), (StorePhase::Healthy, 1, Some("cache-1")));
    assert_eq!((status.ready_replicas, status.replicas), (3, 3));
    assert_eq!(status.selector, "parovoz.dev/store=cache");
}

#[test]
fn a_converged_store_is_left_alone() {
    let mut world = World::converged(3);
    for _ in 0..5 {
        let plan = world.step();
        assert!(plan.changes_nothing() && plan.step.is_none() && plan.events.is_empty() && plan.waiting.is_empty());
        assert_eq!(plan.requeue_after, WHEN_SETTLED, "it is looked at again all the same");
    }
}

#[test]
fn the_first_reign_waits_for_every_member_so_that_no_data_is_overlooked() {
    let mut world = World::new(3);
    world.steps(2);
    world.cut(3);
    for _ in 0..40 {
        assert!(world.step().reign_write.is_none());
    }
    assert!(world.waits(WaitingReason::MemberMustAnswer));
    assert_eq!(condition(&mut world, ConditionType::Available).1, ConditionReason::FirstReignForming);
    assert_eq!(world.status().phase, StorePhase::Pending);
    world.heal();
    world.converge();
    assert_eq!(world.leader(), Some(1));
}

#[test]
fn a_volume_lost_while_the_first_reign_forms_changes_the_list_within_the_epoch() {
    let mut world = World::new(3);
    world.steps(3);
    assert_eq!(world.record().current.phase, ReignPhase::Forming);
    world.delete_pod(2);
    world.delete_claim(2);
    world.converge();
    assert_eq!((world.record().current.epoch, world.record().current.phase), (1, ReignPhase::Serving));
    let listed: Vec<_> = world.record().current.members.iter().map(|member| member.data_uuid.clone()).collect();
    assert!(listed.contains(&world.volume(2).unwrap().data_uuid));
}

#[test]
fn a_primary_whose_process_restarts_leads_again_at_a_new_epoch() {
    let mut world = World::converged(3);
    world.write("users", 100);
    world.stream();
    world.restart(1);
    let plan = world.step();
    assert_eq!(plan.reign_write.unwrap().spec.current.phase, ReignPhase::Sealing);
    world.converge();
    assert_eq!((world.leader(), world.record().current.cause), (Some(1), ReignCause::PrimaryRestarted));
    assert_eq!(world.record().history[0].epoch, 1);
    assert_eq!(world.status().last_failover, None, "the primary did not change");
}

#[test]
fn a_deleted_primary_pod_comes_back_with_its_volume_and_leads() {
    let mut world = World::converged(3);
    world.write("users", 10);
    let identity = world.volume(1).unwrap().data_uuid.clone();
    world.delete_pod(1);
    world.converge();
    assert_eq!(world.volume(1).unwrap().data_uuid, identity);
    assert_eq!((world.leader(), world.record().current.epoch), (Some(1), 2));
}

#[test]
fn a_replica_that_is_ahead_of_the_returned_primary_takes_its_place_and_nothing_is_lost() {
    let mut world = World::converged(3);
    world.write("users", 100);
    world.stream();
    // The primary's machine crashed and lost what was not synced; replica 3 has all of it.
    world.volume_mut(1).positions.get_mut("users").unwrap().sequence = 40;
    world.volume_mut(2).positions.get_mut("users").unwrap().sequence = 70;
    world.restart(1);
    world.converge();
    assert_eq!(world.status().primary.as_deref(), Some("cache-3"));
    let receipt = world.status().last_failover.unwrap();
    assert_eq!((receipt.from.as_str(), receipt.to.as_str(), receipt.lost.as_str()), ("cache-1", "cache-3", "none"));
}

#[test]
fn a_returned_primary_leads_again_though_a_replica_is_silent() {
    let mut world = World::converged(3);
    world.black_out(2);
    world.restart(1);
    world.until("it leads again", |world| world.leader() == Some(1));
    let current = &world.record().current;
    assert_eq!(current.evidence.silent, [world.volume(2).unwrap().data_uuid.clone()]);
    assert_eq!(current.members.len(), 3, "a member that is silent is still a member");
}

#[test]
fn a_parked_replica_is_told_of_and_does_not_keep_the_primary_from_leading_again() {
    let mut world = World::converged(3);
    world.park(2);
    world.restart(1);
    world.steps(4);
    assert_eq!(world.leader(), Some(1));
    let status = world.status();
    assert_eq!((status.members[1].phase, status.phase), (MemberPhase::Parked, StorePhase::Degraded));
    assert_eq!(condition(&mut world, ConditionType::Degraded).1, ConditionReason::MemberParked);
    let waiting = status.waiting.iter().find(|waiting| waiting.message.contains("cache-2")).unwrap();
    assert_eq!(waiting.command.as_deref(), Some("kubectl logs -n prod cache-2"));
}

#[test]
fn a_parked_replica_whose_word_is_needed_is_waited_for() {
    let mut world = World::quorum(3, 1);
    world.park(2);
    world.delete_claim(1);
    world.delete_pod(1);
    world.steps(40);
    assert_eq!(world.leader(), None);
    assert!(world.waits(WaitingReason::SealQuorumOutOfReach));
}

#[test]
fn a_candidate_that_ended_in_its_very_first_promotion_gives_way_to_an_empty_member() {
    let mut world = World::new(2);
    world.steps(5);
    // It stored the promise and the start, and ended before it made anything.
    let volume = world.volume_mut(1);
    volume.positions.clear();
    volume.complete = false;
    world.restart(1);
    world.converge();
    assert_eq!((world.leader(), world.record().current.epoch), (Some(2), 2));
}

#[test]
fn a_lost_primary_volume_makes_the_furthest_replica_lead_and_says_what_may_be_lost() {
    let mut world = World::converged(3);
    world.write("users", 100);
    world.stream();
    world.volume_mut(2).positions.get_mut("users").unwrap().sequence = 90;
    world.processes.get_mut(&2).unwrap().upstream = None;
    world.delete_claim(1);
    assert!(world.waits(WaitingReason::NobodyEligible), "the primary's pod is left alone until a person decides");
    world.delete_pod(1);
    world.converge();
    assert_eq!(world.leader(), Some(3));
    let receipt = world.status().last_failover.unwrap();
    assert_eq!(receipt.lost, "unknown after (1, 101)");
    assert_eq!(world.record().current.members.len(), 3);
    assert_eq!(world.status().phase, StorePhase::Healthy);
}

#[test]
fn a_lost_replica_volume_is_made_anew_and_joins_by_a_new_reign_of_the_same_primary() {
    let mut world = World::converged(3);
    world.write("users", 5);
    world.stream();
    let before = world.volume(2).unwrap().data_uuid.clone();
    world.delete_claim(2);
    let plan = world.step();
    assert_eq!(plan.deletes.len(), 1);
    assert_eq!((plan.deletes[0].kind, plan.deletes[0].name.as_str()), (DeleteKind::Pod, "cache-2"));
    world.converge();
    assert_ne!(world.volume(2).unwrap().data_uuid, before);
    assert_eq!(world.record().current.cause, ReignCause::MembersChanged);
    assert_eq!(world.leader(), Some(1));
    assert_eq!(world.volume(2).unwrap().positions, world.volume(1).unwrap().positions);
}

#[test]
fn when_every_volume_of_a_store_that_served_is_lost_a_person_decides() {
    let mut world = World::converged(2);
    for ordinal in [1, 2] {
        world.delete_claim(ordinal);
        world.delete_pod(ordinal);
    }
    world.steps(20);
    assert_eq!(world.leader(), None);
    assert!(world.waits(WaitingReason::PrimaryMustReturn));
    assert_eq!(world.status().phase, StorePhase::Unavailable);
}

#[test]
fn a_store_that_never_served_starts_over_when_its_candidate_loses_its_volume() {
    let mut world = World::new(2);
    world.steps(4);
    let (_, plan) = world.plan();
    // The record says Promoting; the order never arrives and the volume goes.
    let mut undelivered = plan.clone();
    undelivered.orders.clear();
    world.carry_out(&undelivered);
    for ordinal in [1, 2] {
        world.delete_claim(ordinal);
        world.delete_pod(ordinal);
    }
    world.converge();
    assert_eq!((world.leader(), world.record().current.epoch), (Some(1), 2));
}

#[test]
fn a_half_copied_member_never_leads() {
    let mut world = World::converged(2);
    world.write("users", 10);
    world.stream();
    world.volume_mut(2).complete = false;
    world.processes.get_mut(&2).unwrap().upstream = None;
    world.delete_claim(1);
    world.delete_pod(1);
    for _ in 0..40 {
        let (_, plan) = world.plan();
        world.carry_out(&plan);
        if !world.processes.contains_key(&1) && world.pods.contains_key(&1) {
            world.pods.get_mut(&1).unwrap().node = Some("node-1".into());
            world.start(1);
        }
    }
    assert_eq!(world.leader(), None);
    assert!(world.waits(WaitingReason::SealQuorumOutOfReach));
}

#[test]
fn a_grown_volume_is_asked_for_and_pods_stay() {
    let mut world = World::converged(2);
    let pods = world.pods.clone();
    world.store.spec.storage.size = parovoz_api::ByteSize("2Gi".into());
    let plan = world.step();
    assert_eq!(plan.objects.iter().filter(|object| matches!(object, Object::Claim(_))).count(), 2);
    world.converge();
    assert_eq!(world.pods.keys().collect::<Vec<_>>(), pods.keys().collect::<Vec<_>>());
}

#[test]
fn a_paused_store_is_reported_and_not_changed() {
    let mut world = World::converged(3);
    world.store.spec.paused = true;
    world.delete_pod(2);
    for _ in 0..5 {
        assert!(world.step().changes_nothing());
    }
    let paused = condition(&mut world, ConditionType::Paused);
    assert_eq!(paused, (ConditionStatus::True, ConditionReason::PausedBySpecification));
    assert!(world.waits(WaitingReason::Paused));
    assert_eq!(world.status().members[1].phase, MemberPhase::Creating);
    world.store.spec.paused = false;
    world.converge();
    assert_eq!(world.status().ready_replicas, 3);
}

#[test]
fn a_changed_template_restarts_nothing_and_names_the_pods_replicas_first() {
    let mut world = World::converged(3);
    world.store.spec.image = Some("parovoz/dataplane:next".into());
    let plan = world.step();
    assert!(plan.deletes.is_empty() && plan.objects.is_empty());
    let waiting = plan.waiting.iter().find(|waiting| waiting.reason == WaitingReason::RestartNeeded).unwrap();
    assert!(waiting.message.ends_with("cache-2, cache-3, cache-1"), "{}", waiting.message);
    assert_eq!(waiting.command.as_deref(), Some("kubectl delete pod -n prod cache-2"));
    world.delete_pod(2);
    world.steps(6);
    assert!(world.plan().1.waiting[0].message.ends_with("cache-3, cache-1"));
}

#[test]
fn a_new_default_image_of_the_operator_asks_for_no_restart() {
    let mut world = World::converged(2);
    let mut observed = world.observe();
    observed.default_image = "parovoz/dataplane:newer".into();
    assert!(parovoz_operator_core::plan::plan(&observed).changes_nothing());
}

#[test]
fn a_left_over_claim_of_another_store_is_not_touched() {
    let mut world = World::new(1);
    world.step();
    world.claims.get_mut(&1).unwrap().store_uid = Some("another".into());
    for _ in 0..5 {
        let plan = world.step();
        assert!(plan.objects.iter().all(|object| !matches!(object, Object::Pod(_) | Object::Claim(_))));
    }
    assert!(world.waits(WaitingReason::ForeignClaim));
    assert_eq!(condition(&mut world, ConditionType::StorageHealthy).1, ConditionReason::ForeignClaim);
}

#[test]
fn a_pod_of_somebody_else_is_in_the_way_and_left_alone() {
    let mut world = World::converged(2);
    world.pods.get_mut(&2).unwrap().owned = false;
    let plan = world.step();
    assert!(plan.deletes.is_empty());
    assert!(plan.waiting.iter().any(|waiting| waiting.reason == WaitingReason::ForeignObject));
}

#[test]
fn an_edited_service_is_set_right_and_nothing_else_is_written() {
    let mut world = World::converged(1);
    let key = world.objects.keys().find(|key| key.name == "cache-rw").unwrap().clone();
    world.objects.get_mut(&key).unwrap()["spec"]["selector"]["parovoz.dev/role"] = json!("replica");
    let plan = world.step();
    assert_eq!(plan.objects.iter().map(Object::name).collect::<Vec<_>>(), ["cache-rw"]);
    assert!(world.step().changes_nothing());
}

#[test]
fn a_lost_decision_record_is_rebuilt_from_the_members_and_epochs_go_on() {
    let mut world = World::converged(3);
    world.restart(1);
    world.converge();
    world.reign = None;
    world.cut(3);
    world.steps(5);
    assert!(world.reign.is_none(), "a record is not rebuilt from some of the members");
    world.heal();
    let plan = world.step();
    assert_eq!(plan.reign_write.unwrap().spec.current.epoch, 2);
    world.restart(1);
    world.converge();
    assert_eq!((world.leader(), world.record().current.epoch), (Some(1), 3));
}

#[test]
fn a_record_of_an_earlier_store_of_the_same_name_is_not_obeyed() {
    let mut world = World::converged(1);
    world.reign.as_mut().unwrap().spec.store_uid = "earlier".into();
    let plan = world.step();
    assert!(plan.orders.is_empty() && plan.reign_write.is_none());
    assert!(plan.waiting.iter().any(|waiting| waiting.reason == WaitingReason::ForeignObject));
}

#[test]
fn a_chain_streams_from_one_to_the_next_and_skips_a_member_without_a_copy() {
    let mut world =
        World::with_spec(json!({"replicas": 3, "storage": {"size": "1Gi"}, "replication": {"topology": "Chain"}}));
    world.converge();
    let upstream = |world: &World, ordinal: u32| world.processes[&ordinal].upstream.clone().unwrap().0;
    assert_eq!(upstream(&world, 2), world.volume(1).unwrap().data_uuid);
    assert_eq!(upstream(&world, 3), world.volume(2).unwrap().data_uuid);
    world.cut(2);
    world.steps(2);
    assert_eq!(upstream(&world, 3), world.volume(1).unwrap().data_uuid);
}

#[test]
fn a_member_that_met_the_reign_in_its_chain_is_told_how_to_reach_the_primary() {
    let mut world =
        World::with_spec(json!({"replicas": 3, "storage": {"size": "1Gi"}, "replication": {"topology": "Chain"}}));
    world.converge();
    // The new reign came down the stream, with the same upstream.
    world.processes.get_mut(&3).unwrap().told_primary.clear();
    let plan = world.step();
    assert_eq!(plan.orders.iter().map(|order| order.pod.as_str()).collect::<Vec<_>>(), ["cache-3"]);
    assert_eq!(world.processes[&3].told_primary, world.volume(1).unwrap().data_uuid);
    assert!(world.step().orders.is_empty());
}

#[test]
fn a_promotion_that_was_not_delivered_is_sent_again_under_the_same_reign() {
    let mut world = World::new(1);
    world.steps(4);
    let (_, mut plan) = world.plan();
    let sent = plan.orders.clone();
    assert!(matches!(sent[0].kind, OrderKind::Promote { .. }));
    plan.orders.clear();
    world.carry_out(&plan);
    let again = world.step();
    assert!(again.reign_write.is_none());
    assert_eq!(again.orders, sent);
}

#[test]
fn a_candidate_that_restarted_after_it_started_gets_a_new_epoch() {
    let mut world = World::new(1);
    world.steps(5);
    assert_eq!(world.record().current.phase, ReignPhase::Promoting);
    world.restart(1);
    world.converge();
    assert_eq!((world.leader(), world.record().current.epoch), (Some(1), 2));
}

#[test]
fn an_epoch_that_a_member_knows_from_elsewhere_is_jumped_over() {
    let mut world = World::converged(2);
    world.volume_mut(2).started = 41;
    world.restart(1);
    let plan = world.step();
    assert_eq!(plan.reign_write.unwrap().spec.current.epoch, 42);
    world.converge();
}

#[test]
fn a_primary_keeps_its_label_until_another_one_is_promoted() {
    let mut world = World::converged(2);
    assert_eq!(world.pods[&1].role.as_deref(), Some("primary"));
    assert!(world.pods[&2].in_standing && !world.pods[&1].in_standing);
    world.restart(1);
    for _ in 0..12 {
        world.step();
        let labelled: Vec<u32> =
            world.pods.values().filter(|p| p.role.as_deref() == Some("primary")).map(|p| p.ordinal).collect();
        assert_eq!(labelled.len(), 1, "the service always leads to one member: {labelled:?}");
    }
    world.converge();
    assert_eq!(world.leader().map(|leader| world.pods[&leader].role.clone()), Some(Some("primary".into())));
}

#[test]
fn a_failover_labels_its_candidate_before_it_serves() {
    let mut world = World::quorum(3, 1);
    world.black_out(1);
    world.until("another is promoted", |world| world.record().current.phase == ReignPhase::Promoting);
    world.until("it has the label", |world| {
        assert_eq!(world.record().current.phase, ReignPhase::Promoting, "services follow a label with a delay");
        world.pods.values().any(|pod| pod.ordinal != 1 && pod.role.as_deref() == Some("primary"))
    });
    assert_ne!(world.pods[&1].role.as_deref(), Some("primary"));
    world.heal();
    world.converge();
}

#[test]
fn a_planned_reign_of_the_same_primary_does_not_touch_its_label() {
    let mut world = World::converged(1);
    world.scale(2);
    for _ in 0..12 {
        world.step();
        assert_eq!(world.pods[&1].role.as_deref(), Some("primary"));
    }
}

#[test]
fn a_changed_mode_is_a_new_reign_once_enough_replicas_stream() {
    let mut world = World::converged(3);
    world.store.spec.replication.mode = parovoz_api::Mode::Quorum;
    world.store.spec.replication.min_sync_replicas = 1;
    world.black_out(2);
    world.black_out(3);
    world.steps(3);
    assert!(world.waits(WaitingReason::ReplicasMustStream));
    world.heal();
    world.converge();
    let current = &world.record().current;
    assert_eq!((current.cause, current.min_sync_replicas, current.epoch), (ReignCause::SettingsChanged, 1, 2));
}

#[test]
fn an_ended_pod_is_made_anew_on_its_volume() {
    let mut world = World::converged(2);
    world.pods.get_mut(&2).unwrap().ended = true;
    let plan = world.step();
    assert_eq!(plan.events[0].reason, EventReason::PodEnded);
    world.converge();
    assert_eq!(world.status().ready_replicas, 2);
}
