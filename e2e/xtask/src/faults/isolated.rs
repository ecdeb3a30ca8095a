//! A primary that is cut from all, with clients on its side: what it acknowledges, and until when.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::env::{Env, Target};
use super::inject::network;
use super::kinds::Mode;
use super::load::client::{Addresses, NO_CONNECTION, Route};
use super::load::history::{Access, History};
use super::load::{Load, Plan, Registers};
use super::scripts::recovers;
use crate::error::{Error, Result};
use crate::poll;

/// Of stores under test; a primary without replicas to wait for may go on for so long after its last renewal.
const LEASE: Duration = Duration::from_secs(10);
/// From an acknowledgement to where its time is taken.
const SLACK: Duration = Duration::from_millis(250);
/// The dark lasts at least so long: past the lease, to see that nothing comes after it.
const DARK: Duration = Duration::from_secs(16);
const RECOVERY_LIMIT: Duration = Duration::from_secs(40);
const RATE: u32 = 200;
/// Fewer reads that reached it show nothing.
const LEAST_READS: usize = 20;

/// Unplugs the node of the primaries, with a load inside it for each.
pub fn primary(env: &Env<'_>, targets: &[&Target<'_>]) -> Result<()> {
    let Some(node) = targets.first().map(|t| t.before.node) else { return Ok(()) };
    let inside: Vec<Load> = targets.iter().map(|t| start(env, t)).collect::<Result<_>>()?;
    targets.iter().for_each(|t| t.mark(&format!("{} goes dark, with clients", node.name())));
    let dark = network::unplug(&env.journal, node)?;
    let since = Instant::now();
    for target in targets {
        if recovers(target, since + SLACK, RECOVERY_LIMIT) {
            target.mark("acknowledges again");
        } else {
            target.late(format!("nobody took over within {} s", RECOVERY_LIMIT.as_secs()));
        }
    }
    std::thread::sleep(DARK.saturating_sub(since.elapsed()));
    // Ended before there is light, so that all they saw is the isolated member's.
    for (load, target) in inside.into_iter().zip(targets) {
        let history = load.finish()?;
        judge(env, target, &history, since);
        if let Ok(mut all) = target.isolated.lock() {
            all.push(history);
        }
    }
    targets.iter().for_each(|t| t.mark("light again"));
    dark.undo()
}

fn start(env: &Env<'_>, target: &Target<'_>) -> Result<Load> {
    let address = env.watch.addresses.of(&target.before.primary);
    let address = address.ok_or_else(|| Error::failed(format!("find {}: no address", target.before.primary)))?;
    let load = Load::start(Plan {
        tag: format!("i{}-{}", target.before.epoch, target.round),
        node: target.before.node,
        route: Route { address, addresses: Arc::new(Addresses::default()) },
        rate: RATE,
        registers: Registers::ReadOf(target.load.tag().to_owned()),
    });
    poll::until("writes on the primary's node", Duration::from_secs(10), Duration::from_millis(20), || {
        poll::ready(load.acked() > 20, || format!("{} acknowledged", load.acked()))
    })?;
    Ok(load)
}

fn judge(env: &Env<'_>, target: &Target<'_>, history: &History, dark: Instant) {
    let events = env.watch.since(target.name(), dark);
    // The record says Promoting only once the seal quorum is complete.
    let sealed = events.iter().find(|e| e.epoch > target.before.epoch && e.phase != "Sealing").map(|e| e.at);
    let (end, what) = match target.subject.mode {
        Mode::Quorum => (sealed, "the seal"),
        Mode::Async => (Some(dark + LEASE + SLACK), "its lease"),
    };
    let at = |time: u64| history.begun + Duration::from_micros(time);
    let last = history.acknowledgements(None).last().copied().map(at);
    if let Some(last) = last {
        let after = last.saturating_duration_since(dark).as_millis();
        target.mark(&format!("the isolated primary acknowledged its last write {after} ms after the cut"));
    }
    match (last, end) {
        (Some(last), Some(end)) if last > end => {
            let late = last.duration_since(end).as_millis();
            target.problem(format!("the isolated primary acknowledged {late} ms after {what}"));
        }
        (_, None) => target.problem("no new reign while the primary was isolated".into()),
        _ => {}
    }
    if let Some(end) = end {
        judge_reads(target, history, dark, end, what);
    }
}

/// Nothing that was asked after `end` may be answered as by a primary; and enough must have been asked.
fn judge_reads(target: &Target<'_>, history: &History, dark: Instant, end: Instant, what: &str) {
    let at = |time: u64| history.begun + Duration::from_micros(time);
    let registers = &history.registers;
    let reads = || registers.operations.iter().filter(|o| matches!(o.access, Access::Read(_)));
    let told = match reads().map(|o| at(o.begun)).filter(|sent| *sent > dark).max() {
        Some(last) => format!("was sent {} ms after the cut", last.duration_since(dark).as_millis()),
        None => "was sent before the cut".to_owned(),
    };
    target.mark(&format!("the last read that the isolated primary answered {told}"));
    let answered = reads().filter(|o| at(o.begun) > end).count();
    if answered > 0 {
        target.problem(format!("the isolated primary answered {answered} reads that were sent after {what}"));
    }
    let failed = registers.failed_reads.iter().filter(|r| r.why != NO_CONNECTION).map(|r| r.ended);
    let refused = failed.chain(registers.at_replicas.iter().copied()).filter(|time| at(*time) > end).count();
    target.mark(&format!("it refused {refused} reads after {what}"));
    if answered + refused < LEAST_READS {
        target.late(format!("only {} reads reached the isolated primary after {what}", answered + refused));
    }
}
