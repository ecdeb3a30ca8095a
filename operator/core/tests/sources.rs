//! Who missing copies are taken from.
#![allow(clippy::unwrap_used)]

mod world;

use parovoz_operator_core::plan::{Endpoint, Order, OrderKind};
use world::World;

/// A store in which these members lack data.
fn lacking(replicas: i32, ordinals: &[u32]) -> World {
    let mut world = World::converged(replicas);
    world.write("users", 100);
    world.stream();
    lack(&mut world, ordinals);
    world
}

fn lack(world: &mut World, ordinals: &[u32]) {
    for ordinal in ordinals {
        world.volume_mut(*ordinal).complete = false;
    }
}

fn source(order: &Order) -> Option<&Endpoint> {
    let OrderKind::Follow { bootstrap_source, .. } = &order.kind else { panic!("a promotion") };
    bootstrap_source.as_deref()
}

#[test]
fn a_copy_comes_from_a_whole_replica_and_a_known_source_is_not_ordered_again() {
    let mut world = lacking(3, &[3]);
    let (_, plan) = world.plan();
    assert_eq!(plan.orders.len(), 1);
    assert_eq!(plan.orders[0].pod, "cache-3");
    assert_eq!(source(&plan.orders[0]).unwrap().replication_address, "cache-2.cache-members.prod.svc:7002");
    let OrderKind::Follow { upstream, .. } = &plan.orders[0].kind else { panic!("a promotion") };
    assert_eq!(upstream.replication_address, "cache-1.cache-members.prod.svc:7002", "the stream stays where it was");
    world.carry_out(&plan);
    lack(&mut world, &[3]);
    assert!(world.plan().1.orders.is_empty());
}

#[test]
fn without_another_whole_replica_the_upstream_is_the_source_and_nothing_is_ordered() {
    let mut world = lacking(3, &[2, 3]);
    assert!(world.plan().1.orders.is_empty());
    let mut world = lacking(2, &[2]);
    assert!(world.plan().1.orders.is_empty());
}

#[test]
fn sources_share_the_load_and_stay_while_they_can() {
    let mut world = lacking(5, &[4, 5]);
    let (_, plan) = world.plan();
    let sources: Vec<_> = plan.orders.iter().map(|order| source(order).unwrap().replication_address.clone()).collect();
    assert_eq!(sources, ["cache-2.cache-members.prod.svc:7002", "cache-3.cache-members.prod.svc:7002"]);
    world.carry_out(&plan);
    lack(&mut world, &[4, 5]);
    assert!(world.plan().1.orders.is_empty());
    // The first source goes: only who copied from it is told of another.
    world.cut(2);
    let (_, plan) = world.plan();
    assert_eq!(plan.orders.len(), 1);
    assert_eq!(plan.orders[0].pod, "cache-4");
    assert_eq!(source(&plan.orders[0]).unwrap().replication_address, "cache-3.cache-members.prod.svc:7002");
    world.carry_out(&plan);
    lack(&mut world, &[4, 5]);
    assert!(world.plan().1.orders.is_empty());
}
