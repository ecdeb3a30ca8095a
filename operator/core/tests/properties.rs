//! Random histories of faults: the planner's rules hold at every step, and once faults stop the store comes to rest.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use parovoz_api::StorePhase;
use proptest::prelude::*;
use world::World;

#[derive(Clone, Debug)]
enum Fault {
    Restart(u32),
    DeletePod(u32),
    DeleteClaim(u32),
    Cut(u32),
    Heal,
    Scale(i32),
    Write(u64),
    Stream,
    /// The operator crashes after this many parts of its plan.
    HalfPlan,
    Step,
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        (1u32..=4).prop_map(Fault::Restart),
        (1u32..=4).prop_map(Fault::DeletePod),
        (1u32..=4).prop_map(Fault::DeleteClaim),
        (1u32..=4).prop_map(Fault::Cut),
        Just(Fault::Heal),
        (1i32..=4).prop_map(Fault::Scale),
        (1u64..50).prop_map(Fault::Write),
        Just(Fault::Stream),
        Just(Fault::HalfPlan),
        Just(Fault::Step),
        Just(Fault::Step),
        Just(Fault::Step),
    ]
}

fn inject(world: &mut World, fault: &Fault) {
    match fault {
        Fault::Restart(ordinal) => world.restart(*ordinal),
        Fault::DeletePod(ordinal) => world.delete_pod(*ordinal),
        Fault::DeleteClaim(ordinal) => {
            // Volumes are lost one at a time and never the last whole copy: the rest is for a person.
            let primary = world.reign.as_ref().map(|reign| reign.spec.current.primary.clone());
            let is_primary = world.volume(*ordinal).is_some_and(|volume| Some(&volume.data_uuid) == primary.as_ref());
            if world.claims.contains_key(ordinal) && !is_primary {
                world.delete_claim(*ordinal);
            }
        }
        Fault::Cut(ordinal) => {
            if world.pods.contains_key(ordinal) {
                world.cut(*ordinal);
            }
        }
        Fault::Heal => world.heal(),
        Fault::Scale(replicas) => world.scale(*replicas),
        Fault::Write(records) => world.write("users", *records),
        Fault::Stream => world.stream(),
        Fault::HalfPlan => {
            let (_, mut plan) = world.plan();
            plan.orders.clear();
            plan.deletes.clear();
            plan.labels.clear();
            world.carry_out(&plan);
        }
        Fault::Step => {
            world.step();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, max_shrink_iters: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rules_hold_at_every_step_and_the_store_comes_to_rest_once_faults_stop(
        replicas in 1i32..=4,
        faults in prop::collection::vec(fault(), 1..60),
    ) {
        let mut world = World::new(replicas);
        for fault in &faults {
            inject(&mut world, fault);
            let primaries = world.processes.values().filter(|process| process.primary).count();
            prop_assert!(primaries <= 1, "{primaries} members lead");
        }
        world.heal();
        world.converge();
        let status = world.status();
        prop_assert_eq!(status.phase, StorePhase::Healthy, "{:?}", status.waiting);
        prop_assert_eq!(status.ready_replicas, world.store.spec.replicas);
        prop_assert_eq!(world.pods.len(), usize::try_from(world.store.spec.replicas).unwrap());
        let (_, plan) = world.plan();
        prop_assert!(plan.changes_nothing() && plan.step.is_none() && plan.waiting.is_empty());
        let leader = world.leader().unwrap();
        for ordinal in world.pods.keys() {
            prop_assert_eq!(&world.volume(*ordinal).unwrap().positions, &world.volume(leader).unwrap().positions);
        }
    }

    #[test]
    fn an_acknowledged_write_survives_every_restart_and_every_lost_replica_volume(
        faults in prop::collection::vec(fault(), 1..60),
    ) {
        let mut world = World::converged(3);
        let mut acknowledged = 0;
        for fault in &faults {
            if let (Fault::Write(records), Some(_)) = (fault, world.leader()) {
                acknowledged += records;
            }
            inject(&mut world, fault);
        }
        world.heal();
        world.converge();
        let leader = world.leader().unwrap();
        let kept = world.volume(leader).unwrap().positions.get("users").map_or(0, |position| position.sequence);
        prop_assert_eq!(kept, acknowledged, "the member that leads lacks acknowledged writes");
    }
}
