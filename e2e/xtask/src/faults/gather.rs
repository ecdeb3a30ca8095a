//! Where primaries and the leading operator are, before a node goes dark.

use std::time::Duration;

use super::env::{Env, Subject};
use super::inject::process;
use super::kinds::Kind;
use super::scripts::ask_switchover;
use crate::cluster::layout::Node;
use crate::error::{Error, Result};
use crate::generate::NAMESPACE as OPERATOR_NAMESPACE;
use crate::kube::text;
use crate::poll;

const LEADER_LIMIT: Duration = Duration::from_secs(60);

/// Moves the primaries of all stores to one node, so that what happens to the node happens to all. The operator leads from
/// there or from elsewhere, as the kind wants.
pub fn primaries(env: &Env<'_>, kind: Kind, subjects: &[&Subject], round: usize) -> Result<()> {
    let Some(first) = subjects.first() else { return Ok(()) };
    if kind == Kind::NodeAndOperatorBlackout {
        let node = process::node(&env.layout, text(&env.leader()?, "/spec/nodeName"))?;
        return subjects.iter().try_for_each(|subject| lead_from(env, subject, node, round));
    }
    let node = first.before(env)?.node;
    subjects[1..].iter().try_for_each(|subject| lead_from(env, subject, node, round))?;
    // An operator in the dark would be replaced first, which is another kind.
    let leader = env.leader()?;
    if text(&leader, "/spec/nodeName") == node.name() {
        let pod = text(&leader, "/metadata/name");
        env.kube.kubectl(&format!("delete pod {pod} -n {OPERATOR_NAMESPACE}")).done()?;
        poll::until("an operator elsewhere to lead", LEADER_LIMIT, Duration::from_millis(300), || {
            let now = env.leader().map_err(|e| e.to_string())?;
            poll::ready(text(&now, "/spec/nodeName") != node.name(), || "it leads from the same node".into())
        })?;
    }
    Ok(())
}

/// Switches a store over to its member on a node.
fn lead_from(env: &Env<'_>, subject: &Subject, node: Node, round: usize) -> Result<()> {
    let before = subject.before(env)?;
    if before.node == node {
        return Ok(());
    }
    let store = &subject.store.name;
    let there = before.members.iter().find(|m| m.node == node.name());
    let there = there.ok_or_else(|| Error::failed(format!("{store} has no member on {}", node.name())))?;
    let name = format!("gather-{store}-{}-{round}", before.epoch);
    ask_switchover(env, store, &name, Some(&there.name)).map(drop)
}
