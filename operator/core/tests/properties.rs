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
    BlackOut(u32),
    Hang(u32),
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
        (1u32..=4).prop_map(Fault::BlackOut),
        (1u32..=4).prop_map(Fault::Hang),
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

/// True if a member leads, or was ever to lead.
fn was_primary(world: &World, ordinal: u32) -> bool {
    let Some(reign) = &world.reign else { return false };
    let mut primaries = reign.spec.history.iter().map(|past| &past.primary).chain([&reign.spec.current.primary]);
    world.volume(ordinal).is_some_and(|volume| primaries.any(|primary| *primary == volume.data_uuid))
}

fn inject(world: &mut World, fault: &Fault) {
    match fault {
        Fault::Restart(ordinal) => world.restart(*ordinal),
        Fault::DeletePod(ordinal) => {
            // Its volume would go with it.
            let going = world.claims.get(ordinal).is_some_and(|claim| claim.deleting);
            if !going || !was_primary(world, *ordinal) {
                world.delete_pod(*ordinal);
            }
        }
        Fault::DeleteClaim(ordinal) => {
            // Volumes are lost one at a time and never the last whole copy: the rest is for a person.
            if world.claims.contains_key(ordinal) && !was_primary(world, *ordinal) {
                world.delete_claim(*ordinal);
            }
        }
        Fault::Cut(ordinal) => {
            if world.pods.contains_key(ordinal) {
                world.cut(*ordinal);
            }
        }
        Fault::BlackOut(ordinal) => {
            if world.pods.contains_key(ordinal) {
                world.black_out(*ordinal);
            }
        }
        Fault::Hang(ordinal) => {
            if let Some(process) = world.processes.get_mut(ordinal) {
                process.hangs = true;
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

/// What was found once and must not come back.
#[test]
fn a_store_comes_to_rest_after_what_once_kept_it_from_it() {
    use Fault::{Cut, DeleteClaim, HalfPlan, Restart, Scale, Step};
    let mut world = World::new(1);
    let faults = [Scale(2), HalfPlan, Step, HalfPlan, Step, Step, Step, Restart(2), Cut(1), Step, DeleteClaim(2)];
    for fault in faults.iter().chain(&[Restart(1), Scale(1), Step]) {
        inject(&mut world, fault);
    }
    world.heal();
    world.converge();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rules_hold_at_every_step_and_the_store_comes_to_rest_once_faults_stop(
        replicas in 1i32..=4,
        faults in prop::collection::vec(fault(), 1..60),
    ) {
        let mut world = World::new(replicas);
        for fault in &faults {
            inject(&mut world, fault);
            let acknowledging = world.acknowledging();
            prop_assert!(acknowledging.len() <= 1, "{acknowledging:?} acknowledge at once");
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
        let mut world = World::quorum(3, 1);
        for fault in &faults {
            // A quorum of one replica needs two members.
            let fault = if let Fault::Scale(replicas) = fault { Fault::Scale(*replicas.max(&2)) } else { fault.clone() };
            inject(&mut world, &fault);
        }
        world.heal();
        world.converge();
        let leader = world.leader().unwrap();
        let kept = world.volume(leader).unwrap().positions.get("users").map_or(0, |position| position.sequence);
        prop_assert!(kept >= world.acknowledged, "the member that leads lacks acknowledged writes");
    }
}
