//! One seed from its beginning to its judgement.

use parovoz_api::OperationPhase;
use parovoz_dataplane_core::types::Sequence;
use parovoz_engine::{Direction, Family};

use crate::clients::KEYS;
use crate::coverage::Coverage;
use crate::faults::Fault;
use crate::member::Process;
use crate::msg::{CLIENTS, MEMBERS, Msg, Node, Request, What};
use crate::rng::Rng;
use crate::setup::Setup;
use crate::world::{Ev, SECOND, World};

/// Operations that a seed has at least, those that were refused not counted.
const OPERATIONS: u64 = 1_000;
/// Faults that a seed has at least, those without effect and what was asked for not counted.
const FAULTS: u64 = 20;
/// Longest troubled part of a run.
const TROUBLE: u64 = 1_200 * SECOND;
/// How the violation begins of a store that loses nothing, and does not come to rest either.
pub const RESTLESS: &str = "the store does not come to rest";
/// Within this much quiet every store must be whole again.
const QUIET: u64 = 240 * SECOND;
/// Half seconds without anything left to do, before a store counts as at rest.
const CALM: u32 = 12;
/// For so long nothing may be written then.
const STILL: u64 = 32 * SECOND;

/// What came of a seed.
#[derive(Debug)]
pub struct Outcome {
    pub seed: u64,
    pub operations: u64,
    pub acknowledged: u64,
    pub faults: u64,
    pub events: u64,
    pub reigns: u64,
    pub violation: Option<String>,
    /// Why it tells too little: not enough was done, or broken.
    pub thin: Option<String>,
    pub coverage: Coverage,
    /// What happened, if it was asked for.
    pub trace: Vec<String>,
}

/// Runs one seed with these kinds of faults.
#[must_use]
pub fn run(seed: u64, faults: &[Fault], trace: bool) -> Outcome {
    let mut rng = Rng::new(seed);
    let mut setup = Setup::draw(&mut rng);
    setup.faults = World::draw_faults(&mut rng, faults);
    setup.lean();
    let mut world = World::new(setup, rng, trace);
    let about = format!("setup: {:?}", world.setup);
    world.trace.say(0, || about);
    let violation = play(&mut world).err();
    if let Some(violation) = &violation {
        world.trace.say(world.now, || format!("VIOLATION {violation}"));
    }
    Outcome {
        seed,
        operations: world.clients.counted(),
        acknowledged: world.clients.done,
        faults: world.faults,
        events: world.events,
        reigns: world.check.starts() as u64,
        violation,
        thin: world.thin,
        trace: world.trace.lines().to_vec(),
        coverage: world.cov,
    }
}

fn play(world: &mut World) -> Result<(), String> {
    // It forms in peace.
    let formed = converge(world, 60 * SECOND, false);
    formed.map_err(|why| format!("the store does not come up: {why}"))?;
    world.at(SECOND, Ev::Break);
    let end = world.now + TROUBLE;
    while world.now < end && (world.clients.counted() < OPERATIONS || world.faults < FAULTS) {
        let next = world.now + SECOND;
        step(world, next)?;
        if world.losses_open > 0 && world.whole_members().len() >= wanted(world) {
            world.losses_open = 0;
        }
    }
    world.heal();
    rest(world)?;
    // What kept it from its clients for long must not have broken what comes after.
    let end = world.now + TROUBLE;
    if world.clients.counted() < OPERATIONS {
        world.clients.quiet = false;
        world.start_clients();
    }
    while world.now < end && world.clients.counted() < OPERATIONS {
        let next = world.now + SECOND;
        step(world, next)?;
    }
    rest(world)?;
    let (operations, faults) = (world.clients.counted(), world.faults);
    if operations < OPERATIONS || faults < FAULTS {
        world.thin = Some(format!("only {operations} operations and {faults} faults"));
    }
    last_reads(world)?;
    if world.check.lost() > 0 {
        world.cov.hit("acknowledged writes lost, no replica waited for");
    }
    judge(world)?;
    still(world)
}

/// Nobody begins anything, and the store comes to rest.
fn rest(world: &mut World) -> Result<(), String> {
    world.clients.quiet = true;
    converge(world, QUIET, true).map_err(|why| format!("{RESTLESS}: {why}"))
}

fn step(world: &mut World, until: u64) -> Result<(), String> {
    if world.run_until(until) {
        return Ok(());
    }
    Err(world.check.violation().unwrap_or("stopped").to_owned())
}

fn wanted(world: &World) -> usize {
    usize::try_from(world.api.store.spec.replicas).unwrap_or(1)
}

/// Waits until every prefix is served by one primary and everybody has everything.
fn converge(world: &mut World, within: u64, rescue: bool) -> Result<(), String> {
    let begin = world.now;
    let (mut rescued, mut calm) = (0, 0);
    loop {
        let Some(why) = restless(world) else {
            // What was cut off a moment ago may still be judged by that.
            calm += 1;
            if calm > CALM {
                return Ok(());
            }
            let next = world.now + SECOND / 2;
            step(world, next)?;
            continue;
        };
        calm = 0;
        if world.now - begin > within {
            return Err(why);
        }
        // Where replicas are not waited for, a failover may need somebody who accepts the loss. So may a restored record: it
        // asks for the votes of a reign whose members have followed another since. Nothing is lost by it there, or it fails.
        let may_ask = !world.setup.never_loses() || world.check.restored;
        if rescue && world.now - begin > (60 + 40 * rescued) * SECOND && may_ask && rescued < 4 {
            rescued += 1;
            if world.rescue() {
                world.cov.hit("a person accepted a loss");
            }
        }
        let next = world.now + SECOND / 2;
        step(world, next)?;
    }
}

/// Why the store is not whole and at rest; `None` if it is.
fn restless(world: &World) -> Option<String> {
    let Some(reign) = &world.api.reign else { return Some("there is no reign".to_owned()) };
    let current = &reign.spec.current;
    if current.phase != parovoz_api::ReignPhase::Serving {
        return Some(format!("epoch {} is {:?}", current.epoch, current.phase));
    }
    if current.members.len() != wanted(world) {
        return Some(format!("epoch {} lists {} members", current.epoch, current.members.len()));
    }
    if world.api.operations.iter().any(|o| matches!(o.status.phase, OperationPhase::Pending | OperationPhase::Running))
    {
        return Some("an operation is under way".to_owned());
    }
    if world.calm && !world.operators[0].is_settled() {
        return Some("the operator has something to do".to_owned());
    }
    let leader = world.leader().and_then(|n| world.process(n));
    let leader = match leader {
        Some(l) if l.me.to_string() == current.primary && l.role.is_all_served() => l,
        _ => return Some(format!("nobody leads epoch {} and serves it", current.epoch)),
    };
    if !leader.role.can_acknowledge(world.machines[usize::from(leader.ordinal)].clock_ms(world.now)) {
        return Some(format!("member {} leads and cannot acknowledge", leader.ordinal));
    }
    let running: Vec<&Process> = (1..MEMBERS).filter_map(|n: Node| world.process(n)).collect();
    if running.len() != wanted(world) {
        return Some(format!("{} processes run", running.len()));
    }
    for member in running {
        if member.prefixes.len() != leader.prefixes.len() {
            return Some(format!("member {} has {} prefixes", member.ordinal, member.prefixes.len()));
        }
        for prefix in leader.prefixes.values() {
            let mine = member.prefixes.get(&prefix.uuid);
            if mine.is_none_or(|m| m.at() != prefix.at() || m.durable != m.applied || m.copy.is_none()) {
                let at = mine.map(super::member::prefix::Prefix::at);
                return Some(format!(
                    "member {} is at {at:?} in {}, the primary at {}",
                    member.ordinal,
                    prefix.name,
                    prefix.at()
                ));
            }
            if prefix.released < prefix.applied {
                return Some(format!("{} is released up to {} of {}", prefix.name, prefix.released, prefix.applied));
            }
        }
    }
    None
}

/// Every key is read once more: what was acknowledged must still be there.
fn last_reads(world: &mut World) -> Result<(), String> {
    for prefix in 0..world.clients.prefixes {
        for key in 0..KEYS {
            let request = Request { prefix, key, what: What::Get };
            let begin = world.now;
            let mut tries = 0;
            loop {
                let Some(leader) = world.leader() else { return Err("nobody leads".to_owned()) };
                let Some(op) = world.clients.read_last(begin, request) else { return Ok(()) };
                world.send(CLIENTS, leader, Msg::Request { op, request });
                let next = world.now + 30_000;
                step(world, next)?;
                let record = world.clients.records[op as usize];
                if record.result.is_some() {
                    break;
                }
                tries += 1;
                if tries > 200 {
                    return Err(format!("key {key} of p{prefix} can't be read from the store at rest"));
                }
            }
        }
    }
    Ok(())
}

fn judge(world: &World) -> Result<(), String> {
    if world.setup.never_loses()
        && let Some(why) = world.clients.judge()
    {
        return Err(why);
    }
    let receipt = world.api.store.status.as_ref().and_then(|status| status.last_failover.as_ref());
    if let Some(why) = world.check.judge_receipt(receipt) {
        return Err(why);
    }
    // All copies hold the same.
    let mut first: Option<Vec<(parovoz_dataplane_core::types::PrefixUuid, Sequence, u64)>> = None;
    for member in (1..MEMBERS).filter_map(|n: Node| world.process(n)) {
        let sums = member.prefixes.values().map(|p| (p.uuid, p.applied, contents(p))).collect();
        match &first {
            None => first = Some(sums),
            Some(first) if *first == sums => {}
            Some(_) => return Err(format!("member {} does not hold what the others hold", member.ordinal)),
        }
    }
    Ok(())
}

/// A sum over all rows.
fn contents(prefix: &crate::member::prefix::Prefix) -> u64 {
    let mut sum = 0_u64;
    if let Some(copy) = &prefix.copy {
        for family in [Family::Data, Family::Meta] {
            let _ = copy.db.snapshot().scan(family, b"", b"", Direction::Forward, &mut |key, value| {
                sum = sum.rotate_left(5) ^ u64::from(crc32c::crc32c_append(crc32c::crc32c(key), value));
                true
            });
        }
    }
    sum
}

/// A store at rest is left alone: nothing is written but renewals of the Lease.
fn still(world: &mut World) -> Result<(), String> {
    // Figures that moved last are written with the next looks.
    for _ in 0..2 {
        world.look_soon(0, 10_000);
        let next = world.now + 7 * SECOND;
        step(world, next)?;
    }
    let writes = world.api.writes;
    let next = world.now + STILL;
    step(world, next)?;
    if world.api.writes != writes {
        return Err(format!("{} writes to the API server though the store is at rest", world.api.writes - writes));
    }
    match restless(world) {
        Some(why) => Err(format!("the store at rest moved: {why}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_replays_exactly() {
        let (one, other) = (run(7, Fault::ALL, true), run(7, Fault::ALL, true));
        assert!(one.trace.len() > 100);
        assert_eq!(one.trace, other.trace);
    }

    #[test]
    fn seeds_that_once_found_something_go_well() {
        // Operators whose clocks differ; a newcomer below its floor; a source that streamed from whom it was to complete; a
        // restored record of a reign that did not serve.
        for seed in [300_456, 3_001_607, 3_000_887, 3_001_086, 3_001_798, 3_002_077, 1_000_899] {
            assert_eq!(run(seed, Fault::ALL, false).violation, None, "seed {seed}");
        }
    }

    #[test]
    fn stores_survive_a_few_hundred_faults() {
        for seed in 1..=12 {
            let outcome = run(seed, Fault::ALL, false);
            assert_eq!(outcome.violation, None, "seed {seed}");
            assert_eq!(outcome.thin, None, "seed {seed}");
            assert!(outcome.operations >= OPERATIONS && outcome.faults >= FAULTS, "seed {seed}");
        }
    }
}
