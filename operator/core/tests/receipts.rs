//! What the receipt of a failover says where a primary acknowledged what it had not synced.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use parovoz_api::{FailoverReceipt, LossOutcome, ReignPhase};
use parovoz_operator_core::plan::OrderKind;
use serde_json::json;
use world::World;

/// A store without quorum whose replicas have a hundred records, and whose primary, the first member, has seven more that
/// nobody else has.
fn with_a_tail(durability: &str) -> World {
    let replication = json!({"mode": "Async", "durability": durability});
    let mut world = World::with_spec(json!({"replicas": 3, "storage": {"size": "1Gi"}, "replication": replication}));
    world.converge();
    world.write("users", 100);
    world.stream();
    world.write("users", 7);
    world.processes.values_mut().for_each(|process| process.upstream = None);
    world
}

fn another_serves(world: &mut World) {
    world.until("another serves", |world| {
        let current = &world.record().current;
        current.phase == ReignPhase::Serving && current.epoch > 1
    });
    assert_ne!(world.leader(), Some(1));
}

fn receipt(world: &mut World) -> Option<FailoverReceipt> {
    world.converge();
    world.status().last_failover
}

#[test]
fn an_old_primary_whose_machine_lost_power_cannot_say_that_nothing_is_lost() {
    let mut world = with_a_tail("Os");
    world.cut_power(1, "users", 7);
    another_serves(&mut world);
    world.start(1);
    let receipt = receipt(&mut world).unwrap();
    assert_eq!((receipt.outcome, receipt.ranges.len()), (LossOutcome::Unknown, 0), "{receipt:?}");
    assert_eq!(receipt.lost, "unknown after (1, 101); the old primary cannot tell");
}

#[test]
fn an_old_primary_whose_process_alone_ended_names_what_only_it_has() {
    let mut world = with_a_tail("Os");
    world.kill(1);
    another_serves(&mut world);
    world.start(1);
    let receipt = receipt(&mut world).unwrap();
    assert_eq!(receipt.outcome, LossOutcome::Ranges, "{receipt:?}");
    assert_eq!((receipt.ranges[0].first, receipt.ranges[0].last), (101, 107));
}

#[test]
fn an_old_primary_that_syncs_what_it_acknowledges_knows_it_after_a_power_cut() {
    let mut world = with_a_tail("Sync");
    world.cut_power(1, "users", 7);
    another_serves(&mut world);
    world.start(1);
    assert_eq!(receipt(&mut world).unwrap().outcome, LossOutcome::None);
}

#[test]
fn a_primary_that_leads_on_after_a_power_cut_has_a_receipt_once() {
    let mut world = with_a_tail("Os");
    world.cut_power(1, "users", 7);
    world.start(1);
    let first = receipt(&mut world).unwrap();
    assert_eq!((first.from.as_str(), first.to.as_str(), first.outcome), ("cache-1", "cache-1", LossOutcome::Unknown));
    // What comes after on the same machine loses nothing, and says nothing.
    world.restart(1);
    world.converge();
    assert_eq!(world.leader(), Some(1));
    assert_eq!(receipt(&mut world).unwrap().epoch, first.epoch);
}

#[test]
fn a_receipt_that_cannot_list_every_range_says_that_there_is_more() {
    let mut world = with_a_tail("Sync");
    let write_all = |world: &mut World| (0..520).for_each(|prefix| world.write(&format!("prefix-{prefix:03}"), 1));
    world.converge();
    write_all(&mut world);
    world.stream();
    write_all(&mut world);
    world.processes.values_mut().for_each(|process| process.upstream = None);
    world.kill(1);
    another_serves(&mut world);
    world.start(1);
    let receipt = receipt(&mut world).unwrap();
    assert_eq!((receipt.outcome, receipt.ranges.len()), (LossOutcome::Unknown, 512), "{}", receipt.lost);
    assert!(receipt.lost.ends_with(", ...; see ranges, and perhaps more"), "{}", receipt.lost);
    assert!(receipt.lost.len() <= 1000);
}

#[test]
fn a_receipt_is_of_the_reign_that_serves_after_an_attempt_that_did_not() {
    let replication = json!({"mode": "Quorum", "minSyncReplicas": 2, "onQuorumLoss": "Degrade"});
    let mut world = World::with_spec(json!({"replicas": 3, "storage": {"size": "1Gi"}, "replication": replication}));
    world.converge();
    world.write("users", 100);
    world.stream();
    world.black_out(3);
    world.until("it goes on without replicas", |world| {
        let current = &world.record().current;
        current.phase == ReignPhase::Serving && current.min_sync_replicas == 0
    });
    world.heal();
    // The next reign, which waits for replicas again, is recorded, and its primary does not hear of it.
    while world.record().current.phase == ReignPhase::Serving {
        let (_, mut plan) = world.plan();
        plan.orders.retain(|order| !matches!(order.kind, OrderKind::Seal { .. }));
        world.carry_out(&plan);
        world.stream();
    }
    world.processes.get_mut(&1).unwrap().frozen = None;
    world.write("users", 7);
    world.processes.values_mut().for_each(|process| process.upstream = None);
    world.black_out(1);
    world.until("another serves", |world| {
        world.record().current.phase == ReignPhase::Serving && world.leader().is_some_and(|leader| leader != 1)
    });
    let (serving, attempts) = (world.record().current.epoch, world.record().history.clone());
    assert!(
        attempts.iter().any(|past| past.epoch == serving - 1 && past.phase == ReignPhase::Promoting),
        "{attempts:?}"
    );
    world.heal();
    let receipt = receipt(&mut world).unwrap();
    assert_eq!((receipt.epoch, receipt.outcome), (serving, LossOutcome::Ranges), "{receipt:?}");
    assert!(receipt.phases.total.is_some());
}
