//! What happens in a round of each kind, while the load goes on: the fault, how long it lasts, and its end.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::env::{Env, MEMBERS, NAMESPACE, Target};
use super::inject::{Undo, disk, network, process};
use super::kinds::{Kind, Mode};
use super::{away, isolated, volume};
use crate::cluster::process as recorded;
use crate::error::{Error, Result};
use crate::exec::run;
use crate::kube::text;
use crate::poll;
use crate::store::{Member, describe, members};

/// A store that does not acknowledge again after this will not before the fault is over.
const RECOVERY_LIMIT: Duration = Duration::from_secs(40);
/// What goes on wrongly after it was replaced shows within this.
const AFTERMATH: Duration = Duration::from_secs(3);
const ADMIN_PORT: u16 = 7003;
const STEP: Duration = Duration::from_millis(20);
/// How long a primary writes alone before it is killed.
const ALONE: Duration = Duration::from_millis(400);
/// A member whose disk has space again is back by then, or waits for a person.
const RETURN_LIMIT: Duration = Duration::from_secs(20);
/// Replicas are said to stream up to ten seconds after they heard the primary last.
const CUT_SHOWS: Duration = Duration::from_secs(20);
const OPERATION_LIMIT: Duration = Duration::from_secs(60);

/// Lets the fault happen to these stores and end. The load shows what came of it.
pub fn perform(kind: Kind, env: &Env<'_>, targets: &[&Target<'_>]) -> Result<()> {
    match kind {
        Kind::Kill => each(targets, kill),
        Kind::Pause => each(targets, |t| pause(env, t)),
        Kind::PodDeleted => each(targets, |t| pod_deleted(env, t)),
        Kind::PartitionOperator => each(targets, |t| partition_operator(env, t)),
        Kind::PartitionReplicas => each(targets, |t| partition_replicas(env, t)),
        Kind::KillBehind => each(targets, |t| kill_behind(env, t)),
        Kind::HungDisk => each(targets, |t| hung_disk(env, t)),
        Kind::DiskFull => each(targets, |t| disk_full(env, t)),
        Kind::VolumeLost => each(targets, |t| volume::lost(env, t)),
        Kind::Switchover => each(targets, |t| switchover(env, t)),
        Kind::Scale => each(targets, |t| scale(env, t)),
        Kind::NodeBlackout => node_blackout(env, targets),
        Kind::NodeAndOperatorBlackout => node_and_operator_blackout(env, targets),
        Kind::IsolatedPrimary => isolated::primary(env, targets),
        Kind::ApiServer => api_server(env, targets),
        Kind::OperatorKilled => operator_killed(env, targets),
        Kind::TwoOperators => two_operators(env, targets),
        Kind::OperatorAway => away::operator(env, targets, false),
        Kind::OperatorAndApiAway => away::operator(env, targets, true),
    }
}

fn each(targets: &[&Target<'_>], mut work: impl FnMut(&Target<'_>) -> Result<()>) -> Result<()> {
    targets.iter().try_for_each(|t| work(t))
}

/// Waits until every prefix acknowledges again; whether it did in time.
pub fn recovers(target: &Target<'_>, since: Instant, limit: Duration) -> bool {
    poll::until("writes", limit, STEP, || poll::ready(target.load.acknowledged_since(since), String::new)).is_ok()
}

/// Lets a fault last until writes are acknowledged again, and a little longer.
fn outlast(targets: &[&Target<'_>], since: Instant) {
    outlast_until(targets, since, since + RECOVERY_LIMIT);
}

fn outlast_until(targets: &[&Target<'_>], since: Instant, deadline: Instant) {
    for target in targets {
        if recovers(target, since, deadline.saturating_duration_since(Instant::now())) {
            target.mark("acknowledges again");
        } else {
            target.late(format!("nobody took over within {} s", (deadline - since).as_secs()));
        }
    }
    std::thread::sleep(AFTERMATH);
}

fn kill(target: &Target<'_>) -> Result<()> {
    target.mark("kill -9");
    process::kill(target.before.process)
}

fn pause(env: &Env<'_>, target: &Target<'_>) -> Result<()> {
    target.mark("SIGSTOP");
    let stopped = process::stop(&env.journal, target.before.process)?;
    // What was in the kernel's buffers may still be acknowledged.
    outlast(&[target], Instant::now() + Duration::from_millis(100));
    target.mark("SIGCONT");
    stopped.undo()
}

fn delete_pod(env: &Env<'_>, pod: &str) -> Result<()> {
    env.kube.kubectl(&format!("delete pod {pod} -n {NAMESPACE} --grace-period=0 --force --wait=false")).done()
}

fn pod_deleted(env: &Env<'_>, target: &Target<'_>) -> Result<()> {
    target.mark("pod deleted");
    delete_pod(env, &target.before.primary)
}

fn partition_operator(env: &Env<'_>, target: &Target<'_>) -> Result<()> {
    let rules = network::from_port(ADMIN_PORT);
    target.mark("cut from the operator");
    let cut = network::drop_packets(&env.journal, target.before.sandbox, rules)?;
    lasts(target, env.holds.partition, "the primary is out of the operator's reach", |members| {
        members.iter().any(|m| m.name == target.before.primary && m.phase == "Unreachable")
    });
    target.mark("healed");
    cut.undo()
}

/// Lets a partition last. Unless the status shows it meanwhile, it was none.
fn lasts(target: &Target<'_>, hold: Duration, what: &str, mut shows: impl FnMut(&[Member]) -> bool) {
    let begun = Instant::now();
    let seen = poll::until(what, hold, Duration::from_millis(300), || {
        let object = target.subject.store.get().map_err(|e| e.to_string())?;
        poll::ready(shows(&members(&object)), || describe(&object))
    });
    match seen {
        Ok(()) => target.mark(&format!("the status says so: {what}")),
        Err(e) => target.late(format!("no effect: {e}")),
    }
    std::thread::sleep(hold.saturating_sub(begun.elapsed()));
}

/// The addresses of the replicas, of all of them: a partition with a hole in it is none.
fn replicas(env: &Env<'_>, target: &Target<'_>) -> Result<Vec<String>> {
    let others = target.before.members.iter().filter(|m| m.name != target.before.primary);
    let found: Vec<String> = others.filter_map(|m| env.watch.addresses.of(&m.name)).collect();
    if found.len() == MEMBERS - 1 {
        return Ok(found);
    }
    Err(Error::failed(format!("find the replicas of {}: only {} have an address", target.name(), found.len())))
}

fn partition_replicas(env: &Env<'_>, target: &Target<'_>) -> Result<()> {
    let rules = network::from_addresses(&replicas(env, target)?);
    target.mark("cut from the replicas");
    let cut = network::drop_packets(&env.journal, target.before.sandbox, rules)?;
    match target.subject.mode {
        Mode::Quorum => outlast(&[target], Instant::now() + Duration::from_millis(100)),
        // Nobody takes over: the primary goes on alone, all the time.
        Mode::Async => lasts(target, env.holds.partition.max(CUT_SHOWS), "no replica streams", |members| {
            members.iter().all(|m| m.name == target.before.primary || m.phase != "Streaming")
        }),
    }
    target.mark("healed");
    cut.undo()
}

fn kill_behind(env: &Env<'_>, target: &Target<'_>) -> Result<()> {
    let rules = network::from_addresses(&replicas(env, target)?);
    target.mark("cut from the replicas");
    let cut = network::drop_packets(&env.journal, target.before.sandbox, rules)?;
    std::thread::sleep(ALONE);
    target.mark("kill -9");
    process::kill(target.before.process)?;
    outlast(&[target], Instant::now());
    target.mark("healed");
    cut.undo()
}

fn hung_disk(env: &Env<'_>, target: &Target<'_>) -> Result<()> {
    let mount = target.subject.disk(target.before.node)?;
    target.mark("disk hangs");
    let frozen = disk::freeze(&env.journal, mount)?;
    outlast(&[target], Instant::now() + Duration::from_millis(100));
    target.mark("disk works");
    frozen.undo()
}

fn disk_full(env: &Env<'_>, target: &Target<'_>) -> Result<()> {
    let mount = target.subject.disk(target.before.node)?;
    target.mark("disk fills");
    let full = disk::fill(&env.journal, mount)?;
    target.mark("disk is full");
    // It may take a while until something needs space.
    std::thread::sleep(AFTERMATH);
    outlast(&[target], Instant::now());
    target.mark("space again");
    full.undo()?;
    // A member that found no space even to start waits for a person.
    let returns = poll::until("the member to come back", RETURN_LIMIT, Duration::from_millis(500), || {
        let members = target.subject.store.get().map(|o| members(&o)).map_err(|e| e.to_string())?;
        let member = members.into_iter().find(|m| m.name == target.before.primary);
        let phase = member.map_or_else(String::new, |m| m.phase);
        poll::ready(matches!(phase.as_str(), "Serving" | "Streaming"), || format!("it is {phase}"))
    });
    if returns.is_err() {
        target.mark("its pod deleted, as a person would");
        delete_pod(env, &target.before.primary)?;
    }
    Ok(())
}

/// Asks for another primary and waits until that is done. Returns what leads then.
pub fn ask_switchover(env: &Env<'_>, store: &str, name: &str, member: Option<&str>) -> Result<String> {
    let mut spec = json!({"store": store, "type": "Switchover", "timeout": "60s"});
    if let Some(member) = member {
        spec["member"] = json!(member);
    }
    let document = json!({
        "apiVersion": "parovoz.dev/v1alpha1", "kind": "StoreOperation",
        "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
    });
    env.kube.apply(&document.to_string())?;
    let query = format!("get storeoperation {name} -n {NAMESPACE}");
    let done = env.kube.until(&format!("the switchover {name}"), OPERATION_LIMIT, &query, |object| {
        match text(object, "/status/phase") {
            "Succeeded" => Ok(Ok(text(object, "/status/result/primary").to_owned())),
            "Failed" => Ok(Err(text(object, "/status/message").to_owned())),
            _ => Err(text(object, "/status/message").to_owned()),
        }
    })?;
    done.map_err(|message| Error::failed(format!("switch {store} over: {message}")))
}

fn switchover(env: &Env<'_>, target: &Target<'_>) -> Result<()> {
    let name = format!("{}-{}-{}", target.name(), target.before.epoch, target.round);
    target.mark("switchover asked for");
    ask_switchover(env, target.name(), &name, None)?;
    target.mark("switchover done");
    Ok(())
}

fn scale(env: &Env<'_>, target: &Target<'_>) -> Result<()> {
    for replicas in [2, 3] {
        target.mark(&format!("scaled to {replicas}"));
        let words = format!("scale rstore {} -n {NAMESPACE} --replicas={replicas}", target.name());
        env.kube.kubectl(&words).done()?;
        target.subject.store.await_healthy(replicas)?;
        target.mark("healthy");
    }
    Ok(())
}

fn node_blackout(env: &Env<'_>, targets: &[&Target<'_>]) -> Result<()> {
    let Some(node) = targets.first().map(|t| t.before.node) else { return Ok(()) };
    targets.iter().for_each(|t| t.mark(&format!("{} goes dark", node.name())));
    let dark = network::unplug(&env.journal, node)?;
    outlast(targets, Instant::now() + Duration::from_millis(100));
    targets.iter().for_each(|t| t.mark("light again"));
    dark.undo()
}

/// The same with the leading operator in the dark, until another one leads and has done its work.
fn node_and_operator_blackout(env: &Env<'_>, targets: &[&Target<'_>]) -> Result<()> {
    let Some(node) = targets.first().map(|t| t.before.node) else { return Ok(()) };
    let (leader, holder) = (env.leader()?, env.holder()?);
    if text(&leader, "/spec/nodeName") != node.name() {
        return Err(Error::failed(format!("darken {} with the operator: it leads from elsewhere", node.name())));
    }
    targets.iter().for_each(|t| t.mark(&format!("{} goes dark, with the leading operator", node.name())));
    let dark = network::unplug(&env.journal, node)?;
    let begun = Instant::now();
    poll::until("another operator to lead", RECOVERY_LIMIT, Duration::from_millis(200), || {
        let now = env.holder().map_err(|e| e.to_string())?;
        poll::ready(!now.is_empty() && now != holder, || format!("{now} still does"))
    })?;
    targets.iter().for_each(|t| t.mark("another operator leads"));
    outlast_until(targets, begun + Duration::from_millis(100), Instant::now() + RECOVERY_LIMIT);
    targets.iter().for_each(|t| t.mark("light again"));
    dark.undo()
}

fn api_server(env: &Env<'_>, targets: &[&Target<'_>]) -> Result<()> {
    let server = recorded::find(&env.layout, "apiserver");
    let server = server.ok_or_else(|| Error::failed("stop the API server: it does not run"))?;
    targets.iter().for_each(|t| t.mark("API server stops"));
    let stopped = process::stop(&env.journal, server)?;
    std::thread::sleep(env.holds.api);
    for target in targets {
        if !recovers(target, Instant::now(), Duration::from_secs(2)) {
            target.problem("without the API server nothing is acknowledged".into());
        }
        target.mark("API server goes on");
    }
    stopped.undo()
}

/// The moments of a failover at which the operator is killed.
const MOMENTS: [&str; 4] = ["with the primary", "Sealing", "Promoting", "Serving"];

/// The moment of a round: one after the other, so that four rounds have all. A single round has one that the clock chose.
fn moment(round: usize) -> usize {
    static FIRST: OnceLock<usize> = OnceLock::new();
    let since = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    let first = *FIRST.get_or_init(|| usize::try_from(since()).unwrap_or(0));
    first.wrapping_add(round) % MOMENTS.len()
}

fn operator_killed(env: &Env<'_>, targets: &[&Target<'_>]) -> Result<()> {
    let Some(first) = targets.first() else { return Ok(()) };
    let at = moment(first.round);
    let wanted = MOMENTS[at];
    let leader = process::of_pod_object(&env.layout, &env.leader()?)?;
    for target in targets {
        kill(target)?;
    }
    if at > 0 {
        env.watch.await_phase(first.name(), first.before.epoch, &MOMENTS[at..], RECOVERY_LIMIT)?;
    }
    process::kill(leader)?;
    // What the record says by now may be later than what was waited for.
    let now = env.watch.last(first.name()).filter(|e| e.epoch > first.before.epoch);
    let seen = now.map_or(MOMENTS[0].to_owned(), |e| e.phase);
    targets.iter().for_each(|t| t.mark(&format!("operator killed: {seen} (it was to be {wanted})")));
    if seen != wanted {
        first.late(format!("no effect: the operator was to be killed {wanted}, and the record says {seen}"));
    }
    outlast(targets, Instant::now());
    env.await_leader()
}

fn two_operators(env: &Env<'_>, targets: &[&Target<'_>]) -> Result<()> {
    let Some(first) = targets.first() else { return Ok(()) };
    let (holder, leader) = (env.holder()?, process::of_pod_object(&env.layout, &env.leader()?)?);
    let stopped = process::stop(&env.journal, leader)?;
    poll::until("another operator to lead", Duration::from_secs(60), Duration::from_millis(200), || {
        let now = env.holder().map_err(|e| e.to_string())?;
        poll::ready(!now.is_empty() && now != holder, || format!("{now} still does"))
    })?;
    for target in targets {
        kill(target)?;
    }
    let limit = Duration::from_secs(5);
    match env.watch.await_phase(first.name(), first.before.epoch, &["Sealing", "Promoting", "Serving"], limit) {
        Ok(seen) => first.mark(&format!("the failover is {}", seen.phase)),
        Err(e) => first.late(format!("no effect: the former operator goes on without a failover: {e}")),
    }
    // The kubelet ends what does not answer it for too long.
    if !leader.runs() || leader.is_told_to_end() {
        first.late("no effect: the kubelet ended the former operator before it could go on".into());
    }
    targets.iter().for_each(|t| t.mark("the former operator goes on"));
    stopped.undo()?;
    outlast(targets, Instant::now());
    env.await_leader()
}

/// Scales the operator to nothing; it comes back with the guard.
pub fn dismiss_operator(env: &Env<'_>) -> Result<super::inject::Armed> {
    let replicas = u8::try_from(env.operators()?.len()).unwrap_or(2).max(1);
    let armed = env.journal.arm(Undo::Scale { kubectl: env.scale_operator(replicas) })?;
    let words = env.scale_operator(0);
    run(&words[0]).args(&words[1..]).done()?;
    poll::until("the operator to be gone", Duration::from_secs(60), Duration::from_millis(300), || {
        let left = env.operators().map_err(|e| e.to_string())?;
        let names: Vec<&str> = left.iter().map(|p: &Value| text(p, "/metadata/name")).collect();
        poll::ready(names.is_empty(), || names.join(" "))
    })?;
    Ok(armed)
}
