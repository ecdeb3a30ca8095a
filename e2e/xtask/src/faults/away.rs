//! Without an operator, and without an API server: what goes on, and what waits.

use std::time::{Duration, Instant};

use redis::RedisError;

use super::env::{Env, Target};
use super::inject::{network, process};
use super::kinds::Mode;
use super::load::client::{Addresses, Client, Failure, Route};
use super::scripts::{dismiss_operator, recovers};
use super::verify::connect;
use crate::cluster::layout::Node;
use crate::cluster::process as recorded;
use crate::error::{Context, Error, Result};
use crate::poll;

/// A replica that was killed streams again within this.
const RETURN_LIMIT: Duration = Duration::from_secs(60);
const RECOVERY_LIMIT: Duration = Duration::from_secs(60);
/// Acknowledgements of before a kill are heard within this.
const ECHO: Duration = Duration::from_millis(500);
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// Acknowledgements that go on are heard within this.
const UNNOTICED: Duration = Duration::from_secs(2);
const PART: u32 = 2;

/// Takes the operator away (and the API server), kills a replica, then the primary; then all come back.
pub fn operator(env: &Env<'_>, targets: &[&Target<'_>], api: bool) -> Result<()> {
    // All that must be known is asked for while somebody answers.
    let victims = targets.iter().map(|t| replica(env, t)).collect::<Result<Vec<_>>>()?;
    targets.iter().for_each(|t| t.mark("operator goes"));
    let operator = dismiss_operator(env)?;
    let stopped = if api {
        let server = recorded::find(&env.layout, "apiserver");
        let server = server.ok_or_else(|| Error::failed("stop the API server: it does not run"))?;
        targets.iter().for_each(|t| t.mark("API server stops"));
        Some(process::stop(&env.journal, server)?)
    } else {
        None
    };
    let begun = Instant::now();
    std::thread::sleep(env.holds.operator / PART);
    for (target, (pod, process)) in targets.iter().zip(&victims) {
        if !recovers(target, Instant::now(), UNNOTICED) {
            target.problem("without the operator nothing is acknowledged, with all members there".into());
        }
        target.mark("replica killed");
        process::kill(*process)?;
        follows_again(env, target, pod)?;
        target.mark("replica follows again");
    }
    // Without the API server there is no Lease: in mode Async the primary goes on only while all members are there.
    for target in targets.iter().filter(|t| api && t.subject.mode == Mode::Async) {
        if !recovers(target, Instant::now(), UNNOTICED) {
            target.late("without the API server nothing is acknowledged, with all members there again".into());
        }
        target.judge_from_now();
    }
    std::thread::sleep(env.holds.operator.saturating_sub(begun.elapsed()));
    for target in targets {
        if !recovers(target, Instant::now(), Duration::from_secs(3)) {
            target.problem("without the operator nothing is acknowledged".into());
        }
        target.mark("primary killed");
        target.judge_until_now();
        process::kill(target.before.process)?;
    }
    let killed = Instant::now() + ECHO;
    std::thread::sleep(env.holds.waiting);
    for target in targets {
        if !target.load.silent_since(killed) {
            target.problem("a killed primary acknowledged writes before the operator was back".into());
        }
        refuses_writes(env, target)?;
    }
    targets.iter().for_each(|t| t.mark("operator comes back"));
    if let Some(stopped) = stopped {
        stopped.undo()?;
    }
    operator.undo()?;
    env.await_leader()?;
    for target in targets {
        if recovers(target, Instant::now(), RECOVERY_LIMIT) {
            target.mark("acknowledges again");
        }
    }
    Ok(())
}

fn replica(env: &Env<'_>, target: &Target<'_>) -> Result<(String, recorded::Recorded)> {
    let found = target.before.members.iter().find(|m| m.role == "Replica");
    let found = found.ok_or_else(|| Error::failed(format!("kill a replica of {}: it has none", target.name())))?;
    let process = process::of_pod(&env.kube, &env.layout, super::env::NAMESPACE, &found.name)?;
    Ok((found.name.clone(), process))
}

/// Does `work` in a node's network.
pub fn within<T: Send>(node: Node, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            network::enter(node)?;
            work()
        });
        thread.join().map_err(|_| Error::failed("a thread in a node's network panicked"))?
    })
}

fn client(address: String) -> Client {
    Client::new(Route { address, addresses: std::sync::Arc::new(Addresses::default()) })
}

fn address(env: &Env<'_>, pod: &str) -> Result<String> {
    env.watch.addresses.of(pod).ok_or_else(|| Error::failed(format!("find {pod}: no address")))
}

/// Waits until what is written on the primary is read on the replica.
fn follows_again(env: &Env<'_>, target: &Target<'_>, pod: &str) -> Result<()> {
    let (to, from) = (address(env, &target.before.primary)?, address(env, pod)?);
    let (key, value) = (format!("w0:seen/{pod}"), format!("{}", target.before.epoch));
    within(target.before.node, || {
        let (mut primary, mut replica) = (client(to), client(from));
        poll::until(&format!("{pod} to follow again"), RETURN_LIMIT, Duration::from_millis(100), || {
            let set = primary.call(|c| redis::cmd("SET").arg(&key).arg(&value).exec(c));
            set.map_err(|e| format!("the primary does not take a write: {e:?}"))?;
            let found: std::result::Result<Option<String>, Failure> =
                replica.call(|c| -> std::result::Result<_, RedisError> { redis::cmd("GET").arg(&key).query(c) });
            let found = found.map_err(|e| format!("the replica does not answer: {e:?}"))?;
            poll::ready(found.as_ref() == Some(&value), || format!("it reads {found:?}"))
        })
    })
}

/// Asks the killed primary, which is up again, to take a write: it must be there, and say no.
fn refuses_writes(env: &Env<'_>, target: &Target<'_>) -> Result<()> {
    let name = &target.before.primary;
    let to = address(env, name)?;
    let answers = within(target.before.node, || {
        let mut connection = connect(&to, name)?;
        connection.set_read_timeout(Some(ANSWER_LIMIT)).doing(|| format!("ask {name}"))?;
        let write = redis::cmd("SET").arg("w0:seen/nobody").arg("1").exec(&mut connection);
        let read = redis::cmd("GET").arg("w0:seen/nobody").query::<Option<String>>(&mut connection);
        Ok((write, read))
    });
    let (write, read) = match answers {
        Ok(answers) => answers,
        Err(e) => {
            target.late(format!("the killed primary is not up again: {e}"));
            return Ok(());
        }
    };
    match write {
        Ok(()) => target.problem("a killed primary took a write before the operator was back".into()),
        Err(e) if says_no(&e) => target.mark(&format!("it refuses writes: {e}")),
        Err(e) => target.late(format!("a killed primary does not say that it takes no writes: {e}")),
    }
    match read {
        Ok(value) => target.mark(&format!("it reads {value:?}")),
        Err(e) if says_no(&e) => target.mark(&format!("it refuses reads: {e}")),
        Err(e) => target.late(format!("a killed primary neither reads nor says that it does not: {e}")),
    }
    Ok(())
}

/// Whether this is an answer, and not the lack of one.
fn says_no(error: &RedisError) -> bool {
    matches!(error.code(), Some("READONLY" | "LOADING"))
}
